/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading an overlay's log when it is opened. Where the records end is where the log ends, unless a
 * later record of the same generation follows, or the superblock says that there were more: then the
 * image is damaged, and using what is left of it would show a mixture of times.
 */
#include "drivers/overlay_internal.h"

#include "wire/crc32c.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct scan {
    struct overlay *overlay;
    struct buf *buf; /* a window on the file */
    uint64_t offset_bytes;
    size_t length_bytes;
    size_t window_bytes; /* how much is read at once */
    uint64_t file_bytes;
    uint64_t behind_sequence, behind_unit; /* a later record than the bad one; 0: none */
};

/* The bytes at the offset, as many as there are up to `length_bytes` (at most a window). */
static int scan_read(struct scan *scan, uint64_t offset_bytes, size_t length_bytes,
                     const uint8_t **ret_bytes, size_t *ret_length) MAY_WAIT
{
    if (offset_bytes >= scan->file_bytes) {
        *ret_length = 0;
        return 0;
    }
    length_bytes = MIN(length_bytes, scan->file_bytes - offset_bytes);
    if (offset_bytes < scan->offset_bytes ||
        !range_fits(offset_bytes - scan->offset_bytes, length_bytes, scan->length_bytes)) {
        struct io io = {
            .offset_bytes = offset_bytes,
            .length_bytes = MIN(scan->window_bytes, scan->file_bytes - offset_bytes),
        };
        io.data = buf_slice_of(scan->buf, 0, io.length_bytes);
        scan->length_bytes = 0;
        co_yield(); /* others live in this loop too */
        int ret = io_read(scan->overlay->file, &io);
        if (ret < 0)
            return ret;
        scan->offset_bytes = offset_bytes;
        scan->length_bytes = io.length_bytes;
    }
    *ret_bytes = scan->buf->bytes + (offset_bytes - scan->offset_bytes);
    *ret_length = length_bytes;
    return 0;
}

/* Whether the record is of this image and this place. */
static bool record_is_ours(const struct overlay *overlay, const struct overlay_record *record,
                           uint64_t unit)
{
    return record->unit == unit &&
           memcmp(record->image_id, overlay->sb.image_id, OVERLAY_ID_BYTES) == 0;
}

static int check_data(struct scan *scan, const struct overlay_entry *entry, bool *ret_good) MAY_WAIT
{
    const struct overlay_superblock *sb = &scan->overlay->sb;
    uint64_t offset = entry->data_unit * sb->unit_bytes;
    uint64_t left = (uint64_t)entry->count * sb->block_bytes;
    uint32_t crc = 0;

    while (left > 0) {
        const uint8_t *bytes = NULL;
        size_t length;
        int ret = scan_read(scan, offset, MIN(left, OVERLAY_SCAN_WINDOW_BYTES / 2), &bytes,
                            &length);

        if (ret < 0)
            return ret;
        if (length == 0)
            break;
        crc = crc32c(crc, bytes, length);
        offset += length;
        left -= length;
    }
    *ret_good = left == 0 && crc == entry->crc;
    return 0;
}

static int put_entry(struct overlay *overlay, const struct overlay_entry *entry, struct err *err)
{
    if (overlay_map_reserve(overlay->map, 1, entry->count) < 0)
        return err_no_memory(err);
    if (entry->kind == OVERLAY_ENTRY_DATA)
        overlay_map_put(overlay->map, (uint32_t)entry->block, entry->count,
                        (uint32_t)entry->data_unit);
    else
        overlay_map_put_zero(overlay->map, (uint32_t)entry->block, entry->count);
    overlay->log_blocks += overlay_entry_weight(entry);
    return 0;
}

