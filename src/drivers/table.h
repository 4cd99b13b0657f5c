/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* All drivers, for graph_new(). */
#ifndef BLOCKSTEP_DRIVERS_TABLE_H
#define BLOCKSTEP_DRIVERS_TABLE_H

#include "block/driver.h"
#include "block/object.h"

extern const struct driver driver_blkdebug;
extern const struct driver driver_blklogwrites;
extern const struct driver driver_file;
extern const struct driver driver_nbd;
extern const struct driver driver_null_co;
extern const struct driver driver_raw;
extern const struct driver driver_snapshot_access;
extern const struct driver driver_throttle;

extern const struct driver *const drivers_table[];

/* What nodes share by name, for graph_set_object_types(). */
extern const struct object_type *const object_types_table[];

#endif
