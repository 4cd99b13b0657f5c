/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Any bytes at the whole of the NBD server, or client, in the simulator: negotiation, requests,
 * replies, buffers, coroutines. Nothing may crash, wait for ever or stay behind. The first byte
 * chooses the side, and how far the peer behaves well before the bytes come. A server that has
 * negotiated well sends them in pieces, each (after its length in two bytes) when a request came.
 */
#include "base/json.h"
#include "base/log.h"
#include "drivers/nbd_client.h"
#include "drivers/table.h"
#include "export/nbd_server.h"
#include "wire/nbd.h"

#define MAX_INPUT_BYTES 65536
#define SERVER_PATH     "/nbd.sock"
#define TIMEOUT_NS      (20 * NS_PER_MS)

#define CHECK(condition)      \
    do {                      \
        if (!(condition))     \
            __builtin_trap(); \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    struct loop *loop;
    const uint8_t *bytes;
    size_t length;
    bool peer_done;
};

/* What well-behaved peers send, without waiting for what they are told. */
struct prefix {
    const char *bytes;
    size_t length;
};
#define PREFIX(literal)                \
    {                                  \
        (literal), sizeof(literal) - 1 \
    }
#define OPTION(number, length) "IHAVEOPT\0\0\0" number "\0\0\0" length
#define REPLY(option, type, length) \
    "\0\3\xe8\x89\4\x55\x65\xa9\0\0\0" option "\0\0\0" type "\0\0\0" length

static const struct prefix as_client[] = {
    PREFIX(""),
    PREFIX("\0\0\0\3"),
    PREFIX("\0\0\0\3" OPTION("\7", "\6") "\0\0\0\0\0\0"),
    PREFIX("\0\0\0\3" OPTION("\x8", "\0")
               OPTION("\xa", "\x1b") "\0\0\0\0\0\0\0\1\0\0\0\xf"
                                     "base:allocation" OPTION("\7", "\6") "\0\0\0\0\0\0"),
};

#define GREETING "NBDMAGICIHAVEOPT\0\3"
#define EXPORT   REPLY("\7", "\3", "\xc") "\0\0\0\0\0\0\0\x10\0\0\x0f\xff" REPLY("\7", "\1", "\0")

static const struct prefix as_server[] = {
    PREFIX(""),
    PREFIX(GREETING),
    PREFIX(GREETING "\0\3\xe8\x89\4\x55\x65\xa9\0\0\0\x8\x80\0\0\1\0\0\0\0" EXPORT),
    PREFIX(GREETING REPLY("\x8", "\1", "\0") REPLY(
        "\xa", "\4", "\x13") "\0\0\0\1base:allocation" REPLY("\xa", "\1", "\0") EXPORT),
};

/* Hears until `*window` has seen the beginning of one more request. False: the other has left. */
static bool await_request(struct sock *sock, uint32_t *window) MAY_WAIT
{
    uint8_t byte;

    do {
        if (sock_recv(sock, &byte, 1) <= 0)
            return false;
        *window = *window << 8 | byte;
    } while (*window != NBD_REQUEST_MAGIC);
    return true;
}

static void speak_in_turn(struct sock *sock, struct be_cursor cursor) MAY_WAIT
{
    uint32_t window = 0;
    uint16_t length;
    const uint8_t *bytes;

    while (await_request(sock, &window) && be16_take(&cursor, &length)) {
        length = (uint16_t)MIN(length, cursor.left);
        if (!be_take(&cursor, length, &bytes))
            return;
        struct iovec iov = {(void *)(uintptr_t)bytes, length};
        if (sock_send(sock, &iov, 1) < 0)
            return;
    }
}

static void speak(struct sock *sock, const struct prefix *prefix, const struct input *input,
                  bool in_turn) MAY_WAIT
{
    struct iovec iov[2] = {
        {(void *)(uintptr_t)prefix->bytes, prefix->length},
        {(void *)(uintptr_t)input->bytes, in_turn ? 0 : input->length},
    };
    uint8_t heard[4096];

    if (sock_send(sock, iov, 2) == 0) {
        sock_deadline(sock, loop_now_ns(loop_current()) + 2 * TIMEOUT_NS);
        if (in_turn)
            speak_in_turn(sock, (struct be_cursor){input->bytes, input->length});
        while (sock_recv(sock, heard, sizeof(heard)) > 0)
            ;
    }
    sock_shutdown(sock, 0);
    sock_close(sock);
}

