/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include "drivers/blklogwrites.h"
#include "wire/log_writes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DISK_BYTES (1u << 20)

struct fixture {
    struct graph *graph;
    struct node *disk, *disk_debug, *log, *log_debug, *node;
    struct edge *edge;
};

static struct fixture set_up(const char *disk_options, const char *options) MAY_WAIT
{
    struct fixture f = {.graph = blocks_graph()};

    f.disk = blocks_add(f.graph, "{'node-name':'disk','driver':'mem','yields':1%s}", disk_options);
    f.disk_debug = blocks_add(f.graph, "{'node-name':'dd','driver':'blkdebug','file':'disk'}");
    f.log = blocks_add(
        f.graph, "{'node-name':'log','driver':'mem','size':0,'grow':true,'align':512,'yields':1}");
    f.log_debug = blocks_add(f.graph, "{'node-name':'ld','driver':'blkdebug','file':'log'}");
    f.node = blocks_add(
        f.graph, "{'node-name':'top','driver':'blklogwrites','file':'dd','log':'ld'%s}", options);
    f.edge = blocks_root(f.graph, f.node, "test");
    return f;
}

static void tear_down(struct fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
}

/* --- reading a log --- */

struct reader {
    const uint8_t *bytes;
    struct log_writes_super super;
    uint64_t length_bytes, sector, index;
};

static struct reader reader_open(const struct fixture *f)
{
    struct reader r = {.bytes = mem_bytes(f->log), .length_bytes = f->log->length_bytes};
    struct err err = ERR_INIT;

    if (log_writes_super_decode(r.bytes, &r.super, &err) < 0)
        fail_msg("%s", err.text);
    r.sector = 1;
    return r;
}

/* False at the end. */
static bool reader_next(struct reader *r, struct log_writes_entry *ret_entry,
                        const uint8_t **ret_data)
{
    struct err err = ERR_INIT;
    uint64_t takes;

    if (r->index == r->super.entry_count)
        return false;
    if (log_writes_entry_decode(r->bytes + r->sector * r->super.sector_bytes, r->super.sector_bytes,
                                r->length_bytes / r->super.sector_bytes - r->sector, ret_entry,
                                &takes, &err) < 0)
        fail_msg("entry %llu: %s", (unsigned long long)r->index, err.text);
    *ret_data = r->bytes + (r->sector + 1) * r->super.sector_bytes;
    if ((ret_entry->flags & LOG_WRITES_MARK) != 0)
        *ret_data -= r->super.sector_bytes - LOG_WRITES_ENTRY_BYTES;
    r->sector += takes;
    r->index++;
    return true;
}

static void apply(const struct reader *r, const struct log_writes_entry *entry, const uint8_t *data,
                  uint8_t *disk)
{
    uint64_t length = entry->sector_count * r->super.sector_bytes;

    assert_true(range_fits(entry->sector * r->super.sector_bytes, length, DISK_BYTES));
    disk += entry->sector * r->super.sector_bytes;
    if ((entry->flags & LOG_WRITES_DISCARD) != 0)
        memset(disk, 0, length); /* as mem does */
    else
        memcpy(disk, data, length);
}

/* The disk up to the first mark of that text. */
static void replay_to_mark(const struct fixture *f, const char *mark, uint8_t *disk)
{
    struct reader r = reader_open(f);
    struct log_writes_entry entry;
    const uint8_t *data;

    memset(disk, 0, DISK_BYTES);
    while (reader_next(&r, &entry, &data)) {
        if ((entry.flags & LOG_WRITES_MARK) == 0)
            apply(&r, &entry, data, disk);
        else if (entry.data_bytes == strlen(mark) && memcmp(data, mark, strlen(mark)) == 0)
            return;
    }
    fail_msg("the log has no mark '%s'", mark);
}

static unsigned count_flags(const struct fixture *f, uint64_t flags)
{
    struct reader r = reader_open(f);
    struct log_writes_entry entry;
    const uint8_t *data;
    unsigned count = 0;

    while (reader_next(&r, &entry, &data))
        count += (entry.flags & flags) != 0;
    return count;
}

