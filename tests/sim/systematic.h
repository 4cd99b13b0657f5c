/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Small workloads, all of them, with everything that can befall a host in each. */
#ifndef BLOCKSTEP_SIM_SYSTEMATIC_H
#define BLOCKSTEP_SIM_SYSTEMATIC_H

#include "world.h"

/* An operation, the wait for it, and the restarts of who has died in it. */
#define SYSTEMATIC_STEP_OPS     4u
/* Outcomes of one death that are gone through; of those that have more, so many more are drawn. */
#define SYSTEMATIC_OUTCOMES_MAX 256u
#define SYSTEMATIC_DRAWN        64u

struct tally {
    uint64_t runs;
    uint64_t kills, powers; /* moments */
    uint64_t kill_outcomes, power_outcomes;
    uint64_t unfinished; /* deaths with more outcomes than are gone through */
    uint64_t errors, allocations;
    uint64_t hash;
};
void tally_add(struct tally *to, const struct tally *tally);
void tally_print(const struct tally *tally, FILE *to);

/* The workloads of up to so many operations, one after the other, the first without any; false: there are
 * fewer. Each operation is waited for, and who has died is started again. */
bool systematic_workload(struct history *history, uint64_t index, unsigned length_max);
/* Runs it as it is, and then with each strike. `history` is always the one that runs. */
void systematic_run(struct history *history, struct tally *tally,
                    uint64_t (*run)(const struct history *history, struct world_facts *ret_facts));

#endif
