/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files of the simulator, as the program sees them: what it asks for becomes a request. */
#include "loop/sim_internal.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define SIM_SECTOR_BYTES 512u /* what FILE_DIRECT asks for */

struct sim_file {
    struct file base;
    struct sim_loop *loop;
    struct sim_handle *handle; /* NULL: the process is dead */
    unsigned flags;
    unsigned under_way;
    char path[];
};

struct sim_lock {
    struct list_link link;
    struct sim_handle *owner;
    uint64_t byte;
    bool exclusive;
};

static struct sim_file *sim_file_of(struct file *file)
{
    return CONTAINER_OF(file, struct sim_file, base);
}

/* --- requests --- */

static int sim_file_run(struct sim_file *self, struct sim_request *request) MAY_WAIT
{
    request->path = self->path;
    request->inode = self->handle != NULL ? self->handle->inode : NULL;
    self->under_way++;
    int result = sim_request_run(self->loop, request);
    self->under_way--;
    return result;
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
    struct sim_request request = {
        .op = SIM_OP_READ,
        .bytes = bytes,
        .offset_bytes = offset_bytes,
        .length_bytes = length_bytes,
    };

    if (!sim_is_aligned(self, bytes, offset_bytes, length_bytes))
        return -EINVAL;
    int result = sim_file_run(self, &request);
    return result < 0 ? result : (ssize_t)request.done_bytes;
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
    struct sim_request request = {
        .op = SIM_OP_WRITE,
        .iov = iov,
        .iov_count = count,
        .offset_bytes = offset_bytes,
    };
    size_t length_bytes;

    int result = sim_write_check(self, iov, count, offset_bytes, &length_bytes);
    if (result < 0)
        return result;
    request.length_bytes = length_bytes;
    return sim_file_run(self, &request);
}

int sim_file_sync(struct file *file)
{
    struct sim_request request = {.op = SIM_OP_SYNC};
    return sim_file_run(sim_file_of(file), &request);
}

int sim_file_zero(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool punch,
                  bool may_unmap)
{
    struct sim_file *self = sim_file_of(file);
    struct sim_request request = {
        .op = SIM_OP_ZERO,
        .offset_bytes = offset_bytes,
        .length_bytes = length_bytes,
        .punch = punch,
        .may_unmap = may_unmap,
    };

    if ((self->flags & FILE_WRITABLE) == 0)
        return -EBADF;
    return length_bytes > 0 ? sim_file_run(self, &request) : -EINVAL;
}

int sim_file_truncate(struct file *file, uint64_t length_bytes)
{
    struct sim_file *self = sim_file_of(file);
    struct sim_request request = {.op = SIM_OP_TRUNCATE, .length_bytes = length_bytes};

    if ((self->flags & FILE_WRITABLE) == 0)
        return -EINVAL;
    if (length_bytes > SIM_FILE_MAX_BYTES)
        return -EFBIG;
    int result = sim_file_run(self, &request);
    if (result == 0)
        file->info.length_bytes = length_bytes;
    return result;
}

int sim_file_stat(struct file *file, struct file_stat *ret_stat)
{
    const struct sim_handle *handle = sim_file_of(file)->handle;

    if (handle == NULL)
        return -EIO;
    *ret_stat = (struct file_stat){.length_bytes = handle->inode->length_bytes,
                                   .usage_bytes = handle->inode->pages.taken * SIM_PAGE_BYTES};
    return 0;
}

int sim_file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_data,
                    uint64_t *ret_length_bytes)
{
    struct sim_request request = {
        .op = SIM_OP_EXTENT,
        .offset_bytes = offset_bytes,
        .length_bytes = length_bytes,
    };

    int result = sim_file_run(sim_file_of(file), &request);
    if (result == 0) {
        *ret_data = request.data;
        *ret_length_bytes = request.length_bytes;
    }
    return result;
}

/* --- opening and closing --- */

int sim_file_open(struct loop *base, const char *path, unsigned flags, enum file_aio aio UNUSED,
                  struct file **ret_file, struct err *err)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim_request request = {.op = SIM_OP_OPEN, .path = path, .flags = flags};
    struct sim_file *self = calloc(1, sizeof(*self) + strlen(path) + 1);

    if (self == NULL)
        return err_no_memory(err);
    int result = sim_request_run(loop, &request);
    if (result == 0 && loop->dead) /* since it was done: its handle went with the others */
        result = -EIO;
    if (result < 0) {
        free(self);
        return err_set_errno(err, result, "cannot open '%s'%s", path,
                             (flags & FILE_WRITABLE) != 0 ? " for writing" : "");
    }
    self->base = (struct file){
        .loop = base,
        .info.length_bytes = request.length_bytes,
        .info.align_bytes = (flags & FILE_DIRECT) != 0 ? SIM_SECTOR_BYTES : 1,
        .info.in_memory = loop->sim->options.files_in_memory,
    };
    self->loop = loop;
    self->handle = request.handle;
    self->handle->file = self;
    self->flags = flags;
    memcpy(self->path, path, strlen(path));
    loop->files++;
    *ret_file = &self->base;
    return 0;
}

