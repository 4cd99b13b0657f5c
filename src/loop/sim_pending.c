/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What sim.h promises and the simulator cannot do yet: each stops the program and says so. */
#include "loop/sim_internal.h"

#include "base/log.h"

#include <errno.h>

static void sim_pending(const char *what)
{
    log_error("sim", "the simulator has no %s() yet", what);
    abort();
}

void sim_set_trace(struct sim *sim UNUSED, sim_line_sink *sink UNUSED, void *arg UNUSED)
{
}

void sim_note(struct sim *sim UNUSED, const char *fmt UNUSED, ...)
{
}

void sim_process_kill(struct loop *loop UNUSED)
{
    sim_pending(__func__);
}

void sim_process_on_death(struct loop *loop UNUSED, void (*told)(void *arg) UNUSED,
                          void *arg UNUSED)
{
}

bool sim_process_is_dead(const struct loop *loop UNUSED)
{
    return false;
}

bool sim_process_is_gone(const struct loop *loop UNUSED)
{
    return false;
}

void sim_bury(struct sim *sim UNUSED)
{
}

void sim_process_stop(struct loop *loop UNUSED)
{
    sim_pending(__func__);
}

void sim_process_continue(struct loop *loop UNUSED)
{
    sim_pending(__func__);
}

int sim_host_power_cut(struct sim *sim UNUSED, const char *host UNUSED)
{
    sim_pending(__func__);
    return 0;
}

bool sim_host_is_up(struct sim *sim, const char *host)
{
    return sim_host_find(sim, host) != NULL;
}

void sim_set_chooser(struct sim *sim UNUSED, sim_chooser *chooser UNUSED, void *arg UNUSED)
{
    sim_pending(__func__);
}

int sim_bad_sectors(struct sim *sim UNUSED, const char *host UNUSED, const char *path UNUSED,
                    uint64_t offset_bytes UNUSED, uint64_t length_bytes UNUSED)
{
    sim_pending(__func__);
    return 0;
}

void sim_set_request_hook(struct sim *sim UNUSED, sim_request_hook *hook UNUSED, void *arg UNUSED)
{
    sim_pending(__func__);
}

int sim_link_set(struct sim *sim UNUSED, const char *from UNUSED, const char *to UNUSED,
                 const struct sim_link_options *options UNUSED)
{
    sim_pending(__func__);
    return 0;
}

int sim_link_break_after(struct sim *sim UNUSED, const char *from UNUSED, const char *to UNUSED,
                         uint64_t bytes UNUSED)
{
    sim_pending(__func__);
    return 0;
}

int sim_link_break(struct sim *sim UNUSED, const char *from UNUSED, const char *to UNUSED,
                   enum sim_side side UNUSED)
{
    sim_pending(__func__);
    return 0;
}
