/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rule that makes it work: a block is saved (the target holds it) only after its old content is
 * in the target, and is overwritten only when it is saved. Copies of a block hold an exclusive lock
 * on it, readers of the target's backing a shared one; whoever finds a block saved needs no lock:
 * from then on readers find it in the target too.
 */
#include "drivers/copy_before_write.h"

#include "base/json.h"
#include "base/log.h"
#include "block/io.h"

#include <errno.h>
#include <inttypes.h>

/* Of targets that do not say what their blocks are. Not less than their blocks: filling up the rest
 * of one would wait for a neighbour's copy, which may wait for this one. */
#define DEFAULT_BLOCK_BYTES (64u * 1024)
/* The most that is copied, and locked, at once. */
#define COPY_MAX_BYTES      (1u << 20)

struct cbw_options {
    struct json_object *file, *target, *bitmap;
    int on_error;
    uint64_t timeout_s;
};

enum { ON_ERROR_BREAK_GUEST_WRITE, ON_ERROR_BREAK_SNAPSHOT };

struct access_state;

struct cbw_state {
    struct node *node;
    struct edge *file, *target;
    uint32_t block_bytes;
    struct range_locks locks;
    struct access_state *access; /* the target's way to the disk, if any */
    struct cbw_error error;
    struct cbw_stats stats;
    cbw_failed *failed;
    void *failed_arg;
};

struct access_options {
    struct json_object *file;
    char *filter;
};

struct access_state {
    struct node *node;
    struct cbw_state *filter; /* NULL: gone */
};

static struct cbw_state *cbw_of(struct node *node)
{
    assert(node_check(node)->driver == &driver_copy_before_write);
    return node->state;
}

/* --- what is saved --- */

static struct node *below_filters(struct node *node)
{
    while (node->driver->is_filter)
        node = node->file->child;
    return node;
}

/* Whether the target itself holds the stretch at the offset, and how far it is so. */
static int cbw_is_saved(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes,
                        bool *ret_saved, uint64_t *ret_length_bytes) MAY_WAIT
{
    struct edge *backing = node_child(below_filters(cbw->target->child), "backing");

    return io_held(cbw->target, backing != NULL ? backing->child : NULL, offset_bytes, length_bytes,
                   ret_saved, ret_length_bytes);
}

/* The first stretch that is not saved, of whole blocks; its length is 0 when all is. */
static int cbw_next_unsaved(struct cbw_state *cbw, uint64_t *offset_bytes, uint64_t end_bytes,
                            uint64_t *ret_length_bytes) MAY_WAIT
{
    *ret_length_bytes = 0;
    while (*offset_bytes < end_bytes) {
        bool saved = false;
        uint64_t length = 0;
        int ret = cbw_is_saved(cbw, *offset_bytes, end_bytes - *offset_bytes, &saved, &length);

        if (ret < 0)
            return ret;
        if (!saved) {
            *ret_length_bytes = length;
            return 0;
        }
        *offset_bytes += length;
    }
    return 0;
}

/* --- failures --- */

static void cbw_note_failure(struct cbw_state *cbw, bool reading, uint64_t offset_bytes,
                             uint64_t length_bytes, int code)
{
    struct edge *where = reading ? cbw->file : cbw->target;

    cbw->error.count++;
    if (cbw->error.code == 0) {
        cbw->error.code = code;
        cbw->error.reading = reading;
        cbw->error.offset_bytes = offset_bytes;
        cbw->error.length_bytes = length_bytes;
        cbw->error.wall_ns = loop_wall_ns(graph_loop(cbw->node->graph));
    }
    if (cbw->failed != NULL)
        cbw->failed(cbw->failed_arg, "copy-before-write", where->child, offset_bytes, length_bytes,
                    code);
}

static int cbw_note_disk(struct cbw_state *cbw, const char *operation, uint64_t offset_bytes,
                         uint64_t length_bytes, int ret)
{
    if (unlikely(ret < 0) && cbw->failed != NULL)
        cbw->failed(cbw->failed_arg, operation, cbw->file->child, offset_bytes, length_bytes, ret);
    return ret;
}

