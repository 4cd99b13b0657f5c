/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes in bytes as people write and read them. */
#include "base/opts.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* More digits behind the point than any size of whole bytes can have. */
#define FRACTION_MAX_DIGITS 18

static const char unit_letters[] = "kMGTPE";

/* How far a unit's letter shifts, or -1. */
static int unit_shift(char letter)
{
    for (int i = 0; unit_letters[i] != '\0'; i++) {
        if (tolower((unsigned char)letter) == tolower((unsigned char)unit_letters[i]))
            return 10 * (i + 1);
    }
    return -1;
}

/* Digits behind the point: *ret_value / *ret_scale. Returns the text behind them, NULL when there
 * are none or too many. */
static const char *parse_fraction(const char *text, uint64_t *ret_value, uint64_t *ret_scale)
{
    const char *begin = text;

    *ret_value = 0;
    *ret_scale = 1;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (text - begin == FRACTION_MAX_DIGITS)
            return NULL;
        *ret_value = *ret_value * 10 + (uint64_t)(*text - '0');
        *ret_scale *= 10;
    }
    return text > begin ? text : NULL;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
    uint64_t whole = 0, fraction = 0, scale = 1;
    unsigned __int128 bytes;
    int shift = 0;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (__builtin_mul_overflow(whole, 10, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*text - '0'), &whole))
            return -ERANGE;
    }
    if (*text == '.') {
        text = parse_fraction(text + 1, &fraction, &scale);
        if (text == NULL)
            return -EINVAL;
    }
    if (*text != '\0') {
        shift = unit_shift(*text++);
        if (shift < 0 || *text != '\0')
            return -EINVAL;
    }
    if (((unsigned __int128)fraction << shift) % scale != 0)
        return -EINVAL;
    bytes = ((unsigned __int128)whole << shift) + ((unsigned __int128)fraction << shift) / scale;
    if (bytes > UINT64_MAX)
        return -ERANGE;
    *ret_bytes = (uint64_t)bytes;
    return 0;
}

const char *size_format(uint64_t bytes, char *text, size_t text_bytes)
{
    unsigned unit = 0;
    uint64_t tenths = 0;

    assert(text_bytes >= 32);
    if (bytes < 1024) {
        snprintf(text, text_bytes, "%u B", (unsigned)bytes);
        return text;
    }
    for (unsigned i = 0; unit_letters[i] != '\0'; i++) {
        unsigned __int128 size = (unsigned __int128)1 << 10 * (i + 1);

        unit = i;
        tenths = (uint64_t)(((unsigned __int128)bytes * 10 + size / 2) / size);
        /* As rounded: 1023.99 KiB is 1 MiB. */
        if (tenths < 10240)
            break;
    }
    if (tenths % 10 == 0)
        snprintf(text, text_bytes, "%u %ciB", (unsigned)(tenths / 10),
                 toupper((unsigned char)unit_letters[unit]));
    else
        snprintf(text, text_bytes, "%u.%u %ciB", (unsigned)(tenths / 10), (unsigned)(tenths % 10),
                 toupper((unsigned char)unit_letters[unit]));
    return text;
}
