/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The commit job by itself: active -> hidden -> bdebug (blkdebug) -> file. */
#include "replication_fixture.h"

#include "jobs/commit.h"

#define BLOCK        ((size_t)4096)
#define REGION_BYTES (64u * 1024)
#define DISK_BYTES   (UINT64_C(8) * 1024 * 1024)

struct world {
    struct fix fix; /* the graph of S is used, and no group */
    struct edge *from, *to;
    struct range_locks locks;
    struct bitmap *rewritten;
    bool write_through;
    unsigned holds, finishes, releases;
    int finish_error;
    char failed_node[NODE_NAME_BYTES];
    uint64_t failed_offset;
};

static const struct node *world_base(void *arg)
{
    struct world *world = arg;
    return node_child(graph_find(world->fix.s.graph, "hidden"), "backing")->child;
}

static void world_copied(void *arg)
{
    struct world *world = arg;
    world->write_through = true;
}

static int world_hold(void *arg, struct err *err) MAY_WAIT
{
    struct world *world = arg;
    world->holds++;
    /* A hold in small: nobody has a lock, and nobody gets one. */
    struct range_lock lock;
    range_lock_acquire(&world->locks, &lock, 0, DISK_BYTES, true);
    range_lock_release(&world->locks, &lock);
    return 0;
}

static int world_finish(void *arg, struct err *err) MAY_WAIT
{
    struct world *world = arg;
    world->finishes++;
    assert_int_equal(bitmap_count(world->rewritten), 0);
    return world->finish_error == 0 ? 0 : err_set(err, world->finish_error, "the test says no");
}

static void world_release(void *arg)
{
    struct world *world = arg;
    world->releases++;
}

static void world_failed(void *arg, const struct node *where, uint64_t offset_bytes,
                         uint64_t length_bytes, int code)
{
    struct world *world = arg;
    snprintf(world->failed_node, sizeof(world->failed_node), "%s", where->name);
    world->failed_offset = offset_bytes;
}

static void world_attach(struct world *world) MAY_WAIT
{
    struct graph *graph = world->fix.s.graph;
    fix_ok(graph_attach_root(graph, graph_find(graph, "active"), "from",
                             PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL, NULL, &world->from,
                             &err));
    fix_ok(graph_attach_root(graph, graph_find(graph, "bdebug"), "to",
                             PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL, NULL, &world->to,
                             &err));
    range_locks_init(&world->locks);
    world->rewritten = bitmap_new(DISK_BYTES / REGION_BYTES);
    assert_non_null(world->rewritten);
}

static void world_open(struct world *world) MAY_WAIT
{
    *world = (struct world){0};
    struct fix *fix = &world->fix;
    fix_open_empty(fix, 0);
    fix->length_bytes = DISK_BYTES;
    fix_add_disk_file(fix, 0);
    fix_add_image(fix, "active", 0);
    fix_add_image(fix, "hidden", 0);
    struct fix_paths paths = fix_paths_of(0);
    fix_add(fix->s.graph,
            "{'driver':'blkdebug','node-name':'bdebug','file':{'driver':'file','filename':'%s'}}",
            paths.raw);
    fix_add(fix->s.graph,
            "{'driver':'overlay','node-name':'hidden','backing':'bdebug',"
            "'file':{'driver':'file','filename':'%s'}}",
            paths.hidden);
    fix_add(fix->s.graph,
            "{'driver':'overlay','node-name':'active','backing':'hidden',"
            "'file':{'driver':'file','filename':'%s'}}",
            paths.active);
    world_attach(world);
}

static void add_image_in_memory(struct graph *graph, const char *name, const char *backing) MAY_WAIT
{
    const struct overlay_create create = {.virtual_bytes = DISK_BYTES};
    char file[64];
    snprintf(file, sizeof(file), "%s-file", name);
    fix_add(graph, "{'driver':'mem','node-name':'%s','size':%" PRIu64 "}", file, 2 * DISK_BYTES);
    struct edge *edge = blocks_root(graph, graph_find(graph, file), "create");
    fix_ok(overlay_create_in(edge, &create, &err));
    graph_detach(edge);
    fix_add(graph, "{'driver':'overlay','node-name':'%s','backing':'%s','file':'%s'}", name,
            backing, file);
}