/* --- copying --- */

static int save_zero(struct cbw_state *cbw, const struct io *io) MAY_WAIT
{
    struct io zero = {
        .offset_bytes = io->offset_bytes, .length_bytes = io->length_bytes, .flags = IO_UNCHANGED};
    int ret = io_zero(cbw->target, &zero);

    if (ret < 0)
        cbw_note_failure(cbw, false, io->offset_bytes, io->length_bytes, ret);
    return ret;
}

static int save_data(struct cbw_state *cbw, struct io *io) MAY_WAIT
{
    int ret = io_read(cbw->file, io);

    if (ret < 0) {
        cbw_note_failure(cbw, true, io->offset_bytes, io->length_bytes, ret);
        return ret;
    }
    if (bytes_are_zero(io->data.bytes, io->data.length_bytes))
        return save_zero(cbw, io);
    io->flags = IO_UNCHANGED;
    ret = io_write(cbw->target, io);
    if (ret < 0)
        cbw_note_failure(cbw, false, io->offset_bytes, io->length_bytes, ret);
    return ret;
}

/* The range is locked; none of it is saved. Holes are read like data: asking a file where they are
 * can take a walk over all of it. */
static int save(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT
{
    struct io io = {.offset_bytes = offset_bytes, .length_bytes = length_bytes};
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(cbw->node->graph)), length_bytes);
    int ret;

    if (buf == NULL) {
        cbw_note_failure(cbw, true, offset_bytes, length_bytes, -ENOMEM);
        return -ENOMEM;
    }
    io.data = buf_slice_of(buf, 0, length_bytes);
    ret = save_data(cbw, &io);
    buf_unref(buf);
    if (ret == 0) {
        cbw->stats.copies++;
        cbw->stats.copied_bytes += length_bytes;
    }
    return ret;
}

static void lock_range(struct cbw_state *cbw, struct range_lock *lock, uint64_t offset_bytes,
                       uint64_t length_bytes, bool exclusive) MAY_WAIT
{
    if (likely(range_lock_try(&cbw->locks, lock, offset_bytes, length_bytes, exclusive)))
        return;
    cbw->stats.waits++;
    range_lock_acquire(&cbw->locks, lock, offset_bytes, length_bytes, exclusive);
}

/* Waits for copies and readers of the range, and copies what still has to be. */
static int save_range(struct cbw_state *cbw, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT
{
    uint64_t end = offset_bytes + length_bytes, unsaved = 0;
    struct range_lock lock;
    int ret = 0;

    lock_range(cbw, &lock, offset_bytes, length_bytes, true);
    while (ret == 0) {
        ret = cbw_next_unsaved(cbw, &offset_bytes, end, &unsaved);
        if (ret < 0)
            cbw_note_failure(cbw, false, offset_bytes, end - offset_bytes, ret);
        if (ret < 0 || unsaved == 0)
            break;
        ret = save(cbw, offset_bytes, unsaved);
        offset_bytes += unsaved;
    }
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

/* After it every block of the range may be overwritten. */
static int cbw_before(struct cbw_state *cbw, const struct io *io) MAY_WAIT
{
    uint64_t offset = align_down(io->offset_bytes, cbw->block_bytes);
    uint64_t end = MIN(align_up(io->offset_bytes + io->length_bytes, cbw->block_bytes),
                       cbw->node->length_bytes);
    uint64_t unsaved = 0;

    if ((io->flags & IO_UNCHANGED) != 0)
        return 0;
    for (;;) {
        int ret = cbw_next_unsaved(cbw, &offset, end, &unsaved);

        if (unlikely(ret < 0)) {
            cbw_note_failure(cbw, false, offset, end - offset, ret);
            return ret;
        }
        if (unsaved == 0)
            return 0;
        unsaved = MIN(unsaved, COPY_MAX_BYTES);
        ret = save_range(cbw, offset, unsaved);
        if (ret < 0)
            return ret;
        offset += unsaved;
    }
}

/* --- the filter's hooks --- */

static int cbw_write(struct node *node, struct io *io) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);
    int ret = cbw_before(cbw, io);

    if (ret < 0)
        return ret;
    return cbw_note_disk(cbw, "write to the secondary disk", io->offset_bytes, io->length_bytes,
                         io_write(cbw->file, io));
}

