#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same operations on pairs of Blockstep, of stock QEMU and of both, compared after every step.

A seed makes a list of operations: requests on either side, checkpoints in quiet moments, failovers,
secondaries lost, stops, resumes. After each one every view (the primary's, the secondary disk's, the
secondary's user's) is read whole and compared with a plain model, and thereby with the other pairs.

Known faults of QEMU 7.2 that the operations keep clear of, or that a step allows for; each is shown to
be there by test_differential.py, and ours to be without:
- a zero request that is not of whole sectors zeroes whole sectors on the secondary, and, once a
  secondary was promoted, a write loses what stood beside it in its sector: so requests to a pair with
  a QEMU side are of whole sectors;
- stop without failover fails on the secondary: allowed for a secondary that is QEMU;
- the secondary aborts when a checkpoint comes while writes are in flight: moments are quiet;
- behind a failover it stops answering, about once in three hundred seeds: its list of descriptors has
  become a ring, and the main thread walks it for ever (in aio_set_fd_handler() under
  qio_channel_yield(), or in aio_poll()). A seed that meets this is tried again, and such tries are
  counted.

    tests/system/differential.py [--build DIR] [--seed N | --seeds A..B | --minutes M] [--pair P,S]
    tests/system/differential.py --seeds 1..5000 --state FILE --minutes 30   goes on where it stopped
    --jobs N: so many seeds at a time
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import takewhile
from pathlib import Path

SIZE = 1 << 20
SECTOR = 512
STEPS = 40
TRIES = 3
OURS = ("blockstep", "blockstep")
STOCK = ("qemu", "qemu")


class Content:
    """What a view holds. A discarded byte may be as it was or zero, until it has been looked at."""

    def __init__(self, value=bytes(SIZE)):
        self.value = bytearray(value)
        self.other = bytearray(value)

    def write(self, offset, data):
        self.value[offset:offset + len(data)] = data
        self.other[offset:offset + len(data)] = data

    def discard(self, offset, length):
        self.other[offset:offset + length] = bytes(length)

    def look(self, found, what):
        """Raises when it cannot be this; afterwards it is this."""
        if found == self.value == self.other:
            return
        for begin in range(0, SIZE, SECTOR):
            sector = slice(begin, begin + SECTOR)
            if found[sector] != self.value[sector] and found[sector] != self.other[sector]:
                self.look_at_bytes(found, range(begin, begin + SECTOR), what)
        self.value[:] = self.other[:] = found

    def look_at_bytes(self, found, numbers, what):
        for number in numbers:
            legal = {self.value[number], self.other[number]}
            if found[number] not in legal:
                raise AssertionError(f"{what}: byte {number} is {found[number]}, not one of {legal}")


class Operation:
    """A step in words and as a call on the pair and the model."""

    def __init__(self, name, **arguments):
        self.name, self.arguments = name, arguments

    def __str__(self):
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.arguments.items())])


