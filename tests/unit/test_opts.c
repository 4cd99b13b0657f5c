/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "death.h"
#include "unit.h"

#include "base/json.h"
#include "base/opts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct sample {
    char *filename, *key;
    bool direct, direct_given, read_only;
    uint64_t depth, size, serial;
    int mode;
    struct opt_strings names;
    struct json_object *file, *children, *extra;
    bool server_given;
    int server_type;
    char *host, *path;
    uint64_t port;
    bool inner_flag;
};

static const char *const mode_values[] = {"primary", "secondary", NULL};
static const char *const server_types[] = {"inet", "unix", "none", NULL};

static const struct opt cache_opts[] = {
    {.name = "direct",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct sample, direct),
     .present = OPT_PRESENT(struct sample, direct_given),
     .help = "bypass the page cache"},
    {.name = "flag",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct sample, inner_flag),
     .fallback = "on",
     .help = "a flag that is on"},
    {0},
};

static const struct opt server_common[] = {
    {.name = "type",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct sample, server_type),
     .required = true,
     .values = server_types,
     .help = "kind of address"},
    {0},
};

static const struct opt inet_opts[] = {
    {.name = "host",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct sample, host),
     .required = true,
     .help = "host name or address"},
    {.name = "port",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct sample, port),
     .min = 1,
     .max = 65535,
     .fallback = "10809",
     .help = "port number"},
    {0},
};

static const struct opt unix_opts[] = {
    {.name = "path",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct sample, path),
     .required = true,
     .help = "path of the socket"},
    {0},
};

static const struct opt *const server_variants[] = {inet_opts, unix_opts, NULL};

static const struct opt sample_opts[] = {
    {.name = "filename",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct sample, filename),
     .required = true,
     .help = "path of the image"},
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct sample, mode),
     .required = true,
     .values = mode_values,
     .help = "which side this is"},
    {.name = "cache", .type = OPT_OBJECT, .members = cache_opts, .help = "cache modes"},
    {.name = "server",
     .type = OPT_UNION,
     .present = OPT_PRESENT(struct sample, server_given),
     .members = server_common,
     .discriminator = "type",
     .variants = server_variants,
     .help = "where to connect"},
    {.name = "read-only",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct sample, read_only),
     .help = "take no writes"},
    {.name = "depth",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct sample, depth),
     .min = 1,
     .max = 64,
     .fallback = "32",
     .help = "requests at once"},
    {.name = "serial",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct sample, serial),
     .help = "any number"},
    {.name = "size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct sample, size),
     .min = 512,
     .fallback = "64k",
     .help = "size of a block"},
    {.name = "key",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct sample, key),
     .secret = true,
     .help = "password"},
    {.name = "names",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct sample, names),
     .help = "some names"},
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct sample, file),
     .help = "node below"},
    {.name = "children",
     .type = OPT_CHILDREN,
     .offset = OPT_FIELD(struct sample, children),
     .help = "nodes below"},
    {.name = "extra",
     .type = OPT_ANY,
     .offset = OPT_FIELD(struct sample, extra),
     .help = "anything"},
    {0},
};

static const char *const ignored[] = {"driver", "node-name", NULL};

/* Reads and parses; on failure checks that nothing is left in `out`. */
static int parse(const char *text, struct sample *out, struct err *err)
{
    static const struct sample zeroes;
    CLEANUP(json_putp) struct json_object *object = NULL;
    enum opts_syntax syntax;
    int rc = opts_read(text, "driver", "test", &object, &syntax, err);

    *out = zeroes;
    if (rc == 0)
        rc = opts_parse(sample_opts, object, syntax, "test", ignored, out, err);
    if (rc < 0)
        assert_memory_equal(out, &zeroes, sizeof(zeroes));
    return rc;
}

static void assert_refused(const char *text, const char *expected)
{
    struct err err = ERR_INIT;
    struct sample out;

    assert_true(parse(text, &out, &err) < 0);
    assert_string_equal(err.text, expected);
}

