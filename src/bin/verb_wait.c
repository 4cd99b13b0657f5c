/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep wait: until a daemon is in the state that a script needs. */
#include "bin/verbs.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <time.h>

/* Events say when to look again; not everything has one, and none may be relied on. */
#define LOOK_MS    500
#define CONNECT_MS 100 /* between attempts while the daemon does not listen yet */

enum condition { FOR_NOTHING, FOR_STAGE, FOR_CHECKPOINT, FOR_EPOCH, FOR_LINK };

struct wait {
    struct target target;
    const char *text; /* --for */
    enum condition condition;
    const char *stage;
    bool link_up;
    uint64_t epoch;
    uint64_t first_epoch; /* FOR_CHECKPOINT: that at the first look */
    bool looked;
    uint64_t deadline_ns; /* DEADLINE_NEVER: none */
};

static const char *const stages[] = {"none", "running", "failover", "failover-failed", "done"};

static void print_help(void)
{
    printf("usage: blockstep wait --for CONDITION [OPTION...]\n\n"
           "Waits until the daemon is there and the condition holds:\n\n"
           "  stage=STAGE   replication is in that stage: none, running, failover,\n"
           "                failover-failed or done; the bare name of a stage will do\n"
           "  checkpoint    a checkpoint is taken from now on\n"
           "  epoch=N       the epoch is N or a later one\n"
           "  link=up|down  primary: all links to the secondary stand, or one does not;\n"
           "                secondary: a primary is connected, or none is\n\n"
           "Exit status: 0 it holds, 1 failed (the daemon ended, or cannot come to that any\n"
           "more), 2 wrong usage, 3 the time has passed.\n\n" TARGET_HELP
           "      --for CONDITION    what to wait for\n"
           "      --timeout SECONDS  how long to wait at most (default: without end)\n");
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* --- the condition --- */

static bool take_stage(struct wait *wait, const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(stages); i++) {
        if (strcmp(name, stages[i]) != 0)
            continue;
        wait->condition = FOR_STAGE;
        wait->stage = stages[i];
        return true;
    }
    return false;
}

/* -1: go on; else the exit code. */
static int take_condition(struct wait *wait, const char *text)
{
    char *end = NULL;

    wait->text = text;
    if (take_stage(wait, strncmp(text, "stage=", 6) == 0 ? text + 6 : text))
        return -1;
    if (strcmp(text, "checkpoint") == 0) {
        wait->condition = FOR_CHECKPOINT;
        return -1;
    }
    if (strcmp(text, "link=up") == 0 || strcmp(text, "link=down") == 0) {
        wait->condition = FOR_LINK;
        wait->link_up = strcmp(text, "link=up") == 0;
        return -1;
    }
    if (strncmp(text, "epoch=", 6) == 0 && text[6] >= '0' && text[6] <= '9') {
        errno = 0;
        wait->epoch = strtoull(text + 6, &end, 10);
        wait->condition = FOR_EPOCH;
        if (errno == 0 && *end == '\0')
            return -1;
    }
    return cli_usage_error("--for: '%s' is none of stage=STAGE, checkpoint, epoch=N, link=up|down",
                           text);
}

static int take_timeout(struct wait *wait, const char *text)
{
    char *end = NULL;
    double seconds = strtod(text, &end);

    if (end == text || *end != '\0' || !(seconds >= 0 && seconds <= 1e9))
        return cli_usage_error("--timeout: '%s' is not a number of seconds", text);
    wait->deadline_ns = now_ns() + (uint64_t)(seconds * (double)NS_PER_S);
    return -1;
}

static bool links_up(struct json_object *status)
{
    struct json_object *disks = json_member(status, "disks");
    size_t count = disks != NULL ? json_object_array_length(disks) : 0;
    size_t links = 0;

    for (size_t i = 0; i < count; i++) {
        struct json_object *link = json_member(json_object_array_get_idx(disks, i), "link");

        links += link != NULL;
        if (link != NULL && !json_flag(link, "connected"))
            return false;
    }
    return links > 0;
}

/* A secondary's link is its NBD server for the peer. */
static bool peer_connected(struct json_object *servers)
{
    for (size_t i = 0; servers != NULL && i < json_object_array_length(servers); i++) {
        struct json_object *server = json_object_array_get_idx(servers, i);
        const char *id = json_text(server, "id");

        if (id != NULL && strcmp(id, "peer") == 0)
            return json_uint(server, "connections") > 0;
    }
    return false;
}

