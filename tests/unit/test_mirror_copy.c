/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a mirror copies, when, and what its guest notices of that. */
#include "mirror_fixture.h"

TEST_LOOP(sync_none_copies_what_is_written_from_now_on_alone)
{
    struct world world;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.sync = MIRROR_SYNC_NONE;
    options.region_bytes = 4096;
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(blocks_write(world.guest, 8192, 4096, 0xaa, 0), 0);
    assert_int_equal(cancel(job, false), 0);
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        assert_int_equal(mem_bytes(world.tmem)[i], i >= 8192 && i < 12288 ? 0xaa : 0xee);
    world_close(&world);
}

TEST_LOOP(sync_bitmap_copies_what_a_bitmap_has_marked_and_leaves_it_so)
{
    struct world world;
    world_open(&world);
    struct dirty_bitmap *bitmap;
    struct err err = ERR_INIT;
    assert_int_equal(dirty_bitmap_add(world.source, "b", 16384, true, &bitmap, &err), 0);
    assert_int_equal(blocks_write(world.guest, 100000, 5000, 0xab, 0), 0);
    struct mirror_options options = options_of(&world);
    options.sync = MIRROR_SYNC_BITMAP;
    options.bitmap = bitmap;
    struct job *job = start(&world, &options);
    assert_int_equal(dirty_bitmap_check(bitmap, &err), -EBUSY);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(blocks_write(world.guest, 1 << 20, 4096, 0xac, 0), 0);
    assert_int_equal(cancel(job, false), 0);
    const uint8_t *source = mem_bytes(world.smem), *target = mem_bytes(world.tmem);
    assert_memory_equal(source + 98304, target + 98304, 16384);
    assert_memory_equal(source + (1 << 20), target + (1 << 20), 4096);
    assert_int_equal(target[0], 0xee);
    assert_int_equal(target[2 << 20], 0xee);
    assert_int_equal(dirty_bitmap_check(bitmap, &err), 0);
    assert_int_equal(dirty_tracker_bytes(&bitmap->tracker), 2 * 16384);

    /* It is let go as well when there is no job. */
    options.target = world.source;
    assert_int_equal(mirror_new(&world.jobs, &options, &job, &err), -EINVAL);
    assert_int_equal(dirty_bitmap_check(bitmap, &err), 0);
    world_close(&world);
}

TEST_LOOP(sync_top_copies_what_the_source_holds_itself)
{
    struct world world;
    world_open(&world);
    overlay_make(test_path("overlay"), SIZE_BYTES, 0, 0);
    struct node *node = blocks_add(world.graph,
                                   "{'node-name':'ovl','driver':'overlay','backing':'smem',"
                                   "'file':{'driver':'file','filename':'%s'}}",
                                   test_path("overlay"));
    struct edge *edge = blocks_root(world.graph, node, "top");
    assert_int_equal(blocks_write(edge, 65536, 65536, 0xaa, 0), 0);
    struct mirror_options options = options_of(&world);
    options.sync = MIRROR_SYNC_TOP;
    options.source = node;
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job->done_bytes, 65536);
    assert_int_equal(cancel(job, false), 0);
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        assert_int_equal(mem_bytes(world.tmem)[i], i >= 65536 && i < 131072 ? 0xaa : 0xee);
    graph_detach(edge);
    world_close(&world);
    test_folder_remove();
}

static struct node *add_file(struct world *world, const char *name) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct file *file;
    if (file_open(loop_current(), test_path(name), FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO,
                  &file, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(file_truncate(file, 64 << 20), 0);
    file_close(file);
    blocks_add(world->graph, "{'node-name':'f%s','driver':'file','filename':'%s'}", name,
               test_path(name));
    return blocks_add(world->graph, "{'node-name':'%s','driver':'blkdebug','file':'f%s'}", name,
                      name);
}

/* 64 MiB that hold 3 MiB, on a target that holds something where the source has a hole. */
TEST_LOOP(holes_are_not_read_and_zeroes_not_written_where_there_are_zeroes)
{
    struct world world;
    unsigned reads, writes, zeroes;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.source = add_file(&world, "one");
    options.target = add_file(&world, "two");
    struct edge *from = blocks_root(world.graph, options.source, "from");
    assert_int_equal(blocks_write(from, 20 << 20, 2 << 20, 0xaa, 0), 0);
    assert_int_equal(blocks_write(from, 63 << 20, 1 << 20, 0xbb, 0), 0);
    struct edge *to = blocks_root(world.graph, options.target, "to");
    assert_int_equal(blocks_write(to, 40 << 20, 4096, 0xcc, 0), 0);
    graph_detach(to);
    blkdebug_inject(options.source, &(struct blkdebug_rule){.kinds = BLKDEBUG_READ}, &reads);
    blkdebug_inject(options.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE}, &writes);
    blkdebug_inject(options.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_ZERO}, &zeroes);
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job->done_bytes, 64 << 20);
    assert_in_range(blkdebug_matches(options.source, reads), 3, 6);
    assert_in_range(blkdebug_matches(options.target, writes), 3, 6);
    assert_int_equal(blkdebug_matches(options.target, zeroes), 1);
    assert_int_equal(cancel(job, false), 0);
    to = blocks_root(world.graph, options.target, "to");
    blocks_expect(to, 0, 20 << 20, 0);
    blocks_expect(to, 20 << 20, 2 << 20, 0xaa);
    blocks_expect(to, 22 << 20, 41 << 20, 0);
    blocks_expect(to, 63 << 20, 1 << 20, 0xbb);
    graph_detach(to);
    graph_detach(from);
    world_close(&world);
    test_folder_remove();
}

