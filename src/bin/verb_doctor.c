/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockstep doctor: whether this host, its daemons and some disks are fit for the job. */
#include "bin/runtime.h"
#include "bin/verbs.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define OLDEST_KERNEL_MAJOR  5
#define OLDEST_KERNEL_MINOR  15
#define GOOD_KERNEL_MAJOR    6
#define GOOD_KERNEL_MINOR    1
/* Since 5.12 the rings' memory is counted with the process's; before, as locked. */
#define MEMLOCK_KERNEL_MAJOR 5
#define MEMLOCK_KERNEL_MINOR 12
#define MEMLOCK_LEAST_BYTES  (UINT64_C(8) << 20)
/* A client is a descriptor, and a disk about five. */
#define FILES_LEAST          1024u
/* Where QEMU, and so this program, locks an image: bytes of permissions, and of their refusal. */
#define LOCK_FIRST_BYTE      100
#define LOCK_BYTES           200
#define SECTOR_BYTES         512u

enum verdict { VERDICT_OK, VERDICT_NOTE, VERDICT_WARNING, VERDICT_FAILED };

struct doctor {
    bool json;
    struct json_object *checks;
    enum verdict worst;
    struct tls_options tls;
    const char *address; /* a control address that is tried; NULL: none */
};

static const char *const verdict_names[] = {"ok", "note", "warning", "failed"};

static void print_help(void)
{
    printf(
        "usage: blockstep doctor [OPTION...] [FILE...]\n\n"
        "Looks at this host: kernel, io_uring, limits, clock, folders; at the daemons that have a\n"
        "control socket here, and at their peers; at credentials for TLS; and at the disks named:\n"
        "size, locks, room. Changes nothing.\n\n"
        "Exit status: 0 fit (there may be warnings), 1 something will not work, 2 wrong usage.\n\n"
        "      --qmp ADDRESS      try this control address as well: HOST:PORT or unix:PATH\n"
        "      --tls-creds-dir DIR\n"
        "                         look at these credentials, and use them with HOST:PORT\n"
        "      --tls KIND         what they are: x509 (default) or psk\n"
        "      --tls-username USER\n"
        "                         whose key of keys.psk is used (default: qemu)\n"
        "      --tls-password-file FILE\n"
        "                         holds the password of an encrypted private key\n"
        "  -o, --output FORMAT    text (default) or json\n");
}

/* --- findings --- */

static void add_json(struct doctor *doctor, enum verdict verdict, const char *subject,
                     const char *text)
{
    struct json_object *check = json_object_new_object();

    if (check == NULL || json_add_string(check, "check", subject) < 0 ||
        json_add_string(check, "verdict", verdict_names[verdict]) < 0 ||
        json_add_string(check, "text", text) < 0 ||
        json_object_array_add(doctor->checks, check) < 0)
        json_object_put(check);
}

static void PRINTF_LIKE(4, 5)
    finding(struct doctor *doctor, enum verdict verdict, const char *subject, const char *fmt, ...)
{
    static const enum cli_style styles[] = {CLI_GOOD, CLI_FAINT, CLI_WARN, CLI_BAD};
    char text[1024];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    doctor->worst = MAX(doctor->worst, verdict);
    if (doctor->json)
        add_json(doctor, verdict, subject, text);
    else
        printf("%s%-8s%s %-9s %s\n", cli_style(styles[verdict]), verdict_names[verdict],
               cli_style(CLI_PLAIN), subject, text);
}

/* --- the host --- */

static bool kernel_is(const unsigned version[2], unsigned major, unsigned minor)
{
    return version[0] > major || (version[0] == major && version[1] >= minor);
}

static void check_kernel(struct doctor *doctor, unsigned version[2])
{
    struct utsname name;

    version[0] = version[1] = 0;
    if (uname(&name) < 0 || sscanf(name.release, "%u.%u", &version[0], &version[1]) != 2) {
        finding(doctor, VERDICT_WARNING, "kernel", "its version is not understood");
        return;
    }
    if (!kernel_is(version, OLDEST_KERNEL_MAJOR, OLDEST_KERNEL_MINOR))
        finding(doctor, VERDICT_WARNING, "kernel", "%s %s is older than any that was tried (%u.%u)",
                name.sysname, name.release, OLDEST_KERNEL_MAJOR, OLDEST_KERNEL_MINOR);
    else if (!kernel_is(version, GOOD_KERNEL_MAJOR, GOOD_KERNEL_MINOR))
        finding(doctor, VERDICT_NOTE, "kernel", "%s %s works; from %u.%u on it is faster",
                name.sysname, name.release, GOOD_KERNEL_MAJOR, GOOD_KERNEL_MINOR);
    else
        finding(doctor, VERDICT_OK, "kernel", "%s %s", name.sysname, name.release);
}

