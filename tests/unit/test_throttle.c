/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include "base/json.h"
#include "block/object.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct fixture {
    struct graph *graph;
    struct node *mem, *debug, *node;
    struct edge *edge;
};

/* throttle above blkdebug above mem. */
static struct fixture set_up(const char *options) MAY_WAIT
{
    struct fixture f = {.graph = blocks_graph()};

    f.mem = blocks_add(f.graph, "{'node-name':'mem','driver':'mem'}");
    f.debug = blocks_add(f.graph, "{'node-name':'debug','driver':'blkdebug','file':'mem'}");
    f.node = blocks_add(f.graph, "{'node-name':'top','driver':'throttle','file':'debug'%s}",
                        options);
    f.edge = blocks_root(f.graph, f.node, "test");
    return f;
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
}

static uint64_t now_ns(void)
{
    return loop_clock_ns(loop_current());
}

/* What limits count time from: read once a turn. */
static uint64_t turn_ns(void)
{
    return loop_now_ns(loop_current());
}

static int add_object(struct graph *graph, const char *text, struct err *err)
{
    CLEANUP(json_putp) struct json_object *options = NULL;

    if (json_parse(text, strlen(text), "test", &options, err) < 0)
        fail_msg("%s", err->text);
    return object_add(graph, options, OPTS_JSON, "object-add", err);
}

/* --- many requests at once --- */

enum what { READ, WRITE, ZERO, DISCARD, FLUSH };

struct task {
    struct edge *edge;
    enum what what;
    uint64_t length;
    bool done;
    int result;
    uint64_t done_ns;
    unsigned *order, place;
};

static void task_main(void *arg) MAY_WAIT
{
    struct task *task = arg;
    static uint8_t bytes[65536];

    switch (task->what) {
    case READ:
        task->result = blocks_read_bytes(task->edge, 0, bytes, task->length, 0);
        break;
    case WRITE:
        task->result = blocks_write(task->edge, 0, task->length, 1, 0);
        break;
    case ZERO:
        task->result = blocks_zero(task->edge, 0, task->length, 0);
        break;
    case DISCARD:
        task->result = blocks_discard(task->edge, 0, task->length);
        break;
    default:
        task->result = io_flush(task->edge);
    }
    task->done_ns = now_ns();
    task->place = task->order != NULL ? (*task->order)++ : 0;
    task->done = true;
}

/* `order` may be NULL; it counts who ends. */
static void start(struct task *task, struct edge *edge, enum what what, uint64_t length,
                  unsigned *order)
{
    *task = (struct task){
        .edge = edge, .what = what, .length = length, .result = 1, .order = order};
    assert_int_equal(co_spawn_now(graph_loop(edge->graph), "task", task_main, task), 0);
}

/* `count` requests at once; how long they took together. */
static uint64_t run(struct edge *edge, enum what what, uint64_t length, unsigned count) MAY_WAIT
{
    struct task *tasks = calloc(count, sizeof(*tasks));
    uint64_t began_ns = turn_ns();

    assert_non_null(tasks);
    for (unsigned i = 0; i < count; i++)
        start(&tasks[i], edge, what, length, NULL);
    for (unsigned i = 0; i < count; i++) {
        test_wait_until(tasks[i].done);
        assert_int_equal(tasks[i].result, 0);
    }
    free(tasks);
    return now_ns() - began_ns;
}

static void assert_between_ms(uint64_t took_ns, unsigned at_least, unsigned at_most)
{
    if (took_ns < at_least * NS_PER_MS)
        fail_msg("it took %llu us, less than %u ms", (unsigned long long)(took_ns / NS_PER_US),
                 at_least);
    /* A loaded machine may be late; virtual time is not. */
    if (test_loop_is_sim() && took_ns > at_most * NS_PER_MS)
        fail_msg("it took %llu us, more than %u ms", (unsigned long long)(took_ns / NS_PER_US),
                 at_most);
}

