/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A pair of hosts in the simulator: a daemon on each, as the programs run it, with its real
 * configuration, control protocol, exports and links; a guest for each, who speaks NBD from a host of
 * its own; a manager, who speaks QMP from a third; and the oracle, who is told of everything that
 * begins and ends, and looks at everything that is read.
 */
#ifndef BLOCKSTEP_SIM_WORLD_H
#define BLOCKSTEP_SIM_WORLD_H

#include "coverage.h"
#include "history.h"
#include "oracle.h"

#include "control/daemon.h"
#include "drivers/nbd_client.h"
#include "loop/co_sync.h"
#include "loop/sim.h"

#define WORLD_SIDES         2u
#define WORLD_MAX_REQUESTS  24u /* of a guest, under way; further ones wait */
#define WORLD_USER_PORT     "10809"
#define WORLD_PEER_PORT     "10810"
#define WORLD_QMP_PORT      "4444"
#define WORLD_CONTROL_PORT  "4445" /* of the secondary, for its primary */
#define WORLD_TIME_LIMIT_NS (20000 * NS_PER_S)
/* What a request or a command may take while nothing is wrong. */
/* Who waits looks again after ever longer steps. */
#define WORLD_STEP_MAX_NS   (200 * NS_PER_MS)
#define WORLD_PATIENCE_NS   (300 * NS_PER_S)

enum role {
    ROLE_DOWN,    /* holds nothing that counts */
    ROLE_TRUTH,   /* its guest's disk is the disk */
    ROLE_STANDBY, /* can take over */
    ROLE_STALE,   /* was the truth; its guest does not know yet that it is not any more */
    ROLE_SYNC,    /* is being made a standby */
};
const char *role_name(enum role role);

struct world;
struct host;

/* One life of a daemon. */
struct process {
    struct list_link link;
    struct host *host;
    struct loop *loop;
    struct config config;
    struct daemon *daemon;
    bool secondary, make_disks, make_overlays, merge;
    bool starting, up, failed, ended, quitting;
    struct err err;
};

struct guest {
    struct host *host;
    struct loop *loop;
    struct nbd_client *clients[ORACLE_MAX_DISKS];
    bool broken[ORACLE_MAX_DISKS];
    unsigned users[ORACLE_MAX_DISKS]; /* requests that use the client */
    bool connecting[ORACLE_MAX_DISKS];
    unsigned life; /* counts the daemons it had */
    unsigned under_way;
    unsigned inside; /* of these, those that are not held */
    bool held;       /* by the manager: requests wait */
};

struct host {
    struct world *world;
    const char *name, *guest_host; /* hosts */
    unsigned index;
    enum role role;
    bool down;    /* ROLE_TRUTH, ROLE_STANDBY: its daemon died, and may be started again */
    bool merging; /* ROLE_TRUTH: the merge of its failover has not been seen to end */
    uint32_t took_over_at;
    bool took_over; /* ROLE_TRUTH, merging: it said so */
    bool linked;    /* ROLE_TRUTH: forwards to the other */
    bool frozen;
    bool power_lost; /* ROLE_STANDBY, and ROLE_TRUTH while merging: it has not started since */
    bool memory_faulty;
    uint64_t cut_off_until_ns; /* from its guest or its manager, more or less */
    unsigned disk_faults;      /* bits of enum cover_fault */
    bool flush_lost;           /* one may have failed: none succeeds before the next process */
    struct process *process;
    uint32_t life_began; /* of the last one: what came before went to another */
    struct guest guest;
    struct view *view;   /* what its guest may see */
    struct view *stream; /* what its disks got from the other side */
    struct sock *qmp;
    struct json_reader *qmp_reader;
    char qmp_bytes[2048]; /* received, not yet read */
    size_t qmp_at, qmp_length;
    bool jobs_failed;    /* for all that the manager knows */
    unsigned troubles;   /* counts what excuses requests and commands */
    bool changing;       /* a failover or a start is under way: requests may fail */
    bool bare;           /* ROLE_STANDBY: its daemon was started, replication not yet */
    bool awaits;         /* ROLE_SYNC: its first synchronisation */
    bool fenced;         /* a failover was refused, and may have shut its peer out */
    unsigned links_made; /* names are never used again */
    bool has_links;
};

