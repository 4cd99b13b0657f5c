/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Intrusive doubly linked lists, circular with a head, as in the Linux kernel. A link that is in no
 * list points to itself or is zeroed; list_remove() leaves it so that it can be added again and
 * tested with list_linked().
 */
#ifndef BLOCKSTEP_BASE_LIST_H
#define BLOCKSTEP_BASE_LIST_H

#include "base/defs.h"

struct list_link {
    struct list_link *prev, *next;
};

struct list {
    struct list_link head;
};

#define LIST_INIT(name)                        \
    {                                          \
        .head = { &(name).head, &(name).head } \
    }

static inline void list_init(struct list *list)
{
    list->head.prev = list->head.next = &list->head;
}

static inline bool list_empty(const struct list *list)
{
    return list->head.next == &list->head;
}

static inline bool list_linked(const struct list_link *link)
{
    return link->next != NULL && link->next != link;
}

static inline void list_insert_before(struct list_link *where, struct list_link *link)
{
    link->prev = where->prev;
    link->next = where;
    where->prev->next = link;
    where->prev = link;
}

static inline void list_push_back(struct list *list, struct list_link *link)
{
    list_insert_before(&list->head, link);
}

static inline void list_push_front(struct list *list, struct list_link *link)
{
    list_insert_before(list->head.next, link);
}

/* Harmless on a link that is in no list. */
static inline void list_remove(struct list_link *link)
{
    if (link->next == NULL)
        return;
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->prev = link->next = link;
}

static inline struct list_link *list_first(const struct list *list)
{
    return list_empty(list) ? NULL : list->head.next;
}

/* Moves all of `from` behind the end of `to`. */
static inline void list_splice_back(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->head.next->prev = to->head.prev;
    to->head.prev->next = from->head.next;
    from->head.prev->next = &to->head;
    to->head.prev = from->head.prev;
    list_init(from);
}

#define LIST_ENTRY(link, type, member) CONTAINER_OF(link, type, member)

/* The entry may not be removed inside LIST_FOR_EACH; with _SAFE it may (but not its successor). */
#define LIST_FOR_EACH(entry, list, type, member)                    \
    for (type *entry = LIST_ENTRY((list)->head.next, type, member); \
         &entry->member != &(list)->head; entry = LIST_ENTRY(entry->member.next, type, member))

#define LIST_FOR_EACH_SAFE(entry, list, type, member)                       \
    for (type *entry = LIST_ENTRY((list)->head.next, type, member),         \
              *entry##_next = LIST_ENTRY(entry->member.next, type, member); \
         &entry->member != &(list)->head;                                   \
         entry = entry##_next, entry##_next = LIST_ENTRY(entry->member.next, type, member))

#define LIST_POP_FRONT(list, type, member)                        \
    ({                                                            \
        struct list_link *first_ = list_first(list);              \
        if (first_ != NULL)                                       \
            list_remove(first_);                                  \
        first_ != NULL ? LIST_ENTRY(first_, type, member) : NULL; \
    })

#endif
