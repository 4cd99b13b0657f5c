/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sockets on the kernel: receiving and waiting to send by the ring, sending at once by a plain call
 * that does not wait. Descriptors are non-blocking for that call only; the ring polls by itself.
 */
#include "loop/uring.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#if HAVE_VALGRIND
#include <valgrind/memcheck.h>
#else
#define VALGRIND_MAKE_MEM_DEFINED(bytes, length) ((void)(bytes), (void)(length))
#endif

#define LISTEN_BACKLOG    128
#define UNIX_BUFFER_BYTES (1024 * 1024) /* the kernel halves or caps it as it must */
#define CONNECT_ADDRESSES 8             /* of one name that are tried, at most */

struct uring_sock {
    struct sock sock;
    int fd;
    char *unlink_path; /* a unix listener's own */
    bool shared;       /* a listener that whoever started us listens on as well */
};

static struct uring_sock *sock_of(struct sock *sock)
{
    return CONTAINER_OF(sock, struct uring_sock, sock);
}

/* --- names --- */

static void name_format(const struct sockaddr_storage *addr, socklen_t length, char *text,
                        size_t text_bytes, uint16_t *ret_port)
{
    char host[64], port[16];

    if (addr->ss_family == AF_UNIX) {
        const struct sockaddr_un *un = (const void *)addr;
        bool named = length > offsetof(struct sockaddr_un, sun_path) && un->sun_path[0] != '\0';
        snprintf(text, text_bytes, "unix:%s", named ? un->sun_path : "");
        return;
    }
    if (getnameinfo((const void *)addr, length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(text, text_bytes, "unknown");
        return;
    }
    snprintf(text, text_bytes, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host, port);
    if (ret_port != NULL)
        *ret_port = (uint16_t)atoi(port);
}

static void names_fill(struct uring_sock *self)
{
    struct sockaddr_storage addr = {.ss_family = AF_UNSPEC};
    socklen_t length = sizeof(addr);

    if (getsockname(self->fd, (void *)&addr, &length) == 0)
        name_format(&addr, length, self->sock.local_name, sizeof(self->sock.local_name),
                    &self->sock.local_port);
    length = sizeof(addr);
    if (!self->sock.listening && getpeername(self->fd, (void *)&addr, &length) == 0)
        name_format(&addr, length, self->sock.peer_name, sizeof(self->sock.peer_name), NULL);
}

/* Takes the descriptor, also on failure. */
static int sock_make(struct loop *loop, int fd_taken, bool listening, struct sock **ret_sock)
{
    CLEANUP(fd_close) int fd = fd_taken;
    struct uring_sock *self = calloc(1, sizeof(*self));
    int one = 1, family = 0, bytes = UNIX_BUFFER_BYTES;
    socklen_t length = sizeof(family);

    if (self == NULL)
        return -ENOMEM;
    sock_init(&self->sock, loop);
    self->sock.listening = listening;
    self->fd = TAKE_FD(fd);
    getsockopt(self->fd, SOL_SOCKET, SO_DOMAIN, &family, &length);
    if (!listening && family == AF_UNIX) {
        /* The default holds a handful of 4 KiB requests only. */
        setsockopt(self->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    } else if (!listening) {
        setsockopt(self->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        setsockopt(self->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    }
    names_fill(self);
    *ret_sock = &self->sock;
    return 0;
}

int uring_sock_adopt(struct loop *loop, int fd, bool listening, struct sock **ret_sock,
                     struct err *err)
{
    int result = sock_make(loop, fd, listening, ret_sock);
    if (result < 0)
        return err_no_memory(err);
    sock_of(*ret_sock)->shared = listening;
    return 0;
}

/* --- looking names up --- */

/* Shared by the coroutine, which may give up at its deadline, and the pool: freed by the last. */
struct lookup {
    struct offload_job job;
    struct co *waiter; /* NULL: gave up */
    bool done;
    char *host, *port;
    struct addrinfo *addresses;
};

static void lookup_free(struct lookup *lookup)
{
    if (lookup == NULL)
        return;
    if (lookup->addresses != NULL)
        freeaddrinfo(lookup->addresses);
    free(lookup->host);
    free(lookup->port);
    free(lookup);
}

static void lookup_freep(struct lookup **lookup)
{
    lookup_free(*lookup);
}

static int lookup_run(void *arg)
{
    struct lookup *lookup = arg;
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};

    return getaddrinfo(lookup->host, lookup->port, &hints, &lookup->addresses);
}

static void lookup_done(struct loop_task *task)
{
    struct lookup *lookup = CONTAINER_OF(task, struct lookup, job.done);

    lookup->done = true;
    if (lookup->waiter != NULL)
        co_wake(lookup->waiter);
    else
        lookup_free(lookup);
}

static int lookup_numeric(const char *host, const char *port, bool passive,
                          struct addrinfo **ret_addresses)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV |
                                         (passive ? AI_PASSIVE : 0)};
    return getaddrinfo(host, port, &hints, ret_addresses);
}

/* Waits for the pool until the deadline; whoever gives up leaves the lookup to lookup_done(). */
static int lookup_wait(struct lookup *lookup, uint64_t deadline_ns) MAY_WAIT
{
    lookup->waiter = co_self();
    while (!lookup->done) {
        if (co_wait_until(deadline_ns) == -ETIMEDOUT && !lookup->done) {
            lookup->waiter = NULL;
            return -ETIMEDOUT;
        }
    }
    return 0;
}

static int address_lookup(struct loop *loop, const struct sock_address *address, bool passive,
                          uint64_t deadline_ns, struct addrinfo **ret_addresses, struct err *err)
    MAY_WAIT
{
    const char *host = address->host != NULL && *address->host != '\0' ? address->host : NULL;

    if (lookup_numeric(host, address->port, passive, ret_addresses) == 0)
        return 0;
    CLEANUP(lookup_freep) struct lookup *lookup = calloc(1, sizeof(*lookup));
    if (lookup == NULL || host == NULL || (lookup->host = strdup(host)) == NULL ||
        (lookup->port = strdup(address->port)) == NULL)
        return err_no_memory(err);
    lookup->job = (struct offload_job){
        .call = lookup_run, .arg = lookup, .loop = loop, .done = {.run = lookup_done}};
    int result = offload_submit(uring_of(loop)->offload, &lookup->job);
    if (result < 0)
        return err_set_errno(err, result, "cannot look up host '%s'", host);
    if (lookup_wait(lookup, deadline_ns) == -ETIMEDOUT) {
        lookup = NULL; /* the pool's now */
        return err_set(err, -ETIMEDOUT, "looking up host '%s' took too long", host);
    }
    if (lookup->job.result != 0)
        return err_set(err, -EHOSTUNREACH, "host '%s' is not known: %s", host,
                       gai_strerror(lookup->job.result));
    *ret_addresses = TAKE_PTR(lookup->addresses);
    return 0;
}

static socklen_t unix_address(const char *path, struct sockaddr_un *ret_addr)
{
    *ret_addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    assert(strlen(path) < sizeof(ret_addr->sun_path));
    memcpy(ret_addr->sun_path, path, strlen(path));
    return sizeof(*ret_addr);
}

/* --- listening --- */

/* A path that nobody listens on is a left-over of a killed process. */
static bool unix_path_is_stale(const struct sockaddr_un *addr, socklen_t length)
{
    struct stat st;

    if (stat(addr->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode))
        return false;
    CLEANUP(fd_close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd >= 0 && connect(fd, (const void *)addr, length) != 0 && errno == ECONNREFUSED;
}

static int listen_unix(struct loop *loop, const char *path, struct sock **ret_listener,
                       struct err *err)
{
    struct sockaddr_un addr;
    socklen_t length = unix_address(path, &addr);
    CLEANUP(free_ptr) char *unlink_path = strdup(path);
    CLEANUP(fd_close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || unlink_path == NULL)
        return err_set_errno(err, fd < 0 ? -errno : -ENOMEM, "cannot make a socket");
    /* The mode is set on the descriptor, before the path exists: no moment with another one. */
    fchmod(fd, 0600);
    int result = bind(fd, (void *)&addr, length);
    if (result != 0 && errno == EADDRINUSE && unix_path_is_stale(&addr, length)) {
        unlink(path);
        result = bind(fd, (void *)&addr, length);
    }
    if (result == 0)
        result = chmod(path, 0600);
    if (result != 0 && errno == EADDRINUSE)
        return err_set(err, -EADDRINUSE,
                       "'%s' is in use: another process listens there, or it is no socket", path);
    if (result != 0 || listen(fd, LISTEN_BACKLOG) != 0)
        return err_set_errno(err, -errno, "cannot listen on '%s'", path);
    result = sock_make(loop, TAKE_FD(fd), true, ret_listener);
    if (result < 0)
        return err_no_memory(err);
    sock_of(*ret_listener)->unlink_path = TAKE_PTR(unlink_path);
    return 0;
}

static int listen_inet(struct loop *loop, const struct addrinfo *where, const char *name,
                       struct sock **ret_listener, struct err *err)
{
    int one = 1;
    CLEANUP(fd_close)
    int fd = socket(where->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return err_set_errno(err, -errno, "cannot make a socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, where->ai_addr, where->ai_addrlen) != 0 || listen(fd, LISTEN_BACKLOG) != 0)
        return err_set_errno(err, -errno, "cannot listen on %s", name);
    if (sock_make(loop, TAKE_FD(fd), true, ret_listener) < 0)
        return err_no_memory(err);
    return 0;
}

int uring_sock_listen(struct loop *loop, const struct sock_address *address,
                      struct sock **ret_listener, struct err *err)
{
    struct addrinfo *addresses;
    char name[256];

    if (address->family == SOCK_FAMILY_UNIX)
        return listen_unix(loop, address->path, ret_listener, err);
    int result = address_lookup(loop, address, true, DEADLINE_NEVER, &addresses, err);
    if (result < 0)
        return result;
    sock_address_format(address, name, sizeof(name));
    result = listen_inet(loop, addresses, name, ret_listener, err);
    freeaddrinfo(addresses);
    return result;
}

int uring_sock_accept(struct sock *listener, struct sock **ret_sock)
{
    struct uring_sock *self = sock_of(listener);
    struct loop_uring *loop = uring_of(listener->loop);
    struct io_uring_sqe *sqe = uring_sqe(loop);

    io_uring_prep_accept(sqe, self->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    listener->receiving = true;
    int fd = uring_await(loop, sqe);
    listener->receiving = false;
    if (listener->shut != 0) {
        fd_close(&fd);
        return listener->shut;
    }
    return fd < 0 ? fd : sock_make(listener->loop, fd, false, ret_sock);
}

/* --- connecting --- */

static int connect_one(struct loop *loop, int family, const struct sockaddr *addr, socklen_t length,
                       uint64_t deadline_ns, struct sock **ret_sock) MAY_WAIT
{
    struct loop_uring *self = uring_of(loop);
    CLEANUP(fd_close) int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    struct io_uring_sqe *sqe = uring_sqe(self);
    io_uring_prep_connect(sqe, fd, addr, length);
    int result = uring_await_until(self, sqe, deadline_ns);
    if (result < 0)
        return result == -ECANCELED || result == -EINTR ? -ETIMEDOUT : result;
    return sock_make(loop, TAKE_FD(fd), false, ret_sock);
}

static int connect_inet(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                        struct sock **ret_sock, struct err *err) MAY_WAIT
{
    struct addrinfo *addresses;
    int result = address_lookup(loop, address, false, deadline_ns, &addresses, err);

    if (result < 0)
        return result;
    unsigned tries = 0;
    result = -EHOSTUNREACH;
    for (struct addrinfo *a = addresses; a != NULL && tries < CONNECT_ADDRESSES;
         a = a->ai_next, tries++) {
        result = connect_one(loop, a->ai_family, a->ai_addr, a->ai_addrlen, deadline_ns, ret_sock);
        if (result == 0 || result == -ETIMEDOUT)
            break;
    }
    freeaddrinfo(addresses);
    return result;
}

int uring_sock_connect(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                       struct sock **ret_sock, struct err *err)
{
    struct sockaddr_un addr;
    char name[256];
    int result;

    if (address->family == SOCK_FAMILY_UNIX) {
        socklen_t length = unix_address(address->path, &addr);
        result = connect_one(loop, AF_UNIX, (void *)&addr, length, deadline_ns, ret_sock);
    } else {
        err_clear(err); /* what an earlier try left there is not this one's */
        result = connect_inet(loop, address, deadline_ns, ret_sock, err);
        if (result < 0 && err_is_set(err))
            return result;
    }
    if (result < 0)
        return err_set_errno(err, result, "cannot connect to %s",
                             sock_address_format(address, name, sizeof(name)));
    return 0;
}

/* --- moving bytes --- */

ssize_t uring_sock_recv(struct sock *sock, void *bytes, size_t length_bytes)
{
    struct loop_uring *loop = uring_of(sock->loop);
    int got;

    do {
        struct io_uring_sqe *sqe = uring_sqe(loop);
        io_uring_prep_recv(sqe, sock_of(sock)->fd, bytes, MIN(length_bytes, (size_t)INT_MAX), 0);
        got = uring_await(loop, sqe);
    } while (got == -EINTR || got == -EAGAIN);
    if (got > 0)
        VALGRIND_MAKE_MEM_DEFINED(bytes, (size_t)got);
    return got;
}

ssize_t uring_sock_send_now(struct sock *sock, const struct iovec *iov, int count)
{
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov,
                             .msg_iovlen = (size_t)MIN(count, IOV_MAX)};

    if ((uring_of(sock->loop)->features & LOOP_FEATURE_INLINE_SEND) == 0 && !sock->parting)
        return 0;
    ssize_t put = sendmsg(sock_of(sock)->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put >= 0)
        return put;
    return errno == EAGAIN || errno == EINTR || errno == ENOBUFS ? 0 : -errno;
}

static size_t iov_take(struct iovec **iov, int *count, size_t done)
{
    size_t left = 0;

    while (*count > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (*count > 0) {
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
    for (int i = 0; i < *count; i++)
        left += (*iov)[i].iov_len;
    return left;
}

int uring_sock_send(struct sock *sock, struct iovec *iov, int count)
{
    struct loop_uring *loop = uring_of(sock->loop);

    while (iov_take(&iov, &count, 0) > 0) {
        ssize_t put = uring_sock_send_now(sock, iov, count);
        if (put == 0) {
            struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)MIN(count, IOV_MAX)};
            struct io_uring_sqe *sqe = uring_sqe(loop);
            io_uring_prep_sendmsg(sqe, sock_of(sock)->fd, &message, MSG_NOSIGNAL);
            put = uring_await(loop, sqe);
        }
        if (sock->shut != 0)
            return sock->shut;
        if (put == -EINTR || put == -EAGAIN)
            continue;
        if (put < 0)
            return (int)put;
        iov_take(&iov, &count, (size_t)put);
    }
    return 0;
}

/* Once nobody listens there, the path may be taken by another: it must not be ours to unlink then. */
static void listener_unlink(struct uring_sock *self)
{
    if (self->unlink_path == NULL)
        return;
    unlink(self->unlink_path);
    free(self->unlink_path);
    self->unlink_path = NULL;
}

void uring_sock_shutdown(struct sock *sock)
{
    struct uring_sock *self = sock_of(sock);
    struct loop_uring *loop = uring_of(sock->loop);

    listener_unlink(self);
    /* It would end the socket for all who have it. */
    if (!self->shared)
        shutdown(self->fd, SHUT_RDWR);
    if (sock->receiving || sock->sending) {
        struct io_uring_sqe *sqe = uring_sqe(loop);
        io_uring_prep_cancel_fd(sqe, self->fd, IORING_ASYNC_CANCEL_ALL);
        uring_queue(sqe, NULL);
    }
}

void uring_sock_close(struct sock *sock)
{
    struct uring_sock *self = sock_of(sock);

    listener_unlink(self);
    close(self->fd);
    free(self);
}
