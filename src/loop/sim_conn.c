/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loop/sim_net.h"

#include <errno.h>
#include <string.h>

#define SIM_SHORT_PERCENT 30u /* of arrivals that bring less than they could */
/* As Linux does with its defaults: what is sent is tried again for so long, */
#define SIM_RETRY_NS      (925 * NS_PER_S)
/* and a silent peer is asked after two hours, then nine times more, each 75 seconds. */
#define SIM_KEEPALIVE_NS  (7875 * NS_PER_S)

static void sim_wake(struct co *co)
{
    if (co != NULL)
        co_wake(co);
}

/* --- channels --- */

static bool sim_channel_has_more(const struct sim_channel *channel)
{
    if (channel->reset_arrived)
        return false;
    return channel->arrived < channel->sent || (channel->fin && !channel->fin_arrived) ||
           channel->reset;
}

static bool sim_channel_is_open(const struct sim_channel *channel)
{
    return !channel->way->options.blocked && !channel->conn->hosts[channel->side]->down;
}

/* Whether who sends here hears nothing back: acknowledgements, answers to probes, resets. */
static bool sim_channel_is_silent(const struct sim_channel *channel)
{
    const struct sim_conn *conn = channel->conn;

    return !sim_channel_is_open(channel) || conn->to[!channel->side].way->options.blocked ||
           conn->ends[channel->side].vanished;
}

static void sim_channel_watch(struct sim_channel *channel)
{
    struct sim_conn *conn = channel->conn;
    const struct sim_end *sender = &conn->ends[!channel->side];
    bool waits = channel->sent > channel->acked || (channel->fin && !channel->fin_arrived);
    uint64_t patience_ns = waits ? SIM_RETRY_NS : SIM_KEEPALIVE_NS;

    if (!sender->open || sender->vanished || !sim_channel_is_silent(channel)) {
        sim_event_cancel(conn->sim, &channel->give_up);
        return;
    }
    if (channel->give_up.armed && channel->give_up.time_ns <= conn->sim->now_ns + patience_ns)
        return;
    sim_event_cancel(conn->sim, &channel->give_up);
    sim_event_arm(conn->sim, &channel->give_up, patience_ns);
}

static void sim_channel_go_on(struct sim_channel *channel)
{
    struct sim *sim = channel->conn->sim;
    const struct sim_delay own = channel->way->options.delay;

    sim_channel_watch(channel);
    if (channel->event.armed || !sim_channel_has_more(channel) || !sim_channel_is_open(channel))
        return;
    sim_event_arm(sim, &channel->event,
                  sim_delay_ns(sim, own.max_ns != 0 ? own : sim->options.net));
}

void sim_channel_ack(struct sim_channel *channel)
{
    struct sim_conn *conn = channel->conn;
    const struct sim_end *sender = &conn->ends[!channel->side];

    if (conn->to[!channel->side].way->options.blocked)
        return;
    channel->acked = channel->taken;
    if (sender->sock != NULL)
        sim_wake(sender->sock->sender);
}

/* Tells the end `side` that the connection is broken. */
static void sim_conn_reset(struct sim_conn *conn, unsigned side)
{
    conn->to[side].reset = true;
    sim_channel_go_on(&conn->to[side]);
}

static void sim_end_wake(const struct sim_end *end)
{
    if (end->sock == NULL)
        return;
    sim_wake(end->sock->receiver);
    if (end->conn->to[end->side].reset_arrived)
        sim_wake(end->sock->sender);
}

/* The end hears of the break, or, deaf, knows nothing of the connection any more either way. */
static void sim_end_break(struct sim_end *end, bool hears)
{
    struct sim_conn *conn = end->conn;
    struct sim_channel *in = &conn->to[end->side];
    struct sim_channel *out = &conn->to[!end->side];

    if (!hears)
        return;
    end->vanished = true;
    out->sent = out->arrived;
    out->fin = out->fin_arrived;
    sim_channel_watch(out);
    sim_channel_watch(in);
    in->reset = in->reset_arrived = true;
    in->sent = in->arrived;
    sim_event_cancel(conn->sim, &in->event);
    sim_end_wake(end);
}

