/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stream sockets. One coroutine at a time receives on a socket and one sends.
 *
 * sock_shutdown() is how anybody else ends them: all that wait on the socket return with
 * -ECONNABORTED (or the reason given), now and later. Then, when they have left, sock_close().
 */
#ifndef BLOCKSTEP_LOOP_SOCK_H
#define BLOCKSTEP_LOOP_SOCK_H

#include "loop/co.h"

#include <sys/types.h>
#include <sys/uio.h>

struct sock;

enum sock_family { SOCK_FAMILY_UNIX, SOCK_FAMILY_INET };

struct sock_address {
    enum sock_family family;
    char *host; /* inet: name or number; NULL or "": any (listen), loopback (connect) */
    char *port; /* inet: number, "0": the kernel picks (listen) */
    char *path; /* unix */
};

/* "unix:PATH", "HOST:PORT", "[V6]:PORT", ":PORT". `where` begins the error. */
int sock_address_parse(const char *text, const char *where, struct sock_address *ret_address,
                       struct err *err);
int sock_address_copy(const struct sock_address *from, struct sock_address *ret_to);
void sock_address_release(struct sock_address *address);
/* "unix:PATH" or "HOST:PORT" into `text`, which is returned. */
const char *sock_address_format(const struct sock_address *address, char *text, size_t text_bytes);
/* Reachable from this host alone: unix, 127.0.0.0/8, ::1, "localhost". */
bool sock_address_is_local(const struct sock_address *address);

/* An old unix socket that nobody listens on is replaced; new ones are mode 0600. An address in use
 * is tried again for a second: a killed process's socket outlives it by some 100 ms. */
int sock_listen(struct loop *loop, const struct sock_address *address, struct sock **ret_listener,
                struct err *err) MAY_WAIT;
/* 0 or -errno; after sock_shutdown() -ECONNABORTED. */
int sock_accept(struct sock *listener, struct sock **ret_sock) MAY_WAIT;
/* Name look-up is offloaded; the deadline covers all of it. -ETIMEDOUT when it passes. */
int sock_connect(struct loop *loop, const struct sock_address *address, uint64_t deadline_ns,
                 struct sock **ret_sock, struct err *err) MAY_WAIT;
/* Takes over a connected (or, with `listening`, a listening) descriptor, also on failure. A listening
 * one may be shared with who started the process: it is left as it is, and goes on listening there
 * after sock_close(). Not in the simulator. */
int sock_adopt(struct loop *loop, int fd, bool listening, struct sock **ret_sock, struct err *err);

/* 1 to length_bytes bytes, 0 at the end of the stream, or -errno. */
ssize_t sock_recv(struct sock *sock, void *bytes, size_t length_bytes) MAY_WAIT;
/* All of it, or -errno. The vector is changed by the call. Many entries are fine. */
int sock_send(struct sock *sock, struct iovec *iov, int count) MAY_WAIT;
/* What fits now without waiting: bytes taken (perhaps 0), or -errno. Callable outside coroutines. What
 * is left must be what is sent next: with TLS a part of it may be on its way already. */
ssize_t sock_send_now(struct sock *sock, const struct iovec *iov, int count);

/* Ends all waiting and later calls with `reason` (negative errno; 0: -ECONNABORTED). Idempotent:
 * the first reason stays. */
void sock_shutdown(struct sock *sock, int reason);
/* Shuts the socket down with -ETIMEDOUT at the deadline; DEADLINE_NEVER takes that back. */
void sock_deadline(struct sock *sock, uint64_t deadline_ns);
/* Nobody may be inside a call, nor in sock_start_tls() (tls.h). For a listener on unix: unlinks the path. NULL is fine. */
void sock_close(struct sock *sock);

/* "unix:PATH", "ADDRESS:PORT"; for logs. Text lives as long as the socket. */
const char *sock_peer_name(const struct sock *sock);
/* The address a listener really has (port 0 resolved): "HOST:PORT" or "unix:PATH". */
const char *sock_local_name(const struct sock *sock);
uint16_t sock_local_port(const struct sock *sock);

#endif
