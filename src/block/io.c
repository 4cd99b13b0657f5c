/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one gate to every node. A request that the driver can take as it is passes with a handful of
 * comparisons: no lock, no allocation, no copy.
 */
#include "block/dirty.h"
#include "block/gate.h"

#include <errno.h>

/* --- the hooks --- */

int call_read(struct node *node, struct io *io)
{
    if (likely(node->driver->read != NULL))
        return node->driver->read(node, io);
    return node->driver->is_filter ? io_read(node->file, io) : -ENOTSUP;
}

int call_write(struct node *node, struct io *io)
{
    if (likely(node->driver->write != NULL))
        return node->driver->write(node, io);
    return node->driver->is_filter ? io_write(node->file, io) : -ENOTSUP;
}

int call_zero(struct node *node, struct io *io)
{
    if (node->driver->zero != NULL)
        return node->driver->zero(node, io);
    return node->driver->is_filter ? io_zero(node->file, io) : -EOPNOTSUPP;
}

int call_discard(struct node *node, struct io *io)
{
    if (node->driver->discard != NULL)
        return node->driver->discard(node, io);
    return node->driver->is_filter ? io_discard(node->file, io) : 0;
}

static int call_flush(struct node *node) MAY_WAIT
{
    if (likely(node->driver->flush != NULL))
        return node->driver->flush(node);
    return node->file != NULL ? io_flush(node->file) : 0;
}

/* --- checks --- */

static struct node *enter(struct edge *edge) MAY_WAIT
{
    co_gate_enter(&edge->gate);
    return node_check(edge->child);
}

static void count(struct io_count *counts, uint64_t length_bytes, int ret)
{
    counts->requests++;
    counts->bytes += length_bytes;
    counts->errors += ret < 0;
}

static int check_change(const struct edge *edge, const struct node *node, const struct io *io)
{
    unsigned enough = PERM_WRITE;

    if ((io->flags & IO_UNCHANGED) != 0)
        enough |= PERM_WRITE_UNCHANGED;
    if (unlikely((edge->need & enough) == 0) || unlikely(node->read_only))
        return -EPERM;
    return 0;
}

static bool fits(const struct node *node, const struct io *io)
{
    return range_fits(io->offset_bytes, io->length_bytes, node->length_bytes);
}

/* A write past the end of something that its parent may resize. */
static bool may_grow(const struct edge *edge, const struct node *node, const struct io *io)
{
    return (edge->need & PERM_RESIZE) != 0 &&
           (node->driver->truncate != NULL || node->driver->is_filter) &&
           range_fits(io->offset_bytes, io->length_bytes, INT64_MAX);
}

/* --- order --- */

/* One write, zero or discard of a node, from before its first hook to after its last. */
struct change {
    struct range_lock lock;
    bool locked, rmw;
};

static void change_begin_locked(struct node *node, struct change *change, const struct io *io,
                                bool rmw) MAY_WAIT
{
    uint64_t first = io->offset_bytes, end = first + io->length_bytes;

    change->locked = true;
    if (rmw) {
        uint64_t align = node->limits.request_align_bytes;

        first = align_down(first, align);
        end = align_up(end, align);
        node->rmw_running++;
    }
    range_lock_acquire(&node->ranges, &change->lock, first, end - first, true);
    while (rmw && node->unlocked_writes > 0)
        co_queue_wait(&node->unlocked_done);
}

/* `rmw`: the request reads, changes and writes back bytes around it, so no other change of these may
 * run meanwhile. */
static inline void change_begin(struct node *node, struct change *change, const struct io *io,
                                bool rmw) MAY_WAIT
{
    change->locked = false;
    change->rmw = rmw;
    if (unlikely(rmw || node->rmw_running > 0 || node->driver->orders_writes))
        change_begin_locked(node, change, io, rmw);
    else
        node->unlocked_writes++;
}

