/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A mirror in the world of job_fixture.h. */
#ifndef BLOCKSTEP_TESTS_MIRROR_FIXTURE_H
#define BLOCKSTEP_TESTS_MIRROR_FIXTURE_H

#include "job_fixture.h"

#include "jobs/mirror.h"

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
    return start_made(job);
}

UNUSED static struct job *start_full(struct world *world) MAY_WAIT
{
    struct mirror_options options = options_of(world);
    return start(world, &options);
}

UNUSED static void expect_equal(struct world *world)
{
    const uint8_t *source = mem_bytes(world->smem), *target = mem_bytes(world->tmem);
    for (uint64_t i = 0; i < SIZE_BYTES; i++) {
        if (source[i] != target[i])
            fail_msg("byte %" PRIu64 ": source %u, target %u", i, source[i], target[i]);
    }
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
