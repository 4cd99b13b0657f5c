/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* "Did you mean": how far two names are apart. */
#include "base/opts_value.h"

#include <limits.h>
#include <string.h>

/* Longer names are never suggested; it bounds the work on a name that a client chose. */
#define NAME_MAX_BYTES 40u

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    return MIN(MIN(a, b), c);
}

/* Insertions, deletions, replacements, and swaps of neighbours that lead from one to the other
 * (optimal string alignment). */
static unsigned distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    unsigned rows[3][NAME_MAX_BYTES + 1];
    unsigned *before = rows[0], *last = rows[1], *now = rows[2];

    for (size_t j = 0; j <= b_length; j++)
        last[j] = (unsigned)j;
    for (size_t i = 1; i <= a_length; i++) {
        unsigned *free_row = before;

        now[0] = (unsigned)i;
        for (size_t j = 1; j <= b_length; j++) {
            unsigned replace = last[j - 1] + (a[i - 1] != b[j - 1]);

            now[j] = min3(last[j] + 1, now[j - 1] + 1, replace);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = MIN(now[j], before[j - 2] + 1);
        }
        before = last;
        last = now;
        now = free_row;
    }
    return last[b_length];
}

void opt_nearest_offer(struct opt_nearest *best, const char *key, const char *name)
{
    size_t key_length = strnlen(key, NAME_MAX_BYTES + 1), name_length = strlen(name);
    unsigned d;

    if (key_length > NAME_MAX_BYTES || name_length > NAME_MAX_BYTES)
        return;
    d = distance(key, key_length, name, name_length);
    /* What is further off than slips of the fingers is another word. */
    if (d > 1 + name_length / 4 || d >= name_length || d >= best->distance)
        return;
    best->name = name;
    best->distance = d;
}
