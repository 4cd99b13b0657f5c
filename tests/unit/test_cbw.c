/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy-before-write as a replication group uses it:
 *
 *     peer -> filter -> sdisk (blkdebug) -> mem
 *     user -> active (overlay) -> hidden (overlay on a blkdebug) -> access -> sdisk
 */
#include "overlay_fixture.h"

#include "block/dirty_bitmap.h"
#include "drivers/copy_before_write.h"

#define SIZE_BYTES (1024u * 1024 + 512)

struct fixture {
    struct graph *graph;
    struct node *mem, *sdisk, *hfile, *hidden, *active;
    struct edge *peer, *user;
    struct cbw cbw;
};

static void set_up(struct fixture *f, bool insert) MAY_WAIT
{
    struct err err = ERR_INIT;

    *f = (struct fixture){.graph = blocks_graph()};
    overlay_make(test_path("hidden"), SIZE_BYTES, 0, 0);
    overlay_make(test_path("active"), SIZE_BYTES, 0, 0);
    f->mem = blocks_add(f->graph, "{'node-name':'mem','driver':'mem','size':%u,'yields':3}",
                        SIZE_BYTES);
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        mem_bytes(f->mem)[i] = overlay_backing_byte(i);
    f->sdisk = blocks_add(f->graph, "{'node-name':'sdisk','driver':'blkdebug','file':'mem'}");
    f->hfile = blocks_add(f->graph,
                          "{'node-name':'hfile','driver':'blkdebug','file':"
                          "{'driver':'file','filename':'%s'}}",
                          test_path("hidden"));
    f->hidden = blocks_add(f->graph, "{'node-name':'hidden','driver':'overlay','file':'hfile',"
                                     "'backing':'sdisk'}");
    f->active = blocks_add(f->graph,
                           "{'node-name':'active','driver':'overlay','backing':'hidden',"
                           "'file':{'driver':'file','filename':'%s'}}",
                           test_path("active"));
    f->user = blocks_root(f->graph, f->active, "user");
    f->peer = blocks_root(f->graph, f->sdisk, "peer");
    if (insert && cbw_insert(f->graph, f->sdisk, f->hidden, &f->cbw, &err) < 0)
        fail_msg("%s", err.text);
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    struct err err = ERR_INIT;

    if (cbw_remove(f->graph, &f->cbw, &err) < 0)
        fail_msg("%s", err.text);
    graph_detach(f->user);
    graph_detach(f->peer);
    graph_free(f->graph);
    test_folder_remove();
}

/* The user sees the disk as it was. */
static void expect_old(struct fixture *f, uint64_t offset, uint64_t length) MAY_WAIT
{
    uint8_t *seen = malloc(length);

    assert_non_null(seen);
    assert_int_equal(blocks_read_bytes(f->user, offset, seen, length, 0), 0);
    for (uint64_t i = 0; i < length; i++) {
        if (seen[i] != overlay_backing_byte(offset + i))
            fail_msg("byte %" PRIu64 " is %u", offset + i, seen[i]);
    }
    free(seen);
}

TEST_LOOP(what_is_overwritten_is_saved_once)
{
    struct fixture f;

    set_up(&f, true);
    assert_int_equal(blocks_write(f.peer, 8192, 4096, 0xaa, 0), 0);
    blocks_expect(f.peer, 8192, 4096, 0xaa);
    expect_old(&f, 0, SIZE_BYTES);
    assert_int_equal(cbw_stats(f.cbw.filter).copied_bytes, 4096);
    unsigned reads = mem_stats(f.mem)->reads;
    assert_int_equal(blocks_write(f.peer, 8192, 4096, 0xbb, 0), 0);
    assert_int_equal(mem_stats(f.mem)->reads, reads);
    expect_old(&f, 0, SIZE_BYTES);
    tear_down(&f);
}

TEST_LOOP(unaligned_writes_zeroes_and_discards_save_whole_blocks)
{
    struct fixture f;

    set_up(&f, true);
    assert_int_equal(blocks_write(f.peer, 4096 * 3 - 1, 2, 0xaa, 0), 0);
    assert_int_equal(cbw_stats(f.cbw.filter).copied_bytes, 8192);
    assert_int_equal(blocks_zero(f.peer, 4096 * 8 + 5, 70000, IO_MAY_UNMAP), 0);
    assert_int_equal(blocks_discard(f.peer, 4096 * 60 + 1024, 100000), 0);
    assert_int_equal(blocks_write(f.peer, SIZE_BYTES - 1, 1, 0xaa, 0), 0);
    expect_old(&f, 0, SIZE_BYTES);
    blocks_expect(f.peer, 4096 * 8 + 5, 70000, 0);
    blocks_expect(f.peer, SIZE_BYTES - 1, 1, 0xaa);
    tear_down(&f);
}