void sim_file_detach(struct sim_file *file)
{
    file->handle = NULL;
}

void sim_file_close(struct file *file)
{
    struct sim_file *self = sim_file_of(file);
    struct sim_loop *loop = self->loop;

    assert(self->under_way == 0);
    sim_pause_some(loop, loop->sim->options.file);
    assert(self->under_way == 0);
    if (self->handle != NULL)
        sim_handle_free(self->handle);
    loop->files--;
    free(self);
}

/* --- locks --- */

static struct sim_lock *sim_lock_conflict(const struct sim_handle *self, uint64_t byte,
                                          bool exclusive)
{
    LIST_FOR_EACH(lock, &self->inode->locks, struct sim_lock, link) {
        if (lock->owner != self && lock->byte == byte && (exclusive || lock->exclusive))
            return lock;
    }
    return NULL;
}

static struct sim_lock *sim_lock_own(const struct sim_handle *self, uint64_t byte)
{
    LIST_FOR_EACH(lock, &self->inode->locks, struct sim_lock, link) {
        if (lock->owner == self && lock->byte == byte)
            return lock;
    }
    return NULL;
}

void sim_locks_drop(struct sim_handle *handle)
{
    LIST_FOR_EACH_SAFE(lock, &handle->inode->locks, struct sim_lock, link) {
        if (lock->owner != handle)
            continue;
        list_remove(&lock->link);
        free(lock);
    }
}

int sim_file_lock(struct file *file, uint64_t byte, bool exclusive)
{
    struct sim_file *self = sim_file_of(file);

    if (self->handle == NULL)
        return -EIO;
    if (exclusive && (self->flags & FILE_WRITABLE) == 0)
        return -EBADF;
    if (sim_lock_conflict(self->handle, byte, exclusive) != NULL)
        return -EAGAIN;
    struct sim_lock *lock = sim_lock_own(self->handle, byte);
    if (lock == NULL) {
        lock = calloc(1, sizeof(*lock));
        if (lock == NULL)
            return -ENOLCK;
        lock->owner = self->handle;
        lock->byte = byte;
        list_push_back(&self->handle->inode->locks, &lock->link);
    }
    lock->exclusive = exclusive;
    return 0;
}

int sim_file_unlock(struct file *file, uint64_t byte)
{
    const struct sim_handle *handle = sim_file_of(file)->handle;
    struct sim_lock *lock = handle != NULL ? sim_lock_own(handle, byte) : NULL;

    if (lock != NULL) {
        list_remove(&lock->link);
        free(lock);
    }
    return 0;
}

int sim_file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked)
{
    const struct sim_handle *handle = sim_file_of(file)->handle;

    if (handle == NULL)
        return -EIO;
    *ret_locked = sim_lock_conflict(handle, byte, exclusive) != NULL;
    return 0;
}

/* --- paths --- */

int sim_path_rename(struct loop *base, const char *from, const char *to, bool exchange)
{
    struct sim_request request = {
        .op = SIM_OP_RENAME, .path = from, .new_path = to, .exchange = exchange};
    return sim_request_run(sim_loop_of(base), &request);
}

int sim_path_unlink(struct loop *base, const char *path)
{
    struct sim_request request = {.op = SIM_OP_UNLINK, .path = path};
    return sim_request_run(sim_loop_of(base), &request);
}

int sim_path_sync_folder(struct loop *base, const char *folder)
{
    struct sim_request request = {.op = SIM_OP_SYNC_FOLDER, .path = folder};
    return sim_request_run(sim_loop_of(base), &request);
}

int sim_path_make_folder(struct loop *base, const char *folder, unsigned mode UNUSED)
{
    struct sim_request request = {.op = SIM_OP_FOLDER, .path = folder};
    return sim_request_run(sim_loop_of(base), &request);
}

bool sim_path_exists(struct loop *base, const char *path)
{
    struct sim_loop *loop = sim_loop_of(base);
    struct sim_inode *inode;

    sim_pause_some(loop, loop->sim->options.file);
    return !loop->dead && sim_fs_find(loop->host, path, &inode) == 0;
}
