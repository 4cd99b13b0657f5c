/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sockets: bytes arrive whole and in order, ends are seen, waiting ends when told. */
#include "harness.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ECHO_BYTES (1024u * 1024)

enum kind { UNIX, INET };

static void make_address(enum kind kind, const char *port, struct sock_address *ret_address)
    MAY_WAIT;
static void make_address(enum kind kind, const char *port, struct sock_address *ret_address)
{
    struct err err = ERR_INIT;
    char text[400];

    if (kind == UNIX)
        snprintf(text, sizeof(text), "unix:%s", test_path("sock"));
    else
        snprintf(text, sizeof(text), "127.0.0.1:%s", port);
    assert_int_equal(sock_address_parse(text, "test", ret_address, &err), 0);
}

static struct sock *listen_on(enum kind kind, struct sock_address *ret_address) MAY_WAIT;
static struct sock *listen_on(enum kind kind, struct sock_address *ret_address)
{
    struct sock_address address;
    struct sock *listener = NULL;
    struct err err = ERR_INIT;
    char port[8];

    make_address(kind, "0", &address);
    if (sock_listen(loop_current(), &address, &listener, &err) < 0)
        fail_msg("%s", err.text);
    sock_address_release(&address);
    snprintf(port, sizeof(port), "%u", sock_local_port(listener));
    make_address(kind, port, ret_address);
    return listener;
}

static struct sock *connect_to(const struct sock_address *address) MAY_WAIT;
static struct sock *connect_to(const struct sock_address *address)
{
    struct sock *sock = NULL;
    struct err err = ERR_INIT;

    if (sock_connect(loop_current(), address, DEADLINE_NEVER, &sock, &err) < 0)
        fail_msg("%s", err.text);
    return sock;
}

/* Two ends of one connection. */
struct pair {
    struct sock *client, *server;
};

static void make_pair(enum kind kind, struct pair *pair) MAY_WAIT;
static void make_pair(enum kind kind, struct pair *pair)
{
    struct sock_address address;
    struct sock *listener = listen_on(kind, &address);

    pair->client = connect_to(&address);
    assert_int_equal(sock_accept(listener, &pair->server), 0);
    sock_close(listener);
    sock_address_release(&address);
}

static void close_pair(struct pair *pair) MAY_WAIT;
static void close_pair(struct pair *pair)
{
    sock_close(pair->client);
    sock_close(pair->server);
    test_folder_remove();
}

/* --- bytes --- */

struct echo {
    struct pair pair;
    uint64_t random;
    uint8_t *bytes;
    struct co_group group;
};

static void echo_back(void *arg) MAY_WAIT;
static void echo_back(void *arg)
{
    struct echo *echo = arg;
    uint8_t bytes[5000];
    ssize_t got;

    while ((got = sock_recv(echo->pair.server, bytes, sizeof(bytes))) > 0) {
        struct iovec iov = {bytes, (size_t)got};
        assert_int_equal(sock_send(echo->pair.server, &iov, 1), 0);
    }
    assert_int_equal(got, 0);
    sock_shutdown(echo->pair.server, 0);
    co_group_leave(&echo->group);
}

static void send_in_pieces(void *arg) MAY_WAIT;
static void send_in_pieces(void *arg)
{
    struct echo *echo = arg;
    size_t done = 0;

    while (done < ECHO_BYTES) {
        struct iovec iov[4];
        size_t piece = done;
        for (int i = 0; i < 4; i++) {
            size_t length = test_random(&echo->random) % 30000;
            length = MIN(length, ECHO_BYTES - piece);
            iov[i] = (struct iovec){echo->bytes + piece, length};
            piece += length;
        }
        if (test_random(&echo->random) % 3 == 0) {
            ssize_t put = sock_send_now(echo->pair.client, iov, 4);
            assert_in_range(put, 0, piece - done);
            done += (size_t)put;
        } else {
            assert_int_equal(sock_send(echo->pair.client, iov, 4), 0);
            done = piece;
        }
    }
    co_group_leave(&echo->group);
}

