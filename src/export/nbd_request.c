/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One request's way: checked, given its share of the budget, its payload received; then run by a
 * coroutine that mostly ends without waiting; then the reply gathered with others of the turn.
 */
#include "export/nbd_internal.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define KNOWN_FLAGS                                                                     \
    (NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_DF | NBD_CMD_FLAG_REQ_ONE | \
     NBD_CMD_FLAG_FAST_ZERO)

/* --- the budget --- */

/* Serves those who wait, first come, first served. Not co_budget_take(): a connection that is cut
 * must leave at once, not when there is memory again. */
static void budget_serve(struct nbd_service *service)
{
    while (!list_empty(&service->hungry)) {
        struct nbd_connection *first = LIST_ENTRY(list_first(&service->hungry),
                                                  struct nbd_connection, hungry_link);

        if (!co_budget_try(&service->budget, first->wish_bytes))
            break;
        list_remove(&first->hungry_link);
        first->granted = true;
        co_queue_wake_all(&first->room);
    }
}

static void budget_give(struct nbd_service *service, uint64_t bytes)
{
    co_budget_give(&service->budget, bytes);
    budget_serve(service);
}

/* False when the connection has been cut: nothing is held then. */
static bool budget_take(struct nbd_connection *connection, uint64_t bytes) MAY_WAIT
{
    struct nbd_service *service = connection->service;

    if (connection->cut)
        return false;
    if (likely(list_empty(&service->hungry)) && co_budget_try(&service->budget, bytes))
        return true;
    connection->wish_bytes = bytes;
    connection->granted = false;
    list_push_back(&service->hungry, &connection->hungry_link);
    nbd_stall_watch(service);
    while (!connection->granted && !connection->cut)
        co_queue_wait(&connection->room);
    if (connection->granted)
        return true;
    list_remove(&connection->hungry_link);
    budget_serve(service);
    return false;
}

/* --- work: pooled --- */

static struct nbd_work *work_get(struct nbd_connection *connection)
{
    struct nbd_work *work = LIST_POP_FRONT(&connection->free_work, struct nbd_work, link);

    if (work == NULL)
        work = malloc(sizeof(*work));
    if (work == NULL)
        return NULL;
    work->link = (struct list_link){NULL, NULL};
    work->connection = connection;
    work->data = (struct buf_slice){NULL, NULL, 0};
    work->part_count = 0;
    work->cost_bytes = 0;
    connection->in_flight++;
    return work;
}

static void work_put(struct nbd_work *work)
{
    struct nbd_connection *connection = work->connection;

    buf_unref(work->data.buf);
    if (work->cost_bytes > 0) {
        budget_give(connection->service, work->cost_bytes);
        connection->in_flight_bytes -= work->cost_bytes;
    }
    assert(connection->in_flight > 0);
    connection->in_flight--;
    list_push_front(&connection->free_work, &work->link);
}

void nbd_replies_sent(struct gather *gather, struct list *items, int result)
{
    struct nbd_connection *connection = CONTAINER_OF(gather, struct nbd_connection, gather);
    struct nbd_work *work;

    while ((work = LIST_POP_FRONT(items, struct nbd_work, link)) != NULL)
        work_put(work);
    if (result < 0)
        nbd_connection_cut(connection, result);
    co_queue_wake_all(&connection->room);
}

/* --- replies --- */

static void reply_simple(struct nbd_work *work, uint32_t error)
{
    struct gather *gather = &work->connection->gather;
    struct nbd_simple_reply reply = {error, work->request.cookie};

    nbd_simple_reply_encode(gather_head(gather, NBD_SIMPLE_REPLY_BYTES), &reply);
    if (work->request.type == NBD_CMD_READ && error == 0)
        gather_data(gather, work->data.bytes, work->data.length_bytes);
}

static uint8_t *reply_chunk(struct nbd_work *work, uint16_t flags, uint16_t type, size_t head_bytes,
                            size_t data_bytes)
{
    struct nbd_chunk chunk = {
        .flags = flags,
        .type = type,
        .cookie = work->request.cookie,
        .length_bytes = (uint32_t)(head_bytes + data_bytes),
    };
    uint8_t *head = gather_head(&work->connection->gather, NBD_CHUNK_BYTES + head_bytes);

    nbd_chunk_encode(head, &chunk);
    return head + NBD_CHUNK_BYTES;
}

