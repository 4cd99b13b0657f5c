/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstepd: the daemon. Its options are those of qemu-storage-daemon, and a few of its own. */
#include "base/log.h"
#include "bin/cli.h"
#include "bin/privileges.h"
#include "bin/process.h"
#include "bin/service.h"
#include "control/daemon.h"
#include "drivers/table.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

struct settings {
    struct config config;
    const char *pidfile;
    const char *runas;
    const char *features_off;
    bool daemonize;
    int pidfile_fd;
    int parent_fd;
};

static void print_help(void)
{
    printf(
        "usage: blockstepd OPTION...\n\n"
        "Serves block devices over NBD and replicates them. Options are carried out in the order\n"
        "in which they stand; values are KEY=VALUE,... or one JSON object.\n\n"
        "  --blockdev DRIVER,node-name=NAME,...   make a node (--blockdev help lists drivers,\n"
        "                                         --blockdev DRIVER,help their options)\n"
        "  --object TYPE,id=ID,...                make an object: tls-creds-x509, tls-creds-psk,\n"
        "                                         secret, throttle-group\n"
        "  --nbd-server addr.type=inet,addr.host=HOST,addr.port=PORT[,id=ID][,tls-creds=ID]\n"
        "  --nbd-server addr.type=unix,addr.path=PATH[,id=ID]\n"
        "  --nbd-server addr.type=fd,addr.str=3[,id=ID][,tls-creds=ID]\n"
        "                                         on the socket that systemd passes\n"
        "  --export nbd,id=ID,node-name=NODE[,name=NAME][,server=ID][,writable=on]\n"
        "  --qmp unix:PATH | inet:HOST:PORT[,role=full|peer][,tls-creds=ID]\n"
        "                                         control listener\n"
        "  --chardev socket,id=ID,path=PATH,server=on,wait=off\n"
        "  --monitor chardev=ID                   control listener, the long form\n"
        "  --insecure                             allow TCP listeners that other hosts can reach\n"
        "                                         without TLS that proves who the clients are\n"
        "  --name NAME                            what status calls this group of disks\n"
        "  --state DIR                            keep the record of the replication group there, so\n"
        "                                         that a start after a crash knows what is true\n"
        "  --durability LEVEL                     with --state: what a checkpoint survives: process\n"
        "                                         (a killed daemon; default) or none\n"
        "  --pidfile PATH                         write the process id when all is up\n"
        "  --daemonize                            go to the background when all is up\n"
        "  --runas USER[:GROUP]                   become that user before anything is opened\n"
        "  --log-level LEVEL                      error, warning, info (default), debug, trace\n"
        "  --trace PATTERN                        switch trace points on (--trace help lists)\n"
        "  --loop-features-off NAMES              do without kernel features, for tests\n"
        "  --version, --help\n\n"
        "A socket that systemd passes is the NBD server 'default'.\n"
        "Exit status: 0 ended when asked, 1 failed, 2 wrong usage.\n");
}

enum {
    OPT_FIRST = 256,
    BLOCKDEV,
    NBD_SERVER,
    EXPORT,
    CHARDEV,
    MONITOR,
    QMP,
    OBJECT,
    PIDFILE,
    DAEMONIZE,
    RUNAS,
    LOG_LEVEL,
    TRACE_ON,
    FEATURES_OFF,
    INSECURE,
    NAME,
    STATE,
    DURABILITY,
    VERSION,
    HELP
};

static const struct option long_options[] = {
    {"blockdev", required_argument, NULL, BLOCKDEV},
    {"nbd-server", required_argument, NULL, NBD_SERVER},
    {"export", required_argument, NULL, EXPORT},
    {"chardev", required_argument, NULL, CHARDEV},
    {"monitor", required_argument, NULL, MONITOR},
    {"qmp", required_argument, NULL, QMP},
    {"object", required_argument, NULL, OBJECT},
    {"pidfile", required_argument, NULL, PIDFILE},
    {"daemonize", no_argument, NULL, DAEMONIZE},
    {"runas", required_argument, NULL, RUNAS},
    {"log-level", required_argument, NULL, LOG_LEVEL},
    {"trace", required_argument, NULL, TRACE_ON},
    {"loop-features-off", required_argument, NULL, FEATURES_OFF},
    {"insecure", no_argument, NULL, INSECURE},
    {"name", required_argument, NULL, NAME},
    {"state", required_argument, NULL, STATE},
    {"durability", required_argument, NULL, DURABILITY},
    {"version", no_argument, NULL, VERSION},
    {"help", no_argument, NULL, HELP},
    {0},
};

