/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* TLS on sockets: bytes arrive whole and secret, nobody gets in without the right papers, and who is
 * slow or breaks off costs nobody else. */
#include "harness.h"
#include "tls_fixture.h"

#include "loop/gather.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ECHO_BYTES (1024u * 1024)

/* --- two ends --- */

struct end {
    struct sock *sock;
    struct tls_creds *creds; /* NULL: stays silent */
    const char *hostname;
    struct err err;
    int result;
};

struct pair {
    struct end client, server;
    struct co_group group;
};

static void connect_pair(struct pair *pair) MAY_WAIT;
static void connect_pair(struct pair *pair)
{
    struct sock_address address = {.family = SOCK_FAMILY_UNIX,
                                   .path = (char *)(uintptr_t)test_path("sock")};
    struct sock *listener = NULL;
    struct err err = ERR_INIT;

    *pair = (struct pair){.client = {.hostname = "localhost"}};
    assert_int_equal(sock_listen(loop_current(), &address, &listener, &err), 0);
    assert_int_equal(
        sock_connect(loop_current(), &address, DEADLINE_NEVER, &pair->client.sock, &err), 0);
    assert_int_equal(sock_accept(listener, &pair->server.sock), 0);
    sock_close(listener);
    co_group_init(&pair->group);
}

static void pair_close(struct pair *pair) MAY_WAIT;
static void pair_close(struct pair *pair)
{
    sock_close(pair->client.sock);
    sock_close(pair->server.sock);
    tls_creds_unref(pair->client.creds);
    tls_creds_unref(pair->server.creds);
    test_folder_remove();
}

static void end_start(struct end *end) MAY_WAIT;
static void end_start(struct end *end)
{
    sock_deadline(end->sock, loop_now_ns(loop_current()) + 20 * NS_PER_S);
    end->result = sock_start_tls(end->sock, end->creds, end->hostname, &end->err);
    if (end->result == 0)
        sock_deadline(end->sock, DEADLINE_NEVER);
    else
        sock_shutdown(end->sock, 0);
}

static void server_start(void *arg) MAY_WAIT;
static void server_start(void *arg)
{
    struct pair *pair = arg;

    end_start(&pair->server);
    co_group_leave(&pair->group);
}

static void handshake(struct pair *pair) MAY_WAIT;
static void handshake(struct pair *pair)
{
    co_group_enter(&pair->group);
    assert_int_equal(co_spawn(loop_current(), "server", server_start, pair), 0);
    end_start(&pair->client);
    co_group_wait(&pair->group);
}

/* Both ends of a connection that has done its handshake, or failed. */
static void try_pair(struct pair *pair, enum tls_kind kind, const char *client, const char *server)
    MAY_WAIT;
static void try_pair(struct pair *pair, enum tls_kind kind, const char *client, const char *server)
{
    connect_pair(pair);
    pair->client.creds = tls_fixture_load(client, kind, TLS_CLIENT);
    pair->server.creds = tls_fixture_load(server, kind, TLS_SERVER);
    handshake(pair);
}

static void make_pair(struct pair *pair, enum tls_kind kind) MAY_WAIT;
static void make_pair(struct pair *pair, enum tls_kind kind)
{
    const char *folder = kind == TLS_PSK ? "psk" : "good";

    try_pair(pair, kind, folder, folder);
    if (pair->client.result < 0)
        fail_msg("client: %s", pair->client.err.text);
    if (pair->server.result < 0)
        fail_msg("server: %s", pair->server.err.text);
}

static void assert_text(const struct err *err, const char *part)
{
    if (strstr(err->text, part) == NULL)
        fail_msg("'%s' does not say '%s'", err->text, part);
}

/* --- bytes --- */

struct echo {
    struct pair pair;
    uint64_t random;
    uint8_t *bytes;
};

static void echo_back(void *arg) MAY_WAIT;
static void echo_back(void *arg)
{
    struct echo *echo = arg;
    uint8_t bytes[5000];
    ssize_t got;

    while ((got = sock_recv(echo->pair.server.sock, bytes, sizeof(bytes))) > 0) {
        struct iovec iov = {bytes, (size_t)got};
        assert_int_equal(sock_send(echo->pair.server.sock, &iov, 1), 0);
    }
    assert_int_equal(got, 0);
    co_group_leave(&echo->pair.group);
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
            size_t length = test_random(&echo->random) % 60000;
            length = MIN(length, ECHO_BYTES - piece);
            iov[i] = (struct iovec){echo->bytes + piece, length};
            piece += length;
        }
        if (test_random(&echo->random) % 3 == 0) {
            ssize_t put = sock_send_now(echo->pair.client.sock, iov, 4);
            assert_in_range(put, 0, piece - done);
            done += (size_t)put;
        } else {
            assert_int_equal(sock_send(echo->pair.client.sock, iov, 4), 0);
            done = piece;
        }
    }
    co_group_leave(&echo->pair.group);
}

