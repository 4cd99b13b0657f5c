/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The QMP server over real (or simulated) sockets, with commands of the test's own, and clients. */
#ifndef BLOCKSTEP_TESTS_QMP_FIXTURE_H
#define BLOCKSTEP_TESTS_QMP_FIXTURE_H

#include "harness.h"

#include "base/log.h"
#include "control/qmp_dispatch.h"
#include "control/qmp_rate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- commands --- */

struct world {
    struct qmp_server *server;
    struct co_queue held; /* "wait" waits here */
    unsigned waiting, ended;
    bool released;
    uint64_t asker; /* number of the client that asked to be told of events */
    uint64_t left;  /* number of the last client that said no more */
};

struct echo_args {
    char *text;
    uint64_t count;
    bool loud;
    int kind;
};

static const char *const kinds[] = {"round", "square", NULL};

static const struct opt echo_opts[] = {
    {.name = "text",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct echo_args, text),
     .required = true,
     .help = "what comes back"},
    {.name = "count",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct echo_args, count),
     .max = 10,
     .help = "a number"},
    {.name = "loud",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct echo_args, loud),
     .help = "a truth"},
    {.name = "kind",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct echo_args, kind),
     .values = kinds,
     .help = "a choice"},
    {0},
};

UNUSED static int run_echo(struct qmp_call *call, void *args, struct err *err)
{
    const struct echo_args *echo = args;

    call->result = json_object_new_object();
    assert_non_null(call->result);
    assert_int_equal(json_add_string(call->result, "text", echo->text), 0);
    assert_int_equal(json_add_uint(call->result, "count", echo->count), 0);
    return 0;
}

UNUSED static int run_nothing(struct qmp_call *call, void *args, struct err *err)
{
    return 0;
}

UNUSED static int run_fail(struct qmp_call *call, void *args, struct err *err)
{
    call->result = json_object_new_object(); /* what a failed command has built is dropped */
    return err_set_kind(err, ERR_DEVICE_NOT_FOUND, -ENODEV, "there is no device 'x'");
}

UNUSED static int run_wait(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct world *world = call->context;

    world->waiting++;
    while (!world->released)
        co_queue_wait(&world->held);
    world->waiting--;
    world->ended++;
    return 0;
}

UNUSED static int run_big(struct qmp_call *call, void *args, struct err *err)
{
    size_t length = 100000;
    char *text = malloc(length + 1);

    memset(text, 'x', length);
    text[length] = '\0';
    call->result = json_object_new_string(text);
    free(text);
    return 0;
}

UNUSED static int run_tell(struct qmp_call *call, void *args, struct err *err)
{
    struct world *world = call->context;

    call->peer_events = true;
    world->asker = call->client;
    return 0;
}

UNUSED static void note_left(void *context, uint64_t client)
{
    struct world *world = context;

    world->left = client;
}

/* From now on the client speaks at least every 20 s. */
UNUSED static int run_promise(struct qmp_call *call, void *args, struct err *err)
{
    call->silence_ns = 20 * NS_PER_S;
    return 0;
}

static const struct qmp_command test_commands[] = {
    {.name = "echo", .args = echo_opts, .args_size = sizeof(struct echo_args), .run = run_echo},
    {.name = "nothing", .run = run_nothing},
    {.name = "now", .flags = QMP_OOB, .run = run_nothing},
    {.name = "promise", .flags = QMP_PEER, .run = run_promise},
    {.name = "peers", .flags = QMP_PEER, .run = run_nothing},
    {.name = "tell", .flags = QMP_PEER, .run = run_tell},
    {.name = "peer-wait", .flags = QMP_PEER, .run = run_wait},
    {.name = "fail", .run = run_fail},
    {.name = "wait", .run = run_wait},
    {.name = "big", .run = run_big},
    {0},
};

static const struct qmp_command *const test_tables[] = {qmp_negotiation, test_commands, NULL};

#define WHILE_NS (100 * NS_PER_MS)

static const struct qmp_event_type test_events[] = {
    {.name = "SOMETHING"},
    {.name = "NEWS", .peer = true},
    {.name = "FAULT", .interval_ns = WHILE_NS, .key = "disk"},
    {.name = "TROUBLE", .interval_ns = WHILE_NS},
    {0},
};

