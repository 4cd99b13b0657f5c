/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who wants to know which regions of a node change (a mirror, a bitmap) puts a tracker on it. The gate
 * marks behind each write, zero and discard, whether it succeeded or not, and before the request
 * leaves its edge: who has cleared a mark and looks then, misses nothing, and behind a drain all is
 * marked.
 *
 * It sits on the node itself, so filters may come and go above it.
 */
#ifndef BLOCKSTEP_BLOCK_DIRTY_H
#define BLOCKSTEP_BLOCK_DIRTY_H

#include "base/bitmap.h"
#include "block/node.h"

struct dirty_tracker {
    struct list_link link; /* in node->trackers while it is on */
    struct node *node;
    struct bitmap *bits;
    uint64_t region_bytes; /* power of two */
    /* Optional: the first mark in an empty map. Must not wait. */
    void (*marked)(void *arg);
    void *arg;
    /* Optional: is told of each change instead of having it marked, by the request that made it and
     * before that leaves its edge. May wait, but for no closed edge: who has closed it waits for this
     * request. While it runs the tracker stays. */
    void (*changed)(struct dirty_tracker *tracker, uint64_t offset_bytes, uint64_t length_bytes);
    /* Each change ends so much later, for a tracker's owner who falls behind; it is short enough not
     * to matter to a drain. */
    uint64_t slow_ns;
};

#define DIRTY_MAX_SLOW_NS (8 * NS_PER_MS)

/* Begins with an empty map; `marked` and `arg` are the caller's. The node outlives the tracker. */
int dirty_tracker_add(struct dirty_tracker *tracker, struct node *node, uint64_t region_bytes,
                      struct err *err);
void dirty_tracker_remove(struct dirty_tracker *tracker); /* one that was never added is fine */
/* Marks whole regions; a stretch past the end is cut. */
void dirty_tracker_mark(struct dirty_tracker *tracker, uint64_t offset_bytes,
                        uint64_t length_bytes);
/* Of whole regions; the last one may be short. */
void dirty_tracker_unmark(struct dirty_tracker *tracker, uint64_t offset_bytes,
                          uint64_t length_bytes);
/* The bytes of all marked regions; the last one may be short. */
uint64_t dirty_tracker_bytes(const struct dirty_tracker *tracker);
/* Whether the gate marks in it: so it is from the beginning. */
void dirty_tracker_set_on(struct dirty_tracker *tracker, bool on);
/* Whether [offset, offset + length) begins marked, and for how many of these bytes it stays so. */
bool dirty_tracker_look(const struct dirty_tracker *tracker, uint64_t offset_bytes,
                        uint64_t length_bytes, uint64_t *ret_length_bytes);
/* Marks all that is set in `bits`, each of which stands for `region_bytes`. */
void dirty_tracker_merge(struct dirty_tracker *tracker, const struct bitmap *bits,
                         uint64_t region_bytes);
/* For who changes the node by no write (empties it, say): marks everything in the trackers of the node
 * and of all that show it. */
void dirty_mark_whole(struct node *node);

/* The gate's. Returns by how much the change shall be slowed: at most DIRTY_MAX_SLOW_NS. */
uint64_t dirty_mark_node(struct node *node, uint64_t offset_bytes, uint64_t length_bytes);
/* Tells the trackers that want to be told, behind the marks. */
void dirty_tell_node(struct node *node, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT;

#endif
