/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef BLOCKSTEP_DRIVERS_FILE_NODE_H
#define BLOCKSTEP_DRIVERS_FILE_NODE_H

#include "block/node.h"

/* What tells another file in the place of the one at the end of the node's chain of `file` children
 * (file_info.identity); empty when nothing does. */
const char *file_node_identity(const struct node *node);

#endif
