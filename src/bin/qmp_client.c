/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/qmp_client.h"

#include "loop/sock.h"
#include "wire/qmp_message.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct qmp_client {
    int fd;
    struct tls_stream *tls; /* NULL: in the clear */
    char address[300];
    struct json_reader *reader;
    struct json_object *greeting;
    char input[16384];
    size_t input_begin, input_end;
};

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- connecting --- */

static int connect_unix(const struct sock_address *address, struct err *err)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd;

    if (strlen(address->path) >= sizeof(name.sun_path))
        return err_set(err, -ENAMETOOLONG, "'%s' is too long for a socket's path (%zu at most)",
                       address->path, sizeof(name.sun_path) - 1);
    memcpy(name.sun_path, address->path, strlen(address->path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set_errno(err, -errno, "socket");
    if (connect(fd, (struct sockaddr *)&name, sizeof(name)) == 0)
        return fd;
    if (errno == ENOENT || errno == ECONNREFUSED)
        err_set(err, -errno, "no daemon listens at %s: is it running?", address->path);
    else
        err_set_errno(err, -errno, "cannot connect to %s", address->path);
    close(fd);
    return err->code;
}

/* Waits for a connection under way; 0 or -errno. */
static int finish_connect(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t length = sizeof(error);

    if (poll(&wait, 1, QMP_CLIENT_CONNECT_MS) == 0)
        return -ETIMEDOUT;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        return -errno;
    return -error;
}

static int connect_one(const struct addrinfo *info)
{
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r;

    if (fd < 0)
        return -errno;
    r = connect(fd, info->ai_addr, info->ai_addrlen) == 0 ? 0 : -errno;
    if (r == -EINPROGRESS)
        r = finish_connect(fd);
    if (r == 0 && fcntl(fd, F_SETFL, 0) < 0)
        r = -errno;
    if (r == 0)
        return fd;
    close(fd);
    return r;
}

static int connect_inet(const struct sock_address *address, struct err *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    const char *host = address->host != NULL && *address->host != '\0' ? address->host : NULL;
    struct addrinfo *list = NULL;
    int fd = -ENOENT;
    int found = getaddrinfo(host, address->port, &hints, &list);

    if (found != 0)
        return err_set(err, -EHOSTUNREACH, "cannot look up %s: %s", address->host,
                       gai_strerror(found));
    for (const struct addrinfo *info = list; info != NULL && fd < 0; info = info->ai_next)
        fd = connect_one(info);
    freeaddrinfo(list);
    if (fd < 0)
        return err_set_errno(err, fd, "cannot connect to %s:%s", host != NULL ? host : "localhost",
                             address->port);
    return fd;
}

/* One that speaks TLS waits for our first word, and this is none that it takes for TLS; others skip white
 * space. So it is found out at once that TLS is wanted. */
static void say_something(int fd)
{
    static const char blank[] = "\n\n\n\n\n";

    (void)send(fd, blank, sizeof(blank) - 1, MSG_NOSIGNAL); /* a failure shows in the greeting */
}

static int greet(struct qmp_client *client, struct err *err)
{
    int r = qmp_client_next(client, QMP_CLIENT_CONNECT_MS, &client->greeting, err);

    if (r == 0 || err->code == -EPIPE || err->code == -ECONNRESET)
        return err_set(err, -ETIMEDOUT, "%s: the daemon accepts but does not greet%s",
                       client->address,
                       client->tls == NULL ? "; it may want TLS (--tls-creds-dir)" : "");
    if (r < 0)
        return r;
    if (!json_object_object_get_ex(client->greeting, "QMP", NULL))
        return err_set(err, -EPROTO, "%s: this is not a QMP server", client->address);
    return qmp_client_run(client, "qmp_capabilities", NULL, NULL, err);
}

static int start_tls(struct qmp_client *client, const struct tls_creds_options *options,
                     const struct sock_address *address, struct err *err)
{
    const char *host = address->host != NULL && *address->host != '\0' ? address->host
                                                                       : "localhost";
    struct tls_creds *creds = NULL;
    int r = tls_creds_load_now(options, &creds, err);

    if (r < 0)
        return r;
    r = tls_stream_start(client->fd, creds, host, QMP_CLIENT_CONNECT_MS, &client->tls, err);
    tls_creds_unref(creds);
    return r < 0 ? err_prefix(err, "%s", client->address) : 0;
}

int qmp_client_connect(const char *text, struct qmp_client **ret_client, struct err *err)
{
    return qmp_client_connect_tls(text, NULL, ret_client, err);
}

int qmp_client_connect_tls(const char *text, const struct tls_creds_options *tls,
                           struct qmp_client **ret_client, struct err *err)
{
    CLEANUP(qmp_client_closep) struct qmp_client *client = calloc(1, sizeof(*client));
    struct sock_address address = {0};
    int r;

    if (client == NULL)
        return err_no_memory(err);
    client->fd = -1;
    client->reader = json_reader_new();
    if (client->reader == NULL)
        return err_no_memory(err);
    r = sock_address_parse(text, "control address", &address, err);
    if (r < 0)
        return r;
    sock_address_format(&address, client->address, sizeof(client->address));
    client->fd = address.family == SOCK_FAMILY_UNIX ? connect_unix(&address, err)
                                                    : connect_inet(&address, err);
    r = client->fd < 0 ? err->code : 0;
    if (r == 0 && address.family == SOCK_FAMILY_INET && tls != NULL)
        r = start_tls(client, tls, &address, err);
    else if (r == 0 && address.family == SOCK_FAMILY_INET)
        say_something(client->fd);
    sock_address_release(&address);
    if (r < 0)
        return r;
    r = greet(client, err);
    if (r < 0)
        return r;
    *ret_client = TAKE_PTR(client);
    return 0;
}

void qmp_client_close(struct qmp_client *client)
{
    if (client == NULL)
        return;
    tls_stream_free(client->tls);
    if (client->fd >= 0)
        close(client->fd);
    json_reader_free(client->reader);
    json_object_put(client->greeting);
    free(client);
}

void qmp_client_closep(struct qmp_client **client)
{
    qmp_client_close(*client);
}

struct json_object *qmp_client_greeting(const struct qmp_client *client)
{
    return client->greeting;
}

int qmp_client_fd(const struct qmp_client *client)
{
    return client->fd;
}

/* --- messages --- */

int qmp_client_send(struct qmp_client *client, const char *text, size_t length_bytes,
                    struct err *err)
{
    if (client->tls != NULL) {
        int r = tls_stream_send(client->tls, text, length_bytes);

        return r < 0 ? err_set_errno(err, r, "%s: cannot send", client->address) : 0;
    }
    while (length_bytes > 0) {
        ssize_t sent = send(client->fd, text, length_bytes, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return err_set_errno(err, -errno, "%s: cannot send", client->address);
        text += sent;
        length_bytes -= (size_t)sent;
    }
    return 0;
}

/* What has been received already: 1, 0 or an error. */
static int next_received(struct qmp_client *client, struct json_object **ret_message,
                         struct err *err)
{
    size_t used = 0;
    int r;

    if (client->input_begin == client->input_end)
        return 0;
    r = json_reader_feed(client->reader, client->input + client->input_begin,
                         client->input_end - client->input_begin, &used, ret_message, err);
    client->input_begin += used;
    if (r < 0)
        return err_prefix(err, "%s: the daemon's answer is not understood", client->address);
    return r;
}

/* 1 to so many bytes, 0 at the end, -EAGAIN when nothing comes in time. */
static ssize_t receive(struct qmp_client *client, int timeout_ms)
{
    struct pollfd wait = {.fd = client->fd, .events = POLLIN};

    if (client->tls != NULL)
        return tls_stream_recv(client->tls, client->input, sizeof(client->input), timeout_ms);
    if (poll(&wait, 1, timeout_ms) == 0)
        return -EAGAIN;
    ssize_t got = recv(client->fd, client->input, sizeof(client->input), 0);
    return got < 0 ? -errno : got;
}

static int lost(const struct qmp_client *client, int code, struct err *err)
{
    const char *refusal = client->tls != NULL ? tls_stream_refusal(client->tls) : NULL;

    if (refusal != NULL)
        return err_set(err, code, "%s: TLS: %s", client->address, refusal);
    return err_set_errno(err, code, "%s: connection lost", client->address);
}

int qmp_client_next(struct qmp_client *client, int timeout_ms, struct json_object **ret_message,
                    struct err *err)
{
    int64_t deadline_ms = now_ms() + timeout_ms;

    for (;;) {
        int64_t left_ms = deadline_ms - now_ms();
        ssize_t got;
        int r = next_received(client, ret_message, err);

        if (r != 0)
            return r;
        if (left_ms < 0)
            left_ms = 0;
        got = receive(client, left_ms > INT32_MAX ? -1 : (int)left_ms);
        if (got == -EAGAIN && left_ms == 0)
            return 0;
        if (got == -EINTR || got == -EAGAIN)
            continue;
        if (got < 0)
            return lost(client, (int)got, err);
        if (got == 0)
            return err_set(err, -EPIPE, "%s: the daemon has closed the connection",
                           client->address);
        client->input_begin = 0;
        client->input_end = (size_t)got;
    }
}

static int send_command(struct qmp_client *client, const char *command,
                        struct json_object *arguments, struct err *err)
{
    CLEANUP(json_putp) struct json_object *request = qmp_message_command(command, arguments, 0);
    const char *text;

    text = request != NULL ? json_object_to_json_string_ext(request, JSON_C_TO_STRING_PLAIN) : NULL;
    if (text == NULL)
        return err_no_memory(err);
    return qmp_client_send(client, text, strlen(text), err);
}

int qmp_client_run(struct qmp_client *client, const char *command, struct json_object *arguments,
                   struct json_object **ret_result, struct err *err)
{
    int r = send_command(client, command, arguments, err);

    while (r == 0) {
        CLEANUP(json_putp) struct json_object *message = NULL;
        struct json_object *result = NULL;

        r = qmp_client_next(client, QMP_CLIENT_ANSWER_MS, &message, err);
        if (r == 0)
            return err_set(err, -ETIMEDOUT, "%s: no answer to %s within %d s", client->address,
                           command, QMP_CLIENT_ANSWER_MS / 1000);
        if (r > 0)
            r = qmp_message_answer(message, &result, err);
        if (r > 0 && ret_result != NULL)
            *ret_result = json_object_get(result);
    }
    return r < 0 ? r : 0;
}
