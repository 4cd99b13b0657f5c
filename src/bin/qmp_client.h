/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A blocking QMP client for programs that do one thing after the other. */
#ifndef BLOCKSTEP_BIN_QMP_CLIENT_H
#define BLOCKSTEP_BIN_QMP_CLIENT_H

#include "base/json.h"
#include "loop/tls.h"

#include <signal.h>

#define QMP_CLIENT_CONNECT_MS 10000
#define QMP_CLIENT_ANSWER_MS  120000 /* unless the caller says otherwise */

struct qmp_client;

/* "unix:PATH" or "HOST:PORT". Greets and negotiates. `err` says what to do. */
int qmp_client_connect(const char *address, struct qmp_client **ret_client, struct err *err);
/* As qmp_client_connect(); a TCP address is spoken to by TLS, with these credentials. NULL: without. */
int qmp_client_connect_tls(const char *address, const struct tls_creds_options *tls,
                           struct qmp_client **ret_client, struct err *err);
/* NULL is fine. */
void qmp_client_close(struct qmp_client *client);
void qmp_client_closep(struct qmp_client **client);
struct json_object *qmp_client_greeting(const struct qmp_client *client);
int qmp_client_fd(const struct qmp_client *client);

/* Runs a command and returns what its answer holds; takes the reference on `arguments` (NULL: none).
 * An answer that is an error becomes `err`, with its class as the kind. *ret_result may be NULL. */
int qmp_client_run(struct qmp_client *client, const char *command, struct json_object *arguments,
                   struct json_object **ret_result, struct err *err);

/* Sends text as it is (the raw verb). */
int qmp_client_send(struct qmp_client *client, const char *text, size_t length_bytes,
                    struct err *err);
/* The next message of the daemon, answer or event: 1; 0 when the deadline passes; <0. The caller
 * owns *ret_message. */
int qmp_client_next(struct qmp_client *client, int timeout_ms, struct json_object **ret_message,
                    struct err *err);

#endif
