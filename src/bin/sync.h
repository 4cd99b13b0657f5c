/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The first synchronisation, as a client of both daemons: mirrors the primary's disks to the
 * secondary's exports while the guest runs and its writes are forwarded already, then has the
 * secondary take its first checkpoint. One line of progress; the daemon goes on serving whatever
 * comes of it.
 */
#ifndef BLOCKSTEP_BIN_SYNC_H
#define BLOCKSTEP_BIN_SYNC_H

#include "bin/serve.h"

/* Forks before there is a loop: the child waits for the daemon's control socket, does all of it, and
 * dies with its parent. */
int sync_fork(struct serve *serve, struct err *err);

#endif
