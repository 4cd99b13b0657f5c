/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * quorum: several children that hold the same. Writes go to all at once; fifo reads to the first that
 * answers; voting reads, to all (quorum_vote.c).
 *
 * A write is acknowledged only if the place later reads come from has it. So with fifo, whatever the
 * threshold: the first child must have taken it, and a child that missed an acknowledged write is not
 * read from any more, until it is removed and added again. With votes: so many children as the
 * threshold says must have taken it that have missed none before; others have no vote.
 */
#include "drivers/quorum_internal.h"

#include "base/json.h"
#include "block/graph.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SECTOR_BYTES 512u

enum { PATTERN_QUORUM, PATTERN_FIFO };

struct quorum_options {
    struct json_object *children;
    uint64_t vote_threshold;
    int read_pattern;
    bool rewrite_corrupted, blkverify;
};

struct quorum *quorum_of(struct node *node)
{
    assert(node_check(node)->driver == &driver_quorum);
    return node->state;
}

/* --- events --- */

static void add_sectors(struct json_object *data, uint64_t offset_bytes, uint64_t length_bytes)
{
    uint64_t first = offset_bytes / SECTOR_BYTES;
    uint64_t end = (offset_bytes + length_bytes + SECTOR_BYTES - 1) / SECTOR_BYTES;

    (void)json_add_uint(data, "sector-num", first);
    (void)json_add_uint(data, "sectors-count", end - first);
}

void quorum_report_bad(struct edge *edge, const char *type, uint64_t offset_bytes,
                       uint64_t length_bytes, int code)
{
    struct json_object *data = json_object_new_object();

    if (data == NULL)
        return;
    (void)json_add_string(data, "type", type);
    if (code < 0)
        (void)json_add_string(data, "error", strerror(-code));
    (void)json_add_string(data, "node-name", edge->child->name);
    add_sectors(data, offset_bytes, length_bytes);
    graph_event(edge->graph, "QUORUM_REPORT_BAD", data);
}

void quorum_report_failure(struct node *node, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct json_object *data = json_object_new_object();

    quorum_of(node)->failures++;
    if (data == NULL)
        return;
    (void)json_add_string(data, "reference", node->name);
    add_sectors(data, offset_bytes, length_bytes);
    graph_event(node->graph, "QUORUM_FAILURE", data);
}

/* --- changes go to all --- */

enum kind { KIND_WRITE, KIND_ZERO, KIND_DISCARD, KIND_FLUSH };

/* One request, of all children; on the stack of its coroutine. */
struct change {
    enum kind kind;
    const struct io *io; /* not of a flush */
    unsigned count;
    struct change_part {
        struct change *change;
        struct edge *edge;
        int result;
    } parts[QUORUM_MAX_CHILDREN];
    struct co_group group;
};

static int part_call(const struct change_part *part) MAY_WAIT
{
    switch (part->change->kind) {
    case KIND_WRITE:
        return io_write(part->edge, part->change->io);
    case KIND_ZERO:
        return io_zero(part->edge, part->change->io);
    case KIND_DISCARD:
        return io_discard(part->edge, part->change->io);
    default:
        return io_flush(part->edge);
    }
}

static void part_main(void *arg) MAY_WAIT
{
    struct change_part *part = arg;

    part->result = part_call(part);
    co_group_leave(&part->change->group);
}

/* Starts the parts from the second on, so that the caller can do the first. */
static void change_start_others(struct loop *loop, struct change *change) MAY_WAIT
{
    co_group_init(&change->group);
    for (unsigned i = 1; i < change->count; i++) {
        struct change_part *part = &change->parts[i];

        co_group_enter(&change->group);
        if (co_spawn_now(loop, "quorum part", part_main, part) == 0)
            continue;
        /* Without memory for a coroutine it takes its turn in this one. */
        part->result = part_call(part);
        co_group_leave(&change->group);
    }
}

