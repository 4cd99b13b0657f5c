/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The QMP server's sockets: who listens, who is connected, what is queued for whom. */
#include "control/qmp_dispatch.h"
#include "control/qmp_rate.h"

#include "base/log.h"
#include "loop/co_sync.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RECV_BYTES        (16u * 1024)
#define SEND_BATCH        64
#define ACCEPT_RETRY_NS   (100 * NS_PER_MS)
#define LINGER_NS         (10 * NS_PER_S) /* for taking the last answers after the end of input */
#define PEER_NAME_BYTES   128
/* As long as a name may be in option tables. */
#define LISTENER_ID_BYTES 128

struct qmp_listener {
    struct list_link link;
    struct qmp_server *server;
    char id[LISTENER_ID_BYTES];
    struct sock *sock;
    enum qmp_role role;
    struct tls_creds *creds; /* NULL: no TLS */
    bool accepting;
    bool running; /* its coroutine lives */
};

/* One line that waits to be sent. */
struct qmp_out {
    struct list_link link;
    size_t length_bytes;
    char bytes[];
};

/* One value that was read and waits for its turn. */
struct qmp_in {
    struct list_link link;
    struct json_object *request;
    struct json_object *refusal; /* the answer, when the value was no JSON */
    size_t length_bytes;         /* of its text */
};

struct qmp_client {
    struct list_link link;
    struct qmp_server *server;
    const struct qmp_listener *listener; /* may be gone, when the server closes: not looked into */
    struct sock *sock;
    struct qmp_session session;
    char peer[PEER_NAME_BYTES];
    struct json_reader *reader;
    struct list in;            /* struct qmp_in */
    size_t in_count;           /* of these, and the one that runs */
    size_t in_bytes;           /* their texts */
    size_t value_bytes;        /* read since the last value ended */
    struct co_queue filled_in; /* the runner waits */
    struct co_queue room;      /* the reader waits for the runner */
    bool input_ended;          /* the runner ends when nothing waits for its turn */
    struct list out;           /* struct qmp_out */
    size_t out_bytes;
    struct co_queue filled;  /* the sender waits */
    struct co_queue drained; /* reader and runner wait for room */
    struct tls_creds *creds; /* until the handshake is done, which comes before all else; or NULL */
    bool gone;               /* no more to be sent */
    bool finishing;          /* the sender ends when nothing is queued */
    bool in_command;
    unsigned coroutines;
    char input[RECV_BYTES];
};

struct qmp_server {
    struct loop *loop;
    const struct qmp_command *const *tables;
    const struct qmp_event_type *events; /* may be NULL */
    void *context;
    struct qmp_rates rates;
    struct list listeners, clients;
    size_t client_count, listener_count;
    unsigned unnamed; /* listeners that were given no id */
    uint64_t next_client;
    void (*left)(void *context, uint64_t client); /* may be NULL */
    bool closing;
    struct co_queue changed; /* a coroutine of ours has ended, a client's queue has run empty */
    struct qmp_stats stats;
};

static void send_event(void *arg, const char *text, size_t length_bytes);

struct qmp_server *qmp_server_new(struct loop *loop, const struct qmp_command *const *tables,
                                  const struct qmp_event_type *events, void *context)
{
    struct qmp_server *server = calloc(1, sizeof(*server));

    if (server == NULL)
        return NULL;
    server->loop = loop;
    server->tables = tables;
    server->events = events;
    server->context = context;
    server->rates = (struct qmp_rates){.loop = loop, .send = send_event, .arg = server};
    qmp_rates_init(&server->rates);
    list_init(&server->listeners);
    list_init(&server->clients);
    co_queue_init(&server->changed);
    return server;
}

void qmp_server_free(struct qmp_server *server)
{
    if (server == NULL)
        return;
    assert(list_empty(&server->clients));
    assert(list_empty(&server->listeners));
    free(server);
}

struct qmp_stats qmp_server_stats(const struct qmp_server *server)
{
    struct qmp_stats stats = server->stats;

    stats.clients = server->client_count;
    stats.limited = server->rates.count;
    return stats;
}

/* --- output --- */

