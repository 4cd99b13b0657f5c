/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * overlay: our copy-on-write image. Children: `file` has the bytes, `backing` (optional) what the
 * image does not hold. Blocks never change where they lie: a write appends, so a reader needs no
 * lock, and a CRC always covers its data.
 */
#include "drivers/overlay_internal.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum { ON_DAMAGE_REFUSE, ON_DAMAGE_HOLD };

struct overlay_options {
    struct json_object *file, *backing;
    char *image_id;
    uint64_t max_bytes;
    int on_damage;
};

bool node_is_overlay(const struct node *node)
{
    return node->driver == &driver_overlay;
}

static struct overlay *overlay_of(struct node *node)
{
    assert(node_is_overlay(node_check(node)));
    return node->state;
}

/* --- open and close --- */

static void overlay_reap(struct loop_timer *timer)
{
    struct overlay *overlay = CONTAINER_OF(timer, struct overlay, reaper);

    if (overlay_map_reap(overlay->map, OVERLAY_REAP_SLABS))
        loop_timer_arm(timer->loop, timer, loop_now_ns(timer->loop) + OVERLAY_REAP_PAUSE_NS);
}

static int check_backing(const struct overlay *overlay, struct err *err)
{
    if (overlay->backing == NULL ||
        overlay->backing->child->length_bytes == overlay->sb.virtual_bytes)
        return 0;
    return err_set(err, -EINVAL,
                   "it is for a disk of %" PRIu64 " bytes, and its backing node '%s' has %" PRIu64
                   ": use the overlay of that disk, or create a new one",
                   overlay->sb.virtual_bytes, overlay->backing->child->name,
                   overlay->backing->child->length_bytes);
}

static int check_image_id(const struct overlay *overlay, struct err *err)
{
    const struct overlay_options *options = overlay->node->options;
    char id[OVERLAY_ID_TEXT_BYTES];

    if (options->image_id == NULL)
        return 0;
    overlay_id_format(overlay->sb.image_id, id);
    if (strcmp(id, options->image_id) == 0)
        return 0;
    return err_set(
        err, -EINVAL,
        "it is image %s, and image-id says %s: it is the overlay of another disk, or two "
        "have been swapped, or it was created anew; 'blockstep image info' tells ids",
        id, options->image_id);
}

static int overlay_load(struct overlay *overlay, struct err *err) MAY_WAIT
{
    const struct overlay_options *options = overlay->node->options;
    int ret = overlay_superblock_load(overlay->file, &overlay->sb, err);

    if (ret == 0)
        ret = check_image_id(overlay, err);
    if (ret == 0)
        ret = check_backing(overlay, err);
    if (ret < 0)
        return ret;
    overlay->units_per_block = overlay->sb.block_bytes / overlay->sb.unit_bytes;
    overlay->map = overlay_map_new(overlay->units_per_block);
    if (overlay->map == NULL || overlay_space_init(overlay, options->max_bytes) < 0)
        return err_no_memory(err);
    ret = overlay_scan(overlay, err);
    if (ret != -EUCLEAN || options->on_damage == ON_DAMAGE_REFUSE)
        return ret;
    overlay->damage = *err;
    err_clear(err);
    log_error("overlay", "'%s' is unusable until it is emptied: %s", overlay->node->name,
              overlay->damage.text);
    return 0;
}

/* Which image an error is about: the node may be one without a name of its own. */
static int name_image(const struct node *node, struct err *err)
{
    const struct node *file = node->file->child;
    struct json_object *path = NULL;

    err_prefix(err, "overlay image in node '%s'", file->name);
    while (file->driver->is_filter && file->file != NULL)
        file = file->file->child;
    if (file->options_json == NULL ||
        !json_object_object_get_ex(file->options_json, "filename", &path))
        return err->code;
    return err_prefix(err, "%s", json_object_get_string(path));
}

