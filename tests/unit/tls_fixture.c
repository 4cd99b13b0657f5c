/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tls_fixture.h"

#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DAY_S (24 * 60 * 60)

static char root[64];

struct identity {
    gnutls_x509_privkey_t key;
    gnutls_x509_crt_t cert;
};

#define check(call) assert_int_equal((call), GNUTLS_E_SUCCESS)

const char *tls_fixture_path(const char *name)
{
    static char paths[8][256];
    static unsigned next;
    char *path = paths[next++ % 8];

    snprintf(path, sizeof(paths[0]), "%s/%s", root, name);
    return path;
}

static void write_bytes(const char *name, const void *bytes, size_t length_bytes, unsigned mode)
{
    const char *path = tls_fixture_path(name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, length_bytes), length_bytes);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

void tls_fixture_write(const char *name, const char *text, unsigned mode)
{
    write_bytes(name, text, strlen(text), mode);
}

/* --- certificates --- */

static struct identity identity_new(const char *name, time_t from, time_t until)
{
    static unsigned serial;
    struct identity made;
    uint8_t number[4] = {0, 0, 1, (uint8_t)++serial};

    check(gnutls_x509_privkey_init(&made.key));
    check(gnutls_x509_privkey_generate(made.key, GNUTLS_PK_ECDSA,
                                       GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0));
    check(gnutls_x509_crt_init(&made.cert));
    check(gnutls_x509_crt_set_version(made.cert, 3));
    check(gnutls_x509_crt_set_serial(made.cert, number, sizeof(number)));
    check(gnutls_x509_crt_set_activation_time(made.cert, from));
    check(gnutls_x509_crt_set_expiration_time(made.cert, until));
    check(gnutls_x509_crt_set_dn_by_oid(made.cert, GNUTLS_OID_X520_COMMON_NAME, 0, name,
                                        (unsigned)strlen(name)));
    check(gnutls_x509_crt_set_key(made.cert, made.key));
    return made;
}

static void identity_free(struct identity *identity)
{
    gnutls_x509_crt_deinit(identity->cert);
    gnutls_x509_privkey_deinit(identity->key);
}

static struct identity authority_new(const char *name)
{
    time_t now = time(NULL);
    struct identity made = identity_new(name, now - DAY_S, now + DAY_S);

    check(gnutls_x509_crt_set_basic_constraints(made.cert, 1, -1));
    check(gnutls_x509_crt_set_key_usage(made.cert, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN));
    check(gnutls_x509_crt_sign2(made.cert, made.cert, made.key, GNUTLS_DIG_SHA256, 0));
    return made;
}

static struct identity peer_new(const struct identity *authority, bool server, int from_days,
                                int until_days)
{
    time_t now = time(NULL);
    struct identity made = identity_new(server ? "localhost" : "tester", now + from_days * DAY_S,
                                        now + until_days * DAY_S);
    const uint8_t loopback[4] = {127, 0, 0, 1};

    if (server) {
        check(gnutls_x509_crt_set_subject_alt_name(made.cert, GNUTLS_SAN_DNSNAME, "localhost", 9,
                                                   GNUTLS_FSAN_SET));
        check(gnutls_x509_crt_set_subject_alt_name(made.cert, GNUTLS_SAN_IPADDRESS, loopback, 4,
                                                   GNUTLS_FSAN_APPEND));
    }
    check(gnutls_x509_crt_set_key_purpose_oid(
        made.cert, server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT, 0));
    check(gnutls_x509_crt_set_key_usage(made.cert, GNUTLS_KEY_DIGITAL_SIGNATURE));
    check(gnutls_x509_crt_sign2(made.cert, authority->cert, authority->key, GNUTLS_DIG_SHA256, 0));
    return made;
}

static void write_cert(const char *folder, const char *name, gnutls_x509_crt_t cert)
{
    gnutls_datum_t pem;
    char path[64];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    check(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_PEM, &pem));
    write_bytes(path, pem.data, pem.size, 0644);
    gnutls_free(pem.data);
}

