/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options that say with which credentials the verbs speak TLS over TCP. */
#ifndef BLOCKSTEP_BIN_TLS_OPTIONS_H
#define BLOCKSTEP_BIN_TLS_OPTIONS_H

#include "loop/tls.h"

#include <getopt.h>

#define TLS_PASSWORD_BYTES 512u /* with the final zero */

struct tls_options {
    const char *folder; /* NULL: no TLS */
    const char *username;
    const char *password_file;
    char password[TLS_PASSWORD_BYTES]; /* of the file, after tls_options_check() */
    enum tls_kind kind;
    bool kind_given;
};

enum { TLS_OPTION_FOLDER = 1000, TLS_OPTION_KIND, TLS_OPTION_USERNAME, TLS_OPTION_PASSWORD };

#define TLS_LONG_OPTIONS                                                  \
    {"tls-creds-dir", required_argument, NULL, TLS_OPTION_FOLDER},        \
        {"tls", required_argument, NULL, TLS_OPTION_KIND},                \
        {"tls-username", required_argument, NULL, TLS_OPTION_USERNAME},   \
    {                                                                     \
        "tls-password-file", required_argument, NULL, TLS_OPTION_PASSWORD \
    }

/* -1: taken; EXIT_USAGE after a message; 0: not one of these. */
int tls_options_take(struct tls_options *tls, int option);
/* After all have been taken; reads the password. -1, or an exit code after a message. */
int tls_options_check(struct tls_options *tls);
/* What a client loads; NULL: no TLS. Into `creds`, which is returned. */
const struct tls_creds_options *tls_options_client(const struct tls_options *tls,
                                                   struct tls_creds_options *creds);

#endif
