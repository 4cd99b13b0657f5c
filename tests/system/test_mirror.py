# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mirrors as managers ask for them: to a node, to an NBD target, and before replication resumes."""

import os
import re
import subprocess
import time

import pytest

from blockstep import QmpError, free_port, make_file, run
from test_sequences import Managed

MIB = 1 << 20
SIZE = 64 * MIB


def data_bytes(path):
    return path.stat().st_blocks * 512


class Guest:
    """Writes at random through an export until it is told to stop."""

    def __init__(self, socket, export="view", size=SIZE):
        self.process = subprocess.Popen(
            ["fio", "--name=guest", "--ioengine=nbd", f"--uri=nbd+unix:///{export}?socket={socket}",
             "--rw=randwrite", "--bs=4k-64k", "--iodepth=8", "--time_based", "--runtime=60",
             f"--size={size}", "--rate_iops=1000", "--randrepeat=0", "--norandommap"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=str(socket.parent))

    def stop(self):
        assert self.process.poll() is None, "the guest had an error"
        self.process.terminate()
        self.process.wait(20)


class Disks:
    """A daemon with a source of some data and some holes, offered to a guest."""

    def __init__(self, daemons, folder):
        self.folder = folder
        self.path = make_file(folder / "source.raw", SIZE)
        with self.path.open("r+b") as file:
            for piece in range(0, 64, 8):
                file.seek(piece * MIB)
                file.write(bytes([piece + 1]) * (MIB + 4096))
        self.socket = folder / "user.sock"
        self.daemon = daemons.start(
            "--blockdev", f"file,node-name=source,filename={self.path}",
            "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
            "--export", "type=nbd,id=e,node-name=source,name=view,writable=on")
        self.qmp = self.daemon.qmp

    def add(self, name, size=SIZE):
        path = make_file(self.folder / f"{name}.raw", size)
        self.qmp.cmd("blockdev-add", driver="file", node_name=name, filename=str(path))
        return path

    def same(self, other):
        run("cmp", self.path, other)

    def job(self, job_id):
        return {job["device"]: job for job in self.qmp.cmd("query-block-jobs")}[job_id]


@pytest.fixture
def disks(daemons, folder):
    return Disks(daemons, folder)


def test_a_mirror_to_a_node_under_writes_and_what_a_cancel_leaves(disks):
    target = disks.add("copy")
    guest = Guest(disks.socket)
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full")
    ready = disks.qmp.event("BLOCK_JOB_READY", device="m")["data"]
    assert ready["type"] == "mirror" and ready["len"] >= SIZE
    assert disks.job("m")["ready"]
    guest.stop()
    disks.qmp.cmd("block-job-cancel", device="m")
    done = disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
    assert "error" not in done and done["offset"] == done["len"]
    assert disks.qmp.cmd("query-jobs") == []
    disks.same(target)


def test_holes_stay_holes(disks):
    target = disks.add("copy")
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full")
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    disks.qmp.cmd("block-job-cancel", device="m")
    disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")
    disks.same(target)
    assert data_bytes(target) <= data_bytes(disks.path) + MIB


@pytest.mark.commands("block-job-complete", "block-job-dismiss")
def test_a_complete_under_writes_loses_none(disks):
    target = disks.add("copy")
    guest = Guest(disks.socket)
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full",
                  auto_dismiss=False)
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    disks.qmp.cmd("block-job-complete", device="m")
    disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")
    disks.qmp.event("JOB_STATUS_CHANGE", id="m", status="concluded")
    disks.qmp.cmd("block-job-dismiss", id="m")
    disks.qmp.cmd("blockdev-del", node_name="source")
    guest.stop()
    run("qemu-io", "-f", "raw", "-c", "write -P 77 1M 1M", f"nbd+unix:///view?socket={disks.socket}")
    assert target.read_bytes()[MIB:2 * MIB] == b"\x4d" * MIB


@pytest.mark.commands("block-job-pause", "block-job-resume", "block-job-set-speed",
                      "block-job-cancel")
