/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the group share and nobody else sees. */
#ifndef BLOCKSTEP_REPLICATION_GROUP_INTERNAL_H
#define BLOCKSTEP_REPLICATION_GROUP_INTERNAL_H

#include "drivers/copy_before_write.h"
#include "replication/group.h"
#include "replication/record_file.h"

#define REPLICATION_MAX_DISKS 64u

/* A secondary disk from its start until its stop, or the end of its merge. */
struct group_disk {
    struct list_link link;
    struct replication_group *group;
    struct node *node; /* the filter; a reference, as for all nodes here */
    struct node *top, *active, *hidden, *disk;
    /* What is emptied: the active and the hidden disk, or the filters that stand on them. */
    struct node *layers[2];
    struct cbw cbw;                  /* zeroed: not inserted */
    struct edge *lower;              /* the node's child; NULL: not attached */
    struct node_blocker blockers[4]; /* on the top, the node, active and hidden; zeroed: nowhere */
    bool hidden_was_read_only, disk_was_read_only;
    struct job *merge;                            /* a reference; NULL: none is running */
    uint64_t merge_done_bytes, merge_total_bytes; /* of one that has ended */
    struct graph_drain drain;                     /* the merge's last step */
    /* In a failover: the overlays hold on stable storage what they held at its begin. */
    bool undo_flushed;
    struct co_mutex undo_lock; /* while they are flushed for that */
};

/* S: how far the stream of the primary's writes can be believed, beyond what is recorded. */
struct group_stream {
    bool written; /* by a primary, in this run of the daemon */
    bool suspect; /* a writer has gone, and writes of it may have been lost */
    char suspicion[EDGE_NAME_BYTES + 128];
};

struct group_session {
    struct replication_session now;
    struct json_object *peer_error; /* NULL: the primary has reported none */
    uint64_t refused;               /* writes of others, since it is connected */
};

struct replication_group {
    struct graph *graph;
    struct job_list *jobs;
    const struct replication_owner *owner;
    struct co_mutex calls;
    struct list disks; /* struct group_disk, in the graph's order */
    bool ending;
    bool awaits_sync;  /* S: not started, there is no checkpoint to fall back to */
    struct peer *peer; /* P, from its start until its stop: its session; NULL: none */
    unsigned
        flushing; /* flushes before a checkpoint that are under way, also when it has given up */
    struct co_queue flushed;
    struct group_stream stream;
    struct group_session session;

    struct record_file *file; /* NULL: no state folder */
    enum group_durability level;
    char boot_id[GROUP_RECORD_BOOT_ID_BYTES];
    int record_code; /* 0: the file has `record`; -ENOENT: there is none yet; else why it cannot be used */
    struct err record_err;
    struct group_record
        *record; /* what is true; a primary's has epoch and time of checkpoint alone */
    struct co_mutex record_lock; /* of `change` and the file */
    struct group_record *change; /* being made */
    struct group_record *cut;    /* what a checkpoint makes of it */
    uint64_t record_changes, cut_changes;
    char lost[GROUP_RECORD_LOST_BYTES]; /* what a forced failover under way gives up */

