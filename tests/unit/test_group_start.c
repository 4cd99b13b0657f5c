/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A start of the secondary: its checks in their order, what a refusal leaves behind, what is blocked. */
#include "graph_snapshot.h"
#include "replication_fixture.h"

#define BLOCK ((size_t)4096)
#define DISKS 3u

/* --- what can be wrong with a disk, in the order of the checks --- */

enum wrong {
    WRONG_MODE,
    WRONG_ACTIVE_ALONE,
    WRONG_HIDDEN_ALONE,
    WRONG_LENGTH,
    WRONG_ACTIVE_SOLID,
    WRONG_HIDDEN_SOLID,
    WRONG_TOP_ABSENT,
    WRONG_TOP_NOT_ROOT,
    WRONG_TOP_ELSEWHERE,
    WRONG_TOP_BLOCKED,
    WRONG_TOP_OF_A_JOB,
    WRONG_OVERLAY_FULL,
    WRONG_HIDDEN_STUCK,
    WRONG_DISK_STUCK,
    WRONG_DISK_SHARED,
    WRONG_FLUSH,
    WRONG_ACTIVE_EMPTYING,
    WRONG_HIDDEN_EMPTYING,
    WRONGS,
};
#define BIT(wrong) (1u << (wrong))

/* What the refusal says; @ is the disk's number. */
static const char *const wrong_texts[WRONGS] = {
    [WRONG_MODE] = "node 'rep@' has mode=primary",
    [WRONG_ACTIVE_ALONE] = "node 'rep@': the active disk 'active@' has no backing disk",
    [WRONG_HIDDEN_ALONE] = "node 'rep@': the hidden disk 'hidden@' has no backing disk",
    [WRONG_LENGTH] = "node 'rep@': the active disk 'active@' (2097152 bytes), the hidden disk",
    [WRONG_ACTIVE_SOLID] = "node 'rep@': the active disk 'adebug@' cannot be emptied",
    [WRONG_HIDDEN_SOLID] = "node 'rep@': the hidden disk 'hdebug@' cannot be emptied",
    [WRONG_TOP_ABSENT] = "node 'rep@': top-id: there is no node 'nowhere@'",
    [WRONG_TOP_NOT_ROOT] = "node 'rep@': top-id 'active@' is no root node",
    [WRONG_TOP_ELSEWHERE] = "node 'rep@': top-id 'other@' neither is nor contains",
    [WRONG_TOP_BLOCKED] = "cannot start replication node 'top@': the test forbids it",
    [WRONG_TOP_OF_A_JOB] = "node 'rep@': node 'top@' is in use by job 'busy'",
    [WRONG_OVERLAY_FULL] = "the overlays of node 'rep@' ('active@', 'hidden@') hold blocks",
    [WRONG_HIDDEN_STUCK] = "node 'rep@': node 'hidden@' must be writable: the test keeps",
    [WRONG_DISK_STUCK] = "node 'rep@': node 'sdisk@' must be writable: the test keeps",
    [WRONG_DISK_SHARED] = ("node 'rep@': node 'sdisk@': node 'rep@' (its child 'secondary')"
                           " needs write, which reader does not allow"),
    [WRONG_FLUSH] = "the first checkpoint: cannot flush the secondary disk 'sdisk@'",
    [WRONG_ACTIVE_EMPTYING] =
        "the first checkpoint: node 'rep@': cannot empty the active disk 'adebug@'",
    [WRONG_HIDDEN_EMPTYING] =
        "the first checkpoint: node 'rep@': cannot empty the hidden disk 'hdebug@'",
};

/* What one disk has beside its nodes, to be taken away again. */
struct wrong_disk {
    unsigned wrong; /* bits */
    struct edge *reader, *job;
    struct node_blocker blocker;
};

/* --- disks with something wrong --- */

static bool is_wrong(const struct wrong_disk *disk, enum wrong wrong)
{
    return (disk->wrong & BIT(wrong)) != 0;
}

