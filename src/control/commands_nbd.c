/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NBD servers and exports. */
#include "control/commands.h"
#include "control/daemon.h"

#include <errno.h>
#include <string.h>

static const char *const remove_modes[] = {"safe", "hard", NULL};

_Static_assert((int)NBD_REMOVE_SAFE == 0 && (int)NBD_REMOVE_HARD == 1, "order of remove_modes");

/* --- servers --- */

static const struct opt server_start_opts[] = {
    ADDRESS_OPTS_LEGACY("addr"),
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_nbd_server, id),
     .fallback = "default",
     .help = "what exports call it in server="},
    {.name = "tls-creds",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_nbd_server, tls_creds),
     .help = "id of TLS credentials with endpoint=server"},
    {.name = "tls-authz",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_nbd_server, tls_authz),
     .help = "not supported yet"},
    {.name = "max-connections",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct config_nbd_server, max_connections),
     .max = 10000,
     .help = "connections at once (0: 100)"},
    {0},
};

static int run_server_start(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct config_nbd_server *server = args;
    struct daemon *daemon = call->context;

    if (nbd_server_exists(daemon->nbd, server->id) &&
        strcmp(server->id, NBD_SERVER_DEFAULT_ID) == 0)
        return err_set(err, -EEXIST, "NBD server already running");
    return daemon_add_nbd_server(daemon, server, err);
}

struct server_stop_args {
    char *id;
};

static const struct opt server_stop_opts[] = {
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct server_stop_args, id),
     .fallback = "default",
     .help = "which server"},
    {0},
};

static int run_server_stop(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct server_stop_args *stop = args;
    struct daemon *daemon = call->context;

    if (!nbd_server_exists(daemon->nbd, stop->id) && strcmp(stop->id, NBD_SERVER_DEFAULT_ID) == 0)
        return err_set(err, -ENOENT, "NBD server not running");
    return nbd_server_stop(daemon->nbd, stop->id, err);
}

struct server_list {
    struct json_object *array;
    bool failed;
};

static int fill_server(struct json_object *object, const struct nbd_server_info *info)
{
    struct json_object *addresses = json_object_new_array();
    int r = addresses == NULL ? -ENOMEM : 0;

    for (size_t i = 0; r == 0 && i < info->address_count; i++) {
        struct json_object *text = json_object_new_string(info->addresses[i]);

        if (text == NULL || json_object_array_add(addresses, text) < 0) {
            json_object_put(text);
            r = -ENOMEM;
        }
    }
    r |= json_add_string(object, "id", info->id);
    r |= json_add_bool(object, "tls", info->tls);
    r |= json_add(object, "addresses", addresses);
    r |= json_add_bool(object, "fenced", info->fenced);
    r |= json_add_uint(object, "exports", info->export_count);
    r |= json_add_uint(object, "connections", info->connections);
    r |= json_add_uint(object, "max-connections", info->max_connections);
    r |= json_add_uint(object, "accepted", info->accepted);
    r |= json_add_uint(object, "refused", info->refused);
    r |= json_add_uint(object, "broken", info->broken);
    r |= json_add_uint(object, "timed-out", info->timed_out);
    return r;
}

/* Takes the object, also where it has become none or was not filled. */
static void list_take(struct server_list *list, struct json_object *object, bool filled)
{
    if (filled && json_object_array_add(list->array, object) == 0)
        return;
    json_object_put(object);
    list->failed = true;
}

static void visit_server(void *arg, const struct nbd_server_info *info)
{
    struct server_list *list = arg;
    struct json_object *object = json_object_new_object();

    list_take(list, object, object != NULL && fill_server(object, info) == 0);
}

static int run_query_servers(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;
    struct server_list list = {.array = json_object_new_array()};

    if (list.array == NULL)
        return err_no_memory(err);
    call->result = list.array;
    nbd_server_query(daemon->nbd, visit_server, &list);
    return list.failed ? err_no_memory(err) : 0;
}

/* --- exports --- */

static int run_export_add(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    return daemon_add_export(call->context, args, err);
}

struct server_add_args {
    char *device, *name, *description, *bitmap, *server;
    bool writable;
};

static const struct opt server_add_opts[] = {
    {.name = "device",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct server_add_args, device),
     .required = true,
     .help = "the node to export"},
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct server_add_args, name),
     .help = "what clients call it (the node's name)"},
    {.name = "description",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct server_add_args, description),
     .help = "text for clients that list exports"},
    {.name = "writable",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct server_add_args, writable),
     .help = "whether clients may write"},
    {.name = "bitmap",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct server_add_args, bitmap),
     .help = "a bitmap to show to clients: of the node, or further down"},
    {.name = "server",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct server_add_args, server),
     .help = "id of the NBD server, where there are several"},
    {0},
};

/* As block-export-add names it. */
static struct json_object *one_bitmap(const char *name)
{
    struct json_object *list = json_object_new_array();
    struct json_object *item = json_object_new_string(name);

