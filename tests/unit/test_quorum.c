/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct fixture {
    struct graph *graph;
    struct node *mem[3], *debug[3], *node;
    struct edge *edge;
    unsigned failures, bad;
    char bad_node[NODE_NAME_BYTES], bad_type[16];
};

static void note_event(void *arg, const char *name, struct json_object *data)
{
    struct fixture *f = arg;
    struct json_object *value;

    if (strcmp(name, "QUORUM_FAILURE") == 0) {
        f->failures++;
        assert_true(json_object_object_get_ex(data, "reference", &value));
        assert_string_equal(json_object_get_string(value), "top");
    } else {
        assert_string_equal(name, "QUORUM_REPORT_BAD");
        f->bad++;
        assert_true(json_object_object_get_ex(data, "node-name", &value));
        snprintf(f->bad_node, sizeof(f->bad_node), "%s", json_object_get_string(value));
        assert_true(json_object_object_get_ex(data, "type", &value));
        snprintf(f->bad_type, sizeof(f->bad_type), "%s", json_object_get_string(value));
        assert_true(json_object_object_get_ex(data, "sector-num", &value));
        assert_true(json_object_object_get_ex(data, "sectors-count", &value));
    }
    json_object_put(data);
}

static void set_up(struct fixture *f, unsigned children, unsigned threshold) MAY_WAIT
{
    char names[64] = "";

    *f = (struct fixture){.graph = blocks_graph()};
    graph_set_events(f->graph, note_event, f);
    for (unsigned i = 0; i < 3; i++) {
        f->mem[i] = blocks_add(f->graph, "{'node-name':'mem%u','driver':'mem','yields':2}", i);
        f->debug[i] = blocks_add(f->graph, "{'node-name':'d%u','driver':'blkdebug','file':'mem%u'}",
                                 i, i);
        if (i < children)
            snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s'd%u'",
                     i > 0 ? "," : "", i);
    }
    f->node = blocks_add(f->graph,
                         "{'node-name':'top','driver':'quorum','children':[%s],"
                         "'vote-threshold':%u,'read-pattern':'fifo'}",
                         names, threshold);
    f->edge = blocks_root(f->graph, f->node, "test");
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
}

static void fail_next(struct node *debug, unsigned kinds, int error, bool after)
{
    const struct blkdebug_rule rule = {.kinds = kinds, .count = 1, .error = error, .after = after};

    assert_int_equal(blkdebug_inject(debug, &rule, NULL), 0);
}

TEST_LOOP(changes_reach_all_children)
{
    struct fixture f;

    set_up(&f, 3, 3);
    assert_int_equal(blocks_write(f.edge, 1000, 5000, 0xaa, IO_FUA), 0);
    assert_int_equal(blocks_zero(f.edge, 2000, 500, IO_MAY_UNMAP), 0);
    assert_int_equal(blocks_discard(f.edge, 4096, 512), 0);
    assert_int_equal(io_flush(f.edge), 0);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(mem_bytes(f.mem[i])[1000], 0xaa);
        assert_int_equal(mem_bytes(f.mem[i])[2000], 0);
        assert_int_equal(mem_bytes(f.mem[i])[2500], 0xaa);
        assert_int_equal(mem_stats(f.mem[i])->discards, 1);
        assert_true(mem_stats(f.mem[i])->flushes >= 1);
        assert_int_equal(mem_stats(f.mem[i])->reads, 0);
    }
    blocks_expect(f.edge, 1000, 1000, 0xaa);
    assert_int_equal(mem_stats(f.mem[1])->reads, 0);
    assert_int_equal(f.bad + f.failures, 0);
    tear_down(&f);
}

TEST_LOOP(a_write_that_the_first_child_lost_is_never_acknowledged)
{
    struct fixture f;

    set_up(&f, 2, 1);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 0x11, 0), 0);
    fail_next(f.debug[0], BLKDEBUG_WRITE, -EIO, false);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 0x22, 0), -EIO);
    assert_int_equal(f.failures, 1);
    assert_int_equal(f.bad, 1);
    assert_string_equal(f.bad_node, "d0");
    assert_string_equal(f.bad_type, "write");
    fail_next(f.debug[0], BLKDEBUG_ZERO, -ENOSPC, false);
    assert_int_equal(blocks_zero(f.edge, 0, 4096, 0), -ENOSPC);
    fail_next(f.debug[0], BLKDEBUG_FLUSH, -EIO, false);
    assert_int_equal(io_flush(f.edge), -EIO);
    assert_string_equal(f.bad_type, "flush");
    tear_down(&f);
}