static void sim_channel_give_up(struct sim_event *event)
{
    struct sim_channel *channel = CONTAINER_OF(event, struct sim_channel, give_up);
    struct sim_conn *conn = channel->conn;

    sim_trace(conn->sim, SIM_KIND_LINK, channel->side, channel->sent, 3);
    sim_tell(conn->sim, conn->hosts[!channel->side], NULL,
             "gives up the connection from %s to %s: nobody answers", conn->client_name,
             conn->server_name);
    conn->to[!channel->side].timed_out = true;
    sim_end_break(&conn->ends[!channel->side], true);
}

static void sim_conn_break(struct sim_conn *conn, enum sim_side side)
{
    sim_trace(conn->sim, SIM_KIND_LINK, conn->hosts[0]->index << 32 | conn->hosts[1]->index, side,
              2);
    sim_tell(conn->sim, conn->hosts[0], NULL, "connection from %s to %s breaks%s",
             conn->client_name, conn->server_name,
             side == SIM_SIDE_BOTH   ? ""
             : side == SIM_SIDE_FROM ? "; only the client hears of it"
                                     : "; only the server hears of it");
    sim_end_break(&conn->ends[0], side != SIM_SIDE_TO);
    sim_end_break(&conn->ends[1], side != SIM_SIDE_FROM);
}

void sim_conns_break(const struct sim_link *way, enum sim_side side)
{
    LIST_FOR_EACH(conn, &way->sim->conns, struct sim_conn, link) {
        if (conn->to[1].way == way)
            sim_conn_break(conn, side);
    }
}

/* How many of the bytes arrive. *ret_breaks: and then the connection breaks. */
static uint64_t sim_arriving(struct sim_channel *channel, uint64_t bytes, bool *ret_breaks)
{
    struct sim *sim = channel->conn->sim;
    struct sim_link *way = channel->way;

    *ret_breaks = false;
    if (sim_chance(sim, SIM_SHORT_PERCENT))
        bytes = 1 + sim_below(sim, bytes);
    if (way->options.break_per_million != 0 &&
        sim_below(sim, 1000000) < way->options.break_per_million) {
        *ret_breaks = true;
        bytes = sim_below(sim, bytes + 1);
    }
    if (way->break_after_bytes != UINT64_MAX) {
        bool last = bytes > way->break_after_bytes;
        bytes = MIN(bytes, way->break_after_bytes);
        way->break_after_bytes = last ? UINT64_MAX : way->break_after_bytes - bytes;
        *ret_breaks = *ret_breaks || last;
    }
    return bytes;
}

static void sim_channel_arrive(struct sim_channel *channel)
{
    struct sim_conn *conn = channel->conn;
    const struct sim_end *end = &conn->ends[channel->side];
    uint64_t bytes = channel->sent - channel->arrived;
    bool deaf = !end->open || end->vanished || (end->sock != NULL && end->sock->base.shut != 0);
    bool breaks = false;

    if (channel->reset) {
        channel->reset_arrived = true;
        channel->sent = channel->arrived;
    } else if ((bytes > 0 && deaf) || end->vanished) {
        channel->arrived = channel->taken = channel->sent;
        channel->fin_arrived = channel->fin;
        sim_conn_reset(conn, !channel->side);
    } else if (bytes > 0) {
        channel->arrived += sim_arriving(channel, bytes, &breaks);
    } else if (channel->fin) {
        channel->fin_arrived = true;
    }
    sim_trace(conn->sim, SIM_KIND_ARRIVE, channel->side, channel->arrived,
              (uint64_t)channel->fin_arrived << 1 | channel->reset_arrived);
    if (breaks)
        sim_conn_break(conn, SIM_SIDE_BOTH);
}

static void sim_channel_fire(struct sim_event *event)
{
    struct sim_channel *channel = CONTAINER_OF(event, struct sim_channel, event);

    sim_channel_arrive(channel);
    sim_end_wake(&channel->conn->ends[channel->side]);
    sim_channel_go_on(channel);
}

size_t sim_channel_room(const struct sim_channel *channel)
{
    return channel->conn->sim->options.sock_buffer_bytes - (channel->sent - channel->acked);
}

void sim_channel_put(struct sim_channel *channel, const uint8_t *bytes, size_t length_bytes)
{
    size_t capacity = channel->conn->sim->options.sock_buffer_bytes;

    while (length_bytes > 0) {
        size_t at = channel->sent % capacity;
        size_t part = MIN(length_bytes, capacity - at);
        memcpy(channel->ring + at, bytes, part);
        channel->sent += part;
        bytes += part;
        length_bytes -= part;
    }
    sim_channel_go_on(channel);
}

