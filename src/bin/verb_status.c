/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep status: what a daemon does, on one screen. */
#include "bin/verbs.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define WATCH_MS        1000
#define WATCH_GATHER_MS 50

static void print_help(void)
{
    printf(
        "usage: blockstep status [OPTION...]\n\n"
        "Shows role, stage, link, epoch and age of the checkpoint, what the overlays hold, the\n"
        "progress of a merge, and errors. With -o json: the answer of query-replication, with\n"
        "\"exports\" and \"nbd-servers\" beside.\n\n" TARGET_HELP
        "      --watch            again at every event, and every second, until the daemon ends;\n"
        "                         with -o json one object a line\n");
}

/* "  label        " */
static void print_label(const char *label)
{
    printf("  %s%-11s%s ", cli_style(CLI_FAINT), label, cli_style(CLI_PLAIN));
}

static enum cli_style stage_style(const char *stage)
{
    if (strcmp(stage, "running") == 0 || strcmp(stage, "done") == 0)
        return CLI_GOOD;
    if (strcmp(stage, "failover-failed") == 0)
        return CLI_BAD;
    return CLI_WARN;
}

static void print_head(struct json_object *status)
{
    const char *name = json_text(status, "name");
    const char *role = json_text(status, "role");
    const char *stage = json_text(status, "stage");

    if (role != NULL && strcmp(role, "none") == 0) {
        printf("%s%s%s: no replication\n", cli_style(CLI_BOLD), name != NULL ? name : "blockstep",
               cli_style(CLI_PLAIN));
        return;
    }
    if (stage == NULL)
        stage = "?";
    printf("%s%s%s: %s, %s%s%s\n", cli_style(CLI_BOLD), name != NULL ? name : "blockstep",
           cli_style(CLI_PLAIN), role != NULL ? role : "?", cli_style(stage_style(stage)), stage,
           cli_style(CLI_PLAIN));
}

static void print_checkpoint(struct json_object *status)
{
    struct json_object *last = json_member(status, "last-checkpoint");
    char age[32], held[32];

    print_label("checkpoint");
    if (json_text(status, "inconsistent-reason") != NULL) {
        printf("%snone%s: %s\n", cli_style(CLI_BAD), cli_style(CLI_PLAIN),
               json_text(status, "inconsistent-reason"));
        return;
    }
    printf("epoch %" PRIu64, json_uint(status, "epoch"));
    if (last == NULL)
        printf(", none taken yet");
    else
        printf(", %s ago", cli_duration(json_uint(last, "age-ns"), age, sizeof(age)));
    if (json_member(last, "held-ns") != NULL)
        printf(" (held requests for %s)",
               cli_duration(json_uint(last, "held-ns"), held, sizeof(held)));
    putchar('\n');
}

/* What a secondary promises, and what is missing. */
static void print_marks(struct json_object *status)
{
    const char *level = json_text(status, "durability");
    const char *inconsistent = json_text(status, "inconsistent-reason");
    const char *broken = json_text(status, "stream-reason");

    if (json_member(status, "consistent") == NULL)
        return;
    print_label("state");
    if (inconsistent != NULL)
        printf("%sinconsistent%s: a failover needs --force%s\n", cli_style(CLI_BAD),
               cli_style(CLI_PLAIN),
               json_flag(status, "failover-interrupted")
                   ? " to go on with what is left"
                   : " until a primary with --sync has copied its disks");
    else if (level == NULL)
        printf("consistent, kept in no state folder: a restart cannot know it\n");
    else if (strcmp(level, "none") == 0)
        printf("consistent, durability none: lost when the daemon is killed\n");
    else
        printf("consistent, durability %s: survives a killed daemon, not a loss of power\n", level);
    if (json_text(status, "lost") != NULL) {
        print_label("lost");
        printf("%s%s%s\n", cli_style(CLI_BAD), json_text(status, "lost"), cli_style(CLI_PLAIN));
    }
    if (broken == NULL || inconsistent != NULL)
        return;
    print_label("stream");
    printf("%sbroken%s: %s; no further checkpoint until a new synchronisation\n",
           cli_style(CLI_BAD), cli_style(CLI_PLAIN), broken);
}

