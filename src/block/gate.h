/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The two halves of the gate: io.c checks, orders and counts; io_split.c turns a request into what
 * the driver can take. Between them a request has passed all checks. */
#ifndef BLOCKSTEP_BLOCK_GATE_H
#define BLOCKSTEP_BLOCK_GATE_H

#include "block/internal.h"
#include "block/io.h"

/* io.c: the driver's hooks, each called in one place. */
int call_read(struct node *node, struct io *io) MAY_WAIT;
int call_write(struct node *node, struct io *io) MAY_WAIT;
int call_zero(struct node *node, struct io *io) MAY_WAIT;
int call_discard(struct node *node, struct io *io) MAY_WAIT;

static inline uint64_t max_transfer(const struct node *node)
{
    uint32_t limit = node->limits.max_transfer_bytes;

    return limit != 0 ? MIN(limit, IO_MAX_TRANSFER_BYTES) : IO_MAX_TRANSFER_BYTES;
}

static inline bool range_is_aligned(const struct node *node, const struct io *io)
{
    return ((io->offset_bytes | io->length_bytes) & (node->limits.request_align_bytes - 1)) == 0;
}

static inline bool memory_is_aligned(const struct node *node, const struct io *io)
{
    return ((uintptr_t)io->data.bytes & (node->limits.memory_align_bytes - 1)) == 0;
}

/* io_split.c: reads and writes that are too large, or not aligned in range or memory. */
int read_in_pieces(struct node *node, const struct io *io) MAY_WAIT;
int write_in_pieces(struct node *node, const struct io *io) MAY_WAIT;
/* Any zero request without IO_FUA; unaligned edges are written. */
int zero_in_pieces(struct node *node, const struct io *io) MAY_WAIT;
/* Any discard; what is not aligned at its edges is left out. */
int discard_in_pieces(struct node *node, const struct io *io) MAY_WAIT;

#endif
