/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "jobs/job.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The speed limit is kept over stretches of this length. */
#define JOB_SLICE_NS (100 * NS_PER_MS)

static const char *const job_status_names[] = {
    [JOB_UNDEFINED] = "undefined", [JOB_CREATED] = "created", [JOB_RUNNING] = "running",
    [JOB_PAUSED] = "paused",       [JOB_READY] = "ready",     [JOB_STANDBY] = "standby",
    [JOB_WAITING] = "waiting",     [JOB_PENDING] = "pending", [JOB_ABORTING] = "aborting",
    [JOB_CONCLUDED] = "concluded", [JOB_NULL] = "null",
};

const char *const job_on_error_names[] = {"report", "ignore", "enospc", "stop", "auto", NULL};

enum job_verb {
    JOB_VERB_CANCEL,
    JOB_VERB_PAUSE,
    JOB_VERB_RESUME,
    JOB_VERB_SET_SPEED,
    JOB_VERB_COMPLETE,
    JOB_VERB_FINALIZE,
    JOB_VERB_DISMISS,
};

#define IN(status) (1u << (status))
#define WORKING \
    (IN(JOB_CREATED) | IN(JOB_RUNNING) | IN(JOB_PAUSED) | IN(JOB_READY) | IN(JOB_STANDBY))

static const struct {
    const char *name;
    unsigned allowed_in;
} job_verbs[] = {
    [JOB_VERB_CANCEL] = {"cancel", WORKING | IN(JOB_WAITING) | IN(JOB_PENDING)},
    [JOB_VERB_PAUSE] = {"pause", WORKING},
    [JOB_VERB_RESUME] = {"resume", WORKING},
    [JOB_VERB_SET_SPEED] = {"set-speed", WORKING},
    [JOB_VERB_COMPLETE] = {"complete", IN(JOB_READY) | IN(JOB_STANDBY)},
    [JOB_VERB_FINALIZE] = {"finalize", IN(JOB_PENDING)},
    [JOB_VERB_DISMISS] = {"dismiss", IN(JOB_CONCLUDED)},
};

static int job_check_verb(const struct job *job, enum job_verb verb, struct err *err)
{
    if ((job_verbs[verb].allowed_in & IN(job->status)) != 0)
        return 0;
    return err_set(err, -EINVAL, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
                   job_status_name(job->status), job_verbs[verb].name);
}

const char *job_status_name(enum job_status status)
{
    return job_status_names[status];
}

static uint64_t job_now(const struct job *job)
{
    return loop_now_ns(graph_loop(job->list->graph));
}

/* An event that memory is too short for is lost: queries show the state all the same. */
static void job_emit(struct job *job, const char *name, struct json_object *data)
{
    if (data != NULL)
        graph_event(job->list->graph, name, data);
}

static void job_set_status(struct job *job, enum job_status status)
{
    if (job->status == status)
        return;
    job->status = status;
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (data == NULL || json_add_string(data, "id", job->id) < 0 ||
        json_add_string(data, "status", job_status_name(status)) < 0)
        return;
    job_emit(job, "JOB_STATUS_CHANGE", TAKE_PTR(data));
}

static void job_count(struct job *job)
{
    if (job->driver->count != NULL)
        job->driver->count(job);
}

static void job_emit_pending(struct job *job)
{
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (job->driver->not_block || data == NULL ||
        json_add_string(data, "type", job->driver->type) < 0 ||
        json_add_string(data, "id", job->id) < 0)
        return;
    job_emit(job, "BLOCK_JOB_PENDING", TAKE_PTR(data));
}

static int job_add_error(const struct job *job, struct json_object *object, const char *key)
{
    if (job->result >= 0 || job->result == -ECANCELED)
        return 0;
    return json_add_string(object, key, job->err.text);
}