static void add_image(struct fix *fix, const struct wrong_disk *disk, unsigned index,
                      const char *kind, const char *backing) MAY_WAIT
{
    bool active = strcmp(kind, "active") == 0, writable = active;
    bool solid = is_wrong(disk, active ? WRONG_ACTIVE_SOLID : WRONG_HIDDEN_SOLID);
    char end[64] = "}", file[64];
    if (!is_wrong(disk, active ? WRONG_ACTIVE_ALONE : WRONG_HIDDEN_ALONE))
        snprintf(end, sizeof(end), ",'backing':'%s%u'}", backing, index);
    if (solid || is_wrong(disk, WRONG_LENGTH)) {
        fix_add(fix->s.graph,
                "{'driver':'%s','node-name':'%s%u','read-only':%s,'size':%" PRIu64 "%s",
                solid ? "test-solid" : "test-layer", kind, index, writable ? "false" : "true",
                FIX_DISK_BYTES, end);
        return;
    }
    fix_add_image(fix, kind, index);
    snprintf(file, sizeof(file), "%s%u.overlay", kind, index);
    fix_add(fix->s.graph,
            "{'driver':'overlay','node-name':'%s%u','read-only':%s,"
            "'file':{'driver':'test-stuck','file':{'driver':'file','filename':'%s'}}%s",
            kind, index, writable ? "false" : "true", test_path(file), end);
}

static const char *top_of(const struct wrong_disk *disk)
{
    return is_wrong(disk, WRONG_TOP_ABSENT)      ? "nowhere"
           : is_wrong(disk, WRONG_TOP_NOT_ROOT)  ? "active"
           : is_wrong(disk, WRONG_TOP_ELSEWHERE) ? "other"
                                                 : "top";
}

static void add_nodes(struct fix *fix, const struct wrong_disk *disk, unsigned index) MAY_WAIT
{
    struct graph *graph = fix->s.graph;
    fix_add_disk_file(fix, index);
    struct fix_paths paths = fix_paths_of(index);
    fix_add(graph,
            "{'driver':'blkdebug','node-name':'sdisk%u','read-only':true,'file':{'driver':"
            "'test-stuck','file':{'driver':'file','filename':'%s'}}}",
            index, paths.raw);
    fix_add(graph, "{'driver':'null-co','node-name':'other%u','size':%" PRIu64 "}", index,
            2 * FIX_DISK_BYTES);
    add_image(fix, disk, index, "hidden", is_wrong(disk, WRONG_LENGTH) ? "other" : "sdisk");
    fix_add(graph,
            "{'driver':'blkdebug','node-name':'hdebug%u','read-only':true,'file':'hidden%u'}",
            index, index);
    add_image(fix, disk, index, "active", "hdebug");
    fix_add(graph, "{'driver':'blkdebug','node-name':'adebug%u','file':'active%u'}", index, index);
    if (is_wrong(disk, WRONG_MODE))
        fix_add(graph,
                "{'driver':'replication','node-name':'rep%u','mode':'primary','file':'adebug%u'}",
                index, index);
    else
        fix_add(graph,
                "{'driver':'replication','node-name':'rep%u','mode':'secondary','top-id':'%s%u',"
                "'file':'adebug%u'}",
                index, top_of(disk), index, index);
    fix_add(graph, "{'driver':'blkdebug','node-name':'top%u','file':'rep%u'}", index, index);
}

static void set_stuck(struct fix *fix, const char *prefix, unsigned index, bool stuck)
{
    struct edge *file = node_child(fix_node(&fix->s, prefix, index), "file");
    if (file != NULL && strcmp(file->child->driver->name, "test-stuck") == 0)
        ((struct test_stuck *)file->child->state)->stuck = stuck;
}

static void fill_overlay(struct fix *fix, unsigned index) MAY_WAIT
{
    if (!node_is_overlay(fix_node(&fix->s, "active", index)))
        return;
    struct edge *edge = fix_root(&fix->s, "active", index, PERM_CONSISTENT_READ | PERM_WRITE);
    assert_int_equal(fix_fill(edge, 0, BLOCK, 1), 0);
    graph_detach(edge);
}

static const char *busy_id(struct edge *edge)
{
    return "busy";
}