void sim_channel_take(struct sim_channel *channel, uint8_t *bytes, size_t length_bytes)
{
    size_t capacity = channel->conn->sim->options.sock_buffer_bytes;

    while (length_bytes > 0) {
        size_t at = channel->taken % capacity;
        size_t part = MIN(length_bytes, capacity - at);
        memcpy(bytes, channel->ring + at, part);
        channel->taken += part;
        bytes += part;
        length_bytes -= part;
    }
}

void sim_channel_fin(struct sim_channel *channel)
{
    if (channel->conn->ends[!channel->side].vanished)
        return;
    channel->fin = true;
    sim_channel_go_on(channel);
}

int sim_channel_error(const struct sim_channel *channel)
{
    return channel->timed_out ? -ETIMEDOUT : -ECONNRESET;
}

/* --- connections --- */

static void sim_conn_free(struct sim_conn *conn)
{
    list_remove(&conn->link);
    for (unsigned side = 0; side < 2; side++) {
        sim_event_cancel(conn->sim, &conn->to[side].event);
        sim_event_cancel(conn->sim, &conn->to[side].give_up);
        free(conn->to[side].ring);
    }
    free(conn);
}

struct sim_conn *sim_conn_new(struct sim_host *client, struct sim_host *server)
{
    struct sim *sim = client->sim;
    struct sim_conn *conn = calloc(1, sizeof(*conn));

    if (conn == NULL)
        return NULL;
    conn->sim = sim;
    conn->hosts[0] = client;
    conn->hosts[1] = server;
    list_push_back(&sim->conns, &conn->link);
    for (unsigned side = 0; side < 2; side++) {
        conn->ends[side] = (struct sim_end){.conn = conn, .side = side, .open = true};
        conn->to[side].event.fire = sim_channel_fire;
        conn->to[side].give_up.fire = sim_channel_give_up;
        conn->to[side].conn = conn;
        conn->to[side].side = side;
        conn->to[side].way = sim_link_find(sim, conn->hosts[!side], conn->hosts[side]);
        conn->to[side].ring = malloc(sim->options.sock_buffer_bytes);
    }
    if (conn->to[0].ring == NULL || conn->to[1].ring == NULL || conn->to[0].way == NULL ||
        conn->to[1].way == NULL) {
        sim_conn_free(conn);
        return NULL;
    }
    return conn;
}

void sim_end_close(struct sim_end *end, bool abort)
{
    struct sim_conn *conn = end->conn;
    const struct sim_channel *in = &conn->to[end->side];

    end->open = false;
    end->sock = NULL;
    list_remove(&end->link);
    if (!conn->ends[!end->side].open)
        sim_conn_free(conn);
    else if (!end->vanished && (abort || in->taken < in->arrived))
        sim_conn_reset(conn, !end->side);
    else
        sim_channel_fin(&conn->to[!end->side]);
}

void sim_end_vanish(struct sim_end *end)
{
    struct sim_conn *conn = end->conn;
    struct sim_channel *out = &conn->to[!end->side];

    end->open = false;
    end->sock = NULL;
    end->vanished = true;
    list_remove(&end->link);
    if (!conn->ends[!end->side].open) {
        sim_conn_free(conn);
        return;
    }
    /* Of what was under way some has left the host. */
    out->sent = out->arrived + sim_below(conn->sim, out->sent - out->arrived + 1);
    out->fin = out->fin_arrived;
    sim_event_cancel(conn->sim, &conn->to[end->side].event);
    if (!sim_channel_has_more(out))
        sim_event_cancel(conn->sim, &out->event);
    sim_channel_watch(&conn->to[end->side]);
    sim_channel_watch(out);
}

void sim_conns_review(struct sim *sim)
{
    LIST_FOR_EACH(conn, &sim->conns, struct sim_conn, link) {
        for (unsigned side = 0; side < 2; side++) {
            struct sim_channel *channel = &conn->to[side];
            sim_channel_ack(channel);
            sim_channel_go_on(channel);
            if (!sim_channel_is_open(channel))
                sim_event_cancel(sim, &channel->event);
        }
    }
}

void sim_net_deinit(struct sim *sim)
{
    assert(list_empty(&sim->conns));
    sim_links_deinit(sim);
}
