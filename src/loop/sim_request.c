/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests to files and folders, as the kernel has them: one waits, takes effect at one moment (or,
 * split, at several), waits again, and its caller knows. What a dead process has left under way lands
 * in parts, or not.
 */
#include "loop/sim_internal.h"

#include <errno.h>
#include <string.h>

/* --- handles --- */

struct sim_handle *sim_handle_new(struct sim_loop *loop, struct sim_inode *inode)
{
    struct sim_handle *handle = calloc(1, sizeof(*handle));

    if (handle == NULL)
        return NULL;
    handle->inode = inode;
    sim_inode_use(inode);
    list_push_back(&loop->handles, &handle->link);
    return handle;
}

void sim_handle_free(struct sim_handle *handle)
{
    sim_locks_drop(handle);
    list_remove(&handle->link);
    sim_inode_unuse(handle->inode);
    free(handle);
}

/* --- effects --- */

void sim_inode_truncate(struct sim_inode *inode, uint64_t length_bytes)
{
    if (length_bytes < inode->length_bytes)
        (void)sim_pages_zero(&inode->pages, length_bytes, SIM_FILE_MAX_BYTES - length_bytes, false);
    inode->length_bytes = length_bytes;
    inode->least_bytes = MIN(inode->least_bytes, length_bytes);
}

static int sim_inode_write(struct sim_inode *inode, const void *bytes, size_t length_bytes,
                           uint64_t offset_bytes)
{
    int result = sim_pages_write(&inode->pages, bytes, length_bytes, offset_bytes);

    if (result == 0 && length_bytes > 0)
        inode->length_bytes = MAX(inode->length_bytes, offset_bytes + length_bytes);
    return result;
}

static int sim_write_part(struct sim_request *request, size_t part_bytes)
{
    while (part_bytes > 0) {
        struct iovec *iov = request->iov;
        size_t some = MIN(part_bytes, iov->iov_len);
        int result = sim_inode_write(request->inode, iov->iov_base, some,
                                     request->offset_bytes + request->done_bytes);
        if (result < 0)
            return result;
        request->done_bytes += some;
        part_bytes -= some;
        iov->iov_base = (uint8_t *)iov->iov_base + some;
        iov->iov_len -= some;
        if (iov->iov_len == 0) {
            request->iov++;
            request->iov_count--;
        }
    }
    return 0;
}

static int sim_read_part(struct sim_request *request, size_t part_bytes)
{
    int result = sim_pages_read(&request->inode->pages, request->bytes + request->done_bytes,
                                part_bytes, request->offset_bytes + request->done_bytes);
    if (result == 0)
        request->done_bytes += part_bytes;
    return result;
}

/* The length of the file stays, as with fallocate(FALLOC_FL_KEEP_SIZE). */
static int sim_zero(struct sim_request *request, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct sim_inode *inode = request->inode;

    if (offset_bytes >= inode->length_bytes)
        return 0;
    return sim_pages_zero(&inode->pages, offset_bytes,
                          MIN(length_bytes, inode->length_bytes - offset_bytes),
                          !request->punch && !request->may_unmap);
}

static int sim_extent(struct sim_request *request)
{
    struct sim_inode *inode = request->inode;
    uint64_t offset_bytes = request->offset_bytes;
    uint64_t end_bytes = MIN(offset_bytes + request->length_bytes, inode->length_bytes);
    uint64_t page = offset_bytes / SIM_PAGE_BYTES;
    uint64_t end = align_up(end_bytes, SIM_PAGE_BYTES) / SIM_PAGE_BYTES;
    bool data = offset_bytes < end_bytes &&
                sim_pages_next(&inode->pages, page, page + 1, true) == page;
    uint64_t next = offset_bytes < end_bytes ? sim_pages_next(&inode->pages, page, end, !data)
                                             : end;

    if (next < end)
        request->length_bytes = next * SIM_PAGE_BYTES - offset_bytes;
    else if (data) /* behind the end of the file is a hole */
        request->length_bytes = end_bytes - offset_bytes;
    request->data = data;
    return 0;
}

