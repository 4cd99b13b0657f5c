/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The conversation itself, the process, and the run state that a manager states. */
#include "control/commands.h"
#include "control/daemon.h"
#include "control/qmp_dispatch.h"

#include <errno.h>

const struct qmp_command *const commands_tables[] = {
    commands_misc, commands_block, commands_nbd, commands_jobs, commands_replication, NULL,
};

struct capabilities_args {
    struct opt_strings enable;
};

static const struct opt capabilities_opts[] = {
    {.name = "enable",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct capabilities_args, enable),
     .help = "capabilities of the greeting to switch on"},
    {0},
};

/* The dispatcher notes the negotiation. */
static int run_capabilities(struct qmp_call *call, void *args, struct err *err)
{
    const struct capabilities_args *wanted = args;

    if (wanted != NULL && wanted->enable.count > 0)
        return err_set(err, -EINVAL, "Capability %s not available", wanted->enable.items[0]);
    return 0;
}

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

const struct qmp_command commands_misc[] = {
    {.name = "qmp_capabilities",
     .flags = QMP_PEER,
     .args = capabilities_opts,
     .args_size = sizeof(struct capabilities_args),
     .run = run_capabilities},
    {.name = "query-version", .flags = QMP_PEER, .run = run_query_version},
    {.name = "query-commands", .run = run_query_commands},
    {.name = "query-status", .run = run_query_status},
    {.name = "stop", .run = run_stop},
    {.name = "cont", .run = run_cont},
    {.name = "quit", .run = run_quit},
    {0},
};
