/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Secrets come as text or from files, plain, in base64 or encrypted; what does not do is refused without
 * being told. */
#include "harness.h"
#include "tls_fixture.h"

#include "base/json.h"
#include "drivers/secret_object.h"
#include "drivers/table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A key of the bytes 0 to 31, and "correct horse" encrypted with it. */
#define KEY       "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
#define IV        "ICEiIyQlJicoKSorLC0uLw=="
#define ENCRYPTED "ZCXe2Ag2m/1ygUVwA92Yug=="

static struct graph *graph;

static void begin(void)
{
    static const struct driver *const no_drivers[] = {NULL};

    tls_fixture_make();
    graph = graph_new(loop_current(), no_drivers);
    assert_non_null(graph);
    graph_set_object_types(graph, object_types_table);
}

static void end(void) MAY_WAIT;
static void end(void)
{
    graph_free(graph);
    tls_fixture_remove();
}

/* `more`: dotted keys behind qom-type and id. */
static int add(const char *id, const char *more, struct err *err) MAY_WAIT;
static int add(const char *id, const char *more, struct err *err)
{
    CLEANUP(json_putp) struct json_object *options = NULL;
    enum opts_syntax syntax;
    char text[600];

    snprintf(text, sizeof(text), "secret,id=%s,%s", id, more);
    assert_int_equal(opts_read(text, "qom-type", "--object", &options, &syntax, err), 0);
    int result = object_add(graph, options, syntax, "--object", err);
    if (result == 0 && (result = object_load(graph, id, err)) < 0) {
        struct err ignored = ERR_INIT;
        assert_int_equal(object_del(graph, id, &ignored), 0);
    }
    return result;
}

static void assert_secret(const char *more, const char *expected, size_t length_bytes) MAY_WAIT;
static void assert_secret(const char *more, const char *expected, size_t length_bytes)
{
    const struct secret *secret = NULL;
    struct object *object = NULL;
    struct err err = ERR_INIT;

    if (add("s", more, &err) < 0 ||
        secret_object_use(graph, "s", "test", &object, &secret, &err) < 0)
        fail_msg("%s: %s", more, err.text);
    assert_int_equal(secret->length_bytes, length_bytes);
    assert_memory_equal(secret->bytes, expected, length_bytes);
    assert_int_equal(secret->bytes[length_bytes], 0);
    assert_int_equal(object_del(graph, "s", &err), -EBUSY);
    object_unuse(object);
    err_clear(&err);
    assert_int_equal(object_del(graph, "s", &err), 0);
}

static void assert_refused(const char *more, const char *why) MAY_WAIT;
static void assert_refused(const char *more, const char *why)
{
    struct err err = ERR_INIT;

    assert_true(add("s", more, &err) < 0);
    if (strstr(err.text, why) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, why);
    assert_null(strstr(err.text, "swordfish"));
}

static const char *with_file(const char *format, const char *name)
{
    static char text[400];

    snprintf(text, sizeof(text), "file=%s%s", tls_fixture_path(name), format);
    return text;
}

TEST_LOOP(a_secret_is_what_was_given_or_what_the_file_holds)
{
    begin();
    assert_secret("data=swordfish", "swordfish", 9);
    assert_secret("data=sword,,fish", "sword,fish", 10);
    assert_secret("data=", "", 0);
    assert_secret("data=c3dvcmQA,format=base64", "sword\0", 6);
    assert_secret("data=,format=base64", "", 0);
    tls_fixture_write("raw", "sword\nfish\n", 0600);
    assert_secret(with_file("", "raw"), "sword\nfish\n", 11);
    tls_fixture_write("b64", "c3dv\r\ncmRm\naXNo\n", 0600);
    assert_secret(with_file(",format=base64", "b64"), "swordfish", 9);
    end();
}

TEST_LOOP(a_secret_may_be_encrypted_with_another)
{
    struct err err = ERR_INIT;

    begin();
    assert_int_equal(add("key", "data=" KEY ",format=base64", &err), 0);
    assert_secret("data=" ENCRYPTED ",format=base64,keyid=key,iv=" IV, "correct horse", 13);
    assert_refused("data=" ENCRYPTED ",format=base64,keyid=key", "'keyid' and 'iv' go together");
    assert_refused("data=" ENCRYPTED ",format=base64,iv=" IV, "'keyid' and 'iv' go together");
    assert_refused("data=" ENCRYPTED ",format=base64,keyid=nokey,iv=" IV, "no secret 'nokey'");
    assert_refused("data=" ENCRYPTED ",format=base64,keyid=s,iv=" IV, "still being loaded");
    assert_refused("data=swordfish,keyid=key,iv=" IV, "whole blocks of 16");
    assert_refused("data=,keyid=key,iv=" IV, "whole blocks of 16");
    assert_refused("data=" ENCRYPTED ",format=base64,keyid=key,iv=swordfish", "'iv' is not base64");
    assert_refused("data=" ENCRYPTED ",format=base64,keyid=key,iv=c3dvcmQA", "'iv' has 6 bytes");
    assert_refused("data=" KEY ",format=base64,keyid=key,iv=" IV, "is it the right key?");
    assert_int_equal(add("short", "data=swordfish", &err), 0);
    assert_refused("data=" ENCRYPTED ",format=base64,keyid=short,iv=" IV, "has 9 bytes, not 32");
    end();
}

TEST_LOOP(what_does_not_do_is_refused_without_being_quoted)
{
    begin();
    assert_refused("format=raw", "has neither");
    assert_refused("data=swordfish,file=/dev/null", "not both");
    assert_refused("data=swordfish!,format=base64", "'data' is not base64");
    assert_refused("data=swordfish,format=base64", "'data' is not base64");
    assert_refused("data=swordfish,format=hex", "'format'");
    assert_refused(with_file("", "nosuch"), "nosuch' is missing");
    assert_refused("file=/dev/zero", "is no file");
    tls_fixture_write("open", "swordfish", 0644);
    assert_refused(with_file("", "open"), "chmod 600");
    tls_fixture_write("bad", "swordfish", 0600);
    assert_refused(with_file(",format=base64", "bad"), "bad is not base64");
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_secret_is_what_was_given_or_what_the_file_holds),
        cmocka_unit_test(a_secret_may_be_encrypted_with_another),
        cmocka_unit_test(what_does_not_do_is_refused_without_being_quoted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
