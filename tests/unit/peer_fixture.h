/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A secondary's control as far as its primary sees it: a QMP server of few words, which goes wrong as told.
 * It takes one connection after the other.
 */
#ifndef BLOCKSTEP_TESTS_PEER_FIXTURE_H
#define BLOCKSTEP_TESTS_PEER_FIXTURE_H

#include "harness.h"

#include "base/json.h"
#include "loop/tls.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum fake_fault_kind {
    FAKE_SOUND,
    FAKE_SILENT, /* takes the command and says nothing */
    FAKE_BEFORE, /* closes the connection, and has not carried it out */
    FAKE_AFTER,  /* carries it out, sends so many bytes of the answer, closes */
    FAKE_REFUSE, /* with the text */
    FAKE_SAYS,   /* the text as it is, in place of an answer */
};

struct fake_fault {
    enum fake_fault_kind kind;
    const char *command; /* "" means the greeting */
    const char *text;
    const char *class; /* of a refusal; NULL: GenericError */
    size_t bytes;
    unsigned times; /* 0: always */
    bool seen;      /* it has struck */
};

struct fake {
    struct sock *listener, *sock;
    struct sock_address address;
    struct tls_creds *tls;
    struct fake_fault fault;
    uint64_t session, epoch;
    const char *error; /* JSON: of query-replication; NULL: none */
    const char *stream_reason;
    const char *stage; /* NULL: running */
    unsigned connections, hellos, checkpoints, looks, reports;
    struct json_object *hello, *checkpoint, *report; /* the last arguments */
    struct co_queue changed;
    bool accepting;
};

/* --- messages --- */

static bool fake_send(struct fake *fake, const char *text, size_t length_bytes) MAY_WAIT
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = length_bytes};
    return length_bytes == 0 || sock_send(fake->sock, &iov, 1) == 0;
}

static struct json_object *fake_receive(struct fake *fake, struct json_reader *reader) MAY_WAIT
{
    char byte;
    while (sock_recv(fake->sock, &byte, 1) == 1) {
        struct json_object *value = NULL;
        struct err err = ERR_INIT;
        size_t used = 0;
        int ret = json_reader_feed(reader, &byte, 1, &used, &value, &err);
        if (ret < 0)
            fail_msg("the primary sends what is no JSON: %s", err.text);
        if (ret > 0)
            return value;
    }
    return NULL;
}

static void fake_keep(struct json_object **kept, struct json_object *arguments)
{
    json_object_put(*kept);
    *kept = json_object_get(arguments);
}

/* Carries it out; the text behind "return". */
static void fake_do(struct fake *fake, const char *command, struct json_object *arguments,
                    char *text, size_t size)
{
    snprintf(text, size, "{}");
    if (strcmp(command, "replication-hello") == 0) {
        fake->hellos++;
        fake_keep(&fake->hello, arguments);
        if (json_member(arguments, "session") == NULL)
            fake->session++;
        snprintf(text, size, "{\"version\":1,\"session\":%" PRIu64 ",\"epoch\":%" PRIu64 "}",
                 fake->session, fake->epoch);
    } else if (strcmp(command, "replication-checkpoint") == 0) {
        fake->checkpoints++;
        fake_keep(&fake->checkpoint, arguments);
        assert_int_equal(json_uint(arguments, "session"), fake->session);
        assert_int_equal(json_uint(arguments, "epoch"), fake->epoch + 1);
        fake->epoch++;
        if (json_flag(arguments, "first"))
            fake->error = fake->stream_reason = NULL;
        snprintf(text, size, "{\"epoch\":%" PRIu64 "}", fake->epoch);
    } else if (strcmp(command, "replication-report") == 0) {
        fake->reports++;
        fake_keep(&fake->report, arguments);
    } else if (strcmp(command, "query-replication") == 0) {
        fake->looks++;
        snprintf(text, size,
                 "{\"role\":\"secondary\",\"stage\":\"%s\",\"consistent\":true,"
                 "\"stream-intact\":%s%s%s%s%s%s}",
                 fake->stage != NULL ? fake->stage : "running",
                 fake->stream_reason != NULL ? "false" : "true",
                 fake->stream_reason != NULL ? ",\"stream-reason\":\"" : "",
                 fake->stream_reason != NULL ? fake->stream_reason : "",
                 fake->stream_reason != NULL ? "\"" : "", fake->error != NULL ? ",\"error\":" : "",
                 fake->error != NULL ? fake->error : "");
    } else {
        assert_string_equal(command, "qmp_capabilities");
    }
    co_queue_wake_all(&fake->changed);
}

