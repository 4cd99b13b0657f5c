/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS credentials as objects, as QEMU has them: tls-creds-x509 and tls-creds-psk. Making one does not
 * wait; who made it has it loaded by tls_object_load() and takes it back when that fails.
 *
 * Users take the credentials, not the object: they keep what they have when it is deleted, and a new
 * one under the same id serves those who come later. So certificates are renewed.
 */
#ifndef BLOCKSTEP_DRIVERS_TLS_OBJECT_H
#define BLOCKSTEP_DRIVERS_TLS_OBJECT_H

#include "block/object.h"
#include "loop/tls.h"

extern const struct object_type tls_creds_x509_type;
extern const struct object_type tls_creds_psk_type;

/* Loads the credentials of the object `id`. Nothing to do for other types of objects. */
int tls_object_load(struct graph *graph, const char *id, struct err *err) MAY_WAIT;

/* The credentials, with a reference. */
int tls_object_creds(struct graph *graph, const char *id, enum tls_endpoint endpoint,
                     struct tls_creds **ret_creds, struct err *err);

#endif
