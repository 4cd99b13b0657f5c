/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The graph changes at random, by seed, while requests go through it: filters, children and whole
 * disks come and go, nodes are drained alone and with all below them. A model tells what every read
 * must find; at the end every copy of the disk is compared with it.
 */
#include "blocks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define WRITERS       6
#define CHANGERS      3
#define CHANGES       1000 /* of each changer */
#define STRIPE_BYTES  (32u * 1024)
#define MODEL_BYTES   (WRITERS * STRIPE_BYTES)
#define VISITOR_BYTES 4096u /* behind the model */
#define DISK_BYTES    (MODEL_BYTES + VISITOR_BYTES)
#define MAX_REQUEST   8192u
#define MAX_NODES     40u
#define MAX_CHILDREN  3u
#define DELAY_NS      (100 * NS_PER_US)

struct live {
    struct graph *graph;
    struct node *top; /* quorum */
    struct edge *roots[2];
    struct co_group writers, changers;
    uint64_t seed;
    uint8_t model[MODEL_BYTES];
    bool stop;
};

static uint64_t draw(struct live *live, uint64_t below)
{
    return test_random(&live->seed) % below;
}

/* --- requests --- */

struct live_writer {
    struct live *live;
    unsigned index;
};

static void request(struct live *live, unsigned index) MAY_WAIT
{
    struct edge *edge = live->roots[draw(live, 2)];
    uint64_t length = 1 + draw(live, MAX_REQUEST);
    uint64_t offset = index * STRIPE_BYTES + draw(live, STRIPE_BYTES - length);
    uint8_t *expected = live->model + offset, bytes[MAX_REQUEST];
    uint8_t fill = (uint8_t)draw(live, 256);

    switch (draw(live, 4)) {
    case 0:
        assert_int_equal(blocks_write(edge, offset, length, fill, 0), 0);
        memset(expected, fill, length);
        break;
    case 1:
        assert_int_equal(blocks_zero(edge, offset, length, IO_MAY_UNMAP), 0);
        memset(expected, 0, length);
        break;
    case 2:
        memset(bytes, fill, length);
        bytes[0] = (uint8_t)~fill;
        assert_int_equal(blocks_write_bytes(edge, offset, bytes, length, 1, 0), 0);
        memcpy(expected, bytes, length);
        break;
    default:
        assert_int_equal(blocks_read_bytes(edge, offset, bytes, length, 0), 0);
        assert_memory_equal(bytes, expected, length);
    }
}

static void write_all_the_time(void *arg) MAY_WAIT
{
    struct live_writer *writer = arg;
    struct live *live = writer->live;

    while (!live->stop) {
        request(live, writer->index);
        co_yield();
    }
    co_group_leave(&live->writers);
}

/* --- the graph; under the change lock --- */

static struct node *disk_below(struct node *node)
{
    while (node->file != NULL)
        node = node->file->child;
    return node;
}

/* Any node but the disks: the quorum or a filter, as the dice fall. */
static struct node *any_above_disks(struct live *live, bool want_filter)
{
    struct node *found = want_filter ? NULL : live->top;
    unsigned seen = 1;

    LIST_FOR_EACH(edge, &live->top->children, struct edge, in_parent) {
        for (struct node *node = edge->child; node->file != NULL; node = node->file->child) {
            if (found == NULL || draw(live, ++seen) == 0)
                found = node;
        }
    }
    return found;
}

static struct edge *any_child(struct live *live, unsigned *ret_count)
{
    struct edge *found = NULL;
    unsigned count = 0;

    LIST_FOR_EACH(edge, &live->top->children, struct edge, in_parent) {
        if (draw(live, ++count) == 0)
            found = edge;
    }
    *ret_count = count;
    return found;
}

/* Limits of a throttle are lifted while somebody waits; here they hold requests all the time. */
static struct node *add_filter(struct live *live, const char *below) MAY_WAIT
{
    switch (draw(live, 4)) {
    case 0:
        return blocks_add(live->graph, "{'driver':'pass','file':'%s'}", below);
    case 1:
        return blocks_add(live->graph, "{'driver':'blkdebug','file':'%s','align':1024}", below);
    case 2:
        return blocks_add(live->graph, "{'driver':'raw','file':'%s'}", below);
    default:
        return blocks_add(live->graph,
                          "{'driver':'throttle','file':'%s','limits':{'iops-total':20000}}", below);
    }
}

static struct node *add_disk(struct live *live) MAY_WAIT
{
    return blocks_add(live->graph,
                      "{'driver':'blkdebug','inject':[{'kind':'any','count':0,'delay-ns':%u}],"
                      "'file':{'driver':'mem','size':%u,'align':512,'yields':1}}",
                      (unsigned)DELAY_NS, DISK_BYTES);
}

