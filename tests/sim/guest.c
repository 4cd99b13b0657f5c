/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guests: NBD clients that keep many requests under way, and tell the oracle of each. */
#include "world.h"

#include <errno.h>
#include <string.h>

/* Longer than a daemon may wait for its peer. */
#define GUEST_TIMEOUT_NS (120 * NS_PER_S)
#define READ_ATTEMPTS    5u

struct request {
    struct guest *guest;
    struct op op;
    bool well;   /* when it began */
    bool closed; /* its host was: nothing but errors is to be expected */
    unsigned troubles;
    uint64_t began_ns;
};

void guest_init(struct guest *guest, struct host *host)
{
    *guest = (struct guest){.host = host};
}

bool guest_is_idle(const struct guest *guest)
{
    return guest->under_way == 0;
}

/* --- connections --- */

static bool client_is_connected(const struct nbd_client *client)
{
    struct nbd_client_info info;

    nbd_client_info(client, &info);
    return info.connected;
}

/* A connection that has ended goes when the last request has left it. */
static void guest_leave(struct guest *guest, unsigned disk) MAY_WAIT
{
    struct nbd_client *client = guest->clients[disk];

    if (--guest->users[disk] > 0 || !guest->broken[disk])
        return;
    guest->clients[disk] = NULL;
    guest->broken[disk] = false;
    nbd_client_close(client);
}

static struct nbd_client *guest_connect(struct guest *guest, unsigned disk) MAY_WAIT
{
    struct host *host = guest->host;
    char export[16];
    struct nbd_client_options options = {
        .address = {.family = SOCK_FAMILY_INET,
                    .host = (char *)(uintptr_t)host->name,
                    .port = (char *)(uintptr_t)WORLD_USER_PORT},
        .export = export,
        .request_timeout_ns = GUEST_TIMEOUT_NS,
    };
    struct nbd_client *client = NULL;
    struct err err = ERR_INIT;

    snprintf(export, sizeof(export), "disk%u", disk);
    (void)WORLD_WAIT(host->world, DEADLINE_NEVER / 2, !guest->connecting[disk]);
    /* It may have ended while nobody used it. */
    if (guest->clients[disk] != NULL && !client_is_connected(guest->clients[disk]))
        guest->broken[disk] = true;
    if (guest->clients[disk] != NULL && (!guest->broken[disk] || guest->users[disk] > 0))
        return guest->broken[disk] ? NULL : guest->clients[disk];
    guest->connecting[disk] = true;
    nbd_client_close(guest->clients[disk]);
    guest->clients[disk] = NULL;
    guest->broken[disk] = false;
    if (host->process == NULL) {
        guest->connecting[disk] = false;
        return NULL;
    }
    unsigned life = guest->life;
    if (nbd_client_open(guest->loop, &options, &client, &err) < 0)
        world_note(host->world, "guest of %s: %s", host->name, err.text);
    guest->connecting[disk] = false;
    guest->clients[disk] = client;
    guest->broken[disk] = client != NULL && life != guest->life;
    return client;
}

/* The client, kept until guest_leave(); NULL: it cannot be had. */
static struct nbd_client *guest_enter(struct guest *guest, unsigned disk) MAY_WAIT
{
    struct nbd_client *client = guest_connect(guest, disk);

    if (client != NULL)
        guest->users[disk]++;
    return client;
}

void guest_forget(struct guest *guest)
{
    guest->life++;
    for (unsigned disk = 0; disk < ORACLE_MAX_DISKS; disk++) {
        if (guest->clients[disk] == NULL)
            continue;
        guest->broken[disk] = true;
        nbd_client_shutdown(guest->clients[disk], 0);
    }
}

static void close_main(void *arg) MAY_WAIT;
static void close_main(void *arg)
{
    struct guest *guest = arg;

    for (unsigned disk = 0; disk < ORACLE_MAX_DISKS; disk++)
        nbd_client_close(guest->clients[disk]);
}

void guest_end(struct guest *guest)
{
    if (co_spawn(guest->loop, "guest ends", close_main, guest) < 0)
        abort();
}

