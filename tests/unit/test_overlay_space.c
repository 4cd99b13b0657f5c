/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much room an overlay takes in its file: with much rewriting, many emptyings, a limit. */
#include "overlay_fixture.h"

#include "drivers/overlay_map.h"

#define SIZE_BYTES    (2u * 1024 * 1024)
#define SEGMENT_BYTES (1u * 1024 * 1024)
/* Three times what it holds and ten segments, and room for records. */
#define BOUND_BYTES   (4 * SIZE_BYTES + 10 * SEGMENT_BYTES)

struct model {
    uint8_t bytes[SIZE_BYTES];
};

static void make(uint32_t block_bytes, uint32_t unit_bytes) MAY_WAIT
{
    const struct overlay_create create = {.virtual_bytes = SIZE_BYTES,
                                          .block_bytes = block_bytes,
                                          .unit_bytes = unit_bytes,
                                          .segment_bytes = SEGMENT_BYTES};
    struct err err = ERR_INIT;

    if (overlay_create(loop_current(), test_path("a"), &create, true, &err) < 0)
        fail_msg("%s", err.text);
}

static struct overlay_fixture open_new(uint32_t block_bytes, uint32_t unit_bytes) MAY_WAIT
{
    struct overlay_fixture f;

    make(block_bytes, unit_bytes);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    return f;
}

static void done(struct overlay_fixture *f) MAY_WAIT
{
    overlay_shut(f);
    test_folder_remove();
}

static void empty(struct node *node) MAY_WAIT
{
    struct err err = ERR_INIT;

    if (node_empty_prepare(node, &err) < 0)
        fail_msg("%s", err.text);
    node_empty_commit(node);
}

/* Of the file as it is on its medium. */
static uint64_t file_data_bytes(void) MAY_WAIT
{
    struct file *file;
    struct err err = ERR_INIT;
    uint64_t sum = 0;

    assert_int_equal(file_open(loop_current(), test_path("a"), 0, FILE_AIO_AUTO, &file, &err), 0);
    for (uint64_t at = 0, end = file_info(file)->length_bytes; at < end;) {
        uint64_t length;
        bool data;

        assert_int_equal(file_extent(file, at, end - at, &data, &length), 0);
        sum += data ? length : 0;
        at += length;
    }
    file_close(file);
    return sum;
}

/* --- rewriting without an emptying --- */

static void rewrite(struct overlay_fixture *f, struct model *model, uint64_t *state) MAY_WAIT
{
    uint64_t at = test_random(state) % SIZE_BYTES;
    uint64_t length = 1 + test_random(state) % (test_random(state) % 8 == 0 ? 120000 : 9000);
    uint8_t fill = (uint8_t)test_random(state);

    length = MIN(length, SIZE_BYTES - at);
    if (test_random(state) % 6 == 0) {
        assert_int_equal(blocks_zero(f->edge, at, length, 0), 0);
        fill = 0;
    } else {
        assert_int_equal(blocks_write(f->edge, at, length, fill, 0), 0);
    }
    memset(model->bytes + at, fill, length);
}

#define SUPERBLOCKS_BYTES 8192u

/* What a daemon leaves that is killed now. */
static void expect_after_kill(const struct model *model) MAY_WAIT
{
    struct overlay_fixture killed;
    size_t length;
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    size_t again_length;
    uint8_t *again = overlay_snapshot(test_path("a"), &again_length);

    /* The log is made shorter meanwhile, and a copy takes time: what the superblocks of one moment
     * name may be gone a moment later, but not before a superblock has said so; and what they name
     * may lie behind the end that the file had when the copy began. */
    while (length != again_length || memcmp(bytes, again, SUPERBLOCKS_BYTES) != 0) {
        free(bytes);
        bytes = again;
        length = again_length;
        again = overlay_snapshot(test_path("a"), &again_length);
    }
    free(again);
    overlay_put_file(test_path("b"), bytes, length);
    free(bytes);
    overlay_open_at(&killed, test_path("b"), SIZE_BYTES);
    overlay_expect_model(killed.edge, model->bytes, SIZE_BYTES);
    overlay_shut(&killed);
}

