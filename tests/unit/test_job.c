/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "harness.h"

#include "base/json.h"
#include "drivers/table.h"
#include "jobs/job.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define EVENTS 64u

struct world {
    struct graph *graph;
    struct job_list list;
    char events[EVENTS][80];
    unsigned event_count;
    unsigned ended;
    int ended_result;
};

/* "JOB_STATUS_CHANGE running", "BLOCK_JOB_COMPLETED" */
static void world_event(void *arg, const char *name, struct json_object *data)
{
    struct world *world = arg;
    struct json_object *status = json_object_object_get(data, "status");
    assert_true(world->event_count < EVENTS);
    snprintf(world->events[world->event_count++], sizeof(world->events[0]), "%s%s%s", name,
             status != NULL ? " " : "", status != NULL ? json_object_get_string(status) : "");
    json_object_put(data);
}

static void world_open(struct world *world)
{
    *world = (struct world){0};
    world->graph = graph_new(loop_current(), drivers_table);
    assert_non_null(world->graph);
    graph_set_events(world->graph, world_event, world);
    job_list_init(&world->list, world->graph);
}

static void world_close(struct world *world) MAY_WAIT
{
    job_list_end(&world->list);
    assert_int_equal(world->list.count, 0);
    graph_free(world->graph);
}

static void expect_events(struct world *world, const char *const *names)
{
    unsigned count = 0;
    for (; names[count] != NULL; count++) {
        assert_true(count < world->event_count);
        assert_string_equal(world->events[count], names[count]);
    }
    assert_int_equal(world->event_count, count);
    world->event_count = 0;
}

/* A job of `total` pieces of a kilobyte; it stands still after `stop_at` until it is told to go. */
struct counter {
    unsigned total, stop_at;
    bool go, ready_first, complete;
    int fail;
    struct co_queue wake;
};

static int counter_run(struct job *job) MAY_WAIT
{
    struct counter *counter = job->state;
    job->total_bytes = counter->total * UINT64_C(1024);
    for (unsigned i = 0; i < counter->total; i++) {
        while (i == counter->stop_at && !counter->go && !job_should_end(job) && job->pauses == 0)
            (void)co_queue_wait_until(&job->changed, loop_now_ns(loop_current()) + NS_PER_MS);
        int ret = job_throttle(job, 1024);
        if (ret < 0)
            return ret;
        job->done_bytes += 1024;
    }
    if (counter->ready_first) {
        job_set_ready(job);
        while (!counter->complete) {
            int ret = job_pause_point(job);
            if (ret < 0)
                return ret;
            (void)co_queue_wait_until(&job->changed, loop_now_ns(loop_current()) + NS_PER_MS);
        }
    }
    return counter->fail;
}

static int counter_complete(struct job *job, struct err *err) MAY_WAIT
{
    struct counter *counter = job->state;
    counter->complete = true;
    co_queue_wake_all(&job->changed);
    return 0;
}

static const struct job_driver counter_driver = {
    .type = "commit",
    .state_size = sizeof(struct counter),
    .run = counter_run,
    .complete = counter_complete,
};

static void world_job_ended(struct job *job, void *arg) MAY_WAIT
{
    struct world *world = arg;
    co_sleep(NS_PER_MS); /* whoever waits for the job waits for this too */
    world->ended++;
    world->ended_result = job->result;
}

static struct job *counter_new(struct world *world, const char *id, struct counter counter)
{
    struct job *job;
    struct err err = ERR_INIT;
    assert_int_equal(job_new(&world->list, &counter_driver, id, &job, &err), 0);
    *(struct counter *)job->state = counter;
    job->ended = world_job_ended;
    job->ended_arg = world;
    return job;
}

static struct job *counter_start(struct world *world, const char *id, struct counter counter)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    struct job *job = job_ref(counter_new(world, id, counter));
    assert_int_equal(job_start(job, &err), 0);
    return job;
}

