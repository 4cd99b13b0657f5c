/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The daemon's life: made, started from its configuration, ended in order. */
#include "control/daemon.h"

#include "base/log.h"
#include "block/io.h"
#include "control/bitmap_refs.h"
#include "control/commands.h"
#include "drivers/table.h"
#include "drivers/tls_object.h"
#include "loop/file.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static void daemon_event(void *arg, const char *name, struct json_object *data)
{
    struct daemon *daemon = arg;

    qmp_server_event(daemon->qmp, name, data);
}

static int make_parts(struct daemon *daemon, const struct config *config, struct err *err)
{
    const struct nbd_service_options service = {
        .admission = {.admit = daemon_admit, .ended = daemon_writer_ended, .arg = daemon},
    };

    daemon->owner = (struct replication_owner){
        .fence = daemon_fence,
        .renew = daemon_renew_admission,
        .cut_others = daemon_cut_others,
        .arg = daemon,
    };
    daemon->graph = graph_new(daemon->loop, config->drivers);
    daemon->qmp = qmp_server_new(daemon->loop, commands_tables, events_table, daemon);
    if (daemon->graph == NULL || daemon->qmp == NULL)
        return err_no_memory(err);
    qmp_server_set_left(daemon->qmp, daemon_client_left);
    graph_set_events(daemon->graph, daemon_event, daemon);
    graph_set_object_types(daemon->graph, object_types_table);
    job_list_init(&daemon->jobs, daemon->graph);
    daemon->nbd = nbd_service_new(daemon->graph, &service);
    daemon->group = replication_group_new(daemon->graph, &daemon->jobs, &daemon->owner);
    if (daemon->nbd == NULL || daemon->group == NULL)
        return err_no_memory(err);
    return 0;
}

int daemon_new(struct loop *loop, const struct config *config, struct daemon **ret_daemon,
               struct err *err)
{
    struct daemon *daemon = calloc(1, sizeof(*daemon));
    int r;

    if (daemon == NULL)
        return err_no_memory(err);
    daemon->loop = loop;
    daemon->config = config;
    daemon->insecure = config->insecure;
    daemon->passed_fd = config->passed_fd;
    daemon->vm_running = true;
    co_queue_init(&daemon->quit);
    list_init(&daemon->promoted);
    r = make_parts(daemon, config, err);
    if (r < 0) {
        daemon_end(daemon);
        daemon_free(daemon);
        return r;
    }
    *ret_daemon = daemon;
    return 0;
}

/* --- start --- */

int daemon_listener_creds(struct daemon *daemon, const struct sock_address *address, const char *id,
                          const char *what, struct tls_creds **ret_creds, struct err *err)
{
    struct tls_creds *creds = NULL;
    int r = id != NULL ? tls_object_creds(daemon->graph, id, TLS_SERVER, &creds, err) : 0;

    if (r < 0)
        return err_prefix(err, "%s", what);
    r = address_check_local(
        address, daemon->insecure || (creds != NULL && tls_creds_prove_peer(creds)), what, err);
    if (r < 0) {
        tls_creds_unref(creds);
        return r;
    }
    *ret_creds = creds;
    return 0;
}

/* Who passed the socket decided where it listens, but not for how open this daemon is. Returns with the
 * credentials of its clients. */
static int check_passed(struct daemon *daemon, const struct sock *listener, const char *tls_creds,
                        const char *what, struct tls_creds **ret_creds, struct err *err)
{
    const char *name = sock_local_name(listener);
    struct sock_address address = {.family = SOCK_FAMILY_UNIX};
    int r = 0;

    /* One on unix may be abstract, and so without a path. */
    if (strncmp(name, "unix:", 5) != 0)
        r = sock_address_parse(name, what, &address, err);
    if (r == 0)
        r = daemon_listener_creds(daemon, &address, tls_creds, what, ret_creds, err);
    sock_address_release(&address);
    return r;
}

int daemon_adopt_nbd_server(struct daemon *daemon, const char *id, int fd, const char *tls_creds,
                            unsigned max_connections, struct err *err)
{
    struct tls_creds *creds = NULL;
    struct sock *listener = NULL;
    char what[160];
    int r = sock_adopt(daemon->loop, fd, true, &listener, err);

    snprintf(what, sizeof(what), "NBD server '%s', passed socket", id);
    if (r == 0)
        r = check_passed(daemon, listener, tls_creds, what, &creds, err);
    if (r == 0)
        r = nbd_server_start_sock(daemon->nbd, id, listener, max_connections, creds, err);
    if (r < 0 && listener != NULL)
        sock_close(listener);
    tls_creds_unref(creds);
    return r;
}

