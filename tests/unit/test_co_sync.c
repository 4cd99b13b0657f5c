/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What coroutines wait for each other with: who comes first is served first, nobody is forgotten. */
#include "harness.h"

#include <errno.h>
#include <string.h>

#define MEMBERS 20u

/* Spawned at once and in order, so the order of arrival is known on both loops. */
struct member {
    struct crowd *crowd;
    unsigned number;
    int result;
};

struct crowd {
    struct co_mutex mutex;
    struct co_queue queue;
    struct co_gate gate;
    struct co_budget budget;
    struct member members[MEMBERS];
    uint64_t random;
    unsigned arrived, served, inside, inside_peak;
    unsigned order[MEMBERS];
};

static void crowd_init(struct crowd *crowd, uint64_t seed)
{
    memset(crowd, 0, sizeof(*crowd));
    crowd->random = seed;
    co_mutex_init(&crowd->mutex);
    co_queue_init(&crowd->queue);
    co_gate_init(&crowd->gate);
    co_budget_init(&crowd->budget, 100);
}

static void crowd_come(struct crowd *crowd, unsigned count, co_entry *entry)
{
    for (unsigned i = 0; i < count; i++) {
        struct member *member = &crowd->members[crowd->arrived];
        *member = (struct member){.crowd = crowd, .number = crowd->arrived++};
        assert_int_equal(co_spawn_now(loop_current(), "member", entry, member), 0);
    }
}

static void crowd_pause(struct crowd *crowd) MAY_WAIT;
static void crowd_pause(struct crowd *crowd)
{
    if (test_random(&crowd->random) % 2 == 0)
        co_yield();
    else
        co_sleep(test_random(&crowd->random) % (50 * NS_PER_US));
}

static void assert_served_in_order(const struct crowd *crowd)
{
    assert_int_equal(crowd->served, crowd->arrived);
    for (unsigned i = 0; i < crowd->served; i++)
        assert_int_equal(crowd->order[i], i);
}

static void lock_mutex(void *arg) MAY_WAIT;
static void lock_mutex(void *arg)
{
    struct member *member = arg;
    struct crowd *crowd = member->crowd;

    co_mutex_lock(&crowd->mutex);
    crowd->order[crowd->served++] = member->number;
    assert_int_equal(++crowd->inside, 1);
    crowd_pause(crowd);
    crowd->inside--;
    co_mutex_unlock(&crowd->mutex);
}

TEST_LOOP(a_mutex_admits_one_at_a_time_in_the_order_of_arrival)
{
    struct crowd crowd;

    crowd_init(&crowd, test_seed(__func__));
    crowd_come(&crowd, MEMBERS, lock_mutex);
    test_wait_until(crowd.served == MEMBERS && crowd.inside == 0);
    assert_served_in_order(&crowd);
    assert_null(crowd.mutex.owner);
}

static void lock_again(void *arg) MAY_WAIT;
static void lock_again(void *arg)
{
    struct member *member = arg;
    struct crowd *crowd = member->crowd;

    for (int i = 0; i < 5; i++) {
        co_mutex_lock(&crowd->mutex);
        crowd->order[member->number]++;
        unsigned most = 0, least = UINT32_MAX;
        for (unsigned m = 0; m < MEMBERS; m++) {
            most = MAX(most, crowd->order[m]);
            least = MIN(least, crowd->order[m]);
        }
        crowd_pause(crowd);
        co_mutex_unlock(&crowd->mutex);
        /* Who has just had it and comes again at once stands behind all others. */
        assert_true(i == 4 || most - least <= 1);
    }
    crowd->served++;
}

TEST_LOOP(who_unlocks_a_mutex_cannot_overtake_who_waits_for_it)
{
    struct crowd crowd;

    crowd_init(&crowd, test_seed(__func__));
    crowd_come(&crowd, MEMBERS, lock_again);
    test_wait_until(crowd.served == MEMBERS);
}

static void wait_in_queue(void *arg) MAY_WAIT;
static void wait_in_queue(void *arg)
{
    struct member *member = arg;

    co_queue_wait(&member->crowd->queue);
    member->crowd->order[member->crowd->served++] = member->number;
}

