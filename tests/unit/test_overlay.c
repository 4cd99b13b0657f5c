/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "overlay_fixture.h"

#include "loop/sim.h"

#define SIZE_BYTES (3u * 1024 * 1024 + 3 * 512)

static struct overlay_fixture open_new(uint32_t block_bytes, uint32_t unit_bytes) MAY_WAIT
{
    struct overlay_fixture f;

    overlay_make(test_path("a"), SIZE_BYTES, block_bytes, unit_bytes);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    return f;
}

static void done(struct overlay_fixture *f) MAY_WAIT
{
    overlay_shut(f);
    test_folder_remove();
}

TEST_LOOP(a_new_overlay_shows_its_backing)
{
    struct overlay_fixture f = open_new(0, 0);
    struct overlay_stats stats = overlay_stats(f.node);

    assert_int_equal(f.node->length_bytes, SIZE_BYTES);
    blocks_expect(f.edge, 512 * 9, 512, overlay_backing_byte(512 * 9));
    assert_int_equal(stats.held_blocks, 0);
    assert_int_equal(stats.generation, 1);
    done(&f);
}

TEST_LOOP(a_write_changes_only_its_bytes)
{
    struct overlay_fixture f = open_new(0, 0);

    assert_int_equal(blocks_write(f.edge, 4096 * 3 + 100, 50, 0xaa, 0), 0);
    blocks_expect(f.edge, 4096 * 3 + 100, 50, 0xaa);
    blocks_expect(f.edge, 4096 * 3, 100, overlay_backing_byte(4096 * 3));
    blocks_expect(f.edge, 4096 * 3 + 150, 512 - 150, overlay_backing_byte(4096 * 3));
    blocks_expect(f.edge, 4096 * 3 + 512, 512, overlay_backing_byte(4096 * 3 + 512));
    assert_int_equal(mem_stats(f.backing)->writes, 0);
    assert_int_equal(overlay_stats(f.node).held_blocks, 1);
    done(&f);
}

TEST_LOOP(whole_blocks_are_written_without_reading_the_backing)
{
    struct overlay_fixture f = open_new(0, 0);

    assert_int_equal(blocks_write(f.edge, 4096, 8192, 0xaa, 0), 0);
    assert_int_equal(mem_stats(f.backing)->reads, 0);
    assert_int_equal(blocks_write(f.edge, 4096 * 10 + 512, 8192, 0xbb, 0), 0);
    assert_int_equal(mem_stats(f.backing)->reads, 2);
    done(&f);
}

TEST_LOOP(zeroes_take_no_room_and_hide_the_backing)
{
    struct overlay_fixture f = open_new(0, 0);
    uint64_t before = overlay_stats(f.node).log_bytes;

    assert_int_equal(blocks_zero(f.edge, 4096, 2 * 1024 * 1024, 0), 0);
    blocks_expect(f.edge, 4096, 2 * 1024 * 1024, 0);
    blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));
    assert_in_range(overlay_stats(f.node).log_bytes - before, 1, 4096);
    assert_int_equal(blocks_zero(f.edge, SIZE_BYTES - 700, 700, 0), 0);
    blocks_expect(f.edge, SIZE_BYTES - 700, 700, 0);
    done(&f);
}

TEST_LOOP(a_discard_shows_what_was_there_or_zeroes)
{
    struct overlay_fixture f = open_new(0, 0);

    assert_int_equal(blocks_write(f.edge, 4096, 4096, 0xaa, 0), 0);
    assert_int_equal(blocks_discard(f.edge, 4096, 4096), 0);
    blocks_expect(f.edge, 4096, 4096, 0);
    assert_int_equal(blocks_discard(f.edge, 8192, 4096), 0);
    blocks_expect(f.edge, 8192, 512, overlay_backing_byte(8192));
    done(&f);
}

