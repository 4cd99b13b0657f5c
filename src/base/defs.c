/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/defs.h"

#include <errno.h>
#include <unistd.h>

#if defined(__clang__)
/* Stands for "we are in a coroutine" in clang's analysis; no code touches it. */
struct co_capability co_capability;
#endif

void fd_close(int *fd)
{
    int saved_errno = errno;

    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    errno = saved_errno;
}