static void check_uring(struct doctor *doctor)
{
    char in_use[200] = "", missing[200] = "";
    struct err err = ERR_INIT;
    struct loop *loop = NULL;
    unsigned features;

    if (loop_uring_new(NULL, &loop, &err) < 0) {
        finding(doctor, VERDICT_FAILED, "io_uring", "%s", err.text);
        return;
    }
    features = loop_features(loop);
    loop_free(loop);
    for (unsigned feature = 1; feature <= LOOP_FEATURES_ALL; feature <<= 1) {
        char *list = features & feature ? in_use : missing;
        size_t length = strlen(list);

        snprintf(list + length, sizeof(in_use) - length, "%s%s", length > 0 ? ", " : "",
                 loop_feature_name(feature));
    }
    finding(doctor, VERDICT_OK, "io_uring", "available; in use: %s%s%s",
            in_use[0] != '\0' ? in_use : "no extras", missing[0] != '\0' ? "; not: " : "", missing);
}

static void check_limits(struct doctor *doctor, const unsigned version[2])
{
    struct rlimit limit;
    char text[32];

    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
        bool counted = !kernel_is(version, MEMLOCK_KERNEL_MAJOR, MEMLOCK_KERNEL_MINOR);
        bool enough = limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= MEMLOCK_LEAST_BYTES;

        if (limit.rlim_cur == RLIM_INFINITY)
            snprintf(text, sizeof(text), "no limit");
        else
            size_format(limit.rlim_cur, text, sizeof(text));
        if (counted && !enough)
            finding(doctor, VERDICT_WARNING, "memlock",
                    "%s may be locked, which this kernel counts io_uring against: raise it to "
                    "8 MiB or more (ulimit -l, LimitMEMLOCK=)",
                    text);
        else
            finding(doctor, VERDICT_OK, "memlock", "%s%s", text,
                    counted ? "" : "; this kernel does not count io_uring against it");
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        bool enough = limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= FILES_LEAST;

        finding(doctor, enough ? VERDICT_OK : VERDICT_WARNING, "files",
                "%" PRIu64 " open files at most%s", (uint64_t)limit.rlim_cur,
                enough ? "" : ": with many disks and clients that is little (ulimit -n)");
    }
}

static void check_clock(struct doctor *doctor)
{
    struct timex state = {0};
    int r = adjtimex(&state);

    if (r < 0)
        finding(doctor, VERDICT_NOTE, "clock", "its state cannot be read: %s", strerror(errno));
    else if (r == TIME_ERROR || (state.status & STA_UNSYNC))
        finding(doctor, VERDICT_WARNING, "clock",
                "not synchronised: times of two hosts' logs cannot be compared (replication itself "
                "does not need it)");
    else
        finding(doctor, VERDICT_OK, "clock", "synchronised");
}

static void check_folder(struct doctor *doctor, const char *subject, const char *path)
{
    if (access(path, W_OK | X_OK) == 0)
        finding(doctor, VERDICT_OK, subject, "%s", path);
    else if (errno == ENOENT)
        finding(doctor, VERDICT_NOTE, subject, "%s is not there yet: the first daemon makes it",
                path);
    else
        finding(doctor, VERDICT_WARNING, subject, "%s cannot be written to: %s", path,
                strerror(errno));
}

static void check_folders(struct doctor *doctor)
{
    char folder[RUNTIME_PATH_BYTES];
    struct err err = ERR_INIT;

    if (runtime_folder(folder, sizeof(folder), &err) < 0)
        finding(doctor, VERDICT_FAILED, "control", "%s", err.text);
    else
        check_folder(doctor, "control", folder);
    if (geteuid() == 0)
        check_folder(doctor, "state", "/var/lib/blockstep");
    else
        finding(doctor, VERDICT_NOTE, "state",
                "/var/lib/blockstep is root's: others give daemons a --state of their own");
}

