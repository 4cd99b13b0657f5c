/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * throttle: a filter that keeps reads and changes within limits of requests and bytes per second. The
 * limits are its own, or those of a throttle-group, which several nodes keep together. Flushes and
 * questions for extents pass freely; zero and discard count as writes of their length.
 */
#include "drivers/table.h"

#include "base/json.h"
#include "block/io.h"
#include "drivers/throttle_group.h"

#include <errno.h>

struct throttle_options {
    struct throttle_limits limits; /* first: the offsets of its table count from here */
    struct json_object *file;
    char *group;
};
static_assert(offsetof(struct throttle_options, limits) == 0, "the table of limits is shared");

struct throttle {
    struct throttle_group own; /* without a group by name */
    struct object *object;     /* with one */
    struct throttle_member member;
};

static bool any_limit(const struct throttle_limits *limits)
{
    for (unsigned i = 0; i < THROTTLE_BUCKETS; i++) {
        const struct throttle_limit *limit = &limits->buckets[i];

        if (limit->average > 0 || limit->max > 0 || limit->max_length_s > 1)
            return true;
    }
    return limits->iops_size_bytes > 0;
}

static int throttle_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct throttle_options *options = node->options;
    struct throttle *throttle = node->state;
    int ret;

    if (options->group == NULL) {
        ret = throttle_limits_check(&options->limits, err);
        if (ret < 0)
            return ret;
        throttle_group_init(&throttle->own, graph_loop(node->graph), &options->limits);
        throttle_member_join(&throttle->member, &throttle->own, node);
        return 0;
    }
    if (any_limit(&options->limits))
        return err_set(err, -EINVAL,
                       "'throttle-group' and 'limits' cannot be used at the same time: the group "
                       "has limits of its own");
    ret = object_use(node->graph, &throttle_group_type, options->group, &throttle->object, err);
    if (ret == 0)
        throttle_member_join(&throttle->member, throttle->object->state, node);
    return ret;
}

static void throttle_close(struct node *node) MAY_WAIT
{
    struct throttle *throttle = node->state;

    throttle_member_leave(&throttle->member);
    if (throttle->object == NULL)
        throttle_group_release(&throttle->own);
    object_unuse(throttle->object);
}

static void throttle_drain(struct node *node)
{
    struct throttle *throttle = node->state;

    throttle_member_drain(&throttle->member);
}

static int throttle_describe(struct node *node, struct json_object *object)
{
    const struct throttle *throttle = node->state;
    const struct throttle_group *group = throttle->member.group;

    if (json_add_uint(object, "delayed", throttle->member.delayed) < 0 ||
        json_add_uint(object, "group-waiting-reads", group->waiting[THROTTLE_READ]) < 0 ||
        json_add_uint(object, "group-waiting-writes", group->waiting[THROTTLE_WRITE]) < 0)
        return -ENOMEM;
    return 0;
}

/* --- requests --- */

static void wait_for_turn(struct node *node, enum throttle_direction direction, const struct io *io)
    MAY_WAIT
{
    struct throttle *throttle = node->state;

    throttle_wait(&throttle->member, direction, io->length_bytes);
}

static int throttle_read(struct node *node, struct io *io) MAY_WAIT
{
    wait_for_turn(node, THROTTLE_READ, io);
    return io_read(node->file, io);
}

static int throttle_write(struct node *node, struct io *io) MAY_WAIT
{
    wait_for_turn(node, THROTTLE_WRITE, io);
    return io_write(node->file, io);
}

static int throttle_zero(struct node *node, struct io *io) MAY_WAIT
{
    wait_for_turn(node, THROTTLE_WRITE, io);
    return io_zero(node->file, io);
}

static int throttle_discard(struct node *node, struct io *io) MAY_WAIT
{
    wait_for_turn(node, THROTTLE_WRITE, io);
    return io_discard(node->file, io);
}

static const struct opt throttle_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct throttle_options, file),
     .required = true,
     .help = "what it filters"},
    {.name = "throttle-group",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct throttle_options, group),
     .help = "the group whose limits it keeps, made by object-add"},
    {.name = "limits",
     .type = OPT_OBJECT,
     .members = throttle_limits_opts,
     .help = "limits of its own, without a group"},
    {0},
};

const struct driver driver_throttle = {
    .name = "throttle",
    .is_filter = true,
    .state_size = sizeof(struct throttle),
    .options_size = sizeof(struct throttle_options),
    .opts = throttle_opts,
    .open = throttle_open,
    .close = throttle_close,
    .drain = throttle_drain,
    .describe = throttle_describe,
    .read = throttle_read,
    .write = throttle_write,
    .zero = throttle_zero,
    .discard = throttle_discard,
};
