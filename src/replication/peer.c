/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One coroutine, the keeper, connects, tells and looks; a checkpoint is asked for by its caller. */
#include "replication/peer.h"

#include "base/log.h"
#include "base/text.h"
#include "loop/co_sync.h"
#include "replication/peer_answer.h"
#include "replication/peer_link.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SYNC_ADVICE "; synchronise the disks and start anew (blockstep primary --sync)"

struct peer {
    struct graph *graph;
    struct loop *loop;
    struct replication_peer_control where; /* owned */
    char address[300];
    struct json_object *exports;
    bool resync;
    void (*over)(void *arg);
    void *arg;

    struct peer_link *link; /* NULL: none */
    bool connected;         /* it has said hello */
    struct err why;         /* why not, or why it is over */
    uint64_t session, epoch;
    struct peer_state state;
    struct json_object *error;       /* the secondary's own; NULL: none */
    struct replication_error report; /* of an error here; count 0: none */
    bool report_due;
    uint64_t look_ns; /* when to look next */
    bool is_over, closing;
    bool hopeless;           /* no checkpoint will be taken any more */
    bool keeping;            /* the keeper's coroutine lives */
    struct co_queue changed; /* any of the above */
};

/* --- telling --- */

static void send_event(struct peer *peer)
{
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();

    if (data == NULL || json_add_string(data, "role", "primary") < 0 ||
        json_add_uint(data, "session", peer->session) < 0 ||
        json_add_bool(data, "connected", peer->connected) < 0 ||
        (!peer->connected && json_add_string(data, "reason", peer->why.text) < 0) ||
        (peer->state.taken_over && json_add_bool(data, "taken-over", true) < 0) ||
        (!peer->state.intact && json_add_string(data, "stream-reason", peer->state.reason) < 0))
        return;
    graph_event(peer->graph, "REPLICATION_PEER", TAKE_PTR(data));
}

static void tell_connected(struct peer *peer, bool connected)
{
    peer->connected = connected;
    co_queue_wake_all(&peer->changed);
    if (connected)
        log_info("peer", "session %" PRIu64 " with the secondary at %s, epoch %" PRIu64,
                 peer->session, peer->address, peer->epoch);
    else if (peer->is_over && !peer->state.taken_over)
        log_error("peer", "session %" PRIu64 " is over: %s" SYNC_ADVICE, peer->session,
                  peer->why.text);
    else
        log_warning("peer", "session %" PRIu64 ": %s", peer->session, peer->why.text);
    send_event(peer);
}

static void log_state(const struct peer *peer)
{
    char now[TEXT_UTC_BYTES];

    if (peer->state.taken_over)
        log_error(
            "peer",
            "%s: the secondary at %s has taken over: this primary is the old copy now, and what"
            " its guest has written since epoch %" PRIu64 " began is here alone; end this guest and"
            " this daemon, save of the disk what you need, then make it the secondary of the"
            " other (blockstep secondary --sync)",
            text_utc(loop_wall_ns(peer->loop) / NS_PER_S, now), peer->address, peer->epoch);
    else if (!peer->state.intact)
        log_warning("peer", "the secondary at %s takes no checkpoint: %s%s", peer->address,
                    peer->state.reason, SYNC_ADVICE);
    else
        log_info("peer", "the secondary at %s takes checkpoints again", peer->address);
}

/* Once for each that differs from the one before; that it takes none while the disks are made equal is no
 * news. */
static void take_state(struct peer *peer, const struct peer_state *state)
{
    struct peer_state before = peer->state;

    peer->state = *state;
    if (before.known && before.intact == state->intact && before.taken_over == state->taken_over)
        return;
    if ((!before.known && state->intact) || (peer->resync && !state->taken_over))
        return;
    log_state(peer);
    if (before.known)
        send_event(peer);
}

/* Takes the reference; NULL: it has none. The first one stays. */
static void take_error(struct peer *peer, struct json_object *error)
{
    if (error == NULL || peer->error != NULL) {
        json_object_put(error);
        return;
    }
    peer->error = error;
    log_error("peer", "the secondary at %s has failed: %s on node '%s': %s", peer->address,
              json_text(error, "operation"), json_text(error, "node"), json_text(error, "reason"));
    graph_event(peer->graph, "REPLICATION_ERROR", json_object_get(error));
}