static int overlay_open(struct node *node, struct err *err) MAY_WAIT
{
    struct overlay *overlay = node->state;
    int ret;

    overlay->node = node;
    overlay->file = node->file;
    overlay->backing = node_child(node, "backing");
    range_locks_init(&overlay->locks);
    co_queue_init(&overlay->worker.changed);
    list_init(&overlay->pending);
    overlay->reaper.fire = overlay_reap;
    co_mutex_init(&overlay->sb_lock);
    ret = overlay_load(overlay, err);
    if (ret < 0) {
        overlay_map_free(overlay->map);
        overlay_space_free(overlay);
        overlay->map = NULL;
        return name_image(node, err);
    }
    if (!node->read_only &&
        overlay->file->child->limits.request_align_bytes > overlay->sb.unit_bytes)
        log_warning(
            "overlay",
            "'%s' counts in units of %u bytes and its file in %u: a power cut can tear what "
            "was flushed, and writes are slow; create it with that unit size",
            node->name, overlay->sb.unit_bytes, overlay->file->child->limits.request_align_bytes);
    node->length_bytes = overlay->sb.virtual_bytes;
    node->limits = (struct node_limits){
        .request_align_bytes = 1,
        .memory_align_bytes = 1,
        .max_transfer_bytes = overlay_max_transfer_bytes(overlay),
        .block_bytes = overlay->sb.block_bytes,
    };
    if (!node->read_only)
        overlay_space_find_spare(overlay);
    return 0;
}

/* Where the log ends is written down, so that a truncated image is known for one. */
static void mark_clean(struct overlay *overlay) MAY_WAIT
{
    struct overlay_superblock sb = overlay->sb;
    int ret;

    sb.flags |= OVERLAY_CLEAN;
    sb.clean_sequence = overlay->sequence;
    sb.clean_end_unit = overlay->end_unit;
    sb.epoch = overlay->epoch;
    ret = overlay_superblock_store(overlay, &sb);
    if (ret < 0)
        log_warning("overlay", "'%s' could not be marked as closed in good order: %s",
                    overlay->node->name, err_errno_name(ret));
}

static void overlay_close(struct node *node) MAY_WAIT
{
    struct overlay *overlay = overlay_of(node);

    overlay_worker_stop(overlay);
    assert(list_empty(&overlay->pending));
    loop_timer_cancel(&overlay->reaper);
    if (!node->read_only && !overlay_is_damaged(overlay) &&
        ((overlay->sb.flags & OVERLAY_CLEAN) == 0 || overlay->sb_stale))
        mark_clean(overlay);
    overlay_map_free(overlay->map);
    overlay_space_free(overlay);
    overlay->map = NULL;
}

/* --- reading --- */

static int read_backing(struct overlay *overlay, uint64_t offset_bytes, struct buf_slice data)
    MAY_WAIT
{
    struct io io = {.offset_bytes = offset_bytes, .length_bytes = data.length_bytes, .data = data};

    if (overlay->backing != NULL)
        return io_read(overlay->backing, &io);
    memset(data.bytes, 0, data.length_bytes);
    return 0;
}

/* Anything within the disk, as a reader of the image sees it. */
static int read_range(struct overlay *overlay, uint64_t offset_bytes, struct buf_slice data)
    MAY_WAIT
{
    const uint32_t block_bytes = overlay->sb.block_bytes;

    while (data.length_bytes > 0) {
        uint64_t block = offset_bytes / block_bytes;
        uint64_t within = offset_bytes % block_bytes;
        uint64_t blocks = (within + data.length_bytes + block_bytes - 1) / block_bytes;
        struct overlay_map_run run = overlay_map_find(overlay->map, (uint32_t)block, blocks);
        size_t length = MIN(data.length_bytes, run.count * block_bytes - within);
        struct buf_slice part = buf_slice_sub(data, 0, length);
        int ret = 0;

        if (run.kind == OVERLAY_MAP_DATA) {
            struct io io = {
                .offset_bytes = (uint64_t)run.slot * overlay->sb.unit_bytes + within,
                .length_bytes = length,
                .data = part,
            };
            ret = io_read(overlay->file, &io);
        } else if (run.kind == OVERLAY_MAP_ZEROED) {
            memset(part.bytes, 0, length);
        } else {
            ret = read_backing(overlay, offset_bytes, part);
        }
        if (ret < 0)
            return ret;
        offset_bytes += length;
        data = buf_slice_sub(data, length, data.length_bytes - length);
    }
    return 0;
}