/* Enough children have it, and the first of them when reads come from there. */
static bool change_is_good(const struct quorum *quorum, const struct change *change)
{
    unsigned good = 0;

    for (unsigned i = 0; i < change->count; i++) {
        bool counts = !quorum->votes || !quorum->children[i].missed;

        good += change->parts[i].result == 0 && counts;
    }
    return good >= quorum->threshold && (quorum->votes || change->parts[0].result == 0);
}

static int change_error(const struct quorum *quorum, const struct change *change)
{
    int results[QUORUM_MAX_CHILDREN], first = 0;

    for (unsigned i = 0; i < change->count; i++) {
        results[i] = change->parts[i].result;
        first = first == 0 ? results[i] : first;
    }
    return quorum->votes ? quorum_vote_error(results, change->count) : first;
}

/* What the children's results mean: for the caller, and for later reads. */
static int change_count(struct node *node, struct change *change)
{
    struct quorum *quorum = quorum_of(node);
    uint64_t offset = change->io != NULL ? change->io->offset_bytes : 0;
    uint64_t length = change->io != NULL ? change->io->length_bytes : node->length_bytes;
    bool failed = false;

    for (unsigned i = 0; i < change->count; i++) {
        const struct change_part *part = &change->parts[i];

        if (likely(part->result == 0))
            continue;
        failed = true;
        quorum_report_bad(part->edge, change->kind == KIND_FLUSH ? "flush" : "write", offset,
                          length, part->result);
    }
    if (likely(!failed && !quorum->votes))
        return 0;
    if (!change_is_good(quorum, change)) {
        quorum_report_failure(node, offset, length);
        return change_error(quorum, change);
    }
    for (unsigned i = 0; i < change->count && change->kind != KIND_FLUSH; i++) {
        assert(quorum->children[i].edge == change->parts[i].edge || i >= quorum->count);
        if (change->parts[i].result < 0)
            quorum->children[i].missed = true;
    }
    return 0;
}

static int change_all(struct node *node, struct change *change) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);

    change->count = quorum->count;
    for (unsigned i = 0; i < change->count; i++)
        change->parts[i] = (struct change_part){.change = change, .edge = quorum->children[i].edge};
    if (change->count > 1)
        change_start_others(graph_loop(node->graph), change);
    change->parts[0].result = part_call(&change->parts[0]);
    if (change->count > 1)
        (void)co_group_wait(&change->group);
    return change_count(node, change);
}

static int quorum_change(struct node *node, enum kind kind, const struct io *io) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    struct range_lock lock;
    struct change change;
    int ret;

    if (unlikely(quorum->differed))
        return -EIO;
    co_gate_enter(&quorum->requests);
    change.kind = kind;
    change.io = io;
    if (quorum->votes && io != NULL) {
        range_lock_acquire(&quorum->locks, &lock, io->offset_bytes, io->length_bytes, true);
        ret = change_all(node, &change);
        range_lock_release(&quorum->locks, &lock);
    } else {
        ret = change_all(node, &change);
    }
    co_gate_leave(&quorum->requests);
    return ret;
}

static int quorum_write(struct node *node, struct io *io) MAY_WAIT
{
    return quorum_change(node, KIND_WRITE, io);
}

/* "Not slowly" is asked of the first child only: when it is done there, the others must follow. */
static int quorum_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    struct io slow = *io;
    int ret;

    if ((io->flags & IO_NO_FALLBACK) == 0)
        return quorum_change(node, KIND_ZERO, io);
    /* With votes all must do the same, and the first alone would be outvoted. */
    if (quorum->votes)
        return -EOPNOTSUPP;
    co_gate_enter(&quorum->requests);
    ret = io_zero(quorum->children[0].edge, io);
    co_gate_leave(&quorum->requests);
    if (ret < 0)
        return ret;
    slow.flags &= ~(unsigned)IO_NO_FALLBACK;
    return quorum_change(node, KIND_ZERO, &slow);
}

/* What a discard leaves behind may differ from child to child, and differences are what votes are
 * about: zeroes then. */