/* --- changes --- */

static void insert_filter(struct live *live) MAY_WAIT
{
    struct err err = ERR_INIT;

    graph_change_begin(live->graph);
    struct node *at = any_above_disks(live, false);
    unsigned nodes = 0;
    for (struct node *node = NULL; (node = graph_next(live->graph, node)) != NULL;)
        nodes++;
    if (nodes < MAX_NODES) {
        struct node *filter = add_filter(live, at->name);
        assert_int_equal(graph_replace_node(live->graph, at, filter, NULL, &err), 0);
    }
    graph_change_end(live->graph);
}

static void remove_filter(struct live *live) MAY_WAIT
{
    struct err err = ERR_INIT;

    graph_change_begin(live->graph);
    struct node *filter = any_above_disks(live, true);
    /* The lowest one is the disk's own. */
    if (filter != NULL && filter->file->child->file != NULL)
        assert_int_equal(graph_replace_node(live->graph, filter, filter->file->child, NULL, &err),
                         0);
    graph_change_end(live->graph);
}

static void exchange_filter(struct live *live) MAY_WAIT
{
    struct err err = ERR_INIT;

    graph_change_begin(live->graph);
    struct node *filter = any_above_disks(live, true);
    if (filter != NULL && filter->file->child->file != NULL) {
        struct node *other = add_filter(live, filter->file->child->name);
        assert_int_equal(graph_replace_node(live->graph, filter, other, NULL, &err), 0);
    }
    graph_change_end(live->graph);
}

/* While it stands, nothing moves on the disk. */
static void drain_for_a_while(struct live *live) MAY_WAIT
{
    struct graph_drain drain;
    unsigned count;

    if (draw(live, 2) == 0)
        assert_int_equal(graph_drain_begin_subtree(live->top, &drain), 0);
    else
        assert_int_equal(graph_drain_begin(&live->top, 1, &drain), 0);
    struct node *disk = node_ref(disk_below(any_child(live, &count)->child));
    uint8_t before[MODEL_BYTES];
    memcpy(before, mem_bytes(disk), MODEL_BYTES);
    assert_memory_equal(before, live->model, MODEL_BYTES);
    for (uint64_t i = draw(live, 10); i > 0; i--)
        co_yield();
    assert_memory_equal(mem_bytes(disk), before, MODEL_BYTES);
    node_unref(disk);
    graph_drain_end(&drain);
}

static bool drain_holds(const struct graph_drain *drain, const struct node *node)
{
    for (size_t i = 0; i < drain->node_count; i++) {
        if (drain->nodes[i] == node)
            return true;
    }
    return false;
}

/* A new disk gets the content of an old one, with all requests held, and takes its place or comes to
 * stand beside it. */
static void copy_disk(struct live *live) MAY_WAIT
{
    struct node *fresh = node_ref(add_disk(live));
    struct graph_drain drain;
    struct err err = ERR_INIT;
    unsigned count = 0;

    assert_int_equal(graph_drain_begin_subtree(live->top, &drain), 0);
    graph_change_begin(live->graph);
    struct edge *edge = any_child(live, &count);
    struct node *old = edge->child;
    while (old->file->child->file != NULL)
        old = old->file->child;
    if (drain_holds(&drain, disk_below(old))) {
        memcpy(mem_bytes(disk_below(fresh)), mem_bytes(disk_below(old)), DISK_BYTES);
        if (count < MAX_CHILDREN && draw(live, 2) == 0)
            assert_int_equal(graph_child_add(live->graph, live->top, fresh, &err), 0);
        else
            assert_int_equal(graph_replace_node(live->graph, old, fresh, NULL, &err), 0);
    }
    graph_change_end(live->graph);
    graph_drain_end(&drain);
    node_unref(fresh);
}

static void remove_child(struct live *live) MAY_WAIT
{
    struct err err = ERR_INIT;
    char name[EDGE_NAME_BYTES];
    unsigned count;

    snprintf(name, sizeof(name), "%s", any_child(live, &count)->name);
    /* Another may be quicker. */
    int ret = graph_child_del(live->graph, live->top, name, &err);
    assert_true(ret == 0 || ret == -EBUSY || ret == -ENOENT);
}

