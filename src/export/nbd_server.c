/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The service's registry: servers, listeners, exports; and how each of them ends. */
#include "export/nbd_internal.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ACCEPT_RETRY_NS (100 * NS_PER_MS) /* out of descriptors: let some go first */

static void server_free(struct nbd_server *server)
{
    for (size_t i = 0; i < server->listener_count; i++) {
        sock_close(server->listeners[i].sock);
        free(server->addresses[i]);
    }
    tls_creds_unref(server->creds);
    free(server->id);
    free(server);
}

static struct nbd_server *server_find(const struct nbd_service *service, const char *id)
{
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link)
        if (strcmp(server->id, id) == 0)
            return server;
    return NULL;
}

static struct nbd_export *export_find(const struct nbd_service *service, const char *id)
{
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link)
        LIST_FOR_EACH(export, &server->exports, struct nbd_export, link)
            if (strcmp(export->id, id) == 0)
                return export;
    return NULL;
}

/* --- stalled transfers --- */

static bool transfer_is_late(uint64_t now_ns, uint64_t since_ns, size_t bytes)
{
    uint64_t allowed_ns = NBD_STALL_NS + bytes / NBD_STALL_BYTES_PER_MS * NS_PER_MS;

    return since_ns != 0 && now_ns > since_ns && now_ns - since_ns > allowed_ns;
}

/* Others wait for memory: who sits on it without moving bytes loses its connection. */
static void stall_check(struct loop_timer *timer)
{
    struct nbd_service *service = CONTAINER_OF(timer, struct nbd_service, stall_timer);
    uint64_t now_ns = loop_now_ns(service->loop);

    if (list_empty(&service->hungry))
        return;
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link) {
        LIST_FOR_EACH_SAFE(connection, &server->connections, struct nbd_connection, link) {
            if (transfer_is_late(now_ns, connection->transfer_since_ns,
                                 connection->transfer_bytes) ||
                transfer_is_late(now_ns, connection->gather.busy_since_ns,
                                 connection->gather.busy_bytes))
                nbd_connection_cut(connection, -ETIMEDOUT);
        }
    }
    loop_timer_arm(service->loop, timer, now_ns + NBD_STALL_CHECK_NS);
}

void nbd_stall_watch(struct nbd_service *service)
{
    if (!loop_timer_armed(&service->stall_timer))
        loop_timer_arm(service->loop, &service->stall_timer,
                       loop_now_ns(service->loop) + NBD_STALL_CHECK_NS);
}

/* --- the service --- */

struct nbd_service *nbd_service_new(struct graph *graph, const struct nbd_service_options *options)
{
    struct nbd_service *service = calloc(1, sizeof(*service));
    struct nbd_service_options given = {0};

    if (service == NULL)
        return NULL;
    if (options != NULL)
        given = *options;
    if (given.budget_bytes == 0)
        given.budget_bytes = NBD_BUDGET_BYTES;
    assert(given.budget_bytes >= NBD_MAX_CONNECTION_BYTES);
    service->graph = graph;
    service->loop = graph_loop(graph);
    service->handshake_timeout_ns = given.handshake_timeout_ns != 0 ? given.handshake_timeout_ns
                                                                    : NBD_HANDSHAKE_TIMEOUT_NS;
    service->admission = given.admission;
    service->round = given.admission.admit != NULL;
    service->stall_timer.fire = stall_check;
    list_init(&service->servers);
    list_init(&service->hungry);
    co_queue_init(&service->changed);
    co_budget_init(&service->budget, given.budget_bytes);
    return service;
}

static void server_stop(struct nbd_server *server) MAY_WAIT;

void nbd_service_free(struct nbd_service *service)
{
    if (service == NULL)
        return;
    while (!list_empty(&service->servers)) {
        struct nbd_server *server = LIST_ENTRY(list_first(&service->servers), struct nbd_server,
                                               link);

        if (server->stopping)
            co_queue_wait(&service->changed);
        else
            server_stop(server);
    }
    assert(service->budget.used == 0);
    loop_timer_cancel(&service->stall_timer);
    free(service);
}

struct nbd_service_info nbd_service_info(const struct nbd_service *service)
{
    return (struct nbd_service_info){
        .budget_bytes = service->budget.limit,
        .budget_used_bytes = service->budget.used,
        .connections = service->connection_count,
    };
}

/* --- listening --- */

