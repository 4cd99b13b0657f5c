/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The simulator's model of what may be seen: neither stricter than disks are, nor looser. */
#include "unit.h"

#include <stdlib.h>

#include "../sim/oracle.h"

#define SECTORS   4u
#define MANY      30u /* more changes of one sector than a view remembers */
#define NOBODY    0u
#define THE_FIRST 1u

struct fixture {
    struct oracle *oracle;
    struct view *view, *other;
    bool violated;
};

static void on_violation(void *arg, enum invariant invariant, const char *text)
{
    struct fixture *f = arg;

    (void)invariant;
    assert_non_null(text);
    f->violated = true;
}

static void begin(struct fixture *f)
{
    *f = (struct fixture){.oracle = NULL};
    f->oracle = oracle_new(1, SECTORS, on_violation, f);
    assert_non_null(f->oracle);
    f->view = view_new(f->oracle, "the disk", I1_ACKNOWLEDGED_IS_READ);
    f->other = view_new(f->oracle, "its copy", I2_VIEW_IS_CHECKPOINT);
}

static void end(struct fixture *f)
{
    view_free(f->view);
    view_free(f->other);
    oracle_free(f->oracle);
}

/* A write of the first sector. */
static uint32_t write_one(struct fixture *f, bool durable)
{
    uint32_t change = change_begin(f->oracle, CHANGE_WRITE, 0, 0, 1, durable, &f->view, 1);

    change_end(f->oracle, change, CHANGE_DONE);
    return change;
}

static void write_some(struct fixture *f, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        (void)write_one(f, false);
}

static void flush(struct fixture *f)
{
    view_flushed_disk(f->view, 0, oracle_now(f->oracle));
}

static void read_end(struct fixture *f, struct view_read *read, uint32_t change)
{
    uint8_t bytes[ORACLE_SECTOR_BYTES] = {0};

    if (change != NOBODY)
        change_fill(f->oracle, change, bytes);
    view_read_end(read, 0, 0, 1, bytes);
}

/* Whether it is legal to read this write. Ends the fixture: what is read is learned. */
static bool sees(struct fixture *f, struct view *view, uint32_t change)
{
    struct view_read read;

    view_read_begin(view, &read);
    read_end(f, &read, change);
    end(f);
    return !f->violated;
}

static void a_power_cut_brings_back_what_was_not_flushed_over(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    (void)write_one(&f, false);
    assert_false(sees(&f, f.view, NOBODY));
    begin(&f);
    (void)write_one(&f, false);
    view_power_cut(f.view);
    assert_true(sees(&f, f.view, NOBODY));
    begin(&f);
    (void)write_one(&f, true);
    view_power_cut(f.view);
    assert_false(sees(&f, f.view, NOBODY));
}

static void what_was_flushed_is_not_brought_back_by_any_later_power_cut(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    (void)write_one(&f, false);
    flush(&f);
    view_power_cut(f.view);
    view_power_cut(f.view);
    assert_false(sees(&f, f.view, NOBODY));
}

static void a_power_cut_brings_back_also_what_found_no_room(void **state)
{
    (void)state;
    for (unsigned count = 1; count <= MANY; count++) {
        struct fixture f;
        begin(&f);
        assert_int_equal(write_one(&f, false), THE_FIRST);
        flush(&f);
        write_some(&f, count);
        view_power_cut(f.view);
        assert_true(sees(&f, f.view, THE_FIRST));
    }
}

static void what_found_no_room_is_not_seen_without_a_power_cut_nor_past_a_flush(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    (void)write_one(&f, false);
    write_some(&f, MANY);
    assert_false(sees(&f, f.view, THE_FIRST));
    begin(&f);
    (void)write_one(&f, false);
    write_some(&f, MANY);
    flush(&f);
    view_power_cut(f.view);
    assert_false(sees(&f, f.view, THE_FIRST));
    begin(&f);
    (void)write_one(&f, false);
    write_some(&f, MANY);
    view_power_cut(f.view);
    (void)write_one(&f, false);
    assert_false(sees(&f, f.view, THE_FIRST));
}

