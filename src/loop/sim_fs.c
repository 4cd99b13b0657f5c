/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The file system of a simulated host: folders, names and inodes. No links, no permissions; relative paths begin at the root. */
#include "loop/sim_internal.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static struct sim_inode *sim_inode_new(struct sim_host *host, enum sim_inode_kind kind)
{
    struct sim_inode *inode = calloc(1, sizeof(*inode));
    if (inode == NULL)
        return NULL;
    inode->kind = kind;
    inode->refs = 1;
    inode->number = ++host->inodes_made;
    list_init(&inode->entries);
    list_init(&inode->locks);
    sim_pages_init(&inode->pages, &host->space);
    return inode;
}

void sim_inode_unref(struct sim_inode *inode)
{
    assert(inode->refs > 0);
    if (--inode->refs > 0)
        return;
    assert(list_empty(&inode->entries));
    assert(list_empty(&inode->locks));
    sim_pages_clear(&inode->pages);
    free(inode);
}

static struct sim_entry *sim_folder_find(struct sim_inode *folder, const char *name, size_t length)
{
    LIST_FOR_EACH(entry, &folder->entries, struct sim_entry, link) {
        if (strlen(entry->name) == length && memcmp(entry->name, name, length) == 0)
            return entry;
    }
    return NULL;
}

/* Takes over the caller's reference of the inode. */
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
    sim_inode_unref(entry->inode);
    free(entry);
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

int sim_fs_make(struct sim_host *host, const char *path, enum sim_inode_kind kind,
                struct sim_inode **ret_inode)
{
    struct sim_place place;
    int result = sim_place_find(host, path, &place);

    if (result < 0)
        return result;
    if (place.folder == NULL || place.entry != NULL)
        return -EEXIST;
    struct sim_inode *inode = sim_inode_new(host, kind);
    if (inode == NULL)
        return -ENOMEM;
    if (sim_folder_add(place.folder, place.name, place.name_length, inode) == NULL) {
        sim_inode_unref(inode);
        return -ENOMEM;
    }
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
        struct sim_entry *entry = sim_folder_find(folder, names[i], lengths[i]);
        if (entry == NULL) {
            struct sim_inode *made = sim_inode_new(host, SIM_FOLDER);
            if (made == NULL)
                return -ENOMEM;
            entry = sim_folder_add(folder, names[i], lengths[i], made);
            if (entry == NULL) {
                sim_inode_unref(made);
                return -ENOMEM;
            }
        }
        folder = entry->inode;
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

int sim_fs_rename(struct sim_host *host, const char *from, const char *to)
{
    struct sim_place old, new;
    int result = sim_place_find(host, from, &old);

    if (result == 0)
        result = sim_place_find(host, to, &new);
    if (result < 0)
        return result;
    if (old.folder == NULL || new.folder == NULL)
        return -EBUSY;
    if (old.entry == NULL)
        return -ENOENT;
    if (new.entry != NULL &&new.entry->inode == old.entry->inode)
        return 0;
    if (sim_inode_is_below(new.folder, old.entry->inode))
        return -EINVAL;
    if (new.entry != NULL && (result = sim_rename_check(old.entry->inode, new.entry->inode)) < 0)
        return result;
    struct sim_inode *inode = old.entry->inode;
    if (sim_folder_add(new.folder, new.name, new.name_length, inode) == NULL)
        return -ENOMEM;
    inode->refs++; /* of the new name; that of the old one goes with it */
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
    sim_entry_free(place.entry);
    return 0;
}

int sim_fs_init(struct sim_host *host)
{
    host->root = sim_inode_new(host, SIM_FOLDER);
    if (host->root == NULL)
        return -ENOMEM;
    static const char *const folders[] = {"/tmp", "/run", "/var/tmp", "/dev/shm"};
    for (size_t i = 0; i < ARRAY_LEN(folders); i++) {
        int result = sim_fs_make_folders(host, folders[i]);
        if (result < 0)
            return result;
    }
    return 0;
}

static void sim_inode_empty(struct sim_inode *inode)
{
    LIST_FOR_EACH_SAFE(entry, &inode->entries, struct sim_entry, link) {
        sim_inode_empty(entry->inode);
        sim_entry_free(entry);
    }
}

void sim_fs_deinit(struct sim_host *host)
{
    sim_faults_drop(host);
    if (host->root == NULL)
        return;
    sim_inode_empty(host->root);
    sim_inode_unref(host->root);
    assert(host->space.used_bytes == 0);
}