def test_verbs_of_a_mirror_that_is_slow(disks):
    target = disks.add("copy")
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full",
                  speed=MIB, buf_size=MIB)
    with pytest.raises(QmpError, match="state .running. cannot accept"):
        disks.qmp.cmd("block-job-complete", device="m")
    with pytest.raises(QmpError, match="mirror job 'm'"):
        disks.qmp.cmd("blockdev-del", node_name="copy")
    disks.qmp.cmd("block-job-pause", device="m")
    disks.qmp.event("JOB_STATUS_CHANGE", id="m", status="paused")
    assert disks.job("m")["paused"] and disks.job("m")["speed"] == MIB
    with pytest.raises(QmpError, match="paused"):
        disks.qmp.cmd("block-job-cancel", device="m")
    disks.qmp.cmd("block-job-resume", device="m")
    disks.qmp.cmd("block-job-set-speed", device="m", speed=0)
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    disks.qmp.cmd("job-complete", id="m")
    disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")
    disks.same(target)
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="copy", target="source", sync="full",
                  speed=MIB)
    disks.qmp.cmd("block-job-cancel", device="m")
    disks.qmp.event("BLOCK_JOB_CANCELLED", device="m")


@pytest.mark.parametrize("form", ["nbd+unix:///d?socket={}", "nbd:unix:{}:exportname=d"])
@pytest.mark.commands("drive-mirror")
def test_a_drive_mirror_to_qemu_nbd(disks, folder, form):
    target, socket = make_file(folder / "copy.raw", SIZE), folder / "t.sock"
    server = subprocess.Popen(["qemu-nbd", "-f", "raw", "-x", "d", "-k", str(socket), "-t",
                               "--discard=unmap", "--fork", "--pid-file", f"{folder}/pid", str(target)])
    assert server.wait(20) == 0
    pid = int((folder / "pid").read_text())
    try:
        guest = Guest(disks.socket)
        disks.qmp.cmd("drive-mirror", job_id="m", device="source", target=form.format(socket),
                      mode="existing", format="raw", sync="full")
        disks.qmp.event("BLOCK_JOB_READY", device="m")
        guest.stop()
        disks.qmp.cmd("block-job-cancel", device="m")
        assert "error" not in disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
    finally:
        run("kill", pid)
    disks.same(target)


def test_a_target_that_dies_fails_the_job_and_not_the_guest(disks, folder, daemons):
    target, socket = make_file(folder / "copy.raw", SIZE), folder / "t.sock"
    other = daemons.start("--blockdev", f"file,node-name=d,filename={target}",
                          "--nbd-server", f"addr.type=unix,addr.path={socket}",
                          "--export", "type=nbd,id=e,node-name=d,name=d,writable=on", name="other")
    disks.qmp.cmd("drive-mirror", job_id="m", device="source", mode="existing", format="raw",
                  target=f"nbd+unix:///d?socket={socket}", sync="full", speed=16 * MIB)
    guest = Guest(disks.socket)
    other.kill()
    done = disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
    assert "target node" in done["error"]
    disks.qmp.event("BLOCK_JOB_ERROR", device="m", action="report")
    guest.stop()


def test_a_target_that_is_full_is_named(disks, folder):
    server = subprocess.Popen(["nbdkit", "-f", "-U", f"{folder}/t.sock", "--filter=error", "memory",
                               str(SIZE), "error-pwrite=ENOSPC", "error-pwrite-rate=100%"])
    try:
        end = time.monotonic() + 20
        while run("nbdinfo", "--size", f"nbd+unix:///?socket={folder}/t.sock",
                  check=False) != f"{SIZE}\n":
            assert server.poll() is None and time.monotonic() < end
        disks.qmp.cmd("drive-mirror", job_id="m", device="source", mode="existing", format="raw",
                      target=f"nbd+unix:///?socket={folder}/t.sock", sync="full", granularity=4096)
        done = disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
        assert "No space left" in done["error"]
    finally:
        server.terminate()
        server.wait(20)


