/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The bytes of a simulated file: sparse pages below a radix tree. Holes and pages that are
 * allocated but unwritten read as zeroes. */
#ifndef BLOCKSTEP_LOOP_SIM_PAGES_H
#define BLOCKSTEP_LOOP_SIM_PAGES_H

#include "base/defs.h"

#define SIM_PAGE_BYTES     4096u
#define SIM_FILE_MAX_BYTES (UINT64_C(1) << 48)

/* What the files of a host may take together. */
struct sim_space {
    uint64_t limit_bytes; /* 0: no limit */
    uint64_t used_bytes;
};

struct sim_pages_node;

struct sim_pages {
    struct sim_pages_node *root;
    struct sim_space *space;
};

void sim_pages_init(struct sim_pages *pages, struct sim_space *space);
void sim_pages_clear(struct sim_pages *pages);
void sim_pages_read(const struct sim_pages *pages, void *bytes, size_t length_bytes,
                    uint64_t offset_bytes);
/* 0, -ENOSPC or -ENOMEM; what comes before the failing page has been written then. */
int sim_pages_write(struct sim_pages *pages, const void *bytes, size_t length_bytes,
                    uint64_t offset_bytes);
/* Whole pages become holes, or with `keep` stay (or become) allocated; edges are zeroed. */
int sim_pages_zero(struct sim_pages *pages, uint64_t offset_bytes, uint64_t length_bytes,
                   bool keep);
/* The first page at or after `page`, below `end`, that holds data (or: that does not); `end` when
 * there is none. */
uint64_t sim_pages_next(const struct sim_pages *pages, uint64_t page, uint64_t end, bool data);

#endif
