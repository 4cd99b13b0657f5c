/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a daemon says of its queues and caches, and what its files take, beside the bounds it states. */
#include "world.h"

#include <inttypes.h>
#include <string.h>

/* docs/overlay-format.md: "Three things bound what an image takes in its file". */
#define LOG_FACTOR         3u
#define LOG_SEGMENTS_BYTES (160u << 20)
#define STATE_BYTES        (1u << 20)

static uint64_t figure_of(struct json_object *group, const char *name)
{
    struct json_object *value = NULL;

    return json_object_object_get_ex(group, name, &value) ? json_object_get_uint64(value) : 0;
}

/* Each figure that has one beside it called "...-max". */
static void check_group(struct host *host, const char *name, struct json_object *group)
{
    json_object_object_foreach(group, figure, value)
    {
        struct json_object *max = NULL;
        char bound[64];

        snprintf(bound, sizeof(bound), "%s-max", figure);
        if (!json_object_object_get_ex(group, bound, &max) ||
            json_object_get_uint64(value) <= json_object_get_uint64(max))
            continue;
        world_violation(host->world, invariant_name(I9_BOUNDS),
                        "%s of %s on %s is %" PRIu64 ", its bound %" PRIu64, figure, name,
                        host->name, json_object_get_uint64(value), json_object_get_uint64(max));
    }
}

/* Nobody asks for anything: what still counts as used has been forgotten. */
static void check_idle(struct host *host, struct json_object *resources)
{
    struct json_object *nbd = NULL, *graph = NULL;

    json_object_object_get_ex(resources, "nbd", &nbd);
    json_object_object_get_ex(resources, "graph", &graph);
    if (figure_of(nbd, "budget-bytes") != 0 || figure_of(graph, "jobs") != 0)
        world_violation(host->world, invariant_name(I9_BOUNDS),
                        "%s is idle, and has %" PRIu64 " bytes of requests and %" PRIu64 " jobs",
                        host->name, figure_of(nbd, "budget-bytes"), figure_of(graph, "jobs"));
}

static void check_files(struct host *host)
{
    const struct history *history = host->world->history;
    uint64_t disk_bytes = (uint64_t)history->sectors * ORACLE_SECTOR_BYTES;
    uint64_t log_bytes = LOG_FACTOR * disk_bytes + LOG_SEGMENTS_BYTES;
    uint64_t bound = history->disks * (disk_bytes + 2 * log_bytes) + STATE_BYTES;
    uint64_t used = sim_disk_used_bytes(host->world->sim, host->name);

    if (used > bound)
        world_violation(host->world, invariant_name(I9_BOUNDS),
                        "the files of %s take %" PRIu64 " bytes, their bound is %" PRIu64,
                        host->name, used, bound);
}

void bounds_check(struct host *host, bool idle)
{
    struct json_object *resources = NULL;
    struct err err = ERR_INIT;

    check_files(host);
    if (qmp_command(host, &resources, &err, "{'execute':'x-query-resources'}") < 0)
        return;
    json_object_object_foreach(resources, name, group) check_group(host, name, group);
    if (idle)
        check_idle(host, resources);
    json_object_put(resources);
}