static void job_emit_block(struct job *job, const char *name)
{
    if (job->driver->not_block)
        return;
    job_count(job);
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (data == NULL || json_add_string(data, "type", job->driver->type) < 0 ||
        json_add_string(data, "device", job->id) < 0 ||
        json_add_uint(data, "len", job->total_bytes) < 0 ||
        json_add_uint(data, "offset", job->done_bytes) < 0 ||
        json_add_uint(data, "speed", job->speed_bytes) < 0 || job_add_error(job, data, "error") < 0)
        return;
    job_emit(job, name, TAKE_PTR(data));
}

/* --- the list --- */

void job_list_init(struct job_list *list, struct graph *graph)
{
    *list = (struct job_list){.graph = graph};
    list_init(&list->jobs);
    co_queue_init(&list->changed);
}

struct job *job_next(struct job_list *list, struct job *job)
{
    struct list_link *next = job == NULL ? list->jobs.head.next : job->link.next;
    return next == &list->jobs.head ? NULL : LIST_ENTRY(next, struct job, link);
}

struct job *job_find(struct job_list *list, const char *id)
{
    LIST_FOR_EACH(job, &list->jobs, struct job, link) {
        if (strcmp(job->id, id) == 0)
            return job;
    }
    return NULL;
}

struct job *job_ref(struct job *job)
{
    assert(job->refs > 0);
    job->refs++;
    return job;
}

void job_unref(struct job *job)
{
    if (job == NULL)
        return;
    assert(job->refs > 0);
    if (--job->refs > 0)
        return;
    assert(!list_linked(&job->link));
    free(job->state);
    free(job);
}

/* Takes the job out of the list, and the list's reference with it. */
static void job_forget(struct job *job)
{
    assert(list_linked(&job->link));
    job_set_status(job, JOB_NULL);
    list_remove(&job->link);
    job->list->count--;
    co_queue_wake_all(&job->list->changed);
    job_unref(job);
}

void job_list_end(struct job_list *list)
{
    LIST_FOR_EACH_SAFE(job, &list->jobs, struct job, link) {
        if (job->running)
            job_interrupt(job);
        else
            job_forget(job);
    }
    struct job *job;
    while ((job = job_next(list, NULL)) != NULL) {
        job_ref(job);
        (void)job_wait(job);
        if (list_linked(&job->link))
            job_forget(job);
        job_unref(job);
    }
}

/* --- making --- */

static int job_pick_id(struct job_list *list, const char *id, char *text, struct err *err)
{
    if (id != NULL) {
        if (id[0] == '\0' || strlen(id) >= JOB_ID_BYTES)
            return err_set(err, -EINVAL, "Invalid job ID '%s': 1 to %u bytes are fine", id,
                           JOB_ID_BYTES - 1);
        if (job_find(list, id) != NULL)
            return err_set(err, -EEXIST, "Job ID '%s' already in use", id);
        snprintf(text, JOB_ID_BYTES, "%s", id);
        return 0;
    }
    /* One of JOBS_MAX + 1 names must be free. */
    for (unsigned number = 0; number <= JOBS_MAX; number++) {
        snprintf(text, JOB_ID_BYTES, "job%u", number);
        if (job_find(list, text) == NULL)
            break;
    }
    return 0;
}

int job_new(struct job_list *list, const struct job_driver *driver, const char *id,
            struct job **ret_job, struct err *err)
{
    if (list->count >= JOBS_MAX)
        return err_set(err, -EBUSY, "there are %u jobs already, the most that can be", JOBS_MAX);
    char text[JOB_ID_BYTES];
    int ret = job_pick_id(list, id, text, err);
    if (ret < 0)
        return ret;
    CLEANUP(free_ptr) struct job *job = calloc(1, sizeof(*job));
    if (job == NULL)
        return err_no_memory(err);
    job->state = calloc(1, driver->state_size + 1);
    if (job->state == NULL)
        return err_no_memory(err);
    job->list = list;
    job->driver = driver;
    job->refs = 1;
    job->auto_finalize = job->auto_dismiss = true;
    memcpy(job->id, text, sizeof(job->id));
    co_queue_init(&job->changed);
    list_push_back(&list->jobs, &job->link);
    list->count++;
    job_set_status(job, JOB_CREATED);
    *ret_job = TAKE_PTR(job);
    return 0;
}

