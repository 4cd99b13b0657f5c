/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/overlay_map.h"

#include <errno.h>
#include <string.h>

#define PAGE_BYTES     4096u
#define SLAB_PAGES     (OVERLAY_MAP_SLAB_BYTES / PAGE_BYTES)
#define PAGE_NONE      UINT32_MAX
#define PAGE_ENTRIES   ((PAGE_BYTES - 16) / 8)
#define TREE_MAX_DEPTH 8

struct entry {
    uint32_t key;
    uint32_t value; /* leaf: the slot, or the length of a run minus one; else a page */
};

/* A leaf's keys are blocks; an inner page's are the smallest key of each child. */
struct page {
    uint32_t count;
    uint32_t next; /* leaves: the one to the right */
    uint32_t unused[2];
    struct entry entries[PAGE_ENTRIES];
};
_Static_assert(sizeof(struct page) == PAGE_BYTES, "a page is a page");

struct tree {
    uint32_t root;  /* PAGE_NONE: empty */
    uint32_t depth; /* levels of inner pages */
};

/* Slabs in order of use; a page's number is its place in them. */
struct slabs {
    uint8_t **items;
    size_t count, capacity;
};

/*
 * Copy-before-write asks of every write whether its blocks are held, and mostly they are. The tree
 * answers with a cache miss on each level; this table of what was held lately with one. A set bit is
 * true until all is dropped, since nothing is ever taken out singly; a clear one says nothing.
 */
#define RECENT_WORDS       32768u /* 512 KiB, of which memory is what was touched */
#define RECENT_WORD_BLOCKS 64u

struct recent_word {
    uint32_t word;  /* of the map: block / 64 */
    uint32_t round; /* it counts in this one only */
    uint64_t held;
};

struct overlay_map {
    uint32_t slot_step;
    uint32_t round; /* from 1, one more with every drop */
    struct recent_word *recent;
    struct tree blocks;
    struct tree runs;
    uint64_t block_count;
    uint64_t long_count;
    struct slabs slabs;
    uint32_t pages_used;
    size_t slabs_promised; /* by overlay_map_reserve() */
    struct slabs dropped;  /* to be used again or given back */
};

static struct page *page_at(const struct overlay_map *map, uint32_t number)
{
    return (struct page *)(void *)(map->slabs.items[number / SLAB_PAGES] +
                                   (size_t)(number % SLAB_PAGES) * PAGE_BYTES);
}

static int slabs_grow(struct slabs *slabs, size_t capacity)
{
    if (capacity <= slabs->capacity)
        return 0;
    capacity = MAX(capacity, slabs->capacity * 2 + 16);
    uint8_t **items = realloc(slabs->items, capacity * sizeof(*items));
    if (items == NULL)
        return -ENOMEM;
    slabs->items = items;
    slabs->capacity = capacity;
    return 0;
}

static void slabs_free(struct slabs *slabs)
{
    for (size_t i = 0; i < slabs->count; i++)
        free(slabs->items[i]);
    free(slabs->items);
}

struct overlay_map *overlay_map_new(uint32_t slot_step)
{
    struct overlay_map *map = calloc(1, sizeof(*map));

    if (map == NULL)
        return NULL;
    map->recent = calloc(RECENT_WORDS, sizeof(*map->recent));
    if (map->recent == NULL) {
        free(map);
        return NULL;
    }
    map->slot_step = slot_step;
    map->round = 1;
    map->blocks.root = map->runs.root = PAGE_NONE;
    return map;
}

void overlay_map_free(struct overlay_map *map)
{
    if (map == NULL)
        return;
    slabs_free(&map->slabs);
    slabs_free(&map->dropped);
    free(map->recent);
    free(map);
}

static int pages_reserve(struct overlay_map *map, uint64_t pages)
{
    uint64_t slabs = (map->pages_used + pages + SLAB_PAGES - 1) / SLAB_PAGES;

    if (map->pages_used + pages >= PAGE_NONE)
        return -ENOMEM;
    if (slabs_grow(&map->slabs, slabs) < 0)
        return -ENOMEM;
    while (map->slabs.count < slabs) {
        uint8_t *slab = map->dropped.count > 0 ? map->dropped.items[--map->dropped.count]
                                               : aligned_alloc(PAGE_BYTES, OVERLAY_MAP_SLAB_BYTES);
        if (slab == NULL)
            return -ENOMEM;
        map->slabs.items[map->slabs.count++] = slab;
    }
    map->slabs_promised = MAX(map->slabs_promised, slabs);
    return 0;
}

