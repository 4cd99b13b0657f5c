/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "systematic.h"

#include "fail_alloc.h"

#include <inttypes.h>
#include <string.h>

/* --- workloads --- */

static const struct op systematic_ops[] = {
    {OP_WRITE, SIDE_TRUTH, 0, 0, 8, 8},          {OP_WRITE, SIDE_TRUTH, 0, OP_FUA, 13, 6},
    {OP_ZERO, SIDE_TRUTH, 0, 0, 4, 16},          {OP_FLUSH, SIDE_TRUTH, 0, 0, 0, 0},
    {OP_WRITE, SIDE_OTHER, 0, 0, 10, 9},         {OP_CHECKPOINT, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
    {OP_FAILOVER, SIDE_TRUTH, 0, OP_WAIT, 0, 0}, {OP_STOP, SIDE_TRUTH, 0, OP_WAIT, 0, 0},
};

static void push(struct history *history, const struct op *op)
{
    history->ops[history->count++] = *op;
}

static void push_op(struct history *history, size_t kind, unsigned disk)
{
    static const struct op settle = {.kind = OP_SETTLE};
    struct op op = systematic_ops[kind];

    op.disk = (uint8_t)disk;
    push(history, &op);
    push(history, &settle);
    for (uint8_t side = SIDE_TRUTH; side <= SIDE_OTHER; side++)
        push(history, &(struct op){.kind = OP_RESTART, .side = side, .flags = OP_WAIT});
}

/* The guest of the standby is connected at first: else a merge would end before its first request. */
bool systematic_workload(struct history *history, uint64_t index, unsigned length_max)
{
    uint64_t of_length = 1, rest = index;

    *history = (struct history){
        .seed = 1, .disks = 2, .sectors = 64, .block_bytes = 4096, .standby_runs = true};
    for (unsigned length = 0; length <= length_max; length++) {
        if (rest >= of_length) {
            rest -= of_length;
            of_length *= ARRAY_LEN(systematic_ops);
            continue;
        }
        for (uint8_t disk = 0; length > 0 && disk < history->disks; disk++)
            push(history, &(struct op){.kind = OP_READ, .side = SIDE_OTHER, .disk = disk, .b = 1});
        for (unsigned i = 0; i < length; i++) {
            push_op(history, rest % ARRAY_LEN(systematic_ops), i % 2); /* both disks have a part */
            rest /= ARRAY_LEN(systematic_ops);
        }
        return true;
    }
    return false;
}

/* --- outcomes --- */

typedef uint64_t runner(const struct history *history, struct world_facts *ret_facts);

struct course {
    struct history *history;
    struct tally *tally;
    runner *run;
    struct world_facts facts; /* of the last run */
};

static void run_once(struct course *course)
{
    uint64_t hash = course->run(course->history, &course->facts);

    course->tally->runs++;
    course->tally->hash = course->tally->hash * 31 + hash;
}

/* The choices that come after these, as if they were counted. False: they were the last. */
static bool choices_next(char *choices, const char *made)
{
    size_t length = strlen(made);

    while (length > 0 && made[length - 1] == '1')
        length--;
    memcpy(choices, made, length);
    choices[length] = '\0';
    if (length > 0)
        choices[length - 1] = '1';
    return length > 0;
}

static void choices_draw(char *choices, uint64_t *random)
{
    for (unsigned i = 0; i < STRIKE_CHOICES_MAX; i++) {
        *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        choices[i] = *random >> 63 ? '1' : '0';
    }
    choices[STRIKE_CHOICES_MAX] = '\0';
}

/* Returns how many runs it took. */
static unsigned each_outcome(struct course *course)
{
    struct strike *strike = &course->history->strike;
    uint64_t random = strike->at;
    unsigned outcomes = 0;

    strike->choices[0] = '\0';
    do {
        run_once(course);
        if (++outcomes == SYSTEMATIC_OUTCOMES_MAX)
            break;
    } while (choices_next(strike->choices, course->facts.choices));
    if (!choices_next(strike->choices, course->facts.choices) && !course->facts.many_choices)
        return outcomes;
    course->tally->unfinished++;
    for (unsigned i = 0; i < SYSTEMATIC_DRAWN; i++) {
        choices_draw(strike->choices, &random);
        run_once(course);
    }
    return outcomes + SYSTEMATIC_DRAWN;
}

/* --- strikes --- */

static void each_death(struct course *course, uint8_t host, uint32_t first, uint32_t last)
{
    struct tally *tally = course->tally;

    for (uint32_t at = first; at <= last; at++) {
        for (unsigned after = 0; after < 2; after++) {
            course->history->strike = (struct strike){
                .kind = STRIKE_KILL, .host = host, .at = at, .after = after != 0};
            tally->kills++;
            tally->kill_outcomes += each_outcome(course);
            course->history->strike.kind = STRIKE_POWER;
            tally->powers++;
            tally->power_outcomes += each_outcome(course);
        }
    }
}

static void each_error(struct course *course, uint8_t host, uint32_t first, uint32_t last)
{
    for (uint32_t at = first; at <= last; at++) {
        course->history->strike = (struct strike){.kind = STRIKE_ERROR, .host = host, .at = at};
        run_once(course);
        course->history->strike.kind = STRIKE_ERRORS;
        run_once(course);
        course->tally->errors += 2;
    }
}

static void each_allocation(struct course *course, uint8_t host)
{
    if (!fail_alloc_possible())
        return;
    course->history->strike = (struct strike){.kind = STRIKE_MEMORY, .host = host};
    run_once(course); /* counts them */
    uint32_t first = course->facts.allocations_before[host] + 1;
    uint32_t last = course->facts.allocations[host];
    for (uint32_t at = first; at <= last; at++) {
        course->history->strike.at = at;
        run_once(course);
        course->tally->allocations++;
    }
}

void systematic_run(struct history *history, struct tally *tally, runner *run)
{
    struct course course = {.history = history, .tally = tally, .run = run};
    uint32_t first[WORLD_SIDES], last[WORLD_SIDES];

    history->strike = (struct strike){.kind = STRIKE_NONE};
    run_once(&course);
    for (uint8_t host = 0; host < WORLD_SIDES; host++) {
        /* How a pair begins is always the same: one workload goes through that. */
        first[host] = history->count > 0 ? course.facts.requests_begun[host] + 1 : 1;
        last[host] = course.facts.requests[host];
    }
    for (uint8_t host = 0; host < WORLD_SIDES; host++) {
        each_death(&course, host, first[host], last[host]);
        each_error(&course, host, first[host], last[host]);
        each_allocation(&course, host);
    }
}

/* --- what has been done --- */

void tally_add(struct tally *to, const struct tally *tally)
{
    to->runs += tally->runs;
    to->kills += tally->kills;
    to->powers += tally->powers;
    to->kill_outcomes += tally->kill_outcomes;
    to->power_outcomes += tally->power_outcomes;
    to->unfinished += tally->unfinished;
    to->errors += tally->errors;
    to->allocations += tally->allocations;
}

void tally_print(const struct tally *tally, FILE *to)
{
    fprintf(to,
            "%" PRIu64 " histories: %" PRIu64 " moments of a kill with %" PRIu64
            " outcomes, %" PRIu64 " of a power cut with %" PRIu64 " (%" PRIu64
            " moments have more than %u: %u of these and %u drawn), %" PRIu64
            " errors of disks, %" PRIu64 " allocations that fail\n",
            tally->runs, tally->kills, tally->kill_outcomes, tally->powers, tally->power_outcomes,
            tally->unfinished, SYSTEMATIC_OUTCOMES_MAX, SYSTEMATIC_OUTCOMES_MAX, SYSTEMATIC_DRAWN,
            tally->errors, tally->allocations);
}
