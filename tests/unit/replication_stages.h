/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A replicated pair in each stage, and held there: block 0 of disk 0 is held by the hidden disk (0 at the
 * checkpoint, 1 by P since), block 1 by the active disk (2 by S's user), all others by nobody.
 */
#ifndef BLOCKSTEP_TESTS_REPLICATION_STAGES_H
#define BLOCKSTEP_TESTS_REPLICATION_STAGES_H

#include "replication_fixture.h"

#define BLOCK ((size_t)4096)

/* The secondary's places. A failover is held before its merge has copied anything, while it copies
 * (which locks what it copies), or when all has been copied and writes go to both disks. It fails while
 * it copies, or at that last moment. */
enum place {
    PLACE_NONE,
    PLACE_RUNNING,
    PLACE_FAILOVER_BEGUN,
    PLACE_FAILOVER,
    PLACE_FAILOVER_COPIED,
    PLACE_FAILOVER_FAILED,
    PLACE_FAILED_COPIED,
    PLACE_STOPPED,
    PLACE_PROMOTED,
    PLACES,
};
static const char *const place_names[PLACES] = {
    [PLACE_NONE] = "none",
    [PLACE_RUNNING] = "running",
    [PLACE_FAILOVER_BEGUN] = "failover, begun",
    [PLACE_FAILOVER] = "failover",
    [PLACE_FAILOVER_COPIED] = "failover, copied",
    [PLACE_FAILOVER_FAILED] = "failover-failed",
    [PLACE_FAILED_COPIED] = "failover-failed, copied",
    [PLACE_STOPPED] = "done, by a stop",
    [PLACE_PROMOTED] = "done, by a failover",
};
static const enum replication_stage place_stages[PLACES] = {
    [PLACE_NONE] = REPLICATION_NONE,
    [PLACE_RUNNING] = REPLICATION_RUNNING,
    [PLACE_FAILOVER_BEGUN] = REPLICATION_FAILOVER,
    [PLACE_FAILOVER] = REPLICATION_FAILOVER,
    [PLACE_FAILOVER_COPIED] = REPLICATION_FAILOVER,
    [PLACE_FAILOVER_FAILED] = REPLICATION_FAILOVER_FAILED,
    [PLACE_FAILED_COPIED] = REPLICATION_FAILOVER_FAILED,
    [PLACE_STOPPED] = REPLICATION_DONE,
    [PLACE_PROMOTED] = REPLICATION_DONE,
};

static void hold_failover(struct fix *fix, enum place place)
{
    bool copying = place == PLACE_FAILOVER || place == PLACE_FAILOVER_FAILED;
    bool fails = place_stages[place] == REPLICATION_FAILOVER_FAILED;
    struct blkdebug_rule rule = {.kinds = BLKDEBUG_FLUSH, .count = 1};
    if (copying)
        rule = (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE | BLKDEBUG_ZERO,
                                      .length_bytes = BLOCK};
    rule.hold = !fails;
    rule.error = fails ? -EIO : 0;
    if (place_stages[place] != REPLICATION_DONE)
        fix_inject(&fix->s, place == PLACE_FAILOVER_BEGUN ? "adebug" : "sdisk", 0, rule);
}

static void bring_secondary(struct fix *fix, enum place place) MAY_WAIT
{
    if (place == PLACE_NONE)
        return;
    fix_start(fix);
    assert_int_equal(fix_fill(fix->forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix->top[0], BLOCK, BLOCK, 2), 0);
    if (place == PLACE_RUNNING)
        return;
    hold_failover(fix, place);
    fix_ok(replication_stop(fix->s.group, place != PLACE_STOPPED, &err));
    fix_wait_stage(&fix->s, place_stages[place]);
    if (place_stages[place] == REPLICATION_FAILOVER)
        assert_int_equal(
            blkdebug_await_held(
                fix_node(&fix->s, place == PLACE_FAILOVER_BEGUN ? "adebug" : "sdisk", 0), 0, 1,
                test_deadline_ns(10)),
            0);
}

/* Lets a failover go on; what made it fail fails no more. */
static void release_all(struct fix *fix)
{
    static const char *const nodes[] = {"adebug", "sdisk"};
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++) {
        blkdebug_remove(fix_node(&fix->s, nodes[i], 0), 0);
        blkdebug_release(fix_node(&fix->s, nodes[i], 0), 0);
    }
}

static void bring_primary(struct fix *fix, enum replication_stage stage) MAY_WAIT
{
    if (stage == REPLICATION_NONE)
        return;
    fix_start(fix);
    if (stage == REPLICATION_DONE)
        fix_ok(replication_stop(fix->p.group, false, &err));
}

#endif