/* --- daemons and their peers --- */

/* The version that a daemon's greeting tells ("blockstep 0.1.0"); NULL: none. */
static const char *greeting_version(struct qmp_client *client)
{
    struct json_object *greeting = json_member(qmp_client_greeting(client), "QMP");

    return json_text(json_member(greeting, "version"), "package");
}

static void compare_version(struct doctor *doctor, const char *who, struct qmp_client *client)
{
    const char *version = greeting_version(client);

    if (version == NULL || strstr(version, BLOCKSTEP_VERSION) == NULL)
        finding(doctor, VERDICT_WARNING, "version",
                "%s is '%s', this program %s: run the same version on both hosts", who,
                version != NULL ? version : "unknown", BLOCKSTEP_VERSION);
    else
        finding(doctor, VERDICT_OK, "version", "%s: %s", who, version);
}

/* With the credentials, where it is TCP and there are some. */
static int connect_control(const struct doctor *doctor, const char *address,
                           struct qmp_client **ret_client, struct err *err)
{
    struct tls_creds_options tls;

    return qmp_client_connect_tls(address, tls_options_client(&doctor->tls, &tls), ret_client, err);
}

static void check_peer(struct doctor *doctor, const char *name, const char *address)
{
    CLEANUP(qmp_client_closep) struct qmp_client *peer = NULL;
    struct err err = ERR_INIT;
    char who[400];

    if (connect_control(doctor, address, &peer, &err) < 0) {
        finding(doctor, VERDICT_WARNING, "peer", "of %s: %s", name, err.text);
        return;
    }
    snprintf(who, sizeof(who), "the peer of %s at %s", name, address);
    compare_version(doctor, who, peer);
}

static void check_daemon(void *arg, const char *name)
{
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    CLEANUP(json_putp) struct json_object *status = NULL;
    struct doctor *doctor = arg;
    char address[RUNTIME_PATH_BYTES + 16];
    struct err err = ERR_INIT;
    const char *role, *stage;

    if (runtime_address(name, false, address, sizeof(address), &err) < 0 ||
        qmp_client_connect(address, &client, &err) < 0 ||
        qmp_client_run(client, "query-replication", NULL, &status, &err) < 0) {
        finding(doctor, VERDICT_WARNING, "daemon", "%s: %s", name, err.text);
        return;
    }
    role = json_text(status, "role");
    stage = json_text(status, "stage");
    if (json_member(status, "error") != NULL)
        finding(doctor, VERDICT_WARNING, "daemon",
                "%s: %s, %s, with an error: see 'blockstep status --name %s'", name, role, stage,
                name);
    else
        finding(doctor, VERDICT_OK, "daemon", "%s: %s, %s", name, role, stage);
    compare_version(doctor, name, client);
    if (json_text(status, "peer-control") != NULL)
        check_peer(doctor, name, json_text(status, "peer-control"));
}

/* The control address that was named. */
static void check_control(struct doctor *doctor, const char *address)
{
    CLEANUP(qmp_client_closep) struct qmp_client *client = NULL;
    CLEANUP(json_putp) struct json_object *status = NULL;
    bool secure = strncmp(address, "unix:", 5) == 0 || doctor->tls.folder != NULL;
    struct err err = ERR_INIT;

    if (connect_control(doctor, address, &client, &err) < 0 ||
        qmp_client_run(client, "query-replication", NULL, &status, &err) < 0) {
        finding(doctor, VERDICT_FAILED, "remote", "%s", err.text);
        return;
    }
    finding(doctor, secure ? VERDICT_OK : VERDICT_NOTE, "remote", "%s: %s, %s%s", address,
            json_text(status, "role"), json_text(status, "stage"),
            doctor->tls.folder != NULL ? ", over TLS"
            : secure                   ? ""
                                       : ", in the clear");
    compare_version(doctor, address, client);
}

/* --- credentials --- */

static bool has_file(const char *folder, const char *name)
{
    char path[PATH_MAX];

    return snprintf(path, sizeof(path), "%s/%s", folder, name) < (int)sizeof(path) &&
           access(path, F_OK) == 0;
}

