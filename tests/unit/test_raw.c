/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MEM_BYTES (1u << 20)

struct fixture {
    struct graph *graph;
    struct node *mem, *debug, *raw;
    struct edge *edge;
};

/* raw above blkdebug above mem. */
static struct fixture set_up(const char *mem_options, const char *raw_options) MAY_WAIT
{
    struct fixture f = {.graph = blocks_graph()};

    f.mem = blocks_add(f.graph, "{'node-name':'mem','driver':'mem'%s}", mem_options);
    f.debug = blocks_add(f.graph, "{'node-name':'debug','driver':'blkdebug','file':'mem'}");
    f.raw = blocks_add(f.graph, "{'node-name':'raw','driver':'raw','file':'debug'%s}", raw_options);
    f.edge = blocks_root(f.graph, f.raw, "test");
    return f;
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
}

TEST_LOOP(it_shows_the_window_and_nothing_else)
{
    struct fixture f = set_up("", ",'offset':4096,'size':8192");

    memset(mem_bytes(f.mem), 0xee, MEM_BYTES);
    assert_int_equal(f.raw->length_bytes, 8192);
    assert_int_equal(blocks_write(f.edge, 0, 8192, 0x11, 0), 0);
    assert_int_equal(mem_bytes(f.mem)[4095], 0xee);
    assert_int_equal(mem_bytes(f.mem)[4096], 0x11);
    assert_int_equal(mem_bytes(f.mem)[12287], 0x11);
    assert_int_equal(mem_bytes(f.mem)[12288], 0xee);
    assert_int_equal(blocks_write(f.edge, 8191, 2, 1, 0), -ENOSPC);
    assert_int_equal(blocks_write(f.edge, 8192, 1, 1, 0), -ENOSPC);
    assert_int_equal(blocks_zero(f.edge, 8000, 200, 0), -ENOSPC);
    assert_int_equal(blocks_discard(f.edge, 8000, 200), -EINVAL);
    blocks_expect(f.edge, 0, 8192, 0x11);
    assert_int_equal(mem_bytes(f.mem)[12288], 0xee);
    tear_down(&f);
}

TEST_LOOP(without_options_it_is_the_child)
{
    struct fixture f = set_up(",'align':512,'fua':true", "");

    assert_int_equal(f.raw->length_bytes, MEM_BYTES);
    assert_int_equal(f.raw->limits.request_align_bytes, 512);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, IO_FUA), 0);
    assert_int_equal(mem_stats(f.mem)->flushes + mem_stats(f.mem)->fua_writes, 1);
    tear_down(&f);
}

TEST_LOOP(all_kinds_of_requests_reach_the_child_at_the_offset)
{
    struct fixture f = set_up("", ",'offset':65536");
    const struct blkdebug_rule at_window = {
        .kinds = BLKDEBUG_ANY, .offset_bytes = 65536 + 4096, .length_bytes = 512, .error = -EIO};
    struct extent extent;
    uint8_t byte;

    assert_int_equal(f.raw->length_bytes, MEM_BYTES - 65536);
    assert_int_equal(blkdebug_inject(f.debug, &at_window, NULL), 0);
    assert_int_equal(blocks_read_bytes(f.edge, 4096, &byte, 1, 0), -EIO);
    assert_int_equal(blocks_read_bytes(f.edge, 4095, &byte, 1, 0), 0);
    assert_int_equal(blocks_write(f.edge, 4096, 1, 1, 0), -EIO);
    assert_int_equal(blocks_write(f.edge, 4608, 1, 1, 0), 0);
    assert_int_equal(blocks_zero(f.edge, 4096, 1, 0), -EIO);
    assert_int_equal(blocks_discard(f.edge, 4096, 1), -EIO);
    assert_int_equal(io_extents(f.edge, 4096, 1, &extent), -EIO);
    assert_int_equal(io_extents(f.edge, 4608, 1, &extent), 0);
    assert_int_equal(io_flush(f.edge), -EIO);
    blkdebug_remove(f.debug, 0);
    assert_int_equal(io_flush(f.edge), 0);
    assert_int_equal(mem_stats(f.mem)->flushes, 1);
    assert_int_equal(blocks_discard(f.edge, 4096, 1024), 0);
    assert_int_equal(mem_stats(f.mem)->discards, 1);
    tear_down(&f);
}

