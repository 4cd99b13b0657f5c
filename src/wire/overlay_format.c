/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/overlay_format.h"

#include "wire/crc32c.h"
#include "wire/le.h"

#include <errno.h>
#include <inttypes.h>

static const uint8_t superblock_magic[8] = {'B', 'S', 't', 'p', 'O', 'v', 'l', '\n'};
static const uint8_t record_magic[8] = {0xb5, 'O', 'v', 'l', 'R', 'e', 'c', 0x9e};

/* Where the fields lie. A newer version keeps magic, version and CRC where they are. */
enum superblock_at {
    SB_MAGIC = 0,
    SB_VERSION = 8,
    SB_BLOCK_BYTES = 12,
    SB_IMAGE_ID = 16,
    SB_DISK_ID = 32,
    SB_VIRTUAL_BYTES = 48,
    SB_SERIAL = 56,
    SB_GENERATION = 64,
    SB_PREVIOUS = 72,
    SB_EPOCH = 80,
    SB_CLEAN_SEQUENCE = 88,
    SB_CLEAN_END = 96,
    SB_FLAGS = 104,
    SB_UNIT_BYTES = 108,
    SB_FIRST_UNIT = 112,
    SB_FIRST_SEQUENCE = 120,
    SB_SEGMENT_BYTES = 128,
    SB_FLUSHED = 136,
    SB_CRC = 508,
};
_Static_assert(SB_CRC + 4 == OVERLAY_SUPERBLOCK_BYTES, "the CRC ends the superblock");

enum record_at {
    REC_MAGIC = 0,
    REC_IMAGE_ID = 8,
    REC_GENERATION = 24,
    REC_EPOCH = 32,
    REC_SEQUENCE = 40,
    REC_FLUSHED = 48,
    REC_UNIT = 56,
    REC_GROUP_UNITS = 64,
    REC_ENTRY_COUNT = 68,
    REC_NEXT_UNIT = 72,
    REC_RESERVED = 80,
    REC_CRC = 92,
};
_Static_assert(REC_CRC + 4 == OVERLAY_RECORD_HEADER_BYTES, "the CRC ends the header");

enum entry_at {
    ENT_BLOCK = 0,
    ENT_COUNT = 8,
    ENT_KIND = 12,
    ENT_DATA_UNIT = 16,
    ENT_CRC = 24,
    ENT_RESERVED = 28,
};
_Static_assert(ENT_RESERVED + 4 == OVERLAY_ENTRY_BYTES, "entries have no gap");

/* As if the CRC field, which ends the first `crc_at + 4` bytes, were zero. */
static uint32_t crc_without_field(const uint8_t *bytes, size_t crc_at, size_t length_bytes)
{
    static const uint8_t zero[4];
    uint32_t crc = crc32c(0, bytes, crc_at);

    crc = crc32c(crc, zero, sizeof(zero));
    return crc32c(crc, bytes + crc_at + 4, length_bytes - crc_at - 4);
}

void overlay_superblock_encode(const struct overlay_superblock *superblock,
                               uint8_t bytes[OVERLAY_SUPERBLOCK_BYTES])
{
    memset(bytes, 0, OVERLAY_SUPERBLOCK_BYTES);
    memcpy(bytes + SB_MAGIC, superblock_magic, sizeof(superblock_magic));
    le32_put(bytes + SB_VERSION, superblock->version);
    le32_put(bytes + SB_BLOCK_BYTES, superblock->block_bytes);
    memcpy(bytes + SB_IMAGE_ID, superblock->image_id, OVERLAY_ID_BYTES);
    memcpy(bytes + SB_DISK_ID, superblock->disk_id, OVERLAY_ID_BYTES);
    le64_put(bytes + SB_VIRTUAL_BYTES, superblock->virtual_bytes);
    le64_put(bytes + SB_SERIAL, superblock->serial);
    le64_put(bytes + SB_GENERATION, superblock->generation);
    le64_put(bytes + SB_PREVIOUS, superblock->previous_generation);
    le64_put(bytes + SB_EPOCH, superblock->epoch);
    le64_put(bytes + SB_CLEAN_SEQUENCE, superblock->clean_sequence);
    le64_put(bytes + SB_CLEAN_END, superblock->clean_end_unit);
    le32_put(bytes + SB_FLAGS, superblock->flags);
    le32_put(bytes + SB_UNIT_BYTES, superblock->unit_bytes);
    le64_put(bytes + SB_FIRST_UNIT, superblock->first_unit);
    le64_put(bytes + SB_FIRST_SEQUENCE, superblock->first_sequence);
    le32_put(bytes + SB_SEGMENT_BYTES, superblock->segment_bytes);
    le64_put(bytes + SB_FLUSHED, superblock->flushed_sequence);
    le32_put(bytes + SB_CRC, crc_without_field(bytes, SB_CRC, OVERLAY_SUPERBLOCK_BYTES));
}

