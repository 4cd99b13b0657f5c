#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real pair of daemons under guests, and whatever may happen to processes, disks and the link between.

The simulator sees everything but the kernel, TLS and the libraries; this sees those. A seed makes a list
of operations, which `--seed N` repeats; what happens in them depends on time as well. Every sector that
is written is stamped with the number of its write (stamps.py), so that each read tells which of them it
shows. What is held, all the time:

- nothing acknowledged to the primary's guest is lost on the primary, and no request of it fails;
- the secondary shows its last checkpoint and its own writes, never anything newer, also after it was
  killed; a checkpoint falls between whole writes, of all disks at once;
- after a failover the same is true from the first read on, while the merge runs, while it is killed, and
  when the lost primary wakes up or what it had sent arrives;
- after a synchronisation both sides are the same;
- nothing takes longer than a deadline, and daemons that are told to end do so well.

A checkpoint may fail only after something was done to the pair. A full disk of the overlays needs the
right to mount a tmpfs; without it that operation does nothing.

    tests/system/torture_pair.py [--build DIR] [--seed N | --seeds A..B | --minutes M]
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbd

from bad_link import TO_CLIENT, TO_SERVER, Link
from stamps import SECTOR, History, View, Violation

SLOW = float(os.environ.get("BLOCKSTEP_TEST_SLOW", "1"))
DEADLINE_S = 60 * SLOW  # twice what a silent peer is given
SECTORS = 4096
DISK_BYTES = SECTORS * SECTOR
OVERLAYS_BYTES = 64 << 20
STEPS = 12
MAX_REQUEST_SECTORS = 256

# When the last writes of a killed primary arrive: never, or before or after a new one has synchronised the
# pair.
LATE = ["never", "before", "after"]

# How often each is drawn.
WEIGHTS = {"load": 10, "own_writes": 8, "checkpoint": 22, "kill_in_checkpoint": 6, "pause": 6,
           "slow": 4, "stall": 5, "cut_link": 6, "kill_secondary": 7, "kill_primary": 7, "kill_both": 3,
           "restart": 4, "fill": 4, "heal": 10, "fail_over": 9}


class Operation:
    def __init__(self, name, **arguments):
        self.name, self.arguments = name, arguments

    def __str__(self):
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.arguments.items())])


def draw(name, chance):
    """The arguments of an operation."""
    load = {"count": int(2 ** chance.uniform(4, 9)), "pattern": chance.randrange(1 << 32)}
    after = {"after": chance.randrange(load["count"])}
    milliseconds = {"milliseconds": chance.randrange(300)}
    way = {"direction": chance.choice([TO_SERVER, TO_CLIENT])}
    if name == "checkpoint":
        return {**load, "count": chance.choice([0, load["count"]]), "times": chance.randrange(1, 5)}
    if name == "kill_in_checkpoint":
        return {**load, "milliseconds": chance.uniform(0, 30)}
    if name == "pause":
        return {**load, **after, **milliseconds, "side": chance.choice("ps")}
    if name == "slow":
        return {**load, "milliseconds": chance.choice([1, 3, 10]), "count": chance.randrange(10, 60)}
    if name == "stall":
        given_up = chance.random() < 0.002  # half a minute each
        return {**load, **after, **way, **({"given_up": True} if given_up else milliseconds)}
    if name == "cut_link":
        return {**load, **way, "byte": int(2 ** chance.uniform(0, 21))}
    if name == "kill_primary":
        return {**load, **after, "late": chance.choice(LATE)}
    if name == "restart":
        return {"side": chance.choice("ps")}
    if name == "fill":
        return {**load, "left": chance.randrange(0, 1 << 18)}
    if name == "heal":
        return {**load, "fault": chance.choice(["", "", "kill_secondary", "cut", "kill_primary"]),
                "milliseconds": chance.uniform(0, 200)}
    if name == "fail_over":
        return {**load, **after, "how": chance.choice(["kill", "late", "stop", "isolate", "none"]),
                "kills": [chance.uniform(0, 40) for _ in range(chance.randrange(4))]}
    return {**load, **after} if name.startswith("kill") else load