TEST_LOOP(a_queue_wakes_one_by_one_or_all)
{
    struct crowd crowd;

    crowd_init(&crowd, test_seed(__func__));
    assert_false(co_queue_wake_one(&crowd.queue));
    crowd_come(&crowd, MEMBERS, wait_in_queue);
    for (unsigned i = 0; i < 5; i++) {
        assert_true(co_queue_wake_one(&crowd.queue));
        test_wait_until(crowd.served == i + 1);
        assert_int_equal(crowd.order[i], i);
    }
    co_sleep(NS_PER_MS);
    assert_int_equal(crowd.served, 5);
    co_queue_wake_all(&crowd.queue);
    assert_true(co_queue_empty(&crowd.queue));
    test_wait_until(crowd.served == MEMBERS);
}

static void wait_until_deadline(void *arg) MAY_WAIT;
static void wait_until_deadline(void *arg)
{
    struct member *member = arg;
    struct loop *loop = loop_current();
    /* The even ones are patient. */
    uint64_t wait_ns = member->number % 2 == 0 ? NS_PER_S : NS_PER_MS;
    uint64_t deadline_ns = loop_clock_ns(loop) + wait_ns;

    member->result = co_queue_wait_until(&member->crowd->queue, deadline_ns);
    if (member->result == -ETIMEDOUT)
        assert_true(loop_clock_ns(loop) >= deadline_ns);
    member->crowd->served++;
}

TEST_LOOP(who_leaves_a_queue_at_the_deadline_takes_no_wake)
{
    struct crowd crowd;

    crowd_init(&crowd, test_seed(__func__));
    crowd_come(&crowd, MEMBERS, wait_until_deadline);
    test_wait_until(crowd.served == MEMBERS / 2);
    for (unsigned i = 0; i < MEMBERS / 2; i++)
        assert_true(co_queue_wake_one(&crowd.queue));
    assert_false(co_queue_wake_one(&crowd.queue));
    test_wait_until(crowd.served == MEMBERS);
    for (unsigned i = 0; i < MEMBERS; i++)
        assert_int_equal(crowd.members[i].result, i % 2 == 0 ? 0 : -ETIMEDOUT);
}

static void pass_gate(void *arg) MAY_WAIT;
static void pass_gate(void *arg)
{
    struct crowd *crowd = ((struct member *)arg)->crowd;

    co_gate_enter(&crowd->gate);
    assert_int_equal(crowd->gate.closed, 0);
    crowd->inside++;
    crowd_pause(crowd);
    crowd->inside--;
    crowd->served++;
    co_gate_leave(&crowd->gate);
}

TEST_LOOP(a_gate_closed_twice_holds_who_comes_until_opened_twice)
{
    struct crowd crowd;

    crowd_init(&crowd, test_seed(__func__));
    co_gate_close(&crowd.gate);
    co_gate_close(&crowd.gate);
    crowd_come(&crowd, MEMBERS, pass_gate);
    co_gate_open(&crowd.gate);
    co_sleep(NS_PER_MS);
    assert_int_equal(crowd.served + crowd.inside, 0);
    co_gate_open(&crowd.gate);
    test_wait_until(crowd.served == MEMBERS);
    co_gate_wait_empty(&crowd.gate);
}

TEST_LOOP(a_closed_gate_is_empty_once_all_inside_have_left)
{
    struct crowd crowd;
    unsigned rounds = 0;

    crowd_init(&crowd, test_seed(__func__));
    while (crowd.arrived < MEMBERS) {
        crowd_come(&crowd, 1 + test_random(&crowd.random) % (MEMBERS - crowd.arrived), pass_gate);
        co_gate_close(&crowd.gate);
        co_gate_wait_empty(&crowd.gate);
        assert_int_equal(crowd.gate.inside, 0);
        assert_int_equal(crowd.inside, 0);
        co_yield();
        assert_int_equal(crowd.inside, 0);
        co_gate_open(&crowd.gate);
        rounds++;
    }
    test_wait_until(crowd.served == MEMBERS);
    assert_true(rounds > 0);
}

struct group_member {
    struct co_group *group;
    uint64_t sleep_ns;
    int result;
    bool ended;
};

static void group_work(void *arg) MAY_WAIT;
static void group_work(void *arg)
{
    struct group_member *member = arg;

    co_sleep(member->sleep_ns);
    co_group_report(member->group, member->result);
    member->ended = true;
    co_group_leave(member->group);
}

