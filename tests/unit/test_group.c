/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The group as a whole: all disks or none, checkpoints under load, the fence, the merge. */
#include "graph_snapshot.h"
#include "replication_fixture.h"

#include "block/dirty.h"

#define BLOCK ((size_t)4096)

static uint64_t soon(struct fix *fix)
{
    return test_deadline_ns(10);
}

struct late {
    struct fix *fix;
    int result;
    bool done;
};

static void late_user_write(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->top[0], 0, BLOCK, 9);
    late->done = true;
}

/* --- checkpoints --- */

/* On each of three disks, each of its overlays. */
static void open_unable_to_empty(struct fix *fix, unsigned round) MAY_WAIT
{
    fix_open(fix, 3);
    fix_start(fix);
    for (unsigned disk = 0; disk < 3; disk++) {
        assert_int_equal(fix_fill(fix->forward[disk], 0, BLOCK, 1), 0);
        assert_int_equal(fix_fill(fix->top[disk], BLOCK, BLOCK, 2), 0);
    }
    fix_inject(&fix->s, round % 2 == 0 ? "adebug" : "hdebug", round / 2,
               (struct blkdebug_rule){.kinds = BLKDEBUG_EMPTY, .error = -EIO, .count = 1});
}

#define EMPTY_ROUNDS 6u

static const char *cannot_empty(unsigned round)
{
    static char text[64];
    snprintf(text, sizeof(text), "node 'rep%u': cannot empty the %s disk", round / 2,
             round % 2 == 0 ? "active" : "hidden");
    return text;
}

TEST_LOOP(a_checkpoint_that_cannot_empty_one_overlay_keeps_the_old_epoch_on_all_disks)
{
    for (unsigned round = 0; round < EMPTY_ROUNDS; round++) {
        struct fix fix;
        open_unable_to_empty(&fix, round);
        fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err),
                    cannot_empty(round));
        for (unsigned disk = 0; disk < 3; disk++) {
            assert_int_equal(fix_byte(fix.top[disk], 0, BLOCK), 0);
            assert_int_equal(fix_byte(fix.top[disk], BLOCK, BLOCK), 2);
            assert_int_equal(fix_fill(fix.forward[disk], 2 * BLOCK, BLOCK, 3), 0);
            assert_int_equal(fix_byte(fix.top[disk], 2 * BLOCK, BLOCK), 0);
        }
        fix_checkpoint(&fix);
        for (unsigned disk = 0; disk < 3; disk++) {
            assert_int_equal(fix_byte(fix.top[disk], 0, BLOCK), 1);
            assert_int_equal(fix_byte(fix.top[disk], BLOCK, BLOCK), 0);
            assert_int_equal(fix_byte(fix.top[disk], 2 * BLOCK, BLOCK), 3);
        }
        fix_close(&fix);
    }
}

TEST_LOOP(a_stop_that_cannot_empty_one_overlay_leaves_all_disks_running)
{
    for (unsigned round = 0; round < EMPTY_ROUNDS; round++) {
        struct fix fix;
        open_unable_to_empty(&fix, round);
        struct snapshot *before = snapshot_take(fix.s.graph);
        fix_refused(replication_stop(fix.s.group, false, &err), cannot_empty(round));
        snapshot_expect(fix.s.graph, before);
        for (unsigned disk = 0; disk < 3; disk++) {
            assert_int_equal(fix_byte(fix.top[disk], 0, BLOCK), 0);
            assert_int_equal(fix_byte(fix.top[disk], BLOCK, BLOCK), 2);
        }
        fix_ok(replication_stop(fix.s.group, false, &err));
        for (unsigned disk = 0; disk < 3; disk++)
            assert_int_equal(fix_byte(fix.top[disk], 0, BLOCK), 1);
        fix_close(&fix);
    }
}

static uint64_t marked(const struct dirty_tracker *trackers, size_t count)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += dirty_tracker_bytes(&trackers[i]);
    return bytes;
}

static void unmark(struct dirty_tracker *trackers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        dirty_tracker_unmark(&trackers[i], 0, FIX_DISK_BYTES);
}

/* A checkpoint changes them by no write. The secondary disk does not change, nor does the view at the
 * end of a merge. */
static void late_peer_write(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->forward[1], 0, BLOCK, 9);
    late->done = true;
}

static void late_checkpoint(void *arg) MAY_WAIT
{
    struct late *late = arg;
    struct err err = ERR_INIT;
    late->result = replication_checkpoint(late->fix->s.group, DEADLINE_NEVER, NULL, &err);
    assert_non_null(strstr(err.text, "secondary 'rep1'"));
    late->done = true;
}

