/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What query-replication shows. */
#include "replication/group_internal.h"

#include "base/json.h"
#include "drivers/overlay.h"
#include "replication/peer.h"

#include <string.h>

bool replication_state(struct replication_group *group, enum replication_mode *ret_mode,
                       enum replication_stage *ret_stage)
{
    const struct node *found = NULL;
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (!replication_is(node) || !node->opened)
            continue;
        /* A promoted secondary may stand beside a new primary: what is not done speaks, and of two
         * the one in trouble. */
        if (found == NULL || replication_stage_of(found) == REPLICATION_DONE ||
            replication_stage_of(node) == REPLICATION_FAILOVER_FAILED)
            found = node;
    }
    if (found == NULL)
        return false;
    *ret_mode = replication_mode_of(found);
    *ret_stage = replication_stage_of(found);
    return true;
}

struct merge_progress {
    uint64_t done_bytes, total_bytes, rate;
};

static int add_progress(struct json_object *object, const char *job,
                        const struct merge_progress *progress)
{
    CLEANUP(json_putp) struct json_object *merge = json_object_new_object();
    if (merge == NULL || (job != NULL && json_add_string(merge, "job", job) < 0) ||
        json_add_uint(merge, "done", progress->done_bytes) < 0 ||
        json_add_uint(merge, "total", progress->total_bytes) < 0 ||
        json_add_uint(merge, "rate", progress->rate) < 0)
        return -1;
    return json_add(object, "merge", TAKE_PTR(merge));
}

static struct merge_progress disk_progress(const struct group_disk *disk)
{
    if (disk->merge == NULL)
        return (struct merge_progress){disk->merge_done_bytes, disk->merge_total_bytes, 0};
    return (struct merge_progress){disk->merge->done_bytes, disk->merge->total_bytes,
                                   job_rate(disk->merge)};
}

static int add_held(struct json_object *object, const char *key, struct node *node)
{
    if (!node_is_overlay(node))
        return 0;
    struct overlay_stats stats = overlay_stats(node);
    return json_add_uint(object, key, stats.held_bytes + stats.zero_run_bytes);
}

static int add_secondary(struct json_object *object, struct group_disk *disk)
{
    if (json_add_string(object, "top", disk->top->name) < 0 ||
        json_add_string(object, "active", disk->active->name) < 0 ||
        json_add_string(object, "hidden", disk->hidden->name) < 0 ||
        json_add_string(object, "secondary", disk->disk->name) < 0 ||
        add_held(object, "active-bytes", disk->active) < 0 ||
        add_held(object, "hidden-bytes", disk->hidden) < 0)
        return -1;
    if (replication_stage_of(disk->node) == REPLICATION_RUNNING)
        return 0;
    struct merge_progress progress = disk_progress(disk);
    return add_progress(object, disk->merge != NULL ? disk->merge->id : NULL, &progress);
}

static int add_primary(struct json_object *object, struct node *node)
{
    struct node *peer = replication_layer_below(node_child(node, "file"));
    struct replication_forward_stats stats = replication_forward_stats(node);
    if (json_add_string(object, "peer", peer->name) < 0 ||
        json_add_uint(object, "in-flight", stats.in_flight) < 0 ||
        json_add_uint(object, "in-flight-bytes", stats.in_flight_bytes) < 0 ||
        json_add_uint(object, "forwarded-bytes", stats.forwarded_bytes) < 0)
        return -1;
    CLEANUP(json_putp) struct json_object *link = json_object_new_object();
    if (link == NULL || json_add_string(link, "driver", peer->driver->name) < 0)
        return -1;
    if (peer->driver->describe != NULL && peer->driver->describe(peer, link) < 0)
        return -1;
    return json_add(object, "link", TAKE_PTR(link));
}

static int add_error(struct json_object *object, const struct node *node)
{
    const struct replication_error *error = replication_error_of(node);
    return error->count == 0 ? 0 : json_add(object, "error", replication_error_json(error));
}

static struct json_object *query_disk(struct replication_group *group, struct node *node)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    enum replication_mode mode = replication_mode_of(node);
    struct group_disk *disk = group_find_disk(group, node);
    if (object == NULL || json_add_string(object, "node", node->name) < 0 ||
        json_add_string(object, "mode", replication_mode_name(mode)) < 0 ||
        json_add_string(object, "stage", replication_stage_name(replication_stage_of(node))) < 0)
        return NULL;
    if (mode == REPLICATION_PRIMARY && add_primary(object, node) < 0)
        return NULL;
    if (disk != NULL && add_secondary(object, disk) < 0)
        return NULL;
    return add_error(object, node) < 0 ? NULL : TAKE_PTR(object);
}

