/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/tls_options.h"

#include "bin/cli.h"
#include "loop/secret.h"

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
    case TLS_OPTION_PASSWORD:
        tls->password_file = optarg;
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

static int read_password(struct tls_options *tls)
{
    const struct secret_options options = {.file = tls->password_file};
    struct secret secret = {NULL, 0};
    struct err err = ERR_INIT;
    int code = -1;

    if (secret_load_now(&options, &secret, &err) < 0) {
        cli_error("--tls-password-file: %s", err.text);
        return EXIT_FAILED;
    }
    if (secret_text(&secret) == NULL || secret.length_bytes >= sizeof(tls->password)) {
        cli_error("--tls-password-file: '%s' is no password: it has zero bytes, or more than %zu",
                  tls->password_file, sizeof(tls->password) - 1);
        code = EXIT_FAILED;
    } else {
        memcpy(tls->password, secret.bytes, secret.length_bytes + 1);
    }
    secret_release(&secret);
    return code;
}

int tls_options_check(struct tls_options *tls)
{
    if (tls->folder == NULL &&
        (tls->kind_given || tls->username != NULL || tls->password_file != NULL))
        return cli_usage_error("--tls, --tls-username and --tls-password-file are of use with "
                               "--tls-creds-dir only");
    if (tls->password_file != NULL && tls->kind != TLS_X509)
        return cli_usage_error("--tls-password-file is of use with --tls x509 only");
    if (tls->username != NULL && tls->kind != TLS_PSK)
        return cli_usage_error("--tls-username is of use with --tls psk only");
    return tls->password_file != NULL ? read_password(tls) : -1;
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
        .password = tls->password_file != NULL ? tls->password : NULL,
    };
    return creds;
}