/* What strikes at this command. */
static struct fake_fault fake_strikes(struct fake *fake, const char *command)
{
    struct fake_fault fault = fake->fault;
    if (fault.kind == FAKE_SOUND || strcmp(fault.command, command) != 0)
        return (struct fake_fault){0};
    fake->fault.seen = true;
    if (fault.times > 0 && --fake->fault.times == 0)
        fake->fault.kind = FAKE_SOUND;
    return fault;
}

/* False: the connection is to be closed. */
static bool fake_answer(struct fake *fake, const char *command, struct json_object *request)
    MAY_WAIT
{
    struct fake_fault fault = fake_strikes(fake, command);
    char result[1024], text[1400];
    if (fault.kind == FAKE_BEFORE)
        return false;
    if (fault.kind == FAKE_SAYS)
        return fake_send(fake, fault.text, strlen(fault.text));
    if (fault.kind == FAKE_REFUSE) {
        snprintf(text, sizeof(text),
                 "{\"id\":%" PRIu64 ",\"error\":{\"class\":\"%s\",\"desc\":\"%s\"}}\r\n",
                 json_uint(request, "id"), fault.class != NULL ? fault.class : "GenericError",
                 fault.text);
        return fake_send(fake, text, strlen(text));
    }
    if (fault.kind == FAKE_SILENT)
        return true;
    fake_do(fake, command, json_member(request, "arguments"), result, sizeof(result));
    snprintf(text, sizeof(text), "{\"return\":%s,\"id\":%" PRIu64 "}\r\n", result,
             json_uint(request, "id"));
    if (fault.kind == FAKE_AFTER && fault.bytes < strlen(text)) {
        fake_send(fake, text, fault.bytes);
        return false;
    }
    return fake_send(fake, text, strlen(text));
}

static bool fake_greet(struct fake *fake) MAY_WAIT
{
    static const char greeting[] = "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n";
    struct fake_fault fault = fake_strikes(fake, "");
    if (fault.kind == FAKE_SAYS)
        return fake_send(fake, fault.text, strlen(fault.text));
    if (fault.kind == FAKE_SILENT)
        return true;
    if (fault.kind == FAKE_AFTER) {
        fake_send(fake, greeting, MIN(fault.bytes, strlen(greeting)));
        return false;
    }
    return fake_send(fake, greeting, strlen(greeting));
}

static void fake_serve(struct fake *fake) MAY_WAIT
{
    struct json_reader *reader = json_reader_new();
    struct err err = ERR_INIT;
    assert_non_null(reader);
    bool open = fake->tls == NULL || sock_start_tls(fake->sock, fake->tls, NULL, &err) == 0;
    open = open && fake_greet(fake);
    while (open) {
        CLEANUP(json_putp) struct json_object *request = fake_receive(fake, reader);
        open = request != NULL && fake_answer(fake, json_text(request, "execute"), request);
    }
    json_reader_free(reader);
}

static void fake_run(void *arg) MAY_WAIT
{
    struct fake *fake = arg;
    struct sock *sock;
    while (sock_accept(fake->listener, &sock) == 0) {
        fake->sock = sock;
        fake->connections++;
        fake_serve(fake);
        fake->sock = NULL;
        sock_close(sock);
        co_queue_wake_all(&fake->changed);
    }
    fake->accepting = false;
    co_queue_wake_all(&fake->changed);
}

/* --- its life --- */

UNUSED static void fake_begin(struct fake *fake) MAY_WAIT
{
    struct err err = ERR_INIT;
    *fake = (struct fake){
        .address = {.family = SOCK_FAMILY_UNIX, .path = strdup(test_path("peer.qmp"))},
        .session = 6,
        .epoch = 40,
        .accepting = true,
    };
    co_queue_init(&fake->changed);
    if (sock_listen(loop_current(), &fake->address, &fake->listener, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(co_spawn(loop_current(), "fake secondary", fake_run, fake), 0);
}

/* An event, or whatever else, out of the blue. */
UNUSED static void fake_says(struct fake *fake, const char *text) MAY_WAIT
{
    assert_non_null(fake->sock);
    assert_true(fake_send(fake, text, strlen(text)));
}

UNUSED static void fake_cut(struct fake *fake)
{
    if (fake->sock != NULL)
        sock_shutdown(fake->sock, 0);
}

UNUSED static void fake_end(struct fake *fake) MAY_WAIT
{
    sock_shutdown(fake->listener, 0);
    fake_cut(fake);
    while (fake->accepting)
        co_queue_wait(&fake->changed);
    sock_close(fake->listener);
    sock_address_release(&fake->address);
    json_object_put(fake->hello);
    json_object_put(fake->checkpoint);
    json_object_put(fake->report);
}

#endif
