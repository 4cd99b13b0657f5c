/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The backup job, in the world of job_fixture.h. */
#include "job_fixture.h"

#include "jobs/backup.h"

#define BLOCK  65536u
#define GUESTS 3u
#define ROUNDS 60u

static void close_world(struct world *world) MAY_WAIT
{
    assert_ptr_equal(world->guest->child, world->source); /* the filter is gone */
    world_close(world);
}

static struct backup_options options_of(struct world *world)
{
    return (struct backup_options){.id = "b", .source = world->source, .target = world->target};
}

/* With a reference for the caller. */
static struct job *start(struct world *world, const struct backup_options *options) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct job *job;
    if (backup_new(&world->jobs, options, &job, &err) < 0)
        fail_msg("%s", err.text);
    return start_made(job);
}

static void expect_copy(const struct world *world, const uint8_t *wanted, uint64_t offset,
                        uint64_t length)
{
    const uint8_t *seen = mem_bytes(world->tmem);
    for (uint64_t i = offset; i < offset + length; i++) {
        if (seen[i] != wanted[i])
            fail_msg("byte %" PRIu64 " of the copy is %u, not %u", i, seen[i], wanted[i]);
    }
}

static void expect_untouched(const struct world *world, uint64_t offset, uint64_t length)
{
    for (uint64_t i = offset; i < offset + length; i++)
        assert_int_equal(mem_bytes(world->tmem)[i], 0xee);
}

struct guests {
    struct world *world;
    uint64_t seed;
    unsigned running;
    bool end;
};

/* Writes, zeroes and discards at random, all over the disk. */
static void guest_main(void *arg) MAY_WAIT
{
    struct guests *guests = arg;
    struct world *world = guests->world;
    for (unsigned round = 0; !guests->end || round < ROUNDS; round++) {
        uint64_t offset = test_random(&guests->seed) % SIZE_BYTES;
        uint64_t wanted = 1 + test_random(&guests->seed) % 90000;
        uint64_t length = MIN(wanted, SIZE_BYTES - offset);
        int ret;
        if (round % 5 == 4)
            ret = blocks_zero(world->guest, offset, length, 0);
        else if (round % 5 == 3)
            ret = blocks_discard(world->guest, offset, length);
        else
            ret = blocks_write(world->guest, offset, length, (uint8_t)(0x80 + round), 0);
        assert_int_equal(ret, 0);
    }
    guests->running--;
}

static void start_guests(struct guests *guests, struct world *world)
{
    *guests = (struct guests){.world = world, .seed = test_seed("guests")};
    for (unsigned i = 0; i < GUESTS; i++) {
        guests->running++;
        assert_int_equal(co_spawn(loop_current(), "guest", guest_main, guests), 0);
    }
}

static void end_guests(struct guests *guests) MAY_WAIT
{
    guests->end = true;
    test_wait_until(guests->running == 0);
}

TEST_LOOP(a_backup_is_the_source_as_of_its_start_whatever_the_guest_writes)
{
    struct world world;
    world_open(&world);
    struct backup_options options = options_of(&world);
    options.speed_bytes = 100u * 1024 * 1024;
    struct job *job = start(&world, &options);
    struct guests guests;
    start_guests(&guests, &world);
    test_wait_until(job->status == JOB_CONCLUDED || job->status == JOB_NULL);
    assert_int_equal(job->done_bytes, job->total_bytes);
    assert_true(job->done_bytes >= SIZE_BYTES);
    assert_int_equal(finish(job), 0);
    end_guests(&guests);
    expect_copy(&world, world.before, 0, SIZE_BYTES);
    close_world(&world);
}

TEST_LOOP(a_backup_keeps_to_its_speed)
{
    struct world world;
    world_open(&world);
    struct backup_options options = options_of(&world);
    options.speed_bytes = UINT64_C(2) * SIZE_BYTES;
    uint64_t begun_ns = loop_now_ns(loop_current());
    struct job *job = start(&world, &options);
    assert_int_equal(finish(job), 0);
    assert_true(loop_now_ns(loop_current()) - begun_ns >= 250 * NS_PER_MS);
    expect_copy(&world, world.before, 0, SIZE_BYTES);
    world_close(&world);
}

TEST_LOOP(without_a_first_copy_only_what_changes_is_saved)
{
    struct world world;
    world_open(&world);
    struct backup_options options = options_of(&world);
    options.sync = BACKUP_SYNC_NONE;
    struct job *job = start(&world, &options);
    assert_int_equal(blocks_write(world.guest, BLOCK + 5, 10, 1, 0), 0);
    assert_int_equal(blocks_write(world.guest, BLOCK + 5, 10, 2, 0), 0);
    expect_untouched(&world, 0, BLOCK);
    expect_copy(&world, world.before, BLOCK, BLOCK);
    expect_untouched(&world, 2 * BLOCK, BLOCK);
    assert_int_equal(job->status, JOB_RUNNING);
    json_object_put(job_query(job));
    assert_int_equal(job->done_bytes, BLOCK);
    assert_int_equal(job->total_bytes, SIZE_BYTES);
    assert_int_equal(cancel(job, true), -ECANCELED);
    close_world(&world);
}

