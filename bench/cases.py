# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured against whom, and what must be reached: see CASES at the end.

Each case runs all its sides within each round, the order turning from round to round, so that what
the machine does meanwhile meets all of them. Run n of one side is compared with run n of the other.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import load as generator
import ours
import peers
from lab import BenchError
from load import (LARGE_WRITE, RANDOM_READ, RANDOM_WRITE, SINGLE_WRITE, WRITE_PASS, Load)
from nbd import BLOCK_BYTES, NbdClient
from probe import Probe, longest_ms
from report import Line, at_most, times_at_least, times_at_most

PASS_LIMIT_S = 60
TCP_PASS_LIMIT_S = 5
HELD_LIMIT_MS = 5
TRIPS = 100
PACED_TRIPS = 10
PACE_S = 0.1
FAILOVER_LIMIT_MS = 20
INSTRUCTIONS = Path(__file__).resolve().parent / "instructions.json"
INSTRUCTION_REQUESTS = 2000
INSTRUCTION_LIMIT = 1.10


@dataclass
class Bench:
    """How much is measured, and where."""
    lab: object
    rounds: int
    seconds: float
    say: object  # called with what is being done

    def alternate(self, sides, measure):
        """measure(side) for every side in every round; returns {side: [result, ...]}."""
        results = {side: [] for side in sides}
        for number in range(self.rounds):
            turn = number % len(sides)
            for side in [*sides[turn:], *sides[:turn]]:
                self.say(f"round {number + 1} of {self.rounds}: {side.name}")
                try:
                    results[side].append(measure(side))
                finally:
                    self.lab.end_processes()
        return results


def bytes_per_s(measured):
    return measured.bytes_per_s


def p50_us(measured):
    return measured.p50_us


def compare(name, unit, value, results, our_side, targets, **limits):
    """A line for each peer of `targets`, a {side: target}."""
    return [Line(name, unit, tuple(map(value, results[our_side])),
                 side.name, tuple(map(value, results[side])), target, **limits)
            for side, target in targets.items()]


def measure_single(bench, side, load):
    """What the generator has measured, and the server's processor time for each request in us."""
    server = side(bench.lab)
    cpu_before_s = server.process.cpu_s()
    measured = generator.run(bench.lab, server.uri, load, bench.seconds)
    cpu_s = server.process.cpu_s() - cpu_before_s
    server.stop()
    counted = measured.seconds / (measured.seconds + generator.RAMP_MS / 1000)
    return measured, cpu_s * counted / measured.requests * 1e6


@dataclass(frozen=True)
class SingleCase:
    """One disk, not replicated: requests a second, bytes a second or median latency."""
    name: str
    load: Load
    unit: str
    value: object
    targets: dict

    def run(self, bench):
        results = bench.alternate([ours.Single, *self.targets],
                                  lambda side: measure_single(bench, side, self.load)[0])
        return compare(self.name, self.unit, self.value, results, ours.Single, self.targets)


@dataclass(frozen=True)
class RateCase:
    """One disk, not replicated, at full speed: requests a second, beside servers that hold no data and
    so show what the generator can do; and what each costs the server in processor time, which no
    generator limits."""
    name: str
    load: Load
    targets: dict
    empty = (ours.Null, peers.NbdkitNull)

    def run(self, bench):
        results = bench.alternate([ours.Single, *self.targets, *self.empty],
                                  lambda side: measure_single(bench, side, self.load))
        busy = tuple(measured.busy for measured, _ in results[ours.Single])
        ceilings = tuple(max(measured.per_s for measured, _ in runs)
                         for runs in zip(*(results[side] for side in self.empty)))
        return [*compare(self.name, "/s", lambda run: run[0].per_s, results, ours.Single,
                         self.targets | dict.fromkeys(self.empty), busy=busy, ceilings=ceilings),
                *compare(f"{self.name}-cpu", "us", lambda run: run[1], results, ours.Single,
                         dict.fromkeys(self.targets))]


@dataclass(frozen=True)
class PairPass:
    """What one run of a pair has shown."""
    first_per_s: float
    later_per_s: float
    checkpoint_ms: float
    cpu_us: float
    peak_bytes: int


