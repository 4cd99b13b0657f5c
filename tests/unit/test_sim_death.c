/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Processes of the simulator that are killed or stopped: what stays, what lands, what becomes of them. */
#include "sim_fixture.h"

#include <errno.h>

#define SEEDS 100u

/* A program that writes the same page over and over, and a boss on another host. */
struct life {
    struct sim *sim;
    struct loop *loop;
    struct co_queue quit;
    bool told, ended, asked;
    unsigned written; /* pages that it knows of, */
    unsigned known;   /* and knew of when it was killed */
    int last_error;
};

static void told_to_end(void *arg)
{
    struct life *life = arg;

    assert_ptr_equal(loop_current(), life->loop);
    assert_true(sim_process_is_dead(life->loop));
    life->told = true;
    co_queue_wake_all(&life->quit);
}

static struct life *new_life(struct sim *sim, const char *host)
{
    struct life *life = calloc(1, sizeof(*life));

    assert_non_null(life);
    life->sim = sim;
    life->loop = new_host(sim, host);
    co_queue_init(&life->quit);
    sim_process_on_death(life->loop, told_to_end, life);
    return life;
}

static void free_life(struct life *life)
{
    assert_true(sim_process_is_gone(life->loop));
    loop_free(life->loop);
    free(life);
}

static void write_pages(void *arg) MAY_WAIT;
static void write_pages(void *arg)
{
    struct life *life = arg;
    struct file *file = open_file("/disk");
    uint8_t page[4096];

    assert_int_equal(file_lock(file, 100, true), 0);
    for (uint8_t i = 1; !life->told; i++) {
        memset(page, i, sizeof(page));
        life->last_error = file_write(file, page, sizeof(page), (uint64_t)(i - 1) * sizeof(page));
        if (life->last_error == 0)
            life->written = i;
    }
    file_close(file);
    life->ended = true;
}

static void pass(struct sim *sim, uint64_t time_ns)
{
    uint64_t end_ns = sim_now_ns(sim) + time_ns;

    while (sim_now_ns(sim) < end_ns && sim_step(sim))
        ;
}

struct check {
    unsigned written;
    bool later_landed, torn, locked_at_first;
};

/* What a successor finds. Only the page after the last known one may be there, in any part. */
static void check_pages(void *arg) MAY_WAIT;
static void check_pages(void *arg)
{
    struct check *check = arg;
    struct file *file = open_file("/disk");
    uint8_t page[4096], again[4096];
    size_t new = 0;

    check->locked_at_first = file_lock(file, 100, true) == -EAGAIN;
    for (unsigned i = 0; i < check->written; i++) {
        assert_int_equal(file_read(file, page, sizeof(page), i * sizeof(page)), sizeof(page));
        for (size_t at = 0; at < sizeof(page); at++)
            assert_int_equal(page[at], i + 1);
    }
    memset(page, 0, sizeof(page));
    ssize_t got = file_read(file, page, sizeof(page), check->written * sizeof(page));
    assert_true(got >= 0);
    co_sleep(NS_PER_S); /* far beyond the linger */
    assert_int_equal(file_lock(file, 100, true), 0);
    memset(again, 0, sizeof(again));
    assert_true(file_read(file, again, sizeof(again), check->written * sizeof(page)) >= got);
    check->later_landed = memcmp(page, again, sizeof(page)) != 0;
    for (size_t at = 0; at < sizeof(again); at++) {
        assert_true(again[at] == 0 || again[at] == check->written + 1);
        new += again[at] != 0;
    }
    check->torn = new > 0 && new < sizeof(again);
    assert_int_equal(file_read(file, again, sizeof(again), (check->written + 1) * sizeof(page)), 0);
    file_close(file);
    loop_stop(loop_current());
}

static void kill_after_a_while(void *arg) MAY_WAIT;
static void kill_after_a_while(void *arg)
{
    struct life *life = arg;

    co_sleep(100 * NS_PER_US + loop_random(loop_current()) % (500 * NS_PER_US));
    life->known = life->written;
    sim_process_kill(life->loop);
    assert_true(sim_process_is_dead(life->loop));
    assert_false(sim_process_is_gone(life->loop));
    loop_stop(loop_current());
}

static void a_killed_process_loses_nothing_and_its_last_write_may_land_late(void **state UNUSED)
{
    unsigned later = 0, torn = 0, locked = 0, failed = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct sim *sim = new_plain_world(seed);
        struct life *life = new_life(sim, "a");
        assert_int_equal(co_spawn(life->loop, "write", write_pages, life), 0);
        struct loop *boss = new_host(sim, "b");
        run_on(boss, "kill", kill_after_a_while, life);
        assert_true(sim_process_is_dead(life->loop));
        struct check check = {.written = life->known};
        struct loop *heir = new_host(sim, "a");
        run_on(heir, "check", check_pages, &check);
        /* At most what had ended already, and had not been looked at. */
        assert_in_range(life->written, check.written, check.written + 1);
        assert_true(life->told);
        assert_true(life->ended);
        failed += life->last_error == -EIO;
        later += check.later_landed;
        torn += check.torn;
        locked += check.locked_at_first;
        free_life(life);
        loop_free(boss);
        loop_free(heir);
        sim_free(sim);
    }
    assert_in_range(failed, SEEDS / 4, SEEDS);
    assert_in_range(later, 5, SEEDS);
    assert_in_range(torn, 5, SEEDS);
    assert_in_range(locked, SEEDS / 2, SEEDS);
}

