/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The daemons of the simulated hosts: what they are started with, how they live and die. */
#include "world.h"

#include "drivers/overlay.h"
#include "drivers/table.h"
#include "loop/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

#define STATE_FOLDER   "/state"
#define DISKS(process) ((process)->host->world->history->disks)

static uint64_t disk_bytes(const struct process *process)
{
    return (uint64_t)process->host->world->history->sectors * ORACLE_SECTOR_BYTES;
}

/* --- files --- */

static int make_disk(struct process *process, unsigned disk, struct err *err) MAY_WAIT
{
    struct file *file = NULL;
    char path[64];
    int r;

    snprintf(path, sizeof(path), "/disk%u.raw", disk);
    r = file_open(process->loop, path, FILE_WRITABLE | FILE_CREATE, FILE_AIO_AUTO, &file, err);
    if (r < 0)
        return r;
    r = file_truncate(file, disk_bytes(process));
    if (r == 0)
        r = file_sync(file);
    file_close(file);
    if (r == 0)
        r = path_sync_folder(process->loop, "/");
    return r < 0 ? err_set_errno(err, r, "cannot make %s", path) : 0;
}

static int make_overlays(struct process *process, unsigned disk, struct err *err) MAY_WAIT
{
    static const char *const kinds[] = {"hidden", "active"};
    const struct overlay_create create = {
        .virtual_bytes = disk_bytes(process),
        .block_bytes = process->host->world->history->block_bytes,
    };

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        char path[64];
        snprintf(path, sizeof(path), "/disk%u.%s", disk, kinds[i]);
        int r = overlay_create(process->loop, path, &create, true, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int make_files(struct process *process, struct err *err) MAY_WAIT
{
    int r = 0;

    /* What was here before is given up: the operator's word for it. */
    if (process->make_overlays)
        (void)path_unlink(process->loop, STATE_FOLDER "/group");
    for (unsigned disk = 0; r == 0 && disk < DISKS(process); disk++) {
        if (process->make_disks)
            r = make_disk(process, disk, err);
        if (r == 0 && process->make_overlays)
            r = make_overlays(process, disk, err);
    }
    return r;
}

/* --- configuration --- */

struct setup {
    struct config *config;
    struct err *err;
    int result;
};

static void setup_add(struct setup *setup,
                      int (*add)(struct config *config, const char *text, struct err *err),
                      const char *fmt, ...) PRINTF_LIKE(3, 4);
static void setup_add(struct setup *setup,
                      int (*add)(struct config *config, const char *text, struct err *err),
                      const char *fmt, ...)
{
    char text[400];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (setup->result == 0)
        setup->result = add(setup->config, text, setup->err);
}

static void setup_truth(struct setup *setup, unsigned disk)
{
    setup_add(setup, config_add_blockdev, "file,node-name=disk%u,filename=/disk%u.raw", disk, disk);
    setup_add(setup, config_add_blockdev,
              "quorum,node-name=top%u,read-pattern=fifo,vote-threshold=1,children.0=disk%u", disk,
              disk);
    setup_add(setup, config_add_export,
              "nbd,id=user%u,name=disk%u,node-name=top%u,server=user,writable=on", disk, disk,
              disk);
}

static void setup_secondary(struct setup *setup, unsigned disk, bool writable)
{
    setup_add(setup, config_add_blockdev, "file,node-name=disk%u,filename=/disk%u.raw", disk, disk);
    setup_add(setup, config_add_blockdev,
              "overlay,node-name=hidden%u,backing=disk%u,on-damage=hold,file.driver=file,"
              "file.filename=/disk%u.hidden",
              disk, disk, disk);
    setup_add(setup, config_add_blockdev,
              "overlay,node-name=active%u,backing=hidden%u,on-damage=hold,file.driver=file,"
              "file.filename=/disk%u.active",
              disk, disk, disk);
    setup_add(setup, config_add_blockdev,
              "replication,node-name=filter%u,mode=secondary,top-id=top%u,file=active%u", disk,
              disk, disk);
    setup_add(setup, config_add_blockdev,
              "quorum,node-name=top%u,read-pattern=fifo,vote-threshold=1,children.0=filter%u", disk,
              disk);
    setup_add(setup, config_add_export,
              "nbd,id=user%u,name=disk%u,node-name=top%u,server=user,%s=on", disk, disk, disk,
              writable ? "writable" : "writable-after-failover");
}

static int set_up(struct process *process, struct err *err)
{
    struct setup setup = {.config = &process->config, .err = err};
    bool writable = process->host->world->history->standby_runs || process->merge;

    process->config.drivers = drivers_table;
    process->config.insecure = true;
    if (process->secondary) {
        process->config.state = strdup(STATE_FOLDER);
        process->config.durability = GROUP_LEVEL_PROCESS;
        setup.result = process->config.state != NULL ? 0 : err_no_memory(err);
    }
    setup_add(&setup, config_add_nbd_server, "id=user,addr.type=inet,addr.host=,addr.port=%s",
              WORLD_USER_PORT);
    setup_add(&setup, config_add_nbd_server, "id=peer,addr.type=inet,addr.host=,addr.port=%s",
              WORLD_PEER_PORT);
    for (unsigned disk = 0; disk < DISKS(process); disk++) {
        if (!process->secondary) {
            setup_truth(&setup, disk);
            continue;
        }
        setup_secondary(&setup, disk, writable);
        if (!process->merge)
            setup_add(&setup, config_add_export,
                      "nbd,id=peer%u,name=disk%u,node-name=disk%u,server=peer,writable=on", disk,
                      disk, disk);
    }
    setup_add(&setup, config_add_qmp, "inet::%s", WORLD_QMP_PORT);
    if (process->secondary)
        setup_add(&setup, config_add_qmp, "inet::%s,role=peer", WORLD_CONTROL_PORT);
    return setup.result;
}

/* --- life --- */

static int process_begin(struct process *process, struct err *err) MAY_WAIT
{
    int r = make_files(process, err);

    if (r == 0)
        r = set_up(process, err);
    if (r == 0)
        r = daemon_new(process->loop, &process->config, &process->daemon, err);
    if (r == 0)
        r = daemon_start(process->daemon, err);
    return r;
}

static void process_main(void *arg) MAY_WAIT;
static void process_main(void *arg)
{
    struct process *process = arg;

    process->failed = process_begin(process, &process->err) < 0;
    process->up = !process->failed;
    if (process->up)
        daemon_wait_quit(process->daemon);
    process->up = false;
    if (process->daemon != NULL) {
        daemon_end(process->daemon);
        daemon_free(process->daemon);
        process->daemon = NULL;
    }
    process->ended = true;
}

static void process_told(void *arg)
{
    struct process *process = arg;

    if (process->daemon != NULL)
        daemon_quit(process->daemon, "host-signal");
}

static void process_free(struct process *process)
{
    list_remove(&process->link);
    loop_free(process->loop);
    config_release(&process->config);
    free(process);
}

void processes_reap(struct world *world)
{
    LIST_FOR_EACH_SAFE(process, &world->processes, struct process, link) {
        if (!process->ended || process->starting)
            continue;
        if (sim_process_is_dead(process->loop) ? !sim_process_is_gone(process->loop)
                                               : loop_stats(process->loop).coroutines != 0)
            continue;
        if (process->host->process == process)
            process->host->process = NULL;
        process_free(process);
    }
}

int process_start(struct host *host, bool secondary, bool make_disks, bool make_overlays_,
                  struct err *err)
{
    struct world *world = host->world;
    struct process *process = calloc(1, sizeof(*process));

    assert(host->process == NULL);
    assert(process != NULL);
    qmp_disconnect(host);
    host->has_links = host->bare = host->fenced = false;
    host->flush_lost = host->flush_lost && host->disk_faults != 0; /* the fault may strike again */
    process->host = host;
    process->secondary = secondary;
    process->make_disks = make_disks;
    process->make_overlays = make_overlays_;
    process->merge = host->merging;
    if (sim_loop_new(world->sim, host->name, &process->loop, err) < 0)
        abort();
    sim_process_on_death(process->loop, process_told, process);
    list_push_back(&world->processes, &process->link);
    host->process = process;
    host->life_began = oracle_now(world->oracle);
    guest_forget(&host->guest);
    if (co_spawn(process->loop, "daemon", process_main, process) < 0)
        abort();
    world->commanding++;
    process->starting = true;
    WORLD_WAIT(world, WORLD_PATIENCE_NS, host->process != process || process->up || process->ended);
    process->starting = false;
    world->commanding--;
    if (host->process != process)
        return err_set(err, -ECONNABORTED, "the daemon of %s died at its start", host->name);
    if (process->up)
        return 0;
    *err = process->err;
    if (process->ended)
        host->process = NULL;
    else
        process_kill(host);
    return err_is_set(err) ? err->code : err_set(err, -ETIMEDOUT, "no daemon on %s", host->name);
}

/* In good order: as by SIGTERM. */
void process_quit(struct host *host)
{
    struct world *world = host->world;
    struct process *process = host->process;

    qmp_disconnect(host);
    host->troubles++;
    if (process == NULL)
        return;
    process->quitting = true;
    if (process->daemon != NULL && !process->ended)
        daemon_quit(process->daemon, "host-signal");
    world->commanding++;
    bool ended = WORLD_WAIT(world, WORLD_PATIENCE_NS, host->process != process || process->ended);
    world->commanding--;
    if (!ended && host->disk_faults == 0)
        world_violation(world, invariant_name(I8_NOTHING_HANGS),
                        "the daemon on %s does not end when told to", host->name);
    if (!ended)
        process_kill(host); /* its disks stall, one request after the other */
    if (host->process == process)
        host->process = NULL;
}

void process_kill(struct host *host)
{
    struct process *process = host->process;

    if (process == NULL)
        return;
    process_forget(host);
    sim_process_kill(process->loop);
}

void process_forget(struct host *host)
{
    host->process = NULL;
    host->bare = host->awaits = false;
}