/* A tenth of a second's worth goes at once (and one more, which overfills), the rest at the rate. */
TEST_LOOP(requests_per_second_are_kept)
{
    struct fixture f = set_up(",'limits':{'iops-total':1000}");
    uint64_t began_ns = turn_ns();

    assert_between_ms(run(f.edge, WRITE, 4096, 100), 0, 5);
    run(f.edge, READ, 4096, 101);
    assert_between_ms(now_ns() - began_ns, 99, 110);
    tear_down(&f);
}

TEST_LOOP(bytes_per_second_are_kept)
{
    struct fixture f = set_up(",'limits':{'bps-total':1048576}");
    uint64_t began_ns = turn_ns();

    assert_between_ms(run(f.edge, WRITE, 4096, 27), 0, 10);
    /* The bucket takes 100 KiB and a little more; the other 64 KiB leak out in 64 ms. */
    run(f.edge, WRITE, 4096, 16);
    assert_between_ms(now_ns() - began_ns, 63, 75);
    tear_down(&f);
}

TEST_LOOP(reads_and_writes_have_limits_of_their_own)
{
    struct fixture f = set_up(",'limits':{'iops-read':100,'bps-write':1048576}");
    uint64_t began_ns;

    assert_between_ms(run(f.edge, WRITE, 512, 100), 0, 20);
    assert_between_ms(run(f.edge, READ, 65536, 16), 49, 70);
    began_ns = turn_ns();
    run(f.edge, WRITE, 65536, 2);
    run(f.edge, WRITE, 65536, 2);
    assert_between_ms(now_ns() - began_ns, 86, 160);
    tear_down(&f);
}

TEST_LOOP(zeroes_and_discards_are_writes_and_flushes_are_free)
{
    struct fixture f = set_up(",'limits':{'bps-write':1048576}");
    uint64_t began_ns = turn_ns();

    assert_between_ms(run(f.edge, ZERO, 131072, 1), 0, 2);
    run(f.edge, DISCARD, 131072, 1);
    assert_between_ms(now_ns() - began_ns, 24, 30);
    assert_between_ms(run(f.edge, FLUSH, 0, 50), 0, 2);
    assert_between_ms(run(f.edge, READ, 65536, 50), 0, 5);
    run(f.edge, WRITE, 512, 1);
    assert_between_ms(now_ns() - began_ns, 149, 160);
    tear_down(&f);
}

/* One whole second at the maximum, in any number at once; then the average. */
TEST_LOOP(a_burst_passes_at_its_own_rate_for_its_length)
{
    struct fixture f = set_up(",'limits':{'iops-total':100,'iops-total-max':200}");
    uint64_t began_ns = turn_ns();

    assert_between_ms(run(f.edge, WRITE, 512, 200), 0, 10);
    run(f.edge, WRITE, 512, 11);
    assert_between_ms(now_ns() - began_ns, 99, 120);
    tear_down(&f);
    /* Longer than a second: the rate of the burst is kept too. */
    f = set_up(",'limits':{'iops-total':100,'iops-total-max':1000,'iops-total-max-length':2}");
    began_ns = turn_ns();
    assert_between_ms(run(f.edge, WRITE, 512, 100), 0, 10);
    run(f.edge, WRITE, 512, 101);
    assert_between_ms(now_ns() - began_ns, 99, 120);
    tear_down(&f);
}

TEST_LOOP(large_requests_may_count_as_several)
{
    struct fixture f = set_up(",'limits':{'iops-total':1000,'iops-size':4096}");
    uint64_t began_ns = turn_ns();

    assert_between_ms(run(f.edge, WRITE, 65536, 8), 0, 40);
    run(f.edge, WRITE, 65536, 4);
    assert_between_ms(now_ns() - began_ns, 75, 90);
    tear_down(&f);
}