static int quorum_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct io zero = *io;

    if (quorum_of(node)->votes) {
        zero.flags = IO_MAY_UNMAP;
        return quorum_change(node, KIND_ZERO, &zero);
    }
    return quorum_change(node, KIND_DISCARD, io);
}

static int quorum_flush(struct node *node) MAY_WAIT
{
    return quorum_change(node, KIND_FLUSH, NULL);
}

/* --- reads --- */

static int read_first(struct node *node, struct io *io) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    int first_error = -EIO;
    int ret = -EIO;

    for (unsigned i = 0; i < quorum->count && ret < 0; i++) {
        const struct child *child = &quorum->children[i];

        if (child->missed)
            continue;
        ret = io_read(child->edge, io);
        if (likely(ret == 0))
            break;
        first_error = i == 0 ? ret : first_error;
        quorum_report_bad(child->edge, "read", io->offset_bytes, io->length_bytes, ret);
    }
    if (unlikely(ret < 0))
        quorum_report_failure(node, io->offset_bytes, io->length_bytes);
    return ret < 0 ? first_error : 0;
}

static int quorum_read(struct node *node, struct io *io) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    int ret;

    co_gate_enter(&quorum->requests);
    ret = quorum->votes ? quorum_vote_read(node, io) : read_first(node, io);
    co_gate_leave(&quorum->requests);
    return ret;
}

/* Votes: zeroes only where all have zeroes. */
static void extents_of_all(const struct quorum *quorum, uint64_t offset_bytes,
                           uint64_t length_bytes, struct extent *ret_extent) MAY_WAIT
{
    struct extent all = {
        .length_bytes = length_bytes, .flags = EXTENT_ZERO | EXTENT_HERE, .depth = 1};

    for (unsigned i = 0; i < quorum->count; i++) {
        struct extent one = {.length_bytes = all.length_bytes, .flags = EXTENT_DATA};

        if (quorum->children[i].missed)
            continue;
        if (io_extents(quorum->children[i].edge, offset_bytes, all.length_bytes, &one) < 0)
            one.flags = EXTENT_DATA;
        all.length_bytes = MIN(all.length_bytes, one.length_bytes);
        if ((one.flags & EXTENT_ZERO) == 0)
            all.flags = EXTENT_DATA | EXTENT_HERE;
    }
    *ret_extent = all;
}

static int quorum_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                          struct extent *ret_extent) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);

    co_gate_enter(&quorum->requests);
    if (quorum->votes)
        extents_of_all(quorum, offset_bytes, length_bytes, ret_extent);
    else if (io_extents(quorum->children[0].edge, offset_bytes, length_bytes, ret_extent) < 0)
        *ret_extent = (struct extent){
            .length_bytes = length_bytes, .flags = EXTENT_DATA | EXTENT_HERE, .depth = 1};
    co_gate_leave(&quorum->requests);
    return 0;
}

/* --- control --- */

static bool is_child_name(const char *name, unsigned index)
{
    char expected[32];

    snprintf(expected, sizeof(expected), "children.%u", index);
    return strcmp(name, expected) == 0;
}

static int check_length(struct node *node, const struct edge *edge, struct err *err)
{
    if (edge->child->length_bytes == node->length_bytes)
        return 0;
    return err_set(err, -EINVAL,
                   "'%s' of quorum '%s' has %" PRIu64 " bytes, the others %" PRIu64
                   ": all must be equal",
                   edge->child->name, node->name, edge->child->length_bytes, node->length_bytes);
}

/* What suits all children. */
static void take_limits(struct node *node)
{
    const struct quorum *quorum = quorum_of(node);
    struct node_limits limits = {.request_align_bytes = 1, .memory_align_bytes = 1, .fua = true};

    for (unsigned i = 0; i < quorum->count; i++) {
        const struct node_limits *child = &quorum->children[i].edge->child->limits;

        limits.request_align_bytes = MAX(limits.request_align_bytes, child->request_align_bytes);
        limits.memory_align_bytes = MAX(limits.memory_align_bytes, child->memory_align_bytes);
    }
    node->limits = limits;
}

