/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The NBD server: what clients get, and what hostile ones cannot do. */
#include "nbd_peers.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BOTH_FLAGS (NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES)

static struct nbd_server_info server_info;

static void note_server(void *arg, const struct nbd_server_info *info)
{
    server_info = *info;
}

static struct nbd_server_info query_server(const struct nbd_world *world)
{
    nbd_server_query(world->service, note_server, NULL);
    return server_info;
}

static struct nbd_export_info export_info;

static void note_export(void *arg, const struct nbd_export_info *info)
{
    if (strcmp(info->name, arg) == 0)
        export_info = *info;
}

static struct nbd_export_info query_export(const struct nbd_world *world, const char *name)
{
    nbd_export_query(world->service, note_export, (void *)(uintptr_t)name);
    return export_info;
}

/* --- negotiation --- */

TEST_LOOP(an_unknown_export_is_refused_and_a_known_one_still_given)
{
    struct nbd_world world;

    nbd_world_begin(&world, NULL, NULL);
    struct sock *sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    assert_int_equal(peer_go(sock, "other"), NBD_REP_ERR_UNKNOWN);
    assert_int_equal(peer_go(sock, "disk"), NBD_REP_ACK);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(no_name_means_the_only_export)
{
    struct nbd_world world;

    nbd_world_begin(&world, NULL, NULL);
    struct sock *sock = peer_session(&world, "", false);
    peer_close(sock);
    nbd_world_export(&world, "second", "disk", false);
    sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    assert_int_equal(peer_go(sock, ""), NBD_REP_ERR_UNKNOWN);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(a_list_names_every_export)
{
    struct nbd_world world;
    char name[64];

    nbd_world_begin(&world, NULL, NULL);
    nbd_world_export(&world, "second", "disk", false);
    struct sock *sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    peer_option(sock, NBD_OPT_LIST, NULL, 0);
    assert_int_equal(peer_option_reply(sock, NBD_OPT_LIST, name, sizeof(name)), NBD_REP_SERVER);
    assert_string_equal(name + 4, "disk");
    assert_int_equal(peer_option_reply(sock, NBD_OPT_LIST, name, sizeof(name)), NBD_REP_SERVER);
    assert_string_equal(name + 4, "second");
    assert_int_equal(peer_option_reply(sock, NBD_OPT_LIST, name, sizeof(name)), NBD_REP_ACK);
    peer_option(sock, NBD_OPT_LIST, "x", 1);
    assert_int_equal(peer_option_end(sock, NBD_OPT_LIST), NBD_REP_ERR_INVALID);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(tls_and_unknown_options_are_refused_and_the_dialogue_goes_on)
{
    struct nbd_world world;

    nbd_world_begin(&world, NULL, NULL);
    struct sock *sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    peer_option(sock, NBD_OPT_STARTTLS, NULL, 0);
    assert_int_equal(peer_option_end(sock, NBD_OPT_STARTTLS), NBD_REP_ERR_POLICY);
    peer_option(sock, 4711, "payload", 7);
    assert_int_equal(peer_option_end(sock, 4711), NBD_REP_ERR_UNSUP);
    peer_option(sock, NBD_OPT_GO, "short", 5);
    assert_int_equal(peer_option_end(sock, NBD_OPT_GO), NBD_REP_ERR_INVALID);
    /* Contexts need structured replies. */
    peer_option(sock, NBD_OPT_SET_META_CONTEXT, "\0\0\0\0\0\0\0\0", 8);
    assert_int_equal(peer_option_end(sock, NBD_OPT_SET_META_CONTEXT), NBD_REP_ERR_INVALID);
    peer_option(sock, NBD_OPT_ABORT, NULL, 0);
    assert_int_equal(peer_option_end(sock, NBD_OPT_ABORT), NBD_REP_ACK);
    peer_expect_end(sock);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(the_old_way_to_name_an_export_works_with_and_without_padding)
{
    struct nbd_world world;
    uint8_t answer[NBD_EXPORT_NAME_REPLY_BYTES + NBD_EXPORT_NAME_ZEROES];

    nbd_world_begin(&world, NULL, NULL);
    for (int padded = 0; padded < 2; padded++) {
        struct sock *sock = peer_connect(&world);
        peer_greet(sock, padded ? NBD_FIXED_NEWSTYLE : BOTH_FLAGS);
        peer_option(sock, NBD_OPT_EXPORT_NAME, "disk", 4);
        assert_true(peer_recv(sock, answer, padded ? sizeof(answer) : NBD_EXPORT_NAME_REPLY_BYTES));
        assert_true(be64_get(answer) == 1048576);
        assert_int_equal(be16_get(answer + 8) & NBD_READ_ONLY, 0);
        peer_request(sock, NBD_CMD_FLUSH, 0, 9, 0, 0);
        assert_int_equal(peer_simple_reply(sock, 9), 0);
        peer_request(sock, NBD_CMD_DISC, 0, 0, 0, 0);
        peer_expect_end(sock);
        peer_close(sock);
    }
    struct sock *sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    peer_option(sock, NBD_OPT_EXPORT_NAME, "other", 5);
    peer_expect_end(sock);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(an_option_over_the_limit_ends_the_connection)
{
    static const uint32_t lengths[] = {16 * 1024 + 1, 1u << 20, UINT32_MAX};
    struct nbd_world world;

    nbd_world_begin(&world, NULL, NULL);
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        uint8_t head[NBD_OPTION_BYTES];
        struct nbd_option_header header = {NBD_OPT_GO, lengths[i]};
        struct sock *sock = peer_connect(&world);
        peer_greet(sock, BOTH_FLAGS);
        nbd_option_encode(head, &header);
        assert_true(peer_send(sock, head, sizeof(head)));
        peer_expect_end(sock);
        peer_close(sock);
    }
    assert_int_equal(query_server(&world).broken, ARRAY_LEN(lengths));
    nbd_world_end(&world);
}

TEST_LOOP(who_dawdles_in_the_handshake_is_cut)
{
    struct nbd_service_options options = {.handshake_timeout_ns = 30 * NS_PER_MS};
    struct nbd_world world;

    nbd_world_begin(&world, &options, NULL);
    struct sock *mute = peer_connect(&world);
    struct sock *slow = peer_connect(&world);
    struct sock *quick = peer_session(&world, "disk", false);
    peer_greet(slow, BOTH_FLAGS);
    peer_expect_end(mute);
    peer_expect_end(slow);
    test_wait_until(query_server(&world).timed_out == 2);
    co_sleep(50 * NS_PER_MS);
    /* The deadline is the handshake's alone. */
    peer_request(quick, NBD_CMD_FLUSH, 0, 1, 0, 0);
    assert_int_equal(peer_simple_reply(quick, 1), 0);
    peer_close(mute);
    peer_close(slow);
    peer_close(quick);
    nbd_world_end(&world);
}

TEST_LOOP(more_connections_than_allowed_are_refused_until_one_leaves)
{
    struct nbd_world world;
    struct err err = ERR_INIT;

    nbd_world_begin(&world, NULL, NULL);
    assert_int_equal(nbd_server_stop(world.service, "default", &err), 0);
    assert_int_equal(nbd_server_start(world.service, "default", &world.address, 1, 1, &err), 0);
    nbd_world_export(&world, "disk", "disk", true);
    struct sock *first = peer_session(&world, "disk", false);
    struct sock *second = peer_connect(&world);
    peer_expect_end(second);
    assert_int_equal(query_server(&world).refused, 1);
    peer_close(second);
    peer_close(first);
    test_wait_until(query_server(&world).connections == 0);
    first = peer_session(&world, "disk", false);
    peer_close(first);
    nbd_world_end(&world);
}

/* --- requests --- */

TEST_LOOP(bytes_are_read_back_by_simple_replies)
{
    struct nbd_world world;
    uint8_t bytes[512], back[512];

    nbd_world_begin(&world, NULL, NULL);
    struct sock *sock = peer_session(&world, "disk", false);
    memset(bytes, 0xa5, sizeof(bytes));
    peer_request(sock, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 1, 100, sizeof(bytes));
    peer_send(sock, bytes, sizeof(bytes));
    assert_int_equal(peer_simple_reply(sock, 1), 0);
    peer_request(sock, NBD_CMD_READ, 0, 2, 100, sizeof(bytes));
    assert_int_equal(peer_simple_reply(sock, 2), 0);
    assert_true(peer_recv(sock, back, sizeof(back)));
    assert_memory_equal(bytes, back, sizeof(bytes));
    peer_request(sock, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 3, 100, 256);
    assert_int_equal(peer_simple_reply(sock, 3), 0);
    peer_request(sock, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 4, 4096, 4096);
    assert_int_equal(peer_simple_reply(sock, 4), 0);
    peer_request(sock, NBD_CMD_CACHE, 0, 5, 0, 8192);
    assert_int_equal(peer_simple_reply(sock, 5), 0);
    peer_request(sock, NBD_CMD_READ, 0, 6, 100, sizeof(bytes));
    assert_int_equal(peer_simple_reply(sock, 6), 0);
    assert_true(peer_recv(sock, back, sizeof(back)));
    assert_true(bytes_are_zero(back, 256));
    assert_memory_equal(bytes, back + 256, 256);
    assert_int_equal(query_export(&world, "disk").write.requests, 1);
    assert_int_equal(query_export(&world, "disk").read.bytes, 1024);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(structured_replies_carry_data_errors_and_extents)
{
    struct nbd_world world;
    uint8_t bytes[64];

    nbd_world_begin(&world, NULL, NULL);
    struct sock *sock = peer_session(&world, "disk", true);
    peer_request(sock, NBD_CMD_READ, NBD_CMD_FLAG_DF, 1, 4096, 16);
    struct nbd_chunk chunk = peer_chunk(sock, 1);
    assert_int_equal(chunk.type, NBD_CHUNK_OFFSET_DATA);
    assert_int_equal(chunk.flags, NBD_CHUNK_DONE);
    assert_int_equal(chunk.length_bytes, 8 + 16);
    assert_true(peer_recv(sock, bytes, 24));
    assert_true(be64_get(bytes) == 4096);
    peer_request(sock, NBD_CMD_READ, 0, 2, 1048576, 16);
    chunk = peer_chunk(sock, 2);
    assert_int_equal(chunk.type, NBD_CHUNK_ERROR);
    assert_true(peer_recv(sock, bytes, chunk.length_bytes));
    assert_int_equal(be32_get(bytes), 22);
    peer_request(sock, NBD_CMD_READ, 0, 3, 0, 0);
    assert_int_equal(peer_chunk(sock, 3).type, NBD_CHUNK_NONE);
    peer_request(sock, NBD_CMD_BLOCK_STATUS, 0, 4, 0, 65536);
    for (uint32_t context = 0; context < 2; context++) {
        chunk = peer_chunk(sock, 4);
        assert_int_equal(chunk.type, NBD_CHUNK_BLOCK_STATUS);
        assert_int_equal(chunk.flags, context == 1 ? NBD_CHUNK_DONE : 0);
        assert_int_equal(chunk.length_bytes, 12);
        assert_true(peer_recv(sock, bytes, 12));
        assert_int_equal(be32_get(bytes), context);
        assert_int_equal(be32_get(bytes + 4), 65536);
    }
    peer_request(sock, NBD_CMD_BLOCK_STATUS, 0, 5, 0, 0);
    chunk = peer_chunk(sock, 5);
    assert_int_equal(chunk.type, NBD_CHUNK_ERROR);
    assert_true(peer_recv(sock, bytes, chunk.length_bytes));
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(requests_beyond_the_end_and_of_no_known_kind_get_errors)
{
    struct nbd_world world;
    uint8_t byte = 1;

    nbd_world_begin(&world, NULL, NULL);
    struct sock *sock = peer_session(&world, "disk", false);
    peer_request(sock, NBD_CMD_READ, 0, 1, 1048575, 2);
    assert_int_equal(peer_simple_reply(sock, 1), -EINVAL);
    peer_request(sock, NBD_CMD_READ, 0, 2, UINT64_MAX, 2);
    assert_int_equal(peer_simple_reply(sock, 2), -EINVAL);
    peer_request(sock, NBD_CMD_WRITE, 0, 3, 1048576, 1);
    peer_send(sock, &byte, 1);
    assert_int_equal(peer_simple_reply(sock, 3), -ENOSPC);
    peer_request(sock, NBD_CMD_WRITE_ZEROES, 0, 4, 1, 1048576);
    assert_int_equal(peer_simple_reply(sock, 4), -ENOSPC);
    peer_request(sock, NBD_CMD_TRIM, 0, 5, 1, 1048576);
    assert_int_equal(peer_simple_reply(sock, 5), -EINVAL);
    peer_request(sock, 99, 0, 6, 0, 0);
    assert_int_equal(peer_simple_reply(sock, 6), -EINVAL);
    peer_request(sock, NBD_CMD_READ, 0x8000, 7, 0, 1);
    assert_int_equal(peer_simple_reply(sock, 7), -EINVAL);
    peer_request(sock, NBD_CMD_READ, 0, 8, 0, UINT32_MAX);
    assert_int_equal(peer_simple_reply(sock, 8), -EINVAL);
    peer_request(sock, NBD_CMD_BLOCK_STATUS, 0, 9, 0, 512);
    assert_int_equal(peer_simple_reply(sock, 9), -EINVAL);
    /* And it still serves. */
    peer_request(sock, NBD_CMD_FLUSH, 0, 10, 0, 0);
    assert_int_equal(peer_simple_reply(sock, 10), 0);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(a_read_only_export_refuses_changes_and_stays_in_step)
{
    struct nbd_world world;
    uint8_t bytes[700] = {1};

    nbd_world_begin(&world, NULL, NULL);
    nbd_world_export(&world, "ro", "disk", false);
    struct sock *sock = peer_session(&world, "ro", false);
    peer_request(sock, NBD_CMD_WRITE, 0, 1, 0, sizeof(bytes));
    peer_send(sock, bytes, sizeof(bytes));
    assert_int_equal(peer_simple_reply(sock, 1), -EPERM);
    peer_request(sock, NBD_CMD_WRITE_ZEROES, 0, 2, 0, 512);
    assert_int_equal(peer_simple_reply(sock, 2), -EPERM);
    peer_request(sock, NBD_CMD_TRIM, 0, 3, 0, 512);
    assert_int_equal(peer_simple_reply(sock, 3), -EPERM);
    peer_request(sock, NBD_CMD_READ, 0, 4, 0, 512);
    assert_int_equal(peer_simple_reply(sock, 4), 0);
    assert_true(peer_recv(sock, bytes, 512));
    assert_true(bytes_are_zero(bytes, 512));
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(a_payload_over_the_limit_ends_the_connection)
{
    struct nbd_world world;

    nbd_world_begin(&world, NULL, "{'node-name':'disk','driver':'null-co','size':1099511627776}");
    struct sock *sock = peer_session(&world, "disk", false);
    peer_request(sock, NBD_CMD_WRITE, 0, 1, 0, NBD_MAX_REQUEST_BYTES + 1);
    peer_expect_end(sock);
    assert_int_equal(query_server(&world).broken, 1);
    peer_close(sock);
    nbd_world_end(&world);
}

TEST_LOOP(payloads_of_every_length_and_many_at_once_arrive_whole)
{
    static const uint32_t lengths[] = {1, 27, 28, 4096, 65536, 65537, 100000, 262144, 300000, 28};
    struct nbd_world world;
    uint8_t *bytes = malloc(1048576), *back = malloc(1048576);
    uint64_t at = 0;

    assert_true(bytes != NULL && back != NULL);
    nbd_world_begin(&world, NULL, "{'node-name':'disk','driver':'mem','size':1048576,'yields':3}");
    for (size_t i = 0; i < 1048576; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 251);
    struct sock *sock = peer_session(&world, "disk", false);
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        peer_request(sock, NBD_CMD_WRITE, 0, i, at, lengths[i]);
        peer_send(sock, bytes + at, lengths[i]);
        at += lengths[i];
    }
    unsigned seen = 0;
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        uint8_t reply[NBD_SIMPLE_REPLY_BYTES];
        assert_true(peer_recv(sock, reply, sizeof(reply)));
        assert_int_equal(be32_get(reply + 4), 0);
        seen |= 1u << be64_get(reply + 8);
    }
    assert_int_equal(seen, (1u << ARRAY_LEN(lengths)) - 1);
    peer_request(sock, NBD_CMD_READ, 0, 77, 0, (uint32_t)at);
    assert_int_equal(peer_simple_reply(sock, 77), 0);
    assert_true(peer_recv(sock, back, at));
    assert_memory_equal(bytes, back, at);
    peer_close(sock);
    nbd_world_end(&world);
    free(bytes);
    free(back);
}

TEST_LOOP(payloads_stay_whole_while_the_disk_is_slow)
{
    enum { COUNT = 230 };
    struct nbd_world world;
    uint8_t *bytes = malloc((NBD_REQUEST_BYTES + 4096) * COUNT);

    assert_non_null(bytes);
    nbd_world_begin(&world, NULL,
                    "{'node-name':'disk','driver':'mem','size':1048576,'yields':300}");
    struct sock *sock = peer_session(&world, "disk", false);
    /* Far more than one receive buffer holds, all under way before the first has ended. */
    for (unsigned i = 0; i < COUNT; i++) {
        struct nbd_request request = {0, NBD_CMD_WRITE, i, i * 4096, 4096};
        uint8_t *at = bytes + (size_t)i * (NBD_REQUEST_BYTES + 4096);
        nbd_request_encode(at, &request);
        memset(at + NBD_REQUEST_BYTES, (int)(i + 1), 4096);
    }
    assert_true(peer_send(sock, bytes, (NBD_REQUEST_BYTES + 4096) * COUNT));
    for (unsigned i = 0; i < COUNT; i++) {
        uint8_t reply[NBD_SIMPLE_REPLY_BYTES];
        assert_true(peer_recv(sock, reply, sizeof(reply)));
        assert_int_equal(be32_get(reply + 4), 0);
    }
    for (unsigned i = 0; i < COUNT * 4096; i++)
        assert_int_equal(mem_bytes(world.node)[i], (uint8_t)(i / 4096 + 1));
    peer_close(sock);
    nbd_world_end(&world);
    free(bytes);
}

TEST_LOOP(who_disconnects_still_gets_the_replies_due)
{
    struct nbd_world world;

    nbd_world_begin(&world, NULL, "{'node-name':'disk','driver':'mem','size':1048576,'yields':9}");
    struct sock *sock = peer_session(&world, "disk", false);
    peer_request(sock, NBD_CMD_WRITE_ZEROES, 0, 5, 0, 4096);
    peer_request(sock, NBD_CMD_DISC, 0, 0, 0, 0);
    assert_int_equal(peer_simple_reply(sock, 5), 0);
    peer_expect_end(sock);
    peer_close(sock);
    nbd_world_end(&world);
}

/* --- hostile clients --- */

/* How far a client of ill will behaves before it sends noise. */
enum stage { AT_GREETING, AT_OPTIONS, IN_OPTION, AT_REQUESTS, IN_PAYLOAD, STAGES };

static void misbehave(const struct nbd_world *world, enum stage stage, uint64_t *seed) MAY_WAIT
{
    struct sock *sock;
    uint8_t noise[300];
    size_t length = 1 + test_random(seed) % sizeof(noise);

    for (size_t i = 0; i < sizeof(noise); i++)
        noise[i] = (uint8_t)test_random(seed);
    if (stage >= AT_REQUESTS) {
        sock = peer_session(world, "disk", (test_random(seed) & 1) != 0);
    } else {
        sock = peer_connect(world);
        if (stage > AT_GREETING)
            peer_greet(sock, BOTH_FLAGS);
    }
    if (stage == IN_OPTION)
        peer_option(sock, NBD_OPT_INFO + (uint32_t)(test_random(seed) % 5), noise,
                    MIN(length, 100u));
    if (stage == IN_PAYLOAD)
        peer_request(sock, NBD_CMD_WRITE, 0, 1, 0, (uint32_t)(test_random(seed) % 100000));
    (void)peer_send(sock, noise, length);
    if ((test_random(seed) & 1) != 0) {
        uint8_t some[64];
        sock_deadline(sock, loop_now_ns(loop_current()) + NS_PER_MS);
        (void)sock_recv(sock, some, sizeof(some));
    }
    peer_close(sock);
}

TEST_LOOP(noise_at_any_stage_costs_only_its_own_connection)
{
    struct nbd_world world;
    uint64_t seed = test_seed("noise");

    nbd_world_begin(&world, NULL, NULL);
    struct sock *good = peer_session(&world, "disk", false);
    for (unsigned i = 0; i < 300; i++) {
        misbehave(&world, (enum stage)(i % STAGES), &seed);
        peer_request(good, NBD_CMD_FLUSH, 0, i, 0, 0);
        assert_int_equal(peer_simple_reply(good, i), 0);
    }
    test_wait_until(query_server(&world).connections == 1);
    assert_int_equal(nbd_service_info(world.service).budget_used_bytes, 0);
    /* The receive buffer of the good one is all that is left. */
    assert_true(buf_pool_stats(loop_bufs(loop_current())).in_use_bytes <= 256u * 1024);
    peer_close(good);
    nbd_world_end(&world);
}

static void read_one(const struct nbd_world *world, bool *done) MAY_WAIT
{
    struct sock *sock = peer_session(world, "disk", false);
    uint8_t *bytes = malloc(NBD_MAX_REQUEST_BYTES);

    assert_non_null(bytes);
    peer_request(sock, NBD_CMD_READ, 0, 1, 0, NBD_MAX_REQUEST_BYTES);
    assert_int_equal(peer_simple_reply(sock, 1), 0);
    assert_true(peer_recv(sock, bytes, NBD_MAX_REQUEST_BYTES));
    *done = true;
    free(bytes);
    peer_close(sock);
}

TEST_LOOP(who_does_not_read_replies_cannot_keep_the_memory_of_all)
{
    struct nbd_service_options options = {.budget_bytes = NBD_MAX_CONNECTION_BYTES};
    struct nbd_world world;
    bool done = false;

    if (!test_loop_is_sim())
        return; /* half a minute of real time */
    nbd_world_begin(&world, &options, "{'node-name':'disk','driver':'null-co','size':1073741824}");
    struct sock *greedy = peer_session(&world, "disk", false);
    peer_request(greedy, NBD_CMD_READ, 0, 1, 0, NBD_MAX_REQUEST_BYTES);
    struct sock *liar = peer_session(&world, "disk", false);
    peer_request(liar, NBD_CMD_WRITE, 0, 1, 0, NBD_MAX_REQUEST_BYTES);
    co_sleep(NS_PER_S);
    uint64_t began_ns = loop_now_ns(loop_current());
    read_one(&world, &done);
    assert_true(done);
    assert_true(loop_now_ns(loop_current()) - began_ns < 60 * NS_PER_S);
    peer_close(greedy);
    peer_close(liar);
    nbd_world_end(&world);
}

/* --- ends --- */

TEST_LOOP(a_revoked_export_waits_for_what_was_taken_and_takes_no_more)
{
    struct nbd_world world;
    struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .hold = true};
    struct err err = ERR_INIT;
    uint8_t bytes[512] = {7};
    uint64_t soon_ns;

    nbd_world_begin(
        &world, NULL,
        "{'node-name':'disk','driver':'blkdebug','file':{'driver':'mem','size':65536}}");
    assert_int_equal(blkdebug_inject(world.node, &hold, NULL), 0);
    struct sock *sock = peer_session(&world, "disk", false);
    peer_request(sock, NBD_CMD_WRITE, 0, 1, 0, 512);
    peer_send(sock, bytes, 512);
    soon_ns = loop_now_ns(loop_current()) + 5 * NS_PER_S;
    assert_int_equal(blkdebug_await_held(world.node, 0, 1, soon_ns), 0);
    assert_int_equal(query_export(&world, "disk").requests_in_flight, 1);
    /* The release comes from a rule's own delay, so that the revoke has to wait for it. */
    blkdebug_remove(world.node, 0);
    hold = (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .delay_ns = 20 * NS_PER_MS};
    blkdebug_release(world.node, 0);
    assert_int_equal(blkdebug_inject(world.node, &hold, NULL), 0);
    peer_request(sock, NBD_CMD_WRITE, 0, 2, 512, 512);
    peer_send(sock, bytes, 512);
    test_wait_until(blkdebug_matches(world.node, 0) > 0 ||
                    query_export(&world, "disk").write.requests == 1);
    test_wait_until(query_export(&world, "disk").requests_in_flight == 1);
    assert_int_equal(nbd_export_revoke(world.service, "disk", &err), 0);
    assert_int_equal(query_export(&world, "disk").requests_in_flight, 0);
    assert_int_equal(query_export(&world, "disk").write.requests, 2);
    peer_expect_end(sock);
    peer_close(sock);
    sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    assert_int_equal(peer_go(sock, "disk"), NBD_REP_ERR_UNKNOWN);
    peer_close(sock);
    assert_int_equal(nbd_export_del(world.service, "disk", NBD_REMOVE_SAFE, &err), 0);
    nbd_world_end(&world);
}

static char deleted[64];

static void note_event(void *arg, const char *name, struct json_object *data)
{
    struct json_object *id;

    if (strcmp(name, "BLOCK_EXPORT_DELETED") == 0 && json_object_object_get_ex(data, "id", &id))
        snprintf(deleted, sizeof(deleted), "%s", json_object_get_string(id));
    json_object_put(data);
}

TEST_LOOP(an_export_in_use_goes_only_by_force_and_says_so)
{
    struct nbd_world world;
    struct err err = ERR_INIT;

    nbd_world_begin(&world, NULL, NULL);
    graph_set_events(world.graph, note_event, NULL);
    struct sock *sock = peer_session(&world, "disk", false);
    assert_int_equal(nbd_export_del(world.service, "disk", NBD_REMOVE_SAFE, &err), -EBUSY);
    peer_request(sock, NBD_CMD_FLUSH, 0, 1, 0, 0);
    assert_int_equal(peer_simple_reply(sock, 1), 0);
    deleted[0] = '\0';
    assert_int_equal(nbd_export_del(world.service, "disk", NBD_REMOVE_HARD, &err), 0);
    assert_string_equal(deleted, "disk");
    peer_expect_end(sock);
    peer_close(sock);
    assert_int_equal(nbd_export_del(world.service, "disk", NBD_REMOVE_HARD, &err), -ENOENT);
    /* Nothing refers to the node any more. */
    assert_int_equal(graph_del(world.graph, "disk", &err), 0);
    nbd_world_end(&world);
}

struct writer {
    struct nbd_world *world;
    struct edge *edge;
    unsigned done, failed;
    bool stop, ended;
};

static void write_on(void *arg) MAY_WAIT
{
    struct writer *writer = arg;

    while (!writer->stop) {
        int result = blocks_write(writer->edge, (writer->done % 16) * 4096, 4096, 1, 0);
        writer->done++;
        writer->failed += result < 0;
        if (result < 0)
            break;
    }
    writer->ended = true;
}

TEST_LOOP(a_fenced_server_has_no_request_inside_and_takes_no_connection)
{
    struct nbd_world world;
    struct err err = ERR_INIT;
    struct sock *sock;

    nbd_world_begin(&world, NULL, "{'node-name':'disk','driver':'mem','size':65536,'yields':5}");
    struct writer writer = {.world = &world, .edge = nbd_world_client(&world, "n1")};
    assert_int_equal(co_spawn(loop_current(), "writer", write_on, &writer), 0);
    test_wait_until(writer.done > 20);
    assert_int_equal(nbd_server_fence(world.service, "default", &err), 0);
    uint64_t writes = mem_stats(world.node)->writes;
    assert_int_equal(query_export(&world, "disk").requests_in_flight, 0);
    assert_int_equal(query_server(&world).connections, 0);
    assert_true(query_server(&world).fenced);
    assert_true(sock_connect(loop_current(), &world.address, loop_now_ns(loop_current()) + NS_PER_S,
                             &sock, &err) < 0);
    test_wait_until(writer.ended);
    assert_int_equal(writer.failed, 1);
    assert_int_equal(mem_stats(world.node)->writes, writes);
    nbd_world_client_end(&world, writer.edge);
    nbd_world_end(&world);
}

TEST_LOOP(a_fence_does_not_wait_for_memory_that_others_hold)
{
    struct nbd_service_options options = {.budget_bytes = NBD_MAX_CONNECTION_BYTES};
    struct nbd_world world;
    struct err err = ERR_INIT;

    nbd_world_begin(&world, &options, "{'node-name':'disk','driver':'null-co','size':1073741824}");
    struct sock_address other = {.family = SOCK_FAMILY_UNIX,
                                 .path = strdup(test_path("second.sock"))};
    assert_int_equal(nbd_server_start(world.service, "second", &other, 1, 0, &err), 0);
    struct nbd_export_options second = {
        .id = "two", .name = "two", .server = "second", .node = world.node, .writable = true};
    assert_int_equal(nbd_export_add(world.service, &second, &err), 0);
    /* Who sits on all memory is connected to one server, who waits for some to the other. */
    struct sock *liar = peer_session(&world, "disk", false);
    peer_request(liar, NBD_CMD_WRITE, 0, 1, 0, NBD_MAX_REQUEST_BYTES);
    test_wait_until(nbd_service_info(world.service).budget_used_bytes == options.budget_bytes);
    struct nbd_world there = world;
    there.address = other;
    struct sock *waiter = peer_session(&there, "two", false);
    peer_request(waiter, NBD_CMD_READ, 0, 1, 0, 4096);
    co_sleep(20 * NS_PER_MS);
    uint64_t began_ns = loop_clock_ns(loop_current());
    assert_int_equal(nbd_server_fence(world.service, "second", &err), 0);
    assert_true(loop_clock_ns(loop_current()) - began_ns < 2 * NS_PER_S);
    peer_expect_end(waiter);
    peer_close(waiter);
    peer_close(liar);
    test_wait_until(nbd_service_info(world.service).budget_used_bytes == 0);
    sock_address_release(&other);
    nbd_world_end(&world);
}

TEST_LOOP(exports_are_checked_before_they_are_made)
{
    struct nbd_world world;
    struct err err = ERR_INIT;

    nbd_world_begin(&world, NULL, NULL);
    struct nbd_export_options options = {.id = "disk", .name = "x", .node = world.node};
    assert_int_equal(nbd_export_add(world.service, &options, &err), -EEXIST);
    options = (struct nbd_export_options){.id = "x", .name = "disk", .node = world.node};
    assert_int_equal(nbd_export_add(world.service, &options, &err), -EEXIST);
    options = (struct nbd_export_options){.id = "x", .server = "none", .node = world.node};
    assert_int_equal(nbd_export_add(world.service, &options, &err), -ENOENT);
    assert_int_equal(nbd_server_start(world.service, "default", &world.address, 1, 0, &err),
                     -EEXIST);
    struct sock_address other = {.family = SOCK_FAMILY_UNIX,
                                 .path = strdup(test_path("second.sock"))};
    assert_int_equal(nbd_server_start(world.service, "second", &other, 1, 0, &err), 0);
    /* With two servers the export has to say which. */
    options = (struct nbd_export_options){.id = "x", .node = world.node};
    assert_int_equal(nbd_export_add(world.service, &options, &err), -EINVAL);
    options.server = "second";
    assert_int_equal(nbd_export_add(world.service, &options, &err), 0);
    /* Each server shows its own exports alone. */
    struct sock *sock = peer_connect(&world);
    peer_greet(sock, BOTH_FLAGS);
    assert_int_equal(peer_go(sock, "x"), NBD_REP_ERR_UNKNOWN);
    peer_close(sock);
    assert_int_equal(nbd_server_stop(world.service, "second", &err), 0);
    assert_false(nbd_export_exists(world.service, "x"));
    assert_int_equal(nbd_server_stop(world.service, "second", &err), -ENOENT);
    sock_address_release(&other);
    nbd_world_end(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_unknown_export_is_refused_and_a_known_one_still_given),
        cmocka_unit_test(no_name_means_the_only_export),
        cmocka_unit_test(a_list_names_every_export),
        cmocka_unit_test(tls_and_unknown_options_are_refused_and_the_dialogue_goes_on),
        cmocka_unit_test(the_old_way_to_name_an_export_works_with_and_without_padding),
        cmocka_unit_test(an_option_over_the_limit_ends_the_connection),
        cmocka_unit_test(who_dawdles_in_the_handshake_is_cut),
        cmocka_unit_test(more_connections_than_allowed_are_refused_until_one_leaves),
        cmocka_unit_test(bytes_are_read_back_by_simple_replies),
        cmocka_unit_test(structured_replies_carry_data_errors_and_extents),
        cmocka_unit_test(requests_beyond_the_end_and_of_no_known_kind_get_errors),
        cmocka_unit_test(a_read_only_export_refuses_changes_and_stays_in_step),
        cmocka_unit_test(a_payload_over_the_limit_ends_the_connection),
        cmocka_unit_test(payloads_of_every_length_and_many_at_once_arrive_whole),
        cmocka_unit_test(payloads_stay_whole_while_the_disk_is_slow),
        cmocka_unit_test(who_disconnects_still_gets_the_replies_due),
        cmocka_unit_test(noise_at_any_stage_costs_only_its_own_connection),
        cmocka_unit_test(who_does_not_read_replies_cannot_keep_the_memory_of_all),
        cmocka_unit_test(a_revoked_export_waits_for_what_was_taken_and_takes_no_more),
        cmocka_unit_test(an_export_in_use_goes_only_by_force_and_says_so),
        cmocka_unit_test(a_fenced_server_has_no_request_inside_and_takes_no_connection),
        cmocka_unit_test(a_fence_does_not_wait_for_memory_that_others_hold),
        cmocka_unit_test(exports_are_checked_before_they_are_made),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