TEST_LOOP(a_request_that_is_larger_than_all_passes_and_those_behind_it_wait)
{
    struct fixture f = set_up(",'limits':{'bps-total':1000000}");
    uint64_t began_ns = turn_ns();

    assert_between_ms(run(f.edge, ZERO, 200000, 1), 0, 5);
    run(f.edge, WRITE, 512, 1);
    assert_between_ms(now_ns() - began_ns, 99, 120);
    tear_down(&f);
}

TEST_LOOP(without_limits_nothing_waits)
{
    struct fixture f = set_up("");

    assert_between_ms(run(f.edge, WRITE, 4096, 500), 0, 30);
    assert_between_ms(run(f.edge, READ, 4096, 500), 0, 30);
    tear_down(&f);
}

TEST_LOOP(an_idle_time_fills_no_more_than_the_bucket)
{
    struct fixture f = set_up(",'limits':{'iops-total':1000}");

    run(f.edge, WRITE, 512, 150);
    co_sleep(400 * NS_PER_MS);
    assert_between_ms(run(f.edge, WRITE, 512, 150), 48, 60);
    tear_down(&f);
}

/* --- fairness --- */

TEST_LOOP(requests_of_one_kind_go_in_the_order_they_came)
{
    struct fixture f = set_up(",'limits':{'iops-total':500}");
    struct task tasks[80];
    unsigned order = 0;

    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++) {
        start(&tasks[i], f.edge, WRITE, 512, &order);
    }
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        test_wait_until(tasks[i].done);
    /* Those that are let go one by one. */
    for (unsigned i = 52; i < ARRAY_LEN(tasks); i++)
        assert_int_equal(tasks[i].place, i);
    tear_down(&f);
}

/* One write beside a pile of reads gets every second turn, not the last. */
TEST_LOOP(reads_do_not_starve_writes)
{
    struct fixture f = set_up(",'limits':{'iops-total':1000}");
    struct task reads[200], writes[10];
    unsigned order = 0, passed;

    for (unsigned i = 0; i < ARRAY_LEN(reads); i++) {
        start(&reads[i], f.edge, READ, 512, &order);
    }
    for (unsigned i = 0; i < ARRAY_LEN(writes); i++) {
        start(&writes[i], f.edge, WRITE, 512, &order);
    }
    passed = order;
    for (unsigned i = 0; i < ARRAY_LEN(reads); i++)
        test_wait_until(reads[i].done);
    for (unsigned i = 0; i < ARRAY_LEN(writes); i++) {
        test_wait_until(writes[i].done);
        assert_true(writes[i].place < passed + 2 * ARRAY_LEN(writes) + 5);
    }
    tear_down(&f);
}

struct group {
    struct graph *graph;
    struct edge *edges[2];
};

static struct group group_set_up(const char *limits) MAY_WAIT
{
    struct group g = {.graph = blocks_graph()};
    struct err err = ERR_INIT;
    char text[256];

    snprintf(text, sizeof(text), "{'qom-type':'throttle-group','id':'tg','limits':%s}", limits);
    assert_int_equal(add_object(g.graph, text, &err), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct node *node = blocks_add(g.graph,
                                       "{'node-name':'t%u','driver':'throttle',"
                                       "'throttle-group':'tg','file':{'driver':'mem'}}",
                                       i);

        g.edges[i] = blocks_root(g.graph, node, "test");
    }
    return g;
}

static void group_tear_down(struct group *g) MAY_WAIT
{
    for (unsigned i = 0; i < 2; i++)
        graph_detach(g->edges[i]);
    graph_free(g->graph);
}

TEST_LOOP(nodes_of_a_group_share_its_limits_and_take_turns)
{
    struct group g = group_set_up("{'iops-total':1000}");
    struct task many[200], few[10];
    unsigned order = 0, passed;
    uint64_t began_ns = turn_ns();

    for (unsigned i = 0; i < ARRAY_LEN(many); i++) {
        start(&many[i], g.edges[0], WRITE, 512, &order);
    }
    for (unsigned i = 0; i < ARRAY_LEN(few); i++) {
        start(&few[i], g.edges[1], WRITE, 512, &order);
    }
    passed = order;
    for (unsigned i = 0; i < ARRAY_LEN(few); i++) {
        test_wait_until(few[i].done);
        assert_true(few[i].place < passed + 2 * ARRAY_LEN(few) + 5);
    }
    for (unsigned i = 0; i < ARRAY_LEN(many); i++)
        test_wait_until(many[i].done);
    assert_between_ms(now_ns() - began_ns, 105, 125);
    group_tear_down(&g);
}

