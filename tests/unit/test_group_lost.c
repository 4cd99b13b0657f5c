/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Groups with a state folder: what a start makes of what was lost, and of records it cannot use. */
#include "group_state_fixture.h"

/* --- what is lost --- */

TEST_LOOP(undo_that_a_kill_or_a_boot_loses_makes_the_group_inconsistent)
{
    static const struct {
        enum group_durability level;
        const char *boot, *reason;
    } cases[] = {
        {GROUP_LEVEL_NONE, boot_a, "did not end in good order"},
        {GROUP_LEVEL_PROCESS, boot_b, "host was started again"},
        {GROUP_LEVEL_PROCESS, "", "host was started again"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct fix fix;
        begin(&fix, 1, cases[i].level);
        live_epoch(&fix);
        kill_secondary(&fix);
        open_secondary(&fix, cases[i].level, cases[i].boot);
        restart(&fix);
        expect_inconsistent(&fix, cases[i].reason);
        assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 2);
        /* That is not forgotten by another restart. */
        close_secondary(&fix);
        open_secondary(&fix, cases[i].level, boot_a);
        restart(&fix);
        expect_inconsistent(&fix, cases[i].reason);
        uint64_t epoch;
        fix_ok(replication_first_checkpoint(fix.s.group, DEADLINE_NEVER, &epoch, &err));
        expect_consistent(&fix);
        assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 2);
        assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 0);
        end(&fix);
    }
}

static void swap_overlays(void) MAY_WAIT
{
    struct content active = file_take("active0.overlay"), hidden = file_take("hidden0.overlay");
    file_put("active0.overlay", hidden);
    file_put("hidden0.overlay", active);
}

TEST_LOOP(an_overlay_that_is_not_the_one_recorded_is_lost_not_empty)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    kill_secondary(&fix);
    swap_overlays();
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "there is another one in its place");
    close_secondary(&fix);
    swap_overlays();
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "there is another one in its place");
    end(&fix);
}

TEST_LOOP(a_new_overlay_in_place_of_a_lost_one_is_not_taken_for_an_empty_one)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    kill_secondary(&fix);
    fix_add_image(&fix, "hidden", 0);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "hidden disk is lost");
    end(&fix);
}

TEST_LOOP(an_old_copy_of_the_record_is_not_believed)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    struct content old = file_take("group");
    live_epoch(&fix);
    close_secondary(&fix);
    file_put("group", old);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "the record is an old copy");
    end(&fix);
}

TEST_LOOP(a_disk_that_was_written_to_before_the_start_has_lost_its_old_content)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    assert_int_equal(fix_fill(fix.peer[0], 8 * BLOCK, BLOCK, 9), 0);
    restart(&fix);
    expect_inconsistent(&fix, "written to before the start");
    end(&fix);
}

TEST_LOOP(an_inconsistent_group_takes_over_by_force_with_its_disks_as_they_are)
{
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
    restart(&fix);
    expect_inconsistent(&fix, "host was started again");
    fix_ok(replication_force_failover(fix.s.group, &err));
    assert_int_equal(fix_stage(&fix.s), REPLICATION_DONE);
    assert_null(fix.peer[0]);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(fix_byte(fix.top[i], 0, BLOCK), 2);
        assert_int_equal(fix_byte(fix.top[i], BLOCK, BLOCK), 0);
        assert_int_equal(fix_fill(fix.top[i], 0, BLOCK, 7), 0);
    }
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    assert_true(replication_has_taken_over(fix.s.group));
    assert_int_equal(fix_byte(fix.top[1], 0, BLOCK), 7);
    end(&fix);
}

TEST_LOOP(what_is_left_of_a_failover_is_merged_by_force)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){
                   .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = UINT_MAX, .error = -EIO});
    fix_ok(replication_stop(fix.s.group, true, &err));
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    kill_secondary(&fix);
    fix_add_image(&fix, "hidden", 0);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "hidden disk is lost");
    assert_false(replication_has_taken_over(fix.s.group));
    assert_false(replication_takes_primary(fix.s.group));
    fix_ok(replication_force_failover(fix.s.group, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 2);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 3);
    end(&fix);
}

TEST_LOOP(a_failover_goes_on_after_a_loss_of_power_once_its_overlays_are_flushed)
{
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    for (unsigned i = 0; i < 2; i++)
        fix_inject(&fix.s, "sdisk", i,
                   (struct blkdebug_rule){
                       .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = UINT_MAX, .error = -EIO});
    fix_ok(replication_stop(fix.s.group, true, &err));
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
    restart(&fix);
    assert_int_equal(fix_byte(fix.top[1], 0, BLOCK), 1);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    assert_int_equal(fix_raw_byte(&fix, 1, BLOCK, BLOCK), 3);
    end(&fix);
}

