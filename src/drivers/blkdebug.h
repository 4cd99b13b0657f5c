/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blkdebug: a filter that fails, delays or holds chosen requests. Rules come from its options
 * (`inject`, a list) or from these functions.
 *
 * A rule counts the requests that match it: those of its kinds that touch its range. It acts on the
 * `nth` of them and the `count - 1` after it. When several rules would act on a request, the oldest
 * does; all that match count it.
 *
 * A detach or drain waits for held requests like for all others: release them first.
 */
#ifndef BLOCKSTEP_DRIVERS_BLKDEBUG_H
#define BLOCKSTEP_DRIVERS_BLKDEBUG_H

#include "block/node.h"

enum blkdebug_kind {
    BLKDEBUG_READ = 1u << 0,
    BLKDEBUG_WRITE = 1u << 1,
    BLKDEBUG_ZERO = 1u << 2,
    BLKDEBUG_DISCARD = 1u << 3,
    BLKDEBUG_FLUSH = 1u << 4, /* matches whatever the rule's range */
    BLKDEBUG_EMPTY = 1u << 5, /* node_empty_prepare(); whatever the range */
    BLKDEBUG_EXTENTS = 1u << 6,
    BLKDEBUG_TRUNCATE = 1u << 7, /* whatever the range */
    BLKDEBUG_ANY = (1u << 8) - 1,
};

struct blkdebug_rule {
    unsigned kinds;        /* of enum blkdebug_kind */
    uint64_t offset_bytes; /* the range; */
    uint64_t length_bytes; /* 0: to the end */
    uint64_t nth;          /* 0 or 1: from the next on */
    uint64_t count;        /* 0: all from the nth on */
    int error;             /* 0: none; else the negative errno it fails with */
    uint64_t delay_ns;
    bool hold; /* until blkdebug_release(); a delay begins after it */
    bool
        after; /* carry the request out first, then hold, delay, fail: the answer is what is lost */
};

#define BLKDEBUG_MAX_RULES 64u

/* `node`: of driver blkdebug, in all of these. -ENOSPC: too many rules. *ret_id may be NULL. */
int blkdebug_inject(struct node *node, const struct blkdebug_rule *rule, unsigned *ret_id);
/* Requests that a removed rule holds stay held. Id 0: all rules. */
void blkdebug_remove(struct node *node, unsigned id);
/* How many requests have matched the rule. */
uint64_t blkdebug_matches(struct node *node, unsigned id);
/* How many requests are held now by the rule (id 0: by any). */
unsigned blkdebug_held(struct node *node, unsigned id);
/* Lets those go that are held now. */
void blkdebug_release(struct node *node, unsigned id);
/* Waits until at least `count` requests are held: 0 or -ETIMEDOUT. */
int blkdebug_await_held(struct node *node, unsigned id, unsigned count, uint64_t deadline_ns)
    MAY_WAIT;

#endif
