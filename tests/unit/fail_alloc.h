/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Allocations that fail when a test says so, in libraries too. A program that links fail_alloc.c has
 * these in place of libc's; without sanitizers and valgrind, which take that place themselves.
 */
#ifndef BLOCKSTEP_TESTS_FAIL_ALLOC_H
#define BLOCKSTEP_TESTS_FAIL_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

/* False: nothing would ever fail here. */
bool fail_alloc_possible(void);
/* From now on the allocation after the next `after` fails, and (unless `once`) all behind it. Of those
 * for which `applies` says true, when it is not NULL: it must not allocate. */
void fail_alloc_begin(long after, bool once, bool (*applies)(void));
/* Ends that; returns how many have failed. */
long fail_alloc_end(void);
/* How many it applied to since then. */
long fail_alloc_asked(void);
/* Allocations that have not been freed; a number to compare with itself. */
long fail_alloc_live(void);

#endif
