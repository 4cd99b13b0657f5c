/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/serve.h"

#include "base/log.h"
#include "bin/privileges.h"
#include "bin/runtime.h"
#include "bin/service.h"
#include "bin/sync.h"
#include "block/object.h"
#include "drivers/table.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- options --- */

static int take_disk(struct serve *serve, const char *text)
{
    struct serve_disk *disk = &serve->disks[serve->disk_count];
    const char *equals = strchr(text, '=');
    struct err err = ERR_INIT;

    if (serve->disk_count >= SERVE_MAX_DISKS)
        return cli_usage_error("--disk: more than %u disks", SERVE_MAX_DISKS);
    disk->path = text;
    snprintf(disk->name, sizeof(disk->name), "disk%zu", serve->disk_count);
    /* A path with "=" in a later part is a path: names have no "/". */
    if (equals != NULL && memchr(text, '/', (size_t)(equals - text)) == NULL) {
        disk->path = equals + 1;
        snprintf(disk->name, sizeof(disk->name), "%.*s", (int)MIN(equals - text, 31), text);
    }
    if (name_check(disk->name, "--disk", &err) < 0)
        return cli_usage_error("%s", err.text);
    if (*disk->path == '\0')
        return cli_usage_error("--disk: '%s' has no path", text);
    for (size_t i = 0; i < serve->disk_count; i++) {
        if (strcmp(serve->disks[i].name, disk->name) == 0)
            return cli_usage_error("--disk: there are two disks called '%s'", disk->name);
    }
    serve->disk_count++;
    return -1;
}

static int take_logging(int option, const char *text)
{
    enum log_level level;

    if (option == 'T')
        return log_trace_enable(text) > 0
                   ? -1
                   : cli_usage_error("--trace: no trace point matches '%s'", text);
    if (log_level_parse(text, &level) < 0)
        return cli_usage_error("--log-level: '%s' is none of error, warning, info, debug, trace",
                               text);
    log_set_level(level);
    return -1;
}

int serve_take(struct serve *serve, int option)
{
    int taken = tls_options_take(&serve->tls, option);

    if (taken != 0)
        return taken;
    switch (option) {
    case 'n':
        serve->name = optarg;
        return -1;
    case 'd':
        return take_disk(serve, optarg);
    case 's':
        serve->state = optarg;
        return -1;
    case 'e':
        serve->export = optarg;
        return -1;
    case 'I':
        serve->insecure = true;
        return -1;
    case 'u':
        serve->runas = optarg;
        return -1;
    case 'F':
        serve->features_off = optarg;
        return -1;
    case 'o':
        return cli_parse_output(optarg, &serve->json) < 0 ? EXIT_USAGE : -1;
    case 'L':
    case 'T':
        return take_logging(option, optarg);
    default:
        fprintf(stderr, "Try '%s --help'.\n", cli_program);
        return EXIT_USAGE;
    }
}

int serve_passed_fd(struct serve *serve)
{
    struct err err = ERR_INIT;

    if (service_listen_fd(&serve->passed_fd, &err) >= 0)
        return 0;
    cli_usage_error("%s", err.text);
    return -EINVAL;
}

/* --- steps --- */

int serve_node(struct serve *serve, const struct serve_disk *disk, struct json_object *options,
               struct node **ret_node, struct err *err)
{
    char where[64];
    int r;

    if (options == NULL)
        return err_no_memory(err);
    snprintf(where, sizeof(where), "disk '%s'", disk->name);
    r = graph_add(serve->daemon->graph, options, OPTS_JSON, where, true, ret_node, err);
    json_object_put(options);
    return r;
}

const char *serve_node_name(const struct serve_disk *disk, const char *suffix,
                            char name[NODE_NAME_BYTES])
{
    snprintf(name, NODE_NAME_BYTES, "%s%s", disk->name, suffix);
    return name;
}

struct json_object *serve_options(const struct serve_disk *disk, const char *driver,
                                  const char *suffix)
{
    struct json_object *options = json_object_new_object();
    char name[NODE_NAME_BYTES];

    if (options != NULL &&
        (json_add_string(options, "driver", driver) < 0 ||
         json_add_string(options, "node-name", serve_node_name(disk, suffix, name)) < 0)) {
        json_object_put(options);
        return NULL;
    }
    return options;
}

struct json_object *serve_file_options(const char *path)
{
    struct json_object *options = json_object_new_object();

    if (options != NULL && (json_add_string(options, "driver", "file") < 0 ||
                            json_add_string(options, "filename", path) < 0)) {
        json_object_put(options);
        return NULL;
    }
    return options;
}

