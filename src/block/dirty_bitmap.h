/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bitmaps that users put on a node by name: which regions have changed since. They live in memory and go
 * with their node. Who backs up by one, or shows it to clients, holds it, and nobody else does meanwhile.
 */
#ifndef BLOCKSTEP_BLOCK_DIRTY_BITMAP_H
#define BLOCKSTEP_BLOCK_DIRTY_BITMAP_H

#include "block/dirty.h"

#define DIRTY_BITMAP_NAME_MAX_BYTES   1023u
#define DIRTY_BITMAP_REGION_MIN_BYTES 512u
#define DIRTY_BITMAP_MAX_BITS         (UINT64_C(1) << 32)
#define DIRTY_BITMAPS_MAX             64u /* of one node */

struct dirty_bitmap {
    struct list_link link;
    struct dirty_tracker tracker; /* on while the bitmap is enabled */
    char *name;
    bool enabled;
    bool busy;         /* somebody holds it */
    bool inconsistent; /* has missed changes: good for nothing but removal */
};

/* `region_bytes` 0: as large as the node's blocks, within 4 KiB and 64 KiB. */
int dirty_bitmap_add(struct node *node, const char *name, uint64_t region_bytes, bool enabled,
                     struct dirty_bitmap **ret_bitmap, struct err *err);
void dirty_bitmap_remove(struct dirty_bitmap *bitmap);
struct dirty_bitmap *dirty_bitmap_find(struct node *node, const char *name); /* NULL: none */
/* As above, with an error that says what is missing. */
int dirty_bitmap_get(struct node *node, const char *name, struct dirty_bitmap **ret_bitmap,
                     struct err *err);
/* Refuses a busy or inconsistent bitmap. */
int dirty_bitmap_check(const struct dirty_bitmap *bitmap, struct err *err);
/* Makes it busy and keeps its node, and takes that back. */
void dirty_bitmap_hold(struct dirty_bitmap *bitmap);
void dirty_bitmap_release(struct dirty_bitmap *bitmap) MAY_WAIT;

void dirty_bitmap_enable(struct dirty_bitmap *bitmap, bool enabled);
void dirty_bitmap_clear(struct dirty_bitmap *bitmap);
/* What the bitmap has marked becomes the caller's, in regions of tracker.region_bytes; it begins anew,
 * empty. NULL when memory is out. dirty_tracker_merge() gives back. */
struct bitmap *dirty_bitmap_take(struct dirty_bitmap *bitmap);

/* The node's own. */
void dirty_bitmaps_free(struct node *node);
/* What the node has now more than before is not marked. */
void dirty_bitmaps_follow_length(struct node *node);

#endif
