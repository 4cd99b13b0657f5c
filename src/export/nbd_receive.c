/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Receiving: as much as there is in one call, into a counted buffer. Short payloads are slices of
 * that buffer, each with a reference; long ones are received into their own.
 */
#include "export/nbd_internal.h"

#include <errno.h>
#include <string.h>

static struct buf *receive_buf_new(struct nbd_connection *connection, size_t length_bytes)
{
    struct buf *buf = buf_alloc(loop_bufs(connection->loop), length_bytes);

    if (buf != NULL)
        connection->bufs[connection->buf_count++] = buf;
    return buf;
}

int nbd_receive_init(struct nbd_connection *connection, size_t length_bytes)
{
    assert(connection->buf_count == 0);
    connection->receive_limit_bytes = SIZE_MAX;
    connection->receive = receive_buf_new(connection, length_bytes);
    return connection->receive != NULL ? 0 : -ENOMEM;
}

void nbd_receive_release(struct nbd_connection *connection)
{
    for (unsigned i = 0; i < connection->buf_count; i++)
        buf_unref(connection->bufs[i]);
    connection->buf_count = 0;
    connection->receive = NULL;
}

/* A buffer that no request holds a slice of, other than the current one. */
static struct buf *receive_buf_idle(struct nbd_connection *connection)
{
    for (unsigned i = 0; i < connection->buf_count; i++)
        if (connection->bufs[i] != connection->receive && connection->bufs[i]->refs == 1)
            return connection->bufs[i];
    return NULL;
}

/* Goes on in another buffer, since slices of this one are in use. Waits until there is one. */
static int receive_buf_switch(struct nbd_connection *connection) MAY_WAIT
{
    struct buf *next = NULL;

    while (connection->receive->refs > 1 && (next = receive_buf_idle(connection)) == NULL) {
        if (connection->buf_count < NBD_RECEIVE_BUFS) {
            next = receive_buf_new(connection, NBD_RECEIVE_BYTES);
            if (next == NULL)
                return -ENOMEM;
            break;
        }
        co_queue_wait(&connection->room);
        if (connection->cut)
            return -ECONNABORTED;
    }
    size_t left = connection->fill - connection->position;
    if (next == NULL)
        next = connection->receive;
    memmove(next->bytes, nbd_received(connection), left);
    connection->receive = next;
    connection->position = 0;
    connection->fill = left;
    return 0;
}

/* Makes room for `length_bytes` behind the position. */
static int receive_room(struct nbd_connection *connection, size_t length_bytes) MAY_WAIT
{
    struct buf *buf = connection->receive;

    if (connection->position == connection->fill && buf->refs == 1)
        connection->position = connection->fill = 0;
    if (buf->capacity_bytes - connection->position >= length_bytes)
        return 0;
    return receive_buf_switch(connection);
}

int nbd_receive(struct nbd_connection *connection, size_t length_bytes)
{
    assert(length_bytes <= connection->receive->capacity_bytes);
    while (connection->fill - connection->position < length_bytes) {
        int result = receive_room(connection, length_bytes);
        if (result < 0)
            return result;
        size_t missing = length_bytes - (connection->fill - connection->position);
        size_t room = connection->receive->capacity_bytes - connection->fill;
        ssize_t received = sock_recv(connection->sock,
                                     connection->receive->bytes + connection->fill,
                                     MIN(room, MAX(missing, connection->receive_limit_bytes)));
        if (received <= 0)
            return (int)received;
        connection->fill += (size_t)received;
    }
    return 1;
}

static int receive_long_payload(struct nbd_connection *connection, size_t length_bytes,
                                struct buf_slice *ret_data) MAY_WAIT
{
    CLEANUP(buf_unrefp) struct buf *buf = buf_alloc(loop_bufs(connection->loop), length_bytes);

    if (buf == NULL)
        return -ENOMEM;
    size_t have = MIN(length_bytes, connection->fill - connection->position);
    memcpy(buf->bytes, nbd_received(connection), have);
    connection->position += have;
    connection->transfer_since_ns = loop_now_ns(connection->loop);
    connection->transfer_bytes = length_bytes;
    while (have < length_bytes) {
        ssize_t received = sock_recv(connection->sock, buf->bytes + have, length_bytes - have);
        if (received <= 0)
            return (int)received;
        have += (size_t)received;
    }
    connection->transfer_since_ns = 0;
    /* More of these will come: what is received with the next header would have to be copied. */
    connection->receive_limit_bytes = NBD_SHORT_RECEIVE_BYTES;
    *ret_data = buf_slice_of(buf, 0, length_bytes);
    buf = NULL;
    return 1;
}

int nbd_receive_payload(struct nbd_connection *connection, size_t length_bytes,
                        struct buf_slice *ret_data)
{
    if (length_bytes > NBD_SLICED_PAYLOAD_BYTES)
        return receive_long_payload(connection, length_bytes, ret_data);
    connection->receive_limit_bytes = SIZE_MAX;
    int result = nbd_receive(connection, length_bytes);
    if (result <= 0)
        return result;
    *ret_data = buf_slice_of(connection->receive, connection->position, length_bytes);
    buf_ref(connection->receive);
    connection->position += length_bytes;
    return 1;
}

int nbd_receive_skip(struct nbd_connection *connection, uint64_t length_bytes)
{
    while (length_bytes > 0) {
        size_t step = MIN(length_bytes, connection->fill - connection->position);
        connection->position += step;
        length_bytes -= step;
        if (length_bytes == 0)
            break;
        int result = nbd_receive(connection, 1);
        if (result <= 0)
            return result;
    }
    return 1;
}
