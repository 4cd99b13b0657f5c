/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Power cuts: what goes with the power, and what the choices are that decide what is left. */
#include "loop/sim_internal.h"

#include <errno.h>

/* --- choices --- */

void sim_set_chooser(struct sim *sim, sim_chooser *chooser, void *arg)
{
    sim->chooser = chooser;
    sim->chooser_arg = arg;
    LIST_FOR_EACH(host, &sim->hosts, struct sim_host, link)
        host->space.ask = sim_unit_ask;
}

/* All, none, or some: where each unit is drawn by itself, whole files all but never survive. */
void sim_luck_draw(struct sim *sim, struct sim_luck *ret_luck)
{
    static const unsigned percents[] = {0, 10, 50, 90, 100, 100};

    *ret_luck = (struct sim_luck){.sim = sim};
    if (sim->chooser != NULL)
        return;
    ret_luck->percent = percents[sim_below(sim, ARRAY_LEN(percents))];
    ret_luck->in_order = sim_chance(sim, 50);
}

bool sim_choose(struct sim_luck *luck, const struct sim_choice_info *info)
{
    struct sim *sim = luck->sim;
    bool chosen;

    if (sim->chooser != NULL)
        chosen = sim->chooser(sim->chooser_arg, info);
    else
        chosen = !luck->over && sim_chance(sim, luck->percent);
    luck->over = luck->over || (luck->in_order && !chosen);
    return chosen;
}

/* --- files --- */

static struct sim_choice_info sim_choice_of(const struct sim_inode *inode, enum sim_choice choice,
                                            uint64_t offset_bytes)
{
    return (struct sim_choice_info){
        .choice = choice,
        .host = inode->host->name,
        .name = inode->name,
        .inode = inode->number,
        .offset_bytes = offset_bytes,
    };
}

bool sim_unit_ask(const struct sim_pages *pages, uint64_t offset_bytes, unsigned age)
{
    const struct sim_inode *inode = CONTAINER_OF(pages, const struct sim_inode, pages);
    struct sim *sim = inode->host->sim;
    struct sim_choice_info info = sim_choice_of(inode, SIM_CHOICE_UNIT, offset_bytes);

    info.age = age;
    bool stays = sim->chooser(sim->chooser_arg, &info);
    sim_trace(sim, SIM_KIND_POWER, inode->number, offset_bytes, (uint64_t)age << 1 | stays);
    sim_tell(sim, inode->host, NULL, "%s (inode %llu): unit at %llu is %s", inode->name,
             (unsigned long long)inode->number, (unsigned long long)offset_bytes,
             stays ? "as it was written" : "not as it was written last");
    return stays;
}

void sim_length_decide(struct sim_inode *inode)
{
    const struct sim_choice_info info = sim_choice_of(inode, SIM_CHOICE_LENGTH,
                                                      inode->length_bytes);
    struct sim *sim = inode->host->sim;

    if (!inode->length_open)
        return;
    inode->length_open = false;
    bool stays = sim->chooser(sim->chooser_arg, &info);
    if (!stays)
        sim_inode_truncate(inode, inode->other_bytes);
    sim_trace(sim, SIM_KIND_POWER, inode->number, inode->length_bytes, stays);
    sim_tell(sim, inode->host, NULL, "%s (inode %llu): has %llu bytes", inode->name,
             (unsigned long long)inode->number, (unsigned long long)inode->length_bytes);
}

/* Nothing is decided yet. */
static void sim_file_leave_open(struct sim_inode *inode)
{
    sim_length_decide(inode);
    sim_pages_leave_open(&inode->pages);
    inode->length_open = inode->length_bytes != inode->stable_bytes;
    inode->other_bytes = inode->stable_bytes;
    inode->stable_bytes = inode->least_bytes = inode->length_bytes;
}

struct sim_file_cut {
    struct sim_inode *inode;
    struct sim_luck luck;
    uint64_t kept, dropped;
};

static bool sim_unit_stays(void *arg, uint64_t offset_bytes)
{
    struct sim_file_cut *cut = arg;
    const struct sim_choice_info info = sim_choice_of(cut->inode, SIM_CHOICE_UNIT, offset_bytes);
    bool stays = sim_choose(&cut->luck, &info);

    cut->kept += stays;
    cut->dropped += !stays;
    return stays;
}

/* Its length now, or at the last sync; or, when the seed says so, how far a growing file had come. */
static void sim_length_cut(struct sim_file_cut *cut)
{
    struct sim_inode *inode = cut->inode;
    const struct sim_choice_info info = sim_choice_of(inode, SIM_CHOICE_LENGTH,
                                                      inode->length_bytes);
    uint64_t length_bytes = inode->length_bytes;

    if (length_bytes == inode->stable_bytes && length_bytes == inode->least_bytes)
        return;
    if (!sim_choose(&cut->luck, &info)) {
        length_bytes = inode->stable_bytes;
        if (sim_chance(cut->luck.sim, 50))
            length_bytes = inode->least_bytes +
                           sim_below(cut->luck.sim, inode->length_bytes - inode->least_bytes + 1);
    }
    sim_inode_truncate(inode, length_bytes);
}

static void sim_file_cut(struct sim_inode *inode)
{
    struct sim *sim = inode->host->sim;
    struct sim_file_cut cut = {.inode = inode};

    if (inode->kind != SIM_REGULAR)
        return;
    if (sim->chooser != NULL) {
        sim_file_leave_open(inode);
        return;
    }
    sim_luck_draw(sim, &cut.luck);
    sim_pages_cut(&inode->pages, sim_unit_stays, &cut);
    cut.luck.over = false;
    sim_length_cut(&cut);
    sim_pages_sync(&inode->pages);
    inode->stable_bytes = inode->least_bytes = inode->length_bytes;
    sim_trace(sim, SIM_KIND_POWER, inode->number, cut.kept << 32 | cut.dropped,
              inode->length_bytes);
    sim_tell(sim, inode->host, NULL, "%s (inode %llu): %llu units kept, %llu dropped, %llu bytes",
             inode->name, (unsigned long long)inode->number, (unsigned long long)cut.kept,
             (unsigned long long)cut.dropped, (unsigned long long)inode->length_bytes);
}

/* --- the host --- */

int sim_host_power_cut(struct sim *sim, const char *name)
{
    struct sim_host *host = sim_host_find(sim, name);

    if (host == NULL)
        return -ENOENT;
    if (host->down)
        return 0;
    sim_trace(sim, SIM_KIND_POWER, host->index, 0, 0);
    sim_tell(sim, host, NULL, "loses power");
    host->down = true;
    LIST_FOR_EACH(loop, &sim->loops, struct sim_loop, link) {
        if (loop->host == host && !loop->dead)
            sim_process_end(loop, NULL);
    }
    LIST_FOR_EACH_SAFE(remains, &host->remains, struct sim_remains, link)
        sim_remains_end(remains, true);
    sim_fs_cut(host);
    LIST_FOR_EACH(inode, &host->inodes, struct sim_inode, link)
        sim_file_cut(inode);
    return 0;
}

bool sim_host_is_up(struct sim *sim, const char *name)
{
    const struct sim_host *host = sim_host_find(sim, name);
    return host != NULL && !host->down;
}

void sim_host_power_on(struct sim_host *host)
{
    if (!host->down)
        return;
    host->down = false;
    sim_trace(host->sim, SIM_KIND_POWER, host->index, 1, 0);
    sim_tell(host->sim, host, NULL, "has power again");
    sim_conns_review(host->sim);
}
