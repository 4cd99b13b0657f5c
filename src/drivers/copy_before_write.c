/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rule that makes it work: a block is saved (the target holds it) only after its old content is
 * in the target, and is overwritten only when it is saved. Copies of a block hold an exclusive lock
 * on it, readers of the target's backing a shared one; whoever finds a block saved needs no lock:
 * from then on readers find it in the target too.
 */
#include "drivers/copy_before_write.h"

#include "base/json.h"
#include "base/log.h"
#include "block/dirty_bitmap.h"
#include "block/io.h"

#include <errno.h>
#include <inttypes.h>

/* Of targets that do not say what their blocks are. Not less than their blocks: filling up the rest
 * of one would wait for a neighbour's copy, which may wait for this one. */
#define DEFAULT_BLOCK_BYTES (64u * 1024)

struct cbw_options {
    struct json_object *file, *target;
    char *bitmap_node, *bitmap_name;
    int on_error;
    uint64_t timeout_s;
};

enum { ON_ERROR_BREAK_GUEST_WRITE, ON_ERROR_BREAK_SNAPSHOT };

struct access_state;

struct cbw_state {
    struct node *node;
    struct edge *file, *target;
    uint32_t block_bytes;
    /* Blocks that are not saved, where the target does not tell; bits NULL: it does. Never on: nobody
     * marks but cbw_map()'s user. */
    struct dirty_tracker unsaved;
    struct bitmap *covered; /* of the same regions: what the snapshot is of; NULL: everything */
    struct cbw_error
        broken; /* break-snapshot: the failure after which nothing is copied any more */
    struct range_locks locks;
    struct access_state *access; /* the target's way to the disk, if any */
    struct cbw_error error;
    bool last_reading; /* of the latest failed copy */
    struct cbw_stats stats;
    cbw_failed *failed;
    void *failed_arg;
};

struct access_options {
    struct json_object *file;
    char *filter;
};

struct access_state {
    struct node *node;
    struct cbw_state *filter; /* NULL: gone */
};

static struct cbw_state *cbw_of(struct node *node)
{
    assert(node_check(node)->driver == &driver_copy_before_write);
    return node->state;
}

/* --- what is saved --- */

static struct node *below_filters(struct node *node)
{
    while (node->driver->is_filter)
        node = node->file->child;
    return node;
}

/* Whether the stretch at the offset is saved, and how far it is so. */
static int cbw_is_saved(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes,
                        bool *ret_saved, uint64_t *ret_length_bytes) MAY_WAIT
{
    struct edge *backing;

    if (cbw->unsaved.bits != NULL) {
        *ret_saved = !dirty_tracker_look(&cbw->unsaved, offset_bytes, length_bytes,
                                         ret_length_bytes);
        return 0;
    }
    backing = node_child(below_filters(cbw->target->child), "backing");
    return io_held(cbw->target, backing != NULL ? backing->child : NULL, offset_bytes, length_bytes,
                   ret_saved, ret_length_bytes);
}

/* The first stretch that is not saved, of whole blocks; its length is 0 when all is. */
static int cbw_next_unsaved(struct cbw_state *cbw, uint64_t *offset_bytes, uint64_t end_bytes,
                            uint64_t *ret_length_bytes) MAY_WAIT
{
    *ret_length_bytes = 0;
    while (*offset_bytes < end_bytes) {
        bool saved = false;
        uint64_t length = 0;
        int ret = cbw_is_saved(cbw, *offset_bytes, end_bytes - *offset_bytes, &saved, &length);

        if (ret < 0)
            return ret;
        if (!saved) {
            *ret_length_bytes = length;
            return 0;
        }
        *offset_bytes += length;
    }
    return 0;
}

/* --- failures --- */

