/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What coroutines of one loop wait for each other with. All are fair: first come, first served. No
 * atomics: one thread. Zeroed memory is not valid; each has an init (and none needs a destroy, but
 * nobody may wait when its memory goes).
 */
#ifndef BLOCKSTEP_LOOP_CO_SYNC_H
#define BLOCKSTEP_LOOP_CO_SYNC_H

#include "loop/co.h"

/* A queue of waiting coroutines: the base of the others. Waiting on a queue returns only when woken
 * through it (or by the deadline). */
struct co_queue {
    struct list waiters;
};
void co_queue_init(struct co_queue *queue);
void co_queue_wait(struct co_queue *queue) MAY_WAIT;
int co_queue_wait_until(struct co_queue *queue, uint64_t deadline_ns) MAY_WAIT; /* -ETIMEDOUT */
bool co_queue_wake_one(struct co_queue *queue); /* false: nobody waits */
void co_queue_wake_all(struct co_queue *queue);
bool co_queue_empty(const struct co_queue *queue);

struct co_mutex {
    struct co *owner;
    struct co_queue queue;
};
void co_mutex_init(struct co_mutex *mutex);
void co_mutex_lock(struct co_mutex *mutex) MAY_WAIT;
void co_mutex_unlock(struct co_mutex *mutex);

/* Counts who is inside; can be closed (more than once), which makes new ones wait outside, and
 * emptied. Edges of the graph drain with it. */
struct co_gate {
    unsigned inside;
    unsigned closed;
    struct co_queue outside; /* wait for it to open */
    struct co_queue empty;   /* wait for inside == 0 */
};
void co_gate_init(struct co_gate *gate);
void co_gate_enter_slow(struct co_gate *gate) MAY_WAIT;
static inline void co_gate_enter(struct co_gate *gate) MAY_WAIT
{
    if (unlikely(gate->closed != 0))
        co_gate_enter_slow(gate);
    gate->inside++;
}
static inline void co_gate_leave(struct co_gate *gate)
{
    assert(gate->inside > 0);
    if (--gate->inside == 0 && unlikely(!list_empty(&gate->empty.waiters)))
        co_queue_wake_all(&gate->empty);
}
void co_gate_close(struct co_gate *gate); /* does not wait */
void co_gate_open(struct co_gate *gate);
void co_gate_wait_empty(struct co_gate *gate) MAY_WAIT;

/* Runs several coroutines and waits for all. */
struct co_group {
    unsigned running;
    int first_error; /* of what the members gave to co_group_report() */
    struct co_queue done;
};
void co_group_init(struct co_group *group);
/* The entry calls co_group_leave() as its last act. */
void co_group_enter(struct co_group *group);
void co_group_report(struct co_group *group, int result); /* keeps the first negative one */
void co_group_leave(struct co_group *group);
int co_group_wait(struct co_group *group) MAY_WAIT; /* returns first_error */

/* Locks stretches [offset, offset + length) of something, shared or exclusive. Overlapping
 * stretches are granted in the order of arrival. */
struct range_locks {
    struct list held; /* struct range_lock, granted and waiting, in the order of arrival */
    unsigned count;
};
struct range_lock {
    struct list_link link;
    uint64_t offset_bytes, length_bytes;
    bool exclusive;
    bool granted;
    unsigned blockers; /* earlier overlapping ones that stand in the way */
    struct co *waiter;
};
void range_locks_init(struct range_locks *locks);
void range_lock_acquire(struct range_locks *locks, struct range_lock *lock, uint64_t offset_bytes,
                        uint64_t length_bytes, bool exclusive) MAY_WAIT;
/* False when it would have to wait; nothing is held then. */
bool range_lock_try(struct range_locks *locks, struct range_lock *lock, uint64_t offset_bytes,
                    uint64_t length_bytes, bool exclusive);
void range_lock_release(struct range_locks *locks, struct range_lock *lock);

/* A stock of units (bytes): take waits until there are enough. One request never takes more than
 * the whole stock (asserted). Fair: a large one is not overtaken for ever. */
struct co_budget {
    uint64_t limit;
    uint64_t used;
    struct list requests; /* that wait, in the order of arrival */
};
void co_budget_init(struct co_budget *budget, uint64_t limit);
void co_budget_take(struct co_budget *budget, uint64_t units) MAY_WAIT;
bool co_budget_try(struct co_budget *budget, uint64_t units);
void co_budget_give(struct co_budget *budget, uint64_t units);

#endif
