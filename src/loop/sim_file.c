/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of the simulator. A request waits, takes effect at one moment between its call and its
 * return (or, split, at several), waits again and returns.
 */
#include "loop/sim_internal.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define SIM_SECTOR_BYTES 512u /* what FILE_DIRECT asks for, and the unit in which requests split */

struct sim_file {
    struct file base;
    struct sim_loop *loop;
    struct sim_inode *inode;
    struct list_link link;
    unsigned flags;
    unsigned under_way;
    char path[];
};

struct sim_lock {
    struct list_link link;
    struct sim_file *owner;
    uint64_t byte;
    bool exclusive;
};

static struct sim_file *sim_file_of(struct file *file)
{
    return CONTAINER_OF(file, struct sim_file, base);
}

/* --- requests --- */

/* Waits for the moment of the effect; returns how long to wait after it. */
static uint64_t sim_request_wait(struct sim_loop *loop) MAY_WAIT
{
    struct sim *sim = loop->sim;
    uint64_t delay_ns = sim_delay_ns(sim, sim->options.file);

    if (delay_ns == 0 || sim_chance(sim, sim->options.inline_percent))
        return 0;
    uint64_t before_ns = sim_below(sim, delay_ns + 1);
    if (before_ns > 0)
        sim_pause(loop, before_ns);
    return delay_ns - before_ns;
}

static void sim_request_settle(struct sim_loop *loop, uint64_t after_ns) MAY_WAIT
{
    if (after_ns > 0)
        sim_pause(loop, after_ns);
}

/* The wait and the fault that both begin a request; what to give to sim_file_end() in *ret_after. */
static int sim_file_begin(struct sim_file *self, enum sim_op op, uint64_t *ret_after_ns) MAY_WAIT
{
    self->under_way++;
    *ret_after_ns = sim_request_wait(self->loop);
    return sim_fault_check(self->loop->host, self->path, op);
}

static void sim_file_end(struct sim_file *self, enum sim_op op, uint64_t offset_bytes,
                         uint64_t length_bytes, uint64_t after_ns) MAY_WAIT
{
    sim_trace(self->loop->sim, SIM_KIND_FILE,
              self->loop->index << 32 | self->inode->number << 8 | op, offset_bytes, length_bytes);
    sim_request_settle(self->loop, after_ns);
    self->under_way--;
}

/* How many of the next bytes take effect together; waits between the parts of a split request. */
static size_t sim_part(struct sim_file *self, bool split, size_t done_bytes, size_t left_bytes)
    MAY_WAIT
{
    struct sim *sim = self->loop->sim;
    uint64_t sectors = left_bytes / SIM_SECTOR_BYTES;

    if (!split || sectors < 2)
        return left_bytes;
    if (done_bytes > 0)
        sim_pause(self->loop, sim_delay_ns(sim, sim->options.file));
    return (1 + sim_below(sim, sectors)) * SIM_SECTOR_BYTES;
}

static bool sim_splits(struct sim_file *self, size_t length_bytes)
{
    struct sim *sim = self->loop->sim;
    return sim->options.file.max_ns != 0 && length_bytes > SIM_PAGE_BYTES &&
           sim_chance(sim, sim->options.split_percent);
}

static bool sim_is_aligned(const struct sim_file *self, const void *bytes, uint64_t offset_bytes,
                           uint64_t length_bytes)
{
    uint64_t mask = self->base.info.align_bytes - 1;
    return (((uintptr_t)bytes | offset_bytes | length_bytes) & mask) == 0;
}

ssize_t sim_file_read(struct file *file, void *bytes, size_t length_bytes, uint64_t offset_bytes)
{
    struct sim_file *self = sim_file_of(file);
    uint64_t after_ns;

    if (!sim_is_aligned(self, bytes, offset_bytes, length_bytes))
        return -EINVAL;
    int result = sim_file_begin(self, SIM_OP_READ, &after_ns);
    size_t done = 0;
    if (result == 0 && offset_bytes < self->inode->length_bytes) {
        length_bytes = MIN(length_bytes, self->inode->length_bytes - offset_bytes);
        bool split = sim_splits(self, length_bytes);
        while (done < length_bytes) {
            size_t part = sim_part(self, split, done, length_bytes - done);
            sim_pages_read(&self->inode->pages, (uint8_t *)bytes + done, part, offset_bytes + done);
            done += part;
        }
    }
    sim_file_end(self, SIM_OP_READ, offset_bytes, done, after_ns);
    return result < 0 ? result : (ssize_t)done;
}

