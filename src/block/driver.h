/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a driver is: one table of hooks per file in src/drivers. The gate (io.c) is the only caller
 * of the data hooks and has checked bounds, alignment, flags and permissions before, so hooks stay
 * small.
 *
 * A missing data hook means: pass through to the child "file" when the driver is a filter, else not
 * supported (read, write) or emulated by the gate (zero by writing zeroes, discard by doing nothing,
 * flush by flushing "file" if there is such a child, extents as one stretch of data). A filter with a
 * write hook of its own wants zero and discard hooks as well: they would pass it by.
 *
 * All hooks run in coroutines of the graph's loop and may wait, unless they say otherwise.
 */
#ifndef BLOCKSTEP_BLOCK_DRIVER_H
#define BLOCKSTEP_BLOCK_DRIVER_H

#include "base/buf.h"
#include "base/err.h"
#include "base/opts.h"
#include "loop/co.h"

struct node;
struct edge;

enum io_flags {
    IO_FUA = 1u << 0,         /* durable before the call returns */
    IO_MAY_UNMAP = 1u << 1,   /* zero: the space may be given back */
    IO_NO_FALLBACK = 1u << 2, /* zero: -EOPNOTSUPP rather than writing zeroes slowly */
    IO_UNCHANGED = 1u << 3,   /* write: the bytes a reader sees do not change (needs only
                               * PERM_WRITE_UNCHANGED); copies and merges below a running guest */
};

/* One request. It lives on the issuing coroutine's stack; who keeps the data beyond the call takes
 * a reference on data.buf. zero and discard have no data. */
struct io {
    uint64_t offset_bytes, length_bytes;
    struct buf_slice data; /* read, write: data.length_bytes == length_bytes */
    unsigned flags;
};

enum extent_flags {
    EXTENT_DATA = 1u << 0, /* may read as anything */
    EXTENT_ZERO = 1u << 1, /* reads as zeroes */
    EXTENT_HERE = 1u << 2, /* an image with a backing child holds it itself */
};

struct extent {
    uint64_t length_bytes; /* from the offset asked for; at least 1 */
    unsigned flags;
    unsigned depth; /* 0: no layer holds it; 1: the node asked; 2: its backing node; ... */
};

/* What a parent needs of a child, or lets others do with it. */
enum perm {
    PERM_CONSISTENT_READ = 1u << 0,
    PERM_WRITE = 1u << 1,
    PERM_WRITE_UNCHANGED = 1u << 2,
    PERM_RESIZE = 1u << 3,
    PERM_ALL = (1u << 4) - 1,
};
#define PERM_COUNT 4
/* "consistent-read" of bit 0, and so on. */
extern const char *const perm_texts[PERM_COUNT];

/* Filters pass both on (and need consistent-read with any write: the gate may have to read). Others
 * need consistent-read, and write and resize when the node is not read-only, of "file"; only
 * consistent-read of any other child. They share everything but write and resize, save that
 * "backing" may be written to where the node's own parents let others write. For hooks that differ
 * in one point only. */
void perms_default(struct node *node, struct edge *edge, unsigned parents_need,
                   unsigned parents_share, unsigned *ret_need, unsigned *ret_share);

struct driver {
    const char *name;
    bool is_filter; /* shows what its child "file" shows */
    bool
        orders_writes; /* the gate runs overlapping writes, zeroes and discards one after the other */
    bool internal;     /* cannot be made by blockdev-add */
    size_t state_size;      /* zeroed; node->state */
    size_t options_size;    /* zeroed and filled by `opts`; node->options. 0: no options */
    const struct opt *opts; /* beyond the common ones; OPT_CHILD(REN) entries are the children */

