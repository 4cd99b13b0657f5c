/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The NBD client's requests and the connection's life. A receiver coroutine hands out replies; when
 * it ends, for whatever reason, it ends every request in flight with that reason: by then no call of
 * the kernel has memory of theirs any more.
 */
#include "drivers/nbd_client_internal.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_ZERO_BYTES (1u << 30) /* of one WRITE_ZEROES, TRIM or BLOCK_STATUS */

/* --- the end --- */

static void client_die(struct nbd_client *client, int reason)
{
    assert(reason < 0);
    if (client->dead != 0)
        return;
    client->dead = reason;
    client->info.connected = false;
    client->info.last_error = reason;
    loop_timer_cancel(&client->timer);
    sock_shutdown(client->sock, reason);
    co_queue_wake_all(&client->room);
    if (client->lost != NULL)
        client->lost(client->lost_arg, reason);
}

void nbd_client_shutdown(struct nbd_client *client, int reason)
{
    client_die(client, reason != 0 ? reason : -ECANCELED);
}

static void call_wake(struct nbd_call *call)
{
    if (call->sent && call->answered)
        co_wake(call->co);
}

void nbd_client_answer(struct nbd_client *client, struct nbd_call *call, int result)
{
    uint32_t index = (uint32_t)call->request.cookie;

    assert(client->slots[index].call == call);
    client->slots[index].call = NULL;
    client->free_slots[client->free_count++] = (uint16_t)index;
    list_remove(&call->pending_link);
    client->info.last_reply_ns = loop_now_ns(client->loop);
    client->info.errors += result < 0;
    if (result == 0 && call->request.type == NBD_CMD_WRITE)
        client->info.bytes_acked += call->request.length_bytes;
    if (result == 0 && call->request.type == NBD_CMD_READ)
        client->info.bytes_read += call->request.length_bytes;
    call->result = result;
    call->answered = true;
    call_wake(call);
    co_queue_wake_one(&client->room);
}

static void calls_sent(struct gather *gather, struct list *items, int result)
{
    struct nbd_client *client = CONTAINER_OF(gather, struct nbd_client, gather);
    struct nbd_call *call;

    while ((call = LIST_POP_FRONT(items, struct nbd_call, sent_link)) != NULL) {
        call->sent = true;
        if (result == 0 && call->request.type == NBD_CMD_WRITE)
            client->info.bytes_sent += call->request.length_bytes;
        call_wake(call);
    }
    if (result < 0)
        client_die(client, result);
}

static void receiver_run(void *arg) MAY_WAIT
{
    struct nbd_client *client = arg;
    int result = nbd_client_replies(client);

    if (client->dead == 0 && !list_empty(&client->pending))
        log_warning("nbd", "connection to %s ended: %s", client->address, strerror(-result));
    client_die(client, result);
    while (!list_empty(&client->pending)) {
        struct nbd_call *call = LIST_ENTRY(list_first(&client->pending), struct nbd_call,
                                           pending_link);
        nbd_client_answer(client, call, client->dead);
    }
    client->receiving = false;
    co_queue_wake_all(&client->ended);
}

/* One timer for the oldest request: all have the same time. */
static void deadline_check(struct loop_timer *timer)
{
    struct nbd_client *client = CONTAINER_OF(timer, struct nbd_client, timer);

    if (list_empty(&client->pending) || client->dead != 0)
        return;
    struct nbd_call *oldest = LIST_ENTRY(list_first(&client->pending), struct nbd_call,
                                         pending_link);
    uint64_t deadline_ns = oldest->made_ns + client->request_timeout_ns;
    if (deadline_ns > loop_now_ns(client->loop)) {
        loop_timer_arm(client->loop, timer, deadline_ns);
        return;
    }
    log_warning("nbd", "%s did not answer a %s request within %u ms: connection shut down",
                client->address, nbd_command_name(oldest->request.type),
                (unsigned)(client->request_timeout_ns / NS_PER_MS));
    client_die(client, -ETIMEDOUT);
}

/* --- a request --- */

static void call_send(struct nbd_client *client, struct nbd_call *call)
{
    struct gather *gather = &client->gather;

    nbd_request_encode(gather_head(gather, NBD_REQUEST_BYTES), &call->request);
    if (call->request.type == NBD_CMD_WRITE)
        gather_data(gather, call->data.bytes, call->data.length_bytes);
    gather_end(gather, &call->sent_link);
}