static int sim_open(struct sim_request *request)
{
    struct sim_inode *inode;
    int result = sim_fs_find(request->host, request->path, &inode);

    if (result == -ENOENT && (request->flags & FILE_CREATE) != 0)
        result = sim_fs_make(request->host, request->path, SIM_REGULAR, &inode);
    else if (result == 0 && (request->flags & FILE_CREATE) != 0 &&
             (request->flags & FILE_EXCLUSIVE) != 0)
        result = -EEXIST;
    if (result < 0)
        return result;
    if (inode->kind == SIM_FOLDER)
        return -EISDIR;
    if (inode->kind == SIM_SOCKET)
        return -ENXIO;
    sim_length_decide(inode);
    if (request->loop != NULL) {
        request->handle = sim_handle_new(request->loop, inode);
        if (request->handle == NULL)
            return -ENOMEM;
    }
    if ((request->flags & FILE_TRUNCATE) != 0)
        sim_inode_truncate(inode, 0);
    request->length_bytes = inode->length_bytes;
    return 0;
}

static int sim_sync(struct sim_inode *inode)
{
    sim_pages_sync(&inode->pages);
    inode->stable_bytes = inode->least_bytes = inode->length_bytes;
    return 0;
}

static int sim_effect(struct sim_request *request, size_t part_bytes)
{
    switch (request->op) {
    case SIM_OP_OPEN:
        return sim_open(request);
    case SIM_OP_READ:
        return sim_read_part(request, part_bytes);
    case SIM_OP_WRITE:
        return sim_write_part(request, part_bytes);
    case SIM_OP_SYNC:
        return sim_sync(request->inode);
    case SIM_OP_ZERO:
        return sim_zero(request, request->offset_bytes, request->length_bytes);
    case SIM_OP_TRUNCATE:
        sim_inode_truncate(request->inode, request->length_bytes);
        return 0;
    case SIM_OP_EXTENT:
        return sim_extent(request);
    case SIM_OP_RENAME:
        return sim_fs_rename(request->host, request->path, request->new_path, request->exchange);
    case SIM_OP_UNLINK:
        return sim_fs_unlink(request->host, request->path);
    case SIM_OP_FOLDER:
        return sim_fs_make_folders(request->host, request->path);
    case SIM_OP_SYNC_FOLDER:
        return sim_fs_sync_folder(request->host, request->path);
    case SIM_OP_ANY:
        break;
    }
    abort(); /* no such request */
}

/* --- one step after the other --- */

static void sim_request_tell(const struct sim_request *request)
{
    const char *to = request->new_path != NULL ? " to " : "";
    const char *new_path = request->new_path != NULL ? request->new_path : "";

    sim_tell(request->host->sim, request->host, request->loop, "%s %s%s%s %llu+%llu: %s",
             sim_op_name(request->op), request->path, to, new_path,
             (unsigned long long)request->offset_bytes, (unsigned long long)request->length_bytes,
             request->result < 0 ? strerror(-request->result) : "ok");
}

/* The hook may end the process, and so the request. */
static void sim_request_moment(struct sim_request *request, enum sim_moment moment)
{
    struct sim *sim = request->host->sim;

    if (sim->hook == NULL)
        return;
    const struct sim_request_info info = {
        .loop = &request->loop->base,
        .host = request->host->name,
        .path = request->path,
        .op = request->op,
        .moment = moment,
        .offset_bytes = request->offset_bytes,
        .length_bytes = request->length_bytes,
        .number = request->number,
        .result = request->result,
    };
    int result = sim->hook(sim->hook_arg, &info);
    if (moment == SIM_BEFORE && request->phase != SIM_DONE)
        request->result = result;
}

static bool sim_request_stalls(struct sim_request *request)
{
    struct sim *sim = request->host->sim;
    uint64_t stall_ns;

    request->result = sim_fault_check(request, &stall_ns);
    if (stall_ns == 0)
        return false;
    request->phase = SIM_STALLED;
    sim_tell(sim, request->host, request->loop, "%s %s stalls", sim_op_name(request->op),
             request->path);
    if (stall_ns != SIM_STALL_FOR_EVER)
        sim_event_arm(sim, &request->event, stall_ns);
    return true;
}

/* How many of the next bytes take effect together. */
static size_t sim_request_part(struct sim_request *request, size_t left_bytes)
{
    uint64_t units = left_bytes / SIM_UNIT_BYTES;

    if (!request->split || units < 2)
        return left_bytes;
    return MIN(left_bytes, (1 + sim_below(request->host->sim, units)) * SIM_UNIT_BYTES);
}

/* True when all of the effect has come to pass. */
static bool sim_request_goes_on(struct sim_request *request)
{
    struct sim *sim = request->host->sim;
    size_t left_bytes = 0;

    if (request->op == SIM_OP_WRITE)
        left_bytes = request->length_bytes - request->done_bytes;
    if (request->op == SIM_OP_READ)
        left_bytes = MIN(request->length_bytes,
                         request->inode->length_bytes -
                             MIN(request->offset_bytes, request->inode->length_bytes)) -
                     MIN(request->done_bytes, request->length_bytes);
    size_t part_bytes = sim_request_part(request, left_bytes);
    request->result = sim_effect(request, part_bytes);
    if (request->result < 0 || part_bytes == left_bytes)
        return true;
    sim_event_arm(sim, &request->event, sim_delay_ns(sim, sim->options.file));
    return false;
}

