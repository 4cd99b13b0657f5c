/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A primary's session with its secondary: checkpoints through it, answers that are lost at each point,
 * errors of either side known on the other. The secondary's disk is an NBD export, its control a fake.
 */
#include "fail_alloc.h"
#include "peer_rig.h"

/* --- a session --- */

TEST_LOOP(a_start_says_hello_and_each_checkpoint_is_one_of_the_secondary)
{
    struct rig rig;
    struct json_object *query;
    struct err err = ERR_INIT;
    char instance[17];
    rig_begin(&rig);
    start_well(&rig);
    assert_int_equal(count_events(&rig, "REPLICATION_LINK"), 1);
    struct json_object *link = last_event(&rig, "REPLICATION_LINK");
    assert_string_equal(json_text(link, "node"), "repl");
    assert_string_equal(json_text(link, "peer"), "link");
    assert_true(json_flag(link, "connected"));
    assert_null(json_member(link, "reason"));
    snprintf(instance, sizeof(instance), "%016" PRIx64, graph_instance(rig.world.graph));
    assert_string_equal(json_text(rig.fake.hello, "instance"), instance);
    assert_int_equal(json_uint(rig.fake.hello, "version-min"), 1);
    assert_int_equal(json_uint(rig.fake.hello, "version-max"), 1);
    assert_false(json_flag(rig.fake.hello, "resync"));
    assert_string_equal(json_object_to_json_string_ext(json_member(rig.fake.hello, "exports"), 0),
                        "[\"disk\"]");
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 7, 0), 0);
    checkpoint_well(&rig, 41);
    checkpoint_well(&rig, 42);
    assert_int_equal(mem_stats(rig.world.node)->flushes, 2);
    struct json_object *peer = peer_of(&rig, &query);
    assert_int_equal(json_uint(query, "epoch"), 42);
    assert_non_null(strstr(json_text(peer, "address"), rig.fake.address.path));
    assert_true(json_flag(peer, "connected"));
    assert_int_equal(json_uint(peer, "session"), 7);
    assert_int_equal(json_uint(peer, "epoch"), 42);
    assert_true(json_flag(peer, "stream-intact"));
    json_object_put(query);
    assert_int_equal(replication_get_error(rig.group, &err), 0);
    assert_int_equal(count_events(&rig, "REPLICATION_CHECKPOINT"), 2);
    struct json_object *event = last_event(&rig, "REPLICATION_PEER");
    assert_true(json_flag(event, "connected"));
    assert_int_equal(json_uint(event, "session"), 7);
    rig_end(&rig);
}

TEST_LOOP(a_stop_leaves_the_secondary_alone)
{
    struct rig rig;
    struct json_object *query;
    struct err err = ERR_INIT;
    rig_begin(&rig);
    start_well(&rig);
    assert_int_equal(replication_stop(rig.group, false, &err), 0);
    test_wait_until(rig.fake.sock == NULL);
    assert_null(peer_of(&rig, &query));
    json_object_put(query);
    rig_end(&rig);
}

