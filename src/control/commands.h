/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The commands, one file and one table per subject, and the events. Handlers get the daemon as
 * call->context. */
#ifndef BLOCKSTEP_CONTROL_COMMANDS_H
#define BLOCKSTEP_CONTROL_COMMANDS_H

#include "control/qmp.h"

struct daemon;
struct node;

extern const struct qmp_command commands_misc[];
extern const struct qmp_command commands_block[];
extern const struct qmp_command commands_backup[];
extern const struct qmp_command commands_bitmaps[];
extern const struct qmp_command commands_commit[];
extern const struct qmp_command commands_create[];
extern const struct qmp_command commands_graph[];
extern const struct qmp_command commands_nbd[];
extern const struct qmp_command commands_objects[];
extern const struct qmp_command commands_jobs[];
extern const struct qmp_command commands_mirror[];
extern const struct qmp_command commands_replication[];
extern const struct qmp_command commands_session[];
extern const struct qmp_command commands_yank[];
extern const struct qmp_command commands_hmp[];

/* All of them, NULL-terminated. */
extern const struct qmp_command *const commands_tables[];

/* All events that the daemon's parts send. */
extern const struct qmp_event_type events_table[];

/* A "device" or node-name of arguments; the error is QEMU's. */
int command_find_device(struct daemon *daemon, const char *name, struct node **ret_node,
                        struct err *err);

#endif