/* The password of both sides' private keys, as an object. */
static int add_password(struct serve *serve, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *options = json_object_new_object();

    if (object_find(serve->daemon->graph, SERVE_TLS_PASSWORD) != NULL)
        return 0;
    if (options == NULL || json_add_string(options, "qom-type", "secret") < 0 ||
        json_add_string(options, "id", SERVE_TLS_PASSWORD) < 0 ||
        json_add_string(options, "file", serve->tls.password_file) < 0)
        return err_no_memory(err);
    return daemon_add_object(serve->daemon, options, OPTS_JSON, "--tls-password-file", err);
}

int serve_tls(struct serve *serve, enum tls_endpoint endpoint, const char **ret_id, struct err *err)
{
    const char *id = endpoint == TLS_SERVER ? SERVE_TLS_SERVER : SERVE_TLS_CLIENT;
    bool psk = serve->tls.kind == TLS_PSK;

    *ret_id = serve->tls.folder != NULL ? id : NULL;
    if (serve->tls.folder == NULL || object_find(serve->daemon->graph, id) != NULL)
        return 0;
    if (serve->tls.password_file != NULL && add_password(serve, err) < 0)
        return err->code;
    CLEANUP(json_putp) struct json_object *options = json_object_new_object();
    int r = options == NULL ? -ENOMEM : 0;
    if (r == 0) {
        if (serve->tls.password_file != NULL)
            r |= json_add_string(options, "passwordid", SERVE_TLS_PASSWORD);
        r |= json_add_string(options, "qom-type", psk ? "tls-creds-psk" : "tls-creds-x509");
        r |= json_add_string(options, "id", id);
        r |= json_add_string(options, "dir", serve->tls.folder);
        r |= json_add_string(options, "endpoint", endpoint == TLS_SERVER ? "server" : "client");
        if (endpoint == TLS_CLIENT && serve->tls.username != NULL)
            r |= json_add_string(options, "username", serve->tls.username);
    }
    if (r != 0)
        return err_no_memory(err);
    return daemon_add_object(serve->daemon, options, OPTS_JSON, "--tls-creds-dir", err);
}

/* What a listener at that address speaks, after the check that it may be there. */
static int listener_creds(struct serve *serve, const struct sock_address *address,
                          const char *option, struct tls_creds **ret_creds, struct err *err)
    MAY_WAIT
{
    const char *id = NULL;
    int r = 0;

    if (address->family == SOCK_FAMILY_INET)
        r = serve_tls(serve, TLS_SERVER, &id, err);
    return r < 0 ? r : daemon_listener_creds(serve->daemon, address, id, option, ret_creds, err);
}

int serve_listen(struct serve *serve, const char *id, const char *text, const char *option,
                 struct err *err)
{
    struct sock_address address = {0};
    struct tls_creds *creds = NULL;
    int r = sock_address_parse(text, option, &address, err);

    if (r < 0)
        return r;
    r = listener_creds(serve, &address, option, &creds, err);
    if (r == 0)
        r = nbd_server_start_tls(serve->daemon->nbd, id, &address, 1, 0, creds, err);
    tls_creds_unref(creds);
    sock_address_release(&address);
    return r;
}

/* As everywhere, TCP speaks TLS when there are credentials, and unix sockets do not. */
static int listen_passed(struct serve *serve, struct err *err) MAY_WAIT
{
    const char *tls = NULL;
    int family = AF_UNIX, r = 0;
    socklen_t length = sizeof(family);

    if (getsockopt(serve->passed_fd, SOL_SOCKET, SO_DOMAIN, &family, &length) == 0 &&
        family != AF_UNIX)
        r = serve_tls(serve, TLS_SERVER, &tls, err);
    return r < 0
               ? r
               : daemon_adopt_nbd_server(serve->daemon, SERVER_USER, serve->passed_fd, tls, 0, err);
}

int serve_listen_user(struct serve *serve, struct err *err)
{
    if (serve->passed_fd > 0)
        return listen_passed(serve, err);
    return serve_listen(serve, SERVER_USER, serve->export, "--export", err);
}

int serve_export(struct serve *serve, const struct serve_disk *disk, const char *server,
                 const char *node_name, bool writable, bool after_failover, struct err *err)
{
    char id[64];
    struct config_export export = {
        .id = id,
        .node_name = (char *)node_name,
        .name = (char *)disk->name,
        .server = (char *)server,
        .writable = writable,
        .writable_after_failover = after_failover,
    };

    snprintf(id, sizeof(id), "%s-%s", disk->name, server);
    return daemon_add_export(serve->daemon, &export, err);
}

