/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/sim_pages.h"

#include "loop/sim_internal.h"

#include <errno.h>
#include <string.h>

#define FANOUT_BITS     9u
#define FANOUT          (1u << FANOUT_BITS)
#define LEVELS          4u /* 36 bits of page number: SIM_FILE_MAX_BYTES */
#define UNITS           (SIM_PAGE_BYTES / SIM_UNIT_BYTES)
#define ALL_UNITS       ((1u << UNITS) - 1)
/* Of units that are written again before a sync: those whose former bytes the kernel had written. */
#define WRITTEN_PERCENT 25u

struct sim_pages_node {
    void *slots[FANOUT]; /* nodes; on the lowest level struct sim_page, NULL for a durable hole */
};

/* What some units of a page were before they were written again. */
struct sim_version {
    struct sim_version *older;
    uint8_t units;
    uint8_t bytes[SIM_PAGE_BYTES];
};

struct sim_page {
    struct list_link link; /* pages->unsynced */
    uint64_t number;
    uint8_t *bytes;           /* what reads see; NULL: zeroes */
    uint8_t *stable;          /* what a power cut falls back to, while unsynced; NULL: zeroes */
    uint8_t dirty, lost, bad; /* units, a bit each */
    uint8_t open;             /* a power cut has left them, and nobody has read them since */
    bool taken, stable_taken; /* whether it takes space */
    /* With space->ask: what dirty units were since the last sync, and what open ones may be instead. A
     * unit is never both. */
    struct sim_version *versions;
};

static unsigned slot_index(uint64_t page, unsigned level)
{
    return (page >> (level * FANOUT_BITS)) & (FANOUT - 1);
}

/* The slot of a page, NULL when there is none. *ret_end: the first page behind what is missing. */
static struct sim_page **slot_find(const struct sim_pages *pages, uint64_t page, uint64_t *ret_end)
{
    struct sim_pages_node *node = pages->root;

    *ret_end = UINT64_MAX;
    for (unsigned level = LEVELS - 1; node != NULL; level--) {
        void **slot = &node->slots[slot_index(page, level)];
        if (level == 0)
            return (struct sim_page **)slot;
        *ret_end = ((page >> (level * FANOUT_BITS)) + 1) << (level * FANOUT_BITS);
        node = *slot;
    }
    return NULL;
}

static struct sim_page **slot_make(struct sim_pages *pages, uint64_t page)
{
    void **slot = (void **)&pages->root;

    for (unsigned level = LEVELS; level-- > 0;) {
        if (*slot == NULL)
            *slot = calloc(1, sizeof(struct sim_pages_node));
        if (*slot == NULL)
            return NULL;
        slot = &((struct sim_pages_node *)*slot)->slots[slot_index(page, level)];
    }
    return (struct sim_page **)slot;
}

static struct sim_page *page_make(struct sim_pages *pages, uint64_t number)
{
    struct sim_page **slot = slot_make(pages, number);

    if (slot != NULL && *slot == NULL) {
        *slot = calloc(1, sizeof(**slot));
        if (*slot != NULL)
            (*slot)->number = number;
    }
    return slot != NULL ? *slot : NULL;
}

static bool page_has_data(struct sim_page *const *slot)
{
    return slot != NULL && *slot != NULL && (*slot)->bytes != NULL;
}

static bool page_is_unsynced(const struct sim_page *page)
{
    return (page->dirty | page->lost) != 0;
}

/* --- space --- */

static int page_take(struct sim_pages *pages, struct sim_page *page)
{
    struct sim_space *space = pages->space;

    if (page->taken)
        return 0;
    if (pages->counted && space->limit_bytes != 0 &&
        space->used_bytes + SIM_PAGE_BYTES > space->limit_bytes)
        return -ENOSPC;
    page->taken = true;
    pages->taken++;
    if (pages->counted)
        space->used_bytes += SIM_PAGE_BYTES;
    return 0;
}

static void page_give(struct sim_pages *pages, struct sim_page *page)
{
    if (!page->taken)
        return;
    page->taken = false;
    pages->taken--;
    if (pages->counted)
        pages->space->used_bytes -= SIM_PAGE_BYTES;
}

void sim_pages_count(struct sim_pages *pages, bool counted)
{
    if (counted == pages->counted)
        return;
    pages->counted = counted;
    if (counted)
        pages->space->used_bytes += pages->taken * SIM_PAGE_BYTES;
    else
        pages->space->used_bytes -= pages->taken * SIM_PAGE_BYTES;
}

