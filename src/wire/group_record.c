/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/group_record.h"

#include "base/json.h"
#include "base/opts.h"
#include "base/text.h"
#include "wire/crc32c.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define FORMAT_NAME "blockstep-group"

/* How every record ends. The checksum is of all that stands before. */
#define TAIL_BEGIN  ",\n  \"crc32c\": \""
#define TAIL_END    "\"\n}\n"
#define TAIL_DIGITS 8u
#define TAIL_BYTES  (sizeof(TAIL_BEGIN) - 1 + TAIL_DIGITS + sizeof(TAIL_END) - 1)
#define OBJECT_END  "\n}"
#define IMAGE_CHARS (2 * GROUP_RECORD_IMAGE_BYTES)

static const char *const role_names[] = {"primary", "secondary", NULL};
static const char *const stage_names[] = {"none", "running", "failover", "done", NULL};
static const char *const level_names[] = {"none", "process", "host", NULL};

const char *group_stage_name(enum group_stage stage)
{
    return stage_names[stage];
}

const char *group_durability_name(enum group_durability level)
{
    return level_names[level];
}

/* --- encoding --- */

static int add_number(struct json_object *object, const char *key, uint64_t number)
{
    char text[TEXT_HEX64_DIGITS + 1];

    snprintf(text, sizeof(text), "%016" PRIx64, number);
    return json_add_string(object, key, text);
}

static int add_overlay(struct json_object *object, const char *key,
                       const struct group_record_overlay *overlay)
{
    CLEANUP(json_putp) struct json_object *inner = json_object_new_object();
    char image[IMAGE_CHARS + 1];

    for (unsigned i = 0; i < GROUP_RECORD_IMAGE_BYTES; i++)
        snprintf(image + (size_t)2 * i, 3, "%02x", overlay->image[i]);
    if (inner == NULL || json_add_string(inner, "image", image) < 0 ||
        json_add_uint(inner, "generation", overlay->generation) < 0)
        return -ENOMEM;
    return json_add(object, key, TAKE_PTR(inner));
}

static int add_disk(struct json_object *disks, const struct group_record_disk *disk)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();

    if (object == NULL || json_add_string(object, "name", disk->name) < 0 ||
        json_add_uint(object, "size", disk->size_bytes) < 0 ||
        json_add_string(object, "identity", disk->identity) < 0 ||
        json_add_bool(object, "merged", disk->merged) < 0 ||
        add_overlay(object, "active", &disk->active) < 0 ||
        add_overlay(object, "hidden", &disk->hidden) < 0 ||
        json_object_array_add(disks, object) < 0)
        return -ENOMEM;
    object = NULL;
    return 0;
}

static int add_disks(struct json_object *object, const struct group_record *record)
{
    CLEANUP(json_putp) struct json_object *disks = json_object_new_array();

    if (disks == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < record->disk_count; i++) {
        if (add_disk(disks, &record->disks[i]) < 0)
            return -ENOMEM;
    }
    return json_add(object, "disks", TAKE_PTR(disks));
}

static int add_ancestors(struct json_object *object, const struct group_record *record)
{
    CLEANUP(json_putp) struct json_object *ancestors = json_object_new_array();

    if (ancestors == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < record->ancestor_count; i++) {
        char text[TEXT_HEX64_DIGITS + 1];

        snprintf(text, sizeof(text), "%016" PRIx64, record->ancestors[i]);
        struct json_object *item = json_object_new_string(text);
        if (item == NULL || json_object_array_add(ancestors, item) < 0) {
            json_object_put(item);
            return -ENOMEM;
        }
    }
    return json_add(object, "descends-from", TAKE_PTR(ancestors));
}

static int add_state(struct json_object *object, const struct group_record *record)
{
    if (json_add_string(object, "format", FORMAT_NAME) < 0 ||
        json_add_uint(object, "version", GROUP_RECORD_VERSION) < 0 ||
        add_number(object, "group", record->group_id) < 0 ||
        json_add_string(object, "role", role_names[record->role]) < 0 ||
        json_add_string(object, "stage", stage_names[record->stage]) < 0 ||
        json_add_bool(object, "promoted", record->promoted) < 0 ||
        add_number(object, "generation", record->generation) < 0 ||
        add_ancestors(object, record) < 0 || json_add_uint(object, "epoch", record->epoch) < 0 ||
        json_add_uint(object, "checkpoint-wall-time-ns", record->checkpoint_wall_ns) < 0)
        return -ENOMEM;
    return 0;
}