TEST_LOOP(a_write_that_changes_nothing_a_reader_sees_is_not_saved)
{
    struct fixture f;

    set_up(&f, true);
    assert_int_equal(blocks_write(f.peer, 8192, 4096, 0xaa, IO_UNCHANGED), 0);
    assert_int_equal(cbw_stats(f.cbw.filter).copies, 0);
    tear_down(&f);
}

TEST_LOOP(zeroed_blocks_are_saved_as_zeroes_without_data)
{
    struct fixture f;

    set_up(&f, true);
    memset(mem_bytes(f.mem), 0, 256 * 1024);
    assert_int_equal(blocks_write(f.peer, 100, 200 * 1024, 0xaa, 0), 0);
    assert_int_equal(blocks_write(f.peer, 240 * 1024, 4096, 0xaa, 0), 0);
    blocks_expect(f.user, 0, 256 * 1024, 0);
    assert_in_range(overlay_stats(f.hidden).log_bytes, 65536, 65536 + 4096);
    tear_down(&f);
}

struct reader {
    struct edge *edge;
    uint64_t offset, length;
    uint8_t bytes[16384];
    int result;
    bool done;
};

static void reader_main(void *arg) MAY_WAIT
{
    struct reader *reader = arg;

    reader->result = blocks_read_bytes(reader->edge, reader->offset, reader->bytes, reader->length,
                                       0);
    reader->done = true;
}

static void start_read(struct reader *reader, struct edge *edge, uint64_t offset, uint64_t length)
    MAY_WAIT
{
    *reader = (struct reader){.edge = edge, .offset = offset, .length = length};
    assert_int_equal(co_spawn(loop_current(), "reader", reader_main, reader), 0);
}

static void expect_reader_old(struct reader *reader) MAY_WAIT
{
    test_wait_until(reader->done);
    assert_int_equal(reader->result, 0);
    for (uint64_t i = 0; i < reader->length; i++)
        assert_int_equal(reader->bytes[i], overlay_backing_byte(reader->offset + i));
}

static unsigned hold(struct node *node, unsigned kinds, uint64_t offset, uint64_t length,
                     bool after)
{
    const struct blkdebug_rule rule = {.kinds = kinds,
                                       .offset_bytes = offset,
                                       .length_bytes = length,
                                       .count = 1,
                                       .hold = true,
                                       .after = after};
    unsigned id;

    assert_int_equal(blkdebug_inject(node, &rule, &id), 0);
    return id;
}

static void await_held(struct node *node, unsigned id) MAY_WAIT
{
    assert_int_equal(blkdebug_await_held(node, id, 1, loop_now_ns(loop_current()) + 10 * NS_PER_S),
                     0);
}

/* The reader has missed in hidden and is on its way to the disk: the copy and the overwrite wait. */
TEST_LOOP(a_reader_on_its_way_to_the_disk_is_not_overtaken_by_an_overwrite)
{
    struct fixture f;
    struct reader reader;
    struct blocks_task write;

    set_up(&f, true);
    unsigned id = hold(f.sdisk, BLKDEBUG_READ, 8192, 4096, false);
    start_read(&reader, f.user, 4096, 12288);
    await_held(f.sdisk, id);
    blocks_start_write(&write, f.peer, 8192, 4096, 0xaa);
    co_sleep(NS_PER_MS);
    assert_false(write.done);
    assert_false(reader.done);
    blkdebug_release(f.sdisk, id);
    expect_reader_old(&reader);
    test_wait_until(write.done);
    assert_int_equal(write.result, 0);
    expect_old(&f, 0, 65536);
    blocks_expect(f.peer, 8192, 4096, 0xaa);
    tear_down(&f);
}

struct asker {
    struct edge *edge;
    struct extent extent;
    int result;
    bool done;
};

static void asker_main(void *arg) MAY_WAIT
{
    struct asker *asker = arg;

    asker->result = io_extents(asker->edge, 0, 4096, &asker->extent);
    asker->done = true;
}

TEST_LOOP(who_asks_where_data_is_is_not_overtaken_by_an_overwrite)
{
    struct fixture f;
    struct asker asker;
    struct blocks_task write;

    set_up(&f, true);
    asker = (struct asker){.edge = f.user};
    unsigned id = hold(f.sdisk, BLKDEBUG_EXTENTS, 0, 4096, false);
    assert_int_equal(co_spawn(loop_current(), "asker", asker_main, &asker), 0);
    await_held(f.sdisk, id);
    blocks_start_write(&write, f.peer, 0, 4096, 0xaa);
    co_sleep(NS_PER_MS);
    assert_false(write.done);
    assert_false(asker.done);
    blkdebug_release(f.sdisk, id);
    test_wait_until(asker.done && write.done);
    assert_int_equal(asker.result, 0);
    assert_int_equal(asker.extent.length_bytes, 4096);
    assert_true((asker.extent.flags & EXTENT_DATA) != 0);
    assert_int_equal(write.result, 0);
    assert_int_equal(io_extents(f.user, 0, 4096, &asker.extent), 0);
    assert_true((asker.extent.flags & EXTENT_DATA) != 0);
    expect_old(&f, 0, 65536);
    tear_down(&f);
}