static void cbw_note_failure(struct cbw_state *cbw, bool reading, uint64_t offset_bytes,
                             uint64_t length_bytes, int code) MAY_WAIT
{
    struct edge *where = reading ? cbw->file : cbw->target;

    cbw->error.count++;
    cbw->last_reading = reading;
    if (cbw->error.code == 0) {
        cbw->error.code = code;
        cbw->error.reading = reading;
        cbw->error.offset_bytes = offset_bytes;
        cbw->error.length_bytes = length_bytes;
        cbw->error.wall_ns = loop_wall_ns(graph_loop(cbw->node->graph));
    }
    if (cbw->failed != NULL)
        cbw->failed(cbw->failed_arg, "copy-before-write", where->child, offset_bytes, length_bytes,
                    code);
}

static int cbw_note_disk(struct cbw_state *cbw, const char *operation, uint64_t offset_bytes,
                         uint64_t length_bytes, int ret) MAY_WAIT
{
    if (unlikely(ret < 0) && cbw->failed != NULL)
        cbw->failed(cbw->failed_arg, operation, cbw->file->child, offset_bytes, length_bytes, ret);
    return ret;
}

/* --- copying --- */

/* Of a target that shows the disk's old content anyway, a save changes nothing that readers see. */
static unsigned save_flags(const struct cbw_state *cbw)
{
    return cbw->unsaved.bits == NULL ? IO_UNCHANGED : 0;
}

static int save_zero(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT
{
    struct io zero = {.offset_bytes = offset_bytes,
                      .length_bytes = length_bytes,
                      .flags = cbw->unsaved.bits == NULL ? IO_UNCHANGED : IO_MAY_UNMAP};
    int ret = io_zero(cbw->target, &zero);

    if (ret < 0)
        cbw_note_failure(cbw, false, offset_bytes, length_bytes, ret);
    return ret;
}

static int save_data(struct cbw_state *cbw, struct io *io) MAY_WAIT
{
    int ret = io_read(cbw->file, io);

    if (ret < 0) {
        cbw_note_failure(cbw, true, io->offset_bytes, io->length_bytes, ret);
        return ret;
    }
    if (bytes_are_zero(io->data.bytes, io->data.length_bytes))
        return save_zero(cbw, io->offset_bytes, io->length_bytes);
    io->flags = save_flags(cbw);
    ret = io_write(cbw->target, io);
    if (ret < 0)
        cbw_note_failure(cbw, false, io->offset_bytes, io->length_bytes, ret);
    return ret;
}

static void set_saved(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes)
{
    cbw->stats.copies++;
    cbw->stats.copied_bytes += length_bytes;
    if (cbw->unsaved.bits != NULL)
        dirty_tracker_unmark(&cbw->unsaved, offset_bytes, length_bytes);
}

/* The range is locked; none of it is saved. Holes are read like data: asking a file where they are
 * can take a walk over all of it. */
static int save(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT
{
    struct io io = {.offset_bytes = offset_bytes, .length_bytes = length_bytes};
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(cbw->node->graph)), length_bytes);
    int ret;

    if (buf == NULL) {
        cbw_note_failure(cbw, true, offset_bytes, length_bytes, -ENOMEM);
        return -ENOMEM;
    }
    io.data = buf_slice_of(buf, 0, length_bytes);
    ret = save_data(cbw, &io);
    buf_unref(buf);
    if (ret == 0)
        set_saved(cbw, offset_bytes, length_bytes);
    return ret;
}

static void lock_range(struct cbw_state *cbw, struct range_lock *lock, uint64_t offset_bytes,
                       uint64_t length_bytes, bool exclusive) MAY_WAIT
{
    if (likely(range_lock_try(&cbw->locks, lock, offset_bytes, length_bytes, exclusive)))
        return;
    cbw->stats.waits++;
    range_lock_acquire(&cbw->locks, lock, offset_bytes, length_bytes, exclusive);
}

