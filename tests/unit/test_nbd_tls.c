/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NBD over TLS between our own server and client: data arrives whole, credentials are found by name, and
 * who hangs in a handshake holds up no end of a server. */
#include "harness.h"
#include "nbd_peers.h"
#include "tls_fixture.h"

#include "base/json.h"
#include "drivers/table.h"
#include "drivers/tls_object.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define REQUESTS 64

struct tls_world {
    struct nbd_world nbd;
    char path[256];
};

static int add_creds(struct tls_world *world, const char *id, const char *folder,
                     const char *endpoint, struct err *err) MAY_WAIT;
static int add_creds(struct tls_world *world, const char *id, const char *folder,
                     const char *endpoint, struct err *err)
{
    CLEANUP(json_putp) struct json_object *options = json_object_new_object();

    json_add_string(options, "qom-type", "tls-creds-x509");
    json_add_string(options, "id", id);
    json_add_string(options, "dir", tls_fixture_path(folder));
    json_add_string(options, "endpoint", endpoint);
    int result = object_add(world->nbd.graph, options, OPTS_JSON, "object-add", err);
    return result < 0 ? result : object_load(world->nbd.graph, id, err);
}

static void world_begin(struct tls_world *world) MAY_WAIT;
static void world_begin(struct tls_world *world)
{
    struct tls_creds *creds = NULL;
    struct err err = ERR_INIT;

    nbd_world_begin(&world->nbd, NULL, NULL);
    snprintf(world->path, sizeof(world->path), "%s", test_path("tls.sock"));
    graph_set_object_types(world->nbd.graph, object_types_table);
    assert_int_equal(add_creds(world, "server", "good", "server", &err), 0);
    assert_int_equal(add_creds(world, "client", "good", "client", &err), 0);
    assert_int_equal(tls_object_creds(world->nbd.graph, "server", TLS_SERVER, &creds, &err), 0);
    struct sock_address address = {.family = SOCK_FAMILY_UNIX, .path = world->path};
    assert_int_equal(nbd_server_start_tls(world->nbd.service, "tls", &address, 1, 0, creds, &err),
                     0);
    tls_creds_unref(creds);
    struct nbd_export_options options = {
        .id = "x", .name = "x", .server = "tls", .node = world->nbd.node, .writable = true};
    assert_int_equal(nbd_export_add(world->nbd.service, &options, &err), 0);
}

static struct edge *client(struct tls_world *world) MAY_WAIT;
static struct edge *client(struct tls_world *world)
{
    struct node *node = blocks_add(world->nbd.graph,
                                   "{'node-name':'far','driver':'nbd','server':{'type':'unix',"
                                   "'path':'%s'},'export':'x','tls-creds':'client'}",
                                   world->path);

    return blocks_root(world->nbd.graph, node, "far");
}

TEST_LOOP(requests_in_flight_together_carry_their_own_data)
{
    static struct blocks_task tasks[REQUESTS];
    struct tls_world world;

    memset(tasks, 0, sizeof(tasks));
    world_begin(&world);
    struct edge *edge = client(&world);
    for (size_t i = 0; i < REQUESTS; i++)
        blocks_start_write(&tasks[i], edge, i * 16384, 16384, (uint8_t)(i + 1));
    for (size_t i = 0; i < REQUESTS; i++) {
        test_wait_until(tasks[i].done);
        assert_int_equal(tasks[i].result, 0);
    }
    for (size_t i = 0; i < REQUESTS; i++)
        blocks_expect(edge, i * 16384, 16384, (uint8_t)(i + 1));
    nbd_world_client_end(&world.nbd, edge);
    nbd_world_end(&world.nbd);
}

TEST_LOOP(a_server_stops_while_clients_hang_in_the_handshake)
{
    struct tls_world world;
    struct sock *hanging[8];
    struct err err = ERR_INIT;

    world_begin(&world);
    struct sock_address address = {.family = SOCK_FAMILY_UNIX, .path = world.path};
    for (size_t i = 0; i < ARRAY_LEN(hanging); i++) {
        char text[64];

        assert_int_equal(sock_connect(loop_current(), &address, DEADLINE_NEVER, &hanging[i], &err),
                         0);
        peer_greet(hanging[i], NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
        peer_option(hanging[i], NBD_OPT_STARTTLS, NULL, 0);
        assert_int_equal(peer_option_reply(hanging[i], NBD_OPT_STARTTLS, text, sizeof(text)),
                         NBD_REP_ACK);
    }
    struct edge *edge = client(&world);
    blocks_expect(edge, 0, 4096, 0);
    nbd_world_client_end(&world.nbd, edge);
    uint64_t began_ns = loop_clock_ns(loop_current());
    assert_int_equal(nbd_server_stop(world.nbd.service, "tls", &err), 0);
    assert_true(loop_clock_ns(loop_current()) - began_ns < 5 * NS_PER_S);
    for (size_t i = 0; i < ARRAY_LEN(hanging); i++)
        sock_close(hanging[i]);
    nbd_world_end(&world.nbd);
}

TEST_LOOP(credentials_are_found_by_name_and_side)
{
    struct tls_world world;
    struct tls_creds *creds = NULL;
    struct err err = ERR_INIT;

    world_begin(&world);
    assert_int_equal(tls_object_creds(world.nbd.graph, "nobody", TLS_CLIENT, &creds, &err),
                     -ENOENT);
    assert_int_equal(tls_object_creds(world.nbd.graph, "client", TLS_SERVER, &creds, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "endpoint=server"));
    err_clear(&err);
    assert_int_equal(add_creds(&world, "old", "expired", "server", &err), -EKEYEXPIRED);
    /* It is there without credentials, until its maker takes it away. */
    assert_int_equal(tls_object_creds(world.nbd.graph, "old", TLS_SERVER, &creds, &err), -EAGAIN);
    assert_int_equal(object_del(world.nbd.graph, "old", &err), 0);
    assert_int_equal(object_del(world.nbd.graph, "server", &err), 0);
    struct edge *edge = client(&world); /* the server keeps what it has */
    blocks_expect(edge, 0, 4096, 0);
    nbd_world_client_end(&world.nbd, edge);
    nbd_world_end(&world.nbd);
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
        tls_test(requests_in_flight_together_carry_their_own_data),
        tls_test(a_server_stops_while_clients_hang_in_the_handshake),
        tls_test(credentials_are_found_by_name_and_side),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
