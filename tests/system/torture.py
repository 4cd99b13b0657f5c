# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the torture tests share: a small NBD client, a second client that keeps watch, and what a
daemon holds.

BLOCKSTEP_TORTURE sets how many bad connections of each kind are made (default 10000).
"""

import multiprocessing
import os
import random
import select
import socket
import struct
import time
from pathlib import Path

SLOW = float(os.environ.get("BLOCKSTEP_TEST_SLOW", "1"))
COUNT = int(os.environ.get("BLOCKSTEP_TORTURE", "10000" if SLOW == 1 else "500"))
WARM_UP = max(COUNT // 10, 100)
DEADLINE_S = 20 * SLOW
SERVED_WITHIN_S = 1 * SLOW
MAX_BEHIND = 10  # connections that the daemon may still have to close
MAX_GROWTH_BYTES = 1 << 20
# A sanitizer keeps freed memory to itself; there the count of descriptors has to do.
MEMORY_TELLS = "ASAN_OPTIONS" not in os.environ

OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
OPT_EXPORT_NAME, OPT_LIST, OPT_GO = 1, 3, 7
REP_ACK = 1
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = 0, 1, 2, 3, 4
EINVAL, ENOSPC = 22, 28
FLAGS = struct.pack(">I", 3)  # fixed newstyle, no zeroes
EXPORT = "disk"
DISK_BYTES = 8 << 20
PATTERN = 0x5A


def option(number, payload=b"", length=None):
    return struct.pack(">QII", OPTION_MAGIC, number,
                       len(payload) if length is None else length) + payload


def go(export=EXPORT):
    name = export.encode()
    return option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))


def request(kind, offset, length, payload=b"", flags=0, cookie=1):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, cookie, offset, length) + payload


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))  # waits while the listener's queue is full; with a timeout it would not
    sock.settimeout(DEADLINE_S)
    return sock


def receive(sock, length):
    data = bytearray()
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise ConnectionError("closed")
        data += part
    return bytes(data)


def transmission(sock):
    """A whole good handshake."""
    receive(sock, 18)
    sock.sendall(FLAGS + go())
    kind = 0
    while kind != REP_ACK:
        _, _, kind, length = struct.unpack(">QIII", receive(sock, 20))
        assert kind < 1 << 31, f"the export is refused: {kind:#x}"
        receive(sock, length)


def answer(sock):
    """The error of a simple reply; no more than that is read."""
    magic, error, _ = struct.unpack(">IIQ", receive(sock, 16))
    assert magic == 0x67446698
    return error


def until_closed(sock):
    """Ends our side and drops what still comes until the server has closed its own."""
    try:
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass


class Watch:
    """Another client, a process of its own: connects, reads, compares, and again, all the time.
    Ends with how long its longest answer took."""

    def __init__(self, path):
        self.receiver, sender = multiprocessing.Pipe(duplex=False)
        self.stop_flag = multiprocessing.Event()
        self.process = multiprocessing.Process(target=self._run, args=(path, sender), daemon=True)
        self.process.start()
        sender.close()
        assert self._receive() == "served"

    def _receive(self):
        assert self.receiver.poll(DEADLINE_S), "the other client is not served any more"
        try:
            return self.receiver.recv()
        except EOFError:
            raise AssertionError("the other client was served badly: its error is above") from None

    def _run(self, path, sender):
        longest, served = 0, 0
        while not self.stop_flag.is_set():
            with connect(path) as sock:
                transmission(sock)
                for number in range(50):
                    began = time.monotonic()
                    sock.sendall(request(CMD_READ, number * 4096, 4096))
                    assert answer(sock) == 0
                    assert receive(sock, 4096) == bytes([PATTERN]) * 4096
                    longest, served = max(longest, time.monotonic() - began), served + 1
                    if served == 1:
                        sender.send("served")
                    select.select([], [], [], 0.001)
                sock.sendall(request(CMD_DISC, 0, 0))
        sender.send(longest)

    def finish(self):
        self.stop_flag.set()
        try:
            longest = self._receive()
        finally:
            self.process.kill()
            self.process.join()
        assert longest < SERVED_WITHIN_S, f"the other client waited for {longest:.3f} s"


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_bytes(pid):
    """Memory of its own, not that of shared files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def settled_descriptors(pid):
    """Once all is up: the control socket may answer before that."""
    same, last = 0, 0
    while same < 10:
        now = descriptors(pid)
        same, last = (same + 1, now) if now == last else (0, now)
        select.select([], [], [], 0.005)
    return last


def wait_descriptors(pid, expected):
    """The daemon hears of the last close only after us."""
    end = time.monotonic() + DEADLINE_S
    while descriptors(pid) != expected and time.monotonic() < end:
        select.select([], [], [], 0.005)
    assert descriptors(pid) == expected, sorted(
        os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())


def pace(pid, idle):
    """Lets the daemon catch up, so that its limit of connections is not what is met."""
    end = time.monotonic() + DEADLINE_S
    while descriptors(pid) > idle + MAX_BEHIND:
        assert time.monotonic() < end, "the daemon does not close the connections that have ended"
        select.select([], [], [], 0.001)


def torture(daemon, watched, attack, count=COUNT, warm_up=WARM_UP):
    """attack(rng) again and again, while another client is served; the daemon must hold no more
    afterwards than before. The warm-up fills pools, which keep what they have."""
    pid = daemon.process.pid
    idle = settled_descriptors(pid)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    watch = Watch(watched)
    try:
        for number in range(warm_up + count):
            if number == warm_up:
                before = resident_bytes(pid)
            if number % 8 == 0:
                pace(pid, idle)
            attack(rng)
    finally:
        watch.finish()
    wait_descriptors(pid, idle)
    growth = resident_bytes(pid) - before
    if MEMORY_TELLS:
        assert growth < MAX_GROWTH_BYTES, f"{growth} bytes more after {count} connections"
