# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writing to a disk that cannot keep up must not hold up whoever asks for something else: the loop
serves all with one thread. Seen from a client of a node that needs no disk."""

import multiprocessing
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from blockstep import make_file
from torture import CMD_DISC, CMD_READ, CMD_WRITE, SLOW, answer, connect, receive, request, transmission

MIB = 1 << 20
DISK_BYTES = 256 * MIB
SECONDS = 4
WRITES_UNDER_WAY = 8
MAX_STALL_S = 0.005 * SLOW
PROBE_PAUSE_S = 0.0002
MAX_SHARE = 0.001  # p99.9
# Page cache that may be dirty: little, so that the kernel makes writers wait all the time.
DIRTY_BYTES = 16 * MIB
LIMITS = {"dirty_background_bytes": DIRTY_BYTES // 2, "dirty_bytes": DIRTY_BYTES}
# What the limits were before: a ratio, when written back, replaces the bytes.
RATIOS = ("dirty_background_ratio", "dirty_ratio")


@pytest.fixture
def real_folder():
    """On a file system that has a disk below it."""
    for parent in (tempfile.gettempdir(), "/var/tmp", Path.home()):
        # Not by the table of mounts: in a chroot it does not tell.
        kind = subprocess.run(["stat", "-f", "-c", "%T", str(parent)], capture_output=True, text=True,
                              check=True).stdout.strip()
        if kind in ("ext2/ext3", "xfs", "btrfs"):
            path = Path(tempfile.mkdtemp(prefix="bs-", dir=parent))
            yield path
            shutil.rmtree(path)
            return
    pytest.skip("no file system on a disk here")


@pytest.fixture
def little_page_cache():
    def read(name):
        return Path(f"/proc/sys/vm/{name}").read_text().strip()

    def write(name, value):
        Path(f"/proc/sys/vm/{name}").write_text(str(value))

    before = {name: read(name) for name in (*LIMITS, *RATIOS)}
    try:
        for name, value in LIMITS.items():
            write(name, value)
    except OSError:
        pytest.skip("the kernel's limits of the page cache cannot be set here")
    yield
    for name, value in before.items():
        if value != "0":
            write(name, value)


def write_all_the_time(path, stop, written):
    """Sequential writes of 1 MiB, several under way."""
    data = os.urandom(MIB)
    with connect(path) as sock:
        transmission(sock)
        number = 0
        while not stop.is_set() or number > written.value:
            while not stop.is_set() and number < written.value + WRITES_UNDER_WAY:
                sock.sendall(request(CMD_WRITE, number * MIB % DISK_BYTES, MIB, data))
                number += 1
            assert answer(sock) == 0
            written.value += 1
        sock.sendall(request(CMD_DISC, 0, 0))


def run_before_others(pid):
    """What is measured is how long the loop waits, not how busy the machine is otherwise."""
    try:
        os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pytest.skip("without real-time priority the machine's load would be measured")


def probe(path, seconds):
    """How long single reads took, in seconds."""
    taken = []
    with connect(path) as sock:
        transmission(sock)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            sock.sendall(request(CMD_READ, 0, 512))
            assert answer(sock) == 0
            receive(sock, 512)
            taken.append(time.monotonic() - began)
            select.select([], [], [], PROBE_PAUSE_S)
    return taken


def share_beyond(taken, limit_s):
    """How likely it is that a request that comes at any time waits longer than that. The reads
    follow each other, so a stall holds up only one of them: to count reads would hide it."""
    return sum(max(0, duration - limit_s) for duration in taken) / SECONDS


def test_a_disk_that_cannot_keep_up_does_not_stall_the_loop(daemons, real_folder, folder,
                                                            little_page_cache):
    disk = make_file(real_folder / "disk.raw", DISK_BYTES, 1)
    slow, quick = folder / "slow.sock", folder / "quick.sock"
    daemon = daemons.start(
        "--blockdev", f"file,node-name=slow,filename={disk}",
        "--blockdev", "null-co,node-name=disk,size=1M,read-zeroes=on",
        "--nbd-server", f"addr.type=unix,addr.path={slow},id=slow",
        "--nbd-server", f"addr.type=unix,addr.path={quick},id=quick",
        "--export", "nbd,id=slow,node-name=slow,name=disk,server=slow,writable=on",
        "--export", "nbd,id=quick,node-name=disk,server=quick")
    stop, written = multiprocessing.Event(), multiprocessing.Value("L", 0, lock=False)
    writer = multiprocessing.Process(target=write_all_the_time, args=(slow, stop, written))
    writer.start()
    try:
        run_before_others(daemon.process.pid)
        run_before_others(0)
        taken = probe(quick, SECONDS)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        stop.set()
        writer.join()
    assert written.value > 2 * DIRTY_BYTES // MIB, f"only {written.value} MiB written: no pressure"
    share = share_beyond(taken, MAX_STALL_S)
    text = (f"{written.value} MiB written, {len(taken)} reads, longest {max(taken) * 1000:.2f} ms, "
            f"who comes at any time waits longer than {MAX_STALL_S * 1000:.0f} ms "
            f"in {share:.4%} of cases")
    print(text)
    assert share <= MAX_SHARE, text
