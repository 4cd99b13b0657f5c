/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What queries tell of a node, in the shape that QEMU's clients read. */
#ifndef BLOCKSTEP_CONTROL_NODE_INFO_H
#define BLOCKSTEP_CONTROL_NODE_INFO_H

#include "block/graph.h"

/* Where the node's bytes are, in one text: a path, an address, or "json:" and how to make it. NULL when
 * memory is out. */
struct json_object *node_filename(const struct node *node);

/* An entry of query-named-block-nodes; `flat`: without the chain of backing images. NULL when memory
 * is out. */
struct json_object *node_info(struct node *node, bool flat);

#endif
