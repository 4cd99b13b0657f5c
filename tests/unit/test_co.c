/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Coroutines: switching, waking, waiting with deadlines, stacks. */
#include "harness.h"

#include <errno.h>
#include <string.h>

struct counter {
    int value;
    struct co *co;
    bool go;
};

static void count_once(void *arg)
{
    ((struct counter *)arg)->value++;
}

TEST_LOOP(a_spawned_coroutine_runs_later_in_the_turn)
{
    struct counter counter = {.value = 0};

    assert_int_equal(co_spawn(loop_current(), "count", count_once, &counter), 0);
    assert_int_equal(counter.value, 0);
    while (counter.value == 0)
        co_yield();
    assert_int_equal(counter.value, 1);
}

TEST_LOOP(spawn_now_runs_until_the_first_wait)
{
    struct counter counter = {.value = 0};

    assert_int_equal(co_spawn_now(loop_current(), "count", count_once, &counter), 0);
    assert_int_equal(counter.value, 1);
}

static void wait_for_go(void *arg) MAY_WAIT;
static void wait_for_go(void *arg)
{
    struct counter *counter = arg;

    counter->co = co_self();
    while (!counter->go)
        co_wait();
    counter->value++;
}

TEST_LOOP(a_woken_coroutine_goes_on_where_it_waited)
{
    struct counter counter = {.value = 0};

    assert_int_equal(co_spawn_now(loop_current(), "wait", wait_for_go, &counter), 0);
    assert_int_equal(counter.value, 0);
    co_wake(counter.co);
    co_wake(counter.co); /* twice is harmless */
    co_yield();
    assert_int_equal(counter.value, 0); /* its own condition does not hold yet */
    counter.go = true;
    co_wake(counter.co);
    while (counter.value == 0)
        co_yield();
    assert_int_equal(counter.value, 1);
}

TEST_LOOP(a_wake_while_running_is_remembered_once)
{
    co_wake(co_self());
    co_wake(co_self());
    co_wait(); /* returns at once */
    assert_int_equal(co_wait_until(loop_clock_ns(loop_current()) + NS_PER_MS), -ETIMEDOUT);
}

TEST_LOOP(a_deadline_ends_a_wait_and_not_earlier)
{
    uint64_t began_ns = loop_clock_ns(loop_current());

    assert_int_equal(co_wait_until(began_ns + 5 * NS_PER_MS), -ETIMEDOUT);
    assert_true(loop_clock_ns(loop_current()) >= began_ns + 5 * NS_PER_MS);
}

static void use_stack(void *arg)
{
    volatile char deep[64 * 1024];

    memset((char *)(uintptr_t)deep, 1, sizeof(deep));
    ((struct counter *)arg)->value += deep[100];
}

TEST_LOOP(stacks_are_pooled_and_their_high_water_mark_is_known)
{
    struct counter counter = {.value = 0};

    for (int i = 0; i < 100; i++)
        assert_int_equal(co_spawn_now(loop_current(), "deep", use_stack, &counter), 0);
    struct loop_stats stats = loop_stats(loop_current());
    assert_int_equal(counter.value, 100);
    assert_int_equal(stats.coroutines, 1);
    assert_in_range(stats.stacks_cached, 1, 2);
    assert_in_range(stats.stack_peak_bytes, 64 * 1024, CO_STACK_BYTES);
}

TEST_LOOP(thousands_of_coroutines_wait_at_once)
{
    static struct counter counters[5000];

    memset(counters, 0, sizeof(counters));
    for (size_t i = 0; i < ARRAY_LEN(counters); i++)
        assert_int_equal(co_spawn(loop_current(), "wait", wait_for_go, &counters[i]), 0);
    for (size_t i = 0; i < ARRAY_LEN(counters); i++) {
        while (counters[i].co == NULL)
            co_yield();
        counters[i].go = true;
        co_wake(counters[i].co);
    }
    for (size_t i = 0; i < ARRAY_LEN(counters); i++) {
        while (counters[i].value == 0)
            co_yield();
    }
    assert_true(loop_stats(loop_current()).coroutines_peak >= ARRAY_LEN(counters));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_spawned_coroutine_runs_later_in_the_turn),
        cmocka_unit_test(spawn_now_runs_until_the_first_wait),
        cmocka_unit_test(a_woken_coroutine_goes_on_where_it_waited),
        cmocka_unit_test(a_wake_while_running_is_remembered_once),
        cmocka_unit_test(a_deadline_ends_a_wait_and_not_earlier),
        cmocka_unit_test(stacks_are_pooled_and_their_high_water_mark_is_known),
        cmocka_unit_test(thousands_of_coroutines_wait_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
