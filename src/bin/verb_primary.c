/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blockstep primary: the usual graph of the side where the machine runs. For a disk called D:
 *
 *     user's export D -> D (quorum) -> [0] D-local
 *                                   -> [1] D-repl -> D-peer (NBD) -> the secondary
 */
#include "bin/serve.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static void print_help(void)
{
    printf(
        "usage: blockstep primary --name NAME --disk [NAME=]PATH... --peer HOST:PORT\n"
        "                         --export unix:PATH [OPTION...]\n\n"
        "Serves disks to a guest and forwards what it writes to a secondary, which must run\n"
        "already and hold equal copies of the disks, or be given them by --sync. Runs in the\n"
        "foreground until it gets SIGTERM.\n\n" SERVE_HELP
        "      --peer HOST:PORT       the secondary's --listen\n"
        "      --peer-control HOST:PORT\n"
        "                             the secondary's --control: checkpoints are those of both\n"
        "                             sides, and each knows of the other's errors\n"
        "      --sync                 copy the disks to the secondary, while the guest runs, and take\n"
        "                             the first checkpoint (needs --peer-control)\n");
}

static int add_local(struct serve *serve, struct serve_disk *disk, struct err *err) MAY_WAIT
{
    struct json_object *options = serve_options(disk, "file", "-local");
    struct node *node;
    int r;

    if (options == NULL || json_add_string(options, "filename", disk->path) < 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    r = serve_node(serve, disk, options, &node, err);
    if (r == 0)
        disk->length_bytes = node->length_bytes;
    return r;
}

/* {"type": ..., ...} of an address; NULL when memory is out. */
static struct json_object *address_json(const struct sock_address *address)
{
    struct json_object *object = json_object_new_object();
    const char *host = address->host != NULL && *address->host != '\0' ? address->host
                                                                       : "localhost";
    int r = object == NULL ? -ENOMEM : 0;

    if (r == 0 && address->family == SOCK_FAMILY_UNIX) {
        r |= json_add_string(object, "type", "unix");
        r |= json_add_string(object, "path", address->path);
    } else if (r == 0) {
        r |= json_add_string(object, "type", "inet");
        r |= json_add_string(object, "host", host);
        r |= json_add_string(object, "port", address->port);
    }
    if (r == 0)
        return object;
    json_object_put(object);
    return NULL;
}

static int add_peer(struct serve *serve, const struct serve_disk *disk,
                    const struct sock_address *peer, struct err *err) MAY_WAIT
{
    const char *tls = NULL;
    struct node *node;
    int r = peer->family == SOCK_FAMILY_INET ? serve_tls(serve, TLS_CLIENT, &tls, err) : 0;

    if (r < 0)
        return r;
    struct json_object *options = serve_options(disk, "nbd", "-peer");
    r = options == NULL ? -ENOMEM : 0;
    if (r == 0) {
        r |= json_add(options, "server", address_json(peer));
        r |= json_add_string(options, "export", disk->name);
        if (tls != NULL)
            r |= json_add_string(options, "tls-creds", tls);
    }
    if (r != 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    r = serve_node(serve, disk, options, &node, err);
    if (r < 0)
        return err_prefix(err, "peer %s", serve->peer);
    if (node->length_bytes == disk->length_bytes)
        return 0;
    return err_set(err, -EINVAL,
                   "disk '%s' has %" PRIu64 " bytes here (%s) and %" PRIu64
                   " bytes at the peer %s: replication needs disks of one size; make the smaller "
                   "one as large as the other",
                   disk->name, disk->length_bytes, disk->path, node->length_bytes, serve->peer);
}

/* Where the secondary is controlled, for the filter's options; NULL: from here it is not. */
static int peer_control(struct serve *serve, struct json_object **ret_control, struct err *err)
    MAY_WAIT
{
    struct sock_address address = {0};
    struct json_object *control;
    const char *tls = NULL;

    *ret_control = NULL;
    if (serve->peer_control == NULL)
        return 0;
    int r = sock_address_parse(serve->peer_control, "--peer-control", &address, err);
    if (r == 0 && address.family == SOCK_FAMILY_INET)
        r = serve_tls(serve, TLS_CLIENT, &tls, err);
    control = r == 0 ? address_json(&address) : NULL;
    sock_address_release(&address);
    if (r < 0)
        return r;
    if (control == NULL || (tls != NULL && json_add_string(control, "tls-creds", tls) < 0)) {
        json_object_put(control);
        return err_no_memory(err);
    }
    *ret_control = control;
    return 0;
}

static int add_filter(struct serve *serve, const struct serve_disk *disk, struct err *err) MAY_WAIT
{
    struct json_object *control;
    char name[NODE_NAME_BYTES];
    struct node *node;
    int r = peer_control(serve, &control, err);

    if (r < 0)
        return r;
    struct json_object *options = serve_options(disk, "replication", "-repl");
    r = options == NULL ? -ENOMEM : 0;
    if (r == 0) {
        r |= json_add_string(options, "mode", "primary");
        r |= json_add_string(options, "file", serve_node_name(disk, "-peer", name));
        if (control != NULL)
            r |= json_add(options, "peer-control", json_object_get(control));
    }
    json_object_put(control);
    if (r != 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    return serve_node(serve, disk, options, &node, err);
}

static int add_child_name(struct json_object *children, const struct serve_disk *disk,
                          const char *suffix)
{
    char name[NODE_NAME_BYTES];
    struct json_object *child = json_object_new_string(serve_node_name(disk, suffix, name));

    if (child == NULL || json_object_array_add(children, child) < 0) {
        json_object_put(child);
        return -ENOMEM;
    }
    return 0;
}

static int add_quorum(struct serve *serve, const struct serve_disk *disk, struct err *err) MAY_WAIT
{
    struct json_object *options = serve_options(disk, "quorum", "");
    struct json_object *children = json_object_new_array();
    struct node *node;
    int r = options == NULL || children == NULL ? -ENOMEM : 0;

    if (r == 0) {
        r |= json_add_string(options, "read-pattern", "fifo");
        r |= json_add_uint(options, "vote-threshold", 1);
        r |= add_child_name(children, disk, "-local");
        r |= add_child_name(children, disk, "-repl");
        r |= json_add(options, "children", json_object_get(children));
    }
    json_object_put(children);
    if (r != 0) {
        json_object_put(options);
        return err_no_memory(err);
    }
    return serve_node(serve, disk, options, &node, err);
}

static int add_disk(struct serve *serve, struct serve_disk *disk, const struct sock_address *peer,
                    struct err *err) MAY_WAIT
{
    int r = add_local(serve, disk, err);

    if (r == 0)
        r = add_peer(serve, disk, peer, err);
    if (r == 0)
        r = add_filter(serve, disk, err);
    return r < 0 ? r : add_quorum(serve, disk, err);
}

static int assemble(struct serve *serve, struct err *err) MAY_WAIT
{
    struct sock_address peer = {0};
    int r = sock_address_parse(serve->peer, "--peer", &peer, err);

    for (size_t i = 0; r == 0 && i < serve->disk_count; i++)
        r = add_disk(serve, &serve->disks[i], &peer, err);
    sock_address_release(&peer);
    if (r == 0)
        r = replication_start(serve->daemon->group, REPLICATION_PRIMARY,
                              serve->sync ? REPLICATION_OVERLAYS_SYNC : REPLICATION_OVERLAYS_EMPTY,
                              err);
    if (r == 0)
        r = serve_listen_user(serve, err);
    for (size_t i = 0; r == 0 && i < serve->disk_count; i++)
        r = serve_export(serve, &serve->disks[i], SERVER_USER, serve->disks[i].name, true, false,
                         err);
    return r;
}

int verb_primary(int argc, char **argv)
{
    static const struct option options[] = {
        SERVE_LONG_OPTIONS,
        {"peer", required_argument, NULL, 'p'},
        {"peer-control", required_argument, NULL, 'c'},
        {"sync", no_argument, NULL, 'y'},
        {0},
    };
    struct serve serve = {.durability = GROUP_LEVEL_PROCESS};
    int option;

    while ((option = getopt_long(argc, argv, "n:o:h", options, NULL)) != -1) {
        int code = -1;

        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        if (option == 'p')
            serve.peer = optarg;
        else if (option == 'c')
            serve.peer_control = optarg;
        else if (option == 'y')
            serve.sync = true;
        else
            code = serve_take(&serve, option);
        if (code >= 0)
            return code;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    if (serve.peer == NULL)
        return cli_usage_error("--peer is missing: where does the secondary listen?");
    if (serve.sync && serve.peer_control == NULL)
        return cli_usage_error("--sync needs --peer-control: the secondary has to be told when the "
                               "disks are equal");
    if (serve_passed_fd(&serve) < 0)
        return EXIT_USAGE;
    if (serve.export == NULL && serve.passed_fd == 0)
        return cli_usage_error("--export is missing: where does the guest connect?");
    return serve_run(&serve, REPLICATION_PRIMARY, assemble);
}
