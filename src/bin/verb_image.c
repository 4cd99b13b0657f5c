/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep image create, info, check, map: disk images without a daemon. */
#include "bin/verbs.h"

#include "block/io.h"
#include "drivers/overlay.h"
#include "drivers/table.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct image {
    const char *verb, *format, *path;
    uint64_t size_bytes;
    bool json, replace;
    bool damaged; /* what check has found */
    int code;
};

static void print_help(void)
{
    printf("usage: blockstep image create -f raw|overlay [--replace] FILE SIZE\n"
           "       blockstep image info [-f FORMAT] [-o json] FILE\n"
           "       blockstep image check [-o json] FILE\n"
           "       blockstep image map [-f FORMAT] [-o json] FILE\n\n"
           "create makes an empty image; SIZE takes k, M, G, T. info tells format and size; of an\n"
           "overlay also what it holds. check reads all of an overlay, and tells what is damaged\n"
           "and what a start would make of it; exit status 3: damaged. map tells which stretches\n"
           "hold data: of an overlay, what it holds itself.\n\n"
           "  -f, --format FORMAT    raw or overlay (info and map find out)\n"
           "      --replace          create: also when FILE exists; what it holds is lost\n"
           "  -o, --output FORMAT    text (default) or json\n");
}

/* --- create --- */

static int create_raw(struct loop *loop, const struct image *image, struct err *err) MAY_WAIT
{
    unsigned flags = FILE_WRITABLE | FILE_CREATE |
                     (image->replace ? FILE_TRUNCATE : FILE_EXCLUSIVE);
    struct file *file = NULL;
    int r = file_open(loop, image->path, flags, FILE_AIO_AUTO, &file, err);

    if (r < 0)
        return r;
    r = file_truncate(file, image->size_bytes);
    if (r < 0)
        err_set_errno(err, r, "%s: cannot set the size", image->path);
    file_close(file);
    return r;
}

static int create(struct loop *loop, const struct image *image, struct err *err) MAY_WAIT
{
    const struct overlay_create options = {.virtual_bytes = image->size_bytes};

    if (strcmp(image->format, "overlay") == 0)
        return overlay_create(loop, image->path, &options, image->replace, err);
    return create_raw(loop, image, err);
}

/* --- a graph for looking at an image --- */

struct view {
    struct graph *graph;
    struct edge *root;
    struct node *node;
    bool overlay;
    uint64_t file_bytes;
    struct json_object *info; /* of an overlay */
};

static struct json_object *node_options(const char *driver, const char *name)
{
    struct json_object *options = json_object_new_object();

    if (options != NULL && (json_add_string(options, "driver", driver) < 0 ||
                            json_add_string(options, "node-name", name) < 0 ||
                            json_add_bool(options, "read-only", true) < 0)) {
        json_object_put(options);
        return NULL;
    }
    return options;
}

/* Takes the reference on the options. */
static int view_add(struct view *view, struct json_object *options, struct err *err) MAY_WAIT
{
    struct node *node;
    int r = options == NULL
                ? err_no_memory(err)
                : graph_add(view->graph, options, OPTS_JSON, "opening", true, &node, err);

    json_object_put(options);
    if (r < 0)
        return r;
    graph_detach(view->root);
    view->root = NULL;
    view->node = node;
    return graph_attach_root(view->graph, node, "image", PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL,
                             &view->root, err);
}

static int view_overlay(struct view *view, struct err *err) MAY_WAIT
{
    struct json_object *backing = node_options("null-co", "backing");
    struct json_object *options = node_options("overlay", "overlay");
    struct node *node;
    int r = backing == NULL || options == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_uint(backing, "size", json_uint(view->info, "virtual-size"));
        r |= json_add_string(options, "file", "file");
        r |= json_add_string(options, "backing", "backing");
        r |= json_add_string(options, "on-damage", "hold");
    }
    if (r != 0)
        err_no_memory(err);
    else
        r = graph_add(view->graph, backing, OPTS_JSON, "opening", true, &node, err);
    json_object_put(backing);
    if (r < 0) {
        json_object_put(options);
        return r;
    }
    return view_add(view, options, err);
}