/* The copy is under way; a reader missed in hidden before it, and looks again after it. */
TEST_LOOP(a_reader_that_missed_before_the_copy_finds_what_was_saved)
{
    struct fixture f;
    struct reader reader;
    struct blocks_task write;

    set_up(&f, true);
    unsigned id = hold(f.hfile, BLKDEBUG_WRITE, 65536, 0, false);
    blocks_start_write(&write, f.peer, 8192, 4096, 0xaa);
    await_held(f.hfile, id);
    start_read(&reader, f.user, 4096, 12288);
    co_sleep(NS_PER_MS);
    assert_false(reader.done);
    assert_false(write.done);
    unsigned waits = (unsigned)cbw_stats(f.cbw.filter).waits;
    assert_int_equal(waits, 1);
    /* The overwrite is done before the reader runs again, if it may. */
    blkdebug_release(f.hfile, id);
    expect_reader_old(&reader);
    test_wait_until(write.done);
    blocks_expect(f.peer, 8192, 4096, 0xaa);
    tear_down(&f);
}

TEST_LOOP(writes_to_a_block_that_is_being_copied_wait_also_at_unaligned_edges)
{
    struct fixture f;
    struct blocks_task first, second, elsewhere;

    set_up(&f, true);
    unsigned id = hold(f.hfile, BLKDEBUG_WRITE, 65536, 0, false);
    blocks_start_write(&first, f.peer, 8192 + 100, 50, 0xaa);
    await_held(f.hfile, id);
    blocks_start_write(&second, f.peer, 12288 - 10, 5, 0xbb);
    co_sleep(NS_PER_MS);
    assert_false(second.done);
    assert_int_equal(mem_stats(f.mem)->writes, 0);
    blkdebug_release(f.hfile, id);
    test_wait_until(first.done && second.done);
    expect_old(&f, 0, 65536);

    /* A read of the old content that takes long holds up its own block alone. */
    id = hold(f.sdisk, BLKDEBUG_READ, 40960, 4096, false);
    blocks_start_write(&first, f.peer, 40960, 512, 0xcc);
    await_held(f.sdisk, id);
    blocks_start_write(&elsewhere, f.peer, 45056, 512, 0xdd);
    test_wait_until(elsewhere.done);
    assert_false(first.done);
    blkdebug_release(f.sdisk, id);
    test_wait_until(first.done);
    expect_old(&f, 0, 65536);
    tear_down(&f);
}

/* --- failures --- */

struct told {
    unsigned count;
    int code;
    char operation[64];
    const struct node *where;
    uint64_t offset_bytes, length_bytes;
};

static void note(void *arg, const char *operation, const struct node *where, uint64_t offset_bytes,
                 uint64_t length_bytes, int code)
{
    struct told *told = arg;

    told->count++;
    told->code = code;
    told->where = where;
    told->offset_bytes = offset_bytes;
    told->length_bytes = length_bytes;
    snprintf(told->operation, sizeof(told->operation), "%s", operation);
}

TEST_LOOP(a_copy_that_fails_fails_the_write_and_is_remembered)
{
    struct fixture f;
    struct told told = {0};
    struct cbw_error error;
    const struct blkdebug_rule save = {.kinds = BLKDEBUG_WRITE, .count = 1, .error = -ENOSPC};
    const struct blkdebug_rule old = {.kinds = BLKDEBUG_READ, .count = 1, .error = -EIO};
    const struct blkdebug_rule new = {.kinds = BLKDEBUG_WRITE, .count = 1, .error = -EIO};

    set_up(&f, true);
    cbw_on_failure(&f.cbw, note, &told);
    assert_int_equal(cbw_first_error(f.cbw.filter, &error), 0);
    assert_int_equal(blkdebug_inject(f.hfile, &save, NULL), 0);
    assert_int_equal(blocks_write(f.peer, 8192, 512, 0xaa, 0), -ENOSPC);
    assert_int_equal(mem_stats(f.mem)->writes, 0);
    assert_int_equal(told.count, 1);
    assert_string_equal(told.operation, "copy-before-write");
    assert_ptr_equal(told.where, f.hidden);

    assert_int_equal(blkdebug_inject(f.sdisk, &old, NULL), 0);
    assert_int_equal(blocks_write(f.peer, 8192, 512, 0xaa, 0), -EIO);
    assert_int_equal(mem_stats(f.mem)->writes, 0);
    assert_int_equal(cbw_first_error(f.cbw.filter, &error), -ENOSPC);
    assert_false(error.reading);
    assert_int_equal(error.offset_bytes, 8192);
    assert_int_equal(error.length_bytes, 4096);
    assert_int_equal(error.count, 2);

    assert_int_equal(blkdebug_inject(f.sdisk, &new, NULL), 0);
    assert_int_equal(blocks_write(f.peer, 8192, 512, 0xaa, 0), -EIO);
    assert_string_equal(told.operation, "write to the secondary disk");
    assert_int_equal(blocks_write(f.peer, 8192, 512, 0xaa, 0), 0);
    assert_int_equal(told.count, 3);
    expect_old(&f, 0, 65536);
    cbw_clear_error(f.cbw.filter);
    assert_int_equal(cbw_first_error(f.cbw.filter, &error), 0);
    tear_down(&f);
}

