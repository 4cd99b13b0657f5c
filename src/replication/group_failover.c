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

/* --- what the overlays held at the failover --- */

static bool undo_at_risk(const struct replication_group *group)
{
    return group->record->stage == GROUP_FAILOVER && !group->record->undo_durable;
}

static bool undo_is_flushed(const struct group_disk *disk)
{
    return disk->undo_flushed || replication_stage_of(disk->node) == REPLICATION_DONE;
}

/* By the disk's merge, or by a flush of S's user on any disk. */
static int flush_undo(struct group_disk *disk) MAY_WAIT
{
    int ret = 0;
    if (undo_is_flushed(disk)) /* the disk may be about to go: nobody waits for its lock */
        return 0;
    co_mutex_lock(&disk->undo_lock);
    if (!undo_is_flushed(disk)) {
        replication_plain_writes_end(disk->node);
        ret = overlay_begin_log(disk->active);
        if (ret == 0)
            ret = io_flush(node_child(disk->node, "file"));
        if (ret == 0)
            ret = io_flush(node_child(disk->active, "backing"));
        disk->undo_flushed = ret == 0;
    }
    co_mutex_unlock(&disk->undo_lock);
    return ret;
}

/* A loss of power spares all disks or none: whoever flushes the last of them records it. */
static int record_undo_durable(struct replication_group *group, struct err *err) MAY_WAIT
{
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (!undo_is_flushed(disk))
            return 0;
    }
    struct group_record *change = group_record_change(group);
    if (!undo_at_risk(group)) {
        group_record_drop(group);
        return 0;
    }
    change->undo_durable = true;
    return group_record_write(group, err);
}

/* What S's user flushes is lost with what the overlays held before. So as long as that is at risk his
 * flushes do what the merges have not done yet, or could not do. */
static int keep_undo(void *arg) MAY_WAIT
{
    struct replication_group *group = arg;
    struct err err = ERR_INIT;
    if (!undo_at_risk(group))
        return 0;
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        int ret = flush_undo(disk);
        if (ret < 0)
            return ret;
    }
    return record_undo_durable(group, &err);
}

void group_keep_flushes(struct replication_group *group, struct node *node)
{
    const struct replication_keeper keeper = {.keep = keep_undo, .arg = group};
    replication_set_keeper(node, &keeper);
}

/* A record that cannot be written is found out while the primary still has its way in. */
static int shut_out(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err) MAY_WAIT
{
    int ret = group_record_try(group, err);
    return ret < 0 ? err_prefix(err, "no failover, and nothing has changed: it cannot be recorded")
                   : fence(group, disks, count, err);
}

/* What is refused after the fence. */
static int refuse_shut(int code, struct err *err)
{
    return err_set(
        err, code,
        "no failover: it cannot be recorded: %s; the primary is shut out by now: mend that"
        " and repeat the failover, or start this daemon again, and then the primary"
        " (blockstep primary --sync)",
        err->text);
}

/* --- the merge --- */

static const struct node *merge_base(void *arg)
{
    struct group_disk *disk = arg;
    return replication_base(disk->node);
}

/* From here on S has the only copy. What its user writes is durable when he flushes it; what the
 * overlays held before becomes so here, so that a host that loses power goes on too. */
static void merge_begin(void *arg) MAY_WAIT
{
    struct group_disk *disk = arg;
    struct err err = ERR_INIT;
    int ret = flush_undo(disk);
    if (ret < 0)
        err_set_errno(&err, ret, "node '%s': the overlays cannot be flushed", disk->node->name);
    else
        ret = record_undo_durable(disk->group, &err);
    if (ret < 0)
        log_warning("replication",
                    "a loss of power would interrupt the failover, and flushes of its disks fail "
                    "until that has changed or all merges have ended: %s",
                    err.text);
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
        /* A flush may yet be at it; none begins. */
        co_mutex_lock(&disk->undo_lock);
        co_mutex_unlock(&disk->undo_lock);
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
    return ret < 0 ? refuse_shut(ret, err) : 0;
}

int group_fail_over(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err)
{
    int ret = shut_out(group, disks, count, err);
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
    int ret = shut_out(group, disks, count, err);
    if (ret == 0)
        ret = disks_drain(disks, count, &drain, err);
    if (ret < 0)
        return ret;
    ret = disks_empty_prepare(disks, count, EMPTY_HIDDEN_FIRST, group->record->epoch, err);
    if (ret == 0) {
        ret = record_take_over(group, disks, count, err);
        if (ret < 0) {
            disks_empty_abort(disks, count, EMPTY_HIDDEN_FIRST);
            refuse_shut(ret, err);
        }
    }
    if (ret == 0) {
        disks_empty_commit(disks, count);
        disks_mark_changed(disks, count);
    }
    graph_drain_end(&drain);
    return ret;
}