static int add_marks(struct json_object *object, const struct group_record *record)
{
    if (json_add_string(object, "durability", level_names[record->level]) < 0 ||
        json_add_string(object, "boot-id", record->boot_id) < 0 ||
        json_add_bool(object, "undo-durable", record->undo_durable) < 0 ||
        json_add_bool(object, "consistent", record->consistent) < 0 ||
        json_add_string(object, "inconsistent-reason", record->inconsistent_reason) < 0 ||
        json_add_bool(object, "stream-begun", record->stream_begun) < 0 ||
        json_add_bool(object, "stream-intact", record->stream_intact) < 0 ||
        json_add_string(object, "stream-reason", record->stream_reason) < 0 ||
        json_add_string(object, "lost", record->lost) < 0)
        return -ENOMEM;
    return 0;
}

char *group_record_encode(const struct group_record *record, size_t *ret_length)
{
    CLEANUP(json_putp) struct json_object *object = json_object_new_object();
    size_t length;

    if (object == NULL || add_state(object, record) < 0 || add_marks(object, record) < 0 ||
        add_disks(object, record) < 0)
        return NULL;
    CLEANUP(free_ptr) char *body = json_format(object, JSON_PRETTY, &length);
    if (body == NULL)
        return NULL;
    assert(length > strlen(OBJECT_END));
    length -= strlen(OBJECT_END);
    assert(memcmp(body + length, OBJECT_END, strlen(OBJECT_END)) == 0);
    char *text = malloc(length + TAIL_BYTES + 1);
    if (text == NULL)
        return NULL;
    memcpy(text, body, length);
    snprintf(text + length, TAIL_BYTES + 1, TAIL_BEGIN "%08" PRIx32 TAIL_END,
             crc32c(0, body, length));
    *ret_length = length + TAIL_BYTES;
    return text;
}

/* --- decoding --- */

struct parsed_overlay {
    char *image;
    uint64_t generation;
};

struct parsed_disk {
    char *name, *identity;
    uint64_t size_bytes;
    bool merged;
    struct parsed_overlay active, hidden;
};

struct parsed {
    char *format, *group, *generation, *boot_id, *inconsistent_reason, *stream_reason, *lost, *crc;
    uint64_t version, epoch, checkpoint_wall_ns;
    int role, stage, level;
    bool promoted, undo_durable, consistent, stream_intact;
    bool stream_begun, stream_begun_given;
    struct opt_strings ancestors;
    struct json_object *disks;
};

#define MEMBER(kind, owner, member, field, text)                                           \
    .name = (member), .type = (kind), .offset = OPT_FIELD(owner, field), .required = true, \
    .help = (text)
#define TEXT_MEMBER(owner, member, field, text)        \
    {                                                  \
        MEMBER(OPT_STRING, owner, member, field, text) \
    }
#define UINT_MEMBER(owner, member, field, text)      \
    {                                                \
        MEMBER(OPT_UINT, owner, member, field, text) \
    }
#define BOOL_MEMBER(owner, member, field, text)      \
    {                                                \
        MEMBER(OPT_BOOL, owner, member, field, text) \
    }
#define ENUM_MEMBER(member, field, names, text)                                 \
    {                                                                           \
        MEMBER(OPT_ENUM, struct parsed, member, field, text), .values = (names) \
    }

static const struct opt active_opts[] = {
    TEXT_MEMBER(struct parsed_disk, "image", active.image, "the overlay's id"),
    UINT_MEMBER(struct parsed_disk, "generation", active.generation, "which counts"),
    {0},
};

static const struct opt hidden_opts[] = {
    TEXT_MEMBER(struct parsed_disk, "image", hidden.image, "the overlay's id"),
    UINT_MEMBER(struct parsed_disk, "generation", hidden.generation, "which counts"),
    {0},
};

static const struct opt disk_opts[] = {
    TEXT_MEMBER(struct parsed_disk, "name", name, "what users call it"),
    UINT_MEMBER(struct parsed_disk, "size", size_bytes, "bytes"),
    TEXT_MEMBER(struct parsed_disk, "identity", identity, "what tells another one"),
    BOOL_MEMBER(struct parsed_disk, "merged", merged, "the disk alone is the truth"),
    {.name = "active",
     .type = OPT_OBJECT,
     .required = true,
     .members = active_opts,
     .help = "the active disk"},
    {.name = "hidden",
     .type = OPT_OBJECT,
     .required = true,
     .members = hidden_opts,
     .help = "the hidden disk"},
    {0},
};

