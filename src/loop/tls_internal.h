/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tls.c, tls_creds.c and sock.c share. */
#ifndef BLOCKSTEP_LOOP_TLS_INTERNAL_H
#define BLOCKSTEP_LOOP_TLS_INTERNAL_H

#include "loop/loop_internal.h"
#include "loop/tls.h"

#include <gnutls/gnutls.h>

/* One line of keys.psk. */
struct tls_psk {
    char *username;
    gnutls_datum_t key; /* raw bytes */
};

struct tls_creds {
    unsigned refs;
    enum tls_kind kind;
    enum tls_endpoint endpoint;
    bool verify_peer;
    int64_t expires_s;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_priority_t priority;
    struct tls_psk *keys; /* of a PSK server */
    size_t key_count;
};

enum tls_file_kind { TLS_FILE_PUBLIC, TLS_FILE_SECRET };
/* The whole of a file, with a zero byte behind it that does not count. A secret that everybody may use is
 * refused. -ENOENT without an error set when there is no such file. */
int tls_file_load(const char *path, enum tls_file_kind kind, gnutls_datum_t *ret_text,
                  struct err *err);
void tls_datum_wipe(gnutls_datum_t *datum);

/* Behind sock.c, once sock->tls is set. */
ssize_t tls_recv(struct sock *sock, void *bytes, size_t length_bytes) MAY_WAIT;
int tls_send(struct sock *sock, struct iovec *iov, int count) MAY_WAIT;
ssize_t tls_send_now(struct sock *sock, const struct iovec *iov, int count);
/* Says good-bye if it can be done at once. */
void tls_bye(struct sock *sock);
void tls_free(struct sock *sock);

#endif
