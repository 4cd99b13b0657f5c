/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A world for one job that copies: guest -> source (blkdebug) -> smem, and target (blkdebug) -> tmem. */
#ifndef BLOCKSTEP_TESTS_JOB_FIXTURE_H
#define BLOCKSTEP_TESTS_JOB_FIXTURE_H

#include "overlay_fixture.h"

#include "jobs/job.h"

#define SIZE_BYTES  (UINT64_C(4) * 1024 * 1024 + 512)
#define EVENTS_MAX  256u
#define TARGET_BYTE 0xee /* what the target holds at first */

struct world {
    struct graph *graph;
    struct node *source, *target, *smem, *tmem;
    struct edge *guest;
    struct job_list jobs;
    uint8_t *before; /* what the source held at first */
    char events[EVENTS_MAX][48];
    unsigned event_count;
};

UNUSED static void world_event(void *arg, const char *name, struct json_object *data)
{
    struct world *world = arg;
    if (world->event_count < EVENTS_MAX && strcmp(name, "JOB_STATUS_CHANGE") != 0)
        snprintf(world->events[world->event_count++], sizeof(world->events[0]), "%s", name);
    json_putp(&data);
}

UNUSED static struct node *add_mem(struct world *world, const char *name, unsigned yields) MAY_WAIT
{
    return blocks_add(world->graph,
                      "{'node-name':'%s','driver':'mem','size':%" PRIu64
                      ",'yields':%u,'align':512}",
                      name, SIZE_BYTES, yields);
}

UNUSED static void world_open(struct world *world) MAY_WAIT
{
    *world = (struct world){.graph = blocks_graph()};
    graph_set_events(world->graph, world_event, world);
    job_list_init(&world->jobs, world->graph);
    world->smem = add_mem(world, "smem", 2);
    world->tmem = add_mem(world, "tmem", 1);
    world->source = blocks_add(world->graph,
                               "{'node-name':'source','driver':'blkdebug','file':'smem'}");
    world->target = blocks_add(world->graph,
                               "{'node-name':'target','driver':'blkdebug','file':'tmem'}");
    for (uint64_t i = 0; i < SIZE_BYTES; i++)
        mem_bytes(world->smem)[i] = overlay_backing_byte(i);
    memset(mem_bytes(world->tmem), TARGET_BYTE, SIZE_BYTES);
    world->before = malloc(SIZE_BYTES);
    assert_non_null(world->before);
    memcpy(world->before, mem_bytes(world->smem), SIZE_BYTES);
    world->guest = blocks_root(world->graph, world->source, "guest");
}

UNUSED static void world_close(struct world *world) MAY_WAIT
{
    job_list_end(&world->jobs);
    graph_detach(world->guest);
    graph_free(world->graph);
    free(world->before);
}

UNUSED static unsigned count_events(const struct world *world, const char *name)
{
    unsigned count = 0;
    for (unsigned i = 0; i < world->event_count; i++)
        count += strcmp(world->events[i], name) == 0;
    return count;
}

UNUSED static bool has_event(const struct world *world, const char *name)
{
    return count_events(world, name) > 0;
}

/* Starts what was made; with a reference for the caller. */
UNUSED static struct job *start_made(struct job *job) MAY_WAIT
{
    struct err err = ERR_INIT;
    job_ref(job);
    assert_int_equal(job_start(job, &err), 0);
    return job;
}

/* The job's result, and the end of the caller's reference. */
UNUSED static int finish(struct job *job) MAY_WAIT
{
    int ret = job_wait(job);
    job_unref(job);
    return ret;
}

UNUSED static int cancel(struct job *job, bool force) MAY_WAIT
{
    struct err err = ERR_INIT;
    assert_int_equal(job_cancel(job, force, &err), 0);
    return finish(job);
}

#endif
