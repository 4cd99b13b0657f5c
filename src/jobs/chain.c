/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "jobs/chain.h"

#include <errno.h>

struct node *chain_below_filters(struct node *node)
{
    while (node->driver->is_filter && node->file != NULL)
        node = node->file->child;
    return node;
}

static struct edge *chain_edge(struct node *node)
{
    return node->driver->is_filter ? node->file : node_child(node, "backing");
}

struct node *chain_next(struct node *node)
{
    const struct edge *edge = chain_edge(node);
    return edge != NULL ? edge->child : NULL;
}

bool chain_contains(struct node *top, const struct node *base)
{
    while (top != NULL && top != base)
        top = chain_next(top);
    return top != NULL;
}

int chain_check_private(struct node *top, const struct node *base, const struct edge *own,
                        struct err *err)
{
    char text[EDGE_PARENT_TEXT_BYTES];
    for (struct node *node = top; node != base; node = chain_next(node)) {
        const struct edge *down = chain_edge(node);
        LIST_FOR_EACH(edge, &down->child->parents, struct edge, in_child) {
            bool unused = edge->parent != NULL && list_empty(&edge->parent->parents);
            if (edge != down && edge != own && !unused)
                return err_set(err, -EBUSY,
                               "node '%s' cannot be merged into or away: %s uses it too, and would "
                               "see other data",
                               down->child->name, edge_describe_parent(edge, text, sizeof(text)));
        }
    }
    return 0;
}
