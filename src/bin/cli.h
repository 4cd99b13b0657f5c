/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What both programs and all verbs share: messages, exit codes, answers. */
#ifndef BLOCKSTEP_BIN_CLI_H
#define BLOCKSTEP_BIN_CLI_H

#include "base/json.h"
#include "base/opts.h"
#include "loop/loop.h"

#include <stdio.h>

enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_TIMED_OUT = 3, /* blockstep wait */
    EXIT_DAMAGED = 3,   /* blockstep image check */
};

/* Set by main(), begins every message. */
extern const char *cli_program;

/* "PROGRAM: text" on stderr. */
void cli_error(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* The same, and where help is; returns EXIT_USAGE. */
int cli_usage_error(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Colours for stdout, empty unless it is a terminal and NO_COLOR is not set. */
enum cli_style { CLI_PLAIN, CLI_BOLD, CLI_GOOD, CLI_WARN, CLI_BAD, CLI_FAINT };
const char *cli_style(enum cli_style style);
/* One line of progress on stderr, redrawn; nothing unless stderr is a terminal. */
void cli_progress(const char *fmt, ...) PRINTF_LIKE(1, 2);
void cli_progress_end(void);

/* The value as indented JSON on stdout. */
void cli_print_json(struct json_object *value);

/* The version of the shapes that docs/control.md describes: higher when a member changes its meaning
 * or goes; new members leave it. */
#define CLI_JSON_VERSION 1
/* An answer of ours: the object with "json-version" added. EXIT_OK or EXIT_FAILED. */
int cli_print_answer(struct json_object *answer);

/* "text", "json"; -EINVAL and a message for others. */
int cli_parse_output(const char *text, bool *ret_json);

/* The loop of a program that serves, or an error on stderr and NULL. */
struct loop *cli_loop_new(const char *features_off, int *ret_exit);

/* Runs the coroutine `entry(arg)` to its end on a loop of its own. EXIT_FAILED when there is no
 * loop. */
int cli_run_in_loop(void (*entry)(void *arg), void *arg);

/* Duration for people: "1.3 ms", "12 s", "3 min 20 s". */
const char *cli_duration(uint64_t ns, char *text, size_t text_bytes);
/* A moment since 1970 for people, by the local clock: "2026-11-22 04:05:06". */
const char *cli_moment(uint64_t wall_ns, char *text, size_t text_bytes);

#endif