/* What became of a request, for the oracle. */
static enum change_result guest_result(struct guest *guest, unsigned disk, int r)
{
    struct nbd_client *client = guest->clients[disk];
    bool connected = client_is_connected(client);

    if (!connected)
        guest->broken[disk] = true;
    if (r == 0)
        return CHANGE_DONE;
    return connected ? CHANGE_FAILED : CHANGE_LOST;
}

/* --- requests --- */

static bool guest_may_write(const struct guest *guest)
{
    const struct host *host = guest->host;

    return host->role == ROLE_TRUTH || host->role == ROLE_STALE ||
           host->world->history->standby_runs;
}

/* Where a change of this guest will show. */
static unsigned guest_views(const struct guest *guest, struct view *views[2])
{
    const struct host *host = guest->host;

    views[0] = host->view;
    if (host->role != ROLE_TRUTH || !host->linked)
        return 1;
    views[1] = world_other(host->world)->stream;
    return 2;
}

/* A request may fail when something is wrong with its own side; what is wrong elsewhere is not the
 * guest's business. */
static void guest_excuse(struct request *request, int r)
{
    struct host *host = request->guest->host;
    struct world *world = host->world;
    uint64_t age_ns = sim_now_ns(world->sim) - request->began_ns;
    char text[160];

    /* A connection that is given up for an older request takes this one with it: that one is asked. */
    if (r == -ETIMEDOUT && age_ns < GUEST_TIMEOUT_NS)
        return;
    if (!request->well || request->closed || !host_is_well(host) ||
        request->troubles != host->troubles || host->changing)
        return;
    op_print(&request->op, text, sizeof(text));
    world_violation(world, invariant_name(I1_ACKNOWLEDGED_IS_READ),
                    "a request of the guest of %s fails though nothing is wrong: %s: %s",
                    request->guest->host->name, text, strerror(-r));
}

static int send_change(struct nbd_client *client, const struct io *io, enum op_kind kind) MAY_WAIT
{
    switch (kind) {
    case OP_WRITE:
        return nbd_client_write(client, io);
    case OP_ZERO:
        return nbd_client_zero(client, io);
    default:
        return nbd_client_discard(client, io);
    }
}

static void guest_change(struct request *request, struct nbd_client *client) MAY_WAIT
{
    struct guest *guest = request->guest;
    const struct op *op = &request->op;
    struct world *world = guest->host->world;
    static const enum change_kind kinds[] = {CHANGE_WRITE, CHANGE_ZERO, CHANGE_DISCARD};
    struct io io = {.offset_bytes = (uint64_t)op->a * ORACLE_SECTOR_BYTES,
                    .length_bytes = (uint64_t)op->b * ORACLE_SECTOR_BYTES,
                    .flags = (op->flags & OP_FUA) != 0 ? IO_FUA : 0};
    struct view *views[2];
    unsigned view_count = guest_views(guest, views);
    struct buf *buf = NULL;

    uint32_t change = change_begin(world->oracle, kinds[op->kind - OP_WRITE], op->disk, op->a,
                                   op->b, (op->flags & OP_FUA) != 0, views, view_count);
    if (change == 0)
        return;
    if (op->kind == OP_WRITE) {
        buf = buf_alloc(loop_bufs(guest->loop), io.length_bytes);
        assert(buf != NULL);
        change_fill(world->oracle, change, buf->bytes);
        io.data = buf_slice_of(buf, 0, io.length_bytes);
    }
    world_note(world, "guest of %s: #%u begins: %s disk %u sectors %u+%u%s", guest->host->name,
               change, op_name(op->kind), op->disk, op->a, op->b,
               (op->flags & OP_FUA) != 0 ? " fua" : "");
    int r = send_change(client, &io, op->kind);
    buf_unref(buf);
    enum change_result result = guest_result(guest, op->disk, r);
    world_note(world, "guest of %s: #%u ends: %d", guest->host->name, change, r);
    change_end(world->oracle, change, result);
    if (r < 0)
        guest_excuse(request, r);
}

