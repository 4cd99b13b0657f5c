/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Mirrors: blockdev-mirror to a node, drive-mirror to a target that it opens by name. */
#include "control/commands.h"
#include "control/daemon.h"
#include "control/target.h"
#include "jobs/mirror.h"

#include <errno.h>
#include <string.h>

struct mirror_args {
    char *job_id, *device, *target, *format, *node_name, *replaces, *filter_node_name, *bitmap;
    int sync, mode, copy_mode, on_source_error, on_target_error;
    bool mode_given;
    uint64_t speed, granularity, buf_size;
    bool unmap, auto_finalize, auto_dismiss;
};

enum { SYNC_TOP, SYNC_FULL, SYNC_NONE, SYNC_INCREMENTAL, SYNC_BITMAP };
static const char *const sync_names[] = {"top", "full", "none", "incremental", "bitmap", NULL};
enum { MODE_EXISTING, MODE_ABSOLUTE_PATHS };
static const char *const mode_names[] = {"existing", "absolute-paths", NULL};
static const char *const copy_mode_names[] = {"background", "write-blocking", NULL};

#define MIRROR_OPT(name_, type_, field, ...)                                              \
    {                                                                                     \
        .name = (name_), .type = (type_), .offset = OPT_FIELD(struct mirror_args, field), \
        __VA_ARGS__                                                                       \
    }

#define MIRROR_COMMON_OPTS                                                                      \
    MIRROR_OPT("job-id", OPT_STRING, job_id, .help = "name of the job (default: the device)"),  \
        MIRROR_OPT("device", OPT_STRING, device, .required = true, .help = "the source node"),  \
        MIRROR_OPT("target", OPT_STRING, target, .required = true, .help = "where to"),         \
        MIRROR_OPT("sync", OPT_ENUM, sync, .required = true, .values = sync_names,              \
                   .help = "what of the source is copied besides what is written from now on"), \
        MIRROR_OPT("bitmap", OPT_STRING, bitmap,                                                \
                   .help = "for sync=bitmap: a bitmap of the source"),                          \
        MIRROR_OPT("speed", OPT_UINT, speed, .max = INT64_MAX,                                  \
                   .help = "bytes per second, 0: no limit"),                                    \
        MIRROR_OPT("granularity", OPT_UINT, granularity,                                        \
                   .help = "what is copied again when a byte of it changes, in bytes"),         \
        MIRROR_OPT("buf-size", OPT_UINT, buf_size, .max = INT64_MAX,                            \
                   .help = "bytes in flight at most"),                                          \
        MIRROR_OPT("replaces", OPT_STRING, replaces, .help = "not supported yet"),              \
        MIRROR_OPT("on-source-error", OPT_ENUM, on_source_error, .values = job_on_error_names,  \
                   .help = "what the job does when the source cannot be read"),                 \
        MIRROR_OPT("on-target-error", OPT_ENUM, on_target_error, .values = job_on_error_names,  \
                   .help = "what the job does when the target cannot be written"),              \
        MIRROR_OPT("copy-mode", OPT_ENUM, copy_mode, .values = copy_mode_names,                 \
                   .help = "whether a guest's write waits for its copy"),                       \
        MIRROR_OPT("auto-finalize", OPT_BOOL, auto_finalize, .fallback = "on",                  \
                   .help = "whether it takes effect without job-finalize"),                     \
        MIRROR_OPT("auto-dismiss", OPT_BOOL, auto_dismiss, .fallback = "on",                    \
                   .help = "whether the job goes when it has ended")

static const struct opt blockdev_mirror_opts[] = {
    MIRROR_COMMON_OPTS,
    MIRROR_OPT("filter-node-name", OPT_STRING, filter_node_name,
               .help = "taken and not used: no filter is put in"),
    {0},
};

static const struct opt drive_mirror_opts[] = {
    MIRROR_COMMON_OPTS,
    MIRROR_OPT("format", OPT_STRING, format, .help = "driver of the target; only 'raw' yet"),
    MIRROR_OPT("node-name", OPT_STRING, node_name, .help = "name of the target's node"),
    MIRROR_OPT("mode", OPT_ENUM, mode, .present = OPT_PRESENT(struct mirror_args, mode_given),
               .values = mode_names, .help = "only 'existing' yet: the target is there"),
    MIRROR_OPT("unmap", OPT_BOOL, unmap, .fallback = "on",
               .help = "whether zeroes give space back on the target"),
    {0},
};