struct world_stats {
    uint64_t requests, commands, checkpoints, failovers, stops, resumes, kills, power_cuts,
        restarts, inconsistent;
    uint64_t skipped;
};

/* What a run tells of itself. */
struct world_facts {
    uint32_t requests[WORLD_SIDES];       /* of each host to its disks, until the last operation */
    uint32_t allocations[WORLD_SIDES];    /* of each daemon in commands, likewise */
    uint32_t requests_begun[WORLD_SIDES]; /* of these, before the first operation, */
    uint32_t allocations_before[WORLD_SIDES]; /* and before the last workload's step */
    char choices[STRIKE_CHOICES_MAX + 1];
    bool many_choices; /* there were more */
};

struct world {
    const struct history *history;
    struct sim *sim;
    struct oracle *oracle;
    struct host hosts[WORLD_SIDES];
    unsigned truth; /* index */
    struct loop *manager;
    struct list processes; /* struct process */
    bool over;
    unsigned link_faults; /* bits of enum cover_fault */
    bool struck;          /* as the history wants it */
    unsigned commanding;  /* commands, starts and ends of daemons that are under way */
    bool troubled;        /* a fault has happened since the two were last in sync */
    unsigned troubles;
    bool managing; /* the manager's lane is busy */
    unsigned op;   /* index of the operation at hand; for reports */
    FILE *trace;
    struct world_stats stats;
    uint64_t hash;
    struct world_facts facts;
    enum sim_op strike_op;
    struct strike_choices *choices;
    struct list visits;        /* struct visit: calls under way */
    struct coverage *coverage; /* where they are counted; may be NULL */
    struct op ambush;          /* a fault that waits for its call */
    bool lies_in_wait;
    bool healed; /* the faults are over: those that are on their way do not come any more */
};

/* What went wrong, for good: the process ends with it. Set by the runner. */
typedef void world_violated(struct world *world, const char *invariant, const char *text);
extern world_violated *world_on_violation;

/* Runs all of it. Returns when the history has ended well. `stacks` and `coverage` may be NULL. */
void world_run(struct world *world, const struct history *history, struct co_stacks *stacks,
               FILE *trace, struct coverage *coverage);

/* --- between the parts --- */

void world_violation(struct world *world, const char *invariant, const char *fmt, ...)
    PRINTF_LIKE(3, 4) __attribute__((noreturn));
