/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The NBD client: against our own server, and against servers of ill will. */
#include "nbd_peers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DISK_BYTES (512u * 1024)

/* --- against our own server --- */

/* Writers with a part of the disk each, all at once, against a plain array. */
#define WORKERS    8u
#define PART_BYTES (DISK_BYTES / WORKERS)
#define STEPS      120u

struct worker {
    struct edge *edge;
    uint8_t *model; /* PART_BYTES */
    uint64_t base, seed;
    struct co_group *group;
};

static void worker_step(struct worker *worker, uint8_t *bytes) MAY_WAIT
{
    uint64_t at = test_random(&worker->seed) % PART_BYTES;
    uint64_t length = 1 + test_random(&worker->seed) % (PART_BYTES - at);
    unsigned fua = (test_random(&worker->seed) & 1) != 0 ? IO_FUA : 0;

    switch (test_random(&worker->seed) % 6) {
    case 0:
    case 1:
        for (uint64_t i = 0; i < length; i++)
            worker->model[at + i] = (uint8_t)test_random(&worker->seed);
        assert_int_equal(blocks_write_bytes(worker->edge, worker->base + at, worker->model + at,
                                            length, (unsigned)(at % 8), fua),
                         0);
        break;
    case 2:
        memset(worker->model + at, 0, length);
        assert_int_equal(blocks_zero(worker->edge, worker->base + at, length, fua), 0);
        break;
    case 3:
        assert_int_equal(io_flush(worker->edge), 0);
        break;
    default:
        assert_int_equal(blocks_read_bytes(worker->edge, worker->base + at, bytes, length, 3), 0);
        assert_memory_equal(bytes, worker->model + at, length);
    }
}

static void worker_run(void *arg) MAY_WAIT
{
    struct worker *worker = arg;
    uint8_t *bytes = malloc(PART_BYTES);

    assert_non_null(bytes);
    for (unsigned i = 0; i < STEPS; i++)
        worker_step(worker, bytes);
    free(bytes);
    co_group_leave(worker->group);
}

static void compare_under_load(const char *node) MAY_WAIT
{
    struct nbd_world world;
    struct worker workers[WORKERS];
    struct co_group group;
    uint64_t seed = test_seed("compare_under_load");

    nbd_world_begin(&world, NULL, node);
    struct edge *edge = nbd_world_client(&world, "remote");
    co_group_init(&group);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){
            .edge = edge,
            .model = calloc(1, PART_BYTES),
            .base = i * PART_BYTES,
            .seed = seed + i,
            .group = &group,
        };
        assert_non_null(workers[i].model);
        co_group_enter(&group);
        assert_int_equal(co_spawn(loop_current(), "worker", worker_run, &workers[i]), 0);
    }
    co_group_wait(&group);
    for (unsigned i = 0; i < WORKERS; i++) {
        uint8_t *bytes = malloc(PART_BYTES);
        assert_non_null(bytes);
        assert_int_equal(blocks_read_bytes(edge, i * PART_BYTES, bytes, PART_BYTES, 0), 0);
        assert_memory_equal(bytes, workers[i].model, PART_BYTES);
        free(bytes);
        free(workers[i].model);
    }
    struct nbd_client_info info;
    nbd_client_info(nbd_client_of(edge->child), &info);
    assert_true(info.connected);
    assert_int_equal(info.in_flight, 0);
    assert_true(info.bytes_sent == info.bytes_acked);
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

TEST_LOOP(what_was_written_through_the_link_is_read_back)
{
    compare_under_load("{'node-name':'disk','driver':'mem','size':524288}");
}

TEST_LOOP(what_was_written_to_a_slow_and_fussy_disk_is_read_back)
{
    compare_under_load("{'node-name':'disk','driver':'mem','size':524288,'yields':4,'align':512,"
                       "'memory-align':512,'max-transfer':16384}");
}