/* --- the run --- */

static int job_call_run(struct job *job) MAY_WAIT
{
    return job->driver->run(job);
}

static void job_call_clean(struct job *job) MAY_WAIT
{
    if (job->driver->clean != NULL)
        job->driver->clean(job);
}

void job_drop(struct job *job)
{
    assert(job->status == JOB_CREATED);
    job_call_clean(job);
    job_forget(job);
}

static void job_call_ended(struct job *job) MAY_WAIT
{
    if (job->ended != NULL)
        job->ended(job, job->ended_arg);
}

static void job_conclude(struct job *job) MAY_WAIT
{
    if (job->result < 0) {
        if (!err_is_set(&job->err))
            err_set_errno(&job->err, job->result, "%s job '%s'", job->driver->type, job->id);
        job_set_status(job, JOB_ABORTING);
    }
    job_call_clean(job);
    if (job->result == -ECANCELED)
        job_emit_block(job, "BLOCK_JOB_CANCELLED");
    else
        job_emit_block(job, "BLOCK_JOB_COMPLETED");
    job_set_status(job, JOB_CONCLUDED);
    job_call_ended(job);
    job->running = false;
    job->co = NULL;
}

static void job_main(void *arg) MAY_WAIT
{
    struct job *job = arg;
    job->co = co_self();
    job->result = job_pause_point(job);
    if (job->result == 0)
        job->result = job_call_run(job);
    if (job->result == 0)
        job->result = job_await_finalize(job);
    if (job->result < 0 && job_should_end(job))
        job->result = -ECANCELED;
    job_conclude(job);
    if (job->auto_dismiss && list_linked(&job->link))
        job_forget(job);
    co_queue_wake_all(&job->changed);
    job_unref(job);
}

int job_start(struct job *job, struct err *err)
{
    assert(job->status == JOB_CREATED);
    job->running = true;
    job->started_ns = job->slice_start_ns = job_now(job);
    job_set_status(job, JOB_RUNNING);
    int ret = co_spawn(graph_loop(job->list->graph), "job", job_main, job_ref(job));
    if (ret < 0) {
        job_unref(job);
        job->running = false;
        job_set_status(job, JOB_CREATED);
        err_set_errno(err, ret, "cannot start job '%s'", job->id);
        job_drop(job);
        return ret;
    }
    return 0;
}

int job_wait(struct job *job)
{
    assert(job->status != JOB_CREATED);
    while (job->running)
        co_queue_wait(&job->changed);
    return job->result;
}

/* --- verbs --- */

int job_pause(struct job *job, struct err *err)
{
    int ret = job_check_verb(job, JOB_VERB_PAUSE, err);
    if (ret < 0)
        return ret;
    if (job->user_paused)
        return err_set(err, -EINVAL, "Job is already paused");
    job->user_paused = true;
    job->pauses++;
    co_queue_wake_all(&job->changed);
    return 0;
}

static void job_end_pause(struct job *job)
{
    job->user_paused = false;
    job->pauses--;
    job->io_error = 0;
}

int job_resume(struct job *job, struct err *err)
{
    if (!job->user_paused)
        return err_set(err, -EINVAL, "Can't resume a job that was not paused");
    int ret = job_check_verb(job, JOB_VERB_RESUME, err);
    if (ret < 0)
        return ret;
    job_end_pause(job);
    co_queue_wake_all(&job->changed);
    return 0;
}

