/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What one client says to the QMP server and what it hears. */
#include "qmp_fixture.h"

TEST_LOOP(a_client_is_greeted_and_negotiates_before_anything_else)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_open(&client, "full");
    expect(&client,
           "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 2, \"major\": 7}, "
           "\"package\": \"blockstep-" BLOCKSTEP_VERSION "\"}, \"capabilities\": [\"oob\"]}}");
    ask(&client, "{\"execute\": \"nothing\"}",
        NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'"));
    ask(&client, "{\"execute\": \"qmp_capabilities\"}", "{\"return\": {}}");
    ask(&client, "{\"execute\": \"qmp_capabilities\"}",
        NOT_FOUND("Capabilities negotiation is already complete, command ignored"));
    ask(&client, "{\"execute\": \"nothing\"}", "{\"return\": {}}");
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(lines_end_with_carriage_return_and_newline)
{
    struct world world;
    struct client client;
    char text[400];
    size_t length = 0;

    world_open(&world);
    client_open(&client, "full");
    while (length < 2 || text[length - 1] != '\n') {
        ssize_t got = sock_recv(client.sock, text + length, sizeof(text) - length);

        assert_true(got > 0);
        length += (size_t)got;
    }
    assert_int_equal(text[length - 2], '\r');
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(the_id_comes_back_whatever_it_is_and_also_with_errors)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    ask(&client, "{'execute': 'nothing', 'id': 7}", "{\"return\": {}, \"id\": 7}");
    ask(&client, "{'id': 'a', 'execute': 'nothing'}", "{\"return\": {}, \"id\": \"a\"}");
    ask(&client, "{'execute': 'nothing', 'id': {'x': [1, true]}}",
        "{\"return\": {}, \"id\": {\"x\": [1, true]}}");
    ask(&client, "{'execute': 'nothing', 'id': null}", "{\"return\": {}, \"id\": null}");
    ask(&client, "{'execute': 'nope', 'id': 8}",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command nope has not been "
        "found\"}, \"id\": 8}");
    ask(&client, "{'execute': 'fail', 'id': 9}",
        "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"there is no device 'x'\"}, "
        "\"id\": 9}");
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(a_request_of_the_wrong_form_is_refused_in_the_protocols_words)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    ask(&client, "[1]", GENERIC("QMP input must be a JSON object"));
    ask(&client, "12 ", GENERIC("QMP input must be a JSON object"));
    ask(&client, "{}", GENERIC("QMP input lacks member 'execute'"));
    ask(&client, "{'execute': 1}", GENERIC("QMP input member 'execute' must be a string"));
    ask(&client, "{'execute': 'nothing', 'arguments': []}",
        GENERIC("QMP input member 'arguments' must be an object"));
    ask(&client, "{'execute': 'nothing', 'extra': 1}",
        GENERIC("QMP input member 'extra' is unexpected"));
    ask(&client, "{'execute': ''}", NOT_FOUND("The command  has not been found"));
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(arguments_are_checked_in_the_protocols_words)
{
    static const struct {
        const char *arguments, *desc;
    } cases[] = {
        {"{}", "Parameter 'text' is missing"},
        {"{'text': 1}", "Invalid parameter type for 'text', expected: string"},
        {"{'text': 'a', 'count': '1'}", "Invalid parameter type for 'count', expected: integer"},
        {"{'text': 'a', 'loud': 'on'}", "Invalid parameter type for 'loud', expected: boolean"},
        {"{'text': 'a', 'kind': 'flat'}", "Parameter 'kind' does not accept value 'flat'"},
        {"{'text': 'a', 'more': 1}", "Parameter 'more' is unexpected"},
    };
    struct world world;
    struct client client;
    char request[200], answer[300];

    world_open(&world);
    client_ready(&client, "full");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        snprintf(request, sizeof(request), "{'execute': 'echo', 'arguments': %s}",
                 cases[i].arguments);
        snprintf(answer, sizeof(answer), GENERIC("%s"), cases[i].desc);
        ask(&client, request, answer);
    }
    ask(&client, "{'execute': 'nothing', 'arguments': {'x': 1}}",
        GENERIC("Parameter 'x' is unexpected"));
    ask(&client, "{'execute': 'nothing', 'arguments': {}}", "{\"return\": {}}");
    ask(&client, "{'execute': 'echo', 'arguments': {'text': 'a', 'count': 10}}",
        "{\"return\": {\"text\": \"a\", \"count\": 10}}");
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(broken_input_gets_an_error_and_the_conversation_goes_on)
{
    static const char *const broken[] = {
        "{'execute': }\n",
        "{'execute': 'nothing',}\n",
        "nonsense\n",
        "{'a': 1, 'a': 2}\n",
        "[1, 2\n}\n",
        "{'execute': NaN}\n",
        "{'a': 99999999999999999999999}\n",
    };
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    for (size_t i = 0; i < ARRAY_LEN(broken); i++) {
        struct json_object *answer, *error = NULL;

        client_send(&client, broken[i]);
        answer = client_next(&client);
        assert_non_null(answer);
        assert_true(json_object_object_get_ex(answer, "error", &error));
        json_object_put(answer);
        /* The reset byte clears what the error may have left; errors on the way are its echo. */
        client_send(&client, "\xff{'execute': 'nothing', 'id': 'after'}");
        for (;;) {
            struct json_object *id = NULL;

            answer = client_next(&client);
            assert_non_null(answer);
            json_object_object_get_ex(answer, "id", &id);
            if (id != NULL)
                break;
            json_object_put(answer);
        }
        assert_true(json_object_object_get_ex(answer, "return", NULL));
        json_object_put(answer);
    }
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(a_reset_byte_forgets_a_value_that_was_cut_off)
{
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    ask(&client, "{'execute': 'no\xff{'execute': 'nothing', 'id': 1}",
        "{\"return\": {}, \"id\": 1}");
    client_close(&client);
    world_close(&world);
}

TEST_LOOP(requests_back_to_back_or_byte_by_byte_are_answered_in_order)
{
    const char *three =
        "{'execute':'nothing','id':1}{'execute':'fail'}\n{'execute':'nothing','id':3}";
    struct world world;
    struct client client;

    world_open(&world);
    client_ready(&client, "full");
    for (int round = 0; round < 2; round++) {
        if (round == 0)
            client_send(&client, three);
        for (const char *byte = three; round == 1 && *byte != '\0'; byte++) {
            client_send(&client, (char[]){*byte, '\0'});
            co_yield();
        }
        expect(&client, "{\"return\": {}, \"id\": 1}");
        expect(&client, "{\"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"there is no "
                        "device 'x'\"}}");
        expect(&client, "{\"return\": {}, \"id\": 3}");
    }
    client_close(&client);
    world_close(&world);
}

static void text_is_spaced_as_qemu_does_it_and_escaped(void **state)
{
    struct json_object *value = json_object_new_object();
    struct json_object *list = json_object_new_array();
    size_t length_bytes;
    char *text;

    json_object_array_add(list, json_object_new_int(1));
    json_object_array_add(list, json_object_new_object());
    json_object_object_add(value, "a \"b\"", list);
    json_object_object_add(value, "c", json_object_new_string("x/y\n\t\"\\"));
    json_object_object_add(value, "d", NULL);
    text = json_format(value, JSON_LINE, &length_bytes);
    assert_string_equal(text,
                        "{\"a \\\"b\\\"\": [1, {}], \"c\": \"x/y\\n\\t\\\"\\\\\", \"d\": null}");
    assert_int_equal(length_bytes, strlen(text));
    free(text);
    json_object_put(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_is_greeted_and_negotiates_before_anything_else),
        cmocka_unit_test(lines_end_with_carriage_return_and_newline),
        cmocka_unit_test(the_id_comes_back_whatever_it_is_and_also_with_errors),
        cmocka_unit_test(a_request_of_the_wrong_form_is_refused_in_the_protocols_words),
        cmocka_unit_test(arguments_are_checked_in_the_protocols_words),
        cmocka_unit_test(broken_input_gets_an_error_and_the_conversation_goes_on),
        cmocka_unit_test(a_reset_byte_forgets_a_value_that_was_cut_off),
        cmocka_unit_test(requests_back_to_back_or_byte_by_byte_are_answered_in_order),
        cmocka_unit_test(text_is_spaced_as_qemu_does_it_and_escaped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
