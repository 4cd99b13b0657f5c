/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd: what an NBD server exports, over the client of nbd_client.h.
 *
 * After its connection has ended the node answers every request with the reason, at once; to get a
 * new connection, take the node away and add it anew. `reconnect-delay` is accepted because managers
 * send it; only 0, which means just that, is what it does.
 */
#include "drivers/nbd_client.h"
#include "drivers/table.h"
#include "drivers/tls_object.h"

#include "base/json.h"
#include "base/log.h"
#include "block/graph.h"
#include "wire/nbd.h"

#include <errno.h>
#include <string.h>

#define MAX_TIMEOUT_S 86400u

enum { SERVER_INET, SERVER_UNIX };

struct nbd_options {
    bool server_given, port_given;
    int server_type;
    char *server_host, *server_port, *server_path;
    char *host, *port, *path; /* as before QEMU 2.9 */
    char *export, *tls_creds, *tls_hostname;
    uint64_t reconnect_delay_s, open_timeout_s, request_timeout_s;
};

struct nbd_state {
    struct nbd_client *client;
};

static struct nbd_client *client_of(const struct node *node)
{
    return ((const struct nbd_state *)node->state)->client;
}

static int legacy_address(const struct nbd_options *options, struct sock_address *address,
                          struct err *err)
{
    if (options->path != NULL && (options->host != NULL || options->port_given))
        return err_set(err, -EINVAL, "nbd: 'path' excludes 'host' and 'port'; give one of both");
    if (options->path == NULL && options->host == NULL)
        return err_set(err, -EINVAL,
                       "nbd: where is the server? Give server.type=inet with server.host and "
                       "server.port, or server.type=unix with server.path");
    *address = (struct sock_address){
        .family = options->path != NULL ? SOCK_FAMILY_UNIX : SOCK_FAMILY_INET,
        .host = options->host,
        .port = options->port,
        .path = options->path,
    };
    return 0;
}

/* Borrows the options' texts. */
static int server_address(const struct nbd_options *options, struct sock_address *address,
                          struct err *err)
{
    bool legacy = options->host != NULL || options->port_given || options->path != NULL;

    if (options->server_given && legacy)
        return err_set(err, -EINVAL,
                       "nbd: 'server' excludes 'host', 'port' and 'path'; give one of both");
    if (!options->server_given)
        return legacy_address(options, address, err);
    *address = (struct sock_address){
        .family = options->server_type == SERVER_UNIX ? SOCK_FAMILY_UNIX : SOCK_FAMILY_INET,
        .host = options->server_host,
        .port = options->server_port,
        .path = options->server_path,
    };
    return 0;
}

static int check_access(struct node *node, const struct nbd_client *client, struct err *err)
{
    if (node->read_only || !nbd_client_read_only(client))
        return 0;
    if (!node->auto_read_only)
        return err_set(err, -EACCES,
                       "the NBD server exports '%s' read-only; say read-only=on, or export it "
                       "writable",
                       ((struct nbd_options *)node->options)->export);
    node->read_only = true;
    return 0;
}

/* wanted->tls gets a reference. */
static int take_creds(struct node *node, struct nbd_client_options *wanted, struct err *err)
{
    const struct nbd_options *options = node->options;

    if (options->tls_creds == NULL && options->tls_hostname != NULL)
        return err_set(err, -EINVAL, "nbd: 'tls-hostname' is of use with 'tls-creds' only");
    if (options->tls_creds == NULL)
        return 0;
    return tls_object_creds(node->graph, options->tls_creds, TLS_CLIENT, &wanted->tls, err);
}

static void nbd_lost(void *arg, int reason)
{
    node_link_lost(arg, reason);
}

static int nbd_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct nbd_options *options = node->options;
    struct nbd_state *state = node->state;
    struct nbd_client_options wanted = {
        .export = options->export,
        .tls_hostname = options->tls_hostname,
        .instance = graph_instance(node->graph),
        .open_timeout_ns = options->open_timeout_s * NS_PER_S,
        .request_timeout_ns = options->request_timeout_s * NS_PER_S,
        .lost = nbd_lost,
        .lost_arg = node,
    };
    struct nbd_client *client;

    if (options->reconnect_delay_s != 0)
        log_warning("nbd",
                    "node '%s': reconnect-delay is not implemented, requests fail as soon "
                    "as the connection has ended",
                    node->name);
    int result = server_address(options, &wanted.address, err);
    if (result == 0)
        result = take_creds(node, &wanted, err);
    if (result == 0)
        result = nbd_client_open(graph_loop(node->graph), &wanted, &client, err);
    tls_creds_unref(wanted.tls);
    if (result < 0)
        return result;
    result = check_access(node, client, err);
    if (result < 0) {
        nbd_client_close(client);
        return result;
    }
    state->client = client;
    node->length_bytes = nbd_client_length_bytes(client);
    node->limits = (struct node_limits){
        .request_align_bytes = nbd_client_block_bytes(client),
        .memory_align_bytes = 1,
        .max_transfer_bytes = nbd_client_max_transfer_bytes(client),
        .fua = nbd_client_fua(client),
    };
    return 0;
}

static void nbd_close(struct node *node) MAY_WAIT
{
    struct nbd_state *state = node->state;

    nbd_client_close(TAKE_PTR(state->client));
}