TEST_LOOP(a_write_that_fails_while_a_checkpoint_waits_for_it_fails_the_checkpoint)
{
    struct fix fix;
    fix_open(&fix, 3);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 1);
    fix_inject(
        &fix.s, "sdisk", 1,
        (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .error = -EIO, .count = 1});
    struct late write = {.fix = &fix}, checkpoint = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "write", late_peer_write, &write), 0);
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    assert_int_equal(co_spawn(fix.loop, "checkpoint", late_checkpoint, &checkpoint), 0);
    co_sleep(5 * NS_PER_MS);
    assert_false(checkpoint.done);
    blkdebug_release(sdisk, 0);
    test_wait_until(checkpoint.done && write.done);
    assert_int_equal(checkpoint.result, -EIO);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0); /* the old checkpoint stands */
    fix_close(&fix);
}

TEST_LOOP(bitmaps_of_the_view_and_its_layers_know_of_a_checkpoint_and_of_a_stop)
{
    static const char *const nodes[] = {"top", "rep", "active", "hidden", "sdisk", "above"};
    for (int failover = 0; failover < 2; failover++) {
        struct fix fix;
        struct dirty_tracker trackers[ARRAY_LEN(nodes)] = {0};
        fix_open(&fix, 1);
        fix_add(fix.s.graph, "{'driver':'blkdebug','node-name':'above0','file':'sdisk0'}");
        for (size_t i = 0; i < ARRAY_LEN(nodes); i++)
            fix_ok(dirty_tracker_add(&trackers[i], fix_node(&fix.s, nodes[i], 0), BLOCK, &err));
        fix_start(&fix);
        unmark(trackers, ARRAY_LEN(nodes));
        assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
        assert_int_equal(dirty_tracker_bytes(&trackers[4]), BLOCK);
        unmark(trackers, ARRAY_LEN(nodes));
        fix_checkpoint(&fix);
        assert_int_equal(marked(trackers, 4), 4 * FIX_DISK_BYTES);
        assert_int_equal(marked(trackers + 4, 2), 0);
        unmark(trackers, ARRAY_LEN(nodes));
        fix_ok(replication_stop(fix.s.group, failover, &err));
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        assert_int_equal(marked(trackers, 2), failover ? 0 : 2 * FIX_DISK_BYTES);
        for (size_t i = 0; i < ARRAY_LEN(nodes); i++)
            dirty_tracker_remove(&trackers[i]);
        fix_close(&fix);
    }
}

TEST_LOOP(a_checkpoint_after_a_failed_flush_of_a_disk_fails)
{
    struct fix fix;
    fix_open(&fix, 2);
    fix_start(&fix);
    fix_inject(&fix.s, "sdisk", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .error = -EIO, .count = 1});
    fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err),
                "cannot flush the secondary disk 'sdisk1'");
    fix_refused(replication_get_error(fix.s.group, &err), "flush of the secondary disk failed");
    fix_close(&fix);
}

struct stream {
    struct fix *fix;
    bool stop;
    unsigned running;
    unsigned step; /* what the writers write now */
};

struct writer {
    struct stream *stream;
    unsigned block;
};

/* Writes the same number into one block of each disk, one after the other, and the next number only
 * when all have it: at every cut the disks' numbers differ by one at most, and the first leads. */
static void write_numbers(void *arg) MAY_WAIT
{
    struct writer *writer = arg;
    struct stream *stream = writer->stream;
    for (uint32_t number = 1; !stream->stop; number++) {
        uint32_t bytes[1024];
        for (size_t i = 0; i < ARRAY_LEN(bytes); i++)
            bytes[i] = number;
        for (unsigned disk = 0; disk < stream->fix->disks; disk++)
            assert_int_equal(
                fix_write(stream->fix->forward[disk], writer->block * BLOCK, bytes, sizeof(bytes)),
                0);
        co_yield(); /* writes in memory need not wait, and then nobody else would ever run */
    }
    stream->running--;
}

static void check_numbers(struct fix *fix, unsigned block) MAY_WAIT
{
    uint32_t last = 0;
    for (unsigned disk = 0; disk < fix->disks; disk++) {
        uint32_t bytes[1024];
        assert_int_equal(fix_read(fix->top[disk], block * BLOCK, bytes, sizeof(bytes)), 0);
        for (size_t i = 1; i < ARRAY_LEN(bytes); i++)
            assert_int_equal(bytes[i], bytes[0]); /* no torn write */
        if (disk > 0)
            assert_true(bytes[0] == last || bytes[0] + 1 == last);
        last = bytes[0];
    }
}

#define WRITERS 8u

