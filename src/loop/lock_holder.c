/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who holds a lock on a file. Open-file-description locks belong to no process, so the kernel names
 * none: but each process that has the description open shows the lock in /proc/PID/fdinfo.
 */
#include "loop/uring.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FDINFO_BYTES 4096u

struct holder_call {
    int fd;
    int64_t pid;
    char *name;
    size_t name_bytes;
};

static void dir_closep(DIR **dir)
{
    if (*dir != NULL)
        closedir(*dir);
}

static ssize_t read_text(int folder, const char *path, char *text, size_t text_bytes)
{
    CLEANUP(fd_close) int fd = openat(folder, path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, text, text_bytes - 1) : -1;

    text[MAX(got, 0)] = '\0';
    return got;
}

/* One process: has it a descriptor of this inode with such a lock? */
static bool process_holds(int process, const struct stat *wanted)
{
    int fds_fd = openat(process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CLEANUP(dir_closep) DIR *fds = fds_fd >= 0 ? fdopendir(fds_fd) : NULL;
    struct dirent *entry;

    while (fds != NULL && (entry = readdir(fds)) != NULL) {
        char path[300], text[FDINFO_BYTES];
        struct stat st;

        if (fstatat(fds_fd, entry->d_name, &st, 0) != 0 || st.st_ino != wanted->st_ino ||
            st.st_dev != wanted->st_dev)
            continue;
        snprintf(path, sizeof(path), "fdinfo/%s", entry->d_name);
        if (read_text(process, path, text, sizeof(text)) > 0 && strstr(text, "OFDLCK") != NULL)
            return true;
    }
    return false;
}

static int holder_call_run(void *arg)
{
    struct holder_call *call = arg;
    CLEANUP(dir_closep) DIR *processes = opendir("/proc");
    struct stat wanted;
    struct dirent *entry;

    if (processes == NULL || fstat(call->fd, &wanted) != 0)
        return -errno;
    while ((entry = readdir(processes)) != NULL) {
        char name[64];

        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        CLEANUP(fd_close)
        int process = openat(dirfd(processes), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (process < 0 || !process_holds(process, &wanted))
            continue;
        ssize_t length = read_text(process, "comm", name, sizeof(name));
        name[length > 0 ? length - 1 : 0] = '\0'; /* without the newline */
        snprintf(call->name, call->name_bytes, "%s", name);
        call->pid = atoll(entry->d_name);
        return 0;
    }
    return -ENOENT;
}

int uring_file_lock_holder(struct file *file, int64_t *ret_pid, char *name, size_t name_bytes)
{
    struct holder_call call = {.fd = uring_file_fd(file), .name = name, .name_bytes = name_bytes};
    int result = loop_offload(file->loop, holder_call_run, &call);

    if (result == 0)
        *ret_pid = call.pid;
    return result;
}
