/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Replication: our own commands, and QEMU's names for the same functions as the managers of Xen and
 * COLO send them.
 */
#include "control/commands.h"
#include "control/daemon.h"
#include "control/session.h"

#include <errno.h>

static const char *const mode_names[] = {"primary", "secondary", NULL};

_Static_assert(REPLICATION_PRIMARY == 0 && REPLICATION_SECONDARY == 1, "order of mode_names");

static const char *const overlays_names[] = {"empty", "fresh", "resume", "merge", "sync", NULL};

_Static_assert(REPLICATION_OVERLAYS_EMPTY == 0 && REPLICATION_OVERLAYS_FRESH == 1 &&
                   REPLICATION_OVERLAYS_RESUME == 2 && REPLICATION_OVERLAYS_MERGE == 3 &&
                   REPLICATION_OVERLAYS_SYNC == 4,
               "order of overlays_names");

/* --- ours --- */

struct start_args {
    int mode, overlays;
};

static const struct opt start_opts[] = {
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct start_args, mode),
     .required = true,
     .values = mode_names,
     .help = "which side this is"},
    {.name = "overlays",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct start_args, overlays),
     .fallback = "empty",
     .values = overlays_names,
     .help = "secondary: what becomes of overlays that hold blocks"},
    {0},
};

static int run_start(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct start_args *start = args;
    struct daemon *daemon = call->context;

    return replication_start(daemon->group, (enum replication_mode)start->mode,
                             (enum replication_overlays)start->overlays, err);
}

struct checkpoint_args {
    uint64_t timeout_ms, session, epoch;
    bool first;
};

static const struct opt checkpoint_opts[] = {
    {.name = "timeout-ms",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct checkpoint_args, timeout_ms),
     .max = 3600 * 1000,
     .help = "how long to wait for the peer (0: the default)"},
    {.name = "first",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct checkpoint_args, first),
     .help = "to a secondary that is inconsistent, or whose stream is broken: the disks are equal"},
    {.name = "session",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct checkpoint_args, session),
     .help = "to a secondary: the primary's session, which must be this connection's"},
    {.name = "epoch",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct checkpoint_args, epoch),
     .help = "to a secondary: what shall be reached; nothing is done when it is"},
    {0},
};

static int run_checkpoint(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct checkpoint_args *checkpoint = args;
    struct daemon *daemon = call->context;
    struct replication_cut cut = {
        .deadline_ns = DEADLINE_NEVER,
        .first = checkpoint->first,
        .epoch = checkpoint->epoch,
    };
    uint64_t epoch = 0;
    struct json_object *number;
    int r = session_of_call(call, checkpoint->session, &cut.session, err);

    /* The answer comes first: of a checkpoint that was made none says that it was not. */
    call->result = json_object_new_object();
    if (r == 0 && (call->result == NULL || json_add_uint(call->result, "epoch", 0) < 0))
        r = err_no_memory(err);
    if (r == 0 && checkpoint->timeout_ms > 0)
        cut.deadline_ns = loop_now_ns(daemon->loop) + checkpoint->timeout_ms * NS_PER_MS;
    if (r == 0)
        r = replication_cut(daemon->group, &cut, &epoch, err);
    if (r == 0 && json_object_object_get_ex(call->result, "epoch", &number))
        json_object_set_uint64(number, epoch);
    return r;
}

struct stop_args {
    bool failover, force;
    int target;
};

static const char *const target_names[] = {"checkpoint", "latest", NULL};

static const struct opt stop_opts[] = {
    {.name = "failover",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct stop_args, failover),
     .help = "secondary: take over"},
    {.name = "force",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct stop_args, force),
     .help = "failover: also of an inconsistent group, with its disks as they are"},
    {.name = "target",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct stop_args, target),
     .values = target_names,
     .help = "the state to take over at"},
    {0},
};

static int stop(struct daemon *daemon, bool failover, bool force, struct err *err) MAY_WAIT
{
    return failover ? daemon_failover(daemon, force, err) : daemon_stop_replication(daemon, err);
}

static int run_stop(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct stop_args *how = args;

    if (how->target != 0)
        return err_set(err, -EOPNOTSUPP, "target 'latest' is not supported yet: use 'checkpoint'");
    if (how->force && !how->failover)
        return err_set(err, -EINVAL, "'force' is for a failover: a plain stop needs none");
    return stop(call->context, how->failover, how->force, err);
}

static int run_query(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;
    const struct config *config = daemon->config;
    int r = 0;

    call->result = replication_query(daemon->group);
    if (call->result == NULL)
        return err_no_memory(err);
    if (config->name != NULL)
        r |= json_add_string(call->result, "name", config->name);
    if (config->peer_control != NULL)
        r |= json_add_string(call->result, "peer-control", config->peer_control);
    return r == 0 ? 0 : err_no_memory(err);
}

