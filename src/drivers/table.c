/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/table.h"

#include "drivers/replication.h"

const struct driver *const drivers_table[] = {
    &driver_blkdebug,
    &driver_file,
    &driver_nbd,
    &driver_null_co,
    &driver_replication,
    NULL,
};