/* addr.type=fd. There is one socket, and it can be used once. */
static int add_passed_server(struct daemon *daemon, const struct config_nbd_server *server,
                             const char *id, struct err *err) MAY_WAIT
{
    int fd = daemon->passed_fd;
    char number[16];

    snprintf(number, sizeof(number), "%d", fd);
    if (fd <= 0 || strcmp(server->addr.fd, number) != 0)
        return err_set(
            err, -EBADF, "NBD server '%s': descriptor '%s' is no socket that was passed%s", id,
            server->addr.fd,
            fd > 0 ? "; the one that was is 3" : " (LISTEN_FDS), or it is in use already");
    daemon->passed_fd = 0;
    return daemon_adopt_nbd_server(daemon, id, fd, server->tls_creds,
                                   (unsigned)server->max_connections, err);
}

int daemon_add_nbd_server(struct daemon *daemon, const struct config_nbd_server *server,
                          struct err *err)
{
    const char *id = server->id != NULL ? server->id : NBD_SERVER_DEFAULT_ID;
    struct tls_creds *creds = NULL;
    char what[160];
    int r;

    if (server->tls_authz != NULL)
        return err_set(err, -EOPNOTSUPP,
                       "NBD server '%s': tls-authz is not supported: who has a certificate of the "
                       "authority, or a key, may connect",
                       id);
    if (server->addr.type == ADDRESS_FD)
        return add_passed_server(daemon, server, id, err);
    struct sock_address address = address_of_opts(&server->addr);
    snprintf(what, sizeof(what), "NBD server '%s'", id);
    r = daemon_listener_creds(daemon, &address, server->tls_creds, what, &creds, err);
    if (r < 0)
        return r;
    r = nbd_server_start_tls(daemon->nbd, id, &address, 1, (unsigned)server->max_connections, creds,
                             err);
    tls_creds_unref(creds);
    return r;
}

/* Remembers an export that a failover makes writable. */
static int promote_later(struct daemon *daemon, const struct config_export *options,
                         struct err *err)
{
    struct daemon_promoted *promoted = calloc(1, sizeof(*promoted));

    if (promoted == NULL)
        return err_no_memory(err);
    if (config_export_copy(options, &promoted->options) < 0) {
        free(promoted);
        return err_no_memory(err);
    }
    list_push_back(&daemon->promoted, &promoted->link);
    return 0;
}

/* Users write to the top of what replicates. A layer of it belongs to what stands above. */
static int check_export_writable(struct node *node, struct err *err)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge->parent != NULL)
            return node_check_blocked(node, "export, writable,", err);
    }
    return 0;
}

int daemon_add_export(struct daemon *daemon, const struct config_export *options, struct err *err)
{
    struct nbd_export_options export = {
        .id = options->id,
        .name = options->name,
        .description = options->description,
        .server = options->server,
        .writable = options->writable,
    };
    struct bitmap_refs bitmaps = {.count = 0};
    int r;

    if (options->writable && options->writable_after_failover)
        return err_set(err, -EINVAL,
                       "export '%s': writable and writable-after-failover contradict each other",
                       options->id);
    r = graph_get(daemon->graph, options->node_name, &export.node, err);
    if (r == 0 && options->writable)
        r = check_export_writable(export.node, err);
    if (r < 0)
        return r;
    r = bitmap_refs_find(daemon->graph, export.node, options->bitmaps, "bitmaps", true, &bitmaps,
                         err);
    if (r < 0)
        return r;
    export.bitmaps = bitmaps.items;
    export.bitmap_count = bitmaps.count;
    if (export.name == NULL)
        export.name = options->node_name;
    export.node = node_ref(export.node);
    r = nbd_export_add(daemon->nbd, &export, err);
    node_unref(export.node);
    if (r < 0 || !options->writable_after_failover)
        return r;
    r = promote_later(daemon, options, err);
    if (r < 0) {
        struct err ignored = ERR_INIT;

        (void)nbd_export_del(daemon->nbd, options->id, NBD_REMOVE_HARD, &ignored);
    }
    return r;
}

static int start_monitor(struct daemon *daemon, const struct config_monitor *monitor,
                         struct err *err) MAY_WAIT
{
    struct tls_creds *creds = NULL;
    int r = daemon_listener_creds(daemon, &monitor->address, monitor->tls_creds, "control listener",
                                  &creds, err);

    if (r < 0)
        return r;
    r = qmp_server_listen_tls(daemon->qmp, monitor->id, &monitor->address, monitor->role, creds,
                              err);
    tls_creds_unref(creds);
    return r;
}

