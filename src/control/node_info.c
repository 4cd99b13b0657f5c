/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/node_info.h"

#include "base/json.h"
#include "block/dirty_bitmap.h"

#include <errno.h>
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

/* nbd://HOST:PORT/EXPORT as QEMU names it; false: the options are of another kind. */
static bool nbd_filename(struct json_object *options, char *text, size_t text_bytes)
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
        snprintf(text, text_bytes, "nbd+unix:///%s?socket=%s", export, path);
    else if (host != NULL && port != NULL)
        snprintf(text, text_bytes, "nbd://%s:%s/%s", host, port, export);
    else
        return false;
    return true;
}

const char *node_filename(const struct node *node, char *text, size_t text_bytes)
{
    const char *filename = NULL;

    while (node->file != NULL)
        node = node->file->child;
    if (node->options_json != NULL) {
        filename = option_text(node->options_json, "filename");
        if (filename == NULL && nbd_filename(node->options_json, text, text_bytes))
            return text;
    }
    if (filename != NULL)
        snprintf(text, text_bytes, "%s", filename);
    else
        snprintf(text, text_bytes, "%s://", node->driver->name);
    return text;
}

static struct node *node_backing(const struct node *node)
{
    const struct edge *edge = node_child((struct node *)node, "backing");

    return edge != NULL ? edge->child : NULL;
}

/* With `chain` the images below follow as "backing-image". */
static struct json_object *image_info(struct node *node, bool chain)
{
    struct json_object *image = json_object_new_object();
    struct node *backing = node_backing(node);
    char filename[NODE_FILENAME_BYTES];
    int r = image == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_uint(image, "virtual-size", node->length_bytes);
        r |= json_add_string(image, "filename", node_filename(node, filename, sizeof(filename)));
        r |= json_add_string(image, "format", node->driver->name);
        r |= json_add_bool(image, "dirty-flag", false);
    }
    if (r == 0 && backing != NULL) {
        node_filename(backing, filename, sizeof(filename));
        r |= json_add_string(image, "backing-filename", filename);
        r |= json_add_string(image, "full-backing-filename", filename);
        if (chain)
            r |= json_add(image, "backing-image", image_info(backing, true));
    }
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
    char filename[NODE_FILENAME_BYTES];
    int depth = 0;
    int r = 0;

    for (const struct node *below = backing; below != NULL && depth < NODE_MAX_DEPTH; depth++)
        below = node_backing(below);
    r |= json_add_string(info, "node-name", node->name);
    r |= json_add_string(info, "drv", node->driver->name);
    r |= json_add_bool(info, "ro", node->read_only);
    r |= json_add_string(info, "file", node_filename(node, filename, sizeof(filename)));
    if (backing != NULL)
        r |= json_add_string(info, "backing_file",
                             node_filename(backing, filename, sizeof(filename)));
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
