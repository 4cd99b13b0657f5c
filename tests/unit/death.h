/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For promises of the kind "this is caught": runs something that must end the process. */
#ifndef BLOCKSTEP_TESTS_DEATH_H
#define BLOCKSTEP_TESTS_DEATH_H

#include <fcntl.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* True when `act` does not return, but ends its process by a signal or with an error. What it says
 * on its way is dropped. */
static inline bool dies(void (*act)(void *arg), void *arg)
{
    int status = 0;
    pid_t child = fork();

    if (child == 0) {
        struct rlimit no_core = {0, 0};
        int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

        setrlimit(RLIMIT_CORE, &no_core);
        dup2(null_fd, STDERR_FILENO);
        act(arg);
        _exit(0);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status != 0;
}

#endif
