/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The server's side of the fixed newstyle negotiation. One option at a time; replies are waited for,
 * and the handshake's deadline covers all of it. */
#include "export/nbd_internal.h"

#include "base/log.h"

#include <errno.h>
#include <string.h>

#define PREFERRED_BYTES 4096u

static int send_bytes(struct nbd_connection *connection, const void *bytes, size_t length_bytes)
    MAY_WAIT
{
    struct iovec iov = {(void *)(uintptr_t)bytes, length_bytes};

    return sock_send(connection->sock, &iov, 1);
}

/* A reply of up to three stretches. 1, so that the caller goes on, or -errno. */
static int reply(struct nbd_connection *connection, uint32_t option, uint32_t type,
                 const void *payload, size_t payload_bytes, const void *more, size_t more_bytes)
    MAY_WAIT
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];
    struct nbd_option_reply_header header = {option, type, (uint32_t)(payload_bytes + more_bytes)};
    struct iovec iov[3] = {
        {head, sizeof(head)},
        {(void *)(uintptr_t)payload, payload_bytes},
        {(void *)(uintptr_t)more, more_bytes},
    };

    nbd_option_reply_encode(head, &header);
    int result = sock_send(connection->sock, iov, payload_bytes == 0 ? 1 : more_bytes == 0 ? 2 : 3);
    return result < 0 ? result : 1;
}

static int reply_ack(struct nbd_connection *connection, uint32_t option) MAY_WAIT
{
    return reply(connection, option, NBD_REP_ACK, NULL, 0, NULL, 0);
}

static int reply_error(struct nbd_connection *connection, uint32_t option, uint32_t type,
                       const char *text) MAY_WAIT
{
    return reply(connection, option, type, text, strlen(text), NULL, 0);
}

static int reply_unknown(struct nbd_connection *connection, uint32_t option) MAY_WAIT
{
    return reply_error(connection, option, NBD_REP_ERR_UNKNOWN, "there is no export of that name");
}

/* --- options --- */

/* Keeps an export in memory while a reply about it is sent. Who removes or revokes the export ends
 * the connection, so that it does not wait for a client that does not read. */
static void export_pin(struct nbd_connection *connection, struct nbd_export *export)
{
    connection->pinned = export;
    export->pins++;
}

static void export_unpin(struct nbd_connection *connection, struct nbd_export *export)
{
    connection->pinned = NULL;
    if (--export->pins == 0)
        co_queue_wake_all(&export->idle);
}

static int list_export(struct nbd_connection *connection, struct nbd_export *export) MAY_WAIT
{
    uint8_t head[4];
    size_t name_bytes = strlen(export->name);

    export_pin(connection, export);
    be32_put(head, (uint32_t)name_bytes);
    int result = reply(connection, NBD_OPT_LIST, NBD_REP_SERVER, head, sizeof(head), export->name,
                       name_bytes);
    export_unpin(connection, export);
    return result;
}

static int option_list(struct nbd_connection *connection, uint32_t length_bytes) MAY_WAIT
{
    struct nbd_server *server = connection->server;

    if (length_bytes != 0)
        return reply_error(connection, NBD_OPT_LIST, NBD_REP_ERR_INVALID,
                           "the option LIST has no payload");
    /* Exports come and go while a reply is sent, so each is found by its place. */
    for (size_t place = 0; place < server->export_count; place++) {
        size_t at = 0;
        struct nbd_export *export = NULL;

        LIST_FOR_EACH(candidate, &server->exports, struct nbd_export, link)
            if (at++ == place)
                export = candidate;
        if (export == NULL || export->revoked)
            continue;
        int result = list_export(connection, export);
        if (result < 0)
            return result;
    }
    return reply_ack(connection, NBD_OPT_LIST);
}