static void listener_accepted(struct nbd_server *server, struct sock *sock)
{
    server->accepted++;
    if (server->fenced || server->connection_count >= server->max_connections) {
        server->refused++;
        sock_close(sock);
        return;
    }
    nbd_connection_start(server, sock);
}

static void listener_run(void *arg) MAY_WAIT
{
    struct nbd_listener *listener = arg;
    struct nbd_server *server = listener->server;
    bool complained = false;

    for (;;) {
        struct sock *sock;
        int result = sock_accept(listener->sock, &sock);

        if (server->fenced) {
            if (result == 0)
                sock_close(sock);
            break;
        }
        if (result == 0) {
            complained = false;
            listener_accepted(server, sock);
            continue;
        }
        if (!complained)
            log_warning("nbd", "server '%s' cannot accept connections now: %s; retrying",
                        server->id, strerror(-result));
        complained = true;
        (void)co_queue_wait_until(&server->halted,
                                  loop_now_ns(server->service->loop) + ACCEPT_RETRY_NS);
        if (server->fenced)
            break;
    }
    listener->running = false;
    server->listeners_running--;
    co_queue_wake_all(&server->service->changed);
}

static int server_listen(struct nbd_server *server, struct err *err)
{
    for (size_t i = 0; i < server->listener_count; i++) {
        struct nbd_listener *listener = &server->listeners[i];

        if (co_spawn(server->service->loop, "nbd listener", listener_run, listener) < 0)
            return err_no_memory(err);
        listener->running = true;
        server->listeners_running++;
    }
    return 0;
}

static int server_new(struct nbd_service *service, const char *id, unsigned max_connections,
                      struct nbd_server **ret_server, struct err *err)
{
    if (id[0] == '\0' || strlen(id) >= NBD_MAX_EXPORT_ID_BYTES)
        return err_set(err, -EINVAL, "NBD server id '%s' must have 1 to %u bytes", id,
                       NBD_MAX_EXPORT_ID_BYTES - 1);
    if (server_find(service, id) != NULL)
        return err_set(err, -EEXIST, "NBD server '%s' is running already; stop it first", id);
    if (service->server_count >= NBD_MAX_SERVERS)
        return err_set(err, -EMFILE, "there are %u NBD servers already, more are not possible",
                       NBD_MAX_SERVERS);
    struct nbd_server *server = calloc(1, sizeof(*server));
    if (server == NULL || (server->id = strdup(id)) == NULL) {
        free(server);
        return err_no_memory(err);
    }
    server->service = service;
    server->max_connections = max_connections != 0 ? max_connections : NBD_MAX_CONNECTIONS;
    list_init(&server->exports);
    co_queue_init(&server->halted);
    list_init(&server->connections);
    /* In the list before anything waits, so that nobody else takes the id. */
    list_push_back(&service->servers, &server->link);
    service->server_count++;
    *ret_server = server;
    return 0;
}

static int server_add_listener(struct nbd_server *server, struct sock *sock, struct err *err)
{
    size_t index = server->listener_count;
    char *address = strdup(sock_local_name(sock));

    if (address == NULL)
        return err_no_memory(err);
    server->addresses[index] = address;
    server->listeners[index] = (struct nbd_listener){.server = server, .sock = sock};
    server->listener_count++;
    return 0;
}

/* Gives up a server that never served. */
static void server_drop(struct nbd_server *server)
{
    struct nbd_service *service = server->service;

    list_remove(&server->link);
    service->server_count--;
    server_free(server);
    co_queue_wake_all(&service->changed);
}

int nbd_server_start(struct nbd_service *service, const char *id,
                     const struct sock_address *addresses, size_t count, unsigned max_connections,
                     struct err *err)
{
    return nbd_server_start_tls(service, id, addresses, count, max_connections, NULL, err);
}

