/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "history.h"

#include <inttypes.h>
#include <string.h>

enum { history_max_disks = 3 };

/* --- in words --- */

static const char *const op_names[OP_KIND_COUNT] = {
    [OP_WRITE] = "write",
    [OP_ZERO] = "zero",
    [OP_DISCARD] = "discard",
    [OP_READ] = "read",
    [OP_FLUSH] = "flush",
    [OP_DELAY] = "let time pass",
    [OP_SETTLE] = "wait for all requests",
    [OP_CHECKPOINT] = "checkpoint",
    [OP_FAILOVER] = "failover",
    [OP_RESUME] = "bring the other in sync",
    [OP_RESTART] = "restart",
    [OP_STOP] = "stop replication",
    [OP_CHECK] = "read everything",
    [OP_CALL] = "call",
    [OP_KILL] = "kill",
    [OP_POWER_CUT] = "cut the power of",
    [OP_FREEZE] = "freeze",
    [OP_THAW] = "thaw",
    [OP_LINK_CUT] = "cut the link",
    [OP_LINK_SLOW] = "slow the link",
    [OP_LINK_BREAK] = "break the connections",
    [OP_LINK_LOSE] = "break the connection that carries more",
    [OP_LINK_HEAL] = "heal the links",
    [OP_DISK_FAIL] = "disk fails",
    [OP_DISK_STALL] = "disk stalls",
    [OP_DISK_FULL] = "disks are full",
    [OP_DISK_BAD] = "disk has bad sectors",
    [OP_DISK_HEAL] = "disks heal",
};

/* What a printed history calls them. */
static const char *const op_words[OP_KIND_COUNT] = {
    [OP_WRITE] = "write",
    [OP_ZERO] = "zero",
    [OP_DISCARD] = "discard",
    [OP_READ] = "read",
    [OP_FLUSH] = "flush",
    [OP_DELAY] = "delay",
    [OP_SETTLE] = "settle",
    [OP_CHECKPOINT] = "checkpoint",
    [OP_FAILOVER] = "failover",
    [OP_RESUME] = "resume",
    [OP_RESTART] = "restart",
    [OP_STOP] = "stop",
    [OP_CHECK] = "check",
    [OP_CALL] = "call",
    [OP_KILL] = "kill",
    [OP_POWER_CUT] = "power-cut",
    [OP_FREEZE] = "freeze",
    [OP_THAW] = "thaw",
    [OP_LINK_CUT] = "link-cut",
    [OP_LINK_SLOW] = "link-slow",
    [OP_LINK_BREAK] = "link-break",
    [OP_LINK_LOSE] = "link-lose",
    [OP_LINK_HEAL] = "link-heal",
    [OP_DISK_FAIL] = "disk-fail",
    [OP_DISK_STALL] = "disk-stall",
    [OP_DISK_FULL] = "disk-full",
    [OP_DISK_BAD] = "disk-bad",
    [OP_DISK_HEAL] = "disk-heal",
};

static const char *const side_names[] = {"truth", "other"};
static const char *const way_names[] = {"both ways", "truth to other", "other to truth"};
static const char *const file_names[] = {"all", "raw", "hidden", "active"};
static const char *const strike_names[] = {"none", "kill", "power", "error", "errors", "memory"};
static const char *const request_names[] = {"any", "read", "write", "sync", "zero"};

const char *op_name(enum op_kind kind)
{
    return op_names[kind];
}

static void print_link_fault(const struct op *op, char *text, size_t text_bytes)
{
    static const char *const pairs[] = {"", "guest and daemon of ", "manager and daemon of "};

    unsigned of = op->b % 4 % LINK_OF_COUNT;

    snprintf(text, text_bytes, "%s%s%s%s%s (%s)", op_names[op->kind],
             op->kind == OP_LINK_SLOW && op->a >= LINK_VERY_SLOW ? " very much" : "",
             of == LINK_OF_PAIR ? "" : " of ", pairs[of],
             of == LINK_OF_PAIR ? "" : side_names[op->side], way_names[op->a % 3]);
    if (op->kind == OP_LINK_LOSE)
        snprintf(text + strlen(text), text_bytes - strlen(text), ": %" PRIu32 " bytes", op->b >> 2);
}

