/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Secrets as objects, as QEMU has them: the password of a private key, and what others are encrypted
 * with. object_load() reads the file. */
#ifndef BLOCKSTEP_DRIVERS_SECRET_OBJECT_H
#define BLOCKSTEP_DRIVERS_SECRET_OBJECT_H

#include "block/object.h"
#include "loop/secret.h"

extern const struct object_type secret_type;

/* Finds a secret and holds its object, which is ended by object_unuse(). `what` begins the error. */
int secret_object_use(struct graph *graph, const char *id, const char *what,
                      struct object **ret_object, const struct secret **ret_secret,
                      struct err *err);

#endif