static struct dirty_bitmap *add_bitmap(struct world *world) MAY_WAIT
{
    struct dirty_bitmap *bitmap = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(dirty_bitmap_add(world->source, "b", 4096, true, &bitmap, &err), 0);
    assert_int_equal(blocks_write(world->guest, 10 * BLOCK, 100, 3, 0), 0);
    assert_int_equal(blocks_write(world->guest, 20 * BLOCK, 100, 3, 0), 0);
    memcpy(world->before, mem_bytes(world->smem), SIZE_BYTES);
    return bitmap;
}

static uint64_t marked_bytes(const struct dirty_bitmap *bitmap)
{
    return dirty_tracker_bytes(&bitmap->tracker);
}

TEST_LOOP(a_bitmap_tells_what_is_copied_and_then_what_came_after_it)
{
    struct world world;
    world_open(&world);
    struct dirty_bitmap *bitmap = add_bitmap(&world);
    struct backup_options options = options_of(&world);
    options.sync = BACKUP_SYNC_BITMAP;
    options.bitmap = bitmap;
    options.speed_bytes = 1;
    struct job *job = start(&world, &options);
    assert_true(bitmap->busy);
    assert_int_equal(blocks_write(world.guest, 20 * BLOCK, 10, 4, 0), 0);
    assert_int_equal(blocks_write(world.guest, 30 * BLOCK, 10, 4, 0), 0);
    struct err err = ERR_INIT;
    assert_int_equal(job_set_speed(job, 0, &err), 0);
    assert_int_equal(finish(job), 0);
    expect_untouched(&world, 0, 10 * BLOCK);
    expect_copy(&world, world.before, 10 * BLOCK, BLOCK);
    expect_copy(&world, world.before, 20 * BLOCK, BLOCK);
    expect_untouched(&world, 30 * BLOCK, BLOCK);
    assert_false(bitmap->busy);
    assert_int_equal(marked_bytes(bitmap), 2 * 4096);
    close_world(&world);
}

TEST_LOOP(a_bitmap_ends_as_its_mode_says)
{
    static const struct {
        enum backup_bitmap_mode mode;
        bool fails;
        unsigned regions;
    } cases[] = {
        {BACKUP_BITMAP_ON_SUCCESS, false, 0}, {BACKUP_BITMAP_ON_SUCCESS, true, 2},
        {BACKUP_BITMAP_NEVER, false, 2},      {BACKUP_BITMAP_NEVER, true, 2},
        {BACKUP_BITMAP_ALWAYS, false, 0},     {BACKUP_BITMAP_ALWAYS, true, 16},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .nth = 2, .error = -EIO};
        struct world world;
        world_open(&world);
        struct backup_options options = options_of(&world);
        options.sync = BACKUP_SYNC_BITMAP;
        options.bitmap = add_bitmap(&world);
        options.bitmap_mode = cases[i].mode;
        if (cases[i].fails)
            assert_int_equal(blkdebug_inject(world.target, &rule, NULL), 0);
        assert_int_equal(finish(start(&world, &options)), cases[i].fails ? -EIO : 0);
        assert_int_equal(marked_bytes(options.bitmap), cases[i].regions * 4096);
        assert_false(options.bitmap->busy);
        close_world(&world);
    }
}

TEST_LOOP(errors_are_reported_ignored_or_waited_for_as_told)
{
    struct world world;
    world_open(&world);
    struct err err = ERR_INIT;
    struct backup_options options = options_of(&world);
    const struct blkdebug_rule twice = {.kinds = BLKDEBUG_WRITE, .count = 2, .error = -ENOSPC};
    const struct blkdebug_rule read = {.kinds = BLKDEBUG_READ, .count = 1, .error = -EIO};

    assert_int_equal(blkdebug_inject(world.source, &read, NULL), 0);
    assert_int_equal(finish(start(&world, &options)), -EIO);
    assert_int_equal(count_events(&world, "BLOCK_JOB_ERROR"), 1);

    options.on_target_error = JOB_ON_ERROR_IGNORE;
    assert_int_equal(blkdebug_inject(world.target, &twice, NULL), 0);
    assert_int_equal(finish(start(&world, &options)), 0);
    assert_int_equal(count_events(&world, "BLOCK_JOB_ERROR"), 3);
    expect_copy(&world, world.before, 0, SIZE_BYTES);

    memset(mem_bytes(world.tmem), 0xee, SIZE_BYTES);
    options.on_target_error = JOB_ON_ERROR_ENOSPC;
    assert_int_equal(blkdebug_inject(world.target, &twice, NULL), 0);
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_PAUSED);
    assert_int_equal(job->io_error, -ENOSPC);
    assert_int_equal(job_resume(job, &err), 0);
    assert_int_equal(finish(job), 0);
    expect_copy(&world, world.before, 0, SIZE_BYTES);
    close_world(&world);
}

