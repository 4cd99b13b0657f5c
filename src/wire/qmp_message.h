/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QMP's messages as a client makes and reads them. */
#ifndef BLOCKSTEP_WIRE_QMP_MESSAGE_H
#define BLOCKSTEP_WIRE_QMP_MESSAGE_H

#include "base/json.h"

/* {"execute": COMMAND, "arguments": ..., "id": ...}. Takes the reference on `arguments` (NULL: none); id 0:
 * none. NULL when memory is out. */
struct json_object *qmp_message_command(const char *command, struct json_object *arguments,
                                        uint64_t id);
/* 1: it is an answer, *ret_result is what it holds (borrowed). -EREMOTEIO: an answer that is an error,
 * with its text, and its class as the kind. 0: it is no answer. */
int qmp_message_answer(struct json_object *message, struct json_object **ret_result,
                       struct err *err);

#endif
