/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside loop_uring: the ring, what waits on it, and the offload pool. Only uring_*.c include this. */
#ifndef BLOCKSTEP_LOOP_URING_H
#define BLOCKSTEP_LOOP_URING_H

#include "loop/loop_internal.h"
#include "loop/offload.h"

#include <liburing.h>
#include <pthread.h>

/* What a completion leads to; user_data points to one. It lives until `done` has run. */
struct uring_op {
    void (*done)(struct uring_op *op, int result);
};

/* How many bytes of dirty page cache may be written without asking the kernel again how much room
 * it has, and how long its answer is believed. */
#define ROOM_SAMPLE_BYTES (8u << 20)
#define ROOM_SAMPLE_NS    (50 * NS_PER_MS)
#define ROOM_MIN_BYTES    (64u << 20)
/* After a plain write took this long, writes to that file go through the ring for a while. */
#define INLINE_SLOW_NS    (1 * NS_PER_MS)
#define INLINE_PAUSE_NS   (100 * NS_PER_MS)

struct loop_uring {
    struct loop loop;
    struct io_uring ring;
    unsigned features; /* in use */
    int event_fd;      /* wakes the loop from other threads */
    struct uring_op event_op;
    int signal_fd; /* -1: none asked for yet */
    struct uring_op signal_op;
    pthread_mutex_t post_lock;
    struct list posted; /* struct loop_task; under post_lock */
    struct offload *offload;
    uint64_t room_bytes, room_sampled_ns; /* of the page cache: see uring_file.c */
};

static inline struct loop_uring *uring_of(struct loop *loop)
{
    return CONTAINER_OF(loop, struct loop_uring, loop);
}

/* A free submission entry; submits what is queued when there is none. */
struct io_uring_sqe *uring_sqe(struct loop_uring *self);
void uring_queue(struct io_uring_sqe *sqe, struct uring_op *op);

/* A coroutine's own request: prepare `sqe`, then wait for its result (0 or more, or -errno). */
int uring_await(struct loop_uring *self, struct io_uring_sqe *sqe) MAY_WAIT;
/* As uring_await; asks for cancellation at the deadline and then still waits for the end. */
int uring_await_until(struct loop_uring *self, struct io_uring_sqe *sqe, uint64_t deadline_ns)
    MAY_WAIT;

int uring_file_open(struct loop *loop, const char *path, unsigned flags, enum file_aio aio,
                    struct file **ret_file, struct err *err) MAY_WAIT;
void uring_file_close(struct file *file) MAY_WAIT;
ssize_t uring_file_read(struct file *file, void *bytes, size_t length_bytes, uint64_t offset_bytes)
    MAY_WAIT;
int uring_file_writev(struct file *file, struct iovec *iov, int count, uint64_t offset_bytes)
    MAY_WAIT;
int uring_file_sync(struct file *file) MAY_WAIT;
int uring_file_zero(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool punch,
                    bool may_unmap) MAY_WAIT;
int uring_file_truncate(struct file *file, uint64_t length_bytes) MAY_WAIT;
int uring_file_stat(struct file *file, struct file_stat *ret_stat);
int uring_file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes,
                      bool *ret_data, uint64_t *ret_length_bytes) MAY_WAIT;
int uring_file_lock(struct file *file, uint64_t byte, bool exclusive);
int uring_file_unlock(struct file *file, uint64_t byte);
int uring_file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked);
int uring_file_lock_holder(struct file *file, int64_t *ret_pid, char *name, size_t name_bytes)
    MAY_WAIT;
int uring_file_fd(const struct file *file);
int uring_path_rename(struct loop *loop, const char *from, const char *to, bool exchange) MAY_WAIT;
int uring_path_unlink(struct loop *loop, const char *path) MAY_WAIT;
int uring_path_sync_folder(struct loop *loop, const char *folder) MAY_WAIT;
int uring_path_make_folder(struct loop *loop, const char *folder, unsigned mode) MAY_WAIT;
bool uring_path_exists(struct loop *loop, const char *path) MAY_WAIT;

int uring_sock_listen(struct loop *loop, const struct sock_address *address,
                      struct sock **ret_listener, struct err *err) MAY_WAIT;
int uring_sock_connect(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                       struct sock **ret_sock, struct err *err) MAY_WAIT;
int uring_sock_adopt(struct loop *loop, int fd, bool listening, struct sock **ret_sock,
                     struct err *err);
int uring_sock_accept(struct sock *listener, struct sock **ret_sock) MAY_WAIT;
ssize_t uring_sock_recv(struct sock *sock, void *bytes, size_t length_bytes) MAY_WAIT;
int uring_sock_send(struct sock *sock, struct iovec *iov, int count) MAY_WAIT;
ssize_t uring_sock_send_now(struct sock *sock, const struct iovec *iov, int count);
void uring_sock_shutdown(struct sock *sock);
void uring_sock_close(struct sock *sock);

#endif
