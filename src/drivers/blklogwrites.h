/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blklogwrites: a filter that logs all changes in the order in which they took effect, in the format
 * of Linux' dm-log-writes (wire/log_writes.h), for tools that replay them up to a point: what would a
 * crash have left behind?
 *
 * A change is logged when the disk has carried it out, and answered when its entry is written; one
 * that failed is not logged. A flush stands in the log where it began: before it is what it made
 * durable, and nothing that ended only while it ran. When the log cannot be written any more, changes
 * fail: a log with a gap would prove nothing.
 */
#ifndef BLOCKSTEP_DRIVERS_BLKLOGWRITES_H
#define BLOCKSTEP_DRIVERS_BLKLOGWRITES_H

#include "block/node.h"

/* Puts a mark behind all that has been answered. -EINVAL: too long for a sector. */
int blklogwrites_mark(struct node *node, const char *text) MAY_WAIT;

#endif
