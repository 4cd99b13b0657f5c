/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mark of the stream: who writes to the secondary disks, one after the other, and when what they
 * wrote is not believed any more; and the primary's sessions. The tests are the exports: they ask for
 * each writer.
 */
#include "fail_alloc.h"
#include "replication_fixture.h"

#include "loop/sim.h"
#include "replication/group_internal.h"

#define BLOCK  4096u
#define FIRST  0x1111111111111111u
#define SECOND 0x2222222222222222u

struct stage {
    struct fix fix;
    unsigned renewed, cut;
    uint64_t cut_for; /* the instance that stayed */
    size_t cut_roots;
    uint64_t connections;
};

static void renew(void *arg)
{
    struct stage *stage = arg;
    stage->renewed++;
}

static void cut_others(void *arg, struct edge *const *roots, size_t count, uint64_t instance)
    MAY_WAIT
{
    struct stage *stage = arg;
    stage->cut++;
    stage->cut_for = instance;
    stage->cut_roots = count;
    co_yield();
}

/* The fixture's fence works on its own part of the stage. */
static int fence(void *arg, struct edge *const *roots, size_t count, struct err *err) MAY_WAIT
{
    struct stage *stage = arg;
    return fix_fence(&stage->fix, roots, count, err);
}

static void own(struct stage *stage)
{
    stage->fix.owner = (struct replication_owner){
        .fence = fence, .renew = renew, .cut_others = cut_others, .arg = stage};
}

static void use_state(struct stage *stage) MAY_WAIT
{
    const struct replication_state state = {
        .folder = test_folder(), .level = GROUP_LEVEL_PROCESS, .boot_id = "boot"};
    fix_ok(replication_use_state(stage->fix.s.group, &state, &err));
}

static void start(struct stage *stage, enum replication_overlays overlays) MAY_WAIT
{
    fix_ok(replication_start(stage->fix.s.group, REPLICATION_SECONDARY, overlays, &err));
}

static void begin(struct stage *stage, enum replication_overlays overlays) MAY_WAIT
{
    *stage = (struct stage){.renewed = 0};
    fix_open(&stage->fix, 2);
    own(stage);
    use_state(stage);
    start(stage, overlays);
}

static void end(struct stage *stage) MAY_WAIT
{
    fix_detach(&stage->fix);
    fix_close_side(&stage->fix.s);
    fix_close_side(&stage->fix.p);
    (void)path_unlink(stage->fix.loop, test_path("group"));
    test_folder_remove();
}

/* The secondary's daemon ends and starts again. */
static void restart(struct stage *stage) MAY_WAIT
{
    struct fix *fix = &stage->fix;
    for (unsigned i = 0; i < fix->disks; i++) {
        graph_detach(TAKE_PTR(fix->top[i]));
        graph_detach(TAKE_PTR(fix->peer[i]));
    }
    fix_close_side(&fix->s);
    fix_side_init(fix, &fix->s);
    use_state(stage);
    for (unsigned i = 0; i < fix->disks; i++) {
        fix_open_secondary_disk(fix, i, false);
        fix_attach_secondary(fix, i, true);
    }
    start(stage, REPLICATION_OVERLAYS_EMPTY);
}

/* --- writers --- */

static struct replication_writer connect(struct stage *stage, unsigned disk, uint64_t instance)
{
    return (struct replication_writer){
        .root = stage->fix.peer[disk],
        .connection = ++stage->connections,
        .instance = instance,
    };
}

static int admit(struct stage *stage, const struct replication_writer *writer) MAY_WAIT
{
    return replication_admit(stage->fix.s.group, writer);
}

static void write_as(struct stage *stage, const struct replication_writer *writer) MAY_WAIT
{
    assert_int_equal(admit(stage, writer), 0);
}

static void leave(struct stage *stage, const struct replication_writer *writer, bool orderly)
{
    replication_writer_ended(stage->fix.s.group, writer, orderly);
}

static void expect_intact(struct stage *stage) MAY_WAIT
{
    fix_ok(replication_checkpoint(stage->fix.s.group, DEADLINE_NEVER, NULL, &err));
    fix_ok(replication_get_error(stage->fix.s.group, &err));
}

