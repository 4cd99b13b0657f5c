/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw: the bytes of its child as they are, or a window of them. Nothing outside the window can be
 * reached through it.
 *
 * With a size the window is fixed: it must lie within the child, cannot be resized, and a child that
 * shrinks below it makes requests behind the child's end fail. Without one it ends where the child
 * ends, and follows it.
 */
#include "drivers/table.h"

#include "base/json.h"
#include "base/log.h"
#include "block/io.h"

#include <errno.h>
#include <inttypes.h>

/* What the size must be a multiple of, so that rounding reaches no byte behind the window. */
#define RAW_SECTOR_BYTES 512u

struct raw_options {
    struct json_object *file;
    uint64_t offset_bytes, size_bytes;
    bool size_given;
};

/* --- control --- */

static int check_window(const struct node *node, struct err *err)
{
    const struct raw_options *options = node->options;
    uint64_t length = node->file->child->length_bytes;

    if (options->offset_bytes > length)
        return err_set(err, -EINVAL,
                       "'offset' %" PRIu64 " lies behind the end of '%s', which has %" PRIu64
                       " bytes",
                       options->offset_bytes, node->file->child->name, length);
    if (!options->size_given)
        return 0;
    if (options->size_bytes > length - options->offset_bytes)
        return err_set(err, -EINVAL,
                       "'offset' %" PRIu64 " and 'size' %" PRIu64
                       " reach behind the end of '%s', which has %" PRIu64 " bytes",
                       options->offset_bytes, options->size_bytes, node->file->child->name, length);
    if (options->size_bytes % RAW_SECTOR_BYTES != 0)
        return err_set(err, -EINVAL, "'size' %" PRIu64 " is not a multiple of %u",
                       options->size_bytes, RAW_SECTOR_BYTES);
    return 0;
}

static uint64_t window_length(const struct node *node, uint64_t child_length)
{
    const struct raw_options *options = node->options;

    if (options->size_given)
        return options->size_bytes;
    return child_length > options->offset_bytes ? child_length - options->offset_bytes : 0;
}

static int raw_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct raw_options *options = node->options;
    uint64_t align = node->limits.request_align_bytes;
    int ret = check_window(node, err);

    if (ret < 0)
        return ret;
    node->length_bytes = window_length(node, node->file->child->length_bytes);
    /* A window off the child's alignment is fine: the child's gate reads and writes back what lies
     * around a request. */
    while (((options->offset_bytes | node->length_bytes) & (align - 1)) != 0)
        align /= 2;
    node->limits.request_align_bytes = (uint32_t)align;
    return 0;
}

static void raw_child_resized(struct node *node, struct edge *edge)
{
    const struct raw_options *options = node->options;
    uint64_t length = edge->child->length_bytes;

    if (!options->size_given)
        node_set_length(node, window_length(node, length));
    else if (!range_fits(options->offset_bytes, options->size_bytes, length))
        log_warning("raw",
                    "node '%s': '%s' has shrunk to %" PRIu64
                    " bytes: what the window shows behind them fails",
                    node->name, edge->child->name, length);
}

/* As a filter; but where others could cut off the window, they may not resize the child. */
static void raw_perms(struct node *node, struct edge *edge, unsigned parents_need,
                      unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    const struct raw_options *options = node->options;

    *ret_need = parents_need;
    *ret_share = parents_share;
    if (options->size_given)
        *ret_need &= ~(unsigned)PERM_RESIZE;
    if ((*ret_need & (PERM_WRITE | PERM_WRITE_UNCHANGED)) != 0)
        *ret_need |= PERM_CONSISTENT_READ;
    if (options->size_given || options->offset_bytes > 0)
        *ret_share &= ~(unsigned)PERM_RESIZE;
}

static int raw_describe(struct node *node, struct json_object *object)
{
    const struct raw_options *options = node->options;
    int ret = json_add_uint(object, "offset", options->offset_bytes);

    if (ret == 0 && options->size_given)
        ret = json_add_uint(object, "size", options->size_bytes);
    return ret;
}

/* --- requests --- */

/* 0 and where the request lies in the child. */
static int to_child(const struct node *node, const struct io *io, struct io *ret_io)
{
    const struct raw_options *options = node->options;
    uint64_t end = io->offset_bytes + io->length_bytes;

    if (options->size_given) {
        if (end > options->size_bytes)
            return -ENOSPC;
        if (!range_fits(options->offset_bytes, end, node->file->child->length_bytes))
            return -EIO;
    }
    *ret_io = *io;
    ret_io->offset_bytes += options->offset_bytes;
    return 0;
}

static int raw_read(struct node *node, struct io *io) MAY_WAIT
{
    struct io below;
    int ret = to_child(node, io, &below);

    return ret < 0 ? ret : io_read(node->file, &below);
}

static int raw_write(struct node *node, struct io *io) MAY_WAIT
{
    struct io below;
    int ret = to_child(node, io, &below);

    return ret < 0 ? ret : io_write(node->file, &below);
}

static int raw_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct io below;
    int ret = to_child(node, io, &below);

    return ret < 0 ? ret : io_zero(node->file, &below);
}

static int raw_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct io below;
    int ret = to_child(node, io, &below);

    return ret < 0 ? ret : io_discard(node->file, &below);
}

static int raw_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                       struct extent *ret_extent) MAY_WAIT
{
    const struct io io = {.offset_bytes = offset_bytes, .length_bytes = length_bytes};
    struct io below;
    int ret = to_child(node, &io, &below);

    if (ret < 0)
        return ret;
    return io_extents(node->file, below.offset_bytes, below.length_bytes, ret_extent);
}

static int raw_truncate(struct node *node, uint64_t length_bytes) MAY_WAIT
{
    const struct raw_options *options = node->options;

    if (options->size_given)
        return -ENOTSUP;
    return io_truncate(node->file, length_bytes + options->offset_bytes);
}

static const struct opt raw_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct raw_options, file),
     .required = true,
     .help = "what holds the bytes"},
    {.name = "offset",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct raw_options, offset_bytes),
     .fallback = "0",
     .max = INT64_MAX,
     .help = "where the window begins in it"},
    {.name = "size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct raw_options, size_bytes),
     .present = OPT_PRESENT(struct raw_options, size_given),
     .max = INT64_MAX,
     .help = "length of the window, a multiple of 512; up to the end when not given"},
    {0},
};

const struct driver driver_raw = {
    .name = "raw",
    .options_size = sizeof(struct raw_options),
    .opts = raw_opts,
    .open = raw_open,
    .child_resized = raw_child_resized,
    .child_perms = raw_perms,
    .describe = raw_describe,
    .read = raw_read,
    .write = raw_write,
    .zero = raw_zero,
    .discard = raw_discard,
    .extents = raw_extents,
    .truncate = raw_truncate,
};
