/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/co_sync.h"

#include <errno.h>

/* One coroutine in a queue; on its stack. */
struct waiter {
    struct list_link link;
    struct co *co;
    bool woken;
};

void co_queue_init(struct co_queue *queue)
{
    list_init(&queue->waiters);
}

bool co_queue_empty(const struct co_queue *queue)
{
    return list_empty(&queue->waiters);
}

void co_queue_wait(struct co_queue *queue)
{
    struct waiter waiter = {.co = co_self()};

    list_push_back(&queue->waiters, &waiter.link);
    while (!waiter.woken)
        co_wait();
}

int co_queue_wait_until(struct co_queue *queue, uint64_t deadline_ns)
{
    struct waiter waiter = {.co = co_self()};

    list_push_back(&queue->waiters, &waiter.link);
    while (!waiter.woken) {
        if (co_wait_until(deadline_ns) == -ETIMEDOUT && !waiter.woken) {
            list_remove(&waiter.link);
            return -ETIMEDOUT;
        }
    }
    return 0;
}

bool co_queue_wake_one(struct co_queue *queue)
{
    struct waiter *waiter = LIST_POP_FRONT(&queue->waiters, struct waiter, link);
    if (waiter == NULL)
        return false;
    waiter->woken = true;
    co_wake(waiter->co);
    return true;
}

void co_queue_wake_all(struct co_queue *queue)
{
    while (co_queue_wake_one(queue))
        ;
}

/* --- mutex: handed over, so that who waits first gets it first --- */

void co_mutex_init(struct co_mutex *mutex)
{
    mutex->owner = NULL;
    co_queue_init(&mutex->queue);
}

void co_mutex_lock(struct co_mutex *mutex)
{
    struct co *self = co_self();

    assert(self != NULL);
    assert(mutex->owner != self);
    assert(mutex->queue.waiters.head.next != NULL); /* init */
    if (mutex->owner == NULL) {
        mutex->owner = self;
        return;
    }
    co_queue_wait(&mutex->queue);
    assert(mutex->owner == self);
}

void co_mutex_unlock(struct co_mutex *mutex)
{
    struct list_link *first = list_first(&mutex->queue.waiters);

    assert(mutex->owner == co_self());
    mutex->owner = first != NULL ? LIST_ENTRY(first, struct waiter, link)->co : NULL;
    co_queue_wake_one(&mutex->queue);
}

/* --- gate --- */

void co_gate_init(struct co_gate *gate)
{
    gate->inside = gate->closed = 0;
    co_queue_init(&gate->outside);
    co_queue_init(&gate->empty);
}

void co_gate_enter_slow(struct co_gate *gate)
{
    while (gate->closed != 0)
        co_queue_wait(&gate->outside);
}

void co_gate_close(struct co_gate *gate)
{
    gate->closed++;
}

void co_gate_open(struct co_gate *gate)
{
    assert(gate->closed > 0);
    if (--gate->closed == 0)
        co_queue_wake_all(&gate->outside);
}

void co_gate_wait_empty(struct co_gate *gate)
{
    while (gate->inside != 0)
        co_queue_wait(&gate->empty);
}

/* --- group --- */

void co_group_init(struct co_group *group)
{
    group->running = 0;
    group->first_error = 0;
    co_queue_init(&group->done);
}

void co_group_enter(struct co_group *group)
{
    group->running++;
}

void co_group_report(struct co_group *group, int result)
{
    if (result < 0 && group->first_error == 0)
        group->first_error = result;
}

void co_group_leave(struct co_group *group)
{
    assert(group->running > 0);
    if (--group->running == 0)
        co_queue_wake_all(&group->done);
}

int co_group_wait(struct co_group *group)
{
    while (group->running != 0)
        co_queue_wait(&group->done);
    return group->first_error;
}

/* --- range locks: one list in the order of arrival; requests in flight are capped, so it is short --- */

void range_locks_init(struct range_locks *locks)
{
    list_init(&locks->held);
    locks->count = 0;
}

static bool range_locks_conflict(const struct range_lock *a, const struct range_lock *b)
{
    return (a->exclusive || b->exclusive) &&
           ranges_overlap(a->offset_bytes, a->length_bytes, b->offset_bytes, b->length_bytes);
}

static void range_lock_enqueue(struct range_locks *locks, struct range_lock *lock,
                               uint64_t offset_bytes, uint64_t length_bytes, bool exclusive)
{
    *lock = (struct range_lock){
        .offset_bytes = offset_bytes,
        .length_bytes = length_bytes,
        .exclusive = exclusive,
    };
    LIST_FOR_EACH(other, &locks->held, struct range_lock, link) {
        if (range_locks_conflict(lock, other))
            lock->blockers++;
    }
    lock->granted = lock->blockers == 0;
    list_push_back(&locks->held, &lock->link);
    locks->count++;
}

void range_lock_acquire(struct range_locks *locks, struct range_lock *lock, uint64_t offset_bytes,
                        uint64_t length_bytes, bool exclusive)
{
    range_lock_enqueue(locks, lock, offset_bytes, length_bytes, exclusive);
    lock->waiter = co_self();
    while (!lock->granted)
        co_wait();
}

bool range_lock_try(struct range_locks *locks, struct range_lock *lock, uint64_t offset_bytes,
                    uint64_t length_bytes, bool exclusive)
{
    range_lock_enqueue(locks, lock, offset_bytes, length_bytes, exclusive);
    if (lock->granted)
        return true;
    list_remove(&lock->link); /* the last to arrive blocks nobody yet */
    locks->count--;
    return false;
}

void range_lock_release(struct range_locks *locks, struct range_lock *lock)
{
    assert(lock->granted);
    /* Only those that arrived later can wait for this one. */
    for (struct list_link *link = lock->link.next; link != &locks->held.head; link = link->next) {
        struct range_lock *later = LIST_ENTRY(link, struct range_lock, link);
        if (later->granted || !range_locks_conflict(lock, later))
            continue;
        assert(later->blockers > 0);
        if (--later->blockers == 0) {
            later->granted = true;
            co_wake(later->waiter);
        }
    }
    list_remove(&lock->link);
    locks->count--;
}

/* --- budget --- */

struct budget_request {
    struct list_link link;
    struct co *co;
    uint64_t units;
    bool granted;
};

void co_budget_init(struct co_budget *budget, uint64_t limit)
{
    budget->limit = limit;
    budget->used = 0;
    list_init(&budget->requests);
}

bool co_budget_try(struct co_budget *budget, uint64_t units)
{
    assert(units <= budget->limit);
    if (!list_empty(&budget->requests) || units > budget->limit - budget->used)
        return false;
    budget->used += units;
    return true;
}

void co_budget_take(struct co_budget *budget, uint64_t units)
{
    if (co_budget_try(budget, units))
        return;
    struct budget_request request = {.co = co_self(), .units = units};
    list_push_back(&budget->requests, &request.link);
    while (!request.granted)
        co_wait();
}

void co_budget_give(struct co_budget *budget, uint64_t units)
{
    assert(units <= budget->used);
    budget->used -= units;
    LIST_FOR_EACH_SAFE(request, &budget->requests, struct budget_request, link) {
        if (request->units > budget->limit - budget->used)
            break;
        budget->used += request->units;
        request->granted = true;
        list_remove(&request->link);
        co_wake(request->co);
    }
}
