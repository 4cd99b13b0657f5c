/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The replication group: all nodes of a graph whose driver is `replication`, started, checkpointed
 * and stopped together. All disks or none: an operation that fails on one is undone on the others.
 *
 * What each call does in each stage is the table in docs/semantics.md. Calls exclude each other by a
 * mutex inside; all that may wait are for coroutines of the graph's loop.
 *
 * Events go through graph_event(): REPLICATION_STAGE_CHANGE {role, stage, node}, REPLICATION_CHECKPOINT
 * {role, epoch, held-ns, duration-ns}, REPLICATION_ERROR (the sticky error, see replication_query()).
 */
#ifndef BLOCKSTEP_REPLICATION_GROUP_H
#define BLOCKSTEP_REPLICATION_GROUP_H

#include "block/graph.h"
#include "drivers/replication.h"
#include "jobs/job.h"

struct replication_group;

/* How the group reaches what its owner has: the exports. Not copied: it outlives the group. */
struct replication_owner {
    /*
     * Fence: revokes the peer's way to the disks, before a failover does anything else. `roots` are
     * the user edges that lead to a secondary disk other than through the view of S's user: the
     * peer's exports (an export's node is the edge's child, its id stands in the edge's name). The
     * owner stops listening for them, cuts their connections, and waits until every request already
     * taken has ended; no later one may pass, whether the edge stays attached or goes. On failure
     * the failover is refused and the stage stays `running`.
     * NULL: a failover is refused while there is such an edge.
     */
    int (*fence)(void *arg, struct edge *const *roots, size_t count, struct err *err);
    void *arg;
    /* The first checkpoint of a secondary that awaited it is taken. Optional; must not wait. */
    void (*synchronised)(void *arg);
    void *synchronised_arg;
};

/* `jobs` is where merges appear; both outlive the group. `owner` may be NULL. NULL when memory is
 * out. */
struct replication_group *replication_group_new(struct graph *graph, struct job_list *jobs,
                                                const struct replication_owner *owner);
/*
 * For the end of the daemon. A merge under way is interrupted, not cancelled: the overlays keep what
 * they hold and a start with REPLICATION_OVERLAYS_MERGE finishes it. Takes the filters out, so that
 * the graph can be freed. NULL is fine.
 */
void replication_group_free(struct replication_group *group) MAY_WAIT;

/* What a start on the secondary makes of overlays that already hold blocks. There is no group record
 * yet that could decide it. */
enum replication_overlays {
    REPLICATION_OVERLAYS_EMPTY,  /* must hold nothing: else an error that names the other choices */
    REPLICATION_OVERLAYS_FRESH,  /* drop them: the caller's word that the disks are equal */
    REPLICATION_OVERLAYS_RESUME, /* they hold the live epoch: go on at it, without a checkpoint */
    REPLICATION_OVERLAYS_MERGE,  /* a failover was interrupted: go on with it (stage failover) */
};

int replication_start(struct replication_group *group, enum replication_mode mode,
                      enum replication_overlays overlays, struct err *err) MAY_WAIT;

/*
 * S: its disks are not equal to the primary's, and nobody has said that they will be. Until a start
 * (the caller's word that they are equal) there is no checkpoint: stop, failover and checkpoint are
 * refused and say why.
 */
int replication_await_sync(struct replication_group *group, struct err *err) MAY_WAIT;
/* S, while it awaits: the primary's word that the disks are equal. Starts, with the first checkpoint. */
int replication_first_checkpoint(struct replication_group *group, uint64_t *ret_epoch,
                                 struct err *err) MAY_WAIT;

/* P: everything written before the call has been acknowledged by the peer. S: a new epoch. On success
 * *ret_epoch (may be NULL) is the epoch that is live now. `deadline_ns`: of waiting for the peer's
 * acknowledgements or for requests in flight; DEADLINE_NEVER: REPLICATION_CHECKPOINT_DEADLINE_NS from
 * now. */
int replication_checkpoint(struct replication_group *group, uint64_t deadline_ns,
                           uint64_t *ret_epoch, struct err *err) MAY_WAIT;
#define REPLICATION_CHECKPOINT_DEADLINE_NS (60 * NS_PER_S)

/* `failover` on S returns when the group serves from the checkpoint; the merge goes on in jobs. */
int replication_stop(struct replication_group *group, bool failover, struct err *err) MAY_WAIT;

/* 0, or the sticky first error in words; -ENODEV when replication is not running. */
int replication_get_error(struct replication_group *group, struct err *err) MAY_WAIT;

/* That of the disks that are not done, if any; else of those that are. False: no node carries the
 * driver. */
bool replication_state(struct replication_group *group, enum replication_mode *ret_mode,
                       enum replication_stage *ret_stage);

/*
 * For query-replication; NULL when memory is out.
 * { "role": "primary"|"secondary"|"none", "awaits-sync": true (when so), "stage": "none"|"running"|"failover"|"failover-failed"|"done",
 *   "epoch": n, "last-checkpoint": {"wall-time-ns", "age-ns", "held-ns", "duration-ns"} (when any),
 *   "merge": {"done", "total", "rate"} (bytes, bytes/s; in a failover),
 *   "error": as below (the first of all disks, when any),
 *   "disks": [ { "node", "mode", "stage",
 *       S: "top", "active", "hidden", "secondary" (node names), "active-bytes", "hidden-bytes" (held),
 *          "merge": {"job", "done", "total", "rate"}
 *       P: "peer" (node name), "in-flight", "in-flight-bytes", "forwarded-bytes",
 *          "link" (what the child's driver tells of itself)
 *       "error": {"side", "node", "operation", "offset", "length", "errno", "reason",
 *                 "wall-time-ns", "count"} } ] }
 */
struct json_object *replication_query(struct replication_group *group) MAY_WAIT;

#endif
