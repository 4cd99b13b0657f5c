/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The start: looks at all disks, changes nothing when one refuses it, and takes back what it did
 * when a later one fails.
 */
#include "replication/group_internal.h"

#include "base/log.h"
#include "drivers/overlay.h"
#include "replication/peer.h"

#include <errno.h>
#include <stdio.h>

/* --- checks --- */

enum start_plan {
    START_FRESH,  /* with a first checkpoint */
    START_RESUME, /* at the epoch that the overlays hold */
    START_MERGE,  /* a failover goes on */
    START_DONE,   /* there is nothing left to do */
    START_AWAIT,  /* not yet: there is no checkpoint to fall back to */
};

struct group_start {
    enum replication_mode mode;
    enum replication_overlays overlays;
    enum start_plan plan;
    bool never_synchronised; /* START_AWAIT: by the caller's word; else for `reason` */
    bool forced;             /* START_MERGE: with whatever is left */
    bool reopened;           /* the record was of a group that had ended in good order */
    char reason[GROUP_RECORD_REASON_BYTES];
    struct group_disk *disks[REPLICATION_MAX_DISKS];
    size_t count;    /* of disks, checked */
    size_t prepared; /* of those, put together at least in part */
};

/* Whether this member takes part in the start: 1, 0 (its stage ignores it), or an error. */
static int start_check_stage(struct node *node, enum replication_mode mode, struct err *err)
{
    enum replication_mode own = replication_mode_of(node);
    switch (replication_stage_of(node)) {
    case REPLICATION_NONE:
        break;
    case REPLICATION_RUNNING:
        return err_set(err, -EBUSY, "replication of node '%s' is running already", node->name);
    case REPLICATION_FAILOVER:
        return 0;
    case REPLICATION_FAILOVER_FAILED:
        return err_set(err, -EBUSY,
                       "the failover of node '%s' has failed in its merge: repeat the stop with"
                       " failover first",
                       node->name);
    case REPLICATION_DONE:
        if (own == REPLICATION_SECONDARY)
            return 0;
        return err_set(
            err, -EINVAL,
            "replication of node '%s' has been stopped: remove the node and add a new one",
            node->name);
    }
    if (own != mode)
        return err_set(err, -EINVAL, "node '%s' has mode=%s, but a start as %s was asked for",
                       node->name, replication_mode_name(own), replication_mode_name(mode));
    return 1;
}

