/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Emptying that a record decides: which generation is live, and what a crash in between leaves. */
#include "overlay_fixture.h"

#define SIZE_BYTES (1024u * 1024)

static struct overlay_fixture open_new(void) MAY_WAIT
{
    struct overlay_fixture f;

    overlay_make(test_path("a"), SIZE_BYTES, 0, 0);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    return f;
}

static void done(struct overlay_fixture *f) MAY_WAIT
{
    overlay_shut(f);
    test_folder_remove();
}

static struct overlay_identity identity_of(struct node *node)
{
    struct overlay_identity identity;

    assert_true(overlay_identity(node, &identity));
    return identity;
}

static void empty(struct node *node) MAY_WAIT
{
    struct err err = ERR_INIT;

    if (node_empty_prepare(node, &err) < 0)
        fail_msg("%s", err.text);
    node_empty_commit(node);
}

/* What a daemon leaves that is killed now, under the name "b". */
static void kill_and_open(struct overlay_fixture *killed) MAY_WAIT
{
    size_t length;
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);

    overlay_put_file(test_path("b"), bytes, length);
    free(bytes);
    overlay_open_at(killed, test_path("b"), SIZE_BYTES);
}

TEST_LOOP(an_emptying_that_a_record_decides_writes_nothing_until_the_next_save)
{
    struct overlay_fixture f = open_new(), killed;
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .error = -EIO};
    struct err err = ERR_INIT;

    assert_int_equal(blocks_write(f.edge, 0, 65536, 0xaa, 0), 0);
    overlay_set_recorded(f.node, true);
    assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
    assert_int_equal(node_empty_prepare(f.node, &err), 0);
    assert_int_equal(identity_of(f.node).next_generation, 2);
    node_empty_abort(f.node);
    blocks_expect(f.edge, 0, 65536, 0xaa);
    empty(f.node);
    blkdebug_remove(f.debug, 0);
    assert_int_equal(identity_of(f.node).generation, 2);
    assert_int_equal(identity_of(f.node).held_bytes, 0);
    blocks_expect(f.edge, 0, 512, overlay_backing_byte(0));

    kill_and_open(&killed); /* the record is written, the superblock is not */
    assert_int_equal(identity_of(killed.node).generation, 1);
    assert_int_equal(overlay_settle(killed.node, 2, &err), 0);
    assert_int_equal(identity_of(killed.node).generation, 2);
    blocks_expect(killed.edge, 0, 512, overlay_backing_byte(0));
    overlay_shut(&killed);
    overlay_open_at(&killed, test_path("b"), SIZE_BYTES);
    assert_int_equal(identity_of(killed.node).generation, 2);
    assert_int_equal(identity_of(killed.node).held_bytes, 0);
    overlay_shut(&killed);

    assert_int_equal(blocks_write(f.edge, 4096, 4096, 0xbb, 0), 0);
    kill_and_open(&killed);
    assert_int_equal(overlay_settle(killed.node, 2, &err), 0);
    blocks_expect(killed.edge, 0, 512, overlay_backing_byte(0));
    blocks_expect(killed.edge, 4096, 4096, 0xbb);
    overlay_shut(&killed);
    done(&f);
}

#define WITH_ID                                             \
    "{'driver':'overlay','node-name':'%s','image-id':'%s'," \
    "'read-only':true,'file':{'driver':'file','filename':'%s'}}"

TEST_LOOP(an_image_is_known_by_its_id)
{
    struct overlay_fixture f = open_new();
    struct overlay_identity identity = identity_of(f.node);
    struct graph *graph = blocks_graph();
    char id[2 * sizeof(identity.image_id) + 1];

    overlay_shut(&f);
    for (size_t i = 0; i < sizeof(identity.image_id); i++)
        snprintf(id + 2 * i, 3, "%02x", identity.image_id[i]);
    char wrong[400];
    blocks_add(graph, WITH_ID, "right", id, test_path("a"));
    id[0] = id[0] == '0' ? '1' : '0';
    snprintf(wrong, sizeof(wrong), WITH_ID, "wrong", id, test_path("a"));
    assert_int_equal(blocks_add_fails(graph, "it is the overlay of another disk", wrong), -EINVAL);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(no_save_counts_while_the_superblock_cannot_follow)
{
    struct overlay_fixture f = open_new(), killed;
    const struct blkdebug_rule rule = {.kinds = BLKDEBUG_WRITE, .count = 1, .error = -EIO};

    assert_int_equal(blocks_write(f.edge, 0, 65536, 0xaa, 0), 0);
    overlay_set_recorded(f.node, true);
    empty(f.node);
    empty(f.node);
    assert_int_equal(blkdebug_inject(f.debug, &rule, NULL), 0);
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 0xbb, 0), -EIO);
    kill_and_open(&killed);
    blocks_expect(killed.edge, 0, 65536, 0xaa);
    overlay_shut(&killed);
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 0xbb, 0), 0);
    kill_and_open(&killed);
    assert_int_equal(identity_of(killed.node).generation, 3);
    blocks_expect(killed.edge, 4096, 4096, 0xbb);
    overlay_shut(&killed);
    done(&f);
}