TEST_LOOP(a_start_that_the_secondary_refuses_leaves_nothing_behind)
{
    static const struct fake_fault faults[] = {
        {FAKE_REFUSE, "replication-hello", "this secondary has taken over", NULL, 0, 1},
        {FAKE_REFUSE, "replication-hello", "not found", "CommandNotFound", 0, 1},
        {FAKE_SAYS, "replication-hello",
         "{\"return\":{\"version\":9,\"session\":1,\"epoch\":2},\"id\":2}", NULL, 0, 1},
        {FAKE_SAYS, "replication-hello", "{\"return\":{\"version\":1,\"epoch\":2},\"id\":2}", NULL,
         0, 1},
        {FAKE_SAYS, "replication-hello", "{\"return\":{\"version\":1,\"session\":2},\"id\":2}",
         NULL, 0, 1},
        {FAKE_SAYS, "replication-hello", "{\"return\":[],\"id\":2}", NULL, 0, 1},
        {FAKE_BEFORE, "replication-hello", NULL, NULL, 0, 1},
        {FAKE_BEFORE, "query-replication", NULL, NULL, 0, 1},
        {FAKE_SAYS, "query-replication", "{\"return\":7,\"id\":3}", NULL, 0, 1},
    };
    static const char *const parts[] = {
        "has taken over", "older version", "version 9", "'session'",         "'epoch'",
        "'version'",      "peer.qmp",      "peer.qmp",  "query-replication",
    };
    struct rig rig;
    rig_begin(&rig);
    for (size_t i = 0; i < ARRAY_LEN(faults); i++) {
        struct err err = ERR_INIT;
        struct json_object *query;
        rig.fake.fault = faults[i];
        assert_true(start(&rig, REPLICATION_OVERLAYS_EMPTY, &err) < 0);
        if (strstr(err.text, parts[i]) == NULL)
            fail_msg("case %zu: '%s' does not say '%s'", i, err.text, parts[i]);
        assert_null(peer_of(&rig, &query));
        assert_string_equal(json_text(query, "stage"), "none");
        json_object_put(query);
        assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), -EIO);
    }
    start_well(&rig);
    rig_end(&rig);
}

TEST_LOOP(what_the_disks_say_of_their_secondary_must_agree)
{
    struct rig rig;
    struct err err = ERR_INIT;
    rig_begin(&rig);
    add_primary(&rig, "link2", "repl2", "/elsewhere");
    assert_true(start(&rig, REPLICATION_OVERLAYS_EMPTY, &err) < 0);
    assert_non_null(strstr(err.text, "'repl' and 'repl2' differ in 'peer-control'"));
    assert_int_equal(graph_del(rig.world.graph, "repl2", &err), 0);
    blocks_add(rig.world.graph,
               "{'node-name':'odd','driver':'replication','mode':'primary','file':"
               "{'driver':'mem','size':4096},'peer-control':{'type':'unix','path':'%s'}}",
               rig.fake.address.path);
    assert_true(start(&rig, REPLICATION_OVERLAYS_EMPTY, &err) < 0);
    assert_non_null(strstr(err.text, "'odd'"));
    assert_non_null(strstr(err.text, "nbd"));
    assert_int_equal(rig.fake.connections, 0);
    rig_end(&rig);
}

/* --- answers that are lost --- */

TEST_LOOP(a_checkpoint_whose_answer_is_lost_is_asked_for_again_wherever_that_happens)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    for (size_t bytes = 0; bytes < 28; bytes += test_loop_is_sim() ? 1 : 9) {
        uint64_t epoch = rig.fake.epoch;
        rig.fake.fault = (struct fake_fault){
            .kind = FAKE_AFTER, .command = "replication-checkpoint", .bytes = bytes, .times = 1};
        checkpoint_well(&rig, epoch + 2);
        rig.fake.fault = (struct fake_fault){
            .kind = FAKE_BEFORE, .command = "replication-checkpoint", .times = 1};
        checkpoint_well(&rig, epoch + 3);
        assert_int_equal(json_uint(rig.fake.hello, "session"), 7);
    }
    assert_false(links_are_dropped(&rig));
    rig_end(&rig);
}

TEST_LOOP(a_first_checkpoint_whose_answer_is_lost_is_one_all_the_same)
{
    struct rig rig;
    struct err err = ERR_INIT;
    uint64_t epoch = 0;
    rig_begin(&rig);
    rig.fake.stream_reason = "a synchronisation is under way";
    assert_int_equal(start(&rig, REPLICATION_OVERLAYS_SYNC, &err), 0);
    rig.fake.fault = (struct fake_fault){
        .kind = FAKE_AFTER, .command = "replication-checkpoint", .bytes = 5, .times = 1};
    assert_int_equal(replication_first_checkpoint(
                         rig.group, loop_now_ns(loop_current()) + 5 * NS_PER_S, &epoch, &err),
                     0);
    assert_int_equal(rig.fake.checkpoints, 2);
    assert_false(json_flag(rig.fake.checkpoint, "first")); /* of one that is mended */
    assert_int_equal(replication_get_error(rig.group, &err), 0);
    rig_end(&rig);
}

