/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A piece is claimed by clearing its marks, and looked at only then: what the guest changes from there
 * on is marked again. Within a sweep no region is claimed twice, and sweeps do not overlap: so no two
 * pieces in flight are of one region, and the target takes them in order.
 */
#include "jobs/mirror.h"

#include "base/log.h"
#include "block/dirty.h"
#include "block/io.h"
#include "jobs/chain.h"
#include "jobs/mirror_blocking.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* Between sweeps of a ready job: what the guest rewrites within it is copied once. */
#define MIRROR_REST_NS (10 * NS_PER_MS)
/* What each change of a guest is held back at first, when sweeps do not get less. */
#define MIRROR_SLOW_NS (2 * NS_PER_MS)

/* Between tries when errors are ignored. */
#define MIRROR_RETRY_NS (100 * NS_PER_MS)
/* Not an error of the job: the piece is marked again, and waits for a better time. */
#define MIRROR_AGAIN    (-ERESTART)

/* Zeroes at once: where the target has to write them, a request still ends within its deadline. */
#define MIRROR_ZERO_BYTES (UINT64_C(64) * 1024 * 1024)

struct mirror_state {
    struct job *job;
    struct mirror_options options;
    struct node *source_node, *target_node; /* ours to hold; edges may lead to filters above */
    struct edge *source, *target;
    struct node *reopened; /* the target of a commit that was read-only before; with a reference */
    struct dirty_tracker dirty;
    struct co_mutex claim;   /* a look-up may wait between reading and moving the cursor */
    struct co_mutex pace;    /* of pieces that did not wait for anything: one a turn */
    uint64_t cursor_bytes;   /* of this sweep */
    uint64_t data_end_bytes; /* from the cursor to here the source is known to be data */
    uint64_t in_flight_bytes;
    uint64_t ready_slow_ns; /* how much slowing it took to be ready */
    bool pivot;             /* asked for */
    bool held;              /* the guest waits */
    struct range_locks
        copying;       /* write_blocking: from a read of the source to the target's write */
    unsigned blocking; /* requests of the guest that copy now */
    struct co_queue unblocked;
    bool leaving;
    unsigned stumbles; /* pieces that could not be copied, and are tried again */
    int failure;
};

struct mirror_piece {
    uint64_t offset_bytes, length_bytes;
    bool zero;
};

static bool mirror_should_stop(const struct job *job)
{
    const struct mirror_state *s = job->state;
    return s->failure != 0 || job_should_end(job);
}

static void mirror_progress(struct job *job, uint64_t done_bytes)
{
    struct mirror_state *s = job->state;
    job->done_bytes += done_bytes;
    job->total_bytes = job->done_bytes + s->in_flight_bytes + dirty_tracker_bytes(&s->dirty);
}

static int mirror_fail(struct job *job, const struct edge *where, const char *verb,
                       uint64_t offset_bytes, uint64_t length_bytes, int code)
{
    struct mirror_state *s = job->state;
    struct err err = ERR_INIT;
    bool source = where == s->source;
    char range[80] = "";
    if (s->failure != 0)
        return code;
    if (length_bytes > 0)
        snprintf(range, sizeof(range), "%" PRIu64 " bytes at offset %" PRIu64 " of ", length_bytes,
                 offset_bytes);
    err_set_errno(&err, code, "mirror job '%s': cannot %s %s%s node '%s'", job->id, verb, range,
                  source ? "source" : "target", where->child->name);
    if (job_handle_error(job, source ? s->options.on_source_error : s->options.on_target_error,
                         source, code) == 0) {
        log_warning("job", "%s", err.text);
        s->stumbles++;
        return MIRROR_AGAIN;
    }
    s->failure = code;
    job->err = err;
    return code;
}

/* After a stumble: until a user resumes the job, or for a while. -ECANCELED: it shall end. */
static int mirror_wait_again(struct job *job) MAY_WAIT
{
    if (job->pauses == 0 && !job_should_end(job))
        (void)co_queue_wait_until(&job->changed,
                                  loop_now_ns(graph_loop(job->list->graph)) + MIRROR_RETRY_NS);
    return job_pause_point(job);
}

/* --- claiming --- */

