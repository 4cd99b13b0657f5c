/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets of the simulator, as the program sees them: listening, connecting, moving bytes. */
#include "loop/sim_net.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SIM_CLIENT_PORT_MIN  50000u
#define SIM_CONNECT_AGAIN_NS (1 * NS_PER_MS) /* an unanswered connect is sent again, doubling */
#define SIM_CONNECT_LATE_NS  (1 * NS_PER_S)
#define SIM_SHORT_PERCENT    30u /* of sends and receives that move less than they could */
#define SIM_LATE_PERCENT     10u /* of receives whose bytes are there that wait all the same */

static struct sim_sock *sim_sock_of(struct sock *sock)
{
    return CONTAINER_OF(sock, struct sim_sock, base);
}

static void sim_wake(struct co *co)
{
    if (co != NULL)
        co_wake(co);
}

/* The socket at one end; NULL when memory is out. */
static struct sim_sock *sim_sock_new(struct sim_loop *loop, struct sim_end *end)
{
    struct sim_sock *self = calloc(1, sizeof(*self));

    if (self == NULL)
        return NULL;
    sock_init(&self->base, &loop->base);
    self->loop = loop;
    list_push_back(&loop->socks, &self->link);
    if (end == NULL)
        return self;
    self->end = end;
    end->sock = self;
    const char *names[2] = {end->conn->client_name, end->conn->server_name};
    snprintf(self->base.local_name, sizeof(self->base.local_name), "%s", names[end->side]);
    snprintf(self->base.peer_name, sizeof(self->base.peer_name), "%s", names[!end->side]);
    return self;
}

static void sim_sock_free(struct sim_sock *self)
{
    list_remove(&self->link);
    free(self);
}

/* --- names --- */

struct sim_target {
    struct sim_host *host;
    enum sim_scope scope;
    uint16_t port;
};

static bool sim_name_is_loopback(const char *name)
{
    return strcmp(name, "localhost") == 0 || strcmp(name, "::1") == 0 ||
           strncmp(name, "127.", 4) == 0;
}

static int sim_target_find(struct sim_loop *loop, const struct sock_address *address, bool listen,
                           struct sim_target *ret_target, struct err *err)
{
    const char *name = address->host != NULL ? address->host : "";
    char *end;
    unsigned long port = strtoul(address->port, &end, 10);
    struct sim_target target = {.host = loop->host, .port = (uint16_t)port};

    if (*address->port == '\0' || *end != '\0' || port > UINT16_MAX)
        return err_set(err, -EINVAL, "port '%s' is no number from 0 to 65535", address->port);
    if (*name == '\0' || strcmp(name, "0.0.0.0") == 0 || strcmp(name, "::") == 0) {
        target.scope = listen ? SIM_SCOPE_ANY : SIM_SCOPE_LOOPBACK;
    } else if (sim_name_is_loopback(name)) {
        target.scope = SIM_SCOPE_LOOPBACK;
    } else {
        target.scope = SIM_SCOPE_OUTSIDE;
        target.host = sim_host_find(loop->sim, name);
    }
    if (target.host == NULL)
        return err_set(err, -EHOSTUNREACH, "host '%s' is not known in the simulated world", name);
    *ret_target = target;
    return 0;
}

static struct sim_listener *sim_listener_at(const struct sim_target *target, bool bind)
{
    LIST_FOR_EACH(listener, &target->host->listeners, struct sim_listener, link) {
        if (listener->inode != NULL || listener->port != target->port || listener->shut)
            continue;
        if (listener->scope == target->scope || listener->scope == SIM_SCOPE_ANY ||
            (bind && target->scope == SIM_SCOPE_ANY))
            return listener;
    }
    return NULL;
}

static struct sim_listener *sim_listener_on(struct sim_host *host, const struct sim_inode *inode)
{
    LIST_FOR_EACH(listener, &host->listeners, struct sim_listener, link) {
        if (listener->inode == inode && !listener->shut)
            return listener;
    }
    return NULL;
}

/* --- listening --- */

static int sim_listen_unix(struct sim_sock *self, struct sim_listener *listener, const char *path)
{
    struct sim_host *host = listener->host;
    struct sim_inode *inode;

    if (sim_fs_find(host, path, &inode) == 0) {
        if (inode->kind != SIM_SOCKET || sim_listener_on(host, inode) != NULL)
            return -EADDRINUSE;
        sim_fs_unlink(host, path);
    }
    listener->path = strdup(path);
    if (listener->path == NULL)
        return -ENOMEM;
    int result = sim_fs_make(host, path, SIM_SOCKET, &inode);
    if (result < 0)
        return result;
    listener->inode = sim_inode_ref(inode);
    snprintf(self->base.local_name, sizeof(self->base.local_name), "unix:%s", path);
    return 0;
}

