/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A replicated pair to which something happens while requests are under way, or whose daemon ends. */
#ifndef BLOCKSTEP_TESTS_GROUP_FIXTURE_H
#define BLOCKSTEP_TESTS_GROUP_FIXTURE_H

#include "graph_snapshot.h"
#include "replication_fixture.h"

#include "block/dirty.h"

#define BLOCK ((size_t)4096)

UNUSED static uint64_t soon(struct fix *fix)
{
    return test_deadline_ns(10);
}

struct late {
    struct fix *fix;
    int result;
    bool done;
};

UNUSED static void late_write(void *arg) MAY_WAIT
{
    struct late *late = arg;
    late->result = fix_fill(late->fix->peer[0], 0, BLOCK, 9);
    late->done = true;
}

/* The same files in a new daemon. */
UNUSED static void reopen_secondary(struct fix *fix) MAY_WAIT
{
    fix_detach(fix);
    fix_close_side(&fix->s);
    fix_side_init(fix, &fix->s);
    for (unsigned i = 0; i < fix->disks; i++) {
        fix_open_secondary_disk(fix, i, false);
        fix_attach_secondary(fix, i, true);
    }
}

#endif
