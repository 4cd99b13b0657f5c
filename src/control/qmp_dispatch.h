/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From a request's tree to the answer's: what of QMP needs no sockets. */
#ifndef BLOCKSTEP_CONTROL_QMP_DISPATCH_H
#define BLOCKSTEP_CONTROL_QMP_DISPATCH_H

#include "control/qmp.h"

/* One client's conversation. */
struct qmp_session {
    struct qmp_server *server; /* may be NULL (fuzzing) */
    const struct qmp_command *const *tables;
    void *context;
    enum qmp_role role;
    bool negotiated;     /* qmp_capabilities has been run */
    bool oob;            /* and has switched on out-of-band execution */
    bool peer_events;    /* the other host is told of what it asked for */
    uint64_t silence_ns; /* for how long it may say nothing; 0: for ever */
    uint64_t client;
};

/* Runs a request and returns the answer, with the request's id; NULL when memory is out. */
struct json_object *qmp_dispatch(struct qmp_session *session, struct json_object *request) MAY_WAIT;

/* The request is to be run at once, before those that were read earlier. */
bool qmp_is_oob(const struct qmp_session *session, struct json_object *request);

struct json_object *qmp_greeting(void);
/* {"error": {"class", "desc"}} */
struct json_object *qmp_error(const struct err *err);
struct json_object *qmp_event(uint64_t wall_ns, const char *name, struct json_object *data);
/* {"qemu": {"major", "minor", "micro"}, "package"} */
struct json_object *qmp_version(void);

/* The command of that name which the role may run, or NULL. */
const struct qmp_command *qmp_command_find(const struct qmp_command *const *tables,
                                           enum qmp_role role, const char *name);

/*
 * Checks what managers look for in an answer, with the protocol's own words: members that are
 * missing, of the wrong type, or unexpected. What is left (ranges, nested members) is for
 * opts_parse().
 */
int qmp_check_arguments(const struct opt *table, struct json_object *arguments, struct err *err);

#endif