/* Bytes around an unaligned window survive whatever is written at its edges. */
TEST_LOOP(a_window_off_the_alignment_leaves_its_neighbours_alone)
{
    struct fixture f = set_up(",'align':4096,'memory-align':512", ",'offset':5632,'size':8704");

    memset(mem_bytes(f.mem), 0xee, MEM_BYTES);
    assert_int_equal(f.raw->limits.request_align_bytes, 512);
    assert_int_equal(blocks_write(f.edge, 0, 8704, 0x22, 0), 0);
    assert_int_equal(blocks_write(f.edge, 1, 8702, 0x33, 0), 0);
    assert_int_equal(mem_bytes(f.mem)[5631], 0xee);
    assert_int_equal(mem_bytes(f.mem)[5632], 0x22);
    assert_int_equal(mem_bytes(f.mem)[5633], 0x33);
    assert_int_equal(mem_bytes(f.mem)[5632 + 8703], 0x22);
    assert_int_equal(mem_bytes(f.mem)[5632 + 8704], 0xee);
    tear_down(&f);
}

TEST_LOOP(two_windows_share_a_child)
{
    struct fixture f = set_up("", ",'offset':0,'size':4096");
    struct node *second = blocks_add(
        f.graph, "{'node-name':'raw2','driver':'raw','file':'debug','offset':4096,'size':4096}");
    struct edge *edge = blocks_root(f.graph, second, "second");

    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0);
    assert_int_equal(blocks_write(edge, 0, 4096, 2, 0), 0);
    blocks_expect(f.edge, 0, 4096, 1);
    assert_int_equal(mem_bytes(f.mem)[4096], 2);
    graph_detach(edge);
    tear_down(&f);
}

static int make_resizable(struct edge *edge) MAY_WAIT
{
    struct err err = ERR_INIT;

    return graph_set_perms(edge, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL, &err);
}

TEST_LOOP(without_a_size_it_grows_and_shrinks_with_the_child)
{
    struct fixture f = set_up(",'grow':true", ",'offset':65536");
    struct edge *below = blocks_root(f.graph, f.mem, "below");

    assert_int_equal(make_resizable(f.edge), 0);
    assert_int_equal(io_truncate(f.edge, MEM_BYTES), 0);
    assert_int_equal(f.raw->length_bytes, MEM_BYTES);
    assert_int_equal(f.mem->length_bytes, MEM_BYTES + 65536);
    /* A write past the end extends both. */
    assert_int_equal(blocks_write(f.edge, MEM_BYTES, 4096, 7, 0), 0);
    assert_int_equal(f.raw->length_bytes, MEM_BYTES + 4096);
    assert_int_equal(f.mem->length_bytes, MEM_BYTES + 4096 + 65536);
    blocks_expect(f.edge, MEM_BYTES, 4096, 7);
    /* Below its feet: no window has offset 0 here, so nobody may; the driver itself says so. */
    assert_int_equal(graph_set_perms(below, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
                                     PERM_ALL, &(struct err)ERR_INIT),
                     -EPERM);
    node_set_length(f.mem, 65536 + 512);
    assert_int_equal(f.raw->length_bytes, 512);
    node_set_length(f.mem, 4096);
    assert_int_equal(f.raw->length_bytes, 0);
    graph_detach(below);
    tear_down(&f);
}

TEST_LOOP(a_fixed_window_cannot_be_resized)
{
    struct fixture f = set_up(",'grow':true", ",'size':65536");

    assert_int_equal(make_resizable(f.edge), 0);
    assert_int_equal(io_truncate(f.edge, 4096), -ENOTSUP);
    assert_int_equal(io_truncate(f.edge, MEM_BYTES), -ENOTSUP);
    assert_int_equal(blocks_write(f.edge, 65536, 512, 1, 0), -ENOSPC);
    assert_int_equal(f.raw->length_bytes, 65536);
    assert_int_equal(f.mem->length_bytes, MEM_BYTES);
    tear_down(&f);
}

/* Never zeroes for what is not there any more, and no growing back. */
TEST_LOOP(a_child_that_shrinks_below_the_window_is_noticed)
{
    struct fixture f = set_up("", ",'offset':4096,'size':65536");
    struct extent extent;
    uint8_t byte;

    node_set_length(f.mem, 8192);
    assert_int_equal(f.raw->length_bytes, 65536);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0);
    assert_int_equal(blocks_read_bytes(f.edge, 4096, &byte, 1, 0), -EIO);
    assert_int_equal(blocks_write(f.edge, 4095, 2, 1, 0), -EIO);
    assert_int_equal(blocks_zero(f.edge, 8192, 512, 0), -EIO);
    assert_int_equal(blocks_discard(f.edge, 8192, 512), -EIO);
    assert_int_equal(io_extents(f.edge, 8192, 512, &extent), -EIO);
    node_set_length(f.mem, 2048);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), -EIO);
    node_set_length(f.mem, MEM_BYTES);
    blocks_expect(f.edge, 0, 4096, 1);
    tear_down(&f);
}