static int send_infos(struct nbd_connection *connection, const struct nbd_export *export,
                      uint32_t option, struct be_cursor wanted) MAY_WAIT
{
    uint8_t info[NBD_INFO_BLOCK_SIZE_BYTES];
    uint8_t type_bytes[NBD_INFO_BYTES];
    uint16_t type;
    unsigned told = 0; /* each once, however often it was asked for */
    uint32_t align_bytes = export->edge->child->limits.request_align_bytes;

    nbd_info_export_encode(info, export->edge->child->length_bytes,
                           nbd_export_flags(export, connection->structured));
    int result = reply(connection, option, NBD_REP_INFO, info, NBD_INFO_EXPORT_BYTES, NULL, 0);
    while (result > 0 && be16_take(&wanted, &type)) {
        const char *text = type == NBD_INFO_NAME          ? export->name
                           : type == NBD_INFO_DESCRIPTION ? export->description
                                                          : NULL;
        if (text == NULL || (told & (1u << type)) != 0)
            continue;
        told |= 1u << type;
        be16_put(type_bytes, type);
        result = reply(connection, option, NBD_REP_INFO, type_bytes, sizeof(type_bytes), text,
                       strlen(text));
    }
    if (result < 0)
        return result;
    /* Any client may send any request: the gate below reads and writes around the edges. */
    nbd_info_block_size_encode(info, 1, MAX(PREFERRED_BYTES, align_bytes), NBD_MAX_REQUEST_BYTES);
    return reply(connection, option, NBD_REP_INFO, info, NBD_INFO_BLOCK_SIZE_BYTES, NULL, 0);
}

static void connection_enter_export(struct nbd_connection *connection, struct nbd_export *export)
{
    connection->export = export;
    connection->came = connection->service->round;
    export->connection_count++;
    if (connection->context_export != export)
        connection->contexts = 0;
}

/* OPT_INFO and OPT_GO. *ret_begin: transmission begins. */
static int option_go(struct nbd_connection *connection, uint32_t option, uint32_t length_bytes,
                     bool *ret_begin) MAY_WAIT
{
    struct nbd_go go;

    if (nbd_go_decode(nbd_received(connection), length_bytes, &go) < 0)
        return reply_error(connection, option, NBD_REP_ERR_INVALID, "the option is malformed");
    struct nbd_export *export = nbd_export_lookup(connection->server, &go.name);
    if (export == NULL)
        return reply_unknown(connection, option);
    export_pin(connection, export);
    int result = send_infos(connection, export, option, go.infos);
    if (result > 0 && export->revoked)
        result = reply_error(connection, option, NBD_REP_ERR_SHUTDOWN, "the export is going away");
    else if (result > 0)
        result = reply_ack(connection, option);
    if (result > 0 && option == NBD_OPT_GO && !export->revoked) {
        connection_enter_export(connection, export);
        *ret_begin = true;
    }
    export_unpin(connection, export);
    return result;
}

static int option_export_name(struct nbd_connection *connection, uint32_t length_bytes,
                              bool no_zeroes) MAY_WAIT
{
    struct nbd_text name = {(const char *)nbd_received(connection), length_bytes};
    struct nbd_export *export = nbd_export_lookup(connection->server, &name);
    uint8_t answer[NBD_EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_NAME_ZEROES] = {0};

    if (export == NULL)
        return 0; /* this old option has no error reply */
    nbd_export_name_reply_encode(answer, export->edge->child->length_bytes,
                                 nbd_export_flags(export, connection->structured));
    connection_enter_export(connection, export);
    int result = send_bytes(connection, answer,
                            no_zeroes ? NBD_EXPORT_NAME_REPLY_BYTES : sizeof(answer));
    return result < 0 ? result : 1;
}

static int option_structured(struct nbd_connection *connection, uint32_t length_bytes) MAY_WAIT
{
    if (length_bytes != 0)
        return reply_error(connection, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID,
                           "the option STRUCTURED_REPLY has no payload");
    connection->structured = true;
    return reply_ack(connection, NBD_OPT_STRUCTURED_REPLY);
}

/* A context's name is its kind, which may be all, and what is behind it. */
struct context_name {
    const char *kind, *leaf;
};

static struct context_name context_name(const struct nbd_export *export, unsigned context)
{
    if (context == NBD_ALLOCATION)
        return (struct context_name){NBD_CONTEXT_ALLOCATION, ""};
    if (context == NBD_DEPTH)
        return (struct context_name){NBD_CONTEXT_DEPTH, ""};
    return (struct context_name){NBD_CONTEXT_DIRTY_PREFIX,
                                 export->bitmaps[context - NBD_FIRST_BITMAP]->name};
}