/* All of it on disks that never wait. */
static void world_open_in_memory(struct world *world) MAY_WAIT
{
    *world = (struct world){0};
    fix_open_empty(&world->fix, 0);
    struct graph *graph = world->fix.s.graph;
    fix_add(graph, "{'driver':'mem','node-name':'disk','size':%" PRIu64 "}", DISK_BYTES);
    fix_add(graph, "{'driver':'blkdebug','node-name':'bdebug','file':'disk'}");
    add_image_in_memory(graph, "hidden", "bdebug");
    add_image_in_memory(graph, "active", "hidden");
    world_attach(world);
}

static void world_close(struct world *world) MAY_WAIT
{
    graph_detach(world->from);
    graph_detach(world->to);
    bitmap_free(world->rewritten);
    fix_close(&world->fix);
}

/* Fills a layer with blocks of one byte. */
static void fill_layer(struct world *world, const char *layer, uint64_t offset, size_t length,
                       int byte) MAY_WAIT
{
    struct edge *edge;
    struct graph *graph = world->fix.s.graph;
    fix_ok(graph_attach_root(graph, graph_find(graph, layer), "filler",
                             PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL, NULL, &edge, &err));
    assert_int_equal(
        byte == 0 ? fix_zero(edge, offset, length) : fix_fill(edge, offset, length, byte), 0);
    graph_detach(edge);
}

static struct job *commit_start(struct world *world) MAY_WAIT
{
    const struct commit_options options = {
        .id = "merge",
        .from = world->from,
        .to = world->to,
        .base = world_base,
        .locks = &world->locks,
        .rewritten = world->rewritten,
        .region_bytes = REGION_BYTES,
        .copied = world_copied,
        .hold = world_hold,
        .finish = world_finish,
        .release = world_release,
        .failed = world_failed,
        .arg = world,
    };
    struct job *job;
    fix_ok(commit_new(&world->fix.s.jobs, &options, &job, &err));
    job_ref(job);
    fix_ok(job_start(job, &err));
    return job;
}

static int commit_run_once(struct world *world) MAY_WAIT
{
    struct job *job = commit_start(world);
    int ret = job_wait(job);
    job_unref(job);
    return ret;
}

static struct node *bdebug(struct world *world)
{
    return graph_find(world->fix.s.graph, "bdebug");
}

TEST_LOOP(a_commit_copies_what_the_layers_hold_the_upper_one_first)
{
    struct world world;
    world_open(&world);
    assert_int_equal(fix_fill(world.to, 0, DISK_BYTES, 1), 0);
    fill_layer(&world, "hidden", 0, 4 * BLOCK, 2);
    fill_layer(&world, "active", 2 * BLOCK, 4 * BLOCK, 3);
    fill_layer(&world, "active", DISK_BYTES - BLOCK, BLOCK, 4);
    struct job *job = commit_start(&world);
    assert_int_equal(job_wait(job), 0);
    assert_int_equal(job->total_bytes, 7 * BLOCK);
    assert_int_equal(job->done_bytes, 7 * BLOCK);
    job_unref(job);
    assert_int_equal(fix_byte(world.to, 0, 2 * BLOCK), 2);
    assert_int_equal(fix_byte(world.to, 2 * BLOCK, 4 * BLOCK), 3);
    assert_int_equal(fix_byte(world.to, 6 * BLOCK, 1024 * BLOCK), 1);
    assert_int_equal(fix_byte(world.to, DISK_BYTES - 2 * BLOCK, BLOCK), 1);
    assert_int_equal(fix_byte(world.to, DISK_BYTES - BLOCK, BLOCK), 4);
    assert_int_equal(world.holds, 1);
    assert_int_equal(world.finishes, 1);
    assert_int_equal(world.releases, 1);
    world_close(&world);
}

