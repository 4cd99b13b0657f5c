/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Backing chains, as jobs see them: from image to image, through the filters in between. */
#ifndef BLOCKSTEP_JOBS_CHAIN_H
#define BLOCKSTEP_JOBS_CHAIN_H

#include "block/graph.h"

/* What the node shows is in this one. */
struct node *chain_below_filters(struct node *node);
/* The next node down: what a filter is above, or an image's backing node; NULL at the foot. */
struct node *chain_next(struct node *node);
/* True when `base` is `top`, or lies below it in its chain. */
bool chain_contains(struct node *top, const struct node *base);
/* Refuses (-EBUSY) when nodes below `top`, down to and with `base`, have other users than the chain
 * itself: a merge of `top` into `base` would change what these see. The edge `own` does not count, nor do
 * nodes that nobody uses. */
int chain_check_private(struct node *top, const struct node *base, const struct edge *own,
                        struct err *err);

#endif
