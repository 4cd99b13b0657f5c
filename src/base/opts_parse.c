/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From an object to a struct, by a table. */
#include "base/json.h"
#include "base/opts_value.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define PATH_BYTES 192

/* What stays the same on the way through a table, and the path of where we are. */
struct walk {
    enum opts_syntax syntax;
    const char *where;
    void *out;
    struct err *err;
    char path[PATH_BYTES]; /* "" at the top, else "server." */
};

static int parse_table(struct walk *walk, const struct opt *table, struct json_object *object);

static int refuse_missing(const struct walk *walk, const struct opt *opt)
{
    char values[256];

    if (opt->type == OPT_ENUM)
        return err_set(walk->err, -EINVAL, "%s: required option '%s%s' is missing (one of: %s)",
                       walk->where, walk->path, opt->name,
                       opt_join_values(opt, ", ", values, sizeof(values)));
    return err_set(walk->err, -EINVAL, "%s: required option '%s%s' is missing (%s)", walk->where,
                   walk->path, opt->name,
                   opt->help != NULL ? opt->help
                                     : opt_expected(opt, walk->syntax, values, sizeof(values)));
}

/* How to show a value that is wrong. */
static const char *describe(struct json_object *value, char *text, size_t size)
{
    switch (json_object_get_type(value)) {
    case json_type_string:
        snprintf(text, size, "'%.60s'", json_object_get_string(value));
        return text;
    case json_type_object:
        return "an object";
    case json_type_array:
        return "a list";
    default:
        snprintf(text, size, "%.70s", json_object_to_json_string(value));
        return text;
    }
}

static int refuse_value(const struct walk *walk, const struct opt *opt, struct json_object *value)
{
    char expected[256], text[80];

    opt_expected(opt, walk->syntax, expected, sizeof(expected));
    if (opt->secret)
        return err_set(walk->err, -EINVAL, "%s: option '%s%s' must be %s", walk->where, walk->path,
                       opt->name, expected);
    return err_set(walk->err, -EINVAL, "%s: option '%s%s' must be %s, not %s", walk->where,
                   walk->path, opt->name, expected, describe(value, text, sizeof(text)));
}

static bool is_ignored(const char *const *ignore, const char *key)
{
    for (; ignore != NULL && *ignore != NULL; ignore++) {
        if (strcmp(*ignore, key) == 0)
            return true;
    }
    return false;
}

/* Puts the names of a table behind `text`: ", a, b". */
static void list_names(const struct opt *table, char *text, size_t size)
{
    for (; table != NULL && table->name != NULL; table++) {
        size_t used = strlen(text);

        snprintf(text + used, size - used, "%s%s", used > 0 ? ", " : "", table->name);
    }
}

static int refuse_unknown(const struct walk *walk, const struct opt *table,
                          const struct opt *variant, const char *const *ignore, const char *key)
{
    struct opt_nearest nearest = {NULL, UINT_MAX};
    char names[256] = "";

    for (const struct opt *opt = table; opt != NULL && opt->name != NULL; opt++)
        opt_nearest_offer(&nearest, key, opt->name);
    for (const struct opt *opt = variant; opt != NULL && opt->name != NULL; opt++)
        opt_nearest_offer(&nearest, key, opt->name);
    for (; ignore != NULL && *ignore != NULL; ignore++)
        opt_nearest_offer(&nearest, key, *ignore);
    if (nearest.name != NULL)
        return err_set(walk->err, -EINVAL, "%s: unknown option '%s%.60s', did you mean '%s%s'?",
                       walk->where, walk->path, key, walk->path, nearest.name);
    list_names(table, names, sizeof(names));
    list_names(variant, names, sizeof(names));
    if (names[0] == '\0')
        return err_set(walk->err, -EINVAL, "%s: unknown option '%s%.60s' (there are none)",
                       walk->where, walk->path, key);
    return err_set(walk->err, -EINVAL, "%s: unknown option '%s%.60s' (there are: %s)", walk->where,
                   walk->path, key, names);
}

