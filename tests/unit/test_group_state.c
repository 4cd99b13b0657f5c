/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Groups with a state folder: what a start finds of a run that ended or was killed. */
#include "group_state_fixture.h"

/* --- what a restart keeps --- */

TEST_LOOP(a_killed_secondary_goes_on_at_its_last_checkpoint)
{
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    uint64_t epoch = epoch_of(&fix);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
    expect_live_epoch(&fix);
    assert_int_equal(epoch_of(&fix), epoch);
    /* A second time: the first start has emptied nothing. */
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_live_epoch(&fix);
    fix_ok(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err));
    assert_int_equal(epoch_of(&fix), epoch + 1);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 2);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 0);
    end(&fix);
}

TEST_LOOP(a_checkpoint_counts_on_in_both_overlays)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    for (unsigned i = 0; i < 2; i++) {
        struct overlay_identity identity;
        assert_true(overlay_identity(fix_node(&fix.s, i == 0 ? "active" : "hidden", 0), &identity));
        assert_true(identity.epoch == epoch_of(&fix));
    }
    end(&fix);
}

TEST_LOOP(the_age_of_a_checkpoint_survives_a_restart)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    fix_checkpoint(&fix);
    CLEANUP(json_putp) struct json_object *before = replication_query(fix.s.group);
    struct json_object *last = member(before, "last-checkpoint");
    assert_non_null(member(last, "held-ns"));
    uint64_t wall_ns = json_object_get_uint64(member(last, "wall-time-ns"));
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    CLEANUP(json_putp) struct json_object *after = replication_query(fix.s.group);
    uint64_t passed_ns = loop_wall_ns(fix.loop) - wall_ns;
    last = member(after, "last-checkpoint");
    assert_true(json_object_get_uint64(member(last, "wall-time-ns")) == wall_ns);
    assert_true(json_object_get_uint64(member(last, "age-ns")) <= passed_ns);
    assert_null(member(last, "held-ns"));
    end(&fix);
}

TEST_LOOP(an_end_in_good_order_is_survived_by_every_level_and_by_another_boot)
{
    for (enum group_durability level = GROUP_LEVEL_NONE; level <= GROUP_LEVEL_PROCESS; level++) {
        struct fix fix;
        begin(&fix, 1, level);
        live_epoch(&fix);
        close_secondary(&fix);
        open_secondary(&fix, level, boot_b);
        restart(&fix);
        expect_live_epoch(&fix);
        end(&fix);
    }
}

TEST_LOOP(a_start_that_fails_leaves_an_end_in_good_order_as_it_was)
{
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    close_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start_for_a_reader(&fix);
    close_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
    restart(&fix);
    expect_live_epoch(&fix);
    end(&fix);
}

TEST_LOOP(an_end_that_cannot_flush_what_the_overlays_hold_does_not_outlive_the_host)
{
    static const char *const nodes[] = {"sdisk", "adebug", "hdebug"};
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        struct fix fix;
        begin(&fix, 1, GROUP_LEVEL_PROCESS);
        live_epoch(&fix);
        fix_inject(
            &fix.s, nodes[i], 0,
            (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .count = UINT_MAX, .error = -EIO});
        close_secondary(&fix);
        open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
        restart(&fix);
        expect_inconsistent(&fix, "host was started again");
        end(&fix);
    }
}

static bool shows_merge(struct fix *fix) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    return member(query, "merge") != NULL;
}

TEST_LOOP(an_interrupted_failover_is_finished_and_done_is_done)
{
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    assert_false(shows_merge(&fix));
    fix_inject(&fix.s, "sdisk", 1,
               (struct blkdebug_rule){
                   .kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .count = UINT_MAX, .error = -EIO});
    fix_ok(replication_stop(fix.s.group, true, &err));
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_FAILOVER_FAILED);
    assert_true(shows_merge(&fix));
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start(&fix, REPLICATION_OVERLAYS_FRESH, "has not ended");
    refuse_start(&fix, REPLICATION_OVERLAYS_SYNC, "has not ended");
    restart(&fix);
    assert_true(replication_has_taken_over(fix.s.group));
    assert_false(replication_takes_primary(fix.s.group));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    assert_int_equal(fix_byte(fix.top[1], 0, BLOCK), 1);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 1, 0, BLOCK), 1);
    assert_int_equal(fix_raw_byte(&fix, 1, BLOCK, BLOCK), 3);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 4), 0);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
    refuse_start(&fix, REPLICATION_OVERLAYS_FRESH, "has taken over");
    restart(&fix);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_DONE);
    assert_true(replication_has_taken_over(fix.s.group));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 4);
    assert_int_equal(fix_byte(fix.top[1], BLOCK, BLOCK), 3);
    assert_int_equal(fix_fill(fix.top[1], 0, BLOCK, 5), 0);
    end(&fix);
}