void world_note(struct world *world, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Nothing has been wrong since the two were last in sync: whoever fails now has no excuse. */
bool world_is_well(const struct world *world);
/* Nothing is wrong now that would keep the two from coming in sync. */
bool world_is_able(const struct world *world);
bool host_is_well(const struct host *host);
/* Its daemon is, as far as anybody knows. */
bool host_is_up(const struct host *host);
bool host_is_sound(const struct host *host);
/* A secondary that shows its user nothing: replication is not started, or awaits a synchronisation. */
bool host_is_closed(const struct host *host);
struct host *world_truth(struct world *world);
struct host *world_other(struct world *world);
/* Sleeps until the condition holds, or so long: false. */
#define WORLD_WAIT(world_, patience_ns_, condition_)                  \
    ({                                                                \
        uint64_t until_ = sim_now_ns((world_)->sim) + (patience_ns_); \
        uint64_t step_ = 20 * NS_PER_US;                              \
        while (!(condition_) && sim_now_ns((world_)->sim) < until_) { \
            co_sleep(step_);                                          \
            step_ = MIN(step_ * 2, WORLD_STEP_MAX_NS);                \
        }                                                             \
        (condition_);                                                 \
    })

/* process.c */
int process_start(struct host *host, bool secondary, bool make_disks, bool make_overlays,
                  struct err *err) MAY_WAIT;
void process_quit(struct host *host) MAY_WAIT;
void process_kill(struct host *host);
void process_forget(struct host *host); /* it died by itself or with its host */
void processes_reap(struct world *world);

/* guest.c */
void guest_init(struct guest *guest, struct host *host);
/* Begins a request; waits only for a place among those under way. */
void guest_request(struct guest *guest, const struct op *op) MAY_WAIT;
void guest_end(struct guest *guest);
bool guest_is_idle(const struct guest *guest);
/* Reads every sector of every disk. False: it could not. */
bool guest_read_all(struct guest *guest, uint8_t **ret_bytes) MAY_WAIT;
/* Its daemon is another one now. */
void guest_forget(struct guest *guest);

/* qmp.c */
/* 0: ret_result (may be NULL) holds a reference. -EREMOTEIO: refused, `err` says why. Others: no
 * answer; the command may have been carried out. */
int qmp_command(struct host *host, struct json_object **ret_result, struct err *err,
                const char *fmt, ...) PRINTF_LIKE(4, 5) MAY_WAIT;
void qmp_disconnect(struct host *host);

/* manager.c */
void manager_op(struct world *world, const struct op *op) MAY_WAIT;
void manager_settle(struct world *world) MAY_WAIT;
/* All faults end, and everything must heal. */
void manager_finish(struct world *world) MAY_WAIT;
int manager_start(struct host *host, const char *mode, const char *overlays, struct err *err)
    MAY_WAIT;
/* True: its merge has ended, or its daemon has. */
bool manager_wait_merged(struct host *host, uint64_t patience_ns) MAY_WAIT;
/* Of a host that does not answer, and might do so much later: its daemon dies. */
void manager_give_up(struct host *host);
/* A primary does not know whether its secondary has taken a checkpoint. */
bool manager_outcome_unknown(const struct err *err);
bool manager_query_stage(struct host *host, char *stage, size_t stage_bytes) MAY_WAIT;

/* pair.c */
void pair_begin(struct world *world) MAY_WAIT; /* a pair in sync */
/* The other becomes a standby again, by a copy of everything: `flags` of the operation. */
void pair_resume(struct world *world, unsigned flags) MAY_WAIT;
/* Takes the links of a truth away. -EBUSY: some are still there. */
int pair_unlink(struct host *host, struct err *err) MAY_WAIT;
/* From then on requests wait; those under way have ended. */
int pair_hold_guest(struct host *host, struct err *err) MAY_WAIT;

/* bounds.c: `idle`: no request and no job is under way */
void bounds_check(struct host *host, bool idle);

/* restart.c */
/* Does nothing for who is not down. `bare`: its daemon, not yet its replication. */
void manager_restart(struct world *world, struct host *host, bool bare) MAY_WAIT;

/* calls.c */
int call_send(struct host *host, enum cover_call call, bool secondary, struct err *err) MAY_WAIT;
/* A call that means nothing to the oracle in the stage that meets it; looks at the answer. False: there
 * is none. */
bool call_plain(struct host *host, enum cover_call call) MAY_WAIT;

/* visits.c */
/* A call under way. */
struct visit {
    struct list_link link;
    struct host *host;
    enum cover_stage stage;
    enum cover_call call;
    unsigned faults; /* bits of enum cover_fault */
    bool counts;
};
/* False: no daemon is up. */
bool host_stage(const struct host *host, enum cover_stage *ret_stage);
void visit_begin(struct visit *visit, struct host *host, enum cover_call call);
void visit_end(struct visit *visit);
void visits_struck(struct host *host, enum cover_fault fault);
void visits_link_struck(struct world *world, enum cover_fault fault);

/* faults.c */
void manager_fault(struct world *world, const struct op *op);
void host_fault(struct host *host, const struct op *op);
void manager_heal(struct world *world);
void kill_host(struct host *host);
void power_cut(struct host *host);
/* It has an excuse. */
void host_trouble(struct host *host);

/* strike.c: what the history wants to befall a host at a given request or allocation */
void strike_begin(struct world *world);
/* The pair is there: what is counted so far is the same in all histories. */
void strike_begun(struct world *world);
/* What a shorter workload has gone through already has happened. */
void strike_last(struct world *world);
/* Nothing more of it. */
void strike_end(struct world *world);
void strike_release(struct world *world);

#endif