TEST_LOOP(a_commit_of_empty_layers_touches_nothing)
{
    struct world world;
    unsigned id;
    world_open(&world);
    assert_int_equal(
        blkdebug_inject(bdebug(&world),
                        &(struct blkdebug_rule){
                            .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO | BLKDEBUG_READ, .error = -EIO},
                        &id),
        0);
    assert_int_equal(commit_run_once(&world), 0);
    assert_int_equal(blkdebug_matches(bdebug(&world), id), 0);
    world_close(&world);
}

/* 2 MiB in 512 blocks that alternate between the layers: written in large pieces all the same. */
TEST_LOOP(a_commit_writes_in_large_pieces)
{
    struct world world;
    unsigned id;
    world_open(&world);
    for (unsigned i = 0; i < 512; i++)
        fill_layer(&world, i % 2 == 0 ? "active" : "hidden", i * BLOCK, BLOCK, 1 + i % 2);
    assert_int_equal(
        blkdebug_inject(bdebug(&world), &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE}, &id), 0);
    assert_int_equal(commit_run_once(&world), 0);
    assert_true(blkdebug_matches(bdebug(&world), id) <= 4);
    for (unsigned i = 0; i < 512; i++)
        assert_int_equal(fix_byte(world.to, i * BLOCK, BLOCK), 1 + i % 2);
    world_close(&world);
}

TEST_LOOP(a_commit_carries_zeroes_as_zeroes)
{
    struct world world;
    unsigned id;
    world_open(&world);
    assert_int_equal(fix_fill(world.to, 0, DISK_BYTES, 1), 0);
    fill_layer(&world, "active", 0, 2 * 1024 * 1024, 0);
    fill_layer(&world, "hidden", 3 * 1024 * 1024, 128 * 1024, 0);
    fill_layer(&world, "hidden", 3 * 1024 * 1024 + 128 * 1024, BLOCK, 5);
    assert_int_equal(
        blkdebug_inject(bdebug(&world), &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE}, &id), 0);
    assert_int_equal(commit_run_once(&world), 0);
    assert_int_equal(blkdebug_matches(bdebug(&world), id), 1);
    assert_int_equal(fix_byte(world.to, 0, 2 * 1024 * 1024), 0);
    assert_int_equal(fix_byte(world.to, 2 * 1024 * 1024, 1024 * 1024), 1);
    assert_int_equal(fix_byte(world.to, 3 * 1024 * 1024, 128 * 1024), 0);
    assert_int_equal(fix_byte(world.to, 3 * 1024 * 1024 + 128 * 1024, BLOCK), 5);
    world_close(&world);
}

/* A hole costs a file system milliseconds, whatever its size. */
TEST_LOOP(short_zeroes_are_written_not_punched)
{
    struct world world;
    unsigned id;
    world_open(&world);
    assert_int_equal(fix_fill(world.to, 0, DISK_BYTES, 1), 0);
    for (unsigned i = 0; i < 16; i++)
        fill_layer(&world, "hidden", i * UINT64_C(131072), BLOCK, 0);
    assert_int_equal(
        blkdebug_inject(bdebug(&world), &(struct blkdebug_rule){.kinds = BLKDEBUG_ZERO}, &id), 0);
    assert_int_equal(commit_run_once(&world), 0);
    assert_int_equal(blkdebug_matches(bdebug(&world), id), 0);
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(fix_byte(world.to, i * UINT64_C(131072), BLOCK), 0);
        assert_int_equal(fix_byte(world.to, i * UINT64_C(131072) + BLOCK, BLOCK), 1);
    }
    world_close(&world);
}

