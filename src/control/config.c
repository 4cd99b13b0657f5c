/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/config.h"

#include "control/bitmap_refs.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const export_types[] = {"nbd", NULL};

const struct opt config_nbd_server_opts[] = {
    ADDRESS_OPTS_FLAT("addr"),
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_nbd_server, id),
     .fallback = "default",
     .help = "what exports call it in server="},
    {.name = "max-connections",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct config_nbd_server, max_connections),
     .max = 10000,
     .help = "connections at once (0: 100)"},
    {.name = "tls-creds",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_nbd_server, tls_creds),
     .help = "id of TLS credentials with endpoint=server"},
    {.name = "tls-authz",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_nbd_server, tls_authz),
     .help = "not supported yet"},
    {0},
};

const struct opt config_export_opts[] = {
    {.name = "type",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct config_export, type),
     .required = true,
     .values = export_types,
     .help = "kind of export"},
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_export, id),
     .required = true,
     .help = "what commands call it"},
    {.name = "node-name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_export, node_name),
     .required = true,
     .help = "the node to export"},
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_export, name),
     .help = "what clients call it (the node's name)"},
    {.name = "description",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_export, description),
     .help = "text for clients that list exports"},
    {.name = "server",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct config_export, server),
     .help = "id of the NBD server, where there are several"},
    {.name = "writable",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct config_export, writable),
     .help = "whether clients may write"},
    {.name = "writable-after-failover",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct config_export, writable_after_failover),
     .help = "becomes writable when a failover has succeeded"},
    {.name = "writethrough",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct config_export, writethrough),
     .help = "accepted; flush and FUA are always honoured"},
    {.name = "bitmaps",
     .type = OPT_REFS,
     .offset = OPT_FIELD(struct config_export, bitmaps),
     .members = bitmap_ref_opts,
     .help = "a list of bitmaps to show to clients: names, or objects with node and name"},
    {.name = "allocation-depth",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct config_export, allocation_depth),
     .help = "accepted; clients always may ask for qemu:allocation-depth"},
    {0},
};

/* False when memory is out. */
static bool copy_text(const char *from, char **to)
{
    *to = from != NULL ? strdup(from) : NULL;
    return from == NULL || *to != NULL;
}

int config_export_copy(const struct config_export *from, struct config_export *ret_to)
{
    struct config_export copy = *from;
    bool ok = true;

    ok &= copy_text(from->id, &copy.id);
    ok &= copy_text(from->node_name, &copy.node_name);
    ok &= copy_text(from->name, &copy.name);
    ok &= copy_text(from->description, &copy.description);
    ok &= copy_text(from->server, &copy.server);
    copy.bitmaps = json_object_get(from->bitmaps);
    if (!ok) {
        opts_release(config_export_opts, &copy);
        return -ENOMEM;
    }
    *ret_to = copy;
    return 0;
}

static void monitor_release(struct config_monitor *monitor)
{
    free(monitor->id);
    sock_address_release(&monitor->address);
    free(monitor->tls_creds);
}

static void item_release(struct config_item *item)
{
    switch (item->kind) {
    case CONFIG_BLOCKDEV:
    case CONFIG_OBJECT:
        json_object_put(item->tree.options);
        break;
    case CONFIG_NBD_SERVER:
        opts_release(config_nbd_server_opts, &item->nbd_server);
        break;
    case CONFIG_EXPORT:
        opts_release(config_export_opts, &item->export);
        break;
    case CONFIG_MONITOR:
        monitor_release(&item->monitor);
        break;
    }
}

void config_release(struct config *config)
{
    for (size_t i = 0; i < config->item_count; i++)
        item_release(&config->items[i]);
    for (size_t i = 0; i < config->chardev_count; i++) {
        free(config->chardevs[i].id);
        sock_address_release(&config->chardevs[i].address);
        free(config->chardevs[i].tls_creds);
    }
    free(config->items);
    free(config->chardevs);
    free(config->name);
    free(config->peer_control);
    free(config->state);
    *config = (struct config){0};
}