/* --- our server --- */

static void serve(struct input *input, const struct prefix *prefix) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct json_object *options = NULL;
    struct sock_address address = {.family = SOCK_FAMILY_UNIX, .path = (char[]){SERVER_PATH}};
    struct graph *graph = graph_new(input->loop, drivers_table);
    static const char node_options[] = "{'driver':'null-co','node-name':'d','size':1048576,"
                                       "'read-zeroes':true}";
    struct node *node = NULL;
    struct sock *sock = NULL;

    CHECK(json_parse(node_options, sizeof(node_options) - 1, "fuzz", &options, &err) == 0);
    CHECK(graph_add(graph, options, OPTS_JSON, "fuzz", true, &node, &err) == 0);
    json_object_put(options);
    struct nbd_service *service = nbd_service_new(graph, NULL);
    CHECK(nbd_server_start(service, "s", &address, 1, 0, &err) == 0);
    struct nbd_export_options export = {.id = "e", .node = node, .writable = true};
    CHECK(nbd_export_add(service, &export, &err) == 0);
    CHECK(sock_connect(input->loop, &address, DEADLINE_NEVER, &sock, &err) == 0);
    speak(sock, prefix, input, false);
    nbd_service_free(service);
    CHECK(graph_del(graph, "d", &err) == 0);
    graph_free(graph);
}

/* --- our client --- */

struct listener {
    struct sock *sock;
    const struct prefix *prefix;
    struct input *input;
};

static void peer_run(void *arg) MAY_WAIT
{
    struct listener *listener = arg;
    struct sock *sock;

    if (sock_accept(listener->sock, &sock) == 0)
        speak(sock, listener->prefix, listener->input, listener->prefix >= &as_server[2]);
    listener->input->peer_done = true;
}

static void use(struct nbd_client *client) MAY_WAIT
{
    struct extent extent;
    struct buf *buf = buf_alloc(loop_bufs(loop_current()), 8192);

    CHECK(buf != NULL);
    struct io io = {.length_bytes = MIN(4096u, nbd_client_max_transfer_bytes(client))};
    io.data = buf_slice_of(buf, 4096, io.length_bytes);
    (void)nbd_client_read(client, &io);
    (void)nbd_client_extents(client, 0, 65536, &extent);
    struct io shorter = {.length_bytes = 64, .data = buf_slice_of(buf, 0, 64)};
    memset(buf->bytes, 0, 64);
    if (nbd_client_max_transfer_bytes(client) >= 64)
        (void)nbd_client_write(client, &shorter);
    (void)nbd_client_read(client, &io);
    (void)nbd_client_flush(client);
    buf_unref(buf);
}

static void consume(struct input *input, const struct prefix *prefix) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct nbd_client_options options = {
        .address = {.family = SOCK_FAMILY_UNIX, .path = (char[]){SERVER_PATH}},
        .open_timeout_ns = TIMEOUT_NS,
        .request_timeout_ns = TIMEOUT_NS,
    };
    struct listener listener = {.prefix = prefix, .input = input};
    struct nbd_client *client = NULL;

    CHECK(sock_listen(input->loop, &options.address, &listener.sock, &err) == 0);
    CHECK(co_spawn(input->loop, "peer", peer_run, &listener) == 0);
    if (nbd_client_open(input->loop, &options, &client, &err) == 0)
        use(client);
    else
        CHECK(err_is_set(&err));
    nbd_client_close(client);
    while (!input->peer_done)
        co_sleep(NS_PER_MS);
    sock_close(listener.sock);
}

static void run(void *arg) MAY_WAIT
{
    struct input *input = arg;
    unsigned choice = input->bytes[0];

    input->bytes++;
    input->length--;
    if ((choice & 4) == 0)
        serve(input, &as_client[choice & 3]);
    else
        consume(input, &as_server[choice & 3]);
    loop_stop(input->loop);
}

static void silence(void *arg, enum log_level level, const char *subject, const char *text)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = ERR_INIT;
    struct input input = {.bytes = data, .length = MIN(size, MAX_INPUT_BYTES)};

    if (size == 0)
        return 0;
    log_set_sink(silence, NULL);
    CHECK(loop_sim_new(1, &input.loop, &err) == 0);
    CHECK(co_spawn(input.loop, "fuzz", run, &input) == 0);
    loop_run(input.loop);
    loop_free(input.loop);
    return 0;
}