TEST_LOOP(a_group_that_is_used_stays)
{
    struct group g = group_set_up("{'iops-total':1000}");
    struct err err = ERR_INIT;

    assert_int_equal(object_del(g.graph, "tg", &err), -EBUSY);
    assert_int_equal(add_object(g.graph, "{'qom-type':'throttle-group','id':'tg'}", &err), -EEXIST);
    for (unsigned i = 0; i < 2; i++) {
        graph_detach(g.edges[i]);
        assert_int_equal(graph_del(g.graph, i == 0 ? "t0" : "t1", &err), 0);
    }
    assert_int_equal(object_del(g.graph, "tg", &err), 0);
    assert_int_equal(object_del(g.graph, "tg", &err), -ENOENT);
    assert_null(object_next(g.graph, NULL));
    graph_free(g.graph);
}

/* --- drains --- */

/* 200 requests at 10 a second: half a minute without the drain. */
TEST_LOOP(a_drain_lets_them_all_go)
{
    struct fixture f = set_up(",'limits':{'iops-total':10}");
    struct task tasks[200];
    struct graph_drain drain;
    uint64_t began_ns = turn_ns();

    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        start(&tasks[i], f.edge, i % 2 == 0 ? READ : WRITE, 512, NULL);
    assert_int_equal(graph_drain_begin(&f.mem, 1, &drain), 0);
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++) {
        assert_true(tasks[i].done);
        assert_int_equal(tasks[i].result, 0);
    }
    assert_true(now_ns() - began_ns < 2 * NS_PER_S);
    graph_drain_end(&drain);
    tear_down(&f);
}

TEST_LOOP(changes_of_the_graph_do_not_wait_for_the_throttled)
{
    struct fixture f = set_up(",'limits':{'iops-total':10}");
    struct node *other = blocks_add(f.graph, "{'node-name':'other','driver':'mem'}");
    struct task tasks[50];
    struct err err = ERR_INIT;
    uint64_t began_ns = turn_ns();

    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        start(&tasks[i], f.edge, WRITE, 512, NULL);
    assert_int_equal(graph_replace(f.edge, other, &err), 0);
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        assert_true(tasks[i].done);
    assert_int_equal(mem_stats(f.mem)->writes, 50);
    assert_true(now_ns() - began_ns < 2 * NS_PER_S);
    tear_down(&f);
}

/* Half a minute too. Afterwards the limit is as it was. */
TEST_LOOP(an_edge_that_is_hurried_lets_them_go_until_it_is_not)
{
    struct fixture f = set_up(",'limits':{'iops-total':10}");
    struct task tasks[200], late[3];
    uint64_t began_ns = turn_ns();

    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        start(&tasks[i], f.edge, WRITE, 512, NULL);
    graph_hurry(f.edge, true);
    start(&late[0], f.edge, WRITE, 512, NULL);
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        test_wait_until(tasks[i].done);
    test_wait_until(late[0].done);
    assert_true(now_ns() - began_ns < 2 * NS_PER_S);
    graph_hurry(f.edge, false);
    start(&late[1], f.edge, WRITE, 512, NULL);
    start(&late[2], f.edge, WRITE, 512, NULL);
    co_sleep(50 * NS_PER_MS);
    assert_false(late[2].done);
    graph_hurry(f.edge, true);
    test_wait_until(late[1].done && late[2].done);
    tear_down(&f);
}

