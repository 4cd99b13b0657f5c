/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Internal to base/opts*.c: one value of a table, and names that resemble each other. */
#ifndef BLOCKSTEP_BASE_OPTS_VALUE_H
#define BLOCKSTEP_BASE_OPTS_VALUE_H

#include "base/opts.h"

/* Converts and stores a value. Returns -EINVAL when it is not what `opt` wants (the caller words
 * the error), or -ENOMEM. Not for OPT_OBJECT, OPT_UNION and OPT_OBJECTS. */
int opt_set(const struct opt *opt, struct json_object *value, enum opts_syntax syntax, void *out);
/* The same from a text; for a type that has no text form -EINVAL. */
int opt_set_text(const struct opt *opt, const char *text, void *out);
/* Frees and zeroes the field. */
void opt_clear(const struct opt *opt, void *out);

/* What would be right, to stand behind "must be"; returns `text`. */
const char *opt_expected(const struct opt *opt, enum opts_syntax syntax, char *text, size_t size);
/* "a, b, c"; returns `text`. */
const char *opt_join_values(const struct opt *opt, const char *separator, char *text, size_t size);

/* Whether the text is one of the option's values. */
bool opt_has_value(const struct opt *opt, const char *text);
/* The entry with this name, NULL when there is none; a NULL table is empty. */
const struct opt *opt_find(const struct opt *table, const char *name);
size_t opt_value_count(const struct opt *opt);

/* Keeps in *best whichever name is nearer to `key`, if near enough for a typing error. Begin with
 * NULL and UINT_MAX. */
struct opt_nearest {
    const char *name;
    unsigned distance;
};
void opt_nearest_offer(struct opt_nearest *best, const char *key, const char *name);

#endif
