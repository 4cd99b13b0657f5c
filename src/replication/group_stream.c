/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mark of the stream: whether all that the primary wrote since the disks were equal is here. S
 * cannot see what never came; but it sees who writes. As long as one connection to each export writes,
 * and ends in good order before the next one begins, nothing was lost that the primary does not know
 * of. Else whoever writes next has to synchronise first. A connection that says whose it is belongs to a
 * primary from the first moment; of others only those count that have written.
 */
#include "replication/group_internal.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* A break is of use only while there is a checkpoint, and once. */
static bool may_break(const struct replication_group *group, const struct group_record *record)
{
    return !group->awaits_sync && record->stage == GROUP_RUNNING && record->stream_intact;
}

static int record_break(struct replication_group *group, const char *reason, struct err *err)
    MAY_WAIT
{
    struct group_record *change = group_record_change(group);

    if (!may_break(group, change)) { /* somebody was faster */
        group_record_drop(group);
        return 0;
    }
    change->stream_intact = false;
    snprintf(change->stream_reason, sizeof(change->stream_reason), "%s", reason);
    return group_record_write(group, err);
}

void group_stream_broken(struct replication_group *group, const char *reason)
{
    struct err err = ERR_INIT;

    if (!may_break(group, group->record) || record_break(group, reason, &err) == 0)
        return;
    log_error("replication", "the break of the stream cannot be recorded: %s", err.text);
    group->record->stream_intact = false;
    snprintf(group->record->stream_reason, sizeof(group->record->stream_reason), "%s", reason);
}

int group_check_stream(const struct replication_group *group, struct err *err)
{
    if (group->record->stream_intact)
        return 0;
    return err_set(err, -EIO,
                   "the stream of the primary's writes is broken (%s): only a new synchronisation "
                   "repairs it (blockstep primary --sync)",
                   group->record->stream_reason);
}

/* --- its life --- */

void group_renew_writers(struct replication_group *group)
{
    if (group->owner != NULL && group->owner->renew != NULL)
        group->owner->renew(group->owner->arg);
}

static void suspect(struct replication_group *group, const char *why)
{
    group->stream.suspect = true;
    snprintf(group->stream.suspicion, sizeof(group->stream.suspicion), "%s", why);
}

void group_stream_start(struct replication_group *group, bool resumed)
{
    if (resumed && group->record->stream_begun)
        suspect(group, "this secondary was started again while a primary was writing");
    group_renew_writers(group);
}

void group_stream_mended(struct replication_group *group)
{
    group->stream.suspect = false;
    group_session_forget_error(group);
    group_renew_writers(group);
}

bool group_stream_goes_on(const struct replication_group *group)
{
    return group->stream.written || group->session.now.connected;
}

/* --- who writes --- */

static int record_begun(struct replication_group *group, struct err *err) MAY_WAIT
{
    struct group_record *change = group_record_change(group);

    if (change->stream_begun) {
        group_record_drop(group);
        return 0;
    }
    change->stream_begun = true;
    return group_record_write(group, err);
}

int group_stream_continue(struct replication_group *group, bool resync, struct err *err)
{
    if (!may_break(group, group->record))
        return 0;
    if (resync)
        return record_break(group, "a synchronisation is under way", err);
    if (group->record->stream_begun || group->stream.suspect)
        return record_break(group, "the primary was started anew and has not synchronised", err);
    return record_begun(group, err);
}

static void describe(const struct replication_writer *writer, char *text, size_t text_bytes)
{
    if (writer->instance != 0)
        snprintf(text, text_bytes, "connection %" PRIu64 " of %016" PRIx64 " to %s",
                 writer->connection, writer->instance, writer->root->name);
    else
        snprintf(text, text_bytes, "connection %" PRIu64 " to %s", writer->connection,
                 writer->root->name);
}

/* Why a new writer would continue something else than what was there; false: it does not. */
static bool breaks_stream(const struct replication_group *group,
                          const struct replication_writer *writer,
                          char reason[GROUP_RECORD_REASON_BYTES])
{
    char who[EDGE_NAME_BYTES + 64];

    describe(writer, who, sizeof(who));
    if (group->stream.suspect)
        snprintf(reason, GROUP_RECORD_REASON_BYTES,
                 "%.100s writes without a synchronisation, though %.100s", who,
                 group->stream.suspicion);
    else if (writer->former != 0)
        snprintf(reason, GROUP_RECORD_REASON_BYTES,
                 "%.110s writes while connection %" PRIu64 " does too, or may", who,
                 writer->former);
    return group->stream.suspect || writer->former != 0;
}

int replication_admit(struct replication_group *group, const struct replication_writer *writer)
{
    char reason[GROUP_RECORD_REASON_BYTES];
    struct err err = ERR_INIT;
    int ret = 0;

    if (!group_is_peers(group, writer->root))
        return 0;
    ret = group_session_admit(group, writer);
    if (ret < 0)
        return ret;
    group->stream.written |= group->awaits_sync || group->record->stage == GROUP_RUNNING;
    if (!may_break(group, group->record))
        return 0;
    if (breaks_stream(group, writer, reason)) {
        log_warning("replication", "the stream of the primary's writes is broken: %s", reason);
        ret = record_break(group, reason, &err);
    } else if (!group->record->stream_begun) {
        ret = record_begun(group, &err);
    }
    if (ret == 0)
        return 0;
    log_error("replication", "a write is refused, since what it means cannot be recorded: %s",
              err.text);
    return -EIO;
}

void replication_writer_ended(struct replication_group *group,
                              const struct replication_writer *writer, bool orderly)
{
    char who[EDGE_NAME_BYTES + 64], why[sizeof(group->stream.suspicion)];

    /* The first write of a primary may have been lost on its way: then nobody else knows of it. */
    if (orderly || (writer->instance == 0 && !group->record->stream_begun) ||
        !may_break(group, group->record) || !group_is_peers(group, writer->root))
        return;
    describe(writer, who, sizeof(who));
    snprintf(why, sizeof(why), "%s was lost, and perhaps writes with it", who);
    suspect(group, why);
    group_renew_writers(group);
}
