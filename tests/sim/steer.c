/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations that bring a pair into a cell of the coverage table, whatever state they meet. */
#include "history.h"

#include <assert.h>

#define CELLS_MAX (2 * COVER_STAGE_COUNT * COVER_CALL_COUNT * COVER_FAULT_COUNT)

struct way {
    struct op *ops;
    unsigned count;
};

static struct op *add(struct way *way, struct op op)
{
    assert(way->count < STEER_OPS_MAX);
    way->ops[way->count] = op;
    return &way->ops[way->count++];
}

#define ADD(way_, ...) add(way_, (struct op){__VA_ARGS__})

static void add_heal(struct way *way)
{
    for (uint8_t side = SIDE_TRUTH; side <= SIDE_OTHER; side++) {
        ADD(way, .kind = OP_THAW, .side = side);
        ADD(way, .kind = OP_DISK_HEAL, .side = side);
    }
    ADD(way, .kind = OP_LINK_HEAL);
}

/* A pair in sync, or with `awaits` one that is about to be. */
static void add_pair(struct way *way, bool awaits)
{
    add_heal(way);
    ADD(way, .kind = OP_RESTART, .side = SIDE_TRUTH, .flags = OP_WAIT);
    ADD(way, .kind = OP_RESUME, .flags = OP_WAIT | (awaits ? OP_BARE : OP_IF_BROKEN));
}

/* So that there is something to merge, and to fail at. */
static void add_writes(struct way *way)
{
    ADD(way, .kind = OP_WRITE, .side = SIDE_TRUTH, .a = 3, .b = 60);
    ADD(way, .kind = OP_WRITE, .side = SIDE_OTHER, .a = 40, .b = 50);
    ADD(way, .kind = OP_WRITE, .side = SIDE_TRUTH, .a = 70, .b = 50);
    ADD(way, .kind = OP_SETTLE);
}

/* The side that is in that stage then. */
static enum op_side add_stage(struct way *way, enum cover_stage stage)
{
    add_pair(way, stage == COVER_S_AWAITING);
    switch (stage) {
    case COVER_P_NONE:
        ADD(way, .kind = OP_KILL, .side = SIDE_TRUTH);
        ADD(way, .kind = OP_RESTART, .side = SIDE_TRUTH, .flags = OP_WAIT);
        return SIDE_TRUTH;
    case COVER_P_RUNNING:
        return SIDE_TRUTH;
    case COVER_P_DONE:
        ADD(way, .kind = OP_CALL, .side = SIDE_TRUTH, .flags = OP_WAIT, .a = COVER_STOP);
        return SIDE_TRUTH;
    case COVER_S_NONE:
        ADD(way, .kind = OP_KILL, .side = SIDE_OTHER);
        ADD(way, .kind = OP_RESTART, .side = SIDE_OTHER, .flags = OP_WAIT | OP_BARE);
        return SIDE_OTHER;
    case COVER_S_AWAITING:
    case COVER_S_RUNNING:
        return SIDE_OTHER;
    case COVER_S_FAILOVER:
        add_writes(way);
        ADD(way, .kind = OP_FAILOVER, .flags = OP_WAIT);
        return SIDE_TRUTH;
    case COVER_S_FAILOVER_FAILED:
        add_writes(way);
        ADD(way, .kind = OP_DISK_FAIL, .side = SIDE_OTHER, .a = DISK_FILE_RAW | 2 << 8,
            .b = 1 | 0xffffu << 16);
        ADD(way, .kind = OP_FAILOVER, .flags = OP_WAIT);
        ADD(way, .kind = OP_DELAY, .a = 3000);
        ADD(way, .kind = OP_DISK_HEAL, .side = SIDE_TRUTH);
        return SIDE_TRUTH;
    default:
        ADD(way, .kind = OP_FAILOVER, .flags = OP_WAIT);
        ADD(way, .kind = OP_DELAY, .a = 50000);
        return SIDE_TRUTH;
    }
}

static void add_disk_fault(struct way *way, enum op_kind kind, enum op_side side, uint16_t flags,
                           uint32_t draw)
{
    uint32_t file = draw % 4, request = draw / 4 % 5, nth = 1 + draw / 32 % 2;

    if (kind == OP_DISK_FULL)
        ADD(way, .kind = OP_DISK_FULL, .side = (uint8_t)side, .flags = flags);
    else
        ADD(way, .kind = (uint8_t)kind, .side = (uint8_t)side, .flags = flags,
            .a = file | request << 8 | (kind == OP_DISK_STALL ? 5u << 16 : 0), .b = nth | 3u << 16);
}

