/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the secondary's group must know of the primary: whose connections write to its disks, and what
 * the primary says of itself on its control connection.
 */
#include "control/session.h"

#include "base/log.h"
#include "base/text.h"
#include "control/commands.h"
#include "control/daemon.h"
#include "replication/peer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- who writes --- */

static struct replication_writer writer_of(const struct nbd_writer *writer)
{
    return (struct replication_writer){
        .root = writer->root,
        .connection = writer->connection,
        .instance = writer->instance,
        .former = writer->former,
    };
}

int daemon_admit(void *arg, const struct nbd_writer *writer)
{
    const struct daemon *daemon = arg;
    struct replication_writer asked = writer_of(writer);

    return replication_admit(daemon->group, &asked);
}

void daemon_writer_ended(void *arg, const struct nbd_writer *writer, bool orderly)
{
    const struct daemon *daemon = arg;
    struct replication_writer gone = writer_of(writer);

    replication_writer_ended(daemon->group, &gone, orderly);
}

void daemon_renew_admission(void *arg)
{
    const struct daemon *daemon = arg;

    nbd_admission_renew(daemon->nbd);
}

void daemon_cut_others(void *arg, struct edge *const *roots, size_t count, uint64_t instance)
{
    const struct daemon *daemon = arg;

    nbd_export_cut_others(daemon->nbd, roots, count, instance);
}

/* --- who speaks for the session --- */

void daemon_client_left(void *arg, uint64_t client)
{
    struct daemon *daemon = arg;

    if (client != daemon->session_client)
        return;
    daemon->session_client = 0;
    replication_session_left(
        daemon->group,
        "the primary's control connection has ended, or has been silent for too long");
}

int session_of_call(const struct qmp_call *call, uint64_t told, uint64_t *ret_session,
                    struct err *err)
{
    const struct daemon *daemon = call->context;
    bool own = daemon->session_client != 0 && daemon->session_client == call->client;
    uint64_t session = own ? replication_session(daemon->group).number : 0;

    if (told != 0 && told != session)
        return err_set(err, -ESTALE,
                       "session %" PRIu64 " is not this connection's: say hello first", told);
    *ret_session = session;
    return 0;
}

/* --- hello --- */

struct hello_args {
    uint64_t version_min, version_max, session;
    char *instance;
    struct opt_strings exports;
    bool resync, session_given;
};

static const struct opt hello_opts[] = {
    {.name = "version-min",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct hello_args, version_min),
     .required = true,
     .help = "the oldest version of the peers' protocol that the primary knows"},
    {.name = "version-max",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct hello_args, version_max),
     .required = true,
     .help = "the newest one"},
    {.name = "instance",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct hello_args, instance),
     .required = true,
     .help =
         "the run of the primary's daemon, as its NBD connections tell it: 16 hexadecimal digits"},
    {.name = "exports",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct hello_args, exports),
     .required = true,
     .help = "what the primary forwards to: one export of each secondary disk"},
    {.name = "resync",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct hello_args, resync),
     .help = "a new session: the disks are to be synchronised first"},
    {.name = "session",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct hello_args, session),
     .present = OPT_PRESENT(struct hello_args, session_given),
     .min = 1,
     .help = "the session to go on with; a new one begins without"},
    {0},
};

static int check_versions(const struct hello_args *args, struct err *err)
{
    if (args->version_min <= PEER_VERSION_MAX && args->version_max >= PEER_VERSION_MIN &&
        args->version_min <= args->version_max)
        return 0;
    return err_set(err, -EPROTONOSUPPORT,
                   "the primary speaks versions %" PRIu64 " to %" PRIu64 " of the peers' protocol, "
                   "this secondary %u to %u: install programs that have one in common",
                   args->version_min, args->version_max, PEER_VERSION_MIN, PEER_VERSION_MAX);
}

static int read_hello(const struct hello_args *args, struct replication_hello *hello,
                      struct err *err)
{
    int r = check_versions(args, err);

    if (r < 0)
        return r;
    if (strlen(args->instance) != TEXT_HEX64_DIGITS ||
        !text_hex64_parse(args->instance, TEXT_HEX64_DIGITS, &hello->instance) ||
        hello->instance == 0)
        return err_set(err, -EINVAL,
                       "instance '%s' is not 16 hexadecimal digits in lower case, or all zeroes",
                       args->instance);
    if (args->resync && args->session_given)
        return err_set(err, -EINVAL, "'resync' is for a new session: leave 'session' out");
    hello->session = args->session;
    hello->resync = args->resync;
    return 0;
}

/* Which of the exports that the primary names lead to which disk. */
struct coverage {
    const struct nbd_service *nbd;
    const struct opt_strings *names;
    size_t named; /* of them that were found */
    char known[256];
    struct err *err;
    int result;
};

static bool is_named(const struct opt_strings *names, const char *name)
{
    for (size_t i = 0; name != NULL && i < names->count; i++) {
        if (strcmp(names->items[i], name) == 0)
            return true;
    }
    return false;
}

static void cover_disk(void *arg, const char *disk, struct edge *const *roots, size_t count)
{
    struct coverage *coverage = arg;
    char exports[128] = "";
    size_t found = 0, length = 0;

    for (size_t i = 0; i < count; i++) {
        const char *name = nbd_export_name(coverage->nbd, roots[i]);

        found += is_named(coverage->names, name);
        if (name != NULL && length < sizeof(exports))
            length += (size_t)snprintf(exports + length, sizeof(exports) - length, "%s'%s'",
                                       length > 0 ? ", " : "", name);
    }
    coverage->named += found;
    length = strlen(coverage->known);
    snprintf(coverage->known + length, sizeof(coverage->known) - length, "%s%s",
             length > 0 && exports[0] != '\0' ? ", " : "", exports);
    if (found == 1 || coverage->result < 0)
        return;
    coverage->result = err_set(
        coverage->err, -EINVAL,
        found == 0 ? "the primary does not forward to disk '%s' of this secondary (%s)"
                   : "the primary names disk '%s' of this secondary twice (%s)",
        disk, exports[0] != '\0' ? exports : "it is not exported");
}

