/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an operator or a hypervisor does to a pair, over its control protocol, and what the oracle
 * makes of the answers. */
#include "world.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Longer than anything travels while nothing is wrong. */
#define LATE_NS (2 * NS_PER_S)

/* A command whose answer is an error, while nothing has been wrong since the pair was in sync. */
static void no_excuse(struct world *world, bool was_well, const char *what, const struct err *err)
{
    if (was_well && world_is_well(world))
        world_violation(world, invariant_name(I8_NOTHING_HANGS),
                        "%s fails though nothing is wrong: %s", what, err->text);
}

static uint32_t disks_of(const struct world *world)
{
    return world->history->disks;
}

/* --- checkpoint --- */

/* Whether the truth says of itself that the other lacks something, or cannot be asked. */
static bool truth_is_broken(struct host *truth) MAY_WAIT
{
    struct json_object *result = NULL, *error = NULL;
    struct err err = ERR_INIT;
    bool broken = false;

    if (qmp_command(truth, &result, &err, "{'execute':'query-xen-replication-status'}") < 0)
        return true;
    if (json_object_object_get_ex(result, "error", &error))
        broken = json_object_get_boolean(error);
    json_object_put(result);
    return broken;
}

/* Who does not answer might do so much later, when nobody expects it. */
void manager_give_up(struct host *host)
{
    if (host->process == NULL)
        return;
    process_kill(host);
    host->frozen = false;
    host->down = host->role == ROLE_TRUTH || host->role == ROLE_STANDBY;
    host->role = host->down ? host->role : ROLE_DOWN;
    host->troubles++;
    host->world->troubled = true;
    world_truth(host->world)->linked = false;
}

bool manager_outcome_unknown(const struct err *err)
{
    return strstr(err->text, "it is not known whether the secondary has taken") != NULL;
}

/* The primary asks the secondary itself, and nothing follows before it has answered, or when it is not
 * known what it has done. */
static void checkpoint_by_session(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world), *other = world_other(world);
    bool well = world_is_well(world), able = world_is_able(world);
    uint32_t marked = oracle_now(world->oracle);
    struct err err = ERR_INIT;

    view_checkpoint_begin(other->view, other->stream, marked);
    int r = call_send(truth, COVER_CHECKPOINT, false, &err);
    if (r == -EREMOTEIO && !manager_outcome_unknown(&err)) {
        view_checkpoint_failed(other->view);
        no_excuse(world, well, "a checkpoint", &err);
        return;
    }
    /* What is still on its way to the secondary arrives. */
    if (r < 0)
        co_sleep(LATE_NS);
    view_checkpoint(other->view, other->stream, marked, r == 0);
    if (r < 0 && !(able && world_is_able(world)))
        view_blind(other->view);
    world->stats.checkpoints += r == 0;
}

static void checkpoint(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world), *other = world_other(world);
    bool well = world_is_well(world);
    struct err err = ERR_INIT;

    if (!host_is_up(truth) || !truth->linked || !host_is_up(other) || other->role != ROLE_STANDBY)
        return;
    if (world->history->peer_control) {
        checkpoint_by_session(world);
        return;
    }
    uint32_t marked = oracle_now(world->oracle);
    if (qmp_command(truth, NULL, &err, "{'execute':'replication-checkpoint'}") < 0) {
        no_excuse(world, well, "a checkpoint of the primary", &err);
        return;
    }
    uint32_t since = oracle_now(world->oracle);
    view_checkpoint_begin(other->view, other->stream, marked);
    int r = qmp_command(other, NULL, &err, "{'execute':'replication-checkpoint'}");
    if (r == -EREMOTEIO) {
        view_checkpoint_failed(other->view);
        no_excuse(world, well, "a checkpoint of the secondary", &err);
        return;
    }
    /* The cut is where the secondary was when the link broke, which was after the marker. */
    bool broken = world->troubled && truth_is_broken(truth);
    view_checkpoint(other->view, other->stream, broken ? marked : since, r == 0);
    /* Nobody holds the primary between the two commands: a link of one disk that breaks there makes a
     * mixture of several disks. Peer-control will close this gap. */
    if (broken && disks_of(world) > 1)
        view_blind(other->view);
    if (r < 0)
        manager_give_up(other);
    world->stats.checkpoints += r == 0;
}

/* --- failover --- */

/* `certain`: it has answered. */
static void taken_over(struct world *world, bool certain)
{
    struct host *truth = world_truth(world), *other = world_other(world);

    /* The exports that were read-only have been closed, and are back. */
    if (!world->history->standby_runs)
        guest_forget(&other->guest);
    truth->role = host_is_up(truth) ? ROLE_STALE : ROLE_DOWN;
    truth->linked = truth->down = truth->merging = false;
    other->role = ROLE_TRUTH;
    other->merging = true;
    other->took_over = certain;
    other->took_over_at = oracle_now(world->oracle);
    other->awaits = false;
    view_set_invariant(other->view, I3_FAILOVER_CONTRACT);
    world->truth = other->index;
    world->troubled = true;
    world->stats.failovers++;
}

