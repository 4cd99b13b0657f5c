/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Longer texts are cut before they are escaped. */
#define TEXT_FORMAT_BYTES 2048

static bool is_continuation(unsigned char byte)
{
    return (byte & 0xC0) == 0x80;
}

/* Some first bytes allow only a part of the second bytes (Unicode 15, table 3-7). */
static bool second_byte_fits(unsigned char first, unsigned char second)
{
    switch (first) {
    case 0xE0:
        return second >= 0xA0;
    case 0xED:
        return second <= 0x9F;
    case 0xF0:
        return second >= 0x90;
    case 0xF4:
        return second <= 0x8F;
    default:
        return true;
    }
}

size_t text_utf8_length(const char *bytes, size_t limit)
{
    const unsigned char *p = (const unsigned char *)bytes;
    size_t length;

    if (limit == 0)
        return 0;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4)
        return 0;
    length = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    if (length > limit)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if (!is_continuation(p[i]))
            return 0;
    }
    return second_byte_fits(p[0], p[1]) ? length : 0;
}

/* Writes the character at `text` as it may appear in a line; returns the bytes taken from `text`.
 * `piece` has room for 5 bytes. */
static size_t escape_one(const char *text, size_t limit, char *piece)
{
    static const char names[] = "\aa\bb\tt\nn\vv\ff\rr";
    unsigned char byte = (unsigned char)*text;
    size_t length = text_utf8_length(text, limit);

    if (length > 0 && byte >= 0x20 && byte != 0x7F) {
        memcpy(piece, text, length);
        piece[length] = '\0';
        return length;
    }
    if (byte >= '\a' && byte <= '\r')
        snprintf(piece, 5, "\\%c", names[(byte - '\a') * 2 + 1]);
    else
        snprintf(piece, 5, "\\x%02x", byte);
    return 1;
}

void text_format(char *out, size_t size, const char *fmt, va_list args)
{
    static const char ellipsis[] = "...";
    char raw[TEXT_FORMAT_BYTES];
    int formatted = vsnprintf(raw, sizeof(raw), fmt, args);
    bool cut = formatted >= (int)sizeof(raw);
    size_t raw_length = formatted < 0 ? 0 : strlen(raw);
    size_t used = 0, fits = 0; /* fits: the longest prefix that leaves room for the ellipsis */

    assert(size >= 16);
    for (size_t i = 0; i < raw_length;) {
        char piece[5];

        i += escape_one(raw + i, raw_length - i, piece);
        if (used + strlen(piece) >= size) {
            cut = true;
            break;
        }
        memcpy(out + used, piece, strlen(piece));
        used += strlen(piece);
        if (used + sizeof(ellipsis) <= size)
            fits = used;
    }
    if (cut) {
        memcpy(out + fits, ellipsis, sizeof(ellipsis));
        return;
    }
    out[used] = '\0';
}

/* gmtime() may read the zone's file first, and allocate. Years begin in March here, so that a leap day is
 * the last of its year. */
const char *text_utc(uint64_t wall_s, char text[TEXT_UTC_BYTES])
{
    enum { DAYS_OF_400_YEARS = 146097, DAYS_OF_100_YEARS = 36524, DAYS_OF_4_YEARS = 1461 };
    const uint64_t march_of_0_to_1970 = 719468;
    uint64_t days = wall_s / 86400 + march_of_0_to_1970, second = wall_s % 86400;
    uint64_t day = days % DAYS_OF_400_YEARS;
    uint64_t leap_days = day / (DAYS_OF_4_YEARS - 1) - day / DAYS_OF_100_YEARS +
                         day / (DAYS_OF_400_YEARS - 1);
    uint64_t year_of_era = (day - leap_days) / 365;
    uint64_t day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t month = (5 * day_of_year + 2) / 153; /* 153 days in five months */
    uint64_t year = days / DAYS_OF_400_YEARS * 400 + year_of_era + (month >= 10);

    snprintf(text, TEXT_UTC_BYTES,
             "%04" PRIu64 "-%02" PRIu64 "-%02" PRIu64 " %02" PRIu64 ":%02" PRIu64 ":%02" PRIu64
             " UTC",
             year, month < 10 ? month + 3 : month - 9, day_of_year - (153 * month + 2) / 5 + 1,
             second / 3600, second / 60 % 60, second % 60);
    return text;
}

bool text_hex64_parse(const char *digits, size_t limit, uint64_t *ret_number)
{
    uint64_t number = 0;

    if (limit < TEXT_HEX64_DIGITS)
        return false;
    for (size_t i = 0; i < TEXT_HEX64_DIGITS; i++) {
        char digit = digits[i];

        if (digit >= '0' && digit <= '9')
            number = number << 4 | (uint64_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            number = number << 4 | (uint64_t)(digit - 'a' + 10);
        else
            return false;
    }
    *ret_number = number;
    return true;
}
