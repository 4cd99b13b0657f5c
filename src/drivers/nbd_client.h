/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The NBD client: one connection to one export, pipelined, on the loop.
 *
 * Requests of all coroutines share the connection; what they send in one turn of the loop goes out
 * in one call. Each request has a deadline. A request ends exactly once, and not before the kernel
 * has let go of its memory; so a late reply never lands in memory of a finished request. When the
 * peer is late, breaks the protocol or vanishes, the connection is shut down and every request in
 * flight ends with the reason.
 *
 * There is no automatic reconnect: after the connection has ended, requests fail at once with the
 * reason until the node is opened anew.
 */
#ifndef BLOCKSTEP_DRIVERS_NBD_CLIENT_H
#define BLOCKSTEP_DRIVERS_NBD_CLIENT_H

#include "block/driver.h"
#include "loop/tls.h"

#define NBD_CLIENT_MAX_IN_FLIGHT      256u /* further requests wait */
#define NBD_CLIENT_OPEN_TIMEOUT_NS    (10 * NS_PER_S)
#define NBD_CLIENT_REQUEST_TIMEOUT_NS (30 * NS_PER_S)

struct nbd_client;

struct nbd_client_options {
    struct sock_address address;
    const char *export;       /* name; NULL: "" */
    struct tls_creds *tls;    /* a client's; NULL: no TLS. The client takes a reference */
    uint64_t instance;        /* what the server is told whose connection this is; 0: nothing */
    const char *tls_hostname; /* what the server's certificate is for; NULL: the address's host */
    uint64_t open_timeout_ns; /* connect and handshake together; 0: the default */
    uint64_t request_timeout_ns; /* 0: the default */
    /* The connection has ended, with this negative errno. Optional; must not wait. */
    void (*lost)(void *arg, int reason);
    void *lost_arg;
};

int nbd_client_open(struct loop *loop, const struct nbd_client_options *options,
                    struct nbd_client **ret_client, struct err *err) MAY_WAIT;
/* Says good-bye when it can, and closes. No request may be inside. NULL is fine. */
void nbd_client_close(struct nbd_client *client) MAY_WAIT;

/* What the server said. */
uint64_t nbd_client_length_bytes(const struct nbd_client *client);
bool nbd_client_read_only(const struct nbd_client *client);
bool nbd_client_fua(const struct nbd_client *client);
uint32_t nbd_client_block_bytes(const struct nbd_client *client);        /* least request */
uint32_t nbd_client_max_transfer_bytes(const struct nbd_client *client); /* of a read or write */

/* 0 or -errno: the server's error, -ETIMEDOUT, -EPROTO (the peer broke the protocol), -EPIPE (the
 * connection has ended), or the reason given to nbd_client_shutdown(). */
int nbd_client_read(struct nbd_client *client, const struct io *io) MAY_WAIT;
int nbd_client_write(struct nbd_client *client, const struct io *io) MAY_WAIT;
int nbd_client_zero(struct nbd_client *client, const struct io *io) MAY_WAIT;
int nbd_client_discard(struct nbd_client *client, const struct io *io) MAY_WAIT;
int nbd_client_flush(struct nbd_client *client) MAY_WAIT;
int nbd_client_extents(struct nbd_client *client, uint64_t offset_bytes, uint64_t length_bytes,
                       struct extent *ret_extent) MAY_WAIT;

/* Cancels all requests in flight and to come: they end with `reason` (negative errno; 0:
 * -ECANCELED) as soon as the kernel has let go of their memory. Does not wait. */
void nbd_client_shutdown(struct nbd_client *client, int reason);

struct nbd_client_info {
    bool connected, tls;
    char address[160];
    const char *export;
    unsigned in_flight;
    uint64_t bytes_sent;  /* payload of writes handed to the kernel */
    uint64_t bytes_acked; /* payload of writes that the server has answered */
    uint64_t bytes_read;
    uint64_t requests, errors;
    uint64_t last_reply_ns;     /* loop_now_ns() of the last reply; 0: none yet */
    uint64_t oldest_request_ns; /* when the oldest request in flight was made; 0: none */
    int last_error;             /* why the connection ended; 0: it has not */
};
void nbd_client_info(const struct nbd_client *client, struct nbd_client_info *ret_info);

/* The client of a node of the nbd driver; NULL for other drivers. */
struct nbd_client *nbd_client_of(struct node *node);

#endif
