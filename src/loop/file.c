/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files: the thin front of the backend's hooks; each hook is called here and nowhere else. */
#include "loop/loop_internal.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

int file_open(struct loop *loop, const char *path, unsigned flags, enum file_aio aio,
              struct file **ret_file, struct err *err)
{
    return loop->ops->file_open(loop, path, flags, aio, ret_file, err);
}

void file_close(struct file *file)
{
    if (file != NULL)
        file->loop->ops->file_close(file);
}

const struct file_info *file_info(const struct file *file)
{
    return &file->info;
}

ssize_t file_read(struct file *file, void *bytes, size_t length_bytes, uint64_t offset_bytes)
{
    return file->loop->ops->file_read(file, bytes, length_bytes, offset_bytes);
}

int file_write(struct file *file, const void *bytes, size_t length_bytes, uint64_t offset_bytes)
{
    struct iovec iov = {(void *)(uintptr_t)bytes, length_bytes};
    return file->loop->ops->file_writev(file, &iov, 1, offset_bytes);
}

int file_writev(struct file *file, struct iovec *iov, int count, uint64_t offset_bytes)
{
    return file->loop->ops->file_writev(file, iov, count, offset_bytes);
}

int file_sync(struct file *file)
{
    return file->loop->ops->file_sync(file);
}

int file_punch(struct file *file, uint64_t offset_bytes, uint64_t length_bytes)
{
    return file->loop->ops->file_zero(file, offset_bytes, length_bytes, true, true);
}

int file_zero(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap)
{
    return file->loop->ops->file_zero(file, offset_bytes, length_bytes, false, may_unmap);
}

int file_truncate(struct file *file, uint64_t length_bytes)
{
    return file->loop->ops->file_truncate(file, length_bytes);
}

int file_stat(struct file *file, struct file_stat *ret_stat)
{
    return file->loop->ops->file_stat(file, ret_stat);
}

int file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_data,
                uint64_t *ret_length_bytes)
{
    assert(length_bytes > 0);
    return file->loop->ops->file_extent(file, offset_bytes, length_bytes, ret_data,
                                        ret_length_bytes);
}

int file_lock(struct file *file, uint64_t byte, bool exclusive)
{
    return file->loop->ops->file_lock(file, byte, exclusive);
}

int file_unlock(struct file *file, uint64_t byte)
{
    return file->loop->ops->file_unlock(file, byte);
}

int file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked)
{
    return file->loop->ops->file_lock_test(file, byte, exclusive, ret_locked);
}

int file_lock_holder(struct file *file, int64_t *ret_pid, char *name, size_t name_bytes)
{
    if (file->loop->ops->file_lock_holder == NULL)
        return -ENOENT;
    return file->loop->ops->file_lock_holder(file, ret_pid, name, name_bytes);
}

int path_rename(struct loop *loop, const char *from, const char *to)
{
    return loop->ops->path_rename(loop, from, to, false);
}

int path_exchange(struct loop *loop, const char *one, const char *other)
{
    return loop->ops->path_rename(loop, one, other, true);
}

int path_unlink(struct loop *loop, const char *path)
{
    return loop->ops->path_unlink(loop, path);
}

int path_sync_folder(struct loop *loop, const char *folder)
{
    return loop->ops->path_sync_folder(loop, folder);
}

int path_sync_parent(struct loop *loop, const char *path)
{
    char folder[PATH_MAX];
    size_t length = strlen(path);

    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    if (length >= sizeof(folder))
        return -ENAMETOOLONG;
    memcpy(folder, path, length);
    folder[length] = '\0';
    return path_sync_folder(loop, length > 0 ? folder : ".");
}

int path_make_folder(struct loop *loop, const char *folder, unsigned mode)
{
    return loop->ops->path_make_folder(loop, folder, mode);
}

bool path_exists(struct loop *loop, const char *path)
{
    return loop->ops->path_exists(loop, path);
}
