/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "jobs/backup.h"

#include "base/log.h"
#include "block/io.h"
#include "drivers/copy_before_write.h"
#include "jobs/chain.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* How many look-ups pass before the loop gets a turn: they may never wait by themselves. */
#define LOOKUPS_PER_TURN 256u

struct backup_state {
    struct backup_options options;
    struct edge *source;   /* keeps the source; the job reads through the filter */
    struct cbw cbw;        /* hidden: the target */
    struct bitmap *taken;  /* what the bitmap had marked; NULL: no bitmap */
    uint64_t cursor_bytes; /* of this sweep */
    bool failed_pieces;    /* and it was to be ignored: there will be another sweep */
    struct co_mutex pace;  /* of pieces that did not wait for anything: one a turn */
    int failure;
};

/* The guest's writes copy as well. */
static void backup_count(struct job *job)
{
    struct backup_state *s = job->state;
    if (s->cbw.filter == NULL)
        return;
    job->done_bytes = cbw_stats(s->cbw.filter).copied_bytes;
    job->total_bytes = job->done_bytes + dirty_tracker_bytes(cbw_map(s->cbw.filter));
}

/* A copy for a guest's write has failed: from then on the target is worth nothing. */
static int backup_check_broken(struct job *job)
{
    struct backup_state *s = job->state;
    struct cbw_error error;
    int code = cbw_broken(s->cbw.filter, &error);
    if (code == 0 || s->failure != 0)
        return s->failure;
    s->failure = code;
    err_set_errno(&job->err, code,
                  "backup job '%s': cannot save %" PRIu64 " bytes at offset %" PRIu64
                  " of node '%s' before a guest's write",
                  job->id, error.length_bytes, error.offset_bytes, s->cbw.disk->name);
    job_report_error(job, error.reading);
    return code;
}

static bool backup_should_stop(struct job *job)
{
    const struct backup_state *s = job->state;
    return s->failure != 0 || backup_check_broken(job) != 0 || job_should_end(job);
}

static int backup_fail(struct job *job, const char *verb, const struct node *node, uint64_t offset,
                       uint64_t length, int code)
{
    struct backup_state *s = job->state;
    if (s->failure == 0) {
        s->failure = code;
        err_set_errno(&job->err, code,
                      "backup job '%s': cannot %s %" PRIu64 " bytes at offset %" PRIu64
                      " of node '%s'",
                      job->id, verb, length, offset, node->name);
    }
    return code;
}

/* --- what need not be copied --- */

/* sync=top: what the source does not hold itself need not be saved. What a guest has written since the
 * start is saved already, so this may take its time. */
static int backup_skip_backing(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    struct dirty_tracker *map = cbw_map(s->cbw.filter);
    const struct node *backing = chain_next(chain_below_filters(s->cbw.disk));
    uint64_t offset = 0, end = s->cbw.disk->length_bytes, region = map->region_bytes;
    uint64_t held_until = 0; /* no region before it may be skipped */
    for (unsigned looks = 1; offset < end; looks++) {
        bool held;
        uint64_t length;
        int ret = io_held(s->source, backing, offset, end - offset, &held, &length);
        if (ret < 0)
            return backup_fail(job, "map", s->cbw.disk, offset, end - offset, ret);
        uint64_t first = align_up(MAX(offset, held_until), region), past = offset + length;
        if (held)
            held_until = past;
        else if (past < end)
            past = align_down(past, region);
        if (!held && first < past)
            dirty_tracker_unmark(map, first, past - first);
        offset += length;
        if (looks % LOOKUPS_PER_TURN == 0)
            co_sleep_until(loop_now_ns(graph_loop(job->list->graph)));
        if (backup_should_stop(job))
            return s->failure != 0 ? s->failure : -ECANCELED;
    }
    return 0;
}

/* --- copying --- */

/* The next unsaved stretch within one aligned piece; length 0: the sweep is over. */
static void backup_claim(struct backup_state *s, uint64_t *ret_offset, uint64_t *ret_length)
{
    const struct dirty_tracker *map = cbw_map(s->cbw.filter);
    uint64_t end = s->cbw.disk->length_bytes, length = 0;
    *ret_length = 0;
    while (s->cursor_bytes < end) {
        bool unsaved = dirty_tracker_look(map, s->cursor_bytes, end - s->cursor_bytes, &length);
        if (unsaved) {
            *ret_offset = s->cursor_bytes;
            uint64_t piece_end = align_down(*ret_offset, CBW_COPY_MAX_BYTES) + CBW_COPY_MAX_BYTES;
            *ret_length = MIN(length, piece_end - *ret_offset);
            s->cursor_bytes += *ret_length;
            return;
        }
        s->cursor_bytes += length;
    }
}

