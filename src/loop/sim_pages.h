/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of a simulated file: sparse pages below a radix tree. Holes and pages that are allocated
 * but unwritten read as zeroes.
 *
 * Beside what reads see, a page keeps what a power cut would fall back to: its bytes at the last sync,
 * until the next. That differs in units of SIM_UNIT_BYTES, which are dirty (the next sync writes them)
 * or lost (a sync has failed: nothing writes them but a new write).
 */
#ifndef BLOCKSTEP_LOOP_SIM_PAGES_H
#define BLOCKSTEP_LOOP_SIM_PAGES_H

#include "base/list.h"
#include "loop/sim.h"

#define SIM_PAGE_BYTES     4096u
#define SIM_FILE_MAX_BYTES (UINT64_C(1) << 48)

struct sim_pages;

/* What the files of a host may take together. */
struct sim_space {
    uint64_t limit_bytes; /* 0: no limit */
    uint64_t used_bytes;
    uint64_t random_state; /* draws what has been written back before it was written again */
    /* Whether a unit that was left open is as it was last written (age 0), or as before that, and so
     * on. NULL: nothing is left open. */
    bool (*ask)(const struct sim_pages *pages, uint64_t offset_bytes, unsigned age);
};

struct sim_pages_node;

struct sim_pages {
    struct sim_pages_node *root;
    struct sim_space *space;
    struct list unsynced; /* struct sim_page: those with dirty or lost units, in order of change */
    uint64_t taken;       /* pages that take space */
    bool counted;         /* in space->used_bytes */
};

void sim_pages_init(struct sim_pages *pages, struct sim_space *space);
void sim_pages_clear(struct sim_pages *pages);
/* Whether what the pages take counts; it does at first. */
void sim_pages_count(struct sim_pages *pages, bool counted);

/* 0, or -EIO when a bad unit is among them. */
int sim_pages_read(struct sim_pages *pages, void *bytes, size_t length_bytes,
                   uint64_t offset_bytes);
/* 0, -ENOSPC or -ENOMEM; what comes before the failing page has been written then. */
int sim_pages_write(struct sim_pages *pages, const void *bytes, size_t length_bytes,
                    uint64_t offset_bytes);
/* Whole pages become holes, or with `keep` stay (or become) allocated; edges are zeroed. Errors as of
 * a write. */
int sim_pages_zero(struct sim_pages *pages, uint64_t offset_bytes, uint64_t length_bytes,
                   bool keep);
/* The first page at or after `page`, below `end`, that holds data (or: that does not); `end` when
 * there is none. */
uint64_t sim_pages_next(struct sim_pages *pages, uint64_t page, uint64_t end, bool data);
/* Units of this range cannot be read until they are written as a whole. 0 or -ENOMEM. */
int sim_pages_spoil(struct sim_pages *pages, uint64_t offset_bytes, uint64_t length_bytes);
/* All can be read again. */
void sim_pages_mend(struct sim_pages *pages);

/* What is dirty becomes durable, */
void sim_pages_sync(struct sim_pages *pages);
/* or is forgotten: reads see it, no sync writes it. */
void sim_pages_lose(struct sim_pages *pages);
/* Of what is not durable, `keep` says for each unit whether it stays; the rest falls back. */
void sim_pages_cut(struct sim_pages *pages, bool (*keep)(void *arg, uint64_t offset_bytes),
                   void *arg);
/* Or space->ask says so, when a unit is first read: what nobody reads, nobody has to decide. */
void sim_pages_leave_open(struct sim_pages *pages);

#endif
