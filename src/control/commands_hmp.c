/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * human-monitor-command: two lines of QEMU's monitor for people, which managers send through it.
 * What goes wrong is told in the text that comes back, as there; the command itself succeeds.
 */
#include "control/commands.h"
#include "control/daemon.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define WORD_SHOWN 100

struct hmp_args {
    char *line;
    uint64_t cpu;
    bool cpu_given;
};

static const struct opt hmp_opts[] = {
    {.name = "command-line",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct hmp_args, line),
     .required = true,
     .help = "drive_add -n NAME OPTIONS, or drive_del NODE"},
    {.name = "cpu-index",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct hmp_args, cpu),
     .present = OPT_PRESENT(struct hmp_args, cpu_given),
     .help = "refused: there are no processors"},
    {0},
};

/* What is left of a line, and why it was refused (err's text); the line is changed on the way. */
struct line {
    char *rest;
    const char *command;
    bool misused; /* the command's help would tell more */
    struct err *err;
};

static void skip_space(struct line *line)
{
    while (isspace((unsigned char)*line->rest))
        line->rest++;
}

/* The line is not of the command's form. */
static int refuse(struct line *line, const char *why)
{
    line->misused = true;
    return err_set(line->err, -EINVAL, "%s: %s", line->command, why);
}

static int unescape(struct line *line, char byte, char *ret_byte)
{
    static const char codes[] = "nr\\'\"", bytes[] = "\n\r\\'\"";
    const char *code = byte != '\0' ? strchr(codes, byte) : NULL;

    if (code == NULL)
        return refuse(line, "a word has an escape code that is none of \\n \\r \\\\ \\' \\\"");
    *ret_byte = bytes[code - codes];
    return 0;
}

/* Behind the opening quote; takes the closing one as well. */
static int take_quoted(struct line *line, char **ret_word)
{
    char *from = line->rest, *to = line->rest;

    for (; *from != '"'; from++) {
        char byte = *from;

        if (byte == '\0')
            return refuse(line, "a word in quotes does not end");
        if (byte == '\\' && unescape(line, *++from, &byte) < 0)
            return line->err->code;
        *to++ = byte;
    }
    *ret_word = line->rest;
    line->rest = from + 1;
    *to = '\0';
    return 0;
}

/* The next word; `missing` says what should be there. */
static int take_word(struct line *line, const char *missing, char **ret_word)
{
    skip_space(line);
    if (*line->rest == '\0')
        return refuse(line, missing);
    if (*line->rest == '"') {
        line->rest++;
        return take_quoted(line, ret_word);
    }
    *ret_word = line->rest;
    while (*line->rest != '\0' && !isspace((unsigned char)*line->rest))
        line->rest++;
    if (*line->rest != '\0')
        *line->rest++ = '\0';
    return 0;
}

static int take_end(struct line *line)
{
    skip_space(line);
    return *line->rest == '\0' ? 0 : refuse(line, "extraneous characters at the end of line");
}

/* "-n" is the only form: without it QEMU adds a drive for a device that there cannot be here. */
static int take_node_flag(struct line *line)
{
    char why[] = "unsupported option -?";

    skip_space(line);
    if (line->rest[0] != '-')
        return *line->rest == '\0' ? refuse(line, "string expected")
                                   : refuse(line, "only nodes can be added: say drive_add -n");
    if (line->rest[1] != 'n') {
        why[sizeof(why) - 2] = isgraph((unsigned char)line->rest[1]) ? line->rest[1] : '?';
        return refuse(line, why);
    }
    line->rest += 2;
    return 0;
}

static int add_node(struct daemon *daemon, const char *text, struct err *err) MAY_WAIT
{
    CLEANUP(json_putp) struct json_object *options = NULL;
    enum opts_syntax syntax;
    struct node *node;
    int r = opts_read(text, NULL, "drive_add", &options, &syntax, err);

    if (r < 0)
        return r;
    if (!json_object_object_get_ex(options, "node-name", NULL))
        return err_set(err, -EINVAL, "'node-name' needs to be specified");
    return graph_add(daemon->graph, options, syntax, "drive_add", true, &node, err);
}

static int drive_add(struct daemon *daemon, struct line *line) MAY_WAIT
{
    char *slot, *options;
    int r = take_node_flag(line);

    if (r == 0)
        r = take_word(line, "string expected", &slot);
    if (r == 0)
        r = take_word(line, "string expected", &options);
    if (r == 0)
        r = take_end(line);
    return r < 0 ? r : add_node(daemon, options, line->err);
}

static int drive_del(struct daemon *daemon, struct line *line) MAY_WAIT
{
    char *name;
    int r = take_word(line, "block device name expected", &name);

    if (r == 0)
        r = take_end(line);
    if (r < 0)
        return r;
    if (graph_find(daemon->graph, name) == NULL)
        return err_set(line->err, -ENOENT, "Device '%s' not found", name);
    return graph_del(daemon->graph, name, line->err);
}

static int run_line(struct daemon *daemon, struct line *line) MAY_WAIT
{
    char *name;

    skip_space(line);
    if (*line->rest == '\0')
        return 0;
    name = line->rest;
    while (*line->rest != '\0' && *line->rest != '/' && !isspace((unsigned char)*line->rest))
        line->rest++;
    if (*line->rest != '\0')
        *line->rest++ = '\0';
    line->command = name;
    if (strcmp(name, "drive_add") == 0)
        return drive_add(daemon, line);
    if (strcmp(name, "drive_del") == 0)
        return drive_del(daemon, line);
    return err_set(line->err, -ENOENT, "unknown command: '%.*s'", WORD_SHOWN, name);
}

static int run_hmp(struct qmp_call *call, void *args, struct err *err) MAY_WAIT
{
    const struct hmp_args *hmp = args;
    struct err said = ERR_INIT;
    struct line line = {.rest = hmp->line, .err = &said};
    char text[sizeof(said.text) + 64] = "";

    if (hmp->cpu_given)
        return err_set(err, -EINVAL, "Parameter 'cpu-index' expects a CPU number");
    if (run_line(call->context, &line) < 0)
        snprintf(text, sizeof(text), "%s\r\n", said.text);
    if (line.misused) /* as QEMU says it, to those who match on the text */
        snprintf(text, sizeof(text), "%s\r\nTry \"help %s\" for more information\r\n", said.text,
                 line.command);
    call->result = json_object_new_string(text);
    return call->result != NULL ? 0 : err_no_memory(err);
}

const struct qmp_command commands_hmp[] = {
    {.name = "human-monitor-command",
     .returns = QMP_RETURNS_TEXT,
     .args = hmp_opts,
     .args_size = sizeof(struct hmp_args),
     .run = run_hmp},
    {0},
};