def generate(seed):
    chance = random.Random(seed)
    setup = Operation("begin", disks=chance.randrange(1, 3), tls=chance.random() < 0.25,
                      standby=chance.random() < 0.7, fresh=chance.random() < 0.5)
    yield setup
    names = [name for name in WEIGHTS if name != "own_writes" or setup.arguments["standby"]]
    for name in chance.choices(names, [WEIGHTS[name] for name in names], k=STEPS):
        yield Operation(name, **draw(name, chance))


def area_of(chance):
    return SECTORS // 8 if chance.random() < 0.5 else SECTORS


def requests_of(pattern, count):
    """(kind, first sector, sectors, FUA) of a guest's requests: many in a small hot area."""
    chance = random.Random(pattern)
    kinds = ["write"] * 14 + ["read"] * 3 + ["zero", "discard", "flush"]
    for _ in range(count):
        length = int(2 ** chance.uniform(0, 8)) % MAX_REQUEST_SECTORS + 1
        yield (chance.choice(kinds), chance.randrange(area_of(chance) - length), length,
               chance.random() < 0.1)


def connect(socket_path, disk):
    handle = nbd.NBD()
    handle.set_request_block_size(False)
    handle.connect_uri(f"nbd+unix:///disk{disk}?socket={socket_path}")
    return handle


class Buffers:
    """For reads, used again and again: libnbd 1.14 never frees one that was given to it."""

    def __init__(self):
        self.spare = {}

    def get(self, length):
        spare = self.spare.setdefault(length, [])
        return spare.pop() if spare else nbd.Buffer(length)

    def put(self, buffer):
        self.spare[buffer.size()].append(buffer)


class Guest(threading.Thread):
    """Several requests at once to one disk. What becomes of them is told to the history."""

    DEPTH = 8

    def __init__(self, load, disk, requests):
        super().__init__(daemon=True)
        self.load, self.disk, self.requests = load, disk, requests
        self.lost = None
        self.failures = []
        self.handle = connect(load.socket_path, disk)

    def run(self):
        flying, requests = {}, iter(self.requests)
        try:
            request = next(requests, None)
            while request or flying:
                while request and len(flying) < self.DEPTH:
                    cookie, ended = self.submit(*request)
                    flying[cookie] = ended
                    request = next(requests, None)
                if self.handle.poll(int(DEADLINE_S * 1000)) == 0:
                    raise Violation(f"disk {self.disk}: no answer within {DEADLINE_S} s")
                for cookie in list(flying):
                    self.reap(cookie, flying)
            self.handle.shutdown()
        except nbd.Error as error:
            self.lost = error
        except Violation as violation:
            self.failures.append(violation)
        self.load.count_one(1 << 30)

    def submit(self, kind, first, length, fua):
        history, views = self.load.history, self.load.views
        offset, flags = first * SECTOR, nbd.CMD_FLAG_FUA if fua else 0
        if kind == "flush":
            return self.handle.aio_flush(), lambda: None
        if kind == "read":
            buffer, begin = nbd.Buffer(length * SECTOR), history.now()
            return self.handle.aio_pread(buffer, offset), lambda: views[0].look(
                self.disk, first, bytes(buffer.to_bytearray()), begin, clear=False)
        change = history.begin(kind, self.disk, first, length, views)
        if kind == "write":
            buffer = nbd.Buffer.from_bytearray(bytearray(change.content()))
            cookie = self.handle.aio_pwrite(buffer, offset, flags=flags)
            return cookie, lambda buffer=buffer: history.end(change)
        if kind == "zero":
            cookie = self.handle.aio_zero(length * SECTOR, offset, flags=flags)
        else:
            cookie = self.handle.aio_trim(length * SECTOR, offset, flags=flags)
        return cookie, lambda: history.end(change)

    def reap(self, cookie, flying):
        try:
            if not self.handle.aio_command_completed(cookie):
                return
        except nbd.Error as error:
            if self.handle.aio_is_dead() or self.handle.aio_is_closed() or error.errnum in (
                    "ENOTCONN", "ESHUTDOWN", "ECONNRESET", "EPIPE"):
                raise
            raise Violation(f"disk {self.disk}: a request failed: {error}") from error
        flying.pop(cookie)()
        self.load.count_one(1)


