/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Lists, and the small things of defs.h. */
#include "unit.h"

#include "base/list.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

struct item {
    char name;
    struct list_link link;
};

static void fill(struct list *list, struct item *items, size_t count)
{
    list_init(list);
    for (size_t i = 0; i < count; i++) {
        items[i] = (struct item){.name = (char)('a' + i)};
        list_push_back(list, &items[i].link);
    }
}

static void assert_spells(struct list *list, const char *expected)
{
    char text[32] = "";
    size_t length = 0;

    LIST_FOR_EACH(item, list, struct item, link)
        text[length++] = item->name;
    assert_string_equal(text, expected);
    /* Backwards as well, so that both directions are known to be whole. */
    for (struct list_link *link = list->head.prev; link != &list->head; link = link->prev)
        assert_int_equal(LIST_ENTRY(link, struct item, link)->name, text[--length]);
    assert_int_equal(length, 0);
}

static void entries_come_in_the_order_they_were_pushed(void **state)
{
    struct item items[3], first = {.name = 'x'};
    struct list list;

    fill(&list, items, 3);
    list_push_front(&list, &first.link);
    assert_spells(&list, "xabc");
    assert_ptr_equal(list_first(&list), &first.link);
}

static void an_empty_list_has_no_first_entry(void **state)
{
    struct list list = LIST_INIT(list);

    assert_true(list_empty(&list));
    assert_null(list_first(&list));
    assert_null(LIST_POP_FRONT(&list, struct item, link));
    assert_spells(&list, "");
}

static void a_removed_link_can_be_told_and_added_again(void **state)
{
    struct item items[3], never = {.name = 'n'};
    struct list list;

    fill(&list, items, 3);
    assert_true(list_linked(&items[1].link));
    list_remove(&items[1].link);
    list_remove(&items[1].link);
    list_remove(&never.link);
    assert_false(list_linked(&items[1].link));
    assert_false(list_linked(&never.link));
    assert_spells(&list, "ac");
    list_push_back(&list, &items[1].link);
    assert_spells(&list, "acb");
}

static void entries_may_be_removed_while_walking_safely(void **state)
{
    struct item items[5];
    struct list list;

    fill(&list, items, 5);
    LIST_FOR_EACH_SAFE(item, &list, struct item, link) {
        if (item->name != 'c')
            list_remove(&item->link);
    }
    assert_spells(&list, "c");
}

static void popping_empties_a_list_from_the_front(void **state)
{
    struct item items[2], *popped;
    struct list list;

    fill(&list, items, 2);
    popped = LIST_POP_FRONT(&list, struct item, link);
    assert_int_equal(popped->name, 'a');
    assert_false(list_linked(&popped->link));
    popped = LIST_POP_FRONT(&list, struct item, link);
    assert_int_equal(popped->name, 'b');
    assert_true(list_empty(&list));
}

static void splicing_moves_all_entries_to_the_end(void **state)
{
    struct item left[2], right[2];
    struct list to, from;

    fill(&to, left, 2);
    fill(&from, right, 2);
    right[0].name = 'x';
    right[1].name = 'y';
    list_splice_back(&to, &from);
    assert_spells(&to, "abxy");
    assert_true(list_empty(&from));
    list_splice_back(&to, &from);
    assert_spells(&to, "abxy");
    list_splice_back(&from, &to);
    assert_spells(&from, "abxy");
    assert_spells(&to, "");
}

static void ranges_know_their_limits(void **state)
{
    assert_true(range_fits(0, 10, 10));
    assert_true(range_fits(10, 0, 10));
    assert_false(range_fits(1, 10, 10));
    assert_false(range_fits(11, 0, 10));
    assert_false(range_fits(UINT64_MAX, 2, 10));
    assert_false(range_fits(2, UINT64_MAX, 10));
}

static void ranges_overlap_when_they_share_a_byte(void **state)
{
    assert_true(ranges_overlap(0, 10, 9, 1));
    assert_true(ranges_overlap(9, 1, 0, 10));
    assert_true(ranges_overlap(5, 1, 5, 1));
    assert_true(ranges_overlap(0, 10, 3, 2));
    assert_false(ranges_overlap(0, 10, 10, 1));
    assert_false(ranges_overlap(10, 1, 0, 10));
    assert_false(ranges_overlap(0, 10, 5, 0));
    assert_false(ranges_overlap(5, 0, 5, 0));
    assert_true(ranges_overlap(UINT64_MAX - 1, 1, 0, UINT64_MAX));
    assert_false(ranges_overlap(UINT64_MAX, 1, 0, UINT64_MAX));
}

static void alignment_rounds_to_powers_of_two(void **state)
{
    assert_int_equal(align_down(4097, 4096), 4096);
    assert_int_equal(align_up(4097, 4096), 8192);
    assert_int_equal(align_up(4096, 4096), 4096);
    assert_true(is_power_of_two(1) && is_power_of_two((uint64_t)1 << 63));
    assert_false(is_power_of_two(0) || is_power_of_two(3));
}

static void a_descriptor_is_closed_at_the_end_of_its_scope(void **state)
{
    int kept = -1, closed = -1;

    {
        CLEANUP(fd_close) int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        CLEANUP(fd_close) int taken = open("/dev/null", O_RDONLY | O_CLOEXEC);

        closed = fd;
        kept = TAKE_FD(taken);
        assert_int_equal(taken, -1);
        errno = EXDEV;
    }
    assert_int_equal(errno, EXDEV);
    assert_int_equal(fcntl(closed, F_GETFD), -1);
    assert_int_not_equal(fcntl(kept, F_GETFD), -1);
    fd_close(&kept);
    assert_int_equal(kept, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entries_come_in_the_order_they_were_pushed),
        cmocka_unit_test(an_empty_list_has_no_first_entry),
        cmocka_unit_test(a_removed_link_can_be_told_and_added_again),
        cmocka_unit_test(entries_may_be_removed_while_walking_safely),
        cmocka_unit_test(popping_empties_a_list_from_the_front),
        cmocka_unit_test(splicing_moves_all_entries_to_the_end),
        cmocka_unit_test(ranges_know_their_limits),
        cmocka_unit_test(ranges_overlap_when_they_share_a_byte),
        cmocka_unit_test(alignment_rounds_to_powers_of_two),
        cmocka_unit_test(a_descriptor_is_closed_at_the_end_of_its_scope),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
