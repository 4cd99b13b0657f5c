/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Making a log shorter whose blocks are written again and again without an emptying: what is live in
 * its first segment is appended once more, then the superblock says that the log begins behind it,
 * and the segment is free. It is not used again before that is durable: until then a crash leaves a
 * log that begins with it.
 */
#include "drivers/overlay_internal.h"

#include "base/log.h"
#include "wire/crc32c.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* What is appended at once, and kept locked meanwhile. */
#define CLEAN_RUNS OVERLAY_RECORD_MAX_ENTRIES

struct clean {
    struct overlay *overlay;
    uint64_t generation, segment;
    uint64_t unit, sequence;    /* of the record to look at, and of the one before it */
    uint64_t log_blocks;        /* what the records named that were looked at */
    struct overlay_map *zeroes; /* named as such by any of them: each is appended once */
    struct buf *entry_data;     /* of one entry */
    struct buf *data;           /* of the runs */
    size_t data_bytes;
    unsigned run_count;
    struct overlay_run runs[CLEAN_RUNS];
    struct range_lock locks[CLEAN_RUNS];
};

/* Whether the log takes so many times what is live in it, and so many segments more. */
static bool log_exceeds(const struct overlay *overlay, unsigned times, unsigned segments)
{
    uint64_t log_segments = bitmap_count(overlay->space.used);
    /* An entry of zeroes in the long form takes 32 bytes for 64 blocks and more. */
    uint64_t live_bytes = overlay_map_blocks(overlay->map) * overlay->sb.block_bytes +
                          overlay_map_long_blocks(overlay->map) / 2;
    uint64_t live_blocks = overlay_map_blocks(overlay->map) +
                           overlay_map_long_blocks(overlay->map) / OVERLAY_MAP_LONG_RUN;

    return log_segments > segments && overlay->log_blocks / times > live_blocks &&
           (log_segments - segments) * overlay->sb.segment_bytes > times * live_bytes;
}

bool overlay_clean_wanted(const struct overlay *overlay)
{
    return !overlay->space.clean_failed && log_exceeds(overlay, 2, OVERLAY_CLEAN_SEGMENTS);
}

void overlay_clean_wait(struct overlay *overlay)
{
    while (log_exceeds(overlay, 3, 2 * OVERLAY_CLEAN_SEGMENTS) &&
           overlay_worker_is_at_it(overlay) && !overlay->space.clean_failed &&
           !node_is_draining(overlay->node))
        co_queue_wait(&overlay->worker.changed);
}

/* Emptied, or about to be closed: there is nothing to clean any more. To be asked after each wait. */
static bool clean_is_over(const struct clean *clean)
{
    return clean->overlay->sb.generation != clean->generation || clean->overlay->worker.stopping ||
           clean->overlay->node->read_only;
}

/* --- appending --- */

static void clean_release(struct clean *clean)
{
    for (unsigned i = 0; i < clean->run_count; i++)
        range_lock_release(&clean->overlay->locks, &clean->locks[i]);
    clean->run_count = 0;
    clean->data_bytes = 0;
}

/* All that was added, as one group; the locks go. */
static int clean_append(struct clean *clean) MAY_WAIT
{
    struct overlay_append append = {.runs = clean->runs, .run_count = clean->run_count};
    int ret = 0;

    if (!overlay_worker_begin(clean->overlay) || clean_is_over(clean))
        ret = -ECANCELED;
    else if (clean->run_count > 0)
        ret = overlay_append(clean->overlay, &append);
    overlay_worker_end(clean->overlay);
    clean_release(clean);
    return ret;
}

/* Never waits for a lock while it holds some: who has it may wait for one of those. */
static int clean_lock(struct clean *clean, uint64_t block, uint64_t count) MAY_WAIT
{
    struct range_locks *locks = &clean->overlay->locks;
    uint64_t offset = block * clean->overlay->sb.block_bytes;
    uint64_t length = count * clean->overlay->sb.block_bytes;

    if (clean->run_count == CLEAN_RUNS ||
        !range_lock_try(locks, &clean->locks[clean->run_count], offset, length, true)) {
        int ret = clean_append(clean);
        if (ret < 0)
            return ret;
        range_lock_acquire(locks, &clean->locks[0], offset, length, true);
    }
    return 0;
}

static void clean_unlock(struct clean *clean)
{
    range_lock_release(&clean->overlay->locks, &clean->locks[clean->run_count]);
}

static void clean_add(struct clean *clean, uint64_t block, uint64_t count,
                      enum overlay_entry_kind kind, struct buf_slice data)
{
    clean->runs[clean->run_count++] = (struct overlay_run){
        .block = block, .count = (uint32_t)count, .kind = kind, .data = data};
}

/* How many blocks from the entry's block `at` on are live there, or are not. */
static uint64_t live_count(const struct clean *clean, const struct overlay_entry *entry,
                           uint64_t at, bool *ret_live)
{
    const struct overlay *overlay = clean->overlay;
    uint64_t block = entry->block + at;
    struct overlay_map_run run = overlay_map_find(overlay->map, (uint32_t)block, entry->count - at);

    *ret_live = run.kind == OVERLAY_MAP_DATA &&
                run.slot == entry->data_unit + at * overlay->units_per_block;
    return run.count;
}

