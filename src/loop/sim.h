/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The simulator behind loop.h: a world of hosts in one process, with virtual time, files and sockets
 * in memory, and every choice (how long something takes, what comes first, how many bytes arrive
 * together) drawn from one seed. The same seed gives the same run, on every machine, which
 * sim_trace_hash() shows.
 *
 * A world has hosts, known by name. A host has a file system, which outlives the loops that run on
 * it (so a daemon can be "restarted"), and is reached over the network by its name. Each loop is one
 * process on a host. loop_run() on any of them runs the whole world until that loop is stopped.
 *
 * For tests and the simulator's runner only; production code sees loop.h alone.
 */
#ifndef BLOCKSTEP_LOOP_SIM_H
#define BLOCKSTEP_LOOP_SIM_H

#include "loop/loop.h"

struct sim;

#define SIM_BACKLOG_MAX     16u /* connections that wait to be accepted, for each listener */
#define SIM_HOST_NAME_BYTES 64u
#define SIM_HANG_TEXT_BYTES 4096u

/* How long something takes: uniformly between the two. Both 0: nothing is ever waited for. */
struct sim_delay {
    uint64_t min_ns, max_ns;
};

/* Called when the world cannot go on: `text` says why and what each loop's coroutines are. The run
 * ends when it returns: loop_run() returns as after loop_stop(), sim_step() returns false. */
typedef void sim_hang_handler(void *arg, const char *text);

struct sim_options {
    uint64_t seed;
    struct sim_delay file;     /* each request to a file or folder */
    struct sim_delay net;      /* each way over the network */
    struct sim_delay offload;  /* calls on the pool */
    unsigned inline_percent;   /* of file requests that end without waiting */
    unsigned split_percent;    /* of file requests on several pages that take effect in parts */
    size_t sock_buffer_bytes;  /* under way or not yet received, for each direction */
    uint64_t disk_bytes;       /* what the files of one host may take; 0: no limit */
    uint64_t limit_ns;         /* virtual time at which the run counts as hung; 0: none */
    bool files_in_memory;      /* what file_info() says */
    sim_hang_handler *on_hang; /* NULL: logged as an error, then abort() */
    void *on_hang_arg;
};

/* Microseconds for files, tens of them for the network, 64 KiB buffers, no limits. */
void sim_options_init(struct sim_options *options, uint64_t seed);

int sim_new(const struct sim_options *options, struct sim **ret_sim, struct err *err);
/* All loops of the world have been freed (asserted). NULL is fine. */
void sim_free(struct sim *sim);

/* A new process on the host, which comes into being with the first. */
int sim_loop_new(struct sim *sim, const char *host, struct loop **ret_loop, struct err *err);
/* The world of a loop of the simulator; NULL for one of the kernel. */
struct sim *sim_of(const struct loop *loop);

/* Lets the next thing happen. False: nothing can happen any more, of itself. */
bool sim_step(struct sim *sim);
uint64_t sim_now_ns(const struct sim *sim);
uint64_t sim_seed(const struct sim *sim);
/* A digest of all that has happened so far, and when. */
uint64_t sim_trace_hash(const struct sim *sim);
/* Moves options.limit_ns. */
void sim_set_limit(struct sim *sim, uint64_t limit_ns);
/* From the world's seed: for tests that want to be replayable with it. */
uint64_t sim_random(struct sim *sim);

/* --- faults --- */

enum sim_op {
    SIM_OP_ANY,
    SIM_OP_OPEN,
    SIM_OP_READ,
    SIM_OP_WRITE,
    SIM_OP_SYNC,
    SIM_OP_ZERO, /* punch too */
    SIM_OP_TRUNCATE,
    SIM_OP_EXTENT,
    SIM_OP_RENAME, /* by the old name */
    SIM_OP_UNLINK,
    SIM_OP_FOLDER, /* make or sync one */
};

/* From now on, the `nth` (1: the next) such request to `path` on the loop's host, and `times - 1`
 * more after it (UINT_MAX: all), fail with `error` (negative errno). 0 or -ENOMEM. */
int sim_file_fail(struct loop *loop, const char *path, enum sim_op op, unsigned nth, unsigned times,
                  int error);
void sim_file_fail_clear(struct loop *loop);
/* Changes what the files of the loop's host may take, even to less than they do; 0: no limit. */
void sim_disk_limit(struct loop *loop, uint64_t bytes);
uint64_t sim_disk_used_bytes(const struct loop *loop);

/* Nothing travels between the two hosts while cut: new connections are not answered, old ones stall.
 * What was under way arrives after the cut is taken back. */
int sim_net_cut(struct sim *sim, const char *host_a, const char *host_b, bool cut);

#endif
