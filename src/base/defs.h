/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Small things that every file needs: attributes, scope-bound release, arithmetic on powers of two,
 * and MAY_WAIT, the mark of functions that can suspend the calling coroutine.
 *
 * The CLEANUP idiom is systemd's and nbdkit's; the use of clang's thread-safety analysis to colour
 * functions that wait is QEMU's "coroutine_fn" made checkable.
 */
#ifndef BLOCKSTEP_BASE_DEFS_H
#define BLOCKSTEP_BASE_DEFS_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define MUST_CHECK             __attribute__((warn_unused_result))
#define UNUSED                 __attribute__((unused))
#define NORETURN               __attribute__((noreturn))

/* 1 in a build with AddressSanitizer, with either compiler; else 0. */
#if defined(__SANITIZE_ADDRESS__)
#define BUILT_WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BUILT_WITH_ASAN 1
#endif
#endif
#ifndef BUILT_WITH_ASAN
#define BUILT_WITH_ASAN 0
#endif

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)    ((a) < (b) ? (a) : (b))
#define MAX(a, b)    ((a) > (b) ? (a) : (b))

#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* Release at the end of the scope: CLEANUP(free_ptr) char *name = NULL; */
#define CLEANUP(fn) __attribute__((cleanup(fn)))

/* Visible transfer of ownership out of a CLEANUP variable: s->name = TAKE_PTR(name); */
#define TAKE_PTR(ptr)                   \
    ({                                  \
        __typeof__(ptr) taken_ = (ptr); \
        (ptr) = NULL;                   \
        taken_;                         \
    })
#define TAKE_FD(fd)        \
    ({                     \
        int taken_ = (fd); \
        (fd) = -1;         \
        taken_;            \
    })

/* For CLEANUP: frees what a `char *`, `void *` or `struct x *` variable points to. */
static inline void free_ptr(void *ptr_to_ptr)
{
    free(*(void **)ptr_to_ptr);
}

/* Closes the descriptor in *fd unless it is negative. For CLEANUP. */
void fd_close(int *fd);

static inline bool is_power_of_two(uint64_t x)
{
    return x != 0 && (x & (x - 1)) == 0;
}

static inline uint64_t align_down(uint64_t x, uint64_t alignment)
{
    return x & ~(alignment - 1);
}

/* The caller has made sure that x + alignment does not overflow. */
static inline uint64_t align_up(uint64_t x, uint64_t alignment)
{
    return (x + alignment - 1) & ~(alignment - 1);
}

/* True when [offset, offset + length) lies within [0, limit), without overflow. */
static inline bool range_fits(uint64_t offset, uint64_t length, uint64_t limit)
{
    return offset <= limit && length <= limit - offset;
}

/* True when [a, a + a_length) and [b, b + b_length) share a byte; without overflow. An empty range
 * shares none. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    if (a_length == 0 || b_length == 0)
        return false;
    return a < b ? b - a < a_length : a - b < b_length;
}

/*
 * MAY_WAIT: the function may suspend the calling coroutine. Only coroutines may call it; clang's
 * -Wthread-safety checks that the caller carries the mark too. It goes between the parameter list
 * and the body or semicolon:
 *
 *     int node_flush(struct edge *edge) MAY_WAIT;
 *
 * The analysis does not follow calls through pointers: each hook has one wrapper that calls it, and
 * that wrapper is marked. A coroutine's entry function is marked as well; loop/co.c calls it
 * through a pointer. Code that is not in a coroutine (tests, main) cannot call a marked function
 * directly.
 */
#if defined(__clang__)
struct __attribute__((capability("coroutine"))) co_capability {
    char unused;
};
extern struct co_capability co_capability;
#define MAY_WAIT __attribute__((requires_capability(co_capability)))
#else
#define MAY_WAIT
#endif

#endif
