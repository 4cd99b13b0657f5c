/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an operator or a hypervisor does to a pair, over its control protocol, and what the oracle
 * makes of the answers. */
#include "world.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

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

/* --- links --- */

/* Commands that an earlier attempt has carried out fail, so only what is left at the end counts. */
static bool link_remove(struct host *host, unsigned disk) MAY_WAIT
{
    struct err err = ERR_INIT;

    (void)qmp_command(host, NULL, &err,
                      "{'execute':'x-blockdev-change','arguments':"
                      "{'parent':'top%u','child':'children.1'}}",
                      disk);
    int r = qmp_command(host, NULL, &err,
                        "{'execute':'blockdev-del','arguments':{'node-name':'link%u-%u'}}", disk,
                        host->links_made);
    return r == 0 || (r == -EREMOTEIO && strstr(err.text, "Failed to find node") != NULL);
}

/* -EBUSY: some are still there. */
static int links_remove(struct host *host, struct err *err) MAY_WAIT
{
    struct world *world = host->world;
    bool gone = true;

    host->linked = false;
    if (!host->has_links)
        return 0;
    (void)qmp_command(host, NULL, err,
                      "{'execute':'replication-stop','arguments':{'failover':false}}");
    for (unsigned disk = 0; disk < disks_of(world); disk++)
        gone = link_remove(host, disk) && gone;
    host->has_links = !gone;
    return gone ? 0 : err_set(err, -EBUSY, "the former links of %s stay", host->name);
}

static int link_add(struct host *host, struct host *to, unsigned disk, struct err *err) MAY_WAIT
{
    int r = qmp_command(host, NULL, err,
                        "{'execute':'blockdev-add','arguments':{'driver':'replication',"
                        "'mode':'primary','node-name':'link%u-%u','file':{'driver':'nbd',"
                        "'export':'disk%u','server':{'type':'inet','host':'%s','port':'%s'}}}}",
                        disk, host->links_made, disk, to->name, WORLD_PEER_PORT);

    if (r == 0)
        r = qmp_command(host, NULL, err,
                        "{'execute':'x-blockdev-change','arguments':"
                        "{'parent':'top%u','node':'link%u-%u'}}",
                        disk, disk, host->links_made);
    return r;
}

int manager_start(struct host *host, const char *mode, const char *overlays, struct err *err)
{
    return qmp_command(host, NULL, err,
                       "{'execute':'replication-start','arguments':"
                       "{'mode':'%s','overlays':'%s'}}",
                       mode, overlays);
}

/* The disks are equal: from now on what one is told the other gets. A secondary that awaits its
 * synchronisation is told so by its first checkpoint, another one by its start; neither happens before
 * *ret_since. */
static int links_make(struct host *host, struct host *to, uint32_t *ret_since, struct err *err)
    MAY_WAIT
{
    struct world *world = host->world;
    int r = 0;

    host->links_made++;
    host->has_links = true;
    for (unsigned disk = 0; r == 0 && disk < disks_of(world); disk++)
        r = link_add(host, to, disk, err);
    *ret_since = oracle_now(world->oracle);
    if (r == 0 && !to->awaits)
        r = manager_start(to, "secondary", "fresh", err);
    if (r == 0)
        r = manager_start(host, "primary", "empty", err);
    if (r == 0 && to->awaits)
        r = call_send(to, COVER_FIRST, true, err);
    return r;
}

static void in_sync(struct host *truth, struct host *other, uint32_t since)
{
    struct world *world = truth->world;

    view_settle(other->view);
    view_copy(other->stream, truth->view);
    view_checkpoint(other->view, other->stream, since, true);
    view_set_invariant(other->view, I2_VIEW_IS_CHECKPOINT);
    view_set_invariant(truth->view, I1_ACKNOWLEDGED_IS_READ);
    other->role = ROLE_STANDBY;
    other->down = other->merging = other->awaits = false;
    truth->linked = true;
    view_set_twin(truth->view, other->stream);
    view_set_twin(other->view, NULL);
    world->troubled = false;
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
static void give_up(struct host *host)
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

static void checkpoint(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world), *other = world_other(world);
    bool well = world_is_well(world);
    struct err err = ERR_INIT;

    if (!host_is_up(truth) || !truth->linked || !host_is_up(other) || other->role != ROLE_STANDBY)
        return;
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
        give_up(other);
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
        no_excuse(world, well, "a failover", &err);
        return;
    }
    if (other->power_lost) { /* and with that what it would have taken over with */
        other->role = ROLE_DOWN;
        other->down = other->power_lost = false;
        return;
    }
    if (r < 0)
        give_up(other);
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
        give_up(other);
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

/* --- resume: the other becomes a standby again, by a copy of everything --- */

