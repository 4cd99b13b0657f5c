/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The conversation itself, the process, and the run state that a manager states. */
#include "control/commands.h"
#include "control/daemon.h"
#include "control/qmp_dispatch.h"
#include "control/qmp_rate.h"
#include "control/schema.h"
#include "drivers/table.h"

#include <errno.h>

const struct qmp_command *const commands_tables[] = {
    qmp_negotiation,
    commands_misc,
    commands_block,
    commands_graph,
    commands_bitmaps,
    commands_backup,
    commands_commit,
    commands_create,
    commands_nbd,
    commands_objects,
    commands_jobs,
    commands_mirror,
    commands_replication,
    commands_session,
    commands_yank,
    commands_hmp,
    NULL,
};

static int run_query_version(struct qmp_call *call, void *args, struct err *err)
{
    call->result = qmp_version();
    return call->result != NULL ? 0 : err_no_memory(err);
}

static int add_command_name(struct json_object *list, const char *name)
{
    struct json_object *entry = json_object_new_object();

    if (entry == NULL)
        return -ENOMEM;
    if (json_add_string(entry, "name", name) < 0 || json_object_array_add(list, entry) < 0) {
        json_object_put(entry);
        return -ENOMEM;
    }
    return 0;
}

static int run_query_commands(struct qmp_call *call, void *args, struct err *err)
{
    call->result = json_object_new_array();
    if (call->result == NULL)
        return err_no_memory(err);
    for (const struct qmp_command *const *table = commands_tables; *table != NULL; table++) {
        for (const struct qmp_command *command = *table; command->name != NULL; command++) {
            if (call->role == QMP_ROLE_PEER && !(command->flags & QMP_PEER))
                continue;
            if (add_command_name(call->result, command->name) < 0)
                return err_no_memory(err);
        }
    }
    return 0;
}

static int run_query_schema(struct qmp_call *call, void *args, struct err *err)
{
    const struct daemon *daemon = call->context;
    const struct schema_source source = {
        .commands = commands_tables,
        .events = events_table,
        .drivers = daemon->config->drivers,
        .object_types = object_types_table,
    };

    call->result = schema_new(&source);
    return call->result != NULL ? 0 : err_no_memory(err);
}

static int run_query_status(struct qmp_call *call, void *args, struct err *err)
{
    const struct daemon *daemon = call->context;
    int r = 0;

    call->result = json_object_new_object();
    if (call->result == NULL)
        return err_no_memory(err);
    r |= json_add_string(call->result, "status", daemon->vm_running ? "running" : "paused");
    r |= json_add_bool(call->result, "singlestep", false);
    r |= json_add_bool(call->result, "running", daemon->vm_running);
    return r == 0 ? 0 : err_no_memory(err);
}

static int run_stop(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;

    daemon->vm_running = false;
    return 0;
}

static int run_cont(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;

    daemon->vm_running = true;
    return 0;
}

static int run_quit(struct qmp_call *call, void *args, struct err *err)
{
    daemon_quit(call->context, "host-qmp-quit");
    return 0;
}

/* --- bounds, and how near they are --- */

struct figure {
    const char *name;
    uint64_t value;
};

/* Adds an object of numbers; a negative result: memory is out. */
static int add_figures(struct json_object *result, const char *name, const struct figure *figures,
                       size_t count)
{
    struct json_object *object = json_object_new_object();
    int r = object == NULL ? -ENOMEM : 0;

    for (size_t i = 0; r == 0 && i < count; i++)
        r = json_add_uint(object, figures[i].name, figures[i].value);
    if (r == 0)
        return json_add(result, name, object);
    json_object_put(object);
    return r;
}

