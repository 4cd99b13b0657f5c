/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Permissions: every edge states what its parent needs of the child and what it lets others do. They
 * flow down from the roots, so one pass over the graph, parents before children, computes them all.
 * Graphs are small and changes rare: a pass over everything is simpler than one over what changed,
 * and finds cycles and too deep chains on the way.
 */
#include "block/internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PERM_NAMES_BYTES 80

const char *const perm_texts[PERM_COUNT] = {"consistent-read", "write", "write-unchanged",
                                            "resize"};

static const char *perm_names(unsigned perms, char *text, size_t text_bytes)
{
    size_t length = 0;

    text[0] = '\0';
    for (size_t i = 0; i < PERM_COUNT; i++) {
        if ((perms & (1u << i)) != 0 && length < text_bytes)
            length += (size_t)snprintf(text + length, text_bytes - length, "%s%s",
                                       length > 0 ? ", " : "", perm_texts[i]);
    }
    return text;
}

void perms_default(struct node *node, struct edge *edge, unsigned parents_need,
                   unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    unsigned need = PERM_CONSISTENT_READ, share = PERM_ALL & ~(PERM_WRITE | PERM_RESIZE);

    if (node->driver->is_filter && node->file == edge) {
        need = parents_need;
        if ((need & (PERM_WRITE | PERM_WRITE_UNCHANGED)) != 0)
            need |= PERM_CONSISTENT_READ;
        share = parents_share;
    } else if (node->file == edge) {
        if (!node->read_only)
            need |= PERM_WRITE | PERM_RESIZE;
    } else if (strcmp(edge->name, "backing") == 0 && (parents_share & PERM_WRITE) != 0) {
        share |= PERM_WRITE;
    }
    *ret_need = need;
    *ret_share = share;
}

/* Behind a filter that the program put in for itself, whose parents may have wanted it: who does. */
static struct edge *behind_stand_in(struct edge *edge, bool needs, unsigned perms)
{
    struct node *filter = edge->parent;

    if (filter == NULL || !filter->stands_in || filter->file != edge)
        return edge;
    LIST_FOR_EACH(above, &filter->parents, struct edge, in_child) {
        if ((needs ? above->next_need & perms : perms & ~above->next_share) != 0)
            return behind_stand_in(above, needs, perms);
    }
    return edge;
}

static int check_pair(struct node *node, struct edge *edge, struct edge *other, struct err *err)
{
    unsigned refused = edge->next_need & ~other->next_share;
    char needs[EDGE_PARENT_TEXT_BYTES], refuses[EDGE_PARENT_TEXT_BYTES], names[PERM_NAMES_BYTES];

    if (likely(refused == 0))
        return 0;
    return err_set(
        err, -EPERM, "node '%s': %s needs %s, which %s does not allow", node->name,
        edge_describe_parent(behind_stand_in(edge, true, refused), needs, sizeof(needs)),
        perm_names(refused, names, sizeof(names)),
        edge_describe_parent(behind_stand_in(other, false, refused), refuses, sizeof(refuses)));
}

static int check_read_only(struct node *node, struct edge *edge, struct err *err)
{
    unsigned refused = edge->next_need & (PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE);
    char needs[EDGE_PARENT_TEXT_BYTES], names[PERM_NAMES_BYTES];

    if (!node->read_only || refused == 0)
        return 0;
    return err_set(err, -EPERM, "node '%s' is read-only, and %s needs %s", node->name,
                   edge_describe_parent(edge, needs, sizeof(needs)),
                   perm_names(refused, names, sizeof(names)));
}

/* All parents' edges of the node are computed: do they get along? */
static int check_parents(struct node *node, struct err *err)
{
    unsigned all_need = 0;

    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child)
        all_need |= edge->next_need;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        int ret = check_read_only(node, edge, err);

        if (ret < 0)
            return ret;
        /* Most edges share whatever anybody needs: then there are no pairs to look at. */
        if ((all_need & ~edge->next_share) == 0)
            continue;
        LIST_FOR_EACH(other, &node->parents, struct edge, in_child) {
            ret = other != edge ? check_pair(node, other, edge, err) : 0;
            if (ret < 0)
                return ret;
        }
    }
    return 0;
}

static void compute_child(struct node *node, struct edge *edge)
{
    unsigned need = 0, share = PERM_ALL;

    LIST_FOR_EACH(parent, &node->parents, struct edge, in_child) {
        need |= parent->next_need;
        share &= parent->next_share;
    }
    if (node->driver->child_perms != NULL)
        node->driver->child_perms(node, edge, need, share, &edge->next_need, &edge->next_share);
    else
        perms_default(node, edge, need, share, &edge->next_need, &edge->next_share);
}

/* Puts the nodes without node parents into `ready`. */
static void pass_begin(struct graph *graph, struct list *ready)
{
    list_init(ready);
    LIST_FOR_EACH(node, &graph->nodes, struct node, graph_link) {
        node->parents_left = 0;
        node->depth = 1;
        LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
            if (edge->parent != NULL) {
                node->parents_left++;
            } else {
                edge->next_need = edge->need;
                edge->next_share = edge->share;
            }
        }
        if (node->parents_left == 0)
            list_push_back(ready, &node->pass_link);
    }
}

static int visit(struct node *node, struct list *ready, struct err *err)
{
    int ret;

    if (node->depth > NODE_MAX_DEPTH)
        return err_set(err, -ELOOP, "the graph above node '%s' would be deeper than %u nodes",
                       node->name, NODE_MAX_DEPTH);
    ret = check_parents(node, err);
    if (ret < 0)
        return ret;
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        struct node *child = edge->child;

        compute_child(node, edge);
        child->depth = MAX(child->depth, node->depth + 1);
        assert(child->parents_left > 0);
        if (--child->parents_left == 0)
            list_push_back(ready, &child->pass_link);
    }
    return 0;
}

static void commit(struct graph *graph)
{
    LIST_FOR_EACH(node, &graph->nodes, struct node, graph_link) {
        LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
            edge->need = edge->next_need;
            edge->share = edge->next_share;
        }
    }
}

int perms_update(struct graph *graph, struct err *err)
{
    struct list ready;
    struct node *node;
    unsigned visited = 0;

    pass_begin(graph, &ready);
    while ((node = LIST_POP_FRONT(&ready, struct node, pass_link)) != NULL) {
        int ret = visit(node, &ready, err);

        if (ret < 0) {
            while (LIST_POP_FRONT(&ready, struct node, pass_link) != NULL)
                ;
            return ret;
        }
        visited++;
    }
    if (visited != graph->node_count)
        return err_set(err, -ELOOP, "a node would be its own child: the graph has no cycles");
    commit(graph);
    return 0;
}
