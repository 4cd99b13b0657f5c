/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the overlay driver share: overlay.c has the driver's hooks, overlay_log.c
 * appends, overlay_scan.c reads what was appended, overlay_image.c has superblocks and creation,
 * overlay_generation.c empties, overlay_space.c has the file's segments and the work beside requests,
 * overlay_clean.c makes a log shorter.
 */
#ifndef BLOCKSTEP_DRIVERS_OVERLAY_INTERNAL_H
#define BLOCKSTEP_DRIVERS_OVERLAY_INTERNAL_H

#include "base/bitmap.h"
#include "block/io.h"
#include "drivers/overlay.h"
#include "drivers/overlay_map.h"
#include "loop/co_sync.h"

/* Runs from this size on go to the file from where they are; smaller ones are copied together. */
#define OVERLAY_DIRECT_RUN_BYTES  (64u * 1024)
#define OVERLAY_SCAN_WINDOW_BYTES (1u << 20)
/* How much memory of a dropped index goes back at once, and how long until the next piece. */
#define OVERLAY_REAP_SLABS        8u
#define OVERLAY_REAP_PAUSE_NS     NS_PER_MS

/* As many segments as the generation before took stay allocated for so long after an emptying. */
#define OVERLAY_KEEP_NS             (2 * NS_PER_S)
/* What else is free goes back to the file system at this rate: 400 MiB/s. */
#define OVERLAY_PUNCH_BYTES         (4u << 20)
#define OVERLAY_PUNCH_PAUSE_NS      (10 * NS_PER_MS)
/* A superblock that is due and that no save has written meanwhile. */
#define OVERLAY_SUPERBLOCK_DUE_NS   (100 * NS_PER_MS)
/* A timer that fires by then fires in the next turns. */
#define OVERLAY_SOON_NS             NS_PER_MS
/* After a failure of the work beside requests. */
#define OVERLAY_RETRY_NS            NS_PER_S
/* A log of so many segments, and twice what it holds, is made shorter. At twice as many, and three
 * times what it holds, writes wait for that. */
#define OVERLAY_CLEAN_SEGMENTS      4u
/* Of the option max-bytes: from here on it is said that the image is nearly full. */
#define OVERLAY_NEARLY_FULL_PERCENT 90u

struct overlay_append;

/*
 * The file's segments. Each is part of the log, or spare (free, and it may take room in the file), or
 * neither. Spare ones are used again first.
 */
struct overlay_space {
    struct bitmap *used, *spare;
    uint64_t max_bytes;     /* of the log; 0: no limit */
    uint64_t keep_segments; /* this many, used or spare, stay allocated ... */
    uint64_t keep_until_ns; /* ... until then */
    uint64_t punch_segment; /* which is being given back; BITMAP_NONE: none */
    uint64_t given_back_bytes, cleaned_segments;
    bool told;         /* that it is nearly full */
    bool clean_failed; /* the log has damage that only emptying takes away */
};

/* Work beside the requests: one coroutine, while there is any. */
struct overlay_worker {
    struct loop_timer timer; /* spawns it */
    bool running;
    bool stopping;           /* the image is being closed */
    bool busy;               /* it appends, or writes a superblock */
    unsigned paused;         /* by emptying: it must not become busy */
    struct co_queue changed; /* any of these */
};

struct overlay {
    struct node *node;
    struct edge *file, *backing;  /* backing: may be NULL */
    struct overlay_superblock sb; /* as in the file */
    bool sb_stale;                /* the file's is another: has to be written before a record */
    uint32_t units_per_block;
    struct overlay_map *map;
    struct range_locks locks; /* of writes, in whole blocks */
    struct loop_timer reaper;
    struct overlay_space space;
    struct overlay_worker worker;
    struct co_mutex sb_lock; /* of writing a superblock */

    uint64_t end_unit; /* where the next record goes */
    uint64_t sequence; /* of the last record; 0: none */
    uint64_t flushed_sequence;
    uint64_t epoch;
    struct list pending;           /* struct overlay_append */
    struct overlay_append *leader; /* who writes the next group; NULL: nobody writes */

    uint64_t newest_generation; /* of any record that was seen; 0: none newer than the image */
    struct err damage;          /* set: nothing can be read until the image is emptied */
    bool tail_only;             /* the damage: no record says that what is bad had been flushed */
    bool recorded;              /* the superblock follows a record */
    struct overlay_superblock before_empty; /* between empty_prepare and its end */
    bool empty_prepared;

