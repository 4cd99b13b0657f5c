/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "coverage.h"

#include "base/defs.h"

#include <inttypes.h>
#include <string.h>

static const char *const stages[COVER_STAGE_COUNT] = {
    [COVER_P_NONE] = "P none",
    [COVER_P_RUNNING] = "P running",
    [COVER_P_DONE] = "P done",
    [COVER_S_NONE] = "S none",
    [COVER_S_AWAITING] = "S awaiting sync",
    [COVER_S_RUNNING] = "S running",
    [COVER_S_FAILOVER] = "S failover",
    [COVER_S_FAILOVER_FAILED] = "S failover-failed",
    [COVER_S_DONE] = "S done",
};

static const char *const calls[COVER_CALL_COUNT] = {
    [COVER_START] = "start",
    [COVER_CHECKPOINT] = "checkpoint",
    [COVER_FIRST] = "first checkpoint",
    [COVER_GET_ERROR] = "get-error",
    [COVER_STOP] = "stop",
    [COVER_FAILOVER] = "failover",
    [COVER_FORCE] = "forced failover",
    [COVER_READ] = "guest read",
    [COVER_WRITE] = "guest write",
    [COVER_ZERO] = "guest zero",
    [COVER_DISCARD] = "guest discard",
    [COVER_FLUSH] = "guest flush",
};

/* In the table's head, in two lines. */
static const char *const faults[COVER_FAULT_COUNT][2] = {
    [COVER_NONE] = {"", "none"},
    [COVER_KILL] = {"", "kill"},
    [COVER_POWER_CUT] = {"power", "cut"},
    [COVER_FROZEN] = {"", "frozen"},
    [COVER_DISK_ERROR] = {"disk", "error"},
    [COVER_DISK_FULL] = {"disk", "full"},
    [COVER_DISK_STALL] = {"disk", "stall"},
    [COVER_LINK_CUT] = {"link", "cut"},
    [COVER_LINK_SLOW] = {"link", "slow"},
    [COVER_LINK_BREAK] = {"link", "break"},
    [COVER_PEER_DOWN] = {"peer", "down"},
    [COVER_PEER_FROZEN] = {"peer", "frozen"},
    [COVER_PEER_DISK] = {"peer", "disk"},
};

/* --- what cannot be --- */

#define BIT(n) (1u << (n))

/* The first that fits counts. */
static const struct {
    unsigned stages, calls, faults; /* bits */
    const char *why;
} impossible[] = {
    {BIT(COVER_S_FAILOVER) | BIT(COVER_S_FAILOVER_FAILED), UINT32_MAX, BIT(COVER_POWER_CUT),
     "what a merge has not finished survives a power cut only at durability level host, which is not"
     " built yet"},
};

const char *cover_why_not(enum cover_stage stage, enum cover_call call, enum cover_fault fault)
{
    for (size_t i = 0; i < ARRAY_LEN(impossible); i++) {
        if ((impossible[i].stages & BIT(stage)) != 0 && (impossible[i].calls & BIT(call)) != 0 &&
            (impossible[i].faults & BIT(fault)) != 0)
            return impossible[i].why;
    }
    return NULL;
}

/* --- to read --- */

const char *cover_stage_name(enum cover_stage stage)
{
    return stages[stage];
}

const char *cover_call_name(enum cover_call call)
{
    return calls[call];
}

void coverage_add(struct coverage *to, const struct coverage *from)
{
    for (unsigned stage = 0; stage < COVER_STAGE_COUNT; stage++) {
        for (unsigned call = 0; call < COVER_CALL_COUNT; call++) {
            for (unsigned fault = 0; fault < COVER_FAULT_COUNT; fault++)
                to->cells[stage][call][fault] += from->cells[stage][call][fault];
        }
    }
}

static void print_row(const struct coverage *coverage, unsigned stage, unsigned call, FILE *to)
{
    fprintf(to, "%-17s  %-16s", call == 0 ? stages[stage] : "", calls[call]);
    for (unsigned fault = 0; fault < COVER_FAULT_COUNT; fault++) {
        uint64_t count = coverage->cells[stage][call][fault];
        if (count == 0)
            fprintf(to, " %7s", cover_why_not(stage, call, fault) != NULL ? "-" : "EMPTY");
        else
            fprintf(to, " %7" PRIu64, count);
    }
    fputc('\n', to);
}

void coverage_print(const struct coverage *coverage, FILE *to)
{
    for (unsigned line = 0; line < 2; line++) {
        fprintf(to, "%-17s  %-16s", line == 0 ? "" : "stage", line == 0 ? "" : "call");
        for (unsigned fault = 0; fault < COVER_FAULT_COUNT; fault++)
            fprintf(to, " %7s", faults[fault][line]);
        fputc('\n', to);
    }
    for (unsigned stage = 0; stage < COVER_STAGE_COUNT; stage++) {
        for (unsigned call = 0; call < COVER_CALL_COUNT; call++)
            print_row(coverage, stage, call, to);
    }
    for (size_t i = 0; i < ARRAY_LEN(impossible); i++)
        fprintf(to, "%s%s\n", i == 0 ? "-: cannot be: " : "              ", impossible[i].why);
}

static void name_fault(unsigned fault, char name[32])
{
    snprintf(name, 32, "%s%s%s", faults[fault][0], faults[fault][0][0] != '\0' ? " " : "",
             faults[fault][1]);
}

void coverage_print_json(const struct coverage *coverage, FILE *to)
{
    const char *between = "";
    char name[32];

    fprintf(to, "[");
    for (unsigned stage = 0; stage < COVER_STAGE_COUNT; stage++) {
        for (unsigned call = 0; call < COVER_CALL_COUNT; call++) {
            for (unsigned fault = 0; fault < COVER_FAULT_COUNT; fault++) {
                name_fault(fault, name);
                fprintf(to,
                        "%s\n {\"stage\": \"%s\", \"call\": \"%s\", \"fault\": \"%s\","
                        " \"visits\": %" PRIu64 ", \"possible\": %s}",
                        between, stages[stage], calls[call], name,
                        coverage->cells[stage][call][fault],
                        cover_why_not(stage, call, fault) == NULL ? "true" : "false");
                between = ",";
            }
        }
    }
    fprintf(to, "\n]\n");
}

unsigned coverage_print_empty(const struct coverage *coverage, FILE *to)
{
    unsigned empty = 0;
    char name[32];

    for (unsigned stage = 0; stage < COVER_STAGE_COUNT; stage++) {
        for (unsigned call = 0; call < COVER_CALL_COUNT; call++) {
            for (unsigned fault = 0; fault < COVER_FAULT_COUNT; fault++) {
                if (coverage->cells[stage][call][fault] != 0 ||
                    cover_why_not(stage, call, fault) != NULL)
                    continue;
                name_fault(fault, name);
                fprintf(to, "EMPTY: %s, %s, %s\n", stages[stage], calls[call], name);
                empty++;
            }
        }
    }
    return empty;
}