static int add_disks(struct replication_group *group, struct json_object *object,
                     const struct node **ret_failed)
{
    CLEANUP(json_putp) struct json_object *disks = json_object_new_array();
    if (disks == NULL)
        return -1;
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (!replication_is(node) || !node->opened)
            continue;
        CLEANUP(json_putp) struct json_object *disk = query_disk(group, node);
        if (disk == NULL || json_object_array_add(disks, disk) < 0)
            return -1;
        TAKE_PTR(disk);
        if (*ret_failed == NULL && replication_error_of(node)->count > 0)
            *ret_failed = node;
    }
    return json_add(object, "disks", TAKE_PTR(disks));
}

static uint64_t checkpoint_age_ns(const struct replication_group *group)
{
    if (group->checkpoint_now_ns != 0)
        return group_clock_ns(group) - group->checkpoint_now_ns;
    uint64_t wall_ns = loop_wall_ns(graph_loop(group->graph));
    uint64_t then_ns = group->record->checkpoint_wall_ns;
    return wall_ns > then_ns ? wall_ns - then_ns : 0;
}

static int add_checkpoint(const struct replication_group *group, struct json_object *object)
{
    uint64_t then_ns = group->record->checkpoint_wall_ns;
    if (then_ns == 0)
        return 0;
    CLEANUP(json_putp) struct json_object *last = json_object_new_object();
    if (last == NULL || json_add_uint(last, "wall-time-ns", then_ns) < 0 ||
        json_add_uint(last, "age-ns", checkpoint_age_ns(group)) < 0)
        return -1;
    if (group->checkpoint_now_ns != 0 &&
        (json_add_uint(last, "held-ns", group->checkpoint_held_ns) < 0 ||
         json_add_uint(last, "duration-ns", group->checkpoint_duration_ns) < 0))
        return -1;
    return json_add(object, "last-checkpoint", TAKE_PTR(last));
}

/* The sum over the disks that are being merged. */
static int add_merge(struct replication_group *group, struct json_object *object)
{
    struct merge_progress sum = {0};
    bool any = false;
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (replication_stage_of(disk->node) == REPLICATION_RUNNING)
            continue;
        struct merge_progress progress = disk_progress(disk);
        sum.done_bytes += progress.done_bytes;
        sum.total_bytes += progress.total_bytes;
        sum.rate += progress.rate;
        any = true;
    }
    return any ? add_progress(object, NULL, &sum) : 0;
}

int group_add_marks(const struct replication_group *group, struct json_object *object)
{
    const struct group_record *record = group->record;
    if (record->stage == GROUP_NONE && !group->awaits_sync)
        return 0;
    if (json_add_bool(object, "consistent", record->consistent) < 0 ||
        json_add_bool(object, "stream-intact", record->stream_intact) < 0)
        return -1;
    if (!record->consistent &&
        json_add_string(object, "inconsistent-reason", record->inconsistent_reason) < 0)
        return -1;
    if (!record->stream_intact &&
        json_add_string(object, "stream-reason", record->stream_reason) < 0)
        return -1;
    if (record->promoted && json_add_bool(object, "promoted", true) < 0)
        return -1;
    if (group->awaits_sync && record->stage == GROUP_FAILOVER &&
        json_add_bool(object, "failover-interrupted", true) < 0)
        return -1;
    if (record->lost[0] != '\0' && json_add_string(object, "lost", record->lost) < 0)
        return -1;
    if (group->file == NULL)
        return 0;
    return json_add_string(object, "durability", group_durability_name(record->level));
}

bool replication_has_taken_over(const struct replication_group *group)
{
    return group->record->stage == GROUP_FAILOVER ? !group->awaits_sync : group->record->promoted;
}

bool replication_takes_primary(const struct replication_group *group)
{
    return group->record->stage == GROUP_NONE || group->record->stage == GROUP_RUNNING;
}

struct json_object *replication_query(struct replication_group *group)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    enum replication_mode mode = REPLICATION_PRIMARY;
    enum replication_stage stage = REPLICATION_NONE;
    bool any = replication_state(group, &mode, &stage);
    const struct node *failed = NULL;
    if (object == NULL ||
        json_add_string(object, "role", any ? replication_mode_name(mode) : "none") < 0 ||
        json_add_string(object, "stage", replication_stage_name(stage)) < 0 ||
        group_add_marks(group, object) < 0 || group_session_query(group, object) < 0 ||
        json_add_uint(object, "epoch", group->record->epoch) < 0 ||
        add_checkpoint(group, object) < 0 || add_merge(group, object) < 0 ||
        (group->peer != NULL && json_add(object, "peer", peer_describe(group->peer)) < 0) ||
        add_disks(group, object, &failed) < 0)
        return NULL;
    if (failed != NULL && add_error(object, failed) < 0)
        return NULL;
    return TAKE_PTR(object);
}