/* Also of whom comes later. */
TEST_LOOP(at_the_end_of_a_process_nothing_is_held_back)
{
    struct fixture f = set_up(",'limits':{'iops-total':10}");
    struct task tasks[200];
    uint64_t began_ns = turn_ns();

    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++) {
        start(&tasks[i], f.edge, WRITE, 512, NULL);
        if (i == ARRAY_LEN(tasks) / 2)
            graph_hurry_all(f.graph);
    }
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        test_wait_until(tasks[i].done);
    assert_true(now_ns() - began_ns < 2 * NS_PER_S);
    tear_down(&f);
}

/* Only whom the drain waits for: the other node of the group stays within what is left. */
TEST_LOOP(a_drain_of_one_node_lifts_no_limit_of_another)
{
    struct group g = group_set_up("{'iops-total':100}");
    struct task drained[50], other[20];
    struct graph_drain drain;

    for (unsigned i = 0; i < ARRAY_LEN(drained); i++)
        start(&drained[i], g.edges[0], WRITE, 512, NULL);
    for (unsigned i = 0; i < ARRAY_LEN(other); i++)
        start(&other[i], g.edges[1], WRITE, 512, NULL);
    assert_int_equal(graph_drain_begin(&g.edges[0]->child, 1, &drain), 0);
    for (unsigned i = 0; i < ARRAY_LEN(drained); i++)
        assert_true(drained[i].done);
    assert_false(other[ARRAY_LEN(other) - 1].done);
    graph_drain_end(&drain);
    for (unsigned i = 0; i < ARRAY_LEN(other); i++)
        test_wait_until(other[i].done);
    group_tear_down(&g);
}

/* --- the rest --- */

TEST_LOOP(errors_of_the_child_come_back)
{
    struct fixture f = set_up(",'limits':{'iops-total':100000}");
    const struct blkdebug_rule fail = {.kinds = BLKDEBUG_ANY, .error = -ENXIO};
    struct extent extent;
    uint8_t byte;

    assert_int_equal(blkdebug_inject(f.debug, &fail, NULL), 0);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -ENXIO);
    assert_int_equal(blocks_write(f.edge, 0, 1, 1, 0), -ENXIO);
    assert_int_equal(blocks_zero(f.edge, 0, 1, 0), -ENXIO);
    assert_int_equal(blocks_discard(f.edge, 0, 1), -ENXIO);
    assert_int_equal(io_flush(f.edge), -ENXIO);
    assert_int_equal(io_extents(f.edge, 0, 1, &extent), -ENXIO);
    tear_down(&f);
}

TEST_LOOP(contradictory_limits_are_refused)
{
    static const struct {
        const char *limits, *part;
    } cases[] = {
        {"{'iops-total':1,'iops-read':1}", "'iops-total' and 'iops-read'"},
        {"{'bps-total':1,'bps-write':1}", "'bps-total' and 'bps-write'"},
        {"{'iops-total-max':5}", "'iops-total-max' needs 'iops-total'"},
        {"{'iops-total':10,'iops-total-max':5}", "lower than"},
        {"{'iops-total':10,'iops-total-max-length':5}", "needs 'iops-total-max'"},
        {"{'iops-total':10,'iops-total-max':1000000000000000,'iops-total-max-length':2}",
         "too high"},
        {"{'iops-total':10,'iops-total-max':20,'iops-total-max-length':0}", "max-length"},
        {"{'iops-size':4096}", "iops-size"},
        {"{'iops-total':1000000000000001}", "iops-total"},
        {"{'iops':1}", "iops"},
    };
    struct graph *graph = blocks_graph();

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;
        char text[256];

        snprintf(text, sizeof(text), "{'driver':'throttle','limits':%s,'file':{'driver':'mem'}}",
                 cases[i].limits);
        blocks_add_fails(graph, cases[i].part, text);
        snprintf(text, sizeof(text), "{'qom-type':'throttle-group','id':'x','limits':%s}",
                 cases[i].limits);
        assert_true(add_object(graph, text, &err) < 0);
        assert_non_null(strstr(err.text, cases[i].part));
    }
    assert_null(object_next(graph, NULL));
    blocks_add_fails(graph, "no throttle-group 'none'",
                     "{'driver':'throttle','throttle-group':'none','file':{'driver':'mem'}}");
    graph_free(graph);
}

