/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/buf.h"

#include <string.h>
#include <sys/mman.h>

#if HAVE_VALGRIND
#include <valgrind/valgrind.h>
#endif

#define CLASS_MIN_SHIFT  12u /* 4 KiB */
#define CLASSES          15u /* ... to 64 MiB */
/* The highest class worth keeping: larger ones would push all others out. */
#define CLASS_CACHED_MAX 10u /* 4 MiB */
/* From this class on memory comes from the kernel, so that it goes back there at once. */
#define CLASS_MAPPED_MIN 8u /* 1 MiB */

struct buf_class {
    struct buf *free;
    size_t cached_bytes;
};

struct buf_pool {
    size_t cache_limit_bytes;
    struct buf_pool_stats stats;
    struct buf_class classes[CLASSES];
};

_Static_assert(BUF_MAX_BYTES == 1u << (CLASS_MIN_SHIFT + CLASSES - 1),
               "classes end at the maximum");
_Static_assert(BUF_ALIGNMENT == 1u << CLASS_MIN_SHIFT, "a buffer fills its pages");

/* Memory checkers see a use after free only when freed buffers are really freed. */
static bool memory_is_checked(void)
{
#if HAVE_VALGRIND
    if (RUNNING_ON_VALGRIND)
        return true;
#endif
    return BUILT_WITH_ASAN;
}

struct buf_pool *buf_pool_new(void)
{
    struct buf_pool *pool = calloc(1, sizeof(*pool));

    if (pool != NULL && !memory_is_checked())
        pool->cache_limit_bytes = BUF_CACHE_BYTES;
    return pool;
}

static size_t class_bytes(uint32_t size_class)
{
    return (size_t)1 << (CLASS_MIN_SHIFT + size_class);
}

static uint32_t class_of(size_t length_bytes)
{
    if (length_bytes <= BUF_ALIGNMENT)
        return 0;
    return 64u - (uint32_t)__builtin_clzll(length_bytes - 1) - CLASS_MIN_SHIFT;
}

static bool class_is_mapped(uint32_t size_class)
{
    return size_class >= CLASS_MAPPED_MIN && !BUILT_WITH_ASAN;
}

static uint8_t *bytes_new(uint32_t size_class)
{
    size_t size = class_bytes(size_class);
    void *bytes;

    if (class_is_mapped(size_class)) {
        bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return bytes == MAP_FAILED ? NULL : bytes;
    }
    return posix_memalign(&bytes, BUF_ALIGNMENT, size) == 0 ? bytes : NULL;
}

static struct buf *buf_new(struct buf_pool *pool, uint32_t size_class)
{
    struct buf *buf = malloc(sizeof(*buf));
    uint8_t *bytes = bytes_new(size_class);

    if (buf == NULL || bytes == NULL) {
        free(buf);
        if (bytes != NULL && class_is_mapped(size_class))
            munmap(bytes, class_bytes(size_class));
        else
            free(bytes);
        return NULL;
    }
    *buf = (struct buf){
        .bytes = bytes,
        .capacity_bytes = class_bytes(size_class),
        .size_class = size_class,
        .pool = pool,
    };
    return buf;
}

static void buf_free(struct buf *buf)
{
    if (class_is_mapped(buf->size_class))
        munmap(buf->bytes, buf->capacity_bytes);
    else
        free(buf->bytes);
    free(buf);
}

static struct buf *cache_pop(struct buf_pool *pool, uint32_t size_class)
{
    struct buf_class *class = &pool->classes[size_class];
    struct buf *buf = class->free;

    if (likely(buf != NULL)) {
        class->free = buf->next_free;
        class->cached_bytes -= buf->capacity_bytes;
        pool->stats.cached_bytes -= buf->capacity_bytes;
    }
    return buf;
}

static void cache_push(struct buf_pool *pool, struct buf *buf)
{
    struct buf_class *class = &pool->classes[buf->size_class];

    buf->next_free = class->free;
    class->free = buf;
    class->cached_bytes += buf->capacity_bytes;
    pool->stats.cached_bytes += buf->capacity_bytes;
}

