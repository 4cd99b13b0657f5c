/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The loop: timers, deferred and posted tasks, offloaded calls, signals, stop and run again. */
#include "harness.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define TIMERS 200u

struct timer_log {
    struct loop_timer timers[TIMERS];
    uint64_t wanted_ns[TIMERS];
    struct loop_timer *fired[TIMERS];
    unsigned count;
    bool early;
};

static struct timer_log timer_log;

static void timer_note(struct loop_timer *timer)
{
    struct timer_log *log = &timer_log;

    if (loop_now_ns(loop_current()) < log->wanted_ns[timer - log->timers])
        log->early = true;
    log->fired[log->count++] = timer;
}

TEST_LOOP(timers_fire_in_order_and_not_early)
{
    struct timer_log *log = &timer_log;
    struct loop *loop = loop_current();
    uint64_t random = test_seed(__func__), begin_ns = loop_now_ns(loop);

    memset(log, 0, sizeof(*log));
    for (unsigned i = 0; i < TIMERS; i++) {
        log->wanted_ns[i] = begin_ns + test_random(&random) % (20 * NS_PER_MS);
        log->timers[i].fire = timer_note;
        loop_timer_arm(loop, &log->timers[i], log->wanted_ns[i]);
    }
    test_wait_until(log->count == TIMERS);
    assert_false(log->early);
    for (unsigned i = 1; i < TIMERS; i++)
        assert_true(log->wanted_ns[log->fired[i - 1] - log->timers] <=
                    log->wanted_ns[log->fired[i] - log->timers]);
    for (unsigned i = 0; i < TIMERS; i++)
        assert_false(loop_timer_armed(&log->timers[i]));
}

TEST_LOOP(cancelled_timers_never_fire_and_moved_ones_fire_once)
{
    struct timer_log *log = &timer_log;
    struct loop *loop = loop_current();
    uint64_t random = test_seed(__func__), begin_ns = loop_now_ns(loop);
    unsigned left = 0;

    memset(log, 0, sizeof(*log));
    for (unsigned i = 0; i < TIMERS; i++) {
        log->timers[i].fire = timer_note;
        loop_timer_arm(loop, &log->timers[i], begin_ns + test_random(&random) % NS_PER_S);
    }
    for (unsigned i = 0; i < TIMERS; i++) {
        if (test_random(&random) % 2 == 0) {
            loop_timer_cancel(&log->timers[i]);
            loop_timer_cancel(&log->timers[i]); /* harmless */
            continue;
        }
        left++;
        log->wanted_ns[i] = begin_ns + test_random(&random) % (5 * NS_PER_MS);
        loop_timer_arm(loop, &log->timers[i], log->wanted_ns[i]);
    }
    co_sleep_until(begin_ns + 6 * NS_PER_MS);
    assert_int_equal(log->count, left);
    assert_false(log->early);
}

struct task_log {
    struct loop_task task;
    struct task_log *next;
    unsigned place; /* when it ran; 0: not yet */
    unsigned runs;
    unsigned coroutines_run;
};

static unsigned tasks_run, coroutines_run;

static void task_note(struct loop_task *task)
{
    struct task_log *log = CONTAINER_OF(task, struct task_log, task);

    log->place = ++tasks_run;
    log->runs++;
    log->coroutines_run = coroutines_run;
}

static void coroutine_note(void *arg UNUSED)
{
    coroutines_run++;
}

struct stubborn {
    struct loop_timer timer;
    unsigned fired;
};

static void fire_again_at_once(struct loop_timer *timer)
{
    struct stubborn *stubborn = CONTAINER_OF(timer, struct stubborn, timer);

    if (++stubborn->fired < 100000)
        loop_timer_arm(loop_current(), timer, 0);
}

TEST_LOOP(a_timer_armed_in_the_past_by_its_own_hook_holds_nobody_up)
{
    struct stubborn stubborn = {.timer = {.fire = fire_again_at_once}};

    loop_timer_arm(loop_current(), &stubborn.timer, 0);
    co_sleep(NS_PER_MS);
    assert_true(stubborn.fired > 0);
    assert_true(stubborn.fired < 100000);
    loop_timer_cancel(&stubborn.timer);
}

TEST_LOOP(deferred_tasks_run_in_order_once_all_ready_coroutines_have)
{
    struct loop *loop = loop_current();
    struct task_log tasks[3] = {
        {.task.run = task_note}, {.task.run = task_note}, {.task.run = task_note}};

    tasks_run = coroutines_run = 0;
    for (int i = 0; i < 3; i++) {
        loop_defer(loop, &tasks[i].task);
        assert_int_equal(co_spawn(loop, "note", coroutine_note, NULL), 0);
    }
    loop_defer(loop, &tasks[0].task); /* stays where it is */
    assert_int_equal(tasks_run, 0);
    test_wait_until(tasks_run == 3);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(tasks[i].place, i + 1);
        assert_int_equal(tasks[i].runs, 1);
        assert_int_equal(tasks[i].coroutines_run, 3);
    }
}

