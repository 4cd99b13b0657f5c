/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How a filter comes above a disk in use, and goes again. */
#include "drivers/copy_before_write.h"

#include "base/json.h"
#include "base/log.h"

#include <errno.h>

/* Options of a node above the disk, each with a text: names and values in turn, ended by NULL. */
static int add_node(struct graph *graph, const struct node *disk, const char *const *texts,
                    struct node **ret_node, struct err *err) MAY_WAIT
{
    struct json_object *options = json_object_new_object();
    struct node *node = NULL;
    int ret = options == NULL ? -ENOMEM : json_add_string(options, "file", disk->name);

    for (; ret == 0 && texts[0] != NULL; texts += 2)
        ret = json_add_string(options, texts[0], texts[1]);
    if (ret < 0)
        ret = err_no_memory(err);
    else
        ret = graph_add(graph, options, OPTS_JSON, "copy-before-write", false, &node, err);
    json_object_put(options);
    if (ret == 0)
        *ret_node = node_ref(node);
    return ret;
}

static struct edge *hidden_backing(struct node *hidden)
{
    return node_child(hidden, "backing");
}

static int add_filter(struct graph *graph, struct cbw *cbw, bool with_map, const char *name,
                      struct err *err) MAY_WAIT
{
    const char *const texts[] = {
        "driver",
        driver_copy_before_write.name,
        "target",
        cbw->hidden->name,
        "on-cbw-error",
        with_map ? "break-snapshot" : "break-guest-write",
        name != NULL ? "node-name" : NULL,
        name,
        NULL,
    };
    int ret = add_node(graph, cbw->disk, texts, &cbw->filter, err);

    if (ret == 0)
        cbw->filter->stands_in = true;
    return ret == 0 && with_map ? cbw_use_map(cbw->filter, err) : ret;
}

/* Leads the target's way to the disk past the filter's locks. */
static int add_access(struct graph *graph, struct cbw *cbw, struct err *err) MAY_WAIT
{
    const char *const texts[] = {"driver", driver_copy_before_write_access.name, "filter",
                                 cbw->filter->name, NULL};
    int ret = add_node(graph, cbw->disk, texts, &cbw->access, err);

    return ret == 0 ? graph_replace(hidden_backing(cbw->hidden), cbw->access, err) : ret;
}

static int insert_changed(struct graph *graph, struct cbw *cbw, bool with_map, const char *name,
                          struct err *err) MAY_WAIT
{
    const struct edge *backing = hidden_backing(cbw->hidden);
    bool backed = backing != NULL && backing->child == cbw->disk;
    struct err ignored = ERR_INIT;
    int ret = add_filter(graph, cbw, with_map, name, err);

    if (ret == 0 && backed)
        ret = add_access(graph, cbw, err);
    if (ret < 0)
        return ret;
    ret = graph_replace_node(graph, cbw->disk, cbw->filter, NULL, err);
    if (ret < 0 && backed && graph_replace(hidden_backing(cbw->hidden), cbw->disk, &ignored) < 0)
        log_error("copy-before-write", "%s", ignored.text);
    return ret;
}

static int insert(struct graph *graph, struct node *disk, struct node *hidden, bool with_map,
                  const char *name, struct cbw *ret_cbw, struct err *err) MAY_WAIT
{
    struct cbw cbw = {.disk = node_ref(disk), .hidden = node_ref(hidden)};

    graph_change_begin(graph);
    int ret = insert_changed(graph, &cbw, with_map, name, err);
    graph_change_end(graph);
    if (ret == 0) {
        *ret_cbw = cbw;
        return 0;
    }
    node_unref(cbw.access);
    node_unref(cbw.filter);
    node_unref(hidden);
    node_unref(disk);
    return ret;
}

int cbw_insert(struct graph *graph, struct node *disk, struct node *hidden, struct cbw *ret_cbw,
               struct err *err)
{
    const struct edge *backing = hidden_backing(node_check(hidden));

    if (backing == NULL || backing->child != disk)
        return err_set(err, -EINVAL, "the backing child of '%s' is not '%s'", hidden->name,
                       node_check(disk)->name);
    return insert(graph, disk, hidden, false, NULL, ret_cbw, err);
}

int cbw_insert_with_map(struct graph *graph, struct node *disk, struct node *target,
                        const char *name, struct cbw *ret_cbw, struct err *err)
{
    return insert(graph, disk, target, true, name, ret_cbw, err);
}

/* The filter's parents, so that they can be led back to it and nobody else is. */
struct parents {
    struct edge **edges;
    size_t count;
};

static int parents_collect(struct node *node, struct parents *parents)
{
    size_t count = 0;

    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child)
        count++;
    parents->edges = calloc(count + 1, sizeof(struct edge *));
    if (parents->edges == NULL)
        return -ENOMEM;
    LIST_FOR_EACH(edge, &node->parents, struct edge, in_child)
        parents->edges[parents->count++] = edge;
    return 0;
}

/* Edges that were detached meanwhile are not there any more. */
static void parents_lead_back(const struct parents *parents, struct node *from, struct node *to)
    MAY_WAIT
{
    for (size_t i = 0; i < parents->count; i++) {
        LIST_FOR_EACH(edge, &from->parents, struct edge, in_child) {
            struct err err = ERR_INIT;

            if (edge != parents->edges[i])
                continue;
            if (graph_replace(edge, to, &err) < 0)
                log_error("copy-before-write", "%s", err.text);
            break;
        }
    }
}

/* First nobody writes through the filter any more, then nobody reads through its locks. Another filter may
 * have come between this one and the disk. */
static int remove_changed(struct graph *graph, struct cbw *cbw, struct err *err) MAY_WAIT
{
    struct node *below = cbw->filter->file->child;
    struct parents parents = {0};
    int ret;

    if (parents_collect(cbw->filter, &parents) < 0)
        return err_no_memory(err);
    ret = graph_replace_node(graph, cbw->filter, below, NULL, err);
    if (ret == 0 && cbw->access != NULL) {
        ret = graph_replace(hidden_backing(cbw->hidden), cbw->disk, err);
        if (ret < 0)
            parents_lead_back(&parents, below, cbw->filter);
    }
    free(parents.edges);
    return ret;
}

void cbw_abandon(struct cbw *cbw)
{
    struct cbw old = *cbw;

    *cbw = (struct cbw){0};
    node_unref(old.access);
    node_unref(old.filter);
    node_unref(old.hidden);
    node_unref(old.disk);
}

int cbw_remove(struct graph *graph, struct cbw *cbw, struct err *err)
{
    int ret;

    if (cbw->filter == NULL)
        return 0;
    graph_change_begin(graph);
    ret = remove_changed(graph, cbw, err);
    graph_change_end(graph);
    if (ret == 0)
        cbw_abandon(cbw);
    return ret;
}
