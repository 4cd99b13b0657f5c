/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Option tables. One table says for a driver, a QMP command or a command line option which members
 * an object may have; from it come parsing, error messages, schema, --help and man pages.
 *
 * Objects are json-c's. Two syntaxes lead to them: JSON (json.h), where a value must have the
 * table's type, and dotted keys ("driver=file,filename=/a,cache.direct=on", as qemu-storage-daemon
 * takes them), where every value is a string and is converted. A comma inside a value is doubled.
 *
 * Unknown members, members of the wrong type, values out of range, missing required ones and
 * contradictory ones (dotted keys giving both "a=1" and "a.b=2") are errors that name the member by
 * its full path and say what would be right.
 */
#ifndef BLOCKSTEP_BASE_OPTS_H
#define BLOCKSTEP_BASE_OPTS_H

#include "base/err.h"

struct json_object;

enum opt_type {
    OPT_STRING,  /* char *; NULL when absent */
    OPT_BOOL,    /* bool; dotted keys: on|off (also yes|no, true|false) */
    OPT_UINT,    /* uint64_t within min..max */
    OPT_SIZE,    /* uint64_t; strings may carry k, M, G, T... (size_parse()); JSON: also a number */
    OPT_ENUM,    /* int: index into `values` */
    OPT_OBJECT,  /* described by `members`, whose offsets count from the same struct */
    OPT_UNION,   /* like OPT_OBJECT; `members` are common, and the member called `discriminator`
                   * (an OPT_ENUM) selects the further table variants[index] */
    OPT_STRINGS, /* struct opt_strings: a list of strings; with `values`: of these alone */
    OPT_OBJECTS, /* struct opt_objects: a list of objects, each described by `members` (and perhaps
                  * by variants, as in OPT_UNION), whose offsets count from an item of `item_size` */
    OPT_CHILD,   /* a block node: its name or an inline object. Kept as struct json_object * with a
                   * reference; the graph resolves it */
    OPT_CHILDREN, /* a list of these: struct json_object * (array) */
    OPT_REFS,     /* a list of things by name or by an object that `members` describe, kept as
                   * struct json_object * (array); who looks for the things reads the objects */
    OPT_ANY,      /* any value: struct json_object * with a reference */
};

struct opt_strings {
    char **items;
    size_t count;
};

struct opt_objects {
    void *items; /* an array of `item_size` bytes each */
    size_t count;
};

/* Value of an OPT_UINT / OPT_SIZE / OPT_BOOL / OPT_ENUM that is absent and has no fallback: 0; who
 * needs to know adds `present`, the offset of a bool that tells. */
struct opt {
    const char *name; /* last entry of a table: NULL */
    enum opt_type type;
    size_t offset;  /* of the field in the struct that is filled; see OPT_FIELD */
    size_t present; /* offset of a bool plus one; 0: none */
    bool required;
    bool secret;                       /* never shown in logs or dumps */
    const char *fallback;              /* default value, in dotted-key spelling; NULL: none */
    uint64_t min, max;                 /* OPT_UINT, OPT_SIZE; max 0: no upper limit */
    const char *const *values;         /* OPT_ENUM, OPT_STRINGS: names, NULL-terminated */
    const struct opt *members;         /* OPT_OBJECT, OPT_UNION, OPT_OBJECTS, OPT_REFS */
    size_t item_size;                  /* OPT_OBJECTS */
    const char *discriminator;         /* OPT_UNION, perhaps OPT_OBJECTS */
    const struct opt *const *variants; /* one for each of its values; NULL: no further members */
    const char *help;                  /* one line, no full stop */
};

#define OPT_FIELD(type, field)   offsetof(type, field)
#define OPT_PRESENT(type, field) (offsetof(type, field) + 1)

enum opts_syntax {
    OPTS_JSON,   /* values have their JSON types */
    OPTS_DOTTED, /* values are strings and are converted */
};

/*
 * Fills `out` (zeroed by the caller) from `object` by `table`. `where` begins every error message
 * ("blockdev-add", "--export"). On failure nothing is left to free and `out` is zeroed again in
 * all table fields. On success opts_release() frees what was allocated.
 * Members called in `ignore` (NULL-terminated, may be NULL) are skipped, whatever they hold.
 *
 * The fields are named by offset, so tables must be sound: see opts_table_check(). Members of an
 * absent object get their fallbacks; those of a union's variant only when the discriminator has
 * one.
 */
int opts_parse(const struct opt *table, struct json_object *object, enum opts_syntax syntax,
               const char *where, const char *const *ignore, void *out, struct err *err);
void opts_release(const struct opt *table, void *out);

#define OPTS_MAX_TEXT_BYTES (64u * 1024)
#define OPTS_MAX_LEVELS     32u
#define OPTS_MAX_KEYS       1024u
#define OPTS_MAX_NAME_BYTES 63u
#define OPTS_MAX_ITEMS      1024u /* of a list of objects */

/*
 * "a=1,b.c=2,b.d.0=x" -> an object of strings, nested objects and, where the keys of an object are
 * numbers, arrays: these must be 0..n-1. `implied_key`: the name of a first value without "=", NULL
 * for none. A text that begins with "{" is read as JSON instead, and *ret_syntax says which. The
 * caller releases the object with json_object_put(). Limits: OPTS_MAX_*.
 */
int opts_read(const char *text, const char *implied_key, const char *where,
              struct json_object **ret_object, enum opts_syntax *ret_syntax, struct err *err);

/* Prints the lines of a --help text, one call each, without newlines. */
void opts_help(const struct opt *table, void (*print)(void *arg, const char *line), void *arg);

/* For tests: asserts that a table is consistent (names unique and speakable, all have a help line,
 * fallbacks fit their types, unions know their discriminator, one offset has one type). */
void opts_table_check(const struct opt *table);

/* "64k", "1.5G", "4096"; only whole bytes. -EINVAL for what is no size, -ERANGE for too large a
 * one; the units are k, M, G, T, P, E in either case. */
int size_parse(const char *text, uint64_t *ret_bytes);
/* "1.5 GiB" for people, into `text` (at least 32 bytes), which is returned. */
const char *size_format(uint64_t bytes, char *text, size_t text_bytes);

#endif
