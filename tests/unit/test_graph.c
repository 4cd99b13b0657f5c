/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making, finding, changing and removing nodes; permissions. */
#include "blocks.h"

#include "base/json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LIVE_CHANGES 3000
#define LIVE_WRITERS 8

TEST_LOOP(options_make_a_node_and_its_inline_children)
{
    struct graph *graph = blocks_graph();
    struct node *top = blocks_add(
        graph, "{'node-name':'top','driver':'cow','read-only':false,'cache':{'no-flush':true},"
               "'file':{'driver':'pass','file':{'driver':'mem','node-name':'deep'}},"
               "'backing':{'driver':'mem','cache':{'no-flush':false}}}");
    struct node *file = node_child(top, "file")->child, *deep = graph_find(graph, "deep");
    struct node *backing = node_child(top, "backing")->child;
    struct json_object *value = NULL;
    unsigned count = 0;

    assert_true(top->named);
    assert_non_null(deep);
    assert_false(deep->named);
    assert_ptr_equal(node_child(file, "file")->child, deep);
    assert_int_equal(strncmp(file->name, "#block", 6), 0);
    assert_int_equal(file->length_bytes, 1u << 20);
    assert_true(file->no_flush && deep->no_flush && !backing->no_flush);
    assert_false(deep->read_only);
    assert_true(backing->read_only);
    assert_true(json_object_object_get_ex(top->options_json, "file", &value));
    assert_string_equal(json_object_get_string(value), file->name);
    for (struct node *node = graph_next(graph, NULL); node; node = graph_next(graph, node))
        count++;
    assert_int_equal(count, 4);
    assert_int_equal(mem_open_count, 2);
    graph_free(graph);
    assert_int_equal(mem_open_count, 0);
}

TEST_LOOP(dotted_keys_make_the_same)
{
    struct graph *graph = blocks_graph();
    CLEANUP(json_putp) struct json_object *options = NULL;
    enum opts_syntax syntax;
    struct err err = ERR_INIT;
    struct node *node = NULL;

    assert_int_equal(opts_read("driver=pass,node-name=a.b-c_1,read-only=on,cache.direct=on,"
                               "file.driver=mem,file.size=64k,file.align=512",
                               NULL, "--blockdev", &options, &syntax, &err),
                     0);
    assert_int_equal(graph_add(graph, options, syntax, "--blockdev", true, &node, &err), 0);
    assert_int_equal(node->length_bytes, 65536);
    assert_int_equal(node->limits.request_align_bytes, 512);
    assert_true(node->read_only && node->file->child->read_only);
    assert_true(node->cache_direct && node->file->child->cache_direct);
    assert_int_equal(graph_del(graph, "a.b-c_1", &err), 0);
    assert_int_equal(mem_open_count, 0);
    graph_free(graph);
}

