/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The group as a whole: a start's checks, all disks or none, checkpoints under load, the fence. */
#include "replication_fixture.h"

#define BLOCK ((size_t)4096)

static uint64_t soon(struct fix *fix)
{
    return test_deadline_ns(10);
}

/* --- what a refused start leaves behind --- */

/* Every node with its flags, and every edge with its permissions, as text. The order of a node's
 * parents means nothing. */
static char *snapshot(struct graph *graph)
{
    size_t used = 0, size = 65536;
    char *text = calloc(1, size);
    assert_non_null(text);
    for (struct node *node = graph_next(graph, NULL); node != NULL;
         node = graph_next(graph, node)) {
        unsigned parents = 0, need = 0, share = PERM_ALL;
        LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
            parents++;
            need |= edge->need;
            share &= edge->share;
        }
        used += (size_t)snprintf(text + used, size - used,
                                 "%s ro=%d refs=%u blocked=%d parents=%u need=%x share=%x\n",
                                 node->name, node->read_only, node->refs,
                                 !list_empty(&node->blockers), parents, need, share);
        LIST_FOR_EACH(edge, &node->children, struct edge, in_parent)
            used += (size_t)snprintf(text + used, size - used, "  %s -> %s need=%x share=%x\n",
                                     edge->name, edge->child->name, edge->need, edge->share);
        assert_true(used < size);
    }
    return text;
}

static void refuse_start(struct fix *fix, enum replication_mode mode, const char *part) MAY_WAIT
{
    char *before = snapshot(fix->s.graph);
    fix_refused(replication_start(fix->s.group, mode, REPLICATION_OVERLAYS_EMPTY, &err), part);
    char *after = snapshot(fix->s.graph);
    assert_string_equal(before, after);
    free(before);
    free(after);
    assert_int_equal(fix_stage(&fix->s), REPLICATION_NONE);
    assert_int_equal(fix_count_events(&fix->s, "REPLICATION_STAGE_CHANGE"), 0);
}

#define MEMORY_DISK "{'driver':'null-co','node-name':'%s','size':%" PRIu64 ",'read-zeroes':true}"

static void add_layer(struct fix *fix, const char *name, uint64_t bytes, const char *backing)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    char file[64];
    snprintf(file, sizeof(file), "%s.overlay", name);
    const struct overlay_create create = {.virtual_bytes = bytes};
    assert_int_equal(overlay_create(fix->loop, test_path(file), &create, true, &err), 0);
    char end[64] = "}";
    if (backing != NULL)
        snprintf(end, sizeof(end), ",'backing':'%s'}", backing);
    fix_add(fix->s.graph,
            "{'driver':'overlay','node-name':'%s','file':{'driver':'file','filename':'%s'}%s", name,
            test_path(file), end);
}

static void add_filter(struct fix *fix, const char *file, const char *top) MAY_WAIT
{
    fix_add(fix->s.graph,
            "{'driver':'replication','node-name':'rep0','mode':'secondary','top-id':'%s',"
            "'file':'%s'}",
            top, file);
}

TEST_LOOP(a_start_in_the_wrong_mode_is_refused)
{
    struct fix fix;
    fix_open(&fix, 1);
    refuse_start(&fix, REPLICATION_PRIMARY, "has mode=secondary");
    fix_close(&fix);
}

TEST_LOOP(before_its_first_synchronisation_a_secondary_has_nothing_to_fall_back_to)
{
    struct fix fix;
    struct err why = ERR_INIT;
    uint64_t epoch = 0;
    fix_open(&fix, 1);
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_SYNC, &err));
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), -EIO); /* P is not started */
    assert_int_equal(fix_fill(fix.peer[0], 0, BLOCK, 1), 0);
    assert_int_equal(replication_stop(fix.s.group, true, &why), -ENODATA);
    assert_non_null(strstr(why.text, "never synchronised"));
    assert_int_equal(fix.fences, 0);
    assert_int_equal(replication_stop(fix.s.group, false, &why), -ENODATA);
    assert_int_equal(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &why), -ENODATA);
    fix_ok(replication_first_checkpoint(fix.s.group, &epoch, &err));
    assert_int_equal(epoch, 1);
    assert_int_equal(replication_first_checkpoint(fix.s.group, &epoch, &why), -EINVAL);
    assert_int_equal(
        replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_SYNC, &why),
        -EBUSY);
    assert_int_equal(fix_fill(fix.peer[0], 0, BLOCK, 2), 0);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    fix_close(&fix);
}