static void failover(struct world *world, enum cover_call call) MAY_WAIT
{
    struct host *other = world_other(world);
    bool well = world_is_well(world);
    struct err err = ERR_INIT;

    if (!host_is_up(other) || other->role != ROLE_STANDBY)
        return;
    other->troubles++;
    other->changing = true;
    int r = call_send(other, call, true, &err);
    other->changing = false;
    other->troubles++;
    if (r == -EREMOTEIO) {
        other->fenced = true;
        no_excuse(world, well, "a failover", &err);
        return;
    }
    if (other->power_lost) { /* and with that what it would have taken over with */
        other->role = ROLE_DOWN;
        other->down = other->power_lost = false;
        return;
    }
    if (r < 0)
        manager_give_up(other);
    taken_over(world, r == 0);
}

/* A secondary without a checkpoint is made the truth as it is: a copy that was not finished. Of one that
 * does not answer nothing is expected any more. */
static void force(struct world *world) MAY_WAIT
{
    struct host *other = world_other(world);
    struct err err = ERR_INIT;

    other->changing = true;
    int r = call_send(other, COVER_FORCE, true, &err);
    other->changing = false;
    other->troubles++;
    other->awaits = false; /* also when it was refused: its peer may be shut out already */
    if (r == 0 && other->role == ROLE_SYNC) {
        view_blind(other->view);
        taken_over(world, true);
    } else if (r < 0 && r != -EREMOTEIO) {
        manager_give_up(other);
    }
}

bool manager_query_stage(struct host *host, char *stage, size_t stage_bytes)
{
    struct json_object *result = NULL, *member = NULL;
    struct err err = ERR_INIT;

    if (qmp_command(host, &result, &err, "{'execute':'query-replication'}") < 0)
        return false;
    json_object_object_get_ex(result, "stage", &member);
    snprintf(stage, stage_bytes, "%s", json_object_get_string(member));
    json_object_put(result);
    return true;
}

/* Whether the merge has ended; one that failed is tried again. */
static bool merge_is_done(struct host *host) MAY_WAIT
{
    struct err err = ERR_INIT;
    char stage[32];

    if (!manager_query_stage(host, stage, sizeof(stage)))
        return false;
    if (strcmp(stage, "failover-failed") == 0)
        (void)qmp_command(host, NULL, &err,
                          "{'execute':'replication-stop','arguments':{'failover':true}}");
    host->merging = host->merging && strcmp(stage, "done") != 0;
    return !host->merging;
}

bool manager_wait_merged(struct host *host, uint64_t patience_ns)
{
    return !host->merging ||
           WORLD_WAIT(host->world, patience_ns, !host_is_up(host) || merge_is_done(host));
}

/* --- stop --- */

/* The guest of the truth is held meanwhile, so what the other has is what the truth has. */
static void stop(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world), *other = world_other(world);
    bool well = world_is_well(world);
    struct err err = ERR_INIT;

    if (!host_is_up(truth) || !truth->linked || !host_is_up(other) || other->role != ROLE_STANDBY ||
        pair_hold_guest(truth, &err) < 0) {
        truth->guest.held = false;
        return;
    }
    bool broken = truth_is_broken(truth);
    uint32_t since = oracle_now(world->oracle);
    view_checkpoint_begin(other->view, broken ? NULL : other->stream, since);
    int r = qmp_command(other, NULL, &err,
                        "{'execute':'replication-stop','arguments':{'failover':false}}");
    if (r == -EREMOTEIO) {
        view_checkpoint_failed(other->view);
        no_excuse(world, well, "a stop", &err);
    } else {
        view_checkpoint(other->view, other->stream, since, r == 0);
        if (broken)
            view_blind(other->view);
        if (r == 0)
            r = qmp_command(other, NULL, &err,
                            "{'execute':'nbd-server-stop','arguments':{'id':'peer'}}");
        if (r < 0)
            process_kill(other);
        other->role = r < 0 ? ROLE_DOWN : ROLE_STALE;
        other->down = false;
        world->troubled = true;
        world->stats.stops++;
        (void)pair_unlink(truth, &err);
    }
    truth->guest.held = false;
}

/* --- checks --- */

static void check(struct world *world) MAY_WAIT
{
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        struct host *host = &world->hosts[i];
        bool well = host_is_well(host);
        unsigned troubles = host->troubles;
        if (!host_is_up(host) || host->role == ROLE_DOWN || host->role == ROLE_SYNC ||
            host_is_closed(host))
            continue;
        if (!guest_read_all(&host->guest, NULL) && well && host_is_well(host) &&
            troubles == host->troubles)
            world_violation(world,
                            invariant_name(host->role == ROLE_TRUTH ? I1_ACKNOWLEDGED_IS_READ
                                                                    : I2_VIEW_IS_CHECKPOINT),
                            "the disks of %s (%s) cannot be read though nothing is wrong",
                            host->name, role_name(host->role));
    }
}

