/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text that comes from outside, made fit for a log line, a terminal and a JSON string. */
#ifndef BLOCKSTEP_BASE_TEXT_H
#define BLOCKSTEP_BASE_TEXT_H

#include "base/defs.h"

#include <stdarg.h>
#include <stdint.h>

/*
 * Formats as vsnprintf does, then escapes control bytes and bytes that are not UTF-8 ("\n",
 * "\x1b"), so that the result is one line of valid UTF-8. A result that does not fit in `size`
 * (at least 16) is cut between characters and ends with "...". `out` may be among the arguments.
 */
void text_format(char *out, size_t size, const char *fmt, va_list args)
    __attribute__((format(printf, 3, 0)));

/* The length of the UTF-8 character that begins at `bytes` (1 to 4), 0 when there is no valid one
 * within `limit` bytes. Overlong forms, surrogates and values over 0x10FFFF are not valid. */
size_t text_utf8_length(const char *bytes, size_t limit);

/* A wall-clock time, in seconds since 1970, for people: "2026-03-01 12:00:05 UTC". Returns `text`. */
#define TEXT_UTC_BYTES 64u
const char *text_utc(uint64_t wall_s, char text[TEXT_UTC_BYTES]);

/* A number of 64 bits as exactly 16 lower-case hexadecimal digits, "%016" PRIx64; what follows them is
 * not looked at. False: these are none. */
#define TEXT_HEX64_DIGITS 16u
bool text_hex64_parse(const char *digits, size_t limit, uint64_t *ret_number);

#endif
