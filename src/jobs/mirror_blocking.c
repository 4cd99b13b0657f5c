/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "jobs/mirror_blocking.h"

#include "jobs/mirror.h"

#include <errno.h>

static int copy_locked(struct node *source, struct edge *target, struct io *io, unsigned zero_flags,
                       bool *ret_reading) MAY_WAIT
{
    int ret = io_read_inside(source, io);
    *ret_reading = ret < 0;
    if (ret < 0)
        return ret;
    /* Who has closed the target may have closed what this request came through, and waits for it. */
    if (target->gate.closed > 0)
        return -EAGAIN;
    if (!bytes_are_zero(io->data.bytes, io->length_bytes))
        return io_write(target, io);
    io->flags = zero_flags;
    return io_zero(target, io);
}

int mirror_blocking_copy(struct node *source, struct edge *target, struct range_locks *copying,
                         uint64_t offset_bytes, uint64_t length_bytes, unsigned zero_flags,
                         uint64_t *ret_done_bytes, bool *ret_reading)
{
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(source->graph)),
                                MIN(length_bytes, MIRROR_PIECE_BYTES));
    if (buf == NULL)
        return -EAGAIN;
    while (*ret_done_bytes < length_bytes) {
        uint64_t piece_bytes = MIN(length_bytes - *ret_done_bytes, MIRROR_PIECE_BYTES);
        struct io io = {.offset_bytes = offset_bytes + *ret_done_bytes,
                        .length_bytes = piece_bytes,
                        .data = buf_slice_of(buf, 0, piece_bytes)};
        struct range_lock lock;
        if (!range_lock_try(copying, &lock, io.offset_bytes, piece_bytes, true))
            return -EAGAIN;
        int ret = copy_locked(source, target, &io, zero_flags, ret_reading);
        range_lock_release(copying, &lock);
        if (ret < 0)
            return ret;
        *ret_done_bytes += piece_bytes;
    }
    return 0;
}