static int client_call(struct nbd_client *client, struct nbd_call *call) MAY_WAIT
{
    while (client->dead == 0 && client->free_count == 0)
        co_queue_wait(&client->room);
    if (client->dead != 0)
        return client->dead;
    uint16_t index = client->free_slots[--client->free_count];
    struct call_slot *slot = &client->slots[index];
    slot->call = call;
    slot->generation++;
    call->request.cookie = (uint64_t)slot->generation << 32 | index;
    call->co = co_self();
    call->made_ns = loop_now_ns(client->loop);
    client->info.requests++;
    list_push_back(&client->pending, &call->pending_link);
    if (!loop_timer_armed(&client->timer))
        loop_timer_arm(client->loop, &client->timer, call->made_ns + client->request_timeout_ns);
    call_send(client, call);
    while (!call->sent || !call->answered)
        co_wait();
    return call->result;
}

static uint16_t fua_flag(const struct nbd_client *client, const struct io *io)
{
    return (io->flags & IO_FUA) != 0 && (client->flags & NBD_SEND_FUA) != 0 ? NBD_CMD_FLAG_FUA : 0;
}

int nbd_client_read(struct nbd_client *client, const struct io *io)
{
    struct nbd_call call = {
        .request = {.type = NBD_CMD_READ,
                    .offset_bytes = io->offset_bytes,
                    .length_bytes = (uint32_t)io->length_bytes},
        .data = io->data,
    };

    assert(io->length_bytes <= client->maximum_bytes);
    assert(io->data.length_bytes == io->length_bytes);
    return io->length_bytes > 0 ? client_call(client, &call) : 0;
}

int nbd_client_write(struct nbd_client *client, const struct io *io)
{
    struct nbd_call call = {
        .request = {.type = NBD_CMD_WRITE,
                    .flags = fua_flag(client, io),
                    .offset_bytes = io->offset_bytes,
                    .length_bytes = (uint32_t)io->length_bytes},
        .data = io->data,
    };

    assert(io->length_bytes <= client->maximum_bytes);
    assert(io->data.length_bytes == io->length_bytes);
    return io->length_bytes > 0 ? client_call(client, &call) : 0;
}

/* WRITE_ZEROES and TRIM carry no data, but their length has 32 bits. */
static int call_in_steps(struct nbd_client *client, uint16_t type, uint16_t flags,
                         const struct io *io) MAY_WAIT
{
    int result = 0;

    for (uint64_t done = 0; result == 0 && done < io->length_bytes; done += MAX_ZERO_BYTES) {
        struct nbd_call call = {
            .request = {.type = type,
                        .flags = flags,
                        .offset_bytes = io->offset_bytes + done,
                        .length_bytes = (uint32_t)MIN(io->length_bytes - done, MAX_ZERO_BYTES)},
        };
        result = client_call(client, &call);
    }
    return result;
}

int nbd_client_zero(struct nbd_client *client, const struct io *io)
{
    uint16_t flags = fua_flag(client, io);

    if ((client->flags & NBD_SEND_WRITE_ZEROES) == 0)
        return -EOPNOTSUPP;
    if ((io->flags & IO_MAY_UNMAP) == 0)
        flags |= NBD_CMD_FLAG_NO_HOLE;
    if ((io->flags & IO_NO_FALLBACK) != 0) {
        if ((client->flags & NBD_SEND_FAST_ZERO) == 0)
            return -EOPNOTSUPP;
        flags |= NBD_CMD_FLAG_FAST_ZERO;
    }
    return call_in_steps(client, NBD_CMD_WRITE_ZEROES, flags, io);
}

int nbd_client_discard(struct nbd_client *client, const struct io *io)
{
    if ((client->flags & NBD_SEND_TRIM) == 0)
        return 0;
    return call_in_steps(client, NBD_CMD_TRIM, 0, io);
}

int nbd_client_flush(struct nbd_client *client)
{
    struct nbd_call call = {.request = {.type = NBD_CMD_FLUSH}};

    if ((client->flags & NBD_SEND_FLUSH) == 0)
        return client->dead; /* it has nothing volatile, it says */
    return client_call(client, &call);
}

