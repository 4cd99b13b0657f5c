/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of the NBD server and client: a server on a graph, and peers that speak byte by byte,
 * well or ill.
 */
#ifndef BLOCKSTEP_TESTS_NBD_PEERS_H
#define BLOCKSTEP_TESTS_NBD_PEERS_H

#include "blocks.h"

#include "drivers/nbd_client.h"
#include "export/nbd_server.h"
#include "wire/nbd.h"

struct nbd_world {
    struct graph *graph;
    struct node *node; /* "disk" */
    struct nbd_service *service;
    struct sock_address address;
};

/* A graph with the node "disk" as told (NULL: 1 MiB of mem), a server "default" on a unix socket, and
 * the writable export "disk" of it. */
void nbd_world_begin(struct nbd_world *world, const struct nbd_service_options *options,
                     const char *node) MAY_WAIT;
void nbd_world_end(struct nbd_world *world) MAY_WAIT;
void nbd_world_export(struct nbd_world *world, const char *name, const char *node_name,
                      bool writable) MAY_WAIT;
/* A root above a node of driver nbd that leads back into the world's export. */
struct edge *nbd_world_client(struct nbd_world *world, const char *name) MAY_WAIT;
/* Takes the root and the node away. */
void nbd_world_client_end(struct nbd_world *world, struct edge *edge) MAY_WAIT;

/* --- peers --- */

struct sock *peer_connect(const struct nbd_world *world) MAY_WAIT;
void peer_close(struct sock *sock);
/* False when the connection has ended. */
bool peer_send(struct sock *sock, const void *bytes, size_t length_bytes) MAY_WAIT;
bool peer_recv(struct sock *sock, void *bytes, size_t length_bytes) MAY_WAIT;
/* Reads until the other side ends the connection. */
void peer_expect_end(struct sock *sock) MAY_WAIT;

/* As a client: the greeting and our flags. */
void peer_greet(struct sock *sock, uint32_t flags) MAY_WAIT;
void peer_option(struct sock *sock, uint32_t option, const void *payload, size_t length_bytes)
    MAY_WAIT;
/* One reply; the payload (cut at `size` bytes, and ended with a zero) goes into `payload`. */
uint32_t peer_option_reply(struct sock *sock, uint32_t option, char *payload, size_t size) MAY_WAIT;
/* Skips replies until one that is no INFO, META_CONTEXT or SERVER, and returns its type. */
uint32_t peer_option_end(struct sock *sock, uint32_t option) MAY_WAIT;
uint32_t peer_go(struct sock *sock, const char *name) MAY_WAIT;
/* All of it: in transmission, with structured replies and both contexts when `structured`. */
struct sock *peer_session(const struct nbd_world *world, const char *name, bool structured)
    MAY_WAIT;
void peer_request(struct sock *sock, uint16_t type, uint16_t flags, uint64_t cookie,
                  uint64_t offset_bytes, uint32_t length_bytes) MAY_WAIT;
/* A simple reply: its error as a negative errno. */
int peer_simple_reply(struct sock *sock, uint64_t cookie) MAY_WAIT;
/* A chunk's head. */
struct nbd_chunk peer_chunk(struct sock *sock, uint64_t cookie) MAY_WAIT;

/* As a server: accepts one connection and negotiates an export of that size. */
struct peer_server {
    struct sock *listener;
    uint64_t size_bytes;
    uint16_t flags;
    bool structured;
    bool refuses_contexts;
    uint64_t instance; /* what the client told */
};
void peer_server_begin(struct peer_server *server, struct sock_address *ret_address) MAY_WAIT;
void peer_server_end(struct peer_server *server, struct sock_address *address);
struct sock *peer_accept(struct peer_server *server) MAY_WAIT;
/* False when the client has left. */
bool peer_negotiate(struct peer_server *server, struct sock *sock) MAY_WAIT;
void peer_take_request(struct sock *sock, struct nbd_request *ret_request) MAY_WAIT;

#endif
