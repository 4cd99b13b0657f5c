/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The limits that throttle nodes keep, alone or together, and who waits for them.
 *
 * Limits are leaky buckets, as QEMU's: requests fill a bucket, which leaks at the average rate. A
 * request goes while the bucket is not full, and fills it with all it is; so a large one passes, and
 * those behind it wait longer. The bucket holds a tenth of a second's worth; with a maximum, what
 * that rate brings in the burst's length, and a second bucket keeps the maximum while it lasts.
 *
 * Who may not go waits in its node's line, one for reads and one for changes. Nodes take turns, and
 * so do reads and changes, so nobody starves.
 */
#ifndef BLOCKSTEP_DRIVERS_THROTTLE_GROUP_H
#define BLOCKSTEP_DRIVERS_THROTTLE_GROUP_H

#include "block/object.h"
#include "loop/co_sync.h"

#define THROTTLE_MAX_RATE UINT64_C(1000000000000000)

enum throttle_direction { THROTTLE_READ, THROTTLE_WRITE, THROTTLE_DIRECTIONS };

/* One kind of limit; average 0: none. */
struct throttle_limit {
    uint64_t average, max; /* per second */
    uint64_t max_length_s; /* how long the maximum may last */
};

enum throttle_bucket {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BUCKETS,
};

struct throttle_limits {
    struct throttle_limit buckets[THROTTLE_BUCKETS];
    uint64_t iops_size_bytes; /* larger requests count as several; 0: as one */
};

struct throttle_group {
    struct loop *loop;
    struct throttle_limits limits;
    struct {
        double level, burst_level;
    } buckets[THROTTLE_BUCKETS];
    uint64_t leaked_ns;  /* the levels are as of then */
    struct list members; /* struct throttle_member; who is first is next */
    unsigned waiting[THROTTLE_DIRECTIONS];
    enum throttle_direction next;
    struct loop_timer timer;
};

/* A node's part in a group. */
struct throttle_member {
    struct list_link link;
    struct throttle_group *group;
    struct node *node;
    struct list lines[THROTTLE_DIRECTIONS]; /* struct throttle_wait (throttle_group.c) */
    uint64_t delayed;                       /* requests that had to wait */
};

/* The table of "limits", whose offsets count from `struct throttle_limits`. */
extern const struct opt throttle_limits_opts[];
/* -EINVAL when limits contradict each other. */
int throttle_limits_check(const struct throttle_limits *limits, struct err *err);

void throttle_group_init(struct throttle_group *group, struct loop *loop,
                         const struct throttle_limits *limits);
/* Without members. */
void throttle_group_release(struct throttle_group *group);
void throttle_member_join(struct throttle_member *member, struct throttle_group *group,
                          struct node *node);
/* Nobody waits. */
void throttle_member_leave(struct throttle_member *member);

/* Waits until the request may go, and counts it. At once while the node is draining. */
void throttle_wait(struct throttle_member *member, enum throttle_direction direction,
                   uint64_t length_bytes) MAY_WAIT;
/* The node's drain hook. */
void throttle_member_drain(struct throttle_member *member);

/* As QEMU's object: its state is a struct throttle_group. */
extern const struct object_type throttle_group_type;

#endif
