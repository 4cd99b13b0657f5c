/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a power cut leaves in the simulator, and what bad disks do. */
#include "sim_fixture.h"

#include <errno.h>

#define SEEDS 200u
#define UNITS 16u /* of the file that most tests write */

/* One test's world: a host that is cut off by `before`, and looked at by `after` when it is back. */
struct cut {
    struct sim *sim;
    uint64_t seed;
    uint8_t units[UNITS]; /* the first byte of each, as found */
    uint64_t length_bytes;
    bool exists[4];
    char boot_id[2][64];
    unsigned number;
    struct co_queue death;
};

static void write_units(struct file *file, unsigned first, unsigned count, uint8_t value) MAY_WAIT;
static void write_units(struct file *file, unsigned first, unsigned count, uint8_t value)
{
    uint8_t bytes[UNITS * SIM_UNIT_BYTES];

    memset(bytes, value, sizeof(bytes));
    assert_int_equal(
        file_write(file, bytes, (size_t)count * SIM_UNIT_BYTES, (uint64_t)first * SIM_UNIT_BYTES),
        0);
}

static void wake_the_dead(void *arg)
{
    co_queue_wake_all(arg);
}

/* Until nothing happens any more; then the power goes. */
static void run_until_dead(struct loop *loop, const char *name, co_entry *entry, struct cut *cut,
                           void *arg)
{
    co_queue_init(&cut->death);
    sim_process_on_death(loop, wake_the_dead, &cut->death);
    assert_int_equal(co_spawn(loop, name, entry, arg), 0);
    while (sim_step(cut->sim))
        ;
    assert_int_equal(sim_host_power_cut(cut->sim, "a"), 0);
    assert_false(sim_host_is_up(cut->sim, "a"));
    sim_bury(cut->sim);
    assert_true(sim_process_is_gone(loop));
    loop_free(loop);
}

static void look_at_units(void *arg) MAY_WAIT;
static void look_at_units(void *arg)
{
    struct cut *cut = arg;
    struct file *file = open_file("/disk");
    uint8_t bytes[SIM_UNIT_BYTES];

    cut->length_bytes = file_info(file)->length_bytes;
    for (unsigned i = 0; i < UNITS; i++) {
        memset(bytes, 0, sizeof(bytes));
        assert_true(file_read(file, bytes, sizeof(bytes), (uint64_t)i * SIM_UNIT_BYTES) >= 0);
        cut->units[i] = bytes[0];
        uint64_t end = cut->length_bytes - MIN(cut->length_bytes, (uint64_t)i * SIM_UNIT_BYTES);
        for (size_t at = 1; at < MIN(sizeof(bytes), end); at++)
            assert_int_equal(bytes[at], bytes[0]); /* whole or not at all */
    }
    file_close(file);
    loop_stop(loop_current());
}

static void cut_and_look_as(struct cut *cut, co_entry *before, co_entry *after, void *arg)
{
    run_until_dead(new_host(cut->sim, "a"), "before", before, cut, arg);
    struct loop *loop = new_host(cut->sim, "a");
    assert_true(sim_host_is_up(cut->sim, "a"));
    run_on(loop, "after", after, arg);
    loop_free(loop);
}

static void cut_and_look(struct cut *cut, co_entry *before, co_entry *after)
{
    cut_and_look_as(cut, before, after, cut);
}

static void close_when_dead(struct cut *cut, struct file *file) MAY_WAIT;
static void close_when_dead(struct cut *cut, struct file *file)
{
    while (!sim_process_is_dead(loop_current()))
        co_queue_wait(&cut->death);
    file_close(file);
}

static void write_some_and_sync_some(void *arg) MAY_WAIT;
static void write_some_and_sync_some(void *arg)
{
    struct cut *cut = arg;
    struct file *file = open_file("/disk");

    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    write_units(file, 4, 4, 2);
    write_units(file, 8, 4, 2);
    write_units(file, 8, 4, 3);
    write_units(file, 12, 4, 4);
    assert_int_equal(file_punch(file, 14 * SIM_UNIT_BYTES, 2 * SIM_UNIT_BYTES), 0);
    close_when_dead(cut, file);
}

