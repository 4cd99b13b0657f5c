# SPDX-License-Identifier: LGPL-2.1-or-later
"""Drivers through a whole daemon, with stock clients: raw, throttle, blklogwrites, quorum,
copy-before-write."""

import random
import shutil
import struct
import time

import nbd
import pytest

from blockstep import QmpError, make_file, run

MIB = 1 << 20
SECTOR = 512


def uri(sock, export="disk"):
    return f"nbd+unix:///{export}?socket={sock}"


def serve(daemons, folder, *blockdevs, node="top", writable="on"):
    """A daemon with these nodes that exports one of them as "disk": (daemon, socket)."""
    sock = folder / "nbd.sock"
    options = [word for text in blockdevs for word in ("--blockdev", text)]
    daemon = daemons.start(*options, "--nbd-server", f"addr.type=unix,addr.path={sock}",
                           "--export",
                           f"type=nbd,id=e,node-name={node},name=disk,writable={writable}")
    return daemon, sock


def refused(daemon, **options):
    with pytest.raises(QmpError) as caught:
        daemon.qmp.cmd("blockdev-add", options)
    return caught.value.desc


# --- raw ---

def test_raw_shows_a_window_and_keeps_the_rest(daemons, folder):
    disk = folder / "disk.raw"
    disk.write_bytes(b"\xee" * (8 * MIB))
    _, sock = serve(daemons, folder,
                    f"driver=raw,node-name=top,offset=1M,size=2M,file.driver=file,file.filename={disk}")
    assert run("nbdinfo", "--size", uri(sock)).strip() == str(2 * MIB)
    run("qemu-io", "-f", "raw", "-c", "read -P 0xee 0 2M", "-c", "write -P 7 0 2M",
        "-c", "write -z 512k 64k", "-c", "discard 1M 64k", "-c", "flush", uri(sock))
    content = disk.read_bytes()
    assert content[:MIB] == b"\xee" * MIB and content[3 * MIB:] == b"\xee" * (5 * MIB)
    window = bytearray(b"\x07" * (2 * MIB))
    window[512 << 10:576 << 10] = bytes(64 << 10)
    window[MIB:MIB + (64 << 10)] = bytes(64 << 10)
    assert content[MIB:3 * MIB] == window
    # The same options mean the same to QEMU.
    stock = f"driver=raw,offset=1M,size=2M,file.driver=file,file.locking=off,file.filename={disk}"
    run("qemu-img", "compare", "-U", "--image-opts", stock,
        f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={sock},file.export=disk")


def test_raw_refuses_windows_that_do_not_fit(daemons, folder):
    disk = make_file(folder / "disk.raw", MIB)
    daemon, _ = serve(daemons, folder, f"driver=file,node-name=f,filename={disk}", node="f")
    for options in ({"offset": 2 * MIB}, {"offset": 512, "size": MIB}, {"size": 1000}):
        text = refused(daemon, **{"driver": "raw", "node-name": "r", "file": "f", **options})
        assert "'offset'" in text or "'size'" in text


# --- throttle ---

def test_throttle_holds_a_client_to_its_rate(daemons, folder):
    _, sock = serve(daemons, folder, "driver=throttle,node-name=top,limits.bps-write=8M,"
                    "file.driver=null-co,file.size=64M")
    began = time.monotonic()
    run("qemu-io", "-f", "raw", "-c", "write 0 4M", "-c", "write 4M 4M", "-c", "read 0 32M",
        uri(sock))
    took = time.monotonic() - began
    # The second 4 MiB wait until what exceeds 0.8 MiB of the first has leaked out.
    assert took >= 0.39


@pytest.mark.parametrize("command", [
    ("block-export-del", {"id": "e", "mode": "hard"}), ("nbd-server-stop", {})], ids=lambda c: c[0])
def test_an_export_goes_at_once_though_its_requests_are_throttled(daemons, folder, command):
    daemon, sock = serve(daemons, folder, "driver=throttle,node-name=top,limits.iops-total=1,"
                         "file.driver=null-co,file.size=64M")
    client = nbd.NBD()
    client.connect_uri(uri(sock))
    buffer = nbd.Buffer.from_bytearray(bytearray(4096))
    for _ in range(1000):
        client.aio_pwrite(buffer, 0)
    while client.aio_in_flight() == 1000:
        client.poll(1000)
    # The others would take a quarter of an hour.
    daemon.qmp.cmd(*command)
    daemon.qmp.event("BLOCK_EXPORT_DELETED", id="e")


@pytest.mark.commands("object-add", "object-del")
def test_nodes_of_a_throttle_group_share_its_limits(daemons, folder):
    sock = folder / "nbd.sock"
    daemon = daemons.start(
        "--object", "throttle-group,id=tg,limits.bps-write=4M",
        *(word for name in ("a", "b") for word in (
            "--blockdev", f"driver=throttle,node-name={name},throttle-group=tg,"
                          "file.driver=null-co,file.size=64M")),
        "--nbd-server", f"addr.type=unix,addr.path={sock}",
        *(word for name in ("a", "b") for word in (
            "--export", f"type=nbd,id={name},node-name={name},name={name},writable=on")))
    began = time.monotonic()
    run("qemu-io", "-f", "raw", "-c", "write 0 2M", uri(sock, "a"))
    run("qemu-io", "-f", "raw", "-c", "write 0 64k", uri(sock, "b"))
    # What is more than 0.4 MiB of the first leaks out at 4 MiB a second.
    assert time.monotonic() - began >= 0.39
    with pytest.raises(QmpError) as caught:
        daemon.qmp.cmd("object-del", id="tg")
    assert "in use" in caught.value.desc
    daemon.qmp.cmd("object-add", {"qom-type": "throttle-group", "id": "other",
                                  "limits": {"iops-total": 100, "iops-total-max": 200}})
    daemon.qmp.cmd("blockdev-add", {"driver": "throttle", "node-name": "c",
                                    "throttle-group": "other", "file": {"driver": "null-co"}})
    daemon.qmp.cmd("blockdev-del", {"node-name": "c"})
    daemon.qmp.cmd("object-del", id="other")
    with pytest.raises(QmpError):
        daemon.qmp.cmd("object-add", {"qom-type": "throttle-group", "id": "bad",
                                      "limits": {"iops-total": 100, "iops-read": 100}})


# --- blklogwrites ---

def read_log(data):
    """Entries of a dm-log-writes log: (sector, sectors, flags, data)."""
    magic, version, count, size = struct.unpack_from("<QQQI", data)
    assert (magic, version) == (0x6a736677736872, 1)
    position, entries = 1, []
    for _ in range(count):
        sector, sectors, flags, length = struct.unpack_from("<QQQQ", data, position * size)
        assert flags & ~0xf == 0
        position += 1
        body = b""
        if not flags & 4:
            body = data[position * size:(position + sectors) * size]
            assert len(body) == sectors * size
            position += sectors
        entries.append((sector, sectors, flags, body))
    return size, entries


def replay(log, length, flushes):
    """The disk after that many flushes."""
    size, entries = read_log(log.read_bytes())
    disk = bytearray(length)
    for sector, sectors, flags, body in entries:
        if flags & 1:
            flushes -= 1
            if flushes == 0:
                return disk
        elif flags & 4:
            disk[sector * size:(sector + sectors) * size] = bytes(sectors * size)
        else:
            disk[sector * size:(sector + sectors) * size] = body
    assert flushes == 0, "the log has fewer flushes"
    return disk


def log_options(disk, log, *more):
    return ",".join(["driver=blklogwrites,node-name=top,file.driver=file",
                     f"file.filename={disk},log.driver=file,log.filename={log}", *more])


def test_a_replay_of_the_log_gives_the_disk_at_each_flush(daemons, folder):
    disk, log = make_file(folder / "disk.raw", 4 * MIB), make_file(folder / "log", 0)
    daemon, sock = serve(daemons, folder, log_options(disk, log))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    client = nbd.NBD()
    client.connect_uri(uri(sock))
    snapshots = []
    for _ in range(5):
        for _ in range(20):
            length = rng.randrange(1, 100) * 300
            offset = rng.randrange(4 * MIB - length)
            client.pwrite(rng.randbytes(length), offset)
        client.zero(65536, rng.randrange(60) * 65536)
        client.trim(65536, rng.randrange(60) * 65536)
        client.flush()
        snapshots.append(disk.read_bytes())
    # Named by the superblock while the daemon runs: that is what a crash is about.
    for number, content in enumerate(snapshots, 1):
        assert replay(log, 4 * MIB, number) == content
    client.shutdown()
    daemon.kill()
    assert replay(log, 4 * MIB, 5) == snapshots[-1]


def test_qemu_goes_on_where_our_log_ends_and_we_where_qemus_ends(daemons, folder):
    disk, log = make_file(folder / "disk.raw", 4 * MIB), make_file(folder / "log", 0)
    daemon, sock = serve(daemons, folder, log_options(disk, log, "log-sector-size=4096"))
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", "-c", "write -z 8k 4k", "-c", "flush",
        uri(sock))
    daemon.stop()
    ours = len(read_log(log.read_bytes())[1])
    run("qemu-io", "--image-opts", f"driver=blklogwrites,log-append=on,file.driver=file,"
        f"file.filename={disk},log.driver=file,log.filename={log}",
        "-c", "write -P 2 64k 64k", "-c", "flush")
    size, entries = read_log(log.read_bytes())
    assert size == 4096 and len(entries) > ours
    sock.unlink(missing_ok=True)
    daemon, sock = serve(daemons, folder, log_options(disk, log, "log-append=on"))
    run("qemu-io", "-f", "raw", "-c", "write -P 3 128k 64k", "-c", "flush", uri(sock))
    daemon.stop()
    flushes = sum(flags & 1 for _, _, flags, _ in read_log(log.read_bytes())[1])
    assert replay(log, 4 * MIB, flushes) == disk.read_bytes()


