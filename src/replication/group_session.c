/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sessions, on the secondary: who the primary is that speaks to it. Each new one ends the former, whose
 * requests have all ended when it begins. So a primary that was believed dead, and wakes up, finds that
 * nothing of it is let in.
 */
#include "replication/group_internal.h"

#include "base/json.h"
#include "base/log.h"
#include "base/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct replication_session replication_session(const struct replication_group *group)
{
    return group->session.now;
}

static void tell(struct replication_group *group, const char *reason)
{
    const struct replication_session *now = &group->session.now;
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();

    log_info("replication", "the primary's session %" PRIu64 " %s%s%s", now->number,
             now->connected ? "is connected" : "has lost its connection",
             reason != NULL ? ": " : "", reason != NULL ? reason : "");
    if (data == NULL || json_add_string(data, "role", "secondary") < 0 ||
        json_add_uint(data, "session", now->number) < 0 ||
        json_add_bool(data, "connected", now->connected) < 0 ||
        (reason != NULL && json_add_string(data, "reason", reason) < 0))
        return;
    graph_event(group->graph, "REPLICATION_PEER", TAKE_PTR(data));
}

/* --- a hello --- */

static bool has_secondary(const struct replication_group *group)
{
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (replication_is(node) && replication_mode_of(node) == REPLICATION_SECONDARY)
            return true;
    }
    return false;
}

static int check_stage(const struct replication_group *group, struct err *err)
{
    if (replication_has_taken_over(group))
        return err_set(
            err, -ESTALE,
            "this secondary has taken over, at generation %016" PRIx64
            ": the caller is an old primary, and what it holds is not the truth any more",
            group->record->generation);
    if (!has_secondary(group))
        return err_set(err, -EINVAL, "this is no secondary: no node here has mode=secondary");
    if (group->record->stage == GROUP_DONE)
        return err_set(err, -ESHUTDOWN, "replication to this secondary was stopped");
    if (!group->awaits_sync && group->record->stage != GROUP_RUNNING)
        return err_set(err, -ENODEV,
                       "replication is not running on this secondary: start it first");
    return 0;
}

static int check_session(const struct replication_group *group,
                         const struct replication_hello *hello, struct err *err)
{
    const struct replication_session *now = &group->session.now;

    if (hello->session == 0 || (hello->session == now->number && hello->instance == now->instance))
        return 0;
    if (now->number == 0)
        return err_set(err, -ESTALE,
                       "session %" PRIu64 " has ended: this secondary was started again since",
                       hello->session);
    return err_set(err, -ESTALE,
                   "session %" PRIu64 " of %016" PRIx64 " has ended: this secondary is with session"
                   " %" PRIu64 " of %016" PRIx64 " now",
                   hello->session, hello->instance, now->number, now->instance);
}

int replication_hello_check(const struct replication_group *group,
                            const struct replication_hello *hello, struct err *err)
{
    int ret = check_stage(group, err);

    return ret < 0 ? ret : check_session(group, hello, err);
}

static void call_cut_others(const struct replication_owner *owner, const struct group_roots *roots,
                            uint64_t instance) MAY_WAIT
{
    owner->cut_others(owner->arg, roots->edges, roots->count, instance);
}

/* From now on nobody else is let in; then those who are leave. */
static void take_over_disks(struct replication_group *group) MAY_WAIT
{
    struct group_roots roots = {.count = 0};

    group_renew_writers(group);
    group_roots_all(group, &roots);
    if (roots.count > 0 && group->owner != NULL && group->owner->cut_others != NULL)
        call_cut_others(group->owner, &roots, group->session.now.instance);
}

static int begin_new(struct replication_group *group, const struct replication_hello *hello,
                     struct err *err) MAY_WAIT
{
    struct group_session *session = &group->session;

    session->now = (struct replication_session){
        .number = session->now.number + 1,
        .instance = hello->instance,
        .connected = true,
    };
    session->refused = 0;
    group_session_forget_error(group);
    take_over_disks(group);
    int ret = group_stream_continue(group, hello->resync, err);
    if (ret < 0) {
        session->now.connected = false;
        return err_prefix(err, "no session: it cannot be recorded");
    }
    tell(group, NULL);
    return 0;
}

static void go_on(struct replication_group *group) MAY_WAIT
{
    group->session.now.connected = true;
    take_over_disks(group);
    tell(group, NULL);
}

int replication_session_begin(struct replication_group *group,
                              const struct replication_hello *hello, struct err *err)
{
    struct group_members members;
    int ret = group_begin(group, &members, err);

    if (ret < 0)
        return ret;
    ret = replication_hello_check(group, hello, err); /* it may have changed while we waited */
    if (ret == 0 && hello->session == 0)
        ret = begin_new(group, hello, err);
    else if (ret == 0)
        go_on(group);
    group_end(group, &members);
    return ret;
}

