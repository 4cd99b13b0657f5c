/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What goes wrong on the simulator's networks: one-way cuts, breaks at a byte, half-open peers. */
#include "sim_fixture.h"

#include <errno.h>

#define SEEDS     40u
#define ALL_BYTES 50000u

/* A client on p and a server on s that count what they get; the test is what the client does. */
struct talk {
    struct sim *sim;
    struct loop *client, *server;
    struct co_queue death;
    size_t received;      /* by the server */
    ssize_t server_ended; /* how its stream did */
    bool ready, over;
    uint64_t seed;
};

static void take_all(void *arg) MAY_WAIT;
static void take_all(void *arg)
{
    struct talk *talk = arg;
    struct sock *listener = listen_on(":10809"), *sock = NULL;
    uint8_t bytes[1000];
    ssize_t got;

    talk->ready = true;
    assert_int_equal(sock_accept(listener, &sock), 0);
    while ((got = sock_recv(sock, bytes, sizeof(bytes))) > 0) {
        for (ssize_t i = 0; i < got; i++)
            assert_int_equal(bytes[i], (talk->received + (size_t)i) % 251);
        talk->received += (size_t)got;
    }
    talk->server_ended = got;
    talk->over = true;
    sock_close(sock);
    sock_close(listener);
}

static int send_all(struct sock *sock) MAY_WAIT;
static int send_all(struct sock *sock)
{
    static uint8_t bytes[ALL_BYTES];
    struct iovec iov = {bytes, sizeof(bytes)};

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = i % 251;
    return sock_send(sock, &iov, 1);
}

static struct sock *connect_when_ready(struct talk *talk) MAY_WAIT;
static struct sock *connect_when_ready(struct talk *talk)
{
    struct sock *sock = NULL;

    while (!talk->ready)
        co_sleep(NS_PER_MS);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &sock), 0);
    return sock;
}

static void run_talk(struct talk *talk, co_entry *server, co_entry *client)
{
    talk->client = new_host(talk->sim, "p");
    talk->server = new_host(talk->sim, "s");
    assert_int_equal(co_spawn(talk->server, "server", server, talk), 0);
    run_on(talk->client, "client", client, talk);
    while (sim_step(talk->sim))
        ;
    loop_free(talk->client);
    loop_free(talk->server);
    sim_free(talk->sim);
}

/* --- breaks --- */

static void send_through_break(void *arg) MAY_WAIT;
static void send_through_break(void *arg)
{
    struct talk *talk = arg;
    struct sock *sock = connect_when_ready(talk);
    uint64_t bytes = talk->seed * 1000 + 1;
    uint8_t byte;

    assert_int_equal(sim_link_break_after(talk->sim, "p", "nobody", 1), -ENOENT);
    assert_int_equal(sim_link_break_after(talk->sim, "p", "s", bytes), 0);
    int result = send_all(sock);
    assert_true(result == 0 || result == -ECONNRESET);
    assert_int_equal(sock_recv(sock, &byte, 1), -ECONNRESET);
    sock_close(sock);
    while (!talk->over)
        co_sleep(NS_PER_MS);
    assert_int_equal(talk->received, bytes);
    assert_int_equal(talk->server_ended, -ECONNRESET);
    loop_stop(loop_current());
}

static void a_connection_breaks_behind_the_byte_asked_for(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct talk talk = {.sim = new_plain_world(seed), .seed = seed};
        run_talk(&talk, take_all, send_through_break);
    }
}

static void send_by_chance(void *arg) MAY_WAIT;
static void send_by_chance(void *arg)
{
    struct talk *talk = arg;
    const struct sim_link_options options = {.break_per_million = 20000};
    struct sock *sock = connect_when_ready(talk);

    assert_int_equal(sim_link_set(talk->sim, "p", "s", &options), 0);
    (void)send_all(sock);
    sock_close(sock);
    while (!talk->over)
        co_sleep(NS_PER_MS);
    loop_stop(loop_current());
}

static void connections_break_by_chance_at_any_byte(void **state UNUSED)
{
    unsigned broken = 0, whole = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct talk talk = {.sim = new_plain_world(seed)};
        run_talk(&talk, take_all, send_by_chance);
        assert_true(talk.server_ended == 0 || talk.server_ended == -ECONNRESET);
        broken += talk.received < ALL_BYTES;
        whole += talk.received == ALL_BYTES && talk.server_ended == 0;
    }
    assert_int_equal(broken + whole, SEEDS);
    assert_true(broken > 2);
    assert_true(whole > 2);
}