static void echo_over(enum kind kind) MAY_WAIT;
static void echo_over(enum kind kind)
{
    struct echo echo = {.random = test_seed("echo"), .bytes = malloc(ECHO_BYTES)};
    uint8_t *back = malloc(ECHO_BYTES);
    size_t done = 0;

    assert_non_null(echo.bytes);
    assert_non_null(back);
    for (size_t i = 0; i < ECHO_BYTES; i++)
        echo.bytes[i] = (uint8_t)(i * 7 + i / 251);
    make_pair(kind, &echo.pair);
    co_group_init(&echo.group);
    co_group_enter(&echo.group);
    co_group_enter(&echo.group);
    assert_int_equal(co_spawn(loop_current(), "echo", echo_back, &echo), 0);
    assert_int_equal(co_spawn(loop_current(), "send", send_in_pieces, &echo), 0);
    while (done < ECHO_BYTES) {
        ssize_t got = sock_recv(echo.pair.client, back + done, ECHO_BYTES - done);
        assert_true(got > 0);
        done += (size_t)got;
    }
    assert_memory_equal(back, echo.bytes, ECHO_BYTES);
    sock_close(echo.pair.client);
    echo.pair.client = NULL;
    assert_int_equal(co_group_wait(&echo.group), 0);
    close_pair(&echo.pair);
    free(echo.bytes);
    free(back);
}

TEST_LOOP(a_mebibyte_in_random_pieces_comes_back_over_unix)
{
    echo_over(UNIX);
}

TEST_LOOP(a_mebibyte_in_random_pieces_comes_back_over_tcp)
{
    echo_over(INET);
}

TEST_LOOP(what_was_sent_before_a_close_is_received_before_the_end)
{
    struct pair pair;
    uint8_t bytes[10000];
    struct iovec iov = {bytes, sizeof(bytes)};
    size_t done = 0;
    ssize_t got;

    make_pair(UNIX, &pair);
    memset(bytes, 9, sizeof(bytes));
    assert_int_equal(sock_send(pair.client, &iov, 1), 0);
    sock_close(pair.client);
    pair.client = NULL;
    while ((got = sock_recv(pair.server, bytes, sizeof(bytes))) > 0)
        done += (size_t)got;
    assert_int_equal(got, 0);
    assert_int_equal(done, sizeof(bytes));
    assert_int_equal(sock_recv(pair.server, bytes, 1), 0);
    close_pair(&pair);
}

/* --- coroutines inside a call --- */

struct inside {
    struct sock *sock;
    ssize_t result;
    uint64_t sent_bytes;
    bool ended;
};

static void receive_once(void *arg) MAY_WAIT;
static void receive_once(void *arg)
{
    struct inside *inside = arg;
    uint8_t byte;

    inside->result = sock_recv(inside->sock, &byte, 1);
    inside->ended = true;
}

/* Far more than any buffer takes. */
static void send_for_ever(void *arg) MAY_WAIT;
static void send_for_ever(void *arg)
{
    static uint8_t bytes[64 * 1024];
    struct inside *inside = arg;

    while (inside->result == 0) {
        struct iovec iov = {bytes, sizeof(bytes)};
        inside->result = sock_send(inside->sock, &iov, 1);
        inside->sent_bytes += sizeof(bytes);
    }
    inside->ended = true;
}

static void accept_once(void *arg) MAY_WAIT;
static void accept_once(void *arg)
{
    struct inside *inside = arg;
    struct sock *sock = NULL;

    inside->result = sock_accept(inside->sock, &sock);
    assert_null(sock);
    inside->ended = true;
}

static void spawn_inside(struct inside *inside, struct sock *sock, co_entry *entry)
{
    *inside = (struct inside){.sock = sock};
    assert_int_equal(co_spawn(loop_current(), "inside", entry, inside), 0);
}

TEST_LOOP(a_sender_waits_while_nobody_receives)
{
    struct pair pair;
    struct inside sender;
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    make_pair(UNIX, &pair);
    spawn_inside(&sender, pair.client, send_for_ever);
    co_sleep(20 * NS_PER_MS);
    assert_false(sender.ended);
    assert_true(sender.sent_bytes < 64 * 1024 * 1024);
    /* The other direction is free. */
    assert_int_equal(sock_send(pair.server, &iov, 1), 0);
    assert_int_equal(sock_recv(pair.client, &byte, 1), 1);
    sock_shutdown(pair.client, 0);
    test_wait_until(sender.ended);
    close_pair(&pair);
}

