/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One secondary disk: what a start checks and puts together, and how it is taken apart. */
#include "replication/group_internal.h"

#include "base/log.h"
#include "block/io.h"
#include "drivers/overlay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- checks --- */

int disk_find_layers(struct node *node, struct group_disk *disk, struct err *err)
{
    struct edge *file = node_child(node, "file");
    disk->layers[0] = file->child;
    disk->active = replication_layer_below(file);
    struct edge *backing = node_child(disk->active, "backing");
    if (backing == NULL)
        return err_set(
            err, -EINVAL,
            "node '%s': the active disk '%s' has no backing disk: it must be backed by the"
            " hidden disk",
            node->name, disk->active->name);
    disk->layers[1] = backing->child;
    disk->hidden = replication_layer_below(backing);
    backing = node_child(disk->hidden, "backing");
    if (backing == NULL)
        return err_set(
            err, -EINVAL,
            "node '%s': the hidden disk '%s' has no backing disk: it must be backed by the"
            " secondary disk",
            node->name, disk->hidden->name);
    disk->disk = backing->child;
    return 0;
}

static int check_lengths(struct node *node, const struct group_disk *disk, struct err *err)
{
    uint64_t length = disk->disk->length_bytes;
    if (disk->active->length_bytes == length && disk->hidden->length_bytes == length)
        return 0;
    return err_set(err, -EINVAL,
                   "node '%s': the active disk '%s' (%" PRIu64
                   " bytes), the hidden disk '%s' (%" PRIu64
                   ") and the secondary disk '%s' (%" PRIu64 ") must have one length",
                   node->name, disk->active->name, disk->active->length_bytes, disk->hidden->name,
                   disk->hidden->length_bytes, disk->disk->name, length);
}

static int check_can_empty(struct node *node, const struct group_disk *disk, struct err *err)
{
    static const char *const names[] = {"active", "hidden"};
    for (size_t i = 0; i < ARRAY_LEN(disk->layers); i++) {
        const struct node *layer = disk->layers[i];
        if (!node_can_empty(disk->layers[i]))
            return err_set(err, -EOPNOTSUPP,
                           "node '%s': the %s disk '%s' cannot be emptied (driver '%s'): use an"
                           " overlay image",
                           node->name, names[i], layer->name, layer->driver->name);
    }
    return 0;
}

/* What they show changes at a checkpoint without anybody writing to them: a mirror or a backup that was
 * begun before would be of no one moment. */
static int check_no_jobs(const struct group_disk *disk, struct err *err)
{
    struct node *const nodes[] = {disk->top, disk->node, disk->active, disk->hidden};
    char user[EDGE_PARENT_TEXT_BYTES];
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        LIST_FOR_EACH(edge, &nodes[i]->parents, struct edge, in_child) {
            if (edge->user_ops != NULL && edge->user_ops->kind == EDGE_USER_JOB)
                return err_set(err, -EBUSY, "node '%s': node '%s' is in use by %s: end that first",
                               disk->node->name, nodes[i]->name,
                               edge_describe_parent(edge, user, sizeof(user)));
        }
    }
    return 0;
}

static int check_top(struct replication_group *group, struct node *node, struct group_disk *disk,
                     struct err *err)
{
    const char *top_id = replication_top_id(node);
    int ret = graph_get(group->graph, top_id, &disk->top, err);
    if (ret < 0)
        return err_prefix(err, "node '%s': top-id", node->name);
    LIST_FOR_EACH(edge, &disk->top->parents, struct edge, in_child) {
        if (edge->parent != NULL)
            return err_set(err, -EINVAL,
                           "node '%s': top-id '%s' is no root node: node '%s' sits on it",
                           node->name, top_id, edge->parent->name);
    }
    if (!graph_is_below(node, disk->top))
        return err_set(err, -EINVAL, "node '%s': top-id '%s' neither is nor contains this node",
                       node->name, top_id);
    return node_check_blocked(disk->top, "start replication", err);
}

int disk_check(struct replication_group *group, struct node *node, struct group_disk *disk,
               struct err *err)
{
    disk->group = group;
    disk->node = node;
    int ret = disk_find_layers(node, disk, err);
    if (ret == 0)
        ret = check_lengths(node, disk, err);
    if (ret == 0)
        ret = check_can_empty(node, disk, err);
    if (ret == 0)
        ret = check_top(group, node, disk, err);
    if (ret == 0)
        ret = check_no_jobs(disk, err);
    return ret;
}

