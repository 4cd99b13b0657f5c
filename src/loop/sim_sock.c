/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The simulator's network. A connection has two channels, one for each direction; what is sent is
 * under way, arrives after a while in pieces of any size, in order, and waits to be received. Both
 * together are bounded. As with TCP, an end that closes sends an end-of-stream behind its bytes, or
 * a reset when it has not read all; bytes that find nobody are answered with a reset.
 */
#include "loop/sim_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SIM_CLIENT_PORT_MIN  50000u
#define SIM_CONNECT_AGAIN_NS (1 * NS_PER_MS) /* an unanswered connect is sent again, doubling */
#define SIM_CONNECT_LATE_NS  (1 * NS_PER_S)
#define SIM_SHORT_PERCENT    30u /* of sends and receives that move less than they could */
#define SIM_LATE_PERCENT     10u /* of receives whose bytes are there that wait all the same */

enum sim_scope { SIM_SCOPE_ANY, SIM_SCOPE_LOOPBACK, SIM_SCOPE_OUTSIDE };

struct sim_conn;

/* One direction, named by the end it leads to. Counts of bytes: taken <= arrived <= sent. */
struct sim_channel {
    struct sim_event event; /* the next arrival */
    struct sim_conn *conn;
    unsigned side;
    uint8_t *ring;
    uint64_t sent, arrived, taken;
    bool fin, fin_arrived;
    bool reset, reset_arrived;
};

struct sim_conn {
    struct list_link link;
    struct list_link backlog_link;
    struct sim *sim;
    struct sim_host *hosts[2]; /* [0]: who connected */
    struct sim_channel to[2];
    bool open[2];
    struct sim_sock *ends[2]; /* [1] is NULL until accepted */
    char client_name[64], server_name[128];
};

struct sim_sock {
    struct sock base;
    struct sim_loop *loop;
    struct co *receiver, *sender; /* that wait inside a call */
    struct sim_conn *conn;
    unsigned side;
    /* of listeners: */
    struct list_link link;
    struct list backlog;
    unsigned backlog_count;
    enum sim_scope scope;
    struct sim_inode *inode;
    char *path;
};

struct sim_cut {
    struct list_link link;
    struct sim_host *hosts[2];
};

static struct sim_sock *sim_sock_of(struct sock *sock)
{
    return CONTAINER_OF(sock, struct sim_sock, base);
}

static void sim_wake(struct co *co)
{
    if (co != NULL)
        co_wake(co);
}

/* --- channels --- */

static bool sim_channel_has_more(const struct sim_channel *channel)
{
    if (channel->reset_arrived)
        return false;
    return channel->arrived < channel->sent || (channel->fin && !channel->fin_arrived) ||
           channel->reset;
}

static void sim_channel_go_on(struct sim_channel *channel)
{
    struct sim_conn *conn = channel->conn;

    if (channel->event.armed || !sim_channel_has_more(channel) ||
        sim_hosts_are_cut(conn->sim, conn->hosts[0], conn->hosts[1]))
        return;
    sim_event_arm(conn->sim, &channel->event, sim_delay_ns(conn->sim, conn->sim->options.net));
}

/* Tells the end `side` that the connection is broken. */
static void sim_conn_reset(struct sim_conn *conn, unsigned side)
{
    conn->to[side].reset = true;
    sim_channel_go_on(&conn->to[side]);
}

static void sim_channel_arrive(struct sim_channel *channel)
{
    struct sim_conn *conn = channel->conn;
    struct sim_sock *end = conn->ends[channel->side];
    uint64_t bytes = channel->sent - channel->arrived;

    if (channel->reset) {
        channel->reset_arrived = true;
        channel->sent = channel->arrived;
    } else if (bytes > 0 && (!conn->open[channel->side] || (end != NULL && end->base.shut != 0))) {
        channel->arrived = channel->taken = channel->sent;
        sim_conn_reset(conn, !channel->side);
    } else if (bytes > 0) {
        if (sim_chance(conn->sim, SIM_SHORT_PERCENT))
            bytes = 1 + sim_below(conn->sim, bytes);
        channel->arrived += bytes;
    } else if (channel->fin) {
        channel->fin_arrived = true;
    }
    sim_trace(conn->sim, SIM_KIND_ARRIVE, channel->side, channel->arrived,
              (uint64_t)channel->fin_arrived << 1 | channel->reset_arrived);
}