static void sim_request_end(struct sim_request *request)
{
    request->phase = SIM_DONE;
    list_remove(&request->link);
    if (request->waiter != NULL)
        co_wake(request->waiter);
}

static void sim_request_step(struct sim_request *request)
{
    struct sim *sim = request->host->sim;

    if (request->phase == SIM_SUBMITTED && sim_request_stalls(request))
        return;
    if (request->phase <= SIM_STALLED) {
        request->phase = SIM_EFFECT;
        if (request->result == 0)
            sim_request_moment(request, SIM_BEFORE);
    }
    if (request->phase == SIM_EFFECT) {
        if (request->result == 0 && !sim_request_goes_on(request))
            return;
        if (request->result < 0 && request->op == SIM_OP_SYNC && sim->options.failed_sync_loses)
            sim_pages_lose(&request->inode->pages);
        sim_trace(sim, SIM_KIND_FILE,
                  request->loop->index << 32 |
                      (request->inode != NULL ? request->inode->number << 8 : 0) | request->op,
                  request->offset_bytes, request->length_bytes ^ (uint64_t)-request->result << 48);
        sim_request_tell(request);
        request->phase = SIM_SETTLING;
        sim_request_moment(request, SIM_AFTER);
        if (request->phase == SIM_SETTLING && request->after_ns > 0) {
            sim_event_arm(sim, &request->event, request->after_ns);
            return;
        }
    }
    if (request->phase == SIM_SETTLING)
        sim_request_end(request);
}

static void sim_request_fire(struct sim_event *event)
{
    sim_request_step(CONTAINER_OF(event, struct sim_request, event));
}

static bool sim_splits(struct sim *sim, size_t length_bytes)
{
    return sim->options.file.max_ns != 0 && length_bytes > SIM_PAGE_BYTES &&
           sim_chance(sim, sim->options.split_percent);
}

int sim_request_run(struct sim_loop *loop, struct sim_request *request)
{
    struct sim *sim = loop->sim;

    sim_ghost_yield(loop);
    if (loop->dead)
        return -EIO;
    request->event.fire = sim_request_fire;
    request->loop = loop;
    request->host = loop->host;
    request->number = ++loop->host->requests_made;
    list_push_back(&loop->requests, &request->link);
    uint64_t delay_ns = sim_delay_ns(sim, sim->options.file);
    if (request->op == SIM_OP_READ || request->op == SIM_OP_WRITE)
        request->split = sim_splits(sim, request->length_bytes);
    if (delay_ns == 0 || sim_chance(sim, sim->options.inline_percent)) {
        sim_request_step(request);
    } else {
        uint64_t before_ns = sim_below(sim, delay_ns + 1);
        request->after_ns = delay_ns - before_ns;
        sim_event_arm(sim, &request->event, before_ns);
    }
    while (request->phase != SIM_DONE) {
        request->waiter = co_self();
        co_wait();
    }
    return request->result;
}

void sim_requests_unstall(struct sim_host *host)
{
    LIST_FOR_EACH(loop, &host->sim->loops, struct sim_loop, link) {
        if (loop->host != host)
            continue;
        LIST_FOR_EACH(request, &loop->requests, struct sim_request, link) {
            if (request->phase != SIM_STALLED)
                continue;
            sim_event_cancel(host->sim, &request->event);
            sim_event_arm(host->sim, &request->event, 0);
        }
    }
}

/* --- what the dead have left --- */

static bool sim_lands(struct sim_luck *luck, const struct sim_request *request,
                      uint64_t offset_bytes)
{
    const struct sim_choice_info info = {
        .choice = SIM_CHOICE_LANDS,
        .host = request->host->name,
        .name = request->path,
        .inode = request->inode != NULL ? request->inode->number : 0,
        .offset_bytes = offset_bytes,
    };
    /* What lands is not durable, so that what is asked about that says it all. */
    if (luck->sim->chooser != NULL && request->host->down)
        return true;
    return sim_choose(luck, &info);
}

