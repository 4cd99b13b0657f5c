/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file system of a simulated host: folders, names, inodes, and the changes of names that are not
 * durable yet. No links, no permissions; relative paths begin at the root.
 */
#include "loop/sim_internal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* Changes of names that wait for a sync, at most: the oldest become durable by themselves. */
#define SIM_CHANGES_MAX 1024u

#define SIM_BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"

/* Empty after a power cut. */
static const char *const volatile_folders[] = {"/tmp", "/run", "/dev/shm"};

/* A change of names, with what it takes to undo it. Holds a reference on each inode. */
struct sim_change {
    struct list_link link;
    struct sim_inode *from_folder; /* NULL: made here */
    struct sim_inode *to_folder;   /* NULL: removed here */
    struct sim_inode *inode;
    struct sim_inode *displaced; /* had the new name before; may be NULL */
    bool undone;
    char *from_name, *to_name; /* behind the struct */
};

/* --- inodes --- */

static struct sim_inode *sim_inode_new(struct sim_host *host, enum sim_inode_kind kind)
{
    struct sim_inode *inode = calloc(1, sizeof(*inode));
    if (inode == NULL)
        return NULL;
    inode->kind = kind;
    inode->host = host;
    inode->refs = inode->uses = 1;
    inode->number = ++host->inodes_made;
    list_init(&inode->entries);
    list_init(&inode->locks);
    list_push_back(&host->inodes, &inode->link);
    sim_pages_init(&inode->pages, &host->space);
    return inode;
}

struct sim_inode *sim_inode_ref(struct sim_inode *inode)
{
    inode->refs++;
    return inode;
}

static void sim_folder_empty(struct sim_inode *folder);

void sim_inode_unref(struct sim_inode *inode)
{
    assert(inode->refs > 0);
    if (--inode->refs > 0)
        return;
    sim_folder_empty(inode);
    assert(list_empty(&inode->locks));
    sim_pages_clear(&inode->pages);
    list_remove(&inode->link);
    free(inode);
}

void sim_inode_use(struct sim_inode *inode)
{
    inode->refs++;
    if (inode->uses++ == 0)
        sim_pages_count(&inode->pages, true);
}

void sim_inode_unuse(struct sim_inode *inode)
{
    assert(inode->uses > 0);
    if (--inode->uses == 0)
        sim_pages_count(&inode->pages, false);
    sim_inode_unref(inode);
}

/* --- folders --- */

static struct sim_entry *sim_folder_find(struct sim_inode *folder, const char *name, size_t length)
{
    LIST_FOR_EACH(entry, &folder->entries, struct sim_entry, link) {
        if (strlen(entry->name) == length && memcmp(entry->name, name, length) == 0)
            return entry;
    }
    return NULL;
}

/* Takes over the caller's use of the inode. */
static struct sim_entry *sim_folder_add(struct sim_inode *folder, const char *name, size_t length,
                                        struct sim_inode *inode)
{
    struct sim_entry *entry = calloc(1, sizeof(*entry) + length + 1);
    if (entry == NULL)
        return NULL;
    memcpy(entry->name, name, length);
    entry->inode = inode;
    list_push_back(&folder->entries, &entry->link);
    return entry;
}

static void sim_entry_free(struct sim_entry *entry)
{
    list_remove(&entry->link);
    sim_inode_unuse(entry->inode);
    free(entry);
}

static void sim_folder_empty(struct sim_inode *folder)
{
    while (!list_empty(&folder->entries))
        sim_entry_free(LIST_ENTRY(list_first(&folder->entries), struct sim_entry, link));
}

/* Where a path leads. The last name may not exist: `entry` is NULL then, unless it is the root. */
struct sim_place {
    struct sim_inode *folder; /* holds the last name; NULL: the path is the root */
    struct sim_entry *entry;
    const char *name;
    size_t name_length;
};

#define SIM_PATH_DEPTH_MAX 64u

