/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * file: raw bytes in a file or block device.
 *
 * A length that is not a multiple of 512 is shown rounded up, as QEMU shows it, so that a disk has
 * one size whoever serves it: the tail reads as zeroes, and a write into it makes the file longer.
 *
 * Locks are those of QEMU (block/file-posix.c): for every permission a byte that says "I use it" and
 * one that says "others must not", both locked shared by who says so; whether another says the
 * opposite is found by asking for a conflicting lock. So stock tools stay out, and know why. What
 * is locked depends on read-only or not alone: a disk is taken when it is opened, not when its
 * first user comes.
 */
#include "drivers/file_node.h"
#include "drivers/table.h"

#include "base/json.h"
#include "base/log.h"
#include "block/graph.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FILE_SECTOR_BYTES 512u

#define LOCK_USED_BASE     100u /* QEMU's RAW_LOCK_PERM_BASE */
#define LOCK_UNSHARED_BASE 200u /* QEMU's RAW_LOCK_SHARED_BASE */
#define LOCK_RETRY_NS      (2 * NS_PER_S)
#define LOCK_PAUSE_NS      (20 * NS_PER_MS)

enum { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };

struct file_options {
    char *filename;
    int aio;
    int locking;
};

struct file_state {
    struct file *file;
    uint64_t end_bytes; /* of the real file; node->length_bytes may be more */
    /* A stretch that was data when the kernel was asked. It looks for the next hole as far as that
     * may be, so that each question costs as much as the file has pages: ask once. What has been
     * punched since still counts as data, which is no error. */
    uint64_t data_offset_bytes, data_end_bytes;
    int flush_error; /* of the first flush that failed; 0: none has */
    bool flushing;
    struct co_queue flushed; /* woken when one has ended */
    uint64_t flushes_asked, flushes_done;
};

/* What is locked: bits of enum perm, whose order is QEMU's. */
struct lock_wish {
    unsigned used, unshared;
};

struct lock_conflict {
    unsigned perm; /* 0: none */
    bool other_uses;
};

static struct lock_wish lock_wish_for(bool read_only)
{
    return (struct lock_wish){
        .used = read_only ? PERM_CONSISTENT_READ : PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
        .unshared = PERM_WRITE | PERM_RESIZE,
    };
}

static void unlock_all(struct file *file)
{
    for (unsigned i = 0; (1u << i) < PERM_ALL; i++) {
        (void)file_unlock(file, LOCK_USED_BASE + i);
        (void)file_unlock(file, LOCK_UNSHARED_BASE + i);
    }
}

/* -EAGAIN when another says the opposite of what we wish. */
static int find_conflict(struct file *file, struct lock_wish wish, struct lock_conflict *conflict)
{
    for (unsigned i = 0; (1u << i) < PERM_ALL; i++) {
        *conflict = (struct lock_conflict){.perm = 1u << i};
        for (unsigned turn = 0; turn < 2; turn++) {
            unsigned wished = turn == 0 ? wish.used : wish.unshared;
            unsigned opposite = turn == 0 ? LOCK_UNSHARED_BASE : LOCK_USED_BASE;
            bool locked = false;
            int ret;

            if ((wished & (1u << i)) == 0)
                continue;
            conflict->other_uses = turn == 1;
            ret = file_lock_test(file, opposite + i, true, &locked);
            if (ret < 0)
                return ret;
            if (locked)
                return -EAGAIN;
        }
    }
    return 0;
}

/* 0, -EAGAIN with the conflict, or another error when locks cannot be had at all. */
static int lock_once(struct file *file, struct lock_wish wish, struct lock_conflict *conflict)
{
    int ret = 0;

    for (unsigned i = 0; (1u << i) < PERM_ALL && ret == 0; i++) {
        *conflict = (struct lock_conflict){.perm = 1u << i};
        if ((wish.used & (1u << i)) != 0)
            ret = file_lock(file, LOCK_USED_BASE + i, false);
        if (ret == 0 && (wish.unshared & (1u << i)) != 0)
            ret = file_lock(file, LOCK_UNSHARED_BASE + i, false);
    }
    if (ret == 0)
        ret = find_conflict(file, wish, conflict);
    if (ret != 0)
        unlock_all(file);
    return ret;
}

static const char *lock_perm_name(unsigned perm)
{
    switch (perm) {
    case PERM_CONSISTENT_READ:
        return "consistent-read";
    case PERM_WRITE:
        return "write";
    case PERM_WRITE_UNCHANGED:
        return "write-unchanged";
    default:
        return "resize";
    }
}

