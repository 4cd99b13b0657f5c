/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A connection's life: negotiation, requests, the last replies, the end. */
#include "export/nbd_internal.h"

#include "base/log.h"

#include <errno.h>
#include <string.h>

void nbd_connection_cut(struct nbd_connection *connection, int reason)
{
    if (connection->cut)
        return;
    connection->cut = true;
    sock_shutdown(connection->sock, reason);
    co_queue_wake_all(&connection->room);
}

/* From the small buffer of the negotiation to a large one. */
static int connection_grow(struct nbd_connection *connection)
{
    struct buf *buf = buf_alloc(loop_bufs(connection->loop), NBD_RECEIVE_BYTES);
    size_t left = connection->fill - connection->position;

    if (buf == NULL)
        return -ENOMEM;
    memcpy(buf->bytes, nbd_received(connection), left);
    buf_unref(connection->receive);
    connection->bufs[0] = connection->receive = buf;
    connection->position = 0;
    connection->fill = left;
    return 0;
}

/* 0: the client has left in good order; -errno. */
static int connection_transmit(struct nbd_connection *connection) MAY_WAIT
{
    int result = connection_grow(connection);

    if (result == 0)
        result = gather_init(&connection->gather, connection->loop, connection->sock,
                             NBD_MAX_REQUESTS_IN_FLIGHT, nbd_replies_sent);
    if (result < 0)
        return result;
    connection->gather_ready = true;
    for (;;) {
        struct nbd_request request;

        result = nbd_receive(connection, NBD_REQUEST_BYTES);
        if (result <= 0)
            return result;
        result = nbd_request_decode(nbd_received(connection), &request);
        if (result < 0)
            return result;
        connection->position += NBD_REQUEST_BYTES;
        if (request.type == NBD_CMD_DISC) {
            connection->said_goodbye = true;
            return 0;
        }
        result = nbd_request_take(connection, &request);
        if (result <= 0)
            return result;
    }
}

static int connection_serve(struct nbd_connection *connection) MAY_WAIT
{
    int result = nbd_receive_init(connection, NBD_NEGOTIATE_BYTES);

    if (result < 0)
        return result;
    sock_deadline(connection->sock,
                  loop_now_ns(connection->loop) + connection->service->handshake_timeout_ns);
    result = nbd_negotiate(connection);
    if (result <= 0)
        return result;
    sock_deadline(connection->sock, DEADLINE_NEVER);
    return connection_transmit(connection);
}

/* Lets what was taken end and its replies go out. */
static void connection_linger(struct nbd_connection *connection) MAY_WAIT
{
    sock_deadline(connection->sock, loop_now_ns(connection->loop) + NBD_LINGER_TIMEOUT_NS);
    while (connection->in_flight > 0)
        co_queue_wait(&connection->room);
    while (connection->gather_ready && connection->gather.sending)
        co_yield();
}

static void connection_count_end(struct nbd_connection *connection, int result)
{
    struct nbd_server *server = connection->server;

    if (result == -EPROTO)
        server->broken++;
    else if (result == -ETIMEDOUT)
        server->timed_out++;
    if (result == -EPROTO || result == -ETIMEDOUT)
        log_debug("nbd", "server '%s': connection of %s ended: %s", server->id,
                  sock_peer_name(connection->sock),
                  result == -EPROTO ? "it broke the protocol" : "it was too slow");
}

static void connection_free(struct nbd_connection *connection)
{
    struct nbd_service *service = connection->service;
    struct nbd_export *export = connection->export;
    struct nbd_work *work;

    if (connection->gather_ready)
        gather_release(&connection->gather);
    nbd_receive_release(connection);
    while ((work = LIST_POP_FRONT(&connection->free_work, struct nbd_work, link)) != NULL)
        free(work);
    sock_close(connection->sock);
    list_remove(&connection->link);
    connection->server->connection_count--;
    service->connection_count--;
    if (export != NULL && --export->connection_count == 0)
        co_queue_wake_all(&export->idle);
    co_queue_wake_all(&service->changed);
    free(connection);
}

static void connection_run(void *arg) MAY_WAIT
{
    struct nbd_connection *connection = arg;
    int result = connection_serve(connection);

    if (result < 0)
        nbd_connection_cut(connection, result);
    connection_count_end(connection, result);
    connection_linger(connection);
    nbd_admission_ended(connection);
    nbd_connection_cut(connection, 0);
    connection_free(connection);
}

void nbd_connection_start(struct nbd_server *server, struct sock *sock)
{
    struct nbd_service *service = server->service;
    struct nbd_connection *connection = calloc(1, sizeof(*connection));

    if (connection == NULL) {
        sock_close(sock);
        return;
    }
    connection->service = service;
    connection->server = server;
    connection->loop = service->loop;
    connection->sock = sock;
    connection->id = ++service->next_connection_id;
    list_init(&connection->free_work);
    co_queue_init(&connection->room);
    list_push_back(&server->connections, &connection->link);
    server->connection_count++;
    service->connection_count++;
    if (co_spawn(service->loop, "nbd connection", connection_run, connection) < 0)
        connection_free(connection);
}