/* --- data --- */

/* With the CRC, so that nothing bad is given a good one. */
static int read_entry(struct clean *clean, const struct overlay_entry *entry) MAY_WAIT
{
    struct overlay *overlay = clean->overlay;
    size_t length = (size_t)entry->count * overlay->sb.block_bytes;
    struct io io = {.offset_bytes = entry->data_unit * overlay->sb.unit_bytes,
                    .length_bytes = length};
    int ret;

    if (clean->entry_data == NULL || clean->entry_data->capacity_bytes < length) {
        buf_unref(clean->entry_data);
        clean->entry_data = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)), length);
        if (clean->entry_data == NULL)
            return -ENOMEM;
    }
    io.data = buf_slice_of(clean->entry_data, 0, length);
    ret = io_read(overlay->file, &io);
    if (clean_is_over(clean))
        return -ECANCELED;
    if (ret == 0 && crc32c(0, clean->entry_data->bytes, length) != entry->crc)
        return -EUCLEAN;
    return ret;
}

/* Blocks that are live when they are locked: nobody overwrites them before they are appended. Whether
 * they are is told by *ret_kept. */
static int keep_data(struct clean *clean, const struct overlay_entry *entry, uint64_t at,
                     uint64_t count, bool *ret_kept) MAY_WAIT
{
    const uint32_t block_bytes = clean->overlay->sb.block_bytes;
    bool live;
    int ret = clean_lock(clean, entry->block + at, count);

    if (ret < 0)
        return ret;
    *ret_kept = live_count(clean, entry, at, &live) >= count && live;
    if (!*ret_kept) {
        clean_unlock(clean); /* overwritten meanwhile, in part perhaps */
        return 0;
    }
    memcpy(clean->data->bytes + clean->data_bytes, clean->entry_data->bytes + at * block_bytes,
           count * block_bytes);
    clean_add(clean, entry->block + at, count, OVERLAY_ENTRY_DATA,
              buf_slice_of(clean->data, clean->data_bytes, count * block_bytes));
    clean->data_bytes += count * block_bytes;
    return 0;
}

static int clean_data(struct clean *clean, const struct overlay_entry *entry) MAY_WAIT
{
    const uint32_t block_bytes = clean->overlay->sb.block_bytes;
    const size_t room = overlay_max_transfer_bytes(clean->overlay);
    bool was_read = false;
    int ret = 0;

    for (uint64_t at = 0; ret == 0 && at < entry->count;) {
        bool live, kept = false;
        uint64_t count = live_count(clean, entry, at, &live);

        if (!live) {
            at += count;
            continue;
        }
        if (!was_read)
            ret = read_entry(clean, entry);
        was_read = true;
        if (ret == 0 && (clean->run_count == CLEAN_RUNS || clean->data_bytes + block_bytes > room))
            ret = clean_append(clean);
        count = MIN(count, (room - clean->data_bytes) / block_bytes);
        if (ret == 0)
            ret = keep_data(clean, entry, at, count, &kept);
        at += kept ? count : 0;
    }
    return ret;
}

/* --- zeroes --- */

static int clean_zero_stretch(struct clean *clean, uint64_t block, uint64_t count) MAY_WAIT
{
    int ret = 0;

    while (ret == 0 && count > 0) {
        ret = clean_lock(clean, block, count);
        if (ret < 0)
            return ret;
        struct overlay_map_run run = overlay_map_find(clean->overlay->map, (uint32_t)block, count);
        if (run.kind != OVERLAY_MAP_ZEROED)
            clean_unlock(clean);
        else
            clean_add(clean, block, run.count, OVERLAY_ENTRY_ZERO, (struct buf_slice){0});
        block += run.count;
        count -= run.count;
        if (run.kind == OVERLAY_MAP_ZEROED && count > 0)
            ret = clean_append(clean); /* its lock goes further than it does */
    }
    return ret;
}

static int clean_zeroes(struct clean *clean) MAY_WAIT
{
    uint64_t end = overlay_block_count(&clean->overlay->sb);
    int ret = 0;

    for (uint64_t block = 0; ret == 0 && block < end;) {
        struct overlay_map_run run = overlay_map_find(clean->zeroes, (uint32_t)block, end - block);

        if (run.kind == OVERLAY_MAP_ZEROED)
            ret = clean_zero_stretch(clean, block, run.count);
        block += run.count;
    }
    return ret;
}

/* --- the segment --- */

static int clean_entry(struct clean *clean, const struct overlay_entry *entry) MAY_WAIT
{
    clean->log_blocks += overlay_entry_weight(entry);
    if (entry->kind == OVERLAY_ENTRY_DATA)
        return clean_data(clean, entry);
    if (overlay_map_reserve(clean->zeroes, 1, entry->count) < 0)
        return -ENOMEM;
    overlay_map_put_zero(clean->zeroes, (uint32_t)entry->block, entry->count);
    return 0;
}

