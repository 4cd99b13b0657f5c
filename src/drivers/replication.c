/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The `replication` filter: on the primary it forwards writes to the peer, on the secondary it is the
 * view of the secondary's user. What it does in each stage is the table "I/O through the filter" in
 * docs/semantics.md; the group (src/replication) changes the stage.
 */
#include "drivers/replication.h"

#include "base/json.h"
#include "base/log.h"
#include "block/graph.h"
#include "block/io.h"
#include "drivers/replication_forward.h"
#include "drivers/replication_options.h"
#include "drivers/tls_object.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct replication_state {
    enum replication_stage stage;
    struct replication_error error;
    struct edge *file;
    struct forward_queue queue; /* primary */
    /* Secondary: writes that went to the active disk while the stage was `running`. They neither
     * hold a region's lock nor mark the map, so a failover's writes and merge wait for their end. */
    struct co_gate plain_writes;
    struct replication_merge merge;
    struct replication_keeper keeper; /* secondary; zeroed: nobody */
    bool lower_read_only;
    struct replication_peer_control peer_control; /* primary; of texts that the options own */
    struct replication_watch watch;               /* zeroed: nobody */
};

static const char *const stage_names[] = {
    [REPLICATION_NONE] = "none",         [REPLICATION_RUNNING] = "running",
    [REPLICATION_FAILOVER] = "failover", [REPLICATION_FAILOVER_FAILED] = "failover-failed",
    [REPLICATION_DONE] = "done",
};

const char *replication_mode_name(enum replication_mode mode)
{
    return replication_mode_names[mode];
}

const char *replication_stage_name(enum replication_stage stage)
{
    return stage_names[stage];
}

static struct replication_state *state_of(const struct node *node)
{
    assert(replication_is(node));
    return node->state;
}

bool replication_is(const struct node *node)
{
    return node->driver == &driver_replication;
}

enum replication_mode replication_mode_of(const struct node *node)
{
    assert(replication_is(node));
    const struct replication_options *options = node->options;
    return (enum replication_mode)options->mode;
}

enum replication_stage replication_stage_of(const struct node *node)
{
    return state_of(node)->stage;
}

const char *replication_top_id(const struct node *node)
{
    assert(replication_is(node));
    const struct replication_options *options = node->options;
    return options->top_id;
}

const struct replication_peer_control *replication_peer_control(const struct node *node)
{
    const struct replication_options *options = node->options;
    return options->has_peer_control ? &state_of(node)->peer_control : NULL;
}

/* REPLICATION_LINK; reason 0: it is there. */
static void tell_link(struct node *node, const struct node *peer, int reason)
{
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (data == NULL || json_add_string(data, "node", node->name) < 0 ||
        json_add_string(data, "peer", peer->name) < 0 ||
        json_add_bool(data, "connected", reason == 0) < 0 ||
        (reason < 0 && json_add_string(data, "reason", strerror(-reason)) < 0))
        return;
    graph_event(node->graph, "REPLICATION_LINK", TAKE_PTR(data));
}

static void replication_link_lost(struct node *node, struct edge *edge, int reason)
{
    const struct replication_watch *watch = &state_of(node)->watch;
    if (replication_mode_of(node) != REPLICATION_PRIMARY || edge != node->file)
        return;
    if (replication_stage_of(node) == REPLICATION_RUNNING)
        log_warning(
            "replication",
            "primary '%s': its link to the secondary, node '%s', is lost: %s; what its guest"
            " writes from now on is here alone",
            node->name, edge->child->name, strerror(-reason));
    tell_link(node, edge->child, reason);
    if (watch->link_lost != NULL)
        watch->link_lost(watch->arg, node);
}

/* Says that the link is there, if the child is one that can tell. */
static void tell_link_is_up(struct node *node)
{
    const struct node *peer = node->file->child;
    CLEANUP(json_putp) struct json_object *told = json_object_new_object();
    struct json_object *connected = NULL;
    if (told == NULL || peer->driver->describe == NULL ||
        peer->driver->describe(node->file->child, told) < 0)
        return;
    if (json_object_object_get_ex(told, "connected", &connected) &&
        json_object_get_boolean(connected))
        tell_link(node, peer, 0);
}

