/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "oracle.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CELL_ENTRIES     12u
#define CHANGE_MAX_VIEWS 3u
#define TEXT_BYTES       1500u

struct change {
    enum change_kind kind;
    enum change_result result;
    bool durable; /* FUA */
    bool dropped; /* by the kernel, since a flush failed: no later one makes it durable */
    uint8_t disk;
    uint32_t first, count;
    uint32_t begun, ended; /* ended: ORACLE_NEVER while it may still take effect */
    uint32_t settled;      /* it cannot take effect after this; 0: nobody knows */
    uint32_t in, out;      /* the cut of which it was seen to be a part, or not */
    struct view *views[CHANGE_MAX_VIEWS];
};

/* Whether a change came with a checkpoint, whose cut has decided about it. */
enum base {
    BASE_NO,
    BASE_CUT,    /* by the last cut */
    BASE_BEFORE, /* by one before, or by a power cut: it says nothing about the moment of the last */
};

/* One change that may be what a sector holds. */
struct entry {
    uint16_t change;
    uint8_t base;     /* enum base */
    uint8_t optional; /* under way at a checkpoint: it may have gone with the former content */
    uint32_t killed;  /* the moment since when it cannot be; 0: it can */
};

/* What may be the content of one sector. Entries that found no room are remembered as one: all changes
 * that had begun by a moment. */
struct cell {
    uint32_t count;
    uint32_t forgotten;        /* that moment; 0: none has been forgotten */
    uint32_t forgotten_killed; /* as `killed` of an entry */
    struct entry entries[CELL_ENTRIES];
};

/* One world that may be; a view has several while it is open whether something happened. */
struct state {
    struct list_link link;
    uint32_t born;
    uint32_t cut;            /* a number of its own for each checkpoint */
    uint32_t cut_lo, cut_hi; /* between these moments the cut was */
    bool refuted;
    struct cell cells[];
};

struct view {
    struct oracle *oracle;
    const char *whose;
    enum invariant invariant;
    struct list states, former; /* struct state */
    struct list reads;          /* struct view_read */
    struct view *twin;
    bool changing;           /* a checkpoint is under way */
    const struct view *next; /* where its content comes from; NULL: nobody knows */
    uint32_t next_since;
    uint32_t flushed[ORACLE_MAX_DISKS];
    bool blind; /* more may be than is kept: nothing is checked until the next checkpoint */
};

struct oracle {
    unsigned disks;
    uint32_t sectors;
    oracle_violated *violated;
    void *arg;
    uint32_t moment;
    uint32_t kept_since; /* what was content since then may yet become a checkpoint's */
    uint32_t cuts;
    uint32_t change_count;
    struct change *changes;
    struct list spare; /* struct state */
    struct oracle_stats stats;
};

static const struct {
    const char *name, *off;
} invariants[INVARIANT_COUNT] = {
    [I1_ACKNOWLEDGED_IS_READ] = {"I1 an acknowledged guest write is readable on P for ever", NULL},
    [I2_VIEW_IS_CHECKPOINT] = {"I2 S's view is the last checkpoint plus S's own writes", NULL},
    [I3_FAILOVER_CONTRACT] = {"I3 after a failover its contract holds from the first read", NULL},
    [I4_DIFFERENCE_IS_DIRTY] = {"I4 where P and S differ is dirty on P", "there is no dirty map"},
    [I5_RESYNC_MAKES_EQUAL] = {"I5 after a resync and a checkpoint P and S are identical", NULL},
    [I6_FLUSH_IS_ON_BOTH] = {"I6 a flush acknowledged on P is on S",
                             "there is no target 'latest' to show it"},
    [I7_FENCED] = {"I7 S's disk takes nothing from P after the fence", NULL},
    [I8_NOTHING_HANGS] = {"I8 nothing hangs, and all heals", NULL},
    [I9_BOUNDS] = {"I9 memory, files and queues stay within their bounds", NULL},
    [I2_LEVEL_HOST] = {"I2 also after a loss of power, of who says that he has level 'host'",
                       "nobody says so: there is no level above 'process'"},
    [I7_SPLIT_BRAIN] = {"I7 two nodes that both wrote alone are detected on contact",
                        "generations are recorded, and not compared yet"},
};

const char *invariant_name(enum invariant invariant)
{
    return invariants[invariant].name;
}

