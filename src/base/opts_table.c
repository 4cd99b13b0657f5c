/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tables themselves: their help texts, and whether they are sound. */
#include "base/opts_value.h"

#include <stdio.h>
#include <string.h>

#define NAME_BYTES  128
#define LINE_BYTES  512
/* Where explanations begin in help texts. */
#define HELP_COLUMN 34
/* Fields of a table and its variants, at most. */
#define FIELDS_MAX  256

struct help {
    void (*print)(void *arg, const char *line);
    void *arg;
};

static const char *placeholder(const struct opt *opt, char *text, size_t size)
{
    static const char *const names[] = {
        [OPT_STRING] = "TEXT", [OPT_BOOL] = "on|off", [OPT_UINT] = "N",
        [OPT_SIZE] = "SIZE",   [OPT_CHILD] = "NODE",  [OPT_ANY] = "VALUE",
    };

    if (opt->type == OPT_ENUM)
        return opt_join_values(opt, "|", text, size);
    return names[opt->type];
}

static void help_option(const struct help *help, const char *prefix, const struct opt *opt)
{
    bool list = opt->type == OPT_STRINGS || opt->type == OPT_CHILDREN || opt->type == OPT_REFS;
    char left[NAME_BYTES * 2], line[LINE_BYTES], values[NAME_BYTES];

    snprintf(left, sizeof(left), "%s%s%s=%s", prefix, opt->name, list ? ".N" : "",
             list ? (opt->type == OPT_CHILDREN ? "NODE" : "TEXT")
                  : placeholder(opt, values, sizeof(values)));
    snprintf(line, sizeof(line), "  %-*s %s%s%s%s%s", HELP_COLUMN - 3, left,
             opt->help != NULL ? opt->help : "", opt->required ? " (required)" : "",
             opt->fallback != NULL ? " (default: " : "", opt->fallback != NULL ? opt->fallback : "",
             opt->fallback != NULL ? ")" : "");
    help->print(help->arg, line);
}

static void help_table(const struct help *help, const char *prefix, const struct opt *table);

static void help_variants(const struct help *help, const char *prefix, const struct opt *opt)
{
    const struct opt *discriminator = opt_find(opt->members, opt->discriminator);

    for (size_t i = 0; discriminator->values[i] != NULL; i++) {
        char line[LINE_BYTES];

        if (opt->variants[i] == NULL || opt->variants[i]->name == NULL)
            continue;
        snprintf(line, sizeof(line), "  with %s%s=%s:", prefix, discriminator->name,
                 discriminator->values[i]);
        help->print(help->arg, line);
        help_table(help, prefix, opt->variants[i]);
    }
}

static void help_table(const struct help *help, const char *prefix, const struct opt *table)
{
    for (; table->name != NULL; table++) {
        char inner[NAME_BYTES];

        if (table->members == NULL || table->type == OPT_REFS) {
            help_option(help, prefix, table);
            continue;
        }
        snprintf(inner, sizeof(inner), "%s%s.%s", prefix, table->name,
                 table->type == OPT_OBJECTS ? "N." : "");
        help_table(help, inner, table->members);
        if (table->discriminator != NULL)
            help_variants(help, inner, table);
    }
}

void opts_help(const struct opt *table, void (*print)(void *arg, const char *line), void *arg)
{
    struct help help = {.print = print, .arg = arg};

    help_table(&help, "", table);
}

struct field_list {
    size_t count;
    struct {
        size_t offset;
        enum opt_type type;
    } fields[FIELDS_MAX];
};

static size_t field_alignment(enum opt_type type)
{
    switch (type) {
    case OPT_BOOL:
        return _Alignof(bool);
    case OPT_UINT:
    case OPT_SIZE:
        return _Alignof(uint64_t);
    case OPT_ENUM:
        return _Alignof(int);
    case OPT_OBJECT:
    case OPT_UNION:
        return 1;
    default:
        return _Alignof(void *);
    }
}