int serve_control(struct serve *serve, const char *text, enum qmp_role role, const char *option,
                  struct err *err)
{
    struct sock_address address = {0};
    struct tls_creds *creds = NULL;
    int r = sock_address_parse(text, option, &address, err);

    if (r < 0)
        return r;
    r = listener_creds(serve, &address, option, &creds, err);
    if (r == 0)
        r = qmp_server_listen_tls(serve->daemon->qmp, NULL, &address, role, creds, err);
    tls_creds_unref(creds);
    sock_address_release(&address);
    return r;
}

/* --- the word that all is ready --- */

struct servers_text {
    char peer[300], user[300];
};

static void note_server(void *arg, const struct nbd_server_info *info)
{
    struct servers_text *text = arg;
    char *to = strcmp(info->id, SERVER_PEER) == 0 ? text->peer : text->user;

    if (info->address_count > 0)
        snprintf(to, sizeof(text->peer), "%s", info->addresses[0]);
}

static void print_ready_text(const struct serve *serve, enum replication_mode mode,
                             const struct servers_text *servers, const char *control)
{
    uint64_t total = 0;
    char size[32];

    for (size_t i = 0; i < serve->disk_count; i++)
        total += serve->disks[i].length_bytes;
    printf("%s '%s' is ready: %zu disk%s, %s", replication_mode_name(mode), serve->name,
           serve->disk_count, serve->disk_count == 1 ? "" : "s",
           size_format(total, size, sizeof(size)));
    if (servers->peer[0] != '\0')
        printf("; takes a primary at %s", servers->peer);
    if (control != NULL)
        printf(", its control at %s", control);
    if (serve->peer != NULL)
        printf("; forwards to %s", serve->peer);
    if (servers->user[0] != '\0')
        printf("; serves at %s", servers->user);
    putchar('\n');
}

static void print_ready_json(const struct serve *serve, enum replication_mode mode,
                             const struct servers_text *servers, const char *control)
{
    CLEANUP(json_putp) struct json_object *ready = json_object_new_object();
    int r = ready == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_uint(ready, "json-version", CLI_JSON_VERSION);
        r |= json_add_bool(ready, "ready", true);
        r |= json_add_string(ready, "role", replication_mode_name(mode));
        r |= json_add_string(ready, "name", serve->name);
        r |= json_add_string(ready, "qmp", serve->qmp);
        if (servers->peer[0] != '\0')
            r |= json_add_string(ready, "listen", servers->peer);
        if (servers->user[0] != '\0')
            r |= json_add_string(ready, "export", servers->user);
        if (control != NULL)
            r |= json_add_string(ready, "control", control);
    }
    if (r == 0)
        puts(json_object_to_json_string_ext(ready, JSON_C_TO_STRING_NOSLASHESCAPE));
}

static void print_ready(const struct serve *serve, enum replication_mode mode)
{
    const char *control = serve->control != NULL
                              ? qmp_server_address(serve->daemon->qmp, serve->control_index)
                              : NULL;
    struct servers_text servers = {0};

    nbd_server_query(serve->daemon->nbd, note_server, &servers);
    if (serve->json)
        print_ready_json(serve, mode, &servers, control);
    else
        print_ready_text(serve, mode, &servers, control);
    fflush(stdout);
}

/* --- the run --- */

struct run {
    struct serve *serve;
    enum replication_mode mode;
    int (*assemble)(struct serve *serve, struct err *err);
};

static int started(struct daemon *daemon, void *arg, struct err *err) MAY_WAIT
{
    struct run *run = arg;
    struct serve *serve = run->serve;
    int r;

    serve->daemon = daemon;
    r = run->assemble(serve, err);
    if (r == 0)
        r = serve_control(serve, serve->qmp, QMP_ROLE_FULL, "control socket", err);
    if (r == 0 && serve->control != NULL) {
        serve->control_index = 1;
        r = serve_control(serve, serve->control, QMP_ROLE_PEER, "--control", err);
    }
    if (r == 0)
        print_ready(serve, run->mode);
    if (r == 0)
        service_notify("READY=1");
    return r;
}

static void stopping(void *arg)
{
    service_notify("STOPPING=1");
}