static void each_unit_not_synced_is_old_or_new_or_between_and_synced_ones_stay(void **state UNUSED)
{
    unsigned old = 0, new = 0, between = 0, mixed = 0, all_old = 0, all_new = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cut cut = {.sim = new_plain_world(seed)};
        cut_and_look(&cut, write_some_and_sync_some, look_at_units);
        unsigned olds = 0;
        for (unsigned i = 0; i < UNITS; i++) {
            unsigned value = cut.units[i];
            if (i < 4)
                assert_int_equal(value, 1);
            else if (i < 8)
                assert_in_range(value, 1, 2);
            else if (i < 12)
                assert_in_range(value, 1, 3);
            else if (i < 14)
                assert_true(value == 1 || value == 4);
            else
                assert_true(value == 1 || value == 4 || value == 0);
            olds += i >= 4 && value == 1;
            between += i >= 8 && i < 12 && value == 2;
        }
        assert_int_equal(cut.length_bytes, UNITS * SIM_UNIT_BYTES);
        all_old += olds == 12;
        all_new += olds == 0;
        mixed += olds > 0 && olds < 12;
        old += olds;
        new += 12 - olds;
        sim_free(cut.sim);
    }
    assert_true(old > SEEDS);
    assert_true(new > SEEDS);
    assert_true(between > 0);
    assert_true(all_old > SEEDS / 20);
    assert_true(all_new > SEEDS / 20);
    assert_true(mixed > SEEDS / 20);
}

/* Computed once, as that of test_sim.c. */
static void what_a_cut_of_a_seed_leaves_is_the_same_everywhere(void **state UNUSED)
{
    struct cut cut = {.sim = new_plain_world(42)};

    cut_and_look(&cut, write_some_and_sync_some, look_at_units);
    assert_int_equal(sim_trace_hash(cut.sim), UINT64_C(0x5fbce7f007875e7d));
    sim_free(cut.sim);
}

static void grow_and_shrink(void *arg) MAY_WAIT;
static void grow_and_shrink(void *arg)
{
    struct cut *cut = arg;
    struct file *file = open_file("/disk");

    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    write_units(file, 0, 8, 1);
    assert_int_equal(file_sync(file), 0);
    if (cut->number == 0)
        write_units(file, 8, 8, 2);
    else
        assert_int_equal(file_truncate(file, 2 * SIM_UNIT_BYTES), 0);
    close_when_dead(cut, file);
}

static void a_files_length_is_old_or_new_or_between(void **state UNUSED)
{
    unsigned old = 0, new = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cut cut = {.sim = new_plain_world(seed), .number = seed % 2};
        cut_and_look(&cut, grow_and_shrink, look_at_units);
        uint64_t units = cut.length_bytes / SIM_UNIT_BYTES;
        old += units == 8;
        new += units == (cut.number == 0 ? UNITS : 2);
        assert_in_range(units, cut.number == 0 ? 8 : 2, cut.number == 0 ? UNITS : 8);
        for (unsigned i = 0; i < MIN(units, 8); i++)
            assert_true(cut.units[i] == 1 || (cut.number == 1 && i >= 2 && cut.units[i] == 0));
        for (unsigned i = 8; i < UNITS; i++)
            assert_true(cut.units[i] == 0 || (i < units + 1 && cut.units[i] == 2));
        sim_free(cut.sim);
    }
    assert_true(old > SEEDS / 10);
    assert_true(new > SEEDS / 10);
}

/* --- names --- */

static void make_names(void *arg) MAY_WAIT;
static void make_names(void *arg)
{
    struct cut *cut = arg;
    struct loop *loop = loop_current();

    assert_int_equal(path_make_folder(loop, "/d", 0700), 0);
    assert_int_equal(path_sync_folder(loop, "/"), 0);
    file_close(open_file("/d/0"));
    assert_int_equal(path_sync_folder(loop, "/d"), 0);
    file_close(open_file("/d/1"));
    assert_int_equal(path_rename(loop, "/d/1", "/d/2"), 0);
    assert_int_equal(path_unlink(loop, "/d/0"), 0);
    file_close(open_file("/run/3"));
    if (cut->number == 1)
        assert_int_equal(path_sync_folder(loop, "/d"), 0);
    struct file *file = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(
        file_open(loop, "/proc/sys/kernel/random/boot_id", 0, FILE_AIO_AUTO, &file, &err), 0);
    assert_int_equal(file_read(file, cut->boot_id[0], 63, 0), 37);
    file_close(file);
}

