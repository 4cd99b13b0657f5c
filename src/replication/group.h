/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The replication group: all nodes of a graph whose driver is `replication`, started, checkpointed
 * and stopped together. All disks or none: an operation that fails on one is undone on the others.
 *
 * What each call does in each stage is the table in docs/semantics.md. Calls exclude each other by a
 * mutex inside; all that may wait are for coroutines of the graph's loop.
 *
 * Events go through graph_event(): REPLICATION_STAGE_CHANGE {role, stage, node}, REPLICATION_CHECKPOINT
 * {role, epoch, held-ns, duration-ns}, REPLICATION_ERROR (the sticky error, see replication_query()),
 * REPLICATION_PEER (see replication/peer.h).
 */
#ifndef BLOCKSTEP_REPLICATION_GROUP_H
#define BLOCKSTEP_REPLICATION_GROUP_H

#include "block/graph.h"
#include "drivers/replication.h"
#include "jobs/job.h"
#include "wire/group_record.h"

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
    /* Asks replication_admit() again about all who write, whatever it has said of them. Must not wait.
     * NULL: nobody is asked about. */
    void (*renew)(void *arg);
    /* Cuts the connections through these edges that do not belong to the instance, and waits until their
     * requests have ended. NULL: there are none. */
    void (*cut_others)(void *arg, struct edge *const *roots, size_t count, uint64_t instance);
    void *arg;
};

/* `jobs` is where merges appear; both outlive the group. `owner` may be NULL. NULL when memory is
 * out. */
struct replication_group *replication_group_new(struct graph *graph, struct job_list *jobs,
                                                const struct replication_owner *owner);
/*
 * For the end of the daemon; nobody uses the disks any more. A merge under way is interrupted, not
 * cancelled: the overlays keep what they hold and the next start finishes it (without a state folder:
 * one with REPLICATION_OVERLAYS_MERGE). With a state folder the overlays are flushed, and the record
 * says so. Takes the filters out, so that the graph can be freed. NULL is fine.
 */
void replication_group_free(struct replication_group *group) MAY_WAIT;

/*
 * Where the group keeps its record (docs/group-record.md), and what its checkpoints survive. Before a
 * start; the texts are copied. The folder is made where there is none, and locked. A record that
 * cannot be used does not fail here, but a start that would need it.
 */
struct replication_state {
    const char *folder;
    enum group_durability level;
    const char *boot_id; /* of this run of the host; NULL: not known */
};
int replication_use_state(struct replication_group *group, const struct replication_state *state,
                          struct err *err) MAY_WAIT;
/* Whether an earlier run has left one, good or not. */
bool replication_has_record(const struct replication_group *group);

/*
 * What a start on the secondary makes of overlays. With a state folder the record of an earlier run
 * decides, and the caller may only say that it is to begin anew (FRESH, SYNC); without one, or without
 * a record in it, the caller's word counts.
 */
enum replication_overlays {
    REPLICATION_OVERLAYS_EMPTY, /* as the record says. None: they must hold nothing, and the disks
                                  * are equal */
    REPLICATION_OVERLAYS_FRESH, /* drop what they hold: the caller's word that the disks are equal */
    REPLICATION_OVERLAYS_RESUME, /* no state folder: go on at their epoch, without a checkpoint */
    REPLICATION_OVERLAYS_MERGE,  /* no state folder: go on with a failover that was interrupted */
    REPLICATION_OVERLAYS_SYNC,   /* the disks are not equal yet */
};

/*
 * A start as primary whose nodes have `peer-control` begins a session with the secondary, and fails when that
 * refuses it; SYNC: the disks are not equal yet.
 * A start as secondary that finds what its last checkpoint needs lost, or is told SYNC, succeeds, and
 * the group is *inconsistent*: stage none, no copies of what the primary overwrites, and until
 * replication_first_checkpoint() stop, failover and checkpoint are refused and say why.
 */