    /* Of the last checkpoint, if this run of the daemon has taken it; its wall-clock time is recorded. */
    uint64_t checkpoint_now_ns; /* 0: it has not */
    uint64_t checkpoint_held_ns, checkpoint_duration_ns;
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

/* -ENODATA while the group awaits a synchronisation, with the reason. */
int group_check_synchronised(const struct replication_group *group, const char *what,
                             struct err *err);

uint64_t group_clock_ns(const struct replication_group *group);
struct group_disk *group_find_disk(struct replication_group *group, const struct node *node);
/* -EIO, and the sticky error in words. */
int group_error_text(const struct node *node, struct err *err);

/*
 * group_record.c. A change: group_record_change() gives a copy to alter, and excludes other changes
 * until group_record_write() (durable; on failure nothing has changed) or group_record_drop().
 */
int group_record_init(struct replication_group *group); /* 0 or -ENOMEM */
void group_record_release(struct replication_group *group);
/* 0: there is a record. -ENOENT, without a text: none, or one that a start_over replaces. */
int group_record_found(const struct replication_group *group, bool start_over, struct err *err);
struct group_record *group_record_change(struct replication_group *group) MAY_WAIT;
int group_record_write(struct replication_group *group, struct err *err) MAY_WAIT;
/* Whether a record could be written now, as far as that can be found out at once; writes none. */
int group_record_try(struct replication_group *group, struct err *err) MAY_WAIT;
void group_record_drop(struct replication_group *group);
/* A checkpoint's change in two steps: the text is written before requests are held, and takes its
 * place while they are. `first`: what a start makes of the record, to begin with; else NULL. */
int group_record_prepare_cut(struct replication_group *group, struct group_disk *const *disks,
                             size_t count, const struct group_record *first, struct err *err)
    MAY_WAIT;
int group_record_commit_cut(struct replication_group *group, struct group_disk *const *disks,
                            size_t count, const struct group_record *first, struct err *err)
    MAY_WAIT;

/* group_query.c: the marks of a secondary; a primary has none. 0 or -1. */
int group_add_marks(const struct replication_group *group, struct json_object *object);

/* group_stream.c */
/* S: what P forwards is not whole any more. Recorded before the one who noticed goes on; if that fails
 * it is true of this run at least. */
void group_stream_broken(struct replication_group *group, const char *reason) MAY_WAIT;
int group_check_stream(const struct replication_group *group, struct err *err);
/* A start has succeeded. `resumed`: at the epoch of an earlier run. */
void group_stream_start(struct replication_group *group, bool resumed);
/* The disks are equal, by the primary's word: a first checkpoint. */
void group_stream_mended(struct replication_group *group);
/* Before somebody begins who has not synchronised (or, with `resync`, does so now). */
int group_stream_continue(struct replication_group *group, bool resync, struct err *err) MAY_WAIT;
/* Asks about all writers again. */
void group_renew_writers(struct replication_group *group);
/* Whether a primary writes while the disks become equal, so that another one is not to be believed. */
bool group_stream_goes_on(const struct replication_group *group);

/* group_session.c */
int group_session_admit(struct replication_group *group, const struct replication_writer *writer);
/* Whether a checkpoint may be asked for by this session (0: by nobody's). */
int group_session_check(const struct replication_group *group, uint64_t session, struct err *err);
void group_session_forget_error(struct replication_group *group);
int group_session_query(const struct replication_group *group, struct json_object *object);

/* group_roots.c: the user edges by which the peer may write to a secondary disk, other than through
 * the view of S's user. */
#define GROUP_MAX_ROOTS 256u
struct group_roots {
    struct edge *edges[GROUP_MAX_ROOTS];
    size_t count;
    bool overflow;
};
void group_roots_add(struct group_roots *roots, const struct group_disk *disk);
/* Of all secondary disks that a primary may write to. */
void group_roots_all(struct replication_group *group, struct group_roots *roots);
bool group_is_peers(struct replication_group *group, const struct edge *root);

uint64_t group_random_id(const struct replication_group *group); /* never 0 */
/* A generation of the group's own, for data that nobody else writes from now on. */
void record_mint(struct replication_group *group, struct group_record *record);
int record_set_disks(struct group_record *record, struct group_disk *const *disks, size_t count,
                     struct err *err);
/* Which generations are live: those of now, or those that the next emptying begins. */
void record_set_overlays(struct group_record *record, struct group_disk *const *disks, size_t count,
                         bool next);
struct group_record_disk *record_find_disk(struct group_record *record, const struct node *node);
void record_set_inconsistent(struct group_record *record, const char *reason);
/* What a forced failover gives up: said while it is prepared, and recorded with the change-over, from
 * which on what is left is all there is. */
PRINTF_LIKE(2, 3)
void group_say_loss(struct replication_group *group, const char *fmt, ...);
void record_set_forced(const struct replication_group *group, struct group_record *record);

/* group_verdict.c: what a start makes of the record of an earlier run. */
enum group_verdict {
    VERDICT_LIVE,         /* the overlays hold the live epoch: go on */
    VERDICT_MERGE,        /* a failover was interrupted: go on with it */
    VERDICT_DONE,         /* the disks alone are the truth */
    VERDICT_INCONSISTENT, /* what the last checkpoint needs is lost: `reason` */
};
/* During a failover whose overlays had been made durable: only what its user wrote since, and did not
 * flush, may be missing in an active disk. */
bool group_lost_power(const struct replication_group *group);
/* Before force makes do with what is left: an overlay of somebody else that holds blocks is neither merged
 * nor emptied. */
int group_check_overlays(struct replication_group *group, struct group_disk *const *disks,
                         size_t count, struct err *err);
/* Negative: the record is of another group or of a role that this start does not fit. */
int group_verdict(struct replication_group *group, struct group_disk *const *disks, size_t count,
                  enum group_verdict *ret_verdict, char reason[GROUP_RECORD_REASON_BYTES],
                  struct err *err);

/* group_disk.c: a secondary disk's parts, put together and taken apart. */
/* Checks, in the order of docs/semantics.md; the nodes it finds. Changes nothing. */
int disk_check(struct replication_group *group, struct node *node, struct group_disk *disk,
               struct err *err);
/* As far as the chain goes: sets the disk's nodes. */
int disk_find_layers(struct node *node, struct group_disk *disk, struct err *err);
/* Whether the overlays hold anything. */
int disk_holds(struct group_disk *disk, bool *ret_holds, struct err *err) MAY_WAIT;
/* Reopens, settles the overlays by what is recorded (NULL: nothing is; `forced`: as far as that goes,
 * and says what it does not by group_say_loss()), blocks, inserts; on failure nothing is left but what disk_undo() takes away. */
int disk_prepare(struct group_disk *disk, bool copies, const struct group_record_disk *recorded,
                 bool forced, struct err *err) MAY_WAIT;
void disk_undo(struct group_disk *disk) MAY_WAIT;
/* Takes the filter out. A failure leaves it standing, which costs speed alone: it is logged. */
void disk_remove_filter(struct group_disk *disk) MAY_WAIT;
/* From a failover on the top can be used as its user likes; what is being merged cannot. */
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
/* What the users of the disks see is another content now: bitmaps on the way there know. */
void disks_mark_changed(struct group_disk *const *disks, size_t count);
void disks_empty_abort(struct group_disk *const *disks, size_t count, enum empty_order order)
    MAY_WAIT;
/* The disks of the group in this stage; `ret_disks` has room for REPLICATION_MAX_DISKS. */
size_t disks_in_stage(struct replication_group *group, enum replication_stage stage,
                      struct group_disk **ret_disks);
int disks_drain(struct group_disk *const *disks, size_t count, struct graph_drain *drain,
                struct err *err) MAY_WAIT;
/* `first`: for a start, an epoch for disks whose stage is still `none`, with the record to begin
 * with; else NULL. */
int group_checkpoint_secondary(struct replication_group *group, struct group_disk *const *disks,
                               size_t count, const struct group_record *first, struct err *err)
    MAY_WAIT;

/* Tells of one that has been taken. */
void group_checkpoint_done(struct replication_group *group, enum replication_mode mode,
                           uint64_t begun_ns, uint64_t held_ns);
/* The first one, asked for on the primary. */
int group_first_of_primary(struct replication_group *group, struct group_members *members,
                           uint64_t deadline_ns, struct err *err) MAY_WAIT;

/* group_primary.c */
/* Before the stages change: begins the session, when the nodes name where. */
int group_start_primary(struct replication_group *group, const struct group_members *members,
                        bool resync, struct err *err) MAY_WAIT;
/* Ends it, if there is one. */
void group_leave_peer(struct replication_group *group) MAY_WAIT;
/* Until nothing that a checkpoint has begun is under way. */
void group_wait_flushed(struct replication_group *group) MAY_WAIT;
/* Of primaries that run. `first`: with a session only, the disks are equal now. */
int group_checkpoint_primary(struct replication_group *group, struct node *const *nodes,
                             size_t count, bool first, uint64_t deadline_ns, struct err *err)
    MAY_WAIT;

/* group_start.c: the first checkpoint of a secondary, for who has begun a call. */
int group_first_of_secondary(struct replication_group *group, const struct group_members *members,
                             struct err *err) MAY_WAIT;
/* A failover of a group that is inconsistent, with what there is. */
int group_force_over(struct replication_group *group, const struct group_members *members,
                     struct err *err) MAY_WAIT;

/* group_failover.c */
int group_fail_over(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err) MAY_WAIT;
/* The disks as they are become the truth: what the overlays hold is dropped. Of disks that were put
 * together for it; their stage is still `none`. */
int group_take_over(struct replication_group *group, struct group_disk *const *disks, size_t count,
                    struct err *err) MAY_WAIT;
/* From now on, until the group ends, no flush of the node succeeds that a loss of power during a failover
 * would undo. */
void group_keep_flushes(struct replication_group *group, struct node *node);
/* Begins the merges; a disk whose merge cannot start is failover-failed. */
void group_merge(struct group_disk *const *disks, size_t count) MAY_WAIT;

#endif
