/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/node_info.h"

#include "base/json.h"
#include "block/dirty_bitmap.h"
#include "control/qmp_dispatch.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *option_text(struct json_object *options, const char *name)
{
    struct json_object *value = NULL;

    if (!json_object_object_get_ex(options, name, &value) ||
        !json_object_is_type(value, json_type_string))
        return NULL;
    return json_object_get_string(value);
}

/* A text of JSON, or NULL: memory is out. */
static struct json_object *PRINTF_LIKE(1, 2) text_json(const char *fmt, ...)
{
    struct json_object *object = NULL;
    char *text = NULL;
    va_list args;

    va_start(args, fmt);
    if (vasprintf(&text, fmt, args) >= 0)
        object = json_object_new_string(text);
    va_end(args);
    free(text);
    return object;
}

/* nbd://HOST:PORT/EXPORT as QEMU names it; false: the options are of another kind. */
static bool nbd_filename(struct json_object *options, struct json_object **ret_text)
{
    const char *export = option_text(options, "export");
    struct json_object *server = NULL;
    const char *path, *host, *port;

    if (!json_object_object_get_ex(options, "server", &server))
        return false;
    path = option_text(server, "path");
    host = option_text(server, "host");
    port = option_text(server, "port");
    if (export == NULL)
        export = "";
    if (path != NULL)
        *ret_text = text_json("nbd+unix:///%s?socket=%s", export, path);
    else if (host != NULL && port != NULL)
        *ret_text = text_json("nbd://%s:%s/%s", host, port, export);
    else
        return false;
    return true;
}

/* What makes the node what it is, with its children inline: of so many nodes in all (a child may be
 * below several), further ones by their names. */
#define RECIPE_MAX_NODES 64
static struct json_object *node_recipe(const struct node *node, unsigned *left);

static bool is_common(const char *name)
{
    for (const struct opt *opt = graph_node_opts; opt->name != NULL; opt++) {
        if (strcmp(opt->name, name) == 0 && strcmp(name, "driver") != 0)
            return true;
    }
    return false;
}

/* Options from the command line are texts; QEMU shows numbers as numbers. */
static struct json_object *typed_value(const struct node *node, const char *name,
                                       struct json_object *value)
{
    const struct opt *opt = node->driver->opts;
    const char *text = json_object_get_string(value);
    uint64_t number;

    while (opt != NULL && opt->name != NULL && strcmp(opt->name, name) != 0)
        opt++;
    if (opt == NULL || opt->name == NULL || !json_object_is_type(value, json_type_string))
        return json_object_get(value);
    if ((opt->type == OPT_UINT || opt->type == OPT_SIZE) && size_parse(text, &number) == 0)
        return json_object_new_int64((int64_t)number);
    if (opt->type == OPT_BOOL)
        return json_object_new_boolean(text[0] == 't' || text[0] == 'y' || strcmp(text, "on") == 0);
    return json_object_get(value);
}

static int add_recipes_of_children(struct json_object *recipe, const struct node *node,
                                   unsigned *left)
{
    struct json_object *list = NULL;

    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        const char *dot = strchr(edge->name, '.');
        char name[EDGE_NAME_BYTES];
        struct json_object *below = node_recipe(edge->child, left);

        if (dot == NULL) {
            if (json_add(recipe, edge->name, below) < 0)
                return -ENOMEM;
            continue;
        }
        snprintf(name, sizeof(name), "%.*s", (int)(dot - edge->name), edge->name);
        if (list == NULL && (list = json_object_new_array()) != NULL &&
            json_add(recipe, name, list) < 0)
            list = NULL;
        if (below == NULL || list == NULL || json_object_array_add(list, below) < 0) {
            json_object_put(below);
            return -ENOMEM;
        }
    }
    return 0;
}

static struct json_object *node_recipe(const struct node *node, unsigned *left)
{
    CLEANUP(json_putp) struct json_object *recipe = NULL;

    if (*left == 0)
        return json_object_new_string(node->name);
    --*left;
    recipe = json_object_new_object();
    if (recipe == NULL || json_add_string(recipe, "driver", node->driver->name) < 0)
        return NULL;
    if (node->options_json != NULL) {
        json_object_object_foreach(node->options_json, name, value)
        {
            if (!is_common(name) && strcmp(name, "driver") != 0 &&
                json_add(recipe, name, typed_value(node, name, value)) < 0)
                return NULL;
        }
    }
    return add_recipes_of_children(recipe, node, left) < 0 ? NULL : TAKE_PTR(recipe);
}

