/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Replies: received in batches, told apart by their cookies, checked against the request that they
 * answer. Whatever does not fit is -EPROTO, which ends the connection.
 */
#include "drivers/nbd_client_internal.h"

#include <errno.h>
#include <string.h>

int nbd_client_receive(struct nbd_client *client, size_t length_bytes)
{
    assert(length_bytes <= NBD_CLIENT_RECEIVE_BYTES);
    while (client->fill - client->position < length_bytes) {
        if (client->position == client->fill) {
            client->position = client->fill = 0;
        } else if (NBD_CLIENT_RECEIVE_BYTES - client->position < length_bytes) {
            memmove(client->receive, nbd_client_received(client), client->fill - client->position);
            client->fill -= client->position;
            client->position = 0;
        }
        ssize_t received = sock_recv(client->sock, client->receive + client->fill,
                                     NBD_CLIENT_RECEIVE_BYTES - client->fill);
        if (received <= 0)
            return received < 0 ? (int)received : -EPIPE;
        client->fill += (size_t)received;
    }
    return 0;
}

/* Payload into the memory of a request: what is here is copied, a long rest received in place. */
static int receive_into(struct nbd_client *client, uint8_t *bytes, size_t length_bytes) MAY_WAIT
{
    while (length_bytes > 0) {
        size_t have = MIN(length_bytes, client->fill - client->position);

        memcpy(bytes, nbd_client_received(client), have);
        client->position += have;
        bytes += have;
        length_bytes -= have;
        if (length_bytes == 0)
            break;
        if (length_bytes < NBD_CLIENT_DIRECT_BYTES) {
            int result = nbd_client_receive(client, length_bytes);
            if (result < 0)
                return result;
            continue;
        }
        ssize_t received = sock_recv(client->sock, bytes, length_bytes);
        if (received <= 0)
            return received < 0 ? (int)received : -EPIPE;
        bytes += received;
        length_bytes -= (size_t)received;
    }
    return 0;
}

/* --- which bytes of a read have come --- */

/* False when the stretch overlaps with what is there, or there are too many pieces. */
static bool islands_add(struct nbd_call *call, uint32_t begin, uint32_t end)
{
    struct island *items = call->islands;
    unsigned at = 0;

    while (at < call->island_count && items[at].end < begin)
        at++;
    bool left = at < call->island_count && items[at].end == begin;
    unsigned next = at + (left ? 1 : 0);
    if (next < call->island_count && items[next].begin < end)
        return false;
    bool right = next < call->island_count && items[next].begin == end;
    if (left) {
        items[at].end = right ? items[next].end : end;
        if (right) {
            memmove(&items[next], &items[next + 1],
                    (call->island_count - next - 1) * sizeof(items[0]));
            call->island_count--;
        }
    } else if (right) {
        items[next].begin = begin;
    } else {
        if (call->island_count == NBD_CLIENT_MAX_ISLANDS)
            return false;
        memmove(&items[at + 1], &items[at], (call->island_count - at) * sizeof(items[0]));
        items[at] = (struct island){begin, end};
        call->island_count++;
    }
    return true;
}

static bool islands_are_whole(const struct nbd_call *call)
{
    return call->island_count == 1 && call->islands[0].begin == 0 &&
           call->islands[0].end == call->request.length_bytes;
}

/* Checks that a chunk is of this read and is new; *ret_at: where it begins. */
static int chunk_claim(struct nbd_call *call, uint64_t offset_bytes, uint32_t length_bytes,
                       uint32_t *ret_at)
{
    uint64_t begin = call->request.offset_bytes;

    if (call->request.type != NBD_CMD_READ || length_bytes == 0 || offset_bytes < begin ||
        !range_fits(offset_bytes - begin, length_bytes, call->request.length_bytes))
        return -EPROTO;
    uint32_t at = (uint32_t)(offset_bytes - begin);
    if (!islands_add(call, at, at + length_bytes))
        return -EPROTO;
    *ret_at = at;
    return 0;
}

/* --- chunks --- */

static int chunk_data(struct nbd_client *client, struct nbd_call *call, uint32_t length_bytes)
    MAY_WAIT
{
    uint32_t at;

    if (length_bytes <= NBD_OFFSET_DATA_BYTES)
        return -EPROTO;
    int result = nbd_client_receive(client, NBD_OFFSET_DATA_BYTES);
    if (result < 0)
        return result;
    uint64_t offset_bytes = be64_get(nbd_client_received(client));
    client->position += NBD_OFFSET_DATA_BYTES;
    length_bytes -= NBD_OFFSET_DATA_BYTES;
    result = chunk_claim(call, offset_bytes, length_bytes, &at);
    return result < 0 ? result : receive_into(client, call->data.bytes + at, length_bytes);
}

static int chunk_hole(struct nbd_call *call, const uint8_t *payload, uint32_t length_bytes)
{
    struct nbd_offset_hole hole;
    uint32_t at;
    int result = nbd_offset_hole_decode(payload, length_bytes, &hole);

    if (result == 0)
        result = chunk_claim(call, hole.offset_bytes, hole.length_bytes, &at);
    if (result == 0)
        memset(call->data.bytes + at, 0, hole.length_bytes);
    return result;
}