const char *invariant_off(enum invariant invariant)
{
    return invariants[invariant].off;
}

struct oracle *oracle_new(unsigned disks, uint32_t sectors, oracle_violated *violated, void *arg)
{
    struct oracle *oracle = calloc(1, sizeof(*oracle));

    if (oracle == NULL)
        return NULL;
    oracle->changes = calloc(ORACLE_MAX_CHANGES, sizeof(struct change));
    if (oracle->changes == NULL) {
        free(oracle);
        return NULL;
    }
    oracle->disks = disks;
    oracle->sectors = sectors;
    oracle->violated = violated;
    oracle->arg = arg;
    oracle->kept_since = ORACLE_NEVER;
    oracle->change_count = 1; /* the zeroes that were there at first */
    oracle->changes[0] = (struct change){
        .kind = CHANGE_ZERO, .result = CHANGE_DONE, .durable = true, .count = sectors};
    list_init(&oracle->spare);
    return oracle;
}

void oracle_free(struct oracle *oracle)
{
    if (oracle == NULL)
        return;
    LIST_FOR_EACH_SAFE(state, &oracle->spare, struct state, link)
        free(state);
    free(oracle->changes);
    free(oracle);
}

uint32_t oracle_now(struct oracle *oracle)
{
    return ++oracle->moment;
}

void oracle_keep_since(struct oracle *oracle, uint32_t moment)
{
    oracle->kept_since = moment;
}

struct oracle_stats oracle_stats(const struct oracle *oracle)
{
    return oracle->stats;
}

static size_t cell_count(const struct oracle *oracle)
{
    return (size_t)oracle->disks * oracle->sectors;
}

/* --- what a sector says --- */

static uint64_t stamp_of(uint32_t change, unsigned disk, uint32_t sector)
{
    return (uint64_t)change << 32 | (uint64_t)(disk + 1) << 24 | sector;
}

void change_fill(const struct oracle *oracle, uint32_t change, void *bytes)
{
    const struct change *c = &oracle->changes[change];
    uint8_t *to = bytes;

    for (uint32_t i = 0; i < c->count; i++) {
        uint64_t stamp = stamp_of(change, c->disk, c->first + i);
        for (unsigned k = 0; k < ORACLE_SECTOR_BYTES / sizeof(stamp); k++, to += sizeof(stamp))
            memcpy(to, &stamp, sizeof(stamp));
    }
}

/* The change whose bytes these are, 0 for zeroes, or -1. */
static int64_t stamp_read(const struct oracle *oracle, const uint8_t *bytes, unsigned disk,
                          uint32_t sector)
{
    uint64_t stamp;

    memcpy(&stamp, bytes, sizeof(stamp));
    if (memcmp(bytes, bytes + sizeof(stamp), ORACLE_SECTOR_BYTES - sizeof(stamp)) != 0)
        return -1;
    if (stamp == 0)
        return 0;
    uint32_t change = (uint32_t)(stamp >> 32);
    if (change == 0 || change >= oracle->change_count || stamp != stamp_of(change, disk, sector))
        return -1;
    return change;
}

static uint32_t value_of(const struct oracle *oracle, const struct entry *entry)
{
    return oracle->changes[entry->change].kind == CHANGE_WRITE ? entry->change : 0;
}

/* --- states --- */

static struct state *state_new(struct oracle *oracle)
{
    struct state *state = LIST_POP_FRONT(&oracle->spare, struct state, link);

    if (state == NULL)
        state = malloc(sizeof(*state) + cell_count(oracle) * sizeof(struct cell));
    assert(state != NULL);
    return state;
}

static struct state *state_clone(struct oracle *oracle, const struct state *from)
{
    struct state *state = state_new(oracle);

    memcpy(state, from, sizeof(*state) + cell_count(oracle) * sizeof(struct cell));
    state->link = (struct list_link){0};
    return state;
}

static void states_drop(struct oracle *oracle, struct list *states)
{
    list_splice_back(&oracle->spare, states);
}

static uint32_t list_length(const struct list *list)
{
    uint32_t length = 0;

    LIST_FOR_EACH(state, list, struct state, link)
        length++;
    return length;
}

struct view *view_new(struct oracle *oracle, const char *whose, enum invariant invariant)
{
    struct view *view = calloc(1, sizeof(*view));
    struct state *state;

