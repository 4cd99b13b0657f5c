/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Holding requests at the roots. A drain is the set of roots above some nodes, all closed first and
 * then waited for. Only roots are closed, since whole requests shall end: one that has entered goes
 * through open edges down to the disks.
 *
 * While a drain stands the graph may change. Before a change brings a held node below further roots,
 * these are held too; the graph's change lock is what makes that set complete.
 */
#include "block/internal.h"

#include <errno.h>
#include <string.h>

static bool closed_above(struct node *node, unsigned mark)
{
    if (node->mark == mark)
        return false;
    node->mark = mark;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge->gate.closed > 0 || edge->hurried ||
            (edge->parent != NULL && closed_above(edge->parent, mark)))
            return true;
    }
    return false;
}

bool node_is_draining(struct node *node)
{
    return node_check(node)->graph->hurried || closed_above(node, ++node->graph->mark);
}

static void drain_below(struct node *node, unsigned mark)
{
    if (node->mark == mark)
        return;
    node->mark = mark;
    if (node->driver->drain != NULL && node->opened)
        node->driver->drain(node);
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent)
        drain_below(edge->child, mark);
}

void graph_hurry(struct edge *root, bool hurried)
{
    root->hurried = hurried;
    if (hurried)
        drain_below(root->child, ++root->graph->mark);
}

void graph_hurry_all(struct graph *graph)
{
    unsigned mark = ++graph->mark;

    graph->hurried = true;
    LIST_FOR_EACH(node, &graph->nodes, struct node, graph_link)
        drain_below(node, mark);
}

void edge_close(struct edge *edge)
{
    if (edge->gate.closed == 0)
        edge->closed_ns = loop_clock_ns(edge->graph->loop);
    co_gate_close(&edge->gate);
}

void edge_open(struct edge *edge)
{
    struct graph_holds *holds = &edge->graph->holds;
    uint64_t held_ns;

    co_gate_open(&edge->gate);
    /* Nobody waits at one that is being detached. */
    if (edge->gate.closed > 0 || edge->detaching)
        return;
    held_ns = loop_clock_ns(edge->graph->loop) - edge->closed_ns;
    holds->count++;
    holds->total_ns += held_ns;
    holds->longest_ns = MAX(holds->longest_ns, held_ns);
    holds->long_count += held_ns > GRAPH_LONG_HOLD_NS;
}

struct graph_holds graph_holds(const struct graph *graph)
{
    return graph->holds;
}

void edge_wait_empty(struct edge *edge)
{
    if (edge->gate.inside > 0)
        drain_below(edge->child, ++edge->child->graph->mark);
    co_gate_wait_empty(&edge->gate);
}

static bool drain_has_edge(const struct graph_drain *drain, const struct edge *edge)
{
    for (size_t i = 0; i < drain->count; i++) {
        if (drain->edges[i] == edge)
            return true;
    }
    return false;
}

static int drain_add_edge(struct graph_drain *drain, struct edge *edge)
{
    struct edge **edges = realloc(drain->edges, (drain->count + 1) * sizeof(struct edge *));

    if (edges == NULL)
        return -ENOMEM;
    drain->edges = edges;
    edges[drain->count++] = edge;
    edge->refs++;
    edge_close(edge);
    return 0;
}

