/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The QMP server: listeners, clients, and the dispatch of commands to tables of handlers. It knows
 * the protocol and nothing of what the commands do.
 *
 * Each client has three coroutines: one reads, one runs the commands, one after the other, and one
 * sends. So a command that waits holds up its own client alone. A client that has asked for it may
 * overtake its own commands: what it sends by "exec-oob" runs as soon as it is read. Bounds:
 * QMP_MAX_CLIENTS clients; commands that are read and have not ended; a client that does not read its
 * answers is not read from either; one that lets events pile up beyond QMP_OUT_MAX_BYTES is dropped,
 * and the log says so.
 */
#ifndef BLOCKSTEP_CONTROL_QMP_H
#define BLOCKSTEP_CONTROL_QMP_H

#include "base/json.h"
#include "base/opts.h"
#include "loop/tls.h"

#define QMP_MAX_CLIENTS      32u
#define QMP_MAX_LISTENERS    16u
/* Commands of one client under way or waiting for their turn, when it has asked for out-of-band
 * execution: with one more it is not read from. Without, with the first. */
#define QMP_MAX_IN_FLIGHT    8u
/* And of these together: what is read takes many times the memory of its text. */
#define QMP_IN_SOFT_BYTES    (64u * 1024)
/* Above the first no further command of the client is read; at the second it is dropped. */
#define QMP_OUT_SOFT_BYTES   (64u * 1024)
#define QMP_OUT_MAX_BYTES    (8u * 1024 * 1024)
/* How long closing waits for clients to take what is queued for them. */
#define QMP_CLOSE_TIMEOUT_NS (1 * NS_PER_S)
/* For the handshake of TLS. */
#define QMP_TLS_TIMEOUT_NS   (10 * NS_PER_S)

/* The version of the protocol's reference whose commands and texts are followed. */
#define QMP_QEMU_MAJOR 7
#define QMP_QEMU_MINOR 2
#define QMP_QEMU_MICRO 0

/* What a listener's clients may do. */
enum qmp_role {
    QMP_ROLE_FULL,
    QMP_ROLE_PEER, /* the other host: commands marked QMP_PEER, and events only when one says so */
};

struct qmp_server;

/* One run of a command. */
struct qmp_call {
    void *context; /* given to qmp_server_new() */
    struct qmp_server *server;
    enum qmp_role role;
    struct json_object *arguments; /* as they came; NULL: none. Borrowed */
    struct json_object *result; /* the handler's answer, owned by the call; NULL: an empty object */
    bool oob;                   /* of qmp_capabilities: the client wants out-of-band execution */
    bool peer_events;           /* the other host gets events marked as the peer's from now on */
    /* The client is cut when it has said nothing for so long, and no command of it is under way; 0: as before. */
    uint64_t silence_ns;
    uint64_t client; /* a number never used again; 0: none (fuzzing) */
};

enum qmp_command_flags {
    QMP_PEER = 1u << 0, /* the other host may run it */
    /* The arguments are the options of a node, or of an object, whose driver or type has the table:
     * the handler reads call->arguments itself, and `args` is NULL. */
    QMP_ARGS_NODE = 1u << 1,
    QMP_ARGS_OBJECT = 1u << 2,
    QMP_OOB = 1u << 3, /* may be run out of band; it does not wait */
};

/* What stands behind "return". */
enum qmp_returns {
    QMP_RETURNS_NOTHING, /* an empty object */
    QMP_RETURNS_TEXT,
    QMP_RETURNS_LIST,
    QMP_RETURNS_VALUE,
};

struct qmp_command {
    const char *name; /* last entry of a table: NULL */
    unsigned flags;
    enum qmp_returns returns;
    const struct opt *args; /* NULL: takes no arguments (or QMP_ARGS_*) */
    size_t args_size;
    /* May wait. `args` is filled by the table and released after the call. */
    int (*run)(struct qmp_call *call, void *args, struct err *err);
};

/* A table with qmp_capabilities alone, which is the protocol's own. */
extern const struct qmp_command qmp_negotiation[];

/* An event, as the schema tells of it. */
struct qmp_event_type {
    const char *name;       /* last entry of a table: NULL */
    const struct opt *data; /* only name, type, values and required count. NULL: no members */
    /* At most one in this time, of each value of the member `key` (NULL: of all); see qmp_rate.h. 0:
     * as many as there are. */
    uint64_t interval_ns;
    const char *key;
    bool peer; /* for the other host too, when a command has said so; not limited */
};

/* `tables`: NULL-terminated; `events`: those that are limited at least, NULL: none is. They outlive the
 * server. NULL when memory is out. */
struct qmp_server *qmp_server_new(struct loop *loop, const struct qmp_command *const *tables,
                                  const struct qmp_event_type *events, void *context);
/* After qmp_server_close(). NULL is fine. */
void qmp_server_free(struct qmp_server *server);

int qmp_server_listen(struct qmp_server *server, const struct sock_address *address,
                      enum qmp_role role, struct err *err) MAY_WAIT;
/* As qmp_server_listen(); its clients speak TLS from the first byte. Takes a reference of its own on the
 * credentials (a server's); NULL: no TLS. `id`: what the listener is called; NULL: compat_monitor0,
 * 1 and so on, as QEMU calls those that were given no name. */
int qmp_server_listen_tls(struct qmp_server *server, const char *id,
                          const struct sock_address *address, enum qmp_role role,
                          struct tls_creds *creds, struct err *err) MAY_WAIT;
/* The listener's id; NULL: there are fewer. */
const char *qmp_server_listener(const struct qmp_server *server, size_t index);
/* Cuts the connections of all clients of the listener; -ENOENT: there is none of that id. Does not
 * wait. */
int qmp_server_yank(struct qmp_server *server, const char *id);
/* The address that the listener really has; NULL: there are fewer. */
const char *qmp_server_address(const struct qmp_server *server, size_t index);

/* Sends an event to all clients that have negotiated, at once or when the limit of its type allows.
 * Takes the reference on `data` (NULL: none). Does not wait. */
void qmp_server_event(struct qmp_server *server, const char *name, struct json_object *data);

/* What a client with that number can still hear and say. */
bool qmp_server_has_client(const struct qmp_server *server, uint64_t client);
/* Cuts a client's connection; returns when its commands under way have ended. Not from one of these. */
void qmp_server_cut_client(struct qmp_server *server, uint64_t client) MAY_WAIT;
/* Who is told when a client says no more: its commands that were not out of band have ended. Must not
 * wait. */
void qmp_server_set_left(struct qmp_server *server, void (*left)(void *context, uint64_t client));

/* Sends the events that were held back for a limit's sake. */
void qmp_server_flush_events(struct qmp_server *server);

/* Takes no new clients from now on. */
void qmp_server_stop_accepting(struct qmp_server *server);
/* Lets commands under way end and clients take their answers (for QMP_CLOSE_TIMEOUT_NS), then closes
 * everything. Not from within a command. */
void qmp_server_close(struct qmp_server *server) MAY_WAIT;

struct qmp_stats {
    size_t clients;
    uint64_t commands;
    uint64_t errors;  /* answers that were errors */
    uint64_t dropped; /* clients dropped for not reading */
    size_t limited;   /* kinds of events under a limit just now */
};
struct qmp_stats qmp_server_stats(const struct qmp_server *server);

/* The name of an error's class in the protocol. */
const char *qmp_error_class(enum err_kind kind);

#endif
