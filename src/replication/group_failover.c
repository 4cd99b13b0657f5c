/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The failover: fence, then serve at once from the last checkpoint, then merge in the background.
 */
#include "replication/group_internal.h"

#include "base/log.h"
#include "block/io.h"
#include "drivers/overlay.h"
#include "jobs/commit.h"

#include <errno.h>
#include <stdio.h>

/* --- the fence --- */

static int call_fence(const struct replication_owner *owner, const struct group_roots *roots,
                      struct err *err) MAY_WAIT
{
    return owner->fence(owner->arg, roots->edges, roots->count, err);
}

static int fence(struct replication_group *group, struct group_disk *const *disks, size_t count,
                 struct err *err) MAY_WAIT
{
    CLEANUP(free_ptr) struct group_roots *roots = calloc(1, sizeof(*roots));
    if (roots == NULL)
        return err_no_memory(err);
    for (size_t i = 0; i < count; i++)
        group_roots_add(roots, disks[i]);
    if (roots->overflow)
        return err_set(err, -E2BIG, "more than %u users sit on the secondary disks",
                       GROUP_MAX_ROOTS);
    if (roots->count == 0)
        return 0;
    if (group->owner == NULL || group->owner->fence == NULL)
        return err_set(err, -EBUSY, "the peer still has a way to the secondary disks: %s on '%s'",
                       roots->edges[0]->name, roots->edges[0]->child->name);
    int ret = call_fence(group->owner, roots, err);
    return ret < 0 ? err_prefix(err, "no failover: the peer is not fenced off") : 0;
}

/* --- the merge --- */

static const struct node *merge_base(void *arg)
{
    struct group_disk *disk = arg;
    return replication_base(disk->node);
}

static void record_undo_durable(struct replication_group *group) MAY_WAIT
{
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (!disk->undo_flushed)
            return;
    }
    struct err err = ERR_INIT;
    group_record_change(group)->undo_durable = true;
    if (group_record_write(group, &err) < 0)
        log_warning("replication", "a loss of power would interrupt the failover: %s", err.text);
}

/* From here on S has the only copy. What its user writes is durable when he flushes it; what the
 * overlays held before becomes so here, so that a host that loses power goes on too. */
static void merge_begin(void *arg) MAY_WAIT
{
    struct group_disk *disk = arg;
    replication_plain_writes_end(disk->node);
    int ret = overlay_begin_log(disk->active);
    if (ret == 0)
        ret = io_flush(node_child(disk->node, "file"));
    if (ret == 0)
        ret = io_flush(node_child(disk->active, "backing"));
    if (ret < 0) {
        log_warning("replication", "node '%s': the overlays cannot be flushed: %s",
                    disk->node->name, err_errno_name(ret));
        return;
    }
    disk->undo_flushed = true;
    record_undo_durable(disk->group);
}

static void merge_copied(void *arg)
{
    struct group_disk *disk = arg;
    replication_merge_of(disk->node)->write_through = true;
}

static int merge_hold(void *arg, struct err *err) MAY_WAIT
{
    struct group_disk *disk = arg;
    return disks_drain(&disk, 1, &disk->drain, err);
}

/* With the last disk's merge the group is done. */
static void record_end_failover(struct group_record *record)
{
    for (size_t i = 0; i < record->disk_count; i++) {
        if (!record->disks[i].merged)
            return;
    }
    record->stage = GROUP_DONE;
    record->promoted = true;
}

/* The secondary disk has everything, durably. The overlays are emptied before anybody writes past
 * them: found full after a crash they would be merged over newer blocks. */
static int merge_finish(void *arg, struct err *err) MAY_WAIT
{
    struct group_disk *disk = arg;
    struct replication_group *group = disk->group;
    int ret = disks_empty_prepare(&disk, 1, EMPTY_HIDDEN_FIRST, group->record->epoch, err);
    if (ret < 0)
        return ret;
    struct group_record *change = group_record_change(group);
    record_set_overlays(change, &disk, 1, true);
    record_find_disk(change, disk->node)->merged = true;
    record_end_failover(change);
    ret = group_record_write(group, err);
    if (ret < 0) {
        disks_empty_abort(&disk, 1, EMPTY_HIDDEN_FIRST);
        return ret;
    }
    disks_empty_commit(&disk, 1);
    replication_set_stage(disk->node, REPLICATION_DONE);
    return 0;
}

static void merge_release(void *arg)
{
    struct group_disk *disk = arg;
    graph_drain_end(&disk->drain);
}

static void merge_failed(void *arg, const struct node *where, uint64_t offset_bytes,
                         uint64_t length_bytes, int code)
{
    struct group_disk *disk = arg;
    replication_report(disk->node, "merge", where, offset_bytes, length_bytes, code);
}

