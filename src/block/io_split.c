/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the driver cannot take as it is: requests that are too large are split; those that are not
 * aligned, in range or in memory, go through a buffer of ours; zeroes are written where there is no
 * better way. The caller has locked the aligned range where bytes around a request are written back.
 */
#include "block/gate.h"

#include <errno.h>
#include <string.h>

/* What one piece through a buffer of ours covers at most, unless the alignment is larger. */
#define BOUNCE_BYTES (256u * 1024)

static struct buf *alloc_bounce(struct node *node, uint64_t length_bytes)
{
    return buf_alloc(loop_bufs(node->graph->loop), length_bytes);
}

static struct io part_of(const struct io *io, uint64_t first, uint64_t end)
{
    struct io part = *io;

    part.offset_bytes = first;
    part.length_bytes = end - first;
    if (io->data.bytes != NULL)
        part.data = buf_slice_sub(io->data, first - io->offset_bytes, end - first);
    return part;
}

/* Where the piece that begins at `at` ends, and whether the driver can take it as it is. */
static uint64_t piece_end(const struct node *node, const struct io *io, uint64_t at,
                          bool *ret_direct)
{
    uint64_t align = node->limits.request_align_bytes;
    uint64_t end = io->offset_bytes + io->length_bytes;
    uint64_t limit = MAX(align_down(max_transfer(node), align), align);
    uint64_t memory = (uintptr_t)io->data.bytes + (at - io->offset_bytes);

    *ret_direct = (at & (align - 1)) == 0 && align_down(end, align) > at &&
                  (memory & (node->limits.memory_align_bytes - 1)) == 0;
    if (*ret_direct)
        return MIN(align_down(end, align), at + limit);
    limit = MIN(limit, MAX(BOUNCE_BYTES, align));
    return MIN(end, align_down(at, align) + limit);
}

static int read_bounced(struct node *node, const struct io *part) MAY_WAIT
{
    uint64_t align = node->limits.request_align_bytes;
    uint64_t first = align_down(part->offset_bytes, align);
    uint64_t end = align_up(part->offset_bytes + part->length_bytes, align);
    CLEANUP(buf_unrefp) struct buf *buf = alloc_bounce(node, end - first);
    struct io whole;
    int ret;

    if (buf == NULL)
        return -ENOMEM;
    whole = (struct io){.offset_bytes = first,
                        .length_bytes = end - first,
                        .data = buf_slice_of(buf, 0, end - first),
                        .flags = part->flags};
    ret = call_read(node, &whole);
    if (ret == 0)
        memcpy(part->data.bytes, buf->bytes + (part->offset_bytes - first), part->length_bytes);
    return ret;
}

