/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tables of docs/semantics.md: what each call does in each stage, and what I/O does. */
#include "replication_fixture.h"

#define BLOCK ((size_t)4096)

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

/* --- stage x call --- */

enum call { CALL_START, CALL_CHECKPOINT, CALL_GET_ERROR, CALL_STOP, CALL_FAILOVER, CALLS };
static const char *const call_names[] = {"start", "checkpoint", "get-error", "stop", "failover"};

struct cell {
    const char *refused; /* part of the error; NULL: the call succeeds */
    enum replication_stage after;
    bool counts; /* the epoch goes up by one */
};

/* Blocks 0 and 1 of disk 0 are held in hidden and active: a merge has something to do. */
static void bring_secondary(struct fix *fix, enum replication_stage stage) MAY_WAIT
{
    if (stage == REPLICATION_NONE)
        return;
    fix_start(fix);
    assert_int_equal(fix_fill(fix->forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix->top[0], BLOCK, BLOCK, 2), 0);
    if (stage == REPLICATION_RUNNING)
        return;
    if (stage == REPLICATION_FAILOVER)
        fix_inject(&fix->s, "sdisk", 0,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO,
                                          .length_bytes = BLOCK,
                                          .hold = true});
    if (stage == REPLICATION_FAILOVER_FAILED)
        fix_inject(&fix->s, "sdisk", 0,
                   (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO,
                                          .length_bytes = BLOCK,
                                          .error = -EIO});
    fix_ok(replication_stop(fix->s.group, stage != REPLICATION_DONE, &err));
    fix_wait_stage(&fix->s, stage);
    if (stage == REPLICATION_FAILOVER)
        assert_int_equal(blkdebug_await_held(fix_node(&fix->s, "sdisk", 0), 0, 1,
                                             loop_clock_ns(fix->loop) + 10 * NS_PER_S),
                         0);
}

static void bring_primary(struct fix *fix, enum replication_stage stage) MAY_WAIT
{
    if (stage == REPLICATION_NONE)
        return;
    fix_start(fix);
    if (stage == REPLICATION_DONE)
        fix_ok(replication_stop(fix->p.group, false, &err));
}

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

static void check_cell(struct fix_side *side, enum replication_mode mode,
                       enum replication_stage stage, enum call call, const struct cell *cell)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    uint64_t epoch = epoch_of(side);
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

static void release_all(struct fix *fix)
{
    blkdebug_remove(fix_node(&fix->s, "sdisk", 0), 0);
    blkdebug_release(fix_node(&fix->s, "sdisk", 0), 0);
}

TEST_LOOP(every_call_in_every_stage_of_a_secondary_does_what_the_table_says)
{
    for (int stage = NONE; stage <= DONE; stage++) {
        for (int call = 0; call < CALLS; call++) {
            struct fix fix;
            fix_open(&fix, 2);
            bring_secondary(&fix, stage);
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

/* --- stage x I/O --- */

static void all_fail(struct edge *edge, bool reads) MAY_WAIT
{
    if (reads)
        assert_int_equal(fix_byte(edge, 0, BLOCK), -EIO);
    assert_int_equal(fix_fill(edge, 0, BLOCK, 9), -EIO);
    assert_int_equal(fix_zero(edge, 0, BLOCK), -EIO);
    assert_int_equal(fix_discard(edge, 0, BLOCK), -EIO);
    assert_int_equal(io_flush(edge), -EIO);
}

TEST_LOOP(nothing_passes_before_a_start)
{
    struct fix fix;
    fix_open(&fix, 1);
    all_fail(fix.top[0], true);
    all_fail(fix.forward[0], true);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    fix_close(&fix);
}

TEST_LOOP(a_running_primary_forwards_and_reads_nothing)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, 2 * BLOCK, 7), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, 2 * BLOCK), 7);
    assert_int_equal(fix_zero(fix.forward[0], 0, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    assert_int_equal(fix_discard(fix.forward[0], BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix.forward[0]), 0);
    assert_int_equal(fix_byte(fix.forward[0], 0, BLOCK), -EIO);
    assert_int_equal(replication_forward_stats(fix_node(&fix.p, "prep", 0)).forwarded_bytes,
                     4 * BLOCK);
    fix_close(&fix);
}

TEST_LOOP(a_stopped_primary_passes_nothing)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_ok(replication_stop(fix.p.group, false, &err));
    all_fail(fix.forward[0], true);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    fix_close(&fix);
}