TEST_LOOP(an_answer_that_makes_no_sense_is_as_good_as_lost)
{
    static const char *const texts[] = {
        "{\"return\":{\"epoch\":40},\"id\":4}",    "{\"return\":{},\"id\":4}",
        "{\"return\":{\"epoch\":-1},\"id\":4}",    "{\"return\":null,\"id\":4}",
        "{\"return\":{\"epoch\":\"x\"},\"id\":4}", "nonsense",
    };
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        rig.fake.fault = (struct fake_fault){
            .kind = FAKE_SAYS, .command = "replication-checkpoint", .text = texts[i], .times = 1};
        unsigned connections = rig.fake.connections;
        checkpoint_well(&rig, 41 + i);
        assert_int_equal(rig.fake.connections, connections + 1);
    }
    rig_end(&rig);
}

TEST_LOOP(a_refusal_is_passed_on_and_nothing_is_dropped)
{
    struct rig rig;
    struct err err = ERR_INIT;
    rig_begin(&rig);
    start_well(&rig);
    rig.fake.fault = (struct fake_fault){.kind = FAKE_REFUSE,
                                         .command = "replication-checkpoint",
                                         .text = "the stream of writes is broken",
                                         .times = 1};
    assert_true(checkpoint(&rig, 5 * NS_PER_S, NULL, &err) < 0);
    assert_non_null(strstr(err.text, "the stream of writes is broken"));
    assert_false(links_are_dropped(&rig));
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
    checkpoint_well(&rig, 41);
    rig_end(&rig);
}

TEST_LOOP(a_checkpoint_of_unknown_outcome_drops_the_links_before_anybody_writes_on)
{
    struct rig rig;
    struct err err = ERR_INIT;
    struct blocks_task task;
    rig_begin(&rig);
    start_well(&rig);
    rig.fake.fault = (struct fake_fault){.kind = FAKE_SILENT, .command = "replication-checkpoint"};
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
    unsigned writes = mem_stats(rig.world.node)->writes;
    assert_true(checkpoint(&rig, 200 * NS_PER_MS, NULL, &err) < 0);
    assert_non_null(strstr(err.text, "not known"));
    assert_true(links_are_dropped(&rig));
    expect_error(&rig, "checkpoint failed on node 'link'");
    blocks_start_write(&task, rig.forward, 4096, 4096, 2);
    test_wait_until(task.done);
    assert_int_equal(task.result, 0); /* the guest does not notice */
    assert_int_equal(mem_stats(rig.world.node)->writes, writes);
    assert_true(checkpoint(&rig, NS_PER_S, NULL, &err) < 0);
    rig_end(&rig);
}

struct waiter {
    struct rig *rig;
    int result;
    bool done;
};

static void waiter_run(void *arg) MAY_WAIT
{
    struct waiter *waiter = arg;
    struct err err = ERR_INIT;
    waiter->result = checkpoint(waiter->rig, 40 * NS_PER_S, NULL, &err);
    waiter->done = true;
}

