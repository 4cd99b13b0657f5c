/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where daemons of a name are found: control sockets DIR/NAME.qmp, with DIR /run/blockstep for root
 * and $XDG_RUNTIME_DIR/blockstep for others; $BLOCKSTEP_RUNTIME_DIR overrides both.
 */
#ifndef BLOCKSTEP_BIN_RUNTIME_H
#define BLOCKSTEP_BIN_RUNTIME_H

#include "base/err.h"

#define RUNTIME_PATH_BYTES 256
#define NAME_MAX_CHARS     24 /* node names are made from names, and are 31 at most */

/* Letters, digits, ".", "_", "-", begins with a letter; up to NAME_MAX_CHARS. `what` begins the
 * error. */
int name_check(const char *name, const char *what, struct err *err);

int runtime_folder(char *path, size_t path_bytes, struct err *err);
/* "unix:DIR/NAME.qmp"; makes the folder (0700) when asked to. */
int runtime_address(const char *name, bool make_folder, char *address, size_t address_bytes,
                    struct err *err);
/* The name of the only daemon there is; an error that lists them when there are more. */
int runtime_only_name(char *name, size_t name_bytes, struct err *err);

/* Calls `visit` for each daemon's name, in no particular order; how many there were. */
size_t runtime_each_name(void (*visit)(void *arg, const char *name), void *arg, struct err *err);

/* mkdir -p. */
int folder_make(const char *path, unsigned mode, struct err *err);

#endif
