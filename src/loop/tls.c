/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS as a filter between the face of a socket and the backend's hooks. GnuTLS never waits here: it
 * takes what has been received from one buffer and puts what is to be sent into another, and says
 * "again" when the first is empty; the coroutine that called moves bytes between these and the
 * backend. So the same code runs on both loops, and a handshake's step can run on another thread.
 */
#include "loop/tls_internal.h"

#include "base/log.h"

#include <gnutls/x509.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define RECORD_BYTES       16384u         /* of plain text, at most */
#define RECORD_EXTRA_BYTES 512u           /* head, padding and tag */
#define TURN_BYTES         (1024u * 1024) /* that one call encrypts before others get a turn */
#define PEER_BYTES         256u
#define REFUSAL_BYTES      256u

struct tls {
    gnutls_session_t session;
    struct tls_creds *creds;
    char *hostname;
    bool established;
    bool starved; /* GnuTLS wanted more than was there */
    bool in_ended;
    int code; /* of a step of the handshake */
    gnutls_typed_vdata_st verify[2];
    /* Received: [in_begin, in_end). To be sent: [out_begin, out_end). */
    uint8_t *in, *out;
    size_t in_begin, in_end, out_begin, out_end;
    uint8_t *stage; /* small stretches are put together here, a record at a time */
    /* How the stream has ended for the receiver; and why nothing can be sent any more. */
    bool recv_ended;
    int recv_error, send_error;
    /* sock_send_now() has to say that something is left as long as the kernel has not taken all; so
     * the caller comes back with this byte, which is in `out` already. */
    bool owed;
    char peer[PEER_BYTES];
    char refusal[REFUSAL_BYTES]; /* by an alert of the peer's; "": it has sent none */
};

/* --- GnuTLS's way to the buffers --- */

static ssize_t tls_pull(gnutls_transport_ptr_t arg, void *bytes, size_t length_bytes)
{
    struct tls *tls = arg;
    size_t got = MIN(length_bytes, tls->in_end - tls->in_begin);

    if (got == 0 && tls->in_ended)
        return 0;
    if (got == 0) {
        tls->starved = true;
        gnutls_transport_set_errno(tls->session, EAGAIN);
        return -1;
    }
    memcpy(bytes, tls->in + tls->in_begin, got);
    tls->in_begin += got;
    return (ssize_t)got;
}

static int tls_pull_timeout(gnutls_transport_ptr_t arg, unsigned milliseconds)
{
    const struct tls *tls = arg;

    return tls->in_end > tls->in_begin || tls->in_ended;
}

/* Whoever encrypts has made room; what else may come (alerts, answers to key updates) is small, and a
 * peer that provokes more than there is room for loses its connection. */
static ssize_t tls_push(gnutls_transport_ptr_t arg, const giovec_t *iov, int count)
{
    struct tls *tls = arg;
    size_t total = 0;

    for (int i = 0; i < count; i++)
        total += iov[i].iov_len;
    if (total > TLS_OUT_BYTES - tls->out_end) {
        gnutls_transport_set_errno(tls->session, EPIPE);
        return -1;
    }
    for (int i = 0; i < count; i++) {
        memcpy(tls->out + tls->out_end, iov[i].iov_base, iov[i].iov_len);
        tls->out_end += iov[i].iov_len;
    }
    return (ssize_t)total;
}

/* With TLS 1.3 a client learns only after its handshake that the server has refused it. */
static int alert_errno(int alert)
{
    switch (alert) {
    case GNUTLS_A_BAD_CERTIFICATE:
    case GNUTLS_A_UNSUPPORTED_CERTIFICATE:
    case GNUTLS_A_CERTIFICATE_REVOKED:
    case GNUTLS_A_CERTIFICATE_EXPIRED:
    case GNUTLS_A_CERTIFICATE_UNKNOWN:
    case GNUTLS_A_CERTIFICATE_REQUIRED:
    case GNUTLS_A_UNKNOWN_CA:
    case GNUTLS_A_ACCESS_DENIED:
        return -EACCES;
    default:
        return -ECONNABORTED;
    }
}

