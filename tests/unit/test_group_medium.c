/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Groups with a state folder, on a medium that fails, and in the simulator on one of which every single
 * request can be the last.
 */
#include "graph_snapshot.h"
#include "group_state_fixture.h"

#include "base/log.h"

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

static void count_warnings(void *arg, enum log_level level, const char *subject, const char *text)
{
    unsigned *count = arg;
    *count += strstr(text, "it says more than has been done") != NULL;
}

/* The change's record stands already, and a loss of power might take it back or not. */
TEST_LOOP(a_change_whose_record_cannot_be_made_durable_is_taken_back_in_the_file_too)
{
    if (!test_loop_is_sim())
        return;
    const struct sim_fault fault = {.path = test_folder(), .op = SIM_OP_SYNC_FOLDER, .error = -EIO};
    struct fix fix;
    unsigned warnings = 0;
    fix_open(&fix, 2);
    log_set_sink(count_warnings, &warnings);
    use_state(&fix, GROUP_LEVEL_PROCESS, boot_a);
    assert_int_equal(sim_fault_add(sim_of(fix.loop), "host", &fault), 0);
    refuse_start(&fix, REPLICATION_OVERLAYS_EMPTY, "cannot be made durable");
    assert_false(path_exists(fix.loop, test_path("group")));
    set_fault(&fix, "", SIM_OP_ANY, false);
    fix_start(&fix);
    live_epoch(&fix);
    struct content before = file_take("group");
    assert_int_equal(sim_fault_add(sim_of(fix.loop), "host", &fault), 0);
    fix_refused(replication_stop(fix.s.group, true, &err), "cannot be made durable");
    set_fault(&fix, "", SIM_OP_ANY, false);
    struct content after = file_take("group");
    assert_int_equal(after.length, before.length);
    assert_memory_equal(after.bytes, before.bytes, before.length);
    free(before.bytes);
    free(after.bytes);
    assert_int_equal(warnings, 0);
    log_set_sink(NULL, NULL);
    expect_live_epoch(&fix);
    end(&fix);
}

/* What shows at once costs the primary nothing; what shows only after the fence does, and is said. Either
 * way the failover can be repeated. */
TEST_LOOP(a_failover_that_cannot_be_recorded_can_be_repeated)
{
    static const enum sim_op ops[] = {SIM_OP_OPEN, SIM_OP_WRITE, SIM_OP_SYNC, SIM_OP_RENAME};
    if (!test_loop_is_sim())
        return;
    for (size_t i = 0; i < ARRAY_LEN(ops); i++) {
        bool early = ops[i] == SIM_OP_OPEN || ops[i] == SIM_OP_WRITE;
        struct fix fix;
        begin(&fix, 2, GROUP_LEVEL_PROCESS);
        live_epoch(&fix);
        set_fault(&fix, "group.new", ops[i], true);
        fix_refused(replication_stop(fix.s.group, true, &err),
                    early ? "nothing has changed" : "is shut out by now");
        assert_int_equal(fix_stage(&fix.s), REPLICATION_RUNNING);
        assert_true((fix.peer[0] != NULL) == early);
        if (early) {
            assert_int_equal(fix_fill(fix.forward[0], 9 * BLOCK, BLOCK, 7), 0);
            assert_int_equal(fix_raw_byte(&fix, 0, 9 * BLOCK, BLOCK), 7);
        }
        fix_refused(replication_stop(fix.s.group, true, &err), "no failover");
        set_fault(&fix, "", SIM_OP_ANY, false);
        expect_live_epoch(&fix);
        fix_ok(replication_stop(fix.s.group, true, &err));
        fix_wait_stage(&fix.s, REPLICATION_DONE);
        assert_int_equal(fix_raw_byte(&fix, 1, 0, BLOCK), 1);
        assert_int_equal(fix_raw_byte(&fix, 1, BLOCK, BLOCK), 3);
        end(&fix);
    }
}

TEST_LOOP(a_forced_failover_that_cannot_be_recorded_does_not_happen)
{
    if (!test_loop_is_sim())
        return;
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    kill_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_b);
    restart(&fix);
    expect_inconsistent(&fix, "host was started again");
    fix_detach(&fix); /* else the fence takes the peer's way in */
    struct snapshot *before = snapshot_take(fix.s.graph);
    set_fault(&fix, "group.new", SIM_OP_WRITE, true);
    fix_refused(replication_force_failover(fix.s.group, &err), "group");
    snapshot_expect(fix.s.graph, before);
    set_fault(&fix, "", SIM_OP_ANY, false);
    assert_false(replication_has_taken_over(fix.s.group));
    fix_ok(replication_force_failover(fix.s.group, &err));
    assert_true(replication_has_taken_over(fix.s.group));
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(fix_raw_byte(&fix, i, 0, BLOCK), 2);
    end(&fix);
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

/* What S's user flushes lies around what the overlays held at the failover. */
TEST_LOOP(a_flush_after_a_failover_promises_nothing_that_a_loss_of_power_would_take)
{
    if (!test_loop_is_sim())
        return;
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO, .error = -EIO};
    struct fix fix;
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    /* The failover is tried and recorded; that it survives a loss of power is not. */
    const struct sim_fault fault = {
        .path = test_path("group.new"), .op = SIM_OP_WRITE, .nth = 3, .error = -EIO};
    assert_int_equal(sim_fault_add(sim_of(fix.loop), "host", &fault), 0);
    for (unsigned i = 0; i < 2; i++)
        fix_inject(&fix.s, "sdisk", i, rule);
    fix_ok(replication_stop(fix.s.group, true, &err));
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(io_flush(fix.top[i]), -EIO);
        assert_int_equal(fix_fill_as(fix.top[i], 0, BLOCK, 9, IO_FUA), -EIO);
    }
    fix_wait_stage(&fix.s, REPLICATION_FAILOVER_FAILED);
    assert_int_equal(io_flush(fix.top[0]), -EIO);
    set_fault(&fix, "", SIM_OP_ANY, false);
    assert_int_equal(io_flush(fix.top[0]), 0); /* tried again */
    for (unsigned i = 0; i < 2; i++)
        blkdebug_remove(fix_node(&fix.s, "sdisk", i), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(io_flush(fix.top[i]), 0);
        assert_int_equal(fix_fill_as(fix.top[i], 0, BLOCK, 9, IO_FUA), 0);
    }
    fix_wait_stage(&fix.s, REPLICATION_DONE);
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
        cmocka_unit_test(a_change_that_cannot_be_recorded_does_not_happen),
        cmocka_unit_test(
            a_change_whose_record_cannot_be_made_durable_is_taken_back_in_the_file_too),
        cmocka_unit_test(a_failover_that_cannot_be_recorded_can_be_repeated),
        cmocka_unit_test(a_forced_failover_that_cannot_be_recorded_does_not_happen),
        cmocka_unit_test(a_failover_that_cannot_be_recorded_again_goes_on_at_the_next_start),
        cmocka_unit_test(a_flush_after_a_failover_promises_nothing_that_a_loss_of_power_would_take),
        cmocka_unit_test(whatever_request_is_the_last_the_next_start_finds_one_whole_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