/* The record at clean->unit, which the index was made from. */
static int clean_record(struct clean *clean, const uint8_t *bytes) MAY_WAIT
{
    const struct overlay_superblock *sb = &clean->overlay->sb;
    struct overlay_record record;
    struct err err = ERR_INIT;
    int ret = 0;

    if (overlay_record_decode(bytes, OVERLAY_RECORD_MAX_BYTES, &record) < 0 ||
        memcmp(record.image_id, sb->image_id, OVERLAY_ID_BYTES) != 0 ||
        record.unit != clean->unit || record.generation != clean->generation ||
        record.sequence != clean->sequence + 1 ||
        overlay_record_check(sb, &record, bytes, &err) < 0)
        return -EUCLEAN;
    for (uint32_t i = 0; ret == 0 && i < record.entry_count; i++) {
        struct overlay_entry entry;

        overlay_entry_decode(bytes, i, &entry);
        ret = clean_entry(clean, &entry);
    }
    clean->sequence = record.sequence;
    clean->unit = record.next_unit;
    return ret;
}

static int clean_records(struct clean *clean) MAY_WAIT
{
    struct overlay *overlay = clean->overlay;
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)),
                                OVERLAY_RECORD_MAX_BYTES);
    int ret = buf == NULL ? -ENOMEM : 0;

    while (ret == 0 && overlay_segment_of(&overlay->sb, clean->unit) == clean->segment) {
        struct io io = {.offset_bytes = clean->unit * overlay->sb.unit_bytes,
                        .length_bytes = OVERLAY_RECORD_MAX_BYTES,
                        .data = buf_slice_of(buf, 0, OVERLAY_RECORD_MAX_BYTES)};

        co_yield(); /* others live in this loop too */
        ret = io_read(overlay->file, &io);
        if (clean_is_over(clean))
            ret = -ECANCELED;
        if (ret == 0)
            ret = clean_record(clean, buf->bytes);
    }
    buf_unref(buf);
    return ret;
}

/* The log begins behind the segment: durably, and what was appended again before. */
static int clean_commit(struct clean *clean) MAY_WAIT
{
    struct overlay *overlay = clean->overlay;
    uint64_t flushed_sequence = overlay->sequence;
    int ret = io_flush(overlay->file);

    if (ret < 0)
        return ret;
    if (!overlay_worker_begin(overlay) || clean_is_over(clean)) {
        ret = -ECANCELED;
    } else {
        co_mutex_lock(&overlay->sb_lock);
        struct overlay_superblock sb = overlay->sb;
        sb.first_unit = clean->unit;
        sb.first_sequence = clean->sequence + 1;
        sb.flushed_sequence = flushed_sequence;
        ret = overlay_superblock_store(overlay, &sb);
        if (ret < 0)
            overlay->sb_stale = true; /* it may have been written nevertheless */
        co_mutex_unlock(&overlay->sb_lock);
    }
    overlay_worker_end(overlay);
    if (ret == 0)
        ret = io_flush(overlay->file);
    if (ret == 0 && clean_is_over(clean))
        ret = -ECANCELED;
    return ret;
}

static int clean_segment(struct clean *clean) MAY_WAIT
{
    struct overlay *overlay = clean->overlay;
    int ret = clean_records(clean);

    if (ret == 0)
        ret = clean_append(clean); /* a block that was zeroed and written would be locked twice */
    if (ret == 0)
        ret = clean_zeroes(clean);
    if (ret == 0)
        ret = clean_append(clean);
    if (ret == 0)
        ret = clean_commit(clean);
    if (ret < 0)
        return ret;
    overlay_space_give(overlay, clean->segment);
    overlay->log_blocks -= clean->log_blocks;
    overlay->space.cleaned_segments++;
    co_queue_wake_all(&overlay->worker.changed);
    return 0;
}

int overlay_clean(struct overlay *overlay)
{
    struct clean clean = {
        .overlay = overlay,
        .generation = overlay->sb.generation,
        .segment = overlay_segment_of(&overlay->sb, overlay->sb.first_unit),
        .unit = overlay->sb.first_unit,
        .sequence = overlay->sb.first_sequence - 1,
        .zeroes = overlay_map_new(overlay->units_per_block),
    };
    int ret = -ENOMEM;

    clean.data = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)),
                           overlay_max_transfer_bytes(overlay));
    if (clean.data != NULL && clean.zeroes != NULL)
        ret = clean_segment(&clean);
    clean_release(&clean);
    buf_unref(clean.data);
    buf_unref(clean.entry_data);
    overlay_map_free(clean.zeroes);
    if (ret != -EUCLEAN)
        return ret;
    log_error("overlay",
              "'%s': record %" PRIu64 " at byte %" PRIu64
              " is damaged in the file: its log is not made shorter any more",
              overlay->node->name, clean.sequence + 1, clean.unit * overlay->sb.unit_bytes);
    overlay->space.clean_failed = true;
    return 0;
}