static void read_expect(const char *text, const char *expected)
{
    CLEANUP(json_putp) struct json_object *object = NULL;
    enum opts_syntax syntax = OPTS_JSON;
    struct err err = ERR_INIT;

    if (opts_read(text, "driver", "--blockdev", &object, &syntax, &err) < 0) {
        assert_string_equal(err.text, expected);
        return;
    }
    assert_int_equal(syntax, text[0] == '{' ? OPTS_JSON : OPTS_DOTTED);
    assert_string_equal(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN |
                                                                   JSON_C_TO_STRING_NOSLASHESCAPE),
                        expected);
}

static void dotted_keys_make_objects_and_lists(void **state)
{
    read_expect("", "{}");
    read_expect("a=1", "{\"a\":\"1\"}");
    read_expect("driver=file,filename=/a,cache.direct=on",
                "{\"driver\":\"file\",\"filename\":\"/a\",\"cache\":{\"direct\":\"on\"}}");
    read_expect("a.b.c=1,a.b.d=2,a.e=3", "{\"a\":{\"b\":{\"c\":\"1\",\"d\":\"2\"},\"e\":\"3\"}}");
    read_expect("c.1=y,c.0=x", "{\"c\":[\"x\",\"y\"]}");
    read_expect("c.0.d.0=x,c.1=y", "{\"c\":[{\"d\":[\"x\"]},\"y\"]}");
    read_expect("c.10=k,c.0=a,c.1=b,c.2=c,c.3=d,c.4=e,c.5=f,c.6=g,c.7=h,c.8=i,c.9=j",
                "{\"c\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\",\"j\",\"k\"]}");
    read_expect("0=x", "{\"0\":\"x\"}");
    read_expect("a=,b==", "{\"a\":\"\",\"b\":\"=\"}");
}

static void a_doubled_comma_is_a_comma(void **state)
{
    read_expect("filename=/a,,b,x=,,", "{\"filename\":\"/a,b\",\"x\":\",\"}");
    read_expect("a=,,,,b,c=1", "{\"a\":\",,b\",\"c\":\"1\"}");
}

static void the_first_value_may_leave_out_its_key(void **state)
{
    read_expect("file,filename=x", "{\"driver\":\"file\",\"filename\":\"x\"}");
    read_expect("un,,usual", "{\"driver\":\"un,usual\"}");
    read_expect("a=1,file", "--blockdev: option 'file' has no '=' and value behind it");
}

static void a_brace_begins_json(void **state)
{
    read_expect("{\"a\":[1,true]}", "{\"a\":[1,true]}");
    read_expect("{'a':1,}", "--blockdev: not valid JSON at byte 8: a key in quotes was expected, "
                            "not '}'");
}

