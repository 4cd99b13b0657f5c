/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/log_writes.h"

#include "wire/le.h"

#include <errno.h>
#include <inttypes.h>

bool log_writes_sector_valid(uint64_t sector_bytes)
{
    return is_power_of_two(sector_bytes) && sector_bytes >= LOG_WRITES_MIN_SECTOR_BYTES &&
           sector_bytes <= LOG_WRITES_MAX_SECTOR_BYTES;
}

void log_writes_super_encode(const struct log_writes_super *super,
                             uint8_t bytes[LOG_WRITES_SUPER_BYTES])
{
    le64_put(bytes, LOG_WRITES_MAGIC);
    le64_put(bytes + 8, LOG_WRITES_VERSION);
    le64_put(bytes + 16, super->entry_count);
    le32_put(bytes + 24, super->sector_bytes);
}

int log_writes_super_decode(const uint8_t bytes[LOG_WRITES_SUPER_BYTES],
                            struct log_writes_super *ret_super, struct err *err)
{
    struct log_writes_super super = {.entry_count = le64_get(bytes + 16),
                                     .sector_bytes = le32_get(bytes + 24)};

    if (le64_get(bytes) != LOG_WRITES_MAGIC)
        return err_set(err, -EMEDIUMTYPE, "this is no log of writes: wrong magic");
    if (le64_get(bytes + 8) != LOG_WRITES_VERSION)
        return err_set(err, -ENOTSUP, "the log has version %" PRIu64 ", known is %" PRIu64,
                       le64_get(bytes + 8), LOG_WRITES_VERSION);
    if (!log_writes_sector_valid(super.sector_bytes))
        return err_set(err, -EUCLEAN, "the log's sectors have %" PRIu32 " bytes, which cannot be",
                       super.sector_bytes);
    *ret_super = super;
    return 0;
}

void log_writes_entry_encode(const struct log_writes_entry *entry,
                             uint8_t bytes[LOG_WRITES_ENTRY_BYTES])
{
    le64_put(bytes, entry->sector);
    le64_put(bytes + 8, entry->sector_count);
    le64_put(bytes + 16, entry->flags);
    le64_put(bytes + 24, entry->data_bytes);
}

int log_writes_entry_decode(const uint8_t bytes[LOG_WRITES_ENTRY_BYTES], uint32_t sector_bytes,
                            uint64_t log_sectors, struct log_writes_entry *ret_entry,
                            uint64_t *ret_log_sectors, struct err *err)
{
    struct log_writes_entry entry = {
        .sector = le64_get(bytes),
        .sector_count = le64_get(bytes + 8),
        .flags = le64_get(bytes + 16),
        .data_bytes = le64_get(bytes + 24),
    };
    uint64_t data_sectors = (entry.flags & LOG_WRITES_DISCARD) != 0 ? 0 : entry.sector_count;

    if ((entry.flags & ~(uint64_t)LOG_WRITES_FLAGS_ALL) != 0)
        return err_set(err, -EUCLEAN, "unknown flags 0x%" PRIx64, entry.flags);
    if (entry.sector > INT64_MAX / sector_bytes ||
        entry.sector_count > INT64_MAX / sector_bytes - entry.sector)
        return err_set(err, -EUCLEAN, "%" PRIu64 " sectors from sector %" PRIu64 " cannot be",
                       entry.sector_count, entry.sector);
    if (log_sectors < 1 || data_sectors > log_sectors - 1)
        return err_set(err, -EUCLEAN, "it reaches behind the end of the log");
    if ((entry.flags & LOG_WRITES_MARK) != 0 &&
        entry.data_bytes > sector_bytes - LOG_WRITES_ENTRY_BYTES)
        return err_set(err, -EUCLEAN, "a mark of %" PRIu64 " bytes does not fit a sector",
                       entry.data_bytes);
    *ret_entry = entry;
    *ret_log_sectors = 1 + data_sectors;
    return 0;
}
