/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEM_BYTES    (1u << 20)
#define MAX_CHILDREN 5u

struct fixture {
    struct graph *graph;
    unsigned count;
    struct node *mem[MAX_CHILDREN], *debug[MAX_CHILDREN], *node;
    struct edge *edge;
    unsigned failures, bad;
    /* of the last event */
    char bad_node[NODE_NAME_BYTES], bad_type[16], bad_error[64];
    uint64_t first_sector, sectors;
};

static const char *member(struct json_object *data, const char *name)
{
    struct json_object *value;

    return json_object_object_get_ex(data, name, &value) ? json_object_get_string(value) : "";
}

static void note_event(void *arg, const char *name, struct json_object *data)
{
    struct fixture *f = arg;

    f->first_sector = strtoull(member(data, "sector-num"), NULL, 10);
    f->sectors = strtoull(member(data, "sectors-count"), NULL, 10);
    if (strcmp(name, "QUORUM_FAILURE") == 0) {
        f->failures++;
        assert_string_equal(member(data, "reference"), "top");
        assert_int_equal(json_object_object_length(data), 3);
    } else {
        assert_string_equal(name, "QUORUM_REPORT_BAD");
        f->bad++;
        snprintf(f->bad_node, sizeof(f->bad_node), "%s", member(data, "node-name"));
        snprintf(f->bad_type, sizeof(f->bad_type), "%s", member(data, "type"));
        snprintf(f->bad_error, sizeof(f->bad_error), "%s", member(data, "error"));
    }
    json_object_put(data);
}

static void set_up(struct fixture *f, unsigned children, unsigned threshold, const char *options)
    MAY_WAIT
{
    char names[64] = "";

    *f = (struct fixture){.graph = blocks_graph(), .count = children};
    graph_set_events(f->graph, note_event, f);
    for (unsigned i = 0; i < children; i++) {
        f->mem[i] = blocks_add(f->graph, "{'node-name':'mem%u','driver':'mem','yields':%u}", i, i);
        f->debug[i] = blocks_add(f->graph, "{'node-name':'d%u','driver':'blkdebug','file':'mem%u'}",
                                 i, i);
        snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s'd%u'", i > 0 ? "," : "",
                 i);
    }
    f->node = blocks_add(f->graph,
                         "{'node-name':'top','driver':'quorum','children':[%s],"
                         "'vote-threshold':%u%s}",
                         names, threshold, options);
    f->edge = blocks_root(f->graph, f->node, "test");
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
}

static void fail_next(struct node *debug, unsigned kinds, int error)
{
    const struct blkdebug_rule rule = {.kinds = kinds, .count = 1, .error = error};

    assert_int_equal(blkdebug_inject(debug, &rule, NULL), 0);
}

static unsigned events(const struct fixture *f)
{
    return f->bad + f->failures;
}

TEST_LOOP(children_that_agree_answer_and_all_are_asked)
{
    struct fixture f;

    set_up(&f, 3, 2, "");
    assert_int_equal(blocks_write(f.edge, 1000, 5000, 0xaa, IO_FUA), 0);
    blocks_expect(f.edge, 1000, 5000, 0xaa);
    blocks_expect(f.edge, 0, 1000, 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(mem_stats(f.mem[i])->reads, 2);
    assert_int_equal(events(&f), 0);
    tear_down(&f);
}

TEST_LOOP(who_says_something_else_is_outvoted_and_told_of)
{
    for (unsigned wrong = 0; wrong < 3; wrong++) {
        struct fixture f;
        char name[8];

        set_up(&f, 3, 2, "");
        assert_int_equal(blocks_write(f.edge, 0, 8192, 0x11, 0), 0);
        mem_bytes(f.mem[wrong])[4096 + 77] = 0x12;
        blocks_expect(f.edge, 4096, 1000, 0x11);
        snprintf(name, sizeof(name), "d%u", wrong);
        assert_int_equal(f.bad, 1);
        assert_int_equal(f.failures, 0);
        assert_string_equal(f.bad_node, name);
        assert_string_equal(f.bad_type, "read");
        assert_string_equal(f.bad_error, "");
        assert_int_equal(f.first_sector, 8);
        assert_int_equal(f.sectors, 2);
        /* Nobody asked for a correction. */
        assert_int_equal(mem_bytes(f.mem[wrong])[4096 + 77], 0x12);
        tear_down(&f);
    }
}

TEST_LOOP(without_enough_equal_votes_the_read_fails)
{
    struct fixture f;
    uint8_t byte;

    set_up(&f, 3, 2, "");
    mem_bytes(f.mem[1])[512] = 1;
    mem_bytes(f.mem[2])[512] = 2;
    assert_int_equal(blocks_read_bytes(f.edge, 512, &byte, 1, 0), -EIO);
    assert_int_equal(f.failures, 1);
    assert_int_equal(f.first_sector, 1);
    assert_int_equal(f.sectors, 1);
    blocks_expect(f.edge, 0, 512, 0);
    assert_int_equal(f.failures, 1);
    tear_down(&f);
}

TEST_LOOP(the_most_votes_are_not_always_enough)
{
    struct fixture f;
    uint8_t byte;

    set_up(&f, 5, 3, "");
    for (unsigned i = 2; i < 5; i++)
        mem_bytes(f.mem[i])[0] = (uint8_t)i;
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -EIO);
    assert_int_equal(f.failures, 1);
    mem_bytes(f.mem[4])[0] = 0;
    blocks_expect(f.edge, 0, 1, 0);
    assert_int_equal(f.bad, 2);
    tear_down(&f);
}