static int sim_write_some(struct sim_file *self, const void *bytes, size_t length_bytes,
                          uint64_t offset_bytes)
{
    struct sim_inode *inode = self->inode;
    int result = sim_pages_write(&inode->pages, bytes, length_bytes, offset_bytes);

    if (result == 0 && length_bytes > 0)
        inode->length_bytes = MAX(inode->length_bytes, offset_bytes + length_bytes);
    return result;
}

static int sim_write_check(struct sim_file *self, const struct iovec *iov, int count,
                           uint64_t offset_bytes, size_t *ret_length_bytes)
{
    size_t length_bytes = 0;

    if ((self->flags & FILE_WRITABLE) == 0)
        return -EBADF;
    if (count < 0 || count > IOV_MAX)
        return -EINVAL;
    for (int i = 0; i < count; i++) {
        if (!sim_is_aligned(self, iov[i].iov_base, offset_bytes, iov[i].iov_len))
            return -EINVAL;
        length_bytes += iov[i].iov_len;
    }
    if (!range_fits(offset_bytes, length_bytes, SIM_FILE_MAX_BYTES))
        return -EFBIG;
    *ret_length_bytes = length_bytes;
    return 0;
}

int sim_file_writev(struct file *file, struct iovec *iov, int count, uint64_t offset_bytes)
{
    struct sim_file *self = sim_file_of(file);
    size_t length_bytes, done = 0;
    uint64_t after_ns;

    int result = sim_write_check(self, iov, count, offset_bytes, &length_bytes);
    if (result < 0)
        return result;
    result = sim_file_begin(self, SIM_OP_WRITE, &after_ns);
    bool split = sim_splits(self, length_bytes);
    while (result == 0 && count > 0) {
        size_t part = sim_part(self, split, done, length_bytes - done);
        part = MIN(part, iov->iov_len);
        result = sim_write_some(self, iov->iov_base, part, offset_bytes + done);
        done += part;
        iov->iov_base = (uint8_t *)iov->iov_base + part;
        iov->iov_len -= part;
        if (iov->iov_len == 0) {
            iov++;
            count--;
        }
    }
    sim_file_end(self, SIM_OP_WRITE, offset_bytes, done, after_ns);
    return result;
}

int sim_file_sync(struct file *file)
{
    struct sim_file *self = sim_file_of(file);
    uint64_t after_ns;

    int result = sim_file_begin(self, SIM_OP_SYNC, &after_ns);
    sim_file_end(self, SIM_OP_SYNC, 0, 0, after_ns);
    return result;
}

int sim_file_zero(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool punch,
                  bool may_unmap)
{
    struct sim_file *self = sim_file_of(file);
    uint64_t after_ns;

    if ((self->flags & FILE_WRITABLE) == 0)
        return -EBADF;
    if (length_bytes == 0)
        return -EINVAL;
    int result = sim_file_begin(self, SIM_OP_ZERO, &after_ns);
    /* The length of the file stays, as with fallocate(FALLOC_FL_KEEP_SIZE). */
    if (result == 0 && offset_bytes < self->inode->length_bytes)
        result = sim_pages_zero(&self->inode->pages, offset_bytes,
                                MIN(length_bytes, self->inode->length_bytes - offset_bytes),
                                !punch && !may_unmap);
    sim_file_end(self, SIM_OP_ZERO, offset_bytes, length_bytes, after_ns);
    return result;
}

static void sim_inode_truncate(struct sim_inode *inode, uint64_t length_bytes)
{
    if (length_bytes < inode->length_bytes)
        sim_pages_zero(&inode->pages, length_bytes, SIM_FILE_MAX_BYTES - length_bytes, false);
    inode->length_bytes = length_bytes;
}

int sim_file_truncate(struct file *file, uint64_t length_bytes)
{
    struct sim_file *self = sim_file_of(file);
    uint64_t after_ns;

    if ((self->flags & FILE_WRITABLE) == 0)
        return -EINVAL;
    if (length_bytes > SIM_FILE_MAX_BYTES)
        return -EFBIG;
    int result = sim_file_begin(self, SIM_OP_TRUNCATE, &after_ns);
    if (result == 0) {
        sim_inode_truncate(self->inode, length_bytes);
        file->info.length_bytes = length_bytes;
    }
    sim_file_end(self, SIM_OP_TRUNCATE, length_bytes, 0, after_ns);
    return result;
}