/* What a ghost asks for: all of it fails at once, none of it has an effect, and no time passes. */
static void live_on_as_a_ghost(void *arg) MAY_WAIT;
static void live_on_as_a_ghost(void *arg)
{
    struct life *life = arg;
    struct loop *loop = loop_current();
    struct sock *listener = listen_on(":10809"), *sock = NULL;
    struct file *file = open_file("/disk"), *other = NULL;
    struct sock_address address;
    struct err err = ERR_INIT;
    uint8_t byte = 9;

    assert_int_equal(file_write(file, &byte, 1, 0), 0);
    while (!life->told)
        co_queue_wait(&life->quit);
    byte = 1;
    assert_int_equal(file_write(file, &byte, 1, 0), -EIO);
    assert_int_equal(file_read(file, &byte, 1, 0), -EIO);
    assert_int_equal(file_sync(file), -EIO);
    assert_int_equal(file_truncate(file, 0), -EIO);
    assert_int_equal(file_lock(file, 1, false), -EIO);
    assert_int_equal(path_unlink(loop, "/disk"), -EIO);
    assert_int_equal(path_rename(loop, "/disk", "/x"), -EIO);
    assert_int_equal(
        file_open(loop, "/y", FILE_CREATE | FILE_WRITABLE, FILE_AIO_AUTO, &other, &err), -EIO);
    assert_int_equal(connect_to("a:10809", NS_PER_S, &sock), -ENETUNREACH);
    assert_int_equal(sock_address_parse(":1", "test", &address, &err), 0);
    assert_int_equal(sock_listen(loop, &address, &sock, &err), -EIO);
    sock_address_release(&address);
    co_sleep(3600 * NS_PER_S);
    sock_shutdown(listener, 0);
    assert_int_equal(sock_accept(listener, &sock), -ECONNABORTED);
    sock_close(listener);
    file_close(file);
    life->ended = true;
}

static void look_for_traces(void *arg UNUSED) MAY_WAIT;
static void look_for_traces(void *arg UNUSED)
{
    struct file *file = open_file("/disk");
    uint8_t byte = 0;

    assert_int_equal(file_read(file, &byte, 1, 0), 1);
    assert_int_equal(byte, 9);
    assert_false(path_exists(loop_current(), "/x"));
    assert_false(path_exists(loop_current(), "/y"));
    file_close(file);
    loop_stop(loop_current());
}

static void a_ghost_has_no_effect_and_takes_no_time(void **state UNUSED)
{
    struct sim *sim = new_plain_world(5);
    struct life *life = new_life(sim, "a");
    struct loop *other = new_host(sim, "a");

    assert_int_equal(co_spawn(life->loop, "ghost", live_on_as_a_ghost, life), 0);
    pass(sim, 10 * NS_PER_MS);
    sim_process_kill(life->loop);
    sim_process_kill(life->loop); /* once is enough */
    uint64_t hash = sim_trace_hash(sim), now_ns = sim_now_ns(sim);
    sim_bury(sim);
    assert_true(life->ended);
    assert_true(sim_trace_hash(sim) == hash);
    assert_true(sim_now_ns(sim) == now_ns);
    run_on(other, "look", look_for_traces, NULL);
    free_life(life);
    loop_free(other);
    sim_free(sim);
}

struct hang {
    unsigned count;
};

static void hang_note(void *arg, const char *text)
{
    struct hang *hang = arg;

    assert_non_null(strstr(text, "does not come to its end"));
    assert_non_null(strstr(text, "[a: stubborn]"));
    hang->count++;
}

static void never_end(void *arg) MAY_WAIT;
static void never_end(void *arg)
{
    struct life *life = arg;

    while (!life->asked)
        co_queue_wait(&life->quit);
}

static void a_ghost_that_does_not_end_is_told_as_a_hang(void **state UNUSED)
{
    struct sim_options options;
    struct hang hang = {0};

    sim_options_init(&options, 1);
    options.on_hang = hang_note;
    options.on_hang_arg = &hang;
    struct sim *sim = new_world(&options);
    struct life *life = new_life(sim, "a");
    assert_int_equal(co_spawn(life->loop, "stubborn", never_end, life), 0);
    pass(sim, NS_PER_MS);
    sim_process_kill(life->loop);
    assert_false(sim_step(sim));
    assert_int_equal(hang.count, 1);
    assert_false(sim_process_is_gone(life->loop));
    life->asked = true;
    co_queue_wake_all(&life->quit);
    sim_bury(sim);
    free_life(life);
    sim_free(sim);
}

static int kill_at(void *arg, const struct sim_request_info *info)
{
    struct life *life = arg;

    if (info->op != SIM_OP_WRITE || info->number != 5 || info->moment != SIM_AFTER)
        return 0;
    assert_string_equal(info->host, "a");
    assert_string_equal(info->path, "/disk");
    assert_int_equal(info->length_bytes, 4096);
    sim_process_kill(info->loop);
    assert_true(sim_process_is_dead(life->loop));
    return 0;
}

