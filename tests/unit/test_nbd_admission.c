/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who may write to an export: whose connections are, who is asked about them and when, how they end. */
#include "nbd_peers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define OURS   0x0123456789abcdefu
#define THEIRS 0xfedcba9876543210u

/* Answers as it is told, when it is told to. */
struct gatekeeper {
    int answer;
    bool holds;
    struct co_queue waiting;
    unsigned asked, ended, ended_well;
    struct nbd_writer last;
};

static int admit(void *arg, const struct nbd_writer *writer) MAY_WAIT
{
    struct gatekeeper *keeper = arg;

    keeper->asked++;
    keeper->last = *writer;
    while (keeper->holds)
        co_queue_wait(&keeper->waiting);
    return keeper->answer;
}

static void ended(void *arg, const struct nbd_writer *writer, bool orderly)
{
    struct gatekeeper *keeper = arg;

    keeper->ended++;
    keeper->ended_well += orderly;
    keeper->last = *writer;
}

static void release(struct gatekeeper *keeper)
{
    keeper->holds = false;
    co_queue_wake_all(&keeper->waiting);
}

static void begin(struct nbd_world *world, struct gatekeeper *keeper) MAY_WAIT
{
    struct nbd_service_options options = {
        .admission = {.admit = admit, .ended = ended, .arg = keeper},
    };

    *keeper = (struct gatekeeper){.answer = 0};
    co_queue_init(&keeper->waiting);
    nbd_world_begin(world, &options, NULL);
}

/* In transmission, after telling what the query says. */
static struct sock *session(const struct nbd_world *world, const char *query) MAY_WAIT
{
    struct sock *sock = peer_connect(world);
    struct nbd_text name = {"disk", 4}, queries[] = {{query, strlen(query)}};
    uint8_t payload[256];

    peer_greet(sock, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    peer_option(sock, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    assert_int_equal(peer_option_end(sock, NBD_OPT_STRUCTURED_REPLY), NBD_REP_ACK);
    nbd_meta_request_encode(payload, &name, queries, 1);
    peer_option(sock, NBD_OPT_SET_META_CONTEXT, payload, nbd_meta_request_bytes(&name, queries, 1));
    /* It is no context, so none is offered. */
    assert_int_equal(peer_option_reply(sock, NBD_OPT_SET_META_CONTEXT, NULL, 0), NBD_REP_ACK);
    assert_int_equal(peer_go(sock, "disk"), NBD_REP_ACK);
    return sock;
}

static struct sock *session_of(const struct nbd_world *world, uint64_t instance) MAY_WAIT
{
    char query[NBD_INSTANCE_BYTES];

    nbd_instance_encode(query, instance);
    return session(world, query);
}

static int zero(struct sock *sock, uint64_t cookie) MAY_WAIT
{
    peer_request(sock, NBD_CMD_WRITE_ZEROES, 0, cookie, 0, 4096);
    return peer_simple_reply(sock, cookie);
}

static void say_goodbye(struct sock *sock) MAY_WAIT
{
    peer_request(sock, NBD_CMD_DISC, 0, 0, 0, 0);
    peer_expect_end(sock);
    peer_close(sock);
}

/* --- whose a connection is --- */

TEST_LOOP(a_daemons_connections_tell_the_server_which_run_they_belong_to)
{
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    struct edge *edge = nbd_world_client(&world, "remote");
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), 0);
    assert_true(keeper.last.instance == graph_instance(world.graph));
    assert_true(keeper.last.instance != 0);
    assert_int_equal(keeper.last.former, 0);
    nbd_world_client_end(&world, edge);
    test_wait_until(keeper.ended == 1);
    assert_int_equal(keeper.ended_well, 1);
    nbd_world_end(&world);
}