void replication_set_stage(struct node *node, enum replication_stage stage)
{
    struct replication_state *s = state_of(node);
    if (s->stage == stage)
        return;
    const char *role = replication_mode_name(replication_mode_of(node));
    log_info("replication", "%s '%s': %s -> %s", role, node->name, replication_stage_name(s->stage),
             replication_stage_name(stage));
    s->stage = stage;
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();
    if (data == NULL || json_add_string(data, "role", role) < 0 ||
        json_add_string(data, "stage", replication_stage_name(stage)) < 0 ||
        json_add_string(data, "node", node->name) < 0)
        return;
    graph_event(node->graph, "REPLICATION_STAGE_CHANGE", TAKE_PTR(data));
    if (stage == REPLICATION_RUNNING && replication_mode_of(node) == REPLICATION_PRIMARY)
        tell_link_is_up(node);
}

/* --- the sticky error --- */

const struct replication_error *replication_error_of(const struct node *node)
{
    return &state_of(node)->error;
}

struct json_object *replication_error_json(const struct replication_error *error)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    if (error->count == 0 || object == NULL ||
        json_add_string(object, "side", replication_mode_name(error->side)) < 0 ||
        json_add_string(object, "disk", error->disk) < 0 ||
        json_add_string(object, "node", error->node) < 0 ||
        json_add_string(object, "operation", error->operation) < 0 ||
        json_add_uint(object, "offset", error->offset_bytes) < 0 ||
        json_add_uint(object, "length", error->length_bytes) < 0 ||
        json_add_string(object, "errno", err_errno_name(error->code)) < 0 ||
        json_add_string(object, "reason", strerror(-error->code)) < 0 ||
        json_add_uint(object, "wall-time-ns", error->wall_ns) < 0 ||
        json_add_uint(object, "count", error->count) < 0)
        return NULL;
    return TAKE_PTR(object);
}

void replication_report(struct node *node, const char *operation, const struct node *where,
                        uint64_t offset_bytes, uint64_t length_bytes, int code)
{
    struct replication_error *error = &state_of(node)->error;
    assert(code < 0);
    if (error->count++ > 0)
        return;
    error->operation = operation;
    snprintf(error->disk, sizeof(error->disk), "%s", node->name);
    snprintf(error->node, sizeof(error->node), "%s", where->name);
    error->side = replication_mode_of(node);
    error->offset_bytes = offset_bytes;
    error->length_bytes = length_bytes;
    error->code = code;
    error->wall_ns = loop_wall_ns(graph_loop(node->graph));
    log_error("replication",
              "%s '%s': %s failed on node '%s' at offset %" PRIu64 ", %" PRIu64 " bytes: %s",
              replication_mode_name(error->side), node->name, operation, where->name, offset_bytes,
              length_bytes, strerror(-code));
    struct json_object *data = replication_error_json(error);
    if (data != NULL)
        graph_event(node->graph, "REPLICATION_ERROR", data);
    const struct replication_watch *watch = &state_of(node)->watch;
    if (watch->failed != NULL)
        watch->failed(watch->arg, node);
}

void replication_set_watch(struct node *node, const struct replication_watch *watch)
{
    state_of(node)->watch = watch != NULL ? *watch : (struct replication_watch){0};
}

void replication_error_clear(struct node *node)
{
    state_of(node)->error = (struct replication_error){0};
}

/* --- primary --- */

struct replication_forward_stats replication_forward_stats(const struct node *node)
{
    const struct forward_queue *queue = &state_of(node)->queue;
    return (struct replication_forward_stats){
        .in_flight = queue->in_flight,
        .in_flight_bytes = queue->in_flight_bytes,
        .forwarded_bytes = queue->acknowledged_bytes,
    };
}

void replication_forward_mark(struct node *node)
{
    forward_mark(&state_of(node)->queue);
}

int replication_forward_wait(struct node *node, uint64_t deadline_ns)
{
    return forward_wait(&state_of(node)->queue, deadline_ns);
}

void replication_forward_release(struct node *node)
{
    forward_release(&state_of(node)->queue);
}

enum io_kind { IO_KIND_WRITE, IO_KIND_ZERO, IO_KIND_DISCARD };

static int io_change(struct edge *edge, const struct io *io, enum io_kind kind) MAY_WAIT
{
    switch (kind) {
    case IO_KIND_WRITE:
        return io_write(edge, io);
    case IO_KIND_ZERO:
        return io_zero(edge, io);
    default:
        return io_discard(edge, io);
    }
}

