/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/dirty.h"

#include "block/internal.h"

#include <errno.h>

int dirty_tracker_add(struct dirty_tracker *tracker, struct node *node, uint64_t region_bytes,
                      struct err *err)
{
    assert(is_power_of_two(region_bytes));
    tracker->bits = bitmap_new((node_check(node)->length_bytes + region_bytes - 1) / region_bytes);
    if (tracker->bits == NULL)
        return err_no_memory(err);
    tracker->node = node;
    tracker->region_bytes = region_bytes;
    list_push_back(&node->trackers, &tracker->link);
    return 0;
}

void dirty_tracker_remove(struct dirty_tracker *tracker)
{
    if (tracker->node == NULL)
        return;
    dirty_tracker_set_on(tracker, false);
    bitmap_free(tracker->bits);
    tracker->bits = NULL;
    tracker->node = NULL;
}

void dirty_tracker_mark(struct dirty_tracker *tracker, uint64_t offset_bytes, uint64_t length_bytes)
{
    uint64_t limit_bytes = bitmap_bits(tracker->bits) * tracker->region_bytes;

    if (length_bytes == 0 || offset_bytes >= limit_bytes)
        return;
    uint64_t first = offset_bytes / tracker->region_bytes;
    uint64_t last = (offset_bytes + MIN(length_bytes, limit_bytes - offset_bytes) - 1) /
                    tracker->region_bytes;
    bool was_empty = bitmap_count(tracker->bits) == 0;
    bitmap_set_range(tracker->bits, first, last - first + 1);
    if (was_empty && tracker->marked != NULL)
        tracker->marked(tracker->arg);
}

void dirty_tracker_unmark(struct dirty_tracker *tracker, uint64_t offset_bytes,
                          uint64_t length_bytes)
{
    uint64_t region = tracker->region_bytes;
    uint64_t first = offset_bytes / region,
             end = (offset_bytes + length_bytes + region - 1) / region;

    assert(offset_bytes % region == 0);
    bitmap_clear_range(tracker->bits, first, end - first);
}

uint64_t dirty_tracker_bytes(const struct dirty_tracker *tracker)
{
    uint64_t count = bitmap_count(tracker->bits), bits = bitmap_bits(tracker->bits);
    uint64_t bytes = count * tracker->region_bytes;

    if (count > 0 && bitmap_test(tracker->bits, bits - 1))
        bytes -= bits * tracker->region_bytes -
                 MIN(tracker->node->length_bytes, bits * tracker->region_bytes);
    return bytes;
}

void dirty_tracker_set_on(struct dirty_tracker *tracker, bool on)
{
    if (on == list_linked(&tracker->link))
        return;
    if (on)
        list_push_back(&tracker->node->trackers, &tracker->link);
    else
        list_remove(&tracker->link);
}

bool dirty_tracker_look(const struct dirty_tracker *tracker, uint64_t offset_bytes,
                        uint64_t length_bytes, uint64_t *ret_length_bytes)
{
    uint64_t region = tracker->region_bytes, bit = offset_bytes / region;
    uint64_t end_bytes = offset_bytes + length_bytes;

    *ret_length_bytes = length_bytes;
    if (bit >= bitmap_bits(tracker->bits)) /* what lies past the map's end is not marked */
        return false;
    uint64_t stop = bitmap_run_end(tracker->bits, bit, (end_bytes + region - 1) / region);
    *ret_length_bytes = MIN(end_bytes, stop * region) - offset_bytes;
    return bitmap_test(tracker->bits, bit);
}

void dirty_tracker_merge(struct dirty_tracker *tracker, const struct bitmap *bits,
                         uint64_t region_bytes)
{
    uint64_t first = bitmap_next_set(bits, 0);

    while (first != BITMAP_NONE) {
        uint64_t end = MIN(bitmap_next_clear(bits, first), bitmap_bits(bits));

        dirty_tracker_mark(tracker, first * region_bytes, (end - first) * region_bytes);
        first = bitmap_next_set(bits, end);
    }
}

uint64_t dirty_mark_node(struct node *node, uint64_t offset_bytes, uint64_t length_bytes)
{
    uint64_t slow_ns = 0;

    LIST_FOR_EACH(tracker, &node->trackers, struct dirty_tracker, link) {
        if (tracker->changed == NULL)
            dirty_tracker_mark(tracker, offset_bytes, length_bytes);
        slow_ns = MAX(slow_ns, tracker->slow_ns);
    }
    return MIN(slow_ns, DIRTY_MAX_SLOW_NS);
}

static void mark_whole(struct node *node, unsigned mark)
{
    if (node->mark == mark)
        return;
    node->mark = mark;
    LIST_FOR_EACH(tracker, &node->trackers, struct dirty_tracker, link)
        dirty_tracker_mark(tracker, 0, node->length_bytes);
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        struct node *parent = edge->parent;

        /* Beside its "file" a filter has what it does not show. */
        if (parent != NULL && (!parent->driver->is_filter || parent->file == edge))
            mark_whole(parent, mark);
    }
}

void dirty_mark_whole(struct node *node)
{
    mark_whole(node, ++node->graph->mark);
}

static void call_changed(struct dirty_tracker *tracker, uint64_t offset_bytes,
                         uint64_t length_bytes) MAY_WAIT
{
    tracker->changed(tracker, offset_bytes, length_bytes);
}

void dirty_tell_node(struct node *node, uint64_t offset_bytes, uint64_t length_bytes)
{
    if (offset_bytes >= node->length_bytes)
        return;
    length_bytes = MIN(length_bytes, node->length_bytes - offset_bytes);
    LIST_FOR_EACH(tracker, &node->trackers, struct dirty_tracker, link) {
        if (tracker->changed != NULL && length_bytes > 0)
            call_changed(tracker, offset_bytes, length_bytes);
    }
}
