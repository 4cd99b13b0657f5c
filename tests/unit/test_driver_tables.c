/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tables of all drivers and object types are sound, and named once. */
#include "unit.h"

#include "drivers/table.h"

#include <string.h>

static void every_table_of_options_is_sound(void **state)
{
    for (const struct driver *const *driver = drivers_table; *driver != NULL; driver++) {
        if ((*driver)->opts == NULL)
            continue;
        assert_true((*driver)->options_size > 0);
        opts_table_check((*driver)->opts);
    }
    for (const struct object_type *const *type = object_types_table; *type != NULL; type++)
        opts_table_check((*type)->opts);
}

static void drivers_are_in_the_order_of_their_names(void **state)
{
    for (size_t i = 1; drivers_table[i] != NULL; i++)
        assert_true(strcmp(drivers_table[i - 1]->name, drivers_table[i]->name) < 0);
}

/* What would be passed by: a filter that changes writes must say what becomes of zeroes. */
static void filters_with_a_write_hook_have_zero_and_discard_too(void **state)
{
    for (const struct driver *const *driver = drivers_table; *driver != NULL; driver++) {
        if (!(*driver)->is_filter || (*driver)->write == NULL)
            continue;
        assert_non_null((*driver)->zero);
        assert_non_null((*driver)->discard);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_table_of_options_is_sound),
        cmocka_unit_test(drivers_are_in_the_order_of_their_names),
        cmocka_unit_test(filters_with_a_write_hook_have_zero_and_discard_too),
    };

    return cmocka_run_group_tests_name("driver tables", tests, NULL, NULL);
}
