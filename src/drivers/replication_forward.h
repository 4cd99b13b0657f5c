/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The forward queue of a primary: what is on its way to the peer, in order of arrival, and the marker
 * that a checkpoint puts behind it.
 *
 * The guest's own coroutine forwards and waits (peer-ack=write): an entry lives on its stack.
 */
#ifndef BLOCKSTEP_DRIVERS_REPLICATION_FORWARD_H
#define BLOCKSTEP_DRIVERS_REPLICATION_FORWARD_H

#include "block/driver.h"
#include "loop/co_sync.h"

struct forward_entry {
    struct list_link link;
    uint64_t sequence; /* never reused: the marker's place in the queue */
    uint64_t length_bytes;
};

struct forward_queue {
    struct list entries; /* struct forward_entry: sent, not answered */
    unsigned in_flight;
    uint64_t in_flight_bytes;
    uint64_t acknowledged_bytes;
    uint64_t next_sequence;
    bool marked;
    uint64_t marker_sequence; /* entries below it are before the marker */
    struct co_queue outside;  /* arrived behind the marker */
    struct co_queue answered; /* waits for the entries before the marker */
};

void forward_queue_init(struct forward_queue *queue);
/* Waits outside while a marker stands. */
void forward_enter(struct forward_queue *queue, struct forward_entry *entry, uint64_t length_bytes)
    MAY_WAIT;
/* The peer has answered, or never will. */
void forward_leave(struct forward_queue *queue, struct forward_entry *entry, bool acknowledged);

void forward_mark(struct forward_queue *queue);
int forward_wait(struct forward_queue *queue, uint64_t deadline_ns) MAY_WAIT; /* -ETIMEDOUT */
void forward_release(struct forward_queue *queue);

#endif