TEST_LOOP(a_disk_that_is_rewritten_for_long_stays_within_its_bound_and_right)
{
    static const uint32_t block_bytes[] = {4096, 512, 65536, 4096};
    static const uint32_t unit_bytes[] = {512, 512, 4096, 4096};
    struct model *model = malloc(sizeof(*model));
    uint64_t seed = test_seed("rewriting"), state = seed;

    assert_non_null(model);
    for (unsigned round = 0; round < 4; round++) {
        struct overlay_fixture f = open_new(block_bytes[round], unit_bytes[round]);
        uint64_t peak = 0, cleaned_bytes = 0;

        memcpy(model->bytes, mem_bytes(f.backing), SIZE_BYTES);
        for (unsigned i = 0; i < 3000; i++) {
            rewrite(&f, model, &state);
            peak = MAX(peak, overlay_stats(f.node).log_bytes);
            if (i % 400 == 100)
                expect_after_kill(model);
            if (i % 1000 == 999) {
                overlay_expect_model(f.edge, model->bytes, SIZE_BYTES);
                cleaned_bytes += overlay_stats(f.node).cleaned_bytes;
                overlay_shut(&f);
                overlay_open_at(&f, test_path("a"), SIZE_BYTES);
            }
        }
        overlay_expect_model(f.edge, model->bytes, SIZE_BYTES);
        assert_true(cleaned_bytes > 0);
        assert_in_range(peak, 0, BOUND_BYTES);
        assert_in_range(file_data_bytes(), 0, BOUND_BYTES);
        overlay_shut(&f);
    }
    free(model);
    test_folder_remove();
}

TEST_LOOP(one_block_rewritten_or_zeroed_without_end_takes_little)
{
    struct overlay_fixture f = open_new(4096, 512);

    for (unsigned i = 0; i < 16000; i++) {
        if (i % 2 == 0)
            assert_int_equal(blocks_zero(f.edge, 8192, 4096, 0), 0);
        else
            assert_int_equal(blocks_write(f.edge, i % 8 == 1 ? 4096 : 0, 4096, (uint8_t)i, 0), 0);
    }
    blocks_expect(f.edge, 4096, 4096, (uint8_t)15993);
    blocks_expect(f.edge, 0, 4096, (uint8_t)15999);
    blocks_expect(f.edge, 8192, 4096, 0);
    test_wait_until(overlay_stats(f.node).log_bytes < 6 * SEGMENT_BYTES);
    done(&f);
}

/* Fills some segments, most of which is superseded: enough that the log is made shorter. */
static void fill_superseded(struct overlay_fixture *f) MAY_WAIT
{
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(blocks_write(f->edge, i % 4 * UINT64_C(131072), 131072, (uint8_t)i, 0), 0);
}

TEST_LOOP(an_overlay_that_its_record_has_emptied_at_a_start_makes_its_log_shorter_too)
{
    struct overlay_fixture f = open_new(4096, 512);
    struct err err = ERR_INIT;

    fill_superseded(&f);
    overlay_shut(&f);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    assert_int_equal(overlay_settle(f.node, 2, &err), 0);
    fill_superseded(&f);
    test_wait_until(overlay_stats(f.node).log_bytes < 6 * SEGMENT_BYTES);
    done(&f);
}

TEST_LOOP(making_the_log_shorter_waits_for_a_medium_that_fails)
{
    struct overlay_fixture f = open_new(4096, 512);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_FLUSH, .error = -EIO};

    assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
    fill_superseded(&f);
    co_sleep(20 * NS_PER_MS);
    assert_int_equal(overlay_stats(f.node).cleaned_bytes, 0);
    blkdebug_remove(f.debug, 0);
    test_wait_until(overlay_stats(f.node).log_bytes < 6 * SEGMENT_BYTES);
    for (unsigned i = 60; i < 64; i++)
        blocks_expect(f.edge, i % 4 * UINT64_C(131072), 131072, (uint8_t)i);
    done(&f);
}

