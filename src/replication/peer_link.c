/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replication/peer_link.h"

#include "base/log.h"
#include "loop/co_sync.h"
#include "wire/qmp_message.h"

#include <errno.h>
#include <string.h>

#define RECEIVE_BYTES (16u * 1024)

/* A command under way: on its caller's stack. */
struct peer_call {
    uint64_t id;
    bool answered;
    int code; /* 0 or -EREMOTEIO */
    struct json_object *result;
    struct err *err;
};

struct peer_link {
    struct loop *loop;
    struct sock *sock;
    struct json_reader *reader;
    struct peer_link_owner owner;
    char address[300];
    struct co_mutex turn;
    struct peer_call *call; /* NULL: none is under way */
    uint64_t last_id;
    unsigned users;  /* inside peer_link_run() */
    struct err dead; /* why it has ended; not set: it has not */
    bool receiving;  /* the receiver's coroutine lives */
    bool closing;
    struct co_queue changed; /* an answer has come, the connection has ended, a user has left */
    size_t begin, end;       /* of what is received and not yet looked at */
    size_t value_bytes;      /* of the value that is coming */
    char bytes[RECEIVE_BYTES];
};

bool peer_link_is_up(const struct peer_link *link)
{
    return !err_is_set(&link->dead);
}

const struct err *peer_link_reason(const struct peer_link *link)
{
    assert(err_is_set(&link->dead));
    return &link->dead;
}

/* The first reason stays. */
static void link_die(struct peer_link *link, const struct err *why)
{
    if (err_is_set(&link->dead))
        return;
    link->dead = *why;
    sock_shutdown(link->sock, why->code);
    co_queue_wake_all(&link->changed);
    if (!link->closing && link->owner.lost != NULL)
        link->owner.lost(link->owner.arg);
}

void peer_link_cut(struct peer_link *link, const struct err *why)
{
    link_die(link, why);
}

/* --- receiving --- */

static int receive_error(struct peer_link *link, ssize_t received, struct err *err)
{
    const char *refusal = sock_tls_refusal(link->sock);

    if (refusal != NULL)
        return err_set(err, -ECONNREFUSED, "TLS: %s", refusal);
    if (received == 0)
        return err_set(err, -EPIPE, "it has closed the connection%s",
                       json_reader_in_value(link->reader) ? " in the middle of a message" : "");
    return err_set_errno(err, (int)received, "the connection is lost");
}

/* The next value; it is the caller's. */
static int link_next(struct peer_link *link, struct json_object **ret_value, struct err *err)
    MAY_WAIT
{
    for (;;) {
        size_t used = 0;
        if (link->begin == link->end) {
            ssize_t received = sock_recv(link->sock, link->bytes, sizeof(link->bytes));
            if (received <= 0)
                return receive_error(link, received, err);
            link->begin = 0;
            link->end = (size_t)received;
        }
        int ret = json_reader_feed(link->reader, link->bytes + link->begin, link->end - link->begin,
                                   &used, ret_value, err);
        link->begin += used;
        link->value_bytes += used;
        if (ret < 0)
            return err_prefix(err, "it sends what is no JSON");
        if (link->value_bytes > PEER_LINK_MAX_BYTES) {
            if (ret > 0)
                json_object_put(*ret_value);
            return err_set(err, -EMSGSIZE, "it sends a message of more than %u bytes",
                           PEER_LINK_MAX_BYTES);
        }
        if (ret == 0)
            continue;
        link->value_bytes = 0;
        return 0;
    }
}