TEST_LOOP(a_start_without_a_backing_disk_is_refused)
{
    struct fix fix;
    fix_open_empty(&fix, 0);
    fix_add(fix.s.graph, MEMORY_DISK, "disk", FIX_DISK_BYTES);
    add_filter(&fix, "disk", "rep0");
    refuse_start(&fix, REPLICATION_SECONDARY, "the active disk 'disk' has no backing disk");
    fix_close(&fix);

    fix_open_empty(&fix, 0);
    fix_add(fix.s.graph, MEMORY_DISK, "disk", FIX_DISK_BYTES);
    add_layer(&fix, "active", FIX_DISK_BYTES, "disk");
    add_filter(&fix, "active", "rep0");
    refuse_start(&fix, REPLICATION_SECONDARY, "the hidden disk 'disk' has no backing disk");
    fix_close(&fix);
}

static void add_test_layer(struct fix *fix, const char *driver, const char *name, uint64_t bytes,
                           const char *backing) MAY_WAIT
{
    fix_add(fix->s.graph, "{'driver':'%s','node-name':'%s','size':%" PRIu64 ",'backing':'%s'}",
            driver, name, bytes, backing);
}

TEST_LOOP(a_start_on_disks_of_several_lengths_is_refused)
{
    static const uint64_t lengths[][3] = {{1, 1, 2}, {1, 2, 1}, {2, 1, 1}};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        struct fix fix;
        fix_open_empty(&fix, 0);
        fix_add(fix.s.graph, MEMORY_DISK, "disk", lengths[i][0] * FIX_DISK_BYTES);
        add_test_layer(&fix, "test-layer", "hidden", lengths[i][1] * FIX_DISK_BYTES, "disk");
        add_test_layer(&fix, "test-layer", "active", lengths[i][2] * FIX_DISK_BYTES, "hidden");
        add_filter(&fix, "active", "rep0");
        refuse_start(&fix, REPLICATION_SECONDARY, "must have one length");
        fix_close(&fix);
    }
}

TEST_LOOP(a_start_on_layers_that_cannot_be_emptied_is_refused)
{
    static const char *const drivers[][2] = {{"test-solid", "test-layer"},
                                             {"test-layer", "test-solid"}};
    static const char *const texts[] = {"the active disk 'active' cannot be emptied",
                                        "the hidden disk 'hidden' cannot be emptied"};
    for (size_t i = 0; i < ARRAY_LEN(drivers); i++) {
        struct fix fix;
        fix_open_empty(&fix, 0);
        fix_add(fix.s.graph, MEMORY_DISK, "disk", FIX_DISK_BYTES);
        add_test_layer(&fix, drivers[i][1], "hidden", FIX_DISK_BYTES, "disk");
        add_test_layer(&fix, drivers[i][0], "active", FIX_DISK_BYTES, "hidden");
        /* Earlier checks come first: the top is wrong too. */
        add_filter(&fix, "active", "nowhere");
        refuse_start(&fix, REPLICATION_SECONDARY, texts[i]);
        fix_close(&fix);
    }
}

TEST_LOOP(a_start_whose_top_is_not_above_the_filter_is_refused)
{
    static const char *const tops[] = {"nowhere", "active", "disk", "other"};
    static const char *const texts[] = {"nowhere", "is no root node", "is no root node",
                                        "neither is nor contains"};
    for (size_t i = 0; i < ARRAY_LEN(tops); i++) {
        struct fix fix;
        fix_open_empty(&fix, 0);
        fix_add(fix.s.graph, MEMORY_DISK, "disk", FIX_DISK_BYTES);
        fix_add(fix.s.graph, MEMORY_DISK, "other", FIX_DISK_BYTES);
        add_layer(&fix, "hidden", FIX_DISK_BYTES, "disk");
        add_layer(&fix, "active", FIX_DISK_BYTES, "hidden");
        add_filter(&fix, "active", tops[i]);
        refuse_start(&fix, REPLICATION_SECONDARY, texts[i]);
        fix_close(&fix);
    }
}