/* A failure is remembered, and the guest does not notice: the local disk has what it wrote. */
static int primary_change(struct node *node, const struct io *io, enum io_kind kind) MAY_WAIT
{
    static const char *const operations[] = {
        [IO_KIND_WRITE] = "forward write",
        [IO_KIND_ZERO] = "forward zero",
        [IO_KIND_DISCARD] = "forward discard",
    };
    struct replication_state *s = node->state;
    struct forward_entry entry;
    forward_enter(&s->queue, &entry, io->length_bytes);
    int ret = -EIO;
    bool running = s->stage == REPLICATION_RUNNING; /* it may have waited at a marker */
    if (running)
        ret = io_change(s->file, io, kind);
    if (running && ret < 0)
        replication_report(node, operations[kind], s->file->child, io->offset_bytes,
                           io->length_bytes, ret);
    forward_leave(&s->queue, &entry, ret == 0);
    return running ? 0 : -EIO;
}

static int primary_flush(struct node *node) MAY_WAIT
{
    struct replication_state *s = node->state;
    struct forward_entry entry;
    forward_enter(&s->queue, &entry, 0);
    int ret = -EIO;
    bool running = s->stage == REPLICATION_RUNNING;
    if (running)
        ret = io_flush(s->file);
    if (running && ret < 0)
        replication_report(node, "forward flush", s->file->child, 0, 0, ret);
    forward_leave(&s->queue, &entry, ret == 0);
    return running ? 0 : -EIO;
}

void replication_forward_flush(struct node *node)
{
    (void)primary_flush(node);
}

/* --- secondary --- */

static struct edge *lower_edge(struct node *node)
{
    struct edge *lower = node_child(node, REPLICATION_LOWER_EDGE);
    assert(lower != NULL);
    return lower;
}

struct node *replication_layer_below(struct edge *edge)
{
    struct node *node = edge->child;
    while (node->driver->is_filter && node_child(node, "file") != NULL)
        node = node_child(node, "file")->child;
    return node;
}

struct node *replication_base(struct node *node)
{
    struct node *active = replication_layer_below(state_of(node)->file);
    struct edge *backing = node_child(active, "backing");
    if (backing == NULL)
        return NULL;
    struct edge *base = node_child(replication_layer_below(backing), "backing");
    return base == NULL ? NULL : base->child;
}

struct replication_merge *replication_merge_of(struct node *node)
{
    struct replication_merge *merge = &state_of(node)->merge;
    if (merge->rewritten == NULL) {
        range_locks_init(&merge->locks);
        merge->rewritten = bitmap_new((node->length_bytes + REPLICATION_REGION_BYTES - 1) /
                                      REPLICATION_REGION_BYTES);
    }
    return merge->rewritten == NULL ? NULL : merge;
}

void replication_plain_writes_end(struct node *node)
{
    co_gate_wait_empty(&state_of(node)->plain_writes);
}

static void merge_mark(struct replication_merge *merge, uint64_t offset_bytes,
                       uint64_t length_bytes)
{
    uint64_t first = offset_bytes / REPLICATION_REGION_BYTES;
    uint64_t last = (offset_bytes + length_bytes - 1) / REPLICATION_REGION_BYTES;
    bitmap_set_range(merge->rewritten, first, last - first + 1);
}

/* Under write-through the merge has copied the block once, and the secondary disk gets the same bytes,
 * so that what is left to copy only shrinks. A discard may leave other bytes in one disk than in the
 * other, and readers would see them change at the end: it is carried out as zeroes. */
static int split_held_through(struct node *node, const struct io *part, enum io_kind kind) MAY_WAIT
{
    struct replication_state *s = node->state;
    struct io both = *part;
    if (kind == IO_KIND_DISCARD) {
        kind = IO_KIND_ZERO;
        both.flags |= IO_MAY_UNMAP;
    }
    int ret = io_change(s->file, &both, kind);
    if (ret < 0 || io_change(lower_edge(node), &both, kind) < 0)
        merge_mark(&s->merge, part->offset_bytes, part->length_bytes);
    return ret;
}

/* A held block goes to the active disk: the merge would undo it below. Marked before, for a write
 * that fails may have changed some of it. */
static int split_held(struct node *node, const struct io *part, enum io_kind kind) MAY_WAIT
{
    struct replication_state *s = node->state;
    if (s->merge.write_through)
        return split_held_through(node, part, kind);
    merge_mark(&s->merge, part->offset_bytes, part->length_bytes);
    return io_change(s->file, part, kind);
}

