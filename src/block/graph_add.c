/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Making nodes from options. A node is on the graph's list from the start, which reserves its name,
 * but nobody finds it before its open hook has succeeded; so that hook (which may wait long: a network
 * connection) runs without the change lock.
 */
#include "block/internal.h"
#include "block/io.h"

#include "base/json.h"
#include "base/log.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PATH_BYTES       256
#define MAX_IGNORED_OPTS 64

/* What graph_node_opts fills. */
struct common {
    char *driver;
    char *node_name;
    bool read_only, read_only_given;
    bool auto_read_only;
    int detect_zeroes;
    int discard;
    bool cache_direct, cache_direct_given;
    bool no_flush, no_flush_given;
};

enum { DISCARD_UNMAP, DISCARD_IGNORE };

static const char *const detect_zeroes_names[] = {"off", "on", "unmap", NULL};
static const char *const discard_names[] = {"unmap", "ignore", NULL};

static const struct opt cache_opts[] = {
    {.name = "direct",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct common, cache_direct),
     .present = OPT_PRESENT(struct common, cache_direct_given),
     .help = "past the host's page cache"},
    {.name = "no-flush",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct common, no_flush),
     .present = OPT_PRESENT(struct common, no_flush_given),
     .help = "drop flushes: fast, and nothing is safe"},
    {0},
};

const struct opt graph_node_opts[] = {
    {.name = "driver",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct common, driver),
     .required = true,
     .help = "what kind of node"},
    {.name = "node-name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct common, node_name),
     .help = "how others refer to it"},
    {.name = "read-only",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct common, read_only),
     .present = OPT_PRESENT(struct common, read_only_given),
     .help = "refuse writes"},
    {.name = "auto-read-only",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct common, auto_read_only),
     .help = "open read-only what cannot be opened read-write"},
    {.name = "detect-zeroes",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct common, detect_zeroes),
     .fallback = "off",
     .values = detect_zeroes_names,
     .help = "turn writes of zeroes into zero requests"},
    {.name = "discard",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct common, discard),
     .fallback = "unmap",
     .values = discard_names,
     .help = "pass discards on or drop them"},
    {.name = "cache", .type = OPT_OBJECT, .members = cache_opts, .help = "caching"},
    {0},
};

static const char *const common_names[] = {
    "driver",        "node-name", "read-only", "auto-read-only",
    "detect-zeroes", "discard",   "cache",     NULL};

/* What is known while one node is made. */
struct making {
    struct graph *graph;
    enum opts_syntax syntax;
    const char *path;         /* "blockdev-add: file.backing": begins every error */
    const struct node *above; /* whose inline child it is; NULL at the top */
    const char *role;         /* the name of the edge to it */
    unsigned level;
    bool internal; /* the program's own wish, not a user's: internal drivers are there too */
};

static int make_node(const struct making *making, struct json_object *options, bool require_name,
                     struct node **ret_node, struct err *err) MAY_WAIT;

static bool node_name_valid(const char *name)
{
    if (!isalpha((unsigned char)name[0]))
        return false;
    for (const char *c = name; *c != '\0'; c++) {
        if (!isalnum((unsigned char)*c) && strchr("-._", *c) == NULL)
            return false;
    }
    return strlen(name) < NODE_NAME_BYTES;
}

static bool node_name_taken(struct graph *graph, const char *name)
{
    LIST_FOR_EACH(node, &graph->nodes, struct node, graph_link) {
        if (strcmp(node->name, name) == 0)
            return true;
    }
    return false;
}

static int pick_name(const struct making *making, const struct common *common, bool require_name,
                     char *name, struct err *err)
{
    struct graph *graph = making->graph;

    if (common->node_name == NULL) {
        if (require_name)
            return err_set(err, -EINVAL, "%s: 'node-name' is required", making->path);
        do {
            snprintf(name, NODE_NAME_BYTES, "#block%u", graph->next_auto_name++);
        } while (node_name_taken(graph, name));
        return 0;
    }
    if (!node_name_valid(common->node_name))
        return err_set(err, -EINVAL,
                       "%s: '%s' is no node name: a letter, then letters, digits, '-', '.', '_', "
                       "at most %u in all",
                       making->path, common->node_name, NODE_NAME_BYTES - 1);
    if (node_name_taken(graph, common->node_name))
        return err_set(err, -EEXIST, "%s: there is a node '%s' already", making->path,
                       common->node_name);
    snprintf(name, NODE_NAME_BYTES, "%s", common->node_name);
    return 0;
}

