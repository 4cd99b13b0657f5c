/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The failover: the fence, what is served meanwhile, the merge and its end, the next daemon. */
#include "group_fixture.h"

#include "replication/group_internal.h"

static void late_user_write(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->top[0], 0, BLOCK, 9);
    late->done = true;
}

/* --- the failover --- */

TEST_LOOP(a_fence_that_fails_leaves_everything_running)
{
    struct fix fix;
    fix_open(&fix, 2);
    fix_start(&fix);
    fix.fence_error = -ETIMEDOUT;
    fix_refused(replication_stop(fix.s.group, true, &err), "the test refuses the fence");
    assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
    fix_checkpoint(&fix);
    fix.fence_error = 0;
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(fix.fences, 2);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    fix_close(&fix);
}

/* As many ways to the disk as can be fenced, then one more. */
TEST_LOOP(a_failover_that_cannot_fence_all_ways_to_the_disk_is_refused)
{
    struct fix fix;
    struct edge *ways[GROUP_MAX_ROOTS];
    fix_open(&fix, 2);
    fix_start(&fix);
    for (size_t i = 0; i < ARRAY_LEN(ways); i++)
        ways[i] = fix_root(&fix.s, "sdisk", 1, PERM_WRITE);
    fix.fence_error = -ETIMEDOUT;
    fix_refused(replication_stop(fix.s.group, true, &err), "more than 256 users");
    assert_int_equal(fix.fences, 0);
    graph_detach(ways[0]); /* the others, and one for each disk that the test has by itself */
    graph_detach(ways[1]);
    fix_refused(replication_stop(fix.s.group, true, &err), "the test refuses the fence");
    assert_int_equal(fix.fences, 1);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
    for (size_t i = 2; i < ARRAY_LEN(ways); i++)
        graph_detach(ways[i]);
    fix_close(&fix);
}

static void late_unaligned(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->top[0], 0, 512, 9);
    late->done = true;
}

static void late_failover(void *arg) MAY_WAIT
{
    struct late *late = arg;
    fix_ok(replication_stop(late->fix->s.group, true, &err));
    late->done = true;
}

TEST_LOOP(a_failover_waits_for_the_peers_last_writes_and_takes_none_after)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    fix_checkpoint(&fix);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    struct late write = {.fix = &fix}, failover = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_write, &write), 0);
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    assert_int_equal(co_spawn(fix.loop, "failover", late_failover, &failover), 0);
    co_sleep(5 * NS_PER_MS);
    assert_false(failover.done);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
    blkdebug_release(sdisk, 0);
    test_wait_until(failover.done);
    assert_true(write.done);
    assert_int_equal(write.result, 0);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    /* P writes on: its own link fails, and nothing arrives. */
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 7), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    fix_close(&fix);
}

/* A write of S's user that began before the failover and lands in the active disk after it. */
TEST_LOOP(a_users_write_under_way_at_the_failover_is_not_lost)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    struct node *adebug = fix_node(&fix.s, "adebug", 0);
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    struct late write = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_user_write, &write), 0);
    assert_int_equal(blkdebug_await_held(adebug, 0, 1, soon(&fix)), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    co_sleep(5 * NS_PER_MS);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_FAILOVER);
    blkdebug_release(adebug, 0);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_true(write.done);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 9);
    fix_close(&fix);
}

static void late_half_block(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->top[0], 1024, 512, 8);
    late->done = true;
}

/* --- flushes after it --- */

static void late_user_flush(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = io_flush(late->fix->top[0]);
    late->done = true;
}

static void late_user_fua(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill_as(late->fix->top[0], 0, BLOCK, 9, IO_FUA);
    late->done = true;
}

/* Two disks that were both written to. */
static void begin_two(struct fix *fix) MAY_WAIT
{
    fix_open(fix, 2);
    fix_start(fix);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(fix_fill(fix->top[i], 0, BLOCK, 2), 0);
}

/* Lets go what the rules hold, which hold and fail nothing any more. */
static void release(struct fix *fix, const char *prefix, unsigned disk)
{
    blkdebug_remove(fix_node(&fix->s, prefix, disk), 0);
    blkdebug_release(fix_node(&fix->s, prefix, disk), 0);
}