TEST_LOOP(shutdown_wakes_all_who_wait_with_its_reason)
{
    struct pair pair;
    struct inside sender, receiver;
    uint8_t byte;
    struct iovec iov = {&byte, 1};

    make_pair(INET, &pair);
    spawn_inside(&sender, pair.client, send_for_ever);
    spawn_inside(&receiver, pair.client, receive_once);
    co_sleep(10 * NS_PER_MS);
    assert_false(sender.ended || receiver.ended);
    sock_shutdown(pair.client, -EPROTO);
    sock_shutdown(pair.client, -EIO); /* the first reason stays */
    test_wait_until(sender.ended && receiver.ended);
    assert_int_equal(sender.result, -EPROTO);
    assert_int_equal(receiver.result, -EPROTO);
    assert_int_equal(sock_recv(pair.client, &byte, 1), -EPROTO);
    assert_int_equal(sock_send(pair.client, &iov, 1), -EPROTO);
    assert_int_equal(sock_send_now(pair.client, &iov, 1), -EPROTO);
    sock_deadline(pair.client, loop_clock_ns(loop_current()) + NS_PER_MS); /* harmless */
    co_sleep(3 * NS_PER_MS);
    close_pair(&pair);
}

TEST_LOOP(the_peer_of_a_shut_down_socket_sees_an_end)
{
    struct pair pair;
    struct inside receiver;

    make_pair(INET, &pair);
    spawn_inside(&receiver, pair.server, receive_once);
    sock_shutdown(pair.client, 0);
    test_wait_until(receiver.ended);
    assert_int_equal(receiver.result, 0);
    close_pair(&pair);
}

TEST_LOOP(shutdown_of_a_listener_ends_accept)
{
    struct sock_address address;
    struct sock *listener = listen_on(INET, &address), *sock = NULL;
    struct inside acceptor;

    spawn_inside(&acceptor, listener, accept_once);
    co_sleep(NS_PER_MS);
    assert_false(acceptor.ended);
    sock_shutdown(listener, 0);
    test_wait_until(acceptor.ended);
    assert_int_equal(acceptor.result, -ECONNABORTED);
    assert_int_equal(sock_accept(listener, &sock), -ECONNABORTED);
    sock_close(listener);
    sock_address_release(&address);
}

TEST_LOOP(a_listener_that_was_shut_down_leaves_its_successors_path_alone)
{
    struct sock_address address;
    struct sock *former = listen_on(UNIX, &address);
    sock_shutdown(former, 0);
    sock_address_release(&address);
    struct sock *listener = listen_on(UNIX, &address);
    sock_close(former);
    struct sock *client = connect_to(&address);
    sock_close(client);
    sock_close(listener);
    sock_address_release(&address);
    test_folder_remove();
}

TEST_LOOP(a_peer_that_closes_without_reading_breaks_the_sender)
{
    for (enum kind kind = UNIX; kind <= INET; kind++) {
        struct pair pair;
        struct inside sender;

        make_pair(kind, &pair);
        spawn_inside(&sender, pair.client, send_for_ever);
        co_sleep(5 * NS_PER_MS);
        assert_false(sender.ended);
        sock_close(pair.server);
        pair.server = NULL;
        test_wait_until(sender.ended);
        assert_true(sender.result == -EPIPE || sender.result == -ECONNRESET);
        close_pair(&pair);
    }
}

TEST_LOOP(closing_with_unread_bytes_resets_the_peer)
{
    struct pair pair;
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    make_pair(INET, &pair);
    assert_int_equal(sock_send(pair.client, &iov, 1), 0);
    co_sleep(10 * NS_PER_MS); /* it has arrived, and nobody reads it */
    sock_close(pair.server);
    pair.server = NULL;
    assert_int_equal(sock_recv(pair.client, &byte, 1), -ECONNRESET);
    close_pair(&pair);
}

/* --- deadlines --- */

TEST_LOOP(a_deadline_ends_a_receive_and_not_earlier)
{
    struct loop *loop = loop_current();
    uint64_t deadline_ns = loop_clock_ns(loop) + 5 * NS_PER_MS;
    struct pair pair;
    uint8_t byte;

    make_pair(UNIX, &pair);
    sock_deadline(pair.client, deadline_ns);
    assert_int_equal(sock_recv(pair.client, &byte, 1), -ETIMEDOUT);
    assert_true(loop_clock_ns(loop) >= deadline_ns);
    assert_int_equal(sock_recv(pair.client, &byte, 1), -ETIMEDOUT);
    close_pair(&pair);
}

TEST_LOOP(a_deadline_taken_back_or_moved_does_not_strike)
{
    struct loop *loop = loop_current();
    struct pair pair;
    uint8_t byte = 3;
    struct iovec iov = {&byte, 1};

    make_pair(UNIX, &pair);
    sock_deadline(pair.client, loop_clock_ns(loop) + 2 * NS_PER_MS);
    sock_deadline(pair.client, DEADLINE_NEVER);
    sock_deadline(pair.server, loop_clock_ns(loop) + 2 * NS_PER_MS);
    sock_deadline(pair.server, loop_clock_ns(loop) + NS_PER_S);
    co_sleep(5 * NS_PER_MS);
    assert_int_equal(sock_send(pair.server, &iov, 1), 0);
    assert_int_equal(sock_recv(pair.client, &byte, 1), 1);
    close_pair(&pair);
}