static int add_loop(struct json_object *result, struct daemon *daemon)
{
    const struct loop_stats loop = loop_stats(daemon->loop);
    const struct buf_pool_stats bufs = buf_pool_stats(loop_bufs(daemon->loop));
    const struct figure loop_figures[] = {
        {"turns", loop.turns},
        {"longest-turn-ns", loop.longest_turn_ns},
        {"offloaded", loop.offloaded},
        {"coroutines", loop.coroutines},
        {"coroutines-peak", loop.coroutines_peak},
        {"stacks-cached", loop.stacks_cached},
        {"stacks-cached-max", CO_POOL_STACKS},
    };
    const struct figure buf_figures[] = {
        {"in-use-bytes", bufs.in_use_bytes}, {"in-use", bufs.in_use_buffers},
        {"cached-bytes", bufs.cached_bytes}, {"cached-bytes-max", BUF_CACHE_BYTES},
        {"peak-bytes", bufs.peak_bytes},
    };
    int r = add_figures(result, "loop", loop_figures, ARRAY_LEN(loop_figures));

    return r < 0 ? r : add_figures(result, "buffers", buf_figures, ARRAY_LEN(buf_figures));
}

static int add_services(struct json_object *result, struct daemon *daemon)
{
    const struct qmp_stats qmp = qmp_server_stats(daemon->qmp);
    const struct nbd_service_info nbd = nbd_service_info(daemon->nbd);
    const struct graph_holds holds = graph_holds(daemon->graph);
    struct node *node = NULL;
    uint64_t nodes = 0;
    int r;

    while ((node = graph_next(daemon->graph, node)) != NULL)
        nodes++;
    const struct figure control[] = {
        {"clients", qmp.clients},
        {"clients-max", QMP_MAX_CLIENTS},
        {"commands", qmp.commands},
        {"errors", qmp.errors},
        {"dropped", qmp.dropped},
        {"output-bytes-max", QMP_OUT_MAX_BYTES},
        {"in-flight-max", QMP_MAX_IN_FLIGHT},
        {"limited-events", qmp.limited},
        {"limited-events-max", QMP_MAX_RATES},
    };
    const struct figure nbd_figures[] = {
        {"connections", nbd.connections},       {"budget-bytes", nbd.budget_used_bytes},
        {"budget-bytes-max", nbd.budget_bytes}, {"servers", nbd_server_count(daemon->nbd)},
        {"servers-max", NBD_MAX_SERVERS},       {"exports-max", NBD_MAX_EXPORTS},
    };
    const struct figure others[] = {
        {"nodes", nodes},
        {"nodes-max", GRAPH_MAX_NODES},
        {"jobs", daemon->jobs.count},
        {"jobs-max", JOBS_MAX},
        {"holds", holds.count},
        {"holds-ns", holds.total_ns},
        {"longest-hold-ns", holds.longest_ns},
        {"long-holds", holds.long_count},
    };
    r = add_figures(result, "control", control, ARRAY_LEN(control));
    if (r == 0)
        r = add_figures(result, "nbd", nbd_figures, ARRAY_LEN(nbd_figures));
    return r < 0 ? r : add_figures(result, "graph", others, ARRAY_LEN(others));
}

static int run_query_resources(struct qmp_call *call, void *args, struct err *err)
{
    call->result = json_object_new_object();
    if (call->result == NULL || add_loop(call->result, call->context) < 0 ||
        add_services(call->result, call->context) < 0)
        return err_no_memory(err);
    return 0;
}

const struct qmp_command commands_misc[] = {
    {.name = "query-version",
     .flags = QMP_PEER,
     .returns = QMP_RETURNS_VALUE,
     .run = run_query_version},
    {.name = "query-commands",
     .flags = QMP_PEER,
     .returns = QMP_RETURNS_LIST,
     .run = run_query_commands},
    {.name = "query-qmp-schema", .returns = QMP_RETURNS_LIST, .run = run_query_schema},
    {.name = "query-status", .returns = QMP_RETURNS_VALUE, .run = run_query_status},
    {.name = "stop", .run = run_stop},
    {.name = "cont", .run = run_cont},
    {.name = "quit", .run = run_quit},
    {.name = "x-query-resources", .returns = QMP_RETURNS_VALUE, .run = run_query_resources},
    {0},
};
