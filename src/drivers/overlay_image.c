/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An overlay's superblocks, and making an image. */
#include "drivers/overlay_internal.h"

#include "base/json.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_BLOCK_BYTES   4096u
#define DEFAULT_SEGMENT_BYTES (16u << 20)
#define SMALL_UNITS_MAX_BYTES (UINT64_C(512) << 30)

static uint64_t superblock_offset(uint64_t serial)
{
    return (serial & 1) * OVERLAY_SUPERBLOCK_STRIDE;
}

/* --- reading --- */

/* The more telling of two refusals: a newer version, then damage, then a wrong magic. */
static int refusal_weight(int code)
{
    return code == -ENOTSUP ? 3 : code == -EUCLEAN ? 2 : 1;
}

static int superblock_choose(const uint8_t *bytes, struct overlay_superblock *ret_sb,
                             struct err *err)
{
    struct overlay_superblock sb[2];
    struct err errs[2] = {ERR_INIT, ERR_INIT};
    int codes[2];
    unsigned pick;

    for (unsigned i = 0; i < 2; i++)
        codes[i] = overlay_superblock_decode(bytes + (size_t)i * OVERLAY_SUPERBLOCK_STRIDE, &sb[i],
                                             &errs[i]);
    if (codes[0] < 0 && codes[1] < 0) {
        *err = refusal_weight(codes[1]) > refusal_weight(codes[0]) ? errs[1] : errs[0];
        return err->code;
    }
    /* One that a newer program has written is not passed over for an older one beside it. */
    for (unsigned i = 0; i < 2; i++) {
        if (codes[i] == -ENOTSUP) {
            *err = errs[i];
            return err->code;
        }
    }
    if (codes[0] == 0 && codes[1] == 0 &&
        memcmp(sb[0].image_id, sb[1].image_id, OVERLAY_ID_BYTES) != 0)
        return err_set(err, -EUCLEAN, "its superblocks are of two images");
    pick = codes[1] == 0 && (codes[0] < 0 || sb[1].serial > sb[0].serial);
    if (superblock_offset(sb[pick].serial) != pick * (uint64_t)OVERLAY_SUPERBLOCK_STRIDE)
        return err_set(err, -EUCLEAN, "its superblock %u lies in the wrong place", pick);
    *ret_sb = sb[pick];
    return 0;
}

/* Both of them; what the file does not reach to is zero. */
static int superblocks_read(struct edge *file, struct buf **ret_buf, struct err *err) MAY_WAIT
{
    size_t length = OVERLAY_SUPERBLOCK_STRIDE + OVERLAY_SUPERBLOCK_BYTES;
    CLEANUP(buf_unrefp) struct buf *buf = buf_alloc(loop_bufs(graph_loop(file->graph)), length);

    if (buf == NULL)
        return err_no_memory(err);
    struct io io = {.length_bytes = MIN(length, file->child->length_bytes)};
    io.data = buf_slice_of(buf, 0, io.length_bytes);
    memset(buf->bytes, 0, length);
    int ret = io.length_bytes == 0 ? 0 : io_read(file, &io);
    if (ret < 0)
        return err_set_errno(err, ret, "its superblocks cannot be read");
    *ret_buf = TAKE_PTR(buf);
    return 0;
}

int overlay_superblock_load(struct edge *file, struct overlay_superblock *ret_sb, struct err *err)
{
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    int ret;

    if (file->child->length_bytes < OVERLAY_SUPERBLOCK_BYTES)
        return err_set(err, -EMEDIUMTYPE,
                       "it is not an overlay image: %" PRIu64 " bytes are too few",
                       file->child->length_bytes);
    ret = superblocks_read(file, &buf, err);
    if (ret < 0)
        return ret;
    ret = superblock_choose(buf->bytes, ret_sb, err);
    if (ret == 0 && file->child->length_bytes < OVERLAY_LOG_OFFSET_BYTES)
        ret = err_set(err, -EUCLEAN, "it is truncated: %" PRIu64 " bytes are left of at least %u",
                      file->child->length_bytes, OVERLAY_LOG_OFFSET_BYTES);
    return ret;
}

/* --- writing --- */

int overlay_superblock_store(struct overlay *overlay, const struct overlay_superblock *sb)
{
    struct overlay_superblock next = *sb;
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(graph_loop(overlay->node->graph)),
                                OVERLAY_SUPERBLOCK_STRIDE);
    int ret;

    if (buf == NULL)
        return -ENOMEM;
    next.serial = overlay->sb.serial + 1;
    memset(buf->bytes, 0, OVERLAY_SUPERBLOCK_STRIDE);
    overlay_superblock_encode(&next, buf->bytes);
    struct io io = {
        .offset_bytes = superblock_offset(next.serial),
        .length_bytes = OVERLAY_SUPERBLOCK_STRIDE,
        .data = buf_slice_of(buf, 0, OVERLAY_SUPERBLOCK_STRIDE),
    };
    ret = io_write(overlay->file, &io);
    if (ret < 0)
        return ret;
    overlay->sb = next;
    overlay->sb_stale = false;
    return 0;
}

