/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bitmaps that arguments name: "NAME", of the node that the command is about, or {"node", "name"}. */
#ifndef BLOCKSTEP_CONTROL_BITMAP_REFS_H
#define BLOCKSTEP_CONTROL_BITMAP_REFS_H

#include "block/dirty_bitmap.h"
#include "block/graph.h"

#define BITMAP_REFS_MAX 64u

struct bitmap_refs {
    struct dirty_bitmap *items[BITMAP_REFS_MAX]; /* valid until the caller waits */
    size_t count;
};

/* Of OPT_REFS: the members of {"node", "name"}. */
extern const struct opt bitmap_ref_opts[];
/* By the name of its node and its own. */
int bitmap_ref_find(struct graph *graph, const char *node_name, const char *name,
                    struct dirty_bitmap **ret_bitmap, struct err *err);
/* `list`: the argument `member`, an array. With `chain` a name alone may be of a bitmap further down:
 * below filters, or of a backing image. */
int bitmap_refs_find(struct graph *graph, struct node *node, struct json_object *list,
                     const char *member, bool chain, struct bitmap_refs *ret_refs, struct err *err);

#endif
