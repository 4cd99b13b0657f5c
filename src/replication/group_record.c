/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The group's record. Memory follows the file: a change is made on a copy, the copy is written, and
 * only then counts. Without a state folder the copy counts at once. README.md tells who writes what
 * when.
 */
#include "replication/group_internal.h"

#include "base/log.h"
#include "base/text.h"
#include "drivers/file_node.h"
#include "drivers/overlay.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- the state folder --- */

int group_record_init(struct replication_group *group)
{
    co_mutex_init(&group->record_lock);
    group->record_code = -ENOENT;
    group->record = calloc(1, sizeof(*group->record));
    group->change = calloc(1, sizeof(*group->change));
    group->cut = calloc(1, sizeof(*group->cut));
    if (group->record == NULL || group->change == NULL || group->cut == NULL)
        return -ENOMEM;
    group->record->role = GROUP_SECONDARY;
    group->record->stream_intact = true;
    group->record->consistent = true;
    return 0;
}

void group_record_release(struct replication_group *group)
{
    free(group->record);
    free(group->change);
    free(group->cut);
}

int replication_use_state(struct replication_group *group, const struct replication_state *state,
                          struct err *err)
{
    assert(group->file == NULL);
    if (state->level == GROUP_LEVEL_HOST)
        return err_set(err, -EOPNOTSUPP,
                       "durability level 'host' is not supported yet: use 'process', and expect a "
                       "secondary whose host has lost power to be synchronised again");
    int ret = record_file_open(graph_loop(group->graph), state->folder, &group->file, err);
    if (ret < 0)
        return ret;
    group->level = state->level;
    snprintf(group->boot_id, sizeof(group->boot_id), "%s",
             state->boot_id != NULL ? state->boot_id : "");
    group->record_code = record_file_load(group->file, group->change, &group->record_err);
    if (group->record_code == 0)
        *group->record = *group->change;
    return 0;
}

bool replication_has_record(const struct replication_group *group)
{
    return group->file != NULL && group->record_code != -ENOENT;
}

/* What a start needs a record for. -ENOENT without a text: there is none yet. */
int group_record_found(const struct replication_group *group, bool start_over, struct err *err)
{
    if (group->record_code == 0 || group->record_code == -ENOENT)
        return group->record_code;
    *err = group->record_err;
    if (group->record_code != -EUCLEAN)
        return err->code;
    if (start_over)
        return -ENOENT;
    return err_prefix(err, "no start: with its record the group has lost what tells its last "
                           "checkpoint; start it to be synchronised again (sync), or, if you know "
                           "that the disks are equal, afresh (fresh)");
}

/* --- changes --- */

struct group_record *group_record_change(struct replication_group *group)
{
    co_mutex_lock(&group->record_lock);
    *group->change = *group->record;
    return group->change;
}

void group_record_drop(struct replication_group *group)
{
    co_mutex_unlock(&group->record_lock);
}

/* Puts the old record back where the new one stands but cannot be made durable. */
static void restore(struct replication_group *group) MAY_WAIT
{
    struct err err = ERR_INIT;
    bool replaced;
    int ret;

    if (group->record_code == -ENOENT)
        ret = record_file_remove(group->file, &err);
    else
        ret = record_file_prepare(group->file, RECORD_DRAFT, group->record, false, &err);
    if (ret == 0 && group->record_code != -ENOENT)
        ret = record_file_commit(group->file, RECORD_DRAFT, false, &replaced, &err);
    if (ret < 0)
        log_error("replication",
                  "%s: it says more than has been done; do not end this daemon "
                  "before a later change of it succeeds",
                  err.text);
}

/* The prepared draft takes the record's place. */
static int commit(struct replication_group *group, enum record_draft draft, bool durable,
                  struct err *err) MAY_WAIT
{
    bool replaced = false;
    int ret = record_file_commit(group->file, draft, durable, &replaced, err);

    if (ret < 0 && replaced)
        restore(group);
    return ret;
}

static int set_aside(struct replication_group *group, struct err *err) MAY_WAIT
{
    int ret = record_file_set_aside(group->file, err);

    if (ret == 0)
        group->record_code = -ENOENT;
    return ret;
}

static void adopt(struct replication_group *group, const struct group_record *record)
{
    *group->record = *record;
    group->record_changes++;
    if (group->file == NULL)
        return;
    group->record_code = 0;
    err_clear(&group->record_err);
}

/* A group that ended in good order is under way again: what its overlays hold may soon be lost. */
static void set_host(const struct replication_group *group, struct group_record *record)
{
    record->level = group->level;
    snprintf(record->boot_id, sizeof(record->boot_id), "%s", group->boot_id);
}

int group_record_write(struct replication_group *group, struct err *err)
{
    int ret = 0;

    set_host(group, group->change);
    if (group->record_code == -EUCLEAN)
        ret = set_aside(group, err);
    if (group->file != NULL && ret == 0)
        ret = record_file_prepare(group->file, RECORD_DRAFT, group->change, true, err);
    if (group->file != NULL && ret == 0)
        ret = commit(group, RECORD_DRAFT, true, err);
    if (ret == 0)
        adopt(group, group->change);
    co_mutex_unlock(&group->record_lock);
    return ret;
}

int group_record_try(struct replication_group *group, struct err *err)
{
    int ret = 0;

    co_mutex_lock(&group->record_lock);
    if (group->file != NULL)
        ret = record_file_prepare(group->file, RECORD_DRAFT, group->record, false, err);
    co_mutex_unlock(&group->record_lock);
    return ret;
}

