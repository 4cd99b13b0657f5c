/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The simulator itself: one seed, one run; several hosts in one world; faults; hangs are told. */
#include "sim_fixture.h"

#include <errno.h>
#include <limits.h>

/* --- one seed, one run --- */

#define WORKERS 8u

struct work {
    struct co_group group;
    struct file *file;
    uint64_t order; /* digest of who did what when, as the program saw it */
    unsigned number;
};

static void work_a_little(void *arg) MAY_WAIT;
static void work_a_little(void *arg)
{
    struct work *work = arg;
    unsigned number = work->number++;
    static const uint8_t bytes[20000];

    for (unsigned i = 0; i < 20; i++) {
        uint64_t offset = loop_random(loop_current()) % 100000;
        assert_int_equal(file_write(work->file, bytes, sizeof(bytes), offset), 0);
        work->order = work->order * 31 + number;
        work->order = work->order * 31 + loop_clock_ns(loop_current());
    }
    co_group_leave(&work->group);
}

static void work_together(void *arg) MAY_WAIT;
static void work_together(void *arg)
{
    struct work *work = arg;

    work->file = open_file("/work");
    co_group_init(&work->group);
    for (unsigned i = 0; i < WORKERS; i++) {
        co_group_enter(&work->group);
        assert_int_equal(co_spawn(loop_current(), "worker", work_a_little, work), 0);
    }
    co_group_wait(&work->group);
    file_close(work->file);
    loop_stop(loop_current());
}

static uint64_t run_work(uint64_t seed, uint64_t *ret_order)
{
    struct sim *sim = new_plain_world(seed);
    struct loop *loop = new_host(sim, "a");
    struct work work = {.number = 0};

    run_on(loop, "work", work_together, &work);
    uint64_t hash = sim_trace_hash(sim);
    assert_int_equal(sim_seed(sim), seed);
    loop_free(loop);
    sim_free(sim);
    *ret_order = work.order;
    return hash;
}

static void one_seed_gives_one_run_and_another_seed_another(void **state UNUSED)
{
    uint64_t hashes[20], orders[20];

    for (uint64_t seed = 0; seed < 20; seed++) {
        uint64_t order;
        hashes[seed] = run_work(seed, &orders[seed]);
        assert_true(run_work(seed, &order) == hashes[seed]);
        assert_true(order == orders[seed]);
        for (uint64_t other = 0; other < seed; other++) {
            assert_true(hashes[other] != hashes[seed]);
            assert_true(orders[other] != orders[seed]);
        }
    }
}

/* Computed once: another value means that histories kept from before no longer replay, here or on
 * this machine. Change it with a reason. */
static void the_run_of_a_seed_is_the_same_everywhere(void **state UNUSED)
{
    uint64_t order;

    assert_int_equal(run_work(42, &order), UINT64_C(0xc20c220655432340));
}

static void worlds_can_share_their_stacks_and_run_as_before(void **state UNUSED)
{
    struct co_stacks *stacks = co_stacks_new();
    uint64_t order;

    assert_non_null(stacks);
    for (uint64_t seed = 0; seed < 5; seed++) {
        struct sim_options options;
        sim_options_init(&options, seed);
        options.stacks = stacks;
        struct sim *sim = new_world(&options);
        struct loop *loop = new_host(sim, "a");
        struct work work = {.number = 0};
        run_on(loop, "work", work_together, &work);
        assert_true(run_work(seed, &order) == sim_trace_hash(sim));
        loop_free(loop);
        sim_free(sim);
    }
    co_stacks_free(stacks);
}

struct runner {
    struct work *work;
    unsigned number;
};

static void note_order(void *arg)
{
    struct runner *runner = arg;
    runner->work->order = runner->work->order * 10 + runner->number;
}

static void ready_coroutines_run_in_an_order_of_the_seed(void **state UNUSED)
{
    uint64_t first = 0;
    bool differs = false;

    for (uint64_t seed = 0; seed < 10; seed++) {
        struct sim *sim = new_plain_world(seed);
        struct loop *loop = new_host(sim, "a");
        struct runner runners[WORKERS];
        struct work work = {.number = 0};
        for (unsigned i = 0; i < WORKERS; i++) {
            runners[i] = (struct runner){&work, i + 1};
            assert_int_equal(co_spawn(loop, "note", note_order, &runners[i]), 0);
        }
        while (sim_step(sim))
            ;
        differs = differs || (seed > 0 && work.order != first);
        first = seed == 0 ? work.order : first;
        loop_free(loop);
        sim_free(sim);
    }
    assert_true(differs);
}