static void echo_over(enum tls_kind kind) MAY_WAIT;
static void echo_over(enum tls_kind kind)
{
    struct echo echo = {.random = test_seed("echo"), .bytes = malloc(ECHO_BYTES)};
    uint8_t *back = malloc(ECHO_BYTES);
    size_t done = 0;

    assert_non_null(echo.bytes);
    assert_non_null(back);
    for (size_t i = 0; i < ECHO_BYTES; i++)
        echo.bytes[i] = (uint8_t)(i * 7 + i / 251);
    make_pair(&echo.pair, kind);
    co_group_enter(&echo.pair.group);
    co_group_enter(&echo.pair.group);
    assert_int_equal(co_spawn(loop_current(), "echo", echo_back, &echo), 0);
    assert_int_equal(co_spawn(loop_current(), "send", send_in_pieces, &echo), 0);
    while (done < ECHO_BYTES) {
        ssize_t got = sock_recv(echo.pair.client.sock, back + done, ECHO_BYTES - done);
        assert_true(got > 0);
        done += (size_t)got;
    }
    assert_memory_equal(back, echo.bytes, ECHO_BYTES);
    sock_close(TAKE_PTR(echo.pair.client.sock));
    co_group_wait(&echo.pair.group);
    pair_close(&echo.pair);
    free(echo.bytes);
    free(back);
}

TEST_LOOP(a_mebibyte_in_random_pieces_comes_back_with_certificates)
{
    echo_over(TLS_X509);
}

TEST_LOOP(a_mebibyte_in_random_pieces_comes_back_with_a_shared_key)
{
    echo_over(TLS_PSK);
}

#define MESSAGES      200u
#define MESSAGE_BYTES 5000u

struct flock {
    struct pair pair;
    struct gather gather;
    struct list_link links[MESSAGES];
    uint8_t bytes[MESSAGE_BYTES];
    unsigned returned;
    int result;
};

static void flock_sent(struct gather *gather, struct list *items, int result)
{
    struct flock *flock = CONTAINER_OF(gather, struct flock, gather);

    while (!list_empty(items)) {
        list_remove(list_first(items));
        flock->returned++;
    }
    if (result < 0)
        flock->result = result;
}

/* The receiver is slow, so most of it goes out piece by piece: none may be lost, none doubled. */
TEST_LOOP(gathered_messages_arrive_in_order_and_come_back_once)
{
    struct flock *flock = calloc(1, sizeof(*flock));
    uint8_t got[MESSAGE_BYTES + 4];

    assert_non_null(flock);
    make_pair(&flock->pair, TLS_PSK);
    memset(flock->bytes, 0x5a, sizeof(flock->bytes));
    assert_int_equal(
        gather_init(&flock->gather, loop_current(), flock->pair.server.sock, MESSAGES, flock_sent),
        0);
    for (unsigned i = 0; i < MESSAGES; i++) {
        memcpy(gather_head(&flock->gather, 4), &i, 4);
        gather_data(&flock->gather, flock->bytes, sizeof(flock->bytes));
        gather_end(&flock->gather, &flock->links[i]);
        if (i % 50 == 49)
            co_sleep(NS_PER_MS);
    }
    for (unsigned i = 0; i < MESSAGES; i++) {
        unsigned number;
        size_t done = 0;
        while (done < sizeof(got)) {
            ssize_t part = sock_recv(flock->pair.client.sock, got + done, sizeof(got) - done);
            assert_true(part > 0);
            done += (size_t)part;
        }
        memcpy(&number, got, 4);
        assert_int_equal(number, i);
        assert_memory_equal(got + 4, flock->bytes, MESSAGE_BYTES);
    }
    test_wait_until(flock->returned == MESSAGES && !flock->gather.sending);
    assert_int_equal(flock->result, 0);
    gather_release(&flock->gather);
    pair_close(&flock->pair);
    free(flock);
}