/* The rewrite is under way when the block is found to be live, and lands before it is appended again. */
static void rewrite_under_cleaning(bool zeroed) MAY_WAIT
{
    struct overlay_fixture f = open_new(4096, 512);
    const struct blkdebug_rule read = {.kinds = BLKDEBUG_READ, .hold = true, .count = 1};
    const struct blkdebug_rule write = {.kinds = BLKDEBUG_WRITE, .hold = true, .count = 1};
    struct blocks_task task;
    unsigned reading, writing;

    if (zeroed)
        assert_int_equal(blocks_zero(f.edge, 0, 4096, 0), 0);
    else
        assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0);
    assert_int_equal(blkdebug_inject(f.debug, &read, &reading), 0);
    for (unsigned i = 0; i < 48; i++)
        assert_int_equal(blocks_write(f.edge, 4096 + i % 4 * UINT64_C(131072), 131072, 2, 0), 0);
    assert_int_equal(blkdebug_await_held(f.debug, reading, 1, test_deadline_ns(10)), 0);
    assert_int_equal(blkdebug_inject(f.debug, &write, &writing), 0);
    blocks_start_write(&task, f.edge, 0, 4096, 3);
    assert_int_equal(blkdebug_await_held(f.debug, writing, 1, test_deadline_ns(10)), 0);
    blkdebug_release(f.debug, reading);
    test_wait_until(blkdebug_matches(f.debug, reading) >=
                    2); /* it goes on; now to where it waits */
    co_sleep(20 * NS_PER_MS);
    blkdebug_release(f.debug, writing);
    test_wait_until(task.done);
    assert_int_equal(task.result, 0);
    test_wait_until(overlay_stats(f.node).cleaned_bytes > 0);
    blocks_expect(f.edge, 0, 4096, 3);
    blocks_expect(f.edge, 4096, 4 * UINT64_C(131072), 2);
    done(&f);
}

TEST_LOOP(a_block_that_its_user_rewrites_while_the_log_is_made_shorter_stays_rewritten)
{
    rewrite_under_cleaning(false);
    rewrite_under_cleaning(true);
}

TEST_LOOP(damage_in_the_file_is_never_given_a_good_crc)
{
    struct overlay_fixture f = open_new(4096, 512);
    size_t length;
    struct err err = ERR_INIT;

    /* The only block of the first record stays live: it would have to be appended again. */
    assert_int_equal(blocks_write(f.edge, SIZE_BYTES - 4096, 4096, 1, 0), 0);
    uint64_t at = overlay_stats(f.node).log_bytes - 100;
    struct file *file;
    assert_int_equal(
        file_open(loop_current(), test_path("a"), FILE_WRITABLE, FILE_AIO_AUTO, &file, &err), 0);
    assert_int_equal(file_write(file, "x", 1, at), 0);
    file_close(file);
    fill_superseded(&f);
    co_sleep(20 * NS_PER_MS);
    assert_int_equal(overlay_stats(f.node).cleaned_bytes, 0);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    overlay_put_file(test_path("b"), bytes, length);
    free(bytes);
    assert_int_equal(overlay_refusal(test_path("b"), SIZE_BYTES, &err), -EUCLEAN);
    done(&f);
}

/* --- a long log that is cut or torn --- */

#define WRITES 600u

/* Whole blocks, each with the number of the write that it is from. */
struct history {
    uint32_t first[WRITES + 1], count[WRITES + 1]; /* blocks of each write, from 1 */
};

static void write_numbered(struct overlay_fixture *f, struct history *history, uint32_t number,
                           uint64_t *state) MAY_WAIT
{
    static uint8_t bytes[32 * 4096];
    uint32_t count = 1 + (uint32_t)(test_random(state) % 32);
    uint32_t first = (uint32_t)(test_random(state) % (SIZE_BYTES / 4096 - count));

    for (uint32_t at = 0; at < count * 4096; at += 4)
        memcpy(bytes + at, &number, 4);
    assert_int_equal(
        blocks_write_bytes(f->edge, first * UINT64_C(4096), bytes, count * UINT64_C(4096), 0, 0),
        0);
    history->first[number] = first;
    history->count[number] = count;
}

/* Which write the block is from after the first `writes` of them; 0: none. */
static uint32_t expected_number(const struct history *history, uint32_t block, uint32_t writes)
{
    for (uint32_t n = writes; n > 0; n--) {
        if (block >= history->first[n] && block < history->first[n] + history->count[n])
            return n;
    }
    return 0;
}