static int start_item(struct daemon *daemon, const struct config_item *item, struct err *err)
    MAY_WAIT
{
    struct node *node;

    switch (item->kind) {
    case CONFIG_BLOCKDEV:
        return graph_add(daemon->graph, item->tree.options, item->tree.syntax, "--blockdev", true,
                         &node, err);
    case CONFIG_OBJECT:
        return daemon_add_object(daemon, item->tree.options, item->tree.syntax, "--object", err);
    case CONFIG_NBD_SERVER:
        return daemon_add_nbd_server(daemon, &item->nbd_server, err);
    case CONFIG_EXPORT:
        return daemon_add_export(daemon, &item->export, err);
    case CONFIG_MONITOR:
        return start_monitor(daemon, &item->monitor, err);
    }
    return 0;
}

/* Whether an option says what the passed socket is for. */
static bool passed_is_named(const struct config *config)
{
    for (size_t i = 0; i < config->item_count; i++) {
        const struct config_item *item = &config->items[i];

        if (item->kind == CONFIG_NBD_SERVER && item->nbd_server.addr.type == ADDRESS_FD)
            return true;
    }
    return false;
}

/* What tells one run of this host from the next; empty when it cannot be told. */
static void read_boot_id(struct loop *loop, char boot_id[GROUP_RECORD_BOOT_ID_BYTES]) MAY_WAIT
{
    struct err ignored = ERR_INIT;
    struct file *file = NULL;
    ssize_t length = 0;

    if (file_open(loop, "/proc/sys/kernel/random/boot_id", 0, FILE_AIO_THREADS, &file, &ignored) ==
        0)
        length = file_read(file, boot_id, GROUP_RECORD_BOOT_ID_BYTES - 1, 0);
    file_close(file);
    boot_id[MAX(length, 0)] = '\0';
    boot_id[strcspn(boot_id, "\n")] = '\0';
}

static int use_state(struct daemon *daemon, struct err *err) MAY_WAIT
{
    char boot_id[GROUP_RECORD_BOOT_ID_BYTES];
    const struct replication_state state = {
        .folder = daemon->config->state,
        .level = daemon->config->durability,
        .boot_id = boot_id,
    };

    if (state.folder == NULL)
        return 0;
    read_boot_id(daemon->loop, boot_id);
    return replication_use_state(daemon->group, &state, err);
}

int daemon_start(struct daemon *daemon, struct err *err)
{
    int r = config_check(daemon->config, err);

    if (r == 0)
        r = use_state(daemon, err);
    if (r == 0 && daemon->passed_fd > 0 && !passed_is_named(daemon->config)) {
        r = daemon_adopt_nbd_server(daemon, NBD_SERVER_DEFAULT_ID, daemon->passed_fd, NULL, 0, err);
        daemon->passed_fd = 0;
    }
    for (size_t i = 0; r == 0 && i < daemon->config->item_count; i++)
        r = start_item(daemon, &daemon->config->items[i], err);
    return r;
}

/* --- end --- */

void daemon_quit(struct daemon *daemon, const char *why)
{
    if (daemon->quit_why != NULL)
        return;
    daemon->quit_why = why;
    co_queue_wake_all(&daemon->quit);
}

void daemon_wait_quit(struct daemon *daemon)
{
    while (daemon->quit_why == NULL)
        co_queue_wait(&daemon->quit);
}

static void tell_clients(struct daemon *daemon)
{
    struct json_object *data = json_object_new_object();

    if (data != NULL && (json_add_bool(data, "guest", false) < 0 ||
                         json_add_string(data, "reason", daemon->quit_why) < 0)) {
        json_object_put(data);
        data = NULL;
    }
    qmp_server_event(daemon->qmp, "SHUTDOWN", data);
}

static bool has_succeeded(const struct io_count *count)
{
    return count->requests > count->errors;
}

static bool was_changed(const struct node *node)
{
    const struct node_stats *stats = &node->stats;
    return has_succeeded(&stats->write) || has_succeeded(&stats->zero) ||
           has_succeeded(&stats->discard);
}

/* What clients have been told to be written becomes durable, also without a flush of theirs. */
static void flush_tops(struct daemon *daemon) MAY_WAIT
{
    struct node *node = NULL;

    while ((node = graph_next(daemon->graph, node)) != NULL) {
        struct err err = ERR_INIT;
        struct edge *edge = NULL;
        int r;

        if (!node->named || !list_empty(&node->parents) || node->read_only || !was_changed(node))
            continue;
        node_ref(node);
        r = graph_attach_root(daemon->graph, node, "shutdown", 0, PERM_ALL, NULL, NULL, &edge,
                              &err);
        if (r == 0) {
            r = io_flush(edge);
            if (r < 0)
                log_error("daemon", "node '%s': flush at the end: %s", node->name, strerror(-r));
            graph_detach(edge);
        }
        node_unref(node);
    }
}