/* Each also shows that nothing stays open behind it. */
TEST_LOOP(bad_options_are_refused_with_where_and_what)
{
    static const struct {
        const char *options, *part;
    } cases[] = {
        {"{'node-name':'x'}", "'driver' is required"},
        {"{'driver':7}", "'driver' is required"},
        {"{'driver':'mrm'}", "no driver 'mrm'; there are: mem"},
        {"{'driver':'mem','node-name':'1a'}", "'1a' is no node name"},
        {"{'driver':'mem','node-name':''}", "is no node name"},
        {"{'driver':'mem','node-name':'a b'}", "is no node name"},
        {"{'driver':'mem','node-name':'a1234567890123456789012345678901'}", "at most 31"},
        {"{'driver':'mem','node-name':'taken'}", "there is a node 'taken' already"},
        {"{'driver':'mem','sise':1}", "sise"},
        {"{'driver':'mem','sise':1}", "driver 'mem'"},
        {"{'driver':'mem','size':'much'}", "size"},
        {"{'driver':'mem','detect-zeroes':'maybe'}", "detect-zeroes"},
        {"{'driver':'mem','cache':{'direkt':true}}", "direkt"},
        {"{'driver':'pass'}", "file"},
        {"{'driver':'pass','file':'nobody'}", "file: there is no node 'nobody'"},
        {"{'driver':'pass','file':{'driver':'pass','file':{'driver':'mem','x':1}}}",
         "test: file.file (driver 'mem')"},
        {"{'driver':'pass','file':{'driver':'mem','fail-open':true}}", "test: file: told to fail"},
        {"{'driver':'pass','file':{'driver':'mem','node-name':'taken'}}", "already"},
        {"{'driver':'cow','file':{'driver':'mem'},'backing':{'driver':'mem','fail-open':true}}",
         "test: backing: told to fail"},
        {"{'driver':'many','children':[{'driver':'mem'},'nobody']}", "children.1"},
        {"{'driver':'mem','size':1000,'align':512}", "not a multiple of 512"},
        {"{'driver':'pass','file':{'driver':'mem','read-only':true,'size':1000,'align':512}}",
         "file: the length"},
        {"{'driver':'cow','file':{'driver':'mem','read-only':true}}", "is read-only"},
    };
    struct graph *graph = blocks_graph();

    blocks_add(graph, "{'node-name':'taken','driver':'mem'}");
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        blocks_add_fails(graph, cases[i].part, cases[i].options);
        assert_int_equal(mem_open_count, 1);
        assert_ptr_equal(graph_next(graph, graph_next(graph, NULL)), NULL);
    }
    graph_free(graph);
}

TEST_LOOP(a_null_child_is_no_child)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(
        graph, "{'node-name':'n','driver':'cow','file':{'driver':'mem'},'backing':null}");

    assert_null(node_child(node, "backing"));
    blocks_add_fails(graph, "file", "{'driver':'pass','file':null}");
    graph_free(graph);
}

TEST_LOOP(nesting_is_bounded)
{
    struct graph *graph = blocks_graph();
    char text[8192] = "";
    size_t length = 0;

    for (unsigned i = 0; i < NODE_MAX_DEPTH; i++)
        length += (size_t)snprintf(text + length, sizeof(text) - length,
                                   "{'driver':'pass','file':");
    length += (size_t)snprintf(text + length, sizeof(text) - length, "{'driver':'mem'}");
    for (unsigned i = 0; i < NODE_MAX_DEPTH; i++)
        text[length++] = '}';
    blocks_add_fails(graph, "nested more than 64", text);
    assert_null(graph_next(graph, NULL));
    graph_free(graph);
}

TEST_LOOP(a_node_in_use_or_blocked_is_not_deleted)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem'}");
    struct edge *edge = blocks_root(graph, disk, "export 'e'");
    struct node_blocker blocker;
    struct err err = ERR_INIT;

    blocks_add(graph, "{'node-name':'top','driver':'pass','file':'disk'}");
    assert_int_equal(graph_del(graph, "nobody", &err), -ENOENT);
    assert_int_equal(err.kind, ERR_DEVICE_NOT_FOUND);
    assert_non_null(strstr(err.text, "disk, top"));
    assert_int_equal(graph_del(graph, "disk", &err), -EBUSY);
    assert_non_null(strstr(err.text, "export 'e'"));
    graph_detach(edge);
    assert_int_equal(graph_del(graph, "disk", &err), -EBUSY);
    assert_non_null(strstr(err.text, "node 'top' (its child 'file')"));
    node_block(graph_find(graph, "top"), &blocker, "replication %s", "runs");
    assert_int_equal(graph_del(graph, "top", &err), -EBUSY);
    assert_string_equal(err.text, "cannot delete node 'top': replication runs");
    node_unblock(&blocker);
    assert_int_equal(graph_del(graph, "top", &err), 0);
    assert_int_equal(graph_del(graph, "disk", &err), 0);
    assert_null(graph_next(graph, NULL));
    graph_free(graph);
}

