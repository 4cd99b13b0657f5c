# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs go through QEMU's states, take its verbs where it takes them, and tell of it alike."""

import pytest

from beside_qemu import Beside

MIB = 1 << 20
VERBS = ("job-pause", "job-resume", "job-complete", "job-finalize", "job-dismiss", "job-cancel")
# What our mirror counts as moved, and when a guest's change is seen, is its own affair.
COUNTS = ("len", "offset", "current-progress", "total-progress")


@pytest.fixture
def both(daemons, folder):
    return Beside(daemons, folder,
                  ["--blockdev", "driver=file,node-name=s,filename={folder}/s",
                   "--blockdev", "driver=file,node-name=t,filename={folder}/t",
                   "--blockdev", "driver=file,node-name=small,filename={folder}/small"],
                  {"s": 4 * MIB, "t": 4 * MIB, "small": MIB})


def start(both, command="blockdev-mirror", **more):
    both.cmd(command, {"job-id": "j", "device": "s", "target": "t", "sync": "full", **more})


def gone(both):
    both.event("JOB_STATUS_CHANGE", status="null")
    return both.compare_events(COUNTS)


def show(both, *ignore):
    """What queries tell, but for what changes by itself."""
    both.cmd("query-jobs", ignore=COUNTS)
    both.cmd("query-block-jobs", ignore=(*COUNTS, "busy", *ignore))


def test_jobs_that_are_not_there(both):
    for verb in VERBS:
        both.cmd(verb, id="j")
        device = "id" if verb[4:] in ("finalize", "dismiss") else "device"
        both.cmd(f"block-{verb}", {device: "j"})
    both.cmd("block-job-set-speed", device="j", speed=1)
    show(both)


@pytest.mark.commands("blockdev-mirror", "job-complete", "query-jobs", "query-block-jobs")
def test_a_mirror_that_is_completed(both):
    start(both)
    both.event("JOB_STATUS_CHANGE", status="ready")
    show(both)
    for verb in ("job-finalize", "job-dismiss", "job-resume"):
        both.cmd(verb, id="j")
    both.cmd("job-complete", id="j")
    events = gone(both)
    assert [event["data"]["status"] for event in events if "status" in event["data"]] == [
        "created", "running", "ready", "waiting", "pending", "concluded", "null"]


def test_a_mirror_that_is_cancelled_keeps_its_copy(both):
    start(both)
    both.event("JOB_STATUS_CHANGE", status="ready")
    both.cmd("block-job-cancel", device="j")
    gone(both)


@pytest.mark.commands("job-cancel")
def test_a_mirror_that_is_cancelled_by_force(both):
    for verb in ({"block-job-cancel": {"device": "j", "force": True}}, {"job-cancel": {"id": "j"}}):
        start(both)
        both.event("JOB_STATUS_CHANGE", status="ready")
        for name, arguments in verb.items():
            both.cmd(name, arguments)
        gone(both)


@pytest.mark.commands("job-pause", "job-resume")
def test_a_ready_mirror_that_is_paused(both):
    start(both)
    both.event("JOB_STATUS_CHANGE", status="ready")
    both.cmd("job-pause", id="j")
    both.event("JOB_STATUS_CHANGE", status="standby")
    show(both)
    both.cmd("job-pause", id="j")
    both.cmd("block-job-cancel", device="j")
    both.compare_events(COUNTS)
    both.cmd("job-resume", id="j")
    both.cmd("job-resume", id="j")
    both.event("JOB_STATUS_CHANGE", status="ready")
    both.cmd("block-job-cancel", device="j")
    gone(both)


def test_a_paused_mirror_completes_when_it_is_resumed(both):
    start(both)
    both.event("JOB_STATUS_CHANGE", status="ready")
    both.cmd("job-pause", id="j")
    both.event("JOB_STATUS_CHANGE", status="standby")
    both.cmd("job-complete", id="j")
    both.cmd("job-resume", id="j")
    gone(both)


@pytest.mark.commands("job-finalize", "job-dismiss")
def test_a_mirror_that_waits_to_be_finalized_and_dismissed(both):
    start(both, **{"auto-finalize": False, "auto-dismiss": False})
    both.event("JOB_STATUS_CHANGE", status="ready")
    show(both)
    both.cmd("job-complete", id="j")
    both.event("BLOCK_JOB_PENDING")
    # QEMU's holds the guest until it is told, and calls that paused.
    show(both, "paused")
    for verb in ("job-pause", "job-resume", "job-complete", "job-dismiss"):
        both.cmd(verb, id="j")
    both.cmd("block-job-set-speed", device="j", speed=1)
    both.cmd("job-finalize", id="j")
    both.event("JOB_STATUS_CHANGE", status="concluded")
    show(both)
    for verb in ("job-pause", "job-resume", "job-complete", "job-finalize", "job-cancel"):
        both.cmd(verb, id="j")
    start(both)
    both.cmd("job-dismiss", id="j")
    gone(both)


def test_a_pending_mirror_that_is_cancelled(both):
    start(both, **{"auto-finalize": False})
    both.event("JOB_STATUS_CHANGE", status="ready")
    both.cmd("block-job-cancel", device="j")
    both.event("BLOCK_JOB_PENDING")
    both.cmd("job-cancel", id="j")
    gone(both)


@pytest.mark.commands("block-job-finalize", "block-job-dismiss")
def test_a_mirror_that_waits_by_the_older_names(both):
    start(both, **{"auto-finalize": False, "auto-dismiss": False})
    both.event("JOB_STATUS_CHANGE", status="ready")
    both.cmd("block-job-cancel", device="j")
    both.event("BLOCK_JOB_PENDING")
    for verb in ("block-job-dismiss", "block-job-finalize"):
        both.cmd(verb, id="j")
    both.event("JOB_STATUS_CHANGE", status="concluded")
    both.cmd("block-job-dismiss", id="j")
    gone(both)