static struct io io_part(const struct io *io, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct io part = *io;
    part.offset_bytes = offset_bytes;
    part.length_bytes = length_bytes;
    if (io->data.bytes != NULL)
        part.data = buf_slice_sub(io->data, offset_bytes - io->offset_bytes, length_bytes);
    return part;
}

static int split_parts(struct node *node, const struct io *io, enum io_kind kind) MAY_WAIT
{
    struct replication_state *s = node->state;
    uint64_t offset = io->offset_bytes, end = io->offset_bytes + io->length_bytes;
    while (offset < end) {
        bool held;
        uint64_t length;
        int ret = io_held(s->file, replication_base(node), offset, end - offset, &held, &length);
        if (ret < 0)
            return ret;
        struct io part = io_part(io, offset, length);
        ret = held ? split_held(node, &part, kind) : io_change(lower_edge(node), &part, kind);
        if (ret < 0)
            return ret;
        offset += length;
    }
    return 0;
}

/* In failover and failover-failed: per extent, where the block is held. Whole regions are locked, so
 * that an overlay with blocks larger than the write cannot take in a neighbour unseen. */
static int secondary_split(struct node *node, const struct io *io, enum io_kind kind) MAY_WAIT
{
    struct replication_state *s = node->state;
    struct replication_merge *merge = &s->merge;
    assert(merge->rewritten != NULL);
    co_gate_wait_empty(&s->plain_writes);
    uint64_t first = align_down(io->offset_bytes, REPLICATION_REGION_BYTES);
    uint64_t end = align_up(io->offset_bytes + io->length_bytes, REPLICATION_REGION_BYTES);
    struct range_lock lock;
    range_lock_acquire(&merge->locks, &lock, first, end - first, true);
    int ret = split_parts(node, io, kind);
    range_lock_release(&merge->locks, &lock);
    return ret;
}

static int secondary_change(struct node *node, const struct io *io, enum io_kind kind) MAY_WAIT
{
    struct replication_state *s = node->state;
    int ret;
    switch (s->stage) {
    case REPLICATION_RUNNING:
        co_gate_enter(&s->plain_writes);
        ret = io_change(s->file, io, kind);
        co_gate_leave(&s->plain_writes);
        return ret;
    case REPLICATION_FAILOVER:
    case REPLICATION_FAILOVER_FAILED:
        return secondary_split(node, io, kind);
    case REPLICATION_DONE:
        return io_change(lower_edge(node), io, kind);
    default:
        return -EIO;
    }
}

static int secondary_flush(struct node *node) MAY_WAIT
{
    struct replication_state *s = node->state;
    switch (s->stage) {
    case REPLICATION_RUNNING:
        return io_flush(s->file);
    case REPLICATION_FAILOVER:
    case REPLICATION_FAILOVER_FAILED: {
        int ret = io_flush(s->file);
        return ret < 0 ? ret : io_flush(lower_edge(node));
    }
    case REPLICATION_DONE:
        return io_flush(lower_edge(node));
    default:
        return -EIO;
    }
}

void replication_set_keeper(struct node *node, const struct replication_keeper *keeper)
{
    state_of(node)->keeper = keeper != NULL ? *keeper : (struct replication_keeper){0};
}

/* What the request leaves is durable; what lies around it, without which it is lost too, need not be. */
static int secondary_keep(struct node *node) MAY_WAIT
{
    const struct replication_keeper *keeper = &state_of(node)->keeper;
    return keeper->keep == NULL ? 0 : keeper->keep(keeper->arg);
}

/* --- the hooks --- */

static int replication_change(struct node *node, struct io *io, enum io_kind kind) MAY_WAIT
{
    if (replication_mode_of(node) == REPLICATION_PRIMARY)
        return primary_change(node, io, kind);
    int ret = secondary_change(node, io, kind);
    return ret == 0 && (io->flags & IO_FUA) != 0 ? secondary_keep(node) : ret;
}

static int replication_write(struct node *node, struct io *io) MAY_WAIT
{
    return replication_change(node, io, IO_KIND_WRITE);
}

static int replication_zero(struct node *node, struct io *io) MAY_WAIT
{
    return replication_change(node, io, IO_KIND_ZERO);
}

static int replication_discard(struct node *node, struct io *io) MAY_WAIT
{
    return replication_change(node, io, IO_KIND_DISCARD);
}

static int replication_flush(struct node *node) MAY_WAIT
{
    if (replication_mode_of(node) == REPLICATION_PRIMARY)
        return primary_flush(node);
    int ret = secondary_flush(node);
    return ret == 0 ? secondary_keep(node) : ret;
}

