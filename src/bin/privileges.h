/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program that serves keeps of the rights it was started with. Capabilities belong to threads,
 * so both calls come while there is one thread; those made later have no more than it.
 */
#ifndef BLOCKSTEP_BIN_PRIVILEGES_H
#define BLOCKSTEP_BIN_PRIVILEGES_H

#include "base/err.h"

/* --runas: becomes that user ("USER", "USER:GROUP", by names or numbers), with the user's groups and
 * without any capability. Before anything is opened: what is made belongs to the user, and what works
 * at the start works later. */
int privileges_become(const char *user, struct err *err);

/*
 * Gives up all capabilities but two, also for good (bounding set), and the gain of new ones
 * (no_new_privs). Disks that belong to others can still be opened, now and by blockdev-add
 * (CAP_DAC_OVERRIDE), and ports below 1024 be listened on (CAP_NET_BIND_SERVICE). After the loop has
 * been made: a kernel that allows io_uring to administrators alone asks for CAP_SYS_ADMIN there.
 */
int privileges_limit(struct err *err);

/* What lies in a state folder decides which data counts: -EPERM when others may write there. One that
 * is not there yet will be made. */
int state_folder_check(const char *folder, struct err *err);

#endif
