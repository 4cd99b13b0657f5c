/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit.h"

#include "base/bitmap.h"

#include <string.h>
#include <time.h>

static void a_new_bitmap_is_clear(void **state)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 32767, 32768, 32769, 100000};

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct bitmap *bitmap = bitmap_new(sizes[i]);

        assert_int_equal(bitmap_bits(bitmap), sizes[i]);
        assert_int_equal(bitmap_count(bitmap), 0);
        assert_int_equal(bitmap_next_set(bitmap, 0), BITMAP_NONE);
        assert_int_equal(bitmap_next_clear(bitmap, 0), 0);
        assert_false(bitmap_test(bitmap, sizes[i] - 1));
        bitmap_free(bitmap);
    }
    bitmap_free(NULL);
}

static void an_empty_bitmap_holds_nothing(void **state)
{
    struct bitmap *bitmap = bitmap_new(0);

    assert_int_equal(bitmap_next_set(bitmap, 0), BITMAP_NONE);
    assert_int_equal(bitmap_next_clear(bitmap, 0), BITMAP_NONE);
    bitmap_set_range(bitmap, 0, 0);
    bitmap_clear_all(bitmap);
    assert_int_equal(bitmap_count(bitmap), 0);
    bitmap_free(bitmap);
}

static void setting_and_clearing_tell_what_was_before(void **state)
{
    struct bitmap *bitmap = bitmap_new(100);

    assert_false(bitmap_set(bitmap, 99));
    assert_true(bitmap_set(bitmap, 99));
    assert_int_equal(bitmap_count(bitmap), 1);
    assert_true(bitmap_clear(bitmap, 99));
    assert_false(bitmap_clear(bitmap, 99));
    assert_int_equal(bitmap_count(bitmap), 0);
    bitmap_free(bitmap);
}

static void a_run_ends_where_the_bits_change_or_at_the_limit(void **state)
{
    struct bitmap *bitmap = bitmap_new(100000);

    assert_int_equal(bitmap_run_end(bitmap, 0, UINT64_MAX), 100000);
    assert_int_equal(bitmap_run_end(bitmap, 7, 70000), 70000);
    bitmap_set_range(bitmap, 40000, 50000);
    assert_int_equal(bitmap_run_end(bitmap, 0, 100000), 40000);
    assert_int_equal(bitmap_run_end(bitmap, 0, 40001), 40000);
    assert_int_equal(bitmap_run_end(bitmap, 0, 39999), 39999);
    assert_int_equal(bitmap_run_end(bitmap, 40000, 100000), 90000);
    assert_int_equal(bitmap_run_end(bitmap, 60000, 80000), 80000);
    assert_int_equal(bitmap_run_end(bitmap, 99999, 200000), 100000);
    bitmap_free(bitmap);
}

static void a_length_that_changes_keeps_what_is_within(void **state)
{
    struct bitmap *bitmap = bitmap_new(70000);

    bitmap_set_range(bitmap, 30000, 5000);
    bitmap_set(bitmap, 69999);
    assert_int_equal(bitmap_resize(bitmap, 100000), 0);
    assert_int_equal(bitmap_bits(bitmap), 100000);
    assert_int_equal(bitmap_count(bitmap), 5001);
    assert_int_equal(bitmap_resize(bitmap, 32000), 0);
    assert_int_equal(bitmap_count(bitmap), 2000);
    assert_int_equal(bitmap_next_set(bitmap, 0), 30000);
    bitmap_free(bitmap);
}

static void a_full_bitmap_has_no_clear_bit_behind_its_end(void **state)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 32767, 32768, 32769, 98304, 98305};

    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        struct bitmap *bitmap = bitmap_new(sizes[i]);

        bitmap_set_range(bitmap, 0, sizes[i]);
        assert_int_equal(bitmap_count(bitmap), sizes[i]);
        assert_int_equal(bitmap_next_clear(bitmap, 0), BITMAP_NONE);
        assert_int_equal(bitmap_next_set(bitmap, sizes[i] - 1), sizes[i] - 1);
        assert_int_equal(bitmap_next_set(bitmap, sizes[i]), BITMAP_NONE);
        bitmap_clear(bitmap, sizes[i] - 1);
        assert_int_equal(bitmap_next_clear(bitmap, 0), sizes[i] - 1);
        bitmap_clear_all(bitmap);
        assert_int_equal(bitmap_count(bitmap), 0);
        assert_int_equal(bitmap_next_set(bitmap, 0), BITMAP_NONE);
        bitmap_free(bitmap);
    }
}