static int take_answer(struct peer_link *link, struct json_object *value, struct err *err)
{
    struct peer_call *call = link->call;
    struct json_object *result = NULL;
    struct err refusal = ERR_INIT;
    int ret = qmp_message_answer(value, &result, &refusal);

    if (ret == 0)
        return err_set(err, -EPROTO, "it sends what is neither an answer nor an event");
    if (call == NULL || call->answered || json_uint(value, "id") != call->id)
        return err_set(err, -EPROTO, "it answers what nobody has asked%s%s", ret < 0 ? ": " : "",
                       ret < 0 ? refusal.text : "");
    call->answered = true;
    call->code = ret < 0 ? ret : 0;
    call->result = json_object_get(result);
    if (ret < 0)
        *call->err = refusal;
    co_queue_wake_all(&link->changed);
    return 0;
}

static void receiver_run(void *arg) MAY_WAIT
{
    struct peer_link *link = arg;
    struct err err = ERR_INIT;
    int ret = 0;

    while (ret == 0) {
        CLEANUP(json_putp) struct json_object *value = NULL;
        ret = link_next(link, &value, &err);
        const char *event = ret == 0 ? json_text(value, "event") : NULL;
        if (event != NULL)
            link->owner.event(link->owner.arg, event, json_member(value, "data"));
        else if (ret == 0)
            ret = take_answer(link, value, &err);
    }
    link_die(link, &err);
    link->receiving = false;
    co_queue_wake_all(&link->changed);
}

/* --- commands --- */

static int link_send(struct peer_link *link, struct json_object *request, struct err *err) MAY_WAIT
{
    size_t length_bytes = 0;
    CLEANUP(free_ptr)
    char *text = request != NULL ? json_format(request, JSON_LINE, &length_bytes) : NULL;
    struct iovec iov[] = {
        {.iov_base = text, .iov_len = length_bytes},
        {.iov_base = (void *)(uintptr_t) "\n", .iov_len = 1},
    };

    if (text == NULL)
        return err_no_memory(err);
    int ret = sock_send(link->sock, iov, ARRAY_LEN(iov));
    return ret < 0 ? err_set_errno(err, ret, "the connection is lost") : 0;
}

/* What the socket calls a deadline that has passed, in the words of the command. */
static int call_failed(struct peer_link *link, const char *command, struct err *err)
{
    *err = link->dead;
    if (err->code == -ETIMEDOUT)
        return err_set(err, -ETIMEDOUT, "no answer to %s in time", command);
    return err->code;
}

static int call_run(struct peer_link *link, const char *command, struct json_object *request,
                    uint64_t deadline_ns, struct peer_call *call, struct err *err) MAY_WAIT
{
    if (!peer_link_is_up(link))
        return call_failed(link, command, err);
    link->call = call;
    sock_deadline(link->sock, deadline_ns);
    int ret = link_send(link, request, err);
    if (ret < 0)
        link_die(link, err);
    while (!call->answered && peer_link_is_up(link))
        co_queue_wait(&link->changed);
    link->call = NULL;
    if (!call->answered)
        return call_failed(link, command, err);
    sock_deadline(link->sock, DEADLINE_NEVER);
    return call->code;
}

int peer_link_run(struct peer_link *link, const char *command, struct json_object *arguments,
                  uint64_t deadline_ns, struct json_object **ret_result, struct err *err)
{
    struct peer_call call = {.id = ++link->last_id, .err = err};
    CLEANUP(json_putp)
    struct json_object *request = qmp_message_command(command, arguments, call.id);

    link->users++;
    co_mutex_lock(&link->turn);
    int ret = call_run(link, command, request, deadline_ns, &call, err);
    co_mutex_unlock(&link->turn);
    link->users--;
    co_queue_wake_all(&link->changed);
    if (ret == 0 && ret_result != NULL)
        *ret_result = call.result;
    else
        json_object_put(call.result);
    return ret < 0 ? err_prefix(err, "the peer %s", link->address) : 0;
}

/* --- opening and closing --- */

static void link_free(struct peer_link *link)
{
    if (link == NULL)
        return;
    assert(!link->receiving);
    assert(link->users == 0);
    sock_close(link->sock);
    json_reader_free(link->reader);
    free(link);
}