/* Each says what is not there yet rather than doing something else. */
static int check_supported(const struct mirror_args *args, struct err *err)
{
    if (args->sync == SYNC_INCREMENTAL)
        return err_set(err, -EOPNOTSUPP,
                       "sync mode 'incremental' is not supported: use bitmap, full, top or none");
    if ((args->sync == SYNC_BITMAP) != (args->bitmap != NULL))
        return err_set(err, -EINVAL, "'bitmap' goes with sync mode 'bitmap', and with that alone");
    if (args->replaces != NULL)
        return err_set(err, -EOPNOTSUPP, "'replaces' is not supported yet");
    return 0;
}

static int start_mirror(struct daemon *daemon, const struct mirror_args *args, struct node *source,
                        struct node *target, bool unmap, struct err *err) MAY_WAIT
{
    static const enum mirror_sync syncs[] = {
        [SYNC_TOP] = MIRROR_SYNC_TOP,
        [SYNC_FULL] = MIRROR_SYNC_FULL,
        [SYNC_NONE] = MIRROR_SYNC_NONE,
        [SYNC_BITMAP] = MIRROR_SYNC_BITMAP,
    };
    struct mirror_options options = {
        .id = args->job_id != NULL ? args->job_id : args->device,
        .source = source,
        .target = target,
        .sync = syncs[args->sync],
        .region_bytes = args->granularity,
        .buf_bytes = args->buf_size,
        .speed_bytes = args->speed,
        .no_unmap = !unmap,
        .write_blocking = args->copy_mode != 0,
        .on_source_error = (enum job_on_error)args->on_source_error,
        .on_target_error = (enum job_on_error)args->on_target_error,
    };
    struct job *job;
    int r = 0;

    if (args->bitmap != NULL) {
        r = dirty_bitmap_get(source, args->bitmap, &options.bitmap, err);
        if (r == 0)
            r = dirty_bitmap_check(options.bitmap, err);
    }
    if (r == 0)
        r = mirror_new(&daemon->jobs, &options, &job, err);
    if (r < 0)
        return r;
    job->auto_finalize = args->auto_finalize;
    job->auto_dismiss = args->auto_dismiss;
    return job_start(job, err);
}

static int run_blockdev_mirror(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct mirror_args *mirror = args;
    struct daemon *daemon = call->context;
    struct node *source = NULL, *target = NULL;
    int r = check_supported(mirror, err);

    if (r == 0)
        r = command_find_device(daemon, mirror->device, &source, err);
    if (r == 0)
        r = command_find_device(daemon, mirror->target, &target, err);
    return r < 0 ? r : start_mirror(daemon, mirror, source, target, true, err);
}

static int check_drive(const struct mirror_args *args, struct err *err)
{
    int r = check_supported(args, err);

    if (r < 0)
        return r;
    if (!args->mode_given || args->mode != MODE_EXISTING)
        return err_set(err, -EOPNOTSUPP,
                       "mode 'absolute-paths', the default, would make a new image, which is not "
                       "supported yet: make the target and say mode 'existing'");
    if (args->format == NULL || strcmp(args->format, "raw") != 0)
        return err_set(err, -EOPNOTSUPP,
                       "format '%s' is not supported yet: say 'raw', or add a node and use "
                       "blockdev-mirror",
                       args->format != NULL ? args->format : "(to be probed)");
    return 0;
}

static int run_drive_mirror(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct mirror_args *mirror = args;
    struct daemon *daemon = call->context;
    struct node *source = NULL, *target = NULL;
    int r = check_drive(mirror, err);

    if (r == 0)
        r = command_find_device(daemon, mirror->device, &source, err);
    if (r == 0)
        r = node_check_blocked(source, "mirror", err); /* before somebody is called */
    if (r < 0)
        return r;
    node_ref(source);
    r = target_open(daemon->graph, mirror->target, mirror->node_name, &target, err);
    if (r == 0) {
        r = start_mirror(daemon, mirror, source, target, mirror->unmap, err);
        node_unref(target);
    }
    node_unref(source);
    return r;
}

const struct qmp_command commands_mirror[] = {
    {.name = "blockdev-mirror",
     .args = blockdev_mirror_opts,
     .args_size = sizeof(struct mirror_args),
     .run = run_blockdev_mirror},
    {.name = "drive-mirror",
     .args = drive_mirror_opts,
     .args_size = sizeof(struct mirror_args),
     .run = run_drive_mirror},
    {0},
};
