/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Jobs, by both of the protocol's families: job-* with "id" and block-job-* with "device". */
#include "control/commands.h"
#include "control/daemon.h"

#include <errno.h>

struct job_args {
    char *id;
    bool force;
    uint64_t speed;
};

#define ID_OPT(name_)                                                                  \
    {                                                                                  \
        .name = (name_), .type = OPT_STRING, .offset = OPT_FIELD(struct job_args, id), \
        .required = true, .help = "which job"                                          \
    }
#define FORCE_OPT                                                                       \
    {                                                                                   \
        .name = "force", .type = OPT_BOOL, .offset = OPT_FIELD(struct job_args, force), \
        .help = "also where a ready job would complete"                                 \
    }
#define SPEED_OPT                                                                       \
    {                                                                                   \
        .name = "speed", .type = OPT_UINT, .offset = OPT_FIELD(struct job_args, speed), \
        .required = true, .help = "bytes per second, 0: no limit"                       \
    }

static const struct opt id_opts[] = {ID_OPT("id"), {0}};
static const struct opt device_opts[] = {ID_OPT("device"), {0}};
static const struct opt device_cancel_opts[] = {ID_OPT("device"), FORCE_OPT, {0}};
static const struct opt device_speed_opts[] = {ID_OPT("device"), SPEED_OPT, {0}};

static int find(struct qmp_call *call, const struct job_args *args, struct job **ret_job,
                struct err *err)
{
    struct daemon *daemon = call->context;

    return job_get(&daemon->jobs, args->id, ret_job, err);
}

static int run_pause(struct qmp_call *call, void *args, struct err *err)
{
    struct job *job;

    return find(call, args, &job, err) < 0 ? err->code : job_pause(job, err);
}

static int run_resume(struct qmp_call *call, void *args, struct err *err)
{
    struct job *job;

    return find(call, args, &job, err) < 0 ? err->code : job_resume(job, err);
}

static int cancel(struct qmp_call *call, const struct job_args *args, bool force, struct err *err)
    MAY_WAIT
{
    struct job *job;
    int r = find(call, args, &job, err);

    if (r < 0)
        return r;
    job_ref(job);
    r = job_cancel(job, force, err);
    job_unref(job);
    return r;
}

/* job-cancel always gives up; block-job-cancel lets a ready job complete, unless forced. */
static int run_job_cancel(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    return cancel(call, args, true, err);
}

static int run_block_job_cancel(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct job_args *wanted = args;

    return cancel(call, wanted, wanted->force, err);
}

static int run_complete(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct job *job;
    int r = find(call, args, &job, err);

    if (r < 0)
        return r;
    job_ref(job);
    r = job_complete(job, err);
    job_unref(job);
    return r;
}

static int run_dismiss(struct qmp_call *call, void *args, struct err *err)
{
    struct job *job;

    return find(call, args, &job, err) < 0 ? err->code : job_dismiss(job, err);
}

/* No job waits for it: all finalize by themselves. */
static int run_finalize(struct qmp_call *call, void *args, struct err *err)
{
    struct job *job;

    if (find(call, args, &job, err) < 0)
        return err->code;
    return err_set(err, -EINVAL, "Job '%s' in state '%s' cannot accept command verb 'finalize'",
                   job->id, job_status_name(job->status));
}

static int run_set_speed(struct qmp_call *call, void *args, struct err *err)
{
    const struct job_args *limit = args;
    struct job *job;

    return find(call, limit, &job, err) < 0 ? err->code : job_set_speed(job, limit->speed, err);
}

static int query(struct qmp_call *call, struct json_object *(*describe)(const struct job *job),
                 struct err *err)
{
    struct daemon *daemon = call->context;
    struct job *job = NULL;

    call->result = json_object_new_array();
    if (call->result == NULL)
        return err_no_memory(err);
    while ((job = job_next(&daemon->jobs, job)) != NULL) {
        struct json_object *entry = describe(job);

        if (entry == NULL || json_object_array_add(call->result, entry) < 0) {
            json_object_put(entry);
            return err_no_memory(err);
        }
    }
    return 0;
}

static int run_query_jobs(struct qmp_call *call, void *args, struct err *err)
{
    return query(call, job_query, err);
}

static int run_query_block_jobs(struct qmp_call *call, void *args, struct err *err)
{
    return query(call, job_query_block, err);
}

#define JOB_COMMAND(name_, opts_, run_)                                                       \
    {                                                                                         \
        .name = (name_), .args = (opts_), .args_size = sizeof(struct job_args), .run = (run_) \
    }

const struct qmp_command commands_jobs[] = {
    {.name = "query-jobs", .returns = QMP_RETURNS_LIST, .run = run_query_jobs},
    {.name = "query-block-jobs", .returns = QMP_RETURNS_LIST, .run = run_query_block_jobs},
    JOB_COMMAND("job-pause", id_opts, run_pause),
    JOB_COMMAND("job-resume", id_opts, run_resume),
    JOB_COMMAND("job-cancel", id_opts, run_job_cancel),
    JOB_COMMAND("job-complete", id_opts, run_complete),
    JOB_COMMAND("job-dismiss", id_opts, run_dismiss),
    JOB_COMMAND("job-finalize", id_opts, run_finalize),
    JOB_COMMAND("block-job-pause", device_opts, run_pause),
    JOB_COMMAND("block-job-resume", device_opts, run_resume),
    JOB_COMMAND("block-job-cancel", device_cancel_opts, run_block_job_cancel),
    JOB_COMMAND("block-job-complete", device_opts, run_complete),
    JOB_COMMAND("block-job-dismiss", id_opts, run_dismiss),
    JOB_COMMAND("block-job-finalize", id_opts, run_finalize),
    JOB_COMMAND("block-job-set-speed", device_speed_opts, run_set_speed),
    {0},
};
