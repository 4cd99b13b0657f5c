/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Commits by the mirror job: guest -> top (overlay) -> middle (overlay) -> base (a disk in memory).
 */
#include "overlay_fixture.h"

#include "jobs/chain.h"
#include "jobs/mirror.h"

#define SIZE_BYTES (UINT64_C(4) * 1024 * 1024)
#define ROUNDS     200u

struct world {
    struct graph *graph;
    struct node *top, *middle, *base;
    struct edge *guest;
    struct job_list jobs;
    uint8_t *model; /* what the guest sees */
    uint64_t seed;
    enum job_on_error on_error;
    bool guest_runs, guest_ends;
};

static struct node *add_overlay(struct world *world, const char *name, const char *backing) MAY_WAIT
{
    overlay_make(test_path(name), SIZE_BYTES, 0, 0);
    return blocks_add(world->graph,
                      "{'node-name':'%s','driver':'overlay','backing':'%s',"
                      "'file':{'driver':'file','filename':'%s'}}",
                      name, backing, test_path(name));
}

static void guest_write(struct world *world) MAY_WAIT
{
    uint64_t offset = test_random(&world->seed) % SIZE_BYTES;
    uint64_t wanted = 1 + test_random(&world->seed) % 20000;
    uint64_t length = MIN(wanted, SIZE_BYTES - offset);
    uint8_t fill = (uint8_t)(test_random(&world->seed) % 3);
    int ret = fill == 0 ? blocks_zero(world->guest, offset, length, IO_MAY_UNMAP)
                        : blocks_write(world->guest, offset, length, fill, 0);
    assert_int_equal(ret, 0);
    memset(world->model + offset, fill, length);
}

static void world_open(struct world *world) MAY_WAIT
{
    *world = (struct world){.graph = blocks_graph(), .seed = test_seed("commit_chain")};
    job_list_init(&world->jobs, world->graph);
    world->base = blocks_add(world->graph,
                             "{'node-name':'base','driver':'mem','size':%" PRIu64
                             ",'yields':1,'read-only':true}",
                             SIZE_BYTES);
    world->model = malloc(SIZE_BYTES);
    assert_non_null(world->model);
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        world->model[i] = mem_bytes(world->base)[i] = overlay_backing_byte(i);
    world->middle = add_overlay(world, "middle", "base");
    world->guest = blocks_root(world->graph, world->middle, "guest");
    for (unsigned round = 0; round < 20; round++)
        guest_write(world);
    graph_detach(world->guest);
    world->top = add_overlay(world, "top", "middle");
    world->guest = blocks_root(world->graph, world->top, "guest");
    for (unsigned round = 0; round < 20; round++)
        guest_write(world);
}

static void expect_model(struct world *world) MAY_WAIT
{
    uint8_t *seen = malloc(SIZE_BYTES);
    assert_non_null(seen);
    assert_int_equal(blocks_read_bytes(world->guest, 0, seen, SIZE_BYTES, 0), 0);
    assert_memory_equal(seen, world->model, SIZE_BYTES);
    free(seen);
}

static void world_close(struct world *world) MAY_WAIT
{
    world->guest_ends = true;
    test_wait_until(!world->guest_runs);
    expect_model(world);
    job_list_end(&world->jobs);
    graph_detach(world->guest);
    graph_free(world->graph);
    free(world->model);
    test_folder_remove();
}

static void guest_main(void *arg) MAY_WAIT
{
    struct world *world = arg;
    for (unsigned round = 0; round < ROUNDS || !world->guest_ends; round++) {
        guest_write(world);
        co_sleep(NS_PER_MS / 10);
    }
    world->guest_runs = false;
}

static void start_guest(struct world *world)
{
    world->guest_runs = true;
    assert_int_equal(co_spawn(loop_current(), "guest", guest_main, world), 0);
}

static int try_start(struct world *world, enum mirror_kind kind, struct node *source,
                     struct node *target, struct job **ret_job, struct err *err) MAY_WAIT
{
    const struct mirror_options options = {
        .kind = kind,
        .id = "c",
        .source = source,
        .target = target,
        .sync = MIRROR_SYNC_TOP,
        .on_source_error = world->on_error,
        .on_target_error = world->on_error,
    };
    return mirror_new(&world->jobs, &options, ret_job, err);
}

static struct job *start(struct world *world, enum mirror_kind kind, struct node *source,
                         struct node *target) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct job *job;
    if (try_start(world, kind, source, target, &job, &err) < 0)
        fail_msg("%s", err.text);
    assert_string_equal(job->driver->type, "commit");
    assert_int_equal(job_start(job_ref(job), &err), 0);
    return job;
}