/* Waits for copies and readers of the range, and copies what still has to be. */
static int save_range(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT
{
    uint64_t end = offset_bytes + length_bytes, unsaved = 0;
    struct range_lock lock;
    int ret = 0;

    lock_range(cbw, &lock, offset_bytes, length_bytes, true);
    while (ret == 0) {
        ret = cbw_next_unsaved(cbw, &offset_bytes, end, &unsaved);
        if (ret < 0)
            cbw_note_failure(cbw, false, offset_bytes, end - offset_bytes, ret);
        if (ret < 0 || unsaved == 0)
            break;
        ret = save(cbw, offset_bytes, unsaved);
        offset_bytes += unsaved;
    }
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

/* A copy for a guest's write has failed: either the write fails too, or there is no snapshot any more. */
static int cbw_break(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes, int code)
{
    const struct cbw_options *options = cbw->node->options;

    if (options->on_error == ON_ERROR_BREAK_GUEST_WRITE)
        return code;
    if (cbw->broken.code == 0)
        cbw->broken = (struct cbw_error){.code = code,
                                         .reading = cbw->last_reading,
                                         .offset_bytes = offset_bytes,
                                         .length_bytes = length_bytes};
    return 0;
}

/* After it every block of the range may be overwritten. */
static int cbw_before(struct cbw_state *cbw, const struct io *io) MAY_WAIT
{
    uint64_t offset = align_down(io->offset_bytes, cbw->block_bytes);
    uint64_t end = MIN(align_up(io->offset_bytes + io->length_bytes, cbw->block_bytes),
                       cbw->node->length_bytes);
    uint64_t unsaved = 0;

    if ((io->flags & IO_UNCHANGED) != 0 || cbw->broken.code < 0)
        return 0;
    for (;;) {
        int ret = cbw_next_unsaved(cbw, &offset, end, &unsaved);

        if (unlikely(ret < 0)) {
            cbw_note_failure(cbw, false, offset, end - offset, ret);
            return cbw_break(cbw, offset, end - offset, ret);
        }
        if (unsaved == 0)
            return 0;
        unsaved = MIN(unsaved, CBW_COPY_MAX_BYTES);
        ret = save_range(cbw, offset, unsaved);
        if (ret < 0)
            return cbw_break(cbw, offset, unsaved, ret);
        offset += unsaved;
    }
}

/* --- the filter's hooks --- */

static int cbw_write(struct node *node, struct io *io) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);
    int ret = cbw_before(cbw, io);

    if (ret < 0)
        return ret;
    return cbw_note_disk(cbw, "write to the secondary disk", io->offset_bytes, io->length_bytes,
                         io_write(cbw->file, io));
}

static int cbw_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);
    int ret = cbw_before(cbw, io);

    if (ret < 0)
        return ret;
    ret = io_zero(cbw->file, io);
    /* What the caller forbade to do slowly has not failed. */
    if (ret == -EOPNOTSUPP && (io->flags & IO_NO_FALLBACK) != 0)
        return ret;
    return cbw_note_disk(cbw, "zero-write to the secondary disk", io->offset_bytes,
                         io->length_bytes, ret);
}

static int cbw_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);
    int ret = cbw_before(cbw, io);

    if (ret < 0)
        return ret;
    return cbw_note_disk(cbw, "discard on the secondary disk", io->offset_bytes, io->length_bytes,
                         io_discard(cbw->file, io));
}

static int cbw_flush(struct node *node) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);

    return cbw_note_disk(cbw, "flush of the secondary disk", 0, 0, io_flush(cbw->file));
}

/* What QEMU's filter has and this one does not yet. */
static int check_supported(const struct cbw_options *options, struct err *err)
{
    if (options->timeout_s != 0)
        return err_set(err, -ENOTSUP, "'cbw-timeout' is not supported yet: leave it out");
    return 0;
}

/* Nothing is saved. */
static int cbw_make_map(struct cbw_state *cbw, struct err *err)
{
    cbw->block_bytes = MAX(cbw->block_bytes, DEFAULT_BLOCK_BYTES);
    int ret = dirty_tracker_add(&cbw->unsaved, cbw->node, cbw->block_bytes, err);
    if (ret < 0)
        return ret;
    dirty_tracker_set_on(&cbw->unsaved, false);
    dirty_tracker_mark(&cbw->unsaved, 0, cbw->file->child->length_bytes);
    return 0;
}