/* --- half-open --- */

static void break_one_side(void *arg) MAY_WAIT;
static void break_one_side(void *arg)
{
    struct talk *talk = arg;
    struct sock *sock = connect_when_ready(talk);
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    co_sleep(NS_PER_MS);
    assert_int_equal(sim_link_break(talk->sim, "p", "s", SIM_SIDE_FROM), 0);
    assert_int_equal(sock_recv(sock, &byte, 1), -ECONNRESET);
    assert_int_equal(sock_send(sock, &iov, 1), -ECONNRESET);
    co_sleep(1000 * NS_PER_S);
    assert_false(talk->over); /* the server has not heard of it */
    sock_close(sock);
    co_sleep(1000 * NS_PER_S);
    assert_false(talk->over);
    assert_int_equal(sim_link_break(talk->sim, "p", "s", SIM_SIDE_TO), 0);
    co_sleep(NS_PER_S);
    assert_int_equal(talk->server_ended, -ECONNRESET);
    loop_stop(loop_current());
}

static void a_side_that_did_not_hear_of_a_break_waits_on(void **state UNUSED)
{
    struct talk talk = {.sim = new_plain_world(1)};

    run_talk(&talk, take_all, break_one_side);
}

/* Nobody is told of a cut that does not heal: kernels give up in the end. */
static void cut_for_ever(void *arg) MAY_WAIT;
static void cut_for_ever(void *arg)
{
    struct talk *talk = arg;
    struct loop *loop = loop_current();
    struct sock *sock = connect_when_ready(talk);
    uint8_t byte = 1;
    struct iovec iov = {&byte, talk->seed % 2};

    co_sleep(NS_PER_MS);
    assert_int_equal(sim_net_cut(talk->sim, "p", "s", true), 0);
    uint64_t begin_ns = loop_clock_ns(loop);
    if (iov.iov_len > 0)
        assert_int_equal(sock_send(sock, &iov, 1), 0);
    assert_int_equal(sock_recv(sock, &byte, 1), -ETIMEDOUT);
    uint64_t waited_ns = loop_clock_ns(loop) - begin_ns;
    assert_int_equal(waited_ns / NS_PER_S, talk->seed % 2 == 0 ? 7875 : 925);
    sock_close(sock);
    while (!talk->over)
        co_sleep(NS_PER_S);
    assert_int_equal(talk->server_ended, -ETIMEDOUT);
    loop_stop(loop);
}

static void a_kernel_gives_up_a_peer_that_stays_silent(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct talk talk = {.sim = new_plain_world(seed), .seed = seed};
        run_talk(&talk, take_all, cut_for_ever);
    }
}

static void wake_the_dead(void *arg)
{
    co_queue_wake_all(arg);
}

static void serve_until_dead(void *arg) MAY_WAIT;
static void serve_until_dead(void *arg)
{
    struct talk *talk = arg;
    struct sock *listener = listen_on(":10809"), *sock = NULL;

    sim_process_on_death(loop_current(), wake_the_dead, &talk->death);
    talk->ready = true;
    assert_int_equal(sock_accept(listener, &sock), 0);
    while (!sim_process_is_dead(loop_current()))
        co_queue_wait(&talk->death);
    assert_int_equal(send_all(sock), -ECONNRESET);
    sock_close(sock);
    sock_close(listener);
    talk->over = true;
}

static void cut_the_servers_power(void *arg) MAY_WAIT;
static void cut_the_servers_power(void *arg)
{
    struct talk *talk = arg;
    struct loop *loop = loop_current(), *heir = NULL;
    struct sock *sock = connect_when_ready(talk), *other = NULL;
    struct sock *listener = listen_on(":1");
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    co_sleep(NS_PER_MS);
    assert_int_equal(sim_host_power_cut(talk->sim, "s"), 0);
    assert_int_equal(sock_send(sock, &iov, 1), 0); /* nobody answers, nobody refuses */
    uint64_t begin_ns = loop_clock_ns(loop);
    assert_int_equal(connect_to("s:10809", 5 * NS_PER_S, &other), -ETIMEDOUT);
    assert_true(loop_clock_ns(loop) >= begin_ns + 5 * NS_PER_S);
    assert_true(talk->over);
    heir = new_host(talk->sim, "s");
    assert_int_equal(sock_recv(sock, &byte, 1), -ECONNRESET); /* an answer to what was sent */
    assert_int_equal(connect_to("s:10809", 5 * NS_PER_S, &other), -ECONNREFUSED);
    loop_free(heir);
    sock_close(sock);
    sock_close(listener);
    loop_stop(loop);
}

