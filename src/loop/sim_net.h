/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Connections of the simulator, as the kernels of both hosts keep them. A connection has two channels,
 * one for each direction; what is sent is under way, arrives after a while in pieces of any size, in
 * order, and waits to be received. Both together are bounded. As with TCP, an end that closes sends an
 * end-of-stream behind its bytes, or a reset when it has not read all; bytes that find nobody are
 * answered with a reset.
 */
#ifndef BLOCKSTEP_LOOP_SIM_NET_H
#define BLOCKSTEP_LOOP_SIM_NET_H

#include "loop/sim_internal.h"

/* One way from host to host. */
struct sim_link {
    struct list_link link; /* sim->links */
    struct sim *sim;
    struct sim_host *from, *to;
    struct sim_link_options options;
    uint64_t break_after_bytes; /* so many arrive until a connection breaks; UINT64_MAX: never */
};

/* One direction, named by the end it leads to. Counts of bytes: acked <= taken <= arrived <= sent. */
struct sim_channel {
    struct sim_event event;   /* the next arrival */
    struct sim_event give_up; /* nobody has answered for too long */
    struct sim_conn *conn;
    struct sim_link *way;
    unsigned side;
    uint8_t *ring;
    uint64_t sent, arrived, taken, acked;
    bool fin, fin_arrived;
    bool reset, reset_arrived;
    bool timed_out; /* the reset is the end's own: its kernel has given up */
};

struct sim_end {
    struct list_link link; /* of what remains of a process */
    struct sim_conn *conn;
    struct sim_sock *sock; /* NULL: not accepted yet, or its process is dead */
    unsigned side;
    bool open;     /* somebody will close it */
    bool vanished; /* its host knows nothing of it */
};

struct sim_conn {
    struct list_link link;
    struct list_link backlog_link;
    struct sim *sim;
    struct sim_host *hosts[2]; /* [0]: who connected */
    struct sim_channel to[2];
    struct sim_end ends[2];
    char client_name[64], server_name[128];
};

enum sim_scope { SIM_SCOPE_ANY, SIM_SCOPE_LOOPBACK, SIM_SCOPE_OUTSIDE };

struct sim_listener {
    struct list_link link;         /* host->listeners */
    struct list_link remains_link; /* of what remains of a process */
    struct sim_host *host;
    struct sim_sock *sock;
    struct list backlog; /* struct sim_conn */
    unsigned backlog_count;
    enum sim_scope scope;
    uint16_t port;
    bool shut;
    struct sim_inode *inode; /* of a unix socket */
    char *path;
};

struct sim_sock {
    struct sock base;
    struct sim_loop *loop;
    struct list_link link;         /* loop->socks */
    struct co *receiver, *sender;  /* that wait inside a call */
    struct sim_end *end;           /* of a connection; */
    struct sim_listener *listener; /* of a listener; both NULL once the process is dead */
};

/* sim_conn.c */
struct sim_conn *sim_conn_new(struct sim_host *client, struct sim_host *server);
void sim_end_close(struct sim_end *end, bool abort);
/* Gone without notice, with the power of its host. */
void sim_end_vanish(struct sim_end *end);
/* All connections from `way->from` to `way->to`. */
void sim_conns_break(const struct sim_link *way, enum sim_side side);
size_t sim_channel_room(const struct sim_channel *channel);
void sim_channel_put(struct sim_channel *channel, const uint8_t *bytes, size_t length_bytes);
void sim_channel_take(struct sim_channel *channel, uint8_t *bytes, size_t length_bytes);
void sim_channel_fin(struct sim_channel *channel);
/* Why nothing comes here any more: -ECONNRESET or -ETIMEDOUT. */
int sim_channel_error(const struct sim_channel *channel);
/* Bytes that have been taken may be sent anew; wakes who waits to. */
void sim_channel_ack(struct sim_channel *channel);

/* sim_link.c */
/* Made on first use; NULL when memory is out. */
struct sim_link *sim_link_find(struct sim *sim, struct sim_host *from, struct sim_host *to);

#endif
