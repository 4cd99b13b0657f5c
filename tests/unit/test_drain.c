/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Drains: whole requests have ended or have not begun, whatever happens to the graph meanwhile. */
#include "blocks.h"

#include <errno.h>

struct drain_task {
    struct node *nodes[2];
    size_t count;
    struct graph_drain drain;
    bool begun;
};

static void drain_run(void *arg) MAY_WAIT
{
    struct drain_task *task = arg;

    assert_int_equal(graph_drain_begin(task->nodes, task->count, &task->drain), 0);
    task->begun = true;
}

static void yield_often(void) MAY_WAIT
{
    for (int i = 0; i < 50; i++)
        co_yield();
}

TEST_LOOP(a_drain_waits_for_requests_inside_and_holds_new_ones)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(
        graph, "{'node-name':'d','driver':'blkdebug','file':{'driver':'mem','align':512}}");
    struct node *top = blocks_add(graph, "{'node-name':'t','driver':'pass','file':'d'}");
    struct edge *direct = blocks_root(graph, disk, "direct"), *above = blocks_root(graph, top, "a");
    struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .count = 2, .hold = true};
    struct blocks_task inside[2], later[2];
    struct drain_task task = {.nodes = {disk}, .count = 1};

    assert_int_equal(blkdebug_inject(disk, &hold, NULL), 0);
    blocks_start_write(&inside[0], direct, 0, 4096, 1);
    blocks_start_write(&inside[1], above, 8192, 4096, 1);
    assert_int_equal(blkdebug_await_held(disk, 0, 2, DEADLINE_NEVER), 0);
    assert_int_equal(co_spawn(loop_current(), "drain", drain_run, &task), 0);
    yield_often();
    assert_false(task.begun);
    blocks_start_write(&later[0], direct, 0, 4096, 2);
    blocks_start_write(&later[1], above, 8192, 4096, 2);
    blkdebug_release(disk, 0);
    test_wait_until(task.begun);
    assert_true(inside[0].done && inside[1].done);
    yield_often();
    assert_false(later[0].done || later[1].done);
    assert_int_equal(mem_bytes(disk->file->child)[0], 1);
    graph_drain_end(&task.drain);
    test_wait_until(later[0].done && later[1].done);
    blocks_expect(direct, 0, 4096, 2);
    graph_detach(direct);
    graph_detach(above);
    graph_free(graph);
}

TEST_LOOP(drains_nest_and_cover_several_disks)
{
    struct graph *graph = blocks_graph();
    struct node *nodes[2] = {blocks_add(graph, "{'node-name':'a','driver':'mem'}"),
                             blocks_add(graph, "{'node-name':'b','driver':'mem'}")};
    struct edge *edges[2] = {blocks_root(graph, nodes[0], "a"), blocks_root(graph, nodes[1], "b")};
    struct graph_drain both, one;
    struct blocks_task tasks[2];

    assert_int_equal(graph_drain_begin(nodes, 2, &both), 0);
    assert_int_equal(graph_drain_begin(nodes, 1, &one), 0);
    blocks_start_write(&tasks[0], edges[0], 0, 512, 1);
    blocks_start_write(&tasks[1], edges[1], 0, 512, 1);
    graph_drain_end(&both);
    test_wait_until(tasks[1].done);
    assert_false(tasks[0].done);
    graph_drain_end(&one);
    test_wait_until(tasks[0].done);
    graph_detach(edges[0]);
    graph_detach(edges[1]);
    graph_free(graph);
}

/* Export added in the middle of a checkpoint: it must not write between the disks' switches. */
TEST_LOOP(a_root_that_comes_during_a_drain_is_held_too)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'d','driver':'mem'}");
    struct node *top = blocks_add(graph, "{'node-name':'t','driver':'pass','file':'d'}");
    struct node *other = blocks_add(graph, "{'node-name':'o','driver':'mem'}");
    struct edge *edge, *elsewhere;
    struct blocks_task task, free_task;
    struct graph_drain drain;

    assert_int_equal(graph_drain_begin(&disk, 1, &drain), 0);
    edge = blocks_root(graph, top, "late");
    elsewhere = blocks_root(graph, other, "elsewhere");
    blocks_start_write(&task, edge, 0, 512, 1);
    blocks_start_write(&free_task, elsewhere, 0, 512, 1);
    test_wait_until(free_task.done);
    yield_often();
    assert_false(task.done);
    graph_drain_end(&drain);
    test_wait_until(task.done);
    graph_detach(edge);
    graph_detach(elsewhere);
    graph_free(graph);
}

