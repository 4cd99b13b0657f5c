/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bits lie in chunks of a page, with a count of set bits for each. A search passes an empty (or
 * full) chunk by its count, so it touches 256 KiB of counts for 2^32 bits and not the 512 MiB of
 * bits; pages that were never set stay unbacked by memory.
 */
#include "base/bitmap.h"

#include <errno.h>
#include <string.h>

#define WORD_BITS  64u
#define CHUNK_BITS 32768u

struct bitmap {
    uint64_t bits, count;
    uint64_t chunks;
    uint64_t *words;
    uint16_t *chunk_counts;
};

_Static_assert(CHUNK_BITS <= UINT16_MAX, "a chunk's count fits");

static uint64_t word_of(uint64_t bit)
{
    return bit / WORD_BITS;
}

static uint64_t mask_of(uint64_t bit)
{
    return (uint64_t)1 << bit % WORD_BITS;
}

struct bitmap *bitmap_new(uint64_t bits)
{
    struct bitmap *bitmap = calloc(1, sizeof(*bitmap));

    if (bitmap == NULL)
        return NULL;
    assert(bits <= UINT64_MAX - CHUNK_BITS);
    bitmap->bits = bits;
    bitmap->chunks = (bits + CHUNK_BITS - 1) / CHUNK_BITS;
    bitmap->words = calloc((bits + WORD_BITS - 1) / WORD_BITS + 1, sizeof(*bitmap->words));
    bitmap->chunk_counts = calloc(bitmap->chunks + 1, sizeof(*bitmap->chunk_counts));
    if (bitmap->words == NULL || bitmap->chunk_counts == NULL) {
        bitmap_free(bitmap);
        return NULL;
    }
    return bitmap;
}

void bitmap_free(struct bitmap *bitmap)
{
    if (bitmap == NULL)
        return;
    free(bitmap->words);
    free(bitmap->chunk_counts);
    free(bitmap);
}

int bitmap_resize(struct bitmap *bitmap, uint64_t bits)
{
    struct bitmap *other = bitmap_new(bits);
    uint64_t first = bitmap_next_set(bitmap, 0);

    if (other == NULL)
        return -ENOMEM;
    while (first < bits) {
        uint64_t end = MIN(MIN(bitmap_next_clear(bitmap, first), bits), bitmap->bits);

        bitmap_set_range(other, first, end - first);
        first = bitmap_next_set(bitmap, end);
    }
    struct bitmap old = *bitmap;
    *bitmap = *other;
    *other = old;
    bitmap_free(other);
    return 0;
}

uint64_t bitmap_bits(const struct bitmap *bitmap)
{
    return bitmap->bits;
}

uint64_t bitmap_count(const struct bitmap *bitmap)
{
    return bitmap->count;
}

bool bitmap_test(const struct bitmap *bitmap, uint64_t bit)
{
    assert(bit < bitmap->bits);
    return (bitmap->words[word_of(bit)] & mask_of(bit)) != 0;
}

bool bitmap_set(struct bitmap *bitmap, uint64_t bit)
{
    uint64_t *word = &bitmap->words[word_of(bit)];

    assert(bit < bitmap->bits);
    if (*word & mask_of(bit))
        return true;
    *word |= mask_of(bit);
    bitmap->chunk_counts[bit / CHUNK_BITS]++;
    bitmap->count++;
    return false;
}

bool bitmap_clear(struct bitmap *bitmap, uint64_t bit)
{
    uint64_t *word = &bitmap->words[word_of(bit)];

    assert(bit < bitmap->bits);
    if (!(*word & mask_of(bit)))
        return false;
    *word &= ~mask_of(bit);
    bitmap->chunk_counts[bit / CHUNK_BITS]--;
    bitmap->count--;
    return true;
}

/* How many bits the chunk has; the last may be short. */
static uint64_t chunk_bits(const struct bitmap *bitmap, uint64_t chunk)
{
    return MIN(bitmap->bits - chunk * CHUNK_BITS, (uint64_t)CHUNK_BITS);
}

/* Bits of the word that holds `bit` that lie in [bit, limit). */
static uint64_t range_mask(uint64_t bit, uint64_t limit)
{
    uint64_t width = MIN(limit - bit, WORD_BITS - bit % WORD_BITS);
    uint64_t ones = width == WORD_BITS ? UINT64_MAX : ((uint64_t)1 << width) - 1;

    return ones << bit % WORD_BITS;
}

