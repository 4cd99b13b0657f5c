/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "death.h"
#include "unit.h"

#include "base/buf.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define MIB ((size_t)1 << 20)

static int set_up(void **state)
{
    *state = buf_pool_new();
    return *state == NULL;
}

static int tear_down(void **state)
{
    buf_pool_free(*state);
    return 0;
}

/* Checkers of memory switch the cache off, and with it what some tests promise. */
static bool pool_caches(struct buf_pool *pool)
{
    struct buf *buf = buf_alloc(pool, 1);

    buf_unref(buf);
    return buf_pool_stats(pool).cached_bytes > 0;
}

static void a_buffer_is_aligned_and_of_the_next_power_of_two(void **state)
{
    static const struct {
        size_t length_bytes, capacity_bytes;
    } cases[] = {
        {1, 4096},       {4096, 4096},       {4097, 8192},         {65536, 65536},
        {65537, 131072}, {1 * MIB, 1 * MIB}, {33 * MIB, 64 * MIB}, {BUF_MAX_BYTES, 64 * MIB},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct buf *buf = buf_alloc(*state, cases[i].length_bytes);

        assert_non_null(buf);
        assert_int_equal(buf->capacity_bytes, cases[i].capacity_bytes);
        assert_int_equal((uintptr_t)buf->bytes % BUF_ALIGNMENT, 0);
        buf->bytes[0] = 1;
        buf->bytes[buf->capacity_bytes - 1] = 1;
        buf_unref(buf);
    }
}

static void a_buffer_lives_until_its_last_reference(void **state)
{
    struct buf_pool *pool = *state;
    struct buf *buf = buf_alloc(pool, 5000);

    assert_ptr_equal(buf_ref(buf), buf);
    assert_int_equal(buf_pool_stats(pool).in_use_bytes, 8192);
    buf_unref(buf);
    assert_int_equal(buf_pool_stats(pool).in_use_buffers, 1);
    buf->bytes[0] = 1;
    buf_unref(buf);
    assert_int_equal(buf_pool_stats(pool).in_use_buffers, 0);
    assert_int_equal(buf_pool_stats(pool).in_use_bytes, 0);
    assert_int_equal(buf_pool_stats(pool).peak_bytes, 8192);
    buf_unref(NULL);
}

static void a_cleanup_variable_gives_its_reference_back(void **state)
{
    struct buf_pool *pool = *state;

    {
        CLEANUP(buf_unrefp) struct buf *buf = buf_alloc(pool, 1);
        CLEANUP(buf_unrefp) struct buf *taken = buf_alloc(pool, 1);
        struct buf *mine = TAKE_PTR(taken);

        assert_null(taken);
        assert_int_equal(buf_pool_stats(pool).in_use_buffers, 2);
        buf_unref(mine);
        assert_non_null(buf);
    }
    assert_int_equal(buf_pool_stats(pool).in_use_buffers, 0);
}

static void a_freed_buffer_is_used_again(void **state)
{
    struct buf_pool *pool = *state;
    struct buf *first, *second;

    if (!pool_caches(pool))
        skip();
    first = buf_alloc(pool, 65536);
    buf_unref(first);
    second = buf_alloc(pool, 40000);
    assert_ptr_equal(first, second);
    buf_unref(second);
}

static void the_cache_stays_within_its_limit(void **state)
{
    struct buf_pool *pool = *state;
    struct buf *bufs[40];

    for (size_t i = 0; i < ARRAY_LEN(bufs); i++)
        bufs[i] = buf_alloc(pool, i % 2 == 0 ? MIB : 2 * MIB);
    assert_int_equal(buf_pool_stats(pool).in_use_bytes, 60 * MIB);
    for (size_t i = 0; i < ARRAY_LEN(bufs); i++) {
        buf_unref(bufs[i]);
        assert_true(buf_pool_stats(pool).cached_bytes <= BUF_CACHE_BYTES);
    }
    buf_unref(buf_alloc(pool, BUF_MAX_BYTES));
    assert_true(buf_pool_stats(pool).cached_bytes <= BUF_CACHE_BYTES);
}

static void the_cache_follows_the_load_to_another_size(void **state)
{
    struct buf_pool *pool = *state;
    struct buf *small[BUF_CACHE_BYTES / 4096];
    struct buf *big;

    if (!pool_caches(pool))
        skip();
    for (size_t i = 0; i < ARRAY_LEN(small); i++)
        small[i] = buf_alloc(pool, 4096);
    for (size_t i = 0; i < ARRAY_LEN(small); i++)
        buf_unref(small[i]);
    assert_int_equal(buf_pool_stats(pool).cached_bytes, BUF_CACHE_BYTES);
    big = buf_alloc(pool, MIB);
    buf_unref(big);
    assert_int_equal(buf_pool_stats(pool).cached_bytes, BUF_CACHE_BYTES);
    assert_ptr_equal(buf_alloc(pool, MIB), big);
    assert_int_equal(buf_pool_stats(pool).cached_bytes, BUF_CACHE_BYTES - MIB);
    buf_unref(big);
}

