/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file of the group's record: `group` in the state folder of a daemon, which is locked so that
 * one daemon uses it. The file is replaced, never changed: at every moment there is the old record
 * or the new one, whole.
 */
#ifndef BLOCKSTEP_REPLICATION_RECORD_FILE_H
#define BLOCKSTEP_REPLICATION_RECORD_FILE_H

#include "loop/co.h"
#include "loop/loop.h"
#include "wire/group_record.h"

struct record_file;

/* Makes the folder (0700) where there is none, and locks it: -EBUSY names who has it. */
int record_file_open(struct loop *loop, const char *folder, struct record_file **ret_file,
                     struct err *err) MAY_WAIT;
/* NULL is fine. */
void record_file_close(struct record_file *file) MAY_WAIT;
const char *record_file_path(const struct record_file *file);

/* 0; -ENOENT: there is none (`err` says so too); else as group_record_decode(), or why it cannot be
 * read. Errors begin with the path. */
int record_file_load(struct record_file *file, struct group_record *ret_record, struct err *err)
    MAY_WAIT;
/* Puts a record that cannot be read out of the way, as `group.damaged`. */
int record_file_set_aside(struct record_file *file, struct err *err) MAY_WAIT;

/* For a first record that stands but was not to. */
int record_file_remove(struct record_file *file, struct err *err) MAY_WAIT;

/*
 * Replacing in two steps, so that little is left for the second: the text goes into a file beside the
 * record, then takes its place. Between the two others may be prepared and committed under another
 * name. `durable`: it survives a loss of power when the second step has returned; else it survives a
 * killed process, and the two files are exchanged: file systems write out the content of a file that
 * replaces another (ext4: milliseconds), not of files that change names.
 */
enum record_draft { RECORD_DRAFT, RECORD_DRAFT_CHECKPOINT };
int record_file_prepare(struct record_file *file, enum record_draft draft,
                        const struct group_record *record, bool durable, struct err *err) MAY_WAIT;
/* On failure *ret_replaced says whether the new record stands nevertheless, and is only not durable. */
int record_file_commit(struct record_file *file, enum record_draft draft, bool durable,
                       bool *ret_replaced, struct err *err) MAY_WAIT;

#endif
