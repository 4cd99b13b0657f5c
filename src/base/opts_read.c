/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From dotted keys to an object. */
#include "base/json.h"
#include "base/opts.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* What a person sees of a key that is too long to be one. */
#define SHOWN_BYTES 100

struct reading {
    const char *where;
    struct err *err;
    struct json_object *root;
    size_t keys;
};

static bool is_key_byte(char byte)
{
    return isalnum((unsigned char)byte) || byte == '-' || byte == '_';
}

static bool is_index(const char *key)
{
    return key[strspn(key, "0123456789")] == '\0';
}

static int refuse_key(const struct reading *reading, const char *key, size_t length,
                      const char *what)
{
    return err_set(reading->err, -EINVAL, "%s: option '%.*s' %s", reading->where,
                   (int)MIN(length, (size_t)SHOWN_BYTES), key, what);
}

/* The object called `name` in `object`, made when it is absent; NULL with err set. */
static struct json_object *enter(const struct reading *reading, struct json_object *object,
                                 const char *name, const char *path, size_t path_length)
{
    struct json_object *inner = NULL;

    if (json_object_object_get_ex(object, name, &inner)) {
        if (json_object_is_type(inner, json_type_object))
            return inner;
        refuse_key(reading, path, path_length, "is given both a value and members");
        return NULL;
    }
    inner = json_object_new_object();
    if (json_add(object, name, inner) < 0) {
        err_no_memory(reading->err);
        return NULL;
    }
    return inner;
}

static int put_value(const struct reading *reading, struct json_object *object, const char *name,
                     const char *path, size_t path_length, const char *value)
{
    struct json_object *present = NULL;

    if (json_object_object_get_ex(object, name, &present))
        return refuse_key(reading, path, path_length,
                          json_object_is_type(present, json_type_object)
                              ? "is given both a value and members"
                              : "is given twice");
    if (json_add_string(object, name, value) < 0)
        return err_no_memory(reading->err);
    return 0;
}

/* Files the value under its key "a.b.c". */
static int put_path(struct reading *reading, const char *key, size_t key_length, const char *value)
{
    struct json_object *object = reading->root;
    size_t begin = 0;

    if (++reading->keys > OPTS_MAX_KEYS)
        return err_set(reading->err, -E2BIG, "%s: more than %u options", reading->where,
                       OPTS_MAX_KEYS);
    for (size_t level = 1;; level++) {
        char name[OPTS_MAX_NAME_BYTES + 1];
        size_t end = begin;

        while (end < key_length && is_key_byte(key[end]))
            end++;
        if (end == begin || (end < key_length && key[end] != '.'))
            return refuse_key(reading, key, key_length,
                              "has a name other than letters, digits, '-' and '_' between dots");
        if (end - begin > OPTS_MAX_NAME_BYTES)
            return refuse_key(reading, key, key_length, "has too long a name");
        if (level > OPTS_MAX_LEVELS)
            return refuse_key(reading, key, key_length, "has too many levels");
        memcpy(name, key + begin, end - begin);
        name[end - begin] = '\0';
        if (end == key_length)
            return put_value(reading, object, name, key, key_length, value);
        object = enter(reading, object, name, key, end);
        if (object == NULL)
            return reading->err->code;
        begin = end + 1;
    }
}

/* Copies a value up to the comma that ends it, halving doubled ones. Returns the text behind it. */
static const char *read_value(const char *text, char *value)
{
    while (*text != '\0') {
        if (*text == ',') {
            if (text[1] != ',')
                break;
            text++;
        }
        *value++ = *text++;
    }
    *value = '\0';
    return text;
}

