/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The daemon: one loop, one graph, its NBD service, jobs, replication group and control server. What
 * both programs run, and what the commands work on.
 *
 * Life: daemon_new, daemon_start (with the configuration), commands and requests, daemon_quit (asks,
 * from anywhere), daemon_end (in order), daemon_free. daemon_run does all of it for a process.
 */
#ifndef BLOCKSTEP_CONTROL_DAEMON_H
#define BLOCKSTEP_CONTROL_DAEMON_H

#include "control/config.h"
#include "control/qmp.h"
#include "export/nbd_server.h"
#include "replication/group.h"

/* An export that becomes writable at a failover. */
struct daemon_promoted {
    struct list_link link;
    struct config_export options; /* owned */
};

struct daemon {
    struct loop *loop;
    struct graph *graph;
    struct nbd_service *nbd;
    struct job_list jobs;
    struct replication_owner owner;
    struct replication_group *group;
    struct qmp_server *qmp;
    const struct config *config;
    char *name;      /* of the group of disks, for people; may be NULL */
    int passed_fd;   /* a listening socket that nobody has taken yet; 0: none */
    bool insecure;   /* listeners may be reachable from other hosts */
    bool vm_running; /* what the manager told by stop and cont */
    bool ended;
    const char *quit_why; /* NULL: nobody has asked for the end; else a reason of event SHUTDOWN */
    struct co_queue quit;
    struct list promoted;    /* struct daemon_promoted */
    uint64_t session_client; /* the control connection of the primary's session; 0: none */
    bool greeting;           /* a primary's hello is being answered */
};

/* The configuration outlives the daemon. */
int daemon_new(struct loop *loop, const struct config *config, struct daemon **ret_daemon,
               struct err *err) MAY_WAIT;
/* Does what the configuration says, in its order. After a failure daemon_end() is still due. */
int daemon_start(struct daemon *daemon, struct err *err) MAY_WAIT;
/* Asks for the end; does not wait. `why` is static text: "host-qmp-quit", "host-signal". */
void daemon_quit(struct daemon *daemon, const char *why);
void daemon_wait_quit(struct daemon *daemon) MAY_WAIT;
/* Stops taking connections, finishes the requests taken, flushes, closes the nodes. */
void daemon_end(struct daemon *daemon) MAY_WAIT;
void daemon_free(struct daemon *daemon);

/* How a process runs a daemon; all callbacks are optional. */
struct daemon_hooks {
    /* Everything is up. A failure ends the daemon. May wait. */
    int (*started)(struct daemon *daemon, void *arg, struct err *err);
    /* It has been told to end and begins to. Must not wait. */
    void (*stopping)(void *arg);
    void *arg;
};
/*
 * Makes the daemon on the loop, handles SIGTERM, SIGINT and SIGHUP, and runs the loop until the end. 0, or
 * the error of the start. -EINTR: a second signal insisted; the process should exit at once, nothing
 * has been freed.
 */
int daemon_run(struct loop *loop, const struct config *config, const struct daemon_hooks *hooks,
               struct err *err);

/* --- what start-up and commands share --- */

/* Makes an object and has it loaded. `where` begins every error. */
int daemon_add_object(struct daemon *daemon, struct json_object *options, enum opts_syntax syntax,
                      const char *where, struct err *err) MAY_WAIT;
/* The credentials of a listener, with a reference (NULL when `id` is), after the check that clients of
 * that address are known or the daemon has been told to do without. */
int daemon_listener_creds(struct daemon *daemon, const struct sock_address *address, const char *id,
                          const char *what, struct tls_creds **ret_creds, struct err *err);
int daemon_add_nbd_server(struct daemon *daemon, const struct config_nbd_server *server,
                          struct err *err) MAY_WAIT;
/* A server on a listening socket that the process was started with; takes the descriptor. `tls_creds`:
 * id of an object, NULL: no TLS. */
int daemon_adopt_nbd_server(struct daemon *daemon, const char *id, int fd, const char *tls_creds,
                            unsigned max_connections, struct err *err) MAY_WAIT;
/* Takes what it needs of `options`. */
int daemon_add_export(struct daemon *daemon, const struct config_export *options, struct err *err)
    MAY_WAIT;
/* Failover, and what follows from it: exports that wait for it become writable. Tells of the end of
 * replication (COLO_EXIT). */
int daemon_failover(struct daemon *daemon, bool force, struct err *err) MAY_WAIT;
/* The other way to end it. */
int daemon_stop_replication(struct daemon *daemon, struct err *err) MAY_WAIT;
/* The fence of struct replication_owner: no way of the peer leads to these edges any more. */
int daemon_fence(void *daemon, struct edge *const *roots, size_t count, struct err *err) MAY_WAIT;

/* Who may write to the secondary disks: of struct nbd_admission and of struct replication_owner. */
int daemon_admit(void *daemon, const struct nbd_writer *writer) MAY_WAIT;
void daemon_writer_ended(void *daemon, const struct nbd_writer *writer, bool orderly);
void daemon_renew_admission(void *daemon);
void daemon_cut_others(void *daemon, struct edge *const *roots, size_t count, uint64_t instance)
    MAY_WAIT;
/* A control client says no more. */
void daemon_client_left(void *daemon, uint64_t client);

#endif