static void expect_broken(struct stage *stage, const char *why) MAY_WAIT
{
    fix_refused(replication_checkpoint(stage->fix.s.group, DEADLINE_NEVER, NULL, &err), why);
    fix_refused(replication_get_error(stage->fix.s.group, &err), "synchronisation");
}

static void synchronise(struct stage *stage) MAY_WAIT
{
    uint64_t epoch;
    fix_ok(replication_first_checkpoint(stage->fix.s.group, DEADLINE_NEVER, &epoch, &err));
}

/* --- one after the other --- */

TEST_LOOP(one_primary_writes_through_many_checkpoints)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer a = connect(&stage, 0, FIRST), b = connect(&stage, 1, FIRST);
    for (unsigned i = 0; i < 3; i++) {
        write_as(&stage, &a);
        write_as(&stage, &b);
        expect_intact(&stage);
    }
    end(&stage);
}

TEST_LOOP(who_follows_a_writer_that_left_in_good_order_is_believed)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer first = connect(&stage, 0, FIRST);
    write_as(&stage, &first);
    leave(&stage, &first, true);
    struct replication_writer second = connect(&stage, 0, 0);
    write_as(&stage, &second);
    expect_intact(&stage);
    end(&stage);
}

TEST_LOOP(who_follows_a_writer_that_was_lost_is_not_believed_until_a_synchronisation)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer first = connect(&stage, 0, FIRST);
    write_as(&stage, &first);
    unsigned renewed = stage.renewed;
    leave(&stage, &first, false);
    assert_true(stage.renewed > renewed);
    /* What is there is whole, as long as nobody goes on with it. */
    expect_intact(&stage);
    struct replication_writer second = connect(&stage, 0, SECOND);
    write_as(&stage, &second);
    expect_broken(&stage, "connection 1 of 1111111111111111");
    expect_broken(&stage, "connection 2 of 2222222222222222");
    restart(&stage);
    expect_broken(&stage, "was lost");
    synchronise(&stage);
    struct replication_writer third = connect(&stage, 0, SECOND);
    write_as(&stage, &third);
    expect_intact(&stage);
    end(&stage);
}

TEST_LOOP(the_link_of_one_disk_that_is_lost_stops_the_others_too)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer a = connect(&stage, 0, FIRST), b = connect(&stage, 1, FIRST);
    write_as(&stage, &a);
    write_as(&stage, &b);
    leave(&stage, &a, false);
    write_as(&stage, &b);
    expect_broken(&stage, "was lost");
    end(&stage);
}

struct admission {
    struct stage *stage;
    struct replication_writer writer;
    int result;
    bool done;
};

static void admission_run(void *arg) MAY_WAIT
{
    struct admission *admission = arg;
    admission->result = admit(admission->stage, &admission->writer);
    admission->done = true;
}

/* One write to each disk in one turn. */
static void write_at_once(struct stage *stage, uint64_t instance) MAY_WAIT
{
    struct admission admissions[2];
    for (unsigned i = 0; i < 2; i++) {
        admissions[i] = (struct admission){.stage = stage, .writer = connect(stage, i, instance)};
        assert_int_equal(co_spawn(stage->fix.loop, "write", admission_run, &admissions[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        test_wait_until(admissions[i].done);
        assert_int_equal(admissions[i].result, 0);
    }
}

TEST_LOOP(writes_that_come_at_once_are_recorded_once)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    write_at_once(&stage, FIRST);
    uint64_t changes = stage.fix.s.group->record_changes;
    expect_intact(&stage);
    assert_int_equal(stage.fix.s.group->record_changes, changes + 1); /* the checkpoint's */
    restart(&stage);
    changes = stage.fix.s.group->record_changes;
    write_at_once(&stage, SECOND);
    assert_int_equal(stage.fix.s.group->record_changes, changes + 1);
    expect_broken(&stage, "was started again while a primary was writing");
    synchronise(&stage);
    write_at_once(&stage, SECOND);
    expect_intact(&stage);
    end(&stage);
}

TEST_LOOP(two_writers_of_one_disk_are_not_believed)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer first = connect(&stage, 0, FIRST);
    struct replication_writer second = connect(&stage, 0, FIRST);
    write_as(&stage, &first);
    second.former = first.connection;
    write_as(&stage, &second);
    expect_broken(&stage, "while connection 1 does too");
    end(&stage);
}

TEST_LOOP(who_never_wrote_is_no_loss)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer nobodys = connect(&stage, 0, 0), idle = connect(&stage, 0, FIRST);
    struct replication_writer second = connect(&stage, 0, SECOND);
    leave(&stage, &nobodys, false);
    leave(&stage, &idle, true);
    write_as(&stage, &second);
    expect_intact(&stage);
    leave(&stage, &second, true);
    struct replication_writer third = connect(&stage, 0, SECOND);
    write_as(&stage, &third);
    expect_intact(&stage);
    end(&stage);
}

