/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Coroutines: stacks, the switch between them, and what the tools must be told about both.
 *
 * The switch is by hand on x86-64 and AArch64 (a dozen instructions; swapcontext would cost two
 * system calls) and by ucontext elsewhere. A coroutine and its stack are one mapping: guard page,
 * stack, and at its top `struct co`, so that a freed one is reused without touching the allocator.
 */
#include "loop/loop_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if BUILT_WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif

#if HAVE_VALGRIND
#include <valgrind/memcheck.h>
#include <valgrind/valgrind.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

#define CO_MAGIC       0x636f726fu
#define CO_GUARD_BYTES 4096u

enum co_state { CO_READY, CO_RUNNING, CO_SUSPENDED, CO_ENDED };

struct co {
    uint32_t magic;
    enum co_state state;
    struct loop *loop;
    const char *name;
    co_entry *entry;
    void *arg;
    void *stack_pointer;   /* saved while it does not run */
    void *caller_pointer;  /* of whoever resumed it */
    struct co *resumed_by; /* NULL: the loop */
    struct list_link ready_link;
    struct list_link pool_link; /* cached or alive */
    bool wake_pending;          /* woken while it ran */
    bool timed_out;
    bool yielded; /* ready, behind those that were ready before it */
    unsigned no_wait_depth;
    struct loop_timer timer;
    uint8_t *mapping; /* guard page, then the stack */
    unsigned valgrind_stack;
#if BUILT_WITH_ASAN
    void *asan_fake_stack;
    const void *asan_caller_bottom;
    size_t asan_caller_bytes;
#endif
#if !defined(__x86_64__) && !defined(__aarch64__)
    ucontext_t context, caller_context;
#endif
};

#define CO_MAPPING_BYTES (CO_GUARD_BYTES + CO_STACK_BYTES)

struct co_stacks {
    struct list cached; /* struct co */
};

static _Thread_local struct loop *current_loop;

struct loop *loop_enter(struct loop *loop)
{
    struct loop *former = current_loop;
    current_loop = loop;
    return former;
}

struct loop *loop_current(void)
{
    return current_loop;
}

struct co *co_self(void)
{
    return current_loop != NULL ? current_loop->current : NULL;
}

struct loop *co_loop(const struct co *co)
{
    return co->loop;
}

const char *co_name(const struct co *co)
{
    return co->name;
}

/* --- the switch --- */

void co_switch(void **ret_save, void *load);
void co_start(void); /* first address that a new stack returns to */
void co_main(struct co *co);

#if defined(__x86_64__)
/* Saves what the ABI makes the callee keep, and swaps stacks. The floating point control words are
 * the process's and the same everywhere. */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl co_switch\n"
        ".hidden co_switch\n"
        ".type co_switch, @function\n"
        "co_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size co_switch, . - co_switch\n"
        ".p2align 4\n"
        ".globl co_start\n"
        ".hidden co_start\n"
        ".type co_start, @function\n"
        "co_start:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined rip\n" /* the debugger's back trace ends here */
        "    movq %rbx, %rdi\n"
        "    call co_main\n"
        "    ud2\n"
        "    .cfi_endproc\n"
        ".size co_start, . - co_start\n");

static void co_prepare_stack(struct co *co)
{
    uintptr_t top = align_down((uintptr_t)co, 16);
    void **sp = (void **)top;

    *--sp = NULL;
    *--sp = NULL;                        /* co_start's call wants the stack aligned to 16 */
    *--sp = (void *)(uintptr_t)co_start; /* ret */
    *--sp = NULL;                        /* rbp */
    *--sp = co;                          /* rbx */
    for (int i = 0; i < 4; i++)
        *--sp = NULL; /* r12 - r15 */
    co->stack_pointer = sp;
}
#elif defined(__aarch64__)
__asm__(".text\n"
        ".p2align 4\n"
        ".globl co_switch\n"
        ".hidden co_switch\n"
        ".type co_switch, %function\n"
        "co_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size co_switch, . - co_switch\n"
        ".p2align 4\n"
        ".globl co_start\n"
        ".hidden co_start\n"
        ".type co_start, %function\n"
        "co_start:\n"
        "    mov x0, x19\n"
        "    bl co_main\n"
        "    brk #1\n"
        ".size co_start, . - co_start\n");

