/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/blklogwrites.h"

#include "base/json.h"
#include "base/log.h"
#include "block/io.h"
#include "drivers/table.h"
#include "wire/log_writes.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* A log that is too short is made longer by this much at once, and cut when the node is closed. */
#define LOG_GROW_BYTES (32u << 20)

struct log_options {
    struct json_object *file, *log;
    uint64_t sector_bytes, super_interval;
    bool sector_bytes_given, append;
};

struct log_state {
    struct edge *log;
    uint32_t sector_bytes;
    uint64_t super_interval;
    uint64_t next_sector, entries; /* of the log, those that are being written included */
    struct list pending;           /* struct entry, in the order of the log */
    struct co_queue written;       /* one of them has gone */
    struct co_mutex super, grow;
    int error; /* the log has a gap */
};

/* One entry, from when its place is taken until it is written; on the stack of its request. */
struct entry {
    struct list_link link;
    uint64_t index, log_sector;
    struct log_writes_entry what;
    const char *mark;
};

static struct log_state *state_of(struct node *node)
{
    assert(node_check(node)->driver == &driver_blklogwrites);
    return node->state;
}

/* --- the log --- */

/* Only here does the log grow, so that no two changes of its length cross. */
static int log_make_room(struct log_state *s, uint64_t end_bytes) MAY_WAIT
{
    int ret = 0;

    if (likely(end_bytes <= s->log->child->length_bytes))
        return 0;
    co_mutex_lock(&s->grow);
    if (end_bytes > s->log->child->length_bytes) {
        ret = io_truncate(s->log, align_up(end_bytes, LOG_GROW_BYTES));
        if (ret < 0)
            ret = io_truncate(s->log,
                              align_up(end_bytes, s->log->child->limits.request_align_bytes));
    }
    co_mutex_unlock(&s->grow);
    return ret == -ENOTSUP ? -ENOSPC : ret;
}

static int write_sector(struct node *node, uint64_t log_sector, const void *bytes, size_t length,
                        const char *text) MAY_WAIT
{
    struct log_state *s = state_of(node);
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(node->graph)), s->sector_bytes);
    struct io io = {.offset_bytes = log_sector * s->sector_bytes, .length_bytes = s->sector_bytes};

    if (buf == NULL)
        return -ENOMEM;
    memset(buf->bytes, 0, s->sector_bytes);
    memcpy(buf->bytes, bytes, length);
    if (text != NULL)
        memcpy(buf->bytes + length, text, strlen(text));
    io.data = buf_slice_of(buf, 0, s->sector_bytes);
    return io_write(s->log, &io);
}

/* Once all entries before `count` are written, the superblock names them (or more), durably. */
static int log_update_super(struct node *node, uint64_t count) MAY_WAIT
{
    struct log_state *s = state_of(node);
    struct log_writes_super super = {.sector_bytes = s->sector_bytes};
    uint8_t bytes[LOG_WRITES_SUPER_BYTES];
    int ret;

    for (;;) {
        struct list_link *first = list_first(&s->pending);

        super.entry_count = first != NULL ? LIST_ENTRY(first, struct entry, link)->index
                                          : s->entries;
        if (super.entry_count >= count || s->error < 0)
            break;
        co_queue_wait(&s->written);
    }
    if (s->error < 0)
        return s->error;
    co_mutex_lock(&s->super);
    /* Whoever had the mutex before may have been later and named more. */
    if (list_empty(&s->pending))
        super.entry_count = s->entries;
    else
        super.entry_count = LIST_ENTRY(list_first(&s->pending), struct entry, link)->index;
    log_writes_super_encode(&super, bytes);
    /* First the entries, then who names them. */
    ret = io_flush(s->log);
    if (ret == 0)
        ret = write_sector(node, 0, bytes, sizeof(bytes), NULL);
    if (ret == 0)
        ret = io_flush(s->log);
    co_mutex_unlock(&s->super);
    return ret;
}

