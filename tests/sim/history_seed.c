/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Histories drawn from a seed. */
#include "history.h"

#include <assert.h>
#include <string.h>

#define OPS_TYPICAL 200u

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct maker {
    struct history *history;
    uint64_t random;
    unsigned weights[OP_KIND_COUNT];
    unsigned wanted;
};

static uint32_t below(struct maker *maker, uint32_t limit)
{
    return (uint32_t)(random_next(&maker->random) % limit);
}

static bool chance(struct maker *maker, unsigned percent)
{
    return below(maker, 100) < percent;
}

/* What this history is about; the rest happens too, but seldom. */
enum theme {
    THEME_CALM,
    THEME_CHECKPOINTS,
    THEME_KILLS,
    THEME_POWER,
    THEME_LINKS,
    THEME_DISKS,
    THEME_FAILOVERS,
    THEME_ALL,
    THEME_COUNT,
};

static void weigh(struct maker *maker, enum theme theme)
{
    static const unsigned plain[OP_KIND_COUNT] = {
        [OP_WRITE] = 400, [OP_ZERO] = 40,    [OP_DISCARD] = 40, [OP_READ] = 120,
        [OP_FLUSH] = 40,  [OP_DELAY] = 120,  [OP_SETTLE] = 20,  [OP_CHECKPOINT] = 50,
        [OP_CHECK] = 8,   [OP_FAILOVER] = 4, [OP_RESUME] = 4,   [OP_RESTART] = 2,
        [OP_CALL] = 4,
    };
    static const struct {
        enum op_kind kind;
        unsigned weights[THEME_COUNT];
    } more[] = {
        {OP_CHECKPOINT, {0, 150, 20, 10, 10, 20, 40, 30}},
        {OP_FAILOVER, {0, 0, 8, 4, 8, 8, 25, 10}},
        {OP_RESUME, {0, 2, 12, 12, 8, 12, 12, 10}},
        {OP_STOP, {0, 4, 2, 0, 4, 12, 4, 4}},
        {OP_RESTART, {0, 0, 20, 20, 0, 2, 8, 8}},
        {OP_CALL, {0, 4, 8, 8, 8, 8, 12, 8}},
        {OP_KILL, {0, 0, 25, 2, 2, 2, 10, 8}},
        {OP_POWER_CUT, {0, 0, 2, 15, 0, 0, 2, 5}},
        {OP_FREEZE, {0, 0, 2, 0, 10, 0, 4, 4}},
        {OP_THAW, {0, 0, 4, 0, 20, 0, 8, 8}},
        {OP_LINK_CUT, {0, 0, 0, 0, 15, 0, 2, 4}},
        {OP_LINK_SLOW, {0, 5, 0, 0, 15, 0, 2, 4}},
        {OP_LINK_BREAK, {0, 0, 0, 0, 12, 0, 2, 4}},
        {OP_LINK_LOSE, {0, 0, 0, 0, 12, 0, 2, 4}},
        {OP_LINK_HEAL, {0, 5, 0, 0, 30, 0, 6, 8}},
        {OP_DISK_FAIL, {0, 0, 0, 0, 0, 25, 4, 6}},
        {OP_DISK_STALL, {0, 3, 2, 0, 0, 15, 4, 6}},
        {OP_DISK_FULL, {0, 0, 0, 0, 0, 8, 2, 3}},
        {OP_DISK_BAD, {0, 0, 2, 2, 0, 12, 4, 4}},
        {OP_DISK_HEAL, {0, 6, 4, 0, 0, 30, 8, 10}},
    };

    memcpy(maker->weights, plain, sizeof(plain));
    for (size_t i = 0; i < ARRAY_LEN(more); i++)
        maker->weights[more[i].kind] += more[i].weights[theme];
}

static enum op_kind draw_kind(struct maker *maker)
{
    unsigned total = 0;

    for (unsigned kind = 0; kind < OP_KIND_COUNT; kind++)
        total += maker->weights[kind];
    unsigned at = below(maker, total);
    for (unsigned kind = 0; kind < OP_KIND_COUNT; kind++) {
        if (at < maker->weights[kind])
            return kind;
        at -= maker->weights[kind];
    }
    return OP_SETTLE;
}