    assert(view != NULL);
    view->oracle = oracle;
    view->whose = whose;
    view->invariant = invariant;
    list_init(&view->states);
    list_init(&view->former);
    list_init(&view->reads);
    state = state_new(oracle);
    memset(state, 0, sizeof(*state) + cell_count(oracle) * sizeof(struct cell));
    for (size_t i = 0; i < cell_count(oracle); i++)
        state->cells[i].count = 1;
    state->cut_hi = ORACLE_NEVER;
    list_push_back(&view->states, &state->link);
    return view;
}

void view_free(struct view *view)
{
    if (view == NULL)
        return;
    assert(list_empty(&view->reads));
    states_drop(view->oracle, &view->states);
    states_drop(view->oracle, &view->former);
    free(view);
}

void view_set_twin(struct view *view, struct view *twin)
{
    view->twin = twin;
}

void view_set_invariant(struct view *view, enum invariant invariant)
{
    view->invariant = invariant;
}

void view_copy(struct view *to, const struct view *from)
{
    states_drop(to->oracle, &to->states);
    states_drop(to->oracle, &to->former);
    LIST_FOR_EACH(state, &from->states, struct state, link)
        list_push_back(&to->states, &state_clone(to->oracle, state)->link);
    memcpy(to->flushed, from->flushed, sizeof(to->flushed));
    to->blind = from->blind;
    LIST_FOR_EACH(read, &to->reads, struct view_read, link)
        read->vague = true;
}

void view_forget_doubts(struct view *view)
{
    struct state *first;

    if (view->blind || list_length(&view->states) < 2)
        return;
    first = LIST_POP_FRONT(&view->states, struct state, link);
    states_drop(view->oracle, &view->states);
    list_push_back(&view->states, &first->link);
}

/* --- cells --- */

static struct cell *cell_at(struct oracle *oracle, struct state *state, unsigned disk,
                            uint32_t sector)
{
    return &state->cells[(size_t)disk * oracle->sectors + sector];
}

static uint32_t entry_ended(const struct oracle *oracle, const struct state *state,
                            const struct entry *entry)
{
    uint32_t ended = oracle->changes[entry->change].ended;

    return entry->base != BASE_NO ? MIN(ended, state->born) : ended;
}

static bool change_is_durable(const struct view *view, uint32_t change)
{
    const struct change *c = &view->oracle->changes[change];

    return c->result == CHANGE_DONE &&
           (c->durable || (!c->dropped && c->ended < view->flushed[c->disk]));
}

/* Something durable came after this moment: not even a power cut brings back what had ended by then. */
static bool cell_is_durable(const struct view *view, const struct cell *cell, uint32_t ended)
{
    for (uint32_t i = 0; i < cell->count; i++) {
        const struct entry *entry = &cell->entries[i];
        const struct change *change = &view->oracle->changes[entry->change];
        if (!entry->optional && entry->base == BASE_NO && change->kind != CHANGE_DISCARD &&
            change_is_durable(view, entry->change) && change->begun > ended)
            return true;
    }
    return false;
}

static bool entry_is_gone(const struct view *view, const struct state *state,
                          const struct cell *cell, const struct entry *entry)
{
    return entry->killed != 0 &&
           cell_is_durable(view, cell, entry_ended(view->oracle, state, entry));
}

static bool forgotten_is_alive(const struct cell *cell)
{
    return cell->forgotten != 0 && cell->forgotten_killed == 0;
}

static bool forgotten_is_gone(const struct view *view, const struct cell *cell)
{
    return cell->forgotten_killed != 0 && cell_is_durable(view, cell, cell->forgotten);
}

/* What was killed before this moment nobody asks for. */
static uint32_t oldest_question(const struct view *view)
{
    uint32_t oldest = view->oracle->kept_since;

    LIST_FOR_EACH(read, &view->reads, const struct view_read, link)
        oldest = MIN(oldest, read->begun);
    return oldest;
}

static void cell_remove(struct cell *cell, uint32_t index)
{
    cell->entries[index] = cell->entries[--cell->count];
}