static void tell_end(struct doctor *doctor, const char *side, int64_t end_s)
{
    int64_t days = (end_s - (int64_t)time(NULL)) / 86400;
    time_t end = (time_t)end_s;
    char date[32] = "?";
    struct tm tm;

    if (gmtime_r(&end, &tm) != NULL)
        strftime(date, sizeof(date), "%Y-%m-%d", &tm);
    if (days < TLS_EXPIRES_SOON_DAYS)
        finding(doctor, VERDICT_WARNING, "tls",
                "%s: certificates expire on %s (%" PRId64 " days left): make new ones", side, date,
                days);
    else
        finding(doctor, VERDICT_OK, "tls", "%s: certificates that are good until %s", side, date);
}

/* What a daemon would do with them, and say. */
static void check_side(struct doctor *doctor, enum tls_endpoint endpoint)
{
    const char *side = endpoint == TLS_SERVER ? "server" : "client";
    struct tls_creds_options options;
    struct tls_creds *creds = NULL;
    struct err err = ERR_INIT;

    tls_options_client(&doctor->tls, &options);
    options.endpoint = endpoint;
    if (endpoint == TLS_SERVER)
        options.username = NULL;
    if (tls_creds_load_now(&options, &creds, &err) < 0) {
        finding(doctor, VERDICT_FAILED, "tls", "%s: %s", side, err.text);
        return;
    }
    if (tls_creds_expires_s(creds) == TLS_EXPIRES_NEVER)
        finding(doctor, VERDICT_OK, "tls", "%s: shared keys", side);
    else
        tell_end(doctor, side, tls_creds_expires_s(creds));
    tls_creds_unref(creds);
}

static void check_credentials(struct doctor *doctor, const char *folder)
{
    static const char *const sides[] = {"server", "client"};
    struct stat st;

    if (stat(folder, &st) < 0) {
        finding(doctor, VERDICT_FAILED, "tls", "%s: %s", folder, strerror(errno));
        return;
    }
    if ((st.st_mode & S_IWOTH) != 0)
        finding(doctor, VERDICT_FAILED, "tls",
                "%s: everybody may put other files there (mode %04o): chmod 700 it", folder,
                (unsigned)st.st_mode & 07777);
    for (unsigned i = 0; i < ARRAY_LEN(sides); i++) {
        bool server = i == 0, there;
        char name[32];

        snprintf(name, sizeof(name), "%s-cert.pem", sides[i]);
        there = doctor->tls.kind == TLS_PSK || has_file(folder, name);
        if (!there)
            finding(doctor, VERDICT_NOTE, "tls", "%s: there is no %s, which a %s needs", folder,
                    name, server ? "secondary" : "primary");
        /* A client may do without, a host that is no server too. */
        if (there || !server)
            check_side(doctor, server ? TLS_SERVER : TLS_CLIENT);
    }
}

/* --- disks --- */