/* Takes the next place. */
static void entry_begin(struct log_state *s, struct entry *entry, const struct io *io,
                        unsigned flags)
{
    *entry = (struct entry){.index = s->entries++, .log_sector = s->next_sector};
    entry->what.flags = flags;
    if (io != NULL) {
        entry->what.sector = io->offset_bytes / s->sector_bytes;
        entry->what.sector_count = io->length_bytes / s->sector_bytes;
    }
    s->next_sector += 1 + ((flags & LOG_WRITES_DISCARD) != 0 ? 0 : entry->what.sector_count);
    list_push_back(&s->pending, &entry->link);
}

/* `io`: a write, whose data follows, or zero. */
static int entry_write_parts(struct node *node, struct entry *entry, const struct io *io) MAY_WAIT
{
    struct log_state *s = state_of(node);
    bool has_data = io != NULL && (entry->what.flags & LOG_WRITES_DISCARD) == 0;
    uint64_t end = entry->log_sector + 1 + (has_data ? entry->what.sector_count : 0);
    uint8_t bytes[LOG_WRITES_ENTRY_BYTES];
    struct io data = {0};
    int ret;

    if (entry->mark != NULL)
        entry->what.data_bytes = strlen(entry->mark);
    log_writes_entry_encode(&entry->what, bytes);
    ret = log_make_room(s, end * s->sector_bytes);
    if (ret == 0)
        ret = write_sector(node, entry->log_sector, bytes, sizeof(bytes), entry->mark);
    if (ret < 0 || !has_data)
        return ret;
    data.offset_bytes = (entry->log_sector + 1) * s->sector_bytes;
    data.length_bytes = io->length_bytes;
    if (io->data.bytes == NULL) {
        data.flags = IO_MAY_UNMAP;
        return io_zero(s->log, &data);
    }
    data.data = io->data;
    return io_write(s->log, &data);
}

static int entry_write(struct node *node, struct entry *entry, const struct io *io) MAY_WAIT
{
    struct log_state *s = state_of(node);
    int ret = entry_write_parts(node, entry, io);

    if (ret < 0 && s->error == 0) {
        s->error = ret;
        log_error("blklogwrites", "node '%s': cannot write to the log '%s': %s; changes fail now",
                  node->name, s->log->child->name, strerror(-ret));
    }
    list_remove(&entry->link);
    co_queue_wake_all(&s->written);
    if (ret == 0 && (entry->what.flags & (LOG_WRITES_FLUSH | LOG_WRITES_MARK)) == 0 &&
        (entry->index + 1) % s->super_interval != 0)
        return 0;
    return ret < 0 ? ret : log_update_super(node, entry->index + 1);
}

/* A change that the disk has carried out. */
static int log_change(struct node *node, const struct io *io, unsigned flags) MAY_WAIT
{
    struct log_state *s = state_of(node);
    struct entry entry;

    if ((io->flags & IO_FUA) != 0)
        flags |= LOG_WRITES_FUA;
    entry_begin(s, &entry, io, flags);
    return entry_write(node, &entry, io);
}

/* --- requests --- */

static int log_write(struct node *node, struct io *io) MAY_WAIT
{
    int ret = state_of(node)->error;

    if (ret == 0)
        ret = io_write(node->file, io);
    return ret < 0 ? ret : log_change(node, io, 0);
}

static int log_zero(struct node *node, struct io *io) MAY_WAIT
{
    int ret = state_of(node)->error;

    if (ret == 0)
        ret = io_zero(node->file, io);
    return ret < 0 ? ret : log_change(node, io, 0);
}

static int log_discard(struct node *node, struct io *io) MAY_WAIT
{
    int ret = state_of(node)->error;

    if (ret == 0)
        ret = io_discard(node->file, io);
    return ret < 0 ? ret : log_change(node, io, LOG_WRITES_DISCARD);
}

/* Its place is taken before it begins. One that fails leaves a mark there. */
static int log_flush(struct node *node) MAY_WAIT
{
    struct log_state *s = state_of(node);
    struct entry entry;
    int ret, logged;

    if (s->error < 0)
        return s->error;
    if (node->read_only)
        return io_flush(node->file);
    entry_begin(s, &entry, NULL, LOG_WRITES_FLUSH);
    ret = io_flush(node->file);
    if (ret < 0) {
        entry.what.flags = LOG_WRITES_MARK;
        entry.mark = "flush failed";
    }
    logged = entry_write(node, &entry, NULL);
    return ret < 0 ? ret : logged;
}

