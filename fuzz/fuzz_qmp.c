/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Any text at the control protocol of a whole daemon in the simulator: reader, dispatcher, and the
 * commands themselves. Nothing may crash, wait for ever or stay behind, and every answer is an
 * object with "return" or "error". The first byte chooses the client's role (p: the peer), and whether
 * it may run commands out of band (o).
 */
#include "base/log.h"
#include "control/commands.h"
#include "control/daemon.h"
#include "control/qmp_dispatch.h"
#include "drivers/table.h"

#include <errno.h>

#define MAX_INPUT_BYTES 4096

#define CHECK(condition)      \
    do {                      \
        if (!(condition))     \
            __builtin_trap(); \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    struct loop *loop;
    const char *text;
    size_t length;
    enum qmp_role role;
    bool oob, done;
};

static void check_answer(struct json_object *answer)
{
    size_t length = 0;
    char *text = json_format(answer, JSON_LINE, &length);

    CHECK(answer != NULL && text != NULL);
    CHECK(json_object_object_get_ex(answer, "return", NULL) !=
          json_object_object_get_ex(answer, "error", NULL));
    free(text);
    json_object_put(answer);
}

static void converse(struct daemon *daemon, const struct input *input) MAY_WAIT
{
    struct json_reader *reader = json_reader_new();
    struct qmp_session session = {
        .server = daemon->qmp,
        .tables = commands_tables,
        .context = daemon,
        .role = input->role,
        .negotiated = true,
        .oob = input->oob,
    };
    size_t at = 0;

    CHECK(reader != NULL);
    while (at < input->length) {
        struct json_object *value = NULL;
        struct err err = ERR_INIT;
        size_t used = 0;
        int r = json_reader_feed(reader, input->text + at, input->length - at, &used, &value, &err);

        at += used;
        if (r > 0)
            check_answer(qmp_dispatch(&session, value));
        else if (r < 0)
            check_answer(qmp_error(&err));
        else
            CHECK(at == input->length);
        json_object_put(value);
    }
    json_reader_free(reader);
}

static void run(void *arg) MAY_WAIT
{
    struct input *input = arg;
    const struct config config = {.drivers = drivers_table};
    struct daemon *daemon = NULL;
    struct err err = ERR_INIT;

    CHECK(daemon_new(input->loop, &config, &daemon, &err) == 0);
    CHECK(daemon_start(daemon, &err) == 0);
    converse(daemon, input);
    daemon_end(daemon);
    daemon_free(daemon);
    input->done = true;
    loop_stop(input->loop);
}

static void swallow(void *arg, enum log_level level, const char *subject, const char *text)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {0};
    struct err err = ERR_INIT;

    if (size < 1 || size > MAX_INPUT_BYTES)
        return 0;
    log_set_sink(swallow, NULL);
    input.role = data[0] == 'p' ? QMP_ROLE_PEER : QMP_ROLE_FULL;
    input.oob = data[0] == 'o';
    input.text = (const char *)data + 1;
    input.length = size - 1;
    CHECK(loop_sim_new(1, &input.loop, &err) == 0);
    CHECK(co_spawn(input.loop, "fuzz", run, &input) == 0);
    loop_run(input.loop);
    CHECK(input.done);
    loop_free(input.loop);
    return 0;
}