TEST_LOOP(the_user_of_the_secondary_is_not_the_peer)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer user = {.root = stage.fix.top[0], .connection = 1};
    write_as(&stage, &user);
    leave(&stage, &user, false);
    user.former = 7;
    write_as(&stage, &user);
    struct replication_writer primary = connect(&stage, 0, FIRST);
    write_as(&stage, &primary);
    expect_intact(&stage);
    end(&stage);
}

/* --- restarts --- */

TEST_LOOP(after_a_restart_nobody_is_believed_who_goes_on_writing)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer first = connect(&stage, 0, FIRST);
    write_as(&stage, &first);
    restart(&stage);
    expect_intact(&stage);
    struct replication_writer second = connect(&stage, 0, FIRST);
    write_as(&stage, &second);
    expect_broken(&stage, "started again");
    end(&stage);
}

TEST_LOOP(a_secondary_that_nobody_wrote_to_restarts_as_if_nothing_had_been)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    expect_intact(&stage);
    restart(&stage);
    struct replication_writer first = connect(&stage, 0, FIRST);
    write_as(&stage, &first);
    expect_intact(&stage);
    end(&stage);
}

/* --- synchronisation --- */

TEST_LOOP(during_the_first_synchronisation_everybody_may_write_and_then_it_counts)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_SYNC);
    struct replication_writer mirror = connect(&stage, 0, FIRST),
                              primary = connect(&stage, 0, FIRST);
    write_as(&stage, &mirror);
    primary.former = mirror.connection;
    write_as(&stage, &primary);
    leave(&stage, &mirror, false);
    unsigned renewed = stage.renewed;
    synchronise(&stage);
    assert_true(stage.renewed > renewed);
    /* It is the primary that has synchronised which goes on; who comes after it is a stranger, also
     * when it has written nothing since. */
    expect_intact(&stage);
    leave(&stage, &primary, false);
    struct replication_writer second = connect(&stage, 0, SECOND);
    write_as(&stage, &second);
    expect_broken(&stage, "was lost");
    end(&stage);
}

TEST_LOOP(a_mended_stream_breaks_again)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    for (unsigned i = 0; i < 3; i++) {
        struct replication_writer first = connect(&stage, 0, FIRST);
        write_as(&stage, &first);
        leave(&stage, &first, false);
        struct replication_writer second = connect(&stage, 0, SECOND);
        write_as(&stage, &second);
        expect_broken(&stage, "was lost");
        synchronise(&stage);
        write_as(&stage, &second);
        expect_intact(&stage);
        leave(&stage, &second, true);
    }
    end(&stage);
}

/* --- what cannot be recorded --- */

static void fail_records(struct stage *stage, bool on) MAY_WAIT
{
    struct sim *sim = sim_of(stage->fix.loop);
    const struct sim_fault fault = {
        .path = test_path("group.new"), .op = SIM_OP_OPEN, .error = -ENOSPC};
    if (on)
        assert_int_equal(sim_fault_add(sim, "host", &fault), 0);
    else
        sim_fault_clear(sim, "host");
}

TEST_LOOP(a_write_whose_meaning_cannot_be_recorded_is_refused)
{
    if (!test_loop_is_sim())
        return;
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_writer first = connect(&stage, 0, FIRST);
    fail_records(&stage, true);
    assert_int_equal(admit(&stage, &first), -EIO);
    fail_records(&stage, false);
    write_as(&stage, &first);
    leave(&stage, &first, false);
    struct replication_writer second = connect(&stage, 0, SECOND);
    fail_records(&stage, true);
    assert_int_equal(admit(&stage, &second), -EIO);
    expect_intact(&stage); /* nothing has landed */
    fail_records(&stage, false);
    write_as(&stage, &second);
    expect_broken(&stage, "was lost");
    end(&stage);
}