/* --- what is not durable --- */

static void unit_copy(uint8_t *to, const uint8_t *from, unsigned unit)
{
    if (from != NULL)
        memcpy(to + (size_t)unit * SIM_UNIT_BYTES, from + (size_t)unit * SIM_UNIT_BYTES,
               SIM_UNIT_BYTES);
    else
        memset(to + (size_t)unit * SIM_UNIT_BYTES, 0, SIM_UNIT_BYTES);
}

static bool units_copy(uint8_t **to, const uint8_t *from, unsigned units)
{
    if (*to == NULL && from == NULL)
        return true;
    if (*to == NULL)
        *to = calloc(1, SIM_PAGE_BYTES);
    for (unsigned unit = 0; *to != NULL && unit < UNITS; unit++) {
        if (units & 1u << unit)
            unit_copy(*to, from, unit);
    }
    return *to != NULL;
}

/* --- what is decided when it is read --- */

static void version_add(struct sim_version **at, unsigned units, const uint8_t *bytes)
{
    struct sim_version *version = calloc(1, sizeof(*version));

    if (version == NULL)
        return; /* memory is out: one choice less */
    version->units = (uint8_t)units;
    if (bytes != NULL)
        memcpy(version->bytes, bytes, SIM_PAGE_BYTES);
    version->older = *at;
    *at = version;
}

static void versions_forget(struct sim_page *page, unsigned units)
{
    for (struct sim_version **at = &page->versions; *at != NULL;) {
        struct sim_version *version = *at;
        version->units &= (uint8_t)~units;
        if (version->units != 0) {
            at = &version->older;
            continue;
        }
        *at = version->older;
        free(version);
    }
}

/* It takes space beyond any limit: it has been there. */
static void page_take_back(struct sim_pages *pages, struct sim_page *page)
{
    if (page->taken)
        return;
    page->taken = true;
    pages->taken++;
    if (pages->counted)
        pages->space->used_bytes += SIM_PAGE_BYTES;
}

static bool unit_differs(const struct sim_version *version, const uint8_t *bytes, unsigned unit)
{
    static const uint8_t zeroes[SIM_UNIT_BYTES];
    size_t at = (size_t)unit * SIM_UNIT_BYTES;

    return (version->units & 1u << unit) != 0 &&
           memcmp(version->bytes + at, bytes != NULL ? bytes + at : zeroes, SIM_UNIT_BYTES) != 0;
}

/* As it is, or else as it was before, and so on; what is alike is not asked about. */
static void unit_decide(struct sim_pages *pages, struct sim_page *page, unsigned unit)
{
    uint64_t offset_bytes = page->number * SIM_PAGE_BYTES + unit * SIM_UNIT_BYTES;
    const uint8_t *chosen = page->bytes;
    unsigned age = 0;

    page->open &= (uint8_t) ~(1u << unit);
    for (const struct sim_version *version = page->versions; version != NULL;
         version = version->older) {
        if (!unit_differs(version, chosen, unit))
            continue;
        if (pages->space->ask(pages, offset_bytes, age++))
            break;
        chosen = version->bytes;
    }
    if (chosen != page->bytes && units_copy(&page->bytes, chosen, 1u << unit))
        page_take_back(pages, page);
    versions_forget(page, 1u << unit);
}

static void page_decide(struct sim_pages *pages, struct sim_page *page, unsigned units)
{
    for (unsigned unit = 0; (page->open & units) != 0 && unit < UNITS; unit++) {
        if ((page->open & units & 1u << unit) != 0)
            unit_decide(pages, page, unit);
    }
}

/* Nobody will ever know. */
static void page_decide_unseen(struct sim_page *page, unsigned units)
{
    if ((page->open & units) == 0)
        return;
    versions_forget(page, page->open & units);
    page->open &= (uint8_t)~units;
}

