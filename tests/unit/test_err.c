/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "unit.h"

#include "base/err.h"
#include "base/text.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <time.h>

static void a_set_error_returns_its_code_and_keeps_its_text(void **state)
{
    struct err err = ERR_INIT;

    assert_false(err_is_set(&err));
    assert_int_equal(err_set(&err, -EINVAL, "size %d is odd", 7), -EINVAL);
    assert_true(err_is_set(&err));
    assert_int_equal(err.code, -EINVAL);
    assert_int_equal(err.kind, ERR_GENERIC);
    assert_string_equal(err.text, "size 7 is odd");
}

static void setting_again_replaces_the_text_and_the_kind(void **state)
{
    struct err err = ERR_INIT;

    assert_int_equal(err_set_kind(&err, ERR_DEVICE_NOT_FOUND, -ENODEV, "no node '%s'", "a"),
                     -ENODEV);
    assert_int_equal(err.kind, ERR_DEVICE_NOT_FOUND);
    err_set(&err, -EIO, "b");
    assert_int_equal(err.kind, ERR_GENERIC);
    assert_string_equal(err.text, "b");
}

static void an_errno_is_explained(void **state)
{
    struct err err = ERR_INIT;

    assert_int_equal(err_set_errno(&err, -ENOENT, "cannot open '%s'", "x"), -ENOENT);
    assert_string_equal(err.text, "cannot open 'x': No such file or directory");
    err_set_errno(&err, -999, "odd");
    assert_string_equal(err.text, "odd: unknown error 999");
}

static void a_prefix_keeps_code_and_kind(void **state)
{
    struct err err = ERR_INIT;

    err_set_kind(&err, ERR_DEVICE_NOT_FOUND, -ENODEV, "gone");
    assert_int_equal(err_prefix(&err, "node '%s'", "d0"), -ENODEV);
    assert_string_equal(err.text, "node 'd0': gone");
    assert_int_equal(err.kind, ERR_DEVICE_NOT_FOUND);
}

static void an_error_may_quote_itself(void **state)
{
    struct err err = ERR_INIT;

    err_set(&err, -EIO, "inner");
    err_set(&err, -EPERM, "outer (%s)", err.text);
    assert_string_equal(err.text, "outer (inner)");
}

static void a_long_text_is_cut_with_dots_between_characters(void **state)
{
    struct err err = ERR_INIT;
    char text[4000];

    for (size_t i = 0; i + 2 < sizeof(text); i += 2)
        memcpy(text + i, "\xC3\xA9", 3);
    for (int shift = 0; shift < 3; shift++) {
        size_t length;

        err_set(&err, -EIO, "%.*s%s", shift, "abc", text);
        length = strlen(err.text);
        assert_in_range(length, ERR_TEXT_BYTES - 3, ERR_TEXT_BYTES - 1);
        assert_string_equal(err.text + length - 3, "...");
        for (size_t i = 0; i < length;) {
            size_t step = text_utf8_length(err.text + i, length - i);

            assert_int_not_equal(step, 0);
            i += step;
        }
    }
}

static void a_text_that_just_fits_is_not_cut(void **state)
{
    struct err err = ERR_INIT;
    char text[ERR_TEXT_BYTES + 1];

    memset(text, 'x', sizeof(text));
    text[ERR_TEXT_BYTES - 1] = '\0';
    err_set(&err, -EIO, "%s", text);
    assert_string_equal(err.text, text);
    text[ERR_TEXT_BYTES - 1] = 'x';
    text[ERR_TEXT_BYTES] = '\0';
    err_set(&err, -EIO, "%s", text);
    assert_string_equal(err.text + ERR_TEXT_BYTES - 6, "xx...");
}

static void control_bytes_and_broken_utf8_are_escaped(void **state)
{
    struct err err = ERR_INIT;

    err_set(&err, -EIO, "a\nb\tc\x1b[0m\x7f \xC3\xA9 \xC3 \xED\xA0\x80 \xF4\x90\x80\x80");
    assert_string_equal(err.text, "a\\nb\\tc\\x1b[0m\\x7f \xC3\xA9 \\xc3 \\xed\\xa0\\x80 "
                                  "\\xf4\\x90\\x80\\x80");
}

static void utf8_lengths_follow_the_standard(void **state)
{
    static const struct {
        const char *bytes;
        size_t limit, length;
    } cases[] = {
        {"a", 1, 1},
        {"a", 0, 0},
        {"\x80", 1, 0},
        {"\xC0\x80", 2, 0},
        {"\xC1\xBF", 2, 0},
        {"\xC2\x80", 2, 2},
        {"\xC2\x80", 1, 0},
        {"\xC2\x41", 2, 0},
        {"\xE0\x9F\xBF", 3, 0},
        {"\xE0\xA0\x80", 3, 3},
        {"\xED\x9F\xBF", 3, 3},
        {"\xED\xA0\x80", 3, 0},
        {"\xEF\xBF\xBF", 3, 3},
        {"\xF0\x8F\xBF\xBF", 4, 0},
        {"\xF0\x90\x80\x80", 4, 4},
        {"\xF4\x8F\xBF\xBF", 4, 4},
        {"\xF4\x90\x80\x80", 4, 0},
        {"\xF5\x80\x80\x80", 4, 0},
        {"\xFF", 1, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        assert_int_equal(text_utf8_length(cases[i].bytes, cases[i].limit), cases[i].length);
}

static void errno_names_take_either_sign(void **state)
{
    assert_string_equal(err_errno_name(EIO), "EIO");
    assert_string_equal(err_errno_name(-EIO), "EIO");
    assert_string_equal(err_errno_name(-999), "errno 999");
    assert_string_equal(err_errno_name(INT_MIN), "errno 2147483648");
}

static void a_cleared_error_is_not_set(void **state)
{
    struct err err = ERR_INIT;

    assert_int_equal(err_no_memory(&err), -ENOMEM);
    assert_string_equal(err.text, "out of memory");
    err_clear(&err);
    assert_false(err_is_set(&err));
    assert_string_equal(err.text, "");
}

static void a_time_is_shown_as_the_calendar_has_it(void **state)
{
    (void)state;
    char shown[TEXT_UTC_BYTES], wanted[TEXT_UTC_BYTES];

    /* At all hours, about once a day, until 2500. */
    for (time_t seconds = 0; seconds < INT64_C(16725225600); seconds += 3607 * 23) {
        struct tm tm;

        assert_non_null(gmtime_r(&seconds, &tm));
        strftime(wanted, sizeof(wanted), "%Y-%m-%d %H:%M:%S UTC", &tm);
        assert_string_equal(text_utc((uint64_t)seconds, shown), wanted);
    }
    assert_true(strlen(text_utc(UINT64_MAX, shown)) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_set_error_returns_its_code_and_keeps_its_text),
        cmocka_unit_test(setting_again_replaces_the_text_and_the_kind),
        cmocka_unit_test(an_errno_is_explained),
        cmocka_unit_test(a_prefix_keeps_code_and_kind),
        cmocka_unit_test(an_error_may_quote_itself),
        cmocka_unit_test(a_long_text_is_cut_with_dots_between_characters),
        cmocka_unit_test(a_text_that_just_fits_is_not_cut),
        cmocka_unit_test(control_bytes_and_broken_utf8_are_escaped),
        cmocka_unit_test(utf8_lengths_follow_the_standard),
        cmocka_unit_test(errno_names_take_either_sign),
        cmocka_unit_test(a_cleared_error_is_not_set),
        cmocka_unit_test(a_time_is_shown_as_the_calendar_has_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