static void print_disk_fault(const struct op *op, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes,
             "%s of %s: disk %u, %s, %s, from the %" PRIu32 ". on %" PRIu32 " times",
             op_names[op->kind], side_names[op->side], op->disk, file_names[op->a % 4],
             request_names[(op->a >> 8) % 5 & 0xff], op->b & 0xffff, op->b >> 16);
    if (op->kind == OP_DISK_STALL)
        snprintf(text + strlen(text), text_bytes - strlen(text), ", for %" PRIu32 " ms",
                 op->a >> 16);
}

static void print_ambush(const struct op *op, char *text, size_t text_bytes)
{
    snprintf(text + strlen(text), text_bytes - strlen(text), " (%s), as soon as %s, %s, is called",
             op->side == SIDE_TRUTH ? "that host" : "the other one", cover_stage_name(OP_STAGE(op)),
             cover_call_name(OP_CALL_OF(op)));
}

static void print_plain(const struct op *op, char *text, size_t text_bytes)
{
    switch (op->kind) {
    case OP_WRITE:
    case OP_ZERO:
    case OP_DISCARD:
    case OP_READ:
        snprintf(text, text_bytes, "guest of %s: %s disk %u, sectors %" PRIu32 " to %" PRIu32 "%s",
                 side_names[op->side], op_names[op->kind], op->disk, op->a, op->a + op->b - 1,
                 (op->flags & OP_FUA) != 0 ? ", FUA" : "");
        break;
    case OP_FLUSH:
        snprintf(text, text_bytes, "guest of %s: flush disk %u", side_names[op->side], op->disk);
        break;
    case OP_DELAY:
        snprintf(text, text_bytes, "let %" PRIu32 " us pass", op->a);
        break;
    case OP_DISK_BAD:
        snprintf(text, text_bytes, "%s of %s: disk %u, %s, sectors %" PRIu32 " to %" PRIu32 "%s",
                 op_names[op->kind], side_names[op->side], op->disk, file_names[op->a % 4],
                 op->b & 0xffff, (op->b & 0xffff) + (op->b >> 16) - 1,
                 op->a >> 8 != 0 ? ", for writes too" : "");
        break;
    case OP_LINK_CUT:
    case OP_LINK_SLOW:
    case OP_LINK_BREAK:
    case OP_LINK_LOSE:
        print_link_fault(op, text, text_bytes);
        break;
    case OP_DISK_FAIL:
    case OP_DISK_STALL:
        print_disk_fault(op, text, text_bytes);
        break;
    case OP_DISK_FULL:
        snprintf(text, text_bytes, "disks of %s have room for %" PRIu32 " pages",
                 side_names[op->side], op->b);
        break;
    case OP_CALL:
        snprintf(text, text_bytes, "tell %s: %s%s", side_names[op->side],
                 cover_call_name(op->a % COVER_READ),
                 (op->flags & OP_WAIT) != 0 ? "" : ", and go on meanwhile");
        break;
    case OP_RESUME:
        snprintf(text, text_bytes, "%s%s%s%s%s", op_names[op->kind],
                 (op->flags & OP_KEEP) != 0 ? " as it runs" : "",
                 (op->flags & OP_BARE) != 0 ? ", but do not begin to" : "",
                 (op->flags & OP_IF_BROKEN) != 0 ? " if it is not" : "",
                 (op->flags & OP_WAIT) != 0 ? "" : ", and go on meanwhile");
        break;
    case OP_CHECKPOINT:
    case OP_FAILOVER:
    case OP_STOP:
    case OP_CHECK:
        snprintf(text, text_bytes, "%s%s", op_names[op->kind],
                 (op->flags & OP_WAIT) != 0 ? "" : ", and go on meanwhile");
        break;
    case OP_RESTART:
        snprintf(text, text_bytes, "%s %s%s", op_names[op->kind], side_names[op->side],
                 (op->flags & OP_BARE) != 0 ? ", without replication" : "");
        break;
    case OP_SETTLE:
    case OP_LINK_HEAL:
        snprintf(text, text_bytes, "%s", op_names[op->kind]);
        break;
    default:
        snprintf(text, text_bytes, "%s %s", op_names[op->kind], side_names[op->side]);
        break;
    }
}