/* --- the link --- */

static void print_primary_link(struct json_object *disk)
{
    struct json_object *link = json_member(disk, "link");
    const char *address = json_text(link, "address");
    const char *export = json_text(link, "export");
    bool connected = json_flag(link, "connected");
    char in_flight[32], forwarded[32];

    print_label("link");
    if (address != NULL)
        printf("%s%s%s, ", address, export != NULL ? "/" : "", export != NULL ? export : "");
    if (json_member(link, "connected") != NULL)
        printf("%s%s%s, ", cli_style(connected ? CLI_GOOD : CLI_BAD),
               connected ? "connected" : "lost", cli_style(CLI_PLAIN));
    printf("%" PRIu64 " writes (%s) in flight, %s forwarded\n", json_uint(disk, "in-flight"),
           size_format(json_uint(disk, "in-flight-bytes"), in_flight, sizeof(in_flight)),
           size_format(json_uint(disk, "forwarded-bytes"), forwarded, sizeof(forwarded)));
}

/* What a primary knows of its secondary. */
static void print_peer(struct json_object *status)
{
    struct json_object *peer = json_member(status, "peer");
    const char *address = json_text(peer, "address"), *reason = json_text(peer, "reason");
    const char *broken = json_text(peer, "stream-reason");

    if (peer == NULL)
        return;
    print_label("control");
    printf("%s, session %" PRIu64 ", ", address != NULL ? address : "?",
           json_uint(peer, "session"));
    if (json_flag(peer, "connected"))
        printf("%sconnected%s\n", cli_style(CLI_GOOD), cli_style(CLI_PLAIN));
    else
        printf("%slost%s: %s\n", cli_style(CLI_BAD), cli_style(CLI_PLAIN),
               reason != NULL ? reason : "?");
    if (broken == NULL)
        return;
    print_label("secondary");
    if (json_flag(peer, "taken-over"))
        printf("%shas taken over%s: this primary is the old copy now\n", cli_style(CLI_BAD),
               cli_style(CLI_PLAIN));
    else
        printf("%stakes no checkpoint%s: %s\n", cli_style(CLI_BAD), cli_style(CLI_PLAIN), broken);
}

static const char *server_address(struct json_object *servers, const char *id)
{
    for (size_t i = 0; servers != NULL && i < json_object_array_length(servers); i++) {
        struct json_object *server = json_object_array_get_idx(servers, i);
        struct json_object *addresses = json_member(server, "addresses");
        const char *text = json_text(server, "id");

        if (text != NULL && strcmp(text, id) == 0 && addresses != NULL &&
            json_object_array_length(addresses) > 0)
            return json_object_get_string(json_object_array_get_idx(addresses, 0));
    }
    return "?";
}

static void print_secondary_link(struct json_object *status)
{
    struct json_object *servers = json_member(status, "nbd-servers");

    for (size_t i = 0; servers != NULL && i < json_object_array_length(servers); i++) {
        struct json_object *server = json_object_array_get_idx(servers, i);
        const char *id = json_text(server, "id");
        uint64_t connections = json_uint(server, "connections");

        if (id == NULL || strcmp(id, "peer") != 0)
            continue;
        print_label("link");
        if (json_flag(server, "fenced"))
            printf("%s, the primary is fenced off\n", server_address(servers, "peer"));
        else
            printf("%s, %s%s%s\n", server_address(servers, "peer"),
                   cli_style(connections > 0 ? CLI_GOOD : CLI_WARN),
                   connections > 0 ? "the primary is connected" : "no primary is connected",
                   cli_style(CLI_PLAIN));
    }
}

/* --- disks, exports, trouble --- */

