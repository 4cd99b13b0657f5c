/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/bitmap_refs.h"

#include "base/json.h"

#include <errno.h>
#include <string.h>

int bitmap_ref_find(struct graph *graph, const char *node_name, const char *name,
                    struct dirty_bitmap **ret_bitmap, struct err *err)
{
    struct node *node = graph_find(graph, node_name);

    if (node == NULL)
        return err_set(err, -ENOENT, "Node '%s' not found", node_name);
    return dirty_bitmap_get(node, name, ret_bitmap, err);
}

static struct node *next_below(struct node *node)
{
    struct edge *backing = node_child(node, "backing");

    if (node->driver->is_filter)
        return node->file->child;
    return backing != NULL ? backing->child : NULL;
}

static int find_in_chain(struct node *node, const char *name, struct dirty_bitmap **ret_bitmap,
                         struct err *err)
{
    for (struct node *at = node; at != NULL; at = next_below(at)) {
        *ret_bitmap = dirty_bitmap_find(at, name);
        if (*ret_bitmap != NULL)
            return 0;
    }
    return err_set(err, -ENOENT, "Bitmap '%s' is not found in node '%s' or below it", name,
                   node->name);
}

struct ref {
    char *node, *name;
};

const struct opt bitmap_ref_opts[] = {
    {.name = "node",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct ref, node),
     .required = true,
     .help = "the node that has the bitmap"},
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct ref, name),
     .required = true,
     .help = "the bitmap's name"},
    {0},
};

static int find_item(struct graph *graph, struct node *node, struct json_object *item,
                     const char *member, bool chain, struct dirty_bitmap **ret_bitmap,
                     struct err *err)
{
    struct ref ref = {0};

    if (json_object_is_type(item, json_type_string) && chain)
        return find_in_chain(node, json_object_get_string(item), ret_bitmap, err);
    if (json_object_is_type(item, json_type_string))
        return dirty_bitmap_get(node, json_object_get_string(item), ret_bitmap, err);
    if (!json_object_is_type(item, json_type_object))
        return err_set(err, -EINVAL,
                       "Invalid parameter type for '%s', expected: names or objects with node "
                       "and name",
                       member);
    int r = opts_parse(bitmap_ref_opts, item, OPTS_JSON, member, NULL, &ref, err);
    if (r < 0)
        return r;
    r = bitmap_ref_find(graph, ref.node, ref.name, ret_bitmap, err);
    opts_release(bitmap_ref_opts, &ref);
    return r;
}

int bitmap_refs_find(struct graph *graph, struct node *node, struct json_object *list,
                     const char *member, bool chain, struct bitmap_refs *ret_refs, struct err *err)
{
    struct bitmap_refs refs = {.count = 0};

    if (list != NULL && !json_object_is_type(list, json_type_array))
        return err_set(err, -EINVAL, "Invalid parameter type for '%s', expected: array", member);
    size_t count = list != NULL ? json_object_array_length(list) : 0;
    if (count > BITMAP_REFS_MAX)
        return err_set(err, -E2BIG, "'%s': %zu bitmaps are more than the %u that can be", member,
                       count, BITMAP_REFS_MAX);
    for (size_t i = 0; i < count; i++) {
        int r = find_item(graph, node, json_object_array_get_idx(list, i), member, chain,
                          &refs.items[i], err);
        if (r < 0)
            return r;
    }
    refs.count = count;
    *ret_refs = refs;
    return 0;
}