/* Variants may share a field, when it has the same type in both. */
static void check_field(struct field_list *list, const struct opt *opt)
{
    assert(opt->offset % field_alignment(opt->type) == 0);
    for (size_t i = 0; i < list->count; i++)
        assert(list->fields[i].offset != opt->offset || list->fields[i].type == opt->type);
    assert(list->count < FIELDS_MAX);
    list->fields[list->count].offset = opt->offset;
    list->fields[list->count].type = opt->type;
    list->count++;
}

static void check_name(const struct opt *opt)
{
    assert(opt->name[0] != '\0');
    assert(strlen(opt->name) <= OPTS_MAX_NAME_BYTES);
    assert(strcspn(opt->name, ".,= '\"") == strlen(opt->name));
    assert(strspn(opt->name, "0123456789") < strlen(opt->name));
    assert(opt->help != NULL && opt->help[0] != '\0');
    assert(opt->help[strlen(opt->help) - 1] != '.');
}

static void check_fallback(const struct opt *opt)
{
    struct opt copy = *opt;
    uint64_t field = 0;

    if (opt->fallback == NULL)
        return;
    assert(!opt->required);
    assert(!opt->secret);
    copy.offset = 0;
    copy.present = 0;
    assert(opt_set_text(&copy, opt->fallback, &field) == 0);
    opt_clear(&copy, &field);
}

static void check_kind(const struct opt *opt)
{
    bool is_number = opt->type == OPT_UINT || opt->type == OPT_SIZE;
    bool is_object = opt->type == OPT_OBJECT || opt->type == OPT_UNION || opt->type == OPT_OBJECTS;
    bool is_union = opt->type == OPT_UNION ||
                    (opt->type == OPT_OBJECTS && opt->discriminator != NULL);

    assert(opt->type <= OPT_ANY);
    assert(is_number || (opt->min == 0 && opt->max == 0));
    assert(opt->max == 0 || opt->min <= opt->max);
    assert(opt->type != OPT_ENUM || opt->values != NULL);
    assert(opt->values == NULL || opt->type == OPT_ENUM || opt->type == OPT_STRINGS);
    assert(opt->values == NULL || opt->values[0] != NULL);
    assert((is_object || opt->type == OPT_REFS) == (opt->members != NULL));
    assert(is_union == (opt->discriminator != NULL));
    assert(is_union == (opt->variants != NULL));
    assert((opt->type == OPT_OBJECTS) == (opt->item_size != 0));
}

static void check_table(struct field_list *list, const struct opt *table, const struct opt *beside);

static void check_union(struct field_list *list, const struct opt *opt)
{
    const struct opt *discriminator = opt_find(opt->members, opt->discriminator);

    assert(discriminator != NULL);
    assert(discriminator->type == OPT_ENUM);
    for (size_t i = 0; i < opt_value_count(discriminator); i++) {
        if (opt->variants[i] != NULL)
            check_table(list, opt->variants[i], opt->members);
    }
}

/* Items are structs of their own, so their offsets are apart from those of the struct around. */
static void check_objects(const struct opt *opt)
{
    struct field_list items = {.count = 0};

    check_table(&items, opt->members, NULL);
    if (opt->discriminator != NULL)
        check_union(&items, opt);
    for (size_t i = 0; opt->type == OPT_OBJECTS && i < items.count; i++)
        assert(items.fields[i].offset < opt->item_size);
}

/* `beside`: a table whose names stand in the same object. */
static void check_table(struct field_list *list, const struct opt *table, const struct opt *beside)
{
    for (const struct opt *opt = table; opt->name != NULL; opt++) {
        check_name(opt);
        check_kind(opt);
        check_fallback(opt);
        assert(opt_find(table, opt->name) == opt);
        assert(opt_find(beside, opt->name) == NULL);
        if (opt->type != OPT_OBJECT && opt->type != OPT_UNION)
            check_field(list, opt);
        else
            check_table(list, opt->members, NULL);
        if (opt->type == OPT_OBJECTS || opt->type == OPT_REFS)
            check_objects(opt);
        if (opt->type == OPT_UNION)
            check_union(list, opt);
    }
}

void opts_table_check(const struct opt *table)
{
    struct field_list list = {.count = 0};

    check_table(&list, table, NULL);
}