/* Cuts the connection; the client's coroutines then end. */
static void client_drop(struct qmp_client *client)
{
    client->gone = true;
    sock_shutdown(client->sock, 0);
    co_queue_wake_all(&client->filled);
    co_queue_wake_all(&client->drained);
    co_queue_wake_all(&client->filled_in);
    co_queue_wake_all(&client->room);
}

static void client_queue(struct qmp_client *client, const char *text, size_t length_bytes)
{
    struct qmp_out *out;

    if (client->gone)
        return;
    if (client->out_bytes + length_bytes > QMP_OUT_MAX_BYTES) {
        client->server->stats.dropped++;
        log_warning("qmp", "client %s does not read: dropped with %zu bytes waiting for it",
                    client->peer, client->out_bytes);
        client_drop(client);
        return;
    }
    out = malloc(sizeof(*out) + length_bytes + 2);
    if (out == NULL) {
        log_error("qmp", "out of memory for an answer: client %s dropped", client->peer);
        client_drop(client);
        return;
    }
    out->link = (struct list_link){0};
    out->length_bytes = length_bytes + 2;
    memcpy(out->bytes, text, length_bytes);
    memcpy(out->bytes + length_bytes, "\r\n", 2);
    list_push_back(&client->out, &out->link);
    client->out_bytes += out->length_bytes;
    co_queue_wake_all(&client->filled);
}

/* Takes the reference on `value`; NULL (memory is out) drops the client, as it waits in vain. */
static void client_answer(struct qmp_client *client, struct json_object *value)
{
    size_t length_bytes;
    CLEANUP(free_ptr)
    char *text = value != NULL ? json_format(value, JSON_LINE, &length_bytes) : NULL;

    json_object_put(value);
    if (text != NULL) {
        client_queue(client, text, length_bytes);
        return;
    }
    log_error("qmp", "out of memory for an answer: client %s dropped", client->peer);
    client_drop(client);
}

static void client_discard_output(struct qmp_client *client)
{
    struct qmp_out *out;

    while ((out = LIST_POP_FRONT(&client->out, struct qmp_out, link)) != NULL)
        free(out);
    client->out_bytes = 0;
}

/* Sends what stands at the head of the queue; it stays there until it is sent. */
static int client_send_batch(struct qmp_client *client) MAY_WAIT
{
    struct iovec iov[SEND_BATCH];
    int count = 0;
    int r;

    LIST_FOR_EACH(out, &client->out, struct qmp_out, link) {
        if (count == SEND_BATCH)
            break;
        iov[count++] = (struct iovec){out->bytes, out->length_bytes};
    }
    r = sock_send(client->sock, iov, count);
    if (r < 0)
        return r;
    while (count-- > 0) {
        struct qmp_out *out = LIST_POP_FRONT(&client->out, struct qmp_out, link);

        client->out_bytes -= out->length_bytes;
        free(out);
    }
    return 0;
}

static void client_leave(struct qmp_client *client);

static void client_sender(void *arg) MAY_WAIT
{
    struct qmp_client *client = arg;

    for (;;) {
        while ((list_empty(&client->out) || client->creds != NULL) && !client->gone &&
               !client->finishing)
            co_queue_wait(&client->filled);
        if (client->gone || list_empty(&client->out))
            break;
        if (client_send_batch(client) < 0) {
            client_drop(client);
            break;
        }
        co_queue_wake_all(&client->drained);
        co_queue_wake_all(&client->server->changed);
    }
    client->gone = true;
    client_leave(client);
}

static const struct qmp_event_type *event_type(const struct qmp_server *server, const char *name)
{
    for (const struct qmp_event_type *type = server->events; type != NULL && type->name != NULL;
         type++) {
        if (strcmp(type->name, name) == 0)
            return type;
    }
    return NULL;
}

static void send_peer_event(struct qmp_server *server, const char *text, size_t length_bytes)
{
    LIST_FOR_EACH(client, &server->clients, struct qmp_client, link) {
        if (client->session.peer_events && client->session.role == QMP_ROLE_PEER)
            client_queue(client, text, length_bytes);
    }
}