/* Only what the bitmap has marked now is to be saved; what becomes of the bitmap does not matter. */
static int cbw_cover_bitmap(struct cbw_state *cbw, const struct cbw_options *options,
                            struct err *err)
{
    struct dirty_tracker *map = &cbw->unsaved;
    struct dirty_bitmap *bitmap;
    struct node *node;
    int ret = graph_get(cbw->node->graph, options->bitmap_node, &node, err);

    if (ret == 0)
        ret = dirty_bitmap_get(node, options->bitmap_name, &bitmap, err);
    if (ret == 0 && node->length_bytes != cbw->file->child->length_bytes)
        ret = err_set(err, -EINVAL,
                      "bitmap '%s' is of a node of %" PRIu64 " bytes, and '%s' has %" PRIu64,
                      bitmap->name, node->length_bytes, cbw->file->child->name,
                      cbw->file->child->length_bytes);
    if (ret == 0 && map->bits == NULL)
        ret = cbw_make_map(cbw, err);
    if (ret < 0)
        return ret;
    cbw->covered = bitmap_new(bitmap_bits(map->bits));
    if (cbw->covered == NULL)
        return err_no_memory(err);
    bitmap_clear_all(map->bits);
    dirty_tracker_merge(map, bitmap->tracker.bits, bitmap->tracker.region_bytes);
    for (uint64_t bit = bitmap_next_set(map->bits, 0); bit != BITMAP_NONE;) {
        uint64_t end = bitmap_run_end(map->bits, bit, UINT64_MAX);

        bitmap_set_range(cbw->covered, bit, end - bit);
        bit = bitmap_next_set(map->bits, end);
    }
    return 0;
}

static void cbw_free_maps(struct cbw_state *cbw)
{
    dirty_tracker_remove(&cbw->unsaved);
    bitmap_free(cbw->covered);
    cbw->covered = NULL;
}

static int cbw_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct cbw_options *options = node->options;
    struct cbw_state *cbw = node->state;
    struct node *target;
    int ret = check_supported(options, err);

    if (ret < 0)
        return ret;

    cbw->node = node;
    cbw->file = node->file;
    cbw->target = node_child(node, "target");
    range_locks_init(&cbw->locks);
    target = below_filters(cbw->target->child);
    if (target->length_bytes != cbw->file->child->length_bytes)
        return err_set(err, -EINVAL,
                       "target '%s' has %" PRIu64 " bytes, and the disk '%s' %" PRIu64
                       ": they must be equal",
                       target->name, target->length_bytes, cbw->file->child->name,
                       cbw->file->child->length_bytes);
    cbw->block_bytes = target->limits.block_bytes;
    if (cbw->block_bytes == 0)
        cbw->block_bytes = DEFAULT_BLOCK_BYTES;
    if (target->driver->held == NULL && node_child(target, "backing") == NULL)
        ret = cbw_make_map(cbw, err);
    if (ret == 0 && options->bitmap_name != NULL)
        ret = cbw_cover_bitmap(cbw, options, err);
    if (ret < 0)
        cbw_free_maps(cbw);
    return ret;
}

static void cbw_close(struct node *node)
{
    struct cbw_state *cbw = cbw_of(node);

    if (cbw->access != NULL)
        cbw->access->filter = NULL;
    cbw_free_maps(cbw);
}

static void cbw_perms(struct node *node, struct edge *edge, unsigned parents_need,
                      unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    const struct cbw_state *cbw = node->state;

    if (edge == node->file) {
        *ret_need = parents_need | PERM_CONSISTENT_READ;
        *ret_share = parents_share & ~(unsigned)PERM_RESIZE;
        return;
    }
    *ret_share = PERM_ALL & ~(unsigned)PERM_RESIZE;
    *ret_need = PERM_CONSISTENT_READ;
    *ret_need |= cbw->unsaved.bits == NULL ? PERM_WRITE_UNCHANGED : PERM_WRITE;
    /* A disk below the target is the one that the guest writes to. */
    if (node_child(below_filters(edge->child), "backing") == NULL)
        *ret_share &= ~(unsigned)PERM_WRITE;
}

