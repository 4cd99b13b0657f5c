/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may write to an export. A connection that was admitted goes on without being looked at until the
 * round ends; so a write costs one comparison.
 */
#include "export/nbd_internal.h"

#include <errno.h>

/* Who has written, or may have sent what has not arrived yet: whoever names an instance is a primary. What one
 * was to write who came before this round is of no account any more. */
static uint64_t former_of(const struct nbd_connection *connection)
{
    const struct nbd_export *export = connection->export;

    if (export->writer != 0 && export->writer != connection->id)
        return export->writer;
    LIST_FOR_EACH(other, &connection->server->connections, struct nbd_connection, link) {
        if (other->export == export && other->came == connection->service->round &&
            other->instance != 0 && other->instance != connection->instance && !other->cut &&
            !other->said_goodbye)
            return other->id;
    }
    return 0;
}

static struct nbd_writer writer_of(const struct nbd_connection *connection)
{
    return (struct nbd_writer){
        .root = connection->export->edge,
        .connection = connection->id,
        .instance = connection->instance,
        .former = former_of(connection),
    };
}

static int ask(const struct nbd_admission *admission, const struct nbd_writer *writer) MAY_WAIT
{
    return admission->admit(admission->arg, writer);
}

int nbd_admit(struct nbd_connection *connection)
{
    struct nbd_service *service = connection->service;
    struct nbd_export *export = connection->export;

    while (export->admitting)
        co_queue_wait(&export->admission);
    if (nbd_is_admitted(connection))
        return 0;
    if (connection->cut)
        return -ECANCELED; /* nobody waits for the answer */
    uint64_t round = service->round;
    struct nbd_writer writer = writer_of(connection);
    export->admitting = true;
    int result = ask(&service->admission, &writer);
    export->admitting = false;
    co_queue_wake_all(&export->admission);
    if (result < 0)
        return result;
    connection->admitted = round;
    if (round == service->round)
        export->writer = connection->id;
    return 0;
}

void nbd_admission_ended(struct nbd_connection *connection)
{
    struct nbd_service *service = connection->service;
    struct nbd_export *export = connection->export;

    if (export == NULL || (connection->admitted == 0 && connection->instance == 0) ||
        service->admission.ended == NULL)
        return;
    struct nbd_writer writer = writer_of(connection);
    if (export->writer == connection->id)
        export->writer = 0;
    service->admission.ended(service->admission.arg, &writer,
                             connection->said_goodbye && !connection->cut && !connection->failed);
}

void nbd_admission_renew(struct nbd_service *service)
{
    service->round += service->admission.admit != NULL;
    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link)
        LIST_FOR_EACH(export, &server->exports, struct nbd_export, link)
            export->writer = 0;
}

/* --- connections of others --- */

static bool is_of(const struct nbd_connection *connection, struct edge *const *roots, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (connection->export != NULL && connection->export->edge == roots[i])
            return true;
    return false;
}

/* How many of others are still there, of those that were cut; with `cut` all are. */
static unsigned others(struct nbd_service *service, struct edge *const *roots, size_t count,
                       uint64_t instance, bool cut)
{
    unsigned found = 0;

    LIST_FOR_EACH(server, &service->servers, struct nbd_server, link)
        LIST_FOR_EACH_SAFE(connection, &server->connections, struct nbd_connection, link) {
            if (connection->instance == instance || !is_of(connection, roots, count))
                continue;
            if (cut)
                nbd_connection_cut(connection, 0);
            found += connection->cut;
        }
    return found;
}

void nbd_export_cut_others(struct nbd_service *service, struct edge *const *roots, size_t count,
                           uint64_t instance)
{
    unsigned left = others(service, roots, count, instance, true);

    while (left > 0) {
        co_queue_wait(&service->changed);
        left = others(service, roots, count, instance, false);
    }
}
