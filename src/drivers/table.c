/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/table.h"

#include "drivers/copy_before_write.h"
#include "drivers/overlay.h"
#include "drivers/quorum.h"
#include "drivers/replication.h"
#include "drivers/secret_object.h"
#include "drivers/throttle_group.h"
#include "drivers/tls_object.h"

const struct driver *const drivers_table[] = {
    &driver_blkdebug,
    &driver_blklogwrites,
    &driver_copy_before_write,
    &driver_copy_before_write_access,
    &driver_file,
    &driver_nbd,
    &driver_null_co,
    &driver_overlay,
    &driver_quorum,
    &driver_raw,
    &driver_replication,
    &driver_snapshot_access,
    &driver_throttle,
    NULL,
};

const struct object_type *const object_types_table[] = {
    &secret_type, &throttle_group_type, &tls_creds_psk_type, &tls_creds_x509_type, NULL,
};