static int change(struct fixture *f, unsigned kind, uint64_t offset, uint64_t length) MAY_WAIT
{
    switch (kind) {
    case BLKDEBUG_WRITE:
        return blocks_write(f->peer, offset, length, 0xaa, 0);
    case BLKDEBUG_ZERO:
        return blocks_zero(f->peer, offset, length, 0);
    case BLKDEBUG_DISCARD:
        return blocks_discard(f->peer, offset, length);
    default:
        return io_flush(f->peer);
    }
}

TEST_LOOP(each_failure_names_its_operation_and_its_place)
{
    static const struct {
        unsigned kind, fails; /* of the request; of what it leads to on the disk, or the overlay */
        bool overlay, zeroes;
        const char *operation;
        uint64_t offset, length;
    } cases[] = {
        {BLKDEBUG_WRITE, BLKDEBUG_WRITE, false, false, "write to the secondary disk", 20000, 300},
        {BLKDEBUG_ZERO, BLKDEBUG_ZERO, false, false, "zero-write to the secondary disk", 20000,
         300},
        {BLKDEBUG_DISCARD, BLKDEBUG_DISCARD, false, false, "discard on the secondary disk", 20000,
         300},
        {BLKDEBUG_FLUSH, BLKDEBUG_FLUSH, false, false, "flush of the secondary disk", 0, 0},
        {BLKDEBUG_WRITE, BLKDEBUG_READ, false, false, "copy-before-write", 16384, 4096},
        {BLKDEBUG_ZERO, BLKDEBUG_WRITE, true, false, "copy-before-write", 16384, 4096},
        {BLKDEBUG_DISCARD, BLKDEBUG_WRITE, true, true, "copy-before-write", 16384, 4096},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct fixture f;
        struct told told = {0};
        struct cbw_error error;
        const struct blkdebug_rule rule = {.kinds = cases[i].fails, .error = -EIO, .count = 1};

        set_up(&f, true);
        if (cases[i].zeroes)
            memset(mem_bytes(f.mem), 0, 65536);
        cbw_on_failure(&f.cbw, note, &told);
        struct node *node = cases[i].overlay ? f.hfile : f.sdisk;
        assert_int_equal(blkdebug_inject(node, &rule, NULL), 0);
        assert_int_equal(change(&f, cases[i].kind, 20000, 300), -EIO);
        assert_int_equal(told.count, 1);
        assert_int_equal(told.code, -EIO);
        assert_string_equal(told.operation, cases[i].operation);
        assert_ptr_equal(told.where, cases[i].overlay ? f.hidden : f.sdisk);
        assert_int_equal(told.offset_bytes, cases[i].offset);
        assert_int_equal(told.length_bytes, cases[i].length);
        bool copying = strcmp(cases[i].operation, "copy-before-write") == 0;
        assert_int_equal(cbw_first_error(f.cbw.filter, &error), copying ? -EIO : 0);
        assert_true(!copying || error.reading == !cases[i].overlay);
        assert_true(!copying || error.offset_bytes == cases[i].offset);
        assert_true(!copying || error.length_bytes == cases[i].length);
        assert_int_equal(change(&f, cases[i].kind, 20000, 300), 0);
        assert_int_equal(told.count, 1);
        tear_down(&f);
    }
}

/* --- inserting and removing --- */

TEST_LOOP(the_filter_goes_in_and_out_and_leaves_nothing_behind)
{
    struct fixture f;
    struct err err = ERR_INIT;
    unsigned nodes = 0, after = 0;

    set_up(&f, false);
    for (struct node *node = NULL; (node = graph_next(f.graph, node)) != NULL;)
        nodes++;
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(cbw_insert(f.graph, f.sdisk, f.hidden, &f.cbw, &err), 0);
        assert_ptr_equal(f.peer->child, f.cbw.filter);
        assert_ptr_equal(node_child(f.hidden, "backing")->child, f.cbw.access);
        assert_int_equal(blocks_write(f.peer, i * 4096, 4096, 0xaa, 0), 0);
        expect_old(&f, 0, 65536);
        assert_int_equal(cbw_remove(f.graph, &f.cbw, &err), 0);
        assert_null(f.cbw.filter);
        assert_ptr_equal(f.peer->child, f.sdisk);
        assert_ptr_equal(node_child(f.hidden, "backing")->child, f.sdisk);
    }
    for (struct node *node = NULL; (node = graph_next(f.graph, node)) != NULL;)
        after++;
    assert_int_equal(nodes, after);
    assert_int_equal(cbw_remove(f.graph, &f.cbw, &err), 0);
    assert_int_equal(cbw_insert(f.graph, f.mem, f.hidden, &f.cbw, &err), -EINVAL);
    assert_null(f.cbw.filter);
    tear_down(&f);
}