static int start_check(struct replication_group *group, const struct group_members *members,
                       struct group_start *start, struct err *err) MAY_WAIT
{
    for (size_t i = 0; i < members->count; i++) {
        struct node *node = members->nodes[i];
        int ret = start_check_stage(node, start->mode, err);
        if (ret < 0)
            return ret;
        if (ret == 0 || start->mode == REPLICATION_PRIMARY)
            continue;
        struct group_disk *disk = calloc(1, sizeof(*disk));
        if (disk == NULL)
            return err_no_memory(err);
        start->disks[start->count++] = disk;
        co_mutex_init(&disk->undo_lock);
        ret = disk_check(group, node, disk, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* A primary's disk is what its guest sees: never one that a secondary's overlays belong to. */
static int check_primary(const struct replication_group *group, struct err *err)
{
    if (group->record_code == -ENOENT ||
        (group->record_code == 0 && group->record->stage == GROUP_DONE))
        return 0;
    if (group->record_code < 0) {
        *err = group->record_err;
        return err->code;
    }
    return err_set(
        err, -EBUSY,
        "'%s' is the record of a secondary in stage '%s': a primary cannot use its disks "
        "or its state folder before it has taken over or was stopped",
        record_file_path(group->file), group_stage_name(group->record->stage));
}

/* --- the plan --- */

static int check_empty(const struct group_start *start, struct err *err) MAY_WAIT
{
    for (size_t i = 0; i < start->count; i++) {
        struct group_disk *disk = start->disks[i];
        bool holds = false;
        int ret = disk_holds(disk, &holds, err);
        if (ret < 0)
            return ret;
        if (holds)
            return err_set(
                err, -EEXIST,
                "the overlays of node '%s' ('%s', '%s') hold blocks of an earlier run: start with"
                " overlays 'fresh' to drop them (the disks are equal), 'resume' to go on at that"
                " checkpoint, or 'merge' to finish a failover",
                disk->node->name, disk->active->name, disk->hidden->name);
    }
    return 0;
}

/* What the caller says, where no record says more. */
static int plan_as_told(struct group_start *start, struct err *err) MAY_WAIT
{
    static const enum start_plan plans[] = {
        [REPLICATION_OVERLAYS_EMPTY] = START_FRESH,   [REPLICATION_OVERLAYS_FRESH] = START_FRESH,
        [REPLICATION_OVERLAYS_RESUME] = START_RESUME, [REPLICATION_OVERLAYS_MERGE] = START_MERGE,
        [REPLICATION_OVERLAYS_SYNC] = START_AWAIT,
    };
    start->plan = plans[start->overlays];
    start->never_synchronised = true;
    return start->overlays == REPLICATION_OVERLAYS_EMPTY ? check_empty(start, err) : 0;
}

/* A primary that found its way to a disk before the start has overwritten what nobody saved. */
static bool is_untouched(struct group_start *start)
{
    for (size_t i = 0; i < start->count; i++) {
        const struct node *disk = start->disks[i]->disk;
        if (disk->stats.write.requests + disk->stats.zero.requests + disk->stats.discard.requests ==
            0)
            continue;
        snprintf(
            start->reason, sizeof(start->reason),
            "node '%s' was written to before the start, and its old content is lost: export it "
            "after the start",
            disk->name);
        return false;
    }
    return true;
}

static int plan_by_record(struct replication_group *group, struct group_start *start,
                          struct err *err) MAY_WAIT
{
    static const enum start_plan plans[] = {
        [VERDICT_LIVE] = START_RESUME,
        [VERDICT_MERGE] = START_MERGE,
        [VERDICT_DONE] = START_DONE,
        [VERDICT_INCONSISTENT] = START_AWAIT,
    };
    enum group_verdict verdict;
    int ret = group_verdict(group, start->disks, start->count, &verdict, start->reason, err);
    if (ret < 0)
        return ret;
    if ((verdict == VERDICT_LIVE || verdict == VERDICT_MERGE) && !is_untouched(start))
        verdict = VERDICT_INCONSISTENT;
    start->plan = plans[verdict];
    return 0;
}

static int check_overlays(const struct group_start *start, struct err *err)
{
    for (size_t i = 0; i < 2 * start->count; i++) {
        struct node *layer = start->disks[i / 2]->layers[i % 2];
        struct overlay_identity identity;
        if (!overlay_identity(layer, &identity))
            return err_set(err, -EOPNOTSUPP,
                           "node '%s' is no overlay image (driver '%s'), and nothing else has the"
                           " generations that a daemon with a state folder needs yet",
                           layer->name, layer->driver->name);
    }
    return 0;
}

static int start_plan(struct replication_group *group, struct group_start *start, struct err *err)
    MAY_WAIT
{
    bool over = start->overlays == REPLICATION_OVERLAYS_FRESH ||
                start->overlays == REPLICATION_OVERLAYS_SYNC;
    if (group->file == NULL)
        return plan_as_told(start, err);
    if (!over && start->overlays != REPLICATION_OVERLAYS_EMPTY)
        return err_set(err, -EINVAL,
                       "the record of the group decides what becomes of its overlays: leave"
                       " 'overlays' out, or say 'fresh' or 'sync' to begin anew");
    int ret = check_overlays(start, err);
    if (ret == 0)
        ret = group_record_found(group, over, err);
    if (ret == -ENOENT)
        return plan_as_told(start, err);
    if (ret == 0 && over && group->record->stage == GROUP_FAILOVER)
        return err_set(
            err, -EBUSY,
            "a failover of this group has not ended: its disks hold the only copy of what"
            " was written since; start without 'fresh' and 'sync' to finish it first");
    if (ret == 0 && over && group->record->promoted)
        return err_set(
            err, -EBUSY,
            "this group has taken over, and its disks hold what was written since: to make a"
            " secondary of it again, and give that up, remove its record '%s' first",
            record_file_path(group->file));
    if (ret < 0)
        return ret;
    return over ? plan_as_told(start, err) : plan_by_record(group, start, err);
}

/* --- the record of a start --- */

static uint64_t overlays_epoch(const struct group_start *start)
{
    uint64_t epoch = 0;
    for (size_t i = 0; i < 2 * start->count; i++) {
        struct overlay_identity identity;
        if (overlay_identity(start->disks[i / 2]->layers[i % 2], &identity))
            epoch = MAX(epoch, identity.epoch);
    }
    return epoch;
}

/* A group that begins. Epochs are never used twice: records and overlays remember theirs. */
static int fill_new(struct replication_group *group, const struct group_start *start,
                    struct group_record *record, struct err *err)
{
    *record = (struct group_record){
        .group_id = group_random_id(group),
        .role = GROUP_SECONDARY,
        .stage = GROUP_RUNNING,
        .epoch = group->record->epoch,
        .consistent = true,
        /* What was there before is the caller's word, but somebody has written it. */
        .stream_begun = start->plan == START_RESUME,
        .stream_intact = true,
    };
    return record_set_disks(record, start->disks, start->count, err);
}

static void fill_never_synchronised(struct group_record *record)
{
    record->stage = GROUP_NONE;
    record->stream_intact = false;
    snprintf(record->stream_reason, sizeof(record->stream_reason),
             "the disks were never made equal");
    record_set_inconsistent(record, "this secondary was never synchronised with its primary, and "
                                    "its disks hold nothing of use before it is");
}

/* Before anything is changed: what a group that is under way may lose is said durably. */
static int start_record(struct replication_group *group, struct group_start *start, struct err *err)
    MAY_WAIT
{
    struct group_record *change = group_record_change(group);
    bool told = group->file == NULL || start->never_synchronised;
    int ret = told ? fill_new(group, start, change, err) : 0;
    if (ret < 0) {
        group_record_drop(group);
        return ret;
    }
    if (start->plan == START_AWAIT && start->never_synchronised)
        fill_never_synchronised(change);
    else if (start->plan == START_AWAIT)
        record_set_inconsistent(change, start->reason);
    start->reopened = change->undo_durable;
    change->undo_durable = false;
    return group_record_write(group, err);
}

/* Of a start that failed: nothing has been written to the overlays. */
static void unrecord(struct replication_group *group) MAY_WAIT
{
    struct err err = ERR_INIT;
    group_record_change(group)->undo_durable = true;
    if (group_record_write(group, &err) < 0)
        log_warning("replication", "%s", err.text);
}

/* --- doing it --- */

static int start_prepare(struct replication_group *group, struct group_start *start,
                         struct err *err) MAY_WAIT
{
    bool live = start->plan == START_RESUME || start->plan == START_MERGE;
    bool copies = start->plan == START_FRESH || start->plan == START_RESUME;
    for (size_t i = 0; i < start->count; i++) {
        struct group_disk *disk = start->disks[i];
        const struct group_record_disk *recorded = NULL;
        if (group->file != NULL && live)
            recorded = record_find_disk(group->record, disk->node);
        start->prepared = i + 1;
        int ret = disk_prepare(disk, copies, recorded, start->forced, err);
        if (ret < 0)
            return err_prefix(err, "cannot start replication of node '%s'", disk->node->name);
    }
    return 0;
}

static int first_checkpoint(struct replication_group *group, const struct group_start *start,
                            struct err *err) MAY_WAIT
{
    CLEANUP(free_ptr) struct group_record *first = calloc(1, sizeof(*first));
    if (first == NULL)
        return err_no_memory(err);
    int ret = fill_new(group, start, first, err);
    if (ret == 0)
        ret = group_checkpoint_secondary(group, start->disks, start->count, first, err);
    return ret < 0 ? err_prefix(err, "cannot start replication: the first checkpoint") : 0;
}

static void run_disks(struct replication_group *group, const struct group_start *start)
{
    for (size_t i = 0; i < start->count; i++) {
        list_push_back(&group->disks, &start->disks[i]->link);
        replication_set_stage(start->disks[i]->node, REPLICATION_RUNNING);
    }
}

/* From the given one on: their merge has ended, or the whole group is done. */
static void finish_disks(struct replication_group *group, struct group_start *start, size_t first)
    MAY_WAIT
{
    for (size_t i = first; i < start->count; i++) {
        struct group_disk *disk = start->disks[i];
        replication_set_stage(disk->node, REPLICATION_DONE);
        if (!group->record->promoted && start->plan == START_DONE)
            disk_put_back(disk);
        disk_free(disk);
    }
    start->count = start->prepared = first;
}

/* Disks whose merge has ended come last; how many there are before them. */
static size_t put_merged_last(struct replication_group *group, struct group_start *start)
{
    size_t left = 0;
    for (size_t i = 0; i < start->count; i++) {
        struct group_disk *disk = start->disks[i];
        const struct group_record_disk *recorded = record_find_disk(group->record, disk->node);
        if (recorded != NULL && recorded->merged)
            continue;
        start->disks[i] = start->disks[left];
        start->disks[left++] = disk;
    }
    return left;
}

/* On failure all of them are as before, once they are undone. */
static int go_on_with_merge(struct replication_group *group, struct group_start *start,
                            struct err *err) MAY_WAIT
{
    size_t left = put_merged_last(group, start);
    for (size_t i = 0; i < left; i++)
        list_push_back(&group->disks, &start->disks[i]->link);
    int ret = group_fail_over(group, start->disks, left, err);
    if (ret == 0)
        finish_disks(group, start, left);
    return ret;
}

static int start_secondary(struct replication_group *group, struct group_start *start,
                           struct err *err) MAY_WAIT
{
    int ret = start_plan(group, start, err);
    if (ret < 0)
        return ret;
    group->record->epoch = MAX(group->record->epoch, overlays_epoch(start));
    if (start->plan == START_RESUME || start->plan == START_AWAIT ||
        (start->plan == START_MERGE && group->file == NULL))
        ret = start_record(group, start, err);
    if (ret < 0 || start->plan == START_AWAIT)
        return ret;
    ret = start_prepare(group, start, err);
    if (ret == 0 && start->plan == START_FRESH)
        ret = first_checkpoint(group, start, err);
    if (ret < 0)
        return ret;
    if (start->plan == START_MERGE)
        return go_on_with_merge(group, start, err);
    if (start->plan == START_DONE)
        finish_disks(group, start, 0);
    else
        run_disks(group, start);
    return 0;
}

static void start_undo(struct replication_group *group, struct group_start *start) MAY_WAIT
{
    for (size_t i = start->count; i > 0; i--) {
        struct group_disk *disk = start->disks[i - 1];
        if (i > start->prepared) {
            free(disk);
            continue;
        }
        replication_error_clear(disk->node); /* the start's answer tells of it */
        disk_undo(disk);
    }
    if (start->reopened)
        unrecord(group);
}

static void start_primary(struct replication_group *group, const struct group_members *members)
{
    bool any = false;
    for (size_t i = 0; i < members->count; i++) {
        if (replication_stage_of(members->nodes[i]) != REPLICATION_NONE)
            continue;
        replication_set_stage(members->nodes[i], REPLICATION_RUNNING);
        any = true;
    }
    if (group->peer != NULL)
        group->record->epoch = peer_epoch(group->peer);
    else
        group->record->epoch += any;
}

/* Nothing of a disk that is only looked at has changed. */
static void start_release(struct group_start *start)
{
    for (size_t i = 0; start->plan == START_AWAIT && i < start->count; i++)
        free(start->disks[i]);
}

static int start_members(struct replication_group *group, const struct group_members *members,
                         enum replication_mode mode, enum replication_overlays overlays,
                         struct err *err) MAY_WAIT
{
    if (members->count == 0)
        return err_set(err, -ENODEV,
                       "no node has the driver 'replication': add one before the start");
    CLEANUP(free_ptr) struct group_start *start = calloc(1, sizeof(*start));
    if (start == NULL)
        return err_no_memory(err);
    start->mode = mode;
    start->overlays = overlays;
    int ret = mode == REPLICATION_PRIMARY ? check_primary(group, err) : 0;
    if (ret == 0)
        ret = start_check(group, members, start, err);
    bool took_part = mode == REPLICATION_SECONDARY && start->count > 0;
    if (ret == 0 && took_part)
        ret = start_secondary(group, start, err);
    if (ret == 0 && mode == REPLICATION_PRIMARY)
        ret = group_start_primary(group, members, overlays == REPLICATION_OVERLAYS_SYNC, err);
    if (ret < 0) {
        start_undo(group, start);
        return ret;
    }
    if (took_part) {
        group->awaits_sync = start->plan == START_AWAIT;
        group_stream_start(group, start->plan == START_RESUME);
    }
    start_release(start);
    if (mode == REPLICATION_PRIMARY)
        start_primary(group, members);
    return 0;
}

int replication_start(struct replication_group *group, enum replication_mode mode,
                      enum replication_overlays overlays, struct err *err)
{
    struct group_members members;
    int ret = group_begin(group, &members, err);
    if (ret < 0)
        return ret;
    ret = start_members(group, &members, mode, overlays, err);
    group_end(group, &members);
    return ret;
}

/* --- without a checkpoint --- */

/* All that was lost has been sent again: the checkpoint that says so makes the stream whole. */
static int mend(struct replication_group *group, struct err *err) MAY_WAIT
{
    struct group_disk *disks[REPLICATION_MAX_DISKS];
    CLEANUP(free_ptr) struct group_record *first = calloc(1, sizeof(*first));
    if (first == NULL)
        return err_no_memory(err);
    size_t count = disks_in_stage(group, REPLICATION_RUNNING, disks);
    for (size_t i = 0; i < count; i++)
        replication_error_clear(disks[i]->node);
    *first = *group->record;
    first->stream_intact = true;
    first->stream_reason[0] = '\0';
    return group_checkpoint_secondary(group, disks, count, first, err);
}

int group_first_of_secondary(struct replication_group *group, const struct group_members *members,
                             struct err *err)
{
    if (group->awaits_sync)
        return start_members(group, members, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_FRESH,
                             err);
    if (group->record->stage == GROUP_RUNNING && !group->record->stream_intact)
        return mend(group, err);
    return err_set(err, -EINVAL,
                   "no first checkpoint is awaited here: only a secondary takes one that is"
                   " inconsistent, or whose stream of writes is broken, or its primary that has"
                   " peer-control");
}

static void say_losses(struct replication_group *group, const struct group_start *start)
{
    group->lost[0] = '\0';
    group_say_loss(group, "%s", group->record->inconsistent_reason);
    if (start->plan == START_DONE)
        group_say_loss(group, "the disks are taken as they are: all that the primary had forwarded,"
                              " nothing that was written here");
}

int group_force_over(struct replication_group *group, const struct group_members *members,
                     struct err *err)
{
    CLEANUP(free_ptr) struct group_start *start = calloc(1, sizeof(*start));
    if (start == NULL)
        return err_no_memory(err);
    start->mode = REPLICATION_SECONDARY;
    start->plan = group->record->stage == GROUP_FAILOVER ? START_MERGE : START_DONE;
    start->forced = true;
    int ret = start_check(group, members, start, err);
    if (ret == 0)
        ret = group_check_overlays(group, start->disks, start->count, err);
    if (ret == 0)
        say_losses(group, start);
    if (ret == 0)
        ret = start_prepare(group, start, err);
    if (ret == 0 && start->plan == START_MERGE)
        ret = go_on_with_merge(group, start, err);
    else if (ret == 0)
        ret = group_take_over(group, start->disks, start->count, err);
    if (ret < 0) {
        start_undo(group, start);
        return ret;
    }
    if (start->plan == START_DONE)
        finish_disks(group, start, 0);
    group->awaits_sync = false;
    return 0;
}