/* True when options beyond its children make it differ from what it lies on. */
static bool has_own_options(const struct node *node)
{
    if (node->options_json == NULL)
        return false;
    json_object_object_foreach(node->options_json, name, value)
    {
        if (value != NULL && !is_common(name) && strcmp(name, "driver") != 0 &&
            node_child((struct node *)node, name) == NULL)
            return true;
    }
    return false;
}

static struct json_object *recipe_filename(const struct node *node)
{
    CLEANUP(json_putp) struct json_object *recipe = NULL;
    CLEANUP(free_ptr) char *text = NULL;
    unsigned left = RECIPE_MAX_NODES;
    size_t length;

    recipe = node_recipe(node, &left);
    text = recipe != NULL ? json_format(recipe, JSON_LINE, &length) : NULL;
    return text != NULL ? text_json("json:%.*s", (int)length, text) : NULL;
}

struct json_object *node_filename(const struct node *node)
{
    const struct edge *file = node->file;
    struct json_object *text = NULL;

    /* An image is where its file is. */
    if (file != NULL && !node->driver->is_filter && list_empty(&file->child->children) &&
        !has_own_options(node))
        return node_filename(file->child);
    if (file == NULL && node->options_json != NULL) {
        const char *filename = option_text(node->options_json, "filename");

        if (filename != NULL)
            return json_object_new_string(filename);
        if (nbd_filename(node->options_json, &text))
            return text;
    }
    if (list_empty(&node->children) && !has_own_options(node))
        return text_json("%s://", node->driver->name);
    return recipe_filename(node);
}

static struct node *node_backing(const struct node *node)
{
    const struct edge *edge = node_child((struct node *)node, "backing");

    return edge != NULL ? edge->child : NULL;
}

/* What shows through the node: below a filter, and where an image holds nothing. */
static struct node *node_behind(const struct node *node)
{
    return node->driver->is_filter && node->file != NULL ? node->file->child : node_backing(node);
}

static int add_image_sizes(struct json_object *image, struct node *node)
{
    uint64_t usage_bytes;
    int r = json_add_uint(image, "virtual-size", node->length_bytes);

    if (node_usage(node, &usage_bytes) == 0)
        r |= json_add_uint(image, "actual-size", usage_bytes);
    if (node->limits.block_bytes != 0)
        r |= json_add_uint(image, "cluster-size", node->limits.block_bytes);
    return r;
}

/* QEMU tells it of files and of what lies on them. */
static bool has_dirty_flag(const struct node *node)
{
    while (node->file != NULL)
        node = node->file->child;
    return node->options_json != NULL && option_text(node->options_json, "filename") != NULL;
}

/* With `chain` what is behind it follows as "backing-image". */
static struct json_object *image_info(struct node *node, bool chain)
{
    struct json_object *image = json_object_new_object();
    struct node *backing = node_backing(node), *behind = node_behind(node);
    int r = image == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= add_image_sizes(image, node);
        r |= json_add(image, "filename", node_filename(node));
        r |= json_add_string(image, "format", node->driver->name);
        if (has_dirty_flag(node))
            r |= json_add_bool(image, "dirty-flag", false);
    }
    if (r == 0 && backing != NULL) {
        r |= json_add(image, "backing-filename", node_filename(backing));
        r |= json_add(image, "full-backing-filename", node_filename(backing));
    }
    if (r == 0 && chain && behind != NULL)
        r |= json_add(image, "backing-image", image_info(behind, true));
    if (r == 0)
        return image;
    json_object_put(image);
    return NULL;
}

static struct json_object *cache_info(const struct node *node)
{
    struct json_object *cache = json_object_new_object();
    int r = cache == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_bool(cache, "no-flush", node->no_flush);
        r |= json_add_bool(cache, "direct", node->cache_direct);
        r |= json_add_bool(cache, "writeback", true);
    }
    if (r == 0)
        return cache;
    json_object_put(cache);
    return NULL;
}

/* Limits of the throttle that QEMU has in every device; none here. */
static int add_throttle(struct json_object *info)
{
    static const char *const names[] = {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"};
    int r = 0;

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        r |= json_add_int(info, names[i], 0);
    r |= json_add_int(info, "write_threshold", 0);
    return r;
}

static struct json_object *children_info(const struct node *node)
{
    struct json_object *children = json_object_new_object();
    int r = children == NULL ? -ENOMEM : 0;

    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        if (r == 0)
            r = json_add_string(children, edge->name, edge->child->name);
    }
    if (r == 0)
        return children;
    json_object_put(children);
    return NULL;
}

