/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Children that come and go by their parent's hooks (quorum). The parent is held meanwhile: no request
 * is inside it, so its driver can change what it iterates over.
 */
#include "block/internal.h"

#include <errno.h>

/* Those who enter the node and are not in the set yet. */
static int hold_new_parents(struct node *node, struct edge_set *held)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        bool known = false;

        for (size_t i = 0; i < held->count && !known; i++)
            known = held->edges[i] == edge;
        if (known)
            continue;
        if (edge_set_add(held, edge) < 0)
            return -ENOMEM;
        co_gate_close(&edge->gate);
    }
    return 0;
}

/*
 * With the change lock held when it returns. It is not held while requests end, which may take as
 * long as a dead peer's deadline: other changes (a failover) go on, and may bring further parents.
 */
static int hold_node(struct node *node, struct edge_set *held, struct err *err) MAY_WAIT
{
    struct graph *graph = node->graph;
    size_t emptied = 0;
    int ret;

    graph_change_begin(graph);
    for (;;) {
        ret = hold_new_parents(node, held);
        if (ret < 0)
            return err_no_memory(err);
        if (emptied == held->count)
            return 0;
        graph_change_end(graph);
        for (; emptied < held->count; emptied++)
            co_gate_wait_empty(&held->edges[emptied]->gate);
        graph_change_begin(graph);
    }
}

static void release_node(struct node *node, struct edge_set *held)
{
    graph_change_end(node->graph);
    edge_set_open(held);
    edge_set_release(held);
}

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
    struct edge_set held = {0};
    struct edge *edge = NULL;
    int ret;

    node_ref(parent);
    node_ref(child);
    ret = hold_node(parent, &held, err);
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
    release_node(parent, &held);
    node_unref(child);
    node_unref(parent);
    return ret;
}

int graph_child_del(struct graph *graph, struct node *parent, const char *edge_name,
                    struct err *err)
{
    struct edge_set held = {0};
    struct edge *edge = NULL;
    struct node *child = NULL;
    int ret;

    node_ref(parent);
    ret = hold_node(parent, &held, err);
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
    release_node(parent, &held);
    if (child != NULL)
        node_close_if_unused(child);
    node_unref(parent);
    return ret;
}