/* Makes room in a full cache at the cost of the class that holds most, so that the cache follows
 * the load from one size to another. False: `size_class` itself is the one that holds most. */
static bool cache_evict(struct buf_pool *pool, uint32_t size_class)
{
    uint32_t largest = size_class;

    for (uint32_t i = 0; i <= CLASS_CACHED_MAX; i++) {
        if (pool->classes[i].cached_bytes > pool->classes[largest].cached_bytes)
            largest = i;
    }
    if (largest == size_class)
        return false;
    buf_free(cache_pop(pool, largest));
    return true;
}

/* The way of a freed buffer that does not simply fit into the cache. */
static void cache_overflow(struct buf_pool *pool, struct buf *buf)
{
    if (buf->size_class > CLASS_CACHED_MAX || pool->cache_limit_bytes == 0) {
        buf_free(buf);
        return;
    }
    while (pool->stats.cached_bytes + buf->capacity_bytes > pool->cache_limit_bytes) {
        if (!cache_evict(pool, buf->size_class)) {
            buf_free(buf);
            return;
        }
    }
    cache_push(pool, buf);
}

void buf_pool_free(struct buf_pool *pool)
{
    if (pool == NULL)
        return;
    assert(pool->stats.in_use_buffers == 0);
    for (uint32_t i = 0; i < CLASSES; i++) {
        struct buf *buf;

        while ((buf = cache_pop(pool, i)) != NULL)
            buf_free(buf);
    }
    assert(pool->stats.cached_bytes == 0);
    free(pool);
}

struct buf_pool_stats buf_pool_stats(const struct buf_pool *pool)
{
    return pool->stats;
}

struct buf *buf_alloc(struct buf_pool *pool, size_t length_bytes)
{
    struct buf_pool_stats *stats = &pool->stats;
    uint32_t size_class;
    struct buf *buf;

    assert(length_bytes > 0);
    assert(length_bytes <= BUF_MAX_BYTES);
    size_class = class_of(length_bytes);
    buf = cache_pop(pool, size_class);
    if (unlikely(buf == NULL)) {
        buf = buf_new(pool, size_class);
        if (buf == NULL)
            return NULL;
    }
    buf->refs = 1;
    stats->in_use_buffers++;
    stats->in_use_bytes += buf->capacity_bytes;
    if (stats->in_use_bytes > stats->peak_bytes)
        stats->peak_bytes = stats->in_use_bytes;
    return buf;
}

struct buf *buf_ref(struct buf *buf)
{
    assert(buf->refs > 0);
    assert(buf->refs < UINT32_MAX);
    buf->refs++;
    return buf;
}

void buf_unref(struct buf *buf)
{
    struct buf_pool *pool;

    if (buf == NULL)
        return;
    assert(buf->refs > 0);
    if (--buf->refs > 0)
        return;
    pool = buf->pool;
    assert(pool->stats.in_use_buffers > 0);
    pool->stats.in_use_buffers--;
    pool->stats.in_use_bytes -= buf->capacity_bytes;
    if (likely(buf->size_class <= CLASS_CACHED_MAX &&
               pool->stats.cached_bytes + buf->capacity_bytes <= pool->cache_limit_bytes))
        cache_push(pool, buf);
    else
        cache_overflow(pool, buf);
}

void buf_unrefp(struct buf **buf)
{
    buf_unref(*buf);
    *buf = NULL;
}

bool bytes_are_zero(const void *bytes, size_t length_bytes)
{
    const uint8_t *p = bytes;
    size_t head = MIN(length_bytes, (size_t)16);

    for (size_t i = 0; i < head; i++) {
        if (p[i] != 0)
            return false;
    }
    /* Every byte equals the one 16 before it, back to the zeroes just seen: memcmp is the fastest
     * scan at hand. */
    return memcmp(p, p + head, length_bytes - head) == 0;
}
