/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The JSON reader against any bytes. Promises: a stream gives the same values and errors however it
 * is cut into pieces; what is accepted is accepted again, and is equal, after it has been written
 * out; a whole text and a stream agree about a text's first value.
 */
#include "base/json.h"

#include <string.h>

#define EVENTS_MAX 1024u

struct event {
    int rc;
    size_t end; /* where in the input it happened */
    struct json_object *value;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t read_stream(const char *text, size_t length, size_t piece, struct event *events)
{
    struct json_reader *reader = json_reader_new();
    size_t count = 0, at = 0;

    assert(reader != NULL);
    while (at < length && count < EVENTS_MAX) {
        struct event *event = &events[count];
        size_t now = MIN(piece, length - at), used = SIZE_MAX;
        struct err err = ERR_INIT;

        *event = (struct event){.value = NULL};
        event->rc = json_reader_feed(reader, text + at, now, &used, &event->value, &err);
        assert(used <= now);
        assert(event->rc != 0 || used == now);
        assert((event->rc < 0) == err_is_set(&err));
        assert(event->rc > 0 || event->value == NULL);
        at += used;
        event->end = at;
        if (event->rc != 0)
            count++;
    }
    json_reader_free(reader);
    return count;
}

static void check_again(struct json_object *value)
{
    const char *text = json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN);
    struct json_object *again = NULL;
    struct err err = ERR_INIT;

    assert(text != NULL);
    assert(json_parse(text, strlen(text), "again", &again, &err) == 0);
    assert(json_object_equal(value, again));
    json_object_put(again);
}

static void check_whole(const char *text, size_t length, const struct event *first)
{
    struct json_object *value = NULL;
    struct err err = ERR_INIT;

    if (json_parse(text, length, "whole", &value, &err) < 0) {
        assert(err_is_set(&err));
        return;
    }
    /* A number or a word at the very end completes a whole text, but not a stream. */
    if (first != NULL) {
        assert(first->rc == 1);
        assert(json_object_equal(value, first->value));
    }
    check_again(value);
    json_object_put(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct event whole[EVENTS_MAX], pieces[EVENTS_MAX];
    const char *text = (const char *)data + 1;
    size_t length = size - 1, count;

    if (size < 2)
        return 0;
    count = read_stream(text, length, length, whole);
    assert(read_stream(text, length, 1u + data[0] % 16u, pieces) == count);
    check_whole(text, length, count > 0 ? &whole[0] : NULL);
    for (size_t i = 0; i < count; i++) {
        assert(whole[i].rc == pieces[i].rc);
        assert(whole[i].end == pieces[i].end);
        assert(json_object_equal(whole[i].value, pieces[i].value));
        if (whole[i].rc > 0)
            check_again(whole[i].value);
        json_object_put(whole[i].value);
        json_object_put(pieces[i].value);
    }
    return 0;
}