TEST_LOOP(an_unnamed_node_goes_with_its_last_parent_or_reference)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'driver':'mem'}");
    struct edge *a = blocks_root(graph, node, "a"), *b = blocks_root(graph, node, "b");

    graph_detach(a);
    assert_int_equal(mem_open_count, 1);
    node_ref(node);
    graph_detach(b);
    assert_int_equal(mem_open_count, 1);
    node_unref(node);
    assert_int_equal(mem_open_count, 0);
    graph_free(graph);
}

TEST_LOOP(conflicting_permissions_are_refused_and_both_sides_named)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem'}");
    struct edge *edge = NULL, *reader = NULL;
    struct err err = ERR_INIT;

    blocks_add(graph, "{'node-name':'top','driver':'pass','file':'disk'}");
    assert_int_equal(graph_attach_root(graph, graph_find(graph, "top"), "export 'a'",
                                       PERM_CONSISTENT_READ | PERM_WRITE,
                                       PERM_ALL & ~(unsigned)PERM_WRITE, NULL, NULL, &edge, &err),
                     0);
    /* The filter passes on what its user needs and shares. */
    assert_int_equal(disk->parents.head.next != NULL, 1);
    assert_int_equal(graph_find(graph, "top")->file->need & PERM_WRITE, PERM_WRITE);
    assert_int_equal(
        graph_attach_root(graph, disk, "job 'b'", PERM_WRITE, PERM_ALL, NULL, NULL, &reader, &err),
        -EPERM);
    assert_string_equal(err.text, "node 'disk': job 'b' needs write, which node 'top' (its child "
                                  "'file') does not allow");
    assert_int_equal(graph_attach_root(graph, disk, "job 'c'", PERM_CONSISTENT_READ,
                                       PERM_CONSISTENT_READ, NULL, NULL, &reader, &err),
                     -EPERM);
    assert_string_equal(err.text, "node 'disk': node 'top' (its child 'file') needs write, which "
                                  "job 'c' does not allow");
    assert_null(reader);
    /* When its user asks for less, others may have more. */
    assert_int_equal(graph_set_perms(edge, PERM_CONSISTENT_READ, PERM_ALL, &err), 0);
    assert_int_equal(graph_attach_root(graph, disk, "job 'c'", PERM_CONSISTENT_READ,
                                       PERM_CONSISTENT_READ, NULL, NULL, &reader, &err),
                     0);
    assert_int_equal(graph_set_perms(edge, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, &err),
                     -EPERM);
    assert_int_equal(edge->need, PERM_CONSISTENT_READ);
    assert_int_equal(blocks_write(edge, 0, 512, 1, 0), -EPERM);
    graph_detach(reader);
    graph_detach(edge);
    graph_free(graph);
}

/* A guest above and a primary beside: the chain that replication stands on. */
TEST_LOOP(a_backing_disk_may_be_written_only_where_those_above_let_others_write)
{
    struct graph *graph = blocks_graph();
    struct node *base = blocks_add(graph, "{'node-name':'base','driver':'mem'}");
    struct node *top = blocks_add(
        graph, "{'node-name':'top','driver':'cow','file':{'driver':'mem'},'backing':'base'}");
    struct edge *user = NULL, *peer = NULL;
    struct err err = ERR_INIT;
    unsigned shared = PERM_ALL & ~(unsigned)PERM_RESIZE;

    assert_int_equal(graph_attach_root(graph, top, "user", PERM_CONSISTENT_READ | PERM_WRITE,
                                       shared & ~(unsigned)PERM_WRITE, NULL, NULL, &user, &err),
                     0);
    assert_int_equal(
        graph_attach_root(graph, base, "peer", PERM_WRITE, PERM_ALL, NULL, NULL, &peer, &err),
        -EPERM);
    assert_non_null(strstr(err.text, "node 'top' (its child 'backing')"));
    assert_int_equal(graph_set_perms(user, PERM_CONSISTENT_READ | PERM_WRITE, shared, &err), 0);
    assert_int_equal(
        graph_attach_root(graph, base, "peer", PERM_WRITE, PERM_ALL, NULL, NULL, &peer, &err), 0);
    graph_detach(peer);
    graph_detach(user);
    graph_free(graph);
}