static int cbw_describe(struct node *node, struct json_object *object)
{
    const struct cbw_state *cbw = cbw_of(node);

    if (json_add_uint(object, "block-size", cbw->block_bytes) < 0 ||
        json_add_uint(object, "copied-bytes", cbw->stats.copied_bytes) < 0 ||
        json_add_uint(object, "waits", cbw->stats.waits) < 0 ||
        json_add_uint(object, "failed-copies", cbw->error.count) < 0 ||
        json_add_bool(object, "snapshot-broken", cbw->broken.code < 0) < 0)
        return -ENOMEM;
    return 0;
}

int cbw_first_error(struct node *filter, struct cbw_error *ret_error)
{
    *ret_error = cbw_of(filter)->error;
    return ret_error->code;
}

void cbw_clear_error(struct node *filter)
{
    cbw_of(filter)->error = (struct cbw_error){0};
}

struct cbw_stats cbw_stats(struct node *filter)
{
    return cbw_of(filter)->stats;
}

void cbw_on_failure(struct cbw *cbw, cbw_failed *failed, void *arg)
{
    struct cbw_state *state = cbw_of(cbw->filter);

    state->failed = failed;
    state->failed_arg = arg;
}

/* --- for who copies ahead of the guest --- */

int cbw_use_map(struct node *filter, struct err *err)
{
    struct cbw_state *cbw = cbw_of(filter);

    return cbw->unsaved.bits != NULL ? 0 : cbw_make_map(cbw, err);
}

struct dirty_tracker *cbw_map(struct node *filter)
{
    return &cbw_of(filter)->unsaved;
}

int cbw_broken(struct node *filter, struct cbw_error *ret_error)
{
    *ret_error = cbw_of(filter)->broken;
    return ret_error->code;
}

/* Of the first stretch of one kind; the range is locked. Zeroes go only to where they are not. */
static int copy_ahead(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t *length_bytes) MAY_WAIT
{
    struct extent extent, there;
    int ret = io_extents(cbw->file, offset_bytes, *length_bytes, &extent);

    if (ret < 0)
        return save(cbw, offset_bytes, *length_bytes);
    bool zero = (extent.flags & EXTENT_ZERO) != 0;
    /* Whole blocks: with the zeroes behind data, not with the data behind zeroes. */
    if (zero && extent.length_bytes < *length_bytes)
        extent.length_bytes = align_down(extent.length_bytes, cbw->block_bytes);
    zero = zero && extent.length_bytes > 0;
    *length_bytes = MIN(*length_bytes, align_up(MAX(extent.length_bytes, 1u), cbw->block_bytes));
    if (!zero)
        return save(cbw, offset_bytes, *length_bytes);
    ret = io_extents(cbw->target, offset_bytes, *length_bytes, &there);
    if (ret < 0 || (there.flags & EXTENT_ZERO) == 0 || there.length_bytes < *length_bytes)
        ret = save_zero(cbw, offset_bytes, *length_bytes);
    if (ret == 0)
        set_saved(cbw, offset_bytes, *length_bytes);
    return ret;
}

int cbw_copy_ahead(struct node *filter, uint64_t offset_bytes, uint64_t length_bytes,
                   uint64_t *ret_copied_bytes, bool *ret_reading)
{
    struct cbw_state *cbw = cbw_of(filter);
    uint64_t end = MIN(offset_bytes + length_bytes, filter->length_bytes);
    struct range_lock lock;
    uint64_t length = 0;
    int ret = cbw->broken.code;

    assert(length_bytes <= CBW_COPY_MAX_BYTES);
    *ret_copied_bytes = 0;
    lock_range(cbw, &lock, offset_bytes, end - offset_bytes, true);
    while (ret == 0) {
        ret = cbw_next_unsaved(cbw, &offset_bytes, end, &length);
        if (ret < 0 || length == 0)
            break;
        ret = copy_ahead(cbw, offset_bytes, &length);
        if (ret == 0)
            *ret_copied_bytes += length;
        offset_bytes += length;
    }
    range_lock_release(&cbw->locks, &lock);
    *ret_reading = cbw->last_reading;
    return ret;
}

