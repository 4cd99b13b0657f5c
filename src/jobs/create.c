/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "jobs/create.h"

/* The call as a whole is the unit of progress, as in QEMU. */
#define CREATE_PROGRESS 1u

static int create_call_run(const struct create_call *call, struct err *err) MAY_WAIT
{
    return call->run(call->arg, err);
}

static int create_run(struct job *job) MAY_WAIT
{
    const struct create_call *call = job->state;
    int ret = create_call_run(call, &job->err);
    job->done_bytes = CREATE_PROGRESS;
    return ret;
}

static void create_clean(struct job *job) MAY_WAIT
{
    const struct create_call *call = job->state;
    call->release(call->arg);
}

static const struct job_driver create_driver = {
    .type = "create",
    .not_block = true,
    .state_size = sizeof(struct create_call),
    .run = create_run,
    .clean = create_clean,
};

int create_new(struct job_list *list, const char *id, const struct create_call *call,
               struct job **ret_job, struct err *err)
{
    struct job *job;
    int ret = job_new(list, &create_driver, id, &job, err);
    if (ret < 0) {
        call->release(call->arg);
        return ret;
    }
    *(struct create_call *)job->state = *call;
    job->total_bytes = CREATE_PROGRESS;
    job->auto_dismiss = false;
    *ret_job = job;
    return 0;
}
