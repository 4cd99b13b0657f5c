/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/tls_options.h"

#include "bin/cli.h"

#include <string.h>

int tls_options_take(struct tls_options *tls, int option)
{
    switch (option) {
    case TLS_OPTION_FOLDER:
        tls->folder = optarg;
        return -1;
    case TLS_OPTION_USERNAME:
        tls->username = optarg;
        return -1;
    case TLS_OPTION_KIND:
        if (strcmp(optarg, "x509") != 0 && strcmp(optarg, "psk") != 0)
            return cli_usage_error("--tls: '%s' is none of x509, psk", optarg);
        tls->kind = optarg[0] == 'p' ? TLS_PSK : TLS_X509;
        tls->kind_given = true;
        return -1;
    default:
        return 0;
    }
}

int tls_options_check(const struct tls_options *tls)
{
    if (tls->folder == NULL && (tls->kind_given || tls->username != NULL))
        return cli_usage_error("--tls and --tls-username are of use with --tls-creds-dir only");
    if (tls->username != NULL && tls->kind != TLS_PSK)
        return cli_usage_error("--tls-username is of use with --tls psk only");
    return -1;
}

const struct tls_creds_options *tls_options_client(const struct tls_options *tls,
                                                   struct tls_creds_options *creds)
{
    if (tls->folder == NULL)
        return NULL;
    *creds = (struct tls_creds_options){
        .kind = tls->kind,
        .endpoint = TLS_CLIENT,
        .folder = tls->folder,
        .verify_peer = true,
        .username = tls->username,
    };
    return creds;
}
