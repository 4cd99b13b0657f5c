/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of this folder share and nobody else sees. */
#ifndef BLOCKSTEP_BLOCK_INTERNAL_H
#define BLOCKSTEP_BLOCK_INTERNAL_H

#include "block/graph.h"

/* The zeroes that the gate writes where a driver has no zero hook. */
#define GRAPH_ZEROES_BYTES (256u * 1024)

struct graph {
    struct loop *loop;
    uint64_t instance;
    const struct driver *const *drivers;
    struct list nodes; /* in the order of making */
    unsigned node_count;
    unsigned next_auto_name;
    unsigned mark; /* the current pass that marks nodes */
    struct co_mutex change;
    struct co *changer;
    unsigned change_depth;
    struct list drains; /* struct graph_drain */
    bool hurried;       /* graph_hurry_all() */
    struct buf *zeroes; /* GRAPH_ZEROES_BYTES, made at first use; nobody ever writes to it */
    const struct object_type *const *object_types; /* NULL: none */
    struct list objects;                           /* struct object, in the order of making */
    unsigned object_count;
    void (*event)(void *arg, const char *name, struct json_object *data);
    void *event_arg;
    struct graph_holds holds;
};

/* Open, and not on its way out. */
static inline bool node_is_usable(const struct node *node)
{
    return node->opened && !node->leaving;
}

/* node.c: a node of the graph's list, not opened, without options; NULL when memory is out. */
struct node *node_new(struct graph *graph, const struct driver *driver, const char *name);
/* Takes a node without edges off the list and frees it. */
void node_free(struct node *node);
/* Closes and frees the node and what it alone used, unless somebody holds it. */
void node_close_if_unused(struct node *node) MAY_WAIT;
/* While pinned a node stays; what would have closed it does so when the last pin goes. Other than a
 * reference, a pin that goes does not close a node that nobody has begun to use. */
void node_pin(struct node *node);
void node_unpin(struct node *node) MAY_WAIT;

/* graph.c */
/* Links and unlinks without waiting and without looking at permissions. */
struct edge *edge_link(struct graph *graph, struct node *parent, struct node *child,
                       const char *name);
void edge_unlink(struct edge *edge);
void edge_unref(struct edge *edge);
/* graph_detach() without closing the child. */
void edge_detach(struct edge *edge, struct node **ret_child) MAY_WAIT;

/* perms.c: computes all permissions anew and commits them, or changes nothing and says what conflicts:
 * permissions, cycles, depth. Does not wait. */
int perms_update(struct graph *graph, struct err *err);

/* object.c: when no node is left. */
void objects_free(struct graph *graph);

/* drain.c */
/* The gate of an edge that leads to a node: closed and opened, as a hold that is counted. */
void edge_close(struct edge *edge);
void edge_open(struct edge *edge);
/* Waits until nobody is inside the closed edge, having told the drivers below not to hold requests
 * back. Of several edges all are closed before any is waited for. */
void edge_wait_empty(struct edge *edge) MAY_WAIT;
/* Before `child` comes to lie below `parent`: the roots above `parent` join the drains that hold
 * `child` or nodes below it, and are empty when this returns. */
int drains_cover_child(struct node *parent, struct node *child) MAY_WAIT;
/* The same for a new root, which nobody uses yet. */
int drains_cover_root(struct edge *root);
/* A node that goes is forgotten by drains. */
void drains_forget_node(struct node *node);

#endif