/* Looks at the stretch, whose marks have been cleared: how much of it, from its start, is one piece. */
static int mirror_look(struct job *job, struct mirror_piece *piece) MAY_WAIT
{
    struct mirror_state *s = job->state;
    uint64_t offset = piece->offset_bytes, region = s->dirty.region_bytes;
    struct extent extent;
    int ret = io_extents(s->source, offset, piece->length_bytes, &extent);
    if (ret < 0)
        return mirror_fail(job, s->source, "map", offset, piece->length_bytes, ret);
    piece->zero = (extent.flags & EXTENT_ZERO) != 0;
    uint64_t length = extent.length_bytes;
    if (length < piece->length_bytes)
        length = align_down(length, region);
    if (piece->zero && length > 0) {
        piece->length_bytes = length;
        return 0;
    }
    piece->zero = false;
    s->data_end_bytes = offset + length;
    uint64_t end = align_down(offset, MIRROR_PIECE_BYTES) + MIRROR_PIECE_BYTES;
    piece->length_bytes = MIN(piece->length_bytes, end - offset);
    return 0;
}

/* The next stretch of marked regions: at most a piece where it will be read, more where it may turn
 * out to be zeroes. *ret_look tells. Length 0: the sweep is over. */
static void mirror_next_dirty(const struct mirror_state *s, struct mirror_piece *piece,
                              bool *ret_look)
{
    uint64_t region = s->dirty.region_bytes, from = (s->cursor_bytes + region - 1) / region;
    uint64_t first = BITMAP_NONE;
    if (from < bitmap_bits(s->dirty.bits))
        first = bitmap_next_set(s->dirty.bits, from);
    /* The end stays the end for this sweep's other workers too. */
    *piece = (struct mirror_piece){.offset_bytes = s->dirty.node->length_bytes};
    if (first == BITMAP_NONE)
        return;
    uint64_t last = bitmap_next_clear(s->dirty.bits, first);
    uint64_t length_bytes = s->dirty.node->length_bytes;
    uint64_t offset = first * region;
    uint64_t end = last == BITMAP_NONE ? length_bytes : MIN(last * region, length_bytes);
    uint64_t piece_end = align_down(offset, MIRROR_PIECE_BYTES) + MIRROR_PIECE_BYTES;
    /* A short stretch was just written: it is hardly a hole, and asking costs as much as reading. */
    *ret_look = end - offset >= MIRROR_PIECE_BYTES && offset >= s->data_end_bytes;
    end = MIN(end, *ret_look ? offset + IO_MAX_ZERO_BYTES : piece_end);
    piece->offset_bytes = offset;
    piece->length_bytes = end - offset;
}

static void mirror_clear(struct mirror_state *s, const struct mirror_piece *piece)
{
    uint64_t region = s->dirty.region_bytes, first = piece->offset_bytes / region;
    uint64_t end = (piece->offset_bytes + piece->length_bytes + region - 1) / region;
    bitmap_clear_range(s->dirty.bits, first, end - first);
}

static int mirror_claim_locked(struct job *job, struct mirror_piece *ret_piece) MAY_WAIT
{
    struct mirror_state *s = job->state;
    struct mirror_piece piece;
    bool look = false;
    mirror_next_dirty(s, &piece, &look);
    uint64_t end = piece.offset_bytes + piece.length_bytes;
    if (piece.length_bytes > 0)
        mirror_clear(s, &piece);
    int ret = look ? mirror_look(job, &piece) : 0;
    if (ret < 0)
        piece.length_bytes = 0;
    /* What is left of the stretch has not been looked at, and is as it was. */
    uint64_t next = piece.offset_bytes + piece.length_bytes;
    dirty_tracker_mark(&s->dirty, next, end - next);
    if (ret == MIRROR_AGAIN)
        s->cursor_bytes = end; /* it is for the next sweep */
    if (ret < 0)
        return ret;
    s->cursor_bytes = next;
    s->in_flight_bytes += piece.length_bytes;
    *ret_piece = piece;
    return 0;
}

static int mirror_claim(struct job *job, struct mirror_piece *ret_piece) MAY_WAIT
{
    struct mirror_state *s = job->state;
    co_mutex_lock(&s->claim);
    int ret = mirror_claim_locked(job, ret_piece);
    co_mutex_unlock(&s->claim);
    return ret;
}

