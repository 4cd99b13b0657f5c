/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A mirror in a world of its own: guest -> source (blkdebug) -> smem, and target (blkdebug) -> tmem. */
#ifndef BLOCKSTEP_TESTS_MIRROR_FIXTURE_H
#define BLOCKSTEP_TESTS_MIRROR_FIXTURE_H

#include "overlay_fixture.h"

#include "jobs/mirror.h"

#define SIZE_BYTES (UINT64_C(4) * 1024 * 1024 + 512)
#define EVENTS_MAX 256u

struct world {
    struct graph *graph;
    struct node *source, *target, *smem, *tmem;
    struct edge *guest;
    struct job_list jobs;
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

UNUSED static void world_open(struct world *world) MAY_WAIT
{
    *world = (struct world){.graph = blocks_graph()};
    graph_set_events(world->graph, world_event, world);
    job_list_init(&world->jobs, world->graph);
    world->smem = blocks_add(world->graph,
                             "{'node-name':'smem','driver':'mem','size':%" PRIu64
                             ",'yields':2,'align':512}",
                             SIZE_BYTES);
    world->tmem = blocks_add(world->graph,
                             "{'node-name':'tmem','driver':'mem','size':%" PRIu64
                             ",'yields':1,'align':512}",
                             SIZE_BYTES);
    world->source = blocks_add(world->graph,
                               "{'node-name':'source','driver':'blkdebug','file':'smem'}");
    world->target = blocks_add(world->graph,
                               "{'node-name':'target','driver':'blkdebug','file':'tmem'}");
    for (uint64_t i = 0; i < SIZE_BYTES; i++) {
        mem_bytes(world->smem)[i] = overlay_backing_byte(i);
        mem_bytes(world->tmem)[i] = 0xee;
    }
    world->guest = blocks_root(world->graph, world->source, "guest");
}

UNUSED static void world_close(struct world *world) MAY_WAIT
{
    job_list_end(&world->jobs);
    graph_detach(world->guest);
    graph_free(world->graph);
}

UNUSED static struct mirror_options options_of(struct world *world)
{
    return (struct mirror_options){.id = "m", .source = world->source, .target = world->target};
}

/* With a reference for the caller. */
UNUSED static struct job *start(struct world *world, const struct mirror_options *options) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct job *job;
    if (mirror_new(&world->jobs, options, &job, &err) < 0)
        fail_msg("%s", err.text);
    job_ref(job);
    assert_int_equal(job_start(job, &err), 0);
    return job;
}

UNUSED static struct job *start_full(struct world *world) MAY_WAIT
{
    struct mirror_options options = options_of(world);
    return start(world, &options);
}

UNUSED static int cancel(struct job *job, bool force) MAY_WAIT
{
    struct err err = ERR_INIT;
    assert_int_equal(job_cancel(job, force, &err), 0);
    int ret = job_wait(job);
    job_unref(job);
    return ret;
}

UNUSED static void expect_equal(struct world *world)
{
    const uint8_t *source = mem_bytes(world->smem), *target = mem_bytes(world->tmem);
    for (uint64_t i = 0; i < SIZE_BYTES; i++) {
        if (source[i] != target[i])
            fail_msg("byte %" PRIu64 ": source %u, target %u", i, source[i], target[i]);
    }
}

UNUSED static bool has_event(const struct world *world, const char *name)
{
    for (unsigned i = 0; i < world->event_count; i++) {
        if (strcmp(world->events[i], name) == 0)
            return true;
    }
    return false;
}

UNUSED static void inject(struct node *node, const struct blkdebug_rule *rule)
{
    assert_int_equal(blkdebug_inject(node, rule, NULL), 0);
}

UNUSED static void expect_failure(struct world *world, struct job *job, int code, const char *part)
    MAY_WAIT
{
    assert_int_equal(job_wait(job), code);
    if (strstr(job->err.text, part) == NULL)
        fail_msg("'%s' is not in: %s", part, job->err.text);
    job_unref(job);
    assert_true(has_event(world, "BLOCK_JOB_ERROR"));
    assert_true(has_event(world, "BLOCK_JOB_COMPLETED"));
    assert_int_equal(blocks_write(world->guest, 0, 4096, 0xaa, 0), 0);
    assert_ptr_equal(world->guest->child, world->source);
    assert_true(list_empty(&world->source->trackers));
    blkdebug_remove(world->source, 0);
    blkdebug_remove(world->target, 0);
    world->event_count = 0;
}

#endif
