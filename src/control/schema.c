/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/schema.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A type is known by what it is made from, so that it is described once and may refer to itself. */
enum type_kind {
    TYPE_OBJECT,
    TYPE_ENUM,
    TYPE_ARRAY,
    TYPE_NODE,             /* the options of a node */
    TYPE_CHILD,            /* those, or a node's name */
    TYPE_CHILD_OR_NOTHING, /* or null */
    TYPE_REF,              /* an object or a name */
};

struct type_name {
    char text[32];
};

struct type {
    enum type_kind kind;
    const void *of, *variants;
    struct type_name name;
};

struct builder {
    const struct schema_source *source;
    struct json_object *entries, *types;
    struct type known[SCHEMA_MAX_TYPES];
    size_t count;
    unsigned next_number;
    bool failed; /* memory is out */
};

/* An object whose member `tag` says what further members it has. */
struct tagged {
    const struct opt *common;
    const char *tag;                  /* NULL: no further members */
    const void *key;                  /* what the names are known by */
    const char *const *names;         /* values of the tag, NULL-terminated */
    const struct opt *const *members; /* by value; NULL: none */
};

static const struct type_name empty_object = {"0"};

static struct type_name builtin(const char *name)
{
    struct type_name result;

    snprintf(result.text, sizeof(result.text), "%s", name);
    return result;
}

/* True when the type is new and has to be described. */
static bool type_new(struct builder *b, enum type_kind kind, const void *of, const void *variants,
                     struct type_name *ret_name)
{
    struct type *type;

    for (size_t i = 0; i < b->count; i++) {
        type = &b->known[i];
        if (type->kind == kind && type->of == of && type->variants == variants) {
            *ret_name = type->name;
            return false;
        }
    }
    assert(b->count < SCHEMA_MAX_TYPES);
    type = &b->known[b->count++];
    *type = (struct type){.kind = kind, .of = of, .variants = variants};
    snprintf(type->name.text, sizeof(type->name.text), "%u", b->next_number++);
    *ret_name = type->name;
    return true;
}

/* An entry with its name and kind, to be filled by the caller. NULL when memory is out. */
static struct json_object *entry_new(struct builder *b, struct json_object *list, const char *name,
                                     const char *meta_type)
{
    struct json_object *entry = json_object_new_object();

    if (entry == NULL || json_object_array_add(list, entry) < 0) {
        json_object_put(entry);
        b->failed = true;
        return NULL;
    }
    b->failed |= json_add_string(entry, "name", name) < 0;
    b->failed |= json_add_string(entry, "meta-type", meta_type) < 0;
    return entry;
}

/* An array in `entry`; NULL when memory is out. */
static struct json_object *array_in(struct builder *b, struct json_object *entry, const char *name)
{
    struct json_object *array = json_object_new_array();

    if (json_add(entry, name, array) == 0)
        return array;
    b->failed = true;
    return NULL;
}

/* An object in `array`; NULL when memory is out. */
static struct json_object *object_in(struct builder *b, struct json_object *array)
{
    struct json_object *object = json_object_new_object();

    if (array != NULL && object != NULL && json_object_array_add(array, object) == 0)
        return object;
    json_object_put(object);
    b->failed = true;
    return NULL;
}

static void builtin_entry(struct builder *b, const char *name, const char *json_type)
{
    struct json_object *entry = entry_new(b, b->types, name, "builtin");

    b->failed |= json_add_string(entry, "json-type", json_type) < 0;
}

/* `key`: what the names are known by. */
static struct type_name enum_type(struct builder *b, const void *key, const char *const *names)
{
    struct json_object *entry, *members, *values;
    struct type_name name;

    if (!type_new(b, TYPE_ENUM, key, NULL, &name))
        return name;
    entry = entry_new(b, b->types, name.text, "enum");
    members = array_in(b, entry, "members");
    values = array_in(b, entry, "values");
    for (; *names != NULL && !b->failed; names++) {
        struct json_object *value = json_object_new_string(*names);

        b->failed |= json_add_string(object_in(b, members), "name", *names) < 0;
        if (value == NULL || json_object_array_add(values, value) < 0) {
            json_object_put(value);
            b->failed = true;
        }
    }
    return name;
}

static struct type_name array_type(struct builder *b, struct type_name element)
{
    struct json_object *entry;
    struct type_name name;

    snprintf(name.text, sizeof(name.text), "[%.28s]", element.text);
    for (size_t i = 0; i < b->count; i++) {
        if (b->known[i].kind == TYPE_ARRAY && strcmp(b->known[i].name.text, name.text) == 0)
            return name;
    }
    assert(b->count < SCHEMA_MAX_TYPES);
    b->known[b->count++] = (struct type){.kind = TYPE_ARRAY, .name = name};
    entry = entry_new(b, b->types, name.text, "array");
    b->failed |= json_add_string(entry, "element-type", element.text) < 0;
    return name;
}