static void session_over(struct peer *peer, const struct err *why)
{
    peer->is_over = true;
    peer->why = *why;
    tell_connected(peer, false);
    peer->over(peer->arg);
}

/* --- what the link tells --- */

static void link_event(void *arg, const char *name, struct json_object *data)
{
    struct peer *peer = arg;

    if (strcmp(name, "REPLICATION_ERROR") == 0)
        take_error(peer, peer_error_read(data));
    if (strcmp(name, "REPLICATION_STAGE_CHANGE") != 0)
        return;
    peer->look_ns = loop_now_ns(peer->loop); /* it may have taken over */
    co_queue_wake_all(&peer->changed);
}

static void link_lost(void *arg)
{
    struct peer *peer = arg;

    if (!peer->connected)
        return;
    peer->why = *peer_link_reason(peer->link);
    err_prefix(&peer->why, "the peer %s", peer->address);
    tell_connected(peer, false);
}

/* --- commands --- */

static struct json_object *hello_arguments(const struct peer *peer)
{
    CLEANUP(json_putp) struct json_object *arguments = json_object_new_object();
    char instance[17];

    snprintf(instance, sizeof(instance), "%016" PRIx64, graph_instance(peer->graph));
    if (arguments == NULL || json_add_uint(arguments, "version-min", PEER_VERSION_MIN) < 0 ||
        json_add_uint(arguments, "version-max", PEER_VERSION_MAX) < 0 ||
        json_add_string(arguments, "instance", instance) < 0 ||
        json_add(arguments, "exports", json_object_get(peer->exports)) < 0 ||
        (peer->session == 0 && json_add_bool(arguments, "resync", peer->resync) < 0) ||
        (peer->session != 0 && json_add_uint(arguments, "session", peer->session) < 0))
        return NULL;
    return TAKE_PTR(arguments);
}

/* -EREMOTEIO: it does not go on with us. */
static int say_hello(struct peer *peer, struct peer_link *link, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *answer = NULL;
    struct json_object *arguments = hello_arguments(peer);
    struct peer_hello hello;

    if (arguments == NULL)
        return err_no_memory(err);
    int ret = peer_link_run(link, "replication-hello", arguments,
                            loop_now_ns(peer->loop) + PEER_ANSWER_NS, &answer, err);
    if (ret == -EREMOTEIO && err->kind == ERR_COMMAND_NOT_FOUND)
        return err_set(err, ret,
                       "the peer %s does not know replication-hello: it is of an older version;"
                       " install one version on both hosts, or leave peer-control out",
                       peer->address);
    if (ret == -EREMOTEIO && err->kind == ERR_DEVICE_NOT_ACTIVE)
        return err_set(err, -EBUSY, "%s", err->text); /* not now */
    if (ret < 0)
        return ret;
    ret = peer_hello_read(answer, &hello, err);
    if (ret == 0 && peer->session != 0 && hello.session != peer->session)
        ret = err_set(err, -EPROTO, "it goes on with session %" PRIu64 " instead of %" PRIu64,
                      hello.session, peer->session);
    if (ret < 0)
        return err_prefix(err, "the peer %s", peer->address);
    peer->session = hello.session;
    peer->epoch = hello.epoch;
    return 0;
}

static int look(struct peer *peer, struct peer_link *link, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *answer = NULL;
    struct json_object *error = NULL;
    struct peer_state state;

    peer->look_ns = loop_now_ns(peer->loop) + PEER_LOOK_NS;
    int ret = peer_link_run(link, "query-replication", NULL,
                            loop_now_ns(peer->loop) + PEER_ANSWER_NS, &answer, err);
    if (ret == -EREMOTEIO) /* of a hello this is the end of the session, of a look it is a fault */
        return err_set(err, -EPROTO, "%s", err->text);
    if (ret == 0)
        ret = peer_state_read(answer, &state, &error, err);
    if (ret < 0)
        return ret;
    take_state(peer, &state);
    take_error(peer, error);
    return 0;
}

