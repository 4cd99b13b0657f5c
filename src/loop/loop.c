/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What both loops share: the turn, timers, deferred tasks, features. */
#include "loop/loop_internal.h"

#include <errno.h>
#include <string.h>

/* Coroutines run at most so many times before the loop looks at the kernel again, so that two that
 * keep waking each other cannot starve the rest. */
#define LOOP_READY_PER_TURN 4096u

#define TIMERS_MIN 64u

static bool heap_grow(struct timer_heap *heap, size_t capacity)
{
    struct loop_timer **items = realloc(heap->items, capacity * sizeof(heap->items[0]));

    if (items == NULL)
        return false;
    heap->items = items;
    heap->capacity = capacity;
    return true;
}

int loop_init(struct loop *loop, const struct loop_ops *ops)
{
    memset(loop, 0, sizeof(*loop));
    loop->ops = ops;
    list_init(&loop->ready);
    list_init(&loop->deferred);
    co_pool_init(&loop->coroutines);
    if (!heap_grow(&loop->timers, TIMERS_MIN))
        return -ENOMEM;
    loop->bufs = buf_pool_new();
    if (loop->bufs == NULL)
        free(loop->timers.items);
    return loop->bufs != NULL ? 0 : -ENOMEM;
}

void loop_deinit(struct loop *loop)
{
    assert(!loop->running);
    assert(list_empty(&loop->ready));
    assert(list_empty(&loop->deferred));
    assert(loop->timers.count == 0);
    co_pool_deinit(loop);
    buf_pool_free(loop->bufs);
    free(loop->timers.items);
}

void loop_free(struct loop *loop)
{
    if (loop != NULL)
        loop->ops->free(loop);
}

bool loop_has_work(const struct loop *loop)
{
    return !list_empty(&loop->ready) || !list_empty(&loop->deferred);
}

void loop_run_ready(struct loop *loop)
{
    for (unsigned runs = 0; runs < LOOP_READY_PER_TURN && !list_empty(&loop->ready); runs++)
        co_run_next(loop);
    /* A task may make coroutines ready, and defer itself again for the next turn. */
    struct list tasks = LIST_INIT(tasks);
    list_splice_back(&tasks, &loop->deferred);
    struct loop_task *task;
    while ((task = LIST_POP_FRONT(&tasks, struct loop_task, link)) != NULL)
        task->run(task);
}

void loop_turn(struct loop *loop, uint64_t deadline_ns)
{
    struct loop *former = loop_enter(loop);
    uint64_t began_ns = loop->now_ns;

    loop_run_ready(loop);
    bool idle = !loop_has_work(loop) && !loop->stopping;
    uint64_t until_ns = idle ? MIN(deadline_ns, loop_next_timer_ns(loop)) : 0;
    uint64_t busy_ns = loop->ops->clock_ns(loop) - began_ns;
    if (busy_ns > loop->stats.longest_turn_ns)
        loop->stats.longest_turn_ns = busy_ns;
    loop->ops->poll(loop, until_ns);
    loop->now_ns = loop->ops->clock_ns(loop);
    loop_fire_timers(loop);
    loop->stats.turns++;
    loop_enter(former);
}

void loop_run(struct loop *loop)
{
    assert(!loop->running);
    loop->running = true;
    loop->now_ns = loop->ops->clock_ns(loop);
    while (!loop->stopping)
        loop_turn(loop, DEADLINE_NEVER);
    loop->stopping = false;
    loop->running = false;
}

void loop_stop(struct loop *loop)
{
    loop->stopping = true;
}

uint64_t loop_now_ns(struct loop *loop)
{
    return loop->now_ns;
}

uint64_t loop_clock_ns(struct loop *loop)
{
    return loop->ops->clock_ns(loop);
}

uint64_t loop_wall_ns(struct loop *loop)
{
    return loop->ops->wall_ns(loop);
}

uint64_t loop_random(struct loop *loop)
{
    return loop->ops->random(loop);
}

struct buf_pool *loop_bufs(struct loop *loop)
{
    return loop->bufs;
}

int loop_offload(struct loop *loop, int (*call)(void *arg), void *arg)
{
    loop->stats.offloaded++;
    return loop->ops->offload(loop, call, arg);
}

struct loop_stats loop_stats(struct loop *loop)
{
    struct loop_stats stats = loop->stats;

    stats.coroutines = loop->coroutines.alive_count;
    stats.coroutines_peak = loop->coroutines.alive_peak;
    stats.stacks_cached = loop->coroutines.cached_count;
    stats.stack_peak_bytes = co_stack_peak_bytes(loop);
    return stats;
}

uint64_t loop_turns(const struct loop *loop)
{
    return loop->stats.turns;
}

void loop_stats_reset(struct loop *loop)
{
    loop->stats = (struct loop_stats){.turns = 0};
    loop->coroutines.alive_peak = loop->coroutines.alive_count;
}

/* --- timers: a binary heap --- */

static void heap_place(struct timer_heap *heap, size_t index, struct loop_timer *timer)
{
    heap->items[index] = timer;
    timer->heap_index = index;
}

