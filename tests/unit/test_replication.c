/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The first table of docs/semantics.md: what each call does in each stage; options, and the marker. */
#include "replication_stages.h"

/* --- options --- */

static void refuse_options(struct fix *fix, const char *options, const char *part) MAY_WAIT
{
    struct err err = ERR_INIT;
    int ret = fix_try_add(fix->p.graph, &err, "{'driver':'replication','node-name':'bad',%s}",
                          options);
    assert_true(ret < 0);
    if (strstr(err.text, part) == NULL)
        fail_msg("%s: '%s' does not say '%s'", options, err.text, part);
    assert_null(graph_find(fix->p.graph, "bad"));
}

TEST_LOOP(wrong_options_are_refused_by_name)
{
    struct fix fix;
    fix_open_empty(&fix, 0);
    fix_add(fix.p.graph, "{'driver':'test-link','node-name':'link','size':1048576}");
    refuse_options(&fix, "'file':'link'", "mode");
    refuse_options(&fix, "'mode':'both','file':'link'", "mode");
    refuse_options(&fix, "'mode':'primary'", "file");
    refuse_options(&fix, "'mode':'secondary','file':'link'", "top-id");
    refuse_options(&fix, "'mode':'primary','top-id':'x','file':'link'", "top-id");
    refuse_options(&fix, "'mode':'primary','file':'link','peer-ack':'flush'", "not supported yet");
    refuse_options(&fix, "'mode':'primary','file':'link','peer-ack':'none'", "not supported yet");
    refuse_options(&fix, "'mode':'primary','file':'link','peer-ack':'always'", "peer-ack");
    refuse_options(&fix, "'mode':'primary','file':'link','peer-control':'h:1'", "peer-control");
    refuse_options(&fix, "'mode':'primary','file':'link','max-lag-bytes':1", "max-lag-bytes");
    refuse_options(&fix, "'mode':'primary','file':'link','overflow':'throttle'", "overflow");
    refuse_options(&fix, "'mode':'primary','file':'link','request-timeout':1", "request-timeout");
    refuse_options(&fix, "'mode':'primary','file':'link','on-peer-loss':'hold'", "on-peer-loss");
    fix_add(fix.p.graph,
            "{'driver':'replication','node-name':'good','mode':'primary','file':'link',"
            "'peer-ack':'write'}");
    fix_close(&fix);
}

static const char *described(struct json_object *object, const char *key)
{
    return json_object_get_string(json_object_object_get(object, key));
}

TEST_LOOP(a_node_tells_its_mode_its_stage_and_what_its_users_sit_on)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    struct node *nodes[] = {fix_node(&fix.p, "prep", 0), fix_node(&fix.s, "rep", 0)};
    for (unsigned i = 0; i < 2; i++) {
        CLEANUP(json_putp) struct json_object *object = json_object_new_object();
        assert_int_equal(nodes[i]->driver->describe(nodes[i], object), 0);
        assert_string_equal(described(object, "mode"), i == 0 ? "primary" : "secondary");
        assert_string_equal(described(object, "stage"), "running");
        assert_null(described(object, "peer-control"));
        if (i == 0)
            assert_null(described(object, "top-id"));
        else
            assert_string_equal(described(object, "top-id"), "top0");
    }
    fix_close(&fix);
}

/* --- stage x call --- */

enum call { CALL_START, CALL_CHECKPOINT, CALL_GET_ERROR, CALL_STOP, CALL_FAILOVER, CALLS };
static const char *const call_names[] = {"start", "checkpoint", "get-error", "stop", "failover"};

struct cell {
    const char *refused; /* part of the error; NULL: the call succeeds */
    enum replication_stage after;
    bool counts; /* the epoch goes up by one */
};

static int make_call(struct fix_side *side, enum replication_mode mode, enum call call,
                     struct err *err) MAY_WAIT
{
    switch (call) {
    case CALL_START:
        return replication_start(side->group, mode, REPLICATION_OVERLAYS_EMPTY, err);
    case CALL_CHECKPOINT:
        return replication_checkpoint(side->group, DEADLINE_NEVER, NULL, err);
    case CALL_GET_ERROR:
        return replication_get_error(side->group, err);
    default:
        return replication_stop(side->group, call == CALL_FAILOVER, err);
    }
}

static uint64_t epoch_of(struct fix_side *side) MAY_WAIT
{
    struct json_object *query = replication_query(side->group);
    assert_non_null(query);
    uint64_t epoch = json_object_get_uint64(json_object_object_get(query, "epoch"));
    json_object_put(query);
    return epoch;
}

/* A change of the stage is told of each disk, and nothing else is. */
static void expect_told(const struct fix_side *side, enum replication_mode mode,
                        enum replication_stage before, enum replication_stage after, unsigned told)
{
    const char *name = "REPLICATION_STAGE_CHANGE";
    assert_int_equal(fix_count_events(side, name) > told, before != after);
    if (before == after)
        return;
    struct json_object *event = fix_last_event(side, name);
    assert_string_equal(json_object_get_string(json_object_object_get(event, "role")),
                        replication_mode_name(mode));
    assert_string_equal(json_object_get_string(json_object_object_get(event, "stage")),
                        replication_stage_name(after));
    assert_non_null(
        graph_find(side->graph, json_object_get_string(json_object_object_get(event, "node"))));
}