static int overlay_read(struct node *node, struct io *io) MAY_WAIT
{
    struct overlay *overlay = overlay_of(node);

    return overlay_is_damaged(overlay) ? -EUCLEAN : read_range(overlay, io->offset_bytes, io->data);
}

/* --- writing --- */

/* A change of bytes as a change of whole blocks: those at its ends that it does not cover are filled
 * up with what the image shows there. */
#define CHANGE_RUNS 3u /* a part of a block, whole ones, a part */

struct change {
    uint64_t offset_bytes, end_bytes;
    const uint8_t *bytes; /* NULL: zeroes */
    struct buf_slice data;
    struct buf *ends; /* two blocks */
    struct overlay_run runs[CHANGE_RUNS];
    struct overlay_append append;
};

static void change_add(struct change *change, uint64_t block, uint64_t count, bool zero,
                       struct buf_slice data)
{
    assert(change->append.run_count < CHANGE_RUNS);
    change->runs[change->append.run_count++] = (struct overlay_run){
        .block = block,
        .count = (uint32_t)count,
        .kind = zero ? OVERLAY_ENTRY_ZERO : OVERLAY_ENTRY_DATA,
        .data = data,
    };
}

/* The block `block`, of which the change covers a part. `end`: 0 or 1, which of the two. */
static int change_fill(struct overlay *overlay, struct change *change, uint64_t block, unsigned end)
    MAY_WAIT
{
    const uint32_t block_bytes = overlay->sb.block_bytes;
    struct buf_slice whole = buf_slice_of(change->ends, (size_t)end * block_bytes, block_bytes);
    uint64_t begin = block * block_bytes;
    uint64_t valid = MIN(block_bytes, overlay->sb.virtual_bytes - begin);
    uint64_t from = MAX(change->offset_bytes, begin) - begin;
    uint64_t to = MIN(change->end_bytes - begin, block_bytes);
    int ret = 0;

    if (from > 0)
        ret = read_range(overlay, begin, buf_slice_sub(whole, 0, from));
    if (ret == 0 && to < valid)
        ret = read_range(overlay, begin + to, buf_slice_sub(whole, to, valid - to));
    if (ret < 0)
        return ret;
    memset(whole.bytes + valid, 0, block_bytes - valid);
    if (change->bytes == NULL)
        memset(whole.bytes + from, 0, to - from);
    else
        memcpy(whole.bytes + from, change->bytes + (begin + from - change->offset_bytes),
               to - from);
    change_add(change, block, 1, false, whole);
    return 0;
}

static int change_split(struct overlay *overlay, struct change *change) MAY_WAIT
{
    const uint32_t block_bytes = overlay->sb.block_bytes;
    uint64_t first = change->offset_bytes / block_bytes;
    uint64_t last = (change->end_bytes - 1) / block_bytes;
    bool head = change->offset_bytes % block_bytes != 0;
    bool tail = change->end_bytes % block_bytes != 0;
    int ret = 0;

    if (head || tail) {
        change->ends = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)),
                                 (size_t)block_bytes * 2);
        if (change->ends == NULL)
            return -ENOMEM;
    }
    if (head) {
        ret = change_fill(overlay, change, first, 0);
        first++;
    }
    if (ret < 0 || first > last)
        return ret;
    uint64_t count = last + 1 - first - (tail ? 1 : 0);
    if (count > 0) {
        struct buf_slice data = {0};

        if (change->bytes != NULL)
            data = buf_slice_sub(change->data, first * block_bytes - change->offset_bytes,
                                 count * block_bytes);
        change_add(change, first, count, change->bytes == NULL, data);
    }
    return tail ? change_fill(overlay, change, last, 1) : 0;
}

