/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/throttle_group.h"

#include <errno.h>
#include <inttypes.h>

/* --- limits --- */

#define LIMIT_OPTS(name_, bucket, what)                                                       \
    {.name = name_,                                                                           \
     .type = OPT_SIZE,                                                                        \
     .offset = OPT_FIELD(struct throttle_limits, buckets[bucket].average),                    \
     .max = THROTTLE_MAX_RATE,                                                                \
     .help = what " per second; 0 is no limit"},                                              \
        {.name = name_ "-max",                                                                \
         .type = OPT_SIZE,                                                                    \
         .offset = OPT_FIELD(struct throttle_limits, buckets[bucket].max),                    \
         .max = THROTTLE_MAX_RATE,                                                            \
         .help = what " per second in a burst"},                                              \
    {                                                                                         \
        .name = name_ "-max-length", .type = OPT_UINT,                                        \
        .offset = OPT_FIELD(struct throttle_limits, buckets[bucket].max_length_s),            \
        .fallback = "1", .min = 1, .max = UINT32_MAX, .help = "seconds that a burst may last" \
    }

const struct opt throttle_limits_opts[] = {
    LIMIT_OPTS("iops-total", THROTTLE_IOPS_TOTAL, "requests"),
    LIMIT_OPTS("iops-read", THROTTLE_IOPS_READ, "reads"),
    LIMIT_OPTS("iops-write", THROTTLE_IOPS_WRITE, "writes"),
    LIMIT_OPTS("bps-total", THROTTLE_BPS_TOTAL, "bytes"),
    LIMIT_OPTS("bps-read", THROTTLE_BPS_READ, "bytes read"),
    LIMIT_OPTS("bps-write", THROTTLE_BPS_WRITE, "bytes written"),
    {.name = "iops-size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct throttle_limits, iops_size_bytes),
     .max = THROTTLE_MAX_RATE,
     .help = "larger requests count as several of this size; 0: every request is one"},
    {0},
};

static const char *const bucket_names[THROTTLE_BUCKETS] = {
    [THROTTLE_BPS_TOTAL] = "bps-total", [THROTTLE_BPS_READ] = "bps-read",
    [THROTTLE_BPS_WRITE] = "bps-write", [THROTTLE_IOPS_TOTAL] = "iops-total",
    [THROTTLE_IOPS_READ] = "iops-read", [THROTTLE_IOPS_WRITE] = "iops-write",
};

static int check_total(const struct throttle_limits *limits, enum throttle_bucket total,
                       struct err *err)
{
    const struct throttle_limit *b = limits->buckets;

    for (enum throttle_bucket part = total + 1; part <= total + 2; part++) {
        if ((b[total].average > 0 && b[part].average > 0) || (b[total].max > 0 && b[part].max > 0))
            return err_set(err, -EINVAL, "'%s' and '%s' cannot be used at the same time",
                           bucket_names[total], bucket_names[part]);
    }
    return 0;
}

static int check_limit(const struct throttle_limit *limit, const char *name, struct err *err)
{
    if (limit->max_length_s > 1 && limit->max == 0)
        return err_set(err, -EINVAL, "'%s-max-length' needs '%s-max'", name, name);
    if (limit->max > 0 && limit->average == 0)
        return err_set(err, -EINVAL, "'%s-max' needs '%s'", name, name);
    if (limit->max > 0 && limit->max < limit->average)
        return err_set(err, -EINVAL, "'%s-max' %" PRIu64 " is lower than '%s' %" PRIu64, name,
                       limit->max, name, limit->average);
    if (limit->max > 0 && limit->max_length_s > THROTTLE_MAX_RATE / limit->max)
        return err_set(err, -EINVAL, "'%s-max-length' is too high for this '%s-max'", name, name);
    return 0;
}

int throttle_limits_check(const struct throttle_limits *limits, struct err *err)
{
    const struct throttle_limit *b = limits->buckets;
    int ret = check_total(limits, THROTTLE_BPS_TOTAL, err);

    if (ret == 0)
        ret = check_total(limits, THROTTLE_IOPS_TOTAL, err);
    for (unsigned i = 0; i < THROTTLE_BUCKETS && ret == 0; i++)
        ret = check_limit(&b[i], bucket_names[i], err);
    if (ret == 0 && limits->iops_size_bytes > 0 && b[THROTTLE_IOPS_TOTAL].average == 0 &&
        b[THROTTLE_IOPS_READ].average == 0 && b[THROTTLE_IOPS_WRITE].average == 0)
        ret = err_set(err, -EINVAL, "'iops-size' needs a limit of requests per second");
    return ret;
}