static void fail_next(struct node *debug, unsigned kinds, uint64_t nth, int error)
{
    const struct blkdebug_rule rule = {.kinds = kinds, .nth = nth, .count = 1, .error = error};

    assert_int_equal(blkdebug_inject(debug, &rule, NULL), 0);
}

/* --- the format --- */

/* Byte for byte what the kernel's documentation says. */
TEST_LOOP(the_bytes_are_those_of_dm_log_writes)
{
    static const uint8_t super[LOG_WRITES_SUPER_BYTES] = {
        0x72, 0x68, 0x73, 0x77, 0x66, 0x73, 0x6a, 0, 1, 0, 0, 0, 0, 0,
        0,    0,    3,    0,    0,    0,    0,    0, 0, 0, 0, 2, 0, 0};
    static const uint8_t entry[LOG_WRITES_ENTRY_BYTES] = {8, 0, 0, 0, 0, 0, 0, 0, 2,
                                                          0, 0, 0, 0, 0, 0, 0, 2};
    static const uint8_t discard[LOG_WRITES_ENTRY_BYTES] = {16, 0, 0, 0, 0, 0, 0, 0, 2,
                                                            0,  0, 0, 0, 0, 0, 0, 4};
    static const uint8_t flush[LOG_WRITES_ENTRY_BYTES] = {[16] = 1};
    struct fixture f = set_up("", "");
    const uint8_t *log = mem_bytes(f.log);

    assert_int_equal(blocks_write(f.edge, 4096, 1024, 0xab, IO_FUA), 0);
    assert_int_equal(blocks_discard(f.edge, 8192, 1024), 0);
    assert_int_equal(io_flush(f.edge), 0);
    assert_memory_equal(log, super, sizeof(super));
    assert_true(bytes_are_zero(log + sizeof(super), 512 - sizeof(super)));
    assert_memory_equal(log + 512, entry, sizeof(entry));
    assert_int_equal(log[1024], 0xab);
    assert_int_equal(log[2047], 0xab);
    assert_memory_equal(log + 2048, discard, sizeof(discard));
    assert_memory_equal(log + 2560, flush, sizeof(flush));
    tear_down(&f);
}

TEST_LOOP(decoders_refuse_what_cannot_be)
{
    const struct log_writes_super super = {.entry_count = 1, .sector_bytes = 512};
    struct log_writes_super super_out;
    struct log_writes_entry entry = {.sector = 1, .sector_count = 2}, out;
    uint8_t bytes[64];
    uint64_t takes = 77;
    struct err err = ERR_INIT;

    log_writes_super_encode(&super, bytes);
    assert_int_equal(log_writes_super_decode(bytes, &super_out, &err), 0);
    bytes[25] = 3;
    assert_int_equal(log_writes_super_decode(bytes, &super_out, &err), -EUCLEAN);
    bytes[8] = 2;
    assert_int_equal(log_writes_super_decode(bytes, &super_out, &err), -ENOTSUP);
    bytes[0] = 0;
    assert_int_equal(log_writes_super_decode(bytes, &super_out, &err), -EMEDIUMTYPE);

    log_writes_entry_encode(&entry, bytes);
    assert_int_equal(log_writes_entry_decode(bytes, 512, 2, &out, &takes, &err), -EUCLEAN);
    assert_int_equal(takes, 77);
    assert_int_equal(log_writes_entry_decode(bytes, 512, 3, &out, &takes, &err), 0);
    assert_int_equal(takes, 3);
    entry.flags = LOG_WRITES_DISCARD;
    log_writes_entry_encode(&entry, bytes);
    assert_int_equal(log_writes_entry_decode(bytes, 512, 1, &out, &takes, &err), 0);
    assert_int_equal(takes, 1);
    entry.sector_count = UINT64_MAX;
    log_writes_entry_encode(&entry, bytes);
    assert_int_equal(log_writes_entry_decode(bytes, 512, 1, &out, &takes, &err), -EUCLEAN);
    entry = (struct log_writes_entry){.flags = 1u << 5};
    log_writes_entry_encode(&entry, bytes);
    assert_int_equal(log_writes_entry_decode(bytes, 512, 1, &out, &takes, &err), -EUCLEAN);
    entry = (struct log_writes_entry){.flags = LOG_WRITES_MARK, .data_bytes = 481};
    log_writes_entry_encode(&entry, bytes);
    assert_int_equal(log_writes_entry_decode(bytes, 512, 1, &out, &takes, &err), -EUCLEAN);
}