static void wrong_dotted_keys_are_refused(void **state)
{
    static const char *const cases[][2] = {
        {"a=1,a=2", "--blockdev: option 'a' is given twice"},
        {"a=1,a.b=2", "--blockdev: option 'a' is given both a value and members"},
        {"a.b=2,a=1", "--blockdev: option 'a' is given both a value and members"},
        {"a.b=2,a.b.c=1", "--blockdev: option 'a.b' is given both a value and members"},
        {"a=1,", "--blockdev: an option is missing behind the last ','"},
        {"a=1,=2", "--blockdev: option '' has a name other than letters, digits, '-' and '_' "
                   "between dots"},
        {"a..b=1", "--blockdev: option 'a..b' has a name other than letters, digits, '-' and '_' "
                   "between dots"},
        {"a.=1", "--blockdev: option 'a.' has a name other than letters, digits, '-' and '_' "
                 "between dots"},
        {"a b=1", "--blockdev: option 'a b' has a name other than letters, digits, '-' and '_' "
                  "between dots"},
        {"c.0=a,c.2=b", "--blockdev: option 'c' has 2 numbered members, but not number 1"},
        {"c.00=a", "--blockdev: option 'c' has 1 numbered members, but not number 0"},
        {"c.0=a,c.x=b", "--blockdev: option 'c' has both numbered and named members"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        read_expect(cases[i][0], cases[i][1]);
}

static void dotted_keys_are_limited(void **state)
{
    CLEANUP(json_putp) struct json_object *object = NULL;
    char *text = calloc(1, OPTS_MAX_TEXT_BYTES + 2);
    enum opts_syntax syntax;
    struct err err = ERR_INIT;
    size_t length = 0;

    assert_non_null(text);
    memset(text, 'x', OPTS_MAX_TEXT_BYTES + 1);
    memcpy(text, "a=", 2);
    read_expect(text, "--blockdev: options are longer than 65536 bytes");
    text[OPTS_MAX_TEXT_BYTES] = '\0';
    assert_int_equal(opts_read(text, NULL, "x", &object, &syntax, &err), 0);

    for (unsigned i = 0; i < OPTS_MAX_KEYS + 1; i++)
        length += (size_t)sprintf(text + length, "%sk%u=v", i > 0 ? "," : "", i);
    read_expect(text, "--blockdev: more than 1024 options");

    strcpy(text, "");
    for (unsigned i = 0; i < OPTS_MAX_LEVELS; i++)
        strcat(text, "a.");
    strcat(text, "a=1");
    assert_int_equal(opts_read(text, NULL, "x", &object, &syntax, &err), -EINVAL);
    assert_non_null(strstr(err.text, "too many levels"));

    memset(text, 'x', OPTS_MAX_NAME_BYTES + 1);
    strcpy(text + OPTS_MAX_NAME_BYTES + 1, "=1");
    assert_int_equal(opts_read(text, NULL, "x", &object, &syntax, &err), -EINVAL);
    assert_non_null(strstr(err.text, "too long a name"));
    free(text);
}

static void both_syntaxes_fill_the_same_struct(void **state)
{
    static const char *const texts[] = {
        "file,node-name=n,filename=/a,mode=secondary,cache.direct=on,server.type=inet,"
        "server.host=h,server.port=7,depth=8,size=1.5M,key=k,names.0=x,names.1=y,file=below,"
        "children.0=c0,children.1.driver=d,extra.any=1",
        "{'driver':'file','node-name':'n','filename':'/a','mode':'secondary','cache':"
        "{'direct':true},'server':{'port':7,'type':'inet','host':'h'},'depth':8,'size':1572864,"
        "'key':'k','names':['x','y'],'file':'below','children':['c0',{'driver':'d'}],"
        "'extra':{'any':'1'}}",
    };

    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct err err = ERR_INIT;
        struct sample out;

        if (parse(texts[i], &out, &err) < 0)
            fail_msg("%s", err.text);
        assert_string_equal(out.filename, "/a");
        assert_int_equal(out.mode, 1);
        assert_true(out.direct && out.direct_given && out.server_given);
        assert_true(out.inner_flag);
        assert_int_equal(out.server_type, 0);
        assert_string_equal(out.host, "h");
        assert_int_equal(out.port, 7);
        assert_null(out.path);
        assert_int_equal(out.depth, 8);
        assert_int_equal(out.size, 1536 * 1024);
        assert_string_equal(out.key, "k");
        assert_int_equal(out.names.count, 2);
        assert_string_equal(out.names.items[1], "y");
        assert_null(out.names.items[2]);
        assert_string_equal(json_object_get_string(out.file), "below");
        assert_int_equal(json_object_array_length(out.children), 2);
        assert_string_equal(json_object_to_json_string_ext(out.extra, JSON_C_TO_STRING_PLAIN),
                            "{\"any\":\"1\"}");
        opts_release(sample_opts, &out);
        assert_memory_equal(&out, &(struct sample){0}, sizeof(out));
    }
}

static void absent_options_get_their_fallbacks(void **state)
{
    struct err err = ERR_INIT;
    struct sample out;

    assert_int_equal(parse("filename=x,mode=primary,server.type=inet,server.host=h", &out, &err),
                     0);
    assert_int_equal(out.depth, 32);
    assert_int_equal(out.size, 65536);
    assert_int_equal(out.port, 10809);
    assert_true(out.inner_flag);
    assert_false(out.direct_given);
    assert_null(out.key);
    opts_release(sample_opts, &out);
    assert_int_equal(parse("filename=x,mode=primary,server.type=none", &out, &err), 0);
    assert_int_equal(out.port, 0);
    assert_int_equal(out.server_type, 2);
    opts_release(sample_opts, &out);
}

static void errors_say_what_where_and_what_to_do(void **state)
{
    static const char *const cases[][2] = {
        {"filename=x,mode=primary,cache.direct=maybe",
         "test: option 'cache.direct' must be 'on' or 'off', not 'maybe'"},
        {"{'filename':'x','mode':'primary','cache':{'direct':'on'}}",
         "test: option 'cache.direct' must be true or false, not 'on'"},
        {"filname=x,mode=primary", "test: unknown option 'filname', did you mean 'filename'?"},
        {"filename=x,mode=primary,nodename=n",
         "test: unknown option 'nodename', did you mean 'node-name'?"},
        {"filename=x,mode=primary,cache.dierct=on",
         "test: unknown option 'cache.dierct', did you mean 'cache.direct'?"},
        {"filename=x,mode=primary,cache.zoo=1",
         "test: unknown option 'cache.zoo' (there are: direct, flag)"},
        {"filename=x,mode=primary,server.type=unix,server.host=h",
         "test: unknown option 'server.host' (there are: type, path)"},
        {"filename=x,mode=primary,server.type=unix",
         "test: required option 'server.path' is missing (path of the socket)"},
        {"filename=x,mode=primary,server.path=x",
         "test: required option 'server.type' is missing (one of: inet, unix, none)"},
        {"filename=x,mode=primary,server=x", "test: option 'server' must be an object, not 'x'"},
        {"filename=x", "test: required option 'mode' is missing (one of: primary, secondary)"},
        {"mode=primary", "test: required option 'filename' is missing (path of the image)"},
        {"filename=x,mode=both",
         "test: option 'mode' must be 'primary' or 'secondary', not 'both'"},
        {"filename=x,mode=primary,depth=65",
         "test: option 'depth' must be a whole number from 1 to 64, not '65'"},
        {"filename=x,mode=primary,depth=0",
         "test: option 'depth' must be a whole number from 1 to 64, not '0'"},
        {"filename=x,mode=primary,depth=-1",
         "test: option 'depth' must be a whole number from 1 to 64, not '-1'"},
        {"filename=x,mode=primary,depth=",
         "test: option 'depth' must be a whole number from 1 to 64, not ''"},
        {"filename=x,mode=primary,depth=18446744073709551617",
         "test: option 'depth' must be a whole number from 1 to 64, not '18446744073709551617'"},
        {"{'filename':'x','mode':'primary','depth':-1}",
         "test: option 'depth' must be a whole number from 1 to 64, not -1"},
        {"{'filename':'x','mode':'primary','serial':-1}",
         "test: option 'serial' must be a whole number, not -1"},
        {"{'filename':'x','mode':'primary','depth':2.0}",
         "test: option 'depth' must be a whole number from 1 to 64, not 2.0"},
        {"{'filename':'x','mode':'primary','depth':'2'}",
         "test: option 'depth' must be a whole number from 1 to 64, not '2'"},
        {"filename=x,mode=primary,size=2q",
         "test: option 'size' must be a size (such as 4096, 64k or 1.5G) of at least 512 B, not "
         "'2q'"},
        {"filename=x,mode=primary,size=1",
         "test: option 'size' must be a size (such as 4096, 64k or 1.5G) of at least 512 B, not "
         "'1'"},
        {"{'filename':1,'mode':'primary'}", "test: option 'filename' must be a string, not 1"},
        {"{'filename':null,'mode':'primary'}",
         "test: option 'filename' must be a string, not null"},
        {"{'filename':{},'mode':'primary'}",
         "test: option 'filename' must be a string, not an object"},
        {"filename=x,mode=primary,names=a",
         "test: option 'names' must be a list of strings, not 'a'"},
        {"{'filename':'x','mode':'primary','names':['a',1]}",
         "test: option 'names' must be a list of strings, not a list"},
        {"{'filename':'x','mode':'primary','file':1}",
         "test: option 'file' must be a node's name or an object, not 1"},
        {"{'filename':'x','mode':'primary','children':['a',[]]}",
         "test: option 'children' must be a list of nodes' names or objects, not a list"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_refused(cases[i][0], cases[i][1]);
}

static void the_ends_of_a_range_belong_to_it(void **state)
{
    static const struct {
        const char *text;
        uint64_t depth, size, serial;
    } cases[] = {
        {"filename=x,mode=primary,depth=1,size=512,serial=0", 1, 512, 0},
        {"filename=x,mode=primary,depth=64,serial=18446744073709551615", 64, 65536, UINT64_MAX},
        {"{'filename':'x','mode':'primary','depth':64,'serial':18446744073709551615}", 64, 65536,
         UINT64_MAX},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;
        struct sample out;

        assert_int_equal(parse(cases[i].text, &out, &err), 0);
        assert_int_equal(out.depth, cases[i].depth);
        assert_int_equal(out.size, cases[i].size);
        assert_int_equal(out.serial, cases[i].serial);
        opts_release(sample_opts, &out);
    }
}

static void a_secret_is_not_shown(void **state)
{
    assert_refused("{'filename':'x','mode':'primary','key':12345}",
                   "test: option 'key' must be a string");
}

static void only_objects_are_parsed(void **state)
{
    struct json_object *list = json_object_new_array();
    struct sample out = {0};
    struct err err = ERR_INIT;

    assert_int_equal(opts_parse(sample_opts, list, OPTS_JSON, "test", NULL, &out, &err), -EINVAL);
    assert_string_equal(err.text, "test: options must be an object, not a list");
    json_object_put(list);
}

static void a_long_key_is_neither_suggested_for_nor_shown_whole(void **state)
{
    struct err err = ERR_INIT;
    struct sample out = {0};
    struct json_object *object = json_object_new_object();
    char key[100000];

    memset(key, 'k', sizeof(key) - 1);
    key[sizeof(key) - 1] = '\0';
    json_add_int(object, key, 1);
    assert_int_equal(opts_parse(sample_opts, object, OPTS_JSON, "test", NULL, &out, &err), -EINVAL);
    assert_true(strlen(err.text) < 300);
    json_object_put(object);
}

static void tables_are_sound(void **state)
{
    opts_table_check(sample_opts);
}

static void check_table(void *arg)
{
    opts_table_check(arg);
}

static void unsound_tables_are_caught(void **state)
{
    static const struct opt good = {.name = "a", .type = OPT_UINT, .help = "help"};
    static const struct opt faults[] = {
        {.name = "a.b", .type = OPT_UINT, .help = "help"},
        {.name = "0", .type = OPT_UINT, .help = "help"},
        {.name = "", .type = OPT_UINT, .help = "help"},
        {.name = "b", .type = OPT_UINT},
        {.name = "b", .type = OPT_UINT, .help = "With a full stop."},
        {.name = "b", .type = OPT_UINT, .offset = 1, .help = "help"},
        {.name = "b", .type = OPT_STRING, .offset = 0, .help = "help"},
        {.name = "a", .type = OPT_UINT, .offset = 8, .help = "help"},
        {.name = "b", .type = OPT_UINT, .fallback = "x", .help = "help"},
        {.name = "b", .type = OPT_UINT, .max = 3, .fallback = "4", .help = "help"},
        {.name = "b", .type = OPT_UINT, .min = 3, .max = 2, .help = "help"},
        {.name = "b", .type = OPT_UINT, .fallback = "1", .required = true, .help = "help"},
        {.name = "b", .type = OPT_ENUM, .offset = 8, .help = "help"},
        {.name = "b", .type = OPT_OBJECT, .help = "help"},
        {.name = "b", .type = OPT_STRINGS, .offset = 8, .fallback = "x", .help = "help"},
        {.name = "b",
         .type = OPT_UNION,
         .members = cache_opts,
         .discriminator = "direct",
         .variants = server_variants,
         .help = "help"},
    };
    struct opt table[3] = {good};

    assert_false(dies(check_table, table));
    for (size_t i = 0; i < ARRAY_LEN(faults); i++) {
        table[1] = faults[i];
        if (!dies(check_table, table))
            fail_msg("fault %zu was not caught", i);
    }
}

struct shape {
    int kind;
    char *name;
    uint64_t edges;
};

struct shapes {
    struct opt_objects list;
    struct opt_strings tags;
};

static const char *const shape_kinds[] = {"round", "square", NULL};

static const struct opt shape_opts[] = {
    {.name = "kind",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct shape, kind),
     .required = true,
     .values = shape_kinds,
     .help = "which"},
    {.name = "name",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct shape, name),
     .help = "what it is called"},
    {0},
};

static const struct opt square_opts[] = {
    {.name = "edges",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct shape, edges),
     .fallback = "4",
     .help = "how many"},
    {0},
};

