/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The overlay format's decoders against any bytes. Promises: they stay within the bytes; what they
 * accept encodes to the same bytes' meaning again; a record that passes its check names only blocks
 * of the disk and data of its own group. Since nothing random has a right CRC, the input is also tried
 * with the CRC put right.
 */
#include "wire/crc32c.h"
#include "wire/le.h"
#include "wire/overlay_format.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_superblock(const uint8_t *bytes)
{
    uint8_t again[OVERLAY_SUPERBLOCK_BYTES];
    struct overlay_superblock sb, second;
    struct err err = ERR_INIT;

    if (overlay_superblock_decode(bytes, &sb, &err) < 0) {
        assert(err_is_set(&err));
        return;
    }
    assert(overlay_block_count(&sb) <= OVERLAY_MAX_BLOCKS);
    overlay_superblock_encode(&sb, again);
    assert(overlay_superblock_decode(again, &second, &err) == 0);
    assert(second.virtual_bytes == sb.virtual_bytes && second.serial == sb.serial);
    assert(second.generation == sb.generation && second.flags == sb.flags);
    assert(second.first_unit == sb.first_unit && second.first_sequence == sb.first_sequence);
    assert(second.segment_bytes == sb.segment_bytes);
    assert(second.flushed_sequence == sb.flushed_sequence);
}

static void check_entries(const struct overlay_superblock *sb, const struct overlay_record *record,
                          const uint8_t *bytes)
{
    for (uint32_t i = 0; i < record->entry_count; i++) {
        struct overlay_entry entry;

        overlay_entry_decode(bytes, i, &entry);
        assert(entry.count > 0);
        assert(range_fits(entry.block, entry.count, overlay_block_count(sb)));
        if (entry.kind == OVERLAY_ENTRY_DATA) {
            uint64_t units = (uint64_t)entry.count * (sb->block_bytes / sb->unit_bytes);

            assert(entry.data_unit > record->unit);
            assert(entry.data_unit + units <= record->unit + record->group_units);
        }
    }
}

static void try_record(const uint8_t *bytes, size_t size)
{
    const struct overlay_superblock sb = {.virtual_bytes = 1 << 20,
                                          .block_bytes = 4096,
                                          .unit_bytes = 512,
                                          .segment_bytes = OVERLAY_MIN_SEGMENT_BYTES,
                                          .generation = 1};
    struct overlay_record record;
    struct err err = ERR_INIT;

    if (overlay_record_decode(bytes, size, &record) < 0)
        return;
    assert(overlay_record_bytes(record.entry_count) <= size);
    if (overlay_record_check(&sb, &record, bytes, &err) < 0)
        return;
    check_entries(&sb, &record, bytes);
    assert(record.next_unit <= OVERLAY_MAX_UNITS + overlay_segment_units(&sb));
    assert(record.next_unit == record.unit + record.group_units ||
           overlay_segment_begin(&sb, overlay_segment_of(&sb, record.next_unit)) ==
               record.next_unit);
}

static void put_crc(uint8_t *bytes, size_t crc_at, size_t length)
{
    le32_put(bytes + crc_at, 0);
    le32_put(bytes + crc_at, crc32c(0, bytes, length));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t bytes[OVERLAY_RECORD_MAX_BYTES] = {0};
    /* Copied to its exact size, so that a look beyond the end is noticed. */
    uint8_t *exact = malloc(size + 1);

    assert(exact != NULL);
    memcpy(exact, data, size);
    try_record(exact, size);
    free(exact);

    memcpy(bytes, data, MIN(size, sizeof(bytes)));
    try_superblock(bytes);
    put_crc(bytes, OVERLAY_SUPERBLOCK_BYTES - 4, OVERLAY_SUPERBLOCK_BYTES);
    try_superblock(bytes);

    memcpy(bytes, data, MIN(size, sizeof(bytes)));
    uint32_t count = le32_get(bytes + 68) % OVERLAY_RECORD_MAX_ENTRIES + 1;
    le32_put(bytes + 68, count);
    put_crc(bytes, OVERLAY_RECORD_HEADER_BYTES - 4, overlay_record_bytes(count));
    try_record(bytes, sizeof(bytes));
    return 0;
}