/* --- replay --- */

TEST_LOOP(a_replay_to_a_mark_gives_exactly_the_bytes)
{
    uint64_t random = test_seed("blklogwrites");
    uint8_t *snapshots[8], *replayed = malloc(DISK_BYTES);
    struct fixture f = set_up("", ",'log-super-update-interval':7");
    char mark[16];

    assert_non_null(replayed);
    for (unsigned round = 0; round < ARRAY_LEN(snapshots); round++) {
        for (unsigned i = 0; i < 25; i++) {
            uint64_t at = test_random(&random) % (DISK_BYTES - 40000);
            uint64_t length = 1 + test_random(&random) % 40000;
            unsigned flags = test_random(&random) % 4 == 0 ? IO_FUA : 0;
            unsigned kind = test_random(&random) % 8;

            if (kind == 0)
                assert_int_equal(blocks_zero(f.edge, at, length, flags | IO_MAY_UNMAP), 0);
            else if (kind == 1)
                assert_int_equal(blocks_discard(f.edge, at, length), 0);
            else if (kind == 2)
                assert_int_equal(io_flush(f.edge), 0);
            else
                assert_int_equal(
                    blocks_write(f.edge, at, length, (uint8_t)test_random(&random), flags), 0);
        }
        snapshots[round] = malloc(DISK_BYTES);
        assert_non_null(snapshots[round]);
        memcpy(snapshots[round], mem_bytes(f.disk), DISK_BYTES);
        snprintf(mark, sizeof(mark), "round %u", round);
        assert_int_equal(blklogwrites_mark(f.node, mark), 0);
    }
    for (unsigned round = 0; round < ARRAY_LEN(snapshots); round++) {
        snprintf(mark, sizeof(mark), "round %u", round);
        replay_to_mark(&f, mark, replayed);
        assert_memory_equal(replayed, snapshots[round], DISK_BYTES);
        free(snapshots[round]);
    }
    assert_true(count_flags(&f, LOG_WRITES_DISCARD) > 0);
    free(replayed);
    tear_down(&f);
}

/* Overlapping writes at the same time: the log has them in the order in which they took effect. */
TEST_LOOP(a_replay_of_races_gives_what_the_disk_has)
{
    uint64_t random = test_seed("blklogwrites races");
    uint8_t *replayed = malloc(DISK_BYTES);
    struct fixture f = set_up("", "");
    struct blocks_task tasks[32];

    assert_non_null(replayed);
    for (unsigned round = 0; round < 10; round++) {
        char mark[16];

        for (unsigned i = 0; i < ARRAY_LEN(tasks); i++)
            blocks_start_write(&tasks[i], f.edge, test_random(&random) % 16384,
                               1 + test_random(&random) % 8192, (uint8_t)test_random(&random));
        for (unsigned i = 0; i < ARRAY_LEN(tasks); i++) {
            test_wait_until(tasks[i].done);
            assert_int_equal(tasks[i].result, 0);
        }
        snprintf(mark, sizeof(mark), "%u", round);
        assert_int_equal(blklogwrites_mark(f.node, mark), 0);
        replay_to_mark(&f, mark, replayed);
        assert_memory_equal(replayed, mem_bytes(f.disk), DISK_BYTES);
    }
    free(replayed);
    tear_down(&f);
}

/* The disk has carried the first one out, but its answer is late. */
TEST_LOOP(the_log_has_overlapping_writes_in_the_order_of_the_disk)
{
    struct fixture f = set_up("", "");
    const struct blkdebug_rule late = {
        .kinds = BLKDEBUG_WRITE, .count = 1, .hold = true, .after = true};
    uint8_t *replayed = malloc(DISK_BYTES);
    struct blocks_task first, second;

    assert_non_null(replayed);
    assert_int_equal(blkdebug_inject(f.disk_debug, &late, NULL), 0);
    blocks_start_write(&first, f.edge, 0, 4096, 1);
    assert_int_equal(blkdebug_await_held(f.disk_debug, 0, 1, DEADLINE_NEVER), 0);
    blocks_start_write(&second, f.edge, 2048, 4096, 2);
    co_sleep(NS_PER_MS);
    blkdebug_release(f.disk_debug, 0);
    test_wait_until(first.done && second.done);
    assert_int_equal(blklogwrites_mark(f.node, "both"), 0);
    replay_to_mark(&f, "both", replayed);
    assert_memory_equal(replayed, mem_bytes(f.disk), DISK_BYTES);
    assert_int_equal(replayed[2048], 2);
    free(replayed);
    tear_down(&f);
}

