/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a secondary says of itself, checked before it is believed. */
#ifndef BLOCKSTEP_REPLICATION_PEER_ANSWER_H
#define BLOCKSTEP_REPLICATION_PEER_ANSWER_H

#include "base/json.h"
#include "wire/group_record.h"

#define PEER_ERROR_TEXT_BYTES 256u /* of each text of its error */

/* The answer to replication-hello. */
struct peer_hello {
    uint64_t version, session, epoch;
};
int peer_hello_read(struct json_object *answer, struct peer_hello *ret_hello, struct err *err);

/* The epoch in the answer to replication-checkpoint. */
int peer_epoch_read(struct json_object *answer, uint64_t *ret_epoch, struct err *err);

/* What query-replication shows of its state. */
struct peer_state {
    bool known;                             /* it has been asked */
    bool intact;                            /* its stream of writes */
    bool taken_over;                        /* or it has begun to */
    char reason[GROUP_RECORD_REASON_BYTES]; /* why not */
};
/* *ret_error: its own first error, with a reference; NULL: none. */
int peer_state_read(struct json_object *answer, struct peer_state *ret_state,
                    struct json_object **ret_error, struct err *err);

/* A copy of an error of the secondary's own, with the members that replication_query() has; NULL: it is none,
 * or memory is out. */
struct json_object *peer_error_read(struct json_object *error);

#endif