static void yield_once(void *arg) MAY_WAIT;
static void yield_once(void *arg)
{
    unsigned *running = arg;

    ++*running;
    co_yield();
    assert_int_equal(*running, WORKERS); /* all that were ready before have run */
}

static void who_yields_stands_behind_all_who_are_ready(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct sim *sim = new_plain_world(seed);
        struct loop *loop = new_host(sim, "a");
        unsigned running = 0;
        for (unsigned i = 0; i < WORKERS; i++)
            assert_int_equal(co_spawn(loop, "yield", yield_once, &running), 0);
        while (sim_step(sim))
            ;
        assert_int_equal(loop_stats(loop).coroutines, 0);
        loop_free(loop);
        sim_free(sim);
    }
}

static void sleep_for_a_year(void *arg UNUSED) MAY_WAIT;
static void sleep_for_a_year(void *arg UNUSED)
{
    uint64_t begin_ns = loop_clock_ns(loop_current());

    co_sleep(365 * 24 * 3600 * NS_PER_S);
    assert_true(loop_clock_ns(loop_current()) - begin_ns >= 365 * 24 * 3600 * NS_PER_S);
    loop_stop(loop_current());
}

static void a_year_passes_at_once(void **state UNUSED)
{
    struct sim *sim = new_plain_world(1);
    struct loop *loop = new_host(sim, "a");

    run_on(loop, "sleep", sleep_for_a_year, NULL);
    assert_true(sim_now_ns(sim) >= 365 * 24 * 3600 * NS_PER_S);
    assert_ptr_equal(sim_of(loop), sim);
    loop_free(loop);
    sim_free(sim);
}

/* --- hangs --- */

struct hang {
    char text[SIM_HANG_TEXT_BYTES];
    unsigned count;
    struct co_queue queue;
};

static void hang_note(void *arg, const char *text)
{
    struct hang *hang = arg;

    hang->count++;
    snprintf(hang->text, sizeof(hang->text), "%s", text);
}

static void wait_in_vain(void *arg) MAY_WAIT;
static void wait_in_vain(void *arg)
{
    co_queue_wait(&((struct hang *)arg)->queue);
}

static void a_world_in_which_nothing_can_happen_names_who_waits(void **state UNUSED)
{
    struct hang hang = {.count = 0};
    struct sim_options options;

    sim_options_init(&options, 7);
    options.on_hang = hang_note;
    options.on_hang_arg = &hang;
    co_queue_init(&hang.queue);
    struct sim *sim = new_world(&options);
    struct loop *a = new_host(sim, "alpha"), *b = new_host(sim, "beta");
    assert_int_equal(co_spawn(b, "patient-two", wait_in_vain, &hang), 0);
    run_on(a, "patient-one", wait_in_vain, &hang);
    assert_int_equal(hang.count, 1);
    assert_non_null(strstr(hang.text, "nothing can happen"));
    assert_non_null(strstr(hang.text, "seed 7"));
    assert_non_null(strstr(hang.text, "[alpha: patient-one]"));
    assert_non_null(strstr(hang.text, "[beta: patient-two]"));
    co_queue_wake_all(&hang.queue);
    while (sim_step(sim))
        ;
    loop_free(a);
    loop_free(b);
    sim_free(sim);
}

static void knock_for_ever(void *arg) MAY_WAIT;
static void knock_for_ever(void *arg)
{
    while (!*(bool *)arg)
        co_sleep(NS_PER_S);
}

static void the_limit_of_virtual_time_ends_a_run_that_never_would(void **state UNUSED)
{
    struct hang hang = {.count = 0};
    struct sim_options options;
    bool stop = false;

    sim_options_init(&options, 7);
    options.on_hang = hang_note;
    options.on_hang_arg = &hang;
    options.limit_ns = 3600 * NS_PER_S;
    struct sim *sim = new_world(&options);
    struct loop *loop = new_host(sim, "a");
    run_on(loop, "knock", knock_for_ever, &stop);
    assert_int_equal(hang.count, 1);
    assert_non_null(strstr(hang.text, "limit of virtual time"));
    assert_false(sim_step(sim));
    stop = true;
    sim_set_limit(sim, 0);
    while (loop_stats(loop).coroutines > 0)
        assert_true(sim_step(sim));
    loop_free(loop);
    sim_free(sim);
}

/* --- several hosts --- */

struct talk {
    struct loop *client_loop;
    const char *server_name;
    bool server_ready, done;
    unsigned heard;
};