/* As the replication filter does it. */
static void guest_write(struct world *world, uint64_t offset, size_t length, int byte) MAY_WAIT
{
    struct range_lock lock;
    uint64_t first = offset / REGION_BYTES, last = (offset + length - 1) / REGION_BYTES;
    range_lock_acquire(&world->locks, &lock, first * REGION_BYTES,
                       (last - first + 1) * REGION_BYTES, true);
    bitmap_set_range(world->rewritten, first, last - first + 1);
    assert_int_equal(fix_fill(world->from, offset, length, byte), 0);
    range_lock_release(&world->locks, &lock);
}

TEST_LOOP(a_commit_copies_again_what_is_rewritten_behind_it)
{
    struct world world;
    world_open(&world);
    fill_layer(&world, "active", 0, 4 * 1024 * 1024, 1);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE,
                                       .offset_bytes = 3 * 1024 * 1024,
                                       .length_bytes = BLOCK,
                                       .hold = true};
    assert_int_equal(blkdebug_inject(bdebug(&world), &rule, NULL), 0);
    struct job *job = commit_start(&world);
    assert_int_equal(
        blkdebug_await_held(bdebug(&world), 0, 1, loop_clock_ns(world.fix.loop) + 10 * NS_PER_S),
        0);
    test_wait_until(job->done_bytes == 3 * 1024 * 1024);
    guest_write(&world, BLOCK, 2 * BLOCK, 7);
    for (unsigned i = 2; i < 10; i += 2)
        guest_write(&world, i * REGION_BYTES, BLOCK, 8);
    assert_false(world.write_through);
    blkdebug_remove(bdebug(&world), 0);
    blkdebug_release(bdebug(&world), 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    assert_int_equal(fix_byte(world.to, 0, BLOCK), 1);
    assert_int_equal(fix_byte(world.to, BLOCK, 2 * BLOCK), 7);
    assert_int_equal(fix_byte(world.to, 3 * BLOCK, BLOCK), 1);
    for (unsigned i = 2; i < 10; i += 2)
        assert_int_equal(fix_byte(world.to, i * REGION_BYTES, BLOCK), 8);
    assert_true(world.write_through);
    world_close(&world);
}

TEST_LOOP(a_commit_that_fails_says_where_and_can_be_begun_anew)
{
    struct world world;
    world_open(&world);
    fill_layer(&world, "active", 0, 2 * 1024 * 1024, 1);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE,
                                       .offset_bytes = 1024 * 1024,
                                       .length_bytes = BLOCK,
                                       .count = 1,
                                       .error = -ENOSPC};
    assert_int_equal(blkdebug_inject(bdebug(&world), &rule, NULL), 0);
    struct job *job = commit_start(&world);
    assert_int_equal(job_wait(job), -ENOSPC);
    assert_non_null(strstr(job->err.text, "'bdebug'"));
    job_unref(job);
    assert_string_equal(world.failed_node, "bdebug");
    assert_int_equal(world.failed_offset, 1024 * 1024);
    assert_int_equal(world.finishes, 0);
    assert_int_equal(commit_run_once(&world), 0);
    assert_int_equal(fix_byte(world.to, 0, 2 * 1024 * 1024), 1);
    world_close(&world);
}

TEST_LOOP(a_commit_whose_finish_or_flush_fails_has_not_happened)
{
    struct world world;
    world_open(&world);
    fill_layer(&world, "active", 0, BLOCK, 1);
    const struct blkdebug_rule rule = {
        .kinds = BLKDEBUG_FLUSH, .nth = 2, .count = 1, .error = -EIO};
    assert_int_equal(blkdebug_inject(bdebug(&world), &rule, NULL), 0);
    assert_int_equal(commit_run_once(&world), -EIO);
    assert_int_equal(world.finishes, 0);
    assert_int_equal(world.releases, 1);
    world.finish_error = -ENOTSUP;
    assert_int_equal(commit_run_once(&world), -ENOTSUP);
    assert_int_equal(world.releases, 2);
    world.finish_error = 0;
    assert_int_equal(commit_run_once(&world), 0);
    world_close(&world);
}

