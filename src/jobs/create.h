/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The create job: one call that makes an image, run as a job so that its end is an event. It stays until it
 * is dismissed. */
#ifndef BLOCKSTEP_JOBS_CREATE_H
#define BLOCKSTEP_JOBS_CREATE_H

#include "jobs/job.h"

struct create_call {
    int (*run)(void *arg, struct err *err); /* may wait */
    void (*release)(void *arg);             /* once, whatever happens to the job */
    void *arg;
};

/* Takes `call.arg`, also on failure. */
int create_new(struct job_list *list, const char *id, const struct create_call *call,
               struct job **ret_job, struct err *err) MAY_WAIT;

#endif
