# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backups as managers ask for them: of a moment, in increments, and beside QEMU's."""

import signal
import time

import pytest

from beside_qemu import Beside
from blockstep import DEADLINE_S, QmpError, make_file, run
from test_cli import Pair, pattern
from test_mirror import MIB, SIZE, Disks, Guest

COUNTS = ("len", "offset", "current-progress", "total-progress")


@pytest.fixture
def disks(daemons, folder):
    return Disks(daemons, folder)


@pytest.fixture
def both(daemons, folder):
    return Beside(daemons, folder,
                  ["--blockdev", "driver=file,node-name=s,filename={folder}/s",
                   "--blockdev", "driver=file,node-name=t,filename={folder}/t",
                   "--blockdev", "driver=file,node-name=small,filename={folder}/small"],
                  {"s": 4 * MIB, "t": 4 * MIB, "small": MIB})


def backup(disks, target="copy", **more):
    disks.qmp.cmd("blockdev-backup", {"job-id": "b", "device": "source", "target": target,
                                      "sync": "full", **more})


def done(disks):
    data = disks.qmp.event("BLOCK_JOB_COMPLETED", device="b")["data"]
    assert data["type"] == "backup" and "error" not in data, data
    assert data["offset"] == data["len"]
    return data


def reflink(disks, name):
    """The source as it is now."""
    run("cp", "--sparse=always", disks.path, disks.folder / name)


def wait_for_writes(disks, count):
    def writes():
        nodes = disks.qmp.cmd("query-named-block-nodes")
        return [node["x-stats"]["write"]["requests"] for node in nodes
                if node["node-name"] == "source"][0]
    first, end = writes(), time.monotonic() + DEADLINE_S
    while writes() < first + count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.commands("blockdev-backup")
def test_a_backup_of_a_busy_disk_is_of_one_moment(disks):
    """Whatever the guest writes: a mirror that ends at the backup's start tells what was there."""
    copy = disks.add("copy")
    reference = disks.add("reference")
    guest = Guest(disks.socket)
    disks.qmp.cmd("blockdev-mirror", job_id="m", device="source", target="reference", sync="full")
    disks.qmp.event("BLOCK_JOB_READY", device="m")
    # The guest stands still only for as long as it takes to end the one and begin the other.
    guest.process.send_signal(signal.SIGSTOP)
    disks.qmp.cmd("block-job-cancel", device="m")
    disks.qmp.event("BLOCK_JOB_COMPLETED", device="m")
    backup(disks, speed=MIB)
    guest.process.send_signal(signal.SIGCONT)
    job = disks.job("b")
    assert job["type"] == "backup" and job["status"] == "running"
    wait_for_writes(disks, 100)
    disks.qmp.cmd("block-job-set-speed", device="b", speed=0)
    done(disks)
    guest.stop()
    run("cmp", copy, reference)
    assert run("cmp", disks.path, copy, check=False)


def test_a_backup_of_holes_has_holes(disks):
    copy = disks.add("copy")
    backup(disks)
    done(disks)
    disks.same(copy)
    assert copy.stat().st_blocks <= disks.path.stat().st_blocks + 8 * 64 * 2


def test_increments_add_up(disks, daemons):
    """A chain of a full backup and increments shows each of the moments."""
    full = disks.add("copy")
    disks.qmp.cmd("block-dirty-bitmap-add", node="source", name="b", granularity=4096)
    backup(disks, bitmap="b", **{"bitmap-mode": "on-success"})
    done(disks)
    below = "copy"
    for round_ in range(3):
        guest = Guest(disks.socket)
        wait_for_writes(disks, 20)
        guest.stop()
        path = disks.folder / f"inc{round_}"
        daemons.cli("image", "create", "-f", "overlay", path, SIZE)
        disks.qmp.cmd("blockdev-add", driver="overlay", node_name=f"inc{round_}", backing=below,
                      file={"driver": "file", "filename": str(path)})
        backup(disks, f"inc{round_}", sync="incremental", bitmap="b")
        done(disks)
        below = f"inc{round_}"
        disks.qmp.cmd("block-export-add", type="nbd", id=below, node_name=below, name=below)
        uri = f"nbd+unix:///{below}?socket={disks.socket}"
        assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disks.path)
    assert full.exists()