TEST_LOOP(closing_writes_the_superblock_that_is_due)
{
    struct overlay_fixture f = open_new();

    assert_int_equal(blocks_write(f.edge, 0, 65536, 0xaa, 0), 0);
    overlay_set_recorded(f.node, true);
    empty(f.node);
    overlay_shut(&f);
    overlay_open_at(&f, test_path("a"), SIZE_BYTES);
    assert_int_equal(identity_of(f.node).generation, 2);
    assert_int_equal(identity_of(f.node).held_bytes, 0);
    done(&f);
}

TEST_LOOP(a_superblock_that_is_due_is_written_soon_also_without_a_save)
{
    struct overlay_fixture f = open_new(), killed;

    overlay_set_recorded(f.node, true);
    empty(f.node);
    co_sleep(200 * NS_PER_MS);
    kill_and_open(&killed);
    assert_int_equal(identity_of(killed.node).generation, 2);
    overlay_shut(&killed);
    done(&f);
}

TEST_LOOP(an_overlay_newer_than_its_record_is_refused)
{
    struct overlay_fixture f = open_new();
    struct err err = ERR_INIT;

    empty(f.node);
    assert_int_equal(blocks_write(f.edge, 0, 4096, 0xaa, 0), 0);
    assert_int_equal(overlay_settle(f.node, 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "generation 2, which is newer than the 1"));
    assert_int_equal(overlay_settle(f.node, 2, &err), 0);
    assert_int_equal(overlay_settle(f.node, 0, &err), 0);
    blocks_expect(f.edge, 0, 4096, 0xaa);
    assert_int_equal(overlay_settle(f.backing, 2, &err), -ENOTSUP);
    done(&f);
}

/* --- damage --- */

static struct node *open_held(struct graph *graph) MAY_WAIT
{
    return blocks_add(graph,
                      "{'node-name':'held','driver':'overlay','on-damage':'hold','file':"
                      "{'driver':'file','filename':'%s'}}",
                      test_path("a"));
}

/* Damages the first of the image's records. */
static void damage_record(void) MAY_WAIT
{
    struct overlay_fixture f = open_new();
    size_t length;

    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(blocks_write(f.edge, i * UINT64_C(8192), 4096, 0xaa, 0), 0);
    overlay_shut(&f);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    bytes[OVERLAY_LOG_OFFSET_BYTES + 1000] ^= 1;
    overlay_put_file(test_path("a"), bytes, length);
    free(bytes);
}

TEST_LOOP(a_damaged_overlay_can_be_held_and_emptied_but_never_read)
{
    struct graph *graph = blocks_graph();
    struct extent extent;
    struct err err = ERR_INIT;
    uint8_t bytes[512];

    damage_record();
    struct node *node = open_held(graph);
    struct edge *edge = blocks_root(graph, node, "test");
    struct overlay_identity identity = identity_of(node);
    assert_true(identity.damaged);
    assert_non_null(strstr(identity.damage, "damaged"));
    assert_int_equal(blocks_read_bytes(edge, 0, bytes, sizeof(bytes), 0), -EUCLEAN);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), -EUCLEAN);
    assert_int_equal(blocks_zero(edge, 0, 512, 0), -EUCLEAN);
    assert_int_equal(io_extents(edge, 0, SIZE_BYTES, &extent), -EUCLEAN);
    assert_int_equal(overlay_settle(node, 1, &err), -EUCLEAN);
    assert_non_null(strstr(err.text, "'held'"));
    assert_int_equal(overlay_settle(node, 0, &err), -EUCLEAN);
    graph_detach(edge);
    graph_free(graph);

    /* It is still damaged, and older than what the record says: nothing of it counts. */
    graph = blocks_graph();
    node = open_held(graph);
    assert_true(identity_of(node).damaged);
    assert_int_equal(overlay_settle(node, 2, &err), 0);
    assert_false(identity_of(node).damaged);
    edge = blocks_root(graph, node, "test");
    blocks_expect(edge, 0, 65536, 0);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), 0);
    graph_detach(edge);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(a_lost_superblock_is_never_taken_for_an_older_generation)
{
    struct overlay_fixture f = open_new();
    struct graph *graph;
    struct err err = ERR_INIT;
    size_t length;

    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0); /* serial 3 */
    empty(f.node);                                            /* serial 4 */
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 2, 0), 0);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    overlay_shut(&f);
    bytes[100] ^= 1;
    overlay_put_file(test_path("a"), bytes, length);

    graph = blocks_graph();
    struct node *node = open_held(graph);
    assert_true(identity_of(node).damaged);
    assert_int_equal(identity_of(node).generation, 1);
    assert_int_equal(overlay_settle(node, 2, &err), -EUCLEAN);
    assert_int_equal(identity_of(node).next_generation, 3);
    empty(node);
    assert_false(identity_of(node).damaged);
    graph_free(graph);

    /* Once a record has gone on to the third, what is left of the second counts as little as the first. */
    overlay_put_file(test_path("a"), bytes, length);
    free(bytes);
    graph = blocks_graph();
    node = open_held(graph);
    assert_true(identity_of(node).damaged);
    assert_int_equal(overlay_settle(node, 3, &err), 0);
    assert_false(identity_of(node).damaged);
    assert_int_equal(identity_of(node).generation, 3);
    assert_int_equal(identity_of(node).held_bytes, 0);
    graph_free(graph);
    test_folder_remove();
}