static int overlay_change(struct overlay *overlay, struct change *change) MAY_WAIT
{
    const uint32_t block_bytes = overlay->sb.block_bytes;
    uint64_t begin = align_down(change->offset_bytes, block_bytes);
    struct range_lock lock;
    int ret;

    if (overlay_is_damaged(overlay))
        return -EUCLEAN;
    overlay_clean_wait(overlay);
    change->append.runs = change->runs;
    range_lock_acquire(&overlay->locks, &lock, begin,
                       align_up(change->end_bytes, block_bytes) - begin, true);
    ret = change_split(overlay, change);
    if (ret == 0)
        ret = overlay_append(overlay, &change->append);
    range_lock_release(&overlay->locks, &lock);
    buf_unref(change->ends);
    return ret;
}

static int overlay_write(struct node *node, struct io *io) MAY_WAIT
{
    struct change change = {
        .offset_bytes = io->offset_bytes,
        .end_bytes = io->offset_bytes + io->length_bytes,
        .bytes = io->data.bytes,
        .data = io->data,
    };
    return overlay_change(overlay_of(node), &change);
}

static int overlay_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct change change = {
        .offset_bytes = io->offset_bytes,
        .end_bytes = io->offset_bytes + io->length_bytes,
    };
    return overlay_change(overlay_of(node), &change);
}

/* Zeroes from the first block held as data on; where there is none nothing would be won. */
static int overlay_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct overlay *overlay = overlay_of(node);
    const uint32_t block_bytes = overlay->sb.block_bytes;
    uint64_t end_bytes = io->offset_bytes + io->length_bytes;
    uint64_t block = (io->offset_bytes + block_bytes - 1) / block_bytes;
    uint64_t end = end_bytes == node->length_bytes ? overlay_block_count(&overlay->sb)
                                                   : end_bytes / block_bytes;

    while (block < end) {
        struct overlay_map_run run = overlay_map_find(overlay->map, (uint32_t)block, end - block);

        if (run.kind == OVERLAY_MAP_DATA) {
            struct change change = {
                .offset_bytes = block * block_bytes,
                .end_bytes = MIN(end * block_bytes, node->length_bytes),
            };
            return overlay_change(overlay, &change);
        }
        block += run.count;
    }
    return 0;
}

static int overlay_flush(struct node *node) MAY_WAIT
{
    struct overlay *overlay = overlay_of(node);
    uint64_t sequence = overlay->sequence;
    uint64_t generation = overlay->sb.generation;
    int ret = io_flush(overlay->file);

    if (ret == 0 && overlay->sb.generation == generation)
        overlay->flushed_sequence = MAX(overlay->flushed_sequence, sequence);
    return ret;
}

/* --- what is held --- */

/* From blocks to bytes: how much of the request lies in `count` blocks from its first one. */
static uint64_t stretch_bytes(const struct overlay *overlay, uint64_t offset_bytes,
                              uint64_t length_bytes, uint64_t count)
{
    return MIN(length_bytes,
               count * overlay->sb.block_bytes - offset_bytes % overlay->sb.block_bytes);
}

static uint64_t blocks_touched(const struct overlay *overlay, uint64_t offset_bytes,
                               uint64_t length_bytes)
{
    uint64_t block_bytes = overlay->sb.block_bytes;

    return (offset_bytes + length_bytes - 1) / block_bytes - offset_bytes / block_bytes + 1;
}

/* As overlay_map_find(), but wherever the data lie. */
static struct overlay_map_run find_kind(const struct overlay *overlay, uint64_t block,
                                        uint64_t max_count)
{
    struct overlay_map_run run = overlay_map_find(overlay->map, (uint32_t)block, max_count);

    while (run.count < MIN(max_count, OVERLAY_MAP_LOOK_BLOCKS)) {
        struct overlay_map_run next = overlay_map_find(overlay->map, (uint32_t)(block + run.count),
                                                       max_count - run.count);

        if (next.kind != run.kind)
            break;
        run.count += next.count;
    }
    return run;
}

