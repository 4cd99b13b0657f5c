/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Counted, aligned buffers in size classes: what carries the bytes of requests.
 *
 * A buffer belongs to one pool, and a pool to one thread. Whoever keeps a buffer beyond the call it
 * was handed in takes a reference with buf_ref(). A buffer given to the kernel lives until the
 * completion. Fresh buffers are not zeroed.
 *
 * Size classes are powers of two from 4 KiB to 64 MiB; the pool keeps freed buffers of the smaller
 * classes up to a limit, and gives the rest back to the system.
 */
#ifndef BLOCKSTEP_BASE_BUF_H
#define BLOCKSTEP_BASE_BUF_H

#include "base/defs.h"

#define BUF_ALIGNMENT   4096u
#define BUF_MAX_BYTES   (64u * 1024 * 1024)
#define BUF_CACHE_BYTES (16u * 1024 * 1024) /* what a pool keeps of freed buffers, at most */

struct buf_pool;

struct buf {
    uint8_t *bytes; /* aligned to BUF_ALIGNMENT */
    size_t capacity_bytes;
    uint32_t refs;
    uint32_t size_class;
    struct buf_pool *pool;
    struct buf *next_free;
};

/* A stretch of a buffer. It owns no reference by itself: who stores one says so. `buf` may be NULL
 * when the bytes are known to outlive the request (static zeroes); such bytes cannot be kept. */
struct buf_slice {
    struct buf *buf;
    uint8_t *bytes;
    size_t length_bytes;
};

struct buf_pool_stats {
    size_t in_use_bytes; /* capacity of all buffers with references */
    size_t cached_bytes; /* capacity of freed buffers kept for reuse */
    size_t in_use_buffers;
    size_t peak_bytes; /* highest in_use_bytes seen */
};

/* NULL when memory is out. */
struct buf_pool *buf_pool_new(void);
/* All buffers must have been given back: a leak of one is caught here by an assert. NULL is
 * fine. */
void buf_pool_free(struct buf_pool *pool);
struct buf_pool_stats buf_pool_stats(const struct buf_pool *pool);

/* A buffer of at least `length_bytes` (1 to BUF_MAX_BYTES) with one reference, NULL when memory is
 * out. */
struct buf *buf_alloc(struct buf_pool *pool, size_t length_bytes) MUST_CHECK;
struct buf *buf_ref(struct buf *buf);
/* NULL is fine. The last reference gives the buffer back to its pool. */
void buf_unref(struct buf *buf);
/* For CLEANUP. */
void buf_unrefp(struct buf **buf);

static inline struct buf_slice buf_slice_of(struct buf *buf, size_t offset_bytes,
                                            size_t length_bytes)
{
    assert(range_fits(offset_bytes, length_bytes, buf->capacity_bytes));
    return (struct buf_slice){buf, buf->bytes + offset_bytes, length_bytes};
}

static inline struct buf_slice buf_slice_sub(struct buf_slice slice, size_t offset_bytes,
                                             size_t length_bytes)
{
    assert(range_fits(offset_bytes, length_bytes, slice.length_bytes));
    return (struct buf_slice){slice.buf, slice.bytes + offset_bytes, length_bytes};
}

/* True when all bytes are zero; fast for large stretches. */
bool bytes_are_zero(const void *bytes, size_t length_bytes);

#endif