TEST_LOOP(checkpoints_under_load_fall_between_whole_writes_on_all_disks)
{
    struct fix fix;
    struct stream stream = {.fix = &fix, .running = WRITERS};
    struct writer writers[WRITERS];
    fix_open(&fix, 3);
    fix_start(&fix);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){&stream, i};
        assert_int_equal(co_spawn(fix.loop, "writer", write_numbers, &writers[i]), 0);
    }
    for (int round = 0; round < 10; round++) {
        /* P's barrier in some rounds only: S's cut alone must be between whole writes too. */
        if (round % 2 == 0)
            fix_ok(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err));
        fix_ok(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err));
        for (int look = 0; look < 3; look++) {
            for (unsigned block = 0; block < WRITERS; block++)
                check_numbers(&fix, block);
            co_sleep(200 * NS_PER_US);
        }
    }
    stream.stop = true;
    test_wait_until(stream.running == 0);
    fix_ok(replication_get_error(fix.s.group, &err));
    fix_ok(replication_get_error(fix.p.group, &err));
    struct json_object *event = fix_last_event(&fix.s, "REPLICATION_CHECKPOINT");
    assert_non_null(event);
    assert_true(json_object_object_get_ex(event, "held-ns", NULL));
    assert_int_equal(fix_count_events(&fix.s, "REPLICATION_CHECKPOINT"), 11);
    fix_close(&fix);
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

static void late_write(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->peer[0], 0, BLOCK, 9);
    late->done = true;
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

static void late_stop(void *arg) MAY_WAIT
{
    struct late *late = arg;
    fix_ok(replication_stop(late->fix->s.group, false, &err));
    late->done = true;
}

TEST_LOOP(a_stop_falls_between_whole_writes)
{
    struct fix fix;
    fix_open(&fix, 2);
    fix_start(&fix);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    struct late write = {.fix = &fix}, stop = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_write, &write), 0);
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(&fix)), 0);
    assert_int_equal(co_spawn(fix.loop, "stop", late_stop, &stop), 0);
    co_sleep(5 * NS_PER_MS);
    assert_false(stop.done);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
    blkdebug_release(sdisk, 0);
    test_wait_until(stop.done && write.done);
    assert_int_equal(write.result, 0);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 9);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "hidden", 0)).held_bytes, 0);
    fix_close(&fix);
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

static uint64_t epoch_of(struct fix_side *side) MAY_WAIT
{
    struct json_object *query = replication_query(side->group);
    assert_non_null(query);
    uint64_t epoch = json_object_get_uint64(json_object_object_get(query, "epoch"));
    json_object_put(query);
    return epoch;
}

/* The same files in a new daemon. */
static void reopen_secondary(struct fix *fix) MAY_WAIT
{
    fix_detach(fix);
    fix_close_side(&fix->s);
    fix_side_init(fix, &fix->s);
    for (unsigned i = 0; i < fix->disks; i++) {
        fix_open_secondary_disk(fix, i, false);
        fix_attach_secondary(fix, i, true);
    }
}

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

TEST_LOOP(a_secondary_can_be_resumed_at_its_checkpoint_or_begun_afresh)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    fix_checkpoint(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 2), 0);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 3), 0);
    assert_int_equal(io_flush(fix.top[0]), 0);
    reopen_secondary(&fix);
    fix_ok(
        replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_RESUME, &err));
    assert_int_equal(epoch_of(&fix.s), 2);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 3);
    assert_int_equal(fix_fill(fix.peer[0], 2 * BLOCK, BLOCK, 4), 0);
    assert_int_equal(fix_byte(fix.top[0], 2 * BLOCK, BLOCK), 0);
    reopen_secondary(&fix);
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_FRESH, &err));
    assert_int_equal(epoch_of(&fix.s), 3); /* numbers are never used again */
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 2);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], 2 * BLOCK, BLOCK), 4);
    fix_close(&fix);
}

/* --- queries --- */

static struct json_object *path_of(struct json_object *object, const char *path)
{
    char text[128];
    snprintf(text, sizeof(text), "%s", path);
    for (char *rest = text, *part; object != NULL && (part = strsep(&rest, ".")) != NULL;) {
        if (part[0] >= '0' && part[0] <= '9')
            object = json_object_array_get_idx(object, (size_t)atoi(part));
        else
            object = json_object_object_get(object, part);
    }
    return object;
}

static void expect_text(struct json_object *object, const char *path, const char *text)
{
    struct json_object *value = path_of(object, path);
    if (value == NULL || strcmp(json_object_get_string(value), text) != 0)
        fail_msg("%s is %s, not %s", path, value != NULL ? json_object_get_string(value) : "absent",
                 text);
}

