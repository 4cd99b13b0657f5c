/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The gate: what it refuses, splits, copies, orders and emulates. */
#include "blocks.h"

#include <errno.h>
#include <string.h>

#define MODEL_BYTES (96u * 1024)
#define MODEL_STEPS 600
#define MODEL_MAX   20000u

TEST_LOOP(requests_beyond_the_end_are_refused)
{
    struct graph *graph = blocks_graph();
    struct edge *edge = blocks_root(graph, blocks_add(graph, "{'driver':'mem','size':4096}"),
                                    "test");
    uint8_t byte = 0;

    assert_int_equal(blocks_read_bytes(edge, 4096, &byte, 1, 0), -EINVAL);
    assert_int_equal(blocks_write(edge, 4095, 2, 1, 0), -ENOSPC);
    assert_int_equal(blocks_write(edge, UINT64_MAX, 2, 1, 0), -ENOSPC);
    assert_int_equal(blocks_zero(edge, UINT64_MAX - 1, 3, 0), -ENOSPC);
    assert_int_equal(blocks_discard(edge, 4096, 1), -EINVAL);
    assert_int_equal(blocks_write(edge, 4096, 0, 1, 0), 0);
    blocks_expect(edge, 0, 4096, 0);
    assert_int_equal(edge->child->stats.write.errors, 2);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(an_edge_without_the_permission_is_refused)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'node-name':'d','driver':'mem'}");
    struct err err = ERR_INIT;
    struct edge *edge = NULL;
    struct io unchanged = {.length_bytes = 512, .flags = IO_UNCHANGED};
    uint8_t byte;

    assert_int_equal(graph_attach_root(graph, node, "r", PERM_WRITE_UNCHANGED, PERM_ALL, NULL, NULL,
                                       &edge, &err),
                     0);
    assert_int_equal(blocks_read_bytes(edge, 0, &byte, 1, 0), -EPERM);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), -EPERM);
    assert_int_equal(blocks_zero(edge, 0, 512, 0), -EPERM);
    assert_int_equal(blocks_discard(edge, 0, 512), -EPERM);
    assert_int_equal(io_truncate(edge, 0), -EPERM);
    assert_int_equal(io_zero(edge, &unchanged), 0);
    assert_int_equal(io_flush(edge), 0);
    graph_detach(edge);
    graph_free(graph);
}

static const struct {
    const char *name, *options;
} model_disks[] = {
    {"plain", "{'driver':'mem','size':98304}"},
    {"aligned", "{'driver':'mem','size':98304,'align':512}"},
    {"aligned in memory", "{'driver':'mem','size':98304,'align':512,'memory-align':512}"},
    {"large blocks", "{'driver':'mem','size':98304,'align':4096,'memory-align':4096}"},
    {"small transfers", "{'driver':'mem','size':98304,'align':512,'max-transfer':1536}"},
    {"no zeroes", "{'driver':'mem','size':98304,'align':512,'no-zeroes':true}"},
    {"ordered", "{'driver':'mem-ordered','size':98304,'align':1024}"},
    {"filters", "{'driver':'pass','file':{'driver':'blkdebug','align':2048,'max-transfer':4096,"
                "'file':{'driver':'pass','file':{'driver':'mem','size':98304,'align':512}}}}"},
    {"detecting", "{'driver':'mem','size':98304,'align':512,'detect-zeroes':'unmap'}"},
};

static void model_step(struct edge *edge, uint8_t *model, uint64_t *seed) MAY_WAIT
{
    static uint8_t bytes[MODEL_MAX];
    uint64_t offset = test_random(seed) % MODEL_BYTES;
    uint64_t length = 1 + test_random(seed) % MIN(MODEL_MAX, MODEL_BYTES - offset);
    unsigned skew = test_random(seed) % 2 ? 0 : (unsigned)(test_random(seed) % 600);
    unsigned flags = test_random(seed) % 4 == 0 ? IO_FUA : 0;

    if (test_random(seed) % 3 == 0) {
        offset = align_down(offset, 4096);
        length = align_up(length, 4096);
        length = MIN(length, 16384);
    }
    length = MIN(length, MODEL_BYTES - offset);
    switch (test_random(seed) % 6) {
    case 0:
    case 1:
        assert_int_equal(blocks_read_bytes(edge, offset, bytes, length, skew), 0);
        assert_memory_equal(bytes, model + offset, length);
        break;
    case 2:
    case 3:
        memset(bytes, test_random(seed) % 8 == 0 ? 0 : (int)(test_random(seed) & 0xFF), length);
        bytes[length / 2] ^= (uint8_t)(test_random(seed) % 2);
        memcpy(model + offset, bytes, length);
        assert_int_equal(blocks_write_bytes(edge, offset, bytes, length, skew, flags), 0);
        break;
    case 4:
        memset(model + offset, 0, length);
        assert_int_equal(
            blocks_zero(edge, offset, length, flags | (test_random(seed) % 2 ? IO_MAY_UNMAP : 0)),
            0);
        break;
    default:
        /* mem's discard zeroes; what is not aligned stays. */
        offset = align_down(offset, 4096);
        length = MIN(align_up(length, 4096), MODEL_BYTES - offset);
        memset(model + offset, 0, length);
        assert_int_equal(blocks_discard(edge, offset, length), 0);
    }
}

