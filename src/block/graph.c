/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The graph: finding nodes, and changing edges under live I/O. A change closes the gates of the edges
 * it moves, waits until nobody is inside, moves them, computes the permissions anew, moves them back
 * when these conflict, and opens the gates.
 */
#include "block/internal.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct graph *graph_new(struct loop *loop, const struct driver *const *drivers)
{
    struct graph *graph = calloc(1, sizeof(*graph));

    if (graph == NULL)
        return NULL;
    graph->loop = loop;
    while (graph->instance == 0)
        graph->instance = loop_random(loop);
    graph->drivers = drivers;
    list_init(&graph->nodes);
    list_init(&graph->drains);
    list_init(&graph->objects);
    co_mutex_init(&graph->change);
    return graph;
}

void graph_free(struct graph *graph)
{
    if (graph == NULL)
        return;
    assert(list_empty(&graph->drains));
    while (!list_empty(&graph->nodes)) {
        struct node *top = NULL;

        /* There are no cycles: some node has no parents. */
        LIST_FOR_EACH(node, &graph->nodes, struct node, graph_link) {
            if (list_empty(&node->parents)) {
                top = node;
                break;
            }
        }
        assert(top != NULL);
        assert(top->refs == 0);
        top->named = false;
        node_close_if_unused(top);
    }
    assert(graph->node_count == 0);
    objects_free(graph);
    buf_unref(graph->zeroes);
    free(graph);
}

struct loop *graph_loop(const struct graph *graph)
{
    return graph->loop;
}

uint64_t graph_instance(const struct graph *graph)
{
    return graph->instance;
}

void graph_set_events(struct graph *graph,
                      void (*event)(void *arg, const char *name, struct json_object *data),
                      void *arg)
{
    graph->event = event;
    graph->event_arg = arg;
}

void graph_event(struct graph *graph, const char *name, struct json_object *data)
{
    if (graph->event != NULL)
        graph->event(graph->event_arg, name, data);
    else
        json_object_put(data);
}

void graph_change_begin(struct graph *graph)
{
    if (graph->changer == NULL || graph->changer != co_self()) {
        co_mutex_lock(&graph->change);
        graph->changer = co_self();
    }
    graph->change_depth++;
}

void graph_change_end(struct graph *graph)
{
    assert(graph->changer == co_self());
    assert(graph->change_depth > 0);
    if (--graph->change_depth == 0) {
        graph->changer = NULL;
        co_mutex_unlock(&graph->change);
    }
}

struct node *graph_find(struct graph *graph, const char *node_name)
{
    LIST_FOR_EACH(node, &graph->nodes, struct node, graph_link) {
        if (node_is_usable(node) && strcmp(node->name, node_name) == 0)
            return node;
    }
    return NULL;
}

struct node *graph_next(struct graph *graph, struct node *node)
{
    struct list_link *link = node != NULL ? node->graph_link.next : graph->nodes.head.next;

    for (; link != &graph->nodes.head; link = link->next) {
        if (node_is_usable(LIST_ENTRY(link, struct node, graph_link)))
            return LIST_ENTRY(link, struct node, graph_link);
    }
    return NULL;
}

int graph_get(struct graph *graph, const char *node_name, struct node **ret_node, struct err *err)
{
    struct node *node = graph_find(graph, node_name);
    char names[256] = "";
    size_t length = 0;

    if (node != NULL) {
        *ret_node = node;
        return 0;
    }
    for (node = graph_next(graph, NULL); node != NULL; node = graph_next(graph, node)) {
        if (length + sizeof(node->name) + 8 > sizeof(names)) {
            snprintf(names + length, sizeof(names) - length, ", ...");
            break;
        }
        length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                   length > 0 ? ", " : "", node->name);
    }
    return err_set_kind(err, ERR_DEVICE_NOT_FOUND, -ENOENT, "there is no node '%s'; there are%s%s",
                        node_name, length > 0 ? ": " : " none", names);
}

static void mark_below(struct node *node, unsigned mark)
{
    if (node->mark == mark)
        return;
    node->mark = mark;
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent)
        mark_below(edge->child, mark);
}

bool graph_is_below(struct node *node, struct node *ancestor)
{
    unsigned mark = ++ancestor->graph->mark;

    mark_below(ancestor, mark);
    return node->mark == mark;
}

/* --- edges --- */

struct edge *edge_link(struct graph *graph, struct node *parent, struct node *child,
                       const char *name)
{
    struct edge *edge = calloc(1, sizeof(*edge));

    if (edge == NULL)
        return NULL;
    edge->graph = graph;
    edge->parent = parent;
    edge->child = child;
    edge->share = edge->next_share = PERM_ALL;
    edge->refs = 1;
    snprintf(edge->name, sizeof(edge->name), "%s", name);
    co_gate_init(&edge->gate);
    list_push_back(&child->parents, &edge->in_child);
    if (parent != NULL) {
        list_push_back(&parent->children, &edge->in_parent);
        if (strcmp(name, "file") == 0)
            parent->file = edge;
    }
    return edge;
}

void edge_unlink(struct edge *edge)
{
    if (edge->parent != NULL && edge->parent->file == edge)
        edge->parent->file = NULL;
    list_remove(&edge->in_parent);
    list_remove(&edge->in_child);
    edge->child = NULL;
    edge->parent = NULL;
}

void edge_unref(struct edge *edge)
{
    assert(edge->refs > 0);
    if (--edge->refs == 0)
        free(edge);
}

