/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/json.h"

#include "base/json_scan.h"

#include <errno.h>
#include <string.h>

/* Follows a refused value to its end; it keeps nothing of it. */
struct json_skip {
    bool active;
    uint64_t depth;
    char quote; /* of the string we are in, or 0 */
    bool escape;
};

struct json_reader {
    struct json_scan scan;
    struct json_skip skip;
    bool resets; /* control bytes reset; else they are errors */
};

struct json_reader *json_reader_new(void)
{
    struct json_reader *reader = calloc(1, sizeof(*reader));

    if (reader != NULL)
        reader->resets = true;
    return reader;
}

void json_reader_free(struct json_reader *reader)
{
    if (reader == NULL)
        return;
    json_scan_release(&reader->scan);
    free(reader);
}

bool json_reader_in_value(const struct json_reader *reader)
{
    return !reader->skip.active && reader->scan.state != JSON_START;
}

static bool is_reset_byte(char byte)
{
    unsigned char value = (unsigned char)byte;

    return value == 0xFF || (value < 0x20 && byte != '\t' && byte != '\n' && byte != '\r');
}

static void skip_begin(struct json_reader *reader)
{
    const struct json_scan *scan = &reader->scan;

    reader->skip = (struct json_skip){.active = true, .depth = scan->depth};
    if (scan->state == JSON_STRING) {
        reader->skip.quote = scan->string.quote;
        reader->skip.escape = scan->string.escape;
    }
    json_scan_reset(&reader->scan);
}

static void skip_string_byte(struct json_skip *skip, char byte)
{
    /* A string cannot go on behind a newline: somebody forgot its quote, and the next line is the
     * best guess for a new beginning. */
    if (byte == '\n')
        skip->active = false;
    else if (skip->escape)
        skip->escape = false;
    else if (byte == '\\')
        skip->escape = true;
    else if (byte == skip->quote)
        skip->quote = '\0';
}

static void skip_byte(struct json_skip *skip, char byte)
{
    if (skip->quote != '\0') {
        skip_string_byte(skip, byte);
    } else if (byte == '"' || byte == '\'') {
        skip->quote = byte;
    } else if (byte == '{' || byte == '[') {
        skip->depth++;
    } else if ((byte == '}' || byte == ']') && skip->depth > 0) {
        skip->active = --skip->depth > 0;
    } else if (byte == '\n' && skip->depth == 0) {
        skip->active = false;
    }
}

static int value_complete(struct json_reader *reader, struct json_object **ret_value,
                          struct err *err)
{
    struct json_scan *scan = &reader->scan;
    int rc = json_scan_put(scan, "", 1, err);

    if (rc == 0)
        rc = json_build(scan->text, ret_value, err);
    json_scan_reset(scan);
    return rc < 0 ? rc : 1;
}

/* One byte that is not skipped. Returns as json_reader_feed() does; *ret_taken tells whether the
 * byte belongs to what came before. */
static int reader_byte(struct json_reader *reader, char byte, bool *ret_taken,
                       struct json_object **ret_value, struct err *err)
{
    int step = json_scan_byte(&reader->scan, byte, err);

    *ret_taken = step != JSON_DONE_BEFORE;
    if (step < 0) {
        skip_begin(reader);
        skip_byte(&reader->skip, byte);
        return step;
    }
    return step == JSON_MORE ? 0 : value_complete(reader, ret_value, err);
}

static int reset_byte(struct json_reader *reader, char byte, struct err *err)
{
    if (!reader->resets)
        return err_set(err, -EINVAL, "not valid JSON: it holds a control byte (0x%02x)",
                       (unsigned char)byte);
    json_scan_reset(&reader->scan);
    reader->skip.active = false;
    return 0;
}

int json_reader_feed(struct json_reader *reader, const char *bytes, size_t length_bytes,
                     size_t *ret_used, struct json_object **ret_value, struct err *err)
{
    for (size_t i = 0; i < length_bytes; i++) {
        bool taken = true;
        int rc = 0;

        if (is_reset_byte(bytes[i]))
            rc = reset_byte(reader, bytes[i], err);
        else if (reader->skip.active)
            skip_byte(&reader->skip, bytes[i]);
        else
            rc = reader_byte(reader, bytes[i], &taken, ret_value, err);
        if (rc != 0) {
            *ret_used = i + taken;
            return rc;
        }
    }
    *ret_used = length_bytes;
    return 0;
}

/* What json_parse() does with a reader of its own. */
static int parse_whole(struct json_reader *reader, const char *text, size_t length_bytes,
                       struct json_object **ret_value, struct err *err)
{
    struct json_object *value = NULL;
    size_t used, more;
    int rc = json_reader_feed(reader, text, length_bytes, &used, &value, err);

    /* White space ends a number or a word. */
    if (rc == 0 && (reader->scan.state == JSON_NUMBER || reader->scan.state == JSON_WORD))
        rc = json_reader_feed(reader, "\n", 1, &more, &value, err);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return err_set(err, -EINVAL, "not valid JSON: %s",
                       json_reader_in_value(reader) ? "it ends too early" : "it is empty");
    while (used < length_bytes && json_is_space(text[used]))
        used++;
    if (used < length_bytes) {
        json_object_put(value);
        return err_set(err, -EINVAL, "not valid JSON: something follows the value at byte %zu",
                       used + 1);
    }
    *ret_value = value;
    return 0;
}

int json_parse(const char *text, size_t length_bytes, const char *where,
               struct json_object **ret_value, struct err *err)
{
    struct json_reader reader = {.resets = false};
    int rc = parse_whole(&reader, text, length_bytes, ret_value, err);

    json_scan_release(&reader.scan);
    return rc < 0 ? err_prefix(err, "%s", where) : 0;
}

void json_putp(struct json_object **value)
{
    json_object_put(*value);
    *value = NULL;
}

int json_add(struct json_object *object, const char *key, struct json_object *value)
{
    if (value == NULL)
        return -ENOMEM;
    if (object == NULL || json_object_object_add(object, key, value) < 0) {
        json_object_put(value);
        return -ENOMEM;
    }
    return 0;
}

int json_add_string(struct json_object *object, const char *key, const char *text)
{
    return json_add(object, key, json_object_new_string(text));
}

int json_add_uint(struct json_object *object, const char *key, uint64_t number)
{
    return json_add(object, key, json_object_new_uint64(number));
}

int json_add_int(struct json_object *object, const char *key, int64_t number)
{
    return json_add(object, key, json_object_new_int64(number));
}

int json_add_bool(struct json_object *object, const char *key, bool truth)
{
    return json_add(object, key, json_object_new_boolean(truth));
}

struct json_object *json_member(struct json_object *object, const char *key)
{
    struct json_object *value = NULL;

    if (!json_object_is_type(object, json_type_object))
        return NULL;
    json_object_object_get_ex(object, key, &value);
    return value;
}

uint64_t json_uint(struct json_object *object, const char *key)
{
    struct json_object *value = json_member(object, key);

    return json_object_is_type(value, json_type_int) ? json_object_get_uint64(value) : 0;
}

const char *json_text(struct json_object *object, const char *key)
{
    struct json_object *value = json_member(object, key);

    return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
}

bool json_flag(struct json_object *object, const char *key)
{
    struct json_object *value = json_member(object, key);

    return json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value);
}