/* --- copying --- */

/* Who reads the chain sees the same after each write to its foot. */
static unsigned mirror_write_flags(const struct mirror_state *s)
{
    return s->options.kind == MIRROR_COPY ? 0 : IO_UNCHANGED;
}

static int mirror_zero(struct job *job, uint64_t offset, uint64_t length, uint64_t *moved) MAY_WAIT
{
    struct mirror_state *s = job->state;
    unsigned flags = mirror_write_flags(s) | (s->options.no_unmap ? 0 : IO_MAY_UNMAP);
    while (length > 0) {
        struct extent extent;
        int ret = io_extents(s->target, offset, length, &extent);
        if (ret < 0)
            return mirror_fail(job, s->target, "map", offset, length, ret);
        if ((extent.flags & EXTENT_ZERO) == 0) {
            struct io io = {.offset_bytes = offset,
                            .length_bytes = MIN(extent.length_bytes, MIRROR_ZERO_BYTES),
                            .flags = flags};
            extent.length_bytes = io.length_bytes;
            ret = io_zero(s->target, &io);
            if (ret < 0)
                return mirror_fail(job, s->target, "zero", offset, extent.length_bytes, ret);
            *moved += MIN(extent.length_bytes, MIRROR_PIECE_BYTES);
        }
        offset += extent.length_bytes;
        length -= extent.length_bytes;
        if (length > 0 && mirror_should_stop(job))
            return -ECANCELED;
    }
    return 0;
}

/* How much of the bytes, from their start, is of one kind, in whole regions. */
static size_t mirror_same_kind(const struct buf_slice *data, bool *ret_zero)
{
    size_t length = 0;
    while (length < data->length_bytes) {
        size_t piece = MIN(MIRROR_REGION_BYTES, data->length_bytes - length);
        bool zero = bytes_are_zero(data->bytes + length, piece);
        if (length == 0)
            *ret_zero = zero;
        else if (zero != *ret_zero)
            break;
        length += piece;
    }
    return length;
}

static int mirror_data(struct job *job, struct buf *buf, const struct mirror_piece *piece,
                       uint64_t *moved) MAY_WAIT
{
    struct mirror_state *s = job->state;
    struct io io = {.offset_bytes = piece->offset_bytes,
                    .length_bytes = piece->length_bytes,
                    .data = buf_slice_of(buf, 0, piece->length_bytes)};
    int ret = io_read(s->source, &io);
    if (ret < 0)
        return mirror_fail(job, s->source, "read", io.offset_bytes, io.length_bytes, ret);
    struct buf_slice rest = io.data;
    while (ret == 0 && rest.length_bytes > 0) {
        bool zero = false;
        io.data = buf_slice_sub(rest, 0, mirror_same_kind(&rest, &zero));
        io.length_bytes = io.data.length_bytes;
        if (zero) {
            ret = mirror_zero(job, io.offset_bytes, io.length_bytes, moved);
        } else {
            io.flags = mirror_write_flags(s);
            ret = io_write(s->target, &io);
            if (ret < 0)
                ret = mirror_fail(job, s->target, "write", io.offset_bytes, io.length_bytes, ret);
            *moved += io.length_bytes;
        }
        io.offset_bytes += io.length_bytes;
        rest = buf_slice_sub(rest, io.length_bytes, rest.length_bytes - io.length_bytes);
    }
    return ret;
}

/* Files in memory are read and written at once: the guest gets its turn after each piece. */
static void mirror_breathe(struct job *job, uint64_t turns) MAY_WAIT
{
    struct mirror_state *s = job->state;
    struct loop *loop = graph_loop(job->list->graph);
    if (loop_turns(loop) != turns)
        return;
    co_mutex_lock(&s->pace);
    co_sleep_until(loop_now_ns(loop));
    co_mutex_unlock(&s->pace);
}