/* Of a good record: checks its data, and puts them in the map when all are good. */
static int scan_group(struct scan *scan, const struct overlay_record *record, const uint8_t *bytes,
                      bool *ret_good, struct err *err) MAY_WAIT
{
    uint8_t copy[OVERLAY_RECORD_MAX_BYTES]; /* the window moves on to the data */
    struct overlay_entry entry;

    memcpy(copy, bytes, overlay_record_bytes(record->entry_count));
    *ret_good = true;
    for (uint32_t i = 0; i < record->entry_count && *ret_good; i++) {
        overlay_entry_decode(copy, i, &entry);
        int ret = entry.kind == OVERLAY_ENTRY_DATA ? check_data(scan, &entry, ret_good) : 0;
        if (ret < 0)
            return err_set_errno(err, ret, "its log cannot be read");
    }
    for (uint32_t i = 0; i < record->entry_count && *ret_good; i++) {
        overlay_entry_decode(copy, i, &entry);
        int ret = put_entry(scan->overlay, &entry, err);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int newer_generation(struct overlay *overlay, const struct overlay_record *record,
                            struct err *err)
{
    overlay->newest_generation = MAX(overlay->newest_generation, record->generation);
    return err_set(err, -EUCLEAN,
                   "it is damaged: a record of generation %" PRIu64 " at byte %" PRIu64
                   " of an image of generation %" PRIu64,
                   record->generation, record->unit * overlay->sb.unit_bytes,
                   overlay->sb.generation);
}

/* The log never comes to a segment twice. */
static int check_way(const struct overlay *overlay, const struct overlay_record *record,
                     struct err *err)
{
    const struct overlay_superblock *sb = &overlay->sb;
    uint64_t segment = overlay_segment_of(sb, record->next_unit);

    if (segment == overlay_segment_of(sb, record->unit) ||
        !bitmap_test(overlay->space.used, segment))
        return 0;
    return err_set(err, -EUCLEAN,
                   "it is damaged: record %" PRIu64 " leads to segment %" PRIu64
                   ", which the log has already",
                   record->sequence, segment);
}

/* Goes on to where the record says. */
static void scan_advance(struct overlay *overlay, const struct overlay_record *record)
{
    bitmap_set(overlay->space.used, overlay_segment_of(&overlay->sb, record->next_unit));
    overlay->sequence = record->sequence;
    overlay->end_unit = record->next_unit;
    overlay->epoch = MAX(overlay->epoch, record->epoch);
}

/* The record that should come next: good, or the end (or damage). */
static int scan_next(struct scan *scan, bool *ret_good, struct err *err) MAY_WAIT
{
    struct overlay *overlay = scan->overlay;
    const struct overlay_superblock *sb = &overlay->sb;
    struct overlay_record record;
    const uint8_t *bytes = NULL;
    size_t length;
    int ret = scan_read(scan, overlay->end_unit * sb->unit_bytes, OVERLAY_RECORD_MAX_BYTES, &bytes,
                        &length);

    *ret_good = false;
    if (ret < 0)
        return err_set_errno(err, ret, "its log cannot be read");
    if (overlay_record_decode(bytes, length, &record) < 0 ||
        !record_is_ours(overlay, &record, overlay->end_unit))
        return 0;
    if (record.generation > sb->generation)
        return newer_generation(overlay, &record, err);
    if (record.generation != sb->generation || record.sequence != overlay->sequence + 1)
        return 0;
    ret = overlay_record_check(sb, &record, bytes, err);
    if (ret < 0)
        return err_prefix(err, "it is damaged: record %" PRIu64, record.sequence);
    ret = check_way(overlay, &record, err);
    if (ret == 0)
        ret = scan_group(scan, &record, bytes, ret_good, err);
    if (ret == 0 && *ret_good)
        scan_advance(overlay, &record);
    return ret;
}

/* --- what lies behind the end --- */

static int error_behind(const struct scan *scan, struct err *err)
{
    const struct overlay *overlay = scan->overlay;
    uint32_t unit_bytes = overlay->sb.unit_bytes;

    return err_set(err, -EUCLEAN,
                   "it is damaged: record %" PRIu64 " at byte %" PRIu64
                   " is bad, and record %" PRIu64 " at byte %" PRIu64 " follows",
                   overlay->sequence + 1, overlay->end_unit * unit_bytes, scan->behind_sequence,
                   scan->behind_unit * unit_bytes);
}

/* A record that is newer than the last good one, of this image and at its place. *ret_length 0: the
 * file ends before. */
static int check_behind(struct scan *scan, uint64_t unit, size_t *ret_length, struct err *err)
    MAY_WAIT
{
    struct overlay *overlay = scan->overlay;
    uint32_t unit_bytes = overlay->sb.unit_bytes;
    struct overlay_record record;
    const uint8_t *bytes = NULL;
    int ret = scan_read(scan, unit * unit_bytes, OVERLAY_RECORD_MAX_BYTES, &bytes, ret_length);

    if (ret < 0)
        return err_set_errno(err, ret, "its log cannot be read");
    if (overlay_record_decode(bytes, *ret_length, &record) < 0 ||
        !record_is_ours(overlay, &record, unit))
        return 0;
    if (record.generation > overlay->sb.generation)
        return newer_generation(overlay, &record, err);
    if (record.generation != overlay->sb.generation || record.sequence <= overlay->sequence ||
        unit == overlay->end_unit)
        return 0;
    scan->behind_sequence = record.sequence;
    scan->behind_unit = unit;
    return record.flushed_sequence > overlay->sequence ? error_behind(scan, err) : 0;
}

/* Is there a later record of this generation? It would lie in the same segment, or at the begin of
 * another. */
static int scan_behind(struct scan *scan, struct err *err) MAY_WAIT
{
    const struct overlay *overlay = scan->overlay;
    const struct overlay_superblock *sb = &overlay->sb;
    uint64_t segment = overlay_segment_of(sb, overlay->end_unit);
    uint64_t last = overlay_segment_begin(sb, segment + 1);
    size_t length = 1;
    int ret = 0;

    for (uint64_t unit = overlay->end_unit + 1; ret == 0 && length > 0 && unit < last; unit++)
        ret = check_behind(scan, unit, &length, err);
    length = 1;
    scan->window_bytes = OVERLAY_RECORD_MAX_BYTES;
    for (segment = 0; ret == 0 && length > 0; segment++)
        ret = check_behind(scan, overlay_segment_begin(sb, segment), &length, err);
    return ret;
}

static int scan_end(struct scan *scan, struct err *err) MAY_WAIT
{
    struct overlay *overlay = scan->overlay;
    const struct overlay_superblock *sb = &overlay->sb;
    size_t length;

    if ((sb->flags & OVERLAY_CLEAN) == 0) {
        int ret = scan_behind(scan, err);
        if (ret < 0)
            return ret;
        if (overlay->sequence >= sb->flushed_sequence) {
            overlay->tail_only = scan->behind_sequence != 0;
            return overlay->tail_only ? error_behind(scan, err) : 0;
        }
        return err_set(err, -EUCLEAN,
                       "it is damaged or truncated: of %" PRIu64
                       " records that were durable %" PRIu64 " are good, up to byte %" PRIu64,
                       sb->flushed_sequence, overlay->sequence, overlay->end_unit * sb->unit_bytes);
    }
    /* Every generation begins there. */
    int ret = check_behind(scan, overlay_log_begin(sb), &length, err);
    if (ret < 0)
        return ret;
    if (overlay->sequence != sb->clean_sequence || overlay->end_unit != sb->clean_end_unit)
        return err_set(err, -EUCLEAN,
                       "it is damaged or truncated: %" PRIu64 " of %" PRIu64
                       " records are good, up to byte %" PRIu64,
                       overlay->sequence, sb->clean_sequence, overlay->end_unit * sb->unit_bytes);
    return 0;
}

int overlay_scan(struct overlay *overlay, struct err *err)
{
    struct scan scan = {.overlay = overlay,
                        .window_bytes = OVERLAY_SCAN_WINDOW_BYTES,
                        .file_bytes = overlay->file->child->length_bytes};
    bool good = true;
    int ret = 0;

    scan.buf = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)), OVERLAY_SCAN_WINDOW_BYTES);
    if (scan.buf == NULL)
        return err_no_memory(err);
    overlay->end_unit = overlay->sb.first_unit;
    overlay->sequence = overlay->sb.first_sequence - 1;
    overlay->epoch = overlay->sb.epoch;
    bitmap_set(overlay->space.used, overlay_segment_of(&overlay->sb, overlay->end_unit));
    while (ret == 0 && good)
        ret = scan_next(&scan, &good, err);
    if (ret == 0)
        ret = scan_end(&scan, err);
    buf_unref(scan.buf);
    overlay->flushed_sequence = 0;
    return ret;
}
