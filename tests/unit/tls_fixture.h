/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Folders of TLS credentials for tests, made anew with GnuTLS: on the real disk, also for the
 * simulator. One set at a time.
 *
 *   good      an authority, a server "localhost" and 127.0.0.1, a client "tester"
 *   other     the same from another authority
 *   expired   good's authority; both certificates have expired
 *   late      good's authority; both certificates are not valid yet
 *   nocert    good's authority alone
 *   revoked   good, with a list that revokes the client
 *   psk       keys of "qemu" and "second"
 *   psk2      another key of "qemu"
 */
#ifndef BLOCKSTEP_TESTS_TLS_FIXTURE_H
#define BLOCKSTEP_TESTS_TLS_FIXTURE_H

#include "unit.h"

#include "loop/tls.h"

void tls_fixture_make(void);
void tls_fixture_remove(void);
/* "ROOT/NAME" in one of eight static buffers. */
const char *tls_fixture_path(const char *name);
void tls_fixture_write(const char *name, const char *text, unsigned mode);

/* Loads, or fails the test. */
struct tls_creds *tls_fixture_load(const char *folder, enum tls_kind kind,
                                   enum tls_endpoint endpoint) MAY_WAIT;

#endif