int overlay_geometry_check(const struct overlay_superblock *superblock, struct err *err)
{
    uint32_t block_bytes = superblock->block_bytes, unit_bytes = superblock->unit_bytes;

    if (!is_power_of_two(block_bytes) || block_bytes < OVERLAY_MIN_BLOCK_BYTES ||
        block_bytes > OVERLAY_MAX_BLOCK_BYTES)
        return err_set(err, -EINVAL, "block size %u is not a power of two from %u to %u",
                       block_bytes, OVERLAY_MIN_BLOCK_BYTES, OVERLAY_MAX_BLOCK_BYTES);
    if (!is_power_of_two(unit_bytes) || unit_bytes < OVERLAY_MIN_UNIT_BYTES ||
        unit_bytes > OVERLAY_MAX_UNIT_BYTES || unit_bytes > block_bytes)
        return err_set(
            err, -EINVAL,
            "unit size %u is not a power of two from %u to %u, and at most the block size",
            unit_bytes, OVERLAY_MIN_UNIT_BYTES, OVERLAY_MAX_UNIT_BYTES);
    if (!is_power_of_two(superblock->segment_bytes) ||
        superblock->segment_bytes < OVERLAY_MIN_SEGMENT_BYTES ||
        superblock->segment_bytes > OVERLAY_MAX_SEGMENT_BYTES)
        return err_set(err, -EINVAL, "segment size %u is not a power of two from %u to %u",
                       superblock->segment_bytes, OVERLAY_MIN_SEGMENT_BYTES,
                       OVERLAY_MAX_SEGMENT_BYTES);
    if (superblock->virtual_bytes == 0)
        return err_set(err, -EINVAL, "a disk of no bytes");
    if ((superblock->virtual_bytes - 1) / block_bytes >= OVERLAY_MAX_BLOCKS)
        return err_set(err, -EFBIG,
                       "a disk of %" PRIu64 " bytes has more than 2^32 blocks of %u: choose larger "
                       "blocks",
                       superblock->virtual_bytes, block_bytes);
    return 0;
}

/* The CRC says that somebody meant these values; that does not make them good. */
static int superblock_check(const struct overlay_superblock *superblock, struct err *err)
{
    struct err geometry = ERR_INIT;

    if (overlay_geometry_check(superblock, &geometry) < 0)
        return err_set(err, -EUCLEAN, "its superblock is damaged: %s", geometry.text);
    if (superblock->generation == 0 || superblock->serial == 0)
        return err_set(err, -EUCLEAN,
                       "its superblock is damaged: generation %" PRIu64 ", serial %" PRIu64,
                       superblock->generation, superblock->serial);
    if ((superblock->flags & ~(uint32_t)OVERLAY_CLEAN) != 0)
        return err_set(err, -ENOTSUP, "it uses features 0x%x that this program does not know",
                       superblock->flags & ~(uint32_t)OVERLAY_CLEAN);
    if (superblock->first_sequence == 0 || superblock->first_unit > OVERLAY_MAX_UNITS ||
        superblock->first_unit < overlay_log_begin(superblock))
        return err_set(err, -EUCLEAN,
                       "its superblock is damaged: the log begins at unit %" PRIu64
                       " with record %" PRIu64,
                       superblock->first_unit, superblock->first_sequence);
    if (superblock->clean_end_unit > OVERLAY_MAX_UNITS)
        return err_set(err, -EUCLEAN, "its superblock is damaged: the log ends at unit %" PRIu64,
                       superblock->clean_end_unit);
    return 0;
}

int overlay_superblock_decode(const uint8_t bytes[OVERLAY_SUPERBLOCK_BYTES],
                              struct overlay_superblock *ret_superblock, struct err *err)
{
    struct overlay_superblock sb;
    int ret;

