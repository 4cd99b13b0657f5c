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
static bool find_awaiting(struct node *node, struct group_disk *ret_disk)
{
    struct err ignored = ERR_INIT;

    *ret_disk = (struct group_disk){.node = node};
    if (!awaits_primary(node) || disk_find_layers(node, ret_disk, &ignored) < 0)
        return false;
    /* A start that is under way has put its read path there. */
    ret_disk->disk = replication_layer_below(node_child(ret_disk->hidden, "backing"));
    return true;
}

typedef void disk_visit(void *arg, const struct group_disk *disk);

static void visit_disks(struct replication_group *group, disk_visit *visit, void *arg)
{
    struct group_disk awaiting;

    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (find_awaiting(node, &awaiting))
            visit(arg, &awaiting);
    }
    LIST_FOR_EACH(disk, &group->disks, struct group_disk, link) {
        if (replication_stage_of(disk->node) == REPLICATION_RUNNING)
            visit(arg, disk);
    }
}

static void add_disk(void *arg, const struct group_disk *disk)
{
    group_roots_add(arg, disk);
}

void group_roots_all(struct replication_group *group, struct group_roots *roots)
{
    visit_disks(group, add_disk, roots);
}

bool group_is_peers(struct replication_group *group, const struct edge *root)
{
    struct group_roots roots = {.count = 0};

    group_roots_all(group, &roots);
    for (size_t i = 0; i < roots.count; i++) {
        if (roots.edges[i] == root)
            return true;
    }
    return false;
}

struct roots_visit {
    void (*visit)(void *arg, const char *disk, struct edge *const *roots, size_t count);
    void *arg;
};

static void visit_roots(void *arg, const struct group_disk *disk)
{
    const struct roots_visit *visit = arg;
    struct group_roots roots = {.count = 0};

    group_roots_add(&roots, disk);
    visit->visit(visit->arg, replication_top_id(disk->node), roots.edges, roots.count);
}

void replication_visit_roots(struct replication_group *group,
                             void (*visit)(void *arg, const char *disk, struct edge *const *roots,
                                           size_t count),
                             void *arg)
{
    struct roots_visit all = {visit, arg};

    visit_disks(group, visit_roots, &all);
}
