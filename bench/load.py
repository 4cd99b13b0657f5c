# SPDX-License-Identifier: LGPL-2.1-or-later
"""The load generator: fio with its nbd engine."""

import json
from dataclasses import dataclass

from lab import BenchError

RAMP_MS = 300


@dataclass(frozen=True)
class Load:
    """What is asked of an export. `one_pass`: until every block has been touched once, at most for
    the time given, so that every write is the first to its block; else for the time given."""
    mode: str
    block_bytes: int
    depth: int
    one_pass: bool = False


RANDOM_WRITE = Load("randwrite", 4096, 32)
RANDOM_READ = Load("randread", 4096, 32)
LARGE_WRITE = Load("write", 1 << 20, 8)
SINGLE_WRITE = Load("randwrite", 4096, 1)
WRITE_PASS = Load("randwrite", 4096, 32, one_pass=True)


@dataclass(frozen=True)
class Measured:
    requests: int
    seconds: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    busy: float  # the part of one processor that the generator's one thread used

    @property
    def per_s(self):
        return self.requests / self.seconds


def start(lab, uri, load, seconds, seed=1, requests=None):
    """Starts the generator; finish() waits for it. `requests`: no more than so many."""
    lab.path("fio.json").unlink(missing_ok=True)
    command = [
        "fio", "--name=load", "--thread", "--output-format=json", f"--output={lab.path('fio.json')}",
        "--ioengine=nbd", f"--uri={uri}", f"--rw={load.mode}", f"--bs={load.block_bytes}",
        f"--iodepth={load.depth}", f"--size={lab.size_bytes}", f"--runtime={seconds}",
        f"--randseed={seed}", "--lat_percentiles=1", "--clat_percentiles=0"]
    if not load.one_pass:
        command += ["--time_based", f"--ramp_time={RAMP_MS}ms"]
    if requests:
        command.append(f"--number_ios={requests}")
    return lab.start(command)


def finish(lab, fio, timeout_s):
    fio.wait(timeout_s)
    text = lab.path("fio.json").read_text()  # which opens with what the engine has to say
    job = json.loads(text[text.index("{"):])["jobs"][0]
    if job["error"]:
        raise BenchError(f"fio: error {job['error']}\n{fio.log_text()}")
    done = max(job["read"], job["write"], key=lambda side: side["total_ios"])
    if not done["total_ios"] or not done["runtime"]:
        raise BenchError(f"fio has done nothing\n{fio.log_text()}")
    percentile = done["lat_ns"]["percentile"]
    return Measured(done["total_ios"], done["runtime"] / 1000, done["bw_bytes"],
                    percentile["50.000000"] / 1000, percentile["99.000000"] / 1000,
                    (job["usr_cpu"] + job["sys_cpu"]) / 100)


def run(lab, uri, load, seconds, **options):
    return finish(lab, start(lab, uri, load, seconds, **options), seconds + 60)
