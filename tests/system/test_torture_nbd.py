# SPDX-License-Identifier: LGPL-2.1-or-later
"""Thousands of bad NBD connections of each kind cost only themselves: no memory, no descriptor, and
another client is served meanwhile."""

import struct

import pytest

from blockstep import make_file
from torture import (CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, DISK_BYTES, EINVAL, ENOSPC,
                     EXPORT, FLAGS, OPT_EXPORT_NAME, OPT_GO, OPT_LIST, PATTERN, answer, connect, go,
                     option, receive, request, torture, transmission, until_closed)

MAX_REQUEST_BYTES = 32 << 20


def leaves_at_once(sock, rng):
    pass


def leaves_in_the_handshake(sock, rng):
    whole = FLAGS + option(OPT_LIST) + go()
    sock.sendall(whole[:rng.randrange(len(whole))])


def talks_nonsense(sock, rng):
    sock.sendall(rng.randbytes(rng.randrange(1, 300)))
    until_closed(sock)


def sends_random_options(sock, rng):
    sock.sendall(FLAGS)
    for _ in range(rng.randrange(1, 8)):
        number = rng.choice([OPT_EXPORT_NAME, OPT_LIST, OPT_GO, 2, 5, 6, 8, 9, 10, rng.getrandbits(32)])
        payload = rng.randbytes(rng.choice([0, 1, 2, 4, 6, 10, 50, 200]))
        try:
            sock.sendall(option(number, payload))
        except ConnectionError:
            return
    until_closed(sock)


def announces_a_huge_option(sock, rng):
    length = rng.choice([1 << 15, 1 << 20, 1 << 31, (1 << 32) - 1])
    sock.sendall(FLAGS + option(rng.choice([OPT_GO, OPT_LIST, OPT_EXPORT_NAME, 99]),
                                rng.randbytes(100), length=length))
    until_closed(sock)


def asks_for_exports_that_are_not_there(sock, rng):
    receive(sock, 18)
    sock.sendall(FLAGS + go("x" * rng.choice([1, 4096, 4097, 9000])))
    _, _, kind, _ = struct.unpack(">QIII", receive(sock, 20))
    assert kind >> 31 == 1


def sends_random_requests(sock, rng):
    transmission(sock)
    sock.sendall(rng.randbytes(rng.randrange(1, 300)))
    until_closed(sock)


def sends_unknown_commands_and_flags(sock, rng):
    transmission(sock)
    for _ in range(4):
        sock.sendall(request(rng.randrange(9, 1 << 16), rng.getrandbits(64), rng.getrandbits(32)))
        assert answer(sock) == EINVAL
        sock.sendall(request(CMD_READ, 0, 4096, flags=1 << rng.randrange(7, 16)))
        assert answer(sock) == EINVAL
    reads_well(sock)


def asks_for_too_much(sock, rng):
    transmission(sock)
    sock.sendall(request(CMD_READ, 0, rng.randrange(MAX_REQUEST_BYTES + 1, 1 << 32)))
    assert answer(sock) == EINVAL
    reads_well(sock)


def announces_too_long_a_write(sock, rng):
    transmission(sock)
    sock.sendall(request(CMD_WRITE, 0, rng.randrange(MAX_REQUEST_BYTES + 1, 1 << 32)) + bytes(1000))
    until_closed(sock)


def goes_beyond_the_end(sock, rng):
    transmission(sock)
    offset = rng.choice([DISK_BYTES, DISK_BYTES - 512, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096])
    for kind, error in ((CMD_READ, EINVAL), (CMD_WRITE, ENOSPC), (CMD_TRIM, EINVAL)):
        sock.sendall(request(kind, offset, 4096, bytes(4096) if kind == CMD_WRITE else b""))
        assert answer(sock) == error
    reads_well(sock)


def vanishes_in_a_write(sock, rng):
    transmission(sock)
    length = rng.choice([4096, 65536, 1 << 20])
    payload = bytes([PATTERN]) * length
    whole = request(CMD_WRITE, 1 << 20, length, payload)
    sock.sendall(whole[:rng.choice([rng.randrange(28), rng.randrange(28, min(len(whole), 70000))])])


def vanishes_before_its_answers(sock, rng):
    transmission(sock)
    length = rng.choice([4096, 65536])
    batch = b"".join(request(CMD_READ, 0, length, cookie=i) for i in range(rng.randrange(1, 32)))
    sock.sendall(batch + request(CMD_FLUSH, 0, 0))


def says_goodbye_with_requests_under_way(sock, rng):
    transmission(sock)
    batch = b"".join(request(CMD_READ, 0, 4096, cookie=i) for i in range(rng.randrange(1, 64)))
    sock.sendall(batch + request(CMD_DISC, 0, 0) + rng.randbytes(rng.randrange(100)))


def reads_well(sock):
    """An error left the connection usable."""
    sock.sendall(request(CMD_READ, 0, 4096))
    assert answer(sock) == 0
    assert receive(sock, 4096) == bytes([PATTERN]) * 4096


KINDS = [leaves_at_once, leaves_in_the_handshake, talks_nonsense, sends_random_options,
         announces_a_huge_option, asks_for_exports_that_are_not_there, sends_random_requests,
         sends_unknown_commands_and_flags, asks_for_too_much, announces_too_long_a_write,
         goes_beyond_the_end, vanishes_in_a_write, vanishes_before_its_answers,
         says_goodbye_with_requests_under_way]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_client_costs_only_its_own_connection(daemons, folder, kind):
    disk = make_file(folder / "disk.raw", DISK_BYTES, PATTERN)
    path = folder / "nbd.sock"
    daemon = daemons.start("--blockdev", f"file,node-name={EXPORT},filename={disk}",
                           "--nbd-server", f"addr.type=unix,addr.path={path}",
                           "--export", f"nbd,id=e,node-name={EXPORT},writable=on")

    def attack(rng):
        with connect(path) as sock:
            kind(sock, rng)

    torture(daemon, path, attack)
