/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/log.h"

#include "base/text.h"

#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Longer messages are cut. */
#define LOG_TEXT_BYTES 1024

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug", [LOG_LEVEL_TRACE] = "trace",
};

/* The linker puts these around the section; they are absent (NULL) in a program without points. */
extern struct trace_point __start_trace_points[] __attribute__((weak, visibility("hidden")));
extern struct trace_point __stop_trace_points[] __attribute__((weak, visibility("hidden")));

static void write_to_stderr(void *arg, enum log_level level, const char *subject, const char *text);

/* Logging belongs to the process, so this is the one floor with file-level state. The mutex makes
 * messages of several threads reach the sink one after the other. */
static pthread_mutex_t sink_mutex = PTHREAD_MUTEX_INITIALIZER;
static log_sink *current_sink = write_to_stderr;
static void *current_sink_arg;
static enum log_level current_level = LOG_LEVEL_INFO;

/* What a subject has said in its present interval. Under the mutex. */
struct said {
    char subject[32]; /* "": free */
    uint64_t since_ns;
    unsigned messages;
    uint64_t left_out;
    enum log_level worst; /* of those left out */
};
static struct log_limit current_limit; /* messages 0: none */
static struct said said[LOG_LIMIT_SUBJECTS];

static void write_to_stderr(void *arg, enum log_level level, const char *subject, const char *text)
{
    char line[LOG_TEXT_BYTES + 128];
    int length = snprintf(line, sizeof(line), "%s %.64s: %s\n", log_level_name(level), subject,
                          text);

    assert(length > 0 && length < (int)sizeof(line));
    /* One call per line, so that lines of several processes do not mix. There is nobody to tell
     * when stderr is gone. */
    if (write(STDERR_FILENO, line, (size_t)length) < 0)
        return;
}

void log_to_journal(void *arg, enum log_level level, const char *subject, const char *text)
{
    /* syslog's err, warning, info and debug. */
    static const char priorities[] = {'3', '4', '6', '7', '7'};
    char line[LOG_TEXT_BYTES + 128];
    int length = snprintf(line, sizeof(line), "<%c>%.64s: %s\n", priorities[level], subject, text);

    assert(length > 0 && length < (int)sizeof(line));
    if (write(STDERR_FILENO, line, (size_t)length) < 0)
        return;
}

bool log_stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    int used = 0;

    /* The variable is inherited by processes whose stderr leads elsewhere. */
    if (stream == NULL || sscanf(stream, "%llu:%llu%n", &device, &inode, &used) != 2 ||
        stream[used] != '\0' || fstat(STDERR_FILENO, &st) < 0)
        return false;
    return st.st_dev == device && st.st_ino == inode;
}

void log_set_sink(log_sink *sink, void *arg)
{
    pthread_mutex_lock(&sink_mutex);
    current_sink = sink != NULL ? sink : write_to_stderr;
    current_sink_arg = arg;
    pthread_mutex_unlock(&sink_mutex);
}

void log_set_level(enum log_level level)
{
    __atomic_store_n(&current_level, level, __ATOMIC_RELAXED);
}

enum log_level log_get_level(void)
{
    return __atomic_load_n(&current_level, __ATOMIC_RELAXED);
}

int log_level_parse(const char *name, enum log_level *ret_level)
{
    for (size_t i = 0; i < ARRAY_LEN(level_names); i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

const char *log_level_name(enum log_level level)
{
    assert((size_t)level < ARRAY_LEN(level_names));
    return level_names[level];
}

/* --- the limit; all under the mutex --- */

static void say_left_out(struct said *of)
{
    char text[96];

    if (of->left_out == 0)
        return;
    snprintf(text, sizeof(text), "%" PRIu64 " more messages were left out", of->left_out);
    current_sink(current_sink_arg, of->worst, of->subject, text);
    of->left_out = 0;
}

/* Ends intervals that are over, those of other subjects too: a subject may never speak again. */
static void end_intervals(uint64_t now_ns)
{
    for (size_t i = 0; i < ARRAY_LEN(said) && said[i].subject[0] != '\0'; i++) {
        if (now_ns - said[i].since_ns < current_limit.interval_ns)
            continue;
        say_left_out(&said[i]);
        said[i].messages = 0;
        said[i].since_ns = now_ns;
    }
}

/* The count of a subject; the last one serves all that found no place of their own. */
static struct said *said_find(const char *subject, uint64_t now_ns)
{
    const size_t last = ARRAY_LEN(said) - 1;
    size_t i = 0;

    while (i < last && said[i].subject[0] != '\0' &&
           strncmp(said[i].subject, subject, sizeof(said[i].subject) - 1) != 0)
        i++;
    if (said[i].subject[0] == '\0') {
        snprintf(said[i].subject, sizeof(said[i].subject), "%s", i == last ? "log" : subject);
        said[i].since_ns = now_ns;
    }
    return &said[i];
}

static bool limit_lets_pass(enum log_level level, const char *subject)
{
    struct said *of;
    uint64_t now_ns;

    if (current_limit.messages == 0 || level > LOG_LEVEL_INFO)
        return true;
    now_ns = current_limit.now_ns();
    end_intervals(now_ns);
    of = said_find(subject, now_ns);
    if (of->messages < current_limit.messages) {
        of->messages++;
        return true;
    }
    of->worst = of->left_out == 0 ? level : MIN(of->worst, level);
    of->left_out++;
    return false;
}

void log_set_limit(const struct log_limit *limit)
{
    assert(limit == NULL || (limit->messages > 0 && limit->now_ns != NULL));
    pthread_mutex_lock(&sink_mutex);
    memset(said, 0, sizeof(said));
    current_limit = limit != NULL ? *limit : (struct log_limit){0};
    pthread_mutex_unlock(&sink_mutex);
}

void log_flush_limit(void)
{
    pthread_mutex_lock(&sink_mutex);
    for (size_t i = 0; i < ARRAY_LEN(said); i++)
        say_left_out(&said[i]);
    pthread_mutex_unlock(&sink_mutex);
}

void log_message(enum log_level level, const char *subject, const char *fmt, ...)
{
    int saved_errno = errno;
    char text[LOG_TEXT_BYTES];
    va_list args;

    /* A trace point that is on has been asked for by name. */
    if (level > log_get_level() && level != LOG_LEVEL_TRACE)
        return;
    va_start(args, fmt);
    text_format(text, sizeof(text), fmt, args);
    va_end(args);

    pthread_mutex_lock(&sink_mutex);
    if (limit_lets_pass(level, subject))
        current_sink(current_sink_arg, level, subject, text);
    pthread_mutex_unlock(&sink_mutex);
    errno = saved_errno;
}

size_t log_trace_enable(const char *pattern)
{
    size_t matches = 0;

    for (struct trace_point *point = __start_trace_points; point < __stop_trace_points; point++) {
        if (fnmatch(pattern, point->name, 0) == 0) {
            __atomic_store_n(&point->enabled, true, __ATOMIC_RELAXED);
            matches++;
        }
    }
    return matches;
}

void log_trace_disable_all(void)
{
    for (struct trace_point *point = __start_trace_points; point < __stop_trace_points; point++)
        __atomic_store_n(&point->enabled, false, __ATOMIC_RELAXED);
}

void log_trace_list(void (*visit)(void *arg, const struct trace_point *point), void *arg)
{
    for (struct trace_point *point = __start_trace_points; point < __stop_trace_points; point++)
        visit(arg, point);
}