TEST_LOOP(many_more_requests_than_slots_all_end)
{
    struct nbd_world world;
    static struct blocks_task tasks[NBD_CLIENT_MAX_IN_FLIGHT * 3];

    nbd_world_begin(&world, NULL, "{'node-name':'disk','driver':'mem','size':1048576,'yields':2}");
    struct edge *edge = nbd_world_client(&world, "remote");
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
        blocks_start_write(&tasks[i], edge, i * 512, 512, (uint8_t)i);
    for (size_t i = 0; i < ARRAY_LEN(tasks); i++) {
        test_wait_until(tasks[i].done);
        assert_int_equal(tasks[i].result, 0);
        blocks_expect(edge, i * 512, 512, (uint8_t)i);
    }
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

TEST_LOOP(extents_and_errors_come_through)
{
    struct nbd_world world;
    struct extent extent;
    struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .error = -ENOSPC};

    nbd_world_begin(
        &world, NULL,
        "{'node-name':'disk','driver':'blkdebug','file':{'driver':'mem','size':65536}}");
    struct edge *edge = nbd_world_client(&world, "remote");
    assert_int_equal(io_extents(edge, 512, 4096, &extent), 0);
    assert_true(extent.length_bytes == 4096);
    assert_int_equal(blkdebug_inject(world.node, &rule, NULL), 0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), -ENOSPC);
    blkdebug_remove(world.node, 0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), 0);
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

TEST_LOOP(after_the_server_is_gone_every_request_fails_at_once)
{
    struct nbd_world world;
    struct err err = ERR_INIT;
    struct nbd_client_info info;

    nbd_world_begin(&world, NULL, NULL);
    struct edge *edge = nbd_world_client(&world, "remote");
    blocks_expect(edge, 0, 4096, 0);
    assert_int_equal(nbd_server_stop(world.service, "default", &err), 0);
    assert_true(blocks_write(edge, 0, 512, 1, 0) < 0);
    nbd_client_info(nbd_client_of(edge->child), &info);
    assert_false(info.connected);
    assert_int_not_equal(info.last_error, 0);
    nbd_world_client_end(&world, edge);
    nbd_world_end(&world);
}

/* --- opening --- */

TEST_LOOP(an_export_that_is_not_there_or_read_only_is_named)
{
    struct nbd_world world;
    char options[512];

    nbd_world_begin(&world, NULL, NULL);
    nbd_world_export(&world, "ro", "disk", false);
    snprintf(options, sizeof(options),
             "{'driver':'nbd','server':{'type':'unix','path':'%s'},'export':'none'}",
             world.address.path);
    blocks_add_fails(world.graph, "none", options);
    snprintf(options, sizeof(options), "{'driver':'nbd','path':'%s','export':'ro'}",
             world.address.path);
    blocks_add_fails(world.graph, "read-only", options);
    blocks_add_fails(world.graph, "server.type", "{'driver':'nbd','export':'x'}");
    nbd_world_end(&world);
}

/* A server that says one thing and then nothing. */
struct speaker {
    struct peer_server server;
    const void *bytes;
    size_t length_bytes;
    unsigned repeat;
    bool ended;
};

static void speak(void *arg) MAY_WAIT
{
    struct speaker *speaker = arg;
    struct sock *sock = peer_accept(&speaker->server);
    uint8_t byte;

    for (unsigned i = 0; i < speaker->repeat; i++)
        if (!peer_send(sock, speaker->bytes, speaker->length_bytes))
            break;
    while (sock_recv(sock, &byte, 1) > 0)
        ;
    sock_close(sock);
    speaker->ended = true;
}

static int open_against(const void *bytes, size_t length_bytes, unsigned repeat,
                        uint64_t timeout_ns) MAY_WAIT
{
    struct speaker speaker = {.bytes = bytes, .length_bytes = length_bytes, .repeat = repeat};
    struct nbd_client_options options = {.open_timeout_ns = timeout_ns};
    struct nbd_client *client = NULL;
    struct err err = ERR_INIT;

    peer_server_begin(&speaker.server, &options.address);
    assert_int_equal(co_spawn(loop_current(), "speaker", speak, &speaker), 0);
    int result = nbd_client_open(loop_current(), &options, &client, &err);
    assert_null(client);
    assert_true(err_is_set(&err));
    test_wait_until(speaker.ended);
    peer_server_end(&speaker.server, &options.address);
    test_folder_remove();
    return result;
}

TEST_LOOP(a_server_of_another_kind_is_refused)
{
    assert_int_equal(open_against("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", 32, 1, NS_PER_S), -EPROTO);
    /* The old style of NBD. */
    assert_int_equal(open_against("NBDMAGIC\0\0\x42\2\x81\x86\x12\x53\0\0", 18, 1, NS_PER_S),
                     -EPROTO);
}

