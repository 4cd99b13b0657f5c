/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/opts_value.h"

#include "base/json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void *field_of(const struct opt *opt, void *out)
{
    return (char *)out + opt->offset;
}

const struct opt *opt_find(const struct opt *table, const char *name)
{
    for (; table != NULL && table->name != NULL; table++) {
        if (strcmp(table->name, name) == 0)
            return table;
    }
    return NULL;
}

size_t opt_value_count(const struct opt *opt)
{
    size_t count = 0;

    while (opt->values[count] != NULL)
        count++;
    return count;
}

static int set_string(const struct opt *opt, const char *text, void *out)
{
    char *copy = strdup(text);

    if (copy == NULL)
        return -ENOMEM;
    *(char **)field_of(opt, out) = copy;
    return 0;
}

static int set_bool(const struct opt *opt, const char *text, void *out)
{
    static const char *const names[] = {"off", "on", "no", "yes", "false", "true"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *(bool *)field_of(opt, out) = i % 2 == 1;
            return 0;
        }
    }
    return -EINVAL;
}

static int set_number(const struct opt *opt, uint64_t number, void *out)
{
    if (number < opt->min || (opt->max != 0 && number > opt->max))
        return -EINVAL;
    *(uint64_t *)field_of(opt, out) = number;
    return 0;
}

static int set_uint_text(const struct opt *opt, const char *text, void *out)
{
    uint64_t number = 0;

    if (*text == '\0')
        return -EINVAL;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return -EINVAL;
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*text - '0'), &number))
            return -EINVAL;
    }
    return set_number(opt, number, out);
}

bool opt_has_value(const struct opt *opt, const char *text)
{
    for (const char *const *value = opt->values; *value != NULL; value++) {
        if (strcmp(text, *value) == 0)
            return true;
    }
    return false;
}

static int set_enum(const struct opt *opt, const char *text, void *out)
{
    for (int i = 0; opt->values[i] != NULL; i++) {
        if (strcmp(text, opt->values[i]) == 0) {
            *(int *)field_of(opt, out) = i;
            return 0;
        }
    }
    return -EINVAL;
}

int opt_set_text(const struct opt *opt, const char *text, void *out)
{
    uint64_t bytes;

    switch (opt->type) {
    case OPT_STRING:
        return set_string(opt, text, out);
    case OPT_BOOL:
        return set_bool(opt, text, out);
    case OPT_UINT:
        return set_uint_text(opt, text, out);
    case OPT_SIZE:
        return size_parse(text, &bytes) < 0 ? -EINVAL : set_number(opt, bytes, out);
    case OPT_ENUM:
        return set_enum(opt, text, out);
    default:
        return -EINVAL;
    }
}

static int set_number_json(const struct opt *opt, struct json_object *value, void *out)
{
    /* json-c clamps a negative number to 0 when asked for an unsigned one. */
    if (!json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0)
        return -EINVAL;
    return set_number(opt, json_object_get_uint64(value), out);
}

static int set_strings(const struct opt *opt, struct json_object *array, void *out)
{
    struct opt_strings *strings = field_of(opt, out);
    size_t count = json_object_array_length(array);

    strings->items = calloc(count + 1, sizeof(*strings->items));
    if (strings->items == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        struct json_object *item = json_object_array_get_idx(array, i);

        if (!json_object_is_type(item, json_type_string))
            return -EINVAL;
        if (opt->values != NULL && !opt_has_value(opt, json_object_get_string(item)))
            return -EINVAL;
        strings->items[i] = strdup(json_object_get_string(item));
        if (strings->items[i] == NULL)
            return -ENOMEM;
        strings->count++;
    }
    return 0;
}

static bool is_child(struct json_object *value)
{
    return json_object_is_type(value, json_type_string) ||
           json_object_is_type(value, json_type_object);
}

static bool are_children(struct json_object *value)
{
    if (!json_object_is_type(value, json_type_array))
        return false;
    for (size_t i = 0; i < json_object_array_length(value); i++) {
        if (!is_child(json_object_array_get_idx(value, i)))
            return false;
    }
    return true;
}

static int set_reference(const struct opt *opt, struct json_object *value, void *out)
{
    *(struct json_object **)field_of(opt, out) = json_object_get(value);
    return 0;
}

int opt_set(const struct opt *opt, struct json_object *value, enum opts_syntax syntax, void *out)
{
    bool is_string = json_object_is_type(value, json_type_string);
    bool dotted = syntax == OPTS_DOTTED;

    switch (opt->type) {
    case OPT_STRING:
    case OPT_ENUM:
        return is_string ? opt_set_text(opt, json_object_get_string(value), out) : -EINVAL;
    case OPT_BOOL:
        if (dotted)
            return is_string ? opt_set_text(opt, json_object_get_string(value), out) : -EINVAL;
        if (!json_object_is_type(value, json_type_boolean))
            return -EINVAL;
        *(bool *)field_of(opt, out) = json_object_get_boolean(value);
        return 0;
    case OPT_UINT:
    case OPT_SIZE:
        if (is_string && (dotted || opt->type == OPT_SIZE))
            return opt_set_text(opt, json_object_get_string(value), out);
        return dotted ? -EINVAL : set_number_json(opt, value, out);
    case OPT_STRINGS:
        if (!json_object_is_type(value, json_type_array))
            return -EINVAL;
        return set_strings(opt, value, out);
    case OPT_CHILD:
        return is_child(value) ? set_reference(opt, value, out) : -EINVAL;
    case OPT_CHILDREN:
    case OPT_REFS:
        return are_children(value) ? set_reference(opt, value, out) : -EINVAL;
    case OPT_ANY:
        return set_reference(opt, value, out);
    case OPT_OBJECT:
    case OPT_UNION:
    case OPT_OBJECTS:
        break;
    }
    assert(!"a single value");
    return -EINVAL;
}