TEST_LOOP(a_deferred_task_that_is_taken_back_does_not_run)
{
    struct task_log task = {.task.run = task_note};

    loop_defer(loop_current(), &task.task);
    loop_defer_cancel(loop_current(), &task.task);
    loop_defer_cancel(loop_current(), &task.task); /* harmless */
    co_sleep(NS_PER_MS);
    assert_int_equal(task.runs, 0);
    loop_defer(loop_current(), &task.task);
    test_wait_until(task.runs == 1);
}

TEST_LOOP(posted_tasks_run_in_order)
{
    struct task_log tasks[3] = {
        {.task.run = task_note}, {.task.run = task_note}, {.task.run = task_note}};

    tasks_run = 0;
    for (int i = 0; i < 3; i++)
        loop_post(loop_current(), &tasks[i].task);
    assert_int_equal(tasks_run, 0);
    test_wait_until(tasks_run == 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(tasks[i].place, i + 1);
}

#define POSTS_PER_THREAD 1000u

struct poster {
    struct loop *loop;
    struct task_log tasks[POSTS_PER_THREAD];
};

static void *post_many(void *arg)
{
    struct poster *poster = arg;

    for (unsigned i = 0; i < POSTS_PER_THREAD; i++) {
        poster->tasks[i].task.run = task_note;
        loop_post(poster->loop, &poster->tasks[i].task);
    }
    return NULL;
}

TEST_LOOP(posts_of_other_threads_wake_the_loop_and_none_is_lost)
{
    static struct poster posters[3];
    pthread_t threads[3];

    if (test_loop_is_sim())
        return; /* has one thread */
    tasks_run = 0;
    memset(posters, 0, sizeof(posters));
    for (int i = 0; i < 3; i++) {
        posters[i].loop = loop_current();
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &posters[i]), 0);
    }
    test_wait_until(tasks_run == 3 * POSTS_PER_THREAD);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        for (unsigned j = 0; j < POSTS_PER_THREAD; j++)
            assert_int_equal(posters[i].tasks[j].runs, 1);
    }
}

static int add_one(void *arg)
{
    return ++*(int *)arg;
}

struct offloads {
    struct co_group group;
    unsigned running, together;
};

static void offload_one(void *arg) MAY_WAIT;
static void offload_one(void *arg)
{
    struct offloads *offloads = arg;
    int number = 41;

    offloads->running++;
    offloads->together = MAX(offloads->together, offloads->running);
    assert_int_equal(loop_offload(loop_current(), add_one, &number), 42);
    assert_int_equal(number, 42);
    offloads->running--;
    co_group_leave(&offloads->group);
}

TEST_LOOP(offloaded_calls_return_their_result_while_others_run)
{
    struct offloads offloads = {.running = 0};

    co_group_init(&offloads.group);
    for (int i = 0; i < 100; i++) {
        co_group_enter(&offloads.group);
        assert_int_equal(co_spawn(loop_current(), "offload", offload_one, &offloads), 0);
    }
    assert_int_equal(co_group_wait(&offloads.group), 0);
    assert_true(offloads.together > 1);
    assert_true(loop_stats(loop_current()).offloaded >= 100);
}

TEST_LOOP(time_goes_on_and_sleeps_last_as_long_as_asked)
{
    struct loop *loop = loop_current();
    uint64_t begin_ns = loop_clock_ns(loop), wall_ns = loop_wall_ns(loop);

    co_sleep(3 * NS_PER_MS);
    assert_true(loop_clock_ns(loop) - begin_ns >= 3 * NS_PER_MS);
    assert_true(loop_clock_ns(loop) >= loop_now_ns(loop));
    assert_true(loop_now_ns(loop) - begin_ns >= 3 * NS_PER_MS);
    assert_true(loop_wall_ns(loop) > wall_ns);
    assert_true(wall_ns > UINT64_C(1700000000) * NS_PER_S);
}

TEST_LOOP(random_numbers_differ)
{
    uint64_t numbers[64];

    for (unsigned i = 0; i < ARRAY_LEN(numbers); i++) {
        numbers[i] = loop_random(loop_current());
        for (unsigned j = 0; j < i; j++)
            assert_true(numbers[i] != numbers[j]);
    }
}

static void yield_for_long(void *arg) MAY_WAIT;
static void yield_for_long(void *arg)
{
    while (!*(bool *)arg)
        co_yield();
}

