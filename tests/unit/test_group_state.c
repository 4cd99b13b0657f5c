/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups with a state folder: what a start finds of a run that ended, was killed, or lost something.
 * A kill is made by putting the record back as it was: at level process nothing else is lost. In the
 * simulator every single request to the medium can be the last.
 */
#include "replication_fixture.h"

#include "loop/sim.h"
#include "replication/group_internal.h"

#include <limits.h>

#define BLOCK 4096u

static const char boot_a[] = "boot-a", boot_b[] = "boot-b";

static void use_state(struct fix *fix, enum group_durability level, const char *boot) MAY_WAIT
{
    const struct replication_state state = {
        .folder = test_folder(), .level = level, .boot_id = boot};
    fix_ok(replication_use_state(fix->s.group, &state, &err));
}

static void close_secondary(struct fix *fix) MAY_WAIT
{
    fix_detach(fix);
    fix_close_side(&fix->s);
}

static void open_secondary(struct fix *fix, enum group_durability level, const char *boot) MAY_WAIT
{
    fix_side_init(fix, &fix->s);
    use_state(fix, level, boot);
    for (unsigned i = 0; i < fix->disks; i++)
        fix_open_secondary_disk(fix, i, false);
    for (unsigned i = 0; i < fix->disks; i++)
        fix_attach_secondary(fix, i, true);
}

/* One or more disks with a state folder, running. */
static void begin(struct fix *fix, unsigned disks, enum group_durability level) MAY_WAIT
{
    fix_open(fix, disks);
    use_state(fix, level, boot_a);
    fix_start(fix);
}

static void end(struct fix *fix) MAY_WAIT
{
    close_secondary(fix);
    fix_close_side(&fix->p);
    /* In the simulator the folder stays. */
    (void)path_unlink(fix->loop, test_path("group"));
    test_folder_remove();
}

/* --- files --- */

struct content {
    uint8_t *bytes;
    size_t length;
};

static struct content file_take(const char *name) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct content content;
    struct file *file;
    assert_int_equal(file_open(loop_current(), test_path(name), 0, FILE_AIO_AUTO, &file, &err), 0);
    content.length = file_info(file)->length_bytes;
    content.bytes = malloc(content.length + 1);
    assert_non_null(content.bytes);
    assert_int_equal(file_read(file, content.bytes, content.length, 0), content.length);
    file_close(file);
    return content;
}

static void file_put(const char *name, struct content content) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct file *file;
    assert_int_equal(file_open(loop_current(), test_path(name),
                               FILE_WRITABLE | FILE_CREATE | FILE_TRUNCATE, FILE_AIO_AUTO, &file,
                               &err),
                     0);
    assert_int_equal(file_write(file, content.bytes, content.length, 0), 0);
    file_close(file);
    free(content.bytes);
}

/* Ends the secondary as a kill does, as far as the record goes. */
static void kill_secondary(struct fix *fix) MAY_WAIT
{
    struct content record = file_take("group");
    close_secondary(fix);
    file_put("group", record);
}

static void restart(struct fix *fix) MAY_WAIT
{
    fix_ok(
        replication_start(fix->s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err));
}

static void refuse_start(struct fix *fix, enum replication_overlays overlays, const char *part)
    MAY_WAIT
{
    fix_refused(replication_start(fix->s.group, REPLICATION_SECONDARY, overlays, &err), part);
}

static struct json_object *member(struct json_object *object, const char *key)
{
    struct json_object *value = NULL;
    json_object_object_get_ex(object, key, &value);
    return value;
}

static void expect_consistent(struct fix *fix) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    if (!json_object_get_boolean(member(query, "consistent")))
        fail_msg("inconsistent: %s", json_object_to_json_string(query));
}

