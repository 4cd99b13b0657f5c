/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The client's side of the negotiation: structured replies, block status contexts, then the export
 * by OPT_GO, or by OPT_EXPORT_NAME where the server is too old for that. The socket's deadline
 * covers all of it; replies are bounded in number and length.
 */
#include "drivers/nbd_client_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define OPTION_SPACE_BYTES (NBD_OPTION_BYTES + 2 * NBD_MAX_STRING_BYTES)
#define MAX_QUERIES        (CLIENT_CONTEXTS + 1)

static const char *const context_names[CLIENT_CONTEXTS] = {
    [CONTEXT_ALLOCATION] = NBD_CONTEXT_ALLOCATION,
    [CONTEXT_DEPTH] = NBD_CONTEXT_DEPTH,
};

static int broken(struct err *err, const char *what)
{
    return err_set(err, -EPROTO, "the server broke the NBD protocol: %s", what);
}

static int lost(struct err *err, int code)
{
    return err_set_errno(err, code, "the connection ended during the negotiation");
}

static int send_option(struct nbd_client *client, uint32_t option, const void *payload,
                       size_t length_bytes, struct err *err) MAY_WAIT
{
    uint8_t head[NBD_OPTION_BYTES];
    struct nbd_option_header header = {option, (uint32_t)length_bytes};
    struct iovec iov[2] = {
        {head, sizeof(head)},
        {(void *)(uintptr_t)payload, length_bytes},
    };

    nbd_option_encode(head, &header);
    int result = sock_send(client->sock, iov, length_bytes > 0 ? 2 : 1);
    return result < 0 ? lost(err, result) : 0;
}

/* One reply to `option`; its payload stays in the receive buffer until the next call. */
static int receive_reply(struct nbd_client *client, uint32_t option,
                         struct nbd_option_reply_header *ret_header, const uint8_t **ret_payload,
                         struct err *err) MAY_WAIT
{
    struct nbd_option_reply_header header;
    int result = nbd_client_receive(client, NBD_OPTION_REPLY_BYTES);

    if (result < 0)
        return lost(err, result);
    if (nbd_option_reply_decode(nbd_client_received(client), &header) < 0)
        return broken(err, "a reply to an option has the wrong magic");
    if (header.option != option)
        return broken(err, "it answered an option that was not sent");
    if (header.length_bytes > NBD_CLIENT_MAX_REPLY_BYTES)
        return broken(err, "a reply to an option is too long");
    client->position += NBD_OPTION_REPLY_BYTES;
    result = nbd_client_receive(client, header.length_bytes);
    if (result < 0)
        return lost(err, result);
    *ret_payload = nbd_client_received(client);
    *ret_header = header;
    client->position += header.length_bytes;
    return 0;
}

/* 1: acknowledged; 0: refused in good order (`refusal` is set); -errno: the connection is of no use.
 * Replies before the last go to `each`. */
typedef int reply_handler(struct nbd_client *client, uint32_t type, const uint8_t *payload,
                          size_t length_bytes, struct err *err);

static int ask(struct nbd_client *client, uint32_t option, const void *payload, size_t length_bytes,
               reply_handler *each, struct err *refusal, struct err *err) MAY_WAIT
{
    struct nbd_option_reply_header header = {0};
    const uint8_t *answer = NULL;
    int result = send_option(client, option, payload, length_bytes, err);

    for (unsigned i = 0; result == 0 && i < NBD_CLIENT_MAX_REPLIES; i++) {
        result = receive_reply(client, option, &header, &answer, err);
        if (result < 0)
            return result;
        if ((header.type & NBD_REP_ERROR_BIT) != 0) {
            err_set(refusal, header.type == NBD_REP_ERR_UNKNOWN ? -ENOENT : -ECONNREFUSED,
                    "the server refused: %.*s (reply 0x%" PRIx32 ")%s",
                    (int)MIN(header.length_bytes, 200u), (const char *)answer, header.type,
                    header.type == NBD_REP_ERR_TLS_REQD ? "; give the node tls-creds" : "");
            refusal->kind = header.type == NBD_REP_ERR_UNSUP ? ERR_COMMAND_NOT_FOUND : ERR_GENERIC;
            return 0;
        }
        if (header.type == NBD_REP_ACK)
            return header.length_bytes == 0 ? 1 : broken(err, "an ACK has a payload");
        if (each == NULL)
            return broken(err, "an option got a reply that does not belong to it");
        result = each(client, header.type, answer, header.length_bytes, err);
    }
    return result < 0 ? result : broken(err, "an option got replies without end");
}