static void random_use_keeps_contents_and_counts(void **state)
{
    struct buf_pool *pool = *state;
    struct buf *bufs[64] = {NULL};
    unsigned seed = (unsigned)time(NULL);
    size_t in_use_bytes = 0;

    print_message("seed %u\n", seed);
    for (int round = 0; round < 20000; round++) {
        size_t i = (size_t)rand_r(&seed) % ARRAY_LEN(bufs);
        size_t length_bytes = (size_t)1 + ((size_t)rand_r(&seed) >> (9 + rand_r(&seed) % 22));

        if (bufs[i] != NULL) {
            uint8_t tag = (uint8_t)(bufs[i]->capacity_bytes >> 12) ^ (uint8_t)i;

            assert_int_equal(bufs[i]->bytes[0], tag);
            assert_int_equal(bufs[i]->bytes[bufs[i]->capacity_bytes - 1], tag);
            in_use_bytes -= bufs[i]->capacity_bytes;
            buf_unref(TAKE_PTR(bufs[i]));
        } else {
            bufs[i] = buf_alloc(pool, length_bytes);
            assert_non_null(bufs[i]);
            assert_true(bufs[i]->capacity_bytes >= length_bytes);
            in_use_bytes += bufs[i]->capacity_bytes;
            bufs[i]->bytes[0] = (uint8_t)(bufs[i]->capacity_bytes >> 12) ^ (uint8_t)i;
            bufs[i]->bytes[bufs[i]->capacity_bytes - 1] = bufs[i]->bytes[0];
        }
        assert_int_equal(buf_pool_stats(pool).in_use_bytes, in_use_bytes);
        assert_true(buf_pool_stats(pool).cached_bytes <= BUF_CACHE_BYTES);
    }
    for (size_t i = 0; i < ARRAY_LEN(bufs); i++)
        buf_unref(bufs[i]);
}

static void a_slice_is_a_stretch_of_its_buffer(void **state)
{
    CLEANUP(buf_unrefp) struct buf *buf = buf_alloc(*state, 8192);
    struct buf_slice slice = buf_slice_of(buf, 4096, 4096);
    struct buf_slice part = buf_slice_sub(slice, 512, 1024);

    assert_ptr_equal(part.buf, buf);
    assert_ptr_equal(part.bytes, buf->bytes + 4608);
    assert_int_equal(part.length_bytes, 1024);
}

static void zeroes_are_told_from_a_single_set_byte_anywhere(void **state)
{
    uint8_t bytes[300];

    for (size_t length = 0; length < sizeof(bytes); length++) {
        memset(bytes, 0xFF, sizeof(bytes));
        memset(bytes, 0, length);
        assert_true(bytes_are_zero(bytes, length));
        for (size_t i = 0; i < length; i++) {
            bytes[i] = 1;
            assert_false(bytes_are_zero(bytes, length));
            bytes[i] = 0;
        }
    }
}

static void use_after_free(void *arg)
{
    struct buf *buf = buf_alloc(arg, 4096);
    volatile uint8_t *bytes = buf->bytes;

    buf_unref(buf);
    bytes[100] = 1;
}

static void address_sanitizer_sees_a_use_after_free(void **state)
{
#if !BUILT_WITH_ASAN
    skip();
#endif
    assert_true(dies(use_after_free, *state));
}

static void unref_twice(void *arg)
{
    struct buf *buf = buf_alloc(arg, 4096);

    buf_unref(buf);
    buf_unref(buf);
}

static void giving_a_buffer_back_twice_is_caught(void **state)
{
    assert_true(dies(unref_twice, *state));
}

static void leak_from_pool(void *arg)
{
    struct buf_pool *pool = buf_pool_new();

    if (buf_alloc(pool, 4096) != NULL)
        buf_pool_free(pool);
}

static void a_buffer_that_was_not_given_back_is_caught(void **state)
{
    assert_true(dies(leak_from_pool, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_buffer_is_aligned_and_of_the_next_power_of_two, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_buffer_lives_until_its_last_reference, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_cleanup_variable_gives_its_reference_back, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_freed_buffer_is_used_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_cache_stays_within_its_limit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_cache_follows_the_load_to_another_size, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(random_use_keeps_contents_and_counts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_slice_is_a_stretch_of_its_buffer, set_up, tear_down),
        cmocka_unit_test_setup_teardown(address_sanitizer_sees_a_use_after_free, set_up, tear_down),
        cmocka_unit_test_setup_teardown(giving_a_buffer_back_twice_is_caught, set_up, tear_down),
        cmocka_unit_test(a_buffer_that_was_not_given_back_is_caught),
        cmocka_unit_test(zeroes_are_told_from_a_single_set_byte_anywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