static void check_cell(struct fix_side *side, enum replication_mode mode,
                       enum replication_stage stage, enum call call, const struct cell *cell)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    uint64_t epoch = epoch_of(side);
    unsigned told = fix_count_events(side, "REPLICATION_STAGE_CHANGE");
    int ret = make_call(side, mode, call, &err);
    if ((ret < 0) != (cell->refused != NULL) ||
        (ret < 0 && strstr(err.text, cell->refused) == NULL))
        fail_msg("%s, stage %s, %s: '%s' instead of '%s'", replication_mode_name(mode),
                 replication_stage_name(stage), call_names[call], ret < 0 ? err.text : "success",
                 cell->refused != NULL ? cell->refused : "success");
    if (fix_stage(side) != cell->after)
        fail_msg("%s, stage %s, %s: leads to %s", replication_mode_name(mode),
                 replication_stage_name(stage), call_names[call],
                 replication_stage_name(fix_stage(side)));
    assert_int_equal(epoch_of(side), epoch + cell->counts);
    expect_told(side, mode, stage, cell->after, told);
}

#define NONE     REPLICATION_NONE
#define RUNNING  REPLICATION_RUNNING
#define FAILOVER REPLICATION_FAILOVER
#define FAILED   REPLICATION_FAILOVER_FAILED
#define DONE     REPLICATION_DONE

static const struct cell secondary_cells[5][CALLS] = {
    [NONE] = {{NULL, RUNNING, true},
              {"not running", NONE, false},
              {"not running", NONE, false},
              {"not running", NONE, false},
              {"not running", NONE, false}},
    [RUNNING] = {{"running already", RUNNING, false},
                 {NULL, RUNNING, true},
                 {NULL, RUNNING, false},
                 {NULL, DONE, false},
                 {NULL, FAILOVER, false}},
    [FAILOVER] = {{NULL, FAILOVER, false},
                  {NULL, FAILOVER, false},
                  {NULL, FAILOVER, false},
                  {NULL, FAILOVER, false},
                  {NULL, FAILOVER, false}},
    [FAILED] = {{"repeat the stop", FAILED, false},
                {"no checkpoint is possible", FAILED, false},
                {"merge failed", FAILED, false},
                {"only a stop with failover", FAILED, false},
                {NULL, FAILOVER, false}},
    [DONE] = {{NULL, DONE, false},
              {NULL, DONE, false},
              {NULL, DONE, false},
              {NULL, DONE, false},
              {NULL, DONE, false}},
};

static const struct cell primary_cells[5][CALLS] = {
    [NONE] = {{NULL, RUNNING, true},
              {"not running", NONE, false},
              {"not running", NONE, false},
              {"not running", NONE, false},
              {"not running", NONE, false}},
    [RUNNING] = {{"running already", RUNNING, false},
                 {NULL, RUNNING, true},
                 {NULL, RUNNING, false},
                 {NULL, DONE, false},
                 {NULL, DONE, false}},
    [DONE] = {{"has been stopped", DONE, false},
              {NULL, DONE, false},
              {NULL, DONE, false},
              {NULL, DONE, false},
              {NULL, DONE, false}},
};

TEST_LOOP(every_call_in_every_stage_of_a_secondary_does_what_the_table_says)
{
    for (int place = 0; place < PLACES; place++) {
        enum replication_stage stage = place_stages[place];
        for (int call = 0; call < CALLS; call++) {
            struct fix fix;
            fix_open(&fix, 2);
            bring_secondary(&fix, place);
            check_cell(&fix.s, REPLICATION_SECONDARY, stage, call, &secondary_cells[stage][call]);
            release_all(&fix);
            fix_close(&fix);
        }
    }
}

TEST_LOOP(every_call_in_every_stage_of_a_primary_does_what_the_table_says)
{
    static const int stages[] = {NONE, RUNNING, DONE};
    for (size_t i = 0; i < ARRAY_LEN(stages); i++) {
        for (int call = 0; call < CALLS; call++) {
            struct fix fix;
            fix_open(&fix, 2);
            bring_primary(&fix, stages[i]);
            check_cell(&fix.p, REPLICATION_PRIMARY, stages[i], call,
                       &primary_cells[stages[i]][call]);
            fix_close(&fix);
        }
    }
}

TEST_LOOP(calls_without_a_replication_node_say_so)
{
    struct fix fix;
    fix_open_empty(&fix, 0);
    fix_refused(
        replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err),
        "no node has the driver 'replication'");
    fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err), "not running");
    fix_refused(replication_get_error(fix.s.group, &err), "not running");
    fix_refused(replication_stop(fix.s.group, true, &err), "not running");
    fix_close(&fix);
}

