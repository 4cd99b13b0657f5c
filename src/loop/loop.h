/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The event loop: one thread, its coroutines, its timers, and the only way to time, randomness,
 * files and sockets. Two implementations stand behind this header: loop_uring (the kernel) and
 * loop_sim (virtual time, seeded order, files and sockets in memory). Code above cannot tell which
 * it runs on.
 *
 * A turn of the loop: run the coroutines that are ready, then the deferred tasks (batching: one send
 * for all replies of a turn), then submit and wait in one system call, then handle completions,
 * posts and timers, each of which makes coroutines ready. The loop never nests.
 *
 * Threads: everything here belongs to the loop's thread, save loop_post().
 */
#ifndef BLOCKSTEP_LOOP_LOOP_H
#define BLOCKSTEP_LOOP_LOOP_H

#include "base/buf.h"
#include "base/err.h"
#include "base/list.h"

struct loop;

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)

/* A deadline that never comes. Deadlines are points in loop_now_ns() time. */
#define DEADLINE_NEVER UINT64_MAX

/* Kernel features that loop_uring uses where it finds them. Each can be switched off by name for
 * tests and troubled kernels: "no-uring-flags" and so on, see loop_features_parse(). */
enum loop_feature {
    LOOP_FEATURE_DEFER_TASKRUN = 1u << 0, /* SINGLE_ISSUER | DEFER_TASKRUN, Linux 6.1 */
    LOOP_FEATURE_COOP_TASKRUN = 1u << 1,  /* Linux 5.19 */
    LOOP_FEATURE_INLINE_FILE =
        1u << 2, /* plain calls where they cannot stall (RWF_NOWAIT, tmpfs) */
    LOOP_FEATURE_INLINE_SEND = 1u << 3, /* try a non-blocking send before the ring */
    LOOP_FEATURES_ALL = (1u << 4) - 1,
};

struct loop_options {
    unsigned features_off;    /* of enum loop_feature */
    unsigned ring_entries;    /* 0: 256 */
    unsigned offload_threads; /* 0: 4 */
};

/* -ENOSYS or -EPERM when io_uring is not to be had: the text says why and what to do. `options` may
 * be NULL. */
int loop_uring_new(const struct loop_options *options, struct loop **ret_loop, struct err *err);

/* A world of its own with one host; see sim.h for more. The same seed gives the same run. */
int loop_sim_new(uint64_t seed, struct loop **ret_loop, struct err *err);

/* All coroutines have ended, all files and sockets are closed (asserted). NULL is fine. */
void loop_free(struct loop *loop);

/* "defer-taskrun", "inline-file", ...: comma separated names of features to switch off. */
int loop_features_parse(const char *text, unsigned *ret_features, struct err *err);
/* Those in use now. */
unsigned loop_features(const struct loop *loop);
const char *loop_feature_name(unsigned feature);

/* Runs until loop_stop(); coroutines may still be suspended then, and a further run goes on. */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);

/* Monotonic time, read once a turn and after each wait: cheap, and up to a turn old. */
uint64_t loop_now_ns(struct loop *loop);
/* Monotonic time, read now. For measuring. */
uint64_t loop_clock_ns(struct loop *loop);
/* Wall clock: nanoseconds since 1970 UTC. For people and records, never for deadlines. */
uint64_t loop_wall_ns(struct loop *loop);
/* 64 random bits: from the kernel, or from the seed. */
uint64_t loop_random(struct loop *loop);

/* Buffers of this loop's thread. */
struct buf_pool *loop_bufs(struct loop *loop);

/* --- timers --- */

struct loop_timer {
    void (*fire)(struct loop_timer *timer); /* must not wait */
    uint64_t deadline_ns;
    size_t heap_index; /* 0: not armed */
    struct loop *loop;
};

/* Arms or moves the timer; it fires once, in the turn after its deadline. */
void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns);
/* Harmless when not armed. After it the timer does not fire. */
void loop_timer_cancel(struct loop_timer *timer);
static inline bool loop_timer_armed(const struct loop_timer *timer)
{
    return timer->heap_index != 0;
}

/* --- work at the end of the turn, and from other threads --- */

struct loop_task {
    struct list_link link;
    void (*run)(struct loop_task *task); /* must not wait */
};

/* Runs `task` once in this turn, when no coroutine is ready any more and before the loop waits. A
 * task that is already queued stays where it is. */
void loop_defer(struct loop *loop, struct loop_task *task);
void loop_defer_cancel(struct loop *loop, struct loop_task *task);

/* The one thread-safe call: runs task->run in the loop's thread soon. The task lives until then. */
void loop_post(struct loop *loop, struct loop_task *task);

/* Calls `handler` (in the loop's thread, not in a signal context) when the process gets `signal`,
 * which is blocked in this thread from now on. NULL takes the handler away. In the simulator nothing
 * is ever delivered. Must be called before offload threads start, that is before loop_run(). */
typedef void loop_signal_handler(void *arg, int signal);
int loop_signal_set(struct loop *loop, int signal, loop_signal_handler *handler, void *arg,
                    struct err *err);

/* Runs `call(arg)` on a thread of the bounded pool and returns its result: for calls that block. It
 * must not touch the loop or what belongs to it. */
int loop_offload(struct loop *loop, int (*call)(void *arg), void *arg) MAY_WAIT;

struct loop_stats {
    uint64_t turns;
    uint64_t kernel_waits;
    uint64_t longest_turn_ns; /* from the end of one wait to the next, since the last reset */
    uint64_t offloaded;
    size_t coroutines; /* alive */
    size_t coroutines_peak;
    size_t stacks_cached;
    size_t stack_peak_bytes; /* high-water mark over all stacks, in whole pages */
};
/* Walks all stacks: for queries, not for requests. */
struct loop_stats loop_stats(struct loop *loop);
/* How often the loop has looked for what else there is to do. */
uint64_t loop_turns(const struct loop *loop);
void loop_stats_reset(struct loop *loop);

#endif