static int check_usable(struct node *node, struct err *err)
{
    if (node_is_usable(node_check(node)))
        return 0;
    return err_set(err, -ENODEV, "node '%s' is being %s", node->name,
                   node->closing || node->leaving ? "closed" : "opened");
}

/* The topmost of the filters that the program has put above the node. */
static struct node *stand_in_for(struct node *node)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge->parent != NULL && edge->parent->stands_in && edge->parent->file == edge)
            return stand_in_for(edge->parent);
    }
    return node;
}

int graph_attach_root(struct graph *graph, struct node *node, const char *name, unsigned need,
                      unsigned share, const struct edge_user_ops *ops, void *user,
                      struct edge **ret_edge, struct err *err)
{
    struct edge *edge;
    int ret;

    node_pin(node); /* it may be deleted while we wait for the lock */
    graph_change_begin(graph);
    ret = check_usable(node, err);
    if (ret < 0)
        goto out;
    edge = edge_link(graph, NULL, stand_in_for(node), name);
    if (edge == NULL) {
        ret = err_no_memory(err);
        goto out;
    }
    edge->need = need;
    edge->share = share;
    edge->user_ops = ops;
    edge->user = user;
    ret = perms_update(graph, err);
    if (ret == 0 && drains_cover_root(edge) < 0)
        ret = err_no_memory(err);
    if (ret < 0) {
        edge_unlink(edge);
        edge_unref(edge);
    } else {
        *ret_edge = edge;
    }
out:
    graph_change_end(graph);
    node_unpin(node);
    return ret;
}

int graph_attach_child(struct graph *graph, struct node *parent, struct node *child,
                       const char *name, struct edge **ret_edge, struct err *err)
{
    struct edge *edge;
    int ret;

    node_pin(parent);
    node_pin(child);
    graph_change_begin(graph);
    ret = check_usable(child, err);
    if (ret == 0 && node_child(parent, name) != NULL)
        ret = err_set(err, -EEXIST, "node '%s' has a child '%s' already", parent->name, name);
    if (ret == 0 && drains_cover_child(parent, child) < 0)
        ret = err_no_memory(err);
    if (ret < 0)
        goto out;
    edge = edge_link(graph, parent, child, name);
    if (edge == NULL) {
        ret = err_no_memory(err);
        goto out;
    }
    ret = perms_update(graph, err);
    if (ret < 0) {
        edge_unlink(edge);
        edge_unref(edge);
    } else {
        *ret_edge = edge;
    }
out:
    graph_change_end(graph);
    node_unpin(child);
    node_unpin(parent);
    return ret;
}

void edge_detach(struct edge *edge, struct node **ret_child)
{
    struct graph *graph = edge->graph;
    struct err err = ERR_INIT;

    edge->detaching = true;
    edge_close(edge);
    edge_wait_empty(edge);
    graph_change_begin(graph);
    assert(co_queue_empty(&edge->gate.outside));
    *ret_child = edge->child;
    edge_unlink(edge);
    /* Less is needed than before, so nothing can conflict; a driver whose needs grow when a child goes
     * keeps what it had. */
    if (perms_update(graph, &err) < 0)
        log_warning("graph", "after a detach: %s", err.text);
    graph_change_end(graph);
    edge_open(edge);
    edge_unref(edge);
}

void graph_detach(struct edge *edge)
{
    struct node *child;

    if (edge == NULL)
        return;
    edge_detach(edge, &child);
    node_close_if_unused(child);
}

int graph_set_perms(struct edge *root, unsigned need, unsigned share, struct err *err)
{
    unsigned old_need, old_share;
    int ret;

    assert(root->parent == NULL);
    graph_change_begin(root->graph);
    old_need = root->need;
    old_share = root->share;
    root->need = need;
    root->share = share;
    ret = perms_update(root->graph, err);
    if (ret < 0) {
        root->need = old_need;
        root->share = old_share;
    }
    graph_change_end(root->graph);
    return ret;
}

/* --- deletion --- */

/* Whoever wants the node gone learns of all whom to ask first. */
static int check_unused(struct node *node, struct err *err)
{
    char users[sizeof(err->text) - 64] = "", user[EDGE_PARENT_TEXT_BYTES];
    size_t length = 0;

    if (list_empty(&node->parents))
        return 0;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        edge_describe_parent(edge, user, sizeof(user));
        if (length + strlen(user) + sizeof(", ...") > sizeof(users)) {
            snprintf(users + length, sizeof(users) - length, ", ...");
            break;
        }
        length += (size_t)snprintf(users + length, sizeof(users) - length, "%s%s",
                                   length > 0 ? ", " : "", user);
    }
    return err_set(err, -EBUSY, "node '%s' is in use by %s", node->name, users);
}

int graph_del(struct graph *graph, const char *node_name, struct err *err)
{
    struct node *node = NULL;
    bool waits;
    int ret;

    graph_change_begin(graph);
    ret = graph_get(graph, node_name, &node, err);
    if (ret == 0)
        ret = node_check_blocked(node, "delete", err);
    if (ret == 0)
        ret = check_unused(node, err);
    if (ret == 0) {
        node->named = false;
        /* Nobody has a pin for long: they are of changes and drains. */
        node->leaving = node->refs == 0 && node->pins > 0;
    }
    graph_change_end(graph);
    if (ret < 0)
        return ret;
    /* Who waits for the lock may be who keeps it. */
    waits = node->leaving && graph->changer != co_self();
    node_close_if_unused(node);
    if (waits)
        co_queue_wait(&node->gone);
    return 0;
}