static const struct opt *const shape_variants[] = {NULL, square_opts};

static const struct opt shapes_opts[] = {
    {.name = "list",
     .type = OPT_OBJECTS,
     .offset = OPT_FIELD(struct shapes, list),
     .members = shape_opts,
     .item_size = sizeof(struct shape),
     .discriminator = "kind",
     .variants = shape_variants,
     .help = "shapes"},
    {.name = "tags",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct shapes, tags),
     .values = shape_kinds,
     .help = "kinds that matter"},
    {0},
};

static int parse_shapes(const char *text, struct shapes *shapes, struct err *err)
{
    struct json_object *object = NULL;
    enum opts_syntax syntax;

    *shapes = (struct shapes){0};
    assert_int_equal(opts_read(text, NULL, "shapes", &object, &syntax, err), 0);
    int rc = opts_parse(shapes_opts, object, syntax, "shapes", NULL, shapes, err);
    json_object_put(object);
    return rc;
}

static void a_list_of_objects_fills_an_array_of_structs(void **state)
{
    static const char *const texts[] = {
        "list.0.kind=square,list.0.name=a,list.1.kind=round,list.2.kind=square,list.2.edges=5,"
        "tags.0=round",
        "{\"list\": [{\"kind\": \"square\", \"name\": \"a\"}, {\"kind\": \"round\"}, "
        "{\"kind\": \"square\", \"edges\": 5}], \"tags\": [\"round\"]}",
    };

    opts_table_check(shapes_opts);
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct err err = ERR_INIT;
        struct shapes shapes;

        assert_int_equal(parse_shapes(texts[i], &shapes, &err), 0);
        const struct shape *items = shapes.list.items;
        assert_int_equal(shapes.list.count, 3);
        assert_int_equal(items[0].kind, 1);
        assert_string_equal(items[0].name, "a");
        assert_int_equal(items[0].edges, 4);
        assert_int_equal(items[1].kind, 0);
        assert_null(items[1].name);
        assert_int_equal(items[2].edges, 5);
        assert_int_equal(shapes.tags.count, 1);
        opts_release(shapes_opts, &shapes);
        assert_null(shapes.list.items);
    }
}