static void co_prepare_stack(struct co *co)
{
    void **sp = (void **)align_down((uintptr_t)co, 16) - 20;

    memset(sp, 0, 20 * sizeof(void *));
    sp[0] = co;                           /* x19 */
    sp[11] = (void *)(uintptr_t)co_start; /* x30 */
    co->stack_pointer = sp;
}
#else
static void co_ucontext_main(unsigned low, unsigned high)
{
    co_main((struct co *)(((uintptr_t)high << 16 << 16) | low));
}

static void co_prepare_stack(struct co *co)
{
    uintptr_t self = (uintptr_t)co;

    getcontext(&co->context);
    co->context.uc_stack.ss_sp = co->mapping + CO_GUARD_BYTES;
    co->context.uc_stack.ss_size = (uint8_t *)co - (co->mapping + CO_GUARD_BYTES);
    co->context.uc_link = NULL;
    makecontext(&co->context, (void (*)(void))co_ucontext_main, 2, (unsigned)self,
                (unsigned)(self >> 16 >> 16));
}
#endif

/* --- stacks --- */

static uint8_t *co_stack_bottom(const struct co *co)
{
    return co->mapping + CO_GUARD_BYTES;
}

static UNUSED size_t co_stack_bytes(const struct co *co)
{
    return (size_t)((const uint8_t *)co - co_stack_bottom(co));
}

static struct co *co_map(void)
{
    uint8_t *mapping = mmap(NULL, CO_MAPPING_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    if (mprotect(mapping, CO_GUARD_BYTES, PROT_NONE) != 0) {
        munmap(mapping, CO_MAPPING_BYTES);
        return NULL;
    }
    struct co *co = (struct co *)(void *)(mapping + CO_MAPPING_BYTES -
                                          align_up(sizeof(struct co), 64));
    co->mapping = mapping;
#if HAVE_VALGRIND
    co->valgrind_stack = VALGRIND_STACK_REGISTER(co_stack_bottom(co), co);
#endif
    return co;
}

static void co_unmap(struct co *co)
{
    uint8_t *mapping = co->mapping;

#if HAVE_VALGRIND
    VALGRIND_STACK_DEREGISTER(co->valgrind_stack);
#endif
    munmap(mapping, CO_MAPPING_BYTES);
}

void co_pool_init(struct co_pool *pool)
{
    *pool = (struct co_pool){.alive_count = 0};
    list_init(&pool->cached);
    list_init(&pool->alive);
}

static void co_unmap_all(struct list *cached)
{
    LIST_FOR_EACH_SAFE(co, cached, struct co, pool_link)
        co_unmap(co);
    list_init(cached);
}

void co_pool_deinit(struct loop *loop)
{
    struct co_pool *pool = &loop->coroutines;

    assert(list_empty(&pool->alive));
    if (pool->heirs != NULL)
        list_splice_back(&pool->heirs->cached, &pool->cached);
    else
        co_unmap_all(&pool->cached);
    pool->cached_count = 0;
}

struct co_stacks *co_stacks_new(void)
{
    struct co_stacks *stacks = calloc(1, sizeof(*stacks));

    if (stacks != NULL)
        list_init(&stacks->cached);
    return stacks;
}

void co_stacks_free(struct co_stacks *stacks)
{
    if (stacks != NULL)
        co_unmap_all(&stacks->cached);
    free(stacks);
}

void co_visit_alive(struct loop *loop, void (*visit)(void *arg, const struct co *co), void *arg)
{
    LIST_FOR_EACH(co, &loop->coroutines.alive, struct co, pool_link)
        visit(arg, co);
}

static struct co *co_take(struct loop *loop)
{
    struct co_pool *pool = &loop->coroutines;
    struct co *co = LIST_POP_FRONT(&pool->cached, struct co, pool_link);

