/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/nbd.h"

#include "base/text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- negotiation --- */

void nbd_greeting_encode(uint8_t *out, uint16_t handshake_flags)
{
    be64_put(out, NBD_INIT_MAGIC);
    be64_put(out + 8, NBD_OPTION_MAGIC);
    be16_put(out + 16, handshake_flags);
}

int nbd_greeting_decode(const uint8_t *bytes, uint16_t *ret_handshake_flags)
{
    if (be64_get(bytes) != NBD_INIT_MAGIC || be64_get(bytes + 8) != NBD_OPTION_MAGIC)
        return -EPROTO;
    *ret_handshake_flags = be16_get(bytes + 16);
    return 0;
}

void nbd_option_encode(uint8_t *out, const struct nbd_option_header *header)
{
    be64_put(out, NBD_OPTION_MAGIC);
    be32_put(out + 8, header->option);
    be32_put(out + 12, header->length_bytes);
}

int nbd_option_decode(const uint8_t *bytes, struct nbd_option_header *ret_header)
{
    if (be64_get(bytes) != NBD_OPTION_MAGIC)
        return -EPROTO;
    ret_header->option = be32_get(bytes + 8);
    ret_header->length_bytes = be32_get(bytes + 12);
    return 0;
}

void nbd_option_reply_encode(uint8_t *out, const struct nbd_option_reply_header *header)
{
    be64_put(out, NBD_OPT_REPLY_MAGIC);
    be32_put(out + 8, header->option);
    be32_put(out + 12, header->type);
    be32_put(out + 16, header->length_bytes);
}

int nbd_option_reply_decode(const uint8_t *bytes, struct nbd_option_reply_header *ret_header)
{
    if (be64_get(bytes) != NBD_OPT_REPLY_MAGIC)
        return -EPROTO;
    ret_header->option = be32_get(bytes + 8);
    ret_header->type = be32_get(bytes + 12);
    ret_header->length_bytes = be32_get(bytes + 16);
    return 0;
}

static bool text_is_fit(const uint8_t *bytes, size_t length_bytes)
{
    return length_bytes <= NBD_MAX_STRING_BYTES &&
           (length_bytes == 0 || memchr(bytes, 0, length_bytes) == NULL);
}

bool nbd_text_take(struct be_cursor *cursor, struct nbd_text *ret_text)
{
    struct be_cursor ahead = *cursor;
    const uint8_t *bytes;
    uint32_t length_bytes;

    if (!be32_take(&ahead, &length_bytes) || !be_take(&ahead, length_bytes, &bytes) ||
        !text_is_fit(bytes, length_bytes))
        return false;
    *ret_text = (struct nbd_text){(const char *)bytes, length_bytes};
    *cursor = ahead;
    return true;
}

/* All that is left, as a text. */
static bool text_take_rest(struct be_cursor *cursor, struct nbd_text *ret_text)
{
    if (!text_is_fit(cursor->at, cursor->left))
        return false;
    *ret_text = (struct nbd_text){(const char *)cursor->at, cursor->left};
    cursor->at += cursor->left;
    cursor->left = 0;
    return true;
}

static uint8_t *text_put(uint8_t *out, const struct nbd_text *text)
{
    be32_put(out, (uint32_t)text->length_bytes);
    if (text->length_bytes > 0)
        memcpy(out + 4, text->bytes, text->length_bytes);
    return out + 4 + text->length_bytes;
}

int nbd_go_decode(const uint8_t *bytes, size_t length_bytes, struct nbd_go *ret_go)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_go go;
    uint16_t count;

    if (!nbd_text_take(&cursor, &go.name) || !be16_take(&cursor, &count) ||
        cursor.left != (size_t)count * 2)
        return -EPROTO;
    go.infos = cursor;
    *ret_go = go;
    return 0;
}

size_t nbd_go_bytes(size_t name_bytes, size_t info_count)
{
    return 4 + name_bytes + 2 + 2 * info_count;
}

void nbd_go_encode(uint8_t *out, const struct nbd_text *name, const uint16_t *infos,
                   size_t info_count)
{
    out = text_put(out, name);
    be16_put(out, (uint16_t)info_count);
    for (size_t i = 0; i < info_count; i++)
        be16_put(out + 2 + 2 * i, infos[i]);
}

