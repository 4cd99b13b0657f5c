/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The record of a replication group as text: JSON that a person can read, with a checksum in its last
 * member. docs/group-record.md tells what each member means and who writes it when. No I/O.
 *
 * The decoder trusts nothing: what it accepts has all members, each within its bounds, and members
 * that do not contradict each other.
 */
#ifndef BLOCKSTEP_WIRE_GROUP_RECORD_H
#define BLOCKSTEP_WIRE_GROUP_RECORD_H

#include "base/err.h"

#define GROUP_RECORD_VERSION        3u
#define GROUP_RECORD_OLDEST_VERSION 1u /* that can still be read */
#define GROUP_RECORD_MAX_DISKS      64u
#define GROUP_RECORD_MAX_ANCESTORS  64u
#define GROUP_RECORD_MAX_BYTES      (64u * 1024)
#define GROUP_RECORD_NAME_BYTES     64u
#define GROUP_RECORD_IDENTITY_BYTES 128u
#define GROUP_RECORD_BOOT_ID_BYTES  64u
#define GROUP_RECORD_REASON_BYTES   256u
#define GROUP_RECORD_LOST_BYTES     1024u
#define GROUP_RECORD_IMAGE_BYTES    16u

enum group_role { GROUP_PRIMARY, GROUP_SECONDARY };
/* A merge that has failed is recorded as a failover: the next start tries it again. */
enum group_stage { GROUP_NONE, GROUP_RUNNING, GROUP_FAILOVER, GROUP_DONE };
/* What the last checkpoint survives: nothing, a killed daemon, a loss of power. */
enum group_durability { GROUP_LEVEL_NONE, GROUP_LEVEL_PROCESS, GROUP_LEVEL_HOST };

const char *group_stage_name(enum group_stage stage);
const char *group_durability_name(enum group_durability level);

/* An overlay, and which of its generations is live: an older one counts as empty. */
struct group_record_overlay {
    uint8_t image[GROUP_RECORD_IMAGE_BYTES];
    uint64_t generation;
};

struct group_record_disk {
    char name[GROUP_RECORD_NAME_BYTES];
    char identity[GROUP_RECORD_IDENTITY_BYTES]; /* what tells another disk; "": nothing does */
    uint64_t size_bytes;
    bool merged; /* failover, done: the disk alone is the truth */
    struct group_record_overlay active, hidden;
};

struct group_record {
    uint64_t group_id;
    enum group_role role;
    enum group_stage stage;
    bool promoted;                                  /* done: by a failover, else by a stop */
    uint64_t generation;                            /* 0: none minted yet */
    uint64_t ancestors[GROUP_RECORD_MAX_ANCESTORS]; /* those it descends from, the latest first */
    size_t ancestor_count;
    uint64_t epoch;
    uint64_t checkpoint_wall_ns; /* 0: none yet */
    enum group_durability level;
    char boot_id[GROUP_RECORD_BOOT_ID_BYTES]; /* "": not known */
    bool undo_durable;                        /* what the overlays hold survives a loss of power */
    bool consistent;
    char inconsistent_reason[GROUP_RECORD_REASON_BYTES];
    bool stream_begun; /* a primary has written since the disks were last known to be equal */
    bool stream_intact;
    char stream_reason[GROUP_RECORD_REASON_BYTES];
    char lost[GROUP_RECORD_LOST_BYTES]; /* what a forced failover has given up; "": nothing */
    size_t disk_count;
    struct group_record_disk disks[GROUP_RECORD_MAX_DISKS];
};

/* The record's text, for the caller to free, and its length; NULL when memory is out. */
char *group_record_encode(const struct group_record *record, size_t *ret_length);
/*
 * 0; -ENOTSUP: of a newer version; -EUCLEAN: damaged, or saying what cannot be; -ENOMEM. The text says
 * which, without naming the file. `ret_record` is untouched on failure.
 */
int group_record_decode(const char *text, size_t length_bytes, struct group_record *ret_record,
                        struct err *err);

#endif
