/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* copy-before-write made by options, and the point in time seen through snapshot-access. */
#include "overlay_fixture.h"

#include "drivers/copy_before_write.h"

#define SIZE_BYTES (1024u * 1024)

struct fixture {
    struct graph *graph;
    struct node *mem, *disk, *target, *filter, *snapshot;
    struct edge *guest, *reader;
};

static void set_up(struct fixture *f) MAY_WAIT
{
    struct err err = ERR_INIT;

    *f = (struct fixture){.graph = blocks_graph()};
    overlay_make(test_path("target"), SIZE_BYTES, 0, 0);
    f->mem = blocks_add(f->graph, "{'node-name':'mem','driver':'mem','yields':2}");
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        mem_bytes(f->mem)[i] = overlay_backing_byte(i);
    f->disk = blocks_add(f->graph, "{'node-name':'disk','driver':'blkdebug','file':'mem'}");
    f->target = blocks_add(f->graph,
                           "{'node-name':'target','driver':'overlay','file':{'driver':'blkdebug',"
                           "'node-name':'tfile','file':{'driver':'file','filename':'%s'}}}",
                           test_path("target"));
    f->filter = blocks_add(f->graph, "{'node-name':'cbw','driver':'copy-before-write',"
                                     "'file':'disk','target':'target',"
                                     "'on-cbw-error':'break-guest-write','cbw-timeout':0}");
    f->snapshot = blocks_add(f->graph,
                             "{'node-name':'snap','driver':'snapshot-access','file':'cbw'}");
    f->guest = blocks_root(f->graph, f->filter, "guest");
    if (graph_attach_root(f->graph, f->snapshot, "reader", PERM_CONSISTENT_READ, PERM_ALL, NULL,
                          NULL, &f->reader, &err) < 0)
        fail_msg("%s", err.text);
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->reader);
    graph_detach(f->guest);
    graph_free(f->graph);
    test_folder_remove();
}

static void expect_old(struct fixture *f, uint64_t offset, uint64_t length) MAY_WAIT
{
    uint8_t *seen = malloc(length);

    assert_non_null(seen);
    assert_int_equal(blocks_read_bytes(f->reader, offset, seen, length, 0), 0);
    for (uint64_t i = 0; i < length; i++) {
        if (seen[i] != overlay_backing_byte(offset + i))
            fail_msg("byte %" PRIu64 " is %u", offset + i, seen[i]);
    }
    free(seen);
}

TEST_LOOP(the_disk_is_seen_as_it_was)
{
    struct fixture f;
    struct extent extent;

    set_up(&f);
    expect_old(&f, 0, SIZE_BYTES);
    assert_int_equal(blocks_write(f.guest, 5000, 20000, 0xaa, 0), 0);
    assert_int_equal(blocks_zero(f.guest, 100000, 5000, 0), 0);
    assert_int_equal(blocks_discard(f.guest, 200000, 50000), 0);
    expect_old(&f, 0, SIZE_BYTES);
    blocks_expect(f.guest, 5000, 20000, 0xaa);
    assert_int_equal(io_extents(f.reader, 8192, 4096, &extent), 0);
    assert_true((extent.flags & EXTENT_DATA) != 0);
    assert_int_equal(io_flush(f.reader), 0);
    tear_down(&f);
}

TEST_LOOP(the_point_in_time_cannot_be_written)
{
    struct fixture f;

    set_up(&f);
    assert_true(f.snapshot->read_only);
    assert_int_equal(blocks_write(f.reader, 0, 512, 1, 0), -EPERM);
    assert_int_equal(blocks_zero(f.reader, 0, 512, 0), -EPERM);
    tear_down(&f);
}

/* break-guest-write: the point in time stays whole. */
TEST_LOOP(a_write_whose_copy_fails_fails)
{
    struct fixture f;
    const struct blkdebug_rule fail = {.kinds = BLKDEBUG_WRITE, .error = -ENOSPC};

    set_up(&f);
    assert_int_equal(blocks_write(f.guest, 0, 4096, 1, 0), 0);
    assert_int_equal(blkdebug_inject(graph_find(f.graph, "tfile"), &fail, NULL), 0);
    assert_int_equal(blocks_write(f.guest, 65536, 4096, 1, 0), -ENOSPC);
    expect_old(&f, 0, SIZE_BYTES);
    blkdebug_remove(graph_find(f.graph, "tfile"), 0);
    assert_int_equal(blocks_write(f.guest, 65536, 4096, 1, 0), 0);
    expect_old(&f, 0, SIZE_BYTES);
    tear_down(&f);
}

struct writer {
    struct fixture *f;
    uint64_t random;
    bool done;
};

static void writer_main(void *arg) MAY_WAIT
{
    struct writer *w = arg;

    for (unsigned i = 0; i < 100; i++) {
        uint64_t at = test_random(&w->random) % (SIZE_BYTES - 30000);

        assert_int_equal(blocks_write(w->f->guest, at, 1 + test_random(&w->random) % 30000,
                                      (uint8_t)test_random(&w->random), 0),
                         0);
    }
    w->done = true;
}

TEST_LOOP(readers_beside_writers_see_nothing_new)
{
    uint64_t random = test_seed("snapshot-access");
    struct writer writers[4];
    struct fixture f;
    bool running = true;

    set_up(&f);
    for (unsigned i = 0; i < ARRAY_LEN(writers); i++) {
        writers[i] = (struct writer){.f = &f, .random = test_random(&random)};
        assert_int_equal(co_spawn_now(loop_current(), "writer", writer_main, &writers[i]), 0);
    }
    while (running) {
        uint64_t at = test_random(&random) % (SIZE_BYTES - 70000);

        expect_old(&f, at, 1 + test_random(&random) % 70000);
        co_sleep_until(loop_now_ns(loop_current())); /* reads of the page cache need not wait */
        running = false;
        for (unsigned i = 0; i < ARRAY_LEN(writers); i++)
            running = running || !writers[i].done;
    }
    expect_old(&f, 0, SIZE_BYTES);
    tear_down(&f);
}

TEST_LOOP(what_is_lacking_is_refused_with_the_reason)
{
    static const struct {
        const char *options, *part;
    } cases[] = {
        {"'cbw-timeout':5", "'cbw-timeout' is not supported yet"},
        {"'bitmap':{'node':'x','name':'y'}", "'x'"},
        {"'bitmap':{'node':'x'}", "name"},
        {"'on-cbw-error':'ignore'", "on-cbw-error"},
    };
    struct graph *graph = blocks_graph();

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char text[256];

        snprintf(text, sizeof(text),
                 "{'driver':'copy-before-write','file':{'driver':'mem'},'target':{'driver':'mem'},"
                 "%s}",
                 cases[i].options);
        blocks_add_fails(graph, cases[i].part, text);
    }
    blocks_add_fails(graph, "not 'copy-before-write'",
                     "{'driver':'snapshot-access','file':{'driver':'mem'}}");
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_disk_is_seen_as_it_was),
        cmocka_unit_test(the_point_in_time_cannot_be_written),
        cmocka_unit_test(a_write_whose_copy_fails_fails),
        cmocka_unit_test(readers_beside_writers_see_nothing_new),
        cmocka_unit_test(what_is_lacking_is_refused_with_the_reason),
    };

    return cmocka_run_group_tests_name("snapshot-access", tests, NULL, NULL);
}