static void check_equal(struct world *world) MAY_WAIT
{
    uint8_t *bytes[WORLD_SIDES] = {NULL, NULL};
    size_t length = (size_t)world->history->disks * world->history->sectors * ORACLE_SECTOR_BYTES;

    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        if (!guest_read_all(&world->hosts[i].guest, &bytes[i]))
            world_violation(world, invariant_name(I5_RESYNC_MAKES_EQUAL),
                            "the disks of %s cannot be read after a resync", world->hosts[i].name);
    }
    for (size_t at = 0; at < length; at += ORACLE_SECTOR_BYTES) {
        size_t sector = at / ORACLE_SECTOR_BYTES;
        if (memcmp(bytes[0] + at, bytes[1] + at, ORACLE_SECTOR_BYTES) != 0)
            world_violation(world, invariant_name(I5_RESYNC_MAKES_EQUAL),
                            "disk %zu, sector %zu differs after a resync and a checkpoint",
                            sector / world->history->sectors, sector % world->history->sectors);
    }
    free(bytes[0]);
    free(bytes[1]);
}

/* --- calls whatever the stage --- */

/* The other follows no more, and keeps its last checkpoint. */
static void stop_primary(struct host *truth, enum cover_call call) MAY_WAIT
{
    bool well = host_is_well(truth);
    unsigned troubles = truth->troubles;
    struct err err = ERR_INIT;

    truth->linked = false;
    truth->world->troubled = true;
    int r = call_send(truth, call, false, &err);
    if (r < 0 && r != -EREMOTEIO)
        manager_give_up(truth);
    else if (r < 0 && well && host_is_well(truth) && troubles == truth->troubles)
        world_violation(truth->world, invariant_name(I8_NOTHING_HANGS),
                        "a primary does not stop: %s", err.text);
}

/* Nobody has asked the truth: what the standby has then is its checkpoint, and what that is the oracle
 * cannot know. */
static void checkpoint_alone(struct world *world, enum cover_call call) MAY_WAIT
{
    struct host *other = world_other(world);
    bool well = world_is_well(world);
    uint32_t since = oracle_now(world->oracle);
    struct err err = ERR_INIT;

    view_checkpoint_begin(other->view, NULL, since);
    int r = call_send(other, call, true, &err);
    if (r == -EREMOTEIO) {
        view_checkpoint_failed(other->view);
        return;
    }
    if (r == 0 && call == COVER_FIRST && well && world_is_well(world))
        world_violation(world, "the table of stages and calls",
                        "a first checkpoint that nobody awaits is taken");
    view_checkpoint(other->view, other->stream, since, r == 0);
    view_blind(other->view);
    world_truth(world)->linked = false;
    world->troubled = true;
    if (r < 0)
        manager_give_up(other);
}

/* What means something to the oracle. False: it means nothing. */
static bool call_with_sense(struct host *host, enum cover_stage stage, enum cover_call call)
    MAY_WAIT
{
    struct world *world = host->world;
    bool standby = host->role == ROLE_STANDBY;

    if (stage == COVER_S_NONE && call == COVER_START)
        manager_restart(world, host, false);
    else if (stage == COVER_S_AWAITING && call == COVER_FIRST)
        pair_resume(world, 0);
    else if (stage == COVER_S_AWAITING && call == COVER_FORCE)
        force(world);
    else if (stage == COVER_P_RUNNING && host->linked && call == COVER_CHECKPOINT)
        checkpoint(world);
    else if (stage == COVER_P_RUNNING && host->linked && call >= COVER_STOP)
        stop_primary(host, call);
    else if (stage == COVER_S_RUNNING && call == COVER_CHECKPOINT && world_truth(world)->linked &&
             !world->history->peer_control)
        checkpoint(world);
    else if (stage == COVER_S_RUNNING && call <= COVER_FIRST && call != COVER_START && standby)
        checkpoint_alone(world, call);
    else if (stage == COVER_S_RUNNING && call == COVER_STOP)
        stop(world);
    else if (stage == COVER_S_RUNNING && call >= COVER_FAILOVER)
        failover(world, call);
    else
        return false;
    return true;
}

static void call_any(struct host *host, enum cover_call call) MAY_WAIT
{
    enum cover_stage stage;

    if (!host_stage(host, &stage) || call_with_sense(host, stage, call))
        return;
    /* With a session this would be its secondary's. */
    if (stage == COVER_P_RUNNING && call == COVER_FIRST && host->world->history->peer_control)
        return;
    if (!call_plain(host, call))
        manager_give_up(host);
}