int blklogwrites_mark(struct node *node, const char *text)
{
    struct log_state *s = state_of(node);
    struct entry entry;

    if (strlen(text) >= s->sector_bytes - LOG_WRITES_ENTRY_BYTES)
        return -EINVAL;
    if (s->error < 0)
        return s->error;
    entry_begin(s, &entry, NULL, LOG_WRITES_MARK);
    entry.mark = text;
    return entry_write(node, &entry, NULL);
}

/* --- control --- */

/* The log belongs to this node alone; others may read it. */
static void log_perms(struct node *node, struct edge *edge, unsigned parents_need,
                      unsigned parents_share, unsigned *ret_need, unsigned *ret_share)
{
    if (edge == node->file) {
        perms_default(node, edge, parents_need, parents_share, ret_need, ret_share);
        return;
    }
    *ret_need = PERM_CONSISTENT_READ;
    if (!node->read_only)
        *ret_need |= PERM_WRITE | PERM_RESIZE;
    *ret_share = PERM_CONSISTENT_READ;
}

static int read_bytes(struct log_state *s, uint64_t offset, struct buf *buf, size_t length) MAY_WAIT
{
    struct io io = {.offset_bytes = offset, .length_bytes = length};

    io.data = buf_slice_of(buf, 0, length);
    return io_read(s->log, &io);
}

/* Goes through the entries of an old log to its end. */
static int find_end(struct node *node, uint64_t count, struct err *err) MAY_WAIT
{
    struct log_state *s = state_of(node);
    uint64_t log_sectors = s->log->child->length_bytes / s->sector_bytes;
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(node->graph)), LOG_WRITES_ENTRY_BYTES);
    struct log_writes_entry what;

    if (buf == NULL)
        return err_no_memory(err);
    for (; s->entries < count; s->entries++) {
        uint64_t takes = 0;
        int ret;

        if (s->next_sector >= log_sectors)
            return err_set(err, -EUCLEAN, "log '%s': it ends before entry %" PRIu64 " of %" PRIu64,
                           s->log->child->name, s->entries, count);
        ret = read_bytes(s, s->next_sector * s->sector_bytes, buf, LOG_WRITES_ENTRY_BYTES);
        if (ret < 0)
            return err_set_errno(err, ret, "cannot read the log '%s'", s->log->child->name);
        ret = log_writes_entry_decode(buf->bytes, s->sector_bytes, log_sectors - s->next_sector,
                                      &what, &takes, err);
        if (ret < 0)
            return err_prefix(err, "log '%s', entry %" PRIu64, s->log->child->name, s->entries);
        s->next_sector += takes;
    }
    return 0;
}

static int open_old(struct node *node, struct err *err) MAY_WAIT
{
    struct log_state *s = state_of(node);
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(node->graph)), LOG_WRITES_SUPER_BYTES);
    struct log_writes_super super;
    int ret;

    if (buf == NULL)
        return err_no_memory(err);
    if (s->log->child->length_bytes < LOG_WRITES_SUPER_BYTES)
        return err_set(
            err, -EMEDIUMTYPE,
            "log '%s' is too short to append to: leave log-append off to begin a new one",
            s->log->child->name);
    ret = read_bytes(s, 0, buf, LOG_WRITES_SUPER_BYTES);
    if (ret < 0)
        return err_set_errno(err, ret, "cannot read the log '%s'", s->log->child->name);
    ret = log_writes_super_decode(buf->bytes, &super, err);
    if (ret < 0)
        return err_prefix(err, "log '%s'", s->log->child->name);
    s->sector_bytes = super.sector_bytes;
    return find_end(node, super.entry_count, err);
}

static int open_log(struct node *node, struct err *err) MAY_WAIT
{
    const struct log_options *options = node->options;
    struct log_state *s = state_of(node);
    int ret;

    if (options->append)
        return open_old(node, err);
    s->sector_bytes = (uint32_t)options->sector_bytes;
    ret = log_make_room(s, s->sector_bytes);
    if (ret == 0)
        ret = log_update_super(node, 0);
    return ret < 0 ? err_set_errno(err, ret, "cannot begin the log '%s'", s->log->child->name) : 0;
}