static int check_unknown(const struct walk *walk, const struct opt *table,
                         const struct opt *variant, const char *const *ignore,
                         struct json_object *object)
{
    json_object_object_foreach(object, key, value)
    {
        (void)value;
        if (opt_find(table, key) == NULL && opt_find(variant, key) == NULL &&
            !is_ignored(ignore, key))
            return refuse_unknown(walk, table, variant, ignore, key);
    }
    return 0;
}

static void set_present(const struct walk *walk, const struct opt *opt)
{
    if (opt->present != 0)
        *((bool *)walk->out + opt->present - 1) = true;
}

/* The table that a union's discriminator selects, once that is set. */
static const struct opt *variant_of(const struct walk *walk, const struct opt *opt, bool known)
{
    const struct opt *discriminator = opt_find(opt->members, opt->discriminator);

    if (!known)
        return NULL;
    return opt->variants[*(int *)((char *)walk->out + discriminator->offset)];
}

/* What holds when the option is absent: its fallback, and those of the members of an object. */
static int set_fallback(struct walk *walk, const struct opt *opt)
{
    const struct opt *discriminator = NULL;
    int rc = 0;

    if (opt->fallback != NULL) {
        rc = opt_set_text(opt, opt->fallback, walk->out);
        assert(rc != -EINVAL);
        return rc < 0 ? err_no_memory(walk->err) : 0;
    }
    if (opt->type != OPT_OBJECT && opt->type != OPT_UNION)
        return 0;
    for (const struct opt *member = opt->members; rc == 0 && member->name != NULL; member++)
        rc = set_fallback(walk, member);
    if (opt->type == OPT_UNION)
        discriminator = opt_find(opt->members, opt->discriminator);
    if (discriminator != NULL && discriminator->fallback != NULL) {
        const struct opt *member = variant_of(walk, opt, true);

        for (; rc == 0 && member != NULL && member->name != NULL; member++)
            rc = set_fallback(walk, member);
    }
    return rc;
}

static int parse_option(struct walk *walk, const struct opt *opt, struct json_object *object);

/* The members of an object, a union or an item of a list; the path is theirs already. */
static int parse_members(struct walk *walk, const struct opt *opt, struct json_object *object)
{
    const struct opt *variant = NULL;
    int rc;

    if (opt->discriminator != NULL) {
        const struct opt *discriminator = opt_find(opt->members, opt->discriminator);
        bool known = discriminator->fallback != NULL ||
                     json_object_object_get_ex(object, opt->discriminator, NULL);

        rc = parse_option(walk, discriminator, object);
        if (rc < 0)
            return rc;
        variant = variant_of(walk, opt, known);
    }
    rc = check_unknown(walk, opt->members, variant, NULL, object);
    if (rc == 0)
        rc = parse_table(walk, opt->members, object);
    if (rc == 0 && variant != NULL)
        rc = parse_table(walk, variant, object);
    return rc;
}

static int parse_object(struct walk *walk, const struct opt *opt, struct json_object *value)
{
    size_t path_length = strlen(walk->path);
    int rc;

    if (!json_object_is_type(value, json_type_object))
        return refuse_value(walk, opt, value);
    snprintf(walk->path + path_length, sizeof(walk->path) - path_length, "%s.", opt->name);
    rc = parse_members(walk, opt, value);
    walk->path[path_length] = '\0';
    return rc;
}

static struct opt_objects *objects_of(const struct opt *opt, void *out)
{
    return (struct opt_objects *)(void *)((char *)out + opt->offset);
}

static int parse_item(struct walk *walk, const struct opt *opt, size_t index,
                      struct json_object *value)
{
    size_t path_length = strlen(walk->path);
    void *outer = walk->out;
    int rc;