/* One that does not go on with us is asked whether that is why; it may be somebody else's by now. */
static void look_why(struct peer *peer, struct peer_link *link) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *answer = NULL;
    struct json_object *error = NULL;
    struct peer_state state;
    struct err err = ERR_INIT;

    if (peer_link_run(link, "query-replication", NULL, loop_now_ns(peer->loop) + PEER_ANSWER_NS,
                      &answer, &err) < 0 ||
        peer_state_read(answer, &state, &error, &err) < 0)
        return;
    json_object_put(error);
    if (state.taken_over)
        take_state(peer, &state);
}

/* One that the peer does not want is not told again. */
static void send_report(struct peer *peer) MAY_WAIT
{
    struct err err = ERR_INIT;
    uint64_t now_ns = loop_now_ns(peer->loop);
    struct json_object *arguments = json_object_new_object();

    if (arguments == NULL || json_add_uint(arguments, "session", peer->session) < 0 ||
        json_add(arguments, "error", replication_error_json(&peer->report)) < 0) {
        json_object_put(arguments);
        (void)co_queue_wait_until(&peer->changed, now_ns + PEER_BACK_OFF_MIN_NS);
        return; /* memory is out: later */
    }
    int ret = peer_link_run(peer->link, "replication-report", arguments, now_ns + PEER_ANSWER_NS,
                            NULL, &err);
    if (ret < 0 && ret != -EREMOTEIO)
        return;
    if (ret < 0)
        log_warning("peer", "the error here is not taken: %s", err.text);
    peer->report_due = false;
}

/* --- connecting --- */

static int peer_connect(struct peer *peer, struct err *err) MAY_WAIT
{
    const struct peer_link_owner owner = {.event = link_event, .lost = link_lost, .arg = peer};
    struct peer_link *link;
    int ret = peer_link_open(peer->loop, &peer->where, &owner, &link, err);

    if (ret < 0)
        return ret;
    ret = say_hello(peer, link, err);
    if (ret == -EREMOTEIO && peer->session != 0)
        look_why(peer, link);
    if (ret == 0)
        ret = look(peer, link, err);
    if (ret == 0 && !peer_link_is_up(link)) {
        *err = *peer_link_reason(link);
        ret = err_prefix(err, "the peer %s", peer->address);
    }
    if (ret < 0) {
        peer_link_close(link);
        return ret;
    }
    peer->link = link;
    tell_connected(peer, true);
    return 0;
}

static void reconnect(struct peer *peer, uint64_t pause_ns) MAY_WAIT
{
    uint64_t deadline_ns = loop_now_ns(peer->loop) + pause_ns;
    struct err err = ERR_INIT;

    peer_link_close(TAKE_PTR(peer->link));
    while (!peer->closing && co_queue_wait_until(&peer->changed, deadline_ns) == 0)
        ;
    if (peer->closing)
        return;
    int ret = peer_connect(peer, &err);
    if (ret == -EREMOTEIO && !peer->closing)
        session_over(peer, &err);
    else if (ret < 0)
        peer->why = err;
}

/* Until something is to be done, and then that. A command that fails has cost the link. */
static void keep_up(struct peer *peer) MAY_WAIT
{
    struct err err = ERR_INIT;

    if (peer->report_due)
        send_report(peer);
    else if (loop_now_ns(peer->loop) < peer->look_ns)
        (void)co_queue_wait_until(&peer->changed, peer->look_ns);
    else if (look(peer, peer->link, &err) < 0 && peer->connected)
        log_warning("peer", "%s", err.text);
}

static void keeper_run(void *arg) MAY_WAIT
{
    struct peer *peer = arg;
    uint64_t pause_ns = PEER_BACK_OFF_MIN_NS;

    while (!peer->closing && !peer->is_over) {
        if (peer->connected) {
            pause_ns = PEER_BACK_OFF_MIN_NS;
            keep_up(peer);
        } else {
            reconnect(peer, pause_ns);
            pause_ns = MIN(pause_ns * 2, PEER_BACK_OFF_MAX_NS);
        }
    }
    peer->keeping = false;
    co_queue_wake_all(&peer->changed);
}

/* --- opening and closing --- */

static void peer_free(struct peer *peer)
{
    if (peer == NULL)
        return;
    sock_address_release(&peer->where.address);
    tls_creds_unref(peer->where.tls);
    free((char *)(uintptr_t)peer->where.tls_hostname);
    json_object_put(peer->exports);
    json_object_put(peer->error);
    free(peer);
}

