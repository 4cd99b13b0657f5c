/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bin/privileges.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEPT ((1u << CAP_DAC_OVERRIDE) | (1u << CAP_NET_BIND_SERVICE))

_Static_assert(CAP_DAC_OVERRIDE < 32 && CAP_NET_BIND_SERVICE < 32, "KEPT is the first word");

/* --- another user --- */

struct identity {
    char *name; /* NULL: a number that nobody's name stands for */
    uid_t uid;
    gid_t gid;
};

/* Whether the whole of `text` is a number that an id may have. */
static bool id_parse(const char *text, unsigned *ret_id)
{
    char *end = NULL;
    unsigned long number;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    number = strtoul(text, &end, 10);
    if (errno != 0 || *end != '\0' || number >= UINT_MAX)
        return false;
    *ret_id = (unsigned)number;
    return true;
}

static int group_find(const char *text, struct identity *identity, struct err *err)
{
    const struct group *group = getgrnam(text);
    unsigned number;

    if (group != NULL)
        identity->gid = group->gr_gid;
    else if (id_parse(text, &number))
        identity->gid = number;
    else
        return err_set(err, -ENOENT, "--runas: there is no group '%s'", text);
    return 0;
}

static int user_find(const char *text, bool with_group, struct identity *identity, struct err *err)
{
    const struct passwd *user = getpwnam(text);
    unsigned number = 0;

    if (user == NULL && id_parse(text, &number))
        user = getpwuid(number);
    else if (user == NULL)
        return err_set(err, -ENOENT, "--runas: there is no user '%s'", text);
    if (user == NULL && !with_group)
        return err_set(err, -ENOENT, "--runas: user %u has no entry: say its group, as in %u:%u",
                       number, number, number);
    *identity = (struct identity){.uid = user != NULL ? user->pw_uid : number,
                                  .gid = user != NULL ? user->pw_gid : number};
    if (user != NULL && (identity->name = strdup(user->pw_name)) == NULL)
        return err_no_memory(err);
    return 0;
}

static int identity_parse(const char *text, struct identity *identity, struct err *err)
{
    const char *colon = strchr(text, ':');
    char *user = strndup(text, colon != NULL ? (size_t)(colon - text) : strlen(text));
    int r = user != NULL ? user_find(user, colon != NULL, identity, err) : err_no_memory(err);

    free(user);
    return r == 0 && colon != NULL ? group_find(colon + 1, identity, err) : r;
}

/* The group first: afterwards there is no right left to do it. */
static int identity_take(const struct identity *identity)
{
    int r = identity->name != NULL ? initgroups(identity->name, identity->gid) : setgroups(0, NULL);

    if (r < 0 || setresgid(identity->gid, identity->gid, identity->gid) < 0 ||
        setresuid(identity->uid, identity->uid, identity->uid) < 0)
        return -errno;
    /* Nobody must come back from there. */
    return identity->uid != 0 && setuid(0) == 0 ? -ENOTRECOVERABLE : 0;
}

int privileges_become(const char *user, struct err *err)
{
    struct identity identity = {.name = NULL};
    int r = identity_parse(user, &identity, err);

    if (r == 0)
        r = identity_take(&identity);
    if (r < 0 && !err_is_set(err))
        err_set_errno(err, r, "--runas: cannot become user '%s'%s", user,
                      r == -EPERM ? ", which only root can" : "");
    free(identity.name);
    return r;
}

/* --- capabilities --- */

/* As the kernel keeps them: the words of each set one after the other. */
struct capabilities {
    struct __user_cap_header_struct head;
    struct __user_cap_data_struct words[_LINUX_CAPABILITY_U32S_3];
};

/* The bounding set holds for what would be executed; without CAP_SETPCAP it stays, which does not
 * matter behind no_new_privs. */
static void bounding_limit(void)
{
    for (unsigned cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
        if (cap >= 32 || (KEPT & (1u << cap)) == 0)
            (void)prctl(PR_CAPBSET_DROP, cap);
    }
}

/* Leaves what is kept of the sets; false: there is nothing to give up. */
static bool capabilities_limit(struct capabilities *own)
{
    bool changed = false;

    for (unsigned i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        struct __user_cap_data_struct *word = &own->words[i];
        const struct __user_cap_data_struct before = *word;

        word->permitted &= i == 0 ? KEPT : 0;
        word->effective = word->permitted;
        word->inheritable = 0;
        changed |= word->permitted != before.permitted || word->effective != before.effective ||
                   before.inheritable != 0;
    }
    return changed;
}

int privileges_limit(struct err *err)
{
    struct capabilities own = {.head = {.version = _LINUX_CAPABILITY_VERSION_3}};

    if (syscall(SYS_capget, &own.head, own.words) < 0)
        return err_set_errno(err, -errno, "cannot read the capabilities");
    bounding_limit();
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    /* A sandbox that has taken them all often forbids the call as well. */
    if (capabilities_limit(&own) && syscall(SYS_capset, &own.head, own.words) < 0)
        return err_set_errno(err, -errno, "cannot give up capabilities");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_set_errno(err, -errno, "cannot set no_new_privs");
    return 0;
}

int state_folder_check(const char *folder, struct err *err)
{
    struct stat st;

    if (stat(folder, &st) < 0 && errno == ENOENT)
        return 0;
    if (stat(folder, &st) < 0)
        return err_set_errno(err, -errno, "--state: cannot look at %s", folder);
    if ((st.st_mode & S_IWOTH) == 0)
        return 0;
    return err_set(err, -EPERM, "--state: others may write to %s (mode %04o); chmod 700 it", folder,
                   (unsigned)st.st_mode & 07777);
}
