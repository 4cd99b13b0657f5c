/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The driver `file` on real and simulated files. */
#include "blocks.h"

#include "base/json.h"
#include "loop/sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MIB (1u << 20)

/* QEMU's bytes, as stock tools lock and test them. */
#define QEMU_PERM_BASE   100
#define QEMU_SHARED_BASE 200
#define QEMU_PERM_WRITE  1

static const char *make_file(const char *name, uint64_t length) MAY_WAIT
{
    const char *path = test_path(name);
    struct err err = ERR_INIT;
    struct file *file = NULL;

    if (file_open(loop_current(), path, FILE_WRITABLE | FILE_CREATE | FILE_TRUNCATE, FILE_AIO_AUTO,
                  &file, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(file_truncate(file, length), 0);
    file_close(file);
    return path;
}

static uint64_t file_length(const char *path) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct file *file = NULL;
    uint64_t length;

    assert_int_equal(file_open(loop_current(), path, 0, FILE_AIO_AUTO, &file, &err), 0);
    length = file_info(file)->length_bytes;
    file_close(file);
    return length;
}

TEST_LOOP(what_is_written_is_read_and_survives_a_reopening)
{
    static const char *const variants[] = {
        "'aio':'auto'",     "'aio':'inline'",          "'aio':'threads'",
        "'aio':'io_uring'", "'cache':{'direct':true}",
    };

    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        const char *path = make_file("disk.raw", MIB);
        struct graph *graph = blocks_graph();
        struct err err = ERR_INIT;
        struct edge *edge = blocks_root(
            graph,
            blocks_add(graph, "{'node-name':'d','driver':'file','filename':'%s',%s}", path,
                       variants[i]),
            "test");

        assert_int_equal(blocks_write(edge, 1000, 70000, 5, IO_FUA), 0);
        blocks_expect(edge, 1000, 70000, 5);
        blocks_expect(edge, 0, 1000, 0);
        assert_int_equal(blocks_zero(edge, 10000, 5000, 0), 0);
        assert_int_equal(blocks_zero(edge, 20000, 5000, IO_MAY_UNMAP), 0);
        assert_int_equal(blocks_discard(edge, 40000, 8192), 0);
        assert_int_equal(io_flush(edge), 0);
        graph_detach(edge);
        assert_int_equal(graph_del(graph, "d", &err), 0);
        edge = blocks_root(graph, blocks_add(graph, "{'driver':'file','filename':'%s'}", path),
                           "again");
        assert_int_equal(edge->child->length_bytes, MIB);
        blocks_expect(edge, 9000, 1000, 5);
        blocks_expect(edge, 10000, 5000, 0);
        blocks_expect(edge, 15000, 5000, 5);
        blocks_expect(edge, 20000, 5000, 0);
        blocks_expect(edge, 25000, 15000, 5);
        graph_detach(edge);
        graph_free(graph);
    }
    test_folder_remove();
}

