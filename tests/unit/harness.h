/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Unit tests that need a loop: the body of TEST_LOOP runs as a coroutine on the loop that
 * BLOCKSTEP_TEST_LOOP names (uring, uring-plain: every kernel feature off, or sim).
 *
 *     TEST_LOOP(a_closed_gate_holds_who_comes) { ... co_yield(); assert_int_equal(...); }
 *     ... cmocka_unit_test(a_closed_gate_holds_who_comes) ...
 *
 * After the body the loop must be empty: a coroutine left over fails the test, by name. A failed
 * assertion inside a coroutine ends the program (cmocka cannot jump between stacks).
 */
#ifndef BLOCKSTEP_TESTS_HARNESS_H
#define BLOCKSTEP_TESTS_HARNESS_H

#include "unit.h"

#include "loop/co_sync.h"
#include "loop/file.h"
#include "loop/sock.h"

#define TEST_LOOP(name)                          \
    static void name##_body(void *arg) MAY_WAIT; \
    static void name(void **state)               \
    {                                            \
        (void)state;                             \
        test_run_in_loop(#name, name##_body);    \
    }                                            \
    static void name##_body(void *arg UNUSED)

void test_run_in_loop(const char *name, co_entry *body);

/* True on loop_sim. */
bool test_loop_is_sim(void);

/* BLOCKSTEP_TEST_SEED when set, else random; printed, so that a failure can be repeated. */
uint64_t test_seed(const char *test);
/* A small generator (splitmix64) for tests: same seed, same sequence. */
uint64_t test_random(uint64_t *state);

/* An empty folder of this test's own (in the simulator a name only); removed by
 * test_folder_remove(). Static text, one at a time. */
const char *test_folder(void) MAY_WAIT;
void test_folder_remove(void) MAY_WAIT;
/* "FOLDER/NAME" in one of eight static buffers. */
const char *test_path(const char *name) MAY_WAIT;

/* So many seconds, times BLOCKSTEP_TEST_SLOW (valgrind, sanitizers), from now: for what must come. */
uint64_t test_deadline_ns(unsigned seconds);

/* Yields until `condition` holds; fails the test after ten seconds (times BLOCKSTEP_TEST_SLOW). */
#define test_wait_until(condition)                                          \
    do {                                                                    \
        uint64_t test_deadline_ns_ = test_deadline_ns(10);                  \
        while (!(condition)) {                                              \
            assert_true(loop_clock_ns(loop_current()) < test_deadline_ns_); \
            co_sleep(100 * NS_PER_US);                                      \
        }                                                                   \
    } while (0)

#endif