    /* What the log's entries name: a run of zeroes in the map's long form counts as one. More than
     * the map holds: some of it is superseded. */
    uint64_t log_blocks;
    uint64_t written_blocks;
    uint64_t failed_groups;
};

struct overlay_run {
    uint64_t block;
    uint32_t count;
    enum overlay_entry_kind kind;
    struct buf_slice data; /* of whole blocks */
};

/* What one request appends, whole or not at all; on its stack. At most a group's worth. */
struct overlay_append {
    struct list_link link;
    const struct overlay_run *runs;
    unsigned run_count;
    int result;
    bool done;
    struct co *co;
};

/* Of one request, and of the requests that share a group. */
static inline uint32_t overlay_max_transfer_bytes(const struct overlay *overlay)
{
    return overlay->sb.segment_bytes / 8;
}

static inline uint64_t overlay_entry_weight(const struct overlay_entry *entry)
{
    return entry->kind == OVERLAY_ENTRY_ZERO && entry->count >= OVERLAY_MAP_LONG_RUN ? 1
                                                                                     : entry->count;
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

/* overlay_space.c */
int overlay_space_init(struct overlay *overlay, uint64_t max_bytes);
void overlay_space_free(struct overlay *overlay);
/* A segment for the log: spare ones first. BITMAP_NONE: no more can be named. */
uint64_t overlay_space_take(struct overlay *overlay);
void overlay_space_give(struct overlay *overlay, uint64_t segment);
/* All that the log had is free, save the first segment. Costs by the segment. */
void overlay_space_drop(struct overlay *overlay);
/* What the file has beyond the log, of earlier generations or a killed daemon. */
void overlay_space_find_spare(struct overlay *overlay);
/* From the file's begin to the log's end, without what is free in between. */
uint64_t overlay_space_log_bytes(const struct overlay *overlay);
uint64_t overlay_space_spare_bytes(const struct overlay *overlay);
/* Whether a group may be appended, by max-bytes; tells once that it is nearly full. */
bool overlay_space_has_room(struct overlay *overlay, uint64_t group_units);
void overlay_space_watch(struct overlay *overlay);

/* The worker runs once the delay has passed, or is running. */
void overlay_worker_wake(struct overlay *overlay, uint64_t delay_ns);
/* It runs, or will soon. */
bool overlay_worker_is_at_it(const struct overlay *overlay);
/* Waits until it is not busy, and keeps it so until overlay_worker_resume(). */
void overlay_worker_pause(struct overlay *overlay) MAY_WAIT;
void overlay_worker_resume(struct overlay *overlay);
void overlay_worker_stop(struct overlay *overlay) MAY_WAIT; /* for good */
/* For its own steps: false when it has to end. */
bool overlay_worker_begin(struct overlay *overlay) MAY_WAIT;
void overlay_worker_end(struct overlay *overlay);

/* overlay_clean.c */
bool overlay_clean_wanted(const struct overlay *overlay);
/* Before a write: while the log grows faster than it can be made shorter, writes wait. Not when that
 * fails, and not when somebody waits for the write. */
void overlay_clean_wait(struct overlay *overlay) MAY_WAIT;
/* Appends again what is live in the log's first segment, and begins the log behind it. For the
 * worker. */
int overlay_clean(struct overlay *overlay) MAY_WAIT;

/* overlay_image.c */
#define OVERLAY_ID_TEXT_BYTES (2 * OVERLAY_ID_BYTES + 1)
void overlay_id_format(const uint8_t id[OVERLAY_ID_BYTES], char text[OVERLAY_ID_TEXT_BYTES]);
int overlay_superblock_load(struct edge *file, struct overlay_superblock *ret_sb, struct err *err)
    MAY_WAIT;
/* Writes `sb` over the older of the two, with the serial after that of `overlay->sb`, which becomes
 * what was written. Nobody else may be about it: see sb_lock. */
int overlay_superblock_store(struct overlay *overlay, const struct overlay_superblock *sb) MAY_WAIT;
/* Writes what `overlay->sb` says, without "clean", unless it is in the file by now. */
int overlay_superblock_refresh(struct overlay *overlay) MAY_WAIT;

/* overlay_scan.c: fills the map, end_unit, sequence and epoch from the log. -EUCLEAN: damaged, and what
 * was filled in is of no use, unless `tail_only` is set. */
int overlay_scan(struct overlay *overlay, struct err *err) MAY_WAIT;

#endif
