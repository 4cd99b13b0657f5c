/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which addresses a listener may have. */
#ifndef BLOCKSTEP_CONTROL_ADDRESS_H
#define BLOCKSTEP_CONTROL_ADDRESS_H

#include "loop/sock.h"

/* Refuses, with what to do about it, an address that other hosts can reach, unless `allowed` (by TLS
 * that proves who the clients are, or by --insecure). `what` begins the error: "NBD server 'default'". */
int address_check_local(const struct sock_address *address, bool allowed, const char *what,
                        struct err *err);

#endif