/* The group is, says why, and does nothing that needs a checkpoint. */
static void expect_inconsistent(struct fix *fix, const char *part) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    const char *reason = json_object_get_string(member(query, "inconsistent-reason"));
    assert_non_null(reason);
    if (strstr(reason, part) == NULL)
        fail_msg("'%s' does not say '%s'", reason, part);
    assert_int_equal(fix_stage(&fix->s), REPLICATION_NONE);
    fix_refused(replication_stop(fix->s.group, true, &err), part);
    fix_refused(replication_stop(fix->s.group, false, &err), part);
    fix_refused(replication_checkpoint(fix->s.group, DEADLINE_NEVER, NULL, &err), part);
    assert_int_equal(fix_byte(fix->top[0], 0, BLOCK), -EIO);
}

static uint64_t epoch_of(struct fix *fix) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    return json_object_get_uint64(member(query, "epoch"));
}

/* Block 0: 1 at the checkpoint, 2 forwarded since; block 1: 3 by S's user. */
static void live_epoch(struct fix *fix) MAY_WAIT
{
    for (unsigned i = 0; i < fix->disks; i++)
        assert_int_equal(fix_fill(fix->forward[i], 0, BLOCK, 1), 0);
    fix_checkpoint(fix);
    for (unsigned i = 0; i < fix->disks; i++) {
        assert_int_equal(fix_fill(fix->forward[i], 0, BLOCK, 2), 0);
        assert_int_equal(fix_fill(fix->top[i], BLOCK, BLOCK, 3), 0);
    }
}

static void expect_live_epoch(struct fix *fix) MAY_WAIT
{
    expect_consistent(fix);
    for (unsigned i = 0; i < fix->disks; i++) {
        assert_int_equal(fix_byte(fix->top[i], 0, BLOCK), 1);
        assert_int_equal(fix_byte(fix->top[i], BLOCK, BLOCK), 3);
        assert_int_equal(fix_raw_byte(fix, i, 0, BLOCK), 2);
    }
}

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

/* --- a medium that fails --- */

static void set_fault(struct fix *fix, const char *name, enum sim_op op, bool on) MAY_WAIT
{
    struct sim *sim = sim_of(fix->loop);
    const struct sim_fault fault = {.path = test_path(name), .op = op, .error = -EIO};
    if (on)
        assert_int_equal(sim_fault_add(sim, "host", &fault), 0);
    else
        sim_fault_clear(sim, "host");
}

TEST_LOOP(a_change_that_cannot_be_recorded_does_not_happen)
{
    static const struct {
        const char *name, *checkpoint_name;
        enum sim_op op;
    } faults[] = {
        {"group.new", "group.next", SIM_OP_OPEN},
        {"group.new", "group.next", SIM_OP_WRITE},
        {"group.new", "group.next", SIM_OP_RENAME},
    };
    if (!test_loop_is_sim())
        return;
    for (size_t i = 0; i < ARRAY_LEN(faults); i++) {
        struct fix fix;
        begin(&fix, 2, GROUP_LEVEL_PROCESS);
        live_epoch(&fix);
        uint64_t epoch = epoch_of(&fix);
        set_fault(&fix, faults[i].checkpoint_name, faults[i].op, true);
        fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err), "group");
        set_fault(&fix, faults[i].name, faults[i].op, true);
        fix_refused(replication_stop(fix.s.group, false, &err), "group");
        fix_refused(replication_stop(fix.s.group, true, &err), "group");
        set_fault(&fix, "", SIM_OP_ANY, false);
        assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
        assert_int_equal(epoch_of(&fix), epoch);
        expect_live_epoch(&fix);
        kill_secondary(&fix);
        open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
        restart(&fix);
        expect_live_epoch(&fix);
        fix_ok(replication_stop(fix.s.group, true, &err));
        set_fault(&fix, "", SIM_OP_ANY, false);
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        end(&fix);
    }
}

