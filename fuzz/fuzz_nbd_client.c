/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an NBD server may send: greeting, replies to options, then replies of both kinds with their
 * chunks. The first byte picks where the dialogue begins. */
#include "wire/nbd.h"

#define CHECK(condition)      \
    do {                      \
        if (!(condition))     \
            __builtin_trap(); \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned touched;

static void touch(struct nbd_text text)
{
    for (size_t i = 0; i < text.length_bytes; i++)
        touched += (unsigned char)text.bytes[i];
}

static void option_reply(const uint8_t *bytes, size_t length)
{
    struct nbd_meta_reply meta;
    struct nbd_server_reply server;
    struct nbd_info info;

    if (nbd_meta_reply_decode(bytes, length, &meta) == 0)
        touch(meta.name);
    if (nbd_server_reply_decode(bytes, length, &server) == 0) {
        touch(server.name);
        touch(server.description);
    }
    if (nbd_info_decode(bytes, length, &info) == 0)
        touch(info.text);
}

static void option_replies(struct be_cursor *cursor)
{
    struct nbd_option_reply_header header;
    const uint8_t *bytes;

    while (be_take(cursor, NBD_OPTION_REPLY_BYTES, &bytes)) {
        if (nbd_option_reply_decode(bytes, &header) < 0 ||
            !be_take(cursor, header.length_bytes, &bytes))
            return;
        option_reply(bytes, header.length_bytes);
    }
}

static void chunk(const struct nbd_chunk *head, const uint8_t *bytes)
{
    struct nbd_offset_hole hole;
    struct nbd_error error;
    struct nbd_block_status status;
    struct nbd_descriptor descriptor;
    size_t count = 0;

    if (nbd_chunk_is_error(head->type)) {
        if (nbd_error_decode(head->type, bytes, head->length_bytes, &error) == 0) {
            touch(error.text);
            CHECK(nbd_error_to_errno(error.error) < 0);
        }
        return;
    }
    if (nbd_offset_hole_decode(bytes, head->length_bytes, &hole) == 0)
        CHECK(head->length_bytes == NBD_OFFSET_HOLE_BYTES);
    if (nbd_block_status_decode(bytes, head->length_bytes, &status) == 0) {
        while (nbd_descriptor_take(&status.descriptors, &descriptor))
            count++;
        CHECK(count == status.count && count > 0);
    }
}

static void replies(struct be_cursor *cursor)
{
    struct nbd_reply reply;
    const uint8_t *bytes;

    while (cursor->left >= NBD_CHUNK_BYTES) {
        int head_bytes = nbd_reply_bytes(cursor->at);
        if (head_bytes < 0)
            return;
        CHECK(be_take(cursor, (size_t)head_bytes, &bytes));
        CHECK(nbd_reply_decode(bytes, &reply) == 0);
        if (!reply.structured)
            continue;
        if (!be_take(cursor, reply.chunk.length_bytes, &bytes))
            return;
        chunk(&reply.chunk, bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct be_cursor cursor = {data, size};
    const uint8_t *bytes;
    uint16_t flags;

    if (!be_take(&cursor, 1, &bytes))
        return 0;
    unsigned stage = bytes[0] % 3;
    if (stage == 0 &&
        (!be_take(&cursor, NBD_GREETING_BYTES, &bytes) || nbd_greeting_decode(bytes, &flags) < 0))
        return 0;
    if (stage <= 1)
        option_replies(&cursor);
    else
        replies(&cursor);
    return 0;
}