/* A free port; none leaves it 0. */
static void sim_port_choose(struct sim_target *target)
{
    struct sim_host *host = target->host;

    for (int tries = SIM_PORT_MIN; target->port == 0 && tries <= SIM_PORT_MAX; tries++) {
        target->port = host->next_port;
        host->next_port = host->next_port < SIM_PORT_MAX ? host->next_port + 1 : SIM_PORT_MIN;
        if (sim_listener_at(target, true) != NULL)
            target->port = 0;
    }
}

static int sim_listen_inet(struct sim_sock *self, struct sim_listener *listener,
                           struct sim_target target)
{
    static const char *const names[] = {"0.0.0.0", "127.0.0.1"};
    struct sim_host *host = listener->host;

    if (target.host != host)
        return -EADDRNOTAVAIL;
    if (target.port == 0)
        sim_port_choose(&target);
    if (target.port == 0 || sim_listener_at(&target, true) != NULL)
        return -EADDRINUSE;
    listener->scope = target.scope;
    listener->port = self->base.local_port = target.port;
    snprintf(self->base.local_name, sizeof(self->base.local_name), "%s:%u",
             target.scope == SIM_SCOPE_OUTSIDE ? host->address : names[target.scope], target.port);
    return 0;
}

/* Once nobody listens there, the path may be taken by another: it must not be ours to unlink then. */
static void sim_listener_unlink(struct sim_listener *listener)
{
    if (listener->inode == NULL)
        return;
    sim_fs_unlink(listener->host, listener->path);
    sim_inode_unref(listener->inode);
    listener->inode = NULL;
}

/* The path of a process that was killed stays. */
static void sim_listener_free(struct sim_listener *listener)
{
    struct sim_conn *conn;

    while ((conn = LIST_POP_FRONT(&listener->backlog, struct sim_conn, backlog_link)) != NULL) {
        if (listener->host->down)
            sim_end_vanish(&conn->ends[1]);
        else
            sim_end_close(&conn->ends[1], true);
    }
    if (listener->inode != NULL)
        sim_inode_unref(listener->inode);
    list_remove(&listener->link);
    list_remove(&listener->remains_link);
    free(listener->path);
    free(listener);
}

static struct sim_listener *sim_listener_new(struct sim_sock *self)
{
    struct sim_listener *listener = calloc(1, sizeof(*listener));

    if (listener == NULL)
        return NULL;
    listener->host = self->loop->host;
    listener->sock = self;
    list_init(&listener->backlog);
    return listener;
}

/* -EIO: the process is dead. */
static int sim_listen(struct sim_sock *self, const struct sock_address *address,
                      const struct sim_target *target)
{
    struct sim_listener *listener = self->loop->dead ? NULL : sim_listener_new(self);

    if (listener == NULL)
        return self->loop->dead ? -EIO : -ENOMEM;
    int result = address->family == SOCK_FAMILY_UNIX
                     ? sim_listen_unix(self, listener, address->path)
                     : sim_listen_inet(self, listener, *target);
    if (result < 0) {
        sim_listener_free(listener);
        return result;
    }
    list_push_back(&listener->host->listeners, &listener->link);
    self->listener = listener;
    return 0;
}

int sim_sock_listen(struct loop *base, const struct sock_address *address,
                    struct sock **ret_listener, struct err *err)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim_target target = {.host = loop->host};
    char name[256];
    int result = 0;

    if (address->family == SOCK_FAMILY_INET)
        result = sim_target_find(loop, address, true, &target, err);
    if (result < 0)
        return result;
    sim_ghost_yield(loop);
    struct sim_sock *self = sim_sock_new(loop, NULL);
    if (self == NULL)
        return err_no_memory(err);
    result = sim_listen(self, address, &target);
    if (!loop->dead)
        sim_tell(loop->sim, loop->host, loop, "listen on %s: %s",
                 sock_address_format(address, name, sizeof(name)),
                 result < 0 ? strerror(-result) : "ok");
    if (result < 0) {
        sim_sock_free(self);
        return err_set_errno(err, result, "cannot listen on %s",
                             sock_address_format(address, name, sizeof(name)));
    }
    self->base.listening = true;
    *ret_listener = &self->base;
    return 0;
}

