/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files and block devices. Reads and writes take the way that suits the file (see file.aio in the
 * README of this folder); buffers live until the call returns. No writable memory maps: a full disk
 * would be a SIGBUS.
 */
#ifndef BLOCKSTEP_LOOP_FILE_H
#define BLOCKSTEP_LOOP_FILE_H

#include "loop/co.h"

#include <sys/uio.h>

struct file;

enum file_flags {
    FILE_WRITABLE = 1u << 0,  /* else read-only */
    FILE_DIRECT = 1u << 1,    /* O_DIRECT: offsets, lengths, memory aligned to info.align_bytes */
    FILE_CREATE = 1u << 2,    /* mode 0600 when it does not exist */
    FILE_EXCLUSIVE = 1u << 3, /* with FILE_CREATE: fail with -EEXIST */
    FILE_TRUNCATE = 1u << 4,
};

/* How requests reach the kernel; AUTO picks by kind of file. */
enum file_aio { FILE_AIO_AUTO, FILE_AIO_URING, FILE_AIO_INLINE, FILE_AIO_THREADS };

#define FILE_IDENTITY_BYTES 64u

struct file_info {
    uint64_t length_bytes;
    uint32_t align_bytes; /* for offsets, lengths and memory: 1 when buffered */
    bool block_device;
    bool in_memory; /* tmpfs or ramfs */
    /* Differs for another file in its place, also of the same content; stays for as long as the file is
     * where it is. Empty when nothing tells: block devices, file systems without lasting numbers. */
    char identity[FILE_IDENTITY_BYTES];
};

/* `err` names path and reason. */
int file_open(struct loop *loop, const char *path, unsigned flags, enum file_aio aio,
              struct file **ret_file, struct err *err) MAY_WAIT;
/* No request may be under way. Releases the locks. NULL is fine. */
void file_close(struct file *file) MAY_WAIT;
const struct file_info *file_info(const struct file *file);

/* Reads until `length_bytes` or the end of the file; returns how many, or -errno. */
ssize_t file_read(struct file *file, void *bytes, size_t length_bytes, uint64_t offset_bytes)
    MAY_WAIT;
/* Write all: 0 or -errno; on failure any part may have been written. */
int file_write(struct file *file, const void *bytes, size_t length_bytes, uint64_t offset_bytes)
    MAY_WAIT;
/* The vector is changed by the call. At most 1024 entries (IOV_MAX). */
int file_writev(struct file *file, struct iovec *iov, int count, uint64_t offset_bytes) MAY_WAIT;
/* fdatasync: what was written before the call is durable after it. */
int file_sync(struct file *file) MAY_WAIT;

/* -EOPNOTSUPP where the file system cannot. */
int file_punch(struct file *file, uint64_t offset_bytes, uint64_t length_bytes) MAY_WAIT;
/* Makes the range read as zeroes without writing them; blocks stay allocated unless `may_unmap`. */
int file_zero(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool may_unmap)
    MAY_WAIT;
int file_truncate(struct file *file, uint64_t length_bytes) MAY_WAIT;
/* As it is now, whoever has changed it. Does not wait. */
struct file_stat {
    uint64_t length_bytes; /* of a block device 0 */
    uint64_t usage_bytes;  /* what it takes up on its file system */
};
int file_stat(struct file *file, struct file_stat *ret_stat);

/* Whether there is data at the offset, and for how many bytes (1 to length_bytes) it stays so. Files
 * that cannot tell are all data. */
int file_extent(struct file *file, uint64_t offset_bytes, uint64_t length_bytes, bool *ret_data,
                uint64_t *ret_length_bytes) MAY_WAIT;

/* Open-file-description locks on single bytes (QEMU's scheme). -EAGAIN when another has it. */
int file_lock(struct file *file, uint64_t byte, bool exclusive);
int file_unlock(struct file *file, uint64_t byte);
/* Whether another holds a conflicting lock there. */
int file_lock_test(struct file *file, uint64_t byte, bool exclusive, bool *ret_locked);

/* Any other process that holds a lock of this kind on the file: its pid and its name, which is empty
 * when it cannot be told. -ENOENT when there is none or we may not look. For error messages. */
int file_lock_holder(struct file *file, int64_t *ret_pid, char *name, size_t name_bytes) MAY_WAIT;

int path_rename(struct loop *loop, const char *from, const char *to) MAY_WAIT;
/* Swaps what two names stand for, in one step, without leaving the thread; cheaper than replacing. -ENOENT: one is not there;
 * -EINVAL, -ENOSYS: the file system cannot. */
int path_exchange(struct loop *loop, const char *one, const char *other) MAY_WAIT;
int path_unlink(struct loop *loop, const char *path) MAY_WAIT;
/* Makes what was created, renamed or unlinked in the folder durable. */
int path_sync_folder(struct loop *loop, const char *folder) MAY_WAIT;
/* The same of the folder that the path's last name stands in. */
int path_sync_parent(struct loop *loop, const char *path) MAY_WAIT;
int path_make_folder(struct loop *loop, const char *folder, unsigned mode) MAY_WAIT; /* mkdir -p */
bool path_exists(struct loop *loop, const char *path) MAY_WAIT;

#endif
