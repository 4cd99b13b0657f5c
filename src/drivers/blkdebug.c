/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/blkdebug.h"

#include "block/io.h"
#include "drivers/table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

struct blkdebug_options {
    struct json_object *file;
    struct opt_objects inject; /* struct rule_options */
    uint64_t align_bytes, memory_align_bytes, max_transfer_bytes;
};

struct rule {
    struct blkdebug_rule what;
    unsigned id; /* 0: free */
    uint64_t matches;
};

struct blkdebug {
    struct rule rules[BLKDEBUG_MAX_RULES]; /* the oldest first */
    unsigned rule_count;
    unsigned last_id;
    struct list held; /* struct fault */
    struct co_queue held_changed;
};

/* What happens to one request; on its stack. */
struct fault {
    struct list_link link;
    struct blkdebug_rule rule; /* kinds 0: nothing */
    unsigned id;
    bool released;
    struct co *waiter;
};

static struct blkdebug *blkdebug_of(struct node *node)
{
    assert(node_check(node)->driver == &driver_blkdebug);
    return node->state;
}

/* --- control --- */

int blkdebug_inject(struct node *node, const struct blkdebug_rule *rule, unsigned *ret_id)
{
    struct blkdebug *debug = blkdebug_of(node);

    if (debug->rule_count == BLKDEBUG_MAX_RULES)
        return -ENOSPC;
    debug->rules[debug->rule_count++] = (struct rule){.what = *rule, .id = ++debug->last_id};
    if (ret_id != NULL)
        *ret_id = debug->last_id;
    return 0;
}

void blkdebug_remove(struct node *node, unsigned id)
{
    struct blkdebug *debug = blkdebug_of(node);
    unsigned kept = 0;

    for (unsigned i = 0; i < debug->rule_count; i++) {
        if (id != 0 && debug->rules[i].id != id)
            debug->rules[kept++] = debug->rules[i];
    }
    debug->rule_count = kept;
}

uint64_t blkdebug_matches(struct node *node, unsigned id)
{
    struct blkdebug *debug = blkdebug_of(node);

    for (unsigned i = 0; i < debug->rule_count; i++) {
        if (debug->rules[i].id == id)
            return debug->rules[i].matches;
    }
    return 0;
}

unsigned blkdebug_held(struct node *node, unsigned id)
{
    unsigned count = 0;

    LIST_FOR_EACH(fault, &blkdebug_of(node)->held, struct fault, link)
        count += id == 0 || fault->id == id;
    return count;
}

void blkdebug_release(struct node *node, unsigned id)
{
    LIST_FOR_EACH_SAFE(fault, &blkdebug_of(node)->held, struct fault, link) {
        if (id != 0 && fault->id != id)
            continue;
        list_remove(&fault->link);
        fault->released = true;
        co_wake(fault->waiter);
    }
}

int blkdebug_await_held(struct node *node, unsigned id, unsigned count, uint64_t deadline_ns)
{
    struct blkdebug *debug = blkdebug_of(node);

    while (blkdebug_held(node, id) < count) {
        if (co_queue_wait_until(&debug->held_changed, deadline_ns) < 0 &&
            blkdebug_held(node, id) < count)
            return -ETIMEDOUT;
    }
    return 0;
}

/* --- requests --- */

static bool rule_matches(const struct blkdebug_rule *rule, unsigned kind, uint64_t offset_bytes,
                         uint64_t length_bytes)
{
    uint64_t end = rule->length_bytes == 0 ? UINT64_MAX : rule->offset_bytes + rule->length_bytes;

    if ((rule->kinds & kind) == 0)
        return false;
    if ((kind & (BLKDEBUG_FLUSH | BLKDEBUG_EMPTY | BLKDEBUG_TRUNCATE)) != 0)
        return true;
    return offset_bytes < end && rule->offset_bytes < offset_bytes + length_bytes;
}

static bool rule_acts(const struct rule *rule)
{
    uint64_t nth = MAX(rule->what.nth, 1);

    return rule->matches >= nth &&
           (rule->what.count == 0 || rule->matches - nth < rule->what.count);
}

static void fault_pick(struct blkdebug *debug, unsigned kind, uint64_t offset_bytes,
                       uint64_t length_bytes, struct fault *ret_fault)
{
    *ret_fault = (struct fault){.waiter = co_self()};
    for (unsigned i = 0; i < debug->rule_count; i++) {
        struct rule *rule = &debug->rules[i];

        if (!rule_matches(&rule->what, kind, offset_bytes, length_bytes))
            continue;
        rule->matches++;
        if (ret_fault->rule.kinds == 0 && rule_acts(rule)) {
            ret_fault->rule = rule->what;
            ret_fault->id = rule->id;
        }
    }
}