static int find_driver(const struct making *making, struct json_object *options,
                       const struct driver **ret_driver, struct err *err)
{
    struct json_object *value = NULL;
    const char *name;
    char names[320] = "";
    size_t length = 0;

    if (!json_object_is_type(options, json_type_object))
        return err_set(err, -EINVAL, "%s: expected an object of options", making->path);
    if (!json_object_object_get_ex(options, "driver", &value) ||
        !json_object_is_type(value, json_type_string))
        return err_set(err, -EINVAL, "%s: 'driver' is required, a string", making->path);
    name = json_object_get_string(value);
    for (const struct driver *const *at = making->graph->drivers; *at != NULL; at++) {
        if ((*at)->internal && !making->internal)
            continue;
        if (strcmp((*at)->name, name) == 0) {
            *ret_driver = *at;
            return 0;
        }
        if (length < sizeof(names))
            length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                       length > 0 ? ", " : "", (*at)->name);
    }
    return err_set(err, -ENOENT, "%s: there is no driver '%s'; there are: %s", making->path, name,
                   names);
}

/* Each of the two tables, common and the driver's, ignores what the other has. */
static int parse_common(const struct making *making, const struct driver *driver,
                        struct json_object *options, struct common *common, struct err *err)
{
    const char *ignored[MAX_IGNORED_OPTS + 1] = {NULL};
    size_t count = 0;
    char where[PATH_BYTES];

    for (const struct opt *opt = driver->opts; opt != NULL && opt->name != NULL; opt++) {
        assert(count < MAX_IGNORED_OPTS);
        ignored[count++] = opt->name;
    }
    snprintf(where, sizeof(where), "%s (driver '%s')", making->path, driver->name);
    return opts_parse(graph_node_opts, options, making->syntax, where, ignored, common, err);
}

/* "backing": null says that there is none, as in QEMU. A copy without such children, or NULL with 0
 * when there are none. */
static int drop_null_children(const struct driver *driver, struct json_object *options,
                              struct json_object **ret_copy)
{
    for (const struct opt *opt = driver->opts; opt->name != NULL; opt++) {
        struct json_object *value = NULL;

        if (opt->type != OPT_CHILD || opt->required ||
            !json_object_object_get_ex(options, opt->name, &value) || value != NULL)
            continue;
        if (*ret_copy == NULL && json_object_deep_copy(options, ret_copy, NULL) < 0)
            return -ENOMEM;
        json_object_object_del(*ret_copy, opt->name);
    }
    return 0;
}

static int parse_own(const struct making *making, struct node *node, struct json_object *options,
                     struct err *err)
{
    CLEANUP(json_putp) struct json_object *copy = NULL;
    char where[PATH_BYTES];

    node->options_syntax = making->syntax;
    if (node->driver->opts == NULL)
        return 0;
    if (drop_null_children(node->driver, options, &copy) < 0)
        return err_no_memory(err);
    if (copy != NULL)
        options = copy;
    snprintf(where, sizeof(where), "%s (driver '%s')", making->path, node->driver->name);
    return opts_parse(node->driver->opts, options, making->syntax, where, common_names,
                      node->options, err);
}

static void take_common(const struct making *making, struct node *node, const struct common *common)
{
    const struct node *above = making->above;

    node->read_only = common->read_only;
    node->auto_read_only = common->auto_read_only;
    node->detect_zeroes = (enum node_detect_zeroes)common->detect_zeroes;
    node->discard_ignored = common->discard == DISCARD_IGNORE;
    node->cache_direct = common->cache_direct;
    node->no_flush = common->no_flush;
    if (above == NULL)
        return;
    if (!common->cache_direct_given)
        node->cache_direct = above->cache_direct;
    if (!common->no_flush_given)
        node->no_flush = above->no_flush;
    if (common->read_only_given)
        return;
    if (strcmp(making->role, "backing") == 0) {
        node->read_only = true;
    } else {
        node->read_only = above->read_only;
        node->read_only_inherited = true;
    }
}