void replication_session_left(struct replication_group *group, const char *reason)
{
    if (!group->session.now.connected)
        return;
    group->session.now.connected = false;
    group->session.refused = 0;
    tell(group, reason);
}

/* --- the answer --- */

struct json_object *replication_session_answer(const struct replication_group *group)
{
    CLEANUP(json_putp) struct json_object *answer = json_object_new_object();
    char room[GROUP_RECORD_REASON_BYTES];

    memset(room, ' ', sizeof(room) - 1);
    room[sizeof(room) - 1] = '\0';
    if (answer == NULL || json_add_uint(answer, "session", 0) < 0 ||
        json_add_uint(answer, "epoch", 0) < 0 ||
        json_add_string(answer, "generation", "0000000000000000") < 0 ||
        json_add_bool(answer, "consistent", true) < 0 ||
        json_add_bool(answer, "stream-intact", true) < 0 ||
        json_add_string(answer, "inconsistent-reason", room) < 0 ||
        json_add_string(answer, "stream-reason", room) < 0 ||
        (group->file != NULL &&
         json_add_string(answer, "durability", group_durability_name(group->level)) < 0))
        return NULL;
    return TAKE_PTR(answer);
}

/* A text that is no longer than the one it replaces takes its place. */
static void fill_mark(struct json_object *answer, const char *mark, const char *reason_key,
                      bool good, const char *reason)
{
    json_object_set_boolean(json_member(answer, mark), good);
    if (good)
        json_object_object_del(answer, reason_key);
    else
        json_object_set_string(json_member(answer, reason_key), reason);
}

void replication_session_answer_fill(const struct replication_group *group,
                                     struct json_object *answer)
{
    const struct group_record *record = group->record;
    char generation[TEXT_HEX64_DIGITS + 1];

    snprintf(generation, sizeof(generation), "%016" PRIx64, record->generation);
    json_object_set_uint64(json_member(answer, "session"), group->session.now.number);
    json_object_set_uint64(json_member(answer, "epoch"), record->epoch);
    json_object_set_string(json_member(answer, "generation"), generation);
    fill_mark(answer, "consistent", "inconsistent-reason", record->consistent,
              record->inconsistent_reason);
    fill_mark(answer, "stream-intact", "stream-reason", record->stream_intact,
              record->stream_reason);
}

/* --- while it lasts --- */

int group_session_admit(struct replication_group *group, const struct replication_writer *writer)
{
    struct group_session *session = &group->session;

    if (!session->now.connected || writer->instance == session->now.instance)
        return 0;
    if (session->refused++ == 0)
        log_warning("replication",
                    "connection %" PRIu64 " to %s wants to write, but does not belong to session"
                    " %" PRIu64 ": refused, as all of its kind until that has ended",
                    writer->connection, writer->root->name, session->now.number);
    return -EPERM;
}

int group_session_check(const struct replication_group *group, uint64_t session, struct err *err)
{
    const struct replication_session *now = &group->session.now;

    /* Who has taken over, or was stopped, is nobody's secondary, whether its primary has left or not. */
    if (session == 0 && now->connected && replication_takes_primary(group))
        return err_set(err, -EBUSY,
                       "the primary's session %" PRIu64 " takes the checkpoints: ask the primary",
                       now->number);
    if (session != 0 && (session != now->number || !now->connected))
        return err_set(err, -ESTALE, "session %" PRIu64 " has ended, or has another connection now",
                       session);
    return 0;
}

/* --- what the primary reports --- */

void group_session_forget_error(struct replication_group *group)
{
    json_object_put(TAKE_PTR(group->session.peer_error));
}

int replication_session_report(struct replication_group *group, uint64_t session,
                               struct json_object *error, const char *text, struct err *err)
{
    struct group_members members;
    char reason[GROUP_RECORD_REASON_BYTES];
    int ret = group_begin(group, &members, err);

    if (ret < 0)
        return ret;
    ret = group_session_check(group, session, err);
    if (ret == 0) {
        snprintf(reason, sizeof(reason), "the primary reports: %.200s", text);
        group_session_forget_error(group);
        group->session.peer_error = json_object_get(error);
        group_stream_broken(group, reason);
    }
    group_end(group, &members);
    return ret;
}

int group_session_query(const struct replication_group *group, struct json_object *object)
{
    const struct replication_session *now = &group->session.now;
    CLEANUP(json_putp) struct json_object *session = NULL;
    char instance[TEXT_HEX64_DIGITS + 1];

    if (now->number == 0)
        return 0;
    session = json_object_new_object();
    snprintf(instance, sizeof(instance), "%016" PRIx64, now->instance);
    if (session == NULL || json_add_uint(session, "number", now->number) < 0 ||
        json_add_string(session, "instance", instance) < 0 ||
        json_add_bool(session, "connected", now->connected) < 0 ||
        json_add(object, "session", TAKE_PTR(session)) < 0)
        return -1;
    if (group->session.peer_error == NULL)
        return 0;
    return json_add(object, "peer-error", json_object_get(group->session.peer_error));
}