/* Each unit of it by itself. */
static void sim_land_units(struct sim_request *request, struct sim_luck *luck)
{
    uint64_t end_bytes = request->offset_bytes + request->length_bytes;

    for (uint64_t at = request->offset_bytes + request->done_bytes; at < end_bytes;) {
        uint64_t next = MIN(end_bytes, align_down(at, SIM_UNIT_BYTES) + SIM_UNIT_BYTES);
        bool lands = sim_lands(luck, request, at);
        if (lands && request->op == SIM_OP_WRITE)
            (void)sim_inode_write(request->inode, request->bytes + (at - request->offset_bytes),
                                  next - at, at);
        else if (lands)
            (void)sim_zero(request, at, next - at);
        at = next;
    }
}

void sim_request_drop(struct sim_request *request)
{
    list_remove(&request->link);
    sim_event_cancel(request->host->sim, &request->event);
    if (request->inode != NULL)
        sim_inode_unref(request->inode);
    free(request->bytes);
    free(request);
}

void sim_request_land(struct sim_request *request)
{
    struct sim *sim = request->host->sim;
    struct sim_luck luck;

    sim_luck_draw(sim, &luck);
    sim_trace(sim, SIM_KIND_LAND, request->op, request->offset_bytes, request->length_bytes);
    sim_tell(sim, request->host, NULL, "what a dead process left lands: %s %s %llu+%llu",
             sim_op_name(request->op), request->path, (unsigned long long)request->offset_bytes,
             (unsigned long long)request->length_bytes);
    if (request->op == SIM_OP_WRITE || request->op == SIM_OP_ZERO)
        sim_land_units(request, &luck);
    else if (sim_lands(&luck, request, request->offset_bytes))
        (void)sim_effect(request, 0);
    sim_request_drop(request);
}

static void sim_orphan_fire(struct sim_event *event)
{
    sim_request_land(CONTAINER_OF(event, struct sim_request, event));
}

/* A copy that lives by itself, with its data and names; NULL when memory is out, and it never lands. */
static struct sim_request *sim_orphan_new(const struct sim_request *request)
{
    size_t path_bytes = strlen(request->path) + 1;
    size_t new_bytes = request->new_path != NULL ? strlen(request->new_path) + 1 : 0;
    struct sim_request *orphan = malloc(sizeof(*orphan) + path_bytes + new_bytes);
    char *names = (char *)(orphan + 1);

    if (orphan == NULL)
        return NULL;
    *orphan = *request;
    orphan->loop = NULL;
    orphan->waiter = NULL;
    orphan->bytes = NULL;
    orphan->event = (struct sim_event){.fire = sim_orphan_fire};
    orphan->link = (struct list_link){NULL, NULL};
    orphan->path = memcpy(names, request->path, path_bytes);
    if (new_bytes > 0)
        orphan->new_path = memcpy(names + path_bytes, request->new_path, new_bytes);
    if (request->op == SIM_OP_WRITE) {
        orphan->bytes = malloc(request->length_bytes + 1);
        if (orphan->bytes == NULL) {
            free(orphan);
            return NULL;
        }
        size_t at = request->done_bytes;
        for (int i = 0; i < request->iov_count; at += request->iov[i++].iov_len)
            memcpy(orphan->bytes + at, request->iov[i].iov_base, request->iov[i].iov_len);
    }
    if (orphan->inode != NULL)
        sim_inode_ref(orphan->inode);
    return orphan;
}

/* Calls of a thread of the process (names) have been made or not; what is on its way to a disk ends
 * when it will. */
static void sim_request_orphan(struct sim_request *request, struct sim_remains *remains)
{
    bool later = request->op == SIM_OP_WRITE || request->op == SIM_OP_ZERO ||
                 request->op == SIM_OP_TRUNCATE;
    struct sim *sim = request->host->sim;

    if (request->op == SIM_OP_READ || request->op == SIM_OP_SYNC || request->op == SIM_OP_EXTENT ||
        request->op == SIM_OP_SYNC_FOLDER)
        return;
    struct sim_request *orphan = sim_orphan_new(request);
    if (orphan == NULL)
        return;
    if (!later || remains == NULL || remains->end_ns <= sim->now_ns) {
        sim_request_land(orphan);
        return;
    }
    list_push_back(&remains->requests, &orphan->link);
    sim_event_arm(sim, &orphan->event, sim_below(sim, remains->end_ns - sim->now_ns));
}

void sim_requests_abandon(struct sim_loop *loop, struct sim_remains *remains)
{
    struct sim_request *request;

    while ((request = LIST_POP_FRONT(&loop->requests, struct sim_request, link)) != NULL) {
        sim_event_cancel(loop->sim, &request->event);
        if (request->phase < SIM_SETTLING)
            sim_request_orphan(request, remains);
        request->result = -EIO;
        sim_request_end(request);
    }
}
