/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An overlay's room in its file, by segments, and the coroutine that works beside the requests: it
 * writes a superblock that is due, makes the log shorter, and gives spare segments back.
 */
#include "drivers/overlay_internal.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>

/* --- segments --- */

int overlay_space_init(struct overlay *overlay, uint64_t max_bytes)
{
    struct overlay_space *space = &overlay->space;
    uint64_t segments = overlay_segment_of(&overlay->sb, OVERLAY_MAX_UNITS) + 1;

    space->used = bitmap_new(segments);
    space->spare = bitmap_new(segments);
    space->max_bytes = max_bytes;
    space->punch_segment = BITMAP_NONE;
    return space->used == NULL || space->spare == NULL ? -ENOMEM : 0;
}

void overlay_space_free(struct overlay *overlay)
{
    bitmap_free(overlay->space.used);
    bitmap_free(overlay->space.spare);
    overlay->space.used = overlay->space.spare = NULL;
}

uint64_t overlay_space_take(struct overlay *overlay)
{
    struct overlay_space *space = &overlay->space;
    uint64_t segment = bitmap_next_set(space->spare, 0);

    if (segment == BITMAP_NONE) {
        segment = bitmap_next_clear(space->used, 0);
        if (segment == space->punch_segment)
            segment = bitmap_next_clear(space->used, segment + 1);
    }
    /* The last one is cut off by what units can name. */
    if (segment == BITMAP_NONE || segment + 1 >= bitmap_bits(space->used))
        return BITMAP_NONE;
    bitmap_clear(space->spare, segment);
    bitmap_set(space->used, segment);
    return segment;
}

void overlay_space_give(struct overlay *overlay, uint64_t segment)
{
    bitmap_clear(overlay->space.used, segment);
    bitmap_set(overlay->space.spare, segment);
}

void overlay_space_drop(struct overlay *overlay)
{
    struct overlay_space *space = &overlay->space;

    space->keep_segments = bitmap_count(space->used);
    space->keep_until_ns = loop_now_ns(graph_loop(overlay->node->graph)) + OVERLAY_KEEP_NS;
    space->told = space->clean_failed = false;
    for (uint64_t segment = bitmap_next_set(space->used, 0); segment != BITMAP_NONE;
         segment = bitmap_next_set(space->used, segment + 1))
        overlay_space_give(overlay, segment);
    bitmap_clear(space->spare, 0);
    bitmap_set(space->used, 0);
}

void overlay_space_find_spare(struct overlay *overlay)
{
    struct overlay_space *space = &overlay->space;
    uint64_t end_unit = overlay->file->child->length_bytes / overlay->sb.unit_bytes;
    uint64_t segments = end_unit > overlay_log_begin(&overlay->sb)
                            ? overlay_segment_of(&overlay->sb, end_unit - 1) + 1
                            : 0;

    segments = MIN(segments, bitmap_bits(space->used) - 1);
    for (uint64_t segment = bitmap_next_clear(space->used, 0); segment < segments;
         segment = bitmap_next_clear(space->used, segment + 1))
        bitmap_set(space->spare, segment);
    if (bitmap_count(space->spare) > 0)
        overlay_worker_wake(overlay, OVERLAY_KEEP_NS);
}

/* --- how full it is --- */

uint64_t overlay_space_log_bytes(const struct overlay *overlay)
{
    const struct overlay_superblock *sb = &overlay->sb;
    uint64_t segment = overlay_segment_of(sb, overlay->end_unit);

    return OVERLAY_LOG_OFFSET_BYTES + (bitmap_count(overlay->space.used) - 1) * sb->segment_bytes +
           (overlay->end_unit - overlay_segment_begin(sb, segment)) * sb->unit_bytes;
}

uint64_t overlay_space_spare_bytes(const struct overlay *overlay)
{
    uint64_t segments = bitmap_count(overlay->space.spare);

    if (overlay->space.punch_segment != BITMAP_NONE)
        segments++;
    return segments * overlay->sb.segment_bytes;
}

bool overlay_space_has_room(struct overlay *overlay, uint64_t group_units)
{
    uint64_t max_bytes = overlay->space.max_bytes;

    return max_bytes == 0 ||
           overlay_space_log_bytes(overlay) + group_units * overlay->sb.unit_bytes <= max_bytes;
}

void overlay_space_watch(struct overlay *overlay)
{
    struct overlay_space *space = &overlay->space;

    if (likely(space->max_bytes == 0))
        return;
    uint64_t log_bytes = overlay_space_log_bytes(overlay);
    bool full = log_bytes >= space->max_bytes / 100 * OVERLAY_NEARLY_FULL_PERCENT;
    if (full == space->told)
        return;
    space->told = full;
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (!full || data == NULL || json_add_string(data, "node-name", overlay->node->name) < 0 ||
        json_add_uint(data, "log-bytes", log_bytes) < 0 ||
        json_add_uint(data, "max-bytes", space->max_bytes) < 0)
        return;
    graph_event(overlay->node->graph, "OVERLAY_NEARLY_FULL", TAKE_PTR(data));
}

/* --- giving back --- */

/* Which segment goes next, the last one first; BITMAP_NONE: those that are spare stay for now. */
static uint64_t spare_to_punch(const struct overlay *overlay)
{
    const struct overlay_space *space = &overlay->space;
    uint64_t total = bitmap_count(space->used) + bitmap_count(space->spare);
    uint64_t last = BITMAP_NONE;

    if (loop_now_ns(graph_loop(overlay->node->graph)) < space->keep_until_ns &&
        total <= space->keep_segments)
        return BITMAP_NONE;
    for (uint64_t at = bitmap_next_set(space->spare, 0); at != BITMAP_NONE;
         at = bitmap_next_set(space->spare, at + 1))
        last = at;
    return last == 0 ? BITMAP_NONE : last; /* emptying begins in the first one, at any time */
}