TEST_LOOP(a_filter_may_be_its_own_top)
{
    struct fix fix;
    fix_open_empty(&fix, 0);
    fix_add(fix.s.graph, MEMORY_DISK, "disk", FIX_DISK_BYTES);
    add_layer(&fix, "hidden", FIX_DISK_BYTES, "disk");
    add_layer(&fix, "active", FIX_DISK_BYTES, "hidden");
    add_filter(&fix, "active", "rep0");
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err));
    fix_refused(graph_del(fix.s.graph, "rep0", &err), "replication");
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    fix_close(&fix);
}

TEST_LOOP(a_start_whose_first_checkpoint_fails_leaves_nothing_and_can_be_repeated)
{
    static const char *const places[] = {"adebug", "hdebug"};
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        struct fix fix;
        fix_open(&fix, 2);
        fix_inject(&fix.s, places[i], 1,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_EMPTY, .error = -EIO, .count = 1});
        refuse_start(&fix, REPLICATION_SECONDARY, "the first checkpoint");
        fix_start(&fix);
        fix_close(&fix);
    }
}

TEST_LOOP(one_disk_that_cannot_start_keeps_the_others_from_starting)
{
    struct fix fix;
    fix_open(&fix, 2);
    fix_add(fix.s.graph, MEMORY_DISK, "lone", FIX_DISK_BYTES);
    fix_add(fix.s.graph,
            "{'driver':'replication','node-name':'rep9','mode':'secondary','top-id':'rep9',"
            "'file':'lone'}");
    refuse_start(&fix, REPLICATION_SECONDARY, "node 'rep9'");
    struct err err = ERR_INIT;
    assert_int_equal(graph_del(fix.s.graph, "rep9", &err), 0);
    fix_start(&fix);
    fix_close(&fix);
}

static void open_read_only(struct fix *fix) MAY_WAIT
{
    fix_open_empty(fix, 1);
    fix_add_disk_file(fix, 0);
    fix_add_image(fix, "active", 0);
    fix_add_image(fix, "hidden", 0);
    fix_open_secondary_disk(fix, 0, true);
    fix_attach_secondary(fix, 0, false);
    fix_add_primary_disk(fix, 0);
}

TEST_LOOP(read_only_disks_become_writable_for_the_run_and_read_only_again)
{
    struct fix fix;
    open_read_only(&fix);
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_EMPTY, .error = -EIO, .count = 1});
    refuse_start(&fix, REPLICATION_SECONDARY, "the first checkpoint");
    fix_start(&fix);
    assert_false(fix_node(&fix.s, "hidden", 0)->read_only);
    assert_false(fix_node(&fix.s, "sdisk", 0)->read_only);
    fix_ok(replication_stop(fix.s.group, false, &err));
    assert_true(fix_node(&fix.s, "hidden", 0)->read_only);
    assert_true(fix_node(&fix.s, "sdisk", 0)->read_only);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0);
    fix_close(&fix);
}

TEST_LOOP(a_failover_keeps_the_disk_writable)
{
    struct fix fix;
    open_read_only(&fix);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 1), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 2), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 2);
    fix_close(&fix);
}