static int copy_options(struct peer *peer, const struct peer_options *options)
{
    const struct replication_peer_control *where = options->where;
    int ret = sock_address_copy(&where->address, &peer->where.address);

    peer->where.tls = where->tls != NULL ? tls_creds_ref(where->tls) : NULL;
    if (where->tls_hostname != NULL)
        peer->where.tls_hostname = strdup(where->tls_hostname);
    peer->exports = json_object_new_array();
    if (ret < 0 || peer->exports == NULL ||
        (where->tls_hostname != NULL && peer->where.tls_hostname == NULL))
        return -ENOMEM;
    for (const char *const *name = options->exports; *name != NULL; name++) {
        struct json_object *item = json_object_new_string(*name);
        if (item == NULL || json_object_array_add(peer->exports, item) < 0) {
            json_object_put(item);
            return -ENOMEM;
        }
    }
    return 0;
}

/* A former primary's hello may be under way there. */
static int connect_first(struct peer *peer, struct err *err) MAY_WAIT
{
    uint64_t deadline_ns = loop_now_ns(peer->loop) + PEER_ANSWER_NS;

    for (;;) {
        int ret = peer_connect(peer, err);
        if (ret != -EBUSY || loop_now_ns(peer->loop) >= deadline_ns)
            return ret;
        co_sleep(PEER_BACK_OFF_MIN_NS);
    }
}

int peer_join(const struct peer_options *options, struct peer **ret_peer, struct err *err)
{
    struct peer *peer = calloc(1, sizeof(*peer));

    if (peer == NULL)
        return err_no_memory(err);
    peer->graph = options->graph;
    peer->loop = graph_loop(options->graph);
    peer->resync = options->resync;
    peer->over = options->over;
    peer->arg = options->arg;
    co_queue_init(&peer->changed);
    sock_address_format(&options->where->address, peer->address, sizeof(peer->address));
    int ret = copy_options(peer, options) < 0 ? err_no_memory(err) : connect_first(peer, err);
    if (ret == 0) {
        peer->keeping = co_spawn(peer->loop, "peer", keeper_run, peer) == 0;
        ret = peer->keeping ? 0 : err_no_memory(err);
    }
    if (ret < 0) {
        peer_leave(peer);
        return ret;
    }
    *ret_peer = peer;
    return 0;
}

void peer_leave(struct peer *peer)
{
    if (peer == NULL)
        return;
    peer->closing = true;
    peer->connected = false;
    co_queue_wake_all(&peer->changed);
    peer_link_close(TAKE_PTR(peer->link));
    while (peer->keeping)
        co_queue_wait(&peer->changed);
    peer_link_close(TAKE_PTR(peer->link)); /* of a connection that was on its way */
    peer_free(peer);
}

/* --- the calls --- */

uint64_t peer_epoch(const struct peer *peer)
{
    return peer->epoch;
}

int peer_await(struct peer *peer, uint64_t deadline_ns, struct err *err)
{
    while (!peer->connected && !peer->is_over && !peer->closing && !peer->hopeless) {
        if (co_queue_wait_until(&peer->changed, deadline_ns) == 0)
            continue;
        *err = peer->why;
        return err_prefix(err, "no connection within the deadline");
    }
    if (peer->connected)
        return 0;
    if (peer->closing)
        return err_set(err, -ESHUTDOWN, "the session with the peer %s is being left",
                       peer->address);
    *err = peer->why;
    return err_prefix(err, peer->is_over ? "the session is over" : "a link is lost, and also");
}

static struct json_object *checkpoint_arguments(const struct peer *peer, bool first)
{
    CLEANUP(json_putp) struct json_object *arguments = json_object_new_object();

    if (arguments == NULL || json_add_uint(arguments, "session", peer->session) < 0 ||
        json_add_uint(arguments, "epoch", peer->epoch + 1) < 0 ||
        json_add_bool(arguments, "first", first) < 0)
        return NULL;
    return TAKE_PTR(arguments);
}