/* EXIT_OK, with the answer in *ret_holds, or EXIT_FAILED after a message. */
static int look(struct wait *wait, struct qmp_client *client, bool *ret_holds)
{
    CLEANUP(json_putp) struct json_object *status = NULL;
    CLEANUP(json_putp) struct json_object *servers = NULL;
    int code = verb_run(client, "wait", "query-replication", NULL, &status);
    const char *stage = json_text(status, "stage");
    const char *role = json_text(status, "role");
    uint64_t epoch = json_uint(status, "epoch");

    if (code == EXIT_OK && wait->condition == FOR_LINK && role != NULL &&
        strcmp(role, "secondary") == 0)
        code = verb_run(client, "wait", "x-query-nbd-servers", NULL, &servers);
    if (code != EXIT_OK)
        return code;
    if (!wait->looked)
        wait->first_epoch = epoch;
    wait->looked = true;
    if (stage != NULL && wait->condition == FOR_STAGE && strcmp(wait->stage, "done") == 0 &&
        strcmp(stage, "failover-failed") == 0) {
        cli_error("the merge has failed, so stage 'done' needs another 'blockstep failover'");
        return EXIT_FAILED;
    }
    if (wait->condition == FOR_STAGE)
        *ret_holds = stage != NULL && strcmp(stage, wait->stage) == 0;
    else if (wait->condition == FOR_CHECKPOINT)
        *ret_holds = *ret_holds || epoch > wait->first_epoch;
    else if (wait->condition == FOR_EPOCH)
        *ret_holds = epoch >= wait->epoch;
    else
        *ret_holds = (servers != NULL ? peer_connected(servers) : links_up(status)) ==
                     wait->link_up;
    return EXIT_OK;
}

/* --- waiting --- */

/* Milliseconds until the deadline, `most` at most; 0: it has passed. */
static int left_ms(const struct wait *wait, int most)
{
    uint64_t now = now_ns();

    if (wait->deadline_ns == DEADLINE_NEVER)
        return most;
    if (wait->deadline_ns <= now)
        return 0;
    return (int)MIN((wait->deadline_ns - now) / NS_PER_MS + 1, (uint64_t)most);
}

static int timed_out(const struct wait *wait)
{
    cli_error("'%s' did not come in time", wait->text);
    return EXIT_TIMED_OUT;
}

/* A daemon that does not listen yet is waited for, too. */
static int connect_patiently(struct wait *wait, struct qmp_client **ret_client)
{
    char address[TARGET_ADDRESS_BYTES];
    struct tls_creds_options tls;
    int code = target_address(&wait->target, address);

    while (code == EXIT_OK) {
        struct err err = ERR_INIT;
        int r = qmp_client_connect_tls(address, tls_options_client(&wait->target.tls, &tls),
                                       ret_client, &err);
        int pause_ms = left_ms(wait, CONNECT_MS);
        const struct timespec pause = {.tv_nsec = (long)pause_ms * (long)NS_PER_MS};

        if (r == 0)
            return EXIT_OK;
        if (r != -ENOENT && r != -ECONNREFUSED) {
            cli_error("%s", err.text);
            return EXIT_FAILED;
        }
        if (pause_ms == 0)
            return timed_out(wait);
        nanosleep(&pause, NULL);
    }
    return code;
}

/* Until something happens or it is time to look; the checkpoint's event is seen on the way. */
static int next_occasion(const struct wait *wait, struct qmp_client *client, bool *ret_checkpoint)
{
    CLEANUP(json_putp) struct json_object *event = NULL;
    struct err err = ERR_INIT;
    const char *name;
    int r = qmp_client_next(client, left_ms(wait, LOOK_MS), &event, &err);

    if (r < 0) {
        cli_error("%s", err.text);
        return EXIT_FAILED;
    }
    name = json_text(event, "event");
    *ret_checkpoint = name != NULL && strcmp(name, "REPLICATION_CHECKPOINT") == 0;
    return EXIT_OK;
}

static int wait_for(struct wait *wait, struct qmp_client *client)
{
    bool checkpoint = false;

    for (;;) {
        bool holds = checkpoint && wait->condition == FOR_CHECKPOINT;
        int code = look(wait, client, &holds);

        if (code != EXIT_OK || holds)
            return code;
        if (left_ms(wait, LOOK_MS) == 0)
            return timed_out(wait);
        code = next_occasion(wait, client, &checkpoint);
        if (code != EXIT_OK)
            return code;
    }
}

static int take(struct wait *wait, int option)
{
    if (option == 'F')
        return take_condition(wait, optarg);
    if (option == 't')
        return take_timeout(wait, optarg);
    return target_take(&wait->target, option) < 0 ? EXIT_USAGE : -1;
}

int verb_wait(int argc, char **argv)
{
    static const struct option options[] = {TARGET_LONG_OPTIONS,
                                            {"for", required_argument, NULL, 'F'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    struct wait wait = {.deadline_ns = DEADLINE_NEVER};
    uint64_t began_ns = now_ns();
    int option, code;

    while ((option = getopt_long(argc, argv, TARGET_SHORT_OPTIONS, options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        code = take(&wait, option);
        if (code >= 0)
            return code;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    if (wait.condition == FOR_NOTHING)
        return cli_usage_error("--for is missing: what to wait for?");
    code = connect_patiently(&wait, &client);
    if (code == EXIT_OK)
        code = wait_for(&wait, client);
    if (code == EXIT_OK && wait.target.json)
        printf("{\"json-version\": %d, \"for\": \"%s\", \"waited-ns\": %" PRIu64 "}\n",
               CLI_JSON_VERSION, wait.text, now_ns() - began_ns);
    return code;
}