int nbd_server_start_tls(struct nbd_service *service, const char *id,
                         const struct sock_address *addresses, size_t count,
                         unsigned max_connections, struct tls_creds *creds, struct err *err)
{
    struct nbd_server *server = NULL;

    assert(creds == NULL || tls_creds_endpoint(creds) == TLS_SERVER);

    if (count == 0 || count > NBD_MAX_LISTENERS)
        return err_set(err, -EINVAL, "NBD server '%s' needs 1 to %u addresses, not %zu", id,
                       NBD_MAX_LISTENERS, count);
    int result = server_new(service, id, max_connections, &server, err);
    if (result < 0)
        return result;
    server->creds = creds != NULL ? tls_creds_ref(creds) : NULL;
    server->stopping = true; /* nobody may stop what is being made */
    for (size_t i = 0; result == 0 && i < count; i++) {
        struct sock *sock;
        result = sock_listen(service->loop, &addresses[i], &sock, err);
        if (result < 0)
            break;
        result = server_add_listener(server, sock, err);
        if (result < 0)
            sock_close(sock);
    }
    server->stopping = false;
    if (result == 0)
        result = server_listen(server, err);
    if (result == 0)
        return 0;
    if (server->listeners_running > 0)
        server_stop(server);
    else
        server_drop(server);
    return err_prefix(err, "NBD server '%s'", id);
}

int nbd_server_start_sock(struct nbd_service *service, const char *id, struct sock *listener,
                          unsigned max_connections, struct tls_creds *creds, struct err *err)
{
    struct nbd_server *server = NULL;
    int result = server_new(service, id, max_connections, &server, err);

    if (result < 0)
        return result;
    server->creds = creds != NULL ? tls_creds_ref(creds) : NULL;
    result = server_add_listener(server, listener, err);
    if (result == 0)
        result = server_listen(server, err);
    if (result < 0) {
        server->listener_count = 0; /* the socket stays the caller's */
        free(server->addresses[0]);
        server_drop(server);
    }
    return result;
}

/* --- how exports end --- */

static void export_event_deleted(struct nbd_export *export)
{
    struct json_object *data = json_object_new_object();

    if (data == NULL || json_add_string(data, "id", export->id) < 0) {
        json_object_put(data);
        return;
    }
    graph_event(export->service->graph, "BLOCK_EXPORT_DELETED", data);
}

/* No new requests come, and its last ones are waited for. */
static void export_revoke(struct nbd_export *export)
{
    export->revoked = true;
    if (export->edge != NULL)
        graph_hurry(export->edge, true);
}

/* They have ended. */
static void export_is_idle(struct nbd_export *export)
{
    if (export->edge != NULL)
        graph_hurry(export->edge, false);
}

static void export_cut(struct nbd_export *export)
{
    export_revoke(export);
    LIST_FOR_EACH_SAFE(connection, &export->server->connections, struct nbd_connection, link) {
        if (connection->context_export == export)
            connection->context_export = NULL;
        if (connection->export == export || connection->pinned == export)
            nbd_connection_cut(connection, 0);
    }
}

static void export_wait_requests(struct nbd_export *export) MAY_WAIT
{
    export->pins++;
    while (export->requests > 0)
        co_queue_wait(&export->idle);
    export_is_idle(export);
    if (--export->pins == 0)
        co_queue_wake_all(&export->idle);
}

static void export_free(struct nbd_export *export) MAY_WAIT
{
    for (unsigned i = 0; i < export->bitmap_count; i++)
        dirty_bitmap_release(export->bitmaps[i]);
    free(export->id);
    free(export->name);
    free(export->description);
    free(export);
}

static void export_remove(struct nbd_export *export) MAY_WAIT
{
    struct nbd_service *service = export->service;

    assert(!export->removing);
    export->removing = true;
    export_cut(export);
    while (export->connection_count > 0 || export->requests > 0 || export->pins > 0)
        co_queue_wait(&export->idle);
    graph_detach(TAKE_PTR(export->edge));
    list_remove(&export->link);
    export->server->export_count--;
    service->export_count--;
    export_event_deleted(export);
    export_free(export);
    co_queue_wake_all(&service->changed);
}

/* --- how servers end --- */

/* Nothing listens and no request is inside when it returns. */
static void server_fence(struct nbd_server *server) MAY_WAIT
{
    struct nbd_service *service = server->service;

    server->fenced = true;
    co_queue_wake_all(&server->halted);
    for (size_t i = 0; i < server->listener_count; i++)
        if (server->listeners[i].sock != NULL)
            sock_shutdown(server->listeners[i].sock, 0);
    LIST_FOR_EACH(export, &server->exports, struct nbd_export, link)
        export_revoke(export);
    LIST_FOR_EACH_SAFE(connection, &server->connections, struct nbd_connection, link)
        nbd_connection_cut(connection, 0);
    while (server->listeners_running > 0 || server->connection_count > 0)
        co_queue_wait(&service->changed);
    LIST_FOR_EACH(export, &server->exports, struct nbd_export, link)
        export_is_idle(export);
    for (size_t i = 0; i < server->listener_count; i++)
        sock_close(TAKE_PTR(server->listeners[i].sock));
}