int sim_file_usage(struct file *file, uint64_t *ret_bytes)
{
    const struct sim_inode *inode = sim_file_of(file)->inode;
    uint64_t end = align_up(inode->length_bytes, SIM_PAGE_BYTES) / SIM_PAGE_BYTES, pages = 0;

    for (uint64_t page = 0; page < end;) {
        uint64_t from = sim_pages_next(&inode->pages, page, end, true);

        page = sim_pages_next(&inode->pages, from, end, false);
        pages += page - from;
    }
    *ret_bytes = pages * SIM_PAGE_BYTES;
    return 0;
}

int sim_file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_data,
                    uint64_t *ret_length_bytes)
{
    struct sim_file *self = sim_file_of(file);
    struct sim_inode *inode = self->inode;
    uint64_t after_ns;

    int result = sim_file_begin(self, SIM_OP_EXTENT, &after_ns);
    if (result == 0) {
        uint64_t end_bytes = MIN(offset_bytes + length_bytes, inode->length_bytes);
        uint64_t page = offset_bytes / SIM_PAGE_BYTES;
        uint64_t end = align_up(end_bytes, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
        bool data = offset_bytes < end_bytes &&
                    sim_pages_next(&inode->pages, page, page + 1, true) == page;
        uint64_t next = offset_bytes < end_bytes ? sim_pages_next(&inode->pages, page, end, !data)
                                                 : end;
        if (next < end)
            length_bytes = next * SIM_PAGE_BYTES - offset_bytes;
        else if (data) /* behind the end of the file is a hole */
            length_bytes = end_bytes - offset_bytes;
        *ret_data = data;
        *ret_length_bytes = length_bytes;
    }
    sim_file_end(self, SIM_OP_EXTENT, offset_bytes, length_bytes, after_ns);
    return result;
}

/* --- opening and closing --- */

static int sim_inode_open(struct sim_host *host, const char *path, unsigned flags,
                          struct sim_inode **ret_inode)
{
    struct sim_inode *inode;
    int result = sim_fs_find(host, path, &inode);

    if (result == -ENOENT && (flags & FILE_CREATE) != 0)
        result = sim_fs_make(host, path, SIM_REGULAR, &inode);
    else if (result == 0 && (flags & FILE_CREATE) != 0 && (flags & FILE_EXCLUSIVE) != 0)
        result = -EEXIST;
    if (result < 0)
        return result;
    if (inode->kind == SIM_FOLDER)
        return -EISDIR;
    if (inode->kind == SIM_SOCKET)
        return -ENXIO;
    if ((flags & FILE_TRUNCATE) != 0)
        sim_inode_truncate(inode, 0);
    *ret_inode = inode;
    return 0;
}

int sim_file_open(struct loop *base, const char *path, unsigned flags, enum file_aio aio UNUSED,
                  struct file **ret_file, struct err *err)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim_file *self = calloc(1, sizeof(*self) + strlen(path) + 1);

    if (self == NULL)
        return err_no_memory(err);
    uint64_t after_ns = sim_request_wait(loop);
    int result = sim_fault_check(loop->host, path, SIM_OP_OPEN);
    if (result == 0)
        result = sim_inode_open(loop->host, path, flags, &self->inode);
    if (result < 0) {
        sim_request_settle(loop, after_ns);
        free(self);
        return err_set_errno(err, result, "cannot open '%s'%s", path,
                             (flags & FILE_WRITABLE) != 0 ? " for writing" : "");
    }
    self->inode->refs++;
    self->base = (struct file){
        .loop = base,
        .info.length_bytes = self->inode->length_bytes,
        .info.align_bytes = (flags & FILE_DIRECT) != 0 ? SIM_SECTOR_BYTES : 1,
        .info.in_memory = loop->sim->options.files_in_memory,
    };
    self->loop = loop;
    self->flags = flags;
    memcpy(self->path, path, strlen(path));
    list_push_back(&loop->files, &self->link);
    sim_request_settle(loop, after_ns);
    *ret_file = &self->base;
    return 0;
}

static void sim_locks_drop(struct sim_file *self)
{
    LIST_FOR_EACH_SAFE(lock, &self->inode->locks, struct sim_lock, link) {
        if (lock->owner != self)
            continue;
        list_remove(&lock->link);
        free(lock);
    }
}

void sim_file_close(struct file *file)
{
    struct sim_file *self = sim_file_of(file);
    struct sim_loop *loop = self->loop;

    assert(self->under_way == 0);
    uint64_t after_ns = sim_request_wait(loop);
    assert(self->under_way == 0);
    sim_locks_drop(self);
    list_remove(&self->link);
    sim_inode_unref(self->inode);
    free(self);
    sim_request_settle(loop, after_ns);
}

