/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Nodes and edges. A node is a driver with state; an edge leads from a parent to a child. Parents are
 * nodes, or users from outside the graph (exports, jobs), whose edges are called roots. All I/O
 * enters a node through an edge, and each edge has a gate that counts who is inside and can be
 * closed: inserting, replacing and draining need no more than that.
 *
 * The graph has no cycles, and a request holds locks only above the edge it waits at, so closing
 * edges cannot deadlock.
 */
#ifndef BLOCKSTEP_BLOCK_NODE_H
#define BLOCKSTEP_BLOCK_NODE_H

#include "block/driver.h"
#include "loop/co_sync.h"

struct graph;

#define NODE_NAME_BYTES 32 /* with the final zero, as in QEMU */
#define EDGE_NAME_BYTES 64
#define NODE_MAX_DEPTH  64

struct node_limits {
    uint32_t
        request_align_bytes; /* power of two; the gate does read-modify-write for smaller ones */
    uint32_t
        memory_align_bytes; /* power of two up to BUF_ALIGNMENT; the gate copies when it must */
    uint32_t max_transfer_bytes; /* the gate splits; 0: no limit below 32 MiB */
    uint32_t block_bytes;        /* images: what they hold comes in blocks of this; 0: not said */
    bool fua;       /* the write and zero hooks honour IO_FUA; else the gate flushes behind them */
    bool in_memory; /* what is written is gone when the host is; images do not pass it on */
};

struct io_count {
    uint64_t requests, bytes, errors;
};

struct node_stats {
    struct io_count read, write, zero, discard, flush;
};

enum node_detect_zeroes { NODE_DETECT_ZEROES_OFF, NODE_DETECT_ZEROES_ON, NODE_DETECT_ZEROES_UNMAP };

struct node {
    uint32_t magic; /* NODE_MAGIC: catches a stale pointer at first use */
    const struct driver *driver;
    struct graph *graph;
    char name[NODE_NAME_BYTES];
    void *state;
    void *options;
    enum opts_syntax options_syntax;  /* for drivers that read an OPT_ANY themselves */
    struct json_object *options_json; /* as given, children replaced by node names; for queries */
    uint64_t length_bytes;
    struct node_limits limits;
    bool read_only;
    bool read_only_inherited; /* follows its parent's through graph_reopen() */
    bool auto_read_only;      /* the driver may open read-only what it cannot open read-write */
    bool cache_direct;        /* cache.direct: past the page cache */
    bool no_flush;            /* cache.no-flush: the gate drops flushes and IO_FUA */
    bool discard_ignored;     /* discard=ignore: the gate drops discards and IO_MAY_UNMAP */
    enum node_detect_zeroes detect_zeroes;
    bool named;     /* by blockdev-add: stays until blockdev-del; else goes with its last parent */
    bool opened;    /* false while the open hook runs and from when it begins to close */
    bool stands_in; /* a filter that the program put above a node: who asks for that gets this */
    bool leaving;   /* deleted: goes when its last pin goes, and nobody finds or uses it any more */
    bool closing;   /* the close hook runs, or has run */
    struct co_queue gone; /* wait until it is freed */
    struct edge *file;    /* the child called "file", or NULL */
    struct list children; /* struct edge, link in_parent; in the order of attaching */
    struct list parents;  /* struct edge, link in_child */
    struct list_link graph_link;
    struct list blockers; /* struct node_blocker */
    struct list trackers; /* struct dirty_tracker */
    struct list bitmaps;  /* struct dirty_bitmap, in the order of making; gone with the node */
    struct node_stats stats;
    unsigned refs;     /* of whoever keeps a pointer across waits: node_ref */
    unsigned pins;     /* of the graph's own calls, while they wait */
    bool close_wanted; /* when the last pin goes */

    /* The gate's: writes that run without a range lock, and read-modify-writes. While one of these
     * runs, all writes take locks, and it waits for those that began without. */
    struct range_locks ranges;
    unsigned unlocked_writes;
    unsigned rmw_running;
    struct co_queue unlocked_done;

    /* The graph's, within one pass over it. */
    unsigned mark, depth, parents_left;
    struct list_link pass_link;
};

#define NODE_MAGIC 0x6e6f6465u

enum edge_user_kind { EDGE_USER_OTHER, EDGE_USER_EXPORT, EDGE_USER_JOB };

/* How a user from outside learns what happens to what it uses. All optional; none may wait. */
struct edge_user_ops {
    /* What the user is, and by which id queries know it. All edges of one have the same `user`. */
    enum edge_user_kind kind;
    const char *(*id)(struct edge *edge);
    void (*resized)(struct edge *edge);
    /* A description for error messages and queries, into text: "export 'disk0'". */
    void (*describe)(struct edge *edge, char *text, size_t text_bytes);
};

struct edge {
    struct node *parent; /* NULL: a root */
    struct node *child;
    struct graph *graph;
    char name[EDGE_NAME_BYTES];     /* "file", "backing", "children.0"; roots: "export 'disk0'" */
    unsigned need, share;           /* of enum perm */
    unsigned next_need, next_share; /* while a change is tried */
    unsigned refs;
    bool detaching;
    bool hurried; /* graph_hurry() */
    struct co_gate gate;
    uint64_t closed_ns;                   /* when the gate was closed */
    const struct edge_user_ops *user_ops; /* roots */
    void *user;
    struct list_link in_parent, in_child;
};

static inline struct node *node_check(struct node *node)
{
    assert(node->magic == NODE_MAGIC);
    return node;
}

/* The edge to the child of that name, or NULL. */
struct edge *node_child(struct node *node, const char *name);
struct node *node_ref(struct node *node);
/* NULL is fine. A node that is neither named nor used nor referenced any more is closed. */
void node_unref(struct node *node) MAY_WAIT;
/* What the node takes up where it is stored; -ENOTSUP: nobody can tell. */
int node_usage(struct node *node, uint64_t *ret_bytes);
/* A driver's image has grown or shrunk by other ways than io_truncate() and writes past the end. Sets
 * the length of the node and of the filters above it, and tells the users. */
void node_set_length(struct node *node, uint64_t length_bytes);
/* A driver's way to elsewhere has ended: tells the parents. */
void node_link_lost(struct node *node, int reason);
/* An edge above the node is closed or hurried, and who did that may be waiting for the requests
 * inside. */
bool node_is_draining(struct node *node);
/* "export 'disk0'" or "node 'top' (its child 'file')", into `text`, which is returned: who sits at the
 * upper end of the edge. */
const char *edge_describe_parent(struct edge *edge, char *text, size_t text_bytes);
#define EDGE_PARENT_TEXT_BYTES 128

/* Something forbids control operations on the node while it stands (a replication that runs). The
 * graph itself asks in graph_del(), graph_child_add() and graph_child_del(); commands ask for theirs. */
struct node_blocker {
    struct list_link link;
    char reason[160];
};
void node_block(struct node *node, struct node_blocker *blocker, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
void node_unblock(struct node_blocker *blocker);
/* 0, or -EBUSY with the blocker's reason. `operation` says what was attempted. */
int node_check_blocked(struct node *node, const char *operation, struct err *err);
/* The same for the node and all above it: who relies on what these show relies on the node. */
int node_check_blocked_above(struct node *node, const char *operation, struct err *err);

#endif