static void serve_one(void *arg) MAY_WAIT;
static void serve_one(void *arg)
{
    struct talk *talk = arg;
    struct sock *listener = listen_on("0.0.0.0:10809"), *sock = NULL;
    uint8_t bytes[1000];
    ssize_t got;

    talk->server_ready = true;
    assert_int_equal(sock_accept(listener, &sock), 0);
    while ((got = sock_recv(sock, bytes, sizeof(bytes))) > 0)
        talk->heard += (unsigned)got;
    assert_int_equal(got, 0);
    sock_close(sock);
    sock_close(listener);
}

static void talk_to_server(void *arg) MAY_WAIT;
static void talk_to_server(void *arg)
{
    struct talk *talk = arg;
    static uint8_t bytes[200000];
    struct iovec iov = {bytes, sizeof(bytes)};
    struct sock *sock = NULL;
    char text[100];

    while (!talk->server_ready)
        co_sleep(NS_PER_MS);
    assert_int_equal(connect_to("localhost:10809", NS_PER_S, &sock), -ECONNREFUSED);
    assert_int_equal(connect_to("unknown:10809", NS_PER_S, &sock), -EHOSTUNREACH);
    snprintf(text, sizeof(text), "%s:10809", talk->server_name);
    assert_int_equal(connect_to(text, NS_PER_S, &sock), 0);
    assert_int_equal(sock_send(sock, &iov, 1), 0);
    sock_close(sock);
    talk->done = true;
    while (talk->heard < sizeof(bytes))
        co_sleep(NS_PER_MS);
    loop_stop(loop_current());
}

static void hosts_talk_by_name_and_each_has_its_own_localhost(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < 50; seed++) {
        struct sim *sim = new_plain_world(seed);
        struct loop *p = new_host(sim, "p"), *s = new_host(sim, "s");
        struct talk talk = {.server_name = seed % 2 == 0 ? "s" : "10.0.0.2"};
        assert_int_equal(co_spawn(s, "server", serve_one, &talk), 0);
        run_on(p, "client", talk_to_server, &talk);
        assert_true(talk.done);
        while (sim_step(sim)) /* the server still has to see the end */
            ;
        loop_free(p);
        loop_free(s);
        sim_free(sim);
    }
}

static void write_name(void *arg) MAY_WAIT;
static void write_name(void *arg)
{
    struct file *file = open_file("/disk");

    assert_int_equal(file_write(file, arg, strlen(arg), 0), 0);
    file_close(file);
    loop_stop(loop_current());
}

static void read_name(void *arg) MAY_WAIT;
static void read_name(void *arg)
{
    struct file *file = open_file("/disk");
    char text[16] = "";

    assert_int_equal(file_read(file, text, sizeof(text), 0), strlen(arg));
    assert_string_equal(text, arg);
    file_close(file);
    loop_stop(loop_current());
}

static void a_hosts_files_outlive_its_loops_and_are_its_own(void **state UNUSED)
{
    struct sim *sim = new_plain_world(3);
    char one[] = "one", three[] = "three";
    struct loop *a = new_host(sim, "a"), *b = new_host(sim, "b");

    run_on(a, "write", write_name, one);
    run_on(b, "write", write_name, three);
    loop_free(a);
    a = new_host(sim, "a"); /* restarted */
    run_on(a, "read", read_name, one);
    run_on(b, "read", read_name, three);
    loop_free(b);
    loop_free(a);
    sim_free(sim);
}

/* --- faults --- */

/* The host of a loop of loop_sim_new(). */
#define HOST "host"

static void fail_requests(const char *path, enum sim_op op, unsigned nth, unsigned times, int error)
{
    const struct sim_fault fault = {
        .path = path, .op = op, .nth = nth, .times = times, .error = error};

    assert_int_equal(sim_fault_add(sim_of(loop_current()), HOST, &fault), 0);
}

TEST_LOOP(a_full_disk_says_so_and_takes_more_once_there_is_room)
{
    static const uint8_t bytes[64 * 1024];
    struct loop *loop = loop_current();
    struct file *a = open_file("/a"), *b = open_file("/b");

    sim_disk_limit(sim_of(loop), HOST, 128 * 1024);
    assert_int_equal(file_write(a, bytes, sizeof(bytes), 1024 * 1024), 0);
    assert_int_equal(file_write(b, bytes, sizeof(bytes), 0), 0);
    assert_int_equal(sim_disk_used_bytes(sim_of(loop), HOST), 128 * 1024);
    assert_int_equal(file_write(a, bytes, 1, 0), -ENOSPC);
    assert_int_equal(file_zero(a, 0, 4096, false), -ENOSPC); /* would be allocated */
    assert_int_equal(file_zero(a, 0, 4096, true), 0);
    assert_int_equal(file_write(b, bytes, sizeof(bytes), 0), 0); /* in place */
    assert_int_equal(file_punch(b, 4096, 4096), 0);
    assert_int_equal(file_write(a, bytes, 1, 0), 0);
    assert_int_equal(file_write(a, bytes, 1, 4096), -ENOSPC);
    file_close(b);
    assert_int_equal(path_unlink(loop, "/b"), 0);
    assert_int_equal(file_write(a, bytes, 1, 4096), 0);
    assert_int_equal(file_truncate(a, 0), 0);
    assert_int_equal(sim_disk_used_bytes(sim_of(loop), HOST), 0);
    file_close(a);
}

