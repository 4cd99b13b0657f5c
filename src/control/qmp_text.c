/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* JSON to text, in the spacing that QMP's clients know. */
#include "control/qmp_dispatch.h"

#include <string.h>

struct text {
    char *bytes;
    size_t length, capacity;
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

/* Numbers, strings, true, false, null: json-c knows how. */
static void text_leaf(struct text *text, struct json_object *value)
{
    const char *leaf = json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                                 JSON_C_TO_STRING_NOSLASHESCAPE);

    if (leaf == NULL)
        text->failed = true;
    else
        text_puts(text, leaf);
}

static void text_key(struct text *text, const char *key)
{
    struct json_object *name = json_object_new_string(key);

    if (name == NULL)
        text->failed = true;
    else
        text_leaf(text, name);
    json_object_put(name);
}

static void text_value(struct text *text, struct json_object *value)
{
    const char *between = "";

    if (json_object_is_type(value, json_type_array)) {
        text_puts(text, "[");
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            text_puts(text, between);
            text_value(text, json_object_array_get_idx(value, i));
            between = ", ";
        }
        text_puts(text, "]");
    } else if (json_object_is_type(value, json_type_object)) {
        text_puts(text, "{");
        json_object_object_foreach(value, key, member)
        {
            text_puts(text, between);
            text_key(text, key);
            text_puts(text, ": ");
            text_value(text, member);
            between = ", ";
        }
        text_puts(text, "}");
    } else {
        text_leaf(text, value);
    }
}

char *qmp_text(struct json_object *value, size_t *ret_length_bytes)
{
    struct text text = {0};

    text_value(&text, value);
    if (text.failed) {
        free(text.bytes);
        return NULL;
    }
    *ret_length_bytes = text.length;
    return text.bytes;
}
