# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client that asks for one block after the other and remembers how long each took: it sees from
outside how long requests are held. Runs as a process of its own beside the benchmark.

usage: probe.py read|write SOCKET EXPORT SIZE_BYTES RESULT_FILE; ends at SIGTERM
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from lab import BenchError
from nbd import BLOCK_BYTES, NbdClient

READY_S = 10


def main():
    kind, path, export, size_bytes, result = sys.argv[1:]
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    client = NbdClient(path, export)
    blocks = int(size_bytes) // BLOCK_BYTES
    data = os.urandom(BLOCK_BYTES)
    samples = []
    while not ended:
        offset = random.randrange(blocks) * BLOCK_BYTES
        began = time.monotonic_ns()
        if kind == "read":
            client.read(offset)
        else:
            client.write(offset, data)
        samples.append((began, time.monotonic_ns()))
        if len(samples) == 1:
            Path(f"{result}.ready").touch()
    Path(result).write_text(json.dumps(samples))


class Probe:
    """The same from the benchmark's side. Times are those of time.monotonic_ns()."""

    def __init__(self, lab, kind, export):
        self.lab = lab
        self.result = lab.path(f"probe-{kind}.json")
        for old in (self.result, Path(f"{self.result}.ready")):
            old.unlink(missing_ok=True)
        socket_path, name = export
        self.process = lab.start(["/usr/bin/python3", __file__, kind, socket_path, name,
                                  lab.size_bytes, self.result])
        end = time.monotonic() + READY_S
        while not Path(f"{self.result}.ready").exists():
            self.process.check_alive()
            if time.monotonic() > end:
                raise BenchError(f"a {kind} at export '{name}' gets no answer")
            time.sleep(0.005)

    def stop(self):
        """The samples: (when sent, when answered), both in ns."""
        self.process.popen.terminate()
        self.process.wait(60)
        return json.loads(self.result.read_text())


def longest_ms(samples, began_ns, ended_ns):
    """The longest request of those that were under way at some moment of a stretch of time."""
    return max((answered - sent for sent, answered in samples
                if answered >= began_ns and sent <= ended_ns), default=0) / 1e6


if __name__ == "__main__":
    main()