/* As many disks as a group may have, then one more. */
TEST_LOOP(a_group_has_sixty_four_disks_and_refuses_more)
{
    struct fix fix;
    fix_open_empty(&fix, 0);
    for (unsigned i = 0; i <= 64; i++) {
        if (i == 64) {
            fix_ok(replication_start(fix.p.group, REPLICATION_PRIMARY, REPLICATION_OVERLAYS_EMPTY,
                                     &err));
            fix_ok(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err));
        }
        fix_add(fix.p.graph, "{'driver':'test-link','node-name':'link%u','size':1048576}", i);
        fix_add(fix.p.graph,
                "{'driver':'replication','node-name':'rep%u','mode':'primary','file':'link%u'}", i,
                i);
    }
    fix_refused(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err), "more than 64");
    fix_refused(replication_get_error(fix.p.group, &err), "more than 64");
    fix_ok(graph_del(fix.p.graph, "rep64", &err));
    fix_ok(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err));
    assert_int_equal(epoch_of(&fix.p), 3);
    fix_ok(replication_stop(fix.p.group, false, &err));
    assert_int_equal(replication_stage_of(fix_node(&fix.p, "rep", 63)), REPLICATION_DONE);
    fix_close(&fix);
}

/* --- the marker --- */

struct late_write {
    struct fix *fix;
    bool done;
};

static void write_block_0(void *arg) MAY_WAIT
{
    struct late_write *late = arg;
    assert_int_equal(fix_fill(late->fix->forward[0], 0, BLOCK, 1), 0);
    late->done = true;
}

static void write_block_2(void *arg) MAY_WAIT
{
    struct late_write *late = arg;
    assert_int_equal(fix_fill(late->fix->forward[0], 2 * BLOCK, BLOCK, 1), 0);
    late->done = true;
}

static void checkpoint_primary(void *arg) MAY_WAIT
{
    struct late_write *late = arg;
    fix_ok(replication_checkpoint(late->fix->p.group, DEADLINE_NEVER, NULL, &err));
    late->done = true;
}

TEST_LOOP(a_primary_checkpoint_waits_for_what_is_before_it_and_holds_what_is_behind)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(
        &fix.s, "sdisk", 0,
        (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .length_bytes = BLOCK, .hold = true});
    struct late_write before = {&fix, false}, mark = {&fix, false}, behind = {&fix, false};
    assert_int_equal(co_spawn(fix.loop, "before", write_block_0, &before), 0);
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, loop_clock_ns(fix.loop) + 10 * NS_PER_S), 0);
    assert_int_equal(co_spawn(fix.loop, "mark", checkpoint_primary, &mark), 0);
    co_yield();
    assert_int_equal(co_spawn(fix.loop, "behind", write_block_2, &behind), 0);
    co_sleep(10 * NS_PER_MS);
    assert_false(before.done || mark.done || behind.done);
    assert_int_equal(fix_raw_byte(&fix, 0, 2 * BLOCK, BLOCK), 0);
    blkdebug_release(sdisk, 0);
    test_wait_until(before.done && mark.done && behind.done);
    assert_int_equal(fix_raw_byte(&fix, 0, 2 * BLOCK, BLOCK), 1);
    fix_close(&fix);
}

TEST_LOOP(a_primary_checkpoint_that_meets_its_deadline_fails_and_lets_the_guest_go_on)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    struct node *sdisk = fix_node(&fix.s, "sdisk", 0);
    fix_inject(
        &fix.s, "sdisk", 0,
        (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .length_bytes = BLOCK, .hold = true});
    struct late_write before = {&fix, false};
    assert_int_equal(co_spawn(fix.loop, "before", write_block_0, &before), 0);
    assert_int_equal(blkdebug_await_held(sdisk, 0, 1, loop_clock_ns(fix.loop) + 10 * NS_PER_S), 0);
    fix_refused(
        replication_checkpoint(fix.p.group, loop_clock_ns(fix.loop) + 20 * NS_PER_MS, NULL, &err),
        "within the deadline (1 request(s) in flight)");
    assert_int_equal(fix_fill(fix.forward[0], 2 * BLOCK, BLOCK, 1), 0);
    blkdebug_remove(sdisk, 0);
    blkdebug_release(sdisk, 0);
    test_wait_until(before.done);
    fix_checkpoint(&fix);
    fix_close(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_options_are_refused_by_name),
        cmocka_unit_test(a_node_tells_its_mode_its_stage_and_what_its_users_sit_on),
        cmocka_unit_test(every_call_in_every_stage_of_a_secondary_does_what_the_table_says),
        cmocka_unit_test(every_call_in_every_stage_of_a_primary_does_what_the_table_says),
        cmocka_unit_test(calls_without_a_replication_node_say_so),
        cmocka_unit_test(a_group_has_sixty_four_disks_and_refuses_more),
        cmocka_unit_test(a_primary_checkpoint_waits_for_what_is_before_it_and_holds_what_is_behind),
        cmocka_unit_test(
            a_primary_checkpoint_that_meets_its_deadline_fails_and_lets_the_guest_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
