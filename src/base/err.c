/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/err.h"

#include "base/text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int err_vset(struct err *err, enum err_kind kind, int code, const char *fmt, va_list args)
    __attribute__((format(printf, 4, 0)));

static int err_vset(struct err *err, enum err_kind kind, int code, const char *fmt, va_list args)
{
    assert(code < 0);
    text_format(err->text, sizeof(err->text), fmt, args);
    err->kind = kind;
    err->code = code;
    return code;
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    err_vset(err, ERR_GENERIC, code, fmt, args);
    va_end(args);
    return code;
}

int err_set_kind(struct err *err, enum err_kind kind, int code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    err_vset(err, kind, code, fmt, args);
    va_end(args);
    return code;
}

int err_set_errno(struct err *err, int code, const char *fmt, ...)
{
    const char *meaning = strerrordesc_np(-code);
    char text[ERR_TEXT_BYTES];
    va_list args;

    va_start(args, fmt);
    text_format(text, sizeof(text), fmt, args);
    va_end(args);
    if (meaning == NULL)
        return err_set(err, code, "%s: unknown error %d", text, -code);
    return err_set(err, code, "%s: %s", text, meaning);
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    char prefix[ERR_TEXT_BYTES];
    va_list args;

    assert(err_is_set(err));
    va_start(args, fmt);
    text_format(prefix, sizeof(prefix), fmt, args);
    va_end(args);
    return err_set_kind(err, err->kind, err->code, "%s: %s", prefix, err->text);
}

int err_no_memory(struct err *err)
{
    return err_set(err, -ENOMEM, "out of memory");
}

void err_clear(struct err *err)
{
    *err = (struct err)ERR_INIT;
}

const char *err_errno_name(int code)
{
    static _Thread_local char unknown[32];
    /* Unsigned: there is no -INT_MIN. */
    unsigned number = code < 0 ? -(unsigned)code : (unsigned)code;
    const char *name = number <= 4095 ? strerrorname_np((int)number) : NULL;

    if (name != NULL)
        return name;
    snprintf(unknown, sizeof(unknown), "errno %u", number);
    return unknown;
}
