/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Worlds of the simulator for its own tests. */
#ifndef BLOCKSTEP_TESTS_SIM_FIXTURE_H
#define BLOCKSTEP_TESTS_SIM_FIXTURE_H

#include "harness.h"

#include "loop/sim.h"

#include <stdio.h>
#include <string.h>

static inline struct sim *new_world(const struct sim_options *options)
{
    struct sim *sim = NULL;
    struct err err = ERR_INIT;

    if (sim_new(options, &sim, &err) < 0)
        fail_msg("%s", err.text);
    return sim;
}

static inline struct sim *new_plain_world(uint64_t seed)
{
    struct sim_options options;

    sim_options_init(&options, seed);
    return new_world(&options);
}

static inline struct loop *new_host(struct sim *sim, const char *name)
{
    struct loop *loop = NULL;
    struct err err = ERR_INIT;

    if (sim_loop_new(sim, name, &loop, &err) < 0)
        fail_msg("%s", err.text);
    return loop;
}

static inline void run_on(struct loop *loop, const char *name, co_entry *entry, void *arg)
{
    assert_int_equal(co_spawn(loop, name, entry, arg), 0);
    loop_run(loop);
}

static inline struct file *open_file(const char *path) MAY_WAIT;
static inline struct file *open_file(const char *path)
{
    struct file *file = NULL;
    struct err err = ERR_INIT;

    if (file_open(loop_current(), path, FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO, &file, &err) <
        0)
        fail_msg("%s", err.text);
    return file;
}

static inline int connect_to(const char *text, uint64_t timeout_ns, struct sock **ret_sock)
    MAY_WAIT;
static inline int connect_to(const char *text, uint64_t timeout_ns, struct sock **ret_sock)
{
    struct loop *loop = loop_current();
    struct sock_address address;
    struct err err = ERR_INIT;

    assert_int_equal(sock_address_parse(text, "test", &address, &err), 0);
    int result = sock_connect(loop, &address, loop_clock_ns(loop) + timeout_ns, ret_sock, &err);
    sock_address_release(&address);
    return result;
}

static inline struct sock *listen_on(const char *text) MAY_WAIT;
static inline struct sock *listen_on(const char *text)
{
    struct sock_address address;
    struct sock *listener = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(sock_address_parse(text, "test", &address, &err), 0);
    if (sock_listen(loop_current(), &address, &listener, &err) < 0)
        fail_msg("%s", err.text);
    sock_address_release(&address);
    return listener;
}

#endif
