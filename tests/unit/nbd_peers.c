/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_peers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void nbd_world_begin(struct nbd_world *world, const struct nbd_service_options *options,
                     const char *node)
{
    struct err err = ERR_INIT;

    world->graph = blocks_graph();
    world->node = blocks_add(world->graph, "%s",
                             node != NULL ? node
                                          : "{'node-name':'disk','driver':'mem','size':1048576}");
    world->service = nbd_service_new(world->graph, options);
    assert_non_null(world->service);
    world->address = (struct sock_address){
        .family = SOCK_FAMILY_UNIX,
        .path = strdup(test_path("nbd.sock")),
    };
    assert_int_equal(nbd_server_start(world->service, "default", &world->address, 1, 0, &err), 0);
    nbd_world_export(world, "disk", "disk", true);
}

void nbd_world_end(struct nbd_world *world)
{
    nbd_service_free(world->service);
    graph_free(world->graph);
    sock_address_release(&world->address);
    test_folder_remove();
}

void nbd_world_export(struct nbd_world *world, const char *name, const char *node_name,
                      bool writable)
{
    struct err err = ERR_INIT;
    struct nbd_export_options options = {
        .id = name,
        .name = name,
        .description = "a test's disk",
        .node = graph_find(world->graph, node_name),
        .writable = writable,
    };

    if (nbd_export_add(world->service, &options, &err) < 0)
        fail_msg("%s", err.text);
}

struct edge *nbd_world_client(struct nbd_world *world, const char *name)
{
    struct node *node = blocks_add(
        world->graph,
        "{'node-name':'%s','driver':'nbd','server':{'type':'unix','path':'%s'},'export':'disk'}",
        name, world->address.path);

    return blocks_root(world->graph, node, name);
}

void nbd_world_client_end(struct nbd_world *world, struct edge *edge)
{
    char name[NODE_NAME_BYTES];
    struct err err = ERR_INIT;

    snprintf(name, sizeof(name), "%s", edge->child->name);
    graph_detach(edge);
    assert_int_equal(graph_del(world->graph, name, &err), 0);
}

/* --- bytes --- */

struct sock *peer_connect(const struct nbd_world *world)
{
    struct sock *sock;
    struct err err = ERR_INIT;

    if (sock_connect(loop_current(), &world->address, loop_now_ns(loop_current()) + 5 * NS_PER_S,
                     &sock, &err) < 0)
        fail_msg("%s", err.text);
    return sock;
}

void peer_close(struct sock *sock)
{
    sock_shutdown(sock, 0);
    sock_close(sock);
}

bool peer_send(struct sock *sock, const void *bytes, size_t length_bytes)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, length_bytes};

    return sock_send(sock, &iov, 1) == 0;
}

bool peer_recv(struct sock *sock, void *bytes, size_t length_bytes)
{
    for (size_t done = 0; done < length_bytes;) {
        ssize_t received = sock_recv(sock, (uint8_t *)bytes + done, length_bytes - done);
        if (received <= 0)
            return false;
        done += (size_t)received;
    }
    return true;
}

void peer_expect_end(struct sock *sock)
{
    uint8_t bytes[4096];

    sock_deadline(sock, loop_now_ns(loop_current()) + 5 * NS_PER_S);
    for (;;) {
        ssize_t received = sock_recv(sock, bytes, sizeof(bytes));
        if (received <= 0) {
            assert_int_not_equal(received, -ETIMEDOUT);
            return;
        }
    }
}

/* --- as a client --- */