static const char *alert_advice(const struct tls *tls, int errno_of)
{
    bool server = tls->creds->endpoint == TLS_SERVER;

    if (tls->creds->kind == TLS_PSK)
        return "; do both sides have the same user with the same key?";
    if (errno_of != -EACCES)
        return "; does it want credentials of another kind (x509, psk)?";
    return server ? "; the certificate of this side is not one that it believes"
                  : "; is client-cert.pem there, and of an authority that the server believes?";
}

/* Notes the alert that the peer has sent; its errno. */
static int take_refusal(struct tls *tls)
{
    gnutls_alert_description_t alert = gnutls_alert_get(tls->session);
    int result = alert_errno((int)alert);

    snprintf(tls->refusal, sizeof(tls->refusal), "the %s refused it: %s%s",
             tls->creds->endpoint == TLS_SERVER ? "client" : "server", gnutls_alert_get_name(alert),
             alert_advice(tls, result));
    return result;
}

static int tls_errno(int code)
{
    switch (code) {
    case GNUTLS_E_PREMATURE_TERMINATION:
        return -ECONNRESET;
    case GNUTLS_E_MEMORY_ERROR:
        return -ENOMEM;
    case GNUTLS_E_PUSH_ERROR:
    case GNUTLS_E_INVALID_SESSION:
        return -EPIPE;
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return -ECONNABORTED;
    default:
        return -EPROTO;
    }
}

/* --- moving encrypted bytes --- */

static void out_advance(struct tls *tls, size_t bytes)
{
    tls->out_begin += bytes;
    if (tls->out_begin == tls->out_end)
        tls->out_begin = tls->out_end = 0;
}

/* Sends what is encrypted. The receiver may add to it meanwhile. */
static int tls_flush(struct sock *sock) MAY_WAIT
{
    struct tls *tls = sock->tls;

    while (tls->out_begin < tls->out_end) {
        size_t bytes = tls->out_end - tls->out_begin;
        struct iovec iov = {tls->out + tls->out_begin, bytes};
        int result = sock->loop->ops->sock_send(sock, &iov, 1);

        if (sock->shut != 0)
            return sock->shut;
        if (result < 0)
            return result;
        out_advance(tls, bytes);
    }
    return 0;
}

/* As far as it goes without waiting; a failure is found again by who waits. */
static void tls_flush_now(struct sock *sock)
{
    struct tls *tls = sock->tls;
    ssize_t put = 1;

    while (!sock->sending && put > 0 && tls->out_begin < tls->out_end) {
        struct iovec iov = {tls->out + tls->out_begin, tls->out_end - tls->out_begin};

        put = sock->loop->ops->sock_send_now(sock, &iov, 1);
        if (put > 0)
            out_advance(tls, (size_t)put);
    }
}

static int tls_fill(struct sock *sock) MAY_WAIT
{
    struct tls *tls = sock->tls;

    assert(tls->in_begin == tls->in_end);
    tls->in_begin = tls->in_end = 0;
    ssize_t got = sock->loop->ops->sock_recv(sock, tls->in, TLS_IN_BYTES);
    if (sock->shut != 0)
        return sock->shut;
    if (got < 0)
        return (int)got;
    tls->in_ended = got == 0;
    tls->in_end = (size_t)got;
    return 0;
}

/* --- receiving --- */

static int recv_end(struct tls *tls, int result)
{
    tls->recv_ended = true;
    tls->recv_error = result;
    return result;
}

static int recv_fail(struct sock *sock, int code)
{
    if (code != GNUTLS_E_FATAL_ALERT_RECEIVED)
        return tls_errno(code);
    int result = take_refusal(sock->tls);
    log_warning("tls", "%s: %s", sock->peer_name, sock->tls->refusal);
    return result;
}

ssize_t tls_recv(struct sock *sock, void *bytes, size_t length_bytes)
{
    struct tls *tls = sock->tls;
    size_t done = 0;

    while (done < length_bytes) {
        if (tls->recv_ended)
            return done > 0 ? (ssize_t)done : tls->recv_error;
        tls->starved = false;
        ssize_t got = gnutls_record_recv(tls->session, (uint8_t *)bytes + done,
                                         length_bytes - done);
        tls_flush_now(sock); /* an answer to a key update */
        if (got > 0) {
            done += (size_t)got;
        } else if (got != GNUTLS_E_AGAIN && got != GNUTLS_E_INTERRUPTED) {
            recv_end(tls, got == 0 ? 0 : recv_fail(sock, (int)got));
        } else if (tls->starved) {
            if (done > 0)
                break;
            int result = tls_fill(sock);
            if (result < 0)
                return recv_end(tls, result);
        }
    }
    return (ssize_t)done;
}

