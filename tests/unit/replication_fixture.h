/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A replicated pair in one process: two graphs on one loop, each with its group. The primary's
 * forwarding ends in a root of the secondary's graph (driver test-link), which stands for the export.
 *
 * Secondary, per disk N:  topN (blkdebug) -> repN -> adebugN (blkdebug) -> activeN -> hdebugN (blkdebug)
 *                         -> hiddenN -> sdiskN (blkdebug) -> sfileN (file)
 * Primary, per disk N:    prepN -> plinkN
 */
#ifndef BLOCKSTEP_TESTS_REPLICATION_FIXTURE_H
#define BLOCKSTEP_TESTS_REPLICATION_FIXTURE_H

#include "blocks.h"

#include "base/json.h"
#include "drivers/overlay.h"
#include "drivers/table.h"
#include "replication/group.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FIX_DISK_BYTES (UINT64_C(2) * 1024 * 1024)
#define FIX_MAX_DISKS  3u
#define FIX_EVENTS     512u
#define FIX_DRIVERS    32u

struct fix_event {
    char name[48];
    struct json_object *data;
};

struct fix_side {
    struct graph *graph;
    struct job_list jobs;
    struct replication_group *group;
    struct fix_event events[FIX_EVENTS];
    unsigned event_count;
};

struct fix {
    struct loop *loop;
    struct fix_side s, p;
    unsigned disks;
    uint64_t length_bytes;
    struct edge *top[FIX_MAX_DISKS];     /* S's user */
    struct edge *peer[FIX_MAX_DISKS];    /* the export for P; NULL: fenced */
    struct edge *forward[FIX_MAX_DISKS]; /* P's user */
    struct replication_owner owner;
    unsigned fences;
    int fence_error;
};

/* --- driver test-link: a node of one graph whose requests enter another --- */

struct test_link {
    struct fix *fix;
    unsigned disk;
};

struct test_link_options {
    uint64_t size_bytes;
};

static struct edge *test_link_edge(struct node *node)
{
    struct test_link *link = node->state;
    return link->fix == NULL ? NULL : link->fix->peer[link->disk];
}

static int test_link_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct test_link_options *options = node->options;
    node->length_bytes = options->size_bytes;
    return 0;
}

static int test_link_read(struct node *node, struct io *io) MAY_WAIT
{
    struct edge *edge = test_link_edge(node);
    return edge == NULL ? -EPIPE : io_read(edge, io);
}

static int test_link_write(struct node *node, struct io *io) MAY_WAIT
{
    struct edge *edge = test_link_edge(node);
    return edge == NULL ? -EPIPE : io_write(edge, io);
}

static int test_link_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct edge *edge = test_link_edge(node);
    return edge == NULL ? -EPIPE : io_zero(edge, io);
}

static int test_link_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct edge *edge = test_link_edge(node);
    return edge == NULL ? -EPIPE : io_discard(edge, io);
}

static int test_link_flush(struct node *node) MAY_WAIT
{
    struct edge *edge = test_link_edge(node);
    return edge == NULL ? -EPIPE : io_flush(edge);
}

static const struct opt test_link_opts[] = {
    {.name = "size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct test_link_options, size_bytes),
     .required = true,
     .help = "length"},
    {.name = NULL},
};

static const struct driver driver_test_link = {
    .name = "test-link",
    .state_size = sizeof(struct test_link),
    .options_size = sizeof(struct test_link_options),
    .opts = test_link_opts,
    .open = test_link_open,
    .read = test_link_read,
    .write = test_link_write,
    .zero = test_link_zero,
    .discard = test_link_discard,
    .flush = test_link_flush,
};

/* --- drivers test-layer and test-solid: images of any length with a backing child. The first can be
 * emptied. For what a start checks; no I/O. --- */

static int test_layer_open(struct node *node, struct err *err) MAY_WAIT
{
    return test_link_open(node, err);
}

static int test_layer_empty_prepare(struct node *node, struct err *err) MAY_WAIT
{
    return 0;
}

static void test_layer_empty_end(struct node *node)
{
}

struct test_layer_options {
    struct test_link_options link;
    struct json_object *backing;
};

static const struct opt test_layer_opts[] = {
    {.name = "size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct test_layer_options, link.size_bytes),
     .required = true,
     .help = "length"},
    {.name = "backing",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct test_layer_options, backing),
     .help = "what is below"},
    {.name = NULL},
};