void peer_greet(struct sock *sock, uint32_t flags)
{
    uint8_t greeting[NBD_GREETING_BYTES], mine[NBD_CLIENT_FLAGS_BYTES];
    uint16_t theirs;

    assert_true(peer_recv(sock, greeting, sizeof(greeting)));
    assert_int_equal(nbd_greeting_decode(greeting, &theirs), 0);
    assert_int_equal(theirs, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    be32_put(mine, flags);
    assert_true(peer_send(sock, mine, sizeof(mine)));
}

void peer_option(struct sock *sock, uint32_t option, const void *payload, size_t length_bytes)
{
    uint8_t head[NBD_OPTION_BYTES];
    struct nbd_option_header header = {option, (uint32_t)length_bytes};

    nbd_option_encode(head, &header);
    assert_true(peer_send(sock, head, sizeof(head)));
    if (length_bytes > 0)
        assert_true(peer_send(sock, payload, length_bytes));
}

uint32_t peer_option_reply(struct sock *sock, uint32_t option, char *payload, size_t size)
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];
    struct nbd_option_reply_header header;
    char byte;

    assert_true(peer_recv(sock, head, sizeof(head)));
    assert_int_equal(nbd_option_reply_decode(head, &header), 0);
    assert_int_equal(header.option, option);
    for (uint32_t i = 0; i < header.length_bytes; i++) {
        assert_true(peer_recv(sock, &byte, 1));
        if (i + 1 < size)
            payload[i] = byte;
    }
    if (size > 0)
        payload[MIN(header.length_bytes, size - 1)] = '\0';
    return header.type;
}

uint32_t peer_option_end(struct sock *sock, uint32_t option)
{
    uint32_t type;

    do {
        type = peer_option_reply(sock, option, NULL, 0);
    } while (type == NBD_REP_INFO || type == NBD_REP_META_CONTEXT || type == NBD_REP_SERVER);
    return type;
}

uint32_t peer_go(struct sock *sock, const char *name)
{
    uint8_t payload[64];
    struct nbd_text text = {name, strlen(name)};

    assert_true(text.length_bytes < 32);
    nbd_go_encode(payload, &text, NULL, 0);
    peer_option(sock, NBD_OPT_GO, payload, nbd_go_bytes(text.length_bytes, 0));
    return peer_option_end(sock, NBD_OPT_GO);
}

struct sock *peer_session(const struct nbd_world *world, const char *name, bool structured)
{
    struct sock *sock = peer_connect(world);
    struct nbd_text text = {name, strlen(name)};
    struct nbd_text queries[] = {
        {NBD_CONTEXT_ALLOCATION, strlen(NBD_CONTEXT_ALLOCATION)},
        {NBD_CONTEXT_DEPTH, strlen(NBD_CONTEXT_DEPTH)},
    };
    uint8_t payload[256];

