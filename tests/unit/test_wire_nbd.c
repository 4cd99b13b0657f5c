/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NBD messages: what is encoded is decoded back, and nothing malformed is taken. */
#include "unit.h"

#include "wire/nbd.h"

#include <errno.h>

#define TEXT(literal)                  \
    (struct nbd_text)                  \
    {                                  \
        (literal), sizeof(literal) - 1 \
    }

static void assert_text(struct nbd_text text, const char *expected)
{
    assert_int_equal(text.length_bytes, strlen(expected));
    assert_memory_equal(text.bytes, expected, text.length_bytes);
}

static void a_request_is_read_back_as_it_was(void **state)
{
    const struct nbd_request request = {
        .flags = NBD_CMD_FLAG_FUA,
        .type = NBD_CMD_WRITE,
        .cookie = UINT64_C(0x0102030405060708),
        .offset_bytes = UINT64_C(0xfedcba9876543210),
        .length_bytes = 0x89abcdef,
    };
    /* By hand, from the specification: a mistake that both directions make is seen here. */
    const uint8_t expected[NBD_REQUEST_BYTES] = {
        0x25, 0x60, 0x95, 0x13, 0,    1,    0,    1,    1,    2,    3,    4,    5,    6,
        7,    8,    0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10, 0x89, 0xab, 0xcd, 0xef};
    uint8_t bytes[NBD_REQUEST_BYTES];
    struct nbd_request back;

    nbd_request_encode(bytes, &request);
    assert_memory_equal(bytes, expected, sizeof(bytes));
    assert_int_equal(nbd_request_decode(bytes, &back), 0);
    assert_int_equal(back.flags, request.flags);
    assert_int_equal(back.type, request.type);
    assert_true(back.cookie == request.cookie);
    assert_true(back.offset_bytes == request.offset_bytes);
    assert_int_equal(back.length_bytes, request.length_bytes);
    bytes[3] ^= 1;
    assert_int_equal(nbd_request_decode(bytes, &back), -EPROTO);
}

static void greetings_and_option_headers_need_their_magic(void **state)
{
    uint8_t bytes[NBD_OPTION_REPLY_BYTES];
    struct nbd_option_header option = {NBD_OPT_GO, 77};
    struct nbd_option_reply_header reply = {NBD_OPT_GO, NBD_REP_ERR_UNKNOWN, 9};
    uint16_t flags = 0;

    nbd_greeting_encode(bytes, NBD_FIXED_NEWSTYLE);
    assert_memory_equal(bytes, "NBDMAGICIHAVEOPT\0\1", NBD_GREETING_BYTES);
    assert_int_equal(nbd_greeting_decode(bytes, &flags), 0);
    assert_int_equal(flags, NBD_FIXED_NEWSTYLE);
    bytes[15]++;
    assert_int_equal(nbd_greeting_decode(bytes, &flags), -EPROTO);
    nbd_option_encode(bytes, &option);
    option = (struct nbd_option_header){0, 0};
    assert_int_equal(nbd_option_decode(bytes, &option), 0);
    assert_int_equal(option.option, NBD_OPT_GO);
    assert_int_equal(option.length_bytes, 77);
    bytes[0]++;
    assert_int_equal(nbd_option_decode(bytes, &option), -EPROTO);
    nbd_option_reply_encode(bytes, &reply);
    assert_int_equal(be64_get(bytes), UINT64_C(0x3e889045565a9));
    reply.type = 0;
    assert_int_equal(nbd_option_reply_decode(bytes, &reply), 0);
    assert_int_equal(reply.type, NBD_REP_ERR_UNKNOWN);
    assert_int_equal(reply.length_bytes, 9);
    bytes[7]++;
    assert_int_equal(nbd_option_reply_decode(bytes, &reply), -EPROTO);
}