static inline void change_end(struct node *node, struct change *change)
{
    if (unlikely(change->locked)) {
        range_lock_release(&node->ranges, &change->lock);
        if (change->rmw)
            node->rmw_running--;
        return;
    }
    assert(node->unlocked_writes > 0);
    if (--node->unlocked_writes == 0 && unlikely(node->rmw_running > 0))
        co_queue_wake_all(&node->unlocked_done);
}

/* --- requests --- */

static int flush_node(struct node *node) MAY_WAIT
{
    int ret;

    if (node->no_flush)
        return 0;
    ret = call_flush(node);
    count(&node->stats.flush, 0, ret);
    return ret;
}

int io_read_inside(struct node *node, const struct io *io)
{
    struct io copy = *io;

    if (unlikely(!fits(node, io)))
        return -EINVAL;
    if (io->length_bytes == 0)
        return 0;
    assert(io->data.length_bytes == io->length_bytes);
    if (likely(range_is_aligned(node, io) && memory_is_aligned(node, io) &&
               io->length_bytes <= max_transfer(node)))
        return call_read(node, &copy);
    return read_in_pieces(node, io);
}

static int gate_read(struct edge *edge, struct node *node, const struct io *io) MAY_WAIT
{
    if (unlikely((edge->need & PERM_CONSISTENT_READ) == 0))
        return -EPERM;
    return io_read_inside(node, io);
}

static int write_checked(struct node *node, const struct io *io) MAY_WAIT
{
    struct io copy = *io;
    bool aligned = range_is_aligned(node, io);
    bool whole = aligned && memory_is_aligned(node, io) && io->length_bytes <= max_transfer(node);
    bool flush = false;
    struct change change;
    int ret;

    if (unlikely((io->flags & IO_FUA) != 0) && (node->no_flush || !node->limits.fua || !whole)) {
        flush = true;
        copy.flags &= ~(unsigned)IO_FUA;
    }
    change_begin(node, &change, io, !aligned);
    ret = likely(whole) ? call_write(node, &copy) : write_in_pieces(node, &copy);
    /* Before others may look at the end, so before a flush. */
    if (unlikely(!fits(node, io)) && ret == 0)
        node_set_length(
            node, align_up(io->offset_bytes + io->length_bytes, node->limits.request_align_bytes));
    change_end(node, &change);
    if (unlikely(flush) && ret == 0)
        ret = flush_node(node);
    return ret;
}

static int zero_checked(struct node *node, const struct io *io) MAY_WAIT
{
    struct io copy = *io;
    bool aligned = range_is_aligned(node, io);
    bool whole = aligned && io->length_bytes <= IO_MAX_ZERO_BYTES;
    bool can = node->driver->zero != NULL || node->driver->is_filter;
    bool flush = false;
    struct change change;
    int ret = -EOPNOTSUPP;

    copy.data = (struct buf_slice){0};
    if (node->discard_ignored)
        copy.flags &= ~(unsigned)IO_MAY_UNMAP;
    if ((io->flags & IO_FUA) != 0 && (node->no_flush || !node->limits.fua || !whole || !can)) {
        flush = true;
        copy.flags &= ~(unsigned)IO_FUA;
    }
    change_begin(node, &change, io, !aligned);
    if (whole && can)
        ret = call_zero(node, &copy);
    if (ret == -EOPNOTSUPP && !(whole && (copy.flags & IO_NO_FALLBACK) != 0)) {
        flush = flush || (copy.flags & IO_FUA) != 0;
        copy.flags &= ~(unsigned)IO_FUA;
        ret = zero_in_pieces(node, &copy);
    }
    change_end(node, &change);
    if (flush && ret == 0)
        ret = flush_node(node);
    return ret;
}

static int gate_write(struct edge *edge, struct node *node, const struct io *io) MAY_WAIT
{
    int ret = check_change(edge, node, io);

    if (unlikely(ret < 0))
        return ret;
    if (unlikely(!fits(node, io)) && !may_grow(edge, node, io))
        return -ENOSPC;
    if (io->length_bytes == 0)
        return 0;
    assert(io->data.length_bytes == io->length_bytes);
    if (unlikely(node->detect_zeroes != NODE_DETECT_ZEROES_OFF) && fits(node, io) &&
        bytes_are_zero(io->data.bytes, io->length_bytes)) {
        struct io zero = *io;

        if (node->detect_zeroes == NODE_DETECT_ZEROES_UNMAP)
            zero.flags |= IO_MAY_UNMAP;
        return zero_checked(node, &zero);
    }
    return write_checked(node, io);
}