static void cell_purge(const struct view *view, const struct state *state, struct cell *cell)
{
    uint32_t oldest = oldest_question(view);

    for (uint32_t i = cell->count; i-- > 0;) {
        if (cell->entries[i].killed < oldest && entry_is_gone(view, state, cell, &cell->entries[i]))
            cell_remove(cell, i);
    }
    if (cell->forgotten_killed < oldest && forgotten_is_gone(view, cell))
        cell->forgotten = cell->forgotten_killed = 0;
}

static void cell_forget(struct cell *cell, uint32_t ended, uint32_t killed)
{
    bool alive = killed == 0 || forgotten_is_alive(cell);

    cell->forgotten = MAX(cell->forgotten, MAX(ended, 1)); /* 0 would be: none */
    cell->forgotten_killed = alive ? 0 : MAX(cell->forgotten_killed, killed);
}

/* The entry that ended first makes room: dead ones if there are. */
static void cell_make_room(struct oracle *oracle, const struct state *state, struct cell *cell)
{
    uint32_t victim = CELL_ENTRIES, victim_ended = ORACLE_NEVER;
    bool victim_dead = false;

    for (uint32_t i = 0; i < cell->count; i++) {
        uint32_t ended = entry_ended(oracle, state, &cell->entries[i]);
        bool dead = cell->entries[i].killed != 0;
        if (victim == CELL_ENTRIES || (dead && !victim_dead) ||
            (dead == victim_dead && ended < victim_ended)) {
            victim = i;
            victim_ended = ended;
            victim_dead = dead;
        }
    }
    oracle->stats.wild_cells += !victim_dead;
    cell_forget(cell, victim_ended, cell->entries[victim].killed);
    cell_remove(cell, victim);
}

static struct entry *cell_add(const struct view *view, const struct state *state, struct cell *cell,
                              uint32_t change)
{
    if (cell->count > CELL_ENTRIES / 2)
        cell_purge(view, state, cell);
    if (cell->count == CELL_ENTRIES)
        cell_make_room(view->oracle, state, cell);
    struct entry *entry = &cell->entries[cell->count++];
    *entry = (struct entry){.change = (uint16_t)change};
    return entry;
}

/* --- changes --- */

uint32_t change_begin(struct oracle *oracle, enum change_kind kind, unsigned disk, uint32_t first,
                      uint32_t count, bool durable, struct view *const *views, unsigned view_count)
{
    uint32_t id = oracle->change_count;
    struct change *change = &oracle->changes[id];

    if (id == ORACLE_MAX_CHANGES)
        return 0;
    assert(first + count <= oracle->sectors && disk < oracle->disks);
    assert(view_count <= CHANGE_MAX_VIEWS);
    oracle->change_count++;
    *change = (struct change){.kind = kind,
                              .durable = durable,
                              .disk = (uint8_t)disk,
                              .first = first,
                              .count = count,
                              .begun = oracle_now(oracle),
                              .ended = ORACLE_NEVER};
    for (unsigned i = 0; i < view_count; i++) {
        change->views[i] = views[i];
        if (views[i] == NULL)
            continue;
        LIST_FOR_EACH(state, &views[i]->states, struct state, link)
            for (uint32_t k = 0; k < count; k++)
                cell_add(views[i], state, cell_at(oracle, state, disk, first + k), id);
    }
    return id;
}

static bool cell_holds(const struct cell *cell, uint32_t change)
{
    for (uint32_t i = 0; i < cell->count; i++) {
        if (cell->entries[i].change == change)
            return !cell->entries[i].optional && cell->entries[i].base == BASE_NO;
    }
    return false;
}

static void change_took_effect(const struct view *view, struct state *state, const struct change *c,
                               uint32_t id)
{
    struct oracle *oracle = view->oracle;

    for (uint32_t k = 0; k < c->count; k++) {
        struct cell *cell = cell_at(oracle, state, c->disk, c->first + k);
        if (!cell_holds(cell, id))
            continue;
        for (uint32_t i = 0; i < cell->count; i++) {
            struct entry *entry = &cell->entries[i];
            if (entry->killed == 0 && entry->change != id &&
                entry_ended(oracle, state, entry) < c->begun)
                entry->killed = c->ended;
        }
        if (forgotten_is_alive(cell) && cell->forgotten < c->begun)
            cell->forgotten_killed = c->ended;
    }
}