static int check(struct serve *serve)
{
    struct err err = ERR_INIT;

    if (serve->name == NULL)
        return cli_usage_error("--name is missing");
    if (name_check(serve->name, "--name", &err) < 0)
        return cli_usage_error("%s", err.text);
    if (serve->disk_count == 0)
        return cli_usage_error("--disk is missing");
    if (serve->passed_fd > 0 && serve->export != NULL)
        return cli_usage_error("--export: systemd has passed a socket for it already");
    return tls_options_check(&serve->tls);
}

/* An image of another format taken for a raw disk would be ruined at the first write. */
static int check_format(const struct serve_disk *disk, struct err *err)
{
    static const char qcow2_magic[4] = {'Q', 'F', 'I', '\xfb'};
    CLEANUP(fd_close) int fd = open(disk->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char magic[4];

    /* What cannot be read is told of when the disk is opened. */
    if (fd < 0 || pread(fd, magic, sizeof(magic), 0) != (ssize_t)sizeof(magic) ||
        memcmp(magic, qcow2_magic, sizeof(magic)) != 0)
        return 0;
    return err_set(err, -EMEDIUMTYPE,
                   "disk '%s': %s is a qcow2 image, and only raw disks are supported yet; convert "
                   "it (qemu-img convert -O raw)",
                   disk->name, disk->path);
}

static int set_state_folder(struct serve *serve, struct err *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *folder = serve->state_folder;
    size_t size = sizeof(serve->state_folder);
    int length;

    if (serve->state != NULL)
        length = snprintf(folder, size, "%s", serve->state);
    else if (geteuid() == 0)
        length = snprintf(folder, size, "/var/lib/blockstep/%s", serve->name);
    else if (state != NULL && *state != '\0')
        length = snprintf(folder, size, "%s/blockstep/%s", state, serve->name);
    else if (home != NULL && *home != '\0')
        length = snprintf(folder, size, "%s/.local/state/blockstep/%s", home, serve->name);
    else
        return err_set(err, -ENOENT,
                       "HOME is not set, so there is no place for the state: say "
                       "--state DIR");
    if (length < 0 || (size_t)length >= size)
        return err_set(err, -ENAMETOOLONG, "--state: the path is too long");
    return state_folder_check(folder, err);
}

/* Where control sockets are is for the user to say who starts the daemon. */
static int become(const char *user, struct err *err)
{
    char folder[RUNTIME_PATH_BYTES];
    int r = runtime_folder(folder, sizeof(folder), err);

    if (r == 0 && setenv("BLOCKSTEP_RUNTIME_DIR", folder, 1) < 0)
        r = err_no_memory(err);
    return r < 0 ? r : privileges_become(user, err);
}

static int prepare(struct serve *serve, struct err *err)
{
    int r = serve->runas != NULL ? become(serve->runas, err) : 0;

    for (size_t i = 0; r == 0 && i < serve->disk_count; i++)
        r = check_format(&serve->disks[i], err);
    if (r == 0)
        r = runtime_address(serve->name, true, serve->qmp, sizeof(serve->qmp), err);
    return r < 0 ? r : set_state_folder(serve, err);
}

int serve_run(struct serve *serve, enum replication_mode mode,
              int (*assemble)(struct serve *serve, struct err *err))
{
    struct run run = {.serve = serve, .mode = mode, .assemble = assemble};
    const struct daemon_hooks hooks = {.started = started, .stopping = stopping, .arg = &run};
    struct config config = {
        .drivers = drivers_table,
        .insecure = serve->insecure,
        .name = (char *)serve->name,
        .peer_control = (char *)serve->peer_control,
        .state = serve->state_folder,
        .durability = serve->durability,
    };
    struct err err = ERR_INIT;
    struct loop *loop;
    int code = check(serve);

    if (code >= 0)
        return code;
    service_log_init();
    if (prepare(serve, &err) < 0) {
        cli_error("%s", err.text);
        return EXIT_FAILED;
    }
    if (serve->sync && mode == REPLICATION_PRIMARY && sync_fork(serve, &err) < 0) {
        cli_error("%s", err.text);
        return EXIT_FAILED;
    }
    loop = cli_loop_new(serve->features_off, &code);
    if (loop == NULL)
        return code;
    code = privileges_limit(&err);
    if (code == 0)
        code = daemon_run(loop, &config, &hooks, &err);
    log_flush_limit();
    if (code < 0)
        cli_error("%s", err.text);
    if (code == -EINTR)
        _exit(EXIT_FAILED); /* requests are under way: nothing can be freed */
    loop_free(loop);
    return code < 0 ? EXIT_FAILED : EXIT_OK;
}