static void server_stop(struct nbd_server *server)
{
    struct nbd_service *service = server->service;

    server->stopping = true;
    server_fence(server);
    while (!list_empty(&server->exports)) {
        struct nbd_export *export = LIST_ENTRY(list_first(&server->exports), struct nbd_export,
                                               link);

        if (export->removing)
            co_queue_wait(&service->changed);
        else
            export_remove(export);
    }
    server_drop(server);
}

static int server_get(struct nbd_service *service, const char *id, struct nbd_server **ret_server,
                      struct err *err)
{
    struct nbd_server *server = server_find(service, id);

    if (server == NULL)
        return err_set(err, -ENOENT, "NBD server '%s' is not running", id);
    if (server->stopping)
        return err_set(err, -EBUSY, "NBD server '%s' is being started or stopped", id);
    *ret_server = server;
    return 0;
}

int nbd_server_stop(struct nbd_service *service, const char *id, struct err *err)
{
    struct nbd_server *server = NULL;
    int result = server_get(service, id, &server, err);

    if (result == 0)
        server_stop(server);
    return result;
}

int nbd_server_fence(struct nbd_service *service, const char *id, struct err *err)
{
    struct nbd_server *server = NULL;
    int result = server_get(service, id, &server, err);

    if (result < 0)
        return result;
    server->stopping = true;
    server_fence(server);
    server->stopping = false;
    co_queue_wake_all(&service->changed);
    return 0;
}

bool nbd_server_exists(const struct nbd_service *service, const char *id)
{
    return server_find(service, id) != NULL;
}

size_t nbd_server_count(const struct nbd_service *service)
{
    return service->server_count;
}

void nbd_server_query(const struct nbd_service *service,
                      void (*visit)(void *arg, const struct nbd_server_info *info), void *arg)
{
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link) {
        struct nbd_server_info info = {
            .id = server->id,
            .addresses = (const char *const *)server->addresses,
            .address_count = server->listener_count,
            .export_count = server->export_count,
            .fenced = server->fenced,
            .tls = server->creds != NULL,
            .connections = server->connection_count,
            .max_connections = server->max_connections,
            .accepted = server->accepted,
            .refused = server->refused,
            .broken = server->broken,
            .timed_out = server->timed_out,
        };
        visit(arg, &info);
    }
}

/* --- exports --- */

struct nbd_export *nbd_export_lookup(struct nbd_server *server, const struct nbd_text *name)
{
    struct nbd_export *found = NULL;

    LIST_FOR_EACH(export, &server->exports, struct nbd_export, link)
        if (strlen(export->name) == name->length_bytes &&
            memcmp(export->name, name->bytes, name->length_bytes) == 0)
            found = export;
    /* No name means the default: where there is one export only, that is the one. */
    if (found == NULL && name->length_bytes == 0 && server->export_count == 1)
        found = LIST_ENTRY(list_first(&server->exports), struct nbd_export, link);
    return found == NULL || found->revoked ? NULL : found;
}

uint16_t nbd_export_flags(const struct nbd_export *export, bool structured)
{
    /* A flush reaches the node, and so what all connections wrote: MULTI_CONN holds. */
    unsigned flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH | NBD_SEND_FUA | NBD_SEND_CACHE |
                     NBD_CAN_MULTI_CONN;

    flags |= export->writable ? NBD_SEND_TRIM | NBD_SEND_WRITE_ZEROES | NBD_SEND_FAST_ZERO
                              : NBD_READ_ONLY;
    flags |= structured ? NBD_SEND_DF : 0;
    return (uint16_t)flags;
}

static void export_describe(struct edge *edge, char *text, size_t text_bytes)
{
    const struct nbd_export *export = edge->user;

    snprintf(text, text_bytes, "NBD export '%s'", export->id);
}

static const char *export_id(struct edge *edge)
{
    const struct nbd_export *export = edge->user;

    return export->id;
}

static const struct edge_user_ops export_edge_ops = {
    .kind = EDGE_USER_EXPORT,
    .id = export_id,
    .describe = export_describe,
};

