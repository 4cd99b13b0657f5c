# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk that the daemon has open is kept from stock tools, and theirs from the daemon."""

import os
import subprocess

import pytest

from blockstep import BLOCKSTEPD, DEADLINE_S, make_file, run


def blockdev(path, more=""):
    return ["--blockdev", f"file,node-name=d,filename={path}{more}"]


def refused(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          timeout=DEADLINE_S, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr + done.stdout


def test_stock_tools_stay_out_while_the_daemon_has_the_disk(daemons, folder):
    disk = make_file(folder / "disk.raw", 1 << 20, 7)
    other = make_file(folder / "other.raw", 1 << 20, 8)
    daemon = daemons.start(*blockdev(disk))
    assert "lock" in refused("qemu-io", "-f", "raw", "-c", "write -P 1 0 512", disk)
    assert "lock" in refused("qemu-img", "resize", "-f", "raw", disk, "2M")
    assert "lock" in refused("qemu-img", "convert", "-n", "-O", "raw", other, disk)
    # QEMU itself lets raw disks be read meanwhile.
    run("qemu-io", "-f", "raw", "-r", "-c", "read -P 7 0 512", disk)
    daemon.stop()
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 512", disk)


def test_readers_share_a_read_only_disk(daemons, folder):
    disk = make_file(folder / "disk.raw", 1 << 20, 7)
    daemons.start(*blockdev(disk, ",read-only=on"))
    run("qemu-io", "-f", "raw", "-r", "-c", "read -P 7 0 512", disk)
    assert "lock" in refused("qemu-io", "-f", "raw", "-c", "write 0 512", disk)


@pytest.mark.parametrize("how", ["", ",read-only=on"])
def test_the_daemon_stays_out_while_a_stock_tool_writes(daemons, folder, how):
    disk = make_file(folder / "disk.raw", 1 << 20)
    # Nobody is shown the files of a process that may do more than himself.
    plain = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    with subprocess.Popen([*plain, "qemu-io", "-f", "raw", str(disk)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        # Its prompt comes when it has opened the disk.
        assert other.stdout.read(1)
        text = refused(BLOCKSTEPD, "--qmp", f"unix:{folder / 'x.qmp'}", *blockdev(disk, how))
        assert str(disk) in text and "locked" in text
        assert f"process {other.pid} (qemu-io)" in text
        daemons.start(*blockdev(disk, f",locking=off{how}"))
        other.communicate(b"quit\n", timeout=DEADLINE_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's processes may do more than the daemon")
def test_a_holder_that_cannot_be_seen_is_no_reason_to_fail_otherwise(folder):
    disk = make_file(folder / "disk.raw", 1 << 20)
    with subprocess.Popen(["qemu-io", "-f", "raw", str(disk)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.read(1)
        text = refused(BLOCKSTEPD, "--qmp", f"unix:{folder / 'x.qmp'}", *blockdev(disk))
        assert "is locked: another process (fuser tells which) uses 'write'" in text
        other.communicate(b"quit\n", timeout=DEADLINE_S)