/* --- the options --- */

static int on_context(struct nbd_client *client, uint32_t type, const uint8_t *payload,
                      size_t length_bytes, struct err *err)
{
    struct nbd_meta_reply reply;

    if (type != NBD_REP_META_CONTEXT || nbd_meta_reply_decode(payload, length_bytes, &reply) < 0)
        return broken(err, "the answer to SET_META_CONTEXT is malformed");
    for (int i = 0; i < CLIENT_CONTEXTS; i++) {
        if (strlen(context_names[i]) == reply.name.length_bytes &&
            memcmp(context_names[i], reply.name.bytes, reply.name.length_bytes) == 0) {
            client->has_context[i] = true;
            client->context_id[i] = reply.id;
        }
    }
    return 0;
}

static int negotiate_contexts(struct nbd_client *client, struct err *err) MAY_WAIT
{
    uint8_t payload[OPTION_SPACE_BYTES];
    struct nbd_text name = {client->export, strlen(client->export)};
    struct nbd_text queries[MAX_QUERIES];
    char instance[NBD_INSTANCE_BYTES];
    size_t count = 0;
    struct err refusal = ERR_INIT;

    while (count < CLIENT_CONTEXTS) {
        queries[count] = (struct nbd_text){context_names[count], strlen(context_names[count])};
        count++;
    }
    if (client->instance != 0) {
        nbd_instance_encode(instance, client->instance);
        queries[count++] = (struct nbd_text){instance, strlen(instance)};
    }
    size_t bytes = nbd_meta_request_bytes(&name, queries, count);
    assert(bytes <= sizeof(payload));
    nbd_meta_request_encode(payload, &name, queries, count);
    /* A server without them may refuse: then everything counts as data. */
    return ask(client, NBD_OPT_SET_META_CONTEXT, payload, bytes, on_context, &refusal, err);
}

static int take_block_size(struct nbd_client *client, const struct nbd_info *info, struct err *err)
{
    if (!is_power_of_two(info->minimum_bytes) || info->minimum_bytes > 65536 ||
        info->maximum_bytes < info->minimum_bytes)
        return broken(err, "its block sizes make no sense");
    client->minimum_bytes = info->minimum_bytes;
    client->maximum_bytes = (uint32_t)align_down(info->maximum_bytes, info->minimum_bytes);
    return 0;
}

static int take_export(struct nbd_client *client, uint64_t length_bytes, uint16_t flags,
                       struct err *err)
{
    if (length_bytes > INT64_MAX)
        return broken(err, "the export's length is out of range");
    client->length_bytes = length_bytes;
    client->flags = (flags & NBD_HAS_FLAGS) != 0 ? flags : 0;
    return 0;
}

static int on_info(struct nbd_client *client, uint32_t type, const uint8_t *payload,
                   size_t length_bytes, struct err *err)
{
    struct nbd_info info;

    if (type != NBD_REP_INFO || nbd_info_decode(payload, length_bytes, &info) < 0)
        return broken(err, "the answer to GO is malformed");
    if (info.type == NBD_INFO_EXPORT) {
        client->info.connected = true; /* until told otherwise: GO without it is refused below */
        return take_export(client, info.size_bytes, info.transmission_flags, err);
    }
    return info.type == NBD_INFO_BLOCK_SIZE ? take_block_size(client, &info, err) : 0;
}