static void alternate(struct builder *b, struct json_object *members, struct type_name type)
{
    b->failed |= json_add_string(object_in(b, members), "type", type.text) < 0;
}

static struct type_name node_type(struct builder *b);

static struct type_name child_type(struct builder *b, bool or_nothing)
{
    struct json_object *entry, *members;
    struct type_name name;

    if (!type_new(b, or_nothing ? TYPE_CHILD_OR_NOTHING : TYPE_CHILD, NULL, NULL, &name))
        return name;
    entry = entry_new(b, b->types, name.text, "alternate");
    members = array_in(b, entry, "members");
    alternate(b, members, node_type(b));
    alternate(b, members, builtin("str"));
    if (or_nothing)
        alternate(b, members, builtin("null"));
    return name;
}

static void add_member(struct builder *b, struct json_object *members, const struct opt *opt,
                       struct type_name type)
{
    struct json_object *member = object_in(b, members);

    b->failed |= json_add_string(member, "name", opt->name) < 0;
    b->failed |= json_add_string(member, "type", type.text) < 0;
    if (!opt->required && member != NULL)
        b->failed |= json_object_object_add(member, "default", NULL) < 0;
}

static struct type_name option_type(struct builder *b, const struct opt *opt);

static struct type_name object_type(struct builder *b, const struct tagged *object);

static struct type_name table_type(struct builder *b, const struct opt *table)
{
    const struct tagged object = {.common = table};

    return table != NULL && table->name != NULL ? object_type(b, &object) : empty_object;
}

static void add_variants(struct builder *b, struct json_object *entry, const struct tagged *object)
{
    struct json_object *variants;

    b->failed |= json_add_string(entry, "tag", object->tag) < 0;
    variants = array_in(b, entry, "variants");
    for (size_t i = 0; object->names[i] != NULL && !b->failed; i++) {
        struct json_object *variant = object_in(b, variants);

        b->failed |= json_add_string(variant, "case", object->names[i]) < 0;
        b->failed |= json_add_string(variant, "type", table_type(b, object->members[i]).text) < 0;
    }
}

static struct type_name object_type(struct builder *b, const struct tagged *object)
{
    struct json_object *entry, *members;
    struct type_name name;

    if (!type_new(b, TYPE_OBJECT, object->common, object->key, &name))
        return name;
    entry = entry_new(b, b->types, name.text, "object");
    members = array_in(b, entry, "members");
    for (const struct opt *opt = object->common; opt->name != NULL && !b->failed; opt++) {
        /* Of nodes and objects: any text for the parser, which looks for the table itself. */
        bool is_tag = object->tag != NULL && strcmp(opt->name, object->tag) == 0 &&
                      opt->type == OPT_STRING;

        add_member(b, members, opt,
                   is_tag ? enum_type(b, object->key, object->names) : option_type(b, opt));
    }
    if (object->tag != NULL)
        add_variants(b, entry, object);
    return name;
}

static struct type_name members_type(struct builder *b, const struct opt *opt)
{
    const struct opt *tag = opt->members;

    if (opt->discriminator == NULL)
        return table_type(b, opt->members);
    while (strcmp(tag->name, opt->discriminator) != 0)
        tag++;
    const struct tagged object = {.common = opt->members,
                                  .tag = tag->name,
                                  .key = opt->variants,
                                  .names = tag->values,
                                  .members = opt->variants};

    return object_type(b, &object);
}

static struct type_name ref_type(struct builder *b, const struct opt *opt)
{
    struct json_object *entry, *members;
    struct type_name name;

    if (!type_new(b, TYPE_REF, opt->members, NULL, &name))
        return name;
    entry = entry_new(b, b->types, name.text, "alternate");
    members = array_in(b, entry, "members");
    alternate(b, members, builtin("str"));
    alternate(b, members, table_type(b, opt->members));
    return name;
}

static struct type_name option_type(struct builder *b, const struct opt *opt)
{
    switch (opt->type) {
    case OPT_STRING:
        return builtin("str");
    case OPT_BOOL:
        return builtin("bool");
    case OPT_UINT:
    case OPT_SIZE: /* a text with a unit is accepted as well */
        return builtin("int");
    case OPT_ENUM:
        return enum_type(b, opt->values, opt->values);
    case OPT_OBJECT:
    case OPT_UNION:
        return members_type(b, opt);
    case OPT_STRINGS:
        return array_type(b, opt->values != NULL ? enum_type(b, opt->values, opt->values)
                                                 : builtin("str"));
    case OPT_OBJECTS:
        return array_type(b, members_type(b, opt));
    case OPT_CHILD:
        return child_type(b, !opt->required);
    case OPT_CHILDREN:
        return array_type(b, child_type(b, false));
    case OPT_REFS:
        return array_type(b, ref_type(b, opt));
    case OPT_ANY:
        break;
    }
    return builtin("any");
}