TEST_LOOP(a_secondary_that_has_gone_with_all_its_connections_is_not_waited_for)
{
    struct rig rig;
    struct waiter waiter = {.rig = &rig};
    rig_begin(&rig);
    start_well(&rig);
    rig.fake.fault = (struct fake_fault){.kind = FAKE_SILENT, .command = "replication-checkpoint"};
    unsigned looks = rig.fake.looks;
    assert_int_equal(co_spawn(loop_current(), "waiter", waiter_run, &waiter), 0);
    test_wait_until(rig.fake.fault.seen);
    rig.fake.fault = (struct fake_fault){.kind = FAKE_BEFORE, .command = "replication-hello"};
    fake_cut(&rig.fake);
    nbd_client_shutdown(nbd_client_of(graph_find(rig.world.graph, "link")), -ECONNRESET);
    uint64_t then_ns = loop_now_ns(loop_current());
    test_wait_until(waiter.done);
    assert_true(waiter.result < 0);
    assert_true(loop_now_ns(loop_current()) - then_ns < 5 * NS_PER_S);
    assert_int_equal(rig.fake.looks, looks);
    expect_error(&rig, "checkpoint failed");
    struct json_object *event = last_event(&rig, "REPLICATION_LINK");
    assert_false(json_flag(event, "connected"));
    assert_string_equal(json_text(event, "reason"), strerror(ECONNRESET));
    rig_end(&rig);
}

TEST_LOOP(guests_are_held_from_the_cut_until_the_secondary_has_answered)
{
    struct rig rig;
    struct err err = ERR_INIT;
    struct blocks_task task;
    struct waiter waiter = {.rig = &rig};
    rig_begin(&rig);
    start_well(&rig);
    struct mem_stats *disk = mem_stats(rig.world.node);
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
    rig.fake.fault = (struct fake_fault){
        .kind = FAKE_SILENT, .command = "replication-checkpoint", .times = 1};
    assert_int_equal(co_spawn(loop_current(), "waiter", waiter_run, &waiter), 0);
    test_wait_until(rig.fake.fault.seen);
    assert_int_equal(disk->flushes, 1);
    unsigned writes = disk->writes;
    blocks_start_write(&task, rig.forward, 4096, 4096, 2);
    co_sleep(20 * NS_PER_MS);
    assert_false(task.done);
    assert_int_equal(disk->writes, writes);
    fake_cut(&rig.fake); /* it is asked again, and answers */
    test_wait_until(task.done);
    assert_int_equal(task.result, 0);
    assert_true(waiter.done);
    assert_int_equal(waiter.result, 0);
    assert_int_equal(rig.fake.checkpoints, 1);
    struct json_object *event = last_event(&rig, "REPLICATION_CHECKPOINT");
    assert_true(json_uint(event, "held-ns") >= 100 * NS_PER_MS); /* a back-off */
    assert_int_equal(replication_get_error(rig.group, &err), 0);
    rig_end(&rig);
}

static struct fake_fault random_fault(uint64_t *random)
{
    static const char *const commands[] = {"", "qmp_capabilities", "replication-hello",
                                           "query-replication", "replication-checkpoint"};
    static const char *const texts[] = {"nonsense", "{\"return\":{},\"id\":4}", "{\"event\":\"X\"}",
                                        "{\"return\":{\"epoch\":1},\"id\":5}"};
    static const enum fake_fault_kind kinds[] = {FAKE_SOUND,  FAKE_BEFORE, FAKE_AFTER,
                                                 FAKE_SILENT, FAKE_SAYS,   FAKE_REFUSE};
    struct fake_fault fault = {
        .kind = kinds[test_random(random) % ARRAY_LEN(kinds)],
        .command = commands[test_random(random) % 8 % ARRAY_LEN(commands)],
        .text = texts[test_random(random) % ARRAY_LEN(texts)],
        .bytes = test_random(random) % 40,
        .times = 1 + (unsigned)(test_random(random) % 3),
    };
    /* A hello that is refused ends the session: that is another test's. */
    if (strcmp(fault.command, "replication-checkpoint") == 0)
        return fault;
    fault.kind = fault.kind == FAKE_REFUSE ? FAKE_BEFORE : fault.kind;
    return fault;
}

/* With whatever happens to the connection: who is told that it was taken has its disks there, and a
 * secondary that may be beyond what is known here gets nothing more. True: replication goes on. */