static int lock_error(struct file *file, const char *filename, const struct lock_conflict *conflict,
                      struct err *err) MAY_WAIT
{
    char holder[96] = "another process (fuser tells which)", name[48];
    int64_t pid;

    if (file_lock_holder(file, &pid, name, sizeof(name)) == 0)
        snprintf(holder, sizeof(holder), "process %" PRId64 " (%s)", pid, name);
    return err_set(err, -EAGAIN,
                   "'%s' is locked: %s %s '%s'; stop it first (or, at your own risk, locking=off)",
                   filename, holder, conflict->other_uses ? "uses" : "does not share",
                   lock_perm_name(conflict->perm));
}

/* A killed process may hold its locks for some 100 ms, while its I/O ends: so it is tried for a
 * while. */
static int lock_file(struct node *node, struct file *file, bool read_only, struct err *err) MAY_WAIT
{
    const struct file_options *options = node->options;
    struct loop *loop = graph_loop(node->graph);
    struct lock_wish wish = lock_wish_for(read_only);
    struct lock_conflict conflict = {0};
    uint64_t deadline_ns = loop_now_ns(loop) + LOCK_RETRY_NS;
    int ret;

    if (options->locking == LOCKING_OFF)
        return 0;
    for (;;) {
        ret = lock_once(file, wish, &conflict);
        if (ret != -EAGAIN || loop_now_ns(loop) >= deadline_ns)
            break;
        /* Two that try at once must not keep meeting. */
        co_sleep(LOCK_PAUSE_NS + loop_random(loop) % LOCK_PAUSE_NS);
    }
    if (ret == 0)
        return 0;
    if (ret == -EAGAIN)
        return lock_error(file, options->filename, &conflict, err);
    if (options->locking == LOCKING_ON)
        return err_set_errno(err, ret, "cannot lock '%s'", options->filename);
    log_warning("file", "'%s' cannot be locked (%s): nothing keeps others from using it",
                options->filename, err_errno_name(ret));
    return 0;
}

/* --- opening --- */

static int open_mode(struct node *node, bool read_only, struct file **ret_file, struct err *err)
    MAY_WAIT
{
    const struct file_options *options = node->options;
    unsigned flags = (read_only ? 0 : FILE_WRITABLE) | (node->cache_direct ? FILE_DIRECT : 0);

    return file_open(graph_loop(node->graph), options->filename, flags, (enum file_aio)options->aio,
                     ret_file, err);
}

static int check_length(struct node *node, const struct file_info *info, struct err *err)
{
    const struct file_options *options = node->options;
    uint64_t length_bytes;

    if (info->length_bytes > INT64_MAX - FILE_SECTOR_BYTES)
        return err_set(err, -EFBIG, "'%s' is too large", options->filename);
    length_bytes = align_up(info->length_bytes, FILE_SECTOR_BYTES);
    if (length_bytes % info->align_bytes != 0)
        return err_set(err, -EINVAL,
                       "the length of '%s', %" PRIu64 " bytes, is not a multiple of %u, which "
                       "cache.direct needs there: make it %" PRIu64 ", or leave cache.direct off",
                       options->filename, info->length_bytes, info->align_bytes,
                       align_up(length_bytes, info->align_bytes));
    return 0;
}

static void take_file(struct node *node, struct file *file)
{
    struct file_state *state = node->state;
    const struct file_info *info = file_info(file);

    state->file = file;
    state->end_bytes = info->length_bytes;
    co_queue_init(&state->flushed);
    node->length_bytes = align_up(info->length_bytes, FILE_SECTOR_BYTES);
    node->limits = (struct node_limits){
        .request_align_bytes = info->align_bytes,
        .memory_align_bytes = MIN(info->align_bytes, BUF_ALIGNMENT),
        .in_memory = info->in_memory,
    };
}

static int raw_open(struct node *node, struct err *err) MAY_WAIT
{
    struct err first = ERR_INIT;
    struct file *file = NULL;
    int ret = open_mode(node, node->read_only, &file, &first);

    if ((ret == -EACCES || ret == -EROFS || ret == -EPERM) && !node->read_only &&
        node->auto_read_only) {
        ret = open_mode(node, true, &file, err);
        if (ret == 0)
            node->read_only = true;
    } else if (ret < 0) {
        *err = first;
    }
    if (ret < 0)
        return ret;
    ret = check_length(node, file_info(file), err);
    if (ret == 0)
        ret = lock_file(node, file, node->read_only, err);
    if (ret < 0) {
        file_close(file);
        return ret;
    }
    take_file(node, file);
    return 0;
}

