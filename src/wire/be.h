/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Big-endian numbers, and a cursor that cannot leave the bytes it was given. */
#ifndef BLOCKSTEP_WIRE_BE_H
#define BLOCKSTEP_WIRE_BE_H

#include "base/defs.h"

#include <endian.h>
#include <string.h>

static inline void be16_put(uint8_t *bytes, uint16_t value)
{
    value = htobe16(value);
    memcpy(bytes, &value, sizeof(value));
}

static inline void be32_put(uint8_t *bytes, uint32_t value)
{
    value = htobe32(value);
    memcpy(bytes, &value, sizeof(value));
}

static inline void be64_put(uint8_t *bytes, uint64_t value)
{
    value = htobe64(value);
    memcpy(bytes, &value, sizeof(value));
}

static inline uint16_t be16_get(const uint8_t *bytes)
{
    uint16_t value;

    memcpy(&value, bytes, sizeof(value));
    return be16toh(value);
}

static inline uint32_t be32_get(const uint8_t *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return be32toh(value);
}

static inline uint64_t be64_get(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return be64toh(value);
}

/* What is left to read. Each take either succeeds whole or leaves the cursor where it is. */
struct be_cursor {
    const uint8_t *at;
    size_t left;
};

static inline bool be_take(struct be_cursor *cursor, size_t count, const uint8_t **ret_bytes)
{
    if (count > cursor->left)
        return false;
    *ret_bytes = cursor->at;
    cursor->at += count;
    cursor->left -= count;
    return true;
}

static inline bool be16_take(struct be_cursor *cursor, uint16_t *ret_value)
{
    const uint8_t *bytes;

    if (!be_take(cursor, sizeof(*ret_value), &bytes))
        return false;
    *ret_value = be16_get(bytes);
    return true;
}

static inline bool be32_take(struct be_cursor *cursor, uint32_t *ret_value)
{
    const uint8_t *bytes;

    if (!be_take(cursor, sizeof(*ret_value), &bytes))
        return false;
    *ret_value = be32_get(bytes);
    return true;
}

static inline bool be64_take(struct be_cursor *cursor, uint64_t *ret_value)
{
    const uint8_t *bytes;

    if (!be_take(cursor, sizeof(*ret_value), &bytes))
        return false;
    *ret_value = be64_get(bytes);
    return true;
}

#endif