int config_durability(const char *text, enum group_durability *ret_level, struct err *err)
{
    for (int level = GROUP_LEVEL_NONE; level <= GROUP_LEVEL_HOST; level++) {
        if (strcmp(text, group_durability_name((enum group_durability)level)) == 0) {
            *ret_level = (enum group_durability)level;
            return 0;
        }
    }
    return err_set(err, -EINVAL, "--durability: '%s' is none of none, process", text);
}

/* A zeroed item at the end of the list, which counts it only with item_keep(). */
static struct config_item *item_new(struct config *config, enum config_kind kind, struct err *err)
{
    struct config_item *items;

    if (config->item_count >= CONFIG_MAX_ITEMS) {
        err_set(err, -E2BIG, "more than %u nodes, objects, servers, exports and monitors",
                CONFIG_MAX_ITEMS);
        return NULL;
    }
    items = realloc(config->items, (config->item_count + 1) * sizeof(*items));
    if (items == NULL) {
        err_no_memory(err);
        return NULL;
    }
    config->items = items;
    items[config->item_count] = (struct config_item){.kind = kind};
    return &items[config->item_count];
}

static int item_keep(struct config *config, int result)
{
    if (result == 0)
        config->item_count++;
    return result;
}

/* Reads the text and fills `out` by the table. */
static int read_by_table(const struct opt *table, const char *text, const char *implied_key,
                         const char *where, void *out, struct err *err)
{
    CLEANUP(json_putp) struct json_object *object = NULL;
    enum opts_syntax syntax;
    int r = opts_read(text, implied_key, where, &object, &syntax, err);

    if (r < 0)
        return r;
    return opts_parse(table, object, syntax, where, NULL, out, err);
}

int config_add_blockdev(struct config *config, const char *text, struct err *err)
{
    struct config_item *item = item_new(config, CONFIG_BLOCKDEV, err);

    if (item == NULL)
        return err->code;
    return item_keep(config, opts_read(text, "driver", "--blockdev", &item->tree.options,
                                       &item->tree.syntax, err));
}

int config_add_object(struct config *config, const char *text, struct err *err)
{
    struct config_item *item = item_new(config, CONFIG_OBJECT, err);

    if (item == NULL)
        return err->code;
    return item_keep(config, opts_read(text, "qom-type", "--object", &item->tree.options,
                                       &item->tree.syntax, err));
}

int config_add_blockdev_json(struct config *config, struct json_object *options, struct err *err)
{
    struct config_item *item = NULL;

    if (options == NULL)
        return err_no_memory(err);
    item = item_new(config, CONFIG_BLOCKDEV, err);
    if (item == NULL) {
        json_object_put(options);
        return err->code;
    }
    item->tree.options = options;
    item->tree.syntax = OPTS_JSON;
    return item_keep(config, 0);
}

int config_add_nbd_server(struct config *config, const char *text, struct err *err)
{
    struct config_item *item = item_new(config, CONFIG_NBD_SERVER, err);

    if (item == NULL)
        return err->code;
    return item_keep(config, read_by_table(config_nbd_server_opts, text, NULL, "--nbd-server",
                                           &item->nbd_server, err));
}

int config_add_export(struct config *config, const char *text, struct err *err)
{
    struct config_item *item = item_new(config, CONFIG_EXPORT, err);

    if (item == NULL)
        return err->code;
    return item_keep(
        config, read_by_table(config_export_opts, text, "type", "--export", &item->export, err));
}

/* --- control listeners --- */

/* `id`: of the character device; NULL: none. */
static int add_listener(struct config *config, const char *id, const struct sock_address *address,
                        enum qmp_role role, const char *tls_creds, struct err *err)
{
    struct config_item *item = item_new(config, CONFIG_MONITOR, err);

    if (item == NULL)
        return err->code;
    item->monitor.role = role;
    if (!copy_text(id, &item->monitor.id) || !copy_text(tls_creds, &item->monitor.tls_creds) ||
        sock_address_copy(address, &item->monitor.address) < 0) {
        monitor_release(&item->monitor);
        return err_no_memory(err);
    }
    return item_keep(config, 0);
}

struct chardev_opts {
    int backend;
    char *id, *path, *host, *port, *tls_creds;
    bool server, wait;
};

