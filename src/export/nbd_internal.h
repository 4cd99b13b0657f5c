/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the NBD server share. */
#ifndef BLOCKSTEP_EXPORT_NBD_INTERNAL_H
#define BLOCKSTEP_EXPORT_NBD_INTERNAL_H

#include "block/dirty_bitmap.h"
#include "block/io.h"
#include "export/nbd_server.h"
#include "loop/gather.h"
#include "wire/nbd.h"

#define NBD_MAX_OPTION_BYTES     (16u * 1024) /* payload of one option */
#define NBD_MAX_OPTIONS          1024u        /* of one negotiation */
#define NBD_NEGOTIATE_BYTES      (32u * 1024) /* receive buffer until transmission begins */
#define NBD_RECEIVE_BYTES        (256u * 1024)
#define NBD_RECEIVE_BUFS         4u           /* receive buffers of one connection */
#define NBD_SLICED_PAYLOAD_BYTES (64u * 1024) /* longer payloads get a buffer of their own */
#define NBD_SHORT_RECEIVE_BYTES  4096u        /* what is received behind a long payload */
#define NBD_REQUEST_COST_BYTES   (16u * 1024) /* least share of the budget: stack and state */
#define NBD_MAX_EXTENTS          1024u        /* of one context's reply */
#define NBD_EXTENTS_BYTES        (NBD_MAX_EXTENTS * NBD_DESCRIPTOR_BYTES)
#define NBD_CACHE_STEP_BYTES     (1u << 20)
/* A transfer that takes longer while others wait for the budget ends its connection. */
#define NBD_STALL_NS             (5 * NS_PER_S)
#define NBD_STALL_BYTES_PER_MS   2048u /* what a slow peer must reach beyond that */
#define NBD_STALL_CHECK_NS       (1 * NS_PER_S)

/* What block status can tell of an export; these numbers are the ids on the wire too. */
enum nbd_context { NBD_ALLOCATION, NBD_DEPTH, NBD_FIRST_BITMAP };
#define NBD_MAX_CONTEXTS (NBD_FIRST_BITMAP + NBD_MAX_BITMAPS)

struct nbd_service {
    struct graph *graph;
    struct loop *loop;
    uint64_t handshake_timeout_ns;
    struct list servers;
    unsigned server_count, export_count, connection_count;
    struct co_budget budget; /* never waited on: see `hungry` */
    struct list hungry;      /* connections that wait for a share, in the order of arrival */
    struct loop_timer stall_timer;
    struct co_queue changed;        /* a server, an export or a connection has gone */
    struct nbd_admission admission; /* admit NULL: everybody may write */
    /* A connection may write when it was admitted in this round. Without admission all rounds are 0. */
    uint64_t round;
    uint64_t next_connection_id;
};

struct nbd_listener {
    struct nbd_server *server;
    struct sock *sock;
    bool running;
};

struct nbd_server {
    struct list_link link;
    struct nbd_service *service;
    char *id;
    struct nbd_listener listeners[NBD_MAX_LISTENERS];
    char *addresses[NBD_MAX_LISTENERS];
    size_t listener_count;
    unsigned listeners_running;
    struct co_queue halted; /* listeners pause here */
    struct list exports;
    struct list connections;
    unsigned connection_count, max_connections, export_count;
    struct tls_creds *creds; /* NULL: no TLS */
    bool fenced;             /* takes no connection any more */
    bool stopping;           /* and is about to go */
    uint64_t accepted, refused, broken, timed_out;
};

struct nbd_export {
    struct list_link link;
    struct nbd_service *service;
    struct nbd_server *server;
    char *id, *name, *description;
    struct edge *edge;
    bool writable, revoked, removing;
    struct dirty_bitmap *bitmaps[NBD_MAX_BITMAPS]; /* held */
    unsigned bitmap_count;
    unsigned connection_count;
    unsigned requests; /* taken and not ended */
    unsigned pins;     /* coroutines that look at it across waits */
    uint64_t writer;   /* connection that was admitted last, while it lives; 0: none */
    bool admitting;    /* somebody is asked about just now */
    struct co_queue admission;
    struct co_queue idle; /* requests or connections have become none */
    struct io_count read, write, other;
};