/* Small and large, aligned and not, mostly where others are too. */
static void draw_range(struct maker *maker, struct op *op)
{
    uint32_t sectors = maker->history->sectors;
    uint32_t area = chance(maker, 70) ? MIN(sectors, 64) : sectors;
    uint32_t first = below(maker, area), count;

    switch (below(maker, 8)) {
    case 0:
    case 1:
    case 2:
        count = 1 + below(maker, 4);
        break;
    case 3:
    case 4:
        first = first / 8 * 8;
        count = 8;
        break;
    case 5:
        count = 1 + below(maker, 40);
        break;
    case 6:
        first = first / 8 * 8;
        count = 8 * (1 + below(maker, 8));
        break;
    default:
        count = chance(maker, 20) ? 1 + below(maker, sectors) : 1;
        break;
    }
    op->a = first;
    op->b = MIN(count, sectors - first);
}

static void draw_fault(struct maker *maker, struct op *op)
{
    op->a = below(maker, 4) | below(maker, 5) << 8;
    if (op->kind == OP_DISK_STALL)
        op->a |= (chance(maker, 80) ? 1 + below(maker, 40) : 1000 + below(maker, 40000)) << 16;
    op->b = (1 + below(maker, 12)) | (chance(maker, 70) ? 1 + below(maker, 3) : 0xffff) << 16;
    if (op->kind == OP_DISK_FULL)
        op->b = below(maker, 20);
}

/* Some sectors, mostly where others are written too. */
static void draw_bad_sectors(struct maker *maker, struct op *op)
{
    struct op range;

    draw_range(maker, &range);
    op->a = (1 + below(maker, 3)) | (chance(maker, 30) ? 1 << 8 : 0);
    op->b = range.a | MIN(range.b, 16) << 16;
}

/* Mostly the link of the pair. */
static void draw_link(struct maker *maker, struct op *op)
{
    op->b = chance(maker, 70) ? LINK_OF_PAIR : LINK_OF_GUEST + below(maker, 2);
    if (op->kind == OP_LINK_LOSE)
        op->b |= below(maker, chance(maker, 50) ? 300 : 30000) << 2;
}

static struct op *push(struct maker *maker, enum op_kind kind)
{
    struct history *history = maker->history;

    assert(history->count < HISTORY_MAX_OPS);
    struct op *op = &history->ops[history->count++];
    *op = (struct op){.kind = (uint8_t)kind};
    return op;
}

static void draw_op(struct maker *maker)
{
    struct op *op = push(maker, draw_kind(maker));

    op->disk = (uint8_t)below(maker, maker->history->disks);
    op->side = chance(maker, 30) ? SIDE_OTHER : SIDE_TRUTH;
    switch (op->kind) {
    case OP_WRITE:
    case OP_ZERO:
    case OP_DISCARD:
    case OP_READ:
        draw_range(maker, op);
        op->flags = op->kind == OP_WRITE && chance(maker, 10) ? OP_FUA : 0;
        break;
    case OP_DELAY:
        op->a = chance(maker, 90) ? 1 + below(maker, 600) : below(maker, 20000);
        break;
    case OP_CHECKPOINT:
    case OP_FAILOVER:
    case OP_RESUME:
    case OP_RESTART:
    case OP_STOP:
    case OP_CHECK:
        op->side = (uint8_t)below(maker, 2);
        op->flags = chance(maker, 40) ? OP_WAIT : 0;
        if (op->kind == OP_RESUME || op->kind == OP_RESTART)
            op->flags |= chance(maker, 15) ? OP_BARE : 0;
        if (op->kind == OP_RESUME)
            op->flags |= chance(maker, 40) ? OP_KEEP : 0;
        break;
    case OP_CALL:
        op->a = below(maker, COVER_READ);
        break;
    case OP_FLUSH:
    case OP_SETTLE:
        break;
    default:
        op->side = (uint8_t)below(maker, 2);
        op->a = below(maker, 3) + (chance(maker, 25) ? LINK_VERY_SLOW : 0);
        if (op->kind == OP_DISK_FAIL || op->kind == OP_DISK_STALL || op->kind == OP_DISK_FULL)
            draw_fault(maker, op);
        else if (op->kind == OP_DISK_BAD)
            draw_bad_sectors(maker, op);
        else if (op->kind >= OP_LINK_CUT && op->kind <= OP_LINK_LOSE)
            draw_link(maker, op);
        break;
    }
}