void change_end(struct oracle *oracle, uint32_t id, enum change_result result)
{
    struct change *change = &oracle->changes[id];

    assert(change->result == CHANGE_PENDING);
    change->result = result;
    change->ended = oracle_now(oracle);
    if (result == CHANGE_LOST)
        change->ended = change->settled != 0 ? change->settled : ORACLE_NEVER;
    /* After a discard a sector may be zero, or what it was. */
    if (result != CHANGE_DONE || change->kind == CHANGE_DISCARD)
        return;
    for (unsigned i = 0; i < CHANGE_MAX_VIEWS; i++) {
        if (change->views[i] == NULL)
            continue;
        LIST_FOR_EACH(state, &change->views[i]->states, struct state, link)
            change_took_effect(change->views[i], state, change, id);
    }
}

void view_flushed_disk(struct view *view, unsigned disk, uint32_t begun)
{
    view->flushed[disk] = MAX(view->flushed[disk], begun);
}

void view_flush_failed(struct view *view, unsigned disk)
{
    struct oracle *oracle = view->oracle;

    for (uint32_t id = 1; id < oracle->change_count; id++) {
        struct change *change = &oracle->changes[id];
        if (change->views[0] == view && change->disk == disk && !change_is_durable(view, id))
            change->dropped = true;
    }
}

bool view_was_flushed(const struct view *view, uint32_t since)
{
    for (unsigned disk = 0; disk < view->oracle->disks; disk++) {
        if (view->flushed[disk] > since)
            return true;
    }
    return false;
}

void view_settle(struct view *view, uint32_t until)
{
    struct oracle *oracle = view->oracle;
    uint32_t now = oracle_now(oracle);

    for (uint32_t id = 1; id < oracle->change_count; id++) {
        struct change *change = &oracle->changes[id];
        if (change->views[0] != view || change->settled != 0 || change->begun >= until)
            continue;
        if (change->result == CHANGE_PENDING || change->result == CHANGE_LOST)
            change->settled = now;
        if (change->result == CHANGE_LOST)
            change->ended = now;
    }
}

void view_power_cut(struct view *view)
{
    struct oracle *oracle = view->oracle;
    uint32_t now = oracle_now(oracle);

    /* What is on its way to a reader tells of before. */
    LIST_FOR_EACH(read, &view->reads, struct view_read, link)
        read->vague = true;
    LIST_FOR_EACH(state, &view->states, struct state, link) {
        for (size_t i = 0; i < cell_count(oracle); i++) {
            struct cell *cell = &state->cells[i];
            cell_purge(view, state, cell);
            for (uint32_t k = 0; k < cell->count; k++) {
                struct entry *entry = &cell->entries[k];
                if (entry->killed != 0 && !entry_is_gone(view, state, cell, entry))
                    entry->killed = 0;
            }
            if (!forgotten_is_gone(view, cell))
                cell->forgotten_killed = 0;
            cell->forgotten = MIN(cell->forgotten, now);
            for (uint32_t k = 0; k < cell->count; k++) {
                cell->entries[k].base = BASE_BEFORE;
                cell->entries[k].optional = 0;
            }
        }
        state->born = now;
    }
}

/* --- checkpoints --- */

void view_checkpoint_begin(struct view *view, const struct view *next, uint32_t since)
{
    view->changing = true;
    view->next = next;
    view->next_since = since;
    if (list_empty(&view->reads)) /* else one may be under way since the checkpoint before */
        states_drop(view->oracle, &view->former);
    LIST_FOR_EACH(read, &view->reads, struct view_read, link)
        read->vague = true;
}

void view_blind(struct view *view)
{
    view->blind = true;
}

void view_checkpoint_failed(struct view *view)
{
    view->changing = false;
}

static void cell_cut(const struct cell *cell, struct cell *to, uint32_t since, uint32_t now)
{
    *to = (struct cell){.count = 0};
    if (cell->forgotten_killed == 0 || cell->forgotten_killed > since)
        to->forgotten = MIN(cell->forgotten, now);
    for (uint32_t i = 0; i < cell->count; i++) {
        const struct entry *entry = &cell->entries[i];
        if (entry->killed != 0 && entry->killed <= since)
            continue;
        bool before = entry->base != BASE_NO || entry->optional;
        to->entries[to->count++] = (struct entry){.change = entry->change,
                                                  .base = before ? BASE_BEFORE : BASE_CUT};
    }
}

