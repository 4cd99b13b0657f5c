/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The primary's half: its session with the secondary, where there is one (peer.h), and the checkpoint: a
 * marker in the forward queue of every disk, the wait for what is before it, and, with a session, the
 * secondary's part, before what is behind it may follow.
 */
#include "replication/group_internal.h"

#include "base/log.h"
#include "drivers/nbd_client.h"
#include "replication/peer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Guests wait meanwhile, at most as long as for a link that is silent. */
#define CUT_TIMEOUT_NS NBD_CLIENT_REQUEST_TIMEOUT_NS

static struct nbd_client *link_of(struct node *node)
{
    return nbd_client_of(replication_layer_below(node_child(node, "file")));
}

/* --- the session --- */

static bool same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static bool same_control(const struct replication_peer_control *a,
                         const struct replication_peer_control *b)
{
    char text[2][300];

    if (a == NULL || b == NULL)
        return a == b;
    sock_address_format(&a->address, text[0], sizeof(text[0]));
    sock_address_format(&b->address, text[1], sizeof(text[1]));
    return strcmp(text[0], text[1]) == 0 && a->tls == b->tls &&
           same_text(a->tls_hostname, b->tls_hostname);
}

/* Every one forwards over a link of its own, to an export that the secondary knows by its name. */
static int check_member(struct node *first, struct node *node, const char **ret_export,
                        struct err *err)
{
    struct nbd_client_info info;

    if (!same_control(replication_peer_control(first), replication_peer_control(node)))
        return err_set(err, -EINVAL,
                       "nodes '%s' and '%s' differ in 'peer-control': all disks of a machine have"
                       " one secondary, so give it to all of them, and the same",
                       first->name, node->name);
    if (replication_peer_control(node) == NULL)
        return 0;
    if (link_of(node) == NULL)
        return err_set(err, -EINVAL,
                       "node '%s': with 'peer-control' its file must be a node of driver nbd",
                       node->name);
    nbd_client_info(link_of(node), &info);
    *ret_export = info.export;
    return 0;
}

static bool is_running_primary(const struct node *node)
{
    return replication_is(node) && node->opened &&
           replication_mode_of(node) == REPLICATION_PRIMARY &&
           replication_stage_of(node) == REPLICATION_RUNNING;
}

/* What the secondary makes of the disks is not known any more, or not wanted: nothing that is written
 * from now on may reach it. */
static void drop_links(struct replication_group *group, const char *operation, int code)
{
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (!is_running_primary(node))
            continue;
        struct nbd_client *client = link_of(node);
        replication_report(node, operation, replication_layer_below(node_child(node, "file")), 0, 0,
                           code);
        if (client != NULL)
            nbd_client_shutdown(client, code);
    }
}

static void session_over(void *arg)
{
    drop_links(arg, "session with the secondary", -ECONNABORTED);
}

static void member_failed(void *arg, struct node *node)
{
    struct replication_group *group = arg;

    if (group->peer != NULL)
        peer_report(group->peer, replication_error_of(node));
}

static void member_link_lost(void *arg, struct node *node)
{
    struct replication_group *group = arg;

    if (group->peer != NULL)
        peer_lose_hope(group->peer);
}

int group_start_primary(struct replication_group *group, const struct group_members *members,
                        bool resync, struct err *err)
{
    const char *exports[REPLICATION_MAX_DISKS + 1] = {NULL};
    struct node *first = NULL;
    size_t count = 0;

    for (size_t i = 0; i < members->count; i++) {
        struct node *node = members->nodes[i];
        if (replication_stage_of(node) != REPLICATION_NONE)
            continue;
        first = first != NULL ? first : node;
        int ret = check_member(first, node, &exports[count++], err);
        if (ret < 0)
            return ret;
    }
    group_leave_peer(group);
    if (first == NULL || replication_peer_control(first) == NULL)
        return 0;
    const struct peer_options options = {
        .graph = group->graph,
        .where = replication_peer_control(first),
        .exports = exports,
        .resync = resync,
        .over = session_over,
        .arg = group,
    };
    int ret = peer_join(&options, &group->peer, err);
    if (ret < 0)
        return err_prefix(err, "cannot start replication");
    const struct replication_watch watch = {member_failed, member_link_lost, group};
    for (size_t i = 0; i < members->count; i++)
        replication_set_watch(members->nodes[i], &watch);
    return 0;
}

void group_leave_peer(struct replication_group *group)
{
    for (struct node *node = graph_next(group->graph, NULL); node != NULL;
         node = graph_next(group->graph, node)) {
        if (replication_is(node))
            replication_set_watch(node, NULL);
    }
    peer_leave(TAKE_PTR(group->peer));
}

/* --- the checkpoint --- */

static int wait_forwarded(struct node *node, uint64_t deadline_ns, struct err *err) MAY_WAIT
{
    int ret = replication_forward_wait(node, deadline_ns);
    if (ret < 0)
        return err_set(err, ret,
                       "no checkpoint: the peer has not acknowledged what node '%s' forwards within"
                       " the deadline (%u request(s) in flight)",
                       node->name, replication_forward_stats(node).in_flight);
    if (replication_error_of(node)->count == 0)
        return 0;
    group_error_text(node, err);
    return err_prefix(err, "no checkpoint: the secondary lacks a write");
}

