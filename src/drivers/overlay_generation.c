/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which generation of an overlay is live: emptying begins a new one. Either the superblock decides,
 * which is written first, or a record of the group does, and the superblock follows.
 */
#include "drivers/overlay_internal.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Above all that were ever seen: no old record may count again. */
static uint64_t next_generation(const struct overlay *overlay)
{
    return MAX(overlay->sb.generation, overlay->newest_generation) + 1;
}

/* `sb` of an empty log. */
static void begin_generation(struct overlay *overlay, struct overlay_superblock *sb,
                             uint64_t generation)
{
    sb->previous_generation = sb->generation;
    sb->generation = generation;
    sb->epoch = overlay->epoch;
    sb->first_unit = overlay_log_begin(sb);
    sb->first_sequence = 1;
    sb->flushed_sequence = 0;
    sb->flags &= ~(uint32_t)OVERLAY_CLEAN;
    sb->clean_sequence = sb->clean_end_unit = 0;
}

/* Forgets what the log held, at once. */
static void drop(struct overlay *overlay)
{
    struct loop *loop = graph_loop(overlay->node->graph);

    overlay_map_drop(overlay->map);
    overlay_space_drop(overlay);
    overlay->end_unit = overlay->sb.first_unit;
    overlay->sequence = overlay->flushed_sequence = 0;
    overlay->log_blocks = 0;
    overlay->newest_generation = 0;
    err_clear(&overlay->damage);
    overlay->tail_only = false;
    loop_timer_arm(loop, &overlay->reaper, loop_now_ns(loop) + OVERLAY_REAP_PAUSE_NS);
    overlay_worker_wake(overlay, overlay->sb_stale ? OVERLAY_SUPERBLOCK_DUE_NS : OVERLAY_KEEP_NS);
}

/* --- the driver's hooks --- */

int overlay_empty_prepare(struct node *node, struct err *err)
{
    struct overlay *overlay = node->state;
    struct overlay_superblock sb;
    int ret;

    assert(!overlay->empty_prepared);
    if (node->read_only)
        return err_set(err, -EROFS, "overlay '%s' is read-only and cannot be emptied", node->name);
    overlay_worker_pause(overlay);
    assert(list_empty(&overlay->pending));
    assert(overlay->leader == NULL);
    overlay->before_empty = sb = overlay->sb;
    if (!overlay->recorded) {
        begin_generation(overlay, &sb, next_generation(overlay));
        ret = overlay_superblock_store(overlay, &sb);
        if (ret < 0) {
            overlay->sb_stale = true; /* it may have been written nevertheless */
            overlay_worker_resume(overlay);
            return err_set_errno(err, ret, "overlay '%s' cannot be emptied", node->name);
        }
    }
    overlay->empty_prepared = true;
    return 0;
}

void overlay_empty_commit(struct node *node)
{
    struct overlay *overlay = node->state;

    assert(overlay->empty_prepared);
    overlay->empty_prepared = false;
    if (overlay->sb.generation == overlay->before_empty.generation) {
        begin_generation(overlay, &overlay->sb, next_generation(overlay));
        overlay->sb_stale = true;
    }
    drop(overlay);
    overlay_worker_resume(overlay);
}

void overlay_empty_abort(struct node *node)
{
    struct overlay *overlay = node->state;
    struct overlay_superblock sb = overlay->before_empty;
    int ret = 0;

    assert(overlay->empty_prepared);
    overlay->empty_prepared = false;
    if (overlay->sb.generation != sb.generation) {
        sb.serial = overlay->sb.serial;
        ret = overlay_superblock_store(overlay, &sb);
    }
    overlay_worker_resume(overlay);
    if (ret == 0)
        return;
    overlay->sb = sb;
    overlay->sb_stale = true;
    log_error(
        "overlay",
        "'%s': emptying was taken back, but its file could not be told (%s): a restart before "
        "the next write finds it empty",
        node->name, err_errno_name(ret));
}

/* --- for a record --- */

/* The overlay at or below the node; NULL: none. */
static struct overlay *overlay_below(struct node *node)
{
    while (node_check(node)->driver->is_filter && node->file != NULL)
        node = node->file->child;
    return node_is_overlay(node) ? node->state : NULL;
}

bool overlay_identity(struct node *node, struct overlay_identity *ret_identity)
{
    const struct overlay *overlay = overlay_below(node);

    if (overlay == NULL)
        return false;
    struct overlay_stats stats = overlay_stats(overlay->node);
    struct overlay_identity identity = {
        .generation = overlay->sb.generation,
        .next_generation = next_generation(overlay),
        .epoch = overlay->epoch,
        .held_bytes = stats.held_bytes + stats.zero_run_bytes,
        .in_memory = overlay->file->child->limits.in_memory,
        .damaged = overlay_is_damaged(overlay),
        .tail_only = overlay_is_damaged(overlay) && overlay->tail_only,
    };
    memcpy(identity.image_id, overlay->sb.image_id, OVERLAY_ID_BYTES);
    if (identity.damaged)
        memcpy(identity.damage, overlay->damage.text, sizeof(identity.damage));
    *ret_identity = identity;
    return true;
}

void overlay_set_recorded(struct node *node, bool recorded)
{
    struct overlay *overlay = overlay_below(node);

    if (overlay == NULL)
        return;
    assert(!overlay->empty_prepared);
    overlay->recorded = recorded;
}

