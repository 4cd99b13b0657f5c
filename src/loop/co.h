/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stackful coroutines: a request is one coroutine that reads like blocking code, thousands are in
 * flight, and between two calls that are marked MAY_WAIT nothing else runs.
 *
 * Stacks are 256 KiB, mapped lazily, with a guard page, and pooled. A coroutine never changes
 * thread. After a wait, what was known before may have changed: check again, or hold a lock of
 * co_sync.h.
 *
 * AddressSanitizer, LeakSanitizer and valgrind are told about the stacks; tools/gdb/coroutines.py
 * prints the suspended ones.
 */
#ifndef BLOCKSTEP_LOOP_CO_H
#define BLOCKSTEP_LOOP_CO_H

#include "loop/loop.h"

#define CO_STACK_BYTES (256u * 1024)
#define CO_POOL_STACKS 512u /* freed stacks kept for reuse, at most */

struct co;

/* The entry is MAY_WAIT. */
typedef void co_entry(void *arg);

/* Creates a coroutine and makes it ready: it runs later in this turn. `name` is static text, for
 * traces and the debugger. 0 or -ENOMEM. */
int co_spawn(struct loop *loop, const char *name, co_entry *entry, void *arg) MUST_CHECK;

/* As co_spawn, but runs it at once, until it first waits or ends; then the caller goes on. For a
 * request that will most likely end without waiting. The caller may be a coroutine or the loop. */
int co_spawn_now(struct loop *loop, const char *name, co_entry *entry, void *arg) MUST_CHECK;

/* Stacks that loops leave to those who come after them, all of one thread: for who makes loops by the
 * thousand. The loops are freed before it; see sim_options. NULL when memory is out. */
struct co_stacks;
struct co_stacks *co_stacks_new(void);
void co_stacks_free(struct co_stacks *stacks); /* NULL is fine */

/* The running coroutine; NULL in the loop itself (completions, timers, deferred tasks). */
struct co *co_self(void);
struct loop *co_loop(const struct co *co);
const char *co_name(const struct co *co);
/* The loop of the running coroutine, or the loop that runs now. */
struct loop *loop_current(void);

/* Suspends the running coroutine until co_wake(). Each caller has its own condition and checks it
 * in a loop: a wake may come for an older reason. */
void co_wait(void) MAY_WAIT;
/* As co_wait, until the deadline at most: 0 or -ETIMEDOUT. */
int co_wait_until(uint64_t deadline_ns) MAY_WAIT;
/* Makes a suspended coroutine ready. Waking one that is ready already changes nothing: it runs later
 * and sees what its waker did. Waking the one that runs is remembered once: its next co_wait()
 * returns at once. */
void co_wake(struct co *co);
/* Lets all others that are ready run first. */
void co_yield(void) MAY_WAIT;
void co_sleep_until(uint64_t deadline_ns) MAY_WAIT;
void co_sleep(uint64_t duration_ns) MAY_WAIT;

/* Asserts that nothing waits from here to the end of the scope. */
#define NO_WAIT_SCOPE() \
    CLEANUP(co_no_wait_leave) unsigned no_wait_scope_ UNUSED = co_no_wait_enter()
unsigned co_no_wait_enter(void);
void co_no_wait_leave(unsigned *token);

#endif