/* Sets or clears bits [first, limit); returns how many changed. */
static uint64_t words_fill(struct bitmap *bitmap, uint64_t first, uint64_t limit, bool value)
{
    uint64_t changed = 0;

    for (uint64_t bit = first; bit < limit; bit = align_down(bit, WORD_BITS) + WORD_BITS) {
        uint64_t *word = &bitmap->words[word_of(bit)], mask = range_mask(bit, limit);
        uint64_t flips = (value ? ~*word : *word) & mask;

        *word ^= flips;
        changed += (uint64_t)__builtin_popcountll(flips);
    }
    return changed;
}

/* Sets or clears [first, limit), which lies in one chunk. */
static void chunk_fill(struct bitmap *bitmap, uint64_t first, uint64_t limit, bool value)
{
    uint64_t chunk = first / CHUNK_BITS, changed;
    uint64_t same = value ? bitmap->chunk_counts[chunk]
                          : chunk_bits(bitmap, chunk) - bitmap->chunk_counts[chunk];

    /* Leaves memory alone that holds the value already. */
    if (same == chunk_bits(bitmap, chunk))
        return;
    if (limit - first == CHUNK_BITS) {
        memset(&bitmap->words[word_of(first)], value ? 0xFF : 0, CHUNK_BITS / 8);
        changed = CHUNK_BITS - same;
    } else {
        changed = words_fill(bitmap, first, limit, value);
    }
    if (!value)
        changed = -changed; /* modulo 2^64, and 2^16 for the chunk */
    bitmap->chunk_counts[chunk] = (uint16_t)(bitmap->chunk_counts[chunk] + changed);
    bitmap->count += changed;
}

static void fill(struct bitmap *bitmap, uint64_t first, uint64_t count, bool value)
{
    uint64_t limit = first + count;

    assert(range_fits(first, count, bitmap->bits));
    while (first < limit) {
        uint64_t next = MIN(limit, align_down(first, CHUNK_BITS) + CHUNK_BITS);

        chunk_fill(bitmap, first, next, value);
        first = next;
    }
}

void bitmap_set_range(struct bitmap *bitmap, uint64_t first, uint64_t count)
{
    fill(bitmap, first, count, true);
}

void bitmap_clear_range(struct bitmap *bitmap, uint64_t first, uint64_t count)
{
    fill(bitmap, first, count, false);
}

void bitmap_clear_all(struct bitmap *bitmap)
{
    fill(bitmap, 0, bitmap->bits, false);
    assert(bitmap->count == 0);
}

static bool chunk_has(const struct bitmap *bitmap, uint64_t chunk, bool value)
{
    uint64_t count = bitmap->chunk_counts[chunk];

    return value ? count > 0 : count < chunk_bits(bitmap, chunk);
}

/* The first bit of this value at or after `from` in the chunk of `from`, or BITMAP_NONE. */
static uint64_t chunk_next(const struct bitmap *bitmap, uint64_t from, bool value)
{
    uint64_t chunk = from / CHUNK_BITS;
    uint64_t limit = chunk * CHUNK_BITS + chunk_bits(bitmap, chunk);

    while (from < limit) {
        uint64_t word = bitmap->words[word_of(from)];
        uint64_t found = (value ? word : ~word) & range_mask(from, limit);

        if (found != 0)
            return align_down(from, WORD_BITS) + (uint64_t)__builtin_ctzll(found);
        from = align_down(from, WORD_BITS) + WORD_BITS;
    }
    return BITMAP_NONE;
}

static uint64_t next(const struct bitmap *bitmap, uint64_t from, uint64_t limit, bool value)
{
    limit = MIN(limit, bitmap->bits);
    while (from < limit) {
        uint64_t chunk = from / CHUNK_BITS;

        if (chunk_has(bitmap, chunk, value)) {
            uint64_t bit = chunk_next(bitmap, from, value);

            if (bit != BITMAP_NONE)
                return bit < limit ? bit : BITMAP_NONE;
        }
        from = (chunk + 1) * CHUNK_BITS;
    }
    return BITMAP_NONE;
}

uint64_t bitmap_next_set(const struct bitmap *bitmap, uint64_t from)
{
    return next(bitmap, from, bitmap->bits, true);
}

uint64_t bitmap_next_clear(const struct bitmap *bitmap, uint64_t from)
{
    return next(bitmap, from, bitmap->bits, false);
}

uint64_t bitmap_run_end(const struct bitmap *bitmap, uint64_t from, uint64_t limit)
{
    limit = MIN(limit, bitmap->bits);
    return MIN(next(bitmap, from, limit, !bitmap_test(bitmap, from)), limit);
}