static bool mirrors_are_ready(struct host *host, bool *ret_failed) MAY_WAIT
{
    struct json_object *result = NULL;
    struct err err = ERR_INIT;
    unsigned ready = 0;

    if (qmp_command(host, &result, &err, "{'execute':'query-block-jobs'}") < 0) {
        *ret_failed = true;
        return true;
    }
    size_t jobs = json_object_array_length(result), mirrors = 0;
    for (size_t i = 0; i < jobs; i++) {
        struct json_object *job = json_object_array_get_idx(result, i), *member = NULL;
        json_object_object_get_ex(job, "type", &member);
        if (strcmp(json_object_get_string(member), "mirror") != 0)
            continue;
        mirrors++;
        json_object_object_get_ex(job, "ready", &member);
        ready += json_object_get_boolean(member) != 0;
    }
    json_object_put(result);
    *ret_failed = mirrors != disks_of(host->world);
    return *ret_failed || ready == mirrors;
}

static bool mirrors_are_gone(struct host *host) MAY_WAIT
{
    struct json_object *result = NULL;
    struct err err = ERR_INIT;

    if (qmp_command(host, &result, &err, "{'execute':'query-block-jobs'}") < 0)
        return true;
    size_t jobs = json_object_array_length(result);
    json_object_put(result);
    return jobs == 0;
}

static int mirrors_start(struct host *from, struct host *to, struct err *err) MAY_WAIT
{
    struct world *world = from->world;
    bool failed = false;
    int r = 0;

    from->jobs_failed = false;
    for (unsigned disk = 0; r == 0 && disk < disks_of(world); disk++)
        r = qmp_command(from, NULL, err,
                        "{'execute':'drive-mirror','arguments':{'device':'top%u','job-id':'sync%u',"
                        "'target':'nbd://%s:%s/disk%u','mode':'existing','format':'raw',"
                        "'sync':'full'}}",
                        disk, disk, to->name, WORLD_PEER_PORT, disk);
    if (r < 0)
        return r;
    if (!WORLD_WAIT(world, WORLD_PATIENCE_NS, mirrors_are_ready(from, &failed)) || failed)
        return err_set(err, -EIO, "a mirror has failed, or does not become ready");
    return 0;
}

static int mirrors_end(struct host *from, bool force, struct err *err) MAY_WAIT
{
    struct world *world = from->world;
    int r = 0;

    for (unsigned disk = 0; disk < disks_of(world); disk++) {
        int one = qmp_command(from, NULL, err,
                              "{'execute':'block-job-cancel','arguments':"
                              "{'device':'sync%u','force':%s}}",
                              disk, force ? "true" : "false");
        r = r == 0 ? one : r;
    }
    if (!WORLD_WAIT(world, WORLD_PATIENCE_NS, mirrors_are_gone(from)))
        return err_set(err, -ETIMEDOUT, "a mirror does not end");
    return r == 0 && from->jobs_failed ? err_set(err, -EIO, "a mirror has failed at its end") : r;
}

static int hold_guest(struct host *host, struct err *err) MAY_WAIT
{
    host->guest.held = true;
    if (WORLD_WAIT(host->world, WORLD_PATIENCE_NS, host->guest.inside == 0))
        return 0;
    return err_set(err, -ETIMEDOUT, "the guest of %s has requests that do not end", host->name);
}

/* A daemon that waits for its disks to be made equal. */
static int await_copy(struct host *other, struct err *err) MAY_WAIT
{
    int r = process_start(other, true, true, true, err);

    if (r == 0)
        r = manager_start(other, "secondary", "sync", err);
    other->awaits = r == 0;
    return r;
}

static int synchronise(struct host *truth, struct host *other, uint32_t *ret_since, struct err *err)
    MAY_WAIT
{
    int r = links_remove(truth, err);
    /* A frozen daemon may have got its commands late. */
    if (r == 0 && !mirrors_are_gone(truth))
        (void)mirrors_end(truth, true, err);
    if (r == 0 && !other->awaits)
        r = process_start(other, true, true, true, err);
    if (r == 0)
        r = mirrors_start(truth, other, err);
    if (r == 0)
        r = hold_guest(truth, err);
    if (r == 0)
        r = mirrors_end(truth, false, err);
    if (r == 0)
        r = links_make(truth, other, ret_since, err);
    return r;
}

static bool follows(const struct host *truth, const struct host *other)
{
    return truth->linked && host_is_up(other) && other->role == ROLE_STANDBY &&
           !truth->world->troubled;
}

/* Whatever it was, it becomes what can be synchronised. */
static void clear_away(struct host *host) MAY_WAIT
{
    host->role = ROLE_SYNC;
    host->down = host->power_lost = false;
    if (host->frozen) {
        process_kill(host);
        host->frozen = false;
    }
    process_quit(host);
    host->merging = host->awaits = false;
}