static void look_at_names(void *arg) MAY_WAIT;
static void look_at_names(void *arg)
{
    struct cut *cut = arg;
    struct loop *loop = loop_current();
    static const char *const names[] = {"/d/0", "/d/1", "/d/2", "/run/3"};
    struct file *file = NULL;
    struct err err = ERR_INIT;

    for (unsigned i = 0; i < ARRAY_LEN(names); i++)
        cut->exists[i] = path_exists(loop, names[i]);
    assert_int_equal(
        file_open(loop, "/proc/sys/kernel/random/boot_id", 0, FILE_AIO_AUTO, &file, &err), 0);
    assert_int_equal(file_read(file, cut->boot_id[1], 63, 0), 37);
    file_close(file);
    loop_stop(loop_current());
}

static void changes_of_a_folder_have_happened_up_to_one_of_them(void **state UNUSED)
{
    unsigned seen[4] = {0};

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cut cut = {.sim = new_plain_world(seed), .number = seed % 4 == 0};
        cut_and_look(&cut, make_names, look_at_names);
        const bool *exists = cut.exists;
        assert_false(exists[3]);
        assert_string_not_equal(cut.boot_id[0], cut.boot_id[1]);
        unsigned state_seen = !exists[0] ? 3 : exists[2] ? 2 : exists[1] ? 1 : 0;
        assert_false(exists[1] && exists[2]);
        if (state_seen == 3)
            assert_true(exists[2]);
        if (cut.number == 1)
            assert_int_equal(state_seen, 3);
        else
            seen[state_seen]++;
        sim_free(cut.sim);
    }
    for (unsigned i = 0; i < ARRAY_LEN(seen); i++)
        assert_true(seen[i] > 0);
}

static void replace_a_file(void *arg) MAY_WAIT;
static void replace_a_file(void *arg UNUSED)
{
    struct loop *loop = loop_current();
    struct file *file = open_file("/disk");

    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    file_close(file);
    assert_int_equal(path_sync_folder(loop, "/"), 0);
    file = open_file("/disk.new");
    write_units(file, 0, UNITS, 2);
    assert_int_equal(file_sync(file), 0);
    file_close(file);
    assert_int_equal(path_rename(loop, "/disk.new", "/disk"), 0);
}

static void a_file_replaced_in_the_safe_way_is_the_old_or_the_new_one(void **state UNUSED)
{
    unsigned seen[3] = {0};

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cut cut = {.sim = new_plain_world(seed)};
        cut_and_look(&cut, replace_a_file, look_at_units);
        assert_in_range(cut.units[0], 1, 2);
        for (unsigned i = 1; i < UNITS; i++)
            assert_int_equal(cut.units[i], cut.units[0]);
        seen[cut.units[0]]++;
        sim_free(cut.sim);
    }
    assert_true(seen[1] > SEEDS / 10);
    assert_true(seen[2] > SEEDS / 10);
}

/* --- syncs that fail --- */

static void sync_again_after_a_failure(void *arg) MAY_WAIT;
static void sync_again_after_a_failure(void *arg)
{
    struct cut *cut = arg;
    struct file *file = open_file("/disk");
    const struct sim_fault fault = {.op = SIM_OP_SYNC, .times = 1, .error = -EIO};
    uint8_t byte = 0;

    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    write_units(file, 0, UNITS, 2);
    assert_int_equal(sim_fault_add(cut->sim, "a", &fault), 0);
    assert_int_equal(file_sync(file), -EIO);
    write_units(file, 8, 8, 3);
    assert_int_equal(file_sync(file), 0);
    assert_int_equal(file_read(file, &byte, 1, 0), 1);
    assert_int_equal(byte, 2);
    close_when_dead(cut, file);
}

static void a_sync_that_failed_is_not_made_good_by_the_next(void **state UNUSED)
{
    unsigned lost = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cut cut = {.sim = new_plain_world(seed)};
        cut_and_look(&cut, sync_again_after_a_failure, look_at_units);
        for (unsigned i = 0; i < UNITS; i++) {
            if (i >= 8)
                assert_int_equal(cut.units[i], 3);
            else
                assert_in_range(cut.units[i], 1, 2);
            lost += cut.units[i] == 1;
        }
        sim_free(cut.sim);
    }
    assert_true(lost > SEEDS);
}

/* --- every outcome in turn --- */

static void write_three_units(void *arg) MAY_WAIT;
static void write_three_units(void *arg)
{
    struct cut *cut = arg;
    struct file *file = open_file("/disk");

    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    write_units(file, 1, 1, 2);
    write_units(file, 9, 2, 2);
    close_when_dead(cut, file);
}

