/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A bounded pool of threads for calls that block. Its threads know nothing of loops: a finished job
 * is handed back through loop_post(). Threads start with the first job and block all signals.
 */
#ifndef BLOCKSTEP_LOOP_OFFLOAD_H
#define BLOCKSTEP_LOOP_OFFLOAD_H

#include "loop/loop.h"

struct offload;

struct offload_job {
    struct list_link link;
    int (*call)(void *arg); /* on a thread of the pool */
    void *arg;
    int result;
    struct loop *loop;
    struct loop_task done; /* posted to the loop when the call has returned */
};

/* NULL when memory is out. */
struct offload *offload_new(unsigned threads);
/* Runs what is queued to its end, joins the threads. NULL is fine. */
void offload_free(struct offload *offload);
/* 0, or -errno when not one thread can be started. */
int offload_submit(struct offload *offload, struct offload_job *job);

#endif