/* --- children --- */

static int child_node(const struct making *making, struct node *parent, const char *name,
                      struct json_object *value, struct node **ret_child, struct err *err) MAY_WAIT
{
    char path[PATH_BYTES];
    struct making below = {
        .graph = making->graph,
        .syntax = making->syntax,
        .path = path,
        .above = parent,
        .role = name,
        .level = making->level + 1,
    };
    int ret;

    snprintf(path, sizeof(path), "%s%s%s", making->path, making->level == 0 ? ": " : ".", name);
    if (json_object_is_type(value, json_type_object))
        return make_node(&below, value, false, ret_child, err);
    if (!json_object_is_type(value, json_type_string))
        return err_set(err, -EINVAL, "%s: expected a node's name or options", path);
    ret = graph_get(making->graph, json_object_get_string(value), ret_child, err);
    return ret < 0 ? err_prefix(err, "%s", path) : 0;
}

static int add_child(const struct making *making, struct node *parent, const char *name,
                     struct json_object *value, struct err *err) MAY_WAIT
{
    struct node *child = NULL;
    struct edge *edge;
    int ret;

    ret = child_node(making, parent, name, value, &child, err);
    if (ret < 0)
        return ret;
    node_ref(child);
    ret = graph_attach_child(making->graph, parent, child, name, &edge, err);
    node_unref(child);
    return ret < 0 ? err_prefix(err, "%s", making->path) : 0;
}

static struct json_object *option_json(struct node *node, const struct opt *opt)
{
    return *(struct json_object **)(void *)((char *)node->options + opt->offset);
}