static int mirror_copy(struct job *job, struct buf **buf, const struct mirror_piece *piece) MAY_WAIT
{
    struct mirror_state *s = job->state;
    struct loop *loop = graph_loop(job->list->graph);
    uint64_t moved = 0, turns = loop_turns(loop);
    struct range_lock lock;
    int ret = 0;
    if (s->options.write_blocking)
        range_lock_acquire(&s->copying, &lock, piece->offset_bytes, piece->length_bytes, true);
    if (piece->zero) {
        ret = mirror_zero(job, piece->offset_bytes, piece->length_bytes, &moved);
    } else {
        if (*buf == NULL)
            *buf = buf_alloc(loop_bufs(loop), MIRROR_PIECE_BYTES);
        ret = *buf == NULL ? -ENOMEM : mirror_data(job, *buf, piece, &moved);
    }
    if (s->options.write_blocking)
        range_lock_release(&s->copying, &lock);
    s->in_flight_bytes -= piece->length_bytes;
    if (ret < 0)
        dirty_tracker_mark(&s->dirty, piece->offset_bytes, piece->length_bytes);
    mirror_progress(job, ret < 0 ? 0 : piece->length_bytes);
    if (ret < 0)
        return ret;
    mirror_breathe(job, turns);
    if (job->pauses > 0)
        s->dirty.slow_ns = 0;
    /* Who waits for the job under a hold waits for neither a pause nor the speed limit. */
    return s->held ? 0 : job_throttle(job, moved);
}