def generate(seed, unit):
    """The operations of a seed. Requests are of whole `unit`s."""
    chance = random.Random(seed)
    state = "pair"
    for _ in range(STEPS):
        name = chance.choices(*zip(*STATES[state]))[0]
        if name in REQUESTS:
            side = "p" if state == "primary" else "s" if state == "secondary" else \
                chance.choice("ppps")
            length = min(int(2 ** chance.uniform(9, 20)) // unit * unit or unit, SIZE)
            offset = chance.randrange(0, SIZE - length + 1) // unit * unit
            yield Operation(name, side=side, offset=offset, length=length,
                            pattern=chance.randrange(1 << 32))
        else:
            state = AFTER.get(name, state)
            yield Operation(name)


REQUESTS = ("write", "fua", "zero", "punch", "discard")
EACH = [("write", 30), ("fua", 5), ("zero", 5), ("punch", 5), ("discard", 5), ("flush", 3)]
# What may happen, and how often: to a pair, to a secondary or a primary that is alone.
STATES = {
    "pair": [*EACH, ("checkpoint", 15), ("fail_over", 4), ("lose_secondary", 2), ("stop", 2)],
    "secondary": [*EACH, ("wait_merged", 5), ("resume", 20)],
    "primary": [*EACH, ("resume", 20)],
}
AFTER = {"fail_over": "secondary", "lose_secondary": "primary", "stop": "primary", "resume": "pair"}


class Run:
    """One pair and its model."""

    def __init__(self, pair):
        self.pair = pair
        self.primary, self.disk, self.view = Content(), Content(), Content()

    def contents(self, side):
        """Where a request of this side goes."""
        if side == "s":
            return [self.view]
        return [self.primary, self.disk] if self.pair.secondary else [self.primary]

    def request(self, operation):
        side, offset, length, pattern = (operation.arguments[name] for name in
                                         ("side", "offset", "length", "pattern"))
        host = self.pair.primary if side == "p" else self.pair.secondary
        view = host.view("view")
        if operation.name in ("write", "fua"):
            data = random.Random(pattern).randbytes(length)
            view.write(offset, data, fua=operation.name == "fua")
        elif operation.name in ("zero", "punch"):
            data = bytes(length)
            view.zero(offset, length, punch=operation.name == "punch")
        else:
            view.discard(offset, length)
        for content in self.contents(side):
            if operation.name == "discard":
                content.discard(offset, length)
            else:
                content.write(offset, data)

    def flush(self):
        for host in (self.pair.primary, self.pair.secondary):
            if host:
                host.view("view").flush()

    def checkpoint(self):
        self.pair.checkpoint()
        self.view = Content(self.disk.value)

    def fail_over(self):
        self.pair.fail_over()

    def wait_merged(self):
        self.pair.secondary.wait_merged()

    def lose_secondary(self):
        self.pair.lose_secondary()

    def stop(self):
        """The secondary keeps what was forwarded; then it goes."""
        secondary = self.pair.secondary
        try:
            secondary.stop_replication()
        except Exception:
            if secondary.kind != "qemu":
                raise
        self.pair.lose_secondary()
        self.disk.look(secondary.disk.read_bytes(), "the disk of a secondary that was stopped")

    def resume(self):
        survivor = self.primary if self.pair.primary else self.view
        self.pair.resume()
        self.primary, self.disk, self.view = (Content(survivor.value) for _ in range(3))

    def compare(self):
        pair = self.pair
        if pair.primary:
            self.primary.look(pair.primary.view("view").read(), "the primary")
        if pair.secondary:
            self.view.look(pair.secondary.view("view").read(), "the view of the secondary's user")
        if pair.primary and pair.secondary:
            self.disk.look(pair.secondary.view("disk0").read(), "the secondary disk")
            for host in (pair.primary, pair.secondary):
                assert not host.replication_error(), f"{host.name} tells of an error"

    def step(self, operation):
        if operation.name in REQUESTS:
            self.request(operation)
        else:
            getattr(self, operation.name)()
        self.compare()


class StockHangs(Exception):
    """A pair with a side that is QEMU has not answered within the deadline."""


def run_seed(seed, kinds, unit=SECTOR):
    """Raises AssertionError, with the steps up to there, when a view is not as it should be."""
    from blockstep import Daemons
    from pairs import Pair

    folder = Path(tempfile.mkdtemp(prefix="bs-"))
    daemons = Daemons(folder)
    done = []
    try:
        run = Run(Pair(daemons, folder, SIZE, kinds))
        for operation in generate(seed, unit):
            done.append(str(operation))
            run.step(operation)
        run.pair.stop()
    except Exception as failure:
        if isinstance(failure, TimeoutError) and "qemu" in kinds:
            step = done[-1] if done else "begin"
            raise StockHangs(f"seed {seed}, {step}: {failure}") from failure
        steps = "\n".join(f"  {number}. {text}" for number, text in enumerate(done, 1))
        logs = "\n".join(f"{daemon.name}:\n{daemon.log_text()}" for daemon in daemons.all)
        raise AssertionError(
            f"seed {seed}, {','.join(kinds)}, unit {unit}: {failure!r}\n{steps}\n{logs}\nagain: "
            f"tests/system/differential.py --seed {seed} --pair {','.join(kinds)} --unit {unit}"
        ) from failure
    finally:
        for daemon in daemons.all:
            daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def try_seed(seed, kinds, unit):
    """Returns how often a QEMU has hung."""
    for tries in range(TRIES):
        try:
            run_seed(seed, kinds, unit)
            return tries
        except StockHangs as hang:
            print(f"{','.join(kinds)}: {hang}", file=sys.stderr)
    raise AssertionError(f"seed {seed}: {','.join(kinds)} hangs every time")


def run_seeds(seeds, pairs, unit=SECTOR, done=lambda seed: None, jobs=os.cpu_count()):
    """Returns how many seeds were run, and how often a QEMU has hung. Calls done() behind each, in the
    order in which they end.

    Threads suffice for several at a time: a seed takes the daemons' time, not Python's."""
    seeds, lock = iter(seeds), threading.Lock()
    count = hangs = 0

    def work():
        nonlocal count, hangs
        while True:
            with lock:
                seed = next(seeds, None)
            if seed is None:
                return
            hung = sum(try_seed(seed, kinds, unit) for kinds in pairs)
            with lock:
                count, hangs = count + 1, hangs + hung
                done(seed)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for worker in as_completed([pool.submit(work) for _ in range(jobs)]):
                worker.result()
        finally:
            # After a failure the others end what they are at.
            with lock:
                seeds = iter(())
    return count, hangs


class State:
    """A file with the number of the first seed that has not been run."""

    def __init__(self, path, first):
        self.path, self.next = Path(path), first
        self.ahead = set()  # what has been run behind it
        if self.path.exists():
            self.next = max(first, int(self.path.read_text()))

    def done(self, seed):
        self.ahead.add(seed)
        while self.next in self.ahead:
            self.ahead.remove(self.next)
            self.next += 1
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(f"{self.next}\n")
        new.replace(self.path)


def fresh_seeds():
    while True:
        yield random.SystemRandom().randrange(1 << 32)


def until(end, seeds):
    """Those that are begun before that moment."""
    return takewhile(lambda seed: time.monotonic() < end, seeds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", help="the build to test (default: build)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", metavar="A..B", help="these, or as many as --minutes allows")
    parser.add_argument("--state", metavar="FILE",
                        help="--seeds: goes on where the run before stopped")
    parser.add_argument("--minutes", type=float, help="default: 1 of fresh seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="seeds at a time (default: as many as CPUs)")
    parser.add_argument("--pair", metavar="P,S", help="blockstep or qemu, for each side")
    parser.add_argument("--unit", type=int, default=SECTOR)
    options = parser.parse_args()
    if options.build:
        os.environ["BLOCKSTEP_BUILD"] = os.path.abspath(options.build)
    pairs = [tuple(options.pair.split(","))] if options.pair else [OURS, STOCK]
    state, minutes = None, options.minutes
    if options.seed is not None:
        seeds = [options.seed]
    elif options.seeds:
        first, last = map(int, options.seeds.split(".."))
        if options.state:
            state = State(options.state, first)
            first = state.next
        seeds = range(first, last + 1)
    else:
        seeds, minutes = fresh_seeds(), minutes or 1
    if minutes:
        seeds = until(time.monotonic() + minutes * 60, seeds)
    done = state.done if state else lambda seed: None
    count, hangs = run_seeds(seeds, pairs, options.unit, done, options.jobs)
    next_one = f"; {state.next} is next" if state else ""
    print(f"{count} seeds, no difference; QEMU has hung {hangs} times{next_one}")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as failure:
        sys.exit(str(failure))
