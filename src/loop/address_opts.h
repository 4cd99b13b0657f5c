/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Socket addresses in options, in the two forms that QEMU has: flat (SocketAddress: {"type": "inet",
 * "host": ..., "port": ...}) and legacy (SocketAddressLegacy: {"type": "inet", "data": {...}}).
 */
#ifndef BLOCKSTEP_LOOP_ADDRESS_OPTS_H
#define BLOCKSTEP_LOOP_ADDRESS_OPTS_H

#include "base/opts.h"
#include "loop/sock.h"

enum address_type {
    ADDRESS_UNIX = SOCK_FAMILY_UNIX,
    ADDRESS_INET = SOCK_FAMILY_INET,
    ADDRESS_FD, /* a descriptor that the process was started with */
};

struct address_opts {
    int type; /* enum address_type */
    char *host, *port, *path, *fd;
};

/* Entries of the table of a struct that begins with its struct address_opts. */
#define ADDRESS_OPTS_FLAT(name_)                                                              \
    {                                                                                         \
        .name = (name_), .type = OPT_UNION, .required = true, .members = address_type_opts,   \
        .discriminator = "type", .variants = address_flat_variants, .help = "where to listen" \
    }
#define ADDRESS_OPTS_LEGACY(name_)                                                              \
    {                                                                                           \
        .name = (name_), .type = OPT_UNION, .required = true, .members = address_type_opts,     \
        .discriminator = "type", .variants = address_legacy_variants, .help = "where to listen" \
    }
extern const struct opt address_type_opts[];
extern const struct opt *const address_flat_variants[];
extern const struct opt *const address_legacy_variants[];

/* Not of ADDRESS_FD. The address borrows the texts of the options. */
struct sock_address address_of_opts(const struct address_opts *opts);

#endif