TEST_LOOP(reopening_follows_inline_children_and_is_undone_when_refused)
{
    struct graph *graph = blocks_graph();
    struct node *top = blocks_add(
        graph, "{'node-name':'top','driver':'cow','read-only':true,'file':{'driver':'mem'},"
               "'backing':{'driver':'mem'}}");
    struct node *file = node_child(top, "file")->child;
    struct node *backing = node_child(top, "backing")->child;
    struct err err = ERR_INIT;
    struct edge *edge = NULL;

    assert_true(top->read_only && file->read_only && backing->read_only);
    assert_int_equal(
        graph_attach_root(graph, top, "r", PERM_WRITE, PERM_ALL, NULL, NULL, &edge, &err), -EPERM);
    assert_string_equal(err.text, "node 'top' is read-only, and r needs write");
    assert_int_equal(graph_reopen(top, false, &err), 0);
    assert_true(!top->read_only && !file->read_only && backing->read_only);
    edge = blocks_root(graph, top, "r");
    assert_int_equal(graph_reopen(top, true, &err), -EPERM);
    assert_true(!top->read_only && !file->read_only);
    graph_detach(edge);
    assert_int_equal(graph_reopen(top, true, &err), 0);
    assert_true(top->read_only && file->read_only);
    graph_free(graph);
}

TEST_LOOP(cycles_and_unequal_lengths_are_refused)
{
    struct graph *graph = blocks_graph();
    struct node *a = blocks_add(graph, "{'node-name':'a','driver':'pass','file':{'driver':'mem'}}");
    struct node *b = blocks_add(graph, "{'node-name':'b','driver':'pass','file':'a'}");
    struct node *small = blocks_add(graph, "{'node-name':'small','driver':'mem','size':512}");
    struct node *before = a->file->child;
    struct edge *edge = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(graph_replace(a->file, b, &err), -ELOOP);
    assert_int_equal(graph_replace(a->file, a, &err), -ELOOP);
    assert_ptr_equal(a->file->child, before);
    assert_int_equal(graph_attach_child(graph, a, b, "extra", &edge, &err), -ELOOP);
    assert_int_equal(graph_attach_child(graph, a, b, "file", &edge, &err), -EEXIST);
    assert_null(edge);
    assert_int_equal(graph_replace(b->file, small, &err), -EINVAL);
    assert_true(graph_is_below(before, b) && !graph_is_below(b, a));
    graph_free(graph);
}

TEST_LOOP(children_come_and_go_by_the_parents_hooks)
{
    struct graph *graph = blocks_graph();
    struct node *many = blocks_add(
        graph, "{'node-name':'many','driver':'many','children':[{'driver':'mem'}]}");
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem'}");
    struct err err = ERR_INIT;

    assert_int_equal(graph_child_add(graph, disk, many, &err), -ENOTSUP);
    assert_int_equal(graph_child_add(graph, many, disk, &err), 0);
    assert_int_equal(graph_child_add(graph, many, disk, &err), -EEXIST);
    assert_non_null(node_child(many, "children.9"));
    assert_int_equal(graph_child_del(graph, many, "children.7", &err), -ENOENT);
    assert_int_equal(graph_child_del(graph, many, "children.0", &err), -EBUSY);
    assert_string_equal(err.text, "the first child stays");
    assert_int_equal(graph_child_del(graph, many, "children.9", &err), 0);
    assert_int_equal(graph_del(graph, "disk", &err), 0);
    graph_free(graph);
}

struct lock_holder {
    struct graph *graph;
    struct node *disk;
    bool ready;
};

static void lock_holder_run(void *arg) MAY_WAIT
{
    struct lock_holder *holder = arg;
    struct err err = ERR_INIT;

    graph_change_begin(holder->graph);
    holder->ready = true;
    co_sleep(NS_PER_MS);
    assert_int_equal(graph_del(holder->graph, "disk", &err), 0);
    graph_change_end(holder->graph);
}