int sim_sock_accept(struct sock *sock, struct sock **ret_sock)
{
    struct sim_sock *self = sim_sock_of(sock);

    assert(self->receiver == NULL);
    sock->receiving = true;
    while (sock->shut == 0 && (self->listener == NULL || list_empty(&self->listener->backlog))) {
        self->receiver = co_self();
        co_wait();
        self->receiver = NULL;
    }
    sock->receiving = false;
    if (sock->shut != 0)
        return sock->shut;
    struct sim_conn *conn = LIST_POP_FRONT(&self->listener->backlog, struct sim_conn, backlog_link);
    self->listener->backlog_count--;
    struct sim_sock *accepted = sim_sock_new(self->loop, &conn->ends[1]);
    if (accepted == NULL) {
        sim_end_close(&conn->ends[1], true);
        return -ENOMEM;
    }
    sim_trace(self->loop->sim, SIM_KIND_ACCEPT, self->loop->index, conn->to[1].arrived, 0);
    sim_tell(self->loop->sim, self->loop->host, self->loop, "accepts %s on %s", conn->client_name,
             conn->server_name);
    *ret_sock = &accepted->base;
    return 0;
}

/* --- connecting --- */

static void sim_conn_name(struct sim_conn *conn, const struct sim_listener *listener,
                          const struct sim_target *target)
{
    struct sim_host *client = conn->hosts[0];

    if (listener->inode != NULL) {
        snprintf(conn->client_name, sizeof(conn->client_name), "unix:");
        snprintf(conn->server_name, sizeof(conn->server_name), "unix:%.100s", listener->path);
        return;
    }
    bool loopback = target->scope == SIM_SCOPE_LOOPBACK;
    unsigned port = SIM_CLIENT_PORT_MIN + client->clients_made++ % 10000;
    snprintf(conn->client_name, sizeof(conn->client_name), "%s:%u",
             loopback ? "127.0.0.1" : client->address, port);
    snprintf(conn->server_name, sizeof(conn->server_name), "%s:%u",
             loopback ? "127.0.0.1" : target->host->address, target->port);
}

/* Who listens there. -EAGAIN: nobody answers. */
static int sim_connect_find(struct sim_loop *loop, const struct sock_address *address,
                            struct sim_target *target, struct sim_listener **ret_listener)
{
    struct sim_listener *listener;
    struct sim_inode *inode;
    struct sim_link *out = sim_link_find(loop->sim, loop->host, target->host);
    struct sim_link *back = sim_link_find(loop->sim, target->host, loop->host);

    if (out == NULL || back == NULL)
        return -ENOMEM;
    if (out->options.blocked || back->options.blocked || target->host->down)
        return -EAGAIN;
    if (sim_chance(loop->sim, out->options.refuse_percent))
        return -ECONNREFUSED;
    if (address->family == SOCK_FAMILY_UNIX) {
        int result = sim_fs_find(loop->host, address->path, &inode);
        if (result < 0)
            return result;
        listener = inode->kind == SIM_SOCKET ? sim_listener_on(loop->host, inode) : NULL;
    } else {
        listener = sim_listener_at(target, false);
    }
    if (listener == NULL)
        return -ECONNREFUSED;
    if (listener->backlog_count >= SIM_BACKLOG_MAX)
        return -EAGAIN;
    *ret_listener = listener;
    return 0;
}

/* One knock. */
static int sim_connect_once(struct sim_loop *loop, const struct sock_address *address,
                            struct sim_target *target, struct sim_conn **ret_conn)
{
    struct sim_listener *listener;

    int result = sim_connect_find(loop, address, target, &listener);
    if (result < 0)
        return result;
    struct sim_conn *conn = sim_conn_new(loop->host, target->host);
    if (conn == NULL)
        return -ENOMEM;
    sim_conn_name(conn, listener, target);
    list_push_back(&listener->backlog, &conn->backlog_link);
    listener->backlog_count++;
    if (listener->sock != NULL)
        sim_wake(listener->sock->receiver);
    *ret_conn = conn;
    return 0;
}

/* Waits, but not beyond the deadline: false when that has come. */
static bool sim_pause_until(struct sim_loop *loop, uint64_t delay_ns, uint64_t deadline_ns) MAY_WAIT
{
    uint64_t now_ns = loop->sim->now_ns;

    if (deadline_ns <= now_ns)
        return false;
    sim_pause(loop, MIN(delay_ns, deadline_ns - now_ns));
    return loop->sim->now_ns < deadline_ns;
}