int job_cancel(struct job *job, bool force, struct err *err)
{
    if (!force && job->user_paused)
        return err_set(err, -EBUSY, "The block job for device '%s' is currently paused", job->id);
    int ret = job_check_verb(job, JOB_VERB_CANCEL, err);
    if (ret < 0)
        return ret;
    if (job->status == JOB_CREATED) {
        job_drop(job);
        return 0;
    }
    if (!force && job->status == JOB_READY && job->driver->keeps_copy_on_cancel)
        job->kept = true;
    else
        job->cancelled = true;
    if (job->user_paused)
        job_end_pause(job);
    co_queue_wake_all(&job->changed);
    return 0;
}

static int job_call_complete(struct job *job, struct err *err) MAY_WAIT
{
    return job->driver->complete(job, err);
}

int job_complete(struct job *job, struct err *err)
{
    int ret = job_check_verb(job, JOB_VERB_COMPLETE, err);
    if (ret < 0)
        return ret;
    if (job->driver->complete == NULL || job->kept)
        return err_set(err, -EOPNOTSUPP, "The active block job '%s' cannot be completed", job->id);
    return job_call_complete(job, err);
}

int job_finalize(struct job *job, struct err *err)
{
    int ret = job_check_verb(job, JOB_VERB_FINALIZE, err);
    if (ret < 0)
        return ret;
    job->finalize = true;
    co_queue_wake_all(&job->changed);
    return 0;
}

int job_dismiss(struct job *job, struct err *err)
{
    int ret = job_check_verb(job, JOB_VERB_DISMISS, err);
    if (ret < 0)
        return ret;
    if (job->running)
        return err_set(err, -EBUSY, "job '%s' is about to end", job->id);
    job_forget(job);
    return 0;
}

int job_set_speed(struct job *job, uint64_t bytes_per_second, struct err *err)
{
    int ret = job_check_verb(job, JOB_VERB_SET_SPEED, err);
    if (ret < 0)
        return ret;
    job->speed_bytes = bytes_per_second;
    job->slice_start_ns = job_now(job);
    job->slice_bytes = 0;
    co_queue_wake_all(&job->changed);
    return 0;
}

void job_interrupt(struct job *job)
{
    job->interrupted = true;
    co_queue_wake_all(&job->changed);
}

/* --- for the drivers --- */

bool job_should_end(const struct job *job)
{
    return job->cancelled || job->interrupted;
}

int job_pause_point(struct job *job)
{
    /* Several workers of a job may wait here: the first changes the status, and the first changes it
     * back. */
    while (job->pauses > 0 && !job_should_end(job)) {
        if (job->status == JOB_READY)
            job_set_status(job, JOB_STANDBY);
        else if (job->status == JOB_RUNNING)
            job_set_status(job, JOB_PAUSED);
        co_queue_wait(&job->changed);
    }
    if (job->status == JOB_STANDBY)
        job_set_status(job, JOB_READY);
    else if (job->status == JOB_PAUSED)
        job_set_status(job, JOB_RUNNING);
    return job_should_end(job) ? -ECANCELED : 0;
}

int job_throttle(struct job *job, uint64_t bytes)
{
    job->slice_bytes += bytes;
    while (job->speed_bytes > 0 && job->pauses == 0 && !job_should_end(job)) {
        uint64_t now_ns = job_now(job);
        uint64_t slice_limit = MAX(job->speed_bytes / (NS_PER_S / JOB_SLICE_NS), UINT64_C(1));
        /* Whole slices that have passed pay for what was taken. */
        uint64_t passed = (now_ns - job->slice_start_ns) / JOB_SLICE_NS;
        job->slice_start_ns += passed * JOB_SLICE_NS;
        if (passed >= job->slice_bytes / slice_limit + 1)
            job->slice_bytes = 0;
        else
            job->slice_bytes -= MIN(job->slice_bytes, passed * slice_limit);
        if (job->slice_bytes <= slice_limit)
            break;
        (void)co_queue_wait_until(&job->changed, job->slice_start_ns + JOB_SLICE_NS);
    }
    return job_pause_point(job);
}

