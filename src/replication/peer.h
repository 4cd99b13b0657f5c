/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's session with its secondary: hello, checkpoints, reports, and what is known of the other
 * side (docs/peer-protocol.md).
 *
 * A lost control connection is made anew, for ever, and the session goes on with it; disks are
 * replicated meanwhile. A session that the secondary does not go on with is over: the owner is told.
 * Events: REPLICATION_PEER {role, session, connected, reason}, and REPLICATION_ERROR with the
 * secondary's error.
 */
#ifndef BLOCKSTEP_REPLICATION_PEER_H
#define BLOCKSTEP_REPLICATION_PEER_H

#include "block/graph.h"
#include "drivers/replication.h"

/* Versions of the peers' protocol (docs/peer-protocol.md) that both sides know. */
#define PEER_VERSION_MIN     1u
#define PEER_VERSION_MAX     1u
#define PEER_ANSWER_NS       (10 * NS_PER_S)   /* of any command but a checkpoint */
#define PEER_BACK_OFF_MIN_NS (100 * NS_PER_MS) /* between tries to connect; doubled each time */
#define PEER_BACK_OFF_MAX_NS (5 * NS_PER_S)
#define PEER_LOOK_NS         (5 * NS_PER_S) /* how often an idle peer is looked at */
#define PEER_SILENT_NS       (20 * NS_PER_S) /* after which the secondary holds such a primary for gone */

struct peer;

struct peer_options {
    struct graph *graph;
    const struct replication_peer_control *where; /* copied */
    const char *const *exports;                   /* NULL-terminated; copied */
    bool resync;                                  /* the secondary's disks are not equal yet */
    /* The session is over: no checkpoint will ever be taken in it. Must not wait. */
    void (*over)(void *arg);
    void *arg;
};

/* Connects and begins a new session. */
int peer_join(const struct peer_options *options, struct peer **ret_peer, struct err *err) MAY_WAIT;
/* Leaves; the secondary keeps what it has. Nobody is inside a call. NULL is fine. */
void peer_leave(struct peer *peer) MAY_WAIT;

uint64_t peer_epoch(const struct peer *peer); /* live on the secondary, as last heard */

/* Until there is a connection, or the deadline. */
int peer_await(struct peer *peer, uint64_t deadline_ns, struct err *err) MAY_WAIT;
/*
 * Has the secondary take a checkpoint, and asks again until the deadline when the answer is lost: it may take
 * more than one, all at the same place, since nothing is forwarded meanwhile.
 * *ret_unknown after a failure: it has been asked for one, and whether it has taken it, or will, is not
 * known. `first`: the disks are equal now.
 */
int peer_checkpoint(struct peer *peer, bool first, uint64_t deadline_ns, bool *ret_unknown,
                    struct err *err) MAY_WAIT;
/* Tells the secondary of an error here, as soon as it can be told; the first one counts. Does not wait. */
void peer_report(struct peer *peer, const struct replication_error *error);

/* A link of a disk is lost, so no checkpoint will be taken any more: one that waits for the control connection
 * gives up. Does not wait. */
void peer_lose_hope(struct peer *peer);

/* 0, or what is wrong at the secondary, as far as it is known here. */
int peer_check(const struct peer *peer, struct err *err);
/* {"address", "connected", "reason", "session", "epoch", ...}, see replication_query(); NULL: memory is
 * out. */
struct json_object *peer_describe(const struct peer *peer);

#endif
