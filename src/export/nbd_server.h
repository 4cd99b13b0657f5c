/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The NBD service of a daemon: servers (each an id, addresses and exports of its own), exports and
 * connections. Everything here belongs to the graph's loop.
 *
 * A request is "taken" once it has been read whole and handed to the node; it then runs to its end
 * whatever becomes of its connection. Cutting a connection never cancels what was taken.
 *
 * When an export goes, by nbd_export_del(), nbd_server_stop() or nbd_service_free(), the graph's
 * event callback gets BLOCK_EXPORT_DELETED {"id": ID}.
 */
#ifndef BLOCKSTEP_EXPORT_NBD_SERVER_H
#define BLOCKSTEP_EXPORT_NBD_SERVER_H

#include "block/graph.h"
#include "loop/tls.h"

#define NBD_SERVER_DEFAULT_ID      "default"
#define NBD_MAX_SERVERS            16u
#define NBD_MAX_LISTENERS          8u   /* addresses of one server */
#define NBD_MAX_EXPORTS            256u /* of the service */
#define NBD_MAX_BITMAPS            16u  /* of one export */
#define NBD_MAX_CONNECTIONS        100u /* of one server, unless the caller says otherwise */
#define NBD_MAX_REQUESTS_IN_FLIGHT 256u /* of one connection; further ones stay in the socket */
#define NBD_MAX_CONNECTION_BYTES   (32u * 1024 * 1024) /* in flight on one connection */
#define NBD_BUDGET_BYTES           (48u * 1024 * 1024) /* in flight in the service */
#define NBD_HANDSHAKE_TIMEOUT_NS   (10 * NS_PER_S)
#define NBD_LINGER_TIMEOUT_NS      (10 * NS_PER_S) /* for the last replies of who disconnects */
#define NBD_MAX_EXPORT_ID_BYTES    128u            /* with the final zero */
#define NBD_MAX_EXPORT_NAME_BYTES  4096u
#define NBD_MAX_DESCRIPTION_BYTES  4096u

struct dirty_bitmap;
struct nbd_service;

/* Who wants to write to an export. */
struct nbd_writer {
    const struct edge *root; /* of the export */
    uint64_t connection;     /* a number never used again */
    uint64_t instance;       /* whose it says it is (wire/nbd.h); 0: it does not */
    uint64_t
        former; /* who is still connected and wrote before, or is of another instance; 0: nobody */
};

/*
 * Who may write is somebody else's business: he is asked before the first write, zero or trim of each
 * connection, and again after nbd_admission_renew(). What further ones come meanwhile wait.
 */
struct nbd_admission {
    /* 0, or the errno that the request gets (and the next one asks again). Waiting is fine, but not for
     * requests: these may wait for this. NULL: all may. */
    int (*admit)(void *arg, const struct nbd_writer *writer);
    /* One that was admitted, in whatever round, or that says whose it is, has ended. In good order: it said so, and no change that it asked for has
     * failed. Must not wait. */
    void (*ended)(void *arg, const struct nbd_writer *writer, bool orderly);
    void *arg;
};

struct nbd_service_options {
    struct nbd_admission admission;
    uint64_t budget_bytes;         /* 0: NBD_BUDGET_BYTES; at least 32 MiB */
    uint64_t handshake_timeout_ns; /* 0: NBD_HANDSHAKE_TIMEOUT_NS */
};

/* `options` may be NULL. NULL when memory is out. */
struct nbd_service *nbd_service_new(struct graph *graph, const struct nbd_service_options *options);
/* Stops all servers and removes their exports. NULL is fine. */
void nbd_service_free(struct nbd_service *service) MAY_WAIT;

/* --- servers --- */

/* Listens on all of the addresses or on none. `max_connections` 0: NBD_MAX_CONNECTIONS. */
int nbd_server_start(struct nbd_service *service, const char *id,
                     const struct sock_address *addresses, size_t count, unsigned max_connections,
                     struct err *err) MAY_WAIT;
/* As nbd_server_start(), for clients that speak TLS: until they do, they learn of nothing, not even
 * the exports' names. Takes a reference of its own on the credentials (a server's); NULL: no TLS. */
int nbd_server_start_tls(struct nbd_service *service, const char *id,
                         const struct sock_address *addresses, size_t count,
                         unsigned max_connections, struct tls_creds *creds, struct err *err)
    MAY_WAIT;
