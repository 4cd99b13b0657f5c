/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the world does to a pair: deaths, links, disks. */
#include "world.h"

#include <errno.h>
#include <string.h>

void host_trouble(struct host *host)
{
    host->troubles++;
    host->world->troubles++;
    host->world->troubled = true;
}

static void died(struct host *host)
{
    struct world *world = host->world;

    host_trouble(host);
    host->frozen = false;
    host->linked = false;
    world_truth(world)->linked = false;
    if (host->role == ROLE_TRUTH || host->role == ROLE_STANDBY) {
        host->down = true;
    } else {
        host->role = ROLE_DOWN;
    }
}

void kill_host(struct host *host)
{
    if (host->process == NULL)
        return;
    visits_struck(host, COVER_KILL);
    process_kill(host);
    died(host);
    host->world->stats.kills++;
}

void power_cut(struct host *host)
{
    struct world *world = host->world;
    enum cover_stage stage;

    if (host->merging && host_stage(host, &stage) && stage == COVER_S_DONE)
        host->merging = false;
    if (host->process == NULL)
        return;
    visits_struck(host, COVER_POWER_CUT);
    process_forget(host);
    (void)sim_host_power_cut(world->sim, host->name);
    died(host);
    if (host->down) {
        view_power_cut(host->view);
        host->power_lost = host->role == ROLE_STANDBY || host->merging;
    }
    world->stats.power_cuts++;
}

static void freeze(struct host *host, bool frozen)
{
    if (host->process == NULL || !host->process->up || host->frozen == frozen)
        return;
    host->frozen = frozen;
    host_trouble(host);
    if (frozen) {
        visits_struck(host, COVER_FROZEN);
        sim_process_stop(host->process->loop);
    } else {
        sim_process_continue(host->process->loop);
    }
}

/* --- links --- */

struct link_ends {
    const char *from, *to; /* who connects, and to whom */
};

static struct link_ends link_ends(struct host *host, enum link_of of)
{
    struct world *world = host->world;

    if (of == LINK_OF_GUEST)
        return (struct link_ends){host->guest_host, host->name};
    if (of == LINK_OF_MANAGER)
        return (struct link_ends){"manager", host->name};
    return (struct link_ends){world_truth(world)->name, world_other(world)->name};
}

static void link_set(struct world *world, struct link_ends ends, enum link_way way,
                     const struct sim_link_options *options)
{
    if (way != LINK_TO_TRUTH)
        (void)sim_link_set(world->sim, ends.from, ends.to, options);
    if (way != LINK_TO_OTHER)
        (void)sim_link_set(world->sim, ends.to, ends.from, options);
}

static void link_break(struct world *world, struct link_ends ends, const struct op *op)
{
    static const enum sim_side sides[] = {SIM_SIDE_BOTH, SIM_SIDE_FROM, SIM_SIDE_TO};
    /* A guest and a manager find out soon: once it is healed their next request has no excuse. */
    unsigned choices = op->b % 4 == LINK_OF_PAIR ? 3 : 2;

    if (op->kind == OP_LINK_BREAK)
        (void)sim_link_break(world->sim, ends.from, ends.to, sides[op->a % choices]);
    else if (op->a % 2 == 0)
        (void)sim_link_break_after(world->sim, ends.from, ends.to, op->b >> 2);
    else
        (void)sim_link_break_after(world->sim, ends.to, ends.from, op->b >> 2);
}

/* The fault is the pair's, or keeps the host from its guest or its manager. */
static void link_struck(struct host *host, enum link_of of, enum cover_fault fault, bool lasts)
{
    struct world *world = host->world;

    host_trouble(of == LINK_OF_PAIR ? world_other(world) : host);
    if (of == LINK_OF_PAIR) {
        visits_link_struck(world, fault);
        world->link_faults |= lasts ? 1u << fault : 0;
    } else {
        host->cut_off_until_ns = UINT64_MAX;
    }
}

static void link_fault(struct host *host, const struct op *op)
{
    const struct sim_link_options cut = {.blocked = true};
    const struct sim_link_options slow = {
        .delay = {NS_PER_MS, op->a >= LINK_VERY_SLOW ? 3 * NS_PER_S : 50 * NS_PER_MS}};
    enum link_of of = op->b % 4 % LINK_OF_COUNT;
    struct link_ends ends = link_ends(host, of);
    bool breaks = op->kind == OP_LINK_BREAK || op->kind == OP_LINK_LOSE;

    link_struck(host, of,
                breaks                    ? COVER_LINK_BREAK
                : op->kind == OP_LINK_CUT ? COVER_LINK_CUT
                                          : COVER_LINK_SLOW,
                op->kind != OP_LINK_BREAK);
    if (breaks)
        link_break(host->world, ends, op);
    else
        link_set(host->world, ends, op->a % 3, op->kind == OP_LINK_CUT ? &cut : &slow);
}

static void link_heal(struct world *world, struct link_ends ends)
{
    const struct sim_link_options plain = {.blocked = false};

    link_set(world, ends, LINK_BOTH, &plain);
    (void)sim_link_break_after(world->sim, ends.from, ends.to, UINT64_MAX);
    (void)sim_link_break_after(world->sim, ends.to, ends.from, UINT64_MAX);
}

