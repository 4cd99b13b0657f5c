/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The checkpoint. S: flush what P has forwarded, hold all requests on all disks, empty all overlays
 * or none, go on. P: group_primary.c.
 */
#include "replication/group_internal.h"

#include "base/json.h"
#include "block/dirty.h"
#include "block/io.h"
#include "drivers/overlay.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- emptying --- */

/* Two layers of each disk. */
static struct node *layer_of(struct group_disk *const *disks, size_t index, enum empty_order order)
{
    return disks[index / 2]->layers[order == EMPTY_HIDDEN_FIRST ? 1 - index % 2 : index % 2];
}

static void layers_set_epoch(struct group_disk *const *disks, size_t count, uint64_t epoch)
{
    for (size_t i = 0; i < count; i++) {
        if (node_is_overlay(disks[i]->active))
            overlay_set_epoch(disks[i]->active, epoch);
        if (node_is_overlay(disks[i]->hidden))
            overlay_set_epoch(disks[i]->hidden, epoch);
    }
}

int disks_empty_prepare(struct group_disk *const *disks, size_t count, enum empty_order order,
                        uint64_t epoch, struct err *err)
{
    uint64_t epoch_before = disks[0]->group->record->epoch;
    layers_set_epoch(disks, count, epoch);
    for (size_t i = 0; i < 2 * count; i++) {
        struct node *layer = layer_of(disks, i, order);
        int ret = node_empty_prepare(layer, err);
        if (ret == 0)
            continue;
        err_prefix(err, "node '%s': cannot empty the %s disk '%s'", disks[i / 2]->node->name,
                   layer == disks[i / 2]->layers[0] ? "active" : "hidden", layer->name);
        while (i-- > 0)
            node_empty_abort(layer_of(disks, i, order));
        layers_set_epoch(disks, count, epoch_before);
        return ret;
    }
    return 0;
}

void disks_mark_changed(struct group_disk *const *disks, size_t count)
{
    for (size_t i = 0; i < count; i++)
        dirty_mark_whole(disks[i]->hidden);
}

void disks_empty_commit(struct group_disk *const *disks, size_t count)
{
    for (size_t i = 0; i < 2 * count; i++)
        node_empty_commit(layer_of(disks, i, EMPTY_ACTIVE_FIRST));
}

void disks_empty_abort(struct group_disk *const *disks, size_t count, enum empty_order order)
{
    for (size_t i = 2 * count; i-- > 0;)
        node_empty_abort(layer_of(disks, i, order));
    layers_set_epoch(disks, count, disks[0]->group->record->epoch);
}

int disks_drain(struct group_disk *const *disks, size_t count, struct graph_drain *drain,
                struct err *err)
{
    CLEANUP(free_ptr) struct node **nodes = calloc(count, sizeof(*nodes));
    if (nodes == NULL)
        return err_no_memory(err);
    for (size_t i = 0; i < count; i++)
        nodes[i] = disks[i]->disk;
    int ret = graph_drain_begin(nodes, count, drain);
    return ret < 0 ? err_set_errno(err, ret, "cannot hold the requests of the group") : 0;
}

/* --- what both sides share --- */

static void emit_checkpoint(struct replication_group *group, enum replication_mode mode)
{
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (data == NULL || json_add_string(data, "role", replication_mode_name(mode)) < 0 ||
        json_add_uint(data, "epoch", group->record->epoch) < 0 ||
        json_add_uint(data, "held-ns", group->checkpoint_held_ns) < 0 ||
        json_add_uint(data, "duration-ns", group->checkpoint_duration_ns) < 0)
        return;
    graph_event(group->graph, "REPLICATION_CHECKPOINT", TAKE_PTR(data));
}

void group_checkpoint_done(struct replication_group *group, enum replication_mode mode,
                           uint64_t begun_ns, uint64_t held_ns)
{
    group->checkpoint_now_ns = group_clock_ns(group);
    group->checkpoint_held_ns = held_ns;
    group->checkpoint_duration_ns = group->checkpoint_now_ns - begun_ns;
    emit_checkpoint(group, mode);
}

/* --- secondary --- */

/* A write of P that failed here leaves the disk in a state that P never had. */
static int check_intact(struct group_disk *const *disks, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        if (replication_error_of(disks[i]->node)->count == 0)
            continue;
        group_error_text(disks[i]->node, err);
        return err_prefix(err, "no checkpoint: the last one stays");
    }
    return 0;
}

static int flush_disks(struct group_disk *const *disks, size_t count, struct err *err) MAY_WAIT
{
    for (size_t i = 0; i < count; i++) {
        int ret = io_flush(disks[i]->lower);
        if (ret == 0)
            continue;
        replication_report(disks[i]->node, "flush of the secondary disk", disks[i]->disk, 0, 0,
                           ret);
        return err_set_errno(err, ret, "cannot flush the secondary disk '%s'",
                             disks[i]->disk->name);
    }
    return 0;
}

/* Everything is held. All overlays are empty when the record says so, or none is. */
static int switch_epoch(struct replication_group *group, struct group_disk *const *disks,
                        size_t count, const struct group_record *first, struct err *err) MAY_WAIT
{
    int ret = disks_empty_prepare(disks, count, EMPTY_ACTIVE_FIRST, group->record->epoch + 1, err);
    if (ret < 0)
        return ret;
    ret = group_record_commit_cut(group, disks, count, first, err);
    if (ret < 0) {
        disks_empty_abort(disks, count, EMPTY_ACTIVE_FIRST);
        return ret;
    }
    disks_empty_commit(disks, count);
    disks_mark_changed(disks, count);
    return 0;
}

