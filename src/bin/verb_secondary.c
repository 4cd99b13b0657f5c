/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blockstep secondary: the usual graph of the side that takes over. For a disk called D:
 *
 *     peer's export D  -> D                                    (the secondary disk)
 *     user's export D  -> D-top (quorum) -> D-repl -> D-active -> D-hidden -> D
 *
 * The start puts the copy-before-write filter above D.
 */
#include "base/log.h"
#include "bin/runtime.h"
#include "bin/serve.h"
#include "drivers/overlay.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <string.h>

static void print_help(void)
{
    printf(
        "usage: blockstep secondary --name NAME --disk [NAME=]PATH... --listen HOST:PORT\n"
        "                           --control HOST:PORT --export unix:PATH [OPTION...]\n\n"
        "Takes what a primary writes, keeps the state of the last checkpoint, and takes over\n"
        "when told to (blockstep failover). Runs in the foreground until it gets SIGTERM.\n\n" SERVE_HELP
        "      --listen HOST:PORT     where the primary connects\n"
        "      --control HOST:PORT    where the primary's host takes checkpoints\n"
        "      --overlays DIR         folder of the overlays (default: beside each disk)\n"
        "      --run-standby          a machine runs on this side all the time: its export is\n"
        "                             writable already before a failover\n"
        "      --durability LEVEL     what a checkpoint survives: process (a killed daemon;\n"
        "                             default) or none\n"
        "      --sync                 begin anew: the disks are not equal, and a primary with\n"
        "                             --sync will copy its own (the first start does so too)\n"
        "      --fresh                begin anew: your word that the disks are equal\n"
        "\nWithout --sync and --fresh a start goes on where the last one ended or was killed, as\n"
        "the record in the state folder says.\n");
}

/* --- overlays --- */

static void overlay_path(const struct serve *serve, const struct serve_disk *disk, const char *kind,
                         char path[PATH_MAX])
{
    char copy[PATH_MAX];
    const char *folder = serve->overlays;

    if (folder == NULL) {
        snprintf(copy, sizeof(copy), "%s", disk->path);
        folder = dirname(copy);
    }
    snprintf(path, PATH_MAX, "%s/%s-%s.%s", folder, serve->name, disk->name, kind);
}

static int make_overlay(struct serve *serve, const struct serve_disk *disk, const char *path,
                        struct err *err) MAY_WAIT
{
    const struct overlay_create create = {.virtual_bytes = disk->length_bytes};

    if (path_exists(serve->daemon->loop, path))
        return 0;
    return overlay_create(serve->daemon->loop, path, &create, false, err);
}