TEST_LOOP(random_requests_do_what_an_array_does)
{
    uint64_t seed = test_seed("random_requests_do_what_an_array_does");

    for (size_t i = 0; i < ARRAY_LEN(model_disks); i++) {
        static uint8_t model[MODEL_BYTES], bytes[MODEL_BYTES];
        struct graph *graph = blocks_graph();
        struct edge *edge = blocks_root(graph, blocks_add(graph, "%s", model_disks[i].options),
                                        "test");

        memset(model, 0, sizeof(model));
        for (int step = 0; step < MODEL_STEPS; step++)
            model_step(edge, model, &seed);
        assert_int_equal(blocks_read_bytes(edge, 0, bytes, MODEL_BYTES, 0), 0);
        if (memcmp(bytes, model, MODEL_BYTES) != 0)
            fail_msg("%s", model_disks[i].name);
        graph_detach(edge);
        graph_free(graph);
    }
}

/* Each coroutine owns stretches of odd lengths, which share blocks with those of its neighbours. */
#define OWNERS         8
#define STRETCH_BYTES  700u
#define STRETCHES      96u
#define STRETCH_WRITES 60

struct owner {
    struct edge *edge;
    struct co_group *group;
    unsigned index;
    uint64_t seed;
};

static void owner_run(void *arg) MAY_WAIT
{
    struct owner *owner = arg;
    uint8_t mine[STRETCHES / OWNERS][STRETCH_BYTES], bytes[STRETCH_BYTES];

    memset(mine, 0, sizeof(mine));
    for (int i = 0; i < STRETCH_WRITES; i++) {
        unsigned which = test_random(&owner->seed) % (STRETCHES / OWNERS);
        uint64_t base = (uint64_t)(which * OWNERS + owner->index) * STRETCH_BYTES;
        uint64_t offset = test_random(&owner->seed) % STRETCH_BYTES;
        uint64_t length = 1 + test_random(&owner->seed) % (STRETCH_BYTES - offset);
        uint8_t fill = (uint8_t)test_random(&owner->seed);

        if (test_random(&owner->seed) % 4 == 0) {
            fill = 0;
            assert_int_equal(blocks_zero(owner->edge, base + offset, length, 0), 0);
        } else {
            assert_int_equal(blocks_write(owner->edge, base + offset, length, fill, 0), 0);
        }
        memset(mine[which] + offset, fill, length);
        assert_int_equal(blocks_read_bytes(owner->edge, base, bytes, STRETCH_BYTES, 0), 0);
        assert_memory_equal(bytes, mine[which], STRETCH_BYTES);
    }
    co_group_leave(owner->group);
}

TEST_LOOP(neighbours_in_one_block_do_not_undo_each_other)
{
    uint64_t seed = test_seed("neighbours_in_one_block_do_not_undo_each_other");
    static const char *const disks[] = {
        "{'driver':'mem','align':4096,'yields':2}",
        "{'driver':'mem-ordered','align':512,'yields':1}",
        "{'driver':'blkdebug','align':4096,'file':{'driver':'mem','align':512,'yields':1}}",
        "{'driver':'mem','align':512,'no-zeroes':true,'yields':1}",
    };

    for (size_t i = 0; i < ARRAY_LEN(disks); i++) {
        struct graph *graph = blocks_graph();
        struct edge *edge = blocks_root(graph, blocks_add(graph, "%s", disks[i]), "test");
        struct owner owners[OWNERS];
        struct co_group group;

        co_group_init(&group);
        for (unsigned o = 0; o < OWNERS; o++) {
            owners[o] = (struct owner){edge, &group, o, test_random(&seed)};
            co_group_enter(&group);
            assert_int_equal(co_spawn(loop_current(), "owner", owner_run, &owners[o]), 0);
        }
        assert_int_equal(co_group_wait(&group), 0);
        assert_int_equal(edge->child->rmw_running, 0);
        assert_int_equal(edge->child->unlocked_writes, 0);
        graph_detach(edge);
        graph_free(graph);
    }
}

