/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Log messages for the operator and trace points for the developer.
 *
 * A message has a level and a subject (the file's noun, by convention). Library code logs what an
 * operator must know and cannot learn from an error that is returned; it never prints. The sink is
 * the process's choice (stderr by default); it is set before threads start. Any thread may log.
 *
 * A trace point costs one predictable branch while it is off. Points are named "area.what" and are
 * switched by patterns: log_trace_enable("nbd.*").
 */
#ifndef BLOCKSTEP_BASE_LOG_H
#define BLOCKSTEP_BASE_LOG_H

#include "base/defs.h"

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_TRACE
};

typedef void log_sink(void *arg, enum log_level level, const char *subject, const char *text);

/* NULL restores the default, which writes "LEVEL subject: text" lines to stderr. A sink is called
 * by one thread at a time, gets one line of valid UTF-8 (text.h), and must not log itself. */
void log_set_sink(log_sink *sink, void *arg);

/* Messages above this level are dropped; the default is LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

/* "error", "warning", "info", "debug", "trace"; returns -EINVAL for anything else. */
int log_level_parse(const char *name, enum log_level *ret_level);
const char *log_level_name(enum log_level level);

/*
 * Errors, warnings and information above so many messages of one subject within the interval are
 * left out; a later line of the subject says how many. So a fault that repeats for every request
 * fills no disk. Debug and trace messages have been asked for, and are never left out. Without a
 * limit (the default; `limit` NULL) nothing is counted. Set before threads start.
 */
struct log_limit {
    unsigned messages; /* at least 1 */
    uint64_t interval_ns;
    uint64_t (*now_ns)(void); /* monotonic; any thread may call it */
};
void log_set_limit(const struct log_limit *limit);
/* Says now what has been left out until now; for the end of a process. */
void log_flush_limit(void);

/* Subjects that are counted on their own; further ones share a count. */
#define LOG_LIMIT_SUBJECTS 32u

/* Whether JOURNAL_STREAM says that stderr leads to systemd's journal. */
bool log_stderr_is_journal(void);
/* A sink like the default one, with syslog's priority in front ("<4>subject: text"), as the journal
 * understands it; it adds time and process itself. */
void log_to_journal(void *arg, enum log_level level, const char *subject, const char *text);

void log_message(enum log_level level, const char *subject, const char *fmt, ...) PRINTF_LIKE(3, 4);

#define log_error(subject, ...)   log_message(LOG_LEVEL_ERROR, subject, __VA_ARGS__)
#define log_warning(subject, ...) log_message(LOG_LEVEL_WARNING, subject, __VA_ARGS__)
#define log_info(subject, ...)    log_message(LOG_LEVEL_INFO, subject, __VA_ARGS__)
#define log_debug(subject, ...)   log_message(LOG_LEVEL_DEBUG, subject, __VA_ARGS__)

/* The linker collects the points of a program into an array. Neither compiler puts red zones
 * between them under AddressSanitizer, since the section's name is an identifier (shown by a
 * test). */
struct trace_point {
    const char *name;
    bool enabled;
} __attribute__((aligned(16)));

/* Prints when the point is on. `name_` is a string literal "area.what". */
#define TRACE(name_, ...)                                                       \
    do {                                                                        \
        static struct trace_point trace_point_                                  \
            __attribute__((used, section("trace_points"))) = {.name = (name_)}; \
        if (unlikely(__atomic_load_n(&trace_point_.enabled, __ATOMIC_RELAXED))) \
            log_message(LOG_LEVEL_TRACE, (name_), __VA_ARGS__);                 \
    } while (0)

/* Switches on all points whose name matches the shell pattern; returns how many matched. Trace
 * messages ignore log_set_level(). */
size_t log_trace_enable(const char *pattern);
void log_trace_disable_all(void);

/* Calls `visit` for each point, in no particular order; names can repeat. */
void log_trace_list(void (*visit)(void *arg, const struct trace_point *point), void *arg);

#endif