/* --- flushes --- */

struct flush_task {
    struct edge *edge;
    bool done;
    int result;
};

static void flush_main(void *arg) MAY_WAIT
{
    struct flush_task *task = arg;

    task->result = io_flush(task->edge);
    task->done = true;
}

/* Who trusts the flush trusts what was answered before it began, and nothing more. */
TEST_LOOP(what_ends_while_a_flush_runs_stands_behind_it)
{
    struct fixture f = set_up("", "");
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_FLUSH, .count = 1, .hold = true};
    struct flush_task flush = {.edge = f.edge};
    struct log_writes_entry entries[4];
    const uint8_t *data;
    struct reader r;

    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(blkdebug_inject(f.disk_debug, &hold, NULL), 0);
    assert_int_equal(co_spawn_now(loop_current(), "flush", flush_main, &flush), 0);
    assert_int_equal(blkdebug_await_held(f.disk_debug, 0, 1, DEADLINE_NEVER), 0);
    assert_int_equal(blocks_write(f.edge, 512, 512, 2, 0), 0);
    blkdebug_release(f.disk_debug, 0);
    test_wait_until(flush.done);
    assert_int_equal(flush.result, 0);
    r = reader_open(&f);
    assert_int_equal(r.super.entry_count, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_true(reader_next(&r, &entries[i], &data));
    assert_int_equal(entries[0].sector, 0);
    assert_int_equal(entries[1].flags, LOG_WRITES_FLUSH);
    assert_int_equal(entries[2].sector, 1);
    tear_down(&f);
}

/* The superblock never names an entry that is not written. */
TEST_LOOP(a_flush_waits_for_earlier_entries_to_be_written)
{
    struct fixture f = set_up("", "");
    const struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .nth = 2, .count = 1, .hold = true};
    struct flush_task flush = {.edge = f.edge};
    struct blocks_task write;

    assert_int_equal(blkdebug_inject(f.log_debug, &hold, NULL), 0);
    blocks_start_write(&write, f.edge, 0, 512, 7);
    assert_int_equal(blkdebug_await_held(f.log_debug, 0, 1, DEADLINE_NEVER), 0);
    assert_int_equal(co_spawn_now(loop_current(), "flush", flush_main, &flush), 0);
    co_sleep(NS_PER_MS);
    assert_false(flush.done);
    assert_int_equal(reader_open(&f).super.entry_count, 0);
    blkdebug_release(f.log_debug, 0);
    test_wait_until(flush.done && write.done);
    assert_int_equal(flush.result, 0);
    assert_int_equal(reader_open(&f).super.entry_count, 2);
    tear_down(&f);
}

TEST_LOOP(the_superblock_is_written_at_the_interval_too)
{
    struct fixture f = set_up("", ",'log-super-update-interval':3");

    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(reader_open(&f).super.entry_count, 3);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(reader_open(&f).super.entry_count, 6);
    tear_down(&f);
}

/* --- failures --- */

TEST_LOOP(what_the_disk_refused_is_not_in_the_log)
{
    struct fixture f = set_up("", "");

    fail_next(f.disk_debug, BLKDEBUG_WRITE, 1, -ENXIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), -ENXIO);
    fail_next(f.disk_debug, BLKDEBUG_ZERO, 1, -ENXIO);
    assert_int_equal(blocks_zero(f.edge, 0, 512, 0), -ENXIO);
    fail_next(f.disk_debug, BLKDEBUG_DISCARD, 1, -ENXIO);
    assert_int_equal(blocks_discard(f.edge, 0, 512), -ENXIO);
    fail_next(f.disk_debug, BLKDEBUG_FLUSH, 1, -ENXIO);
    assert_int_equal(io_flush(f.edge), -ENXIO);
    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(io_flush(f.edge), 0);
    /* The failed flush had its place: a mark stands there. */
    assert_int_equal(reader_open(&f).super.entry_count, 3);
    assert_int_equal(count_flags(&f, LOG_WRITES_FLUSH), 1);
    assert_int_equal(count_flags(&f, LOG_WRITES_MARK), 1);
    tear_down(&f);
}