/* One export of each disk, and no others. */
static int check_exports(struct daemon *daemon, const struct opt_strings *names, struct err *err)
{
    struct coverage coverage = {.nbd = daemon->nbd, .names = names, .err = err};

    replication_visit_roots(daemon->group, cover_disk, &coverage);
    if (coverage.result < 0 || coverage.named == names->count)
        return coverage.result;
    return err_set(
        err, -EINVAL,
        "the primary forwards to %zu exports, of which %zu lead to the secondary's disks; "
        "these are: %s",
        names->count, coverage.named, coverage.known);
}

/* The caller speaks for the session from now on, whoever did before. */
static int take_session(struct qmp_call *call, const struct replication_hello *hello,
                        struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;

    if (daemon->session_client != 0 && daemon->session_client != call->client)
        qmp_server_cut_client(call->server, daemon->session_client);
    if (!qmp_server_has_client(call->server, call->client))
        return err_set(err, -ECONNRESET, "the caller has gone");
    daemon->session_client = call->client;
    int r = replication_session_begin(daemon->group, hello, err);
    if (r < 0 && daemon->session_client == call->client)
        daemon->session_client = 0;
    return r;
}

static int say_hello(struct qmp_call *call, const struct hello_args *args,
                     const struct replication_hello *hello, struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;
    int r = replication_hello_check(daemon->group, hello, err);

    if (r == 0)
        r = check_exports(daemon, &args->exports, err);
    if (r < 0)
        return r;
    call->result = replication_session_answer(daemon->group);
    if (call->result == NULL || json_add_uint(call->result, "version", PEER_VERSION_MAX) < 0)
        return err_no_memory(err);
    r = take_session(call, hello, err);
    if (r < 0)
        return r;
    replication_session_answer_fill(daemon->group, call->result);
    call->peer_events = true;
    call->silence_ns = PEER_SILENT_NS;
    return 0;
}

static int run_hello(struct qmp_call *call, void *arg, struct err *err) MAY_WAIT
{
    const struct hello_args *args = arg;
    struct daemon *daemon = call->context;
    struct replication_hello hello = {.session = 0};
    int r = read_hello(args, &hello, err);

    if (r < 0)
        return r;
    if (daemon->greeting)
        return err_set_kind(err, ERR_DEVICE_NOT_ACTIVE, -EBUSY,
                            "another primary is being answered just now: try again");
    daemon->greeting = true;
    r = say_hello(call, args, &hello, err);
    daemon->greeting = false;
    return r;
}

/* --- report --- */

struct report_args {
    uint64_t session;
    int side;
    char *disk, *node, *operation, *errno_name, *reason;
    uint64_t offset_bytes, length_bytes, wall_ns, count;
};

static const char *const sides[] = {"primary", "secondary", NULL};

#define ERROR_TEXT(member, field)                                                             \
    {                                                                                         \
        .name = (member), .type = OPT_STRING, .offset = OPT_FIELD(struct report_args, field), \
        .required = true, .help = "as query-replication tells it"                             \
    }
#define ERROR_NUMBER(member, field)                                                         \
    {                                                                                       \
        .name = (member), .type = OPT_UINT, .offset = OPT_FIELD(struct report_args, field), \
        .required = true, .help = "as query-replication tells it"                           \
    }

static const struct opt error_opts[] = {
    {.name = "side",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct report_args, side),
     .required = true,
     .values = sides,
     .help = "who saw it first"},
    ERROR_TEXT("disk", disk),
    ERROR_TEXT("node", node),
    ERROR_TEXT("operation", operation),
    ERROR_NUMBER("offset", offset_bytes),
    ERROR_NUMBER("length", length_bytes),
    ERROR_TEXT("errno", errno_name),
    ERROR_TEXT("reason", reason),
    ERROR_NUMBER("wall-time-ns", wall_ns),
    ERROR_NUMBER("count", count),
    {0},
};

static const struct opt report_opts[] = {
    {.name = "session",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct report_args, session),
     .required = true,
     .min = 1,
     .help = "the primary's, which must be this connection's"},
    {.name = "error",
     .type = OPT_OBJECT,
     .required = true,
     .members = error_opts,
     .help = "the first error of the primary"},
    {0},
};

static int run_report(struct qmp_call *call, void *arg, struct err *err) MAY_WAIT
{
    const struct report_args *args = arg;
    struct daemon *daemon = call->context;
    struct json_object *error = NULL;
    char text[256];
    uint64_t session;
    int r = session_of_call(call, args->session, &session, err);

    if (r < 0)
        return r;
    json_object_object_get_ex(call->arguments, "error", &error);
    snprintf(text, sizeof(text),
             "%s failed on node '%s' at offset %" PRIu64 ", %" PRIu64 " bytes: %s", args->operation,
             args->node, args->offset_bytes, args->length_bytes, args->reason);
    log_warning("replication", "the primary reports: %s", text);
    return replication_session_report(daemon->group, session, error, text, err);
}

const struct qmp_command commands_session[] = {
    {.name = "replication-hello",
     .flags = QMP_PEER,
     .returns = QMP_RETURNS_VALUE,
     .args = hello_opts,
     .args_size = sizeof(struct hello_args),
     .run = run_hello},
    {.name = "replication-report",
     .flags = QMP_PEER,
     .args = report_opts,
     .args_size = sizeof(struct report_args),
     .run = run_report},
    {0},
};