TEST_LOOP(a_connect_that_nobody_answers_ends_at_its_deadline)
{
    struct loop *loop = loop_current();
    struct sock_address address;
    struct sock *listener = listen_on(UNIX, &address);
    struct sock *socks[300] = {NULL};
    struct err err = ERR_INIT;
    unsigned count = 0;
    uint64_t deadline_ns;
    int result;

    do { /* until the backlog is full */
        assert_true(count < ARRAY_LEN(socks));
        deadline_ns = loop_clock_ns(loop) + 20 * NS_PER_MS;
        result = sock_connect(loop, &address, deadline_ns, &socks[count], &err);
    } while (result == 0 && ++count > 0);
    assert_int_equal(result, -ETIMEDOUT);
    assert_null(socks[count]);
    assert_true(loop_clock_ns(loop) >= deadline_ns);
    assert_true(loop_clock_ns(loop) < deadline_ns + 5 * NS_PER_S);
    assert_non_null(strstr(err.text, test_path("sock")));
    while (count > 0)
        sock_close(socks[--count]);
    sock_close(listener);
    sock_address_release(&address);
    test_folder_remove();
}

/* --- addresses --- */

static int connect_error(const char *text, struct err *err) MAY_WAIT;
static int connect_error(const char *text, struct err *err)
{
    struct sock_address address;
    struct sock *sock = NULL;

    assert_int_equal(sock_address_parse(text, "test", &address, err), 0);
    int result = sock_connect(loop_current(), &address, loop_clock_ns(loop_current()) + NS_PER_S,
                              &sock, err);
    assert_true(result < 0);
    assert_null(sock);
    sock_address_release(&address);
    return result;
}

TEST_LOOP(connecting_to_nobody_is_refused_with_the_address)
{
    struct err err = ERR_INIT;
    struct sock_address address;
    char text[400];

    snprintf(text, sizeof(text), "unix:%s", test_path("nobody"));
    assert_int_equal(connect_error(text, &err), -ENOENT);
    assert_non_null(strstr(err.text, text));
    struct sock *listener = listen_on(INET, &address);
    snprintf(text, sizeof(text), "127.0.0.1:%u", sock_local_port(listener));
    sock_close(listener);
    sock_address_release(&address);
    assert_int_equal(connect_error(text, &err), -ECONNREFUSED);
    assert_non_null(strstr(err.text, text));
    test_folder_remove();
}

TEST_LOOP(an_address_in_use_is_refused_and_a_left_over_socket_replaced)
{
    struct loop *loop = loop_current();
    struct sock_address address;
    struct sock *listener, *second = NULL;
    struct err err = ERR_INIT;

    for (enum kind kind = UNIX; kind <= INET; kind++) {
        listener = listen_on(kind, &address);
        assert_int_equal(sock_listen(loop, &address, &second, &err), -EADDRINUSE);
        assert_null(second);
        sock_close(listener);
        assert_int_equal(sock_listen(loop, &address, &second, &err), 0);
        sock_close(second);
        second = NULL;
        sock_address_release(&address);
    }
    assert_false(path_exists(loop, test_path("sock"))); /* unlinked by the close */

    struct file *file = NULL;
    assert_int_equal(
        file_open(loop, test_path("sock"), FILE_CREATE | FILE_WRITABLE, FILE_AIO_AUTO, &file, &err),
        0);
    file_close(file);
    make_address(UNIX, NULL, &address);
    assert_int_equal(sock_listen(loop, &address, &second, &err), -EADDRINUSE); /* no socket */
    assert_true(path_exists(loop, test_path("sock")));
    sock_address_release(&address);
    assert_int_equal(path_unlink(loop, test_path("sock")), 0);
    test_folder_remove();
}