/* An answer that says nothing costs the link, as one that does not come. */
static int ask_checkpoint(struct peer *peer, struct json_object *arguments, uint64_t deadline_ns,
                          struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *answer = NULL;
    struct peer_link *link = peer->link;
    uint64_t before = peer->epoch, epoch = 0;
    int ret = peer_link_run(link, "replication-checkpoint", arguments, deadline_ns, &answer, err);

    if (ret < 0)
        return ret;
    ret = peer_epoch_read(answer, &epoch, err);
    if (ret == 0 && epoch <= before)
        ret = err_set(err, -EPROTO,
                      "it says that it has taken a checkpoint, and is at epoch %" PRIu64
                      " as before %" PRIu64,
                      epoch, before);
    if (ret == 0)
        peer->epoch = epoch;
    else if (peer->link == link && peer->connected)
        peer_link_cut(link, err);
    return ret;
}

/* What was wrong there is mended by a checkpoint that says that the disks are equal. */
static void checkpoint_taken(struct peer *peer, bool first)
{
    if (!first)
        return;
    json_object_put(peer->error);
    peer->error = NULL;
    peer->resync = false;
    peer->state = (struct peer_state){.known = true, .intact = true};
}

/* One whose answer is lost is asked for again, though it may have been taken: its epoch alone would not tell
 * it from somebody else's, who came while there was no connection. One more at the same place harms nobody. */
int peer_checkpoint(struct peer *peer, bool first, uint64_t deadline_ns, bool *ret_unknown,
                    struct err *err)
{
    bool asked = false;

    *ret_unknown = false;
    for (;;) {
        struct err lost = ERR_INIT;
        if (peer_await(peer, deadline_ns, &lost) < 0) {
            if (!asked)
                *err = lost;
            return err->code;
        }
        bool mended = asked && peer->state.intact;
        struct json_object *arguments = checkpoint_arguments(peer, first && !mended);
        if (arguments == NULL)
            return err_no_memory(err);
        asked = true;
        int ret = ask_checkpoint(peer, arguments, deadline_ns, err);
        *ret_unknown = ret < 0 && ret != -EREMOTEIO;
        if (ret == 0)
            checkpoint_taken(peer, first);
        if (!*ret_unknown)
            return ret;
    }
}

void peer_report(struct peer *peer, const struct replication_error *error)
{
    if (peer->report.count > 0)
        return;
    peer->report = *error;
    peer->report_due = true;
    co_queue_wake_all(&peer->changed);
}

void peer_lose_hope(struct peer *peer)
{
    peer->hopeless = true;
    co_queue_wake_all(&peer->changed);
}

int peer_check(const struct peer *peer, struct err *err)
{
    struct json_object *error = peer->error;

    if (peer->state.taken_over)
        return err_set(err, -EREMOTEIO, "the secondary takes no checkpoint: %s",
                       peer->state.reason);
    if (peer->is_over)
        return err_set(err, peer->why.code, "the session is over: %s" SYNC_ADVICE, peer->why.text);
    if (error != NULL)
        return err_set(err, -EREMOTEIO,
                       "secondary: %s failed on node '%s' at offset %" PRIu64 ", %" PRIu64
                       " bytes: %s" SYNC_ADVICE,
                       json_text(error, "operation"), json_text(error, "node"),
                       json_uint(error, "offset"), json_uint(error, "length"),
                       json_text(error, "reason"));
    if (!peer->state.intact)
        return err_set(err, -EREMOTEIO, "the secondary takes no checkpoint: %s" SYNC_ADVICE,
                       peer->state.reason);
    return 0;
}

struct json_object *peer_describe(const struct peer *peer)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();

    if (object == NULL || json_add_string(object, "address", peer->address) < 0 ||
        json_add_bool(object, "connected", peer->connected) < 0 ||
        (!peer->connected && json_add_string(object, "reason", peer->why.text) < 0) ||
        json_add_uint(object, "session", peer->session) < 0 ||
        json_add_uint(object, "epoch", peer->epoch) < 0 ||
        json_add_bool(object, "stream-intact", peer->state.intact) < 0 ||
        (!peer->state.intact && json_add_string(object, "stream-reason", peer->state.reason) < 0) ||
        (peer->state.taken_over && json_add_bool(object, "taken-over", true) < 0) ||
        (peer->error != NULL && json_add(object, "error", json_object_get(peer->error)) < 0))
        return NULL;
    return TAKE_PTR(object);
}