/* Marks are numbers of passes, so that no pass has to clear them. */
static int drain_add_roots_above(struct graph_drain *drain, struct node *node, unsigned mark)
{
    if (node->mark == mark)
        return 0;
    node->mark = mark;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        int ret = 0;

        if (edge->parent != NULL)
            ret = drain_add_roots_above(drain, edge->parent, mark);
        else if (edge != drain->keep && !drain_has_edge(drain, edge))
            ret = drain_add_edge(drain, edge);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void drain_release(struct graph_drain *drain)
{
    if (drain->graph == NULL)
        return;
    list_remove(&drain->link);
    for (size_t i = 0; i < drain->count; i++) {
        edge_open(drain->edges[i]);
        edge_unref(drain->edges[i]);
    }
    free(drain->edges);
    free(drain->nodes);
    memset(drain, 0, sizeof(*drain));
}

int graph_drain_begin(struct node *const *nodes, size_t count, struct graph_drain *drain)
{
    return graph_drain_begin_keeping(nodes, count, NULL, drain);
}

int graph_drain_begin_keeping(struct node *const *nodes, size_t count, const struct edge *keep,
                              struct graph_drain *drain)
{
    struct graph *graph = count > 0 ? nodes[0]->graph : NULL;
    int ret = 0;

    memset(drain, 0, sizeof(*drain));
    if (graph == NULL)
        return 0;
    drain->nodes = calloc(count, sizeof(struct node *));
    if (drain->nodes == NULL)
        return -ENOMEM;
    memcpy(drain->nodes, nodes, count * sizeof(struct node *));
    drain->node_count = count;
    drain->graph = graph;
    drain->keep = keep;

    for (size_t i = 0; i < count; i++)
        node_pin(nodes[i]);
    graph_change_begin(graph);
    list_push_back(&graph->drains, &drain->link);
    graph->mark++;
    for (size_t i = 0; i < count && ret == 0; i++)
        ret = drain_add_roots_above(drain, node_check(nodes[i]), graph->mark);
    graph_change_end(graph);
    if (ret < 0)
        drain_release(drain);
    /* Changes that bring further roots meanwhile wait for these themselves. Nobody waits for requests
     * with the change lock in hand who need not: some end only at a dead peer's deadline. */
    for (size_t i = 0; i < drain->count; i++)
        edge_wait_empty(drain->edges[i]);
    for (size_t i = 0; i < count; i++)
        node_unpin(nodes[i]);
    return ret;
}

static void collect_below(struct node *node, unsigned mark, struct node **nodes, size_t *count)
{
    if (node->mark == mark)
        return;
    node->mark = mark;
    nodes[(*count)++] = node;
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent)
        collect_below(edge->child, mark, nodes, count);
}

int graph_drain_begin_subtree(struct node *node, struct graph_drain *drain)
{
    struct graph *graph = node_check(node)->graph;
    struct node **nodes = calloc(graph->node_count, sizeof(struct node *));
    size_t count = 0;
    int ret;

    memset(drain, 0, sizeof(*drain));
    if (nodes == NULL)
        return -ENOMEM;
    collect_below(node, ++graph->mark, nodes, &count);
    ret = graph_drain_begin(nodes, count, drain);
    free(nodes);
    return ret;
}

void graph_drain_end(struct graph_drain *drain)
{
    drain_release(drain);
}

static bool drain_covers(const struct graph_drain *drain, struct node *child)
{
    for (size_t i = 0; i < drain->node_count; i++) {
        if (drain->nodes[i] != NULL && graph_is_below(drain->nodes[i], child))
            return true;
    }
    return false;
}

int drains_cover_child(struct node *parent, struct node *child)
{
    struct graph *graph = child->graph;
    struct graph_drain above = {.graph = graph};
    bool covered = false;
    int ret = 0;

    LIST_FOR_EACH(drain, &graph->drains, struct graph_drain, link) {
        if (!drain_covers(drain, child))
            continue;
        covered = true;
        ret = drain_add_roots_above(drain, parent, ++graph->mark);
        if (ret < 0)
            return ret;
    }
    if (!covered)
        return 0;
    /* A set of our own to wait with: the drains may end meanwhile. */
    ret = drain_add_roots_above(&above, parent, ++graph->mark);
    for (size_t i = 0; i < above.count && ret == 0; i++)
        edge_wait_empty(above.edges[i]);
    drain_release(&above);
    return ret;
}

int drains_cover_root(struct edge *root)
{
    LIST_FOR_EACH(drain, &root->graph->drains, struct graph_drain, link) {
        if (root == drain->keep || drain_has_edge(drain, root) || !drain_covers(drain, root->child))
            continue;
        if (drain_add_edge(drain, root) < 0)
            return -ENOMEM;
    }
    return 0;
}

void drains_forget_node(struct node *node)
{
    LIST_FOR_EACH(drain, &node->graph->drains, struct graph_drain, link) {
        for (size_t i = 0; i < drain->node_count; i++) {
            if (drain->nodes[i] == node)
                drain->nodes[i] = NULL;
        }
    }
}