TEST_LOOP(bad_windows_are_refused)
{
    struct graph *graph = blocks_graph();

    blocks_add_fails(graph, "behind the end",
                     "{'driver':'raw','offset':1048577,'file':{'driver':'mem'}}");
    blocks_add_fails(graph, "reach behind the end",
                     "{'driver':'raw','offset':512,'size':1048576,'file':{'driver':'mem'}}");
    blocks_add_fails(graph, "reach behind the end",
                     "{'driver':'raw','offset':1048576,'size':512,'file':{'driver':'mem'}}");
    blocks_add_fails(graph, "reach behind the end",
                     "{'driver':'raw','offset':1024,'size':9223372036854775807,"
                     "'file':{'driver':'mem'}}");
    blocks_add_fails(graph, "multiple of 512",
                     "{'driver':'raw','size':1000,'file':{'driver':'mem'}}");
    blocks_add_fails(graph, "size",
                     "{'driver':'raw','size':9223372036854775808,'file':{'driver':'mem'}}");
    blocks_add_fails(graph, "file", "{'driver':'raw'}");
    blocks_add(graph, "{'driver':'raw','offset':1048576,'size':0,'file':{'driver':'mem'}}");
    graph_free(graph);
}

/* --- against a model --- */

struct model {
    struct fixture f;
    uint64_t random, offset, size;
    uint8_t bytes[MEM_BYTES]; /* of the child */
};

static void model_step(struct model *m) MAY_WAIT
{
    uint64_t at = test_random(&m->random) % m->size;
    uint64_t length = 1 + test_random(&m->random) % MIN(m->size - at, 20000);
    uint8_t fill = (uint8_t)test_random(&m->random);
    uint8_t *bytes = m->bytes + m->offset + at;
    static uint8_t seen[20000];

    switch (test_random(&m->random) % 4) {
    case 0:
        memset(bytes, fill, length);
        assert_int_equal(blocks_write(m->f.edge, at, length, fill, 0), 0);
        break;
    case 1:
        memset(bytes, 0, length);
        assert_int_equal(blocks_zero(m->f.edge, at, length, 0), 0);
        break;
    default:
        assert_int_equal(blocks_read_bytes(m->f.edge, at, seen, length, fill % 64), 0);
        assert_memory_equal(seen, bytes, length);
    }
}

TEST_LOOP(any_window_behaves_as_that_stretch_of_bytes)
{
    struct model *m = calloc(1, sizeof(*m));

    assert_non_null(m);
    m->random = test_seed("raw");
    for (unsigned round = 0; round < 12; round++) {
        char mem[64], raw[64];

        m->offset = test_random(&m->random) % (MEM_BYTES - 65536);
        m->size = (1 + test_random(&m->random) % 128) * 512;
        if (round % 2 == 0)
            m->offset &= ~UINT64_C(511);
        snprintf(mem, sizeof(mem), ",'align':%u,'memory-align':%u,'max-transfer':%u",
                 1u << (round % 3 * 6), 1u << (round % 2 * 9), round % 4 == 3 ? 8192u : 0u);
        snprintf(raw, sizeof(raw), ",'offset':%llu,'size':%llu", (unsigned long long)m->offset,
                 (unsigned long long)m->size);
        m->f = set_up(mem, raw);
        memset(m->bytes, (int)round, MEM_BYTES);
        memset(mem_bytes(m->f.mem), (int)round, MEM_BYTES);
        for (unsigned step = 0; step < 60; step++)
            model_step(m);
        assert_memory_equal(m->bytes, mem_bytes(m->f.mem), MEM_BYTES);
        tear_down(&m->f);
    }
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_shows_the_window_and_nothing_else),
        cmocka_unit_test(without_options_it_is_the_child),
        cmocka_unit_test(all_kinds_of_requests_reach_the_child_at_the_offset),
        cmocka_unit_test(a_window_off_the_alignment_leaves_its_neighbours_alone),
        cmocka_unit_test(two_windows_share_a_child),
        cmocka_unit_test(without_a_size_it_grows_and_shrinks_with_the_child),
        cmocka_unit_test(a_fixed_window_cannot_be_resized),
        cmocka_unit_test(a_child_that_shrinks_below_the_window_is_noticed),
        cmocka_unit_test(bad_windows_are_refused),
        cmocka_unit_test(any_window_behaves_as_that_stretch_of_bytes),
    };

    return cmocka_run_group_tests_name("raw", tests, NULL, NULL);
}