static int overlay_held(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                        bool *ret_held, uint64_t *ret_length_bytes) MAY_WAIT
{
    const struct overlay *overlay = overlay_of(node);
    uint64_t count;

    if (overlay_is_damaged(overlay))
        return -EUCLEAN;
    *ret_held = overlay_map_held(overlay->map, (uint32_t)(offset_bytes / overlay->sb.block_bytes),
                                 blocks_touched(overlay, offset_bytes, length_bytes), &count);
    *ret_length_bytes = stretch_bytes(overlay, offset_bytes, length_bytes, count);
    return 0;
}

static int backing_extents(const struct overlay *overlay, uint64_t offset_bytes,
                           uint64_t length_bytes, struct extent *ret_extent) MAY_WAIT
{
    int ret;

    *ret_extent = (struct extent){.length_bytes = length_bytes, .flags = EXTENT_ZERO};
    if (overlay->backing == NULL)
        return 0;
    ret = io_extents(overlay->backing, offset_bytes, length_bytes, ret_extent);
    if (ret < 0)
        return ret;
    ret_extent->flags &= ~(unsigned)EXTENT_HERE;
    if (ret_extent->depth > 0)
        ret_extent->depth++;
    return 0;
}

static int overlay_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                           struct extent *ret_extent) MAY_WAIT
{
    const struct overlay *overlay = overlay_of(node);

    if (overlay_is_damaged(overlay))
        return -EUCLEAN;
    struct overlay_map_run run = find_kind(overlay, offset_bytes / overlay->sb.block_bytes,
                                           blocks_touched(overlay, offset_bytes, length_bytes));
    length_bytes = stretch_bytes(overlay, offset_bytes, length_bytes, run.count);
    if (run.kind == OVERLAY_MAP_ABSENT)
        return backing_extents(overlay, offset_bytes, length_bytes, ret_extent);
    *ret_extent = (struct extent){
        .length_bytes = length_bytes,
        .flags = EXTENT_HERE | (run.kind == OVERLAY_MAP_DATA ? EXTENT_DATA : EXTENT_ZERO),
        .depth = 1,
    };
    return 0;
}

bool overlay_next_held(struct node *node, uint64_t from_bytes, struct overlay_stretch *ret_stretch)
{
    const struct overlay *overlay = overlay_of(node);
    const uint64_t block_bytes = overlay->sb.block_bytes;
    uint64_t end = overlay_block_count(&overlay->sb);

    if (from_bytes >= node->length_bytes)
        return false;
    for (uint64_t block = from_bytes / block_bytes; block < end;) {
        struct overlay_map_run run = overlay_map_find(overlay->map, (uint32_t)block, end - block);

        if (run.kind != OVERLAY_MAP_ABSENT) {
            uint64_t begin = MAX(block * block_bytes, from_bytes);
            uint64_t skipped = begin - block * block_bytes;

            *ret_stretch = (struct overlay_stretch){
                .offset_bytes = begin,
                .length_bytes = MIN(run.count * block_bytes - skipped, node->length_bytes - begin),
                .zero = run.kind == OVERLAY_MAP_ZEROED,
                .file_offset_bytes = (uint64_t)run.slot * overlay->sb.unit_bytes + skipped,
            };
            return true;
        }
        block += run.count;
    }
    return false;
}

/* Writes that wait for room do so no longer. */
static void overlay_drain(struct node *node)
{
    co_queue_wake_all(&overlay_of(node)->worker.changed);
}

/* --- telling --- */

struct overlay_stats overlay_stats(struct node *node)
{
    const struct overlay *overlay = overlay_of(node);
    uint64_t blocks = overlay_map_blocks(overlay->map);