static void sim_channel_fire(struct sim_event *event)
{
    struct sim_channel *channel = CONTAINER_OF(event, struct sim_channel, event);
    struct sim_conn *conn = channel->conn;

    sim_channel_arrive(channel);
    if (conn->ends[channel->side] != NULL) {
        sim_wake(conn->ends[channel->side]->receiver);
        if (channel->reset_arrived)
            sim_wake(conn->ends[channel->side]->sender);
    }
    sim_channel_go_on(channel);
}

static size_t sim_channel_room(const struct sim_channel *channel)
{
    return channel->conn->sim->options.sock_buffer_bytes - (channel->sent - channel->taken);
}

static void sim_channel_put(struct sim_channel *channel, const uint8_t *bytes, size_t length_bytes)
{
    size_t capacity = channel->conn->sim->options.sock_buffer_bytes;

    while (length_bytes > 0) {
        size_t at = channel->sent % capacity;
        size_t part = MIN(length_bytes, capacity - at);
        memcpy(channel->ring + at, bytes, part);
        channel->sent += part;
        bytes += part;
        length_bytes -= part;
    }
}

static void sim_channel_take(struct sim_channel *channel, uint8_t *bytes, size_t length_bytes)
{
    size_t capacity = channel->conn->sim->options.sock_buffer_bytes;

    while (length_bytes > 0) {
        size_t at = channel->taken % capacity;
        size_t part = MIN(length_bytes, capacity - at);
        memcpy(bytes, channel->ring + at, part);
        channel->taken += part;
        bytes += part;
        length_bytes -= part;
    }
}

/* --- connections --- */

static void sim_conn_free(struct sim_conn *conn)
{
    list_remove(&conn->link);
    for (unsigned side = 0; side < 2; side++) {
        sim_event_cancel(conn->sim, &conn->to[side].event);
        free(conn->to[side].ring);
    }
    free(conn);
}

static struct sim_conn *sim_conn_new(struct sim_host *client, struct sim_host *server)
{
    struct sim *sim = client->sim;
    struct sim_conn *conn = calloc(1, sizeof(*conn));

    if (conn == NULL)
        return NULL;
    conn->sim = sim;
    conn->hosts[0] = client;
    conn->hosts[1] = server;
    list_push_back(&sim->conns, &conn->link);
    for (unsigned side = 0; side < 2; side++) {
        conn->open[side] = true;
        conn->to[side].event.fire = sim_channel_fire;
        conn->to[side].conn = conn;
        conn->to[side].side = side;
        conn->to[side].ring = malloc(sim->options.sock_buffer_bytes);
    }
    if (conn->to[0].ring == NULL || conn->to[1].ring == NULL) {
        sim_conn_free(conn);
        return NULL;
    }
    return conn;
}

static void sim_conn_close(struct sim_conn *conn, unsigned side, bool abort)
{
    struct sim_channel *in = &conn->to[side];

    conn->open[side] = false;
    conn->ends[side] = NULL;
    if (!conn->open[!side]) {
        sim_conn_free(conn);
        return;
    }
    if (abort || in->taken < in->arrived) {
        sim_conn_reset(conn, !side);
        return;
    }
    conn->to[!side].fin = true;
    sim_channel_go_on(&conn->to[!side]);
}

/* The socket at one end; NULL when memory is out. */
static struct sim_sock *sim_sock_new(struct sim_loop *loop, struct sim_conn *conn, unsigned side)
{
    struct sim_sock *self = calloc(1, sizeof(*self));