static bool checkpoint_with(struct rig *rig, uint64_t *random) MAY_WAIT
{
    struct err err = ERR_INIT;
    uint64_t before = rig->fake.epoch, live = 0;
    rig->fake.fault = random_fault(random);
    if (test_random(random) % 3 == 0)
        fake_cut(&rig->fake);
    int ret = checkpoint(rig, 1 + test_random(random) % (60 * NS_PER_S), &live, &err);
    bool dropped = links_are_dropped(rig);
    rig->fake.fault.kind = FAKE_SOUND;
    if (ret == 0) {
        assert_true(live > before);
        assert_int_equal(rig->fake.epoch, live);
        assert_false(dropped);
    }
    return !dropped;
}

TEST_LOOP(whatever_happens_to_the_connection_both_sides_know_of_each_checkpoint_or_part)
{
    uint64_t random = test_seed("both_sides_know_of_each_checkpoint_or_part");
    struct rig rig;
    unsigned steps = test_loop_is_sim() ? 600 : 0, parted = 0;
    while (steps > 0) {
        rig_begin(&rig);
        start_well(&rig);
        for (unsigned i = 0; i < 30 && steps > 0; i++, steps--) {
            if (checkpoint_with(&rig, &random))
                continue;
            parted++;
            break;
        }
        rig_end(&rig);
    }
    if (test_loop_is_sim())
        assert_in_range(parted, 1, 300);
}

/* --- a connection that is lost --- */

TEST_LOOP(a_lost_connection_is_made_anew_and_the_session_goes_on)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    for (unsigned i = 1; i <= 3; i++) {
        fake_cut(&rig.fake);
        test_wait_until(rig.fake.hellos == i + 1 && is_connected(&rig));
        assert_int_equal(json_uint(rig.fake.hello, "session"), 7);
        assert_null(json_member(rig.fake.hello, "resync"));
    }
    assert_int_equal(count_events(&rig, "REPLICATION_PEER"), 7);
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
    checkpoint_well(&rig, 41);
    rig_end(&rig);
}

TEST_LOOP(a_checkpoint_of_somebody_else_is_not_taken_for_ours)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    for (uint64_t epoch = 50; epoch < 60; epoch += 5) {
        unsigned taken = rig.fake.checkpoints;
        fake_cut(&rig.fake); /* which is not known here yet */
        rig.fake.epoch = epoch;
        checkpoint_well(&rig, epoch + 1);
        assert_int_equal(rig.fake.checkpoints, taken + 1);
    }
    rig_end(&rig);
}

TEST_LOOP(a_peer_that_is_busy_is_asked_again)
{
    const struct fake_fault busy = {.kind = FAKE_REFUSE,
                                    .command = "replication-hello",
                                    .text = "another primary is being answered",
                                    .class = "DeviceNotActive",
                                    .times = 2};
    struct rig rig;
    rig_begin(&rig);
    rig.fake.fault = busy;
    uint64_t then_ns = loop_now_ns(loop_current());
    start_well(&rig);
    assert_true(loop_now_ns(loop_current()) - then_ns >= 200 * NS_PER_MS); /* a pause after each */
    rig.fake.fault = busy;
    fake_cut(&rig.fake);
    test_wait_until(rig.fake.hellos == 2 && is_connected(&rig));
    checkpoint_well(&rig, 41);
    rig_end(&rig);
}