/* Cuts the path into names, resolving "." and "..". Returns how many, or -errno. */
static int sim_path_split(const char *path, const char **names, size_t *lengths)
{
    int count = 0;

    if (*path == '\0')
        return -ENOENT;
    if (strlen(path) >= PATH_MAX)
        return -ENAMETOOLONG;
    while (*path != '\0') {
        size_t length = strcspn(path, "/");
        bool dot = length == 1 && path[0] == '.';
        bool dots = length == 2 && path[0] == '.' && path[1] == '.';
        if (length > NAME_MAX || count == SIM_PATH_DEPTH_MAX)
            return -ENAMETOOLONG;
        if (dots && count > 0) {
            count--;
        } else if (length > 0 && !dot && !dots) {
            names[count] = path;
            lengths[count++] = length;
        }
        path += length + (path[length] == '/');
    }
    return count;
}

static int sim_place_find(struct sim_host *host, const char *path, struct sim_place *ret_place)
{
    const char *names[SIM_PATH_DEPTH_MAX];
    size_t lengths[SIM_PATH_DEPTH_MAX];
    int count = sim_path_split(path, names, lengths);
    struct sim_inode *folder = host->root;

    *ret_place = (struct sim_place){.folder = NULL};
    if (count <= 0)
        return count;
    for (int i = 0; i < count - 1; i++) {
        struct sim_entry *entry = sim_folder_find(folder, names[i], lengths[i]);
        if (entry == NULL)
            return -ENOENT;
        folder = entry->inode;
        if (folder->kind != SIM_FOLDER)
            return -ENOTDIR;
    }
    *ret_place = (struct sim_place){
        .folder = folder,
        .entry = sim_folder_find(folder, names[count - 1], lengths[count - 1]),
        .name = names[count - 1],
        .name_length = lengths[count - 1],
    };
    return 0;
}

int sim_fs_find(struct sim_host *host, const char *path, struct sim_inode **ret_inode)
{
    struct sim_place place;
    int result = sim_place_find(host, path, &place);

    if (result < 0)
        return result;
    if (place.folder != NULL && place.entry == NULL)
        return -ENOENT;
    *ret_inode = place.folder != NULL ? place.entry->inode : host->root;
    return 0;
}

/* --- changes that are not durable --- */

/* One that has not been noted; NULL is fine. */
static void sim_change_drop(struct sim_change *change)
{
    if (change == NULL)
        return;
    struct sim_inode *const inodes[] = {change->from_folder, change->to_folder, change->inode,
                                        change->displaced};
    for (size_t i = 0; i < ARRAY_LEN(inodes); i++) {
        if (inodes[i] != NULL)
            sim_inode_unref(inodes[i]);
    }
    free(change);
}

static void sim_change_free(struct sim_change *change)
{
    list_remove(&change->link);
    change->inode->host->change_count--;
    sim_change_drop(change);
}

/* Room for a change, so that what it notes cannot fail any more. `from` or `to` may be NULL. */
static struct sim_change *sim_change_new(const struct sim_place *from, const struct sim_place *to)
{
    size_t from_bytes = from != NULL ? from->name_length + 1 : 0;
    size_t to_bytes = to != NULL ? to->name_length + 1 : 0;
    struct sim_change *change = calloc(1, sizeof(*change) + from_bytes + to_bytes);

    if (change == NULL)
        return NULL;
    change->from_name = (char *)(change + 1);
    change->to_name = change->from_name + from_bytes;
    if (from != NULL) {
        memcpy(change->from_name, from->name, from->name_length);
        change->from_folder = sim_inode_ref(from->folder);
    }
    if (to != NULL) {
        memcpy(change->to_name, to->name, to->name_length);
        change->to_folder = sim_inode_ref(to->folder);
        if (to->entry != NULL)
            change->displaced = sim_inode_ref(to->entry->inode);
    }
    return change;
}

static void sim_change_note(struct sim_change *change, struct sim_inode *inode)
{
    struct sim_host *host = inode->host;

    change->inode = sim_inode_ref(inode);
    list_push_back(&host->changes, &change->link);
    if (++host->change_count > SIM_CHANGES_MAX)
        sim_change_free(LIST_ENTRY(list_first(&host->changes), struct sim_change, link));
}