TEST_LOOP(holes_show_as_zeroes)
{
    const char *path = make_file("disk.raw", 16u * MIB);
    struct graph *graph = blocks_graph();
    struct edge *edge = blocks_root(
        graph, blocks_add(graph, "{'driver':'file','filename':'%s'}", path), "test");
    struct extent extent = {0};
    uint64_t data_bytes = 0;

    assert_int_equal(blocks_write(edge, 8u * MIB, MIB, 1, 0), 0);
    for (uint64_t at = 0; at < edge->child->length_bytes; at += extent.length_bytes) {
        assert_int_equal(io_extents(edge, at, edge->child->length_bytes - at, &extent), 0);
        assert_true((extent.flags & EXTENT_HERE) != 0);
        assert_int_equal(extent.depth, 1);
        if ((extent.flags & EXTENT_DATA) != 0)
            data_bytes += extent.length_bytes;
        else
            assert_false(ranges_overlap(at, extent.length_bytes, 8u * MIB, MIB));
    }
    assert_in_range(data_bytes, MIB, 16u * MIB);
    assert_int_equal(io_extents(edge, 16u * MIB, 1, &extent), -EINVAL);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

/* As QEMU shows such a file: a disk has one size, whoever serves it. */
TEST_LOOP(an_odd_length_is_shown_rounded_up_to_512)
{
    const char *path = make_file("odd.raw", 1000);
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
    struct edge *edge = blocks_root(graph, node, "test");
    struct extent extent = {0};

    assert_int_equal(node->length_bytes, 1024);
    blocks_expect(edge, 0, 1024, 0);
    assert_int_equal(io_extents(edge, 1000, 24, &extent), 0);
    assert_int_equal(extent.flags & EXTENT_ZERO, EXTENT_ZERO);
    assert_int_equal(file_length(path), 1000);
    assert_int_equal(blocks_write(edge, 990, 34, 3, 0), 0);
    blocks_expect(edge, 990, 34, 3);
    assert_int_equal(file_length(path), 1024);
    assert_int_equal(blocks_write(edge, 1024, 1, 3, 0), -ENOSPC);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(a_parent_that_may_resize_lets_it_grow)
{
    const char *path = make_file("log.ov", 0);
    struct graph *graph = blocks_graph();
    struct err err = ERR_INIT;
    struct node *node = blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
    struct edge *edge = blocks_root(graph, node, "test");

    assert_int_equal(
        graph_set_perms(edge, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL, &err), 0);
    assert_int_equal(blocks_write(edge, 0, 4096, 1, 0), 0);
    assert_int_equal(blocks_write(edge, 100000, 4096, 2, 0), 0);
    blocks_expect(edge, 4096, 100000 - 4096, 0);
    assert_int_equal(node->length_bytes, 104096);
    assert_int_equal(io_truncate(edge, 50000), 0);
    assert_int_equal(file_length(path), 50000);
    assert_int_equal(node->length_bytes, 50000);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

/* Behind our back, past all locks: what is lost must not pass for zeroes, nor for durable. */
TEST_LOOP(a_file_that_somebody_has_truncated_fails_reads_there_and_flushes)
{
    const char *path = make_file("cut.raw", 65536);
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
    struct edge *edge = blocks_root(graph, node, "test");
    uint8_t bytes[4096];

    assert_int_equal(blocks_write(edge, 0, 65536, 7, 0), 0);
    assert_int_equal(io_flush(edge), 0);
    make_file("cut.raw", 0);
    make_file("cut.raw", 8192);
    assert_int_equal(blocks_read_bytes(edge, 4096, bytes, sizeof(bytes), 0), 0);
    assert_int_equal(blocks_read_bytes(edge, 8192, bytes, sizeof(bytes), 0), -EIO);
    assert_int_equal(blocks_read_bytes(edge, 6144, bytes, sizeof(bytes), 0), -EIO);
    assert_int_equal(io_flush(edge), -EIO);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

/* As on Linux, where the kernel forgets what it could not write. */
TEST_LOOP(after_a_failed_flush_none_succeeds_until_the_node_is_made_anew)
{
    struct sim *sim = sim_of(loop_current());
    const struct sim_fault fault = {.op = SIM_OP_SYNC, .times = 1, .error = -EIO};

    if (sim == NULL)
        skip(); /* a kernel's file system does not fail when asked to */
    const char *path = make_file("lost.raw", 65536);
    for (int round = 0; round < 2; round++) {
        struct graph *graph = blocks_graph();
        struct node *node = blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
        struct edge *edge = blocks_root(graph, node, "test");

        assert_int_equal(blocks_write(edge, 0, 4096, 7, 0), 0);
        if (round == 0) {
            assert_int_equal(sim_fault_add(sim, "host", &fault), 0);
            assert_int_equal(io_flush(edge), -EIO);
            assert_int_equal(io_flush(edge), -EIO);
            assert_int_equal(blocks_write(edge, 0, 4096, 7, IO_FUA), -EIO);
        } else {
            assert_int_equal(io_flush(edge), 0);
        }
        graph_detach(edge);
        graph_free(graph);
    }
    test_folder_remove();
}

struct late_flush {
    struct edge *edge;
    int result;
    bool done;
};

static void late_flush_run(void *arg) MAY_WAIT
{
    struct late_flush *late = arg;
    late->result = io_flush(late->edge);
    late->done = true;
}

static int count_syncs(void *arg, const struct sim_request_info *info)
{
    unsigned *syncs = arg;
    *syncs += info->op == SIM_OP_SYNC && info->moment == SIM_BEFORE;
    return 0;
}

/* Of several at once the kernel would tell one of the error. */
TEST_LOOP(flushes_at_once_are_one_and_none_hides_what_another_has_lost)
{
    struct sim *sim = sim_of(loop_current());

    if (sim == NULL)
        skip();
    const char *path = make_file("lost.raw", 65536);
    for (int fails = 0; fails < 2; fails++) {
        struct graph *graph = blocks_graph();
        struct node *node = blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
        struct edge *edge = blocks_root(graph, node, "test");
        struct late_flush late[10];
        unsigned syncs = 0;

        assert_int_equal(blocks_write(edge, 0, 4096, 7, 0), 0);
        /* The first one takes so long that all others come meanwhile. */
        const struct sim_fault fault = {
            .op = SIM_OP_SYNC, .times = 1, .error = fails ? -EIO : 0, .stall_ns = NS_PER_S};
        assert_int_equal(sim_fault_add(sim, "host", &fault), 0);
        sim_set_request_hook(sim, count_syncs, &syncs);
        for (size_t i = 0; i < ARRAY_LEN(late); i++) {
            late[i] = (struct late_flush){.edge = edge};
            assert_int_equal(co_spawn(loop_current(), "late", late_flush_run, &late[i]), 0);
        }
        for (size_t i = 0; i < ARRAY_LEN(late); i++) {
            test_wait_until(late[i].done);
            assert_int_equal(late[i].result, fails ? -EIO : 0);
        }
        /* That of the first, and one for all the others; one that a fault strikes is not counted. */
        assert_int_equal(syncs, fails ? 0 : 2);
        sim_set_request_hook(sim, NULL, NULL);
        graph_detach(edge);
        graph_free(graph);
    }
    test_folder_remove();
}

TEST_LOOP(a_missing_file_or_bad_option_is_named)
{
    struct graph *graph = blocks_graph();
    char text[512];

    snprintf(text, sizeof(text), "{'driver':'file','filename':'%s'}", test_path("absent"));
    blocks_add_fails(graph, "absent", text);
    blocks_add_fails(graph, "filename", "{'driver':'file'}");
    blocks_add_fails(graph, "aio", "{'driver':'file','filename':'x','aio':'native'}");
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(a_second_opener_is_kept_out_unless_both_only_read)
{
    static const struct {
        const char *first, *second;
        const char *part; /* NULL: allowed */
    } cases[] = {
        {"", "", "does not share 'write'"},
        {"", ",'read-only':true", "uses 'write'"},
        {",'read-only':true", "", "does not share 'write'"},
        {",'read-only':true", ",'read-only':true", NULL},
        {"", ",'locking':'off'", NULL},
        {",'locking':'off'", ",'locking':'on'", NULL},
    };
    const char *path = make_file("disk.raw", MIB);

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct graph *graph = blocks_graph();
        uint64_t began_ns = loop_clock_ns(loop_current());
        char text[512];

        blocks_add(graph, "{'driver':'file','filename':'%s'%s}", path, cases[i].first);
        snprintf(text, sizeof(text), "{'driver':'file','filename':'%s'%s}", path, cases[i].second);
        if (cases[i].part != NULL) {
            assert_int_equal(blocks_add_fails(graph, cases[i].part, text), -EAGAIN);
            assert_true(loop_clock_ns(loop_current()) - began_ns >= 2 * NS_PER_S);
        } else {
            blocks_add(graph, "%s", text);
        }
        graph_free(graph);
    }
    test_folder_remove();
}

struct late_close {
    struct file *file;
};

static void late_close_run(void *arg) MAY_WAIT
{
    struct late_close *late = arg;

    co_sleep(200 * NS_PER_MS);
    file_close(late->file);
}

/* A killed process may hold its locks a little longer than it lives. */
TEST_LOOP(a_lock_that_goes_within_two_seconds_is_waited_for)
{
    const char *path = make_file("disk.raw", MIB);
    struct graph *graph = blocks_graph();
    struct late_close late;
    struct err err = ERR_INIT;

    assert_int_equal(file_open(loop_current(), path, 0, FILE_AIO_AUTO, &late.file, &err), 0);
    /* "I do not share write", said as QEMU says it. */
    assert_int_equal(file_lock(late.file, QEMU_SHARED_BASE + QEMU_PERM_WRITE, false), 0);
    assert_int_equal(co_spawn(loop_current(), "late", late_close_run, &late), 0);
    blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(locks_stand_on_the_bytes_that_stock_tools_look_at)
{
    const char *path = make_file("disk.raw", MIB);
    struct graph *graph = blocks_graph();
    struct err err = ERR_INIT;
    struct node *node = blocks_add(graph, "{'driver':'file','filename':'%s'}", path);
    struct file *other = NULL;
    bool locked = false;

    assert_int_equal(file_open(loop_current(), path, 0, FILE_AIO_AUTO, &other, &err), 0);
    assert_int_equal(file_lock_test(other, QEMU_PERM_BASE + QEMU_PERM_WRITE, true, &locked), 0);
    assert_true(locked);
    assert_int_equal(file_lock_test(other, QEMU_SHARED_BASE + QEMU_PERM_WRITE, true, &locked), 0);
    assert_true(locked);
    /* Read-only: nobody writes here any more, nor may another. */
    assert_int_equal(graph_reopen(node, true, &err), 0);
    assert_int_equal(file_lock_test(other, QEMU_PERM_BASE + QEMU_PERM_WRITE, true, &locked), 0);
    assert_false(locked);
    assert_int_equal(file_lock_test(other, QEMU_SHARED_BASE + QEMU_PERM_WRITE, true, &locked), 0);
    assert_true(locked);
    /* Back is refused while another reads and does not share; what was, stays. */
    assert_int_equal(file_lock(other, QEMU_SHARED_BASE + QEMU_PERM_WRITE, false), 0);
    assert_int_equal(graph_reopen(node, false, &err), -EAGAIN);
    assert_true(node->read_only);
    assert_int_equal(file_unlock(other, QEMU_SHARED_BASE + QEMU_PERM_WRITE), 0);
    assert_int_equal(graph_reopen(node, false, &err), 0);
    assert_false(node->read_only);
    file_close(other);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(a_read_only_node_takes_no_writes)
{
    const char *path = make_file("disk.raw", MIB);
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'driver':'file','read-only':true,'filename':'%s'}",
                                   path);
    struct err err = ERR_INIT;
    struct edge *edge = NULL;

    assert_int_equal(graph_attach_root(graph, node, "r", PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL,
                                       &edge, &err),
                     0);
    blocks_expect(edge, 0, 4096, 0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), -EPERM);
    assert_int_equal(graph_set_perms(edge, PERM_WRITE, PERM_ALL, &err), -EPERM);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_and_survives_a_reopening),
        cmocka_unit_test(holes_show_as_zeroes),
        cmocka_unit_test(an_odd_length_is_shown_rounded_up_to_512),
        cmocka_unit_test(a_parent_that_may_resize_lets_it_grow),
        cmocka_unit_test(a_file_that_somebody_has_truncated_fails_reads_there_and_flushes),
        cmocka_unit_test(after_a_failed_flush_none_succeeds_until_the_node_is_made_anew),
        cmocka_unit_test(flushes_at_once_are_one_and_none_hides_what_another_has_lost),
        cmocka_unit_test(a_missing_file_or_bad_option_is_named),
        cmocka_unit_test(a_second_opener_is_kept_out_unless_both_only_read),
        cmocka_unit_test(a_lock_that_goes_within_two_seconds_is_waited_for),
        cmocka_unit_test(locks_stand_on_the_bytes_that_stock_tools_look_at),
        cmocka_unit_test(a_read_only_node_takes_no_writes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
