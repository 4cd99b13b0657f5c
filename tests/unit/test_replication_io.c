/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The second table of docs/semantics.md: what I/O does in each stage, and what its failures do. */
#include "replication_stages.h"

/* --- every request in every stage --- */

enum kind { KIND_READ, KIND_WRITE, KIND_ZERO, KIND_DISCARD, KIND_FLUSH, KIND_EXTENTS, KINDS };
static const char *const kind_names[KINDS] = {"read",    "write", "zero",
                                              "discard", "flush", "extents"};
static const unsigned kind_rules[KINDS] = {BLKDEBUG_READ,    BLKDEBUG_WRITE, BLKDEBUG_ZERO,
                                           BLKDEBUG_DISCARD, BLKDEBUG_FLUSH, BLKDEBUG_EXTENTS};

static bool kind_looks(enum kind kind)
{
    return kind == KIND_READ || kind == KIND_EXTENTS;
}

static int request(struct edge *edge, enum kind kind, uint64_t offset) MAY_WAIT
{
    struct extent extent;
    uint8_t bytes[BLOCK];
    switch (kind) {
    case KIND_READ:
        return fix_read(edge, offset, bytes, BLOCK);
    case KIND_WRITE:
        return fix_fill(edge, offset, BLOCK, 9);
    case KIND_ZERO:
        return fix_zero(edge, offset, BLOCK);
    case KIND_DISCARD:
        return fix_discard(edge, offset, BLOCK);
    case KIND_FLUSH:
        return io_flush(edge);
    default:
        return io_extents(edge, offset, BLOCK, &extent);
    }
}

/* Who gets a request, each as one of its own kind, but where it says otherwise. */
enum arrival {
    FAILS,        /* nobody */
    ACTIVE,       /* the active chain */
    DISK,         /* the secondary disk */
    BOTH,         /* both */
    BOTH_AS_ZERO, /* both, as a zero request */
    WHERE_IT_IS,  /* where the block is held: the active disk, else the secondary disk */
    WAITS,        /* both, and then it waits for what is held here: test_group_failover.c */
};

static const enum arrival secondary_arrivals[PLACES][KINDS] = {
    [PLACE_NONE] = {FAILS, FAILS, FAILS, FAILS, FAILS, FAILS},
    [PLACE_RUNNING] = {ACTIVE, ACTIVE, ACTIVE, ACTIVE, ACTIVE, ACTIVE},
    [PLACE_FAILOVER_BEGUN] = {ACTIVE, WHERE_IT_IS, WHERE_IT_IS, WHERE_IT_IS, WAITS, ACTIVE},
    [PLACE_FAILOVER] = {ACTIVE, DISK, DISK, DISK, BOTH, ACTIVE}, /* of the third block */
    [PLACE_FAILOVER_COPIED] = {ACTIVE, BOTH, BOTH, BOTH_AS_ZERO, BOTH, ACTIVE},
    [PLACE_FAILOVER_FAILED] = {ACTIVE, WHERE_IT_IS, WHERE_IT_IS, WHERE_IT_IS, BOTH, ACTIVE},
    [PLACE_FAILED_COPIED] = {ACTIVE, WHERE_IT_IS, WHERE_IT_IS, WHERE_IT_IS, BOTH, ACTIVE},
    [PLACE_STOPPED] = {DISK, DISK, DISK, DISK, DISK, DISK},
    [PLACE_PROMOTED] = {DISK, DISK, DISK, DISK, DISK, DISK},
};

/* Of the second half of the disk nothing is held, and no merge locks it. */
#define FREE_BLOCK (FIX_DISK_BYTES / 2)

struct watch {
    struct node *node;
    unsigned id;
};

static struct watch watch_begin(struct fix *fix, const char *prefix, unsigned kinds)
{
    struct watch watch = {.node = fix_node(&fix->s, prefix, 0)};
    const struct blkdebug_rule rule = {.kinds = kinds};
    assert_int_equal(blkdebug_inject(watch.node, &rule, &watch.id), 0);
    return watch;
}