static int export_pick_server(struct nbd_service *service, const char *id,
                              struct nbd_server **ret_server, struct err *err)
{
    if (id == NULL && service->server_count == 0)
        return err_set(err, -ENOENT, "no NBD server is running; start one first");
    if (id == NULL && service->server_count > 1)
        return err_set(err, -EINVAL, "there are %u NBD servers: say which one with server=ID",
                       service->server_count);
    if (id == NULL)
        id = LIST_ENTRY(list_first(&service->servers), struct nbd_server, link)->id;
    int result = server_get(service, id, ret_server, err);
    if (result < 0)
        return result;
    return 0;
}

static int export_check(const struct nbd_service *service, const struct nbd_server *server,
                        const struct nbd_export_options *options, const char *name, struct err *err)
{
    if (server->fenced)
        return err_set(err, -ESHUTDOWN, "NBD server '%s' is fenced; stop it and start it anew",
                       server->id);
    if (options->id[0] == '\0' || strlen(options->id) >= NBD_MAX_EXPORT_ID_BYTES)
        return err_set(err, -EINVAL, "export id '%s' must have 1 to %u bytes", options->id,
                       NBD_MAX_EXPORT_ID_BYTES - 1);
    if (export_find(service, options->id) != NULL)
        return err_set(err, -EEXIST, "export id '%s' is in use already", options->id);
    if (strlen(name) > NBD_MAX_EXPORT_NAME_BYTES)
        return err_set(err, -EINVAL, "the export's name is longer than %u bytes",
                       NBD_MAX_EXPORT_NAME_BYTES);
    if (options->description != NULL && strlen(options->description) > NBD_MAX_DESCRIPTION_BYTES)
        return err_set(err, -EINVAL, "the description of export '%s' is longer than %u bytes",
                       options->id, NBD_MAX_DESCRIPTION_BYTES);
    if (service->export_count >= NBD_MAX_EXPORTS)
        return err_set(err, -EMFILE, "there are %u exports already, more are not possible",
                       NBD_MAX_EXPORTS);
    LIST_FOR_EACH(export, &server->exports, struct nbd_export, link)
        if (strcmp(export->name, name) == 0)
            return err_set(err, -EEXIST, "NBD server '%s' has an export named '%s' already",
                           server->id, name);
    return 0;
}

static int export_check_bitmaps(const struct nbd_export_options *options, struct err *err)
{
    if (options->bitmap_count > NBD_MAX_BITMAPS)
        return err_set(err, -E2BIG, "export '%s': %zu bitmaps are more than the %u that can be",
                       options->id, options->bitmap_count, NBD_MAX_BITMAPS);
    for (size_t i = 0; i < options->bitmap_count; i++) {
        const struct dirty_bitmap *bitmap = options->bitmaps[i];

        if (dirty_bitmap_check(bitmap, err) < 0)
            return err->code;
        /* Whoever reads by it would miss what others write meanwhile. */
        if (!options->writable && bitmap->enabled && !bitmap->tracker.node->read_only)
            return err_set(err, -EINVAL, "Enabled bitmap '%s' incompatible with readonly export",
                           bitmap->name);
        for (size_t k = 0; k < i; k++)
            if (strcmp(options->bitmaps[k]->name, bitmap->name) == 0)
                return err_set(err, -EEXIST, "export '%s': two bitmaps are called '%s'",
                               options->id, bitmap->name);
    }
    return 0;
}

static struct nbd_export *export_new(struct nbd_server *server,
                                     const struct nbd_export_options *options, const char *name)
    MAY_WAIT
{
    struct nbd_export *export = calloc(1, sizeof(*export));

    if (export == NULL)
        return NULL;
    export->service = server->service;
    export->server = server;
    export->writable = options->writable;
    co_queue_init(&export->idle);
    co_queue_init(&export->admission);
    export->id = strdup(options->id);
    export->name = strdup(name);
    export->description = options->description != NULL ? strdup(options->description) : NULL;
    if (export->id == NULL || export->name == NULL ||
        (options->description != NULL && export->description == NULL)) {
        export_free(export);
        return NULL;
    }
    for (size_t i = 0; i < options->bitmap_count; i++) {
        export->bitmaps[export->bitmap_count++] = options->bitmaps[i];
        dirty_bitmap_hold(options->bitmaps[i]);
    }
    return export;
}

