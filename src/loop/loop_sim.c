/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The simulator's world: the seed, virtual time, what will happen, and whose turn it is.
 *
 * Nothing here may depend on addresses, on the real clock or on memory that is not initialised:
 * they would make two runs of one seed differ.
 */
#include "loop/sim_internal.h"

#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Ready coroutines among which the next is drawn. More would only make the draw dearer. */
#define SIM_PICK_MAX       16u
/* What a turn takes: so time goes on even for those who never wait. */
#define SIM_TURN_MIN_NS    20u
#define SIM_TURN_MAX_NS    200u
/* And what a coroutine takes from one wait to the next. */
#define SIM_RUN_NS         50u
/* Each world begins at the same moment: 2026-01-01 00:00 UTC, and monotonic time above zero. */
#define SIM_WALL_BEGIN_NS  (UINT64_C(1767225600) * NS_PER_S)
#define SIM_CLOCK_BEGIN_NS NS_PER_S

/* --- the seed and the trace --- */

uint64_t sim_random(struct sim *sim)
{
    return sim_random_from(&sim->random_state);
}

uint64_t sim_below(struct sim *sim, uint64_t limit)
{
    return sim_random(sim) % limit;
}

bool sim_chance(struct sim *sim, unsigned percent)
{
    return sim_below(sim, 100) < percent;
}

uint64_t sim_delay_ns(struct sim *sim, struct sim_delay delay)
{
    assert(delay.min_ns <= delay.max_ns);
    if (delay.max_ns == 0)
        return 0;
    return delay.min_ns + sim_below(sim, delay.max_ns - delay.min_ns + 1);
}

uint64_t sim_trace_hash(const struct sim *sim)
{
    return sim->hash;
}

uint64_t sim_now_ns(const struct sim *sim)
{
    return sim->now_ns;
}

uint64_t sim_seed(const struct sim *sim)
{
    return sim->options.seed;
}

void sim_set_limit(struct sim *sim, uint64_t limit_ns)
{
    sim->options.limit_ns = limit_ns;
}

/* --- waiting --- */

static void sim_fire_due(struct sim *sim)
{
    while (sim->events != NULL && sim->events->time_ns <= sim->now_ns) {
        struct sim_event *event = sim->events;
        sim_event_cancel(sim, event);
        event->fire(event);
    }
}

struct sim_sleeper {
    struct sim_event event;
    struct list_link link;
    struct co *co;
};

static void sim_sleeper_fire(struct sim_event *event)
{
    co_wake(CONTAINER_OF(event, struct sim_sleeper, event)->co);
}

void sim_pause(struct sim_loop *loop, uint64_t delay_ns)
{
    struct sim_sleeper sleeper = {.event.fire = sim_sleeper_fire, .co = co_self()};

    if (loop->dead || delay_ns == 0)
        return;
    assert(sleeper.co != NULL);
    sim_event_arm(loop->sim, &sleeper.event, delay_ns);
    list_push_back(&loop->sleepers, &sleeper.link);
    while (sleeper.event.armed)
        co_wait();
    list_remove(&sleeper.link);
    if (!loop->dead)
        sim_trace(loop->sim, SIM_KIND_PAUSE, loop->index, delay_ns, 0);
}

void sim_pause_some(struct sim_loop *loop, struct sim_delay delay)
{
    if (!loop->dead)
        sim_pause(loop, sim_delay_ns(loop->sim, delay));
}

void sim_ghost_yield(const struct sim_loop *loop)
{
    if (loop->dead && co_self() != NULL)
        co_yield();
}

void sim_pauses_end(struct sim_loop *loop)
{
    LIST_FOR_EACH(sleeper, &loop->sleepers, struct sim_sleeper, link) {
        sim_event_cancel(loop->sim, &sleeper->event);
        co_wake(sleeper->co);
    }
}

/* --- the hang --- */

struct hang_text {
    char text[SIM_HANG_TEXT_BYTES];
    size_t length;
};

static void hang_add(struct hang_text *hang, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void hang_add(struct hang_text *hang, const char *fmt, ...)
{
    size_t room = sizeof(hang->text) - hang->length;
    va_list args;

    va_start(args, fmt);
    int length = vsnprintf(hang->text + hang->length, room, fmt, args);
    va_end(args);
    if (length > 0)
        hang->length += MIN((size_t)length, room - 1);
}

static void hang_add_coroutine(void *arg, const struct co *co)
{
    hang_add(arg, " %s", co_name(co));
}

void sim_hang(struct sim *sim, const char *reason)
{
    struct hang_text hang = {.length = 0};

    hang_add(&hang, "the simulated world hangs at %llu ns (seed %llu): %s; suspended:",
             (unsigned long long)sim->now_ns, (unsigned long long)sim->options.seed, reason);
    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link) {
        hang_add(&hang, " [%s:", loop->host->name);
        co_visit_alive(&loop->base, hang_add_coroutine, &hang);
        hang_add(&hang, "]");
    }
    sim->hung = true;
    if (sim->options.on_hang != NULL) {
        sim->options.on_hang(sim->options.on_hang_arg, hang.text);
        return;
    }
    log_error("sim", "%s", hang.text);
    abort();
}