static void raw_close(struct node *node) MAY_WAIT
{
    struct file_state *state = node->state;

    file_close(state->file);
    state->file = NULL;
}

/*
 * The kernel tells once that it could not write a page back, and forgets the page: the next flush
 * would succeed without what the first has lost. So no later one does, until the node is made anew.
 * Direct I/O leaves nothing behind in the page cache. For the same reason there is one at a time: of
 * several at once one is told. It stands for all that had been asked for when it began.
 */
static int sync_file(struct node *node) MAY_WAIT
{
    struct file_state *state = node->state;
    const struct file_options *options = node->options;
    uint64_t turn = ++state->flushes_asked;

    while (state->flushing)
        co_queue_wait(&state->flushed);
    if (unlikely(state->flush_error < 0) || state->flushes_done >= turn)
        return state->flush_error;
    uint64_t asked = state->flushes_asked;
    state->flushing = true;
    int ret = file_sync(state->file);
    state->flushing = false;
    if (ret == 0) {
        state->flushes_done = asked;
    } else if (!node->cache_direct) {
        state->flush_error = ret;
        log_error("file",
                  "'%s': a flush has failed (%s), and what it lost nobody knows: every later flush "
                  "fails too, until the node is made anew",
                  options->filename, strerror(-ret));
    }
    co_queue_wake_all(&state->flushed);
    return ret;
}

/* The locks of the old descriptor conflict with the new ones, so they go first. */
static int raw_reopen(struct node *node, bool read_only, struct err *err) MAY_WAIT
{
    struct file_state *state = node->state;
    struct lock_conflict conflict;
    struct file *file = NULL;
    int ret = open_mode(node, read_only, &file, err);

    if (ret < 0)
        return ret;
    /* What was written through the old descriptor is flushed through it. */
    ret = node->read_only ? 0 : sync_file(node);
    if (ret < 0) {
        file_close(file);
        return err_set_errno(err, ret, "cannot flush node '%s'", node->name);
    }
    unlock_all(state->file);
    ret = lock_file(node, file, read_only, err);
    if (ret < 0) {
        const struct file_options *options = node->options;

        file_close(file);
        if (options->locking != LOCKING_OFF &&
            lock_once(state->file, lock_wish_for(node->read_only), &conflict) < 0)
            log_error("file", "'%s' lost its lock", options->filename);
        return ret;
    }
    file_close(state->file);
    state->file = file;
    return 0;
}

static int raw_describe(struct node *node, struct json_object *object)
{
    const struct file_options *options = node->options;
    const struct file_state *state = node->state;
    int ret = json_add_string(object, "filename", options->filename);

    return ret == 0 ? json_add_uint(object, "file-length", state->end_bytes) : ret;
}

const char *file_node_identity(const struct node *node)
{
    while (node != NULL && node->driver != &driver_file)
        node = node->file != NULL ? node->file->child : NULL;
    if (node == NULL)
        return "";
    const struct file_state *state = node->state;
    return file_info(state->file)->identity;
}

static int raw_usage(struct node *node, uint64_t *ret_bytes)
{
    const struct file_state *state = node->state;
    struct file_stat stat;
    int ret = file_stat(state->file, &stat);

    if (ret == 0)
        *ret_bytes = stat.usage_bytes;
    return ret;
}

/* --- requests --- */

/* What others cut off behind our back is lost: that must not pass for durable, or for zeroes. */
static int check_not_truncated(struct node *node)
{
    const struct file_state *state = node->state;
    const struct file_options *options = node->options;
    struct file_stat stat;
    int ret;

    if (file_info(state->file)->block_device)
        return 0;
    ret = file_stat(state->file, &stat);
    if (ret < 0 || stat.length_bytes >= state->end_bytes)
        return ret;
    log_error("file",
              "'%s' has %" PRIu64 " bytes where there were %" PRIu64
              ": somebody else has truncated it",
              options->filename, stat.length_bytes, state->end_bytes);
    return -EIO;
}

