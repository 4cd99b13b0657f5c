/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mistakes made inside coroutines, on purpose, for test_coroutine_tools.py: each shows that a tool
 * sees coroutine stacks as it sees others.
 */
#include "loop/co_sync.h"

#include <stdio.h>
#include <string.h>

static volatile int sink;
static struct co_queue never;

static void stay(void *arg) MAY_WAIT;
static void stay(void *arg)
{
    /* From here on only this stack knows the block. */
    char *volatile block = malloc(1000);

    (void)arg;
    memset(block, 1, 1000);
    co_queue_wait(&never);
    free(block);
}

static void lose(void *arg UNUSED)
{
    char *volatile block = malloc(1000);
    memset(block, 1, 1000);
    block = NULL;
}

static void overrun(void *arg UNUSED)
{
    volatile char small[16];
    volatile char *volatile pointer = small; /* not an array any more: UBSan would be first */
    volatile int beyond = 16;

    small[0] = 1;
    sink = pointer[beyond];
}

static int dig(int depth)
{
    volatile char frame[1024];

    frame[0] = (char)depth;
    return depth == 0 ? 0 : dig(depth - 1) + frame[0];
}

static void exhaust(void *arg UNUSED)
{
    sink = dig(1 << 20);
}

static void use_after_return_inner(volatile char **ret_pointer)
{
    volatile char local[64];
    memset((char *)(uintptr_t)local, 1, sizeof(local));
    *ret_pointer = local;
}

static void abort_here(void *arg UNUSED)
{
    volatile char *pointer;

    use_after_return_inner(&pointer);
    sink = pointer != NULL;
    abort();
}

static void uninitialised(void *arg UNUSED)
{
    char *volatile block = malloc(16);
    if (block[3] == 7) /* valgrind: depends on uninitialised value */
        sink = 1;
    free(block);
}

static void finish(void *arg)
{
    loop_stop(arg);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        co_entry *entry;
    } faults[] = {
        {"stay", stay},       {"lose", lose},        {"overrun", overrun},
        {"exhaust", exhaust}, {"abort", abort_here}, {"uninitialised", uninitialised},
    };
    struct err err = ERR_INIT;
    static struct loop *loop; /* reachable at exit */

    co_queue_init(&never);
    if (argc != 2 || loop_uring_new(NULL, &loop, &err) < 0)
        return 2;
    for (size_t i = 0; i < ARRAY_LEN(faults); i++) {
        if (strcmp(argv[1], faults[i].name) != 0)
            continue;
        /* One that waits beside each fault, for the debugger. */
        if (co_spawn(loop, "stays-behind", stay, NULL) != 0 ||
            co_spawn(loop, "makes-the-fault", faults[i].entry, NULL) != 0 ||
            co_spawn(loop, "finishes", finish, loop) != 0)
            return 2;
        loop_run(loop);
        return 0; /* the loop stays: coroutines are suspended in it */
    }
    return 2;
}