TEST_LOOP(reads_never_come_from_a_child_that_missed_an_acknowledged_write)
{
    struct fixture f;
    uint8_t byte;

    set_up(&f, 3, 1);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 0x11, 0), 0);
    fail_next(f.debug[1], BLKDEBUG_WRITE, -EIO, false);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 0x22, 0), 0);
    assert_int_equal(f.failures, 0);
    assert_int_equal(f.bad, 1);
    /* The first cannot be read: the second still has 0x11, so the third is asked. */
    fail_next(f.debug[0], BLKDEBUG_READ, -EIO, false);
    blocks_expect(f.edge, 0, 512, 0x22);
    assert_string_equal(f.bad_type, "read");
    assert_int_equal(mem_stats(f.mem[1])->reads, 0);
    fail_next(f.debug[0], BLKDEBUG_READ, -ENXIO, false);
    fail_next(f.debug[2], BLKDEBUG_READ, -EIO, false);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -ENXIO);
    assert_int_equal(f.failures, 1);
    tear_down(&f);
}

TEST_LOOP(fewer_than_the_threshold_is_a_failure)
{
    struct fixture f;

    set_up(&f, 3, 2);
    fail_next(f.debug[2], BLKDEBUG_WRITE, -EIO, false);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    fail_next(f.debug[1], BLKDEBUG_WRITE, -EIO, false);
    fail_next(f.debug[2], BLKDEBUG_WRITE, -ENOSPC, false);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), -EIO);
    assert_int_equal(f.failures, 1);
    tear_down(&f);
}

TEST_LOOP(children_are_written_at_the_same_time)
{
    struct fixture f;
    struct blocks_task task;
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .count = 1, .hold = true};
    uint64_t deadline = loop_now_ns(loop_current()) + 10 * NS_PER_S;

    set_up(&f, 3, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(blkdebug_inject(f.debug[i], &hold, NULL), 0);
    blocks_start_write(&task, f.edge, 0, 4096, 0x33);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(blkdebug_await_held(f.debug[i], 0, 1, deadline), 0);
    assert_false(task.done);
    for (unsigned i = 3; i-- > 0;)
        blkdebug_release(f.debug[i], 0);
    test_wait_until(task.done);
    assert_int_equal(task.result, 0);
    tear_down(&f);
}

TEST_LOOP(overlapping_writes_reach_all_children_in_one_order)
{
    struct fixture f;
    struct blocks_task first, second;
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .count = 1, .hold = true};
    uint64_t deadline = loop_now_ns(loop_current()) + 10 * NS_PER_S;

    set_up(&f, 2, 2);
    assert_int_equal(blkdebug_inject(f.debug[1], &hold, NULL), 0);
    blocks_start_write(&first, f.edge, 0, 4096, 0x11);
    assert_int_equal(blkdebug_await_held(f.debug[1], 0, 1, deadline), 0);
    /* It may overtake the first on no child. */
    blocks_start_write(&second, f.edge, 2048, 4096, 0x22);
    co_sleep(NS_PER_MS);
    assert_int_equal(mem_stats(f.mem[0])->writes, 1);
    assert_int_equal(mem_stats(f.mem[1])->writes, 0);
    blkdebug_release(f.debug[1], 0);
    test_wait_until(first.done && second.done);
    assert_memory_equal(mem_bytes(f.mem[0]), mem_bytes(f.mem[1]), 8192);
    blocks_expect(f.edge, 2048, 4096, 0x22);
    tear_down(&f);
}