/* --- buckets --- */

static const enum throttle_bucket filled_by[THROTTLE_DIRECTIONS][4] = {
    [THROTTLE_READ] = {THROTTLE_BPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_IOPS_TOTAL,
                       THROTTLE_IOPS_READ},
    [THROTTLE_WRITE] = {THROTTLE_BPS_TOTAL, THROTTLE_BPS_WRITE, THROTTLE_IOPS_TOTAL,
                        THROTTLE_IOPS_WRITE},
};

static void leak(struct throttle_group *group)
{
    uint64_t now_ns = loop_now_ns(group->loop);
    double seconds = now_ns > group->leaked_ns ? (double)(now_ns - group->leaked_ns) / NS_PER_S : 0;

    group->leaked_ns = MAX(group->leaked_ns, now_ns);
    for (unsigned i = 0; i < THROTTLE_BUCKETS; i++) {
        const struct throttle_limit *limit = &group->limits.buckets[i];
        double level = group->buckets[i].level - (double)limit->average * seconds;
        double burst = group->buckets[i].burst_level - (double)limit->max * seconds;

        group->buckets[i].level = MAX(level, 0);
        group->buckets[i].burst_level = MAX(burst, 0);
    }
}

#define LONGEST_WAIT_NS (UINT64_C(1) << 60)

static uint64_t leak_time_ns(double units, uint64_t rate)
{
    double time_ns = units * (double)NS_PER_S / (double)rate;

    return time_ns < (double)LONGEST_WAIT_NS ? (uint64_t)time_ns + 1 : LONGEST_WAIT_NS;
}

/* How long until the bucket is no longer too full. */
static uint64_t bucket_wait_ns(const struct throttle_group *group, enum throttle_bucket bucket)
{
    const struct throttle_limit *limit = &group->limits.buckets[bucket];
    double size, extra;

    if (limit->average == 0)
        return 0;
    size = limit->max == 0 ? (double)limit->average / 10
                           : (double)limit->max * (double)limit->max_length_s;
    extra = group->buckets[bucket].level - size;
    if (extra > 0)
        return leak_time_ns(extra, limit->average);
    if (limit->max_length_s <= 1)
        return 0;
    extra = group->buckets[bucket].burst_level - (double)limit->max / 10;
    return extra > 0 ? leak_time_ns(extra, limit->max) : 0;
}

static uint64_t wait_ns(const struct throttle_group *group, enum throttle_direction direction)
{
    uint64_t wait = 0;

    for (unsigned i = 0; i < ARRAY_LEN(filled_by[direction]); i++)
        wait = MAX(wait, bucket_wait_ns(group, filled_by[direction][i]));
    return wait;
}

static void fill(struct throttle_group *group, enum throttle_direction direction,
                 uint64_t length_bytes)
{
    uint64_t iops_size = group->limits.iops_size_bytes;
    double requests = iops_size > 0 && length_bytes > iops_size
                          ? (double)length_bytes / (double)iops_size
                          : 1;

    for (unsigned i = 0; i < ARRAY_LEN(filled_by[direction]); i++) {
        enum throttle_bucket bucket = filled_by[direction][i];
        double units = bucket < THROTTLE_IOPS_TOTAL ? (double)length_bytes : requests;

        group->buckets[bucket].level += units;
        if (group->limits.buckets[bucket].max_length_s > 1)
            group->buckets[bucket].burst_level += units;
    }
}

/* --- who waits --- */

/* One request, on the stack of its coroutine. */
struct throttle_wait {
    struct list_link link;
    uint64_t length_bytes;
    struct co *co;
    bool released;
};

static void release(struct throttle_group *group, struct throttle_wait *wait,
                    enum throttle_direction direction)
{
    list_remove(&wait->link);
    group->waiting[direction]--;
    fill(group, direction, wait->length_bytes);
    wait->released = true;
    co_wake(wait->co);
}

