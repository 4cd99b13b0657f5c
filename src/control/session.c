/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the group must know of the primary: whose connections write to the secondary disks. */
#include "control/daemon.h"

static struct replication_writer writer_of(const struct nbd_writer *writer)
{
    return (struct replication_writer){
        .root = writer->root,
        .connection = writer->connection,
        .instance = writer->instance,
        .former = writer->former,
    };
}

int daemon_admit(void *arg, const struct nbd_writer *writer)
{
    const struct daemon *daemon = arg;
    struct replication_writer asked = writer_of(writer);

    return replication_admit(daemon->group, &asked);
}

void daemon_writer_ended(void *arg, const struct nbd_writer *writer, bool orderly)
{
    const struct daemon *daemon = arg;
    struct replication_writer gone = writer_of(writer);

    replication_writer_ended(daemon->group, &gone, orderly);
}

void daemon_renew_admission(void *arg)
{
    const struct daemon *daemon = arg;

    nbd_admission_renew(daemon->nbd);
}