static void reply_structured(struct nbd_work *work, uint32_t error)
{
    struct gather *gather = &work->connection->gather;

    if (error != 0) {
        nbd_error_encode(reply_chunk(work, NBD_CHUNK_DONE, NBD_CHUNK_ERROR, NBD_ERROR_BYTES, 0),
                         error);
    } else if (work->request.type == NBD_CMD_READ && work->data.length_bytes > 0) {
        be64_put(reply_chunk(work, NBD_CHUNK_DONE, NBD_CHUNK_OFFSET_DATA, NBD_OFFSET_DATA_BYTES,
                             work->data.length_bytes),
                 work->request.offset_bytes);
        gather_data(gather, work->data.bytes, work->data.length_bytes);
    } else if (work->part_count > 0) {
        const uint8_t *at = work->data.bytes;

        for (unsigned i = 0; i < work->part_count; i++) {
            uint16_t flags = i + 1 == work->part_count ? NBD_CHUNK_DONE : 0;
            be32_put(reply_chunk(work, flags, NBD_CHUNK_BLOCK_STATUS, NBD_BLOCK_STATUS_BYTES,
                                 work->parts_bytes[i]),
                     work->parts_id[i]);
            gather_data(gather, at, work->parts_bytes[i]);
            at += work->parts_bytes[i];
        }
    } else {
        reply_chunk(work, NBD_CHUNK_DONE, NBD_CHUNK_NONE, 0, 0);
    }
}

/* Answers; the work goes back to its pool when the answer has been sent. */
static void work_reply(struct nbd_work *work, int result)
{
    uint16_t type = work->request.type;
    uint32_t error = nbd_error_from_errno(result);

    if (work->connection->structured && (type == NBD_CMD_READ || type == NBD_CMD_BLOCK_STATUS))
        reply_structured(work, error);
    else
        reply_simple(work, error);
    gather_end(&work->connection->gather, &work->link);
}

/* --- running --- */

static int work_read(struct nbd_work *work) MAY_WAIT
{
    size_t length_bytes = work->request.length_bytes;

    if (length_bytes == 0)
        return 0;
    struct buf *buf = buf_alloc(loop_bufs(work->connection->loop), length_bytes);
    if (buf == NULL)
        return -ENOMEM;
    work->data = buf_slice_of(buf, 0, length_bytes);
    struct io io = {
        .offset_bytes = work->request.offset_bytes,
        .length_bytes = length_bytes,
        .data = work->data,
    };
    return io_read(work->connection->export->edge, &io);
}

static int work_write(struct nbd_work *work) MAY_WAIT
{
    struct io io = {
        .offset_bytes = work->request.offset_bytes,
        .length_bytes = work->request.length_bytes,
        .data = work->data,
        .flags = (work->request.flags & NBD_CMD_FLAG_FUA) != 0 ? IO_FUA : 0,
    };
    int result = io_write(work->connection->export->edge, &io);

    /* The receive buffer can be used again now, not only when the reply has gone. */
    buf_unref(work->data.buf);
    work->data = (struct buf_slice){NULL, NULL, 0};
    return result;
}

static int work_zero(struct nbd_work *work) MAY_WAIT
{
    unsigned flags = work->request.flags;
    struct io io = {
        .offset_bytes = work->request.offset_bytes,
        .length_bytes = work->request.length_bytes,
        .flags = ((flags & NBD_CMD_FLAG_FUA) != 0 ? IO_FUA : 0) |
                 ((flags & NBD_CMD_FLAG_NO_HOLE) != 0 ? 0 : IO_MAY_UNMAP) |
                 ((flags & NBD_CMD_FLAG_FAST_ZERO) != 0 ? IO_NO_FALLBACK : 0),
    };

    return io_zero(work->connection->export->edge, &io);
}

static int work_trim(struct nbd_work *work) MAY_WAIT
{
    struct edge *edge = work->connection->export->edge;
    struct io io = {
        .offset_bytes = work->request.offset_bytes,
        .length_bytes = work->request.length_bytes,
    };
    int result = io_discard(edge, &io);

    if (result == 0 && (work->request.flags & NBD_CMD_FLAG_FUA) != 0)
        result = io_flush(edge);
    return result;
}

