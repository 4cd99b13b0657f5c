/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockdev-create: a job that makes a file, or formats one as an overlay. */
#include "control/commands.h"
#include "control/daemon.h"

#include "block/io.h"
#include "drivers/overlay.h"
#include "jobs/create.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* In the order of driver_names. */
enum { CREATE_FILE, CREATE_OVERLAY };
static const char *const driver_names[] = {"file", "overlay", NULL};
enum { PREALLOCATE_OFF, PREALLOCATE_METADATA, PREALLOCATE_FALLOC, PREALLOCATE_FULL };
static const char *const preallocation_names[] = {"off", "metadata", "falloc", "full", NULL};

struct create_args {
    char *job_id;
    int driver, preallocation;
    char *filename, *backing;
    struct json_object *file;
    uint64_t size, block_size;
    bool size_given;
};

#define CREATE_OPT(name_, type_, field, ...)                                              \
    {                                                                                     \
        .name = (name_), .type = (type_), .offset = OPT_FIELD(struct create_args, field), \
        __VA_ARGS__                                                                       \
    }

static const struct opt file_opts[] = {
    CREATE_OPT("filename", OPT_STRING, filename, .required = true,
               .help = "the file; what it holds is lost"),
    CREATE_OPT("size", OPT_UINT, size, .required = true, .max = INT64_MAX, .help = "in bytes"),
    CREATE_OPT("preallocation", OPT_ENUM, preallocation, .values = preallocation_names,
               .help = "whether the file system gives the space now: off (default), falloc, full"),
    {0},
};

static const struct opt overlay_opts[] = {
    CREATE_OPT("file", OPT_CHILD, file, .required = true,
               .help = "the node that gets the image; what it holds is lost"),
    CREATE_OPT("size", OPT_UINT, size, .present = OPT_PRESENT(struct create_args, size_given),
               .max = INT64_MAX, .help = "of the disk in bytes (default: of `backing`)"),
    CREATE_OPT("backing", OPT_STRING, backing,
               .help = "the node that it shall lie on, which has its size; it is not written down"),
    CREATE_OPT("block-size", OPT_UINT, block_size, .max = UINT32_MAX,
               .help = "what the image counts in, in bytes (default: 4096)"),
    {0},
};

static const struct opt *const variant_opts[] = {
    [CREATE_FILE] = file_opts,
    [CREATE_OVERLAY] = overlay_opts,
};

static const struct opt driver_opts[] = {
    CREATE_OPT("driver", OPT_ENUM, driver, .required = true, .values = driver_names,
               .help = "what is made"),
    {0},
};

static const struct opt create_opts[] = {
    CREATE_OPT("job-id", OPT_STRING, job_id, .required = true, .help = "name of the job"),
    {.name = "options",
     .type = OPT_UNION,
     .required = true,
     .members = driver_opts,
     .discriminator = "driver",
     .variants = variant_opts,
     .help = "what to make"},
    {0},
};

struct creation {
    struct graph *graph;
    struct create_args args; /* owned */
};

/* --- on a node --- */

/* The whole of what the node holds is replaced, so nobody else may use it. */
static int attach(struct creation *creation, struct node *node, struct edge **ret_edge,
                  struct err *err) MAY_WAIT
{
    return graph_attach_root(creation->graph, node, "create", PERM_ALL, 0, NULL, NULL, ret_edge,
                             err);
}

static int resize(struct edge *edge, uint64_t bytes, struct err *err) MAY_WAIT
{
    int r = io_truncate(edge, bytes);

    return r < 0 ? err_set_errno(err, r, "cannot resize node '%s' to %" PRIu64 " bytes",
                                 edge->child->name, bytes)
                 : 0;
}

static struct json_object *file_node_options(const char *filename)
{
    struct json_object *options = json_object_new_object();

    if (options != NULL && json_add_string(options, "driver", "file") == 0 &&
        json_add_string(options, "filename", filename) == 0)
        return options;
    json_object_put(options);
    return NULL;
}

/* By a node, so that the file's locks keep it from those who use it. Comes with a reference. */
static int open_node(struct graph *graph, struct json_object *ref, struct node **ret_node,
                     struct err *err) MAY_WAIT
{
    struct node *node = NULL;
    int r;

    if (json_object_is_type(ref, json_type_string))
        r = graph_get(graph, json_object_get_string(ref), &node, err);
    else
        r = graph_add(graph, ref, OPTS_JSON, "file", false, &node, err);
    if (r == 0)
        *ret_node = node_ref(node);
    return r;
}

/* --- files --- */