int disk_holds(struct group_disk *disk, bool *ret_holds, struct err *err)
{
    struct edge *file = node_child(disk->node, "file");
    uint64_t offset = 0;
    bool held = false;
    while (offset < disk->node->length_bytes && !held) {
        uint64_t length;
        int ret = io_held(file, replication_base(disk->node), offset,
                          disk->node->length_bytes - offset, &held, &length);
        if (ret < 0)
            return err_set_errno(err, ret, "cannot tell what the overlays of node '%s' hold",
                                 disk->node->name);
        offset += length;
    }
    *ret_holds = held;
    return 0;
}

/* --- putting together --- */

static int open_writable(struct node *node, bool *ret_was_read_only, struct err *err) MAY_WAIT
{
    if (!node->read_only)
        return 0;
    int ret = graph_reopen(node, false, err);
    if (ret < 0)
        return err_prefix(err, "node '%s' must be writable", node->name);
    *ret_was_read_only = true;
    return 0;
}

static void put_back_read_only(struct node *node, bool *was_read_only) MAY_WAIT
{
    if (!*was_read_only)
        return;
    *was_read_only = false;
    struct err err = ERR_INIT;
    if (graph_reopen(node, true, &err) < 0)
        log_warning("replication", "node '%s' stays read-write: %s", node->name, err.text);
}

static void disk_unblock(struct group_disk *disk)
{
    for (size_t i = 0; i < ARRAY_LEN(disk->blockers); i++)
        node_unblock(&disk->blockers[i]);
}

static void disk_block(struct group_disk *disk)
{
    struct node *const nodes[] = {disk->top, disk->node, disk->active, disk->hidden};
    _Static_assert(ARRAY_LEN(nodes) == ARRAY_LEN(disk->blockers), "one for each");
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        if (i == 0 || nodes[i] != disk->top)
            node_block(nodes[i], &disk->blockers[i],
                       "replication of node '%s' is running: stop it first", disk->node->name);
    }
}

void disk_unblock_top(struct group_disk *disk)
{
    struct node *const nodes[] = {disk->node, disk->active, disk->hidden};
    disk_unblock(disk);
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++)
        node_block(nodes[i], &disk->blockers[i],
                   "the failover of node '%s' has not ended: wait for its merge", disk->node->name);
}

static void disk_failed(void *arg, const char *operation, const struct node *where,
                        uint64_t offset_bytes, uint64_t length_bytes, int code) MAY_WAIT
{
    struct group_disk *disk = arg;
    char reason[GROUP_RECORD_REASON_BYTES];
    replication_report(disk->node, operation, where, offset_bytes, length_bytes, code);
    snprintf(reason, sizeof(reason), "%s failed on node '%s' at offset %" PRIu64 ": %s", operation,
             where->name, offset_bytes, err_errno_name(code));
    group_stream_broken(disk->group, reason);
}

static bool is_recorded(struct node *layer, const struct group_record_overlay *recorded,
                        struct overlay_identity *ret_identity)
{
    return overlay_identity(layer, ret_identity) &&
           memcmp(ret_identity->image_id, recorded->image, sizeof(recorded->image)) == 0;
}

/* What a crash left undone between the record and the overlays. */
static int settle_layer(const struct group_disk *disk, size_t layer,
                        const struct group_record_overlay *recorded, struct err *err) MAY_WAIT
{
    struct overlay_identity identity;
    int ret = 0;
    if (layer == 0 && is_recorded(disk->layers[0], recorded, &identity) && identity.tail_only &&
        identity.generation == recorded->generation && group_lost_power(disk->group))
        ret = overlay_forget_tail(disk->layers[0], err);
    return ret == 0 ? overlay_settle(disk->layers[layer], recorded->generation, err) : ret;
}

/* As much of it as can be read; one in its place holds nothing (group_check_overlays()). */
static int salvage_layer(const struct group_disk *disk, size_t layer,
                         const struct group_record_overlay *recorded, struct err *err) MAY_WAIT
{
    static const char *const lost[] = {
        "what its users wrote here since its last checkpoint",
        "the blocks of its last checkpoint that the primary has overwritten since",
    };
    struct overlay_identity before, after;
    char kept[32];
    if (!is_recorded(disk->layers[layer], recorded, &before)) {
        group_say_loss(disk->group, "disk '%s': %s is lost where it was not merged yet",
                       replication_top_id(disk->node), lost[layer]);
        return 0;
    }
    int ret = overlay_salvage(disk->layers[layer], recorded->generation, err);
    if (ret == 0 && before.damaged && overlay_identity(disk->layers[layer], &after))
        group_say_loss(
            disk->group, "disk '%s': of %s %s are left, from before the damage of overlay '%s'",
            replication_top_id(disk->node), lost[layer],
            size_format(after.held_bytes, kept, sizeof(kept)), disk->layers[layer]->name);
    return ret;
}