TEST_LOOP(a_job_goes_through_the_states_and_events_that_qmp_knows)
{
    struct world world;
    world_open(&world);
    struct job *job = counter_start(&world, "j", (struct counter){.total = 3, .stop_at = 9});
    assert_int_equal(job_wait(job), 0);
    assert_int_equal(world.ended, 1);
    assert_int_equal(job->done_bytes, 3 * 1024);
    co_sleep(NS_PER_MS);
    expect_events(&world,
                  (const char *const[]){"JOB_STATUS_CHANGE created", "JOB_STATUS_CHANGE running",
                                        "JOB_STATUS_CHANGE waiting", "JOB_STATUS_CHANGE pending",
                                        "BLOCK_JOB_COMPLETED", "JOB_STATUS_CHANGE concluded",
                                        "JOB_STATUS_CHANGE null", NULL});
    assert_null(job_next(&world.list, NULL));
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(a_failed_job_says_why_and_stays_until_it_is_dismissed)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = counter_new(&world, "j",
                                  (struct counter){.total = 1, .stop_at = 9, .fail = -EIO});
    job->auto_dismiss = false;
    assert_int_equal(job_start(job, &err), 0);
    assert_int_equal(job_wait(job), -EIO);
    assert_int_equal(job->status, JOB_CONCLUDED);
    assert_int_equal(world.ended_result, -EIO);
    struct json_object *query = job_query(job);
    assert_non_null(query);
    assert_string_equal(json_object_get_string(json_object_object_get(query, "status")),
                        "concluded");
    assert_non_null(strstr(json_object_get_string(json_object_object_get(query, "error")),
                           "Input/output error"));
    json_object_put(query);
    world.event_count = 0;
    assert_int_equal(job_dismiss(job, &err), 0);
    expect_events(&world, (const char *const[]){"JOB_STATUS_CHANGE null", NULL});
    world_close(&world);
}