static struct json_object *specific_info(struct node *node)
{
    struct json_object *object = json_object_new_object();

    if (object != NULL && node->driver->describe != NULL &&
        node->driver->describe(node, object) < 0) {
        json_object_put(object);
        return NULL;
    }
    return object;
}

static struct json_object *count_info(const struct io_count *count)
{
    struct json_object *object = json_object_new_object();
    int r = object == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_uint(object, "requests", count->requests);
        r |= json_add_uint(object, "bytes", count->bytes);
        r |= json_add_uint(object, "errors", count->errors);
    }
    if (r == 0)
        return object;
    json_object_put(object);
    return NULL;
}

static struct json_object *stats_info(const struct node_stats *stats)
{
    struct json_object *object = json_object_new_object();
    int r = object == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add(object, "read", count_info(&stats->read));
        r |= json_add(object, "write", count_info(&stats->write));
        r |= json_add(object, "zero", count_info(&stats->zero));
        r |= json_add(object, "discard", count_info(&stats->discard));
        r |= json_add(object, "flush", count_info(&stats->flush));
    }
    if (r == 0)
        return object;
    json_object_put(object);
    return NULL;
}

static struct json_object *bitmap_info(const struct dirty_bitmap *bitmap)
{
    struct json_object *info = json_object_new_object();
    int r = info == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_string(info, "name", bitmap->name);
        r |= json_add_uint(info, "count", dirty_tracker_bytes(&bitmap->tracker));
        r |= json_add_uint(info, "granularity", bitmap->tracker.region_bytes);
        r |= json_add_bool(info, "recording", bitmap->enabled);
        r |= json_add_bool(info, "busy", bitmap->busy);
        r |= json_add_bool(info, "persistent", false);
        if (bitmap->inconsistent)
            r |= json_add_bool(info, "inconsistent", true);
    }
    if (r == 0)
        return info;
    json_object_put(info);
    return NULL;
}

static struct json_object *bitmaps_info(const struct node *node)
{
    struct json_object *list = json_object_new_array();

    LIST_FOR_EACH(bitmap, &node->bitmaps, struct dirty_bitmap, link) {
        struct json_object *info = list != NULL ? bitmap_info(bitmap) : NULL;

        if (info == NULL || json_object_array_add(list, info) < 0) {
            json_object_put(info);
            json_object_put(list);
            return NULL;
        }
    }
    return list;
}

static int fill_node(struct json_object *info, struct node *node, bool flat)
{
    static const char *const detect_names[] = {
        [NODE_DETECT_ZEROES_OFF] = "off",
        [NODE_DETECT_ZEROES_ON] = "on",
        [NODE_DETECT_ZEROES_UNMAP] = "unmap",
    };
    struct node *backing = node_backing(node);
    int depth = 0;
    int r = 0;

    for (const struct node *below = flat ? NULL : node_behind(node); below != NULL; depth++)
        below = node_behind(below);
    r |= json_add_string(info, "node-name", node->name);
    r |= json_add_string(info, "drv", node->driver->name);
    r |= json_add_bool(info, "ro", node->read_only);
    r |= json_add(info, "file", node_filename(node));
    if (backing != NULL)
        r |= json_add(info, "backing_file", node_filename(backing));
    r |= json_add_int(info, "backing_file_depth", depth);
    r |= json_add_bool(info, "encrypted", false);
    r |= json_add_string(info, "detect_zeroes", detect_names[node->detect_zeroes]);
    r |= json_add(info, "cache", cache_info(node));
    r |= add_throttle(info);
    r |= json_add(info, "image", image_info(node, !flat));
    if (!list_empty(&node->bitmaps))
        r |= json_add(info, "dirty-bitmaps", bitmaps_info(node));
    r |= json_add(info, "x-children", children_info(node));
    r |= json_add(info, "x-driver-specific", specific_info(node));
    r |= json_add(info, "x-stats", stats_info(&node->stats));
    return r;
}

struct json_object *node_info(struct node *node, bool flat)
{
    struct json_object *info = json_object_new_object();

    if (info == NULL || fill_node(info, node, flat) == 0)
        return info;
    json_object_put(info);
    return NULL;
}