/* What the image shows is what it showed after one of the writes; returns which. */
static uint32_t expect_one_moment(struct edge *edge, const struct history *history) MAY_WAIT
{
    static uint32_t seen[SIZE_BYTES / 4096][1024];
    uint32_t last = 0;

    assert_int_equal(blocks_read_bytes(edge, 0, seen, SIZE_BYTES, 0), 0);
    for (uint32_t block = 0; block < SIZE_BYTES / 4096; block++) {
        bool held = seen[block][0] <= WRITES && seen[block][0] == seen[block][1023];

        last = held && seen[block][0] > last ? seen[block][0] : last;
    }
    for (uint32_t block = 0; block < SIZE_BYTES / 4096; block++) {
        uint32_t number = expected_number(history, block, last);

        if (number != 0)
            assert_int_equal(seen[block][0], number);
        else
            assert_int_equal((uint8_t)seen[block][0], overlay_backing_byte(block * UINT64_C(4096)));
    }
    return last;
}

/* Refused as damaged, or as of one moment; never a mixture. */
static bool open_changed(const uint8_t *bytes, size_t length, const struct history *history)
    MAY_WAIT
{
    struct overlay_fixture f;
    struct err err = ERR_INIT;

    overlay_put_file(test_path("b"), bytes, length);
    int ret = overlay_refusal(test_path("b"), SIZE_BYTES, &err);
    if (ret < 0) {
        assert_true(ret == -EUCLEAN || ret == -EMEDIUMTYPE);
        return false;
    }
    overlay_open_at(&f, test_path("b"), SIZE_BYTES);
    (void)expect_one_moment(f.edge, history);
    overlay_shut(&f);
    return true;
}

TEST_LOOP(a_long_log_that_is_cut_or_torn_shows_one_moment_or_is_refused)
{
    struct overlay_fixture f = open_new(4096, 512);
    struct history *history = calloc(1, sizeof(*history));
    uint64_t seed = test_seed("cut or torn"), state = seed;
    unsigned refused = 0;
    size_t length;

    assert_non_null(history);
    for (uint32_t number = 1; number <= WRITES; number++)
        write_numbered(&f, history, number, &state);
    test_wait_until(overlay_stats(f.node).cleaned_bytes > 0);
    assert_int_equal(expect_one_moment(f.edge, history), WRITES);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    overlay_shut(&f);
    assert_true(open_changed(bytes, length, history));
    for (unsigned i = 0; i < 40; i++)
        refused += !open_changed(bytes, test_random(&state) % length / 512 * 512, history);
    for (unsigned i = 0; i < 60; i++) {
        size_t at = test_random(&state) % (length - 512);
        uint8_t sector[512];

        memcpy(sector, bytes + at, sizeof(sector));
        memset(bytes + at, (int)(test_random(&state) % 2), sizeof(sector));
        refused += !open_changed(bytes, length, history);
        memcpy(bytes + at, sector, sizeof(sector));
    }
    assert_in_range(refused, 20, 100);
    free(bytes);
    free(history);
    test_folder_remove();
}

/* --- emptying --- */

TEST_LOOP(what_an_emptying_leaves_goes_back_to_the_file_system)
{
    struct overlay_fixture f = open_new(4096, 512);

    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(blocks_write(f.edge, i % 16 * UINT64_C(131072), 131072, (uint8_t)i, 0), 0);
    empty(f.node);
    assert_true(overlay_stats(f.node).spare_bytes >= 2 * SEGMENT_BYTES);
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 7, 0), 0);
    test_wait_until(overlay_stats(f.node).spare_bytes == 0);
    assert_in_range(file_data_bytes(), 1, SEGMENT_BYTES + 2 * OVERLAY_LOG_OFFSET_BYTES);
    blocks_expect(f.edge, 4096, 4096, 7);
    done(&f);
}