def measure_passes(bench, side):
    """Writes every block once (the first pass pays the copies), then all of them again, then takes
    a checkpoint whose time is added to both passes: a write counts when it is part of one."""
    limit_s = TCP_PASS_LIMIT_S if side is peers.QemuPairTcp else PASS_LIMIT_S
    pair = side(bench.lab)
    cpu_before_s = pair.cpu_s()
    first = generator.run(bench.lab, pair.uri, WRITE_PASS, limit_s)
    cpu_s = pair.cpu_s() - cpu_before_s
    later = generator.run(bench.lab, pair.uri, WRITE_PASS, limit_s, requests=first.requests)
    began = time.monotonic()
    pair.checkpoint()
    checkpoint_s = time.monotonic() - began
    pair.check()
    peak_bytes = max(pair.primary.peak_bytes(), pair.secondary.peak_bytes())
    bench.lab.compare_pair()
    pair.stop()
    return PairPass(first.requests / (first.seconds + checkpoint_s),
                    later.requests / (later.seconds + checkpoint_s),
                    checkpoint_s * 1000, cpu_s / first.requests * 1e6, peak_bytes)


@dataclass(frozen=True)
class PairPassCase:
    """Replicated, peer-ack=write: 4 KiB random writes at depth 32, first pass and later ones."""
    name: str
    first_targets: dict
    later_targets: dict

    def run(self, bench):
        sides = [ours.Pair, *self.first_targets]
        results = bench.alternate(sides, lambda side: measure_passes(bench, side))
        reported = {peers.QemuPair: None}

        def lines(suffix, unit, value, targets):
            return compare(f"{self.name}-{suffix}", unit, value, results, ours.Pair, targets)

        return [*lines("first", "/s", lambda run: run.first_per_s, self.first_targets),
                *lines("later", "/s", lambda run: run.later_per_s, self.later_targets),
                *lines("checkpoint", "ms", lambda run: run.checkpoint_ms, reported),
                *lines("cpu", "us", lambda run: run.cpu_us, reported),
                *lines("memory", "B", lambda run: run.peak_bytes, reported)]


@dataclass(frozen=True)
class PairLoadCase:
    """Replicated, peer-ack=write: a load for a while, the clock running until the checkpoint."""
    name: str
    load: Load
    unit: str
    targets: dict
    side: type = ours.Pair

    def measure(self, bench, side):
        pair = side(bench.lab)
        measured = generator.run(bench.lab, pair.uri, self.load, bench.seconds)
        began = time.monotonic()
        pair.checkpoint()
        checkpoint_s = time.monotonic() - began
        pair.check()
        bench.lab.compare_pair()
        pair.stop()
        if self.unit == "us":
            return measured.p50_us
        rate = measured.per_s if self.unit == "/s" else measured.bytes_per_s
        return rate * measured.seconds / (measured.seconds + checkpoint_s)

    def run(self, bench):
        results = bench.alternate([self.side, *self.targets],
                                  lambda side: self.measure(bench, side))
        return compare(self.name, self.unit, lambda value: value, results, self.side, self.targets)


def fill(bench, pair):
    """A whole pass, so that the overlays hold the whole disk's old content."""
    measured = generator.run(bench.lab, pair.uri, WRITE_PASS, PASS_LIMIT_S)
    if measured.requests != bench.lab.size_bytes // BLOCK_BYTES:
        raise BenchError(f"only {measured.requests} writes in {PASS_LIMIT_S} s")


@dataclass(frozen=True)
class Held:
    """How long requests were held by a checkpoint: as the secondary tells, and as a reader of its
    view and a writer at the primary saw it (their longest request around that time)."""
    told_ms: float
    reader_ms: float
    writer_ms: float


def measure_held(bench, pair, loaded):
    """A checkpoint with the overlays full, the primary idle or writing at full speed."""
    fill(bench, pair)
    held_bytes = pair.overlay_bytes()
    if held_bytes < bench.lab.size_bytes:
        raise BenchError(f"the overlays hold {held_bytes} bytes, not the whole disk")
    fio = generator.start(bench.lab, pair.uri, RANDOM_WRITE, 2) if loaded else None
    reader, writer = (Probe(bench.lab, kind, export) for kind, export in
                      (("read", pair.secondary_export), ("write", pair.primary_export)))
    time.sleep(0.5)
    began_ns = time.monotonic_ns()
    pair.checkpoint()
    ended_ns = time.monotonic_ns()
    time.sleep(0.1)
    reads, writes = reader.stop(), writer.stop()
    held = Held(pair.held_ms(), longest_ms(reads, began_ns, ended_ns),
                longest_ms(writes, began_ns, ended_ns))
    if loaded:
        generator.finish(bench.lab, fio, 60)
    pair.checkpoint()
    pair.check()
    bench.lab.compare_pair()
    return held