TEST_LOOP(other_operations_on_the_top_are_refused_with_the_reason_while_it_runs)
{
    struct fix fix;
    fix_open(&fix, 1);
    struct node *top = fix_node(&fix.s, "top", 0);
    fix_start(&fix);
    fix_refused(node_check_blocked(top, "mirror", &err), "replication of node 'rep0' is running");
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_ok(node_check_blocked(top, "mirror", &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    fix_ok(node_check_blocked(fix_node(&fix.s, "rep", 0), "mirror", &err));
    fix_close(&fix);
}

/* --- checkpoints --- */

TEST_LOOP(a_checkpoint_that_cannot_empty_one_overlay_keeps_the_old_epoch_on_all_disks)
{
    static const char *const places[] = {"adebug", "hdebug"};
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        struct fix fix;
        fix_open(&fix, 2);
        fix_start(&fix);
        for (unsigned disk = 0; disk < 2; disk++) {
            assert_int_equal(fix_fill(fix.forward[disk], 0, BLOCK, 1), 0);
            assert_int_equal(fix_fill(fix.top[disk], BLOCK, BLOCK, 2), 0);
        }
        fix_inject(&fix.s, places[i], 1,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_EMPTY, .error = -EIO, .count = 1});
        fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err),
                    "node 'rep1': cannot empty");
        for (unsigned disk = 0; disk < 2; disk++) {
            assert_int_equal(fix_byte(fix.top[disk], 0, BLOCK), 0);
            assert_int_equal(fix_byte(fix.top[disk], BLOCK, BLOCK), 2);
            assert_int_equal(fix_fill(fix.forward[disk], 2 * BLOCK, BLOCK, 3), 0);
            assert_int_equal(fix_byte(fix.top[disk], 2 * BLOCK, BLOCK), 0);
        }
        fix_checkpoint(&fix);
        for (unsigned disk = 0; disk < 2; disk++) {
            assert_int_equal(fix_byte(fix.top[disk], 0, BLOCK), 1);
            assert_int_equal(fix_byte(fix.top[disk], BLOCK, BLOCK), 0);
            assert_int_equal(fix_byte(fix.top[disk], 2 * BLOCK, BLOCK), 3);
        }
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

struct late {
    struct fix *fix;
    int result;
    bool done;
};

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
    struct edge *peer = fix.peer[0];
    fix.peer[0] = fix.top[0]; /* late_write writes there */
    struct late write = {.fix = &fix};
    assert_int_equal(co_spawn(fix.loop, "late", late_write, &write), 0);
    assert_int_equal(blkdebug_await_held(adebug, 0, 1, soon(&fix)), 0);
    fix.peer[0] = peer;
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
    query = replication_query(fix.p.group);
    expect_text(query, "error.side", "primary");
    expect_text(query, "disks.1.error.node", "plink1");
    expect_text(query, "disks.1.error.offset", "32768");
    expect_text(query, "disks.1.error.errno", "EIO");
    json_object_put(query);
    blkdebug_remove(fix_node(&fix.s, "sdisk", 1), 0);
    fix_close(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_start_in_the_wrong_mode_is_refused),
        cmocka_unit_test(before_its_first_synchronisation_a_secondary_has_nothing_to_fall_back_to),
        cmocka_unit_test(a_start_without_a_backing_disk_is_refused),
        cmocka_unit_test(a_start_on_disks_of_several_lengths_is_refused),
        cmocka_unit_test(a_start_on_layers_that_cannot_be_emptied_is_refused),
        cmocka_unit_test(a_start_whose_top_is_not_above_the_filter_is_refused),
        cmocka_unit_test(a_filter_may_be_its_own_top),
        cmocka_unit_test(a_start_whose_first_checkpoint_fails_leaves_nothing_and_can_be_repeated),
        cmocka_unit_test(one_disk_that_cannot_start_keeps_the_others_from_starting),
        cmocka_unit_test(read_only_disks_become_writable_for_the_run_and_read_only_again),
        cmocka_unit_test(a_failover_keeps_the_disk_writable),
        cmocka_unit_test(other_operations_on_the_top_are_refused_with_the_reason_while_it_runs),
        cmocka_unit_test(
            a_checkpoint_that_cannot_empty_one_overlay_keeps_the_old_epoch_on_all_disks),
        cmocka_unit_test(a_checkpoint_after_a_failed_flush_of_a_disk_fails),
        cmocka_unit_test(checkpoints_under_load_fall_between_whole_writes_on_all_disks),
        cmocka_unit_test(a_fence_that_fails_leaves_everything_running),
        cmocka_unit_test(a_failover_waits_for_the_peers_last_writes_and_takes_none_after),
        cmocka_unit_test(a_users_write_under_way_at_the_failover_is_not_lost),
        cmocka_unit_test(a_write_after_the_failover_is_not_undone_by_one_from_before),
        cmocka_unit_test(a_write_that_does_not_reach_the_disk_late_in_a_merge_is_copied_again),
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