/* What a crash left undone between the record and the superblock. */
static int empty_again(struct overlay *overlay, uint64_t generation, struct err *err) MAY_WAIT
{
    struct overlay_superblock sb = overlay->sb;
    uint64_t before = sb.generation;
    int ret = overlay->node->read_only ? -EROFS : 0;

    overlay_worker_pause(overlay);
    begin_generation(overlay, &sb, generation);
    if (ret == 0)
        ret = overlay_superblock_store(overlay, &sb);
    if (ret == 0)
        ret = io_flush(overlay->file);
    overlay_worker_resume(overlay);
    if (ret < 0) {
        overlay->sb_stale = true;
        return err_set_errno(err, ret,
                             "overlay '%s' has generation %" PRIu64 ", its record says %" PRIu64
                             ", and it cannot be emptied",
                             overlay->node->name, before, generation);
    }
    drop(overlay);
    return 0;
}

int overlay_settle(struct node *node, uint64_t live_generation, struct err *err)
{
    struct overlay *overlay = overlay_below(node);

    if (overlay == NULL)
        return err_set(err, -ENOTSUP, "node '%s' is no overlay: it has no generations", node->name);
    uint64_t seen = MAX(overlay->sb.generation, overlay->newest_generation);
    if (live_generation != 0 && seen > live_generation)
        return err_set(err, -EUCLEAN,
                       "overlay '%s' has generation %" PRIu64 ", which is newer than the %" PRIu64
                       " of the group's record: it is not the overlay that the record is about, or "
                       "the record is an old copy",
                       overlay->node->name, seen, live_generation);
    if (seen < live_generation)
        return empty_again(overlay, live_generation, err);
    if (overlay_is_damaged(overlay))
        return err_set(err, -EUCLEAN, "overlay '%s': %s", overlay->node->name,
                       overlay->damage.text);
    return 0;
}

int overlay_begin_log(struct node *node)
{
    struct overlay *overlay = overlay_below(node);

    return overlay != NULL ? overlay_superblock_refresh(overlay) : 0;
}

/* --- what is left of a damaged log --- */

/* Nothing that stands there counts as a record any more. */
static int void_units(struct overlay *overlay, uint64_t unit, uint64_t end) MAY_WAIT
{
    uint64_t unit_bytes = overlay->sb.unit_bytes;
    uint64_t begin_bytes = unit * unit_bytes;
    uint64_t end_bytes = MIN(end * unit_bytes, overlay->file->child->length_bytes);
    struct io io = {.offset_bytes = begin_bytes, .flags = IO_MAY_UNMAP};

    if (begin_bytes >= end_bytes)
        return 0;
    io.length_bytes = end_bytes - begin_bytes;
    return io_zero(overlay->file, &io);
}

/* What stands behind the last good record. */
static int void_behind(struct overlay *overlay) MAY_WAIT
{
    const struct overlay_superblock *sb = &overlay->sb;
    uint64_t segment = overlay_segment_of(sb, overlay->end_unit);
    uint64_t file_bytes = overlay->file->child->length_bytes;
    int ret = void_units(overlay, overlay->end_unit, overlay_segment_begin(sb, segment + 1));
    for (segment = 0; ret == 0 && overlay_segment_begin(sb, segment) * sb->unit_bytes < file_bytes;
         segment++) {
        if (!bitmap_test(overlay->space.used, segment))
            ret = void_units(overlay, overlay_segment_begin(sb, segment),
                             overlay_segment_begin(sb, segment + 1));
    }
    return ret == 0 ? io_flush(overlay->file) : ret;
}

/* The superblock expects no more records than there are. */
static int expect_no_more(struct overlay *overlay) MAY_WAIT
{
    struct overlay_superblock sb = overlay->sb;

    if ((sb.flags & OVERLAY_CLEAN) == 0 && sb.flushed_sequence <= overlay->sequence)
        return 0;
    sb.flags &= ~(uint32_t)OVERLAY_CLEAN;
    sb.clean_sequence = sb.clean_end_unit = 0;
    sb.flushed_sequence = MIN(sb.flushed_sequence, overlay->sequence);
    int ret = overlay_superblock_store(overlay, &sb);
    return ret == 0 ? io_flush(overlay->file) : ret;
}

/* The log ends with its last good record. */
static int cut_log(struct overlay *overlay, const char *why, struct err *err) MAY_WAIT
{
    int ret = overlay->node->read_only ? -EROFS : 0;

    overlay_worker_pause(overlay);
    if (ret == 0)
        ret = void_behind(overlay);
    if (ret == 0)
        ret = expect_no_more(overlay);
    overlay_worker_resume(overlay);
    if (ret < 0)
        return err_set_errno(err, ret, "overlay '%s': what its log lost cannot be voided",
                             overlay->node->name);
    log_warning("overlay", "'%s' %s: %s", overlay->node->name, why, overlay->damage.text);
    err_clear(&overlay->damage);
    overlay->tail_only = false;
    return 0;
}

int overlay_forget_tail(struct node *node, struct err *err)
{
    struct overlay *overlay = overlay_below(node);

    if (overlay == NULL || !overlay_is_damaged(overlay) || !overlay->tail_only)
        return err_set(err, -EUCLEAN, "node '%s' is no overlay that lacks a tail", node->name);
    return cut_log(overlay, "has lost what was not flushed with the power", err);
}

int overlay_salvage(struct node *node, uint64_t live_generation, struct err *err)
{
    struct overlay *overlay = overlay_below(node);

    if (overlay == NULL)
        return err_set(err, -ENOTSUP, "node '%s' is no overlay: it has no log", node->name);
    if (overlay->sb.generation < live_generation && overlay->newest_generation < live_generation)
        return empty_again(overlay, live_generation, err);
    if (overlay->sb.generation < live_generation) /* no record that stands there may count again */
        return empty_again(overlay, next_generation(overlay), err);
    return overlay_is_damaged(overlay) ? cut_log(overlay, "is taken up to where it is damaged", err)
                                       : 0;
}