/* Reads what is asked for, so that the caches below have it, and drops it. */
static int work_cache(struct nbd_work *work) MAY_WAIT
{
    uint64_t done = 0;
    int result = 0;
    CLEANUP(buf_unrefp)
    struct buf *buf = buf_alloc(loop_bufs(work->connection->loop), NBD_CACHE_STEP_BYTES);

    if (buf == NULL)
        return -ENOMEM;
    while (result == 0 && done < work->request.length_bytes && !work->connection->cut) {
        size_t step = MIN(NBD_CACHE_STEP_BYTES, work->request.length_bytes - done);
        struct io io = {
            .offset_bytes = work->request.offset_bytes + done,
            .length_bytes = step,
            .data = buf_slice_of(buf, 0, step),
        };
        result = io_read(work->connection->export->edge, &io);
        done += step;
    }
    return result;
}

/* --- block status --- */

struct extent_list {
    uint8_t *bytes;
    size_t count;
    struct nbd_descriptor last;
};

/* False when the list is full. */
static bool extent_list_add(struct extent_list *list, size_t limit, uint64_t length_bytes,
                            uint32_t status)
{
    uint32_t length = (uint32_t)MIN(length_bytes, (uint64_t)UINT32_MAX - 4095);

    if (list->count > 0 && list->last.status == status &&
        (uint64_t)list->last.length_bytes + length <= UINT32_MAX) {
        list->last.length_bytes += length;
    } else {
        if (list->count == limit)
            return false;
        list->count++;
        list->last = (struct nbd_descriptor){length, status};
    }
    nbd_descriptor_encode(list->bytes + (list->count - 1) * NBD_DESCRIPTOR_BYTES, &list->last);
    return true;
}

static uint32_t extent_status(unsigned context, const struct extent *extent)
{
    if (context == NBD_DEPTH)
        return extent->depth;
    return ((extent->flags & EXTENT_DATA) != 0 ? 0 : NBD_STATE_HOLE) |
           ((extent->flags & EXTENT_ZERO) != 0 ? NBD_STATE_ZERO : 0);
}

/* Walks the extents once, for all contexts that tell of them, until one list is full. */
static int extents_collect(struct nbd_work *work, struct extent_list *lists, size_t limit) MAY_WAIT
{
    struct nbd_connection *connection = work->connection;
    uint64_t offset = work->request.offset_bytes;
    uint64_t end = offset + work->request.length_bytes;
    bool room = true;

    /* An endless row of equal extents is merged, so steps are bounded as well. */
    for (unsigned step = 0; room && offset < end && step < NBD_MAX_EXTENTS * 4; step++) {
        struct extent extent;
        int result = io_extents(connection->export->edge, offset, end - offset, &extent);

        if (result < 0)
            return offset > work->request.offset_bytes ? 0 : result;
        for (unsigned i = 0; i < NBD_FIRST_BITMAP; i++)
            if ((connection->contexts & (1u << i)) != 0)
                room &= extent_list_add(&lists[i], limit, MIN(extent.length_bytes, end - offset),
                                        extent_status(i, &extent));
        offset += extent.length_bytes;
        if (connection->cut)
            break;
    }
    return 0;
}

static void bitmap_collect(const struct nbd_work *work, const struct dirty_bitmap *bitmap,
                           struct extent_list *list, size_t limit)
{
    uint64_t offset = work->request.offset_bytes;
    uint64_t end = offset + work->request.length_bytes, length = 0;
    bool room = true;

    for (; room && offset < end; offset += length) {
        bool marked = dirty_tracker_look(&bitmap->tracker, offset, end - offset, &length);

        room = extent_list_add(list, limit, length, marked ? NBD_STATE_DIRTY : 0);
    }
}