TEST_LOOP(a_flush_after_a_failover_waits_for_what_the_overlays_of_all_disks_held)
{
    static void (*const flushes[])(void *) = {late_user_flush, late_user_fua};
    for (size_t i = 0; i < ARRAY_LEN(flushes); i++) {
        struct fix fix;
        begin_two(&fix);
        fix_inject(&fix.s, "hdebug", 1,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .hold = true, .count = 1});
        fix_ok(replication_stop(fix.s.group, true, &err));
        assert_int_equal(blkdebug_await_held(fix_node(&fix.s, "hdebug", 1), 0, 1, soon(&fix)), 0);
        test_wait_until(replication_stage_of(fix_node(&fix.s, "rep", 0)) == REPLICATION_DONE);
        struct late flush = {.fix = &fix};
        assert_int_equal(co_spawn(fix.loop, "late", flushes[i], &flush), 0);
        co_sleep(5 * NS_PER_MS);
        assert_false(flush.done);
        release(&fix, "hdebug", 1);
        test_wait_until(flush.done);
        assert_int_equal(flush.result, 0);
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        fix_close(&fix);
    }
}

static void flush_all(struct fix *fix, int want) MAY_WAIT
{
    const uint64_t free_block = FIX_DISK_BYTES / 2; /* no merge locks it */
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(io_flush(fix->top[i]), want);
        assert_int_equal(fix_fill_as(fix->top[i], free_block, BLOCK, 3, IO_FUA), want);
        struct io io = {
            .offset_bytes = free_block, .length_bytes = BLOCK, .flags = IO_FUA | IO_MAY_UNMAP};
        assert_int_equal(io_zero(fix->top[i], &io), want);
        assert_int_equal(fix_fill(fix->top[i], free_block, BLOCK, 3), 0);
    }
}

TEST_LOOP(a_flush_after_a_failover_fails_while_an_overlay_of_any_disk_cannot_be_flushed)
{
    for (int merges = 0; merges < 2; merges++) {
        struct fix fix;
        begin_two(&fix);
        fix_inject(&fix.s, "hdebug", 1,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .error = -ENOSPC});
        fix_inject(&fix.s, "sdisk", 1,
                   (struct blkdebug_rule){
                       .kinds = BLKDEBUG_WRITE, .length_bytes = BLOCK, .hold = true, .count = 1});
        fix_ok(replication_stop(fix.s.group, true, &err));
        flush_all(&fix, -ENOSPC);
        test_wait_until(replication_stage_of(fix_node(&fix.s, "rep", 0)) == REPLICATION_DONE);
        flush_all(&fix, -ENOSPC);
        if (!merges) {
            blkdebug_remove(fix_node(&fix.s, "hdebug", 1), 0);
            flush_all(&fix, 0);
        }
        release(&fix, "sdisk", 1);
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        flush_all(&fix, 0);
        fix_close(&fix);
    }
}

TEST_LOOP(a_write_from_before_a_failover_promises_no_more_than_one_from_after)
{
    struct fix fix;
    begin_two(&fix);
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    fix_inject(&fix.s, "hdebug", 1, (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .error = -EIO});
    fix_inject(&fix.s, "sdisk", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    struct late write = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_user_fua, &write), 0);
    assert_int_equal(blkdebug_await_held(fix_node(&fix.s, "adebug", 0), 0, 1, soon(&fix)), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    release(&fix, "adebug", 0);
    test_wait_until(write.done);
    assert_int_equal(write.result, -EIO);
    release(&fix, "sdisk", 1);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    fix_close(&fix);
}

/* A flush of one disk tries again for another, whose merge ends meanwhile. */
TEST_LOOP(a_merge_that_ends_while_a_flush_tries_again_for_its_disk_waits_for_it)
{
    struct fix fix;
    begin_two(&fix);
    fix_inject(&fix.s, "hdebug", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .count = 1, .error = -EIO});
    fix_inject(&fix.s, "hdebug", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .nth = 2, .count = 1, .hold = true});
    fix_inject(&fix.s, "sdisk", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(fix_node(&fix.s, "sdisk", 1), 0, 1, soon(&fix)), 0);
    struct late flush = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_user_flush, &flush), 0);
    assert_int_equal(blkdebug_await_held(fix_node(&fix.s, "hdebug", 1), 0, 1, soon(&fix)), 0);
    release(&fix, "sdisk", 1);
    test_wait_until(replication_stage_of(fix_node(&fix.s, "rep", 1)) == REPLICATION_DONE);
    co_sleep(5 * NS_PER_MS);
    assert_false(flush.done);
    /* Nobody queues behind the merge, for what it frees. */
    assert_int_equal(io_flush(fix.top[1]), 0);
    release(&fix, "hdebug", 1);
    test_wait_until(flush.done);
    assert_int_equal(flush.result, 0);
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    fix_close(&fix);
}