int nbd_client_extents(struct nbd_client *client, uint64_t offset_bytes, uint64_t length_bytes,
                       struct extent *ret_extent)
{
    struct nbd_call call = {
        .request = {.type = NBD_CMD_BLOCK_STATUS,
                    .flags = NBD_CMD_FLAG_REQ_ONE,
                    .offset_bytes = offset_bytes,
                    .length_bytes = (uint32_t)MIN(length_bytes, MAX_ZERO_BYTES)},
    };
    const struct nbd_descriptor *allocation = &call.status[CONTEXT_ALLOCATION];
    const struct nbd_descriptor *depth = &call.status[CONTEXT_DEPTH];
    struct extent extent = {length_bytes, EXTENT_DATA, 1};

    if (client->has_context[CONTEXT_ALLOCATION] || client->has_context[CONTEXT_DEPTH]) {
        int result = client_call(client, &call);
        if (result < 0)
            return result;
        extent.length_bytes = MIN(length_bytes, MAX_ZERO_BYTES);
    }
    if (allocation->length_bytes != 0) {
        extent.length_bytes = MIN(extent.length_bytes, allocation->length_bytes);
        extent.flags = ((allocation->status & NBD_STATE_HOLE) != 0 ? 0 : EXTENT_DATA) |
                       ((allocation->status & NBD_STATE_ZERO) != 0 ? EXTENT_ZERO : 0);
        if ((extent.flags & EXTENT_ZERO) == 0)
            extent.flags |= EXTENT_DATA; /* a hole that does not read as zeroes may be anything */
    }
    if (depth->length_bytes != 0) {
        extent.length_bytes = MIN(extent.length_bytes, depth->length_bytes);
        extent.depth = depth->status;
    }
    *ret_extent = extent;
    return 0;
}

/* --- opening and closing --- */

static void client_free(struct nbd_client *client)
{
    if (client == NULL)
        return;
    assert(!client->receiving);
    assert(list_empty(&client->pending));
    loop_timer_cancel(&client->timer);
    if (client->gather_ready)
        gather_release(&client->gather);
    sock_close(client->sock);
    free(client->receive);
    tls_creds_unref(client->creds);
    free(client->tls_hostname);
    free(client->export);
    free(client);
}

static void client_freep(struct nbd_client **client)
{
    client_free(*client);
}

/* False: memory is out. */
static bool client_set_tls(struct nbd_client *client, const struct nbd_client_options *options)
{
    const char *host = options->tls_hostname;

    if (options->tls == NULL)
        return true;
    if (host == NULL && options->address.family == SOCK_FAMILY_INET)
        host = options->address.host;
    client->creds = tls_creds_ref(options->tls);
    client->info.tls = true;
    client->tls_hostname = strdup(host != NULL && host[0] != '\0' ? host : "localhost");
    return client->tls_hostname != NULL;
}

static struct nbd_client *client_new(struct loop *loop, const struct nbd_client_options *options)
{
    CLEANUP(client_freep) struct nbd_client *client = calloc(1, sizeof(*client));

    if (client == NULL)
        return NULL;
    client->loop = loop;
    client->timer.fire = deadline_check;
    client->minimum_bytes = 1;
    client->maximum_bytes = NBD_MAX_REQUEST_BYTES;
    client->request_timeout_ns = options->request_timeout_ns != 0 ? options->request_timeout_ns
                                                                  : NBD_CLIENT_REQUEST_TIMEOUT_NS;
    client->instance = options->instance;
    client->lost = options->lost;
    client->lost_arg = options->lost_arg;
    list_init(&client->pending);
    co_queue_init(&client->room);
    co_queue_init(&client->ended);
    for (unsigned i = 0; i < NBD_CLIENT_MAX_IN_FLIGHT; i++)
        client->free_slots[client->free_count++] = (uint16_t)(NBD_CLIENT_MAX_IN_FLIGHT - 1 - i);
    sock_address_format(&options->address, client->address, sizeof(client->address));
    client->export = strdup(options->export != NULL ? options->export : "");
    client->receive = malloc(NBD_CLIENT_RECEIVE_BYTES);
    if (client->export == NULL || client->receive == NULL || !client_set_tls(client, options))
        return NULL;
    return TAKE_PTR(client);
}