/* A run can split one leaf more than its length fills, and one page on each level above. */
int overlay_map_reserve(struct overlay_map *map, uint64_t runs, uint64_t blocks)
{
    return pages_reserve(map, 2 * runs + blocks / 128 + 2 * TREE_MAX_DEPTH);
}

static uint32_t page_new(struct overlay_map *map)
{
    assert(map->pages_used < map->slabs.count * SLAB_PAGES);
    uint32_t number = map->pages_used++;
    struct page *page = page_at(map, number);

    page->count = 0;
    page->next = PAGE_NONE;
    return number;
}

/* The first entry whose key is not below `key`. */
static uint32_t page_lower_bound(const struct page *page, uint32_t key)
{
    const struct entry *base = page->entries;
    uint32_t count = page->count;

    while (count > 1) {
        uint32_t half = count / 2;

        base = base[half - 1].key < key ? base + half : base;
        count -= half;
    }
    return (uint32_t)(base - page->entries) + (count == 1 && base->key < key);
}

/* The child of an inner page that `key` belongs to. */
static uint32_t page_child(const struct page *page, uint32_t key)
{
    uint32_t at = page_lower_bound(page, key);

    if (at < page->count && page->entries[at].key == key)
        return at;
    return at > 0 ? at - 1 : 0;
}

static void page_insert(struct page *page, uint32_t at, uint32_t key, uint32_t value)
{
    assert(page->count < PAGE_ENTRIES);
    memmove(&page->entries[at + 1], &page->entries[at], (page->count - at) * sizeof(struct entry));
    page->entries[at] = (struct entry){key, value};
    page->count++;
}

struct path {
    uint32_t pages[TREE_MAX_DEPTH + 1]; /* from the root to the leaf */
    uint32_t child[TREE_MAX_DEPTH + 1]; /* which entry of it leads on */
    uint64_t limit;                     /* keys from here on belong to leaves further right */
};

static struct page *tree_descend(const struct overlay_map *map, const struct tree *tree,
                                 uint32_t key, struct path *path)
{
    uint32_t number = tree->root;

    path->limit = UINT64_C(1) << 32;
    for (uint32_t level = 0; level < tree->depth; level++) {
        const struct page *page = page_at(map, number);
        uint32_t at = page_child(page, key);

        path->pages[level] = number;
        path->child[level] = at;
        if (at + 1 < page->count)
            path->limit = page->entries[at + 1].key;
        number = page->entries[at].value;
    }
    path->pages[tree->depth] = number;
    return page_at(map, number);
}

/* A key below all others makes the pages on its path begin earlier. */
static void tree_lower(struct overlay_map *map, const struct tree *tree, uint32_t key,
                       const struct path *path)
{
    for (uint32_t level = 0; level < tree->depth; level++) {
        struct entry *first = &page_at(map, path->pages[level])->entries[0];

        first->key = MIN(first->key, key);
    }
}

/* Moves `count` entries from the end of `left` to the begin of `right`. */
static void page_move_right(struct page *left, struct page *right, uint32_t count)
{
    memmove(&right->entries[count], &right->entries[0], right->count * sizeof(struct entry));
    memcpy(&right->entries[0], &left->entries[left->count - count], count * sizeof(struct entry));
    left->count -= count;
    right->count += count;
}

static void page_move_left(struct page *left, struct page *right, uint32_t count)
{
    memcpy(&left->entries[left->count], &right->entries[0], count * sizeof(struct entry));
    memmove(&right->entries[0], &right->entries[count],
            (right->count - count) * sizeof(struct entry));
    left->count += count;
    right->count -= count;
}

/* Evens out a full page and a neighbour that has room, both children of `parent`. */
static bool page_share(struct overlay_map *map, struct page *parent, uint32_t at)
{
    struct page *full = page_at(map, parent->entries[at].value);
    const uint32_t room_enough = PAGE_ENTRIES / 8;

    if (at > 0) {
        struct page *left = page_at(map, parent->entries[at - 1].value);
        uint32_t room = PAGE_ENTRIES - left->count;

        if (room >= room_enough) {
            page_move_left(left, full, (room + 1) / 2);
            parent->entries[at].key = full->entries[0].key;
            return true;
        }
    }
    if (at + 1 < parent->count) {
        struct page *right = page_at(map, parent->entries[at + 1].value);
        uint32_t room = PAGE_ENTRIES - right->count;

        if (room >= room_enough) {
            page_move_right(full, right, (room + 1) / 2);
            parent->entries[at + 1].key = right->entries[0].key;
            return true;
        }
    }
    return false;
}

