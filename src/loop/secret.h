/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Passwords and keys: from a text or a file, in base64 perhaps, encrypted perhaps. They are wiped when
 * they are released, and no error quotes any of them.
 */
#ifndef BLOCKSTEP_LOOP_SECRET_H
#define BLOCKSTEP_LOOP_SECRET_H

#include "loop/co.h"

#define SECRET_KEY_BYTES 32u /* of AES-256, for what is encrypted */
#define SECRET_IV_BYTES  16u

struct secret {
    uint8_t *bytes; /* and a zero byte behind them */
    size_t length_bytes;
};

struct secret_options {
    const char *data, *file;  /* one of them */
    bool base64;              /* what is read is base64 */
    const struct secret *key; /* of SECRET_KEY_BYTES; NULL: not encrypted */
    const char *iv;           /* base64; with `key` only */
};

/* A file is read on the offload pool; one that everybody may use is refused. */
int secret_load(struct loop *loop, const struct secret_options *options, struct secret *ret_secret,
                struct err *err) MAY_WAIT;
/* As secret_load(), in the calling thread. */
int secret_load_now(const struct secret_options *options, struct secret *ret_secret,
                    struct err *err);
void secret_release(struct secret *secret);
/* The secret as text; NULL when it has zero bytes. */
const char *secret_text(const struct secret *secret);

#endif
