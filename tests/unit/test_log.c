/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit.h"

#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
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

/* --- the limit --- */

static uint64_t fake_now_ns;

static uint64_t fake_clock(void)
{
    return fake_now_ns;
}

static const struct log_limit limit_of_three = {
    .messages = 3,
    .interval_ns = 1000,
    .now_ns = fake_clock,
};

static int set_up_limit(void **state)
{
    fake_now_ns = 5000;
    log_set_limit(&limit_of_three);
    return set_up(state);
}

static int tear_down_limit(void **state)
{
    log_set_limit(NULL);
    return tear_down(state);
}

static void a_subject_that_repeats_itself_is_cut_short_and_the_rest_counted(void **state)
{
    struct capture *capture = *state;

    for (int i = 0; i < 10; i++)
        log_warning("disk", "line %d", i);
    assert_int_equal(capture->count, 3);
    assert_string_equal(capture->text, "line 2");
    fake_now_ns += 999;
    log_error("disk", "still the same interval");
    assert_int_equal(capture->count, 3);
    fake_now_ns += 1;
    log_info("disk", "the next");
    assert_int_equal(capture->count, 5); /* the sum comes first */
    assert_string_equal(capture->text, "the next");
}

static void what_was_left_out_is_said_with_the_worst_level_among_it(void **state)
{
    struct capture *capture = *state;

    for (int i = 0; i < 5; i++)
        log_info("disk", "x");
    log_error("disk", "x");
    log_warning("disk", "x");
    fake_now_ns += 1000;
    /* Another subject's message is occasion enough. */
    log_debug("net", "no: debug messages are not counted, and the level drops them");
    assert_int_equal(capture->count, 3);
    log_flush_limit();
    assert_int_equal(capture->count, 4);
    assert_int_equal(capture->level, LOG_LEVEL_ERROR);
    assert_string_equal(capture->subject, "disk");
    assert_string_equal(capture->text, "4 more messages were left out");
    log_flush_limit();
    assert_int_equal(capture->count, 4);
}

static void subjects_are_limited_each_on_its_own(void **state)
{
    struct capture *capture = *state;

    for (int i = 0; i < 5; i++) {
        log_warning("disk", "x");
        log_warning("net", "x");
    }
    assert_int_equal(capture->count, 6);
    fake_now_ns += 1000;
    log_warning("third", "x");
    assert_int_equal(capture->count, 9); /* both sums, and the message */
}

static void more_subjects_than_there_is_room_for_share_one_count(void **state)
{
    struct capture *capture = *state;
    char subject[16];

    for (unsigned i = 0; i < LOG_LIMIT_SUBJECTS - 1; i++) {
        snprintf(subject, sizeof(subject), "own%u", i);
        log_warning(subject, "x");
    }
    capture->count = 0;
    for (int i = 0; i < 50; i++) {
        snprintf(subject, sizeof(subject), "shared%d", i);
        log_warning(subject, "x");
    }
    assert_int_equal(capture->count, 3);
    log_flush_limit();
    assert_string_equal(capture->subject, "log");
    assert_string_equal(capture->text, "47 more messages were left out");
}

static void debug_and_trace_messages_are_never_left_out(void **state)
{
    struct capture *capture = *state;

    log_set_level(LOG_LEVEL_DEBUG);
    log_trace_enable("log_test.one");
    for (int i = 0; i < 10; i++) {
        log_debug("disk", "x");
        hit_trace_points(i);
    }
    assert_int_equal(capture->count, 20);
}

/* --- the journal --- */

/* What the sink writes to stderr, up to the size of `line`. */
static void capture_stderr(char *line, size_t line_bytes, enum log_level level)
{
    int pipes[2], saved = dup(STDERR_FILENO);
    ssize_t length;

    assert_int_equal(pipe(pipes), 0);
    dup2(pipes[1], STDERR_FILENO);
    log_to_journal(NULL, level, "disk", "slow");
    dup2(saved, STDERR_FILENO);
    length = read(pipes[0], line, line_bytes - 1);
    assert_true(length > 0);
    line[length] = '\0';
    close(pipes[0]);
    close(pipes[1]);
    close(saved);
}

static void the_journals_sink_puts_syslogs_priority_in_front(void **state)
{
    static const struct {
        enum log_level level;
        const char *line;
    } cases[] = {
        {LOG_LEVEL_ERROR, "<3>disk: slow\n"}, {LOG_LEVEL_WARNING, "<4>disk: slow\n"},
        {LOG_LEVEL_INFO, "<6>disk: slow\n"},  {LOG_LEVEL_DEBUG, "<7>disk: slow\n"},
        {LOG_LEVEL_TRACE, "<7>disk: slow\n"},
    };
    char line[200];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        capture_stderr(line, sizeof(line), cases[i].level);
        assert_string_equal(line, cases[i].line);
    }
}

static void stderr_is_the_journal_only_when_the_variable_names_its_file(void **state)
{
    char text[64];
    struct stat st;

    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    unsetenv("JOURNAL_STREAM");
    assert_false(log_stderr_is_journal());
    snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    setenv("JOURNAL_STREAM", text, 1);
    assert_true(log_stderr_is_journal());
    /* Another file: the variable was inherited past a redirection. */
    snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino + 1);
    setenv("JOURNAL_STREAM", text, 1);
    assert_false(log_stderr_is_journal());
    setenv("JOURNAL_STREAM", "8:nonsense", 1);
    assert_false(log_stderr_is_journal());
    unsetenv("JOURNAL_STREAM");
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
        cmocka_unit_test_setup_teardown(
            a_subject_that_repeats_itself_is_cut_short_and_the_rest_counted, set_up_limit,
            tear_down_limit),
        cmocka_unit_test_setup_teardown(what_was_left_out_is_said_with_the_worst_level_among_it,
                                        set_up_limit, tear_down_limit),
        cmocka_unit_test_setup_teardown(subjects_are_limited_each_on_its_own, set_up_limit,
                                        tear_down_limit),
        cmocka_unit_test_setup_teardown(more_subjects_than_there_is_room_for_share_one_count,
                                        set_up_limit, tear_down_limit),
        cmocka_unit_test_setup_teardown(debug_and_trace_messages_are_never_left_out, set_up_limit,
                                        tear_down_limit),
        cmocka_unit_test(the_journals_sink_puts_syslogs_priority_in_front),
        cmocka_unit_test(stderr_is_the_journal_only_when_the_variable_names_its_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
