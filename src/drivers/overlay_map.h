/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which blocks an overlay holds, and where in its file: an ordered index in memory.
 *
 * Blocks and slots have 32 bits. Two B+ trees of 4 KiB pages: one from block to slot, and one of long
 * zeroed runs, which a block of the first overrides. Nothing is ever taken out, save everything at
 * once, in constant time; the memory then goes back piece by piece. A full page shares with its
 * neighbours before it is split, so a block costs less than 16 bytes in any distribution.
 *
 * Pages have to be reserved before blocks are put in: what can fail comes before what is written.
 */
#ifndef BLOCKSTEP_DRIVERS_OVERLAY_MAP_H
#define BLOCKSTEP_DRIVERS_OVERLAY_MAP_H

#include "base/defs.h"

#define OVERLAY_MAP_SLAB_BYTES  (256u * 1024)
#define OVERLAY_MAP_SPARE_SLABS 32u /* kept for reuse after all was dropped */
#define OVERLAY_MAP_LOOK_BLOCKS \
    65536u /* how far a look goes: what follows may be of one kind still */
/* The same for the question whether blocks are held: it is asked again for every piece. */
#define OVERLAY_MAP_HELD_BLOCKS 1024u
#define OVERLAY_MAP_ZERO        UINT32_MAX
#define OVERLAY_MAP_LONG_RUN    64u /* zeroed runs from this many blocks on go to the second tree */

struct overlay_map;

/* `slot_step`: what the slots of neighbouring blocks differ by when their data lie side by side. NULL
 * when memory is out. */
struct overlay_map *overlay_map_new(uint32_t slot_step);
void overlay_map_free(struct overlay_map *map); /* NULL is fine */

/* Makes sure that `blocks` blocks in `runs` runs can be put in. -ENOMEM. */
int overlay_map_reserve(struct overlay_map *map, uint64_t runs, uint64_t blocks) MUST_CHECK;
/* Block i of the run gets slot + i * slot_step. */
void overlay_map_put(struct overlay_map *map, uint32_t block, uint64_t count, uint32_t slot);
void overlay_map_put_zero(struct overlay_map *map, uint32_t block, uint64_t count);

enum overlay_map_kind { OVERLAY_MAP_ABSENT, OVERLAY_MAP_DATA, OVERLAY_MAP_ZEROED };

/* The stretch of one kind that begins at `block`; data: whose slots follow each other. */
struct overlay_map_run {
    enum overlay_map_kind kind;
    uint32_t slot;  /* data: of the first block */
    uint64_t count; /* 1 to max_count */
};
struct overlay_map_run overlay_map_find(const struct overlay_map *map, uint32_t block,
                                        uint64_t max_count);
/* Only held or absent, for a stretch from `block` on: what follows may be of the same kind. */
bool overlay_map_held(const struct overlay_map *map, uint32_t block, uint64_t max_count,
                      uint64_t *ret_count);

/* Forgets all, in constant time. */
void overlay_map_drop(struct overlay_map *map);
/* Gives back up to `slabs` slabs of what was dropped; true while there is more. */
bool overlay_map_reap(struct overlay_map *map, unsigned slabs);

uint64_t overlay_map_blocks(const struct overlay_map *map);      /* held, without the long runs */
uint64_t overlay_map_long_blocks(const struct overlay_map *map); /* in long zeroed runs, about */
uint64_t overlay_map_bytes(const struct overlay_map *map);       /* memory, dropped ones included */

#endif