TEST_LOOP(who_comes_to_the_disk_later_does_not_bypass_the_filter)
{
    struct fixture f;
    struct err err = ERR_INIT;

    set_up(&f, true);
    struct edge *late = blocks_root(f.graph, f.sdisk, "late export");
    assert_ptr_equal(late->child, f.cbw.filter);
    assert_int_equal(blocks_write(late, 8192, 4096, 0xaa, 0), 0);
    expect_old(&f, 0, SIZE_BYTES);
    assert_int_equal(cbw_remove(f.graph, &f.cbw, &err), 0);
    assert_ptr_equal(late->child, f.sdisk);
    graph_detach(late);
    tear_down(&f);
}

struct load {
    struct fixture *f;
    uint64_t state;
    bool stop, done;
    unsigned writes;
};

static void load_main(void *arg) MAY_WAIT
{
    struct load *load = arg;

    while (!load->stop) {
        uint64_t at = test_random(&load->state) % (SIZE_BYTES - 9000);

        assert_int_equal(blocks_write(load->f->peer, at, 1 + test_random(&load->state) % 9000,
                                      (uint8_t)load->writes, 0),
                         0);
        load->writes++;
        co_sleep(test_random(&load->state) % 20 * NS_PER_US); /* time passes in the simulator too */
    }
    load->done = true;
}

TEST_LOOP(the_filter_goes_in_and_out_while_the_disk_is_written)
{
    struct fixture f;
    struct err err = ERR_INIT;
    struct load loads[4];

    set_up(&f, false);
    uint64_t seed = test_seed("load");
    for (unsigned i = 0; i < ARRAY_LEN(loads); i++) {
        loads[i] = (struct load){.f = &f, .state = seed + i};
        assert_int_equal(co_spawn(loop_current(), "load", load_main, &loads[i]), 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        static uint8_t before[SIZE_BYTES], after[SIZE_BYTES];
        struct graph_drain drain;
        unsigned writes = loads[0].writes;

        assert_int_equal(cbw_insert(f.graph, f.sdisk, f.hidden, &f.cbw, &err), 0);
        /* A checkpoint: what the user sees from here on does not change. */
        assert_int_equal(graph_drain_begin(&f.sdisk, 1, &drain), 0);
        assert_int_equal(node_empty_prepare(f.hidden, &err), 0);
        node_empty_commit(f.hidden);
        memcpy(before, mem_bytes(f.mem), SIZE_BYTES);
        graph_drain_end(&drain);
        test_wait_until(loads[0].writes > writes + 5);
        assert_int_equal(blocks_read_bytes(f.user, 0, after, SIZE_BYTES, 0), 0);
        assert_memory_equal(before, after, SIZE_BYTES);
        assert_int_equal(cbw_remove(f.graph, &f.cbw, &err), 0);
    }
    for (unsigned i = 0; i < ARRAY_LEN(loads); i++) {
        loads[i].stop = true;
        test_wait_until(loads[i].done);
    }
    tear_down(&f);
}

/* --- the contract, under load --- */

static void empty_both(struct fixture *f, uint8_t *view) MAY_WAIT
{
    struct node *nodes[2] = {f->sdisk, f->active};
    struct graph_drain drain;
    struct err err = ERR_INIT;

    assert_int_equal(graph_drain_begin(nodes, 2, &drain), 0);
    assert_int_equal(node_empty_prepare(f->hidden, &err), 0);
    assert_int_equal(node_empty_prepare(f->active, &err), 0);
    node_empty_commit(f->hidden);
    node_empty_commit(f->active);
    memcpy(view, mem_bytes(f->mem), SIZE_BYTES);
    graph_drain_end(&drain);
}

/* The user's own requests: what it reads is the checkpoint and what it wrote since. */
static void user_requests(struct fixture *f, uint8_t *view, uint64_t *state, unsigned count)
    MAY_WAIT
{
    static uint8_t seen[40000];

    for (unsigned i = 0; i < count; i++) {
        uint64_t length = 1 + test_random(state) % (sizeof(seen) - 1);
        uint64_t at = test_random(state) % (SIZE_BYTES - length);

        if (test_random(state) % 4 == 0) {
            uint8_t fill = (uint8_t)test_random(state);

            length = 1 + length % 6000;
            assert_int_equal(blocks_write(f->user, at, length, fill, 0), 0);
            memset(view + at, fill, length);
        } else if (test_random(state) % 10 == 0) {
            assert_int_equal(blocks_zero(f->user, at, length, 0), 0);
            memset(view + at, 0, length);
        } else {
            assert_int_equal(blocks_read_bytes(f->user, at, seen, length, 0), 0);
            assert_memory_equal(seen, view + at, length);
        }
        co_sleep(test_random(state) % 30 * NS_PER_US);
    }
}

TEST_LOOP(the_user_sees_the_checkpoint_and_its_own_writes_whatever_the_peer_does)
{
    struct fixture f;
    struct load loads[5];
    static uint8_t view[SIZE_BYTES], seen[SIZE_BYTES];
    uint64_t seed = test_seed("contract"), state = seed;

    set_up(&f, true);
    memcpy(view, mem_bytes(f.mem), SIZE_BYTES);
    for (unsigned i = 0; i < ARRAY_LEN(loads); i++) {
        loads[i] = (struct load){.f = &f, .state = seed + i + 1};
        assert_int_equal(co_spawn(loop_current(), "load", load_main, &loads[i]), 0);
    }
    for (unsigned epoch = 0; epoch < 8; epoch++) {
        user_requests(&f, view, &state, 60);
        assert_int_equal(blocks_read_bytes(f.user, 0, seen, SIZE_BYTES, 0), 0);
        assert_memory_equal(seen, view, SIZE_BYTES);
        empty_both(&f, view);
    }
    for (unsigned i = 0; i < ARRAY_LEN(loads); i++) {
        loads[i].stop = true;
        test_wait_until(loads[i].done);
    }
    assert_true(cbw_stats(f.cbw.filter).waits > 0);
    tear_down(&f);
}

TEST_LOOP(a_target_that_cannot_tell_what_it_holds_may_be_any_disk_of_the_same_length)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem','size':262144}");
    struct node *copy = blocks_add(graph, "{'node-name':'copy','driver':'mem','size':262144}");
    struct node *filter = blocks_add(graph, "{'node-name':'filter','driver':'copy-before-write',"
                                            "'file':'disk','target':'copy'}");
    struct edge *edge = blocks_root(graph, filter, "guest");

    memset(mem_bytes(disk), 1, 262144);
    memset(mem_bytes(copy), 9, 262144);
    assert_int_equal(blocks_write(edge, 65536, 512, 2, 0), 0);
    assert_int_equal(blocks_write(edge, 65536, 512, 3, 0), 0);
    assert_int_equal(mem_bytes(copy)[65535], 9);
    assert_int_equal(mem_bytes(copy)[65536], 1);
    assert_int_equal(mem_bytes(copy)[131071], 1);
    assert_int_equal(mem_bytes(copy)[131072], 9);
    assert_int_equal(cbw_stats(filter).copied_bytes, 65536);
    graph_detach(edge);
    blocks_add_fails(graph, "they must be equal",
                     "{'driver':'copy-before-write','file':{'driver':'mem','size':4096},"
                     "'target':{'driver':'cow','file':{'driver':'mem'}}}");
    graph_free(graph);
}