static void guest_flush(struct request *request, struct nbd_client *client) MAY_WAIT
{
    struct guest *guest = request->guest;
    struct world *world = guest->host->world;
    struct view *view = guest->host->view;
    uint32_t begun = oracle_now(world->oracle);
    int r = nbd_client_flush(client);

    (void)guest_result(guest, request->op.disk, r);
    if (r == 0)
        view_flushed_disk(view, request->op.disk, begun);
    else
        guest_excuse(request, r);
}

static int guest_read(struct guest *guest, struct nbd_client *client, unsigned disk, uint32_t first,
                      uint32_t count, uint8_t *copy) MAY_WAIT
{
    struct io io = {.offset_bytes = (uint64_t)first * ORACLE_SECTOR_BYTES,
                    .length_bytes = (uint64_t)count * ORACLE_SECTOR_BYTES};
    struct buf *buf = buf_alloc(loop_bufs(guest->loop), io.length_bytes);
    struct view_read read;

    assert(buf != NULL);
    io.data = buf_slice_of(buf, 0, io.length_bytes);
    view_read_begin(guest->host->view, &read);
    world_note(guest->host->world, "guest of %s: reads disk %u sectors %u+%u, since %u",
               guest->host->name, disk, first, count, read.begun);
    int r = nbd_client_read(client, &io);
    world_note(guest->host->world, "guest of %s: has read disk %u sectors %u+%u, since %u: %d",
               guest->host->name, disk, first, count, read.begun, r);
    view_read_end(&read, disk, first, count, r == 0 ? buf->bytes : NULL);
    if (r == 0 && copy != NULL)
        memcpy(copy, buf->bytes, io.length_bytes);
    buf_unref(buf);
    (void)guest_result(guest, disk, r);
    return r;
}

static bool guest_sees(const struct guest *guest)
{
    enum role role = guest->host->role;

    return role == ROLE_TRUTH || role == ROLE_STALE || role == ROLE_STANDBY;
}

/* Whether requests have any sense: also those that must fail. */
static bool guest_asks(const struct guest *guest)
{
    return guest_sees(guest) || (guest->host->role == ROLE_SYNC && host_is_closed(guest->host));
}

/* Nobody sees the disk of a secondary that has no checkpoint. */
static void guest_peeks(struct request *request, struct nbd_client *client) MAY_WAIT
{
    struct guest *guest = request->guest;
    const struct op *op = &request->op;
    const struct process *process = guest->host->process;
    uint64_t length_bytes = (uint64_t)op->b * ORACLE_SECTOR_BYTES;
    struct buf *buf = buf_alloc(loop_bufs(guest->loop), length_bytes);
    struct io io = {.offset_bytes = (uint64_t)op->a * ORACLE_SECTOR_BYTES,
                    .length_bytes = length_bytes,
                    .data = buf_slice_of(buf, 0, length_bytes)};

    assert(buf != NULL);
    int r = nbd_client_read(client, &io);
    buf_unref(buf);
    (void)guest_result(guest, op->disk, r);
    if (r == 0 && guest->host->process == process && host_is_closed(guest->host))
        world_violation(guest->host->world, invariant_name(I2_VIEW_IS_CHECKPOINT),
                        "the guest of %s reads a disk that has no checkpoint yet",
                        guest->host->name);
}

static enum cover_call call_of(enum op_kind kind)
{
    static const enum cover_call calls[] = {
        [OP_WRITE] = COVER_WRITE, [OP_ZERO] = COVER_ZERO,   [OP_DISCARD] = COVER_DISCARD,
        [OP_READ] = COVER_READ,   [OP_FLUSH] = COVER_FLUSH,
    };

    return calls[kind];
}

static void guest_send(struct request *request, struct nbd_client *client) MAY_WAIT
{
    struct guest *guest = request->guest;
    const struct op *op = &request->op;

    if (op->kind == OP_FLUSH) {
        guest_flush(request, client);
    } else if (op->kind != OP_READ) {
        guest_change(request, client);
    } else if (!guest_sees(guest)) {
        guest_peeks(request, client);
    } else {
        int r = guest_read(guest, client, op->disk, op->a, op->b, NULL);
        if (r < 0)
            guest_excuse(request, r);
    }
}

