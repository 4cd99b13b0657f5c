/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/qmp_message.h"

#include <errno.h>
#include <string.h>

struct json_object *qmp_message_command(const char *command, struct json_object *arguments,
                                        uint64_t id)
{
    CLEANUP(json_putp) struct json_object *request = json_object_new_object();

    if (request == NULL || json_add_string(request, "execute", command) < 0) {
        json_object_put(arguments);
        return NULL;
    }
    if (arguments != NULL && json_add(request, "arguments", arguments) < 0)
        return NULL;
    if (id != 0 && json_add_uint(request, "id", id) < 0)
        return NULL;
    return TAKE_PTR(request);
}

static enum err_kind kind_of_class(const char *name)
{
    if (name != NULL && strcmp(name, "CommandNotFound") == 0)
        return ERR_COMMAND_NOT_FOUND;
    if (name != NULL && strcmp(name, "DeviceNotFound") == 0)
        return ERR_DEVICE_NOT_FOUND;
    if (name != NULL && strcmp(name, "DeviceNotActive") == 0)
        return ERR_DEVICE_NOT_ACTIVE;
    return ERR_GENERIC;
}

int qmp_message_answer(struct json_object *message, struct json_object **ret_result,
                       struct err *err)
{
    struct json_object *value = NULL;
    const char *text;

    if (!json_object_is_type(message, json_type_object))
        return 0;
    if (json_object_object_get_ex(message, "return", ret_result))
        return 1;
    if (!json_object_object_get_ex(message, "error", &value))
        return 0;
    text = json_text(value, "desc");
    return err_set_kind(err, kind_of_class(json_text(value, "class")), -EREMOTEIO, "%s",
                        text != NULL ? text : "error without a text");
}
