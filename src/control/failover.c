/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a failover needs of the daemon: the fence before it (the peer's way to the disks ends) and
 * the promotion after it (exports that waited for it become writable).
 */
#include "base/log.h"
#include "control/daemon.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- the fence --- */

struct fence {
    struct nbd_service *nbd;
    struct edge *const *roots;
    size_t count;
    char (*ids)[NBD_MAX_EXPORT_ID_BYTES]; /* of the roots' exports */
    /* Of one server at a time. */
    const char *server;
    size_t exports, hit;
};

static bool is_fenced(const struct fence *fence, const char *id)
{
    for (size_t i = 0; i < fence->count; i++) {
        if (strcmp(fence->ids[i], id) == 0)
            return true;
    }
    return false;
}

static void count_exports(void *arg, const struct nbd_export_info *info)
{
    struct fence *fence = arg;

    if (strcmp(info->server, fence->server) != 0)
        return;
    fence->exports++;
    fence->hit += is_fenced(fence, info->id);
}

struct server_names {
    size_t count;
    char names[NBD_MAX_SERVERS][NBD_MAX_EXPORT_ID_BYTES];
};

static void collect_server(void *arg, const struct nbd_server_info *info)
{
    struct server_names *servers = arg;

    if (servers->count < NBD_MAX_SERVERS && !info->fenced)
        snprintf(servers->names[servers->count++], NBD_MAX_EXPORT_ID_BYTES, "%s", info->id);
}

/* A server whose exports all go stops listening; one with others goes on for these. */
static int fence_servers(struct fence *fence, struct err *err) MAY_WAIT
{
    struct server_names *servers = calloc(1, sizeof(*servers));
    int r = 0;

    if (servers == NULL)
        return err_no_memory(err);
    nbd_server_query(fence->nbd, collect_server, servers);
    for (size_t i = 0; r == 0 && i < servers->count; i++) {
        fence->server = servers->names[i];
        fence->exports = fence->hit = 0;
        nbd_export_query(fence->nbd, count_exports, fence);
        if (fence->hit > 0 && fence->hit == fence->exports)
            r = nbd_server_fence(fence->nbd, fence->server, err);
    }
    free(servers);
    return r;
}

static int fence_exports(struct fence *fence, struct err *err) MAY_WAIT
{
    int r = fence_servers(fence, err);

    for (size_t i = 0; r == 0 && i < fence->count; i++)
        r = nbd_export_revoke(fence->nbd, fence->ids[i], err);
    for (size_t i = 0; r == 0 && i < fence->count; i++) {
        log_info("failover", "export '%s' is taken away from the peer", fence->ids[i]);
        r = nbd_export_del(fence->nbd, fence->ids[i], NBD_REMOVE_HARD, err);
    }
    return r;
}

int daemon_fence(void *arg, struct edge *const *roots, size_t count, struct err *err)
{
    struct daemon *daemon = arg;
    struct fence fence = {.nbd = daemon->nbd, .roots = roots, .count = count};
    int r = 0;

    if (count == 0)
        return 0;
    fence.ids = calloc(count, sizeof(*fence.ids));
    if (fence.ids == NULL)
        return err_no_memory(err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        const char *id = nbd_export_id(daemon->nbd, roots[i]);

        if (id == NULL)
            r = err_set(err, -EBUSY, "node '%s' is in use by %s, which is no export",
                        roots[i]->child->name, roots[i]->name);
        else
            snprintf(fence.ids[i], sizeof(fence.ids[i]), "%s", id);
    }
    if (r == 0)
        r = fence_exports(&fence, err);
    free(fence.ids);
    return r;
}

/* --- the promotion --- */

/* The export goes and comes back writable: clients learn what they may do when they connect. */
static int promote(struct daemon *daemon, struct daemon_promoted *promoted, struct err *err)
    MAY_WAIT
{
    struct config_export *options = &promoted->options;
    int r;

    if (nbd_export_exists(daemon->nbd, options->id)) {
        r = nbd_export_del(daemon->nbd, options->id, NBD_REMOVE_HARD, err);
        if (r < 0)
            return r;
    }
    options->writable_after_failover = false;
    options->writable = true;
    return daemon_add_export(daemon, options, err);
}

static int promote_all(struct daemon *daemon, struct err *err) MAY_WAIT
{
    struct daemon_promoted *promoted;
    int result = 0;

    while ((promoted = LIST_POP_FRONT(&daemon->promoted, struct daemon_promoted, link)) != NULL) {
        int r = promote(daemon, promoted, err);

        if (r < 0) {
            log_error("failover", "export '%s' did not become writable: %s", promoted->options.id,
                      err->text);
            result = r;
        } else {
            log_info("failover", "export '%s' is writable now", promoted->options.id);
        }
        opts_release(config_export_opts, &promoted->options);
        free(promoted);
    }
    return result;
}

/* --- the end of replication --- */

/* Both sides' managers wait for it under this name. */
static void tell_exit(struct daemon *daemon, enum replication_mode mode)
{
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();

    if (data != NULL && json_add_string(data, "mode", replication_mode_name(mode)) == 0 &&
        json_add_string(data, "reason", "request") == 0)
        qmp_server_event(daemon->qmp, "COLO_EXIT", TAKE_PTR(data));
}

static int stop(struct daemon *daemon, bool failover, bool force, struct err *err) MAY_WAIT
{
    enum replication_mode mode;
    enum replication_stage stage;
    bool running = replication_state(daemon->group, &mode, &stage) &&
                   (stage == REPLICATION_RUNNING || stage == REPLICATION_FAILOVER_FAILED);
    int r = force ? replication_force_failover(daemon->group, err)
                  : replication_stop(daemon->group, failover, err);

    if (r == 0 && running)
        tell_exit(daemon, mode);
    return r;
}

int daemon_stop_replication(struct daemon *daemon, struct err *err)
{
    return stop(daemon, false, false, err);
}

int daemon_failover(struct daemon *daemon, bool force, struct err *err)
{
    int r = stop(daemon, true, force, err);

    /* One that is ignored, of a group that was stopped, promotes nobody. */
    if (r < 0 || !replication_has_taken_over(daemon->group))
        return r;
    r = promote_all(daemon, err);
    if (r < 0)
        return err_prefix(err, "the failover has succeeded, but an export is still read-only");
    return 0;
}