static void describe_busy(struct edge *edge, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes, "job '%s'", busy_id(edge));
}

static void attach(struct fix *fix, const char *prefix, unsigned index, const char *name,
                   unsigned share, const struct edge_user_ops *ops, struct edge **ret_edge) MAY_WAIT
{
    fix_ok(graph_attach_root(fix->s.graph, fix_node(&fix->s, prefix, index), name,
                             PERM_CONSISTENT_READ, share, ops, NULL, ret_edge, &err));
}

static void inject_failure(struct fix *fix, const char *prefix, unsigned index, unsigned kinds)
{
    fix_inject(&fix->s, prefix, index,
               (struct blkdebug_rule){.kinds = kinds, .error = -EIO, .count = 1});
}

static void make_wrong(struct fix *fix, struct wrong_disk *disk, unsigned index) MAY_WAIT
{
    static const struct edge_user_ops job_ops = {
        .kind = EDGE_USER_JOB, .id = busy_id, .describe = describe_busy};
    if (is_wrong(disk, WRONG_OVERLAY_FULL))
        fill_overlay(fix, index);
    if (is_wrong(disk, WRONG_TOP_BLOCKED))
        node_block(fix_node(&fix->s, "top", index), &disk->blocker, "the test forbids it");
    if (is_wrong(disk, WRONG_TOP_OF_A_JOB))
        attach(fix, "top", index, "source", PERM_ALL, &job_ops, &disk->job);
    set_stuck(fix, "hidden", index, is_wrong(disk, WRONG_HIDDEN_STUCK));
    set_stuck(fix, "sdisk", index, is_wrong(disk, WRONG_DISK_STUCK));
    if (is_wrong(disk, WRONG_DISK_SHARED))
        attach(fix, "sdisk", index, "reader", PERM_ALL & ~(unsigned)PERM_WRITE, NULL,
               &disk->reader);
    if (is_wrong(disk, WRONG_FLUSH))
        inject_failure(fix, "sdisk", index, BLKDEBUG_FLUSH);
    if (is_wrong(disk, WRONG_ACTIVE_EMPTYING))
        inject_failure(fix, "adebug", index, BLKDEBUG_EMPTY);
    if (is_wrong(disk, WRONG_HIDDEN_EMPTYING))
        inject_failure(fix, "hdebug", index, BLKDEBUG_EMPTY);
}

/* What can be made right without making the disk anew. */
static void make_right(struct fix *fix, struct wrong_disk *disk, unsigned index) MAY_WAIT
{
    if (is_wrong(disk, WRONG_TOP_BLOCKED))
        node_unblock(&disk->blocker);
    set_stuck(fix, "hidden", index, false);
    set_stuck(fix, "sdisk", index, false);
    graph_detach(disk->reader);
    graph_detach(disk->job);
    *disk = (struct wrong_disk){0};
}

/* --- the checks --- */

static void open_disks(struct fix *fix, struct wrong_disk *disks) MAY_WAIT
{
    fix_open_empty(fix, 0);
    for (unsigned i = 0; i < DISKS; i++)
        add_nodes(fix, &disks[i], i);
    for (unsigned i = 0; i < DISKS; i++)
        make_wrong(fix, &disks[i], i);
}

static void close_disks(struct fix *fix, struct wrong_disk *disks) MAY_WAIT
{
    for (unsigned i = 0; i < DISKS; i++)
        make_right(fix, &disks[i], i);
    fix_close(fix);
}

static char *query_of(struct fix *fix) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    assert_non_null(query);
    char *text = strdup(json_object_to_json_string(query));
    assert_non_null(text);
    return text;
}

