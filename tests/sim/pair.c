/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How two daemons become a pair: links from one to the other, and a copy of everything. */
#include "world.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

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
int pair_unlink(struct host *host, struct err *err)
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
    char control[100] = "";

    if (host->world->history->peer_control)
        snprintf(control, sizeof(control),
                 ",'peer-control':{'type':'inet','host':'%s','port':'%s'}", to->name,
                 WORLD_CONTROL_PORT);
    int r = qmp_command(host, NULL, err,
                        "{'execute':'blockdev-add','arguments':{'driver':'replication',"
                        "'mode':'primary','node-name':'link%u-%u','file':{'driver':'nbd',"
                        "'export':'disk%u','server':{'type':'inet','host':'%s','port':'%s'}}%s}}",
                        disk, host->links_made, disk, to->name, WORLD_PEER_PORT, control);

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

static int links_add(struct host *host, struct host *to, struct err *err) MAY_WAIT
{
    int r = 0;

    host->links_made++;
    host->has_links = true;
    for (unsigned disk = 0; r == 0 && disk < disks_of(host->world); disk++)
        r = link_add(host, to, disk, err);
    return r;
}

/* The disks are equal: from now on what one is told the other gets. A secondary that awaits its
 * synchronisation is told so by its first checkpoint, another one by its start; neither happens before
 * *ret_since. */
static int links_make(struct host *host, struct host *to, uint32_t *ret_since, struct err *err)
    MAY_WAIT
{
    struct world *world = host->world;
    bool session = world->history->peer_control;
    int r = links_add(host, to, err);

    *ret_since = oracle_now(world->oracle);
    if (r == 0 && !to->awaits)
        r = manager_start(to, "secondary", "fresh", err);
    if (r == 0)
        r = manager_start(host, "primary", session && to->awaits ? "sync" : "empty", err);
    if (r == 0 && to->awaits)
        r = call_send(session ? host : to, COVER_FIRST, !session, err);
    return r;
}

