/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Random writes on both sides, checkpoints in between and among them, and a failover or a stop at the
 * end, against a plain model.
 *
 * A disk is divided into lanes whose borders lie inside blocks. In one round every lane gets at most
 * one write of P and one of S, all at once, so that neighbours meet in one block while the model
 * stays simple. A checkpoint among them may fall before or after each write: the lane then shows
 * one of four contents, and the model learns which.
 */
#include "replication_fixture.h"

#define DISKS      2u
#define LANES      12u
#define ROUNDS     25u
#define LANE_BYTES (align_down(FIX_DISK_BYTES / LANES, 512))

struct change {
    uint64_t offset_bytes, length_bytes; /* 0: none */
    uint8_t byte;
    bool zero;
};

struct model {
    uint8_t *p;     /* what P has forwarded */
    uint8_t *check; /* as of the last checkpoint */
    uint8_t *view;  /* that and S's own writes */
    uint8_t *look;  /* scratch */
};

struct lane {
    struct change p, s;
};

struct world {
    struct fix fix;
    uint64_t random;
    struct model models[DISKS];
    struct lane lanes[DISKS][LANES];
    unsigned running;
};

struct task {
    struct world *world;
    struct edge *edge;
    struct change change;
};

static uint64_t pick(struct world *world, uint64_t limit)
{
    return test_random(&world->random) % limit;
}

static uint64_t lane_begin(unsigned lane)
{
    return lane == 0 ? 0 : lane * LANE_BYTES;
}

static uint64_t lane_end(unsigned lane)
{
    return lane == LANES - 1 ? FIX_DISK_BYTES : (lane + 1) * LANE_BYTES;
}

static struct change pick_change(struct world *world, unsigned lane)
{
    uint64_t begin = lane_begin(lane), size = lane_end(lane) - begin;
    uint64_t unit = pick(world, 3) == 0 ? 1 : 512;
    /* Small ones, often at the lane's edges. */
    uint64_t length = pick(world, 4) == 0 ? 1 + pick(world, size) : 1 + pick(world, 12 * 1024);
    length = MIN(MAX(align_down(length, unit), unit), align_down(size, unit));
    uint64_t offset = begin + align_down(pick(world, size - length + 1), unit);
    if (pick(world, 4) == 0)
        offset = pick(world, 2) == 0 ? begin : begin + size - length;
    return (struct change){offset, length, (uint8_t)(1 + pick(world, 255)), pick(world, 6) == 0};
}

static void apply(const struct change *change, uint8_t *bytes)
{
    memset(bytes + change->offset_bytes, change->zero ? 0 : change->byte, change->length_bytes);
}

static void run_task(void *arg) MAY_WAIT
{
    struct task *task = arg;
    struct world *world = task->world;
    const struct change *change = &task->change;
    int ret = change->zero
                  ? fix_zero(task->edge, change->offset_bytes, change->length_bytes)
                  : fix_fill(task->edge, change->offset_bytes, change->length_bytes, change->byte);
    assert_int_equal(ret, 0);
    world->running--;
    free(task);
}

static void spawn_change(struct world *world, struct edge *edge, const struct change *change)
{
    struct task *task = malloc(sizeof(*task));
    assert_non_null(task);
    *task = (struct task){world, edge, *change};
    world->running++;
    assert_int_equal(co_spawn(world->fix.loop, "change", run_task, task), 0);
}

static void run_checkpoint(void *arg) MAY_WAIT
{
    struct world *world = arg;
    struct err err = ERR_INIT;
    if (replication_checkpoint(world->fix.s.group, DEADLINE_NEVER, NULL, &err) < 0)
        fail_msg("checkpoint: %s", err.text);
    world->running--;
}

/* --- the model --- */

static void look(struct world *world, unsigned disk, struct edge *edge) MAY_WAIT
{
    assert_int_equal(fix_read(edge, 0, world->models[disk].look, FIX_DISK_BYTES), 0);
}

