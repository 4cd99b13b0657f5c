/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The `replication` filter as the group (src/replication) sees it: stages, the forward queue of a
 * primary, the lower edge and the rewrite map of a secondary, the sticky error.
 *
 * The group alone changes the stage. All functions take nodes of this driver (asserted).
 */
#ifndef BLOCKSTEP_DRIVERS_REPLICATION_H
#define BLOCKSTEP_DRIVERS_REPLICATION_H

#include "base/bitmap.h"
#include "block/node.h"
#include "loop/tls.h"

extern const struct driver driver_replication;

enum replication_mode { REPLICATION_PRIMARY, REPLICATION_SECONDARY };
enum replication_stage {
    REPLICATION_NONE,
    REPLICATION_RUNNING,
    REPLICATION_FAILOVER,
    REPLICATION_FAILOVER_FAILED,
    REPLICATION_DONE,
};
const char *replication_mode_name(enum replication_mode mode);
const char *replication_stage_name(enum replication_stage stage);

/* Units of the lock between guest writes and a merge, and of the map of what a merge must copy
 * again. No overlay has larger blocks. */
#define REPLICATION_REGION_BYTES (64u * 1024)

/* The first failure since the start, and how many followed. */
struct replication_error {
    uint64_t count;             /* 0: none */
    const char *operation;      /* "forward write", "copy-before-write", "merge"; static text */
    char disk[NODE_NAME_BYTES]; /* the node of this driver */
    char node[NODE_NAME_BYTES]; /* where it failed */
    enum replication_mode side;
    uint64_t offset_bytes, length_bytes;
    int code; /* -errno */
    uint64_t wall_ns;
};

bool replication_is(const struct node *node);
enum replication_mode replication_mode_of(const struct node *node);
enum replication_stage replication_stage_of(const struct node *node);
const char *replication_top_id(const struct node *node); /* secondary */
/* Primary: where the peer is controlled, and how; NULL: not from here. Of the node. */
struct replication_peer_control {
    struct sock_address address;
    struct tls_creds *tls;    /* NULL: no TLS */
    const char *tls_hostname; /* NULL: the address's host */
};
const struct replication_peer_control *replication_peer_control(const struct node *node);
/* Emits REPLICATION_STAGE_CHANGE. Does not wait. */
void replication_set_stage(struct node *node, enum replication_stage stage);

const struct replication_error *replication_error_of(const struct node *node);
/* Remembers the first, counts the others; REPLICATION_ERROR for the first. Does not wait. */
void replication_report(struct node *node, const char *operation, const struct node *where,
                        uint64_t offset_bytes, uint64_t length_bytes, int code);
void replication_error_clear(struct node *node);
/* Who learns of the first error, after it has been remembered, and that a primary's link is lost; must
 * not wait. NULL: nobody. Copied. */
struct replication_watch {
    void (*failed)(void *arg, struct node *node);
    void (*link_lost)(void *arg, struct node *node);
    void *arg;
};
void replication_set_watch(struct node *node, const struct replication_watch *watch);
/* {"side", "node", "operation", ...}; NULL when memory is out or there is none. */
struct json_object *replication_error_json(const struct replication_error *error);

/* --- primary: the forward queue --- */

struct replication_forward_stats {
    unsigned in_flight;
    uint64_t in_flight_bytes;
    uint64_t forwarded_bytes; /* acknowledged, since the start */
};
struct replication_forward_stats replication_forward_stats(const struct node *node);
/* Puts a marker behind everything in the queue: what arrives later waits outside until it is
 * released. Does not wait. One marker at a time (asserted). */
void replication_forward_mark(struct node *node);
/* Waits until the peer has answered everything before the marker: 0 or -ETIMEDOUT. */
int replication_forward_wait(struct node *node, uint64_t deadline_ns) MAY_WAIT;
void replication_forward_release(struct node *node);
/* As a guest's flush; a failure is the node's sticky error. */
void replication_forward_flush(struct node *node) MAY_WAIT;

/* --- secondary --- */

/* Where the split writes of a failover and all I/O after it go: an edge of the node to the secondary
 * disk, attached by the group before the stage leaves `none`, called REPLICATION_LOWER_EDGE. */
#define REPLICATION_LOWER_EDGE "secondary"
/* That edge does not need PERM_WRITE any more: a stop puts a read-only disk back. Takes effect with the
 * graph's next change of permissions. */
void replication_set_lower_read_only(struct node *node);

/* Who is asked before a flush or a change with IO_FUA succeeds, after it has been carried out: 0, or the
 * -errno that it fails with. May wait, for no request from above. NULL: nobody. Copied. */
struct replication_keeper {
    int (*keep)(void *arg);
    void *arg;
};
void replication_set_keeper(struct node *node, const struct replication_keeper *keeper);

/* What a merge and the guest's writes share during a failover. */
struct replication_merge {
    struct range_locks locks; /* whole regions; guest writes hold theirs exclusively */
    struct bitmap *rewritten; /* a bit per region: held blocks written since the merge began */
    bool write_through;       /* held blocks are written to the secondary disk too */
};
/* For stages failover and failover-failed; made by the first call, which the group makes before the
 * stage leaves `none`. NULL when memory is out. */
struct replication_merge *replication_merge_of(struct node *node);
/* Waits until the writes that began while the stage was `running` have ended. */
void replication_plain_writes_end(struct node *node) MAY_WAIT;

/* The image at the end of an edge, behind the filters that stand before it. */
struct node *replication_layer_below(struct edge *edge);
/* What the hidden disk's backing edge leads to now; NULL: the chain is shorter. */
struct node *replication_base(struct node *node);

#endif
