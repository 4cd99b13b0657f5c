/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One node: its life, its name, who uses it, and what forbids to touch it. */
#include "block/dirty_bitmap.h"
#include "block/internal.h"

#include "base/json.h"
#include "base/log.h"
#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct node *node_new(struct graph *graph, const struct driver *driver, const char *name)
{
    struct node *node = calloc(1, sizeof(*node));

    if (node == NULL)
        return NULL;
    node->state = calloc(1, MAX(driver->state_size, 1));
    node->options = calloc(1, MAX(driver->options_size, 1));
    if (node->state == NULL || node->options == NULL) {
        free(node->state);
        free(node->options);
        free(node);
        return NULL;
    }
    node->magic = NODE_MAGIC;
    node->driver = driver;
    node->graph = graph;
    snprintf(node->name, sizeof(node->name), "%s", name);
    node->limits = (struct node_limits){.request_align_bytes = 1, .memory_align_bytes = 1};
    co_queue_init(&node->gone);
    list_init(&node->children);
    list_init(&node->parents);
    list_init(&node->blockers);
    list_init(&node->trackers);
    list_init(&node->bitmaps);
    range_locks_init(&node->ranges);
    co_queue_init(&node->unlocked_done);
    list_push_back(&graph->nodes, &node->graph_link);
    graph->node_count++;
    return node;
}

void node_free(struct node *node)
{
    assert(list_empty(&node->parents));
    assert(list_empty(&node->children));
    assert(list_empty(&node->blockers));
    dirty_bitmaps_free(node);
    assert(list_empty(&node->trackers));
    assert(node->refs == 0);
    assert(node->unlocked_writes == 0);
    drains_forget_node(node);
    list_remove(&node->graph_link);
    node->graph->node_count--;
    if (node->driver->opts != NULL)
        opts_release(node->driver->opts, node->options);
    json_object_put(node->options_json);
    free(node->options);
    free(node->state);
    node->magic = 0;
    co_queue_wake_all(&node->gone);
    free(node);
}

static void call_close(struct node *node) MAY_WAIT
{
    if (node->driver->close != NULL)
        node->driver->close(node);
}

void node_close_if_unused(struct node *node)
{
    struct list_link *link;

    node_check(node);
    if (node->closing || node->named || node->refs > 0 || !list_empty(&node->parents))
        return;
    if (node->pins > 0) {
        node->close_wanted = true;
        return;
    }
    TRACE("block.node_close", "%s", node->name);
    node->closing = true;
    if (node->opened) {
        node->opened = false;
        call_close(node);
    }
    while ((link = list_first(&node->children)) != NULL)
        graph_detach(LIST_ENTRY(link, struct edge, in_parent));
    node_free(node);
}

void node_pin(struct node *node)
{
    node_check(node)->pins++;
}

void node_unpin(struct node *node)
{
    assert(node_check(node)->pins > 0);
    if (--node->pins == 0 && node->close_wanted) {
        node->close_wanted = false;
        node_close_if_unused(node);
    }
}

struct edge *node_child(struct node *node, const char *name)
{
    LIST_FOR_EACH(edge, &node_check(node)->children, struct edge, in_parent) {
        if (!edge->detaching && strcmp(edge->name, name) == 0)
            return edge;
    }
    return NULL;
}

struct node *node_ref(struct node *node)
{
    node_check(node)->refs++;
    return node;
}

void node_unref(struct node *node)
{
    if (node == NULL)
        return;
    assert(node_check(node)->refs > 0);
    if (--node->refs == 0 && node->opened)
        node_close_if_unused(node);
}

/* Parents that are no filters. */
static void tell_resized(struct edge *edge)
{
    if (edge->parent->opened && edge->parent->driver->child_resized != NULL)
        edge->parent->driver->child_resized(edge->parent, edge);
}

void node_set_length(struct node *node, uint64_t length_bytes)
{
    if (node->length_bytes == length_bytes)
        return;
    node->length_bytes = length_bytes;
    dirty_bitmaps_follow_length(node);
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge->parent == NULL) {
            if (edge->user_ops != NULL && edge->user_ops->resized != NULL)
                edge->user_ops->resized(edge);
        } else if (edge->parent->driver->is_filter && edge->parent->file == edge) {
            node_set_length(edge->parent, length_bytes);
        } else {
            tell_resized(edge);
        }
    }
}

void node_link_lost(struct node *node, int reason)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        struct node *parent = edge->parent;

        if (parent == NULL)
            continue;
        if (parent->driver->child_link_lost != NULL)
            parent->driver->child_link_lost(parent, edge, reason);
        else if (parent->driver->is_filter && parent->file == edge)
            node_link_lost(parent, reason);
    }
}

int node_usage(struct node *node, uint64_t *ret_bytes)
{
    uint64_t sum = 0;

    if (node_check(node)->driver->usage != NULL)
        return node->driver->usage(node, ret_bytes);
    if (list_empty(&node->children))
        return -ENOTSUP;
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        uint64_t bytes = 0;
        int ret = strcmp(edge->name, "backing") == 0 ? 0 : node_usage(edge->child, &bytes);

        if (ret < 0)
            return ret;
        sum += bytes;
    }
    *ret_bytes = sum;
    return 0;
}

const char *edge_describe_parent(struct edge *edge, char *text, size_t text_bytes)
{
    if (edge->parent != NULL)
        snprintf(text, text_bytes, "node '%s' (its child '%s')", edge->parent->name, edge->name);
    else if (edge->user_ops != NULL && edge->user_ops->describe != NULL)
        edge->user_ops->describe(edge, text, text_bytes);
    else
        snprintf(text, text_bytes, "%s", edge->name);
    return text;
}

void node_block(struct node *node, struct node_blocker *blocker, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    text_format(blocker->reason, sizeof(blocker->reason), fmt, args);
    va_end(args);
    list_push_back(&node_check(node)->blockers, &blocker->link);
}

void node_unblock(struct node_blocker *blocker)
{
    list_remove(&blocker->link);
}

int node_check_blocked(struct node *node, const char *operation, struct err *err)
{
    struct list_link *link = list_first(&node_check(node)->blockers);

    if (link == NULL)
        return 0;
    return err_set(err, -EBUSY, "cannot %s node '%s': %s", operation, node->name,
                   LIST_ENTRY(link, struct node_blocker, link)->reason);
}

static struct node_blocker *blocker_above(struct node *node, unsigned mark)
{
    struct list_link *link = list_first(&node_check(node)->blockers);

    if (node->mark == mark)
        return NULL;
    node->mark = mark;
    if (link != NULL)
        return LIST_ENTRY(link, struct node_blocker, link);
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        struct node_blocker *above = edge->parent != NULL ? blocker_above(edge->parent, mark)
                                                          : NULL;

        if (above != NULL)
            return above;
    }
    return NULL;
}

int node_check_blocked_above(struct node *node, const char *operation, struct err *err)
{
    const struct node_blocker *blocker = blocker_above(node, ++node->graph->mark);

    if (blocker == NULL)
        return 0;
    return err_set(err, -EBUSY, "cannot %s node '%s': %s", operation, node->name, blocker->reason);
}
