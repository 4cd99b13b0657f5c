/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "harness.h"

#include "base/log.h"

#include "loop/loop_internal.h"

#include <dirent.h>
#include <execinfo.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static char folder[256];

bool test_loop_is_sim(void)
{
    const char *loop = getenv("BLOCKSTEP_TEST_LOOP");
    return loop != NULL && strcmp(loop, "sim") == 0;
}

uint64_t test_seed(const char *test)
{
    const char *text = getenv("BLOCKSTEP_TEST_SEED");
    uint64_t seed;

    if (text != NULL)
        seed = strtoull(text, NULL, 0);
    else if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = 1;
    print_message("%s: BLOCKSTEP_TEST_SEED=%" PRIu64 "\n", test, seed);
    return seed;
}

uint64_t test_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* --- what a test that hangs was doing --- */

static struct loop *running_loop;

static void tell_coroutine(void *arg, const struct co *co)
{
    (void)arg;
    dprintf(STDERR_FILENO, "    coroutine '%s'\n", co_name(co));
}

/* The runner ends a test that takes too long with SIGTERM: where does it stand? Not async-signal-safe
 * to the letter, and the process ends anyway. */
static void tell_and_die(int signal_number)
{
    void *frames[64];
    int count = backtrace(frames, (int)ARRAY_LEN(frames));

    if (running_loop != NULL) {
        struct loop_stats stats = loop_stats(running_loop);
        dprintf(STDERR_FILENO, "ended by signal %d after %" PRIu64 " turns, %" PRIu64 " waits\n",
                signal_number, stats.turns, stats.kernel_waits);
        co_visit_alive(running_loop, tell_coroutine, NULL);
    }
    backtrace_symbols_fd(frames, count, STDERR_FILENO);
    _exit(128 + signal_number);
}

uint64_t test_deadline_ns(unsigned seconds)
{
    const char *slow = getenv("BLOCKSTEP_TEST_SLOW");
    unsigned long factor = slow != NULL ? strtoul(slow, NULL, 10) : 1;

    return loop_clock_ns(loop_current()) + seconds * MAX(factor, 1) * NS_PER_S;
}

struct test_run {
    co_entry *body;
    struct loop *loop;
};

static void test_main(void *arg) MAY_WAIT;
static void test_main(void *arg)
{
    struct test_run *run = arg;

    run->body(NULL);
    /* Whoever was only just woken may end; then nobody may be left. */
    for (int i = 0; i < 100 && loop_stats(run->loop).coroutines > 1; i++)
        co_sleep(NS_PER_MS);
    assert_int_equal(loop_stats(run->loop).coroutines, 1);
    loop_stop(run->loop);
}

static int test_loop_new(const char *name, struct loop **ret_loop, struct err *err)
{
    const char *kind = getenv("BLOCKSTEP_TEST_LOOP");
    struct loop_options plain = {.features_off = LOOP_FEATURES_ALL};

    if (test_loop_is_sim())
        return loop_sim_new(test_seed(name), ret_loop, err);
    bool is_plain = kind != NULL && strcmp(kind, "uring-plain") == 0;
    return loop_uring_new(is_plain ? &plain : NULL, ret_loop, err);
}

void test_run_in_loop(const char *name, co_entry *body)
{
    struct test_run run = {.body = body};
    struct err err = ERR_INIT;

    if (test_loop_new(name, &run.loop, &err) < 0)
        fail_msg("no loop: %s", err.text);
    assert_int_equal(co_spawn(run.loop, name, test_main, &run), 0);
    running_loop = run.loop;
    signal(SIGTERM, tell_and_die);
    loop_run(run.loop);
    running_loop = NULL;
    loop_free(run.loop);
}

const char *test_folder(void)
{
    if (folder[0] != '\0')
        return folder;
    if (test_loop_is_sim()) {
        snprintf(folder, sizeof(folder), "/test");
        assert_int_equal(path_make_folder(loop_current(), folder, 0700), 0);
        return folder;
    }
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/blockstep-test-XXXXXX", base != NULL ? base : "/tmp");
    assert_non_null(mkdtemp(folder));
    return folder;
}

void test_folder_remove(void)
{
    if (folder[0] == '\0' || test_loop_is_sim()) {
        folder[0] = '\0';
        return;
    }
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    closedir(dir);
    assert_int_equal(rmdir(folder), 0);
    folder[0] = '\0';
}

const char *test_path(const char *name)
{
    static char paths[8][320];
    static unsigned next;
    char *path = paths[next++ % ARRAY_LEN(paths)];

    snprintf(path, sizeof(paths[0]), "%s/%s", test_folder(), name);
    return path;
}