TEST_LOOP(who_does_not_say_well_whose_he_is_belongs_to_nobody)
{
    static const char *const queries[] = {
        "x-blockstep:instance=0123456789abcde",
        "x-blockstep:instance=0123456789abcdef0",
        "x-blockstep:instance=0123456789ABCDEF",
        "x-blockstep:instance=",
        "x-blockstep:",
        "x-elsewhere:instance=0123456789abcdef",
        "y-blockstep:instance=0123456789abcdef",
        "",
    };
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    for (size_t i = 0; i < ARRAY_LEN(queries); i++) {
        struct sock *sock = session(&world, queries[i]);
        assert_int_equal(zero(sock, 1), 0);
        assert_int_equal(keeper.asked, i + 1);
        assert_int_equal(keeper.last.instance, 0);
        say_goodbye(sock);
    }
    nbd_world_end(&world);
}

/* --- who is asked about --- */

TEST_LOOP(a_connection_is_asked_about_once_before_it_writes)
{
    struct nbd_world world;
    struct gatekeeper keeper;
    uint8_t bytes[NBD_SIMPLE_REPLY_BYTES];

    begin(&world, &keeper);
    struct sock *sock = session_of(&world, OURS);
    peer_request(sock, NBD_CMD_FLUSH, 0, 1, 0, 0);
    assert_int_equal(peer_simple_reply(sock, 1), 0);
    assert_int_equal(keeper.asked, 0);
    for (uint64_t cookie = 2; cookie < 10; cookie++) {
        peer_request(sock, cookie % 2 == 0 ? NBD_CMD_WRITE_ZEROES : NBD_CMD_TRIM, 0, cookie, 0,
                     512);
        assert_int_equal(peer_simple_reply(sock, cookie), 0);
    }
    peer_request(sock, NBD_CMD_WRITE, 0, 10, 0, sizeof(bytes));
    assert_true(peer_send(sock, bytes, sizeof(bytes)));
    assert_int_equal(peer_simple_reply(sock, 10), 0);
    assert_int_equal(keeper.asked, 1);
    assert_true(keeper.last.instance == OURS);
    say_goodbye(sock);
    nbd_world_end(&world);
}

TEST_LOOP(what_comes_while_one_is_asked_about_waits_for_the_answer)
{
    struct nbd_world world;
    struct gatekeeper keeper;
    struct blocks_task tasks[8];

    begin(&world, &keeper);
    keeper.holds = true;
    struct edge *edge = nbd_world_client(&world, "remote");
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
        blocks_start_write(&tasks[i], edge, i * 512, 512, 1);
    blocks_expect(edge, 0, 4096, 0); /* a read needs nobody's leave */
    test_wait_until(keeper.asked == 1);
    assert_int_equal(mem_stats(world.node)->writes, 0);
    release(&keeper);
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++) {
        test_wait_until(tasks[i].done);
        assert_int_equal(tasks[i].result, 0);
    }
    assert_int_equal(keeper.asked, 1);
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

TEST_LOOP(who_is_refused_changes_nothing_and_is_asked_about_again)
{
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    keeper.answer = -EPERM;
    struct sock *sock = session_of(&world, THEIRS);
    assert_int_equal(zero(sock, 1), -EPERM);
    assert_int_equal(zero(sock, 2), -EPERM);
    assert_int_equal(keeper.asked, 2);
    assert_int_equal(mem_stats(world.node)->zeroes + mem_stats(world.node)->writes, 0);
    keeper.answer = 0;
    assert_int_equal(zero(sock, 3), 0);
    assert_int_equal(keeper.asked, 3);
    say_goodbye(sock);
    /* A refused change is no good end. */
    test_wait_until(keeper.ended == 1);
    assert_int_equal(keeper.ended_well, 0);
    nbd_world_end(&world);
}

TEST_LOOP(a_second_writer_is_told_from_the_first_while_that_is_connected)
{
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    struct sock *first = session_of(&world, OURS), *second = session(&world, "");
    assert_int_equal(zero(first, 1), 0);
    uint64_t number = keeper.last.connection;
    assert_int_equal(keeper.last.former, 0);
    assert_int_equal(zero(second, 1), 0);
    assert_true(keeper.last.former == number);
    say_goodbye(first);
    test_wait_until(keeper.ended == 1);
    number = keeper.last.connection;
    say_goodbye(second);
    test_wait_until(keeper.ended == 2);
    assert_true(keeper.last.connection != number);
    struct sock *third = session_of(&world, OURS);
    assert_int_equal(zero(third, 1), 0);
    assert_int_equal(keeper.last.former, 0);
    say_goodbye(third);
    nbd_world_end(&world);
}

