/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a start makes of the record of an earlier run: the record alone decides, and whatever it says
 * that is not there any more is lost, never empty.
 */
#include "replication/group_internal.h"

#include "drivers/file_node.h"
#include "drivers/overlay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- whether it is our group's --- */

static int check_disk(const struct replication_group *group, const struct group_disk *disk,
                      const struct group_record_disk *recorded, struct err *err)
{
    const char *path = record_file_path(group->file);

    if (recorded == NULL)
        return err_set(err, -EINVAL,
                       "the record '%s' is of another group: it knows no disk '%s'; give this "
                       "daemon a state folder of its own, or start it to be synchronised again",
                       path, replication_top_id(disk->node));
    if (recorded->size_bytes != disk->disk->length_bytes)
        return err_set(err, -EINVAL,
                       "disk '%s' has %" PRIu64 " bytes, and %" PRIu64
                       " in the record '%s': it is another disk, or its size has changed",
                       recorded->name, disk->disk->length_bytes, recorded->size_bytes, path);
    const char *identity = file_node_identity(disk->disk);
    if (group->record->stage == GROUP_DONE || identity[0] == '\0' ||
        recorded->identity[0] == '\0' || strcmp(identity, recorded->identity) == 0)
        return 0;
    return err_set(
        err, -EINVAL,
        "disk '%s' is another file (%s) than that of the record '%s' (%s): its overlays do "
        "not fit it; put the file itself back, or start the group to be synchronised again "
        "(sync)",
        recorded->name, identity, path, recorded->identity);
}

static int check_group(const struct replication_group *group, struct group_disk *const *disks,
                       size_t count, struct err *err)
{
    struct group_record *record = group->record;

    if (record->role != GROUP_SECONDARY)
        return err_set(err, -EINVAL, "the record '%s' is of a primary",
                       record_file_path(group->file));
    for (size_t i = 0; i < count; i++) {
        int ret = check_disk(group, disks[i], record_find_disk(record, disks[i]->node), err);
        if (ret < 0)
            return ret;
    }
    if (record->disk_count == count)
        return 0;
    return err_set(err, -EINVAL,
                   "the record '%s' is of a group of %zu disk(s), and this start is for %zu: start "
                   "with all of them, or start the group to be synchronised again",
                   record_file_path(group->file), record->disk_count, count);
}

/* --- whether all that it needs is there --- */

#define LOST(reason, ...)                                           \
    do {                                                            \
        snprintf((reason), GROUP_RECORD_REASON_BYTES, __VA_ARGS__); \
        return false;                                               \
    } while (0)

static bool host_kept(const struct replication_group *group, char *reason)
{
    const struct group_record *record = group->record;
    const char *level = group_durability_name(record->level);

    if (record->undo_durable)
        return true;
    if (record->boot_id[0] == '\0' || strcmp(record->boot_id, group->boot_id) != 0)
        LOST(reason,
             "the host was started again while replication was running, and at level '%s' old "
             "content that was saved does not survive that",
             level);
    if (record->level == GROUP_LEVEL_NONE && record->stage == GROUP_RUNNING)
        LOST(reason, "the daemon did not end in good order, and at level 'none' old content that "
                     "was saved does not survive that");
    return true;
}

bool group_lost_power(const struct replication_group *group)
{
    const struct group_record *record = group->record;

    return record->stage == GROUP_FAILOVER && record->undo_durable &&
           strcmp(record->boot_id, group->boot_id) != 0;
}

/* `tail`: what was not flushed may be missing. */
static bool overlay_kept(struct node *layer, const char *what, const struct group_record_disk *disk,
                         const struct group_record_overlay *overlay, bool tail, char *reason)
{
    struct overlay_identity identity;

    if (!overlay_identity(layer, &identity))
        LOST(reason, "disk '%s': its %s disk is no overlay image", disk->name, what);
    if (memcmp(identity.image_id, overlay->image, sizeof(overlay->image)) != 0)
        LOST(reason,
             "disk '%s': the overlay of its %s disk is lost, there is another one in its place",
             disk->name, what);
    if (identity.generation > overlay->generation)
        LOST(reason,
             "disk '%s': the overlay of its %s disk has generation %" PRIu64
             ", newer than the record's %" PRIu64 ": the record is an old copy",
             disk->name, what, identity.generation, overlay->generation);
    if (identity.damaged && identity.generation == overlay->generation &&
        !(tail && identity.tail_only))
        LOST(reason, "disk '%s': the overlay of its %s disk is damaged: %.120s", disk->name, what,
             identity.damage);
    return true;
}

static bool overlays_kept(struct replication_group *group, struct group_disk *const *disks,
                          size_t count, char *reason)
{
    for (size_t i = 0; i < count; i++) {
        const struct group_record_disk *disk = record_find_disk(group->record, disks[i]->node);
        if (!disk->merged &&
            (!overlay_kept(disks[i]->layers[0], "active", disk, &disk->active,
                           group_lost_power(group), reason) ||
             !overlay_kept(disks[i]->layers[1], "hidden", disk, &disk->hidden, false, reason)))
            return false;
    }
    return true;
}

static int check_overlay(struct node *layer, const char *what, const struct group_record_disk *disk,
                         const struct group_record_overlay *overlay, struct err *err)
{
    struct overlay_identity identity;

    if (!overlay_identity(layer, &identity) ||
        memcmp(identity.image_id, overlay->image, sizeof(overlay->image)) == 0 ||
        (identity.held_bytes == 0 && !identity.damaged))
        return 0;
    return err_set(err, -EEXIST,
                   "disk '%s': overlay '%s' is not the one of its %s disk, and holds what may be"
                   " of use elsewhere: end this daemon, put the right one in its place, or move it"
                   " away, and start again",
                   disk->name, layer->name, what);
}

int group_check_overlays(struct replication_group *group, struct group_disk *const *disks,
                         size_t count, struct err *err)
{
    int ret = 0;

    for (size_t i = 0; ret == 0 && group->file != NULL && i < count; i++) {
        const struct group_record_disk *disk = record_find_disk(group->record, disks[i]->node);
        if (disk == NULL || disk->merged)
            continue;
        ret = check_overlay(disks[i]->layers[0], "active", disk, &disk->active, err);
        if (ret == 0)
            ret = check_overlay(disks[i]->layers[1], "hidden", disk, &disk->hidden, err);
    }
    return ret < 0 ? err_prefix(err, "no failover") : 0;
}

int group_verdict(struct replication_group *group, struct group_disk *const *disks, size_t count,
                  enum group_verdict *ret_verdict, char reason[GROUP_RECORD_REASON_BYTES],
                  struct err *err)
{
    const struct group_record *record = group->record;
    int ret = check_group(group, disks, count, err);

    if (ret < 0)
        return ret;
    if (record->stage == GROUP_DONE) {
        *ret_verdict = VERDICT_DONE;
        return 0;
    }
    if (!record->consistent)
        snprintf(reason, GROUP_RECORD_REASON_BYTES, "%s", record->inconsistent_reason);
    if (!record->consistent || !host_kept(group, reason) ||
        !overlays_kept(group, disks, count, reason))
        *ret_verdict = VERDICT_INCONSISTENT;
    else
        *ret_verdict = record->stage == GROUP_FAILOVER ? VERDICT_MERGE : VERDICT_LIVE;
    return 0;
}