/* The first in the line of the member whose turn it is, which goes to the end. */
static void release_next(struct throttle_group *group, enum throttle_direction direction)
{
    LIST_FOR_EACH(member, &group->members, struct throttle_member, link) {
        struct list_link *first = list_first(&member->lines[direction]);

        if (first == NULL)
            continue;
        release(group, LIST_ENTRY(first, struct throttle_wait, link), direction);
        list_remove(&member->link);
        list_push_back(&group->members, &member->link);
        return;
    }
    assert(false);
}

/* True when one could go; else *ret_wait_ns is how long until one can. */
static bool try_release(struct throttle_group *group, uint64_t *ret_wait_ns)
{
    *ret_wait_ns = UINT64_MAX;
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++) {
        enum throttle_direction direction = (group->next + i) % THROTTLE_DIRECTIONS;
        uint64_t wait;

        if (group->waiting[direction] == 0)
            continue;
        wait = wait_ns(group, direction);
        if (wait == 0) {
            release_next(group, direction);
            group->next = (direction + 1) % THROTTLE_DIRECTIONS;
            return true;
        }
        *ret_wait_ns = MIN(*ret_wait_ns, wait);
    }
    return false;
}

static void run_group(struct throttle_group *group)
{
    uint64_t wait;

    leak(group);
    while (try_release(group, &wait))
        ;
    if (wait != UINT64_MAX)
        loop_timer_arm(group->loop, &group->timer, loop_now_ns(group->loop) + wait);
    else
        loop_timer_cancel(&group->timer);
}

static void timer_fired(struct loop_timer *timer)
{
    run_group(CONTAINER_OF(timer, struct throttle_group, timer));
}

void throttle_wait(struct throttle_member *member, enum throttle_direction direction,
                   uint64_t length_bytes)
{
    struct throttle_group *group = member->group;
    struct throttle_wait wait = {.length_bytes = length_bytes, .co = co_self()};

    leak(group);
    if (group->waiting[THROTTLE_READ] + group->waiting[THROTTLE_WRITE] == 0 &&
        wait_ns(group, direction) == 0) {
        fill(group, direction, length_bytes);
        return;
    }
    list_push_back(&member->lines[direction], &wait.link);
    group->waiting[direction]++;
    run_group(group);
    member->delayed += !wait.released;
    while (!wait.released) {
        if (node_is_draining(member->node)) {
            release(group, &wait, direction);
            run_group(group);
        } else {
            co_wait();
        }
    }
}

void throttle_member_drain(struct throttle_member *member)
{
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++) {
        LIST_FOR_EACH(wait, &member->lines[i], struct throttle_wait, link)
            co_wake(wait->co);
    }
}

/* --- groups and members --- */

void throttle_group_init(struct throttle_group *group, struct loop *loop,
                         const struct throttle_limits *limits)
{
    *group = (struct throttle_group){.loop = loop, .limits = *limits};
    group->leaked_ns = loop_now_ns(loop);
    group->timer.fire = timer_fired;
    list_init(&group->members);
}

void throttle_group_release(struct throttle_group *group)
{
    assert(list_empty(&group->members));
    loop_timer_cancel(&group->timer);
}

void throttle_member_join(struct throttle_member *member, struct throttle_group *group,
                          struct node *node)
{
    *member = (struct throttle_member){.group = group, .node = node};
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++)
        list_init(&member->lines[i]);
    list_push_back(&group->members, &member->link);
}

void throttle_member_leave(struct throttle_member *member)
{
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++)
        assert(list_empty(&member->lines[i]));
    list_remove(&member->link);
}

/* --- the object --- */

static const struct opt group_opts[] = {
    {.name = "limits",
     .type = OPT_OBJECT,
     .members = throttle_limits_opts,
     .help = "what all nodes of the group may do together"},
    {0},
};

static int group_create(struct object *object, struct err *err)
{
    const struct throttle_limits *limits = object->options;
    int ret = throttle_limits_check(limits, err);

    if (ret == 0)
        throttle_group_init(object->state, graph_loop(object->graph), limits);
    return ret;
}

static void group_destroy(struct object *object)
{
    throttle_group_release(object->state);
}

const struct object_type throttle_group_type = {
    .name = "throttle-group",
    .state_size = sizeof(struct throttle_group),
    .options_size = sizeof(struct throttle_limits),
    .opts = group_opts,
    .create = group_create,
    .destroy = group_destroy,
};
