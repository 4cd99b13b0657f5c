/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mirror job from its making to its end: what ends it, what it refuses, what its failures do. */
#include "mirror_fixture.h"

TEST_LOOP(a_mirror_becomes_ready_and_a_cancel_then_keeps_the_copy)
{
    struct world world;
    world_open(&world);
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job->done_bytes, SIZE_BYTES);
    assert_int_equal(job->total_bytes, SIZE_BYTES);
    assert_int_equal(blocks_write(world.guest, 100000, 5000, 0xaa, 0), 0);
    assert_int_equal(blocks_zero(world.guest, 700000, 100000, 0), 0);
    assert_int_equal(blocks_discard(world.guest, 1024 * 1024, 65536), 0);
    assert_int_equal(blocks_write(world.guest, SIZE_BYTES - 1, 1, 0xab, 0), 0);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    assert_true(mem_stats(world.tmem)->flushes > 0);
    assert_true(has_event(&world, "BLOCK_JOB_READY"));
    assert_true(has_event(&world, "BLOCK_JOB_COMPLETED"));
    assert_false(has_event(&world, "BLOCK_JOB_CANCELLED"));
    /* It is a copy of that moment. */
    assert_int_equal(blocks_write(world.guest, 0, 512, 0xac, 0), 0);
    assert_int_equal(mem_bytes(world.tmem)[0], overlay_backing_byte(0));
    world_close(&world);
}