int read_in_pieces(struct node *node, const struct io *io)
{
    uint64_t end = io->offset_bytes + io->length_bytes;

    for (uint64_t at = io->offset_bytes, next; at < end; at = next) {
        struct io part;
        bool direct;
        int ret;

        next = piece_end(node, io, at, &direct);
        part = part_of(io, at, next);
        ret = direct ? call_read(node, &part) : read_bounced(node, &part);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* One aligned block as it is now; zeroes past the end. */
static int read_block(struct node *node, struct buf *buf, uint64_t buf_offset, uint64_t offset)
    MAY_WAIT
{
    struct io io = {.offset_bytes = offset, .length_bytes = node->limits.request_align_bytes};

    io.data = buf_slice_of(buf, buf_offset, io.length_bytes);
    if (offset >= node->length_bytes) {
        memset(io.data.bytes, 0, io.length_bytes);
        return 0;
    }
    return call_read(node, &io);
}

/* Read-modify-write where the part is not aligned in range, a copy where it is not in memory. Without
 * data it writes zeroes. */
static int write_bounced(struct node *node, const struct io *part) MAY_WAIT
{
    uint64_t align = node->limits.request_align_bytes;
    uint64_t part_end = part->offset_bytes + part->length_bytes;
    uint64_t first = align_down(part->offset_bytes, align);
    uint64_t end = align_up(part_end, align);
    bool has_head = first < part->offset_bytes, has_tail = part_end < end;
    CLEANUP(buf_unrefp) struct buf *buf = alloc_bounce(node, end - first);
    struct io whole;
    int ret = 0;

    if (buf == NULL)
        return -ENOMEM;
    if (has_head || (has_tail && end - first == align))
        ret = read_block(node, buf, 0, first);
    if (ret == 0 && has_tail && end - first > align)
        ret = read_block(node, buf, end - first - align, end - align);
    if (ret < 0)
        return ret;
    if (part->data.bytes != NULL)
        memcpy(buf->bytes + (part->offset_bytes - first), part->data.bytes, part->length_bytes);
    else
        memset(buf->bytes + (part->offset_bytes - first), 0, part->length_bytes);
    whole = (struct io){.offset_bytes = first,
                        .length_bytes = end - first,
                        .data = buf_slice_of(buf, 0, end - first),
                        .flags = part->flags};
    return call_write(node, &whole);
}

int write_in_pieces(struct node *node, const struct io *io)
{
    uint64_t end = io->offset_bytes + io->length_bytes;

    for (uint64_t at = io->offset_bytes, next; at < end; at = next) {
        struct io part;
        bool direct;
        int ret;

        next = piece_end(node, io, at, &direct);
        part = part_of(io, at, next);
        ret = direct ? call_write(node, &part) : write_bounced(node, &part);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static struct buf *graph_zeroes(struct graph *graph)
{
    if (graph->zeroes == NULL) {
        graph->zeroes = buf_alloc(loop_bufs(graph->loop), GRAPH_ZEROES_BYTES);
        if (graph->zeroes != NULL)
            memset(graph->zeroes->bytes, 0, GRAPH_ZEROES_BYTES);
    }
    return graph->zeroes;
}

/* An aligned stretch. */
static int write_zeroes(struct node *node, uint64_t first, uint64_t end, unsigned flags) MAY_WAIT
{
    uint64_t align = node->limits.request_align_bytes;
    uint64_t limit = MAX(align_down(max_transfer(node), align), align);
    struct buf *zeroes = graph_zeroes(node->graph);

    if (zeroes == NULL)
        return -ENOMEM;
    for (uint64_t at = first, next; at < end; at = next) {
        struct io part = {.offset_bytes = at, .flags = flags & IO_UNCHANGED};
        int ret;

        next = MIN(end, at + MIN(limit, MAX(GRAPH_ZEROES_BYTES, align)));
        part.length_bytes = next - at;
        if (unlikely(part.length_bytes > GRAPH_ZEROES_BYTES)) {
            ret = write_bounced(node, &part);
        } else {
            part.data = buf_slice_of(zeroes, 0, part.length_bytes);
            ret = call_write(node, &part);
        }
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* An aligned stretch, by the hook as far as it takes it. */
static int zero_aligned(struct node *node, const struct io *io, uint64_t first, uint64_t end)
    MAY_WAIT
{
    uint64_t step = MAX(IO_MAX_ZERO_BYTES, node->limits.request_align_bytes);

    for (uint64_t at = first, next; at < end; at = next) {
        struct io part;
        int ret;

        next = MIN(end, at + step);
        part = part_of(io, at, next);
        ret = call_zero(node, &part);
        if (ret == -EOPNOTSUPP && (io->flags & IO_NO_FALLBACK) == 0)
            return write_zeroes(node, at, end, io->flags);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int zero_in_pieces(struct node *node, const struct io *io)
{
    uint64_t align = node->limits.request_align_bytes;
    uint64_t end = io->offset_bytes + io->length_bytes;
    uint64_t head_end = MIN(align_up(io->offset_bytes, align), end);
    uint64_t tail = MAX(align_down(end, align), head_end);
    struct io edge;
    int ret = 0;

    /* The middle first: where it cannot be done fast, nothing has been done. */
    if (head_end < tail)
        ret = zero_aligned(node, io, head_end, tail);
    if (ret == 0 && io->offset_bytes < head_end) {
        edge = part_of(io, io->offset_bytes, head_end);
        edge.flags &= IO_UNCHANGED;
        ret = write_bounced(node, &edge);
    }
    if (ret == 0 && tail < end) {
        edge = part_of(io, tail, end);
        edge.flags &= IO_UNCHANGED;
        ret = write_bounced(node, &edge);
    }
    return ret;
}

int discard_in_pieces(struct node *node, const struct io *io)
{
    uint64_t align = node->limits.request_align_bytes;
    uint64_t first = align_up(io->offset_bytes, align);
    uint64_t end = align_down(io->offset_bytes + io->length_bytes, align);
    uint64_t step = MAX(IO_MAX_ZERO_BYTES, node->limits.request_align_bytes);

    for (uint64_t at = first, next; at < end; at = next) {
        struct io part;
        int ret;

        next = MIN(end, at + step);
        part = part_of(io, at, next);
        ret = call_discard(node, &part);
        if (ret == -EOPNOTSUPP)
            return 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}