static int finish(struct job *job) MAY_WAIT
{
    int ret = job_wait(job);
    job_unref(job);
    return ret;
}

TEST_LOOP(a_guest_on_the_top_ends_on_the_base_with_all_it_wrote)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    start_guest(&world);
    struct job *job = start(&world, MIRROR_COMMIT_ACTIVE, world.top, world.base);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job_complete(job, &err), 0);
    assert_int_equal(finish(job), 0);
    assert_ptr_equal(world.guest->child, world.base);
    assert_false(world.base->read_only);
    world_close(&world);
}

TEST_LOOP(a_cancel_when_ready_leaves_the_base_whole_and_the_guest_where_it_is)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = start(&world, MIRROR_COMMIT_ACTIVE, world.top, world.base);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job_cancel(job, false, &err), 0);
    assert_int_equal(finish(job), 0);
    assert_ptr_equal(world.guest->child, world.top);
    assert_memory_equal(mem_bytes(world.base), world.model, SIZE_BYTES);
    assert_true(world.base->read_only);
    world_close(&world);
}

TEST_LOOP(a_layer_in_between_goes_by_itself_under_a_guest)
{
    struct world world;
    world_open(&world);
    start_guest(&world);
    struct job *job = start(&world, MIRROR_COMMIT, world.middle, world.base);
    assert_int_equal(finish(job), 0);
    assert_ptr_equal(world.guest->child, world.top);
    assert_ptr_equal(node_child(world.top, "backing")->child, world.base);
    assert_true(world.base->read_only);
    assert_true(list_empty(&world.middle->parents));
    world_close(&world);
}

TEST_LOOP(a_commit_that_fails_leaves_the_chain_as_it_shows)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .nth = 2, .error = -EIO};
    assert_int_equal(graph_reopen(world.base, false, &err), 0);
    struct node *debug = blocks_add(world.graph,
                                    "{'node-name':'debug','driver':'blkdebug','file':'base'}");
    assert_int_equal(graph_replace(node_child(world.middle, "backing"), debug, &err), 0);
    assert_int_equal(blkdebug_inject(debug, &rule, NULL), 0);
    struct job *job = start(&world, MIRROR_COMMIT, world.middle, debug);
    assert_int_equal(finish(job), -EIO);
    expect_model(&world);
    world.on_error = JOB_ON_ERROR_STOP;
    job = start(&world, MIRROR_COMMIT, world.middle, debug);
    test_wait_until(job->status == JOB_PAUSED);
    expect_model(&world);
    assert_int_equal(job_cancel(job, true, &err), 0);
    assert_int_equal(finish(job), -ECANCELED);
    blkdebug_remove(debug, 0);
    job = start(&world, MIRROR_COMMIT, world.middle, debug);
    assert_int_equal(finish(job), 0);
    world_close(&world);
}

TEST_LOOP(what_others_use_or_what_is_no_chain_is_refused)
{
    struct world world;
    struct err err = ERR_INIT;
    struct job *job;
    world_open(&world);
    assert_int_equal(try_start(&world, MIRROR_COMMIT, world.middle, world.top, &job, &err),
                     -EINVAL);
    assert_int_equal(try_start(&world, MIRROR_COMMIT, world.middle, world.middle, &job, &err),
                     -EINVAL);
    struct node *other = add_overlay(&world, "other", "base");
    struct edge *user = blocks_root(world.graph, other, "user");
    assert_int_equal(try_start(&world, MIRROR_COMMIT, world.middle, world.base, &job, &err),
                     -EBUSY);
    assert_non_null(strstr(err.text, "'other'"));
    assert_true(world.base->read_only);
    assert_null(job_next(&world.jobs, NULL));
    assert_true(chain_contains(other, world.base));
    assert_false(chain_contains(other, world.middle));
    graph_detach(user);
    assert_int_equal(finish(start(&world, MIRROR_COMMIT, world.middle, world.base)), 0);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_guest_on_the_top_ends_on_the_base_with_all_it_wrote),
        cmocka_unit_test(a_cancel_when_ready_leaves_the_base_whole_and_the_guest_where_it_is),
        cmocka_unit_test(a_layer_in_between_goes_by_itself_under_a_guest),
        cmocka_unit_test(a_commit_that_fails_leaves_the_chain_as_it_shows),
        cmocka_unit_test(what_others_use_or_what_is_no_chain_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