static int context_lists_fill(struct nbd_work *work, struct extent_list *lists) MAY_WAIT
{
    const struct nbd_connection *connection = work->connection;
    size_t limit = (work->request.flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : NBD_MAX_EXTENTS;
    unsigned of_extents = (1u << NBD_FIRST_BITMAP) - 1;

    if ((connection->contexts & of_extents) != 0) {
        int result = extents_collect(work, lists, limit);
        if (result < 0)
            return result;
    }
    for (unsigned i = NBD_FIRST_BITMAP; i < NBD_MAX_CONTEXTS; i++)
        if ((connection->contexts & (1u << i)) != 0)
            bitmap_collect(work, connection->export->bitmaps[i - NBD_FIRST_BITMAP], &lists[i],
                           limit);
    return 0;
}

static int work_block_status(struct nbd_work *work) MAY_WAIT
{
    unsigned contexts = work->connection->contexts, place = 0;
    size_t bytes = (size_t)__builtin_popcount(contexts) * NBD_EXTENTS_BYTES;
    struct extent_list lists[NBD_MAX_CONTEXTS] = {0};
    struct buf *buf = buf_alloc(loop_bufs(work->connection->loop), bytes);

    if (buf == NULL)
        return -ENOMEM;
    work->data = buf_slice_of(buf, 0, bytes);
    for (unsigned i = 0; i < NBD_MAX_CONTEXTS; i++)
        if ((contexts & (1u << i)) != 0)
            lists[i].bytes = buf->bytes + place++ * NBD_EXTENTS_BYTES;
    int result = context_lists_fill(work, lists);
    if (result < 0)
        return result;
    size_t at = 0;
    for (unsigned i = 0; i < NBD_MAX_CONTEXTS; i++) {
        size_t part = lists[i].count * NBD_DESCRIPTOR_BYTES;
        if ((contexts & (1u << i)) == 0)
            continue;
        memmove(buf->bytes + at, lists[i].bytes, part);
        work->parts_id[work->part_count] = (uint8_t)i;
        work->parts_bytes[work->part_count++] = (uint32_t)part;
        at += part;
    }
    return 0;
}

/* --- a request's life --- */

static bool is_change(const struct nbd_request *request)
{
    return request->type == NBD_CMD_WRITE || request->type == NBD_CMD_WRITE_ZEROES ||
           request->type == NBD_CMD_TRIM;
}

static int work_dispatch(struct nbd_work *work) MAY_WAIT
{
    switch (work->request.type) {
    case NBD_CMD_READ:
        return work_read(work);
    case NBD_CMD_WRITE:
        return work_write(work);
    case NBD_CMD_FLUSH:
        return io_flush(work->connection->export->edge);
    case NBD_CMD_TRIM:
        return work_trim(work);
    case NBD_CMD_WRITE_ZEROES:
        return work_zero(work);
    case NBD_CMD_CACHE:
        return work_cache(work);
    case NBD_CMD_BLOCK_STATUS:
        return work_block_status(work);
    default:
        return -EINVAL;
    }
}

static void work_count(struct nbd_export *export, const struct nbd_work *work, int result)
{
    struct io_count *count = work->request.type == NBD_CMD_READ    ? &export->read
                             : work->request.type == NBD_CMD_WRITE ? &export->write
                                                                   : &export->other;

    count->requests++;
    if (result < 0)
        count->errors++;
    else if (count != &export->other)
        count->bytes += work->request.length_bytes;
}

/* BLOCK_IO_ERROR. An event that memory is too short for is lost: the client sees the error. */
static void work_report(const struct nbd_export *export, const struct nbd_work *work, int result)
{
    bool reading = work->request.type == NBD_CMD_READ || work->request.type == NBD_CMD_CACHE;
    CLEANUP(json_putp) struct json_object *data = json_object_new_object();

    if (data == NULL || json_add_string(data, "device", export->id) < 0 ||
        json_add_string(data, "node-name", export->edge->child->name) < 0 ||
        json_add_string(data, "operation", reading ? "read" : "write") < 0 ||
        json_add_string(data, "action", "report") < 0 ||
        json_add_bool(data, "nospace", result == -ENOSPC) < 0 ||
        json_add_string(data, "reason", strerror(-result)) < 0)
        return;
    graph_event(export->service->graph, "BLOCK_IO_ERROR", TAKE_PTR(data));
}

/* Neither a way that is not there, nor a request that its client has left or that was not admitted. */
static bool is_io_error(const struct nbd_work *work, int result)
{
    return result < 0 && result != -EOPNOTSUPP && result != -ECANCELED && result != -EPERM &&
           work->request.type != NBD_CMD_BLOCK_STATUS;
}

static void work_run(void *arg) MAY_WAIT
{
    struct nbd_work *work = arg;
    struct nbd_connection *connection = work->connection;
    struct nbd_export *export = connection->export;
    bool changes = is_change(&work->request);
    int result = 0;

    if (changes && unlikely(!nbd_is_admitted(connection)))
        result = nbd_admit(connection);
    if (result == 0)
        result = work_dispatch(work);
    connection->failed |= changes && result < 0;
    TRACE("nbd.request", "%s %s: %" PRIu64 "+%u: %d", export->name,
          nbd_command_name(work->request.type), work->request.offset_bytes,
          work->request.length_bytes, result);
    work_count(export, work, result);
    if (unlikely(is_io_error(work, result)))
        work_report(export, work, result);
    if (--export->requests == 0)
        co_queue_wake_all(&export->idle);
    work_reply(work, result);
}

/* What can be said without asking the node: 0 or the errno of the reply. */
static int request_check(const struct nbd_connection *connection, const struct nbd_request *request)
{
    const struct nbd_export *export = connection->export;
    uint64_t size_bytes = export->edge->child->length_bytes;
    bool fits = range_fits(request->offset_bytes, request->length_bytes, size_bytes);

    if (export->revoked)
        return -ESHUTDOWN;
    if ((request->flags & ~KNOWN_FLAGS) != 0)
        return -EINVAL;
    if (is_change(request) && !export->writable)
        return -EPERM;
    switch (request->type) {
    case NBD_CMD_READ:
    case NBD_CMD_CACHE:
        return fits && (request->type == NBD_CMD_CACHE ||
                        request->length_bytes <= NBD_MAX_REQUEST_BYTES)
                   ? 0
                   : -EINVAL;
    case NBD_CMD_WRITE:
    case NBD_CMD_WRITE_ZEROES:
        return fits ? 0 : -ENOSPC;
    case NBD_CMD_TRIM:
        return fits ? 0 : -EINVAL;
    case NBD_CMD_BLOCK_STATUS:
        return fits && request->length_bytes > 0 && connection->contexts != 0 ? 0 : -EINVAL;
    case NBD_CMD_FLUSH:
        return 0;
    default:
        return -EINVAL;
    }
}

static uint64_t request_cost(const struct nbd_connection *connection,
                             const struct nbd_request *request)
{
    uint64_t cost = NBD_REQUEST_COST_BYTES, bytes = 0;

    if (request->type == NBD_CMD_CACHE)
        return NBD_CACHE_STEP_BYTES;
    if (request->type == NBD_CMD_READ || request->type == NBD_CMD_WRITE)
        bytes = request->length_bytes;
    else if (request->type == NBD_CMD_BLOCK_STATUS)
        bytes = (uint64_t)__builtin_popcount(connection->contexts) * NBD_EXTENTS_BYTES;
    while (cost < bytes)
        cost *= 2; /* as buffers come in powers of two */
    return cost;
}

/* Waits for the request's share of memory. */
static int request_admit(struct nbd_connection *connection, struct nbd_work *work) MAY_WAIT
{
    uint64_t cost = request_cost(connection, &work->request);

    while (connection->in_flight_bytes + cost > NBD_MAX_CONNECTION_BYTES && !connection->cut)
        co_queue_wait(&connection->room);
    if (!budget_take(connection, cost))
        return -ECONNABORTED;
    work->cost_bytes = cost;
    connection->in_flight_bytes += cost;
    return 0;
}

static int request_receive(struct nbd_connection *connection, struct nbd_work *work, int error)
    MAY_WAIT
{
    size_t length_bytes = work->request.length_bytes;

    if (work->request.type != NBD_CMD_WRITE || length_bytes == 0)
        return 1;
    if (error != 0)
        return nbd_receive_skip(connection, length_bytes);
    return nbd_receive_payload(connection, length_bytes, &work->data);
}

int nbd_request_take(struct nbd_connection *connection, const struct nbd_request *request)
{
    while (connection->in_flight >= NBD_MAX_REQUESTS_IN_FLIGHT && !connection->cut)
        co_queue_wait(&connection->room);
    if (connection->cut)
        return -ECONNABORTED;
    if (request->type == NBD_CMD_WRITE && request->length_bytes > NBD_MAX_REQUEST_BYTES)
        return -EPROTO; /* we said what the limit is, and will not swallow it */
    struct nbd_work *work = work_get(connection);
    if (work == NULL)
        return -ENOMEM;
    work->request = *request;
    int error = request_check(connection, request);
    int result = error == 0 ? request_admit(connection, work) : 0;
    if (result == 0)
        result = request_receive(connection, work, error);
    if (result <= 0) {
        work_put(work);
        return result;
    }
    /* The payload may have been long on its way. */
    if (error == 0 && (connection->cut || connection->export->revoked))
        error = -ESHUTDOWN;
    connection->export->requests += error == 0;
    if (error == 0 && co_spawn_now(connection->loop, "nbd request", work_run, work) < 0) {
        connection->export->requests--;
        error = -ENOMEM;
    }
    if (error != 0)
        work_reply(work, error);
    return 1;
}