/* Else the read-modify-write could read before and write after, and undo an acknowledged write. */
TEST_LOOP(a_read_modify_write_waits_for_whole_writes_that_began_before)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph,
                                   "{'driver':'blkdebug','align':4096,'file':{'driver':'mem'}}");
    struct edge *edge = blocks_root(graph, node, "test");
    struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .count = 1, .hold = true};
    struct blkdebug_rule reads = {.kinds = BLKDEBUG_READ, .nth = UINT64_MAX};
    struct blocks_task whole, part;
    unsigned reads_id = 0;

    assert_int_equal(blkdebug_inject(node, &hold, NULL), 0);
    assert_int_equal(blkdebug_inject(node, &reads, &reads_id), 0);
    blocks_start_write(&whole, edge, 0, 4096, 0xAA);
    assert_int_equal(blkdebug_await_held(node, 0, 1, DEADLINE_NEVER), 0);
    blocks_start_write(&part, edge, 100, 10, 0xBB);
    for (int i = 0; i < 20; i++)
        co_yield();
    assert_int_equal(blkdebug_matches(node, reads_id), 0);
    blkdebug_release(node, 0);
    test_wait_until(whole.done && part.done);
    blocks_expect(edge, 0, 100, 0xAA);
    blocks_expect(edge, 100, 10, 0xBB);
    blocks_expect(edge, 110, 4096 - 110, 0xAA);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(a_whole_write_waits_for_a_read_modify_write_of_its_block)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph,
                                   "{'driver':'blkdebug','align':4096,'file':{'driver':'mem'}}");
    struct edge *edge = blocks_root(graph, node, "test");
    struct blkdebug_rule hold = {.kinds = BLKDEBUG_READ, .count = 1, .hold = true, .after = true};
    struct blocks_task whole, part, elsewhere;

    assert_int_equal(blkdebug_inject(node, &hold, NULL), 0);
    blocks_start_write(&part, edge, 100, 10, 0xBB);
    assert_int_equal(blkdebug_await_held(node, 0, 1, DEADLINE_NEVER), 0);
    blocks_start_write(&whole, edge, 0, 4096, 0xAA);
    blocks_start_write(&elsewhere, edge, 8192, 4096, 0xCC);
    test_wait_until(elsewhere.done);
    assert_false(whole.done);
    blkdebug_release(node, 0);
    test_wait_until(whole.done && part.done);
    blocks_expect(edge, 0, 4096, 0xAA);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(overlapping_writes_of_an_ordering_node_keep_their_order)
{
    struct graph *graph = blocks_graph();
    struct edge *edge = blocks_root(graph, blocks_add(graph, "{'driver':'mem-ordered','yields':3}"),
                                    "test");
    struct blocks_task tasks[20];

    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        blocks_start_write(&tasks[i], edge, i % 3 * 100, 5000, (uint8_t)(i + 1));
    for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
        test_wait_until(tasks[i].done);
    blocks_expect(edge, 100, 5000, 20);
    blocks_expect(edge, 0, 100, 19);
    blocks_expect(edge, 5100, 100, 18);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(a_large_write_is_split_and_made_durable_once)
{
    static const struct {
        const char *options;
        uint64_t length;
        unsigned writes, fua_writes, flushes;
    } cases[] = {
        {"{'driver':'mem','fua':true}", 65536, 1, 1, 0},
        {"{'driver':'mem'}", 65536, 1, 0, 1},
        {"{'driver':'mem','fua':true,'max-transfer':16384}", 65536, 4, 0, 1},
        {"{'driver':'mem','max-transfer':16384}", 65536, 4, 0, 1},
        {"{'driver':'mem','size':67108864,'fua':true}", (32u << 20) + 4096, 2, 0, 1},
        {"{'driver':'mem','fua':true,'cache':{'no-flush':true}}", 65536, 1, 0, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct graph *graph = blocks_graph();
        struct node *node = blocks_add(graph, "%s", cases[i].options);
        struct edge *edge = blocks_root(graph, node, "test");

        assert_int_equal(blocks_write(edge, 0, cases[i].length, 7, IO_FUA), 0);
        blocks_expect(edge, cases[i].length - 8192, 8192, 7);
        assert_int_equal(mem_stats(node)->writes, cases[i].writes);
        assert_int_equal(mem_stats(node)->fua_writes, cases[i].fua_writes);
        assert_int_equal(mem_stats(node)->flushes, cases[i].flushes);
        assert_true(mem_stats(node)->largest_bytes <= IO_MAX_TRANSFER_BYTES);
        graph_detach(edge);
        graph_free(graph);
    }
}

TEST_LOOP(zeroes_are_written_where_there_is_no_better_way_unless_that_is_forbidden)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(
        graph, "{'driver':'mem','align':512,'no-zeroes':true,'max-transfer':65536,'fua':true}");
    struct edge *edge = blocks_root(graph, node, "test");
    size_t buffers;

    assert_int_equal(blocks_write(edge, 0, 1u << 20, 9, 0), 0);
    assert_int_equal(blocks_zero(edge, 512, 65536, IO_NO_FALLBACK), -EOPNOTSUPP);
    assert_int_equal(blocks_zero(edge, 100, 65536, IO_NO_FALLBACK), -EOPNOTSUPP);
    blocks_expect(edge, 0, 1u << 20, 9);
    mem_stats(node)->writes = 0;
    assert_int_equal(blocks_zero(edge, 0, 640u << 10, IO_FUA), 0);
    blocks_expect(edge, 0, 640u << 10, 0);
    blocks_expect(edge, 640u << 10, 384u << 10, 9);
    assert_int_equal(mem_stats(node)->writes, 10);
    assert_int_equal(mem_stats(node)->flushes, 1);
    /* One buffer of zeroes serves all. */
    buffers = buf_pool_stats(loop_bufs(loop_current())).in_use_buffers;
    assert_int_equal(blocks_zero(edge, 0, 1u << 20, 0), 0);
    assert_int_equal(buf_pool_stats(loop_bufs(loop_current())).in_use_buffers, buffers);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(a_huge_zero_request_is_split)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'driver':'blkdebug','file':{'driver':'null-co',"
                                          "'size':1099511627776}}");
    struct edge *edge = blocks_root(graph, node, "test");

    assert_int_equal(blocks_zero(edge, 0, UINT64_C(5) << 30, 0), 0);
    assert_int_equal(node->file->child->stats.zero.requests, 5);
    assert_int_equal(blocks_discard(edge, 0, UINT64_C(5) << 30), 0);
    assert_int_equal(node->file->child->stats.discard.requests, 5);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(zeroes_are_detected_and_discards_dropped_as_asked)
{
    static const struct {
        const char *options;
        unsigned writes, zeroes, discards;
    } cases[] = {
        {"{'driver':'mem'}", 1, 0, 1},
        {"{'driver':'mem','detect-zeroes':'on'}", 0, 1, 1},
        {"{'driver':'mem','detect-zeroes':'unmap','discard':'ignore'}", 0, 1, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct graph *graph = blocks_graph();
        struct node *node = blocks_add(graph, "%s", cases[i].options);
        struct edge *edge = blocks_root(graph, node, "test");

        assert_int_equal(blocks_write(edge, 0, 4096, 0, 0), 0);
        assert_int_equal(blocks_discard(edge, 0, 4096), 0);
        assert_int_equal(mem_stats(node)->writes, cases[i].writes);
        assert_int_equal(mem_stats(node)->zeroes, cases[i].zeroes);
        assert_int_equal(mem_stats(node)->discards, cases[i].discards);
        graph_detach(edge);
        graph_free(graph);
    }
}

TEST_LOOP(only_who_may_resize_writes_past_the_end)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(
        graph, "{'node-name':'p','driver':'pass','file':{'driver':'mem','size':4096,'align':512,"
               "'grow':true}}");
    struct err err = ERR_INIT;
    struct edge *edge = blocks_root(graph, node, "test");

    assert_int_equal(blocks_write(edge, 4096, 100, 1, 0), -ENOSPC);
    assert_int_equal(
        graph_set_perms(edge, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL, &err), 0);
    assert_int_equal(blocks_write(edge, 4096, 100, 1, IO_FUA), 0);
    assert_int_equal(node->length_bytes, 4608);
    assert_int_equal(node->file->child->length_bytes, 4608);
    blocks_expect(edge, 4096, 100, 1);
    blocks_expect(edge, 4196, 412, 0);
    assert_int_equal(io_truncate(edge, 1000), -EINVAL);
    assert_int_equal(io_truncate(edge, 1024), 0);
    assert_int_equal(node->length_bytes, 1024);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(a_failure_at_any_request_of_a_split_one_is_the_result)
{
    for (unsigned nth = 1; nth <= 10; nth++) {
        struct graph *graph = blocks_graph();
        struct node *node = blocks_add(graph, "{'driver':'blkdebug','align':512,"
                                              "'max-transfer':8192,'file':{'driver':'mem'}}");
        struct edge *edge = blocks_root(graph, node, "test");
        struct blkdebug_rule fail = {.kinds = BLKDEBUG_ANY, .nth = nth, .count = 1, .error = -EIO};

        /* Two reads of edges, eight writes. */
        assert_int_equal(blkdebug_inject(node, &fail, NULL), 0);
        assert_int_equal(blocks_write(edge, 100, 8u * 8192 - 200, 1, 0), -EIO);
        assert_int_equal(node->rmw_running, 0);
        assert_int_equal(blocks_write(edge, 100, 8u * 8192 - 200, 1, 0), 0);
        blocks_expect(edge, 100, 8u * 8192 - 200, 1);
        graph_detach(edge);
        graph_free(graph);
    }
}

TEST_LOOP(a_chain_of_the_full_depth_carries_requests)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'node-name':'n0','driver':'mem','align':4096}");
    struct err err = ERR_INIT;
    struct edge *edge = NULL;

    for (unsigned i = 1; i < NODE_MAX_DEPTH; i++)
        node = blocks_add(graph, "{'node-name':'n%u','driver':'pass','file':'n%u'}", i, i - 1);
    edge = blocks_root(graph, node, "test");
    assert_int_equal(blocks_write(edge, 10, 10000, 3, IO_FUA), 0);
    blocks_expect(edge, 10, 10000, 3);
    graph_detach(edge);
    blocks_add_fails(graph, "deeper than 64", "{'driver':'pass','file':'n63'}");
    assert_false(err_is_set(&err));
    graph_free(graph);
}

/* What the merge after a failover goes by. */
TEST_LOOP(held_blocks_are_those_of_all_layers_above_the_base)
{
    struct graph *graph = blocks_graph();
    struct node *base = blocks_add(graph, "{'node-name':'base','driver':'mem','size':1048576}");
    struct node *middle = blocks_add(
        graph, "{'node-name':'middle','driver':'cow-extents','every':3,'file':{'driver':'mem'},"
               "'backing':'base'}");
    struct node *top = blocks_add(
        graph, "{'node-name':'top','driver':'pass','file':{'driver':'cow','every':2,"
               "'file':{'driver':'mem','size':1052672},'backing':{'driver':'pass',"
               "'file':'middle'}}}");
    struct edge *edge = blocks_root(graph, top, "test");
    const struct node *const bases[] = {base, middle, top, NULL};

    for (size_t i = 0; i < ARRAY_LEN(bases); i++) {
        for (uint64_t at = 0, length; at < top->length_bytes; at += length) {
            uint64_t block = at / 4096;
            bool inside = block < 256, held = false;
            bool expected = (block % 2 == 0 && bases[i] != top) ||
                            (inside && block % 3 == 0 && (bases[i] == base || bases[i] == NULL)) ||
                            (inside && bases[i] == NULL);

            assert_int_equal(io_held(edge, bases[i], at, top->length_bytes - at, &held, &length),
                             0);
            assert_int_equal(held, expected);
            assert_true(length > 0 && (length <= 4096 || bases[i] == top));
        }
    }
    assert_false(node_can_empty(top));
    graph_detach(edge);
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_beyond_the_end_are_refused),
        cmocka_unit_test(an_edge_without_the_permission_is_refused),
        cmocka_unit_test(random_requests_do_what_an_array_does),
        cmocka_unit_test(neighbours_in_one_block_do_not_undo_each_other),
        cmocka_unit_test(a_read_modify_write_waits_for_whole_writes_that_began_before),
        cmocka_unit_test(a_whole_write_waits_for_a_read_modify_write_of_its_block),
        cmocka_unit_test(overlapping_writes_of_an_ordering_node_keep_their_order),
        cmocka_unit_test(a_large_write_is_split_and_made_durable_once),
        cmocka_unit_test(zeroes_are_written_where_there_is_no_better_way_unless_that_is_forbidden),
        cmocka_unit_test(a_huge_zero_request_is_split),
        cmocka_unit_test(zeroes_are_detected_and_discards_dropped_as_asked),
        cmocka_unit_test(only_who_may_resize_writes_past_the_end),
        cmocka_unit_test(a_failure_at_any_request_of_a_split_one_is_the_result),
        cmocka_unit_test(held_blocks_are_those_of_all_layers_above_the_base),
        cmocka_unit_test(a_chain_of_the_full_depth_carries_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