TEST_LOOP(a_group_waits_for_all_and_tells_the_first_error)
{
    struct group_member members[] = {
        {.sleep_ns = 3 * NS_PER_MS, .result = -EIO},
        {.sleep_ns = 1 * NS_PER_MS, .result = 5},
        {.sleep_ns = 2 * NS_PER_MS, .result = -ENOSPC},
        {.sleep_ns = 4 * NS_PER_MS},
    };
    struct co_group group;

    co_group_init(&group);
    assert_int_equal(co_group_wait(&group), 0); /* nobody: nothing to wait for */
    for (unsigned i = 0; i < ARRAY_LEN(members); i++) {
        members[i].group = &group;
        co_group_enter(&group);
        assert_int_equal(co_spawn(loop_current(), "work", group_work, &members[i]), 0);
    }
    assert_int_equal(co_group_wait(&group), -ENOSPC);
    for (unsigned i = 0; i < ARRAY_LEN(members); i++)
        assert_true(members[i].ended);
}

/* --- range locks against a model --- */

#define LOCKERS       16u
#define LOCKER_ROUNDS 60u
#define RANGE_LIMIT   64u

struct wish {
    uint64_t ticket; /* 0: none */
    uint64_t offset, length;
    bool exclusive;
};

struct lock_world {
    struct range_locks locks;
    struct wish wishes[LOCKERS]; /* waiting or held */
    struct co_group group;
    uint64_t random, tickets;
    unsigned shared_together, tries_refused, tries_granted;
};

struct locker {
    struct lock_world *world;
    unsigned number;
};

static bool wishes_conflict(const struct wish *a, const struct wish *b)
{
    return a->ticket != 0 && b->ticket != 0 && (a->exclusive || b->exclusive) &&
           a->offset < b->offset + b->length && b->offset < a->offset + a->length;
}

/* Nobody who came earlier and conflicts is still there, waiting or holding. */
static bool may_hold(const struct lock_world *world, unsigned number)
{
    for (unsigned i = 0; i < LOCKERS; i++) {
        if (i != number && world->wishes[i].ticket < world->wishes[number].ticket &&
            wishes_conflict(&world->wishes[i], &world->wishes[number]))
            return false;
    }
    return true;
}

static void hold_range(struct lock_world *world, unsigned number) MAY_WAIT;
static void hold_range(struct lock_world *world, unsigned number)
{
    struct wish *mine = &world->wishes[number];

    assert_true(may_hold(world, number));
    for (unsigned i = 0; i < LOCKERS; i++)
        world->shared_together += i != number && !mine->exclusive && world->wishes[i].ticket != 0 &&
                                  world->wishes[i].ticket < mine->ticket &&
                                  world->wishes[i].offset == mine->offset;
    uint64_t dice = test_random(&world->random) % 3;
    if (dice == 0)
        co_sleep(test_random(&world->random) % (20 * NS_PER_US));
    else if (dice == 1)
        co_yield();
    assert_true(may_hold(world, number));
}

static void lock_ranges(void *arg) MAY_WAIT;
static void lock_ranges(void *arg)
{
    struct locker *locker = arg;
    struct lock_world *world = locker->world;
    struct wish *mine = &world->wishes[locker->number];

    for (unsigned round = 0; round < LOCKER_ROUNDS; round++) {
        struct range_lock lock;
        *mine = (struct wish){
            .ticket = ++world->tickets,
            .offset = test_random(&world->random) % RANGE_LIMIT,
            .length = 1 + test_random(&world->random) % 16,
            .exclusive = test_random(&world->random) % 3 == 0,
        };
        if (test_random(&world->random) % 4 == 0) {
            bool granted = range_lock_try(&world->locks, &lock, mine->offset, mine->length,
                                          mine->exclusive);
            assert_int_equal(granted, may_hold(world, locker->number));
            world->tries_granted += granted;
            world->tries_refused += !granted;
            if (!granted) {
                mine->ticket = 0;
                co_yield();
                continue;
            }
        } else {
            range_lock_acquire(&world->locks, &lock, mine->offset, mine->length, mine->exclusive);
        }
        hold_range(world, locker->number);
        mine->ticket = 0;
        range_lock_release(&world->locks, &lock);
    }
    co_group_leave(&world->group);
}

TEST_LOOP(overlapping_ranges_are_locked_in_the_order_of_arrival)
{
    struct lock_world world = {.random = test_seed(__func__)};
    struct locker lockers[LOCKERS];

    range_locks_init(&world.locks);
    co_group_init(&world.group);
    for (unsigned i = 0; i < LOCKERS; i++) {
        lockers[i] = (struct locker){&world, i};
        co_group_enter(&world.group);
        assert_int_equal(co_spawn(loop_current(), "locker", lock_ranges, &lockers[i]), 0);
    }
    assert_int_equal(co_group_wait(&world.group), 0);
    assert_int_equal(world.locks.count, 0);
    assert_true(list_empty(&world.locks.held));
    assert_true(world.tries_granted > 0);
    assert_true(world.tries_refused > 0);
    assert_true(world.shared_together > 0);
}