TEST_LOOP(two_contents_with_as_many_votes_have_no_winner)
{
    struct fixture f;
    uint8_t byte;

    set_up(&f, 4, 2, "");
    mem_bytes(f.mem[1])[0] = 1;
    mem_bytes(f.mem[3])[0] = 1;
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -EIO);
    assert_int_equal(f.failures, 1);
    mem_bytes(f.mem[0])[0] = 1;
    blocks_expect(f.edge, 0, 1, 1);
    assert_string_equal(f.bad_node, "d2");
    tear_down(&f);
}

TEST_LOOP(a_child_that_cannot_be_read_has_no_vote)
{
    struct fixture f;
    uint8_t byte;

    set_up(&f, 3, 2, "");
    assert_int_equal(blocks_write(f.edge, 0, 512, 7, 0), 0);
    fail_next(f.debug[0], BLKDEBUG_READ, -ENXIO);
    blocks_expect(f.edge, 0, 512, 7);
    assert_int_equal(f.bad, 1);
    assert_string_equal(f.bad_error, strerror(ENXIO));
    /* Too many: the answer is the error that most of them gave. */
    fail_next(f.debug[0], BLKDEBUG_READ, -ENXIO);
    fail_next(f.debug[1], BLKDEBUG_READ, -ENOMEM);
    fail_next(f.debug[2], BLKDEBUG_READ, -ENOMEM);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -ENOMEM);
    assert_int_equal(f.failures, 1);
    /* One that fails and one that lies leave no two that agree. */
    fail_next(f.debug[0], BLKDEBUG_READ, -ENXIO);
    mem_bytes(f.mem[1])[0] = 8;
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -EIO);
    assert_int_equal(f.failures, 2);
    tear_down(&f);
}

/* --- correction --- */

TEST_LOOP(who_lost_is_corrected_when_that_is_asked_for)
{
    struct fixture f;
    struct err err = ERR_INIT;

    set_up(&f, 3, 2, ",'rewrite-corrupted':true");
    assert_int_equal(blocks_write(f.edge, 0, 8192, 0x21, 0), 0);
    memset(mem_bytes(f.mem[1]) + 1000, 0xff, 3000);
    /* Whoever reads needs no right to write for that. */
    assert_int_equal(graph_set_perms(f.edge, PERM_CONSISTENT_READ, PERM_ALL, &err), 0);
    blocks_expect(f.edge, 0, 8192, 0x21);
    assert_int_equal(f.bad, 1);
    assert_string_equal(f.bad_node, "d1");
    assert_memory_equal(mem_bytes(f.mem[1]), mem_bytes(f.mem[0]), MEM_BYTES);
    blocks_expect(f.edge, 0, 8192, 0x21);
    assert_int_equal(f.bad, 1);
    tear_down(&f);
}

TEST_LOOP(a_correction_that_fails_does_not_fail_the_read)
{
    struct fixture f;

    set_up(&f, 3, 2, ",'rewrite-corrupted':true");
    mem_bytes(f.mem[0])[0] = 1;
    fail_next(f.debug[0], BLKDEBUG_WRITE, -EIO);
    blocks_expect(f.edge, 0, 512, 0);
    assert_int_equal(mem_bytes(f.mem[0])[0], 1);
    blocks_expect(f.edge, 0, 512, 0);
    assert_int_equal(mem_bytes(f.mem[0])[0], 0);
    assert_int_equal(f.bad, 2);
    tear_down(&f);
}

/* --- writes --- */