    if (self == NULL)
        return NULL;
    sock_init(&self->base, &loop->base);
    self->loop = loop;
    list_init(&self->backlog);
    loop->socks++;
    if (conn == NULL)
        return self;
    self->conn = conn;
    self->side = side;
    conn->ends[side] = self;
    const char *names[2] = {conn->client_name, conn->server_name};
    snprintf(self->base.local_name, sizeof(self->base.local_name), "%s", names[side]);
    snprintf(self->base.peer_name, sizeof(self->base.peer_name), "%s", names[!side]);
    return self;
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

/* All listeners of the world. */
#define FOR_EACH_LISTENER(listener_, sim_)                      \
    LIST_FOR_EACH(loop_, &(sim_)->loops, struct sim_loop, link) \
        LIST_FOR_EACH(listener_, &loop_->listeners, struct sim_sock, link)

static struct sim_sock *sim_listener_at(struct sim *sim, const struct sim_target *target, bool bind)
{
    FOR_EACH_LISTENER(listener, sim)
    {
        if (listener->inode != NULL || listener->loop->host != target->host ||
            listener->base.local_port != target->port || listener->base.shut != 0)
            continue;
        if (listener->scope == target->scope || listener->scope == SIM_SCOPE_ANY ||
            (bind && target->scope == SIM_SCOPE_ANY))
            return listener;
    }
    return NULL;
}

static struct sim_sock *sim_listener_on(struct sim *sim, const struct sim_inode *inode)
{
    FOR_EACH_LISTENER(listener, sim)
    {
        if (listener->inode == inode && listener->base.shut == 0)
            return listener;
    }
    return NULL;
}

/* --- listening --- */

static int sim_listen_unix(struct sim_sock *self, const char *path, struct err *err)
{
    struct sim_host *host = self->loop->host;
    struct sim_inode *inode;

    if (sim_fs_find(host, path, &inode) == 0) {
        if (inode->kind != SIM_SOCKET || sim_listener_on(host->sim, inode) != NULL)
            return err_set(err, -EADDRINUSE,
                           "'%s' is in use: another process listens there, or it is no socket",
                           path);
        sim_fs_unlink(host, path);
    }
    self->path = strdup(path);
    if (self->path == NULL)
        return err_no_memory(err);
    int result = sim_fs_make(host, path, SIM_SOCKET, &inode);
    if (result < 0)
        return err_set_errno(err, result, "cannot listen on '%s'", path);
    inode->refs++;
    self->inode = inode;
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
        if (sim_listener_at(host->sim, target, true) != NULL)
            target->port = 0;
    }
}

static int sim_listen_inet(struct sim_sock *self, const struct sock_address *address,
                           struct err *err)
{
    struct sim_host *host = self->loop->host;
    struct sim_target target;
    char name[256];

    int result = sim_target_find(self->loop, address, true, &target, err);
    if (result < 0)
        return result;
    if (target.host != host)
        result = -EADDRNOTAVAIL;
    if (target.port == 0)
        sim_port_choose(&target);
    if (result == 0 && (target.port == 0 || sim_listener_at(host->sim, &target, true) != NULL))
        result = -EADDRINUSE;
    if (result < 0)
        return err_set_errno(err, result, "cannot listen on %s",
                             sock_address_format(address, name, sizeof(name)));
    static const char *const names[] = {"0.0.0.0", "127.0.0.1"};
    self->scope = target.scope;
    self->base.local_port = target.port;
    snprintf(self->base.local_name, sizeof(self->base.local_name), "%s:%u",
             target.scope == SIM_SCOPE_OUTSIDE ? host->address : names[target.scope], target.port);
    return 0;
}

int sim_sock_listen(struct loop *base, const struct sock_address *address,
                    struct sock **ret_listener, struct err *err)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim_sock *self = sim_sock_new(loop, NULL, 0);

    if (self == NULL)
        return err_no_memory(err);
    int result = address->family == SOCK_FAMILY_UNIX ? sim_listen_unix(self, address->path, err)
                                                     : sim_listen_inet(self, address, err);
    if (result < 0) {
        free(self->path);
        free(self);
        loop->socks--;
        return result;
    }
    self->base.listening = true;
    list_push_back(&loop->listeners, &self->link);
    *ret_listener = &self->base;
    return 0;
}

int sim_sock_accept(struct sock *listener, struct sock **ret_sock)
{
    struct sim_sock *self = sim_sock_of(listener);

    assert(self->receiver == NULL);
    listener->receiving = true;
    while (listener->shut == 0 && list_empty(&self->backlog)) {
        self->receiver = co_self();
        co_wait();
        self->receiver = NULL;
    }
    listener->receiving = false;
    if (listener->shut != 0)
        return listener->shut;
    struct sim_conn *conn = LIST_POP_FRONT(&self->backlog, struct sim_conn, backlog_link);
    self->backlog_count--;
    struct sim_sock *sock = sim_sock_new(self->loop, conn, 1);
    if (sock == NULL) {
        sim_conn_close(conn, 1, true);
        return -ENOMEM;
    }
    sim_trace(self->loop->sim, SIM_KIND_ACCEPT, self->loop->index, conn->to[1].arrived, 0);
    *ret_sock = &sock->base;
    return 0;
}

