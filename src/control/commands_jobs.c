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

/* The families word it differently when there is no such job. */
static int find_job(struct qmp_call *call, const struct job_args *args, struct job **ret_job,
                    struct err *err)
{
    struct daemon *daemon = call->context;

    *ret_job = job_find(&daemon->jobs, args->id);
    return *ret_job != NULL ? 0 : err_set(err, -ENOENT, "Job not found");
}

static int find_block_job(struct qmp_call *call, const struct job_args *args, struct job **ret_job,
                          struct err *err)
{
    struct daemon *daemon = call->context;

    *ret_job = job_find(&daemon->jobs, args->id);
    if (*ret_job != NULL && !(*ret_job)->driver->not_block)
        return 0;
    return err_set_kind(err, ERR_DEVICE_NOT_ACTIVE, -ENOENT, "Block job '%s' not found", args->id);
}

/* A verb of both families that needs no more than the job. */
#define JOB_VERB(name)                                                                       \
    static int name##_one(struct job *job, struct err *err) MAY_WAIT                         \
    {                                                                                        \
        job_ref(job);                                                                        \
        int r = job_##name(job, err);                                                        \
        job_unref(job);                                                                      \
        return r;                                                                            \
    }                                                                                        \
    static int run_##name(struct qmp_call *call, void *args, struct err *err) MAY_WAIT       \
    {                                                                                        \
        struct job *job;                                                                     \
        return find_job(call, args, &job, err) < 0 ? err->code : name##_one(job, err);       \
    }                                                                                        \
    static int run_block_##name(struct qmp_call *call, void *args, struct err *err) MAY_WAIT \
    {                                                                                        \
        struct job *job;                                                                     \
        return find_block_job(call, args, &job, err) < 0 ? err->code : name##_one(job, err); \
    }

JOB_VERB(pause)
JOB_VERB(resume)
JOB_VERB(complete)
JOB_VERB(finalize)
JOB_VERB(dismiss)

static int cancel(struct job *job, bool force, struct err *err) MAY_WAIT
{
    job_ref(job);
    int r = job_cancel(job, force, err);
    job_unref(job);
    return r;
}

/* job-cancel always gives up; block-job-cancel lets a ready job complete, unless forced. */
static int run_cancel(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    struct job *job;

    return find_job(call, args, &job, err) < 0 ? err->code : cancel(job, true, err);
}

static int run_block_cancel(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct job_args *wanted = args;
    struct job *job;

    return find_block_job(call, args, &job, err) < 0 ? err->code : cancel(job, wanted->force, err);
}

static int run_block_set_speed(struct qmp_call *call, void *args, struct err *err)
{
    const struct job_args *limit = args;
    struct job *job;

    return find_block_job(call, limit, &job, err) < 0 ? err->code
                                                      : job_set_speed(job, limit->speed, err);
}

static int query(struct qmp_call *call, struct json_object *(*describe)(struct job *job),
                 bool others, struct err *err)
{
    struct daemon *daemon = call->context;
    struct job *job = NULL;

    call->result = json_object_new_array();
    if (call->result == NULL)
        return err_no_memory(err);
    while ((job = job_next(&daemon->jobs, job)) != NULL) {
        if (job->driver->not_block && !others)
            continue;
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
    return query(call, job_query, true, err);
}

static int run_query_block_jobs(struct qmp_call *call, void *args, struct err *err)
{
    return query(call, job_query_block, false, err);
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
    JOB_COMMAND("job-cancel", id_opts, run_cancel),
    JOB_COMMAND("job-complete", id_opts, run_complete),
    JOB_COMMAND("job-dismiss", id_opts, run_dismiss),
    JOB_COMMAND("job-finalize", id_opts, run_finalize),
    JOB_COMMAND("block-job-pause", device_opts, run_block_pause),
    JOB_COMMAND("block-job-resume", device_opts, run_block_resume),
    JOB_COMMAND("block-job-cancel", device_cancel_opts, run_block_cancel),
    JOB_COMMAND("block-job-complete", device_opts, run_block_complete),
    JOB_COMMAND("block-job-dismiss", id_opts, run_block_dismiss),
    JOB_COMMAND("block-job-finalize", id_opts, run_block_finalize),
    JOB_COMMAND("block-job-set-speed", device_speed_opts, run_block_set_speed),
    {0},
};