/* Every proper prefix, and one byte more, must be refused. */
static void refuse_other_lengths(int (*decode)(const uint8_t *bytes, size_t length_bytes),
                                 const uint8_t *bytes, size_t length_bytes)
{
    for (size_t length = 0; length <= length_bytes + 1; length++) {
        uint8_t *exact = malloc(length + 1); /* so that a sanitizer sees a step too far */

        assert_non_null(exact);
        memcpy(exact, bytes, MIN(length, length_bytes));
        if (length > length_bytes)
            exact[length_bytes] = 'x';
        uint8_t *end_aligned = malloc(length == 0 ? 1 : length);
        assert_non_null(end_aligned);
        memcpy(end_aligned, exact, length);
        int result = decode(end_aligned, length);
        assert_int_equal(result, length == length_bytes ? 0 : -EPROTO);
        free(end_aligned);
        free(exact);
    }
}

static int decode_go(const uint8_t *bytes, size_t length_bytes)
{
    struct nbd_go go;
    return nbd_go_decode(bytes, length_bytes, &go);
}

static void a_go_of_any_other_length_is_refused(void **state)
{
    const uint16_t infos[] = {NBD_INFO_NAME, NBD_INFO_BLOCK_SIZE};
    struct nbd_text name = TEXT("disk0");
    uint8_t bytes[64];
    size_t length = nbd_go_bytes(name.length_bytes, 2);
    struct nbd_go go;
    uint16_t info;

    nbd_go_encode(bytes, &name, infos, 2);
    assert_int_equal(nbd_go_decode(bytes, length, &go), 0);
    assert_text(go.name, "disk0");
    assert_true(be16_take(&go.infos, &info));
    assert_int_equal(info, NBD_INFO_NAME);
    assert_true(be16_take(&go.infos, &info));
    assert_int_equal(info, NBD_INFO_BLOCK_SIZE);
    assert_false(be16_take(&go.infos, &info));
    refuse_other_lengths(decode_go, bytes, length);
}

static void an_instance_is_told_in_sixteen_digits_or_not_at_all(void **state)
{
    char text[NBD_INSTANCE_BYTES];
    struct nbd_text query = {text, sizeof(text) - 1};
    uint64_t instance = 7;

    (void)state;
    nbd_instance_encode(text, 0xfedcba9876543210);
    assert_string_equal(text, "x-blockstep:instance=fedcba9876543210");
    assert_true(nbd_instance_decode(&query, &instance));
    assert_true(instance == 0xfedcba9876543210);
    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        char was = text[i];
        text[i] = 'Z';
        assert_false(nbd_instance_decode(&query, &instance));
        text[i] = was;
        query.length_bytes = i;
        assert_false(nbd_instance_decode(&query, &instance));
        query.length_bytes = sizeof(text) - 1;
    }
    assert_true(instance == 0xfedcba9876543210);
}

static int decode_meta(const uint8_t *bytes, size_t length_bytes)
{
    struct nbd_meta_request request;
    return nbd_meta_request_decode(bytes, length_bytes, &request);
}

static void a_context_query_of_any_other_length_is_refused(void **state)
{
    struct nbd_text name = TEXT("d"), queries[] = {TEXT("base:allocation"), TEXT("qemu:")};
    uint8_t bytes[128];
    size_t length = nbd_meta_request_bytes(&name, queries, 2);
    struct nbd_meta_request request;
    struct nbd_text query;

    nbd_meta_request_encode(bytes, &name, queries, 2);
    assert_int_equal(nbd_meta_request_decode(bytes, length, &request), 0);
    assert_int_equal(request.query_count, 2);
    assert_true(nbd_text_take(&request.queries, &query));
    assert_text(query, "base:allocation");
    assert_true(nbd_text_take(&request.queries, &query));
    assert_text(query, "qemu:");
    refuse_other_lengths(decode_meta, bytes, length);
    /* A count that no message can hold. */
    be32_put(bytes + 4 + name.length_bytes, UINT32_MAX);
    assert_int_equal(nbd_meta_request_decode(bytes, length, &request), -EPROTO);
}

