/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "jobs/commit.h"

#include "block/io.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* How many look-ups pass before the loop gets a turn: they may never wait by themselves. */
#define COMMIT_LOOKUPS_PER_TURN 256u
/* Shorter zeroes are written like other data: a hole costs file systems milliseconds, whatever its
 * size, and what lies there had its room before. */
#define COMMIT_ZERO_BYTES       (1024u * 1024)
_Static_assert(COMMIT_ZERO_BYTES <= COMMIT_PIECE_BYTES, "a piece can be zero");

struct commit_state {
    struct commit_options options;
    uint64_t length_bytes;
    uint64_t cursor_bytes; /* pieces before it have been claimed */
    struct co_mutex claim; /* a look-up may wait between reading and moving the cursor */
    struct co_mutex pace;  /* of pieces that did not wait for anything: one a turn */
    unsigned lookups;
    int failure; /* of any worker: the others end at their next piece */
};

static int commit_fail(struct job *job, const struct node *where, const char *verb,
                       uint64_t offset_bytes, uint64_t length_bytes, int code)
{
    struct commit_state *s = job->state;
    if (s->failure == 0) {
        s->failure = code;
        err_set_errno(&job->err, code,
                      "commit job '%s': cannot %s %" PRIu64 " bytes at offset %" PRIu64
                      " of node '%s'",
                      job->id, verb, length_bytes, offset_bytes, where->name);
        if (s->options.failed != NULL)
            s->options.failed(s->options.arg, where, offset_bytes, length_bytes, code);
    }
    return code;
}

/* Until the loop has looked for what else there is to do: co_yield() would not go that far. */
static void commit_breathe(const struct job *job) MAY_WAIT
{
    co_sleep_until(loop_now_ns(graph_loop(job->list->graph)));
}

/* A look-up that fails is reported here. */
static int commit_held(struct job *job, uint64_t offset, uint64_t end, bool *ret_held,
                       uint64_t *ret_length) MAY_WAIT
{
    struct commit_state *s = job->state;
    if (++s->lookups % COMMIT_LOOKUPS_PER_TURN == 0)
        commit_breathe(job);
    int ret = io_held(s->options.from, s->options.base(s->options.arg), offset, end - offset,
                      ret_held, ret_length);
    return ret == 0 ? 0
                    : commit_fail(job, s->options.from->child, "map", offset, end - offset, ret);
}

/* The first held stretch in [offset, end): *ret_length 0 when there is none. */
static int commit_next_held(struct job *job, uint64_t offset, uint64_t end, uint64_t *ret_offset,
                            uint64_t *ret_length) MAY_WAIT
{
    while (offset < end) {
        bool held;
        uint64_t length;
        int ret = commit_held(job, offset, end, &held, &length);
        if (ret < 0)
            return ret;
        if (held) {
            *ret_offset = offset;
            *ret_length = length;
            return 0;
        }
        offset += length;
    }
    *ret_offset = end;
    *ret_length = 0;
    return 0;
}

/* Look-ups end where the layer changes; a copy goes on as long as any of them holds the data. */
static int commit_extend_held(struct job *job, uint64_t offset, uint64_t end, uint64_t *length)
    MAY_WAIT
{
    bool held = true;
    while (held && offset + *length < end) {
        uint64_t more;
        int ret = commit_held(job, offset + *length, end, &held, &more);
        if (ret < 0)
            return ret;
        if (held)
            *length += more;
    }
    return 0;
}

/* --- copying --- */

static int commit_copy_zero(struct job *job, uint64_t offset, uint64_t length) MAY_WAIT
{
    struct commit_state *s = job->state;
    struct io io = {.offset_bytes = offset, .length_bytes = length, .flags = IO_MAY_UNMAP};
    int ret = io_zero(s->options.to, &io);
    return ret == 0 ? 0 : commit_fail(job, s->options.to->child, "zero", offset, length, ret);
}

static int commit_write(struct job *job, struct io *io) MAY_WAIT
{
    struct commit_state *s = job->state;
    int ret = io_write(s->options.to, io);
    return ret == 0 ? 0
                    : commit_fail(job, s->options.to->child, "write", io->offset_bytes,
                                  io->length_bytes, ret);
}

static int commit_copy_data(struct job *job, struct buf *buf, uint64_t offset, uint64_t length)
    MAY_WAIT
{
    struct commit_state *s = job->state;
    struct io io = {
        .offset_bytes = offset, .length_bytes = length, .data = buf_slice_of(buf, 0, length)};
    int ret = io_read(s->options.from, &io);
    if (ret < 0)
        return commit_fail(job, s->options.from->child, "read", offset, length, ret);
    if (length >= COMMIT_ZERO_BYTES && bytes_are_zero(buf->bytes, length))
        return commit_copy_zero(job, offset, length);
    return commit_write(job, &io);
}