static int gate_zero(struct edge *edge, struct node *node, const struct io *io) MAY_WAIT
{
    int ret = check_change(edge, node, io);

    if (ret < 0)
        return ret;
    if (!fits(node, io))
        return -ENOSPC;
    return io->length_bytes > 0 ? zero_checked(node, io) : 0;
}

static int gate_discard(struct edge *edge, struct node *node, const struct io *io) MAY_WAIT
{
    struct io copy = *io;
    struct change change;
    int ret = check_change(edge, node, io);

    if (ret < 0)
        return ret;
    if (!fits(node, io))
        return -EINVAL;
    if (io->length_bytes == 0)
        return 0;
    copy.data = (struct buf_slice){0};
    copy.flags &= ~(unsigned)IO_FUA;
    if (!node->discard_ignored) {
        change_begin(node, &change, io, false);
        ret = discard_in_pieces(node, &copy);
        change_end(node, &change);
    }
    if ((io->flags & IO_FUA) != 0 && ret == 0)
        ret = flush_node(node);
    return ret;
}

/* A failed change may have changed something. */
static inline void mark_dirty(struct node *node, const struct io *io) MAY_WAIT
{
    if (likely(list_empty(&node->trackers)))
        return;
    uint64_t slow_ns = dirty_mark_node(node, io->offset_bytes, io->length_bytes);
    dirty_tell_node(node, io->offset_bytes, io->length_bytes);
    if (slow_ns > 0)
        co_sleep(slow_ns);
}

int io_read(struct edge *edge, const struct io *io)
{
    struct node *node = enter(edge);
    int ret = gate_read(edge, node, io);

    count(&node->stats.read, io->length_bytes, ret);
    co_gate_leave(&edge->gate);
    return ret;
}

int io_write(struct edge *edge, const struct io *io)
{
    struct node *node = enter(edge);
    int ret = gate_write(edge, node, io);

    mark_dirty(node, io);
    count(&node->stats.write, io->length_bytes, ret);
    co_gate_leave(&edge->gate);
    return ret;
}

int io_zero(struct edge *edge, const struct io *io)
{
    struct node *node = enter(edge);
    int ret = gate_zero(edge, node, io);

    mark_dirty(node, io);
    count(&node->stats.zero, io->length_bytes, ret);
    co_gate_leave(&edge->gate);
    return ret;
}

int io_discard(struct edge *edge, const struct io *io)
{
    struct node *node = enter(edge);
    int ret = gate_discard(edge, node, io);

    mark_dirty(node, io);
    count(&node->stats.discard, io->length_bytes, ret);
    co_gate_leave(&edge->gate);
    return ret;
}

int io_flush(struct edge *edge)
{
    struct node *node = enter(edge);
    int ret = flush_node(node);

    co_gate_leave(&edge->gate);
    return ret;
}

static int call_truncate(struct node *node, uint64_t length_bytes) MAY_WAIT
{
    if (node->driver->truncate != NULL)
        return node->driver->truncate(node, length_bytes);
    return node->driver->is_filter ? io_truncate(node->file, length_bytes) : -ENOTSUP;
}

int io_truncate(struct edge *edge, uint64_t length_bytes)
{
    struct node *node = enter(edge);
    int ret = 0;

    if ((edge->need & PERM_RESIZE) == 0 || node->read_only)
        ret = -EPERM;
    else if (length_bytes > INT64_MAX ||
             (length_bytes & (node->limits.request_align_bytes - 1)) != 0)
        ret = -EINVAL;
    if (ret == 0)
        ret = call_truncate(node, length_bytes);
    if (ret == 0)
        node_set_length(node, length_bytes);
    co_gate_leave(&edge->gate);
    return ret;
}
