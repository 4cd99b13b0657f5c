/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of nodes: a graph with all drivers and `mem`, a disk in memory that is as hard to please
 * as its options say (size, align, memory-align, max-transfer, fua, zero, truncate) and asserts that
 * the gate keeps them. It takes its time (yields), tears what it writes in two, and asserts that no
 * two changes overlap when told so (ordered).
 */
#ifndef BLOCKSTEP_TESTS_BLOCKS_H
#define BLOCKSTEP_TESTS_BLOCKS_H

#include "harness.h"

#include "block/graph.h"
#include "block/io.h"
#include "drivers/blkdebug.h"

extern const struct driver driver_mem;
extern const struct driver driver_mem_ordered; /* "mem-ordered": orders_writes */

struct mem_stats {
    unsigned reads, writes, zeroes, discards, flushes, fua_writes;
    uint64_t largest_bytes; /* of all reads and writes */
};
struct mem_stats *mem_stats(struct node *node);
uint8_t *mem_bytes(struct node *node);
/* How many mem nodes are open. */
extern unsigned mem_open_count;

struct graph *blocks_graph(void);
/* Options in JSON, with single quotes if you like; must succeed. Named when they have a node-name. */
struct node *blocks_add(struct graph *graph, const char *fmt, ...) PRINTF_LIKE(2, 3) MAY_WAIT;
/* Must fail; the text must contain `part`. Returns the code. */
int blocks_add_fails(struct graph *graph, const char *part, const char *options) MAY_WAIT;
/* A root that needs to read and write and shares everything. */
struct edge *blocks_root(struct graph *graph, struct node *node, const char *name) MAY_WAIT;

/* All bytes `fill`; the buffer comes from the loop. */
int blocks_write(struct edge *edge, uint64_t offset, uint64_t length, uint8_t fill, unsigned flags)
    MAY_WAIT;
int blocks_zero(struct edge *edge, uint64_t offset, uint64_t length, unsigned flags) MAY_WAIT;
int blocks_discard(struct edge *edge, uint64_t offset, uint64_t length) MAY_WAIT;
/* From and to plain memory; `skew` moves the buffer off its alignment. */
int blocks_write_bytes(struct edge *edge, uint64_t offset, const void *bytes, uint64_t length,
                       unsigned skew, unsigned flags) MAY_WAIT;
int blocks_read_bytes(struct edge *edge, uint64_t offset, void *bytes, uint64_t length,
                      unsigned skew) MAY_WAIT;
/* The stretch reads as `fill`. */
void blocks_expect(struct edge *edge, uint64_t offset, uint64_t length, uint8_t fill) MAY_WAIT;

/* A write of `fill` in a coroutine of its own. */
struct blocks_task {
    struct edge *edge;
    uint64_t offset, length;
    uint8_t fill;
    bool done;
    int result;
};
void blocks_start_write(struct blocks_task *task, struct edge *edge, uint64_t offset,
                        uint64_t length, uint8_t fill);

#endif
