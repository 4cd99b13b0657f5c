/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a primary's log says of its session, and what it does not. */
#include "peer_rig.h"

TEST_LOOP(a_session_that_goes_well_warns_nobody)
{
    struct heard warnings = {LOG_LEVEL_WARNING, "", 0, ""};
    struct rig rig;
    log_set_sink(hear, &warnings);
    rig_begin(&rig);
    start_well(&rig);
    checkpoint_well(&rig, 41);
    unsigned looks = rig.fake.looks;
    fake_says(&rig.fake, "{\"event\":\"REPLICATION_STAGE_CHANGE\",\"data\":{}}");
    test_wait_until(rig.fake.looks > looks);
    checkpoint_well(&rig, 42);
    log_set_sink(NULL, NULL);
    assert_int_equal(warnings.count, 0);
    rig_end(&rig);
}

TEST_LOOP(a_secondary_that_takes_over_while_the_primary_lives_is_told_of_loudly_and_once)
{
    static const char event[] = "{\"event\":\"REPLICATION_STAGE_CHANGE\",\"data\":{}}";
    struct heard heard = {LOG_LEVEL_ERROR, "has taken over", 0, ""};
    struct rig rig;
    struct err err = ERR_INIT;
    rig_begin(&rig);
    start_well(&rig);
    log_set_sink(hear, &heard);
    fake_says(&rig.fake, event); /* another stage is no news */
    test_wait_until(rig.fake.looks == 2);
    rig.fake.stage = "failover";
    fake_says(&rig.fake, event);
    fake_says(&rig.fake, event);
    test_wait_until(json_flag(last_event(&rig, "REPLICATION_PEER"), "taken-over"));
    rig.fake.fault = (struct fake_fault){
        .kind = FAKE_REFUSE, .command = "replication-hello", .text = "it has taken over"};
    fake_cut(&rig.fake);
    test_wait_until(count_events(&rig, "REPLICATION_PEER") == 4);
    log_set_sink(NULL, NULL);
    expect_advice(&heard, " UTC: the secondary at ");
    expect_advice(&heard, "(blockstep secondary --sync)");
    assert_true(checkpoint(&rig, NS_PER_S, NULL, &err) < 0);
    expect_error(&rig, "session");
    rig_end(&rig);
}

TEST_LOOP(a_takeover_that_is_learnt_from_a_refused_hello_is_told_of_as_loudly)
{
    struct heard heard = {LOG_LEVEL_ERROR, "is the old copy now", 0, ""};
    struct rig rig;
    struct json_object *query;
    rig_begin(&rig);
    start_well(&rig);
    log_set_sink(hear, &heard);
    rig.fake.stage = "failover-failed";
    rig.fake.fault = (struct fake_fault){.kind = FAKE_REFUSE,
                                         .command = "replication-hello",
                                         .text = "the caller is an old primary"};
    fake_cut(&rig.fake);
    test_wait_until(rig.fake.connections == 2 && !is_connected(&rig) &&
                    replication_error_of(graph_find(rig.world.graph, "repl"))->count > 0);
    log_set_sink(NULL, NULL);
    expect_advice(&heard, "(blockstep secondary --sync)");
    assert_true(json_flag(peer_of(&rig, &query), "taken-over"));
    json_object_put(query);
    expect_error(&rig, "");
    rig_end(&rig);
}

TEST_LOOP(a_start_onto_a_stream_that_has_begun_warns_at_once_and_says_what_to_type)
{
    for (unsigned sync = 0; sync < 2; sync++) {
        struct heard heard = {LOG_LEVEL_WARNING, "takes no checkpoint", 0, ""};
        struct rig rig;
        struct err err = ERR_INIT;
        rig_begin(&rig);
        rig.fake.stream_reason = "the primary was started anew and has not synchronised";
        log_set_sink(hear, &heard);
        assert_int_equal(
            start(&rig, sync > 0 ? REPLICATION_OVERLAYS_SYNC : REPLICATION_OVERLAYS_EMPTY, &err),
            0);
        log_set_sink(NULL, NULL);
        assert_int_equal(heard.count, sync == 0);
        if (sync == 0)
            expect_advice(&heard,
                          "started anew and has not synchronised; synchronise the disks and "
                          "start anew (blockstep primary --sync)");
        assert_true(checkpoint(&rig, NS_PER_S, NULL, &err) < 0);
        assert_non_null(strstr(err.text, "(blockstep primary --sync)"));
        rig_end(&rig);
    }
}

TEST_LOOP(an_error_here_is_reported_once_also_when_the_secondary_is_away_just_then)
{
    struct heard refusals = {LOG_LEVEL_WARNING, "is not taken", 0, ""};
    struct rig rig;
    struct err err = ERR_INIT;
    log_set_sink(hear, &refusals);
    rig_begin(&rig);
    add_primary(&rig, "link2", "repl2", rig.fake.address.path);
    struct edge *second = blocks_root(rig.world.graph, graph_find(rig.world.graph, "repl2"), "two");
    start_well(&rig);
    rig.fake.fault = (struct fake_fault){
        .kind = FAKE_BEFORE, .command = "replication-report", .times = 1};
    nbd_client_shutdown(nbd_client_of(graph_find(rig.world.graph, "link")), -ECONNRESET);
    assert_int_equal(blocks_write(rig.forward, 512, 4096, 1, 0), 0);
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
    test_wait_until(rig.fake.reports == 1);
    co_sleep(20 * NS_PER_MS); /* an answer that is lost costs a second report */
    struct json_object *error = json_member(rig.fake.report, "error");
    assert_int_equal(json_uint(rig.fake.report, "session"), 7);
    assert_string_equal(json_text(error, "side"), "primary");
    assert_string_equal(json_text(error, "operation"), "forward write");
    assert_int_equal(json_uint(error, "offset"), 512);
    assert_string_equal(json_text(error, "errno"), "ECONNRESET");
    nbd_client_shutdown(nbd_client_of(graph_find(rig.world.graph, "link2")), -ECONNRESET);
    assert_int_equal(blocks_write(second, 0, 4096, 1, 0), 0);
    assert_true(checkpoint(&rig, NS_PER_S, NULL, &err) < 0);
    fake_cut(&rig.fake);
    test_wait_until(rig.fake.hellos == 3 && is_connected(&rig));
    co_sleep(20 * NS_PER_MS); /* for a second one, which shall not come */
    assert_int_equal(rig.fake.reports, 1);
    assert_int_equal(rig.fake.checkpoints, 0);
    log_set_sink(NULL, NULL);
    assert_int_equal(refusals.count, 0);
    graph_detach(second);
    rig_end(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_session_that_goes_well_warns_nobody),
        cmocka_unit_test(
            a_secondary_that_takes_over_while_the_primary_lives_is_told_of_loudly_and_once),
        cmocka_unit_test(a_takeover_that_is_learnt_from_a_refused_hello_is_told_of_as_loudly),
        cmocka_unit_test(a_start_onto_a_stream_that_has_begun_warns_at_once_and_says_what_to_type),
        cmocka_unit_test(an_error_here_is_reported_once_also_when_the_secondary_is_away_just_then),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
