/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The group's calls: what each does in each stage is the table "Stages and calls" in
 * docs/semantics.md. A call first looks at all disks, and changes nothing when one refuses it.
 */
#include "replication/group.h"

#include "base/log.h"
#include "block/io.h"
#include "drivers/overlay.h"
#include "replication/group_internal.h"
#include "replication/peer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct replication_group *replication_group_new(struct graph *graph, struct job_list *jobs,
                                                const struct replication_owner *owner)
{
    struct replication_group *group = calloc(1, sizeof(*group));
    if (group == NULL)
        return NULL;
    group->graph = graph;
    group->jobs = jobs;
    group->owner = owner;
    co_mutex_init(&group->calls);
    co_queue_init(&group->flushed);
    list_init(&group->disks);
    if (group_record_init(group) < 0) {
        group_record_release(group);
        free(group);
        return NULL;
    }
    return group;
}

/* A merge that is interrupted leaves its disk in the list. */
static void end_merges(struct replication_group *group) MAY_WAIT
{
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (disk->merge != NULL)
            job_interrupt(disk->merge);
    }
    struct list_link *link = list_first(&group->disks);
    while (link != NULL && link != &group->disks.head) {
        struct group_disk *disk = LIST_ENTRY(link, struct group_disk, link);
        if (disk->merge == NULL) {
            link = link->next;
            continue;
        }
        struct job *job = job_ref(disk->merge);
        (void)job_wait(job);
        job_unref(job);
        link = list_first(&group->disks); /* it may have gone, and others */
    }
}

static int flush_disk(struct group_disk *disk) MAY_WAIT
{
    int ret = io_flush(disk->lower);
    if (ret == 0)
        ret = io_flush(node_child(disk->node, "file"));
    if (ret == 0)
        ret = io_flush(node_child(disk->active, "backing"));
    return ret;
}

/* Nobody writes any more: what the overlays hold can be made durable, so that the next start finds it
 * even when the host was off in between. */
static void end_record(struct replication_group *group) MAY_WAIT
{
    if (group->file == NULL || group->record_code < 0 || list_empty(&group->disks))
        return;
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        int ret = flush_disk(disk);
        if (ret == 0)
            continue;
        log_error("replication", "node '%s': flush at the end: %s", disk->node->name,
                  err_errno_name(ret));
        return;
    }
    struct err err = ERR_INIT;
    struct group_record *change = group_record_change(group);
    change->undo_durable = true;
    if (group_record_write(group, &err) < 0)
        log_error("replication", "the end in good order cannot be recorded: %s", err.text);
}

/* The nodes may outlive the group. */
static void forget_flushes(struct replication_group *group)
{
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (replication_is(node))
            replication_set_keeper(node, NULL);
    }
}

void replication_group_free(struct replication_group *group)
{
    if (group == NULL)
        return;
    co_mutex_lock(&group->calls);
    group->ending = true;
    co_mutex_unlock(&group->calls);
    group_leave_peer(group);
    group_wait_flushed(group);
    end_merges(group);
    end_record(group);
    forget_flushes(group);
    LIST_FOR_EACH_SAFE(disk, &group->disks, struct group_disk, link)
        disk_free(disk);
    record_file_close(group->file);
    group_session_forget_error(group);
    group_record_release(group);
    free(group);
}

uint64_t group_clock_ns(const struct replication_group *group)
{
    return loop_clock_ns(graph_loop(group->graph));
}

struct group_disk *group_find_disk(struct replication_group *group, const struct node *node)
{
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (disk->node == node)
            return disk;
    }
    return NULL;
}

size_t disks_in_stage(struct replication_group *group, enum replication_stage stage,
                      struct group_disk **ret_disks)
{
    size_t count = 0;
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (replication_stage_of(disk->node) == stage && count < REPLICATION_MAX_DISKS)
            ret_disks[count++] = disk;
    }
    return count;
}

/* --- members --- */

int members_get(struct replication_group *group, struct group_members *ret_members, struct err *err)
{
    struct group_members members = {0};
    members.nodes = calloc(REPLICATION_MAX_DISKS, sizeof(struct node *));
    if (members.nodes == NULL)
        return err_no_memory(err);
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (!replication_is(node) || !node->opened)
            continue;
        if (members.count == REPLICATION_MAX_DISKS) {
            free(members.nodes);
            return err_set(err, -E2BIG, "more than %u nodes carry the driver replication",
                           REPLICATION_MAX_DISKS);
        }
        members.nodes[members.count++] = node;
    }
    for (size_t i = 0; i < members.count; i++)
        node_ref(members.nodes[i]);
    *ret_members = members;
    return 0;
}

