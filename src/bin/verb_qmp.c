/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep qmp: commands of the control protocol, from arguments or line by line. */
#include "bin/verbs.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static void print_help(void)
{
    printf("usage: blockstep qmp [OPTION...] [COMMAND [KEY=VALUE...] | JSON]\n\n"
           "Runs a command and prints what it returns. A VALUE that is JSON (12, true, {...}) is\n"
           "sent as such, any other as a string. Without COMMAND it reads commands from standard\n"
           "input, one a line, and prints answers and events as they come.\n\n" TARGET_HELP);
}

static int add_argument(struct json_object *arguments, const char *text, struct err *err)
{
    CLEANUP(free_ptr) char *key = strdup(text);
    char *equals = key != NULL ? strchr(key, '=') : NULL;
    struct json_object *value = NULL;
    struct err ignored = ERR_INIT;

    if (key == NULL)
        return err_no_memory(err);
    if (equals == NULL || equals == key)
        return err_set(err, -EINVAL, "'%s' is not KEY=VALUE", text);
    *equals = '\0';
    if (json_parse(equals + 1, strlen(equals + 1), key, &value, &ignored) < 0)
        value = json_object_new_string(equals + 1);
    if (json_object_object_get_ex(arguments, key, NULL)) {
        json_object_put(value);
        return err_set(err, -EINVAL, "'%s' is given twice", key);
    }
    return json_add(arguments, key, value) < 0 ? err_no_memory(err) : 0;
}

/* One command from words; prints its answer. */
static int run_words(struct qmp_client *client, const char *command, char **words, int count)
{
    struct json_object *arguments = json_object_new_object();
    CLEANUP(json_putp) struct json_object *result = NULL;
    struct err err = ERR_INIT;
    int code;

    for (int i = 0; arguments != NULL && i < count; i++) {
        if (add_argument(arguments, words[i], &err) < 0) {
            json_object_put(arguments);
            return cli_usage_error("%s", err.text);
        }
    }
    code = verb_run(client, command, command, arguments, &result);
    if (code == EXIT_OK)
        cli_print_json(result);
    return code;
}

/* Sends text as it is and prints the one answer to it. */
static int run_json(struct qmp_client *client, const char *text)
{
    CLEANUP(json_putp) struct json_object *request = NULL;
    struct err err = ERR_INIT;

    if (json_parse(text, strlen(text), "command", &request, &err) < 0)
        return cli_usage_error("%s", err.text);
    if (qmp_client_send(client, text, strlen(text), &err) < 0) {
        cli_error("%s", err.text);
        return EXIT_FAILED;
    }
    for (;;) {
        CLEANUP(json_putp) struct json_object *message = NULL;
        int r = qmp_client_next(client, QMP_CLIENT_ANSWER_MS, &message, &err);

        if (r <= 0) {
            cli_error("%s", r == 0 ? "no answer" : err.text);
            return EXIT_FAILED;
        }
        if (json_member(message, "event") != NULL)
            continue;
        cli_print_json(message);
        return json_member(message, "error") != NULL ? EXIT_FAILED : EXIT_OK;
    }
}

#define MAX_WORDS 64

/* A line of standard input: JSON, or a command and its arguments. */
static int run_line(struct qmp_client *client, char *line)
{
    char *words[MAX_WORDS], *rest = NULL;
    int count = 0;

    line += strspn(line, " \t\r\n");
    if (*line == '\0' || *line == '#')
        return EXIT_OK;
    if (*line == '{')
        return run_json(client, line);
    for (char *word = strtok_r(line, " \t\r\n", &rest); word != NULL && count < MAX_WORDS;
         word = strtok_r(NULL, " \t\r\n", &rest))
        words[count++] = word;
    return run_words(client, words[0], words + 1, count - 1);
}

/* Events that have arrived; -EPIPE and the like when the daemon has gone. */
static int print_events(struct qmp_client *client)
{
    struct err err = ERR_INIT;

    for (;;) {
        CLEANUP(json_putp) struct json_object *message = NULL;
        int r = qmp_client_next(client, 0, &message, &err);

        if (r < 0)
            cli_error("%s", err.text);
        if (r <= 0)
            return r;
        cli_print_json(message);
    }
}

static int run_interactive(struct qmp_client *client)
{
    CLEANUP(free_ptr) char *line = NULL;
    size_t capacity = 0;
    int code = EXIT_OK;

    if (isatty(STDIN_FILENO))
        fprintf(stderr, "One command a line, for example: query-status (query-commands lists them; "
                        "end with Ctrl-D)\n");
    setvbuf(stdin, NULL, _IONBF, 0);
    for (;;) {
        struct pollfd wait[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                                {.fd = qmp_client_fd(client), .events = POLLIN}};

        fflush(stdout);
        if (poll(wait, ARRAY_LEN(wait), -1) < 0 && errno != EINTR)
            return EXIT_FAILED;
        if (wait[1].revents != 0 && print_events(client) < 0)
            return EXIT_FAILED;
        if (wait[0].revents == 0)
            continue;
        if (getline(&line, &capacity, stdin) < 0)
            return code;
        if (run_line(client, line) != EXIT_OK)
            code = EXIT_FAILED;
    }
}

int verb_qmp(int argc, char **argv)
{
    static const struct option options[] = {TARGET_LONG_OPTIONS, {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    struct target target = {0};
    int option, code;

    while ((option = getopt_long(argc, argv, "+" TARGET_SHORT_OPTIONS, options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        if (target_take(&target, option) < 0)
            return EXIT_USAGE;
    }
    code = target_connect(&target, &client);
    if (code != EXIT_OK)
        return code;
    if (optind == argc)
        return run_interactive(client);
    if (argv[optind][0] == '{')
        return argc - optind == 1 ? run_json(client, argv[optind])
                                  : cli_usage_error("one JSON object, or COMMAND KEY=VALUE...");
    return run_words(client, argv[optind], argv + optind + 1, argc - optind - 1);
}