# --- quorum ---

def quorum(folder, names, *more):
    children = []
    for i, name in enumerate(names):
        children.append(f"children.{i}.driver=file,children.{i}.node-name={name},"
                        f"children.{i}.filename={folder / name}")
    return ",".join(["driver=quorum,node-name=top", *children, *more])


def corrupt(path, offset, length):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xbd" * length)


def test_quorum_outvotes_and_corrects_a_damaged_child(daemons, folder):
    for name in ("c0", "c1", "c2"):
        make_file(folder / name, 4 * MIB)
    daemon, sock = serve(daemons, folder, quorum(folder, ["c0", "c1", "c2"], "vote-threshold=2",
                                                 "rewrite-corrupted=on"))
    run("qemu-io", "-f", "raw", "-c", "write -P 9 0 4M", "-c", "flush", uri(sock))
    corrupt(folder / "c0", MIB, 4096)
    run("qemu-io", "-f", "raw", "-c", "read -P 9 0 4M", uri(sock))
    data = daemon.qmp.event("QUORUM_REPORT_BAD", **{"node-name": "c0"})["data"]
    assert data["type"] == "read" and "error" not in data
    assert set(data) == {"type", "node-name", "sector-num", "sectors-count"}
    first, count = data["sector-num"], data["sectors-count"]
    assert first <= MIB // SECTOR < first + count
    assert (folder / "c0").read_bytes() == b"\x09" * (4 * MIB)


