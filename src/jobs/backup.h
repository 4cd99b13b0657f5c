/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backup job: copies the source as of the job's start to the target, under live I/O.
 *
 * A copy-before-write filter comes above the source; from then on each block is saved to the target
 * once, by the job or, before it changes, by the guest's write. When the target fails such a write's
 * copy, the job fails and the guest does not notice.
 */
#ifndef BLOCKSTEP_JOBS_BACKUP_H
#define BLOCKSTEP_JOBS_BACKUP_H

#include "block/dirty_bitmap.h"
#include "jobs/job.h"

#define BACKUP_WORKERS  8u
/* Before what has failed and is to be ignored is tried again. */
#define BACKUP_RETRY_NS (100 * NS_PER_MS)

enum backup_sync {
    BACKUP_SYNC_FULL,   /* all of the source */
    BACKUP_SYNC_TOP,    /* what the source holds itself, above its backing node */
    BACKUP_SYNC_BITMAP, /* what `bitmap` has marked */
    BACKUP_SYNC_NONE,   /* only what the guest changes; until it is cancelled */
};

/* What becomes of the bitmap: it restarts at the job's start and then ... */
enum backup_bitmap_mode {
    BACKUP_BITMAP_ON_SUCCESS, /* ... gets its marks back if the job fails */
    BACKUP_BITMAP_NEVER,      /* ... gets them back in any case */
    BACKUP_BITMAP_ALWAYS,     /* ... gets those back that were not copied */
};

struct backup_options {
    const char *id; /* of the job; NULL: one is made up */
    struct node *source, *target;
    enum backup_sync sync;
    struct dirty_bitmap *bitmap; /* NULL: none */
    enum backup_bitmap_mode bitmap_mode;
    const char *filter_name; /* NULL: one is made up */
    uint64_t speed_bytes;    /* per second; 0: no limit */
    enum job_on_error on_source_error, on_target_error;
};

/* The state that is backed up is that of the moment within this call at which the source is drained. */
int backup_new(struct job_list *list, const struct backup_options *options, struct job **ret_job,
               struct err *err) MAY_WAIT;

#endif