/* --- help from the tables --- */

static void list_drivers(void)
{
    printf("Drivers:\n");
    for (const struct driver *const *driver = drivers_table; *driver != NULL; driver++) {
        if (!(*driver)->internal)
            printf("  %s\n", (*driver)->name);
    }
}

static void print_line(void *arg, const char *line)
{
    puts(line);
}

static int print_driver_help(const char *name, size_t length)
{
    for (const struct driver *const *driver = drivers_table; *driver != NULL; driver++) {
        if (strlen((*driver)->name) != length || memcmp((*driver)->name, name, length) != 0)
            continue;
        printf("Options of driver %s:\n", (*driver)->name);
        if ((*driver)->opts != NULL)
            opts_help((*driver)->opts, print_line, NULL);
        return EXIT_OK;
    }
    return cli_usage_error("--blockdev: there is no driver '%.*s'", (int)length, name);
}

/* "help" and "DRIVER,help" print and return an exit code; -1: neither. */
static int blockdev_help(const char *text)
{
    size_t length = strlen(text);

    if (strcmp(text, "help") == 0) {
        list_drivers();
        return EXIT_OK;
    }
    if (length < 6 || strcmp(text + length - 5, ",help") != 0)
        return -1;
    if (strncmp(text, "driver=", 7) == 0)
        return print_driver_help(text + 7, length - 12);
    return print_driver_help(text, length - 5);
}

static void print_trace_point(void *arg, const struct trace_point *point)
{
    printf("  %s\n", point->name);
}

/* --- options --- */

/* -1: go on; else the exit code. */
static int take_trace(const char *pattern)
{
    if (strcmp(pattern, "help") == 0) {
        printf("Trace points:\n");
        log_trace_list(print_trace_point, NULL);
        return EXIT_OK;
    }
    if (log_trace_enable(pattern) == 0)
        return cli_usage_error("--trace: no trace point matches '%s' (--trace help lists them)",
                               pattern);
    return -1;
}

static int take_log_level(const char *name)
{
    enum log_level level;

    if (log_level_parse(name, &level) < 0)
        return cli_usage_error("--log-level: '%s' is none of error, warning, info, debug, trace",
                               name);
    log_set_level(level);
    return -1;
}

/* Options that make something. -1: go on; else the exit code. */
static int take_item(struct config *config, int option, const char *text)
{
    struct err err = ERR_INIT;
    int r = 0;

    switch (option) {
    case BLOCKDEV:
        r = blockdev_help(text);
        if (r >= 0)
            return r;
        r = config_add_blockdev(config, text, &err);
        break;
    case NBD_SERVER:
        r = config_add_nbd_server(config, text, &err);
        break;
    case EXPORT:
        r = config_add_export(config, text, &err);
        break;
    case OBJECT:
        r = config_add_object(config, text, &err);
        break;
    case CHARDEV:
        r = config_add_chardev(config, text, &err);
        break;
    case MONITOR:
        r = config_add_monitor(config, text, &err);
        break;
    case QMP:
        r = config_add_qmp(config, text, &err);
        break;
    }
    return r < 0 ? cli_usage_error("%s", err.text) : -1;
}

static int take_text(char **text)
{
    free(*text);
    *text = strdup(optarg);
    return *text != NULL ? -1 : EXIT_FAILED;
}

static int take_durability(struct config *config)
{
    struct err err = ERR_INIT;

    return config_durability(optarg, &config->durability, &err) < 0
               ? cli_usage_error("%s", err.text)
               : -1;
}

