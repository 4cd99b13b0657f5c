# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pair under kills, stops, full disks and a bad link, for a minute; `make soak` has hours."""

import os
import random
import socket
import threading

import pytest

from bad_link import TO_SERVER, Link
from blockstep import free_port
from stamps import SECTOR, History, View, Violation
from torture_pair import generate, run_seed

SLOW = int(os.environ.get("BLOCKSTEP_TEST_SLOW", "1"))
# Fresh seeds in every run; a slow build takes fewer.
PARTS = 5 if SLOW == 1 else 1
SEEDS = 6 if SLOW == 1 else 2


@pytest.mark.parametrize("part", range(PARTS))
def test_a_pair_keeps_its_promises_whatever_happens_to_it(papers, part):
    for _ in range(SEEDS):
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        run_seed(seed, lambda: papers)


def test_a_seed_is_one_list_of_operations():
    assert list(map(str, generate(7))) == list(map(str, generate(7)))
    assert list(map(str, generate(7))) != list(map(str, generate(8)))


# --- the checks have teeth ---

@pytest.fixture
def history():
    return History()


def written(history, view, first, count):
    change = history.begin("write", 0, first, count, [view])
    history.end(change)
    return change


def test_a_lost_write_is_noticed(history):
    view = View(history, 1, 8, "a view")
    first = written(history, view, 0, 8)
    written(history, view, 0, 8)
    with pytest.raises(Violation, match="sector 0 is write #1"):
        view.look_at_all([first.content()], history.now())


def test_a_write_after_the_checkpoint_is_noticed(history):
    view = View(history, 1, 8, "a view")
    begin = history.now()
    checkpoint = view.cut(begin, history.now(), "the checkpoint")
    later = written(history, view, 0, 8)
    with pytest.raises(Violation, match="may be zero #0"):
        checkpoint.look_at_all([later.content()], history.now())


def test_a_checkpoint_within_a_write_is_noticed(history):
    view = View(history, 1, 8, "a view")
    begin = history.now()
    change = written(history, view, 0, 8)
    checkpoint = view.cut(begin, history.now(), "the checkpoint")
    with pytest.raises(Violation, match="parts of write #1"):
        checkpoint.look_at_all([change.content()[:SECTOR] + bytes(7 * SECTOR)], history.now())


def test_a_checkpoint_with_a_later_write_alone_is_noticed(history):
    view = View(history, 1, 8, "a view")
    begin = history.now()
    written(history, view, 0, 4)
    later = written(history, view, 4, 4)
    checkpoint = view.cut(begin, history.now(), "the checkpoint")
    with pytest.raises(Violation, match="write #2 .* without write #1"):
        checkpoint.look_at_all([bytes(4 * SECTOR) + later.content()], history.now())


def test_a_torn_sector_is_noticed(history):
    view = View(history, 1, 1, "a view")
    content = bytearray(written(history, view, 0, 1).content())
    content[100] ^= 1
    with pytest.raises(Violation, match="a mixture"):
        view.look_at_all([bytes(content)], history.now())


# --- the link ---

@pytest.fixture
def link():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        link = Link(port)
        with socket.create_connection(("127.0.0.1", link.port), 10) as client:
            end, _ = server.accept()
            with end:
                end.settimeout(10)
                client.sendall(b".")
                assert end.recv(1) == b"."
                yield link, client, end
        link.end()


def receive_all(sock):
    data = b""
    try:
        while part := sock.recv(4096):
            data += part
    except ConnectionError:
        pass
    return data


def test_a_link_breaks_at_the_byte(link):
    link, client, server = link
    link.cut(TO_SERVER, 3)
    client.sendall(b"abcdef")
    assert receive_all(server) == b"abc"
    assert receive_all(client) == b""


def test_what_was_sent_arrives_after_its_sender_has_gone(link):
    link, client, server = link
    link.hold_old()
    client.sendall(b"late")
    client.close()
    with pytest.raises(TimeoutError):
        server.settimeout(0.05)
        server.recv(1)
    server.settimeout(10)
    threading.Timer(0.01, link.wake_old).start()
    assert receive_all(server) == b"late"
