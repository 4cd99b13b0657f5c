/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Options as a text, through the reader and a table with every type. Promises: a refusal has a
 * reason that names the place and leaves the struct zeroed; what dotted keys gave can be written
 * down as dotted keys and as JSON, and reads the same again; what was accepted is released whole.
 */
#include "base/json.h"
#include "base/opts.h"
#include "base/text.h"

#include <stdio.h>
#include <string.h>

#define TEXT_MAX_BYTES 8192u

struct all {
    char *text, *secret, *host, *path;
    bool flag, flag_given, on, union_given;
    uint64_t number, size, port;
    int choice, kind;
    struct opt_strings strings;
    struct json_object *child, *children, *any;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const choices[] = {"a", "bc", NULL};
static const char *const kinds[] = {"inet", "unix", "none", NULL};

#define OPT(name_, type_, field_, ...)                                                         \
    {                                                                                          \
        .name = name_, .type = type_, .offset = OPT_FIELD(struct all, field_), .help = "help", \
        __VA_ARGS__                                                                            \
    }

static const struct opt object_opts[] = {
    OPT("flag", OPT_BOOL, flag, .present = OPT_PRESENT(struct all, flag_given)),
    OPT("on", OPT_BOOL, on, .fallback = "on"),
    {0},
};
static const struct opt union_opts[] = {
    OPT("kind", OPT_ENUM, kind, .values = kinds, .fallback = "inet"),
    {0},
};
static const struct opt inet_opts[] = {
    OPT("host", OPT_STRING, host, .required = true),
    OPT("port", OPT_UINT, port, .min = 1, .max = 65535, .fallback = "7"),
    {0},
};
static const struct opt unix_opts[] = {
    OPT("path", OPT_STRING, path),
    {0},
};
static const struct opt *const variants[] = {inet_opts, unix_opts, NULL};
static const struct opt all_opts[] = {
    OPT("t", OPT_STRING, text),
    OPT("secret", OPT_STRING, secret, .secret = true),
    OPT("n", OPT_UINT, number, .max = 1000),
    OPT("size", OPT_SIZE, size, .min = 512, .fallback = "64k"),
    OPT("e", OPT_ENUM, choice, .values = choices),
    OPT("s", OPT_STRINGS, strings),
    OPT("child", OPT_CHILD, child),
    OPT("children", OPT_CHILDREN, children),
    OPT("any", OPT_ANY, any),
    {.name = "o", .type = OPT_OBJECT, .members = object_opts, .help = "help"},
    {.name = "u",
     .type = OPT_UNION,
     .present = OPT_PRESENT(struct all, union_given),
     .members = union_opts,
     .discriminator = "kind",
     .variants = variants,
     .help = "help"},
    {0},
};

static bool is_utf8(const char *text)
{
    for (size_t length = strlen(text); length > 0;) {
        size_t step = text_utf8_length(text, length);

        if (step == 0)
            return false;
        text += step;
        length -= step;
    }
    return true;
}

static void check_error(const struct err *err)
{
    assert(err_is_set(err));
    assert(strncmp(err->text, "fuzz: ", 6) == 0);
    assert(is_utf8(err->text));
}

/* Writes an object of strings, objects and lists as dotted keys. */
static void write_dotted(FILE *stream, const char *prefix, struct json_object *value)
{
    char path[TEXT_MAX_BYTES];

    if (json_object_is_type(value, json_type_string)) {
        fprintf(stream, "%s%s=", ftell(stream) > 0 ? "," : "", prefix);
        for (const char *p = json_object_get_string(value); *p != '\0'; p++)
            fprintf(stream, *p == ',' ? ",," : "%c", *p);
        return;
    }
    if (json_object_is_type(value, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            snprintf(path, sizeof(path), "%s.%zu", prefix, i);
            write_dotted(stream, path, json_object_array_get_idx(value, i));
        }
        return;
    }
    json_object_object_foreach(value, key, member)
    {
        snprintf(path, sizeof(path), "%s%s%s", prefix, prefix[0] != '\0' ? "." : "", key);
        write_dotted(stream, path, member);
    }
}

static void check_dotted_again(struct json_object *object)
{
    struct json_object *again = NULL;
    enum opts_syntax syntax = OPTS_JSON;
    struct err err = ERR_INIT;
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);

    assert(stream != NULL);
    write_dotted(stream, "", object);
    fclose(stream);
    assert(opts_read(text, NULL, "again", &again, &syntax, &err) == 0);
    assert(syntax == OPTS_DOTTED);
    assert(json_object_equal(object, again));
    json_object_put(again);
    free(text);
}

static void check_json_again(struct json_object *object)
{
    const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN);
    struct json_object *again = NULL;
    struct err err = ERR_INIT;

    assert(json_parse(text, strlen(text), "again", &again, &err) == 0);
    assert(json_object_equal(object, again));
    json_object_put(again);
}

static void check_parse(struct json_object *object, enum opts_syntax syntax)
{
    static const char *const ignore[] = {"driver", NULL};
    static const struct all zeroes;
    struct err err = ERR_INIT;
    struct all all;

    memset(&all, 0, sizeof(all));
    if (opts_parse(all_opts, object, syntax, "fuzz", ignore, &all, &err) == 0) {
        assert(all.number <= 1000);
        assert(all.size >= 512);
        assert(!all.union_given || all.kind != 0 || (all.host != NULL && all.port > 0));
        opts_release(all_opts, &all);
    } else {
        check_error(&err);
    }
    assert(memcmp(&all, &zeroes, sizeof(all)) == 0);
}

static void check_size(const char *text)
{
    uint64_t bytes = 0;
    char shown[32];

    if (size_parse(text, &bytes) == 0)
        assert(strlen(size_format(bytes, shown, sizeof(shown))) < 12);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum opts_syntax syntax = OPTS_JSON;
    struct json_object *object = NULL;
    struct err err = ERR_INIT;
    char text[TEXT_MAX_BYTES];

    if (size >= sizeof(text))
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    check_size(text);
    if (opts_read(text, "driver", "fuzz", &object, &syntax, &err) < 0) {
        check_error(&err);
        return 0;
    }
    if (syntax == OPTS_DOTTED && is_utf8(text)) {
        check_dotted_again(object);
        check_json_again(object);
    }
    check_parse(object, syntax);
    json_object_put(object);
    return 0;
}
