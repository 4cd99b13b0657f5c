/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blocks.h"

#include "base/json.h"
#include "drivers/copy_before_write.h"
#include "drivers/overlay.h"
#include "drivers/quorum.h"
#include "drivers/replication.h"
#include "drivers/table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct mem_options {
    uint64_t size, align, memory_align, max_transfer, yields;
    bool fua, no_zeroes, grow, fail_open;
};

struct mem {
    uint8_t *bytes;
    uint64_t capacity_bytes;
    struct mem_stats stats;
    struct list changes; /* struct mem_change */
};

struct mem_change {
    struct list_link link;
    uint64_t offset, length;
};

#define MEM_GROW_BYTES (16u << 20)

unsigned mem_open_count;

struct mem_stats *mem_stats(struct node *node)
{
    return &((struct mem *)node->state)->stats;
}

uint8_t *mem_bytes(struct node *node)
{
    return ((struct mem *)node->state)->bytes;
}

static int mem_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct mem_options *options = node->options;
    struct mem *mem = node->state;

    co_yield();
    if (options->fail_open)
        return err_set(err, -EIO, "told to fail");
    mem->capacity_bytes = options->size + (options->grow ? MEM_GROW_BYTES : 0);
    mem->bytes = calloc(1, mem->capacity_bytes + 1);
    assert_non_null(mem->bytes);
    list_init(&mem->changes);
    node->length_bytes = options->size;
    node->limits = (struct node_limits){
        .request_align_bytes = (uint32_t)options->align,
        .memory_align_bytes = (uint32_t)options->memory_align,
        .max_transfer_bytes = (uint32_t)options->max_transfer,
        .fua = options->fua,
    };
    mem_open_count++;
    return 0;
}

static void mem_close(struct node *node) MAY_WAIT
{
    struct mem *mem = node->state;

    co_yield();
    assert_true(list_empty(&mem->changes));
    free(mem->bytes);
    mem_open_count--;
}

static void mem_check(struct node *node, const struct io *io, bool data)
{
    const struct mem_options *options = node->options;
    struct mem *mem = node->state;

    assert_true(io->length_bytes > 0);
    assert_int_equal(io->offset_bytes % options->align, 0);
    assert_int_equal(io->length_bytes % options->align, 0);
    assert_true(range_fits(io->offset_bytes, io->length_bytes, mem->capacity_bytes));
    if (!data) {
        assert_true(io->length_bytes <= IO_MAX_ZERO_BYTES);
        return;
    }
    assert_int_equal((uintptr_t)io->data.bytes % options->memory_align, 0);
    assert_int_equal(io->data.length_bytes, io->length_bytes);
    assert_true(io->length_bytes <=
                (options->max_transfer ? options->max_transfer : IO_MAX_TRANSFER_BYTES));
    mem->stats.largest_bytes = MAX(mem->stats.largest_bytes, io->length_bytes);
}

static void mem_pause(struct node *node) MAY_WAIT
{
    const struct mem_options *options = node->options;

    for (uint64_t i = 0; i < options->yields; i++)
        co_yield();
}

static int mem_read(struct node *node, struct io *io) MAY_WAIT
{
    struct mem *mem = node->state;

    mem_check(node, io, true);
    mem->stats.reads++;
    mem_pause(node);
    memcpy(io->data.bytes, mem->bytes + io->offset_bytes, io->length_bytes);
    return 0;
}

/* First one half, later the other. */
static void mem_change(struct node *node, const struct io *io, const uint8_t *bytes) MAY_WAIT
{
    struct mem *mem = node->state;
    struct mem_change change = {.offset = io->offset_bytes, .length = io->length_bytes};
    uint64_t half = io->length_bytes / 2;

    if (node->driver->orders_writes) {
        LIST_FOR_EACH(other, &mem->changes, struct mem_change, link)
            assert_false(
                ranges_overlap(other->offset, other->length, change.offset, change.length));
    }
    list_push_back(&mem->changes, &change.link);
    for (int turn = 0; turn < 2; turn++) {
        uint64_t first = turn == 0 ? 0 : half, length = turn == 0 ? half : io->length_bytes - half;

        if (bytes != NULL)
            memcpy(mem->bytes + io->offset_bytes + first, bytes + first, length);
        else
            memset(mem->bytes + io->offset_bytes + first, 0, length);
        mem_pause(node);
    }
    list_remove(&change.link);
}

