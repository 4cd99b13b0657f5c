/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A primary with a session: its secondary's disk is an NBD export, its control a fake. */
#ifndef BLOCKSTEP_TESTS_PEER_RIG_H
#define BLOCKSTEP_TESTS_PEER_RIG_H

#include "nbd_peers.h"
#include "peer_fixture.h"

#include "base/log.h"
#include "replication/group.h"

#define EVENTS 1024u

struct told {
    char name[32];
    struct json_object *data;
};

struct rig {
    struct nbd_world world;
    struct fake fake;
    struct job_list jobs;
    struct replication_group *group;
    struct edge *forward;
    struct told events[EVENTS];
    unsigned event_count;
};

UNUSED static void note_event(void *arg, const char *name, struct json_object *data)
{
    struct rig *rig = arg;
    assert_true(rig->event_count < EVENTS);
    struct told *told = &rig->events[rig->event_count++];
    snprintf(told->name, sizeof(told->name), "%s", name);
    told->data = data;
}

UNUSED static unsigned count_events(const struct rig *rig, const char *name)
{
    unsigned count = 0;
    for (unsigned i = 0; i < rig->event_count; i++)
        count += strcmp(rig->events[i].name, name) == 0;
    return count;
}

UNUSED static struct json_object *last_event(const struct rig *rig, const char *name)
{
    for (unsigned i = rig->event_count; i > 0; i--) {
        if (strcmp(rig->events[i - 1].name, name) == 0)
            return rig->events[i - 1].data;
    }
    return NULL;
}

UNUSED static void add_primary(struct rig *rig, const char *link, const char *node,
                               const char *control) MAY_WAIT
{
    blocks_add(rig->world.graph,
               "{'node-name':'%s','driver':'nbd','server':{'type':'unix','path':'%s'},"
               "'export':'disk'}",
               link, rig->world.address.path);
    blocks_add(rig->world.graph,
               "{'node-name':'%s','driver':'replication','mode':'primary','file':'%s',"
               "'peer-control':{'type':'unix','path':'%s'}}",
               node, link, control);
}

UNUSED static void rig_begin(struct rig *rig) MAY_WAIT
{
    *rig = (struct rig){0};
    nbd_world_begin(&rig->world, NULL, NULL);
    fake_begin(&rig->fake);
    graph_set_events(rig->world.graph, note_event, rig);
    job_list_init(&rig->jobs, rig->world.graph);
    rig->group = replication_group_new(rig->world.graph, &rig->jobs, NULL);
    assert_non_null(rig->group);
    add_primary(rig, "link", "repl", rig->fake.address.path);
    rig->forward = blocks_root(rig->world.graph, graph_find(rig->world.graph, "repl"), "guest");
}

UNUSED static void rig_end(struct rig *rig) MAY_WAIT
{
    graph_detach(rig->forward);
    replication_group_free(rig->group);
    job_list_end(&rig->jobs);
    fake_end(&rig->fake);
    for (unsigned i = 0; i < rig->event_count; i++)
        json_object_put(rig->events[i].data);
    rig->event_count = 0;
    graph_set_events(rig->world.graph, NULL, NULL);
    nbd_world_end(&rig->world);
}

UNUSED static int start(struct rig *rig, enum replication_overlays overlays, struct err *err)
    MAY_WAIT
{
    return replication_start(rig->group, REPLICATION_PRIMARY, overlays, err);
}

UNUSED static void start_well(struct rig *rig) MAY_WAIT
{
    struct err err = ERR_INIT;
    if (start(rig, REPLICATION_OVERLAYS_EMPTY, &err) < 0)
        fail_msg("%s", err.text);
}

UNUSED static int checkpoint(struct rig *rig, uint64_t timeout_ns, uint64_t *ret_epoch,
                             struct err *err) MAY_WAIT
{
    return replication_checkpoint(rig->group, loop_now_ns(loop_current()) + timeout_ns, ret_epoch,
                                  err);
}

UNUSED static void checkpoint_well(struct rig *rig, uint64_t epoch) MAY_WAIT
{
    struct err err = ERR_INIT;
    uint64_t live = 0;
    if (checkpoint(rig, 10 * NS_PER_S, &live, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(live, epoch);
    assert_int_equal(rig->fake.epoch, epoch);
}

UNUSED static struct json_object *peer_of(struct rig *rig, struct json_object **ret_query) MAY_WAIT
{
    *ret_query = replication_query(rig->group);
    assert_non_null(*ret_query);
    return json_member(*ret_query, "peer");
}

UNUSED static bool is_connected(struct rig *rig) MAY_WAIT
{
    struct json_object *query;
    bool connected = json_flag(peer_of(rig, &query), "connected");
    json_object_put(query);
    return connected;
}

UNUSED static bool links_are_dropped(struct rig *rig)
{
    struct nbd_client_info info;
    nbd_client_info(nbd_client_of(graph_find(rig->world.graph, "link")), &info);
    return !info.connected;
}

UNUSED static void expect_error(struct rig *rig, const char *part) MAY_WAIT
{
    struct err err = ERR_INIT;
    assert_true(replication_get_error(rig->group, &err) < 0);
    if (strstr(err.text, part) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, part);
}

/* Lines of the log, of a level and with a text in them. */
struct heard {
    enum log_level level;
    const char *part;
    unsigned count;
    char last[512];
};

UNUSED static void hear(void *arg, enum log_level level, const char *subject, const char *text)
{
    struct heard *heard = arg;
    if (level != heard->level || strstr(text, heard->part) == NULL)
        return;
    heard->count++;
    snprintf(heard->last, sizeof(heard->last), "%s", text);
}

UNUSED static void expect_advice(const struct heard *heard, const char *part)
{
    assert_int_equal(heard->count, 1);
    if (strstr(heard->last, part) == NULL)
        fail_msg("'%s' does not say '%s'", heard->last, part);
}

#endif
