/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS on sockets. Credentials are loaded once and shared by many sockets; sock_start_tls() puts TLS
 * on a connected one, and from then on sock_recv(), sock_send() and sock_send_now() of sock.h go
 * through it, on either loop. docs/security.md tells what a folder of credentials holds.
 *
 * TLS 1.3 and 1.2 only, no renegotiation, no session tickets. A stream that ends without the peer's
 * good-bye is an error (-ECONNRESET), not an end: somebody may have cut it. We say ours in sock_close(),
 * and in sock_shutdown() with 0, -ECONNABORTED or -ESHUTDOWN, unless bytes are still on their way.
 *
 * Each step of a handshake runs on the offload pool, so that its arithmetic holds up no other client.
 * Encryption runs in the loop's thread, at most TLS_OUT_BYTES at a time.
 *
 * On the simulator credentials come from the real disk and randomness from GnuTLS, not from the seed.
 */
#ifndef BLOCKSTEP_LOOP_TLS_H
#define BLOCKSTEP_LOOP_TLS_H

#include "loop/sock.h"

#define TLS_OUT_BYTES            (256u * 1024)  /* encrypted and not yet sent, for each socket */
#define TLS_IN_BYTES             (128u * 1024)  /* received and not yet decrypted */
#define TLS_CREDENTIAL_MAX_BYTES (1024u * 1024) /* of one file */
#define TLS_MAX_KEYS             4096u          /* lines of keys.psk */
#define TLS_PSK_USERNAME         "qemu"         /* who a PSK client is unless told otherwise */

enum tls_kind { TLS_X509, TLS_PSK };
enum tls_endpoint { TLS_SERVER, TLS_CLIENT };

struct tls_creds_options {
    enum tls_kind kind;
    enum tls_endpoint endpoint;
    const char *folder;
    bool verify_peer; /* x509: a server asks for client certificates, a client checks the server */
    const char *username; /* PSK client; NULL: TLS_PSK_USERNAME */
    const char *password; /* x509: of an encrypted private key; NULL: none */
};

/* Immutable once loaded, and counted; the count belongs to the loop's thread. */
struct tls_creds;

/* Reads the folder on the offload pool. Errors name the file and say what to do. */
int tls_creds_load(struct loop *loop, const struct tls_creds_options *options,
                   struct tls_creds **ret_creds, struct err *err) MAY_WAIT;
struct tls_creds *tls_creds_ref(struct tls_creds *creds);
void tls_creds_unref(struct tls_creds *creds); /* NULL is fine */
enum tls_endpoint tls_creds_endpoint(const struct tls_creds *creds);
/* When the first of the certificates ends, its own or its authority's, in seconds since 1970 UTC;
 * TLS_EXPIRES_NEVER: shared keys do not. */
#define TLS_EXPIRES_NEVER     INT64_MAX
/* Time enough to get others. */
#define TLS_EXPIRES_SOON_DAYS 30
int64_t tls_creds_expires_s(const struct tls_creds *creds);
/* A peer that gets through has proved who it is, or that it knows the key. */
bool tls_creds_prove_peer(const struct tls_creds *creds);

/*
 * The handshake, in the role that the credentials have. Nobody else is inside a call of the socket.
 * `hostname`: what the server's certificate must be for (a name or an address); clients with x509 that
 * verify need it, others may pass NULL. The caller sets sock_deadline() before, which covers it. After
 * a failure the socket is of no use: sock_close() it.
 */
int sock_start_tls(struct sock *sock, struct tls_creds *creds, const char *hostname,
                   struct err *err) MAY_WAIT;
bool sock_is_tls(const struct sock *sock);
/* Who the peer has proved to be: a certificate's distinguished name, or the PSK user; "" when it has
 * not. For logs. Text lives as long as the socket. */
const char *sock_tls_peer(const struct sock *sock);

/* How the peer has put an end to it, by an alert, and what to do; NULL: it has not. With TLS 1.3 a client
 * learns by the first recv only that its certificate will not do. Text lives as long as the socket. */
const char *sock_tls_refusal(const struct sock *sock);

/* --- without a loop: for programs that do one thing after the other --- */

/* As tls_creds_load(), in the calling thread. */
int tls_creds_load_now(const struct tls_creds_options *options, struct tls_creds **ret_creds,
                       struct err *err);

struct tls_stream;
/* On a connected descriptor, which stays the caller's. `timeout_ms` is for each wait of the handshake and
 * of sending. */
int tls_stream_start(int fd, struct tls_creds *creds, const char *hostname, int timeout_ms,
                     struct tls_stream **ret_stream, struct err *err);
void tls_stream_free(struct tls_stream *stream); /* NULL is fine */
/* 1 to length_bytes bytes, 0 at the end, -EAGAIN when nothing comes for that time, or -errno. What has
 * been decrypted and not been taken is not seen by poll(): ask here first. */
ssize_t tls_stream_recv(struct tls_stream *stream, void *bytes, size_t length_bytes,
                        int timeout_ms);
/* As sock_tls_refusal(). */
const char *tls_stream_refusal(const struct tls_stream *stream);
int tls_stream_send(struct tls_stream *stream, const void *bytes, size_t length_bytes);

#endif
