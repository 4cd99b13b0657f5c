/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The part of a mirror that runs in the guest's requests: copies what one has changed before it ends. */
#ifndef BLOCKSTEP_JOBS_MIRROR_BLOCKING_H
#define BLOCKSTEP_JOBS_MIRROR_BLOCKING_H

#include "block/io.h"

/*
 * From `source`, within one of its requests, to the other end of `target`. Reads what is there now,
 * rather than taking what the request brought: of two that overlap nobody knows whose bytes stand.
 * `copying` holds who else copies between the two; `zero_flags` go with zeroes. -EAGAIN: not now, for that
 * or because the target is drained. *ret_done_bytes have been copied in any case, and *ret_reading tells
 * which side has failed.
 */
int mirror_blocking_copy(struct node *source, struct edge *target, struct range_locks *copying,
                         uint64_t offset_bytes, uint64_t length_bytes, unsigned zero_flags,
                         uint64_t *ret_done_bytes, bool *ret_reading) MAY_WAIT;

#endif