void qmp_server_event(struct qmp_server *server, const char *name, struct json_object *data)
{
    const struct qmp_event_type *type = event_type(server, name);
    struct json_object *event;
    size_t length_bytes;
    char *text;

    TRACE("qmp.event", "%s", name);
    event = qmp_event(loop_wall_ns(server->loop), name, json_object_get(data));
    text = event != NULL ? json_format(event, JSON_LINE, &length_bytes) : NULL;
    if (text == NULL) {
        log_error("qmp", "out of memory: event %s is lost", name);
    } else if (type != NULL && type->interval_ns != 0 && !server->closing) {
        qmp_rates_offer(&server->rates, type, data, text, length_bytes);
    } else {
        send_event(server, text, length_bytes);
        if (type != NULL && type->peer)
            send_peer_event(server, text, length_bytes);
        free(text);
    }
    json_object_put(event);
    json_object_put(data);
}

static void send_event(void *arg, const char *text, size_t length_bytes)
{
    struct qmp_server *server = arg;

    LIST_FOR_EACH(client, &server->clients, struct qmp_client, link) {
        if (client->session.negotiated && client->session.role == QMP_ROLE_FULL)
            client_queue(client, text, length_bytes);
    }
}

void qmp_server_flush_events(struct qmp_server *server)
{
    qmp_rates_flush(&server->rates);
}

/* --- input --- */

static void client_run(struct qmp_client *client, struct json_object *request) MAY_WAIT
{
    struct json_object *answer;

    client->server->stats.commands++;
    answer = qmp_dispatch(&client->session, request);
    if (answer != NULL && json_object_object_get_ex(answer, "error", NULL))
        client->server->stats.errors++;
    client_answer(client, answer);
}

/* Waits until the client has taken enough of its answers to get further ones. */
static void client_wait_drained(struct qmp_client *client) MAY_WAIT
{
    while (client->out_bytes > QMP_OUT_SOFT_BYTES && !client->gone && !client->server->closing)
        co_queue_wait(&client->drained);
}

static void client_discard_input(struct qmp_client *client)
{
    struct qmp_in *in;

    while ((in = LIST_POP_FRONT(&client->in, struct qmp_in, link)) != NULL) {
        json_object_put(in->request);
        json_object_put(in->refusal);
        client->in_bytes -= in->length_bytes;
        free(in);
        client->in_count--;
    }
}

static void client_take_turn(struct qmp_client *client) MAY_WAIT
{
    struct qmp_in *in = LIST_POP_FRONT(&client->in, struct qmp_in, link);

    client->in_command = true;
    if (in->refusal != NULL)
        client_answer(client, TAKE_PTR(in->refusal));
    else
        client_run(client, in->request);
    client->in_command = false;
    client->in_bytes -= in->length_bytes;
    json_object_put(in->request);
    free(in);
    client_wait_drained(client);
    client->in_count--;
    co_queue_wake_all(&client->room);
    co_queue_wake_all(&client->server->changed);
}

/* Runs what has been read, in turn. */
static void client_runner(void *arg) MAY_WAIT
{
    struct qmp_client *client = arg;

    for (;;) {
        while (list_empty(&client->in) && !client->input_ended && !client->gone)
            co_queue_wait(&client->filled_in);
        if (client->gone || client->server->closing)
            client_discard_input(client);
        if (!list_empty(&client->in))
            client_take_turn(client);
        else if (client->input_ended || client->gone)
            break;
    }
    /* A client may shut its sending side and still read: what is queued goes out first. */
    client->finishing = true;
    sock_deadline(client->sock, loop_now_ns(client->server->loop) + LINGER_NS);
    co_queue_wake_all(&client->filled);
    client_leave(client);
}

/* No more is read from it just now. */
static bool client_is_full(const struct qmp_client *client)
{
    if (!client->session.oob)
        return client->in_count > 0;
    return client->in_count > QMP_MAX_IN_FLIGHT || client->in_bytes > QMP_IN_SOFT_BYTES;
}

/* Takes both references, one of which is NULL; both: the value null. */
static void client_queue_input(struct qmp_client *client, struct json_object *request,
                               struct json_object *refusal) MAY_WAIT
{
    struct qmp_in *in = malloc(sizeof(*in));

