/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an NBD client may send: options with their payloads, then requests. Whatever is decoded must
 * lie within the input, and give the same bytes when encoded again. */
#include "wire/nbd.h"

#define CHECK(condition)      \
    do {                      \
        if (!(condition))     \
            __builtin_trap(); \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned touched; /* so that reads of texts are not dropped */

static void touch(struct nbd_text text)
{
    for (size_t i = 0; i < text.length_bytes; i++)
        touched += (unsigned char)text.bytes[i];
}

static void go(const uint8_t *bytes, size_t length)
{
    struct nbd_go go;
    uint16_t infos[64];
    size_t count = 0;

    if (nbd_go_decode(bytes, length, &go) < 0)
        return;
    touch(go.name);
    while (count < ARRAY_LEN(infos) && be16_take(&go.infos, &infos[count]))
        count++;
    if (go.infos.left > 0)
        return;
    uint8_t *again = malloc(length);
    CHECK(again != NULL && nbd_go_bytes(go.name.length_bytes, count) == length);
    nbd_go_encode(again, &go.name, infos, count);
    CHECK(memcmp(again, bytes, length) == 0);
    free(again);
}

static void meta(const uint8_t *bytes, size_t length)
{
    struct nbd_meta_request request;
    struct nbd_text queries[16];
    size_t count = 0;

    if (nbd_meta_request_decode(bytes, length, &request) < 0)
        return;
    touch(request.name);
    while (count < ARRAY_LEN(queries) && nbd_text_take(&request.queries, &queries[count]))
        touch(queries[count++]);
    if (count != request.query_count)
        return;
    uint8_t *again = malloc(length);
    CHECK(again != NULL && nbd_meta_request_bytes(&request.name, queries, count) == length);
    nbd_meta_request_encode(again, &request.name, queries, count);
    CHECK(memcmp(again, bytes, length) == 0);
    free(again);
}

static void requests(struct be_cursor *cursor)
{
    const uint8_t *bytes;
    uint8_t again[NBD_REQUEST_BYTES];
    struct nbd_request request;

    while (be_take(cursor, NBD_REQUEST_BYTES, &bytes)) {
        if (nbd_request_decode(bytes, &request) < 0)
            return;
        nbd_request_encode(again, &request);
        CHECK(memcmp(again, bytes, sizeof(again)) == 0);
        CHECK(nbd_command_name(request.type) != NULL);
        if (request.type == NBD_CMD_WRITE && !be_take(cursor, request.length_bytes, &bytes))
            return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct be_cursor cursor = {data, size};
    struct nbd_option_header header;
    const uint8_t *bytes;

    for (;;) {
        struct be_cursor before = cursor;
        if (!be_take(&cursor, NBD_OPTION_BYTES, &bytes))
            return 0;
        if (nbd_option_decode(bytes, &header) < 0) {
            requests(&before);
            /* Bare payloads too, so that no valid header must be found first. */
            go(data, size);
            meta(data, size);
            return 0;
        }
        if (!be_take(&cursor, header.length_bytes, &bytes))
            return 0;
        if (header.option == NBD_OPT_GO || header.option == NBD_OPT_INFO)
            go(bytes, header.length_bytes);
        else
            meta(bytes, header.length_bytes);
    }
}