/* What is interrupted, not lost, but must not end in silence. */
static void tell_of_merge(struct daemon *daemon)
{
    enum replication_mode mode;
    enum replication_stage stage;

    if (replication_state(daemon->group, &mode, &stage) && stage == REPLICATION_FAILOVER)
        log_warning("daemon", "the merge of a failover has not ended: the overlays are still "
                              "needed, and the next start goes on with it (by itself with a "
                              "state folder, else with overlays=merge)");
}

/* Control goes first: its commands use all the rest. */
void daemon_end(struct daemon *daemon)
{
    if (daemon->ended)
        return;
    daemon->ended = true;
    if (daemon->graph != NULL)
        graph_hurry_all(daemon->graph);
    if (daemon->qmp != NULL) {
        qmp_server_flush_events(daemon->qmp);
        if (daemon->quit_why != NULL)
            tell_clients(daemon);
        qmp_server_close(daemon->qmp);
    }
    nbd_service_free(daemon->nbd);
    daemon->nbd = NULL;
    if (daemon->graph == NULL)
        return;
    flush_tops(daemon);
    if (daemon->group != NULL)
        tell_of_merge(daemon);
    replication_group_free(daemon->group);
    daemon->group = NULL;
    if (daemon->jobs.graph != NULL)
        job_list_end(&daemon->jobs);
    graph_free(daemon->graph);
    daemon->graph = NULL;
}

void daemon_free(struct daemon *daemon)
{
    struct daemon_promoted *promoted;

    if (daemon == NULL)
        return;
    assert(daemon->ended);
    while ((promoted = LIST_POP_FRONT(&daemon->promoted, struct daemon_promoted, link)) != NULL) {
        opts_release(config_export_opts, &promoted->options);
        free(promoted);
    }
    qmp_server_free(daemon->qmp);
    free(daemon);
}

/* --- a process --- */

struct run {
    struct loop *loop;
    const struct config *config;
    const struct daemon_hooks *hooks;
    struct daemon *daemon;
    struct err *err;
    int result;
    bool finished;
    unsigned signals;
};

static void run_signal(void *arg, int signal)
{
    struct run *run = arg;

    if (run->signals++ == 0) {
        log_info("daemon", "signal %d (%s): ending", signal, strsignal(signal));
        if (run->daemon != NULL)
            daemon_quit(run->daemon, "host-signal");
    } else {
        log_warning("daemon", "signal %d again: not waiting for requests under way", signal);
        loop_stop(run->loop);
    }
}

static void run_main(void *arg) MAY_WAIT
{
    struct run *run = arg;
    struct daemon *daemon = NULL;
    int r = daemon_new(run->loop, run->config, &daemon, run->err);

    if (r == 0) {
        run->daemon = daemon;
        r = daemon_start(daemon, run->err);
        if (r == 0 && run->hooks != NULL && run->hooks->started != NULL)
            r = run->hooks->started(daemon, run->hooks->arg, run->err);
        if (r == 0) {
            if (run->signals > 0)
                daemon_quit(daemon, "host-signal");
            daemon_wait_quit(daemon);
            if (run->hooks != NULL && run->hooks->stopping != NULL)
                run->hooks->stopping(run->hooks->arg);
        }
        daemon_end(daemon);
        run->daemon = NULL;
        daemon_free(daemon);
    }
    run->result = r;
    run->finished = true;
    loop_stop(run->loop);
}

static const int end_signals[] = {SIGTERM, SIGINT, SIGHUP};

static int set_signals(struct run *run, bool on, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(end_signals); i++) {
        int r = loop_signal_set(run->loop, end_signals[i], on ? run_signal : NULL, run, err);

        if (r < 0)
            return r;
    }
    return 0;
}

int daemon_run(struct loop *loop, const struct config *config, const struct daemon_hooks *hooks,
               struct err *err)
{
    struct run run = {.loop = loop, .config = config, .hooks = hooks, .err = err};
    struct err ignored = ERR_INIT;
    int r = set_signals(&run, true, err);

    if (r < 0)
        return r;
    if (co_spawn(loop, "daemon", run_main, &run) < 0)
        return err_no_memory(err);
    loop_run(loop);
    if (!run.finished)
        return err_set(err, -EINTR, "ended by a second signal, with requests under way");
    (void)set_signals(&run, false, &ignored);
    return run.result;
}
