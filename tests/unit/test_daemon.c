/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two whole daemons on one loop, linked over sockets: configuration, exports, replication, fence and
 * promotion as the programs run them, and so in the simulator too.
 */
#include "harness.h"

#include "base/log.h"
#include "block/io.h"
#include "control/commands.h"
#include "control/daemon.h"
#include "control/qmp_dispatch.h"
#include "drivers/nbd_client.h"
#include "drivers/overlay.h"
#include "drivers/table.h"
#include "replication/peer.h"
#include "replication/peer_link.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DISK_BYTES (UINT64_C(4) << 20)
#define PIECE      65536u

struct host {
    struct config config;
    struct daemon *daemon;
};

#define must(call)                                        \
    do {                                                  \
        struct err err = ERR_INIT;                        \
        if ((call) < 0) {                                 \
            fprintf(stderr, "%s: %s\n", #call, err.text); \
            fail();                                       \
        }                                                 \
    } while (0)

/* --- tables --- */

static void tables_of_commands_are_sound(void **state)
{
    for (const struct qmp_command *const *table = commands_tables; *table != NULL; table++) {
        for (const struct qmp_command *command = *table; command->name != NULL; command++) {
            assert_non_null(command->run);
            assert_true((command->args != NULL) == (command->args_size > 0));
            if (command->args != NULL)
                opts_table_check(command->args);
            assert_ptr_equal(qmp_command_find(commands_tables, QMP_ROLE_FULL, command->name),
                             command);
        }
    }
}

/* --- making hosts --- */

static void make_disk(const char *name) MAY_WAIT
{
    struct file *file = NULL;

    must(file_open(loop_current(), test_path(name), FILE_WRITABLE | FILE_CREATE | FILE_TRUNCATE,
                   FILE_AIO_AUTO, &file, &err));
    assert_int_equal(file_truncate(file, DISK_BYTES), 0);
    file_close(file);
}

static void make_overlay(const char *name) MAY_WAIT
{
    const struct overlay_create create = {.virtual_bytes = DISK_BYTES};

    must(overlay_create(loop_current(), test_path(name), &create, true, &err));
}

static void add_blockdev(struct host *host, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void add_blockdev(struct host *host, const char *fmt, ...)
{
    char text[2000];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    must(config_add_blockdev(&host->config, text, &err));
}

static void add_server(struct host *host, const char *id) MAY_WAIT
{
    char text[600];

    snprintf(text, sizeof(text), "id=%s,addr.type=unix,addr.path=%s", id, test_path(id));
    must(config_add_nbd_server(&host->config, text, &err));
}

static void host_start(struct host *host) MAY_WAIT
{
    must(daemon_new(loop_current(), &host->config, &host->daemon, &err));
    must(daemon_start(host->daemon, &err));
}

static void host_end(struct host *host) MAY_WAIT
{
    daemon_end(host->daemon);
    daemon_free(host->daemon);
    config_release(&host->config);
}

static void secondary_start(struct host *host) MAY_WAIT
{
    *host = (struct host){.config.drivers = drivers_table};
    make_disk("s.raw");
    make_overlay("hidden");
    make_overlay("active");
    add_blockdev(host, "file,node-name=disk,filename=%s", test_path("s.raw"));
    add_blockdev(host, "overlay,node-name=hidden,backing=disk,file.driver=file,file.filename=%s",
                 test_path("hidden"));
    add_blockdev(host, "overlay,node-name=active,backing=hidden,file.driver=file,file.filename=%s",
                 test_path("active"));
    add_blockdev(host, "replication,node-name=filter,mode=secondary,top-id=top,file=active");
    add_blockdev(host, "quorum,node-name=top,read-pattern=fifo,vote-threshold=1,children.0=filter");
    add_server(host, "peer");
    add_server(host, "view");
    char control[600];
    snprintf(control, sizeof(control), "unix:%s,role=peer", test_path("control"));
    must(config_add_qmp(&host->config, control, &err));
    must(config_add_export(&host->config, "nbd,id=p,node-name=disk,server=peer,writable=on", &err));
    must(config_add_export(&host->config,
                           "nbd,id=v,node-name=top,server=view,writable-after-failover=on", &err));
    host_start(host);
    must(replication_start(host->daemon->group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY,
                           &err));
}

static void primary_start(struct host *host) MAY_WAIT
{
    *host = (struct host){.config.drivers = drivers_table};
    make_disk("p.raw");
    add_blockdev(host, "file,node-name=local,filename=%s", test_path("p.raw"));
    add_blockdev(host,
                 "replication,node-name=filter,mode=primary,file.driver=nbd,file.export=disk,"
                 "file.server.type=unix,file.server.path=%s",
                 test_path("peer"));
    add_blockdev(host, "quorum,node-name=top,read-pattern=fifo,vote-threshold=1,children.0=local,"
                       "children.1=filter");
    add_server(host, "guest");
    must(config_add_export(&host->config, "nbd,id=g,node-name=top,server=guest,writable=on", &err));
    host_start(host);
    must(replication_start(host->daemon->group, REPLICATION_PRIMARY, REPLICATION_OVERLAYS_EMPTY,
                           &err));
}

/* --- a guest --- */

static struct nbd_client *guest_connect(const char *server, const char *export) MAY_WAIT
{
    const struct nbd_client_options options = {
        .address = {.family = SOCK_FAMILY_UNIX, .path = (char *)test_path(server)},
        .export = export,
    };
    struct nbd_client *client = NULL;

    must(nbd_client_open(loop_current(), &options, &client, &err));
    return client;
}

static int guest_write(struct nbd_client *client, unsigned piece, uint8_t value) MAY_WAIT
{
    CLEANUP(buf_unrefp) struct buf *buf = buf_alloc(loop_bufs(loop_current()), PIECE);
    struct io io = {.offset_bytes = piece * (uint64_t)PIECE, .length_bytes = PIECE};

    assert_non_null(buf);
    memset(buf->bytes, value, PIECE);
    io.data = buf_slice_of(buf, 0, PIECE);
    return nbd_client_write(client, &io);
}

/* The piece's value, which must be the same all over. */
static int guest_read(struct nbd_client *client, unsigned piece) MAY_WAIT
{
    CLEANUP(buf_unrefp) struct buf *buf = buf_alloc(loop_bufs(loop_current()), PIECE);
    struct io io = {.offset_bytes = piece * (uint64_t)PIECE, .length_bytes = PIECE};

    assert_non_null(buf);
    io.data = buf_slice_of(buf, 0, PIECE);
    assert_int_equal(nbd_client_read(client, &io), 0);
    for (unsigned i = 1; i < PIECE; i++)
        assert_int_equal(buf->bytes[i], buf->bytes[0]);
    return buf->bytes[0];
}

static void checkpoint(struct host *primary, struct host *secondary) MAY_WAIT
{
    must(replication_checkpoint(primary->daemon->group, DEADLINE_NEVER, NULL, &err));
    must(replication_checkpoint(secondary->daemon->group, DEADLINE_NEVER, NULL, &err));
}

static enum replication_stage stage_of(struct host *host)
{
    enum replication_mode mode;
    enum replication_stage stage = REPLICATION_NONE;

    assert_true(replication_state(host->daemon->group, &mode, &stage));
    return stage;
}

/* --- the tests --- */

TEST_LOOP(a_secondary_takes_over_at_the_last_checkpoint)
{
    struct host primary, secondary;
    struct nbd_client *guest, *view;

    log_set_level(LOG_LEVEL_ERROR);
    secondary_start(&secondary);
    primary_start(&primary);
    guest = guest_connect("guest", "top");
    assert_int_equal(guest_write(guest, 0, 1), 0);
    assert_int_equal(guest_write(guest, 1, 1), 0);
    checkpoint(&primary, &secondary);
    assert_int_equal(guest_write(guest, 1, 2), 0);
    assert_int_equal(guest_write(guest, 2, 2), 0);

    must(daemon_failover(secondary.daemon, false, &err));
    view = guest_connect("view", "top");
    assert_false(nbd_client_read_only(view));
    assert_int_equal(guest_write(view, 3, 3), 0);
    for (int round = 0; round < 2; round++) { /* during the merge, and after it */
        assert_int_equal(guest_read(view, 0), 1);
        assert_int_equal(guest_read(view, 1), 1);
        assert_int_equal(guest_read(view, 2), 0);
        assert_int_equal(guest_read(view, 3), 3);
        test_wait_until(stage_of(&secondary) == REPLICATION_DONE);
    }
    /* The primary lives on: its guest does not notice, and nothing of it comes through. */
    assert_int_equal(guest_write(guest, 0, 9), 0);
    assert_int_equal(guest_read(guest, 0), 9);
    assert_int_equal(guest_read(view, 0), 1);
    nbd_client_close(view);
    nbd_client_close(guest);
    host_end(&primary);
    host_end(&secondary);
    test_folder_remove();
}

TEST_LOOP(the_view_is_read_only_until_a_failover)
{
    struct host secondary;
    struct nbd_client *view;

    log_set_level(LOG_LEVEL_ERROR);
    secondary_start(&secondary);
    view = guest_connect("view", "top");
    assert_true(nbd_client_read_only(view));
    must(daemon_failover(secondary.daemon, false, &err));
    nbd_client_close(view);
    view = guest_connect("view", "top");
    assert_false(nbd_client_read_only(view));
    nbd_client_close(view);
    host_end(&secondary);
    test_folder_remove();
}

TEST_LOOP(a_failover_that_a_stopped_secondary_ignores_leaves_the_view_read_only)
{
    struct host secondary;
    struct nbd_client *view;

    log_set_level(LOG_LEVEL_ERROR);
    secondary_start(&secondary);
    must(daemon_stop_replication(secondary.daemon, &err));
    view = guest_connect("view", "top");
    must(daemon_failover(secondary.daemon, false, &err));
    assert_int_equal(guest_read(view, 0), 0);
    nbd_client_close(view);
    view = guest_connect("view", "top");
    assert_true(nbd_client_read_only(view));
    nbd_client_close(view);
    host_end(&secondary);
    test_folder_remove();
}

static void note_fenced(void *arg, const struct nbd_server_info *info)
{
    if (info->fenced)
        snprintf(arg, 32, "%s", info->id);
}

TEST_LOOP(the_fence_closes_the_peers_server_and_no_other)
{
    struct host secondary;
    struct nbd_client *peer;
    char fenced[32] = "";

    log_set_level(LOG_LEVEL_ERROR);
    secondary_start(&secondary);
    peer = guest_connect("peer", "disk");
    assert_int_equal(guest_write(peer, 0, 1), 0);
    must(daemon_failover(secondary.daemon, false, &err));
    assert_true(guest_write(peer, 0, 2) < 0);
    nbd_server_query(secondary.daemon->nbd, note_fenced, fenced);
    assert_string_equal(fenced, "peer");
    assert_false(nbd_export_exists(secondary.daemon->nbd, "p"));
    assert_true(nbd_export_exists(secondary.daemon->nbd, "v"));
    nbd_client_close(peer);
    host_end(&secondary);
    test_folder_remove();
}

static void ignore_event(void *arg, const char *name, struct json_object *data)
{
}

static void ignore_loss(void *arg)
{
}

/* As a host that is gone without a word: nothing ends its connection. */
TEST_LOOP(a_primary_that_says_nothing_after_its_hello_is_held_for_gone)
{
    if (!test_loop_is_sim())
        return;
    struct host secondary;
    log_set_level(LOG_LEVEL_ERROR);
    secondary_start(&secondary);
    const struct replication_peer_control where = {
        .address = {.family = SOCK_FAMILY_UNIX, .path = (char *)test_path("control")}};
    const struct peer_link_owner owner = {ignore_event, ignore_loss, NULL};
    struct peer_link *link = NULL;
    must(peer_link_open(loop_current(), &where, &owner, &link, &err));
    struct json_object *result = NULL;
    must(peer_link_run(link, "replication-hello",
                       json_tokener_parse("{\"version-min\": 1, \"version-max\": 1, "
                                          "\"instance\": \"5f0c000000000000\", "
                                          "\"exports\": [\"disk\"]}"),
                       test_deadline_ns(5), &result, &err));
    json_object_put(result);
    co_sleep(PEER_SILENT_NS - NS_PER_S);
    assert_true(replication_session(secondary.daemon->group).connected);
    co_sleep(2 * NS_PER_S);
    assert_false(replication_session(secondary.daemon->group).connected);
    assert_false(peer_link_is_up(link));
    peer_link_close(link);
    host_end(&secondary);
    test_folder_remove();
}

TEST_LOOP(a_failed_start_is_ended_in_order)
{
    struct host host = {.config.drivers = drivers_table};
    struct err refused = ERR_INIT;

    log_set_level(LOG_LEVEL_ERROR);
    add_blockdev(&host, "null-co,node-name=n,size=1M");
    add_server(&host, "some");
    must(config_add_export(&host.config, "nbd,id=e,node-name=n", &err));
    must(config_add_export(&host.config, "nbd,id=e,node-name=n", &err));
    must(daemon_new(loop_current(), &host.config, &host.daemon, &err));
    assert_true(daemon_start(host.daemon, &refused) < 0);
    assert_non_null(strstr(refused.text, "'e'"));
    host_end(&host);
    test_folder_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_of_commands_are_sound),
        cmocka_unit_test(a_secondary_takes_over_at_the_last_checkpoint),
        cmocka_unit_test(the_view_is_read_only_until_a_failover),
        cmocka_unit_test(a_failover_that_a_stopped_secondary_ignores_leaves_the_view_read_only),
        cmocka_unit_test(the_fence_closes_the_peers_server_and_no_other),
        cmocka_unit_test(a_primary_that_says_nothing_after_its_hello_is_held_for_gone),
        cmocka_unit_test(a_failed_start_is_ended_in_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
