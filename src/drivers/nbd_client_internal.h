/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the NBD client share. */
#ifndef BLOCKSTEP_DRIVERS_NBD_CLIENT_INTERNAL_H
#define BLOCKSTEP_DRIVERS_NBD_CLIENT_INTERNAL_H

#include "drivers/nbd_client.h"
#include "loop/co_sync.h"
#include "loop/gather.h"
#include "wire/nbd.h"

#define NBD_CLIENT_RECEIVE_BYTES    (256u * 1024)
#define NBD_CLIENT_DIRECT_BYTES     (16u * 1024) /* rest of a read's data received in place */
#define NBD_CLIENT_MAX_REPLIES      64u          /* of the server to one option */
#define NBD_CLIENT_MAX_REPLY_BYTES  (16u * 1024) /* payload of such a reply, or of an error */
#define NBD_CLIENT_MAX_ISLANDS      8u           /* stretches of a read that came out of order */
#define NBD_CLIENT_CLOSE_TIMEOUT_NS (1 * NS_PER_S)

enum nbd_client_context { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CLIENT_CONTEXTS };

struct island {
    uint32_t begin, end;
};

/* A request in flight. It lives on its caller's stack and ends when it has been answered and the
 * kernel has taken all that it sends. */
struct nbd_call {
    struct list_link sent_link;    /* in the gathered messages */
    struct list_link pending_link; /* in the order of making */
    struct co *co;
    struct nbd_request request;
    struct buf_slice data; /* of a read: where it goes; of a write: what is sent */
    uint64_t made_ns;
    bool sent, answered;
    int result;
    int error; /* of a structured reply that is not complete yet */
    /* Read: which bytes have come. */
    struct island islands[NBD_CLIENT_MAX_ISLANDS];
    unsigned island_count;
    /* Block status: the first stretch of each context. */
    struct nbd_descriptor status[CLIENT_CONTEXTS];
};

struct call_slot {
    struct nbd_call *call; /* NULL: free */
    uint32_t generation;
};

struct nbd_client {
    struct loop *loop;
    struct sock *sock;
    char address[160];
    char *export;
    struct tls_creds *creds; /* NULL: no TLS */
    char *tls_hostname;
    uint64_t instance; /* 0: not told */
    uint64_t request_timeout_ns;
    void (*lost)(void *arg, int reason); /* may be NULL */
    void *lost_arg;

    /* What the server said. */
    uint64_t length_bytes;
    uint16_t flags; /* enum nbd_transmission_flags */
    bool structured;
    bool has_context[CLIENT_CONTEXTS];
    uint32_t context_id[CLIENT_CONTEXTS];
    uint32_t minimum_bytes, maximum_bytes;

    /* Received and not yet looked at: [position, fill). */
    uint8_t *receive;
    size_t position, fill;

    struct gather gather;
    bool gather_ready;
    struct call_slot slots[NBD_CLIENT_MAX_IN_FLIGHT];
    uint16_t free_slots[NBD_CLIENT_MAX_IN_FLIGHT];
    unsigned free_count;
    struct list pending;  /* struct nbd_call */
    struct co_queue room; /* for a slot */
    struct loop_timer timer;
    int dead;       /* why the connection has ended; 0: it has not */
    bool receiving; /* the receiver's coroutine lives */
    struct co_queue ended;
    struct nbd_client_info info;
};

/* Has at least `length_bytes` received behind the position: 0 or -errno. */
int nbd_client_receive(struct nbd_client *client, size_t length_bytes) MAY_WAIT;
static inline const uint8_t *nbd_client_received(const struct nbd_client *client)
{
    return client->receive + client->position;
}

/* nbd_client_handshake.c: connects nothing; speaks on client->sock. */
int nbd_client_handshake(struct nbd_client *client, struct err *err) MAY_WAIT;

/* nbd_client_replies.c: receives and hands out replies until the connection ends: -errno. */
int nbd_client_replies(struct nbd_client *client) MAY_WAIT;
void nbd_client_answer(struct nbd_client *client, struct nbd_call *call, int result);

#endif
