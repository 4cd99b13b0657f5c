/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "systematic.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#define NOTE_BYTES 1400u

world_violated *world_on_violation;

const char *role_name(enum role role)
{
    static const char *const names[] = {
        [ROLE_DOWN] = "down",   [ROLE_TRUTH] = "the truth",         [ROLE_STANDBY] = "standby",
        [ROLE_STALE] = "stale", [ROLE_SYNC] = "in synchronisation",
    };

    return names[role];
}

struct host *world_truth(struct world *world)
{
    return &world->hosts[world->truth];
}

struct host *world_other(struct world *world)
{
    return &world->hosts[!world->truth];
}

void world_violation(struct world *world, const char *invariant, const char *fmt, ...)
{
    char text[2400];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    world_on_violation(world, invariant, text);
    abort();
}

void world_note(struct world *world, const char *fmt, ...)
{
    char text[NOTE_BYTES];
    va_list args;

    if (world->trace == NULL)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    fprintf(world->trace, "%12" PRIu64 " us  %s\n", sim_now_ns(world->sim) / NS_PER_US, text);
}

bool host_is_up(const struct host *host)
{
    return host->process != NULL && host->process->up;
}

bool host_is_sound(const struct host *host)
{
    return host->disk_faults == 0 && !host->flush_lost && !host->memory_faulty &&
           host->cut_off_until_ns <= sim_now_ns(host->world->sim);
}

bool host_is_well(const struct host *host)
{
    return host->process != NULL && host->process->up && !host->frozen && host_is_sound(host);
}

bool world_is_able(const struct world *world)
{
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        if (world->hosts[i].frozen || !host_is_sound(&world->hosts[i]))
            return false;
    }
    return world->link_faults == 0;
}

bool world_is_well(const struct world *world)
{
    return !world->troubled && world_is_able(world) && host_is_well(&world->hosts[0]) &&
           host_is_well(&world->hosts[1]);
}

static void oracle_says(void *arg, enum invariant invariant, const char *text)
{
    world_violation(arg, invariant_name(invariant), "%s", text);
}

static void world_hangs(void *arg, const char *text)
{
    world_violation(arg, invariant_name(I8_NOTHING_HANGS), "%s", text);
}

/* --- the history --- */

static void do_op(struct world *world, const struct op *op) MAY_WAIT
{
    struct host *host = op->side == SIDE_TRUTH ? world_truth(world) : world_other(world);

    switch (op->kind) {
    case OP_WRITE:
    case OP_ZERO:
    case OP_DISCARD:
    case OP_READ:
    case OP_FLUSH:
        guest_request(&host->guest, op);
        break;
    case OP_DELAY:
        co_sleep(op->a * NS_PER_US);
        break;
    case OP_SETTLE:
        manager_settle(world);
        break;
    case OP_CHECKPOINT:
    case OP_FAILOVER:
    case OP_RESUME:
    case OP_RESTART:
    case OP_STOP:
    case OP_CHECK:
    case OP_CALL:
        manager_op(world, op);
        break;
    default:
        manager_fault(world, op);
        break;
    }
}

static void history_main(void *arg) MAY_WAIT;
static void history_main(void *arg)
{
    struct world *world = arg;

    strike_begin(world);
    pair_begin(world);
    strike_begun(world);
    for (world->op = 0; world->op < world->history->count; world->op++) {
        const struct op *op = &world->history->ops[world->op];
        if (world->op + SYSTEMATIC_STEP_OPS == world->history->count)
            strike_last(world);
        char text[160];
        op_print(op, text, sizeof(text));
        world_note(world, "--- %u: %s", world->op, text);
        do_op(world, op);
        for (unsigned i = 0; i < WORLD_SIDES; i++)
            bounds_check(&world->hosts[i], false);
    }
    strike_end(world);
    manager_finish(world);
    world->over = true;
}

/* --- making and ending --- */

static struct loop *outside_loop(struct world *world, const char *host)
{
    struct loop *loop = NULL;
    struct err err = ERR_INIT;

    if (sim_loop_new(world->sim, host, &loop, &err) < 0)
        abort();
    return loop;
}

static void trace_line(void *trace, const char *line)
{
    fprintf(trace, "  %s\n", line);
}

static void host_init(struct world *world, unsigned index)
{
    static const char *const names[] = {"a", "b"}, *const guests[] = {"guest-a", "guest-b"};
    static const char *const views[] = {"what the guest of a reads", "what the guest of b reads"};
    struct host *host = &world->hosts[index];

    host->world = world;
    host->index = index;
    host->name = names[index];
    host->guest_host = guests[index];
    host->view = view_new(world->oracle, views[index], I1_ACKNOWLEDGED_IS_READ);
    host->stream = view_new(world->oracle, "what a secondary gets", I2_VIEW_IS_CHECKPOINT);
    guest_init(&host->guest, host);
    host->guest.loop = outside_loop(world, host->guest_host);
}

static void world_init(struct world *world, const struct history *history, struct co_stacks *stacks,
                       FILE *trace)
{
    struct sim_options options;
    struct err err = ERR_INIT;

    *world = (struct world){.history = history, .trace = trace};
    sim_options_init(&options, history->seed);
    options.stacks = stacks;
    options.limit_ns = WORLD_TIME_LIMIT_NS;
    options.on_hang = world_hangs;
    options.on_hang_arg = world;
    if (history->slow_net)
        options.net = (struct sim_delay){100 * NS_PER_US, 3 * NS_PER_MS};
    if (history->slow_disks)
        options.inline_percent = 0;
    if (sim_new(&options, &world->sim, &err) < 0)
        abort();
    if (trace != NULL)
        sim_set_trace(world->sim, trace_line, trace);
    list_init(&world->processes);
    list_init(&world->visits);
    world->oracle = oracle_new(history->disks, history->sectors, oracle_says, world);
    assert(world->oracle != NULL);
    world->manager = outside_loop(world, "manager");
    for (unsigned i = 0; i < WORLD_SIDES; i++)
        host_init(world, i);
}

/* Asked seldom: it walks stacks. */
static bool loop_is_empty(struct loop *loop)
{
    return loop_stats(loop).coroutines == 0;
}

static bool world_is_empty(struct world *world)
{
    return world->over && list_empty(&world->processes) && loop_is_empty(world->manager) &&
           loop_is_empty(world->hosts[0].guest.loop) && loop_is_empty(world->hosts[1].guest.loop);
}

static void world_free(struct world *world)
{
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        view_free(world->hosts[i].view);
        view_free(world->hosts[i].stream);
        loop_free(world->hosts[i].guest.loop);
    }
    loop_free(world->manager);
    oracle_free(world->oracle);
    sim_free(world->sim);
    strike_release(world);
}

void world_run(struct world *world, const struct history *history, struct co_stacks *stacks,
               FILE *trace, struct coverage *coverage)
{
    world_init(world, history, stacks, trace);
    world->coverage = coverage;
    if (co_spawn(world->manager, "history", history_main, world) < 0)
        abort();
    while (!world_is_empty(world)) {
        if (!sim_step(world->sim) && !world->over)
            world_violation(world, invariant_name(I8_NOTHING_HANGS), "nothing happens any more");
        processes_reap(world);
    }
    world->hash = sim_trace_hash(world->sim);
    world_free(world);
}
