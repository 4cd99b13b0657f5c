/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Duplicate keys. A client chooses the keys, so the search sorts them: its time is bounded whatever
 * they are, and a hash table's is not.
 */
#include "base/json_scan.h"

#include <errno.h>
#include <string.h>

struct key {
    const char *text; /* behind the quote */
    uint32_t length;
    uint32_t object; /* number of the object it belongs to */
};

static int key_compare(const void *left, const void *right)
{
    const struct key *a = left, *b = right;

    if (a->object != b->object)
        return a->object < b->object ? -1 : 1;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return memcmp(a->text, b->text, a->length);
}

/* The quote that closes the string whose first byte is at `text`. */
static const char *string_end(const char *text)
{
    while (*text != '"')
        text += *text == '\\' ? 2 : 1;
    return text;
}

/* Notes all keys of a canonical text with the objects they belong to; returns how many. */
static size_t keys_collect(const char *text, size_t length_bytes, struct key *keys)
{
    uint32_t open[JSON_MAX_DEPTH], objects = 0;
    const char *limit = text + length_bytes;
    size_t count = 0, depth = 0;

    for (const char *p = text; p < limit; p++) {
        if (*p == '{' || *p == '[') {
            assert(depth < JSON_MAX_DEPTH);
            open[depth++] = objects++;
        } else if (*p == '}' || *p == ']') {
            assert(depth > 0);
            depth--;
        } else if (*p == '"') {
            const char *end = string_end(p + 1);

            if (end + 1 < limit && end[1] == ':')
                keys[count++] = (struct key){p + 1, (uint32_t)(end - p - 1), open[depth - 1]};
            p = end;
        }
    }
    return count;
}

int json_keys_check(const char *text, size_t length_bytes, size_t keys, struct err *err)
{
    CLEANUP(free_ptr) struct key *all = NULL;
    size_t count;

    if (keys < 2)
        return 0;
    all = malloc(keys * sizeof(*all));
    if (all == NULL)
        return err_no_memory(err);
    count = keys_collect(text, length_bytes, all);
    assert(count == keys);
    qsort(all, count, sizeof(*all), key_compare);
    for (size_t i = 1; i < count; i++) {
        if (key_compare(&all[i - 1], &all[i]) == 0)
            return err_set(err, -EINVAL, "not valid JSON: key '%.*s' occurs twice in one object",
                           (int)MIN(all[i].length, 100u), all[i].text);
    }
    return 0;
}
