/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bytes of a log of writes as Linux' dm-log-writes makes it (drivers/md/dm-log-writes.c and its
 * documentation): sector 0 is the superblock, then one sector for each entry, which its data follows
 * in whole sectors. Sectors are of the log's own size. Little-endian. No I/O, no allocation.
 *
 * A mark has its text in its own sector, behind the entry. A discard has no data.
 */
#ifndef BLOCKSTEP_WIRE_LOG_WRITES_H
#define BLOCKSTEP_WIRE_LOG_WRITES_H

#include "base/err.h"

#define LOG_WRITES_MAGIC            UINT64_C(0x6a736677736872)
#define LOG_WRITES_VERSION          UINT64_C(1)
#define LOG_WRITES_SUPER_BYTES      28u
#define LOG_WRITES_ENTRY_BYTES      32u
#define LOG_WRITES_MIN_SECTOR_BYTES 64u /* as in QEMU a power of two that holds either */
#define LOG_WRITES_MAX_SECTOR_BYTES (1u << 23)

enum log_writes_flags {
    LOG_WRITES_FLUSH = 1u << 0,
    LOG_WRITES_FUA = 1u << 1,
    LOG_WRITES_DISCARD = 1u << 2,
    LOG_WRITES_MARK = 1u << 3,
    LOG_WRITES_METADATA = 1u << 4, /* the kernel's only */
    LOG_WRITES_FLAGS_ALL = (1u << 5) - 1,
};

struct log_writes_super {
    uint64_t entry_count;
    uint32_t sector_bytes;
};

struct log_writes_entry {
    uint64_t sector, sector_count; /* of the disk */
    uint64_t flags;
    uint64_t data_bytes; /* of what follows in the entry's own sector: a mark's text */
};

bool log_writes_sector_valid(uint64_t sector_bytes);
void log_writes_super_encode(const struct log_writes_super *super,
                             uint8_t bytes[LOG_WRITES_SUPER_BYTES]);
/* -EMEDIUMTYPE: no such log; -ENOTSUP: another version; -EUCLEAN: values that cannot be. */
int log_writes_super_decode(const uint8_t bytes[LOG_WRITES_SUPER_BYTES],
                            struct log_writes_super *ret_super, struct err *err);

void log_writes_entry_encode(const struct log_writes_entry *entry,
                             uint8_t bytes[LOG_WRITES_ENTRY_BYTES]);
/* `log_sectors`: how many sectors the log has from this entry on. *ret_log_sectors: how many of them
 * the entry takes, its own included. -EUCLEAN: values that cannot be. */
int log_writes_entry_decode(const uint8_t bytes[LOG_WRITES_ENTRY_BYTES], uint32_t sector_bytes,
                            uint64_t log_sectors, struct log_writes_entry *ret_entry,
                            uint64_t *ret_log_sectors, struct err *err);

#endif