TEST_LOOP(bad_objects_are_refused)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"{'id':'x'}", "qom-type"},
        {"{'qom-type':'iothread','id':'x'}", "there are: secret, throttle-group"},
        {"{'qom-type':'throttle-group'}", "id"},
        {"{'qom-type':'throttle-group','id':'0x'}", "is no id"},
        {"{'qom-type':'throttle-group','id':'x','limit':{}}", "limit"},
    };
    struct graph *graph = blocks_graph();

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;

        assert_true(add_object(graph, cases[i].text, &err) < 0);
        if (strstr(err.text, cases[i].part) == NULL)
            fail_msg("%s: %s", cases[i].text, err.text);
    }
    graph_free(graph);
}

/* Whatever comes: no more than the rate and what the bucket holds gets through, and all of it ends. */
TEST_LOOP(any_load_stays_within_the_limits)
{
    uint64_t random = test_seed("throttle");

    for (unsigned round = 0; round < 4; round++) {
        struct fixture f = set_up(",'limits':{'bps-total':16777216,'iops-total':2000}");
        struct task tasks[300];
        uint64_t began_ns = turn_ns(), bytes = 0, largest = 0, took_ns, rate_ns;

        for (unsigned i = 0; i < ARRAY_LEN(tasks); i++) {
            uint64_t length = 1 + test_random(&random) % 30000;

            start(&tasks[i], f.edge, (enum what)(test_random(&random) % 4), length, NULL);
            bytes += length;
            largest = MAX(largest, length);
            if (test_random(&random) % 16 == 0)
                co_sleep(test_random(&random) % (2 * NS_PER_MS));
        }
        for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
            test_wait_until(tasks[i].done);
        took_ns = now_ns() - began_ns;
        rate_ns = (bytes - largest - 16777216 / 10) * NS_PER_S / 16777216;
        assert_true(took_ns >= rate_ns);
        assert_true(took_ns >= (300 - 201) * NS_PER_S / 2000 - NS_PER_MS);
        tear_down(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_per_second_are_kept),
        cmocka_unit_test(bytes_per_second_are_kept),
        cmocka_unit_test(reads_and_writes_have_limits_of_their_own),
        cmocka_unit_test(zeroes_and_discards_are_writes_and_flushes_are_free),
        cmocka_unit_test(a_burst_passes_at_its_own_rate_for_its_length),
        cmocka_unit_test(large_requests_may_count_as_several),
        cmocka_unit_test(a_request_that_is_larger_than_all_passes_and_those_behind_it_wait),
        cmocka_unit_test(without_limits_nothing_waits),
        cmocka_unit_test(an_idle_time_fills_no_more_than_the_bucket),
        cmocka_unit_test(requests_of_one_kind_go_in_the_order_they_came),
        cmocka_unit_test(reads_do_not_starve_writes),
        cmocka_unit_test(nodes_of_a_group_share_its_limits_and_take_turns),
        cmocka_unit_test(a_group_that_is_used_stays),
        cmocka_unit_test(a_drain_lets_them_all_go),
        cmocka_unit_test(an_edge_that_is_hurried_lets_them_go_until_it_is_not),
        cmocka_unit_test(at_the_end_of_a_process_nothing_is_held_back),
        cmocka_unit_test(changes_of_the_graph_do_not_wait_for_the_throttled),
        cmocka_unit_test(a_drain_of_one_node_lifts_no_limit_of_another),
        cmocka_unit_test(errors_of_the_child_come_back),
        cmocka_unit_test(contradictory_limits_are_refused),
        cmocka_unit_test(bad_objects_are_refused),
        cmocka_unit_test(any_load_stays_within_the_limits),
    };

    return cmocka_run_group_tests_name("throttle", tests, NULL, NULL);
}