struct nbd_connection {
    struct list_link link;
    struct nbd_service *service;
    struct nbd_server *server;
    struct nbd_export *export; /* NULL until transmission */
    struct loop *loop;
    struct sock *sock;
    struct nbd_export *pinned; /* a reply about it is being sent */
    uint64_t id;               /* of the service; never used again */
    uint64_t instance;         /* whose it says it is; 0: it does not */
    uint64_t came;             /* the round in which transmission began */
    uint64_t
        admitted; /* the round in which it was let write last; 0: none; see nbd_service.round */
    bool structured;
    bool cut;
    bool said_goodbye; /* with NBD_CMD_DISC */
    bool failed;       /* a change that it asked for got an error */
    unsigned contexts; /* bits by enum nbd_context, for context_export */
    const struct nbd_export *context_export;

    /* Received and not yet looked at: [position, fill) of the current buffer. */
    struct buf *bufs[NBD_RECEIVE_BUFS];
    unsigned buf_count;
    struct buf *receive;
    size_t position, fill;
    size_t receive_limit_bytes;
    uint64_t transfer_since_ns; /* a long payload is under way; 0: none */
    size_t transfer_bytes;

    struct gather gather;
    bool gather_ready;
    struct list free_work; /* struct nbd_work */
    unsigned in_flight;    /* taken, and not yet answered to the socket */
    uint64_t in_flight_bytes;
    struct list_link hungry_link;
    uint64_t wish_bytes; /* of the budget, while hungry */
    bool granted;
    struct co_queue room; /* the receiver waits here for a slot, a buffer, memory, or the end */
};

/* A request on its way. Pooled by its connection. */
struct nbd_work {
    struct list_link link;
    struct nbd_connection *connection;
    struct nbd_request request;
    struct buf_slice data; /* with a reference: payload of a write, then what is sent back */
    uint32_t parts_bytes[NBD_MAX_CONTEXTS]; /* block status: lengths of the parts within data */
    uint8_t parts_id[NBD_MAX_CONTEXTS];
    unsigned part_count;
    uint64_t cost_bytes; /* its share of the budget */
};

/* --- nbd_server.c --- */
struct nbd_export *nbd_export_lookup(struct nbd_server *server, const struct nbd_text *name);
uint16_t nbd_export_flags(const struct nbd_export *export, bool structured);
void nbd_stall_watch(struct nbd_service *service);

/* --- nbd_admission.c --- */
/* Before a change: 0, or the errno that it gets. Waits when it must ask. */
int nbd_admit(struct nbd_connection *connection) MAY_WAIT;
static inline bool nbd_is_admitted(const struct nbd_connection *connection)
{
    return connection->admitted == connection->service->round;
}
/* The connection is about to go; all that it asked for has ended. */
void nbd_admission_ended(struct nbd_connection *connection);

/* --- nbd_connection.c --- */
/* Takes the socket, whatever happens. */
void nbd_connection_start(struct nbd_server *server, struct sock *sock);
/* From any coroutine: ends the connection; requests taken run on. */
void nbd_connection_cut(struct nbd_connection *connection, int reason);

/* --- nbd_receive.c --- */
int nbd_receive_init(struct nbd_connection *connection, size_t length_bytes);
void nbd_receive_release(struct nbd_connection *connection);
/* Has at least `length_bytes` received behind the position: 1; 0 at the end of the stream, -errno. */
int nbd_receive(struct nbd_connection *connection, size_t length_bytes) MAY_WAIT;
static inline const uint8_t *nbd_received(const struct nbd_connection *connection)
{
    return connection->receive->bytes + connection->position;
}
/* The payload of a write, of any length; *ret_data gets a reference. 1, 0 or -errno as above. */
int nbd_receive_payload(struct nbd_connection *connection, size_t length_bytes,
                        struct buf_slice *ret_data) MAY_WAIT;
int nbd_receive_skip(struct nbd_connection *connection, uint64_t length_bytes) MAY_WAIT;

/* --- nbd_negotiate.c --- */
/* 1: transmission begins; 0: the client has left; -errno. */
int nbd_negotiate(struct nbd_connection *connection) MAY_WAIT;

/* --- nbd_request.c --- */
/* Takes one request whose header has been received. 1: go on; 0: the client has left; -errno. */
int nbd_request_take(struct nbd_connection *connection, const struct nbd_request *request) MAY_WAIT;
void nbd_replies_sent(struct gather *gather, struct list *items, int result);

#endif
