# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our NBD client against stock servers: a daemon re-exports what nbdkit or qemu-nbd serves."""

import json
import random
import socket
import time
from pathlib import Path

import nbd
import pytest

from blockstep import DEADLINE_S, QmpError, Stock, make_file, run

MIB = 1 << 20


def server_command(kind, path, disk):
    if kind == "nbdkit":
        return ["nbdkit", "-f", "-U", path, "file", disk]
    if kind == "nbdkit-simple":
        return ["nbdkit", "-f", "--no-sr", "-U", path, "file", disk]
    if kind == "nbdkit-blocks":
        return ["nbdkit", "-f", "-U", path, "--filter=blocksize-policy", "file", disk,
                "blocksize-minimum=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"]
    return ["qemu-nbd", "-t", "-e", "8", "-k", path, "-f", "raw", "--discard=unmap", disk]


@pytest.fixture
def stock(folder):
    started = []

    def start(kind, disk):
        path = folder / f"{kind}{len(started)}.sock"
        started.append(Stock(server_command(kind, path, disk), path))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def proxy(daemons, folder, path, *more):
    """A daemon that re-exports the server's export; returns (daemon, uri)."""
    sock = folder / "proxy.sock"
    options = ",".join([f"driver=nbd,node-name=remote,server.type=unix,server.path={path}", *more])
    daemon = daemons.start("--blockdev", options,
                           "--nbd-server", f"addr.type=unix,addr.path={sock}",
                           "--export", "type=nbd,id=e,node-name=remote,name=disk,writable=on")
    return daemon, f"nbd+unix:///disk?socket={sock}"


KINDS = ["nbdkit", "nbdkit-simple", "nbdkit-blocks", "qemu-nbd"]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_go_through_both_ways(daemons, folder, stock, kind):
    disk = make_file(folder / "disk.raw", 16 * MIB)
    _, uri = proxy(daemons, folder, stock(kind, disk).path)
    source = folder / "source"
    source.write_bytes(random.Random(3).randbytes(16 * MIB))
    run("nbdcopy", "--flush", source, uri)
    assert Path(disk).read_bytes() == source.read_bytes()
    run("nbdcopy", uri, folder / "back")
    assert (folder / "back").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_random_requests_against_a_model(daemons, folder, stock, kind):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    disk = make_file(folder / "disk.raw", 2 * MIB)
    _, uri = proxy(daemons, folder, stock(kind, disk).path)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    model = bytearray(2 * MIB)
    for _ in range(200):
        offset = rng.randrange(len(model) - 1)
        length = rng.randrange(1, min(len(model) - offset, rng.choice([600, 9000, 300000])) + 1)
        what = rng.randrange(5)
        if what <= 1:
            data = rng.randbytes(length)
            handle.pwrite(data, offset, nbd.CMD_FLAG_FUA if rng.random() < 0.2 else 0)
            model[offset:offset + length] = data
        elif what == 2:
            handle.zero(length, offset)
            model[offset:offset + length] = bytes(length)
        else:
            assert handle.pread(length, offset) == model[offset:offset + length]
    handle.flush()
    handle.shutdown()
    assert Path(disk).read_bytes() == model


@pytest.mark.parametrize("kind", ["nbdkit", "qemu-nbd"])
def test_holes_are_seen_through_the_link(daemons, folder, stock, kind):
    disk = make_file(folder / "disk.raw", 8 * MIB)
    with open(disk, "r+b") as file:
        file.seek(2 * MIB)
        file.write(b"x" * MIB)
    _, uri = proxy(daemons, folder, stock(kind, disk).path)
    extents = json.loads(run("nbdinfo", "--json", "--map", uri))
    assert [(e["offset"], e["length"]) for e in extents if e["type"] == 0] == [(2 * MIB, MIB)]


def test_a_server_that_dies_is_an_error_for_every_request(daemons, folder, stock):
    disk = make_file(folder / "disk.raw", MIB)
    server = stock("nbdkit", disk)
    daemon, uri = proxy(daemons, folder, server.path)
    handle = nbd.NBD()
    handle.connect_uri(uri)
    handle.pwrite(bytes(512), 0)
    server.stop()
    for _ in range(3):
        with pytest.raises(nbd.Error):
            handle.pwrite(bytes(512), 0)
    assert daemon.qmp.cmd("query-named-block-nodes")


def test_a_server_that_stops_answering_is_given_up(daemons, folder, stock):
    disk = make_file(folder / "disk.raw", MIB)
    path = folder / "slow.sock"
    server = Stock(["nbdkit", "-f", "-U", path, "--filter=delay", "file", disk, "delay-write=600"],
                   path)
    try:
        _, uri = proxy(daemons, folder, path, "request-timeout=1")
        handle = nbd.NBD()
        handle.connect_uri(uri)
        began = time.monotonic()
        with pytest.raises(nbd.Error):
            handle.pwrite(bytes(512), 0)
        assert 0.9 < time.monotonic() - began < DEADLINE_S
    finally:
        server.stop()


def test_a_server_that_never_speaks_is_given_up_at_open(daemons, folder):
    daemon = daemons.start()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(folder / "mute.sock"))
        mute.listen()
        began = time.monotonic()
        with pytest.raises(QmpError, match="imed out"):
            daemon.qmp.cmd("blockdev-add", {
                "driver": "nbd", "node-name": "n", "open-timeout": 1,
                "server": {"type": "unix", "path": str(folder / "mute.sock")}})
        assert time.monotonic() - began < 10


def test_a_read_only_export_needs_a_read_only_node(daemons, folder):
    disk = make_file(folder / "disk.raw", MIB)
    path = folder / "ro.sock"
    server = Stock(["nbdkit", "-f", "-r", "-U", path, "file", disk], path)
    try:
        daemon = daemons.start()
        node = {"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": str(path)}}
        with pytest.raises(QmpError, match="read-only"):
            daemon.qmp.cmd("blockdev-add", node)
        daemon.qmp.cmd("blockdev-add", {**node, "read-only": True})
        daemon.qmp.cmd("blockdev-del", node_name="n")
    finally:
        server.stop()