/* Two old contents against one new one: the old ones would win. */
TEST_LOOP(children_that_missed_an_acknowledged_write_have_no_vote)
{
    struct fixture f;

    set_up(&f, 3, 1, "");
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    fail_next(f.debug[0], BLKDEBUG_WRITE, -EIO);
    fail_next(f.debug[1], BLKDEBUG_WRITE, -EIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 2, 0), 0);
    assert_int_equal(f.bad, 2);
    assert_string_equal(f.bad_type, "write");
    blocks_expect(f.edge, 0, 512, 2);
    assert_int_equal(f.failures, 0);
    tear_down(&f);
}

TEST_LOOP(a_write_needs_enough_children_that_have_missed_none)
{
    struct fixture f;

    set_up(&f, 3, 2, "");
    fail_next(f.debug[2], BLKDEBUG_WRITE, -EIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    fail_next(f.debug[1], BLKDEBUG_WRITE, -ENOSPC);
    assert_int_equal(blocks_write(f.edge, 512, 512, 1, 0), -ENOSPC);
    assert_int_equal(f.failures, 1);
    blocks_expect(f.edge, 0, 512, 1);
    /* The first child is as good as any other here. */
    assert_int_equal(blocks_write(f.edge, 512, 512, 3, 0), 0);
    blocks_expect(f.edge, 512, 512, 3);
    tear_down(&f);
}

TEST_LOOP(flushes_need_the_threshold_too)
{
    struct fixture f;

    set_up(&f, 3, 2, "");
    fail_next(f.debug[0], BLKDEBUG_FLUSH, -EIO);
    assert_int_equal(io_flush(f.edge), 0);
    assert_string_equal(f.bad_type, "flush");
    fail_next(f.debug[0], BLKDEBUG_FLUSH, -EIO);
    fail_next(f.debug[2], BLKDEBUG_FLUSH, -EIO);
    assert_int_equal(io_flush(f.edge), -EIO);
    assert_int_equal(f.failures, 1);
    tear_down(&f);
}

/* What a discard leaves may differ, zeroes do not. */
TEST_LOOP(discards_make_zeroes_everywhere)
{
    struct fixture f;

    set_up(&f, 3, 3, "");
    assert_int_equal(blocks_write(f.edge, 0, 8192, 9, 0), 0);
    assert_int_equal(blocks_discard(f.edge, 4096, 4096), 0);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(mem_stats(f.mem[i])->discards, 0);
    blocks_expect(f.edge, 4096, 4096, 0);
    assert_int_equal(blocks_zero(f.edge, 0, 512, IO_NO_FALLBACK), -EOPNOTSUPP);
    assert_int_equal(blocks_zero(f.edge, 0, 512, 0), 0);
    blocks_expect(f.edge, 0, 512, 0);
    assert_int_equal(events(&f), 0);
    tear_down(&f);
}

TEST_LOOP(zeroes_are_only_where_all_have_them)
{
    struct graph *graph = blocks_graph();
    struct edge *edge;
    struct extent extent;

    edge = blocks_root(graph,
                       blocks_add(graph, "{'driver':'quorum','vote-threshold':1,'children':["
                                         "{'driver':'null-co','read-zeroes':true},"
                                         "{'driver':'null-co','read-zeroes':true}]}"),
                       "zeroes");
    assert_int_equal(io_extents(edge, 0, 65536, &extent), 0);
    assert_int_equal(extent.flags, EXTENT_ZERO | EXTENT_HERE);
    assert_int_equal(extent.length_bytes, 65536);
    graph_detach(edge);
    edge = blocks_root(graph,
                       blocks_add(graph, "{'driver':'quorum','vote-threshold':1,'children':["
                                         "{'driver':'null-co','read-zeroes':true},"
                                         "{'driver':'null-co'}]}"),
                       "mixed");
    assert_int_equal(io_extents(edge, 0, 65536, &extent), 0);
    assert_int_equal(extent.flags, EXTENT_DATA | EXTENT_HERE);
    graph_detach(edge);
    graph_free(graph);
}

/* --- races --- */

struct reader {
    struct edge *edge;
    uint64_t offset;
    bool done;
    int result;
};

static void reader_main(void *arg) MAY_WAIT
{
    struct reader *reader = arg;
    uint8_t bytes[4096];

    reader->result = blocks_read_bytes(reader->edge, reader->offset, bytes, sizeof(bytes), 0);
    reader->done = true;
}

/* No child is ever seen to differ only because a write has reached some of them. */
TEST_LOOP(reads_beside_writes_see_no_differences)
{
    uint64_t random = test_seed("quorum races");

    for (unsigned rewrites = 0; rewrites < 2; rewrites++) {
        struct fixture f;
        struct blocks_task writes[64];
        struct reader readers[64];

        set_up(&f, 3, 2, rewrites != 0 ? ",'rewrite-corrupted':true" : "");
        for (unsigned round = 0; round < 5; round++) {
            for (unsigned i = 0; i < 64; i++) {
                blocks_start_write(&writes[i], f.edge, test_random(&random) % 16384,
                                   1 + test_random(&random) % 8192, (uint8_t)test_random(&random));
                readers[i] = (struct reader){.edge = f.edge,
                                             .offset = test_random(&random) % 16384};
                assert_int_equal(co_spawn_now(loop_current(), "reader", reader_main, &readers[i]),
                                 0);
            }
            for (unsigned i = 0; i < 64; i++) {
                test_wait_until(writes[i].done && readers[i].done);
                assert_int_equal(writes[i].result, 0);
                assert_int_equal(readers[i].result, 0);
            }
        }
        assert_int_equal(events(&f), 0);
        tear_down(&f);
    }
}

/* A correction waits at the child; the write that comes meanwhile must win. */
TEST_LOOP(a_correction_undoes_no_newer_write)
{
    struct fixture f;
    struct blocks_task write;
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .count = 1, .hold = true};
    struct reader reader;

    set_up(&f, 3, 2, ",'rewrite-corrupted':true");
    mem_bytes(f.mem[2])[100] = 1;
    reader = (struct reader){.edge = f.edge};
    assert_int_equal(blkdebug_inject(f.debug[2], &hold, NULL), 0);
    assert_int_equal(co_spawn_now(loop_current(), "reader", reader_main, &reader), 0);
    assert_int_equal(blkdebug_await_held(f.debug[2], 0, 1, DEADLINE_NEVER), 0);
    blocks_start_write(&write, f.edge, 0, 4096, 0x77);
    co_sleep(NS_PER_MS);
    blkdebug_release(f.debug[2], 0);
    test_wait_until(reader.done && write.done);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(mem_bytes(f.mem[i])[100], 0x77);
    blocks_expect(f.edge, 0, 4096, 0x77);
    tear_down(&f);
}