static enum arrival resolve(enum place place, enum kind kind, uint64_t block)
{
    enum arrival arrival = secondary_arrivals[place][kind];
    bool held = block < FREE_BLOCK;
    if (arrival == WHERE_IT_IS)
        return held ? ACTIVE : DISK;
    if (!held && kind != KIND_FLUSH && (arrival == BOTH || arrival == BOTH_AS_ZERO))
        return DISK;
    return arrival;
}

static void check_arrival(struct fix *fix, enum place place, enum kind kind, uint64_t block)
    MAY_WAIT
{
    enum arrival arrival = resolve(place, kind, block);
    unsigned as = arrival == BOTH_AS_ZERO ? BLKDEBUG_ZERO : kind_rules[kind];
    struct watch active = watch_begin(fix, "adebug", as), disk = watch_begin(fix, "sdisk", as);
    int ret = request(fix->top[0], kind, block);
    uint64_t at_active = blkdebug_matches(active.node, active.id);
    uint64_t at_disk = blkdebug_matches(disk.node, disk.id);
    bool both = arrival == BOTH || arrival == BOTH_AS_ZERO;
    uint64_t want_active = arrival == ACTIVE || both, want_disk = arrival == DISK || both;
    /* A look into the active chain may end at the disk. */
    bool disk_matters = !(kind_looks(kind) && arrival == ACTIVE);
    if (ret != (arrival == FAILS ? -EIO : 0) || at_active != want_active ||
        (disk_matters && at_disk != want_disk))
        fail_msg("stage %s, %s at %" PRIu64 ": result %d, %" PRIu64 " to active, %" PRIu64
                 " to the disk",
                 place_names[place], kind_names[kind], block, ret, at_active, at_disk);
}

TEST_LOOP(every_request_in_every_stage_of_a_secondary_goes_where_the_table_says)
{
    static const uint64_t blocks[] = {0, BLOCK, FREE_BLOCK};
    for (int place = 0; place < PLACES; place++) {
        for (int kind = 0; kind < KINDS; kind++) {
            if (secondary_arrivals[place][kind] == WAITS)
                continue;
            /* What a merge is copying is locked. */
            for (size_t i = place == PLACE_FAILOVER ? 2 : 0; i < ARRAY_LEN(blocks); i++) {
                struct fix fix;
                fix_open(&fix, 1);
                bring_secondary(&fix, place);
                check_arrival(&fix, place, kind, blocks[i]);
                release_all(&fix);
                fix_close(&fix);
            }
        }
    }
}

/* Whatever the stage, and while a merge stands still: what S's user may see. */
TEST_LOOP(reads_in_every_stage_of_a_secondary_obey_the_contract)
{
    for (int place = 0; place < PLACES; place++) {
        struct fix fix;
        fix_open(&fix, 1);
        bring_secondary(&fix, place);
        int own = 2, old = 0;
        if (place == PLACE_NONE)
            own = old = -EIO;
        else if (place == PLACE_STOPPED)
            own = 0, old = 1; /* what was forwarded stays */
        assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), old);
        assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), own);
        assert_int_equal(fix_byte(fix.top[0], FREE_BLOCK, BLOCK), place == PLACE_NONE ? -EIO : 0);
        release_all(&fix);
        fix_close(&fix);
    }
}

TEST_LOOP(every_request_in_every_stage_of_a_primary_goes_where_the_table_says)
{
    static const int stages[] = {REPLICATION_NONE, REPLICATION_RUNNING, REPLICATION_DONE};
    for (size_t i = 0; i < ARRAY_LEN(stages); i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            struct fix fix;
            fix_open(&fix, 1);
            bring_primary(&fix, stages[i]);
            bool passes = stages[i] == REPLICATION_RUNNING && !kind_looks(kind);
            struct watch disk = watch_begin(&fix, "sdisk", kind_rules[kind]);
            int ret = request(fix.forward[0], kind, 0);
            uint64_t arrived = blkdebug_matches(disk.node, disk.id);
            if (ret != (passes ? 0 : -EIO) || arrived != passes)
                fail_msg("stage %s, %s: result %d, %" PRIu64 " forwarded",
                         replication_stage_name(stages[i]), kind_names[kind], ret, arrived);
            release_all(&fix);
            fix_close(&fix);
        }
    }
}