int replication_start(struct replication_group *group, enum replication_mode mode,
                      enum replication_overlays overlays, struct err *err) MAY_WAIT;

/*
 * A checkpoint. P: everything written before the call has been acknowledged by the peer; with a session
 * (`peer-control`) the peer has begun a new epoch behind it. S: a new epoch. On success *ret_epoch (may
 * be NULL) is the epoch that is live now.
 * `first`: of S, while it is inconsistent or its stream is broken: the primary's word that the disks are
 * equal now, and a checkpoint of that. Of P with a session: has S take one.
 */
struct replication_cut {
    bool first;
    /* Of waiting for the peer, or for requests in flight; DEADLINE_NEVER:
     * REPLICATION_CHECKPOINT_DEADLINE_NS from now. */
    uint64_t deadline_ns;
    /* S: whose session asks; 0: nobody's, who is refused while one is connected. */
    uint64_t session;
    /* S: which epoch shall be reached: the next; when it has been, nothing is done. 0: the next. */
    uint64_t epoch;
};
#define REPLICATION_CHECKPOINT_DEADLINE_NS (60 * NS_PER_S)
int replication_cut(struct replication_group *group, const struct replication_cut *cut,
                    uint64_t *ret_epoch, struct err *err) MAY_WAIT;

static inline int replication_checkpoint(struct replication_group *group, uint64_t deadline_ns,
                                         uint64_t *ret_epoch, struct err *err) MAY_WAIT;
static inline int replication_checkpoint(struct replication_group *group, uint64_t deadline_ns,
                                         uint64_t *ret_epoch, struct err *err)
{
    const struct replication_cut cut = {.deadline_ns = deadline_ns};

    return replication_cut(group, &cut, ret_epoch, err);
}

static inline int replication_first_checkpoint(struct replication_group *group,
                                               uint64_t deadline_ns, uint64_t *ret_epoch,
                                               struct err *err) MAY_WAIT;
static inline int replication_first_checkpoint(struct replication_group *group,
                                               uint64_t deadline_ns, uint64_t *ret_epoch,
                                               struct err *err)
{
    const struct replication_cut cut = {.deadline_ns = deadline_ns, .first = true};

    return replication_cut(group, &cut, ret_epoch, err);
}

/* `failover` on S returns when the group serves from the checkpoint; the merge goes on in jobs. */
int replication_stop(struct replication_group *group, bool failover, struct err *err) MAY_WAIT;
/* As a stop with failover; of an inconsistent group too: its disks become the truth as they are, or what
 * is left of an interrupted failover is merged. */
int replication_force_failover(struct replication_group *group, struct err *err) MAY_WAIT;

/*
 * The stream of a primary's writes (README.md). Whoever takes requests asks before the first change of
 * each connection to an export, and again after `renew`; 0, or the errno that the change gets. It may
 * wait, but not for requests.
 */
struct replication_writer {
    const struct edge *root; /* of the export: any, also one that is not the peer's */
    uint64_t connection;     /* a number never used again */
    uint64_t instance;       /* whose it says it is; 0: it does not */
    uint64_t
        former; /* the connection that still stands and wrote before, or is of another primary; 0: none */
};
int replication_admit(struct replication_group *group, const struct replication_writer *writer)
    MAY_WAIT;
/* One that was admitted, or says whose it is, has gone; in good order: it said so, and all that it asked for
 * went well. */
void replication_writer_ended(struct replication_group *group,
                              const struct replication_writer *writer, bool orderly);

/*
 * Sessions: what S knows of the primary that speaks to it (docs/peer-protocol.md). There is one at most,
 * the last that began. While it is connected nobody else writes to the disks or asks for checkpoints.
 */