/* Where the secondary reads now; NULL: nowhere. */
static struct edge *reading_edge(struct node *node)
{
    struct replication_state *s = node->state;
    if (replication_mode_of(node) == REPLICATION_PRIMARY || s->stage == REPLICATION_NONE)
        return NULL;
    return s->stage == REPLICATION_DONE ? lower_edge(node) : s->file;
}

static int replication_read(struct node *node, struct io *io) MAY_WAIT
{
    struct edge *edge = reading_edge(node);
    return edge == NULL ? -EIO : io_read(edge, io);
}

static int replication_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                               struct extent *ret_extent) MAY_WAIT
{
    struct edge *edge = reading_edge(node);
    return edge == NULL ? -EIO : io_extents(edge, offset_bytes, length_bytes, ret_extent);
}

static int take_peer_control(struct node *node, struct err *err)
{
    const struct replication_options *options = node->options;
    struct replication_peer_control *control = &state_of(node)->peer_control;
    if (!options->has_peer_control)
        return 0;
    control->address = address_of_opts(&options->peer_control);
    control->tls_hostname = options->peer_tls_hostname;
    if (options->peer_tls_creds == NULL && options->peer_tls_hostname != NULL)
        return err_set(err, -EINVAL,
                       "node '%s': 'peer-control.tls-hostname' is of use with"
                       " 'peer-control.tls-creds' only",
                       node->name);
    if (options->peer_tls_creds == NULL)
        return 0;
    return tls_object_creds(node->graph, options->peer_tls_creds, TLS_CLIENT, &control->tls, err);
}

static int replication_open(struct node *node, struct err *err) MAY_WAIT
{
    struct replication_state *s = node->state;
    int ret = replication_options_check(node, err);
    if (ret == 0)
        ret = take_peer_control(node, err);
    if (ret < 0)
        return ret;
    s->file = node_child(node, "file");
    assert(s->file != NULL);
    forward_queue_init(&s->queue);
    co_gate_init(&s->plain_writes);
    node->length_bytes = s->file->child->length_bytes;
    node->limits.fua = true; /* handed on with the request */
    return 0;
}

static void replication_close(struct node *node) MAY_WAIT
{
    struct replication_state *s = node->state;
    assert(s->queue.in_flight == 0);
    assert(s->plain_writes.inside == 0);
    bitmap_free(s->merge.rewritten);
    tls_creds_unref(s->peer_control.tls);
}

void replication_set_lower_read_only(struct node *node)
{
    state_of(node)->lower_read_only = true;
}

/* The data child is shared with the peer's writes (through copy-before-write), so they are let. */
static void replication_child_perms(struct node *node, struct edge *edge, unsigned parents_need,
                                    unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    const struct replication_state *s = node->state;
    bool lower = strcmp(edge->name, REPLICATION_LOWER_EDGE) == 0;
    bool writes = !node->read_only && !(lower && s->lower_read_only);
    *ret_need = PERM_CONSISTENT_READ | (writes ? PERM_WRITE : 0);
    *ret_share = PERM_CONSISTENT_READ | PERM_WRITE | PERM_WRITE_UNCHANGED;
}

static int replication_describe(struct node *node, struct json_object *object)
{
    int ret = json_add_string(object, "mode", replication_mode_name(replication_mode_of(node)));
    if (ret == 0)
        ret = json_add_string(object, "stage", replication_stage_name(replication_stage_of(node)));
    if (ret == 0 && replication_top_id(node) != NULL)
        ret = json_add_string(object, "top-id", replication_top_id(node));
    const struct replication_peer_control *control = replication_peer_control(node);
    char text[300];
    if (ret == 0 && control != NULL)
        ret = json_add_string(object, "peer-control",
                              sock_address_format(&control->address, text, sizeof(text)));
    return ret;
}

const struct driver driver_replication = {
    .name = "replication",
    .is_filter = true,
    .orders_writes = true,
    .state_size = sizeof(struct replication_state),
    .options_size = sizeof(struct replication_options),
    .opts = replication_opts,
    .open = replication_open,
    .child_link_lost = replication_link_lost,
    .close = replication_close,
    .child_perms = replication_child_perms,
    .describe = replication_describe,
    .read = replication_read,
    .write = replication_write,
    .zero = replication_zero,
    .discard = replication_discard,
    .flush = replication_flush,
    .extents = replication_extents,
};
