/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What queries tell of a node, in the shape that QEMU's clients read. */
#ifndef BLOCKSTEP_CONTROL_NODE_INFO_H
#define BLOCKSTEP_CONTROL_NODE_INFO_H

#include "block/graph.h"

#define NODE_FILENAME_BYTES 4200

/* Where the node's bytes are, in one text: a path, an address, or the driver's name. Into `text`,
 * which is returned. */
const char *node_filename(const struct node *node, char *text, size_t text_bytes);

/* An entry of query-named-block-nodes; `flat`: without the chain of backing images. NULL when memory
 * is out. */
struct json_object *node_info(struct node *node, bool flat);

#endif
