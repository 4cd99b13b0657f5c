/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Processes end from outside, and stop. A dead one's loop is a ghost, which runs outside of the world
 * until its coroutines have ended; what it has left in the kernel remains for a while.
 */
#include "loop/sim_internal.h"

/* What a ghost may take until it must have ended: more turns than any orderly end does. */
#define SIM_GHOST_TURNS_MAX 200000u
#define SIM_GHOST_TURN_NS   NS_PER_US

/* --- stopping --- */

void sim_process_stop(struct loop *base)
{
    struct sim_loop *loop = sim_loop_of(base);

    assert(!base->running);
    if (loop->dead || loop->stopped)
        return;
    loop->stopped = true;
    sim_trace(loop->sim, SIM_KIND_PROCESS, loop->index, 0, 0);
    sim_tell(loop->sim, loop->host, loop, "is stopped");
}

void sim_process_continue(struct loop *base)
{
    struct sim_loop *loop = sim_loop_of(base);

    if (loop->dead || !loop->stopped)
        return;
    loop->stopped = false;
    sim_trace(loop->sim, SIM_KIND_PROCESS, loop->index, 1, 0);
    sim_tell(loop->sim, loop->host, loop, "goes on");
}

/* --- remains --- */

void sim_remains_end(struct sim_remains *remains, bool lands)
{
    struct sim_host *host = remains->host;
    struct sim_handle *handle;

    LIST_FOR_EACH_SAFE(request, &remains->requests, struct sim_request, link) {
        if (lands)
            sim_request_land(request);
        else
            sim_request_drop(request);
    }
    while ((handle = LIST_POP_FRONT(&remains->handles, struct sim_handle, link)) != NULL)
        sim_handle_free(handle);
    sim_socks_end(remains);
    sim_event_cancel(host->sim, &remains->event);
    list_remove(&remains->link);
    free(remains);
}

static void sim_remains_fire(struct sim_event *event)
{
    struct sim_remains *remains = CONTAINER_OF(event, struct sim_remains, event);

    sim_tell(remains->host->sim, remains->host, NULL, "has done with a dead process");
    sim_remains_end(remains, true);
}

/* NULL when memory is out: then nothing remains. */
static struct sim_remains *sim_remains_new(struct sim_host *host)
{
    struct sim *sim = host->sim;
    uint64_t linger_ns = sim_delay_ns(sim, sim->options.linger);
    struct sim_remains *remains = calloc(1, sizeof(*remains));

    if (remains == NULL)
        return NULL;
    remains->host = host;
    remains->end_ns = sim->now_ns + linger_ns;
    remains->event.fire = sim_remains_fire;
    list_init(&remains->handles);
    list_init(&remains->requests);
    list_init(&remains->ends);
    list_init(&remains->listeners);
    list_push_back(&host->remains, &remains->link);
    sim_event_arm(sim, &remains->event, linger_ns);
    return remains;
}

/* --- dying --- */

void sim_process_end(struct sim_loop *loop, struct sim_remains *remains)
{
    struct sim *sim = loop->sim;
    struct sim_handle *handle;

    assert(!loop->base.running);
    loop->dead = true;
    loop->stopped = false;
    loop->ghost_ns = sim->now_ns;
    sim->ghosts++;
    sim_requests_abandon(loop, remains);
    while ((handle = LIST_POP_FRONT(&loop->handles, struct sim_handle, link)) != NULL) {
        if (handle->file != NULL)
            sim_file_detach(handle->file);
        handle->file = NULL;
        if (remains != NULL)
            list_push_back(&remains->handles, &handle->link);
        else
            sim_handle_free(handle);
    }
    sim_socks_abandon(loop, remains);
    sim_pauses_end(loop);
}

void sim_process_kill(struct loop *base)
{
    struct sim_loop *loop = sim_loop_of(base);

    if (loop->dead)
        return;
    sim_trace(loop->sim, SIM_KIND_PROCESS, loop->index, 2, 0);
    sim_tell(loop->sim, loop->host, loop, "is killed");
    sim_process_end(loop, sim_remains_new(loop->host));
}

void sim_process_on_death(struct loop *base, void (*told)(void *arg), void *arg)
{
    struct sim_loop *loop = sim_loop_of(base);

    loop->told = told;
    loop->told_arg = arg;
}

bool sim_process_is_dead(const struct loop *base)
{
    return sim_loop_of(base)->dead;
}

bool sim_process_is_gone(const struct loop *base)
{
    return sim_loop_of(base)->gone;
}

/* --- ghosts --- */

static void sim_ghost_tell(struct sim_loop *loop)
{
    void (*told)(void *arg) = loop->told;

    loop->told = NULL;
    if (told == NULL)
        return;
    struct loop *former = loop_enter(&loop->base);
    told(loop->told_arg);
    loop_enter(former);
}

/* True when it has come to its end. */
static bool sim_ghost_run(struct sim_loop *loop)
{
    struct loop *base = &loop->base;

    sim_ghost_tell(loop);
    for (unsigned turns = 0; turns < SIM_GHOST_TURNS_MAX; turns++) {
        uint64_t timer_ns = loop_next_timer_ns(base);
        if (!sim_loop_has_work(loop) && timer_ns == DEADLINE_NEVER)
            return base->coroutines.alive_count == 0;
        loop->ghost_ns += SIM_GHOST_TURN_NS;
        if (!sim_loop_has_work(loop))
            loop->ghost_ns = MAX(loop->ghost_ns, timer_ns);
        sim_loop_turn(loop);
    }
    return false;
}

/* A ghost whose turn is on the stack below goes on with it first: it was killed by itself. */
void sim_run_ghosts(struct sim *sim)
{
    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link) {
        if (!loop->dead || loop->gone || loop->stuck || loop_current() == &loop->base)
            continue;
        loop->gone = sim_ghost_run(loop);
        loop->stuck = !loop->gone;
        if (loop->gone)
            sim->ghosts--;
        else
            sim_hang(sim, "a process that was killed does not come to its end when all fails");
    }
}

void sim_bury(struct sim *sim)
{
    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link)
        loop->stuck = false;
    sim_run_ghosts(sim);
}