/* The start is refused with this text, and nothing is as if it had been tried. */
static void refuse_start(struct fix *fix, const char *text) MAY_WAIT
{
    print_message("a start that shall say: %s\n", text);
    CLEANUP(free_ptr) char *query = query_of(fix);
    struct snapshot *before = snapshot_take(fix->s.graph);
    unsigned changes = fix_count_events(&fix->s, "REPLICATION_STAGE_CHANGE");
    fix_refused(
        replication_start(fix->s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err),
        text);
    snapshot_expect(fix->s.graph, before);
    CLEANUP(free_ptr) char *after = query_of(fix);
    assert_string_equal(query, after);
    assert_int_equal(fix_count_events(&fix->s, "REPLICATION_STAGE_CHANGE"), changes);
    assert_int_equal(fix_count_events(&fix->s, "REPLICATION_CHECKPOINT"), 0);
    assert_null(job_next(&fix->s.jobs, NULL));
}

static const char *text_of(enum wrong wrong, unsigned index)
{
    static char text[256];
    snprintf(text, sizeof(text), "%s", wrong_texts[wrong]);
    for (char *mark = text; (mark = strchr(mark, '@')) != NULL;)
        *mark = (char)('0' + index);
    return text;
}

/* The causes that go away by themselves or by a user's hand, and not with the disk. */
static bool is_healed(enum wrong wrong)
{
    return wrong >= WRONG_TOP_BLOCKED && wrong != WRONG_OVERLAY_FULL;
}

static void run_once(struct fix *fix) MAY_WAIT
{
    fix_ok(
        replication_start(fix->s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        assert_false(fix_node(&fix->s, "hidden", i)->read_only);
        assert_false(fix_node(&fix->s, "sdisk", i)->read_only);
    }
    fix_refused(
        replication_start(fix->s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err),
        "running already");
    fix_ok(replication_stop(fix->s.group, false, &err));
    for (unsigned i = 0; i < DISKS; i++) {
        assert_true(fix_node(&fix->s, "hidden", i)->read_only);
        assert_true(fix_node(&fix->s, "sdisk", i)->read_only);
    }
}

TEST_LOOP(a_start_that_a_check_refuses_on_any_disk_leaves_nothing_behind)
{
    for (int wrong = 0; wrong < WRONGS; wrong++) {
        for (unsigned index = 0; index < DISKS; index++) {
            struct fix fix;
            struct wrong_disk disks[DISKS] = {0};
            disks[index].wrong = BIT(wrong);
            open_disks(&fix, disks);
            refuse_start(&fix, text_of(wrong, index));
            make_right(&fix, &disks[index], index);
            if (is_healed(wrong))
                run_once(&fix);
            close_disks(&fix, disks);
        }
    }
}

/* Everything that is checked later is wrong as well. */
TEST_LOOP(a_start_makes_its_checks_in_their_order)
{
    for (int wrong = 0; wrong < WRONGS; wrong++) {
        struct fix fix;
        struct wrong_disk disks[DISKS] = {0};
        disks[1].wrong = (BIT(WRONGS) - 1) & ~(BIT(wrong) - 1);
        open_disks(&fix, disks);
        refuse_start(&fix, text_of(wrong, 1));
        close_disks(&fix, disks);
    }
}

/* --- single cases --- */

#define MEMORY_DISK "{'driver':'null-co','node-name':'%s','size':%" PRIu64 ",'read-zeroes':true}"

static void add_layer(struct fix *fix, const char *name, uint64_t bytes, const char *backing)
    MAY_WAIT
{
    struct err err = ERR_INIT;
    char file[64];
    snprintf(file, sizeof(file), "%s.overlay", name);
    const struct overlay_create create = {.virtual_bytes = bytes};
    assert_int_equal(overlay_create(fix->loop, test_path(file), &create, true, &err), 0);
    char end[64] = "}";
    if (backing != NULL)
        snprintf(end, sizeof(end), ",'backing':'%s'}", backing);
    fix_add(fix->s.graph,
            "{'driver':'overlay','node-name':'%s','file':{'driver':'file','filename':'%s'}%s", name,
            test_path(file), end);
}

static void add_filter(struct fix *fix, const char *file, const char *top) MAY_WAIT
{
    fix_add(fix->s.graph,
            "{'driver':'replication','node-name':'rep0','mode':'secondary','top-id':'%s',"
            "'file':'%s'}",
            top, file);
}

static void add_test_layer(struct fix *fix, const char *driver, const char *name, uint64_t bytes,
                           const char *backing) MAY_WAIT
{
    fix_add(fix->s.graph, "{'driver':'%s','node-name':'%s','size':%" PRIu64 ",'backing':'%s'}",
            driver, name, bytes, backing);
}

TEST_LOOP(a_start_in_the_wrong_mode_is_refused)
{
    struct fix fix;
    fix_open(&fix, 1);
    struct snapshot *secondary = snapshot_take(fix.s.graph), *primary = snapshot_take(fix.p.graph);
    fix_refused(
        replication_start(fix.s.group, REPLICATION_PRIMARY, REPLICATION_OVERLAYS_EMPTY, &err),
        "has mode=secondary, but a start as primary");
    fix_refused(
        replication_start(fix.p.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err),
        "has mode=primary, but a start as secondary");
    snapshot_expect(fix.s.graph, secondary);
    snapshot_expect(fix.p.graph, primary);
    fix_close(&fix);
}

TEST_LOOP(a_start_on_disks_of_several_lengths_is_refused)
{
    static const uint64_t lengths[][3] = {{1, 1, 2}, {1, 2, 1}, {2, 1, 1}};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        struct fix fix;
        fix_open_empty(&fix, 0);
        fix_add(fix.s.graph, MEMORY_DISK, "disk", lengths[i][0] * FIX_DISK_BYTES);
        add_test_layer(&fix, "test-layer", "hidden", lengths[i][1] * FIX_DISK_BYTES, "disk");
        add_test_layer(&fix, "test-layer", "active", lengths[i][2] * FIX_DISK_BYTES, "hidden");
        add_filter(&fix, "active", "rep0");
        refuse_start(&fix, "must have one length");
        fix_close(&fix);
    }
}