static int negotiate_export_name(struct nbd_client *client, struct err *err) MAY_WAIT
{
    int result = send_option(client, NBD_OPT_EXPORT_NAME, client->export, strlen(client->export),
                             err);

    if (result < 0)
        return result;
    /* We said NO_ZEROES only where the server had; it had, or this is refused in the greeting. */
    result = nbd_client_receive(client, NBD_EXPORT_NAME_REPLY_BYTES);
    if (result < 0)
        return err_set_errno(err, result, "the server does not offer export '%s'", client->export);
    const uint8_t *answer = nbd_client_received(client);
    client->position += NBD_EXPORT_NAME_REPLY_BYTES;
    return take_export(client, be64_get(answer), be16_get(answer + 8), err);
}

static int negotiate_export(struct nbd_client *client, struct err *err) MAY_WAIT
{
    uint8_t payload[OPTION_SPACE_BYTES];
    struct nbd_text name = {client->export, strlen(client->export)};
    const uint16_t infos[] = {NBD_INFO_BLOCK_SIZE};
    struct err refusal = ERR_INIT;
    size_t bytes = nbd_go_bytes(name.length_bytes, ARRAY_LEN(infos));

    assert(bytes <= sizeof(payload));
    nbd_go_encode(payload, &name, infos, ARRAY_LEN(infos));
    client->info.connected = false;
    int result = ask(client, NBD_OPT_GO, payload, bytes, on_info, &refusal, err);
    if (result == 0 && refusal.kind == ERR_COMMAND_NOT_FOUND)
        return negotiate_export_name(client, err);
    if (result == 0) {
        refusal.kind = ERR_GENERIC;
        *err = refusal;
        return err_prefix(err, "export '%s'", client->export);
    }
    if (result > 0 && !client->info.connected)
        return broken(err, "it did not say how large the export is");
    return result < 0 ? result : 0;
}

static int negotiate_greeting(struct nbd_client *client, struct err *err) MAY_WAIT
{
    uint16_t flags;
    uint8_t mine[NBD_CLIENT_FLAGS_BYTES];
    struct iovec iov = {mine, sizeof(mine)};
    int result = nbd_client_receive(client, NBD_GREETING_BYTES);

    if (result < 0)
        return lost(err, result);
    if (nbd_greeting_decode(nbd_client_received(client), &flags) < 0)
        return err_set(err, -EPROTO, "what answers there is no newstyle NBD server");
    client->position += NBD_GREETING_BYTES;
    if ((flags & NBD_FIXED_NEWSTYLE) == 0 || (flags & NBD_NO_ZEROES) == 0)
        return err_set(err, -EPROTO,
                       "the NBD server is too old: it has no fixed newstyle "
                       "negotiation without padding");
    be32_put(mine, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    result = sock_send(client->sock, &iov, 1);
    return result < 0 ? lost(err, result) : 0;
}

static int negotiate_tls(struct nbd_client *client, struct err *err) MAY_WAIT
{
    struct err refusal = ERR_INIT;
    int result = ask(client, NBD_OPT_STARTTLS, NULL, 0, NULL, &refusal, err);

    if (result == 0) {
        *err = refusal;
        err->kind = ERR_GENERIC;
        return err_prefix(err, "TLS");
    }
    if (result < 0)
        return result;
    /* It would have come in the clear, from anybody. */
    if (client->position != client->fill)
        return broken(err, "bytes follow its answer to STARTTLS");
    return sock_start_tls(client->sock, client->creds, client->tls_hostname, err);
}

int nbd_client_handshake(struct nbd_client *client, struct err *err)
{
    struct err refusal = ERR_INIT;
    int result = negotiate_greeting(client, err);

    if (result == 0 && client->creds != NULL)
        result = negotiate_tls(client, err);
    if (result == 0)
        result = ask(client, NBD_OPT_STRUCTURED_REPLY, NULL, 0, NULL, &refusal, err);
    if (result < 0)
        return result;
    client->structured = result > 0;
    if (client->structured)
        result = negotiate_contexts(client, err);
    return result < 0 ? result : negotiate_export(client, err);
}