static int chunk_status(struct nbd_client *client, struct nbd_call *call, const uint8_t *payload,
                        uint32_t length_bytes)
{
    struct nbd_block_status status;
    struct nbd_descriptor first;

    if (call->request.type != NBD_CMD_BLOCK_STATUS ||
        nbd_block_status_decode(payload, length_bytes, &status) < 0 ||
        !nbd_descriptor_take(&status.descriptors, &first) || first.length_bytes == 0)
        return -EPROTO;
    for (int i = 0; i < CLIENT_CONTEXTS; i++) {
        if (!client->has_context[i] || client->context_id[i] != status.context_id)
            continue;
        if (call->status[i].length_bytes != 0)
            return -EPROTO;
        call->status[i] = first;
        return 0;
    }
    return -EPROTO;
}

static int chunk_error(struct nbd_call *call, uint16_t type, const uint8_t *payload,
                       uint32_t length_bytes)
{
    struct nbd_error error;
    int result = nbd_error_decode(type, payload, length_bytes, &error);

    if (result == 0 && call->error == 0)
        call->error = nbd_error_to_errno(error.error);
    return result;
}

static int chunk_small(struct nbd_client *client, struct nbd_call *call,
                       const struct nbd_chunk *chunk) MAY_WAIT
{
    if (chunk->length_bytes > NBD_CLIENT_MAX_REPLY_BYTES)
        return -EPROTO;
    int result = nbd_client_receive(client, chunk->length_bytes);
    if (result < 0)
        return result;
    const uint8_t *payload = nbd_client_received(client);
    client->position += chunk->length_bytes;
    if (nbd_chunk_is_error(chunk->type))
        return chunk_error(call, chunk->type, payload, chunk->length_bytes);
    switch (chunk->type) {
    case NBD_CHUNK_NONE:
        return chunk->length_bytes == 0 && (chunk->flags & NBD_CHUNK_DONE) != 0 ? 0 : -EPROTO;
    case NBD_CHUNK_OFFSET_HOLE:
        return chunk_hole(call, payload, chunk->length_bytes);
    case NBD_CHUNK_BLOCK_STATUS:
        return chunk_status(client, call, payload, chunk->length_bytes);
    default:
        return -EPROTO;
    }
}

/* After the last chunk: the result, or -EPROTO through *ret_broken when something is missing. */
static int call_conclude(const struct nbd_client *client, const struct nbd_call *call,
                         bool *ret_broken)
{
    *ret_broken = false;
    if (call->error != 0)
        return call->error;
    if (call->request.type == NBD_CMD_READ)
        *ret_broken = !islands_are_whole(call);
    if (call->request.type == NBD_CMD_BLOCK_STATUS)
        for (int i = 0; i < CLIENT_CONTEXTS; i++)
            *ret_broken |= client->has_context[i] && call->status[i].length_bytes == 0;
    return *ret_broken ? -EPROTO : 0;
}

/* --- replies --- */

static struct nbd_call *call_find(struct nbd_client *client, uint64_t cookie)
{
    uint32_t index = (uint32_t)cookie;

    if (index >= NBD_CLIENT_MAX_IN_FLIGHT || client->slots[index].call == NULL ||
        client->slots[index].generation != (uint32_t)(cookie >> 32))
        return NULL;
    return client->slots[index].call;
}

static int reply_simple(struct nbd_client *client, const struct nbd_simple_reply *reply) MAY_WAIT
{
    struct nbd_call *call = call_find(client, reply->cookie);
    int result = 0;

    if (call == NULL)
        return -EPROTO;
    uint16_t type = call->request.type;
    if (client->structured && (type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS))
        return -EPROTO;
    if (reply->error == 0 && type == NBD_CMD_READ)
        result = receive_into(client, call->data.bytes, call->data.length_bytes);
    if (result < 0)
        return result;
    nbd_client_answer(client, call, nbd_error_to_errno(reply->error));
    return 0;
}

static int reply_chunk(struct nbd_client *client, const struct nbd_chunk *chunk) MAY_WAIT
{
    struct nbd_call *call = call_find(client, chunk->cookie);
    bool missing;

    if (call == NULL || !client->structured)
        return -EPROTO;
    int result = chunk->type == NBD_CHUNK_OFFSET_DATA
                     ? chunk_data(client, call, chunk->length_bytes)
                     : chunk_small(client, call, chunk);
    if (result < 0 || (chunk->flags & NBD_CHUNK_DONE) == 0)
        return result;
    result = call_conclude(client, call, &missing);
    if (missing)
        return -EPROTO;
    nbd_client_answer(client, call, result);
    return 0;
}

int nbd_client_replies(struct nbd_client *client)
{
    for (;;) {
        struct nbd_reply reply;
        int result = nbd_client_receive(client, NBD_SIMPLE_REPLY_BYTES);

        if (result < 0)
            return result;
        int header_bytes = nbd_reply_bytes(nbd_client_received(client));
        if (header_bytes < 0)
            return header_bytes;
        result = nbd_client_receive(client, (size_t)header_bytes);
        if (result < 0)
            return result;
        nbd_reply_decode(nbd_client_received(client), &reply);
        client->position += (size_t)header_bytes;
        result = reply.structured ? reply_chunk(client, &reply.chunk)
                                  : reply_simple(client, &reply.simple);
        if (result < 0)
            return result;
    }
}