/* The sticky error in full, of the group and of the disk, and as the event told it: the first of two. */
static void expect_error(struct fix_side *side, const char *role, const char *disk,
                         const char *node, const char *operation) MAY_WAIT
{
    const struct {
        const char *key, *text;
    } members[] = {
        {"side", role},      {"disk", disk},     {"node", node},   {"operation", operation},
        {"offset", "32768"}, {"length", "4096"}, {"errno", "EIO"}, {"reason", strerror(EIO)},
    };
    CLEANUP(json_putp) struct json_object *query = replication_query(side->group);
    struct json_object *told = fix_last_event(side, "REPLICATION_ERROR");
    struct json_object *whole = path_of(query, "error"), *own = path_of(query, "disks.1.error");
    assert_string_equal(json_object_to_json_string(whole), json_object_to_json_string(own));
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        expect_text(whole, members[i].key, members[i].text);
        expect_text(told, members[i].key, members[i].text);
    }
    expect_text(whole, "count", "2");
    expect_text(told, "count", "1");
    uint64_t then_ns = json_object_get_uint64(path_of(whole, "wall-time-ns"));
    assert_true(then_ns > 0 && then_ns <= loop_wall_ns(loop_current()));
    assert_int_equal(then_ns, json_object_get_uint64(path_of(told, "wall-time-ns")));
    assert_int_equal(fix_count_events(side, "REPLICATION_ERROR"), 1);
}

TEST_LOOP(queries_show_both_sides)
{
    struct fix fix;
    fix_open(&fix, 2);
    struct json_object *query = replication_query(fix.s.group);
    expect_text(query, "stage", "none");
    json_object_put(query);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[1], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[1], BLOCK, 2 * BLOCK, 1), 0);
    query = replication_query(fix.s.group);
    expect_text(query, "role", "secondary");
    expect_text(query, "stage", "running");
    expect_text(query, "epoch", "1");
    expect_text(query, "disks.1.node", "rep1");
    expect_text(query, "disks.1.stage", "running");
    expect_text(query, "disks.1.mode", "secondary");
    expect_text(query, "disks.1.top", "top1");
    expect_text(query, "disks.1.active", "active1");
    expect_text(query, "disks.1.hidden", "hidden1");
    expect_text(query, "disks.1.secondary", "sdisk1");
    expect_text(query, "disks.1.active-bytes", "8192");
    expect_text(query, "disks.1.hidden-bytes", "4096");
    assert_non_null(path_of(query, "last-checkpoint.held-ns"));
    assert_null(path_of(query, "error"));
    json_object_put(query);
    query = replication_query(fix.p.group);
    expect_text(query, "role", "primary");
    expect_text(query, "disks.1.peer", "plink1");
    expect_text(query, "disks.1.in-flight", "0");
    expect_text(query, "disks.1.forwarded-bytes", "4096");
    expect_text(query, "disks.1.link.driver", "test-link");
    json_object_put(query);
    fix_inject(&fix.s, "sdisk", 1, (struct blkdebug_rule){.kinds = BLKDEBUG_ANY, .error = -EIO});
    assert_int_equal(fix_fill(fix.forward[1], 8 * BLOCK, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.forward[1], 8 * BLOCK, BLOCK, 1), 0);
    expect_error(&fix.p, "primary", "prep1", "plink1", "forward write");
    expect_error(&fix.s, "secondary", "rep1", "sdisk1", "copy-before-write");
    blkdebug_remove(fix_node(&fix.s, "sdisk", 1), 0);
    fix_close(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            a_checkpoint_that_cannot_empty_one_overlay_keeps_the_old_epoch_on_all_disks),
        cmocka_unit_test(a_stop_that_cannot_empty_one_overlay_leaves_all_disks_running),
        cmocka_unit_test(a_write_that_fails_while_a_checkpoint_waits_for_it_fails_the_checkpoint),
        cmocka_unit_test(bitmaps_of_the_view_and_its_layers_know_of_a_checkpoint_and_of_a_stop),
        cmocka_unit_test(a_checkpoint_after_a_failed_flush_of_a_disk_fails),
        cmocka_unit_test(checkpoints_under_load_fall_between_whole_writes_on_all_disks),
        cmocka_unit_test(a_fence_that_fails_leaves_everything_running),
        cmocka_unit_test(a_stop_falls_between_whole_writes),
        cmocka_unit_test(a_failover_waits_for_the_peers_last_writes_and_takes_none_after),
        cmocka_unit_test(a_users_write_under_way_at_the_failover_is_not_lost),
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
        cmocka_unit_test(a_secondary_can_be_resumed_at_its_checkpoint_or_begun_afresh),
        cmocka_unit_test(queries_show_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