/* Three blocks, each a record of its own, of which the second's is overwritten; `flushed`: before the
 * third. */
static struct node *open_torn(struct graph *graph, bool flushed) MAY_WAIT
{
    struct overlay_fixture f = open_new();
    size_t length[2];

    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0);
    free(overlay_snapshot(test_path("a"), &length[0]));
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 2, 0), 0);
    if (flushed)
        assert_int_equal(io_flush(f.edge), 0);
    assert_int_equal(blocks_write(f.edge, 8192, 4096, 3, 0), 0);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length[1]);
    overlay_shut(&f);
    memset(bytes + length[0], 0, 512);
    overlay_put_file(test_path("a"), bytes, length[1]);
    free(bytes);
    return open_held(graph);
}

TEST_LOOP(after_a_loss_of_power_what_was_not_flushed_can_be_forgotten)
{
    struct graph *graph = blocks_graph();
    struct node *node = open_torn(graph, false);
    struct err err = ERR_INIT;

    assert_true(identity_of(node).damaged);
    assert_true(identity_of(node).tail_only);
    assert_int_equal(overlay_forget_tail(node, &err), 0);
    assert_false(identity_of(node).damaged);
    assert_int_equal(identity_of(node).held_bytes, 4096);
    assert_int_equal(overlay_forget_tail(node, &err), -EUCLEAN);
    graph_free(graph);

    graph = blocks_graph(); /* and nothing of it comes back */
    node = open_held(graph);
    assert_false(identity_of(node).damaged);
    assert_int_equal(identity_of(node).held_bytes, 4096);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(a_record_that_was_flushed_is_never_forgotten)
{
    struct graph *graph = blocks_graph();
    struct node *node = open_torn(graph, true);
    struct err err = ERR_INIT;

    assert_true(identity_of(node).damaged);
    assert_false(identity_of(node).tail_only);
    assert_int_equal(overlay_forget_tail(node, &err), -EUCLEAN);
    assert_true(identity_of(node).damaged);
    graph_free(graph);
    test_folder_remove();
}

TEST_LOOP(an_overlay_whose_live_superblock_is_lost_is_salvaged_as_empty)
{
    struct overlay_fixture f = open_new();
    struct graph *graph;
    struct err err = ERR_INIT;
    size_t length;

    assert_int_equal(blocks_write(f.edge, 0, 4096, 1, 0), 0); /* serial 3 */
    empty(f.node);                                            /* serial 4 */
    assert_int_equal(blocks_write(f.edge, 4096, 4096, 2, 0), 0);
    uint8_t *bytes = overlay_snapshot(test_path("a"), &length);
    overlay_shut(&f);
    bytes[100] ^= 1;
    overlay_put_file(test_path("a"), bytes, length);
    free(bytes);

    for (unsigned opened = 0; opened < 2; opened++) {
        graph = blocks_graph();
        struct node *node = open_held(graph);
        assert_true(identity_of(node).damaged == (opened == 0));
        assert_int_equal(overlay_salvage(node, 2, &err), 0);
        assert_false(identity_of(node).damaged);
        assert_int_equal(identity_of(node).generation, 3);
        assert_int_equal(identity_of(node).held_bytes, 0);
        graph_free(graph);
    }
    test_folder_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_emptying_that_a_record_decides_writes_nothing_until_the_next_save),
        cmocka_unit_test(an_image_is_known_by_its_id),
        cmocka_unit_test(no_save_counts_while_the_superblock_cannot_follow),
        cmocka_unit_test(closing_writes_the_superblock_that_is_due),
        cmocka_unit_test(a_superblock_that_is_due_is_written_soon_also_without_a_save),
        cmocka_unit_test(an_overlay_newer_than_its_record_is_refused),
        cmocka_unit_test(a_damaged_overlay_can_be_held_and_emptied_but_never_read),
        cmocka_unit_test(a_lost_superblock_is_never_taken_for_an_older_generation),
        cmocka_unit_test(after_a_loss_of_power_what_was_not_flushed_can_be_forgotten),
        cmocka_unit_test(a_record_that_was_flushed_is_never_forgotten),
        cmocka_unit_test(an_overlay_whose_live_superblock_is_lost_is_salvaged_as_empty),
    };

    return cmocka_run_group_tests_name("overlay generation", tests, NULL, NULL);
}
