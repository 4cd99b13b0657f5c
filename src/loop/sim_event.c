/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What will happen: a pairing heap, for it needs no memory of its own. */
#include "loop/sim_internal.h"

static bool event_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->time_ns != b->time_ns ? a->time_ns < b->time_ns : a->tie < b->tie;
}

static struct sim_event *events_meld(struct sim_event *a, struct sim_event *b)
{
    if (a == NULL || b == NULL)
        return a != NULL ? a : b;
    if (event_before(b, a)) {
        struct sim_event *swap = a;
        a = b;
        b = swap;
    }
    b->prev = a;
    b->next = a->child;
    if (b->next != NULL)
        b->next->prev = b;
    a->child = b;
    return a;
}

/* Makes one heap of a row of siblings: in pairs, then from the end backwards. */
static struct sim_event *events_merge_row(struct sim_event *first)
{
    struct sim_event *pairs = NULL;
    struct sim_event *result = NULL;

    while (first != NULL) {
        struct sim_event *second = first->next;
        struct sim_event *rest = second != NULL ? second->next : NULL;
        first->next = first->prev = NULL;
        if (second != NULL)
            second->next = second->prev = NULL;
        struct sim_event *pair = events_meld(first, second);
        pair->next = pairs;
        pairs = pair;
        first = rest;
    }
    while (pairs != NULL) {
        struct sim_event *rest = pairs->next;
        pairs->next = NULL;
        result = events_meld(result, pairs);
        pairs = rest;
    }
    return result;
}

void sim_event_arm(struct sim *sim, struct sim_event *event, uint64_t delay_ns)
{
    assert(!event->armed);
    event->armed = true;
    event->child = event->next = event->prev = NULL;
    event->time_ns = sim->now_ns + delay_ns;
    event->tie = sim_random(sim);
    sim->events = events_meld(sim->events, event);
}

void sim_event_cancel(struct sim *sim, struct sim_event *event)
{
    if (!event->armed)
        return;
    event->armed = false;
    struct sim_event *below = events_merge_row(event->child);
    if (event == sim->events) {
        sim->events = below;
        return;
    }
    if (event->prev->child == event)
        event->prev->child = event->next;
    else
        event->prev->next = event->next;
    if (event->next != NULL)
        event->next->prev = event->prev;
    sim->events = events_meld(sim->events, below);
}