TEST_LOOP(extents_tell_the_layer_that_holds_them)
{
    struct overlay_fixture f = open_new(0, 0);
    struct extent extent;
    uint64_t length;
    bool held;

    assert_int_equal(blocks_write(f.edge, 8192, 4096, 1, 0), 0);
    assert_int_equal(blocks_write(f.edge, 12288, 4096, 2, 0), 0);
    assert_int_equal(blocks_zero(f.edge, 16384, 4096, 0), 0);
    assert_int_equal(io_extents(f.edge, 0, SIZE_BYTES, &extent), 0);
    assert_int_equal(extent.length_bytes, 8192);
    assert_int_equal(extent.flags, EXTENT_DATA);
    assert_int_equal(extent.depth, 2);
    assert_int_equal(io_extents(f.edge, 8192 + 512, SIZE_BYTES - 8704, &extent), 0);
    assert_int_equal(extent.length_bytes, 8192 - 512);
    assert_int_equal(extent.flags, EXTENT_DATA | EXTENT_HERE);
    assert_int_equal(extent.depth, 1);
    assert_int_equal(io_extents(f.edge, 16384, 512, &extent), 0);
    assert_int_equal(extent.length_bytes, 512);
    assert_int_equal(extent.flags, EXTENT_ZERO | EXTENT_HERE);
    assert_int_equal(io_held(f.edge, f.backing, 9000, SIZE_BYTES - 9000, &held, &length), 0);
    assert_true(held);
    assert_int_equal(length, 20480 - 9000);
    assert_int_equal(io_held(f.edge, f.backing, 20480, SIZE_BYTES - 20480, &held, &length), 0);
    assert_false(held);
    assert_int_equal(length, SIZE_BYTES - 20480);
    done(&f);
}

TEST_LOOP(writes_of_one_turn_share_a_record)
{
    struct overlay_fixture f = open_new(0, 0);
    struct blocks_task tasks[32];

    for (unsigned i = 0; i < 32; i++)
        blocks_start_write(&tasks[i], f.edge, (uint64_t)(31 - i) * 8192, 4096, (uint8_t)(i + 1));
    for (unsigned i = 0; i < 32; i++) {
        test_wait_until(tasks[i].done);
        assert_int_equal(tasks[i].result, 0);
        blocks_expect(f.edge, (uint64_t)(31 - i) * 8192, 4096, (uint8_t)(i + 1));
    }
    assert_int_equal(overlay_stats(f.node).records, 1);
    done(&f);
}

/* The one that came last is whole, and nobody's bytes are lost where no other wrote. */
static void expect_one_order(const struct blocks_task *tasks, unsigned count, uint64_t base,
                             const uint8_t *seen, uint64_t length)
{
    bool one_is_whole = false;

    for (unsigned i = 0; i < count && !one_is_whole; i++) {
        one_is_whole = true;
        for (uint64_t k = 0; k < tasks[i].length && one_is_whole; k++)
            one_is_whole = seen[tasks[i].offset - base + k] == tasks[i].fill;
    }
    assert_true(one_is_whole);
    for (uint64_t at = 0; at < length; at++) {
        bool covered = false, found = false;

        for (unsigned i = 0; i < count; i++) {
            if (base + at < tasks[i].offset || base + at >= tasks[i].offset + tasks[i].length)
                continue;
            covered = true;
            found = found || seen[at] == tasks[i].fill;
        }
        if (covered && !found)
            fail_msg("byte %" PRIu64 " is none of those written there", base + at);
    }
}

TEST_LOOP(overlapping_unaligned_writes_leave_one_order)
{
    struct overlay_fixture f = open_new(0, 0);
    uint64_t seed = test_seed("overlapping"), state = seed;

    for (unsigned round = 0; round < 60; round++) {
        struct blocks_task tasks[8];
        static uint8_t seen[32768];
        uint64_t base = test_random(&state) % 50 * 32768;

        for (unsigned i = 0; i < 8; i++) {
            uint64_t at = test_random(&state) % 20000, length = 1 + test_random(&state) % 12000;

            blocks_start_write(&tasks[i], f.edge, base + at, length, (uint8_t)(round * 8 + i));
        }
        for (unsigned i = 0; i < 8; i++) {
            test_wait_until(tasks[i].done);
            assert_int_equal(tasks[i].result, 0);
        }
        assert_int_equal(blocks_read_bytes(f.edge, base, seen, sizeof(seen), 0), 0);
        expect_one_order(tasks, 8, base, seen, sizeof(seen));
    }
    done(&f);
}

