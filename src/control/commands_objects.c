/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Objects: what nodes and servers refer to by name. */
#include "block/object.h"
#include "control/commands.h"
#include "control/daemon.h"

#include <errno.h>

/* Of an object that object_add() has just taken, so it has an id. */
static const char *id_of(struct json_object *options)
{
    struct json_object *id = NULL;

    json_object_object_get_ex(options, "id", &id);
    return json_object_get_string(id);
}

int daemon_add_object(struct daemon *daemon, struct json_object *options, enum opts_syntax syntax,
                      const char *where, struct err *err)
{
    int r = object_add(daemon->graph, options, syntax, where, err);

    if (r < 0)
        return r;
    r = object_load(daemon->graph, id_of(options), err);
    if (r < 0) {
        struct err ignored = ERR_INIT;

        (void)object_del(daemon->graph, id_of(options), &ignored);
        return err_prefix(err, "%s", where);
    }
    return 0;
}

static int run_object_add(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    if (call->arguments == NULL)
        return err_set(err, -EINVAL, "object-add: 'qom-type' is required, a string");
    return daemon_add_object(call->context, call->arguments, OPTS_JSON, "object-add", err);
}

struct object_del_args {
    char *id;
};

static const struct opt object_del_opts[] = {
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct object_del_args, id),
     .required = true,
     .help = "which object"},
    {0},
};

static int run_object_del(struct qmp_call *call, void *args, struct err *err)
{
    const struct object_del_args *gone = args;
    struct daemon *daemon = call->context;

    return object_del(daemon->graph, gone->id, err);
}

const struct qmp_command commands_objects[] = {
    {.name = "object-add", .flags = QMP_ARGS_OBJECT, .run = run_object_add},
    {.name = "object-del",
     .args = object_del_opts,
     .args_size = sizeof(struct object_del_args),
     .run = run_object_del},
    {0},
};