static int sim_connect(struct sim_loop *loop, const struct sock_address *address,
                       struct sim_target *target, uint64_t deadline_ns, struct sim_conn **ret_conn)
    MAY_WAIT
{
    uint64_t again_ns = SIM_CONNECT_AGAIN_NS;

    if (!sim_pause_until(loop, sim_delay_ns(loop->sim, loop->sim->options.net), deadline_ns))
        return -ETIMEDOUT;
    int result;
    while ((result = loop->dead ? -ENETUNREACH
                                : sim_connect_once(loop, address, target, ret_conn)) == -EAGAIN) {
        if (!sim_pause_until(loop, again_ns, deadline_ns))
            return -ETIMEDOUT;
        again_ns = MIN(again_ns * 2, SIM_CONNECT_LATE_NS);
    }
    return result;
}

int sim_sock_connect(struct loop *base, const struct sock_address *address, uint64_t deadline_ns,
                     struct sock **ret_sock, struct err *err)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim_target target = {.host = loop->host};
    struct sim_conn *conn = NULL;
    char name[256];
    int result = 0;

    if (address->family == SOCK_FAMILY_INET)
        result = sim_target_find(loop, address, false, &target, err);
    if (result < 0)
        return result;
    sock_address_format(address, name, sizeof(name));
    sim_ghost_yield(loop);
    result = loop->dead ? -ENETUNREACH : sim_connect(loop, address, &target, deadline_ns, &conn);
    if (!loop->dead) {
        sim_trace(loop->sim, SIM_KIND_CONNECT, loop->index, (uint64_t)-result, 0);
        sim_tell(loop->sim, loop->host, loop, "connect to %s: %s", name,
                 result < 0 ? strerror(-result) : "ok");
    }
    if (result < 0)
        return err_set_errno(err, result, "cannot connect to %s", name);
    struct sim_sock *self = sim_sock_new(loop, &conn->ends[0]);
    if (self == NULL) {
        sim_end_close(&conn->ends[0], true);
        return err_no_memory(err);
    }
    /* The answer travels back; the other side may be at work already. */
    sim_pause_until(loop, sim_delay_ns(loop->sim, loop->sim->options.net), deadline_ns);
    *ret_sock = &self->base;
    return 0;
}

/* --- moving bytes --- */

static size_t sim_shorten(struct sim *sim, size_t bytes)
{
    return bytes > 1 && sim_chance(sim, SIM_SHORT_PERCENT) ? 1 + sim_below(sim, bytes) : bytes;
}

/* Waits until there is something to say: bytes, the end of the stream, or why not. */
static ssize_t sim_recv_wait(struct sim_sock *self) MAY_WAIT
{
    for (;;) {
        if (self->base.shut != 0)
            return self->base.shut;
        if (self->end == NULL)
            return -ECONNRESET;
        const struct sim_channel *in = &self->end->conn->to[self->end->side];
        if (in->arrived > in->taken)
            return (ssize_t)(in->arrived - in->taken);
        if (in->reset_arrived)
            return sim_channel_error(in);
        if (in->fin_arrived)
            return 0;
        self->receiver = co_self();
        co_wait();
        self->receiver = NULL;
    }
}

ssize_t sim_sock_recv(struct sock *sock, void *bytes, size_t length_bytes)
{
    struct sim_sock *self = sim_sock_of(sock);
    struct sim *sim = self->loop->sim;

    if (!self->loop->dead && sim->options.net.max_ns != 0 && sim_chance(sim, SIM_LATE_PERCENT))
        sim_pause_some(self->loop, sim->options.net);
    ssize_t there = sim_recv_wait(self);
    if (there <= 0)
        return there;
    struct sim_channel *in = &self->end->conn->to[self->end->side];
    size_t got = sim_shorten(sim, MIN(length_bytes, (size_t)there));
    sim_channel_take(in, bytes, got);
    sim_trace(sim, SIM_KIND_RECV, self->loop->index, got, in->taken);
    sim_tell(sim, self->loop->host, self->loop, "receives %zu bytes from %s", got, sock->peer_name);
    sim_channel_ack(in);
    return (ssize_t)got;
}

