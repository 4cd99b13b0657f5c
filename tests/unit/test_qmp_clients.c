/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The QMP server and its clients: several at once, out of band, events, those who do not behave. */
#include "qmp_fixture.h"

static void expect_end(struct client *client) MAY_WAIT
{
    struct json_object *value = client_next(client);

    assert_null(value);
}

TEST_LOOP(a_command_that_waits_holds_up_its_own_client_alone)
{
    struct world world;
    struct client slow, quick;

    world_open(&world);
    client_ready(&slow, "full");
    client_ready(&quick, "full");
    client_send(&slow, "{'execute': 'wait', 'id': 1}{'execute': 'nothing', 'id': 2}");
    test_wait_until(world.waiting == 1);
    for (int i = 0; i < 3; i++)
        ask(&quick, "{'execute': 'nothing'}", "{\"return\": {}}");
    assert_int_equal(world.ended, 0);
    world_release(&world);
    expect(&slow, "{\"return\": {}, \"id\": 1}");
    expect(&slow, "{\"return\": {}, \"id\": 2}");
    client_close(&slow);
    client_close(&quick);
    world_close(&world);
}

/* As client_ready(), and it may overtake itself. */
static void client_ready_oob(struct client *client) MAY_WAIT
{
    client_open(client, "full");
    json_object_put(client_next(client));
    ask(client, "{'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob']}}",
        "{\"return\": {}}");
}

TEST_LOOP(what_is_sent_out_of_band_overtakes_a_command_that_waits)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready_oob(&client);
    client_send(&client, "{'execute': 'wait', 'id': 1}{'execute': 'nothing', 'id': 2}{]\n"
                         "{'exec-oob': 'now', 'id': 3}");
    expect(&client, "{\"return\": {}, \"id\": 3}");
    ask(&client, "{'exec-oob': 'now', 'id': 4}", "{\"return\": {}, \"id\": 4}");
    assert_int_equal(world.ended, 0);
    world_release(&world);
    expect(&client, "{\"return\": {}, \"id\": 1}");
    expect(&client, "{\"return\": {}, \"id\": 2}");
    json_object_put(client_next(&client)); /* the error, in its turn */
    ask(&client, "{'execute': 'now', 'id': 5}", "{\"return\": {}, \"id\": 5}");
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(out_of_band_is_for_those_who_ask_and_commands_that_allow_it)
{
    struct world world;
    struct client plain, client;

    world_open(&world);
    client_ready(&plain, "full");
    ask(&plain, "{'exec-oob': 'now'}", GENERIC("QMP input member 'exec-oob' is unexpected"));
    client_open(&client, "full");
    json_object_put(client_next(&client));
    ask(&client, "{'execute': 'qmp_capabilities', 'arguments': {'enable': ['speed']}}",
        GENERIC("Parameter 'enable[0]' does not accept value 'speed'"));
    ask(&client, "{'execute': 'qmp_capabilities', 'arguments': {'enable': [1]}}",
        GENERIC("Invalid parameter type for 'enable[0]', expected: string"));
    ask(&client, "{'exec-oob': 'now'}", GENERIC("QMP input member 'exec-oob' is unexpected"));
    ask(&client, "{'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob', 'oob']}}",
        "{\"return\": {}}");
    ask(&client, "{'exec-oob': 'now', 'id': 1}", "{\"return\": {}, \"id\": 1}");
    ask(&client, "{'exec-oob': 'nothing'}", GENERIC("The command nothing does not support OOB"));
    ask(&client, "{'exec-oob': 'never'}", NOT_FOUND("The command never has not been found"));
    ask(&client, "{'exec-oob': 1}", GENERIC("QMP input member 'exec-oob' must be a string"));
    ask(&client, "{'exec-oob': 'now', 'execute': 'now'}",
        GENERIC("QMP input member 'execute' clashes with 'exec-oob'"));
    client_close(&client);
    client_close(&plain);
    world_close(&world);
}