static int cbw_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);
    int ret = cbw_before(cbw, io);

    if (ret < 0)
        return ret;
    ret = io_zero(cbw->file, io);
    /* What the caller forbade to do slowly has not failed. */
    if (ret == -EOPNOTSUPP && (io->flags & IO_NO_FALLBACK) != 0)
        return ret;
    return cbw_note_disk(cbw, "zero-write to the secondary disk", io->offset_bytes,
                         io->length_bytes, ret);
}

static int cbw_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);
    int ret = cbw_before(cbw, io);

    if (ret < 0)
        return ret;
    return cbw_note_disk(cbw, "discard on the secondary disk", io->offset_bytes, io->length_bytes,
                         io_discard(cbw->file, io));
}

static int cbw_flush(struct node *node) MAY_WAIT
{
    struct cbw_state *cbw = cbw_of(node);

    return cbw_note_disk(cbw, "flush of the secondary disk", 0, 0, io_flush(cbw->file));
}

/* What QEMU's filter has and this one does not yet. */
static int check_supported(const struct cbw_options *options, struct err *err)
{
    if (options->on_error != ON_ERROR_BREAK_GUEST_WRITE)
        return err_set(err, -ENOTSUP,
                       "on-cbw-error=break-snapshot is not supported yet: a write whose copy fails "
                       "fails (break-guest-write)");
    if (options->timeout_s != 0)
        return err_set(err, -ENOTSUP, "'cbw-timeout' is not supported yet: leave it out");
    if (options->bitmap != NULL)
        return err_set(err, -ENOTSUP, "'bitmap' is not supported yet: leave it out");
    return 0;
}

static int cbw_open(struct node *node, struct err *err) MAY_WAIT
{
    struct cbw_state *cbw = node->state;
    struct node *target;
    int ret = check_supported(node->options, err);

    if (ret < 0)
        return ret;

    cbw->node = node;
    cbw->file = node->file;
    cbw->target = node_child(node, "target");
    range_locks_init(&cbw->locks);
    target = below_filters(cbw->target->child);
    if (target->driver->held == NULL && node_child(target, "backing") == NULL)
        return err_set(err, -EINVAL,
                       "target '%s' (driver '%s') cannot tell what it holds: use an overlay",
                       target->name, target->driver->name);
    if (target->length_bytes != cbw->file->child->length_bytes)
        return err_set(err, -EINVAL,
                       "target '%s' has %" PRIu64 " bytes, and the disk '%s' %" PRIu64
                       ": they must be equal",
                       target->name, target->length_bytes, cbw->file->child->name,
                       cbw->file->child->length_bytes);
    cbw->block_bytes = target->limits.block_bytes;
    if (cbw->block_bytes == 0)
        cbw->block_bytes = DEFAULT_BLOCK_BYTES;
    return 0;
}

static void cbw_close(struct node *node)
{
    struct cbw_state *cbw = cbw_of(node);

    if (cbw->access != NULL)
        cbw->access->filter = NULL;
}

static void cbw_perms(struct node *node, struct edge *edge, unsigned parents_need,
                      unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    *ret_share = PERM_ALL & ~(unsigned)PERM_RESIZE;
    if (edge == node->file)
        *ret_need = parents_need | PERM_CONSISTENT_READ;
    else
        *ret_need = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
}

static int cbw_describe(struct node *node, struct json_object *object)
{
    const struct cbw_state *cbw = cbw_of(node);

    if (json_add_uint(object, "block-size", cbw->block_bytes) < 0 ||
        json_add_uint(object, "copied-bytes", cbw->stats.copied_bytes) < 0 ||
        json_add_uint(object, "waits", cbw->stats.waits) < 0 ||
        json_add_uint(object, "failed-copies", cbw->error.count) < 0)
        return -ENOMEM;
    return 0;
}

