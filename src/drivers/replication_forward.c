/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/replication_forward.h"

#include <errno.h>

void forward_queue_init(struct forward_queue *queue)
{
    *queue = (struct forward_queue){.next_sequence = 1};
    list_init(&queue->entries);
    co_queue_init(&queue->outside);
    co_queue_init(&queue->answered);
}

void forward_enter(struct forward_queue *queue, struct forward_entry *entry, uint64_t length_bytes)
{
    while (unlikely(queue->marked))
        co_queue_wait(&queue->outside);
    *entry = (struct forward_entry){.sequence = queue->next_sequence++,
                                    .length_bytes = length_bytes};
    list_push_back(&queue->entries, &entry->link);
    queue->in_flight++;
    queue->in_flight_bytes += length_bytes;
}

void forward_leave(struct forward_queue *queue, struct forward_entry *entry, bool acknowledged)
{
    assert(queue->in_flight > 0);
    list_remove(&entry->link);
    queue->in_flight--;
    queue->in_flight_bytes -= entry->length_bytes;
    if (acknowledged)
        queue->acknowledged_bytes += entry->length_bytes;
    if (unlikely(queue->marked))
        co_queue_wake_all(&queue->answered);
}

void forward_mark(struct forward_queue *queue)
{
    assert(!queue->marked);
    queue->marked = true;
    queue->marker_sequence = queue->next_sequence;
}

/* Entries are in the order of their sequence, so the first one tells. */
static bool forward_is_answered(const struct forward_queue *queue)
{
    const struct list_link *first = list_first(&queue->entries);
    return first == NULL ||
           LIST_ENTRY(first, const struct forward_entry, link)->sequence >= queue->marker_sequence;
}

int forward_wait(struct forward_queue *queue, uint64_t deadline_ns)
{
    assert(queue->marked);
    while (!forward_is_answered(queue)) {
        if (co_queue_wait_until(&queue->answered, deadline_ns) == -ETIMEDOUT)
            return forward_is_answered(queue) ? 0 : -ETIMEDOUT;
    }
    return 0;
}

void forward_release(struct forward_queue *queue)
{
    assert(queue->marked);
    queue->marked = false;
    co_queue_wake_all(&queue->outside);
}
