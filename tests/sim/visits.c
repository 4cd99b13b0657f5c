/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Calls under way: which stage met them, and which faults; and faults that lie in wait for a call. */
#include "world.h"

#include "replication/group_internal.h"

#define AMBUSH_DELAY_MAX_NS (150 * NS_PER_US)

bool host_stage(const struct host *host, enum cover_stage *ret_stage)
{
    static const enum cover_stage of_secondary[] = {
        [REPLICATION_NONE] = COVER_S_NONE,
        [REPLICATION_RUNNING] = COVER_S_RUNNING,
        [REPLICATION_FAILOVER] = COVER_S_FAILOVER,
        [REPLICATION_FAILOVER_FAILED] = COVER_S_FAILOVER_FAILED,
        [REPLICATION_DONE] = COVER_S_DONE,
    };
    enum replication_mode mode;
    enum replication_stage stage;

    if (host->process == NULL || !host->process->up)
        return false;
    const struct replication_group *group = host->process->daemon->group;
    if (!replication_state(host->process->daemon->group, &mode, &stage))
        *ret_stage = COVER_P_NONE;
    else if (mode == REPLICATION_SECONDARY)
        *ret_stage = stage == REPLICATION_NONE && group->awaits_sync ? COVER_S_AWAITING
                                                                     : of_secondary[stage];
    else
        *ret_stage = stage == REPLICATION_NONE      ? COVER_P_NONE
                     : stage == REPLICATION_RUNNING ? COVER_P_RUNNING
                                                    : COVER_P_DONE;
    return true;
}

bool host_is_closed(const struct host *host)
{
    enum cover_stage stage;

    return host_stage(host, &stage) && (stage == COVER_S_NONE || stage == COVER_S_AWAITING);
}

/* --- what is on when a call begins --- */

static unsigned faults_of(const struct host *host)
{
    const struct world *world = host->world;
    const struct host *peer = &world->hosts[!host->index];
    unsigned faults = host->disk_faults | world->link_faults;

    if (host->frozen)
        faults |= 1u << COVER_FROZEN;
    if (peer->process == NULL)
        faults |= 1u << COVER_PEER_DOWN;
    if (peer->frozen)
        faults |= 1u << COVER_PEER_FROZEN;
    if (peer->disk_faults != 0)
        faults |= 1u << COVER_PEER_DISK;
    return faults;
}

/* What a fault of a host is to its peer. */
static enum cover_fault for_peer(enum cover_fault fault)
{
    switch (fault) {
    case COVER_KILL:
    case COVER_POWER_CUT:
        return COVER_PEER_DOWN;
    case COVER_FROZEN:
        return COVER_PEER_FROZEN;
    default:
        return COVER_PEER_DISK;
    }
}

void visits_struck(struct host *host, enum cover_fault fault)
{
    LIST_FOR_EACH(visit, &host->world->visits, struct visit, link)
        visit->faults |= 1u << (visit->host == host ? fault : for_peer(fault));
}

void visits_link_struck(struct world *world, enum cover_fault fault)
{
    LIST_FOR_EACH(visit, &world->visits, struct visit, link)
        visit->faults |= 1u << fault;
}

/* --- faults that lie in wait --- */

struct ambush {
    struct host *host;
    struct op op;
    uint64_t delay_ns;
};

static void ambush_main(void *arg) MAY_WAIT;
static void ambush_main(void *arg)
{
    struct ambush *ambush = arg;
    struct world *world = ambush->host->world;

    if (ambush->delay_ns > 0)
        co_sleep(ambush->delay_ns);
    if (!world->healed)
        host_fault(ambush->host, &ambush->op);
    free(ambush);
}

/* At once as often as a little later: what is under way for long is struck in its midst. */
static void ambush_spring(const struct visit *visit)
{
    struct world *world = visit->host->world;
    struct ambush *ambush;
    struct op *op = &world->ambush;

    if (!world->lies_in_wait || OP_STAGE(op) != visit->stage || OP_CALL_OF(op) != visit->call)
        return;
    world->lies_in_wait = false;
    ambush = malloc(sizeof(*ambush));
    assert(ambush != NULL);
    *ambush = (struct ambush){.host = &world->hosts[visit->host->index ^ (op->side == SIDE_OTHER)],
                              .op = *op};
    if (sim_random(world->sim) % 2 == 0)
        ambush->delay_ns = sim_random(world->sim) % AMBUSH_DELAY_MAX_NS;
    world_note(world, "--- in wait for it: %s", op_name(op->kind));
    if (co_spawn(world->manager, "ambush", ambush_main, ambush) < 0)
        abort();
}

/* --- a call --- */

void visit_begin(struct visit *visit, struct host *host, enum cover_call call)
{
    *visit = (struct visit){.host = host, .call = call};
    if (!host_stage(host, &visit->stage))
        return;
    visit->counts = true;
    visit->faults = faults_of(host);
    list_push_back(&host->world->visits, &visit->link);
    ambush_spring(visit);
}

void visit_end(struct visit *visit)
{
    struct coverage *coverage = visit->host->world->coverage;

    if (!visit->counts)
        return;
    list_remove(&visit->link);
    if (coverage == NULL)
        return;
    uint64_t *cells = coverage->cells[visit->stage][visit->call];
    cells[COVER_NONE] += visit->faults == 0;
    for (unsigned fault = COVER_NONE + 1; fault < COVER_FAULT_COUNT; fault++)
        cells[fault] += (visit->faults >> fault) & 1;
}
