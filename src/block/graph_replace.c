/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leading edges to other nodes, and changing between read-only and read-write: what needs several
 * edges empty at once. All are closed before any is waited for, so that no request is inside one of
 * them while it waits at another.
 */
#include "block/internal.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>

struct edge_set {
    struct edge **edges;
    size_t count;
};

static int edge_set_add(struct edge_set *set, struct edge *edge)
{
    struct edge **edges = realloc(set->edges, (set->count + 1) * sizeof(struct edge *));

    if (edges == NULL)
        return -ENOMEM;
    set->edges = edges;
    edges[set->count++] = edge;
    edge->refs++;
    return 0;
}

static void edge_set_close(struct edge_set *set) MAY_WAIT
{
    for (size_t i = 0; i < set->count; i++)
        edge_close(set->edges[i]);
    for (size_t i = 0; i < set->count; i++)
        edge_wait_empty(set->edges[i]);
}

static void edge_set_open(struct edge_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        edge_open(set->edges[i]);
}

static void edge_set_release(struct edge_set *set)
{
    for (size_t i = 0; i < set->count; i++)
        edge_unref(set->edges[i]);
    free(set->edges);
}

static void edge_set_lead(struct edge_set *set, struct node *child)
{
    for (size_t i = 0; i < set->count; i++) {
        struct edge *edge = set->edges[i];

        list_remove(&edge->in_child);
        edge->child = child;
        list_push_back(&child->parents, &edge->in_child);
    }
}

static int check_replacement(struct node *from, struct node *to, struct err *err)
{
    if (!node_is_usable(node_check(to)))
        return err_set(err, -ENODEV, "node '%s' is being opened or closed", to->name);
    if (from->length_bytes != to->length_bytes)
        return err_set(err, -EINVAL,
                       "node '%s' of %" PRIu64 " bytes cannot take the place of '%s' of %" PRIu64
                       " bytes",
                       to->name, to->length_bytes, from->name, from->length_bytes);
    return 0;
}

/* All edges of the set lead to `from`. */
static int edge_set_move(struct edge_set *set, struct node *from, struct node *to, struct err *err)
    MAY_WAIT
{
    int ret = 0;

    for (size_t i = 0; i < set->count && ret == 0; i++) {
        if (set->edges[i]->parent != NULL)
            ret = drains_cover_child(set->edges[i]->parent, to);
    }
    if (ret < 0)
        return err_no_memory(err);
    edge_set_close(set);
    /* It may have changed while we waited. */
    ret = check_replacement(from, to, err);
    if (ret == 0) {
        edge_set_lead(set, to);
        ret = perms_update(from->graph, err);
        if (ret < 0)
            edge_set_lead(set, from);
    }
    for (size_t i = 0; i < set->count && ret == 0; i++) {
        if (set->edges[i]->parent == NULL && drains_cover_root(set->edges[i]) < 0)
            log_warning("graph", "out of memory: a drain does not hold %s", set->edges[i]->name);
    }
    edge_set_open(set);
    if (ret == 0 && set->count > 0)
        node_close_if_unused(from); /* when its pin goes */
    return ret;
}

int graph_replace(struct edge *edge, struct node *child, struct err *err)
{
    struct graph *graph = edge->graph;
    struct edge_set set = {0};
    struct node *from;
    int ret;

    node_pin(child);
    graph_change_begin(graph);
    from = edge->child;
    node_pin(from);
    ret = check_replacement(from, child, err);
    if (ret == 0 && edge_set_add(&set, edge) < 0)
        ret = err_no_memory(err);
    if (ret == 0 && from != child)
        ret = edge_set_move(&set, from, child, err);
    edge_set_release(&set);
    graph_change_end(graph);
    node_unpin(from);
    node_unpin(child);
    return ret;
}