/* What it has sent may be on its way. */
TEST_LOOP(a_primary_that_is_connected_counts_as_a_writer_until_the_next_round)
{
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    struct sock *idle = session_of(&world, THEIRS), *first = session_of(&world, OURS);
    assert_int_equal(zero(first, 1), 0);
    assert_true(keeper.last.former == keeper.last.connection - 1);
    nbd_admission_renew(world.service);
    assert_int_equal(zero(first, 2), 0);
    assert_int_equal(keeper.last.former, 0);
    peer_close(idle);
    test_wait_until(keeper.ended == 1);
    assert_int_equal(keeper.ended_well, 0);
    assert_true(keeper.last.instance == THEIRS);
    say_goodbye(first);
    test_wait_until(keeper.ended == 2);
    /* Of nobody's that has not written nobody is told. */
    struct sock *nobodys = session(&world, ""), *last = session_of(&world, OURS);
    peer_close(nobodys);
    say_goodbye(last);
    test_wait_until(keeper.ended == 3);
    assert_true(keeper.last.instance == OURS);
    assert_int_equal(keeper.ended_well, 2);
    nbd_world_end(&world);
}

TEST_LOOP(a_new_round_asks_about_everybody_again_and_forgets_who_wrote)
{
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    struct sock *first = session_of(&world, OURS), *second = session_of(&world, OURS);
    assert_int_equal(zero(first, 1), 0);
    nbd_admission_renew(world.service);
    assert_int_equal(zero(second, 1), 0);
    assert_int_equal(keeper.last.former, 0);
    assert_int_equal(zero(first, 2), 0);
    assert_int_equal(keeper.asked, 3);
    assert_int_not_equal(keeper.last.former, 0);
    nbd_admission_renew(world.service);
    /* What they have written before is remembered, and how they end. */
    say_goodbye(first);
    peer_close(second);
    test_wait_until(keeper.ended == 2);
    assert_int_equal(keeper.ended_well, 1);
    nbd_world_end(&world);
}

TEST_LOOP(who_is_admitted_when_a_round_ends_is_of_the_former_one)
{
    struct nbd_world world;
    struct gatekeeper keeper;

    begin(&world, &keeper);
    struct sock *first = session_of(&world, OURS), *second = session_of(&world, OURS);
    keeper.holds = true;
    peer_request(first, NBD_CMD_WRITE_ZEROES, 0, 1, 0, 4096);
    test_wait_until(keeper.asked == 1);
    nbd_admission_renew(world.service);
    release(&keeper);
    assert_int_equal(peer_simple_reply(first, 1), 0);
    assert_int_equal(zero(second, 1), 0);
    assert_int_equal(keeper.last.former, 0);
    assert_int_equal(zero(first, 2), 0);
    assert_int_equal(keeper.asked, 3);
    say_goodbye(first);
    say_goodbye(second);
    nbd_world_end(&world);
}

/* --- how they end --- */

TEST_LOOP(only_who_says_good_bye_after_all_went_well_ends_in_good_order)
{
    struct nbd_world world;
    struct gatekeeper keeper;
    struct err err = ERR_INIT;

    begin(&world, &keeper);
    struct sock *sock = session_of(&world, OURS);
    assert_int_equal(zero(sock, 1), 0);
    peer_close(sock);
    test_wait_until(keeper.ended == 1);
    assert_int_equal(keeper.ended_well, 0);
    /* In the middle of a header. */
    sock = session_of(&world, OURS);
    assert_int_equal(zero(sock, 1), 0);
    assert_true(peer_send(sock, "\x25\x60", 2));
    peer_close(sock);
    test_wait_until(keeper.ended == 2);
    assert_int_equal(keeper.ended_well, 0);
    /* By our own hand. */
    sock = session_of(&world, OURS);
    assert_int_equal(zero(sock, 1), 0);
    assert_int_equal(nbd_export_del(world.service, "disk", NBD_REMOVE_HARD, &err), 0);
    assert_int_equal(keeper.ended, 3);
    assert_int_equal(keeper.ended_well, 0);
    peer_close(sock);
    nbd_world_end(&world);
}

