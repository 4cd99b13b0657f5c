/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The protocol's rules for one request: its form, the negotiation, the look-up, the arguments, and
 * the form of the answer. Error texts are QEMU's where managers read them.
 */
#include "control/qmp_dispatch.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define EXEC_OOB "exec-oob"

const char *qmp_error_class(enum err_kind kind)
{
    static const char *const names[] = {
        [ERR_GENERIC] = "GenericError",
        [ERR_COMMAND_NOT_FOUND] = "CommandNotFound",
        [ERR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
        [ERR_DEVICE_NOT_FOUND] = "DeviceNotFound",
        [ERR_KVM_MISSING_CAP] = "KVMMissingCap",
    };

    return (size_t)kind < ARRAY_LEN(names) ? names[kind] : names[ERR_GENERIC];
}

/* Gives `object` back, or NULL when one of the additions failed. */
static struct json_object *built(struct json_object *object, int failed)
{
    if (failed == 0)
        return object;
    json_object_put(object);
    return NULL;
}

struct json_object *qmp_version(void)
{
    struct json_object *version = json_object_new_object();
    struct json_object *qemu = json_object_new_object();
    int r = 0;

    if (version == NULL || qemu == NULL) {
        json_object_put(qemu);
        return built(version, -ENOMEM);
    }
    r |= json_add_int(qemu, "micro", QMP_QEMU_MICRO);
    r |= json_add_int(qemu, "minor", QMP_QEMU_MINOR);
    r |= json_add_int(qemu, "major", QMP_QEMU_MAJOR);
    r |= json_add(version, "qemu", qemu);
    r |= json_add_string(version, "package", "blockstep-" BLOCKSTEP_VERSION);
    return built(version, r);
}

/* What a client may switch on. */
static const char *const capability_names[] = {"oob", NULL};

struct capabilities_args {
    struct opt_strings enable;
};

static const struct opt capabilities_opts[] = {
    {.name = "enable",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct capabilities_args, enable),
     .values = capability_names,
     .help = "capabilities of the greeting to switch on"},
    {0},
};

/* The dispatcher notes the negotiation. */
static int run_capabilities(struct qmp_call *call, void *args, struct err *err)
{
    const struct capabilities_args *wanted = args;

    call->oob = wanted->enable.count > 0; /* there is no other */
    return 0;
}

const struct qmp_command qmp_negotiation[] = {
    {.name = "qmp_capabilities",
     .flags = QMP_PEER,
     .args = capabilities_opts,
     .args_size = sizeof(struct capabilities_args),
     .run = run_capabilities},
    {0},
};

static struct json_object *capabilities(void)
{
    struct json_object *list = json_object_new_array();
    int r = list == NULL ? -ENOMEM : 0;

    for (const char *const *name = capability_names; r == 0 && *name != NULL; name++) {
        struct json_object *text = json_object_new_string(*name);

        if (text == NULL || json_object_array_add(list, text) < 0) {
            json_object_put(text);
            r = -ENOMEM;
        }
    }
    return built(list, r);
}

struct json_object *qmp_greeting(void)
{
    struct json_object *greeting = json_object_new_object();
    struct json_object *body = json_object_new_object();
    int r = 0;

    if (greeting == NULL || body == NULL) {
        json_object_put(body);
        return built(greeting, -ENOMEM);
    }
    r |= json_add(body, "version", qmp_version());
    r |= json_add(body, "capabilities", capabilities());
    r |= json_add(greeting, "QMP", body);
    return built(greeting, r);
}

struct json_object *qmp_error(const struct err *err)
{
    struct json_object *answer = json_object_new_object();
    struct json_object *error = json_object_new_object();
    int r = 0;

    if (answer == NULL || error == NULL) {
        json_object_put(error);
        return built(answer, -ENOMEM);
    }
    r |= json_add_string(error, "class", qmp_error_class(err->kind));
    r |= json_add_string(error, "desc", err->text);
    r |= json_add(answer, "error", error);
    return built(answer, r);
}

struct json_object *qmp_event(uint64_t wall_ns, const char *name, struct json_object *data)
{
    struct json_object *event = json_object_new_object();
    struct json_object *stamp = json_object_new_object();
    int r = 0;

    if (event == NULL || stamp == NULL) {
        json_object_put(stamp);
        json_object_put(data);
        return built(event, -ENOMEM);
    }
    r |= json_add_uint(stamp, "seconds", wall_ns / NS_PER_S);
    r |= json_add_uint(stamp, "microseconds", wall_ns % NS_PER_S / NS_PER_US);
    r |= json_add(event, "timestamp", stamp);
    r |= json_add_string(event, "event", name);
    if (data != NULL)
        r |= json_add(event, "data", data);
    return built(event, r);
}

