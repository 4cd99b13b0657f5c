/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Yank: cuts connections that hang. Both commands may be run out of band, so that a manager is heard
 * whose earlier command waits for the very connection.
 */
#include "control/commands.h"
#include "control/daemon.h"

#include <errno.h>
#include <string.h>

enum { YANK_BLOCK_NODE, YANK_CHARDEV };

static const char *const yank_types[] = {
    [YANK_BLOCK_NODE] = "block-node",
    [YANK_CHARDEV] = "chardev",
    NULL,
};

struct yank_instance {
    int type;
    char *node_name, *id;
};

struct yank_args {
    struct opt_objects instances;
};

static const struct opt instance_opts[] = {
    {.name = "type",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct yank_instance, type),
     .required = true,
     .values = yank_types,
     .help = "what has the connection"},
    {0},
};

static const struct opt node_opts[] = {
    {.name = "node-name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct yank_instance, node_name),
     .required = true,
     .help = "a node of the nbd driver"},
    {0},
};

static const struct opt chardev_opts[] = {
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct yank_instance, id),
     .required = true,
     .help = "a control socket: all its clients are cut off"},
    {0},
};

static const struct opt *const instance_variants[] = {
    [YANK_BLOCK_NODE] = node_opts,
    [YANK_CHARDEV] = chardev_opts,
};

static const struct opt yank_opts[] = {
    {.name = "instances",
     .type = OPT_OBJECTS,
     .offset = OPT_FIELD(struct yank_args, instances),
     .required = true,
     .members = instance_opts,
     .item_size = sizeof(struct yank_instance),
     .discriminator = "type",
     .variants = instance_variants,
     .help = "connections to cut"},
    {0},
};

static struct node *find_node(struct daemon *daemon, const char *name)
{
    struct node *node = graph_find(daemon->graph, name);

    return node != NULL && node->driver->yank != NULL ? node : NULL;
}

static bool has_listener(struct daemon *daemon, const char *id)
{
    const char *name;

    for (size_t i = 0; (name = qmp_server_listener(daemon->qmp, i)) != NULL; i++) {
        if (strcmp(name, id) == 0)
            return true;
    }
    return false;
}

static bool exists(struct daemon *daemon, const struct yank_instance *instance)
{
    if (instance->type == YANK_BLOCK_NODE)
        return find_node(daemon, instance->node_name) != NULL;
    return has_listener(daemon, instance->id);
}

static void cut(struct daemon *daemon, const struct yank_instance *instance)
{
    struct node *node;

    if (instance->type == YANK_CHARDEV) {
        (void)qmp_server_yank(daemon->qmp, instance->id);
        return;
    }
    node = find_node(daemon, instance->node_name);
    node->driver->yank(node);
}

/* All or none: an instance that is not there leaves the others alone. */
static int run_yank(struct qmp_call *call, void *args, struct err *err)
{
    const struct yank_args *yank = args;
    const struct yank_instance *instances = yank->instances.items;

    for (size_t i = 0; i < yank->instances.count; i++) {
        if (!exists(call->context, &instances[i]))
            return err_set_kind(err, ERR_DEVICE_NOT_FOUND, -ENOENT, "Instance not found");
    }
    for (size_t i = 0; i < yank->instances.count; i++)
        cut(call->context, &instances[i]);
    return 0;
}

static int add_instance(struct json_object *list, int type, const char *key, const char *name)
{
    struct json_object *instance = json_object_new_object();

    if (instance != NULL && json_add_string(instance, "type", yank_types[type]) == 0 &&
        json_add_string(instance, key, name) == 0 && json_object_array_add(list, instance) == 0)
        return 0;
    json_object_put(instance);
    return -ENOMEM;
}

static int run_query_yank(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;
    struct node *node = NULL;
    const char *id;
    int r = 0;

    call->result = json_object_new_array();
    if (call->result == NULL)
        return err_no_memory(err);
    while (r == 0 && (node = graph_next(daemon->graph, node)) != NULL) {
        if (node->driver->yank != NULL)
            r = add_instance(call->result, YANK_BLOCK_NODE, "node-name", node->name);
    }
    for (size_t i = 0; r == 0 && (id = qmp_server_listener(daemon->qmp, i)) != NULL; i++)
        r = add_instance(call->result, YANK_CHARDEV, "id", id);
    return r < 0 ? err_no_memory(err) : 0;
}

const struct qmp_command commands_yank[] = {
    {.name = "yank",
     .flags = QMP_OOB,
     .args = yank_opts,
     .args_size = sizeof(struct yank_args),
     .run = run_yank},
    {.name = "query-yank", .flags = QMP_OOB, .returns = QMP_RETURNS_LIST, .run = run_query_yank},
    {0},
};