static void a_text_with_a_zero_or_too_long_is_refused(void **state)
{
    static uint8_t bytes[4 + NBD_MAX_STRING_BYTES + 1];
    struct be_cursor cursor = {bytes, sizeof(bytes)};
    struct nbd_text text;

    memset(bytes, 'a', sizeof(bytes));
    be32_put(bytes, NBD_MAX_STRING_BYTES + 1);
    assert_false(nbd_text_take(&cursor, &text));
    be32_put(bytes, NBD_MAX_STRING_BYTES);
    assert_true(nbd_text_take(&cursor, &text));
    assert_int_equal(text.length_bytes, NBD_MAX_STRING_BYTES);
    cursor = (struct be_cursor){bytes, sizeof(bytes)};
    bytes[100] = 0;
    assert_false(nbd_text_take(&cursor, &text));
    be32_put(bytes, UINT32_MAX);
    assert_false(nbd_text_take(&cursor, &text));
    assert_int_equal(cursor.left, sizeof(bytes));
}

static int decode_info(const uint8_t *bytes, size_t length_bytes)
{
    struct nbd_info info;
    return nbd_info_decode(bytes, length_bytes, &info);
}

static void infos_are_read_back_and_of_one_length(void **state)
{
    uint8_t bytes[NBD_INFO_BLOCK_SIZE_BYTES];
    struct nbd_info info;

    nbd_info_export_encode(bytes, UINT64_C(1) << 44, NBD_HAS_FLAGS | NBD_SEND_FUA);
    assert_int_equal(nbd_info_decode(bytes, NBD_INFO_EXPORT_BYTES, &info), 0);
    assert_true(info.size_bytes == UINT64_C(1) << 44);
    assert_int_equal(info.transmission_flags, NBD_HAS_FLAGS | NBD_SEND_FUA);
    refuse_other_lengths(decode_info, bytes, NBD_INFO_EXPORT_BYTES);
    nbd_info_block_size_encode(bytes, 1, 4096, NBD_MAX_REQUEST_BYTES);
    assert_int_equal(nbd_info_decode(bytes, sizeof(bytes), &info), 0);
    assert_int_equal(info.minimum_bytes, 1);
    assert_int_equal(info.preferred_bytes, 4096);
    assert_int_equal(info.maximum_bytes, NBD_MAX_REQUEST_BYTES);
    refuse_other_lengths(decode_info, bytes, sizeof(bytes));
}

static void replies_are_told_apart_by_their_magic(void **state)
{
    uint8_t bytes[NBD_CHUNK_BYTES];
    struct nbd_simple_reply simple = {nbd_error_from_errno(-EIO), 42};
    struct nbd_chunk chunk = {NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, 43, 4096 + 8};
    struct nbd_reply reply;

    nbd_simple_reply_encode(bytes, &simple);
    assert_int_equal(nbd_reply_bytes(bytes), NBD_SIMPLE_REPLY_BYTES);
    assert_int_equal(nbd_reply_decode(bytes, &reply), 0);
    assert_false(reply.structured);
    assert_int_equal(nbd_error_to_errno(reply.simple.error), -EIO);
    assert_int_equal(reply.simple.cookie, 42);
    nbd_chunk_encode(bytes, &chunk);
    assert_int_equal(nbd_reply_bytes(bytes), NBD_CHUNK_BYTES);
    assert_int_equal(nbd_reply_decode(bytes, &reply), 0);
    assert_true(reply.structured);
    assert_int_equal(reply.chunk.type, NBD_CHUNK_OFFSET_DATA);
    assert_int_equal(reply.chunk.cookie, 43);
    assert_int_equal(reply.chunk.length_bytes, 4096 + 8);
    bytes[0]++;
    assert_int_equal(nbd_reply_bytes(bytes), -EPROTO);
    assert_int_equal(nbd_reply_decode(bytes, &reply), -EPROTO);
}

static int decode_hole(const uint8_t *bytes, size_t length_bytes)
{
    struct nbd_offset_hole hole;
    return nbd_offset_hole_decode(bytes, length_bytes, &hole);
}

static int decode_error_offset(const uint8_t *bytes, size_t length_bytes)
{
    struct nbd_error error;
    return nbd_error_decode(NBD_CHUNK_ERROR_OFFSET, bytes, length_bytes, &error);
}

