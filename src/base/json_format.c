/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* JSON to text: all of it or nothing. json-c's own drops a piece for which memory is out, and goes on. */
#include "base/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct text {
    char *bytes;
    size_t length, capacity;
    enum json_style style;
    unsigned depth;
    bool failed; /* memory is out */
};

static void text_add(struct text *text, const char *bytes, size_t length)
{
    if (text->failed)
        return;
    if (text->capacity - text->length < length + 1) {
        size_t capacity = MAX(text->capacity * 2, text->length + length + 256);
        char *grown = realloc(text->bytes, capacity);

        if (grown == NULL) {
            text->failed = true;
            return;
        }
        text->bytes = grown;
        text->capacity = capacity;
    }
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    text->bytes[text->length] = '\0';
}

static void text_puts(struct text *text, const char *string)
{
    text_add(text, string, strlen(string));
}

/* Control bytes, quotes and backslashes are escaped, nothing else. */
static void text_string(struct text *text, const char *bytes, size_t length)
{
    static const char named[] = "\b\t\n\f\r\"\\", names[] = "btnfr\"\\";
    size_t plain = 0;

    text_puts(text, "\"");
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        const char *name = byte != '\0' ? strchr(named, byte) : NULL;
        char escape[8];

        if (byte >= ' ' && name == NULL)
            continue;
        text_add(text, bytes + plain, i - plain);
        plain = i + 1;
        if (name != NULL)
            snprintf(escape, sizeof(escape), "\\%c", names[name - named]);
        else
            snprintf(escape, sizeof(escape), "\\u%04x", byte);
        text_puts(text, escape);
    }
    text_add(text, bytes + plain, length - plain);
    text_puts(text, "\"");
}

static void text_integer(struct text *text, struct json_object *value)
{
    int64_t number = json_object_get_int64(value);
    char digits[24];

    if (number < 0)
        snprintf(digits, sizeof(digits), "%" PRId64, number);
    else
        snprintf(digits, sizeof(digits), "%" PRIu64, json_object_get_uint64(value));
    text_puts(text, digits);
}

/* Of the rest json-c knows how: short enough to be whole or not at all. */
static void text_leaf(struct text *text, struct json_object *value)
{
    if (json_object_is_type(value, json_type_string)) {
        text_string(text, json_object_get_string(value), (size_t)json_object_get_string_len(value));
    } else if (json_object_is_type(value, json_type_int)) {
        text_integer(text, value);
    } else {
        const char *leaf = json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN);

        if (leaf == NULL)
            text->failed = true;
        else
            text_puts(text, leaf);
    }
}

/* Before an item, or the bracket behind the last one. */
static void text_break(struct text *text, const char *separator)
{
    text_puts(text, separator);
    if (text->style == JSON_LINE) {
        text_puts(text, separator[0] != '\0' ? " " : "");
        return;
    }
    text_puts(text, "\n");
    for (unsigned i = 0; i < text->depth; i++)
        text_puts(text, "  ");
}

static void text_value(struct text *text, struct json_object *value);

static void text_array(struct text *text, struct json_object *value)
{
    size_t count = json_object_array_length(value);

    text_puts(text, "[");
    text->depth++;
    for (size_t i = 0; i < count; i++) {
        text_break(text, i > 0 ? "," : "");
        text_value(text, json_object_array_get_idx(value, i));
    }
    text->depth--;
    if (count > 0)
        text_break(text, "");
    text_puts(text, "]");
}

static void text_object(struct text *text, struct json_object *value)
{
    const char *separator = "";

    text_puts(text, "{");
    text->depth++;
    json_object_object_foreach(value, key, member)
    {
        text_break(text, separator);
        text_string(text, key, strlen(key));
        text_puts(text, ": ");
        text_value(text, member);
        separator = ",";
    }
    text->depth--;
    if (separator[0] != '\0')
        text_break(text, "");
    text_puts(text, "}");
}

static void text_value(struct text *text, struct json_object *value)
{
    if (json_object_is_type(value, json_type_array))
        text_array(text, value);
    else if (json_object_is_type(value, json_type_object))
        text_object(text, value);
    else
        text_leaf(text, value);
}

char *json_format(struct json_object *value, enum json_style style, size_t *ret_length_bytes)
{
    struct text text = {.style = style};

    text_value(&text, value);
    if (text.failed) {
        free(text.bytes);
        return NULL;
    }
    *ret_length_bytes = text.length;
    return text.bytes;
}
