/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What happens when memory is out: each allocation of a piece of work fails in turn. Every function
 * must say -ENOMEM, leave its outputs alone and keep nothing.
 */
#include "fail_alloc.h"
#include "unit.h"

#include "base/bitmap.h"
#include "base/buf.h"
#include "base/json.h"
#include "base/opts.h"
#include "control/schema.h"
#include "wire/group_record.h"

#include <errno.h>
#include <string.h>

/* No piece of work below makes more allocations. */
#define ALLOCATIONS_MAX 1000

/* Runs `work` with the failure ever later, until it gets through. `work` returns 0 or -errno and
 * keeps nothing in either case. */
static void sweep_once(int (*work)(const char *text), const char *text, bool once)
{
    for (long allocations = 0; allocations < ALLOCATIONS_MAX; allocations++) {
        long before = fail_alloc_live();

        fail_alloc_begin(allocations, once, NULL);
        int rc = work(text);
        long failures = fail_alloc_end();
        assert_int_equal(fail_alloc_live(), before);
        assert_int_equal(rc, failures > 0 ? -ENOMEM : 0);
        if (rc == 0) {
            assert_true(allocations > 0);
            return;
        }
    }
    fail_msg("too many allocations");
}

static void sweep(int (*work)(const char *text), const char *text)
{
    if (!fail_alloc_possible())
        skip();
    sweep_once(work, text, false);
    sweep_once(work, text, true);
}

struct part {
    char *name;
    int kind;
};

static const char *const kinds[] = {"round", "square", NULL};

static const struct opt part_opts[] = {
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct part, name),
     .required = true,
     .help = "a name"},
    {.name = "kind",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct part, kind),
     .values = kinds,
     .help = "a kind"},
    {0},
};

static const struct opt *const part_variants[] = {NULL, NULL};

struct sample {
    char *text;
    struct opt_strings strings;
    struct opt_objects parts;
    struct json_object *any, *refs;
};

static const struct opt sample_opts[] = {
    {.name = "text",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct sample, text),
     .fallback = "absent",
     .help = "a text"},
    {.name = "strings",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct sample, strings),
     .help = "some texts"},
    {.name = "parts",
     .type = OPT_OBJECTS,
     .offset = OPT_FIELD(struct sample, parts),
     .members = part_opts,
     .item_size = sizeof(struct part),
     .discriminator = "kind",
     .variants = part_variants,
     .help = "some objects"},
    {.name = "refs",
     .type = OPT_REFS,
     .offset = OPT_FIELD(struct sample, refs),
     .members = part_opts,
     .help = "some names or objects"},
    {.name = "any", .type = OPT_ANY, .offset = OPT_FIELD(struct sample, any), .help = "a value"},
    {0},
};

static int parse_options(const char *text)
{
    struct sample sample = {NULL};
    struct json_object *object = NULL;
    enum opts_syntax syntax;
    struct err err = ERR_INIT;
    int rc = opts_read(text, NULL, "test", &object, &syntax, &err);

    if (rc < 0) {
        assert_null(object);
        return rc;
    }
    rc = opts_parse(sample_opts, object, syntax, "test", NULL, &sample, &err);
    json_object_put(object);
    if (rc == 0) {
        assert_int_equal(sample.strings.count, 2);
        assert_non_null(sample.any);
        assert_int_equal(sample.parts.count, 2);
        opts_release(sample_opts, &sample);
    }
    assert_memory_equal(&sample, &(struct sample){NULL}, sizeof(sample));
    return rc;
}

static void options_are_whole_or_refused(void **state)
{
    sweep(parse_options, "strings.0=a,strings.1=b,any.x.y=1,any.x.z.0=2,parts.0.name=a,"
                         "parts.1.name=b,refs.0=c");
    sweep(parse_options, "{'strings':['a','b'],'any':{'x':1.5,'y':[1,null,{}],'z':true},"
                         "'parts':[{'name':'a'},{'name':'b','kind':'square'}]}");
}

static const struct qmp_command commands[] = {
    {.name = "sample", .flags = QMP_OOB, .returns = QMP_RETURNS_LIST, .args = sample_opts},
    {.name = "object-add", .flags = QMP_ARGS_OBJECT},
    {0},
};

static const struct qmp_command *const tables[] = {commands, NULL};

static const struct qmp_event_type events[] = {
    {.name = "SAMPLE", .data = part_opts},
    {0},
};

static const struct object_type sample_type = {.name = "sample", .opts = part_opts};
static const struct object_type *const types[] = {&sample_type, NULL};

static int build_schema(const char *text)
{
    const struct schema_source source = {
        .commands = tables,
        .events = events,
        .object_types = types,
    };
    struct json_object *schema = schema_new(&source);
    size_t entries = schema != NULL ? json_object_array_length(schema) : 0;

    json_object_put(schema);
    /* Commands, event, builtin types, and those that they use. */
    assert_true(schema == NULL || entries == 2 + 1 + 5 + 12);
    return schema == NULL ? -ENOMEM : 0;
}

static void a_schema_is_made_whole_or_not_at_all(void **state)
{
    sweep(build_schema, NULL);
}