static void print_merge(struct json_object *merge)
{
    uint64_t done = json_uint(merge, "done"), total = json_uint(merge, "total");
    uint64_t rate = json_uint(merge, "rate");
    char done_text[32], total_text[32], rate_text[32], eta[32];

    if (total == 0)
        return;
    print_label("merge");
    printf("%" PRIu64 " %%, %s of %s", done * 100 / total,
           size_format(done, done_text, sizeof(done_text)),
           size_format(total, total_text, sizeof(total_text)));
    if (done < total && rate > 0)
        printf(", %s/s, %s left", size_format(rate, rate_text, sizeof(rate_text)),
               cli_duration((total - done) * NS_PER_S / rate, eta, sizeof(eta)));
    putchar('\n');
}

static void print_disk(struct json_object *disk)
{
    const char *node = json_text(disk, "secondary");
    char active[32], hidden[32];

    /* A primary has no overlays, nor has a secondary whose merge has ended. */
    if (json_member(disk, "active-bytes") == NULL)
        return;
    print_label("overlays");
    printf("%s: hidden holds %s, active %s\n", node != NULL ? node : "?",
           size_format(json_uint(disk, "hidden-bytes"), hidden, sizeof(hidden)),
           size_format(json_uint(disk, "active-bytes"), active, sizeof(active)));
}

static void print_exports(struct json_object *status)
{
    struct json_object *exports = json_member(status, "exports");

    for (size_t i = 0; exports != NULL && i < json_object_array_length(exports); i++) {
        struct json_object *export = json_object_array_get_idx(exports, i);
        const char *server = json_text(export, "x-server");
        const char *name = json_text(export, "x-name");
        uint64_t clients = json_uint(export, "x-connections");
        char size[32];

        print_label("export");
        printf("%s (%s) at %s, %s, %" PRIu64 " client%s\n", name != NULL ? name : "?",
               size_format(json_uint(export, "x-size"), size, sizeof(size)),
               server_address(json_member(status, "nbd-servers"), server != NULL ? server : ""),
               json_flag(export, "x-writable") ? "read-write" : "read-only", clients,
               clients == 1 ? "" : "s");
    }
}

static const char *error_text(struct json_object *error, const char *key)
{
    const char *text = json_text(error, key);

    return text != NULL ? text : "?";
}

static void print_error(struct json_object *error, const char *label)
{
    char when[32];

    print_label(label);
    if (error == NULL) {
        printf("none\n");
        return;
    }
    printf("%s%s of disk %s: %s of node %s failed at offset %" PRIu64 " (%" PRIu64
           " bytes): %s (%s)%s, on %s",
           cli_style(CLI_BAD), error_text(error, "side"), error_text(error, "disk"),
           error_text(error, "operation"), error_text(error, "node"), json_uint(error, "offset"),
           json_uint(error, "length"), error_text(error, "reason"), error_text(error, "errno"),
           cli_style(CLI_PLAIN), cli_moment(json_uint(error, "wall-time-ns"), when, sizeof(when)));
    if (json_uint(error, "count") > 1)
        printf(", and %" PRIu64 " more since", json_uint(error, "count") - 1);
    putchar('\n');
}

static void print_status(struct json_object *status)
{
    struct json_object *disks = json_member(status, "disks");
    size_t count = disks != NULL ? json_object_array_length(disks) : 0;
    struct json_object *peer_error = json_member(json_member(status, "peer"), "error");

    print_head(status);
    if (count > 0)
        print_checkpoint(status);
    print_marks(status);
    print_secondary_link(status);
    for (size_t i = 0; i < count; i++) {
        struct json_object *disk = json_object_array_get_idx(disks, i);

        if (json_member(disk, "link") != NULL)
            print_primary_link(disk);
        print_disk(disk);
    }
    print_peer(status);
    print_merge(json_member(status, "merge"));
    print_exports(status);
    if (count > 0)
        print_error(json_member(status, "error"), "error");
    if (peer_error != NULL)
        print_error(peer_error, "its error");
}