static void write_key(const char *folder, const char *name, gnutls_x509_privkey_t key)
{
    gnutls_datum_t pem;
    char path[64];

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    check(
        gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &pem));
    write_bytes(path, pem.data, pem.size, 0600);
    gnutls_free(pem.data);
}

static void write_folder(const char *folder, const struct identity *authority,
                         const struct identity *server, const struct identity *client)
{
    assert_int_equal(mkdir(tls_fixture_path(folder), 0700), 0);
    write_cert(folder, "ca-cert.pem", authority->cert);
    if (server == NULL)
        return;
    write_cert(folder, "server-cert.pem", server->cert);
    write_key(folder, "server-key.pem", server->key);
    write_cert(folder, "client-cert.pem", client->cert);
    write_key(folder, "client-key.pem", client->key);
}

static void write_revoked(const struct identity *authority, const struct identity *client)
{
    gnutls_x509_crl_t crl;
    gnutls_datum_t pem;
    time_t now = time(NULL);

    check(gnutls_x509_crl_init(&crl));
    check(gnutls_x509_crl_set_version(crl, 2));
    check(gnutls_x509_crl_set_this_update(crl, now - DAY_S));
    check(gnutls_x509_crl_set_next_update(crl, now + DAY_S));
    check(gnutls_x509_crl_set_crt(crl, client->cert, now - DAY_S));
    check(gnutls_x509_crl_sign2(crl, authority->cert, authority->key, GNUTLS_DIG_SHA256, 0));
    check(gnutls_x509_crl_export2(crl, GNUTLS_X509_FMT_PEM, &pem));
    write_bytes("revoked/ca-crl.pem", pem.data, pem.size, 0644);
    gnutls_free(pem.data);
    gnutls_x509_crl_deinit(crl);
}

static void make_x509(const char *folder, const struct identity *authority, int from_days,
                      int until_days)
{
    struct identity server = peer_new(authority, true, from_days, until_days);
    struct identity client = peer_new(authority, false, from_days, until_days);

    write_folder(folder, authority, &server, &client);
    if (strcmp(folder, "revoked") == 0)
        write_revoked(authority, &client);
    identity_free(&server);
    identity_free(&client);
}

void tls_fixture_make(void)
{
    struct identity authority = authority_new("good"), other = authority_new("other");

    snprintf(root, sizeof(root), "/tmp/blockstep-tls-XXXXXX");
    assert_non_null(mkdtemp(root));
    make_x509("good", &authority, -1, 1);
    make_x509("expired", &authority, -3, -1);
    make_x509("late", &authority, 1, 2);
    make_x509("revoked", &authority, -1, 1);
    make_x509("other", &other, -1, 1);
    write_folder("nocert", &authority, NULL, NULL);
    assert_int_equal(mkdir(tls_fixture_path("psk"), 0700), 0);
    assert_int_equal(mkdir(tls_fixture_path("psk2"), 0700), 0);
    tls_fixture_write("psk/keys.psk",
                      "# of the tests\n"
                      "qemu:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
                      "second:00112233445566778899AABBCCDDEEFF\n",
                      0600);
    tls_fixture_write("psk2/keys.psk", "qemu:ffeeddccbbaa99887766554433221100\n", 0600);
    identity_free(&authority);
    identity_free(&other);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void tls_fixture_remove(void)
{
    assert_int_equal(nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

struct tls_creds *tls_fixture_load(const char *folder, enum tls_kind kind,
                                   enum tls_endpoint endpoint)
{
    const struct tls_creds_options options = {
        .kind = kind,
        .endpoint = endpoint,
        .folder = tls_fixture_path(folder),
        .verify_peer = true,
    };
    struct tls_creds *creds = NULL;
    struct err err = ERR_INIT;

    if (tls_creds_load(loop_current(), &options, &creds, &err) < 0)
        fail_msg("%s: %s", folder, err.text);
    return creds;
}