TEST_LOOP(a_failover_that_cannot_be_recorded_again_goes_on_at_the_next_start)
{
    if (!test_loop_is_sim())
        return;
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    fix_inject(&fix.s, "sdisk", 1,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .error = -EIO});
    fix_ok(replication_stop(fix.s.group, true, &err));
    test_wait_until(job_next(&fix.s.jobs, NULL) == NULL);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    for (unsigned i = 0; i < 2; i++) {
        set_fault(&fix, "group.new", SIM_OP_WRITE, true);
        refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "cannot be recorded");
        set_fault(&fix, "", SIM_OP_ANY, false);
    }
    restart(&fix);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(fix_raw_byte(&fix, i, 0, BLOCK), 1);
        assert_int_equal(fix_raw_byte(&fix, i, BLOCK, BLOCK), 3);
    }
    end(&fix);
}

/* --- every request can be the last --- */

#define SWEEP_BLOCKS 6u
#define SWEEP_DISKS  2u

struct sweep {
    struct fix fix;
    uint64_t seen, last; /* requests; the last that has an effect */
    bool frozen;
    bool taken_over;
    /* What S's user sees, and what P has written, one byte for each block. */
    uint8_t view[SWEEP_DISKS][SWEEP_BLOCKS], primary[SWEEP_DISKS][SWEEP_BLOCKS];
};

static int sweep_hook(void *arg, const struct sim_request_info *info)
{
    struct sweep *sweep = arg;
    if (info->moment == SIM_AFTER)
        return 0;
    sweep->frozen = sweep->frozen || sweep->seen == sweep->last;
    sweep->seen += !sweep->frozen;
    return sweep->frozen ? -EIO : 0;
}

static void sweep_write(struct sweep *sweep, bool by_primary, unsigned block, uint8_t byte) MAY_WAIT
{
    for (unsigned disk = 0; disk < SWEEP_DISKS && !sweep->frozen; disk++) {
        struct edge *edge = by_primary ? sweep->fix.forward[disk] : sweep->fix.top[disk];
        uint8_t *known = by_primary ? sweep->primary[disk] : sweep->view[disk];
        bool good = fix_fill(edge, block * BLOCK, BLOCK, byte) == 0;
        if (!sweep->frozen)
            assert_true(good);
        if (good)
            known[block] = byte;
    }
}

/* A whole life; ends early when the medium does. False: it ended in the switch of an epoch, and the view is
 * of either. */
static bool sweep_live(struct sweep *sweep) MAY_WAIT
{
    struct err err = ERR_INIT;
    for (uint8_t round = 1; round <= 3 && !sweep->frozen; round++) {
        sweep_write(sweep, true, round % 3, (uint8_t)(16 * round));
        sweep_write(sweep, true, 3, (uint8_t)(16 * round + 1));
        sweep_write(sweep, false, 4, (uint8_t)(16 * round + 2));
        if (sweep->frozen || round == 3)
            break;
        int ret = replication_checkpoint(sweep->fix.s.group, DEADLINE_NEVER, NULL, &err);
        if (sweep->frozen)
            return false;
        assert_int_equal(ret, 0);
        memcpy(sweep->view, sweep->primary, sizeof(sweep->view));
    }
    if (sweep->frozen)
        return true;
    (void)replication_stop(sweep->fix.s.group, true, &err);
    sweep->taken_over = !sweep->frozen;
    test_wait_until(job_next(&sweep->fix.s.jobs, NULL) == NULL);
    return true;
}

static bool sweep_sees(struct sweep *sweep, uint8_t view[SWEEP_DISKS][SWEEP_BLOCKS]) MAY_WAIT
{
    for (unsigned disk = 0; disk < SWEEP_DISKS; disk++) {
        for (unsigned block = 0; block < SWEEP_BLOCKS; block++) {
            if (fix_byte(sweep->fix.top[disk], block * BLOCK, BLOCK) != view[disk][block])
                return false;
        }
    }
    return true;
}

