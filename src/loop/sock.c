/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets: addresses, deadlines, shutdown, and the front of the backend's hooks. */
#include "loop/tls_internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#define LISTEN_RETRY_NS      (1 * NS_PER_S)
#define LISTEN_RETRY_STEP_NS (10 * NS_PER_MS)

/* --- addresses --- */

static int address_parse_unix(const char *path, const char *where, struct sock_address *ret_address,
                              struct err *err)
{
    size_t limit = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;

    if (*path == '\0')
        return err_set(err, -EINVAL, "%s: a path is missing behind 'unix:'", where);
    if (strlen(path) > limit)
        return err_set(err, -ENAMETOOLONG,
                       "%s: the path of a unix socket has %zu bytes, at most %zu are possible; use "
                       "a shorter one",
                       where, strlen(path), limit);
    struct sock_address address = {.family = SOCK_FAMILY_UNIX, .path = strdup(path)};
    if (address.path == NULL)
        return err_no_memory(err);
    *ret_address = address;
    return 0;
}

static bool port_is_number(const char *port)
{
    size_t length = strlen(port);

    if (length == 0 || length > 5)
        return false;
    for (const char *c = port; *c != '\0'; c++) {
        if (!isdigit((unsigned char)*c))
            return false;
    }
    return atol(port) <= 65535;
}

int sock_address_parse(const char *text, const char *where, struct sock_address *ret_address,
                       struct err *err)
{
    if (strncmp(text, "unix:", 5) == 0)
        return address_parse_unix(text + 5, where, ret_address, err);

    const char *colon = strrchr(text, ':');
    const char *host = text;
    size_t host_length = colon != NULL ? (size_t)(colon - text) : 0;
    if (colon == NULL || !port_is_number(colon + 1))
        return err_set(err, -EINVAL,
                       "%s: '%s' is no address; use HOST:PORT, [V6]:PORT or unix:PATH, with a port "
                       "from 0 to 65535",
                       where, text);
    if (host_length >= 2 && host[0] == '[' && host[host_length - 1] == ']') {
        host++;
        host_length -= 2;
    } else if (memchr(host, ':', host_length) != NULL) {
        return err_set(err, -EINVAL, "%s: '%s': put the IPv6 address in brackets, as in [::1]:%s",
                       where, text, colon + 1);
    }
    struct sock_address address = {
        .family = SOCK_FAMILY_INET,
        .host = strndup(host, host_length),
        .port = strdup(colon + 1),
    };
    if (address.host == NULL || address.port == NULL) {
        sock_address_release(&address);
        return err_no_memory(err);
    }
    *ret_address = address;
    return 0;
}

int sock_address_copy(const struct sock_address *from, struct sock_address *ret_to)
{
    struct sock_address copy = {.family = from->family};

    if ((from->host != NULL && (copy.host = strdup(from->host)) == NULL) ||
        (from->port != NULL && (copy.port = strdup(from->port)) == NULL) ||
        (from->path != NULL && (copy.path = strdup(from->path)) == NULL)) {
        sock_address_release(&copy);
        return -ENOMEM;
    }
    *ret_to = copy;
    return 0;
}

void sock_address_release(struct sock_address *address)
{
    free(address->host);
    free(address->port);
    free(address->path);
    *address = (struct sock_address){.host = NULL};
}

const char *sock_address_format(const struct sock_address *address, char *text, size_t text_bytes)
{
    const char *host = address->host != NULL ? address->host : "";

    if (address->family == SOCK_FAMILY_UNIX)
        snprintf(text, text_bytes, "unix:%s", address->path);
    else if (strchr(host, ':') != NULL)
        snprintf(text, text_bytes, "[%s]:%s", host, address->port);
    else
        snprintf(text, text_bytes, "%s:%s", host, address->port);
    return text;
}

bool sock_address_is_local(const struct sock_address *address)
{
    if (address->family == SOCK_FAMILY_UNIX)
        return true;
    if (address->host == NULL)
        return false;
    return strcmp(address->host, "localhost") == 0 || strcmp(address->host, "::1") == 0 ||
           (strncmp(address->host, "127.", 4) == 0 &&
            strspn(address->host, "0123456789.") == strlen(address->host));
}

/* --- sockets --- */

