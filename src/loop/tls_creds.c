/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Credentials from a folder, as QEMU's tls-creds objects and libnbd lay it out. All of it runs on the
 * offload pool: the folder may be on a file system that does not answer.
 */
#include "loop/tls_internal.h"

#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES         1024u
#define PSK_KEY_MIN_BYTES  16u
#define MAX_CERTIFICATES   64u /* of one file */
#define UNKNOWN_USER_BYTES 32u

/* The fastest first, and a server goes by its own order: with shared keys the usual clients would come
 * to ChaCha20, which is the slowest by far where the processor knows AES. */
#define PRIORITY_CIPHERS \
    "-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305:%SERVER_PRECEDENCE"
#define PRIORITY_X509 "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:" PRIORITY_CIPHERS
#define PRIORITY_PSK  PRIORITY_X509 ":-KX-ALL:+ECDHE-PSK:+DHE-PSK"

struct load {
    const struct tls_creds_options *options;
    struct tls_creds *creds;
    time_t now;
    struct err *err;
};

void tls_datum_wipe(gnutls_datum_t *datum)
{
    if (datum->data != NULL)
        gnutls_memset(datum->data, 0, datum->size);
    free(datum->data);
    *datum = (gnutls_datum_t){NULL, 0};
}

static void creds_free(struct tls_creds *creds)
{
    if (creds->x509 != NULL)
        gnutls_certificate_free_credentials(creds->x509);
    if (creds->psk_server != NULL)
        gnutls_psk_free_server_credentials(creds->psk_server);
    if (creds->psk_client != NULL)
        gnutls_psk_free_client_credentials(creds->psk_client);
    if (creds->priority != NULL)
        gnutls_priority_deinit(creds->priority);
    for (size_t i = 0; i < creds->key_count; i++) {
        free(creds->keys[i].username);
        tls_datum_wipe(&creds->keys[i].key);
    }
    free(creds->keys);
    free(creds);
}

struct tls_creds *tls_creds_ref(struct tls_creds *creds)
{
    creds->refs++;
    return creds;
}

void tls_creds_unref(struct tls_creds *creds)
{
    if (creds != NULL && --creds->refs == 0)
        creds_free(creds);
}

enum tls_endpoint tls_creds_endpoint(const struct tls_creds *creds)
{
    return creds->endpoint;
}

int64_t tls_creds_expires_s(const struct tls_creds *creds)
{
    return creds->expires_s;
}

bool tls_creds_prove_peer(const struct tls_creds *creds)
{
    return creds->kind == TLS_PSK || creds->verify_peer;
}

/* --- files --- */

static int file_check(int fd, const char *path, enum tls_file_kind kind, size_t *ret_bytes,
                      struct err *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return err_set_errno(err, -errno, "cannot read '%s'", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, -EINVAL, "'%s' is no file", path);
    if (st.st_size > (off_t)TLS_CREDENTIAL_MAX_BYTES)
        return err_set(err, -EFBIG, "'%s' is longer than 1 MiB: that is no such file", path);
    if (kind == TLS_FILE_SECRET && (st.st_mode & 0007) != 0)
        return err_set(
            err, -EPERM,
            "'%s' holds a secret and everybody may use it (mode %04o); chmod 600 it, and "
            "consider the secret known",
            path, (unsigned)st.st_mode & 07777);
    *ret_bytes = (size_t)st.st_size;
    return 0;
}