/* --- emptying --- */

static void empty(struct node *node) MAY_WAIT
{
    struct err err = ERR_INIT;

    if (node_empty_prepare(node, &err) < 0)
        fail_msg("%s", err.text);
    node_empty_commit(node);
}

TEST_LOOP(emptying_shows_the_backing_again_also_after_a_restart)
{
    struct overlay_fixture f = open_new(0, 0);

    assert_int_equal(blocks_write(f.edge, 0, 1024 * 1024, 0xaa, 0), 0);
    empty(f.node);
    blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));
    assert_int_equal(overlay_stats(f.node).held_blocks, 0);
    assert_int_equal(overlay_stats(f.node).generation, 2);
    assert_int_equal(blocks_write(f.edge, 4096, 512, 0xbb, 0), 0);
    overlay_shut(&f);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));
    blocks_expect(f.edge, 4096, 512, 0xbb);
    blocks_expect(f.edge, 8192, 512, overlay_backing_byte(8192));
    done(&f);
}

TEST_LOOP(emptying_taken_back_leaves_all_as_it_was_also_after_a_restart)
{
    struct overlay_fixture f = open_new(0, 0);
    struct err err = ERR_INIT;

    assert_int_equal(blocks_write(f.edge, 0, 1024 * 1024, 0xaa, 0), 0);
    assert_int_equal(node_empty_prepare(f.node, &err), 0);
    node_empty_abort(f.node);
    blocks_expect(f.edge, 0, 1024 * 1024, 0xaa);
    assert_int_equal(blocks_write(f.edge, 2 * 1024 * 1024, 512, 0xbb, 0), 0);
    overlay_shut(&f);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    blocks_expect(f.edge, 0, 1024 * 1024, 0xaa);
    blocks_expect(f.edge, 2 * 1024 * 1024, 512, 0xbb);
    assert_int_equal(overlay_stats(f.node).generation, 1);
    done(&f);
}

TEST_LOOP(emptying_that_fails_changes_nothing)
{
    struct overlay_fixture f = open_new(0, 0);
    struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .count = 1, .error = -EIO};
    struct err err = ERR_INIT;

    assert_int_equal(blocks_write(f.edge, 0, 8192, 0xaa, 0), 0);
    /* The answer is lost: the file may say that the image is empty. */
    for (unsigned after = 0; after < 2; after++) {
        rule.after = after;
        assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
        assert_int_equal(node_empty_prepare(f.node, &err), -EIO);
        blkdebug_remove(f.debug, 0);
        blocks_expect(f.edge, 0, 8192, 0xaa);
        overlay_shut(&f);
        overlay_open_at(&f, test_path("a"), SIZE_BYTES);
        blocks_expect(f.edge, 0, 8192, 0xaa);
    }
    done(&f);
}

/* --- failures --- */

TEST_LOOP(a_write_that_fails_leaves_what_was_there)
{
    struct overlay_fixture f = open_new(0, 0);
    struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .count = 1, .error = -ENOSPC};

    for (unsigned after = 0; after < 2; after++) {
        assert_int_equal(blocks_write(f.edge, 4096, 4096, 0xaa, 0), 0);
        rule.after = after;
        assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
        assert_int_equal(blocks_write(f.edge, 4096, 8192, 0xbb, 0), -ENOSPC);
        blkdebug_remove(f.debug, 0);
        blocks_expect(f.edge, 4096, 4096, 0xaa);
        blocks_expect(f.edge, 8192, 512, overlay_backing_byte(8192));
        assert_int_equal(blocks_write(f.edge, 65536, 512, 0xcc, 0), 0);
        overlay_shut(&f);
        overlay_open_at(&f, test_path("a"), SIZE_BYTES);
        blocks_expect(f.edge, 4096, 4096, 0xaa);
        blocks_expect(f.edge, 8192, 512, overlay_backing_byte(8192));
        blocks_expect(f.edge, 65536, 512, 0xcc);
    }
    done(&f);
}

