/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A replicated pair whose secondary has a state folder. A kill is made by putting the record back as it
 * was: at level process nothing else is lost.
 */
#ifndef BLOCKSTEP_TESTS_GROUP_STATE_FIXTURE_H
#define BLOCKSTEP_TESTS_GROUP_STATE_FIXTURE_H

#include "replication_fixture.h"

#include "loop/sim.h"
#include "replication/group_internal.h"

#include <limits.h>

#define BLOCK 4096u

static const char boot_a[] = "boot-a", boot_b[] = "boot-b";

UNUSED static void use_state(struct fix *fix, enum group_durability level, const char *boot)
    MAY_WAIT
{
    const struct replication_state state = {
        .folder = test_folder(), .level = level, .boot_id = boot};
    fix_ok(replication_use_state(fix->s.group, &state, &err));
}

UNUSED static void close_secondary(struct fix *fix) MAY_WAIT
{
    fix_detach(fix);
    fix_close_side(&fix->s);
}

UNUSED static void open_secondary(struct fix *fix, enum group_durability level, const char *boot)
    MAY_WAIT
{
    fix_side_init(fix, &fix->s);
    use_state(fix, level, boot);
    for (unsigned i = 0; i < fix->disks; i++)
        fix_open_secondary_disk(fix, i, false);
    for (unsigned i = 0; i < fix->disks; i++)
        fix_attach_secondary(fix, i, true);
}

/* One or more disks with a state folder, running. */
UNUSED static void begin(struct fix *fix, unsigned disks, enum group_durability level) MAY_WAIT
{
    fix_open(fix, disks);
    use_state(fix, level, boot_a);
    fix_start(fix);
}

UNUSED static void end(struct fix *fix) MAY_WAIT
{
    close_secondary(fix);
    fix_close_side(&fix->p);
    /* In the simulator the folder stays. */
    (void)path_unlink(fix->loop, test_path("group"));
    test_folder_remove();
}

/* --- files --- */

struct content {
    uint8_t *bytes;
    size_t length;
};

UNUSED static struct content file_take(const char *name) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct content content;
    struct file *file;
    assert_int_equal(file_open(loop_current(), test_path(name), 0, FILE_AIO_AUTO, &file, &err), 0);
    content.length = file_info(file)->length_bytes;
    content.bytes = malloc(content.length + 1);
    assert_non_null(content.bytes);
    assert_int_equal(file_read(file, content.bytes, content.length, 0), content.length);
    file_close(file);
    return content;
}

UNUSED static void file_put(const char *name, struct content content) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct file *file;
    assert_int_equal(file_open(loop_current(), test_path(name),
                               FILE_WRITABLE | FILE_CREATE | FILE_TRUNCATE, FILE_AIO_AUTO, &file,
                               &err),
                     0);
    assert_int_equal(file_write(file, content.bytes, content.length, 0), 0);
    file_close(file);
    free(content.bytes);
}

/* Ends the secondary as a kill does, as far as the record goes. */
UNUSED static void kill_secondary(struct fix *fix) MAY_WAIT
{
    struct content record = file_take("group");
    close_secondary(fix);
    file_put("group", record);
}

UNUSED static void restart(struct fix *fix) MAY_WAIT
{
    fix_ok(
        replication_start(fix->s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err));
}

UNUSED static void refuse_start(struct fix *fix, enum replication_overlays overlays,
                                const char *part) MAY_WAIT
{
    fix_refused(replication_start(fix->s.group, REPLICATION_SECONDARY, overlays, &err), part);
}

/* When its disks have been looked at, and the first put together. */
UNUSED static void refuse_start_for_a_reader(struct fix *fix) MAY_WAIT
{
    struct edge *reader;
    graph_detach(TAKE_PTR(fix->peer[1]));
    fix_ok(graph_attach_root(fix->s.graph, fix_node(&fix->s, "sdisk", 1), "reader",
                             PERM_CONSISTENT_READ, PERM_ALL & ~(unsigned)PERM_WRITE, NULL, NULL,
                             &reader, &err));
    refuse_start(fix, REPLICATION_OVERLAYS_EMPTY, "which reader does not allow");
    graph_detach(reader);
}

UNUSED static struct json_object *member(struct json_object *object, const char *key)
{
    struct json_object *value = NULL;
    json_object_object_get_ex(object, key, &value);
    return value;
}

UNUSED static void expect_consistent(struct fix *fix) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    if (!json_object_get_boolean(member(query, "consistent")))
        fail_msg("inconsistent: %s", json_object_to_json_string(query));
}

/* The group is, says why, and does nothing that needs a checkpoint. */
UNUSED static void expect_inconsistent(struct fix *fix, const char *part) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    const char *reason = json_object_get_string(member(query, "inconsistent-reason"));
    assert_non_null(reason);
    if (strstr(reason, part) == NULL)
        fail_msg("'%s' does not say '%s'", reason, part);
    assert_int_equal(fix_stage(&fix->s), REPLICATION_NONE);
    fix_refused(replication_stop(fix->s.group, true, &err), part);
    fix_refused(replication_stop(fix->s.group, false, &err), part);
    fix_refused(replication_checkpoint(fix->s.group, DEADLINE_NEVER, NULL, &err), part);
    assert_int_equal(fix_byte(fix->top[0], 0, BLOCK), -EIO);
}

UNUSED static uint64_t epoch_of(struct fix *fix) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *query = replication_query(fix->s.group);
    return json_object_get_uint64(member(query, "epoch"));
}

/* Block 0: 1 at the checkpoint, 2 forwarded since; block 1: 3 by S's user. */
UNUSED static void live_epoch(struct fix *fix) MAY_WAIT
{
    for (unsigned i = 0; i < fix->disks; i++)
        assert_int_equal(fix_fill(fix->forward[i], 0, BLOCK, 1), 0);
    fix_checkpoint(fix);
    for (unsigned i = 0; i < fix->disks; i++) {
        assert_int_equal(fix_fill(fix->forward[i], 0, BLOCK, 2), 0);
        assert_int_equal(fix_fill(fix->top[i], BLOCK, BLOCK, 3), 0);
    }
}

UNUSED static void expect_live_epoch(struct fix *fix) MAY_WAIT
{
    expect_consistent(fix);
    for (unsigned i = 0; i < fix->disks; i++) {
        assert_int_equal(fix_byte(fix->top[i], 0, BLOCK), 1);
        assert_int_equal(fix_byte(fix->top[i], BLOCK, BLOCK), 3);
        assert_int_equal(fix_raw_byte(fix, i, 0, BLOCK), 2);
    }
}

#endif