/* It strikes when the call begins. */
static void add_fault(struct way *way, enum cover_stage stage, enum cover_call call,
                      enum cover_fault fault, uint32_t draw)
{
    static const enum op_kind disks[] = {OP_DISK_FAIL, OP_DISK_FULL, OP_DISK_STALL};
    static const enum op_kind kinds[COVER_FAULT_COUNT] = {
        [COVER_KILL] = OP_KILL,
        [COVER_POWER_CUT] = OP_POWER_CUT,
        [COVER_FROZEN] = OP_FREEZE,
        [COVER_DISK_ERROR] = OP_DISK_FAIL,
        [COVER_DISK_FULL] = OP_DISK_FULL,
        [COVER_DISK_STALL] = OP_DISK_STALL,
        [COVER_LINK_CUT] = OP_LINK_CUT,
        [COVER_LINK_SLOW] = OP_LINK_SLOW,
        [COVER_LINK_BREAK] = OP_LINK_BREAK,
        [COVER_PEER_DOWN] = OP_KILL,
        [COVER_PEER_FROZEN] = OP_FREEZE,
    };
    enum op_side side = fault >= COVER_PEER_DOWN ? SIDE_OTHER : SIDE_TRUTH;
    uint16_t flags = (uint16_t)OP_AMBUSH_AT(stage, call);
    enum op_kind kind = fault == COVER_PEER_DISK ? disks[draw % 3] : kinds[fault];

    if (fault == COVER_NONE)
        return;
    if (kind == OP_DISK_FAIL || kind == OP_DISK_FULL || kind == OP_DISK_STALL)
        add_disk_fault(way, kind, side, flags, draw / 3);
    else
        ADD(way, .kind = (uint8_t)kind, .side = (uint8_t)side, .flags = flags, .a = draw % 3);
}

static void add_call(struct way *way, enum op_side side, enum cover_call call)
{
    static const enum op_kind kinds[COVER_CALL_COUNT] = {
        [COVER_READ] = OP_READ,       [COVER_WRITE] = OP_WRITE, [COVER_ZERO] = OP_ZERO,
        [COVER_DISCARD] = OP_DISCARD, [COVER_FLUSH] = OP_FLUSH,
    };

    if (call < COVER_READ)
        ADD(way, .kind = OP_CALL, .side = (uint8_t)side, .a = call);
    else
        ADD(way, .kind = (uint8_t)kinds[call], .side = (uint8_t)side, .a = 5, .b = 30);
}

/* Of a standby whose user only looks on there are no changes. */
static bool wants_user(enum cover_stage stage, enum cover_call call)
{
    return stage >= COVER_S_NONE && stage <= COVER_S_RUNNING && call >= COVER_WRITE &&
           call <= COVER_DISCARD;
}

/* So often in a round: where the way does not always lead there in time, and rounds are few. */
static unsigned weight(enum cover_stage stage, enum cover_call call)
{
    return stage == COVER_S_FAILOVER || (stage == COVER_S_AWAITING && call == COVER_FIRST) ? 2 : 1;
}

static unsigned cells_possible(uint16_t *cells)
{
    unsigned count = 0;

    for (unsigned stage = 0; stage < COVER_STAGE_COUNT; stage++) {
        for (unsigned call = 0; call < COVER_CALL_COUNT; call++) {
            for (unsigned fault = 0; fault < COVER_FAULT_COUNT; fault++) {
                if (cover_why_not(stage, call, fault) != NULL)
                    continue;
                for (unsigned i = weight(stage, call); i > 0; i--)
                    cells[count++] = (uint16_t)(stage << 8 | call << 4 | fault);
            }
        }
    }
    return count;
}

uint64_t steer_round(void)
{
    uint16_t cells[CELLS_MAX];

    return cells_possible(cells);
}

unsigned steer(uint64_t number, uint32_t draw, struct op *ops, struct history *history)
{
    uint16_t cells[CELLS_MAX];
    uint16_t cell = cells[number % cells_possible(cells)];
    enum cover_stage stage = cell >> 8;
    enum cover_call call = cell >> 4 & 15;
    struct way way = {.ops = ops};

    enum op_side side = add_stage(&way, stage);
    add_fault(&way, stage, call, cell & 15, draw);
    add_call(&way, side, call);
    ADD(&way, .kind = OP_DELAY, .a = 3000);
    add_heal(&way);
    history->standby_runs = history->standby_runs || wants_user(stage, call);
    /* With it the primary makes its secondary's first checkpoint. */
    history->peer_control = history->peer_control && call != COVER_FIRST;
    return way.count;
}