/* What fits without waiting: 0 when nothing does, -errno when nothing ever will. */
static ssize_t sim_send_some(struct sim_sock *self, const void *bytes, size_t length_bytes)
{
    struct sim *sim = self->loop->sim;

    if (self->base.shut != 0)
        return self->base.shut;
    if (self->end == NULL)
        return -ECONNRESET;
    struct sim_channel *in = &self->end->conn->to[self->end->side];
    struct sim_channel *out = &self->end->conn->to[!self->end->side];
    if (in->reset_arrived)
        return in->fin_arrived ? -EPIPE : sim_channel_error(in);
    size_t put = MIN(length_bytes, sim_channel_room(out));
    if (put == 0)
        return 0;
    put = sim_shorten(sim, put);
    sim_channel_put(out, bytes, put);
    sim_trace(sim, SIM_KIND_SEND, self->loop->index, put, out->sent);
    sim_tell(sim, self->loop->host, self->loop, "sends %zu bytes to %s", put, self->base.peer_name);
    return (ssize_t)put;
}

int sim_sock_send(struct sock *sock, struct iovec *iov, int count)
{
    struct sim_sock *self = sim_sock_of(sock);

    for (; count > 0; iov++, count--) {
        while (iov->iov_len > 0) {
            ssize_t put = sim_send_some(self, iov->iov_base, iov->iov_len);
            if (put < 0)
                return (int)put;
            if (put == 0) {
                self->sender = co_self();
                co_wait();
                self->sender = NULL;
            }
            iov->iov_base = (uint8_t *)iov->iov_base + put;
            iov->iov_len -= (size_t)put;
        }
    }
    return 0;
}

ssize_t sim_sock_send_now(struct sock *sock, const struct iovec *iov, int count)
{
    struct sim_sock *self = sim_sock_of(sock);
    ssize_t done = 0;

    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len == 0)
            continue;
        ssize_t put = sim_send_some(self, iov[i].iov_base, iov[i].iov_len);
        if (put < 0)
            return done > 0 ? done : put;
        done += put;
        if ((size_t)put < iov[i].iov_len)
            break;
    }
    return done;
}

/* --- ending --- */

void sim_sock_shutdown(struct sock *sock)
{
    struct sim_sock *self = sim_sock_of(sock);

    if (!self->loop->dead)
        sim_trace(self->loop->sim, SIM_KIND_SHUTDOWN, self->loop->index, (uint64_t)-sock->shut, 0);
    if (self->end != NULL)
        sim_channel_fin(&self->end->conn->to[!self->end->side]);
    if (self->listener != NULL) {
        self->listener->shut = true;
        sim_listener_unlink(self->listener);
    }
    sim_wake(self->receiver);
    sim_wake(self->sender);
}

void sim_sock_close(struct sock *sock)
{
    struct sim_sock *self = sim_sock_of(sock);

    assert(self->receiver == NULL);
    assert(self->sender == NULL);
    if (self->end != NULL) {
        sim_tell(self->loop->sim, self->loop->host, self->loop, "closes %s", sock->peer_name);
        sim_end_close(self->end, false);
    }
    if (self->listener != NULL) {
        sim_listener_unlink(self->listener);
        sim_listener_free(self->listener);
    }
    sim_sock_free(self);
}

static void sim_sock_abandon(struct sim_sock *self, struct sim_remains *remains)
{
    struct sim_end *end = self->end;
    struct sim_listener *listener = self->listener;

    self->end = NULL;
    self->listener = NULL;
    if (end != NULL && remains != NULL) {
        end->sock = NULL;
        list_push_back(&remains->ends, &end->link);
    } else if (end != NULL) {
        sim_end_vanish(end);
    }
    if (listener != NULL && remains != NULL) {
        listener->sock = NULL;
        list_push_back(&remains->listeners, &listener->remains_link);
    } else if (listener != NULL) {
        sim_listener_free(listener);
    }
    sim_wake(self->receiver);
    sim_wake(self->sender);
}

void sim_socks_abandon(struct sim_loop *loop, struct sim_remains *remains)
{
    LIST_FOR_EACH(sock, &loop->socks, struct sim_sock, link)
        sim_sock_abandon(sock, remains);
}

void sim_socks_end(struct sim_remains *remains)
{
    LIST_FOR_EACH_SAFE(end, &remains->ends, struct sim_end, link) {
        if (remains->host->down)
            sim_end_vanish(end);
        else
            sim_end_close(end, false);
    }
    LIST_FOR_EACH_SAFE(listener, &remains->listeners, struct sim_listener, remains_link)
        sim_listener_free(listener);
}