/* --- blkverify --- */

TEST_LOOP(blkverify_stops_at_the_first_difference)
{
    struct fixture f;
    struct err err = ERR_INIT;
    uint8_t byte;

    set_up(&f, 2, 2, ",'blkverify':true");
    assert_int_equal(blocks_write(f.edge, 0, 4096, 5, 0), 0);
    blocks_expect(f.edge, 0, 4096, 5);
    assert_int_equal(events(&f), 0);
    mem_bytes(f.mem[1])[4095] = 6;
    blocks_expect(f.edge, 0, 4095, 5);
    assert_int_equal(blocks_read_bytes(f.edge, 4095, &byte, 1, 0), -EIO);
    assert_int_equal(f.failures, 1);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -EIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), -EIO);
    assert_int_equal(io_flush(f.edge), -EIO);
    blocks_add(f.graph, "{'node-name':'more','driver':'mem'}");
    assert_int_equal(graph_child_add(f.graph, f.node, graph_find(f.graph, "more"), &err), -EINVAL);
    assert_int_equal(graph_child_del(f.graph, f.node, "children.1", &err), -EBUSY);
    tear_down(&f);
}

TEST_LOOP(contradictory_options_are_refused)
{
    static const struct {
        const char *options, *part;
    } cases[] = {
        {"'vote-threshold':2,'blkverify':true,'rewrite-corrupted':true", "rewrite-corrupted"},
        {"'vote-threshold':1,'blkverify':true", "blkverify=on needs exactly two"},
        {"'vote-threshold':2,'blkverify':true,'read-pattern':'fifo'", "blkverify=on needs"},
        {"'vote-threshold':1,'rewrite-corrupted':true,'read-pattern':'fifo'", "rewrite-corrupted"},
        {"'vote-threshold':3", "3 is more than 2"},
        {"'vote-threshold':0", "vote-threshold"},
    };
    struct graph *graph = blocks_graph();

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char text[256];

        snprintf(text, sizeof(text),
                 "{'driver':'quorum',%s,'children':[{'driver':'mem'},{'driver':'mem'}]}",
                 cases[i].options);
        blocks_add_fails(graph, cases[i].part, text);
    }
    graph_free(graph);
}

