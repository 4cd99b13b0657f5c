/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Children that come and go by their parent's hooks (quorum). The parent is drained meanwhile: no
 * request is inside it, so its driver can change what it iterates over. The change lock is taken only
 * then: requests may take as long to end as a dead peer's deadline, and other changes (a failover)
 * shall go on.
 */
#include "block/internal.h"

#include <errno.h>

/* The hooks, each called in one place. */
static int call_child_name(struct node *node, char *text, size_t text_bytes, struct err *err)
    MAY_WAIT
{
    return node->driver->child_name(node, text, text_bytes, err);
}

static int call_child_added(struct node *node, struct edge *edge, struct err *err) MAY_WAIT
{
    return node->driver->child_added(node, edge, err);
}

static int call_child_removing(struct node *node, struct edge *edge, struct err *err) MAY_WAIT
{
    return node->driver->child_removing(node, edge, err);
}

int graph_child_add(struct graph *graph, struct node *parent, struct node *child, struct err *err)
{
    char name[EDGE_NAME_BYTES] = "";
    struct graph_drain drain;
    struct edge *edge = NULL;
    int ret = 0;

    node_pin(parent);
    node_pin(child);
    if (graph_drain_begin(&parent, 1, &drain) < 0)
        ret = err_no_memory(err);
    graph_change_begin(graph);
    if (ret == 0)
        ret = node_check_blocked(parent, "add a child to", err);
    if (ret == 0 && parent->driver->child_name == NULL)
        ret = err_set(err, -ENOTSUP, "node '%s' (driver '%s') takes no further children",
                      parent->name, parent->driver->name);
    if (ret == 0)
        ret = call_child_name(parent, name, sizeof(name), err);
    if (ret == 0)
        ret = graph_attach_child(graph, parent, child, name, &edge, err);
    if (ret == 0 && parent->driver->child_added != NULL) {
        ret = call_child_added(parent, edge, err);
        if (ret < 0)
            edge_detach(edge, &child);
    }
    graph_change_end(graph);
    graph_drain_end(&drain);
    node_unpin(child);
    node_unpin(parent);
    return ret;
}

int graph_child_del(struct graph *graph, struct node *parent, const char *edge_name,
                    struct err *err)
{
    struct graph_drain drain;
    struct edge *edge = NULL;
    struct node *child = NULL;
    int ret = 0;

    node_pin(parent);
    if (graph_drain_begin(&parent, 1, &drain) < 0)
        ret = err_no_memory(err);
    graph_change_begin(graph);
    if (ret == 0)
        ret = node_check_blocked(parent, "remove a child from", err);
    if (ret == 0 && parent->driver->child_removing == NULL)
        ret = err_set(err, -ENOTSUP, "children of node '%s' (driver '%s') cannot be removed",
                      parent->name, parent->driver->name);
    if (ret == 0) {
        edge = node_child(parent, edge_name);
        if (edge == NULL)
            ret = err_set(err, -ENOENT, "node '%s' has no child '%s'", parent->name, edge_name);
    }
    if (ret == 0)
        ret = call_child_removing(parent, edge, err);
    if (ret == 0)
        edge_detach(edge, &child);
    graph_change_end(graph);
    graph_drain_end(&drain);
    if (child != NULL)
        node_close_if_unused(child);
    node_unpin(parent);
    return ret;
}