    if (in == NULL) {
        json_object_put(request);
        json_object_put(refusal);
        client_answer(client, NULL);
        return;
    }
    *in = (struct qmp_in){
        .request = request,
        .refusal = refusal,
        .length_bytes = client->value_bytes,
    };
    client->value_bytes = 0;
    client->in_bytes += in->length_bytes;
    list_push_back(&client->in, &in->link);
    client->in_count++;
    co_queue_wake_all(&client->filled_in);
    while (client_is_full(client) && !client->gone)
        co_queue_wait(&client->room);
}

static void client_take(struct qmp_client *client, struct json_object *request) MAY_WAIT
{
    if (!qmp_is_oob(&client->session, request)) {
        client_queue_input(client, request, NULL);
        return;
    }
    client->value_bytes = 0;
    client_run(client, request);
    json_object_put(request);
    client_wait_drained(client);
}

static void client_refuse(struct qmp_client *client, const struct err *err) MAY_WAIT
{
    struct json_object *refusal = qmp_error(err);

    if (refusal != NULL)
        client_queue_input(client, NULL, refusal);
    else
        client_answer(client, NULL);
}

/* Takes what the bytes hold; stops early when the client is gone. */
static void client_consume(struct qmp_client *client, const char *bytes, size_t length_bytes)
    MAY_WAIT
{
    while (length_bytes > 0 && !client->gone && !client->server->closing) {
        struct json_object *value = NULL;
        struct err err = ERR_INIT;
        size_t used = 0;
        int r = json_reader_feed(client->reader, bytes, length_bytes, &used, &value, &err);

        bytes += used;
        length_bytes -= used;
        client->value_bytes += used;
        if (r > 0) {
            client_take(client, value);
        } else if (r < 0) {
            client->server->stats.errors++;
            client_refuse(client, &err);
        } else {
            assert(length_bytes == 0);
        }
    }
}

static void client_start_tls(struct qmp_client *client) MAY_WAIT
{
    struct err err = ERR_INIT;

    sock_deadline(client->sock, loop_now_ns(client->server->loop) + QMP_TLS_TIMEOUT_NS);
    if (sock_start_tls(client->sock, client->creds, NULL, &err) < 0) {
        log_message(err.code == -EPERM ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "qmp", "%s",
                    err.text);
        client_drop(client);
        return;
    }
    sock_deadline(client->sock, DEADLINE_NEVER);
    tls_creds_unref(TAKE_PTR(client->creds));
    co_queue_wake_all(&client->filled); /* the greeting */
}

/* As much as there is; who has promised to speak now and then, and does not, has gone. */
static ssize_t client_receive(struct qmp_client *client) MAY_WAIT
{
    uint64_t silence_ns = client->in_count == 0 ? client->session.silence_ns : 0;

    if (silence_ns != 0)
        sock_deadline(client->sock, loop_now_ns(client->server->loop) + silence_ns);
    ssize_t got = sock_recv(client->sock, client->input, sizeof(client->input));
    if (got == -ETIMEDOUT)
        log_warning("qmp", "client %s has said nothing for %u s: its connection is cut",
                    client->peer, (unsigned)(silence_ns / NS_PER_S));
    if (silence_ns != 0 && got > 0)
        sock_deadline(client->sock, DEADLINE_NEVER);
    return got;
}

static void client_reader(void *arg) MAY_WAIT
{
    struct qmp_client *client = arg;

    if (client->creds != NULL)
        client_start_tls(client);
    /* While the server closes, input is read and dropped: closing a socket with unread input would
     * take from the client the answers that are on their way. */
    while (!client->gone) {
        ssize_t got = client_receive(client);

        if (got <= 0)
            break;
        client_consume(client, client->input, (size_t)got);
    }
    client->input_ended = true;
    if (client->server->left != NULL)
        client->server->left(client->server->context, client->session.client);
    co_queue_wake_all(&client->filled_in);
    client_leave(client);
}

static struct qmp_client *client_find(const struct qmp_server *server, uint64_t number)
{
    LIST_FOR_EACH(client, &server->clients, struct qmp_client, link) {
        if (client->session.client == number)
            return client;
    }
    return NULL;
}

bool qmp_server_has_client(const struct qmp_server *server, uint64_t client)
{
    const struct qmp_client *found = client_find(server, client);

    return found != NULL && !found->gone && !found->input_ended;
}

