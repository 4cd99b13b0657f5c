/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The protocol described in itself, as QEMU's query-qmp-schema does it: commands with their
 * arguments and events with their data, each with the types they need, down to builtin ones. Made
 * from the tables that arguments are parsed by, so it cannot tell anything else.
 *
 * Names of types are numbers without a meaning of their own, and may change. What a command returns
 * is described roughly: nothing, a text, a list, or some value.
 */
#ifndef BLOCKSTEP_CONTROL_SCHEMA_H
#define BLOCKSTEP_CONTROL_SCHEMA_H

#include "block/object.h"
#include "control/qmp.h"

#define SCHEMA_MAX_TYPES 1024u
/* Kinds of nodes, or of objects. */
#define SCHEMA_MAX_KINDS 64u

struct schema_source {
    const struct qmp_command *const
        *commands; /* NULL-terminated tables, as qmp_server_new() has them */
    const struct qmp_event_type *events;
    const struct driver *const *drivers;
    const struct object_type *const *object_types;
};

/* An array of SchemaInfo; NULL when memory is out. */
struct json_object *schema_new(const struct schema_source *source);

#endif