int tls_file_load(const char *path, enum tls_file_kind kind, gnutls_datum_t *ret_text,
                  struct err *err)
{
    CLEANUP(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    size_t bytes = 0, done = 0;

    if (fd < 0 && errno == ENOENT)
        return -ENOENT;
    if (fd < 0)
        return err_set_errno(err, -errno,
                             "cannot read '%s' (check the modes of it and of its folder)", path);
    int result = file_check(fd, path, kind, &bytes, err);
    if (result < 0)
        return result;
    gnutls_datum_t text = {malloc(bytes + 1), (unsigned)bytes};
    if (text.data == NULL)
        return err_no_memory(err);
    while (done < bytes) {
        ssize_t got = read(fd, text.data + done, bytes - done);
        if (got > 0) {
            done += (size_t)got;
            continue;
        }
        result = got < 0 ? -errno : -EIO;
        tls_datum_wipe(&text);
        return err_set_errno(err, result, "cannot read '%s'", path);
    }
    text.data[bytes] = '\0';
    *ret_text = text;
    return 0;
}

struct pem {
    char path[PATH_BYTES];
    gnutls_datum_t text; /* .data NULL: there is no such file */
};

static void pem_release(struct pem *pem)
{
    tls_datum_wipe(&pem->text);
}

static int pem_load(const struct load *load, const char *name, enum tls_file_kind kind,
                    struct pem *pem)
{
    int length = snprintf(pem->path, sizeof(pem->path), "%s/%s", load->options->folder, name);

