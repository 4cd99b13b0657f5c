/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Histories in processes of their own, so that one that breaks something breaks nothing else. */
#ifndef BLOCKSTEP_SIM_SHRINK_H
#define BLOCKSTEP_SIM_SHRINK_H

#include "world.h"

#define VERDICT_TEXT_BYTES 4096u
/* Of real time; longer is an endless loop. Times BLOCKSTEP_TEST_SLOW. */
#define RUN_SECONDS_MAX    60u
#define SHRINK_SECONDS_MAX 120u

struct verdict {
    bool ok;
    char invariant[160]; /* or how it died */
    char text[VERDICT_TEXT_BYTES];
    unsigned op;
};

/* In this process: the end of it when something is violated, told on the descriptor. ret_facts may be
 * NULL. */
uint64_t run_here(const struct history *history, FILE *trace, int tell_fd,
                  struct world_facts *ret_facts);
/* Where runs here count what they visit; NULL: nowhere. */
extern struct coverage *run_coverage;
/* In one of its own. */
void run_apart(const struct history *history, struct verdict *ret_verdict);
/* The fewest operations that still violate the same. */
void shrink(struct history *history, struct verdict *verdict);

#endif
