/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors of the control plane: a code and a sentence that says what was wrong, where, and what to
 * do.
 * The data plane returns 0 or -errno without a text.
 *
 * A function that takes a `struct err *err` never accepts NULL, returns 0 or a negative errno, and
 * leaves its outputs untouched when it fails. The usual form is
 *
 *     return err_set(err, -EINVAL, "size %" PRIu64 " is not a multiple of %u", size, block);
 */
#ifndef BLOCKSTEP_BASE_ERR_H
#define BLOCKSTEP_BASE_ERR_H

#include "base/defs.h"

#define ERR_TEXT_BYTES 512

/* What a control client needs to tell apart; the names are QMP's error classes. */
enum err_kind {
    ERR_GENERIC,
    ERR_COMMAND_NOT_FOUND,
    ERR_DEVICE_NOT_ACTIVE,
    ERR_DEVICE_NOT_FOUND,
    ERR_KVM_MISSING_CAP, /* QMP's list has it; never set here */
};

struct err {
    int code; /* 0: none; else a negative errno */
    enum err_kind kind;
    /* One sentence without a final full stop; escaped and cut to one line of UTF-8 (text.h). */
    char text[ERR_TEXT_BYTES];
};

/* An empty error: struct err err = ERR_INIT; */
#define ERR_INIT  \
    {             \
        .code = 0 \
    }

/* Sets the error and returns `code`, which must be negative. The text before is replaced. */
int err_set(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* As err_set, with a kind. */
int err_set_kind(struct err *err, enum err_kind kind, int code, const char *fmt, ...)
    PRINTF_LIKE(4, 5);

/* As err_set, with ": " and strerror(-code) put behind the text. */
int err_set_errno(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "text: " before what the error says; returns its code. The error must be set. */
int err_prefix(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Out of memory, said in one way; returns -ENOMEM. */
int err_no_memory(struct err *err);

static inline bool err_is_set(const struct err *err)
{
    return err->code != 0;
}

void err_clear(struct err *err);

/* The name of an errno as the manual spells it ("EIO"), "errno 999" for unknown ones; static text
 * or a thread-local buffer. Takes the number with either sign. */
const char *err_errno_name(int code);

#endif
