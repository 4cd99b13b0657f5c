/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that were cut, damaged or are not ours: refused with a reason, or read up to where they are
 * good, as docs/overlay-format.md says. */
#include "overlay_fixture.h"

#include "wire/crc32c.h"

#define SIZE_BYTES (256u * 1024)
#define WRITES     12u

/* An image of WRITES records, with what is held after each of them. */
struct small {
    uint8_t *live, *clean; /* the file while it was open, and after it was closed */
    size_t live_bytes, clean_bytes;
    uint64_t end_bytes[WRITES + 1]; /* of the log, after each */
    uint8_t model[WRITES + 1][SIZE_BYTES];
};

static struct small *make_small(void) MAY_WAIT
{
    struct small *small = calloc(1, sizeof(*small));
    struct overlay_fixture f;

    assert_non_null(small);
    overlay_make(test_path("a"), SIZE_BYTES, 0, 0);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    memcpy(small->model[0], mem_bytes(f.backing), SIZE_BYTES);
    small->end_bytes[0] = overlay_stats(f.node).log_bytes;
    for (unsigned i = 0; i < WRITES; i++) {
        uint64_t at = i * 5000 % 60000, length = i % 3 == 2 ? 100000 : 3000 + i * 512;

        memcpy(small->model[i + 1], small->model[i], SIZE_BYTES);
        if (i % 5 == 4)
            assert_int_equal(blocks_zero(f.edge, at, length, 0), 0);
        else
            assert_int_equal(blocks_write(f.edge, at, length, (uint8_t)(i + 1), 0), 0);
        memset(small->model[i + 1] + at, i % 5 == 4 ? 0 : i + 1, length);
        small->end_bytes[i + 1] = overlay_stats(f.node).log_bytes;
    }
    small->live = overlay_snapshot(test_path("a"), &small->live_bytes);
    overlay_shut(&f);
    small->clean = overlay_snapshot(test_path("a"), &small->clean_bytes);
    return small;
}

static void free_small(struct small *small) MAY_WAIT
{
    free(small->live);
    free(small->clean);
    free(small);
    test_folder_remove();
}

static void expect_refused(const uint8_t *bytes, size_t length, int code, const char *part) MAY_WAIT
{
    struct err err = ERR_INIT;

    overlay_put_file(test_path("b"), bytes, length);
    int ret = overlay_refusal(test_path("b"), SIZE_BYTES, &err);
    if (ret != code || strstr(err.text, part) == NULL)
        fail_msg("%d (%s), expected %d (%s)", ret, err.text, code, part);
}

static void expect_model(const uint8_t *bytes, size_t length, const uint8_t *model) MAY_WAIT
{
    struct overlay_fixture f;

    overlay_put_file(test_path("b"), bytes, length);
    overlay_open_at(&f, test_path("b"), SIZE_BYTES);
    overlay_expect_model(f.edge, model, SIZE_BYTES);
    overlay_shut(&f);
}

/* How many records end at the byte or before it. */
static unsigned whole_records(const struct small *small, size_t byte)
{
    unsigned whole = 0;

    while (whole < WRITES && small->end_bytes[whole + 1] <= byte)
        whole++;
    return whole;
}

