/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Objects: what several nodes share and somebody made by name, as QEMU's object-add and --object do
 * (throttle groups). They live beside the nodes of a graph, in a name space of their own.
 *
 * An object that is in use cannot be deleted. Making one does not wait; what takes longer (reading
 * files) follows in object_load().
 */
#ifndef BLOCKSTEP_BLOCK_OBJECT_H
#define BLOCKSTEP_BLOCK_OBJECT_H

#include "block/graph.h"

#define OBJECT_ID_BYTES   64u /* with the final zero */
#define GRAPH_MAX_OBJECTS 256u

struct object;

struct object_type {
    const char *name;  /* qom-type */
    size_t state_size; /* zeroed; object->state */
    size_t options_size;
    const struct opt *opts; /* beyond qom-type and id */
    int (*create)(struct object *object, struct err *err);
    /* NULL: it is complete when it has been made. May wait; the object stays meanwhile. */
    int (*load)(struct object *object, struct err *err);
    void (*destroy)(struct object *object); /* after a successful create; nobody uses it any more */
};

struct object {
    struct list_link link;
    const struct object_type *type;
    struct graph *graph;
    char id[OBJECT_ID_BYTES];
    void *state, *options;
    unsigned users;
};

/* NULL-terminated; it outlives the graph. Without this call there are no types. */
void graph_set_object_types(struct graph *graph, const struct object_type *const *types);

/* {"qom-type": ..., "id": ..., and the type's own}. `where` begins every error. */
int object_add(struct graph *graph, struct json_object *options, enum opts_syntax syntax,
               const char *where, struct err *err);
/* The options that every object has; which type, and so which further ones, "qom-type" says. */
extern const struct opt object_opts[];
/* After object_add(), of the same id; who made it takes it back when this fails. */
int object_load(struct graph *graph, const char *id, struct err *err) MAY_WAIT;
int object_del(struct graph *graph, const char *id, struct err *err);
/* NULL: there is none. */
struct object *object_find(struct graph *graph, const char *id);
/* In the order of making; NULL begins and ends. */
struct object *object_next(struct graph *graph, struct object *object);

/* Finds and holds: every success is ended by one object_unuse(), which takes NULL too. */
int object_use(struct graph *graph, const struct object_type *type, const char *id,
               struct object **ret_object, struct err *err);
void object_unuse(struct object *object);

#endif