def test_with_write_blocking_the_target_has_what_the_guest_wrote(disks):
    target = disks.add("copy")
    guest = Guest(disks.socket)
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full",
                  copy_mode="write-blocking")
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    guest.stop()
    disks.qmp.cmd("x-blockdev-drain", node_name="source", subtree=True)
    for number, command in enumerate(["write -P 81 5M 300k", "write -z 9M 70k", "write -P 82 777 99"]):
        run("qemu-io", "-f", "raw", "-c", command, f"nbd+unix:///view?socket={disks.socket}")
        offset, length = [(5 * MIB, 300 << 10), (9 * MIB, 70 << 10), (777, 99)][number]
        source, copy = (path.read_bytes()[offset:offset + length] for path in (disks.path, target))
        assert source == copy
    disks.qmp.cmd("block-job-complete", device="m")
    assert "error" not in disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]


def test_a_bitmap_says_what_a_later_mirror_copies(disks):
    target = disks.add("copy")
    run("cp", disks.path, target)
    disks.qmp.cmd("block-dirty-bitmap-add", node="source", name="since")
    run("qemu-io", "-f", "raw", "-c", "write -P 99 3M 64k", f"nbd+unix:///view?socket={disks.socket}")
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="bitmap",
                  bitmap="since")
    ready = disks.qmp.event("BLOCK_JOB_READY", device="m")["data"]
    assert ready["len"] == 65536
    disks.qmp.cmd("block-job-cancel", device="m")
    assert "error" not in disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
    disks.same(target)


@pytest.mark.parametrize("action", ["report", "stop"])
def test_a_target_that_vanishes_is_named_with_the_offset(disks, folder, daemons, action):
    target, socket = make_file(folder / "copy.raw", SIZE), folder / "t.sock"
    other = daemons.start("--blockdev", f"file,node-name=d,filename={target}",
                          "--nbd-server", f"addr.type=unix,addr.path={socket}",
                          "--export", "type=nbd,id=e,node-name=d,name=d,writable=on", name="other")
    disks.qmp.cmd("blockdev-add", driver="nbd", node_name="far", export="d", reconnect_delay=0,
                  server={"type": "unix", "path": str(socket)})
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="far", sync="full",
                  speed=16 * MIB, on_target_error=action)
    guest = Guest(disks.socket)
    disks.qmp.event("JOB_STATUS_CHANGE", id="m", status="running")
    other.kill()
    disks.qmp.event("BLOCK_JOB_ERROR", device="m", action=action, operation="write")
    named = r"cannot \w+ \d+ bytes at offset \d+ of target node 'far'"
    if action == "report":
        assert re.search(named, disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]["error"])
    else:
        disks.qmp.event("JOB_STATUS_CHANGE", id="m", status="paused")
        assert disks.job("m")["io-status"] == "failed"
        assert re.search(named, disks.daemon.log_text())
        disks.qmp.cmd("block-job-cancel", device="m", force=True)
        disks.qmp.event("BLOCK_JOB_CANCELLED", device="m")
    guest.stop()


def test_a_target_that_is_cut_short_is_no_copy(disks):
    target = disks.add("copy")
    guest = Guest(disks.socket)
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full")
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    guest.stop()
    end = time.monotonic() + 20
    while (job := disks.job("m"))["offset"] != job["len"]:
        assert time.monotonic() < end
    os.truncate(target, 4096)
    disks.qmp.cmd("block-job-cancel", device="m")
    done = disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
    assert "cannot flush target node 'copy': Input/output error" in done["error"]
    assert "somebody else has truncated it" in disks.daemon.log_text()
    run("qemu-io", "-f", "raw", "-c", "write -P 77 1M 1M", f"nbd+unix:///view?socket={disks.socket}")


def test_a_full_target_stops_the_mirror_until_there_is_room(disks, folder):
    make_file(folder / "copy.raw", SIZE)
    disks.qmp.cmd("blockdev-add", driver="blkdebug", node_name="copy",
                  inject=[{"kind": "write", "errno": 28, "nth": 10, "count": 2}],
                  file={"driver": "file", "filename": f"{folder}/copy.raw"})
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="copy", sync="full",
                  on_target_error="enospc", buf_size=MIB)
    guest = Guest(disks.socket)
    for _ in range(2):
        disks.qmp.event("BLOCK_JOB_ERROR", device="m", action="stop")
        disks.qmp.event("JOB_STATUS_CHANGE", id="m", status="paused")
        assert disks.job("m")["io-status"] == "nospace" and disks.job("m")["paused"]
        disks.qmp.cmd("block-job-resume", device="m")
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    guest.stop()
    disks.qmp.cmd("block-job-cancel", device="m")
    assert "error" not in disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")["data"]
    disks.same(folder / "copy.raw")