static const struct opt record_opts[] = {
    TEXT_MEMBER(struct parsed, "format", format, "what this is"),
    UINT_MEMBER(struct parsed, "version", version, "of the format"),
    TEXT_MEMBER(struct parsed, "group", group, "the group's id"),
    ENUM_MEMBER("role", role, role_names, "which side"),
    ENUM_MEMBER("stage", stage, stage_names, "where in the group's life"),
    BOOL_MEMBER(struct parsed, "promoted", promoted, "done by a failover"),
    TEXT_MEMBER(struct parsed, "generation", generation, "of the data"),
    {.name = "descends-from",
     .type = OPT_STRINGS,
     .offset = OPT_FIELD(struct parsed, ancestors),
     .required = true,
     .help = "former generations"},
    UINT_MEMBER(struct parsed, "epoch", epoch, "the live epoch"),
    UINT_MEMBER(struct parsed, "checkpoint-wall-time-ns", checkpoint_wall_ns, "when it began"),
    ENUM_MEMBER("durability", level, level_names, "what a checkpoint survives"),
    TEXT_MEMBER(struct parsed, "boot-id", boot_id, "of the host"),
    BOOL_MEMBER(struct parsed, "undo-durable", undo_durable, "the overlays survive a power cut"),
    BOOL_MEMBER(struct parsed, "consistent", consistent, "there is a checkpoint to fall back to"),
    TEXT_MEMBER(struct parsed, "inconsistent-reason", inconsistent_reason, "why not"),
    {.name = "stream-begun",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct parsed, stream_begun),
     .present = OPT_PRESENT(struct parsed, stream_begun_given),
     .help = "a primary has written since the disks were equal; since version 2"},
    BOOL_MEMBER(struct parsed, "stream-intact", stream_intact, "nothing forwarded was lost"),
    TEXT_MEMBER(struct parsed, "stream-reason", stream_reason, "what was"),
    {.name = "lost",
     .type = OPT_STRING,
     .offset = OPT_FIELD(struct parsed, lost),
     .help = "what a forced failover has given up; since version 3"},
    {.name = "disks",
     .type = OPT_ANY,
     .offset = OPT_FIELD(struct parsed, disks),
     .required = true,
     .help = "the disks of the group"},
    TEXT_MEMBER(struct parsed, "crc32c", crc, "of all that stands before"),
    {0},
};

static int damaged(struct err *err, const char *what)
{
    return err_set(err, -EUCLEAN, "it is damaged: %s", what);
}

static int take_text(const char *from, char *to, size_t to_bytes, const char *member,
                     struct err *err)
{
    size_t length = strlen(from);

    if (length >= to_bytes)
        return err_set(err, -EUCLEAN, "it is damaged: '%s' is too long", member);
    memcpy(to, from, length + 1);
    return 0;
}

/* Lower-case hexadecimal digits, two for each byte. */
static int take_bytes(const char *text, uint8_t *bytes, size_t count)
{
    static const char digits[] = "0123456789abcdef";

    if (strlen(text) != 2 * count || strspn(text, digits) != 2 * count)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        const char *high = strchr(digits, text[2 * i]), *low = strchr(digits, text[2 * i + 1]);

        bytes[i] = (uint8_t)((high - digits) * 16 + (low - digits));
    }
    return 0;
}

static int take_number(const char *text, uint64_t *ret_number, const char *member, struct err *err)
{
    if (strlen(text) == TEXT_HEX64_DIGITS && text_hex64_parse(text, TEXT_HEX64_DIGITS, ret_number))
        return 0;
    return err_set(err, -EUCLEAN, "it is damaged: '%s' is no number of 16 digits", member);
}

static int take_overlay(const struct parsed_overlay *from, struct group_record_overlay *to,
                        struct err *err)
{
    if (take_bytes(from->image, to->image, sizeof(to->image)) < 0)
        return damaged(err, "an overlay's 'image' is no id");
    if (from->generation == 0)
        return damaged(err, "an overlay's generation is 0");
    to->generation = from->generation;
    return 0;
}