static bool says_broken(struct node *filter)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    struct json_object *broken = NULL;

    assert_int_equal(filter->driver->describe(filter, object), 0);
    json_object_object_get_ex(object, "snapshot-broken", &broken);
    return json_object_get_boolean(broken);
}

/* One data block among zeroes, on a target that shows zeroes: it alone is written. */
TEST_LOOP(zeroes_are_copied_ahead_in_large_pieces_and_only_to_where_they_are_not)
{
    const uint64_t bytes = 2u * 1024 * 1024;
    struct graph *graph = blocks_graph();
    struct err err = ERR_INIT;
    struct cbw cbw;
    unsigned id;
    const struct blkdebug_rule changes = {.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO};

    overlay_make(test_path("a"), bytes, 4096, 512);
    struct node *disk = blocks_add(graph,
                                   "{'node-name':'disk','driver':'overlay',"
                                   "'file':{'driver':'file','filename':'%s'}}",
                                   test_path("a"));
    struct node *target = blocks_add(graph,
                                     "{'node-name':'target','driver':'blkdebug','file':"
                                     "{'driver':'null-co','size':2097152,'read-zeroes':true}}");
    struct edge *guest = blocks_root(graph, disk, "guest");
    assert_int_equal(blocks_write(guest, 100 * UINT64_C(4096), 4096, 1, 0), 0);
    assert_int_equal(cbw_insert_with_map(graph, disk, target, NULL, &cbw, &err), 0);
    assert_int_equal(blkdebug_inject(target, &changes, &id), 0);
    for (uint64_t offset = 0; offset < bytes;) {
        uint64_t copied, length = MIN(bytes - offset, CBW_COPY_MAX_BYTES);
        bool reading;

        assert_int_equal(cbw_copy_ahead(cbw.filter, offset, length, &copied, &reading), 0);
        assert_true(copied > 0);
        offset += copied;
    }
    assert_in_range(cbw_stats(cbw.filter).copies, 3, 8);
    assert_int_equal(blkdebug_matches(target, id), 1);
    assert_int_equal(cbw_remove(graph, &cbw, &err), 0);
    graph_detach(guest);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(a_snapshot_that_breaks_leaves_the_guest_alone)
{
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .error = -EIO};
    struct graph *graph = blocks_graph();
    struct node *copy = blocks_add(
        graph, "{'node-name':'copy','driver':'blkdebug','file':{'driver':'mem','size':262144}}");
    struct node *filter = blocks_add(graph, "{'node-name':'filter','driver':'copy-before-write',"
                                            "'file':{'driver':'mem','size':262144},"
                                            "'target':'copy','on-cbw-error':'break-snapshot'}");
    struct node *snapshot = blocks_add(graph, "{'driver':'snapshot-access','file':'filter',"
                                              "'node-name':'snapshot'}");
    struct edge *edge = blocks_root(graph, filter, "guest"), *reader;
    struct cbw_error broken;
    struct err err = ERR_INIT;
    uint8_t byte;

    assert_int_equal(graph_attach_root(graph, snapshot, "reader", PERM_CONSISTENT_READ, PERM_ALL,
                                       NULL, NULL, &reader, &err),
                     0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), 0);
    assert_int_equal(blocks_read_bytes(reader, 0, &byte, 1, 0), 0);
    assert_int_equal(byte, 0);
    assert_false(says_broken(filter));
    assert_int_equal(blkdebug_inject(copy, &rule, NULL), 0);
    /* The copy of zeroes goes another way. */
    memset(mem_bytes(filter->file->child), 7, 262144);
    assert_int_equal(blocks_write(edge, 65536, 512, 1, 0), 0);
    blocks_expect(edge, 65536, 512, 1);
    assert_int_equal(cbw_broken(filter, &broken), -EIO);
    assert_int_equal(broken.offset_bytes, 65536);
    assert_false(broken.reading);
    assert_true(says_broken(filter));
    assert_int_equal(blocks_read_bytes(reader, 0, &byte, 1, 0), -EACCES);
    graph_detach(reader);
    graph_detach(edge);
    graph_free(graph);
}