static void chunk_payloads_of_any_other_length_are_refused(void **state)
{
    uint8_t bytes[32] = {0};
    struct nbd_offset_hole hole = {UINT64_C(1) << 40, 65536};
    struct nbd_error error;

    nbd_offset_hole_encode(bytes, &hole);
    refuse_other_lengths(decode_hole, bytes, NBD_OFFSET_HOLE_BYTES);
    nbd_error_encode(bytes, nbd_error_from_errno(-ENOSPC));
    assert_int_equal(nbd_error_decode(NBD_CHUNK_ERROR, bytes, NBD_ERROR_BYTES, &error), 0);
    assert_int_equal(nbd_error_to_errno(error.error), -ENOSPC);
    /* With a text of three bytes and an offset. */
    be16_put(bytes + 4, 3);
    memcpy(bytes + 6, "why", 3);
    be64_put(bytes + 9, 512);
    refuse_other_lengths(decode_error_offset, bytes, 17);
    /* An error that is none. */
    be32_put(bytes, 0);
    assert_int_equal(nbd_error_decode(NBD_CHUNK_ERROR_OFFSET, bytes, 17, &error), -EPROTO);
}

static void a_block_status_has_whole_descriptors(void **state)
{
    uint8_t bytes[NBD_BLOCK_STATUS_BYTES + 2 * NBD_DESCRIPTOR_BYTES];
    struct nbd_descriptor descriptors[] = {{4096, NBD_STATE_HOLE | NBD_STATE_ZERO}, {512, 0}};
    struct nbd_block_status status;
    struct nbd_descriptor back;

    be32_put(bytes, 7);
    nbd_descriptor_encode(bytes + 4, &descriptors[0]);
    nbd_descriptor_encode(bytes + 12, &descriptors[1]);
    for (size_t length = 0; length < sizeof(bytes); length++)
        assert_int_equal(nbd_block_status_decode(bytes, length, &status),
                         length == 12 ? 0 : -EPROTO);
    assert_int_equal(nbd_block_status_decode(bytes, sizeof(bytes), &status), 0);
    assert_int_equal(status.context_id, 7);
    assert_int_equal(status.count, 2);
    assert_true(nbd_descriptor_take(&status.descriptors, &back));
    assert_int_equal(back.length_bytes, 4096);
    assert_int_equal(back.status, 3);
    assert_true(nbd_descriptor_take(&status.descriptors, &back));
    assert_int_equal(back.length_bytes, 512);
    assert_false(nbd_descriptor_take(&status.descriptors, &back));
}

static void errors_keep_their_meaning_across_the_wire(void **state)
{
    const int same[] = {EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN};

    assert_int_equal(nbd_error_from_errno(0), 0);
    assert_int_equal(nbd_error_to_errno(0), 0);
    for (size_t i = 0; i < ARRAY_LEN(same); i++)
        assert_int_equal(nbd_error_to_errno(nbd_error_from_errno(-same[i])), -same[i]);
    assert_int_equal(nbd_error_to_errno(nbd_error_from_errno(-EROFS)), -EPERM);
    assert_int_equal(nbd_error_to_errno(nbd_error_from_errno(-EDQUOT)), -ENOSPC);
    assert_int_equal(nbd_error_to_errno(nbd_error_from_errno(-ETIMEDOUT)), -EIO);
    assert_int_equal(nbd_error_to_errno(nbd_error_from_errno(-ENOTTY)), -EINVAL);
    assert_int_equal(nbd_error_to_errno(0xffffffff), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_read_back_as_it_was),
        cmocka_unit_test(greetings_and_option_headers_need_their_magic),
        cmocka_unit_test(a_go_of_any_other_length_is_refused),
        cmocka_unit_test(an_instance_is_told_in_sixteen_digits_or_not_at_all),
        cmocka_unit_test(a_context_query_of_any_other_length_is_refused),
        cmocka_unit_test(a_text_with_a_zero_or_too_long_is_refused),
        cmocka_unit_test(infos_are_read_back_and_of_one_length),
        cmocka_unit_test(replies_are_told_apart_by_their_magic),
        cmocka_unit_test(chunk_payloads_of_any_other_length_are_refused),
        cmocka_unit_test(a_block_status_has_whole_descriptors),
        cmocka_unit_test(errors_keep_their_meaning_across_the_wire),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