/* Opens the file, finds out what it is, and for an overlay fetches what it says of itself. */
static int view_open(struct view *view, const struct image *image, struct err *err) MAY_WAIT
{
    struct json_object *options = node_options("file", "file");
    int r;

    if (options != NULL && json_add_string(options, "filename", image->path) < 0) {
        json_object_put(options);
        options = NULL;
    }
    r = view_add(view, options, err);
    if (r < 0)
        return r;
    view->file_bytes = view->node->length_bytes;
    if (image->format != NULL && strcmp(image->format, "raw") == 0)
        return 0;
    r = overlay_info(view->root, &view->info, err);
    view->overlay = r == 0;
    if (r == -EMEDIUMTYPE && image->format == NULL) {
        err_clear(err);
        return 0;
    }
    return r < 0 ? err_prefix(err, "%s", image->path) : 0;
}

static void view_close(struct view *view) MAY_WAIT
{
    graph_detach(view->root);
    graph_free(view->graph);
    json_object_put(view->info);
}

/* --- info --- */

/* Reads all of the log; a text when it is damaged. */
static int add_held(struct view *view, struct json_object *object, struct err *err) MAY_WAIT
{
    struct overlay_identity identity;
    struct overlay_stretch stretch;
    uint64_t data_bytes = 0, zero_bytes = 0;
    int r = view_overlay(view, err);

    if (r < 0)
        return r;
    (void)overlay_identity(view->node, &identity);
    struct overlay_stats stats = overlay_stats(view->node);
    for (uint64_t at = 0; overlay_next_held(view->node, at, &stretch);
         at = stretch.offset_bytes + stretch.length_bytes)
        *(stretch.zero ? &zero_bytes : &data_bytes) += stretch.length_bytes;
    r = json_add_uint(object, "records", stats.records);
    r |= json_add_uint(object, "log-bytes", stats.log_bytes);
    if (identity.damaged) {
        r |= json_add_string(object, "damage", identity.damage);
    } else {
        uint64_t needed = OVERLAY_LOG_OFFSET_BYTES + data_bytes;

        r |= json_add_uint(object, "held-bytes", data_bytes);
        r |= json_add_uint(object, "zero-bytes", zero_bytes);
        r |= json_add_uint(object, "wasted-bytes", stats.log_bytes - MIN(stats.log_bytes, needed));
    }
    return r != 0 ? err_no_memory(err) : 0;
}

static void print_members(struct json_object *object)
{
    json_object_object_foreach(object, key, value)
    {
        if (strcmp(key, "format") != 0 && strcmp(key, "virtual-size") != 0 &&
            strcmp(key, "filename") != 0 && strcmp(key, "result") != 0 &&
            !json_object_is_type(value, json_type_array))
            printf("  %-12s %s\n", key, json_object_get_string(value));
    }
}

static int print_info(const struct image *image, struct view *view, struct err *err) MAY_WAIT
{
    struct json_object *info = view->info != NULL ? view->info : json_object_new_object();
    uint64_t size = view->overlay ? json_uint(info, "virtual-size") : view->file_bytes;
    char text[32];
    int r = info == NULL ? -ENOMEM : 0;

    view->info = info;
    if (r == 0 && !view->overlay) {
        r |= json_add_string(info, "format", "raw");
        r |= json_add_uint(info, "virtual-size", size);
    }
    if (r == 0) {
        r |= json_add_string(info, "filename", image->path);
        r |= json_add_uint(info, "file-size", view->file_bytes);
    }
    if (r != 0)
        return err_no_memory(err);
    r = view->overlay ? add_held(view, info, err) : 0;
    if (r < 0)
        return err_prefix(err, "%s", image->path);
    if (image->json)
        return cli_print_answer(info) == EXIT_OK ? 0 : err_no_memory(err);
    printf("%s: %s, %s (%" PRIu64 " bytes)\n", image->path, json_text(info, "format"),
           size_format(size, text, sizeof(text)), size);
    print_members(info);
    return 0;
}

/* --- check --- */

/* In words, what `secondary` or a daemon would do with the image as it is. */
static const char *start_text(struct json_object *answer)
{
    if (json_text(answer, "damage") != NULL)
        return "refuses it; what it held is lost: empty it, or put an image from a backup in its place";
    if (json_uint(answer, "held-bytes") + json_uint(answer, "zero-bytes") == 0)
        return "takes it: it is empty";
    return "takes it with what it holds, if the group's record says that its generation is live";
}

static int check_answer(const struct image *image, struct view *view, int found, struct err *err,
                        struct json_object *answer) MAY_WAIT
{
    struct json_object *superblocks = NULL;
    int r = json_add_string(answer, "filename", image->path);