static int add_overlay(struct serve *serve, const struct serve_disk *disk, const char *kind,
                       const char *backing_suffix, struct err *err) MAY_WAIT
{
    char path[PATH_MAX], name[NODE_NAME_BYTES], suffix[16];
    struct json_object *options;
    struct node *node;
    int r;

    overlay_path(serve, disk, kind, path);
    r = make_overlay(serve, disk, path, err);
    if (r < 0)
        return r;
    snprintf(suffix, sizeof(suffix), "-%s", kind);
    options = serve_options(disk, "overlay", suffix);
    if (options == NULL || json_add(options, "file", serve_file_options(path)) < 0 ||
        json_add_string(options, "on-damage", "hold") < 0 ||
        json_add_string(options, "backing", serve_node_name(disk, backing_suffix, name)) < 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    r = serve_node(serve, disk, options, &node, err);
    if (r < 0)
        return r;
    if (node->length_bytes == disk->length_bytes)
        return 0;
    return err_set(err, -EINVAL,
                   "overlay %s is for a disk of %" PRIu64 " bytes, but %s has %" PRIu64
                   ": give another --overlays, or remove it if it belongs to no other disk",
                   path, node->length_bytes, disk->path, disk->length_bytes);
}

/* --- the graph of one disk --- */

static int add_filter(struct serve *serve, const struct serve_disk *disk, struct err *err) MAY_WAIT
{
    struct json_object *options = serve_options(disk, "replication", "-repl");
    char name[NODE_NAME_BYTES];
    struct node *node;
    int r = options == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_string(options, "mode", "secondary");
        r |= json_add_string(options, "top-id", serve_node_name(disk, "-top", name));
        r |= json_add_string(options, "file", serve_node_name(disk, "-active", name));
    }
    if (r != 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    return serve_node(serve, disk, options, &node, err);
}

static int add_top(struct serve *serve, const struct serve_disk *disk, struct err *err) MAY_WAIT
{
    struct json_object *options = serve_options(disk, "quorum", "-top");
    struct json_object *children = json_object_new_array();
    char name[NODE_NAME_BYTES];
    struct json_object *child = json_object_new_string(serve_node_name(disk, "-repl", name));
    struct node *node;
    int r = 0;

    if (options == NULL || children == NULL || child == NULL ||
        json_object_array_add(children, child) < 0) {
        json_object_put(child);
        json_object_put(children);
        json_object_put(options);
        return err_no_memory(err);
    }
    r |= json_add_string(options, "read-pattern", "fifo");
    r |= json_add_uint(options, "vote-threshold", 1);
    r |= json_add(options, "children", children);
    if (r != 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    return serve_node(serve, disk, options, &node, err);
}

static int add_disk(struct serve *serve, struct serve_disk *disk, struct err *err) MAY_WAIT
{
    struct json_object *options = serve_options(disk, "file", "");
    struct node *node;
    int r;

    if (options == NULL || json_add_string(options, "filename", disk->path) < 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    r = serve_node(serve, disk, options, &node, err);
    if (r < 0)
        return r;
    disk->length_bytes = node->length_bytes;
    r = add_overlay(serve, disk, "hidden", "", err);
    if (r == 0)
        r = add_overlay(serve, disk, "active", "-hidden", err);
    if (r == 0)
        r = add_filter(serve, disk, err);
    return r < 0 ? r : add_top(serve, disk, err);
}

/* --- all of it --- */

static int add_user_exports(struct serve *serve, struct err *err) MAY_WAIT
{
    bool writable = serve->run_standby || replication_has_taken_over(serve->daemon->group);
    int r;

    if (serve->export == NULL && serve->passed_fd == 0)
        return 0;
    r = serve_listen_user(serve, err);
    for (size_t i = 0; r == 0 && i < serve->disk_count; i++) {
        char top[NODE_NAME_BYTES];

        serve_node_name(&serve->disks[i], "-top", top);
        r = serve_export(serve, &serve->disks[i], SERVER_USER, top, writable, !writable, err);
    }
    return r;
}

/* After the start, so that nothing of a primary comes before old content is saved. Disks that are, or
 * become, the only copy take nothing from a primary. */
static int add_peer_exports(struct serve *serve, struct err *err) MAY_WAIT
{
    int r = 0;

    if (!replication_takes_primary(serve->daemon->group))
        return 0;
    r = serve_listen(serve, SERVER_PEER, serve->listen, "--listen", err);
    for (size_t i = 0; r == 0 && i < serve->disk_count; i++)
        r = serve_export(serve, &serve->disks[i], SERVER_PEER, serve->disks[i].name, true, false,
                         err);
    return r;
}

/* A first start without a word is of disks that nobody has called equal. */
static int start(struct serve *serve, struct err *err) MAY_WAIT
{
    struct replication_group *group = serve->daemon->group;
    enum replication_overlays overlays = serve->on_overlays;

    if (overlays == REPLICATION_OVERLAYS_EMPTY && !replication_has_record(group))
        overlays = REPLICATION_OVERLAYS_SYNC;
    return replication_start(group, REPLICATION_SECONDARY, overlays, err);
}

static int assemble(struct serve *serve, struct err *err) MAY_WAIT
{
    int r = 0;

    if (serve->overlays != NULL)
        r = folder_make(serve->overlays, 0700, err);
    for (size_t i = 0; r == 0 && i < serve->disk_count; i++)
        r = add_disk(serve, &serve->disks[i], err);
    if (r == 0)
        r = start(serve, err);
    if (r == 0)
        r = add_user_exports(serve, err);
    return r < 0 ? r : add_peer_exports(serve, err);
}

static int take_overlays(struct serve *serve, enum replication_overlays choice)
{
    if (serve->on_overlays != REPLICATION_OVERLAYS_EMPTY && serve->on_overlays != choice)
        return cli_usage_error("--sync and --fresh exclude each other");
    serve->on_overlays = choice;
    return -1;
}

static int take_durability(struct serve *serve)
{
    struct err err = ERR_INIT;

    return config_durability(optarg, &serve->durability, &err) < 0 ? cli_usage_error("%s", err.text)
                                                                   : -1;
}

static int take(struct serve *serve, int option)
{
    switch (option) {
    case 'l':
        serve->listen = optarg;
        return -1;
    case 'c':
        serve->control = optarg;
        return -1;
    case 'O':
        serve->overlays = optarg;
        return -1;
    case 'S':
        serve->run_standby = true;
        return -1;
    case 'f':
        return take_overlays(serve, REPLICATION_OVERLAYS_FRESH);
    case 'D':
        return take_durability(serve);
    case 'y':
        return take_overlays(serve, REPLICATION_OVERLAYS_SYNC);
    default:
        return serve_take(serve, option);
    }
}

int verb_secondary(int argc, char **argv)
{
    static const struct option options[] = {
        SERVE_LONG_OPTIONS,
        {"listen", required_argument, NULL, 'l'},
        {"control", required_argument, NULL, 'c'},
        {"overlays", required_argument, NULL, 'O'},
        {"run-standby", no_argument, NULL, 'S'},
        {"fresh", no_argument, NULL, 'f'},
        {"durability", required_argument, NULL, 'D'},
        {"sync", no_argument, NULL, 'y'},
        {0},
    };
    struct serve serve = {.durability = GROUP_LEVEL_PROCESS};
    int option;

    while ((option = getopt_long(argc, argv, "n:o:h", options, NULL)) != -1) {
        int code;

        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        code = take(&serve, option);
        if (code >= 0)
            return code;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    if (serve_passed_fd(&serve) < 0)
        return EXIT_USAGE;
    if (serve.name != NULL && serve.listen == NULL)
        return cli_usage_error("--listen is missing: where does the primary connect?");
    return serve_run(&serve, REPLICATION_SECONDARY, assemble);
}
