/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What `blockstep primary` and `blockstep secondary` share: options, and steps of the assembly. */
#ifndef BLOCKSTEP_BIN_SERVE_H
#define BLOCKSTEP_BIN_SERVE_H

#include "bin/verbs.h"
#include "control/daemon.h"

#define SERVE_MAX_DISKS 32u
#define SERVER_PEER     "peer"
#define SERVER_USER     "user"

struct serve_disk {
    char name[32];
    const char *path;
    uint64_t length_bytes; /* known when its node is there */
};

struct serve {
    const char *name, *state, *overlays;
    const char *listen, *control;    /* secondary */
    const char *peer, *peer_control; /* primary */
    const char *export;
    const char *log_level, *features_off;
    const char *runas;      /* NULL: stay who we are */
    struct tls_options tls; /* of TCP listeners, and towards the peer */
    bool insecure, json;
    bool sync;        /* the disks are not equal yet: the primary's are copied first */
    bool run_standby; /* a VM runs on the secondary: its export is writable from the start */
    enum replication_overlays on_overlays;
    enum group_durability durability;
    struct serve_disk disks[SERVE_MAX_DISKS];
    size_t disk_count;

    /* While it runs. */
    struct daemon *daemon;
    int passed_fd; /* 0: none; else systemd's socket for the user's clients */
    char qmp[300];
    char state_folder[300];
    size_t control_index; /* of the listeners of the control server */
};

/* Runs the daemon in the foreground: `assemble` in it when the frame stands; the exit code. */
int serve_run(struct serve *serve, enum replication_mode mode,
              int (*assemble)(struct serve *serve, struct err *err));

/* Takes the socket that systemd passed, if there is one; -EINVAL after a message. */
int serve_passed_fd(struct serve *serve);

/* Options that both verbs have; -1: go on, else an exit code. */
int serve_take(struct serve *serve, int option);
#define SERVE_LONG_OPTIONS                                                                     \
    TLS_LONG_OPTIONS, {"name", required_argument, NULL, 'n'},                                  \
        {"disk", required_argument, NULL, 'd'}, {"state", required_argument, NULL, 's'},       \
        {"export", required_argument, NULL, 'e'}, {"insecure", no_argument, NULL, 'I'},        \
        {"output", required_argument, NULL, 'o'}, {"log-level", required_argument, NULL, 'L'}, \
        {"runas", required_argument, NULL, 'u'}, {"trace", required_argument, NULL, 'T'},      \
        {"loop-features-off", required_argument, NULL, 'F'},                                   \
    {                                                                                          \
        "help", no_argument, NULL, 'h'                                                         \
    }
#define SERVE_HELP                                                                                  \
    "  -n, --name NAME            what other verbs call this daemon (required)\n"                   \
    "      --disk [NAME=]PATH     a disk; repeat for several (default names: disk0, disk1, ...)\n"  \
    "      --export unix:PATH     where the user's NBD clients connect; exports have the disks'\n"  \
    "                             names\n"                                                          \
    "      --state DIR            the daemon's own folder (default: /var/lib/blockstep/NAME; not\n" \
    "                             for root: ~/.local/state/blockstep/NAME)\n"                       \
    "      --tls-creds-dir DIR    speak TLS on all TCP connections, with the credentials there\n"   \
    "      --tls KIND             what they are: x509 (default) or psk\n"                           \
    "      --tls-username USER    whose key of keys.psk is used (default: qemu)\n"                  \
    "      --tls-password-file FILE\n"                                                              \
    "                             holds the password of encrypted private keys, and no line end\n"  \
    "      --insecure             allow TCP listeners that other hosts can reach without TLS\n"     \
    "  -o, --output FORMAT        how to say that all is ready: text (default) or json\n"           \
    "      --runas USER[:GROUP]   become that user before anything is opened\n"                     \
    "      --log-level LEVEL      error, warning, info (default), debug, trace\n"                   \
    "      --trace PATTERN        switch trace points on\n"

/* --- steps --- */
/* The credentials for an end of a TCP connection, made at the first use: their id; NULL: no TLS. */
#define SERVE_TLS_SERVER   "tls-server"
#define SERVE_TLS_CLIENT   "tls-client"
#define SERVE_TLS_PASSWORD "tls-password"
int serve_tls(struct serve *serve, enum tls_endpoint endpoint, const char **ret_id, struct err *err)
    MAY_WAIT;
/* Adds a node from the options; takes the reference. */
int serve_node(struct serve *serve, const struct serve_disk *disk, struct json_object *options,
               struct node **ret_node, struct err *err) MAY_WAIT;
/* "NAME-SUFFIX", the name of a disk's node. */
const char *serve_node_name(const struct serve_disk *disk, const char *suffix,
                            char name[NODE_NAME_BYTES]);
/* {"driver": DRIVER, "node-name": NAME-SUFFIX}; NULL when memory is out. */
struct json_object *serve_options(const struct serve_disk *disk, const char *driver,
                                  const char *suffix);
/* {"driver": "file", "filename": PATH} */
struct json_object *serve_file_options(const char *path);
/* The user's NBD server: where --export says, or on the socket that systemd passed. */
int serve_listen_user(struct serve *serve, struct err *err) MAY_WAIT;
/* An NBD server at "unix:PATH" or "HOST:PORT". */
int serve_listen(struct serve *serve, const char *id, const char *address, const char *option,
                 struct err *err) MAY_WAIT;
int serve_export(struct serve *serve, const struct serve_disk *disk, const char *server,
                 const char *node_name, bool writable, bool after_failover, struct err *err)
    MAY_WAIT;
/* A control listener. */
int serve_control(struct serve *serve, const char *address, enum qmp_role role, const char *option,
                  struct err *err) MAY_WAIT;

#endif