static int mem_write(struct node *node, struct io *io) MAY_WAIT
{
    const struct mem_options *options = node->options;
    struct mem *mem = node->state;

    mem_check(node, io, true);
    if (!options->fua)
        assert_int_equal(io->flags & IO_FUA, 0);
    mem->stats.writes++;
    mem->stats.fua_writes += (io->flags & IO_FUA) != 0;
    mem_change(node, io, io->data.bytes);
    return 0;
}

static int mem_zero(struct node *node, struct io *io) MAY_WAIT
{
    const struct mem_options *options = node->options;
    struct mem *mem = node->state;

    mem_check(node, io, false);
    if (options->no_zeroes)
        return -EOPNOTSUPP;
    mem->stats.zeroes++;
    mem_change(node, io, NULL);
    return 0;
}

static int mem_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct mem *mem = node->state;

    mem_check(node, io, false);
    mem->stats.discards++;
    mem_change(node, io, NULL);
    return 0;
}

static int mem_flush(struct node *node) MAY_WAIT
{
    mem_pause(node);
    mem_stats(node)->flushes++;
    return 0;
}

static int mem_truncate(struct node *node, uint64_t length_bytes) MAY_WAIT
{
    const struct mem_options *options = node->options;
    const struct mem *mem = node->state;

    return options->grow && length_bytes <= mem->capacity_bytes ? 0 : -ENOTSUP;
}

#define MEM_OPT(name_, type_, field, fallback_)                                           \
    {                                                                                     \
        .name = (name_), .type = (type_), .offset = OPT_FIELD(struct mem_options, field), \
        .fallback = (fallback_), .help = "for tests"                                      \
    }

static const struct opt mem_opts[] = {
    MEM_OPT("size", OPT_SIZE, size, "1M"),
    MEM_OPT("align", OPT_SIZE, align, "1"),
    MEM_OPT("memory-align", OPT_SIZE, memory_align, "1"),
    MEM_OPT("max-transfer", OPT_SIZE, max_transfer, "0"),
    MEM_OPT("yields", OPT_UINT, yields, "0"),
    MEM_OPT("fua", OPT_BOOL, fua, "off"),
    MEM_OPT("no-zeroes", OPT_BOOL, no_zeroes, "off"),
    MEM_OPT("grow", OPT_BOOL, grow, "off"),
    MEM_OPT("fail-open", OPT_BOOL, fail_open, "off"),
    {0},
};

#define MEM_HOOKS                                                                                 \
    .state_size = sizeof(struct mem), .options_size = sizeof(struct mem_options),                 \
    .opts = mem_opts, .open = mem_open, .close = mem_close, .read = mem_read, .write = mem_write, \
    .zero = mem_zero, .discard = mem_discard, .flush = mem_flush, .truncate = mem_truncate

const struct driver driver_mem = {.name = "mem", MEM_HOOKS};
const struct driver driver_mem_ordered = {.name = "mem-ordered", .orders_writes = true, MEM_HOOKS};

/* A filter without a hook of its own. */
static const struct opt pass_opts[] = {
    {.name = "file", .type = OPT_CHILD, .required = true, .help = "what it passes on to"},
    {0},
};
static const struct driver driver_pass = {
    .name = "pass",
    .is_filter = true,
    .options_size = sizeof(struct json_object *),
    .opts = pass_opts,
};

