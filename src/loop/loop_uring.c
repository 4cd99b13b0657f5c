/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop on the kernel: one io_uring, entered once a turn to submit and to wait. Completions come
 * as callbacks; a coroutine's own request is a callback that wakes it.
 */
#include "loop/uring.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#if HAVE_VALGRIND
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

#define RING_ENTRIES    256u
#define OFFLOAD_THREADS 4u
#define CQE_BATCH       256u

/* --- time and chance --- */

static uint64_t clock_read_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t uring_clock_ns(struct loop *loop UNUSED)
{
    return clock_read_ns(CLOCK_MONOTONIC);
}

static uint64_t uring_wall_ns(struct loop *loop UNUSED)
{
    return clock_read_ns(CLOCK_REALTIME);
}

static uint64_t uring_random(struct loop *loop UNUSED)
{
    uint64_t bits;
    ssize_t got;

    do {
        got = getrandom(&bits, sizeof(bits), 0);
    } while (got < 0 && errno == EINTR);
    assert(got == (ssize_t)sizeof(bits));
    return bits;
}

static unsigned uring_features(const struct loop *loop)
{
    return uring_of((struct loop *)(uintptr_t)loop)->features;
}

/* --- submitting and completing --- */

struct io_uring_sqe *uring_sqe(struct loop_uring *self)
{
    struct io_uring_sqe *sqe;

    while ((sqe = io_uring_get_sqe(&self->ring)) == NULL)
        io_uring_submit(&self->ring);
    return sqe;
}

void uring_queue(struct io_uring_sqe *sqe, struct uring_op *op)
{
    io_uring_sqe_set_data(sqe, op);
}

static void uring_complete(struct loop_uring *self)
{
    struct io_uring_cqe *cqes[CQE_BATCH];
    unsigned count;

    while ((count = io_uring_peek_batch_cqe(&self->ring, cqes, CQE_BATCH)) > 0) {
        for (unsigned i = 0; i < count; i++) {
            struct uring_op *op = io_uring_cqe_get_data(cqes[i]);
            if (op != NULL)
                op->done(op, cqes[i]->res);
        }
        io_uring_cq_advance(&self->ring, count);
        if (count < CQE_BATCH)
            break;
    }
}

/* Valgrind lets one thread run at a time and does not know that io_uring_enter() waits: the offload
 * pool would stand still. It does know poll(), which however only sees completions of rings that need
 * not be entered for them. */
#define FEATURES_OFF_UNDER_VALGRIND (LOOP_FEATURE_DEFER_TASKRUN | LOOP_FEATURE_COOP_TASKRUN)

static void uring_wait_under_valgrind(struct loop_uring *self, uint64_t wait_ns)
{
    struct pollfd ring = {.fd = self->ring.ring_fd, .events = POLLIN};
    uint64_t wait_ms = wait_ns / NS_PER_MS + 1;

    io_uring_submit(&self->ring);
    poll(&ring, 1, wait_ms > INT_MAX ? -1 : (int)wait_ms);
    io_uring_get_events(&self->ring);
}

static void uring_poll(struct loop *loop, uint64_t deadline_ns)
{
    struct loop_uring *self = uring_of(loop);
    uint64_t now_ns = deadline_ns != 0 && deadline_ns != DEADLINE_NEVER ? uring_clock_ns(loop) : 0;
    bool wait = io_uring_cq_ready(&self->ring) == 0 && deadline_ns > now_ns;

    if (wait && RUNNING_ON_VALGRIND) {
        uring_wait_under_valgrind(self, deadline_ns - now_ns);
    } else if (!wait) {
        io_uring_submit_and_get_events(&self->ring);
    } else if (deadline_ns == DEADLINE_NEVER) {
        loop->stats.kernel_waits++;
        io_uring_submit_and_wait(&self->ring, 1);
    } else {
        struct __kernel_timespec timeout = {
            .tv_sec = (long long)((deadline_ns - now_ns) / NS_PER_S),
            .tv_nsec = (long long)((deadline_ns - now_ns) % NS_PER_S),
        };
        struct io_uring_cqe *cqe;
        loop->stats.kernel_waits++;
        io_uring_submit_and_wait_timeout(&self->ring, &cqe, 1, &timeout, NULL);
    }
    loop->now_ns = uring_clock_ns(loop);
    uring_complete(self);
}

struct await {
    struct uring_op op;
    struct co *co;
    int result;
    bool done;
};

static void await_done(struct uring_op *op, int result)
{
    struct await *await = CONTAINER_OF(op, struct await, op);

    await->result = result;
    await->done = true;
    co_wake(await->co);
}