void members_release(struct group_members *members)
{
    for (size_t i = 0; i < members->count; i++)
        node_unref(members->nodes[i]);
    free(members->nodes);
    *members = (struct group_members){0};
}

static struct node *members_find(const struct group_members *members, enum replication_stage stage)
{
    for (size_t i = 0; i < members->count; i++) {
        if (replication_stage_of(members->nodes[i]) == stage)
            return members->nodes[i];
    }
    return NULL;
}

static int error_not_running(const struct group_members *members, const struct node *node,
                             struct err *err)
{
    if (members->count == 0)
        return err_set(err, -ENODEV,
                       "replication is not running: no node has the driver 'replication'");
    return err_set(err, -ENODEV, "replication is not running on node '%s': start it first",
                   node->name);
}

int group_error_text(const struct node *node, struct err *err)
{
    const struct replication_error *error = replication_error_of(node);
    return err_set(err, -EIO,
                   "%s '%s': %s failed on node '%s' at offset %" PRIu64 ", %" PRIu64
                   " bytes: %s (%" PRIu64 " failure(s) since the start); synchronise the disks and"
                   " start anew (blockstep primary --sync)",
                   replication_mode_name(error->side), node->name, error->operation, error->node,
                   error->offset_bytes, error->length_bytes, strerror(-error->code), error->count);
}

/* --- around each call --- */

int group_begin(struct replication_group *group, struct group_members *ret_members, struct err *err)
{
    co_mutex_lock(&group->calls);
    int ret = group->ending ? err_set(err, -ESHUTDOWN, "the daemon is ending")
                            : members_get(group, ret_members, err);
    if (ret < 0)
        co_mutex_unlock(&group->calls);
    return ret;
}

void group_end(struct replication_group *group, struct group_members *members)
{
    members_release(members);
    co_mutex_unlock(&group->calls);
}

int group_check_synchronised(const struct replication_group *group, const char *what,
                             struct err *err)
{
    if (!group->awaits_sync)
        return 0;
    if (group->record->stage == GROUP_FAILOVER) /* no primary has anything newer */
        return err_set(err, -ENODATA,
                       "%s: a failover was interrupted, and what it needs is lost: %s; put that"
                       " back and start again, or go on with what is left (blockstep failover"
                       " --force)",
                       what, group->record->inconsistent_reason);
    return err_set(err, -ENODATA,
                   "%s: the group is inconsistent, there is no checkpoint: %s; synchronise it"
                   " (blockstep primary --sync), or take the disks over as they are (blockstep"
                   " failover --force)",
                   what, group->record->inconsistent_reason);
}

/* --- stop --- */

static int stop_check(const struct group_members *members, bool failover, struct err *err)
{
    struct node *none = members_find(members, REPLICATION_NONE);
    if (none != NULL || members->count == 0)
        return error_not_running(members, none, err);
    struct node *failed = members_find(members, REPLICATION_FAILOVER_FAILED);
    if (failed != NULL && !failover)
        return err_set(
            err, -EBUSY,
            "the failover of node '%s' has failed in its merge: only a stop with failover,"
            " which tries it again, is possible",
            failed->name);
    return 0;
}

static void stop_primaries(struct replication_group *group, const struct group_members *members)
    MAY_WAIT
{
    for (size_t i = 0; i < members->count; i++) {
        struct node *node = members->nodes[i];
        if (replication_mode_of(node) == REPLICATION_PRIMARY &&
            replication_stage_of(node) == REPLICATION_RUNNING)
            replication_set_stage(node, REPLICATION_DONE);
    }
    group_leave_peer(group);
}

/* The secondary disks are what is left, and whole only when the stream was. */
static int record_stop(struct replication_group *group, struct group_disk *const *disks,
                       size_t count, struct err *err) MAY_WAIT
{
    struct group_record *change = group_record_change(group);
    record_set_overlays(change, disks, count, true);
    change->stage = GROUP_DONE;
    change->undo_durable = false;
    if (!change->stream_intact)
        record_set_inconsistent(change, change->stream_reason);
    int ret = group_record_write(group, err);
    if (ret < 0)
        disks_empty_abort(disks, count, EMPTY_ACTIVE_FIRST);
    return ret;
}

