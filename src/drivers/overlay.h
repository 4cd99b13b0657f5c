/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * overlay: our copy-on-write image, for disks that are filled from empty and dropped often and at
 * once. Blocks are appended to a log, an index in memory finds them, and emptying is one small write.
 * docs/overlay-format.md describes the bytes; wire/overlay_format.h has them in C.
 */
#ifndef BLOCKSTEP_DRIVERS_OVERLAY_H
#define BLOCKSTEP_DRIVERS_OVERLAY_H

#include "block/graph.h"
#include "wire/overlay_format.h"

struct overlay_create {
    uint64_t virtual_bytes;
    uint32_t block_bytes;   /* 0: 4 KiB */
    uint32_t unit_bytes;    /* 0: 512 up to 512 GiB, else 4 KiB. What log positions count in */
    uint32_t segment_bytes; /* 0: 16 MiB. In what pieces the log's room is used again */
    uint8_t disk_id[OVERLAY_ID_BYTES]; /* all zero: not bound to a disk */
};

/* Makes an empty image at `path`. An existing file is refused (-EEXIST) unless `replace`. */
int overlay_create(struct loop *loop, const char *path, const struct overlay_create *create,
                   bool replace, struct err *err) MAY_WAIT;

/* The same in an empty file that is a node's; the edge has PERM_WRITE and PERM_RESIZE. Durable when it
 * returns. */
int overlay_create_in(struct edge *file, const struct overlay_create *create, struct err *err)
    MAY_WAIT;

/* What is in it and what that costs. Any node of driver overlay; constant time. */
struct overlay_stats {
    uint64_t held_blocks; /* data, and zeroes in short runs */
    uint64_t held_bytes;
    uint64_t zero_run_bytes; /* zeroed in long runs */
    uint64_t log_bytes;      /* of the file, from its begin to the log's end, without gaps */
    uint64_t spare_bytes;    /* of the file, free, and perhaps not given back yet; at most */
    uint64_t max_bytes;      /* of log_bytes; 0: no limit */
    uint64_t given_back_bytes, cleaned_bytes; /* since open */
    uint64_t index_bytes;                     /* memory */
    uint64_t generation;
    uint64_t epoch;
    uint64_t records; /* in the log */
    uint32_t block_bytes;
    uint64_t written_blocks; /* appended since open: held_blocks counts each block once */
    uint64_t failed_groups;
};
struct overlay_stats overlay_stats(struct node *node);
bool node_is_overlay(const struct node *node);

/* Records written from now on carry this epoch. */
void overlay_set_epoch(struct node *node, uint64_t epoch);

/*
 * For a record that decides which generation of an overlay is live. The functions below take the
 * overlay or a filter on it.
 */
struct overlay_identity {
    uint8_t image_id[OVERLAY_ID_BYTES];
    uint64_t generation;
    uint64_t next_generation; /* which the next emptying makes live */
    uint64_t epoch;
    uint64_t held_bytes; /* of one that is damaged: up to there */
    bool in_memory;      /* its file is gone when the host is */
    bool damaged;        /* opened with on-damage=hold: nothing can be read until it is emptied */
    bool tail_only; /* the damage may be what a loss of power leaves of what no flush has covered */
    char damage[ERR_TEXT_BYTES];
};
/* False: there is no overlay. */
bool overlay_identity(struct node *node, struct overlay_identity *ret_identity);
/*
 * From now on (or no longer) emptying is decided by a record: node_empty_prepare() writes nothing,
 * node_empty_commit() makes identity.next_generation live in memory, and the superblock follows: it
 * is in the file before any later save. Who empties writes the record in between.
 */
void overlay_set_recorded(struct node *node, bool recorded);
/*
 * At start, before any request: the record says that this generation is live. An older overlay counts
 * as empty and its superblock is written (what a crash left undone); a newer or a damaged one is
 * refused (-EUCLEAN). 0: whichever it has. -ENOTSUP: no overlay.
 */
int overlay_settle(struct node *node, uint64_t live_generation, struct err *err) MAY_WAIT;

/*
 * For who knows that the host has lost power: the first bad record ends the log, and what stands behind it
 * is voided. With it goes only what no flush has covered. -EUCLEAN: the damage is another one.
 */
int overlay_forget_tail(struct node *node, struct err *err) MAY_WAIT;
/*
 * For who takes what is left of a damaged image: as overlay_settle(), but the log ends before its first bad
 * record, wherever that stands, and is good from then on; and where the superblock of the live generation
 * itself is lost, it is emptied. One that is newer than the record is kept as it is. What is lost thereby
 * overlay_identity() told before.
 */
int overlay_salvage(struct node *node, uint64_t live_generation, struct err *err) MAY_WAIT;
/* The file names what is live before any record that comes: whoever flushes now, and appends then, has
 * after a loss of power an image whose tail, at worst, is damaged. Nothing for what is no overlay. */
int overlay_begin_log(struct node *node) MAY_WAIT;

/* The stretches that the image itself holds, in order, from `from_bytes` (which may lie within one)
 * on: false at the end. */
struct overlay_stretch {
    uint64_t offset_bytes, length_bytes;
    bool zero;
    uint64_t file_offset_bytes; /* data: where in the file */
};
bool overlay_next_held(struct node *node, uint64_t from_bytes, struct overlay_stretch *ret_stretch);

/*
 * For `blockstep image info`: what superblocks and log of the file at the edge say, without opening
 * it as a node. The object is for the caller; image and damage found are described in it:
 * { "format", "version", "image-id", "disk-id", "virtual-size", "block-size", "unit-size",
 *   "segment-size", "generation", "epoch", "clean" }.
 */
int overlay_info(struct edge *file, struct json_object **ret_info, struct err *err) MAY_WAIT;

/* What each of the two superblocks says: [{ "state" (good, bad, unused), "reason" of a bad one, or
 * "serial", "generation", "clean" }, ...]. */
int overlay_superblocks(struct edge *file, struct json_object **ret_list, struct err *err) MAY_WAIT;

extern const struct driver driver_overlay;

#endif
