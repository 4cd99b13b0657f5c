/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options of the `replication` filter. */
#ifndef BLOCKSTEP_DRIVERS_REPLICATION_OPTIONS_H
#define BLOCKSTEP_DRIVERS_REPLICATION_OPTIONS_H

#include "block/node.h"
#include "loop/address_opts.h"

struct replication_options {
    struct address_opts peer_control; /* first: its table counts from here */
    bool has_peer_control;
    char *peer_tls_creds, *peer_tls_hostname;
    int mode; /* enum replication_mode */
    char *top_id;
    struct json_object *file;
    int peer_ack;
    bool has_peer_ack;
    uint64_t max_lag_bytes;
    bool has_max_lag_bytes;
    int overflow;
    bool has_overflow;
    uint64_t request_timeout;
    bool has_request_timeout;
    int on_peer_loss;
    bool has_on_peer_loss;
};

extern const struct opt replication_opts[];
extern const char *const replication_mode_names[];

/* What the table cannot say: which options go with which mode, and which are for later. */
int replication_options_check(const struct node *node, struct err *err);

#endif