TEST_LOOP(a_silent_server_is_given_up_at_the_deadline)
{
    uint64_t began_ns = loop_now_ns(loop_current());

    assert_int_equal(open_against("NBDMAGIC", 8, 1, 30 * NS_PER_MS), -ETIMEDOUT);
    assert_true(loop_now_ns(loop_current()) - began_ns >= 30 * NS_PER_MS);
    assert_true(loop_now_ns(loop_current()) - began_ns < 5 * NS_PER_S);
}

TEST_LOOP(replies_without_end_or_of_undue_length_are_refused)
{
    uint8_t bytes[NBD_GREETING_BYTES + NBD_OPTION_REPLY_BYTES + 100 * NBD_OPTION_REPLY_BYTES];
    uint8_t *at = bytes + NBD_GREETING_BYTES;
    struct nbd_option_reply_header header = {NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, 0};

    nbd_greeting_encode(bytes, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    header.length_bytes = 0x7fffffff;
    nbd_option_reply_encode(at, &header);
    assert_int_equal(open_against(bytes, NBD_GREETING_BYTES + NBD_OPTION_REPLY_BYTES, 1, NS_PER_S),
                     -EPROTO);
    header = (struct nbd_option_reply_header){NBD_OPT_GO, NBD_REP_ACK, 0};
    nbd_option_reply_encode(at, &header);
    assert_int_equal(open_against(bytes, NBD_GREETING_BYTES + NBD_OPTION_REPLY_BYTES, 1, NS_PER_S),
                     -EPROTO);
    header = (struct nbd_option_reply_header){NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, 0};
    nbd_option_reply_encode(at, &header);
    header = (struct nbd_option_reply_header){NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, 5};
    for (unsigned i = 1; i <= 66; i++) {
        at = bytes + NBD_GREETING_BYTES + i * (NBD_OPTION_REPLY_BYTES + 5) - 5;
        nbd_option_reply_encode(at, &header);
        memcpy(at + NBD_OPTION_REPLY_BYTES, "\0\0\0\1x", 5);
    }
    assert_int_equal(
        open_against(bytes, NBD_GREETING_BYTES + 66 * (NBD_OPTION_REPLY_BYTES + 5), 1, NS_PER_S),
        -EPROTO);
}

TEST_LOOP(noise_instead_of_a_negotiation_is_an_error_and_nothing_else)
{
    uint64_t seed = test_seed("noise");
    uint8_t bytes[256];

    for (unsigned i = 0; i < 40; i++) {
        nbd_greeting_encode(bytes, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
        be64_put(bytes + 18, NBD_OPT_REPLY_MAGIC);
        be32_put(bytes + 26, NBD_OPT_STRUCTURED_REPLY);
        for (size_t at = 30; at < sizeof(bytes); at++)
            bytes[at] = (uint8_t)(test_random(&seed) % (i % 2 == 0 ? 256 : 3));
        assert_true(open_against(bytes, sizeof(bytes), 1, 20 * NS_PER_MS) < 0);
    }
}

/* --- transmission --- */

enum ill {
    SILENT,
    LEAVES,
    NOISE,
    WRONG_COOKIE,
    SIMPLE_FOR_STRUCTURED,
    CHUNK_TOO_LONG,
    CHUNK_TWICE,
    CHUNK_MISSING,
    CHUNK_BEFORE_BEGIN,
    HOLE_TOO_LONG,
    LEAVES_IN_DATA,
    SILENT_IN_DATA,
    CONTEXT_OF_ANOTHER,
    ILLS
};

struct villain {
    struct peer_server server;
    enum ill ill;
    bool ended;
    struct sock *sock;
};

static void send_chunk(struct sock *sock, uint64_t cookie, uint16_t flags, uint16_t type,
                       uint64_t offset, uint32_t claimed_bytes, uint32_t real_bytes) MAY_WAIT
{
    uint8_t bytes[NBD_CHUNK_BYTES + 8 + 8192] = {0};
    struct nbd_chunk chunk = {flags, type, cookie, claimed_bytes};

    nbd_chunk_encode(bytes, &chunk);
    be64_put(bytes + NBD_CHUNK_BYTES, offset);
    if (type == NBD_CHUNK_OFFSET_HOLE)
        be32_put(bytes + NBD_CHUNK_BYTES + 8, (uint32_t)1 << 30);
    (void)peer_send(sock, bytes, NBD_CHUNK_BYTES + real_bytes);
}

static void do_ill(struct villain *villain, struct sock *sock, const struct nbd_request *request)
    MAY_WAIT
{
    uint64_t cookie = request->cookie, offset = request->offset_bytes;
    uint8_t noise[64];
    struct nbd_simple_reply simple = {0, cookie};

    switch (villain->ill) {
    case NOISE:
        memset(noise, 0x67, sizeof(noise));
        (void)peer_send(sock, noise, sizeof(noise));
        break;
    case WRONG_COOKIE:
        send_chunk(sock, cookie + 1, NBD_CHUNK_DONE, NBD_CHUNK_NONE, 0, 0, 0);
        break;
    case SIMPLE_FOR_STRUCTURED:
        nbd_simple_reply_encode(noise, &simple);
        (void)peer_send(sock, noise, NBD_SIMPLE_REPLY_BYTES);
        break;
    case CHUNK_TOO_LONG:
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, offset, 8 + 4097, 8 + 4097);
        break;
    case CHUNK_TWICE:
        send_chunk(sock, cookie, 0, NBD_CHUNK_OFFSET_DATA, offset + 2048, 8 + 2048, 8 + 2048);
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, offset + 1024, 8 + 2048,
                   8 + 2048);
        break;
    case CHUNK_MISSING:
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, offset, 8 + 2048, 8 + 2048);
        break;
    case CHUNK_BEFORE_BEGIN:
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, offset - 1, 8 + 4096,
                   8 + 4096);
        break;
    case HOLE_TOO_LONG:
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_HOLE, offset, 12, 12);
        break;
    case CONTEXT_OF_ANOTHER:
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_BLOCK_STATUS, 5, 12, 12);
        break;
    case LEAVES_IN_DATA:
    case SILENT_IN_DATA:
        send_chunk(sock, cookie, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, offset, 8 + 4096, 8 + 100);
        break;
    default:
        break;
    }
}