void op_print(const struct op *op, char *text, size_t text_bytes)
{
    print_plain(op, text, text_bytes);
    if ((op->flags & OP_AMBUSH) != 0)
        print_ambush(op, text, text_bytes);
}

void history_print(const struct history *history, FILE *to)
{
    const struct strike *strike = &history->strike;

    fprintf(to,
            "seed %" PRIu64 " disks %u sectors %" PRIu32 " block-bytes %" PRIu32
            " standby-runs %d slow-net %d slow-disks %d peer-control %d strike %s %u %" PRIu32
            " %d %s-\n",
            history->seed, history->disks, history->sectors, history->block_bytes,
            history->standby_runs, history->slow_net, history->slow_disks, history->peer_control,
            strike_names[strike->kind], strike->host, strike->at, strike->after, strike->choices);
    for (unsigned i = 0; i < history->count; i++) {
        const struct op *op = &history->ops[i];
        char text[200];
        op_print(op, text, sizeof(text));
        fprintf(to, "%-10s %u %u %u %7" PRIu32 " %7" PRIu32 "  # %u: %s\n", op_words[op->kind],
                op->side, op->disk, op->flags, op->a, op->b, i, text);
    }
}

static bool load_op(const char *line, struct op *op)
{
    char word[16];
    unsigned side, disk, flags;

    if (sscanf(line, "%15s %u %u %u %" SCNu32 " %" SCNu32, word, &side, &disk, &flags, &op->a,
               &op->b) != 6)
        return false;
    op->side = (uint8_t)side;
    op->disk = (uint8_t)disk;
    op->flags = (uint16_t)flags;
    if (OP_STAGE(op) >= COVER_STAGE_COUNT || OP_CALL_OF(op) >= COVER_CALL_COUNT)
        return false;
    for (unsigned kind = 0; kind < OP_KIND_COUNT; kind++) {
        op->kind = (uint8_t)kind;
        if (strcmp(op_words[kind], word) == 0)
            return side < 2 && disk < history_max_disks;
    }
    return false;
}

/* NULL: nothing is said of one. */
static bool load_strike(const char *text, struct strike *strike)
{
    unsigned host;
    int after;
    char name[16];

    if (text == NULL)
        return true;
    if (sscanf(text, " strike %15s %u %" SCNu32 " %d %255[01]", name, &host, &strike->at, &after,
               strike->choices) < 4 ||
        host > 1)
        return false;
    strike->host = (uint8_t)host;
    strike->after = after != 0;
    for (size_t kind = 0; kind < ARRAY_LEN(strike_names); kind++) {
        strike->kind = (uint8_t)kind;
        if (strcmp(strike_names[kind], name) == 0)
            return true;
    }
    return false;
}

static bool load_from(struct history *history, FILE *from)
{
    int standby_runs, slow_net, slow_disks;
    char line[700];

    if (fgets(line, sizeof(line), from) == NULL ||
        sscanf(line,
               "seed %" SCNu64 " disks %u sectors %" SCNu32 " block-bytes %" SCNu32
               " standby-runs %d slow-net %d slow-disks %d",
               &history->seed, &history->disks, &history->sectors, &history->block_bytes,
               &standby_runs, &slow_net, &slow_disks) != 7 ||
        !load_strike(strstr(line, " strike "), &history->strike))
        return false;
    history->standby_runs = standby_runs != 0;
    history->slow_net = slow_net != 0;
    history->slow_disks = slow_disks != 0;
    history->peer_control = strstr(line, " peer-control 1") != NULL;
    while (fgets(line, sizeof(line), from) != NULL && history->count < HISTORY_MAX_OPS) {
        if (line[0] == '#' || line[0] == '\n')
            continue;
        if (!load_op(line, &history->ops[history->count++]))
            return false;
    }
    return history->disks >= 1 && history->disks <= history_max_disks;
}