TEST_LOOP(a_paused_job_does_nothing_until_it_is_resumed)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = counter_start(&world, "j", (struct counter){.total = 9, .stop_at = 3});
    test_wait_until(job->done_bytes == 3 * 1024);
    assert_int_equal(job_resume(job, &err), -EINVAL);
    assert_int_equal(job_pause(job, &err), 0);
    assert_int_equal(job_pause(job, &err), -EINVAL);
    test_wait_until(job->status == JOB_PAUSED);
    ((struct counter *)job->state)->go = true;
    co_sleep(10 * NS_PER_MS);
    assert_true(job->done_bytes <= 4 * 1024);
    assert_int_equal(job_resume(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    assert_int_equal(job->done_bytes, 9 * 1024);
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(a_cancelled_job_ends_also_while_paused)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = counter_start(&world, "j", (struct counter){.total = 9, .stop_at = 3});
    assert_int_equal(job_pause(job, &err), 0);
    test_wait_until(job->status == JOB_PAUSED);
    world.event_count = 0;
    assert_int_equal(job_cancel(job, false, &err), -EBUSY);
    err_clear(&err);
    assert_int_equal(job_cancel(job, true, &err), 0);
    assert_int_equal(job_wait(job), -ECANCELED);
    co_sleep(NS_PER_MS);
    expect_events(&world,
                  (const char *const[]){"JOB_STATUS_CHANGE running", "JOB_STATUS_CHANGE aborting",
                                        "BLOCK_JOB_CANCELLED", "JOB_STATUS_CHANGE concluded",
                                        "JOB_STATUS_CHANGE null", NULL});
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(a_speed_limit_holds_and_can_be_lifted)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = counter_new(&world, "j", (struct counter){.total = 100, .stop_at = 200});
    job_ref(job);
    assert_int_equal(job_set_speed(job, 100 * 1024, &err), 0);
    uint64_t begin_ns = loop_clock_ns(loop_current());
    assert_int_equal(job_start(job, &err), 0);
    test_wait_until(job->done_bytes >= 40 * 1024);
    /* 40 pieces at 100 a second, the first tenth of a second's at once. */
    assert_true(loop_clock_ns(loop_current()) - begin_ns >= 250 * NS_PER_MS);
    assert_int_equal(job_set_speed(job, 0, &err), 0);
    assert_int_equal(job_wait(job), 0);
    assert_true(loop_clock_ns(loop_current()) - begin_ns < 900 * NS_PER_MS);
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(a_ready_job_is_completed_by_hand)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = counter_start(
        &world, "j", (struct counter){.total = 1, .stop_at = 9, .ready_first = true});
    assert_int_equal(job_complete(job, &err), -EINVAL);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job_pause(job, &err), 0);
    test_wait_until(job->status == JOB_STANDBY);
    assert_int_equal(job_resume(job, &err), 0);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job_complete(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(a_job_that_does_not_finalize_by_itself_waits_to_be_told)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = job_ref(counter_new(&world, "j", (struct counter){.stop_at = 9}));
    job->auto_finalize = false;
    assert_int_equal(job_start(job, &err), 0);
    assert_int_equal(job_finalize(job, &err), -EINVAL);
    test_wait_until(job->status == JOB_PENDING);
    assert_int_equal(job_pause(job, &err), -EINVAL);
    assert_int_equal(world.ended, 0);
    assert_int_equal(job_finalize(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    co_sleep(NS_PER_MS);
    expect_events(&world, (const char *const[]){
                              "JOB_STATUS_CHANGE created", "JOB_STATUS_CHANGE running",
                              "JOB_STATUS_CHANGE waiting", "JOB_STATUS_CHANGE pending",
                              "BLOCK_JOB_PENDING", "BLOCK_JOB_COMPLETED",
                              "JOB_STATUS_CHANGE concluded", "JOB_STATUS_CHANGE null", NULL});
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(a_pending_job_can_be_cancelled)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = job_ref(counter_new(&world, "j", (struct counter){.stop_at = 9}));
    job->auto_finalize = false;
    assert_int_equal(job_start(job, &err), 0);
    test_wait_until(job->status == JOB_PENDING);
    assert_int_equal(job_cancel(job, true, &err), 0);
    assert_int_equal(job_wait(job), -ECANCELED);
    job_unref(job);
    world_close(&world);
}

TEST_LOOP(errors_stop_a_job_or_end_it_as_told)
{
    static const struct {
        enum job_on_error on_error;
        int code, result;
        bool stops;
    } cases[] = {
        {JOB_ON_ERROR_REPORT, -EIO, -EIO, false},   {JOB_ON_ERROR_IGNORE, -EIO, 0, false},
        {JOB_ON_ERROR_STOP, -EIO, 0, true},         {JOB_ON_ERROR_ENOSPC, -EIO, -EIO, false},
        {JOB_ON_ERROR_ENOSPC, -ENOSPC, 0, true},    {JOB_ON_ERROR_AUTO, -ENOSPC, 0, true},
        {JOB_ON_ERROR_AUTO, -EROFS, -EROFS, false},
    };
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct job *job = counter_start(&world, "j", (struct counter){.total = 1, .stop_at = 0});
        test_wait_until(job->status == JOB_RUNNING);
        world.event_count = 0;
        assert_int_equal(job_handle_error(job, cases[i].on_error, true, cases[i].code),
                         cases[i].result);
        assert_string_equal(world.events[0], "BLOCK_JOB_ERROR");
        assert_int_equal(job->user_paused, cases[i].stops);
        assert_int_equal(job->io_error, cases[i].stops ? cases[i].code : 0);
        if (cases[i].stops) {
            assert_int_equal(job_resume(job, &err), 0);
            assert_int_equal(job->io_error, 0);
        }
        assert_int_equal(job_cancel(job, true, &err), 0);
        assert_int_equal(job_wait(job), -ECANCELED);
        job_unref(job);
        co_sleep(NS_PER_MS);
        world.event_count = 0;
    }
    world_close(&world);
}

TEST_LOOP(ids_are_unique_made_up_when_missing_and_jobs_are_bounded)
{
    struct world world;
    struct err err = ERR_INIT;
    struct job *job;
    world_open(&world);
    counter_new(&world, "a", (struct counter){0});
    assert_int_equal(job_new(&world.list, &counter_driver, "a", &job, &err), -EEXIST);
    assert_int_equal(job_new(&world.list, &counter_driver, "", &job, &err), -EINVAL);
    assert_null(job_find(&world.list, "b"));
    world.event_count = 0;
    while (world.list.count < JOBS_MAX) {
        assert_int_equal(job_new(&world.list, &counter_driver, NULL, &job, &err), 0);
        world.event_count = 0;
    }
    assert_int_equal(job_new(&world.list, &counter_driver, NULL, &job, &err), -EBUSY);
    graph_set_events(world.graph, NULL, NULL);
    world_close(&world);
}

TEST_LOOP(the_end_of_the_daemon_interrupts_jobs_and_they_know_it)
{
    struct world world;
    world_open(&world);
    struct job *job = counter_start(&world, "j", (struct counter){.total = 9, .stop_at = 3});
    test_wait_until(job->done_bytes == 3 * 1024);
    job_list_end(&world.list);
    assert_true(job->interrupted);
    assert_false(job->cancelled);
    assert_int_equal(job->result, -ECANCELED);
    assert_int_equal(world.ended, 1);
    job_unref(job);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_goes_through_the_states_and_events_that_qmp_knows),
        cmocka_unit_test(a_failed_job_says_why_and_stays_until_it_is_dismissed),
        cmocka_unit_test(a_paused_job_does_nothing_until_it_is_resumed),
        cmocka_unit_test(a_cancelled_job_ends_also_while_paused),
        cmocka_unit_test(a_speed_limit_holds_and_can_be_lifted),
        cmocka_unit_test(a_ready_job_is_completed_by_hand),
        cmocka_unit_test(a_job_that_does_not_finalize_by_itself_waits_to_be_told),
        cmocka_unit_test(a_pending_job_can_be_cancelled),
        cmocka_unit_test(errors_stop_a_job_or_end_it_as_told),
        cmocka_unit_test(ids_are_unique_made_up_when_missing_and_jobs_are_bounded),
        cmocka_unit_test(the_end_of_the_daemon_interrupts_jobs_and_they_know_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