static void check_equal(const char *what, unsigned disk, const uint8_t *seen, const uint8_t *wanted,
                        uint64_t begin, uint64_t end)
{
    for (uint64_t i = begin; i < end; i++) {
        if (seen[i] != wanted[i])
            fail_msg("%s of disk %u at offset %" PRIu64 ": %u instead of %u", what, disk, i,
                     seen[i], wanted[i]);
    }
}

static void check_view(struct world *world, unsigned disk) MAY_WAIT
{
    look(world, disk, world->fix.top[disk]);
    check_equal("view", disk, world->models[disk].look, world->models[disk].view, 0,
                FIX_DISK_BYTES);
}

/* The checkpoint fell before or after P's write, and before or after S's: which of them? */
static void learn_lane(struct world *world, unsigned disk, unsigned lane, const uint8_t *p_before)
    MAY_WAIT
{
    struct model *model = &world->models[disk];
    const struct lane *changes = &world->lanes[disk][lane];
    uint64_t begin = lane_begin(lane), size = lane_end(lane) - begin;
    for (unsigned way = 0; way < 4; way++) {
        memcpy(model->check + begin, p_before + begin, size);
        if ((way & 1) != 0)
            apply(&changes->p, model->check);
        memcpy(model->view + begin, model->check + begin, size);
        if ((way & 2) != 0)
            apply(&changes->s, model->view);
        if (memcmp(model->look + begin, model->view + begin, size) == 0)
            return;
    }
    fail_msg("disk %u, lane %u: torn by the checkpoint", disk, lane);
}

static void learn(struct world *world, unsigned disk) MAY_WAIT
{
    struct model *model = &world->models[disk];
    uint8_t *p_before = malloc(FIX_DISK_BYTES);
    assert_non_null(p_before);
    memcpy(p_before, model->p, FIX_DISK_BYTES);
    look(world, disk, world->fix.top[disk]);
    for (unsigned lane = 0; lane < LANES; lane++) {
        apply(&world->lanes[disk][lane].p, model->p);
        learn_lane(world, disk, lane, p_before);
    }
    free(p_before);
}

static void apply_round(struct world *world, unsigned disk)
{
    struct model *model = &world->models[disk];
    for (unsigned lane = 0; lane < LANES; lane++) {
        apply(&world->lanes[disk][lane].p, model->p);
        apply(&world->lanes[disk][lane].s, model->view);
    }
}

/* --- a round --- */

static void pick_round(struct world *world, bool p_writes)
{
    for (unsigned disk = 0; disk < DISKS; disk++) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            struct lane *changes = &world->lanes[disk][lane];
            *changes = (struct lane){0};
            if (p_writes && pick(world, 3) > 0)
                changes->p = pick_change(world, lane);
            if (pick(world, 3) > 0)
                changes->s = pick_change(world, lane);
        }
    }
}

static void spawn_round(struct world *world)
{
    for (unsigned disk = 0; disk < DISKS; disk++) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            const struct lane *changes = &world->lanes[disk][lane];
            if (changes->p.length_bytes > 0)
                spawn_change(world, world->fix.forward[disk], &changes->p);
            if (changes->s.length_bytes > 0)
                spawn_change(world, world->fix.top[disk], &changes->s);
        }
    }
}

static void run_round(struct world *world) MAY_WAIT
{
    bool among = pick(world, 2) == 0;
    pick_round(world, true);
    spawn_round(world);
    if (among) {
        for (uint64_t turns = pick(world, 20); turns > 0; turns--)
            co_yield();
        world->running++;
        assert_int_equal(co_spawn(world->fix.loop, "checkpoint", run_checkpoint, world), 0);
    }
    test_wait_until(world->running == 0);
    for (unsigned disk = 0; disk < DISKS; disk++) {
        if (among)
            learn(world, disk);
        else
            apply_round(world, disk);
        check_view(world, disk);
    }
}

/* --- the end --- */

static void check_raw(struct world *world, unsigned disk, const uint8_t *wanted) MAY_WAIT
{
    struct edge *raw = fix_root(&world->fix.s, "sdisk", disk, PERM_CONSISTENT_READ);
    look(world, disk, raw);
    check_equal("secondary disk", disk, world->models[disk].look, wanted, 0, FIX_DISK_BYTES);
    graph_detach(raw);
}