bool history_load(struct history *history, const char *path)
{
    FILE *from = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");

    *history = (struct history){.seed = 0};
    if (from == NULL)
        return false;
    bool ok = load_from(history, from);
    fclose(from);
    return ok;
}

/* --- by name --- */

struct scenario {
    const char *name, *what;
    bool standby_runs;
    struct op ops[24];
};

static const struct scenario scenarios[] = {
    {"takeover",
     "writes, a checkpoint, more writes, the primary dies, failover",
     false,
     {
         {OP_WRITE, SIDE_TRUTH, 0, 0, 0, 16},
         {OP_WRITE, SIDE_TRUTH, 0, 0, 21, 3},
         {OP_CHECKPOINT, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
         {OP_WRITE, SIDE_TRUTH, 0, 0, 5, 9},
         {OP_ZERO, SIDE_TRUTH, 0, 0, 20, 8},
         {OP_DELAY, SIDE_TRUTH, 0, 0, 500, 0},
         {OP_KILL, SIDE_TRUTH, 0, 0, 0, 0},
         {OP_FAILOVER, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
         {OP_CHECK, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
         {OP_WRITE, SIDE_TRUTH, 0, 0, 2, 30},
         {OP_CHECK, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
         {OP_RESUME, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
     }},
    {"lock-stepping",
     "a machine runs on both sides; its own writes end with each checkpoint",
     true,
     {
         {OP_WRITE, SIDE_OTHER, 0, 0, 0, 8},
         {OP_WRITE, SIDE_TRUTH, 0, 0, 4, 8},
         {OP_CHECKPOINT, SIDE_TRUTH, 0, 0, 0, 0},
         {OP_WRITE, SIDE_OTHER, 0, 0, 2, 8},
         {OP_CHECK, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
         {OP_WRITE, SIDE_OTHER, 0, 0, 1, 13},
         {OP_FAILOVER, SIDE_TRUTH, 0, 0, 0, 0},
         {OP_WRITE, SIDE_TRUTH, 0, 0, 3, 2},
         {OP_CHECK, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
     }},
    {"restart",
     "the secondary is killed and goes on at its checkpoint",
     false,
     {
         {OP_WRITE, SIDE_TRUTH, 0, 0, 0, 16},
         {OP_SETTLE, SIDE_TRUTH, 0, 0, 0, 0},
         {OP_CHECKPOINT, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
         {OP_WRITE, SIDE_TRUTH, 0, 0, 3, 16},
         {OP_DELAY, SIDE_TRUTH, 0, 0, 200, 0},
         {OP_KILL, SIDE_OTHER, 0, 0, 0, 0},
         {OP_RESTART, SIDE_OTHER, 0, OP_WAIT, 0, 0},
         {OP_CHECK, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
     }},
};

bool history_scenario(struct history *history, const char *name, uint64_t seed)
{
    for (size_t i = 0; i < ARRAY_LEN(scenarios); i++) {
        const struct scenario *scenario = &scenarios[i];
        if (strcmp(scenario->name, name) != 0)
            continue;
        *history = (struct history){.seed = seed,
                                    .disks = 1,
                                    .sectors = 128,
                                    .block_bytes = 4096,
                                    .standby_runs = scenario->standby_runs};
        while (history->count < ARRAY_LEN(scenario->ops) &&
               (scenario->ops[history->count].b != 0 ||
                scenario->ops[history->count].kind != OP_WRITE)) {
            history->ops[history->count] = scenario->ops[history->count];
            history->count++;
        }
        return true;
    }
    return false;
}

void history_scenarios_print(FILE *to)
{
    for (size_t i = 0; i < ARRAY_LEN(scenarios); i++)
        fprintf(to, "  %-16s %s\n", scenarios[i].name, scenarios[i].what);
}