/* --- write_blocking --- */

TEST_LOOP(with_write_blocking_a_change_is_on_the_target_when_it_ends)
{
    struct world world;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.write_blocking = true;
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    expect_equal(&world);
    for (unsigned i = 0; i < 40; i++) {
        uint64_t offset = i * 100003, length = 1 + i * 997;
        if (i % 4 == 0)
            assert_int_equal(blocks_zero(world.guest, offset, length, 0), 0);
        else if (i % 4 == 1)
            assert_int_equal(blocks_discard(world.guest, offset, length), 0);
        else
            assert_int_equal(blocks_write(world.guest, offset, length, (uint8_t)i, 0), 0);
        expect_equal(&world);
    }
    assert_int_equal(cancel(job, false), 0);
    world_close(&world);
}

TEST_LOOP(a_blocking_copy_that_fails_is_the_jobs_failure_and_not_the_guests)
{
    struct world world;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.write_blocking = true;
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    inject(world.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .error = -EPIPE});
    assert_int_equal(blocks_write(world.guest, 65536, 4096, 0xab, 0), 0);
    expect_failure(&world, job, -EPIPE, "write 4096 bytes at offset 65536 of target node 'target'");

    /* Told to go on, it copies later. */
    options.on_target_error = JOB_ON_ERROR_IGNORE;
    job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    inject(world.target,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 1, .error = -EPIPE});
    assert_int_equal(blocks_write(world.guest, 65536, 4096, 0xac, 0), 0);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

TEST_LOOP(a_mirror_that_ends_waits_for_requests_that_copy)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.write_blocking = true;
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    inject(world.target,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 1, .hold = true});
    struct blocks_task task;
    blocks_start_write(&task, world.guest, 65536, 4096, 0xab);
    assert_int_equal(blkdebug_await_held(world.target, 0, 1, DEADLINE_NEVER), 0);
    assert_int_equal(job_cancel(job, true, &err), 0);
    for (int i = 0; i < 50; i++)
        co_yield();
    assert_int_equal(job->status, JOB_ABORTING);
    assert_false(task.done);
    /* Others do not wait for it. */
    assert_int_equal(blocks_write(world.guest, 1 << 20, 4096, 0xac, 0), 0);
    blkdebug_release(world.target, 0);
    assert_int_equal(job_wait(job), -ECANCELED);
    test_wait_until(task.done);
    job_unref(job);
    world_close(&world);
}

struct both_drain {
    struct node *nodes[2];
    struct graph_drain drain;
    bool begun;
};

static void both_drain_run(void *arg) MAY_WAIT
{
    struct both_drain *task = arg;
    assert_int_equal(graph_drain_begin(task->nodes, 2, &task->drain), 0);
    task->begun = true;
}

/* The request that copies is one of those that the drain waits for, and the way to the target is closed:
 * it must not wait there. */