/* --- what they leave behind --- */

TEST_LOOP(a_running_primary_forwards_and_reads_nothing)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, 2 * BLOCK, 7), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, 2 * BLOCK), 7);
    assert_int_equal(fix_zero(fix.forward[0], 0, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    assert_int_equal(fix_discard(fix.forward[0], BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix.forward[0]), 0);
    assert_int_equal(fix_byte(fix.forward[0], 0, BLOCK), -EIO);
    assert_int_equal(replication_forward_stats(fix_node(&fix.p, "prep", 0)).forwarded_bytes,
                     4 * BLOCK);
    fix_close(&fix);
}

TEST_LOOP(a_running_secondary_shows_the_checkpoint_and_its_own_writes_alone)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, 4 * BLOCK, 1), 0);
    fix_checkpoint(&fix);
    assert_int_equal(fix_byte(fix.top[0], 0, 4 * BLOCK), 1);
    assert_int_equal(fix_fill(fix.forward[0], 0, 4 * BLOCK, 2), 0);
    assert_int_equal(fix_byte(fix.top[0], 0, 4 * BLOCK), 1);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 3), 0);
    assert_int_equal(fix_zero(fix.top[0], 2 * BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix.top[0]), 0);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 3);
    assert_int_equal(fix_byte(fix.top[0], 2 * BLOCK, BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], 3 * BLOCK, BLOCK), 1);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, 4 * BLOCK), 2);
    fix_checkpoint(&fix);
    assert_int_equal(fix_byte(fix.top[0], 0, 4 * BLOCK), 2);
    fix_close(&fix);
}

TEST_LOOP(a_stop_without_failover_drops_the_overlays_and_serves_the_disk)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.top[0], 0, 2 * BLOCK, 2), 0);
    fix_ok(replication_stop(fix.s.group, false, &err));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 0);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 3), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 3);
    assert_int_equal(fix_zero(fix.top[0], BLOCK, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix.top[0]), 0);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "active", 0)).held_bytes, 0);
    assert_int_equal(overlay_stats(fix_node(&fix.s, "hidden", 0)).held_bytes, 0);
    fix_close(&fix);
}

/* Block 0 is held by hidden, 1 by active, 2 by nobody. */
static void check_split(struct fix *fix) MAY_WAIT
{
    assert_int_equal(fix_byte(fix->top[0], 0, BLOCK), 0);
    assert_int_equal(fix_byte(fix->top[0], BLOCK, BLOCK), 2);
    assert_int_equal(fix_byte(fix->top[0], 2 * BLOCK, BLOCK), 0);
    assert_int_equal(fix_fill(fix->top[0], 0, 3 * BLOCK, 5), 0);
    assert_int_equal(fix_byte(fix->top[0], 0, 3 * BLOCK), 5);
    assert_int_equal(fix_raw_byte(fix, 0, 0, BLOCK), 1);
    assert_int_equal(fix_raw_byte(fix, 0, BLOCK, BLOCK), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK, BLOCK), 5);
    assert_int_equal(fix_zero(fix->top[0], BLOCK, 2 * BLOCK), 0);
    assert_int_equal(fix_byte(fix->top[0], BLOCK, 2 * BLOCK), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK, BLOCK), 0);
    assert_int_equal(fix_fill(fix->top[0], 2 * BLOCK + 512, 512, 6), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK + 512, 512), 6);
    assert_int_equal(fix_discard(fix->top[0], 64 * BLOCK, BLOCK), 0);
    assert_int_equal(io_flush(fix->top[0]), 0);
}