/* --- sessions --- */

static void begin_session(struct stage *stage, uint64_t instance, bool resync) MAY_WAIT
{
    const struct replication_hello hello = {.instance = instance, .resync = resync};
    fix_ok(replication_session_begin(stage->fix.s.group, &hello, &err));
}

static uint64_t session_number(struct stage *stage)
{
    return replication_session(stage->fix.s.group).number;
}

static int cut(struct stage *stage, const struct replication_cut *cut, struct err *err) MAY_WAIT
{
    struct replication_cut own = *cut;
    own.deadline_ns = DEADLINE_NEVER;
    return replication_cut(stage->fix.s.group, &own, NULL, err);
}

static uint64_t epoch_of(struct stage *stage) MAY_WAIT
{
    CLEANUP(json_putp)
    struct json_object *answer = replication_session_answer(stage->fix.s.group);
    struct json_object *epoch = NULL;
    assert_non_null(answer);
    replication_session_answer_fill(stage->fix.s.group, answer);
    json_object_object_get_ex(answer, "epoch", &epoch);
    return json_object_get_uint64(epoch);
}

TEST_LOOP(a_session_has_the_disks_for_itself_while_it_is_connected)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    unsigned renewed = stage.renewed;
    begin_session(&stage, FIRST, false);
    assert_true(stage.renewed > renewed);
    assert_int_equal(stage.cut, 1);
    assert_int_equal(stage.cut_roots, 2);
    assert_true(stage.cut_for == FIRST);
    struct replication_writer own = connect(&stage, 0, FIRST), other = connect(&stage, 1, SECOND);
    struct replication_writer nobody = connect(&stage, 1, 0);
    struct replication_writer user = {.root = stage.fix.top[0], .connection = 99};
    write_as(&stage, &own);
    write_as(&stage, &user);
    assert_int_equal(admit(&stage, &other), -EPERM);
    assert_int_equal(admit(&stage, &nobody), -EPERM);
    fix_refused(replication_checkpoint(stage.fix.s.group, DEADLINE_NEVER, NULL, &err),
                "ask the primary");
    struct replication_cut asked = {.session = 1};
    fix_ok(cut(&stage, &asked, &err));
    replication_session_left(stage.fix.s.group, "gone");
    fix_refused(cut(&stage, &asked, &err), "session 1 has ended");
    expect_intact(&stage);
    assert_int_equal(fix_count_events(&stage.fix.s, "REPLICATION_PEER"), 2);
    end(&stage);
}

TEST_LOOP(a_session_that_hangs_on_says_nothing_to_who_has_taken_over)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    begin_session(&stage, FIRST, false);
    fix_ok(replication_stop(stage.fix.s.group, true, &err));
    fix_ok(replication_checkpoint(stage.fix.s.group, DEADLINE_NEVER, NULL, &err));
    fix_wait_stage(&stage.fix.s, REPLICATION_DONE);
    assert_true(replication_session(stage.fix.s.group).connected);
    fix_ok(replication_checkpoint(stage.fix.s.group, DEADLINE_NEVER, NULL, &err));
    end(&stage);
}

TEST_LOOP(a_checkpoint_that_is_asked_for_again_is_taken_once)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    begin_session(&stage, FIRST, true);
    uint64_t live = epoch_of(&stage);
    struct replication_cut asked = {.session = 1, .epoch = live + 1, .first = true};
    for (unsigned i = 0; i < 3; i++) {
        fix_ok(cut(&stage, &asked, &err));
        assert_int_equal(epoch_of(&stage), live + 1);
    }
    asked = (struct replication_cut){.session = 1, .epoch = live + 2};
    for (unsigned i = 0; i < 3; i++) {
        fix_ok(cut(&stage, &asked, &err));
        assert_int_equal(epoch_of(&stage), live + 2);
    }
    asked.epoch = live + 1;
    fix_ok(cut(&stage, &asked, &err));
    asked.epoch = live + 4;
    fix_refused(cut(&stage, &asked, &err), "cannot follow");
    assert_int_equal(epoch_of(&stage), live + 2);
    end(&stage);
}