TEST_LOOP(a_ready_mirror_follows_the_guest_without_being_asked)
{
    struct world world;
    world_open(&world);
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    for (unsigned i = 1; i < 5; i++) {
        assert_int_equal(blocks_write(world.guest, i * 300000, 4096, (uint8_t)i, 0), 0);
        test_wait_until(mem_bytes(world.tmem)[i * 300000 + 4095] == i);
    }
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

TEST_LOOP(a_complete_leads_the_users_of_the_source_to_the_target)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(blocks_write(world.guest, 100000, 5000, 0xaa, 0), 0);
    assert_int_equal(job_complete(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    expect_equal(&world);
    assert_ptr_equal(world.guest->child, world.target);
    assert_int_equal(blocks_write(world.guest, 0, 512, 0xac, 0), 0);
    assert_int_equal(mem_bytes(world.tmem)[0], 0xac);
    assert_int_equal(mem_bytes(world.smem)[0], overlay_backing_byte(0));
    /* And back again. */
    world.source = world.target;
    world.target = graph_find(world.graph, "source");
    job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job_complete(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    expect_equal(&world);
    assert_ptr_equal(world.guest->child, world.target);
    world_close(&world);
}

static struct node *add_filter_above(struct world *world, const char *name, struct node *node)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    struct node *filter = blocks_add(world->graph, "{'node-name':'%s','driver':'pass','file':'%s'}",
                                     name, node->name);
    assert_int_equal(graph_replace_node(world->graph, node, filter, NULL, &err), 0);
    return filter;
}

TEST_LOOP(filters_that_come_during_a_mirror_stay)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    struct node *above_source = add_filter_above(&world, "fs", world.source);
    struct node *above_target = add_filter_above(&world, "ft", world.target);
    assert_int_equal(blocks_write(world.guest, 100000, 5000, 0xaa, 0), 0);
    assert_int_equal(job_complete(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    expect_equal(&world);
    assert_ptr_equal(world.guest->child, above_source);
    assert_ptr_equal(above_source->file->child, above_target);
    world_close(&world);
}

TEST_LOOP(a_target_that_is_replaced_during_a_mirror_fails_it)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct node *other = blocks_add(
        world.graph, "{'node-name':'other','driver':'mem','size':%" PRIu64 "}", SIZE_BYTES);
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(graph_replace_node(world.graph, world.target, other, NULL, &err), 0);
    assert_int_equal(cancel(job_ref(job), false), -EBUSY);
    assert_non_null(strstr(job->err.text, "target 'target' has been replaced"));
    job_unref(job);

    /* What others rely on is not led elsewhere. */
    struct node_blocker blocker;
    job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    node_block(world.source, &blocker, "it is replicated");
    assert_int_equal(job_complete(job, &err), -EBUSY);
    assert_string_equal(err.text, "cannot replace node 'source': it is replicated");
    node_unblock(&blocker);
    assert_int_equal(cancel(job, true), -ECANCELED);
    world_close(&world);
}

TEST_LOOP(a_cancel_before_ready_or_by_force_gives_the_copy_up)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.speed_bytes = 1024 * 1024;
    struct job *job = start(&world, &options);
    test_wait_until(job->done_bytes > 0);
    assert_int_equal(job->status, JOB_RUNNING);
    assert_int_equal(job_complete(job, &err), -EINVAL);
    assert_int_equal(cancel(job, false), -ECANCELED);
    job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    world.event_count = 0;
    assert_int_equal(cancel(job, true), -ECANCELED);
    assert_true(has_event(&world, "BLOCK_JOB_CANCELLED"));
    assert_false(has_event(&world, "BLOCK_JOB_COMPLETED"));
    assert_ptr_equal(world.guest->child, world.source);
    world_close(&world);
}

/* What a guest is told is done before the cancel's answer is in the copy; what it began is in it as
 * a whole, or not at all. */
TEST_LOOP(a_cancel_waits_for_guest_writes_in_flight_and_holds_later_ones)
{
    struct world world;
    struct err err = ERR_INIT;
    struct blocks_task inside, outside;
    world_open(&world);
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    inject(world.source, &(struct blkdebug_rule){
                             .kinds = BLKDEBUG_WRITE, .count = 1, .hold = true, .after = true});
    blocks_start_write(&inside, world.guest, 0, 4096, 0xa1);
    assert_int_equal(
        blkdebug_await_held(world.source, 0, 1, loop_clock_ns(loop_current()) + NS_PER_S), 0);
    assert_int_equal(job_cancel(job, false, &err), 0);
    test_wait_until(world.guest->gate.closed > 0);
    blocks_start_write(&outside, world.guest, 8192, 4096, 0xa2);
    co_sleep(5 * NS_PER_MS);
    assert_false(outside.done);
    assert_true(job->running);
    blkdebug_remove(world.source, 0);
    blkdebug_release(world.source, 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    test_wait_until(inside.done && outside.done);
    assert_int_equal(mem_bytes(world.tmem)[4095], 0xa1);
    assert_int_equal(mem_bytes(world.tmem)[8192], overlay_backing_byte(8192));
    assert_int_equal(mem_bytes(world.smem)[8192], 0xa2);
    world_close(&world);
}

static int refused(struct world *world, const struct mirror_options *options, const char *part)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    struct job *job;
    int ret = mirror_new(&world->jobs, options, &job, &err);
    assert_true(ret < 0);
    if (strstr(err.text, part) == NULL)
        fail_msg("'%s' is not in: %s", part, err.text);
    assert_int_equal(world->jobs.count, 0);
    assert_true(list_empty(&world->source->trackers));
    return ret;
}

TEST_LOOP(targets_that_cannot_be_right_are_refused)
{
    struct world world;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.target = world.source;
    refused(&world, &options, "same disk");
    options.target = world.smem;
    refused(&world, &options, "same disk");
    options.target = blocks_add(world.graph, "{'node-name':'t1','driver':'mem','size':4096}");
    refused(&world, &options, "4096");
    options.target = blocks_add(
        world.graph, "{'node-name':'t2','driver':'mem','size':%" PRIu64 ",'read-only':true}",
        SIZE_BYTES);
    refused(&world, &options, "read-only");
    options = options_of(&world);
    options.region_bytes = 1000;
    refused(&world, &options, "granularity");
    options = options_of(&world);
    struct edge *other = blocks_root(world.graph, world.target, "somebody");
    assert_int_equal(refused(&world, &options, "somebody"), -EPERM);
    graph_detach(other);
    world_close(&world);
}

TEST_LOOP(nobody_resizes_or_writes_the_target_of_a_mirror)
{
    struct world world;
    struct err err = ERR_INIT;
    struct edge *edge;
    world_open(&world);
    struct job *job = start_full(&world);
    assert_int_equal(graph_attach_root(world.graph, world.target, "late", PERM_WRITE, PERM_ALL,
                                       NULL, NULL, &edge, &err),
                     -EPERM);
    assert_non_null(strstr(err.text, "mirror job 'm'"));
    assert_int_equal(graph_attach_root(world.graph, world.source, "late", PERM_RESIZE, PERM_ALL,
                                       NULL, NULL, &edge, &err),
                     -EPERM);
    assert_int_equal(cancel(job, true), -ECANCELED);
    world_close(&world);
}

TEST_LOOP(a_mirror_that_fails_says_where_and_leaves_the_guest_alone)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    inject(world.target, &(struct blkdebug_rule){
                             .kinds = BLKDEBUG_WRITE, .offset_bytes = 3 << 20, .error = -ENOSPC});
    expect_failure(&world, start_full(&world), -ENOSPC, "target node 'target'");
    inject(world.source,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_READ, .offset_bytes = 2 << 20, .error = -EIO});
    expect_failure(&world, start_full(&world), -EIO, "offset 2097152 of source node 'source'");
    inject(world.source, &(struct blkdebug_rule){.kinds = BLKDEBUG_EXTENTS, .error = -EIO});
    expect_failure(&world, start_full(&world), -EIO, "map");

    /* The target goes while the job is ready; and in the last step. */
    struct job *job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    inject(world.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_ANY, .error = -EPIPE});
    assert_int_equal(blocks_write(world.guest, 65536, 4096, 0xab, 0), 0);
    expect_failure(&world, job, -EPIPE, "target");
    job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    inject(world.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .nth = 2, .error = -EIO});
    assert_int_equal(job_complete(job, &err), 0);
    expect_failure(&world, job, -EIO, "flush");

    job = start_full(&world);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