static int add_children(const struct making *making, struct node *node, struct err *err) MAY_WAIT
{
    for (const struct opt *opt = node->driver->opts; opt != NULL && opt->name != NULL; opt++) {
        struct json_object *value;
        size_t count;
        int ret;

        if (opt->type != OPT_CHILD && opt->type != OPT_CHILDREN)
            continue;
        value = option_json(node, opt);
        if (value == NULL)
            continue;
        if (opt->type == OPT_CHILD) {
            ret = add_child(making, node, opt->name, value, err);
            if (ret < 0)
                return ret;
            continue;
        }
        count = json_object_array_length(value);
        for (size_t i = 0; i < count; i++) {
            char name[EDGE_NAME_BYTES];

            snprintf(name, sizeof(name), "%s.%zu", opt->name, i);
            ret = add_child(making, node, name, json_object_array_get_idx(value, i), err);
            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

/* --- options_json --- */

static void drop_secrets(const struct opt *table, struct json_object *object)
{
    for (const struct opt *opt = table; opt != NULL && opt->name != NULL; opt++) {
        struct json_object *value = NULL;

        if (!json_object_object_get_ex(object, opt->name, &value))
            continue;
        if (opt->secret)
            json_object_object_del(object, opt->name);
        else if ((opt->type == OPT_OBJECT || opt->type == OPT_UNION) &&
                 json_object_is_type(value, json_type_object))
            drop_secrets(opt->members, value);
    }
}

static int name_children(struct node *node, struct json_object *shown)
{
    for (const struct opt *opt = node->driver->opts; opt != NULL && opt->name != NULL; opt++) {
        struct json_object *list = NULL;
        size_t prefix = strlen(opt->name);

        if (opt->type == OPT_CHILD) {
            struct edge *edge = node_child(node, opt->name);

            if (edge != NULL && json_add_string(shown, opt->name, edge->child->name) < 0)
                return -ENOMEM;
        }
        if (opt->type != OPT_CHILDREN)
            continue;
        list = json_object_new_array();
        if (list == NULL || json_add(shown, opt->name, list) < 0)
            return -ENOMEM;
        LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
            struct json_object *name;

            if (strncmp(edge->name, opt->name, prefix) != 0 || edge->name[prefix] != '.')
                continue;
            name = json_object_new_string(edge->child->name);
            if (name == NULL || json_object_array_add(list, name) < 0) {
                json_object_put(name);
                return -ENOMEM;
            }
        }
    }
    return 0;
}

static int show_options(struct node *node, struct json_object *options, struct err *err)
{
    CLEANUP(json_putp) struct json_object *shown = NULL;

    if (json_object_deep_copy(options, &shown, NULL) < 0)
        return err_no_memory(err);
    drop_secrets(node->driver->opts, shown);
    if (name_children(node, shown) < 0 || json_add_string(shown, "node-name", node->name) < 0)
        return err_no_memory(err);
    node->options_json = TAKE_PTR(shown);
    return 0;
}

/* --- opening --- */

static int call_open(struct node *node, struct err *err) MAY_WAIT
{
    return node->driver->open != NULL ? node->driver->open(node, err) : 0;
}

static int check_opened(struct node *node, struct err *err)
{
    const struct node_limits *limits = &node->limits;

    assert(is_power_of_two(limits->request_align_bytes));
    assert(is_power_of_two(limits->memory_align_bytes));
    assert(limits->memory_align_bytes <= BUF_ALIGNMENT);
    assert(limits->request_align_bytes <= IO_MAX_TRANSFER_BYTES);
    if (node->length_bytes % limits->request_align_bytes == 0)
        return 0;
    return err_set(err, -EINVAL,
                   "the length of %" PRIu64
                   " bytes is not a multiple of %u, which requests must be",
                   node->length_bytes, limits->request_align_bytes);
}

static int open_node(const struct making *making, struct node *node, struct err *err) MAY_WAIT
{
    int ret;

    if (node->driver->is_filter && node->file == NULL)
        return err_set(err, -EINVAL, "%s (driver '%s'): a child 'file' is required", making->path,
                       node->driver->name);
    if (node->file != NULL) {
        node->length_bytes = node->file->child->length_bytes;
        node->limits = node->file->child->limits;
    }
    ret = call_open(node, err);
    if (ret < 0)
        return err_prefix(err, "%s", making->path);
    node->opened = true;
    ret = check_opened(node, err);
    return ret < 0 ? err_prefix(err, "%s", making->path) : 0;
}

static int fill_node(const struct making *making, struct node *node, struct json_object *options,
                     struct err *err) MAY_WAIT
{
    int ret = parse_own(making, node, options, err);

    if (ret == 0)
        ret = add_children(making, node, err);
    if (ret == 0)
        ret = show_options(node, options, err);
    if (ret == 0)
        ret = open_node(making, node, err);
    return ret;
}

static int make_node(const struct making *making, struct json_object *options, bool require_name,
                     struct node **ret_node, struct err *err)
{
    const struct driver *driver = NULL;
    struct common common = {0};
    char name[NODE_NAME_BYTES];
    struct node *node = NULL;
    int ret;

    if (making->level >= NODE_MAX_DEPTH)
        return err_set(err, -ELOOP, "nodes are nested more than %u deep", NODE_MAX_DEPTH);
    if (making->graph->node_count >= GRAPH_MAX_NODES)
        return err_set(err, -ENOSPC, "%s: there are %u nodes, which is the limit", making->path,
                       GRAPH_MAX_NODES);
    ret = find_driver(making, options, &driver, err);
    if (ret == 0)
        ret = parse_common(making, driver, options, &common, err);
    if (ret < 0)
        return ret;
    ret = pick_name(making, &common, require_name, name, err);
    if (ret == 0) {
        node = node_new(making->graph, driver, name);
        if (node == NULL)
            ret = err_no_memory(err);
    }
    if (ret == 0) {
        take_common(making, node, &common);
        ret = fill_node(making, node, options, err);
    }
    opts_release(graph_node_opts, &common);
    if (ret < 0) {
        if (node != NULL)
            node_close_if_unused(node);
        return ret;
    }
    node->named = require_name;
    TRACE("block.node_open", "%s: driver %s, %" PRIu64 " bytes", node->name, driver->name,
          node->length_bytes);
    *ret_node = node;
    return 0;
}

int graph_add(struct graph *graph, struct json_object *options, enum opts_syntax syntax,
              const char *where, bool require_name, struct node **ret_node, struct err *err)
{
    struct making making = {
        .graph = graph, .syntax = syntax, .path = where, .role = "", .internal = !require_name};

    return make_node(&making, options, require_name, ret_node, err);
}
