/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/target.h"

#include "base/json.h"

#include <errno.h>
#include <string.h>

#define NBD_DEFAULT_PORT "10809"

/* What of an address a text has told; the pointers lead into a copy of it. */
struct target {
    char *host, *port, *path, *export;
};

static int wrong(const char *text, const char *why, struct err *err)
{
    return err_set(
        err, -EINVAL,
        "target '%s': %s; right are nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH "
        "and a path",
        text, why);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* %XX in place. False: not hexadecimal, or a zero byte. */
static bool percent_decode(char *text)
{
    char *out = text;

    for (; *text != '\0'; text++) {
        if (*text != '%') {
            *out++ = *text;
            continue;
        }
        int high = hex_digit(text[1]), low = high < 0 ? -1 : hex_digit(text[2]);

        if (low < 0 || high + low == 0)
            return false;
        *out++ = (char)(high * 16 + low);
        text += 2;
    }
    *out = '\0';
    return true;
}

/* HOST[:PORT], with a host in brackets when it has colons itself. */
static bool split_host(char *text, struct target *target)
{
    char *end = text;

    if (*text == '[') {
        target->host = ++text;
        end = strchr(text, ']');
        if (end == NULL)
            return false;
        *end++ = '\0';
    } else {
        target->host = text;
        end = text + strcspn(text, ":");
    }
    if (*end == ':') {
        *end = '\0';
        target->port = end + 1;
    } else if (*end != '\0') {
        return false;
    }
    if (target->port != NULL && *target->port == '\0')
        return false;
    return *target->host != '\0';
}

/* Behind nbd:// or nbd+tcp:// : HOST[:PORT][/EXPORT] */
static bool parse_tcp_uri(char *text, struct target *target)
{
    char *slash = strchr(text, '/');

    if (slash != NULL) {
        *slash = '\0';
        target->export = slash + 1;
        if (strpbrk(target->export, "?#") != NULL || !percent_decode(target->export))
            return false;
    }
    return split_host(text, target);
}

/* Behind nbd+unix:// : /[EXPORT]?socket=PATH */
static bool parse_unix_uri(char *text, struct target *target)
{
    static const char key[] = "?socket=";
    char *query = strstr(text, key);

    if (*text != '/' || query == NULL)
        return false;
    *query = '\0';
    target->export = text + 1;
    target->path = query + strlen(key);
    return *target->path != '\0' && percent_decode(target->export) && percent_decode(target->path);
}

/* Behind nbd: : HOST:PORT or unix:PATH, then :exportname=EXPORT perhaps. */
static bool parse_old(char *text, struct target *target)
{
    static const char key[] = ":exportname=";
    char *export = strstr(text, key);

    if (export != NULL) {
        *export = '\0';
        target->export = export + strlen(key);
    }
    if (strncmp(text, "unix:", 5) == 0) {
        target->path = text + 5;
        return *target->path != '\0';
    }
    return split_host(text, target) && target->port != NULL;
}

static struct json_object *server_options(const struct target *target)
{
    struct json_object *server = json_object_new_object();
    int r;

    if (server == NULL)
        return NULL;
    r = json_add_string(server, "type", target->path != NULL ? "unix" : "inet");
    if (target->path != NULL) {
        r |= json_add_string(server, "path", target->path);
    } else {
        r |= json_add_string(server, "host", target->host);
        r |= json_add_string(server, "port",
                             target->port != NULL ? target->port : NBD_DEFAULT_PORT);
    }
    if (r == 0)
        return server;
    json_object_put(server);
    return NULL;
}

static struct json_object *nbd_options(const struct target *target)
{
    struct json_object *options = json_object_new_object();
    int r;

    if (options == NULL)
        return NULL;
    r = json_add_string(options, "driver", "nbd");
    r |= json_add_string(options, "export", target->export != NULL ? target->export : "");
    r |= json_add(options, "server", server_options(target));
    if (r == 0)
        return options;
    json_object_put(options);
    return NULL;
}

static struct json_object *file_options(const char *path)
{
    struct json_object *options = json_object_new_object();

    if (options != NULL && json_add_string(options, "driver", "file") == 0 &&
        json_add_string(options, "filename", path) == 0)
        return options;
    json_object_put(options);
    return NULL;
}

/* Behind json: : the options of a node, as a JSON object. */
static struct json_object *parse_json(const char *text, struct err *err)
{
    struct json_object *options = NULL;
    enum opts_syntax syntax;

    if (*text != '{') {
        err_set(err, -EINVAL,
                "target: 'json:' is followed by an object, as in json:{\"driver\": ...}");
        return NULL;
    }
    if (opts_read(text, NULL, "target", &options, &syntax, err) < 0)
        return NULL;
    if (!json_object_object_get_ex(options, "driver", NULL)) {
        err_set(err, -EINVAL, "target: 'driver' is missing in json:{...}");
        json_object_put(options);
        return NULL;
    }
    return options;
}

static struct json_object *parse_copy(const char *text, char *copy, struct err *err)
{
    static const struct {
        const char *prefix;
        bool (*parse)(char *text, struct target *target);
    } forms[] = {
        {"nbd://", parse_tcp_uri},
        {"nbd+tcp://", parse_tcp_uri},
        {"nbd+unix://", parse_unix_uri},
        {"nbd:", parse_old},
    };
    struct target target = {0};
    struct json_object *options = NULL;

    if (strncmp(copy, "json:", 5) == 0)
        return parse_json(copy + 5, err);
    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        size_t length = strlen(forms[i].prefix);

        if (strncmp(copy, forms[i].prefix, length) != 0)
            continue;
        if (!forms[i].parse(copy + length, &target)) {
            wrong(text, "not an address", err);
            return NULL;
        }
        options = nbd_options(&target);
        if (options == NULL)
            err_no_memory(err);
        return options;
    }
    /* A protocol that is not known must not become a file of that name. */
    size_t scheme = strcspn(copy, ":/");

    if (copy[scheme] == ':' && strncmp(copy, "file:", 5) != 0) {
        wrong(text, "its protocol is not known", err);
        return NULL;
    }
    options = file_options(copy[scheme] == ':' ? copy + 5 : copy);
    if (options == NULL)
        err_no_memory(err);
    return options;
}

struct json_object *target_parse(const char *text, struct err *err)
{
    if (text[0] == '\0' || strlen(text) > TARGET_MAX_BYTES) {
        wrong(text[0] == '\0' ? "" : "(long)", "a text of 1 to 4096 bytes is wanted", err);
        return NULL;
    }
    char *copy = strdup(text);

    if (copy == NULL) {
        err_no_memory(err);
        return NULL;
    }
    struct json_object *options = parse_copy(text, copy, err);

    free(copy);
    return options;
}

int target_open(struct graph *graph, const char *text, const char *node_name,
                struct node **ret_node, struct err *err)
{
    struct json_object *options = target_parse(text, err);
    struct node *node;
    int r = 0;

    if (options == NULL)
        return err->code;
    if (node_name != NULL && json_add_string(options, "node-name", node_name) < 0)
        r = err_no_memory(err);
    if (r == 0)
        r = graph_add(graph, options, OPTS_JSON, "target", false, &node, err);
    json_object_put(options);
    if (r < 0)
        return r;
    *ret_node = node_ref(node);
    return 0;
}
