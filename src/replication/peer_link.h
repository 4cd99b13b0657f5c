/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A control connection to the peer: a QMP client on the loop.
 *
 * One command at a time, each with a deadline; others wait for their turn. A peer that is late, sends
 * what is no QMP, or too much of it, or goes away costs the connection: it is shut down, and the command
 * under way and all later ones fail with the reason. Whether a command whose answer did not come has been
 * carried out is then not known.
 */
#ifndef BLOCKSTEP_REPLICATION_PEER_LINK_H
#define BLOCKSTEP_REPLICATION_PEER_LINK_H

#include "base/json.h"
#include "drivers/replication.h"

#define PEER_LINK_OPEN_NS   (5 * NS_PER_S) /* to connect, for TLS, and for the greeting */
#define PEER_LINK_MAX_BYTES (128u * 1024)  /* of one answer or event */

struct peer_link;

/* Who the connection belongs to; the calls must not wait. */
struct peer_link_owner {
    void (*event)(void *arg, const char *name, struct json_object *data); /* data is borrowed */
    void (*lost)(void *arg); /* it has ended: once, unless by peer_link_close() */
    void *arg;
};

/* Connects, and negotiates. `owner` is copied; `where` is used during the call only. */
int peer_link_open(struct loop *loop, const struct replication_peer_control *where,
                   const struct peer_link_owner *owner, struct peer_link **ret_link,
                   struct err *err) MAY_WAIT;
/* Ends the connection, waits until calls under way have ended, and frees. NULL is fine. */
void peer_link_close(struct peer_link *link) MAY_WAIT;

/* Runs a command; takes the reference on `arguments` (NULL: none). -EREMOTEIO: the peer refuses, in its
 * words. Any other error: the connection is of no use any more. */
int peer_link_run(struct peer_link *link, const char *command, struct json_object *arguments,
                  uint64_t deadline_ns, struct json_object **ret_result, struct err *err) MAY_WAIT;

/* Ends the connection for a reason of the caller's: calls fail with it. Does not wait. */
void peer_link_cut(struct peer_link *link, const struct err *why);
bool peer_link_is_up(const struct peer_link *link);
/* Why it has ended. */
const struct err *peer_link_reason(const struct peer_link *link);

#endif
