/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Strings in the scanner: quotes, escapes, surrogate pairs and UTF-8. */
#include "base/json_scan.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

void json_string_begin(struct json_scan *scan, char quote, bool is_key)
{
    scan->string = (struct json_string){.quote = quote, .is_key = is_key};
}

static bool is_high_surrogate(unsigned unit)
{
    return unit >= 0xD800 && unit <= 0xDBFF;
}

static bool is_low_surrogate(unsigned unit)
{
    return unit >= 0xDC00 && unit <= 0xDFFF;
}

/* Characters below 0x80 have one spelling in the canonical text; json-c knows all of them. */
static int put_ascii(struct json_scan *scan, char byte, struct err *err)
{
    static const char special[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    const char *found = byte != '\0' ? strchr(special, byte) : NULL;
    char text[8];

    if (found == NULL && (unsigned char)byte >= 0x20)
        return json_scan_put(scan, &byte, 1, err);
    if (found != NULL)
        snprintf(text, sizeof(text), "\\%c", names[found - special]);
    else
        snprintf(text, sizeof(text), "\\u%04x", byte);
    return json_scan_put(scan, text, strlen(text), err);
}

static int put_code(struct json_scan *scan, unsigned code, struct err *err)
{
    char text[4];

    if (code == 0)
        return json_scan_refuse(scan, err, "\\u0000 is not allowed in a string");
    if (code < 0x80)
        return put_ascii(scan, (char)code, err);
    if (code < 0x800) {
        text[0] = (char)(0xC0 | code >> 6);
        text[1] = (char)(0x80 | (code & 0x3F));
        return json_scan_put(scan, text, 2, err);
    }
    if (code < 0x10000) {
        text[0] = (char)(0xE0 | code >> 12);
        text[1] = (char)(0x80 | (code >> 6 & 0x3F));
        text[2] = (char)(0x80 | (code & 0x3F));
        return json_scan_put(scan, text, 3, err);
    }
    text[0] = (char)(0xF0 | code >> 18);
    text[1] = (char)(0x80 | (code >> 12 & 0x3F));
    text[2] = (char)(0x80 | (code >> 6 & 0x3F));
    text[3] = (char)(0x80 | (code & 0x3F));
    return json_scan_put(scan, text, 4, err);
}

static int lone_surrogate(struct json_scan *scan, unsigned unit, struct err *err)
{
    return json_scan_refuse(scan, err, "\\u%04x is half a surrogate pair", unit);
}

/* The fourth digit of \uXXXX has come. */
static int unit_complete(struct json_scan *scan, struct err *err)
{
    struct json_string *string = &scan->string;
    unsigned unit = string->unit, high = string->high;

    if (high != 0) {
        if (!is_low_surrogate(unit))
            return lone_surrogate(scan, high, err);
        string->high = 0;
        return put_code(scan, 0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00), err);
    }
    if (is_low_surrogate(unit))
        return lone_surrogate(scan, unit, err);
    if (is_high_surrogate(unit)) {
        string->high = unit;
        return 0;
    }
    return put_code(scan, unit, err);
}

static int hex_byte(struct json_scan *scan, char byte, struct err *err)
{
    struct json_string *string = &scan->string;
    unsigned digit;
    char name[8];

    if (byte >= '0' && byte <= '9')
        digit = (unsigned)(byte - '0');
    else if (byte >= 'a' && byte <= 'f')
        digit = (unsigned)(byte - 'a') + 10;
    else if (byte >= 'A' && byte <= 'F')
        digit = (unsigned)(byte - 'A') + 10;
    else
        return json_scan_refuse(scan, err, "\\u needs four hexadecimal digits, not %s",
                                json_byte_name(byte, name));
    string->unit = string->unit << 4 | digit;
    return --string->hex_left == 0 ? unit_complete(scan, err) : 0;
}

/* The byte behind a backslash. */
static int escape_byte(struct json_scan *scan, char byte, struct err *err)
{
    static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t'";
    struct json_string *string = &scan->string;
    const char *found = byte != '\0' ? strchr(names, byte) : NULL;
    char name[8];

    /* On failure `escape` stays: who skips the rest knows that the byte does not end the string. */
    if (byte == 'u') {
        string->escape = false;
        string->hex_left = 4;
        string->unit = 0;
        return 0;
    }
    if (string->high != 0)
        return lone_surrogate(scan, string->high, err);
    if (byte == '\'' && string->quote == '\'')
        found = &names[strlen(names)];
    if (found != NULL) {
        string->escape = false;
        return put_ascii(scan, meanings[found - names], err);
    }
    return json_scan_refuse(scan, err, "no escape in a string begins with \\ and %s",
                            json_byte_name(byte, name));
}

/* The first byte of a character beyond ASCII. */
static int utf8_begin(struct json_scan *scan, char byte, struct err *err)
{
    unsigned char first = (unsigned char)byte;

    if (first < 0xC2 || first > 0xF4)
        return json_scan_refuse(scan, err, "a string holds a byte that is not UTF-8 (0x%02x)",
                                first);
    scan->string.utf8_need = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    scan->string.utf8_have = 1;
    scan->string.utf8[0] = byte;
    return 0;
}

static int utf8_byte(struct json_scan *scan, char byte, struct err *err)
{
    struct json_string *string = &scan->string;

    if (((unsigned char)byte & 0xC0) != 0x80)
        return json_scan_refuse(scan, err, "a string holds a cut-off UTF-8 character");
    string->utf8[string->utf8_have++] = byte;
    if (string->utf8_have < string->utf8_need)
        return 0;
    string->utf8_have = 0;
    if (text_utf8_length(string->utf8, string->utf8_need) != string->utf8_need)
        return json_scan_refuse(scan, err, "a string holds an invalid UTF-8 character");
    return json_scan_put(scan, string->utf8, string->utf8_need, err);
}

int json_string_byte(struct json_scan *scan, char byte, struct err *err)
{
    struct json_string *string = &scan->string;
    int rc;

    if (string->escape)
        return escape_byte(scan, byte, err);
    if (string->hex_left > 0)
        return hex_byte(scan, byte, err);
    if (string->utf8_have > 0)
        return utf8_byte(scan, byte, err);
    if (byte == '\\') {
        string->escape = true;
        return 0;
    }
    if (string->high != 0)
        return lone_surrogate(scan, string->high, err);
    if (byte == string->quote) {
        rc = json_scan_put(scan, "\"", 1, err);
        return rc < 0 ? rc : 1;
    }
    if (byte == '\n')
        return json_scan_refuse(scan, err, "a string is not closed at the end of its line");
    if ((unsigned char)byte < 0x20)
        return json_scan_refuse(scan, err, "a string holds a raw control byte (0x%02x)", byte);
    if ((unsigned char)byte >= 0x80)
        return utf8_begin(scan, byte, err);
    return put_ascii(scan, byte, err);
}