static void in_sync(struct host *truth, struct host *other, uint32_t since)
{
    struct world *world = truth->world;

    view_settle(other->view, other->life_began);
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

int pair_hold_guest(struct host *host, struct err *err)
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

/* What is left of an earlier link goes; a frozen daemon may have got its commands late. */
static int unlink_all(struct host *truth, struct err *err) MAY_WAIT
{
    int r = pair_unlink(truth, err);

    if (r == 0 && !mirrors_are_gone(truth))
        (void)mirrors_end(truth, true, err);
    return r;
}

/* A copy of everything; the guest stands still at its end. */
static int mirror_all(struct host *truth, struct host *other, struct err *err) MAY_WAIT
{
    int r = mirrors_start(truth, other, err);

    if (r == 0)
        r = pair_hold_guest(truth, err);
    return r < 0 ? r : mirrors_end(truth, false, err);
}

static int synchronise(struct host *truth, struct host *other, uint32_t *ret_since, struct err *err)
    MAY_WAIT
{
    int r = unlink_all(truth, err);

    if (r == 0 && !other->awaits)
        r = process_start(other, true, true, true, err);
    if (r == 0)
        r = mirror_all(truth, other, err);
    if (r == 0)
        r = links_make(truth, other, ret_since, err);
    return r;
}

/* Onto a standby that goes on: its view stays what it was until the first checkpoint after the copy.
 * *ret_since: it has not been before, if not 0. */
static int synchronise_running(struct host *truth, struct host *other, uint32_t *ret_since,
                               struct err *err) MAY_WAIT
{
    int r = unlink_all(truth, err);

    if (r == 0)
        r = links_add(truth, other, err);
    if (r == 0)
        r = manager_start(truth, "primary", "sync", err);
    if (r == 0)
        r = mirror_all(truth, other, err);
    if (r < 0)
        return r;
    *ret_since = oracle_now(truth->world->oracle);
    view_checkpoint_begin(other->view, NULL, *ret_since);
    return call_send(truth, COVER_FIRST, false, err);
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

static bool standby_runs(const struct host *host)
{
    enum cover_stage stage;

    return host->role == ROLE_STANDBY && host_is_well(host) && !host->fenced &&
           host_stage(host, &stage) && stage == COVER_S_RUNNING;
}

/* Nothing was wrong, and nothing is. */
static void no_excuse(const struct world *world, bool well, unsigned troubles,
                      const struct err *err)
{
    /* What a frozen daemon was told it may have done late. */
    bool late = strstr(err->text, "already in use") != NULL;

    if (well && world_is_able(world) && troubles == world->troubles && !late)
        world_violation((struct world *)(uintptr_t)world, invariant_name(I8_NOTHING_HANGS),
                        "the pair does not come in sync though nothing is wrong: %s", err->text);
}

static void synchronised(struct host *truth, struct host *other, uint32_t since, unsigned troubles)
{
    struct world *world = truth->world;

    in_sync(truth, other, since);
    world->troubled = troubles != world->troubles || !world_is_able(world);
    world->stats.resumes++;
}

static void give_up_sync(struct host *truth) MAY_WAIT
{
    struct err ignored = ERR_INIT;

    (void)mirrors_end(truth, true, &ignored);
    (void)pair_unlink(truth, &ignored);
    truth->world->troubled = true;
}

/* Its first checkpoint may have been or not; that it is still to come is excluded by its death. */
static void first_unknown(struct host *truth, struct host *other, uint32_t since)
{
    view_copy(other->stream, truth->view);
    view_checkpoint(other->view, other->stream, since, false);
    manager_give_up(other);
}

static void resume_running(struct host *truth, struct host *other) MAY_WAIT
{
    struct world *world = truth->world;
    unsigned troubles = world->troubles;
    bool well = world_is_able(world);
    struct err err = ERR_INIT;
    uint32_t since = 0;

    truth->linked = false;
    world->troubled = true;
    int r = synchronise_running(truth, other, &since, &err);
    if (r == 0) {
        synchronised(truth, other, since, troubles);
        return;
    }
    if (since != 0 && r == -EREMOTEIO && !manager_outcome_unknown(&err))
        view_checkpoint_failed(other->view);
    else if (since != 0)
        first_unknown(truth, other, since);
    no_excuse(world, well, troubles, &err);
    give_up_sync(truth);
}

static void resume_anew(struct host *truth, struct host *other, bool bare) MAY_WAIT
{
    struct world *world = truth->world;
    unsigned troubles = world->troubles;
    bool well = world_is_able(world), done;
    struct err err = ERR_INIT;
    uint32_t since = 0;

    if (!other->awaits || !host_is_up(other))
        clear_away(other);
    if (bare)
        done = pair_unlink(truth, &err) == 0 && (other->awaits || await_copy(other, &err) == 0);
    else
        done = synchronise(truth, other, &since, &err) == 0;
    done = done && host_is_up(truth) && host_is_up(other);
    if (done && bare) {
        world->troubled = true;
    } else if (done) {
        synchronised(truth, other, since, troubles);
    } else {
        no_excuse(world, well, troubles, &err);
        other->role = ROLE_DOWN;
        other->awaits = false;
        process_kill(other);
        give_up_sync(truth);
    }
}

void pair_resume(struct world *world, unsigned flags)
{
    struct host *truth = world_truth(world), *other = world_other(world);

    if (!host_is_up(truth) || !manager_wait_merged(truth, 10 * NS_PER_S) || !host_is_up(truth) ||
        ((flags & OP_IF_BROKEN) != 0 && follows(truth, other)))
        return;
    if ((flags & OP_KEEP) != 0 && world->history->peer_control && standby_runs(other))
        resume_running(truth, other);
    else
        resume_anew(truth, other, (flags & OP_BARE) != 0);
    truth->guest.held = false;
}

/* --- the first time --- */

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

void pair_begin(struct world *world)
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