static void tree_raise(struct overlay_map *map, struct tree *tree)
{
    uint32_t number = page_new(map);
    struct page *root = page_at(map, number);

    assert(tree->depth < TREE_MAX_DEPTH);
    page_insert(root, 0, page_at(map, tree->root)->entries[0].key, tree->root);
    tree->root = number;
    tree->depth++;
}

/* Makes room in the page of `level` on the path to `key`; the path is stale afterwards. */
static void tree_make_room(struct overlay_map *map, struct tree *tree, struct path *path,
                           uint32_t level, uint32_t key)
{
    if (level == 0) {
        tree_raise(map, tree);
        return;
    }
    struct page *parent = page_at(map, path->pages[level - 1]);
    uint32_t at = path->child[level - 1];
    struct page *full = page_at(map, path->pages[level]);
    /* Ascending keys fill pages to the brim: nothing is moved when the last page overflows. */
    bool append = at + 1 == parent->count && key > full->entries[full->count - 1].key &&
                  path->limit == UINT64_C(1) << 32;

    if (!append && page_share(map, parent, at))
        return;
    if (parent->count == PAGE_ENTRIES) {
        tree_make_room(map, tree, path, level - 1, key);
        return;
    }
    uint32_t number = page_new(map);
    struct page *right = page_at(map, number);

    page_move_right(full, right, append ? 1 : full->count / 2);
    right->next = full->next;
    full->next = number;
    page_insert(parent, at + 1, right->entries[0].key, number);
}

static struct page *tree_first_leaf(struct overlay_map *map, struct tree *tree)
{
    tree->root = page_new(map);
    tree->depth = 0;
    return page_at(map, tree->root);
}

/* How many keys from `key` on can go in front of entry `at`: absent ones, that belong to this leaf,
 * that there is room for. */
static uint32_t leaf_gap(const struct page *leaf, uint32_t at, uint32_t key, uint64_t count,
                         uint64_t limit)
{
    uint64_t end = at < leaf->count ? leaf->entries[at].key : limit;

    return (uint32_t)MIN(MIN(count, end - key), PAGE_ENTRIES - leaf->count);
}

/* Puts in key + i -> value + i * step; returns how many keys are new. */
static uint64_t tree_put(struct overlay_map *map, struct tree *tree, uint32_t first, uint64_t count,
                         uint32_t value, uint32_t step)
{
    uint64_t key = first, end = first + count, added = 0;
    struct path path;

    assert(end <= UINT64_C(1) << 32);
    if (tree->root == PAGE_NONE)
        tree_first_leaf(map, tree);
    while (key < end) {
        struct page *leaf = tree_descend(map, tree, (uint32_t)key, &path);
        uint32_t at = page_lower_bound(leaf, (uint32_t)key);

        if (at == 0)
            tree_lower(map, tree, (uint32_t)key, &path);
        for (; at < leaf->count && leaf->entries[at].key == key && key < end; at++, key++) {
            leaf->entries[at].value = value;
            value += step;
        }
        if (key == end || key >= path.limit)
            continue;
        uint32_t gap = leaf_gap(leaf, at, (uint32_t)key, end - key, path.limit);
        if (gap == 0) {
            if (leaf->count == PAGE_ENTRIES)
                tree_make_room(map, tree, &path, tree->depth, (uint32_t)key);
            continue;
        }
        memmove(&leaf->entries[at + gap], &leaf->entries[at],
                (leaf->count - at) * sizeof(struct entry));
        leaf->count += gap;
        added += gap;
        for (uint32_t i = 0; i < gap; i++, value += step)
            leaf->entries[at + i] = (struct entry){(uint32_t)key++, value};
    }
    return added;
}

/* A place in a tree's leaves: the entry, or none. */
struct cursor {
    const struct page *leaf;
    uint32_t at;
};

static const struct entry *cursor_entry(const struct overlay_map *map, struct cursor *cursor)
{
    while (cursor->leaf != NULL && cursor->at >= cursor->leaf->count) {
        cursor->leaf = cursor->leaf->next != PAGE_NONE ? page_at(map, cursor->leaf->next) : NULL;
        cursor->at = 0;
    }
    return cursor->leaf != NULL ? &cursor->leaf->entries[cursor->at] : NULL;
}

/* At the first key that is not below `key`. */
static struct cursor tree_seek(const struct overlay_map *map, const struct tree *tree, uint32_t key)
{
    struct path path;

    if (tree->root == PAGE_NONE)
        return (struct cursor){NULL, 0};
    const struct page *leaf = tree_descend(map, tree, key, &path);
    return (struct cursor){leaf, page_lower_bound(leaf, key)};
}