/* --- the world goes on --- */

bool sim_loop_has_work(const struct sim_loop *loop)
{
    return loop_has_work(&loop->base) || !list_empty(&loop->posted);
}

static bool sim_loop_is_off(const struct sim_loop *loop)
{
    return loop->dead || loop->stopped;
}

static bool sim_loop_is_due(const struct sim_loop *loop)
{
    return !sim_loop_is_off(loop) &&
           (sim_loop_has_work(loop) || loop_next_timer_ns(&loop->base) <= loop->sim->now_ns);
}

static void sim_run_posted(struct sim_loop *loop)
{
    struct list tasks = LIST_INIT(tasks);
    struct loop_task *task;

    list_splice_back(&tasks, &loop->posted);
    while ((task = LIST_POP_FRONT(&tasks, struct loop_task, link)) != NULL)
        task->run(task);
}

void sim_loop_turn(struct sim_loop *loop)
{
    struct loop *former = loop_enter(&loop->base);

    if (!loop->dead)
        sim_trace(loop->sim, SIM_KIND_TURN, loop->index, 0, 0);
    loop->base.now_ns = loop->dead ? loop->ghost_ns : loop->sim->now_ns;
    sim_run_posted(loop);
    loop_fire_timers(&loop->base);
    loop_run_ready(&loop->base);
    loop->base.stats.turns++;
    loop_enter(former);
}

/* One turn for a loop that is due, drawn by the seed. The one that polls turns by itself. */
static bool sim_turn_one(struct sim *sim, const struct sim_loop *polling)
{
    uint64_t due = 0;

    if (sim->ghosts > 0)
        sim_run_ghosts(sim);
    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link)
        due += loop != polling && sim_loop_is_due(loop);
    if (due == 0)
        return false;
    uint64_t chosen = due > 1 ? sim_below(sim, due) : 0;
    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link) {
        if (loop == polling || !sim_loop_is_due(loop) || chosen-- != 0)
            continue;
        sim_loop_turn(loop);
        break;
    }
    sim->now_ns += SIM_TURN_MIN_NS + sim_below(sim, SIM_TURN_MAX_NS - SIM_TURN_MIN_NS);
    return true;
}

static uint64_t sim_next_ns(const struct sim *sim)
{
    uint64_t next_ns = sim->events != NULL ? sim->events->time_ns : DEADLINE_NEVER;

    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link) {
        if (!sim_loop_is_off(loop))
            next_ns = MIN(next_ns, loop_next_timer_ns(&loop->base));
    }
    return next_ns;
}

static bool sim_is_over(const struct sim *sim)
{
    return sim->options.limit_ns != 0 && sim->now_ns > sim->options.limit_ns;
}

/* Goes on to the next thing that will happen, but not beyond the deadline. False: the world hangs. */
static bool sim_advance(struct sim *sim, uint64_t deadline_ns)
{
    uint64_t next_ns = MIN(sim_next_ns(sim), deadline_ns);

    if (next_ns == DEADLINE_NEVER) {
        sim_hang(sim, "nothing can happen any more");
        return false;
    }
    sim->now_ns = MAX(sim->now_ns, next_ns);
    if (sim_is_over(sim)) {
        sim_hang(sim, "the limit of virtual time has come");
        return false;
    }
    sim_fire_due(sim);
    return true;
}

bool sim_step(struct sim *sim)
{
    sim->hung = false;
    if (sim_is_over(sim))
        return false;
    if (sim_turn_one(sim, NULL)) {
        sim_fire_due(sim);
        return !sim->hung;
    }
    return !sim->hung && sim_next_ns(sim) != DEADLINE_NEVER && sim_advance(sim, DEADLINE_NEVER);
}

static void sim_poll(struct loop *base, uint64_t deadline_ns)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim *sim = loop->sim;

    sim_trace(sim, SIM_KIND_TURN, loop->index, deadline_ns == DEADLINE_NEVER, 0);
    sim->now_ns += SIM_TURN_MIN_NS + sim_below(sim, SIM_TURN_MAX_NS - SIM_TURN_MIN_NS);
    sim->hung = false;
    sim_fire_due(sim);
    sim_turn_one(sim, loop);
    while (deadline_ns > sim->now_ns && !sim_loop_is_due(loop) && !base->stopping && !sim->hung) {
        if (sim_turn_one(sim, loop)) {
            sim_fire_due(sim);
        } else {
            (void)sim_advance(sim, deadline_ns);
        }
    }
    if (sim->hung)
        loop_stop(base);
    sim_run_posted(loop);
}