static void a_hook_can_kill_at_any_moment_of_any_request(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct sim *sim = new_plain_world(seed);
        struct life *life = new_life(sim, "a");
        sim_set_request_hook(sim, kill_at, life);
        assert_int_equal(co_spawn(life->loop, "write", write_pages, life), 0);
        while (sim_step(sim))
            ;
        assert_true(life->ended);
        assert_int_equal(life->written,
                         3); /* after the open; the fourth stands, and nobody knows */
        struct check check = {.written = 4};
        struct loop *heir = new_host(sim, "a");
        run_on(heir, "check", check_pages, &check);
        assert_false(check.later_landed);
        free_life(life);
        loop_free(heir);
        sim_free(sim);
    }
}

/* --- stopped, and going on --- */

static void count_slowly(void *arg) MAY_WAIT;
static void count_slowly(void *arg)
{
    struct life *life = arg;

    while (!life->told) {
        co_sleep(NS_PER_MS);
        life->written++;
    }
}

static void a_stopped_process_does_nothing_until_it_goes_on(void **state UNUSED)
{
    struct sim *sim = new_plain_world(8);
    struct life *life = new_life(sim, "a");
    struct life *other = new_life(sim, "b");

    assert_int_equal(co_spawn(life->loop, "count", count_slowly, life), 0);
    assert_int_equal(co_spawn(other->loop, "count", count_slowly, other), 0);
    pass(sim, 10 * NS_PER_MS);
    unsigned before = life->written;
    assert_in_range(before, 5, 11);
    sim_process_stop(life->loop);
    pass(sim, 100 * NS_PER_MS);
    assert_int_equal(life->written, before);
    assert_in_range(other->written, 90, 120);
    sim_process_continue(life->loop);
    pass(sim, 10 * NS_PER_MS);
    assert_in_range(life->written, before + 5, before + 12);
    sim_process_kill(life->loop);
    sim_process_kill(other->loop);
    sim_bury(sim);
    free_life(life);
    free_life(other);
    sim_free(sim);
}

/* A client sends until its peer, which is stopped, has no room; then the peer wakes and reads old data. */
struct stopped {
    struct sim *sim;
    struct loop *server;
    size_t sent, received;
    bool ready, done;
};

static void read_all(void *arg) MAY_WAIT;
static void read_all(void *arg)
{
    struct stopped *stopped = arg;
    struct sock *listener = listen_on(":10809"), *sock = NULL;
    uint8_t bytes[4096];
    ssize_t got;

    stopped->ready = true;
    assert_int_equal(sock_accept(listener, &sock), 0);
    while ((got = sock_recv(sock, bytes, sizeof(bytes))) > 0)
        stopped->received += (size_t)got;
    assert_int_equal(got, 0);
    sock_close(sock);
    sock_close(listener);
}

static void send_to_stopped(void *arg) MAY_WAIT;
static void send_to_stopped(void *arg)
{
    struct stopped *stopped = arg;
    static uint8_t bytes[10000];
    struct sock *sock = NULL;
    ssize_t put;

    while (!stopped->ready)
        co_sleep(NS_PER_MS);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &sock), 0);
    co_sleep(NS_PER_MS);
    sim_process_stop(stopped->server);
    for (int i = 0; i < 1000; i++) {
        struct iovec iov = {bytes, sizeof(bytes)};
        put = sock_send_now(sock, &iov, 1);
        assert_true(put >= 0);
        stopped->sent += (size_t)put;
        co_sleep(NS_PER_MS);
    }
    assert_int_equal(stopped->sent, 64 * 1024);
    sock_close(sock);
    co_sleep(NS_PER_S);
    assert_int_equal(stopped->received, 0);
    sim_process_continue(stopped->server);
    co_sleep(NS_PER_S);
    assert_int_equal(stopped->received, stopped->sent);
    loop_stop(loop_current());
}

static void a_stopped_peers_buffers_fill_and_it_reads_them_when_it_wakes(void **state UNUSED)
{
    struct stopped stopped = {.sim = new_plain_world(4)};
    struct loop *client = new_host(stopped.sim, "p");

    stopped.server = new_host(stopped.sim, "s");
    assert_int_equal(co_spawn(stopped.server, "server", read_all, &stopped), 0);
    run_on(client, "client", send_to_stopped, &stopped);
    loop_free(client);
    loop_free(stopped.server);
    sim_free(stopped.sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_process_loses_nothing_and_its_last_write_may_land_late),
        cmocka_unit_test(a_ghost_has_no_effect_and_takes_no_time),
        cmocka_unit_test(a_ghost_that_does_not_end_is_told_as_a_hang),
        cmocka_unit_test(a_hook_can_kill_at_any_moment_of_any_request),
        cmocka_unit_test(a_stopped_process_does_nothing_until_it_goes_on),
        cmocka_unit_test(a_stopped_peers_buffers_fill_and_it_reads_them_when_it_wakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