TEST_LOOP(what_fails_and_is_ignored_is_tried_again_until_the_copy_is_whole)
{
    struct world world;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.on_source_error = options.on_target_error = JOB_ON_ERROR_IGNORE;
    inject(world.target,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 3, .error = -EIO});
    inject(world.target,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .count = 2, .error = -EIO});
    inject(world.source,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_READ, .count = 2, .error = -EIO});
    inject(world.source,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_EXTENTS, .count = 2, .error = -EIO});
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_READY);
    assert_memory_equal(mem_bytes(world.smem), mem_bytes(world.tmem), SIZE_BYTES);
    assert_true(has_event(&world, "BLOCK_JOB_ERROR"));
    assert_int_equal(blocks_write(world.guest, 65536, 4096, 0xab, 0), 0);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

/* Also in the last step, for which the guest is held: it is let go meanwhile. */
TEST_LOOP(an_error_that_stops_a_mirror_waits_for_a_user_and_the_guest_for_neither)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.on_target_error = JOB_ON_ERROR_ENOSPC;
    inject(world.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .error = -ENOSPC});
    struct job *job = start(&world, &options);
    test_wait_until(job->status == JOB_PAUSED);
    assert_int_equal(job->io_error, -ENOSPC);
    assert_int_equal(blocks_write(world.guest, 65536, 4096, 0xab, 0), 0);
    blkdebug_remove(world.target, 0);
    assert_int_equal(job_resume(job, &err), 0);
    test_wait_until(job->status == JOB_READY);
    assert_int_equal(job->io_error, 0);

    inject(world.target,
           &(struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .nth = 2, .error = -ENOSPC});
    assert_int_equal(job_cancel(job, false, &err), 0);
    test_wait_until(job->status == JOB_STANDBY);
    assert_int_equal(blocks_write(world.guest, 0, 4096, 0xac, 0), 0);
    blkdebug_remove(world.target, 0);
    assert_int_equal(job_resume(job, &err), 0);
    assert_int_equal(job_wait(job), 0);
    job_unref(job);
    expect_equal(&world);

    /* Of another kind than out of space: it fails. */
    inject(world.target, &(struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .error = -EIO});
    expect_failure(&world, start(&world, &options), -EIO, "offset 0 of target node 'target'");
    world_close(&world);
}