def test_what_cannot_be_mirrored_is_refused_with_the_reason(disks):
    disks.add("small", SIZE - MIB)
    disks.add("copy")
    mirror = {"job-id": "m", "device": "source", "target": "copy", "sync": "full"}
    for change, text in [
            ({"device": "nobody"}, "Cannot find device='nobody'"),
            ({"target": "nobody"}, "Cannot find device='nobody'"),
            ({"target": "source"}, "same disk"),
            ({"target": "small"}, "must be equal"),
            ({"sync": "bitmap"}, "'bitmap' goes with sync mode 'bitmap'"),
            ({"bitmap": "b"}, "'bitmap' goes with sync mode 'bitmap'"),
            ({"sync": "bitmap", "bitmap": "b"}, "'b'"),
            ({"sync": "incremental"}, "use bitmap"),
            ({"sync": "all"}, "sync"),
            ({"granularity": 1000}, "granularity"),
            ({"copy-mode": "sometimes"}, "copy-mode"),
            ({"on-target-error": "never"}, "on-target-error")]:
        with pytest.raises(QmpError, match=text):
            disks.qmp.cmd("blockdev-mirror", {**mirror, **change})
    drive = {**mirror, "mode": "existing", "format": "raw"}
    for change, text in [
            ({"mode": "absolute-paths"}, "existing"), ({"format": "qcow2"}, "raw"),
            ({"target": "nbd://"}, "not an address"), ({"target": "nbd://h:1/%zz"}, "not an address"),
            ({"target": "ssh://h/x"}, "protocol"), ({"target": ""}, "1 to 4096"),
            ({"target": "/no/such/file"}, "/no/such/file"),
            ({"target": f"nbd://127.0.0.1:{free_port()}/x"}, "refused")]:
        with pytest.raises(QmpError, match=text):
            disks.qmp.cmd("drive-mirror", {**drive, **change})
    assert disks.qmp.cmd("query-jobs") == []
    names = {node["node-name"] for node in disks.qmp.cmd("query-named-block-nodes")}
    assert names == {"source", "small", "copy"}


def test_a_primary_gets_a_new_secondary(daemons, folder):
    """The sequence of QEMU's COLO guide: mirror, stop, cancel, and replication resumes."""
    pair = Managed(daemons, folder)
    primary, secondary = pair.primary.qmp, pair.secondary.qmp
    pair.io("p", "write -P 1 0 8M", "write -P 2 32M 1M")
    secondary.cmd("nbd-server-start", {"addr": {
        "type": "inet", "data": {"host": "127.0.0.1", "port": str(pair.port)}}})
    secondary.cmd("nbd-server-add", device="disk0", writable=True, server="default")
    run("qemu-io", "-f", "raw", "-c", "write -P 9 0 16M", f"nbd://127.0.0.1:{pair.port}/disk0")
    guest = Guest(folder / "p.sock")
    primary.cmd("drive-mirror", device="colo-disk0", job_id="resync", mode="existing", format="raw",
                target=f"nbd://127.0.0.1:{pair.port}/disk0", sync="full")
    primary.event("BLOCK_JOB_READY", device="resync")
    guest.stop()
    pair.io("p", "write -P 3 4M 1M")
    primary.cmd("stop")
    primary.cmd("block-job-cancel", device="resync")
    primary.event("BLOCK_JOB_COMPLETED", device="resync")
    run("cmp", folder / "p.raw", folder / "s.raw")

    secondary.cmd("xen-set-replication", enable=True, primary=False)
    pair.start_primary()
    primary.cmd("cont")
    pair.io("p", "write -P 5 6M 1M")
    pair.checkpoint()
    pair.io("p", "write -P 6 5M 3M")
    pair.primary.kill()
    secondary.cmd("x-colo-lost-heartbeat")
    pair.io("s", "read -P 3 4M 1M", "read -P 5 6M 1M")
