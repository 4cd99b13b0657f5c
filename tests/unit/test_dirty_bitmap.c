/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Trackers and named bitmaps on a disk in memory. */
#include "blocks.h"

#include "block/dirty_bitmap.h"

#include <errno.h>
#include <string.h>

#define SIZE_BYTES   (1u << 20)
#define REGION_BYTES 4096u
#define ROUNDS       400u

struct world {
    struct graph *graph;
    struct node *disk;
    struct edge *guest;
};

static void world_open(struct world *world) MAY_WAIT
{
    world->graph = blocks_graph();
    world->disk = blocks_add(
        world->graph, "{'node-name':'disk','driver':'mem','size':%u,'grow':true}", SIZE_BYTES);
    world->guest = blocks_root(world->graph, world->disk, "guest");
}

static void world_close(struct world *world) MAY_WAIT
{
    graph_detach(world->guest);
    graph_free(world->graph);
}

static struct dirty_bitmap *add(struct world *world, const char *name, uint64_t region_bytes)
{
    struct dirty_bitmap *bitmap = NULL;
    struct err err = ERR_INIT;

    if (dirty_bitmap_add(world->disk, name, region_bytes, true, &bitmap, &err) < 0)
        fail_msg("%s", err.text);
    return bitmap;
}

static uint64_t bytes_of(const struct dirty_bitmap *bitmap)
{
    return dirty_tracker_bytes(&bitmap->tracker);
}

TEST_LOOP(a_bitmap_marks_only_while_it_is_enabled)
{
    struct world world;

    world_open(&world);
    struct dirty_bitmap *bitmap = add(&world, "b", REGION_BYTES);
    assert_int_equal(blocks_write(world.guest, 5000, 10, 1, 0), 0);
    assert_int_equal(bytes_of(bitmap), REGION_BYTES);
    dirty_bitmap_enable(bitmap, false);
    dirty_bitmap_enable(bitmap, false);
    assert_int_equal(blocks_zero(world.guest, 65536, 4096, 0), 0);
    assert_int_equal(bytes_of(bitmap), REGION_BYTES);
    dirty_bitmap_enable(bitmap, true);
    assert_int_equal(blocks_discard(world.guest, 65536, 4096), 0);
    assert_int_equal(bytes_of(bitmap), 2 * REGION_BYTES);
    dirty_bitmap_clear(bitmap);
    assert_int_equal(bytes_of(bitmap), 0);
    world_close(&world); /* and the bitmap with it */
}

TEST_LOOP(what_is_taken_can_be_given_back)
{
    struct world world;

    world_open(&world);
    struct dirty_bitmap *bitmap = add(&world, "b", 65536);
    assert_int_equal(blocks_write(world.guest, 0, 1, 1, 0), 0);
    struct bitmap *taken = dirty_bitmap_take(bitmap);
    assert_non_null(taken);
    assert_int_equal(bytes_of(bitmap), 0);
    assert_int_equal(blocks_write(world.guest, 65536, 1, 1, 0), 0);
    assert_int_equal(bytes_of(bitmap), 65536);
    dirty_tracker_merge(&bitmap->tracker, taken, 65536);
    assert_int_equal(bytes_of(bitmap), 2 * 65536);
    bitmap_free(taken);
    world_close(&world);
}

TEST_LOOP(a_bitmap_that_is_held_is_refused_to_others_and_keeps_its_node)
{
    struct err err = ERR_INIT;
    struct world world;

    world_open(&world);
    struct dirty_bitmap *bitmap = add(&world, "b", 0);
    assert_int_equal(bitmap->tracker.region_bytes, 65536);
    assert_int_equal(dirty_bitmap_check(bitmap, &err), 0);
    dirty_bitmap_hold(bitmap);
    assert_int_equal(dirty_bitmap_check(bitmap, &err), -EBUSY);
    graph_detach(TAKE_PTR(world.guest));
    assert_int_equal(graph_del(world.graph, "disk", &err), 0);
    assert_int_equal(mem_open_count, 1);
    dirty_bitmap_release(bitmap);
    assert_int_equal(mem_open_count, 0);
    world_close(&world);
}

TEST_LOOP(bitmaps_follow_the_length_of_their_node)
{
    struct err err = ERR_INIT;
    struct world world;

    world_open(&world);
    assert_int_equal(graph_set_perms(world.guest, PERM_ALL, PERM_ALL, &err), 0);
    struct dirty_bitmap *bitmap = add(&world, "b", REGION_BYTES);
    assert_int_equal(blocks_write(world.guest, SIZE_BYTES - 1, 1, 1, 0), 0);
    assert_int_equal(io_truncate(world.guest, SIZE_BYTES / 2), 0);
    assert_int_equal(bytes_of(bitmap), 0);
    assert_int_equal(blocks_write(world.guest, SIZE_BYTES / 2 - 1, 1, 1, 0), 0);
    assert_int_equal(io_truncate(world.guest, SIZE_BYTES), 0);
    assert_int_equal(bytes_of(bitmap), REGION_BYTES);
    assert_int_equal(blocks_write(world.guest, SIZE_BYTES - 1, 1, 1, 0), 0);
    assert_int_equal(bytes_of(bitmap), 2 * REGION_BYTES);
    assert_false(bitmap->inconsistent);
    world_close(&world);
}

TEST_LOOP(looks_and_merges_agree_with_a_model)
{
    uint64_t seed = test_seed("looks_and_merges_agree_with_a_model");
    static bool model[SIZE_BYTES / 512];
    struct world world;

    world_open(&world);
    struct dirty_bitmap *small = add(&world, "small", 512);
    struct dirty_bitmap *large = add(&world, "large", 8192);
    memset(model, 0, sizeof(model));
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t offset = test_random(&seed) % SIZE_BYTES;
        uint64_t length = 1 + test_random(&seed) % MIN(SIZE_BYTES - offset, 3000u);

        dirty_tracker_mark(&small->tracker, offset, length);
        for (uint64_t i = offset / 512; i <= (offset + length - 1) / 512; i++)
            model[i] = true;
    }
    for (uint64_t offset = 0, length; offset < SIZE_BYTES; offset += length) {
        bool marked = dirty_tracker_look(&small->tracker, offset, SIZE_BYTES - offset, &length);

        assert_true(length > 0 && offset + length <= SIZE_BYTES);
        for (uint64_t i = offset / 512; i < (offset + length) / 512; i++)
            assert_int_equal(model[i], marked);
    }
    dirty_tracker_merge(&large->tracker, small->tracker.bits, 512);
    for (uint64_t i = 0; i < SIZE_BYTES / 8192; i++) {
        bool any = false;

        for (unsigned k = 0; k < 16; k++)
            any |= model[i * 16 + k];
        assert_int_equal(bitmap_test(large->tracker.bits, i), any);
    }
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bitmap_marks_only_while_it_is_enabled),
        cmocka_unit_test(what_is_taken_can_be_given_back),
        cmocka_unit_test(a_bitmap_that_is_held_is_refused_to_others_and_keeps_its_node),
        cmocka_unit_test(bitmaps_follow_the_length_of_their_node),
        cmocka_unit_test(looks_and_merges_agree_with_a_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