static struct list_link *sim_pick(struct loop *base, struct list *ready)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim *sim = loop->sim;
    struct list_link *choices[SIM_PICK_MAX];
    uint64_t count = 0, seen = 0;

    if (loop->dead)
        return list_first(ready);
    sim->now_ns += SIM_RUN_NS;
    for (struct list_link *link = list_first(ready); link != &ready->head && seen < SIM_PICK_MAX;
         link = link->next) {
        if (seen++ == 0 || !co_has_yielded(link))
            choices[count++] = link;
    }
    if (count < 2)
        return choices[0];
    uint64_t chosen = sim_below(sim, count);
    sim_trace(sim, SIM_KIND_PICK, loop->index, chosen, count);
    return choices[chosen];
}

/* No threads here: a post is work for one of the loop's next turns. */
static void sim_post(struct loop *base, struct loop_task *task)
{
    list_push_back(&sim_loop_of(base)->posted, &task->link);
}

static uint64_t sim_clock_ns(struct loop *base)
{
    const struct sim_loop *loop = sim_loop_of(base);
    return loop->dead ? loop->ghost_ns : loop->sim->now_ns;
}

static uint64_t sim_wall_ns(struct loop *base)
{
    return SIM_WALL_BEGIN_NS + sim_clock_ns(base);
}

static uint64_t sim_loop_random(struct loop *base)
{
    return sim_random_from(&sim_loop_of(base)->random_state);
}

static unsigned sim_features(const struct loop *base UNUSED)
{
    return 0;
}

static int sim_signal_set(struct loop *base UNUSED, int signal UNUSED, struct err *err UNUSED)
{
    return 0;
}

static int sim_offload(struct loop *base, int (*call)(void *arg), void *arg) MAY_WAIT
{
    struct sim_loop *loop = sim_loop_of(base);

    sim_pause_some(loop, loop->sim->options.offload);
    int result = call(arg);
    sim_pause_some(loop, loop->sim->options.offload);
    return result;
}

/* --- worlds, hosts and loops come and go --- */

void sim_options_init(struct sim_options *options, uint64_t seed)
{
    *options = (struct sim_options){
        .seed = seed,
        .file = {1 * NS_PER_US, 100 * NS_PER_US},
        .net = {5 * NS_PER_US, 200 * NS_PER_US},
        .offload = {1 * NS_PER_US, 100 * NS_PER_US},
        .linger = {0, 200 * NS_PER_MS},
        .inline_percent = 25,
        .split_percent = 20,
        .sock_buffer_bytes = 64 * 1024,
        .failed_sync_loses = true,
    };
}

int sim_new(const struct sim_options *options, struct sim **ret_sim, struct err *err)
{
    assert(options->sock_buffer_bytes > 0);
    struct sim *sim = calloc(1, sizeof(*sim));
    if (sim == NULL)
        return err_no_memory(err);
    sim->options = *options;
    sim->random_state = sim_mix(options->seed + 1);
    sim->hash = sim_mix(options->seed);
    sim->now_ns = SIM_CLOCK_BEGIN_NS;
    list_init(&sim->hosts);
    list_init(&sim->loops);
    list_init(&sim->conns);
    list_init(&sim->links);
    *ret_sim = sim;
    return 0;
}

static void sim_host_free(struct sim_host *host)
{
    list_remove(&host->link);
    sim_faults_drop(host);
    sim_fs_deinit(host);
    free(host);
}

void sim_free(struct sim *sim)
{
    if (sim == NULL)
        return;
    assert(list_empty(&sim->loops));
    LIST_FOR_EACH(host, &sim->hosts, struct sim_host, link) {
        LIST_FOR_EACH_SAFE(remains, &host->remains, struct sim_remains, link)
            sim_remains_end(remains, false);
    }
    sim_net_deinit(sim);
    LIST_FOR_EACH_SAFE(host, &sim->hosts, struct sim_host, link)
        sim_host_free(host);
    assert(sim->events == NULL);
    free(sim);
}

struct sim_host *sim_host_find(struct sim *sim, const char *name)
{
    LIST_FOR_EACH(host, &sim->hosts, struct sim_host, link) {
        if (strcmp(host->name, name) == 0 || strcmp(host->address, name) == 0)
            return host;
    }
    return NULL;
}