    snprintf(walk->path + path_length, sizeof(walk->path) - path_length, "%s.%zu.", opt->name,
             index);
    if (!json_object_is_type(value, json_type_object)) {
        walk->path[strlen(walk->path) - 1] = '\0';
        rc = err_set(walk->err, -EINVAL, "%s: option '%s' must be an object", walk->where,
                     walk->path);
    } else {
        walk->out = (char *)objects_of(opt, outer)->items + index * opt->item_size;
        rc = parse_members(walk, opt, value);
        walk->out = outer;
    }
    walk->path[path_length] = '\0';
    return rc;
}

static int parse_objects(struct walk *walk, const struct opt *opt, struct json_object *value)
{
    struct opt_objects *objects = objects_of(opt, walk->out);
    size_t count;
    int rc = 0;

    if (!json_object_is_type(value, json_type_array))
        return refuse_value(walk, opt, value);
    count = json_object_array_length(value);
    if (count > OPTS_MAX_ITEMS)
        return err_set(walk->err, -E2BIG, "%s: option '%s%s' has more than %u items", walk->where,
                       walk->path, opt->name, OPTS_MAX_ITEMS);
    objects->items = calloc(count + 1, opt->item_size);
    if (objects->items == NULL)
        return err_no_memory(walk->err);
    objects->count = count;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = parse_item(walk, opt, i, json_object_array_get_idx(value, i));
    return rc;
}

static int parse_option(struct walk *walk, const struct opt *opt, struct json_object *object)
{
    struct json_object *value = NULL;
    int rc;

    if (!json_object_object_get_ex(object, opt->name, &value))
        return opt->required ? refuse_missing(walk, opt) : set_fallback(walk, opt);
    if (opt->type == OPT_OBJECT || opt->type == OPT_UNION) {
        rc = parse_object(walk, opt, value);
    } else if (opt->type == OPT_OBJECTS) {
        rc = parse_objects(walk, opt, value);
    } else {
        rc = opt_set(opt, value, walk->syntax, walk->out);
        if (rc == -EINVAL)
            return refuse_value(walk, opt, value);
        if (rc < 0)
            return err_no_memory(walk->err);
    }
    if (rc == 0)
        set_present(walk, opt);
    return rc;
}

static int parse_table(struct walk *walk, const struct opt *table, struct json_object *object)
{
    for (; table->name != NULL; table++) {
        int rc = parse_option(walk, table, object);

        if (rc < 0)
            return rc;
    }
    return 0;
}

int opts_parse(const struct opt *table, struct json_object *object, enum opts_syntax syntax,
               const char *where, const char *const *ignore, void *out, struct err *err)
{
    struct walk walk = {.syntax = syntax, .where = where, .out = out, .err = err};
    char text[80];
    int rc;

    if (!json_object_is_type(object, json_type_object))
        return err_set(err, -EINVAL, "%s: options must be an object, not %s", where,
                       describe(object, text, sizeof(text)));
    rc = check_unknown(&walk, table, NULL, ignore, object);
    if (rc == 0)
        rc = parse_table(&walk, table, object);
    if (rc < 0)
        opts_release(table, out);
    return rc;
}

/* Those of an object, a union or an item of a list. */
static void release_members(const struct opt *opt, void *out)
{
    size_t count;

    opts_release(opt->members, out);
    if (opt->discriminator == NULL)
        return;
    /* Fields that variants share have one type, so it does not matter which was taken. */
    count = opt_value_count(opt_find(opt->members, opt->discriminator));
    for (size_t i = 0; i < count; i++)
        opts_release(opt->variants[i], out);
}

static void release_objects(const struct opt *opt, struct opt_objects *objects)
{
    for (size_t i = 0; i < objects->count; i++)
        release_members(opt, (char *)objects->items + i * opt->item_size);
    free(objects->items);
    *objects = (struct opt_objects){NULL, 0};
}

void opts_release(const struct opt *table, void *out)
{
    for (; table != NULL && table->name != NULL; table++) {
        if (table->type == OPT_OBJECTS)
            release_objects(table, objects_of(table, out));
        else if (table->type == OPT_OBJECT || table->type == OPT_UNION)
            release_members(table, out);
        opt_clear(table, out);
    }
}