/* What the user of the view had under way may come after the cut, and before. */
static void state_add_own(struct view *view, struct state *state, uint32_t since)
{
    struct oracle *oracle = view->oracle;

    for (uint32_t id = 1; id < oracle->change_count; id++) {
        const struct change *change = &oracle->changes[id];
        if (change->views[0] != view || change->ended < since)
            continue;
        for (uint32_t k = 0; k < change->count; k++) {
            struct cell *cell = cell_at(oracle, state, change->disk, change->first + k);
            cell_add(view, state, cell, id)->optional = 1;
        }
    }
}

static struct state *state_cut(struct view *to, const struct state *state, uint32_t since)
{
    struct oracle *oracle = to->oracle;
    struct state *cut = state_new(oracle);

    cut->link = (struct list_link){0};
    cut->cut = ++oracle->cuts;
    cut->cut_lo = since;
    cut->born = cut->cut_hi = oracle_now(oracle);
    cut->refuted = false;
    for (size_t i = 0; i < cell_count(oracle); i++)
        cell_cut(&state->cells[i], &cut->cells[i], since, cut->born);
    state_add_own(to, cut, since);
    return cut;
}

void view_checkpoint(struct view *to, const struct view *from, uint32_t since, bool certain)
{
    struct oracle *oracle = to->oracle;
    struct list cuts = LIST_INIT(cuts);

    LIST_FOR_EACH(state, &from->states, struct state, link)
        list_push_back(&cuts, &state_cut(to, state, since)->link);
    if (certain)
        list_splice_back(&to->former, &to->states);
    to->blind = from->blind || (to->blind && !certain);
    list_splice_back(&to->states, &cuts);
    oracle->stats.worlds_peak = MAX(oracle->stats.worlds_peak, list_length(&to->states));
    if (list_length(&to->states) > ORACLE_WORLDS_MAX) {
        to->blind = true;
        while (list_length(&to->states) > 1)
            list_push_back(&oracle->spare, &LIST_POP_FRONT(&to->states, struct state, link)->link);
    }
    memcpy(to->flushed, from->flushed, sizeof(to->flushed));
    to->changing = false;
    LIST_FOR_EACH(read, &to->reads, struct view_read, link)
        read->vague = true;
}

/* --- reading --- */

struct text {
    char bytes[TEXT_BYTES];
    size_t length;
};