/* --- the lane --- */

static void manager_do(struct world *world, const struct op *op) MAY_WAIT
{
    struct host *host = op->side == SIDE_TRUTH ? world_truth(world) : world_other(world);

    oracle_keep_since(world->oracle, oracle_now(world->oracle));
    switch (op->kind) {
    case OP_CHECKPOINT:
        checkpoint(world);
        break;
    case OP_FAILOVER:
        failover(world, COVER_FAILOVER);
        break;
    case OP_RESUME:
        pair_resume(world, op->flags);
        break;
    case OP_CALL:
        call_any(host, op->a % COVER_READ);
        break;
    case OP_STOP:
        stop(world);
        break;
    case OP_RESTART:
        manager_restart(world, host, (op->flags & OP_BARE) != 0);
        break;
    default:
        check(world);
        break;
    }
    oracle_keep_since(world->oracle, ORACLE_NEVER);
}

struct lane {
    struct world *world;
    struct op op;
};

static void lane_main(void *arg) MAY_WAIT;
static void lane_main(void *arg)
{
    struct lane *lane = arg;

    manager_do(lane->world, &lane->op);
    lane->world->managing = false;
    free(lane);
}

static void lane_wait(struct world *world) MAY_WAIT
{
    if (!WORLD_WAIT(world, 16 * WORLD_PATIENCE_NS, !world->managing))
        world_violation(world, invariant_name(I8_NOTHING_HANGS),
                        "a command of the manager does not end");
}

void manager_op(struct world *world, const struct op *op)
{
    lane_wait(world);
    world->managing = true;
    if ((op->flags & OP_WAIT) != 0) {
        manager_do(world, op);
        world->managing = false;
        return;
    }
    struct lane *lane = malloc(sizeof(*lane));
    assert(lane != NULL);
    *lane = (struct lane){.world = world, .op = *op};
    if (co_spawn(world->manager, "manager", lane_main, lane) < 0)
        abort();
}

/* --- the end --- */

static void settle(struct world *world) MAY_WAIT
{
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        struct guest *guest = &world->hosts[i].guest;
        if (!WORLD_WAIT(world, 16 * WORLD_PATIENCE_NS, guest_is_idle(guest)))
            world_violation(world, invariant_name(I8_NOTHING_HANGS),
                            "%u requests of the guest of %s do not end", guest->under_way,
                            world->hosts[i].name);
    }
}

void manager_settle(struct world *world)
{
    settle(world);
}

/* After a failed flush only a new daemon's succeed: an operator restarts it. */
static void renew(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world);

    if (!truth->flush_lost || !host_is_up(truth))
        return;
    process_quit(truth);
    truth->down = true;
    manager_restart(world, truth, false);
}

static void finish_merge(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world);

    renew(world);
    if (!manager_wait_merged(truth, WORLD_PATIENCE_NS))
        world_violation(world, invariant_name(I8_NOTHING_HANGS), "the merge on %s does not end",
                        truth->name);
}

/* The pair as it is: what the standby has is what the truth has. */
static void finish_in_sync(struct world *world) MAY_WAIT
{
    checkpoint(world);
    check_equal(world);
}

static void finish_resume(struct world *world) MAY_WAIT
{
    for (unsigned i = 0; i < WORLD_SIDES; i++)
        manager_restart(world, &world->hosts[i], false);
    if (!host_is_up(world_truth(world)))
        world_violation(world, invariant_name(I8_NOTHING_HANGS), "the truth is down for good");
    check(world);
    finish_merge(world);
    check(world);
    view_forget_doubts(world_truth(world)->view);
    pair_resume(world, world->history->seed / 2 % 2 == 0 ? OP_KEEP : 0);
    if (!world_truth(world)->linked)
        pair_resume(world, 0); /* the other's daemon may be beyond help */
    if (world_other(world)->role != ROLE_STANDBY || !world_truth(world)->linked)
        world_violation(world, invariant_name(I8_NOTHING_HANGS),
                        "the faults are over, and the pair does not come in sync");
    finish_in_sync(world);
}

void manager_finish(struct world *world)
{
    lane_wait(world);
    manager_heal(world);
    co_sleep(2 * NS_PER_S); /* all have heard of what was broken */
    settle(world);
    renew(world);
    if (world_is_well(world))
        finish_in_sync(world);
    else
        finish_resume(world);
    if (world->history->seed % 2 == 0) {
        failover(world, COVER_FAILOVER);
        check(world);
        finish_merge(world);
        check(world);
    }
    for (unsigned i = 0; i < WORLD_SIDES; i++) {
        bounds_check(&world->hosts[i], true);
        process_quit(&world->hosts[i]);
        guest_end(&world->hosts[i].guest);
    }
}