static void clear_string(const struct opt *opt, char **text)
{
    if (*text != NULL && opt->secret)
        explicit_bzero(*text, strlen(*text));
    free(*text);
    *text = NULL;
}

static void clear_strings(const struct opt *opt, struct opt_strings *strings)
{
    for (size_t i = 0; i < strings->count; i++)
        clear_string(opt, &strings->items[i]);
    free(strings->items);
    *strings = (struct opt_strings){NULL, 0};
}

void opt_clear(const struct opt *opt, void *out)
{
    void *field = field_of(opt, out);

    switch (opt->type) {
    case OPT_STRING:
        clear_string(opt, field);
        break;
    case OPT_BOOL:
        *(bool *)field = false;
        break;
    case OPT_UINT:
    case OPT_SIZE:
        *(uint64_t *)field = 0;
        break;
    case OPT_ENUM:
        *(int *)field = 0;
        break;
    case OPT_STRINGS:
        clear_strings(opt, field);
        break;
    case OPT_CHILD:
    case OPT_CHILDREN:
    case OPT_REFS:
    case OPT_ANY:
        json_putp(field);
        break;
    case OPT_OBJECT:
    case OPT_UNION:
    case OPT_OBJECTS:
        break;
    }
    if (opt->present != 0)
        *((bool *)out + opt->present - 1) = false;
}

/* Appends to a text that may be full already. */
static void append(char *text, size_t size, const char *fmt, ...) PRINTF_LIKE(3, 4);

static void append(char *text, size_t size, const char *fmt, ...)
{
    size_t used = strlen(text);
    va_list args;

    va_start(args, fmt);
    vsnprintf(text + used, size - used, fmt, args);
    va_end(args);
}

const char *opt_join_values(const struct opt *opt, const char *separator, char *text, size_t size)
{
    text[0] = '\0';
    for (size_t i = 0; opt->values[i] != NULL; i++)
        append(text, size, "%s%s", i > 0 ? separator : "", opt->values[i]);
    return text;
}

static void expect_range(const struct opt *opt, char *text, size_t size)
{
    char min[32], max[32];

    if (opt->type == OPT_SIZE) {
        size_format(opt->min, min, sizeof(min));
        size_format(opt->max, max, sizeof(max));
    } else {
        snprintf(min, sizeof(min), "%" PRIu64, opt->min);
        snprintf(max, sizeof(max), "%" PRIu64, opt->max);
    }
    if (opt->max != 0)
        append(text, size, " from %s to %s", min, max);
    else if (opt->min != 0)
        append(text, size, " of at least %s", min);
}

static void expect_enum(const struct opt *opt, char *text, size_t size)
{
    size_t count = opt_value_count(opt);

    text[0] = '\0';
    for (size_t i = 0; i < count; i++)
        append(text, size, "%s'%s'", i == 0 ? "" : i == count - 1 ? " or " : ", ", opt->values[i]);
}

const char *opt_expected(const struct opt *opt, enum opts_syntax syntax, char *text, size_t size)
{
    static const char *const plain[] = {
        [OPT_STRING] = "a string",
        [OPT_UINT] = "a whole number",
        [OPT_SIZE] = "a size (such as 4096, 64k or 1.5G)",
        [OPT_OBJECT] = "an object",
        [OPT_UNION] = "an object",
        [OPT_STRINGS] = "a list of strings",
        [OPT_OBJECTS] = "a list of objects",
        [OPT_CHILD] = "a node's name or an object",
        [OPT_CHILDREN] = "a list of nodes' names or objects",
        [OPT_REFS] = "a list of names or objects",
        [OPT_ANY] = "anything",
    };

    if (opt->type == OPT_ENUM) {
        expect_enum(opt, text, size);
        return text;
    }
    if (opt->type == OPT_STRINGS && opt->values != NULL) {
        char values[160];

        expect_enum(opt, values, sizeof(values));
        snprintf(text, size, "a list of %s", values);
        return text;
    }
    if (opt->type == OPT_BOOL) {
        snprintf(text, size, "%s", syntax == OPTS_DOTTED ? "'on' or 'off'" : "true or false");
        return text;
    }
    snprintf(text, size, "%s", plain[opt->type]);
    if (opt->type == OPT_UINT || opt->type == OPT_SIZE)
        expect_range(opt, text, size);
    return text;
}
