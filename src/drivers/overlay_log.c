/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Appending to an overlay's log. One group at a time is on its way to the file; what comes meanwhile,
 * or in the same turn, goes into the next one. So a record is only ever written when all before it
 * are, and a group that failed is simply overwritten by the next: nothing behind it can count.
 */
#include "drivers/overlay_internal.h"

#include "wire/crc32c.h"

#include <errno.h>
#include <string.h>

/* A group in the making. */
struct group {
    struct list members; /* struct overlay_append */
    struct overlay_record record;
    struct overlay_entry entries[OVERLAY_RECORD_MAX_ENTRIES];
    uint64_t data_bytes, blocks; /* blocks: zeroed ones too */
    struct buf *buf;             /* record and small runs, as they lie in the file */
    size_t buf_bytes;
    uint64_t segment; /* taken for what comes behind; BITMAP_NONE: it stays in its own */
};

static uint64_t run_data_bytes(const struct overlay *overlay, const struct overlay_run *run)
{
    return run->kind == OVERLAY_ENTRY_DATA ? (uint64_t)run->count * overlay->sb.block_bytes : 0;
}

static bool run_is_direct(const struct overlay *overlay, const struct overlay_run *run)
{
    return run_data_bytes(overlay, run) >= OVERLAY_DIRECT_RUN_BYTES;
}

static bool group_has_room(const struct overlay *overlay, const struct group *group,
                           const struct overlay_append *append)
{
    uint64_t data_bytes = group->data_bytes;

    if (group->record.entry_count == 0)
        return true;
    for (unsigned i = 0; i < append->run_count; i++)
        data_bytes += run_data_bytes(overlay, &append->runs[i]);
    return data_bytes <= overlay_max_transfer_bytes(overlay) &&
           group->record.entry_count + append->run_count <= OVERLAY_RECORD_MAX_ENTRIES;
}

static void group_add(struct overlay *overlay, struct group *group, struct overlay_append *append)
{
    list_remove(&append->link);
    list_push_back(&group->members, &append->link);
    for (unsigned i = 0; i < append->run_count; i++) {
        const struct overlay_run *run = &append->runs[i];

        group->entries[group->record.entry_count++] = (struct overlay_entry){
            .block = run->block, .count = run->count, .kind = run->kind};
        group->data_bytes += run_data_bytes(overlay, run);
        group->blocks += run->count;
    }
}

/* Takes what is pending, in its order. */
static void group_take(struct overlay *overlay, struct group *group)
{
    list_init(&group->members);
    group->record = (struct overlay_record){0};
    group->data_bytes = group->blocks = 0;
    group->buf = NULL;
    group->segment = BITMAP_NONE;
    while (!list_empty(&overlay->pending)) {
        struct overlay_append *append = LIST_ENTRY(list_first(&overlay->pending),
                                                   struct overlay_append, link);

        if (!group_has_room(overlay, group, append))
            return;
        group_add(overlay, group, append);
    }
}

/* Runs of one of the two kinds get their places, behind `unit`; returns where they end. */
static uint64_t group_place(struct overlay *overlay, struct group *group, bool direct,
                            uint64_t unit)
{
    uint32_t index = 0;

    LIST_FOR_EACH(append, &group->members, struct overlay_append, link) {
        for (unsigned i = 0; i < append->run_count; i++, index++) {
            const struct overlay_run *run = &append->runs[i];
            struct overlay_entry *entry = &group->entries[index];

            if (run->kind != OVERLAY_ENTRY_DATA || run_is_direct(overlay, run) != direct)
                continue;
            entry->data_unit = unit;
            entry->crc = crc32c(0, run->data.bytes, run->data.length_bytes);
            if (!direct)
                memcpy(group->buf->bytes + (unit - group->record.unit) * overlay->sb.unit_bytes,
                       run->data.bytes, run->data.length_bytes);
            unit += (uint64_t)run->count * overlay->units_per_block;
        }
    }
    return unit;
}

/* Where the next group goes is said now, when its size is not known: behind this one, unless the rest
 * of the segment is too short for some. */
static int group_choose_next(struct overlay *overlay, struct group *group)
{
    const struct overlay_superblock *sb = &overlay->sb;
    struct overlay_record *record = &group->record;
    uint64_t segment = overlay_segment_of(sb, record->unit);

    record->next_unit = record->unit + record->group_units;
    if (overlay_segment_begin(sb, segment + 1) - record->next_unit >= overlay_group_max_units(sb))
        return 0;
    group->segment = overlay_space_take(overlay);
    if (group->segment == BITMAP_NONE)
        return -ENOSPC;
    record->next_unit = overlay_segment_begin(sb, group->segment);
    return 0;
}