/* Below the quorum others may only read. */
static void attach_for_a_while(struct live *live) MAY_WAIT
{
    struct node *node = any_above_disks(live, false);
    bool writes = node == live->top;
    unsigned need = PERM_CONSISTENT_READ | (writes ? PERM_WRITE : 0);
    struct err err = ERR_INIT;
    uint8_t bytes[512];
    struct edge *edge;

    assert_int_equal(
        graph_attach_root(live->graph, node, "visitor", need, PERM_ALL, NULL, NULL, &edge, &err),
        0);
    assert_int_equal(blocks_read_bytes(edge, MODEL_BYTES, bytes, sizeof(bytes), 0), 0);
    if (writes)
        assert_int_equal(blocks_write(edge, MODEL_BYTES, sizeof(bytes), 1, 0), 0);
    graph_detach(edge);
}

/* What cannot be leaves everything as it was. */
static void try_the_impossible(struct live *live) MAY_WAIT
{
    struct err err = ERR_INIT;
    unsigned count;

    graph_change_begin(live->graph);
    struct edge *edge = any_child(live, &count);
    struct node *child = edge->child;
    struct node *other = node_ref(blocks_add(live->graph, "{'driver':'mem','size':512}"));
    assert_int_equal(graph_replace_node(live->graph, child, other, NULL, &err), -EINVAL);
    assert_int_equal(graph_replace(edge, live->top, &err), -ELOOP);
    assert_int_equal(graph_del(live->graph, "top", &err), -EBUSY);
    assert_non_null(strstr(err.text, "is in use by "));
    assert_ptr_equal(edge->child, child);
    node_unref(other);
    graph_change_end(live->graph);
}

static void call_change(struct live *live, void (*change)(struct live *live)) MAY_WAIT
{
    change(live);
}

static void (*const changes[])(struct live *live) = {
    insert_filter, insert_filter, remove_filter,      exchange_filter,    drain_for_a_while,
    copy_disk,     remove_child,  attach_for_a_while, try_the_impossible,
};

static void change_all_the_time(void *arg) MAY_WAIT
{
    struct live *live = arg;

    for (int i = 0; i < CHANGES; i++) {
        call_change(live, changes[draw(live, ARRAY_LEN(changes))]);
        if (draw(live, 3) == 0)
            co_sleep(draw(live, 5) * DELAY_NS);
    }
    co_group_leave(&live->changers);
}

/* Each request takes some DELAY_NS per disk: read, change, write, and waits for some others. In the
 * simulator, where nothing else takes time, no hold lasts longer than they do. */
static void check_holds(struct live *live)
{
    const struct graph_holds holds = graph_holds(live->graph);

    assert_true(holds.count > CHANGES);
    if (test_loop_is_sim())
        assert_true(holds.longest_ns < GRAPH_LONG_HOLD_NS);
}

static void check_disks(struct live *live) MAY_WAIT
{
    unsigned copies = 0;

    LIST_FOR_EACH(edge, &live->top->children, struct edge, in_parent) {
        assert_memory_equal(mem_bytes(disk_below(edge->child)), live->model, MODEL_BYTES);
        copies++;
    }
    assert_true(copies >= 1);
}

TEST_LOOP(changes_of_the_graph_below_requests_lose_nothing_and_hold_nobody_for_long)
{
    static struct live live;
    struct live_writer writers[WRITERS];

    live = (struct live){.graph = blocks_graph()};
    live.seed = test_seed("changes_of_the_graph");
    struct node *first = node_ref(add_disk(&live));
    live.top = blocks_add(live.graph,
                          "{'node-name':'top','driver':'quorum','vote-threshold':1,"
                          "'read-pattern':'fifo','children':['%s']}",
                          first->name);
    node_unref(first);
    live.roots[0] = blocks_root(live.graph, live.top, "a");
    live.roots[1] = blocks_root(live.graph, live.top, "b");
    co_group_init(&live.writers);
    co_group_init(&live.changers);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct live_writer){&live, i};
        co_group_enter(&live.writers);
        assert_int_equal(co_spawn(loop_current(), "writer", write_all_the_time, &writers[i]), 0);
    }
    for (unsigned i = 0; i < CHANGERS; i++) {
        co_group_enter(&live.changers);
        assert_int_equal(co_spawn(loop_current(), "changer", change_all_the_time, &live), 0);
    }
    assert_int_equal(co_group_wait(&live.changers), 0);
    live.stop = true;
    assert_int_equal(co_group_wait(&live.writers), 0);
    check_disks(&live);
    check_holds(&live);
    graph_detach(live.roots[0]);
    graph_detach(live.roots[1]);
    graph_free(live.graph);
    assert_int_equal(mem_open_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_of_the_graph_below_requests_lose_nothing_and_hold_nobody_for_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