static bool context_matches(const struct context_name *name, const struct nbd_text *query,
                            bool list)
{
    size_t kind = strlen(name->kind), leaf = strlen(name->leaf);

    if (query->length_bytes == kind + leaf && memcmp(query->bytes, name->kind, kind) == 0 &&
        memcmp(query->bytes + kind, name->leaf, leaf) == 0)
        return true;
    /* "base:" lists what there is in the name space, "qemu:dirty-bitmap:" all bitmaps. */
    size_t space = (size_t)(strchr(name->kind, ':') + 1 - name->kind);
    return list && (query->length_bytes == space || query->length_bytes == kind) &&
           memcmp(query->bytes, name->kind, query->length_bytes) == 0;
}

static unsigned contexts_match(const struct nbd_export *export,
                               const struct nbd_meta_request *request, bool list)
{
    unsigned count = NBD_FIRST_BITMAP + export->bitmap_count;
    struct be_cursor queries = request->queries;
    struct nbd_text query;
    unsigned contexts = 0;

    if (list && request->query_count == 0)
        return (1u << count) - 1;
    while (nbd_text_take(&queries, &query))
        for (unsigned i = 0; i < count; i++) {
            struct context_name name = context_name(export, i);

            if (context_matches(&name, &query, list))
                contexts |= 1u << i;
        }
    return contexts;
}

/* A query that gets no context: it says whose connection this is. */
static uint64_t instance_told(const struct nbd_meta_request *request)
{
    struct be_cursor queries = request->queries;
    struct nbd_text query;
    uint64_t instance = 0;

    while (nbd_text_take(&queries, &query))
        (void)nbd_instance_decode(&query, &instance);
    return instance;
}

static int tell_context(struct nbd_connection *connection, uint32_t option, uint32_t id,
                        const struct context_name *name) MAY_WAIT
{
    uint8_t
        head[NBD_META_REPLY_BYTES + sizeof(NBD_CONTEXT_DIRTY_PREFIX) + sizeof(NBD_CONTEXT_DEPTH)];
    size_t kind = strlen(name->kind);

    be32_put(head, id);
    memcpy(head + NBD_META_REPLY_BYTES, name->kind, kind);
    return reply(connection, option, NBD_REP_META_CONTEXT, head, NBD_META_REPLY_BYTES + kind,
                 name->leaf, strlen(name->leaf));
}

/* OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT. */
static int option_meta(struct nbd_connection *connection, uint32_t option, uint32_t length_bytes)
    MAY_WAIT
{
    struct nbd_meta_request request;
    bool list = option == NBD_OPT_LIST_META_CONTEXT;

    if (!connection->structured)
        return reply_error(connection, option, NBD_REP_ERR_INVALID,
                           "negotiate STRUCTURED_REPLY first");
    if (nbd_meta_request_decode(nbd_received(connection), length_bytes, &request) < 0)
        return reply_error(connection, option, NBD_REP_ERR_INVALID, "the option is malformed");
    struct nbd_export *export = nbd_export_lookup(connection->server, &request.name);
    if (export == NULL)
        return reply_unknown(connection, option);
    unsigned contexts = contexts_match(export, &request, list);
    if (!list) {
        connection->contexts = contexts;
        connection->context_export = export;
        connection->instance = instance_told(&request);
    }
    int result = 1;
    export_pin(connection, export);
    for (unsigned i = 0; i < NBD_MAX_CONTEXTS && result > 0; i++) {
        if ((contexts & (1u << i)) == 0)
            continue;
        struct context_name name = context_name(export, i);
        result = tell_context(connection, option, list ? 0 : i, &name);
    }
    export_unpin(connection, export);
    return result > 0 ? reply_ack(connection, option) : result;
}

/* --- the dialogue --- */

struct negotiation {
    bool no_zeroes;
    bool begin; /* transmission */
    bool ended; /* by ABORT */
};

static int option_starttls(struct nbd_connection *connection, uint32_t length_bytes) MAY_WAIT
{
    struct err err = ERR_INIT;

    if (length_bytes != 0)
        return reply_error(connection, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID,
                           "the option STARTTLS has no payload");
    if (connection->server->creds == NULL)
        return reply_error(connection, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY,
                           "TLS is not configured");
    if (sock_is_tls(connection->sock))
        return reply_error(connection, NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID,
                           "TLS has been started already");
    /* What came with the option came in the clear, and must not be taken for the client's own word. */
    if (connection->position != connection->fill)
        return -EPROTO;
    int result = reply_ack(connection, NBD_OPT_STARTTLS);
    if (result < 0)
        return result;
    result = sock_start_tls(connection->sock, connection->server->creds, NULL, &err);
    if (result == 0)
        return 1;
    log_message(result == -EPERM ? LOG_LEVEL_WARNING : LOG_LEVEL_DEBUG, "nbd", "server '%s': %s",
                connection->server->id, err.text);
    return result;
}

