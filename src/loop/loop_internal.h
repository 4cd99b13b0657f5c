/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the two loops share, and what each supplies. Only files of this folder include this.
 *
 * loop.c owns the turn, the ready queue, timers and deferred tasks; a backend (loop_uring, loop_sim)
 * embeds `struct loop` and supplies time, waiting, files and sockets as hooks. Hooks that wait are
 * written in coroutine style, like everything above.
 */
#ifndef BLOCKSTEP_LOOP_INTERNAL_H
#define BLOCKSTEP_LOOP_INTERNAL_H

#include "loop/co_sync.h"
#include "loop/file.h"
#include "loop/sock.h"

struct loop_ops {
    void (*free)(struct loop *loop); /* frees the backend and `loop` itself */
    uint64_t (*clock_ns)(struct loop *loop);
    uint64_t (*wall_ns)(struct loop *loop);
    uint64_t (*random)(struct loop *loop);
    unsigned (*features)(const struct loop *loop);

    /* Handles completions: waits for the first until the deadline (0: does not wait). Called from
     * the loop, never from a coroutine; it wakes coroutines and returns. */
    void (*poll)(struct loop *loop, uint64_t deadline_ns);
    /* Thread-safe: has `task` run by the loop's thread, in a poll. */
    void (*post)(struct loop *loop, struct loop_task *task);
    /* Picks which ready coroutine runs next (the simulator shuffles); NULL: the first. */
    struct list_link *(*pick)(struct loop *loop, struct list *ready);

    int (*signal_set)(struct loop *loop, int signal, struct err *err);
    int (*offload)(struct loop *loop, int (*call)(void *arg), void *arg);

    int (*file_open)(struct loop *loop, const char *path, unsigned flags, enum file_aio aio,
                     struct file **ret_file, struct err *err);
    void (*file_close)(struct file *file);
    ssize_t (*file_read)(struct file *file, void *bytes, size_t length_bytes,
                         uint64_t offset_bytes);
    int (*file_writev)(struct file *file, struct iovec *iov, int count, uint64_t offset_bytes);
    int (*file_sync)(struct file *file);
    int (*file_zero)(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool punch,
                     bool may_unmap); /* punch: -EOPNOTSUPP when impossible */
    int (*file_truncate)(struct file *file, uint64_t length_bytes);
    int (*file_stat)(struct file *file, struct file_stat *ret_stat);
    int (*file_extent)(struct file *file, uint64_t offset_bytes, uint64_t length_bytes,
                       bool *ret_data, uint64_t *ret_length_bytes);
    int (*file_lock)(struct file *file, uint64_t byte, bool exclusive);
    int (*file_unlock)(struct file *file, uint64_t byte);
    int (*file_lock_test)(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked);
    int (*file_lock_holder)(struct file *file, int64_t *ret_pid, char *name, size_t name_bytes);
    int (*path_rename)(struct loop *loop, const char *from, const char *to, bool exchange);
    int (*path_unlink)(struct loop *loop, const char *path);
    int (*path_sync_folder)(struct loop *loop, const char *folder);
    int (*path_make_folder)(struct loop *loop, const char *folder, unsigned mode);
    bool (*path_exists)(struct loop *loop, const char *path);

    int (*sock_listen)(struct loop *loop, const struct sock_address *address,
                       struct sock **ret_listener, struct err *err);
    int (*sock_connect)(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                        struct sock **ret_sock, struct err *err);
    int (*sock_adopt)(struct loop *loop, int fd, bool listening, struct sock **ret_sock,
                      struct err *err); /* NULL: not supported */
    int (*sock_accept)(struct sock *listener, struct sock **ret_sock);
    ssize_t (*sock_recv)(struct sock *sock, void *bytes, size_t length_bytes);
    int (*sock_send)(struct sock *sock, struct iovec *iov, int count);
    ssize_t (*sock_send_now)(struct sock *sock, const struct iovec *iov, int count);
    /* Wakes those inside; sock->shut holds the reason already. */
    void (*sock_shutdown)(struct sock *sock);
    void (*sock_close)(struct sock *sock); /* frees `sock` */
};

#define LOOP_SIGNALS_MAX 65

struct loop_signal_slot {
    loop_signal_handler *handler;
    void *arg;
};

struct co_pool {
    struct list cached; /* struct co */
    struct list alive;  /* struct co; for the debugger and for tests of leaks */
    size_t cached_count, alive_count, alive_peak;
    struct co_stacks *heirs; /* gets what is cached in the end, gives when nothing is; or NULL */
};

struct timer_heap {
    struct loop_timer **items; /* [1] is the earliest */
    size_t count, capacity;
};

struct loop {
    const struct loop_ops *ops;
    struct list ready;    /* struct co */
    struct list deferred; /* struct loop_task */
    struct timer_heap timers;
    struct co_pool coroutines;
    struct co *current;
    struct buf_pool *bufs;
    uint64_t now_ns;
    bool running, stopping;
    struct loop_stats stats;
    struct loop_signal_slot signals[LOOP_SIGNALS_MAX];
};

/* What every file and socket of either backend begins with. */
struct file {
    struct loop *loop;
    struct file_info info;
};

struct sock {
    struct loop *loop;
    int shut; /* 0, or the reason given to sock_shutdown() */
    bool listening, receiving, sending;
    bool
        parting; /* what is sent now has no later chance: a backend does not put it off by choice */
    struct loop_timer deadline;
    struct tls *tls; /* NULL: bytes travel as they are */
    char peer_name[128], local_name[128];
    uint16_t local_port;
};

/* For backends: fill and empty the common part. loop_init: 0 or -ENOMEM. */
int loop_init(struct loop *loop, const struct loop_ops *ops);
void loop_deinit(struct loop *loop);
void sock_init(struct sock *sock, struct loop *loop);
void loop_deliver_signal(struct loop *loop, int signal);

/* One turn: what is ready, then deferred tasks, then one poll (which waits until the deadline at
 * most when nothing else is to be done), then timers. */
void loop_turn(struct loop *loop, uint64_t deadline_ns);
/* True when a coroutine or a deferred task could run now. */
bool loop_has_work(const struct loop *loop);
uint64_t loop_next_timer_ns(const struct loop *loop); /* DEADLINE_NEVER: none */
void loop_fire_timers(struct loop *loop);
void loop_run_ready(struct loop *loop); /* ready coroutines and deferred tasks */
/* Which loop runs on this thread: set around each turn. */
struct loop *loop_enter(struct loop *loop); /* returns the former one */

/* co.c */
void co_pool_init(struct co_pool *pool);
void co_pool_deinit(struct loop *loop); /* frees the cached stacks; none may be alive */
/* Of one in the ready queue: all that stand before it run first (the promise of co_yield()). */
bool co_has_yielded(const struct list_link *ready_link);
/* Calls for each coroutine of the loop that has not ended, the latest first. */
void co_visit_alive(struct loop *loop, void (*visit)(void *arg, const struct co *co), void *arg);
void co_run_next(struct loop *loop);           /* resumes one ready coroutine */
size_t co_stack_peak_bytes(struct loop *loop); /* the deepest stack so far; looks at all pages */

#endif