TEST_LOOP(a_failed_flush_is_told)
{
    struct overlay_fixture f = open_new(0, 0);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_FLUSH, .count = 1, .error = -EIO};

    assert_int_equal(blocks_write(f.edge, 4096, 4096, 0xaa, 0), 0);
    assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
    assert_int_equal(io_flush(f.edge), -EIO);
    assert_int_equal(io_flush(f.edge), 0);
    done(&f);
}

/* --- a model --- */

struct model {
    uint8_t bytes[SIZE_BYTES];
};

static void random_request(struct overlay_fixture *f, struct model *model, uint64_t *state) MAY_WAIT
{
    uint64_t at = test_random(state) % SIZE_BYTES;
    uint64_t length = 1 + test_random(state) % (test_random(state) % 10 == 0 ? 300000 : 9000);
    uint8_t fill = (uint8_t)test_random(state);

    if (test_random(state) % 2 == 0) {
        at = align_down(at, 4096);
        length = align_up(length, 4096);
    }
    length = MIN(length, SIZE_BYTES - at);
    switch (test_random(state) % 8) {
    case 0:
        assert_int_equal(blocks_zero(f->edge, at, length, 0), 0);
        memset(model->bytes + at, 0, length);
        break;
    case 1: {
        assert_int_equal(blocks_discard(f->edge, at, length), 0);
        assert_int_equal(blocks_read_bytes(f->edge, at, model->bytes + at, length, 0), 0);
        break;
    }
    case 2:
        if (test_random(state) % 20 == 0) {
            empty(f->node);
            memcpy(model->bytes, mem_bytes(f->backing), SIZE_BYTES);
        }
        break;
    default:
        assert_int_equal(blocks_write(f->edge, at, length, fill, 0), 0);
        memset(model->bytes + at, fill, length);
    }
}

/* What a daemon leaves that is killed now is opened under another name. */
static void expect_after_kill(const struct model *model) MAY_WAIT
{
    struct overlay_fixture killed;
    size_t length;
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);

    overlay_put_file(test_path("b"), bytes, length);
    free(bytes);
    overlay_open_at(&killed, test_path("b"), SIZE_BYTES);
    overlay_expect_model(killed.edge, model->bytes, SIZE_BYTES);
    overlay_shut(&killed);
}

TEST_LOOP(random_requests_survive_restarts_and_kills)
{
    static const uint32_t block_bytes[] = {4096, 512, 65536, 4096};
    static const uint32_t unit_bytes[] = {512, 512, 4096, 4096};
    struct model *model = malloc(sizeof(*model));
    uint64_t seed = test_seed("random requests"), state = seed;

    assert_non_null(model);
    for (unsigned round = 0; round < 4; round++) {
        struct overlay_fixture f = open_new(block_bytes[round], unit_bytes[round]);

        memcpy(model->bytes, mem_bytes(f.backing), SIZE_BYTES);
        for (unsigned i = 0; i < 160; i++) {
            random_request(&f, model, &state);
            if (i % 40 == 20)
                expect_after_kill(model);
            if (i % 40 == 39) {
                overlay_expect_model(f.edge, model->bytes, SIZE_BYTES);
                overlay_shut(&f);
                overlay_open_at(&f, test_path("a"), SIZE_BYTES);
            }
        }
        overlay_expect_model(f.edge, model->bytes, SIZE_BYTES);
        overlay_shut(&f);
    }
    free(model);
    test_folder_remove();
}

