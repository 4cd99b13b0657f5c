/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disks that commands name in one text: which address comes of which, and what is refused. */
#include "unit.h"

#include "base/json.h"
#include "control/target.h"

#include <string.h>

static void addresses_in_each_form_become_the_options_of_a_node(void **state)
{
    static const struct {
        const char *text, *options;
    } cases[] = {
        {"nbd://h:1/disk0",
         "{\"driver\":\"nbd\",\"export\":\"disk0\",\"server\":{\"type\":\"inet\","
         "\"host\":\"h\",\"port\":\"1\"}}"},
        {"nbd://h",
         "{\"driver\":\"nbd\",\"export\":\"\",\"server\":{\"type\":\"inet\",\"host\":\"h\","
         "\"port\":\"10809\"}}"},
        {"nbd://[::1]:7/a%20b/c", "{\"driver\":\"nbd\",\"export\":\"a b/c\",\"server\":{\"type\":"
                                  "\"inet\",\"host\":\"::1\",\"port\":\"7\"}}"},
        {"nbd+unix:///x?socket=/run/s%3fk",
         "{\"driver\":\"nbd\",\"export\":\"x\",\"server\":{\"type\":"
         "\"unix\",\"path\":\"/run/s?k\"}}"},
        {"nbd:h:1:exportname=a:b",
         "{\"driver\":\"nbd\",\"export\":\"a:b\",\"server\":{\"type\":\"inet\","
         "\"host\":\"h\",\"port\":\"1\"}}"},
        {"nbd:unix:/run/s",
         "{\"driver\":\"nbd\",\"export\":\"\",\"server\":{\"type\":\"unix\",\"path\":"
         "\"/run/s\"}}"},
        {"json:{\"driver\":\"nbd\",\"export\":\"x\"}", "{\"driver\":\"nbd\",\"export\":\"x\"}"},
        {"file:a.raw", "{\"driver\":\"file\",\"filename\":\"a.raw\"}"},
        {"/d/a:b.raw", "{\"driver\":\"file\",\"filename\":\"/d/a:b.raw\"}"},
        {"a.raw", "{\"driver\":\"file\",\"filename\":\"a.raw\"}"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct err err = ERR_INIT;
        struct json_object *options = target_parse(cases[i].text, &err);
        if (options == NULL)
            fail_msg("%s: %s", cases[i].text, err.text);
        assert_string_equal(json_object_to_json_string_ext(
                                options, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
                            cases[i].options);
        json_object_put(options);
    }
}

static void what_is_no_address_is_refused(void **state)
{
    static const char *const texts[] = {
        "",
        "nbd:",
        "nbd://",
        "nbd:///x",
        "nbd://h:",
        "nbd://h:/x",
        "nbd://[h",
        "nbd://[h]x/",
        "nbd://h/%",
        "nbd://h/%0",
        "nbd://h/%00",
        "nbd://h/a?b=c",
        "nbd:h",
        "nbd:unix:",
        "nbd+unix://x",
        "nbd+unix:///x",
        "nbd+unix:///x?socket=",
        "ssh://h/",
        "json:",
        "json:{",
        "json:[1]",
        "json:{\"a\":1}",
        "nbds://h/x",
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct err err = ERR_INIT;
        if (target_parse(texts[i], &err) != NULL || !err_is_set(&err))
            fail_msg("'%s' was taken", texts[i]);
    }
    struct err err = ERR_INIT;
    char text[TARGET_MAX_BYTES + 2];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_null(target_parse(text, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_in_each_form_become_the_options_of_a_node),
        cmocka_unit_test(what_is_no_address_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