int group_checkpoint_secondary(struct replication_group *group, struct group_disk *const *disks,
                               size_t count, const struct group_record *first, struct err *err)
{
    uint64_t begun_ns = group_clock_ns(group);
    int ret = check_intact(disks, count, err);
    if (ret == 0 && first == NULL)
        ret = group_check_stream(group, err);
    if (ret == 0)
        ret = flush_disks(disks, count, err);
    if (ret == 0)
        ret = group_record_prepare_cut(group, disks, count, first, err);
    if (ret < 0)
        return ret;
    uint64_t held_ns = group_clock_ns(group);
    struct graph_drain drain;
    ret = disks_drain(disks, count, &drain, err);
    if (ret < 0)
        return ret;
    /* Again: a write may have failed since. */
    ret = check_intact(disks, count, err);
    if (ret == 0)
        ret = switch_epoch(group, disks, count, first, err);
    graph_drain_end(&drain);
    held_ns = group_clock_ns(group) - held_ns;
    if (ret == 0)
        group_checkpoint_done(group, REPLICATION_SECONDARY, begun_ns, held_ns);
    return ret;
}

/* --- the call --- */

/* The primaries that run come first in the members; *ret_count tells how many. */
static int checkpoint_check(struct group_members *members, size_t *ret_count, struct err *err)
{
    size_t count = 0;
    if (members->count == 0)
        return err_set(err, -ENODEV,
                       "replication is not running: no node has the driver 'replication'");
    for (size_t i = 0; i < members->count; i++) {
        struct node *node = members->nodes[i];
        switch (replication_stage_of(node)) {
        case REPLICATION_NONE:
            return err_set(err, -ENODEV, "replication is not running on node '%s': start it first",
                           node->name);
        case REPLICATION_FAILOVER_FAILED:
            return err_set(err, -EBUSY,
                           "the failover of node '%s' has failed in its merge: no checkpoint is"
                           " possible, repeat the stop with failover",
                           node->name);
        case REPLICATION_RUNNING:
            if (replication_mode_of(node) == REPLICATION_PRIMARY) {
                members->nodes[i] = members->nodes[count];
                members->nodes[count++] = node;
            }
            break;
        default:
            break;
        }
    }
    *ret_count = count;
    return 0;
}

static int checkpoint_members(struct replication_group *group, struct group_members *members,
                              uint64_t deadline_ns, struct err *err) MAY_WAIT
{
    size_t primaries = 0;
    int ret = checkpoint_check(members, &primaries, err);
    if (ret < 0)
        return ret;
    CLEANUP(free_ptr) struct group_disk **disks = calloc(REPLICATION_MAX_DISKS, sizeof(*disks));
    if (disks == NULL)
        return err_no_memory(err);
    size_t count = disks_in_stage(group, REPLICATION_RUNNING, disks);
    if (count > 0)
        ret = group_checkpoint_secondary(group, disks, count, NULL, err);
    if (ret == 0 && primaries > 0)
        ret = group_checkpoint_primary(group, members->nodes, primaries, false, deadline_ns, err);
    return ret;
}

int group_first_of_primary(struct replication_group *group, struct group_members *members,
                           uint64_t deadline_ns, struct err *err)
{
    size_t primaries = 0;
    int ret = checkpoint_check(members, &primaries, err);
    if (ret < 0)
        return ret;
    return group_checkpoint_primary(group, members->nodes, primaries, true, deadline_ns, err);
}

/* 1: it has been taken, by a call whose answer was lost. A first one may have jumped further. */
static int check_epoch(const struct replication_group *group, uint64_t epoch, struct err *err)
{
    uint64_t live = group->record->epoch;
    if (epoch == 0 || epoch == live + 1)
        return 0;
    if (epoch <= live)
        return 1;
    return err_set(err, -EINVAL,
                   "no checkpoint: epoch %" PRIu64 " cannot follow %" PRIu64 ", which is live here",
                   epoch, live);
}

static int cut_members(struct replication_group *group, struct group_members *members,
                       const struct replication_cut *cut, struct err *err) MAY_WAIT
{
    int ret = group_session_check(group, cut->session, err);
    if (ret == 0)
        ret = check_epoch(group, cut->epoch, err);
    if (ret != 0)
        return ret;
    if (cut->first && group->peer != NULL)
        return group_first_of_primary(group, members, cut->deadline_ns, err);
    if (cut->first)
        return group_first_of_secondary(group, members, err);
    ret = group_check_synchronised(group, "no checkpoint", err);
    return ret < 0 ? ret : checkpoint_members(group, members, cut->deadline_ns, err);
}

int replication_cut(struct replication_group *group, const struct replication_cut *cut,
                    uint64_t *ret_epoch, struct err *err)
{
    struct group_members members;
    int ret = group_begin(group, &members, err);
    if (ret < 0)
        return ret;
    ret = cut_members(group, &members, cut, err);
    if (ret >= 0 && ret_epoch != NULL)
        *ret_epoch = group->record->epoch;
    group_end(group, &members);
    return MIN(ret, 0);
}