    peer_greet(sock, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    if (structured) {
        peer_option(sock, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        assert_int_equal(peer_option_end(sock, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
        nbd_meta_request_encode(payload, &text, queries, 2);
        peer_option(sock, NBD_OPT_SET_META_CONTEXT, payload,
                    nbd_meta_request_bytes(&text, queries, 2));
        assert_int_equal(peer_option_end(sock, NBD_OPT_SET_META_CONTEXT), NBD_REP_ACK);
    }
    assert_int_equal(peer_go(sock, name), NBD_REP_ACK);
    return sock;
}

void peer_request(struct sock *sock, uint16_t type, uint16_t flags, uint64_t cookie,
                  uint64_t offset_bytes, uint32_t length_bytes)
{
    uint8_t bytes[NBD_REQUEST_BYTES];
    struct nbd_request request = {flags, type, cookie, offset_bytes, length_bytes};

    nbd_request_encode(bytes, &request);
    assert_true(peer_send(sock, bytes, sizeof(bytes)));
}

int peer_simple_reply(struct sock *sock, uint64_t cookie)
{
    uint8_t bytes[NBD_SIMPLE_REPLY_BYTES];
    struct nbd_reply reply;

    assert_true(peer_recv(sock, bytes, sizeof(bytes)));
    assert_int_equal(nbd_reply_bytes(bytes), NBD_SIMPLE_REPLY_BYTES);
    assert_int_equal(nbd_reply_decode(bytes, &reply), 0);
    assert_true(reply.simple.cookie == cookie);
    return nbd_error_to_errno(reply.simple.error);
}

struct nbd_chunk peer_chunk(struct sock *sock, uint64_t cookie)
{
    uint8_t bytes[NBD_CHUNK_BYTES];
    struct nbd_reply reply;

    assert_true(peer_recv(sock, bytes, sizeof(bytes)));
    assert_int_equal(nbd_reply_decode(bytes, &reply), 0);
    assert_true(reply.structured);
    assert_true(reply.chunk.cookie == cookie);
    return reply.chunk;
}

/* --- as a server --- */

void peer_server_begin(struct peer_server *server, struct sock_address *ret_address)
{
    struct err err = ERR_INIT;

    *ret_address = (struct sock_address){
        .family = SOCK_FAMILY_UNIX,
        .path = strdup(test_path("peer.sock")),
    };
    if (sock_listen(loop_current(), ret_address, &server->listener, &err) < 0)
        fail_msg("%s", err.text);
}

void peer_server_end(struct peer_server *server, struct sock_address *address)
{
    sock_shutdown(server->listener, 0);
    sock_close(server->listener);
    sock_address_release(address);
}

struct sock *peer_accept(struct peer_server *server)
{
    struct sock *sock;

    assert_int_equal(sock_accept(server->listener, &sock), 0);
    return sock;
}

static void answer(struct sock *sock, uint32_t option, uint32_t type, const void *payload,
                   size_t length_bytes) MAY_WAIT
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];
    struct nbd_option_reply_header header = {option, type, (uint32_t)length_bytes};

    nbd_option_reply_encode(head, &header);
    (void)peer_send(sock, head, sizeof(head));
    if (length_bytes > 0)
        (void)peer_send(sock, payload, length_bytes);
}

static void answer_meta(struct peer_server *server, struct sock *sock, const uint8_t *bytes,
                        size_t length_bytes) MAY_WAIT
{
    char payload[] = "\0\0\0\5" NBD_CONTEXT_ALLOCATION;
    struct nbd_meta_request request;
    struct nbd_text query;

    assert_int_equal(nbd_meta_request_decode(bytes, length_bytes, &request), 0);
    while (nbd_text_take(&request.queries, &query))
        (void)nbd_instance_decode(&query, &server->instance);
    if (server->refuses_contexts) {
        answer(sock, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_UNSUP, NULL, 0);
        return;
    }
    answer(sock, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, payload, sizeof(payload) - 1);
    answer(sock, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK, NULL, 0);
}

static bool answer_option(struct peer_server *server, struct sock *sock,
                          const struct nbd_option_header *header, bool *ret_begin) MAY_WAIT
{
    uint8_t payload[1024], info[NBD_INFO_EXPORT_BYTES];

    assert_true(header->length_bytes <= sizeof(payload));
    if (!peer_recv(sock, payload, header->length_bytes))
        return false;
    switch (header->option) {
    case NBD_OPT_STRUCTURED_REPLY:
        answer(sock, header->option, server->structured ? NBD_REP_ACK : NBD_REP_ERR_UNSUP, NULL, 0);
        return true;
    case NBD_OPT_SET_META_CONTEXT:
        answer_meta(server, sock, payload, header->length_bytes);
        return true;
    case NBD_OPT_GO:
        nbd_info_export_encode(info, server->size_bytes, server->flags);
        answer(sock, NBD_OPT_GO, NBD_REP_INFO, info, sizeof(info));
        answer(sock, NBD_OPT_GO, NBD_REP_ACK, NULL, 0);
        *ret_begin = true;
        return true;
    default:
        return false;
    }
}

bool peer_negotiate(struct peer_server *server, struct sock *sock)
{
    uint8_t bytes[NBD_GREETING_BYTES];
    bool begin = false;

    nbd_greeting_encode(bytes, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    if (!peer_send(sock, bytes, NBD_GREETING_BYTES) ||
        !peer_recv(sock, bytes, NBD_CLIENT_FLAGS_BYTES))
        return false;
    while (!begin) {
        uint8_t head[NBD_OPTION_BYTES];
        struct nbd_option_header header;

        if (!peer_recv(sock, head, sizeof(head)))
            return false;
        assert_int_equal(nbd_option_decode(head, &header), 0);
        if (!answer_option(server, sock, &header, &begin))
            return false;
    }
    return true;
}

void peer_take_request(struct sock *sock, struct nbd_request *ret_request)
{
    uint8_t bytes[NBD_REQUEST_BYTES];

    assert_true(peer_recv(sock, bytes, sizeof(bytes)));
    assert_int_equal(nbd_request_decode(bytes, ret_request), 0);
}