/* Nobody takes the segment meanwhile. */
static int punch(struct overlay *overlay, uint64_t segment) MAY_WAIT
{
    const struct overlay_superblock *sb = &overlay->sb;
    struct overlay_worker *worker = &overlay->worker;
    uint64_t offset = overlay_segment_begin(sb, segment) * sb->unit_bytes;
    uint64_t end = MIN(offset + sb->segment_bytes, overlay->file->child->length_bytes);
    struct loop *loop = graph_loop(overlay->node->graph);
    int ret = 0;

    overlay->space.punch_segment = segment;
    bitmap_clear(overlay->space.spare, segment);
    while (ret == 0 && offset < end && !worker->stopping) {
        struct io io = {.offset_bytes = offset,
                        .length_bytes = MIN(OVERLAY_PUNCH_BYTES, end - offset)};

        ret = io_discard(overlay->file, &io);
        offset += io.length_bytes;
        if (ret == 0)
            overlay->space.given_back_bytes += io.length_bytes;
        (void)co_queue_wait_until(&worker->changed, loop_now_ns(loop) + OVERLAY_PUNCH_PAUSE_NS);
    }
    overlay->space.punch_segment = BITMAP_NONE;
    return ret;
}

/* --- the worker --- */

bool overlay_worker_begin(struct overlay *overlay)
{
    struct overlay_worker *worker = &overlay->worker;

    while (worker->paused > 0 && !worker->stopping)
        co_queue_wait(&worker->changed);
    worker->busy = !worker->stopping && !overlay->node->read_only;
    return worker->busy;
}

void overlay_worker_end(struct overlay *overlay)
{
    overlay->worker.busy = false;
    co_queue_wake_all(&overlay->worker.changed);
}

static int write_due_superblock(struct overlay *overlay) MAY_WAIT
{
    int ret = -ECANCELED;

    if (overlay_worker_begin(overlay))
        ret = overlay_superblock_refresh(overlay);
    overlay_worker_end(overlay);
    return ret;
}

/* One step: 0, -ENOENT when there is nothing to do, or another error. */
static int work_step(struct overlay *overlay) MAY_WAIT
{
    if (overlay->sb_stale)
        return write_due_superblock(overlay);
    if (overlay_clean_wanted(overlay))
        return overlay_clean(overlay);
    uint64_t segment = spare_to_punch(overlay);
    return segment == BITMAP_NONE ? -ENOENT : punch(overlay, segment);
}

static void work(void *arg) MAY_WAIT
{
    struct overlay *overlay = arg;
    struct overlay_worker *worker = &overlay->worker;
    int ret = 0;

    while (ret == 0 && !worker->stopping && !overlay->node->read_only)
        ret = work_step(overlay);
    if (ret < 0 && ret != -ENOENT && ret != -ECANCELED)
        log_warning("overlay", "'%s': its file's room could not be tidied: %s", overlay->node->name,
                    err_errno_name(ret));
    worker->running = false;
    if (ret != 0 && ret != -ENOENT)
        overlay_worker_wake(overlay, OVERLAY_RETRY_NS);
    else if (bitmap_next_set(overlay->space.spare, 1) != BITMAP_NONE)
        overlay_worker_wake(overlay, OVERLAY_KEEP_NS);
    co_queue_wake_all(&worker->changed);
}

static void worker_fire(struct loop_timer *timer)
{
    struct overlay *overlay = CONTAINER_OF(timer, struct overlay, worker.timer);

    assert(!overlay->worker.running);
    overlay->worker.running = co_spawn(timer->loop, "overlay", work, overlay) == 0;
    if (!overlay->worker.running)
        overlay_worker_wake(overlay, OVERLAY_RETRY_NS);
}

void overlay_worker_wake(struct overlay *overlay, uint64_t delay_ns)
{
    struct overlay_worker *worker = &overlay->worker;
    struct loop *loop = graph_loop(overlay->node->graph);
    uint64_t deadline_ns = loop_now_ns(loop) + delay_ns;

    if (worker->running || worker->stopping || overlay->node->read_only)
        return;
    if (loop_timer_armed(&worker->timer)) {
        if (worker->timer.deadline_ns <= deadline_ns)
            return;
        loop_timer_cancel(&worker->timer);
    }
    worker->timer.fire = worker_fire;
    loop_timer_arm(loop, &worker->timer, deadline_ns);
}

bool overlay_worker_is_at_it(const struct overlay *overlay)
{
    const struct overlay_worker *worker = &overlay->worker;

    return worker->running || (loop_timer_armed(&worker->timer) &&
                               worker->timer.deadline_ns <=
                                   loop_now_ns(graph_loop(overlay->node->graph)) + OVERLAY_SOON_NS);
}

void overlay_worker_pause(struct overlay *overlay)
{
    overlay->worker.paused++;
    while (overlay->worker.busy)
        co_queue_wait(&overlay->worker.changed);
}

void overlay_worker_resume(struct overlay *overlay)
{
    assert(overlay->worker.paused > 0);
    overlay->worker.paused--;
    co_queue_wake_all(&overlay->worker.changed);
}

void overlay_worker_stop(struct overlay *overlay)
{
    overlay->worker.stopping = true;
    loop_timer_cancel(&overlay->worker.timer);
    co_queue_wake_all(&overlay->worker.changed);
    while (overlay->worker.running)
        co_queue_wait(&overlay->worker.changed);
}