TEST_LOOP(eight_commands_in_flight_leave_room_for_one_out_of_band)
{
    struct world world;
    struct client client;
    uint64_t before;

    world_open(&world);
    client_ready_oob(&client);
    for (unsigned i = 0; i < QMP_MAX_IN_FLIGHT; i++)
        client_send(&client, "{'execute': 'wait'}");
    ask(&client, "{'exec-oob': 'now', 'id': 'a'}", "{\"return\": {}, \"id\": \"a\"}");
    /* One more, and the client is not read from until some have ended. */
    before = qmp_server_stats(world.server).commands;
    client_send(&client, "{'execute': 'wait'}{'exec-oob': 'now', 'id': 'b'}");
    for (int i = 0; i < 50; i++)
        co_yield();
    assert_int_equal(qmp_server_stats(world.server).commands, before);
    world_release(&world);
    for (unsigned i = 0, b = 0; i < QMP_MAX_IN_FLIGHT + 2; i++) {
        struct json_object *answer = client_next(&client);

        assert_non_null(answer);
        b += json_object_object_get_ex(answer, "id", NULL);
        assert_true(b <= 1 && (i < QMP_MAX_IN_FLIGHT + 1 || b == 1));
        json_object_put(answer);
    }
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(a_long_command_in_flight_is_not_read_past)
{
    size_t length = QMP_IN_SOFT_BYTES;
    char *request = malloc(length + 64);
    struct world world;
    struct client client;

    world_open(&world);
    client_ready_oob(&client);
    snprintf(request, length + 64, "{'execute': 'wait', 'id': '%*s'}", (int)length, "x");
    client_send(&client, request);
    free(request);
    test_wait_until(world.waiting == 1);
    client_send(&client, "{'exec-oob': 'now', 'id': 'late'}");
    for (int i = 0; i < 50; i++)
        co_yield();
    assert_int_equal(world.ended, 0);
    world_release(&world);
    json_object_put(client_next(&client)); /* of the long one: it comes first */
    expect(&client, "{\"return\": {}, \"id\": \"late\"}");
    ask(&client, "{'exec-oob': 'now', 'id': 1}", "{\"return\": {}, \"id\": 1}");
    client_close(&client);
    world_close(&world);
}

static void expect_event(struct client *client, const char *name) MAY_WAIT
{
    struct json_object *event = client_next(client);
    struct json_object *found = NULL, *stamp = NULL;

    assert_non_null(event);
    assert_true(json_object_object_get_ex(event, "event", &found));
    assert_string_equal(json_object_get_string(found), name);
    assert_true(json_object_object_get_ex(event, "timestamp", &stamp));
    assert_true(json_object_object_get_ex(stamp, "seconds", NULL));
    assert_true(json_object_object_get_ex(stamp, "microseconds", NULL));
    json_object_put(event);
}

TEST_LOOP(events_reach_all_who_have_negotiated_and_no_peer)
{
    struct world world;
    struct client first, second, silent, peer;

    world_open(&world);
    client_ready(&first, "full");
    client_ready(&second, "full");
    client_ready(&peer, "peer");
    client_open(&silent, "full");
    json_object_put(client_next(&silent));
    qmp_server_event(world.server, "SOMETHING", json_object_new_object());
    qmp_server_event(world.server, "MORE", NULL);
    expect_event(&first, "SOMETHING");
    expect_event(&first, "MORE");
    expect_event(&second, "SOMETHING");
    expect_event(&second, "MORE");
    ask(&peer, "{'execute': 'peers'}", "{\"return\": {}}");
    ask(&silent, "{'execute': 'qmp_capabilities'}", "{\"return\": {}}");
    client_close(&first);
    client_close(&second);
    client_close(&silent);
    client_close(&peer);
    world_close(&world);
}

static void send_fault(struct world *world, const char *name, const char *disk, int number)
{
    struct json_object *data = json_object_new_object();

    assert_int_equal(json_add_string(data, "disk", disk), 0);
    assert_int_equal(json_add_int(data, "number", number), 0);
    qmp_server_event(world->server, name, data);
}

static void expect_fault(struct client *client, const char *name, const char *disk, int number)
    MAY_WAIT
{
    struct json_object *event = client_next(client);
    struct json_object *data = NULL, *value = NULL;

    assert_non_null(event);
    assert_true(json_object_object_get_ex(event, "event", &value));
    assert_string_equal(json_object_get_string(value), name);
    assert_true(json_object_object_get_ex(event, "data", &data));
    assert_true(json_object_object_get_ex(data, "disk", &value));
    assert_string_equal(json_object_get_string(value), disk);
    assert_true(json_object_object_get_ex(data, "number", &value));
    assert_int_equal(json_object_get_int(value), number);
    json_object_put(event);
}

TEST_LOOP(of_events_that_come_in_heaps_the_first_and_the_last_are_sent)
{
    uint64_t begin_ns = loop_now_ns(loop_current());
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    for (int i = 1; i <= 1000; i++) {
        send_fault(&world, "FAULT", "a", i);
        send_fault(&world, "TROUBLE", i % 2 ? "a" : "b", i);
    }
    send_fault(&world, "FAULT", "b", 1);
    send_fault(&world, "SOMETHING", "a", 1);
    send_fault(&world, "SOMETHING", "a", 2);
    expect_fault(&client, "FAULT", "a", 1);
    expect_fault(&client, "TROUBLE", "a", 1);
    expect_fault(&client, "FAULT", "b", 1); /* another disk's */
    expect_fault(&client, "SOMETHING", "a", 1);
    expect_fault(&client, "SOMETHING", "a", 2);
    assert_true(loop_clock_ns(loop_current()) - begin_ns < 20 * NS_PER_S);
    expect_fault(&client, "FAULT", "a", 1000);
    expect_fault(&client, "TROUBLE", "b", 1000);
    assert_true(loop_clock_ns(loop_current()) - begin_ns >= WHILE_NS);
    /* The last one has begun another while. */
    send_fault(&world, "FAULT", "a", 1001);
    expect_fault(&client, "FAULT", "a", 1001);
    assert_true(loop_clock_ns(loop_current()) - begin_ns >= 2 * WHILE_NS);
    /* After a quiet one all is as at first. */
    co_sleep(3 * WHILE_NS);
    begin_ns = loop_clock_ns(loop_current());
    send_fault(&world, "FAULT", "a", 1002);
    send_fault(&world, "SOMETHING", "a", 3);
    expect_fault(&client, "FAULT", "a", 1002);
    expect_fault(&client, "SOMETHING", "a", 3);
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(what_was_held_back_is_sent_before_the_end)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    send_fault(&world, "FAULT", "a", 1);
    send_fault(&world, "FAULT", "a", 2);
    expect_fault(&client, "FAULT", "a", 1);
    qmp_server_close(world.server);
    expect_fault(&client, "FAULT", "a", 2);
    expect_end(&client);
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(more_kinds_of_events_than_are_remembered_are_not_held_back)
{
    struct world world;
    struct client client;
    char disk[16];

    world_open(&world);
    client_ready(&client, "full");
    for (int number = 1; number <= 2; number++) {
        for (unsigned i = 0; i <= QMP_MAX_RATES; i++) {
            snprintf(disk, sizeof(disk), "d%u", i);
            send_fault(&world, "FAULT", disk, number);
        }
    }
    for (unsigned i = 0; i <= QMP_MAX_RATES; i++) {
        snprintf(disk, sizeof(disk), "d%u", i);
        expect_fault(&client, "FAULT", disk, 1);
    }
    expect_fault(&client, "FAULT", disk, 2); /* the one too many, at once */
    expect_fault(&client, "FAULT", "d0", 2);
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(a_peer_may_run_only_what_is_meant_for_it)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "peer");
    ask(&client, "{'execute': 'peers'}", "{\"return\": {}}");
    ask(&client, "{'execute': 'nothing'}", NOT_FOUND("The command nothing has not been found"));
    client_close(&client);
    world_close(&world);
}

/* The client says nothing for a time, and does not wait for anything either. */
static void pass(struct client *client, uint64_t seconds) MAY_WAIT
{
    sock_deadline(client->sock, DEADLINE_NEVER);
    co_sleep(seconds * NS_PER_S);
}

TEST_LOOP(who_promised_to_speak_now_and_then_and_is_silent_is_cut)
{
    struct world world;
    struct client plain, client;

    if (!test_loop_is_sim())
        return;
    world_open(&world);
    client_ready(&plain, "peer");
    client_ready(&client, "peer");
    sock_deadline(plain.sock, DEADLINE_NEVER);
    ask(&client, "{'execute': 'promise'}", "{\"return\": {}}");
    for (unsigned i = 0; i < 3; i++) {
        pass(&client, 15);
        ask(&client, "{'execute': 'peers'}", "{\"return\": {}}");
    }
    /* A command that takes long is no silence. */
    client_send(&client, "{'execute': 'peer-wait'}");
    pass(&client, 100);
    world_release(&world);
    expect(&client, "{\"return\": {}}");
    pass(&client, 15);
    ask(&client, "{'execute': 'peers'}", "{\"return\": {}}");
    pass(&client, 19);
    assert_int_equal(world.left, 0);
    pass(&client, 2);
    assert_true(world.left != 0);
    expect_end(&client);
    ask(&plain, "{'execute': 'peers'}", "{\"return\": {}}");
    client_close(&client);
    client_close(&plain);
    world_close(&world);
}

TEST_LOOP(a_peer_that_has_asked_gets_the_events_that_are_its_own)
{
    struct world world;
    struct client asker, other, full;

    world_open(&world);
    client_ready(&full, "full");
    client_ready(&asker, "peer");
    client_ready(&other, "peer");
    ask(&asker, "{'execute': 'tell'}", "{\"return\": {}}");
    qmp_server_event(world.server, "SOMETHING", NULL);
    qmp_server_event(world.server, "NEWS", json_object_new_object());
    expect_event(&asker, "NEWS");
    expect_event(&full, "SOMETHING");
    expect_event(&full, "NEWS");
    ask(&asker, "{'execute': 'peers'}", "{\"return\": {}}");
    ask(&other, "{'execute': 'peers'}", "{\"return\": {}}");
    client_close(&asker);
    client_close(&other);
    client_close(&full);
    world_close(&world);
}

struct cutter {
    struct world *world;
    bool done;
};

static void cut_asker(void *arg) MAY_WAIT
{
    struct cutter *cutter = arg;

    qmp_server_cut_client(cutter->world->server, cutter->world->asker);
    cutter->done = true;
}

TEST_LOOP(a_client_that_is_cut_is_gone_when_its_command_has_ended)
{
    struct world world;
    struct client client, other;
    struct cutter cutter = {.world = &world};

    world_open(&world);
    client_ready(&client, "peer");
    client_ready(&other, "peer");
    ask(&client, "{'execute': 'tell'}", "{\"return\": {}}");
    assert_true(qmp_server_has_client(world.server, world.asker));
    client_send(&client, "{'execute': 'peer-wait'}");
    test_wait_until(world.waiting == 1);
    assert_int_equal(co_spawn(loop_current(), "cutter", cut_asker, &cutter), 0);
    test_wait_until(!qmp_server_has_client(world.server, world.asker));
    expect_end(&client);
    assert_false(cutter.done);
    world_release(&world);
    test_wait_until(cutter.done);
    assert_int_equal(world.ended, 1);
    assert_true(world.left == world.asker);
    qmp_server_cut_client(world.server, world.asker); /* nobody any more */
    ask(&other, "{'execute': 'peers'}", "{\"return\": {}}");
    client_close(&client);
    client_close(&other);
    world_close(&world);
}

TEST_LOOP(a_client_that_reads_no_events_is_dropped_and_the_others_go_on)
{
    struct world world;
    struct client deaf, good;
    char *text = malloc(65537);

    world_open(&world);
    client_ready(&deaf, "full");
    client_ready(&good, "full");
    memset(text, 'e', 65536);
    text[65536] = '\0';
    for (unsigned sent = 0; qmp_server_stats(world.server).dropped == 0; sent++) {
        struct json_object *data = json_object_new_object();

        assert_true(sent < 4 * QMP_OUT_MAX_BYTES / 65536);
        assert_int_equal(json_add_string(data, "text", text), 0);
        qmp_server_event(world.server, "LONG", data);
        expect_event(&good, "LONG");
    }
    free(text);
    test_wait_until(qmp_server_stats(world.server).clients == 1);
    ask(&good, "{'execute': 'nothing'}", "{\"return\": {}}");
    client_close(&deaf);
    client_close(&good);
    world_close(&world);
}

TEST_LOOP(a_client_that_does_not_read_its_answers_is_not_read_from)
{
    struct world world;
    struct client greedy, good;
    uint64_t before;

    world_open(&world);
    client_ready(&greedy, "full");
    client_ready(&good, "full");
    before = qmp_server_stats(world.server).commands;
    /* 20 MB of answers to some 4 KiB of requests: they would go beyond the limit if all were run. */
    for (int i = 0; i < 200; i++)
        client_send(&greedy, "{'execute': 'big'}\n");
    for (int i = 0; i < 200; i++)
        ask(&good, "{'execute': 'nothing'}", "{\"return\": {}}");
    assert_int_equal(qmp_server_stats(world.server).dropped, 0);
    assert_true(qmp_server_stats(world.server).commands - before < 300);
    /* It gets all of them when it reads at last. */
    for (int i = 0; i < 200; i++) {
        struct json_object *answer = client_next(&greedy);

        assert_non_null(answer);
        assert_true(json_object_object_get_ex(answer, "return", NULL));
        json_object_put(answer);
    }
    client_close(&greedy);
    client_close(&good);
    world_close(&world);
}

TEST_LOOP(a_client_that_leaves_in_a_command_harms_nobody)
{
    struct world world;
    struct client leaver, good;

    world_open(&world);
    client_ready(&leaver, "full");
    client_ready(&good, "full");
    client_send(&leaver, "{'execute': 'wait'}{'execute': 'wait'}");
    test_wait_until(world.waiting == 1);
    client_close(&leaver);
    ask(&good, "{'execute': 'nothing'}", "{\"return\": {}}");
    world_release(&world);
    test_wait_until(qmp_server_stats(world.server).clients == 1);
    assert_true(world.ended >= 1); /* what had begun has ended */
    ask(&good, "{'execute': 'nothing'}", "{\"return\": {}}");
    client_close(&good);
    world_close(&world);
}

static void release_later(void *arg) MAY_WAIT
{
    co_sleep(20 * NS_PER_MS);
    world_release(arg);
}

TEST_LOOP(closing_lets_a_command_under_way_answer_first)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    client_send(&client, "{'execute': 'wait', 'id': 1}");
    test_wait_until(world.waiting == 1);
    assert_int_equal(co_spawn(loop_current(), "release", release_later, &world), 0);
    qmp_server_close(world.server);
    assert_int_equal(world.ended, 1);
    expect(&client, "{\"return\": {}, \"id\": 1}");
    expect_end(&client);
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(no_more_clients_than_the_limit_are_served)
{
    struct client clients[QMP_MAX_CLIENTS], more;
    struct world world;

    world_open(&world);
    log_set_level(LOG_LEVEL_ERROR);
    for (size_t i = 0; i < QMP_MAX_CLIENTS; i++)
        client_ready(&clients[i], "full");
    client_open(&more, "full");
    expect_end(&more);
    client_close(&more);
    ask(&clients[0], "{'execute': 'nothing'}", "{\"return\": {}}");
    client_close(&clients[1]);
    test_wait_until(qmp_server_stats(world.server).clients == QMP_MAX_CLIENTS - 1);
    client_ready(&clients[1], "full");
    for (size_t i = 0; i < QMP_MAX_CLIENTS; i++)
        client_close(&clients[i]);
    world_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_command_that_waits_holds_up_its_own_client_alone),
        cmocka_unit_test(what_is_sent_out_of_band_overtakes_a_command_that_waits),
        cmocka_unit_test(out_of_band_is_for_those_who_ask_and_commands_that_allow_it),
        cmocka_unit_test(eight_commands_in_flight_leave_room_for_one_out_of_band),
        cmocka_unit_test(a_long_command_in_flight_is_not_read_past),
        cmocka_unit_test(events_reach_all_who_have_negotiated_and_no_peer),
        cmocka_unit_test(of_events_that_come_in_heaps_the_first_and_the_last_are_sent),
        cmocka_unit_test(what_was_held_back_is_sent_before_the_end),
        cmocka_unit_test(more_kinds_of_events_than_are_remembered_are_not_held_back),
        cmocka_unit_test(a_peer_may_run_only_what_is_meant_for_it),
        cmocka_unit_test(who_promised_to_speak_now_and_then_and_is_silent_is_cut),
        cmocka_unit_test(a_peer_that_has_asked_gets_the_events_that_are_its_own),
        cmocka_unit_test(a_client_that_is_cut_is_gone_when_its_command_has_ended),
        cmocka_unit_test(a_client_that_reads_no_events_is_dropped_and_the_others_go_on),
        cmocka_unit_test(a_client_that_does_not_read_its_answers_is_not_read_from),
        cmocka_unit_test(a_client_that_leaves_in_a_command_harms_nobody),
        cmocka_unit_test(closing_lets_a_command_under_way_answer_first),
        cmocka_unit_test(no_more_clients_than_the_limit_are_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
