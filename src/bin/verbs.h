/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The verbs of `blockstep`, and what those that talk to a daemon share. */
#ifndef BLOCKSTEP_BIN_VERBS_H
#define BLOCKSTEP_BIN_VERBS_H

#include "bin/cli.h"
#include "bin/qmp_client.h"
#include "bin/tls_options.h"

#include <getopt.h>

int verb_primary(int argc, char **argv);
int verb_secondary(int argc, char **argv);
int verb_doctor(int argc, char **argv);
int verb_events(int argc, char **argv);
int verb_wait(int argc, char **argv);
int verb_status(int argc, char **argv);
int verb_graph(int argc, char **argv);
int verb_checkpoint(int argc, char **argv);
int verb_failover(int argc, char **argv);
int verb_stop(int argc, char **argv);
int verb_image(int argc, char **argv);
int verb_qmp(int argc, char **argv);

/* --- which daemon, and how to answer --- */

struct target {
    const char *name;    /* --name */
    const char *address; /* --qmp */
    bool json;           /* -o json */
    struct tls_options tls;
};

#define TARGET_SHORT_OPTIONS "n:o:h"
#define TARGET_LONG_OPTIONS                                                              \
    TLS_LONG_OPTIONS, {"name", required_argument, NULL, 'n'},                            \
        {"qmp", required_argument, NULL, 'q'}, {"output", required_argument, NULL, 'o'}, \
    {                                                                                    \
        "help", no_argument, NULL, 'h'                                                   \
    }
#define TARGET_HELP                                                                 \
    "  -n, --name NAME        the daemon's name (needless if there is only one)\n"  \
    "      --qmp ADDRESS      its control socket instead: unix:PATH or HOST:PORT\n" \
    "      --tls-creds-dir DIR\n"                                                   \
    "                         speak TLS to HOST:PORT, with the credentials there\n" \
    "      --tls KIND         what they are: x509 (default) or psk\n"               \
    "      --tls-username USER\n"                                                   \
    "                         whose key of keys.psk is used (default: qemu)\n"      \
    "      --tls-password-file FILE\n"                                              \
    "                         holds the password of an encrypted private key\n"     \
    "  -o, --output FORMAT    text (default) or json\n"

/* Takes one of the options above; -EINVAL after a message. 'h' is the verb's. */
int target_take(struct target *target, int option);
#define TARGET_ADDRESS_BYTES 512
/* After all have been taken: where it is; EXIT_OK, or a message and another exit code. */
int target_address(struct target *target, char address[TARGET_ADDRESS_BYTES]);
/* Connects; EXIT_OK, or a message and another exit code. */
int target_connect(struct target *target, struct qmp_client **ret_client);

/* Runs a command; EXIT_OK, or a message that begins with `what`, and EXIT_FAILED. */
int verb_run(struct qmp_client *client, const char *what, const char *command,
             struct json_object *arguments, struct json_object **ret_result);

#endif