static struct type_name node_type(struct builder *b)
{
    const struct opt *tables[SCHEMA_MAX_KINDS] = {NULL};
    const char *names[SCHEMA_MAX_KINDS + 1] = {NULL};
    const struct tagged object = {.common = graph_node_opts,
                                  .tag = "driver",
                                  .key = b->source->drivers,
                                  .names = names,
                                  .members = tables};
    size_t count = 0;

    for (const struct driver *const *driver = b->source->drivers; *driver != NULL; driver++) {
        if ((*driver)->internal)
            continue;
        assert(count < SCHEMA_MAX_KINDS);
        tables[count] = (*driver)->opts;
        names[count++] = (*driver)->name;
    }
    return object_type(b, &object);
}

static struct type_name graph_object_type(struct builder *b)
{
    const struct opt *tables[SCHEMA_MAX_KINDS] = {NULL};
    const char *names[SCHEMA_MAX_KINDS + 1] = {NULL};
    const struct tagged object = {.common = object_opts,
                                  .tag = "qom-type",
                                  .key = b->source->object_types,
                                  .names = names,
                                  .members = tables};
    size_t count = 0;

    for (const struct object_type *const *type = b->source->object_types; *type != NULL; type++) {
        assert(count < SCHEMA_MAX_KINDS);
        tables[count] = (*type)->opts;
        names[count++] = (*type)->name;
    }
    return object_type(b, &object);
}

static struct type_name returned_type(struct builder *b, enum qmp_returns returns)
{
    switch (returns) {
    case QMP_RETURNS_NOTHING:
        break;
    case QMP_RETURNS_TEXT:
        return builtin("str");
    case QMP_RETURNS_LIST:
        return array_type(b, builtin("any"));
    case QMP_RETURNS_VALUE:
        return builtin("any");
    }
    return empty_object;
}

static void add_command(struct builder *b, const struct qmp_command *command)
{
    struct json_object *entry = entry_new(b, b->entries, command->name, "command");
    struct type_name args;

    if (command->flags & QMP_ARGS_NODE)
        args = node_type(b);
    else if (command->flags & QMP_ARGS_OBJECT)
        args = graph_object_type(b);
    else
        args = table_type(b, command->args);
    b->failed |= json_add_string(entry, "arg-type", args.text) < 0;
    b->failed |= json_add_string(entry, "ret-type", returned_type(b, command->returns).text) < 0;
    if (command->flags & QMP_OOB)
        b->failed |= json_add_bool(entry, "allow-oob", true) < 0;
}

static void add_event(struct builder *b, const struct qmp_event_type *event)
{
    struct json_object *entry = entry_new(b, b->entries, event->name, "event");

    b->failed |= json_add_string(entry, "arg-type", table_type(b, event->data).text) < 0;
}

static void build(struct builder *b)
{
    struct json_object *empty = entry_new(b, b->types, empty_object.text, "object");

    b->next_number = 1;
    (void)array_in(b, empty, "members");
    builtin_entry(b, "str", "string");
    builtin_entry(b, "bool", "boolean");
    builtin_entry(b, "int", "int");
    builtin_entry(b, "null", "null");
    builtin_entry(b, "any", "value");
    for (const struct qmp_command *const *table = b->source->commands; *table != NULL; table++) {
        for (const struct qmp_command *command = *table; command->name != NULL; command++)
            add_command(b, command);
    }
    for (const struct qmp_event_type *event = b->source->events; event->name != NULL; event++)
        add_event(b, event);
}

/* Puts the types behind the entries. */
static void join(struct builder *b)
{
    size_t count = json_object_array_length(b->types);

    for (size_t i = 0; i < count && !b->failed; i++) {
        struct json_object *type = json_object_get(json_object_array_get_idx(b->types, i));

        if (json_object_array_add(b->entries, type) < 0) {
            json_object_put(type);
            b->failed = true;
        }
    }
}

struct json_object *schema_new(const struct schema_source *source)
{
    CLEANUP(free_ptr) struct builder *b = calloc(1, sizeof(*b));

    if (b == NULL)
        return NULL;
    b->source = source;
    b->entries = json_object_new_array();
    b->types = json_object_new_array();
    if (b->entries == NULL || b->types == NULL)
        b->failed = true;
    if (!b->failed)
        build(b);
    if (!b->failed)
        join(b);
    json_object_put(b->types);
    if (b->failed)
        json_object_put(TAKE_PTR(b->entries));
    return b->entries;
}
