/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/runtime.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SUFFIX      ".qmp"
#define GREETING_MS 1000 /* a daemon that is busy for longer counts as one */

int name_check(const char *name, const char *what, struct err *err)
{
    size_t length = strlen(name);

    if (length > 0 && length <= NAME_MAX_CHARS && isalpha((unsigned char)name[0])) {
        size_t good = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                   "0123456789._-");

        if (good == length)
            return 0;
    }
    return err_set(err, -EINVAL,
                   "%s '%s': a name has up to %d letters, digits, '.', '_', '-', and begins with a "
                   "letter",
                   what, name, NAME_MAX_CHARS);
}

int runtime_folder(char *path, size_t path_bytes, struct err *err)
{
    const char *given = getenv("BLOCKSTEP_RUNTIME_DIR");
    const char *session = getenv("XDG_RUNTIME_DIR");
    int length;

    if (given != NULL && *given != '\0')
        length = snprintf(path, path_bytes, "%s", given);
    else if (geteuid() == 0)
        length = snprintf(path, path_bytes, "/run/blockstep");
    else if (session != NULL && *session != '\0')
        length = snprintf(path, path_bytes, "%s/blockstep", session);
    else
        return err_set(err, -ENOENT,
                       "XDG_RUNTIME_DIR is not set, so there is no place for control sockets: set "
                       "it, or BLOCKSTEP_RUNTIME_DIR");
    if (length < 0 || (size_t)length >= path_bytes)
        return err_set(err, -ENAMETOOLONG,
                       "the path of the folder for control sockets is too long");
    return 0;
}

int folder_make(const char *path, unsigned mode, struct err *err)
{
    char part[PATH_MAX];
    size_t length = strlen(path);

    if (length == 0 || length >= sizeof(part))
        return err_set(err, -ENAMETOOLONG, "the path of a folder is empty or too long");
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, mode) < 0 && errno != EEXIST)
            return err_set_errno(err, -errno, "cannot make folder %s", part);
    }
    return 0;
}

int runtime_address(const char *name, bool make_folder, char *address, size_t address_bytes,
                    struct err *err)
{
    char folder[RUNTIME_PATH_BYTES];
    int length;
    int r = name_check(name, "--name", err);

    if (r == 0)
        r = runtime_folder(folder, sizeof(folder), err);
    if (r == 0 && make_folder)
        r = folder_make(folder, 0700, err);
    if (r < 0)
        return r;
    length = snprintf(address, address_bytes, "unix:%s/%s" SUFFIX, folder, name);
    if (length < 0 || (size_t)length >= address_bytes)
        return err_set(err, -ENAMETOOLONG, "the path of the control socket is too long");
    return 0;
}

/* The name a control socket stands for, cut out of the entry's; NULL: the entry is none. */
static const char *socket_name(struct dirent *entry)
{
    size_t length = strlen(entry->d_name);

    if (length <= strlen(SUFFIX) || strcmp(entry->d_name + length - strlen(SUFFIX), SUFFIX) != 0)
        return NULL;
    entry->d_name[length - strlen(SUFFIX)] = '\0';
    return entry->d_name;
}

/* False for what a killed daemon has left behind. Its socket may take connections for some 100 ms
 * more, so a greeting must come. */
static bool is_served(const char *folder, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP(fd_close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int length = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s" SUFFIX, folder, name);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    char byte;

    if (fd < 0 || length < 0 || (size_t)length >= sizeof(address.sun_path))
        return true;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return errno != ECONNREFUSED;
    return poll(&wait, 1, GREETING_MS) == 0 || recv(fd, &byte, 1, 0) == 1;
}

size_t runtime_each_name(void (*visit)(void *arg, const char *name), void *arg, struct err *err)
{
    char folder[RUNTIME_PATH_BYTES];
    struct dirent *entry;
    size_t count = 0;
    DIR *stream;

    if (runtime_folder(folder, sizeof(folder), err) < 0)
        return 0;
    stream = opendir(folder);
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        const char *name = socket_name(entry);

        if (name == NULL)
            continue;
        visit(arg, name);
        count++;
    }
    if (stream != NULL)
        closedir(stream);
    return count;
}

int runtime_only_name(char *name, size_t name_bytes, struct err *err)
{
    char folder[RUNTIME_PATH_BYTES], names[300] = "";
    size_t count = 0, length = 0;
    struct dirent *entry;
    DIR *stream;
    int r = runtime_folder(folder, sizeof(folder), err);

    if (r < 0)
        return r;
    stream = opendir(folder);
    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        const char *found = socket_name(entry);

        if (found == NULL || !is_served(folder, found))
            continue;
        if (count++ == 0)
            snprintf(name, name_bytes, "%s", found);
        if (length < sizeof(names))
            length += (size_t)snprintf(names + length, sizeof(names) - length, "%s%s",
                                       length > 0 ? ", " : "", found);
    }
    if (stream != NULL)
        closedir(stream);
    if (count == 1)
        return 0;
    if (count == 0)
        return err_set(err, -ENOENT,
                       "no daemon has its control socket in %s: say --name NAME or "
                       "--qmp ADDRESS",
                       folder);
    return err_set(err, -EINVAL, "there are several daemons, say which: --name %s", names);
}