static int take_option(struct settings *settings, int option)
{
    switch (option) {
    case PIDFILE:
        settings->pidfile = optarg;
        return -1;
    case DAEMONIZE:
        settings->daemonize = true;
        return -1;
    case RUNAS:
        settings->runas = optarg;
        return -1;
    case LOG_LEVEL:
        return take_log_level(optarg);
    case TRACE_ON:
        return take_trace(optarg);
    case FEATURES_OFF:
        settings->features_off = optarg;
        return -1;
    case INSECURE:
        settings->config.insecure = true;
        return -1;
    case NAME:
        return take_text(&settings->config.name);
    case STATE:
        return take_text(&settings->config.state);
    case DURABILITY:
        return take_durability(&settings->config);
    case VERSION:
        printf("blockstepd %s\n", BLOCKSTEP_VERSION);
        return EXIT_OK;
    case HELP:
        print_help();
        return EXIT_OK;
    case '?':
        fprintf(stderr, "Try 'blockstepd --help'.\n");
        return EXIT_USAGE;
    default:
        return take_item(&settings->config, option, optarg);
    }
}

static int take_options(struct settings *settings, int argc, char **argv)
{
    struct err err = ERR_INIT;
    int option;

    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        int code = take_option(settings, option);

        if (code >= 0)
            return code;
    }
    if (optind < argc)
        return cli_usage_error("'%s' is not an option", argv[optind]);
    if (service_listen_fd(&settings->config.passed_fd, &err) < 0)
        return cli_usage_error("%s", err.text);
    if (settings->config.item_count == 0)
        return cli_usage_error("nothing to do: there is neither a node nor a control listener");
    if (config_check(&settings->config, &err) < 0)
        return cli_usage_error("%s", err.text);
    return -1;
}

/* --- the process --- */

static int started(struct daemon *daemon, void *arg, struct err *err)
{
    struct settings *settings = arg;

    if (settings->pidfile != NULL) {
        int r = pidfile_write(settings->pidfile, &settings->pidfile_fd, err);

        if (r < 0)
            return r;
    }
    daemonize_ready(&settings->parent_fd);
    service_notify("READY=1");
    return 0;
}

static void stopping(void *arg)
{
    service_notify("STOPPING=1");
}

/* The loop of a process that has the rights it needs and no more; NULL after a message. */
static struct loop *prepare(struct settings *settings, int *ret_exit)
{
    struct err err = ERR_INIT;
    struct loop *loop;

    *ret_exit = EXIT_FAILED;
    if ((settings->runas != NULL && privileges_become(settings->runas, &err) < 0) ||
        (settings->config.state != NULL && state_folder_check(settings->config.state, &err) < 0) ||
        (settings->daemonize && daemonize(&settings->parent_fd, &err) < 0)) {
        cli_error("%s", err.text);
        return NULL;
    }
    loop = cli_loop_new(settings->features_off, ret_exit);
    if (loop != NULL && privileges_limit(&err) < 0) {
        cli_error("%s", err.text);
        loop_free(loop);
        return NULL;
    }
    return loop;
}

static int serve(struct settings *settings)
{
    const struct daemon_hooks hooks = {.started = started, .stopping = stopping, .arg = settings};
    struct err err = ERR_INIT;
    int code;
    struct loop *loop = prepare(settings, &code);

    if (loop == NULL)
        return code;
    code = daemon_run(loop, &settings->config, &hooks, &err);
    if (code < 0)
        cli_error("%s", err.text);
    log_flush_limit();
    pidfile_remove(settings->pidfile, &settings->pidfile_fd);
    if (code == -EINTR)
        _exit(EXIT_FAILED); /* requests are under way: nothing can be freed */
    loop_free(loop);
    return code < 0 ? EXIT_FAILED : EXIT_OK;
}

int main(int argc, char **argv)
{
    struct settings settings = {
        .config.drivers = drivers_table,
        .config.durability = GROUP_LEVEL_PROCESS,
        .pidfile_fd = -1,
        .parent_fd = -1,
    };
    int code;

    cli_program = "blockstepd";
    if (argc > 0)
        argv[0] = (char *)cli_program; /* what getopt calls us */
    signal(SIGPIPE, SIG_IGN);
    service_log_init();
    code = take_options(&settings, argc, argv);
    if (code < 0)
        code = serve(&settings);
    config_release(&settings.config);
    return code;
}