    if (co != NULL)
        pool->cached_count--;
    else if (pool->heirs != NULL)
        co = LIST_POP_FRONT(&pool->heirs->cached, struct co, pool_link);
    if (co == NULL && (co = co_map()) == NULL)
        return NULL;
#if BUILT_WITH_ASAN
    /* What only a suspended coroutine points to is not leaked; what an ended one did is. */
    __lsan_register_root_region(co_stack_bottom(co), CO_STACK_BYTES);
#endif
    list_push_front(&pool->alive, &co->pool_link);
    if (++pool->alive_count > pool->alive_peak)
        pool->alive_peak = pool->alive_count;
    return co;
}

static void co_give_back(struct co *co)
{
    struct co_pool *pool = &co->loop->coroutines;

    co->magic = 0;
#if BUILT_WITH_ASAN
    __lsan_unregister_root_region(co_stack_bottom(co), CO_STACK_BYTES);
#endif
    list_remove(&co->pool_link);
    pool->alive_count--;
    if (pool->cached_count >= CO_POOL_STACKS) {
        co_unmap(co);
        return;
    }
    list_push_front(&pool->cached, &co->pool_link); /* the warmest stack first */
    pool->cached_count++;
}

/* Pages are mapped on first touch and stay, so the lowest resident one tells how deep it went. */
static size_t co_stack_touched_bytes(const struct co *co)
{
    unsigned char resident[CO_STACK_BYTES / 4096];

    if (mincore(co_stack_bottom(co), CO_STACK_BYTES, resident) != 0)
        return 0;
    for (size_t page = 0; page < ARRAY_LEN(resident); page++) {
        if (resident[page] & 1)
            return CO_STACK_BYTES - page * 4096;
    }
    return 0;
}

size_t co_stack_peak_bytes(struct loop *loop)
{
    size_t peak = 0;

    LIST_FOR_EACH(co, &loop->coroutines.cached, struct co, pool_link)
        peak = MAX(peak, co_stack_touched_bytes(co));
    LIST_FOR_EACH(co, &loop->coroutines.alive, struct co, pool_link)
        peak = MAX(peak, co_stack_touched_bytes(co));
    return peak;
}

/* --- entering and leaving --- */

#if BUILT_WITH_ASAN
static void asan_before_resume(struct co *co, void **fake_stack)
{
    __sanitizer_start_switch_fiber(fake_stack, co_stack_bottom(co), co_stack_bytes(co));
}

static void asan_after_resume(void *fake_stack)
{
    __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
}

static void asan_before_suspend(struct co *co, bool for_ever)
{
    __sanitizer_start_switch_fiber(for_ever ? NULL : &co->asan_fake_stack, co->asan_caller_bottom,
                                   co->asan_caller_bytes);
}

static void asan_after_suspend(struct co *co)
{
    __sanitizer_finish_switch_fiber(co->asan_fake_stack, &co->asan_caller_bottom,
                                    &co->asan_caller_bytes);
}
#else
static inline void asan_before_resume(struct co *co UNUSED, void **fake_stack UNUSED)
{
}
static inline void asan_after_resume(void *fake_stack UNUSED)
{
}
static inline void asan_before_suspend(struct co *co UNUSED, bool for_ever UNUSED)
{
}
static inline void asan_after_suspend(struct co *co UNUSED)
{
}
#endif

static void co_resume(struct co *co)
{
    struct loop *loop = co->loop;
    void *fake_stack = NULL;

    assert(co->magic == CO_MAGIC);
    assert(co->state == CO_READY);
    co->state = CO_RUNNING;
    co->yielded = false;
    co->resumed_by = loop->current;
    loop->current = co;
    asan_before_resume(co, &fake_stack);
#if defined(__x86_64__) || defined(__aarch64__)
    co_switch(&co->caller_pointer, co->stack_pointer);
#else
    swapcontext(&co->caller_context, &co->context);
#endif
    asan_after_resume(fake_stack);
    loop->current = co->resumed_by;
    if (co->state == CO_ENDED)
        co_give_back(co);
}

static void co_leave(struct co *co, bool for_ever)
{
    asan_before_suspend(co, for_ever);
#if defined(__x86_64__) || defined(__aarch64__)
    co_switch(&co->stack_pointer, co->caller_pointer);
#else
    swapcontext(&co->context, &co->caller_context);
#endif
    asan_after_suspend(co);
}

/* Calls through the entry's pointer; the mark is on the entry itself. */
void co_main(struct co *co)
{
#if BUILT_WITH_ASAN
    __sanitizer_finish_switch_fiber(NULL, &co->asan_caller_bottom, &co->asan_caller_bytes);
#endif
    co->entry(co->arg);
    assert(co->no_wait_depth == 0);
    assert(!loop_timer_armed(&co->timer));
    co->state = CO_ENDED;
    co_leave(co, true);
    abort(); /* an ended coroutine was resumed */
}

static void co_timer_fire(struct loop_timer *timer)
{
    struct co *co = CONTAINER_OF(timer, struct co, timer);

    co->timed_out = true;
    co_wake(co);
}

static struct co *co_create(struct loop *loop, const char *name, co_entry *entry, void *arg)
{
    struct co *co = co_take(loop);
    if (co == NULL)
        return NULL;
    co->magic = CO_MAGIC;
    co->state = CO_READY;
    co->loop = loop;
    co->name = name;
    co->entry = entry;
    co->arg = arg;
    co->wake_pending = false;
    co->no_wait_depth = 0;
    co->ready_link = (struct list_link){NULL, NULL};
    co->timer = (struct loop_timer){.fire = co_timer_fire};
#if BUILT_WITH_ASAN
    /* The frames that stood when the last coroutine ended on this stack left their red zones. */
    ASAN_UNPOISON_MEMORY_REGION(co_stack_bottom(co), co_stack_bytes(co));
#endif
    co_prepare_stack(co);
    return co;
}

int co_spawn(struct loop *loop, const char *name, co_entry *entry, void *arg)
{
    struct co *co = co_create(loop, name, entry, arg);
    if (co == NULL)
        return -ENOMEM;
    list_push_back(&loop->ready, &co->ready_link);
    return 0;
}

int co_spawn_now(struct loop *loop, const char *name, co_entry *entry, void *arg)
{
    struct co *co = co_create(loop, name, entry, arg);
    if (co == NULL)
        return -ENOMEM;
    struct loop *former = loop_enter(loop);
    co_resume(co);
    loop_enter(former);
    return 0;
}

void co_run_next(struct loop *loop)
{
    struct list_link *link = loop->ops->pick != NULL ? loop->ops->pick(loop, &loop->ready) : NULL;
    if (link == NULL)
        link = list_first(&loop->ready);
    list_remove(link);
    co_resume(LIST_ENTRY(link, struct co, ready_link));
}

void co_wait(void)
{
    struct co *co = co_self();

    assert(co != NULL);
    assert(co->no_wait_depth == 0);
    if (co->wake_pending) {
        co->wake_pending = false;
        return;
    }
    co->state = CO_SUSPENDED;
    co_leave(co, false);
}

int co_wait_until(uint64_t deadline_ns)
{
    struct co *co = co_self();

    assert(co != NULL);
    if (deadline_ns == DEADLINE_NEVER) {
        co_wait();
        return 0;
    }
    co->timed_out = false;
    loop_timer_arm(co->loop, &co->timer, deadline_ns);
    co_wait();
    loop_timer_cancel(&co->timer);
    return co->timed_out ? -ETIMEDOUT : 0;
}

void co_wake(struct co *co)
{
    assert(co->magic == CO_MAGIC);
    if (co->state == CO_RUNNING) {
        co->wake_pending = true;
    } else if (co->state == CO_SUSPENDED) {
        co->state = CO_READY;
        list_push_back(&co->loop->ready, &co->ready_link);
    }
}

void co_yield(void)
{
    struct co *co = co_self();

    assert(co != NULL);
    assert(co->no_wait_depth == 0);
    co->state = CO_READY;
    co->yielded = true;
    list_push_back(&co->loop->ready, &co->ready_link);
    co_leave(co, false);
}

bool co_has_yielded(const struct list_link *ready_link)
{
    return LIST_ENTRY(ready_link, struct co, ready_link)->yielded;
}

void co_sleep_until(uint64_t deadline_ns)
{
    while (co_wait_until(deadline_ns) != -ETIMEDOUT)
        ;
}

void co_sleep(uint64_t duration_ns)
{
    co_sleep_until(loop_clock_ns(co_loop(co_self())) + duration_ns);
}

unsigned co_no_wait_enter(void)
{
    struct co *co = co_self();
    return co != NULL ? ++co->no_wait_depth : 0;
}

void co_no_wait_leave(unsigned *token)
{
    struct co *co = co_self();
    assert(co == NULL || co->no_wait_depth == *token);
    if (co != NULL)
        co->no_wait_depth--;
}