TEST_LOOP(the_nth_request_fails_as_told_and_no_other)
{
    struct loop *loop = loop_current();
    struct file *file = open_file("/bad"), *other = open_file("/good");
    struct file *again = NULL;
    struct err err = ERR_INIT;
    uint8_t byte = 1;

    fail_requests("/bad", SIM_OP_WRITE, 3, 2, -EIO);
    for (int i = 1; i <= 6; i++) {
        assert_int_equal(file_write(other, &byte, 1, 0), 0);
        assert_int_equal(file_write(file, &byte, 1, 0), i == 3 || i == 4 ? -EIO : 0);
        assert_int_equal(file_read(file, &byte, 1, 0), 1);
    }
    fail_requests("/ba*", SIM_OP_ANY, 1, UINT_MAX, -ENXIO);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(file_read(file, &byte, 1, 0), -ENXIO);
        assert_int_equal(file_sync(file), -ENXIO);
        assert_int_equal(file_punch(file, 0, 1), -ENXIO);
        assert_int_equal(file_truncate(file, 0), -ENXIO);
        assert_int_equal(path_unlink(loop, "/bad"), -ENXIO);
        assert_int_equal(path_rename(loop, "/bad", "/x"), -ENXIO);
        assert_int_equal(file_open(loop, "/bad", 0, FILE_AIO_AUTO, &again, &err), -ENXIO);
    }
    sim_fault_clear(sim_of(loop), HOST);
    assert_int_equal(file_sync(file), 0);
    file_close(file);
    file_close(other);
}

TEST_LOOP(a_file_of_a_hundred_tebibytes_costs_what_is_written)
{
    const uint64_t far = UINT64_C(100) << 40;
    struct file *file = open_file("/huge");
    uint64_t length = 0;
    bool data = true;
    uint8_t byte = 1;

    assert_int_equal(file_write(file, &byte, 1, far), 0);
    assert_int_equal(sim_disk_used_bytes(sim_of(loop_current()), HOST), 4096);
    assert_int_equal(file_extent(file, 0, far + 1, &data, &length), 0);
    assert_false(data);
    assert_int_equal(length, far);
    assert_int_equal(file_punch(file, 0, far + 4096), 0);
    assert_int_equal(file_write(file, &byte, 1, UINT64_C(1) << 60), -EFBIG);
    file_close(file);
}

struct cut {
    struct sim *sim;
    struct sock *listener, *server;
    bool server_ready, received, finished;
};

static void serve_through_cut(void *arg) MAY_WAIT;
static void serve_through_cut(void *arg)
{
    struct cut *cut = arg;
    uint8_t byte;

    cut->listener = listen_on(":10809");
    cut->server_ready = true;
    assert_int_equal(sock_accept(cut->listener, &cut->server), 0);
    assert_int_equal(sock_recv(cut->server, &byte, 1), 1);
    cut->received = true;
    while (!cut->finished)
        co_sleep(NS_PER_MS);
    sock_close(cut->server);
    sock_close(cut->listener);
}

static void cut_and_heal(void *arg) MAY_WAIT;
static void cut_and_heal(void *arg)
{
    struct cut *cut = arg;
    struct sock *sock = NULL, *second = NULL;
    uint8_t byte = 1;
    struct iovec iov = {&byte, 1};

    while (!cut->server_ready)
        co_sleep(NS_PER_MS);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &sock), 0);
    assert_int_equal(sim_net_cut(cut->sim, "p", "s", true), 0);
    assert_int_equal(sock_send(sock, &iov, 1), 0);
    uint64_t begin_ns = loop_clock_ns(loop_current());
    assert_int_equal(connect_to("s:10809", 3 * NS_PER_S, &second), -ETIMEDOUT);
    assert_true(loop_clock_ns(loop_current()) >= begin_ns + 3 * NS_PER_S);
    assert_false(cut->received);
    assert_int_equal(sim_net_cut(cut->sim, "s", "p", false), 0);
    co_sleep(NS_PER_S);
    assert_true(cut->received);
    assert_int_equal(connect_to("s:10809", NS_PER_S, &second), 0);
    sock_close(sock);
    sock_close(second);
    cut->finished = true;
    co_sleep(NS_PER_S);
    loop_stop(loop_current());
}

