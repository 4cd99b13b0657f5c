/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

int pidfile_write(const char *path, int *ret_fd, struct err *err)
{
    CLEANUP(fd_close) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

    if (fd < 0)
        return err_set_errno(err, -errno, "--pidfile: cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EWOULDBLOCK)
            return err_set(err, -EBUSY, "--pidfile: %s belongs to a daemon that runs", path);
        return err_set_errno(err, -errno, "--pidfile: cannot lock %s", path);
    }
    if (ftruncate(fd, 0) < 0 || dprintf(fd, "%ld\n", (long)getpid()) < 0)
        return err_set_errno(err, -errno, "--pidfile: cannot write %s", path);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

void pidfile_remove(const char *path, int *fd)
{
    if (*fd < 0)
        return;
    unlink(path);
    fd_close(fd);
    *fd = -1;
}

/* The parent's part: exits. */
static void NORETURN wait_for_child(pid_t child, int fd)
{
    char byte;
    ssize_t got;
    int status;

    do {
        got = read(fd, &byte, 1);
    } while (got < 0 && errno == EINTR);
    if (got == 1)
        _exit(0);
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR)
            _exit(1);
    }
    _exit(WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1);
}

int daemonize(int *ret_fd, struct err *err)
{
    int fds[2];
    pid_t child;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, -errno, "--daemonize: pipe");
    fflush(NULL);
    child = fork();
    if (child < 0) {
        int code = -errno;

        close(fds[0]);
        close(fds[1]);
        return err_set_errno(err, code, "--daemonize: fork");
    }
    if (child > 0) {
        close(fds[1]);
        wait_for_child(child, fds[0]);
    }
    close(fds[0]);
    setsid();
    *ret_fd = fds[1];
    return 0;
}

void daemonize_ready(int *fd)
{
    int null;

    if (*fd < 0)
        return;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        close(null);
    }
    while (write(*fd, "", 1) < 0 && errno == EINTR)
        ;
    close(*fd);
    *fd = -1;
}