/* For texts without null: memory that ran out must not have made one. */
static void assert_no_nulls(struct json_object *value)
{
    assert_non_null(value);
    if (json_object_is_type(value, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(value); i++)
            assert_no_nulls(json_object_array_get_idx(value, i));
    }
    if (!json_object_is_type(value, json_type_object))
        return;
    json_object_object_foreach(value, key, member)
    {
        (void)key;
        assert_no_nulls(member);
    }
}

static int read_stream(const char *text)
{
    struct json_reader *reader = json_reader_new();
    struct json_object *value = NULL;
    struct err err = ERR_INIT;
    size_t used;
    int rc;

    if (reader == NULL)
        return -ENOMEM;
    rc = json_reader_feed(reader, text, strlen(text), &used, &value, &err);
    json_reader_free(reader);
    if (rc == 1) {
        assert_no_nulls(value);
        assert_int_equal(json_object_object_length(value), 2);
        assert_int_equal(json_object_array_length(json_object_object_get(value, "a")), 7);
    } else {
        assert_null(value);
    }
    json_object_put(value);
    return rc < 0 ? rc : 0;
}

static void a_stream_of_json_loses_no_member(void **state)
{
    sweep(read_stream,
          "{'a':['\\u00e9',-1,18446744073709551615,1,2.5,3,4],'b':{'c':{},'d':false}}");
}

static int use_buffers(const char *text)
{
    struct buf_pool *pool = buf_pool_new();
    struct buf *small, *large;
    int rc;

    (void)text;
    if (pool == NULL)
        return -ENOMEM;
    small = buf_alloc(pool, 4096);
    large = buf_alloc(pool, (size_t)2 << 20);
    rc = small == NULL || large == NULL ? -ENOMEM : 0;
    buf_unref(small);
    buf_unref(large);
    buf_pool_free(pool);
    return rc;
}

static int use_bitmap(const char *text)
{
    struct bitmap *bitmap = bitmap_new(100000);

    (void)text;
    bitmap_free(bitmap);
    return bitmap == NULL ? -ENOMEM : 0;
}

static void buffers_and_bitmaps_are_made_whole_or_not_at_all(void **state)
{
    sweep(use_buffers, NULL);
    sweep(use_bitmap, NULL);
}

static int format_value(const char *text)
{
    CLEANUP(json_putp) struct json_object *value = NULL;
    CLEANUP(free_ptr) char *line = NULL;
    CLEANUP(free_ptr) char *pretty = NULL;
    struct err err = ERR_INIT;
    size_t length;
    int rc = json_parse(text, strlen(text), "test", &value, &err);

    if (rc < 0)
        return rc;
    line = json_format(value, JSON_LINE, &length);
    if (line == NULL)
        return -ENOMEM;
    assert_string_equal(line, text);
    assert_int_equal(length, strlen(text));
    pretty = json_format(value, JSON_PRETTY, &length);
    if (pretty == NULL)
        return -ENOMEM;
    assert_non_null(strstr(pretty, "\n  \"numbers\": [\n    1,\n    -2,"));
    return 0;
}

static void a_text_has_the_whole_value_or_is_none(void **state)
{
    sweep(
        format_value,
        "{\"text\": \"a long one with \\\"quotes\\\", \\\\ and \\n\\u001b and some more behind it,"
        " so that no buffer holds it at once\", \"numbers\": [1, -2, 18446744073709551615, 1.5],"
        " \"none\": [], \"empty\": {}, \"truth\": [true, false, null], \"\\t\": \"\"}");
}

static int write_record(const char *text)
{
    static struct group_record record, again; /* large for a stack */
    CLEANUP(free_ptr) char *written = NULL;
    struct err err = ERR_INIT;
    size_t length;

    record = (struct group_record){.role = GROUP_SECONDARY, .consistent = true, .disk_count = 1};
    record.stage = GROUP_RUNNING;
    record.disks[0] = (struct group_record_disk){
        .name = "disk0", .size_bytes = 512, .active.generation = 1, .hidden.generation = 1};
    memset(record.stream_reason, 'x', sizeof(record.stream_reason) - 1);
    written = group_record_encode(&record, &length);
    return written != NULL ? group_record_decode(written, length, &again, &err) : -ENOMEM;
}

static void a_record_is_never_written_in_part(void **state)
{
    if (!fail_alloc_possible())
        skip();
    /* json-c keeps the key of a member for which a table cannot grow: what is left is not counted. */
    for (long allocations = 0, failures = 1; failures > 0; allocations++) {
        assert_true(allocations < ALLOCATIONS_MAX);
        fail_alloc_begin(allocations, true, NULL);
        int rc = write_record(NULL);
        failures = fail_alloc_end();
        assert_int_equal(rc, failures > 0 ? -ENOMEM : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_whole_or_refused),
        cmocka_unit_test(a_schema_is_made_whole_or_not_at_all),
        cmocka_unit_test(a_stream_of_json_loses_no_member),
        cmocka_unit_test(buffers_and_bitmaps_are_made_whole_or_not_at_all),
        cmocka_unit_test(a_text_has_the_whole_value_or_is_none),
        cmocka_unit_test(a_record_is_never_written_in_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