/* --- sending --- */

/* What is left of a vector that is sent piece by piece; the entries themselves do not change. */
struct source {
    const struct iovec *iov;
    int count;
    size_t offset; /* within iov[0] */
};

static void source_advance(struct source *source, size_t bytes)
{
    source->offset += bytes;
    while (source->count > 0 && source->offset >= source->iov->iov_len) {
        source->offset -= source->iov->iov_len;
        source->iov++;
        source->count--;
    }
}

/* The next record's bytes: in place when they lie together, else copied to the stage. */
static const uint8_t *source_peek(const struct source *source, uint8_t *stage, size_t *ret_bytes)
{
    size_t have = MIN(source->iov->iov_len - source->offset, (size_t)RECORD_BYTES);
    const uint8_t *first = (const uint8_t *)source->iov->iov_base + source->offset;

    *ret_bytes = have;
    if (have == RECORD_BYTES || source->count == 1)
        return first;
    memcpy(stage, first, have);
    for (int i = 1; i < source->count && have < RECORD_BYTES; i++) {
        size_t part = MIN(source->iov[i].iov_len, RECORD_BYTES - have);

        memcpy(stage + have, source->iov[i].iov_base, part);
        have += part;
    }
    *ret_bytes = have;
    return stage;
}

/* Encrypts as much as there is room for: bytes taken, or -errno. */
static ssize_t tls_encrypt(struct tls *tls, struct source *source)
{
    size_t taken = 0;

    if (tls->send_error != 0)
        return tls->send_error;
    while (source->count > 0 &&
           TLS_OUT_BYTES - tls->out_end >= 2 * (RECORD_BYTES + RECORD_EXTRA_BYTES)) {
        size_t bytes;
        const uint8_t *record = source_peek(source, tls->stage, &bytes);
        ssize_t put = gnutls_record_send(tls->session, record, bytes);

        if (put < 0)
            return tls->send_error = tls_errno((int)put);
        source_advance(source, (size_t)put);
        taken += (size_t)put;
    }
    return (ssize_t)taken;
}

static void source_skip_owed(struct tls *tls, struct source *source)
{
    if (tls->owed && source->count > 0) {
        source_advance(source, 1);
        tls->owed = false;
    }
}

int tls_send(struct sock *sock, struct iovec *iov, int count)
{
    struct tls *tls = sock->tls;
    struct source source = {iov, count, 0};
    uint64_t turn = sock->loop->stats.turns;
    size_t since_turn = 0;

    source_advance(&source, 0);
    source_skip_owed(tls, &source);
    int result = tls_flush(sock);
    while (result == 0 && source.count > 0) {
        ssize_t taken = tls_encrypt(tls, &source);
        if (taken < 0)
            return (int)taken;
        result = tls_flush(sock);
        since_turn = turn == sock->loop->stats.turns ? since_turn + (size_t)taken : 0;
        turn = sock->loop->stats.turns;
        if (since_turn >= TURN_BYTES) {
            co_sleep(1);
            since_turn = 0;
            result = result == 0 ? sock->shut : result;
        }
    }
    return result;
}

ssize_t tls_send_now(struct sock *sock, const struct iovec *iov, int count)
{
    struct tls *tls = sock->tls;
    struct source source = {iov, count, 0};
    ssize_t owed = tls->owed;

    source_advance(&source, 0);
    if (source.count == 0)
        return 0;
    tls_flush_now(sock);
    if (tls->out_begin < tls->out_end)
        return 0;
    source_skip_owed(tls, &source);
    ssize_t taken = tls_encrypt(tls, &source);
    if (taken < 0)
        return taken;
    tls_flush_now(sock);
    if (tls->out_begin == tls->out_end)
        return owed + taken;
    tls->owed = true;
    return owed + taken - 1;
}