static void expect_text(const struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void expect_text(const struct err *err, const char *fmt, ...)
{
    char part[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(part, sizeof(part), fmt, args);
    va_end(args);
    if (strstr(err->text, part) == NULL)
        fail_msg("'%s' does not say '%s'", err->text, part);
}

TEST_LOOP(a_killed_log_cut_anywhere_shows_the_records_that_are_whole)
{
    struct small *small = make_small();

    for (size_t cut = small->end_bytes[0]; cut <= small->live_bytes; cut += 512) {
        expect_model(small->live, cut, small->model[whole_records(small, cut)]);
    }
    free_small(small);
}

TEST_LOOP(a_log_cut_after_it_was_closed_is_refused)
{
    struct small *small = make_small();

    for (size_t cut = 0; cut < small->end_bytes[WRITES]; cut += 512) {
        struct err err = ERR_INIT;

        overlay_put_file(test_path("b"), small->clean, cut);
        assert_true(overlay_refusal(test_path("b"), SIZE_BYTES, &err) < 0);
        unsigned whole = whole_records(small, cut);
        if (cut < small->end_bytes[0])
            expect_text(&err, cut < 512 ? "not an overlay" : "truncated");
        else
            expect_text(&err, "%u of %u records are good, up to byte %" PRIu64, whole, WRITES,
                        small->end_bytes[whole]);
    }
    expect_model(small->clean, small->clean_bytes, small->model[WRITES]);
    free_small(small);
}

TEST_LOOP(a_flipped_bit_in_a_record_that_others_follow_is_damage)
{
    struct small *small = make_small();
    uint64_t seed = test_seed("flips"), state = seed;
    size_t last = small->end_bytes[WRITES - 1];

    for (unsigned i = 0; i < 300; i++) {
        size_t at = small->end_bytes[0] + test_random(&state) % (last - small->end_bytes[0]);
        uint8_t bit = (uint8_t)(1u << test_random(&state) % 8);
        struct err err = ERR_INIT;

        /* The padding of records is nobody's. */
        if (small->live[at] == 0 && at % 512 >= 96)
            continue;
        small->live[at] ^= bit;
        overlay_put_file(test_path("b"), small->live, small->live_bytes);
        if (overlay_refusal(test_path("b"), SIZE_BYTES, &err) != -EUCLEAN)
            fail_msg("a flipped bit %u at byte %zu was not found: %s", bit, at, err.text);
        unsigned whole = whole_records(small, at);
        expect_text(
            &err, "record %u at byte %" PRIu64 " is bad, and record %u at byte %" PRIu64 " follows",
            whole + 1, small->end_bytes[whole], WRITES, (uint64_t)last);
        small->live[at] ^= bit;
    }
    free_small(small);
}

/* Opened to be held, and what the group may then have: edge and node. */
static void open_held(struct overlay_fixture *f) MAY_WAIT
{
    *f = (struct overlay_fixture){.graph = blocks_graph()};
    f->backing = blocks_add(f->graph, "{'node-name':'base','driver':'mem','size':%u}", SIZE_BYTES);
    for (unsigned i = 0; i < SIZE_BYTES; i++)
        mem_bytes(f->backing)[i] = overlay_backing_byte(i);
    f->node = blocks_add(
        f->graph,
        "{'node-name':'ovl','driver':'overlay','on-damage':'hold','backing':'base',"
        "'file':{'driver':'file','filename':'%s'}}",
        test_path("b"));
    f->edge = blocks_root(f->graph, f->node, "test");
}

TEST_LOOP(a_damaged_log_is_salvaged_up_to_the_damage_and_can_be_written_again)
{
    struct small *small = make_small();
    uint64_t seed = test_seed("salvage"), state = seed;
    struct err err = ERR_INIT;
    static uint8_t model[SIZE_BYTES];

    for (unsigned i = 0; i < 60; i++) {
        unsigned bad = (unsigned)(test_random(&state) % (WRITES - 1));
        bool closed = test_random(&state) % 2 == 0;
        uint8_t *bytes = closed ? small->clean : small->live;
        size_t length = closed ? small->clean_bytes : small->live_bytes;
        size_t at = small->end_bytes[bad] + test_random(&state) % 64; /* of its record's head */
        struct overlay_fixture f;

        bytes[at] ^= 1;
        overlay_put_file(test_path("b"), bytes, length);
        bytes[at] ^= 1;
        open_held(&f);
        assert_int_equal(blocks_write(f.edge, 0, 512, 77, 0), -EUCLEAN);
        assert_int_equal(overlay_salvage(f.node, 1, &err), 0);
        overlay_expect_model(f.edge, small->model[bad], SIZE_BYTES);
        overlay_shut(&f); /* for good, also without a write */
        overlay_open_at(&f, test_path("b"), SIZE_BYTES);
        overlay_expect_model(f.edge, small->model[bad], SIZE_BYTES);
        memcpy(model, small->model[bad], SIZE_BYTES);
        memset(model + 1000, 77, 20000);
        assert_int_equal(blocks_write(f.edge, 1000, 20000, 77, 0), 0);
        uint8_t *killed = overlay_snapshot(test_path("b"), &length);
        overlay_shut(&f);
        expect_model(killed, length, model);
        free(killed);
    }
    free_small(small);
}

TEST_LOOP(a_flipped_bit_in_the_last_group_ends_a_killed_log_and_refuses_a_closed_one)
{
    struct small *small = make_small();
    size_t at = small->end_bytes[WRITES] - 4000;

    small->live[at] ^= 4;
    expect_model(small->live, small->live_bytes, small->model[WRITES - 1]);
    small->clean[at] ^= 4;
    expect_refused(small->clean, small->clean_bytes, -EUCLEAN, "11 of 12 records");
    free_small(small);
}

TEST_LOOP(a_lost_superblock_does_not_bring_an_older_generation_back)
{
    struct overlay_fixture f;
    struct err err = ERR_INIT;
    size_t length;

    overlay_make(test_path("a"), SIZE_BYTES, 0, 0);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0); /* serial 3 */
    assert_int_equal(node_empty_prepare(f.node, &err), 0);    /* serial 4 */
    node_empty_commit(f.node);
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 2, 0), 0);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    overlay_shut(&f);
    bytes[100] ^= 1;
    expect_refused(bytes, length, -EUCLEAN,
                   "a record of generation 2 at byte 65536 of an image of generation 1");
    free(bytes);
    test_folder_remove();
}