/* --- the merge --- */

/* Its read-modify-write of a block that nobody holds has read, and not yet written, when the failover
 * comes. A write into the same block after it must not be undone. */
TEST_LOOP(a_write_after_the_failover_is_not_undone_by_one_from_before)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    struct node *hdebug = fix_node(&fix.s, "hdebug", 0);
    fix_inject(
        &fix.s, "hdebug", 0,
        (struct blkdebug_rule){.kinds = BLKDEBUG_READ, .hold = true, .after = true, .count = 1});
    struct late before = {.fix = &fix}, after = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "before", late_unaligned, &before), 0);
    assert_int_equal(blkdebug_await_held(hdebug, 0, 1, soon(&fix)), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(co_spawn(fix.loop, "after", late_half_block, &after), 0);
    co_sleep(5 * NS_PER_MS);
    blkdebug_release(hdebug, 0);
    test_wait_until(before.done && after.done);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_byte(fix.top[0], 0, 512), 9);
    assert_int_equal(fix_byte(fix.top[0], 512, 512), 0);
    assert_int_equal(fix_byte(fix.top[0], 1024, 512), 8);
    assert_int_equal(fix_raw_byte(&fix, 0, 1024, 512), 8);
    fix_close(&fix);
}

/* In the merge's last phase the guest's writes reach the disk too; where they cannot, the merge makes
 * up for it. */
TEST_LOOP(a_write_that_does_not_reach_the_disk_late_in_a_merge_is_copied_again)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, 2 * BLOCK, 2), 0);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .hold = true, .count = 1});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, 2 * BLOCK), 2);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 3), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 3);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .error = -EIO, .count = 1});
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 4), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 2);
    blkdebug_release(sdisk, 0);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 3);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 4);
    fix_close(&fix);
}

/* The first piece has been copied, the second is held. */
TEST_LOOP(a_write_behind_a_merges_back_is_copied_again)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    uint64_t far = FIX_DISK_BYTES / 2;
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 2), 0);
    assert_int_equal(fix_fill(fix.top[0], far, BLOCK, 2), 0);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){
                   .kinds = BLKDEBUG_WRITE, .offset_bytes = far, .hold = true, .count = 1});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    test_wait_until(fix_raw_byte(&fix, 0, 0, BLOCK) == 2);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 3), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 2);
    blkdebug_release(sdisk, 0);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 3);
    assert_int_equal(fix_raw_byte(&fix, 0, far, BLOCK), 2);
    fix_close(&fix);
}

TEST_LOOP(a_merge_does_not_end_before_the_writes_under_way)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 2), 0);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0), *adebug = fix_node(&fix.s, "adebug", 0);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .hold = true, .count = 1});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    struct late write = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_user_write, &write), 0);
    assert_int_equal(blkdebug_await_held(adebug, 0, 1, soon(&fix)), 0);
    blkdebug_release(sdisk, 0);
    co_sleep(5 * NS_PER_MS);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_FAILOVER);
    blkdebug_release(adebug, 0);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_true(write.done);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 9);
    fix_close(&fix);
}

/* It may have been carried out all the same, or not: what is read then must not change at the merge's
 * end. */
TEST_LOOP(what_a_failed_write_leaves_late_in_a_merge_stays_when_the_merge_ends)
{
    for (int after = 0; after < 2; after++) {
        struct fix fix;
        fix_open(&fix, 1);
        fix_start(&fix);
        assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 2), 0);
        struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
        fix_inject(&fix.s, "sdisk", 0,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .hold = true, .count = 1});
        fix_ok(replication_stop(fix.s.group, true, &err));
        assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
        fix_inject(&fix.s, "adebug", 0,
                   (struct blkdebug_rule){
                       .kinds = BLKDEBUG_WRITE, .error = -EIO, .after = after, .count = 1});
        assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 3), -EIO);
        assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), after ? 3 : 2);
        blkdebug_release(sdisk, 0);
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), after ? 3 : 2);
        fix_close(&fix);
    }
}

