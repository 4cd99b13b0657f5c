/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* block-commit: layers of a backing chain merged into one below them. */
#include "control/commands.h"
#include "control/daemon.h"
#include "control/node_info.h"
#include "jobs/chain.h"
#include "jobs/mirror.h"

#include <errno.h>
#include <string.h>

struct commit_args {
    char *job_id, *device, *base_node, *base, *top_node, *top, *backing_file, *filter_node_name;
    int on_error;
    bool auto_finalize, auto_dismiss;
    uint64_t speed;
};

#define COMMIT_OPT(name_, type_, field, ...)                                              \
    {                                                                                     \
        .name = (name_), .type = (type_), .offset = OPT_FIELD(struct commit_args, field), \
        __VA_ARGS__                                                                       \
    }

static const struct opt commit_opts[] = {
    COMMIT_OPT("job-id", OPT_STRING, job_id, .help = "name of the job (default: the device)"),
    COMMIT_OPT("device", OPT_STRING, device, .required = true, .help = "the node at the top"),
    COMMIT_OPT("base-node", OPT_STRING, base_node,
               .help = "what is merged into (default: the foot of the chain)"),
    COMMIT_OPT("base", OPT_STRING, base, .help = "the same, by its file name"),
    COMMIT_OPT("top-node", OPT_STRING, top_node,
               .help = "the topmost node that is merged (default: the device)"),
    COMMIT_OPT("top", OPT_STRING, top, .help = "the same, by its file name"),
    COMMIT_OPT("backing-file", OPT_STRING, backing_file,
               .help = "refused: images here keep no name of their backing file"),
    COMMIT_OPT("speed", OPT_UINT, speed, .max = INT64_MAX, .help = "bytes per second, 0: no limit"),
    COMMIT_OPT("on-error", OPT_ENUM, on_error, .values = job_on_error_names,
               .help = "what an error of any of the nodes comes to"),
    COMMIT_OPT("filter-node-name", OPT_STRING, filter_node_name,
               .help = "taken and not used: no filter is put in"),
    COMMIT_OPT("auto-finalize", OPT_BOOL, auto_finalize, .fallback = "on",
               .help = "whether it takes effect without job-finalize"),
    COMMIT_OPT("auto-dismiss", OPT_BOOL, auto_dismiss, .fallback = "on",
               .help = "whether the job goes when it has ended"),
    {0},
};

/* A node of the chain below `from` by its file's name; NULL: none. */
static struct node *find_by_file(struct node *from, const char *filename)
{
    for (struct node *node = from; node != NULL; node = chain_next(node)) {
        CLEANUP(json_putp) struct json_object *name = node_filename(node);

        if (!node->driver->is_filter && name != NULL &&
            strcmp(json_object_get_string(name), filename) == 0)
            return node;
    }
    return NULL;
}

static int find_by_name(struct daemon *daemon, struct node *from, const char *name,
                        struct node **ret_node, struct err *err)
{
    struct node *node = graph_find(daemon->graph, name);

    if (node == NULL)
        return err_set(err, -ENOENT, "Cannot find device='' nor node-name='%s'", name);
    if (!chain_contains(from, node))
        return err_set(err, -EINVAL, "'%s' is not in this backing file chain", name);
    *ret_node = node;
    return 0;
}

static int find_top(struct daemon *daemon, const struct commit_args *args, struct node *device,
                    struct node **ret_top, struct err *err)
{
    if (args->top_node != NULL && args->top != NULL)
        return err_set(err, -EINVAL, "'top-node' and 'top' are mutually exclusive");
    if (args->top_node != NULL)
        return find_by_name(daemon, device, args->top_node, ret_top, err);
    *ret_top = args->top != NULL ? find_by_file(device, args->top) : device;
    if (*ret_top == NULL)
        return err_set(err, -ENOENT, "Top image file %s not found", args->top);
    return 0;
}

static struct node *find_foot(struct node *top)
{
    struct node *foot = chain_below_filters(top);

    for (struct node *node = foot; node != NULL; node = chain_next(node)) {
        if (!node->driver->is_filter)
            foot = node;
    }
    return foot;
}

static int find_base(struct daemon *daemon, const struct commit_args *args, struct node *top,
                     struct node **ret_base, struct err *err)
{
    if (args->base_node != NULL && args->base != NULL)
        return err_set(err, -EINVAL, "'base-node' and 'base' are mutually exclusive");
    if (args->base_node != NULL)
        return find_by_name(daemon, top, args->base_node, ret_base, err);
    *ret_base = args->base != NULL ? find_by_file(top, args->base) : find_foot(top);
    if (*ret_base == NULL)
        return err_set(err, -ENOENT, "Can't find '%s' in the backing chain", args->base);
    return 0;
}

static int check_supported(const struct commit_args *args, bool active, struct err *err)
{
    if (args->backing_file != NULL && active)
        return err_set(err, -EINVAL, "'backing-file' specified, but 'top' is the active layer");
    if (args->backing_file != NULL)
        return err_set(err, -EOPNOTSUPP,
                       "'backing-file': images here keep no name of their backing file: leave it "
                       "out");
    return 0;
}

/* The device itself, not a part of one. */
static int find_device(struct daemon *daemon, const char *name, struct node **ret_device,
                       struct err *err)
{
    struct node *device = graph_find(daemon->graph, name);

    if (device == NULL)
        return err_set_kind(err, ERR_DEVICE_NOT_FOUND, -ENOENT, "Device '%s' not found", name);
    LIST_FOR_EACH(edge, &device->parents, struct edge, in_child) {
        if (edge->parent != NULL && !edge->parent->stands_in)
            return err_set(err, -EINVAL, "Need a root block node");
    }
    *ret_device = device;
    return node_check_blocked(device, "commit", err);
}

static int start_commit(struct daemon *daemon, const struct commit_args *args, struct node *top,
                        struct node *base, bool active, struct err *err) MAY_WAIT
{
    const struct mirror_options options = {
        .kind = active ? MIRROR_COMMIT_ACTIVE : MIRROR_COMMIT,
        .id = args->job_id != NULL ? args->job_id : args->device,
        .source = top,
        .target = base,
        .sync = MIRROR_SYNC_TOP,
        .speed_bytes = args->speed,
        .on_source_error = (enum job_on_error)args->on_error,
        .on_target_error = (enum job_on_error)args->on_error,
    };
    struct job *job;
    int r = mirror_new(&daemon->jobs, &options, &job, err);

    if (r < 0)
        return r;
    job->auto_finalize = args->auto_finalize;
    job->auto_dismiss = args->auto_dismiss;
    return job_start(job, err);
}

static int run_commit(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct commit_args *commit = args;
    struct daemon *daemon = call->context;
    struct node *device = NULL, *top = NULL, *base = NULL;
    int r = find_device(daemon, commit->device, &device, err);

    if (r == 0)
        r = find_top(daemon, commit, device, &top, err);
    if (r == 0)
        r = find_base(daemon, commit, top, &base, err);
    if (r == 0 && top == base)
        r = err_set(err, -EINVAL, "cannot commit an image into itself");
    if (r == 0)
        r = check_supported(commit, top == device, err);
    return r == 0 ? start_commit(daemon, commit, top, base, top == device, err) : r;
}

const struct qmp_command commands_commit[] = {
    {.name = "block-commit",
     .args = commit_opts,
     .args_size = sizeof(struct commit_args),
     .run = run_commit},
    {0},
};