def test_a_disk_without_a_job_keeps_no_filter(disks):
    disks.add("copy")
    before = [node["node-name"] for node in disks.qmp.cmd("query-named-block-nodes")]
    backup(disks, speed=1, **{"filter-node-name": "filter"})
    names = [node["node-name"] for node in disks.qmp.cmd("query-named-block-nodes")]
    assert set(names) - set(before) == {"filter"}
    with pytest.raises(QmpError, match="copy"):
        disks.qmp.cmd("blockdev-del", node_name="copy")
    disks.qmp.cmd("block-job-cancel", device="b")
    disks.qmp.event("BLOCK_JOB_CANCELLED", device="b")
    assert [node["node-name"] for node in disks.qmp.cmd("query-named-block-nodes")] == before
    disks.qmp.cmd("blockdev-del", node_name="copy")


def test_what_the_guest_changes_can_be_read_as_it_was(disks, daemons):
    """sync=none to an image backed by the source: a window on the moment."""
    daemons.cli("image", "create", "-f", "overlay", disks.folder / "fleece", SIZE)
    disks.qmp.cmd("blockdev-add", driver="overlay", node_name="fleece", backing="source",
                  file={"driver": "file", "filename": str(disks.folder / "fleece")})
    reflink(disks, "before")
    backup(disks, "fleece", sync="none")
    disks.qmp.cmd("block-export-add", type="nbd", id="f", node_name="fleece", name="f")
    guest = Guest(disks.socket)
    wait_for_writes(disks, 50)
    uri = f"nbd+unix:///f?socket={disks.socket}"
    for _ in range(3):
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disks.folder / "before")
    guest.stop()
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, disks.folder / "before")
    disks.qmp.cmd("block-job-cancel", device="b")
    disks.qmp.event("BLOCK_JOB_CANCELLED", device="b")


def test_a_backup_of_a_secondary_disk_outlives_checkpoints_and_a_failover(daemons, folder):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 1M")
    pair.cli("checkpoint", "--name", "p")
    qmp = pair.secondary.qmp
    copy = make_file(folder / "copy", 16 * MIB)
    qmp.cmd("blockdev-add", driver="file", node_name="copy", filename=str(copy))
    qmp.cmd("blockdev-backup", job_id="b", device="disk0", target="copy", sync="none")
    pair.io("p", "write -P 2 0 1M")
    pair.cli("checkpoint", "--name", "p")
    pair.io("p", "write -P 3 0 1M")
    pair.io("s", "read -P 2 0 1M", read_only=True)
    pair.cli("failover", "--name", "s", "--wait")
    pair.io("s", "read -P 2 0 1M", "write -P 4 0 1M")
    assert qmp.cmd("query-block-jobs")[0]["offset"] == MIB
    qmp.cmd("block-job-cancel", device="b")
    qmp.event("BLOCK_JOB_CANCELLED", device="b")
    pair.io("s", "read -P 4 0 1M", "write -P 5 1M 1M")
    assert pattern(copy, 0, MIB) == 1 and pattern(copy, MIB, MIB) == 0


def test_what_is_read_only_can_be_backed_up(disks, daemons):
    """Fleecing: the copy is made from a window on the moment, at its own pace."""
    daemons.cli("image", "create", "-f", "overlay", disks.folder / "fleece", SIZE)
    copy = disks.add("copy")
    for node in ({"driver": "overlay", "node-name": "fleece", "backing": "source",
                  "file": {"driver": "file", "filename": str(disks.folder / "fleece")}},
                 {"driver": "copy-before-write", "node-name": "filter", "file": "source",
                  "target": "fleece"},
                 {"driver": "snapshot-access", "node-name": "window", "file": "filter"}):
        disks.qmp.cmd("blockdev-add", node)
    disks.qmp.cmd("blockdev-backup", job_id="b", device="window", target="copy", sync="full")
    done(disks)
    disks.same(copy)
    disks.qmp.cmd("blockdev-del", node_name="window")


def test_the_daemon_ends_with_jobs_in_every_state(disks):
    states = {"running": {"speed": 1}, "paused": {"sync": "none"},
              "pending": {"auto-finalize": False}, "concluded": {"auto-dismiss": False}}
    disks.qmp.cmd("blockdev-add", driver="null-co", node_name="zero", size=SIZE,
                  **{"read-zeroes": True})
    for index, (state, options) in enumerate(states.items()):
        disks.qmp.cmd("blockdev-add", driver="null-co", node_name=f"t{index}", size=SIZE)
        disks.qmp.cmd("blockdev-backup", {"job-id": state, "device": "zero", "sync": "full",
                                          "target": f"t{index}", **options})
        if state == "paused":
            disks.qmp.cmd("job-pause", id=state)
        disks.qmp.event("JOB_STATUS_CHANGE", id=state, status=state)
    assert {job["id"]: job["status"] for job in disks.qmp.cmd("query-jobs")} == {
        state: state for state in states}
    disks.daemon.stop()