/* A primary dies while much of what it has sent is still on its way, and another one follows that is
 * synchronised onto the same secondary before it arrives. */
static void draw_replacement(struct maker *maker)
{
    push(maker, OP_LINK_HEAL);
    *push(maker, OP_RESTART) = (struct op){.kind = OP_RESTART, .flags = OP_WAIT};
    *push(maker, OP_RESUME) = (struct op){.kind = OP_RESUME, .flags = OP_WAIT | OP_IF_BROKEN};
    *push(maker, OP_LINK_SLOW) = (struct op){.kind = OP_LINK_SLOW,
                                             .a = LINK_TO_OTHER + LINK_VERY_SLOW};
    for (unsigned i = 0; i < 6; i++) {
        struct op *op = push(maker, chance(maker, 80) ? OP_WRITE : OP_ZERO);
        op->disk = (uint8_t)below(maker, maker->history->disks);
        draw_range(maker, op);
    }
    *push(maker, OP_DELAY) = (struct op){.kind = OP_DELAY, .a = 300 + below(maker, 2000)};
    push(maker, OP_KILL);
    push(maker, OP_LINK_HEAL);
    *push(maker, OP_RESTART) = (struct op){.kind = OP_RESTART, .flags = OP_WAIT};
    *push(maker, OP_RESUME) = (struct op){.kind = OP_RESUME, .flags = OP_WAIT | OP_KEEP};
    *push(maker, OP_DELAY) = (struct op){.kind = OP_DELAY, .a = below(maker, 2000000)};
    *push(maker, OP_CHECKPOINT) = (struct op){.kind = OP_CHECKPOINT, .flags = OP_WAIT};
    *push(maker, OP_CHECK) = (struct op){.kind = OP_CHECK, .flags = OP_WAIT};
}

static void draw_visit(struct maker *maker, uint64_t number)
{
    struct history *history = maker->history;
    struct op ops[STEER_OPS_MAX];
    unsigned count = steer(number, below(maker, UINT32_MAX), ops, history);

    for (unsigned i = 0; i < count; i++)
        *push(maker, ops[i].kind) = ops[i];
}

void history_from_seed(struct history *history, uint64_t seed)
{
    static const uint32_t sizes[] = {128, 128, 128, 256, 512};
    static const uint32_t blocks[] = {4096, 4096, 512, 16384};
    struct maker maker = {.history = history, .random = seed};

    *history = (struct history){.seed = seed};
    history->disks = chance(&maker, 50) ? 1 : 2 + below(&maker, 2);
    history->sectors = sizes[below(&maker, ARRAY_LEN(sizes))];
    if (chance(&maker, 3))
        history->sectors = 2048;
    history->block_bytes = blocks[below(&maker, ARRAY_LEN(blocks))];
    history->standby_runs = chance(&maker, 60);
    history->slow_net = chance(&maker, 20);
    history->slow_disks = chance(&maker, 30);
    history->peer_control = chance(&maker, 50);
    weigh(&maker, below(&maker, THEME_COUNT));
    unsigned wanted = OPS_TYPICAL / 2 + below(&maker, OPS_TYPICAL - STEER_VISITS * STEER_OPS_MAX);
    for (unsigned visit = 0; visit <= STEER_VISITS; visit++) {
        for (unsigned i = 0; i < wanted / (STEER_VISITS + 1); i++)
            draw_op(&maker);
        if (visit == 0 && history->peer_control && chance(&maker, 25))
            draw_replacement(&maker);
        if (visit < STEER_VISITS)
            draw_visit(&maker, seed * STEER_VISITS + visit);
    }
}