    r |= json_add_string(answer, "format", "overlay");
    if (found == 0) {
        r |= json_add_uint(answer, "virtual-size", json_uint(view->info, "virtual-size"));
        r |= json_add_uint(answer, "generation", json_uint(view->info, "generation"));
        r |= json_add_uint(answer, "epoch", json_uint(view->info, "epoch"));
        r |= json_add_bool(answer, "clean", json_flag(view->info, "clean"));
    } else {
        r |= json_add_string(answer, "damage", err->text);
        err_clear(err);
    }
    if (r != 0)
        return err_no_memory(err);
    /* The edge leads to the file until add_held() puts the overlay on it. */
    r = overlay_superblocks(view->root, &superblocks, err);
    if (r == 0 && json_add(answer, "superblocks", superblocks) < 0)
        r = err_no_memory(err);
    if (r == 0 && found == 0)
        r = add_held(view, answer, err);
    if (r < 0)
        return r;
    const char *result = json_text(answer, "damage") != NULL ? "damaged" : "good";
    if (json_add_string(answer, "result", result) < 0 ||
        json_add_string(answer, "start", start_text(answer)) < 0)
        return err_no_memory(err);
    return 0;
}

static void print_superblocks(struct json_object *list)
{
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *one = json_object_array_get_idx(list, i);
        const char *state = json_text(one, "state"), *reason = json_text(one, "reason");

        if (strcmp(state, "good") == 0)
            printf("  superblock %zu good: serial %" PRIu64 ", generation %" PRIu64 "%s\n", i,
                   json_uint(one, "serial"), json_uint(one, "generation"),
                   json_flag(one, "clean") ? ", closed in good order" : "");
        else
            printf("  superblock %zu %s%s%s\n", i, state, reason != NULL ? ": " : "",
                   reason != NULL ? reason : "");
    }
}

/* `found`: whether the superblocks could be used; `err` says why not. */
static int print_check(struct image *image, struct view *view, int found, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *answer = json_object_new_object();
    int r = answer == NULL ? err_no_memory(err) : check_answer(image, view, found, err, answer);

    if (r < 0)
        return r;
    image->damaged = json_text(answer, "damage") != NULL;
    if (image->json)
        return cli_print_answer(answer) == EXIT_OK ? 0 : err_no_memory(err);
    printf("%s: %s%s%s\n", image->path, cli_style(image->damaged ? CLI_BAD : CLI_GOOD),
           json_text(answer, "result"), cli_style(CLI_PLAIN));
    print_superblocks(json_member(answer, "superblocks"));
    print_members(answer);
    return 0;
}

/* --- map --- */

struct map_line {
    uint64_t offset_bytes, length_bytes;
    const char *kind;
};

static void print_line(const struct image *image, const struct map_line *line, bool *first)
{
    if (line->length_bytes == 0)
        return;
    if (image->json)
        printf("%s  {\"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"kind\": \"%s\"}",
               *first ? "" : ",\n", line->offset_bytes, line->length_bytes, line->kind);
    else
        printf("%20" PRIu64 " %20" PRIu64 " %s\n", line->offset_bytes, line->length_bytes,
               line->kind);
    *first = false;
}

static int map_overlay(const struct image *image, struct view *view)
{
    struct overlay_stretch stretch;
    uint64_t from = 0;
    bool first = true;

    while (overlay_next_held(view->node, from, &stretch)) {
        const struct map_line line = {stretch.offset_bytes, stretch.length_bytes,
                                      stretch.zero ? "zero" : "data"};

        print_line(image, &line, &first);
        from = stretch.offset_bytes + stretch.length_bytes;
    }
    return 0;
}

static int map_raw(const struct image *image, struct view *view, struct err *err) MAY_WAIT
{
    struct map_line line = {0};
    bool first = true;

    for (uint64_t at = 0; at < view->file_bytes;) {
        struct extent extent;
        const char *kind;
        int r = io_extents(view->root, at, view->file_bytes - at, &extent);

        if (r < 0)
            return err_set_errno(err, r, "%s: at %" PRIu64, image->path, at);
        kind = extent.flags & EXTENT_ZERO ? "zero" : "data";
        if (line.kind != NULL && strcmp(line.kind, kind) != 0) {
            print_line(image, &line, &first);
            line.length_bytes = 0;
        }
        if (line.length_bytes == 0)
            line.offset_bytes = at;
        line.kind = kind;
        line.length_bytes += extent.length_bytes;
        at += extent.length_bytes;
    }
    print_line(image, &line, &first);
    return 0;
}