/* --- locks --- */

static struct sim_lock *sim_lock_conflict(struct sim_file *self, uint64_t byte, bool exclusive)
{
    LIST_FOR_EACH(lock, &self->inode->locks, struct sim_lock, link) {
        if (lock->owner != self && lock->byte == byte && (exclusive || lock->exclusive))
            return lock;
    }
    return NULL;
}

static struct sim_lock *sim_lock_own(struct sim_file *self, uint64_t byte)
{
    LIST_FOR_EACH(lock, &self->inode->locks, struct sim_lock, link) {
        if (lock->owner == self && lock->byte == byte)
            return lock;
    }
    return NULL;
}

int sim_file_lock(struct file *file, uint64_t byte, bool exclusive)
{
    struct sim_file *self = sim_file_of(file);

    if (exclusive && (self->flags & FILE_WRITABLE) == 0)
        return -EBADF;
    if (sim_lock_conflict(self, byte, exclusive) != NULL)
        return -EAGAIN;
    struct sim_lock *lock = sim_lock_own(self, byte);
    if (lock == NULL) {
        lock = calloc(1, sizeof(*lock));
        if (lock == NULL)
            return -ENOLCK;
        lock->owner = self;
        lock->byte = byte;
        list_push_back(&self->inode->locks, &lock->link);
    }
    lock->exclusive = exclusive;
    return 0;
}

int sim_file_unlock(struct file *file, uint64_t byte)
{
    struct sim_lock *lock = sim_lock_own(sim_file_of(file), byte);

    if (lock != NULL) {
        list_remove(&lock->link);
        free(lock);
    }
    return 0;
}

int sim_file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked)
{
    *ret_locked = sim_lock_conflict(sim_file_of(file), byte, exclusive) != NULL;
    return 0;
}

/* --- paths --- */

int sim_path_rename(struct loop *base, const char *from, const char *to)
{
    struct sim_loop *loop = sim_loop_of(base);
    uint64_t after_ns = sim_request_wait(loop);

    int result = sim_fault_check(loop->host, from, SIM_OP_RENAME);
    if (result == 0)
        result = sim_fs_rename(loop->host, from, to);
    sim_trace(loop->sim, SIM_KIND_FILE, loop->index << 32 | SIM_OP_RENAME, 0, (uint64_t)-result);
    sim_request_settle(loop, after_ns);
    return result;
}

int sim_path_unlink(struct loop *base, const char *path)
{
    struct sim_loop *loop = sim_loop_of(base);
    uint64_t after_ns = sim_request_wait(loop);

    int result = sim_fault_check(loop->host, path, SIM_OP_UNLINK);
    if (result == 0)
        result = sim_fs_unlink(loop->host, path);
    sim_trace(loop->sim, SIM_KIND_FILE, loop->index << 32 | SIM_OP_UNLINK, 0, (uint64_t)-result);
    sim_request_settle(loop, after_ns);
    return result;
}

int sim_path_sync_folder(struct loop *base, const char *folder)
{
    struct sim_loop *loop = sim_loop_of(base);
    uint64_t after_ns = sim_request_wait(loop);
    struct sim_inode *inode;

    int result = sim_fault_check(loop->host, folder, SIM_OP_SYNC_FOLDER);
    if (result == 0)
        result = sim_fs_find(loop->host, folder, &inode);
    if (result == 0 && inode->kind != SIM_FOLDER)
        result = -ENOTDIR;
    sim_request_settle(loop, after_ns);
    return result;
}

int sim_path_make_folder(struct loop *base, const char *folder, unsigned mode UNUSED)
{
    struct sim_loop *loop = sim_loop_of(base);
    uint64_t after_ns = sim_request_wait(loop);

    int result = sim_fault_check(loop->host, folder, SIM_OP_FOLDER);
    if (result == 0)
        result = sim_fs_make_folders(loop->host, folder);
    sim_request_settle(loop, after_ns);
    return result;
}

bool sim_path_exists(struct loop *base, const char *path)
{
    struct sim_loop *loop = sim_loop_of(base);
    uint64_t after_ns = sim_request_wait(loop);
    struct sim_inode *inode;

    bool exists = sim_fs_find(loop->host, path, &inode) == 0;
    sim_request_settle(loop, after_ns);
    return exists;
}
