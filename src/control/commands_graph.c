/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The graph under live I/O: users led from one node to another, drains, and a picture of it all. */
#include "block/dirty.h"
#include "control/commands.h"
#include "control/daemon.h"
#include "control/node_info.h"

#include <errno.h>

/* --- replacing --- */

struct replace_args {
    char *node, *new_node;
};

static const struct opt replace_opts[] = {
    {.name = "node",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct replace_args, node),
     .required = true,
     .help = "the node whose users move"},
    {.name = "new-node",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct replace_args, new_node),
     .required = true,
     .help = "where they go: a filter above it, what lies below it, or another disk of its size"},
    {0},
};

/* What the program has put in for itself, it takes away itself. */
static int check_movable(const struct node *node, struct err *err)
{
    if (!node->stands_in && !node->driver->internal)
        return 0;
    return err_set(err, -EBUSY, "node '%s' (driver '%s') is replication's own", node->name,
                   node->driver->name);
}

static int replace_locked(struct graph *graph, const struct replace_args *args, struct err *err)
    MAY_WAIT
{
    struct node *from = NULL, *to = NULL;
    int r = graph_get(graph, args->node, &from, err);

    if (r == 0)
        r = graph_get(graph, args->new_node, &to, err);
    if (r == 0 && from == to)
        r = err_set(err, -EINVAL, "'node' and 'new-node' are both '%s'", args->node);
    if (r == 0)
        r = check_movable(from, err);
    if (r == 0)
        r = check_movable(to, err);
    if (r == 0)
        r = node_check_blocked_above(from, "replace", err);
    return r < 0 ? r : graph_replace_node(graph, from, to, NULL, err);
}

static int run_replace(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;
    int r;

    graph_change_begin(daemon->graph);
    r = replace_locked(daemon->graph, args, err);
    graph_change_end(daemon->graph);
    return r;
}

/* --- draining --- */

struct drain_args {
    char *node_name;
    bool subtree;
};

static const struct opt drain_opts[] = {
    {.name = "node-name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct drain_args, node_name),
     .required = true,
     .help = "whose requests shall end"},
    {.name = "subtree",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct drain_args, subtree),
     .help = "also those of other users of what lies below it"},
    {0},
};

static int run_drain(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct drain_args *wanted = args;
    struct daemon *daemon = call->context;
    struct graph_drain drain;
    struct node *node;
    int r = graph_get(daemon->graph, wanted->node_name, &node, err);

    if (r < 0)
        return r;
    r = wanted->subtree ? graph_drain_begin_subtree(node, &drain)
                        : graph_drain_begin(&node, 1, &drain);
    if (r < 0)
        return err_no_memory(err);
    graph_drain_end(&drain);
    return 0;
}

/* --- the picture --- */

/* Nodes and users are numbered in the order of their first mention, from 1 on. */
struct picture {
    struct json_object *nodes, *edges;
    const void **known;
    size_t count;
};

static int picture_number(struct picture *picture, const void *item, uint64_t *ret_number)
{
    const void **known;
    size_t i = 0;

    while (i < picture->count && picture->known[i] != item)
        i++;
    *ret_number = i + 1;
    if (i < picture->count)
        return 0;
    known = realloc(picture->known, (i + 1) * sizeof(void *));
    if (known == NULL)
        return -ENOMEM;
    known[i] = item;
    picture->known = known;
    picture->count++;
    return 1;
}

static int append(struct json_object *array, struct json_object *entry, int r)
{
    if (entry != NULL && r == 0 && json_object_array_add(array, entry) == 0)
        return 0;
    json_object_put(entry);
    return -ENOMEM;
}

static int append_text(struct json_object *array, const char *text)
{
    return append(array, json_object_new_string(text), 0);
}

static struct json_object *perm_list(unsigned perms)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; list != NULL && i < PERM_COUNT; i++) {
        if ((perms & (1u << i)) != 0 && append_text(list, perm_texts[i]) < 0) {
            json_object_put(list);
            return NULL;
        }
    }
    return list;
}

static struct json_object *blocker_list(const struct node *node)
{
    struct json_object *list = json_object_new_array();

    LIST_FOR_EACH(blocker, &node->blockers, struct node_blocker, link) {
        if (list != NULL && append_text(list, blocker->reason) < 0) {
            json_object_put(list);
            return NULL;
        }
    }
    return list;
}

/* Of several trackers, what the busiest has marked. */
static uint64_t dirty_bytes(const struct node *node)
{
    uint64_t bytes = 0;

    LIST_FOR_EACH(tracker, &node->trackers, struct dirty_tracker, link)
        bytes = MAX(bytes, dirty_tracker_bytes(tracker));
    return bytes;
}

