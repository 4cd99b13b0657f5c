/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit.h"

#include "drivers/overlay_map.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static uint64_t random_state;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void random_seed(void)
{
    const char *given = getenv("BLOCKSTEP_TEST_SEED");

    random_state = given != NULL ? strtoull(given, NULL, 0)
                                 : (uint64_t)time(NULL) * 2654435761u + 1;
    print_message("BLOCKSTEP_TEST_SEED=%llu\n", (unsigned long long)random_state);
}

#define MODEL_BLOCKS 60000u
#define STEP         8u

struct model {
    uint8_t kind[MODEL_BLOCKS];
    uint32_t slot[MODEL_BLOCKS];
    uint32_t base; /* the model's first block */
};

static void check_same(struct overlay_map *map, const struct model *model)
{
    for (uint32_t i = 0; i < MODEL_BLOCKS;) {
        uint64_t max = 1 + random_next() % 5000;

        max = max < MODEL_BLOCKS - i ? max : MODEL_BLOCKS - i;
        struct overlay_map_run run = overlay_map_find(map, model->base + i, max);
        assert_in_range(run.count, 1, max);
        for (uint32_t k = 0; k < run.count; k++) {
            assert_int_equal(model->kind[i + k], run.kind);
            if (run.kind == OVERLAY_MAP_DATA)
                assert_int_equal(model->slot[i + k], run.slot + k * STEP);
        }
        i += (uint32_t)run.count;
    }
}

static void check_held(struct overlay_map *map, const struct model *model)
{
    for (uint32_t i = 0; i < MODEL_BLOCKS;) {
        uint64_t count, expected = 1;
        bool held = overlay_map_held(map, model->base + i, MODEL_BLOCKS - i, &count);

        while (i + expected < MODEL_BLOCKS && (model->kind[i + expected] != OVERLAY_MAP_ABSENT) ==
                                                  (model->kind[i] != OVERLAY_MAP_ABSENT))
            expected++;
        assert_int_equal(held, model->kind[i] != OVERLAY_MAP_ABSENT);
        assert_in_range(count, 1, expected);
        i += (uint32_t)count;
    }
}

static void random_change(struct overlay_map *map, struct model *model)
{
    uint32_t at = random_next() % MODEL_BLOCKS;
    uint64_t count = 1 + random_next() % (random_next() % 8 == 0 ? 3000 : 20);
    bool zero = random_next() % 4 == 0;
    uint32_t slot = 1 + (random_next() & 0x7ffffff);

    count = count < MODEL_BLOCKS - at ? count : MODEL_BLOCKS - at;
    assert_int_equal(0, overlay_map_reserve(map, 1, count));
    if (zero)
        overlay_map_put_zero(map, model->base + at, count);
    else
        overlay_map_put(map, model->base + at, count, slot);
    for (uint32_t k = 0; k < count; k++) {
        model->kind[at + k] = zero ? OVERLAY_MAP_ZEROED : OVERLAY_MAP_DATA;
        model->slot[at + k] = slot + k * STEP;
    }
}

static void test_finds_what_was_put_in(void **state)
{
    static struct model model;
    const uint32_t bases[] = {0, 1u << 31, UINT32_MAX - MODEL_BLOCKS + 1};

    for (unsigned round = 0; round < 9; round++) {
        struct overlay_map *map = overlay_map_new(STEP);

        memset(&model, 0, sizeof(model));
        model.base = bases[round % 3];
        assert_non_null(map);
        for (unsigned i = 0; i < 4000; i++) {
            random_change(map, &model);
            if (i % 400 == 0) {
                check_same(map, &model);
                check_held(map, &model);
            }
        }
        check_same(map, &model);
        check_held(map, &model);
        overlay_map_free(map);
    }
}

static void test_finds_what_was_put_in_and_replaced_downwards(void **state)
{
    static struct model model;
    struct overlay_map *map = overlay_map_new(STEP);

    assert_non_null(map);
    memset(&model, 0, sizeof(model));
    model.base = 7;
    for (unsigned pass = 0; pass < 2; pass++) {
        for (uint32_t i = MODEL_BLOCKS; i-- > 0;) {
            assert_int_equal(0, overlay_map_reserve(map, 1, 1));
            overlay_map_put(map, model.base + i, 1, pass + i + 1);
            model.kind[i] = OVERLAY_MAP_DATA;
            model.slot[i] = pass + i + 1;
        }
        check_same(map, &model);
        check_held(map, &model);
        assert_int_equal(overlay_map_blocks(map), MODEL_BLOCKS);
    }
    overlay_map_free(map);
}