static void resume(struct world *world, unsigned flags) MAY_WAIT
{
    struct host *truth = world_truth(world), *other = world_other(world);
    struct err err = ERR_INIT;
    uint32_t since = 0;
    bool done = false;

    bool well = world_is_able(world);
    unsigned troubles = world->troubles;
    if (!host_is_up(truth) || !manager_wait_merged(truth, 10 * NS_PER_S) || !host_is_up(truth) ||
        ((flags & OP_IF_BROKEN) != 0 && follows(truth, other)))
        return;
    if (!other->awaits || !host_is_up(other))
        clear_away(other);
    if ((flags & OP_BARE) != 0)
        done = links_remove(truth, &err) == 0 && (other->awaits || await_copy(other, &err) == 0);
    else
        done = synchronise(truth, other, &since, &err) == 0;
    done = done && host_is_up(truth) && host_is_up(other);
    if (done && (flags & OP_BARE) == 0) {
        in_sync(truth, other, since);
        world->troubled = troubles != world->troubles || !world_is_able(world);
        world->stats.resumes++;
    } else if (done) {
        world->troubled = true;
    } else {
        /* What a frozen daemon was told it may have done late. */
        bool late = strstr(err.text, "already in use") != NULL;
        if (well && world_is_able(world) && troubles == world->troubles && !late)
            world_violation(world, invariant_name(I8_NOTHING_HANGS),
                            "the pair does not come in sync though nothing is wrong: %s", err.text);
        struct err ignored = ERR_INIT;
        (void)mirrors_end(truth, true, &ignored);
        other->role = ROLE_DOWN;
        other->awaits = false;
        process_kill(other);
        (void)links_remove(truth, &ignored);
    }
    truth->guest.held = false;
}

/* --- stop --- */

/* The guest of the truth is held meanwhile, so what the other has is what the truth has. */
static void stop(struct world *world) MAY_WAIT
{
    struct host *truth = world_truth(world), *other = world_other(world);
    bool well = world_is_well(world);
    struct err err = ERR_INIT;

    if (!host_is_up(truth) || !truth->linked || !host_is_up(other) || other->role != ROLE_STANDBY ||
        hold_guest(truth, &err) < 0) {
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
        (void)links_remove(truth, &err);
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
        give_up(truth);
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
        give_up(other);
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
        resume(world, 0);
    else if (stage == COVER_S_AWAITING && call == COVER_FORCE)
        force(world);
    else if (stage == COVER_P_RUNNING && host->linked && call == COVER_CHECKPOINT)
        checkpoint(world);
    else if (stage == COVER_P_RUNNING && host->linked && call >= COVER_STOP)
        stop_primary(host, call);
    else if (stage == COVER_S_RUNNING && call == COVER_CHECKPOINT && world_truth(world)->linked)
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
    if (!call_plain(host, call))
        give_up(host);
}

/* --- the lane --- */

static void manager_do(struct world *world, const struct op *op) MAY_WAIT
{
    struct host *host = op->side == SIDE_TRUTH ? world_truth(world) : world_other(world);

    switch (op->kind) {
    case OP_CHECKPOINT:
        checkpoint(world);
        break;
    case OP_FAILOVER:
        failover(world, COVER_FAILOVER);
        break;
    case OP_RESUME:
        resume(world, op->flags);
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

/* --- begin and end --- */

static int begin(struct host *truth, struct host *other, uint32_t *ret_since, struct err *err)
    MAY_WAIT
{
    int r = process_start(truth, false, true, false, err);

    if (r == 0)
        r = process_start(other, true, true, true, err);
    if (r == 0)
        r = links_make(truth, other, ret_since, err);
    return r;
}

void manager_begin(struct world *world)
{
    struct host *truth = world_truth(world), *other = world_other(world);
    struct err err = ERR_INIT;
    uint32_t since = 0;

    int r = begin(truth, other, &since, &err);
    if (r < 0 && world->struck) {
        world_note(world, "the first start: %s", err.text);
        strike_end(world);
        for (unsigned i = 0; i < WORLD_SIDES; i++) {
            process_kill(&world->hosts[i]);
            world->hosts[i].disk_faults = 0;
            world->hosts[i].flush_lost = false;
        }
        err_clear(&err);
        r = begin(truth, other, &since, &err);
    }
    if (r < 0)
        world_violation(world, "the first start", "%s", err.text);
    truth->role = ROLE_TRUTH;
    in_sync(truth, other, since);
    world->troubled = world->struck;
}

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
    resume(world, 0);
    if (world_other(world)->role != ROLE_STANDBY)
        world_violation(world, invariant_name(I8_NOTHING_HANGS),
                        "the faults are over, and the pair does not come in sync");
    finish_in_sync(world);
}

void manager_finish(struct world *world)
{
    lane_wait(world);
    manager_heal(world);
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
        process_quit(&world->hosts[i]);
        guest_end(&world->hosts[i].guest);
    }
}
