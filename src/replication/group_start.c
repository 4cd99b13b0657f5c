/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The start: looks at all disks, changes nothing when one refuses it, and takes back what it did
 * when a later one fails.
 */
#include "replication/group_internal.h"

#include "drivers/overlay.h"

#include <errno.h>

/* --- checks --- */

struct group_start {
    enum replication_mode mode;
    enum replication_overlays overlays;
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

static int start_check_overlays(struct group_disk *disk, enum replication_overlays overlays,
                                struct err *err) MAY_WAIT
{
    bool holds = false;
    if (overlays != REPLICATION_OVERLAYS_EMPTY)
        return 0;
    int ret = disk_holds(disk, &holds, err);
    if (ret < 0 || !holds)
        return ret;
    return err_set(
        err, -EEXIST,
        "the overlays of node '%s' ('%s', '%s') hold blocks of an earlier run: start with"
        " overlays 'fresh' to drop them (the disks are equal), 'resume' to go on at that"
        " checkpoint, or 'merge' to finish a failover",
        disk->node->name, disk->active->name, disk->hidden->name);
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
        ret = disk_check(group, node, disk, err);
        if (ret == 0)
            ret = start_check_overlays(disk, start->overlays, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Epochs are never used twice: the overlays remember theirs. */
static void start_adopt_epoch(struct replication_group *group, const struct group_start *start)
{
    for (size_t i = 0; i < start->count; i++) {
        struct node *const layers[] = {start->disks[i]->active, start->disks[i]->hidden};
        for (size_t k = 0; k < ARRAY_LEN(layers); k++) {
            if (node_is_overlay(layers[k]))
                group->epoch = MAX(group->epoch, overlay_stats(layers[k]).epoch);
        }
    }
}

static int start_secondary(struct replication_group *group, struct group_start *start,
                           struct err *err) MAY_WAIT
{
    bool merge = start->overlays == REPLICATION_OVERLAYS_MERGE;
    for (size_t i = 0; i < start->count; i++) {
        start->prepared = i + 1;
        int ret = disk_prepare(start->disks[i], !merge, err);
        if (ret < 0)
            return err_prefix(err, "cannot start replication of node '%s'",
                              start->disks[i]->node->name);
    }
    start_adopt_epoch(group, start);
    for (size_t i = 0; i < start->count; i++)
        replication_error_clear(start->disks[i]->node);
    if (start->overlays == REPLICATION_OVERLAYS_EMPTY ||
        start->overlays == REPLICATION_OVERLAYS_FRESH) {
        int ret = group_checkpoint_secondary(group, start->disks, start->count, err);
        if (ret < 0)
            return err_prefix(err, "cannot start replication: the first checkpoint");
    }
    for (size_t i = 0; i < start->count; i++) {
        list_push_back(&group->disks, &start->disks[i]->link);
        if (!merge)
            replication_set_stage(start->disks[i]->node, REPLICATION_RUNNING);
    }
    if (merge)
        return group_fail_over(group, start->disks, start->count, err);
    return 0;
}

static void start_undo(struct group_start *start) MAY_WAIT
{
    for (size_t i = start->count; i > 0; i--) {
        if (i <= start->prepared)
            disk_undo(start->disks[i - 1]);
        else
            free(start->disks[i - 1]);
    }
}

static void start_primary(struct replication_group *group, const struct group_members *members)
{
    bool any = false;
    for (size_t i = 0; i < members->count; i++) {
        if (replication_stage_of(members->nodes[i]) != REPLICATION_NONE)
            continue;
        replication_error_clear(members->nodes[i]);
        replication_set_stage(members->nodes[i], REPLICATION_RUNNING);
        any = true;
    }
    group->epoch += any;
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
    int ret = start_check(group, members, start, err);
    if (ret == 0 && mode == REPLICATION_SECONDARY && start->count > 0)
        ret = start_secondary(group, start, err);
    if (ret < 0) {
        start_undo(start);
        return ret;
    }
    if (mode == REPLICATION_PRIMARY)
        start_primary(group, members);
    if (group->awaits_sync && group->owner != NULL && group->owner->synchronised != NULL)
        group->owner->synchronised(group->owner->synchronised_arg);
    group->awaits_sync = false;
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

/* --- before the first checkpoint --- */

static int await_members(struct replication_group *group, const struct group_members *members,
                         struct err *err)
{
    if (members->count == 0)
        return err_set(err, -ENODEV, "no node has the driver 'replication': add one first");
    for (size_t i = 0; i < members->count; i++) {
        struct node *node = members->nodes[i];
        if (replication_mode_of(node) != REPLICATION_SECONDARY ||
            replication_stage_of(node) != REPLICATION_NONE)
            return err_set(err, -EINVAL,
                           "node '%s' cannot await a first synchronisation: only a secondary that"
                           " was not started can",
                           node->name);
    }
    group->awaits_sync = true;
    return 0;
}

int replication_await_sync(struct replication_group *group, struct err *err)
{
    struct group_members members;
    int ret = group_begin(group, &members, err);
    if (ret < 0)
        return ret;
    ret = await_members(group, &members, err);
    group_end(group, &members);
    return ret;
}

int replication_first_checkpoint(struct replication_group *group, uint64_t *ret_epoch,
                                 struct err *err)
{
    struct group_members members;
    int ret = group_begin(group, &members, err);
    if (ret < 0)
        return ret;
    if (!group->awaits_sync)
        ret = err_set(err, -EINVAL,
                      "no first checkpoint is awaited here: only a secondary that was started to be"
                      " synchronised takes one, once");
    else
        ret = start_members(group, &members, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_FRESH,
                            err);
    if (ret == 0)
        *ret_epoch = group->epoch;
    group_end(group, &members);
    return ret;
}