TEST_LOOP(a_drain_of_both_sides_and_a_blocking_copy_do_not_wait_for_each_other)
{
    struct world world;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.write_blocking = true;
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    inject(world.source, &(struct blkdebug_rule){.kinds = BLKDEBUG_READ, .count = 1, .hold = true});
    struct blocks_task task;
    blocks_start_write(&task, world.guest, 65536, 4096, 0xab);
    assert_int_equal(blkdebug_await_held(world.source, 0, 1, DEADLINE_NEVER), 0);
    struct both_drain drain = {.nodes = {world.source, world.target}};
    assert_int_equal(co_spawn(loop_current(), "drain", both_drain_run, &drain), 0);
    co_yield();
    blkdebug_release(world.source, 0);
    test_wait_until(drain.begun);
    assert_true(task.done);
    graph_drain_end(&drain.drain);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

/* The piece has been read already, and is on its way, when the guest rewrites it. */
TEST_LOOP(what_is_rewritten_while_its_copy_is_under_way_is_copied_again)
{
    struct world world;
    world_open(&world);
    const struct blkdebug_rule rule = {
        .kinds = BLKDEBUG_WRITE, .offset_bytes = 2 << 20, .length_bytes = 1 << 20, .hold = true};
    inject(world.target, &rule);
    struct job *job = start_full(&world);
    assert_int_equal(
        blkdebug_await_held(world.target, 0, 1, loop_clock_ns(loop_current()) + NS_PER_S), 0);
    assert_int_equal(blocks_write(world.guest, (2 << 20) + 8192, 4096, 0xaa, 0), 0);
    assert_int_equal(blocks_discard(world.guest, (2 << 20) + 65536, 65536), 0);
    blkdebug_remove(world.target, 0);
    blkdebug_release(world.target, 0);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

/* Else an older copy of a region could overtake a newer one. */
TEST_LOOP(no_region_is_copied_twice_at_once)
{
    struct world world;
    unsigned ids[2];
    world_open(&world);
    for (unsigned i = 0; i < 2; i++) {
        const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE,
                                           .offset_bytes = (2 + i) << 20,
                                           .length_bytes = 1 << 20,
                                           .count = 1,
                                           .hold = true};
        assert_int_equal(blkdebug_inject(world.target, &rule, &ids[i]), 0);
    }
    struct job *job = start_full(&world);
    test_wait_until(job->done_bytes == SIZE_BYTES - (2 << 20));
    assert_int_equal(blocks_write(world.guest, (2 << 20) + 8192, 4096, 0xaa, 0), 0);
    blkdebug_release(world.target, ids[1]);
    co_sleep(5 * NS_PER_MS);
    assert_int_equal(mem_bytes(world.tmem)[(2 << 20) + 8192], 0xee);
    blkdebug_release(world.target, ids[0]);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

/* --- a random guest in all phases --- */

#define GUESTS      3u
#define SLOTS       16u
#define SLOT_BYTES  512u
#define AREA_BYTES  (1024u * 1024)
#define ROUNDS      12u
#define OFTEN_BYTES 20000u

struct guest {
    struct world *world;
    uint64_t seed, base;
    uint64_t sequence; /* of the write under way or done */
    uint8_t model[AREA_BYTES];
    bool stop, done;
};

/* Writes its number into one of its slots, then does something at random. */
static void guest_act(struct guest *guest) MAY_WAIT
{
    struct edge *edge = guest->world->guest;
    uint64_t slot = ++guest->sequence % SLOTS * SLOT_BYTES, first = SLOTS * SLOT_BYTES;
    memcpy(guest->model + slot, &guest->sequence, sizeof(guest->sequence));
    assert_int_equal(blocks_write_bytes(edge, guest->base + slot, guest->model + slot,
                                        sizeof(guest->sequence), 0, 0),
                     0);
    uint64_t offset = first + test_random(&guest->seed) % (AREA_BYTES - first);
    uint64_t length = 1 + test_random(&guest->seed) % OFTEN_BYTES;
    length = MIN(length, AREA_BYTES - offset);
    uint8_t fill = (uint8_t)test_random(&guest->seed);
    if (test_random(&guest->seed) % 4 == 0) {
        assert_int_equal(blocks_zero(edge, guest->base + offset, length, IO_MAY_UNMAP), 0);
        fill = 0;
    } else {
        assert_int_equal(blocks_write(edge, guest->base + offset, length, fill, 0), 0);
    }
    memset(guest->model + offset, fill, length);
}

static void guest_main(void *arg) MAY_WAIT
{
    struct guest *guest = arg;
    while (!guest->stop) {
        guest_act(guest);
        co_sleep(test_random(&guest->seed) % (200 * NS_PER_US));
    }
    guest->done = true;
}

/* A copy of one moment has, of each guest, all writes up to some number and none after it. */
static void expect_one_moment(const uint8_t *bytes, const struct guest *guest)
{
    uint64_t numbers[SLOTS], last = 0;
    for (unsigned i = 0; i < SLOTS; i++) {
        memcpy(&numbers[i], bytes + guest->base + i * SLOT_BYTES, sizeof(numbers[i]));
        last = MAX(last, numbers[i]);
    }
    assert_true(last <= guest->sequence);
    for (unsigned i = 0; i < SLOTS && last > SLOTS; i++) {
        uint64_t wanted = last - (last + SLOTS - i) % SLOTS;
        if (numbers[i] != wanted)
            fail_msg("slot %u has %" PRIu64 ", not %" PRIu64, i, numbers[i], wanted);
    }
}

static void delay_target(struct world *world, uint64_t *seed)
{
    inject(world->target, &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO,
                                                  .nth = 1 + test_random(seed) % 3,
                                                  .count = 3 + test_random(seed) % 20,
                                                  .delay_ns = test_random(seed) % (3 * NS_PER_MS)});
    inject(world->source, &(struct blkdebug_rule){.kinds = BLKDEBUG_READ | BLKDEBUG_WRITE,
                                                  .nth = 1 + test_random(seed) % 9,
                                                  .count = 3 + test_random(seed) % 20,
                                                  .delay_ns = test_random(seed) % (3 * NS_PER_MS)});
}

/* Ends the job at a random moment in a random way; true when the target is a copy. */
static bool end_somehow(struct world *world, struct job *job, uint64_t *seed, bool *ret_pivoted)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    unsigned how = test_random(seed) % 5;
    if (how > 0)
        test_wait_until(job->status == JOB_READY || !job->running);
    co_sleep(test_random(seed) % (20 * NS_PER_MS));
    bool ready = job->status == JOB_READY;
    *ret_pivoted = how >= 3 && ready;
    int ret = how >= 3 && ready ? job_complete(job, &err) : job_cancel(job, how == 1, &err);
    assert_int_equal(ret, 0);
    ret = job_wait(job);
    assert_int_equal(ret, ready && how != 1 ? 0 : -ECANCELED);
    return ret == 0;
}

