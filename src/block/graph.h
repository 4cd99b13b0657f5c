/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The graph of nodes: made from options, changed under live I/O.
 *
 * Every change either happens whole or not at all. Functions that wait let other coroutines run:
 * changes of one graph exclude each other by a mutex inside (graph->change), so callers need not.
 */
#ifndef BLOCKSTEP_BLOCK_GRAPH_H
#define BLOCKSTEP_BLOCK_GRAPH_H

#include "block/node.h"

struct graph;

#define GRAPH_MAX_NODES 1024u

/* `drivers`: NULL-terminated table; it outlives the graph. NULL when memory is out. */
struct graph *graph_new(struct loop *loop, const struct driver *const *drivers);
/* Closes all nodes. No root may be attached any more (asserted). */
void graph_free(struct graph *graph) MAY_WAIT;
struct loop *graph_loop(const struct graph *graph);
/* A random number, never 0, that tells this graph's life from any other's: a daemon's run. */
uint64_t graph_instance(const struct graph *graph);
/* Where drivers keep what is the whole graph's (the replication group's listener, say). */
void graph_set_events(struct graph *graph,
                      void (*event)(void *arg, const char *name, struct json_object *data),
                      void *arg);
/* Tells the owner of an event (QMP's name and data); takes the reference on `data`. Must not wait. */
void graph_event(struct graph *graph, const char *name, struct json_object *data);

/* Several changes as one: no other coroutine changes the graph in between. Nests, and the functions
 * below may be called inside. Not for long: it holds up all control of the graph. */
void graph_change_begin(struct graph *graph) MAY_WAIT;
void graph_change_end(struct graph *graph);

/*
 * Makes a node, and the nodes that its options define inline. Common options: driver, node-name,
 * read-only (default off), auto-read-only, detect-zeroes=off|on|unmap, discard=unmap|ignore (default
 * unmap), cache.direct, cache.no-flush. Inline children inherit cache.* and read-only ("backing": on).
 * With `require_name` a node-name must be given and the node is `named`. Without, internal drivers may
 * be asked for, and the node lives until its last parent or reference goes (graph_free() at the
 * latest).
 */
int graph_add(struct graph *graph, struct json_object *options, enum opts_syntax syntax,
              const char *where, bool require_name, struct node **ret_node, struct err *err)
    MAY_WAIT;
/* The options that every node has; which driver, and so which further ones, "driver" says. */
extern const struct opt graph_node_opts[];
/* Takes the name away and closes the node; refused while it has parents or a blocker. When it returns
 * the node is gone, unless somebody has a reference, or the caller the change lock. */
int graph_del(struct graph *graph, const char *node_name, struct err *err) MAY_WAIT;

/* NULL when there is none. Nodes that are still being opened, or closed, are not found. */
struct node *graph_find(struct graph *graph, const char *node_name);
/* As graph_find, with an error that says what names there are. */
int graph_get(struct graph *graph, const char *node_name, struct node **ret_node, struct err *err);
/* Iterates in the order of making: NULL begins and ends. */
struct node *graph_next(struct graph *graph, struct node *node);

/* A user's own edge. It leads past the node to the filter that stands in for it, if there is one
 * (node->stands_in): a new export of a disk whose old content is saved must not bypass the saving.
 * `need` and `share`: enum perm. */
int graph_attach_root(struct graph *graph, struct node *node, const char *name, unsigned need,
                      unsigned share, const struct edge_user_ops *ops, void *user,
                      struct edge **ret_edge, struct err *err) MAY_WAIT;
/* An edge from one node to another beyond those of its options. */
int graph_attach_child(struct graph *graph, struct node *parent, struct node *child,
                       const char *name, struct edge **ret_edge, struct err *err) MAY_WAIT;
/* Waits until nobody is inside, then detaches. The user has no requests waiting outside any more. NULL is fine. A child that is neither named nor used
 * any more is closed. */
void graph_detach(struct edge *edge) MAY_WAIT;

/* Adds or removes a child by the parent's child hooks (quorum). */
int graph_child_add(struct graph *graph, struct node *parent, struct node *child, struct err *err)
    MAY_WAIT;
int graph_child_del(struct graph *graph, struct node *parent, const char *edge_name,
                    struct err *err) MAY_WAIT;

/* Leads an edge to another node of the same length, under live I/O. */
int graph_replace(struct edge *edge, struct node *child, struct err *err) MAY_WAIT;
/* Leads all parents of `from` to `to`, save the edges whose parent is `to` or below it (a filter
 * above `from`, and what the filter uses) and the edge `keep` (may be NULL). */
int graph_replace_node(struct graph *graph, struct node *from, struct node *to,
                       const struct edge *keep, struct err *err) MAY_WAIT;

/* Read-only to read-write and back, together with the inline children that inherited it. */
int graph_reopen(struct node *node, bool read_only, struct err *err) MAY_WAIT;

/*
 * Holds new requests at the roots above these nodes and waits until those inside have ended, so that
 * whole requests have reached every disk below or have not begun. All roots are closed before any
 * is waited for. Nests. Requests of the caller's own must not be inside. Roots that are attached, or
 * come to lie above these nodes, while the drain stands are held too. -ENOMEM leaves nothing held.
 */
struct graph_drain {
    struct graph *graph;
    struct list_link link;
    struct node **nodes;
    size_t node_count;
    struct edge **edges;
    size_t count;
    const struct edge *keep;
};
int graph_drain_begin(struct node *const *nodes, size_t count, struct graph_drain *drain) MAY_WAIT;
/* As above, for a user who goes on through the root `keep` meanwhile (a job's own). */
int graph_drain_begin_keeping(struct node *const *nodes, size_t count, const struct edge *keep,
                              struct graph_drain *drain) MAY_WAIT;
void graph_drain_end(struct graph_drain *drain);

/* Drains `node` and all that lies below it: what users of these parts have under way ends too. */
int graph_drain_begin_subtree(struct node *node, struct graph_drain *drain) MAY_WAIT;

/*
 * For a user of whom no new requests come (his connections are cut) and whose last ones are waited for:
 * what drivers below hold back on purpose (a throttle) goes on at once, until it is taken back or the
 * edge goes. Closes nothing.
 */
void graph_hurry(struct edge *root, bool hurried);
/* The same for all users, for good: the process ends, and waits for their last requests. */
void graph_hurry_all(struct graph *graph);

/* How long edges were closed, by changes of the graph and by drains; requests that came meanwhile
 * waited at most so long. A hold counts when it has ended. */
#define GRAPH_LONG_HOLD_NS (10 * NS_PER_MS)
struct graph_holds {
    uint64_t count;
    uint64_t total_ns;
    uint64_t longest_ns;
    uint64_t long_count; /* those over GRAPH_LONG_HOLD_NS */
};
struct graph_holds graph_holds(const struct graph *graph);

/* True when `node` is `ancestor`, or below it. */
bool graph_is_below(struct node *node, struct node *ancestor);

/* Recomputes permissions after a change of what a root needs; -EPERM names both sides. */
int graph_set_perms(struct edge *root, unsigned need, unsigned share, struct err *err) MAY_WAIT;

#endif
