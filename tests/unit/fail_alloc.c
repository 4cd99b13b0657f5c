/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fail_alloc.h"

#include "base/defs.h"

#include <errno.h>
#include <stdlib.h>

#if !BUILT_WITH_ASAN

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

/* Volatile: compilers know malloc() as a function that looks at no variable of ours. */
static volatile long fail_after = -1; /* allocations until the first failure; negative: never */
static volatile bool fail_once;       /* the next allocation succeeds again */
static volatile long failures, live, asked;
static bool (*fail_applies)(void);

static bool fails_now(void)
{
    if (fail_after < 0 || (fail_applies != NULL && !fail_applies()))
        return false;
    asked++;
    if (fail_after > 0) {
        fail_after--;
        return false;
    }
    failures++;
    if (fail_once)
        fail_after = -1;
    errno = ENOMEM;
    return true;
}

/* These take the place of libc's, in libraries too. */
void *malloc(size_t size)
{
    if (fails_now())
        return NULL;
    live++;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    if (fails_now())
        return NULL;
    live++;
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    if (fails_now())
        return NULL;
    live += old == NULL;
    return __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    void *memory = fails_now() ? NULL : __libc_memalign(alignment, size);

    live += memory != NULL;
    return memory;
}

int posix_memalign(void **ret_memory, size_t alignment, size_t size)
{
    void *memory = fails_now() ? NULL : __libc_memalign(alignment, size);

    if (memory == NULL)
        return ENOMEM;
    live++;
    *ret_memory = memory;
    return 0;
}

void free(void *memory)
{
    live -= memory != NULL;
    __libc_free(memory);
}

/* Valgrind puts its own functions in place of ours, unless they have been inlined. */
bool fail_alloc_possible(void)
{
    void *(*volatile allocate)(size_t) = malloc;
    void (*volatile release)(void *) = free;
    void *memory;

    fail_after = 0;
    memory = allocate(1);
    fail_after = -1;
    release(memory);
    return memory == NULL;
}

void fail_alloc_begin(long after, bool once, bool (*applies)(void))
{
    failures = asked = 0;
    fail_once = once;
    fail_applies = applies;
    fail_after = after;
}

long fail_alloc_end(void)
{
    fail_after = -1;
    fail_once = false;
    fail_applies = NULL;
    return failures;
}

long fail_alloc_asked(void)
{
    return asked;
}

long fail_alloc_live(void)
{
    return live;
}

#else

bool fail_alloc_possible(void)
{
    return false;
}

void fail_alloc_begin(long after UNUSED, bool once UNUSED, bool (*applies)(void) UNUSED)
{
}

long fail_alloc_end(void)
{
    return 0;
}

long fail_alloc_asked(void)
{
    return 0;
}

long fail_alloc_live(void)
{
    return 0;
}

#endif
