/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The commit job: merges the upper layers of a backing chain into the disk at its foot, under live
 * I/O.
 *
 * It copies what the layers hold, in large pieces, several in flight; zeroes travel as zeroes. What
 * the guest rewrites meanwhile is copied again, from a map that the guest's writes mark, until
 * nothing is left; the last of it under a hold of the guest's writes.
 *
 * Restartable: it changes nothing but the foot, and only to what the chain shows. Interrupted at any
 * point and begun anew, it ends with the same bytes.
 */
#ifndef BLOCKSTEP_JOBS_COMMIT_H
#define BLOCKSTEP_JOBS_COMMIT_H

#include "base/bitmap.h"
#include "jobs/job.h"

#define COMMIT_PIECE_BYTES (1024u * 1024)
#define COMMIT_WORKERS     4u

struct commit_options {
    const char *id;    /* of the job; NULL: one is made up */
    struct edge *from; /* to the top of the chain; the caller's, as all here */
    struct edge *to;   /* to the foot, past whatever watches writes to it */
    /* What the chain ends above, the filters over the foot included; asked again and again. */
    const struct node *(*base)(void *arg);
    /* The guest's writes hold their regions exclusively, and mark those that they change in what the
     * layers hold. */
    struct range_locks *locks;
    struct bitmap *rewritten;
    uint64_t region_bytes; /* power of two, at most COMMIT_PIECE_BYTES */

    /* Before anything is looked at: waits for guest writes that began before they held and marked
     * regions. */
    void (*begin)(void *arg);
    /* All have been copied once: from now on the guest's writes to held blocks shall reach the foot
     * too, as far as they can, so that the map only empties. Must not wait. */
    void (*copied)(void *arg);
    /* Waits until no guest request is inside and keeps new ones out. */
    int (*hold)(void *arg, struct err *err);
    /* Under the hold: the foot has all, durably. Makes it the truth. */
    int (*finish)(void *arg, struct err *err);
    void (*release)(void *arg);
    void *arg;
    /* Tells where a failure happened; may be NULL. Must not wait. */
    void (*failed)(void *arg, const struct node *where, uint64_t offset_bytes,
                   uint64_t length_bytes, int code);
};

/* All that the options point to outlives the job. */
int commit_new(struct job_list *list, const struct commit_options *options, struct job **ret_job,
               struct err *err);

#endif