static void a_host_without_power_answers_nobody_and_resets_once_it_is_back(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct talk talk = {.sim = new_plain_world(seed)};
        co_queue_init(&talk.death);
        run_talk(&talk, serve_until_dead, cut_the_servers_power);
    }
}

static void kill_the_server(void *arg) MAY_WAIT;
static void kill_the_server(void *arg)
{
    struct talk *talk = arg;
    struct loop *loop = loop_current();
    struct sock *sock = connect_when_ready(talk), *other = NULL;
    uint8_t byte;

    co_sleep(NS_PER_MS);
    sim_process_kill(talk->server);
    uint64_t begin_ns = loop_clock_ns(loop);
    assert_int_equal(sock_recv(sock, &byte, 1), 0); /* closed, as by its end */
    assert_true(loop_clock_ns(loop) < begin_ns + NS_PER_S);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &other), -ECONNREFUSED);
    sock_close(sock);
    loop_stop(loop);
}

static void a_killed_process_is_heard_to_close(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct talk talk = {.sim = new_plain_world(seed)};
        co_queue_init(&talk.death);
        run_talk(&talk, serve_until_dead, kill_the_server);
    }
}

/* --- one way --- */

static void block_one_way(void *arg) MAY_WAIT;
static void block_one_way(void *arg)
{
    struct talk *talk = arg;
    struct loop *loop = loop_current();
    struct sock *sock = connect_when_ready(talk), *other = NULL;
    struct sim_link_options options = {.blocked = true};
    static uint8_t bytes[10000];
    size_t sent = 0;

    /* Bytes arrive, but what acknowledges them does not: in the end there is no room. */
    assert_int_equal(sim_link_set(talk->sim, "s", "p", &options), 0);
    for (unsigned i = 0; i < 200; i++) {
        for (size_t at = 0; at < sizeof(bytes); at++)
            bytes[at] = (sent + at) % 251;
        struct iovec iov = {bytes, sizeof(bytes)};
        ssize_t put = sock_send_now(sock, &iov, 1);
        assert_true(put >= 0);
        sent += (size_t)put;
        co_sleep(NS_PER_MS);
    }
    assert_in_range(sent, 60000, 64 * 1024);
    assert_int_equal(talk->received, sent);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &other), -ETIMEDOUT);
    options.blocked = false;
    assert_int_equal(sim_link_set(talk->sim, "s", "p", &options), 0);
    struct iovec iov = {bytes, 0};
    for (size_t at = 0; at < sizeof(bytes); at++)
        bytes[at] = (sent + at) % 251;
    iov.iov_len = sizeof(bytes);
    assert_int_equal(sock_send(sock, &iov, 1), 0);
    sock_close(sock);
    co_sleep(NS_PER_S);
    assert_int_equal(talk->received, sent + sizeof(bytes));
    options.refuse_percent = 100;
    assert_int_equal(sim_link_set(talk->sim, "p", "s", &options), 0);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &other), -ECONNREFUSED);
    loop_stop(loop);
}

static void a_way_that_is_blocked_stalls_the_other_in_the_end(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct talk talk = {.sim = new_plain_world(seed)};
        run_talk(&talk, take_all, block_one_way);
        assert_int_equal(talk.server_ended, 0);
    }
}

static void send_slowly(void *arg) MAY_WAIT;
static void send_slowly(void *arg)
{
    struct talk *talk = arg;
    const struct sim_link_options options = {.delay = {2 * NS_PER_S, 3 * NS_PER_S}};
    struct sock *sock = connect_when_ready(talk);
    uint64_t begin_ns = loop_clock_ns(loop_current());

    assert_int_equal(sim_link_set(talk->sim, "p", "s", &options), 0);
    assert_int_equal(send_all(sock), 0);
    co_sleep(NS_PER_S);
    assert_int_equal(talk->received, 0);
    sock_close(sock);
    while (!talk->over)
        co_sleep(NS_PER_S);
    assert_in_range(loop_clock_ns(loop_current()), begin_ns + 4 * NS_PER_S,
                    begin_ns + 100 * NS_PER_S);
    assert_int_equal(talk->received, ALL_BYTES);
    loop_stop(loop_current());
}