/* --- handshake --- */

static int handshake_step(void *arg)
{
    struct tls *tls = arg;
    int code;

    do {
        tls->starved = false;
        code = gnutls_handshake(tls->session);
    } while (code < 0 && !gnutls_error_is_fatal(code) && !tls->starved);
    if (code < 0 && gnutls_error_is_fatal(code))
        (void)gnutls_alert_send_appropriate(tls->session, code);
    tls->code = code;
    return 0;
}

/* What the certificate lacks, and what to do; NULL: something rare, for GnuTLS to say. */
static const char *verify_reason(unsigned status)
{
    if ((status & GNUTLS_CERT_REVOKED) != 0)
        return "it has been revoked (ca-crl.pem)";
    if ((status & GNUTLS_CERT_SIGNER_NOT_FOUND) != 0)
        return "its authority is not among those in ca-cert.pem of this side";
    if ((status & GNUTLS_CERT_EXPIRED) != 0)
        return "it has expired; replace it there";
    if ((status & GNUTLS_CERT_NOT_ACTIVATED) != 0)
        return "it is not valid yet; check the clocks of both hosts";
    if ((status & GNUTLS_CERT_PURPOSE_MISMATCH) != 0)
        return "it is for another purpose (tls_www_server and tls_www_client are told apart)";
    return NULL;
}

static int fail_verify(const struct tls *tls, struct err *err)
{
    unsigned status = gnutls_session_get_verify_cert_status(tls->session);
    bool server = tls->creds->endpoint == TLS_SERVER;
    const char *reason = verify_reason(status);
    gnutls_datum_t text = {NULL, 0};

    if ((status & GNUTLS_CERT_UNEXPECTED_OWNER) != 0 && !server)
        return err_set(err, -EPERM,
                       "the server's certificate is not for '%s'; connect by the name that it has, "
                       "or say it with tls-hostname",
                       tls->hostname);
    if (reason == NULL &&
        gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) == 0)
        reason = (const char *)text.data;
    err_set(err, -EPERM, "the %s's certificate is refused: %s", server ? "client" : "server",
            reason != NULL ? reason : "it cannot be verified");
    gnutls_free(text.data);
    return err->code;
}

/* What a server finds that has no such user, or another key: on purpose it cannot tell which. */
static bool is_wrong_key(const struct tls *tls, int code)
{
    return tls->creds->kind == TLS_PSK && tls->creds->endpoint == TLS_SERVER &&
           (code == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER || code == GNUTLS_E_DECRYPTION_FAILED);
}

static int fail_handshake(struct tls *tls, int code, struct err *err)
{
    bool server = tls->creds->endpoint == TLS_SERVER;

    if (is_wrong_key(tls, code))
        return err_set(err, -EPERM, "the client's user is not in keys.psk, or has another key");
    switch (code) {
    case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
        return fail_verify(tls, err);
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
    case GNUTLS_E_CERTIFICATE_REQUIRED:
        return err_set(err, -EPERM, "the %s sent no certificate", server ? "client" : "server");
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        code = take_refusal(tls);
        return err_set(err, code, "%s", tls->refusal);
    case GNUTLS_E_UNEXPECTED_PACKET:
    case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
    case GNUTLS_E_UNEXPECTED_PACKET_LENGTH:
    case GNUTLS_E_RECORD_OVERFLOW:
        return err_set(err, -EPROTO, "the %s does not speak TLS", server ? "client" : "server");
    case GNUTLS_E_INSUFFICIENT_CREDENTIALS:
    case GNUTLS_E_NO_CIPHER_SUITES:
        return err_set(err, -EPERM,
                       "the %s wants credentials of another kind: certificates (x509) and shared "
                       "keys (psk) do not go together",
                       server ? "client" : "server");
    case GNUTLS_E_PREMATURE_TERMINATION:
        return err_set(err, -ECONNRESET, "the %s closed the connection",
                       server ? "client" : "server");
    default:
        return err_set(err, tls_errno(code), "%s", gnutls_strerror(code));
    }
}