void qmp_server_cut_client(struct qmp_server *server, uint64_t client)
{
    struct qmp_client *found = client_find(server, client);

    if (found != NULL)
        client_drop(found);
    while (client_find(server, client) != NULL)
        co_queue_wait(&server->changed);
}

void qmp_server_set_left(struct qmp_server *server, void (*left)(void *context, uint64_t client))
{
    server->left = left;
}

/* --- life --- */

static void client_leave(struct qmp_client *client)
{
    struct qmp_server *server = client->server;

    assert(client->coroutines > 0);
    if (--client->coroutines > 0)
        return;
    log_debug("qmp", "client %s has left", client->peer);
    list_remove(&client->link);
    server->client_count--;
    client_discard_input(client);
    client_discard_output(client);
    json_reader_free(client->reader);
    sock_close(client->sock);
    tls_creds_unref(client->creds);
    free(client);
    co_queue_wake_all(&server->changed);
}

static int client_start(struct qmp_client *client)
{
    static const struct {
        const char *name;
        void (*run)(void *arg);
    } parts[] = {
        {"qmp-send", client_sender}, {"qmp-run", client_runner}, {"qmp-read", client_reader}};
    struct qmp_server *server = client->server;

    list_push_back(&server->clients, &client->link);
    server->client_count++;
    /* Counted for all before one runs, so that the first to end does not free the client. */
    client->coroutines = ARRAY_LEN(parts);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        int r = co_spawn(server->loop, parts[i].name, parts[i].run, client);

        if (r == 0)
            continue;
        client->coroutines = (unsigned)i + 1;
        client_drop(client);
        client_leave(client);
        return r;
    }
    log_debug("qmp", "client %s is here", client->peer);
    client_answer(client, qmp_greeting());
    return 0;
}

/* Takes the socket. */
static int client_new(struct qmp_listener *listener, struct sock *sock)
{
    struct qmp_server *server = listener->server;
    struct qmp_client *client = calloc(1, sizeof(*client));

    if (client != NULL)
        client->reader = json_reader_new();
    if (client == NULL || client->reader == NULL) {
        free(client);
        sock_close(sock);
        return -ENOMEM;
    }
    client->server = server;
    client->listener = listener;
    client->sock = sock;
    client->creds = listener->creds != NULL ? tls_creds_ref(listener->creds) : NULL;
    client->session = (struct qmp_session){
        .server = server,
        .tables = server->tables,
        .context = server->context,
        .role = listener->role,
        .client = ++server->next_client,
    };
    snprintf(client->peer, sizeof(client->peer), "%s", sock_peer_name(sock));
    list_init(&client->out);
    list_init(&client->in);
    co_queue_init(&client->filled_in);
    co_queue_init(&client->room);
    co_queue_init(&client->filled);
    co_queue_init(&client->drained);
    return client_start(client);
}

static void listener_accept(struct qmp_listener *listener, struct sock *sock)
{
    int r;

    if (listener->server->client_count >= QMP_MAX_CLIENTS) {
        log_warning("qmp", "%s refused: %u clients are connected already", sock_peer_name(sock),
                    QMP_MAX_CLIENTS);
        sock_close(sock);
        return;
    }
    r = client_new(listener, sock);
    if (r < 0)
        log_error("qmp", "cannot serve a client: %s", strerror(-r));
}

static void listener_run(void *arg) MAY_WAIT
{
    struct qmp_listener *listener = arg;

    while (listener->accepting) {
        struct sock *sock = NULL;
        int r = sock_accept(listener->sock, &sock);

        if (r == 0 && listener->accepting) {
            listener_accept(listener, sock);
        } else if (r == 0) {
            sock_close(sock);
        } else if (listener->accepting) {
            log_warning("qmp", "cannot accept on %s: %s", sock_local_name(listener->sock),
                        strerror(-r));
            co_sleep(ACCEPT_RETRY_NS);
        }
    }
    listener->running = false;
    co_queue_wake_all(&listener->server->changed);
}

int qmp_server_listen(struct qmp_server *server, const struct sock_address *address,
                      enum qmp_role role, struct err *err)
{
    return qmp_server_listen_tls(server, NULL, address, role, NULL, err);
}

