# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first synchronisation: a secondary with an empty disk, and a primary that copies its own."""

import json
import os

import pytest

from blockstep import QmpError, free_port, make_file, run
from test_mirror import Guest

MIB = 1 << 20
SIZE = 64 * MIB


class Pair:
    def __init__(self, daemons, folder, disks=1):
        self.daemons, self.folder = daemons, folder
        self.port, self.control = free_port(), free_port()
        self.names = [f"disk{number}" for number in range(disks)]
        for name in self.names:
            path = make_file(folder / f"p-{name}.raw", SIZE)
            with path.open("r+b") as file:
                file.write(os.urandom(3 * MIB))
                file.seek(40 * MIB)
                file.write(os.urandom(MIB))
            make_file(folder / f"s-{name}.raw", SIZE)
        (folder / "overlays").mkdir()

    def disks(self, side):
        return [word for name in self.names
                for word in ["--disk", f"{name}={self.folder}/{side}-{name}.raw"]]

    def secondary(self, *more):
        return self.daemons.run(
            "secondary", "s", *self.disks("s"), "--listen", f"127.0.0.1:{self.port}",
            "--control", f"127.0.0.1:{self.control}", "--overlays", self.folder / "overlays",
            "--state", self.folder / "s-state", "--export", f"unix:{self.folder}/s.sock", *more)

    def primary(self, *more):
        return self.daemons.run(
            "primary", "p", *self.disks("p"), "--peer", f"127.0.0.1:{self.port}",
            "--peer-control", f"127.0.0.1:{self.control}", "--state", self.folder / "p-state",
            "--export", f"unix:{self.folder}/p.sock", *more)

    def io(self, side, name, *commands):
        words = [word for command in commands for word in ["-c", command]]
        mode = ["-r"] if side == "s" else []
        return run("qemu-io", "-f", "raw", *mode, *words,
                   f"nbd+unix:///{name}?socket={self.folder}/{side}.sock")


def test_an_empty_secondary_is_synchronised_under_writes_and_takes_over(daemons, folder):
    pair = Pair(daemons, folder, disks=2)
    secondary = pair.secondary("--sync")
    assert "is ready" in secondary.line()
    primary = pair.primary("--sync")
    assert "is ready" in primary.line()
    guest = Guest(folder / "p.sock", "disk0", SIZE)
    assert "synchronised 1" in primary.line()
    guest.stop()
    pair.io("p", "disk0", "write -P 1 8M 1M")
    pair.daemons.cli("checkpoint", "--name", "p")
    content = {name: (folder / f"p-{name}.raw").read_bytes() for name in pair.names}
    pair.io("p", "disk1", "write -P 2 8M 1M")
    primary.kill()
    pair.daemons.cli("failover", "--name", "s", "--wait")
    secondary.stop()
    for name in pair.names:
        assert (folder / f"s-{name}.raw").read_bytes() == content[name]


def test_before_the_first_checkpoint_there_is_nothing_to_fall_back_to(daemons, folder):
    pair = Pair(daemons, folder)
    secondary = pair.secondary("--sync")
    secondary.line()
    reason = "never synchronised"
    for words in [["failover"], ["stop"], ["checkpoint"]]:
        result = pair.daemons.cli(*words, "--name", "s", check=False)
        assert result.returncode == 1 and (reason in result.stderr or "stage" in result.stderr)
    for command in ["x-colo-lost-heartbeat", "replication-checkpoint", "replication-stop"]:
        with pytest.raises(QmpError, match=reason):
            secondary.qmp.cmd(command)
    status = pair.daemons.cli("status", "--name", "s").stdout
    assert "inconsistent" in status and "never synchronised" in status
    query = json.loads(pair.daemons.cli("status", "--name", "s", "-o", "json").stdout)
    assert query["consistent"] is False and "never synchronised" in query["inconsistent-reason"]
    secondary.stop()
    assert "error" not in secondary.log_text(), "nothing was written that could be flushed"
    secondary = pair.secondary()
    secondary.line()
    primary = pair.primary("--sync", "-o", "json")
    assert json.loads(primary.line())["ready"]
    assert json.loads(primary.line())["synchronised"]
    assert secondary.qmp.cmd("query-replication")["consistent"] is True
    with pytest.raises(QmpError, match="no first checkpoint is awaited"):
        primary.qmp.cmd("replication-checkpoint", first=True)
    pair.io("s", "disk0", "read 0 1M")
    pair.daemons.cli("failover", "--name", "s", "--wait")


def test_half_a_copy_is_not_taken_for_one_after_a_restart(daemons, folder):
    pair = Pair(daemons, folder)
    secondary = pair.secondary("--sync")
    secondary.line()
    secondary.kill()
    (folder / "blockstep/s.qmp").unlink()
    secondary = pair.secondary()
    secondary.line()
    result = pair.daemons.cli("failover", "--name", "s", check=False)
    assert result.returncode == 1 and "never synchronised" in result.stderr
    primary = pair.primary("--sync")
    primary.line()
    assert "synchronised" in primary.line()
    primary.stop()
    secondary.stop()
    secondary = pair.secondary()
    assert "is ready" in secondary.line()


def test_wrong_usage(daemons, folder):
    pair = Pair(daemons, folder)
    result = pair.daemons.cli("secondary", "--name", "s", *pair.disks("s"), "--listen", "127.0.0.1:1",
                              "--sync", "--fresh", check=False)
    assert result.returncode == 2 and "exclude each other" in result.stderr
    result = pair.daemons.cli("primary", "--name", "p", *pair.disks("p"), "--peer", "127.0.0.1:1",
                              "--export", f"unix:{folder}/x", "--sync", check=False)
    assert result.returncode == 2 and "--peer-control" in result.stderr