int graph_replace_node(struct graph *graph, struct node *from, struct node *to,
                       const struct edge *keep, struct err *err)
{
    struct edge_set set = {0};
    int ret;

    node_pin(from);
    node_pin(to);
    graph_change_begin(graph);
    ret = check_replacement(from, to, err);
    LIST_FOR_EACH(edge, &from->parents, struct edge, in_child) {
        if (ret < 0 || edge == keep || edge->detaching)
            continue;
        if (edge->parent != NULL && graph_is_below(edge->parent, to))
            continue;
        if (edge_set_add(&set, edge) < 0)
            ret = err_no_memory(err);
    }
    if (ret == 0 && from != to)
        ret = edge_set_move(&set, from, to, err);
    edge_set_release(&set);
    graph_change_end(graph);
    node_unpin(from);
    node_unpin(to);
    return ret;
}

/* --- read-only and back --- */

static int call_reopen(struct node *node, bool read_only, struct err *err) MAY_WAIT
{
    return node->driver->reopen != NULL ? node->driver->reopen(node, read_only, err) : 0;
}

static int reopen_children(struct node *node, bool read_only, struct err *err) MAY_WAIT;

/* To read-only: nobody may need more first, then the driver. To read-write: the driver first. */
static int reopen_self(struct node *node, bool read_only, struct err *err) MAY_WAIT
{
    int ret;

    if (!read_only) {
        ret = call_reopen(node, false, err);
        if (ret < 0)
            return ret;
    }
    node->read_only = read_only;
    ret = perms_update(node->graph, err);
    if (ret < 0) {
        struct err ignored = ERR_INIT;

        node->read_only = !read_only;
        if (!read_only && call_reopen(node, true, &ignored) < 0)
            log_error("graph", "%s", ignored.text);
        return ret;
    }
    if (read_only) {
        ret = call_reopen(node, true, err);
        if (ret < 0) {
            struct err ignored = ERR_INIT;

            node->read_only = false;
            if (perms_update(node->graph, &ignored) < 0)
                log_error("graph", "%s", ignored.text);
        }
    }
    return ret;
}

/* The edges above are closed and empty. */
static int reopen_empty(struct node *node, bool read_only, struct err *err) MAY_WAIT
{
    struct err ignored = ERR_INIT;
    int ret;

    if (read_only) {
        ret = reopen_self(node, true, err);
        if (ret < 0)
            return ret;
        ret = reopen_children(node, true, err);
        if (ret < 0 && reopen_self(node, false, &ignored) < 0)
            log_error("graph", "%s", ignored.text);
        return ret;
    }
    ret = reopen_children(node, false, err);
    if (ret < 0)
        return ret;
    ret = reopen_self(node, false, err);
    if (ret < 0 && reopen_children(node, true, &ignored) < 0)
        log_error("graph", "%s", ignored.text);
    return ret;
}

static int reopen_children(struct node *node, bool read_only, struct err *err)
{
    struct err ignored = ERR_INIT;

    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        int ret;

        if (!edge->child->read_only_inherited)
            continue;
        ret = graph_reopen(edge->child, read_only, err);
        if (ret == 0)
            continue;
        /* Those before it go back. */
        LIST_FOR_EACH(done, &node->children, struct edge, in_parent) {
            if (done == edge)
                break;
            if (done->child->read_only_inherited &&
                graph_reopen(done->child, !read_only, &ignored) < 0)
                log_error("graph", "%s", ignored.text);
        }
        return ret;
    }
    return 0;
}

int graph_reopen(struct node *node, bool read_only, struct err *err)
{
    struct edge_set set = {0};
    int ret = 0;

    node_pin(node);
    graph_change_begin(node->graph);
    if (node_check(node)->read_only == read_only)
        goto out;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge_set_add(&set, edge) < 0) {
            ret = err_no_memory(err);
            goto out;
        }
    }
    edge_set_close(&set);
    ret = reopen_empty(node, read_only, err);
    edge_set_open(&set);
out:
    edge_set_release(&set);
    graph_change_end(node->graph);
    node_unpin(node);
    return ret;
}