static bool choose_by_bits(void *arg, const struct sim_choice_info *info)
{
    struct cut *cut = arg;

    assert_int_equal(info->choice, SIM_CHOICE_UNIT);
    assert_string_equal(info->host, "a");
    assert_string_equal(info->name, "disk");
    bool chosen = (cut->number & 1) != 0;
    cut->number >>= 1;
    return chosen;
}

static void a_chooser_can_go_through_all_outcomes(void **state UNUSED)
{
    for (unsigned outcome = 0; outcome < 8; outcome++) {
        struct cut cut = {.sim = new_plain_world(1), .number = outcome};
        sim_set_chooser(cut.sim, choose_by_bits, &cut);
        cut_and_look(&cut, write_three_units, look_at_units);
        assert_int_equal(cut.number, 0);
        assert_int_equal(cut.units[1], 1 + (outcome & 1));
        assert_int_equal(cut.units[9], 1 + (outcome >> 1 & 1));
        assert_int_equal(cut.units[10], 1 + (outcome >> 2 & 1));
        sim_free(cut.sim);
    }
}

struct asked {
    struct cut cut;
    unsigned count, answers; /* a bit for each question */
};

static bool choose_in_turn(void *arg, const struct sim_choice_info *info UNUSED)
{
    struct asked *asked = arg;
    return (asked->answers >> asked->count++ & 1) != 0;
}

static void write_again_and_again(void *arg) MAY_WAIT;
static void write_again_and_again(void *arg)
{
    struct asked *asked = arg;
    struct file *file = open_file("/disk");

    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    write_units(file, 3, 1, 2);
    write_units(file, 3, 1, 3);
    write_units(file, 5, 1, 2);
    write_units(file, 5, 1, 1); /* as it was at the sync, but for a moment */
    write_units(file, 7, 1, 1); /* as it was */
    close_when_dead(&asked->cut, file);
}

static void look_at_asked(void *arg) MAY_WAIT;
static void look_at_asked(void *arg)
{
    struct asked *asked = arg;
    look_at_units(&asked->cut);
}

static void each_content_since_the_last_sync_can_be_chosen(void **state UNUSED)
{
    unsigned found[4] = {0};

    for (unsigned answers = 0; answers < 16; answers++) {
        struct asked asked = {.cut.sim = new_plain_world(1), .answers = answers};
        sim_set_chooser(asked.cut.sim, choose_in_turn, &asked);
        cut_and_look_as(&asked.cut, write_again_and_again, look_at_asked, &asked);
        assert_in_range(asked.count, 2, 4);
        found[asked.cut.units[3]]++;
        assert_in_range(asked.cut.units[5], 1, 2);
        assert_int_equal(asked.cut.units[7], 1);
        sim_free(asked.cut.sim);
    }
    assert_true(found[1] > 0 && found[2] > 0 && found[3] > 0);
}

static void write_over_all_but_one(void *arg) MAY_WAIT;
static void write_over_all_but_one(void *arg)
{
    struct asked *asked = arg;
    struct file *file = open_file("/disk");

    write_units(file, 0, 1, 3);
    write_units(file, 2, UNITS - 2, 3);
    file_close(file);
    look_at_units(&asked->cut);
}

static void write_all(void *arg) MAY_WAIT;
static void write_all(void *arg)
{
    struct asked *asked = arg;
    struct file *file = open_file("/disk");

    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    write_units(file, 0, UNITS, 2);
    close_when_dead(&asked->cut, file);
}

static void what_nobody_reads_is_not_asked_about(void **state UNUSED)
{
    for (unsigned answers = 0; answers < 2; answers++) {
        struct asked asked = {.cut.sim = new_plain_world(1), .answers = answers};
        sim_set_chooser(asked.cut.sim, choose_in_turn, &asked);
        cut_and_look_as(&asked.cut, write_all, write_over_all_but_one, &asked);
        assert_int_equal(asked.count, 1);
        assert_int_equal(asked.cut.units[0], 3);
        assert_int_equal(asked.cut.units[1], 1 + answers);
        sim_free(asked.cut.sim);
    }
}

static void write_in_flight(void *arg) MAY_WAIT;
static void write_in_flight(void *arg)
{
    struct cut *cut = arg;
    struct file *file = open_file("/disk");
    const struct sim_fault fault = {.op = SIM_OP_WRITE, .stall_ns = SIM_STALL_FOR_EVER};
    uint8_t bytes[UNITS * SIM_UNIT_BYTES];

    write_units(file, 0, UNITS, 1);
    assert_int_equal(file_sync(file), 0);
    assert_int_equal(path_sync_folder(loop_current(), "/"), 0);
    assert_int_equal(sim_fault_add(cut->sim, "a", &fault), 0);
    memset(bytes, 2, sizeof(bytes));
    assert_int_equal(file_write(file, bytes, sizeof(bytes), 0), -EIO);
    file_close(file);
}