/* Units that are about to change: what they fall back to is kept. False: memory is out. */
static bool page_change(struct sim_pages *pages, struct sim_page *page, unsigned units,
                        bool was_taken)
{
    unsigned again = page->dirty & units;

    page_decide_unseen(page, units);
    if (!page_is_unsynced(page)) {
        assert(page->stable == NULL);
        if (page->bytes != NULL && (page->stable = malloc(SIM_PAGE_BYTES)) == NULL)
            return false;
        if (page->bytes != NULL)
            memcpy(page->stable, page->bytes, SIM_PAGE_BYTES);
        page->stable_taken = was_taken;
        list_push_back(&pages->unsynced, &page->link);
    } else if (again != 0 && pages->space->ask != NULL) {
        version_add(&page->versions, again, page->bytes);
    } else if (again != 0 && sim_random_from(&pages->space->random_state) % 100 < WRITTEN_PERCENT) {
        if (!units_copy(&page->stable, page->bytes, again))
            return false;
        page->stable_taken = was_taken;
    }
    page->dirty |= units;
    page->lost &= ~units;
    return true;
}

/* It is what it falls back to. */
static void page_settle(struct sim_page *page)
{
    free(page->stable);
    page->stable = NULL;
    page->dirty = page->lost = 0;
    list_remove(&page->link);
}

static void page_free_if_hole(struct sim_pages *pages, struct sim_page *page)
{
    uint64_t missing_end;

    if (page->taken || page->bytes != NULL || page->bad != 0 || page->open != 0 ||
        page_is_unsynced(page))
        return;
    *slot_find(pages, page->number, &missing_end) = NULL;
    free(page);
}

void sim_pages_sync(struct sim_pages *pages)
{
    LIST_FOR_EACH_SAFE(page, &pages->unsynced, struct sim_page, link) {
        versions_forget(page, page->dirty);
        if (page->lost == 0) {
            page_settle(page);
            page_free_if_hole(pages, page);
        } else if (units_copy(&page->stable, page->bytes, page->dirty)) {
            page->dirty = 0;
            page->stable_taken = page->stable_taken || page->taken;
        }
    }
}

void sim_pages_lose(struct sim_pages *pages)
{
    LIST_FOR_EACH(page, &pages->unsynced, struct sim_page, link) {
        page->lost |= page->dirty;
        page->dirty = 0;
    }
}

static void page_cut(struct sim_pages *pages, struct sim_page *page, unsigned dropped)
{
    unsigned unsynced = page->dirty | page->lost;

    if (dropped != 0 && !units_copy(&page->bytes, page->stable, dropped))
        return; /* memory is out: it stays as written */
    if (dropped == unsynced && !page->stable_taken) {
        free(page->bytes);
        page->bytes = NULL;
        page_give(pages, page);
    } else if (dropped != 0 && page->bytes != NULL) {
        page_take_back(pages, page);
    }
    page_settle(page);
    page_free_if_hole(pages, page);
}

void sim_pages_cut(struct sim_pages *pages, bool (*keep)(void *arg, uint64_t offset_bytes),
                   void *arg)
{
    LIST_FOR_EACH_SAFE(page, &pages->unsynced, struct sim_page, link) {
        unsigned dropped = 0;
        for (unsigned unit = 0; unit < UNITS; unit++) {
            uint64_t offset_bytes = page->number * SIM_PAGE_BYTES + unit * SIM_UNIT_BYTES;
            if (((page->dirty | page->lost) & 1u << unit) != 0 && !keep(arg, offset_bytes))
                dropped |= 1u << unit;
        }
        page_cut(pages, page, dropped);
    }
}

void sim_pages_leave_open(struct sim_pages *pages)
{
    LIST_FOR_EACH_SAFE(page, &pages->unsynced, struct sim_page, link) {
        unsigned units = page->dirty | page->lost;
        struct sim_version **oldest = &page->versions;
        while (*oldest != NULL)
            oldest = &(*oldest)->older;
        version_add(oldest, units, page->stable);
        page->open |= (uint8_t)units;
        page_settle(page);
    }
}

/* --- all of it --- */

void sim_pages_init(struct sim_pages *pages, struct sim_space *space)
{
    *pages = (struct sim_pages){.space = space, .counted = true};
    list_init(&pages->unsynced);
}

static void page_free(struct sim_pages *pages, struct sim_page *page)
{
    page_give(pages, page);
    list_remove(&page->link);
    versions_forget(page, ALL_UNITS);
    free(page->bytes);
    free(page->stable);
    free(page);
}

static void node_clear(struct sim_pages *pages, struct sim_pages_node *node, unsigned level)
{
    for (unsigned i = 0; i < FANOUT; i++) {
        if (node->slots[i] == NULL)
            continue;
        if (level == 0)
            page_free(pages, node->slots[i]);
        else
            node_clear(pages, node->slots[i], level - 1);
    }
    free(node);
}

