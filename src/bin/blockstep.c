/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep: the person's command. */
#include "bin/verbs.h"

#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static int verb_demo(int argc, char **argv);

static const struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} verbs[] = {
    {"primary", verb_primary, "serve disks to a guest and forward its writes to a secondary"},
    {"secondary", verb_secondary, "keep the disks of a primary, ready to take over"},
    {"status", verb_status, "show role, stage, link, checkpoint, overlays, errors"},
    {"graph", verb_graph, "show nodes, exports, jobs, and what they may do to each other"},
    {"checkpoint", verb_checkpoint, "make what the primary has written the state to fall back to"},
    {"failover", verb_failover, "on the secondary: take over at the last checkpoint"},
    {"stop", verb_stop, "stop replication without a failover"},
    {"events", verb_events, "print what happens in a daemon, as it happens"},
    {"wait", verb_wait, "until a stage, a checkpoint, a link"},
    {"doctor", verb_doctor, "whether this host and its daemons are fit for the job"},
    {"image", verb_image, "create, info, map: look at disk images"},
    {"qmp", verb_qmp, "send commands of the control protocol"},
    {"demo", verb_demo, "a disk survives the death of its host, before your eyes"},
};

static void print_help(void)
{
    printf("usage: blockstep VERB [OPTION...]      (blockstep VERB --help tells more)\n\n"
           "Replicates the disks of a virtual machine by checkpoints.\n\n");
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
        printf("  %-12s %s\n", verbs[i].name, verbs[i].help);
    printf("\nExit status: 0 done, 1 failed, 2 wrong usage; 3 the time of 'wait' has passed.\n");
}

/* The demo is a script beside this program, or below libexec when installed. */
static int verb_demo(int argc, char **argv)
{
    char self[PATH_MAX - 64], program[PATH_MAX - 64], script[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    static const char *const places[] = {"blockstep-demo", "../libexec/blockstep/blockstep-demo"};

    if (length < 0) {
        cli_error("cannot tell where this program lies");
        return EXIT_FAILED;
    }
    self[length] = '\0';
    memcpy(program, self, (size_t)length + 1);
    (void)dirname(self);
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        snprintf(script, sizeof(script), "%s/%s", self, places[i]);
        if (access(script, X_OK) == 0) {
            argv[0] = script;
            setenv("BLOCKSTEP_PROGRAM", program, 1);
            execv(script, argv);
        }
    }
    cli_error("blockstep-demo is not beside this program: is the installation complete?");
    return EXIT_FAILED;
}

int main(int argc, char **argv)
{
    static char program[64];

    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_help();
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help();
        return EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("blockstep %s\n", BLOCKSTEP_VERSION);
        return EXIT_OK;
    }
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        if (strcmp(argv[1], verbs[i].name) == 0) {
            snprintf(program, sizeof(program), "blockstep %s", verbs[i].name);
            cli_program = program;
            argv[1] = program; /* what getopt calls us */
            return verbs[i].run(argc - 1, argv + 1);
        }
    }
    return cli_usage_error("there is no verb '%s'", argv[1]);
}