static int sim_host_make(struct sim *sim, const char *name, struct sim_host **ret_host,
                         struct err *err)
{
    if (*name == '\0' || strlen(name) >= SIM_HOST_NAME_BYTES || sim->hosts_made >= 254)
        return err_set(err, -EINVAL, "the simulator cannot make a host '%s'", name);
    struct sim_host *host = calloc(1, sizeof(*host));
    if (host == NULL)
        return err_no_memory(err);
    host->sim = sim;
    host->index = ++sim->hosts_made;
    host->next_port = SIM_PORT_MIN;
    host->space.limit_bytes = sim->options.disk_bytes;
    host->space.ask = sim->chooser != NULL ? sim_unit_ask : NULL;
    snprintf(host->name, sizeof(host->name), "%s", name);
    snprintf(host->address, sizeof(host->address), "10.0.0.%u", (unsigned)host->index);
    host->space.random_state = sim_mix(sim->options.seed ^ sim_mix(host->index << 32));
    list_init(&host->inodes);
    list_init(&host->changes);
    list_init(&host->faults);
    list_init(&host->listeners);
    list_init(&host->remains);
    list_push_back(&sim->hosts, &host->link);
    if (sim_fs_init(host) < 0) {
        sim_host_free(host);
        return err_no_memory(err);
    }
    *ret_host = host;
    return 0;
}

static void sim_loop_free(struct loop *base)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim *sim = loop->sim;

    assert(!loop->dead || loop->gone);
    assert(list_empty(&loop->posted));
    assert(loop->files == 0);
    assert(list_empty(&loop->socks));
    list_remove(&loop->link);
    loop_deinit(base);
    free(loop);
    if (sim->owned_by_loop && list_empty(&sim->loops))
        sim_free(sim);
}

static const struct loop_ops sim_ops = {
    .free = sim_loop_free,
    .clock_ns = sim_clock_ns,
    .wall_ns = sim_wall_ns,
    .random = sim_loop_random,
    .features = sim_features,
    .poll = sim_poll,
    .post = sim_post,
    .pick = sim_pick,
    .signal_set = sim_signal_set,
    .offload = sim_offload,
    .file_open = sim_file_open,
    .file_close = sim_file_close,
    .file_read = sim_file_read,
    .file_writev = sim_file_writev,
    .file_sync = sim_file_sync,
    .file_zero = sim_file_zero,
    .file_truncate = sim_file_truncate,
    .file_stat = sim_file_stat,
    .file_extent = sim_file_extent,
    .file_lock = sim_file_lock,
    .file_unlock = sim_file_unlock,
    .file_lock_test = sim_file_lock_test,
    .path_rename = sim_path_rename,
    .path_unlink = sim_path_unlink,
    .path_sync_folder = sim_path_sync_folder,
    .path_make_folder = sim_path_make_folder,
    .path_exists = sim_path_exists,
    .sock_listen = sim_sock_listen,
    .sock_connect = sim_sock_connect,
    .sock_accept = sim_sock_accept,
    .sock_recv = sim_sock_recv,
    .sock_send = sim_sock_send,
    .sock_send_now = sim_sock_send_now,
    .sock_shutdown = sim_sock_shutdown,
    .sock_close = sim_sock_close,
};

struct sim *sim_of(const struct loop *loop)
{
    return loop->ops == &sim_ops ? sim_loop_of(loop)->sim : NULL;
}

int sim_loop_new(struct sim *sim, const char *host_name, struct loop **ret_loop, struct err *err)
{
    struct sim_host *host = sim_host_find(sim, host_name);
    if (host == NULL) {
        int result = sim_host_make(sim, host_name, &host, err);
        if (result < 0)
            return result;
    }
    struct sim_loop *loop = calloc(1, sizeof(*loop));
    if (loop == NULL)
        return err_no_memory(err);
    if (loop_init(&loop->base, &sim_ops) < 0) {
        loop_deinit(&loop->base);
        free(loop);
        return err_no_memory(err);
    }
    loop->base.coroutines.heirs = sim->options.stacks;
    loop->sim = sim;
    loop->host = host;
    loop->index = ++sim->loops_made;
    loop->random_state = sim_mix(sim->options.seed ^ sim_mix(loop->index));
    loop->base.now_ns = sim->now_ns;
    list_init(&loop->posted);
    list_init(&loop->sleepers);
    list_init(&loop->requests);
    list_init(&loop->handles);
    list_init(&loop->socks);
    list_push_back(&sim->loops, &loop->link);
    sim_host_power_on(host);
    *ret_loop = &loop->base;
    return 0;
}

int loop_sim_new(uint64_t seed, struct loop **ret_loop, struct err *err)
{
    struct sim_options options;
    struct sim *sim;

    sim_options_init(&options, seed);
    int result = sim_new(&options, &sim, err);
    if (result < 0)
        return result;
    result = sim_loop_new(sim, "host", ret_loop, err);
    if (result < 0) {
        sim_free(sim);
        return result;
    }
    sim->owned_by_loop = true;
    return 0;
}
