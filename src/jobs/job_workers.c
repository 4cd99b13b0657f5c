/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Several coroutines for one job. */
#include "jobs/job.h"

struct job_workers {
    struct job *job;
    int (*work)(struct job *job);
    struct co_group group;
};

static int workers_call_work(const struct job_workers *workers) MAY_WAIT
{
    return workers->work(workers->job);
}

static void workers_main(void *arg) MAY_WAIT
{
    struct job_workers *workers = arg;
    co_group_report(&workers->group, workers_call_work(workers));
    co_group_leave(&workers->group);
}

int job_run_workers(struct job *job, const char *name, uint64_t count, int (*work)(struct job *job))
{
    struct job_workers workers = {.job = job, .work = work};
    co_group_init(&workers.group);
    for (uint64_t i = 0; i < count; i++) {
        co_group_enter(&workers.group);
        int ret = co_spawn(graph_loop(job->list->graph), name, workers_main, &workers);
        if (ret == 0)
            continue;
        if (i == 0)
            co_group_report(&workers.group, ret);
        co_group_leave(&workers.group);
        break;
    }
    return co_group_wait(&workers.group);
}
