/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one gate to every node. Checks bounds, alignment, flags and permissions, orders writes where
 * the node wants it, splits and copies where it must, emulates what the driver lacks, counts, and
 * calls the hook.
 *
 * Errors: -EINVAL beyond the end (read, discard), -ENOSPC beyond the end (write, zero; with
 * PERM_RESIZE a write may extend a node whose driver can), -EPERM on a
 * read-only node or an edge without the permission, -EOPNOTSUPP, or what the driver returned. Zero
 * length is fine and does nothing.
 */
#ifndef BLOCKSTEP_BLOCK_IO_H
#define BLOCKSTEP_BLOCK_IO_H

#include "block/node.h"

int io_read(struct edge *edge, const struct io *io) MAY_WAIT;
int io_write(struct edge *edge, const struct io *io) MAY_WAIT;
int io_zero(struct edge *edge, const struct io *io) MAY_WAIT;
int io_discard(struct edge *edge, const struct io *io) MAY_WAIT;
int io_flush(struct edge *edge) MAY_WAIT;
/* For who runs within a request of the node (dirty_tracker.changed): reads from the node itself, past all
 * edges above it. */
int io_read_inside(struct node *node, const struct io *io) MAY_WAIT;

/* The first stretch at the offset that is of one kind; the caller asks again behind it. */
int io_extents(struct edge *edge, uint64_t offset_bytes, uint64_t length_bytes,
               struct extent *ret_extent) MAY_WAIT;

/* zero and discard hooks get at most this much at once. */
#define IO_MAX_ZERO_BYTES     (1u << 30)
#define IO_MAX_TRANSFER_BYTES (32u << 20)

/* Needs PERM_RESIZE and a driver that can. The length is a multiple of the node's alignment. */
int io_truncate(struct edge *edge, uint64_t length_bytes) MAY_WAIT;

/* How much of [offset, offset + length) from its start the layers from the edge's node down to, and
 * without, `base` hold (*ret_held) or do not hold, and for how many bytes it stays so. */
int io_held(struct edge *edge, const struct node *base, uint64_t offset_bytes,
            uint64_t length_bytes, bool *ret_held, uint64_t *ret_length_bytes) MAY_WAIT;

/* Emptying, as driver.h says; through filters that leave it to their child. */
bool node_can_empty(struct node *node);
int node_empty_prepare(struct node *node, struct err *err) MAY_WAIT;
void node_empty_commit(struct node *node);
void node_empty_abort(struct node *node);

#endif