    if (list != NULL && item != NULL && json_object_array_add(list, item) == 0)
        return list;
    json_object_put(item);
    json_object_put(list);
    return NULL;
}

/* Managers send it as if there were one server. Where there are several they mean the one that their
 * nbd-server-start has made; NULL: who adds the export decides. */
static char *add_server(const struct daemon *daemon, const struct server_add_args *add)
{
    static char made[] = NBD_SERVER_DEFAULT_ID;

    return add->server == NULL && nbd_server_exists(daemon->nbd, made) ? made : add->server;
}

static int run_server_add(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct server_add_args *add = args;
    struct daemon *daemon = call->context;
    char *name = add->name != NULL ? add->name : add->device;
    struct config_export export = {
        .id = name,
        .node_name = add->device,
        .name = name,
        .description = add->description,
        .server = add_server(daemon, add),
        .writable = add->writable,
    };

    if (nbd_server_count(daemon->nbd) == 0)
        return err_set(err, -ENOENT, "NBD server not running");
    if (nbd_export_exists(daemon->nbd, name))
        return err_set(err, -EEXIST, "NBD server already has export named '%s'", name);
    if (add->bitmap != NULL && (export.bitmaps = one_bitmap(add->bitmap)) == NULL)
        return err_no_memory(err);
    int r = daemon_add_export(daemon, &export, err);
    json_object_put(export.bitmaps);
    return r;
}

struct remove_args {
    char *id;
    int mode;
};

static const struct opt server_remove_opts[] = {
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct remove_args, id),
     .required = true,
     .help = "which export"},
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct remove_args, mode),
     .values = remove_modes,
     .help = "safe: refused while clients are connected; hard: cuts them"},
    {0},
};

static const struct opt export_del_opts[] = {
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct remove_args, id),
     .required = true,
     .help = "which export"},
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct remove_args, mode),
     .values = remove_modes,
     .help = "safe: refused while clients are connected; hard: cuts them"},
    {0},
};

static int run_export_del(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct remove_args *gone = args;
    struct daemon *daemon = call->context;

    if (!nbd_export_exists(daemon->nbd, gone->id))
        return err_set(err, -ENOENT, "Export '%s' is not found", gone->id);
    return nbd_export_del(daemon->nbd, gone->id, (enum nbd_remove_mode)gone->mode, err);
}

/* Members beyond QEMU's begin with "x-": what a person asks for when looking at a daemon. */
static int fill_export(struct json_object *object, const struct nbd_export_info *info)
{
    int r = 0;

    r |= json_add_string(object, "id", info->id);
    r |= json_add_string(object, "type", "nbd");
    r |= json_add_string(object, "node-name", info->node_name);
    r |= json_add_bool(object, "shutting-down", info->revoked || info->removing);
    r |= json_add_string(object, "x-name", info->name);
    r |= json_add_string(object, "x-server", info->server);
    r |= json_add_bool(object, "x-writable", info->writable);
    r |= json_add_uint(object, "x-size", info->size_bytes);
    r |= json_add_uint(object, "x-connections", info->connections);
    r |= json_add_uint(object, "x-in-flight", info->requests_in_flight);
    return r;
}

static void visit_export(void *arg, const struct nbd_export_info *info)
{
    struct server_list *list = arg;
    struct json_object *object = json_object_new_object();

    list_take(list, object, object != NULL && fill_export(object, info) == 0);
}

static int run_query_exports(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;
    struct server_list list = {.array = json_object_new_array()};

    if (list.array == NULL)
        return err_no_memory(err);
    call->result = list.array;
    nbd_export_query(daemon->nbd, visit_export, &list);
    return list.failed ? err_no_memory(err) : 0;
}

const struct qmp_command commands_nbd[] = {
    {.name = "nbd-server-start",
     .args = server_start_opts,
     .args_size = sizeof(struct config_nbd_server),
     .run = run_server_start},
    {.name = "nbd-server-stop",
     .args = server_stop_opts,
     .args_size = sizeof(struct server_stop_args),
     .run = run_server_stop},
    {.name = "nbd-server-add",
     .args = server_add_opts,
     .args_size = sizeof(struct server_add_args),
     .run = run_server_add},
    {.name = "nbd-server-remove",
     .args = server_remove_opts,
     .args_size = sizeof(struct remove_args),
     .run = run_export_del},
    {.name = "x-query-nbd-servers", .returns = QMP_RETURNS_LIST, .run = run_query_servers},
    {.name = "block-export-add",
     .args = config_export_opts,
     .args_size = sizeof(struct config_export),
     .run = run_export_add},
    {.name = "block-export-del",
     .args = export_del_opts,
     .args_size = sizeof(struct remove_args),
     .run = run_export_del},
    {.name = "query-block-exports", .returns = QMP_RETURNS_LIST, .run = run_query_exports},
    {0},
};
