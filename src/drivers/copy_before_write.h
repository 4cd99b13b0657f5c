/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy-before-write: a filter above a disk that saves the old content of a block in a target before
 * the block is overwritten for the first time since the target was emptied.
 *
 * In a replication group the target (the hidden disk) is backed by the disk itself, and shows it as
 * of the last checkpoint. A reader that finds nothing in the target goes down to the disk, and must
 * not meet a block that is overwritten meanwhile: so the target's backing edge leads to a node of
 * driver `copy-before-write-access`, whose reads exclude copies of their range and look into the
 * target again.
 *
 *     export -> copy-before-write --file----------------------------> disk
 *                        \--target--> hidden --backing--> access ------^
 *
 * A target that cannot tell what it holds may be any disk of the same length: what is saved is then in a
 * map in memory, of blocks of 64 KiB at least.
 */
#ifndef BLOCKSTEP_DRIVERS_COPY_BEFORE_WRITE_H
#define BLOCKSTEP_DRIVERS_COPY_BEFORE_WRITE_H

#include "block/graph.h"

/* The first copy that failed since the filter was inserted or cbw_clear_error(). */
struct cbw_error {
    int code;     /* 0: none; else a negative errno */
    bool reading; /* old content could not be read; else it could not be saved */
    uint64_t offset_bytes, length_bytes;
    uint64_t wall_ns;
    uint64_t count; /* failed copies in all */
};

struct cbw_stats {
    uint64_t copied_bytes;
    uint64_t copies;
    uint64_t waits; /* writes and reads that had to wait for a copy or a reader of their range */
};

/* What cbw_insert() made and cbw_remove() takes away. Keeps references on the nodes. */
struct cbw {
    struct node *disk, *hidden, *filter, *access;
};

/*
 * Puts a filter above `disk`, with `hidden` (an image whose backing child is `disk`) as its target,
 * and leads hidden's backing edge to the filter's locked read path; under live I/O. All parents of
 * the disk sit on the filter afterwards. On failure nothing is left behind and *ret_cbw untouched.
 */
int cbw_insert(struct graph *graph, struct node *disk, struct node *hidden, struct cbw *ret_cbw,
               struct err *err) MAY_WAIT;
/* As above, with any target, a map in memory, and under on-cbw-error=break-snapshot. `name`: of the
 * filter; NULL: one is made up. The target may be backed by the disk, and is led past the filter then. */
int cbw_insert_with_map(struct graph *graph, struct node *disk, struct node *target,
                        const char *name, struct cbw *ret_cbw, struct err *err) MAY_WAIT;
/* Puts back what cbw_insert() changed; under live I/O. On failure the filter stays whole, `cbw` stays
 * valid, and it can be tried again. On success `cbw` is zeroed. A zeroed `cbw` is fine. */
int cbw_remove(struct graph *graph, struct cbw *cbw, struct err *err) MAY_WAIT;

/* Gives the nodes up as they stand: a filter in use stays until the graph ends. */
void cbw_abandon(struct cbw *cbw) MAY_WAIT;

/* Tells, as it happens, of every failed copy ("copy-before-write") and of every write, zero, discard or
 * flush that the disk below the filter failed ("write to the secondary disk", ...): `operation` is
 * static text, `where` the node that failed. The request ends when it returns, and it may wait. Until
 * cbw_remove(); NULL takes it back. The replication group makes its sticky error of it. */
typedef void cbw_failed(void *arg, const char *operation, const struct node *where,
                        uint64_t offset_bytes, uint64_t length_bytes, int code);
void cbw_on_failure(struct cbw *cbw, cbw_failed *failed, void *arg);

/* `filter`: a node of driver copy-before-write. Returns error.code. */
int cbw_first_error(struct node *filter, struct cbw_error *ret_error);
void cbw_clear_error(struct node *filter);
struct cbw_stats cbw_stats(struct node *filter);

/* --- for who copies ahead of the guest, and saves what no write has saved yet --- */

/* What is saved is told by the map from now on: nothing is. Before the filter has users. */
int cbw_use_map(struct node *filter, struct err *err);
/* The blocks that are not saved; who clears one says that it need not be. */
struct dirty_tracker *cbw_map(struct node *filter);
/* Why there is no snapshot any more: the copy that failed. 0: there is. */
int cbw_broken(struct node *filter, struct cbw_error *ret_error);
/* Saves what is not saved of whole blocks, at most CBW_COPY_MAX_BYTES; *ret_reading: it was the disk that
 * failed, not the target. */
#define CBW_COPY_MAX_BYTES (1u << 20)
int cbw_copy_ahead(struct node *filter, uint64_t offset_bytes, uint64_t length_bytes,
                   uint64_t *ret_copied_bytes, bool *ret_reading) MAY_WAIT;
int cbw_flush_target(struct node *filter) MAY_WAIT;

/* The disk as of when the filter came (or its target was emptied last), whatever is written meanwhile.
 * Through an edge to `filter`, whose gate the caller has entered. */
int cbw_snapshot_read(struct node *filter, const struct io *io) MAY_WAIT;
int cbw_snapshot_extents(struct node *filter, uint64_t offset_bytes, uint64_t length_bytes,
                         struct extent *ret_extent) MAY_WAIT;

extern const struct driver driver_copy_before_write;
extern const struct driver driver_copy_before_write_access;

#endif