/* One held stretch: long zeroes that a layer knows as such are not read. */
static int commit_copy_stretch(struct job *job, struct buf *buf, uint64_t offset, uint64_t length)
    MAY_WAIT
{
    struct commit_state *s = job->state;
    while (length > 0) {
        struct extent extent;
        int ret = io_extents(s->options.from, offset, length, &extent);
        if (ret < 0)
            return commit_fail(job, s->options.from->child, "map", offset, length, ret);
        bool zero = (extent.flags & EXTENT_ZERO) != 0 &&
                    MIN(extent.length_bytes, length) >= COMMIT_ZERO_BYTES;
        /* Data is read to the end of the stretch at once: overlays hold it block by block, and one
         * look-up for each would cost more than the reading. */
        uint64_t piece = zero ? MIN(extent.length_bytes, length) : length;
        ret = zero ? commit_copy_zero(job, offset, piece)
                   : commit_copy_data(job, buf, offset, piece);
        if (ret < 0)
            return ret;
        offset += piece;
        length -= piece;
    }
    return 0;
}

/* What the layers hold of [offset, offset + length), which is whole regions. Its marks go before it is
 * copied: who marks it afterwards waits for the lock, so nothing is missed. After a failure a new job
 * copies all that is held. */
static int commit_copy_locked(struct job *job, struct buf *buf, uint64_t offset, uint64_t length,
                              uint64_t *ret_copied) MAY_WAIT
{
    struct commit_state *s = job->state;
    uint64_t end = MIN(offset + length, s->length_bytes);
    uint64_t first = offset / s->options.region_bytes;
    uint64_t count = (end - offset + s->options.region_bytes - 1) / s->options.region_bytes;
    bitmap_clear_range(s->options.rewritten, first, count);
    *ret_copied = 0;
    while (offset < end) {
        uint64_t held_offset, held_length;
        int ret = commit_next_held(job, offset, end, &held_offset, &held_length);
        if (ret == 0 && held_length > 0)
            ret = commit_extend_held(job, held_offset, end, &held_length);
        if (ret == 0 && held_length > 0)
            ret = commit_copy_stretch(job, buf, held_offset, held_length);
        if (ret < 0)
            return ret;
        *ret_copied += held_length;
        offset = held_offset + held_length;
    }
    return 0;
}

static uint64_t commit_turns(const struct job *job)
{
    return loop_turns(graph_loop(job->list->graph));
}

/* Files in memory are read and written at once: the guest gets its turn after each piece. */
static int commit_copy(struct job *job, struct buf *buf, uint64_t offset, uint64_t length,
                       uint64_t *ret_copied) MAY_WAIT
{
    struct commit_state *s = job->state;
    struct range_lock lock;
    uint64_t turns = commit_turns(job);
    range_lock_acquire(s->options.locks, &lock, offset, length, true);
    int ret = commit_copy_locked(job, buf, offset, length, ret_copied);
    range_lock_release(s->options.locks, &lock);
    if (commit_turns(job) == turns) {
        co_mutex_lock(&s->pace);
        commit_breathe(job);
        co_mutex_unlock(&s->pace);
    }
    return ret;
}

/* --- the first pass --- */

/* The next piece that holds anything: whole regions, within one aligned stretch of the piece's size.
 * Length 0: the end. */
static int commit_claim(struct job *job, uint64_t *ret_offset, uint64_t *ret_length) MAY_WAIT
{
    struct commit_state *s = job->state;
    uint64_t held_offset, held_length;
    co_mutex_lock(&s->claim);
    int ret = commit_next_held(job, s->cursor_bytes, s->length_bytes, &held_offset, &held_length);
    if (ret == 0 && held_length == 0) {
        s->cursor_bytes = s->length_bytes;
        *ret_length = 0;
    } else if (ret == 0) {
        *ret_offset = align_down(held_offset, s->options.region_bytes);
        uint64_t end = align_down(held_offset, COMMIT_PIECE_BYTES) + COMMIT_PIECE_BYTES;
        *ret_length = end - *ret_offset;
        s->cursor_bytes = MIN(end, s->length_bytes);
    }
    co_mutex_unlock(&s->claim);
    return ret;
}