void sim_pages_clear(struct sim_pages *pages)
{
    if (pages->root != NULL)
        node_clear(pages, pages->root, LEVELS - 1);
    pages->root = NULL;
}

/* --- reading and writing --- */

static size_t within_page(uint64_t offset_bytes, uint64_t length_bytes)
{
    return MIN(length_bytes, SIM_PAGE_BYTES - offset_bytes % SIM_PAGE_BYTES);
}

/* The units of its page that a range within one page touches, */
static unsigned units_touched(uint64_t offset_bytes, size_t length_bytes)
{
    unsigned first = offset_bytes % SIM_PAGE_BYTES / SIM_UNIT_BYTES;
    unsigned end = (unsigned)((offset_bytes % SIM_PAGE_BYTES + length_bytes + SIM_UNIT_BYTES - 1) /
                              SIM_UNIT_BYTES);
    return ((1u << end) - 1) & ~((1u << first) - 1);
}

/* and those that it covers. */
static unsigned units_covered(uint64_t offset_bytes, size_t length_bytes)
{
    unsigned first = (offset_bytes % SIM_PAGE_BYTES + SIM_UNIT_BYTES - 1) / SIM_UNIT_BYTES;
    unsigned end = (unsigned)((offset_bytes % SIM_PAGE_BYTES + length_bytes) / SIM_UNIT_BYTES);
    return first < end ? ((1u << end) - 1) & ~((1u << first) - 1) : 0;
}

int sim_pages_read(struct sim_pages *pages, void *bytes, size_t length_bytes, uint64_t offset_bytes)
{
    uint8_t *to = bytes;

    while (length_bytes > 0) {
        uint64_t missing_end;
        size_t part = within_page(offset_bytes, length_bytes);
        struct sim_page **slot = slot_find(pages, offset_bytes / SIM_PAGE_BYTES, &missing_end);
        if (slot != NULL && *slot != NULL &&
            ((*slot)->bad & units_touched(offset_bytes, part)) != 0)
            return -EIO;
        if (slot != NULL && *slot != NULL)
            page_decide(pages, *slot, units_touched(offset_bytes, part));
        if (page_has_data(slot))
            memcpy(to, (*slot)->bytes + offset_bytes % SIM_PAGE_BYTES, part);
        else
            memset(to, 0, part);
        to += part;
        offset_bytes += part;
        length_bytes -= part;
    }
    return 0;
}

static int page_write(struct sim_pages *pages, const uint8_t *from, uint64_t offset_bytes,
                      size_t length_bytes)
{
    struct sim_page *page = page_make(pages, offset_bytes / SIM_PAGE_BYTES);
    if (page == NULL)
        return -ENOMEM;
    page_decide(pages, page,
                units_touched(offset_bytes, length_bytes) &
                    ~units_covered(offset_bytes, length_bytes));
    bool was_taken = page->taken;
    int result = page_take(pages, page);
    if (result == 0 &&
        !page_change(pages, page, units_touched(offset_bytes, length_bytes), was_taken))
        result = -ENOMEM;
    if (result == 0 && page->bytes == NULL && (page->bytes = calloc(1, SIM_PAGE_BYTES)) == NULL)
        result = -ENOMEM;
    if (result < 0) {
        page_free_if_hole(pages, page);
        return result;
    }
    memcpy(page->bytes + offset_bytes % SIM_PAGE_BYTES, from, length_bytes);
    page->bad &= ~units_covered(offset_bytes, length_bytes);
    return 0;
}

int sim_pages_write(struct sim_pages *pages, const void *bytes, size_t length_bytes,
                    uint64_t offset_bytes)
{
    const uint8_t *from = bytes;

    while (length_bytes > 0) {
        size_t part = within_page(offset_bytes, length_bytes);
        int result = page_write(pages, from, offset_bytes, part);
        if (result < 0)
            return result;
        from += part;
        offset_bytes += part;
        length_bytes -= part;
    }
    return 0;
}

static int page_zero_part(struct sim_pages *pages, uint64_t offset_bytes, size_t length_bytes)
{
    uint64_t missing_end;
    struct sim_page **slot = slot_find(pages, offset_bytes / SIM_PAGE_BYTES, &missing_end);

    if (slot == NULL || *slot == NULL)
        return 0;
    (*slot)->bad &= ~units_covered(offset_bytes, length_bytes);
    page_decide(pages, *slot, units_touched(offset_bytes, length_bytes));
    if (!page_has_data(slot))
        return 0;
    if (!page_change(pages, *slot, units_touched(offset_bytes, length_bytes), true))
        return -ENOMEM;
    memset((*slot)->bytes + offset_bytes % SIM_PAGE_BYTES, 0, length_bytes);
    return 0;
}