    /*
     * Control plane. At `open` the node's children given as options are attached already, and
     * node->options filled. It sets node->length_bytes and node->limits (defaults: those of "file").
     * `close` runs when no request is inside and before the children are detached; it is called
     * only after a successful open.
     */
    int (*open)(struct node *node, struct err *err);
    void (*close)(struct node *node);
    /* Changes between read-only and read-write; missing: only the flag changes. */
    int (*reopen)(struct node *node, bool read_only, struct err *err);
    /* Children that come and go (quorum). The edge is attached before child_added and detached after
     * child_removing, which may refuse. No request is inside the node from before the first of these
     * to after the last. New edges are named by child_name (text of at least 32 bytes). */
    int (*child_name)(struct node *node, char *text, size_t text_bytes, struct err *err);
    int (*child_added)(struct node *node, struct edge *edge, struct err *err);
    int (*child_removing)(struct node *node, struct edge *edge, struct err *err);
    /* A child has another length now. Filters follow "file" by themselves, others only by this hook
     * (node_set_length()). Must not wait. */
    void (*child_resized)(struct node *node, struct edge *edge);
    /* A child's way to elsewhere (a network connection) has ended, with this negative errno; filters
     * without the hook pass it on. Must not wait. */
    void (*child_link_lost)(struct node *node, struct edge *edge, int reason);
    /* Somebody waits for the requests inside to end (a drain, a change of the graph): what the driver
     * holds back on purpose goes on now, for as long as node_is_draining(). Must not wait. */
    void (*drain)(struct node *node);
    /* What the node needs of this child and shares with the child's other parents, given what its
     * own parents need and share in sum. Missing: perms_default(). Must not wait. */
    void (*child_perms)(struct node *node, struct edge *edge, unsigned parents_need,
                        unsigned parents_share, unsigned *ret_need, unsigned *ret_share);
    /* Cuts the node's way to elsewhere (a network connection) at once: what hangs there ends with an
     * error, and so does what comes. Missing: there is no such way. Must not wait. */
    void (*yank)(struct node *node);
    /* Adds what only this driver knows to query-named-block-nodes' "driver-specific" object. Must
     * not wait. */
    int (*describe)(struct node *node, struct json_object *object);
    /* What the node takes up where it is stored. Missing: as its children together, without the
     * backing image. Must not wait. */
    int (*usage)(struct node *node, uint64_t *ret_bytes);

    /*
     * Data plane: 0 or -errno. Offsets and lengths are multiples of limits.request_align_bytes, never
     * empty; data hooks get at most limits.max_transfer_bytes (32 MiB when that is 0), zero and
     * discard at most IO_MAX_ZERO_BYTES (io.h). -EOPNOTSUPP of zero: the gate writes zeroes; of
     * discard: it does nothing. IO_FUA reaches only drivers with limits.fua, on write and zero.
     */
    int (*read)(struct node *node, struct io *io);
    int (*write)(struct node *node, struct io *io);
    int (*zero)(struct node *node, struct io *io);
    int (*discard)(struct node *node, struct io *io);
    int (*flush)(struct node *node);
    int (*extents)(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                   struct extent *ret_extent);
    /* Optional, for images with a backing child: what the image itself holds, without asking the
     * backing child. Missing: io_held() asks `extents`. */
    int (*held)(struct node *node, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_held,
                uint64_t *ret_length_bytes);
    /* Changes the length. With this hook, parents with PERM_RESIZE may also write past the end: the
     * write hook then extends the image, and reads past its end are zeroes. */
    int (*truncate)(struct node *node, uint64_t length_bytes);

    /*
     * Emptying an image with a backing child, in two steps so that a group can empty all or none.
     * `empty_prepare` does what can fail, and changes nothing that a reader sees; after it either
     * `empty_commit` (cannot fail, constant time, must not wait) or `empty_abort`. No request is
     * inside the node from before the first to after the last. Called through node_empty_*() of io.h,
     * which pass through filters that have no such hooks.
     */
    int (*empty_prepare)(struct node *node, struct err *err);
    void (*empty_commit)(struct node *node);
    void (*empty_abort)(struct node *node);
};

#endif