    pem->text = (gnutls_datum_t){NULL, 0};
    if (length < 0 || (size_t)length >= sizeof(pem->path))
        return err_set(load->err, -ENAMETOOLONG, "the folder's path is too long: '%s'",
                       load->options->folder);
    int result = tls_file_load(pem->path, kind, &pem->text, load->err);
    return result == -ENOENT && !err_is_set(load->err) ? 0 : result;
}

static int pem_missing(const struct load *load, const struct pem *pem, const char *what)
{
    return err_set(load->err, -ENOENT, "'%s' is missing: %s", pem->path, what);
}

static int pem_bad(const struct load *load, const struct pem *pem, const char *what, int code)
{
    if (code == GNUTLS_E_MEMORY_ERROR)
        return err_no_memory(load->err);
    return err_set(load->err, -EINVAL, "'%s' holds no usable %s: %s", pem->path, what,
                   gnutls_strerror(code));
}

/* --- certificates --- */

static const char *time_format(time_t when, char *text, size_t text_bytes)
{
    struct tm tm;

    if (gmtime_r(&when, &tm) == NULL || strftime(text, text_bytes, "%Y-%m-%d %H:%M UTC", &tm) == 0)
        snprintf(text, text_bytes, "an unknown time");
    return text;
}

static int certificate_check_times(const struct load *load, const struct pem *pem,
                                   gnutls_x509_crt_t certificate)
{
    time_t from = gnutls_x509_crt_get_activation_time(certificate);
    time_t until = gnutls_x509_crt_get_expiration_time(certificate);
    char text[64];

    if (until != (time_t)-1 && until < load->now)
        return err_set(load->err, -EKEYEXPIRED,
                       "the certificate in '%s' has expired on %s; replace it", pem->path,
                       time_format(until, text, sizeof(text)));
    if (from != (time_t)-1 && from > load->now)
        return err_set(
            load->err, -EKEYREJECTED,
            "the certificate in '%s' is not valid before %s; check the clock of this host",
            pem->path, time_format(from, text, sizeof(text)));
    return 0;
}

/* GnuTLS's word for none is -1. */
static int64_t certificate_end_s(gnutls_x509_crt_t certificate)
{
    time_t until = gnutls_x509_crt_get_expiration_time(certificate);

    return until != (time_t)-1 ? (int64_t)until : TLS_EXPIRES_NEVER;
}

/* Of several authorities one that is valid is enough; of our own chain the first one counts. */
static int certificates_check(const struct load *load, const struct pem *pem, bool any)
{
    gnutls_x509_crt_t *list = NULL;
    unsigned count = 0;
    int code = gnutls_x509_crt_list_import2(&list, &count, &pem->text, GNUTLS_X509_FMT_PEM, 0);

    if (code < 0)
        return pem_bad(load, pem, "certificate", code);
    int64_t end_s = 0;
    int result = -1;
    for (unsigned i = 0; i < count && (i == 0 || (any && result < 0)); i++) {
        err_clear(load->err);
        result = certificate_check_times(load, pem, list[i]);
        end_s = certificate_end_s(list[i]);
    }
    load->creds->expires_s = MIN(load->creds->expires_s, end_s);
    if (count > MAX_CERTIFICATES && !any)
        result = err_set(load->err, -E2BIG, "'%s' holds more than %u certificates", pem->path,
                         MAX_CERTIFICATES);
    for (unsigned i = 0; i < count; i++)
        gnutls_x509_crt_deinit(list[i]);
    gnutls_free(list);
    return result;
}

static int load_authorities(struct load *load)
{
    CLEANUP(pem_release) struct pem ca, crl = {.text = {NULL, 0}};
    int result = pem_load(load, "ca-cert.pem", TLS_FILE_PUBLIC, &ca);

    if (result == 0 && ca.text.data == NULL)
        return pem_missing(
            load, &ca,
            "the certificates of the authorities that this side believes; the option "
            "'dir' names the folder that has it");
    if (result == 0)
        result = certificates_check(load, &ca, true);
    if (result < 0)
        return result;
    int code = gnutls_certificate_set_x509_trust_mem(load->creds->x509, &ca.text,
                                                     GNUTLS_X509_FMT_PEM);
    if (code < 0)
        return pem_bad(load, &ca, "certificate", code);
    result = pem_load(load, "ca-crl.pem", TLS_FILE_PUBLIC, &crl);
    if (result < 0 || crl.text.data == NULL)
        return result;
    code = gnutls_certificate_set_x509_crl_mem(load->creds->x509, &crl.text, GNUTLS_X509_FMT_PEM);
    return code < 0 ? pem_bad(load, &crl, "revocation list", code) : 0;
}

static int set_key_pair(const struct load *load, const struct pem *cert, const struct pem *key)
{
    int code = gnutls_certificate_set_x509_key_mem2(load->creds->x509, &cert->text, &key->text,
                                                    GNUTLS_X509_FMT_PEM, load->options->password,
                                                    0);

    if (code == GNUTLS_E_CERTIFICATE_KEY_MISMATCH)
        return err_set(load->err, -EINVAL, "the key in '%s' is not that of the certificate in '%s'",
                       key->path, cert->path);
    if (code == GNUTLS_E_DECRYPTION_FAILED)
        return err_set(load->err, -EACCES, "the key in '%s' is encrypted, and %s", key->path,
                       load->options->password == NULL
                           ? "there is no password for it; tls-creds-x509 takes one as passwordid, "
                             "the verbs in --tls-password-file"
                           : "the password does not fit; does its file end with a line end?");
    return code < 0 ? pem_bad(load, key, "private key", code) : 0;
}

/* A client needs a certificate only where the server asks for one. */
static int load_identity(struct load *load)
{
    bool server = load->options->endpoint == TLS_SERVER;
    CLEANUP(pem_release) struct pem cert, key = {.text = {NULL, 0}};
    int result = pem_load(load, server ? "server-cert.pem" : "client-cert.pem", TLS_FILE_PUBLIC,
                          &cert);

    if (result == 0)
        result = pem_load(load, server ? "server-key.pem" : "client-key.pem", TLS_FILE_SECRET,
                          &key);
    if (result < 0)
        return result;
    if (!server && cert.text.data == NULL && key.text.data == NULL)
        return 0;
    if (cert.text.data == NULL)
        return pem_missing(load, &cert, "the certificate of this side");
    if (key.text.data == NULL)
        return pem_missing(load, &key, "the private key that belongs to the certificate");
    result = certificates_check(load, &cert, false);
    return result < 0 ? result : set_key_pair(load, &cert, &key);
}

static int load_x509(struct load *load)
{
    if (gnutls_certificate_allocate_credentials(&load->creds->x509) < 0)
        return err_no_memory(load->err);
    int result = load_authorities(load);
    if (result == 0)
        result = load_identity(load);
    if (result == 0 &&
        gnutls_certificate_set_known_dh_params(load->creds->x509, GNUTLS_SEC_PARAM_MEDIUM) < 0)
        result = err_no_memory(load->err);
    return result;
}

/* --- pre-shared keys --- */

static const struct tls_psk *find_key(const struct tls_creds *creds, const char *username)
{
    for (size_t i = 0; i < creds->key_count; i++) {
        if (strcmp(creds->keys[i].username, username) == 0)
            return &creds->keys[i];
    }
    return NULL;
}

/* Users that do not exist get a key as well, so that they cannot be told from wrong keys. */
static int psk_lookup(gnutls_session_t session, const char *username, gnutls_datum_t *ret_key)
{
    const struct tls_psk *psk = find_key(gnutls_session_get_ptr(session), username);
    unsigned bytes = psk != NULL ? psk->key.size : UNKNOWN_USER_BYTES;

    ret_key->data = gnutls_malloc(bytes);
    if (ret_key->data == NULL)
        return -1;
    ret_key->size = bytes;
    if (psk == NULL)
        return gnutls_rnd(GNUTLS_RND_KEY, ret_key->data, bytes) < 0 ? -1 : 0;
    memcpy(ret_key->data, psk->key.data, bytes);
    return 0;
}

static int hex_digit(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* `hex` has been found to be digits only, an even number. False: memory is out. */
static bool hex_decode(const char *hex, gnutls_datum_t *ret_key)
{
    size_t bytes = strlen(hex) / 2;
    uint8_t *key = malloc(bytes);

    if (key == NULL)
        return false;
    for (size_t i = 0; i < bytes; i++)
        key[i] = (uint8_t)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
    *ret_key = (gnutls_datum_t){key, (unsigned)bytes};
    return true;
}

/* Never quotes the line: it holds a secret. */
static int take_line(struct load *load, const struct pem *pem, char *line, unsigned number)
{
    struct tls_creds *creds = load->creds;
    char *hex = strchr(line, ':');

    if (line[0] == '\0' || line[0] == '#')
        return 0;
    if (hex == NULL || hex == line)
        return err_set(load->err, -EINVAL,
                       "'%s', line %u: a line is USER:KEY, as psktool writes it", pem->path,
                       number);
    *hex++ = '\0';
    size_t digits = strlen(hex);
    if (strspn(hex, "0123456789abcdefABCDEF") != digits || digits % 2 != 0 ||
        digits < 2 * PSK_KEY_MIN_BYTES)
        return err_set(load->err, -EINVAL,
                       "'%s', line %u: the key must have at least %u hexadecimal digits; make one "
                       "with psktool",
                       pem->path, number, 2 * PSK_KEY_MIN_BYTES);
    if (creds->key_count >= TLS_MAX_KEYS)
        return err_set(load->err, -E2BIG, "'%s' has more than %u keys", pem->path, TLS_MAX_KEYS);
    if (find_key(creds, line) != NULL)
        return err_set(load->err, -EEXIST, "'%s', line %u: a user is there twice", pem->path,
                       number);
    struct tls_psk *psk = &creds->keys[creds->key_count];
    psk->username = strdup(line);
    if (psk->username == NULL || !hex_decode(hex, &psk->key)) {
        free(psk->username);
        return err_no_memory(load->err);
    }
    creds->key_count++;
    return 0;
}

static int load_keys(struct load *load, struct pem *pem)
{
    char *rest = (char *)pem->text.data, *line;
    size_t lines = 1;
    int result = 0;

    for (const char *c = rest; *c != '\0'; c++)
        lines += *c == '\n';
    load->creds->keys = calloc(MIN(lines, TLS_MAX_KEYS), sizeof(load->creds->keys[0]));
    if (load->creds->keys == NULL)
        return err_no_memory(load->err);
    for (unsigned number = 1; result == 0 && (line = strsep(&rest, "\n")) != NULL; number++) {
        line[strcspn(line, "\r")] = '\0';
        result = take_line(load, pem, line, number);
    }
    return result;
}

static int set_psk_client(struct load *load, const struct pem *pem)
{
    const char *given = load->options->username;
    const char *username = given != NULL ? given : TLS_PSK_USERNAME;
    const struct tls_psk *psk = find_key(load->creds, username);

    if (psk == NULL)
        return err_set(load->err, -ENOENT,
                       "'%s' has no key of user '%s'; the option 'username' says who this side is",
                       pem->path, username);
    if (gnutls_psk_allocate_client_credentials(&load->creds->psk_client) < 0 ||
        gnutls_psk_set_client_credentials(load->creds->psk_client, username, &psk->key,
                                          GNUTLS_PSK_KEY_RAW) < 0)
        return err_no_memory(load->err);
    return 0;
}

static int load_psk(struct load *load)
{
    CLEANUP(pem_release) struct pem pem;
    int result = pem_load(load, "keys.psk", TLS_FILE_SECRET, &pem);

    if (result < 0)
        return result;
    if (pem.text.data == NULL)
        return pem_missing(load, &pem,
                           "make it with psktool, and bring it to both sides in secret");
    result = load_keys(load, &pem);
    if (result == 0 && load->creds->key_count == 0)
        result = err_set(load->err, -EINVAL, "'%s' holds no key; make one with psktool", pem.path);
    if (result < 0)
        return result;
    if (load->options->endpoint == TLS_CLIENT)
        return set_psk_client(load, &pem);
    if (gnutls_psk_allocate_server_credentials(&load->creds->psk_server) < 0 ||
        gnutls_psk_set_server_known_dh_params(load->creds->psk_server, GNUTLS_SEC_PARAM_MEDIUM) < 0)
        return err_no_memory(load->err);
    gnutls_psk_set_server_credentials_function(load->creds->psk_server, psk_lookup);
    return 0;
}

/* --- both --- */

static int load_run(void *arg)
{
    struct load *load = arg;
    bool x509 = load->options->kind == TLS_X509;
    const char *where = NULL;
    int code = gnutls_priority_init(&load->creds->priority, x509 ? PRIORITY_X509 : PRIORITY_PSK,
                                    &where);

    if (code < 0)
        return err_set(load->err, -EINVAL, "GnuTLS does not know the priorities '%s': %s", where,
                       gnutls_strerror(code));
    return x509 ? load_x509(load) : load_psk(load);
}

/* What load_run() is given; NULL: memory is out. */
static struct tls_creds *creds_new(const struct tls_creds_options *options)
{
    struct tls_creds *creds = calloc(1, sizeof(*creds));

    if (creds == NULL)
        return NULL;
    creds->refs = 1;
    creds->kind = options->kind;
    creds->endpoint = options->endpoint;
    creds->verify_peer = options->verify_peer;
    creds->expires_s = TLS_EXPIRES_NEVER;
    return creds;
}

int tls_creds_load(struct loop *loop, const struct tls_creds_options *options,
                   struct tls_creds **ret_creds, struct err *err)
{
    struct load load = {
        .options = options,
        .creds = creds_new(options),
        .now = time(NULL), /* as GnuTLS does */
        .err = err,
    };

    if (load.creds == NULL)
        return err_no_memory(err);
    int result = loop_offload(loop, load_run, &load);
    if (result < 0) {
        creds_free(load.creds);
        return err_is_set(err) ? result : err_set_errno(err, result, "cannot load TLS credentials");
    }
    *ret_creds = load.creds;
    return 0;
}

int tls_creds_load_now(const struct tls_creds_options *options, struct tls_creds **ret_creds,
                       struct err *err)
{
    struct load load = {
        .options = options,
        .creds = creds_new(options),
        .now = time(NULL),
        .err = err,
    };

    if (load.creds == NULL)
        return err_no_memory(err);
    int result = load_run(&load);
    if (result < 0) {
        creds_free(load.creds);
        return result;
    }
    *ret_creds = load.creds;
    return 0;
}