TEST_LOOP(a_source_or_target_that_changes_its_length_fails_the_job)
{
    for (unsigned i = 0; i < 4; i++) {
        struct world world;
        world_open(&world);
        struct mirror_options options = options_of(&world);
        options.speed_bytes = i < 2 ? 1024 * 1024 : 0;
        struct job *job = start(&world, &options);
        test_wait_until(i < 2 ? job->done_bytes > 0 : job->status == JOB_READY);
        struct node *node = i % 2 == 0 ? world.tmem : world.smem;
        node_set_length(node, SIZE_BYTES - 65536);
        assert_int_equal(job_set_speed(job, 0, &(struct err)ERR_INIT), 0);
        assert_int_equal(job_wait(job), -EBUSY);
        assert_non_null(strstr(job->err.text, i % 2 == 0 ? "target node 'target' has now"
                                                         : "source node 'source' has now"));
        job_unref(job);
        node_set_length(node, SIZE_BYTES);
        assert_int_equal(blocks_write(world.guest, 0, 4096, 0xaa, 0), 0);
        world_close(&world);
    }
}

TEST_LOOP(a_mirror_pauses_and_keeps_to_its_speed)
{
    struct world world;
    struct err err = ERR_INIT;
    world_open(&world);
    struct mirror_options options = options_of(&world);
    options.speed_bytes = 10 * 1024 * 1024;
    options.buf_bytes = 2 * MIRROR_PIECE_BYTES;
    uint64_t begin_ns = loop_clock_ns(loop_current());
    struct job *job = start(&world, &options);
    test_wait_until(job->done_bytes > 0);
    assert_int_equal(job_pause(job, &err), 0);
    test_wait_until(job->status == JOB_PAUSED);
    co_sleep(20 * NS_PER_MS);
    uint64_t done_bytes = job->done_bytes;
    co_sleep(300 * NS_PER_MS);
    assert_int_equal(job->done_bytes, done_bytes);
    assert_int_equal(job_resume(job, &err), 0);
    test_wait_until(job->status == JOB_RUNNING);
    test_wait_until(job->status == JOB_READY);
    assert_true(loop_clock_ns(loop_current()) - begin_ns > 300 * NS_PER_MS);
    assert_int_equal(job_set_speed(job, 0, &err), 0);
    assert_int_equal(job_pause(job, &err), 0);
    test_wait_until(job->status == JOB_STANDBY);
    assert_int_equal(blocks_write(world.guest, 0, 4096, 0xaa, 0), 0);
    co_sleep(50 * NS_PER_MS);
    assert_int_equal(mem_bytes(world.tmem)[0], overlay_backing_byte(0));
    assert_int_equal(job_resume(job, &err), 0);
    test_wait_until(mem_bytes(world.tmem)[0] == 0xaa);
    assert_int_equal(cancel(job, false), 0);
    expect_equal(&world);
    world_close(&world);
}

TEST_LOOP(the_end_of_the_daemon_ends_a_mirror_in_any_phase)
{
    for (unsigned ready = 0; ready < 2; ready++) {
        struct world world;
        world_open(&world);
        struct mirror_options options = options_of(&world);
        options.speed_bytes = ready ? 0 : 1024 * 1024;
        struct job *job = start(&world, &options);
        if (ready)
            test_wait_until(job->status == JOB_READY);
        job_unref(job);
        world_close(&world);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mirror_becomes_ready_and_a_cancel_then_keeps_the_copy),
        cmocka_unit_test(a_ready_mirror_follows_the_guest_without_being_asked),
        cmocka_unit_test(a_complete_leads_the_users_of_the_source_to_the_target),
        cmocka_unit_test(filters_that_come_during_a_mirror_stay),
        cmocka_unit_test(a_target_that_is_replaced_during_a_mirror_fails_it),
        cmocka_unit_test(a_cancel_before_ready_or_by_force_gives_the_copy_up),
        cmocka_unit_test(a_cancel_waits_for_guest_writes_in_flight_and_holds_later_ones),
        cmocka_unit_test(targets_that_cannot_be_right_are_refused),
        cmocka_unit_test(nobody_resizes_or_writes_the_target_of_a_mirror),
        cmocka_unit_test(a_mirror_that_fails_says_where_and_leaves_the_guest_alone),
        cmocka_unit_test(what_fails_and_is_ignored_is_tried_again_until_the_copy_is_whole),
        cmocka_unit_test(an_error_that_stops_a_mirror_waits_for_a_user_and_the_guest_for_neither),
        cmocka_unit_test(a_source_or_target_that_changes_its_length_fails_the_job),
        cmocka_unit_test(a_mirror_pauses_and_keeps_to_its_speed),
        cmocka_unit_test(the_end_of_the_daemon_ends_a_mirror_in_any_phase),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