TEST_LOOP(a_failover_whose_overlays_were_not_flushed_does_not_outlive_the_host)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    fix_inject(&fix.s, "hdebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .count = UINT_MAX, .error = -EIO});
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){
                   .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = UINT_MAX, .error = -EIO});
    fix_ok(replication_stop(fix.s.group, true, &err));
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
    restart(&fix);
    expect_inconsistent(&fix, "host was started again");
    end(&fix);
}

/* --- records that cannot be used --- */

TEST_LOOP(a_damaged_record_is_refused_and_replaced_by_somebodys_word_alone)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    close_secondary(&fix);
    struct content record = file_take("group");
    record.length /= 2;
    file_put("group", record);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    assert_true(replication_has_record(fix.s.group));
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "its checksum is wrong");
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "(sync)");
    refuse_start(&fix, REPLICATION_OVERLAYS_MERGE, "the record of the group decides");
    close_secondary(&fix);
    file_put("group",
             (struct content){calloc(1, GROUP_RECORD_MAX_BYTES + 1), GROUP_RECORD_MAX_BYTES + 1});
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "it is too long");
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_SYNC, &err));
    expect_inconsistent(&fix, "never synchronised");
    free(file_take("group.damaged").bytes);
    close_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "never synchronised");
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_FRESH, &err));
    expect_consistent(&fix);
    end(&fix);
}

/* The record with one text in place of another, and a checksum that is right. */
static void edit_record(const char *from, const char *to) MAY_WAIT
{
    struct content record = file_take("group"), edited;
    struct group_record *decoded = calloc(1, sizeof(*decoded));
    struct err err = ERR_INIT;
    assert_non_null(decoded);
    assert_int_equal(group_record_decode((char *)record.bytes, record.length, decoded, &err), 0);
    assert_string_equal(decoded->disks[0].name, from);
    snprintf(decoded->disks[0].name, sizeof(decoded->disks[0].name), "%s", to);
    edited.bytes = (uint8_t *)group_record_encode(decoded, &edited.length);
    assert_non_null(edited.bytes);
    file_put("group", edited);
    free(record.bytes);
    free(decoded);
}

TEST_LOOP(the_record_of_another_group_is_refused)
{
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    close_secondary(&fix);
    fix.disks = 1;
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "of a group of 2 disk(s)");
    fix_refused(
        replication_start(fix.s.group, REPLICATION_PRIMARY, REPLICATION_OVERLAYS_EMPTY, &err),
        "is the record of a secondary");
    close_secondary(&fix);
    fix.disks = 2;
    edit_record("top0", "other");
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "knows no disk 'top0'");
    end(&fix);
}

TEST_LOOP(a_state_folder_belongs_to_one_group)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    const struct replication_state state = {.folder = test_folder(), .level = GROUP_LEVEL_PROCESS};
    fix_refused(replication_use_state(fix.p.group, &state, &err), "is in use by");
    const struct replication_state host = {.folder = test_folder(), .level = GROUP_LEVEL_HOST};
    fix_refused(replication_use_state(fix.p.group, &host, &err), "not supported yet");
    end(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(undo_that_a_kill_or_a_boot_loses_makes_the_group_inconsistent),
        cmocka_unit_test(an_overlay_that_is_not_the_one_recorded_is_lost_not_empty),
        cmocka_unit_test(a_new_overlay_in_place_of_a_lost_one_is_not_taken_for_an_empty_one),
        cmocka_unit_test(an_old_copy_of_the_record_is_not_believed),
        cmocka_unit_test(a_disk_that_was_written_to_before_the_start_has_lost_its_old_content),
        cmocka_unit_test(an_inconsistent_group_takes_over_by_force_with_its_disks_as_they_are),
        cmocka_unit_test(what_is_left_of_a_failover_is_merged_by_force),
        cmocka_unit_test(a_failover_goes_on_after_a_loss_of_power_once_its_overlays_are_flushed),
        cmocka_unit_test(a_failover_whose_overlays_were_not_flushed_does_not_outlive_the_host),
        cmocka_unit_test(a_damaged_record_is_refused_and_replaced_by_somebodys_word_alone),
        cmocka_unit_test(the_record_of_another_group_is_refused),
        cmocka_unit_test(a_state_folder_belongs_to_one_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