TEST_LOOP(what_an_emptying_leaves_goes_back_also_when_nothing_is_written_after_it)
{
    struct overlay_fixture f = open_new(4096, 512);

    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(blocks_write(f.edge, i % 16 * UINT64_C(131072), 131072, (uint8_t)i, 0), 0);
    overlay_set_recorded(f.node, true); /* its superblock is written soon */
    empty(f.node);
    if (test_loop_is_sim()) { /* for the next generation, which may need as much as this one soon */
        co_sleep(NS_PER_S);
        assert_true(overlay_stats(f.node).spare_bytes > 0);
    }
    test_wait_until(overlay_stats(f.node).spare_bytes == 0);
    assert_in_range(file_data_bytes(), 1, SEGMENT_BYTES + 2 * OVERLAY_LOG_OFFSET_BYTES);
    done(&f);
}

TEST_LOOP(what_a_killed_daemon_left_goes_back_too)
{
    struct overlay_fixture f = open_new(4096, 512);
    size_t length;

    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(blocks_write(f.edge, i % 16 * UINT64_C(131072), 131072, (uint8_t)i, 0), 0);
    empty(f.node);
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 7, 0), 0);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    overlay_shut(&f);
    /* To the end of a segment, where one more would begin. */
    size_t segments = (length - OVERLAY_LOG_OFFSET_BYTES + SEGMENT_BYTES - 1) / SEGMENT_BYTES;
    size_t whole = OVERLAY_LOG_OFFSET_BYTES + segments * SEGMENT_BYTES;
    bytes = realloc(bytes, whole);
    assert_non_null(bytes);
    memset(bytes + length, 0, whole - length);
    overlay_put_file(test_path("a"), bytes, whole);
    free(bytes);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    assert_int_equal(overlay_stats(f.node).spare_bytes, (segments - 1) * SEGMENT_BYTES);
    test_wait_until(overlay_stats(f.node).spare_bytes == 0);
    assert_in_range(file_data_bytes(), 1, SEGMENT_BYTES + 2 * OVERLAY_LOG_OFFSET_BYTES);
    blocks_expect(f.edge, 4096, 4096, 7);
    done(&f);
}

#define SLABS(count) ((count) * (uint64_t)OVERLAY_MAP_SLAB_BYTES)

TEST_LOOP(an_emptied_index_gives_all_but_some_of_its_memory_back)
{
    const struct overlay_create create = {.virtual_bytes = UINT64_C(1) << 31, .block_bytes = 512};
    struct overlay_fixture f = {.graph = blocks_graph()};
    struct err err = ERR_INIT;

    assert_int_equal(overlay_create(loop_current(), test_path("a"), &create, true, &err), 0);
    f.node = blocks_add(f.graph,
                        "{'node-name':'ovl','driver':'overlay',"
                        "'file':{'driver':'file','filename':'%s'}}",
                        test_path("a"));
    f.edge = blocks_root(f.graph, f.node, "test");
    uint64_t least = overlay_stats(f.node).index_bytes;
    for (uint64_t block = 0; overlay_stats(f.node).index_bytes < least + SLABS(48); block += 64) {
        assert_true(block < create.virtual_bytes / 512);
        assert_int_equal(blocks_zero(f.edge, block * 512, UINT64_C(63) * 512, 0), 0);
    }
    empty(f.node);
    test_wait_until(overlay_stats(f.node).index_bytes < least + SLABS(OVERLAY_MAP_SPARE_SLABS + 1));
    done(&f);
}

TEST_LOOP(emptied_again_and_again_under_load_it_takes_what_one_generation_took)
{
    struct overlay_fixture f = open_new(4096, 512);
    uint64_t peak = 0;

    for (unsigned round = 0; round < 30; round++) {
        struct blocks_task tasks[8];

        for (unsigned i = 0; i < 8; i++) {
            for (unsigned k = 0; k < ARRAY_LEN(tasks); k++)
                blocks_start_write(&tasks[k], f.edge, (i * 8 + k) % 16 * UINT64_C(131072), 65536,
                                   (uint8_t)(round + k));
            for (unsigned k = 0; k < ARRAY_LEN(tasks); k++) {
                test_wait_until(tasks[k].done);
                assert_int_equal(tasks[k].result, 0);
            }
            peak = MAX(peak, overlay_stats(f.node).log_bytes);
        }
        empty(f.node);
        assert_in_range(file_data_bytes(), 0, peak + SEGMENT_BYTES);
        blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));
    }
    done(&f);
}