/* Serving goes on from the overlays; a stop with failover tries again. */
static void merge_give_up(struct group_disk *disk, const struct err *err)
{
    log_error("replication", "node '%s': the merge has failed: %s", disk->node->name, err->text);
    replication_merge_of(disk->node)->write_through = false;
    replication_set_stage(disk->node, REPLICATION_FAILOVER_FAILED);
}

static void merge_ended(struct job *job, void *arg) MAY_WAIT
{
    struct group_disk *disk = arg;
    struct replication_group *group = disk->group;
    disk->merge_done_bytes = job->done_bytes;
    disk->merge_total_bytes = job->total_bytes;
    /* The last step counts even where somebody asked for an end during it. */
    bool done = replication_stage_of(disk->node) == REPLICATION_DONE;
    if (!done && !job->interrupted)
        merge_give_up(disk, &job->err);
    if (done)
        co_mutex_lock(&group->calls);
    disk->merge = NULL;
    if (done) {
        disk_free(disk);
        co_mutex_unlock(&group->calls);
    }
    job_unref(job);
}

static int merge_start(struct group_disk *disk, struct err *err) MAY_WAIT
{
    struct replication_group *group = disk->group;
    struct replication_merge *merge = replication_merge_of(disk->node);
    char id[JOB_ID_BYTES];
    snprintf(id, sizeof(id), "merge-%s", disk->node->name);
    struct commit_options options = {
        .id = id,
        .from = node_child(disk->node, "file"),
        .to = disk->lower,
        .base = merge_base,
        .locks = &merge->locks,
        .rewritten = merge->rewritten,
        .region_bytes = REPLICATION_REGION_BYTES,
        .begin = merge_begin,
        .copied = merge_copied,
        .hold = merge_hold,
        .finish = merge_finish,
        .release = merge_release,
        .failed = merge_failed,
        .arg = disk,
    };
    struct job *job;
    int ret = commit_new(group->jobs, &options, &job, err);
    if (ret == -EEXIST) {
        options.id = NULL;
        ret = commit_new(group->jobs, &options, &job, err);
    }
    if (ret < 0)
        return ret;
    job->ended = merge_ended;
    job->ended_arg = disk;
    disk->merge = job_ref(job);
    ret = job_start(job, err);
    if (ret < 0) {
        disk->merge = NULL;
        job_unref(job);
    }
    return ret;
}

void group_merge(struct group_disk *const *disks, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct err err = ERR_INIT;
        int ret = merge_start(disks[i], &err);
        if (ret == 0)
            continue;
        replication_report(disks[i]->node, "merge", disks[i]->active, 0, 0, ret);
        merge_give_up(disks[i], &err);
    }
}

/* --- the change-over --- */

/* Said before anybody is served: whoever is killed from now on goes on with the failover. */
static int record_failover(struct replication_group *group, struct group_disk *const *disks,
                           size_t count, struct err *err) MAY_WAIT
{
    struct group_record *change = group_record_change(group);
    if (change->stage != GROUP_FAILOVER) {
        record_mint(group, change);
        change->stage = GROUP_FAILOVER;
        change->undo_durable = false; /* one that goes on keeps what was flushed */
    }
    if (!change->consistent)
        record_set_forced(group, change);
    record_set_overlays(change, disks, count, false);
    int ret = group_record_write(group, err);
    return ret < 0 ? err_prefix(err, "no failover: it cannot be recorded") : 0;
}

int group_fail_over(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err)
{
    int ret = fence(group, disks, count, err);
    if (ret == 0)
        ret = record_failover(group, disks, count, err);
    if (ret < 0)
        return ret;
    /* Nothing waits here: all disks change over at once. */
    for (size_t i = 0; i < count; i++) {
        replication_set_stage(disks[i]->node, REPLICATION_FAILOVER);
        disk_unblock_top(disks[i]);
    }
    group_merge(disks, count);
    return 0;
}

static int record_take_over(struct replication_group *group, struct group_disk *const *disks,
                            size_t count, struct err *err) MAY_WAIT
{
    struct group_record *change = group_record_change(group);
    record_mint(group, change);
    record_set_forced(group, change);
    record_set_overlays(change, disks, count, true);
    for (size_t i = 0; i < change->disk_count; i++)
        change->disks[i].merged = true;
    change->undo_durable = false;
    record_end_failover(change);
    return group_record_write(group, err);
}

int group_take_over(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err)
{
    struct graph_drain drain;
    int ret = fence(group, disks, count, err);
    if (ret == 0)
        ret = disks_drain(disks, count, &drain, err);
    if (ret < 0)
        return ret;
    ret = disks_empty_prepare(disks, count, EMPTY_HIDDEN_FIRST, group->record->epoch, err);
    if (ret == 0) {
        ret = record_take_over(group, disks, count, err);
        if (ret < 0)
            disks_empty_abort(disks, count, EMPTY_HIDDEN_FIRST);
    }
    if (ret == 0) {
        disks_empty_commit(disks, count);
        disks_mark_changed(disks, count);
    }
    graph_drain_end(&drain);
    return ret;
}
