/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The record of a group as text: what is written is read again, anything else is refused by name. */
#include "unit.h"

#include "base/json.h"
#include "wire/crc32c.h"
#include "wire/group_record.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TAIL ",\n  \"crc32c\": \"%08" PRIx32 "\"\n}\n"

static struct group_record example(void)
{
    struct group_record record = {
        .group_id = 0x0123456789abcdef,
        .role = GROUP_SECONDARY,
        .stage = GROUP_RUNNING,
        .generation = 42,
        .ancestors = {UINT64_MAX, 7},
        .ancestor_count = 2,
        .epoch = UINT64_MAX,
        .checkpoint_wall_ns = 1700000000000000000,
        .level = GROUP_LEVEL_PROCESS,
        .boot_id = "0b5c8a3e-0000-1111-2222-333344445555",
        .consistent = true,
        .stream_begun = false,
        .stream_reason = "a write was lost: \"disk0\"\\",
        .disk_count = 2,
    };

    for (unsigned i = 0; i < 2; i++) {
        struct group_record_disk *disk = &record.disks[i];

        snprintf(disk->name, sizeof(disk->name), "disk%u", i);
        snprintf(disk->identity, sizeof(disk->identity), "inode %u", 100 + i);
        disk->size_bytes = (UINT64_C(1) << 40) + i;
        disk->active.generation = 3 + i;
        disk->hidden.generation = UINT64_MAX - i;
        memset(disk->active.image, (int)(0xa0 + i), sizeof(disk->active.image));
        memset(disk->hidden.image, (int)i, sizeof(disk->hidden.image));
    }
    return record;
}

/* The text of the object with a right checksum, whatever is in it. */
static char *seal(struct json_object *object, size_t *ret_length)
{
    size_t length;
    const char *body = json_object_to_json_string_length(
        object, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED, &length);
    char *text = malloc(length + 64);

    assert_non_null(text);
    length -= 2; /* the end of the object */
    memcpy(text, body, length);
    *ret_length = length + (size_t)snprintf(text + length, 64, TAIL, crc32c(0, body, length));
    return text;
}

static void refused(const char *text, size_t length, int code)
{
    struct group_record record;
    struct err err = ERR_INIT;
    int ret = group_record_decode(text, length, &record, &err);

    if (ret != code)
        fail_msg("%d (%s) for: %.*s", ret, err.text, (int)length, text);
    assert_int_equal(err.code, code);
    assert_true(strlen(err.text) > 0);
}

/* Refuses what `object` says now; gives the reference away. */
static void refused_object(struct json_object *object, int code)
{
    size_t length;
    char *text = seal(object, &length);

    refused(text, length, code);
    free(text);
    json_object_put(object);
}

/* The example as an object, without its checksum. */
static struct json_object *example_object(const struct group_record *record)
{
    struct json_object *object;
    struct err err = ERR_INIT;
    size_t length;
    char *text = group_record_encode(record, &length);

    assert_non_null(text);
    assert_int_equal(json_parse(text, length, "test", &object, &err), 0);
    json_object_object_del(object, "crc32c");
    free(text);
    return object;
}

static void what_is_written_is_read_again(void **state)
{
    (void)state;
    struct group_record record = example(), again;
    struct err err = ERR_INIT;
    size_t length, second_length;
    char *text = group_record_encode(&record, &length);

    assert_non_null(text);
    assert_int_equal(strlen(text), length);
    if (group_record_decode(text, length, &again, &err) < 0)
        fail_msg("%s", err.text);
    char *second = group_record_encode(&again, &second_length);
    assert_string_equal(text, second);
    assert_memory_equal(&record.disks, &again.disks, sizeof(record.disks));
    assert_string_equal(again.stream_reason, record.stream_reason);
    assert_false(again.stream_intact);
    free(text);
    free(second);
}

static void any_changed_or_missing_byte_is_damage(void **state)
{
    (void)state;
    struct group_record record = example();
    size_t length;
    char *text = group_record_encode(&record, &length);

    for (size_t i = 0; i < length; i++) {
        char was = text[i];

        refused(text, i, -EUCLEAN);
        text[i] = (char)(was ^ 1);
        refused(text, length, -EUCLEAN);
        text[i] = was;
    }
    free(text);
}

static void each_member_that_is_missing_or_of_another_type_is_damage(void **state)
{
    (void)state;
    struct group_record record = example();
    static const char *const places[] = {"", "disk", "active", "hidden"};

    for (size_t place = 0; place < 4; place++) {
        bool more = true;

        for (unsigned nth = 0; more; nth++) {
            for (unsigned how = 0; how < 4; how++) {
                struct json_object *root = example_object(&record), *object = root, *disks;

                assert_true(json_object_object_get_ex(root, "disks", &disks));
                if (place > 0)
                    object = json_object_array_get_idx(disks, 1);
                if (place > 1)
                    assert_true(json_object_object_get_ex(object, places[place], &object));
                more = nth < (unsigned)json_object_object_length(object);
                if (!more) {
                    json_object_put(root);
                    break;
                }
                struct json_object_iterator at = json_object_iter_begin(object);
                for (unsigned i = 0; i < nth; i++)
                    json_object_iter_next(&at);
                char key[64];
                snprintf(key, sizeof(key), "%s", json_object_iter_peek_name(&at));
                json_object_object_del(object, key);
                if (how == 1)
                    json_object_object_add(object, key, NULL);
                else if (how == 2)
                    json_object_object_add(object, key, json_object_new_object());
                else if (how == 3)
                    json_object_object_add(object, key, json_object_new_int64(-1));
                refused_object(root, -EUCLEAN);
            }
        }
    }
}