/* One client deletes it while another's command waits to attach to it. */
TEST_LOOP(a_node_that_is_deleted_while_a_call_waits_for_the_lock_is_not_attached_to)
{
    struct graph *graph = blocks_graph();
    struct lock_holder holder = {graph, blocks_add(graph, "{'node-name':'disk','driver':'mem'}"),
                                 false};
    struct edge *edge = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(co_spawn(loop_current(), "holder", lock_holder_run, &holder), 0);
    test_wait_until(holder.ready);
    assert_int_equal(
        graph_attach_root(graph, holder.disk, "r", PERM_WRITE, PERM_ALL, NULL, NULL, &edge, &err),
        -ENODEV);
    assert_string_equal(err.text, "node 'disk' is being closed");
    assert_int_equal(mem_open_count, 0);
    graph_free(graph);
}

struct subtree_drain {
    struct node *node;
    bool done;
};

static void subtree_drain_run(void *arg) MAY_WAIT
{
    struct subtree_drain *task = arg;
    struct graph_drain drain;

    assert_int_equal(graph_drain_begin_subtree(task->node, &drain), 0);
    graph_drain_end(&drain);
    task->done = true;
}

struct deletion {
    struct graph *graph;
    bool done;
};

static void deletion_run(void *arg) MAY_WAIT
{
    struct deletion *deletion = arg;
    struct err err = ERR_INIT;

    assert_int_equal(graph_del(deletion->graph, "top", &err), 0);
    deletion->done = true;
}

/* Else the name, and the nodes below, would still be taken. */
TEST_LOOP(a_deletion_returns_when_the_node_is_gone_although_a_drain_waits_with_it_in_hand)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(
        graph, "{'node-name':'disk','driver':'blkdebug','file':{'driver':'mem'},"
               "'inject':[{'kind':'write','hold':true}]}");
    struct node *top = blocks_add(graph, "{'node-name':'top','driver':'pass','file':'disk'}");
    struct edge *edge = blocks_root(graph, disk, "r");
    struct deletion deletion = {.graph = graph};
    struct subtree_drain drain = {.node = top};
    struct blocks_task task;
    struct err err = ERR_INIT;
    struct node *node;

    blocks_start_write(&task, edge, 0, 512, 1);
    assert_int_equal(blkdebug_await_held(disk, 0, 1, DEADLINE_NEVER), 0);
    assert_int_equal(co_spawn(loop_current(), "drain", subtree_drain_run, &drain), 0);
    co_yield();
    assert_int_equal(co_spawn(loop_current(), "deletion", deletion_run, &deletion), 0);
    for (int i = 0; i < 20; i++)
        co_yield();
    assert_false(deletion.done);
    assert_null(graph_find(graph, "top"));
    assert_int_equal(graph_get(graph, "top", &node, &err), -ENOENT);
    blkdebug_release(disk, 0);
    test_wait_until(task.done && drain.done && deletion.done);
    assert_ptr_equal(list_first(&disk->parents), &edge->in_child);
    graph_detach(edge);
    graph_free(graph);
}

TEST_LOOP(a_refusal_to_delete_names_all_who_use_the_node)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem'}");
    struct edge *roots[12];
    struct err err = ERR_INIT;

    blocks_add(graph, "{'node-name':'top','driver':'pass','file':'disk'}");
    roots[0] = blocks_root(graph, disk, "export 'e'");
    assert_int_equal(graph_del(graph, "disk", &err), -EBUSY);
    assert_string_equal(err.text,
                        "node 'disk' is in use by node 'top' (its child 'file'), export 'e'");
    for (int i = 1; i < 12; i++)
        roots[i] = blocks_root(graph, disk, "a name of more than sixty bytes that goes on and on");
    assert_int_equal(graph_del(graph, "disk", &err), -EBUSY);
    assert_string_equal(err.text + strlen(err.text) - 5, ", ...");
    for (int i = 0; i < 12; i++)
        graph_detach(roots[i]);
    graph_free(graph);
}

