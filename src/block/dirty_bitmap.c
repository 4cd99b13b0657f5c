/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "block/dirty_bitmap.h"

#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define DEFAULT_REGION_MIN_BYTES 4096u
#define DEFAULT_REGION_MAX_BYTES 65536u

struct dirty_bitmap *dirty_bitmap_find(struct node *node, const char *name)
{
    LIST_FOR_EACH(bitmap, &node_check(node)->bitmaps, struct dirty_bitmap, link) {
        if (strcmp(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

int dirty_bitmap_get(struct node *node, const char *name, struct dirty_bitmap **ret_bitmap,
                     struct err *err)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_find(node, name);

    if (bitmap == NULL)
        return err_set(err, -ENOENT, "Dirty bitmap '%s' not found", name);
    *ret_bitmap = bitmap;
    return 0;
}

int dirty_bitmap_check(const struct dirty_bitmap *bitmap, struct err *err)
{
    if (bitmap->busy)
        return err_set(err, -EBUSY,
                       "Bitmap '%s' is currently in use by another operation and cannot be used",
                       bitmap->name);
    if (bitmap->inconsistent)
        return err_set(err, -EINVAL, "Bitmap '%s' is inconsistent and cannot be used: remove it",
                       bitmap->name);
    return 0;
}

void dirty_bitmap_hold(struct dirty_bitmap *bitmap)
{
    assert(!bitmap->busy);
    bitmap->busy = true;
    node_ref(bitmap->tracker.node);
}

void dirty_bitmap_release(struct dirty_bitmap *bitmap)
{
    assert(bitmap->busy);
    bitmap->busy = false;
    node_unref(bitmap->tracker.node);
}

static uint64_t default_region_bytes(const struct node *node)
{
    uint64_t block = node->limits.block_bytes;

    if (block == 0)
        return DEFAULT_REGION_MAX_BYTES;
    return MIN(MAX(block, DEFAULT_REGION_MIN_BYTES), DEFAULT_REGION_MAX_BYTES);
}

static unsigned count_bitmaps(struct node *node)
{
    unsigned count = 0;

    LIST_FOR_EACH(bitmap, &node->bitmaps, struct dirty_bitmap, link)
        count++;
    return count;
}

static int check_region(const struct node *node, uint64_t region_bytes, struct err *err)
{
    if (region_bytes < DIRTY_BITMAP_REGION_MIN_BYTES || !is_power_of_two(region_bytes))
        return err_set(err, -EINVAL, "Granularity must be power of 2 and at least %u",
                       DIRTY_BITMAP_REGION_MIN_BYTES);
    if (node->length_bytes / region_bytes >= DIRTY_BITMAP_MAX_BITS)
        return err_set(err, -EFBIG,
                       "granularity %" PRIu64 " is too small for the %" PRIu64
                       " bytes of node '%s': a bitmap has %" PRIu64 " regions at most",
                       region_bytes, node->length_bytes, node->name, DIRTY_BITMAP_MAX_BITS);
    return 0;
}

static int check_new(struct node *node, const char *name, uint64_t region_bytes, struct err *err)
{
    if (name[0] == '\0')
        return err_set(err, -EINVAL, "Bitmap name cannot be empty");
    if (strlen(name) > DIRTY_BITMAP_NAME_MAX_BYTES)
        return err_set(err, -EINVAL, "Bitmap name too long: at most %u bytes are fine",
                       DIRTY_BITMAP_NAME_MAX_BYTES);
    int ret = check_region(node, region_bytes, err);
    if (ret < 0)
        return ret;
    if (dirty_bitmap_find(node, name) != NULL)
        return err_set(err, -EEXIST, "Bitmap already exists: %s", name);
    if (count_bitmaps(node) >= DIRTY_BITMAPS_MAX)
        return err_set(err, -ENOSPC, "node '%s' has %u bitmaps already, the most that can be",
                       node->name, DIRTY_BITMAPS_MAX);
    return 0;
}

int dirty_bitmap_add(struct node *node, const char *name, uint64_t region_bytes, bool enabled,
                     struct dirty_bitmap **ret_bitmap, struct err *err)
{
    if (region_bytes == 0)
        region_bytes = default_region_bytes(node_check(node));
    int ret = check_new(node, name, region_bytes, err);
    if (ret < 0)
        return ret;
    struct dirty_bitmap *bitmap = calloc(1, sizeof(*bitmap));
    if (bitmap == NULL)
        return err_no_memory(err);
    bitmap->name = strdup(name);
    ret = bitmap->name != NULL ? dirty_tracker_add(&bitmap->tracker, node, region_bytes, err)
                               : err_no_memory(err);
    if (ret < 0) {
        free(bitmap->name);
        free(bitmap);
        return ret;
    }
    list_push_back(&node->bitmaps, &bitmap->link);
    dirty_bitmap_enable(bitmap, enabled);
    *ret_bitmap = bitmap;
    return 0;
}

void dirty_bitmap_remove(struct dirty_bitmap *bitmap)
{
    assert(!bitmap->busy);
    list_remove(&bitmap->link);
    dirty_tracker_remove(&bitmap->tracker);
    free(bitmap->name);
    free(bitmap);
}

void dirty_bitmap_enable(struct dirty_bitmap *bitmap, bool enabled)
{
    bitmap->enabled = enabled;
    dirty_tracker_set_on(&bitmap->tracker, enabled);
}

void dirty_bitmap_clear(struct dirty_bitmap *bitmap)
{
    bitmap_clear_all(bitmap->tracker.bits);
}

struct bitmap *dirty_bitmap_take(struct dirty_bitmap *bitmap)
{
    struct bitmap *taken = bitmap->tracker.bits;
    struct bitmap *fresh = bitmap_new(bitmap_bits(taken));

    if (fresh == NULL)
        return NULL;
    bitmap->tracker.bits = fresh;
    return taken;
}

void dirty_bitmaps_free(struct node *node)
{
    LIST_FOR_EACH_SAFE(bitmap, &node->bitmaps, struct dirty_bitmap, link)
        dirty_bitmap_remove(bitmap);
}

void dirty_bitmaps_follow_length(struct node *node)
{
    LIST_FOR_EACH(bitmap, &node->bitmaps, struct dirty_bitmap, link) {
        uint64_t region = bitmap->tracker.region_bytes;
        uint64_t bits = (node->length_bytes + region - 1) / region;

        if (bits <= DIRTY_BITMAP_MAX_BITS && bitmap_resize(bitmap->tracker.bits, bits) == 0)
            continue;
        bitmap->inconsistent = true;
        log_error("dirty-bitmap", "bitmap '%s' of node '%s' cannot follow the node's new length",
                  bitmap->name, node->name);
    }
}