int overlay_superblock_refresh(struct overlay *overlay)
{
    int ret = 0;

    co_mutex_lock(&overlay->sb_lock);
    if ((overlay->sb.flags & OVERLAY_CLEAN) != 0 || overlay->sb_stale) {
        struct overlay_superblock sb = overlay->sb;

        sb.flags &= ~(uint32_t)OVERLAY_CLEAN;
        sb.clean_sequence = sb.clean_end_unit = 0;
        ret = overlay_superblock_store(overlay, &sb);
    }
    co_mutex_unlock(&overlay->sb_lock);
    return ret;
}

static void random_id(struct loop *loop, uint8_t id[OVERLAY_ID_BYTES])
{
    for (unsigned i = 0; i < OVERLAY_ID_BYTES; i += 8) {
        uint64_t bits = loop_random(loop);

        memcpy(id + i, &bits, sizeof(bits));
    }
}

static int create_superblock(struct loop *loop, const struct overlay_create *create,
                             struct overlay_superblock *sb, struct err *err)
{
    *sb = (struct overlay_superblock){
        .version = OVERLAY_VERSION,
        .virtual_bytes = create->virtual_bytes,
        .block_bytes = create->block_bytes != 0 ? create->block_bytes : DEFAULT_BLOCK_BYTES,
        .unit_bytes = create->unit_bytes,
        .segment_bytes = create->segment_bytes != 0 ? create->segment_bytes : DEFAULT_SEGMENT_BYTES,
        .first_sequence = 1,
        .serial = 2,
        .generation = 1,
        .flags = OVERLAY_CLEAN,
    };
    if (sb->unit_bytes == 0)
        sb->unit_bytes = MIN(sb->block_bytes, sb->virtual_bytes <= SMALL_UNITS_MAX_BYTES
                                                  ? OVERLAY_MIN_UNIT_BYTES
                                                  : OVERLAY_MAX_UNIT_BYTES);
    int ret = overlay_geometry_check(sb, err);
    if (ret < 0)
        return ret;
    sb->first_unit = sb->clean_end_unit = overlay_log_begin(sb);
    memcpy(sb->disk_id, create->disk_id, OVERLAY_ID_BYTES);
    random_id(loop, sb->image_id);
    return 0;
}

/* All that a new image has; NULL when memory is out. */
static struct buf *create_bytes(struct loop *loop, const struct overlay_superblock *sb)
{
    struct buf *buf = buf_alloc(loop_bufs(loop), OVERLAY_LOG_OFFSET_BYTES);

    if (buf == NULL)
        return NULL;
    memset(buf->bytes, 0, OVERLAY_LOG_OFFSET_BYTES);
    overlay_superblock_encode(sb, buf->bytes + superblock_offset(sb->serial));
    return buf;
}

static int create_write(struct loop *loop, const char *path, const struct overlay_superblock *sb,
                        struct err *err) MAY_WAIT
{
    struct file *file = NULL;
    struct buf *buf;
    int ret = file_open(loop, path, FILE_WRITABLE | FILE_CREATE | FILE_EXCLUSIVE, FILE_AIO_AUTO,
                        &file, err);

    if (ret < 0)
        return ret;
    buf = create_bytes(loop, sb);
    if (buf == NULL) {
        ret = err_no_memory(err);
    } else {
        ret = file_write(file, buf->bytes, OVERLAY_LOG_OFFSET_BYTES, 0);
        if (ret == 0)
            ret = file_sync(file);
        if (ret < 0)
            err_set_errno(err, ret, "cannot write '%s'", path);
    }
    buf_unref(buf);
    file_close(file);
    if (ret < 0)
        (void)path_unlink(loop, path);
    return ret;
}

/* The name, too: once a failover has begun, an overlay holds what nobody else has. */
static int sync_name(struct loop *loop, const char *path, struct err *err) MAY_WAIT
{
    int ret = path_sync_parent(loop, path);

    return ret < 0 ? err_set_errno(err, ret, "the folder of '%s' cannot be made durable", path) : 0;
}

int overlay_create(struct loop *loop, const char *path, const struct overlay_create *create,
                   bool replace, struct err *err)
{
    struct overlay_superblock sb;
    char other[4096];
    int ret = create_superblock(loop, create, &sb, err);

    if (ret < 0)
        return err_prefix(err, "cannot create overlay '%s'", path);
    if (!replace) {
        ret = create_write(loop, path, &sb, err);
        return ret < 0 ? ret : sync_name(loop, path, err);
    }
    /* Who has the old one open keeps it; nobody ever sees half a new one. */
    if (snprintf(other, sizeof(other), "%s.new-%016" PRIx64, path, loop_random(loop)) >=
        (int)sizeof(other))
        return err_set(err, -ENAMETOOLONG, "cannot create overlay '%s': the path is too long",
                       path);
    ret = create_write(loop, other, &sb, err);
    if (ret < 0)
        return ret;
    ret = path_rename(loop, other, path);
    if (ret < 0) {
        (void)path_unlink(loop, other);
        return err_set_errno(err, ret, "cannot replace '%s'", path);
    }
    return sync_name(loop, path, err);
}