/* Holds, delays and returns the error. */
static int fault_act(struct blkdebug *debug, struct fault *fault) MAY_WAIT
{
    if (fault->rule.hold) {
        list_push_back(&debug->held, &fault->link);
        co_queue_wake_all(&debug->held_changed);
        while (!fault->released)
            co_wait();
    }
    if (fault->rule.delay_ns > 0)
        co_sleep(fault->rule.delay_ns);
    return fault->rule.error;
}

/* Before the request is passed on: 0, or the error it fails with instead. */
static int fault_before(struct node *node, struct fault *fault, unsigned kind,
                        uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT
{
    struct blkdebug *debug = node->state;

    fault_pick(debug, kind, offset_bytes, length_bytes, fault);
    if (fault->rule.kinds == 0 || fault->rule.after)
        return 0;
    return fault_act(debug, fault);
}

/* After it: what its answer becomes. */
static int fault_after(struct node *node, struct fault *fault, int result) MAY_WAIT
{
    int ret;

    if (fault->rule.kinds == 0 || !fault->rule.after)
        return result;
    ret = fault_act(node->state, fault);
    return ret < 0 ? ret : result;
}

static int blkdebug_read(struct node *node, struct io *io) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_READ, io->offset_bytes, io->length_bytes);

    return ret < 0 ? ret : fault_after(node, &fault, io_read(node->file, io));
}

static int blkdebug_write(struct node *node, struct io *io) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_WRITE, io->offset_bytes, io->length_bytes);

    return ret < 0 ? ret : fault_after(node, &fault, io_write(node->file, io));
}

static int blkdebug_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_ZERO, io->offset_bytes, io->length_bytes);

    return ret < 0 ? ret : fault_after(node, &fault, io_zero(node->file, io));
}

static int blkdebug_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_DISCARD, io->offset_bytes, io->length_bytes);

    return ret < 0 ? ret : fault_after(node, &fault, io_discard(node->file, io));
}

static int blkdebug_flush(struct node *node) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_FLUSH, 0, 0);

    return ret < 0 ? ret : fault_after(node, &fault, io_flush(node->file));
}

static int blkdebug_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                            struct extent *ret_extent) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_EXTENTS, offset_bytes, length_bytes);

    if (ret < 0)
        return ret;
    ret = io_extents(node->file, offset_bytes, length_bytes, ret_extent);
    return fault_after(node, &fault, ret);
}

static int blkdebug_truncate(struct node *node, uint64_t length_bytes) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_TRUNCATE, 0, 0);

    return ret < 0 ? ret : fault_after(node, &fault, io_truncate(node->file, length_bytes));
}

static int blkdebug_empty_prepare(struct node *node, struct err *err) MAY_WAIT
{
    struct fault fault;
    int ret = fault_before(node, &fault, BLKDEBUG_EMPTY, 0, 0);

    if (ret == 0)
        ret = node_empty_prepare(node->file->child, err);
    else
        err_set_errno(err, ret, "node '%s' was told to fail", node->name);
    if (ret < 0)
        return ret;
    ret = fault_after(node, &fault, 0);
    if (ret < 0) {
        node_empty_abort(node->file->child);
        err_set_errno(err, ret, "node '%s' was told to fail", node->name);
    }
    return ret;
}

static void blkdebug_empty_commit(struct node *node)
{
    node_empty_commit(node->file->child);
}

static void blkdebug_empty_abort(struct node *node)
{
    node_empty_abort(node->file->child);
}

/* --- options --- */

struct rule_options {
    struct blkdebug_rule rule;
    int kind;
    uint64_t error;
};

static const char *const kind_names[] = {"read",  "write",   "zero",     "discard", "flush",
                                         "empty", "extents", "truncate", "any",     NULL};

