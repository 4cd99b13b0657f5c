# SPDX-License-Identifier: LGPL-2.1-or-later
"""Queries of nodes beside those of a live QEMU with the same graph: every member that it tells is
there, with the same value, and no other but those that begin with x-."""

import json

import pytest

from blockstep import Daemon, make_file, run

MIB = 1 << 20
VERSION = "7.2"


def plain(value):
    """Without members of ours; file names that are recipes as what they say."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if not key.startswith("x-")}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, str) and value.startswith("json:"):
        return plain(json.loads(value[5:]))
    return value


def by_name(nodes):
    """Nodes that were given a name: QEMU makes up others than we."""
    return {node["node-name"]: node for node in plain(nodes) if not node["node-name"].startswith("#")}


@pytest.fixture
def qemu(daemons, folder):
    if f"version {VERSION}." not in run("qemu-storage-daemon", "--version"):
        pytest.skip(f"compared with QEMU {VERSION}")

    def start(program, *options):
        path = folder / f"{program}.qmp"
        daemon = Daemon([program, *options, "-chardev" if "system" in program else "--chardev",
                         f"socket,id=c,path={path},server=on,wait=off",
                         *(["-mon", "chardev=c,mode=control"] if "system" in program
                           else ["--monitor", "chardev=c"])], folder, program, path)
        daemons.all.append(daemon)
        return daemon
    return start


@pytest.fixture
def options(daemons, folder):
    """A graph that both can make."""
    for name in ("disk", "second", "third"):
        make_file(folder / f"{name}.raw", 2 * MIB, pattern=3 if name == "disk" else None)
    daemons.start("--blockdev", "null-co,node-name=far,size=3M",
                  "--nbd-server", f"addr.type=unix,addr.path={folder}/far.sock",
                  "--export", "type=nbd,id=far,node-name=far,writable=on", name="far")
    blockdevs = [
        f"driver=file,node-name=file,filename={folder}/disk.raw",
        f"driver=file,node-name=strict,filename={folder}/second.raw,read-only=on,cache.no-flush=on",
        "driver=raw,node-name=raw,file=file",
        "driver=throttle,node-name=throttle,throttle-group=tg,file=raw",
        "driver=quorum,node-name=quorum,children.0=throttle,vote-threshold=1,read-pattern=fifo",
        f"driver=raw,node-name=window,offset=1048576,size=65536,file.driver=file,"
        f"file.filename={folder}/third.raw,detect-zeroes=on",
        "driver=null-co,node-name=null",
        "driver=null-co,node-name=small,size=1048576",
        f"driver=nbd,node-name=nbd,server.type=unix,server.path={folder}/far.sock,export=far",
    ]
    return ["--object", "throttle-group,id=tg,limits.iops-total=1000",
            *(word for text in blockdevs for word in ("--blockdev", text))]


@pytest.mark.parametrize("flat", [False, True])
def test_named_nodes_are_as_qemu_tells_them(daemons, qemu, options, flat):
    theirs = by_name(qemu("qemu-storage-daemon", *options).qmp.cmd("query-named-block-nodes", flat=flat))
    daemons.all.pop().stop()
    ours = by_name(daemons.start(*options).qmp.cmd("query-named-block-nodes", flat=flat))
    assert ours == theirs


def test_the_graph_is_as_qemu_tells_it(daemons, qemu, options):
    def edges(daemon):
        graph = plain(daemon.qmp.cmd("x-debug-query-block-graph"))
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        types = {node["name"]: node["type"] for node in graph["nodes"]}
        named = {(names[edge["parent"]], edge["name"], names[edge["child"]]): edge.keys()
                 for edge in graph["edges"] if not names[edge["child"]].startswith("#")}
        return types.items() - {(name, "block-driver") for name in types if name[0] == "#"}, named

    theirs = edges(qemu("qemu-storage-daemon", *options))
    daemons.all.pop().stop()
    assert edges(daemons.start(*options)) == theirs


def test_a_device_is_as_qemu_tells_it(daemons, qemu, folder):
    path = make_file(folder / "disk.raw", MIB)
    guest = qemu("qemu-system-x86_64", "-M", "none", "-nographic", "-nodefaults", "-drive",
                 f"if=none,id=disk,format=raw,file.locking=off,file={path}")
    [theirs] = [device for device in guest.qmp.cmd("query-block") if device["device"] == "disk"]
    guest.qmp.cmd("quit")
    ours = daemons.start("--blockdev", f"driver=raw,node-name=disk,file.driver=file,"
                                       f"file.filename={path}").qmp.cmd("query-block")
    [ours] = plain(ours)
    del theirs["inserted"]["node-name"], ours["inserted"]["node-name"]
    # QEMU: no device of the machine uses it. Ours is in use, for what it knows.
    assert theirs.pop("removable") is True and ours.pop("removable") is False
    assert ours == theirs