int uring_await(struct loop_uring *self UNUSED, struct io_uring_sqe *sqe)
{
    struct await await = {.op = {await_done}, .co = co_self()};

    uring_queue(sqe, &await.op);
    while (!await.done)
        co_wait();
    return await.result;
}

int uring_await_until(struct loop_uring *self, struct io_uring_sqe *sqe, uint64_t deadline_ns)
{
    struct await await = {.op = {await_done}, .co = co_self()};

    uring_queue(sqe, &await.op);
    while (!await.done) {
        if (co_wait_until(deadline_ns) == -ETIMEDOUT && !await.done) {
            struct io_uring_sqe *cancel = uring_sqe(self);
            io_uring_prep_cancel(cancel, &await.op, 0);
            uring_queue(cancel, NULL);
            deadline_ns = DEADLINE_NEVER;
        }
    }
    return await.result;
}

/* --- other threads and signals --- */

static void uring_watch(struct loop_uring *self, int fd, struct uring_op *op)
{
    struct io_uring_sqe *sqe = uring_sqe(self);

    io_uring_prep_poll_add(sqe, fd, POLLIN);
    uring_queue(sqe, op);
}

static void uring_kick(struct loop *loop)
{
    uint64_t one = 1;
    ssize_t wrote;

    do {
        wrote = write(uring_of(loop)->event_fd, &one, sizeof(one));
    } while (wrote < 0 && errno == EINTR);
}

static void uring_post(struct loop *loop, struct loop_task *task)
{
    struct loop_uring *self = uring_of(loop);

    pthread_mutex_lock(&self->post_lock);
    list_push_back(&self->posted, &task->link);
    /* Inside the lock: once the loop's thread can take the task, the loop may go away. */
    uring_kick(loop);
    pthread_mutex_unlock(&self->post_lock);
}

static void uring_event_done(struct uring_op *op, int result UNUSED)
{
    struct loop_uring *self = CONTAINER_OF(op, struct loop_uring, event_op);
    struct list tasks = LIST_INIT(tasks);
    uint64_t count;

    if (read(self->event_fd, &count, sizeof(count)) < 0)
        assert(errno == EAGAIN || errno == EINTR);
    uring_watch(self, self->event_fd, op);
    pthread_mutex_lock(&self->post_lock);
    list_splice_back(&tasks, &self->posted);
    pthread_mutex_unlock(&self->post_lock);
    struct loop_task *task;
    while ((task = LIST_POP_FRONT(&tasks, struct loop_task, link)) != NULL)
        task->run(task);
}

