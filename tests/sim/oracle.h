/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What may legally be seen: the simulator's model of disks, block for block.
 *
 * Every sector that a guest writes carries the number of its write (a "change"), so that what is read
 * tells where it comes from. A view is what one user may see of all disks: for each sector the changes
 * of which one may be its content now. Knowledge grows with what is acknowledged and with what is
 * read: who has seen B after A never sees A again.
 *
 * Moments are counted, not measured: each begin and each end of anything is one.
 *
 * A failing check calls the handler given to oracle_new(), with the invariant's name.
 */
#ifndef BLOCKSTEP_SIM_ORACLE_H
#define BLOCKSTEP_SIM_ORACLE_H

#include "base/defs.h"
#include "base/list.h"

#define ORACLE_SECTOR_BYTES 512u
#define ORACLE_MAX_DISKS    3u
#define ORACLE_MAX_CHANGES  16000u
#define ORACLE_WORLDS_MAX   4u
#define ORACLE_NEVER        UINT32_MAX

/* The invariants of durability.md, and what always holds. */
enum invariant {
    I1_ACKNOWLEDGED_IS_READ,
    I2_VIEW_IS_CHECKPOINT,
    I3_FAILOVER_CONTRACT,
    I4_DIFFERENCE_IS_DIRTY,
    I5_RESYNC_MAKES_EQUAL,
    I6_FLUSH_IS_ON_BOTH,
    I7_FENCED,
    I8_NOTHING_HANGS,
    I9_BOUNDS,
    I2_LEVEL_HOST,
    I7_SPLIT_BRAIN,
    INVARIANT_COUNT,
};
const char *invariant_name(enum invariant invariant);
/* NULL: checked; else what it waits for. */
const char *invariant_off(enum invariant invariant);

typedef void oracle_violated(void *arg, enum invariant invariant, const char *text);

struct oracle;
struct view;

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_DISCARD };
enum change_result {
    CHANGE_PENDING,
    CHANGE_DONE,   /* acknowledged */
    CHANGE_FAILED, /* answered with an error: any part may have happened */
    CHANGE_LOST,   /* no answer: as failed, but it may still happen */
};

struct oracle *oracle_new(unsigned disks, uint32_t sectors, oracle_violated *violated, void *arg);
void oracle_free(struct oracle *oracle);
/* The moment that begins now. */
uint32_t oracle_now(struct oracle *oracle);
/* From now on a checkpoint may come whose moment is this one or later, until ORACLE_NEVER is said. */
void oracle_keep_since(struct oracle *oracle, uint32_t moment);

/* --- views --- */

/* All zeroes. `whose` begins the texts. */
struct view *view_new(struct oracle *oracle, const char *whose, enum invariant invariant);
void view_free(struct view *view);
/* What a view is called, and which invariant it stands for, from now on. */
void view_set_invariant(struct view *view, enum invariant invariant);
/* The same content, knowledge and doubts. */
void view_copy(struct view *to, const struct view *from);
/*
 * `to` becomes what `from` was at one moment since `since` (the same on all disks), and a checkpoint
 * of the user of `to`: of the changes that were only in `to`, those that had ended by then are gone,
 * those under way have happened before (and are gone) or after.
 * `certain`: it did happen; else `to` may also have stayed as it was.
 */
void view_checkpoint(struct view *to, const struct view *from, uint32_t since, bool certain);
/* The power has gone: what no flush has covered may be there or not, unit by unit. */
void view_power_cut(struct view *view);
/* What began before `until` and was LOST on the way to this view will not come any more. */
void view_settle(struct view *view, uint32_t until);
/* Both get the same changes in the same order: what reads of `view` decide about two that were
 * acknowledged is decided for `twin` too. NULL: no more. */
void view_set_twin(struct view *view, struct view *twin);

/* --- requests --- */

/* 0: there have been too many. The change is under way on the views (NULLs are skipped). */
uint32_t change_begin(struct oracle *oracle, enum change_kind kind, unsigned disk, uint32_t first,
                      uint32_t count, bool durable, struct view *const *views, unsigned view_count);
void change_end(struct oracle *oracle, uint32_t change, enum change_result result);
/* The bytes of a write. */
void change_fill(const struct oracle *oracle, uint32_t change, void *bytes);

/* What had ended before `begun` is durable on this disk. */
void view_flushed_disk(struct view *view, unsigned disk, uint32_t begun);

/* A flush has failed: what is not durable by now on this disk is made so by no later one, since the kernel has
 * forgotten what it could not write. */
void view_flush_failed(struct view *view, unsigned disk);

/* Whether any flush of what had ended after this moment has succeeded. */
bool view_was_flushed(const struct view *view, uint32_t since);

/* Between begin and end of a read, what it may see is kept. */
struct view_read {
    struct list_link link;
    struct view *view;
    uint32_t begun;
    bool vague; /* a checkpoint began or ended meanwhile: nothing is learned */
};
void view_read_begin(struct view *view, struct view_read *read);
/* bytes NULL: the read failed. */
void view_read_end(struct view_read *read, unsigned disk, uint32_t first, uint32_t count,
                   const void *bytes);
/* Reads that overlap a checkpoint of the view, which is under way from now on, may see before or
 * after it. `next`: where the new content comes from, as it was since `since` (NULL: nobody knows). view_checkpoint() or view_checkpoint_failed()
 * ends it. */
void view_checkpoint_begin(struct view *view, const struct view *next, uint32_t since);
void view_checkpoint_failed(struct view *view);
/* What the view is cannot be told until its next checkpoint. */
void view_blind(struct view *view);

/* Doubts that could not be told apart by reading everything. */
void view_forget_doubts(struct view *view);

struct oracle_stats {
    uint64_t sectors_checked, wild_cells, worlds_peak;
};
struct oracle_stats oracle_stats(const struct oracle *oracle);

#endif
