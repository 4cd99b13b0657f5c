/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the overlay driver share: overlay.c has the driver's hooks, overlay_log.c
 * appends, overlay_scan.c reads what was appended, overlay_image.c has superblocks and creation,
 * overlay_generation.c empties.
 */
#ifndef BLOCKSTEP_DRIVERS_OVERLAY_INTERNAL_H
#define BLOCKSTEP_DRIVERS_OVERLAY_INTERNAL_H

#include "block/io.h"
#include "drivers/overlay.h"
#include "drivers/overlay_map.h"

/* Writes of one turn share a group up to here; a single larger write has a group of its own. */
#define OVERLAY_GROUP_SOFT_BYTES  (2u << 20)
#define OVERLAY_MAX_TRANSFER      (4u << 20)
/* Runs from this size on go to the file from where they are; smaller ones are copied together. */
#define OVERLAY_DIRECT_RUN_BYTES  (64u * 1024)
/* How far behind a bad record a later one is looked for. */
#define OVERLAY_SEARCH_BYTES      (64u << 20)
#define OVERLAY_SCAN_WINDOW_BYTES (1u << 20)
/* How much memory of a dropped index goes back at once, and how long until the next piece. */
#define OVERLAY_REAP_SLABS        8u
#define OVERLAY_REAP_PAUSE_NS     NS_PER_MS

struct overlay_append;

struct overlay {
    struct node *node;
    struct edge *file, *backing;  /* backing: may be NULL */
    struct overlay_superblock sb; /* as in the file */
    bool sb_stale;                /* the file's is another: has to be written before a record */
    uint32_t units_per_block;
    struct overlay_map *map;
    struct range_locks locks; /* of writes, in whole blocks */
    struct loop_timer reaper;

    uint64_t end_unit; /* where the next record goes */
    uint64_t sequence; /* of the last record; 0: none */
    uint64_t flushed_sequence;
    uint64_t epoch;
    struct list pending;           /* struct overlay_append */
    struct overlay_append *leader; /* who writes the next group; NULL: nobody writes */

    uint64_t newest_generation; /* of any record that was seen; 0: none newer than the image */
    struct err damage;          /* set: nothing can be read until the image is emptied */
    bool recorded;              /* the superblock follows a record */
    struct overlay_superblock before_empty; /* between empty_prepare and its end */
    bool empty_prepared;

    uint64_t written_blocks;
    uint64_t failed_groups;
};

struct overlay_run {
    uint64_t block;
    uint32_t count;
    enum overlay_entry_kind kind;
    struct buf_slice data; /* of whole blocks */
};

#define OVERLAY_APPEND_RUNS 3u

/* What one request appends, whole or not at all; on its stack. */
struct overlay_append {
    struct list_link link;
    struct overlay_run runs[OVERLAY_APPEND_RUNS];
    unsigned run_count;
    int result;
    bool done;
    struct co *co;
};

static inline uint64_t overlay_log_begin(const struct overlay_superblock *sb)
{
    return OVERLAY_LOG_OFFSET_BYTES / sb->unit_bytes;
}

static inline bool overlay_is_damaged(const struct overlay *overlay)
{
    return unlikely(err_is_set(&overlay->damage));
}

/* overlay_generation.c: the driver's hooks. */
int overlay_empty_prepare(struct node *node, struct err *err) MAY_WAIT;
void overlay_empty_commit(struct node *node);
void overlay_empty_abort(struct node *node) MAY_WAIT;

/* overlay_log.c: the blocks are in the log and in the map when this returns 0; else nothing changed. */
int overlay_append(struct overlay *overlay, struct overlay_append *append) MAY_WAIT;

/* overlay_image.c */
int overlay_superblock_load(struct edge *file, struct overlay_superblock *ret_sb, struct err *err)
    MAY_WAIT;
/* Writes `sb` over the older of the two, with the serial after that of `overlay->sb`, which becomes
 * what was written. */
int overlay_superblock_store(struct overlay *overlay, const struct overlay_superblock *sb) MAY_WAIT;

/* overlay_scan.c: fills the map, end_unit, sequence and epoch from the log. -EUCLEAN: damaged, and what
 * was filled in is of no use. */
int overlay_scan(struct overlay *overlay, struct err *err) MAY_WAIT;

#endif