static int raw_read(struct node *node, struct io *io) MAY_WAIT
{
    const struct file_state *state = node->state;
    uint64_t end_bytes = io->offset_bytes + io->length_bytes;
    ssize_t length = file_read(state->file, io->data.bytes, io->length_bytes, io->offset_bytes);
    int ret = 0;

    if (unlikely(length < 0))
        return (int)length;
    if (likely((size_t)length == io->length_bytes))
        return 0;
    if (io->offset_bytes + (size_t)length < MIN(end_bytes, state->end_bytes))
        ret = check_not_truncated(node);
    memset(io->data.bytes + length, 0, io->length_bytes - (size_t)length);
    return ret;
}

static int raw_write(struct node *node, struct io *io) MAY_WAIT
{
    struct file_state *state = node->state;
    int ret = file_write(state->file, io->data.bytes, io->length_bytes, io->offset_bytes);

    if (ret == 0)
        state->end_bytes = MAX(state->end_bytes, io->offset_bytes + io->length_bytes);
    return ret;
}

static int raw_zero(struct node *node, struct io *io) MAY_WAIT
{
    struct file_state *state = node->state;

    state->data_end_bytes = 0;
    return file_zero(state->file, io->offset_bytes, io->length_bytes,
                     (io->flags & IO_MAY_UNMAP) != 0);
}

static int raw_discard(struct node *node, struct io *io) MAY_WAIT
{
    struct file_state *state = node->state;

    state->data_end_bytes = 0;
    return file_punch(state->file, io->offset_bytes, io->length_bytes);
}

static int raw_flush(struct node *node) MAY_WAIT
{
    int ret = sync_file(node);
    return ret == 0 ? check_not_truncated(node) : ret;
}

static int raw_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                       struct extent *ret_extent) MAY_WAIT
{
    struct file_state *state = node->state;
    bool data = false;
    int ret;

    *ret_extent = (struct extent){
        .length_bytes = length_bytes, .flags = EXTENT_HERE | EXTENT_ZERO, .depth = 1};
    if (offset_bytes >= state->end_bytes)
        return 0;
    if (offset_bytes >= state->data_offset_bytes && offset_bytes < state->data_end_bytes) {
        ret_extent->length_bytes = MIN(length_bytes, state->data_end_bytes - offset_bytes);
        ret_extent->flags = EXTENT_HERE | EXTENT_DATA;
        return 0;
    }
    ret = file_extent(state->file, offset_bytes, state->end_bytes - offset_bytes, &data,
                      &ret_extent->length_bytes);
    if (ret == 0 && data) {
        state->data_offset_bytes = offset_bytes;
        state->data_end_bytes = offset_bytes + ret_extent->length_bytes;
    }
    ret_extent->length_bytes = MIN(ret_extent->length_bytes, length_bytes);
    if (ret < 0 || !data)
        return ret;
    ret_extent->flags = EXTENT_HERE | EXTENT_DATA;
    return 0;
}

static int raw_truncate(struct node *node, uint64_t length_bytes) MAY_WAIT
{
    struct file_state *state = node->state;
    uint64_t before_bytes = state->end_bytes;
    int ret;

    /* What goes is not missed by a flush meanwhile. */
    state->end_bytes = MIN(before_bytes, length_bytes);
    ret = file_truncate(state->file, length_bytes);
    state->data_end_bytes = 0;
    state->end_bytes = ret == 0 ? length_bytes : before_bytes;
    return ret;
}

static const char *const aio_names[] = {"auto", "io_uring", "inline", "threads", NULL};
static const char *const locking_names[] = {"auto", "on", "off", NULL};

static const struct opt file_opts[] = {
    {.name = "filename",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct file_options, filename),
     .required = true,
     .help = "path of the file or block device"},
    {.name = "aio",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct file_options, aio),
     .fallback = "auto",
     .values = aio_names,
     .help = "how requests reach the kernel"},
    {.name = "locking",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct file_options, locking),
     .fallback = "auto",
     .values = locking_names,
     .help = "keep others out with QEMU's locks; auto goes without where there are none"},
    {0},
};

const struct driver driver_file = {
    .name = "file",
    .state_size = sizeof(struct file_state),
    .options_size = sizeof(struct file_options),
    .opts = file_opts,
    .open = raw_open,
    .close = raw_close,
    .reopen = raw_reopen,
    .describe = raw_describe,
    .usage = raw_usage,
    .read = raw_read,
    .write = raw_write,
    .zero = raw_zero,
    .discard = raw_discard,
    .flush = raw_flush,
    .extents = raw_extents,
    .truncate = raw_truncate,
};