TEST_LOOP(a_filter_may_be_its_own_top)
{
    struct fix fix;
    fix_open_empty(&fix, 0);
    fix_add(fix.s.graph, MEMORY_DISK, "disk", FIX_DISK_BYTES);
    add_layer(&fix, "hidden", FIX_DISK_BYTES, "disk");
    add_layer(&fix, "active", FIX_DISK_BYTES, "hidden");
    add_filter(&fix, "active", "rep0");
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err));
    fix_refused(graph_del(fix.s.graph, "rep0", &err), "replication");
    struct list *blockers = &graph_find(fix.s.graph, "rep0")->blockers;
    assert_ptr_equal(blockers->head.next, blockers->head.prev); /* one, though it is both */
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    fix_close(&fix);
}

TEST_LOOP(two_disks_of_a_group_have_tops_of_their_own)
{
    static const char *const names[][3] = {{"disk0", "hidden0", "active0"},
                                           {"disk1", "hidden1", "active1"}};
    struct fix fix;
    fix_open_empty(&fix, 0);
    for (unsigned i = 0; i < 2; i++) {
        fix_add(fix.s.graph, MEMORY_DISK, names[i][0], FIX_DISK_BYTES);
        add_layer(&fix, names[i][1], FIX_DISK_BYTES, names[i][0]);
        add_layer(&fix, names[i][2], FIX_DISK_BYTES, names[i][1]);
        fix_add(fix.s.graph,
                "{'driver':'replication','node-name':'rep%u','mode':'secondary','top-id':'both',"
                "'file':'active%u'}",
                i, i);
    }
    fix_add(fix.s.graph, "{'driver':'quorum','node-name':'both','vote-threshold':1,"
                         "'read-pattern':'fifo','children':['rep0','rep1']}");
    for (unsigned i = 0; i < 2; i++)
        refuse_start(&fix, "two disks of the group have top-id 'both'");
    fix_close(&fix);
}