static void a_write_under_way_may_have_been_done_in_any_part(void **state UNUSED)
{
    unsigned none = 0, all = 0, some = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cut cut = {.sim = new_plain_world(seed)};
        cut_and_look(&cut, write_in_flight, look_at_units);
        unsigned new = 0;
        for (unsigned i = 0; i < UNITS; i++) {
            assert_in_range(cut.units[i], 1, 2);
            new += cut.units[i] == 2;
        }
        none += new == 0;
        all += new == UNITS;
        some += new > 0 && new < UNITS;
        sim_free(cut.sim);
    }
    assert_true(none > 5);
    assert_true(all > 5);
    assert_true(some > 5);
}

/* --- bad and slow disks --- */

static void read_bad_sectors(void *arg) MAY_WAIT;
static void read_bad_sectors(void *arg)
{
    struct sim *sim = arg;
    struct file *file = open_file("/disk");
    uint8_t bytes[UNITS * SIM_UNIT_BYTES];

    write_units(file, 0, UNITS, 1);
    assert_int_equal(sim_bad_sectors(sim, "a", "/none", 0, 1), -ENOENT);
    assert_int_equal(sim_bad_sectors(sim, "a", "/disk", 3 * SIM_UNIT_BYTES + 1, SIM_UNIT_BYTES), 0);
    assert_int_equal(file_read(file, bytes, sizeof(bytes), 0), -EIO);
    assert_int_equal(file_read(file, bytes, 3 * SIM_UNIT_BYTES, 0), 3 * SIM_UNIT_BYTES);
    assert_int_equal(file_read(file, bytes, 1, 4 * SIM_UNIT_BYTES), -EIO);
    assert_int_equal(file_read(file, bytes, 1, 5 * SIM_UNIT_BYTES), 1);
    assert_int_equal(file_write(file, bytes, 100, 3 * SIM_UNIT_BYTES), 0);
    assert_int_equal(file_read(file, bytes, 1, 3 * SIM_UNIT_BYTES), -EIO); /* not as a whole */
    write_units(file, 3, 1, 2);
    assert_int_equal(file_read(file, bytes, 1, 3 * SIM_UNIT_BYTES), 1);
    assert_int_equal(file_zero(file, 4 * SIM_UNIT_BYTES, SIM_UNIT_BYTES, false), 0);
    assert_int_equal(file_read(file, bytes, sizeof(bytes), 0), sizeof(bytes));
    assert_int_equal(sim_bad_sectors(sim, "a", "/disk", 0, SIM_UNIT_BYTES), 0);
    assert_int_equal(file_read(file, bytes, 1, 0), -EIO);
    assert_int_equal(sim_mend_sectors(sim, "a", "/none"), -ENOENT);
    assert_int_equal(sim_mend_sectors(sim, "a", "/disk"), 0);
    assert_int_equal(file_read(file, bytes, 1, 0), 1);
    assert_int_equal(bytes[0], 1);
    file_close(file);
    loop_stop(loop_current());
}

static void write_bad_sectors(void *arg) MAY_WAIT;
static void write_bad_sectors(void *arg)
{
    struct sim *sim = arg;
    struct file *file = open_file("/disk");
    uint8_t bytes[UNITS * SIM_UNIT_BYTES] = {0};
    const struct sim_fault fault = {.path = "/disk",
                                    .op = SIM_OP_WRITE,
                                    .offset_bytes = 3 * SIM_UNIT_BYTES,
                                    .length_bytes = 2 * SIM_UNIT_BYTES,
                                    .error = -EIO};

    assert_int_equal(sim_fault_add(sim, "a", &fault), 0);
    assert_int_equal(file_write(file, bytes, 3 * SIM_UNIT_BYTES, 0), 0);
    assert_int_equal(file_write(file, bytes, 3 * SIM_UNIT_BYTES + 1, 0), -EIO);
    assert_int_equal(file_write(file, bytes, 1, 5 * SIM_UNIT_BYTES - 1), -EIO);
    assert_int_equal(file_write(file, bytes, 1, 5 * SIM_UNIT_BYTES), 0);
    assert_int_equal(file_write(file, bytes, sizeof(bytes), 0), -EIO);
    file_close(file);
    loop_stop(loop_current());
}

