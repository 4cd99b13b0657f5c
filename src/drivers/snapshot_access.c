/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * snapshot-access: shows the disk below a copy-before-write filter as it was when the filter came;
 * read-only. With it a point in time can be exported or backed up while the disk is written to.
 *
 *     export -> copy-before-write --file----> disk
 *                  ^        \--target--> overlay
 *     backup -> snapshot-access
 */
#include "drivers/copy_before_write.h"
#include "drivers/table.h"

#include "block/io.h"

#include <errno.h>

/* A read excludes copies of its range: no more than this at once. */
#define READ_MAX_BYTES (1u << 20)

struct snapshot_options {
    struct json_object *file;
};

static bool is_filter(const struct node *node)
{
    return node->driver == &driver_copy_before_write;
}

static int snapshot_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct node *child = node->file->child;

    if (!is_filter(child))
        return err_set(err, -EINVAL, "'file': node '%s' is of driver '%s', not '%s'", child->name,
                       child->driver->name, driver_copy_before_write.name);
    node->limits.max_transfer_bytes = READ_MAX_BYTES;
    node->read_only = true;
    return 0;
}

static void snapshot_perms(struct node *node, struct edge *edge, unsigned parents_need,
                           unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    *ret_need = PERM_CONSISTENT_READ;
    *ret_share = PERM_ALL & ~(unsigned)PERM_RESIZE;
}

/* The child may have been replaced by another node. */
static int snapshot_read(struct node *node, struct io *io) MAY_WAIT
{
    struct edge *edge = node->file;
    int ret = -EIO;

    co_gate_enter(&edge->gate);
    if (is_filter(edge->child))
        ret = cbw_snapshot_read(edge->child, io);
    co_gate_leave(&edge->gate);
    return ret;
}

static int snapshot_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                            struct extent *ret_extent) MAY_WAIT
{
    struct edge *edge = node->file;
    int ret = -EIO;

    co_gate_enter(&edge->gate);
    if (is_filter(edge->child))
        ret = cbw_snapshot_extents(edge->child, offset_bytes, length_bytes, ret_extent);
    co_gate_leave(&edge->gate);
    return ret;
}

static int snapshot_flush(struct node *node) MAY_WAIT
{
    return 0;
}

static const struct opt snapshot_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct snapshot_options, file),
     .required = true,
     .help = "a copy-before-write node"},
    {0},
};

const struct driver driver_snapshot_access = {
    .name = "snapshot-access",
    .options_size = sizeof(struct snapshot_options),
    .opts = snapshot_opts,
    .open = snapshot_open,
    .child_perms = snapshot_perms,
    .read = snapshot_read,
    .flush = snapshot_flush,
    .extents = snapshot_extents,
};