void job_set_ready(struct job *job)
{
    job_set_status(job, JOB_READY);
    job_emit_block(job, "BLOCK_JOB_READY");
}

int job_await_finalize(struct job *job)
{
    if (job->finalized)
        return 0;
    job_set_status(job, JOB_WAITING);
    job_set_status(job, JOB_PENDING);
    if (!job->auto_finalize) {
        job_emit_pending(job);
        while (!job->finalize && !job_should_end(job))
            co_queue_wait(&job->changed);
        if (!job->finalize)
            return -ECANCELED;
    }
    job->finalized = true;
    return 0;
}

static void job_emit_error(struct job *job, bool reading, const char *action)
{
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (data == NULL || json_add_string(data, "device", job->id) < 0 ||
        json_add_string(data, "operation", reading ? "read" : "write") < 0 ||
        json_add_string(data, "action", action) < 0)
        return;
    job_emit(job, "BLOCK_JOB_ERROR", TAKE_PTR(data));
}

void job_report_error(struct job *job, bool reading)
{
    job_emit_error(job, reading, "report");
}

int job_handle_error(struct job *job, enum job_on_error on_error, bool reading, int code)
{
    if (on_error == JOB_ON_ERROR_ENOSPC || on_error == JOB_ON_ERROR_AUTO)
        on_error = code == -ENOSPC ? JOB_ON_ERROR_STOP : JOB_ON_ERROR_REPORT;
    job_emit_error(job, reading, job_on_error_names[on_error]);
    if (on_error == JOB_ON_ERROR_REPORT)
        return code;
    if (on_error == JOB_ON_ERROR_STOP && !job->user_paused) {
        job->user_paused = true;
        job->pauses++;
        job->io_error = code;
    }
    return 0;
}

uint64_t job_rate(const struct job *job)
{
    uint64_t elapsed_ns = job_now(job) - job->started_ns;
    if (elapsed_ns == 0)
        return 0;
    return (uint64_t)((double)job->done_bytes * (double)NS_PER_S / (double)elapsed_ns);
}

/* --- for queries --- */

struct json_object *job_query(struct job *job)
{
    job_count(job);
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    if (object == NULL || json_add_string(object, "id", job->id) < 0 ||
        json_add_string(object, "type", job->driver->type) < 0 ||
        json_add_string(object, "status", job_status_name(job->status)) < 0 ||
        json_add_uint(object, "current-progress", job->done_bytes) < 0 ||
        json_add_uint(object, "total-progress", job->total_bytes) < 0 ||
        job_add_error(job, object, "error") < 0)
        return NULL;
    return TAKE_PTR(object);
}

static const char *job_io_status(const struct job *job)
{
    return job->io_error == 0 ? "ok" : job->io_error == -ENOSPC ? "nospace" : "failed";
}

struct json_object *job_query_block(struct job *job)
{
    job_count(job);
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    if (object == NULL || json_add_string(object, "device", job->id) < 0 ||
        json_add_string(object, "type", job->driver->type) < 0 ||
        json_add_uint(object, "len", job->total_bytes) < 0 ||
        json_add_uint(object, "offset", job->done_bytes) < 0 ||
        json_add_bool(object, "busy", job->running && job->status != JOB_CONCLUDED) < 0 ||
        json_add_bool(object, "paused", job->pauses > 0) < 0 ||
        json_add_uint(object, "speed", job->speed_bytes) < 0 ||
        json_add_string(object, "io-status", job_io_status(job)) < 0 ||
        json_add_bool(object, "ready", job->status == JOB_READY || job->status == JOB_STANDBY) <
            0 ||
        json_add_string(object, "status", job_status_name(job->status)) < 0 ||
        json_add_bool(object, "auto-finalize", job->auto_finalize) < 0 ||
        json_add_bool(object, "auto-dismiss", job->auto_dismiss) < 0 ||
        job_add_error(job, object, "error") < 0)
        return NULL;
    return TAKE_PTR(object);
}