static int check_options(const struct quorum_options *options, unsigned children, struct err *err)
{
    bool votes = options->read_pattern == PATTERN_QUORUM;

    if (options->rewrite_corrupted && !votes)
        return err_set(err, -EINVAL,
                       "rewrite-corrupted=on cannot be used with read-pattern=fifo: leave it off");
    if (options->rewrite_corrupted && options->blkverify)
        return err_set(err, -EINVAL, "rewrite-corrupted=on cannot be used with blkverify=on");
    if (options->blkverify && (!votes || children != 2 || options->vote_threshold != 2))
        return err_set(err, -EINVAL,
                       "blkverify=on needs exactly two children, a vote-threshold of 2 and "
                       "read-pattern=quorum");
    if (children == 0 || children > QUORUM_MAX_CHILDREN)
        return err_set(err, -EINVAL, "'children' must be 1 to %u nodes", QUORUM_MAX_CHILDREN);
    if (options->vote_threshold > children)
        return err_set(err, -ERANGE,
                       "'vote-threshold' may not exceed the number of children: %" PRIu64
                       " is more than %u",
                       options->vote_threshold, children);
    return 0;
}

static int quorum_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct quorum_options *options = node->options;
    struct quorum *quorum = node->state;
    unsigned children = 0;
    int ret;

    co_gate_init(&quorum->requests);
    range_locks_init(&quorum->locks);
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent)
        children++;
    ret = check_options(options, children, err);
    if (ret < 0)
        return ret;
    quorum->threshold = (unsigned)options->vote_threshold;
    quorum->votes = options->read_pattern == PATTERN_QUORUM;
    quorum->rewrites = options->rewrite_corrupted;
    quorum->verifies = options->blkverify;
    LIST_FOR_EACH(edge, &node->children, struct edge, in_parent) {
        if (quorum->count == 0)
            node->length_bytes = edge->child->length_bytes;
        ret = check_length(node, edge, err);
        if (ret < 0)
            return ret;
        quorum->children[quorum->count++].edge = edge;
    }
    quorum->next_index = quorum->count;
    take_limits(node);
    return 0;
}

static void quorum_close(struct node *node)
{
    assert(quorum_of(node)->requests.inside == 0);
}

static int quorum_child_name(struct node *node, char *text, size_t text_bytes, struct err *err)
{
    const struct quorum *quorum = quorum_of(node);

    if (quorum->verifies)
        return err_set(err, -EINVAL, "quorum '%s' is in blkverify mode: it takes no further child",
                       node->name);
    if (quorum->count == QUORUM_MAX_CHILDREN || quorum->next_index == UINT32_MAX)
        return err_set(err, -ENOSPC, "quorum '%s' has %u children already", node->name,
                       quorum->count);
    snprintf(text, text_bytes, "children.%u", quorum->next_index);
    return 0;
}

static int quorum_child_added(struct node *node, struct edge *edge, struct err *err) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    int ret = check_length(node, edge, err);

    if (ret < 0)
        return ret;
    if (quorum->count == QUORUM_MAX_CHILDREN)
        return err_set(err, -ENOSPC, "quorum '%s' has %u children already", node->name,
                       quorum->count);
    quorum->children[quorum->count++] = (struct child){.edge = edge};
    quorum->next_index++;
    take_limits(node);
    return 0;
}

/* Reads come from children that have missed no write: with votes so many must stay that they can agree,
 * else one. */
static bool others_are_good(const struct quorum *quorum, unsigned index)
{
    unsigned good = 0;

    for (unsigned i = 0; i < quorum->count; i++)
        good += i != index && !quorum->children[i].missed;
    return good >= (quorum->votes ? quorum->threshold : 1);
}