TEST_LOOP(each_side_knows_who_the_other_is)
{
    struct pair pair;

    make_pair(&pair, TLS_X509);
    assert_true(sock_is_tls(pair.client.sock));
    assert_string_equal(sock_tls_peer(pair.client.sock), "CN=localhost");
    assert_string_equal(sock_tls_peer(pair.server.sock), "CN=tester");
    pair_close(&pair);
    make_pair(&pair, TLS_PSK);
    assert_string_equal(sock_tls_peer(pair.client.sock), "");
    assert_string_equal(sock_tls_peer(pair.server.sock), "qemu");
    pair_close(&pair);
}

/* --- ends --- */

TEST_LOOP(a_close_in_good_order_is_an_end_and_a_cut_is_an_error)
{
    struct pair pair;
    uint8_t byte = 0;

    make_pair(&pair, TLS_X509);
    sock_shutdown(pair.client.sock, 0);
    assert_int_equal(sock_recv(pair.server.sock, &byte, 1), 0);
    assert_int_equal(sock_recv(pair.server.sock, &byte, 1), 0);
    pair_close(&pair);
    make_pair(&pair, TLS_X509);
    sock_shutdown(pair.client.sock, -EIO);
    assert_int_equal(sock_recv(pair.server.sock, &byte, 1), -ECONNRESET);
    assert_int_equal(sock_recv(pair.server.sock, &byte, 1), -ECONNRESET);
    pair_close(&pair);
}

TEST_LOOP(shutdown_wakes_who_waits_with_its_reason)
{
    struct pair pair;
    uint8_t byte = 0;

    make_pair(&pair, TLS_PSK);
    sock_deadline(pair.server.sock, loop_now_ns(loop_current()) + NS_PER_MS);
    assert_int_equal(sock_recv(pair.server.sock, &byte, 1), -ETIMEDOUT);
    pair_close(&pair);
}

/* --- wrong papers --- */

TEST_LOOP(a_server_of_another_authority_is_refused)
{
    struct pair pair;

    try_pair(&pair, TLS_X509, "good", "other");
    assert_int_equal(pair.client.result, -EPERM);
    assert_text(&pair.client.err, "TLS handshake with unix:");
    assert_text(&pair.client.err, "the server's certificate is refused");
    assert_int_not_equal(pair.server.result, 0);
    pair_close(&pair);
}

/* With TLS 1.3 the client learns of it by its first receive; or only that it was cut off, when the
 * server closed with bytes of the client under way. */
static void assert_client_refused(const char *folder, const char *server, const char *why) MAY_WAIT;
static void assert_client_refused(const char *folder, const char *server, const char *why)
{
    struct pair pair;
    uint8_t byte;

    try_pair(&pair, TLS_X509, folder, server);
    assert_int_equal(pair.server.result, -EPERM);
    assert_text(&pair.server.err, why);
    assert_string_equal(sock_tls_peer(pair.server.sock), "");
    ssize_t got = pair.client.result == 0 ? sock_recv(pair.client.sock, &byte, 1) : -EACCES;
    assert_true(got == -EACCES || got == -ECONNRESET);
    pair_close(&pair);
}

TEST_LOOP(a_client_without_certificate_is_refused)
{
    assert_client_refused("nocert", "good", "the client sent no certificate");
}

TEST_LOOP(a_client_of_another_authority_is_refused)
{
    struct pair pair;

    /* It believes the server, and has a certificate that the server does not believe. */
    connect_pair(&pair);
    struct tls_creds_options options = {
        .kind = TLS_X509, .endpoint = TLS_CLIENT, .folder = tls_fixture_path("other")};
    assert_int_equal(tls_creds_load(loop_current(), &options, &pair.client.creds, &pair.client.err),
                     0);
    pair.server.creds = tls_fixture_load("good", TLS_X509, TLS_SERVER);
    handshake(&pair);
    assert_int_equal(pair.server.result, -EPERM);
    pair_close(&pair);
}

TEST_LOOP(a_revoked_client_is_refused)
{
    assert_client_refused("revoked", "revoked", "revoked");
}