/* Files in memory are read and written at once: the guest gets its turn after each piece. */
static void backup_breathe(struct job *job, uint64_t turns) MAY_WAIT
{
    struct backup_state *s = job->state;
    struct loop *loop = graph_loop(job->list->graph);
    if (loop_turns(loop) != turns)
        return;
    co_mutex_lock(&s->pace);
    co_sleep_until(loop_now_ns(loop));
    co_mutex_unlock(&s->pace);
}

static int backup_copy(struct job *job, uint64_t offset, uint64_t length) MAY_WAIT
{
    struct backup_state *s = job->state;
    uint64_t copied = 0, turns = loop_turns(graph_loop(job->list->graph));
    bool reading = false;
    int ret = cbw_copy_ahead(s->cbw.filter, offset, length, &copied, &reading);
    if (ret < 0 && backup_check_broken(job) != 0)
        return s->failure;
    if (ret < 0 && s->failure == 0) {
        enum job_on_error on_error = reading ? s->options.on_source_error
                                             : s->options.on_target_error;
        s->failed_pieces = true;
        if (job_handle_error(job, on_error, reading, ret) < 0)
            return backup_fail(job, reading ? "read" : "write",
                               reading ? s->cbw.disk : s->cbw.hidden, offset, length, ret);
    }
    backup_breathe(job, turns);
    return job_throttle(job, copied);
}

static int backup_work(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    while (!backup_should_stop(job)) {
        uint64_t offset = 0, length = 0;
        backup_claim(s, &offset, &length);
        int ret = length > 0 ? backup_copy(job, offset, length) : 0;
        if (ret < 0 || length == 0)
            return ret;
    }
    return s->failure;
}

static int backup_sweep(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    s->cursor_bytes = 0;
    s->failed_pieces = false;
    int ret = job_run_workers(job, "backup", BACKUP_WORKERS, backup_work);
    return job_should_end(job) && s->failure == 0 ? -ECANCELED : ret;
}

static int backup_copy_all(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    int ret = backup_sweep(job);
    while (ret == 0 && s->failed_pieces) {
        uint64_t until_ns = loop_now_ns(graph_loop(job->list->graph)) + BACKUP_RETRY_NS;
        (void)co_queue_wait_until(&job->changed, until_ns);
        ret = job_pause_point(job);
        if (ret == 0)
            ret = backup_sweep(job);
    }
    return ret;
}

/* sync=none: the guest's writes do all the work. */
static int backup_wait_for_end(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    while (!backup_should_stop(job)) {
        co_queue_wait(&job->changed);
        int ret = job_pause_point(job);
        if (ret < 0)
            return ret;
    }
    return s->failure != 0 ? s->failure : -ECANCELED;
}

static int backup_run(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    int ret = 0;
    if (s->options.sync == BACKUP_SYNC_NONE)
        return backup_wait_for_end(job);
    if (s->options.sync == BACKUP_SYNC_TOP)
        ret = backup_skip_backing(job);
    if (ret == 0)
        ret = backup_copy_all(job);
    if (ret == 0)
        ret = backup_check_broken(job);
    if (ret < 0)
        return ret;
    ret = cbw_flush_target(s->cbw.filter);
    return ret == 0 ? 0 : backup_fail(job, "flush", s->cbw.hidden, 0, 0, ret);
}

/* --- its end --- */

static void backup_settle_bitmap(struct backup_state *s, bool success)
{
    struct dirty_bitmap *bitmap = s->options.bitmap;
    if (s->taken == NULL)
        return;
    const struct dirty_tracker *rest = cbw_map(s->cbw.filter);
    if (s->options.bitmap_mode == BACKUP_BITMAP_NEVER ||
        (!success && s->options.bitmap_mode == BACKUP_BITMAP_ON_SUCCESS))
        dirty_tracker_merge(&bitmap->tracker, s->taken, bitmap->tracker.region_bytes);
    else if (!success)
        dirty_tracker_merge(&bitmap->tracker, rest->bits, rest->region_bytes);
    bitmap_free(s->taken);
    s->taken = NULL;
}

/* --- making --- */

static void backup_copy_failed(void *arg, const char *operation, const struct node *where,
                               uint64_t offset_bytes, uint64_t length_bytes, int code)
{
    struct job *job = arg;
    co_queue_wake_all(&job->changed);
}

static void backup_describe(struct edge *edge, char *text, size_t text_bytes)
{
    const struct job *job = edge->user;
    snprintf(text, text_bytes, "the source of backup job '%s'", job != NULL ? job->id : "(new)");
}

static const char *backup_id(struct edge *edge)
{
    const struct job *job = edge->user;
    return job != NULL ? job->id : "";
}

static const struct edge_user_ops backup_source_ops = {
    .kind = EDGE_USER_JOB,
    .id = backup_id,
    .describe = backup_describe,
};