TEST_LOOP(shared_ranges_are_held_together_and_an_exclusive_one_alone)
{
    struct range_locks locks;
    struct range_lock a, b, c;

    range_locks_init(&locks);
    assert_true(range_lock_try(&locks, &a, 0, 10, false));
    assert_true(range_lock_try(&locks, &b, 5, 10, false));
    assert_false(range_lock_try(&locks, &c, 9, 1, true));
    assert_true(range_lock_try(&locks, &c, 15, 1, true)); /* touches, does not overlap */
    range_lock_release(&locks, &c);
    range_lock_release(&locks, &a);
    assert_false(range_lock_try(&locks, &c, 9, 1, true));
    range_lock_release(&locks, &b);
    assert_true(range_lock_try(&locks, &c, 9, 1, true));
    assert_false(range_lock_try(&locks, &a, 0, 10, false));
    range_lock_release(&locks, &c);
    assert_int_equal(locks.count, 0);
}

/* --- budget --- */

static void spend(void *arg) MAY_WAIT;
static void spend(void *arg)
{
    struct member *member = arg;
    struct crowd *crowd = member->crowd;
    uint64_t units = 1 + test_random(&crowd->random) % 100;

    co_budget_take(&crowd->budget, units);
    crowd->order[crowd->served++] = member->number;
    crowd->inside += units;
    assert_true(crowd->inside <= 100);
    assert_true(crowd->budget.used <= 100);
    crowd->inside_peak = MAX(crowd->inside_peak, crowd->inside);
    crowd_pause(crowd);
    crowd->inside -= units;
    co_budget_give(&crowd->budget, units);
}

TEST_LOOP(a_budget_is_never_overdrawn)
{
    struct crowd crowd;

    crowd_init(&crowd, test_seed(__func__));
    crowd_come(&crowd, MEMBERS, spend);
    test_wait_until(crowd.served == MEMBERS && crowd.inside == 0);
    assert_int_equal(crowd.budget.used, 0);
    assert_true(crowd.inside_peak > 0);
}

static void spend_by_size(void *arg) MAY_WAIT;
static void spend_by_size(void *arg)
{
    struct member *member = arg;
    struct crowd *crowd = member->crowd;
    uint64_t units = member->number == 0 ? 60 : member->number == 1 ? 90 : 1;

    co_budget_take(&crowd->budget, units);
    crowd->served++;
    if (member->number == 0)
        co_sleep(NS_PER_MS);
    co_budget_give(&crowd->budget, units);
    if (member->number == 0) /* the large one has its share now, before any small one */
        assert_true(crowd->budget.used >= 90);
    crowd->inside++;
}

TEST_LOOP(small_requests_do_not_overtake_a_large_one_for_ever)
{
    struct crowd crowd;

    crowd_init(&crowd, 0);
    crowd_come(&crowd, MEMBERS, spend_by_size);
    assert_int_equal(crowd.served, 1); /* 40 units are left, but a large one is first */
    assert_false(co_budget_try(&crowd.budget, 1));
    test_wait_until(crowd.inside == MEMBERS);
    assert_true(co_budget_try(&crowd.budget, 100));
    co_budget_give(&crowd.budget, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mutex_admits_one_at_a_time_in_the_order_of_arrival),
        cmocka_unit_test(who_unlocks_a_mutex_cannot_overtake_who_waits_for_it),
        cmocka_unit_test(a_queue_wakes_one_by_one_or_all),
        cmocka_unit_test(who_leaves_a_queue_at_the_deadline_takes_no_wake),
        cmocka_unit_test(a_gate_closed_twice_holds_who_comes_until_opened_twice),
        cmocka_unit_test(a_closed_gate_is_empty_once_all_inside_have_left),
        cmocka_unit_test(a_group_waits_for_all_and_tells_the_first_error),
        cmocka_unit_test(overlapping_ranges_are_locked_in_the_order_of_arrival),
        cmocka_unit_test(shared_ranges_are_held_together_and_an_exclusive_one_alone),
        cmocka_unit_test(a_budget_is_never_overdrawn),
        cmocka_unit_test(small_requests_do_not_overtake_a_large_one_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