/* Nothing in flight is no proof when the link is gone: the peer may have taken over. */
static int check_links(struct node *const *nodes, size_t count, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        struct nbd_client *client = link_of(nodes[i]);
        struct nbd_client_info info;
        if (client == NULL)
            continue;
        nbd_client_info(client, &info);
        if (!info.connected)
            return err_set(
                err, -ENOTCONN,
                "no checkpoint: the link of node '%s' to %s is lost (%s); synchronise the"
                " disks and start anew (blockstep primary --sync)",
                nodes[i]->name, info.address, strerror(-info.last_error));
    }
    return 0;
}

struct flush {
    struct replication_group *group;
    struct node *node; /* a reference */
};

static void flush_run(void *arg) MAY_WAIT
{
    struct flush *flush = arg;
    struct replication_group *group = flush->group;

    replication_forward_flush(flush->node);
    node_unref(flush->node);
    free(flush);
    group->flushing--;
    co_queue_wake_all(&group->flushed);
}

static int flush_begin(struct replication_group *group, struct node *node) MAY_WAIT
{
    struct flush *flush = calloc(1, sizeof(*flush));

    if (flush == NULL)
        return -ENOMEM;
    *flush = (struct flush){group, node_ref(node)};
    group->flushing++;
    int ret = co_spawn(graph_loop(group->graph), "flush of the peer", flush_run, flush);
    if (ret == 0)
        return 0;
    group->flushing--;
    free(flush);
    node_unref(node);
    return ret;
}

static int await_flushes(struct replication_group *group, uint64_t deadline_ns, struct err *err)
    MAY_WAIT
{
    while (group->flushing > 0) {
        if (co_queue_wait_until(&group->flushed, deadline_ns) == -ETIMEDOUT)
            return err_set(err, -ETIMEDOUT,
                           "no checkpoint: the secondary has not flushed within the deadline");
    }
    return 0;
}

/* Before anybody is held: little is left for the secondary to flush while guests wait. */
static int flush_forwarded(struct replication_group *group, struct node *const *nodes, size_t count,
                           uint64_t deadline_ns, struct err *err) MAY_WAIT
{
    int ret = await_flushes(group, deadline_ns, err); /* of a checkpoint that has given up */

    if (ret < 0)
        return ret;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = flush_begin(group, nodes[i]);
    if (ret < 0)
        return err_no_memory(err);
    return await_flushes(group, deadline_ns, err);
}

void group_wait_flushed(struct replication_group *group)
{
    while (group->flushing > 0)
        co_queue_wait(&group->flushed);
}

/* What is behind the marker stays there until it is known what the secondary has made of what is before
 * it, or until it cannot follow any more. */
static int cut_peer(struct replication_group *group, bool first, uint64_t deadline_ns,
                    struct err *err) MAY_WAIT
{
    uint64_t now_ns = loop_now_ns(graph_loop(group->graph));
    bool unknown = false;
    int ret = peer_checkpoint(group->peer, first, MIN(deadline_ns, now_ns + CUT_TIMEOUT_NS),
                              &unknown, err);

    if (ret == 0)
        return 0;
    if (!unknown)
        return err_prefix(err, "no checkpoint");
    drop_links(group, "checkpoint", -ETIMEDOUT);
    return err_prefix(err, "it is not known whether the secondary has taken the checkpoint, so the"
                           " links to it are dropped; synchronise the disks and start anew"
                           " (blockstep primary --sync)");
}

/* What is known to be wrong there only a first checkpoint mends: guests are not held for nothing. */
static int check_peer(struct peer *peer, bool first, uint64_t deadline_ns, struct err *err) MAY_WAIT
{
    int ret = first ? 0 : peer_check(peer, err);

    if (ret == 0)
        ret = peer_await(peer, deadline_ns, err);
    return ret < 0 ? err_prefix(err, "no checkpoint") : 0;
}

int group_checkpoint_primary(struct replication_group *group, struct node *const *nodes,
                             size_t count, bool first, uint64_t deadline_ns, struct err *err)
{
    uint64_t begun_ns = group_clock_ns(group);
    struct peer *peer = group->peer;
    int ret = check_links(nodes, count, err);

    if (deadline_ns == DEADLINE_NEVER)
        deadline_ns = loop_now_ns(graph_loop(group->graph)) + REPLICATION_CHECKPOINT_DEADLINE_NS;
    if (ret == 0 && peer != NULL)
        ret = check_peer(peer, first, deadline_ns, err);
    if (ret == 0 && peer != NULL)
        ret = flush_forwarded(group, nodes, count, deadline_ns, err);
    if (ret < 0)
        return ret;
    uint64_t held_ns = group_clock_ns(group);
    /* In one step: nothing runs between the marks, so the cut is one on all disks. */
    for (size_t i = 0; i < count; i++)
        replication_forward_mark(nodes[i]);
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = wait_forwarded(nodes[i], deadline_ns, err);
    if (ret == 0 && peer != NULL)
        ret = cut_peer(group, first, deadline_ns, err);
    for (size_t i = 0; i < count; i++)
        replication_forward_release(nodes[i]);
    if (ret < 0)
        return ret;
    held_ns = group_clock_ns(group) - held_ns;
    group->record->epoch = peer != NULL ? peer_epoch(peer) : group->record->epoch + 1;
    group->record->checkpoint_wall_ns = loop_wall_ns(graph_loop(group->graph));
    group_checkpoint_done(group, REPLICATION_PRIMARY, begun_ns, held_ns);
    return 0;
}