/* Images that hold every nth block of 4 KiB: `cow` says so itself, `cow-extents` through extents. */
struct cow_options {
    struct json_object *file, *backing;
    uint64_t every;
};
static const struct opt cow_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct cow_options, file),
     .required = true,
     .help = "its own data"},
    {.name = "backing",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct cow_options, backing),
     .help = "what shows where it holds nothing"},
    {.name = "every",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct cow_options, every),
     .fallback = "1",
     .min = 1,
     .help = "which blocks it holds"},
    {0},
};
static int cow_held(struct node *node, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_held,
                    uint64_t *ret_length_bytes) MAY_WAIT
{
    const struct cow_options *options = node->options;

    co_yield();
    *ret_held = offset_bytes / 4096 % options->every == 0;
    *ret_length_bytes = MIN(length_bytes, 4096 - offset_bytes % 4096);
    return 0;
}
static int cow_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                       struct extent *ret_extent) MAY_WAIT
{
    bool held;

    cow_held(node, offset_bytes, length_bytes, &held, &ret_extent->length_bytes);
    ret_extent->flags = held ? EXTENT_DATA | EXTENT_HERE : EXTENT_DATA;
    ret_extent->depth = held ? 1 : 2;
    return 0;
}
static const struct driver driver_cow = {
    .name = "cow",
    .options_size = sizeof(struct cow_options),
    .opts = cow_opts,
    .held = cow_held,
};
static const struct driver driver_cow_extents = {
    .name = "cow-extents",
    .options_size = sizeof(struct cow_options),
    .opts = cow_opts,
    .extents = cow_extents,
};

/* A list of children that come and go. */
struct many_options {
    struct json_object *children;
};
static const struct opt many_opts[] = {
    {.name = "children",
     .type = OPT_CHILDREN,
     .offset = OPT_FIELD(struct many_options, children),
     .help = "its children"},
    {0},
};
static int many_open(struct node *node, struct err *err) MAY_WAIT
{
    struct edge *first = node_child(node, "children.0");

    node->length_bytes = first != NULL ? first->child->length_bytes : 0;
    return 0;
}
/* Iterates over its children while it waits, as a driver may that is not changed under requests. */
static int many_write(struct node *node, struct io *io) MAY_WAIT
{
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        int ret = io_write(edge, io);

        if (ret < 0)
            return ret;
        co_yield();
    }
    return 0;
}
static void many_child_perms(struct node *node, struct edge *edge, unsigned parents_need,
                             unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    *ret_need = parents_need;
    *ret_share = parents_share;
}
static int many_child_name(struct node *node, char *text, size_t text_bytes, struct err *err)
    MAY_WAIT
{
    snprintf(text, text_bytes, "children.%d", 9);
    return 0;
}
static int many_child_removing(struct node *node, struct edge *edge, struct err *err) MAY_WAIT
{
    if (strcmp(edge->name, "children.0") == 0)
        return err_set(err, -EBUSY, "the first child stays");
    return 0;
}
static const struct driver driver_many = {
    .name = "many",
    .options_size = sizeof(struct many_options),
    .opts = many_opts,
    .open = many_open,
    .write = many_write,
    .child_perms = many_child_perms,
    .child_name = many_child_name,
    .child_removing = many_child_removing,
};

static const struct driver *const drivers[] = {
    &driver_mem,
    &driver_mem_ordered,
    &driver_pass,
    &driver_cow,
    &driver_cow_extents,
    &driver_many,
    &driver_blkdebug,
    &driver_blklogwrites,
    &driver_file,
    &driver_nbd,
    &driver_null_co,
    &driver_raw,
    &driver_snapshot_access,
    &driver_throttle,
    &driver_overlay,
    &driver_copy_before_write,
    &driver_copy_before_write_access,
    &driver_quorum,
    &driver_replication,
    NULL,
};

/* --- helpers --- */

struct graph *blocks_graph(void)
{
    struct graph *graph = graph_new(loop_current(), drivers);

    assert_non_null(graph);
    graph_set_object_types(graph, object_types_table);
    return graph;
}

struct node *blocks_add(struct graph *graph, const char *fmt, ...)
{
    CLEANUP(json_putp) struct json_object *options = NULL;
    struct err err = ERR_INIT;
    struct node *node = NULL;
    char text[2048];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (json_parse(text, strlen(text), "test", &options, &err) < 0 ||
        graph_add(graph, options, OPTS_JSON, "test", strstr(text, "'node-name':") == text + 1,
                  &node, &err) < 0)
        fail_msg("%s: %s", text, err.text);
    return node;
}

