/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* By which ways a primary may write to the secondary disks. */
#include "replication/group_internal.h"

static void add(struct group_roots *roots, struct edge *edge)
{
    for (size_t i = 0; i < roots->count; i++) {
        if (roots->edges[i] == edge)
            return;
    }
    if (roots->count == GROUP_MAX_ROOTS)
        roots->overflow = true;
    else
        roots->edges[roots->count++] = edge;
}

/* Upwards from the disk, past nobody who belongs to the view of S's user. The graph's depth is
 * bounded. */
static void collect(const struct group_disk *disk, struct node *node, struct group_roots *roots)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        if (edge->parent == NULL) {
            if ((edge->need & PERM_WRITE) != 0)
                add(roots, edge);
        } else if (edge->parent != disk->node && edge->parent != disk->cbw.access &&
                   edge->parent != disk->hidden) {
            collect(disk, edge->parent, roots);
        }
    }
}

void group_roots_add(struct group_roots *roots, const struct group_disk *disk)
{
    collect(disk, disk->disk, roots);
}

static bool awaits_primary(const struct node *node)
{
    return replication_is(node) && node->opened &&
           replication_mode_of(node) == REPLICATION_SECONDARY &&
           replication_stage_of(node) == REPLICATION_NONE;
}

/* Before a start has put the disks together, and while they are to be synchronised. */
static void add_awaiting(struct replication_group *group, struct group_roots *roots)
{
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        struct group_disk disk = {.node = node};
        struct err ignored = ERR_INIT;

        if (!awaits_primary(node) || disk_find_layers(node, &disk, &ignored) < 0)
            continue;
        /* A start that is under way has put its read path there. */
        disk.disk = replication_layer_below(node_child(disk.hidden, "backing"));
        group_roots_add(roots, &disk);
    }
}

bool group_is_peers(struct replication_group *group, const struct edge *root)
{
    struct group_roots roots = {.count = 0};

    add_awaiting(group, &roots);
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (replication_stage_of(disk->node) == REPLICATION_RUNNING)
            group_roots_add(&roots, disk);
    }
    for (size_t i = 0; i < roots.count; i++) {
        if (roots.edges[i] == root)
            return true;
    }
    return false;
}