static void put(struct json_object *object, const char *key, const char *value)
{
    struct json_object *parsed;
    struct err err = ERR_INIT;

    assert_int_equal(json_parse(value, strlen(value), "test", &parsed, &err), 0);
    json_object_object_add(object, key, parsed);
}

static void values_that_cannot_be_are_damage(void **state)
{
    (void)state;
    struct group_record record = example();
    static const char *const members[][2] = {
        {"role", "'third'"},
        {"stage", "'begun'"},
        {"stage", "'none'"}, /* and consistent */
        {"durability", "'disk'"},
        {"group", "'0123'"},
        {"group", "'0123456789ABCDEF'"},
        {"generation", "'0123456789abcdef0'"},
        {"descends-from", "['x']"},
        {"descends-from", "[1]"},
        {"epoch", "1.5"},
        {"consistent", "false"},   /* without a reason */
        {"stream-intact", "true"}, /* with one */
        {"promoted", "true"},      /* and running */
        {"lost", "'what was'"},    /* and running */
        {"boot-id", "'0123456789012345678901234567890123456789012345678901234567890123'"},
        {"disks", "[]"},
        {"disks", "{}"},
        {"disks", "[1]"},
        {"extra", "1"},
        {"format", "'other'"},
        {"version", "'1'"},
    };
    static const char *const disk_members[][2] = {
        {"name", "''"},
        {"name", "'disk1'"},
        {"size", "0"},
        {"merged", "true"},
        {"active", "{}"},
        {"extra", "1"},
        {"identity", "1"},
        {"hidden", "{'image':'00','generation':1}"},
        {"active", "{'image':'00112233445566778899aabbccddeeff','generation':0}"},
    };

    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        struct json_object *object = example_object(&record);

        put(object, members[i][0], members[i][1]);
        refused_object(object, -EUCLEAN);
    }
    for (size_t i = 0; i < ARRAY_LEN(disk_members); i++) {
        struct json_object *object = example_object(&record), *disks;

        assert_true(json_object_object_get_ex(object, "disks", &disks));
        put(json_object_array_get_idx(disks, 0), disk_members[i][0], disk_members[i][1]);
        refused_object(object, -EUCLEAN);
    }
}

static void a_newer_version_is_refused_as_such(void **state)
{
    (void)state;
    struct group_record record = example();
    struct json_object *object = example_object(&record);

    put(object, "version", "4");
    put(object, "news", "{'unknown':true}");
    refused_object(object, -ENOTSUP);
}

static void version_2_is_read_and_has_lost_nothing(void **state)
{
    (void)state;
    struct group_record record = example(), again;
    struct json_object *object = example_object(&record);
    struct err err = ERR_INIT;
    size_t length;

    put(object, "version", "2");
    refused_object(json_object_get(object), -EUCLEAN); /* it had no such member */
    json_object_object_del(object, "lost");
    char *text = seal(object, &length);
    if (group_record_decode(text, length, &again, &err) < 0)
        fail_msg("%s", err.text);
    assert_string_equal(again.lost, "");
    assert_false(again.stream_begun);
    free(text);
    json_object_put(object);
}

static void version_1_is_read_and_its_stream_counts_as_begun(void **state)
{
    (void)state;
    struct group_record record = example(), again;
    struct json_object *object = example_object(&record);
    struct err err = ERR_INIT;
    size_t length;

    put(object, "version", "1");
    json_object_object_del(object, "lost");
    refused_object(json_object_get(object), -EUCLEAN); /* it had no such member */
    json_object_object_del(object, "stream-begun");
    char *text = seal(object, &length);
    if (group_record_decode(text, length, &again, &err) < 0)
        fail_msg("%s", err.text);
    assert_true(again.stream_begun);
    assert_true(again.epoch == record.epoch);
    free(text);
    json_object_put(object);
}

static void the_largest_record_fits(void **state)
{
    (void)state;
    struct group_record record = example(), again;
    struct err err = ERR_INIT;
    size_t length;

    record.disk_count = GROUP_RECORD_MAX_DISKS;
    record.ancestor_count = GROUP_RECORD_MAX_ANCESTORS;
    record.stage = GROUP_FAILOVER;
    memset(record.stream_reason, '"', sizeof(record.stream_reason) - 1);
    memset(record.lost, '"', sizeof(record.lost) - 1);
    for (unsigned i = 0; i < GROUP_RECORD_MAX_DISKS; i++) {
        struct group_record_disk *disk = &record.disks[i];

        *disk = record.disks[0];
        memset(disk->identity, '"', sizeof(disk->identity) - 1);
        memset(disk->name, '"', sizeof(disk->name) - 1);
        disk->name[0] = (char)('!' + i);
    }
    char *text = group_record_encode(&record, &length);
    assert_non_null(text);
    assert_true(length <= GROUP_RECORD_MAX_BYTES);
    if (group_record_decode(text, length, &again, &err) < 0)
        fail_msg("%s", err.text);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_again),
        cmocka_unit_test(any_changed_or_missing_byte_is_damage),
        cmocka_unit_test(each_member_that_is_missing_or_of_another_type_is_damage),
        cmocka_unit_test(values_that_cannot_be_are_damage),
        cmocka_unit_test(a_newer_version_is_refused_as_such),
        cmocka_unit_test(version_2_is_read_and_has_lost_nothing),
        cmocka_unit_test(version_1_is_read_and_its_stream_counts_as_begun),
        cmocka_unit_test(the_largest_record_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