static void a_fault_can_be_of_some_sectors_only(void **state UNUSED)
{
    struct sim *sim = new_plain_world(2);
    struct loop *loop = new_host(sim, "a");

    run_on(loop, "bad", write_bad_sectors, sim);
    loop_free(loop);
    sim_free(sim);
}

static void bad_sectors_fail_to_be_read_until_they_are_written(void **state UNUSED)
{
    struct sim *sim = new_plain_world(2);
    struct loop *loop = new_host(sim, "a");

    run_on(loop, "bad", read_bad_sectors, sim);
    loop_free(loop);
    sim_free(sim);
}

static void clear_faults_later(void *arg) MAY_WAIT;
static void clear_faults_later(void *arg)
{
    co_sleep(10 * NS_PER_S);
    sim_fault_clear(arg, "a");
}

static void wait_for_a_stalled_disk(void *arg) MAY_WAIT;
static void wait_for_a_stalled_disk(void *arg)
{
    struct sim *sim = arg;
    struct loop *loop = loop_current();
    struct file *file = open_file("/disk"), *other = open_file("/other");
    struct sim_fault fault = {.path = "/disk", .times = 1, .stall_ns = NS_PER_S, .error = -EIO};
    uint8_t byte = 1;

    assert_int_equal(sim_fault_add(sim, "b", &fault), -ENOENT);
    assert_int_equal(sim_fault_add(sim, "a", &fault), 0);
    uint64_t begin_ns = loop_clock_ns(loop);
    assert_int_equal(file_write(other, &byte, 1, 0), 0);
    assert_in_range(loop_clock_ns(loop), begin_ns, begin_ns + NS_PER_MS);
    assert_int_equal(file_write(file, &byte, 1, 0), -EIO);
    assert_true(loop_clock_ns(loop) >= begin_ns + NS_PER_S);
    fault = (struct sim_fault){.path = "/disk", .op = SIM_OP_READ, .stall_ns = SIM_STALL_FOR_EVER};
    assert_int_equal(sim_fault_add(sim, "a", &fault), 0);
    assert_int_equal(co_spawn(loop, "clear", clear_faults_later, sim), 0);
    begin_ns = loop_clock_ns(loop);
    assert_int_equal(file_write(file, &byte, 1, 0), 0);
    assert_int_equal(file_read(file, &byte, 1, 0), 1);
    assert_true(loop_clock_ns(loop) >= begin_ns + 10 * NS_PER_S);
    fault = (struct sim_fault){.op = SIM_OP_WRITE, .per_million = 100000, .error = -EIO};
    assert_int_equal(sim_fault_add(sim, "a", &fault), 0);
    unsigned failed = 0;
    for (unsigned i = 0; i < 1000; i++)
        failed += file_write(file, &byte, 1, 0) == -EIO;
    assert_in_range(failed, 60, 140);
    file_close(file);
    file_close(other);
    loop_stop(loop);
}

static void faults_stall_and_strike_by_chance(void **state UNUSED)
{
    struct sim *sim = new_plain_world(2);
    struct loop *loop = new_host(sim, "a");

    run_on(loop, "stall", wait_for_a_stalled_disk, sim);
    loop_free(loop);
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_unit_not_synced_is_old_or_new_or_between_and_synced_ones_stay),
        cmocka_unit_test(what_a_cut_of_a_seed_leaves_is_the_same_everywhere),
        cmocka_unit_test(a_files_length_is_old_or_new_or_between),
        cmocka_unit_test(changes_of_a_folder_have_happened_up_to_one_of_them),
        cmocka_unit_test(a_file_replaced_in_the_safe_way_is_the_old_or_the_new_one),
        cmocka_unit_test(a_sync_that_failed_is_not_made_good_by_the_next),
        cmocka_unit_test(a_chooser_can_go_through_all_outcomes),
        cmocka_unit_test(each_content_since_the_last_sync_can_be_chosen),
        cmocka_unit_test(what_nobody_reads_is_not_asked_about),
        cmocka_unit_test(a_write_under_way_may_have_been_done_in_any_part),
        cmocka_unit_test(bad_sectors_fail_to_be_read_until_they_are_written),
        cmocka_unit_test(a_fault_can_be_of_some_sectors_only),
        cmocka_unit_test(faults_stall_and_strike_by_chance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
