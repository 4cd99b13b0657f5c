/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/secret.h"

#include "loop/loop_internal.h"
#include "loop/tls_internal.h"

#include <gnutls/crypto.h>

#include <errno.h>
#include <string.h>

static int secret_read(const struct secret_options *options, gnutls_datum_t *ret, struct err *err)
{
    int r;

    if (options->data != NULL) {
        *ret = (gnutls_datum_t){(uint8_t *)strdup(options->data), (unsigned)strlen(options->data)};
        return ret->data != NULL ? 0 : err_no_memory(err);
    }
    r = tls_file_load(options->file, TLS_FILE_SECRET, ret, err);
    if (r == -ENOENT && !err_is_set(err))
        err_set(err, r, "'%s' is missing", options->file);
    return r;
}

/* As text is written by people and tools: blanks and line ends do not count. */
static size_t squeeze(uint8_t *text, size_t length_bytes)
{
    size_t kept = 0;

    for (size_t i = 0; i < length_bytes; i++) {
        if (strchr(" \t\r\n", text[i]) == NULL || text[i] == '\0')
            text[kept++] = text[i];
    }
    return kept;
}

/* Replaces base64 by what it stands for. */
static int base64_decode(gnutls_datum_t *datum, const char *what, struct err *err)
{
    gnutls_datum_t decoded = {NULL, 0};
    size_t length_bytes = squeeze(datum->data, datum->size);
    gnutls_datum_t text = {datum->data, (unsigned)length_bytes};
    int code = GNUTLS_E_BASE64_DECODING_ERROR;

    if (length_bytes == 0)
        code = 0;
    else if (length_bytes % 4 == 0)
        code = gnutls_base64_decode2(&text, &decoded);
    if (code == GNUTLS_E_MEMORY_ERROR)
        return err_no_memory(err);
    if (code < 0)
        return err_set(err, -EINVAL, "%s is not base64", what);
    /* It never grows, and a zero byte goes behind it. */
    assert(decoded.size <= datum->size);
    if (decoded.size > 0)
        memcpy(datum->data, decoded.data, decoded.size);
    gnutls_memset(datum->data + decoded.size, 0, datum->size - decoded.size);
    datum->size = decoded.size;
    tls_datum_wipe(&decoded);
    return 0;
}

static int iv_decode(const char *text, gnutls_datum_t *iv, struct err *err)
{
    *iv = (gnutls_datum_t){(uint8_t *)strdup(text), (unsigned)strlen(text)};
    if (iv->data == NULL)
        return err_no_memory(err);
    int r = base64_decode(iv, "'iv'", err);
    if (r == 0 && iv->size != SECRET_IV_BYTES)
        r = err_set(err, -EINVAL, "'iv' has %u bytes, not %u", iv->size, SECRET_IV_BYTES);
    if (r < 0)
        tls_datum_wipe(iv);
    return r;
}

/* The last byte tells how many were added to fill the last block. */
static int padding_strip(gnutls_datum_t *datum, struct err *err)
{
    unsigned padding = datum->data[datum->size - 1];

    if (padding == 0 || padding > SECRET_IV_BYTES)
        return err_set(err, -EINVAL, "decrypted it makes no sense: is it the right key?");
    datum->size -= padding;
    datum->data[datum->size] = '\0';
    return 0;
}

/* AES-256-CBC in place. */
static int decrypt(const struct secret_options *options, gnutls_datum_t *datum, struct err *err)
{
    gnutls_datum_t key = {options->key->bytes, (unsigned)options->key->length_bytes}, iv;
    gnutls_cipher_hd_t cipher = NULL;

    if (options->key->length_bytes != SECRET_KEY_BYTES)
        return err_set(err, -EINVAL, "the key that it is encrypted with has %zu bytes, not %u",
                       options->key->length_bytes, SECRET_KEY_BYTES);
    if (datum->size == 0 || datum->size % SECRET_IV_BYTES != 0)
        return err_set(err, -EINVAL, "%u bytes are no encrypted secret: it has whole blocks of %u",
                       datum->size, SECRET_IV_BYTES);
    int r = iv_decode(options->iv, &iv, err);
    if (r < 0)
        return r;
    int code = gnutls_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_CBC, &key, &iv);
    if (code == 0)
        code = gnutls_cipher_decrypt(cipher, datum->data, datum->size);
    if (cipher != NULL)
        gnutls_cipher_deinit(cipher);
    tls_datum_wipe(&iv);
    if (code < 0)
        return err_set(err, -EIO, "cannot decrypt it: %s", gnutls_strerror(code));
    return padding_strip(datum, err);
}

int secret_load_now(const struct secret_options *options, struct secret *ret_secret,
                    struct err *err)
{
    gnutls_datum_t datum = {NULL, 0};
    int r = secret_read(options, &datum, err);

    assert((options->data == NULL) != (options->file == NULL));
    assert((options->key == NULL) == (options->iv == NULL));
    if (r == 0 && options->base64)
        r = base64_decode(&datum, options->data != NULL ? "'data'" : options->file, err);
    if (r == 0 && options->key != NULL)
        r = decrypt(options, &datum, err);
    if (r < 0) {
        tls_datum_wipe(&datum);
        return r;
    }
    *ret_secret = (struct secret){datum.data, datum.size};
    return 0;
}

struct load {
    const struct secret_options *options;
    struct secret *secret;
    struct err *err;
};

static int load_run(void *arg)
{
    struct load *load = arg;

    return secret_load_now(load->options, load->secret, load->err);
}

int secret_load(struct loop *loop, const struct secret_options *options, struct secret *ret_secret,
                struct err *err)
{
    struct load load = {options, ret_secret, err};
    int r = loop_offload(loop, load_run, &load);

    return r < 0 && !err_is_set(err) ? err_set_errno(err, r, "cannot read the secret") : r;
}

void secret_release(struct secret *secret)
{
    gnutls_datum_t datum = {secret->bytes, (unsigned)secret->length_bytes};

    tls_datum_wipe(&datum);
    *secret = (struct secret){NULL, 0};
}

const char *secret_text(const struct secret *secret)
{
    const char *text = (const char *)secret->bytes;

    return strlen(text) == secret->length_bytes ? text : NULL;
}
