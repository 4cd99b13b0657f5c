/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which calls have been made in which stage while which fault was on: a table over all histories, its
 * cells counted where calls begin and end. Which cells cannot be, and why, is said in one table in
 * coverage.c.
 *
 * A fault is in a cell when it was on at the host of the call, or struck it, between the begin of the
 * call and its answer.
 */
#ifndef BLOCKSTEP_SIM_COVERAGE_H
#define BLOCKSTEP_SIM_COVERAGE_H

#include "base/list.h"

#include <stdio.h>

/* What the daemon called is. A promoted secondary that has got a secondary of its own is a primary. */
enum cover_stage {
    COVER_P_NONE,
    COVER_P_RUNNING,
    COVER_P_DONE,
    COVER_S_NONE,
    COVER_S_AWAITING, /* its first synchronisation */
    COVER_S_RUNNING,
    COVER_S_FAILOVER,
    COVER_S_FAILOVER_FAILED,
    COVER_S_DONE,
    COVER_STAGE_COUNT,
};

enum cover_call {
    COVER_START,
    COVER_CHECKPOINT,
    COVER_FIRST, /* checkpoint, after a synchronisation */
    COVER_GET_ERROR,
    COVER_STOP,
    COVER_FAILOVER,
    COVER_FORCE,
    COVER_READ, /* from here on: the guest's */
    COVER_WRITE,
    COVER_ZERO,
    COVER_DISCARD,
    COVER_FLUSH,
    COVER_CALL_COUNT,
};

enum cover_fault {
    COVER_NONE, /* no other one */
    COVER_KILL,
    COVER_POWER_CUT,
    COVER_FROZEN,
    COVER_DISK_ERROR,
    COVER_DISK_FULL,
    COVER_DISK_STALL,
    COVER_LINK_CUT, /* between the two daemons */
    COVER_LINK_SLOW,
    COVER_LINK_BREAK,
    COVER_PEER_DOWN,
    COVER_PEER_FROZEN,
    COVER_PEER_DISK,
    COVER_FAULT_COUNT,
};

struct coverage {
    uint64_t cells[COVER_STAGE_COUNT][COVER_CALL_COUNT][COVER_FAULT_COUNT];
};

const char *cover_stage_name(enum cover_stage stage);
const char *cover_call_name(enum cover_call call);
/* NULL: the cell can be visited; else why not. */
const char *cover_why_not(enum cover_stage stage, enum cover_call call, enum cover_fault fault);

void coverage_add(struct coverage *to, const struct coverage *from);
void coverage_print(const struct coverage *coverage, FILE *to);
void coverage_print_json(const struct coverage *coverage, FILE *to);
/* Cells that can be visited and were not; tells their names. */
unsigned coverage_print_empty(const struct coverage *coverage, FILE *to);

#endif