TEST_LOOP(children_come_and_go_but_never_below_agreement)
{
    struct fixture f;
    struct err err = ERR_INIT;
    struct node *more;

    set_up(&f, 3, 2, "");
    fail_next(f.debug[1], BLKDEBUG_WRITE, -EIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(graph_child_del(f.graph, f.node, "children.0", &err), -EBUSY);
    assert_non_null(strstr(err.text, "missed no write"));
    assert_int_equal(graph_child_del(f.graph, f.node, "children.1", &err), 0);
    assert_int_equal(graph_child_del(f.graph, f.node, "children.2", &err), -EBUSY);
    more = blocks_add(f.graph, "{'node-name':'more','driver':'mem'}");
    mem_bytes(more)[0] = 1;
    assert_int_equal(graph_child_add(f.graph, f.node, more, &err), 0);
    assert_non_null(node_child(f.node, "children.3"));
    assert_int_equal(graph_child_del(f.graph, f.node, "children.0", &err), 0);
    blocks_expect(f.edge, 0, 1, 1);
    tear_down(&f);
}

/* --- against a model --- */

/* As long as no more than a minority of children fail or lie, nobody notices. */
TEST_LOOP(a_minority_of_bad_children_changes_nothing)
{
    uint64_t random = test_seed("quorum model");
    uint8_t *model = calloc(1, MEM_BYTES), *seen = malloc(65536);
    struct fixture f;

    assert_non_null(model);
    assert_non_null(seen);
    set_up(&f, 5, 3, ",'rewrite-corrupted':true");
    for (unsigned step = 0; step < 400; step++) {
        uint64_t length = 1 + test_random(&random) % 20000;
        uint64_t at = test_random(&random) % (MEM_BYTES - length);
        unsigned first = test_random(&random) % 5, second = (first + 1) % 5;
        uint8_t fill = (uint8_t)test_random(&random);

        switch (test_random(&random) % 4) {
        case 0:
            memset(model + at, fill, length);
            assert_int_equal(blocks_write(f.edge, at, length, fill, 0), 0);
            break;
        case 1:
            memset(model + at, 0, length);
            assert_int_equal(blocks_discard(f.edge, at, length), 0);
            break;
        default:
            /* Two of five: one lies, the other lies differently or fails. */
            memset(mem_bytes(f.mem[first]) + at, fill, length);
            if (fill % 2 == 0)
                fail_next(f.debug[second], BLKDEBUG_READ, -EIO);
            else
                memset(mem_bytes(f.mem[second]) + at, fill + 1, length);
            assert_int_equal(blocks_read_bytes(f.edge, at, seen, length, 0), 0);
            assert_memory_equal(seen, model + at, length);
            blkdebug_remove(f.debug[second], 0);
        }
    }
    assert_int_equal(f.failures, 0);
    assert_true(f.bad > 0);
    for (uint64_t at = 0; at < MEM_BYTES; at += 65536)
        assert_int_equal(blocks_read_bytes(f.edge, at, seen, 65536, 0), 0);
    for (unsigned i = 0; i < 5; i++)
        assert_memory_equal(mem_bytes(f.mem[i]), model, MEM_BYTES);
    free(seen);
    free(model);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(children_that_agree_answer_and_all_are_asked),
        cmocka_unit_test(who_says_something_else_is_outvoted_and_told_of),
        cmocka_unit_test(without_enough_equal_votes_the_read_fails),
        cmocka_unit_test(the_most_votes_are_not_always_enough),
        cmocka_unit_test(two_contents_with_as_many_votes_have_no_winner),
        cmocka_unit_test(a_child_that_cannot_be_read_has_no_vote),
        cmocka_unit_test(who_lost_is_corrected_when_that_is_asked_for),
        cmocka_unit_test(a_correction_that_fails_does_not_fail_the_read),
        cmocka_unit_test(children_that_missed_an_acknowledged_write_have_no_vote),
        cmocka_unit_test(a_write_needs_enough_children_that_have_missed_none),
        cmocka_unit_test(flushes_need_the_threshold_too),
        cmocka_unit_test(discards_make_zeroes_everywhere),
        cmocka_unit_test(zeroes_are_only_where_all_have_them),
        cmocka_unit_test(reads_beside_writes_see_no_differences),
        cmocka_unit_test(a_correction_undoes_no_newer_write),
        cmocka_unit_test(blkverify_stops_at_the_first_difference),
        cmocka_unit_test(contradictory_options_are_refused),
        cmocka_unit_test(children_come_and_go_but_never_below_agreement),
        cmocka_unit_test(a_minority_of_bad_children_changes_nothing),
    };

    return cmocka_run_group_tests_name("quorum votes", tests, NULL, NULL);
}
