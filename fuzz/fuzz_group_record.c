/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The group record's decoder against any text. Promises: it stays within the text, and what it
 * accepts is written and read again as the same. Since nothing random has a right checksum, the input
 * is also tried as the body of a text whose checksum is put right.
 */
#include "wire/crc32c.h"
#include "wire/group_record.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TAIL ",\n  \"crc32c\": \"%08" PRIx32 "\"\n}\n"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_text(const char *text, size_t length)
{
    static struct group_record record, again; /* large for a stack */
    struct err err = ERR_INIT;
    size_t first_length, second_length;

    if (group_record_decode(text, length, &record, &err) < 0) {
        assert(err_is_set(&err));
        return;
    }
    char *first = group_record_encode(&record, &first_length);
    assert(first != NULL && first_length <= GROUP_RECORD_MAX_BYTES);
    assert(group_record_decode(first, first_length, &again, &err) == 0);
    char *second = group_record_encode(&again, &second_length);
    assert(second != NULL && second_length == first_length);
    assert(memcmp(first, second, first_length) == 0);
    free(first);
    free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 64);

    if (text == NULL)
        return 0;
    memcpy(text, data, size);
    try_text(text, size);
    int tail = snprintf(text + size, 64, TAIL, crc32c(0, data, size));
    try_text(text, size + (size_t)tail);
    free(text);
    return 0;
}
