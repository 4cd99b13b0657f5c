/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where the data is, and emptying: what looks at a node's layers rather than at its bytes. */
#include "block/gate.h"

#include <errno.h>

static int call_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                        struct extent *ret_extent) MAY_WAIT
{
    if (node->driver->extents != NULL)
        return node->driver->extents(node, offset_bytes, length_bytes, ret_extent);
    if (node->driver->is_filter)
        return io_extents(node->file, offset_bytes, length_bytes, ret_extent);
    *ret_extent = (struct extent){
        .length_bytes = length_bytes, .flags = EXTENT_DATA | EXTENT_HERE, .depth = 1};
    return 0;
}

int io_extents(struct edge *edge, uint64_t offset_bytes, uint64_t length_bytes,
               struct extent *ret_extent)
{
    struct node *node;
    struct extent extent = {0};
    int ret = -EINVAL;

    co_gate_enter(&edge->gate);
    node = node_check(edge->child);
    if (length_bytes > 0 && range_fits(offset_bytes, length_bytes, node->length_bytes))
        ret = call_extents(node, offset_bytes, length_bytes, &extent);
    if (ret == 0) {
        assert(extent.length_bytes > 0);
        extent.length_bytes = MIN(extent.length_bytes, length_bytes);
        *ret_extent = extent;
    }
    co_gate_leave(&edge->gate);
    return ret;
}

/* What the node itself holds; a node without a backing child holds everything. */
static int held_here(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                     bool *ret_held, uint64_t *ret_length_bytes) MAY_WAIT
{
    struct extent extent = {0};
    int ret;

    if (node->driver->held != NULL)
        return node->driver->held(node, offset_bytes, length_bytes, ret_held, ret_length_bytes);
    if (node_child(node, "backing") == NULL) {
        *ret_held = true;
        *ret_length_bytes = length_bytes;
        return 0;
    }
    ret = call_extents(node, offset_bytes, length_bytes, &extent);
    if (ret < 0)
        return ret;
    *ret_held = (extent.flags & EXTENT_HERE) != 0 && extent.depth == 1;
    *ret_length_bytes = MIN(extent.length_bytes, length_bytes);
    return 0;
}

static int held_from(struct node *node, const struct node *base, uint64_t offset_bytes,
                     uint64_t length_bytes, bool *ret_held, uint64_t *ret_length_bytes) MAY_WAIT
{
    struct edge *backing;
    int ret;

    if (node == base) {
        *ret_held = false;
        *ret_length_bytes = length_bytes;
        return 0;
    }
    if (node->driver->is_filter)
        return io_held(node->file, base, offset_bytes, length_bytes, ret_held, ret_length_bytes);
    ret = held_here(node, offset_bytes, length_bytes, ret_held, ret_length_bytes);
    if (ret < 0 || *ret_held)
        return ret;
    backing = node_child(node, "backing");
    /* A backing image may be shorter: behind its end nothing is held. */
    if (backing == NULL || offset_bytes >= backing->child->length_bytes)
        return 0;
    length_bytes = MIN(*ret_length_bytes, backing->child->length_bytes - offset_bytes);
    return io_held(backing, base, offset_bytes, length_bytes, ret_held, ret_length_bytes);
}

int io_held(struct edge *edge, const struct node *base, uint64_t offset_bytes,
            uint64_t length_bytes, bool *ret_held, uint64_t *ret_length_bytes)
{
    struct node *node;
    bool held = false;
    uint64_t length = 0;
    int ret = -EINVAL;

    co_gate_enter(&edge->gate);
    node = node_check(edge->child);
    if (length_bytes > 0 && range_fits(offset_bytes, length_bytes, node->length_bytes))
        ret = held_from(node, base, offset_bytes, length_bytes, &held, &length);
    if (ret == 0) {
        assert(length > 0);
        assert(length <= length_bytes);
        *ret_held = held;
        *ret_length_bytes = length;
    }
    co_gate_leave(&edge->gate);
    return ret;
}

/* --- emptying --- */

static struct node *below_filter(struct node *node)
{
    if (node->driver->empty_prepare != NULL || !node->driver->is_filter)
        return NULL;
    return node->file->child;
}

bool node_can_empty(struct node *node)
{
    if (node_check(node)->driver->is_filter)
        return node_can_empty(node->file->child);
    return node->driver->empty_prepare != NULL;
}

int node_empty_prepare(struct node *node, struct err *err)
{
    struct node *below = below_filter(node_check(node));

    if (below != NULL)
        return node_empty_prepare(below, err);
    if (node->driver->empty_prepare == NULL)
        return err_set(err, -ENOTSUP, "node '%s' (driver '%s') cannot be emptied", node->name,
                       node->driver->name);
    return node->driver->empty_prepare(node, err);
}

void node_empty_commit(struct node *node)
{
    struct node *below = below_filter(node_check(node));

    if (below != NULL)
        node_empty_commit(below);
    else
        node->driver->empty_commit(node);
}

void node_empty_abort(struct node *node)
{
    struct node *below = below_filter(node_check(node));

    if (below != NULL)
        node_empty_abort(below);
    else
        node->driver->empty_abort(node);
}