/* --- a world with a server, and clients --- */

struct client {
    struct sock *sock;
    struct json_reader *reader;
    char input[4096];
    size_t begin, end;
};

UNUSED static struct sock_address address_of(const char *name) MAY_WAIT
{
    return (struct sock_address){.family = SOCK_FAMILY_UNIX, .path = (char *)test_path(name)};
}

UNUSED static void world_open(struct world *world) MAY_WAIT
{
    struct sock_address full, peer;
    struct err err = ERR_INIT;

    log_set_level(LOG_LEVEL_ERROR);
    *world = (struct world){0};
    co_queue_init(&world->held);
    world->server = qmp_server_new(loop_current(), test_tables, test_events, world);
    assert_non_null(world->server);
    qmp_server_set_left(world->server, note_left);
    full = address_of("full");
    assert_int_equal(qmp_server_listen(world->server, &full, QMP_ROLE_FULL, &err), 0);
    peer = address_of("peer");
    assert_int_equal(qmp_server_listen(world->server, &peer, QMP_ROLE_PEER, &err), 0);
}

UNUSED static void world_release(struct world *world)
{
    world->released = true;
    co_queue_wake_all(&world->held);
}

UNUSED static void world_close(struct world *world) MAY_WAIT
{
    world_release(world);
    qmp_server_close(world->server);
    assert_int_equal(qmp_server_stats(world->server).clients, 0);
    qmp_server_free(world->server);
    test_folder_remove();
}

UNUSED static void client_open(struct client *client, const char *name) MAY_WAIT
{
    struct sock_address address = address_of(name);
    struct err err = ERR_INIT;

    *client = (struct client){.reader = json_reader_new()};
    assert_non_null(client->reader);
    assert_int_equal(
        sock_connect(loop_current(), &address, test_deadline_ns(5), &client->sock, &err), 0);
}

UNUSED static void client_close(struct client *client)
{
    sock_close(client->sock);
    json_reader_free(client->reader);
    *client = (struct client){0};
}

UNUSED static void client_send(struct client *client, const char *text) MAY_WAIT
{
    struct iovec iov = {(char *)text, strlen(text)};

    assert_int_equal(sock_send(client->sock, &iov, 1), 0);
}

/* The next message; NULL at the end of the stream. For the caller. */
UNUSED static struct json_object *client_next(struct client *client) MAY_WAIT
{
    for (;;) {
        struct json_object *value = NULL;
        struct err err = ERR_INIT;
        size_t used = 0;
        ssize_t got;

        if (client->begin < client->end) {
            int r = json_reader_feed(client->reader, client->input + client->begin,
                                     client->end - client->begin, &used, &value, &err);

            assert_true(r >= 0);
            client->begin += used;
            if (r > 0)
                return value;
        }
        sock_deadline(client->sock, test_deadline_ns(20));
        got = sock_recv(client->sock, client->input, sizeof(client->input));
        assert_int_not_equal(got, -ETIMEDOUT);
        if (got <= 0)
            return NULL;
        client->begin = 0;
        client->end = (size_t)got;
    }
}

/* The next message is this text. */
UNUSED static void expect(struct client *client, const char *text) MAY_WAIT
{
    struct json_object *value = client_next(client);
    size_t length_bytes;
    char *found;

    assert_non_null(value);
    found = json_format(value, JSON_LINE, &length_bytes);
    assert_string_equal(found, text);
    free(found);
    json_object_put(value);
}

UNUSED static void ask(struct client *client, const char *request, const char *answer) MAY_WAIT
{
    client_send(client, request);
    expect(client, answer);
}

/* A client that has been greeted and has negotiated. */
UNUSED static void client_ready(struct client *client, const char *name) MAY_WAIT
{
    struct json_object *greeting;

    client_open(client, name);
    greeting = client_next(client);
    assert_true(json_object_object_get_ex(greeting, "QMP", NULL));
    json_object_put(greeting);
    ask(client, "{'execute': 'qmp_capabilities'}", "{\"return\": {}}");
}

#define NOT_FOUND(text) "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"" text "\"}}"
#define GENERIC(text)   "{\"error\": {\"class\": \"GenericError\", \"desc\": \"" text "\"}}"

#endif