TEST_LOOP(a_refused_attachment_leaves_a_fresh_node_to_its_owner)
{
    struct graph *graph = blocks_graph();
    struct node *node = blocks_add(graph, "{'driver':'mem','read-only':true}");
    struct edge *edge = NULL;
    struct err err = ERR_INIT;

    assert_int_equal(
        graph_attach_root(graph, node, "r", PERM_WRITE, PERM_ALL, NULL, NULL, &edge, &err), -EPERM);
    assert_int_equal(mem_open_count, 1);
    node_unref(node_ref(node));
    assert_int_equal(mem_open_count, 0);
    graph_free(graph);
}

/* --- under live I/O --- */

struct writer {
    struct edge *edge;
    unsigned index;
    uint64_t writes;
    bool *stop;
    struct co_group *group;
};

static void writer_run(void *arg) MAY_WAIT
{
    struct writer *writer = arg;
    uint64_t offset = writer->index * 65536u;

    while (!*writer->stop) {
        uint8_t fill = (uint8_t)++writer->writes;

        assert_int_equal(blocks_write(writer->edge, offset + 100, 3000, fill, 0), 0);
        blocks_expect(writer->edge, offset + 100, 3000, fill);
    }
    co_group_leave(writer->group);
}

TEST_LOOP(filters_come_and_go_under_live_requests_and_nothing_is_lost)
{
    struct graph *graph = blocks_graph();
    struct node *disk = blocks_add(graph,
                                   "{'node-name':'disk','driver':'mem','align':512,'yields':1}");
    struct edge *edges[2] = {blocks_root(graph, disk, "a"), blocks_root(graph, disk, "b")};
    struct writer writers[LIVE_WRITERS];
    struct co_group group;
    struct err err = ERR_INIT;
    bool stop = false;

    co_group_init(&group);
    for (unsigned i = 0; i < LIVE_WRITERS; i++) {
        writers[i] = (struct writer){edges[i % 2], i, 0, &stop, &group};
        co_group_enter(&group);
        assert_int_equal(co_spawn(loop_current(), "writer", writer_run, &writers[i]), 0);
    }
    for (unsigned i = 0; i < LIVE_CHANGES; i++) {
        struct node *filter = blocks_add(graph, "{'driver':'pass','file':'disk'}");

        assert_int_equal(graph_replace_node(graph, disk, filter, NULL, &err), 0);
        assert_ptr_equal(edges[0]->child, filter);
        co_yield();
        assert_int_equal(graph_replace_node(graph, filter, disk, NULL, &err), 0);
        assert_ptr_equal(edges[1]->child, disk);
    }
    stop = true;
    assert_int_equal(co_group_wait(&group), 0);
    for (unsigned i = 0; i < LIVE_WRITERS; i++) {
        assert_true(writers[i].writes > LIVE_CHANGES / 20);
        blocks_expect(edges[0], i * 65536u + 100, 3000, (uint8_t)writers[i].writes);
    }
    /* The filters have gone. */
    assert_ptr_equal(graph_next(graph, disk), NULL);
    graph_detach(edges[0]);
    graph_detach(edges[1]);
    graph_free(graph);
}

static void many_writer_run(void *arg) MAY_WAIT
{
    struct writer *writer = arg;

    while (!*writer->stop)
        assert_int_equal(
            blocks_write(writer->edge, writer->index * 512u, 512, (uint8_t)++writer->writes, 0), 0);
    co_group_leave(writer->group);
}