    if (memcmp(bytes + SB_MAGIC, superblock_magic, sizeof(superblock_magic)) != 0)
        return err_set(err, -EMEDIUMTYPE, "it is not an overlay image (wrong magic)");
    if (le32_get(bytes + SB_CRC) != crc_without_field(bytes, SB_CRC, OVERLAY_SUPERBLOCK_BYTES))
        return err_set(err, -EUCLEAN, "its superblock is damaged (wrong CRC)");
    sb.version = le32_get(bytes + SB_VERSION);
    if (sb.version != OVERLAY_VERSION)
        return err_set(
            err, -ENOTSUP, "it has format version %u, this program knows version %u: use %s",
            sb.version, OVERLAY_VERSION,
            sb.version > OVERLAY_VERSION ? "a newer blockstep"
                                         : "the blockstep that wrote it, or create a new image");
    memcpy(sb.image_id, bytes + SB_IMAGE_ID, OVERLAY_ID_BYTES);
    memcpy(sb.disk_id, bytes + SB_DISK_ID, OVERLAY_ID_BYTES);
    sb.block_bytes = le32_get(bytes + SB_BLOCK_BYTES);
    sb.unit_bytes = le32_get(bytes + SB_UNIT_BYTES);
    sb.virtual_bytes = le64_get(bytes + SB_VIRTUAL_BYTES);
    sb.serial = le64_get(bytes + SB_SERIAL);
    sb.generation = le64_get(bytes + SB_GENERATION);
    sb.previous_generation = le64_get(bytes + SB_PREVIOUS);
    sb.epoch = le64_get(bytes + SB_EPOCH);
    sb.clean_sequence = le64_get(bytes + SB_CLEAN_SEQUENCE);
    sb.clean_end_unit = le64_get(bytes + SB_CLEAN_END);
    sb.flags = le32_get(bytes + SB_FLAGS);
    sb.first_unit = le64_get(bytes + SB_FIRST_UNIT);
    sb.first_sequence = le64_get(bytes + SB_FIRST_SEQUENCE);
    sb.segment_bytes = le32_get(bytes + SB_SEGMENT_BYTES);
    sb.flushed_sequence = le64_get(bytes + SB_FLUSHED);
    ret = superblock_check(&sb, err);
    if (ret < 0)
        return ret;
    *ret_superblock = sb;
    return 0;
}

static void entry_encode(const struct overlay_entry *entry, uint8_t *bytes)
{
    le64_put(bytes + ENT_BLOCK, entry->block);
    le32_put(bytes + ENT_COUNT, entry->count);
    le32_put(bytes + ENT_KIND, entry->kind);
    le64_put(bytes + ENT_DATA_UNIT, entry->data_unit);
    le32_put(bytes + ENT_CRC, entry->crc);
    le32_put(bytes + ENT_RESERVED, 0);
}

void overlay_record_encode(const struct overlay_record *record, const struct overlay_entry *entries,
                           uint8_t *bytes)
{
    assert(record->entry_count >= 1);
    assert(record->entry_count <= OVERLAY_RECORD_MAX_ENTRIES);
    memset(bytes, 0, OVERLAY_RECORD_HEADER_BYTES);
    memcpy(bytes + REC_MAGIC, record_magic, sizeof(record_magic));
    memcpy(bytes + REC_IMAGE_ID, record->image_id, OVERLAY_ID_BYTES);
    le64_put(bytes + REC_GENERATION, record->generation);
    le64_put(bytes + REC_EPOCH, record->epoch);
    le64_put(bytes + REC_SEQUENCE, record->sequence);
    le64_put(bytes + REC_FLUSHED, record->flushed_sequence);
    le64_put(bytes + REC_UNIT, record->unit);
    le32_put(bytes + REC_GROUP_UNITS, record->group_units);
    le32_put(bytes + REC_ENTRY_COUNT, record->entry_count);
    le64_put(bytes + REC_NEXT_UNIT, record->next_unit);
    for (uint32_t i = 0; i < record->entry_count; i++)
        entry_encode(&entries[i], bytes + overlay_record_bytes(i));
    le32_put(bytes + REC_CRC,
             crc_without_field(bytes, REC_CRC, overlay_record_bytes(record->entry_count)));
}

int overlay_record_decode(const uint8_t *bytes, size_t length_bytes,
                          struct overlay_record *ret_record)
{
    struct overlay_record record;