static int mirror_work(struct job *job) MAY_WAIT
{
    const struct mirror_state *s = job->state;
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    while (!mirror_should_stop(job)) {
        struct mirror_piece piece = {0};
        int ret = mirror_claim(job, &piece);
        if (ret == 0 && piece.length_bytes == 0)
            return 0;
        if (ret == 0)
            ret = mirror_copy(job, &buf, &piece);
        /* The guest is not held for that. */
        if (ret == MIRROR_AGAIN && !s->held)
            ret = mirror_wait_again(job);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int mirror_worker(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    int ret = mirror_work(job);
    if (ret < 0 && ret != MIRROR_AGAIN && s->failure == 0)
        s->failure = ret;
    return ret;
}

/* All that is marked now, once, and what is marked ahead of the cursor meanwhile. */
static int mirror_sweep(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    uint64_t workers = MIN(s->options.buf_bytes / MIRROR_PIECE_BYTES, bitmap_count(s->dirty.bits));
    s->cursor_bytes = s->data_end_bytes = 0;
    int ret = job_run_workers(job, "mirror", workers, mirror_worker);
    if (job_should_end(job))
        return -ECANCELED;
    return ret < 0 ? ret : s->failure;
}

/* --- the run --- */

/* Marks what the source holds above its backing node (sync=top), or above the target of a commit. */
static int mirror_mark_held(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    const struct node *base = s->options.kind == MIRROR_COPY
                                  ? chain_next(chain_below_filters(s->source_node))
                                  : s->target->child;
    uint64_t offset = 0, length_bytes = s->source_node->length_bytes;
    for (unsigned looks = 1; offset < length_bytes; looks++) {
        bool held;
        uint64_t length;
        int ret = io_held(s->source, base, offset, length_bytes - offset, &held, &length);
        if (ret < 0) {
            ret = mirror_fail(job, s->source, "map", offset, length_bytes - offset, ret);
            if (ret == MIRROR_AGAIN)
                ret = mirror_wait_again(job);
            if (ret < 0)
                return ret;
            continue;
        }
        if (held)
            dirty_tracker_mark(&s->dirty, offset, length);
        offset += length;
        if (looks % 256 == 0)
            co_sleep_until(loop_now_ns(graph_loop(job->list->graph)));
        if (job_should_end(job))
            return -ECANCELED;
    }
    return 0;
}

/* A sweep that leaves more than half of what it found will not be the last but one: the guest is
 * slowed. Who wants the job itself slow gets no such haste. */
static void mirror_slow_guest(struct job *job, uint64_t found_bytes)
{
    struct mirror_state *s = job->state;
    if (job->speed_bytes > 0 || job->pauses > 0)
        s->dirty.slow_ns = 0;
    else if (dirty_tracker_bytes(&s->dirty) > found_bytes / 2)
        s->dirty.slow_ns = MIN(MAX(2 * s->dirty.slow_ns, MIRROR_SLOW_NS), DIRTY_MAX_SLOW_NS);
}

/* Until little is marked, or the guest is too fast; and nothing is marked for an error. */
static int mirror_catch_up(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    for (unsigned sweeps = 0; sweeps < MIRROR_MAX_SWEEPS; sweeps++) {
        uint64_t found_bytes = dirty_tracker_bytes(&s->dirty);
        unsigned stumbles = s->stumbles;
        int ret = mirror_sweep(job);
        if (ret < 0)
            return ret;
        if (s->stumbles != stumbles) {
            sweeps = 0;
            continue;
        }
        if (dirty_tracker_bytes(&s->dirty) <= MIRROR_NEAR_BYTES)
            break;
        mirror_slow_guest(job, found_bytes);
    }
    return 0;
}

static int mirror_flush(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    int ret = io_flush(s->target);
    return ret == 0 ? 0 : mirror_fail(job, s->target, "flush", 0, 0, ret);
}

/* Ready: keeps the target near until somebody asks for the end. */
static int mirror_keep_near(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    int ret = 0;
    while (ret == 0 && s->failure == 0 && !job->kept && !s->pivot) {
        if (bitmap_count(s->dirty.bits) == 0)
            co_queue_wait(&job->changed);
        else
            (void)co_queue_wait_until(&job->changed,
                                      loop_now_ns(graph_loop(job->list->graph)) + MIRROR_REST_NS);
        ret = job_pause_point(job);
        if (ret == 0 && bitmap_count(s->dirty.bits) > 0)
            ret = mirror_sweep(job);
    }
    return ret < 0 ? ret : s->failure;
}

/* All users of the source go to the target, which has the same bytes. The foot of a chain that a guest sat
 * on is its disk from now on. */
static int mirror_pivot(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    struct node *target = s->target->child;
    int ret = graph_set_perms(s->target, 0, PERM_ALL, &job->err);
    if (ret == 0)
        ret = graph_replace_node(job->list->graph, s->source_node, target, s->source, &job->err);
    if (ret == 0 && s->options.kind == MIRROR_COMMIT_ACTIVE)
        node_unref(TAKE_PTR(s->reopened));
    return ret;
}

/* Filters may have come above the nodes, but the edges must not lead elsewhere. */
static int mirror_check_edges(struct job *job)
{
    struct mirror_state *s = job->state;
    const struct node *lost = NULL;
    if (!graph_is_below(s->source_node, s->source->child))
        lost = s->source_node;
    else if (!graph_is_below(s->target_node, s->target->child))
        lost = s->target_node;
    if (lost == NULL)
        return 0;
    return err_set(&job->err, -EBUSY, "mirror job '%s': %s '%s' has been replaced", job->id,
                   lost == s->source_node ? "source" : "target", lost->name);
}

/* Under the hold: nothing is marked any more, so one sweep copies all. */
static int mirror_last_sweep(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    int ret = bitmap_count(s->dirty.bits) > 0 ? mirror_sweep(job) : 0;
    if (ret == 0 && bitmap_count(s->dirty.bits) > 0)
        ret = err_set(&job->err, -EIO, "mirror job '%s': node '%s' changes while it is held",
                      job->id, s->source_node->name);
    if (ret == 0)
        ret = mirror_flush(job);
    if (ret == 0)
        ret = mirror_check_edges(job);
    if (ret == 0)
        ret = s->failure;
    if (ret == 0 && s->pivot)
        ret = mirror_pivot(job);
    mirror_progress(job, 0);
    return ret;
}

static int mirror_try_finish(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    struct graph_drain drain;
    s->dirty.slow_ns = job->speed_bytes == 0 ? s->ready_slow_ns : 0;
    int ret = mirror_catch_up(job);
    /* Flushed before the hold as well: little is left for the one inside. */
    if (ret == 0)
        ret = mirror_flush(job);
    if (ret == 0)
        ret = mirror_catch_up(job);
    if (ret < 0)
        return ret;
    ret = graph_drain_begin_keeping(&s->source_node, 1, s->source, &drain);
    if (ret < 0)
        return err_no_memory(&job->err);
    s->held = true;
    s->dirty.slow_ns = 0;
    ret = job_should_end(job) ? -ECANCELED : mirror_last_sweep(job);
    s->held = false;
    graph_drain_end(&drain);
    return ret;
}

static int mirror_finish(struct job *job) MAY_WAIT
{
    /* While it waits to be told, the guest goes on, and neither is held nor slowed. */
    int ret = job->auto_finalize ? 0 : job_await_finalize(job);
    while (ret == 0) {
        ret = mirror_try_finish(job);
        if (ret != MIRROR_AGAIN)
            break;
        ret = mirror_wait_again(job);
    }
    return ret;
}

static int mirror_run(struct job *job) MAY_WAIT
{
    struct mirror_state *s = job->state;
    int ret = s->options.sync == MIRROR_SYNC_TOP ? mirror_mark_held(job) : 0;
    mirror_progress(job, 0);
    if (ret == 0)
        ret = mirror_catch_up(job);
    if (ret < 0)
        return ret;
    s->pivot = s->options.kind == MIRROR_COMMIT;
    if (s->pivot)
        return mirror_finish(job);
    mirror_progress(job, 0);
    s->ready_slow_ns = s->dirty.slow_ns;
    s->dirty.slow_ns = 0;
    job_set_ready(job);
    ret = mirror_keep_near(job);
    return ret < 0 ? ret : mirror_finish(job);
}

static int mirror_complete(struct job *job, struct err *err) MAY_WAIT
{
    struct mirror_state *s = job->state;
    int ret = node_check_blocked_above(s->source_node, "replace", err);
    if (ret < 0)
        return ret;
    s->pivot = true;
    co_queue_wake_all(&job->changed);
    return 0;
}

/* A backing node is mostly read-only: for the time of the job it is not. */
static int mirror_open_base(struct mirror_state *s, struct err *err) MAY_WAIT
{
    struct node *base = s->options.target;
    if (!base->read_only)
        return 0;
    int ret = graph_reopen(base, false, err);
    if (ret == 0)
        s->reopened = node_ref(base);
    return ret;
}

static void mirror_shut_base(struct mirror_state *s) MAY_WAIT
{
    struct node *base = TAKE_PTR(s->reopened);
    struct err err = ERR_INIT;
    if (base == NULL)
        return;
    if (graph_reopen(base, true, &err) < 0)
        log_warning("mirror", "node '%s' stays writable: %s", base->name, err.text);
    node_unref(base);
}

static void mirror_release(struct mirror_state *s) MAY_WAIT
{
    s->leaving = true;
    while (s->blocking > 0)
        co_queue_wait(&s->unblocked);
    dirty_tracker_remove(&s->dirty);
    graph_detach(s->source);
    graph_detach(s->target);
    mirror_shut_base(s);
    node_unref(s->source_node);
    node_unref(s->target_node);
    s->source = s->target = NULL;
    s->source_node = s->target_node = NULL;
    if (s->options.bitmap != NULL)
        dirty_bitmap_release(s->options.bitmap);
    s->options.bitmap = NULL;
}

static void mirror_clean(struct job *job) MAY_WAIT
{
    mirror_release(job->state);
}

static const struct job_driver mirror_driver = {
    .type = "mirror",
    .state_size = sizeof(struct mirror_state),
    .run = mirror_run,
    .complete = mirror_complete,
    .clean = mirror_clean,
    .keeps_copy_on_cancel = true,
};

/* To those who ask both are commits. */
static const struct job_driver mirror_commit_active_driver = {
    .type = "commit",
    .state_size = sizeof(struct mirror_state),
    .run = mirror_run,
    .complete = mirror_complete,
    .clean = mirror_clean,
    .keeps_copy_on_cancel = true,
};

static const struct job_driver mirror_commit_driver = {
    .type = "commit",
    .state_size = sizeof(struct mirror_state),
    .run = mirror_run,
    .clean = mirror_clean,
};

/* --- write_blocking --- */

static void mirror_copy_change(struct job *job, uint64_t offset, uint64_t length) MAY_WAIT
{
    struct mirror_state *s = job->state;
    bool reading = false;
    uint64_t done = 0;
    int ret = mirror_blocking_copy(s->dirty.node, s->target, &s->copying, offset, length,
                                   s->options.no_unmap ? 0 : IO_MAY_UNMAP, &done, &reading);
    if (ret < 0 && ret != -EAGAIN)
        (void)mirror_fail(job, reading ? s->source : s->target, reading ? "read" : "write",
                          offset + done, length - done, ret);
    if (ret < 0)
        dirty_tracker_mark(&s->dirty, offset + done, length - done);
    if (s->failure != 0)
        co_queue_wake_all(&job->changed);
}

static void mirror_changed(struct dirty_tracker *tracker, uint64_t offset_bytes,
                           uint64_t length_bytes) MAY_WAIT
{
    struct job *job = tracker->arg;
    struct mirror_state *s = job->state;
    if (s->leaving || job->pauses > 0 || length_bytes > MIRROR_BLOCKING_BYTES ||
        mirror_should_stop(job)) {
        dirty_tracker_mark(tracker, offset_bytes, length_bytes);
        return;
    }
    s->blocking++;
    mirror_copy_change(job, offset_bytes, length_bytes);
    if (--s->blocking == 0)
        co_queue_wake_all(&s->unblocked);
}

/* --- making --- */

static void mirror_marked(void *arg)
{
    struct job *job = arg;
    if (job->status == JOB_READY)
        co_queue_wake_all(&job->changed);
}

static void mirror_resized(struct edge *edge)
{
    struct mirror_state *s = edge->user;
    if (s->job == NULL || s->failure != 0)
        return;
    s->failure = err_set(&s->job->err, -EBUSY,
                         "mirror job '%s': %s node '%s' has now %" PRIu64 " bytes", s->job->id,
                         edge->name, edge->child->name, edge->child->length_bytes);
    co_queue_wake_all(&s->job->changed);
}

static const char *mirror_id(struct edge *edge)
{
    const struct mirror_state *s = edge->user;
    return s->job != NULL ? s->job->id : "";
}

static void mirror_describe(struct edge *edge, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes, "the %s of mirror job '%s'", edge->name, mirror_id(edge));
}

static const struct edge_user_ops mirror_user_ops = {
    .kind = EDGE_USER_JOB,
    .id = mirror_id,
    .resized = mirror_resized,
    .describe = mirror_describe,
};

static int mirror_check(const struct mirror_options *options, struct err *err)
{
    struct node *source = node_check(options->source), *target = node_check(options->target);
    bool commit = options->kind != MIRROR_COPY;
    int ret = node_check_blocked(source, commit ? "commit" : "mirror", err);
    if (ret == 0)
        ret = node_check_blocked(target, commit ? "commit to" : "mirror to", err);
    if (ret < 0)
        return ret;
    if (chain_below_filters(source) == chain_below_filters(target))
        return err_set(err, -EINVAL, "a mirror of node '%s' cannot go to '%s': it is the same disk",
                       source->name, target->name);
    if (commit && !chain_contains(source, target))
        return err_set(err, -EINVAL, "'%s' is not in this backing file chain", target->name);
    if (!commit && graph_is_below(target, source))
        return err_set(err, -EINVAL, "a mirror of node '%s' cannot go to '%s', a part of it",
                       source->name, target->name);
    if (source->length_bytes != target->length_bytes)
        return err_set(err, -EINVAL,
                       "source '%s' has %" PRIu64 " bytes, and target '%s' %" PRIu64
                       ": they must be equal",
                       source->name, source->length_bytes, target->name, target->length_bytes);
    if (source->length_bytes == 0)
        return err_set(err, -EINVAL, "node '%s' is empty: there is nothing to mirror",
                       source->name);
    if (target->read_only && !commit)
        return err_set(err, -EPERM, "target '%s' is read-only", target->name);
    uint64_t region = options->region_bytes;
    if (region != 0 && (!is_power_of_two(region) || region < MIRROR_REGION_MIN_BYTES ||
                        region > MIRROR_PIECE_BYTES))
        return err_set(err, -EINVAL,
                       "granularity %" PRIu64 ": a power of two from %u to %u is right", region,
                       MIRROR_REGION_MIN_BYTES, MIRROR_PIECE_BYTES);
    return 0;
}

/* Regions are not smaller than what the target takes at once. */
static uint64_t mirror_region_bytes(const struct mirror_options *options)
{
    uint64_t region = options->region_bytes != 0 ? options->region_bytes : MIRROR_REGION_BYTES;
    uint64_t align = MAX(options->source->limits.request_align_bytes,
                         options->target->limits.request_align_bytes);
    return MIN(MAX(region, align), MIRROR_PIECE_BYTES);
}

static int mirror_attach(struct graph *graph, struct mirror_state *s, struct err *err) MAY_WAIT
{
    bool commit = s->options.kind != MIRROR_COPY;
    int ret = commit ? mirror_open_base(s, err) : 0;
    if (ret == 0)
        ret = graph_attach_root(graph, s->options.target, "target",
                                PERM_CONSISTENT_READ | (commit ? PERM_WRITE_UNCHANGED : PERM_WRITE),
                                PERM_ALL & ~(unsigned)(PERM_WRITE | PERM_RESIZE), &mirror_user_ops,
                                s, &s->target, err);
    if (ret == 0)
        ret = graph_attach_root(graph, s->options.source, "source", PERM_CONSISTENT_READ,
                                PERM_ALL & ~(unsigned)PERM_RESIZE, &mirror_user_ops, s, &s->source,
                                err);
    /* Meanwhile the nodes may have changed. */
    if (ret == 0)
        ret = mirror_check(&s->options, err);
    if (ret == 0 && commit)
        ret = chain_check_private(s->options.source, s->options.target, s->target, err);
    return ret;
}

/* Waits only when it fails: nobody sees a job that is half made. */
static int mirror_make(struct job_list *list, const struct mirror_state *attached,
                       struct job **ret_job, struct err *err) MAY_WAIT
{
    struct job *job;
    const struct job_driver *driver = attached->options.kind == MIRROR_COPY ? &mirror_driver
                                      : attached->options.kind == MIRROR_COMMIT
                                          ? &mirror_commit_driver
                                          : &mirror_commit_active_driver;
    int ret = job_new(list, driver, attached->options.id, &job, err);
    if (ret < 0)
        return ret;
    struct mirror_state *s = job->state;
    *s = *attached;
    s->dirty.marked = mirror_marked;
    s->dirty.arg = job;
    ret = dirty_tracker_add(&s->dirty, s->options.source, mirror_region_bytes(&s->options), err);
    if (ret < 0) {
        *s = (struct mirror_state){0}; /* the caller's */
        job_drop(job);
        return ret;
    }
    if (s->options.sync == MIRROR_SYNC_FULL)
        bitmap_set_range(s->dirty.bits, 0, bitmap_bits(s->dirty.bits));
    else if (s->options.sync == MIRROR_SYNC_BITMAP)
        dirty_tracker_merge(&s->dirty, s->options.bitmap->tracker.bits,
                            s->options.bitmap->tracker.region_bytes);
    s->job = job;
    s->options.id = NULL; /* the job has its own copy */
    s->source->user = s->target->user = s;
    job->speed_bytes = s->options.speed_bytes;
    co_mutex_init(&s->claim);
    co_mutex_init(&s->pace);
    range_locks_init(&s->copying);
    co_queue_init(&s->unblocked);
    if (s->options.write_blocking)
        s->dirty.changed = mirror_changed;
    mirror_progress(job, 0);
    *ret_job = job;
    return 0;
}

int mirror_new(struct job_list *list, const struct mirror_options *options, struct job **ret_job,
               struct err *err)
{
    int ret = mirror_check(options, err);
    if (ret < 0)
        return ret;
    struct mirror_state s = {.options = *options};
    uint64_t buf_bytes = options->buf_bytes != 0 ? options->buf_bytes : MIRROR_BUF_BYTES;
    s.options.buf_bytes = MAX(MIN(buf_bytes, MIRROR_BUF_MAX_BYTES), MIRROR_PIECE_BYTES);
    s.source_node = node_ref(options->source);
    if (options->bitmap != NULL)
        dirty_bitmap_hold(options->bitmap);
    s.target_node = node_ref(options->target);
    ret = mirror_attach(list->graph, &s, err);
    if (ret == 0)
        ret = mirror_make(list, &s, ret_job, err);
    if (ret < 0)
        mirror_release(&s);
    return ret;
}