TEST_LOOP(only_the_first_primary_is_believed_without_a_synchronisation)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    begin_session(&stage, FIRST, false);
    struct replication_cut asked = {.session = 1};
    fix_ok(cut(&stage, &asked, &err));
    /* It has written nothing that came here; what it kept for itself nobody knows. */
    begin_session(&stage, SECOND, false);
    asked.session = session_number(&stage);
    assert_int_equal(asked.session, 2);
    fix_refused(cut(&stage, &asked, &err), "started anew and has not synchronised");
    asked.first = true;
    fix_ok(cut(&stage, &asked, &err));
    asked.first = false;
    fix_ok(cut(&stage, &asked, &err));
    /* Nor is who comes after the one that has synchronised. */
    begin_session(&stage, FIRST, false);
    asked.session = 3;
    fix_refused(cut(&stage, &asked, &err), "started anew");
    restart(&stage);
    expect_broken(&stage, "started anew");
    end(&stage);
}

/* What it has written may all have been lost on its way. */
TEST_LOOP(a_primary_that_was_lost_before_its_first_write_came_is_no_less_lost)
{
    for (unsigned greets = 0; greets < 2; greets++) {
        struct stage stage;
        begin(&stage, REPLICATION_OVERLAYS_EMPTY);
        struct replication_writer first = connect(&stage, 0, FIRST);
        unsigned renewed = stage.renewed;
        leave(&stage, &first, false);
        assert_int_equal(stage.renewed, renewed + 1);
        expect_intact(&stage); /* until somebody follows it */
        if (greets > 0)
            begin_session(&stage, SECOND, false);
        struct replication_writer second = connect(&stage, 1, SECOND);
        write_as(&stage, &second);
        if (greets > 0)
            replication_session_left(stage.fix.s.group, NULL);
        expect_broken(&stage, greets > 0 ? "has not synchronised" : "was lost, and perhaps writes");
        synchronise(&stage);
        expect_intact(&stage);
        end(&stage);
    }
}

TEST_LOOP(a_session_goes_on_for_the_same_instance_alone)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    struct replication_hello hello = {.instance = FIRST, .session = 1};
    fix_refused(replication_session_begin(stage.fix.s.group, &hello, &err), "started again");
    begin_session(&stage, FIRST, false);
    replication_session_left(stage.fix.s.group, "gone");
    struct json_object *event = fix_last_event(&stage.fix.s, "REPLICATION_PEER");
    assert_false(json_flag(event, "connected"));
    assert_string_equal(json_text(event, "reason"), "gone");
    fix_ok(replication_session_begin(stage.fix.s.group, &hello, &err));
    assert_int_equal(fix_count_events(&stage.fix.s, "REPLICATION_PEER"), 3);
    event = fix_last_event(&stage.fix.s, "REPLICATION_PEER");
    assert_true(json_flag(event, "connected"));
    assert_string_equal(json_text(event, "role"), "secondary");
    assert_int_equal(json_uint(event, "session"), 1);
    assert_true(replication_session(stage.fix.s.group).connected);
    struct replication_cut asked = {.session = 1};
    fix_ok(cut(&stage, &asked, &err));
    hello.instance = SECOND;
    fix_refused(replication_session_begin(stage.fix.s.group, &hello, &err), "session 1 of 2222");
    hello = (struct replication_hello){.instance = FIRST, .session = 2};
    fix_refused(replication_session_begin(stage.fix.s.group, &hello, &err), "is with session 1");
    fix_ok(cut(&stage, &asked, &err));
    end(&stage);
}

TEST_LOOP(the_answer_to_a_hello_needs_no_memory_once_the_session_has_begun)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    CLEANUP(json_putp)
    struct json_object *answer = replication_session_answer(stage.fix.s.group);
    assert_non_null(answer);
    begin_session(&stage, FIRST, true);
    fail_alloc_begin(0, false, NULL);
    replication_session_answer_fill(stage.fix.s.group, answer);
    assert_int_equal(fail_alloc_end(), 0);
    assert_int_equal(json_uint(answer, "session"), 1);
    assert_int_equal(json_uint(answer, "epoch"), 1);
    assert_true(json_flag(answer, "consistent"));
    assert_null(json_member(answer, "inconsistent-reason"));
    assert_false(json_flag(answer, "stream-intact"));
    assert_string_equal(json_text(answer, "stream-reason"), "a synchronisation is under way");
    assert_string_equal(json_text(answer, "durability"), "process");
    end(&stage);
}