/* --- connecting --- */

static void sim_conn_name(struct sim_conn *conn, const struct sim_sock *listener,
                          const struct sim_target *target)
{
    struct sim_host *client = conn->hosts[0];

    if (listener->inode != NULL) {
        snprintf(conn->client_name, sizeof(conn->client_name), "unix:");
        snprintf(conn->server_name, sizeof(conn->server_name), "%s", listener->base.local_name);
        return;
    }
    bool loopback = target->scope == SIM_SCOPE_LOOPBACK;
    unsigned port = SIM_CLIENT_PORT_MIN + client->clients_made++ % 10000;
    snprintf(conn->client_name, sizeof(conn->client_name), "%s:%u",
             loopback ? "127.0.0.1" : client->address, port);
    snprintf(conn->server_name, sizeof(conn->server_name), "%s:%u",
             loopback ? "127.0.0.1" : target->host->address, target->port);
}

/* One knock: -EAGAIN when nobody answers. */
static int sim_connect_once(struct sim_loop *loop, const struct sock_address *address,
                            struct sim_target *target, struct sim_conn **ret_conn)
{
    struct sim_sock *listener;
    struct sim_inode *inode;

    if (address->family == SOCK_FAMILY_UNIX) {
        int result = sim_fs_find(loop->host, address->path, &inode);
        if (result < 0)
            return result;
        listener = inode->kind == SIM_SOCKET ? sim_listener_on(loop->sim, inode) : NULL;
    } else {
        if (sim_hosts_are_cut(loop->sim, loop->host, target->host))
            return -EAGAIN;
        listener = sim_listener_at(loop->sim, target, false);
    }
    if (listener == NULL)
        return -ECONNREFUSED;
    if (listener->backlog_count >= SIM_BACKLOG_MAX)
        return -EAGAIN;
    struct sim_conn *conn = sim_conn_new(loop->host, target->host);
    if (conn == NULL)
        return -ENOMEM;
    sim_conn_name(conn, listener, target);
    list_push_back(&listener->backlog, &conn->backlog_link);
    listener->backlog_count++;
    sim_wake(listener->receiver);
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
    while ((result = sim_connect_once(loop, address, target, ret_conn)) == -EAGAIN) {
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
    result = sim_connect(loop, address, &target, deadline_ns, &conn);
    sim_trace(loop->sim, SIM_KIND_CONNECT, loop->index, (uint64_t)-result, 0);
    if (result < 0)
        return err_set_errno(err, result, "cannot connect to %s",
                             sock_address_format(address, name, sizeof(name)));
    struct sim_sock *self = sim_sock_new(loop, conn, 0);
    if (self == NULL) {
        sim_conn_close(conn, 0, true);
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

ssize_t sim_sock_recv(struct sock *sock, void *bytes, size_t length_bytes)
{
    struct sim_sock *self = sim_sock_of(sock);
    struct sim *sim = self->loop->sim;
    struct sim_channel *in = &self->conn->to[self->side];

    if (sim->options.net.max_ns != 0 && sim_chance(sim, SIM_LATE_PERCENT))
        sim_pause(self->loop, sim_delay_ns(sim, sim->options.net));
    while (sock->shut == 0 && in->arrived == in->taken) {
        if (in->reset_arrived)
            return -ECONNRESET;
        if (in->fin_arrived)
            return 0;
        self->receiver = co_self();
        co_wait();
        self->receiver = NULL;
    }
    if (sock->shut != 0)
        return sock->shut;
    size_t got = sim_shorten(sim, MIN(length_bytes, in->arrived - in->taken));
    sim_channel_take(in, bytes, got);
    sim_trace(sim, SIM_KIND_RECV, self->loop->index, got, in->taken);
    if (self->conn->ends[!self->side] != NULL)
        sim_wake(self->conn->ends[!self->side]->sender);
    return (ssize_t)got;
}

/* What fits without waiting: 0 when nothing does, -errno when nothing ever will. */
static ssize_t sim_send_some(struct sim_sock *self, const void *bytes, size_t length_bytes)
{
    struct sim *sim = self->loop->sim;
    struct sim_channel *in = &self->conn->to[self->side];
    struct sim_channel *out = &self->conn->to[!self->side];

    if (self->base.shut != 0)
        return self->base.shut;
    if (in->reset_arrived)
        return in->fin_arrived ? -EPIPE : -ECONNRESET;
    size_t put = MIN(length_bytes, sim_channel_room(out));
    if (put == 0)
        return 0;
    put = sim_shorten(sim, put);
    sim_channel_put(out, bytes, put);
    sim_trace(sim, SIM_KIND_SEND, self->loop->index, put, out->sent);
    sim_channel_go_on(out);
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

/* Once nobody listens there, the path may be taken by another: it must not be ours to unlink then. */
static void sim_listener_unlink(struct sim_sock *self)
{
    if (self->inode == NULL)
        return;
    sim_fs_unlink(self->loop->host, self->path);
    sim_inode_unref(self->inode);
    self->inode = NULL;
}

void sim_sock_shutdown(struct sock *sock)
{
    struct sim_sock *self = sim_sock_of(sock);

    sim_trace(self->loop->sim, SIM_KIND_SHUTDOWN, self->loop->index, (uint64_t)-sock->shut, 0);
    if (self->conn != NULL) {
        self->conn->to[!self->side].fin = true;
        sim_channel_go_on(&self->conn->to[!self->side]);
    }
    if (sock->listening)
        sim_listener_unlink(self);
    sim_wake(self->receiver);
    sim_wake(self->sender);
}

void sim_sock_close(struct sock *sock)
{
    struct sim_sock *self = sim_sock_of(sock);
    struct sim_conn *conn;

    assert(self->receiver == NULL);
    assert(self->sender == NULL);
    if (self->conn != NULL)
        sim_conn_close(self->conn, self->side, false);
    list_remove(&self->link);
    while ((conn = LIST_POP_FRONT(&self->backlog, struct sim_conn, backlog_link)) != NULL)
        sim_conn_close(conn, 1, true);
    sim_listener_unlink(self);
    free(self->path);
    self->loop->socks--;
    free(self);
}

/* --- cuts --- */

static struct sim_cut *sim_cut_find(struct sim *sim, const struct sim_host *a,
                                    const struct sim_host *b)
{
    LIST_FOR_EACH(cut, &sim->cuts, struct sim_cut, link) {
        if ((cut->hosts[0] == a && cut->hosts[1] == b) ||
            (cut->hosts[0] == b && cut->hosts[1] == a))
            return cut;
    }
    return NULL;
}

bool sim_hosts_are_cut(struct sim *sim, const struct sim_host *a, const struct sim_host *b)
{
    return sim_cut_find(sim, a, b) != NULL;
}

int sim_net_cut(struct sim *sim, const char *host_a, const char *host_b, bool cut)
{
    struct sim_host *a = sim_host_find(sim, host_a);
    struct sim_host *b = sim_host_find(sim, host_b);

    if (a == NULL || b == NULL || a == b)
        return -EINVAL;
    struct sim_cut *known = sim_cut_find(sim, a, b);
    if (cut && known == NULL) {
        known = calloc(1, sizeof(*known));
        if (known == NULL)
            return -ENOMEM;
        known->hosts[0] = a;
        known->hosts[1] = b;
        list_push_back(&sim->cuts, &known->link);
    } else if (!cut && known != NULL) {
        list_remove(&known->link);
        free(known);
    }
    LIST_FOR_EACH(conn, &sim->conns, struct sim_conn, link) {
        for (unsigned side = 0; side < 2; side++) {
            if (sim_hosts_are_cut(sim, conn->hosts[0], conn->hosts[1]))
                sim_event_cancel(sim, &conn->to[side].event);
            else
                sim_channel_go_on(&conn->to[side]);
        }
    }
    return 0;
}

void sim_net_deinit(struct sim *sim)
{
    assert(list_empty(&sim->conns));
    LIST_FOR_EACH_SAFE(cut, &sim->cuts, struct sim_cut, link) {
        list_remove(&cut->link);
        free(cut);
    }
}