TEST_LOOP(a_log_that_cannot_be_written_fails_all_changes_from_then_on)
{
    struct fixture f = set_up("", "");
    uint8_t byte;

    assert_int_equal(blocks_write(f.edge, 0, 512, 1, 0), 0);
    assert_int_equal(io_flush(f.edge), 0);
    fail_next(f.log_debug, BLKDEBUG_WRITE, 2, -ENOSPC);
    assert_int_equal(blocks_write(f.edge, 0, 512, 2, 0), -ENOSPC);
    assert_int_equal(blocks_write(f.edge, 512, 512, 3, 0), -ENOSPC);
    assert_int_equal(blocks_zero(f.edge, 512, 512, 0), -ENOSPC);
    assert_int_equal(blocks_discard(f.edge, 512, 512), -ENOSPC);
    assert_int_equal(io_flush(f.edge), -ENOSPC);
    assert_int_equal(blklogwrites_mark(f.node, "x"), -ENOSPC);
    assert_int_equal(blocks_read_bytes(f.edge, 0, &byte, 1, 0), 0);
    assert_int_equal(mem_bytes(f.disk)[512], 0);
    assert_int_equal(reader_open(&f).super.entry_count, 2);
    tear_down(&f);
}

TEST_LOOP(a_full_log_says_so)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'node-name':'top','driver':'blklogwrites',"
                                          "'file':{'driver':'mem'},"
                                          "'log':{'driver':'mem','size':4096}}");
    struct edge *edge = blocks_root(graph, node, "test");

    assert_int_equal(blocks_write(edge, 0, 3072, 1, 0), 0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), -ENOSPC);
    graph_detach(edge);
    graph_free(graph);
}

/* --- options --- */

TEST_LOOP(unaligned_requests_become_whole_sectors)
{
    struct fixture f = set_up("", ",'log-sector-size':4096");
    uint8_t *replayed = malloc(DISK_BYTES);

    assert_non_null(replayed);
    assert_int_equal(f.node->limits.request_align_bytes, 4096);
    assert_int_equal(blocks_write(f.edge, 100, 5000, 9, 0), 0);
    assert_int_equal(blklogwrites_mark(f.node, "m"), 0);
    assert_int_equal(reader_open(&f).super.sector_bytes, 4096);
    replay_to_mark(&f, "m", replayed);
    assert_memory_equal(replayed, mem_bytes(f.disk), DISK_BYTES);
    free(replayed);
    tear_down(&f);
}

TEST_LOOP(an_old_log_is_continued_where_it_ends)
{
    struct fixture f = set_up("", ",'log-sector-size':1024");
    uint8_t *replayed = malloc(DISK_BYTES);
    struct err err = ERR_INIT;

    assert_non_null(replayed);
    for (unsigned session = 0; session < 3; session++) {
        assert_int_equal(blocks_write(f.edge, session * 4096, 4096, (uint8_t)(session + 1), 0), 0);
        assert_int_equal(blocks_discard(f.edge, 65536, 4096), 0);
        assert_int_equal(blocks_zero(f.edge, 4096 * session, 1024, 0), 0);
        graph_detach(f.edge);
        assert_int_equal(graph_del(f.graph, "top", &err), 0);
        /* Closed: all is named, and nothing lies behind. */
        assert_int_equal(reader_open(&f).super.entry_count, 3 * (session + 1));
        assert_int_equal(f.log->length_bytes, 1024 * (1 + 8 * (session + 1)));
        f.node = blocks_add(f.graph, "{'node-name':'top','driver':'blklogwrites','file':'dd',"
                                     "'log':'ld','log-append':true}");
        f.edge = blocks_root(f.graph, f.node, "test");
    }
    assert_int_equal(blklogwrites_mark(f.node, "end"), 0);
    replay_to_mark(&f, "end", replayed);
    assert_memory_equal(replayed, mem_bytes(f.disk), DISK_BYTES);
    free(replayed);
    tear_down(&f);
}