static void sweep_check(struct sweep *sweep, bool one_view) MAY_WAIT
{
    struct fix *fix = &sweep->fix;
    restart(fix);
    if (!sweep_sees(sweep, sweep->view) && (one_view || !sweep_sees(sweep, sweep->primary)))
        fail_msg("after %" PRIu64 " requests the view is neither epoch's", sweep->last);
    expect_consistent(fix);
    if (sweep->taken_over && !replication_has_taken_over(fix->s.group))
        fail_msg("after %" PRIu64 " requests a failover is forgotten", sweep->last);
    if (!replication_has_taken_over(fix->s.group)) {
        assert_int_equal(fix_stage(&fix->s), REPLICATION_RUNNING);
        return;
    }
    fix_wait_stage(&fix->s, REPLICATION_DONE);
    if (!sweep_sees(sweep, sweep->view))
        fail_msg("after %" PRIu64 " requests the merge went wrong", sweep->last);
}

TEST_LOOP(whatever_request_is_the_last_the_next_start_finds_one_whole_epoch)
{
    bool ended = false;
    if (!test_loop_is_sim())
        return;
    for (uint64_t last = 0; !ended; last++) {
        struct sweep *sweep = calloc(1, sizeof(*sweep));
        assert_non_null(sweep);
        begin(&sweep->fix, SWEEP_DISKS, GROUP_LEVEL_PROCESS);
        sweep->last = last;
        sim_set_request_hook(sim_of(sweep->fix.loop), sweep_hook, sweep);
        bool one_view = sweep_live(sweep);
        ended = !sweep->frozen;
        sweep->frozen = true;
        close_secondary(&sweep->fix);
        sim_set_request_hook(sim_of(sweep->fix.loop), NULL, NULL);
        open_secondary(&sweep->fix, GROUP_LEVEL_PROCESS, boot_a);
        sweep_check(sweep, one_view);
        end(&sweep->fix);
        free(sweep);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_secondary_goes_on_at_its_last_checkpoint),
        cmocka_unit_test(a_checkpoint_counts_on_in_both_overlays),
        cmocka_unit_test(the_age_of_a_checkpoint_survives_a_restart),
        cmocka_unit_test(an_end_in_good_order_is_survived_by_every_level_and_by_another_boot),
        cmocka_unit_test(an_end_that_cannot_flush_what_the_overlays_hold_does_not_outlive_the_host),
        cmocka_unit_test(an_interrupted_failover_is_finished_and_done_is_done),
        cmocka_unit_test(a_generation_remembers_those_before_it_the_nearest_first),
        cmocka_unit_test(a_group_that_was_stopped_stays_so),
        cmocka_unit_test(
            a_disk_that_was_read_only_is_so_again_when_its_group_turns_out_to_be_stopped),
        cmocka_unit_test(undo_that_a_kill_or_a_boot_loses_makes_the_group_inconsistent),
        cmocka_unit_test(an_overlay_that_is_not_the_one_recorded_is_lost_not_empty),
        cmocka_unit_test(a_new_overlay_in_place_of_a_lost_one_is_not_taken_for_an_empty_one),
        cmocka_unit_test(an_old_copy_of_the_record_is_not_believed),
        cmocka_unit_test(a_disk_that_was_written_to_before_the_start_has_lost_its_old_content),
        cmocka_unit_test(an_inconsistent_group_takes_over_by_force_with_its_disks_as_they_are),
        cmocka_unit_test(what_is_left_of_a_failover_is_merged_by_force),
        cmocka_unit_test(a_failover_goes_on_after_a_loss_of_power_once_its_overlays_are_flushed),
        cmocka_unit_test(a_failover_whose_overlays_were_not_flushed_does_not_outlive_the_host),
        cmocka_unit_test(a_break_of_the_stream_is_remembered_until_the_disks_are_equal_again),
        cmocka_unit_test(a_stop_with_a_broken_stream_ends_as_inconsistent),
        cmocka_unit_test(a_damaged_record_is_refused_and_replaced_by_somebodys_word_alone),
        cmocka_unit_test(the_record_of_another_group_is_refused),
        cmocka_unit_test(a_state_folder_belongs_to_one_group),
        cmocka_unit_test(a_change_that_cannot_be_recorded_does_not_happen),
        cmocka_unit_test(a_failover_that_cannot_be_recorded_again_goes_on_at_the_next_start),
        cmocka_unit_test(whatever_request_is_the_last_the_next_start_finds_one_whole_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
