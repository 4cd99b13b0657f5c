/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replication/record_file.h"

#include "base/log.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_NAME   "group"
#define LOCK_NAME     "lock"
#define LOCK_RETRY_NS (2 * NS_PER_S) /* a killed process may hold its locks for some 100 ms */
#define LOCK_PAUSE_NS (20 * NS_PER_MS)

static const char *const draft_names[] = {RECORD_NAME ".new", RECORD_NAME ".next"};

struct record_file {
    struct loop *loop;
    struct file *lock;
    char folder[PATH_MAX];
    char path[PATH_MAX];
    char drafts[ARRAY_LEN(draft_names)][PATH_MAX];
};

/* --- the folder --- */

static int set_path(char path[PATH_MAX], const char *folder, const char *name, struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) < PATH_MAX)
        return 0;
    return err_set(err, -ENAMETOOLONG, "the path of state folder '%s' is too long", folder);
}

static int lock_error(struct record_file *file, int code, struct err *err) MAY_WAIT
{
    char name[64] = "";
    int64_t pid = 0;

    if (code != -EAGAIN)
        return err_set_errno(err, code, "state folder '%s' cannot be locked", file->folder);
    if (file_lock_holder(file->lock, &pid, name, sizeof(name)) < 0)
        return err_set(err, -EBUSY,
                       "state folder '%s' is in use by another process: each daemon "
                       "has a folder of its own",
                       file->folder);
    return err_set(err, -EBUSY,
                   "state folder '%s' is in use by process %" PRId64 " (%s): each daemon has a "
                   "folder of its own",
                   file->folder, pid, name);
}

static int lock_folder(struct record_file *file, struct err *err) MAY_WAIT
{
    uint64_t deadline_ns = loop_now_ns(file->loop) + LOCK_RETRY_NS;
    char path[PATH_MAX];
    int ret = set_path(path, file->folder, LOCK_NAME, err);

    if (ret == 0)
        ret = file_open(file->loop, path, FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO, &file->lock,
                        err);
    if (ret < 0)
        return ret;
    while ((ret = file_lock(file->lock, 0, true)) == -EAGAIN &&
           loop_now_ns(file->loop) < deadline_ns)
        co_sleep(LOCK_PAUSE_NS);
    return ret < 0 ? lock_error(file, ret, err) : 0;
}

int record_file_open(struct loop *loop, const char *folder, struct record_file **ret_file,
                     struct err *err)
{
    struct record_file *file = calloc(1, sizeof(*file));
    int ret;

    if (file == NULL)
        return err_no_memory(err);
    file->loop = loop;
    ret = set_path(file->path, folder, RECORD_NAME, err);
    for (size_t i = 0; ret == 0 && i < ARRAY_LEN(draft_names); i++)
        ret = set_path(file->drafts[i], folder, draft_names[i], err);
    if (ret == 0) {
        snprintf(file->folder, sizeof(file->folder), "%s", folder);
        ret = path_make_folder(loop, folder, 0700);
        if (ret == 0) /* who loses the folder loses the record */
            ret = path_sync_parent(loop, folder);
        if (ret == -EACCES) /* whoever made it could look there */
            ret = 0;
        if (ret < 0)
            err_set_errno(err, ret, "cannot make state folder '%s'", folder);
    }
    if (ret == 0)
        ret = lock_folder(file, err);
    if (ret < 0) {
        record_file_close(file);
        return ret;
    }
    *ret_file = file;
    return 0;
}

void record_file_close(struct record_file *file)
{
    if (file == NULL)
        return;
    file_close(file->lock);
    free(file);
}

const char *record_file_path(const struct record_file *file)
{
    return file->path;
}

/* --- reading --- */

static int read_record(struct record_file *file, char *text, struct group_record *ret_record,
                       struct err *err) MAY_WAIT
{
    struct file *opened = NULL;
    int ret = file_open(file->loop, file->path, 0, FILE_AIO_AUTO, &opened, err);

    if (ret < 0)
        return ret;
    ssize_t length = file_read(opened, text, GROUP_RECORD_MAX_BYTES + 1, 0);
    file_close(opened);
    if (length < 0)
        return err_set_errno(err, (int)length, "'%s' cannot be read", file->path);
    ret = length > GROUP_RECORD_MAX_BYTES
              ? err_set(err, -EUCLEAN, "it is damaged: it is too long")
              : group_record_decode(text, (size_t)length, ret_record, err);
    return ret < 0 ? err_prefix(err, "the group's record '%s'", file->path) : 0;
}

int record_file_load(struct record_file *file, struct group_record *ret_record, struct err *err)
{
    if (!path_exists(file->loop, file->path))
        return err_set(err, -ENOENT, "there is no record '%s'", file->path);
    CLEANUP(free_ptr) char *text = malloc(GROUP_RECORD_MAX_BYTES + 1);
    if (text == NULL)
        return err_no_memory(err);
    return read_record(file, text, ret_record, err);
}

int record_file_set_aside(struct record_file *file, struct err *err)
{
    char path[PATH_MAX];
    int ret = set_path(path, file->folder, RECORD_NAME ".damaged", err);

    if (ret < 0)
        return ret;
    ret = path_rename(file->loop, file->path, path);
    if (ret < 0)
        return err_set_errno(err, ret, "cannot put '%s' out of the way", file->path);
    log_warning("replication", "the damaged record is kept as '%s'", path);
    return 0;
}

int record_file_remove(struct record_file *file, struct err *err)
{
    int ret = path_unlink(file->loop, file->path);

    return ret < 0 ? err_set_errno(err, ret, "cannot remove '%s'", file->path) : 0;
}

/* --- replacing --- */

static int write_draft(struct record_file *file, const char *path, const char *text, size_t length,
                       bool durable, struct err *err) MAY_WAIT
{
    struct file *opened = NULL;
    int ret = file_open(file->loop, path, FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO, &opened, err);

    if (ret < 0)
        return ret;
    ret = file_write(opened, text, length, 0);
    if (ret == 0 && file_info(opened)->length_bytes > length)
        ret = file_truncate(opened, length);
    if (ret == 0 && durable)
        ret = file_sync(opened);
    file_close(opened);
    return ret < 0 ? err_set_errno(err, ret, "cannot write the group's record '%s'", path) : 0;
}

int record_file_prepare(struct record_file *file, enum record_draft draft,
                        const struct group_record *record, bool durable, struct err *err)
{
    size_t length;
    CLEANUP(free_ptr) char *text = group_record_encode(record, &length);

    if (text == NULL)
        return err_no_memory(err);
    return write_draft(file, file->drafts[draft], text, length, durable, err);
}

int record_file_commit(struct record_file *file, enum record_draft draft, bool durable,
                       bool *ret_replaced, struct err *err)
{
    int ret = durable ? -EINVAL : path_exchange(file->loop, file->drafts[draft], file->path);

    /* The first one, or a file system that cannot. */
    if (ret == -ENOENT || ret == -EINVAL || ret == -ENOSYS || ret == -EOPNOTSUPP)
        ret = path_rename(file->loop, file->drafts[draft], file->path);
    *ret_replaced = ret == 0;
    if (ret < 0)
        return err_set_errno(err, ret, "cannot replace the group's record '%s'", file->path);
    if (!durable)
        return 0;
    ret = path_sync_folder(file->loop, file->folder);
    if (ret < 0)
        return err_set_errno(err, ret, "the group's record '%s' cannot be made durable",
                             file->path);
    return 0;
}
