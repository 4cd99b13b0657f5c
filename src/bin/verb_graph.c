/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep graph: a daemon's nodes, who uses them, and what they may do to each other. */
#include "bin/verbs.h"

#include "base/text.h"

#include <inttypes.h>
#include <string.h>

#define MAX_LEVELS 66 /* the graph's own bound, a user above it, and one to be sure */
#define STEP       3  /* columns that each level is moved to the right */
#define TEXT_BYTES 1024

static void print_help(void)
{
    printf(
        "usage: blockstep graph [OPTION...]\n\n"
        "Prints the nodes of a daemon as a tree: exports and jobs on top, below them what they use,\n"
        "with drivers, sizes, files, permissions, and what forbids changes. With -o json: the answer\n"
        "of x-debug-query-block-graph.\n\n" TARGET_HELP
        "      --dot              for Graphviz: blockstep graph --dot | dot -Tsvg > graph.svg\n");
}

struct picture {
    struct json_object *nodes, *edges;
    bool *shown; /* of nodes, by index */
};

static size_t array_length(struct json_object *array)
{
    return json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
}

static const char *text_or(struct json_object *object, const char *key, const char *fallback)
{
    const char *text = json_text(object, key);

    return text != NULL ? text : fallback;
}

static bool is_user(struct json_object *node)
{
    return strcmp(text_or(node, "type", ""), "block-driver") != 0;
}

/* As printf() would print it, but on one line and harmless to a terminal. */
static void PRINTF_LIKE(2, 3) say(char text[TEXT_BYTES], const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    text_format(text, TEXT_BYTES, fmt, args);
    va_end(args);
}

/* "export 'e'", "job 'm'", "throttle 'slow'" */
static void say_head(struct json_object *node, char text[TEXT_BYTES])
{
    const char *type = text_or(node, "type", "");
    const char *what = text_or(node, "x-driver", "export");

    if (strcmp(type, "block-job") == 0)
        what = "job";
    say(text, "%s '%s'", what, text_or(node, "name", "?"));
}

/* "64 MiB, read-only, 3 MiB dirty, /disk.raw" of a node; a user has none. */
static void say_details(struct json_object *node, char text[TEXT_BYTES])
{
    const char *filename = json_text(node, "x-filename");
    char size[32], dirty[32] = "";

    text[0] = '\0';
    if (is_user(node))
        return;
    /* Not a place, but how to make it. */
    if (filename != NULL && strncmp(filename, "json:", 5) == 0)
        filename = NULL;
    if (json_member(node, "x-dirty") != NULL)
        size_format(json_uint(node, "x-dirty"), dirty, sizeof(dirty));
    say(text, "%s%s%s%s%s%s%s", size_format(json_uint(node, "x-size"), size, sizeof(size)),
        json_flag(node, "x-read-only") ? ", read-only" : "", dirty[0] != '\0' ? ", " : "", dirty,
        dirty[0] != '\0' ? " dirty" : "", filename != NULL ? ", " : "",
        filename != NULL ? filename : "");
}

static bool list_has(struct json_object *list, const char *text)
{
    for (size_t i = 0; i < array_length(list); i++) {
        const char *item = json_object_get_string(json_object_array_get_idx(list, i));

        if (item != NULL && strcmp(item, text) == 0)
            return true;
    }
    return false;
}

/* Those of the permissions that the list has, or has not. */
static void join_permissions(struct json_object *list, bool had, char text[TEXT_BYTES])
{
    static const char *const all[] = {"consistent-read", "write", "write-unchanged", "resize"};
    size_t length = 0;

    text[0] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        if (list_has(list, all[i]) == had)
            length += (size_t)snprintf(text + length, TEXT_BYTES - length, "%s%s",
                                       length > 0 ? ", " : "", all[i]);
    }
}

/* What the parent needs of the child, and what it keeps others from: "needs write; forbids resize". */
static void say_permissions(struct json_object *edge, char text[TEXT_BYTES])
{
    char needs[TEXT_BYTES], denied[TEXT_BYTES];

    join_permissions(json_member(edge, "perm"), true, needs);
    join_permissions(json_member(edge, "shared-perm"), false, denied);
    say(text, "%s%s%s%s", needs[0] != '\0' ? "needs " : "needs nothing", needs,
        denied[0] != '\0' ? "; forbids others " : "", denied);
}

static size_t node_index(const struct picture *picture, uint64_t id)
{
    size_t count = array_length(picture->nodes), i = 0;

    while (i < count && json_uint(json_object_array_get_idx(picture->nodes, i), "id") != id)
        i++;
    return i;
}

/* --- the tree --- */

static void print_blockers(struct json_object *node, int column)
{
    struct json_object *blockers = json_member(node, "x-blockers");
    char text[TEXT_BYTES];

    for (size_t i = 0; i < array_length(blockers); i++) {
        say(text, "%s", json_object_get_string(json_object_array_get_idx(blockers, i)));
        printf("%*s%sblocked: %s%s\n", column, "", cli_style(CLI_WARN), text, cli_style(CLI_PLAIN));
    }
}

static void print_node(const struct picture *picture, size_t index, struct json_object *edge,
                       unsigned level);