/* Back to what was: all later changes of its folders have been undone. */
static void sim_change_undo(struct sim_change *change)
{
    struct sim_inode *const folders[] = {change->to_folder, change->from_folder};
    const char *const names[] = {change->to_name, change->from_name};
    struct sim_inode *const inodes[] = {change->displaced, change->inode};

    for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
        if (folders[i] == NULL)
            continue;
        struct sim_entry *entry = sim_folder_find(folders[i], names[i], strlen(names[i]));
        if (entry != NULL)
            sim_entry_free(entry);
        if (inodes[i] == NULL)
            continue;
        sim_inode_use(inodes[i]);
        if (sim_folder_add(folders[i], names[i], strlen(names[i]), inodes[i]) == NULL)
            sim_inode_unuse(inodes[i]); /* memory is out: the name is lost */
    }
}

static struct sim_inode *sim_folder_add_new(struct sim_host *host, const struct sim_place *place,
                                            enum sim_inode_kind kind)
{
    struct sim_change *change = sim_change_new(NULL, place);
    struct sim_inode *inode = sim_inode_new(host, kind);

    if (change == NULL || inode == NULL ||
        sim_folder_add(place->folder, place->name, place->name_length, inode) == NULL) {
        if (inode != NULL)
            sim_inode_unuse(inode);
        sim_change_drop(change);
        return NULL;
    }
    snprintf(inode->name, sizeof(inode->name), "%.*s", (int)place->name_length, place->name);
    sim_change_note(change, inode);
    return inode;
}

/* --- making, renaming, removing --- */

int sim_fs_make(struct sim_host *host, const char *path, enum sim_inode_kind kind,
                struct sim_inode **ret_inode)
{
    struct sim_place place;
    int result = sim_place_find(host, path, &place);

    if (result < 0)
        return result;
    if (place.folder == NULL || place.entry != NULL)
        return -EEXIST;
    struct sim_inode *inode = sim_folder_add_new(host, &place, kind);
    if (inode == NULL)
        return -ENOMEM;
    *ret_inode = inode;
    return 0;
}

int sim_fs_make_folders(struct sim_host *host, const char *path)
{
    const char *names[SIM_PATH_DEPTH_MAX];
    size_t lengths[SIM_PATH_DEPTH_MAX];
    int count = sim_path_split(path, names, lengths);
    struct sim_inode *folder = host->root;

    for (int i = 0; i < count; i++) {
        const struct sim_place place = {
            .folder = folder, .name = names[i], .name_length = lengths[i]};
        struct sim_entry *entry = sim_folder_find(folder, names[i], lengths[i]);
        folder = entry != NULL ? entry->inode : sim_folder_add_new(host, &place, SIM_FOLDER);
        if (folder == NULL)
            return -ENOMEM;
        if (folder->kind != SIM_FOLDER)
            return -ENOTDIR;
    }
    return count < 0 ? count : 0;
}

static bool sim_inode_is_below(const struct sim_inode *inode, const struct sim_inode *above)
{
    if (inode == above)
        return true;
    LIST_FOR_EACH(entry, &above->entries, struct sim_entry, link) {
        if (sim_inode_is_below(inode, entry->inode))
            return true;
    }
    return false;
}

/* What rename() refuses when the new name is taken. */
static int sim_rename_check(const struct sim_inode *from, const struct sim_inode *to)
{
    if (to->kind == SIM_FOLDER && from->kind != SIM_FOLDER)
        return -EISDIR;
    if (to->kind != SIM_FOLDER && from->kind == SIM_FOLDER)
        return -ENOTDIR;
    return list_empty(&to->entries) ? 0 : -ENOTEMPTY;
}

/* Each entry keeps its use of an inode, of the other one now. */
static int sim_exchange(const struct sim_place *one, const struct sim_place *other)
{
    struct sim_change *change = sim_change_new(one, other);
    struct sim_inode *inode = one->entry->inode;

    if (change == NULL)
        return -ENOMEM;
    sim_change_note(change, inode);
    one->entry->inode = other->entry->inode;
    other->entry->inode = inode;
    return 0;
}