/* The end of the long run that covers `block` (0: none), or else where the next one begins. */
static uint64_t run_cover(const struct overlay_map *map, uint32_t block, uint64_t *ret_next)
{
    struct cursor cursor = tree_seek(map, &map->runs, block);
    const struct entry *before = NULL;
    uint64_t end = 0;

    /* The one before lies in the same leaf: a leaf's smallest key leads to it. */
    if (cursor.leaf != NULL && cursor.at > 0)
        before = &cursor.leaf->entries[cursor.at - 1];
    const struct entry *here = cursor_entry(map, &cursor);
    if (here != NULL && here->key == block)
        end = (uint64_t)here->key + here->value + 1;
    else if (before != NULL && (uint64_t)before->key + before->value >= block)
        end = (uint64_t)before->key + before->value + 1;
    *ret_next = here != NULL ? here->key : UINT64_C(1) << 32;
    return end;
}

/* --- what was held lately --- */

static struct recent_word *recent_at(const struct overlay_map *map, uint32_t block)
{
    return &map->recent[block / RECENT_WORD_BLOCKS % RECENT_WORDS];
}

static uint64_t recent_mask(uint32_t block, uint64_t count)
{
    uint64_t bits = count < RECENT_WORD_BLOCKS ? (UINT64_C(1) << count) - 1 : UINT64_MAX;

    return bits << block % RECENT_WORD_BLOCKS;
}

static void recent_put(struct overlay_map *map, uint64_t block, uint64_t count)
{
    for (uint64_t end = block + count; block < end;) {
        uint64_t here = MIN(end, align_down(block, RECENT_WORD_BLOCKS) + RECENT_WORD_BLOCKS) -
                        block;
        struct recent_word *recent = recent_at(map, (uint32_t)block);
        uint32_t word = (uint32_t)(block / RECENT_WORD_BLOCKS);

        if (recent->word != word || recent->round != map->round)
            *recent = (struct recent_word){.word = word, .round = map->round};
        recent->held |= recent_mask((uint32_t)block, here);
        block += here;
    }
}

/* How many blocks from `block` on were held lately; at most to the end of a word. */
static uint64_t recent_held(const struct overlay_map *map, uint32_t block, uint64_t max_count)
{
    const struct recent_word *recent = recent_at(map, block);

    if (recent->word != block / RECENT_WORD_BLOCKS || recent->round != map->round)
        return 0;
    /* The bits above those of the word's end are ones when inverted. */
    uint64_t absent = ~(recent->held >> block % RECENT_WORD_BLOCKS);
    uint64_t count = absent == 0 ? RECENT_WORD_BLOCKS : (uint64_t)__builtin_ctzll(absent);

    return MIN(count, max_count);
}

static void recent_drop(struct overlay_map *map)
{
    if (++map->round != 0)
        return;
    memset(map->recent, 0, RECENT_WORDS * sizeof(*map->recent));
    map->round = 1;
}

void overlay_map_put(struct overlay_map *map, uint32_t block, uint64_t count, uint32_t slot)
{
    recent_put(map, block, count);
    map->block_count += tree_put(map, &map->blocks, block, count, slot, map->slot_step);
}

/* The blocks that the first tree has would hide the run: they say zero themselves. */
static void zero_over_blocks(struct overlay_map *map, uint32_t block, uint64_t count)
{
    struct cursor cursor = tree_seek(map, &map->blocks, block);

    for (;;) {
        const struct entry *entry = cursor_entry(map, &cursor);

        if (entry == NULL || entry->key >= block + count)
            return;
        ((struct page *)(uintptr_t)cursor.leaf)->entries[cursor.at].value = OVERLAY_MAP_ZERO;
        cursor.at++;
    }
}

void overlay_map_put_zero(struct overlay_map *map, uint32_t block, uint64_t count)
{
    if (count < OVERLAY_MAP_LONG_RUN) {
        recent_put(map, block, count);
        map->block_count += tree_put(map, &map->blocks, block, count, OVERLAY_MAP_ZERO, 0);
        return;
    }
    zero_over_blocks(map, block, count);
    /* Runs never overlap: only the gaps between those that are there already are added. */
    for (uint64_t at = block, end = block + count; at < end;) {
        uint64_t next, covered = run_cover(map, (uint32_t)at, &next);

        if (covered == 0) {
            uint64_t length = MIN(next, end) - at;

            tree_put(map, &map->runs, (uint32_t)at, 1, (uint32_t)(length - 1), 0);
            map->long_count += length;
            covered = at + length;
        }
        at = covered;
    }
}

