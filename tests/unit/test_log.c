/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit.h"

#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define THREADS            4
#define LINES_OF_EACH      1000
#define TRACE_POINTS_BELOW 4 /* in this file */

struct capture {
    size_t count;
    enum log_level level;
    char subject[32];
    char text[2048];
};

static void capture_line(void *arg, enum log_level level, const char *subject, const char *text)
{
    struct capture *capture = arg;
    size_t count = capture->count;

    /* Room for another thread, should one be let in. */
    if (count % 16 == 0)
        sched_yield();
    capture->count = count + 1;
    errno = EBADF;
    capture->level = level;
    snprintf(capture->subject, sizeof(capture->subject), "%s", subject);
    snprintf(capture->text, sizeof(capture->text), "%s", text);
}

static int set_up(void **state)
{
    struct capture *capture = calloc(1, sizeof(*capture));

    *state = capture;
    log_set_sink(capture_line, capture);
    log_set_level(LOG_LEVEL_INFO);
    log_trace_disable_all();
    return capture == NULL;
}

static int tear_down(void **state)
{
    log_set_sink(NULL, NULL);
    free(*state);
    return 0;
}

static void messages_above_the_level_are_dropped(void **state)
{
    struct capture *capture = *state;

    log_debug("test", "no");
    assert_int_equal(capture->count, 0);
    log_info("test", "yes");
    assert_int_equal(capture->count, 1);
    log_set_level(LOG_LEVEL_ERROR);
    log_warning("test", "no");
    assert_int_equal(capture->count, 1);
    log_error("test", "number %d", 5);
    assert_int_equal(capture->count, 2);
    assert_int_equal(capture->level, LOG_LEVEL_ERROR);
    assert_string_equal(capture->subject, "test");
    assert_string_equal(capture->text, "number 5");
}

static void a_message_is_one_line_of_limited_length(void **state)
{
    struct capture *capture = *state;
    char text[3000];

    log_info("test", "a\nERROR forged\r\n\x1b[31m");
    assert_string_equal(capture->text, "a\\nERROR forged\\r\\n\\x1b[31m");
    memset(text, '\n', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_info("test", "%s", text);
    assert_in_range(strlen(capture->text), 1000, 1024);
    assert_string_equal(capture->text + strlen(capture->text) - 5, "\\n...");
}

static void logging_leaves_errno_alone(void **state)
{
    errno = EXDEV;
    log_info("test", "x");
    assert_int_equal(errno, EXDEV);
}

static void level_names_and_levels_match(void **state)
{
    enum log_level level = LOG_LEVEL_DEBUG;

    for (int i = LOG_LEVEL_ERROR; i <= (int)LOG_LEVEL_TRACE; i++) {
        assert_int_equal(log_level_parse(log_level_name((enum log_level)i), &level), 0);
        assert_int_equal(level, i);
    }
    assert_int_equal(log_level_parse("loud", &level), -EINVAL);
    assert_int_equal(log_level_parse("", &level), -EINVAL);
    assert_int_equal(level, LOG_LEVEL_TRACE);
}

static void hit_trace_points(int number)
{
    TRACE("log_test.one", "one %d", number);
    TRACE("log_test.two", "two %d", number);
    TRACE("log_other.one", "other %d", number);
}

static void a_trace_point_is_silent_until_its_pattern_is_enabled(void **state)
{
    struct capture *capture = *state;

    log_set_level(LOG_LEVEL_ERROR);
    hit_trace_points(1);
    assert_int_equal(capture->count, 0);
    assert_int_equal(log_trace_enable("log_test.*"), 2);
    hit_trace_points(2);
    assert_int_equal(capture->count, 2);
    assert_int_equal(capture->level, LOG_LEVEL_TRACE);
    assert_string_equal(capture->subject, "log_test.two");
    assert_string_equal(capture->text, "two 2");
    assert_int_equal(log_trace_enable("nothing.*"), 0);
    log_trace_disable_all();
    hit_trace_points(3);
    assert_int_equal(capture->count, 2);
}

static void count_point(void *arg, const struct trace_point *point)
{
    size_t *count = arg;

    assert_non_null(point->name);
    assert_non_null(strchr(point->name, '.'));
    if (strncmp(point->name, "log_", 4) == 0)
        (*count)++;
}

/* Under AddressSanitizer this shows that no red zones break the array. */
static void every_trace_point_is_listed(void **state)
{
    size_t count = 0;

    log_trace_list(count_point, &count);
    assert_int_equal(count, TRACE_POINTS_BELOW);
}

static void *log_many(void *arg)
{
    for (int i = 0; i < LINES_OF_EACH; i++) {
        TRACE("log_thread.line", "%d", i);
        log_info("thread", "line %d", i);
    }
    return NULL;
}

static void threads_reach_the_sink_one_after_the_other(void **state)
{
    struct capture *capture = *state;
    pthread_t threads[THREADS];

    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, log_many, NULL), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    /* The sink counts without a lock of its own. */
    assert_int_equal(capture->count, THREADS * LINES_OF_EACH);
}

static void the_default_sink_writes_lines_to_stderr(void **state)
{
    char text[3000], line[4000];
    int pipes[2], saved = dup(STDERR_FILENO);
    ssize_t length;

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(pipe(pipes), 0);
    log_set_sink(NULL, NULL);
    dup2(pipes[1], STDERR_FILENO);
    log_warning("disk", "slow");
    log_warning(text, "%s", text);
    dup2(saved, STDERR_FILENO);
    length = read(pipes[0], line, sizeof(line) - 1);
    assert_in_range(length, 1000, 1300);
    line[length] = '\0';
    assert_memory_equal(line, "warning disk: slow\nwarning xxxx", 31);
    assert_string_equal(line + length - 5, "x...\n");
    close(pipes[0]);
    close(pipes[1]);
    close(saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(messages_above_the_level_are_dropped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_message_is_one_line_of_limited_length, set_up, tear_down),
        cmocka_unit_test_setup_teardown(logging_leaves_errno_alone, set_up, tear_down),
        cmocka_unit_test(level_names_and_levels_match),
        cmocka_unit_test_setup_teardown(a_trace_point_is_silent_until_its_pattern_is_enabled,
                                        set_up, tear_down),
        cmocka_unit_test(every_trace_point_is_listed),
        cmocka_unit_test_setup_teardown(threads_reach_the_sink_one_after_the_other, set_up,
                                        tear_down),
        cmocka_unit_test(the_default_sink_writes_lines_to_stderr),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