static void what_is_wrong_in_a_list_is_named_by_its_place(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"list.0.name=a", "shapes: required option 'list.0.kind' is missing (one of: round, "
                          "square)"},
        {"list.0.kind=round,list.1.kind=oval",
         "shapes: option 'list.1.kind' must be 'round' or 'square', not 'oval'"},
        {"list.0.kind=round,list.0.edges=3",
         "shapes: unknown option 'list.0.edges' (there are: kind, name)"},
        {"list.0=round", "shapes: option 'list.0' must be an object"},
        {"list=round", "shapes: option 'list' must be a list of objects, not 'round'"},
        {"tags.0=oval", "shapes: option 'tags' must be a list of 'round' or 'square', not a list"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;
        struct shapes shapes;

        assert_int_equal(parse_shapes(cases[i].text, &shapes, &err), -EINVAL);
        assert_string_equal(err.text, cases[i].message);
        assert_null(shapes.list.items);
        assert_int_equal(shapes.list.count, 0);
    }
}

static void append_line(void *arg, const char *line)
{
    FILE *stream = arg;

    fprintf(stream, "%s\n", line);
}

static void help_lists_every_option_by_its_full_path(void **state)
{
    char text[4000];
    FILE *stream = fmemopen(text, sizeof(text), "w");

    opts_help(sample_opts, append_line, stream);
    fclose(stream);
    assert_non_null(
        strstr(text, "  filename=TEXT                   path of the image (required)\n"));
    assert_non_null(strstr(text, "  mode=primary|secondary          which side this is"));
    assert_non_null(strstr(text, "  cache.direct=on|off             bypass the page cache\n"));
    assert_non_null(strstr(text, "  with server.type=inet:\n  server.host=TEXT "));
    assert_non_null(
        strstr(text, "  server.port=N                   port number (default: 10809)\n"));
    assert_non_null(strstr(text, "  names.N=TEXT "));
    assert_null(strstr(text, "server.type=none"));
}

