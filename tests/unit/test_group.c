/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The group as a whole: all disks or none, checkpoints under load, stops, queries. */
#include "group_fixture.h"

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

/* --- stops --- */

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

/* --- the end of the daemon, and the next one --- */

static uint64_t epoch_of(struct fix_side *side) MAY_WAIT
{
    struct json_object *query = replication_query(side->group);
    assert_non_null(query);
    uint64_t epoch = json_object_get_uint64(json_object_object_get(query, "epoch"));
    json_object_put(query);
    return epoch;
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

static uint64_t number_of(struct json_object *object, const char *path)
{
    struct json_object *value = path_of(object, path);
    if (value == NULL)
        fail_msg("%s is absent", path);
    return json_object_get_uint64(value);
}

static void late_plain_checkpoint(void *arg) MAY_WAIT
{
    struct late *late = arg;
    fix_ok(replication_checkpoint(late->fix->s.group, DEADLINE_NEVER, NULL, &err));
    late->done = true;
}

/* A write is held for 5 ms, and a checkpoint waits for it, with guests waiting behind it. */
static void expect_what_is_under_way(struct fix *fix) MAY_WAIT
{
    struct late write = {.fix = fix}, checkpoint = {.fix = fix};
    struct node *sdisk = fix_node(&fix->s, "sdisk", 1);
    fix_inject(&fix->s, "sdisk", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1});
    uint64_t began_ns = loop_clock_ns(fix->loop);
    assert_int_equal(co_spawn(fix->loop, "write", late_peer_write, &write), 0);
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, soon(fix)), 0);
    struct json_object *query = replication_query(fix->p.group);
    expect_text(query, "disks.0.in-flight", "0");
    expect_text(query, "disks.1.in-flight", "1");
    expect_text(query, "disks.1.in-flight-bytes", "4096");
    expect_text(query, "disks.1.forwarded-bytes", "4096");
    json_object_put(query);
    assert_int_equal(co_spawn(fix->loop, "checkpoint", late_plain_checkpoint, &checkpoint), 0);
    co_sleep(5 * NS_PER_MS);
    blkdebug_release(sdisk, 0);
    test_wait_until(checkpoint.done && write.done);
    uint64_t took_ns = loop_clock_ns(fix->loop) - began_ns;
    co_sleep(5 * NS_PER_MS);
    query = replication_query(fix->s.group);
    uint64_t least_ns = test_loop_is_sim() ? 4 * NS_PER_MS : 0; /* it flushes first */
    assert_in_range(number_of(query, "last-checkpoint.held-ns"), least_ns, took_ns);
    assert_in_range(number_of(query, "last-checkpoint.duration-ns"),
                    number_of(query, "last-checkpoint.held-ns"), took_ns);
    assert_in_range(number_of(query, "last-checkpoint.age-ns"), 5 * NS_PER_MS,
                    loop_clock_ns(fix->loop) - began_ns);
    json_object_put(query);
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
    expect_what_is_under_way(&fix);
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
        cmocka_unit_test(a_stop_falls_between_whole_writes),
        cmocka_unit_test(a_secondary_can_be_resumed_at_its_checkpoint_or_begun_afresh),
        cmocka_unit_test(queries_show_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
