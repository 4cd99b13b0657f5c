/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A graph in words, to be compared before and after something that must leave no trace: every node
 * with its flags, references, blockers and what its driver tells of it, every edge with what it needs,
 * what it lets others do and whether its gate is open. The order of a node's parents means nothing, so
 * the lines are sorted.
 */
#ifndef BLOCKSTEP_TESTS_GRAPH_SNAPSHOT_H
#define BLOCKSTEP_TESTS_GRAPH_SNAPSHOT_H

#include "harness.h"

#include "base/json.h"
#include "block/dirty_bitmap.h"
#include "block/graph.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SNAPSHOT_MAX_LINES  256u
#define SNAPSHOT_LINE_BYTES 1024u

struct snapshot {
    char *lines[SNAPSHOT_MAX_LINES];
    unsigned count;
};

static char *snapshot_line(struct snapshot *snapshot)
{
    assert_true(snapshot->count < SNAPSHOT_MAX_LINES);
    char *line = calloc(1, SNAPSHOT_LINE_BYTES);
    assert_non_null(line);
    snapshot->lines[snapshot->count++] = line;
    return line;
}

static void snapshot_node(struct snapshot *snapshot, struct node *node)
{
    unsigned trackers = 0, bitmaps = 0;
    LIST_FOR_EACH(tracker, &node->trackers, struct dirty_tracker, link)
        trackers++;
    LIST_FOR_EACH(bitmap, &node->bitmaps, struct dirty_bitmap, link)
        bitmaps++;
    CLEANUP(json_putp) struct json_object *told = json_object_new_object();
    if (node->driver->describe != NULL)
        assert_int_equal(node->driver->describe(node, told), 0);
    snprintf(snapshot_line(snapshot), SNAPSHOT_LINE_BYTES,
             "node %s: driver=%s read-only=%d,%d,%d named=%d opened=%d stands-in=%d leaving=%d"
             " length=%" PRIu64 " refs=%u pins=%u trackers=%u bitmaps=%u %s",
             node->name, node->driver->name, node->read_only, node->read_only_inherited,
             node->auto_read_only, node->named, node->opened, node->stands_in, node->leaving,
             node->length_bytes, node->refs, node->pins, trackers, bitmaps,
             json_object_to_json_string(told));
    LIST_FOR_EACH(blocker, &node->blockers, struct node_blocker, link)
        snprintf(snapshot_line(snapshot), SNAPSHOT_LINE_BYTES, "blocker of %s: %s", node->name,
                 blocker->reason);
}

static void snapshot_edges(struct snapshot *snapshot, struct node *node)
{
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child) {
        unsigned position = 0;
        if (edge->parent != NULL) {
            LIST_FOR_EACH(sibling, &edge->parent->children, struct edge, in_parent) {
                if (sibling == edge)
                    break;
                position++;
            }
        }
        snprintf(snapshot_line(snapshot), SNAPSHOT_LINE_BYTES,
                 "edge %s %u '%s' -> %s: need=%x share=%x closed=%u inside=%u refs=%u",
                 edge->parent != NULL ? edge->parent->name : "(root)", position, edge->name,
                 node->name, edge->need, edge->share, edge->gate.closed, edge->gate.inside,
                 edge->refs);
    }
}

static int snapshot_compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

UNUSED static struct snapshot *snapshot_take(struct graph *graph)
{
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot));
    assert_non_null(snapshot);
    for (struct node *node = graph_next(graph, NULL); node != NULL;
         node = graph_next(graph, node)) {
        snapshot_node(snapshot, node);
        snapshot_edges(snapshot, node);
    }
    qsort(snapshot->lines, snapshot->count, sizeof(char *), snapshot_compare);
    return snapshot;
}

static void snapshot_free(struct snapshot *snapshot)
{
    for (unsigned i = 0; i < snapshot->count; i++)
        free(snapshot->lines[i]);
    free(snapshot);
}

/* The graph is as it was; frees the snapshot. */
UNUSED static void snapshot_expect(struct graph *graph, struct snapshot *before)
{
    struct snapshot *after = snapshot_take(graph);
    for (unsigned i = 0; i < MAX(before->count, after->count); i++) {
        const char *was = i < before->count ? before->lines[i] : "(nothing more)";
        const char *is = i < after->count ? after->lines[i] : "(nothing more)";
        if (strcmp(was, is) != 0)
            fail_msg("the graph has changed:\n  was: %s\n   is: %s", was, is);
    }
    snapshot_free(before);
    snapshot_free(after);
}

#endif