static void sizes_are_whole_bytes(void **state)
{
    static const struct {
        const char *text;
        int rc;
        uint64_t bytes;
    } cases[] = {
        {"0", 0, 0},
        {"4096", 0, 4096},
        {"64k", 0, 65536},
        {"64K", 0, 65536},
        {"1.5G", 0, 3ull << 29},
        {"0.5k", 0, 512},
        {"1.0", 0, 1},
        {"2M", 0, 2ull << 20},
        {"16T", 0, 16ull << 40},
        {"15.5E", 0, 31ull << 59},
        {"18446744073709551615", 0, UINT64_MAX},
        {"18446744073709551616", -ERANGE, 0},
        {"16E", -ERANGE, 0},
        {"99999999999999999999k", -ERANGE, 0},
        {"1.1k", -EINVAL, 0},
        {"0.5", -EINVAL, 0},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"+1", -EINVAL, 0},
        {" 1", -EINVAL, 0},
        {"1 ", -EINVAL, 0},
        {"k", -EINVAL, 0},
        {".5k", -EINVAL, 0},
        {"1.k", -EINVAL, 0},
        {"1kk", -EINVAL, 0},
        {"1q", -EINVAL, 0},
        {"0x10", -EINVAL, 0},
        {"1.0000000000000000000", -EINVAL, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t bytes = 77;
        int rc = size_parse(cases[i].text, &bytes);

        if (rc != cases[i].rc || bytes != (rc == 0 ? cases[i].bytes : 77))
            fail_msg("'%s' gave %d, %llu", cases[i].text, rc, (unsigned long long)bytes);
    }
}

