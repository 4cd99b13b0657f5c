/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of an overlay image: two superblocks, then a log of groups, each a record and the blocks
 * it names. docs/overlay-format.md tells how they are used. Little-endian. No I/O, no allocation.
 *
 * Decoders trust nothing: they return 0 or a negative errno, and never look beyond what they got.
 */
#ifndef BLOCKSTEP_WIRE_OVERLAY_FORMAT_H
#define BLOCKSTEP_WIRE_OVERLAY_FORMAT_H

#include "base/err.h"

#define OVERLAY_VERSION           2u
#define OVERLAY_ID_BYTES          16u
#define OVERLAY_SUPERBLOCK_BYTES  512u
#define OVERLAY_SUPERBLOCK_STRIDE 4096u /* the second one begins here */
#define OVERLAY_LOG_OFFSET_BYTES  65536u
#define OVERLAY_MIN_BLOCK_BYTES   512u
#define OVERLAY_MAX_BLOCK_BYTES   65536u
#define OVERLAY_MIN_UNIT_BYTES    512u
#define OVERLAY_MAX_UNIT_BYTES    4096u
#define OVERLAY_MIN_SEGMENT_BYTES (1u << 20)
#define OVERLAY_MAX_SEGMENT_BYTES (64u << 20)
#define OVERLAY_MAX_BLOCKS        (UINT64_C(1) << 32)    /* block numbers have 32 bits */
#define OVERLAY_MAX_UNITS         (UINT64_C(0xfffffff0)) /* so have positions in the file */

#define OVERLAY_RECORD_HEADER_BYTES 96u
#define OVERLAY_ENTRY_BYTES         32u
#define OVERLAY_RECORD_MAX_BYTES    4096u
#define OVERLAY_RECORD_MAX_ENTRIES \
    ((OVERLAY_RECORD_MAX_BYTES - OVERLAY_RECORD_HEADER_BYTES) / OVERLAY_ENTRY_BYTES)

enum overlay_superblock_flags {
    OVERLAY_CLEAN = 1u << 0, /* closed in good order: clean_* tell where the log ends */
};

struct overlay_superblock {
    uint32_t version;
    uint8_t image_id[OVERLAY_ID_BYTES];
    uint8_t disk_id[OVERLAY_ID_BYTES]; /* all zero: any disk */
    uint64_t virtual_bytes;
    uint32_t block_bytes;
    uint32_t unit_bytes;
    uint32_t segment_bytes;
    uint64_t serial;              /* of the two superblocks the one with the higher serial counts */
    uint64_t generation;          /* of the log; emptying raises it */
    uint64_t previous_generation; /* the one before the last emptying; 0: none */
    uint64_t epoch;
    uint64_t first_unit;     /* where the log's first record lies, or will lie */
    uint64_t first_sequence; /* its sequence, from 1 */
    uint64_t
        flushed_sequence; /* records up to this one were durable when this was written; 0: none */
    uint32_t flags;
    uint64_t clean_sequence; /* OVERLAY_CLEAN: the last record's sequence, 0: none */
    uint64_t clean_end_unit; /* OVERLAY_CLEAN: where the next record would go */
};

void overlay_superblock_encode(const struct overlay_superblock *superblock,
                               uint8_t bytes[OVERLAY_SUPERBLOCK_BYTES]);
/* -EMEDIUMTYPE: wrong magic; -ENOTSUP: newer; -EUCLEAN: damaged, or values that cannot be. The text
 * says which, without naming the file. */
int overlay_superblock_decode(const uint8_t bytes[OVERLAY_SUPERBLOCK_BYTES],
                              struct overlay_superblock *ret_superblock, struct err *err);
/* What creating checks too. */
int overlay_geometry_check(const struct overlay_superblock *superblock, struct err *err);

static inline uint64_t overlay_block_count(const struct overlay_superblock *superblock)
{
    return (superblock->virtual_bytes + superblock->block_bytes - 1) / superblock->block_bytes;
}

/* The log's part of the file is cut into segments; a group lies in one. */
static inline uint64_t overlay_log_begin(const struct overlay_superblock *superblock)
{
    return OVERLAY_LOG_OFFSET_BYTES / superblock->unit_bytes;
}

static inline uint64_t overlay_segment_units(const struct overlay_superblock *superblock)
{
    return superblock->segment_bytes / superblock->unit_bytes;
}

static inline uint64_t overlay_segment_of(const struct overlay_superblock *superblock,
                                          uint64_t unit)
{
    return (unit - overlay_log_begin(superblock)) / overlay_segment_units(superblock);
}

static inline uint64_t overlay_segment_begin(const struct overlay_superblock *superblock,
                                             uint64_t segment)
{
    return overlay_log_begin(superblock) + segment * overlay_segment_units(superblock);
}

/* The largest group there is: an eighth of a segment as data, two blocks that were filled up, and
 * the record. */
static inline uint64_t overlay_group_max_units(const struct overlay_superblock *superblock)
{
    return (superblock->segment_bytes / 8 + 2 * superblock->block_bytes +
            OVERLAY_RECORD_MAX_BYTES) /
           superblock->unit_bytes;
}

enum overlay_entry_kind {
    OVERLAY_ENTRY_DATA = 1, /* the blocks' bytes lie at data_unit */
    OVERLAY_ENTRY_ZERO = 2, /* they read as zeroes */
};

struct overlay_entry {
    uint64_t block; /* the first of `count` */
    uint32_t count;
    uint32_t kind;
    uint64_t data_unit; /* data: where the first block lies, the others behind it */
    uint32_t crc;       /* data: of all its bytes */
};

struct overlay_record {
    uint8_t image_id[OVERLAY_ID_BYTES];
    uint64_t generation;
    uint64_t epoch;
    uint64_t sequence;         /* counts records of the generation from 1 */
    uint64_t flushed_sequence; /* up to this one all were durable when this one was written */
    uint64_t unit;             /* where it lies itself */
    uint64_t next_unit;        /* where the next lies: behind this group, or a segment's begin */
    uint32_t group_units;      /* record and data */
    uint32_t entry_count;
};

static inline uint32_t overlay_record_bytes(uint32_t entry_count)
{
    return OVERLAY_RECORD_HEADER_BYTES + entry_count * OVERLAY_ENTRY_BYTES;
}

/* Into at least overlay_record_bytes(record->entry_count) bytes. */
void overlay_record_encode(const struct overlay_record *record, const struct overlay_entry *entries,
                           uint8_t *bytes);
/*
 * Magic, length and CRC of a record at the begin of `bytes`: 0, or -EUCLEAN. When the whole of it
 * does not lie within length_bytes: -EUCLEAN. Entries are not looked at.
 */
int overlay_record_decode(const uint8_t *bytes, size_t length_bytes,
                          struct overlay_record *ret_record);
/* The entry `index` of a record that was decoded. */
void overlay_entry_decode(const uint8_t *bytes, uint32_t index, struct overlay_entry *ret_entry);
/* Whether record and entries can be what they say in an image like this: blocks within the disk, data
 * behind the record and within its group, the group and the way to the next within a segment. 0, or
 * -EUCLEAN with a text. */
int overlay_record_check(const struct overlay_superblock *superblock,
                         const struct overlay_record *record, const uint8_t *bytes,
                         struct err *err);

#endif