/* Drops what the overlays hold: the secondary disk keeps what the primary forwarded. */
static int stop_secondaries(struct replication_group *group, struct err *err) MAY_WAIT
{
    CLEANUP(free_ptr) struct group_disk **disks = calloc(REPLICATION_MAX_DISKS, sizeof(*disks));
    if (disks == NULL)
        return err_no_memory(err);
    size_t count = disks_in_stage(group, REPLICATION_RUNNING, disks);
    if (count == 0)
        return 0;
    struct graph_drain drain;
    int ret = disks_drain(disks, count, &drain, err);
    if (ret < 0)
        return ret;
    ret = disks_empty_prepare(disks, count, EMPTY_ACTIVE_FIRST, group->record->epoch, err);
    if (ret == 0)
        ret = record_stop(group, disks, count, err);
    if (ret == 0) {
        disks_empty_commit(disks, count);
        disks_mark_changed(disks, count);
        for (size_t i = 0; i < count; i++)
            replication_set_stage(disks[i]->node, REPLICATION_DONE);
        for (size_t i = 0; i < count; i++)
            disk_remove_filter(disks[i]);
    }
    graph_drain_end(&drain);
    for (size_t i = 0; ret == 0 && i < count; i++) {
        disk_put_back(disks[i]);
        disk_free(disks[i]);
    }
    return ret;
}

/* Repeats merges that have failed. */
static int retry_failed(struct replication_group *group, struct err *err) MAY_WAIT
{
    CLEANUP(free_ptr) struct group_disk **disks = calloc(REPLICATION_MAX_DISKS, sizeof(*disks));
    if (disks == NULL)
        return err_no_memory(err);
    size_t count = disks_in_stage(group, REPLICATION_FAILOVER_FAILED, disks);
    for (size_t i = 0; i < count; i++)
        replication_set_stage(disks[i]->node, REPLICATION_FAILOVER);
    group_merge(disks, count);
    return 0;
}

static int fail_over_running(struct replication_group *group, struct err *err) MAY_WAIT
{
    CLEANUP(free_ptr) struct group_disk **disks = calloc(REPLICATION_MAX_DISKS, sizeof(*disks));
    if (disks == NULL)
        return err_no_memory(err);
    size_t count = disks_in_stage(group, REPLICATION_RUNNING, disks);
    return count == 0 ? 0 : group_fail_over(group, disks, count, err);
}

static int stop_members(struct replication_group *group, const struct group_members *members,
                        bool failover, struct err *err) MAY_WAIT
{
    int ret = stop_check(members, failover, err);
    if (ret == 0 && failover)
        ret = retry_failed(group, err);
    if (ret == 0)
        ret = failover ? fail_over_running(group, err) : stop_secondaries(group, err);
    if (ret == 0)
        stop_primaries(group, members);
    return ret;
}

static int stop(struct replication_group *group, bool failover, bool force, struct err *err)
    MAY_WAIT
{
    struct group_members members;
    int ret = group_begin(group, &members, err);
    if (ret < 0)
        return ret;
    if (force && group->awaits_sync) {
        ret = group_force_over(group, &members, err);
    } else {
        ret = group_check_synchronised(group, failover ? "no failover" : "nothing to stop", err);
        if (ret == 0)
            ret = stop_members(group, &members, failover, err);
    }
    group_end(group, &members);
    return ret;
}

int replication_stop(struct replication_group *group, bool failover, struct err *err)
{
    return stop(group, failover, false, err);
}

int replication_force_failover(struct replication_group *group, struct err *err)
{
    return stop(group, true, true, err);
}

/* --- the sticky error --- */

int replication_get_error(struct replication_group *group, struct err *err)
{
    struct group_members members;
    int ret = members_get(group, &members, err);
    if (ret < 0)
        return ret;
    struct node *none = members_find(&members, REPLICATION_NONE);
    if (none != NULL || members.count == 0)
        ret = error_not_running(&members, none, err);
    for (size_t i = 0; ret == 0 && i < members.count; i++) {
        if (replication_error_of(members.nodes[i])->count > 0)
            ret = group_error_text(members.nodes[i], err);
    }
    if (ret == 0 && group->record->stage == GROUP_RUNNING)
        ret = group_check_stream(group, err);
    if (ret == 0 && group->peer != NULL)
        ret = peer_check(group->peer, err);
    members_release(&members);
    return ret;
}