static const struct driver driver_test_layer = {
    .name = "test-layer",
    .options_size = sizeof(struct test_layer_options),
    .opts = test_layer_opts,
    .open = test_layer_open,
    .empty_prepare = test_layer_empty_prepare,
    .empty_commit = test_layer_empty_end,
    .empty_abort = test_layer_empty_end,
};

static const struct driver driver_test_solid = {
    .name = "test-solid",
    .options_size = sizeof(struct test_layer_options),
    .opts = test_layer_opts,
    .open = test_layer_open,
};

/* --- driver test-stuck: a filter that cannot be made writable while it is told so. --- */

struct test_stuck {
    bool stuck;
};

static int test_stuck_open(struct node *node, struct err *err) MAY_WAIT
{
    node->length_bytes = node->file->child->length_bytes;
    return 0;
}

static int test_stuck_reopen(struct node *node, bool read_only, struct err *err) MAY_WAIT
{
    const struct test_stuck *state = node->state;
    if (state->stuck && !read_only)
        return err_set(err, -EROFS, "the test keeps a file read-only");
    return 0;
}

struct test_stuck_options {
    struct json_object *file;
};

static const struct opt test_stuck_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct test_stuck_options, file),
     .required = true,
     .help = "what is below"},
    {.name = NULL},
};

static const struct driver driver_test_stuck = {
    .name = "test-stuck",
    .is_filter = true,
    .state_size = sizeof(struct test_stuck),
    .options_size = sizeof(struct test_stuck_options),
    .opts = test_stuck_opts,
    .open = test_stuck_open,
    .reopen = test_stuck_reopen,
};

/* --- graphs --- */

static const struct driver *fix_drivers[FIX_DRIVERS];

UNUSED static const struct driver *const *fix_table(void)
{
    size_t count = 0;
    for (; drivers_table[count] != NULL; count++)
        fix_drivers[count] = drivers_table[count];
    fix_drivers[count++] = &driver_test_link;
    fix_drivers[count++] = &driver_test_layer;
    fix_drivers[count++] = &driver_test_solid;
    fix_drivers[count++] = &driver_test_stuck;
    fix_drivers[count++] = &driver_mem;
    fix_drivers[count] = NULL;
    assert_true(count < FIX_DRIVERS);
    return fix_drivers;
}

static void fix_event(void *arg, const char *name, struct json_object *data)
{
    struct fix_side *side = arg;
    assert_true(side->event_count < FIX_EVENTS);
    struct fix_event *event = &side->events[side->event_count++];
    snprintf(event->name, sizeof(event->name), "%s", name);
    event->data = data;
}

UNUSED static unsigned fix_count_events(const struct fix_side *side, const char *name)
{
    unsigned count = 0;
    for (unsigned i = 0; i < side->event_count; i++)
        count += strcmp(side->events[i].name, name) == 0;
    return count;
}

/* The last event of that name; NULL: none. */
UNUSED static struct json_object *fix_last_event(const struct fix_side *side, const char *name)
{
    for (unsigned i = side->event_count; i > 0; i--) {
        if (strcmp(side->events[i - 1].name, name) == 0)
            return side->events[i - 1].data;
    }
    return NULL;
}

static void fix_forget_events(struct fix_side *side)
{
    for (unsigned i = 0; i < side->event_count; i++)
        json_object_put(side->events[i].data);
    side->event_count = 0;
}

/* JSON in single quotes, printf style. */
PRINTF_LIKE(3, 4)
static int fix_try_add(struct graph *graph, struct err *err, const char *fmt, ...) MAY_WAIT
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    struct json_object *options = NULL;
    int ret = json_parse(text, strlen(text), "test", &options, err);
    if (ret < 0)
        return ret;
    struct node *node;
    ret = graph_add(graph, options, OPTS_JSON, "test", true, &node, err);
    json_object_put(options);
    return ret;
}

#define fix_add(graph, ...)                                 \
    do {                                                    \
        struct err add_err_ = ERR_INIT;                     \
        if (fix_try_add(graph, &add_err_, __VA_ARGS__) < 0) \
            fail_msg("blockdev-add: %s", add_err_.text);    \
    } while (0)

UNUSED static struct node *fix_node(struct fix_side *side, const char *prefix, unsigned disk)
{
    char name[NODE_NAME_BYTES];
    snprintf(name, sizeof(name), "%s%u", prefix, disk);
    struct node *node = graph_find(side->graph, name);
    assert_non_null(node);
    return node;
}