/* What the second tree says of a stretch that the first one has nothing of. */
static struct overlay_map_run find_in_runs(const struct overlay_map *map, uint32_t block,
                                           uint64_t end)
{
    uint64_t next, covered;

    if (map->runs.root == PAGE_NONE)
        return (struct overlay_map_run){OVERLAY_MAP_ABSENT, 0, end - block};
    covered = run_cover(map, block, &next);
    if (covered > 0)
        return (struct overlay_map_run){OVERLAY_MAP_ZEROED, 0, MIN(covered, end) - block};
    return (struct overlay_map_run){OVERLAY_MAP_ABSENT, 0, MIN(next, end) - block};
}

struct overlay_map_run overlay_map_find(const struct overlay_map *map, uint32_t block,
                                        uint64_t max_count)
{
    struct cursor cursor = tree_seek(map, &map->blocks, block);
    const struct entry *entry = cursor_entry(map, &cursor);
    uint64_t end = block + max_count;

    assert(max_count > 0);
    if (entry == NULL || entry->key != block)
        return find_in_runs(map, block, entry != NULL ? MIN(end, entry->key) : end);

    bool zero = entry->value == OVERLAY_MAP_ZERO;
    uint32_t first = entry->value, value = first;
    uint64_t count = 0;

    max_count = MIN(max_count, OVERLAY_MAP_LOOK_BLOCKS);
    while (count < max_count && entry != NULL && entry->key == block + count &&
           entry->value == value) {
        count++;
        value += zero ? 0 : map->slot_step;
        cursor.at++;
        entry = cursor_entry(map, &cursor);
    }
    return (struct overlay_map_run){zero ? OVERLAY_MAP_ZEROED : OVERLAY_MAP_DATA, zero ? 0 : first,
                                    count};
}

bool overlay_map_held(const struct overlay_map *map, uint32_t block, uint64_t max_count,
                      uint64_t *ret_count)
{
    uint64_t count = recent_held(map, block, max_count);

    assert(max_count > 0);
    if (likely(count > 0)) {
        *ret_count = count;
        return true;
    }
    struct cursor cursor = tree_seek(map, &map->blocks, block);
    const struct entry *entry = cursor_entry(map, &cursor);
    if (entry == NULL || entry->key != block) {
        uint64_t end = block + max_count;
        struct overlay_map_run run = find_in_runs(map, block,
                                                  entry != NULL ? MIN(end, entry->key) : end);

        *ret_count = run.count;
        return run.kind != OVERLAY_MAP_ABSENT;
    }
    /* Where the blocks lie does not matter, so this is a walk along the leaves. */
    max_count = MIN(max_count, OVERLAY_MAP_HELD_BLOCKS);
    while (count < max_count && entry != NULL && entry->key == block + count) {
        count++;
        cursor.at++;
        entry = cursor_entry(map, &cursor);
    }
    *ret_count = count;
    return true;
}

void overlay_map_drop(struct overlay_map *map)
{
    struct slabs left_over = map->dropped;

    /* What an earlier drop left is the first to be used again. */
    map->dropped = map->slabs;
    map->slabs = left_over;
    map->slabs_promised = 0;
    map->pages_used = 0;
    map->blocks = map->runs = (struct tree){.root = PAGE_NONE};
    recent_drop(map);
    map->block_count = map->long_count = 0;
}

bool overlay_map_reap(struct overlay_map *map, unsigned slabs)
{
    size_t keep = map->slabs_promised + OVERLAY_MAP_SPARE_SLABS;

    for (; slabs > 0 && map->dropped.count > OVERLAY_MAP_SPARE_SLABS; slabs--)
        free(map->dropped.items[--map->dropped.count]);
    for (; slabs > 0 && map->slabs.count > keep; slabs--)
        free(map->slabs.items[--map->slabs.count]);
    return map->dropped.count > OVERLAY_MAP_SPARE_SLABS || map->slabs.count > keep;
}

uint64_t overlay_map_blocks(const struct overlay_map *map)
{
    return map->block_count;
}

uint64_t overlay_map_long_blocks(const struct overlay_map *map)
{
    return map->long_count;
}

uint64_t overlay_map_bytes(const struct overlay_map *map)
{
    return RECENT_WORDS * sizeof(*map->recent) +
           (map->slabs.count + map->dropped.count) * (uint64_t)OVERLAY_MAP_SLAB_BYTES +
           (map->slabs.capacity + map->dropped.capacity) * sizeof(uint8_t *);
}