TEST_LOOP(a_session_that_has_ended_stops_replication_for_good)
{
    struct rig rig;
    struct err err = ERR_INIT;
    struct json_object *query;
    rig_begin(&rig);
    start_well(&rig);
    rig.fake.fault = (struct fake_fault){.kind = FAKE_REFUSE,
                                         .command = "replication-hello",
                                         .text = "session 7 has ended",
                                         .times = 1};
    fake_cut(&rig.fake);
    test_wait_until(links_are_dropped(&rig));
    unsigned connections = rig.fake.connections;
    expect_error(&rig, "session with the secondary");
    assert_non_null(strstr(json_text(peer_of(&rig, &query), "reason"), "session 7 has ended"));
    json_object_put(query);
    assert_true(checkpoint(&rig, NS_PER_S, NULL, &err) < 0);
    assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
    if (test_loop_is_sim())
        co_sleep(60 * NS_PER_S);
    assert_int_equal(rig.fake.connections, connections);
    assert_int_equal(rig.fake.reports, 0);
    rig_end(&rig);
}

TEST_LOOP(tries_to_connect_become_rarer_and_never_end)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    if (test_loop_is_sim()) {
        rig.fake.fault = (struct fake_fault){.kind = FAKE_BEFORE, .command = "replication-hello"};
        fake_cut(&rig.fake);
        co_sleep(60 * NS_PER_S);
        unsigned first = rig.fake.connections;
        assert_in_range(first, 12, 20);
        co_sleep(600 * NS_PER_S);
        assert_in_range(rig.fake.connections - first, 110, 125);
        rig.fake.fault.kind = FAKE_SOUND;
        test_wait_until(is_connected(&rig));
        checkpoint_well(&rig, 41);
    }
    rig_end(&rig);
}

TEST_LOOP(a_peer_that_falls_silent_is_noticed_without_a_checkpoint)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    if (test_loop_is_sim()) {
        rig.fake.fault = (struct fake_fault){
            .kind = FAKE_SILENT, .command = "query-replication", .times = 1};
        co_sleep(16 * NS_PER_S);
        assert_int_equal(rig.fake.hellos, 2);
        assert_int_equal(count_events(&rig, "REPLICATION_PEER"), 3);
        assert_true(is_connected(&rig));
    }
    rig_end(&rig);
}

/* --- errors of either side --- */

#define ERROR_OF_S                                                                                  \
    "{\"side\":\"secondary\",\"node\":\"hid\",\"operation\":\"copy-before-write\",\"offset\":4096," \
    "\"length\":512,\"errno\":\"ENOSPC\",\"reason\":\"No space left on device\","                   \
    "\"wall-time-ns\":5,\"count\":1}"

static void expect_error_of_secondary(struct rig *rig) MAY_WAIT
{
    struct json_object *query;
    expect_error(rig, "copy-before-write failed on node 'hid' at offset 4096");
    struct json_object *error = json_member(peer_of(rig, &query), "error");
    assert_string_equal(json_text(error, "errno"), "ENOSPC");
    assert_int_equal(json_uint(error, "length"), 512);
    json_object_put(query);
    struct json_object *event = last_event(rig, "REPLICATION_ERROR");
    assert_string_equal(json_text(event, "side"), "secondary");
    assert_int_equal(count_events(rig, "REPLICATION_ERROR"), 1);
}

TEST_LOOP(an_error_of_the_secondary_is_known_here_at_once)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    fake_says(&rig.fake, "{\"event\":\"REPLICATION_ERROR\",\"data\":{\"side\":\"primary\"}}");
    fake_says(&rig.fake, "{\"event\":\"REPLICATION_ERROR\",\"data\":" ERROR_OF_S "}");
    test_wait_until(count_events(&rig, "REPLICATION_ERROR") == 1);
    fake_says(&rig.fake, "{\"event\":\"REPLICATION_ERROR\",\"data\":" ERROR_OF_S "}");
    fake_says(&rig.fake, "{\"event\":\"REPLICATION_ERROR\",\"data\":[1]}");
    fake_says(&rig.fake, "{\"event\":\"REPLICATION_ERROR\"}");
    fake_cut(&rig.fake);
    test_wait_until(rig.fake.hellos == 2 && is_connected(&rig));
    expect_error_of_secondary(&rig);
    /* Nobody is held for a checkpoint that cannot be. */
    struct err err = ERR_INIT;
    assert_true(checkpoint(&rig, 5 * NS_PER_S, NULL, &err) < 0);
    assert_non_null(strstr(err.text, "copy-before-write failed on node 'hid'"));
    assert_int_equal(rig.fake.checkpoints, 0);
    rig_end(&rig);
}