static int nbd_reopen(struct node *node, bool read_only, struct err *err) MAY_WAIT
{
    if (!read_only && nbd_client_read_only(client_of(node)))
        return err_set(err, -EACCES, "node '%s': the NBD server exports it read-only", node->name);
    return 0;
}

static int nbd_describe(struct node *node, struct json_object *object)
{
    struct nbd_client_info info;

    nbd_client_info(client_of(node), &info);
    int result = json_add_bool(object, "connected", info.connected);
    if (result == 0)
        result = json_add_string(object, "address", info.address);
    if (result == 0)
        result = json_add_string(object, "export", info.export);
    if (result == 0)
        result = json_add_bool(object, "tls", info.tls);
    if (result == 0)
        result = json_add_uint(object, "requests-in-flight", info.in_flight);
    if (result == 0)
        result = json_add_uint(object, "bytes-sent", info.bytes_sent);
    if (result == 0)
        result = json_add_uint(object, "bytes-acked", info.bytes_acked);
    if (result == 0 && info.last_error != 0)
        result = json_add_string(object, "last-error", strerror(-info.last_error));
    return result;
}

static void nbd_yank(struct node *node)
{
    log_warning("nbd", "node '%s': its connection is cut on request", node->name);
    nbd_client_shutdown(client_of(node), -ECONNABORTED);
}

/* --- requests --- */

static int nbd_read(struct node *node, struct io *io) MAY_WAIT
{
    return nbd_client_read(client_of(node), io);
}

static int nbd_write(struct node *node, struct io *io) MAY_WAIT
{
    return nbd_client_write(client_of(node), io);
}

static int nbd_zero(struct node *node, struct io *io) MAY_WAIT
{
    return nbd_client_zero(client_of(node), io);
}

static int nbd_discard(struct node *node, struct io *io) MAY_WAIT
{
    return nbd_client_discard(client_of(node), io);
}

static int nbd_flush(struct node *node) MAY_WAIT
{
    return nbd_client_flush(client_of(node));
}

static int nbd_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                       struct extent *ret_extent) MAY_WAIT
{
    return nbd_client_extents(client_of(node), offset_bytes, length_bytes, ret_extent);
}

struct nbd_client *nbd_client_of(struct node *node)
{
    return node->driver == &driver_nbd ? client_of(node) : NULL;
}

/* --- options --- */

static const char *const server_types[] = {"inet", "unix", NULL};

static const struct opt server_opts[] = {
    {.name = "type",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct nbd_options, server_type),
     .required = true,
     .values = server_types,
     .help = "kind of address"},
    {0},
};

static const struct opt inet_opts[] = {
    {.name = "host",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, server_host),
     .required = true,
     .help = "host name or address"},
    {.name = "port",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, server_port),
     .fallback = NBD_DEFAULT_PORT,
     .help = "port number"},
    {0},
};

static const struct opt unix_opts[] = {
    {.name = "path",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, server_path),
     .required = true,
     .help = "path of the socket"},
    {0},
};

static const struct opt *const server_variants[] = {
    [SERVER_INET] = inet_opts,
    [SERVER_UNIX] = unix_opts,
    NULL,
};

static const struct opt nbd_opts[] = {
    {.name = "server",
     .type = OPT_UNION,
     .present = OPT_PRESENT(struct nbd_options, server_given),
     .members = server_opts,
     .discriminator = "type",
     .variants = server_variants,
     .help = "where the server is"},
    {.name = "host",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, host),
     .help = "old spelling of server.host"},
    {.name = "port",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, port),
     .present = OPT_PRESENT(struct nbd_options, port_given),
     .fallback = NBD_DEFAULT_PORT,
     .help = "old spelling of server.port"},
    {.name = "path",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, path),
     .help = "old spelling of server.path"},
    {.name = "export",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, export),
     .fallback = "",
     .help = "name of the export"},
    {.name = "tls-creds",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, tls_creds),
     .help = "id of a tls-creds-x509 or tls-creds-psk object with endpoint=client"},
    {.name = "tls-hostname",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct nbd_options, tls_hostname),
     .help = "what the server's certificate must be for (the address's host)"},
    {.name = "reconnect-delay",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct nbd_options, reconnect_delay_s),
     .max = UINT32_MAX,
     .help = "seconds that requests wait for a new connection; only 0 is implemented"},
    {.name = "open-timeout",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct nbd_options, open_timeout_s),
     .max = MAX_TIMEOUT_S,
     .fallback = "10",
     .help = "seconds for connecting and negotiating"},
    {.name = "request-timeout",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct nbd_options, request_timeout_s),
     .max = MAX_TIMEOUT_S,
     .fallback = "30",
     .help = "seconds until a silent server is given up"},
    {0},
};

const struct driver driver_nbd = {
    .name = "nbd",
    .state_size = sizeof(struct nbd_state),
    .options_size = sizeof(struct nbd_options),
    .opts = nbd_opts,
    .open = nbd_open,
    .close = nbd_close,
    .reopen = nbd_reopen,
    .yank = nbd_yank,
    .describe = nbd_describe,
    .read = nbd_read,
    .write = nbd_write,
    .zero = nbd_zero,
    .discard = nbd_discard,
    .flush = nbd_flush,
    .extents = nbd_extents,
};
