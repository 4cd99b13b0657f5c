/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* null-co: a disk that forgets what is written to it. For measuring what lies above it. */
#include "drivers/table.h"

#include "block/graph.h"

#include <string.h>

struct null_options {
    uint64_t size_bytes, latency_ns;
    bool read_zeroes;
};

static void pause_for_latency(const struct node *node) MAY_WAIT
{
    const struct null_options *options = node->options;

    if (options->latency_ns > 0)
        co_sleep(options->latency_ns);
}

static int null_open(struct node *node, struct err *err) MAY_WAIT
{
    const struct null_options *options = node->options;

    node->length_bytes = options->size_bytes;
    node->limits.fua = true;
    return 0;
}

static int null_read(struct node *node, struct io *io) MAY_WAIT
{
    const struct null_options *options = node->options;

    pause_for_latency(node);
    if (options->read_zeroes)
        memset(io->data.bytes, 0, io->length_bytes);
    return 0;
}

static int null_change(struct node *node, struct io *io) MAY_WAIT
{
    pause_for_latency(node);
    return 0;
}

static int null_flush(struct node *node) MAY_WAIT
{
    pause_for_latency(node);
    return 0;
}

static int null_extents(struct node *node, uint64_t offset_bytes, uint64_t length_bytes,
                        struct extent *ret_extent) MAY_WAIT
{
    const struct null_options *options = node->options;

    *ret_extent = (struct extent){
        .length_bytes = length_bytes,
        .flags = EXTENT_HERE | (options->read_zeroes ? EXTENT_ZERO : EXTENT_DATA),
        .depth = 1,
    };
    return 0;
}

static const struct opt null_opts[] = {
    {.name = "size",
     .type = OPT_SIZE,
     .offset = OPT_FIELD(struct null_options, size_bytes),
     .fallback = "1G",
     .max = INT64_MAX,
     .help = "length of the disk"},
    {.name = "latency-ns",
     .type = OPT_UINT,
     .offset = OPT_FIELD(struct null_options, latency_ns),
     .max = 3600 * NS_PER_S,
     .help = "how long every request takes"},
    {.name = "read-zeroes",
     .type = OPT_BOOL,
     .offset = OPT_FIELD(struct null_options, read_zeroes),
     .help = "reads give zeroes; off: whatever the memory held"},
    {0},
};

static int null_usage(struct node *node, uint64_t *ret_bytes)
{
    *ret_bytes = 0;
    return 0;
}

const struct driver driver_null_co = {
    .name = "null-co",
    .options_size = sizeof(struct null_options),
    .opts = null_opts,
    .open = null_open,
    .usage = null_usage,
    .read = null_read,
    .write = null_change,
    .zero = null_change,
    .discard = null_change,
    .flush = null_flush,
    .extents = null_extents,
};