static int quorum_child_removing(struct node *node, struct edge *edge, struct err *err) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    unsigned index = 0;

    while (index < quorum->count && quorum->children[index].edge != edge)
        index++;
    assert(index < quorum->count);
    if (quorum->count <= quorum->threshold)
        return err_set(err, -EBUSY,
                       "the number of children of quorum '%s' may not fall below its "
                       "vote-threshold %u",
                       node->name, quorum->threshold);
    co_gate_close(&quorum->requests);
    co_gate_wait_empty(&quorum->requests);
    if (!others_are_good(quorum, index)) {
        co_gate_open(&quorum->requests);
        return err_set(err, -EBUSY,
                       "without '%s' quorum '%s' has too few children that have missed no write",
                       edge->child->name, node->name);
    }
    memmove(&quorum->children[index], &quorum->children[index + 1],
            (quorum->count - index - 1) * sizeof(struct child));
    quorum->count--;
    if (is_child_name(edge->name, quorum->next_index - 1))
        quorum->next_index--;
    co_gate_open(&quorum->requests);
    return 0;
}

/* Who else writes to a child makes the children differ. Corrections write, whatever parents do. */
static void quorum_perms(struct node *node, struct edge *edge, unsigned parents_need,
                         unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    const struct quorum_options *options = node->options;

    *ret_need = parents_need & (PERM_CONSISTENT_READ | PERM_WRITE | PERM_WRITE_UNCHANGED);
    if (options->rewrite_corrupted && !node->read_only)
        *ret_need |= PERM_WRITE;
    if (*ret_need != 0)
        *ret_need |= PERM_CONSISTENT_READ;
    *ret_share = (parents_share & PERM_CONSISTENT_READ) | PERM_WRITE_UNCHANGED;
}

static int quorum_describe(struct node *node, struct json_object *object)
{
    const struct quorum *quorum = quorum_of(node);
    unsigned missed = 0;

    for (unsigned i = 0; i < quorum->count; i++)
        missed += quorum->children[i].missed;
    if (json_add_uint(object, "vote-threshold", quorum->threshold) < 0 ||
        json_add_string(object, "read-pattern", quorum->votes ? "quorum" : "fifo") < 0 ||
        json_add_uint(object, "corrected", quorum->corrected) < 0 ||
        json_add_uint(object, "children-behind", missed) < 0 ||
        json_add_uint(object, "failures", quorum->failures) < 0)
        return -ENOMEM;
    return 0;
}

static const char *const pattern_names[] = {"quorum", "fifo", NULL};

static const struct opt quorum_opts[] = {
    {.name = "children",
     .type = OPT_CHILDREN,
     .offset = OPT_FIELD(struct quorum_options, children),
     .required = true,
     .help = "the nodes that hold the same"},
    {.name = "vote-threshold",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct quorum_options, vote_threshold),
     .required = true,
     .min = 1,
     .max = QUORUM_MAX_CHILDREN,
     .help = "how many of them must have done a request, or must agree"},
    {.name = "read-pattern",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct quorum_options, read_pattern),
     .fallback = "quorum",
     .values = pattern_names,
     .help = "quorum: all are read and vote; fifo: the first that answers"},
    {.name = "rewrite-corrupted",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct quorum_options, rewrite_corrupted),
     .help = "write what won to children that say something else"},
    {.name = "blkverify",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct quorum_options, blkverify),
     .help = "for tests of drivers: two children; nothing goes on after a difference"},
    {0},
};

const struct driver driver_quorum = {
    .name = "quorum",
    .orders_writes = true,
    .state_size = sizeof(struct quorum),
    .options_size = sizeof(struct quorum_options),
    .opts = quorum_opts,
    .open = quorum_open,
    .close = quorum_close,
    .child_name = quorum_child_name,
    .child_added = quorum_child_added,
    .child_removing = quorum_child_removing,
    .child_perms = quorum_perms,
    .describe = quorum_describe,
    .read = quorum_read,
    .write = quorum_write,
    .zero = quorum_zero,
    .discard = quorum_discard,
    .flush = quorum_flush,
    .extents = quorum_extents,
};