static int group_build(struct overlay *overlay, struct group *group)
{
    const struct overlay_superblock *sb = &overlay->sb;
    struct overlay_record *record = &group->record;
    size_t record_bytes = overlay_record_bytes(record->entry_count);
    size_t padded_bytes = align_up(record_bytes, sb->unit_bytes);
    uint64_t direct_bytes = 0, end;
    int ret;

    LIST_FOR_EACH(append, &group->members, struct overlay_append, link) {
        for (unsigned i = 0; i < append->run_count; i++) {
            if (run_is_direct(overlay, &append->runs[i]))
                direct_bytes += run_data_bytes(overlay, &append->runs[i]);
        }
    }
    group->buf_bytes = padded_bytes + (group->data_bytes - direct_bytes);
    record->group_units = (uint32_t)((padded_bytes + group->data_bytes) / sb->unit_bytes);
    record->unit = overlay->end_unit;
    assert(record->group_units <= overlay_group_max_units(sb));
    if (!overlay_space_has_room(overlay, record->group_units))
        return -ENOSPC;
    if (overlay_map_reserve(overlay->map, record->entry_count, group->blocks) < 0)
        return -ENOMEM;
    group->buf = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)), group->buf_bytes);
    if (group->buf == NULL)
        return -ENOMEM;
    ret = group_choose_next(overlay, group);
    if (ret < 0)
        return ret;

    end = group_place(overlay, group, false, record->unit + padded_bytes / sb->unit_bytes);
    end = group_place(overlay, group, true, end);
    assert(end == record->unit + record->group_units);
    memcpy(record->image_id, sb->image_id, OVERLAY_ID_BYTES);
    record->generation = sb->generation;
    record->epoch = overlay->epoch;
    record->sequence = overlay->sequence + 1;
    record->flushed_sequence = overlay->flushed_sequence;
    overlay_record_encode(record, group->entries, group->buf->bytes);
    memset(group->buf->bytes + record_bytes, 0, padded_bytes - record_bytes);
    return 0;
}

static int write_at(struct overlay *overlay, uint64_t unit, struct buf_slice data) MAY_WAIT
{
    struct io io = {
        .offset_bytes = unit * overlay->sb.unit_bytes,
        .length_bytes = data.length_bytes,
        .data = data,
    };
    return io_write(overlay->file, &io);
}

/* The record last: a killed process leaves no record without its data in the page cache. */
static int group_write(struct overlay *overlay, struct group *group) MAY_WAIT
{
    uint32_t index = 0;

    LIST_FOR_EACH(append, &group->members, struct overlay_append, link) {
        for (unsigned i = 0; i < append->run_count; i++, index++) {
            if (!run_is_direct(overlay, &append->runs[i]))
                continue;
            int ret = write_at(overlay, group->entries[index].data_unit, append->runs[i].data);
            if (ret < 0)
                return ret;
        }
    }
    return write_at(overlay, group->record.unit, buf_slice_of(group->buf, 0, group->buf_bytes));
}

static void group_count(struct overlay *overlay, const struct group *group)
{
    for (uint32_t i = 0; i < group->record.entry_count; i++) {
        const struct overlay_entry *entry = &group->entries[i];

        if (entry->kind == OVERLAY_ENTRY_DATA)
            overlay_map_put(overlay->map, (uint32_t)entry->block, entry->count,
                            (uint32_t)entry->data_unit);
        else
            overlay_map_put_zero(overlay->map, (uint32_t)entry->block, entry->count);
        overlay->log_blocks += overlay_entry_weight(entry);
    }
    overlay->end_unit = group->record.next_unit;
    overlay->sequence = group->record.sequence;
    overlay->written_blocks += group->blocks;
    overlay_space_watch(overlay);
    if (group->segment != BITMAP_NONE && overlay_clean_wanted(overlay))
        overlay_worker_wake(overlay, 0);
}

static void group_failed(struct overlay *overlay, const struct group *group)
{
    overlay->failed_groups++;
    if (group->segment != BITMAP_NONE)
        overlay_space_give(overlay, group->segment);
}

/* A file that says "clean" tells where the log ends, which the next record makes untrue. */
static int prepare_superblock(struct overlay *overlay) MAY_WAIT
{
    if (likely((overlay->sb.flags & OVERLAY_CLEAN) == 0 && !overlay->sb_stale))
        return 0;
    return overlay_superblock_refresh(overlay);
}

static void group_commit(struct overlay *overlay) MAY_WAIT
{
    struct group group;
    int ret = prepare_superblock(overlay);

    group_take(overlay, &group);
    if (ret == 0)
        ret = group_build(overlay, &group);
    if (ret == 0)
        ret = group_write(overlay, &group);
    if (ret == 0)
        group_count(overlay, &group);
    else
        group_failed(overlay, &group);
    buf_unref(group.buf);
    for (struct overlay_append *append;
         (append = LIST_POP_FRONT(&group.members, struct overlay_append, link)) != NULL;) {
        append->result = ret;
        append->done = true;
        if (append->co != co_self())
            co_wake(append->co);
    }
}

int overlay_append(struct overlay *overlay, struct overlay_append *append)
{
    append->co = co_self();
    append->done = false;
    list_push_back(&overlay->pending, &append->link);
    if (overlay->leader == NULL) {
        overlay->leader = append;
        co_yield(); /* others of this turn come along */
    }
    while (!append->done && overlay->leader != append)
        co_wait();
    if (append->done)
        return append->result;

    group_commit(overlay);
    assert(append->done);
    overlay->leader = NULL;
    if (!list_empty(&overlay->pending)) {
        overlay->leader = LIST_ENTRY(list_first(&overlay->pending), struct overlay_append, link);
        co_wake(overlay->leader->co);
    }
    return append->result;
}