static void check_merged(struct fix *fix) MAY_WAIT
{
    fix_wait_stage(&fix->s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(fix, 0, 0, BLOCK), 5);
    assert_int_equal(fix_raw_byte(fix, 0, BLOCK, BLOCK + 512), 0);
    assert_int_equal(fix_raw_byte(fix, 0, 2 * BLOCK + 512, 512), 6);
    assert_int_equal(fix_byte(fix->top[0], 0, BLOCK), 5);
    assert_int_equal(fix_fill(fix->top[0], BLOCK, BLOCK, 8), 0);
    assert_int_equal(fix_raw_byte(fix, 0, BLOCK, BLOCK), 8);
}

TEST_LOOP(writes_of_a_failed_failover_go_where_the_block_is_held_and_a_retry_merges_them)
{
    struct fix fix;
    fix_open(&fix, 1);
    bring_secondary(&fix, PLACE_FAILOVER_FAILED);
    /* The disk works again, as far as the guest's own writes go. */
    blkdebug_remove(fix_node(&fix.s, "sdisk", 0), 0);
    check_split(&fix);
    fix_refused(replication_get_error(fix.s.group, &err), "merge failed on node 'sdisk0'");
    fix_ok(replication_stop(fix.s.group, true, &err));
    check_merged(&fix);
    fix_close(&fix);
}

/* The merge's own range is locked while its write is held; blocks elsewhere are served. */
TEST_LOOP(reads_of_a_failover_obey_the_contract_while_the_merge_stands_still)
{
    struct fix fix;
    fix_open(&fix, 1);
    bring_secondary(&fix, PLACE_FAILOVER);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, BLOCK), 2);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    uint64_t far = FIX_DISK_BYTES - BLOCK;
    assert_int_equal(fix_fill(fix.top[0], far, BLOCK, 4), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, far, BLOCK), 4);
    release_all(&fix);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 2);
    assert_int_equal(fix_raw_byte(&fix, 0, far, BLOCK), 4);
    fix_close(&fix);
}

/* Late in a merge writes go to both disks. An overlay ignores a discard of a part of a block, a file
 * does not: what is read must not change when reads move from the one to the other. */
TEST_LOOP(what_a_discard_leaves_late_in_a_merge_stays_when_the_merge_ends)
{
    struct fix fix;
    fix_open(&fix, 1);
    bring_secondary(&fix, PLACE_FAILOVER_COPIED);
    assert_int_equal(fix_discard(fix.top[0], BLOCK + 512, 1024), 0);
    int left = fix_byte(fix.top[0], BLOCK + 512, 1024);
    release_all(&fix);
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_byte(fix.top[0], BLOCK, 512), 2);
    assert_int_equal(fix_byte(fix.top[0], BLOCK + 512, 1024), left);
    assert_int_equal(fix_byte(fix.top[0], BLOCK + 1536, BLOCK - 1536), 2);
    fix_close(&fix);
}

/* --- failures --- */

TEST_LOOP(a_failed_forward_is_remembered_and_the_write_succeeds)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE,
                                      .offset_bytes = BLOCK,
                                      .length_bytes = BLOCK,
                                      .error = -ENOSPC});
    assert_int_equal(fix_fill(fix.forward[0], BLOCK, 2 * BLOCK, 1), 0);
    assert_int_equal(fix_fill(fix.forward[0], BLOCK, BLOCK, 1), 0);
    const struct replication_error *error = replication_error_of(fix_node(&fix.p, "prep", 0));
    assert_int_equal(error->count, 2);
    assert_int_equal(error->side, REPLICATION_PRIMARY);
    assert_int_equal(error->offset_bytes, BLOCK);
    assert_int_equal(error->length_bytes, 2 * BLOCK);
    assert_int_equal(error->code, -ENOSPC);
    assert_true(error->wall_ns > 0);
    assert_string_equal(error->operation, "forward write");
    assert_string_equal(error->node, "plink0");
    assert_int_equal(fix_count_events(&fix.p, "REPLICATION_ERROR"), 1);
    fix_refused(replication_get_error(fix.p.group, &err), "forward write failed");
    /* It stays broken: neither side claims a checkpoint. */
    for (int i = 0; i < 2; i++) {
        fix_refused(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err),
                    "the secondary lacks a write");
        fix_refused(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &err),
                    "the last one stays");
    }
    fix_close(&fix);
}

