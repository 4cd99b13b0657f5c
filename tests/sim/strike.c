/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thing that befalls one host at a given moment: a death, an error, an allocation that fails. And the
 * choices that come with a death: what became of that which was not durable, or under way.
 */
#include "fail_alloc.h"
#include "world.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

/* --- choices --- */

/* Units that stand and fall together: see docs/simulator.md, "Outcomes". */
struct choice_key {
    enum sim_choice choice;
    bool raw;
    uint64_t inode, page;
    unsigned odd, age;
};

struct strike_choices {
    unsigned count;
    struct {
        struct choice_key key;
        bool answer;
    } made[STRIKE_CHOICES_MAX];
};

static bool is_overlay(const char *name)
{
    return strstr(name, ".hidden") != NULL || strstr(name, ".active") != NULL;
}

static struct choice_key key_of(const struct sim_choice_info *info)
{
    bool units = info->choice == SIM_CHOICE_UNIT || info->choice == SIM_CHOICE_LANDS;
    struct choice_key key = {
        .choice = info->choice,
        .inode = info->inode,
        .page = info->offset_bytes,
        .age = info->age,
    };

    if (!units)
        return key;
    if (strstr(info->name, ".raw") != NULL) {
        key.raw = true;
        key.inode = key.page = 0;
        key.odd = info->offset_bytes / SIM_UNIT_BYTES % 2;
    } else if (is_overlay(info->name)) {
        key.page = info->offset_bytes / 4096;
        key.odd = info->offset_bytes / SIM_UNIT_BYTES % 2;
    }
    return key;
}

static bool key_equals(const struct choice_key *a, const struct choice_key *b)
{
    return a->choice == b->choice && a->raw == b->raw && a->inode == b->inode &&
           a->page == b->page && a->odd == b->odd && a->age == b->age;
}

static bool choose(void *arg, const struct sim_choice_info *info)
{
    struct world *world = arg;
    struct strike_choices *choices = world->choices;
    const char *given = world->history->strike.choices;
    const struct choice_key key = key_of(info);

    for (unsigned i = 0; i < choices->count; i++) {
        if (key_equals(&choices->made[i].key, &key))
            return choices->made[i].answer;
    }
    if (choices->count == STRIKE_CHOICES_MAX) {
        world->facts.many_choices = true;
        return false;
    }
    bool answer = choices->count < strlen(given) && given[choices->count] == '1';
    world->facts.choices[choices->count] = answer ? '1' : '0';
    choices->made[choices->count].key = key;
    choices->made[choices->count++].answer = answer;
    return answer;
}

/* --- requests --- */

static void die(struct world *world, struct host *host, const struct sim_request_info *info)
{
    const struct strike *strike = &world->history->strike;

    world->struck = true;
    world_note(world, "%s dies at its request %u: %s %s", host->name, strike->at,
               sim_op_name(info->op), info->path);
    if (strike->kind == STRIKE_POWER)
        power_cut(host);
    else
        kill_host(host);
}

static int fail(struct world *world, struct host *host, const struct sim_request_info *info)
{
    if (!world->struck) {
        world->struck = true;
        world->strike_op = info->op;
        if (world->history->strike.kind == STRIKE_ERRORS)
            host->disk_faults |= 1u << COVER_DISK_ERROR;
        host_trouble(host);
    }
    host->flush_lost = host->flush_lost || info->op == SIM_OP_SYNC;
    world_note(world, "%s: %s %s fails", host->name, sim_op_name(info->op), info->path);
    return -EIO;
}

static void note_flush_failed(struct host *host, const char *path)
{
    unsigned disk;
    int length = 0;

    if (sscanf(path, "/disk%u.raw%n", &disk, &length) == 1 && length > 0 && path[length] == '\0')
        view_flush_failed(host->view, disk);
}

static int on_request(void *arg, const struct sim_request_info *info)
{
    struct world *world = arg;
    const struct strike *strike = &world->history->strike;
    const enum sim_moment moment = strike->after ? SIM_AFTER : SIM_BEFORE;

    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        struct host *host = &world->hosts[i];
        if (host->process == NULL || host->process->loop != info->loop)
            continue;
        world->facts.requests[i] += info->moment == SIM_BEFORE;
        if (info->op == SIM_OP_SYNC && info->result < 0)
            note_flush_failed(host, info->path);
        if (strike->host != i || info->moment != moment)
            continue;
        bool now = !world->struck && world->facts.requests[i] == strike->at;
        if (now && (strike->kind == STRIKE_KILL || strike->kind == STRIKE_POWER))
            die(world, host, info);
        else if ((now && strike->kind == STRIKE_ERROR) ||
                 (strike->kind == STRIKE_ERRORS &&
                  (now || (world->struck && info->op == world->strike_op))))
            return fail(world, host, info);
    }
    return 0;
}

/* --- memory --- */

static const struct world *memory_world; /* what asks has no argument */
static unsigned memory_host;

static bool memory_applies(void)
{
    const struct process *process = memory_world->hosts[memory_host].process;

    return memory_world->commanding > 0 && process != NULL && loop_current() == process->loop;
}

static void memory_begin(struct world *world)
{
    const struct strike *strike = &world->history->strike;
    struct host *host = &world->hosts[strike->host];

    if (strike->kind != STRIKE_MEMORY)
        return;
    memory_world = world;
    memory_host = strike->host;
    world->struck = host->memory_faulty = world->troubled = true;
    fail_alloc_begin(strike->at > 0 ? strike->at - 1 : LONG_MAX, true, memory_applies);
}

static void memory_end(struct world *world)
{
    const struct strike *strike = &world->history->strike;

    if (strike->kind != STRIKE_MEMORY || !world->hosts[strike->host].memory_faulty)
        return;
    world->facts.allocations[strike->host] = (uint32_t)fail_alloc_asked();
    if (fail_alloc_end() > 0)
        world_note(world, "an allocation on %s has failed", world->hosts[strike->host].name);
    world->hosts[strike->host].memory_faulty = false;
}

/* --- all --- */

void strike_begin(struct world *world)
{
    const struct strike *strike = &world->history->strike;

    sim_set_request_hook(world->sim, on_request, world);
    memory_begin(world);
    if (strike->kind != STRIKE_KILL && strike->kind != STRIKE_POWER)
        return;
    world->choices = calloc(1, sizeof(*world->choices));
    assert(world->choices != NULL);
    sim_set_chooser(world->sim, choose, world);
}

void strike_begun(struct world *world)
{
    memcpy(world->facts.requests_begun, world->facts.requests, sizeof(world->facts.requests_begun));
}

void strike_last(struct world *world)
{
    const struct strike *strike = &world->history->strike;

    if (strike->kind == STRIKE_MEMORY)
        world->facts.allocations_before[strike->host] = (uint32_t)fail_alloc_asked();
}

void strike_end(struct world *world)
{
    sim_set_request_hook(world->sim, NULL, NULL);
    memory_end(world);
}

void strike_release(struct world *world)
{
    free(world->choices);
}