static void a_slow_way_delivers_late_and_all(void **state UNUSED)
{
    struct talk talk = {.sim = new_plain_world(3)};

    run_talk(&talk, take_all, send_slowly);
}

/* --- unix sockets, and the trace --- */

static void serve_unix(void *arg) MAY_WAIT;
static void serve_unix(void *arg)
{
    struct talk *talk = arg;
    struct sock *listener = listen_on("unix:/run/x.sock"), *sock = NULL;
    uint8_t byte;

    sim_process_on_death(loop_current(), wake_the_dead, &talk->death);
    talk->ready = true;
    while (sock_accept(listener, &sock) == 0 && !sim_process_is_dead(loop_current())) {
        assert_int_equal(sock_recv(sock, &byte, 1), 1);
        sock_close(sock);
        sim_process_kill(talk->server);
        sock_shutdown(listener, 0);
    }
    sock_close(listener);
}

static void kill_and_replace_a_unix_server(void *arg) MAY_WAIT;
static void kill_and_replace_a_unix_server(void *arg)
{
    struct talk *talk = arg;
    struct sock *sock = NULL, *heir = NULL;
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    while (!talk->ready)
        co_sleep(NS_PER_MS);
    assert_int_equal(connect_to("unix:/run/x.sock", NS_PER_S, &sock), 0);
    assert_int_equal(sock_send(sock, &iov, 1), 0);
    assert_int_equal(sock_recv(sock, &byte, 1), 0);
    sock_close(sock);
    heir = listen_on("unix:/run/x.sock"); /* waits until the dead one's is gone, then replaces it */
    sock_close(heir);
    assert_false(path_exists(loop_current(), "/run/x.sock"));
    loop_stop(loop_current());
}

static void count_lines(void *arg, const char *line)
{
    unsigned *counts = arg;

    assert_non_null(strchr(line, ':'));
    counts[0]++;
    counts[1] += strstr(line, "a/1: listen on unix:/run/x.sock: ok") != NULL;
    counts[2] += strstr(line, "a/1: is killed") != NULL;
    counts[3] += strstr(line, "world: a note of 7") != NULL;
}

static uint64_t run_unix(bool traced, unsigned *counts)
{
    struct talk talk = {.sim = new_plain_world(9)};

    if (traced)
        sim_set_trace(talk.sim, count_lines, counts);
    co_queue_init(&talk.death);
    sim_note(talk.sim, "a note of %d", 7);
    talk.server = new_host(talk.sim, "a");
    talk.client = new_host(talk.sim, "a");
    assert_int_equal(co_spawn(talk.server, "server", serve_unix, &talk), 0);
    run_on(talk.client, "client", kill_and_replace_a_unix_server, &talk);
    uint64_t hash = sim_trace_hash(talk.sim);
    loop_free(talk.client);
    loop_free(talk.server);
    sim_free(talk.sim);
    return hash;
}

static void a_killed_servers_unix_socket_is_replaced_and_the_trace_tells(void **state UNUSED)
{
    unsigned counts[4] = {0};

    uint64_t hash = run_unix(false, NULL);
    assert_int_equal(hash, UINT64_C(0x79c1083607e1c60b)); /* computed once, as that of test_sim.c */
    assert_true(run_unix(true, counts) == hash);          /* telling changes nothing */
    assert_true(counts[0] > 10);
    assert_int_equal(counts[1], 1);
    assert_int_equal(counts[2], 1);
    assert_int_equal(counts[3], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_connection_breaks_behind_the_byte_asked_for),
        cmocka_unit_test(connections_break_by_chance_at_any_byte),
        cmocka_unit_test(a_side_that_did_not_hear_of_a_break_waits_on),
        cmocka_unit_test(a_host_without_power_answers_nobody_and_resets_once_it_is_back),
        cmocka_unit_test(a_kernel_gives_up_a_peer_that_stays_silent),
        cmocka_unit_test(a_killed_process_is_heard_to_close),
        cmocka_unit_test(a_way_that_is_blocked_stalls_the_other_in_the_end),
        cmocka_unit_test(a_slow_way_delivers_late_and_all),
        cmocka_unit_test(a_killed_servers_unix_socket_is_replaced_and_the_trace_tells),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
