/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control/address.h"

#include <errno.h>

int address_check_local(const struct sock_address *address, bool allowed, const char *what,
                        struct err *err)
{
    char text[300];

    if (allowed || sock_address_is_local(address))
        return 0;
    return err_set(
        err, -EPERM,
        "%s: %s can be reached from other hosts, which needs TLS that proves who the "
        "clients are (tls-creds with verify-peer=on, or a shared key); or use a unix socket "
        "or a loopback address, or start with --insecure on a network that you trust",
        what, sock_address_format(address, text, sizeof(text)));
}
