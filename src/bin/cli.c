/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/cli.h"

#include "loop/co.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *cli_program = "blockstep";

static bool progress_shown;

void cli_error(const char *fmt, ...)
{
    va_list args;

    cli_progress_end();
    fprintf(stderr, "%s: ", cli_program);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}

int cli_usage_error(const char *fmt, ...)
{
    va_list args;

    fprintf(stderr, "%s: ", cli_program);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nTry '%s --help'.\n", cli_program);
    return EXIT_USAGE;
}

const char *cli_style(enum cli_style style)
{
    static const char *const codes[] = {
        [CLI_PLAIN] = "\033[0m", [CLI_BOLD] = "\033[1m",   [CLI_GOOD] = "\033[32m",
        [CLI_WARN] = "\033[33m", [CLI_BAD] = "\033[1;31m", [CLI_FAINT] = "\033[2m",
    };
    const char *no_color = getenv("NO_COLOR");

    if ((no_color != NULL && *no_color != '\0') || !isatty(STDOUT_FILENO))
        return "";
    return codes[style];
}

void cli_progress(const char *fmt, ...)
{
    va_list args;

    if (!isatty(STDERR_FILENO))
        return;
    fputs("\r\033[K", stderr);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fflush(stderr);
    progress_shown = true;
}

void cli_progress_end(void)
{
    if (progress_shown)
        fputs("\r\033[K", stderr);
    progress_shown = false;
}

void cli_print_json(struct json_object *value)
{
    puts(json_object_to_json_string_ext(value,
                                        JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
}

int cli_print_answer(struct json_object *answer)
{
    if (json_add_uint(answer, "json-version", CLI_JSON_VERSION) < 0) {
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    cli_print_json(answer);
    return EXIT_OK;
}

int cli_parse_output(const char *text, bool *ret_json)
{
    if (strcmp(text, "json") != 0 && strcmp(text, "text") != 0) {
        cli_usage_error("-o takes text or json, not '%s'", text);
        return -EINVAL;
    }
    *ret_json = strcmp(text, "json") == 0;
    return 0;
}

struct loop *cli_loop_new(const char *features_off, int *ret_exit)
{
    struct loop_options options = {0};
    struct err err = ERR_INIT;
    struct loop *loop = NULL;

    *ret_exit = EXIT_USAGE;
    if (features_off != NULL &&
        loop_features_parse(features_off, &options.features_off, &err) < 0) {
        cli_error("--loop-features-off: %s", err.text);
        return NULL;
    }
    *ret_exit = EXIT_FAILED;
    if (loop_uring_new(&options, &loop, &err) < 0) {
        cli_error("%s", err.text);
        return NULL;
    }
    return loop;
}

struct in_loop {
    struct loop *loop;
    void (*entry)(void *arg);
    void *arg;
};

static void in_loop_run(void *arg) MAY_WAIT
{
    struct in_loop *in_loop = arg;

    in_loop->entry(in_loop->arg);
    loop_stop(in_loop->loop);
}

int cli_run_in_loop(void (*entry)(void *arg), void *arg)
{
    struct in_loop in_loop = {.entry = entry, .arg = arg};
    int code;

    in_loop.loop = cli_loop_new(NULL, &code);
    if (in_loop.loop == NULL)
        return code;
    if (co_spawn(in_loop.loop, "main", in_loop_run, &in_loop) < 0) {
        cli_error("out of memory");
        loop_free(in_loop.loop);
        return EXIT_FAILED;
    }
    loop_run(in_loop.loop);
    loop_free(in_loop.loop);
    return EXIT_OK;
}

const char *cli_duration(uint64_t ns, char *text, size_t text_bytes)
{
    double seconds = (double)ns / (double)NS_PER_S;

    if (ns < NS_PER_MS)
        snprintf(text, text_bytes, "%.0f us", (double)ns / (double)NS_PER_US);
    else if (ns < NS_PER_S)
        snprintf(text, text_bytes, "%.1f ms", (double)ns / (double)NS_PER_MS);
    else if (seconds < 100)
        snprintf(text, text_bytes, "%.1f s", seconds);
    else if (seconds < 7200)
        snprintf(text, text_bytes, "%.0f min %02.0f s", seconds / 60 - 0.5,
                 (double)((uint64_t)seconds % 60));
    else
        snprintf(text, text_bytes, "%.1f h", seconds / 3600);
    return text;
}

const char *cli_moment(uint64_t wall_ns, char *text, size_t text_bytes)
{
    time_t seconds = (time_t)(wall_ns / NS_PER_S);
    struct tm when;

    localtime_r(&seconds, &when);
    strftime(text, text_bytes, "%F %T", &when);
    return text;
}
