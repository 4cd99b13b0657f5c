/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* CRC32C (Castagnoli), as in iSCSI and ext4. By the CPU's own instruction where it has one. */
#ifndef BLOCKSTEP_WIRE_CRC32C_H
#define BLOCKSTEP_WIRE_CRC32C_H

#include "base/defs.h"

/* Goes on from `crc`, the result for what came before; 0 to begin with. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length_bytes);
/* The same without the CPU's instruction, for tests. */
uint32_t crc32c_portable(uint32_t crc, const void *bytes, size_t length_bytes);

#endif