static int tls_handshake(struct sock *sock, struct err *err) MAY_WAIT
{
    struct tls *tls = sock->tls;

    for (;;) {
        int result = loop_offload(sock->loop, handshake_step, tls);

        if (result < 0)
            return err_set_errno(err, result, "no thread for it");
        result = sock->shut != 0 ? sock->shut : tls_flush(sock);
        if (tls->code < 0 && gnutls_error_is_fatal(tls->code) && sock->shut == 0)
            return fail_handshake(tls, tls->code, err);
        if (tls->code == 0 && result == 0)
            return 0;
        if (result == 0)
            result = tls_fill(sock);
        if (result == -ETIMEDOUT)
            return err_set(err, result, "it took too long");
        if (result < 0)
            return err_set_errno(err, result, "the connection ended");
    }
}

/* --- setting up --- */

static void set_verify(struct tls *tls)
{
    bool server = tls->creds->endpoint == TLS_SERVER;
    const char *purpose = server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;

    tls->verify[0] = (gnutls_typed_vdata_st){.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                             .data = (uint8_t *)(uintptr_t)purpose};
    tls->verify[1] = (gnutls_typed_vdata_st){.type = GNUTLS_DT_DNS_HOSTNAME,
                                             .data = (uint8_t *)tls->hostname};
    gnutls_session_set_verify_cert2(tls->session, tls->verify, server ? 1 : 2, 0);
}

static int set_creds(struct tls *tls)
{
    struct tls_creds *creds = tls->creds;
    gnutls_session_t session = tls->session;

    if (creds->kind == TLS_PSK && creds->endpoint == TLS_CLIENT)
        return gnutls_credentials_set(session, GNUTLS_CRD_PSK, creds->psk_client);
    if (creds->kind == TLS_PSK)
        return gnutls_credentials_set(session, GNUTLS_CRD_PSK, creds->psk_server);
    if (creds->endpoint == TLS_SERVER)
        gnutls_certificate_server_set_request(session, creds->verify_peer ? GNUTLS_CERT_REQUIRE
                                                                          : GNUTLS_CERT_IGNORE);
    if (creds->verify_peer)
        set_verify(tls);
    return gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, creds->x509);
}

static bool is_name(const char *hostname)
{
    return hostname != NULL && strchr(hostname, ':') == NULL &&
           strspn(hostname, "0123456789.") != strlen(hostname);
}

static int set_session(struct tls *tls)
{
    unsigned flags = GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS;
    bool server = tls->creds->endpoint == TLS_SERVER;
    int code = gnutls_init(&tls->session, flags | (server ? GNUTLS_SERVER : GNUTLS_CLIENT));

    if (code < 0)
        return code;
    gnutls_session_set_ptr(tls->session, tls->creds); /* for who looks keys up */
    gnutls_transport_set_ptr(tls->session, tls);
    gnutls_transport_set_pull_function(tls->session, tls_pull);
    gnutls_transport_set_pull_timeout_function(tls->session, tls_pull_timeout);
    gnutls_transport_set_vec_push_function(tls->session, tls_push);
    gnutls_handshake_set_timeout(tls->session, GNUTLS_INDEFINITE_TIMEOUT); /* the socket has one */
    code = gnutls_priority_set(tls->session, tls->creds->priority);
    if (code == 0 && !server && is_name(tls->hostname))
        code = gnutls_server_name_set(tls->session, GNUTLS_NAME_DNS, tls->hostname,
                                      strlen(tls->hostname));
    return code == 0 ? set_creds(tls) : code;
}

static void tls_delete(struct tls *tls)
{
    if (tls->session != NULL)
        gnutls_deinit(tls->session);
    tls_creds_unref(tls->creds);
    free(tls->hostname);
    free(tls->in);
    free(tls->out);
    free(tls->stage);
    free(tls);
}