int nbd_export_add(struct nbd_service *service, const struct nbd_export_options *options,
                   struct err *err)
{
    const char *name = options->name != NULL ? options->name : options->node->name;
    unsigned need = PERM_CONSISTENT_READ | (options->writable ? PERM_WRITE : 0);
    struct nbd_server *server = NULL;
    int result = export_pick_server(service, options->server, &server, err);

    if (result == 0)
        result = export_check(service, server, options, name, err);
    if (result == 0)
        result = export_check_bitmaps(options, err);
    if (result < 0)
        return result;
    if (options->writable && options->node->read_only)
        return err_set(err, -EACCES, "node '%s' is read-only: it cannot be exported writable",
                       options->node->name);
    struct nbd_export *export = export_new(server, options, name);
    if (export == NULL)
        return err_no_memory(err);
    /* Listed at once, so that nobody else takes id or name; revoked until it stands. */
    export->revoked = export->removing = true;
    list_push_back(&server->exports, &export->link);
    server->export_count++;
    service->export_count++;
    char edge_name[EDGE_NAME_BYTES];
    snprintf(edge_name, sizeof(edge_name), "export '%.40s'", export->id);
    result = graph_attach_root(service->graph, options->node, edge_name, need,
                               PERM_ALL & ~(unsigned)PERM_RESIZE, &export_edge_ops, export,
                               &export->edge, err);
    if (result < 0) {
        list_remove(&export->link);
        server->export_count--;
        service->export_count--;
        export_free(export);
        co_queue_wake_all(&service->changed);
        return result;
    }
    export->removing = false;
    export->revoked = server->fenced; /* the fence may have come meanwhile */
    co_queue_wake_all(&service->changed);
    return 0;
}

static int export_get(struct nbd_service *service, const char *id, struct nbd_export **ret_export,
                      struct err *err)
{
    struct nbd_export *export = export_find(service, id);

    if (export == NULL)
        return err_set_kind(err, ERR_GENERIC, -ENOENT, "there is no export '%s'", id);
    if (export->removing)
        return err_set(err, -EBUSY, "export '%s' is being added or removed", id);
    *ret_export = export;
    return 0;
}

int nbd_export_del(struct nbd_service *service, const char *id, enum nbd_remove_mode mode,
                   struct err *err)
{
    struct nbd_export *export = NULL;
    int result = export_get(service, id, &export, err);

    if (result < 0)
        return result;
    if (mode == NBD_REMOVE_SAFE && export->connection_count > 0)
        return err_set(err, -EBUSY, "export '%s' still has %u clients; use mode 'hard' to cut them",
                       id, export->connection_count);
    export_remove(export);
    return 0;
}

int nbd_export_revoke(struct nbd_service *service, const char *id, struct err *err)
{
    struct nbd_export *export = NULL;
    int result = export_get(service, id, &export, err);

    if (result < 0)
        return result;
    export_cut(export);
    export_wait_requests(export);
    return 0;
}

void nbd_export_query(const struct nbd_service *service,
                      void (*visit)(void *arg, const struct nbd_export_info *info), void *arg)
{
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link)
        LIST_FOR_EACH(export, &server->exports, struct nbd_export, link) {
            if (export->edge == NULL)
                continue;
            struct nbd_export_info info = {
                .id = export->id,
                .name = export->name,
                .description = export->description,
                .server = server->id,
                .node_name = export->edge->child->name,
                .writable = export->writable,
                .revoked = export->revoked,
                .removing = export->removing,
                .connections = export->connection_count,
                .requests_in_flight = export->requests,
                .size_bytes = export->edge->child->length_bytes,
                .read = export->read,
                .write = export->write,
                .other = export->other,
            };
            visit(arg, &info);
        }
}

bool nbd_export_exists(const struct nbd_service *service, const char *id)
{
    return export_find(service, id) != NULL;
}

static const struct nbd_export *export_of(const struct nbd_service *service,
                                          const struct edge *root)
{
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link) {
        LIST_FOR_EACH(export, &server->exports, struct nbd_export, link) {
            if (export->edge == root)
                return export;
        }
    }
    return NULL;
}

const char *nbd_export_id(const struct nbd_service *service, const struct edge *root)
{
    const struct nbd_export *export = export_of(service, root);

    return export != NULL ? export->id : NULL;
}

const char *nbd_export_name(const struct nbd_service *service, const struct edge *root)
{
    const struct nbd_export *export = export_of(service, root);

    return export != NULL ? export->name : NULL;
}