/* As QEMU does: the next number, and the last one is given again when its child has gone. */
TEST_LOOP(children_come_and_go_with_their_numbers)
{
    struct fixture f;
    struct err err = ERR_INIT;

    set_up(&f, 1, 1);
    assert_int_equal(graph_child_del(f.graph, f.node, "children.0", &err), -EBUSY);
    assert_int_equal(graph_child_add(f.graph, f.node, f.debug[1], &err), 0);
    assert_ptr_equal(node_child(f.node, "children.1")->child, f.debug[1]);
    assert_int_equal(graph_child_add(f.graph, f.node, f.debug[2], &err), 0);
    assert_non_null(node_child(f.node, "children.2"));
    assert_int_equal(graph_child_del(f.graph, f.node, "children.1", &err), 0);
    assert_int_equal(graph_child_add(f.graph, f.node, f.debug[1], &err), 0);
    assert_non_null(node_child(f.node, "children.3"));
    assert_int_equal(graph_child_del(f.graph, f.node, "children.3", &err), 0);
    assert_int_equal(graph_child_add(f.graph, f.node, f.debug[1], &err), 0);
    assert_non_null(node_child(f.node, "children.3"));
    assert_int_equal(blocks_write(f.edge, 0, 512, 0x55, 0), 0);
    assert_int_equal(mem_bytes(f.mem[1])[0], 0x55);
    tear_down(&f);
}

TEST_LOOP(a_child_goes_while_requests_are_under_way)
{
    struct fixture f;
    struct err err = ERR_INIT;

    set_up(&f, 2, 1);
    for (unsigned round = 0; round < 20; round++) {
        struct blocks_task tasks[8];
        char name[32];

        for (unsigned i = 0; i < 8; i++)
            blocks_start_write(&tasks[i], f.edge, i * 4096, 4096, (uint8_t)round);
        co_yield();
        snprintf(name, sizeof(name), "children.1");
        assert_int_equal(graph_child_del(f.graph, f.node, name, &err), 0);
        for (unsigned i = 0; i < 8; i++) {
            test_wait_until(tasks[i].done);
            assert_int_equal(tasks[i].result, 0);
        }
        assert_int_equal(graph_child_add(f.graph, f.node, f.debug[1], &err), 0);
    }
    assert_int_equal(f.bad + f.failures, 0);
    tear_down(&f);
}

/* The only one that has all acknowledged writes may not go. */
TEST_LOOP(the_last_good_child_stays)
{
    struct fixture f;
    struct err err = ERR_INIT;

    set_up(&f, 2, 1);
    fail_next(f.debug[1], BLKDEBUG_WRITE, -EIO, false);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(graph_child_del(f.graph, f.node, "children.0", &err), -EBUSY);
    assert_non_null(strstr(err.text, "missed no write"));
    assert_int_equal(graph_child_del(f.graph, f.node, "children.1", &err), 0);
    tear_down(&f);
}

TEST_LOOP(what_it_cannot_do_is_refused_with_the_reason)
{
    struct graph *graph = blocks_graph();

    blocks_add_fails(graph, "2 is more than 1",
                     "{'driver':'quorum','vote-threshold':2,'read-pattern':'fifo',"
                     "'children':[{'driver':'mem'}]}");
    blocks_add_fails(graph, "vote-threshold",
                     "{'driver':'quorum','read-pattern':'fifo','children':[{'driver':'mem'}]}");
    blocks_add_fails(graph, "must be equal",
                     "{'driver':'quorum','vote-threshold':1,'read-pattern':'fifo',"
                     "'children':[{'driver':'mem'},{'driver':'mem','size':4096}]}");
    blocks_add_fails(graph, "rewrite-corrupted",
                     "{'driver':'quorum','vote-threshold':1,'read-pattern':'fifo',"
                     "'rewrite-corrupted':true,'children':[{'driver':'mem'}]}");
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_reach_all_children),
        cmocka_unit_test(a_write_that_the_first_child_lost_is_never_acknowledged),
        cmocka_unit_test(reads_never_come_from_a_child_that_missed_an_acknowledged_write),
        cmocka_unit_test(fewer_than_the_threshold_is_a_failure),
        cmocka_unit_test(children_are_written_at_the_same_time),
        cmocka_unit_test(overlapping_writes_reach_all_children_in_one_order),
        cmocka_unit_test(children_come_and_go_with_their_numbers),
        cmocka_unit_test(a_child_goes_while_requests_are_under_way),
        cmocka_unit_test(the_last_good_child_stays),
        cmocka_unit_test(what_it_cannot_do_is_refused_with_the_reason),
    };

    return cmocka_run_group_tests_name("quorum", tests, NULL, NULL);
}