static void end_by_stop(struct world *world) MAY_WAIT
{
    fix_ok(replication_stop(world->fix.s.group, false, &err));
    for (unsigned disk = 0; disk < DISKS; disk++) {
        look(world, disk, world->fix.top[disk]);
        check_equal("view after the stop", disk, world->models[disk].look, world->models[disk].p, 0,
                    FIX_DISK_BYTES);
        check_raw(world, disk, world->models[disk].p);
    }
}

static bool any_stage(struct world *world, enum replication_stage stage)
{
    for (unsigned disk = 0; disk < DISKS; disk++) {
        if (replication_stage_of(fix_node(&world->fix.s, "rep", disk)) == stage)
            return true;
    }
    return false;
}

/* S's user goes on writing during the merge, which fails now and then and is repeated. */
static void end_by_failover(struct world *world) MAY_WAIT
{
    bool faults = pick(world, 2) == 0;
    if (faults)
        fix_inject(
            &world->fix.s, "adebug", (unsigned)pick(world, DISKS),
            (struct blkdebug_rule){
                .kinds = BLKDEBUG_EMPTY, .nth = 1, .count = 1 + pick(world, 2), .error = -EIO});
    /* Some of P's last writes are on their way. */
    pick_round(world, true);
    spawn_round(world);
    fix_ok(replication_stop(world->fix.s.group, true, &err));
    test_wait_until(world->running == 0);
    for (unsigned disk = 0; disk < DISKS; disk++)
        apply_round(world, disk);
    do {
        for (unsigned disk = 0; disk < DISKS; disk++)
            check_view(world, disk);
        pick_round(world, false);
        spawn_round(world);
        if (any_stage(world, REPLICATION_FAILOVER_FAILED))
            fix_ok(replication_stop(world->fix.s.group, true, &err));
        test_wait_until(world->running == 0);
        for (unsigned disk = 0; disk < DISKS; disk++)
            apply_round(world, disk);
    } while (any_stage(world, REPLICATION_FAILOVER) ||
             any_stage(world, REPLICATION_FAILOVER_FAILED));
    for (unsigned disk = 0; disk < DISKS; disk++) {
        check_view(world, disk);
        check_raw(world, disk, world->models[disk].view);
    }
}

static void run_world(uint64_t seed) MAY_WAIT
{
    struct world *world = calloc(1, sizeof(*world));
    assert_non_null(world);
    world->random = seed;
    fix_open(&world->fix, DISKS);
    for (unsigned disk = 0; disk < DISKS; disk++) {
        struct model *model = &world->models[disk];
        uint8_t **const arrays[] = {&model->p, &model->check, &model->view, &model->look};
        for (size_t i = 0; i < ARRAY_LEN(arrays); i++) {
            *arrays[i] = calloc(1, FIX_DISK_BYTES);
            assert_non_null(*arrays[i]);
        }
    }
    fix_start(&world->fix);
    for (unsigned round = 0; round < ROUNDS; round++)
        run_round(world);
    fix_ok(replication_get_error(world->fix.p.group, &err));
    fix_ok(replication_get_error(world->fix.s.group, &err));
    if (pick(world, 4) == 0)
        end_by_stop(world);
    else
        end_by_failover(world);
    for (unsigned disk = 0; disk < DISKS; disk++) {
        free(world->models[disk].p);
        free(world->models[disk].check);
        free(world->models[disk].view);
        free(world->models[disk].look);
    }
    fix_close(&world->fix);
    free(world);
}

TEST_LOOP(a_pair_shows_what_a_plain_model_shows)
{
    const char *worlds = getenv("BLOCKSTEP_TEST_WORLDS");
    uint64_t seed = test_seed("a_pair_shows_what_a_plain_model_shows");
    for (int i = 0; i < (worlds != NULL ? atoi(worlds) : 6); i++)
        run_world(seed + (uint64_t)i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pair_shows_what_a_plain_model_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