/* --- QEMU's --- */

struct xen_args {
    bool enable, primary, failover, failover_given;
};

static const struct opt xen_opts[] = {
    {.name = "enable",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct xen_args, enable),
     .required = true,
     .help = "true: start, false: stop"},
    {.name = "primary",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct xen_args, primary),
     .required = true,
     .help = "which side this is"},
    {.name = "failover",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct xen_args, failover),
     .present = OPT_PRESENT(struct xen_args, failover_given),
     .help = "with enable false on the secondary: take over"},
    {0},
};

/* The primary of a stop is the node's business; QEMU ignores the member there too. */
static int run_xen_set(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct xen_args *set = args;
    struct daemon *daemon = call->context;
    enum replication_mode mode = set->primary ? REPLICATION_PRIMARY : REPLICATION_SECONDARY;

    if (set->enable && set->failover_given)
        return err_set(err, -EINVAL, "Parameter 'failover' is only for stopping replication");
    if (set->enable)
        return replication_start(daemon->group, mode, REPLICATION_OVERLAYS_FRESH, err);
    return stop(daemon, set->failover, false, err);
}

static int run_xen_status(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;
    struct err found = ERR_INIT;
    int broken = replication_get_error(daemon->group, &found);
    int r = 0;

    call->result = json_object_new_object();
    if (call->result == NULL)
        return err_no_memory(err);
    r |= json_add_bool(call->result, "error", broken < 0);
    if (broken < 0)
        r |= json_add_string(call->result, "desc", found.text);
    return r == 0 ? 0 : err_no_memory(err);
}

/* Fails as a command when replication is broken: managers exist that look at nothing else. */
static int run_xen_checkpoint(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;
    struct replication_cut cut = {.deadline_ns = DEADLINE_NEVER};
    int r = session_of_call(call, 0, &cut.session, err);

    return r < 0 ? r : replication_cut(daemon->group, &cut, NULL, err);
}

/* The manager says that the other side is dead: the secondary takes over, the primary goes on
 * alone. */
static int run_lost_heartbeat(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    return daemon_failover(call->context, false, err);
}

/* What of the stages COLO has words for. */
static const char *colo_reason(bool ever, enum replication_stage stage)
{
    if (!ever || stage == REPLICATION_NONE || stage == REPLICATION_RUNNING)
        return "none";
    return stage == REPLICATION_FAILOVER_FAILED ? "error" : "request";
}

static int run_query_colo(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;
    enum replication_mode mode = REPLICATION_PRIMARY;
    enum replication_stage stage = REPLICATION_NONE;
    bool ever = replication_state(daemon->group, &mode, &stage);
    bool running = ever && stage == REPLICATION_RUNNING;
    bool ended = ever && stage != REPLICATION_NONE && !running;
    int r = 0;

    call->result = json_object_new_object();
    if (call->result == NULL)
        return err_no_memory(err);
    r |= json_add_string(call->result, "mode", running ? mode_names[mode] : "none");
    r |= json_add_string(call->result, "last-mode", ended ? mode_names[mode] : "none");
    r |= json_add_string(call->result, "reason", colo_reason(ever, stage));
    return r == 0 ? 0 : err_no_memory(err);
}

const struct qmp_command commands_replication[] = {
    {.name = "replication-start",
     .args = start_opts,
     .args_size = sizeof(struct start_args),
     .run = run_start},
    {.name = "replication-checkpoint",
     .flags = QMP_PEER,
     .returns = QMP_RETURNS_VALUE,
     .args = checkpoint_opts,
     .args_size = sizeof(struct checkpoint_args),
     .run = run_checkpoint},
    {.name = "replication-stop",
     .args = stop_opts,
     .args_size = sizeof(struct stop_args),
     .run = run_stop},
    {.name = "query-replication",
     .flags = QMP_PEER,
     .returns = QMP_RETURNS_VALUE,
     .run = run_query},
    {.name = "xen-set-replication",
     .args = xen_opts,
     .args_size = sizeof(struct xen_args),
     .run = run_xen_set},
    {.name = "query-xen-replication-status",
     .flags = QMP_PEER,
     .returns = QMP_RETURNS_VALUE,
     .run = run_xen_status},
    {.name = "xen-colo-do-checkpoint", .flags = QMP_PEER, .run = run_xen_checkpoint},
    {.name = "x-colo-lost-heartbeat", .run = run_lost_heartbeat},
    {.name = "query-colo-status", .returns = QMP_RETURNS_VALUE, .run = run_query_colo},
    {0},
};
