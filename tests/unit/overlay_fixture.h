/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An overlay on a file of this test's own, over a disk in memory, with a blkdebug node in between. */
#ifndef BLOCKSTEP_TESTS_OVERLAY_FIXTURE_H
#define BLOCKSTEP_TESTS_OVERLAY_FIXTURE_H

#include "blocks.h"

#include "base/json.h"
#include "drivers/overlay.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct overlay_fixture {
    struct graph *graph;
    struct node *backing, *debug, *node;
    struct edge *edge;
};

UNUSED static void overlay_make(const char *path, uint64_t bytes, uint32_t block_bytes,
                                uint32_t unit_bytes) MAY_WAIT
{
    struct err err = ERR_INIT;
    const struct overlay_create create = {
        .virtual_bytes = bytes, .block_bytes = block_bytes, .unit_bytes = unit_bytes};

    if (overlay_create(loop_current(), path, &create, true, &err) < 0)
        fail_msg("%s", err.text);
}

/* What the backing disk has at an offset. */
UNUSED static uint8_t overlay_backing_byte(uint64_t offset)
{
    return (uint8_t)(offset / 512 * 7 + 1);
}

UNUSED static void overlay_open_at(struct overlay_fixture *f, const char *path, uint64_t bytes)
    MAY_WAIT
{
    *f = (struct overlay_fixture){.graph = blocks_graph()};
    f->backing = blocks_add(f->graph, "{'node-name':'base','driver':'mem','size':%" PRIu64 "}",
                            bytes);
    for (uint64_t i = 0; i < bytes; i++)
        mem_bytes(f->backing)[i] = overlay_backing_byte(i);
    f->debug = blocks_add(f->graph,
                          "{'node-name':'debug','driver':'blkdebug',"
                          "'file':{'driver':'file','filename':'%s'}}",
                          path);
    f->node = blocks_add(f->graph, "{'node-name':'ovl','driver':'overlay','file':'debug',"
                                   "'backing':'base'}");
    f->edge = blocks_root(f->graph, f->node, "test");
}

UNUSED static void overlay_shut(struct overlay_fixture *f) MAY_WAIT
{
    graph_detach(f->edge);
    graph_free(f->graph);
    f->graph = NULL;
}

/* Why the image at `path` cannot be opened; 0 when it can. */
UNUSED static int overlay_refusal(const char *path, uint64_t bytes, struct err *err) MAY_WAIT
{
    struct graph *graph = blocks_graph();
    struct json_object *options;
    struct node *node = NULL;
    char text[512];
    struct err parse = ERR_INIT;

    snprintf(text, sizeof(text),
             "{'driver':'overlay','file':{'driver':'file','filename':'%s'},"
             "'backing':{'driver':'mem','size':%" PRIu64 "}}",
             path, bytes);
    assert_int_equal(json_parse(text, strlen(text), "test", &options, &parse), 0);
    int ret = graph_add(graph, options, OPTS_JSON, "test", false, &node, err);
    json_object_put(options);
    graph_free(graph);
    return ret;
}

/* The whole file, as it is now: what a killed daemon would leave. */
UNUSED static uint8_t *overlay_snapshot(const char *path, size_t *ret_length) MAY_WAIT
{
    struct file *file;
    struct err err = ERR_INIT;

    assert_int_equal(file_open(loop_current(), path, 0, FILE_AIO_AUTO, &file, &err), 0);
    *ret_length = file_info(file)->length_bytes;
    uint8_t *bytes = malloc(*ret_length);
    assert_non_null(bytes);
    assert_int_equal(file_read(file, bytes, *ret_length, 0), *ret_length);
    file_close(file);
    return bytes;
}

UNUSED static void overlay_put_file(const char *path, const uint8_t *bytes, size_t length) MAY_WAIT
{
    struct file *file;
    struct err err = ERR_INIT;

    assert_int_equal(file_open(loop_current(), path, FILE_WRITABLE | FILE_CREATE | FILE_TRUNCATE,
                               FILE_AIO_AUTO, &file, &err),
                     0);
    assert_int_equal(file_write(file, bytes, length, 0), 0);
    assert_int_equal(file_truncate(file, length), 0);
    file_close(file);
}

UNUSED static void overlay_expect_model(struct edge *edge, const uint8_t *model, uint64_t bytes)
    MAY_WAIT
{
    const uint64_t piece = 256 * 1024;
    uint8_t *seen = malloc(piece);

    assert_non_null(seen);
    for (uint64_t at = 0; at < bytes; at += piece) {
        uint64_t length = MIN(piece, bytes - at);

        assert_int_equal(blocks_read_bytes(edge, at, seen, length, 0), 0);
        for (uint64_t i = 0; i < length; i++) {
            if (seen[i] != model[at + i])
                fail_msg("byte %" PRIu64 " is %u, not %u", at + i, seen[i], model[at + i]);
        }
    }
    free(seen);
}

#endif
