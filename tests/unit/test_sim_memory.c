/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A daemon whose memory runs out while it is set up: it is whole, or it says so, and keeps nothing. */
#include "fail_alloc.h"
#include "sim_fixture.h"

#include "control/daemon.h"
#include "drivers/overlay.h"
#include "drivers/table.h"

#include <errno.h>

#define ALLOCATIONS_MAX 5000
#define DISK_BYTES      (UINT64_C(1) << 20)

struct set_up {
    struct sim *sim;
    struct config config;
    long after;
    bool once;
    long failures;
    int result;
};

#define must(call)                    \
    do {                              \
        struct err err = ERR_INIT;    \
        if ((call) < 0)               \
            fail_msg("%s", err.text); \
    } while (0)

static void configure(struct config *config)
{
    *config = (struct config){.drivers = drivers_table};
    must(config_add_blockdev(config, "file,node-name=disk,filename=/disk", &err));
    must(config_add_blockdev(config,
                             "overlay,node-name=active,backing=disk,file.driver=file,"
                             "file.filename=/active",
                             &err));
    must(config_add_blockdev(config,
                             "quorum,node-name=top,read-pattern=fifo,vote-threshold=1,"
                             "children.0=active",
                             &err));
    must(config_add_nbd_server(config, "id=user,addr.type=unix,addr.path=/run/user", &err));
    must(config_add_export(config, "nbd,id=e,node-name=top,server=user,writable=on", &err));
    must(config_add_qmp(config, "unix:/run/qmp", &err));
}

static void make_files(void) MAY_WAIT;
static void make_files(void)
{
    const struct overlay_create create = {.virtual_bytes = DISK_BYTES};
    struct file *file = open_file("/disk");

    assert_int_equal(file_truncate(file, DISK_BYTES), 0);
    file_close(file);
    must(overlay_create(loop_current(), "/active", &create, true, &err));
}

static bool in_a_coroutine(void)
{
    return loop_current() != NULL && co_self() != NULL;
}

static void set_up_without_memory(void *arg) MAY_WAIT;
static void set_up_without_memory(void *arg)
{
    struct set_up *set_up = arg;
    struct daemon *daemon = NULL;
    struct err err = ERR_INIT;

    make_files();
    fail_alloc_begin(set_up->after, set_up->once, in_a_coroutine);
    set_up->result = daemon_new(loop_current(), &set_up->config, &daemon, &err);
    if (set_up->result == 0)
        set_up->result = daemon_start(daemon, &err);
    set_up->failures = fail_alloc_end();
    if (daemon != NULL) {
        daemon_end(daemon);
        daemon_free(daemon);
    }
    loop_stop(loop_current());
}

/* 0 or what the set-up said; all it allocated is free again. */
static int set_up_once(struct set_up *set_up)
{
    long before = fail_alloc_live();

    set_up->sim = new_plain_world(1);
    struct loop *loop = new_host(set_up->sim, "a");
    run_on(loop, "set-up", set_up_without_memory, set_up);
    loop_free(loop);
    sim_free(set_up->sim);
    assert_int_equal(fail_alloc_live(), before);
    return set_up->result;
}

static void sweep(bool once)
{
    struct set_up set_up = {.once = once};

    configure(&set_up.config);
    set_up.after = ALLOCATIONS_MAX;
    assert_int_equal(set_up_once(&set_up), 0); /* and what is allocated once, has been */
    for (set_up.after = 0; set_up.after < ALLOCATIONS_MAX; set_up.after++) {
        int result = set_up_once(&set_up);
        if (set_up.failures == 0) {
            assert_int_equal(result, 0);
            break;
        }
        assert_true(once || result < 0);
    }
    assert_in_range(set_up.after, 100, ALLOCATIONS_MAX - 1);
    config_release(&set_up.config);
}

static void a_daemon_is_set_up_whole_or_says_no(void **state UNUSED)
{
    if (!fail_alloc_possible())
        skip();
    sweep(false);
    sweep(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemon_is_set_up_whole_or_says_no),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