static int print_map(const struct image *image, struct view *view, struct err *err) MAY_WAIT
{
    struct overlay_identity identity;
    int r = view->overlay ? view_overlay(view, err) : 0;

    if (r < 0)
        return r;
    if (view->overlay && overlay_identity(view->node, &identity) && identity.damaged)
        return err_set(err, -EUCLEAN, "%s: %s", image->path, identity.damage);
    if (image->json)
        puts("[");
    else
        printf("%20s %20s %s\n", "offset", "length", "kind");
    r = view->overlay ? map_overlay(image, view) : map_raw(image, view, err);
    if (image->json)
        puts("\n]");
    return r;
}

/* --- all of it --- */

static int look(struct loop *loop, struct image *image, struct err *err) MAY_WAIT
{
    struct view view = {.graph = graph_new(loop, drivers_table)};
    bool check = strcmp(image->verb, "check") == 0;
    int r;

    if (view.graph == NULL)
        return err_no_memory(err);
    r = view_open(&view, image, err);
    if (check && (r == 0 || r == -EUCLEAN))
        r = print_check(image, &view, r, err);
    else if (r == 0)
        r = strcmp(image->verb, "info") == 0 ? print_info(image, &view, err)
                                             : print_map(image, &view, err);
    view_close(&view);
    return r;
}

static void run(void *arg) MAY_WAIT
{
    struct image *image = arg;
    struct err err = ERR_INIT;
    int r = strcmp(image->verb, "create") == 0 ? create(loop_current(), image, &err)
                                               : look(loop_current(), image, &err);

    if (r < 0)
        cli_error("%s", err.text);
    image->code = r < 0 ? EXIT_FAILED : image->damaged ? EXIT_DAMAGED : EXIT_OK;
}

static int check_words(struct image *image, int count, char **words)
{
    bool creates;

    if (count < 1)
        return cli_usage_error("create, info, check or map?");
    image->verb = words[0];
    creates = strcmp(words[0], "create") == 0;
    if (!creates && strcmp(words[0], "info") != 0 && strcmp(words[0], "map") != 0 &&
        strcmp(words[0], "check") != 0)
        return cli_usage_error("there is no 'image %s'", words[0]);
    if (count != (creates ? 3 : 2))
        return cli_usage_error(creates ? "create takes FILE and SIZE" : "one FILE, please");
    image->path = words[1];
    if (image->format != NULL && strcmp(image->format, "raw") != 0 &&
        strcmp(image->format, "overlay") != 0)
        return cli_usage_error("-f takes raw or overlay, not '%s'", image->format);
    if (strcmp(words[0], "check") == 0 && image->format == NULL)
        image->format = "overlay"; /* of a raw image there is nothing to check */
    if (strcmp(words[0], "check") == 0 && strcmp(image->format, "overlay") != 0)
        return cli_usage_error("only overlay images can be checked");
    if (!creates)
        return EXIT_OK;
    if (image->format == NULL)
        return cli_usage_error("create needs -f raw or -f overlay");
    if (size_parse(words[2], &image->size_bytes) < 0 || image->size_bytes == 0)
        return cli_usage_error("'%s' is not a size (examples: 512M, 10G)", words[2]);
    return EXIT_OK;
}

int verb_image(int argc, char **argv)
{
    static const struct option options[] = {{"format", required_argument, NULL, 'f'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"replace", no_argument, NULL, 'R'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct image image = {0};
    int option, code;

    while ((option = getopt_long(argc, argv, "f:o:h", options, NULL)) != -1) {
        switch (option) {
        case 'f':
            image.format = optarg;
            break;
        case 'R':
            image.replace = true;
            break;
        case 'o':
            if (cli_parse_output(optarg, &image.json) < 0)
                return EXIT_USAGE;
            break;
        case 'h':
            print_help();
            return EXIT_OK;
        default:
            return cli_usage_error("see the usage");
        }
    }
    code = check_words(&image, argc - optind, argv + optind);
    if (code != EXIT_OK)
        return code;
    image.code = EXIT_FAILED;
    code = cli_run_in_loop(run, &image);
    return code != EXIT_OK ? code : image.code;
}
