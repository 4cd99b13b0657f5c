/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the group share and nobody else sees. */
#ifndef BLOCKSTEP_REPLICATION_GROUP_INTERNAL_H
#define BLOCKSTEP_REPLICATION_GROUP_INTERNAL_H

#include "drivers/copy_before_write.h"
#include "replication/group.h"

#define REPLICATION_MAX_DISKS 64u

/* A secondary disk from its start until its stop, or the end of its merge. */
struct group_disk {
    struct list_link link;
    struct replication_group *group;
    struct node *node; /* the filter; a reference, as for all nodes here */
    struct node *top, *active, *hidden, *disk;
    /* What is emptied: the active and the hidden disk, or the filters that stand on them. */
    struct node *layers[2];
    struct cbw cbw;     /* zeroed: not inserted */
    struct edge *lower; /* the node's child; NULL: not attached */
    struct node_blocker top_blocker, node_blocker;
    bool top_blocked, node_blocked;
    bool hidden_was_read_only, disk_was_read_only;
    struct job *merge;                            /* a reference; NULL: none is running */
    uint64_t merge_done_bytes, merge_total_bytes; /* of one that has ended */
    struct graph_drain drain;                     /* the merge's last step */
};

struct replication_group {
    struct graph *graph;
    struct job_list *jobs;
    const struct replication_owner *owner;
    struct co_mutex calls;
    struct list disks; /* struct group_disk, in the graph's order */
    bool ending;
    bool awaits_sync; /* S: no checkpoint yet, the disks are not equal */
    uint64_t epoch;
    uint64_t checkpoint_wall_ns; /* 0: none yet */
    uint64_t checkpoint_now_ns;
    uint64_t checkpoint_held_ns, checkpoint_duration_ns; /* of the last one */
};

/* The nodes that carry the driver, in the graph's order, each with a reference. */
struct group_members {
    struct node **nodes;
    size_t count;
};
int members_get(struct replication_group *group, struct group_members *ret_members,
                struct err *err);
void members_release(struct group_members *members) MAY_WAIT;

/* Around each call: one at a time, with the members at hand. */
int group_begin(struct replication_group *group, struct group_members *ret_members, struct err *err)
    MAY_WAIT;
void group_end(struct replication_group *group, struct group_members *members) MAY_WAIT;

/* -ENODATA while the group awaits its first synchronisation. */
int group_check_synchronised(const struct replication_group *group, const char *what,
                             struct err *err);

uint64_t group_clock_ns(const struct replication_group *group);
struct group_disk *group_find_disk(struct replication_group *group, const struct node *node);
/* -EIO, and the sticky error in words. */
int group_error_text(const struct node *node, struct err *err);

/* group_disk.c: a secondary disk's parts, put together and taken apart. */
/* Checks, in the order of docs/semantics.md; the nodes it finds. Changes nothing. */
int disk_check(struct replication_group *group, struct node *node, struct group_disk *disk,
               struct err *err);
/* Whether the overlays hold anything. */
int disk_holds(struct group_disk *disk, bool *ret_holds, struct err *err) MAY_WAIT;
/* Reopens, blocks, inserts; on failure nothing is left but what disk_undo() takes away. */
int disk_prepare(struct group_disk *disk, bool copies, struct err *err) MAY_WAIT;
void disk_undo(struct group_disk *disk) MAY_WAIT;
/* Takes the filter out. A failure leaves it standing, which costs speed alone: it is logged. */
void disk_remove_filter(struct group_disk *disk) MAY_WAIT;
void disk_unblock_top(struct group_disk *disk);
/* What was read-only before the start becomes so again. */
void disk_put_back(struct group_disk *disk) MAY_WAIT;
/* After a stop or a merge: forgets the disk, and takes the filter out if it still stands. The lower
 * edge stays with the node. */
void disk_free(struct group_disk *disk) MAY_WAIT;

/* group_checkpoint.c */
/* Which of a disk's overlays is empty on its medium first matters to a daemon that is killed in
 * between. A checkpoint begins with the active disk: what is left is the old checkpoint. The end of
 * a merge begins with the hidden one: its old content would cover what the merge has put below,
 * while the active disk's is what stands there already. */
enum empty_order { EMPTY_ACTIVE_FIRST, EMPTY_HIDDEN_FIRST };
/* Empties the overlays of all disks, or of none. Everything is drained. */
int disks_empty_prepare(struct group_disk *const *disks, size_t count, enum empty_order order,
                        uint64_t epoch, struct err *err) MAY_WAIT;
void disks_empty_commit(struct group_disk *const *disks, size_t count);
/* The disks of the group in this stage; `ret_disks` has room for REPLICATION_MAX_DISKS. */
size_t disks_in_stage(struct replication_group *group, enum replication_stage stage,
                      struct group_disk **ret_disks);
int disks_drain(struct group_disk *const *disks, size_t count, struct graph_drain *drain,
                struct err *err) MAY_WAIT;
/* For a start: an epoch for the disks given, whose stage is still `none`. */
int group_checkpoint_secondary(struct replication_group *group, struct group_disk *const *disks,
                               size_t count, struct err *err) MAY_WAIT;

/* group_failover.c */
int group_fail_over(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err) MAY_WAIT;
/* Begins the merges; a disk whose merge cannot start is failover-failed. */
void group_merge(struct group_disk *const *disks, size_t count) MAY_WAIT;

#endif