TEST_LOOP(a_server_may_do_without_client_certificates_when_told)
{
    struct pair pair;
    struct tls_creds_options options = {
        .kind = TLS_X509, .endpoint = TLS_SERVER, .folder = tls_fixture_path("good")};

    connect_pair(&pair);
    pair.client.creds = tls_fixture_load("nocert", TLS_X509, TLS_CLIENT);
    assert_int_equal(tls_creds_load(loop_current(), &options, &pair.server.creds, &pair.server.err),
                     0);
    handshake(&pair);
    assert_int_equal(pair.client.result, 0);
    assert_int_equal(pair.server.result, 0);
    pair_close(&pair);
}

TEST_LOOP(a_server_must_be_who_the_client_asked_for)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "example.org", "127.0.0.2"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct pair pair;

        connect_pair(&pair);
        pair.client.creds = tls_fixture_load("good", TLS_X509, TLS_CLIENT);
        pair.server.creds = tls_fixture_load("good", TLS_X509, TLS_SERVER);
        pair.client.hostname = names[i];
        handshake(&pair);
        assert_int_equal(pair.client.result, i < 2 ? 0 : -EPERM);
        if (i >= 2)
            assert_text(&pair.client.err, names[i]);
        pair_close(&pair);
    }
}

TEST_LOOP(a_wrong_key_and_an_unknown_user_look_the_same)
{
    struct pair pair;
    char first[ERR_TEXT_BYTES];

    try_pair(&pair, TLS_PSK, "psk2", "psk");
    assert_true(pair.server.result < 0);
    assert_true(pair.client.result < 0);
    assert_text(&pair.client.err, "the same key?");
    snprintf(first, sizeof(first), "%s", strstr(pair.client.err.text, ": "));
    pair_close(&pair);

    const struct tls_creds_options options = {.kind = TLS_PSK,
                                              .endpoint = TLS_CLIENT,
                                              .folder = tls_fixture_path("psk"),
                                              .username = "second"};
    connect_pair(&pair);
    assert_int_equal(tls_creds_load(loop_current(), &options, &pair.client.creds, &pair.client.err),
                     0);
    pair.server.creds = tls_fixture_load("psk2", TLS_PSK, TLS_SERVER);
    handshake(&pair);
    assert_true(pair.server.result < 0);
    assert_string_equal(strstr(pair.client.err.text, ": "), first);
    pair_close(&pair);
}

TEST_LOOP(keys_and_certificates_do_not_go_together)
{
    struct pair pair;

    connect_pair(&pair);
    pair.client.creds = tls_fixture_load("psk", TLS_PSK, TLS_CLIENT);
    pair.server.creds = tls_fixture_load("good", TLS_X509, TLS_SERVER);
    handshake(&pair);
    assert_true(pair.client.result < 0);
    assert_true(pair.server.result < 0);
    pair_close(&pair);
}

/* --- bad peers --- */

TEST_LOOP(who_stalls_in_the_handshake_is_cut_at_the_deadline_and_holds_up_nobody)
{
    struct pair stalled, other;

    connect_pair(&stalled);
    stalled.server.creds = tls_fixture_load("good", TLS_X509, TLS_SERVER);
    co_group_enter(&stalled.group);
    assert_int_equal(co_spawn(loop_current(), "server", server_start, &stalled), 0);
    uint64_t began_ns = loop_clock_ns(loop_current());
    for (int i = 0; i < 3; i++) {
        make_pair(&other, TLS_X509);
        sock_close(TAKE_PTR(other.client.sock));
        sock_close(TAKE_PTR(other.server.sock));
        tls_creds_unref(other.client.creds);
        tls_creds_unref(other.server.creds);
    }
    assert_true(loop_clock_ns(loop_current()) - began_ns < 10 * NS_PER_S);
    assert_int_equal(stalled.server.result, 0); /* still at it */
    sock_deadline(stalled.server.sock, loop_now_ns(loop_current()) + NS_PER_MS);
    co_group_wait(&stalled.group);
    assert_int_equal(stalled.server.result, -ETIMEDOUT);
    assert_text(&stalled.server.err, "it took too long");
    pair_close(&stalled);
}