static void uring_signal_done(struct uring_op *op, int result UNUSED)
{
    struct loop_uring *self = CONTAINER_OF(op, struct loop_uring, signal_op);
    struct signalfd_siginfo info;

    uring_watch(self, self->signal_fd, op);
    while (read(self->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        loop_deliver_signal(&self->loop, (int)info.ssi_signo);
}

static int uring_signal_set(struct loop *loop, int signal, struct err *err)
{
    struct loop_uring *self = uring_of(loop);
    sigset_t mask;

    sigemptyset(&mask);
    for (int i = 1; i < LOOP_SIGNALS_MAX; i++) {
        if (loop->signals[i].handler != NULL)
            sigaddset(&mask, i);
    }
    sigaddset(&mask, signal);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    int fd = signalfd(self->signal_fd, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, -errno, "cannot receive signal %d", signal);
    if (self->signal_fd < 0) {
        self->signal_fd = fd;
        uring_watch(self, fd, &self->signal_op);
    }
    return 0;
}

struct offload_await {
    struct offload_job job;
    struct co *co;
    bool done;
};

static void offload_await_done(struct loop_task *task)
{
    struct offload_await *await = CONTAINER_OF(task, struct offload_await, job.done);

    await->done = true;
    co_wake(await->co);
}

static int uring_offload(struct loop *loop, int (*call)(void *arg), void *arg) MAY_WAIT
{
    struct offload_await await = {
        .job = {.call = call, .arg = arg, .loop = loop, .done = {.run = offload_await_done}},
        .co = co_self(),
    };
    int result = offload_submit(uring_of(loop)->offload, &await.job);
    if (result < 0)
        return result;
    while (!await.done)
        co_wait();
    return await.job.result;
}

/* --- making and freeing --- */

static void uring_free(struct loop *loop)
{
    struct loop_uring *self = uring_of(loop);

    offload_free(self->offload);
    assert(list_empty(&self->posted));
    /* What is still watched (the event and signal descriptors) has no memory of ours. */
    if (self->ring.ring_fd > 0)
        io_uring_queue_exit(&self->ring);
    fd_close(&self->event_fd);
    fd_close(&self->signal_fd);
    pthread_mutex_destroy(&self->post_lock);
    loop_deinit(loop);
    free(self);
}

static const struct loop_ops uring_ops = {
    .free = uring_free,
    .clock_ns = uring_clock_ns,
    .wall_ns = uring_wall_ns,
    .random = uring_random,
    .features = uring_features,
    .poll = uring_poll,
    .post = uring_post,
    .signal_set = uring_signal_set,
    .offload = uring_offload,
    .file_open = uring_file_open,
    .file_close = uring_file_close,
    .file_read = uring_file_read,
    .file_writev = uring_file_writev,
    .file_sync = uring_file_sync,
    .file_zero = uring_file_zero,
    .file_truncate = uring_file_truncate,
    .file_stat = uring_file_stat,
    .file_extent = uring_file_extent,
    .file_lock = uring_file_lock,
    .file_unlock = uring_file_unlock,
    .file_lock_test = uring_file_lock_test,
    .file_lock_holder = uring_file_lock_holder,
    .path_rename = uring_path_rename,
    .path_unlink = uring_path_unlink,
    .path_sync_folder = uring_path_sync_folder,
    .path_make_folder = uring_path_make_folder,
    .path_exists = uring_path_exists,
    .sock_listen = uring_sock_listen,
    .sock_connect = uring_sock_connect,
    .sock_adopt = uring_sock_adopt,
    .sock_accept = uring_sock_accept,
    .sock_recv = uring_sock_recv,
    .sock_send = uring_sock_send,
    .sock_send_now = uring_sock_send_now,
    .sock_shutdown = uring_sock_shutdown,
    .sock_close = uring_sock_close,
};

/* The best set of flags that this kernel takes, of those that are not switched off. */
static int uring_setup(struct loop_uring *self, unsigned entries, unsigned features_off)
{
    static const struct {
        unsigned feature, flags;
    } tries[] = {
        {LOOP_FEATURE_DEFER_TASKRUN, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN},
        {LOOP_FEATURE_COOP_TASKRUN, IORING_SETUP_COOP_TASKRUN},
        {0, 0},
    };
    int result = -EINVAL;

    for (size_t i = 0; i < ARRAY_LEN(tries); i++) {
        if ((tries[i].feature & features_off) != 0)
            continue;
        result = io_uring_queue_init(entries, &self->ring, tries[i].flags);
        if (result != -EINVAL) {
            self->features |= result == 0 ? tries[i].feature : 0;
            break;
        }
    }
    return result;
}

static int uring_setup_error(int result, struct err *err)
{
    if (result == -EPERM || result == -EACCES || result == -ENOSYS)
        return err_set_errno(err, result,
                             "this system does not let us use io_uring; in a container allow the "
                             "io_uring system calls (seccomp), on the host set "
                             "kernel.io_uring_disabled to 0");
    if (result == -ENOMEM)
        return err_set_errno(err, result,
                             "no memory for an io_uring; raise the limit on locked memory "
                             "(ulimit -l, LimitMEMLOCK)");
    return err_set_errno(err, result, "cannot make an io_uring");
}

int loop_uring_new(const struct loop_options *options, struct loop **ret_loop, struct err *err)
{
    static const struct loop_options defaults = {.features_off = 0};
    struct loop_uring *self = calloc(1, sizeof(*self));

    if (self == NULL)
        return err_no_memory(err);
    if (options == NULL)
        options = &defaults;
    self->ring.ring_fd = self->event_fd = self->signal_fd = -1;
    self->event_op.done = uring_event_done;
    self->signal_op.done = uring_signal_done;
    pthread_mutex_init(&self->post_lock, NULL);
    list_init(&self->posted);
    int result = loop_init(&self->loop, &uring_ops);
    self->offload = offload_new(options->offload_threads != 0 ? options->offload_threads
                                                              : OFFLOAD_THREADS);
    self->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (result < 0 || self->offload == NULL || self->event_fd < 0) {
        uring_free(&self->loop);
        return err_set(err, -ENOMEM, "no memory or descriptors left for an event loop");
    }
    result = uring_setup(self, options->ring_entries != 0 ? options->ring_entries : RING_ENTRIES,
                         options->features_off |
                             (RUNNING_ON_VALGRIND ? FEATURES_OFF_UNDER_VALGRIND : 0));
    if (result < 0) {
        self->ring.ring_fd = -1;
        uring_free(&self->loop);
        return uring_setup_error(result, err);
    }
    self->features |= (LOOP_FEATURE_INLINE_FILE | LOOP_FEATURE_INLINE_SEND) &
                      ~options->features_off;
    uring_watch(self, self->event_fd, &self->event_op);
    *ret_loop = &self->loop;
    return 0;
}
