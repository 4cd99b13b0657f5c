/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a canonical text to json-c's tree. json-c's own parser (0.16) is not used: when
 * memory is out it says that all went well and leaves members out, and an option that got lost on
 * the way may be the one that said read-only.
 *
 * The text has been checked, so what is met here is what must come.
 */
#include "base/json_scan.h"

#include <errno.h>
#include <string.h>

struct build {
    const char *at; /* the next byte; the text ends with a NUL */
    struct err *err;
};

/* Builds one value. An error leaves *ret_value alone; NULL stands for null. */
static int build_value(struct build *build, struct json_object **ret_value);

static char unescape(const char **at)
{
    static const char names[] = "\"\\bfnrt", meanings[] = "\"\\\b\f\n\r\t";
    char name = *(*at)++;
    unsigned code = 0;

    if (name != 'u')
        return meanings[strchr(names, name) - names];
    for (int i = 0; i < 4; i++) {
        char digit = *(*at)++;

        code = code << 4 | (unsigned)(digit <= '9' ? digit - '0' : digit - 'a' + 10);
    }
    return (char)code;
}

/* The bytes of the string at `build->at`, terminated; NULL when memory is out. */
static char *build_text(struct build *build, size_t *ret_length)
{
    const char *at = build->at + 1, *end = at;
    size_t length = 0;
    char *text;

    while (*end != '"')
        end += *end == '\\' ? 2 : 1;
    text = malloc((size_t)(end - at) + 1);
    if (text == NULL)
        return NULL;
    while (at < end) {
        char byte = *at++;

        text[length++] = byte == '\\' ? unescape(&at) : byte;
    }
    text[length] = '\0';
    build->at = end + 1;
    *ret_length = length;
    return text;
}

static int built(struct build *build, struct json_object *value, struct json_object **ret_value)
{
    if (value == NULL)
        return err_no_memory(build->err);
    *ret_value = value;
    return 0;
}

static int build_string(struct build *build, struct json_object **ret_value)
{
    size_t length = 0;
    CLEANUP(free_ptr) char *text = build_text(build, &length);

    if (text == NULL)
        return err_no_memory(build->err);
    return built(build, json_object_new_string_len(text, (int)length), ret_value);
}

static int build_number(struct build *build, struct json_object **ret_value)
{
    size_t length = strspn(build->at, "+-.0123456789eE");
    const char *begin = build->at;
    char text[JSON_MAX_NUMBER_BYTES + 1];

    assert(length > 0);
    assert(length <= JSON_MAX_NUMBER_BYTES);
    memcpy(text, begin, length);
    text[length] = '\0';
    build->at += length;
    if (strcspn(text, ".eE") < length)
        return built(build, json_object_new_double_s(strtod(text, NULL), text), ret_value);
    if (text[0] == '-')
        return built(build, json_object_new_int64(strtoll(text, NULL, 10)), ret_value);
    if (strtoull(text, NULL, 10) <= INT64_MAX)
        return built(build, json_object_new_int64(strtoll(text, NULL, 10)), ret_value);
    return built(build, json_object_new_uint64(strtoull(text, NULL, 10)), ret_value);
}

static int build_item(struct build *build, struct json_object *array)
{
    struct json_object *item = NULL;
    int rc = build_value(build, &item);

    if (rc == 0 && json_object_array_add(array, item) < 0) {
        json_object_put(item);
        rc = err_no_memory(build->err);
    }
    return rc;
}

static int build_array(struct build *build, struct json_object **ret_value)
{
    CLEANUP(json_putp) struct json_object *array = json_object_new_array_ext(4);

    if (array == NULL)
        return err_no_memory(build->err);
    while (*build->at++ != ']') { /* the byte is '[' or ',' */
        if (*build->at != ']') {
            int rc = build_item(build, array);

            if (rc < 0)
                return rc;
        }
    }
    return built(build, TAKE_PTR(array), ret_value);
}

static int build_member(struct build *build, struct json_object *object)
{
    size_t length = 0;
    CLEANUP(free_ptr) char *key = build_text(build, &length);
    struct json_object *value = NULL;
    int rc;

    if (key == NULL)
        return err_no_memory(build->err);
    if (json_object_object_get_ex(object, key, NULL))
        return err_set(build->err, -EINVAL,
                       "not valid JSON: key '%.100s' occurs twice in one object", key);
    build->at++; /* ':' */
    rc = build_value(build, &value);
    if (rc == 0 &&
        json_object_object_add_ex(object, key, value, JSON_C_OBJECT_ADD_KEY_IS_NEW) < 0) {
        json_object_put(value);
        rc = err_no_memory(build->err);
    }
    return rc;
}

static int build_object(struct build *build, struct json_object **ret_value)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();

    if (object == NULL)
        return err_no_memory(build->err);
    while (*build->at++ != '}') { /* the byte is '{' or ',' */
        if (*build->at != '}') {
            int rc = build_member(build, object);

            if (rc < 0)
                return rc;
        }
    }
    return built(build, TAKE_PTR(object), ret_value);
}

/* The scanner has bounded the depth of the recursion. */
static int build_value(struct build *build, struct json_object **ret_value)
{
    switch (*build->at) {
    case '{':
        return build_object(build, ret_value);
    case '[':
        return build_array(build, ret_value);
    case '"':
        return build_string(build, ret_value);
    case 't':
        build->at += strlen("true");
        return built(build, json_object_new_boolean(true), ret_value);
    case 'f':
        build->at += strlen("false");
        return built(build, json_object_new_boolean(false), ret_value);
    case 'n':
        build->at += strlen("null");
        *ret_value = NULL;
        return 0;
    default:
        return build_number(build, ret_value);
    }
}

int json_build(const char *text, struct json_object **ret_value, struct err *err)
{
    struct build build = {.at = text, .err = err};
    struct json_object *value = NULL;
    int rc = build_value(&build, &value);

    if (rc < 0)
        return rc;
    assert(*build.at == '\0');
    *ret_value = value;
    return 0;
}