int sim_fs_rename(struct sim_host *host, const char *from, const char *to, bool exchange)
{
    struct sim_place old, new;
    int result = sim_place_find(host, from, &old);

    if (result == 0)
        result = sim_place_find(host, to, &new);
    if (result < 0)
        return result;
    if (old.folder == NULL || new.folder == NULL)
        return -EBUSY;
    if (old.entry == NULL || (exchange && new.entry == NULL))
        return -ENOENT;
    if (new.entry != NULL &&new.entry->inode == old.entry->inode)
        return 0;
    if (sim_inode_is_below(new.folder, old.entry->inode))
        return -EINVAL;
    if (exchange)
        return sim_inode_is_below(old.folder, new.entry->inode) ? -EINVAL
                                                                : sim_exchange(&old, &new);
    if (new.entry != NULL && (result = sim_rename_check(old.entry->inode, new.entry->inode)) < 0)
        return result;
    struct sim_change *change = sim_change_new(&old, &new);
    struct sim_inode *inode = old.entry->inode;
    if (change == NULL || sim_folder_add(new.folder, new.name, new.name_length, inode) == NULL) {
        sim_change_drop(change);
        return -ENOMEM;
    }
    sim_inode_use(inode); /* of the new name; that of the old one goes with it */
    sim_change_note(change, inode);
    sim_entry_free(old.entry);
    if (new.entry != NULL)
        sim_entry_free(new.entry);
    return 0;
}

int sim_fs_unlink(struct sim_host *host, const char *path)
{
    struct sim_place place;
    int result = sim_place_find(host, path, &place);

    if (result < 0)
        return result;
    if (place.folder == NULL)
        return -EISDIR;
    if (place.entry == NULL)
        return -ENOENT;
    if (place.entry->inode->kind == SIM_FOLDER)
        return -EISDIR;
    struct sim_change *change = sim_change_new(&place, NULL);
    if (change == NULL)
        return -ENOMEM;
    sim_change_note(change, place.entry->inode);
    sim_entry_free(place.entry);
    return 0;
}

/* --- what is durable --- */

static bool sim_change_is_of(const struct sim_change *change, const struct sim_inode *folder)
{
    return folder != NULL && (change->from_folder == folder || change->to_folder == folder);
}

/* Changes up to and including this one become durable: those of its folders, and what these need. */
static void sim_changes_settle(struct sim_host *host, struct sim_change *last)
{
    struct list_link *link = &last->link;

    last->undone = true; /* for a while: marks what settles */
    while ((link = link->prev) != &host->changes.head) {
        struct sim_change *change = LIST_ENTRY(link, struct sim_change, link);
        for (struct list_link *at = link->next; at != last->link.next; at = at->next) {
            const struct sim_change *later = LIST_ENTRY(at, struct sim_change, link);
            if (later->undone && (sim_change_is_of(change, later->from_folder) ||
                                  sim_change_is_of(change, later->to_folder)))
                change->undone = true;
        }
    }
    LIST_FOR_EACH_SAFE(change, &host->changes, struct sim_change, link) {
        if (change->undone)
            sim_change_free(change);
    }
}

int sim_fs_sync_folder(struct sim_host *host, const char *path)
{
    struct sim_inode *folder;
    struct sim_change *last = NULL;
    int result = sim_fs_find(host, path, &folder);

    if (result < 0)
        return result;
    if (folder->kind != SIM_FOLDER)
        return -ENOTDIR;
    LIST_FOR_EACH(change, &host->changes, struct sim_change, link) {
        if (sim_change_is_of(change, folder))
            last = change;
    }
    if (last != NULL)
        sim_changes_settle(host, last);
    return 0;
}

