/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mirror job: makes the target equal to the source under live I/O and keeps it so until it is
 * told to end.
 *
 * What the guest changes is marked (block/dirty.h) and copied again, in sweeps over the map. After the
 * first sweep, and when little is marked, the job is ready; a guest that rewrites faster than that
 * comes to pass is slowed for as long. From then on
 *  - cancel, not forced: holds the guest's requests, copies what is left, flushes: the target is the
 *    source as of that moment. The job succeeds.
 *  - complete: the same, and all users of the source are led to the target.
 *  - a forced cancel, and any cancel before: the target is worth nothing.
 *
 * A commit of a backing chain is the same, with the foot of the chain for a target: what the layers above
 * it hold is copied, and readers see the same at any moment.
 *
 * With write_blocking the guest's requests copy what they have changed before they end, so that nothing is
 * left behind, however fast it writes. What cannot be copied right then (somebody copies there, the target
 * is drained, the job is paused, more than MIRROR_BLOCKING_BYTES at once) is marked as ever.
 *
 * An error of the source or the target fails the job, or what could not be copied stays marked and is
 * tried again: after a pause that a user ends (stop), or a short one (ignore). The job is not ready, nor
 * does it end, before all has been copied; the guest is never held while it waits for that.
 *
 * Zeroes travel as zeroes, and only to where the target does not read as zeroes already.
 */
#ifndef BLOCKSTEP_JOBS_MIRROR_H
#define BLOCKSTEP_JOBS_MIRROR_H

#include "block/dirty_bitmap.h"
#include "jobs/job.h"

#define MIRROR_PIECE_BYTES      (1024u * 1024)
#define MIRROR_BUF_BYTES        (8u * 1024 * 1024) /* of all pieces in flight, unless told */
#define MIRROR_BUF_MAX_BYTES    (64u * 1024 * 1024)
#define MIRROR_REGION_BYTES     (64u * 1024) /* marks stand for this much, unless told */
#define MIRROR_REGION_MIN_BYTES 512u
/* So little left lets the job be ready, and may be copied while the guest is held. */
#define MIRROR_NEAR_BYTES       (16u * 1024 * 1024)
/* Larger changes are copied in the background, write_blocking or not. */
#define MIRROR_BLOCKING_BYTES   (32u * 1024 * 1024)
/* A guest that dirties faster than a copy can be made is held for the rest after so many sweeps. */
#define MIRROR_MAX_SWEEPS       16u

enum mirror_sync {
    MIRROR_SYNC_FULL,   /* all of the source */
    MIRROR_SYNC_TOP,    /* what the source holds itself, above its backing node */
    MIRROR_SYNC_NONE,   /* what is written from now on */
    MIRROR_SYNC_BITMAP, /* what `bitmap` has marked */
};

enum mirror_kind {
    MIRROR_COPY,
    /* Merges the layers of a backing chain from the source down into the target, a node below it, with
     * the guest on the source (sync must be top). */
    MIRROR_COMMIT_ACTIVE,
    /* The same where nobody writes to the source: completes by itself. */
    MIRROR_COMMIT,
};

struct mirror_options {
    enum mirror_kind kind;
    const char *id; /* of the job; NULL: one is made up */
    struct node *source, *target;
    enum mirror_sync sync;
    struct dirty_bitmap *bitmap; /* of the source; held meanwhile, and left as it is */
    uint64_t region_bytes;       /* power of two up to MIRROR_PIECE_BYTES; 0: MIRROR_REGION_BYTES */
    uint64_t buf_bytes;          /* 0: MIRROR_BUF_BYTES */
    uint64_t speed_bytes;        /* per second; 0: no limit */
    bool no_unmap;               /* zeroes on the target keep their space */
    enum job_on_error on_source_error, on_target_error;
    bool write_blocking; /* what the guest writes is on the target when its request ends */
};

/* Watches the source from now on. Refuses a target that is the source, lies below it, is of another
 * size, or is written to by others. */
int mirror_new(struct job_list *list, const struct mirror_options *options, struct job **ret_job,
               struct err *err) MAY_WAIT;

#endif