int cbw_flush_target(struct node *filter)
{
    return io_flush(cbw_of(filter)->target);
}

/* --- the locked read path --- */

static int access_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct access_options *options = node->options;
    struct access_state *access = node->state;
    struct node *filter = NULL;
    int ret = graph_get(node->graph, options->filter, &filter, err);

    if (ret < 0)
        return ret;
    if (filter->driver != &driver_copy_before_write)
        return err_set(err, -EINVAL, "'filter': node '%s' is of driver '%s', not '%s'",
                       filter->name, filter->driver->name, driver_copy_before_write.name);
    struct cbw_state *cbw = filter->state;
    if (cbw->access != NULL)
        return err_set(err, -EBUSY, "'filter': node '%s' has node '%s' already", filter->name,
                       cbw->access->node->name);
    access->node = node;
    access->filter = cbw;
    cbw->access = access;
    return 0;
}

static void access_close(struct node *node)
{
    struct access_state *access = node->state;

    if (access->filter != NULL)
        access->filter->access = NULL;
}

static void lock_blocks(struct cbw_state *cbw, struct range_lock *lock, uint64_t offset_bytes,
                        uint64_t length_bytes) MAY_WAIT
{
    uint64_t begin = align_down(offset_bytes, cbw->block_bytes);

    lock_range(cbw, lock, begin, align_up(offset_bytes + length_bytes, cbw->block_bytes) - begin,
               false);
}

/* Of the rest nothing is kept. */
static bool is_covered(const struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes)
{
    if (cbw->covered == NULL)
        return true;
    uint64_t first = offset_bytes / cbw->block_bytes;
    uint64_t end = (offset_bytes + length_bytes + cbw->block_bytes - 1) / cbw->block_bytes;
    return bitmap_test(cbw->covered, first) && bitmap_run_end(cbw->covered, first, end) == end;
}

/* While the lock is held nothing of the range becomes saved, so what is not is the old content. */
static int read_locked(struct node *node, struct cbw_state *cbw, const struct io *io) MAY_WAIT
{
    uint64_t done = 0;

    if (cbw->broken.code < 0)
        return -EACCES;
    while (done < io->length_bytes) {
        struct io part = {.offset_bytes = io->offset_bytes + done};
        bool saved = false;
        int ret = cbw_is_saved(cbw, part.offset_bytes, io->length_bytes - done, &saved,
                               &part.length_bytes);

        if (ret < 0)
            return ret;
        part.data = buf_slice_sub(io->data, done, part.length_bytes);
        if (saved && !is_covered(cbw, part.offset_bytes, part.length_bytes))
            return -EACCES;
        ret = io_read(saved ? cbw->target : node->file, &part);
        if (ret < 0)
            return ret;
        done += part.length_bytes;
    }
    /* Meanwhile it may have broken: from then on writes wait for nobody who reads. */
    return cbw->broken.code < 0 ? -EACCES : 0;
}

/* The same for extents; a stretch of any length: the lock must not hold up the disk's writers for
 * long. */