static int backup_check(const struct backup_options *options, struct err *err)
{
    struct node *source = node_check(options->source), *target = node_check(options->target);
    int ret = node_check_blocked(source, "back up", err);
    if (ret == 0)
        ret = node_check_blocked(target, "back up to", err);
    if (ret < 0)
        return ret;
    if (chain_below_filters(source) == chain_below_filters(target))
        return err_set(err, -EINVAL, "Source and target cannot be the same");
    if (graph_is_below(target, source))
        return err_set(err, -EINVAL, "a backup of node '%s' cannot go to '%s', a part of it",
                       source->name, target->name);
    if (source->length_bytes != target->length_bytes)
        return err_set(err, -EINVAL,
                       "Source and target image have different sizes (%" PRIu64 " and %" PRIu64
                       " bytes)",
                       source->length_bytes, target->length_bytes);
    if (target->read_only)
        return err_set(err, -EPERM, "target '%s' is read-only", target->name);
    return 0;
}

/* Nobody writes meanwhile: the filter and the bitmap begin at one moment. */
static int backup_begin_drained(struct graph *graph, struct backup_state *s, struct err *err)
    MAY_WAIT
{
    const struct backup_options *options = &s->options;
    int ret = cbw_insert_with_map(graph, options->source, options->target, options->filter_name,
                                  &s->cbw, err);
    if (ret == 0 && options->bitmap != NULL) {
        s->taken = dirty_bitmap_take(options->bitmap);
        if (s->taken == NULL)
            ret = err_no_memory(err);
    }
    if (ret < 0) {
        struct err ignored = ERR_INIT;
        (void)cbw_remove(graph, &s->cbw, &ignored);
        return ret;
    }
    struct dirty_tracker *map = cbw_map(s->cbw.filter);
    if (options->sync == BACKUP_SYNC_BITMAP) {
        bitmap_clear_all(map->bits);
        dirty_tracker_merge(map, s->taken, options->bitmap->tracker.region_bytes);
    }
    return 0;
}

static int backup_begin(struct graph *graph, struct backup_state *s, struct err *err) MAY_WAIT
{
    struct node *source = s->options.source;
    struct graph_drain drain;
    int ret = graph_attach_root(graph, source, "source", PERM_CONSISTENT_READ,
                                PERM_ALL & ~(unsigned)PERM_RESIZE, &backup_source_ops, NULL,
                                &s->source, err);
    if (ret < 0)
        return ret;
    ret = graph_drain_begin(&source, 1, &drain);
    if (ret == 0) {
        /* Meanwhile the nodes may have changed. */
        ret = backup_check(&s->options, err);
        if (ret == 0)
            ret = backup_begin_drained(graph, s, err);
        graph_drain_end(&drain);
    } else {
        (void)err_no_memory(err);
    }
    return ret;
}

/* Takes back what backup_begin() has made. */
static void backup_release(struct job_list *list, struct backup_state *s, bool success) MAY_WAIT
{
    struct err err = ERR_INIT;
    backup_settle_bitmap(s, success);
    if (s->options.bitmap != NULL)
        dirty_bitmap_release(s->options.bitmap);
    if (cbw_remove(list->graph, &s->cbw, &err) < 0) {
        /* Nothing comes of what it copies: it passes on what it gets. */
        log_error("backup", "filter '%s' stays: %s", s->cbw.filter->name, err.text);
        cbw_abandon(&s->cbw);
    }
    graph_detach(TAKE_PTR(s->source));
}

static void backup_clean(struct job *job) MAY_WAIT
{
    struct backup_state *s = job->state;
    cbw_on_failure(&s->cbw, NULL, NULL);
    backup_count(job);
    backup_release(job->list, s, job->result == 0);
}

static const struct job_driver backup_driver = {
    .type = "backup",
    .state_size = sizeof(struct backup_state),
    .run = backup_run,
    .count = backup_count,
    .clean = backup_clean,
};

int backup_new(struct job_list *list, const struct backup_options *options, struct job **ret_job,
               struct err *err)
{
    struct backup_state state = {.options = *options};
    struct job *job;
    int ret = backup_check(options, err);
    if (ret == 0 && options->bitmap != NULL)
        ret = dirty_bitmap_check(options->bitmap, err);
    if (ret < 0)
        return ret;
    if (options->bitmap != NULL)
        dirty_bitmap_hold(options->bitmap);
    struct node *source = node_ref(options->source), *target = node_ref(options->target);
    ret = backup_begin(list->graph, &state, err);
    if (ret == 0)
        ret = job_new(list, &backup_driver, options->id, &job, err);
    if (ret < 0)
        backup_release(list, &state, false);
    node_unref(target);
    node_unref(source);
    if (ret < 0)
        return ret;
    struct backup_state *s = job->state;
    *s = state;
    s->options.id = s->options.filter_name = NULL; /* used, and the caller's */
    s->source->user = job;
    cbw_on_failure(&s->cbw, backup_copy_failed, job);
    co_mutex_init(&s->pace);
    job->speed_bytes = options->speed_bytes;
    *ret_job = job;
    return 0;
}
