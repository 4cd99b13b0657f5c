/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a daemon does to be one: a pid file, and leaving the terminal. */
#ifndef BLOCKSTEP_BIN_PROCESS_H
#define BLOCKSTEP_BIN_PROCESS_H

#include "base/err.h"

/* Writes this process's id and keeps the file locked in *ret_fd. Refused while another has it. */
int pidfile_write(const char *path, int *ret_fd, struct err *err);
void pidfile_remove(const char *path, int *fd);

/*
 * Forks. The parent does not return: it waits until the child says that it is ready, or ends, and
 * exits with 0 or the child's exit code; messages of the child go to the terminal until then. In the
 * child *ret_fd is what daemonize_ready() needs.
 */
int daemonize(int *ret_fd, struct err *err);
/* Lets the parent exit with success and gives up the terminal. Harmless for a negative *fd. */
void daemonize_ready(int *fd);

#endif