TEST_LOOP(a_running_secondary_shows_the_checkpoint_and_its_own_writes_alone)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, 4 * BLOCK, 1), 0);
    fix_checkpoint(&fix);
    assert_int_equal(fix_byte(fix.top[0], 0, 4 * BLOCK), 1);
    assert_int_equal(fix_fill(fix.forward[0], 0, 4 * BLOCK, 2), 0);
    assert_int_equal(fix_byte(fix.top[0], 0, 4 * BLOCK), 1);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 3), 0);
    assert_int_equal(fix_zero(fix.top[0], 2 * BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix.top[0]), 0);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 3);
    assert_int_equal(fix_byte(fix.top[0], 2 * BLOCK, BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], 3 * BLOCK, BLOCK), 1);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, 4 * BLOCK), 2);
    fix_checkpoint(&fix);
    assert_int_equal(fix_byte(fix.top[0], 0, 4 * BLOCK), 2);
    fix_close(&fix);
}

TEST_LOOP(a_stop_without_failover_drops_the_overlays_and_serves_the_disk)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[0], 0, 2 * BLOCK, 2), 0);
    fix_ok(replication_stop(fix.s.group, false, &err));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 0);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 3), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 3);
    assert_int_equal(fix_zero(fix.top[0], BLOCK, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix.top[0]), 0);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "active", 0)).held_bytes, 0);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "hidden", 0)).held_bytes, 0);
    fix_close(&fix);
}

/* Block 0 is held by hidden, 1 by active, 2 by nobody. */
static void check_split(struct fix *fix) MAY_WAIT
{
    assert_int_equal(fix_byte(fix->top[0], 0, BLOCK), 0);
    assert_int_equal(fix_byte(fix->top[0], BLOCK, BLOCK), 2);
    assert_int_equal(fix_byte(fix->top[0], 2 * BLOCK, BLOCK), 0);
    assert_int_equal(fix_fill(fix->top[0], 0, 3 * BLOCK, 5), 0);
    assert_int_equal(fix_byte(fix->top[0], 0, 3 * BLOCK), 5);
    assert_int_equal(fix_raw_byte(fix, 0, 0, BLOCK), 1);
    assert_int_equal(fix_raw_byte(fix, 0, BLOCK, BLOCK), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK, BLOCK), 5);
    assert_int_equal(fix_zero(fix->top[0], BLOCK, 2 * BLOCK), 0);
    assert_int_equal(fix_byte(fix->top[0], BLOCK, 2 * BLOCK), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK, BLOCK), 0);
    assert_int_equal(fix_fill(fix->top[0], 2 * BLOCK + 512, 512, 6), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK + 512, 512), 6);
    assert_int_equal(fix_discard(fix->top[0], 64 * BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix->top[0]), 0);
}

static void check_merged(struct fix *fix) MAY_WAIT
{
    fix_wait_stage(&fix->s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(fix, 0, 0, BLOCK), 5);
    assert_int_equal(fix_raw_byte(fix, 0, BLOCK, BLOCK + 512), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK + 512, 512), 6);
    assert_int_equal(fix_byte(fix->top[0], 0, BLOCK), 5);
    assert_int_equal(fix_fill(fix->top[0], BLOCK, BLOCK, 8), 0);
    assert_int_equal(fix_raw_byte(fix, 0, BLOCK, BLOCK), 8);
}

TEST_LOOP(writes_of_a_failed_failover_go_where_the_block_is_held_and_a_retry_merges_them)
{
    struct fix fix;
    fix_open(&fix, 1);
    bring_secondary(&fix, REPLICATION_FAILOVER_FAILED);
    /* The disk works again, as far as the guest's own writes go. */
    blkdebug_remove(fix_node(&fix.s, "sdisk", 0), 0);
    check_split(&fix);
    fix_refused(replication_get_error(fix.s.group, &err), "merge failed on node 'sdisk0'");
    fix_ok(replication_stop(fix.s.group, true, &err));
    check_merged(&fix);
    fix_close(&fix);
}

/* The merge's own range is locked while its write is held; blocks elsewhere are served. */
TEST_LOOP(reads_of_a_failover_obey_the_contract_while_the_merge_stands_still)
{
    struct fix fix;
    fix_open(&fix, 1);
    bring_secondary(&fix, REPLICATION_FAILOVER);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 2);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    uint64_t far = FIX_DISK_BYTES - BLOCK;
    assert_int_equal(fix_fill(fix.top[0], far, BLOCK, 4), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, far, BLOCK), 4);
    release_all(&fix);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 2);
    assert_int_equal(fix_raw_byte(&fix, 0, far, BLOCK), 4);
    fix_close(&fix);
}

/* Late in a merge writes go to both disks. An overlay ignores a discard of a part of a block, a file
 * does not: what is read must not change when reads move from the one to the other. */
