/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Events that one fault can raise thousands of times: at most one in a while of each type, and of
 * each value of the member that tells apart what they are of. The first goes out at once; of those
 * that follow within the while the last one is kept, and goes out at its end.
 */
#ifndef BLOCKSTEP_CONTROL_QMP_RATE_H
#define BLOCKSTEP_CONTROL_QMP_RATE_H

#include "control/qmp.h"

/* Types and values that are held back at the same time; beyond, events go out at once. */
#define QMP_MAX_RATES 256u

struct qmp_rates {
    struct loop *loop;
    struct list rates; /* struct rate */
    size_t count;
    /* Sends the line of an event; must not wait. */
    void (*send)(void *arg, const char *text, size_t length_bytes);
    void *arg;
};

/* Zeroed, with loop, send and arg set by the caller. */
void qmp_rates_init(struct qmp_rates *rates);
/* Sends the event, or keeps it. Takes the text. `data` may be NULL. */
void qmp_rates_offer(struct qmp_rates *rates, const struct qmp_event_type *type,
                     struct json_object *data, char *text, size_t length_bytes);
/* Sends what is kept, and forgets all. */
void qmp_rates_flush(struct qmp_rates *rates);

#endif