static int check_options(struct node *node, const struct log_options *options, struct err *err)
{
    if (node->read_only)
        return err_set(err, -EINVAL, "a node that is read-only has nothing to log: leave it out");
    if (node->file->child == node_child(node, "log")->child)
        return err_set(err, -EINVAL, "'file' and 'log' are the same node, '%s'",
                       node->file->child->name);
    if (options->append && options->sector_bytes_given)
        return err_set(err, -EINVAL,
                       "'log-append' and 'log-sector-size' cannot be used at the same time: a log "
                       "keeps its size");
    if (!log_writes_sector_valid(options->sector_bytes))
        return err_set(
            err, -EINVAL, "'log-sector-size' %" PRIu64 " is not a power of two from %u to %u",
            options->sector_bytes, LOG_WRITES_MIN_SECTOR_BYTES, LOG_WRITES_MAX_SECTOR_BYTES);
    return 0;
}

static int log_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct log_options *options = node->options;
    struct log_state *s = node->state;
    struct node_limits *limits = &node->limits;
    int ret = check_options(node, options, err);

    if (ret < 0)
        return ret;
    s->log = node_child(node, "log");
    s->super_interval = options->super_interval;
    s->next_sector = 1;
    list_init(&s->pending);
    co_queue_init(&s->written);
    co_mutex_init(&s->super);
    co_mutex_init(&s->grow);
    ret = open_log(node, err);
    if (ret < 0)
        return ret;
    limits->request_align_bytes = MAX(limits->request_align_bytes, s->sector_bytes);
    /* So that the flag is seen, and logged; the child's gate makes up for what the child lacks. */
    limits->fua = true;
    return 0;
}

static void log_close(struct node *node) MAY_WAIT
{
    struct log_state *s = state_of(node);
    uint64_t end = align_up(s->next_sector * s->sector_bytes,
                            s->log->child->limits.request_align_bytes);

    assert(list_empty(&s->pending));
    if (s->error < 0 || node->read_only)
        return;
    if (log_update_super(node, s->entries) < 0)
        log_error("blklogwrites", "node '%s': cannot finish the log '%s'", node->name,
                  s->log->child->name);
    else if (end < s->log->child->length_bytes)
        (void)io_truncate(s->log, end); /* a device keeps its length */
}

static int log_describe(struct node *node, struct json_object *object)
{
    const struct log_state *s = state_of(node);

    if (json_add_uint(object, "log-entries", s->entries) < 0 ||
        json_add_uint(object, "log-sectors", s->next_sector) < 0 ||
        json_add_uint(object, "log-sector-size", s->sector_bytes) < 0 ||
        json_add_bool(object, "log-broken", s->error < 0) < 0)
        return -ENOMEM;
    return 0;
}

static const struct opt log_opts[] = {
    {.name = "file",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct log_options, file),
     .required = true,
     .help = "the disk whose changes are logged"},
    {.name = "log",
     .type = OPT_CHILD,
     .offset = OPT_FIELD(struct log_options, log),
     .required = true,
     .help = "where the log goes; a file grows as needed"},
    {.name = "log-sector-size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct log_options, sector_bytes),
     .present = OPT_PRESENT(struct log_options, sector_bytes_given),
     .fallback = "512",
     .help = "unit of the log, and of requests; a power of two"},
    {.name = "log-append",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct log_options, append),
     .help = "go on behind the entries of an old log"},
    {.name = "log-super-update-interval",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct log_options, super_interval),
     .fallback = "4096",
     .min = 1,
     .help = "after how many entries the superblock names them, besides at each flush"},
    {0},
};

const struct driver driver_blklogwrites = {
    .name = "blklogwrites",
    .is_filter = true,
    .orders_writes = true,
    .state_size = sizeof(struct log_state),
    .options_size = sizeof(struct log_options),
    .opts = log_opts,
    .open = log_open,
    .close = log_close,
    .child_perms = log_perms,
    .describe = log_describe,
    .write = log_write,
    .zero = log_zero,
    .discard = log_discard,
    .flush = log_flush,
};
