/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Little-endian numbers. */
#ifndef BLOCKSTEP_WIRE_LE_H
#define BLOCKSTEP_WIRE_LE_H

#include "base/defs.h"

#include <endian.h>
#include <string.h>

static inline void le32_put(uint8_t *bytes, uint32_t value)
{
    value = htole32(value);
    memcpy(bytes, &value, sizeof(value));
}

static inline void le64_put(uint8_t *bytes, uint64_t value)
{
    value = htole64(value);
    memcpy(bytes, &value, sizeof(value));
}

static inline uint32_t le32_get(const uint8_t *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return le32toh(value);
}

static inline uint64_t le64_get(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return le64toh(value);
}

#endif