static const struct opt rule_opts[] = {
    {.name = "kind",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct rule_options, kind),
     .required = true,
     .values = kind_names,
     .help = "which requests"},
    {.name = "offset",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct rule_options, rule.offset_bytes),
     .max = INT64_MAX,
     .help = "begin of the range they touch"},
    {.name = "length",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct rule_options, rule.length_bytes),
     .max = INT64_MAX,
     .help = "length of that range; 0 is up to the end"},
    {.name = "nth",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct rule_options, rule.nth),
     .fallback = "1",
     .min = 1,
     .help = "the first one to act on, counted from 1"},
    {.name = "count",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct rule_options, rule.count),
     .fallback = "1",
     .help = "how many to act on; 0 is all"},
    {.name = "errno",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct rule_options, error),
     .max = 4095,
     .help = "fail with this error number; 0 is none"},
    {.name = "delay-ns",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct rule_options, rule.delay_ns),
     .max = 3600 * NS_PER_S,
     .help = "take this much longer"},
    {.name = "hold",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct rule_options, rule.hold),
     .help = "hold them until they are released"},
    {.name = "after",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct rule_options, rule.after),
     .help = "carry them out first"},
    {0},
};

static int inject_option(struct node *node, struct rule_options *options, struct err *err)
{
    options->rule.kinds = kind_names[options->kind + 1] == NULL ? BLKDEBUG_ANY
                                                                : 1u << (unsigned)options->kind;
    options->rule.error = -(int)options->error;
    if (blkdebug_inject(node, &options->rule, NULL) < 0)
        return err_set(err, -EINVAL, "'inject': more than %u rules", BLKDEBUG_MAX_RULES);
    return 0;
}

static int check_power(const char *name, uint64_t bytes, struct err *err)
{
    if (bytes == 0 || is_power_of_two(bytes))
        return 0;
    return err_set(err, -EINVAL, "'%s': %" PRIu64 " is not a power of two", name, bytes);
}

static int blkdebug_open(struct node *node, struct err *err) MAY_WAIT
{
    struct blkdebug *debug = node->state;
    const struct blkdebug_options *options = node->options;
    struct node_limits *limits = &node->limits;
    int ret;

    list_init(&debug->held);
    co_queue_init(&debug->held_changed);
    ret = check_power("align", options->align_bytes, err);
    if (ret == 0)
        ret = check_power("memory-align", options->memory_align_bytes, err);
    if (ret < 0)
        return ret;
    limits->request_align_bytes = MAX(limits->request_align_bytes, (uint32_t)options->align_bytes);
    limits->memory_align_bytes = MAX(limits->memory_align_bytes,
                                     (uint32_t)options->memory_align_bytes);
    if (options->max_transfer_bytes != 0)
        limits->max_transfer_bytes = (uint32_t)options->max_transfer_bytes;
    for (size_t i = 0; i < options->inject.count && ret == 0; i++)
        ret = inject_option(node, (struct rule_options *)options->inject.items + i, err);
    return ret;
}

static void blkdebug_close(struct node *node) MAY_WAIT
{
    struct blkdebug *debug = node->state;

    assert(list_empty(&debug->held));
}

static const struct opt blkdebug_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct blkdebug_options, file),
     .required = true,
     .help = "what it filters"},
    {.name = "inject",
     .type = OPT_OBJECTS,
     .offset = OPT_FIELD(struct blkdebug_options, inject),
     .members = rule_opts,
     .item_size = sizeof(struct rule_options),
     .help = "rules: what happens to which requests"},
    {.name = "align",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct blkdebug_options, align_bytes),
     .max = IO_MAX_TRANSFER_BYTES,
     .help = "ask for requests aligned to this"},
    {.name = "memory-align",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct blkdebug_options, memory_align_bytes),
     .max = BUF_ALIGNMENT,
     .help = "ask for memory aligned to this"},
    {.name = "max-transfer",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct blkdebug_options, max_transfer_bytes),
     .max = IO_MAX_TRANSFER_BYTES,
     .help = "ask for reads and writes of no more than this"},
    {0},
};

const struct driver driver_blkdebug = {
    .name = "blkdebug",
    .is_filter = true,
    .state_size = sizeof(struct blkdebug),
    .options_size = sizeof(struct blkdebug_options),
    .opts = blkdebug_opts,
    .open = blkdebug_open,
    .close = blkdebug_close,
    .read = blkdebug_read,
    .write = blkdebug_write,
    .zero = blkdebug_zero,
    .discard = blkdebug_discard,
    .flush = blkdebug_flush,
    .extents = blkdebug_extents,
    .truncate = blkdebug_truncate,
    .empty_prepare = blkdebug_empty_prepare,
    .empty_commit = blkdebug_empty_commit,
    .empty_abort = blkdebug_empty_abort,
};
