/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/offload.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#define OFFLOAD_THREADS_MAX 64u

struct offload {
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    struct list jobs; /* struct offload_job */
    bool ending;
    unsigned limit, started, idle;
    pthread_t threads[OFFLOAD_THREADS_MAX];
};

struct offload *offload_new(unsigned threads)
{
    struct offload *offload = calloc(1, sizeof(*offload));
    if (offload == NULL)
        return NULL;
    offload->limit = MIN(threads, OFFLOAD_THREADS_MAX);
    list_init(&offload->jobs);
    pthread_mutex_init(&offload->lock, NULL);
    pthread_cond_init(&offload->wanted, NULL);
    return offload;
}

static void *offload_thread(void *arg)
{
    struct offload *offload = arg;

    pthread_mutex_lock(&offload->lock);
    for (;;) {
        struct offload_job *job = LIST_POP_FRONT(&offload->jobs, struct offload_job, link);
        if (job != NULL) {
            pthread_mutex_unlock(&offload->lock);
            job->result = job->call(job->arg);
            loop_post(job->loop, &job->done); /* the job may be gone from here on */
            pthread_mutex_lock(&offload->lock);
        } else if (offload->ending) {
            break;
        } else {
            offload->idle++;
            pthread_cond_wait(&offload->wanted, &offload->lock);
            offload->idle--;
        }
    }
    pthread_mutex_unlock(&offload->lock);
    return NULL;
}

/* Under the lock. */
static int offload_start_thread(struct offload *offload)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&offload->threads[offload->started], NULL, offload_thread, offload);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result == 0)
        offload->started++;
    return -result;
}

int offload_submit(struct offload *offload, struct offload_job *job)
{
    int result = 0;

    pthread_mutex_lock(&offload->lock);
    if (offload->idle == 0 && offload->started < offload->limit)
        result = offload_start_thread(offload);
    if (offload->started > 0) {
        list_push_back(&offload->jobs, &job->link);
        pthread_cond_signal(&offload->wanted);
        result = 0;
    }
    pthread_mutex_unlock(&offload->lock);
    return result;
}

void offload_free(struct offload *offload)
{
    if (offload == NULL)
        return;
    pthread_mutex_lock(&offload->lock);
    offload->ending = true;
    pthread_cond_broadcast(&offload->wanted);
    pthread_mutex_unlock(&offload->lock);
    for (unsigned i = 0; i < offload->started; i++)
        pthread_join(offload->threads[i], NULL);
    pthread_cond_destroy(&offload->wanted);
    pthread_mutex_destroy(&offload->lock);
    free(offload);
}