static void random_round(struct world *world, struct guest *guests, uint64_t *seed) MAY_WAIT
{
    struct mirror_options options = options_of(world);
    options.region_bytes = UINT64_C(4096) << test_random(seed) % 5;
    options.buf_bytes = (1 + test_random(seed) % 8) * MIRROR_PIECE_BYTES;
    options.write_blocking = test_random(seed) % 2 == 0;
    delay_target(world, seed);
    struct job *job = start(world, &options);
    bool pivoted = false, copy = end_somehow(world, job, seed, &pivoted);
    job_unref(job);
    blkdebug_remove(world->source, 0);
    blkdebug_remove(world->target, 0);
    struct node *other = pivoted ? world->source : world->target;
    if (copy) {
        for (unsigned i = 0; i < GUESTS; i++)
            expect_one_moment(mem_bytes(other->file->child), &guests[i]);
    }
    if (pivoted) {
        assert_ptr_equal(world->guest->child, world->target);
        world->target = world->source;
        world->source = world->guest->child;
    }
}

TEST_LOOP(whatever_the_guest_does_and_however_it_ends_the_copy_is_of_one_moment)
{
    struct world world;
    uint64_t seed = test_seed("mirror");
    struct guest *guests = calloc(GUESTS, sizeof(*guests));
    assert_non_null(guests);
    world_open(&world);
    for (unsigned i = 0; i < GUESTS; i++) {
        guests[i].world = &world;
        guests[i].seed = test_random(&seed);
        guests[i].base = i * (AREA_BYTES + UINT64_C(1024));
        memset(mem_bytes(world.smem) + guests[i].base, 0, SLOTS * SLOT_BYTES);
        memcpy(guests[i].model, mem_bytes(world.smem) + guests[i].base, AREA_BYTES);
        assert_int_equal(co_spawn(loop_current(), "guest", guest_main, &guests[i]), 0);
    }
    for (unsigned round = 0; round < ROUNDS; round++)
        random_round(&world, guests, &seed);
    /* Once more with the guests gone at the end: then all bytes must be equal. */
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    for (unsigned i = 0; i < GUESTS; i++)
        guests[i].stop = true;
    for (unsigned i = 0; i < GUESTS; i++)
        test_wait_until(guests[i].done);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    for (unsigned i = 0; i < GUESTS; i++)
        assert_memory_equal(mem_bytes(world.target->file->child) + guests[i].base, guests[i].model,
                            AREA_BYTES);
    free(guests);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sync_none_copies_what_is_written_from_now_on_alone),
        cmocka_unit_test(sync_bitmap_copies_what_a_bitmap_has_marked_and_leaves_it_so),
        cmocka_unit_test(sync_top_copies_what_the_source_holds_itself),
        cmocka_unit_test(holes_are_not_read_and_zeroes_not_written_where_there_are_zeroes),
        cmocka_unit_test(with_write_blocking_a_change_is_on_the_target_when_it_ends),
        cmocka_unit_test(a_blocking_copy_that_fails_is_the_jobs_failure_and_not_the_guests),
        cmocka_unit_test(a_mirror_that_ends_waits_for_requests_that_copy),
        cmocka_unit_test(a_drain_of_both_sides_and_a_blocking_copy_do_not_wait_for_each_other),
        cmocka_unit_test(what_is_rewritten_while_its_copy_is_under_way_is_copied_again),
        cmocka_unit_test(no_region_is_copied_twice_at_once),
        cmocka_unit_test(whatever_the_guest_does_and_however_it_ends_the_copy_is_of_one_moment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