class Load:
    """Guests on all disks of a side."""

    def __init__(self, history, socket_path, views, disks, count, pattern):
        self.history, self.socket_path, self.views = history, socket_path, views
        self.changed, self.done = threading.Condition(), 0
        self.guests = [Guest(self, disk, requests_of(pattern + disk, count // disks))
                       for disk in range(disks)] if count else []
        for guest in self.guests:
            guest.start()

    def count_one(self, number):
        with self.changed:
            self.done += number
            self.changed.notify_all()

    def wait(self, count):
        """Until that many have been answered, or all that will be."""
        with self.changed:
            self.changed.wait_for(lambda: self.done >= count or not self.guests, DEADLINE_S)

    def finish(self, lost=False):
        """With `lost` the daemon was killed, so that the connection may have been."""
        for guest in self.guests:
            guest.join(DEADLINE_S * 2)
            if guest.is_alive():
                raise Violation(f"the guest of disk {guest.disk} hangs")
            if guest.failures:
                raise guest.failures[0]
            if guest.lost and not lost:
                raise Violation(f"the guest of disk {guest.disk} lost its connection: {guest.lost}")


class Watch(threading.Thread):
    """Reads what the secondary shows all the time, here and there."""

    DEPTH = 8

    def __init__(self, run, pattern):
        super().__init__(daemon=True)
        self.run_, self.chance = run, random.Random(pattern)
        self.enough = threading.Event()
        self.failure = None
        self.handles = [connect(run.socket("s"), disk) for disk in range(run.disks)]
        self.buffers = Buffers()
        self.start()

    def run(self):
        try:
            while not self.enough.is_set():
                for disk, handle in enumerate(self.handles):
                    self.read_some(disk, handle)
        except (nbd.Error, Violation) as failure:
            self.failure = failure

    def read_some(self, disk, handle):
        """Several at once, many where most is written."""
        view, flying = self.run_.s[0], {}
        for _ in range(self.DEPTH):
            count = self.chance.randrange(1, 128)
            first = self.chance.randrange(area_of(self.chance) - count)
            buffer, begin = self.buffers.get(count * SECTOR), self.run_.history.now()
            flying[handle.aio_pread(buffer, first * SECTOR)] = first, buffer, begin
        while flying:
            if handle.poll(int(DEADLINE_S * 1000)) == 0:
                raise Violation(f"disk {disk}: no answer within {DEADLINE_S} s")
            for cookie in [each for each in flying if handle.aio_command_completed(each)]:
                first, buffer, begin = flying.pop(cookie)
                content = bytes(buffer.to_bytearray())
                self.buffers.put(buffer)
                view.look(disk, first, content, begin)

    def finish(self, lost=False):
        self.enough.set()
        self.join(DEADLINE_S)
        if self.is_alive():
            raise Violation("a reader of the secondary hangs")
        if isinstance(self.failure, Violation) or (self.failure and not lost):
            raise Violation(f"a reader of the secondary: {self.failure}") from self.failure


def can_mount(folder):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={OVERLAYS_BYTES}", "none", folder],
                          stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


class Run:
    """A pair, and what its views may show: p, and the worlds that s may be in (one, mostly)."""

    def __init__(self, daemons, folder, papers):
        self.daemons, self.folder, self.papers = daemons, folder, papers
        self.history = History()
        self.round, self.links, self.mounts = 0, [], []
        self.faulty = True

    # --- processes ---

    def socket(self, side):
        return self.folder / f"{side}.sock"

    def words(self, side):
        words = ["--state", self.folder / f"{side}-state-{self.round}",
                 "--export", f"unix:{self.socket(side)}"]
        for disk in range(self.disks):
            words += ["--disk", self.disk(side, disk)]
        return [*words, *self.tls_words()]

    def tls_words(self):
        return ["--tls-creds-dir", self.papers() / "good"] if self.tls else []

    def disk(self, side, disk):
        return self.folder / f"{side}{disk}.raw"

    def start_secondary(self, *more):
        words = ["--overlays", self.overlays, "--listen", f"127.0.0.1:{self.data.target_port}",
                 "--control", f"127.0.0.1:{self.control.target_port}"]
        if self.standby:
            words.append("--run-standby")
        (self.folder / "blockstep/s.qmp").unlink(missing_ok=True)
        self.secondary = self.daemons.run("secondary", "s", *self.words("s"), *words, *more)
        self.ready(self.secondary)

    def start_primary(self, *more):
        words = ["--peer", f"127.0.0.1:{self.data.port}",
                 "--peer-control", f"127.0.0.1:{self.control.port}"]
        (self.folder / "blockstep/p.qmp").unlink(missing_ok=True)
        self.primary = self.daemons.run("primary", "p", *self.words("p"), *words, *more)
        self.ready(self.primary)

    def ready(self, daemon):
        line = daemon.line(DEADLINE_S)
        if "is ready" not in line:
            raise Violation(f"{daemon.name} says {line!r}")

    def kill(self, daemon):
        daemon.kill()
        self.history.settle()

    def stop(self, daemon):
        daemon.stop(DEADLINE_S)

    # --- a round: until a failover has made a new primary ---

    def new_round(self):
        from blockstep import free_port

        self.round += 1
        self.data, self.control = Link(free_port()), Link(free_port())
        self.links += [self.data, self.control]
        self.overlays = self.folder / f"overlays-{self.round}"
        self.overlays.mkdir()
        self.mounted = can_mount(self.overlays)
        if self.mounted:
            self.mounts.append(self.overlays)

    def begin(self, disks, tls, standby, fresh):
        from blockstep import make_file

        self.disks, self.tls, self.standby = disks, tls, standby
        for disk in range(disks):
            make_file(self.disk("p", disk), DISK_BYTES)
            make_file(self.disk("s", disk), DISK_BYTES)
        self.p = View(self.history, disks, SECTORS, "the primary")
        self.new_round()
        self.start_secondary(*["--fresh"] if fresh else [])
        if fresh:
            self.start_primary()
            self.s, self.faulty = [self.checkpointed(0)], False
        else:
            self.s = []
            self.synchronise(None)

    def checkpointed(self, begin):
        return self.p.cut(begin, self.history.now(), "the secondary")

    # --- what is seen ---

    def contents(self, side):
        contents = []
        for disk in range(self.disks):
            handle = connect(self.socket(side), disk)
            contents.append(bytes(handle.pread(DISK_BYTES, 0)))
            handle.shutdown()
        return contents

    def raw_secondary(self):
        return [self.disk("s", disk).read_bytes() for disk in range(self.disks)]

    def look_at_primary(self):
        self.p.look_at_all(self.contents("p"), self.history.now(), mirrored=True)

    def look_at_secondary(self, contents=None):
        if not self.s:
            return
        query = self.secondary.qmp.cmd("query-replication") if contents is None else None
        if query and not query["consistent"]:
            raise Violation(f"the secondary has lost its checkpoint: {query}")
        begin = self.history.now()
        contents = contents or self.contents("s")
        violations, left = [], []
        for view in self.s:
            try:
                view.look_at_all(contents, begin)
                left.append(view)
            except Violation as violation:
                violations.append(violation)
        if not left:
            raise violations[-1]
        self.s = left[-1:]

    def look(self):
        self.look_at_primary()
        self.look_at_secondary()

    @contextlib.contextmanager
    def loaded(self, count, pattern, primary_lost=False, secondary_lost=False):
        """The primary's guests write, and the secondary is watched."""
        watch = Watch(self, pattern) if len(self.s) == 1 else None
        load = self.load_primary(count, pattern)
        yield load
        load.finish(primary_lost)
        if watch:
            watch.finish(secondary_lost)

    def load_primary(self, count, pattern):
        return Load(self.history, self.socket("p"), [self.p], self.disks, count, pattern)

    # --- operations ---

    def load(self, count, pattern):
        with self.loaded(count, pattern):
            pass

    def own_writes(self, count, pattern):
        """Of the machine that runs on the secondary."""
        if len(self.s) == 1:
            Load(self.history, self.socket("s"), self.s, self.disks, min(count, 100),
                 pattern).finish()

    def checkpoint(self, count, pattern, times):
        load = self.load_primary(count, pattern)
        for number in range(times):
            load.wait(count * (number + 1) // (times + 2))
            begin = self.history.now()
            done = self.daemons.cli("checkpoint", "--name", "p", *self.tls_words(), check=False,
                                    timeout=DEADLINE_S)
            self.judge_checkpoint(done.returncode, done.stderr, begin)
            self.look_at_secondary()
        load.finish()

    def judge_checkpoint(self, code, text, begin):
        if code == 0:
            self.s = [self.checkpointed(begin)]
        elif not self.faulty:
            raise Violation(f"a checkpoint failed, and nothing had been done to the pair: {text}")
        elif self.s:
            self.s.append(self.checkpointed(begin))

    def kill_in_checkpoint(self, count, pattern, milliseconds):
        load = self.load_primary(count, pattern)
        load.wait(count // 4)
        begin = self.history.now()
        command = [str(word) for word in (self.primary.command[0], "checkpoint", "--name", "p",
                                          *self.tls_words())]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env={**os.environ, **self.daemons.environment()}) as manager:
            self.pass_time(milliseconds)
            self.secondary.kill()
            self.faulty = True
            code = manager.wait(DEADLINE_S)
        self.judge_checkpoint(code, "", begin)
        load.finish()
        self.start_secondary()

    def pass_time(self, milliseconds):
        """There is nothing to wait for: this is how long it lasts."""
        time.sleep(milliseconds / 1000)

    def pause(self, count, pattern, after, milliseconds, side):
        daemon = self.primary if side == "p" else self.secondary
        with self.loaded(count, pattern) as load:
            load.wait(after)
            daemon.signal(signal.SIGSTOP)
            self.pass_time(milliseconds)
            daemon.signal(signal.SIGCONT)

    def slow(self, count, pattern, milliseconds):
        self.data.delay(milliseconds / 1000)
        with self.loaded(count, pattern):
            pass
        self.data.delay(0)

    def stall(self, count, pattern, after, direction, milliseconds=0, given_up=False):
        with self.loaded(count, pattern) as load:
            load.wait(after)
            self.data.hold(direction)
            if given_up:
                self.faulty = True
                load.finish()
            else:
                self.pass_time(milliseconds)
            self.data.release()

    def cut_link(self, count, pattern, direction, byte):
        with self.loaded(count, pattern):
            self.faulty = True
            self.data.cut(direction, byte)
        self.data.cut(direction)

    def kill_secondary(self, count, pattern, after):
        with self.loaded(count, pattern, secondary_lost=True) as load:
            load.wait(after)
            self.secondary.kill()
            self.faulty = True
        self.start_secondary()

    def kill_primary(self, count, pattern, after, late):
        with self.loaded(count, pattern, primary_lost=True) as load:
            load.wait(after)
            if late != "never":
                self.data.hold_old()
            self.kill(self.primary)
        self.history.settle()
        self.faulty = True
        self.look_at_secondary()
        if late == "before":
            self.data.wake_old()
        if late != "after":
            self.data.cut(TO_SERVER)
        self.look_at_secondary()
        self.synchronise(None)
        if late == "after":
            self.data.wake_old()

    def kill_both(self, count, pattern, after):
        with self.loaded(count, pattern, primary_lost=True, secondary_lost=True) as load:
            load.wait(after)
            self.primary.kill()
            self.kill(self.secondary)
        self.history.settle()
        self.faulty = True
        self.start_secondary()
        self.look_at_secondary()
        self.synchronise(None)

    def restart(self, side):
        """In good order. A primary that starts anew is not believed before a synchronisation."""
        if side == "p" and not self.faulty:
            self.stop(self.primary)
            self.faulty = True
            self.start_primary()
        elif side == "s":
            self.stop(self.secondary)
            self.faulty = True
            self.start_secondary()

    def fill(self, count, pattern, left):
        if not self.mounted:
            return
        stat = os.statvfs(self.overlays)
        ballast = self.overlays / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(stat.f_bavail * stat.f_frsize - left, 1))
        self.faulty = True
        with self.loaded(count, pattern):
            pass
        self.look_at_secondary()
        ballast.unlink()

    def heal(self, count, pattern, fault, milliseconds):
        def harm():
            if not fault:
                return
            self.pass_time(milliseconds)
            if fault == "cut":
                self.data.cut(TO_SERVER)
            elif fault == "kill_secondary":
                self.secondary.kill()
            else:
                self.primary.kill()

        self.stop(self.primary)
        self.synchronise(harm, count, pattern)
        if self.secondary.process.poll() is not None:
            self.start_secondary()
        if self.primary.process.poll() is not None:
            self.history.settle()
            self.look_at_secondary()
            self.synchronise(None)

    def synchronise(self, harm, count=0, pattern=0):
        """The primary is started with --sync; meanwhile its guests write, and harm is done."""
        begin, told = self.history.now(), len(self.log_of("p"))
        self.start_primary("--sync")
        load = self.load_primary(count, pattern)
        if harm:
            harm()
        done = self.wait_synchronised(told)
        load.finish(lost=bool(harm))
        if done and self.primary.process.poll() is None:
            self.s, self.faulty = [self.checkpointed(begin)], harm is not None
            return
        if harm is None:
            raise Violation("it is not synchronised")
        self.faulty = True
        if self.s:
            self.s.append(self.checkpointed(begin))

    def log_of(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_synchronised(self, told):
        """Whether it says so; False when it says that it is not, or has gone."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            try:
                return "synchronised" in self.primary.line(0.05)
            except AssertionError:
                if "is not synchronised" in self.log_of("p")[told:]:
                    return False
                if self.primary.process.poll() is not None:
                    return False
        raise Violation("a synchronisation does not end")

    # --- failover ---

    def fail_over(self, count, pattern, after, how, kills):
        """The primary is lost in one of several ways, or not at all: it writes on. The secondary takes
        over and is killed now and then, and a new secondary is made of the old primary."""
        if not self.s:
            return
        load = self.load_primary(count, pattern)
        load.wait(after)
        self.lose_primary(how)
        self.look_at_secondary()
        self.secondary.qmp.cmd("replication-stop", failover=True, timeout=DEADLINE_S)
        self.s[0].whose = "the secondary that takes over"
        self.look_at_contract()
        self.find_primary(how, load)
        for number, milliseconds in enumerate(kills):
            user = self.user(pattern + number, 40)
            self.pass_time(milliseconds)
            self.kill(self.secondary)
            user.finish(lost=True)
            self.history.settle()
            self.start_secondary()
            self.look_at_contract()
        self.user(pattern, 40).finish()
        self.look_at_contract()
        self.daemons.cli("wait", "--name", "s", "--for", "stage=done", "--timeout",
                         str(int(DEADLINE_S)), timeout=DEADLINE_S + 5)
        self.look_at_contract()
        self.stop(self.secondary)
        self.look_at_secondary(self.raw_secondary())
        self.turn_round()

    def user(self, pattern, count):
        """Of the machine that runs on the secondary after the failover."""
        return Load(self.history, self.socket("s"), self.s, self.disks, count, pattern ^ 1)

    def look_at_contract(self):
        self.look_at_secondary(self.contents("s"))

    def lose_primary(self, how):
        if how == "late":
            self.data.hold_old()
        if how in ("kill", "late"):
            self.primary.kill()
        elif how == "stop":
            self.primary.signal(signal.SIGSTOP)
        elif how == "isolate":
            self.data.hold(TO_SERVER)
            self.data.hold(TO_CLIENT)

    def find_primary(self, how, load):
        """It, or what it had sent, wakes up; it is of no concern to the secondary any more."""
        if how == "stop":
            self.primary.signal(signal.SIGCONT)
        self.data.wake_old()
        self.data.release()
        load.finish(lost=how in ("kill", "late"))
        if how not in ("kill", "late"):
            self.look_at_primary()
            self.stop(self.primary)
        self.history.settle()
        self.look_at_contract()

    def turn_round(self):
        for disk in range(self.disks):
            spare = self.folder / "spare"
            self.disk("s", disk).rename(spare)
            self.disk("p", disk).rename(self.disk("s", disk))
            spare.rename(self.disk("p", disk))
        self.p, self.s = self.s[0], []
        self.p.whose, self.p.own_from = "the primary", 0
        self.new_round()
        self.start_secondary()
        self.synchronise(None)

    # --- all of it ---

    def step(self, operation):
        getattr(self, operation.name)(**operation.arguments)
        self.look()

    def end(self):
        """All heals, and ends well."""
        if self.faulty:
            self.stop(self.primary)
            self.synchronise(None)
            self.look()
        self.stop(self.primary)
        self.stop(self.secondary)
        self.p.look_at_all(self.raw_secondary(), self.history.now(), mirrored=True)

    def clean_up(self):
        for link in self.links:
            link.end()
        for mount in self.mounts:
            subprocess.run(["umount", "-l", mount], check=False)


class Papers:
    """Certificates, made when they are first asked for."""

    def __init__(self):
        self.folder = None

    def __call__(self):
        if self.folder is None:
            import tls_files

            self.folder = Path(tempfile.mkdtemp(prefix="bs-tls-"))
            tls_files.make_all(self.folder)
        return self.folder

    def clean_up(self):
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def run_seed(seed, papers, told=None):
    """Raises AssertionError, with the operations up to there, when something is not as it should be."""
    from blockstep import Daemons

    folder = Path(tempfile.mkdtemp(prefix="bs-"))
    daemons = Daemons(folder)
    run, done = Run(daemons, folder, papers), []
    try:
        for operation in generate(seed):
            done.append(str(operation))
            if told:
                told(operation)
            run.step(operation)
        done.append("end")
        run.end()
    except Exception as failure:
        steps = "\n".join(f"  {number}. {text}" for number, text in enumerate(done))
        logs = "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-4000:]}"
                         for path in folder.glob("*.log"))
        raise AssertionError(f"seed {seed}: {failure!r}\n{steps}\n{logs}\nagain: "
                             f"tests/system/torture_pair.py --seed {seed}") from failure
    finally:
        for daemon in daemons.all:
            daemon.kill()
            daemon.process.stdout.close()
        run.clean_up()
        shutil.rmtree(folder, ignore_errors=True)


def fresh_seeds(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield random.SystemRandom().randrange(1 << 32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", help="the build to test (default: build)")
    parser.add_argument("--seed", type=int, help="this one, telling its operations")
    parser.add_argument("--seeds", metavar="A..B")
    parser.add_argument("--minutes", type=float, default=1, help="fresh seeds (default 1)")
    options = parser.parse_args()
    if options.build:
        os.environ["BLOCKSTEP_BUILD"] = os.path.abspath(options.build)
    seeds, told = fresh_seeds(options.minutes * 60), None
    if options.seed is not None:
        seeds, told = [options.seed], lambda operation: print(operation, flush=True)
    elif options.seeds:
        first, last = map(int, options.seeds.split(".."))
        seeds = range(first, last + 1)
    papers, count = Papers(), 0
    try:
        for count, seed in enumerate(seeds, 1):
            run_seed(seed, papers, told)
    finally:
        papers.clean_up()
    print(f"{count} seeds, no violation")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as failure:
        sys.exit(str(failure))