static int fill_file(struct creation *creation, struct edge *edge, struct err *err) MAY_WAIT
{
    const struct create_args *args = &creation->args;
    struct io io = {.length_bytes = args->size};
    int r = resize(edge, 0, err);

    if (r == 0)
        r = resize(edge, args->size, err);
    if (r < 0 || args->preallocation == PREALLOCATE_OFF)
        return r;
    r = io_zero(edge, &io); /* not to be unmapped */
    if (r == 0)
        r = io_flush(edge);
    return r < 0 ? err_set_errno(err, r, "cannot allocate %" PRIu64 " bytes for '%s'", args->size,
                                 args->filename)
                 : 0;
}

/* It exists. */
static int create_in_file(struct creation *creation, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp)
    struct json_object *options = file_node_options(creation->args.filename);
    struct node *node = NULL;
    struct edge *edge = NULL;

    if (options == NULL)
        return err_no_memory(err);
    int r = open_node(creation->graph, options, &node, err);
    if (r == 0)
        r = attach(creation, node, &edge, err);
    if (r == 0)
        r = fill_file(creation, edge, err);
    graph_detach(edge);
    node_unref(node);
    return r;
}

static int create_file(struct creation *creation, struct err *err) MAY_WAIT
{
    const struct create_args *args = &creation->args;
    struct file *file = NULL;

    if (args->preallocation == PREALLOCATE_METADATA)
        return err_set(err, -EOPNOTSUPP, "Unsupported preallocation mode: metadata");
    int r = file_open(graph_loop(creation->graph), args->filename, FILE_WRITABLE | FILE_CREATE,
                      FILE_AIO_AUTO, &file, err);
    if (r < 0) {
        err_clear(err);
        return err_set(err, r, "Could not create '%s': %s", args->filename, strerror(-r));
    }
    file_close(file);
    return create_in_file(creation, err);
}

/* --- overlays --- */

static int overlay_size(struct creation *creation, uint64_t *ret_bytes, struct err *err)
{
    const struct create_args *args = &creation->args;
    struct node *backing = NULL;

    if (args->backing != NULL && graph_get(creation->graph, args->backing, &backing, err) < 0)
        return err->code;
    if (backing == NULL && !args->size_given)
        return err_set(err, -EINVAL, "Parameter 'options.size' is missing, or 'options.backing'");
    if (backing != NULL && args->size_given && backing->length_bytes != args->size)
        return err_set(err, -EINVAL,
                       "'size' is %" PRIu64 ", and node '%s' has %" PRIu64
                       " bytes: leave one of them out",
                       args->size, backing->name, backing->length_bytes);
    *ret_bytes = backing != NULL ? backing->length_bytes : args->size;
    return 0;
}

static int create_overlay(struct creation *creation, struct err *err) MAY_WAIT
{
    struct overlay_create create = {.block_bytes = (uint32_t)creation->args.block_size};
    struct node *node = NULL;
    struct edge *edge = NULL;
    int r = overlay_size(creation, &create.virtual_bytes, err);

    if (r == 0)
        r = open_node(creation->graph, creation->args.file, &node, err);
    if (r < 0)
        return r;
    r = attach(creation, node, &edge, err);
    if (r == 0)
        r = resize(edge, 0, err);
    if (r == 0)
        r = overlay_create_in(edge, &create, err);
    graph_detach(edge);
    node_unref(node);
    return r;
}

/* --- the command --- */

static int creation_run(void *arg, struct err *err) MAY_WAIT
{
    struct creation *creation = arg;

    return creation->args.driver == CREATE_FILE ? create_file(creation, err)
                                                : create_overlay(creation, err);
}

static void creation_release(void *arg)
{
    struct creation *creation = arg;

    opts_release(create_opts, &creation->args);
    free(creation);
}

static int run_create(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct create_args *wanted = args;
    struct daemon *daemon = call->context;
    struct creation *creation = calloc(1, sizeof(*creation));
    struct job *job = NULL;

    if (creation == NULL)
        return err_no_memory(err);
    /* The job outlives the command. */
    creation->graph = daemon->graph;
    creation->args = *wanted;
    *wanted = (struct create_args){0};
    const struct create_call work = {creation_run, creation_release, creation};
    int r = create_new(&daemon->jobs, creation->args.job_id, &work, &job, err);
    return r < 0 ? r : job_start(job, err);
}

const struct qmp_command commands_create[] = {
    {.name = "blockdev-create",
     .args = create_opts,
     .args_size = sizeof(struct create_args),
     .run = run_create},
    {0},
};