static void villain_run(void *arg) MAY_WAIT
{
    struct villain *villain = arg;
    struct sock *sock = peer_accept(&villain->server);
    struct nbd_request request;
    uint8_t byte;

    if (peer_negotiate(&villain->server, sock)) {
        peer_take_request(sock, &request);
        do_ill(villain, sock, &request);
        if (villain->ill != LEAVES && villain->ill != LEAVES_IN_DATA)
            while (sock_recv(sock, &byte, 1) > 0)
                ;
    }
    peer_close(sock);
    villain->ended = true;
}

/* Takes a client, and lets it go again. */
static void polite_run(void *arg) MAY_WAIT
{
    struct villain *host = arg;
    struct sock *sock = peer_accept(&host->server);
    uint8_t byte;

    assert_true(peer_negotiate(&host->server, sock));
    while (sock_recv(sock, &byte, 1) > 0)
        ;
    peer_close(sock);
    host->ended = true;
}

TEST_LOOP(a_client_says_whose_it_is_also_to_servers_that_do_not_care)
{
    for (int refuses = 0; refuses < 2; refuses++) {
        struct villain host = {
            .server = {.size_bytes = 65536, .structured = true, .refuses_contexts = refuses == 1},
        };
        struct nbd_client_options options = {.instance = 0x0123456789abcdef};
        struct nbd_client *client = NULL;
        struct err err = ERR_INIT;

        peer_server_begin(&host.server, &options.address);
        assert_int_equal(co_spawn(loop_current(), "host", polite_run, &host), 0);
        assert_int_equal(nbd_client_open(loop_current(), &options, &client, &err), 0);
        assert_true(host.server.instance == options.instance);
        nbd_client_close(client);
        test_wait_until(host.ended);
        peer_server_end(&host.server, &options.address);
        test_folder_remove();
    }
}

struct reader {
    struct nbd_client *client;
    struct buf *buf;
    bool done;
    int result;
};

