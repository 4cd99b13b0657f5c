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

static void swap_overlays(const char *one, const char *other) MAY_WAIT
{
    struct content first = file_take(one), second = file_take(other);
    file_put(one, second);
    file_put(other, first);
}

TEST_LOOP(an_overlay_that_is_not_the_one_recorded_is_lost_not_empty)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    kill_secondary(&fix);
    swap_overlays("active0.overlay", "hidden0.overlay");
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "there is another one in its place");
    close_secondary(&fix);
    swap_overlays("active0.overlay", "hidden0.overlay");
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

/* A failover of both disks that has not merged anything, ended as by a kill. Each overlay holds three
 * records: the blocks 1 to 3 of the active disk have 3 to 5, and those behind of the hidden one 1. */
static void begin_killed_failover(struct fix *fix) MAY_WAIT
{
    begin(fix, 2, GROUP_LEVEL_PROCESS);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(fix_fill(fix->forward[i], 4 * BLOCK, 3 * BLOCK, 1), 0);
    fix_checkpoint(fix);
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned block = 0; block < 3; block++) {
            assert_int_equal(fix_fill(fix->forward[i], (4 + block) * BLOCK, BLOCK, 2), 0);
            assert_int_equal(
                fix_fill(fix->top[i], (1 + block) * BLOCK, BLOCK, (uint8_t)(3 + block)), 0);
        }
        fix_inject(&fix->s, "sdisk", i,
                   (struct blkdebug_rule){
                       .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = UINT_MAX, .error = -EIO});
    }
    fix_ok(replication_stop(fix->s.group, true, &err));
    test_wait_until(job_next(&fix->s.jobs, NULL) == NULL);
    kill_secondary(fix);
}

static void damage_record(const char *name, unsigned nth) MAY_WAIT
{
    static const uint8_t magic[] = {0xb5, 0x4f, 0x76, 0x6c, 0x52, 0x65, 0x63, 0x9e};
    struct content content = file_take(name);
    uint8_t *at = content.bytes;
    for (unsigned i = 0; i <= nth; i++) {
        at = memmem(at + 1, content.length - (size_t)(at + 1 - content.bytes), magic,
                    sizeof(magic));
        assert_non_null(at);
    }
    at[64] ^= 1;
    file_put(name, content);
}

static void expect_lost(struct fix *fix, const char *part) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    const char *lost = json_object_get_string(member(query, "lost"));
    assert_non_null(lost);
    if (strstr(lost, part) == NULL)
        fail_msg("'%s' does not say '%s'", lost, part);
}

TEST_LOOP(a_forced_failover_takes_a_damaged_overlay_up_to_its_damage)
{
    static const char *const files[] = {"active1.overlay", "hidden1.overlay"};
    static const char *const lost[] = {"what its users wrote here",
                                       "that the primary has overwritten"};
    for (unsigned layer = 0; layer < 2; layer++) {
        struct fix fix;
        begin_killed_failover(&fix);
        damage_record(files[layer], 1);
        open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
        restart(&fix);
        expect_inconsistent(&fix, "is damaged");
        fix_refused(replication_stop(fix.s.group, true, &err), "disk 'top1'");
        fix_refused(replication_stop(fix.s.group, true, &err), "failover --force");
        fix_ok(replication_force_failover(fix.s.group, &err));
        expect_lost(&fix, lost[layer]);
        expect_lost(&fix, "disk 'top1'");
        expect_lost(&fix, "4 KiB are left");
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        kill_secondary(&fix); /* also of what is recorded, and on the disk itself */
        open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
        restart(&fix);
        assert_true(replication_has_taken_over(fix.s.group));
        expect_lost(&fix, lost[layer]);
        for (unsigned block = 0; block < 3; block++) {
            bool good = block == 0;
            assert_int_equal(fix_raw_byte(&fix, 0, (1 + block) * BLOCK, BLOCK), 3 + block);
            assert_int_equal(fix_raw_byte(&fix, 0, (4 + block) * BLOCK, BLOCK), 1);
            assert_int_equal(fix_raw_byte(&fix, 1, (1 + block) * BLOCK, BLOCK),
                             good || layer == 1 ? 3 + block : 0);
            assert_int_equal(fix_raw_byte(&fix, 1, (4 + block) * BLOCK, BLOCK),
                             good || layer == 0 ? 1 : 2);
        }
        end(&fix);
    }
}

TEST_LOOP(a_forced_failover_that_is_killed_goes_on_without_force)
{
    struct fix fix;
    begin_killed_failover(&fix);
    damage_record("active1.overlay", 1);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "is damaged");
    for (unsigned i = 0; i < 2; i++)
        fix_inject(&fix.s, "sdisk", i,
                   (struct blkdebug_rule){
                       .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = UINT_MAX, .error = -EIO});
    fix_ok(replication_force_failover(fix.s.group, &err));
    assert_int_equal(fix_byte(fix.top[1], BLOCK, BLOCK), 3);
    assert_int_equal(fix_byte(fix.top[1], 2 * BLOCK, BLOCK), 0);
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_consistent(&fix);
    expect_lost(&fix, "disk 'top1'");
    assert_int_equal(fix_byte(fix.top[1], 2 * BLOCK, BLOCK), 0);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 1, BLOCK, BLOCK), 3);
    assert_int_equal(fix_raw_byte(&fix, 0, 3 * BLOCK, BLOCK), 5);
    end(&fix);
}

TEST_LOOP(a_forced_failover_never_takes_the_overlay_of_somebody_else)
{
    struct fix fix;
    begin_killed_failover(&fix);
    swap_overlays("active0.overlay", "active1.overlay");
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_inconsistent(&fix, "there is another one in its place");
    fix_refused(replication_force_failover(fix.s.group, &err), "holds what may be of use");
    expect_inconsistent(&fix, "there is another one in its place");
    close_secondary(&fix);
    swap_overlays("active0.overlay", "active1.overlay");
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    fix_ok(replication_force_failover(fix.s.group, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(fix_raw_byte(&fix, i, 3 * BLOCK, BLOCK), 5);
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
    close_secondary(&fix);
    file_put("group", (struct content){calloc(1, GROUP_RECORD_MAX_BYTES), GROUP_RECORD_MAX_BYTES});
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "its checksum is wrong");
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
        cmocka_unit_test(a_forced_failover_takes_a_damaged_overlay_up_to_its_damage),
        cmocka_unit_test(a_forced_failover_that_is_killed_goes_on_without_force),
        cmocka_unit_test(a_forced_failover_never_takes_the_overlay_of_somebody_else),
        cmocka_unit_test(a_failover_goes_on_after_a_loss_of_power_once_its_overlays_are_flushed),
        cmocka_unit_test(a_failover_whose_overlays_were_not_flushed_does_not_outlive_the_host),
        cmocka_unit_test(a_damaged_record_is_refused_and_replaced_by_somebodys_word_alone),
        cmocka_unit_test(the_record_of_another_group_is_refused),
        cmocka_unit_test(a_state_folder_belongs_to_one_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