static void guest_work(struct request *request) MAY_WAIT
{
    struct guest *guest = request->guest;
    const struct op *op = &request->op;
    struct world *world = guest->host->world;
    struct nbd_client *client;

    (void)WORLD_WAIT(world, DEADLINE_NEVER / 2, !guest->held);
    guest->inside++;
    request->well = host_is_well(guest->host) && !guest->host->changing;
    request->troubles = guest->host->troubles;
    request->began_ns = sim_now_ns(world->sim);
    client = guest_enter(guest, op->disk);
    if (client == NULL) {
        guest->inside--;
        return;
    }
    bool changes = op->kind <= OP_DISCARD;
    request->closed = host_is_closed(guest->host);
    if (!guest_asks(guest) ||
        (changes && (!guest_may_write(guest) || nbd_client_read_only(client)))) {
        world->stats.skipped++;
    } else {
        struct visit visit;
        visit_begin(&visit, guest->host, call_of(op->kind));
        guest_send(request, client);
        visit_end(&visit);
    }
    guest_leave(guest, op->disk);
    guest->inside--;
}

static void guest_main(void *arg) MAY_WAIT;
static void guest_main(void *arg)
{
    struct request *request = arg;

    guest_work(request);
    request->guest->under_way--;
    free(request);
}

void guest_request(struct guest *guest, const struct op *op)
{
    struct world *world = guest->host->world;
    struct request *request;

    if (!WORLD_WAIT(world, 16 * WORLD_PATIENCE_NS, guest->under_way < WORLD_MAX_REQUESTS))
        world_violation(world, invariant_name(I8_NOTHING_HANGS),
                        "the guest of %s waits for %u requests", guest->host->name,
                        guest->under_way);
    request = calloc(1, sizeof(*request));
    assert(request != NULL);
    *request = (struct request){.guest = guest, .op = *op};
    guest->under_way++;
    world->stats.requests++;
    if (co_spawn(guest->loop, "guest request", guest_main, request) < 0)
        abort();
}

/* --- everything --- */

struct all {
    struct guest *guest;
    uint8_t *bytes;
    bool done, ok;
};

/* A connection may have to go before there is a new one. */
static bool read_disk(struct guest *guest, unsigned disk, uint8_t *to) MAY_WAIT
{
    bool ok = false;

    for (unsigned attempt = 0; !ok && attempt < READ_ATTEMPTS; attempt++) {
        struct nbd_client *client = guest_enter(guest, disk);
        if (client == NULL) {
            co_sleep(10 * NS_PER_MS);
            continue;
        }
        ok = guest_sees(guest) &&
             guest_read(guest, client, disk, 0, guest->host->world->history->sectors, to) == 0;
        guest_leave(guest, disk);
    }
    return ok;
}

static void read_all_main(void *arg) MAY_WAIT;
static void read_all_main(void *arg)
{
    struct all *all = arg;
    struct guest *guest = all->guest;
    const struct history *history = guest->host->world->history;

    all->ok = true;
    for (unsigned disk = 0; all->ok && disk < history->disks; disk++) {
        uint8_t *to = all->bytes + (size_t)disk * history->sectors * ORACLE_SECTOR_BYTES;
        all->ok = read_disk(guest, disk, to);
    }
    all->done = true;
}

bool guest_read_all(struct guest *guest, uint8_t **ret_bytes)
{
    const struct history *history = guest->host->world->history;
    struct all all = {.guest = guest};

    all.bytes = malloc((size_t)history->disks * history->sectors * ORACLE_SECTOR_BYTES);
    assert(all.bytes != NULL);
    if (co_spawn(guest->loop, "guest reads all", read_all_main, &all) < 0)
        abort();
    if (!WORLD_WAIT(guest->host->world, READ_ATTEMPTS * WORLD_PATIENCE_NS, all.done))
        world_violation(guest->host->world, invariant_name(I8_NOTHING_HANGS),
                        "the guest of %s reads its disks for ever", guest->host->name);
    if (all.ok && ret_bytes != NULL)
        *ret_bytes = all.bytes;
    else
        free(all.bytes);
    return all.ok;
}