TEST_LOOP(a_disk_of_16_TiB_costs_nothing_while_it_is_empty)
{
    const uint64_t size = UINT64_C(16) << 40;
    struct graph *graph = blocks_graph();
    struct extent extent;

    overlay_make(test_path("a"), size, 4096, 0);
    uint64_t begin_ns = loop_clock_ns(loop_current());
    struct node *node = blocks_add(graph,
                                   "{'node-name':'ovl','driver':'overlay','file':"
                                   "{'driver':'file','filename':'%s'}}",
                                   test_path("a"));
    struct edge *edge = blocks_root(graph, node, "test");
    assert_in_range(loop_clock_ns(loop_current()) - begin_ns, 0, 100 * NS_PER_MS);
    assert_in_range(overlay_stats(node).index_bytes, 0, 1u << 20);
    assert_int_equal(blocks_write(edge, size - 512, 512, 0xaa, 0), 0);
    assert_int_equal(io_extents(edge, 0, size, &extent), 0);
    assert_int_equal(extent.length_bytes, size - 4096);
    assert_int_equal(extent.flags, EXTENT_ZERO);
    struct overlay_stretch stretch;
    assert_true(overlay_next_held(node, 0, &stretch));
    assert_int_equal(stretch.offset_bytes, size - 4096);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

/* --- what the person's command asks --- */

static const char *info_text(struct json_object *info, const char *key)
{
    struct json_object *value = NULL;

    assert_true(json_object_object_get_ex(info, key, &value));
    return json_object_get_string(value);
}

TEST_LOOP(an_image_tells_what_it_is_and_holds)
{
    struct overlay_fixture f = open_new(0, 0);
    struct overlay_stretch stretch;
    struct json_object *info = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(blocks_write(f.edge, 40960, 8192, 1, 0), 0);
    assert_int_equal(blocks_zero(f.edge, 1024 * 1024, 512 * 1024, 0), 0);
    assert_int_equal(blocks_write(f.edge, SIZE_BYTES - 1, 1, 1, 0), 0);
    assert_int_equal(overlay_info(f.node->file, &info, &err), 0);
    assert_string_equal(info_text(info, "virtual-size"), "3147264");
    assert_string_equal(info_text(info, "block-size"), "4096");
    assert_string_equal(info_text(info, "clean"), "false");
    json_object_put(info);

    assert_true(overlay_next_held(f.node, 0, &stretch));
    assert_int_equal(stretch.offset_bytes, 40960);
    assert_int_equal(stretch.length_bytes, 8192);
    assert_false(stretch.zero);
    assert_true(overlay_next_held(f.node, 40960 + 8192, &stretch));
    assert_int_equal(stretch.offset_bytes, 1024 * 1024);
    assert_int_equal(stretch.length_bytes, 512 * 1024);
    assert_true(stretch.zero);
    assert_true(overlay_next_held(f.node, 1536 * 1024, &stretch));
    assert_int_equal(stretch.offset_bytes, 3 * 1024 * 1024);
    assert_int_equal(stretch.length_bytes, 1536);
    assert_false(overlay_next_held(f.node, SIZE_BYTES, &stretch));
    done(&f);
}

TEST_LOOP(a_node_tells_what_its_overlay_holds_and_costs)
{
    struct overlay_fixture f = open_new(0, 0);
    struct json_object *object = json_object_new_object();

    assert_non_null(object);
    assert_int_equal(blocks_write(f.edge, 40960, 8192, 1, 0), 0);
    assert_int_equal(blocks_zero(f.edge, 1024 * 1024, 512 * 1024, 0), 0);
    overlay_set_epoch(f.node, 7);
    assert_int_equal(f.node->driver->describe(f.node, object), 0);
    assert_string_equal(info_text(object, "block-size"), "4096");
    assert_string_equal(info_text(object, "held-bytes"), "8192");
    assert_string_equal(info_text(object, "zero-run-bytes"), "524288");
    assert_string_equal(info_text(object, "spare-bytes"), "0");
    assert_string_equal(info_text(object, "max-bytes"), "0");
    assert_string_equal(info_text(object, "given-back-bytes"), "0");
    assert_string_equal(info_text(object, "cleaned-bytes"), "0");
    assert_string_equal(info_text(object, "generation"), "1");
    assert_string_equal(info_text(object, "epoch"), "7");
    assert_string_equal(info_text(object, "records"), "2");
    (void)info_text(object, "log-bytes");
    (void)info_text(object, "index-bytes");
    (void)info_text(object, "in-memory");
    assert_false(json_object_object_get_ex(object, "damage", NULL));
    json_object_put(object);
    done(&f);
}

/* The part of the list that tells of a superblock, and its state. */
static struct json_object *superblock(struct json_object *list, unsigned which, const char *state)
{
    struct json_object *one = json_object_array_get_idx(list, which);

    assert_string_equal(info_text(one, "state"), state);
    return one;
}

TEST_LOOP(each_superblock_is_told_as_good_unused_or_bad)
{
    static const uint8_t noise[] = "noise";
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'node-name':'file','driver':'mem','size':1048576}");
    struct edge *edge = blocks_root(graph, node, "test");
    const struct overlay_create create = {
        .virtual_bytes = SIZE_BYTES, .block_bytes = 8192, .disk_id = {0xab, 0xcd}};
    struct json_object *list = NULL, *info = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(overlay_create_in(edge, &create, &err), 0);
    assert_true(mem_stats(node)->flushes > 0);
    assert_int_equal(overlay_info(edge, &info, &err), 0);
    assert_string_equal(info_text(info, "block-size"), "8192");
    assert_string_equal(info_text(info, "disk-id"), "abcd0000000000000000000000000000");
    assert_string_equal(info_text(info, "generation"), "1");
    json_object_put(info);
    assert_int_equal(overlay_superblocks(edge, &list, &err), 0);
    assert_int_equal(json_object_array_length(list), 2);
    assert_string_equal(info_text(superblock(list, 0, "good"), "clean"), "true");
    superblock(list, 1, "unused");
    json_object_put(list);
    memcpy(mem_bytes(node) + OVERLAY_SUPERBLOCK_STRIDE, noise, sizeof(noise));
    assert_int_equal(overlay_superblocks(edge, &list, &err), 0);
    assert_string_equal(info_text(superblock(list, 0, "good"), "generation"), "1");
    assert_true(info_text(superblock(list, 1, "bad"), "reason")[0] != '\0');
    json_object_put(list);
    /* What a file does not reach to is unused, whatever was read of another one before. */
    memcpy(mem_bytes(node) + OVERLAY_SUPERBLOCK_STRIDE, mem_bytes(node), OVERLAY_SUPERBLOCK_BYTES);
    assert_int_equal(overlay_superblocks(edge, &list, &err), 0);
    superblock(list, 1, "good");
    json_object_put(list);
    struct node *small = blocks_add(graph, "{'node-name':'small','driver':'mem','size':%u}",
                                    OVERLAY_SUPERBLOCK_STRIDE);
    memcpy(mem_bytes(small), mem_bytes(node), OVERLAY_SUPERBLOCK_BYTES);
    struct edge *small_edge = blocks_root(graph, small, "test");
    assert_int_equal(overlay_superblocks(small_edge, &list, &err), 0);
    superblock(list, 0, "good");
    superblock(list, 1, "unused");
    json_object_put(list);
    graph_detach(small_edge);
    graph_detach(edge);
    graph_free(graph);
}