    if (length_bytes < OVERLAY_RECORD_HEADER_BYTES ||
        memcmp(bytes + REC_MAGIC, record_magic, sizeof(record_magic)) != 0)
        return -EUCLEAN;
    record.entry_count = le32_get(bytes + REC_ENTRY_COUNT);
    if (record.entry_count == 0 || record.entry_count > OVERLAY_RECORD_MAX_ENTRIES ||
        overlay_record_bytes(record.entry_count) > length_bytes)
        return -EUCLEAN;
    if (le32_get(bytes + REC_CRC) !=
        crc_without_field(bytes, REC_CRC, overlay_record_bytes(record.entry_count)))
        return -EUCLEAN;
    memcpy(record.image_id, bytes + REC_IMAGE_ID, OVERLAY_ID_BYTES);
    record.generation = le64_get(bytes + REC_GENERATION);
    record.epoch = le64_get(bytes + REC_EPOCH);
    record.sequence = le64_get(bytes + REC_SEQUENCE);
    record.flushed_sequence = le64_get(bytes + REC_FLUSHED);
    record.unit = le64_get(bytes + REC_UNIT);
    record.group_units = le32_get(bytes + REC_GROUP_UNITS);
    record.next_unit = le64_get(bytes + REC_NEXT_UNIT);
    *ret_record = record;
    return 0;
}

void overlay_entry_decode(const uint8_t *bytes, uint32_t index, struct overlay_entry *ret_entry)
{
    bytes += overlay_record_bytes(index);
    ret_entry->block = le64_get(bytes + ENT_BLOCK);
    ret_entry->count = le32_get(bytes + ENT_COUNT);
    ret_entry->kind = le32_get(bytes + ENT_KIND);
    ret_entry->data_unit = le64_get(bytes + ENT_DATA_UNIT);
    ret_entry->crc = le32_get(bytes + ENT_CRC);
}

static int entry_check(const struct overlay_superblock *superblock,
                       const struct overlay_record *record, const struct overlay_entry *entry,
                       struct err *err)
{
    uint64_t record_units = align_up(overlay_record_bytes(record->entry_count),
                                     superblock->unit_bytes) /
                            superblock->unit_bytes;
    uint64_t data_units = (uint64_t)entry->count *
                          (superblock->block_bytes / superblock->unit_bytes);

    if (entry->count == 0 ||
        !range_fits(entry->block, entry->count, overlay_block_count(superblock)))
        return err_set(err, -EUCLEAN, "%u blocks at %" PRIu64 " are not within the disk",
                       entry->count, entry->block);
    if (entry->kind == OVERLAY_ENTRY_ZERO)
        return 0;
    if (entry->kind != OVERLAY_ENTRY_DATA)
        return err_set(err, -EUCLEAN, "an entry of unknown kind %u", entry->kind);
    if (entry->data_unit < record->unit + record_units ||
        !range_fits(entry->data_unit - record->unit, data_units, record->group_units))
        return err_set(err, -EUCLEAN, "data at unit %" PRIu64 " is not within its group",
                       entry->data_unit);
    return 0;
}

static int place_check(const struct overlay_superblock *superblock,
                       const struct overlay_record *record, struct err *err)
{
    uint64_t record_bytes = overlay_record_bytes(record->entry_count);
    uint64_t begin = overlay_log_begin(superblock), end = record->unit + record->group_units;

    if (record->unit < begin || record->unit > OVERLAY_MAX_UNITS ||
        (uint64_t)record->group_units * superblock->unit_bytes < record_bytes ||
        overlay_segment_of(superblock, record->unit) != overlay_segment_of(superblock, end - 1))
        return err_set(err, -EUCLEAN, "a group of %u units at unit %" PRIu64, record->group_units,
                       record->unit);
    if (record->next_unit != end &&
        (record->next_unit < begin || record->next_unit > OVERLAY_MAX_UNITS ||
         (record->next_unit - begin) % overlay_segment_units(superblock) != 0))
        return err_set(err, -EUCLEAN, "a way to unit %" PRIu64 ", where no segment begins",
                       record->next_unit);
    return 0;
}

int overlay_record_check(const struct overlay_superblock *superblock,
                         const struct overlay_record *record, const uint8_t *bytes, struct err *err)
{
    int ret = place_check(superblock, record, err);

    for (uint32_t i = 0; ret == 0 && i < record->entry_count; i++) {
        struct overlay_entry entry;

        overlay_entry_decode(bytes, i, &entry);
        ret = entry_check(superblock, record, &entry, err);
    }
    return ret;
}