static int commit_work(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(job->list->graph)), COMMIT_PIECE_BYTES);
    if (buf == NULL)
        return -ENOMEM;
    while (s->failure == 0 && !job_should_end(job)) {
        uint64_t offset = 0, length = 0, copied = 0;
        int ret = commit_claim(job, &offset, &length);
        if (ret < 0 || length == 0)
            return ret;
        ret = commit_copy(job, buf, offset, length, &copied);
        if (ret < 0)
            return ret;
        job->done_bytes += copied;
        ret = job_throttle(job, copied);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int commit_first_pass(struct job *job) MAY_WAIT
{
    int ret = job_run_workers(job, "commit", COMMIT_WORKERS, commit_work);
    return job_should_end(job) ? -ECANCELED : ret;
}

/* How much there is to do: for the progress. */
static int commit_count(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    uint64_t offset = 0;
    while (offset < s->length_bytes) {
        uint64_t held_offset, held_length;
        int ret = commit_next_held(job, offset, s->length_bytes, &held_offset, &held_length);
        if (ret < 0)
            return ret;
        job->total_bytes += held_length;
        offset = held_offset + held_length;
        if (job_should_end(job))
            return -ECANCELED;
    }
    return 0;
}

/* --- what was rewritten meanwhile --- */

static int commit_rewritten(struct job *job, struct buf *buf, bool held) MAY_WAIT
{
    struct commit_state *s = job->state;
    uint64_t region = s->options.region_bytes;
    uint64_t bit = bitmap_next_set(s->options.rewritten, 0);
    while (bit != BITMAP_NONE) {
        uint64_t copied;
        int ret = commit_copy(job, buf, bit * region, region, &copied);
        if (ret < 0)
            return ret;
        job->total_bytes += copied;
        job->done_bytes += copied;
        /* Under the hold the guest waits: neither pause nor speed limit apply. */
        ret = held ? 0 : job_throttle(job, copied);
        if (ret < 0)
            return ret;
        bit = bitmap_next_set(s->options.rewritten, bit + 1);
    }
    return 0;
}

static int commit_flush(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    int ret = io_flush(s->options.to);
    return ret == 0 ? 0 : commit_fail(job, s->options.to->child, "flush", 0, 0, ret);
}

static void commit_call_begin(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    if (s->options.begin != NULL)
        s->options.begin(s->options.arg);
}

static int commit_call_hold(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    return s->options.hold(s->options.arg, &job->err);
}

static int commit_call_finish(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    return s->options.finish(s->options.arg, &job->err);
}

static void commit_call_release(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    s->options.release(s->options.arg);
}

static int commit_last_step(struct job *job, struct buf *buf) MAY_WAIT
{
    int ret = commit_call_hold(job);
    if (ret < 0)
        return ret;
    ret = job_should_end(job) ? -ECANCELED : commit_rewritten(job, buf, true);
    if (ret == 0)
        ret = commit_flush(job);
    if (ret == 0)
        ret = commit_call_finish(job);
    commit_call_release(job);
    return ret;
}

static int commit_run(struct job *job) MAY_WAIT
{
    struct commit_state *s = job->state;
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(job->list->graph)), COMMIT_PIECE_BYTES);
    if (buf == NULL)
        return err_no_memory(&job->err);
    commit_call_begin(job);
    int ret = commit_count(job);
    if (ret == 0)
        ret = commit_first_pass(job);
    if (ret < 0)
        return ret;
    if (s->options.copied != NULL)
        s->options.copied(s->options.arg);
    ret = commit_rewritten(job, buf, false);
    /* Flushed before the hold as well: little is left for the one inside. */
    if (ret == 0)
        ret = commit_flush(job);
    if (ret == 0)
        ret = job_pause_point(job);
    return ret < 0 ? ret : commit_last_step(job, buf);
}

static const struct job_driver commit_driver = {
    .type = "commit",
    .state_size = sizeof(struct commit_state),
    .run = commit_run,
};

int commit_new(struct job_list *list, const struct commit_options *options, struct job **ret_job,
               struct err *err)
{
    assert(is_power_of_two(options->region_bytes));
    assert(options->region_bytes <= COMMIT_PIECE_BYTES);
    struct job *job;
    int ret = job_new(list, &commit_driver, options->id, &job, err);
    if (ret < 0)
        return ret;
    struct commit_state *s = job->state;
    s->options = *options;
    s->options.id = NULL; /* the job has its own copy */
    s->length_bytes = options->to->child->length_bytes;
    co_mutex_init(&s->claim);
    co_mutex_init(&s->pace);
    *ret_job = job;
    return 0;
}