TEST_LOOP(a_graph_change_that_reaches_a_drained_node_brings_its_roots_into_the_drain)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'d','driver':'mem'}");
    struct node *top = blocks_add(graph,
                                  "{'node-name':'t','driver':'pass','file':{'driver':'mem'}}");
    struct edge *edge = blocks_root(graph, top, "r"), *root = NULL;
    struct blocks_task task, root_task;
    struct graph_drain drain;
    struct err err = ERR_INIT;

    root = blocks_root(graph, top->file->child, "second");
    assert_int_equal(graph_drain_begin(&disk, 1, &drain), 0);
    assert_int_equal(graph_replace(top->file, disk, &err), 0);
    assert_int_equal(graph_replace(root, disk, &err), 0);
    blocks_start_write(&task, edge, 0, 512, 1);
    blocks_start_write(&root_task, root, 512, 512, 1);
    yield_often();
    assert_false(task.done || root_task.done);
    assert_int_equal(mem_bytes(disk)[0], 0);
    graph_drain_end(&drain);
    test_wait_until(task.done && root_task.done);
    assert_int_equal(mem_bytes(disk)[0], 1);
    graph_detach(edge);
    graph_detach(root);
    graph_free(graph);
}

struct replace_task {
    struct edge *edge;
    struct node *child;
    bool done;
};

static void replace_run(void *arg) MAY_WAIT
{
    struct replace_task *task = arg;
    struct err err = ERR_INIT;

    assert_int_equal(graph_replace(task->edge, task->child, &err), 0);
    task->done = true;
}

/* It is inside the root, not yet inside the edge that moves: it must not follow that to the disk. */
TEST_LOOP(a_request_under_way_ends_before_its_root_comes_to_lie_above_a_drained_node)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'d','driver':'mem'}");
    struct node *before = blocks_add(graph, "{'node-name':'b','driver':'mem'}");
    struct node *top = blocks_add(graph, "{'node-name':'t','driver':'blkdebug','file':'b',"
                                         "'inject':[{'kind':'write','hold':true}]}");
    struct edge *edge = blocks_root(graph, top, "r");
    struct replace_task replace = {.edge = top->file, .child = disk};
    struct blocks_task task;
    struct graph_drain drain;

    blocks_start_write(&task, edge, 0, 512, 1);
    assert_int_equal(blkdebug_await_held(top, 0, 1, DEADLINE_NEVER), 0);
    assert_int_equal(graph_drain_begin(&disk, 1, &drain), 0);
    assert_int_equal(co_spawn(loop_current(), "replace", replace_run, &replace), 0);
    yield_often();
    assert_false(replace.done);
    blkdebug_release(top, 0);
    test_wait_until(task.done && replace.done);
    assert_int_equal(mem_bytes(before)[0], 1);
    assert_int_equal(mem_bytes(disk)[0], 0);
    graph_drain_end(&drain);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(roots_and_nodes_may_go_while_they_are_drained)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'driver':'mem'}");
    struct edge *edge = blocks_root(graph, disk, "r");
    struct graph_drain drain;

    assert_int_equal(graph_drain_begin(&disk, 1, &drain), 0);
    graph_detach(edge);
    assert_int_equal(mem_open_count, 0);
    disk = blocks_add(graph, "{'driver':'mem'}");
    edge = blocks_root(graph, disk, "r");
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), 0);
    graph_drain_end(&drain);
    graph_detach(edge);
    graph_free(graph);
}

/* A filter is put in while all is held, as a start of replication does it. */
TEST_LOOP(the_graph_can_be_changed_by_who_drains_it)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'d','driver':'mem'}");
    struct edge *edge = blocks_root(graph, disk, "r");
    struct blocks_task task;
    struct graph_drain drain;
    struct err err = ERR_INIT;
    struct node *filter;

    assert_int_equal(graph_drain_begin(&disk, 1, &drain), 0);
    blocks_start_write(&task, edge, 0, 512, 1);
    graph_change_begin(graph);
    filter = blocks_add(graph, "{'node-name':'f','driver':'pass','file':'d'}");
    assert_int_equal(graph_replace_node(graph, disk, filter, NULL, &err), 0);
    graph_change_end(graph);
    yield_often();
    assert_false(task.done);
    graph_drain_end(&drain);
    test_wait_until(task.done);
    assert_int_equal(filter->stats.write.requests, 1);
    graph_detach(edge);
    graph_free(graph);
}

/* --- all of it at once --- */

#define WRITERS       6
#define CHANGERS      3
#define CHANGES       400
#define MAX_CHAIN     20u
#define WRITER_BYTES  (64u * 1024)
#define PAUSE_PERCENT 40

struct crowd {
    struct graph *graph;
    struct node *disk;
    struct edge *roots[2];
    struct co_group writers, changers;
    uint64_t seed;
    bool stop;
};

struct crowd_writer {
    struct crowd *crowd;
    unsigned index;
    uint8_t fill;
};

static void crowd_write(void *arg) MAY_WAIT
{
    struct crowd_writer *writer = arg;
    struct crowd *crowd = writer->crowd;
    uint64_t offset = writer->index * WRITER_BYTES + 300;

    while (!crowd->stop) {
        struct edge *edge = crowd->roots[writer->index % 2];

        writer->fill++;
        assert_int_equal(blocks_write(edge, offset, 2000, writer->fill, 0), 0);
        blocks_expect(edge, offset, 2000, writer->fill);
        co_yield();
    }
    co_group_leave(&crowd->writers);
}