TEST_LOOP(a_session_that_cannot_be_recorded_does_not_begin)
{
    if (!test_loop_is_sim())
        return;
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    const struct replication_hello hello = {.instance = FIRST};
    fail_records(&stage, true);
    fix_refused(replication_session_begin(stage.fix.s.group, &hello, &err), "cannot be recorded");
    assert_false(replication_session(stage.fix.s.group).connected);
    fail_records(&stage, false);
    begin_session(&stage, FIRST, false);
    struct replication_cut asked = {.session = session_number(&stage)};
    fix_ok(cut(&stage, &asked, &err));
    end(&stage);
}

TEST_LOOP(what_the_primary_reports_breaks_the_stream_until_it_has_synchronised)
{
    struct stage stage;
    begin(&stage, REPLICATION_OVERLAYS_EMPTY);
    begin_session(&stage, FIRST, false);
    CLEANUP(json_putp) struct json_object *error = json_object_new_object();
    fix_refused(replication_session_report(stage.fix.s.group, 2, error, "late", &err), "ended");
    fix_ok(replication_session_report(stage.fix.s.group, 1, error, "a write was lost", &err));
    fix_ok(replication_session_report(stage.fix.s.group, 1, error, "another too", &err));
    struct replication_cut asked = {.session = 1};
    fix_refused(cut(&stage, &asked, &err), "the primary reports: a write was lost");
    CLEANUP(json_putp) struct json_object *query = replication_query(stage.fix.s.group);
    assert_true(json_object_object_get_ex(query, "peer-error", NULL));
    asked.first = true;
    fix_ok(cut(&stage, &asked, &err));
    json_object_put(query);
    query = replication_query(stage.fix.s.group);
    assert_false(json_object_object_get_ex(query, "peer-error", NULL));
    end(&stage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_primary_writes_through_many_checkpoints),
        cmocka_unit_test(who_follows_a_writer_that_left_in_good_order_is_believed),
        cmocka_unit_test(
            who_follows_a_writer_that_was_lost_is_not_believed_until_a_synchronisation),
        cmocka_unit_test(the_link_of_one_disk_that_is_lost_stops_the_others_too),
        cmocka_unit_test(writes_that_come_at_once_are_recorded_once),
        cmocka_unit_test(two_writers_of_one_disk_are_not_believed),
        cmocka_unit_test(who_never_wrote_is_no_loss),
        cmocka_unit_test(a_primary_that_was_lost_before_its_first_write_came_is_no_less_lost),
        cmocka_unit_test(the_user_of_the_secondary_is_not_the_peer),
        cmocka_unit_test(after_a_restart_nobody_is_believed_who_goes_on_writing),
        cmocka_unit_test(a_secondary_that_nobody_wrote_to_restarts_as_if_nothing_had_been),
        cmocka_unit_test(during_the_first_synchronisation_everybody_may_write_and_then_it_counts),
        cmocka_unit_test(a_mended_stream_breaks_again),
        cmocka_unit_test(a_write_whose_meaning_cannot_be_recorded_is_refused),
        cmocka_unit_test(a_session_has_the_disks_for_itself_while_it_is_connected),
        cmocka_unit_test(a_session_that_hangs_on_says_nothing_to_who_has_taken_over),
        cmocka_unit_test(a_checkpoint_that_is_asked_for_again_is_taken_once),
        cmocka_unit_test(only_the_first_primary_is_believed_without_a_synchronisation),
        cmocka_unit_test(a_session_goes_on_for_the_same_instance_alone),
        cmocka_unit_test(the_answer_to_a_hello_needs_no_memory_once_the_session_has_begun),
        cmocka_unit_test(a_session_that_cannot_be_recorded_does_not_begin),
        cmocka_unit_test(what_the_primary_reports_breaks_the_stream_until_it_has_synchronised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