TEST_LOOP(what_a_discard_leaves_late_in_a_merge_stays_when_the_merge_ends)
{
    struct fix fix;
    fix_open(&fix, 1);
    bring_secondary(&fix, REPLICATION_RUNNING);
    fix_inject(&fix.s, "sdisk", 0, (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .hold = true});
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(blkdebug_await_held(fix_node(&fix.s, "sdisk", 0), 0, 1,
                                         loop_clock_ns(fix.loop) + 10 * NS_PER_S),
                     0);
    assert_int_equal(fix_discard(fix.top[0], BLOCK + 512, 1024), 0);
    int left = fix_byte(fix.top[0], BLOCK + 512, 1024);
    release_all(&fix);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, 512), 2);
    assert_int_equal(fix_byte(fix.top[0], BLOCK + 512, 1024), left);
    assert_int_equal(fix_byte(fix.top[0], BLOCK + 1536, BLOCK - 1536), 2);
    fix_close(&fix);
}

/* --- failures --- */

TEST_LOOP(a_failed_forward_is_remembered_and_the_write_succeeds)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE,
                                      .offset_bytes = BLOCK,
                                      .length_bytes = BLOCK,
                                      .error = -ENOSPC});
    assert_int_equal(fix_fill(fix.forward[0], BLOCK, 2 * BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.forward[0], BLOCK, BLOCK, 1), 0);
    const struct replication_error *error = replication_error_of(fix_node(&fix.p, "prep", 0));
    assert_int_equal(error->count, 2);
    assert_int_equal(error->side, REPLICATION_PRIMARY);
    assert_int_equal(error->offset_bytes, BLOCK);
    assert_int_equal(error->length_bytes, 2 * BLOCK);
    assert_int_equal(error->code, -ENOSPC);
    assert_true(error->wall_ns > 0);
    assert_string_equal(error->operation, "forward write");
    assert_string_equal(error->node, "plink0");
    assert_int_equal(fix_count_events(&fix.p, "REPLICATION_ERROR"), 1);
    fix_refused(replication_get_error(fix.p.group, &err), "forward write failed");
    /* It stays broken: neither side claims a checkpoint. */
    for (int i = 0; i < 2; i++) {
        fix_refused(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err),
                    "the secondary lacks a write");
        fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err),
                    "the last one stays");
    }
    fix_close(&fix);
}

TEST_LOOP(a_failed_flush_of_the_peer_is_remembered)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_FLUSH, .count = 1, .error = -EIO});
    assert_int_equal(io_flush(fix.forward[0]), 0);
    fix_refused(replication_get_error(fix.p.group, &err), "forward flush failed");
    fix_close(&fix);
}

TEST_LOOP(a_copy_that_fails_fails_the_write_and_is_remembered_on_both_sides)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_READ, .count = 1, .error = -EIO});
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    fix_refused(replication_get_error(fix.p.group, &err), "forward write failed");
    fix_refused(replication_get_error(fix.s.group, &err), "copy-before-write failed");
    assert_int_equal(fix_count_events(&fix.s, "REPLICATION_ERROR"), 1);
    fix_close(&fix);
}

TEST_LOOP(a_failing_active_disk_is_the_users_error_alone)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 1, .error = -ENOSPC});
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 1), -ENOSPC);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0);
    fix_ok(replication_get_error(fix.s.group, &err));
    fix_checkpoint(&fix);
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
        cmocka_unit_test(every_call_in_every_stage_of_a_secondary_does_what_the_table_says),
        cmocka_unit_test(every_call_in_every_stage_of_a_primary_does_what_the_table_says),
        cmocka_unit_test(calls_without_a_replication_node_say_so),
        cmocka_unit_test(nothing_passes_before_a_start),
        cmocka_unit_test(a_running_primary_forwards_and_reads_nothing),
        cmocka_unit_test(a_stopped_primary_passes_nothing),
        cmocka_unit_test(a_running_secondary_shows_the_checkpoint_and_its_own_writes_alone),
        cmocka_unit_test(a_stop_without_failover_drops_the_overlays_and_serves_the_disk),
        cmocka_unit_test(
            writes_of_a_failed_failover_go_where_the_block_is_held_and_a_retry_merges_them),
        cmocka_unit_test(reads_of_a_failover_obey_the_contract_while_the_merge_stands_still),
        cmocka_unit_test(what_a_discard_leaves_late_in_a_merge_stays_when_the_merge_ends),
        cmocka_unit_test(a_failed_forward_is_remembered_and_the_write_succeeds),
        cmocka_unit_test(a_failed_flush_of_the_peer_is_remembered),
        cmocka_unit_test(a_copy_that_fails_fails_the_write_and_is_remembered_on_both_sides),
        cmocka_unit_test(a_failing_active_disk_is_the_users_error_alone),
        cmocka_unit_test(a_primary_checkpoint_waits_for_what_is_before_it_and_holds_what_is_behind),
        cmocka_unit_test(
            a_primary_checkpoint_that_meets_its_deadline_fails_and_lets_the_guest_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