static void sizes_read_well(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {1023, "1023 B"},
        {1024, "1 KiB"},
        {1536, "1.5 KiB"},
        {1048575, "1 MiB"},
        {3ull << 29, "1.5 GiB"},
        {16ull << 40, "16 TiB"},
        {UINT64_MAX, "16 EiB"},
    };
    char text[32];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_string_equal(size_format(cases[i].bytes, text, sizeof(text)), cases[i].text);
}

/* Whatever is thrown at the table, it is accepted and released or refused with a reason. */
static void random_options_never_leak_nor_crash(void **state)
{
    static const char *const words[] = {"filename", "mode", "cache",  "server", "type", "host",
                                        "names",    ".",    ",",      "=",      "0",    "1",
                                        "primary",  "inet", "direct", "file",   "on",   "children"};
    unsigned seed = (unsigned)time(NULL);

    print_message("seed %u\n", seed);
    for (int round = 0; round < 20000; round++) {
        struct err err = ERR_INIT;
        char text[400] = "filename=x,mode=primary,";
        struct sample out;

        for (int i = rand_r(&seed) % 20; i > 0; i--)
            strcat(text, words[(size_t)rand_r(&seed) % ARRAY_LEN(words)]);
        if (parse(text, &out, &err) == 0)
            opts_release(sample_opts, &out);
        else
            assert_true(strlen(err.text) > 6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dotted_keys_make_objects_and_lists),
        cmocka_unit_test(a_doubled_comma_is_a_comma),
        cmocka_unit_test(the_first_value_may_leave_out_its_key),
        cmocka_unit_test(a_brace_begins_json),
        cmocka_unit_test(wrong_dotted_keys_are_refused),
        cmocka_unit_test(dotted_keys_are_limited),
        cmocka_unit_test(both_syntaxes_fill_the_same_struct),
        cmocka_unit_test(absent_options_get_their_fallbacks),
        cmocka_unit_test(errors_say_what_where_and_what_to_do),
        cmocka_unit_test(the_ends_of_a_range_belong_to_it),
        cmocka_unit_test(a_secret_is_not_shown),
        cmocka_unit_test(only_objects_are_parsed),
        cmocka_unit_test(a_list_of_objects_fills_an_array_of_structs),
        cmocka_unit_test(what_is_wrong_in_a_list_is_named_by_its_place),
        cmocka_unit_test(a_long_key_is_neither_suggested_for_nor_shown_whole),
        cmocka_unit_test(tables_are_sound),
        cmocka_unit_test(unsound_tables_are_caught),
        cmocka_unit_test(help_lists_every_option_by_its_full_path),
        cmocka_unit_test(sizes_are_whole_bytes),
        cmocka_unit_test(sizes_read_well),
        cmocka_unit_test(random_options_never_leak_nor_crash),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