static void assert_bytes_refused(const void *bytes, size_t length_bytes) MAY_WAIT;
static void assert_bytes_refused(const void *bytes, size_t length_bytes)
{
    struct pair pair;
    struct iovec iov = {(void *)(uintptr_t)bytes, length_bytes};

    connect_pair(&pair);
    pair.server.creds = tls_fixture_load("good", TLS_X509, TLS_SERVER);
    co_group_enter(&pair.group);
    assert_int_equal(co_spawn(loop_current(), "server", server_start, &pair), 0);
    assert_int_equal(sock_send(pair.client.sock, &iov, 1), 0);
    sock_shutdown(pair.client.sock, 0);
    co_group_wait(&pair.group);
    assert_true(pair.server.result == -EPROTO || pair.server.result == -ECONNRESET ||
                pair.server.result == -EPIPE || pair.server.result == -EACCES ||
                pair.server.result == -ECONNABORTED);
    pair_close(&pair);
}

TEST_LOOP(a_handshake_cut_off_or_of_random_bytes_is_an_error)
{
    /* The head of a ClientHello that promises more. */
    static const uint8_t hello[] = {0x16, 0x03, 0x01, 0x02, 0x00, 0x01,
                                    0x00, 0x01, 0xfc, 0x03, 0x03};
    uint64_t random = test_seed("random bytes");
    uint8_t bytes[600];

    for (size_t i = 1; i <= sizeof(hello); i++)
        assert_bytes_refused(hello, i);
    for (unsigned round = 0; round < 30; round++) {
        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] = (uint8_t)test_random(&random);
        if (round % 2 == 0)
            memcpy(bytes, hello, sizeof(hello));
        assert_bytes_refused(bytes, sizeof(bytes));
    }
}

TEST_LOOP(bytes_changed_under_way_are_an_error)
{
    struct pair pair;
    uint8_t byte = 0;
    static const uint8_t forged[] = {0x17, 0x03, 0x03, 0x00, 0x20, 1,  2,  3,  4,  5,  6,  7,  8,
                                     9,    10,   11,   12,   13,   14, 15, 16, 17, 18, 19, 20, 21,
                                     22,   23,   24,   25,   26,   27, 28, 29, 30, 31, 32};
    struct iovec iov = {(void *)(uintptr_t)forged, sizeof(forged)};

    /* A second stream of records over the same connection: the client writes around its TLS. */
    connect_pair(&pair);
    pair.server.creds = tls_fixture_load("psk", TLS_PSK, TLS_SERVER);
    co_group_enter(&pair.group);
    assert_int_equal(co_spawn(loop_current(), "server", server_start, &pair), 0);
    assert_int_equal(sock_send(pair.client.sock, &iov, 1), 0);
    co_group_wait(&pair.group);
    assert_true(pair.server.result < 0);
    assert_int_equal(sock_recv(pair.server.sock, &byte, 1), -ECONNABORTED); /* it is shut down */
    pair_close(&pair);
}

/* --- loading --- */

static void assert_load_fails(struct tls_creds_options options, int code, const char *file,
                              const char *why) MAY_WAIT;
static void assert_load_fails(struct tls_creds_options options, int code, const char *file,
                              const char *why)
{
    struct tls_creds *creds = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(tls_creds_load(loop_current(), &options, &creds, &err), code);
    assert_null(creds);
    assert_text(&err, tls_fixture_path(file));
    assert_text(&err, why);
}

static struct tls_creds_options options_of(const char *folder, enum tls_kind kind,
                                           enum tls_endpoint endpoint)
{
    return (struct tls_creds_options){.kind = kind,
                                      .endpoint = endpoint,
                                      .folder = tls_fixture_path(folder),
                                      .verify_peer = true};
}

TEST_LOOP(certificates_that_do_not_do_are_refused_by_name)
{
    assert_load_fails(options_of("nosuch", TLS_X509, TLS_SERVER), -ENOENT, "nosuch/ca-cert.pem",
                      "is missing");
    assert_load_fails(options_of("nocert", TLS_X509, TLS_SERVER), -ENOENT, "nocert/server-cert.pem",
                      "is missing");
    assert_load_fails(options_of("expired", TLS_X509, TLS_SERVER), -EKEYEXPIRED,
                      "expired/server-cert.pem", "has expired on 20");
    assert_load_fails(options_of("expired", TLS_X509, TLS_CLIENT), -EKEYEXPIRED,
                      "expired/client-cert.pem", "replace it");
    assert_load_fails(options_of("late", TLS_X509, TLS_SERVER), -EKEYREJECTED,
                      "late/server-cert.pem", "check the clock");
    tls_fixture_write("late/server-cert.pem", "no certificate\n", 0644);
    assert_load_fails(options_of("late", TLS_X509, TLS_SERVER), -EINVAL, "late/server-cert.pem",
                      "no usable certificate");
}