/* Adds the answer of a query as a member; EXIT_OK or EXIT_FAILED. */
static int add_query(struct qmp_client *client, struct json_object *status, const char *command,
                     const char *member)
{
    struct json_object *result = NULL;
    int code = verb_run(client, "status", command, NULL, &result);

    if (code == EXIT_OK && json_add(status, member, result) < 0) {
        cli_error("out of memory");
        code = EXIT_FAILED;
    }
    return code;
}

static int fetch_status(struct qmp_client *client, struct json_object **ret_status)
{
    CLEANUP(json_putp) struct json_object *status = NULL;
    int code = verb_run(client, "status", "query-replication", NULL, &status);

    if (code == EXIT_OK)
        code = add_query(client, status, "query-block-exports", "exports");
    if (code == EXIT_OK)
        code = add_query(client, status, "x-query-nbd-servers", "nbd-servers");
    if (code == EXIT_OK && json_add_uint(status, "json-version", CLI_JSON_VERSION) < 0) {
        cli_error("out of memory");
        code = EXIT_FAILED;
    }
    if (code == EXIT_OK)
        *ret_status = TAKE_PTR(status);
    return code;
}

/* --- watching --- */

/* On a terminal each picture replaces the last; elsewhere an empty line stands between them. */
static void show_watched(struct json_object *status, bool json, bool first)
{
    if (json) {
        puts(json_object_to_json_string_ext(status, JSON_C_TO_STRING_PLAIN |
                                                        JSON_C_TO_STRING_NOSLASHESCAPE));
    } else {
        if (isatty(STDOUT_FILENO))
            fputs("\033[H\033[J", stdout);
        else if (!first)
            putchar('\n');
        print_status(status);
    }
    fflush(stdout);
}

/* Events say that there is something new; ages and rates change without one. Events that came
 * together are shown together. */
static int wait_for_news(struct qmp_client *client, bool *ret_ended)
{
    int timeout_ms = WATCH_MS;

    for (;;) {
        CLEANUP(json_putp) struct json_object *event = NULL;
        struct err err = ERR_INIT;
        int r = qmp_client_next(client, timeout_ms, &event, &err);
        const char *name = json_text(event, "event");

        *ret_ended = *ret_ended || (name != NULL && strcmp(name, "SHUTDOWN") == 0);
        if (r == 0 || *ret_ended)
            return EXIT_OK;
        if (r < 0) {
            cli_error("%s", err.text);
            return EXIT_FAILED;
        }
        timeout_ms = WATCH_GATHER_MS;
    }
}

static int watch(struct qmp_client *client, bool json)
{
    bool ended = false;

    for (bool first = true;; first = false) {
        CLEANUP(json_putp) struct json_object *status = NULL;
        int code = fetch_status(client, &status);

        if (code != EXIT_OK)
            return code;
        show_watched(status, json, first);
        code = wait_for_news(client, &ended);
        if (code != EXIT_OK)
            return code;
        if (ended) {
            fprintf(stderr, "%s: the daemon ends\n", cli_program);
            return EXIT_OK;
        }
    }
}

int verb_status(int argc, char **argv)
{
    static const struct option options[] = {
        TARGET_LONG_OPTIONS, {"watch", no_argument, NULL, 'w'}, {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    CLEANUP(json_putp) struct json_object *status = NULL;
    struct target target = {0};
    bool watching = false;
    int option, code;

    while ((option = getopt_long(argc, argv, TARGET_SHORT_OPTIONS, options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        if (option == 'w')
            watching = true;
        else if (target_take(&target, option) < 0)
            return EXIT_USAGE;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    code = target_connect(&target, &client);
    if (code == EXIT_OK && watching)
        return watch(client, target.json);
    if (code == EXIT_OK)
        code = fetch_status(client, &status);
    if (code != EXIT_OK)
        return code;
    if (target.json)
        cli_print_json(status);
    else
        print_status(status);
    return EXIT_OK;
}