TEST_LOOP(a_group_that_was_stopped_stays_so)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    fix_ok(replication_stop(fix.s.group, false, &err));
    close_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_DONE);
    assert_false(replication_has_taken_over(fix.s.group));
    assert_false(replication_takes_primary(fix.s.group));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 2);
    end(&fix);
}

static void open_read_only(struct fix *fix) MAY_WAIT
{
    fix_side_init(fix, &fix->s);
    use_state(fix, GROUP_LEVEL_PROCESS, boot_a);
    fix_open_secondary_disk(fix, 0, true);
    fix_attach_secondary(fix, 0, false);
}

TEST_LOOP(a_disk_that_was_read_only_is_so_again_when_its_group_turns_out_to_be_stopped)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    fix_ok(replication_stop(fix.s.group, false, &err));
    close_secondary(&fix);
    open_read_only(&fix);
    restart(&fix);
    assert_int_equal(fix_stage(&fix.s), REPLICATION_DONE);
    assert_true(fix_node(&fix.s, "sdisk", 0)->read_only);
    assert_true(fix_node(&fix.s, "hidden", 0)->read_only);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 2);
    end(&fix);
}

TEST_LOOP(a_generation_remembers_those_before_it_the_nearest_first)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    struct group_record *record = calloc(1, sizeof(*record));
    uint64_t before[GROUP_RECORD_MAX_ANCESTORS + 3];
    assert_non_null(record);
    for (unsigned minted = 0; minted < ARRAY_LEN(before); minted++) {
        record_mint(fix.s.group, record);
        before[minted] = record->generation;
        assert_int_equal(record->ancestor_count, MIN(minted, GROUP_RECORD_MAX_ANCESTORS));
        for (unsigned i = 0; i < record->ancestor_count; i++)
            assert_true(record->ancestors[i] == before[minted - 1 - i]);
    }
    free(record);
    end(&fix);
}

/* --- the stream --- */

TEST_LOOP(a_break_of_the_stream_is_remembered_until_the_disks_are_equal_again)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 1, .error = -EIO});
    (void)fix_fill(fix.forward[0], 0, BLOCK, 4);
    fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err), "failed");
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(&fix);
    expect_live_epoch(&fix);
    fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err),
                "the stream of the primary's writes is broken");
    fix_refused(replication_get_error(fix.s.group, &err), "broken");
    uint64_t epoch;
    fix_ok(replication_first_checkpoint(fix.s.group, DEADLINE_NEVER, &epoch, &err));
    fix_ok(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err));
    fix_refused(replication_first_checkpoint(fix.s.group, DEADLINE_NEVER, &epoch, &err),
                "no first checkpoint");
    end(&fix);
}

TEST_LOOP(a_stop_with_a_broken_stream_ends_as_inconsistent)
{
    struct fix fix;
    begin(&fix, 1, GROUP_LEVEL_PROCESS);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 1, .error = -EIO});
    (void)fix_fill(fix.forward[0], 0, BLOCK, 4);
    fix_ok(replication_stop(fix.s.group, false, &err));
    CLEANUP(json_putp) struct json_object *query = replication_query(fix.s.group);
    assert_false(json_object_get_boolean(member(query, "consistent")));
    end(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_secondary_goes_on_at_its_last_checkpoint),
        cmocka_unit_test(a_checkpoint_counts_on_in_both_overlays),
        cmocka_unit_test(the_age_of_a_checkpoint_survives_a_restart),
        cmocka_unit_test(an_end_in_good_order_is_survived_by_every_level_and_by_another_boot),
        cmocka_unit_test(a_start_that_fails_leaves_an_end_in_good_order_as_it_was),
        cmocka_unit_test(an_end_that_cannot_flush_what_the_overlays_hold_does_not_outlive_the_host),
        cmocka_unit_test(an_interrupted_failover_is_finished_and_done_is_done),
        cmocka_unit_test(a_group_that_was_stopped_stays_so),
        cmocka_unit_test(
            a_disk_that_was_read_only_is_so_again_when_its_group_turns_out_to_be_stopped),
        cmocka_unit_test(a_generation_remembers_those_before_it_the_nearest_first),
        cmocka_unit_test(a_break_of_the_stream_is_remembered_until_the_disks_are_equal_again),
        cmocka_unit_test(a_stop_with_a_broken_stream_ends_as_inconsistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