static void insert_filter(struct crowd *crowd) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct node *below, *filter;
    unsigned length = 0;

    graph_change_begin(crowd->graph);
    /* Anywhere in the chain, but not above too long a one. */
    below = crowd->disk;
    for (struct node *node = crowd->roots[0]->child; node != crowd->disk;
         node = node->file->child) {
        if (length++ == 0 || test_random(&crowd->seed) % 3 == 0)
            below = node;
    }
    if (length < MAX_CHAIN) {
        filter = blocks_add(crowd->graph, "{'driver':'pass','file':'%s'}", below->name);
        assert_int_equal(graph_replace_node(crowd->graph, below, filter, NULL, &err), 0);
    }
    graph_change_end(crowd->graph);
}

static void remove_filter(struct crowd *crowd) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct node *filter;

    graph_change_begin(crowd->graph);
    filter = crowd->roots[test_random(&crowd->seed) % 2]->child;
    if (filter != crowd->disk)
        assert_int_equal(graph_replace_node(crowd->graph, filter, filter->file->child, NULL, &err),
                         0);
    graph_change_end(crowd->graph);
}

/* While it stands, nothing moves on the disk. */
static void drain_for_a_while(struct crowd *crowd) MAY_WAIT
{
    struct graph_drain drain;
    uint64_t writes;

    assert_int_equal(graph_drain_begin(&crowd->disk, 1, &drain), 0);
    writes = mem_stats(crowd->disk)->writes;
    assert_int_equal(crowd->disk->unlocked_writes + crowd->disk->rmw_running, 0);
    for (uint64_t i = test_random(&crowd->seed) % 10; i > 0; i--) {
        co_yield();
        assert_int_equal(mem_stats(crowd->disk)->writes, writes);
    }
    graph_drain_end(&drain);
}

static void attach_for_a_while(struct crowd *crowd) MAY_WAIT
{
    struct node *node = node_ref(crowd->roots[test_random(&crowd->seed) % 2]->child);
    struct edge *edge = blocks_root(crowd->graph, node, "visitor");

    node_unref(node);
    assert_int_equal(blocks_write(edge, WRITERS * WRITER_BYTES, 512, 1, 0), 0);
    graph_detach(edge);
}

static void crowd_change(void *arg) MAY_WAIT
{
    struct crowd *crowd = arg;

    for (int i = 0; i < CHANGES; i++) {
        switch (test_random(&crowd->seed) % 5) {
        case 0:
        case 1:
            insert_filter(crowd);
            break;
        case 2:
            remove_filter(crowd);
            break;
        case 3:
            drain_for_a_while(crowd);
            break;
        default:
            attach_for_a_while(crowd);
        }
        if (test_random(&crowd->seed) % 100 < PAUSE_PERCENT)
            co_yield();
    }
    co_group_leave(&crowd->changers);
}

TEST_LOOP(filters_drains_and_roots_come_and_go_at_once_and_nothing_is_lost_or_stuck)
{
    struct crowd crowd = {.graph = blocks_graph()};
    struct crowd_writer writers[WRITERS];

    crowd.seed = test_seed("filters_drains_and_roots");
    crowd.disk = blocks_add(crowd.graph, "{'node-name':'disk','driver':'mem','align':512,"
                                         "'yields':1}");
    crowd.roots[0] = blocks_root(crowd.graph, crowd.disk, "a");
    crowd.roots[1] = blocks_root(crowd.graph, crowd.disk, "b");
    co_group_init(&crowd.writers);
    co_group_init(&crowd.changers);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct crowd_writer){&crowd, i, 0};
        co_group_enter(&crowd.writers);
        assert_int_equal(co_spawn(loop_current(), "writer", crowd_write, &writers[i]), 0);
    }
    for (unsigned i = 0; i < CHANGERS; i++) {
        co_group_enter(&crowd.changers);
        assert_int_equal(co_spawn(loop_current(), "changer", crowd_change, &crowd), 0);
    }
    assert_int_equal(co_group_wait(&crowd.changers), 0);
    crowd.stop = true;
    assert_int_equal(co_group_wait(&crowd.writers), 0);
    for (unsigned i = 0; i < WRITERS; i++)
        blocks_expect(crowd.roots[0], i * WRITER_BYTES + 300, 2000, writers[i].fill);
    graph_detach(crowd.roots[0]);
    graph_detach(crowd.roots[1]);
    graph_free(crowd.graph);
    assert_int_equal(mem_open_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_drain_waits_for_requests_inside_and_holds_new_ones),
        cmocka_unit_test(drains_nest_and_cover_several_disks),
        cmocka_unit_test(a_root_that_comes_during_a_drain_is_held_too),
        cmocka_unit_test(
            a_graph_change_that_reaches_a_drained_node_brings_its_roots_into_the_drain),
        cmocka_unit_test(
            a_request_under_way_ends_before_its_root_comes_to_lie_above_a_drained_node),
        cmocka_unit_test(roots_and_nodes_may_go_while_they_are_drained),
        cmocka_unit_test(the_graph_can_be_changed_by_who_drains_it),
        cmocka_unit_test(filters_drains_and_roots_come_and_go_at_once_and_nothing_is_lost_or_stuck),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