static uint64_t model_next(const bool *model, uint64_t bits, uint64_t from, bool value)
{
    while (from < bits && model[from] != value)
        from++;
    return from < bits ? from : BITMAP_NONE;
}

static void model_fill(bool *model, uint64_t first, uint64_t count, bool value)
{
    for (uint64_t i = 0; i < count; i++)
        model[first + i] = value;
}

/* One random change to both; lengths of all magnitudes. */
static void change_both(struct bitmap *bitmap, bool *model, uint64_t bits, unsigned *seed)
{
    uint64_t bit = (uint64_t)rand_r(seed) % bits;
    uint64_t count = ((uint64_t)rand_r(seed) >> rand_r(seed) % 31) % (bits - bit + 1);

    switch (rand_r(seed) % 8) {
    case 0:
    case 1:
        assert_int_equal(bitmap_set(bitmap, bit), model[bit]);
        model[bit] = true;
        break;
    case 2:
    case 3:
        assert_int_equal(bitmap_clear(bitmap, bit), model[bit]);
        model[bit] = false;
        break;
    case 4:
    case 5:
        bitmap_set_range(bitmap, bit, count);
        model_fill(model, bit, count, true);
        break;
    default:
        bitmap_clear_range(bitmap, bit, count);
        model_fill(model, bit, count, false);
        break;
    }
}

static void a_bitmap_agrees_with_an_array_of_bools(void **state)
{
    static const uint64_t sizes[] = {1, 64, 100, 4096, 32768, 70000};
    unsigned seed = (unsigned)time(NULL);

    print_message("seed %u\n", seed);
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        uint64_t bits = sizes[i];
        struct bitmap *bitmap = bitmap_new(bits);
        bool *model = calloc(bits, sizeof(*model));

        assert_non_null(model);
        for (int round = 0; round < 2000; round++) {
            uint64_t from, count = 0;

            change_both(bitmap, model, bits, &seed);
            from = (uint64_t)rand_r(&seed) % (bits + 1);
            assert_int_equal(bitmap_next_set(bitmap, from), model_next(model, bits, from, true));
            assert_int_equal(bitmap_next_clear(bitmap, from), model_next(model, bits, from, false));
            for (uint64_t bit = 0; bit < bits; bit++)
                count += model[bit];
            assert_int_equal(bitmap_count(bitmap), count);
        }
        for (uint64_t bit = 0; bit < bits; bit++)
            assert_int_equal(bitmap_test(bitmap, bit), model[bit]);
        free(model);
        bitmap_free(bitmap);
    }
}

static void long_empty_runs_are_passed_quickly(void **state)
{
    uint64_t bits = (uint64_t)1 << 32;
    struct bitmap *bitmap = bitmap_new(bits);
    clock_t begin;

    assert_non_null(bitmap);
    bitmap_set(bitmap, bits - 1);
    begin = clock(); /* processor time: others may be busy */
    for (int i = 0; i < 100; i++)
        assert_int_equal(bitmap_next_set(bitmap, 0), bits - 1);
    /* About 10 ms with counts per chunk, several seconds without. */
    assert_true(clock() - begin < 2 * CLOCKS_PER_SEC);
    bitmap_clear_all(bitmap);
    assert_int_equal(bitmap_next_set(bitmap, 0), BITMAP_NONE);
    bitmap_free(bitmap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_bitmap_is_clear),
        cmocka_unit_test(an_empty_bitmap_holds_nothing),
        cmocka_unit_test(setting_and_clearing_tell_what_was_before),
        cmocka_unit_test(a_run_ends_where_the_bits_change_or_at_the_limit),
        cmocka_unit_test(a_length_that_changes_keeps_what_is_within),
        cmocka_unit_test(a_full_bitmap_has_no_clear_bit_behind_its_end),
        cmocka_unit_test(a_bitmap_agrees_with_an_array_of_bools),
        cmocka_unit_test(long_empty_runs_are_passed_quickly),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