static const char *const chardev_backends[] = {"socket", NULL};

static const struct opt chardev_opts[] = {
    {.name = "backend",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct chardev_opts, backend),
     .required = true,
     .values = chardev_backends,
     .help = "kind of character device"},
    {.name = "id",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct chardev_opts, id),
     .required = true,
     .help = "what --monitor calls it"},
    {.name = "path",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct chardev_opts, path),
     .help = "path of a unix socket"},
    {.name = "host",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct chardev_opts, host),
     .help = "host name or address to listen on"},
    {.name = "port",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct chardev_opts, port),
     .help = "port number to listen on"},
    {.name = "server",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct chardev_opts, server),
     .help = "must be on: the daemon listens"},
    {.name = "tls-creds",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct chardev_opts, tls_creds),
     .help = "id of TLS credentials with endpoint=server"},
    {.name = "wait",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct chardev_opts, wait),
     .fallback = "off",
     .help = "must be off: the daemon does not wait for a client"},
    {0},
};

static const struct config_chardev *chardev_find(const struct config *config, const char *id)
{
    for (size_t i = 0; i < config->chardev_count; i++) {
        if (strcmp(config->chardevs[i].id, id) == 0)
            return &config->chardevs[i];
    }
    return NULL;
}

static int chardev_check(const struct config *config, const struct chardev_opts *opts,
                         struct err *err)
{
    if (!opts->server || opts->wait)
        return err_set(err, -EINVAL,
                       "--chardev: '%s' must have server=on,wait=off: the daemon listens, and "
                       "does not wait for a client",
                       opts->id);
    if ((opts->path != NULL) == (opts->port != NULL))
        return err_set(err, -EINVAL,
                       "--chardev: '%s' needs either path= or host= and port=", opts->id);
    if (opts->path != NULL && opts->host != NULL)
        return err_set(err, -EINVAL, "--chardev: '%s' has both path= and host=", opts->id);
    if (chardev_find(config, opts->id) != NULL)
        return err_set(err, -EEXIST, "--chardev: id '%s' is used twice", opts->id);
    return 0;
}

static int chardev_keep(struct config *config, const struct chardev_opts *opts, struct err *err)
{
    const struct sock_address address = {
        .family = opts->path != NULL ? SOCK_FAMILY_UNIX : SOCK_FAMILY_INET,
        .host = opts->host,
        .port = opts->port,
        .path = opts->path,
    };
    struct config_chardev *chardevs, *chardev;

    if (config->chardev_count >= QMP_MAX_LISTENERS)
        return err_set(err, -E2BIG, "--chardev: more than %u", QMP_MAX_LISTENERS);
    chardevs = realloc(config->chardevs, (config->chardev_count + 1) * sizeof(*chardevs));
    if (chardevs == NULL)
        return err_no_memory(err);
    config->chardevs = chardevs;
    chardev = &chardevs[config->chardev_count];
    *chardev = (struct config_chardev){.id = strdup(opts->id)};
    if (chardev->id == NULL || sock_address_copy(&address, &chardev->address) < 0) {
        free(chardev->id);
        return err_no_memory(err);
    }
    if (opts->tls_creds != NULL && (chardev->tls_creds = strdup(opts->tls_creds)) == NULL) {
        free(chardev->id);
        sock_address_release(&chardev->address);
        return err_no_memory(err);
    }
    config->chardev_count++;
    return 0;
}

int config_add_chardev(struct config *config, const char *text, struct err *err)
{
    struct chardev_opts opts = {0};
    int r = read_by_table(chardev_opts, text, "backend", "--chardev", &opts, err);

    if (r < 0)
        return r;
    r = chardev_check(config, &opts, err);
    if (r == 0)
        r = chardev_keep(config, &opts, err);
    opts_release(chardev_opts, &opts);
    return r;
}

struct monitor_opts {
    char *chardev;
    int mode, role;
    bool pretty;
};

static const char *const monitor_modes[] = {"control", NULL};
static const char *const role_names[] = {"full", "peer", NULL};

_Static_assert(QMP_ROLE_FULL == 0 && QMP_ROLE_PEER == 1, "role_names is in this order");