static int tls_new(struct tls_creds *creds, const char *hostname, struct tls **ret_tls)
{
    struct tls *tls = calloc(1, sizeof(*tls));

    if (tls == NULL)
        return GNUTLS_E_MEMORY_ERROR;
    tls->creds = tls_creds_ref(creds);
    tls->hostname = hostname != NULL ? strdup(hostname) : NULL;
    /* Touched as far as they are used only. */
    tls->in = malloc(TLS_IN_BYTES);
    tls->out = malloc(TLS_OUT_BYTES);
    tls->stage = malloc(RECORD_BYTES);
    int code = GNUTLS_E_MEMORY_ERROR;
    if (tls->in != NULL && tls->out != NULL && tls->stage != NULL &&
        (hostname == NULL || tls->hostname != NULL))
        code = set_session(tls);
    if (code < 0) {
        tls_delete(tls);
        return code;
    }
    *ret_tls = tls;
    return 0;
}

static void name_peer(struct tls *tls)
{
    bool server = tls->creds->endpoint == TLS_SERVER;
    size_t bytes = sizeof(tls->peer);
    unsigned count = 0;

    if (tls->creds->kind == TLS_PSK) {
        const char *user = server ? gnutls_psk_server_get_username(tls->session) : NULL;
        snprintf(tls->peer, sizeof(tls->peer), "%s", user != NULL ? user : "");
        return;
    }
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(tls->session, &count);
    gnutls_x509_crt_t certificate;
    if (!tls->creds->verify_peer || count == 0 || gnutls_x509_crt_init(&certificate) < 0)
        return;
    if (gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) < 0 ||
        gnutls_x509_crt_get_dn(certificate, tls->peer, &bytes) < 0)
        tls->peer[0] = '\0';
    gnutls_x509_crt_deinit(certificate);
}

static void log_session(const struct sock *sock)
{
    char *how = gnutls_session_get_desc(sock->tls->session);

    log_debug("tls", "%s: '%s', %s", sock->peer_name, sock->tls->peer, how != NULL ? how : "?");
    gnutls_free(how);
}

int sock_start_tls(struct sock *sock, struct tls_creds *creds, const char *hostname,
                   struct err *err)
{
    bool server = creds->endpoint == TLS_SERVER;

    assert(sock->tls == NULL && !sock->listening && !sock->receiving && !sock->sending);
    assert(server || creds->kind != TLS_X509 || !creds->verify_peer || hostname != NULL);
    if (sock->shut != 0)
        return err_set_errno(err, sock->shut, "the connection ended");
    int code = tls_new(creds, hostname, &sock->tls);
    if (code < 0)
        return err_set(err, tls_errno(code), "TLS: %s", gnutls_strerror(code));
    sock->receiving = sock->sending = true;
    int result = tls_handshake(sock, err);
    sock->receiving = sock->sending = false;
    if (result < 0) {
        sock->tls->recv_ended = true;
        sock->tls->recv_error = sock->tls->send_error = result;
        return err_prefix(err, "TLS handshake with %s", sock->peer_name);
    }
    sock->tls->established = true;
    name_peer(sock->tls);
    log_session(sock);
    return 0;
}

bool sock_is_tls(const struct sock *sock)
{
    return sock->tls != NULL;
}

const char *sock_tls_peer(const struct sock *sock)
{
    return sock->tls != NULL ? sock->tls->peer : "";
}

const char *sock_tls_refusal(const struct sock *sock)
{
    return sock->tls != NULL && sock->tls->refusal[0] != '\0' ? sock->tls->refusal : NULL;
}

/* --- ending --- */

void tls_bye(struct sock *sock)
{
    struct tls *tls = sock->tls;

    /* Not in the middle of something: then the peer must learn that the stream was cut. */
    if (!tls->established || sock->sending || tls->send_error != 0 || tls->owed ||
        tls->out_begin < tls->out_end)
        return;
    tls->send_error = -EPIPE;
    sock->parting = true;
    if (gnutls_bye(tls->session, GNUTLS_SHUT_WR) == 0)
        tls_flush_now(sock);
}

void tls_free(struct sock *sock)
{
    tls_delete(TAKE_PTR(sock->tls));
}

/* --- without a loop --- */

struct tls_stream {
    struct tls *tls;
    int fd;
    int timeout_ms;
};