/* The whole page reads as zeroes from now on, and takes space or not. */
static int page_zero(struct sim_pages *pages, struct sim_page *page, bool keep)
{
    bool was_taken = page->taken;
    page_decide_unseen(page, ALL_UNITS);
    int result = keep ? page_take(pages, page) : 0;
    if (result == 0 && (page->bytes != NULL || was_taken != keep) &&
        !page_change(pages, page, ALL_UNITS, was_taken))
        result = -ENOMEM;
    if (result == 0) {
        page->bad = 0;
        free(page->bytes);
        page->bytes = NULL;
        if (!keep)
            page_give(pages, page);
    }
    page_free_if_hole(pages, page);
    return result;
}

static int pages_drop(struct sim_pages *pages, uint64_t number, uint64_t end)
{
    while (number < end) {
        uint64_t missing_end;
        struct sim_page **slot = slot_find(pages, number, &missing_end);
        if (slot != NULL && *slot != NULL) {
            int result = page_zero(pages, *slot, false);
            if (result < 0)
                return result;
        }
        number = slot != NULL ? number + 1 : missing_end;
    }
    return 0;
}

static int pages_reserve(struct sim_pages *pages, uint64_t number, uint64_t end)
{
    for (; number < end; number++) {
        struct sim_page *page = page_make(pages, number);
        int result = page != NULL ? page_zero(pages, page, true) : -ENOMEM;
        if (result < 0)
            return result;
    }
    return 0;
}

int sim_pages_zero(struct sim_pages *pages, uint64_t offset_bytes, uint64_t length_bytes, bool keep)
{
    uint64_t end_bytes = offset_bytes + length_bytes;
    uint64_t first = align_up(offset_bytes, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    uint64_t end = end_bytes / SIM_PAGE_BYTES;
    int result = 0;

    if (first > end) /* inside one page */
        return page_zero_part(pages, offset_bytes, length_bytes);
    if (offset_bytes % SIM_PAGE_BYTES != 0)
        result = page_zero_part(pages, offset_bytes, first * SIM_PAGE_BYTES - offset_bytes);
    if (result == 0 && end_bytes % SIM_PAGE_BYTES != 0)
        result = page_zero_part(pages, end * SIM_PAGE_BYTES, end_bytes % SIM_PAGE_BYTES);
    if (result < 0)
        return result;
    return keep ? pages_reserve(pages, first, end) : pages_drop(pages, first, end);
}

uint64_t sim_pages_next(struct sim_pages *pages, uint64_t page, uint64_t end, bool data)
{
    while (page < end) {
        uint64_t missing_end;
        struct sim_page **slot = slot_find(pages, page, &missing_end);
        if (slot != NULL && *slot != NULL)
            page_decide(pages, *slot, ALL_UNITS);
        if (page_has_data(slot) == data)
            return page;
        page = slot != NULL ? page + 1 : missing_end;
    }
    return end;
}

int sim_pages_spoil(struct sim_pages *pages, uint64_t offset_bytes, uint64_t length_bytes)
{
    uint64_t end_bytes = align_up(offset_bytes + length_bytes, SIM_UNIT_BYTES);

    offset_bytes = align_down(offset_bytes, SIM_UNIT_BYTES);
    while (offset_bytes < end_bytes) {
        size_t part = within_page(offset_bytes, end_bytes - offset_bytes);
        struct sim_page *page = page_make(pages, offset_bytes / SIM_PAGE_BYTES);
        if (page == NULL)
            return -ENOMEM;
        page->bad |= units_touched(offset_bytes, part);
        offset_bytes += part;
    }
    return 0;
}

void sim_pages_mend(struct sim_pages *pages)
{
    uint64_t number = 0, end = (SIM_FILE_MAX_BYTES / SIM_PAGE_BYTES), missing_end;

    while (number < end) {
        struct sim_page **slot = slot_find(pages, number, &missing_end);
        if (slot != NULL && *slot != NULL) {
            (*slot)->bad = 0;
            page_free_if_hole(pages, *slot);
        }
        number = slot != NULL ? number + 1 : missing_end;
    }
}
