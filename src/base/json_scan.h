/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Internal to base/json*.c: the scanner that decides where a JSON value ends and whether it is
 * well-formed, byte by byte, and writes down a canonical text of it: no white space, double quotes,
 * one spelling per string. So the tree can be built from it by code that need not check anything.
 */
#ifndef BLOCKSTEP_BASE_JSON_SCAN_H
#define BLOCKSTEP_BASE_JSON_SCAN_H

#include "base/json.h"

/* No number that means something is longer. */
#define JSON_MAX_NUMBER_BYTES 64u

enum json_state {
    JSON_START,      /* before a value */
    JSON_VALUE,      /* a value must come */
    JSON_FIRST_ITEM, /* behind '[': a value or ']' */
    JSON_FIRST_KEY,  /* behind '{': a key or '}' */
    JSON_KEY,        /* behind ',' in an object */
    JSON_COLON,      /* behind a key */
    JSON_AFTER_ITEM, /* behind a value in a container */
    JSON_STRING,
    JSON_NUMBER,
    JSON_WORD,
};

/* In which part of a number the scanner is. */
enum json_number {
    JSON_NUMBER_SIGN,      /* behind '-' */
    JSON_NUMBER_ZERO,      /* behind a first 0 */
    JSON_NUMBER_INTEGER,   /* in the digits of the integer part */
    JSON_NUMBER_POINT,     /* behind '.' */
    JSON_NUMBER_FRACTION,  /* in the digits behind it */
    JSON_NUMBER_EXPONENT,  /* behind 'e' */
    JSON_NUMBER_EXP_SIGN,  /* behind its sign */
    JSON_NUMBER_EXP_DIGIT, /* in its digits */
};

struct json_string {
    bool is_key;
    char quote;
    bool escape;       /* behind a backslash */
    unsigned hex_left; /* digits to come of \uXXXX */
    unsigned unit;     /* what they gave so far */
    unsigned high;     /* a first surrogate that waits for its second, or 0 */
    char utf8[4];      /* a character of several bytes, until it is complete */
    unsigned utf8_have, utf8_need;
};

struct json_scan {
    enum json_state state;
    enum json_number number;
    struct json_string string;
    const char *word; /* what must follow of true, false, null */
    bool is_object[JSON_MAX_DEPTH];
    unsigned depth;
    size_t raw_bytes; /* of the value so far, as it came */
    size_t values;
    size_t number_start; /* offset in `text` */
    char *text;          /* the canonical text; not terminated */
    size_t text_bytes, text_capacity;
};

enum json_step {
    JSON_MORE,
    JSON_DONE,        /* the value ends with this byte */
    JSON_DONE_BEFORE, /* the value ended before this byte, which has not been taken */
};

/* Takes one byte; returns a json_step or a negative errno with `err` set. */
int json_scan_byte(struct json_scan *scan, char byte, struct err *err);
/* Back to JSON_START; a large text is freed. */
void json_scan_reset(struct json_scan *scan);
void json_scan_release(struct json_scan *scan);

/* Helpers of the scanner's two files. */
int json_scan_put(struct json_scan *scan, const char *bytes, size_t length, struct err *err);
int json_scan_refuse(struct json_scan *scan, struct err *err, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
bool json_is_space(char byte);
/* How to show a byte in an error; `text` has 8 bytes. */
const char *json_byte_name(char byte, char *text);

void json_string_begin(struct json_scan *scan, char quote, bool is_key);
/* 1: the string is complete, 0: more, or a negative errno. */
int json_string_byte(struct json_scan *scan, char byte, struct err *err);

/* The tree of a complete, terminated canonical text. Refuses an object in which a key occurs twice;
 * errors are -EINVAL for that, and -ENOMEM. */
int json_build(const char *text, struct json_object **ret_value, struct err *err);

#endif