TEST_LOOP(a_coroutine_that_only_yields_does_not_starve_timers_and_calls)
{
    bool stop = false;
    int number = 0;

    assert_int_equal(co_spawn(loop_current(), "busy", yield_for_long, &stop), 0);
    co_sleep(NS_PER_MS);
    assert_int_equal(loop_offload(loop_current(), add_one, &number), 1);
    stop = true;
    co_sleep(NS_PER_MS);
}

/* --- tests that run the loop themselves --- */

static struct loop *new_loop(void)
{
    struct loop *loop = NULL;
    struct err err = ERR_INIT;
    int result = test_loop_is_sim() ? loop_sim_new(test_seed("loop"), &loop, &err)
                                    : loop_uring_new(NULL, &loop, &err);

    if (result < 0)
        fail_msg("no loop: %s", err.text);
    return loop;
}

static void stop_thrice(void *arg) MAY_WAIT;
static void stop_thrice(void *arg)
{
    for (int *stops = arg; *stops < 3;) {
        (*stops)++;
        loop_stop(loop_current());
        co_yield();
        co_sleep(NS_PER_MS);
    }
    loop_stop(loop_current());
}

static void a_stopped_loop_goes_on_where_it_was_when_run_again(void **state UNUSED)
{
    struct loop *loop = new_loop();
    int stops = 0;

    assert_int_equal(co_spawn(loop, "stop", stop_thrice, &stops), 0);
    for (int i = 1; i <= 3; i++) {
        loop_run(loop);
        assert_int_equal(stops, i);
        assert_int_equal(loop_stats(loop).coroutines, 1);
    }
    loop_run(loop);
    assert_int_equal(loop_stats(loop).coroutines, 0);
    loop_free(loop);
}

static int signals_seen;

static void signal_note(void *arg UNUSED, int signal)
{
    assert_int_equal(signal, SIGUSR1);
    signals_seen++;
    loop_stop(loop_current());
}

static void send_signal(void *arg UNUSED)
{
    kill(getpid(), SIGUSR1);
}

static void a_signal_calls_its_handler_in_the_loop(void **state UNUSED)
{
    struct err err = ERR_INIT;

    if (test_loop_is_sim())
        return; /* has none */
    struct loop *loop = new_loop();
    signals_seen = 0;
    assert_int_equal(loop_signal_set(loop, SIGUSR1, signal_note, NULL, &err), 0);
    assert_int_equal(co_spawn(loop, "signal", send_signal, NULL), 0);
    loop_run(loop);
    assert_int_equal(signals_seen, 1);
    loop_free(loop);
}

static void feature_names_are_read_and_wrong_ones_refused(void **state UNUSED)
{
    struct err err = ERR_INIT;
    unsigned features = 0;

    assert_int_equal(loop_features_parse("defer-taskrun,inline-send", &features, &err), 0);
    assert_int_equal(features, LOOP_FEATURE_DEFER_TASKRUN | LOOP_FEATURE_INLINE_SEND);
    assert_int_equal(loop_features_parse("", &features, &err), 0);
    assert_int_equal(features, 0);
    assert_int_equal(loop_features_parse("all", &features, &err), 0);
    assert_int_equal(features, LOOP_FEATURES_ALL);
    assert_int_equal(loop_features_parse("inline", &features, &err), -EINVAL);
    assert_non_null(strstr(err.text, "'inline'"));
    assert_int_equal(features, LOOP_FEATURES_ALL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timers_fire_in_order_and_not_early),
        cmocka_unit_test(cancelled_timers_never_fire_and_moved_ones_fire_once),
        cmocka_unit_test(a_timer_armed_in_the_past_by_its_own_hook_holds_nobody_up),
        cmocka_unit_test(deferred_tasks_run_in_order_once_all_ready_coroutines_have),
        cmocka_unit_test(a_deferred_task_that_is_taken_back_does_not_run),
        cmocka_unit_test(posted_tasks_run_in_order),
        cmocka_unit_test(posts_of_other_threads_wake_the_loop_and_none_is_lost),
        cmocka_unit_test(offloaded_calls_return_their_result_while_others_run),
        cmocka_unit_test(time_goes_on_and_sleeps_last_as_long_as_asked),
        cmocka_unit_test(random_numbers_differ),
        cmocka_unit_test(a_coroutine_that_only_yields_does_not_starve_timers_and_calls),
        cmocka_unit_test(a_stopped_loop_goes_on_where_it_was_when_run_again),
        cmocka_unit_test(a_signal_calls_its_handler_in_the_loop),
        cmocka_unit_test(feature_names_are_read_and_wrong_ones_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
