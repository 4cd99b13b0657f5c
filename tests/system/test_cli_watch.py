# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockstep events, wait and status --watch: what people and scripts watch a daemon with."""

import json
import os
import pty
import select
import signal
import subprocess
import time

import pytest

from blockstep import BLOCKSTEP, DEADLINE_S
from test_cli import Pair


class Watcher:
    """A verb of blockstep that goes on, its lines as they come."""

    def __init__(self, daemons, *words):
        self.process = subprocess.Popen([BLOCKSTEP, *map(str, words)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                                        env={**os.environ, **daemons.environment()})

    def line(self, stream=None):
        stream = stream or self.process.stdout
        assert select.select([stream], [], [], DEADLINE_S)[0], "nothing is said"
        return stream.readline().decode().rstrip("\n")

    def wait(self):
        return self.process.wait(DEADLINE_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def watch(daemons):
    watchers = []

    def start(*words):
        watchers.append(Watcher(daemons, *words))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.close()


def started(watcher):
    """The watcher hears events from now on."""
    assert "waiting for events" in watcher.line(watcher.process.stderr)
    return watcher


# --- events ---

def test_events_are_readable_lines(daemons, watch):
    pair = Pair(daemons)
    events = started(watch("events", "--name", "s"))
    pair.cli("checkpoint", "--name", "p")
    line = events.line()
    assert "REPLICATION_CHECKPOINT role=secondary epoch=2 held=" in line
    assert line[:2] == "20" and line[10] == " " and "\033" not in line
    pair.cli("failover", "--name", "s", "--wait")
    while "REPLICATION_STAGE_CHANGE role=secondary stage=failover" not in events.line():
        pass
    pair.secondary.stop()
    while "SHUTDOWN" not in events.line():
        pass
    assert events.wait() == 0


def test_events_as_json_are_one_object_a_line(daemons, watch):
    pair = Pair(daemons)
    events = started(watch("events", "--name", "s", "-o", "json"))
    pair.cli("checkpoint", "--name", "p")
    event = json.loads(events.line())
    assert event["event"] == "REPLICATION_CHECKPOINT"
    assert event["data"]["epoch"] == 2 and event["timestamp"]["seconds"] > 0


def test_events_can_be_picked_by_name_and_counted(daemons, watch):
    pair = Pair(daemons)
    events = started(watch("events", "--name", "s", "--count", "2", "REPLICATION_C*", "X*"))
    pair.cli("checkpoint", "--name", "p")
    pair.cli("failover", "--name", "s", "--wait")
    pair.secondary.stop()
    assert "REPLICATION_CHECKPOINT" in events.line()
    assert events.wait() == 0
    assert events.process.stdout.read() == b""


def test_a_daemon_that_dies_is_a_failure_of_its_watcher(daemons, watch):
    pair = Pair(daemons)
    events = started(watch("events", "--name", "s"))
    pair.secondary.kill()
    assert events.wait() == 1


def test_bad_counts_are_refused(daemons):
    for count in ["0", "-1", "x", "", "99999999999999999999999"]:
        done = daemons.cli("events", "--count", count, check=False)
        assert done.returncode == 2 and "--count" in done.stderr


# --- wait ---

def test_what_holds_already_is_not_waited_for(daemons):
    Pair(daemons)
    for condition in ["running", "stage=running", "epoch=1", "link=up"]:
        for name in "ps":
            daemons.cli("wait", "--name", name, "--for", condition, "--timeout", "5")


def test_time_runs_out_with_an_exit_status_of_its_own(daemons):
    Pair(daemons)
    for condition in ["done", "checkpoint", "epoch=2", "link=down"]:
        done = daemons.cli("wait", "--name", "s", "--for", condition, "--timeout", "0.05", check=False)
        assert done.returncode == 3 and condition in done.stderr
    done = daemons.cli("wait", "--name", "nobody", "--for", "running", "--timeout", "0.05", check=False)
    assert done.returncode == 3


def test_a_checkpoint_is_waited_for(daemons, watch):
    pair = Pair(daemons)
    waiting = watch("wait", "--name", "s", "--for", "checkpoint", "-o", "json")
    # Whichever checkpoint comes after its first look: repeat until it has seen one.
    end = time.monotonic() + DEADLINE_S
    while waiting.process.poll() is None:
        assert time.monotonic() < end
        pair.cli("checkpoint", "--name", "p")
    assert waiting.wait() == 0
    answer = json.loads(waiting.line())
    assert answer["for"] == "checkpoint" and answer["json-version"] == 1


def test_the_end_of_a_merge_is_waited_for(daemons, watch):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 8M")
    waiting = watch("wait", "--name", "s", "--for", "stage=done")
    pair.cli("failover", "--name", "s")
    assert waiting.wait() == 0
    assert pair.status("s")["stage"] == "done"


def test_the_links_end_is_waited_for_on_both_sides(daemons, watch):
    pair = Pair(daemons)
    waiting = watch("wait", "--name", "s", "--for", "link=down")
    pair.primary.stop()
    assert waiting.wait() == 0


def test_a_daemon_that_is_not_there_yet_is_waited_for(daemons, watch):
    waiting = watch("wait", "--name", "s", "--for", "running", "--timeout", DEADLINE_S)
    Pair(daemons)
    assert waiting.wait() == 0


def test_a_daemon_that_ends_fails_the_wait(daemons, watch):
    pair = Pair(daemons)
    waiting = watch("wait", "--name", "s", "--for", "failover")
    # Its connection is there once it has been counted.
    pair.secondary.kill()
    code = waiting.wait() if waiting.process.poll() is not None else None
    if code is None:
        waiting.process.send_signal(signal.SIGTERM)
        waiting.wait()
    else:
        assert code == 1


def test_conditions_that_make_no_sense_are_refused(daemons):
    for condition in ["", "stage=", "stage=flying", "epoch=", "epoch=-1", "epoch=1x", "link=", "x"]:
        done = daemons.cli("wait", "--for", condition, check=False)
        assert done.returncode == 2 and "--for" in done.stderr, condition
    assert daemons.cli("wait", check=False).returncode == 2
    for timeout in ["", "x", "-1", "1s", "nan", "inf"]:
        done = daemons.cli("wait", "--for", "done", "--timeout", timeout, check=False)
        assert done.returncode == 2 and "--timeout" in done.stderr, timeout


# --- status --watch ---

def test_a_watched_status_shows_what_happens_at_once(daemons, watch):
    pair = Pair(daemons)
    watching = watch("status", "--name", "s", "--watch", "-o", "json")
    assert json.loads(watching.line())["epoch"] == 1
    pair.cli("checkpoint", "--name", "p")
    while (status := json.loads(watching.line()))["epoch"] == 1:
        pass
    assert status["epoch"] == 2 and status["json-version"] == 1
    pair.secondary.stop()
    assert watching.wait() == 0
    assert b"the daemon ends" in watching.process.stderr.read()


def test_a_watched_status_without_a_terminal_is_a_list_of_pictures(daemons, watch):
    pair = Pair(daemons)
    watching = watch("status", "--name", "s", "--watch")
    assert watching.line() == "s: secondary, running"
    while watching.line() != "":
        pass
    assert watching.line() == "s: secondary, running"
    pair.secondary.stop()
    assert watching.wait() == 0


def test_a_watched_status_redraws_a_terminal(daemons):
    Pair(daemons)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(BLOCKSTEP, [str(BLOCKSTEP), "status", "--name", "s", "--watch"],
                  {**os.environ, **daemons.environment()})
    seen = b""
    end = time.monotonic() + DEADLINE_S
    try:
        while seen.count(b"\033[H\033[J") < 2 or b"epoch 1" not in seen:
            assert select.select([terminal], [], [], end - time.monotonic())[0], seen
            seen += os.read(terminal, 4096)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.close(terminal)
        os.waitpid(pid, 0)