int cbw_first_error(struct node *filter, struct cbw_error *ret_error)
{
    *ret_error = cbw_of(filter)->error;
    return ret_error->code;
}

void cbw_clear_error(struct node *filter)
{
    cbw_of(filter)->error = (struct cbw_error){0};
}

struct cbw_stats cbw_stats(struct node *filter)
{
    return cbw_of(filter)->stats;
}

void cbw_on_failure(struct cbw *cbw, cbw_failed *failed, void *arg)
{
    struct cbw_state *state = cbw_of(cbw->filter);

    state->failed = failed;
    state->failed_arg = arg;
}

/* --- the locked read path --- */

static int access_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct access_options *options = node->options;
    struct access_state *access = node->state;
    struct node *filter = NULL;
    int ret = graph_get(node->graph, options->filter, &filter, err);

    if (ret < 0)
        return ret;
    if (filter->driver != &driver_copy_before_write)
        return err_set(err, -EINVAL, "'filter': node '%s' is of driver '%s', not '%s'",
                       filter->name, filter->driver->name, driver_copy_before_write.name);
    struct cbw_state *cbw = filter->state;
    if (cbw->access != NULL)
        return err_set(err, -EBUSY, "'filter': node '%s' has node '%s' already", filter->name,
                       cbw->access->node->name);
    access->node = node;
    access->filter = cbw;
    cbw->access = access;
    return 0;
}

static void access_close(struct node *node)
{
    struct access_state *access = node->state;

    if (access->filter != NULL)
        access->filter->access = NULL;
}

static void lock_blocks(struct cbw_state *cbw, struct range_lock *lock, uint64_t offset_bytes,
                        uint64_t length_bytes) MAY_WAIT
{
    uint64_t begin = align_down(offset_bytes, cbw->block_bytes);

    lock_range(cbw, lock, begin, align_up(offset_bytes + length_bytes, cbw->block_bytes) - begin,
               false);
}

/* While the lock is held nothing of the range becomes saved, so what is not is the old content. */
static int read_locked(struct node *node, struct cbw_state *cbw, const struct io *io) MAY_WAIT
{
    uint64_t done = 0;

    while (done < io->length_bytes) {
        struct io part = {.offset_bytes = io->offset_bytes + done};
        bool saved = false;
        int ret = cbw_is_saved(cbw, part.offset_bytes, io->length_bytes - done, &saved,
                               &part.length_bytes);

        if (ret < 0)
            return ret;
        part.data = buf_slice_sub(io->data, done, part.length_bytes);
        ret = io_read(saved ? cbw->target : node->file, &part);
        if (ret < 0)
            return ret;
        done += part.length_bytes;
    }
    return 0;
}

/* The same for extents; a stretch of any length: the lock must not hold up the disk's writers for
 * long. */