static void text_add(struct text *text, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void text_add(struct text *text, const char *fmt, ...)
{
    size_t room = sizeof(text->bytes) - text->length;
    va_list args;

    va_start(args, fmt);
    int length = vsnprintf(text->bytes + text->length, room, fmt, args);
    va_end(args);
    if (length > 0)
        text->length += MIN((size_t)length, room - 1);
}

static void text_add_change(const struct oracle *oracle, struct text *text, uint32_t id)
{
    static const char *const kinds[] = {"write", "zero", "discard"};
    static const char *const results[] = {"pending", "done", "failed", "lost"};
    const struct change *c = &oracle->changes[id];

    if (id == 0)
        text_add(text, "the first zeroes");
    else
        text_add(text, "%s #%" PRIu32 " (%s, sectors %" PRIu32 "+%" PRIu32 ", at %" PRIu32 ")",
                 kinds[c->kind], id, results[c->result], c->first, c->count, c->begun);
}

static void text_add_cell(const struct oracle *oracle, struct text *text, const struct cell *cell)
{
    for (uint32_t i = 0; i < cell->count; i++) {
        const struct entry *entry = &cell->entries[i];
        text_add(text, "\n    %s%s%s", entry->killed != 0 ? "not " : "",
                 entry->base ? "checkpointed " : "", entry->optional ? "perhaps " : "");
        text_add_change(oracle, text, entry->change);
        if (entry->killed != 0)
            text_add(text, ", overwritten at %" PRIu32, entry->killed);
    }
}

static void tell_illegal(struct view *view, unsigned disk, uint32_t sector, int64_t value,
                         uint32_t begun, const char *why)
{
    struct oracle *oracle = view->oracle;
    struct text text = {.length = 0};

    text_add(&text, "%s, disk %u, sector %" PRIu32 ", read since %" PRIu32 ", is ", view->whose,
             disk, sector, begun);
    if (value < 0)
        text_add(&text, "no sector that anybody wrote there");
    else if (value == 0)
        text_add(&text, "zero");
    else
        text_add_change(oracle, &text, (uint32_t)value);
    text_add(&text, ": %s. It may be:", why);
    LIST_FOR_EACH(state, &view->states, struct state, link)
        text_add_cell(oracle, &text, cell_at(oracle, state, disk, sector));
    oracle->violated(oracle->arg, view->invariant, text.bytes);
}

static bool entry_is_legal(const struct oracle *oracle, const struct entry *entry, int64_t value,
                           uint32_t begun)
{
    return (entry->killed == 0 || entry->killed > begun) && value_of(oracle, entry) == value;
}

/* It may be what nobody remembers, for a read that began then. */
static bool forgotten_is_legal(const struct cell *cell, uint32_t begun)
{
    return cell->forgotten != 0 && (cell->forgotten_killed == 0 || cell->forgotten_killed > begun);
}

static bool cell_is_legal(const struct oracle *oracle, const struct cell *cell, int64_t value,
                          uint32_t begun)
{
    if (forgotten_is_legal(cell, begun) && oracle->changes[value].begun <= cell->forgotten)
        return true;
    for (uint32_t i = 0; i < cell->count; i++) {
        if (entry_is_legal(oracle, &cell->entries[i], value, begun))
            return true;
    }
    return false;
}

static bool states_allow(struct oracle *oracle, const struct list *states, unsigned disk,
                         uint32_t sector, int64_t value, uint32_t begun)
{
    LIST_FOR_EACH(state, states, struct state, link) {
        if (cell_is_legal(oracle, cell_at(oracle, state, disk, sector), value, begun))
            return true;
    }
    return false;
}

/* The cut was before or after this change, on all its sectors; all cuts of one moment agree. */
static bool cut_note(struct oracle *oracle, struct state *state, uint32_t id, bool inside,
                     bool base)
{
    struct change *change = &oracle->changes[id];

    if (id == 0 || change->kind == CHANGE_DISCARD)
        return true;
    if (inside) {
        change->in = state->cut;
        if (base)
            state->cut_lo = MAX(state->cut_lo, change->begun);
    } else {
        if (change->result != CHANGE_DONE)
            return true;
        change->out = state->cut;
        if (base)
            state->cut_hi = MIN(state->cut_hi, change->ended);
    }
    if (change->result == CHANGE_DONE && change->in == change->out)
        return false;
    return state->cut_lo <= state->cut_hi;
}

static bool cut_learn(struct oracle *oracle, struct state *state, const struct cell *cell,
                      const struct entry *seen, uint32_t begun)
{
    bool agrees = true;

    if (seen->base == BASE_NO && !seen->optional)
        return true;
    if (seen->base != BASE_BEFORE)
        agrees = cut_note(oracle, state, seen->change, true, seen->base == BASE_CUT);
    for (uint32_t i = 0; agrees && i < cell->count; i++) {
        const struct entry *other = &cell->entries[i];
        if (other == seen || seen->base == BASE_NO || other->killed != 0)
            continue;
        /* What overlaps in time may have come in either order, also around the cut before. */
        if (other->base == BASE_CUT &&
            oracle->changes[other->change].begun > oracle->changes[seen->change].ended)
            agrees = cut_note(oracle, state, other->change, false, true);
        else if (other->optional && oracle->changes[other->change].ended < begun)
            agrees = cut_note(oracle, state, other->change, false, false);
    }
    return agrees;
}

/* Who has seen it will not see what came before. False: it contradicts what else was seen of the
 * same cut. */
static bool cell_learn(struct oracle *oracle, struct state *state, struct cell *cell, int64_t value,
                       uint32_t begun)
{
    struct entry *seen = NULL;
    unsigned matches = 0;

    for (uint32_t i = 0; i < cell->count; i++) {
        if (entry_is_legal(oracle, &cell->entries[i], value, begun)) {
            seen = &cell->entries[i];
            matches++;
        }
    }
    if (matches != 1 || (value == 0 && forgotten_is_legal(cell, begun)))
        seen = NULL;
    if (forgotten_is_alive(cell) && cell->forgotten < begun && matches > 0)
        cell->forgotten_killed = oracle->moment;
    bool agrees = seen == NULL || cut_learn(oracle, state, cell, seen, begun);
    uint32_t seen_begun = seen != NULL && seen->base == BASE_NO
                              ? oracle->changes[seen->change].begun
                              : 0;
    for (uint32_t i = 0; i < cell->count; i++) {
        struct entry *entry = &cell->entries[i];
        uint32_t ended = entry_ended(oracle, state, entry);
        if (entry->killed == 0 && value_of(oracle, entry) != value &&
            (ended < begun || ended < seen_begun))
            entry->killed = oracle->moment;
    }
    return agrees;
}

/* Of changes that overlap in time the last one on one disk is the last one on the other. */
static void twin_learn(const struct view *view, unsigned disk, uint32_t sector, int64_t value,
                       uint32_t begun)
{
    struct oracle *oracle = view->oracle;

    if (view->twin == NULL || value <= 0 || oracle->changes[value].result != CHANGE_DONE)
        return;
    LIST_FOR_EACH(state, &view->twin->states, struct state, link) {
        struct cell *cell = cell_at(oracle, state, disk, sector);
        if (!cell_holds(cell, (uint32_t)value))
            continue;
        for (uint32_t i = 0; i < cell->count; i++) {
            struct entry *entry = &cell->entries[i];
            const struct change *change = &oracle->changes[entry->change];
            if (entry->killed == 0 && entry->change != value && entry->base == BASE_NO &&
                change->result == CHANGE_DONE && change->ended < begun)
                entry->killed = oracle->moment;
        }
    }
}

static void check_vague(struct view_read *read, unsigned disk, uint32_t sector, int64_t value)
{
    struct view *view = read->view;
    struct oracle *oracle = view->oracle;

    if (states_allow(oracle, &view->states, disk, sector, value, read->begun) ||
        states_allow(oracle, &view->former, disk, sector, value, read->begun) ||
        (view->changing &&
         (view->next == NULL || states_allow(oracle, &view->next->states, disk, sector, value,
                                             MIN(read->begun, view->next_since)))))
        return;
    tell_illegal(view, disk, sector, value, read->begun, "neither before nor after the checkpoint");
}

static void check_sector(struct view_read *read, unsigned disk, uint32_t sector, int64_t value)
{
    struct view *view = read->view;
    struct oracle *oracle = view->oracle;
    const char *why = "it cannot be here";
    unsigned left = 0;

    LIST_FOR_EACH(state, &view->states, struct state, link) {
        struct cell *cell = cell_at(oracle, state, disk, sector);
        state->refuted = !cell_is_legal(oracle, cell, value, read->begun);
        if (!state->refuted && !cell_learn(oracle, state, cell, value, read->begun)) {
            state->refuted = true;
            why = "the checkpoint is not of one moment on all sectors and disks";
        }
        left += !state->refuted;
    }
    if (left == 0) {
        tell_illegal(view, disk, sector, value, read->begun, why);
        return;
    }
    LIST_FOR_EACH_SAFE(state, &view->states, struct state, link) {
        if (!state->refuted)
            continue;
        list_remove(&state->link);
        list_push_back(&oracle->spare, &state->link);
    }
}

void view_read_begin(struct view *view, struct view_read *read)
{
    *read = (struct view_read){
        .view = view, .begun = oracle_now(view->oracle), .vague = view->changing};
    list_push_back(&view->reads, &read->link);
}

void view_read_end(struct view_read *read, unsigned disk, uint32_t first, uint32_t count,
                   const void *bytes)
{
    struct view *view = read->view;
    struct oracle *oracle = view->oracle;
    const uint8_t *from = bytes;

    (void)oracle_now(oracle);
    list_remove(&read->link);
    if (from == NULL || view->blind)
        return;
    for (uint32_t i = 0; i < count; i++, from += ORACLE_SECTOR_BYTES) {
        int64_t value = stamp_read(oracle, from, disk, first + i);
        oracle->stats.sectors_checked++;
        if (value < 0)
            tell_illegal(view, disk, first + i, value, read->begun, "half or foreign");
        else if (!read->vague)
            twin_learn(view, disk, first + i, value, read->begun);
        if (value < 0)
            continue;
        if (read->vague)
            check_vague(read, disk, first + i, value);
        else
            check_sector(read, disk, first + i, value);
    }
}
