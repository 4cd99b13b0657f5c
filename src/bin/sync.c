/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/sync.h"

#include "bin/privileges.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define SYNC_POLL_MS    200
#define SYNC_CONNECT_MS 20

struct sync {
    const struct serve *serve;
    struct qmp_client *primary;
    uint64_t began_ns;
    uint64_t total_bytes;
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void job_name(const struct serve_disk *disk, char name[64])
{
    snprintf(name, 64, "sync-%s", disk->name);
}

/* nbd:HOST:PORT:exportname=DISK, or of a unix socket. */
/* With TLS it takes more than an address. 0 or -ENOMEM. */
static int tls_target_text(const struct serve_disk *disk, const struct sock_address *peer,
                           char *text, size_t text_bytes)
{
    CLEANUP(json_putp) struct json_object *options = json_object_new_object();
    struct json_object *server = json_object_new_object();
    int r = options == NULL || server == NULL ? -ENOMEM : 0;

    if (r < 0) {
        json_object_put(server);
        return r;
    }
    r |= json_add_string(server, "type", "inet");
    r |= json_add_string(server, "host", peer->host);
    r |= json_add_string(server, "port", peer->port);
    r |= json_add(options, "server", server);
    r |= json_add_string(options, "driver", "nbd");
    r |= json_add_string(options, "export", disk->name);
    r |= json_add_string(options, "tls-creds", SERVE_TLS_CLIENT);
    if (r == 0)
        snprintf(text, text_bytes, "json:%s",
                 json_object_to_json_string_ext(options, JSON_C_TO_STRING_PLAIN));
    return r != 0 ? -ENOMEM : 0;
}

static int target_text(const struct serve *serve, const struct serve_disk *disk, char *text,
                       size_t text_bytes)
{
    struct sock_address peer = {0};
    struct err err = ERR_INIT;
    int r = sock_address_parse(serve->peer, "--peer", &peer, &err);

    if (r == 0 && serve->tls.folder != NULL && peer.family == SOCK_FAMILY_INET)
        r = tls_target_text(disk, &peer, text, text_bytes);
    else if (r == 0)
        snprintf(text, text_bytes, "nbd:%s:exportname=%s", serve->peer, disk->name);
    sock_address_release(&peer);
    return r;
}

static int run(struct qmp_client *client, const char *command, struct json_object *arguments,
               struct json_object **ret_result)
{
    return verb_run(client, "synchronisation", command, arguments, ret_result);
}

static int run_on_job(struct sync *sync, const char *command, const char *key,
                      const struct serve_disk *disk)
{
    struct json_object *arguments = json_object_new_object();
    char name[64];

    job_name(disk, name);
    if (arguments == NULL || json_add_string(arguments, key, name) < 0) {
        json_object_put(arguments);
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    return run(sync->primary, command, arguments, NULL);
}

/* --- the mirrors --- */

static int start_mirror(struct sync *sync, const struct serve_disk *disk)
{
    struct json_object *arguments = json_object_new_object();
    char name[64], target[TARGET_ADDRESS_BYTES + 256];
    int r = arguments == NULL ? -ENOMEM : 0;

    job_name(disk, name);
    if (r == 0)
        r = target_text(sync->serve, disk, target, sizeof(target));
    if (r == 0) {
        r |= json_add_string(arguments, "job-id", name);
        r |= json_add_string(arguments, "device", disk->name);
        r |= json_add_string(arguments, "target", target);
        r |= json_add_string(arguments, "mode", "existing");
        r |= json_add_string(arguments, "format", "raw");
        r |= json_add_string(arguments, "sync", "full");
        r |= json_add_bool(arguments, "auto-dismiss", false);
    }
    if (r == 0)
        return run(sync->primary, "drive-mirror", arguments, NULL);
    json_object_put(arguments);
    cli_error("out of memory");
    return EXIT_FAILED;
}

struct mirrors {
    size_t count, ready, concluded;
    uint64_t done_bytes, total_bytes;
    char error[ERR_TEXT_BYTES]; /* of the first that failed */
};

static int look(struct sync *sync, struct mirrors *ret_mirrors)
{
    CLEANUP(json_putp) struct json_object *jobs = NULL;
    int code = run(sync->primary, "query-jobs", NULL, &jobs);

    *ret_mirrors = (struct mirrors){0};
    for (size_t i = 0; code == EXIT_OK && i < json_object_array_length(jobs); i++) {
        struct json_object *job = json_object_array_get_idx(jobs, i);
        const char *id = json_text(job, "id"), *status = json_text(job, "status");
        const char *error = json_text(job, "error");

        if (id == NULL || strncmp(id, "sync-", 5) != 0 || status == NULL)
            continue;
        ret_mirrors->count++;
        ret_mirrors->ready += strcmp(status, "ready") == 0;
        ret_mirrors->concluded += strcmp(status, "concluded") == 0;
        ret_mirrors->done_bytes += json_uint(job, "current-progress");
        ret_mirrors->total_bytes += json_uint(job, "total-progress");
        if (error != NULL && ret_mirrors->error[0] == '\0')
            snprintf(ret_mirrors->error, sizeof(ret_mirrors->error), "%s", error);
    }
    if (code == EXIT_OK && ret_mirrors->count < sync->serve->disk_count) {
        cli_error("synchronisation: somebody has taken its jobs away");
        return EXIT_FAILED;
    }
    if (ret_mirrors->error[0] != '\0') {
        cli_progress_end();
        cli_error("synchronisation: %s", ret_mirrors->error);
        return EXIT_FAILED;
    }
    return code;
}

static void show(const struct sync *sync, const struct mirrors *mirrors)
{
    uint64_t done = mirrors->done_bytes, total = mirrors->total_bytes;
    uint64_t elapsed_ns = now_ns() - sync->began_ns;
    uint64_t rate = (uint64_t)((double)done * (double)NS_PER_S / (double)MAX(elapsed_ns, 1));
    char done_text[32], total_text[32], rate_text[32], eta[32] = "?";

    if (total == 0)
        return;
    if (rate > 0)
        cli_duration((uint64_t)((double)(total - done) * (double)NS_PER_S / (double)rate), eta,
                     sizeof(eta));
    cli_progress("synchronising: %" PRIu64 " %%, %s of %s, %s/s, %s left", done * 100 / total,
                 size_format(done, done_text, sizeof(done_text)),
                 size_format(total, total_text, sizeof(total_text)),
                 size_format(rate, rate_text, sizeof(rate_text)), eta);
}

/* Until all mirrors are ready, or have ended: polls, and looks at once when the daemon tells of one. */
static int wait_mirrors(struct sync *sync, bool ended)
{
    for (;;) {
        CLEANUP(json_putp) struct json_object *event = NULL;
        struct mirrors mirrors;
        struct err err = ERR_INIT;
        int code = look(sync, &mirrors);

        if (code != EXIT_OK)
            return code;
        show(sync, &mirrors);
        sync->total_bytes = mirrors.done_bytes;
        if ((ended ? mirrors.concluded : mirrors.ready) == mirrors.count)
            return EXIT_OK;
        if (!ended && mirrors.concluded > 0) {
            cli_progress_end();
            cli_error("synchronisation: somebody has cancelled it");
            return EXIT_FAILED;
        }
        if (qmp_client_next(sync->primary, SYNC_POLL_MS, &event, &err) < 0) {
            cli_error("synchronisation: %s", err.text);
            return EXIT_FAILED;
        }
    }
}

static int mirror(struct sync *sync)
{
    const struct serve *serve = sync->serve;
    int code = EXIT_OK;

    for (size_t i = 0; code == EXIT_OK && i < serve->disk_count; i++)
        code = start_mirror(sync, &serve->disks[i]);
    if (code == EXIT_OK)
        code = wait_mirrors(sync, false);
    for (size_t i = 0; code == EXIT_OK && i < serve->disk_count; i++)
        code = run_on_job(sync, "block-job-cancel", "device", &serve->disks[i]);
    if (code == EXIT_OK)
        code = wait_mirrors(sync, true);
    for (size_t i = 0; code == EXIT_OK && i < serve->disk_count; i++)
        code = run_on_job(sync, "job-dismiss", "id", &serve->disks[i]);
    cli_progress_end();
    return code;
}

/* --- the first checkpoint --- */

/* The primary forwards since before its mirrors began: behind them the disks are equal, and stay so. It
 * refuses when something could not be forwarded. */
static int checkpoint(struct sync *sync, uint64_t *ret_epoch)
{
    CLEANUP(json_putp) struct json_object *result = NULL;
    struct json_object *arguments = json_object_new_object();
    int code;

    if (arguments == NULL || json_add_bool(arguments, "first", true) < 0) {
        json_object_put(arguments);
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    code = run(sync->primary, "replication-checkpoint", arguments, &result);
    if (code == EXIT_OK)
        *ret_epoch = json_uint(result, "epoch");
    return code;
}

/* --- all of it --- */

/* The daemon makes its control socket last: who connects finds all that it serves. */
static int connect_primary(struct sync *sync, pid_t parent)
{
    const struct timespec pause = {.tv_nsec = SYNC_CONNECT_MS * 1000 * 1000};

    for (;;) {
        struct err err = ERR_INIT;

        if (qmp_client_connect(sync->serve->qmp, &sync->primary, &err) == 0)
            return EXIT_OK;
        /* It could not start, and has said why. */
        if (getppid() != parent)
            return EXIT_FAILED;
        nanosleep(&pause, NULL);
    }
}

static void print_done(const struct sync *sync, uint64_t epoch)
{
    uint64_t took_ns = now_ns() - sync->began_ns;
    char bytes[32], took[32];

    if (sync->serve->json)
        printf("{\"json-version\": %d, \"synchronised\": true, \"bytes\": %" PRIu64
               ", \"duration-ns\": %" PRIu64 ", \"epoch\": %" PRIu64 "}\n",
               CLI_JSON_VERSION, sync->total_bytes, took_ns, epoch);
    else
        printf("synchronised %s in %s; epoch %" PRIu64 " begins\n",
               size_format(sync->total_bytes, bytes, sizeof(bytes)),
               cli_duration(took_ns, took, sizeof(took)), epoch);
}

static int synchronise(const struct serve *serve, pid_t parent)
{
    struct sync sync = {.serve = serve};
    uint64_t epoch = 0;
    int code = connect_primary(&sync, parent);

    sync.began_ns = now_ns();
    if (code == EXIT_OK)
        code = mirror(&sync);
    if (code == EXIT_OK)
        code = checkpoint(&sync, &epoch);
    if (code == EXIT_OK)
        print_done(&sync, epoch);
    else if (sync.primary != NULL)
        cli_error("the secondary is not synchronised; the disks are served all the same: end this "
                  "daemon and start it again with --sync");
    qmp_client_close(sync.primary);
    return code;
}

int sync_fork(struct serve *serve, struct err *err)
{
    pid_t parent = getpid(), child;
    int code;

    /* Nobody waits for the child. */
    signal(SIGCHLD, SIG_IGN);
    fflush(stdout);
    child = fork();
    if (child < 0)
        return err_set_errno(err, -errno, "cannot fork for the synchronisation");
    if (child > 0)
        return 0;
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent)
        _exit(EXIT_FAILED);
    /* The lock is the daemon's, and so is the socket of its clients. */
    if (serve->passed_fd > 0)
        close(serve->passed_fd);
    code = EXIT_FAILED;
    if (privileges_limit(err) == 0)
        code = synchronise(serve, parent);
    else
        cli_error("%s", err->text);
    fflush(stdout);
    _exit(code);
}