static void test_dropping_forgets_all_and_gives_memory_back(void **state)
{
    static struct model model;
    struct overlay_map *map = overlay_map_new(STEP);

    assert_non_null(map);
    for (unsigned round = 0; round < 20; round++) {
        memset(&model, 0, sizeof(model));
        for (unsigned i = 0; i < 3000; i++)
            random_change(map, &model);
        check_same(map, &model);
        overlay_map_drop(map);
        memset(&model, 0, sizeof(model));
        check_same(map, &model);
        check_held(map, &model);
        assert_int_equal(0, overlay_map_blocks(map));
        if (round % 3 == 0)
            overlay_map_reap(map, 1);
    }
    while (overlay_map_reap(map, 1))
        ;
    assert_in_range(overlay_map_bytes(map), 0,
                    (2 * OVERLAY_MAP_SPARE_SLABS + 4) * (uint64_t)OVERLAY_MAP_SLAB_BYTES);
    overlay_map_free(map);
}

/* --- memory in any distribution --- */

static uint32_t next_random(uint64_t i)
{
    return (uint32_t)random_next();
}

static uint32_t next_ascending(uint64_t i)
{
    return (uint32_t)i;
}

static uint32_t next_descending(uint64_t i)
{
    return UINT32_MAX - (uint32_t)i;
}

/* Many ascending streams, interleaved. */
static uint32_t next_streams(uint64_t i)
{
    return (uint32_t)(i % 1000 * 4000000 + i / 1000);
}

static uint32_t next_strided(uint64_t i)
{
    return (uint32_t)(i * 1021);
}

/* Each page of a first ascending pass is hit once more, in its middle. */
static uint32_t next_pages(uint64_t i)
{
    return (uint32_t)(i < 500000 ? i * 1000
                                 : (i - 500000) % 980 * 510000 + (i - 500000) / 980 * 7 + 3);
}

static uint32_t next_inward(uint64_t i)
{
    return (uint32_t)(i % 2 == 0 ? i * 1000 : UINT32_MAX - i * 1000);
}

static void test_a_block_costs_less_than_16_bytes_in_any_distribution(void **state)
{
    uint32_t (*const kinds[])(uint64_t) = {next_random,  next_ascending, next_descending,
                                           next_streams, next_strided,   next_pages,
                                           next_inward};
    for (unsigned kind = 0; kind < ARRAY_LEN(kinds); kind++) {
        struct overlay_map *map = overlay_map_new(STEP);
        double worst = 0;

        assert_non_null(map);
        for (uint64_t i = 0; i < 2000000; i++) {
            assert_int_equal(0, overlay_map_reserve(map, 1, 1));
            overlay_map_put(map, kinds[kind](i), 1, 1);
            uint64_t held = overlay_map_blocks(map);
            /* Under it, the one slab that is begun and the pages held ready count for too much. */
            if (held > 200000) {
                double each = (double)overlay_map_bytes(map) / (double)held;

                worst = each > worst ? each : worst;
            }
        }
        print_message("distribution %u: at most %.1f bytes a block\n", kind, worst);
        assert_true(worst <= 16.0);
        overlay_map_free(map);
    }
}

static void test_a_long_zeroed_run_costs_next_to_nothing(void **state)
{
    struct overlay_map *map = overlay_map_new(STEP);

    for (uint64_t at = 0; at < UINT64_C(1) << 32; at += 1u << 18) {
        assert_int_equal(0, overlay_map_reserve(map, 1, 1u << 18));
        overlay_map_put_zero(map, (uint32_t)at, 1u << 18);
    }
    assert_int_equal(UINT64_C(1) << 32, overlay_map_long_blocks(map));
    assert_in_range(overlay_map_bytes(map), 0, 16u << 20);
    struct overlay_map_run run = overlay_map_find(map, UINT32_MAX, 1);
    assert_int_equal(OVERLAY_MAP_ZEROED, run.kind);
    overlay_map_free(map);
}

static void test_a_zeroed_run_is_long_from_64_blocks_on(void **state)
{
    struct overlay_map *map = overlay_map_new(STEP);

    assert_int_equal(0, overlay_map_reserve(map, 2, 2 * OVERLAY_MAP_LONG_RUN));
    overlay_map_put_zero(map, 1000, OVERLAY_MAP_LONG_RUN - 1);
    assert_int_equal(0, overlay_map_long_blocks(map));
    assert_int_equal(OVERLAY_MAP_LONG_RUN - 1, overlay_map_blocks(map));
    overlay_map_put_zero(map, 5000, OVERLAY_MAP_LONG_RUN);
    assert_int_equal(OVERLAY_MAP_LONG_RUN, overlay_map_long_blocks(map));
    assert_int_equal(OVERLAY_MAP_LONG_RUN - 1, overlay_map_blocks(map));
    overlay_map_free(map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_what_was_put_in),
        cmocka_unit_test(test_finds_what_was_put_in_and_replaced_downwards),
        cmocka_unit_test(test_dropping_forgets_all_and_gives_memory_back),
        cmocka_unit_test(test_a_block_costs_less_than_16_bytes_in_any_distribution),
        cmocka_unit_test(test_a_long_zeroed_run_costs_next_to_nothing),
        cmocka_unit_test(test_a_zeroed_run_is_long_from_64_blocks_on),
    };

    random_seed();
    return cmocka_run_group_tests_name("overlay_map", tests, NULL, NULL);
}