struct snapshot_read {
    struct edge *edge;
    uint64_t offset;
    uint8_t byte;
    int result;
    bool done;
};

static void read_snapshot(void *arg) MAY_WAIT
{
    struct snapshot_read *read = arg;

    read->result = blocks_read_bytes(read->edge, read->offset, &read->byte, 1, 0);
    read->done = true;
}

TEST_LOOP(who_reads_a_snapshot_is_not_overtaken_by_an_overwrite)
{
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_READ, .count = 1, .hold = true};
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(
        graph, "{'node-name':'disk','driver':'blkdebug','file':{'driver':'mem','size':262144}}");
    struct node *filter = blocks_add(graph,
                                     "{'node-name':'filter','driver':'copy-before-write',"
                                     "'file':'disk','target':{'driver':'mem','size':262144}}");
    struct node *snapshot = blocks_add(graph, "{'driver':'snapshot-access','file':'filter',"
                                              "'node-name':'snapshot'}");
    struct edge *edge = blocks_root(graph, filter, "guest");
    struct snapshot_read read = {.offset = 5};
    struct blocks_task write = {0};
    struct err err = ERR_INIT;

    assert_int_equal(graph_attach_root(graph, snapshot, "reader", PERM_CONSISTENT_READ, PERM_ALL,
                                       NULL, NULL, &read.edge, &err),
                     0);
    memset(mem_bytes(disk->file->child), 7, 262144);
    assert_int_equal(blkdebug_inject(disk, &hold, NULL), 0);
    assert_int_equal(co_spawn(loop_current(), "reader", read_snapshot, &read), 0);
    test_wait_until(blkdebug_held(disk, 0) == 1);
    blocks_start_write(&write, edge, 0, 512, 1);
    for (unsigned i = 0; i < 100; i++)
        co_yield();
    assert_false(write.done);
    blkdebug_release(disk, 0);
    test_wait_until(read.done && write.done);
    assert_int_equal(read.result, 0);
    assert_int_equal(read.byte, 7);
    assert_int_equal(write.result, 0);
    graph_detach(read.edge);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(who_reads_a_snapshot_while_it_breaks_gets_an_error_and_no_later_data)
{
    const struct blkdebug_rule no_copy = {.kinds = BLKDEBUG_WRITE, .error = -EIO};
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_READ, .count = 1, .hold = true};
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(
        graph, "{'node-name':'disk','driver':'blkdebug','file':{'driver':'mem','size':262144}}");
    struct node *copy = blocks_add(
        graph, "{'node-name':'copy','driver':'blkdebug','file':{'driver':'mem','size':262144}}");
    struct node *filter = blocks_add(graph, "{'node-name':'filter','driver':'copy-before-write',"
                                            "'file':'disk','target':'copy',"
                                            "'on-cbw-error':'break-snapshot'}");
    struct node *snapshot = blocks_add(graph, "{'driver':'snapshot-access','file':'filter',"
                                              "'node-name':'snapshot'}");
    struct edge *edge = blocks_root(graph, filter, "guest");
    struct snapshot_read read = {0};
    struct err err = ERR_INIT;

    assert_int_equal(graph_attach_root(graph, snapshot, "reader", PERM_CONSISTENT_READ, PERM_ALL,
                                       NULL, NULL, &read.edge, &err),
                     0);
    memset(mem_bytes(disk->file->child), 7, 262144);
    assert_int_equal(blkdebug_inject(copy, &no_copy, NULL), 0);
    assert_int_equal(blkdebug_inject(disk, &hold, NULL), 0);
    assert_int_equal(co_spawn(loop_current(), "reader", read_snapshot, &read), 0);
    test_wait_until(blkdebug_held(disk, 0) == 1);
    /* Another block breaks it; then nothing keeps a write off the one that is read. */
    assert_int_equal(blocks_write(edge, 131072, 512, 1, 0), 0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), 0);
    blkdebug_release(disk, 0);
    test_wait_until(read.done);
    assert_int_equal(read.result, -EACCES);
    graph_detach(read.edge);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(a_snapshot_by_a_bitmap_is_of_nothing_else)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem','size':262144}");
    struct dirty_bitmap *bitmap;
    struct err err = ERR_INIT;
    uint8_t bytes[2];

    assert_int_equal(dirty_bitmap_add(disk, "b", 4096, true, &bitmap, &err), 0);
    dirty_tracker_mark(&bitmap->tracker, 65536, 1);
    struct node *filter = blocks_add(graph, "{'node-name':'filter','driver':'copy-before-write',"
                                            "'file':'disk','target':{'driver':'mem','size':262144},"
                                            "'bitmap':{'node':'disk','name':'b'}}");
    dirty_bitmap_remove(bitmap);
    struct node *snapshot = blocks_add(graph, "{'driver':'snapshot-access','file':'filter',"
                                              "'node-name':'snapshot'}");
    struct edge *edge = blocks_root(graph, filter, "guest"), *reader;
    assert_int_equal(graph_attach_root(graph, snapshot, "reader", PERM_CONSISTENT_READ, PERM_ALL,
                                       NULL, NULL, &reader, &err),
                     0);
    memset(mem_bytes(disk), 1, 262144);
    assert_int_equal(blocks_write(edge, 0, 262144, 2, 0), 0);
    assert_int_equal(cbw_stats(filter).copied_bytes, 65536);
    assert_int_equal(blocks_read_bytes(reader, 131070, bytes, 2, 0), 0);
    assert_int_equal(bytes[0] + bytes[1], 2);
    assert_int_equal(blocks_read_bytes(reader, 131071, bytes, 2, 0), -EACCES);
    assert_int_equal(blocks_read_bytes(reader, 0, bytes, 1, 0), -EACCES);
    graph_detach(reader);
    graph_detach(edge);
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_overwritten_is_saved_once),
        cmocka_unit_test(unaligned_writes_zeroes_and_discards_save_whole_blocks),
        cmocka_unit_test(a_write_that_changes_nothing_a_reader_sees_is_not_saved),
        cmocka_unit_test(zeroed_blocks_are_saved_as_zeroes_without_data),
        cmocka_unit_test(a_reader_on_its_way_to_the_disk_is_not_overtaken_by_an_overwrite),
        cmocka_unit_test(who_asks_where_data_is_is_not_overtaken_by_an_overwrite),
        cmocka_unit_test(a_reader_that_missed_before_the_copy_finds_what_was_saved),
        cmocka_unit_test(writes_to_a_block_that_is_being_copied_wait_also_at_unaligned_edges),
        cmocka_unit_test(a_copy_that_fails_fails_the_write_and_is_remembered),
        cmocka_unit_test(each_failure_names_its_operation_and_its_place),
        cmocka_unit_test(the_filter_goes_in_and_out_and_leaves_nothing_behind),
        cmocka_unit_test(who_comes_to_the_disk_later_does_not_bypass_the_filter),
        cmocka_unit_test(the_filter_goes_in_and_out_while_the_disk_is_written),
        cmocka_unit_test(the_user_sees_the_checkpoint_and_its_own_writes_whatever_the_peer_does),
        cmocka_unit_test(
            a_target_that_cannot_tell_what_it_holds_may_be_any_disk_of_the_same_length),
        cmocka_unit_test(zeroes_are_copied_ahead_in_large_pieces_and_only_to_where_they_are_not),
        cmocka_unit_test(a_snapshot_that_breaks_leaves_the_guest_alone),
        cmocka_unit_test(who_reads_a_snapshot_is_not_overtaken_by_an_overwrite),
        cmocka_unit_test(who_reads_a_snapshot_while_it_breaks_gets_an_error_and_no_later_data),
        cmocka_unit_test(a_snapshot_by_a_bitmap_is_of_nothing_else),
    };

    return cmocka_run_group_tests_name("copy-before-write", tests, NULL, NULL);
}
