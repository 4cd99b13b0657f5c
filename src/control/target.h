/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks that commands name in one text, as QEMU's clients do: nbd://HOST:PORT/EXPORT,
 * nbd+unix:///EXPORT?socket=PATH, nbd:HOST:PORT:exportname=EXPORT, nbd:unix:PATH:exportname=EXPORT,
 * json:{OPTIONS OF A NODE}, file:PATH, or a path.
 */
#ifndef BLOCKSTEP_CONTROL_TARGET_H
#define BLOCKSTEP_CONTROL_TARGET_H

#include "block/graph.h"

#define TARGET_MAX_BYTES 4096u

/* The options of a node for it; NULL with `err` set: not understood, or memory is out. */
struct json_object *target_parse(const char *text, struct err *err);
/* Opens it read-write. `node_name` NULL: one is made up. The node comes with a reference, and goes with
 * its last user. */
int target_open(struct graph *graph, const char *text, const char *node_name,
                struct node **ret_node, struct err *err) MAY_WAIT;

#endif
