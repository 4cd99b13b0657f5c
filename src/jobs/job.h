/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Jobs: long work beside live I/O. A job is one coroutine with progress, a speed limit, pause,
 * cancel and one result, kept in its list until it is dismissed (at once, by default).
 *
 * States, verbs and events are those of QMP's query-jobs: JOB_STATUS_CHANGE for every change, and, of
 * jobs that are block jobs, BLOCK_JOB_COMPLETED, BLOCK_JOB_CANCELLED, BLOCK_JOB_ERROR, BLOCK_JOB_READY
 * and BLOCK_JOB_PENDING. Events go through graph_event().
 *
 *     created -> running <-> paused
 *                  |  \-> ready <-> standby
 *                  v         v
 *               waiting -> pending -> concluded -> null
 *     a failure, or a cancel: aborting -> concluded -> null
 */
#ifndef BLOCKSTEP_JOBS_JOB_H
#define BLOCKSTEP_JOBS_JOB_H

#include "block/graph.h"

#define JOBS_MAX     64u
#define JOB_ID_BYTES 64u

enum job_status {
    JOB_UNDEFINED, /* never seen from outside */
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY, /* paused while ready */
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL, /* gone */
};
const char *job_status_name(enum job_status status);

/* What a block job does about an error of its source or its target. */
enum job_on_error {
    JOB_ON_ERROR_REPORT, /* fails */
    JOB_ON_ERROR_IGNORE, /* goes on, and tries again */
    JOB_ON_ERROR_ENOSPC, /* stops where space is out, else fails */
    JOB_ON_ERROR_STOP,   /* pauses until it is resumed, and tries again */
    JOB_ON_ERROR_AUTO,   /* as enospc */
};
extern const char *const job_on_error_names[]; /* NULL-terminated, for option tables */

struct job;

struct job_list {
    struct graph *graph;
    struct list jobs; /* in the order of creation */
    unsigned count;
    struct co_queue changed;
};

struct job_driver {
    const char *type;  /* "commit", "mirror", "backup", "create" */
    bool not_block;    /* not shown by query-block-jobs, and without BLOCK_JOB_* events */
    size_t state_size; /* zeroed; job->state */
    /* The work: 0 or -errno, with a text in job->err where there is more to say than the errno. It
     * calls job_pause_point() between pieces and ends with its result when that is not 0. Who changes
     * the graph at its end calls job_await_finalize() before. */
    int (*run)(struct job *job);
    /* Called by job-complete on a ready job; NULL: the job cannot be completed by hand. */
    int (*complete)(struct job *job, struct err *err);
    /* Brings done_bytes and total_bytes up to date before they are shown; may be missing. Must not wait. */
    void (*count)(struct job *job);
    /* After the run, before the job is concluded: gives up edges and memory. May wait. */
    void (*clean)(struct job *job);
    /* A cancel of a ready job that is not forced ends it as a success with what it has made so far
     * (mirror): job->kept tells. */
    bool keeps_copy_on_cancel;
};

struct job {
    struct list_link link;
    struct job_list *list;
    const struct job_driver *driver;
    char id[JOB_ID_BYTES];
    void *state;
    enum job_status status;
    unsigned refs;
    unsigned pauses;
    bool user_paused;
    bool cancelled;   /* by a user */
    bool kept;        /* by a user: end now, keep what there is */
    bool interrupted; /* by the end of the daemon: what it did stays, a later one goes on */
    bool auto_finalize, auto_dismiss;
    bool finalize;  /* by a user: the end may take effect */
    bool finalized; /* it has been awaited */
    int io_error;   /* that it stopped for; 0: none */
    bool running;   /* the coroutine exists */
    struct co *co;
    struct co_queue changed;
    int result;
    struct err err; /* of a failure */
    uint64_t done_bytes, total_bytes;
    uint64_t speed_bytes; /* per second; 0: no limit */
    uint64_t slice_start_ns, slice_bytes;
    uint64_t started_ns;
    /* Tells whoever made the job. Called once, when the job is concluded; may wait. */
    void (*ended)(struct job *job, void *arg);
    void *ended_arg;
};

void job_list_init(struct job_list *list, struct graph *graph);
/* Interrupts all jobs and waits until they have ended. */
void job_list_end(struct job_list *list) MAY_WAIT;
/* In the order of creation; NULL begins and ends. */
struct job *job_next(struct job_list *list, struct job *job);
struct job *job_find(struct job_list *list, const char *id); /* NULL: none */

/* `id` NULL: one is made up. The job belongs to the list; `created` until job_start(). */
int job_new(struct job_list *list, const struct job_driver *driver, const char *id,
            struct job **ret_job, struct err *err);
/* A job that was never started goes, with its driver's clean, and without a trace. */
void job_drop(struct job *job) MAY_WAIT;
/* What cannot be started is dropped. */
int job_start(struct job *job, struct err *err) MAY_WAIT;
struct job *job_ref(struct job *job);
void job_unref(struct job *job); /* NULL is fine */

/* --- the control protocol's verbs; all are for any job in the list --- */
int job_pause(struct job *job, struct err *err);
int job_resume(struct job *job, struct err *err);
/* Asks; job_wait() tells when it has ended. `force`: also where a completion would be possible. */
int job_cancel(struct job *job, bool force, struct err *err) MAY_WAIT;
int job_complete(struct job *job, struct err *err) MAY_WAIT;
/* Lets a pending job, which does not finalize by itself, take effect. */
int job_finalize(struct job *job, struct err *err);
int job_dismiss(struct job *job, struct err *err);
int job_set_speed(struct job *job, uint64_t bytes_per_second, struct err *err);
/* The daemon ends: as cancel, but the job knows. */
void job_interrupt(struct job *job);
/* Until concluded, and whoever made it has been told; its result. The caller holds a reference. */
int job_wait(struct job *job) MAY_WAIT;

/* --- for the drivers --- */
/* Waits while paused; -ECANCELED when the job shall end. */
int job_pause_point(struct job *job) MAY_WAIT;
/* As above, and waits as the speed limit wants it after another `bytes`. */
int job_throttle(struct job *job, uint64_t bytes) MAY_WAIT;
/* Runs `work` in up to `count` coroutines called `name`, and waits for all: 0, or what the first that
 * failed returned. Where memory is short fewer do it, and without any it is -ENOMEM; 0 are done at
 * once. What they share is the driver's affair. */
int job_run_workers(struct job *job, const char *name, uint64_t count, int (*work)(struct job *job))
    MAY_WAIT;
void job_set_ready(struct job *job);
/* All is done but what takes effect at the end: pending, and unless it finalizes by itself it waits to
 * be told to. -ECANCELED: it shall not take effect. Later calls do nothing. */
int job_await_finalize(struct job *job) MAY_WAIT;
/* BLOCK_JOB_ERROR: a read or a write failed, and that ends the job. */
void job_report_error(struct job *job, bool reading);
/* The same, and what comes of it: 0, try again behind the next pause point; else `code`. */
int job_handle_error(struct job *job, enum job_on_error on_error, bool reading, int code);
bool job_should_end(const struct job *job);
/* Bytes per second since the start of the run, pauses included. */
uint64_t job_rate(const struct job *job);

/* --- for queries; NULL when memory is out --- */
struct json_object *job_query(struct job *job);       /* one entry of query-jobs */
struct json_object *job_query_block(struct job *job); /* one entry of query-block-jobs */

#endif