TEST_LOOP(a_commit_can_be_interrupted_anywhere_and_ends_with_the_same_bytes)
{
    struct world world;
    uint64_t seed = test_seed("a_commit_can_be_interrupted");
    world_open(&world);
    uint8_t *wanted = malloc(DISK_BYTES), *seen = malloc(DISK_BYTES);
    assert_non_null(wanted);
    assert_non_null(seen);
    for (unsigned i = 0; i < 300; i++)
        fill_layer(&world, test_random(&seed) % 2 == 0 ? "active" : "hidden",
                   test_random(&seed) % (DISK_BYTES / BLOCK) * BLOCK, BLOCK,
                   (int)(test_random(&seed) % 256));
    assert_int_equal(fix_read(world.from, 0, wanted, DISK_BYTES), 0);
    for (unsigned turns = 1; turns < 40; turns++) {
        struct job *job = commit_start(&world);
        for (unsigned i = 0; i < turns; i++)
            co_yield();
        job_interrupt(job);
        int ret = job_wait(job);
        assert_true(ret == 0 || ret == -ECANCELED);
        job_unref(job);
        assert_int_equal(fix_read(world.from, 0, seen, DISK_BYTES), 0);
        assert_memory_equal(seen, wanted, DISK_BYTES);
    }
    assert_int_equal(commit_run_once(&world), 0);
    assert_int_equal(fix_read(world.to, 0, seen, DISK_BYTES), 0);
    assert_memory_equal(seen, wanted, DISK_BYTES);
    free(wanted);
    free(seen);
    world_close(&world);
}

TEST_LOOP(others_have_a_turn_after_each_piece_also_when_nothing_waits)
{
    struct world world;
    world_open_in_memory(&world);
    for (uint64_t at = 0; at < DISK_BYTES; at += COMMIT_PIECE_BYTES)
        fill_layer(&world, "active", at, BLOCK, 1);
    uint64_t turns = loop_turns(loop_current());
    assert_int_equal(commit_run_once(&world), 0);
    assert_true(loop_turns(loop_current()) - turns >= DISK_BYTES / COMMIT_PIECE_BYTES);
    world_close(&world);
}

/* The job looks up 2048 stretches before it copies the first; the test may look first, or after 256. */
TEST_LOOP(others_have_turns_while_a_commit_looks_for_what_is_held)
{
    struct world world;
    unsigned looks = 0;
    world_open_in_memory(&world);
    for (uint64_t at = 0; at < DISK_BYTES; at += 2 * BLOCK)
        fill_layer(&world, "active", at, BLOCK, 1);
    struct job *job = commit_start(&world);
    while (job->total_bytes < DISK_BYTES / 2) {
        looks++;
        co_sleep_until(loop_now_ns(loop_current()));
    }
    assert_in_range(looks, 2048 / 256 - 1, 2048);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    assert_int_equal(fix_byte(world.to, DISK_BYTES - 2 * BLOCK, BLOCK), 1);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_commit_copies_what_the_layers_hold_the_upper_one_first),
        cmocka_unit_test(a_commit_of_empty_layers_touches_nothing),
        cmocka_unit_test(a_commit_writes_in_large_pieces),
        cmocka_unit_test(a_commit_carries_zeroes_as_zeroes),
        cmocka_unit_test(short_zeroes_are_written_not_punched),
        cmocka_unit_test(a_commit_copies_again_what_is_rewritten_behind_it),
        cmocka_unit_test(a_commit_that_fails_says_where_and_can_be_begun_anew),
        cmocka_unit_test(a_commit_whose_finish_or_flush_fails_has_not_happened),
        cmocka_unit_test(a_commit_can_be_interrupted_anywhere_and_ends_with_the_same_bytes),
        cmocka_unit_test(others_have_a_turn_after_each_piece_also_when_nothing_waits),
        cmocka_unit_test(others_have_turns_while_a_commit_looks_for_what_is_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