TEST_LOOP(an_error_of_the_secondary_that_was_told_to_nobody_is_learnt_when_it_is_back)
{
    struct rig rig;
    rig_begin(&rig);
    start_well(&rig);
    rig.fake.error = ERROR_OF_S;
    fake_cut(&rig.fake);
    test_wait_until(rig.fake.hellos == 2 && is_connected(&rig));
    expect_error_of_secondary(&rig);
    rig_end(&rig);
}

TEST_LOOP(a_broken_stream_is_an_error_here_until_a_first_checkpoint_mends_it)
{
    struct rig rig;
    struct err err = ERR_INIT;
    uint64_t epoch = 0;
    rig_begin(&rig);
    rig.fake.stream_reason = "a synchronisation is under way";
    rig.fake.error = ERROR_OF_S;
    assert_int_equal(start(&rig, REPLICATION_OVERLAYS_SYNC, &err), 0);
    assert_true(json_flag(rig.fake.hello, "resync"));
    expect_error(&rig, "copy-before-write");
    assert_int_equal(replication_first_checkpoint(
                         rig.group, loop_now_ns(loop_current()) + 5 * NS_PER_S, &epoch, &err),
                     0);
    assert_int_equal(epoch, 41);
    assert_true(json_flag(rig.fake.checkpoint, "first"));
    assert_int_equal(replication_get_error(rig.group, &err), 0);
    checkpoint_well(&rig, 42);
    assert_false(json_flag(rig.fake.checkpoint, "first"));
    rig_end(&rig);
}

/* --- without memory --- */

#define ALLOCATIONS_MAX 1000

static struct co *caller;

/* What the primary does: its command, and the coroutines of its session. */
static bool is_primarys(void)
{
    const struct co *co = co_self();
    return co != NULL && (co == caller || strncmp(co_name(co), "peer", 4) == 0 ||
                          strcmp(co_name(co), "flush of the peer") == 0);
}

static void fail_after(long allocations)
{
    caller = co_self();
    fail_alloc_begin(allocations, true, is_primarys);
}

TEST_LOOP(a_session_for_which_memory_is_out_begins_whole_or_not_at_all)
{
    if (!fail_alloc_possible())
        return;
    for (long nth = 0, failed = 1; failed > 0; nth++) {
        struct rig rig;
        struct err err = ERR_INIT;
        assert_true(nth < ALLOCATIONS_MAX);
        rig_begin(&rig);
        fail_after(nth);
        int ret = start(&rig, REPLICATION_OVERLAYS_EMPTY, &err);
        failed = fail_alloc_end();
        if (failed == 0)
            assert_int_equal(ret, 0);
        if (ret < 0)
            start_well(&rig);
        checkpoint_well(&rig, 41);
        assert_true(is_connected(&rig));
        rig_end(&rig);
    }
}

/* It fails, or it has been taken; what is not known costs the links, as ever. */
TEST_LOOP(a_checkpoint_for_which_memory_is_out_is_taken_on_both_sides_or_not_believed)
{
    if (!fail_alloc_possible())
        return;
    for (long nth = 0, failed = 1; failed > 0; nth++) {
        struct rig rig;
        struct err err = ERR_INIT;
        uint64_t epoch = 0;
        assert_true(nth < ALLOCATIONS_MAX);
        rig_begin(&rig);
        start_well(&rig);
        assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
        fail_after(nth);
        int ret = checkpoint(&rig, 5 * NS_PER_S, &epoch, &err);
        failed = fail_alloc_end();
        if (failed == 0)
            assert_int_equal(ret, 0);
        if (ret == 0)
            assert_int_equal(epoch, rig.fake.epoch);
        else if (links_are_dropped(&rig))
            expect_error(&rig, "");
        else
            checkpoint_well(&rig, rig.fake.epoch + 1);
        rig_end(&rig);
    }
}

