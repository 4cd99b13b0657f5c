/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* quorum: several children that hold the same, written together. */
#ifndef BLOCKSTEP_DRIVERS_QUORUM_H
#define BLOCKSTEP_DRIVERS_QUORUM_H

#include "block/node.h"

#define QUORUM_MAX_CHILDREN 32u

extern const struct driver driver_quorum;

#endif