static void set_crc(uint8_t *superblock)
{
    memset(superblock + 508, 0, 4);
    uint32_t crc = crc32c(0, superblock, 512);
    memcpy(superblock + 508, &crc, 4);
}

TEST_LOOP(images_that_are_not_ours_are_refused_with_the_reason)
{
    struct small *small = make_small();
    struct err err = ERR_INIT;
    uint8_t *bytes = small->clean;
    uint8_t *sb[2] = {bytes, bytes + OVERLAY_SUPERBLOCK_STRIDE};
    struct overlay_superblock decoded[2];
    unsigned newer;

    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(overlay_superblock_decode(sb[i], &decoded[i], &err), 0);
    newer = decoded[1].serial > decoded[0].serial;

    overlay_put_file(test_path("b"), bytes, small->clean_bytes);
    assert_int_equal(overlay_refusal(test_path("b"), SIZE_BYTES * 2, &err), -EINVAL);
    assert_non_null(strstr(err.text, "it is for a disk of 262144 bytes"));

    sb[newer][8] = OVERLAY_VERSION + 1;
    set_crc(sb[newer]);
    expect_refused(bytes, small->clean_bytes, -ENOTSUP, "use a newer blockstep");
    sb[newer][8] = OVERLAY_VERSION - 1;
    set_crc(sb[newer]);
    expect_refused(bytes, small->clean_bytes, -ENOTSUP, "use the blockstep that wrote it");
    sb[newer][8] = OVERLAY_VERSION;
    sb[newer][12] = 3;
    sb[1 - newer][0] ^= 1;
    set_crc(sb[newer]);
    expect_refused(bytes, small->clean_bytes, -EUCLEAN, "block size");
    sb[newer][12] = 0;
    expect_refused(bytes, small->clean_bytes, -EUCLEAN, "wrong CRC");
    sb[newer][0] ^= 1;
    expect_refused(bytes, small->clean_bytes, -EMEDIUMTYPE, "wrong magic");
    free_small(small);
}

/* --- the bytes themselves --- */

