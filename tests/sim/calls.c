/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Calls that a stage refuses or ignores: the answers are those of the table in docs/semantics.md, and
 * nothing changes. */
#include "world.h"

#include <errno.h>

enum answer { ANY, OK, NO };

static const enum answer answers[COVER_STAGE_COUNT][COVER_READ] = {
    /* start, checkpoint, first, get-error, stop, failover, force */
    [COVER_P_NONE] = {NO, NO, NO, ANY, NO, NO, NO},
    [COVER_P_RUNNING] = {NO, ANY, NO, ANY, OK, OK, OK},
    [COVER_P_DONE] = {NO, OK, NO, ANY, OK, OK, OK},
    [COVER_S_NONE] = {ANY, NO, NO, ANY, NO, NO, NO},
    [COVER_S_AWAITING] = {ANY, NO, ANY, ANY, NO, NO, ANY},
    [COVER_S_RUNNING] = {NO, ANY, ANY, ANY, ANY, ANY, ANY},
    [COVER_S_FAILOVER] = {OK, OK, NO, ANY, OK, OK, OK},
    [COVER_S_FAILOVER_FAILED] = {NO, NO, NO, ANY, NO, OK, OK},
    [COVER_S_DONE] = {ANY, OK, NO, ANY, OK, OK, OK},
};

/* Also what a person asks; those answers are held to their schema elsewhere. */
static int ask_all(struct host *host, struct err *err) MAY_WAIT
{
    static const char *const queries[] = {"query-replication", "query-named-block-nodes",
                                          "query-block-exports"};
    struct err ignored = ERR_INIT;
    int r = qmp_command(host, NULL, err, "{'execute':'query-xen-replication-status'}");

    for (size_t i = 0; r == 0 && i < ARRAY_LEN(queries); i++)
        (void)qmp_command(host, NULL, &ignored, "{'execute':'%s'}", queries[i]);
    return r;
}

int call_send(struct host *host, enum cover_call call, bool secondary, struct err *err)
{
    switch (call) {
    case COVER_START:
        return qmp_command(host, NULL, err,
                           "{'execute':'replication-start','arguments':"
                           "{'mode':'%s','overlays':'empty'}}",
                           secondary ? "secondary" : "primary");
    case COVER_CHECKPOINT:
        return qmp_command(host, NULL, err, "{'execute':'replication-checkpoint'}");
    case COVER_FIRST:
        return qmp_command(host, NULL, err,
                           "{'execute':'replication-checkpoint','arguments':{'first':true}}");
    case COVER_GET_ERROR:
        return ask_all(host, err);
    case COVER_STOP:
        return qmp_command(host, NULL, err,
                           "{'execute':'replication-stop','arguments':{'failover':false}}");
    case COVER_FAILOVER:
        return qmp_command(host, NULL, err,
                           "{'execute':'replication-stop','arguments':{'failover':true}}");
    default:
        return qmp_command(
            host, NULL, err,
            "{'execute':'replication-stop','arguments':{'failover':true,'force':true}}");
    }
}

static bool fits(enum cover_stage stage, enum cover_call call, int r)
{
    enum answer answer = answers[stage][call];

    return answer == ANY || (answer == OK) == (r == 0);
}

bool call_plain(struct host *host, enum cover_call call)
{
    bool well = host_is_well(host);
    unsigned troubles = host->troubles;
    enum cover_stage before, after;
    struct err err = ERR_INIT;

    if (!host_stage(host, &before))
        return true;
    int r = call_send(host, call, before >= COVER_S_NONE, &err);
    if (r < 0 && r != -EREMOTEIO)
        return false;
    /* A merge may have come to its end meanwhile. */
    if (well && host_is_well(host) && troubles == host->troubles && host_stage(host, &after) &&
        !fits(before, call, r) && !fits(after, call, r))
        world_violation(host->world, "the table of stages and calls",
                        "%s, %s, answers %s to %s%s%s", host->name, cover_stage_name(before),
                        r == 0 ? "well" : "no", cover_call_name(call), r < 0 ? ": " : "",
                        r < 0 ? err.text : "");
    return true;
}
