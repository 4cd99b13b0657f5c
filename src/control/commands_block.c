/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Nodes: made, changed, removed, shown. */
#include "control/commands.h"
#include "control/daemon.h"
#include "control/node_info.h"

#include <errno.h>

int command_find_device(struct daemon *daemon, const char *name, struct node **ret_node,
                        struct err *err)
{
    struct node *node = graph_find(daemon->graph, name);

    if (node == NULL)
        return err_set(err, -ENOENT, "Cannot find device='%s' nor node-name='%s'", name, name);
    *ret_node = node;
    return 0;
}

/* --- changes --- */

static int run_blockdev_add(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct daemon *daemon = call->context;
    struct json_object *driver = NULL;
    struct node *node;

    if (call->arguments == NULL || !json_object_object_get_ex(call->arguments, "driver", &driver))
        return err_set(err, -EINVAL, "Parameter 'driver' is missing");
    if (!json_object_is_type(driver, json_type_string))
        return err_set(err, -EINVAL, "Invalid parameter type for 'driver', expected: string");
    return graph_add(daemon->graph, call->arguments, OPTS_JSON, "blockdev-add", true, &node, err);
}

struct del_args {
    char *node_name;
};

static const struct opt del_opts[] = {
    {.name = "node-name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct del_args, node_name),
     .required = true,
     .help = "the node to remove"},
    {0},
};

static int run_blockdev_del(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct del_args *del = args;
    struct daemon *daemon = call->context;

    if (graph_find(daemon->graph, del->node_name) == NULL)
        return err_set(err, -ENOENT, "Failed to find node with node-name='%s'", del->node_name);
    return graph_del(daemon->graph, del->node_name, err);
}

struct change_args {
    char *parent, *child, *node;
};

static const struct opt change_opts[] = {
    {.name = "parent",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct change_args, parent),
     .required = true,
     .help = "the node whose children change"},
    {.name = "child",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct change_args, child),
     .help = "name of the child to take away (children.1)"},
    {.name = "node",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct change_args, node),
     .help = "name of the node to add"},
    {0},
};

static int change_add(struct daemon *daemon, struct node *parent, const char *name, struct err *err)
    MAY_WAIT
{
    struct node *node = graph_find(daemon->graph, name);
    int r;

    if (node == NULL)
        return err_set(err, -ENOENT, "Node '%s' not found", name);
    node_ref(node);
    r = graph_child_add(daemon->graph, parent, node, err);
    node_unref(node);
    return r;
}

static int run_change(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct change_args *change = args;
    struct daemon *daemon = call->context;
    struct node *parent;
    int r;

    if (change->child != NULL && change->node != NULL)
        return err_set(err, -EINVAL, "The parameters child and node are in conflict");
    if (change->child == NULL && change->node == NULL)
        return err_set(err, -EINVAL, "Either child or node must be specified");
    r = graph_get(daemon->graph, change->parent, &parent, err);
    if (r < 0)
        return r;
    if (change->child != NULL && node_child(parent, change->child) == NULL)
        return err_set(err, -ENOENT, "Node '%s' does not have child '%s'", change->parent,
                       change->child);
    node_ref(parent);
    if (change->child != NULL)
        r = graph_child_del(daemon->graph, parent, change->child, err);
    else
        r = change_add(daemon, parent, change->node, err);
    node_unref(parent);
    return r;
}

/* --- queries --- */

struct query_nodes_args {
    bool flat;
};

static const struct opt query_nodes_opts[] = {
    {.name = "flat",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct query_nodes_args, flat),
     .help = "without the chains of backing images"},
    {0},
};

static int run_query_nodes(struct qmp_call *call, void *args, struct err *err)
{
    const struct query_nodes_args *query = args;
    struct daemon *daemon = call->context;
    struct node *node = NULL;

    call->result = json_object_new_array();
    if (call->result == NULL)
        return err_no_memory(err);
    while ((node = graph_next(daemon->graph, node)) != NULL) {
        struct json_object *info = node_info(node, query->flat);

        if (info == NULL || json_object_array_add(call->result, info) < 0) {
            json_object_put(info);
            return err_no_memory(err);
        }
    }
    return 0;
}

static struct json_object *device_info(struct node *node)
{
    struct json_object *device = json_object_new_object();
    int r = device == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_string(device, "device", node->name);
        r |= json_add_string(device, "type", "unknown");
        r |= json_add_bool(device, "removable", false);
        r |= json_add_bool(device, "locked", false);
        r |= json_add(device, "inserted", node_info(node, false));
    }
    if (r == 0)
        return device;
    json_object_put(device);
    return NULL;
}

static bool is_top(const struct node *node)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge->parent != NULL)
            return false;
    }
    return node->named;
}

/* What QEMU calls devices are here the nodes that no other node sits on. */
static int run_query_block(struct qmp_call *call, void *args, struct err *err)
{
    struct daemon *daemon = call->context;
    struct node *node = NULL;

    call->result = json_object_new_array();
    if (call->result == NULL)
        return err_no_memory(err);
    while ((node = graph_next(daemon->graph, node)) != NULL) {
        struct json_object *device;

        if (!is_top(node))
            continue;
        device = device_info(node);
        if (device == NULL || json_object_array_add(call->result, device) < 0) {
            json_object_put(device);
            return err_no_memory(err);
        }
    }
    return 0;
}

const struct qmp_command commands_block[] = {
    {.name = "blockdev-add", .flags = QMP_ARGS_NODE, .run = run_blockdev_add},
    {.name = "blockdev-del",
     .args = del_opts,
     .args_size = sizeof(struct del_args),
     .run = run_blockdev_del},
    {.name = "x-blockdev-change",
     .args = change_opts,
     .args_size = sizeof(struct change_args),
     .run = run_change},
    {.name = "query-named-block-nodes",
     .returns = QMP_RETURNS_LIST,
     .args = query_nodes_opts,
     .args_size = sizeof(struct query_nodes_args),
     .run = run_query_nodes},
    {.name = "query-block", .returns = QMP_RETURNS_LIST, .run = run_query_block},
    {0},
};
