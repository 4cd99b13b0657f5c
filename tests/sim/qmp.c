/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The manager's control connections. */
#include "world.h"

#include "loop/sock.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

void qmp_disconnect(struct host *host)
{
    if (host->qmp == NULL)
        return;
    host->jobs_failed = true; /* nobody would hear of it */
    sock_close(host->qmp);
    json_reader_free(host->qmp_reader);
    host->qmp = NULL;
    host->qmp_reader = NULL;
}

static int qmp_send(struct host *host, const char *text) MAY_WAIT
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text)};

    return sock_send(host->qmp, &iov, 1);
}

/* A job that was under way has ended otherwise than it was asked to. */
static void qmp_event(struct host *host, struct json_object *event)
{
    struct json_object *name = NULL, *data = NULL;

    if (json_object_object_get_ex(event, "event", &name) &&
        strncmp(json_object_get_string(name), "BLOCK_JOB_", 10) == 0 &&
        json_object_object_get_ex(event, "data", &data) &&
        json_object_object_get_ex(data, "error", NULL))
        host->jobs_failed = true;
}

/* The next value that comes. */
static int qmp_receive(struct host *host, struct json_object **ret_value, struct err *err) MAY_WAIT
{
    for (;;) {
        size_t used = 0;
        if (host->qmp_at == host->qmp_length) {
            ssize_t length = sock_recv(host->qmp, host->qmp_bytes, sizeof(host->qmp_bytes));
            if (length <= 0)
                return err_set(err, -ECONNRESET, "the control connection to %s has ended",
                               host->name);
            host->qmp_at = 0;
            host->qmp_length = (size_t)length;
        }
        int r = json_reader_feed(host->qmp_reader, host->qmp_bytes + host->qmp_at,
                                 host->qmp_length - host->qmp_at, &used, ret_value, err);
        host->qmp_at += used;
        if (r < 0)
            return r;
        if (r == 0)
            continue;
        if (!json_object_object_get_ex(*ret_value, "event", NULL))
            return 0;
        qmp_event(host, *ret_value);
        json_object_put(*ret_value);
    }
}

static int qmp_connect(struct host *host, struct err *err) MAY_WAIT
{
    struct sock_address address = {.family = SOCK_FAMILY_INET,
                                   .host = (char *)(uintptr_t)host->name,
                                   .port = (char *)(uintptr_t)WORLD_QMP_PORT};
    struct json_object *value = NULL;
    int r = sock_connect(host->world->manager, &address,
                         loop_now_ns(host->world->manager) + 5 * NS_PER_S, &host->qmp, err);

    if (r < 0)
        return r;
    host->qmp_at = host->qmp_length = 0;
    host->qmp_reader = json_reader_new();
    assert(host->qmp_reader != NULL);
    sock_deadline(host->qmp, loop_now_ns(host->world->manager) + 10 * NS_PER_S);
    r = qmp_receive(host, &value, err);
    if (r == 0) {
        json_object_put(value);
        r = qmp_send(host, "{'execute':'qmp_capabilities'}");
    }
    if (r == 0)
        r = qmp_receive(host, &value, err);
    if (r == 0)
        json_object_put(value);
    if (r == 0)
        sock_deadline(host->qmp, DEADLINE_NEVER);
    else
        qmp_disconnect(host);
    return r < 0 && !err_is_set(err) ? err_set_errno(err, r, "control of %s", host->name) : r;
}

static int qmp_answer(struct host *host, struct json_object *value, struct json_object **ret_result,
                      struct err *err)
{
    struct json_object *part;
    int r = 0;

    if (json_object_object_get_ex(value, "error", &part)) {
        struct json_object *text = NULL;
        json_object_object_get_ex(part, "desc", &text);
        r = err_set(err, -EREMOTEIO, "%s", json_object_get_string(text));
    } else if (json_object_object_get_ex(value, "return", &part)) {
        if (ret_result != NULL)
            *ret_result = json_object_get(part);
    } else {
        world_violation(host->world, "the control protocol", "%s answers %s", host->name,
                        json_object_to_json_string(value));
    }
    json_object_put(value);
    return r;
}

/* Which call of the table a command is; the first whose words are all in it. */
static bool call_of(const char *text, enum cover_call *ret_call)
{
    static const struct {
        const char *words[2];
        enum cover_call call;
    } calls[] = {
        {{"'replication-start'", ""}, COVER_START},
        {{"'replication-checkpoint'", "'first':true"}, COVER_FIRST},
        {{"'replication-checkpoint'", ""}, COVER_CHECKPOINT},
        {{"'query-xen-replication-status'", ""}, COVER_GET_ERROR},
        {{"'replication-stop'", "'force':true"}, COVER_FORCE},
        {{"'replication-stop'", "'failover':true"}, COVER_FAILOVER},
        {{"'replication-stop'", ""}, COVER_STOP},
    };

    for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
        *ret_call = calls[i].call;
        if (strstr(text, calls[i].words[0]) != NULL && strstr(text, calls[i].words[1]) != NULL)
            return true;
    }
    return false;
}

/* One question and its answer. */
static int qmp_ask(struct host *host, const char *text, struct json_object **ret_value,
                   struct err *err) MAY_WAIT
{
    struct world *world = host->world;
    int r = 0;

    if (host->process == NULL)
        return err_set(err, -ECONNREFUSED, "there is no daemon on %s", host->name);
    if (host->qmp == NULL)
        r = qmp_connect(host, err);
    if (r < 0)
        return r;
    sock_deadline(host->qmp, loop_now_ns(world->manager) + WORLD_PATIENCE_NS);
    r = qmp_send(host, text);
    if (r == -ECONNRESET || r == -EPIPE) { /* it had been broken: nobody has got the whole of it */
        qmp_disconnect(host);
        r = qmp_connect(host, err);
        if (r < 0)
            return r;
        sock_deadline(host->qmp, loop_now_ns(world->manager) + WORLD_PATIENCE_NS);
        r = qmp_send(host, text);
    }
    if (r == 0)
        r = qmp_receive(host, ret_value, err);
    if (r == 0) {
        sock_deadline(host->qmp, DEADLINE_NEVER);
        return 0;
    }
    qmp_disconnect(host);
    return err_is_set(err) ? r : err_set_errno(err, r, "control of %s", host->name);
}

int qmp_command(struct host *host, struct json_object **ret_result, struct err *err,
                const char *fmt, ...)
{
    struct world *world = host->world;
    struct json_object *value = NULL;
    char text[1000];
    struct visit visit = {.host = host};
    enum cover_call call;
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    world->stats.commands++;
    if (call_of(text, &call))
        visit_begin(&visit, host, call);
    world->commanding++;
    int r = qmp_ask(host, text, &value, err);
    world->commanding--;
    visit_end(&visit);
    if (r == 0)
        r = qmp_answer(host, value, ret_result, err);
    world_note(world, "manager: %s: %s: %s", host->name, text, r < 0 ? err->text : "ok");
    return r;
}