static const struct opt monitor_opts[] = {
    {.name = "chardev",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct monitor_opts, chardev),
     .required = true,
     .help = "id of the character device"},
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct monitor_opts, mode),
     .values = monitor_modes,
     .help = "QMP is the only one"},
    {.name = "role",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct monitor_opts, role),
     .values = role_names,
     .help = "peer: for the other host, which may run few commands"},
    {.name = "pretty",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct monitor_opts, pretty),
     .help = "accepted and ignored"},
    {0},
};

int config_add_monitor(struct config *config, const char *text, struct err *err)
{
    struct monitor_opts opts = {0};
    const struct config_chardev *chardev;
    int r = read_by_table(monitor_opts, text, "chardev", "--monitor", &opts, err);

    if (r < 0)
        return r;
    chardev = chardev_find(config, opts.chardev);
    if (chardev == NULL)
        r = err_set(err, -ENOENT,
                    "--monitor: there is no --chardev with id '%s' before it on the command line",
                    opts.chardev);
    else
        r = add_listener(config, chardev->id, &chardev->address, (enum qmp_role)opts.role,
                         chardev->tls_creds, err);
    opts_release(monitor_opts, &opts);
    return r;
}

struct qmp_opts {
    char *address, *tls_creds;
    int role;
    bool server, wait;
};

static const struct opt qmp_opts[] = {
    {.name = "address",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct qmp_opts, address),
     .required = true,
     .help = "unix:PATH or inet:HOST:PORT"},
    {.name = "role",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct qmp_opts, role),
     .values = role_names,
     .help = "peer: for the other host, which may run few commands"},
    {.name = "tls-creds",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct qmp_opts, tls_creds),
     .help = "id of TLS credentials with endpoint=server"},
    {.name = "server",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct qmp_opts, server),
     .fallback = "on",
     .help = "must be on: the daemon listens"},
    {.name = "wait",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct qmp_opts, wait),
     .fallback = "off",
     .help = "must be off: the daemon does not wait for a client"},
    {0},
};

static int add_qmp(struct config *config, const struct qmp_opts *opts, struct err *err)
{
    struct sock_address address = {0};
    const char *text = opts->address;
    int r;

    if (!opts->server || opts->wait)
        return err_set(err, -EINVAL, "--qmp: server=off and wait=on are not supported");
    if (strncmp(text, "inet:", 5) == 0 || strncmp(text, "tcp:", 4) == 0)
        text = strchr(text, ':') + 1;
    else if (strncmp(text, "unix:", 5) != 0)
        return err_set(err, -EINVAL, "--qmp: '%s' is neither unix:PATH nor inet:HOST:PORT", text);
    r = sock_address_parse(text, "--qmp", &address, err);
    if (r < 0)
        return r;
    r = add_listener(config, NULL, &address, (enum qmp_role)opts->role, opts->tls_creds, err);
    sock_address_release(&address);
    return r;
}

int config_add_qmp(struct config *config, const char *text, struct err *err)
{
    struct qmp_opts opts = {0};
    int r = read_by_table(qmp_opts, text, "address", "--qmp", &opts, err);

    if (r < 0)
        return r;
    r = add_qmp(config, &opts, err);
    opts_release(qmp_opts, &opts);
    return r;
}

int config_check(const struct config *config, struct err *err)
{
    for (size_t i = 0; i < config->item_count; i++) {
        const struct config_item *item = &config->items[i];
        struct sock_address address;
        char what[160];
        int r = 0;

        if (item->kind == CONFIG_NBD_SERVER && item->nbd_server.addr.type != ADDRESS_FD) {
            address = address_of_opts(&item->nbd_server.addr);
            snprintf(what, sizeof(what), "--nbd-server '%s'", item->nbd_server.id);
            r = address_check_local(
                &address, config->insecure || item->nbd_server.tls_creds != NULL, what, err);
        } else if (item->kind == CONFIG_MONITOR) {
            r = address_check_local(&item->monitor.address,
                                    config->insecure || item->monitor.tls_creds != NULL,
                                    "control listener", err);
        }
        if (r < 0)
            return r;
    }
    return 0;
}