def test_a_full_target_stops_the_job_and_not_the_guest(disks):
    disks.qmp.cmd("blockdev-add", driver="blkdebug", node_name="copy",
                  file={"driver": "file", "filename": str(make_file(disks.folder / "f", SIZE))},
                  inject=[{"kind": "write", "errno": 28}])
    backup(disks, **{"on-target-error": "enospc"})
    assert disks.qmp.event("BLOCK_JOB_ERROR")["data"] == {
        "device": "b", "operation": "write", "action": "stop"}
    disks.qmp.event("JOB_STATUS_CHANGE", status="paused")
    assert disks.job("b")["io-status"] == "nospace"
    disks.qmp.cmd("block-job-resume", device="b")
    done(disks)
    disks.same(disks.folder / "f")


# --- beside QEMU ---

def gone(both):
    both.event("JOB_STATUS_CHANGE", status="null")
    return both.compare_events()


def test_a_backup_goes_as_in_qemu(both):
    arguments = {"job-id": "b", "device": "s", "target": "t", "sync": "full"}
    both.cmd("blockdev-backup", arguments)
    gone(both)
    both.cmd("blockdev-backup", arguments, **{"auto-finalize": False, "auto-dismiss": False})
    both.event("BLOCK_JOB_PENDING")
    both.cmd("query-jobs")
    both.cmd("query-block-jobs", ignore=("busy",))
    both.cmd("job-finalize", id="b")
    both.event("JOB_STATUS_CHANGE", status="concluded")
    both.cmd("query-jobs")
    both.cmd("query-block-jobs", ignore=("busy",))
    both.cmd("job-dismiss", id="b")
    gone(both)


def test_a_backup_that_is_paused_and_cancelled_goes_as_in_qemu(both):
    both.cmd("blockdev-backup", {"job-id": "b", "device": "s", "target": "t", "sync": "none"})
    both.event("JOB_STATUS_CHANGE", status="running")
    both.cmd("job-complete", id="b")
    both.cmd("job-pause", id="b")
    both.event("JOB_STATUS_CHANGE", status="paused")
    both.cmd("query-block-jobs", ignore=(*COUNTS, "busy"))
    both.cmd("block-job-cancel", device="b")
    both.cmd("block-job-cancel", device="b", force=True)
    both.event("JOB_STATUS_CHANGE", status="null")
    both.compare_events(COUNTS)


def test_wrong_backups_are_refused_as_in_qemu(both):
    both.cmd("block-dirty-bitmap-add", node="s", name="b")
    good = {"job-id": "j", "device": "s", "target": "t", "sync": "full"}
    for wrong in ({"device": "nothing"}, {"target": "nothing"}, {"target": "s"},
                  {"sync": "incremental"}, {"sync": "bitmap"}, {"bitmap-mode": "always"},
                  {"bitmap": "nothing", "bitmap-mode": "always"}, {"bitmap": "b"},
                  {"sync": "incremental", "bitmap": "b", "bitmap-mode": "never"},
                  {"sync": "none", "bitmap": "b", "bitmap-mode": "always"},
                  {"bitmap": "b", "bitmap-mode": "never"},
                  {"sync": "top", "bitmap": "b", "bitmap-mode": "never"}):
        both.cmd("blockdev-backup", {**good, **wrong})


def test_bitmaps_end_as_in_qemu(both):
    both.cmd("block-dirty-bitmap-add", node="s", name="b", granularity=65536)
    for sync, mode in (("incremental", "on-success"), ("bitmap", "never"), ("bitmap", "always"),
                       ("full", "always"), ("top", "on-success")):
        both.cmd("blockdev-backup", {"job-id": "j", "device": "s", "target": "t", "sync": sync,
                                     "bitmap": "b", "bitmap-mode": mode, "auto-finalize": False})
        both.event("BLOCK_JOB_PENDING")
        both.cmd("block-dirty-bitmap-clear", node="s", name="b")
        both.cmd("job-finalize", id="j")
        gone(both)
        both.cmd("block-dirty-bitmap-disable", node="s", name="b")
        both.cmd("block-dirty-bitmap-enable", node="s", name="b")