TEST_LOOP(keys_that_do_not_do_are_refused_by_name)
{
    assert_int_equal(remove(tls_fixture_path("other/client-key.pem")), 0);
    assert_load_fails(options_of("other", TLS_X509, TLS_CLIENT), -ENOENT, "other/client-key.pem",
                      "is missing");
    assert_int_equal(rename(tls_fixture_path("revoked/client-key.pem"),
                            tls_fixture_path("other/client-key.pem")),
                     0);
    assert_load_fails(options_of("other", TLS_X509, TLS_CLIENT), -EINVAL, "other/client-key.pem",
                      "is not that of the certificate");
    tls_fixture_write("revoked/server-key.pem", "secret\n", 0644);
    assert_load_fails(options_of("revoked", TLS_X509, TLS_SERVER), -EPERM, "revoked/server-key.pem",
                      "chmod 600");
}

TEST_LOOP(lists_of_keys_that_do_not_do_are_refused_without_quoting_them)
{
    static const struct {
        const char *text, *why;
    } bad[] = {
        {"", "holds no key"},
        {"# nothing\n\n", "holds no key"},
        {"qemu\n", "line 1: a line is USER:KEY"},
        {":00112233445566778899aabbccddeeff\n", "line 1: a line is USER:KEY"},
        {"#\nqemu:5ec3e7\n", "line 2: the key must have at least 32 hex"},
        {"qemu:5ec3e75ec3e75ec3e75ec3e75ec3e75ec3e75ec3ezz\n", "line 1: the key must"},
        {"qemu:00112233445566778899aabbccddeeff\nqemu:00112233445566778899aabbccddeeff\n",
         "line 2: a user is there twice"},
        {"other:00112233445566778899aabbccddeeff\n", "has no key of user 'qemu'"},
    };

    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct tls_creds_options options = options_of("psk2", TLS_PSK, TLS_CLIENT);
        struct tls_creds *creds = NULL;
        struct err err = ERR_INIT;

        tls_fixture_write("psk2/keys.psk", bad[i].text, 0600);
        assert_load_fails(options,
                          i == 6   ? -EEXIST
                          : i == 7 ? -ENOENT
                                   : -EINVAL,
                          "psk2/keys.psk", bad[i].why);
        assert_true(tls_creds_load(loop_current(), &options, &creds, &err) < 0);
        assert_null(strstr(err.text, "5ec3e7"));
    }
    tls_fixture_write("psk2/keys.psk", "qemu:00112233445566778899aabbccddeeff\n", 0604);
    assert_load_fails(options_of("psk2", TLS_PSK, TLS_SERVER), -EPERM, "psk2/keys.psk",
                      "mode 0604");
}

static int setup(void **state)
{
    (void)state;
    tls_fixture_make();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tls_fixture_remove();
    return 0;
}

#define tls_test(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        tls_test(a_mebibyte_in_random_pieces_comes_back_with_certificates),
        tls_test(a_mebibyte_in_random_pieces_comes_back_with_a_shared_key),
        tls_test(gathered_messages_arrive_in_order_and_come_back_once),
        tls_test(each_side_knows_who_the_other_is),
        tls_test(a_close_in_good_order_is_an_end_and_a_cut_is_an_error),
        tls_test(shutdown_wakes_who_waits_with_its_reason),
        tls_test(a_server_of_another_authority_is_refused),
        tls_test(a_client_without_certificate_is_refused),
        tls_test(a_client_of_another_authority_is_refused),
        tls_test(a_revoked_client_is_refused),
        tls_test(a_server_may_do_without_client_certificates_when_told),
        tls_test(a_server_must_be_who_the_client_asked_for),
        tls_test(a_wrong_key_and_an_unknown_user_look_the_same),
        tls_test(keys_and_certificates_do_not_go_together),
        tls_test(who_stalls_in_the_handshake_is_cut_at_the_deadline_and_holds_up_nobody),
        tls_test(a_handshake_cut_off_or_of_random_bytes_is_an_error),
        tls_test(bytes_changed_under_way_are_an_error),
        tls_test(certificates_that_do_not_do_are_refused_by_name),
        tls_test(keys_that_do_not_do_are_refused_by_name),
        tls_test(lists_of_keys_that_do_not_do_are_refused_without_quoting_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