/* Sends what is encrypted; who cannot for the stream's timeout has lost the peer. */
static int stream_flush(struct tls_stream *stream)
{
    struct tls *tls = stream->tls;

    while (tls->out_begin < tls->out_end) {
        struct pollfd wait = {.fd = stream->fd, .events = POLLOUT};

        if (poll(&wait, 1, stream->timeout_ms) == 0)
            return -ETIMEDOUT;
        ssize_t put = send(stream->fd, tls->out + tls->out_begin, tls->out_end - tls->out_begin,
                           MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put > 0)
            out_advance(tls, (size_t)put);
        else if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
    return 0;
}

static int stream_fill(struct tls_stream *stream, int timeout_ms)
{
    struct pollfd wait = {.fd = stream->fd, .events = POLLIN};
    struct tls *tls = stream->tls;
    int ready = poll(&wait, 1, timeout_ms);

    assert(tls->in_begin == tls->in_end);
    if (ready <= 0)
        return ready == 0 || errno == EINTR ? -EAGAIN : -errno;
    ssize_t got = recv(stream->fd, tls->in, TLS_IN_BYTES, MSG_DONTWAIT);
    if (got < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    tls->in_begin = 0;
    tls->in_end = (size_t)got;
    tls->in_ended = got == 0;
    return 0;
}

static int stream_handshake(struct tls_stream *stream, struct err *err)
{
    struct tls *tls = stream->tls;

    for (;;) {
        handshake_step(tls);
        int result = stream_flush(stream);
        if (tls->code < 0 && gnutls_error_is_fatal(tls->code))
            return fail_handshake(tls, tls->code, err);
        if (tls->code == 0 && result == 0)
            return 0;
        if (result == 0)
            result = stream_fill(stream, stream->timeout_ms);
        if (result == -ETIMEDOUT || result == -EAGAIN)
            return err_set(err, -ETIMEDOUT, "it took too long");
        if (result < 0)
            return err_set_errno(err, result, "the connection ended");
    }
}

int tls_stream_start(int fd, struct tls_creds *creds, const char *hostname, int timeout_ms,
                     struct tls_stream **ret_stream, struct err *err)
{
    struct tls_stream *stream = calloc(1, sizeof(*stream));

    if (stream == NULL)
        return err_no_memory(err);
    *stream = (struct tls_stream){.fd = fd, .timeout_ms = timeout_ms};
    int code = tls_new(creds, hostname, &stream->tls);
    if (code < 0) {
        free(stream);
        return err_set(err, tls_errno(code), "TLS: %s", gnutls_strerror(code));
    }
    int result = stream_handshake(stream, err);
    if (result < 0) {
        tls_stream_free(stream);
        return err_prefix(err, "TLS handshake");
    }
    stream->tls->established = true;
    *ret_stream = stream;
    return 0;
}

void tls_stream_free(struct tls_stream *stream)
{
    if (stream == NULL)
        return;
    if (stream->tls->established && gnutls_bye(stream->tls->session, GNUTLS_SHUT_WR) == 0)
        (void)stream_flush(stream);
    tls_delete(stream->tls);
    free(stream);
}

const char *tls_stream_refusal(const struct tls_stream *stream)
{
    return stream->tls->refusal[0] != '\0' ? stream->tls->refusal : NULL;
}

ssize_t tls_stream_recv(struct tls_stream *stream, void *bytes, size_t length_bytes, int timeout_ms)
{
    struct tls *tls = stream->tls;

    for (;;) {
        tls->starved = false;
        ssize_t got = gnutls_record_recv(tls->session, bytes, length_bytes);
        if (got >= 0)
            return got;
        if (got == GNUTLS_E_FATAL_ALERT_RECEIVED)
            return take_refusal(tls);
        if (got != GNUTLS_E_AGAIN && got != GNUTLS_E_INTERRUPTED)
            return tls_errno((int)got);
        if (!tls->starved)
            continue;
        int result = stream_fill(stream, timeout_ms);
        if (result < 0)
            return result;
    }
}

int tls_stream_send(struct tls_stream *stream, const void *bytes, size_t length_bytes)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, length_bytes};
    struct source source = {&iov, 1, 0};
    int result = 0;

    source_advance(&source, 0);
    while (result == 0 && source.count > 0) {
        ssize_t taken = tls_encrypt(stream->tls, &source);

        result = taken < 0 ? (int)taken : stream_flush(stream);
    }
    return result;
}