TEST_LOOP(before_its_first_synchronisation_a_secondary_has_nothing_to_fall_back_to)
{
    struct fix fix;
    struct err why = ERR_INIT;
    uint64_t epoch = 0;
    fix_open(&fix, 1);
    fix_ok(replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_SYNC, &err));
    assert_int_equal(fix_fill(fix.forward[0], 0, BLOCK, 1), -EIO); /* P is not started */
    assert_int_equal(fix_fill(fix.peer[0], 0, BLOCK, 1), 0);
    assert_int_equal(replication_stop(fix.s.group, true, &why), -ENODATA);
    assert_non_null(strstr(why.text, "never synchronised"));
    assert_int_equal(fix.fences, 0);
    assert_int_equal(replication_stop(fix.s.group, false, &why), -ENODATA);
    assert_int_equal(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &why), -ENODATA);
    inject_failure(&fix, "sdisk", 0, BLKDEBUG_FLUSH);
    struct snapshot *before = snapshot_take(fix.s.graph);
    fix_refused(replication_first_checkpoint(fix.s.group, DEADLINE_NEVER, &epoch, &err),
                "cannot flush");
    snapshot_expect(fix.s.graph, before);
    assert_int_equal(replication_checkpoint(fix.s.group, DEADLINE_NEVER, NULL, &why), -ENODATA);
    fix_ok(replication_first_checkpoint(fix.s.group, DEADLINE_NEVER, &epoch, &err));
    assert_int_equal(epoch, 1);
    assert_int_equal(replication_first_checkpoint(fix.s.group, DEADLINE_NEVER, &epoch, &why),
                     -EINVAL);
    assert_int_equal(
        replication_start(fix.s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_SYNC, &why),
        -EBUSY);
    assert_int_equal(fix_fill(fix.peer[0], 0, BLOCK, 2), 0);
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    fix_ok(replication_stop(fix.s.group, true, &err));
    assert_int_equal(fix_byte(fix.top[0], 0, BLOCK), 1);
    fix_close(&fix);
}

static void open_read_only(struct fix *fix) MAY_WAIT
{
    fix_open_empty(fix, 1);
    fix_add_disk_file(fix, 0);
    fix_add_image(fix, "active", 0);
    fix_add_image(fix, "hidden", 0);
    fix_open_secondary_disk(fix, 0, true);
    fix_attach_secondary(fix, 0, false);
    fix_add_primary_disk(fix, 0);
}

TEST_LOOP(a_failover_keeps_the_disk_writable)
{
    struct fix fix;
    open_read_only(&fix);
    fix_start(&fix);
    assert_int_equal(fix_fill(fix.top[0], 0, BLOCK, 1), 0);
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    assert_int_equal(fix_fill(fix.top[0], BLOCK, BLOCK, 2), 0);
    assert_int_equal(fix_raw_byte(&fix, 0, 0, BLOCK), 1);
    assert_int_equal(fix_raw_byte(&fix, 0, BLOCK, BLOCK), 2);
    fix_close(&fix);
}

TEST_LOOP(other_operations_on_the_top_are_refused_with_the_reason_while_it_runs)
{
    struct fix fix;
    fix_open(&fix, 1);
    struct node *top = fix_node(&fix.s, "top", 0);
    fix_start(&fix);
    fix_refused(node_check_blocked(top, "mirror", &err), "replication of node 'rep0' is running");
    fix_ok(replication_stop(fix.s.group, true, &err));
    fix_ok(node_check_blocked(top, "mirror", &err));
    fix_wait_stage(&fix.s, REPLICATION_DONE);
    fix_ok(node_check_blocked(fix_node(&fix.s, "rep", 0), "mirror", &err));
    fix_close(&fix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_start_that_a_check_refuses_on_any_disk_leaves_nothing_behind),
        cmocka_unit_test(a_start_makes_its_checks_in_their_order),
        cmocka_unit_test(a_start_in_the_wrong_mode_is_refused),
        cmocka_unit_test(a_start_on_disks_of_several_lengths_is_refused),
        cmocka_unit_test(a_filter_may_be_its_own_top),
        cmocka_unit_test(two_disks_of_a_group_have_tops_of_their_own),
        cmocka_unit_test(before_its_first_synchronisation_a_secondary_has_nothing_to_fall_back_to),
        cmocka_unit_test(a_failover_keeps_the_disk_writable),
        cmocka_unit_test(other_operations_on_the_top_are_refused_with_the_reason_while_it_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