static void read_4k(void *arg) MAY_WAIT
{
    struct reader *reader = arg;
    struct io io = {
        .offset_bytes = 8192,
        .length_bytes = 4096,
        .data = buf_slice_of(reader->buf, 0, 4096),
    };

    reader->result = nbd_client_read(reader->client, &io);
    /* From here on nobody may touch the memory. */
    memset(reader->buf->bytes, 0x5a, 4096);
    reader->done = true;
}

static struct nbd_client *open_villain(struct villain *villain, struct sock_address *address,
                                       uint64_t timeout_ns) MAY_WAIT
{
    struct nbd_client *client = NULL;
    struct err err = ERR_INIT;

    villain->server.size_bytes = 65536;
    villain->server.flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH;
    peer_server_begin(&villain->server, address);
    assert_int_equal(co_spawn(loop_current(), "villain", villain_run, villain), 0);
    struct nbd_client_options options = {.address = *address, .request_timeout_ns = timeout_ns};
    if (nbd_client_open(loop_current(), &options, &client, &err) < 0)
        fail_msg("%s", err.text);
    return client;
}

static void suffer(enum ill ill) MAY_WAIT
{
    struct villain villain = {.ill = ill, .server.structured = true};
    struct sock_address address;
    struct nbd_client *client = open_villain(&villain, &address, 30 * NS_PER_MS);
    struct reader readers[3];

    for (size_t i = 0; i < ARRAY_LEN(readers); i++) {
        readers[i] = (struct reader){.client = client,
                                     .buf = buf_alloc(loop_bufs(loop_current()), 4096)};
        assert_non_null(readers[i].buf);
        assert_int_equal(co_spawn(loop_current(), "reader", read_4k, &readers[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_LEN(readers); i++) {
        test_wait_until(readers[i].done);
        assert_true(readers[i].result == -EPROTO || readers[i].result == -EPIPE ||
                    readers[i].result == -ETIMEDOUT || readers[i].result == -ECONNRESET);
        if (ill == SILENT || ill == SILENT_IN_DATA)
            assert_int_equal(readers[i].result, -ETIMEDOUT);
        else if (ill != LEAVES && ill != LEAVES_IN_DATA)
            assert_int_equal(readers[i].result, -EPROTO);
    }
    assert_true(nbd_client_flush(client) < 0);
    nbd_client_close(client);
    test_wait_until(villain.ended);
    for (size_t i = 0; i < ARRAY_LEN(readers); i++) {
        for (unsigned at = 0; at < 4096; at++)
            assert_int_equal(readers[i].buf->bytes[at], 0x5a);
        buf_unref(readers[i].buf);
    }
    peer_server_end(&villain.server, &address);
    test_folder_remove();
}

TEST_LOOP(a_server_of_ill_will_costs_an_error_and_nothing_else)
{
    for (int ill = 0; ill < ILLS; ill++)
        suffer((enum ill)ill);
}

TEST_LOOP(a_shutdown_ends_requests_in_flight_with_its_reason)
{
    struct villain villain = {.ill = SILENT, .server.structured = false};
    struct sock_address address;
    struct nbd_client *client = open_villain(&villain, &address, 10 * NS_PER_S);
    struct reader reader = {.client = client, .buf = buf_alloc(loop_bufs(loop_current()), 4096)};

    assert_non_null(reader.buf);
    assert_int_equal(co_spawn(loop_current(), "reader", read_4k, &reader), 0);
    co_yield();
    co_sleep(NS_PER_MS);
    assert_false(reader.done);
    nbd_client_shutdown(client, -ECANCELED);
    test_wait_until(reader.done);
    assert_int_equal(reader.result, -ECANCELED);
    nbd_client_close(client);
    test_wait_until(villain.ended);
    buf_unref(reader.buf);
    peer_server_end(&villain.server, &address);
    test_folder_remove();
}

/* Answers the first request, and the second with the cookie of the first. */
static void answer_twice(void *arg) MAY_WAIT
{
    struct villain *villain = arg;
    struct sock *sock = peer_accept(&villain->server);
    struct nbd_request first, second;
    uint8_t bytes[NBD_SIMPLE_REPLY_BYTES];

    assert_true(peer_negotiate(&villain->server, sock));
    peer_take_request(sock, &first);
    struct nbd_simple_reply reply = {0, first.cookie};
    nbd_simple_reply_encode(bytes, &reply);
    assert_true(peer_send(sock, bytes, sizeof(bytes)));
    peer_take_request(sock, &second);
    assert_true(peer_send(sock, bytes, sizeof(bytes)));
    peer_expect_end(sock);
    sock_close(sock);
    villain->ended = true;
}

TEST_LOOP(a_reply_that_comes_twice_does_not_end_another_request)
{
    struct villain villain = {
        .server = {.size_bytes = 65536, .flags = NBD_HAS_FLAGS | NBD_SEND_FLUSH}};
    struct nbd_client_options options = {0};
    struct nbd_client *client = NULL;
    struct err err = ERR_INIT;

    peer_server_begin(&villain.server, &options.address);
    assert_int_equal(co_spawn(loop_current(), "server", answer_twice, &villain), 0);
    assert_int_equal(nbd_client_open(loop_current(), &options, &client, &err), 0);
    assert_int_equal(nbd_client_flush(client), 0);
    assert_int_equal(nbd_client_flush(client), -EPROTO);
    nbd_client_close(client);
    test_wait_until(villain.ended);
    peer_server_end(&villain.server, &options.address);
    test_folder_remove();
}

#define LONG_BYTES (8u * 1024 * 1024)

struct early {
    struct villain villain;
    bool answered, may_read;
};

/* Answers a write before it has read the payload, and reads that much later. */
static void answer_early(void *arg) MAY_WAIT
{
    struct early *early = arg;
    struct sock *sock = peer_accept(&early->villain.server);
    struct nbd_request request;
    uint8_t bytes[NBD_SIMPLE_REPLY_BYTES], payload[4096];

    assert_true(peer_negotiate(&early->villain.server, sock));
    peer_take_request(sock, &request);
    struct nbd_simple_reply reply = {nbd_error_from_errno(-EIO), request.cookie};
    nbd_simple_reply_encode(bytes, &reply);
    assert_true(peer_send(sock, bytes, sizeof(bytes)));
    early->answered = true;
    while (!early->may_read)
        co_sleep(NS_PER_MS);
    for (size_t at = 0; at < LONG_BYTES; at += sizeof(payload)) {
        assert_true(peer_recv(sock, payload, sizeof(payload)));
        assert_int_equal(payload[0], 0x77);
        assert_int_equal(payload[sizeof(payload) - 1], 0x77);
    }
    peer_expect_end(sock);
    sock_close(sock);
    early->villain.ended = true;
}

static void write_long(void *arg) MAY_WAIT
{
    struct reader *writer = arg;
    struct io io = {.length_bytes = LONG_BYTES, .data = buf_slice_of(writer->buf, 0, LONG_BYTES)};

    writer->result = nbd_client_write(writer->client, &io);
    /* Ours again: the kernel must not send this. */
    memset(writer->buf->bytes, 0, LONG_BYTES);
    writer->done = true;
}

TEST_LOOP(a_write_answered_early_ends_only_when_it_has_been_sent)
{
    struct early early = {.villain.server = {.size_bytes = LONG_BYTES, .flags = NBD_HAS_FLAGS}};
    struct nbd_client_options options = {0};
    struct reader writer = {.buf = buf_alloc(loop_bufs(loop_current()), LONG_BYTES)};
    struct err err = ERR_INIT;

    assert_non_null(writer.buf);
    memset(writer.buf->bytes, 0x77, LONG_BYTES);
    peer_server_begin(&early.villain.server, &options.address);
    assert_int_equal(co_spawn(loop_current(), "server", answer_early, &early), 0);
    assert_int_equal(nbd_client_open(loop_current(), &options, &writer.client, &err), 0);
    assert_int_equal(co_spawn(loop_current(), "writer", write_long, &writer), 0);
    test_wait_until(early.answered);
    co_sleep(20 * NS_PER_MS);
    assert_false(writer.done);
    early.may_read = true;
    test_wait_until(writer.done);
    assert_int_equal(writer.result, -EIO);
    nbd_client_close(writer.client);
    test_wait_until(early.villain.ended);
    buf_unref(writer.buf);
    peer_server_end(&early.villain.server, &options.address);
    test_folder_remove();
}

static void answer_in_pieces(void *arg) MAY_WAIT
{
    struct villain *villain = arg;
    struct sock *sock = peer_accept(&villain->server);
    struct nbd_request request;
    uint8_t bytes[NBD_CHUNK_BYTES + 8 + 1024];

    assert_true(peer_negotiate(&villain->server, sock));
    peer_take_request(sock, &request);
    /* Out of order, and with a hole: 3072, 1024, 0 as data, 2048 as zeroes. */
    static const uint32_t order[] = {3072, 1024, 0};
    for (size_t i = 0; i < ARRAY_LEN(order); i++) {
        struct nbd_chunk chunk = {0, NBD_CHUNK_OFFSET_DATA, request.cookie, 8 + 1024};
        nbd_chunk_encode(bytes, &chunk);
        be64_put(bytes + NBD_CHUNK_BYTES, request.offset_bytes + order[i]);
        memset(bytes + NBD_CHUNK_BYTES + 8, (int)(order[i] / 1024 + 1), 1024);
        assert_true(peer_send(sock, bytes, sizeof(bytes)));
    }
    struct nbd_chunk chunk = {NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_HOLE, request.cookie, 12};
    struct nbd_offset_hole hole = {request.offset_bytes + 2048, 1024};
    nbd_chunk_encode(bytes, &chunk);
    nbd_offset_hole_encode(bytes + NBD_CHUNK_BYTES, &hole);
    assert_true(peer_send(sock, bytes, NBD_CHUNK_BYTES + NBD_OFFSET_HOLE_BYTES));
    peer_expect_end(sock);
    sock_close(sock);
    villain->ended = true;
}

TEST_LOOP(a_read_may_come_in_pieces_of_any_order_and_holes)
{
    struct villain villain = {
        .server = {.structured = true, .size_bytes = 65536, .flags = NBD_HAS_FLAGS}};
    struct nbd_client_options options = {0};
    struct nbd_client *client = NULL;
    struct err err = ERR_INIT;
    struct buf *buf = buf_alloc(loop_bufs(loop_current()), 4096);
    struct io io = {.offset_bytes = 512, .length_bytes = 4096};

    assert_non_null(buf);
    memset(buf->bytes, 0xff, 4096);
    io.data = buf_slice_of(buf, 0, 4096);
    peer_server_begin(&villain.server, &options.address);
    assert_int_equal(co_spawn(loop_current(), "server", answer_in_pieces, &villain), 0);
    assert_int_equal(nbd_client_open(loop_current(), &options, &client, &err), 0);
    assert_int_equal(nbd_client_read(client, &io), 0);
    for (unsigned i = 0; i < 4096; i++)
        assert_int_equal(buf->bytes[i], i / 1024 == 2 ? 0 : i / 1024 + 1);
    nbd_client_close(client);
    test_wait_until(villain.ended);
    buf_unref(buf);
    peer_server_end(&villain.server, &options.address);
    test_folder_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_through_the_link_is_read_back),
        cmocka_unit_test(what_was_written_to_a_slow_and_fussy_disk_is_read_back),
        cmocka_unit_test(many_more_requests_than_slots_all_end),
        cmocka_unit_test(extents_and_errors_come_through),
        cmocka_unit_test(after_the_server_is_gone_every_request_fails_at_once),
        cmocka_unit_test(an_export_that_is_not_there_or_read_only_is_named),
        cmocka_unit_test(a_server_of_another_kind_is_refused),
        cmocka_unit_test(a_silent_server_is_given_up_at_the_deadline),
        cmocka_unit_test(a_client_says_whose_it_is_also_to_servers_that_do_not_care),
        cmocka_unit_test(replies_without_end_or_of_undue_length_are_refused),
        cmocka_unit_test(noise_instead_of_a_negotiation_is_an_error_and_nothing_else),
        cmocka_unit_test(a_server_of_ill_will_costs_an_error_and_nothing_else),
        cmocka_unit_test(a_shutdown_ends_requests_in_flight_with_its_reason),
        cmocka_unit_test(a_reply_that_comes_twice_does_not_end_another_request),
        cmocka_unit_test(a_write_answered_early_ends_only_when_it_has_been_sent),
        cmocka_unit_test(a_read_may_come_in_pieces_of_any_order_and_holes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