TEST_LOOP(emptying_while_the_log_is_made_shorter_forgets_all)
{
    struct overlay_fixture f = open_new(4096, 512);
    uint64_t seed = test_seed("emptying meanwhile"), state = seed;

    for (unsigned round = 0; round < 40; round++) {
        fill_superseded(&f);
        for (uint64_t turns = test_random(&state) % 60; turns > 0; turns--)
            co_yield();
        empty(f.node);
        assert_int_equal(blocks_write(f.edge, 4096, 4096, (uint8_t)round, 0), 0);
        blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));
        blocks_expect(f.edge, 4096, 4096, (uint8_t)round);
        if (round % 8 != 7)
            continue;
        overlay_shut(&f);
        overlay_open_at(&f, test_path("a"), SIZE_BYTES);
        blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));
        blocks_expect(f.edge, 4096, 4096, (uint8_t)round);
    }
    done(&f);
}

/* --- full --- */

static uint64_t data_uint(struct json_object *data, const char *key)
{
    struct json_object *value = NULL;

    assert_true(json_object_object_get_ex(data, key, &value));
    return json_object_get_uint64(value);
}

struct heard {
    unsigned nearly_full;
};

static void hear(void *arg, const char *name, struct json_object *data)
{
    struct heard *heard = arg;

    if (strcmp(name, "OVERLAY_NEARLY_FULL") == 0) {
        assert_true(data_uint(data, "log-bytes") * 100 >= data_uint(data, "max-bytes") * 89);
        heard->nearly_full++;
    }
    json_object_put(data);
}

static struct overlay_fixture open_limited(struct heard *heard, uint64_t max_bytes) MAY_WAIT
{
    struct overlay_fixture f = {.graph = blocks_graph()};

    make(4096, 512);
    graph_set_events(f.graph, hear, heard);
    f.node = blocks_add(f.graph,
                        "{'node-name':'ovl','driver':'overlay','max-bytes':%" PRIu64
                        ",'file':{'driver':'file','filename':'%s'}}",
                        max_bytes, test_path("a"));
    f.edge = blocks_root(f.graph, f.node, "test");
    return f;
}

TEST_LOOP(a_full_overlay_says_so_early_keeps_what_it_has_and_works_once_emptied)
{
    struct heard heard = {0};
    struct overlay_fixture f = open_limited(&heard, SEGMENT_BYTES / 2);

    for (unsigned round = 1; round <= 3; round++) {
        unsigned blocks = 0;

        while (blocks_write(f.edge, blocks * UINT64_C(4096), 4096, (uint8_t)(blocks + 1), 0) == 0) {
            blocks++;
            assert_in_range(blocks, 1, 128);
            assert_int_equal(
                heard.nearly_full,
                overlay_stats(f.node).log_bytes >= SEGMENT_BYTES / 200 * 90 ? round : round - 1);
        }
        assert_int_equal(heard.nearly_full, round);
        assert_int_equal(blocks_write(f.edge, 0, 4096, 77, 0), -ENOSPC);
        for (unsigned i = 0; i < blocks; i++)
            blocks_expect(f.edge, i * UINT64_C(4096), 4096, (uint8_t)(i + 1));
        assert_in_range(overlay_stats(f.node).log_bytes, 0, SEGMENT_BYTES / 2);
        assert_in_range(file_data_bytes(), 0, SEGMENT_BYTES / 2);
        empty(f.node);
        blocks_expect(f.edge, 0, 4096, 0);
    }
    done(&f);
}

TEST_LOOP(a_limit_of_several_segments_counts_them)
{
    struct heard heard = {0};
    struct overlay_fixture f = open_limited(&heard, 3 * SEGMENT_BYTES + SEGMENT_BYTES / 2);
    unsigned writes = 0;
    int ret = 0;

    while (ret == 0) {
        /* Never the same twice, so that there is nothing to make shorter. */
        ret = blocks_write(f.edge, writes * UINT64_C(8192) % SIZE_BYTES, 4096, 1, 0);
        writes++;
        if (writes > 3000)
            fail_msg("no end");
    }
    assert_int_equal(ret, -ENOSPC);
    assert_int_equal(heard.nearly_full, 1);
    assert_in_range(file_data_bytes(), 2 * SEGMENT_BYTES, 4 * SEGMENT_BYTES);
    done(&f);
}