static void records_decode_to_what_was_encoded(void **state)
{
    struct overlay_entry entries[OVERLAY_RECORD_MAX_ENTRIES], entry;
    struct overlay_record decoded, record = {
                                       .image_id = {1, 2, 3},
                                       .generation = UINT64_MAX - 1,
                                       .epoch = 77,
                                       .sequence = UINT64_C(1) << 40,
                                       .flushed_sequence = 12,
                                       .unit = 12345,
                                       .group_units = 999,
                                   };
    uint8_t bytes[OVERLAY_RECORD_MAX_BYTES];

    for (uint32_t n = 1; n <= OVERLAY_RECORD_MAX_ENTRIES; n++) {
        record.entry_count = n;
        for (uint32_t i = 0; i < n; i++)
            entries[i] = (struct overlay_entry){.block = i * UINT64_C(0x10001),
                                                .count = i + 1,
                                                .kind = 1 + i % 2,
                                                .data_unit = i,
                                                .crc = ~i};
        overlay_record_encode(&record, entries, bytes);
        for (size_t cut = 0; cut < overlay_record_bytes(n); cut += 7)
            assert_int_equal(overlay_record_decode(bytes, cut, &decoded), -EUCLEAN);
        assert_int_equal(overlay_record_decode(bytes, overlay_record_bytes(n), &decoded), 0);
        assert_memory_equal(&decoded, &record, sizeof(record));
        for (uint32_t i = 0; i < n; i++) {
            overlay_entry_decode(bytes, i, &entry);
            assert_int_equal(entry.block, entries[i].block);
            assert_int_equal(entry.count, entries[i].count);
            assert_int_equal(entry.kind, entries[i].kind);
            assert_int_equal(entry.data_unit, entries[i].data_unit);
            assert_int_equal(entry.crc, entries[i].crc);
        }
    }
}

static void records_that_point_outside_are_refused(void **state)
{
    const struct overlay_superblock sb = {.virtual_bytes = 40960,
                                          .block_bytes = 4096,
                                          .unit_bytes = 512,
                                          .segment_bytes = OVERLAY_MIN_SEGMENT_BYTES};
    const struct overlay_entry bad[] = {
        {.block = 10, .count = 1, .kind = 2},
        {.block = 9, .count = 2, .kind = 2},
        {.block = UINT64_MAX, .count = 2, .kind = 2},
        {.block = 1, .count = 0, .kind = 2},
        {.block = 1, .count = 1, .kind = 3},
        {.block = 1, .count = 1, .kind = 1, .data_unit = 128},
        {.block = 1, .count = 1, .kind = 1, .data_unit = 130},
        {.block = 1, .count = 1, .kind = 1, .data_unit = 127},
        {.block = 1, .count = 2, .kind = 1, .data_unit = 129},
        {.block = 1, .count = 1, .kind = 1, .data_unit = UINT64_MAX},
    };
    const struct overlay_entry good = {.block = 9, .count = 1, .kind = 1, .data_unit = 129};
    struct overlay_record record = {
        .unit = 128, .group_units = 9, .next_unit = 137, .entry_count = 1};
    uint8_t bytes[OVERLAY_RECORD_MAX_BYTES];
    struct err err = ERR_INIT;

    overlay_record_encode(&record, &good, bytes);
    assert_int_equal(overlay_record_check(&sb, &record, bytes, &err), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        overlay_record_encode(&record, &bad[i], bytes);
        assert_int_equal(overlay_record_check(&sb, &record, bytes, &err), -EUCLEAN);
    }
}

static void the_crc_is_crc32c_whoever_computes_it(void **state)
{
    static uint8_t bytes[9000];

    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * i * 7 + i / 3);
    for (unsigned n = 0; n < 8900; n += n < 600 ? 1 : 37)
        assert_int_equal(crc32c(n, bytes + n % 9, n), crc32c_portable(n, bytes + n % 9, n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_log_cut_anywhere_shows_the_records_that_are_whole),
        cmocka_unit_test(a_log_cut_after_it_was_closed_is_refused),
        cmocka_unit_test(a_flipped_bit_in_a_record_that_others_follow_is_damage),
        cmocka_unit_test(a_damaged_log_is_salvaged_up_to_the_damage_and_can_be_written_again),
        cmocka_unit_test(
            a_flipped_bit_in_the_last_group_ends_a_killed_log_and_refuses_a_closed_one),
        cmocka_unit_test(a_lost_superblock_does_not_bring_an_older_generation_back),
        cmocka_unit_test(images_that_are_not_ours_are_refused_with_the_reason),
        cmocka_unit_test(records_decode_to_what_was_encoded),
        cmocka_unit_test(records_that_point_outside_are_refused),
        cmocka_unit_test(the_crc_is_crc32c_whoever_computes_it),
    };

    return cmocka_run_group_tests_name("overlay damage", tests, NULL, NULL);
}
