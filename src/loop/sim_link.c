/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Ways from host to host, and what goes wrong on them. */
#include "loop/sim_net.h"

#include <errno.h>

struct sim_link *sim_link_find(struct sim *sim, struct sim_host *from, struct sim_host *to)
{
    LIST_FOR_EACH(way, &sim->links, struct sim_link, link) {
        if (way->from == from && way->to == to)
            return way;
    }
    struct sim_link *way = calloc(1, sizeof(*way));
    if (way == NULL)
        return NULL;
    way->sim = sim;
    way->from = from;
    way->to = to;
    way->break_after_bytes = UINT64_MAX;
    list_push_back(&sim->links, &way->link);
    return way;
}

/* By names. 0, -ENOENT or -ENOMEM. */
static int sim_link_named(struct sim *sim, const char *from_name, const char *to_name,
                          struct sim_link **ret_way)
{
    struct sim_host *from = sim_host_find(sim, from_name);
    struct sim_host *to = sim_host_find(sim, to_name);

    if (from == NULL || to == NULL)
        return -ENOENT;
    struct sim_link *way = sim_link_find(sim, from, to);
    if (way == NULL)
        return -ENOMEM;
    *ret_way = way;
    return 0;
}

static void sim_link_change(struct sim_link *way, const struct sim_link_options *options)
{
    sim_trace(way->sim, SIM_KIND_LINK, way->from->index << 32 | way->to->index, options->blocked,
              options->break_per_million);
    sim_tell(way->sim, way->from, NULL,
             "way to %s: %s, breaks %u in a million, refuses %u of a hundred", way->to->name,
             options->blocked ? "blocked" : "open", options->break_per_million,
             options->refuse_percent);
    way->options = *options;
    sim_conns_review(way->sim);
}

int sim_link_set(struct sim *sim, const char *from, const char *to,
                 const struct sim_link_options *options)
{
    struct sim_link *way;
    int result = sim_link_named(sim, from, to, &way);

    assert(options->break_per_million <= 1000000);
    assert(options->refuse_percent <= 100);
    if (result == 0)
        sim_link_change(way, options);
    return result;
}

int sim_net_cut(struct sim *sim, const char *host_a, const char *host_b, bool cut)
{
    struct sim_link *ways[2];
    int result = sim_link_named(sim, host_a, host_b, &ways[0]);

    if (result == 0)
        result = sim_link_named(sim, host_b, host_a, &ways[1]);
    if (result < 0 || ways[0] == ways[1])
        return result == -ENOMEM ? result : -EINVAL;
    for (unsigned i = 0; i < 2; i++) {
        struct sim_link_options options = ways[i]->options;
        options.blocked = cut;
        sim_link_change(ways[i], &options);
    }
    return 0;
}

int sim_link_break_after(struct sim *sim, const char *from, const char *to, uint64_t bytes)
{
    struct sim_link *way;
    int result = sim_link_named(sim, from, to, &way);

    if (result == 0)
        way->break_after_bytes = bytes;
    return result;
}

int sim_link_break(struct sim *sim, const char *from, const char *to, enum sim_side side)
{
    struct sim_link *way;
    int result = sim_link_named(sim, from, to, &way);

    if (result == 0)
        sim_conns_break(way, side);
    return result;
}

void sim_links_deinit(struct sim *sim)
{
    LIST_FOR_EACH_SAFE(way, &sim->links, struct sim_link, link) {
        list_remove(&way->link);
        free(way);
    }
}
