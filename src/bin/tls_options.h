/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options that say with which credentials the verbs speak TLS over TCP. */
#ifndef BLOCKSTEP_BIN_TLS_OPTIONS_H
#define BLOCKSTEP_BIN_TLS_OPTIONS_H

#include "loop/tls.h"

#include <getopt.h>

struct tls_options {
    const char *folder; /* NULL: no TLS */
    const char *username;
    enum tls_kind kind;
    bool kind_given;
};

enum { TLS_OPTION_FOLDER = 1000, TLS_OPTION_KIND, TLS_OPTION_USERNAME };

#define TLS_LONG_OPTIONS                                             \
    {"tls-creds-dir", required_argument, NULL, TLS_OPTION_FOLDER},   \
        {"tls", required_argument, NULL, TLS_OPTION_KIND},           \
    {                                                                \
        "tls-username", required_argument, NULL, TLS_OPTION_USERNAME \
    }

/* -1: taken; EXIT_USAGE after a message; 0: not one of these. */
int tls_options_take(struct tls_options *tls, int option);
/* After all have been taken: -1, or EXIT_USAGE after a message. */
int tls_options_check(const struct tls_options *tls);
/* What a client loads; NULL: no TLS. Into `creds`, which is returned. */
const struct tls_creds_options *tls_options_client(const struct tls_options *tls,
                                                   struct tls_creds_options *creds);

#endif
