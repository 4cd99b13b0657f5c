/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a daemon is started with: a list of things to make, in the order of the command line, as
 * qemu-storage-daemon has it. Options are checked when they are added, as far as that needs no
 * graph.
 */
#ifndef BLOCKSTEP_CONTROL_CONFIG_H
#define BLOCKSTEP_CONTROL_CONFIG_H

#include "base/json.h"
#include "control/address.h"
#include "control/qmp.h"
#include "loop/address_opts.h"
#include "wire/group_record.h"

#define CONFIG_MAX_ITEMS 1024u

struct driver;

struct config_nbd_server {
    struct address_opts addr; /* first: its table counts from here */
    char *id;
    char *tls_creds, *tls_authz;
    uint64_t max_connections;
};
extern const struct opt config_nbd_server_opts[];

struct config_export {
    int type;
    char *id, *node_name, *name, *description, *server;
    bool writable, writable_after_failover;
    bool writethrough, allocation_depth;
    struct json_object *bitmaps;
};
extern const struct opt config_export_opts[];
/* A copy of its own, for opts_release(). 0 or -ENOMEM. */
int config_export_copy(const struct config_export *from, struct config_export *ret_to);

struct config_monitor {
    char *id;                    /* of the character device; NULL: it has none of its own */
    struct sock_address address; /* owned */
    char *tls_creds;             /* id of an object; NULL: no TLS */
    enum qmp_role role;
};

enum config_kind {
    CONFIG_BLOCKDEV,
    CONFIG_OBJECT,
    CONFIG_NBD_SERVER,
    CONFIG_EXPORT,
    CONFIG_MONITOR
};

struct config_item {
    enum config_kind kind;
    union {
        struct {
            struct json_object *options;
            enum opts_syntax syntax;
        } tree; /* of a blockdev or an object */
        struct config_nbd_server nbd_server;
        struct config_export export;
        struct config_monitor monitor;
    };
};

struct config_chardev {
    char *id;
    struct sock_address address;
    char *tls_creds;
};

struct config {
    const struct driver *const *drivers; /* NULL-terminated */
    char *name;                          /* may be NULL */
    char *peer_control; /* of a primary: where its secondary takes checkpoints; or NULL */
    char *state;        /* folder of the group's record; NULL: none is kept */
    enum group_durability durability; /* with a state folder */
    bool insecure;
    int passed_fd; /* a listening socket that the process was started with; 0: none. The NBD server
                    * "default", unless one with addr.type=fd takes it */
    struct config_item *items;
    size_t item_count;
    struct config_chardev *chardevs;
    size_t chardev_count;
};

/* Zeroed memory is an empty configuration. */
void config_release(struct config *config);

/* Each takes the text of one option of the command line: dotted keys or JSON. */
int config_add_blockdev(struct config *config, const char *text, struct err *err);
int config_add_object(struct config *config, const char *text, struct err *err);
int config_add_nbd_server(struct config *config, const char *text, struct err *err);
int config_add_export(struct config *config, const char *text, struct err *err);
int config_add_chardev(struct config *config, const char *text, struct err *err);
int config_add_monitor(struct config *config, const char *text, struct err *err);
/* "unix:PATH" or "inet:HOST:PORT", then ",role=full|peer" and ",tls-creds=ID" perhaps. */
int config_add_qmp(struct config *config, const char *text, struct err *err);

int config_durability(const char *text, enum group_durability *ret_level, struct err *err);

/* Options that are already a tree; takes the reference, also on failure. NULL: memory is out. */
int config_add_blockdev_json(struct config *config, struct json_object *options, struct err *err);

/* After all have been added: contradictions between them (listeners that need --insecure). */
int config_check(const struct config *config, struct err *err);

#endif
