/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include <errno.h>
#include <stdio.h>

struct fixture {
    struct graph *graph;
    struct node *node;
    struct edge *edge;
};

static struct fixture set_up(const char *inject) MAY_WAIT
{
    struct fixture f = {.graph = blocks_graph()};

    f.node = blocks_add(f.graph, "{'driver':'blkdebug','file':{'driver':'mem'}%s%s}",
                        inject != NULL ? ",'inject':" : "", inject != NULL ? inject : "");
    f.edge = blocks_root(f.graph, f.node, "test");
    return f;
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
}

TEST_LOOP(the_nth_request_of_a_kind_on_a_range_fails)
{
    struct fixture f = set_up("[{'kind':'write','offset':4096,'length':4096,'nth':2,'count':2,"
                              "'errno':28}]");

    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0);
    assert_int_equal(blocks_write(f.edge, 4000, 200, 1, 0), 0);
    assert_int_equal(blocks_write(f.edge, 8192, 4096, 1, 0), 0);
    blocks_expect(f.edge, 4096, 104, 1);
    assert_int_equal(blocks_zero(f.edge, 4096, 4096, 0), 0);
    assert_int_equal(blocks_write(f.edge, 8191, 1, 1, 0), -ENOSPC);
    assert_int_equal(blocks_write(f.edge, 4096, 1, 1, 0), -ENOSPC);
    assert_int_equal(blocks_write(f.edge, 4096, 1, 1, 0), 0);
    assert_int_equal(blkdebug_matches(f.node, 1), 4);
    blkdebug_remove(f.node, 1);
    tear_down(&f);
}

TEST_LOOP(every_kind_can_be_hit)
{
    struct fixture f = set_up(NULL);
    struct blkdebug_rule fail = {.kinds = BLKDEBUG_ANY, .error = -EIO};
    struct extent extent;
    uint8_t byte;

    assert_int_equal(blkdebug_inject(f.node, &fail, NULL), 0);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -EIO);
    assert_int_equal(blocks_write(f.edge, 0, 1, 1, 0), -EIO);
    assert_int_equal(blocks_zero(f.edge, 0, 1, 0), -EIO);
    assert_int_equal(blocks_discard(f.edge, 0, 1), -EIO);
    assert_int_equal(io_flush(f.edge), -EIO);
    assert_int_equal(io_extents(f.edge, 0, 1, &extent), -EIO);
    blkdebug_remove(f.node, 0);
    assert_int_equal(blocks_write(f.edge, 0, 1, 1, 0), 0);
    assert_int_equal(io_extents(f.edge, 0, 1, &extent), 0);
    tear_down(&f);
}

TEST_LOOP(a_rule_may_lose_the_answer_of_what_was_done)
{
    struct fixture f = set_up("[{'kind':'write','errno':5,'after':true}]");

    assert_int_equal(blocks_write(f.edge, 0, 512, 7, 0), -EIO);
    blocks_expect(f.edge, 0, 512, 7);
    tear_down(&f);
}

TEST_LOOP(held_requests_wait_for_their_release)
{
    struct fixture f = set_up("[{'kind':'write','hold':true,'errno':5,'count':0}]");
    struct blocks_task a, b;

    assert_int_equal(blkdebug_await_held(f.node, 0, 1, loop_now_ns(loop_current()) + NS_PER_MS),
                     -ETIMEDOUT);
    blocks_start_write(&a, f.edge, 0, 512, 1);
    blocks_start_write(&b, f.edge, 0, 512, 1);
    assert_int_equal(blkdebug_await_held(f.node, 1, 2, DEADLINE_NEVER), 0);
    /* A removed rule does not forget whom it holds. */
    blkdebug_remove(f.node, 1);
    assert_int_equal(blkdebug_held(f.node, 0), 2);
    blkdebug_release(f.node, 7);
    assert_int_equal(blkdebug_held(f.node, 1), 2);
    blkdebug_release(f.node, 1);
    test_wait_until(a.done && b.done);
    assert_int_equal(a.result, -EIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    tear_down(&f);
}

TEST_LOOP(delays_take_their_time)
{
    struct fixture f = set_up("[{'kind':'flush','delay-ns':3000000}]");
    uint64_t began_ns = loop_clock_ns(loop_current());

    assert_int_equal(io_flush(f.edge), 0);
    assert_true(loop_clock_ns(loop_current()) - began_ns >= 3 * NS_PER_MS);
    tear_down(&f);
}

TEST_LOOP(bad_rules_are_refused)
{
    static const struct {
        const char *inject, *part;
    } cases[] = {
        {"7", "must be a list"},
        {"['x']", "'inject.0' must be an object"},
        {"[{'kind':'write'},{'kind':'wriet'}]", "inject.1"},
        {"[{'kind':'write','nth':0}]", "nth"},
        {"[{'errno':5}]", "kind"},
        {"[{'kind':'any','errno':5000}]", "errno"},
    };
    struct graph *graph = blocks_graph();
    struct fixture f = set_up(NULL);
    struct blkdebug_rule rule = {.kinds = BLKDEBUG_READ};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char text[256];

        snprintf(text, sizeof(text), "{'driver':'blkdebug','inject':%s,'file':{'driver':'mem'}}",
                 cases[i].inject);
        blocks_add_fails(graph, cases[i].part, text);
    }
    blocks_add_fails(graph, "power of two",
                     "{'driver':'blkdebug','align':1000,'file':{'driver':'mem'}}");
    for (unsigned i = 0; i < BLKDEBUG_MAX_RULES; i++)
        assert_int_equal(blkdebug_inject(f.node, &rule, NULL), 0);
    assert_int_equal(blkdebug_inject(f.node, &rule, NULL), -ENOSPC);
    tear_down(&f);
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_nth_request_of_a_kind_on_a_range_fails),
        cmocka_unit_test(every_kind_can_be_hit),
        cmocka_unit_test(a_rule_may_lose_the_answer_of_what_was_done),
        cmocka_unit_test(held_requests_wait_for_their_release),
        cmocka_unit_test(delays_take_their_time),
        cmocka_unit_test(bad_rules_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