int nbd_meta_request_decode(const uint8_t *bytes, size_t length_bytes,
                            struct nbd_meta_request *ret_request)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_meta_request request;
    struct nbd_text query;

    if (!nbd_text_take(&cursor, &request.name) || !be32_take(&cursor, &request.query_count))
        return -EPROTO;
    request.queries = cursor;
    for (uint32_t i = 0; i < request.query_count; i++)
        if (!nbd_text_take(&cursor, &query))
            return -EPROTO;
    if (cursor.left != 0)
        return -EPROTO;
    *ret_request = request;
    return 0;
}

size_t nbd_meta_request_bytes(const struct nbd_text *name, const struct nbd_text *queries,
                              size_t query_count)
{
    size_t bytes = 4 + name->length_bytes + 4;

    for (size_t i = 0; i < query_count; i++)
        bytes += 4 + queries[i].length_bytes;
    return bytes;
}

void nbd_meta_request_encode(uint8_t *out, const struct nbd_text *name,
                             const struct nbd_text *queries, size_t query_count)
{
    out = text_put(out, name);
    be32_put(out, (uint32_t)query_count);
    out += 4;
    for (size_t i = 0; i < query_count; i++)
        out = text_put(out, &queries[i]);
}

void nbd_instance_encode(char text[NBD_INSTANCE_BYTES], uint64_t instance)
{
    snprintf(text, NBD_INSTANCE_BYTES, NBD_INSTANCE_PREFIX "%016" PRIx64, instance);
}

bool nbd_instance_decode(const struct nbd_text *query, uint64_t *ret_instance)
{
    size_t prefix = strlen(NBD_INSTANCE_PREFIX);

    return query->length_bytes == NBD_INSTANCE_BYTES - 1 &&
           memcmp(query->bytes, NBD_INSTANCE_PREFIX, prefix) == 0 &&
           text_hex64_parse(query->bytes + prefix, query->length_bytes - prefix, ret_instance);
}

int nbd_meta_reply_decode(const uint8_t *bytes, size_t length_bytes,
                          struct nbd_meta_reply *ret_reply)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_meta_reply reply;

    if (!be32_take(&cursor, &reply.id) || !text_take_rest(&cursor, &reply.name))
        return -EPROTO;
    *ret_reply = reply;
    return 0;
}

int nbd_server_reply_decode(const uint8_t *bytes, size_t length_bytes,
                            struct nbd_server_reply *ret_reply)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_server_reply reply;

    if (!nbd_text_take(&cursor, &reply.name) || !text_take_rest(&cursor, &reply.description))
        return -EPROTO;
    *ret_reply = reply;
    return 0;
}

void nbd_info_export_encode(uint8_t *out, uint64_t size_bytes, uint16_t transmission_flags)
{
    be16_put(out, NBD_INFO_EXPORT);
    be64_put(out + 2, size_bytes);
    be16_put(out + 10, transmission_flags);
}

void nbd_info_block_size_encode(uint8_t *out, uint32_t minimum_bytes, uint32_t preferred_bytes,
                                uint32_t maximum_bytes)
{
    be16_put(out, NBD_INFO_BLOCK_SIZE);
    be32_put(out + 2, minimum_bytes);
    be32_put(out + 6, preferred_bytes);
    be32_put(out + 10, maximum_bytes);
}

static bool info_body_take(struct be_cursor *cursor, struct nbd_info *info)
{
    switch (info->type) {
    case NBD_INFO_EXPORT:
        return be64_take(cursor, &info->size_bytes) && be16_take(cursor, &info->transmission_flags);
    case NBD_INFO_BLOCK_SIZE:
        return be32_take(cursor, &info->minimum_bytes) &&
               be32_take(cursor, &info->preferred_bytes) && be32_take(cursor, &info->maximum_bytes);
    case NBD_INFO_NAME:
    case NBD_INFO_DESCRIPTION:
        return text_take_rest(cursor, &info->text);
    default:
        info->text = (struct nbd_text){(const char *)cursor->at, cursor->left};
        cursor->left = 0;
        return true;
    }
}