/* Takes over a listening socket (socket activation, tests); on failure it stays the caller's. `creds` as
 * above. */
int nbd_server_start_sock(struct nbd_service *service, const char *id, struct sock *listener,
                          unsigned max_connections, struct tls_creds *creds, struct err *err)
    MAY_WAIT;

/* Stops listening, cuts all connections, waits until every request taken has ended, then removes
 * the server's exports and the server. */
int nbd_server_stop(struct nbd_service *service, const char *id, struct err *err) MAY_WAIT;

/* The fence: as nbd_server_stop(), but the server and its exports stay in the lists, revoked, so
 * that queries still show them. Nothing listens and no request is inside when it returns. */
int nbd_server_fence(struct nbd_service *service, const char *id, struct err *err) MAY_WAIT;

bool nbd_server_exists(const struct nbd_service *service, const char *id);
size_t nbd_server_count(const struct nbd_service *service);

struct nbd_server_info {
    const char *id;
    const char *const *addresses; /* as really bound: "unix:PATH", "HOST:PORT" */
    size_t address_count;
    size_t export_count;
    bool fenced, tls;
    unsigned connections, max_connections;
    uint64_t accepted;  /* connections, since the start */
    uint64_t refused;   /* because of max_connections */
    uint64_t broken;    /* cut because the client broke the protocol */
    uint64_t timed_out; /* cut for the handshake's deadline or a stalled transfer */
};
/* Calls `visit` for each server, in the order of starting; `info` lives as long as the call.
 * `visit` must not wait. */
void nbd_server_query(const struct nbd_service *service,
                      void (*visit)(void *arg, const struct nbd_server_info *info), void *arg);

/* --- exports --- */

struct nbd_export_options {
    const char *id;          /* unique in the service */
    const char *name;        /* unique in its server; NULL: the node's name */
    const char *description; /* NULL: none */
    const char *server;      /* id; NULL: the only server there is */
    struct node *node;
    bool writable;
    /* Offered as meta contexts qemu:dirty-bitmap:NAME, and held as long as the export stands. */
    struct dirty_bitmap *const *bitmaps;
    size_t bitmap_count;
};
int nbd_export_add(struct nbd_service *service, const struct nbd_export_options *options,
                   struct err *err) MAY_WAIT;

enum nbd_remove_mode {
    NBD_REMOVE_SAFE, /* refused (-EBUSY) while clients are connected */
    NBD_REMOVE_HARD, /* cuts them */
};
/* Returns when every request taken has ended and the export is gone. */
int nbd_export_del(struct nbd_service *service, const char *id, enum nbd_remove_mode mode,
                   struct err *err) MAY_WAIT;

/* The fence for one export: from the call on its requests are refused and its connections cut;
 * returns when every request already taken has ended. It stays listed until nbd_export_del(). */
int nbd_export_revoke(struct nbd_service *service, const char *id, struct err *err) MAY_WAIT;

/* All connections are asked about again, and nobody counts as a writer. Does not wait. */
void nbd_admission_renew(struct nbd_service *service);
/* Cuts the connections of these exports that do not belong to the instance; returns when they are gone
 * and their requests have ended. */
void nbd_export_cut_others(struct nbd_service *service, struct edge *const *roots, size_t count,
                           uint64_t instance) MAY_WAIT;

struct nbd_export_info {
    const char *id, *name, *description, *server, *node_name;
    bool writable, revoked, removing;
    unsigned connections;
    unsigned requests_in_flight;
    uint64_t size_bytes;
    struct io_count read, write, other; /* requests answered, payload bytes, errors */
};
/* As nbd_server_query(), for each export. */
void nbd_export_query(const struct nbd_service *service,
                      void (*visit)(void *arg, const struct nbd_export_info *info), void *arg);
bool nbd_export_exists(const struct nbd_service *service, const char *id);
/* The id, and the name, of the export whose root this edge is; NULL: of none. For who fences by
 * edges. */
const char *nbd_export_id(const struct nbd_service *service, const struct edge *root);
const char *nbd_export_name(const struct nbd_service *service, const struct edge *root);

struct nbd_service_info {
    uint64_t budget_bytes, budget_used_bytes;
    unsigned connections;
};
struct nbd_service_info nbd_service_info(const struct nbd_service *service);

#endif