/* The receiver, and what sends. */
static int client_begin(struct nbd_client *client, struct err *err)
{
    int result = gather_init(&client->gather, client->loop, client->sock, NBD_CLIENT_MAX_IN_FLIGHT,
                             calls_sent);

    if (result < 0)
        return err_no_memory(err);
    client->gather_ready = true;
    if (co_spawn(client->loop, "nbd client", receiver_run, client) < 0)
        return err_no_memory(err);
    client->receiving = true;
    client->info.connected = true;
    return 0;
}

/* That the connection has ended is less than why. */
static void tell_refusal(const struct nbd_client *client, struct err *err)
{
    const char *refusal = sock_tls_refusal(client->sock);

    if (refusal == NULL || strstr(err->text, refusal) != NULL)
        return;
    int code = err->code;
    err_clear(err);
    err_set(err, code, "TLS: %s", refusal);
}

int nbd_client_open(struct loop *loop, const struct nbd_client_options *options,
                    struct nbd_client **ret_client, struct err *err)
{
    uint64_t timeout_ns = options->open_timeout_ns != 0 ? options->open_timeout_ns
                                                        : NBD_CLIENT_OPEN_TIMEOUT_NS;
    uint64_t deadline_ns = loop_now_ns(loop) + timeout_ns;

    if (options->export != NULL && strlen(options->export) > NBD_MAX_STRING_BYTES)
        return err_set(err, -EINVAL, "the export's name is longer than %u bytes",
                       NBD_MAX_STRING_BYTES);
    CLEANUP(client_freep) struct nbd_client *client = client_new(loop, options);
    if (client == NULL)
        return err_no_memory(err);
    int result = sock_connect(loop, &options->address, deadline_ns, &client->sock, err);
    if (result < 0)
        return result;
    sock_deadline(client->sock, deadline_ns);
    result = nbd_client_handshake(client, err);
    if (result < 0) {
        tell_refusal(client, err);
        return err_prefix(err, "NBD server %s", client->address);
    }
    sock_deadline(client->sock, DEADLINE_NEVER);
    client->minimum_bytes = MIN(client->minimum_bytes, client->maximum_bytes);
    client->maximum_bytes = MIN(client->maximum_bytes, NBD_MAX_REQUEST_BYTES);
    result = client_begin(client, err);
    if (result < 0)
        return result;
    *ret_client = TAKE_PTR(client);
    return 0;
}

/* A server waits for this word before it counts the end as orderly. */
static void client_say_goodbye(struct nbd_client *client) MAY_WAIT
{
    struct nbd_call call = {
        .co = co_self(),
        .request = {.type = NBD_CMD_DISC},
        .answered = true,
    };

    sock_deadline(client->sock, loop_now_ns(client->loop) + NBD_CLIENT_CLOSE_TIMEOUT_NS);
    call_send(client, &call);
    while (!call.sent)
        co_wait();
}

void nbd_client_close(struct nbd_client *client)
{
    if (client == NULL)
        return;
    assert(list_empty(&client->pending));
    if (client->dead == 0)
        client_say_goodbye(client);
    nbd_client_shutdown(client, -ESHUTDOWN);
    while (client->receiving)
        co_queue_wait(&client->ended);
    while (client->gather.sending)
        co_yield();
    client_free(client);
}

/* --- what it is --- */

uint64_t nbd_client_length_bytes(const struct nbd_client *client)
{
    return client->length_bytes;
}

bool nbd_client_read_only(const struct nbd_client *client)
{
    return (client->flags & NBD_READ_ONLY) != 0;
}

bool nbd_client_fua(const struct nbd_client *client)
{
    return (client->flags & NBD_SEND_FUA) != 0;
}

uint32_t nbd_client_block_bytes(const struct nbd_client *client)
{
    return client->minimum_bytes;
}

uint32_t nbd_client_max_transfer_bytes(const struct nbd_client *client)
{
    return client->maximum_bytes;
}

void nbd_client_info(const struct nbd_client *client, struct nbd_client_info *ret_info)
{
    *ret_info = client->info;
    snprintf(ret_info->address, sizeof(ret_info->address), "%s", client->address);
    ret_info->export = client->export;
    ret_info->in_flight = NBD_CLIENT_MAX_IN_FLIGHT - client->free_count;
    ret_info->oldest_request_ns = 0;
    if (!list_empty(&client->pending))
        ret_info->oldest_request_ns =
            LIST_ENTRY(list_first(&client->pending), struct nbd_call, pending_link)->made_ns;
}