static int extents_locked(struct node *node, struct cbw_state *cbw, uint64_t offset_bytes,
                          uint64_t length_bytes, struct extent *ret_extent) MAY_WAIT
{
    struct range_lock lock;
    bool saved = false;
    int ret;

    length_bytes = MIN(length_bytes, CBW_COPY_MAX_BYTES);
    lock_blocks(cbw, &lock, offset_bytes, length_bytes);
    ret = cbw_is_saved(cbw, offset_bytes, length_bytes, &saved, &length_bytes);
    if (ret == 0 && saved && !is_covered(cbw, offset_bytes, length_bytes))
        ret = -EACCES;
    else if (ret == 0 && saved)
        *ret_extent = (struct extent){
            .length_bytes = length_bytes, .flags = EXTENT_DATA | EXTENT_HERE, .depth = 1};
    else if (ret == 0)
        ret = io_extents(node->file, offset_bytes, length_bytes, ret_extent);
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

int cbw_snapshot_read(struct node *filter, const struct io *io)
{
    struct cbw_state *cbw = cbw_of(filter);
    struct range_lock lock;
    int ret;

    lock_blocks(cbw, &lock, io->offset_bytes, io->length_bytes);
    ret = read_locked(filter, cbw, io);
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

int cbw_snapshot_extents(struct node *filter, uint64_t offset_bytes, uint64_t length_bytes,
                         struct extent *ret_extent)
{
    return extents_locked(filter, cbw_of(filter), offset_bytes, length_bytes, ret_extent);
}

static int access_read(struct node *node, struct io *io) MAY_WAIT
{
    const struct access_state *access = node->state;
    struct cbw_state *cbw = access->filter;
    struct range_lock lock;
    int ret;

    if (cbw == NULL)
        return io_read(node->file, io);
    lock_blocks(cbw, &lock, io->offset_bytes, io->length_bytes);
    ret = read_locked(node, cbw, io);
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

static int access_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                          struct extent *ret_extent) MAY_WAIT
{
    const struct access_state *access = node->state;

    if (access->filter == NULL)
        return io_extents(node->file, offset_bytes, length_bytes, ret_extent);
    return extents_locked(node, access->filter, offset_bytes, length_bytes, ret_extent);
}

static void access_perms(struct node *node, struct edge *edge, unsigned parents_need,
                         unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    *ret_need = PERM_CONSISTENT_READ;
    *ret_share = PERM_ALL & ~(unsigned)PERM_RESIZE;
}

/* --- the drivers --- */

static const char *const on_error_names[] = {"break-guest-write", "break-snapshot", NULL};

static const struct opt cbw_bitmap_opts[] = {
    {.name = "node",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct cbw_options, bitmap_node),
     .required = true,
     .help = "the node that has the bitmap"},
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct cbw_options, bitmap_name),
     .required = true,
     .help = "the bitmap's name"},
    {0},
};

static const struct opt cbw_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct cbw_options, file),
     .required = true,
     .help = "the disk that is written to"},
    {.name = "target",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct cbw_options, target),
     .required = true,
     .help = "the image that gets the old content"},
    {.name = "on-cbw-error",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct cbw_options, on_error),
     .fallback = "break-guest-write",
     .values = on_error_names,
     .help = "what fails when a copy fails: the write, or the snapshot for good"},
    {.name = "cbw-timeout",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct cbw_options, timeout_s),
     .fallback = "0",
     .max = UINT32_MAX,
     .help = "seconds after which a copy has failed; 0: never (others: not supported yet)"},
    {.name = "bitmap",
     .type = OPT_OBJECT,
     .members = cbw_bitmap_opts,
     .help = "copies only what this bitmap has marked when the filter is made"},
    {0},
};

const struct driver driver_copy_before_write = {
    .name = "copy-before-write",
    .is_filter = true,
    .state_size = sizeof(struct cbw_state),
    .options_size = sizeof(struct cbw_options),
    .opts = cbw_opts,
    .open = cbw_open,
    .close = cbw_close,
    .child_perms = cbw_perms,
    .describe = cbw_describe,
    .write = cbw_write,
    .zero = cbw_zero,
    .discard = cbw_discard,
    .flush = cbw_flush,
};

static const struct opt access_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct access_options, file),
     .required = true,
     .help = "the disk below the filter"},
    {.name = "filter",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct access_options, filter),
     .required = true,
     .help = "the copy-before-write node whose copies are excluded"},
    {0},
};

const struct driver driver_copy_before_write_access = {
    .name = "copy-before-write-access",
    .is_filter = true,
    .internal = true,
    .state_size = sizeof(struct access_state),
    .options_size = sizeof(struct access_options),
    .opts = access_opts,
    .open = access_open,
    .close = access_close,
    .child_perms = access_perms,
    .read = access_read,
    .extents = access_extents,
};
