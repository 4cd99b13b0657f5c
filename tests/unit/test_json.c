/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit.h"

#include "base/json.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Parses and gives the value's plain spelling, "" for a refused one; `err` says why. */
static char *spell(const char *text, size_t length, struct err *err)
{
    CLEANUP(json_putp) struct json_object *value = NULL;

    if (json_parse(text, length, "test", &value, err) < 0)
        return strdup("");
    return strdup(json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN |
                                                            JSON_C_TO_STRING_NOSLASHESCAPE));
}

static void assert_spells(const char *text, const char *expected)
{
    struct err err = ERR_INIT;
    CLEANUP(free_ptr) char *spelled = spell(text, strlen(text), &err);

    if (strcmp(spelled, expected) != 0)
        print_message("%s: %s\n", text, err.text);
    assert_string_equal(spelled, expected);
}

static void assert_refused(const char *text, const char *reason)
{
    struct err err = ERR_INIT;
    CLEANUP(free_ptr) char *spelled = spell(text, strlen(text), &err);

    if (!err_is_set(&err) || strstr(err.text, reason) == NULL)
        fail_msg("'%s' gave '%s', error '%s', not '%s'", text, spelled, err.text, reason);
    assert_memory_equal(err.text, "test: ", 6);
}

static void well_formed_values_are_accepted(void **state)
{
    static const char *const cases[][2] = {
        {" {} ", "{}"},
        {"[]", "[]"},
        {"{\"a\":[1,2,{\"b\":null}],\"c\":true}", "{\"a\":[1,2,{\"b\":null}],\"c\":true}"},
        {"\r\n\t [ 1 , false ] \n", "[1,false]"},
        {"\"x\"", "\"x\""},
        {"null", "null"},
        {"true", "true"},
        {"0", "0"},
        {"-1", "-1"},
        {"18446744073709551615", "18446744073709551615"},
        {"-9223372036854775808", "-9223372036854775808"},
        {"1.5", "1.5"},
        {"0.5e-3", "0.5e-3"},
        {"[1E5]", "[1E5]"},
        {"{\"\":1}", "{\"\":1}"},
        {"{\"a\":{\"a\":1},\"b\":{\"a\":1}}", "{\"a\":{\"a\":1},\"b\":{\"a\":1}}"},
        {"[{\"a\":1},{\"a\":1}]", "[{\"a\":1},{\"a\":1}]"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_spells(cases[i][0], cases[i][1]);
}

static void single_quotes_are_accepted_as_qemu_does(void **state)
{
    assert_spells("{'a':'b'}", "{\"a\":\"b\"}");
    assert_spells("{'say \"hi\"':'it\\'s'}", "{\"say \\\"hi\\\"\":\"it's\"}");
    assert_spells("\"it's\"", "\"it's\"");
    assert_refused("\"it\\'s\"", "escape");
    assert_refused("{'a\":1}", "ends too early");
}

static void escapes_and_characters_come_out_right(void **state)
{
    assert_spells("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"\\\\/\\b\\f\\n\\r\\t\"");
    assert_spells("\"\\u0041\\u00e9\\u20AC\\ud83d\\uDE00\"",
                  "\"A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
    assert_spells("\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"",
                  "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
    assert_spells("\"\\u0001\\u001f\\u0022\\u005c\"", "\"\\u0001\\u001f\\\"\\\\\"");
    assert_spells("\"\\uFFFF\\uD800\\uDC00\\uDBFF\\uDFFF\"",
                  "\"\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\"");
    assert_spells("\"\x7f\"", "\"\x7f\"");
}

static void malformed_values_are_refused(void **state)
{
    static const char *const cases[][2] = {
        {"", "empty"},
        {" \n", "empty"},
        {"{", "ends too early"},
        {"[1", "ends too early"},
        {"\"a", "ends too early"},
        {"tru", "a word other than true, false and null"},
        {"nulls", "a word other than"},
        {"NaN", "a value was expected, not 'N'"},
        {"[Infinity]", "a value was expected, not 'I'"},
        {"[-Infinity]", "a digit was expected, not 'I'"},
        {"/* x */ 1", "a value was expected, not '/'"},
        {"[1] // x", "something follows"},
        {"[1,]", "a value was expected, not ']'"},
        {"[,1]", "a value was expected, not ','"},
        {"{\"a\":1,}", "a key in quotes was expected, not '}'"},
        {"{,}", "a key in quotes"},
        {"{a:1}", "a key in quotes was expected, not 'a'"},
        {"{1:1}", "a key in quotes"},
        {"{\"a\" 1}", "':' was expected, not '1'"},
        {"{\"a\":}", "a value was expected"},
        {"{\"a\":1 \"b\":2}", "',' or '}' was expected"},
        {"[1 2]", "',' or ']' was expected, not '2'"},
        {"[1}", "',' or ']' was expected, not '}'"},
        {"}", "a value was expected"},
        {"1 2", "something follows the value at byte 3"},
        {"{}{}", "something follows"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_refused(cases[i][0], cases[i][1]);
}

static void a_duplicate_key_is_refused(void **state)
{
    assert_refused("{\"a\":1,\"b\":2,\"a\":3}", "key 'a' occurs twice in one object");
    assert_refused("[{\"x\":{\"k\":1,'k':2}}]", "key 'k' occurs twice");
    assert_refused("{\"a\":1,\"\\u0061\":2}", "key 'a' occurs twice");
    assert_refused("{\"\":1,\"\":2}", "key '' occurs twice");
    assert_refused("{\"a\":{\"b\":1},\"a\":{}}", "key 'a' occurs twice");
    assert_spells("{\"a\":\"a\",\"b\":\"b\"}", "{\"a\":\"a\",\"b\":\"b\"}");
    assert_spells("{\"a\\\"\":1,\"a\":\"\\\\\"}", "{\"a\\\"\":1,\"a\":\"\\\\\"}");
}

static void odd_numbers_are_refused(void **state)
{
    static const char *const cases[][2] = {
        {"01", "superfluous 0"},
        {"-01", "superfluous 0"},
        {"[00]", "superfluous 0"},
        {"+1", "a value was expected"},
        {".5", "a value was expected"},
        {"1.", "a digit was expected"},
        {"1.e5", "a digit was expected"},
        {"1e", "a digit was expected"},
        {"1e+", "a digit was expected"},
        {"-", "a digit was expected"},
        {"0x10", "the end of the number was expected, not 'x'"},
        {"1a", "the end of the number was expected"},
        {"1.5.5", "the end of the number was expected"},
        {"18446744073709551616", "the number 18446744073709551616 is out of range"},
        {"-9223372036854775809", "out of range"},
        {"[99999999999999999999999]", "out of range"},
        {"1e999", "out of range"},
        {"-1.0E400", "out of range"},
        {"0.00000000000000000000000000000000000000000000000000000000000000000001",
         "longer than 64"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_refused(cases[i][0], cases[i][1]);
}

static void bad_strings_are_refused(void **state)
{
    static const char *const cases[][2] = {
        {"\"\\x41\"", "no escape in a string begins with \\ and 'x'"},
        {"\"\\u12g4\"", "four hexadecimal digits, not 'g'"},
        {"\"\\u12\"", "four hexadecimal digits"},
        {"\"\\ud800\"", "\\ud800 is half a surrogate pair"},
        {"\"\\ud800x\"", "\\ud800 is half"},
        {"\"\\ud800\\n\"", "\\ud800 is half"},
        {"\"\\ud800\\u0041\"", "\\ud800 is half"},
        {"\"\\ud800\\ud800\"", "\\ud800 is half"},
        {"\"\\udc00\"", "\\udc00 is half"},
        {"\"\\u0000\"", "\\u0000 is not allowed"},
        {"\"\x80\"", "not UTF-8 (0x80)"},
        {"\"\xC0\x80\"", "not UTF-8 (0xc0)"},
        {"\"\xC3\"", "cut-off UTF-8"},
        {"\"\xE2\x82x\"", "cut-off UTF-8"},
        {"\"\xED\xA0\x80\"", "invalid UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "invalid UTF-8"},
        {"\"a\nb\"", "not closed at the end of its line"},
        {"\"a\tb\"", "raw control byte (0x09)"},
        {"\"a\x01\"", "control byte (0x01)"},
        {"\"a\xFF\"", "control byte (0xff)"},
        {"\x02{}", "control byte (0x02)"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_refused(cases[i][0], cases[i][1]);
}

static char *repeat(const char *piece, size_t count, const char *tail)
{
    size_t length = strlen(piece);
    char *text = malloc(length * count + strlen(tail) + 1);

    assert_non_null(text);
    for (size_t i = 0; i < count; i++)
        memcpy(text + i * length, piece, length);
    strcpy(text + length * count, tail);
    return text;
}

static void depth_is_limited(void **state)
{
    char text[2 * JSON_MAX_DEPTH + 3];

    memset(text, '[', JSON_MAX_DEPTH);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    text[2 * JSON_MAX_DEPTH] = '\0';
    assert_spells(text, text);
    memset(text, '[', JSON_MAX_DEPTH + 1);
    memset(text + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
    text[2 * JSON_MAX_DEPTH + 2] = '\0';
    assert_refused(text, "deeper than 128 levels");
}

static void length_is_limited(void **state)
{
    CLEANUP(free_ptr) char *text = repeat("x", JSON_MAX_BYTES, "\"");
    CLEANUP(free_ptr) char *quotes = repeat("\"", JSON_MAX_BYTES - 1, "'");

    text[0] = '"';
    assert_refused(text, "longer than 1048576 bytes");
    strcpy(text + JSON_MAX_BYTES - 1, "\"");
    assert_spells(text, text);
    /* The canonical spelling is longer than this one. */
    quotes[0] = '\'';
    assert_refused(quotes, "longer than 1048576 bytes");
}

static void the_number_of_parts_is_limited(void **state)
{
    CLEANUP(free_ptr) char *fits = repeat("1,", JSON_MAX_VALUES - 2, "1]");
    CLEANUP(free_ptr) char *many = repeat("1,", JSON_MAX_VALUES - 1, "1]");
    CLEANUP(free_ptr) char *fits_text = NULL, *many_text = NULL;

    assert_true(asprintf(&fits_text, "[%s", fits) > 0);
    assert_true(asprintf(&many_text, "[%s", many) > 0);
    assert_spells(fits_text, fits_text);
    assert_refused(many_text, "more than 32768 parts");
}

/* Feeds `text` in pieces and writes down what comes: values as they are, errors as "!". */
static void transcribe(const char *text, size_t length, size_t piece, char *out, size_t out_size)
{
    struct json_reader *reader = json_reader_new();
    FILE *stream = fmemopen(out, out_size, "w");

    assert_non_null(reader);
    assert_non_null(stream);
    for (size_t at = 0; at < length;) {
        size_t now = MIN(piece, length - at), used = 0;
        CLEANUP(json_putp) struct json_object *value = NULL;
        struct err err = ERR_INIT;
        int rc = json_reader_feed(reader, text + at, now, &used, &value, &err);

        assert_true(used <= now);
        assert_true(rc != 0 || used == now);
        assert_int_equal(rc < 0, err_is_set(&err));
        if (rc > 0)
            fprintf(stream, "%s;", json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN));
        if (rc < 0)
            fputc('!', stream);
        at += used;
    }
    if (json_reader_in_value(reader))
        fputs("...", stream);
    fclose(stream);
    json_reader_free(reader);
}

static void a_stream_is_read_the_same_however_it_is_cut(void **state)
{
    static const char *const cases[][2] = {
        {"{'a':1}{\"b\":[2]}3 \"x\"true\nnull ", "{\"a\":1};{\"b\":[2]};3;\"x\";true;null;"},
        {"1[2]", "1;[2];"},
        {"12", "..."},
        {"{\"a\":", "..."},
        {"  \r\n", ""},
        /* After an error the value's own brackets tell where the next begins. */
        {"{\"a\":tru, \"b\":\"}\", \"c\":{}} {\"d\":1}", "!{\"d\":1};"},
        {"[1,] [2]", "![2];"},
        {"{\"a\":1,\"a\":2}[3]", "![3];"},
        {"[01] [2]", "![2];"},
        {"[\"\\q]\"] [2]", "![2];"},
        {"[\"\\ud800\\\"]\"] [2]", "![2];"},
        {"[\"\xC3\"] [2]", "![2];"},
        {"[}[2]", "![2];"},
        /* At depth zero it is the line's end. */
        {"foo {\"a\":1} bar\n{\"b\":2}", "!!{\"b\":2};"},
        {"} ] , :\n1\n", "!1;"},
        {"abc\ndef\n1\n", "!!1;"},
        /* A forgotten quote costs its line. */
        {"{\"a\": \"b}\n{\"c\":1}\n", "!{\"c\":1};"},
        {"{\"a\":x\", \"b}\n{\"c\":1}\n", "!{\"c\":1};"},
        /* A control byte or 0xFF begins anew, silently. */
        {"{\"a\":\xFF{\"b\":2}", "{\"b\":2};"},
        {"{\"a\":\"\x01[2]", "[2];"},
        {"{]\x01[2]", "![2];"},
        {"[x \"\xFF[2]", "![2];"},
        {"1\x01 2 ", "2;"},
        {"\x01\x02\xFF[2]", "[2];"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        for (size_t piece = 1; piece < 50; piece++) {
            char out[300] = "";

            transcribe(cases[i][0], strlen(cases[i][0]), piece, out, sizeof(out));
            if (strcmp(out, cases[i][1]) != 0)
                fail_msg("'%s' in pieces of %zu gave '%s', not '%s'", cases[i][0], piece, out,
                         cases[i][1]);
        }
    }
}

static void a_nul_byte_resets_too(void **state)
{
    char out[100] = "";

    transcribe("[1,\0[2]", 7, 7, out, sizeof(out));
    assert_string_equal(out, "[2];");
}

static void a_whole_text_may_not_hold_a_nul_byte(void **state)
{
    struct err err = ERR_INIT;
    CLEANUP(free_ptr) char *spelled = spell("[1]\0", 4, &err);

    assert_string_equal(spelled, "");
    assert_true(err_is_set(&err));
}

/* An attacker's megabytes cost the reader neither memory nor more than linear time. */
static void endless_garbage_costs_bounded_memory(void **state)
{
    static const char *const pieces[] = {"[", "{\"a\":", "\"\\", "x",         "[1,",       "'",
                                         "9", " ",       "}",    "[\"abc\",", "{\"\":{},", "\\"};

    for (size_t i = 0; i < ARRAY_LEN(pieces); i++) {
        struct json_reader *reader = json_reader_new();
        size_t length = strlen(pieces[i]), errors = 0;
        size_t held = mallinfo2().uordblks + mallinfo2().hblkhd;

        for (size_t fed = 0; fed < 4u * JSON_MAX_BYTES; fed += length) {
            for (size_t at = 0, used = 0; at < length; at += used) {
                struct json_object *value = NULL;
                struct err err = ERR_INIT;

                errors += json_reader_feed(reader, pieces[i] + at, length - at, &used, &value,
                                           &err) < 0;
                json_object_put(value);
            }
        }
        if (mallinfo2().uordblks + mallinfo2().hblkhd > held + JSON_MAX_BYTES + 65536)
            fail_msg("'%s' holds %zu bytes", pieces[i],
                     mallinfo2().uordblks + mallinfo2().hblkhd - held);
        assert_true(errors <= 1);
        json_reader_free(reader);
    }
}

/* The least processor time of three runs over an object of so many keys. */
static double seconds_for_keys(size_t keys)
{
    CLEANUP(free_ptr) char *text = malloc(JSON_MAX_BYTES + 100);
    size_t length = 1;
    double least = 1e9;

    assert_non_null(text);
    text[0] = '{';
    for (size_t i = 0; i < keys; i++)
        length += (size_t)sprintf(text + length, "%s\"common prefix %zu\":1", i > 0 ? "," : "", i);
    text[length++] = '}';
    assert_true(length <= JSON_MAX_BYTES);
    for (int run = 0; run < 3; run++) {
        struct err err = ERR_INIT;
        clock_t begin = clock();
        CLEANUP(free_ptr) char *spelled = spell(text, length, &err);
        double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
        assert_int_equal(strlen(spelled), length);
        least = MIN(least, seconds);
    }
    return least;
}

static void the_search_for_duplicate_keys_is_not_quadratic(void **state)
{
    /* With strict_string_checks each number read costs AddressSanitizer the rest of the text. */
    if (BUILT_WITH_ASAN)
        skip();
    size_t keys = JSON_MAX_VALUES - 1;
    double few = seconds_for_keys(keys / 8), many = seconds_for_keys(keys);

    /* Eight times the keys: eight times the work, or 64 times if it were quadratic. */
    if (many > 32 * few + 0.01)
        fail_msg("%zu keys take %.3f s, an eighth of them %.3f s", keys, many, few);
}

static void a_reader_can_be_dropped_in_any_state(void **state)
{
    static const char text[] = "{\"a\":[1,\"b\\u00e9\",{\"c\":tru}]}";

    for (size_t i = 0; i < sizeof(text); i++) {
        struct json_reader *reader = json_reader_new();
        struct json_object *value = NULL;
        struct err err = ERR_INIT;
        size_t used;

        (void)json_reader_feed(reader, text, i, &used, &value, &err);
        assert_null(value);
        json_reader_free(reader);
    }
    json_reader_free(NULL);
}

static void builders_take_their_value_even_when_they_fail(void **state)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();

    assert_int_equal(json_add_string(object, "text", "a"), 0);
    assert_int_equal(json_add_uint(object, "uint", UINT64_MAX), 0);
    assert_int_equal(json_add_int(object, "int", INT64_MIN), 0);
    assert_int_equal(json_add_bool(object, "truth", true), 0);
    assert_int_equal(json_add(object, "none", NULL), -ENOMEM);
    assert_int_equal(json_add(NULL, "lost", json_object_new_array()), -ENOMEM);
    assert_string_equal(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN),
                        "{\"text\":\"a\",\"uint\":18446744073709551615,"
                        "\"int\":-9223372036854775808,\"truth\":true}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(well_formed_values_are_accepted),
        cmocka_unit_test(single_quotes_are_accepted_as_qemu_does),
        cmocka_unit_test(escapes_and_characters_come_out_right),
        cmocka_unit_test(malformed_values_are_refused),
        cmocka_unit_test(a_duplicate_key_is_refused),
        cmocka_unit_test(odd_numbers_are_refused),
        cmocka_unit_test(bad_strings_are_refused),
        cmocka_unit_test(depth_is_limited),
        cmocka_unit_test(length_is_limited),
        cmocka_unit_test(the_number_of_parts_is_limited),
        cmocka_unit_test(a_stream_is_read_the_same_however_it_is_cut),
        cmocka_unit_test(a_nul_byte_resets_too),
        cmocka_unit_test(a_whole_text_may_not_hold_a_nul_byte),
        cmocka_unit_test(endless_garbage_costs_bounded_memory),
        cmocka_unit_test(the_search_for_duplicate_keys_is_not_quadratic),
        cmocka_unit_test(a_reader_can_be_dropped_in_any_state),
        cmocka_unit_test(builders_take_their_value_even_when_they_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