static int disk_settle(const struct group_disk *disk, const struct group_record_disk *recorded,
                       bool forced, struct err *err) MAY_WAIT
{
    const struct group_record_overlay *overlays[] = {&recorded->active, &recorded->hidden};
    int ret = 0;
    for (size_t i = 0; ret == 0 && !recorded->merged && i < ARRAY_LEN(overlays); i++)
        ret = forced ? salvage_layer(disk, i, overlays[i], err)
                     : settle_layer(disk, i, overlays[i], err);
    return ret;
}

static void disk_set_recorded(const struct group_disk *disk, bool recorded)
{
    overlay_set_recorded(disk->layers[0], recorded);
    overlay_set_recorded(disk->layers[1], recorded);
}

int disk_prepare(struct group_disk *disk, bool copies, const struct group_record_disk *recorded,
                 bool forced, struct err *err)
{
    node_ref(disk->node);
    node_ref(disk->top);
    node_ref(disk->layers[0]);
    node_ref(disk->layers[1]);
    node_ref(disk->active);
    node_ref(disk->hidden);
    node_ref(disk->disk);
    if (replication_merge_of(disk->node) == NULL)
        return err_no_memory(err);
    group_keep_flushes(disk->group, disk->node);
    int ret = open_writable(disk->hidden, &disk->hidden_was_read_only, err);
    if (ret == 0)
        ret = open_writable(disk->disk, &disk->disk_was_read_only, err);
    disk_set_recorded(disk, disk->group->file != NULL);
    if (ret == 0 && recorded != NULL)
        ret = disk_settle(disk, recorded, forced, err);
    if (ret < 0)
        return ret;
    disk_block(disk);
    if (copies) {
        ret = cbw_insert(disk->group->graph, disk->disk, disk->hidden, &disk->cbw, err);
        if (ret < 0)
            return ret;
        cbw_on_failure(&disk->cbw, disk_failed, disk);
    }
    /* After the filter: what is attached before it is led to it. */
    return graph_attach_child(disk->group->graph, disk->node, disk->disk, REPLICATION_LOWER_EDGE,
                              &disk->lower, err);
}

/* --- taking apart --- */

void disk_remove_filter(struct group_disk *disk)
{
    struct err err = ERR_INIT;
    if (disk->cbw.filter != NULL)
        cbw_on_failure(&disk->cbw, NULL, NULL);
    if (cbw_remove(disk->group->graph, &disk->cbw, &err) < 0)
        log_warning("replication", "the copy-before-write filter of node '%s' stays: %s",
                    disk->disk->name, err.text);
}

void disk_undo(struct group_disk *disk)
{
    graph_detach(disk->lower);
    disk->lower = NULL;
    disk_remove_filter(disk);
    put_back_read_only(disk->disk, &disk->disk_was_read_only);
    put_back_read_only(disk->hidden, &disk->hidden_was_read_only);
    disk_free(disk);
}

/* After a stop: S's user reads the disk from now on, and can no more write to it than before. */
void disk_put_back(struct group_disk *disk)
{
    if (disk->disk_was_read_only)
        replication_set_lower_read_only(disk->node);
    put_back_read_only(disk->disk, &disk->disk_was_read_only);
    put_back_read_only(disk->hidden, &disk->hidden_was_read_only);
}

void disk_free(struct group_disk *disk)
{
    disk_unblock(disk);
    assert(disk->merge == NULL);
    disk_remove_filter(disk);
    /* A filter that could not be taken out is tried again at the end. */
    if (disk->cbw.filter != NULL && list_linked(&disk->link) && !disk->group->ending)
        return;
    list_remove(&disk->link);
    disk_set_recorded(disk, false);
    node_unref(disk->top);
    node_unref(disk->layers[0]);
    node_unref(disk->layers[1]);
    node_unref(disk->active);
    node_unref(disk->hidden);
    node_unref(disk->disk);
    node_unref(disk->node);
    free(disk);
}