const char *qmp_server_listener(const struct qmp_server *server, size_t index)
{
    LIST_FOR_EACH(listener, &server->listeners, struct qmp_listener, link) {
        if (index-- == 0)
            return listener->id;
    }
    return NULL;
}

int qmp_server_yank(struct qmp_server *server, const char *id)
{
    int r = -ENOENT;

    LIST_FOR_EACH(listener, &server->listeners, struct qmp_listener, link) {
        if (strcmp(listener->id, id) != 0)
            continue;
        r = 0;
        LIST_FOR_EACH(client, &server->clients, struct qmp_client, link) {
            if (client->listener == listener)
                client_drop(client);
        }
    }
    return r;
}

static void name_listener(struct qmp_listener *listener, const char *id)
{
    if (id != NULL)
        snprintf(listener->id, sizeof(listener->id), "%s", id);
    else
        snprintf(listener->id, sizeof(listener->id), "compat_monitor%u",
                 listener->server->unnamed++);
}

int qmp_server_listen_tls(struct qmp_server *server, const char *id,
                          const struct sock_address *address, enum qmp_role role,
                          struct tls_creds *creds, struct err *err)
{
    CLEANUP(free_ptr) struct qmp_listener *listener = NULL;
    int r;

    if (server->listener_count >= QMP_MAX_LISTENERS)
        return err_set(err, -EMFILE, "there are %u control listeners already", QMP_MAX_LISTENERS);
    listener = calloc(1, sizeof(*listener));
    if (listener == NULL)
        return err_no_memory(err);
    listener->server = server;
    listener->role = role;
    r = sock_listen(server->loop, address, &listener->sock, err);
    if (r < 0)
        return r;
    listener->creds = creds != NULL ? tls_creds_ref(creds) : NULL;
    listener->accepting = listener->running = true;
    r = co_spawn(server->loop, "qmp-accept", listener_run, listener);
    if (r < 0) {
        sock_close(listener->sock);
        tls_creds_unref(listener->creds);
        return err_no_memory(err);
    }
    log_info("qmp", "listening on %s%s%s", sock_local_name(listener->sock),
             role == QMP_ROLE_PEER ? " for the peer" : "", creds != NULL ? ", with TLS" : "");
    name_listener(listener, id);
    list_push_back(&server->listeners, &listener->link);
    server->listener_count++;
    (void)TAKE_PTR(listener);
    return 0;
}

const char *qmp_server_address(const struct qmp_server *server, size_t index)
{
    LIST_FOR_EACH(listener, &server->listeners, struct qmp_listener, link) {
        if (index-- == 0)
            return sock_local_name(listener->sock);
    }
    return NULL;
}

void qmp_server_stop_accepting(struct qmp_server *server)
{
    LIST_FOR_EACH(listener, &server->listeners, struct qmp_listener, link) {
        listener->accepting = false;
        sock_shutdown(listener->sock, 0);
    }
}

static bool output_waits(const struct qmp_server *server)
{
    LIST_FOR_EACH(client, &server->clients, struct qmp_client, link) {
        if (!client->gone && (client->in_command || !list_empty(&client->out)))
            return true;
    }
    return false;
}

static void close_listeners(struct qmp_server *server) MAY_WAIT
{
    struct qmp_listener *listener;

    qmp_server_stop_accepting(server);
    while (!list_empty(&server->listeners)) {
        listener = LIST_ENTRY(list_first(&server->listeners), struct qmp_listener, link);
        while (listener->running)
            co_queue_wait(&server->changed);
        list_remove(&listener->link);
        server->listener_count--;
        sock_close(listener->sock);
        tls_creds_unref(listener->creds);
        free(listener);
    }
}

void qmp_server_close(struct qmp_server *server)
{
    uint64_t deadline_ns = loop_now_ns(server->loop) + QMP_CLOSE_TIMEOUT_NS;

    server->closing = true;
    qmp_server_flush_events(server);
    close_listeners(server);
    while (output_waits(server)) {
        if (co_queue_wait_until(&server->changed, deadline_ns) == -ETIMEDOUT)
            break;
    }
    LIST_FOR_EACH(client, &server->clients, struct qmp_client, link) {
        client_drop(client);
    }
    while (!list_empty(&server->clients))
        co_queue_wait(&server->changed);
}
