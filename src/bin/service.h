/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What systemd offers to the services that it runs, spoken by hand: two small protocols of
 * environment variables. Without systemd all of this is harmless. */
#ifndef BLOCKSTEP_BIN_SERVICE_H
#define BLOCKSTEP_BIN_SERVICE_H

#include "base/err.h"

/* Log lines as the journal wants them when stderr leads there, and no more of them than somebody
 * can read: SERVICE_LOG_LINES of a subject in SERVICE_LOG_SECONDS. For programs that serve. */
#define SERVICE_LOG_LINES   100u
#define SERVICE_LOG_SECONDS 10u
void service_log_init(void);

/* "READY=1", "STOPPING=1", "STATUS=...": sends it to $NOTIFY_SOCKET. Nobody waits for it, so a
 * failure is only logged. */
void service_notify(const char *state);

/*
 * The listening socket that systemd passed (socket activation: LISTEN_PID, LISTEN_FDS): 1 and its
 * descriptor, 0 when there is none, or an error when there are several or it is not a listening
 * stream socket. The variables are taken away, so that no child believes them.
 */
int service_listen_fd(int *ret_fd, struct err *err);

#endif