int nbd_info_decode(const uint8_t *bytes, size_t length_bytes, struct nbd_info *ret_info)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_info info = {0};

    if (!be16_take(&cursor, &info.type) || !info_body_take(&cursor, &info) || cursor.left != 0)
        return -EPROTO;
    *ret_info = info;
    return 0;
}

void nbd_export_name_reply_encode(uint8_t *out, uint64_t size_bytes, uint16_t transmission_flags)
{
    be64_put(out, size_bytes);
    be16_put(out + 8, transmission_flags);
}

/* --- transmission --- */

void nbd_request_encode(uint8_t *out, const struct nbd_request *request)
{
    be32_put(out, NBD_REQUEST_MAGIC);
    be16_put(out + 4, request->flags);
    be16_put(out + 6, request->type);
    be64_put(out + 8, request->cookie);
    be64_put(out + 16, request->offset_bytes);
    be32_put(out + 24, request->length_bytes);
}

int nbd_request_decode(const uint8_t *bytes, struct nbd_request *ret_request)
{
    if (be32_get(bytes) != NBD_REQUEST_MAGIC)
        return -EPROTO;
    ret_request->flags = be16_get(bytes + 4);
    ret_request->type = be16_get(bytes + 6);
    ret_request->cookie = be64_get(bytes + 8);
    ret_request->offset_bytes = be64_get(bytes + 16);
    ret_request->length_bytes = be32_get(bytes + 24);
    return 0;
}

const char *nbd_command_name(uint16_t type)
{
    static const char *const names[] = {
        [NBD_CMD_READ] = "read",
        [NBD_CMD_WRITE] = "write",
        [NBD_CMD_DISC] = "disconnect",
        [NBD_CMD_FLUSH] = "flush",
        [NBD_CMD_TRIM] = "trim",
        [NBD_CMD_CACHE] = "cache",
        [NBD_CMD_WRITE_ZEROES] = "write-zeroes",
        [NBD_CMD_BLOCK_STATUS] = "block-status",
    };

    return type < ARRAY_LEN(names) ? names[type] : "unknown";
}

void nbd_simple_reply_encode(uint8_t *out, const struct nbd_simple_reply *reply)
{
    be32_put(out, NBD_SIMPLE_MAGIC);
    be32_put(out + 4, reply->error);
    be64_put(out + 8, reply->cookie);
}

void nbd_chunk_encode(uint8_t *out, const struct nbd_chunk *chunk)
{
    be32_put(out, NBD_STRUCTURED_MAGIC);
    be16_put(out + 4, chunk->flags);
    be16_put(out + 6, chunk->type);
    be64_put(out + 8, chunk->cookie);
    be32_put(out + 16, chunk->length_bytes);
}

int nbd_reply_bytes(const uint8_t *bytes)
{
    switch (be32_get(bytes)) {
    case NBD_SIMPLE_MAGIC:
        return NBD_SIMPLE_REPLY_BYTES;
    case NBD_STRUCTURED_MAGIC:
        return NBD_CHUNK_BYTES;
    default:
        return -EPROTO;
    }
}

int nbd_reply_decode(const uint8_t *bytes, struct nbd_reply *ret_reply)
{
    struct nbd_reply reply = {0};

    switch (be32_get(bytes)) {
    case NBD_SIMPLE_MAGIC:
        reply.simple.error = be32_get(bytes + 4);
        reply.simple.cookie = be64_get(bytes + 8);
        break;
    case NBD_STRUCTURED_MAGIC:
        reply.structured = true;
        reply.chunk.flags = be16_get(bytes + 4);
        reply.chunk.type = be16_get(bytes + 6);
        reply.chunk.cookie = be64_get(bytes + 8);
        reply.chunk.length_bytes = be32_get(bytes + 16);
        break;
    default:
        return -EPROTO;
    }
    *ret_reply = reply;
    return 0;
}

void nbd_offset_hole_encode(uint8_t *out, const struct nbd_offset_hole *hole)
{
    be64_put(out, hole->offset_bytes);
    be32_put(out + 8, hole->length_bytes);
}