static int draw_node(struct picture *picture, struct node *node)
{
    struct json_object *entry = json_object_new_object();
    uint64_t number;
    int r = picture_number(picture, node, &number) < 0 || entry == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_uint(entry, "id", number);
        r |= json_add_string(entry, "type", "block-driver");
        r |= json_add_string(entry, "name", node->name);
        r |= json_add_string(entry, "x-driver", node->driver->name);
        r |= json_add_uint(entry, "x-size", node->length_bytes);
        r |= json_add_bool(entry, "x-read-only", node->read_only);
        r |= json_add_bool(entry, "x-named", node->named);
        if (list_empty(&node->children))
            r |= json_add(entry, "x-filename", node_filename(node));
        if (!list_empty(&node->trackers))
            r |= json_add_uint(entry, "x-dirty", dirty_bytes(node));
        r |= json_add(entry, "x-blockers", blocker_list(node));
    }
    return append(picture->nodes, entry, r);
}

static int draw_user(struct picture *picture, struct edge *root, uint64_t number)
{
    const struct edge_user_ops *ops = root->user_ops;
    bool is_job = ops != NULL && ops->kind == EDGE_USER_JOB;
    struct json_object *entry = json_object_new_object();
    char text[EDGE_PARENT_TEXT_BYTES];
    int r = entry == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_uint(entry, "id", number);
        r |= json_add_string(entry, "type", is_job ? "block-job" : "block-backend");
        r |= json_add_string(entry, "name",
                             ops != NULL && ops->id != NULL ? ops->id(root) : root->name);
        r |= json_add_string(entry, "x-describe", edge_describe_parent(root, text, sizeof(text)));
    }
    return append(picture->nodes, entry, r);
}

static int draw_edge(struct picture *picture, struct edge *edge)
{
    bool is_export = edge->user_ops != NULL && edge->user_ops->kind == EDGE_USER_EXPORT;
    const void *above = edge->parent != NULL ? edge->parent
                        : edge->user != NULL ? edge->user
                                             : (const void *)edge;
    struct json_object *entry;
    uint64_t parent, child;
    int r = picture_number(picture, above, &parent);

    if (r > 0 && edge->parent == NULL)
        r = draw_user(picture, edge, parent);
    if (r < 0 || picture_number(picture, edge->child, &child) < 0)
        return -ENOMEM;
    entry = json_object_new_object();
    r = entry == NULL ? -ENOMEM : 0;
    if (r == 0) {
        r |= json_add_uint(entry, "parent", parent);
        r |= json_add_uint(entry, "child", child);
        r |= json_add_string(entry, "name", is_export ? "root" : edge->name);
        r |= json_add(entry, "perm", perm_list(edge->need));
        r |= json_add(entry, "shared-perm", perm_list(edge->share));
        r |= json_add_uint(entry, "x-in-flight", edge->gate.inside);
    }
    return append(picture->edges, entry, r);
}

static int draw(struct picture *picture, struct graph *graph)
{
    struct node *node = NULL;

    while ((node = graph_next(graph, node)) != NULL) {
        if (draw_node(picture, node) < 0)
            return -ENOMEM;
        LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
            /* A parent that is being opened or closed is not there for queries. */
            if (edge->parent != NULL && !edge->parent->opened)
                continue;
            if (draw_edge(picture, edge) < 0)
                return -ENOMEM;
        }
    }
    return 0;
}

static int run_query_graph(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;
    struct picture picture = {.nodes = json_object_new_array(), .edges = json_object_new_array()};
    int r = picture.nodes == NULL || picture.edges == NULL ? -ENOMEM : 0;

    if (r == 0)
        r = draw(&picture, daemon->graph);
    free(picture.known);
    call->result = json_object_new_object();
    if (r < 0 || call->result == NULL ||
        json_add(call->result, "nodes", json_object_get(picture.nodes)) < 0 ||
        json_add(call->result, "edges", json_object_get(picture.edges)) < 0)
        r = err_no_memory(err);
    json_object_put(picture.nodes);
    json_object_put(picture.edges);
    return r;
}

const struct qmp_command commands_graph[] = {
    {.name = "x-blockdev-replace",
     .args = replace_opts,
     .args_size = sizeof(struct replace_args),
     .run = run_replace},
    {.name = "x-blockdev-drain",
     .args = drain_opts,
     .args_size = sizeof(struct drain_args),
     .run = run_drain},
    {.name = "x-debug-query-block-graph", .returns = QMP_RETURNS_VALUE, .run = run_query_graph},
    {0},
};