TEST_LOOP(bad_options_and_logs_are_refused)
{
    static const struct {
        const char *options, *part;
    } cases[] = {
        {"'log':{'driver':'mem'},'log-sector-size':1000", "power of two"},
        {"'log':{'driver':'mem'},'log-sector-size':32", "power of two"},
        {"'log':{'driver':'mem'},'log-sector-size':16777216", "power of two"},
        {"'log':{'driver':'mem'},'log-append':true,'log-sector-size':512", "same time"},
        {"'log':{'driver':'mem'},'log-append':true", "wrong magic"},
        {"'log':{'driver':'mem','size':0},'log-append':true", "too short"},
        {"'log':{'driver':'mem','size':0}", "cannot begin the log"},
        {"'log':{'driver':'mem'},'log-super-update-interval':0", "log-super-update-interval"},
        {"'log':{'driver':'mem'},'read-only':true", "read-only"},
        {"'log-append':true", "log"},
    };
    struct graph *graph = blocks_graph();

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        char text[256];

        snprintf(text, sizeof(text), "{'driver':'blklogwrites','file':{'driver':'mem'},%s}",
                 cases[i].options);
        blocks_add_fails(graph, cases[i].part, text);
    }
    blocks_add(graph, "{'node-name':'shared','driver':'mem'}");
    blocks_add_fails(graph, "the same node",
                     "{'driver':'blklogwrites','file':'shared','log':'shared'}");
    graph_free(graph);
}

/* An entry that runs off the end, and a count that nothing stands behind. */
TEST_LOOP(a_damaged_log_is_not_appended_to)
{
    struct graph *graph = blocks_graph();
    struct node *log = blocks_add(graph, "{'node-name':'log','driver':'mem','size':4096}");
    struct log_writes_super super = {.entry_count = 2, .sector_bytes = 512};
    struct log_writes_entry entry = {.sector_count = 3};
    const char *options = "{'driver':'blklogwrites','file':{'driver':'mem'},'log':'log',"
                          "'log-append':true}";

    log_writes_super_encode(&super, mem_bytes(log));
    log_writes_entry_encode(&entry, mem_bytes(log) + 512);
    entry.sector_count = 100;
    log_writes_entry_encode(&entry, mem_bytes(log) + 5 * 512);
    blocks_add_fails(graph, "entry 1", options);
    entry.sector_count = 2;
    log_writes_entry_encode(&entry, mem_bytes(log) + 5 * 512);
    super.entry_count = UINT64_MAX;
    log_writes_super_encode(&super, mem_bytes(log));
    blocks_add_fails(graph, "ends before entry 2", options);
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bytes_are_those_of_dm_log_writes),
        cmocka_unit_test(decoders_refuse_what_cannot_be),
        cmocka_unit_test(a_replay_to_a_mark_gives_exactly_the_bytes),
        cmocka_unit_test(a_replay_of_races_gives_what_the_disk_has),
        cmocka_unit_test(the_log_has_overlapping_writes_in_the_order_of_the_disk),
        cmocka_unit_test(what_ends_while_a_flush_runs_stands_behind_it),
        cmocka_unit_test(a_flush_waits_for_earlier_entries_to_be_written),
        cmocka_unit_test(the_superblock_is_written_at_the_interval_too),
        cmocka_unit_test(what_the_disk_refused_is_not_in_the_log),
        cmocka_unit_test(a_log_that_cannot_be_written_fails_all_changes_from_then_on),
        cmocka_unit_test(a_full_log_says_so),
        cmocka_unit_test(unaligned_requests_become_whole_sectors),
        cmocka_unit_test(an_old_log_is_continued_where_it_ends),
        cmocka_unit_test(bad_options_and_logs_are_refused),
        cmocka_unit_test(a_damaged_log_is_not_appended_to),
    };

    return cmocka_run_group_tests_name("blklogwrites", tests, NULL, NULL);
}
