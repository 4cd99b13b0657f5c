/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The secondary's half of what primary and secondary say to each other (docs/peer-protocol.md). */
#ifndef BLOCKSTEP_CONTROL_SESSION_H
#define BLOCKSTEP_CONTROL_SESSION_H

#include "control/qmp.h"

/* For which session a client speaks: 0: for none. `told`: the one that it says it does (0: it does not
 * say), which must be its own. */
int session_of_call(const struct qmp_call *call, uint64_t told, uint64_t *ret_session,
                    struct err *err);

#endif
