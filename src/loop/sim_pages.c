/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/sim_pages.h"

#include <errno.h>
#include <string.h>

#define FANOUT_BITS 9u
#define FANOUT      (1u << FANOUT_BITS)
#define LEVELS      4u /* 36 bits of page number: SIM_FILE_MAX_BYTES */

struct sim_pages_node {
    void *slots[FANOUT]; /* nodes; on the lowest level pages: NULL, unwritten, or bytes */
};

/* An allocated page that was never written: takes space, reads as zeroes, is no data. */
static uint8_t unwritten[1];

static unsigned slot_index(uint64_t page, unsigned level)
{
    return (page >> (level * FANOUT_BITS)) & (FANOUT - 1);
}

/* The slot of a page, NULL when there is none. *ret_end: the first page behind what is missing. */
static void **slot_find(const struct sim_pages *pages, uint64_t page, uint64_t *ret_end)
{
    struct sim_pages_node *node = pages->root;

    *ret_end = UINT64_MAX;
    for (unsigned level = LEVELS - 1; node != NULL; level--) {
        void **slot = &node->slots[slot_index(page, level)];
        if (level == 0)
            return slot;
        *ret_end = ((page >> (level * FANOUT_BITS)) + 1) << (level * FANOUT_BITS);
        node = *slot;
    }
    return NULL;
}

static void **slot_make(struct sim_pages *pages, uint64_t page)
{
    void **slot = (void **)&pages->root;

    for (unsigned level = LEVELS; level-- > 0;) {
        if (*slot == NULL)
            *slot = calloc(1, sizeof(struct sim_pages_node));
        if (*slot == NULL)
            return NULL;
        slot = &((struct sim_pages_node *)*slot)->slots[slot_index(page, level)];
    }
    return slot;
}

static bool slot_has_data(void **slot)
{
    return slot != NULL && *slot != NULL && *slot != unwritten;
}

static void slot_drop(struct sim_pages *pages, void **slot)
{
    if (*slot == NULL)
        return;
    if (*slot != unwritten)
        free(*slot);
    *slot = NULL;
    pages->space->used_bytes -= SIM_PAGE_BYTES;
}

static int space_take(struct sim_space *space)
{
    if (space->limit_bytes != 0 && space->used_bytes + SIM_PAGE_BYTES > space->limit_bytes)
        return -ENOSPC;
    space->used_bytes += SIM_PAGE_BYTES;
    return 0;
}

/* The page's bytes for writing: allocated and zeroed first when need be. */
static int page_for_write(struct sim_pages *pages, uint64_t page, uint8_t **ret_bytes)
{
    void **slot = slot_make(pages, page);
    if (slot == NULL)
        return -ENOMEM;
    if (!slot_has_data(slot)) {
        if (*slot == NULL) {
            int result = space_take(pages->space);
            if (result < 0)
                return result;
            *slot = unwritten;
        }
        uint8_t *bytes = calloc(1, SIM_PAGE_BYTES);
        if (bytes == NULL)
            return -ENOMEM;
        *slot = bytes;
    }
    *ret_bytes = *slot;
    return 0;
}

static int page_reserve(struct sim_pages *pages, uint64_t page)
{
    void **slot = slot_make(pages, page);
    if (slot == NULL)
        return -ENOMEM;
    if (*slot == NULL) {
        int result = space_take(pages->space);
        if (result < 0)
            return result;
    } else if (*slot != unwritten) {
        free(*slot);
    }
    *slot = unwritten;
    return 0;
}

void sim_pages_init(struct sim_pages *pages, struct sim_space *space)
{
    *pages = (struct sim_pages){.space = space};
}

static void node_clear(struct sim_pages *pages, struct sim_pages_node *node, unsigned level)
{
    for (unsigned i = 0; i < FANOUT; i++) {
        if (node->slots[i] == NULL)
            continue;
        if (level == 0)
            slot_drop(pages, &node->slots[i]);
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

static size_t within_page(uint64_t offset_bytes, uint64_t length_bytes)
{
    return MIN(length_bytes, SIM_PAGE_BYTES - offset_bytes % SIM_PAGE_BYTES);
}

void sim_pages_read(const struct sim_pages *pages, void *bytes, size_t length_bytes,
                    uint64_t offset_bytes)
{
    uint8_t *to = bytes;

    while (length_bytes > 0) {
        uint64_t missing_end;
        size_t part = within_page(offset_bytes, length_bytes);
        void **slot = slot_find(pages, offset_bytes / SIM_PAGE_BYTES, &missing_end);
        if (slot_has_data(slot))
            memcpy(to, (uint8_t *)*slot + offset_bytes % SIM_PAGE_BYTES, part);
        else
            memset(to, 0, part);
        to += part;
        offset_bytes += part;
        length_bytes -= part;
    }
}

int sim_pages_write(struct sim_pages *pages, const void *bytes, size_t length_bytes,
                    uint64_t offset_bytes)
{
    const uint8_t *from = bytes;

    while (length_bytes > 0) {
        uint8_t *page;
        size_t part = within_page(offset_bytes, length_bytes);
        int result = page_for_write(pages, offset_bytes / SIM_PAGE_BYTES, &page);
        if (result < 0)
            return result;
        memcpy(page + offset_bytes % SIM_PAGE_BYTES, from, part);
        from += part;
        offset_bytes += part;
        length_bytes -= part;
    }
    return 0;
}

static void page_zero_part(struct sim_pages *pages, uint64_t offset_bytes, size_t length_bytes)
{
    uint64_t missing_end;
    void **slot = slot_find(pages, offset_bytes / SIM_PAGE_BYTES, &missing_end);

    if (slot_has_data(slot))
        memset((uint8_t *)*slot + offset_bytes % SIM_PAGE_BYTES, 0, length_bytes);
}

static void pages_drop(struct sim_pages *pages, uint64_t page, uint64_t end)
{
    while (page < end) {
        uint64_t missing_end;
        void **slot = slot_find(pages, page, &missing_end);
        if (slot != NULL)
            slot_drop(pages, slot);
        page = slot != NULL ? page + 1 : missing_end;
    }
}

int sim_pages_zero(struct sim_pages *pages, uint64_t offset_bytes, uint64_t length_bytes, bool keep)
{
    uint64_t end_bytes = offset_bytes + length_bytes;
    uint64_t first = align_up(offset_bytes, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    uint64_t end = end_bytes / SIM_PAGE_BYTES;

    if (first > end) { /* inside one page */
        page_zero_part(pages, offset_bytes, length_bytes);
        return 0;
    }
    if (offset_bytes % SIM_PAGE_BYTES != 0)
        page_zero_part(pages, offset_bytes, first * SIM_PAGE_BYTES - offset_bytes);
    if (end_bytes % SIM_PAGE_BYTES != 0)
        page_zero_part(pages, end * SIM_PAGE_BYTES, end_bytes % SIM_PAGE_BYTES);
    if (!keep) {
        pages_drop(pages, first, end);
        return 0;
    }
    for (uint64_t page = first; page < end; page++) {
        int result = page_reserve(pages, page);
        if (result < 0)
            return result;
    }
    return 0;
}

uint64_t sim_pages_next(const struct sim_pages *pages, uint64_t page, uint64_t end, bool data)
{
    while (page < end) {
        uint64_t missing_end;
        void **slot = slot_find(pages, page, &missing_end);
        if (slot_has_data(slot) == data)
            return page;
        page = slot != NULL ? page + 1 : missing_end;
    }
    return end;
}