@dataclass(frozen=True)
class CheckpointCase:
    """How long a checkpoint holds requests when the overlays hold the whole disk."""
    name: str

    def run(self, bench):
        def measure(side):
            pair = side(bench.lab)
            runs = measure_held(bench, pair, loaded=False), measure_held(bench, pair, loaded=True)
            pair.stop()
            return runs

        results = bench.alternate([ours.Pair], measure)[ours.Pair]
        idle, loaded = zip(*results)

        def line(name, values, target=None):
            return Line(f"{self.name}-{name}", "ms", tuple(values), target=target)

        limit = at_most(HELD_LIMIT_MS)
        # Under load a probing client waits in the queue behind the load, and for a processor:
        # what it sees there is to be read, not judged.
        return [line("held", (run.told_ms for run in idle), limit),
                line("held-reader", (run.reader_ms for run in idle), limit),
                line("held-writer", (run.writer_ms for run in idle), limit),
                line("load-held", (run.told_ms for run in loaded), limit),
                line("load-held-reader", (run.reader_ms for run in loaded)),
                line("load-held-writer", (run.writer_ms for run in loaded))]


@dataclass(frozen=True)
class Trip:
    """Checkpoints of a pair: how long one takes when nothing is written (the median); how long the primary
    has held its guests at most, as it says itself, with a single writer and under full load; and the
    longest write of the single writer, with checkpoints and without."""
    checkpoint_us: float
    held_ms: float
    load_held_ms: float
    writer_ms: float
    alone_ms: float


def take_paced(pair):
    """Ten a second; the longest that the primary has held its guests."""
    held_ms = 0
    for _ in range(PACED_TRIPS):
        pair.checkpoint()
        held_ms = max(held_ms, pair.primary_held_ms())
        time.sleep(PACE_S)
    return held_ms


def measure_trip(bench, side):
    pair = side(bench.lab)
    taken_us = []
    for _ in range(TRIPS):
        began = time.monotonic()
        pair.checkpoint()
        taken_us.append((time.monotonic() - began) * 1e6)
    writer = Probe(bench.lab, "write", pair.primary_export)
    marks_ns = [time.monotonic_ns()]
    time.sleep(PACED_TRIPS * PACE_S)
    marks_ns.append(time.monotonic_ns())
    held_ms = take_paced(pair)
    marks_ns.append(time.monotonic_ns())
    writes = writer.stop()
    fio = generator.start(bench.lab, pair.uri, RANDOM_WRITE, 2 * PACED_TRIPS * PACE_S)
    time.sleep(PACED_TRIPS * PACE_S / 2)
    load_held_ms = take_paced(pair)
    generator.finish(bench.lab, fio, 60)
    pair.checkpoint()
    pair.check()
    bench.lab.compare_pair()
    pair.stop()
    return Trip(statistics.median(taken_us), held_ms, load_held_ms,
                longest_ms(writes, marks_ns[1], marks_ns[2]), longest_ms(writes, *marks_ns[:2]))


@dataclass(frozen=True)
class TripCase:
    """What it costs that the primary asks its secondary, beside a manager that asks both. A guest is held
    for that trip, while a manager's guest goes on between the two."""
    name: str

    def run(self, bench):
        results = bench.alternate([ours.Pair, ours.PairManaged],
                                  lambda side: measure_trip(bench, side))
        trips = results[ours.Pair]

        def held(name, values):
            return Line(f"{self.name}-{name}", "ms", tuple(values), target=at_most(HELD_LIMIT_MS))

        return [*compare(self.name, "us", lambda trip: trip.checkpoint_us, results, ours.Pair,
                         {ours.PairManaged: None}),
                held("held", (trip.held_ms for trip in trips)),
                held("load-held", (trip.load_held_ms for trip in trips)),
                Line(f"{self.name}-writer", "ms", tuple(trip.writer_ms for trip in trips),
                     "without checkpoints", tuple(trip.alone_ms for trip in trips))]


