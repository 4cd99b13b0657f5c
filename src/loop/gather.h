/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Gathers what many requests send on one socket in one turn of the loop and sends it with one call:
 * at small requests that is what pays. When the socket is full, a coroutine of its own goes on.
 *
 * A message is heads (small, copied together) and data (by reference), put between other messages
 * without waiting. It ends with gather_end(), which names it by a link; when the kernel has taken
 * all of it, or never will, the link is handed back through `sent`. Only then may its data go.
 *
 * The owner limits how many messages are under way (`max_messages`); that is the bound of the memory
 * here. After sock_shutdown() everything comes back with the reason.
 */
#ifndef BLOCKSTEP_LOOP_GATHER_H
#define BLOCKSTEP_LOOP_GATHER_H

#include "loop/sock.h"

#define GATHER_HEAD_BYTES 64u /* of all heads of one message, at most */
#define GATHER_PARTS      2u  /* data stretches of one message, at most */

struct gather_batch {
    struct iovec *iov;
    uint8_t *heads;
    unsigned iov_count, iov_done;
    size_t head_bytes;
    size_t bytes;
    struct list items;
};

struct gather {
    struct sock *sock;
    struct loop *loop;
    /* Hands back messages in the order they were put; the callee empties the list. Must not wait,
     * and must not put messages. */
    void (*sent)(struct gather *gather, struct list *items, int result);
    struct loop_task task;
    struct gather_batch batches[2];
    unsigned filling;       /* which batch takes messages */
    bool sending;           /* the coroutine has the other one */
    uint64_t busy_since_ns; /* when the coroutine began with its batch; 0: it sleeps */
    size_t busy_bytes;      /* of that batch */
    uint64_t sent_bytes;    /* in all */
};

/* 0 or -ENOMEM. */
int gather_init(struct gather *gather, struct loop *loop, struct sock *sock, unsigned max_messages,
                void (*sent)(struct gather *gather, struct list *items, int result));
/* Everything put has come back, and `sending` is false (asserted). */
void gather_release(struct gather *gather);

/* Room for a head, to be filled before the coroutine waits. */
uint8_t *gather_head(struct gather *gather, size_t length_bytes);
void gather_data(struct gather *gather, const void *bytes, size_t length_bytes);
void gather_end(struct gather *gather, struct list_link *link);
/* Sends now what was put, rather than at the end of the turn. */
void gather_push(struct gather *gather);

#endif