/* -errno, or whether somebody has a lock that keeps a daemon from opening the disk for writing. */
static int lock_is_held(int fd)
{
    struct flock lock = {
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = LOCK_FIRST_BYTE,
        .l_len = LOCK_BYTES,
    };

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

static void check_lock(struct doctor *doctor, const char *path, int fd)
{
    int held = lock_is_held(fd);

    if (held < 0)
        finding(doctor, VERDICT_WARNING, "locks", "%s: the file system has no locks (%s)", path,
                strerror(-held));
    else if (held > 0)
        finding(doctor, VERDICT_NOTE, "locks", "%s is in use by another program", path);
    else
        finding(doctor, VERDICT_OK, "locks", "%s is free", path);
}

/* Room beside the disk, where overlays are by default. */
static void check_room(struct doctor *doctor, const char *path, int fd, uint64_t size_bytes)
{
    char free_text[32];
    struct statvfs room;
    uint64_t free_bytes;

    if (fstatvfs(fd, &room) < 0)
        return;
    free_bytes = (uint64_t)room.f_bavail * room.f_frsize;
    size_format(free_bytes, free_text, sizeof(free_text));
    /* A tenth is a rule of thumb: what is rewritten between checkpoints has to fit. */
    if (free_bytes < size_bytes / 10)
        finding(doctor, VERDICT_WARNING, "room",
                "%s beside %s: little for overlays, if it is a secondary (--overlays puts them "
                "elsewhere)",
                free_text, path);
    else
        finding(doctor, VERDICT_OK, "room", "%s beside %s", free_text, path);
}

/* The size of a file or block device; -errno. */
static int64_t disk_size(int fd, const struct stat *st)
{
    uint64_t bytes;

    if (S_ISREG(st->st_mode))
        return st->st_size;
    if (!S_ISBLK(st->st_mode))
        return -ENOTBLK;
    return ioctl(fd, BLKGETSIZE64, &bytes) < 0 ? -errno : (int64_t)bytes;
}

static void check_disk(struct doctor *doctor, const char *path)
{
    CLEANUP(fd_close) int fd = open(path, O_RDWR | O_CLOEXEC);
    char size_text[32];
    struct stat st;
    int64_t size;

    if (fd < 0 || fstat(fd, &st) < 0) {
        finding(doctor, VERDICT_FAILED, "disk", "%s: %s", path, strerror(errno));
        return;
    }
    size = disk_size(fd, &st);
    if (size < 0) {
        finding(doctor, VERDICT_FAILED, "disk", "%s is neither a file nor a block device", path);
        return;
    }
    size_format((uint64_t)size, size_text, sizeof(size_text));
    if (size == 0)
        finding(doctor, VERDICT_FAILED, "disk", "%s is empty", path);
    else if (size % SECTOR_BYTES != 0)
        finding(doctor, VERDICT_WARNING, "disk",
                "%s has %" PRId64 " bytes, no whole sectors: guests will not see its end", path,
                size);
    else
        finding(doctor, VERDICT_OK, "disk", "%s: %s (%" PRId64 " bytes)%s", path, size_text, size,
                S_ISBLK(st.st_mode) ? ", a block device" : "");
    check_lock(doctor, path, fd);
    if (S_ISREG(st.st_mode))
        check_room(doctor, path, fd, (uint64_t)size);
}

/* --- all of it --- */

static int print_json(struct doctor *doctor)
{
    CLEANUP(json_putp) struct json_object *answer = json_object_new_object();

    if (answer == NULL || json_add_bool(answer, "fit", doctor->worst < VERDICT_FAILED) < 0 ||
        json_add(answer, "checks", json_object_get(doctor->checks)) < 0) {
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    return cli_print_answer(answer);
}

static int examine(struct doctor *doctor, char **disks, int count)
{
    struct err err = ERR_INIT;
    unsigned version[2];
    int code = EXIT_OK;

    check_kernel(doctor, version);
    check_uring(doctor);
    check_limits(doctor, version);
    check_clock(doctor);
    check_folders(doctor);
    if (runtime_each_name(check_daemon, doctor, &err) == 0)
        finding(doctor, VERDICT_NOTE, "daemon", "none runs here");
    if (doctor->tls.folder != NULL)
        check_credentials(doctor, doctor->tls.folder);
    if (doctor->address != NULL)
        check_control(doctor, doctor->address);
    for (int i = 0; i < count; i++)
        check_disk(doctor, disks[i]);
    if (doctor->json)
        code = print_json(doctor);
    return code != EXIT_OK || doctor->worst < VERDICT_FAILED ? code : EXIT_FAILED;
}

static int take(struct doctor *doctor, int option)
{
    int taken = tls_options_take(&doctor->tls, option);

    if (taken != 0)
        return taken;
    switch (option) {
    case 'q':
        doctor->address = optarg;
        return -1;
    case 'o':
        return cli_parse_output(optarg, &doctor->json) < 0 ? EXIT_USAGE : -1;
    default:
        return cli_usage_error("see the usage");
    }
}

int verb_doctor(int argc, char **argv)
{
    static const struct option options[] = {TLS_LONG_OPTIONS,
                                            {"qmp", required_argument, NULL, 'q'},
                                            {"output", required_argument, NULL, 'o'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct doctor doctor = {0};
    int option, code;

    while ((option = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
        if (option == 'h') {
            print_help();
            return EXIT_OK;
        }
        code = take(&doctor, option);
        if (code >= 0)
            return code;
    }
    code = tls_options_check(&doctor.tls);
    if (code >= 0)
        return code;
    doctor.checks = json_object_new_array();
    if (doctor.checks == NULL) {
        cli_error("out of memory");
        return EXIT_FAILED;
    }
    code = examine(&doctor, argv + optind, argc - optind);
    json_object_put(doctor.checks);
    return code;
}