static int take_parsed_disk(const struct parsed_disk *from, struct group_record *record,
                            struct err *err)
{
    struct group_record_disk *disk = &record->disks[record->disk_count];
    int ret = take_text(from->name, disk->name, sizeof(disk->name), "name", err);

    if (ret == 0)
        ret = take_text(from->identity, disk->identity, sizeof(disk->identity), "identity", err);
    if (ret == 0)
        ret = take_overlay(&from->active, &disk->active, err);
    if (ret == 0)
        ret = take_overlay(&from->hidden, &disk->hidden, err);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < record->disk_count; i++) {
        if (strcmp(record->disks[i].name, disk->name) == 0)
            return damaged(err, "two disks have one name");
    }
    if (disk->name[0] == '\0' || from->size_bytes == 0)
        return damaged(err, "a disk without a name, or of no bytes");
    disk->size_bytes = from->size_bytes;
    disk->merged = from->merged;
    record->disk_count++;
    return 0;
}

static int take_disk(struct json_object *object, struct group_record *record, struct err *err)
{
    struct parsed_disk disk = {0};
    int ret;

    if (!json_object_is_type(object, json_type_object))
        return damaged(err, "a disk is no object");
    ret = opts_parse(disk_opts, object, OPTS_JSON, "disk", NULL, &disk, err);
    if (ret < 0)
        return ret;
    ret = take_parsed_disk(&disk, record, err);
    opts_release(disk_opts, &disk);
    return ret;
}

static int take_disks(struct json_object *disks, struct group_record *record, struct err *err)
{
    if (!json_object_is_type(disks, json_type_array) || json_object_array_length(disks) == 0 ||
        json_object_array_length(disks) > GROUP_RECORD_MAX_DISKS)
        return damaged(err, "'disks' is no list of disks");
    for (size_t i = 0; i < json_object_array_length(disks); i++) {
        int ret = take_disk(json_object_array_get_idx(disks, i), record, err);

        if (ret < 0)
            return ret;
    }
    return 0;
}

static int take_ancestors(const struct opt_strings *ancestors, struct group_record *record,
                          struct err *err)
{
    if (ancestors->count > GROUP_RECORD_MAX_ANCESTORS)
        return damaged(err, "too many former generations");
    for (size_t i = 0; i < ancestors->count; i++) {
        int ret = take_number(ancestors->items[i], &record->ancestors[i], "descends-from", err);

        if (ret < 0)
            return ret;
    }
    record->ancestor_count = ancestors->count;
    return 0;
}

static int take_texts(const struct parsed *parsed, struct group_record *record, struct err *err)
{
    int ret = take_number(parsed->group, &record->group_id, "group", err);

    if (ret == 0)
        ret = take_number(parsed->generation, &record->generation, "generation", err);
    if (ret == 0)
        ret = take_ancestors(&parsed->ancestors, record, err);
    if (ret == 0)
        ret = take_text(parsed->boot_id, record->boot_id, sizeof(record->boot_id), "boot-id", err);
    if (ret == 0)
        ret = take_text(parsed->inconsistent_reason, record->inconsistent_reason,
                        sizeof(record->inconsistent_reason), "inconsistent-reason", err);
    if (ret == 0)
        ret = take_text(parsed->stream_reason, record->stream_reason, sizeof(record->stream_reason),
                        "stream-reason", err);
    if (ret == 0 && parsed->lost != NULL)
        ret = take_text(parsed->lost, record->lost, sizeof(record->lost), "lost", err);
    return ret;
}

/* The checksum says that somebody meant these values; that does not make them good. */
static int check_sense(const struct group_record *record, struct err *err)
{
    if (record->consistent != (record->inconsistent_reason[0] == '\0'))
        return damaged(err, "'consistent' and its reason contradict each other");
    if (record->stream_intact != (record->stream_reason[0] == '\0'))
        return damaged(err, "'stream-intact' and its reason contradict each other");
    if (record->stage == GROUP_NONE && record->consistent)
        return damaged(err, "a group that has not begun cannot be consistent");
    if (record->promoted && record->stage != GROUP_DONE)
        return damaged(err, "'promoted' before the end of a failover");
    if ((record->stage == GROUP_FAILOVER || record->promoted) && record->generation == 0)
        return damaged(err, "a failover without a generation of its own");
    if (record->lost[0] != '\0' && record->stage != GROUP_FAILOVER && !record->promoted)
        return damaged(err, "'lost' without a failover");
    for (size_t i = 0; i < record->disk_count; i++) {
        if (record->disks[i].merged != record->promoted && record->stage != GROUP_FAILOVER)
            return damaged(err, "'merged' contradicts the stage");
    }
    return 0;
}

