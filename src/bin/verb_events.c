/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep events: what happens in a daemon, as it happens. */
#include "bin/verbs.h"

#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <time.h>

struct events {
    struct target target;
    char **patterns;
    int pattern_count;
    uint64_t left; /* to print yet; 0: no end */
    bool shutting_down;
};

static void print_help(void)
{
    printf(
        "usage: blockstep events [OPTION...] [PATTERN...]\n\n"
        "Prints the daemon's events as they come, one a line, until it ends: all, or those whose\n"
        "names match one of the shell patterns. With -o json: one JSON object a line, as it was\n"
        "sent.\n\n" TARGET_HELP "      --count N          end after so many events\n");
}

/* --- one line --- */

static void print_time(struct json_object *event)
{
    struct json_object *stamp = json_member(event, "timestamp");
    char text[32];

    printf("%s%s.%03" PRIu64 "%s ", cli_style(CLI_FAINT),
           cli_moment(json_uint(stamp, "seconds") * NS_PER_S, text, sizeof(text)),
           json_uint(stamp, "microseconds") / 1000, cli_style(CLI_PLAIN));
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);

    return length > end_length && strcmp(text + length - end_length, end) == 0;
}

/* " key=value"; durations and sizes as people read them. */
static void print_member(const char *key, struct json_object *value)
{
    char text[32];
    size_t length = strlen(key);

    if (ends_with(key, "wall-time-ns"))
        return; /* the line has its time */
    if (ends_with(key, "-ns"))
        printf(" %.*s=\"%s\"", (int)length - 3, key,
               cli_duration(json_object_get_uint64(value), text, sizeof(text)));
    else if (ends_with(key, "-bytes"))
        printf(" %.*s=\"%s\"", (int)length - 6, key,
               size_format(json_object_get_uint64(value), text, sizeof(text)));
    else if (json_object_is_type(value, json_type_string) &&
             strcspn(json_object_get_string(value), " \"\\") ==
                 strlen(json_object_get_string(value)))
        printf(" %s=%s", key, json_object_get_string(value));
    else
        printf(" %s=%s", key,
               json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                         JSON_C_TO_STRING_NOSLASHESCAPE));
}

static enum cli_style event_style(const char *name)
{
    if (strstr(name, "ERROR") != NULL || strstr(name, "FAILURE") != NULL ||
        strstr(name, "BAD") != NULL)
        return CLI_BAD;
    return CLI_BOLD;
}

static void print_event(const char *name, struct json_object *event)
{
    struct json_object *data = json_member(event, "data");

    print_time(event);
    printf("%s%s%s", cli_style(event_style(name)), name, cli_style(CLI_PLAIN));
    if (json_object_is_type(data, json_type_object)) {
        json_object_object_foreach(data, key, value)
        {
            print_member(key, value);
        }
    }
    putchar('\n');
}

/* --- the stream --- */

static bool wanted(const struct events *events, const char *name)
{
    for (int i = 0; i < events->pattern_count; i++) {
        if (fnmatch(events->patterns[i], name, 0) == 0)
            return true;
    }
    return events->pattern_count == 0;
}

/* True when that was the last one asked for. */
static bool take_event(struct events *events, struct json_object *event)
{
    const char *name = json_text(event, "event");

    if (name == NULL)
        return false;
    if (strcmp(name, "SHUTDOWN") == 0)
        events->shutting_down = true;
    if (!wanted(events, name))
        return false;
    if (events->target.json)
        puts(json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN |
                                                       JSON_C_TO_STRING_NOSLASHESCAPE));
    else
        print_event(name, event);
    fflush(stdout);
    return events->left > 0 && --events->left == 0;
}

static int stream(struct events *events, struct qmp_client *client)
{
    /* From here on nothing is missed: who starts this in a script can wait for the line. */
    fprintf(stderr, "%s: waiting for events\n", cli_program);
    for (;;) {
        CLEANUP(json_putp) struct json_object *message = NULL;
        struct err err = ERR_INIT;
        int r = qmp_client_next(client, INT_MAX, &message, &err);

        /* An end that was announced is no failure. */
        if (r < 0 && events->shutting_down)
            return EXIT_OK;
        if (r < 0) {
            cli_error("%s", err.text);
            return EXIT_FAILED;
        }
        if (r > 0 && take_event(events, message))
            return EXIT_OK;
    }
}

/* -1: go on; else the exit code. */
static int take_count(struct events *events, const char *text)
{
    char *end = NULL;

    errno = 0;
    events->left = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || *text < '0' || *text > '9' || events->left == 0)
        return cli_usage_error("--count: '%s' is not a number of events", text);
    return -1;
}

int verb_events(int argc, char **argv)
{
    static const struct option options[] = {
        TARGET_LONG_OPTIONS, {"count", required_argument, NULL, 'c'}, {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    struct events events = {0};
    int option, code;

    while ((option = getopt_long(argc, argv, TARGET_SHORT_OPTIONS, options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        if (option == 'c') {
            code = take_count(&events, optarg);
            if (code >= 0)
                return code;
        } else if (target_take(&events.target, option) < 0) {
            return EXIT_USAGE;
        }
    }
    events.patterns = argv + optind;
    events.pattern_count = argc - optind;
    code = target_connect(&events.target, &client);
    return code == EXIT_OK ? stream(&events, client) : code;
}