/* What the memory held before would else come to stand in a file that others read. */
TEST_LOOP(what_lies_behind_the_end_of_the_disk_is_zero_in_the_file)
{
    struct overlay_fixture f = open_new(0, 0);
    struct overlay_stretch stretch;
    struct buf *secret = buf_alloc(loop_bufs(loop_current()), 2 * 4096);
    size_t length;

    assert_non_null(secret);
    memset(secret->bytes, 0x5e, 2 * 4096);
    buf_unref(secret);
    assert_int_equal(blocks_write(f.edge, SIZE_BYTES - 100, 100, 1, 0), 0);
    assert_true(overlay_next_held(f.node, SIZE_BYTES - SIZE_BYTES % 4096, &stretch));
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    uint64_t begin = stretch.file_offset_bytes;
    assert_true(begin + 4096 <= length);
    assert_int_equal(bytes[begin + SIZE_BYTES % 4096 - 1], 1);
    for (unsigned i = SIZE_BYTES % 4096; i < 4096; i++)
        assert_int_equal(bytes[begin + i], 0);
    free(bytes);
    done(&f);
}

TEST_LOOP(an_existing_file_is_not_overwritten_by_a_new_image)
{
    const struct overlay_create create = {.virtual_bytes = SIZE_BYTES};
    const struct overlay_create odd = {.virtual_bytes = SIZE_BYTES, .block_bytes = 5000};
    const struct overlay_create huge = {.virtual_bytes = UINT64_C(17) << 40};
    struct err err = ERR_INIT;

    overlay_make(test_path("a"), SIZE_BYTES, 0, 0);
    assert_int_equal(overlay_create(loop_current(), test_path("a"), &create, false, &err), -EEXIST);
    assert_int_equal(overlay_create(loop_current(), test_path("b"), &odd, false, &err), -EINVAL);
    assert_int_equal(overlay_create(loop_current(), test_path("b"), &huge, false, &err), -EFBIG);
    assert_false(path_exists(loop_current(), test_path("b")));
    test_folder_remove();
}

