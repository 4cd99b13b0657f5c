/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS credentials as objects, as QEMU has them: tls-creds-x509 and tls-creds-psk. object_load()
 * reads the files.
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

/* The credentials, with a reference. */
int tls_object_creds(struct graph *graph, const char *id, enum tls_endpoint endpoint,
                     struct tls_creds **ret_creds, struct err *err);

#endif