static struct edge *fix_root(struct fix_side *side, const char *prefix, unsigned disk,
                             unsigned need) MAY_WAIT
{
    struct edge *edge;
    struct err err = ERR_INIT;
    char name[EDGE_NAME_BYTES];
    snprintf(name, sizeof(name), "export '%s%u'", prefix, disk);
    if (graph_attach_root(side->graph, fix_node(side, prefix, disk), name, need, PERM_ALL, NULL,
                          NULL, &edge, &err) < 0)
        fail_msg("attach: %s", err.text);
    return edge;
}

static void fix_add_image(struct fix *fix, const char *name, unsigned disk) MAY_WAIT
{
    struct err err = ERR_INIT;
    char file[64];
    snprintf(file, sizeof(file), "%s%u.overlay", name, disk);
    const struct overlay_create create = {.virtual_bytes = fix->length_bytes};
    if (overlay_create(fix->loop, test_path(file), &create, true, &err) < 0)
        fail_msg("%s", err.text);
}

static void fix_add_disk_file(struct fix *fix, unsigned disk) MAY_WAIT
{
    struct err err = ERR_INIT;
    struct file *file;
    char name[64];
    snprintf(name, sizeof(name), "disk%u.raw", disk);
    if (file_open(fix->loop, test_path(name), FILE_WRITABLE | FILE_CREATE | FILE_TRUNCATE,
                  FILE_AIO_AUTO, &file, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(file_truncate(file, fix->length_bytes), 0);
    file_close(file);
}

/* Names of files for the options of one disk. */
struct fix_paths {
    char raw[300], active[300], hidden[300];
};

static struct fix_paths fix_paths_of(unsigned disk) MAY_WAIT
{
    struct fix_paths paths;
    char name[64];
    snprintf(name, sizeof(name), "disk%u.raw", disk);
    snprintf(paths.raw, sizeof(paths.raw), "%s", test_path(name));
    snprintf(name, sizeof(name), "active%u.overlay", disk);
    snprintf(paths.active, sizeof(paths.active), "%s", test_path(name));
    snprintf(name, sizeof(name), "hidden%u.overlay", disk);
    snprintf(paths.hidden, sizeof(paths.hidden), "%s", test_path(name));
    return paths;
}

/* The nodes of one secondary disk from files that exist. */
static void fix_open_secondary_disk(struct fix *fix, unsigned disk, bool read_only) MAY_WAIT
{
    struct graph *graph = fix->s.graph;
    struct fix_paths paths = fix_paths_of(disk);
    const char *ro = read_only ? "true" : "false";
    fix_add(graph,
            "{'driver':'blkdebug','node-name':'sdisk%u','read-only':%s,"
            "'file':{'driver':'file','filename':'%s'}}",
            disk, ro, paths.raw);
    fix_add(graph,
            "{'driver':'overlay','node-name':'hidden%u','read-only':%s,'backing':'sdisk%u',"
            "'on-damage':'hold','file':{'driver':'file','filename':'%s'}}",
            disk, ro, disk, paths.hidden);
    fix_add(graph, "{'driver':'blkdebug','node-name':'hdebug%u','read-only':%s,'file':'hidden%u'}",
            disk, ro, disk);
    fix_add(graph,
            "{'driver':'overlay','node-name':'active%u','backing':'hdebug%u',"
            "'on-damage':'hold','file':{'driver':'file','filename':'%s'}}",
            disk, disk, paths.active);
    fix_add(graph, "{'driver':'blkdebug','node-name':'adebug%u','file':'active%u'}", disk, disk);
    fix_add(graph,
            "{'driver':'replication','node-name':'rep%u','mode':'secondary','top-id':'top%u',"
            "'file':'adebug%u'}",
            disk, disk, disk);
    fix_add(graph, "{'driver':'blkdebug','node-name':'top%u','file':'rep%u'}", disk, disk);
}

static void fix_attach_secondary(struct fix *fix, unsigned disk, bool writes) MAY_WAIT
{
    unsigned need = PERM_CONSISTENT_READ | (writes ? PERM_WRITE : 0);
    fix->top[disk] = fix_root(&fix->s, "top", disk, PERM_CONSISTENT_READ | PERM_WRITE);
    fix->peer[disk] = fix_root(&fix->s, "sdisk", disk, need);
}

static void fix_add_primary_disk(struct fix *fix, unsigned disk) MAY_WAIT
{
    struct graph *graph = fix->p.graph;
    fix_add(graph, "{'driver':'test-link','node-name':'plink%u','size':%" PRIu64 "}", disk,
            fix->length_bytes);
    struct test_link *link = fix_node(&fix->p, "plink", disk)->state;
    link->fix = fix;
    link->disk = disk;
    fix_add(graph,
            "{'driver':'replication','node-name':'prep%u','mode':'primary','file':'plink%u'}", disk,
            disk);
    fix->forward[disk] = fix_root(&fix->p, "prep", disk, PERM_CONSISTENT_READ | PERM_WRITE);
}

/* The fence: waits until what the peer has sent has ended, and takes its roots away. */
static int fix_fence(void *arg, struct edge *const *roots, size_t count, struct err *err) MAY_WAIT
{
    struct fix *fix = arg;
    fix->fences++;
    if (fix->fence_error != 0)
        return err_set(err, fix->fence_error, "the test refuses the fence");
    for (size_t i = 0; i < count; i++) {
        unsigned disk = 0;
        while (disk < fix->disks && fix->peer[disk] != roots[i])
            disk++;
        assert_true(disk < fix->disks); /* S's own user is nobody's peer */
        fix->peer[disk] = NULL;
        graph_detach(roots[i]);
    }
    return 0;
}

static void fix_side_init(struct fix *fix, struct fix_side *side)
{
    side->graph = graph_new(fix->loop, fix_table());
    assert_non_null(side->graph);
    graph_set_events(side->graph, fix_event, side);
    job_list_init(&side->jobs, side->graph);
    side->group = replication_group_new(side->graph, &side->jobs, &fix->owner);
    assert_non_null(side->group);
}

UNUSED static void fix_open_empty(struct fix *fix, unsigned disks)
{
    *fix = (struct fix){.loop = loop_current(), .disks = disks, .length_bytes = FIX_DISK_BYTES};
    fix->owner = (struct replication_owner){.fence = fix_fence, .arg = fix};
    fix_side_init(fix, &fix->s);
    fix_side_init(fix, &fix->p);
}

UNUSED static void fix_open(struct fix *fix, unsigned disks) MAY_WAIT
{
    fix_open_empty(fix, disks);
    for (unsigned i = 0; i < disks; i++) {
        fix_add_disk_file(fix, i);
        fix_add_image(fix, "active", i);
        fix_add_image(fix, "hidden", i);
        fix_open_secondary_disk(fix, i, false);
        fix_attach_secondary(fix, i, true);
        fix_add_primary_disk(fix, i);
    }
}

static void fix_close_side(struct fix_side *side) MAY_WAIT
{
    replication_group_free(side->group);
    job_list_end(&side->jobs);
    graph_free(side->graph);
    fix_forget_events(side);
}

/* As a daemon that ends: users go, then the group, then the graph. */
UNUSED static void fix_detach(struct fix *fix) MAY_WAIT
{
    for (unsigned i = 0; i < fix->disks; i++) {
        graph_detach(fix->forward[i]);
        graph_detach(fix->top[i]);
        graph_detach(fix->peer[i]);
        fix->forward[i] = fix->top[i] = fix->peer[i] = NULL;
    }
}

UNUSED static void fix_close(struct fix *fix) MAY_WAIT
{
    fix_detach(fix);
    fix_close_side(&fix->p);
    fix_close_side(&fix->s);
    test_folder_remove();
}

/* --- calls --- */

#define fix_ok(call)                          \
    do {                                      \
        struct err err = ERR_INIT;            \
        if ((call) != 0)                      \
            fail_msg(#call ": %s", err.text); \
    } while (0)

/* Fails unless the call fails with a text that holds `part`. */
#define fix_refused(call, part)                                         \
    do {                                                                \
        struct err err = ERR_INIT;                                      \
        if ((call) >= 0)                                                \
            fail_msg(#call " succeeded");                               \
        if (strstr(err.text, part) == NULL)                             \
            fail_msg(#call ": '%s' does not say '%s'", err.text, part); \
    } while (0)

UNUSED static void fix_start(struct fix *fix) MAY_WAIT
{
    fix_ok(
        replication_start(fix->s.group, REPLICATION_SECONDARY, REPLICATION_OVERLAYS_EMPTY, &err));
    fix_ok(replication_start(fix->p.group, REPLICATION_PRIMARY, REPLICATION_OVERLAYS_EMPTY, &err));
}

UNUSED static void fix_checkpoint(struct fix *fix) MAY_WAIT
{
    fix_ok(replication_checkpoint(fix->p.group, DEADLINE_NEVER, NULL, &err));
    fix_ok(replication_checkpoint(fix->s.group, DEADLINE_NEVER, NULL, &err));
}

UNUSED static enum replication_stage fix_stage(struct fix_side *side)
{
    enum replication_mode mode;
    enum replication_stage stage;
    assert_true(replication_state(side->group, &mode, &stage));
    return stage;
}

UNUSED static void fix_wait_stage(struct fix_side *side, enum replication_stage stage) MAY_WAIT
{
    test_wait_until(fix_stage(side) == stage);
}

/* --- requests --- */

UNUSED static int fix_write(struct edge *edge, uint64_t offset, const void *bytes, size_t length)
    MAY_WAIT
{
    struct buf *buf = buf_alloc(loop_bufs(loop_current()), length);
    assert_non_null(buf);
    memcpy(buf->bytes, bytes, length);
    struct io io = {
        .offset_bytes = offset, .length_bytes = length, .data = buf_slice_of(buf, 0, length)};
    int ret = io_write(edge, &io);
    buf_unref(buf);
    return ret;
}

UNUSED static int fix_fill_as(struct edge *edge, uint64_t offset, size_t length, int byte,
                              unsigned flags) MAY_WAIT
{
    struct buf *buf = buf_alloc(loop_bufs(loop_current()), length);
    assert_non_null(buf);
    memset(buf->bytes, byte, length);
    struct io io = {.offset_bytes = offset,
                    .length_bytes = length,
                    .flags = flags,
                    .data = buf_slice_of(buf, 0, length)};
    int ret = io_write(edge, &io);
    buf_unref(buf);
    return ret;
}

UNUSED static int fix_fill(struct edge *edge, uint64_t offset, size_t length, int byte) MAY_WAIT
{
    return fix_fill_as(edge, offset, length, byte, 0);
}

UNUSED static int fix_zero(struct edge *edge, uint64_t offset, uint64_t length) MAY_WAIT
{
    struct io io = {.offset_bytes = offset, .length_bytes = length, .flags = IO_MAY_UNMAP};
    return io_zero(edge, &io);
}

UNUSED static int fix_discard(struct edge *edge, uint64_t offset, uint64_t length) MAY_WAIT
{
    struct io io = {.offset_bytes = offset, .length_bytes = length};
    return io_discard(edge, &io);
}

UNUSED static int fix_read(struct edge *edge, uint64_t offset, void *bytes, size_t length) MAY_WAIT
{
    struct buf *buf = buf_alloc(loop_bufs(loop_current()), length);
    assert_non_null(buf);
    struct io io = {
        .offset_bytes = offset, .length_bytes = length, .data = buf_slice_of(buf, 0, length)};
    int ret = io_read(edge, &io);
    if (ret == 0)
        memcpy(bytes, buf->bytes, length);
    buf_unref(buf);
    return ret;
}

/* The byte that fills [offset, offset + length); fails when several do. */
UNUSED static int fix_byte(struct edge *edge, uint64_t offset, size_t length) MAY_WAIT
{
    CLEANUP(free_ptr) uint8_t *bytes = malloc(length);
    assert_non_null(bytes);
    int ret = fix_read(edge, offset, bytes, length);
    if (ret < 0)
        return ret;
    for (size_t i = 1; i < length; i++)
        assert_int_equal(bytes[i], bytes[0]);
    return bytes[0];
}

/* The secondary disk itself, past everything. Attached for the look alone, so that it is nobody's
 * way to the disk. */
UNUSED static int fix_raw_byte(struct fix *fix, unsigned disk, uint64_t offset, size_t length)
    MAY_WAIT
{
    struct edge *raw = fix_root(&fix->s, "sdisk", disk, PERM_CONSISTENT_READ);
    int byte = fix_byte(raw, offset, length);
    graph_detach(raw);
    return byte;
}

UNUSED static void fix_inject(struct fix_side *side, const char *prefix, unsigned disk,
                              struct blkdebug_rule rule)
{
    assert_int_equal(blkdebug_inject(fix_node(side, prefix, disk), &rule, NULL), 0);
}

#endif