static void heap_up(struct timer_heap *heap, size_t index, struct loop_timer *timer)
{
    while (index > 1 && timer->deadline_ns < heap->items[index / 2]->deadline_ns) {
        heap_place(heap, index, heap->items[index / 2]);
        index /= 2;
    }
    heap_place(heap, index, timer);
}

static void heap_down(struct timer_heap *heap, size_t index, struct loop_timer *timer)
{
    for (;;) {
        size_t child = index * 2;
        if (child > heap->count)
            break;
        if (child + 1 <= heap->count &&
            heap->items[child + 1]->deadline_ns < heap->items[child]->deadline_ns)
            child++;
        if (heap->items[child]->deadline_ns >= timer->deadline_ns)
            break;
        heap_place(heap, index, heap->items[child]);
        index = child;
    }
    heap_place(heap, index, timer);
}

/* Grows when it is half full, so that memory which is out for a while does no harm. */
static void heap_reserve(struct timer_heap *heap)
{
    if (heap->count + 1 < heap->capacity / 2 || heap_grow(heap, heap->capacity * 2))
        return;
    /* A deadline that cannot be kept would be a hang: rather stop here, with a core to read. */
    assert(heap->count + 1 < heap->capacity);
}

void loop_timer_cancel(struct loop_timer *timer)
{
    if (timer->heap_index == 0)
        return;
    struct timer_heap *heap = &timer->loop->timers;
    size_t index = timer->heap_index;
    struct loop_timer *last = heap->items[heap->count--];

    timer->heap_index = 0;
    if (last == timer)
        return;
    if (index > 1 && last->deadline_ns < heap->items[index / 2]->deadline_ns)
        heap_up(heap, index, last);
    else
        heap_down(heap, index, last);
}

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns)
{
    struct timer_heap *heap = &loop->timers;

    loop_timer_cancel(timer);
    timer->loop = loop;
    /* Never now: a hook that arms its timer again at once must not hold up the rest of the turn. */
    timer->deadline_ns = MAX(deadline_ns, loop->now_ns + 1);
    heap_reserve(heap);
    heap_up(heap, ++heap->count, timer);
}

uint64_t loop_next_timer_ns(const struct loop *loop)
{
    return loop->timers.count != 0 ? loop->timers.items[1]->deadline_ns : DEADLINE_NEVER;
}

void loop_fire_timers(struct loop *loop)
{
    while (loop_next_timer_ns(loop) <= loop->now_ns) {
        struct loop_timer *timer = loop->timers.items[1];
        loop_timer_cancel(timer);
        timer->fire(timer);
    }
}

/* --- deferred tasks --- */

void loop_defer(struct loop *loop, struct loop_task *task)
{
    if (!list_linked(&task->link))
        list_push_back(&loop->deferred, &task->link);
}

void loop_defer_cancel(struct loop *loop UNUSED, struct loop_task *task)
{
    list_remove(&task->link);
}

void loop_post(struct loop *loop, struct loop_task *task)
{
    loop->ops->post(loop, task);
}

/* --- signals --- */

int loop_signal_set(struct loop *loop, int signal, loop_signal_handler *handler, void *arg,
                    struct err *err)
{
    assert(signal > 0 && signal < LOOP_SIGNALS_MAX);
    int result = loop->ops->signal_set(loop, signal, err);
    if (result < 0)
        return result;
    loop->signals[signal] = (struct loop_signal_slot){handler, arg};
    return 0;
}

void loop_deliver_signal(struct loop *loop, int signal)
{
    if (signal <= 0 || signal >= LOOP_SIGNALS_MAX)
        return;
    struct loop_signal_slot *slot = &loop->signals[signal];
    if (slot->handler != NULL)
        slot->handler(slot->arg, signal);
}

/* --- features --- */

static const struct {
    unsigned feature;
    const char *name;
} features[] = {
    {LOOP_FEATURE_DEFER_TASKRUN, "defer-taskrun"},
    {LOOP_FEATURE_COOP_TASKRUN, "coop-taskrun"},
    {LOOP_FEATURE_INLINE_FILE, "inline-file"},
    {LOOP_FEATURE_INLINE_SEND, "inline-send"},
};

const char *loop_feature_name(unsigned feature)
{
    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        if (features[i].feature == feature)
            return features[i].name;
    }
    return NULL;
}

static unsigned feature_by_name(const char *name, size_t length)
{
    if (length == 3 && strncmp(name, "all", 3) == 0)
        return LOOP_FEATURES_ALL;
    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        if (strlen(features[i].name) == length && strncmp(features[i].name, name, length) == 0)
            return features[i].feature;
    }
    return 0;
}

int loop_features_parse(const char *text, unsigned *ret_features, struct err *err)
{
    unsigned result = 0;

    for (const char *name = text; *name != '\0';) {
        size_t length = strcspn(name, ",");
        unsigned feature = feature_by_name(name, length);
        if (feature == 0)
            return err_set(err, -EINVAL,
                           "loop feature '%.*s' is not known; there are: all, defer-taskrun, "
                           "coop-taskrun, inline-file, inline-send",
                           (int)length, name);
        result |= feature;
        name += length + (name[length] == ',');
    }
    *ret_features = result;
    return 0;
}

unsigned loop_features(const struct loop *loop)
{
    return loop->ops->features(loop);
}