def test_quorum_without_a_majority_fails_the_read(daemons, folder):
    for name in ("c0", "c1", "c2"):
        make_file(folder / name, MIB)
    daemon, sock = serve(daemons, folder, quorum(folder, ["c0", "c1", "c2"], "vote-threshold=2"))
    corrupt(folder / "c0", 0, 512)
    corrupt(folder / "c1", 8, 100)
    client = nbd.NBD()
    client.connect_uri(uri(sock))
    with pytest.raises(nbd.Error) as caught:
        client.pread(512, 0)
    assert caught.value.errno == "EIO"
    assert daemon.qmp.event("QUORUM_FAILURE")["data"] == \
        {"reference": "top", "sector-num": 0, "sectors-count": 1}
    assert client.pread(512, 512) == bytes(512)


@pytest.mark.commands("x-blockdev-change")
def test_quorum_children_come_and_go_under_load(daemons, folder):
    for name in ("c0", "c1", "c2", "c3"):
        make_file(folder / name, 4 * MIB)
    daemon, sock = serve(daemons, folder, quorum(folder, ["c0", "c1", "c2"], "vote-threshold=2"))
    qmp = daemon.qmp
    client = nbd.NBD()
    client.connect_uri(uri(sock))
    client.pwrite(b"\x01" * MIB, 0)
    qmp.cmd("x-blockdev-change", parent="top", child="children.2")
    client.pwrite(b"\x02" * MIB, MIB)
    shutil.copyfile(folder / "c0", folder / "c3")
    qmp.cmd("blockdev-add", {"driver": "file", "node-name": "c3", "filename": str(folder / "c3")})
    qmp.cmd("x-blockdev-change", parent="top", node="c3")
    client.pwrite(b"\x03" * MIB, 2 * MIB)
    # The last number is given again when its child has gone; so this one is number 2.
    with pytest.raises(QmpError):
        qmp.cmd("x-blockdev-change", parent="top", child="children.3")
    qmp.cmd("x-blockdev-change", parent="top", child="children.0")
    assert client.pread(3 * MIB, 0) == b"\x01" * MIB + b"\x02" * MIB + b"\x03" * MIB
    with pytest.raises(QmpError) as caught:
        qmp.cmd("x-blockdev-change", parent="top", child="children.1")
    assert "vote-threshold" in caught.value.desc
    client.shutdown()
    assert (folder / "c1").read_bytes() == (folder / "c3").read_bytes()


# --- copy-before-write ---

def test_a_point_in_time_is_exported_beside_the_disk(daemons, folder):
    disk = make_file(folder / "disk.raw", 4 * MIB, pattern=5)
    overlay = folder / "old.overlay"
    daemons.cli("image", "create", "-f", "overlay", overlay, "4M")
    daemon, sock = serve(daemons, folder, f"driver=file,node-name=d,filename={disk}",
                         f"driver=overlay,node-name=o,file.driver=file,file.filename={overlay}",
                         "driver=copy-before-write,node-name=top,file=d,target=o")
    qmp = daemon.qmp
    qmp.cmd("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "top"})
    qmp.cmd("block-export-add", type="nbd", id="s", node_name="snap", name="snap")
    run("qemu-io", "-f", "raw", "-c", "write -P 6 100k 1M", "-c", "discard 2M 64k", uri(sock))
    run("qemu-io", "-f", "raw", "-r", "-c", "read -P 5 0 4M", uri(sock, "snap"))
    run("qemu-io", "-f", "raw", "-r", "-c", "read -P 6 100k 1M", uri(sock))
    run("nbdcopy", uri(sock, "snap"), folder / "backup")
    assert (folder / "backup").read_bytes() == b"\x05" * (4 * MIB)