/* One "key=value", or the implied key's value; *text moves behind it and its comma. */
static int read_pair(struct reading *reading, const char **text, const char *implied_key,
                     char *value)
{
    const char *key = *text;
    size_t key_length = strcspn(key, "=,");
    int rc;

    if (key[key_length] == '=') {
        *text = read_value(key + key_length + 1, value);
    } else if (implied_key != NULL) {
        *text = read_value(key, value);
        key = implied_key;
        key_length = strlen(key);
    } else if (key_length == 0) {
        return err_set(reading->err, -EINVAL, "%s: an option is missing before or behind a ','",
                       reading->where);
    } else {
        return refuse_key(reading, key, key_length, "has no '=' and value behind it");
    }
    rc = put_path(reading, key, key_length, value);
    if (rc < 0 || **text == '\0')
        return rc;
    (*text)++;
    if (**text == '\0')
        return err_set(reading->err, -EINVAL, "%s: an option is missing behind the last ','",
                       reading->where);
    return 0;
}

/* A list in place of an object whose keys are 0..n-1; *ret_list stays NULL for other objects. */
static int make_list(const struct reading *reading, const char *name, struct json_object *object,
                     struct json_object **ret_list)
{
    size_t count = (size_t)json_object_object_length(object), indices = 0;
    CLEANUP(json_putp) struct json_object *list = NULL;

    json_object_object_foreach(object, key, unused)
    {
        (void)unused;
        indices += is_index(key);
    }
    if (indices == 0)
        return 0;
    if (indices < count)
        return refuse_key(reading, name, strlen(name), "has both numbered and named members");
    list = json_object_new_array_ext((int)count);
    if (list == NULL)
        return err_no_memory(reading->err);
    for (size_t i = 0; i < count; i++) {
        struct json_object *item = NULL;
        char index[24];

        snprintf(index, sizeof(index), "%zu", i);
        if (!json_object_object_get_ex(object, index, &item))
            return err_set(reading->err, -EINVAL,
                           "%s: option '%s' has %zu numbered members, but not number %zu",
                           reading->where, name, count, i);
        if (json_object_array_add(list, json_object_get(item)) < 0) {
            json_object_put(item);
            return err_no_memory(reading->err);
        }
    }
    *ret_list = TAKE_PTR(list);
    return 0;
}

/* Turns objects below `object` into lists where their keys say so, innermost first. */
static int make_lists(const struct reading *reading, struct json_object *object)
{
    json_object_object_foreach(object, key, member)
    {
        struct json_object *list = NULL;
        int rc;

        if (!json_object_is_type(member, json_type_object))
            continue;
        rc = make_lists(reading, member);
        if (rc == 0)
            rc = make_list(reading, key, member, &list);
        if (rc < 0)
            return rc;
        /* Replacing the value of a present key does not disturb the iteration. */
        if (list != NULL && json_add(object, key, list) < 0)
            return err_no_memory(reading->err);
    }
    return 0;
}

static int read_dotted(struct reading *reading, const char *text, const char *implied_key)
{
    CLEANUP(free_ptr) char *value = malloc(strlen(text) + 1);

    reading->root = json_object_new_object();
    if (value == NULL || reading->root == NULL)
        return err_no_memory(reading->err);
    while (*text != '\0') {
        int rc = read_pair(reading, &text, implied_key, value);

        if (rc < 0)
            return rc;
        implied_key = NULL;
    }
    return make_lists(reading, reading->root);
}

int opts_read(const char *text, const char *implied_key, const char *where,
              struct json_object **ret_object, enum opts_syntax *ret_syntax, struct err *err)
{
    struct reading reading = {.where = where, .err = err};
    size_t length = strnlen(text, OPTS_MAX_TEXT_BYTES + 1);
    int rc;

    if (length > OPTS_MAX_TEXT_BYTES)
        return err_set(err, -E2BIG, "%s: options are longer than %u bytes", where,
                       OPTS_MAX_TEXT_BYTES);
    if (text[0] == '{') {
        rc = json_parse(text, length, where, ret_object, err);
        if (rc == 0)
            *ret_syntax = OPTS_JSON;
        return rc;
    }
    rc = read_dotted(&reading, text, implied_key);
    if (rc < 0) {
        json_object_put(reading.root);
        return rc;
    }
    *ret_object = reading.root;
    *ret_syntax = OPTS_DOTTED;
    return 0;
}