TEST_LOOP(a_finished_failover_leaves_empty_overlays_that_nobody_uses)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 2), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "active", 0)).held_bytes, 0);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "hidden", 0)).held_bytes, 0);
    fix_inject(&fix.s, "adebug", 0, (struct blkdebug_rule){.kinds = BLKDEBUG_ANY, .error = -EIO});
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 2);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 3), 0);
    assert_int_equal(fix_zero(fix.top[0], 0, BLOCK), 0);
    assert_int_equal(io_flush(fix.top[0]), 0);
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    /* The filter has gone: what writes to the disk is copied no more. */
    for (struct node *node = graph_next(fix.s.graph, NULL); node != NULL;
         node = graph_next(fix.s.graph, node))
        assert_null(strstr(node->driver->name, "copy-before-write"));
    fix_close(&fix);
}

TEST_LOOP(a_merge_that_fails_on_one_disk_can_be_repeated_and_the_others_end)
{
    struct fix fix;
    fix_open(&fix, 3);
    fix_start(&fix);
    for (unsigned disk = 0; disk < 3; disk++) {
        assert_int_equal(fix_fill(fix.forward[disk], 0, 32 * BLOCK, 1), 0);
        assert_int_equal(fix_fill(fix.top[disk], 16 * BLOCK, 64 * BLOCK, 2), 0);
    }
    fix_inject(&fix.s, "sdisk", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .error = -ENOSPC});
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_FAILOVER_FAILED);
    test_wait_until(replication_stage_of(fix_node(&fix.s, "rep", 0)) == REPLICATION_DONE &&
                    replication_stage_of(fix_node(&fix.s, "rep", 2)) == REPLICATION_DONE);
    fix_refused(replication_get_error(fix.s.group, &err), "secondary 'rep1': merge failed");
    assert_int_equal(fix_byte(fix.top[1], 0, 16 * BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[1], 16 * BLOCK, 16 * BLOCK), 2);
    blkdebug_remove(fix_node(&fix.s, "sdisk", 1), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    for (unsigned disk = 0; disk < 3; disk++) {
        assert_int_equal(fix_raw_byte(&fix, disk, 0, 16 * BLOCK), 0);
        assert_int_equal(fix_raw_byte(&fix, disk, 16 * BLOCK, 16 * BLOCK), 2);
        assert_int_equal(fix_raw_byte(&fix, disk, 80 * BLOCK, 16 * BLOCK), 0);
    }
    fix_close(&fix);
}

TEST_LOOP(a_merge_whose_end_cannot_empty_the_overlays_fails_and_serves_on)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 2), 0);
    fix_inject(&fix.s, "hdebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_EMPTY, .error = -EIO, .count = 1});
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_FAILOVER_FAILED);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 3), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 3);
    fix_close(&fix);
}

TEST_LOOP(a_cancelled_merge_is_a_failed_failover_not_a_silent_one)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 2), 0);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(&fix.s, "sdisk", 0, (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    fix_ok(job_cancel(job_next(&fix.s.jobs, NULL), true, &err));
    blkdebug_remove(sdisk, 0);
    blkdebug_release(sdisk, 0);
    fix_wait_stage(&fix.s, REPLICATION_FAILOVER_FAILED);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 2);
    fix_close(&fix);
}

static int no_work(struct job *job) MAY_WAIT
{
    return job_pause_point(job);
}

/* As many jobs as there may be, so that there is no room for the merge. */
TEST_LOOP(a_merge_that_cannot_start_can_be_repeated)
{
    static const struct job_driver driver = {.type = "test", .run = no_work};
    struct fix fix;
    struct job *others[JOBS_MAX];
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 2), 0);
    for (unsigned i = 0; i < JOBS_MAX; i++)
        fix_ok(job_new(&fix.s.jobs, &driver, NULL, &others[i], &err));
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(fix_stage(&fix.s), REPLICATION_FAILOVER_FAILED);
    fix_refused(replication_get_error(fix.s.group, &err), "merge failed");
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 2);
    for (unsigned i = 0; i < JOBS_MAX; i++)
        job_drop(others[i]);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 2);
    fix_close(&fix);
}