/* --- others --- */

TEST_LOOP(the_connections_of_others_are_cut_and_their_requests_awaited)
{
    struct nbd_world world;
    struct gatekeeper keeper;
    static struct blocks_task task;

    begin(&world, &keeper);
    keeper.holds = true;
    struct sock *ours = session_of(&world, OURS), *silent = session(&world, "base:");
    struct edge *edge = nbd_world_client(&world, "remote");
    task = (struct blocks_task){.done = false};
    blocks_start_write(&task, edge, 0, 512, 1);
    test_wait_until(keeper.asked == 1);
    struct edge *root = (struct edge *)(uintptr_t)keeper.last.root;
    release(&keeper);
    nbd_export_cut_others(world.service, &root, 1, OURS);
    unsigned writes = mem_stats(world.node)->writes;
    assert_int_equal(keeper.ended, writes); /* whoever got in has ended */
    test_wait_until(task.done);
    assert_int_equal(mem_stats(world.node)->writes, writes);
    peer_expect_end(silent);
    peer_close(silent);
    assert_int_equal(zero(ours, 1), 0);
    say_goodbye(ours);
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

TEST_LOOP(who_waits_for_an_answer_and_is_cut_never_writes)
{
    struct nbd_world world;
    struct gatekeeper keeper;
    struct blocks_task tasks[2];

    begin(&world, &keeper);
    keeper.holds = true;
    struct sock *asked = session_of(&world, OURS);
    struct edge *edge = nbd_world_client(&world, "remote");
    peer_request(asked, NBD_CMD_WRITE_ZEROES, 0, 1, 0, 4096);
    test_wait_until(keeper.asked == 1);
    struct edge *root = (struct edge *)(uintptr_t)keeper.last.root;
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
        blocks_start_write(&tasks[i], edge, i * 512, 512, 1);
    blocks_expect(edge, 0, 4096, 0); /* behind these */
    nbd_client_shutdown(nbd_client_of(edge->child), 0);
    co_sleep(NS_PER_MS);
    release(&keeper);
    nbd_export_cut_others(world.service, &root, 1, OURS);
    assert_int_equal(mem_stats(world.node)->writes, 0);
    assert_int_equal(keeper.asked, 1);
    assert_int_equal(peer_simple_reply(asked, 1), 0);
    say_goodbye(asked);
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
        test_wait_until(tasks[i].done);
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemons_connections_tell_the_server_which_run_they_belong_to),
        cmocka_unit_test(who_does_not_say_well_whose_he_is_belongs_to_nobody),
        cmocka_unit_test(a_connection_is_asked_about_once_before_it_writes),
        cmocka_unit_test(what_comes_while_one_is_asked_about_waits_for_the_answer),
        cmocka_unit_test(who_is_refused_changes_nothing_and_is_asked_about_again),
        cmocka_unit_test(a_second_writer_is_told_from_the_first_while_that_is_connected),
        cmocka_unit_test(a_primary_that_is_connected_counts_as_a_writer_until_the_next_round),
        cmocka_unit_test(a_new_round_asks_about_everybody_again_and_forgets_who_wrote),
        cmocka_unit_test(who_is_admitted_when_a_round_ends_is_of_the_former_one),
        cmocka_unit_test(only_who_says_good_bye_after_all_went_well_ends_in_good_order),
        cmocka_unit_test(the_connections_of_others_are_cut_and_their_requests_awaited),
        cmocka_unit_test(who_waits_for_an_answer_and_is_cut_never_writes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
