/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep checkpoint, failover, stop: what changes the state of a group of disks. */
#include "bin/verbs.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#define MERGE_POLL_MS 200

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Reads the options that all verbs here have, and one of the verb's own by `take`. -1: go on. */
static int take_options(int argc, char **argv, const struct option *options, struct target *target,
                        void (*help)(void), bool (*take)(void *arg, int option), void *arg)
{
    int option;

    while ((option = getopt_long(argc, argv, TARGET_SHORT_OPTIONS, options, NULL)) != -1) {
        if (option == 'h') {
            help();
            return EXIT_OK;
        }
        if (!take(arg, option) && target_take(target, option) < 0)
            return EXIT_USAGE;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    return -1;
}

/* Asks for role and stage, and checks that the verb makes sense there: the daemon itself ignores
 * calls that come too late, as managers expect. NULL in `role` or `stage`: any. */
static int check_state(struct qmp_client *client, const char *verb, const char *role,
                       const char *stage, struct json_object **ret_status)
{
    int code = verb_run(client, verb, "query-replication", NULL, ret_status);
    const char *has_role = code == EXIT_OK ? json_text(*ret_status, "role") : NULL;
    const char *has_stage = code == EXIT_OK ? json_text(*ret_status, "stage") : NULL;

    if (code != EXIT_OK)
        return code;
    if (has_role == NULL || has_stage == NULL || strcmp(has_role, "none") == 0) {
        cli_error("this daemon has no replication");
        return EXIT_FAILED;
    }
    if (role != NULL && strcmp(role, has_role) != 0) {
        cli_error("this is the %s, and %s is for the %s", has_role, verb, role);
        return EXIT_FAILED;
    }
    if (stage != NULL && strcmp(stage, has_stage) != 0) {
        cli_error("the %s's replication is not %s: its stage is '%s'", has_role, stage, has_stage);
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

/* --- checkpoint --- */

static void checkpoint_help(void)
{
    printf(
        "usage: blockstep checkpoint [OPTION...]\n\n"
        "Makes what the primary has written until now the state that a failover falls back to.\n"
        "On the primary's host: first the secondary gets all that was written, then it begins a\n"
        "new epoch. On the secondary's host it does the second alone, which a secondary refuses\n"
        "whose primary takes the checkpoints.\n\n" TARGET_HELP "      --peer-control HOST:PORT\n"
        "                         the secondary's --control, of a primary that was started\n"
        "                         without\n");
}

static bool take_peer(void *arg, int option)
{
    const char **peer = arg;

    if (option == 'p')
        *peer = optarg;
    return option == 'p';
}

static int run_checkpoint(struct qmp_client *client, const char *what, uint64_t *ret_epoch)
{
    CLEANUP(json_putp) struct json_object *result = NULL;
    int code = verb_run(client, what, "replication-checkpoint", NULL, &result);

    if (code == EXIT_OK)
        *ret_epoch = json_uint(result, "epoch");
    return code;
}

/* The second half, at the peer. */
static int checkpoint_peer(const char *address, const struct tls_options *tls, uint64_t *ret_epoch)
{
    struct tls_creds_options creds;
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    CLEANUP(json_putp) struct json_object *status = NULL;
    struct err err = ERR_INIT;
    int code;

    if (qmp_client_connect_tls(address, tls_options_client(tls, &creds), &client, &err) < 0) {
        cli_error("the primary's part is done, but the secondary cannot be told: %s; the last "
                  "checkpoint still holds",
                  err.text);
        return EXIT_FAILED;
    }
    /* One that has taken over ignores checkpoints, as managers expect: to us that is no success. */
    code = check_state(client, "checkpoint", "secondary", "running", &status);
    return code == EXIT_OK ? run_checkpoint(client, "secondary", ret_epoch) : code;
}

static int checkpoint(struct qmp_client *client, const char *peer, const struct tls_options *tls,
                      uint64_t *ret_epoch)
{
    CLEANUP(json_putp) struct json_object *status = NULL;
    int code = check_state(client, "checkpoint", NULL, "running", &status);

    if (code != EXIT_OK)
        return code;
    if (strcmp(json_text(status, "role"), "primary") != 0 || json_member(status, "peer") != NULL)
        return run_checkpoint(client, "checkpoint", ret_epoch);
    if (peer == NULL)
        return cli_usage_error("this is the primary: say where the secondary is controlled, "
                               "--peer-control HOST:PORT");
    code = run_checkpoint(client, "primary", ret_epoch);
    return code == EXIT_OK ? checkpoint_peer(peer, tls, ret_epoch) : code;
}

int verb_checkpoint(int argc, char **argv)
{
    static const struct option options[] = {
        TARGET_LONG_OPTIONS, {"peer-control", required_argument, NULL, 'p'}, {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    struct target target = {0};
    const char *peer = NULL;
    uint64_t epoch = 0, began_ns;
    char took[32];
    int code = take_options(argc, argv, options, &target, checkpoint_help, take_peer, &peer);

    if (code >= 0)
        return code;
    code = target_connect(&target, &client);
    if (code != EXIT_OK)
        return code;
    began_ns = now_ns();
    code = checkpoint(client, peer, &target.tls, &epoch);
    if (code != EXIT_OK)
        return code;
    began_ns = now_ns() - began_ns;
    if (target.json)
        printf("{\"json-version\": %d, \"epoch\": %" PRIu64 ", \"duration-ns\": %" PRIu64 "}\n",
               CLI_JSON_VERSION, epoch, began_ns);
    else
        printf("checkpoint taken in %s, epoch %" PRIu64 " begins\n",
               cli_duration(began_ns, took, sizeof(took)), epoch);
    return EXIT_OK;
}

/* --- failover --- */

static void failover_help(void)
{
    printf(
        "usage: blockstep failover [OPTION...]\n\n"
        "On the secondary: cuts the primary off, takes over at the last checkpoint, and merges\n"
        "the overlays into the disk while the exports serve already. In stage failover-failed\n"
        "it tries again.\n\n" TARGET_HELP
        "      --wait             until the merge has ended, with its progress\n"
        "      --force            also of a group that is inconsistent: what is left of it becomes\n"
        "                         the truth, which may be a mixture of times; says what is lost\n");
}

struct failover_how {
    bool wait, force;
};

static bool take_how(void *arg, int option)
{
    struct failover_how *how = arg;

    how->wait = how->wait || option == 'w';
    how->force = how->force || option == 'f';
    return option == 'w' || option == 'f';
}

static void show_merge(struct json_object *merge)
{
    uint64_t done = json_uint(merge, "done"), total = json_uint(merge, "total");
    uint64_t rate = json_uint(merge, "rate");
    char done_text[32], total_text[32], rate_text[32], eta[32] = "?";

    if (total == 0)
        return;
    if (rate > 0 && done < total)
        cli_duration((total - done) * NS_PER_S / rate, eta, sizeof(eta));
    cli_progress("merging: %" PRIu64 " %%, %s of %s, %s/s, %s left", done * 100 / total,
                 size_format(done, done_text, sizeof(done_text)),
                 size_format(total, total_text, sizeof(total_text)),
                 size_format(rate, rate_text, sizeof(rate_text)), eta);
}

/* Until the stage is done; it polls, and wakes early when the daemon tells of a stage. */
static int wait_merged(struct qmp_client *client)
{
    for (;;) {
        CLEANUP(json_putp) struct json_object *status = NULL;
        CLEANUP(json_putp) struct json_object *event = NULL;
        struct err err = ERR_INIT;
        const char *stage;
        int code = verb_run(client, "failover", "query-replication", NULL, &status);

        if (code != EXIT_OK)
            return code;
        stage = json_text(status, "stage");
        if (stage != NULL && strcmp(stage, "done") == 0) {
            cli_progress_end();
            return EXIT_OK;
        }
        if (stage != NULL && strcmp(stage, "failover-failed") == 0) {
            cli_error("the merge has failed; the exports go on serving. Look at 'blockstep "
                      "status', then repeat 'blockstep failover'");
            return EXIT_FAILED;
        }
        show_merge(json_member(status, "merge"));
        if (qmp_client_next(client, MERGE_POLL_MS, &event, &err) < 0) {
            cli_error("%s", err.text);
            return EXIT_FAILED;
        }
    }
}

/* What it has cost to take over by force. */
static void warn_lost(struct qmp_client *client)
{
    CLEANUP(json_putp) struct json_object *status = NULL;
    const char *lost;

    if (verb_run(client, "failover", "query-replication", NULL, &status) != EXIT_OK)
        return;
    lost = json_text(status, "lost");
    if (lost != NULL)
        fprintf(stderr,
                "%s: warning: taken over with what is left: %s; the disks may hold a mixture of "
                "times: check the file systems on them\n",
                cli_program, lost);
}

static int failover(struct qmp_client *client, bool force, bool *ret_merged)
{
    CLEANUP(json_putp) struct json_object *status = NULL;
    struct json_object *arguments;
    const char *stage;
    int code = check_state(client, "failover", "secondary", NULL, &status);

    if (code != EXIT_OK)
        return code;
    stage = json_text(status, "stage");
    *ret_merged = json_member(status, "promoted") != NULL;
    if (strcmp(stage, "done") == 0 && !*ret_merged) {
        cli_error("replication has been stopped: there is no checkpoint to take over at any more; "
                  "the disks hold what the primary had forwarded");
        return EXIT_FAILED;
    }
    arguments = json_object_new_object();
    if (arguments == NULL || json_add_bool(arguments, "failover", true) < 0 ||
        json_add_bool(arguments, "force", force) < 0) {
        json_object_put(arguments);
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    code = verb_run(client, "failover", "replication-stop", arguments, NULL);
    if (code == EXIT_OK && force)
        warn_lost(client);
    return code;
}

int verb_failover(int argc, char **argv)
{
    static const struct option options[] = {
        TARGET_LONG_OPTIONS,
        {"wait", no_argument, NULL, 'w'},
        {"force", no_argument, NULL, 'f'},
        {0},
    };
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    struct target target = {0};
    struct failover_how how = {0};
    uint64_t began_ns, served_ns;
    bool merged = false;
    char took[32];
    int code = take_options(argc, argv, options, &target, failover_help, take_how, &how);

    if (code >= 0)
        return code;
    code = target_connect(&target, &client);
    if (code != EXIT_OK)
        return code;
    began_ns = now_ns();
    code = failover(client, how.force, &merged);
    if (code != EXIT_OK)
        return code;
    served_ns = now_ns() - began_ns;
    if (!target.json && merged)
        printf("it had taken over before, and the merge has ended\n");
    else if (!target.json)
        printf("took over in %s%s\n", cli_duration(served_ns, took, sizeof(took)),
               how.wait ? "" : "; the merge goes on (blockstep status shows it)");
    fflush(stdout);
    code = how.wait && !merged ? wait_merged(client) : EXIT_OK;
    if (code != EXIT_OK)
        return code;
    if (target.json)
        printf("{\"json-version\": %d, \"duration-ns\": %" PRIu64 ", \"merged\": %s}\n",
               CLI_JSON_VERSION, served_ns, how.wait || merged ? "true" : "false");
    else if (how.wait && !merged)
        printf("merged after %s\n", cli_duration(now_ns() - began_ns, took, sizeof(took)));
    return EXIT_OK;
}

/* --- stop --- */

static void stop_help(void)
{
    printf("usage: blockstep stop [OPTION...]\n\n"
           "Stops replication without a failover. On the secondary the overlays are dropped: its\n"
           "disk keeps what the primary has forwarded. The daemon goes on serving.\n\n" TARGET_HELP
           "      --quit             end the daemon; without stopping replication first\n");
}

static bool take_quit(void *arg, int option)
{
    bool *quit = arg;

    if (option == 'Q')
        *quit = true;
    return option == 'Q';
}

int verb_stop(int argc, char **argv)
{
    static const struct option options[] = {
        TARGET_LONG_OPTIONS, {"quit", no_argument, NULL, 'Q'}, {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    struct target target = {0};
    bool quit = false;
    int code = take_options(argc, argv, options, &target, stop_help, take_quit, &quit);

    if (code >= 0)
        return code;
    code = target_connect(&target, &client);
    if (code == EXIT_OK)
        code = verb_run(client, "stop", quit ? "quit" : "replication-stop", NULL, NULL);
    if (code == EXIT_OK && target.json)
        printf("{\"json-version\": %d}\n", CLI_JSON_VERSION);
    else if (code == EXIT_OK)
        puts(quit ? "the daemon ends" : "replication is stopped");
    return code;
}
