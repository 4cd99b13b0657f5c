/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The decoders of dm-log-writes' format against any bytes, walked through as a replay does. Promises:
 * what they accept stays within the log and encodes to the same bytes again; each entry takes at least
 * a sector, so that the walk ends.
 */
#include "wire/log_writes.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_again(const struct log_writes_entry *entry, const uint8_t *bytes)
{
    uint8_t again[LOG_WRITES_ENTRY_BYTES];

    log_writes_entry_encode(entry, again);
    assert(memcmp(again, bytes, sizeof(again)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct log_writes_super super;
    struct err err = ERR_INIT;
    uint64_t sectors, at = 1;

    if (size < LOG_WRITES_SUPER_BYTES)
        return 0;
    if (log_writes_super_decode(data, &super, &err) < 0) {
        assert(err_is_set(&err));
        return 0;
    }
    sectors = size / super.sector_bytes;
    for (uint64_t i = 0; i < super.entry_count && at < sectors; i++) {
        const uint8_t *bytes = data + at * super.sector_bytes;
        struct log_writes_entry entry;
        uint64_t takes = 0;

        if (log_writes_entry_decode(bytes, super.sector_bytes, sectors - at, &entry, &takes, &err) <
            0) {
            assert(err_is_set(&err));
            return 0;
        }
        assert(takes >= 1);
        assert(takes <= sectors - at);
        assert((entry.flags & LOG_WRITES_MARK) == 0 ||
               entry.data_bytes <= super.sector_bytes - LOG_WRITES_ENTRY_BYTES);
        check_again(&entry, bytes);
        at += takes;
    }
    return 0;
}
