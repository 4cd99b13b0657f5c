/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Warnings and errors in the log are for what went wrong: what goes well leaves none. */
#include "group_state_fixture.h"

#include "base/log.h"

static void hear(void *arg, enum log_level level, const char *subject, const char *text)
{
    unsigned *loud = arg;
    if (level > LOG_LEVEL_WARNING)
        return;
    (*loud)++;
    print_message("%s %s: %s\n", log_level_name(level), subject, text);
}

static void listen_begin(unsigned *loud)
{
    *loud = 0;
    log_set_sink(hear, loud);
}

static void expect_quiet(const unsigned *loud)
{
    log_set_sink(NULL, NULL);
    assert_int_equal(*loud, 0);
}

/* All kinds of requests on both sides. */
static void use(struct fix *fix) MAY_WAIT
{
    for (unsigned i = 0; i < fix->disks; i++) {
        assert_int_equal(fix_fill(fix->forward[i], 0, 3 * BLOCK, 1), 0);
        assert_int_equal(fix_zero(fix->forward[i], BLOCK, BLOCK), 0);
        assert_int_equal(fix_discard(fix->forward[i], 2 * BLOCK, BLOCK), 0);
        assert_int_equal(io_flush(fix->forward[i]), 0);
        assert_int_equal(fix_zero(fix->top[i], BLOCK, 2 * BLOCK), 0);
        assert_int_equal(fix_discard(fix->top[i], BLOCK, BLOCK), 0);
        assert_int_equal(io_flush(fix->top[i]), 0);
    }
}

static void open_again(struct fix *fix) MAY_WAIT
{
    close_secondary(fix);
    open_secondary(fix, GROUP_LEVEL_PROCESS, boot_a);
    restart(fix);
}

TEST_LOOP(a_pair_that_is_stopped_and_ends_warns_nobody)
{
    unsigned loud;
    struct fix fix;
    listen_begin(&loud);
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    use(&fix);
    fix_checkpoint(&fix);
    use(&fix);
    open_again(&fix);
    fix_ok(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err));
    fix_ok(replication_stop(fix.s.group, false, &err));
    fix_ok(replication_stop(fix.p.group, false, &err));
    open_again(&fix);
    end(&fix);
    expect_quiet(&loud);
}

TEST_LOOP(a_pair_that_fails_over_warns_nobody)
{
    unsigned loud;
    struct fix fix;
    listen_begin(&loud);
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    use(&fix);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 9), 0);
    open_again(&fix);
    end(&fix);
    expect_quiet(&loud);
}

/* The answer tells it. */
TEST_LOOP(a_start_that_is_refused_warns_nobody)
{
    unsigned loud;
    struct fix fix;
    listen_begin(&loud);
    begin(&fix, 2, GROUP_LEVEL_PROCESS);
    live_epoch(&fix);
    close_secondary(&fix);
    open_secondary(&fix, GROUP_LEVEL_PROCESS, boot_a);
    refuse_start_for_a_reader(&fix);
    end(&fix);
    expect_quiet(&loud);
}

/* Disks that are read-only before it, and again after it. */
TEST_LOOP(a_pair_of_read_only_disks_warns_nobody)
{
    unsigned loud;
    struct fix fix;
    listen_begin(&loud);
    fix_open_empty(&fix, 1);
    fix_add_disk_file(&fix, 0);
    fix_add_image(&fix, "active", 0);
    fix_add_image(&fix, "hidden", 0);
    fix_open_secondary_disk(&fix, 0, true);
    fix_attach_secondary(&fix, 0, false);
    fix_add_primary_disk(&fix, 0);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 1), 0);
    fix_checkpoint(&fix);
    fix_ok(replication_stop(fix.s.group, false, &err));
    assert_true(fix_node(&fix.s, "sdisk", 0)->read_only);
    fix_close(&fix);
    expect_quiet(&loud);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pair_that_is_stopped_and_ends_warns_nobody),
        cmocka_unit_test(a_pair_that_fails_over_warns_nobody),
        cmocka_unit_test(a_start_that_is_refused_warns_nobody),
        cmocka_unit_test(a_pair_of_read_only_disks_warns_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