/* Of an error here, of a lost connection, and of an error there. */
/* In virtual time: each try to connect anew comes a second after the one before. */
TEST_LOOP(an_error_while_memory_is_out_is_told_all_the_same)
{
    if (!fail_alloc_possible() || !test_loop_is_sim())
        return;
    for (long nth = 0, failed = 1; failed > 0; nth++) {
        struct rig rig;
        assert_true(nth < ALLOCATIONS_MAX);
        rig_begin(&rig);
        start_well(&rig);
        rig.fake.error = ERROR_OF_S;
        caller = NULL; /* that is the test itself */
        fail_alloc_begin(nth, true, is_primarys);
        nbd_client_shutdown(nbd_client_of(graph_find(rig.world.graph, "link")), -ECONNRESET);
        assert_int_equal(blocks_write(rig.forward, 0, 4096, 1, 0), 0);
        fake_cut(&rig.fake);
        test_wait_until(rig.fake.hellos >= 2 && is_connected(&rig));
        test_wait_until(rig.fake.reports >= 1);
        failed = fail_alloc_end();
        expect_error(&rig, "");
        rig_end(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_start_says_hello_and_each_checkpoint_is_one_of_the_secondary),
        cmocka_unit_test(a_stop_leaves_the_secondary_alone),
        cmocka_unit_test(a_start_that_the_secondary_refuses_leaves_nothing_behind),
        cmocka_unit_test(what_the_disks_say_of_their_secondary_must_agree),
        cmocka_unit_test(
            a_checkpoint_whose_answer_is_lost_is_asked_for_again_wherever_that_happens),
        cmocka_unit_test(a_first_checkpoint_whose_answer_is_lost_is_one_all_the_same),
        cmocka_unit_test(an_answer_that_makes_no_sense_is_as_good_as_lost),
        cmocka_unit_test(a_refusal_is_passed_on_and_nothing_is_dropped),
        cmocka_unit_test(a_checkpoint_of_unknown_outcome_drops_the_links_before_anybody_writes_on),
        cmocka_unit_test(a_secondary_that_has_gone_with_all_its_connections_is_not_waited_for),
        cmocka_unit_test(guests_are_held_from_the_cut_until_the_secondary_has_answered),
        cmocka_unit_test(
            whatever_happens_to_the_connection_both_sides_know_of_each_checkpoint_or_part),
        cmocka_unit_test(a_lost_connection_is_made_anew_and_the_session_goes_on),
        cmocka_unit_test(a_checkpoint_of_somebody_else_is_not_taken_for_ours),
        cmocka_unit_test(a_peer_that_is_busy_is_asked_again),
        cmocka_unit_test(a_session_that_has_ended_stops_replication_for_good),
        cmocka_unit_test(tries_to_connect_become_rarer_and_never_end),
        cmocka_unit_test(a_peer_that_falls_silent_is_noticed_without_a_checkpoint),
        cmocka_unit_test(an_error_of_the_secondary_is_known_here_at_once),
        cmocka_unit_test(
            an_error_of_the_secondary_that_was_told_to_nobody_is_learnt_when_it_is_back),
        cmocka_unit_test(a_broken_stream_is_an_error_here_until_a_first_checkpoint_mends_it),
        cmocka_unit_test(a_session_for_which_memory_is_out_begins_whole_or_not_at_all),
        cmocka_unit_test(
            a_checkpoint_for_which_memory_is_out_is_taken_on_both_sides_or_not_believed),
        cmocka_unit_test(an_error_while_memory_is_out_is_told_all_the_same),
    };

    return cmocka_run_group_tests_name("peer", tests, NULL, NULL);
}