/* Nor half a new one left behind. */
TEST_LOOP(an_image_that_cannot_be_made_durable_is_an_error)
{
    static const enum sim_op ops[] = {SIM_OP_OPEN, SIM_OP_WRITE, SIM_OP_SYNC, SIM_OP_RENAME,
                                      SIM_OP_SYNC_FOLDER};
    const struct overlay_create create = {.virtual_bytes = SIZE_BYTES};

    if (!test_loop_is_sim())
        return;
    struct sim *sim = sim_of(loop_current());
    for (unsigned i = 0; i < 2 * ARRAY_LEN(ops); i++) {
        const struct sim_fault fault = {.op = ops[i / 2], .error = -EIO};
        struct err err = ERR_INIT;
        bool replace = i % 2 == 1;

        assert_int_equal(sim_fault_add(sim, "host", &fault), 0);
        int ret = overlay_create(loop_current(), test_path("a"), &create, replace, &err);
        sim_fault_clear(sim, "host");
        bool asked = replace || fault.op != SIM_OP_RENAME;
        assert_int_equal(ret, asked ? -EIO : 0);
        if (asked && fault.op != SIM_OP_SYNC_FOLDER)
            assert_int_equal(sim_disk_used_bytes(sim, "host"), 0);
        (void)path_unlink(loop_current(), test_path("a"));
    }
    test_folder_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_overlay_shows_its_backing),
        cmocka_unit_test(a_write_changes_only_its_bytes),
        cmocka_unit_test(whole_blocks_are_written_without_reading_the_backing),
        cmocka_unit_test(zeroes_take_no_room_and_hide_the_backing),
        cmocka_unit_test(a_discard_shows_what_was_there_or_zeroes),
        cmocka_unit_test(extents_tell_the_layer_that_holds_them),
        cmocka_unit_test(writes_of_one_turn_share_a_record),
        cmocka_unit_test(overlapping_unaligned_writes_leave_one_order),
        cmocka_unit_test(emptying_shows_the_backing_again_also_after_a_restart),
        cmocka_unit_test(emptying_taken_back_leaves_all_as_it_was_also_after_a_restart),
        cmocka_unit_test(emptying_that_fails_changes_nothing),
        cmocka_unit_test(a_write_that_fails_leaves_what_was_there),
        cmocka_unit_test(a_failed_flush_is_told),
        cmocka_unit_test(random_requests_survive_restarts_and_kills),
        cmocka_unit_test(a_disk_of_16_TiB_costs_nothing_while_it_is_empty),
        cmocka_unit_test(an_image_tells_what_it_is_and_holds),
        cmocka_unit_test(a_node_tells_what_its_overlay_holds_and_costs),
        cmocka_unit_test(each_superblock_is_told_as_good_unused_or_bad),
        cmocka_unit_test(what_lies_behind_the_end_of_the_disk_is_zero_in_the_file),
        cmocka_unit_test(an_existing_file_is_not_overwritten_by_a_new_image),
        cmocka_unit_test(an_image_that_cannot_be_made_durable_is_an_error),
    };

    return cmocka_run_group_tests_name("overlay", tests, NULL, NULL);
}