TEST_LOOP(names_tell_both_ends)
{
    struct sock_address address;
    struct sock *listener = listen_on(INET, &address), *client, *server = NULL;
    char text[64];

    assert_true(sock_local_port(listener) != 0);
    snprintf(text, sizeof(text), "127.0.0.1:%u", sock_local_port(listener));
    assert_string_equal(sock_local_name(listener), text);
    client = connect_to(&address);
    assert_int_equal(sock_accept(listener, &server), 0);
    assert_string_equal(sock_peer_name(client), text);
    assert_string_equal(sock_local_name(server), text);
    assert_string_equal(sock_peer_name(server), sock_local_name(client));
    sock_close(client);
    sock_close(server);
    sock_close(listener);
    sock_address_release(&address);

    listener = listen_on(UNIX, &address);
    char path[400];
    snprintf(path, sizeof(path), "unix:%s", test_path("sock"));
    assert_string_equal(sock_local_name(listener), path);
    client = connect_to(&address);
    assert_string_equal(sock_peer_name(client), path);
    sock_close(client);
    sock_close(listener);
    sock_address_release(&address);
    test_folder_remove();
}

TEST_LOOP(localhost_is_found_by_name)
{
    struct sock_address address, by_name;
    struct sock *listener = listen_on(INET, &address);
    struct err err = ERR_INIT;
    char text[64];

    snprintf(text, sizeof(text), "localhost:%u", sock_local_port(listener));
    assert_int_equal(sock_address_parse(text, "test", &by_name, &err), 0);
    struct sock *client = connect_to(&by_name);
    sock_close(client);
    sock_close(listener);
    sock_address_release(&address);
    sock_address_release(&by_name);
    assert_int_equal(connect_error("no-such-host.invalid:10809", &err), -EHOSTUNREACH);
    assert_non_null(strstr(err.text, "no-such-host.invalid"));
}

struct flood {
    struct sock_address address;
    struct sock *listener;
    struct co_group group;
};

static void come_and_say(void *arg) MAY_WAIT;
static void come_and_say(void *arg)
{
    struct flood *flood = arg;
    struct sock *sock = connect_to(&flood->address);
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    assert_int_equal(sock_send(sock, &iov, 1), 0);
    assert_int_equal(sock_recv(sock, &byte, 1), 1);
    assert_int_equal(byte, 2);
    sock_close(sock);
    co_group_leave(&flood->group);
}

TEST_LOOP(more_clients_than_the_backlog_are_all_served)
{
    struct flood flood;

    flood.listener = listen_on(UNIX, &flood.address);
    co_group_init(&flood.group);
    for (int i = 0; i < 60; i++) {
        co_group_enter(&flood.group);
        assert_int_equal(co_spawn(loop_current(), "client", come_and_say, &flood), 0);
    }
    for (int i = 0; i < 60; i++) {
        struct sock *sock = NULL;
        uint8_t byte = 0;
        struct iovec iov = {&byte, 1};
        assert_int_equal(sock_accept(flood.listener, &sock), 0);
        assert_int_equal(sock_recv(sock, &byte, 1), 1);
        byte++;
        assert_int_equal(sock_send(sock, &iov, 1), 0);
        sock_close(sock);
    }
    assert_int_equal(co_group_wait(&flood.group), 0);
    sock_close(flood.listener);
    sock_address_release(&flood.address);
    test_folder_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mebibyte_in_random_pieces_comes_back_over_unix),
        cmocka_unit_test(a_mebibyte_in_random_pieces_comes_back_over_tcp),
        cmocka_unit_test(what_was_sent_before_a_close_is_received_before_the_end),
        cmocka_unit_test(a_sender_waits_while_nobody_receives),
        cmocka_unit_test(shutdown_wakes_all_who_wait_with_its_reason),
        cmocka_unit_test(the_peer_of_a_shut_down_socket_sees_an_end),
        cmocka_unit_test(shutdown_of_a_listener_ends_accept),
        cmocka_unit_test(a_listener_that_was_shut_down_leaves_its_successors_path_alone),
        cmocka_unit_test(a_peer_that_closes_without_reading_breaks_the_sender),
        cmocka_unit_test(closing_with_unread_bytes_resets_the_peer),
        cmocka_unit_test(a_deadline_ends_a_receive_and_not_earlier),
        cmocka_unit_test(a_deadline_taken_back_or_moved_does_not_strike),
        cmocka_unit_test(a_connect_that_nobody_answers_ends_at_its_deadline),
        cmocka_unit_test(connecting_to_nobody_is_refused_with_the_address),
        cmocka_unit_test(an_address_in_use_is_refused_and_a_left_over_socket_replaced),
        cmocka_unit_test(names_tell_both_ends),
        cmocka_unit_test(localhost_is_found_by_name),
        cmocka_unit_test(more_clients_than_the_backlog_are_all_served),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
