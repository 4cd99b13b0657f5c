/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/service.h"

#include "base/log.h"
#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define FIRST_PASSED_FD 3

/* --- the log --- */

static uint64_t log_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void service_log_init(void)
{
    static const struct log_limit limit = {
        .messages = SERVICE_LOG_LINES,
        .interval_ns = SERVICE_LOG_SECONDS * NS_PER_S,
        .now_ns = log_clock_ns,
    };

    if (log_stderr_is_journal())
        log_set_sink(log_to_journal, NULL);
    log_set_limit(&limit);
}

/* --- readiness --- */

static int notify_send(const char *path, const char *state)
{
    CLEANUP(fd_close) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    size_t length = strlen(path);

    if (fd < 0)
        return -errno;
    if (length < 2 || length >= sizeof(name.sun_path) || (path[0] != '/' && path[0] != '@'))
        return -EINVAL;
    memcpy(name.sun_path, path, length);
    if (path[0] == '@')
        name.sun_path[0] = '\0'; /* an abstract socket: the length is the name's end */
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&name,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
        return -errno;
    return 0;
}

void service_notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    int r;

    if (path == NULL || *path == '\0')
        return;
    r = notify_send(path, state);
    if (r < 0)
        log_warning("service", "cannot tell %s '%s': %s", path, state, strerror(-r));
}

/* --- a socket that was passed --- */

/* The variable as a number, or -1. */
static long number_of(const char *variable)
{
    const char *text = getenv(variable);
    char *end = NULL;
    long number;

    if (text == NULL || *text < '0' || *text > '9')
        return -1;
    errno = 0;
    number = strtol(text, &end, 10);
    return errno == 0 && *end == '\0' ? number : -1;
}

static int check_listening(int fd, struct err *err)
{
    int type = 0, listening = 0;
    socklen_t length = sizeof(type);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return err_set_errno(err, -errno, "LISTEN_FDS: descriptor %d is no socket", fd);
    length = sizeof(listening);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0)
        return err_set_errno(err, -errno, "LISTEN_FDS: descriptor %d", fd);
    if (type != SOCK_STREAM || !listening)
        return err_set(err, -EINVAL,
                       "LISTEN_FDS: descriptor %d is not a listening stream socket "
                       "(ListenStream= with Accept=no)",
                       fd);
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return err_set_errno(err, -errno, "LISTEN_FDS: descriptor %d", fd);
    return 1;
}

int service_listen_fd(int *ret_fd, struct err *err)
{
    long pid = number_of("LISTEN_PID");
    long count = number_of("LISTEN_FDS");
    int r;

    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    /* Variables meant for a parent are inherited, too. */
    if (pid != (long)getpid() || count <= 0)
        return 0;
    if (count > 1)
        return err_set(err, -E2BIG,
                       "LISTEN_FDS: %ld sockets were passed, but there is use for one: the NBD "
                       "server for users",
                       count);
    r = check_listening(FIRST_PASSED_FD, err);
    if (r > 0)
        *ret_fd = FIRST_PASSED_FD;
    return r;
}