static void nothing_passes_a_cut_and_all_arrives_after_it(void **state UNUSED)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct cut cut = {.sim = new_plain_world(seed)};
        struct loop *p = new_host(cut.sim, "p"), *s = new_host(cut.sim, "s");
        assert_int_equal(co_spawn(s, "server", serve_through_cut, &cut), 0);
        run_on(p, "client", cut_and_heal, &cut);
        assert_int_equal(sim_net_cut(cut.sim, "p", "nobody", true), -EINVAL);
        loop_free(p);
        loop_free(s);
        sim_free(cut.sim);
    }
}

static void reads_may_see_a_write_half_done(void *arg) MAY_WAIT;
static void reads_may_see_a_write_half_done(void *arg)
{
    struct work *work = arg;
    uint8_t bytes[16384];

    memset(bytes, 1, sizeof(bytes));
    assert_int_equal(file_write(work->file, bytes, sizeof(bytes), 0), 0);
    co_group_leave(&work->group);
}

static void look_for_torn_write(void *arg) MAY_WAIT;
static void look_for_torn_write(void *arg)
{
    struct work work = {.number = 0};
    uint8_t bytes[16384] = {0};

    work.file = open_file("/torn");
    co_group_init(&work.group);
    for (int i = 0; i < 200; i++) {
        memset(bytes, 0, sizeof(bytes));
        assert_int_equal(file_write(work.file, bytes, sizeof(bytes), 0), 0);
        co_group_enter(&work.group);
        assert_int_equal(co_spawn(loop_current(), "write", reads_may_see_a_write_half_done, &work),
                         0);
        assert_int_equal(file_read(work.file, bytes, sizeof(bytes), 0), sizeof(bytes));
        *(bool *)arg |= bytes[0] != bytes[sizeof(bytes) - 1];
        co_group_wait(&work.group);
    }
    file_close(work.file);
    loop_stop(loop_current());
}

static void a_read_beside_a_write_can_see_half_of_it(void **state UNUSED)
{
    struct sim *sim = new_plain_world(11);
    struct loop *loop = new_host(sim, "a");
    bool torn = false;

    run_on(loop, "look", look_for_torn_write, &torn);
    assert_true(torn);
    loop_free(loop);
    sim_free(sim);
}

static void without_delays_nothing_is_waited_for(void **state UNUSED)
{
    struct sim_options options = {.sock_buffer_bytes = 4096};
    struct sim *sim = new_world(&options);
    struct loop *loop = new_host(sim, "a");
    char one[] = "one";

    assert_int_equal(co_spawn_now(loop, "write", write_name, one), 0);
    assert_int_equal(loop_stats(loop).coroutines, 0); /* it never waited */
    loop_run(loop);
    loop_free(loop);
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_seed_gives_one_run_and_another_seed_another),
        cmocka_unit_test(the_run_of_a_seed_is_the_same_everywhere),
        cmocka_unit_test(worlds_can_share_their_stacks_and_run_as_before),
        cmocka_unit_test(ready_coroutines_run_in_an_order_of_the_seed),
        cmocka_unit_test(who_yields_stands_behind_all_who_are_ready),
        cmocka_unit_test(a_year_passes_at_once),
        cmocka_unit_test(a_world_in_which_nothing_can_happen_names_who_waits),
        cmocka_unit_test(the_limit_of_virtual_time_ends_a_run_that_never_would),
        cmocka_unit_test(hosts_talk_by_name_and_each_has_its_own_localhost),
        cmocka_unit_test(a_hosts_files_outlive_its_loops_and_are_its_own),
        cmocka_unit_test(a_full_disk_says_so_and_takes_more_once_there_is_room),
        cmocka_unit_test(the_nth_request_fails_as_told_and_no_other),
        cmocka_unit_test(a_file_of_a_hundred_tebibytes_costs_what_is_written),
        cmocka_unit_test(nothing_passes_a_cut_and_all_arrives_after_it),
        cmocka_unit_test(a_read_beside_a_write_can_see_half_of_it),
        cmocka_unit_test(without_delays_nothing_is_waited_for),
    };
    /* TEST_LOOP here always means the simulator. */
    setenv("BLOCKSTEP_TEST_LOOP", "sim", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
