/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What happens to a simulated pair, as plain data: a list of operations that can be printed, cut down
 * and replayed. Operations name sides by what they are at the time (the truth, the other one), and
 * those that make no sense in the state met are left out by the world: so every sublist of a history
 * is a history.
 */
#ifndef BLOCKSTEP_SIM_HISTORY_H
#define BLOCKSTEP_SIM_HISTORY_H

#include "coverage.h"

#include "base/defs.h"

#include <stdio.h>

#define HISTORY_MAX_OPS 400u

enum op_kind {
    /* requests of the guest of a side; they begin, and the history goes on */
    OP_WRITE,
    OP_ZERO,
    OP_DISCARD,
    OP_READ,
    OP_FLUSH,
    /* time */
    OP_DELAY,  /* microseconds */
    OP_SETTLE, /* until no request is under way */
    /* the manager; commands one after the other, beside the guests */
    OP_CHECKPOINT,
    OP_FAILOVER,
    OP_RESUME,
    OP_RESTART,
    OP_STOP,  /* replication, without a failover */
    OP_CHECK, /* everything is read */
    OP_CALL,  /* a command to a side, whatever its stage: a: enum cover_call */
    /* faults, at once */
    OP_KILL,
    OP_POWER_CUT,
    OP_FREEZE,
    OP_THAW,
    OP_LINK_CUT,
    OP_LINK_SLOW,
    OP_LINK_BREAK,
    OP_LINK_LOSE,
    OP_LINK_HEAL,
    OP_DISK_FAIL,
    OP_DISK_STALL,
    OP_DISK_FULL,
    OP_DISK_BAD,
    OP_DISK_HEAL,
    OP_KIND_COUNT,
};

enum op_side { SIDE_TRUTH, SIDE_OTHER };
enum op_flags {
    OP_FUA = 1,
    OP_WAIT = 2, /* the manager's command is waited for */
    OP_BARE =
        4, /* restart: replication is not started; resume: the other awaits its copy, no more */
    OP_IF_BROKEN = 8, /* resume: only when the other does not follow */
    OP_KEEP = 32,     /* resume: of the daemon that is there, if it is a standby and peer_control */
    /* A fault that waits for a call in a stage (below), and strikes when it next begins: the host that
     * is called (SIDE_TRUTH), or the other one. */
    OP_AMBUSH = 16,
};
#define OP_AMBUSH_AT(stage, call) (OP_AMBUSH | (stage) << 8 | (call) << 12)
#define OP_STAGE(op)              ((enum cover_stage)((op)->flags >> 8 & 15))
#define OP_CALL_OF(op)            ((enum cover_call)((op)->flags >> 12))
enum link_way {
    LINK_BOTH,
    LINK_TO_OTHER,
    LINK_TO_TRUTH,
    LINK_VERY_SLOW, /* added to one of them */
};
/* Of the two daemons, or of one with its guest or with the manager: there "other" is the daemon. */
enum link_of { LINK_OF_PAIR, LINK_OF_GUEST, LINK_OF_MANAGER, LINK_OF_COUNT };
/* Which file of a disk a fault strikes. */
enum disk_file { DISK_FILE_ANY, DISK_FILE_RAW, DISK_FILE_HIDDEN, DISK_FILE_ACTIVE };

struct op {
    uint8_t kind, side, disk;
    uint16_t flags;
    uint32_t a, b; /* sectors: first, count; DISK_*: file | op << 8, nth | times << 16;
                      DISK_BAD: file | 256 when writes fail too, first | count << 16; LINK_*: way,
                      enum link_of | bytes << 2 */
};

#define STRIKE_CHOICES_MAX 255u

/* What befalls one host, once. */
enum strike_kind {
    STRIKE_NONE,
    STRIKE_KILL,   /* a request to its disks is the last of its daemon, */
    STRIKE_POWER,  /* or of the host */
    STRIKE_ERROR,  /* a request fails, */
    STRIKE_ERRORS, /* and all further ones of its kind */
    STRIKE_MEMORY, /* an allocation of its daemon fails, while a command is under way */
};
struct strike {
    uint8_t kind; /* enum strike_kind */
    uint8_t host; /* 0: the one that begins as the truth */
    bool after;   /* the request has taken effect */
    uint32_t at;  /* which of its requests, or allocations, from 1 */
    /* What became of that which was not durable, or under way: "0" or "1" for each choice, in the order
     * in which they are asked for; behind the end of it all are "0". */
    char choices[STRIKE_CHOICES_MAX + 1];
};

struct history {
    uint64_t seed;
    unsigned disks;
    uint32_t sectors;          /* of each disk */
    uint32_t block_bytes;      /* of the overlays */
    bool standby_runs;         /* a machine runs on the secondary all the time */
    bool slow_net, slow_disks; /* of the world */
    bool peer_control;         /* the primary asks its secondary itself */
    struct strike strike;
    unsigned count;
    struct op ops[HISTORY_MAX_OPS];
};

const char *op_name(enum op_kind kind);
/* In words; one line without its end. */
void op_print(const struct op *op, char *text, size_t text_bytes);
/* In words, and so that history_load() reads it again; "-" is standard input. */
void history_print(const struct history *history, FILE *to);
bool history_load(struct history *history, const char *path);
void history_from_seed(struct history *history, uint64_t seed);
/* Operations that lead into a cell of the coverage table: the numbers go round all that can be visited.
 * `draw` is for what else is to be chosen. Returns how many; sets what the history must be for that. */
#define STEER_OPS_MAX 40u
#define STEER_VISITS  2u    /* of each seed's history */
uint64_t steer_round(void); /* so many numbers go round once */
unsigned steer(uint64_t number, uint32_t draw, struct op *ops, struct history *history);
/* By name; false: there is none. */
bool history_scenario(struct history *history, const char *name, uint64_t seed);
void history_scenarios_print(FILE *to);

#endif