struct replication_session {
    uint64_t number;   /* 0: there was none since the daemon was started */
    uint64_t instance; /* whose: the run of a daemon */
    bool connected;
};
struct replication_session replication_session(const struct replication_group *group);
struct replication_hello {
    uint64_t instance;
    uint64_t session; /* the one to go on with; 0: a new one */
    bool resync;      /* the disks are to be made equal: until then no checkpoint counts */
};
/* Whether a primary may speak to this group at all, and go on with the session that it names. */
int replication_hello_check(const struct replication_group *group,
                            const struct replication_hello *hello, struct err *err);
/*
 * Begins a session, connected, or goes on with it. When it returns no request of anybody else is under
 * way or will be let in; and what a new primary cannot continue has been marked so durably. Whoever
 * spoke for the former session does so no more: the caller sees to that.
 */
int replication_session_begin(struct replication_group *group,
                              const struct replication_hello *hello, struct err *err) MAY_WAIT;
/* Nobody speaks for the session any more, until it goes on. */
void replication_session_left(struct replication_group *group, const char *reason);
/* The primary's sticky error: `error` as in replication_query(), and in words. */
int replication_session_report(struct replication_group *group, uint64_t session,
                               struct json_object *error, const char *text, struct err *err)
    MAY_WAIT;
/* What a hello is answered with: {"session", "epoch", "generation", and the marks}; NULL when memory is
 * out. Made before the session begins, and filled when it has, which cannot fail: who is told of an error
 * has no session. */
struct json_object *replication_session_answer(const struct replication_group *group);
void replication_session_answer_fill(const struct replication_group *group,
                                     struct json_object *answer);
/* The edges by which a primary may write to each secondary disk; `disk` is its top-id. */
void replication_visit_roots(struct replication_group *group,
                             void (*visit)(void *arg, const char *disk, struct edge *const *roots,
                                           size_t count),
                             void *arg);

/* S: what its user sees is the truth, and may be written to: from a failover on, also when an earlier
 * run began it. */
bool replication_has_taken_over(const struct replication_group *group);
/* S: its disks may be written to by a primary: neither has it taken over, nor was it stopped. */
bool replication_takes_primary(const struct replication_group *group);

/* 0, or the sticky first error in words; -ENODEV when replication is not running. */
int replication_get_error(struct replication_group *group, struct err *err) MAY_WAIT;

/* That of the disks that are not done, if any; else of those that are. False: no node carries the
 * driver. */
bool replication_state(struct replication_group *group, enum replication_mode *ret_mode,
                       enum replication_stage *ret_stage);

/*
 * For query-replication; NULL when memory is out.
 * { "role": "primary"|"secondary"|"none", "stage": "none"|"running"|"failover"|"failover-failed"|"done",
 *   S, from its start on: "consistent", "inconsistent-reason" (when not), "stream-intact",
 *     "stream-reason" (when not), "durability" (with a state folder), "promoted" (when so)
 *   "session": {"number", "instance", "connected"} (S, after a hello), "peer-error" (S, when the primary has
 *     reported one): as below
 *   "epoch": n, "last-checkpoint": {"wall-time-ns", "age-ns", "held-ns", "duration-ns"}
 *     (when any; the last two when it was taken in this run of the daemon),
 *   "merge": {"done", "total", "rate"} (bytes, bytes/s; in a failover),
 *   P with a session: "peer": {"address", "connected", "reason" (when not), "session", "epoch",
 *     "stream-intact", "stream-reason" (when not), "error" (the secondary's own)},
 *   "error": as below (the first of all disks, when any),
 *   "disks": [ { "node", "mode", "stage",
 *       S: "top", "active", "hidden", "secondary" (node names), "active-bytes", "hidden-bytes" (held),
 *          "merge": {"job", "done", "total", "rate"}
 *       P: "peer" (node name), "in-flight", "in-flight-bytes", "forwarded-bytes",
 *          "link" (what the child's driver tells of itself)
 *       "error": {"side", "disk", "node", "operation", "offset", "length", "errno", "reason",
 *                 "wall-time-ns", "count"} } ] }
 */
struct json_object *replication_query(struct replication_group *group) MAY_WAIT;

#endif