/* Nothing but the way to TLS, as the protocol's "FORCEDTLS" mode has it. */
static int option_handle_clear(struct nbd_connection *connection, struct negotiation *negotiation,
                               const struct nbd_option_header *header) MAY_WAIT
{
    switch (header->option) {
    case NBD_OPT_EXPORT_NAME:
        return 0; /* this old option has no error reply */
    case NBD_OPT_ABORT:
        negotiation->ended = true;
        return reply_ack(connection, NBD_OPT_ABORT);
    case NBD_OPT_STARTTLS:
        return option_starttls(connection, header->length_bytes);
    default:
        return reply_error(connection, header->option, NBD_REP_ERR_TLS_REQD,
                           "this server speaks TLS only: begin with STARTTLS");
    }
}

static int option_handle(struct nbd_connection *connection, struct negotiation *negotiation,
                         const struct nbd_option_header *header) MAY_WAIT
{
    if (connection->server->creds != NULL && !sock_is_tls(connection->sock))
        return option_handle_clear(connection, negotiation, header);
    switch (header->option) {
    case NBD_OPT_EXPORT_NAME:
        negotiation->begin = true;
        return option_export_name(connection, header->length_bytes, negotiation->no_zeroes);
    case NBD_OPT_ABORT:
        negotiation->ended = true;
        return reply_ack(connection, NBD_OPT_ABORT);
    case NBD_OPT_LIST:
        return option_list(connection, header->length_bytes);
    case NBD_OPT_STARTTLS:
        return option_starttls(connection, header->length_bytes);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_go(connection, header->option, header->length_bytes, &negotiation->begin);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_structured(connection, header->length_bytes);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta(connection, header->option, header->length_bytes);
    default:
        return reply_error(connection, header->option, NBD_REP_ERR_UNSUP,
                           "the option is not supported");
    }
}

static int negotiate_greeting(struct nbd_connection *connection, bool *ret_no_zeroes) MAY_WAIT
{
    uint8_t greeting[NBD_GREETING_BYTES];

    nbd_greeting_encode(greeting, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    int result = send_bytes(connection, greeting, sizeof(greeting));
    if (result < 0)
        return result;
    result = nbd_receive(connection, NBD_CLIENT_FLAGS_BYTES);
    if (result <= 0)
        return result;
    uint32_t flags = be32_get(nbd_received(connection));
    connection->position += NBD_CLIENT_FLAGS_BYTES;
    if ((flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES)) != 0)
        return -EPROTO;
    *ret_no_zeroes = (flags & NBD_NO_ZEROES) != 0;
    return 1;
}

static int negotiate_option(struct nbd_connection *connection, struct negotiation *negotiation)
    MAY_WAIT
{
    struct nbd_option_header header;
    int result = nbd_receive(connection, NBD_OPTION_BYTES);

    if (result <= 0)
        return result;
    result = nbd_option_decode(nbd_received(connection), &header);
    if (result < 0)
        return result;
    connection->position += NBD_OPTION_BYTES;
    if (header.length_bytes > NBD_MAX_OPTION_BYTES)
        return -EPROTO;
    result = nbd_receive(connection, header.length_bytes);
    if (result <= 0)
        return result;
    TRACE("nbd.option", "%s: option %u, %u bytes", sock_peer_name(connection->sock), header.option,
          header.length_bytes);
    result = option_handle(connection, negotiation, &header);
    connection->position += header.length_bytes;
    return result;
}

int nbd_negotiate(struct nbd_connection *connection)
{
    struct negotiation negotiation = {.begin = false};
    int result = negotiate_greeting(connection, &negotiation.no_zeroes);

    for (unsigned i = 0; result > 0 && i < NBD_MAX_OPTIONS; i++) {
        result = negotiate_option(connection, &negotiation);
        if (result > 0 && negotiation.begin)
            return 1;
        if (negotiation.ended)
            return result < 0 ? result : 0;
    }
    return result > 0 ? -EPROTO : result;
}