    return (struct overlay_stats){
        .held_blocks = blocks,
        .held_bytes = MIN(blocks * overlay->sb.block_bytes, node->length_bytes),
        .zero_run_bytes = overlay_map_long_blocks(overlay->map) * overlay->sb.block_bytes,
        .log_bytes = overlay_space_log_bytes(overlay),
        .spare_bytes = overlay_space_spare_bytes(overlay),
        .max_bytes = overlay->space.max_bytes,
        .given_back_bytes = overlay->space.given_back_bytes,
        .cleaned_bytes = overlay->space.cleaned_segments * overlay->sb.segment_bytes,
        .index_bytes = overlay_map_bytes(overlay->map),
        .generation = overlay->sb.generation,
        .epoch = overlay->epoch,
        .records = overlay->sequence - (overlay->sb.first_sequence - 1),
        .block_bytes = overlay->sb.block_bytes,
        .written_blocks = overlay->written_blocks,
        .failed_groups = overlay->failed_groups,
    };
}

void overlay_set_epoch(struct node *node, uint64_t epoch)
{
    overlay_of(node)->epoch = epoch;
}

static int overlay_describe(struct node *node, struct json_object *object)
{
    struct overlay_stats stats = overlay_stats(node);

    if (json_add_uint(object, "block-size", stats.block_bytes) < 0 ||
        json_add_uint(object, "held-bytes", stats.held_bytes) < 0 ||
        json_add_uint(object, "zero-run-bytes", stats.zero_run_bytes) < 0 ||
        json_add_uint(object, "log-bytes", stats.log_bytes) < 0 ||
        json_add_uint(object, "spare-bytes", stats.spare_bytes) < 0 ||
        json_add_uint(object, "max-bytes", stats.max_bytes) < 0 ||
        json_add_uint(object, "given-back-bytes", stats.given_back_bytes) < 0 ||
        json_add_uint(object, "cleaned-bytes", stats.cleaned_bytes) < 0 ||
        json_add_uint(object, "index-bytes", stats.index_bytes) < 0 ||
        json_add_uint(object, "generation", stats.generation) < 0 ||
        json_add_uint(object, "epoch", stats.epoch) < 0 ||
        json_add_uint(object, "records", stats.records) < 0)
        return -ENOMEM;
    const struct overlay *overlay = overlay_of(node);
    if (json_add_bool(object, "in-memory", overlay->file->child->limits.in_memory) < 0)
        return -ENOMEM;
    return overlay_is_damaged(overlay) ? json_add_string(object, "damage", overlay->damage.text)
                                       : 0;
}

static const char *const on_damage_names[] = {"refuse", "hold", NULL};

static const struct opt overlay_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct overlay_options, file),
     .required = true,
     .help = "the node with the image's bytes"},
    {.name = "backing",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct overlay_options, backing),
     .help = "the node that shows what the image does not hold; without it: zeroes"},
    {.name = "image-id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct overlay_options, image_id),
     .help = "refuse an image with another id (32 digits, as image info tells it)"},
    {.name = "max-bytes",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct overlay_options, max_bytes),
     .help = "how long the log may be: writes beyond it fail with ENOSPC until it is emptied, and "
             "from 90 % on there is an event; 0 (default): no limit"},
    {.name = "on-damage",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct overlay_options, on_damage),
     .fallback = "refuse",
     .values = on_damage_names,
     .help = "of an image whose log is damaged: refuse to open it, or hold it: it can be emptied, "
             "and until then every request fails"},
    {0},
};

const struct driver driver_overlay = {
    .name = "overlay",
    .state_size = sizeof(struct overlay),
    .options_size = sizeof(struct overlay_options),
    .opts = overlay_opts,
    .open = overlay_open,
    .close = overlay_close,
    .drain = overlay_drain,
    .describe = overlay_describe,
    .read = overlay_read,
    .write = overlay_write,
    .zero = overlay_zero,
    .discard = overlay_discard,
    .flush = overlay_flush,
    .extents = overlay_extents,
    .held = overlay_held,
    .empty_prepare = overlay_empty_prepare,
    .empty_commit = overlay_empty_commit,
    .empty_abort = overlay_empty_abort,
};