static void a_read_under_way_may_see_what_found_no_room_meanwhile(void **state)
{
    struct view_read read;
    struct fixture f;

    (void)state;
    begin(&f);
    (void)write_one(&f, false);
    view_read_begin(f.view, &read);
    write_some(&f, MANY);
    flush(&f);
    write_some(&f, MANY);
    read_end(&f, &read, THE_FIRST);
    assert_false(f.violated);
    assert_false(sees(&f, f.view, THE_FIRST));
}

static void a_checkpoint_is_of_what_found_no_room_only_if_it_was_there_since(void **state)
{
    (void)state;
    for (unsigned meanwhile = 0; meanwhile < 2; meanwhile++) {
        struct fixture f;
        begin(&f);
        (void)write_one(&f, false);
        uint32_t since = oracle_now(f.oracle);
        write_some(&f, MANY);
        if (!meanwhile)
            since = oracle_now(f.oracle);
        view_checkpoint(f.other, f.view, since, true);
        assert_int_equal(sees(&f, f.other, THE_FIRST), meanwhile);
    }
}

static void a_checkpoint_under_way_may_be_of_what_was_durably_overwritten(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    (void)write_one(&f, false);
    uint32_t since = oracle_now(f.oracle);
    oracle_keep_since(f.oracle, since);
    for (unsigned i = 0; i < MANY; i++)
        (void)write_one(&f, true);
    view_checkpoint(f.other, f.view, since, true);
    assert_true(sees(&f, f.other, THE_FIRST));
}

static void what_a_failed_flush_has_dropped_no_later_one_makes_durable(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct fixture f;
        begin(&f);
        uint32_t first = write_one(&f, false);
        flush(&f);
        (void)write_one(&f, false);
        if (fails)
            view_flush_failed(f.view, 0);
        flush(&f);
        view_power_cut(f.view);
        assert_int_equal(sees(&f, f.view, first), fails);
    }
    for (int flushed = 0; flushed < 2; flushed++) {
        struct fixture f;
        begin(&f);
        uint32_t first = write_one(&f, false);
        view_flush_failed(f.view, 0);
        (void)write_one(&f, false);
        if (flushed)
            flush(&f);
        view_power_cut(f.view);
        assert_int_equal(sees(&f, f.view, first), !flushed);
    }
}

static void what_was_lost_may_still_come_unless_it_went_to_somebody_who_has_ended(void **state)
{
    (void)state;
    for (int ended = 0; ended < 2; ended++) {
        struct fixture f;
        begin(&f);
        uint32_t life_began = oracle_now(f.oracle);
        uint32_t lost = change_begin(f.oracle, CHANGE_WRITE, 0, 0, 1, false, &f.view, 1);
        change_end(f.oracle, lost, CHANGE_LOST);
        view_settle(f.view, ended ? oracle_now(f.oracle) : life_began);
        (void)write_one(&f, false);
        assert_int_equal(sees(&f, f.view, lost), !ended);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_power_cut_brings_back_what_was_not_flushed_over),
        cmocka_unit_test(what_was_flushed_is_not_brought_back_by_any_later_power_cut),
        cmocka_unit_test(a_power_cut_brings_back_also_what_found_no_room),
        cmocka_unit_test(what_found_no_room_is_not_seen_without_a_power_cut_nor_past_a_flush),
        cmocka_unit_test(a_read_under_way_may_see_what_found_no_room_meanwhile),
        cmocka_unit_test(a_checkpoint_is_of_what_found_no_room_only_if_it_was_there_since),
        cmocka_unit_test(a_checkpoint_under_way_may_be_of_what_was_durably_overwritten),
        cmocka_unit_test(what_a_failed_flush_has_dropped_no_later_one_makes_durable),
        cmocka_unit_test(what_was_lost_may_still_come_unless_it_went_to_somebody_who_has_ended),
    };

    return cmocka_run_group_tests_name("oracle", tests, NULL, NULL);
}