static void print_children(const struct picture *picture, uint64_t id, unsigned level)
{
    for (size_t i = 0; i < array_length(picture->edges); i++) {
        struct json_object *edge = json_object_array_get_idx(picture->edges, i);

        if (json_uint(edge, "parent") == id)
            print_node(picture, node_index(picture, json_uint(edge, "child")), edge, level);
    }
}

/* A node that has stood above is named, and what is below it not repeated. */
static void print_node(const struct picture *picture, size_t index, struct json_object *edge,
                       unsigned level)
{
    struct json_object *node = json_object_array_get_idx(picture->nodes, index);
    char text[TEXT_BYTES];
    int column = (int)level * STEP;

    if (index >= array_length(picture->nodes) || level >= MAX_LEVELS)
        return;
    printf("%*s", column, "");
    if (edge != NULL) {
        say(text, "%s", text_or(edge, "name", ""));
        printf("%s: ", text);
    }
    say_head(node, text);
    printf("%s%s%s", cli_style(CLI_BOLD), text, cli_style(CLI_PLAIN));
    say_details(node, text);
    if (text[0] != '\0')
        printf(" (%s%s)", text, picture->shown[index] ? ", see above" : "");
    if (edge != NULL) {
        say_permissions(edge, text);
        printf("%s  %s%s", cli_style(CLI_FAINT), text, cli_style(CLI_PLAIN));
    }
    putchar('\n');
    if (picture->shown[index])
        return;
    picture->shown[index] = true;
    print_blockers(node, column + STEP);
    print_children(picture, json_uint(node, "id"), level + 1);
}

static bool has_parent(const struct picture *picture, uint64_t id)
{
    for (size_t i = 0; i < array_length(picture->edges); i++) {
        if (json_uint(json_object_array_get_idx(picture->edges, i), "child") == id)
            return true;
    }
    return false;
}

/* Exports, jobs, and last what nobody uses. */
static void print_tree(const struct picture *picture)
{
    static const char *const order[] = {"block-backend", "block-job", "block-driver"};

    for (size_t kind = 0; kind < ARRAY_LEN(order); kind++) {
        for (size_t i = 0; i < array_length(picture->nodes); i++) {
            struct json_object *node = json_object_array_get_idx(picture->nodes, i);

            if (strcmp(text_or(node, "type", ""), order[kind]) == 0 &&
                !has_parent(picture, json_uint(node, "id")))
                print_node(picture, i, NULL, 0);
        }
    }
}

/* --- Graphviz --- */

/* In double quotes; a backslash begins an escape in a label. */
static void print_quoted(const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar(*text);
    }
}

static void print_dot_node(struct json_object *node)
{
    char text[TEXT_BYTES];

    say_head(node, text);
    printf("    n%" PRIu64 " [shape=%s, label=\"", json_uint(node, "id"),
           is_user(node) ? "ellipse" : "box");
    print_quoted(text);
    say_details(node, text);
    if (text[0] != '\0') {
        printf("\\n");
        print_quoted(text);
    }
    printf("\"%s];\n", array_length(json_member(node, "x-blockers")) > 0 ? ", style=bold" : "");
}

static void print_dot(const struct picture *picture)
{
    char text[TEXT_BYTES];

    printf("digraph blockstep {\n");
    for (size_t i = 0; i < array_length(picture->nodes); i++)
        print_dot_node(json_object_array_get_idx(picture->nodes, i));
    for (size_t i = 0; i < array_length(picture->edges); i++) {
        struct json_object *edge = json_object_array_get_idx(picture->edges, i);

        printf("    n%" PRIu64 " -> n%" PRIu64 " [label=\"", json_uint(edge, "parent"),
               json_uint(edge, "child"));
        say(text, "%s", text_or(edge, "name", ""));
        print_quoted(text);
        printf("\", tooltip=\"");
        say_permissions(edge, text);
        print_quoted(text);
        printf("\"];\n");
    }
    printf("}\n");
}

static int print_graph(struct json_object *graph, bool dot)
{
    struct picture picture = {.nodes = json_member(graph, "nodes"),
                              .edges = json_member(graph, "edges")};

    picture.shown = calloc(array_length(picture.nodes) + 1, sizeof(bool));
    if (picture.shown == NULL) {
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    if (dot)
        print_dot(&picture);
    else
        print_tree(&picture);
    free(picture.shown);
    return EXIT_OK;
}

int verb_graph(int argc, char **argv)
{
    static const struct option options[] = {
        TARGET_LONG_OPTIONS, {"dot", no_argument, NULL, 'd'}, {0}};
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    CLEANUP(json_putp) struct json_object *graph = NULL;
    struct target target = {0};
    bool dot = false;
    int option, code;

    while ((option = getopt_long(argc, argv, TARGET_SHORT_OPTIONS, options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        if (option == 'd')
            dot = true;
        else if (target_take(&target, option) < 0)
            return EXIT_USAGE;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    if (dot && target.json)
        return cli_usage_error("--dot and -o json are two forms of the answer: choose one");
    code = target_connect(&target, &client);
    if (code == EXIT_OK)
        code = verb_run(client, "graph", "x-debug-query-block-graph", NULL, &graph);
    if (code != EXIT_OK)
        return code;
    return target.json ? cli_print_answer(graph) : print_graph(graph, dot);
}
