/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps of nodes. Texts are QEMU's: managers look for some of them. */
#include "control/bitmap_refs.h"
#include "control/commands.h"
#include "control/daemon.h"

#include <errno.h>
#include <inttypes.h>

struct bitmap_args {
    char *node, *name;
    uint64_t granularity;
    bool granularity_given, persistent, disabled;
};

#define NODE_AND_NAME_OPTS                                                                 \
    {.name = "node",                                                                       \
     .type = OPT_STRING,                                                                   \
     .offset = OPT_FIELD(struct bitmap_args, node),                                        \
     .required = true,                                                                     \
     .help = "the node that has the bitmap"},                                              \
    {                                                                                      \
        .name = "name", .type = OPT_STRING, .offset = OPT_FIELD(struct bitmap_args, name), \
        .required = true, .help = "the bitmap's name"                                      \
    }

static const struct opt bitmap_opts[] = {NODE_AND_NAME_OPTS, {0}};

static const struct opt add_opts[] = {
    NODE_AND_NAME_OPTS,
    {.name = "granularity",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct bitmap_args, granularity),
     .present = OPT_PRESENT(struct bitmap_args, granularity_given),
     .max = UINT32_MAX,
     .help = "bytes that a bit stands for (the node's blocks, 4096 to 65536)"},
    {.name = "persistent",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct bitmap_args, persistent),
     .help = "refused: bitmaps live in memory"},
    {.name = "disabled",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct bitmap_args, disabled),
     .help = "does not record changes until it is enabled"},
    {0},
};

static int run_add(struct qmp_call *call, void *args, struct err *err)
{
    const struct bitmap_args *add = args;
    struct daemon *daemon = call->context;
    struct dirty_bitmap *bitmap;
    struct node *node;
    int r = command_find_device(daemon, add->node, &node, err);

    if (r < 0)
        return r;
    if (add->granularity_given && add->granularity == 0)
        return err_set(err, -EINVAL, "Granularity must be power of 2 and at least %u",
                       DIRTY_BITMAP_REGION_MIN_BYTES);
    if (add->persistent)
        return err_set(err, -EOPNOTSUPP,
                       "'persistent': no image of driver '%s' can store bitmap '%s': leave it out",
                       node->driver->name, add->name);
    return dirty_bitmap_add(node, add->name, add->granularity, !add->disabled, &bitmap, err);
}

/* One that nobody uses, and that is sound unless it shall go. */
static int find_free(struct qmp_call *call, const struct bitmap_args *args, bool goes,
                     struct dirty_bitmap **ret_bitmap, struct err *err)
{
    struct daemon *daemon = call->context;
    int r = bitmap_ref_find(daemon->graph, args->node, args->name, ret_bitmap, err);

    if (r < 0 || (goes && !(*ret_bitmap)->busy))
        return r;
    return dirty_bitmap_check(*ret_bitmap, err);
}

static int run_remove(struct qmp_call *call, void *args, struct err *err)
{
    struct dirty_bitmap *bitmap;
    int r = find_free(call, args, true, &bitmap, err);

    if (r == 0)
        dirty_bitmap_remove(bitmap);
    return r;
}

static int run_clear(struct qmp_call *call, void *args, struct err *err)
{
    struct dirty_bitmap *bitmap;
    int r = find_free(call, args, false, &bitmap, err);

    if (r == 0)
        dirty_bitmap_clear(bitmap);
    return r;
}

static int enable(struct qmp_call *call, const struct bitmap_args *args, bool enabled,
                  struct err *err)
{
    struct dirty_bitmap *bitmap;
    int r = find_free(call, args, false, &bitmap, err);

    if (r == 0)
        dirty_bitmap_enable(bitmap, enabled);
    return r;
}

static int run_enable(struct qmp_call *call, void *args, struct err *err)
{
    return enable(call, args, true, err);
}

static int run_disable(struct qmp_call *call, void *args, struct err *err)
{
    return enable(call, args, false, err);
}

struct merge_args {
    char *node, *target;
    struct json_object *bitmaps;
};

static const struct opt merge_opts[] = {
    {.name = "node",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct merge_args, node),
     .required = true,
     .help = "the node that has the target"},
    {.name = "target",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct merge_args, target),
     .required = true,
     .help = "the bitmap that gets the marks of the others as well"},
    {.name = "bitmaps",
     .type = OPT_REFS,
     .offset = OPT_FIELD(struct merge_args, bitmaps),
     .members = bitmap_ref_opts,
     .required = true,
     .help = "a list of names of bitmaps of the node, or of objects with node and name"},
    {0},
};

static int check_source(const struct dirty_bitmap *target, const struct dirty_bitmap *source,
                        struct err *err)
{
    uint64_t target_bytes = target->tracker.node->length_bytes;
    uint64_t source_bytes = source->tracker.node->length_bytes;

    if (dirty_bitmap_check(source, err) < 0)
        return err->code;
    if (target_bytes != source_bytes)
        return err_set(err, -EINVAL,
                       "Bitmaps are of different sizes (destination size is %" PRIu64
                       ", source size is %" PRIu64 ") and can't be merged",
                       target_bytes, source_bytes);
    return 0;
}

/* All of them or none. */
static int run_merge(struct qmp_call *call, void *args, struct err *err)
{
    const struct merge_args *merge = args;
    struct daemon *daemon = call->context;
    struct dirty_bitmap *target;
    struct bitmap_refs refs = {.count = 0};
    int r = bitmap_ref_find(daemon->graph, merge->node, merge->target, &target, err);

    if (r == 0)
        r = dirty_bitmap_check(target, err);
    if (r == 0)
        r = bitmap_refs_find(daemon->graph, target->tracker.node, merge->bitmaps, "bitmaps", false,
                             &refs, err);
    for (size_t i = 0; r == 0 && i < refs.count; i++)
        r = check_source(target, refs.items[i], err);
    for (size_t i = 0; r == 0 && i < refs.count; i++) {
        const struct dirty_tracker *source = &refs.items[i]->tracker;

        if (refs.items[i] != target)
            dirty_tracker_merge(&target->tracker, source->bits, source->region_bytes);
    }
    return r;
}

#define BITMAP_COMMAND(name_, opts_, run_)                                                       \
    {                                                                                            \
        .name = (name_), .args = (opts_), .args_size = sizeof(struct bitmap_args), .run = (run_) \
    }

const struct qmp_command commands_bitmaps[] = {
    BITMAP_COMMAND("block-dirty-bitmap-add", add_opts, run_add),
    BITMAP_COMMAND("block-dirty-bitmap-remove", bitmap_opts, run_remove),
    BITMAP_COMMAND("block-dirty-bitmap-clear", bitmap_opts, run_clear),
    BITMAP_COMMAND("block-dirty-bitmap-enable", bitmap_opts, run_enable),
    BITMAP_COMMAND("block-dirty-bitmap-disable", bitmap_opts, run_disable),
    {.name = "block-dirty-bitmap-merge",
     .args = merge_opts,
     .args_size = sizeof(struct merge_args),
     .run = run_merge},
    {0},
};