int overlay_create_in(struct edge *file, const struct overlay_create *create, struct err *err)
{
    struct loop *loop = graph_loop(file->graph);
    struct overlay_superblock sb;
    int ret = create_superblock(loop, create, &sb, err);

    if (ret < 0)
        return err_prefix(err, "cannot create an overlay in node '%s'", file->child->name);
    CLEANUP(buf_unrefp) struct buf *buf = create_bytes(loop, &sb);
    if (buf == NULL)
        return err_no_memory(err);
    struct io io = {.length_bytes = OVERLAY_LOG_OFFSET_BYTES,
                    .data = buf_slice_of(buf, 0, OVERLAY_LOG_OFFSET_BYTES)};
    ret = io_write(file, &io);
    if (ret == 0)
        ret = io_flush(file);
    return ret < 0
               ? err_set_errno(err, ret, "cannot create an overlay in node '%s'", file->child->name)
               : 0;
}

/* --- telling --- */

void overlay_id_format(const uint8_t id[OVERLAY_ID_BYTES], char text[OVERLAY_ID_TEXT_BYTES])
{
    for (unsigned i = 0; i < OVERLAY_ID_BYTES; i++)
        snprintf(text + (size_t)i * 2, 3, "%02x", id[i]);
}

/* One of the two, whichever counts. */
static struct json_object *superblock_describe(const uint8_t *bytes)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    struct overlay_superblock sb;
    struct err err = ERR_INIT;
    int ret = overlay_superblock_decode(bytes, &sb, &err);
    bool empty = bytes_are_zero(bytes, OVERLAY_SUPERBLOCK_BYTES);

    if (object == NULL || json_add_string(object, "state",
                                          ret == 0 ? "good"
                                          : empty  ? "unused"
                                                   : "bad") < 0)
        return NULL;
    if (ret < 0)
        return empty || json_add_string(object, "reason", err.text) == 0 ? TAKE_PTR(object) : NULL;
    if (json_add_uint(object, "serial", sb.serial) < 0 ||
        json_add_uint(object, "generation", sb.generation) < 0 ||
        json_add_bool(object, "clean", (sb.flags & OVERLAY_CLEAN) != 0) < 0)
        return NULL;
    return TAKE_PTR(object);
}

int overlay_superblocks(struct edge *file, struct json_object **ret_list, struct err *err)
{
    CLEANUP(json_putp) struct json_object *list = json_object_new_array();
    CLEANUP(buf_unrefp) struct buf *buf = NULL;
    int ret = superblocks_read(file, &buf, err);

    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < 2; i++) {
        struct json_object *one = superblock_describe(buf->bytes +
                                                      (size_t)i * OVERLAY_SUPERBLOCK_STRIDE);

        if (list == NULL || one == NULL || json_object_array_add(list, one) < 0)
            return err_no_memory(err);
    }
    *ret_list = TAKE_PTR(list);
    return 0;
}

int overlay_info(struct edge *file, struct json_object **ret_info, struct err *err)
{
    struct overlay_superblock sb;
    char image_id[OVERLAY_ID_TEXT_BYTES], disk_id[OVERLAY_ID_TEXT_BYTES];
    int ret = overlay_superblock_load(file, &sb, err);

    if (ret < 0)
        return ret;
    overlay_id_format(sb.image_id, image_id);
    overlay_id_format(sb.disk_id, disk_id);
    CLEANUP(json_putp) struct json_object *info = json_object_new_object();
    if (info == NULL || json_add_string(info, "format", "overlay") < 0 ||
        json_add_uint(info, "version", sb.version) < 0 ||
        json_add_string(info, "image-id", image_id) < 0 ||
        json_add_string(info, "disk-id", disk_id) < 0 ||
        json_add_uint(info, "virtual-size", sb.virtual_bytes) < 0 ||
        json_add_uint(info, "block-size", sb.block_bytes) < 0 ||
        json_add_uint(info, "unit-size", sb.unit_bytes) < 0 ||
        json_add_uint(info, "segment-size", sb.segment_bytes) < 0 ||
        json_add_uint(info, "generation", sb.generation) < 0 ||
        json_add_uint(info, "epoch", sb.epoch) < 0 ||
        json_add_bool(info, "clean", (sb.flags & OVERLAY_CLEAN) != 0) < 0)
        return err_no_memory(err);
    *ret_info = TAKE_PTR(info);
    return 0;
}