/* Whether this change has happened: not when an earlier one of one of its folders has not. */
static bool sim_change_happened(struct sim_host *host, const struct sim_change *change,
                                struct sim_luck *luck)
{
    const struct sim_choice_info info = {
        .choice = SIM_CHOICE_NAME,
        .host = host->name,
        .name = change->to_folder != NULL ? change->to_name : change->from_name,
        .inode = change->inode->number,
    };

    LIST_FOR_EACH(earlier, &host->changes, struct sim_change, link) {
        if (earlier == change)
            break;
        if (earlier->undone && (sim_change_is_of(change, earlier->from_folder) ||
                                sim_change_is_of(change, earlier->to_folder)))
            return false;
    }
    return sim_choose(luck, &info);
}

static void sim_volatile_empty(struct sim_host *host)
{
    struct sim_inode *folder;

    for (size_t i = 0; i < ARRAY_LEN(volatile_folders); i++) {
        if (sim_fs_find(host, volatile_folders[i], &folder) == 0)
            sim_folder_empty(folder);
    }
}

static int sim_boot_id_write(struct sim_host *host)
{
    uint64_t *state = &host->space.random_state;
    uint64_t a = sim_random_from(state), b = sim_random_from(state);
    struct sim_inode *inode;
    char text[40];

    int result = sim_fs_find(host, SIM_BOOT_ID_PATH, &inode);
    if (result < 0)
        return result;
    int length = snprintf(text, sizeof(text), "%08x-%04x-4%03x-a%03x-%012llx\n",
                          (unsigned)(a >> 32), (unsigned)(a >> 16) & 0xffff, (unsigned)a & 0xfff,
                          (unsigned)(b >> 48) & 0xfff,
                          (unsigned long long)b & UINT64_C(0xffffffffffff));
    sim_pages_count(&inode->pages, false); /* it is on no disk */
    result = sim_pages_write(&inode->pages, text, (size_t)length, 0);
    sim_pages_sync(&inode->pages);
    inode->length_bytes = inode->stable_bytes = inode->least_bytes = (uint64_t)length;
    return result;
}

void sim_fs_cut(struct sim_host *host)
{
    struct sim_luck luck;

    sim_volatile_empty(host);
    sim_luck_draw(host->sim, &luck);
    LIST_FOR_EACH(change, &host->changes, struct sim_change, link)
        change->undone = !sim_change_happened(host, change, &luck);
    while (!list_empty(&host->changes)) {
        struct sim_change *last = LIST_ENTRY(host->changes.head.prev, struct sim_change, link);
        if (last->undone)
            sim_change_undo(last);
        sim_change_free(last);
    }
    sim_volatile_empty(host);
    (void)sim_boot_id_write(host); /* -ENOMEM: it keeps the old one */
}

/* --- a host comes and goes --- */

static void sim_changes_forget(struct sim_host *host)
{
    while (!list_empty(&host->changes))
        sim_change_free(LIST_ENTRY(list_first(&host->changes), struct sim_change, link));
}

int sim_fs_init(struct sim_host *host)
{
    static const char *const folders[] = {"/var/tmp", "/proc/sys/kernel/random"};
    struct sim_inode *inode;
    int result = 0;

    host->root = sim_inode_new(host, SIM_FOLDER);
    if (host->root == NULL)
        return -ENOMEM;
    for (size_t i = 0; result == 0 && i < ARRAY_LEN(volatile_folders); i++)
        result = sim_fs_make_folders(host, volatile_folders[i]);
    for (size_t i = 0; result == 0 && i < ARRAY_LEN(folders); i++)
        result = sim_fs_make_folders(host, folders[i]);
    if (result == 0)
        result = sim_fs_make(host, SIM_BOOT_ID_PATH, SIM_REGULAR, &inode);
    if (result == 0)
        result = sim_boot_id_write(host);
    sim_changes_forget(host);
    return result;
}

void sim_fs_deinit(struct sim_host *host)
{
    sim_changes_forget(host);
    if (host->root == NULL)
        return;
    sim_inode_unuse(host->root);
    assert(list_empty(&host->inodes));
    assert(host->space.used_bytes == 0);
}