int blocks_add_fails(struct graph *graph, const char *part, const char *options_text)
{
    CLEANUP(json_putp) struct json_object *options = NULL;
    struct err err = ERR_INIT;
    struct node *node = NULL;
    int ret;

    if (json_parse(options_text, strlen(options_text), "test", &options, &err) < 0)
        fail_msg("%s: %s", options_text, err.text);
    ret = graph_add(graph, options, OPTS_JSON, "test", false, &node, &err);
    assert_true(ret < 0);
    assert_null(node);
    if (strstr(err.text, part) == NULL)
        fail_msg("%s: '%s' does not contain '%s'", options_text, err.text, part);
    return ret;
}

struct edge *blocks_root(struct graph *graph, struct node *node, const char *name)
{
    struct err err = ERR_INIT;
    struct edge *edge = NULL;

    if (graph_attach_root(graph, node, name, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL,
                          NULL, &edge, &err) < 0)
        fail_msg("%s", err.text);
    return edge;
}

static struct io io_with_buf(uint64_t offset, uint64_t length, unsigned skew, unsigned flags,
                             struct buf **ret_buf)
{
    *ret_buf = buf_alloc(loop_bufs(loop_current()), length + skew + 1);
    assert_non_null(*ret_buf);
    return (struct io){.offset_bytes = offset,
                       .length_bytes = length,
                       .data = buf_slice_of(*ret_buf, skew, length),
                       .flags = flags};
}

int blocks_write_bytes(struct edge *edge, uint64_t offset, const void *bytes, uint64_t length,
                       unsigned skew, unsigned flags)
{
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    struct io io = io_with_buf(offset, length, skew, flags, &buf);

    memcpy(io.data.bytes, bytes, length);
    return io_write(edge, &io);
}

int blocks_read_bytes(struct edge *edge, uint64_t offset, void *bytes, uint64_t length,
                      unsigned skew)
{
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    struct io io = io_with_buf(offset, length, skew, 0, &buf);
    int ret = io_read(edge, &io);

    if (ret == 0)
        memcpy(bytes, io.data.bytes, length);
    return ret;
}

int blocks_write(struct edge *edge, uint64_t offset, uint64_t length, uint8_t fill, unsigned flags)
{
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    struct io io = io_with_buf(offset, length, 0, flags, &buf);

    memset(io.data.bytes, fill, length);
    return io_write(edge, &io);
}

int blocks_zero(struct edge *edge, uint64_t offset, uint64_t length, unsigned flags)
{
    struct io io = {.offset_bytes = offset, .length_bytes = length, .flags = flags};

    return io_zero(edge, &io);
}

int blocks_discard(struct edge *edge, uint64_t offset, uint64_t length)
{
    struct io io = {.offset_bytes = offset, .length_bytes = length};

    return io_discard(edge, &io);
}

void blocks_expect(struct edge *edge, uint64_t offset, uint64_t length, uint8_t fill)
{
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    struct io io = io_with_buf(offset, length, 0, 0, &buf);

    memset(io.data.bytes, (uint8_t)~fill, length);
    assert_int_equal(io_read(edge, &io), 0);
    for (uint64_t i = 0; i < length; i++) {
        if (io.data.bytes[i] != fill)
            fail_msg("byte %llu is 0x%02x, not 0x%02x", (unsigned long long)(offset + i),
                     io.data.bytes[i], fill);
    }
}

static void blocks_task_run(void *arg) MAY_WAIT
{
    struct blocks_task *task = arg;

    task->result = blocks_write(task->edge, task->offset, task->length, task->fill, 0);
    task->done = true;
}

void blocks_start_write(struct blocks_task *task, struct edge *edge, uint64_t offset,
                        uint64_t length, uint8_t fill)
{
    *task = (struct blocks_task){
        .edge = edge, .offset = offset, .length = length, .fill = fill, .result = 1};
    assert_int_equal(co_spawn_now(graph_loop(edge->graph), "write", blocks_task_run, task), 0);
}
