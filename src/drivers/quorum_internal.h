/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the quorum driver share and nobody else sees. */
#ifndef BLOCKSTEP_DRIVERS_QUORUM_INTERNAL_H
#define BLOCKSTEP_DRIVERS_QUORUM_INTERNAL_H

#include "block/io.h"
#include "drivers/quorum.h"

struct child {
    struct edge *edge;
    bool missed; /* a write that was acknowledged */
};

struct quorum {
    struct child children[QUORUM_MAX_CHILDREN];
    unsigned count;
    unsigned threshold;
    unsigned next_index;     /* of the name of the next child */
    struct co_gate requests; /* closed while a child goes */
    bool votes;              /* read-pattern=quorum */
    bool rewrites, verifies; /* rewrite-corrupted, blkverify */
    bool differed;           /* blkverify has found a difference: nothing goes on */
    struct range_locks
        locks; /* votes: changes exclude reads, which would see the children differ */
    uint64_t failures, corrected;
};

struct quorum *quorum_of(struct node *node);

/* QUORUM_REPORT_BAD; code 0: nothing failed, the child holds something else than the others. */
void quorum_report_bad(struct edge *edge, const char *type, uint64_t offset_bytes,
                       uint64_t length_bytes, int code);
/* QUORUM_FAILURE */
void quorum_report_failure(struct node *node, uint64_t offset_bytes, uint64_t length_bytes);

/* The most frequent of the negative results, of equals the first; -EIO when there is none. */
int quorum_vote_error(const int *results, unsigned count);
/* Reads all children that have missed nothing; what enough of them say is the answer. */
int quorum_vote_read(struct node *node, struct io *io) MAY_WAIT;

#endif
