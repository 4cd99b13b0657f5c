/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/secret_object.h"

#include <errno.h>
#include <string.h>

struct secret_object {
    struct secret secret; /* .bytes NULL: being loaded */
};

enum { FORMAT_RAW, FORMAT_BASE64 };

struct secret_object_options {
    char *data, *file, *key_id, *iv;
    int format;
};

static int secret_create(struct object *object, struct err *err)
{
    const struct secret_object_options *options = object->options;

    if ((options->data == NULL) == (options->file == NULL))
        return err_set(err, -EINVAL, "a secret has 'data' or 'file', %s",
                       options->data != NULL ? "not both" : "and this one has neither");
    if ((options->key_id == NULL) != (options->iv == NULL))
        return err_set(err, -EINVAL, "'keyid' and 'iv' go together");
    return 0;
}

static void secret_destroy(struct object *object)
{
    struct secret_object *self = object->state;

    secret_release(&self->secret);
}

static int secret_load_object(struct object *object, struct err *err) MAY_WAIT
{
    struct secret_object_options *options = object->options;
    struct secret_object *self = object->state;
    struct secret_options wanted = {
        .data = options->data,
        .file = options->file,
        .base64 = options->format == FORMAT_BASE64,
        .iv = options->iv,
    };
    struct object *key = NULL;
    int r = 0;

    if (options->key_id != NULL)
        r = secret_object_use(object->graph, options->key_id, "'keyid'", &key, &wanted.key, err);
    if (r == 0)
        r = secret_load(graph_loop(object->graph), &wanted, &self->secret, err);
    object_unuse(key);
    /* It is not needed any more, so it need not be found in memory. */
    if (options->data != NULL)
        explicit_bzero(options->data, strlen(options->data));
    return r;
}

int secret_object_use(struct graph *graph, const char *id, const char *what,
                      struct object **ret_object, const struct secret **ret_secret, struct err *err)
{
    struct object *object = NULL;

    if (object_use(graph, &secret_type, id, &object, err) < 0)
        return err_prefix(err, "%s", what);
    const struct secret_object *self = object->state;
    if (self->secret.bytes == NULL) {
        object_unuse(object);
        return err_set(err, -EAGAIN, "%s: secret '%s' is still being loaded", what, id);
    }
    *ret_object = object;
    *ret_secret = &self->secret;
    return 0;
}

static const char *const formats[] = {"raw", "base64", NULL};

_Static_assert(FORMAT_RAW == 0 && FORMAT_BASE64 == 1, "formats is in this order");

static const struct opt secret_opts[] = {
    {.name = "data",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct secret_object_options, data),
     .secret = true,
     .help = "the secret itself; who sees the command line sees it, so better a file"},
    {.name = "file",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct secret_object_options, file),
     .help = "file that holds it and nothing else, no line end either"},
    {.name = "format",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct secret_object_options, format),
     .values = formats,
     .fallback = "raw",
     .help = "how it is written"},
    {.name = "keyid",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct secret_object_options, key_id),
     .help = "secret of 32 bytes that this one is encrypted with (AES-256-CBC)"},
    {.name = "iv",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct secret_object_options, iv),
     .help = "initialisation vector of the encryption, in base64"},
    {0},
};

const struct object_type secret_type = {
    .name = "secret",
    .state_size = sizeof(struct secret_object),
    .options_size = sizeof(struct secret_object_options),
    .opts = secret_opts,
    .create = secret_create,
    .load = secret_load_object,
    .destroy = secret_destroy,
};