static int take_parsed(const struct parsed *parsed, struct group_record *ret_record,
                       struct err *err)
{
    CLEANUP(free_ptr) struct group_record *record = calloc(1, sizeof(*record));
    int ret;

    if (record == NULL)
        return err_no_memory(err);
    record->role = (enum group_role)parsed->role;
    record->stage = (enum group_stage)parsed->stage;
    record->level = (enum group_durability)parsed->level;
    record->promoted = parsed->promoted;
    record->epoch = parsed->epoch;
    record->checkpoint_wall_ns = parsed->checkpoint_wall_ns;
    record->undo_durable = parsed->undo_durable;
    record->consistent = parsed->consistent;
    /* Version 1 did not tell, so nobody is believed. */
    record->stream_begun = parsed->version == 1 || parsed->stream_begun;
    record->stream_intact = parsed->stream_intact;
    if (parsed->stream_begun_given != (parsed->version > 1))
        return damaged(err, "'stream-begun' does not fit its version");
    if ((parsed->lost != NULL) != (parsed->version > 2))
        return damaged(err, "'lost' does not fit its version");
    ret = take_texts(parsed, record, err);
    if (ret == 0)
        ret = take_disks(parsed->disks, record, err);
    if (ret == 0)
        ret = check_sense(record, err);
    if (ret == 0)
        *ret_record = *record;
    return ret;
}

/* Before all members are looked at: a newer version may have others. */
static int check_version(struct json_object *object, struct err *err)
{
    struct json_object *format, *version;

    if (!json_object_object_get_ex(object, "format", &format) ||
        !json_object_is_type(format, json_type_string) ||
        strcmp(json_object_get_string(format), FORMAT_NAME) != 0)
        return err_set(err, -EUCLEAN, "it is not the record of a group");
    if (!json_object_object_get_ex(object, "version", &version) ||
        !json_object_is_type(version, json_type_int) || json_object_get_int64(version) < 1)
        return damaged(err, "it has no version");
    if (json_object_get_uint64(version) > GROUP_RECORD_VERSION)
        return err_set(
            err, -ENOTSUP,
            "it has format version %s, this program knows versions %u to %u: use a newer "
            "blockstep",
            json_object_get_string(version), GROUP_RECORD_OLDEST_VERSION, GROUP_RECORD_VERSION);
    return 0;
}

static int check_crc(const char *text, size_t length_bytes, struct err *err)
{
    char tail[TAIL_BYTES + 1];

    if (length_bytes == 0)
        return damaged(err, "it is empty");
    if (length_bytes < TAIL_BYTES)
        return damaged(err, "it is too short");
    length_bytes -= TAIL_BYTES;
    snprintf(tail, sizeof(tail), TAIL_BEGIN "%08" PRIx32 TAIL_END, crc32c(0, text, length_bytes));
    if (memcmp(text + length_bytes, tail, TAIL_BYTES) != 0)
        return damaged(err, "its checksum is wrong");
    return 0;
}

int group_record_decode(const char *text, size_t length_bytes, struct group_record *ret_record,
                        struct err *err)
{
    CLEANUP(json_putp) struct json_object *object = NULL;
    struct parsed parsed = {0};
    int ret = check_crc(text, length_bytes, err);

    if (ret < 0)
        return ret;
    ret = json_parse(text, length_bytes, "it is damaged", &object, err);
    if (ret == 0 && !json_object_is_type(object, json_type_object))
        ret = damaged(err, "it is no object");
    if (ret == 0)
        ret = check_version(object, err);
    if (ret == 0)
        ret = opts_parse(record_opts, object, OPTS_JSON, "it is damaged", NULL, &parsed, err);
    if (ret == 0) {
        ret = take_parsed(&parsed, ret_record, err);
        opts_release(record_opts, &parsed);
    }
    if (ret == 0 || ret == -ENOTSUP || ret == -ENOMEM)
        return ret;
    err->code = -EUCLEAN;
    return -EUCLEAN;
}