TEST_LOOP(whatever_fails_to_be_forwarded_is_remembered_by_its_name_and_the_request_succeeds)
{
    static const char *const operations[KINDS] = {
        [KIND_WRITE] = "forward write",
        [KIND_ZERO] = "forward zero",
        [KIND_DISCARD] = "forward discard",
        [KIND_FLUSH] = "forward flush",
    };
    for (int kind = KIND_WRITE; kind <= KIND_FLUSH; kind++) {
        struct fix fix;
        fix_open(&fix, 1);
        fix_start(&fix);
        fix_inject(&fix.s, "sdisk", 0,
                   (struct blkdebug_rule){.kinds = kind_rules[kind], .count = 1, .error = -ENOSPC});
        assert_int_equal(request(fix.forward[0], kind, BLOCK), 0);
        const struct replication_error *error = replication_error_of(fix_node(&fix.p, "prep", 0));
        assert_string_equal(error->operation, operations[kind]);
        assert_int_equal(error->offset_bytes, kind == KIND_FLUSH ? 0 : BLOCK);
        assert_int_equal(error->length_bytes, kind == KIND_FLUSH ? 0 : BLOCK);
        assert_int_equal(error->code, -ENOSPC);
        assert_int_equal(request(fix.forward[0], kind, BLOCK), 0);
        assert_int_equal(error->count, 1);
        fix_refused(replication_checkpoint(fix.p.group, DEADLINE_NEVER, NULL, &err),
                    operations[kind]);
        fix_close(&fix);
    }
}

TEST_LOOP(a_copy_that_fails_fails_the_write_and_is_remembered_on_both_sides)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "sdisk", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_READ, .count = 1, .error = -EIO});
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 0);
    fix_refused(replication_get_error(fix.p.group, &err), "forward write failed");
    fix_refused(replication_get_error(fix.s.group, &err), "copy-before-write failed");
    assert_int_equal(fix_count_events(&fix.s, "REPLICATION_ERROR"), 1);
    fix_close(&fix);
}

TEST_LOOP(a_failing_active_disk_is_the_users_error_alone)
{
    struct fix fix;
    fix_open(&fix, 1);
    fix_start(&fix);
    fix_inject(&fix.s, "adebug", 0,
               (struct blkdebug_rule){.kinds = BLKDEBUG_WRITE, .count = 1, .error = -ENOSPC});
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 1), -ENOSPC);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 0);
    fix_ok(replication_get_error(fix.s.group, &err));
    fix_checkpoint(&fix);
    fix_close(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_request_in_every_stage_of_a_secondary_goes_where_the_table_says),
        cmocka_unit_test(reads_in_every_stage_of_a_secondary_obey_the_contract),
        cmocka_unit_test(every_request_in_every_stage_of_a_primary_goes_where_the_table_says),
        cmocka_unit_test(a_running_primary_forwards_and_reads_nothing),
        cmocka_unit_test(a_running_secondary_shows_the_checkpoint_and_its_own_writes_alone),
        cmocka_unit_test(a_stop_without_failover_drops_the_overlays_and_serves_the_disk),
        cmocka_unit_test(
            writes_of_a_failed_failover_go_where_the_block_is_held_and_a_retry_merges_them),
        cmocka_unit_test(reads_of_a_failover_obey_the_contract_while_the_merge_stands_still),
        cmocka_unit_test(what_a_discard_leaves_late_in_a_merge_stays_when_the_merge_ends),
        cmocka_unit_test(a_failed_forward_is_remembered_and_the_write_succeeds),
        cmocka_unit_test(
            whatever_fails_to_be_forwarded_is_remembered_by_its_name_and_the_request_succeeds),
        cmocka_unit_test(a_copy_that_fails_fails_the_write_and_is_remembered_on_both_sides),
        cmocka_unit_test(a_failing_active_disk_is_the_users_error_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