static void sock_deadline_fire(struct loop_timer *timer)
{
    sock_shutdown(CONTAINER_OF(timer, struct sock, deadline), -ETIMEDOUT);
}

void sock_init(struct sock *sock, struct loop *loop)
{
    *sock = (struct sock){.loop = loop, .deadline = {.fire = sock_deadline_fire}};
}

int sock_listen(struct loop *loop, const struct sock_address *address, struct sock **ret_listener,
                struct err *err)
{
    uint64_t deadline_ns = loop_now_ns(loop) + LISTEN_RETRY_NS;

    for (;;) {
        int result = loop->ops->sock_listen(loop, address, ret_listener, err);

        /* The socket of a killed process outlives it while its last requests end. */
        if (result != -EADDRINUSE || loop_now_ns(loop) >= deadline_ns)
            return result;
        co_sleep(LISTEN_RETRY_STEP_NS);
    }
}

int sock_connect(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                 struct sock **ret_sock, struct err *err)
{
    return loop->ops->sock_connect(loop, address, deadline_ns, ret_sock, err);
}

int sock_adopt(struct loop *loop, int fd, bool listening, struct sock **ret_sock, struct err *err)
{
    if (loop->ops->sock_adopt == NULL)
        return err_set(err, -EOPNOTSUPP, "the simulator has no file descriptors");
    return loop->ops->sock_adopt(loop, fd, listening, ret_sock, err);
}

int sock_accept(struct sock *listener, struct sock **ret_sock)
{
    assert(listener->listening);
    if (listener->shut != 0)
        return listener->shut;
    return listener->loop->ops->sock_accept(listener, ret_sock);
}

ssize_t sock_recv(struct sock *sock, void *bytes, size_t length_bytes)
{
    assert(!sock->receiving);
    assert(length_bytes > 0);
    if (sock->shut != 0)
        return sock->shut;
    sock->receiving = true;
    ssize_t result = sock->tls != NULL ? tls_recv(sock, bytes, length_bytes)
                                       : sock->loop->ops->sock_recv(sock, bytes, length_bytes);
    sock->receiving = false;
    return sock->shut != 0 ? sock->shut : result;
}

int sock_send(struct sock *sock, struct iovec *iov, int count)
{
    assert(!sock->sending);
    if (sock->shut != 0)
        return sock->shut;
    sock->sending = true;
    int result = sock->tls != NULL ? tls_send(sock, iov, count)
                                   : sock->loop->ops->sock_send(sock, iov, count);
    sock->sending = false;
    return sock->shut != 0 ? sock->shut : result;
}

ssize_t sock_send_now(struct sock *sock, const struct iovec *iov, int count)
{
    assert(!sock->sending);
    if (sock->shut != 0)
        return sock->shut;
    if (sock->tls != NULL)
        return tls_send_now(sock, iov, count);
    return sock->loop->ops->sock_send_now(sock, iov, count);
}

void sock_shutdown(struct sock *sock, int reason)
{
    assert(reason <= 0);
    if (sock->shut != 0)
        return;
    if (sock->tls != NULL && (reason == 0 || reason == -ECONNABORTED || reason == -ESHUTDOWN))
        tls_bye(sock);
    sock->shut = reason != 0 ? reason : -ECONNABORTED;
    loop_timer_cancel(&sock->deadline);
    sock->loop->ops->sock_shutdown(sock);
}

void sock_deadline(struct sock *sock, uint64_t deadline_ns)
{
    if (deadline_ns == DEADLINE_NEVER || sock->shut != 0)
        loop_timer_cancel(&sock->deadline);
    else
        loop_timer_arm(sock->loop, &sock->deadline, deadline_ns);
}

void sock_close(struct sock *sock)
{
    if (sock == NULL)
        return;
    assert(!sock->receiving);
    assert(!sock->sending);
    loop_timer_cancel(&sock->deadline);
    if (sock->tls != NULL && sock->shut == 0)
        tls_bye(sock);
    if (sock->tls != NULL)
        tls_free(sock);
    sock->loop->ops->sock_close(sock);
}

const char *sock_peer_name(const struct sock *sock)
{
    return sock->peer_name;
}

const char *sock_local_name(const struct sock *sock)
{
    return sock->local_name;
}

uint16_t sock_local_port(const struct sock *sock)
{
    return sock->local_port;
}