/* --- the end of the daemon, and the next one --- */

TEST_LOOP(a_failover_interrupted_by_the_end_of_the_daemon_is_finished_by_the_next)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, 64 * BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[0], 32 * BLOCK, 256 * BLOCK, 2), 0);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(
        &fix.s, "sdisk", 0,
        (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = 1, .hold = true});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    job_interrupt(job_next(&fix.s.jobs, NULL));
    blkdebug_release(sdisk, 0);
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_FAILOVER);
    reopen_secondary(&fix);
    fix_refused(
        replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err),
        "hold blocks of an earlier run");
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_MERGE, &err));
    assert_int_equal(fix_byte(fix.top[0], 0, 16 * BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], 280 * BLOCK, 8 * BLOCK), 2);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, 32 * BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 32 * BLOCK, 256 * BLOCK), 2);
    assert_null(fix.peer[0]);
    fix_close(&fix);
}

/* The end of a merge stands between its two emptyings when the daemon goes. */
TEST_LOOP(a_daemon_that_goes_while_a_merge_voids_its_overlays_loses_nothing)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, 2 * BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 2), 0);
    struct node *adebug = fix_node(&fix.s, "adebug", 0);
    uint64_t hidden = overlay_stats(fix_node(&fix.s, "hidden", 0)).generation;
    uint64_t active = overlay_stats(fix_node(&fix.s, "active", 0)).generation;
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_EMPTY, .hold = true, .error = -EIO});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(adebug, 0, 1, soon(&fix)), 0);
    /* What the next daemon would find: the hidden disk's old content is void, the active disk's new
     * one is not. The other way round the old would cover the new. */
    assert_int_equal(overlay_stats(fix_node(&fix.s, "hidden", 0)).generation, hidden + 1);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "active", 0)).generation, active);
    blkdebug_remove(adebug, 0);
    blkdebug_release(adebug, 0);
    fix_wait_stage(&fix.s, REPLICATION_FAILOVER_FAILED);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 2);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 2);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 0);
    fix_close(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fence_that_fails_leaves_everything_running),
        cmocka_unit_test(a_failover_that_cannot_fence_all_ways_to_the_disk_is_refused),
        cmocka_unit_test(a_failover_waits_for_the_peers_last_writes_and_takes_none_after),
        cmocka_unit_test(a_users_write_under_way_at_the_failover_is_not_lost),
        cmocka_unit_test(a_flush_after_a_failover_waits_for_what_the_overlays_of_all_disks_held),
        cmocka_unit_test(
            a_flush_after_a_failover_fails_while_an_overlay_of_any_disk_cannot_be_flushed),
        cmocka_unit_test(a_write_from_before_a_failover_promises_no_more_than_one_from_after),
        cmocka_unit_test(a_merge_that_ends_while_a_flush_tries_again_for_its_disk_waits_for_it),
        cmocka_unit_test(a_write_after_the_failover_is_not_undone_by_one_from_before),
        cmocka_unit_test(a_write_that_does_not_reach_the_disk_late_in_a_merge_is_copied_again),
        cmocka_unit_test(a_write_behind_a_merges_back_is_copied_again),
        cmocka_unit_test(a_merge_does_not_end_before_the_writes_under_way),
        cmocka_unit_test(what_a_failed_write_leaves_late_in_a_merge_stays_when_the_merge_ends),
        cmocka_unit_test(a_finished_failover_leaves_empty_overlays_that_nobody_uses),
        cmocka_unit_test(a_merge_that_fails_on_one_disk_can_be_repeated_and_the_others_end),
        cmocka_unit_test(a_merge_whose_end_cannot_empty_the_overlays_fails_and_serves_on),
        cmocka_unit_test(a_cancelled_merge_is_a_failed_failover_not_a_silent_one),
        cmocka_unit_test(a_merge_that_cannot_start_can_be_repeated),
        cmocka_unit_test(a_failover_interrupted_by_the_end_of_the_daemon_is_finished_by_the_next),
        cmocka_unit_test(a_daemon_that_goes_while_a_merge_voids_its_overlays_loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