int nbd_offset_hole_decode(const uint8_t *bytes, size_t length_bytes,
                           struct nbd_offset_hole *ret_hole)
{
    if (length_bytes != NBD_OFFSET_HOLE_BYTES)
        return -EPROTO;
    ret_hole->offset_bytes = be64_get(bytes);
    ret_hole->length_bytes = be32_get(bytes + 8);
    return 0;
}

void nbd_error_encode(uint8_t *out, uint32_t error)
{
    be32_put(out, error);
    be16_put(out + 4, 0);
}

int nbd_error_decode(uint16_t chunk_type, const uint8_t *bytes, size_t length_bytes,
                     struct nbd_error *ret_error)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_error error = {0};
    const uint8_t *text;
    uint16_t text_bytes;

    if (!be32_take(&cursor, &error.error) || !be16_take(&cursor, &text_bytes) ||
        !be_take(&cursor, text_bytes, &text) || text_bytes > NBD_MAX_STRING_BYTES)
        return -EPROTO;
    error.text = (struct nbd_text){(const char *)text, text_bytes};
    if (chunk_type == NBD_CHUNK_ERROR_OFFSET && !be64_take(&cursor, &error.offset_bytes))
        return -EPROTO;
    /* An error chunk of a kind not known yet may carry more. An error of 0 is none. */
    if (error.error == 0)
        return -EPROTO;
    if (cursor.left != 0 && (chunk_type == NBD_CHUNK_ERROR || chunk_type == NBD_CHUNK_ERROR_OFFSET))
        return -EPROTO;
    *ret_error = error;
    return 0;
}

void nbd_descriptor_encode(uint8_t *out, const struct nbd_descriptor *descriptor)
{
    be32_put(out, descriptor->length_bytes);
    be32_put(out + 4, descriptor->status);
}

bool nbd_descriptor_take(struct be_cursor *cursor, struct nbd_descriptor *ret_descriptor)
{
    const uint8_t *bytes;

    if (!be_take(cursor, NBD_DESCRIPTOR_BYTES, &bytes))
        return false;
    ret_descriptor->length_bytes = be32_get(bytes);
    ret_descriptor->status = be32_get(bytes + 4);
    return true;
}

int nbd_block_status_decode(const uint8_t *bytes, size_t length_bytes,
                            struct nbd_block_status *ret_status)
{
    struct be_cursor cursor = {bytes, length_bytes};
    struct nbd_block_status status;

    if (!be32_take(&cursor, &status.context_id) || cursor.left == 0 ||
        cursor.left % NBD_DESCRIPTOR_BYTES != 0)
        return -EPROTO;
    status.count = cursor.left / NBD_DESCRIPTOR_BYTES;
    status.descriptors = cursor;
    *ret_status = status;
    return 0;
}

/* --- errors --- */

/* The numbers are Linux's own on x86, but a contract here: other systems number differently. */
static const struct {
    uint32_t wire;
    int code;
} error_table[] = {
    {1, EPERM},   {5, EIO},        {12, ENOMEM},  {22, EINVAL},
    {28, ENOSPC}, {75, EOVERFLOW}, {95, ENOTSUP}, {108, ESHUTDOWN},
};

uint32_t nbd_error_from_errno(int code)
{
    if (code == 0)
        return 0;
    switch (-code) {
    case EROFS:
        return 1; /* EPERM */
    case EDQUOT:
    case EFBIG:
        return 28; /* ENOSPC */
    case ETIMEDOUT:
    case EPIPE:
    case ECONNRESET:
    case ECONNABORTED:
    case EPROTO:
        return 5; /* what a disk says when its link is gone: EIO */
    default:
        break;
    }
    for (size_t i = 0; i < ARRAY_LEN(error_table); i++)
        if (error_table[i].code == -code)
            return error_table[i].wire;
    return 22;
}

int nbd_error_to_errno(uint32_t error)
{
    for (size_t i = 0; i < ARRAY_LEN(error_table); i++)
        if (error_table[i].wire == error)
            return -error_table[i].code;
    return error == 0 ? 0 : -EINVAL;
}