void peer_link_close(struct peer_link *link)
{
    struct err why = ERR_INIT;

    if (link == NULL)
        return;
    link->closing = true;
    err_set(&why, -ESHUTDOWN, "the connection has been closed here");
    link_die(link, &why);
    while (link->receiving || link->users > 0)
        co_queue_wait(&link->changed);
    link_free(link);
}

/* A server that speaks TLS waits for our first word, and this is none that it takes for TLS; others skip
 * white space. So it is found out at once that TLS is wanted. */
static int say_something(struct peer_link *link) MAY_WAIT
{
    struct iovec blank = {.iov_base = (void *)(uintptr_t) "\n\n\n\n\n", .iov_len = 5};

    return sock_send(link->sock, &blank, 1); /* a failure shows in the greeting */
}

static int link_secure(struct peer_link *link, const struct replication_peer_control *where,
                       struct err *err) MAY_WAIT
{
    const char *host = where->tls_hostname;

    if (where->tls == NULL) {
        (void)say_something(link);
        return 0;
    }
    if (host == NULL && where->address.family == SOCK_FAMILY_INET)
        host = where->address.host;
    return sock_start_tls(link->sock, where->tls,
                          host != NULL && host[0] != '\0' ? host : "localhost", err);
}

static int link_greet(struct peer_link *link, bool tls, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *greeting = NULL;
    int ret = link_next(link, &greeting, err);

    if (ret < 0)
        return err_prefix(err, "it does not greet%s",
                          tls ? "" : " (it may want TLS: peer-control.tls-creds)");
    if (json_member(greeting, "QMP") == NULL)
        return err_set(err, -EPROTO, "it is no QMP server: no greeting came");
    return 0;
}

/* Until the receiver runs the caller speaks on the socket alone. */
static int link_begin(struct peer_link *link, const struct replication_peer_control *where,
                      uint64_t deadline_ns, struct err *err) MAY_WAIT
{
    sock_deadline(link->sock, deadline_ns);
    int ret = link_secure(link, where, err);
    if (ret == 0)
        ret = link_greet(link, where->tls != NULL, err);
    if (ret < 0)
        return err_prefix(err, "the peer %s", link->address);
    sock_deadline(link->sock, DEADLINE_NEVER);
    if (co_spawn(link->loop, "peer link", receiver_run, link) < 0)
        return err_no_memory(err);
    link->receiving = true;
    return 0;
}

static struct peer_link *link_new(struct loop *loop, const struct replication_peer_control *where,
                                  const struct peer_link_owner *owner)
{
    struct peer_link *link = calloc(1, sizeof(*link));

    if (link == NULL)
        return NULL;
    link->loop = loop;
    link->owner = *owner;
    co_mutex_init(&link->turn);
    co_queue_init(&link->changed);
    sock_address_format(&where->address, link->address, sizeof(link->address));
    link->reader = json_reader_new();
    if (link->reader != NULL)
        return link;
    free(link);
    return NULL;
}

int peer_link_open(struct loop *loop, const struct replication_peer_control *where,
                   const struct peer_link_owner *owner, struct peer_link **ret_link,
                   struct err *err)
{
    uint64_t deadline_ns = loop_now_ns(loop) + PEER_LINK_OPEN_NS;
    struct peer_link *link = link_new(loop, where, owner);

    if (link == NULL)
        return err_no_memory(err);
    int ret = sock_connect(loop, &where->address, deadline_ns, &link->sock, err);
    if (ret < 0)
        err_prefix(err, "the peer's control");
    else
        ret = link_begin(link, where, deadline_ns, err);
    if (ret < 0) {
        link_free(link);
        return ret;
    }
    /* The owner learns of an end from now on, by what this returns until then. */
    link->closing = true;
    ret = peer_link_run(link, "qmp_capabilities", NULL, deadline_ns, NULL, err);
    link->closing = false;
    if (ret < 0) {
        peer_link_close(link);
        return ret;
    }
    *ret_link = link;
    return 0;
}