/* --- what records say --- */

uint64_t group_random_id(const struct replication_group *group)
{
    uint64_t id;

    do
        id = loop_random(graph_loop(group->graph));
    while (id == 0);
    return id;
}

struct group_record_disk *record_find_disk(struct group_record *record, const struct node *node)
{
    for (size_t i = 0; i < record->disk_count; i++) {
        if (strcmp(record->disks[i].name, replication_top_id(node)) == 0)
            return &record->disks[i];
    }
    return NULL;
}

static void set_overlay(struct node *layer, bool next, struct group_record_overlay *overlay)
{
    struct overlay_identity identity;

    if (!overlay_identity(layer, &identity))
        return;
    _Static_assert(sizeof(overlay->image) == sizeof(identity.image_id), "an id is an id");
    memcpy(overlay->image, identity.image_id, sizeof(overlay->image));
    overlay->generation = next ? identity.next_generation : identity.generation;
}

void record_set_overlays(struct group_record *record, struct group_disk *const *disks, size_t count,
                         bool next)
{
    for (size_t i = 0; i < count; i++) {
        struct group_record_disk *disk = record_find_disk(record, disks[i]->node);
        assert(disk != NULL);
        set_overlay(disks[i]->layers[0], next, &disk->active);
        set_overlay(disks[i]->layers[1], next, &disk->hidden);
    }
}

int record_set_disks(struct group_record *record, struct group_disk *const *disks, size_t count,
                     struct err *err)
{
    record->disk_count = 0;
    memset(record->disks, 0, sizeof(record->disks));
    for (size_t i = 0; i < count; i++) {
        const struct node *node = disks[i]->node;
        if (record_find_disk(record, node) != NULL)
            return err_set(err, -EINVAL, "two disks of the group have top-id '%s'",
                           replication_top_id(node));
        struct group_record_disk *disk = &record->disks[record->disk_count++];
        snprintf(disk->name, sizeof(disk->name), "%s", replication_top_id(node));
        snprintf(disk->identity, sizeof(disk->identity), "%s", file_node_identity(disks[i]->disk));
        disk->size_bytes = disks[i]->disk->length_bytes;
    }
    record_set_overlays(record, disks, count, false);
    return 0;
}

void record_mint(struct replication_group *group, struct group_record *record)
{
    if (record->generation != 0) {
        size_t keep = MIN(record->ancestor_count, GROUP_RECORD_MAX_ANCESTORS - 1);
        memmove(record->ancestors + 1, record->ancestors, keep * sizeof(record->ancestors[0]));
        record->ancestors[0] = record->generation;
        record->ancestor_count = keep + 1;
    }
    record->generation = group_random_id(group);
}

void record_set_inconsistent(struct group_record *record, const char *reason)
{
    record->consistent = false;
    snprintf(record->inconsistent_reason, sizeof(record->inconsistent_reason), "%s", reason);
}

void group_say_loss(struct replication_group *group, const char *fmt, ...)
{
    char text[GROUP_RECORD_LOST_BYTES];
    size_t length = strlen(group->lost);
    va_list args;

    va_start(args, fmt);
    text_format(text, sizeof(text), fmt, args);
    va_end(args);
    log_warning("replication", "taking over by force: %s", text);
    snprintf(group->lost + length, sizeof(group->lost) - length, "%s%s", length > 0 ? "; " : "",
             text);
}

void record_set_forced(const struct replication_group *group, struct group_record *record)
{
    record->consistent = true;
    record->inconsistent_reason[0] = '\0';
    snprintf(record->lost, sizeof(record->lost), "%s", group->lost);
}

/* --- the checkpoint's change --- */

static bool is_written(const struct replication_group *group, bool first)
{
    return group->file != NULL && (first || group->level != GROUP_LEVEL_NONE);
}

static void fill_cut(struct replication_group *group, struct group_disk *const *disks, size_t count,
                     const struct group_record *first)
{
    struct group_record *cut = group->cut;

    *cut = first != NULL ? *first : *group->record;
    set_host(group, cut);
    cut->epoch = group->record->epoch + 1;
    if (first != NULL)
        cut->stream_begun = group_stream_goes_on(group);
    cut->checkpoint_wall_ns = loop_wall_ns(graph_loop(group->graph));
    record_set_overlays(cut, disks, count, true);
    group->cut_changes = group->record_changes;
}

int group_record_prepare_cut(struct replication_group *group, struct group_disk *const *disks,
                             size_t count, const struct group_record *first, struct err *err)
{
    fill_cut(group, disks, count, first);
    if (!is_written(group, first != NULL))
        return 0;
    return record_file_prepare(group->file, RECORD_DRAFT_CHECKPOINT, group->cut, first != NULL,
                               err);
}

int group_record_commit_cut(struct replication_group *group, struct group_disk *const *disks,
                            size_t count, const struct group_record *first, struct err *err)
{
    int ret = 0;

    co_mutex_lock(&group->record_lock);
    /* Somebody has changed the record since it was prepared. */
    if (group->cut_changes != group->record_changes)
        ret = group_record_prepare_cut(group, disks, count, first, err);
    if (ret == 0 && group->record_code == -EUCLEAN)
        ret = set_aside(group, err);
    if (ret == 0 && is_written(group, first != NULL))
        ret = commit(group, RECORD_DRAFT_CHECKPOINT, first != NULL, err);
    if (ret == 0)
        adopt(group, group->cut);
    if (ret == 0 && first != NULL)
        group_stream_mended(group);
    co_mutex_unlock(&group->record_lock);
    return ret;
}