static void links_heal(struct world *world)
{
    if (world->link_faults != 0)
        link_heal(world, link_ends(world_truth(world), LINK_OF_PAIR));
    world->link_faults = 0;
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        struct host *host = &world->hosts[i];
        if (host->cut_off_until_ns != UINT64_MAX)
            continue;
        link_heal(world, link_ends(host, LINK_OF_GUEST));
        link_heal(world, link_ends(host, LINK_OF_MANAGER));
        /* Until then they have heard of what was broken. */
        host->cut_off_until_ns = sim_now_ns(world->sim) + NS_PER_S;
    }
}

/* --- disks --- */

static const char *disk_path(const struct op *op, char path[32])
{
    static const char *const kinds[] = {"*", "raw", "hidden", "active"};

    snprintf(path, 32, "/disk%u.%s", op->disk, kinds[op->a % 4]);
    return path;
}

static void disk_fault(struct host *host, const struct op *op)
{
    static const enum sim_op ops[] = {SIM_OP_ANY, SIM_OP_READ, SIM_OP_WRITE, SIM_OP_SYNC,
                                      SIM_OP_ZERO};
    struct sim *sim = host->world->sim;
    char path[32];
    struct sim_fault fault = {
        .path = disk_path(op, path),
        .op = ops[(op->a >> 8) % ARRAY_LEN(ops)],
        .nth = op->b & 0xffff,
        .times = op->b >> 16,
        .error = op->kind == OP_DISK_FAIL ? -EIO : 0,
        .stall_ns = op->kind == OP_DISK_STALL ? (uint64_t)(op->a >> 16) * NS_PER_MS : 0,
    };

    enum cover_fault kind = op->kind == OP_DISK_FULL    ? COVER_DISK_FULL
                            : op->kind == OP_DISK_STALL ? COVER_DISK_STALL
                                                        : COVER_DISK_ERROR;
    host->disk_faults |= 1u << kind;
    visits_struck(host, kind);
    host->flush_lost = host->flush_lost || (op->kind == OP_DISK_FAIL &&
                                            (fault.op == SIM_OP_ANY || fault.op == SIM_OP_SYNC));
    host_trouble(host);
    if (op->kind == OP_DISK_FULL)
        sim_disk_limit(sim, host->name, sim_disk_used_bytes(sim, host->name) + op->b * 4096u);
    else
        (void)sim_fault_add(sim, host->name, &fault);
}

static void bad_sectors(struct host *host, const struct op *op)
{
    struct sim *sim = host->world->sim;
    char path[32];
    const struct sim_fault fault = {
        .path = disk_path(op, path),
        .op = SIM_OP_WRITE,
        .offset_bytes = (uint64_t)(op->b & 0xffff) * ORACLE_SECTOR_BYTES,
        .length_bytes = (uint64_t)(op->b >> 16) * ORACLE_SECTOR_BYTES,
        .error = -EIO,
    };

    host->disk_faults |= 1u << COVER_DISK_ERROR;
    visits_struck(host, COVER_DISK_ERROR);
    host_trouble(host);
    (void)sim_bad_sectors(sim, host->name, path, fault.offset_bytes, fault.length_bytes);
    if (op->a >> 8 != 0)
        (void)sim_fault_add(sim, host->name, &fault);
}

/* They can be read again, as what they were: others have been put in their place. */
static void mend_sectors(struct host *host)
{
    for (unsigned file = 0; file < 3 * host->world->history->disks; file++) {
        const struct op op = {.disk = (uint8_t)(file / 3), .a = 1 + file % 3};
        char path[32];
        (void)sim_mend_sectors(host->world->sim, host->name, disk_path(&op, path));
    }
}

static void disks_heal(struct host *host)
{
    if ((host->disk_faults & 1u << COVER_DISK_ERROR) != 0)
        mend_sectors(host);
    sim_fault_clear(host->world->sim, host->name);
    sim_disk_limit(host->world->sim, host->name, 0);
    host->disk_faults = 0;
}

/* --- all --- */

void host_fault(struct host *host, const struct op *op)
{
    struct world *world = host->world;

    switch (op->kind) {
    case OP_KILL:
        kill_host(host);
        break;
    case OP_POWER_CUT:
        power_cut(host);
        break;
    case OP_FREEZE:
        freeze(host, true);
        break;
    case OP_THAW:
        freeze(host, false);
        break;
    case OP_LINK_CUT:
    case OP_LINK_SLOW:
    case OP_LINK_BREAK:
    case OP_LINK_LOSE:
        link_fault(host, op);
        break;
    case OP_LINK_HEAL:
        links_heal(world);
        break;
    case OP_DISK_BAD:
        bad_sectors(host, op);
        break;
    case OP_DISK_HEAL:
        disks_heal(host);
        break;
    default:
        disk_fault(host, op);
        break;
    }
}

void manager_fault(struct world *world, const struct op *op)
{
    if ((op->flags & OP_AMBUSH) == 0) {
        host_fault(op->side == SIDE_TRUTH ? world_truth(world) : world_other(world), op);
        return;
    }
    world->ambush = *op;
    world->lies_in_wait = true;
}

void manager_heal(struct world *world)
{
    world->lies_in_wait = false;
    world->healed = true;
    links_heal(world);
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        disks_heal(&world->hosts[i]);
        freeze(&world->hosts[i], false);
    }
    strike_end(world);
}