const struct qmp_command *qmp_command_find(const struct qmp_command *const *tables,
                                           enum qmp_role role, const char *name)
{
    for (; *tables != NULL; tables++) {
        for (const struct qmp_command *command = *tables; command->name != NULL; command++) {
            if (strcmp(command->name, name) == 0)
                return role == QMP_ROLE_FULL || (command->flags & QMP_PEER) ? command : NULL;
        }
    }
    return NULL;
}

/* What QEMU calls the type of an option's value; NULL: any will do here. */
static const char *type_name(enum opt_type type)
{
    switch (type) {
    case OPT_STRING:
    case OPT_ENUM:
        return "string";
    case OPT_BOOL:
        return "boolean";
    case OPT_UINT:
        return "integer";
    case OPT_OBJECT:
    case OPT_UNION:
        return "object";
    case OPT_STRINGS:
    case OPT_OBJECTS:
    case OPT_CHILDREN:
    case OPT_REFS:
        return "array";
    case OPT_SIZE:
    case OPT_CHILD:
    case OPT_ANY:
        break;
    }
    return NULL;
}

static bool type_fits(enum opt_type type, struct json_object *value)
{
    switch (type) {
    case OPT_STRING:
    case OPT_ENUM:
        return json_object_is_type(value, json_type_string);
    case OPT_BOOL:
        return json_object_is_type(value, json_type_boolean);
    case OPT_UINT:
        return json_object_is_type(value, json_type_int);
    case OPT_OBJECT:
    case OPT_UNION:
        return json_object_is_type(value, json_type_object);
    case OPT_STRINGS:
    case OPT_OBJECTS:
    case OPT_CHILDREN:
    case OPT_REFS:
        return json_object_is_type(value, json_type_array);
    case OPT_SIZE:
    case OPT_CHILD:
    case OPT_ANY:
        break;
    }
    return true;
}

static int check_enum(const struct opt *opt, struct json_object *value, struct err *err)
{
    const char *text = json_object_get_string(value);

    for (const char *const *name = opt->values; *name != NULL; name++) {
        if (strcmp(*name, text) == 0)
            return 0;
    }
    return err_set(err, -EINVAL, "Parameter '%s' does not accept value '%s'", opt->name, text);
}

/* The words of a list, where only some will do. */
static int check_words(const struct opt *opt, struct json_object *array, struct err *err)
{
    size_t count = json_object_array_length(array);

    for (size_t i = 0; i < count; i++) {
        struct json_object *item = json_object_array_get_idx(array, i);
        struct opt word = {.values = opt->values};
        char name[OPTS_MAX_NAME_BYTES + 32];

        snprintf(name, sizeof(name), "%s[%zu]", opt->name, i);
        word.name = name;
        if (!json_object_is_type(item, json_type_string))
            return err_set(err, -EINVAL, "Invalid parameter type for '%s', expected: string", name);
        if (check_enum(&word, item, err) < 0)
            return err->code;
    }
    return 0;
}

static bool table_has(const struct opt *table, const char *name)
{
    for (; table != NULL && table->name != NULL; table++) {
        if (strcmp(table->name, name) == 0)
            return true;
    }
    return false;
}

int qmp_check_arguments(const struct opt *table, struct json_object *arguments, struct err *err)
{
    for (const struct opt *opt = table; opt != NULL && opt->name != NULL; opt++) {
        struct json_object *value = NULL;

        if (!json_object_object_get_ex(arguments, opt->name, &value)) {
            if (opt->required)
                return err_set(err, -EINVAL, "Parameter '%s' is missing", opt->name);
            continue;
        }
        if (!type_fits(opt->type, value))
            return err_set(err, -EINVAL, "Invalid parameter type for '%s', expected: %s", opt->name,
                           type_name(opt->type));
        if (opt->type == OPT_ENUM && check_enum(opt, value, err) < 0)
            return err->code;
        if (opt->type == OPT_STRINGS && opt->values != NULL && check_words(opt, value, err) < 0)
            return err->code;
    }
    if (arguments == NULL)
        return 0;
    json_object_object_foreach(arguments, key, member)
    {
        (void)member;
        if (!table_has(table, key))
            return err_set(err, -EINVAL, "Parameter '%s' is unexpected", key);
    }
    return 0;
}

struct request {
    const char *name;
    const char *how; /* the member that names the command */
    struct json_object *arguments;
};

static int read_name(const char *key, struct json_object *value, struct request *request,
                     struct err *err)
{
    if (!json_object_is_type(value, json_type_string))
        return err_set(err, -EINVAL, "QMP input member '%s' must be a string", key);
    if (request->name != NULL)
        return err_set(err, -EINVAL, "QMP input member '%s' clashes with '%s'", key, request->how);
    request->name = json_object_get_string(value);
    request->how = key;
    return 0;
}

