/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/log.h"

#include "base/text.h"

#include <errno.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
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
