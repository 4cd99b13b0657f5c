/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/runtime.h"
#include "bin/verbs.h"

#include <errno.h>

int target_take(struct target *target, int option)
{
    int taken = tls_options_take(&target->tls, option);

    if (taken != 0)
        return taken < 0 ? 0 : -EINVAL;
    switch (option) {
    case 'n':
        target->name = optarg;
        return 0;
    case 'q':
        target->address = optarg;
        return 0;
    case 'o':
        return cli_parse_output(optarg, &target->json);
    default:
        /* getopt has said what is wrong. */
        fprintf(stderr, "Try '%s --help'.\n", cli_program);
        return -EINVAL;
    }
}

static int find_address(const struct target *target, char *address, size_t address_bytes,
                        struct err *err)
{
    char name[NAME_MAX_CHARS + 1];
    int r;

    if (target->name != NULL)
        return runtime_address(target->name, false, address, address_bytes, err);
    r = runtime_only_name(name, sizeof(name), err);
    return r < 0 ? r : runtime_address(name, false, address, address_bytes, err);
}

int target_address(struct target *target, char address[TARGET_ADDRESS_BYTES])
{
    struct err err = ERR_INIT;
    int r = tls_options_check(&target->tls);

    if (r >= 0)
        return r;

    if (target->name != NULL && target->address != NULL)
        return cli_usage_error("--name and --qmp exclude each other");
    if (target->address != NULL) {
        if (snprintf(address, TARGET_ADDRESS_BYTES, "%s", target->address) < TARGET_ADDRESS_BYTES)
            return EXIT_OK;
        return cli_usage_error("--qmp: the address is too long");
    }
    r = find_address(target, address, TARGET_ADDRESS_BYTES, &err);
    if (r == 0)
        return EXIT_OK;
    cli_error("%s", err.text);
    return r == -EINVAL ? EXIT_USAGE : EXIT_FAILED;
}

int target_connect(struct target *target, struct qmp_client **ret_client)
{
    char address[TARGET_ADDRESS_BYTES];
    struct err err = ERR_INIT;
    struct tls_creds_options tls;
    int code = target_address(target, address);

    if (code != EXIT_OK)
        return code;
    if (qmp_client_connect_tls(address, tls_options_client(&target->tls, &tls), ret_client, &err) <
        0) {
        cli_error("%s", err.text);
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

int verb_run(struct qmp_client *client, const char *what, const char *command,
             struct json_object *arguments, struct json_object **ret_result)
{
    struct err err = ERR_INIT;

    if (qmp_client_run(client, command, arguments, ret_result, &err) == 0)
        return EXIT_OK;
    cli_error("%s: %s", what, err.text);
    return EXIT_FAILED;
}