static int extents_locked(struct node *node, struct cbw_state *cbw, uint64_t offset_bytes,
                          uint64_t length_bytes, struct extent *ret_extent) MAY_WAIT
{
    struct range_lock lock;
    bool saved = false;
    int ret;

    length_bytes = MIN(length_bytes, COPY_MAX_BYTES);
    lock_blocks(cbw, &lock, offset_bytes, length_bytes);
    ret = cbw_is_saved(cbw, offset_bytes, length_bytes, &saved, &length_bytes);
    if (ret == 0 && saved)
        *ret_extent = (struct extent){
            .length_bytes = length_bytes, .flags = EXTENT_DATA | EXTENT_HERE, .depth = 1};
    else if (ret == 0)
        ret = io_extents(node->file, offset_bytes, length_bytes, ret_extent);
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

int cbw_snapshot_read(struct node *filter, const struct io *io)
{
    struct cbw_state *cbw = cbw_of(filter);
    struct range_lock lock;
    int ret;

    lock_blocks(cbw, &lock, io->offset_bytes, io->length_bytes);
    ret = read_locked(filter, cbw, io);
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

int cbw_snapshot_extents(struct node *filter, uint64_t offset_bytes, uint64_t length_bytes,
                         struct extent *ret_extent)
{
    return extents_locked(filter, cbw_of(filter), offset_bytes, length_bytes, ret_extent);
}

static int access_read(struct node *node, struct io *io) MAY_WAIT
{
    const struct access_state *access = node->state;
    struct cbw_state *cbw = access->filter;
    struct range_lock lock;
    int ret;

    if (cbw == NULL)
        return io_read(node->file, io);
    lock_blocks(cbw, &lock, io->offset_bytes, io->length_bytes);
    ret = read_locked(node, cbw, io);
    range_lock_release(&cbw->locks, &lock);
    return ret;
}

static int access_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                          struct extent *ret_extent) MAY_WAIT
{
    const struct access_state *access = node->state;

    if (access->filter == NULL)
        return io_extents(node->file, offset_bytes, length_bytes, ret_extent);
    return extents_locked(node, access->filter, offset_bytes, length_bytes, ret_extent);
}

static void access_perms(struct node *node, struct edge *edge, unsigned parents_need,
                         unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    *ret_need = PERM_CONSISTENT_READ;
    *ret_share = PERM_ALL & ~(unsigned)PERM_RESIZE;
}

/* --- putting in and taking out --- */

static int add_node(struct graph *graph, const char *driver, const char *file, const char *key,
                    const char *value, struct node **ret_node, struct err *err) MAY_WAIT
{
    struct json_object *options = json_object_new_object();
    struct node *node = NULL;
    int ret;

    if (options == NULL)
        return err_no_memory(err);
    if (json_add_string(options, "driver", driver) < 0 ||
        json_add_string(options, "file", file) < 0 || json_add_string(options, key, value) < 0)
        ret = err_no_memory(err);
    else
        ret = graph_add(graph, options, OPTS_JSON, driver, false, &node, err);
    json_object_put(options);
    if (ret == 0)
        *ret_node = node_ref(node);
    return ret;
}

static struct edge *hidden_backing(struct node *hidden)
{
    return node_child(hidden, "backing");
}

static int insert_changed(struct graph *graph, struct cbw *cbw, struct err *err) MAY_WAIT
{
    struct err ignored = ERR_INIT;
    int ret = add_node(graph, driver_copy_before_write.name, cbw->disk->name, "target",
                       cbw->hidden->name, &cbw->filter, err);

    if (ret == 0) {
        cbw->filter->stands_in = true;
        ret = add_node(graph, driver_copy_before_write_access.name, cbw->disk->name, "filter",
                       cbw->filter->name, &cbw->access, err);
    }
    if (ret == 0)
        ret = graph_replace(hidden_backing(cbw->hidden), cbw->access, err);
    if (ret < 0)
        return ret;
    ret = graph_replace_node(graph, cbw->disk, cbw->filter, NULL, err);
    if (ret < 0 && graph_replace(hidden_backing(cbw->hidden), cbw->disk, &ignored) < 0)
        log_error("copy-before-write", "%s", ignored.text);
    return ret;
}

int cbw_insert(struct graph *graph, struct node *disk, struct node *hidden, struct cbw *ret_cbw,
               struct err *err)
{
    struct cbw cbw = {.disk = disk, .hidden = hidden};
    struct edge *backing = hidden_backing(node_check(hidden));
    int ret;

    if (backing == NULL || backing->child != disk)
        return err_set(err, -EINVAL, "the backing child of '%s' is not '%s'", hidden->name,
                       node_check(disk)->name);
    node_ref(disk);
    node_ref(hidden);
    graph_change_begin(graph);
    ret = insert_changed(graph, &cbw, err);
    graph_change_end(graph);
    if (ret == 0) {
        *ret_cbw = cbw;
        return 0;
    }
    node_unref(cbw.access);
    node_unref(cbw.filter);
    node_unref(hidden);
    node_unref(disk);
    return ret;
}

/* The filter's parents, so that they can be led back to it and nobody else is. */
struct parents {
    struct edge **edges;
    size_t count;
};

static int parents_collect(struct node *node, struct parents *parents)
{
    size_t count = 0;

    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child)
        count++;
    parents->edges = calloc(count + 1, sizeof(struct edge *));
    if (parents->edges == NULL)
        return -ENOMEM;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child)
        parents->edges[parents->count++] = edge;
    return 0;
}

