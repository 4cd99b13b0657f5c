/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/tls_object.h"

#include "base/log.h"
#include "drivers/secret_object.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct tls_object {
    struct tls_creds *creds; /* NULL: being loaded */
};

struct tls_object_options {
    char *folder, *username, *password_id;
    int endpoint;
    bool verify_peer;
};

static int tls_create(struct object *object, struct err *err)
{
    return 0;
}

static void tls_destroy(struct object *object)
{
    struct tls_object *self = object->state;

    tls_creds_unref(TAKE_PTR(self->creds));
}

static bool is_tls(const struct object *object)
{
    return object->type == &tls_creds_x509_type || object->type == &tls_creds_psk_type;
}

static int password_find(struct graph *graph, const char *id, struct object **ret_object,
                         const char **ret_password, struct err *err)
{
    const struct secret *secret;
    int r = secret_object_use(graph, id, "'passwordid'", ret_object, &secret, err);

    if (r < 0)
        return r;
    *ret_password = secret_text(secret);
    return *ret_password != NULL
               ? 0
               : err_set(err, -EINVAL, "secret '%s' is no text, as a password is", id);
}

/* It will be at night, and months after somebody knew how certificates are made. */
static void warn_of_end(const struct object *object)
{
    const struct tls_object *self = object->state;
    int64_t end_s = tls_creds_expires_s(self->creds);
    int64_t left_s = end_s - (int64_t)(loop_wall_ns(graph_loop(object->graph)) / NS_PER_S);

    if (end_s != TLS_EXPIRES_NEVER && left_s < TLS_EXPIRES_SOON_DAYS * INT64_C(86400))
        log_warning("tls",
                    "object '%s': its certificates expire within %" PRId64 " days; new ones "
                    "are taken by object-del and object-add",
                    object->id, (left_s + 86399) / 86400);
}

static int tls_load(struct object *object, struct err *err) MAY_WAIT
{
    const struct tls_object_options *options = object->options;
    struct tls_object *self = object->state;
    struct tls_creds_options wanted = {
        .kind = object->type == &tls_creds_x509_type ? TLS_X509 : TLS_PSK,
        .endpoint = (enum tls_endpoint)options->endpoint,
        .folder = options->folder,
        .verify_peer = options->verify_peer,
        .username = options->username,
    };

    if (wanted.endpoint == TLS_SERVER && options->username != NULL)
        return err_set(err, -EINVAL, "'username' is of use with endpoint=client only");
    struct object *password = NULL;
    int r = 0;
    if (options->password_id != NULL)
        r = password_find(object->graph, options->password_id, &password, &wanted.password, err);
    if (r == 0)
        r = tls_creds_load(graph_loop(object->graph), &wanted, &self->creds, err);
    object_unuse(password);
    if (r == 0)
        warn_of_end(object);
    return r;
}

int tls_object_creds(struct graph *graph, const char *id, enum tls_endpoint endpoint,
                     struct tls_creds **ret_creds, struct err *err)
{
    struct object *object = object_find(graph, id);

    if (object == NULL || !is_tls(object))
        return err_set(
            err, -ENOENT,
            "there are no TLS credentials '%s'; make them with --object or object-add, as "
            "tls-creds-x509 or tls-creds-psk",
            id);
    const struct tls_object *self = object->state;
    if (self->creds == NULL)
        return err_set(err, -EAGAIN, "TLS credentials '%s' are still being loaded", id);
    if (tls_creds_endpoint(self->creds) != endpoint)
        return err_set(err, -EINVAL,
                       "TLS credentials '%s' are not for this side: make some with "
                       "endpoint=%s",
                       id, endpoint == TLS_SERVER ? "server" : "client");
    *ret_creds = tls_creds_ref(self->creds);
    return 0;
}

/* --- options --- */

static const char *const endpoints[] = {"server", "client", NULL};

_Static_assert(TLS_SERVER == 0 && TLS_CLIENT == 1, "endpoints is in this order");

static const struct opt x509_opts[] = {
    {.name = "dir",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct tls_object_options, folder),
     .required = true,
     .help = "folder with ca-cert.pem, server-cert.pem and -key.pem, client-cert.pem and -key.pem"},
    {.name = "endpoint",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct tls_object_options, endpoint),
     .values = endpoints,
     .fallback = "client",
     .help = "which side of a connection it is for"},
    {.name = "verify-peer",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct tls_object_options, verify_peer),
     .fallback = "on",
     .help = "a server wants client certificates, a client checks the server's"},
    {.name = "passwordid",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct tls_object_options, password_id),
     .help = "secret that holds the password of an encrypted private key"},
    {0},
};

static const struct opt psk_opts[] = {
    {.name = "dir",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct tls_object_options, folder),
     .required = true,
     .help = "folder with keys.psk"},
    {.name = "endpoint",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct tls_object_options, endpoint),
     .values = endpoints,
     .fallback = "client",
     .help = "which side of a connection it is for"},
    {.name = "username",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct tls_object_options, username),
     .help = "who a client is (" TLS_PSK_USERNAME ")"},
    {.name = "verify-peer",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct tls_object_options, verify_peer),
     .fallback = "on",
     .help = "accepted; a shared key always proves both sides"},
    {0},
};

const struct object_type tls_creds_x509_type = {
    .name = "tls-creds-x509",
    .state_size = sizeof(struct tls_object),
    .options_size = sizeof(struct tls_object_options),
    .opts = x509_opts,
    .create = tls_create,
    .load = tls_load,
    .destroy = tls_destroy,
};

const struct object_type tls_creds_psk_type = {
    .name = "tls-creds-psk",
    .state_size = sizeof(struct tls_object),
    .options_size = sizeof(struct tls_object_options),
    .opts = psk_opts,
    .create = tls_create,
    .load = tls_load,
    .destroy = tls_destroy,
};