def measure_failover_ms(bench, side):
    """From sending the command until the first read of a block held in hidden is answered, to a
    client that connects when the command has been answered, as the guest that is started then."""
    pair = side(bench.lab)
    disk = bench.lab.path("s.raw")
    with disk.open("rb") as file:
        file.seek(bench.lab.size_bytes // 2)
        expected = file.read(BLOCK_BYTES)
    before = bench.lab.checksum("s.raw")
    fill(bench, pair)
    pair.check()
    pair.primary.kill()
    time.sleep(0.2)
    began = time.monotonic()
    pair.failover()
    view = NbdClient(*pair.secondary_export)
    found = view.read(bench.lab.size_bytes // 2)
    elapsed_ms = (time.monotonic() - began) * 1000
    view.close()
    if found != expected:
        raise BenchError(f"{side.name}: after the failover a block is not as of the checkpoint")
    if side is ours.Pair:
        pair.wait_merged()
        if bench.lab.checksum("s.raw") != before:
            raise BenchError("after the merge the disk is not as of the checkpoint")
    pair.stop()
    bench.lab.forget_secondary()
    return elapsed_ms


@dataclass(frozen=True)
class FailoverCase:
    name: str
    limit_ms: float

    def run(self, bench):
        results = bench.alternate([ours.Pair, peers.QemuPair],
                                  lambda side: measure_failover_ms(bench, side))
        return [Line(self.name, "ms", tuple(results[ours.Pair]), peers.QemuPair.name,
                     tuple(results[peers.QemuPair]), at_most(self.limit_ms))]


def count_instructions(lab, requests, kind):
    """What the daemon executes from its start to its end, with so many requests in between."""
    server = ours.SingleUnderCallgrind(lab)
    client = NbdClient(*server.export)
    data = bytes(range(256)) * (BLOCK_BYTES // 256)
    for number in range(requests):
        offset = number * 7919 % (lab.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        if kind == "write":
            client.write(offset, data)
        else:
            client.read(offset)
    client.close()
    server.stop()
    return server.instructions()


@dataclass(frozen=True)
class InstructionCase:
    """Instructions per request, one at a time: repeatable where seconds are not, so a guard against
    slow creep. The figures to hold stand in instructions.json (bench/run --record writes them)."""
    name: str

    def run(self, bench):
        recorded = json.loads(INSTRUCTIONS.read_text()) if INSTRUCTIONS.exists() else {}
        lines = []
        for kind in ("read", "write"):
            bench.say(kind)
            idle = count_instructions(bench.lab, 0, kind)
            each = (count_instructions(bench.lab, INSTRUCTION_REQUESTS, kind) - idle) \
                / INSTRUCTION_REQUESTS
            was = (recorded[kind],) if kind in recorded else ()
            lines.append(Line(f"{self.name}-{kind}", "instr", (each,), "recorded", was,
                              times_at_most(INSTRUCTION_LIMIT) if was else None))
        return lines

    @staticmethod
    def record(lines):
        figures = {line.name.rsplit("-", 1)[1]: round(line.value) for line in lines}
        INSTRUCTIONS.write_text(json.dumps(figures, indent=4) + "\n")


@dataclass(frozen=True)
class CopyCase:
    """A whole disk to an empty one, bytes a second; the copy is flushed, and compared."""
    name: str
    targets: dict

    def measure(self, bench, side):
        copier = side(bench.lab)
        began = time.monotonic()
        copier.copy()
        seconds = time.monotonic() - began
        copier.stop()
        bench.lab.compare_pair()
        return bench.lab.size_bytes / seconds

    def run(self, bench):
        results = bench.alternate([ours.Mirror, *self.targets],
                                  lambda side: self.measure(bench, side))
        return compare(self.name, "B/s", lambda value: value, results, ours.Mirror, self.targets)


# The targets: times_... is our figure divided by the peer's; None is reported, not judged.
CASES = [
    RateCase("write-4k-d32", RANDOM_WRITE,
             {peers.Nbdkit: times_at_least(1), peers.QemuNbd: times_at_least(2.5)}),
    RateCase("read-4k-d32", RANDOM_READ,
             {peers.Nbdkit: times_at_least(1.5), peers.QemuNbd: times_at_least(4)}),
    SingleCase("write-1m-d8", LARGE_WRITE, "B/s", bytes_per_s,
               {peers.Nbdkit: None, peers.QemuNbd: times_at_least(1.2)}),
    SingleCase("write-4k-d1-p50", SINGLE_WRITE, "us", p50_us,
               {peers.Nbdkit: times_at_most(1.15), peers.QemuNbd: None}),
    PairPassCase("pair-write-4k-d32",
                 first_targets={peers.QemuPair: times_at_least(2), peers.QemuPairTcp: None},
                 later_targets={peers.QemuPair: times_at_least(2), peers.QemuPairTcp: None}),
    PairLoadCase("pair-write-4k-d1-p50", SINGLE_WRITE, "us", {peers.QemuPair: None}),
    PairLoadCase("pair-write-1m-d8", LARGE_WRITE, "B/s", {peers.QemuPair: None}),
    PairLoadCase("pair-read-4k-d32", RANDOM_READ, "/s", {peers.QemuPair: None}),
    PairLoadCase("tls-1m-d8", LARGE_WRITE, "B/s", {ours.Pair: times_at_least(0.5)},
                 side=ours.PairTls),
    CopyCase("mirror", {peers.NbdCopy: times_at_least(0.7)}),
    CheckpointCase("checkpoint"),
    TripCase("checkpoint-trip"),
    FailoverCase("failover-first-read", FAILOVER_LIMIT_MS),
    InstructionCase("instructions-4k"),
]