TEST_LOOP(a_target_that_fails_never_fails_the_guest)
{
    struct world world;
    world_open(&world);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .error = -EIO};
    assert_int_equal(blkdebug_inject(world.target, &rule, NULL), 0);
    struct backup_options options = options_of(&world);
    options.sync = BACKUP_SYNC_NONE;
    struct job *job = start(&world, &options);
    assert_int_equal(blocks_write(world.guest, 0, 512, 7, 0), 0);
    blocks_expect(world.guest, 0, 512, 7);
    assert_int_equal(finish(job), -EIO);
    assert_int_equal(count_events(&world, "BLOCK_JOB_ERROR"), 1);
    close_world(&world);
}

TEST_LOOP(two_backups_of_a_disk_end_in_either_order)
{
    for (unsigned first = 0; first < 2; first++) {
        struct world world;
        struct job *jobs[2];
        world_open(&world);
        struct backup_options options = options_of(&world);
        options.sync = BACKUP_SYNC_NONE;
        jobs[0] = start(&world, &options);
        options.id = "c";
        options.target = add_mem(&world, "other", 3);
        jobs[1] = start(&world, &options);
        assert_int_equal(blocks_write(world.guest, 0, 512, 7, 0), 0);
        assert_int_equal(cancel(jobs[first], true), -ECANCELED);
        assert_int_equal(blocks_write(world.guest, BLOCK, 512, 7, 0), 0);
        expect_copy(&world, world.before, 0, BLOCK);
        const uint8_t *stays = first == 0 ? mem_bytes(options.target) : mem_bytes(world.tmem);
        assert_memory_equal(stays, world.before, 2 * BLOCK);
        assert_int_equal(cancel(jobs[!first], true), -ECANCELED);
        close_world(&world);
    }
}

TEST_LOOP(only_what_the_top_image_holds_is_copied_from_it)
{
    struct world world;
    world_open(&world);
    overlay_make(test_path("top"), SIZE_BYTES, 0, 0);
    struct node *top = blocks_add(world.graph,
                                  "{'node-name':'top','driver':'overlay','backing':'smem',"
                                  "'file':{'driver':'file','filename':'%s'}}",
                                  test_path("top"));
    struct edge *edge = blocks_root(world.graph, top, "user");
    assert_int_equal(blocks_write(edge, 3 * BLOCK, 512, 5, 0), 0);
    struct backup_options options = options_of(&world);
    options.source = top;
    options.sync = BACKUP_SYNC_TOP;
    struct job *job = start(&world, &options);
    assert_int_equal(finish(job), 0);
    expect_untouched(&world, 0, 3 * BLOCK);
    assert_int_equal(mem_bytes(world.tmem)[3 * BLOCK], 5);
    expect_copy(&world, world.before, 3 * BLOCK + 512, BLOCK - 512);
    expect_untouched(&world, 4 * BLOCK, SIZE_BYTES - 4 * BLOCK);
    graph_detach(edge);
    close_world(&world);
    test_folder_remove();
}

TEST_LOOP(what_cannot_be_backed_up_is_refused_and_leaves_nothing_behind)
{
    struct world world;
    struct err err = ERR_INIT;
    struct job *job;
    world_open(&world);
    struct backup_options options = options_of(&world);
    options.target = world.smem;
    assert_int_equal(backup_new(&world.jobs, &options, &job, &err), -EINVAL);
    options.target = blocks_add(world.graph, "{'node-name':'small','driver':'mem','size':512}");
    assert_int_equal(backup_new(&world.jobs, &options, &job, &err), -EINVAL);
    options.target = world.target;
    struct edge *writer = blocks_root(world.graph, world.target, "writer");
    assert_int_equal(backup_new(&world.jobs, &options, &job, &err), -EPERM);
    graph_detach(writer);
    assert_null(job_next(&world.jobs, NULL));
    struct job *first = start(&world, &options);
    options.target = add_mem(&world, "other", 0);
    assert_int_equal(backup_new(&world.jobs, &options, &job, &err), -EEXIST);
    assert_int_equal(finish(first), 0);
    close_world(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_backup_is_the_source_as_of_its_start_whatever_the_guest_writes),
        cmocka_unit_test(a_backup_keeps_to_its_speed),
        cmocka_unit_test(without_a_first_copy_only_what_changes_is_saved),
        cmocka_unit_test(a_bitmap_tells_what_is_copied_and_then_what_came_after_it),
        cmocka_unit_test(a_bitmap_ends_as_its_mode_says),
        cmocka_unit_test(errors_are_reported_ignored_or_waited_for_as_told),
        cmocka_unit_test(a_target_that_fails_never_fails_the_guest),
        cmocka_unit_test(two_backups_of_a_disk_end_in_either_order),
        cmocka_unit_test(only_what_the_top_image_holds_is_copied_from_it),
        cmocka_unit_test(what_cannot_be_backed_up_is_refused_and_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
