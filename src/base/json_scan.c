/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/json_scan.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TEXT_FIRST_BYTES 256u
/* An idle reader keeps no more than this. */
#define TEXT_IDLE_BYTES  (16u * 1024)

bool json_is_space(char byte)
{
    return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

static bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

/* What may stand behind a number or a word. */
static bool is_delimiter(char byte)
{
    return json_is_space(byte) || (byte != '\0' && strchr(",:[]{}\"'", byte) != NULL);
}

const char *json_byte_name(char byte, char *text)
{
    unsigned char value = (unsigned char)byte;

    if (value > 0x20 && value < 0x7F)
        snprintf(text, 8, "'%c'", byte);
    else if (value == ' ')
        strcpy(text, "a space");
    else
        snprintf(text, 8, "0x%02x", value);
    return text;
}

int json_scan_refuse(struct json_scan *scan, struct err *err, const char *fmt, ...)
{
    char what[128];
    va_list args;

    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    return err_set(err, -EINVAL, "not valid JSON at byte %zu: %s", scan->raw_bytes, what);
}

static int refuse_byte(struct json_scan *scan, struct err *err, const char *expected, char byte)
{
    char name[8];

    return json_scan_refuse(scan, err, "%s was expected, not %s", expected,
                            json_byte_name(byte, name));
}

static int text_grow(struct json_scan *scan, size_t needed_bytes, struct err *err)
{
    size_t capacity = MAX(scan->text_capacity, (size_t)TEXT_FIRST_BYTES);
    char *text;

    /* One for the terminator. */
    if (needed_bytes > JSON_MAX_BYTES + 1)
        return err_set(err, -E2BIG, "JSON value is longer than %u bytes", JSON_MAX_BYTES);
    while (capacity < needed_bytes)
        capacity *= 2;
    capacity = MIN(capacity, (size_t)JSON_MAX_BYTES + 1);
    text = realloc(scan->text, capacity);
    if (text == NULL)
        return err_no_memory(err);
    scan->text = text;
    scan->text_capacity = capacity;
    return 0;
}

int json_scan_put(struct json_scan *scan, const char *bytes, size_t length, struct err *err)
{
    if (scan->text_bytes + length > scan->text_capacity) {
        int rc = text_grow(scan, scan->text_bytes + length, err);

        if (rc < 0)
            return rc;
    }
    memcpy(scan->text + scan->text_bytes, bytes, length);
    scan->text_bytes += length;
    return 0;
}

void json_scan_release(struct json_scan *scan)
{
    free(scan->text);
    *scan = (struct json_scan){.state = JSON_START};
}

void json_scan_reset(struct json_scan *scan)
{
    if (scan->text_capacity > TEXT_IDLE_BYTES) {
        json_scan_release(scan);
        return;
    }
    scan->state = JSON_START;
    scan->depth = 0;
    scan->raw_bytes = 0;
    scan->values = 0;
    scan->text_bytes = 0;
}

/* A value inside a container or at the top has ended. */
static int value_end(struct json_scan *scan)
{
    if (scan->depth == 0)
        return JSON_DONE;
    scan->state = JSON_AFTER_ITEM;
    return JSON_MORE;
}

static int container_open(struct json_scan *scan, bool is_object, struct err *err)
{
    int rc;

    if (scan->depth == JSON_MAX_DEPTH)
        return err_set(err, -E2BIG, "JSON value is nested deeper than %u levels", JSON_MAX_DEPTH);
    rc = json_scan_put(scan, is_object ? "{" : "[", 1, err);
    if (rc < 0)
        return rc;
    scan->is_object[scan->depth++] = is_object;
    scan->state = is_object ? JSON_FIRST_KEY : JSON_FIRST_ITEM;
    return JSON_MORE;
}

static int container_close(struct json_scan *scan, bool is_object, struct err *err)
{
    int rc = json_scan_put(scan, is_object ? "}" : "]", 1, err);

    if (rc < 0)
        return rc;
    scan->depth--;
    return value_end(scan);
}

static int string_open(struct json_scan *scan, char quote, bool is_key, struct err *err)
{
    int rc = json_scan_put(scan, "\"", 1, err);

    if (rc < 0)
        return rc;
    scan->state = JSON_STRING;
    json_string_begin(scan, quote, is_key);
    return JSON_MORE;
}

static int number_open(struct json_scan *scan, char byte, struct err *err)
{
    scan->state = JSON_NUMBER;
    scan->number = byte == '-'   ? JSON_NUMBER_SIGN
                   : byte == '0' ? JSON_NUMBER_ZERO
                                 : JSON_NUMBER_INTEGER;
    scan->number_start = scan->text_bytes;
    return json_scan_put(scan, &byte, 1, err);
}

static int word_open(struct json_scan *scan, char byte, struct err *err)
{
    static const char *const words[] = {"true", "false", "null"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (words[i][0] == byte) {
            scan->state = JSON_WORD;
            scan->word = words[i] + 1;
            return json_scan_put(scan, words[i], strlen(words[i]), err);
        }
    }
    return refuse_byte(scan, err, "a value", byte);
}

static int value_open(struct json_scan *scan, char byte, struct err *err)
{
    if (++scan->values > JSON_MAX_VALUES)
        return err_set(err, -E2BIG, "JSON value has more than %u parts", JSON_MAX_VALUES);
    if (byte == '{' || byte == '[')
        return container_open(scan, byte == '{', err);
    if (byte == '"' || byte == '\'')
        return string_open(scan, byte, false, err);
    if (byte == '-' || is_digit(byte))
        return number_open(scan, byte, err);
    return word_open(scan, byte, err);
}

/* Where the number goes with this byte, or -1 when it cannot go on with it. */
static int number_next(enum json_number number, char byte)
{
    bool digit = is_digit(byte), exponent = byte == 'e' || byte == 'E';

    switch (number) {
    case JSON_NUMBER_SIGN:
        return !digit ? -1 : byte == '0' ? JSON_NUMBER_ZERO : JSON_NUMBER_INTEGER;
    case JSON_NUMBER_ZERO:
        return byte == '.' ? JSON_NUMBER_POINT : exponent ? JSON_NUMBER_EXPONENT : -1;
    case JSON_NUMBER_INTEGER:
        if (digit)
            return JSON_NUMBER_INTEGER;
        return byte == '.' ? JSON_NUMBER_POINT : exponent ? JSON_NUMBER_EXPONENT : -1;
    case JSON_NUMBER_POINT:
        return digit ? JSON_NUMBER_FRACTION : -1;
    case JSON_NUMBER_FRACTION:
        return digit ? JSON_NUMBER_FRACTION : exponent ? JSON_NUMBER_EXPONENT : -1;
    case JSON_NUMBER_EXPONENT:
        if (byte == '+' || byte == '-')
            return JSON_NUMBER_EXP_SIGN;
        return digit ? JSON_NUMBER_EXP_DIGIT : -1;
    case JSON_NUMBER_EXP_SIGN:
    case JSON_NUMBER_EXP_DIGIT:
        return digit ? JSON_NUMBER_EXP_DIGIT : -1;
    }
    return -1;
}

static bool number_may_end(enum json_number number)
{
    return number == JSON_NUMBER_ZERO || number == JSON_NUMBER_INTEGER ||
           number == JSON_NUMBER_FRACTION || number == JSON_NUMBER_EXP_DIGIT;
}

/* The number is well-formed; does it fit into what it will be kept in? */
static int number_check(struct json_scan *scan, struct err *err)
{
    size_t length = scan->text_bytes - scan->number_start;
    char text[JSON_MAX_NUMBER_BYTES + 1];

    memcpy(text, scan->text + scan->number_start, length);
    text[length] = '\0';
    errno = 0;
    if (scan->number == JSON_NUMBER_FRACTION || scan->number == JSON_NUMBER_EXP_DIGIT) {
        if (isfinite(strtod(text, NULL)))
            return 0;
    } else {
        if (text[0] == '-')
            (void)strtoll(text, NULL, 10);
        else
            (void)strtoull(text, NULL, 10);
        if (errno == 0)
            return 0;
    }
    return json_scan_refuse(scan, err, "the number %s is out of range", text);
}

static int after_item(struct json_scan *scan, char byte, struct err *err);

/* A number or a word has ended before `byte`. */
static int scalar_end(struct json_scan *scan, char byte, struct err *err)
{
    if (scan->depth == 0)
        return JSON_DONE_BEFORE;
    scan->state = JSON_AFTER_ITEM;
    return json_is_space(byte) ? JSON_MORE : after_item(scan, byte, err);
}

static int number_byte(struct json_scan *scan, char byte, struct err *err)
{
    int rc, next = number_next(scan->number, byte);

    if (next >= 0) {
        scan->number = (enum json_number)next;
        if (scan->text_bytes - scan->number_start == JSON_MAX_NUMBER_BYTES)
            return json_scan_refuse(scan, err, "a number is longer than %u bytes",
                                    JSON_MAX_NUMBER_BYTES);
        return json_scan_put(scan, &byte, 1, err);
    }
    if (scan->number == JSON_NUMBER_ZERO && is_digit(byte))
        return json_scan_refuse(scan, err, "a number begins with a superfluous 0");
    if (!number_may_end(scan->number))
        return refuse_byte(scan, err, "a digit", byte);
    if (!is_delimiter(byte))
        return refuse_byte(scan, err, "the end of the number", byte);
    rc = number_check(scan, err);
    return rc < 0 ? rc : scalar_end(scan, byte, err);
}

static int word_byte(struct json_scan *scan, char byte, struct err *err)
{
    if (*scan->word != '\0' && byte == *scan->word) {
        scan->word++;
        return JSON_MORE;
    }
    if (*scan->word != '\0' || !is_delimiter(byte))
        return json_scan_refuse(scan, err, "a word other than true, false and null");
    return scalar_end(scan, byte, err);
}

static int string_byte(struct json_scan *scan, char byte, struct err *err)
{
    int rc = json_string_byte(scan, byte, err);

    if (rc <= 0)
        return rc;
    if (scan->string.is_key) {
        scan->state = JSON_COLON;
        return JSON_MORE;
    }
    return value_end(scan);
}

static int after_item(struct json_scan *scan, char byte, struct err *err)
{
    bool is_object = scan->is_object[scan->depth - 1];

    if (byte == ',') {
        scan->state = is_object ? JSON_KEY : JSON_VALUE;
        return json_scan_put(scan, ",", 1, err);
    }
    if (byte != (is_object ? '}' : ']'))
        return refuse_byte(scan, err, is_object ? "',' or '}'" : "',' or ']'", byte);
    return container_close(scan, is_object, err);
}

static int key_open(struct json_scan *scan, char byte, struct err *err)
{
    if (byte == '"' || byte == '\'')
        return string_open(scan, byte, true, err);
    if (scan->state == JSON_FIRST_KEY && byte == '}')
        return container_close(scan, true, err);
    return refuse_byte(scan, err, "a key in quotes", byte);
}

/* A byte outside strings, numbers and words that is not white space. */
static int structure_byte(struct json_scan *scan, char byte, struct err *err)
{
    switch (scan->state) {
    case JSON_FIRST_ITEM:
        if (byte == ']')
            return container_close(scan, false, err);
        return value_open(scan, byte, err);
    case JSON_FIRST_KEY:
    case JSON_KEY:
        return key_open(scan, byte, err);
    case JSON_COLON:
        if (byte != ':')
            return refuse_byte(scan, err, "':'", byte);
        scan->state = JSON_VALUE;
        return json_scan_put(scan, ":", 1, err);
    case JSON_AFTER_ITEM:
        return after_item(scan, byte, err);
    default:
        return value_open(scan, byte, err);
    }
}

int json_scan_byte(struct json_scan *scan, char byte, struct err *err)
{
    if (scan->raw_bytes == JSON_MAX_BYTES)
        return text_grow(scan, JSON_MAX_BYTES + 2, err);
    if (scan->state == JSON_START && json_is_space(byte))
        return JSON_MORE;
    scan->raw_bytes++;
    if (scan->state == JSON_STRING)
        return string_byte(scan, byte, err);
    if (scan->state == JSON_NUMBER)
        return number_byte(scan, byte, err);
    if (scan->state == JSON_WORD)
        return word_byte(scan, byte, err);
    return json_is_space(byte) ? JSON_MORE : structure_byte(scan, byte, err);
}
