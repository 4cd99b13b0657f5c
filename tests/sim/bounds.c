/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a daemon's queues and caches hold, and what its files take, beside the bounds it states. Asked of
 * it directly: what its figures are differs from build to build, so nothing of them may go over the wire. */
#include "world.h"

#include "control/qmp.h"
#include "drivers/nbd_client.h"
#include "export/nbd_server.h"

#include <inttypes.h>

/* docs/overlay-format.md: "Three things bound what an image takes in its file". */
#define LOG_FACTOR         3u
#define LOG_SEGMENTS_BYTES (160u << 20)
#define STATE_BYTES        (1u << 20)

struct figure {
    const char *name;
    uint64_t value, bound;
};

static void check_figures(struct host *host, const struct figure *figures, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (figures[i].value > figures[i].bound)
            world_violation(host->world, invariant_name(I9_BOUNDS),
                            "%s of %s: %" PRIu64 ", and the bound is %" PRIu64, figures[i].name,
                            host->name, figures[i].value, figures[i].bound);
    }
}

static uint64_t node_count(struct graph *graph)
{
    uint64_t count = 0;

    for (struct node *node = NULL; (node = graph_next(graph, node)) != NULL;)
        count++;
    return count;
}

static uint64_t files_bound(const struct history *history)
{
    uint64_t disk_bytes = (uint64_t)history->sectors * ORACLE_SECTOR_BYTES;
    uint64_t log_bytes = LOG_FACTOR * disk_bytes + LOG_SEGMENTS_BYTES;

    return history->disks * (disk_bytes + 2 * log_bytes) + STATE_BYTES;
}

/* Those that have somebody at their other end. Others are half-open: a request that came in part may
 * wait there until somebody sends something, or needs its share. */
static unsigned live_connections(const struct host *host)
{
    const struct world *world = host->world;
    const struct host *truth = &world->hosts[world->truth];
    unsigned count = 0;

    for (uint32_t i = 0; i < world->history->disks; i++) {
        struct nbd_client *client = host->guest.clients[i];
        struct nbd_client_info info = {0};

        if (client != NULL)
            nbd_client_info(client, &info);
        count += info.connected;
    }
    if (host->role == ROLE_STANDBY && truth->linked && host_is_up(truth))
        count += world->history->disks;
    return count;
}

static uint64_t idle_budget(const struct host *host, const struct nbd_service_info *nbd)
{
    unsigned live = live_connections(host);
    uint64_t half_open = nbd->connections > live ? nbd->connections - live : 0;

    return MIN(half_open * NBD_MAX_CONNECTION_BYTES, nbd->budget_bytes);
}

void bounds_check(struct host *host, bool idle)
{
    const struct world *world = host->world;

    if (!host_is_up(host))
        return;
    struct daemon *daemon = host->process->daemon;
    const struct nbd_service_info nbd = nbd_service_info(daemon->nbd);
    const struct qmp_stats qmp = qmp_server_stats(daemon->qmp);
    const struct buf_pool_stats bufs = buf_pool_stats(loop_bufs(host->process->loop));
    const struct figure figures[] = {
        {"bytes of requests", nbd.budget_used_bytes,
         idle ? idle_budget(host, &nbd) : nbd.budget_bytes},
        {"connections", nbd.connections,
         (uint64_t)nbd_server_count(daemon->nbd) * NBD_MAX_CONNECTIONS},
        {"control connections", qmp.clients, QMP_MAX_CLIENTS},
        {"jobs", daemon->jobs.count, idle ? 0 : JOBS_MAX},
        {"nodes", node_count(daemon->graph), GRAPH_MAX_NODES},
        {"cached bytes", bufs.cached_bytes, BUF_CACHE_BYTES},
        {"bytes of files", sim_disk_used_bytes(world->sim, host->name),
         files_bound(world->history)},
    };
    check_figures(host, figures, ARRAY_LEN(figures));
}
