/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bit maps of fixed length with a count of set bits and fast search. Not thread-safe. */
#ifndef BLOCKSTEP_BASE_BITMAP_H
#define BLOCKSTEP_BASE_BITMAP_H

#include "base/defs.h"

struct bitmap;

#define BITMAP_NONE UINT64_MAX

/* All bits clear; NULL when memory is out. Memory: one bit per bit, plus 1/2048; parts that were
 * never set cost none. */
struct bitmap *bitmap_new(uint64_t bits);
void bitmap_free(struct bitmap *bitmap); /* NULL is fine */
/* New bits are clear; bits past a nearer end are forgotten. -ENOMEM changes nothing. */
int bitmap_resize(struct bitmap *bitmap, uint64_t bits);
uint64_t bitmap_bits(const struct bitmap *bitmap);
uint64_t bitmap_count(const struct bitmap *bitmap); /* set bits; constant time */

bool bitmap_test(const struct bitmap *bitmap, uint64_t bit);
/* Return what the bit was before. */
bool bitmap_set(struct bitmap *bitmap, uint64_t bit);
bool bitmap_clear(struct bitmap *bitmap, uint64_t bit);
void bitmap_set_range(struct bitmap *bitmap, uint64_t first, uint64_t count);
void bitmap_clear_range(struct bitmap *bitmap, uint64_t first, uint64_t count);
void bitmap_clear_all(struct bitmap *bitmap);

/* The first set (clear) bit at or after `from`, BITMAP_NONE when there is none. */
uint64_t bitmap_next_set(const struct bitmap *bitmap, uint64_t from);
uint64_t bitmap_next_clear(const struct bitmap *bitmap, uint64_t from);
/* Where the bits stop to be as the one at `from` is; looks no further than `limit`, nor past the end. */
uint64_t bitmap_run_end(const struct bitmap *bitmap, uint64_t from, uint64_t limit);

#endif