TEST_LOOP(a_file_system_that_is_full_at_any_write_loses_nothing)
{
    struct overlay_fixture f = open_new(4096, 512);
    struct model *model = malloc(sizeof(*model));
    struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .count = 1, .error = -ENOSPC};

    assert_non_null(model);
    memcpy(model->bytes, mem_bytes(f.backing), SIZE_BYTES);
    /* Not long enough for being made shorter, which would write too. */
    for (unsigned i = 0; i < 40; i++) {
        uint64_t at = i * UINT64_C(69632) % (SIZE_BYTES - 131072);

        rule.after = i % 2;
        assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
        assert_int_equal(blocks_write(f.edge, at, 40000, 99, 0), -ENOSPC);
        blkdebug_remove(f.debug, 0);
        assert_int_equal(blocks_write(f.edge, at + 8192, 100000, (uint8_t)i, 0), 0);
        memset(model->bytes + at + 8192, (uint8_t)i, 100000);
        if (i % 10 == 9)
            expect_after_kill(model);
    }
    overlay_expect_model(f.edge, model->bytes, SIZE_BYTES);
    free(model);
    done(&f);
}

/* Also where its group would have been the last of a segment. */
TEST_LOOP(a_write_that_fails_takes_no_room)
{
    struct overlay_fixture f = open_new(4096, 512);
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .error = -EIO};

    for (unsigned i = 0; i < 24; i++) {
        uint64_t log_bytes = overlay_stats(f.node).log_bytes;
        uint64_t at = i % 16 * UINT64_C(131072);

        assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
        assert_int_equal(blocks_write(f.edge, at, 131072, 99, 0), -EIO);
        blkdebug_remove(f.debug, 0);
        assert_int_equal(overlay_stats(f.node).log_bytes, log_bytes);
        assert_int_equal(overlay_stats(f.node).failed_groups, i + 1);
        assert_int_equal(blocks_write(f.edge, at, 131072, (uint8_t)i, 0), 0);
        blocks_expect(f.edge, at, 131072, (uint8_t)i);
    }
    done(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_disk_that_is_rewritten_for_long_stays_within_its_bound_and_right),
        cmocka_unit_test(one_block_rewritten_or_zeroed_without_end_takes_little),
        cmocka_unit_test(
            an_overlay_that_its_record_has_emptied_at_a_start_makes_its_log_shorter_too),
        cmocka_unit_test(making_the_log_shorter_waits_for_a_medium_that_fails),
        cmocka_unit_test(
            a_block_that_its_user_rewrites_while_the_log_is_made_shorter_stays_rewritten),
        cmocka_unit_test(damage_in_the_file_is_never_given_a_good_crc),
        cmocka_unit_test(a_long_log_that_is_cut_or_torn_shows_one_moment_or_is_refused),
        cmocka_unit_test(what_an_emptying_leaves_goes_back_to_the_file_system),
        cmocka_unit_test(what_an_emptying_leaves_goes_back_also_when_nothing_is_written_after_it),
        cmocka_unit_test(what_a_killed_daemon_left_goes_back_too),
        cmocka_unit_test(an_emptied_index_gives_all_but_some_of_its_memory_back),
        cmocka_unit_test(emptied_again_and_again_under_load_it_takes_what_one_generation_took),
        cmocka_unit_test(emptying_while_the_log_is_made_shorter_forgets_all),
        cmocka_unit_test(a_full_overlay_says_so_early_keeps_what_it_has_and_works_once_emptied),
        cmocka_unit_test(a_limit_of_several_segments_counts_them),
        cmocka_unit_test(a_file_system_that_is_full_at_any_write_loses_nothing),
        cmocka_unit_test(a_write_that_fails_takes_no_room),
    };

    return cmocka_run_group_tests_name("overlay space", tests, NULL, NULL);
}
