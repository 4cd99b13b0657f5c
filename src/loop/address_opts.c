/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/address_opts.h"

static const char *const type_names[] = {"unix", "inet", "fd", NULL};

_Static_assert(ADDRESS_UNIX == 0 && ADDRESS_INET == 1 && ADDRESS_FD == 2,
               "type_names is in this order");

const struct opt address_type_opts[] = {
    {.name = "type",
     .type = OPT_ENUM,
     .offset = OPT_FIELD(struct address_opts, type),
     .required = true,
     .values = type_names,
     .help = "kind of socket"},
    {0},
};

static const struct opt inet_opts[] = {
    {.name = "host",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct address_opts, host),
     .required = true,
     .help = "host name or address"},
    {.name = "port",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct address_opts, port),
     .required = true,
     .help = "port number"},
    {0},
};

static const struct opt unix_opts[] = {
    {.name = "path",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct address_opts, path),
     .required = true,
     .help = "path of the socket"},
    {0},
};

static const struct opt fd_opts[] = {
    {.name = "str",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct address_opts, fd),
     .required = true,
     .help = "number of the descriptor that the process was started with"},
    {0},
};

static const struct opt inet_data_opts[] = {
    {.name = "data",
     .type = OPT_OBJECT,
     .required = true,
     .members = inet_opts,
     .help = "the address"},
    {0},
};

static const struct opt unix_data_opts[] = {
    {.name = "data",
     .type = OPT_OBJECT,
     .required = true,
     .members = unix_opts,
     .help = "the address"},
    {0},
};

static const struct opt fd_data_opts[] = {
    {.name = "data",
     .type = OPT_OBJECT,
     .required = true,
     .members = fd_opts,
     .help = "the descriptor"},
    {0},
};

const struct opt *const address_flat_variants[] = {unix_opts, inet_opts, fd_opts};
const struct opt *const address_legacy_variants[] = {unix_data_opts, inet_data_opts, fd_data_opts};

struct sock_address address_of_opts(const struct address_opts *opts)
{
    assert(opts->type != ADDRESS_FD);
    return (struct sock_address){
        .family = (enum sock_family)opts->type,
        .host = opts->host,
        .port = opts->port,
        .path = opts->path,
    };
}