/* Edges that were detached meanwhile are not there any more. */
static void parents_lead_back(const struct parents *parents, struct node *from, struct node *to)
    MAY_WAIT
{
    for (size_t i = 0; i < parents->count; i++) {
        LIST_FOR_EACH(edge, &from->parents, struct edge, in_child) {
            struct err err = ERR_INIT;

            if (edge != parents->edges[i])
                continue;
            if (graph_replace(edge, to, &err) < 0)
                log_error("copy-before-write", "%s", err.text);
            break;
        }
    }
}

/* First nobody writes through the filter any more, then nobody reads through its locks. */
static int remove_changed(struct graph *graph, struct cbw *cbw, struct err *err) MAY_WAIT
{
    struct parents parents = {0};
    int ret;

    if (parents_collect(cbw->filter, &parents) < 0)
        return err_no_memory(err);
    ret = graph_replace_node(graph, cbw->filter, cbw->disk, NULL, err);
    if (ret == 0) {
        ret = graph_replace(hidden_backing(cbw->hidden), cbw->disk, err);
        if (ret < 0)
            parents_lead_back(&parents, cbw->disk, cbw->filter);
    }
    free(parents.edges);
    return ret;
}

int cbw_remove(struct graph *graph, struct cbw *cbw, struct err *err)
{
    struct cbw old = *cbw;
    int ret;

    if (cbw->filter == NULL)
        return 0;
    graph_change_begin(graph);
    ret = remove_changed(graph, cbw, err);
    graph_change_end(graph);
    if (ret < 0)
        return ret;
    *cbw = (struct cbw){0};
    node_unref(old.access);
    node_unref(old.filter);
    node_unref(old.hidden);
    node_unref(old.disk);
    return 0;
}

/* --- the drivers --- */

static const char *const on_error_names[] = {"break-guest-write", "break-snapshot", NULL};

static const struct opt cbw_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct cbw_options, file),
     .required = true,
     .help = "the disk that is written to"},
    {.name = "target",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct cbw_options, target),
     .required = true,
     .help = "the image that gets the old content"},
    {.name = "on-cbw-error",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct cbw_options, on_error),
     .fallback = "break-guest-write",
     .values = on_error_names,
     .help = "what fails when a copy fails (break-snapshot: not supported yet)"},
    {.name = "cbw-timeout",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct cbw_options, timeout_s),
     .fallback = "0",
     .max = UINT32_MAX,
     .help = "seconds after which a copy has failed; 0: never (others: not supported yet)"},
    {.name = "bitmap",
     .type = OPT_ANY,
     .offset = OPT_FIELD(struct cbw_options, bitmap),
     .help = "what to copy (not supported yet: everything)"},
    {0},
};

const struct driver driver_copy_before_write = {
    .name = "copy-before-write",
    .is_filter = true,
    .state_size = sizeof(struct cbw_state),
    .options_size = sizeof(struct cbw_options),
    .opts = cbw_opts,
    .open = cbw_open,
    .close = cbw_close,
    .child_perms = cbw_perms,
    .describe = cbw_describe,
    .write = cbw_write,
    .zero = cbw_zero,
    .discard = cbw_discard,
    .flush = cbw_flush,
};

static const struct opt access_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct access_options, file),
     .required = true,
     .help = "the disk below the filter"},
    {.name = "filter",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct access_options, filter),
     .required = true,
     .help = "the copy-before-write node whose copies are excluded"},
    {0},
};

const struct driver driver_copy_before_write_access = {
    .name = "copy-before-write-access",
    .is_filter = true,
    .internal = true,
    .state_size = sizeof(struct access_state),
    .options_size = sizeof(struct access_options),
    .opts = access_opts,
    .open = access_open,
    .close = access_close,
    .child_perms = access_perms,
    .read = access_read,
    .extents = access_extents,
};
