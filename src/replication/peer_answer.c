/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replication/peer_answer.h"

#include "base/text.h"
#include "replication/peer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* One line of UTF-8 that fits. */
PRINTF_LIKE(3, 4)
static void put_text(char *out, size_t size, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    text_format(out, size, fmt, args);
    va_end(args);
}

/* A number from 1 on. */
static int read_number(struct json_object *answer, const char *command, const char *key,
                       uint64_t *ret_number, struct err *err)
{
    uint64_t number = json_uint(answer, key);

    if (number == 0)
        return err_set(err, -EPROTO, "its answer to %s has no '%s' that is a number above 0",
                       command, key);
    *ret_number = number;
    return 0;
}

int peer_hello_read(struct json_object *answer, struct peer_hello *ret_hello, struct err *err)
{
    static const char command[] = "replication-hello";
    struct peer_hello hello = {.epoch = json_uint(answer, "epoch")};
    int ret = read_number(answer, command, "version", &hello.version, err);

    if (ret == 0 && (hello.version < PEER_VERSION_MIN || hello.version > PEER_VERSION_MAX))
        ret = err_set(err, -EPROTO,
                      "it wants version %" PRIu64 " of the protocol between daemons, and this one"
                      " knows versions %u to %u: install programs that have one in common",
                      hello.version, PEER_VERSION_MIN, PEER_VERSION_MAX);
    if (ret == 0)
        ret = read_number(answer, command, "session", &hello.session, err);
    if (ret == 0 && !json_object_is_type(json_member(answer, "epoch"), json_type_int))
        ret = err_set(err, -EPROTO, "its answer to %s has no 'epoch'", command);
    if (ret == 0)
        *ret_hello = hello;
    return ret;
}

int peer_epoch_read(struct json_object *answer, uint64_t *ret_epoch, struct err *err)
{
    return read_number(answer, "replication-checkpoint", "epoch", ret_epoch, err);
}

static bool has_taken_over(struct json_object *answer)
{
    const char *stage = json_text(answer, "stage");

    return json_flag(answer, "promoted") || json_flag(answer, "failover-interrupted") ||
           (stage != NULL && strncmp(stage, "failover", strlen("failover")) == 0);
}

/* Why no checkpoint can be had of one in this state; NULL: it can. */
static const char *trouble(struct json_object *answer)
{
    const char *reason = json_text(answer, "inconsistent-reason");

    if (has_taken_over(answer))
        return "it has taken over: this primary is the old copy now";
    if (reason == NULL)
        reason = json_text(answer, "stream-reason");
    if (reason != NULL)
        return reason;
    const char *role = json_text(answer, "role"), *stage = json_text(answer, "stage");
    if (role == NULL || strcmp(role, "secondary") != 0)
        return "it is no secondary any more";
    if (stage == NULL || strcmp(stage, "running") != 0)
        return "its replication was stopped";
    return NULL;
}

int peer_state_read(struct json_object *answer, struct peer_state *ret_state,
                    struct json_object **ret_error, struct err *err)
{
    if (!json_object_is_type(answer, json_type_object))
        return err_set(err, -EPROTO, "its answer to query-replication is no object");
    const char *reason = trouble(answer);
    *ret_state = (struct peer_state){
        .known = true,
        .intact = reason == NULL,
        .taken_over = has_taken_over(answer),
    };
    put_text(ret_state->reason, sizeof(ret_state->reason), "%s", reason != NULL ? reason : "");
    *ret_error = peer_error_read(json_member(answer, "error"));
    return 0;
}

static int copy_text(struct json_object *to, struct json_object *from, const char *key)
{
    const char *text = json_text(from, key);
    char copy[PEER_ERROR_TEXT_BYTES];

    put_text(copy, sizeof(copy), "%s", text != NULL ? text : "?");
    return json_add_string(to, key, copy);
}

struct json_object *peer_error_read(struct json_object *error)
{
    static const char *const texts[] = {"disk", "node", "operation", "errno", "reason"};
    static const char *const numbers[] = {"offset", "length", "wall-time-ns", "count"};
    const char *side = json_text(error, "side");

    if (side == NULL || strcmp(side, "secondary") != 0)
        return NULL;
    CLEANUP(json_putp) struct json_object *copy = json_object_new_object();
    int ret = copy == NULL ? -ENOMEM : json_add_string(copy, "side", side);
    for (size_t i = 0; ret == 0 && i < ARRAY_LEN(texts); i++)
        ret = copy_text(copy, error, texts[i]);
    for (size_t i = 0; ret == 0 && i < ARRAY_LEN(numbers); i++)
        ret = json_add_uint(copy, numbers[i], json_uint(error, numbers[i]));
    return ret == 0 ? TAKE_PTR(copy) : NULL;
}