TEST_LOOP(children_come_and_go_under_live_requests)
{
    struct graph *graph = blocks_graph();
    struct node *many = blocks_add(
        graph, "{'node-name':'many','driver':'many','children':[{'driver':'mem','yields':1}]}");
    struct node *disk = blocks_add(graph, "{'node-name':'disk','driver':'mem','yields':1}");
    struct edge *edge = blocks_root(graph, many, "r");
    struct writer writers[LIVE_WRITERS];
    struct co_group group;
    struct err err = ERR_INIT;
    bool stop = false;

    co_group_init(&group);
    for (unsigned i = 0; i < LIVE_WRITERS; i++) {
        writers[i] = (struct writer){edge, i, 0, &stop, &group};
        co_group_enter(&group);
        assert_int_equal(co_spawn(loop_current(), "writer", many_writer_run, &writers[i]), 0);
    }
    for (unsigned i = 0; i < LIVE_CHANGES / 3; i++) {
        assert_int_equal(graph_child_add(graph, many, disk, &err), 0);
        co_yield();
        assert_int_equal(graph_child_del(graph, many, "children.9", &err), 0);
    }
    stop = true;
    assert_int_equal(co_group_wait(&group), 0);
    for (unsigned i = 0; i < LIVE_WRITERS; i++)
        assert_int_equal(mem_bytes(node_child(many, "children.0")->child)[i * 512],
                         (uint8_t)writers[i].writes);
    assert_true(mem_stats(disk)->writes > 0);
    graph_detach(edge);
    graph_free(graph);
}

/* The request has not been sent twice, nor to both. */
TEST_LOOP(a_replacement_waits_for_the_requests_inside)
{
    struct graph *graph = blocks_graph();
    struct node *old = blocks_add(
        graph, "{'node-name':'old','driver':'blkdebug','file':{'driver':'mem'}}");
    struct node *new = blocks_add(graph, "{'node-name':'new','driver':'mem'}");
    struct edge *edge = blocks_root(graph, old, "r");
    struct blkdebug_rule hold = {.kinds = BLKDEBUG_WRITE, .delay_ns = 5 * NS_PER_MS};
    struct blocks_task first, second;
    struct err err = ERR_INIT;

    assert_int_equal(blkdebug_inject(old, &hold, NULL), 0);
    blocks_start_write(&first, edge, 0, 4096, 1);
    assert_int_equal(graph_replace(edge, new, &err), 0);
    assert_true(first.done);
    blocks_start_write(&second, edge, 0, 4096, 2);
    test_wait_until(second.done);
    assert_int_equal(mem_bytes(old->file->child)[0], 1);
    assert_int_equal(mem_bytes(new)[0], 2);
    graph_detach(edge);
    graph_free(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_make_a_node_and_its_inline_children),
        cmocka_unit_test(dotted_keys_make_the_same),
        cmocka_unit_test(bad_options_are_refused_with_where_and_what),
        cmocka_unit_test(a_null_child_is_no_child),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(a_node_in_use_or_blocked_is_not_deleted),
        cmocka_unit_test(an_unnamed_node_goes_with_its_last_parent_or_reference),
        cmocka_unit_test(conflicting_permissions_are_refused_and_both_sides_named),
        cmocka_unit_test(a_backing_disk_may_be_written_only_where_those_above_let_others_write),
        cmocka_unit_test(reopening_follows_inline_children_and_is_undone_when_refused),
        cmocka_unit_test(cycles_and_unequal_lengths_are_refused),
        cmocka_unit_test(children_come_and_go_by_the_parents_hooks),
        cmocka_unit_test(a_node_that_is_deleted_while_a_call_waits_for_the_lock_is_not_attached_to),
        cmocka_unit_test(
            a_deletion_returns_when_the_node_is_gone_although_a_drain_waits_with_it_in_hand),
        cmocka_unit_test(a_refusal_to_delete_names_all_who_use_the_node),
        cmocka_unit_test(a_refused_attachment_leaves_a_fresh_node_to_its_owner),
        cmocka_unit_test(filters_come_and_go_under_live_requests_and_nothing_is_lost),
        cmocka_unit_test(children_come_and_go_under_live_requests),
        cmocka_unit_test(a_replacement_waits_for_the_requests_inside),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
