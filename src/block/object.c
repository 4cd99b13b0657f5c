/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/object.h"

#include "base/json.h"
#include "block/internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct object_common {
    char *type, *id;
};

const struct opt object_opts[] = {
    {.name = "qom-type",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct object_common, type),
     .required = true,
     .help = "what kind of object"},
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct object_common, id),
     .required = true,
     .help = "how others refer to it"},
    {0},
};

#define MAX_OPTIONS 16u

void graph_set_object_types(struct graph *graph, const struct object_type *const *types)
{
    graph->object_types = types;
}

struct object *object_next(struct graph *graph, struct object *object)
{
    struct list_link *link = object != NULL ? object->link.next : graph->objects.head.next;

    return link != &graph->objects.head ? LIST_ENTRY(link, struct object, link) : NULL;
}

struct object *object_find(struct graph *graph, const char *id)
{
    LIST_FOR_EACH(object, &graph->objects, struct object, link) {
        if (strcmp(object->id, id) == 0)
            return object;
    }
    return NULL;
}

static int find_type(struct graph *graph, const char *where, const char *name,
                     const struct object_type **ret_type, struct err *err)
{
    const struct object_type *const *at = graph->object_types;
    char names[128] = "";
    size_t length = 0;

    for (; at != NULL && *at != NULL; at++) {
        if (strcmp((*at)->name, name) == 0) {
            *ret_type = *at;
            return 0;
        }
        if (length < sizeof(names))
            length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                       length > 0 ? ", " : "", (*at)->name);
    }
    return err_set(err, -ENOENT, "%s: there is no type of object '%s'; there are%s%s", where, name,
                   length > 0 ? ": " : " none", names);
}

static bool id_valid(const char *id)
{
    if (!isalpha((unsigned char)id[0]))
        return false;
    for (const char *c = id; *c != '\0'; c++) {
        if (!isalnum((unsigned char)*c) && strchr("-._", *c) == NULL)
            return false;
    }
    return strlen(id) < OBJECT_ID_BYTES;
}

static int check_common(struct graph *graph, const struct object_common *common, const char *where,
                        struct err *err)
{
    if (!id_valid(common->id))
        return err_set(err, -EINVAL,
                       "%s: '%s' is no id: a letter, then letters, digits, '-', '.', '_', at most "
                       "%u in all",
                       where, common->id, OBJECT_ID_BYTES - 1);
    if (object_find(graph, common->id) != NULL)
        return err_set(err, -EEXIST, "%s: there is an object '%s' already", where, common->id);
    if (graph->object_count >= GRAPH_MAX_OBJECTS)
        return err_set(err, -ENOSPC, "%s: there are %u objects, which is the limit", where,
                       GRAPH_MAX_OBJECTS);
    return 0;
}

static void object_free(struct object *object)
{
    if (object->type->opts != NULL)
        opts_release(object->type->opts, object->options);
    free(object->options);
    free(object->state);
    free(object);
}

static int object_make(struct graph *graph, const struct object_type *type, const char *id,
                       struct json_object *options, enum opts_syntax syntax, const char *where,
                       struct err *err)
{
    static const char *const common_names[] = {"qom-type", "id", NULL};
    struct object *object = calloc(1, sizeof(*object));
    int ret = 0;

    if (object == NULL)
        return err_no_memory(err);
    object->type = type;
    object->graph = graph;
    snprintf(object->id, sizeof(object->id), "%s", id);
    object->state = calloc(1, MAX(type->state_size, 1));
    object->options = calloc(1, MAX(type->options_size, 1));
    if (object->state == NULL || object->options == NULL)
        ret = err_no_memory(err);
    if (ret == 0 && type->opts != NULL)
        ret = opts_parse(type->opts, options, syntax, where, common_names, object->options, err);
    if (ret == 0 && type->create(object, err) < 0)
        ret = err_prefix(err, "%s", where);
    if (ret < 0) {
        object_free(object);
        return ret;
    }
    list_push_back(&graph->objects, &object->link);
    graph->object_count++;
    return 0;
}

int object_add(struct graph *graph, struct json_object *options, enum opts_syntax syntax,
               const char *where, struct err *err)
{
    const char *ignored[MAX_OPTIONS + 1] = {NULL};
    struct object_common common = {0};
    const struct object_type *type = NULL;
    struct json_object *value = NULL;
    size_t count = 0;
    int ret;

    if (!json_object_is_type(options, json_type_object) ||
        !json_object_object_get_ex(options, "qom-type", &value) ||
        !json_object_is_type(value, json_type_string))
        return err_set(err, -EINVAL, "%s: 'qom-type' is required, a string", where);
    ret = find_type(graph, where, json_object_get_string(value), &type, err);
    if (ret < 0)
        return ret;
    for (const struct opt *opt = type->opts; opt != NULL && opt->name != NULL; opt++) {
        assert(count < MAX_OPTIONS);
        ignored[count++] = opt->name;
    }
    ret = opts_parse(object_opts, options, syntax, where, ignored, &common, err);
    if (ret < 0)
        return ret;
    ret = check_common(graph, &common, where, err);
    if (ret == 0)
        ret = object_make(graph, type, common.id, options, syntax, where, err);
    opts_release(object_opts, &common);
    return ret;
}

/* The one place that calls the hook. */
static int call_load(struct object *object, struct err *err) MAY_WAIT
{
    return object->type->load != NULL ? object->type->load(object, err) : 0;
}

int object_load(struct graph *graph, const char *id, struct err *err)
{
    struct object *object = object_find(graph, id);

    if (object == NULL)
        return err_set(err, -ENOENT, "there is no object '%s'", id);
    object->users++;
    int ret = call_load(object, err);
    object_unuse(object);
    return ret < 0 ? err_prefix(err, "object '%s'", id) : 0;
}

static void object_remove(struct object *object)
{
    assert(object->users == 0);
    list_remove(&object->link);
    object->graph->object_count--;
    object->type->destroy(object);
    object_free(object);
}

int object_del(struct graph *graph, const char *id, struct err *err)
{
    struct object *object = object_find(graph, id);

    if (object == NULL)
        return err_set(err, -ENOENT, "there is no object '%s'", id);
    if (object->users > 0)
        return err_set(err, -EBUSY, "object '%s' is in use", id);
    object_remove(object);
    return 0;
}

int object_use(struct graph *graph, const struct object_type *type, const char *id,
               struct object **ret_object, struct err *err)
{
    struct object *object = object_find(graph, id);

    if (object == NULL || object->type != type)
        return err_set(err, -ENOENT, "there is no %s '%s'", type->name, id);
    object->users++;
    *ret_object = object;
    return 0;
}

void object_unuse(struct object *object)
{
    if (object == NULL)
        return;
    assert(object->users > 0);
    object->users--;
}

void objects_free(struct graph *graph)
{
    struct object *object;

    while ((object = object_next(graph, NULL)) != NULL)
        object_remove(object);
}
