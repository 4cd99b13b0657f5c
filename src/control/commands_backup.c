/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockdev-backup: a point in time of a node, copied to another node. */
#include "control/commands.h"
#include "control/daemon.h"
#include "jobs/backup.h"

#include <errno.h>

struct backup_args {
    char *job_id, *device, *target, *bitmap, *filter_node_name;
    int sync, bitmap_mode, on_source_error, on_target_error;
    bool bitmap_mode_given, compress, auto_finalize, auto_dismiss;
    uint64_t speed;
};

/* In QEMU's order. */
enum { SYNC_TOP, SYNC_FULL, SYNC_NONE, SYNC_INCREMENTAL, SYNC_BITMAP };
static const char *const sync_names[] = {"top", "full", "none", "incremental", "bitmap", NULL};
static const char *const mode_names[] = {"on-success", "never", "always", NULL};
_Static_assert((int)BACKUP_BITMAP_ON_SUCCESS == 0 && (int)BACKUP_BITMAP_NEVER == 1 &&
                   (int)BACKUP_BITMAP_ALWAYS == 2,
               "order of mode_names");

#define BACKUP_OPT(name_, type_, field, ...)                                              \
    {                                                                                     \
        .name = (name_), .type = (type_), .offset = OPT_FIELD(struct backup_args, field), \
        __VA_ARGS__                                                                       \
    }

static const struct opt backup_opts[] = {
    BACKUP_OPT("job-id", OPT_STRING, job_id, .help = "name of the job (default: the device)"),
    BACKUP_OPT("device", OPT_STRING, device, .required = true, .help = "the source node"),
    BACKUP_OPT("target", OPT_STRING, target, .required = true,
               .help = "the node that gets the copy; of the same size"),
    BACKUP_OPT("sync", OPT_ENUM, sync, .required = true, .values = sync_names,
               .help = "what of the source is copied"),
    BACKUP_OPT("bitmap", OPT_STRING, bitmap, .help = "name of a bitmap of the source"),
    BACKUP_OPT("bitmap-mode", OPT_ENUM, bitmap_mode, .values = mode_names,
               .present = OPT_PRESENT(struct backup_args, bitmap_mode_given),
               .help = "when the bitmap ends with what has changed since the job's start only"),
    BACKUP_OPT("speed", OPT_UINT, speed, .max = INT64_MAX, .help = "bytes per second, 0: no limit"),
    BACKUP_OPT("compress", OPT_BOOL, compress, .help = "refused: no image here compresses"),
    BACKUP_OPT("on-source-error", OPT_ENUM, on_source_error, .values = job_on_error_names,
               .help = "what an error of the source comes to"),
    BACKUP_OPT("on-target-error", OPT_ENUM, on_target_error, .values = job_on_error_names,
               .help = "what an error of the target comes to"),
    BACKUP_OPT("filter-node-name", OPT_STRING, filter_node_name,
               .help = "name of the filter that is put above the source"),
    BACKUP_OPT("auto-finalize", OPT_BOOL, auto_finalize, .fallback = "on",
               .help = "whether it takes effect without job-finalize"),
    BACKUP_OPT("auto-dismiss", OPT_BOOL, auto_dismiss, .fallback = "on",
               .help = "whether the job goes when it has ended"),
    {0},
};

/* Texts and their order are QEMU's. */
static int check_bitmap(struct backup_args *args, struct node *source,
                        struct dirty_bitmap **ret_bitmap, struct err *err)
{
    bool by_bitmap = args->sync == SYNC_BITMAP || args->sync == SYNC_INCREMENTAL;

    if (by_bitmap && args->bitmap == NULL)
        return err_set(err, -EINVAL, "must provide a valid bitmap name for '%s' sync mode",
                       sync_names[args->sync]);
    if (args->sync == SYNC_INCREMENTAL) {
        if (args->bitmap_mode_given && args->bitmap_mode != BACKUP_BITMAP_ON_SUCCESS)
            return err_set(err, -EINVAL, "Bitmap sync mode must be '%s' when using sync mode '%s'",
                           mode_names[BACKUP_BITMAP_ON_SUCCESS], sync_names[args->sync]);
        args->bitmap_mode = BACKUP_BITMAP_ON_SUCCESS;
        args->bitmap_mode_given = true;
    }
    if (args->bitmap == NULL && args->bitmap_mode_given)
        return err_set(err, -EINVAL, "Cannot specify bitmap sync mode without a bitmap");
    if (args->bitmap == NULL)
        return 0;
    *ret_bitmap = dirty_bitmap_find(source, args->bitmap);
    if (*ret_bitmap == NULL)
        return err_set(err, -ENOENT, "Bitmap '%s' could not be found", args->bitmap);
    if (!args->bitmap_mode_given)
        return err_set(err, -EINVAL, "Bitmap sync mode must be given when providing a bitmap");
    if (dirty_bitmap_check(*ret_bitmap, err) < 0)
        return err->code;
    if (args->sync == SYNC_NONE)
        return err_set(err, -EINVAL, "sync mode '%s' does not produce meaningful bitmap outputs",
                       sync_names[args->sync]);
    if (args->bitmap_mode == BACKUP_BITMAP_NEVER && !by_bitmap)
        return err_set(err, -EINVAL,
                       "Bitmap sync mode '%s' has no meaningful effect when combined with sync "
                       "mode '%s'",
                       mode_names[args->bitmap_mode], sync_names[args->sync]);
    return 0;
}

static int start_backup(struct daemon *daemon, const struct backup_args *args, struct node *source,
                        struct node *target, struct dirty_bitmap *bitmap, struct err *err) MAY_WAIT
{
    static const enum backup_sync syncs[] = {
        [SYNC_TOP] = BACKUP_SYNC_TOP,       [SYNC_FULL] = BACKUP_SYNC_FULL,
        [SYNC_NONE] = BACKUP_SYNC_NONE,     [SYNC_INCREMENTAL] = BACKUP_SYNC_BITMAP,
        [SYNC_BITMAP] = BACKUP_SYNC_BITMAP,
    };
    const struct backup_options options = {
        .id = args->job_id != NULL ? args->job_id : args->device,
        .source = source,
        .target = target,
        .sync = syncs[args->sync],
        .bitmap = bitmap,
        .bitmap_mode = (enum backup_bitmap_mode)args->bitmap_mode,
        .filter_name = args->filter_node_name,
        .speed_bytes = args->speed,
        .on_source_error = (enum job_on_error)args->on_source_error,
        .on_target_error = (enum job_on_error)args->on_target_error,
    };
    struct job *job;
    int r = backup_new(&daemon->jobs, &options, &job, err);

    if (r < 0)
        return r;
    job->auto_finalize = args->auto_finalize;
    job->auto_dismiss = args->auto_dismiss;
    return job_start(job, err);
}

static int run_backup(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct backup_args *backup = args;
    struct daemon *daemon = call->context;
    struct node *source = NULL, *target = NULL;
    struct dirty_bitmap *bitmap = NULL;
    int r = command_find_device(daemon, backup->device, &source, err);

    if (r == 0)
        r = command_find_device(daemon, backup->target, &target, err);
    if (r == 0 && backup->compress)
        r = err_set(err, -EOPNOTSUPP, "Compression is not supported for this target: leave it out");
    if (r == 0)
        r = check_bitmap(backup, source, &bitmap, err);
    return r == 0 ? start_backup(daemon, backup, source, target, bitmap, err) : r;
}

const struct qmp_command commands_backup[] = {
    {.name = "blockdev-backup",
     .args = backup_opts,
     .args_size = sizeof(struct backup_args),
     .run = run_backup},
    {0},
};