/* Checks the request's form. */
static int read_request(const struct qmp_session *session, struct json_object *object,
                        struct request *request, struct err *err)
{
    if (!json_object_is_type(object, json_type_object))
        return err_set(err, -EINVAL, "QMP input must be a JSON object");
    json_object_object_foreach(object, key, value)
    {
        if (strcmp(key, "execute") == 0 || (session->oob && strcmp(key, EXEC_OOB) == 0)) {
            if (read_name(key, value, request, err) < 0)
                return err->code;
        } else if (strcmp(key, "arguments") == 0) {
            if (!json_object_is_type(value, json_type_object))
                return err_set(err, -EINVAL, "QMP input member 'arguments' must be an object");
            request->arguments = value;
        } else if (strcmp(key, "id") != 0) {
            return err_set(err, -EINVAL, "QMP input member '%s' is unexpected", key);
        }
    }
    if (request->name == NULL)
        return err_set(err, -EINVAL, "QMP input lacks member 'execute'");
    return 0;
}

bool qmp_is_oob(const struct qmp_session *session, struct json_object *request)
{
    return session->oob && json_object_is_type(request, json_type_object) &&
           json_object_object_get_ex(request, EXEC_OOB, NULL) &&
           !json_object_object_get_ex(request, "execute", NULL);
}

static int find_command(struct qmp_session *session, const struct request *request,
                        const struct qmp_command **ret_command, struct err *err)
{
    bool negotiates = strcmp(request->name, qmp_negotiation->name) == 0;
    const struct qmp_command *command;

    if (!session->negotiated && !negotiates)
        return err_set_kind(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                            "Expecting capabilities negotiation with 'qmp_capabilities'");
    if (session->negotiated && negotiates)
        return err_set_kind(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                            "Capabilities negotiation is already complete, command ignored");
    command = qmp_command_find(session->tables, session->role, request->name);
    if (command == NULL)
        return err_set_kind(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                            "The command %s has not been found", request->name);
    if (strcmp(request->how, EXEC_OOB) == 0 && !(command->flags & QMP_OOB))
        return err_set(err, -EINVAL, "The command %s does not support OOB", request->name);
    *ret_command = command;
    return 0;
}

static int run_command(const struct qmp_command *command, struct qmp_call *call, struct err *err)
    MAY_WAIT
{
    void *args = NULL;
    struct json_object *empty = NULL;
    struct json_object *arguments = call->arguments;
    int r;

    if (command->flags & (QMP_ARGS_NODE | QMP_ARGS_OBJECT))
        return command->run(call, NULL, err);
    r = qmp_check_arguments(command->args, arguments, err);
    if (r < 0 || command->args == NULL)
        return r < 0 ? r : command->run(call, NULL, err);

    if (arguments == NULL)
        arguments = empty = json_object_new_object();
    args = calloc(1, command->args_size);
    if (args == NULL || arguments == NULL) {
        r = err_no_memory(err);
    } else {
        r = opts_parse(command->args, arguments, OPTS_JSON, command->name, NULL, args, err);
        if (r == 0) {
            r = command->run(call, args, err);
            opts_release(command->args, args);
        }
    }
    free(args);
    json_object_put(empty);
    return r;
}

static struct json_object *answer_result(struct json_object *result)
{
    struct json_object *answer = json_object_new_object();

    if (result == NULL)
        result = json_object_new_object();
    if (answer == NULL) {
        json_object_put(result);
        return NULL;
    }
    return built(answer, json_add(answer, "return", result));
}

/* The id may be anything, null too. */
static struct json_object *answer_id(struct json_object *answer, struct json_object *request)
{
    struct json_object *id;

    if (answer == NULL || !json_object_is_type(request, json_type_object) ||
        !json_object_object_get_ex(request, "id", &id))
        return answer;
    return built(answer, json_object_object_add(answer, "id", json_object_get(id)));
}

struct json_object *qmp_dispatch(struct qmp_session *session, struct json_object *request)
{
    struct qmp_call call = {
        .context = session->context,
        .server = session->server,
        .role = session->role,
        .client = session->client,
    };
    const struct qmp_command *command = NULL;
    struct request parts = {0};
    struct err err = ERR_INIT;
    int r = read_request(session, request, &parts, &err);
    if (r == 0)
        r = find_command(session, &parts, &command, &err);
    if (r == 0) {
        TRACE("qmp.command", "%s", parts.name);
        call.arguments = parts.arguments;
        r = run_command(command, &call, &err);
    }
    if (r < 0) {
        json_object_put(call.result);
        return answer_id(qmp_error(&err), request);
    }
    session->peer_events |= call.peer_events;
    if (call.silence_ns != 0)
        session->silence_ns = call.silence_ns;
    if (command == qmp_negotiation) {
        session->negotiated = true;
        session->oob = call.oob;
    }
    return answer_id(answer_result(call.result), request);
}
