# SPDX-License-Identifier: LGPL-2.1-or-later
"""A primary that controls its secondary's checkpoints: through links that break, processes that stop or
die, and errors of either side, which both know."""

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time

import pytest

from bad_link import TO_CLIENT, TO_SERVER, Link
from blockstep import DEADLINE_S, QmpError, free_port, make_file, run

MIB = 1 << 20
SIZE = 32 * MIB


class Pair:
    """A secondary, and a primary that reaches its control through a link that can be bad."""

    def __init__(self, daemons, folder):
        self.daemons, self.folder = daemons, folder
        self.port, self.control = free_port(), free_port()
        make_file(folder / "p.raw", SIZE)
        make_file(folder / "s.raw", SIZE)
        self.link = Link(self.control)
        self.start_secondary("--fresh")
        self.start_primary()

    def start_secondary(self, *more):
        self.secondary = self.daemons.run(
            "secondary", "s", "--disk", self.folder / "s.raw", "--overlays", self.folder / "overlays",
            "--state", self.folder / "s-state", "--listen", f"127.0.0.1:{self.port}",
            "--control", f"127.0.0.1:{self.control}", "--export", f"unix:{self.folder}/s.sock", *more)
        assert "is ready" in self.secondary.line()

    def start_primary(self, *more):
        self.primary = self.daemons.run(
            "primary", "p", "--disk", self.folder / "p.raw", "--peer", f"127.0.0.1:{self.port}",
            "--peer-control", f"127.0.0.1:{self.link.port}", "--state", self.folder / "p-state",
            "--export", f"unix:{self.folder}/p.sock", *more)
        assert "is ready" in self.primary.line()
        self.query("primary")  # from now on its events are heard

    def io(self, side, *commands):
        words = [word for command in commands for word in ["-c", command]]
        return run("qemu-io", "-f", "raw", *(["-r"] if side == "s" else []), *words,
                   f"nbd+unix:///disk0?socket={self.folder}/{side}.sock")

    def query(self, side):
        return getattr(self, side).qmp.cmd("query-replication")

    def checkpoint(self, **options):
        return self.primary.qmp.cmd("replication-checkpoint", **options)["epoch"]

    def wait_peer(self, connected=True):
        wait_for(lambda: self.query("primary")["peer"]["connected"] is connected)

    def status(self, name):
        return self.daemons.cli("status", "--name", name).stdout


@pytest.fixture
def pair(daemons, folder):
    made = Pair(daemons, folder)
    yield made
    made.link.end()


def wait_for(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def refuses(daemon, command, words, **options):
    with pytest.raises(QmpError, match=words):
        daemon.qmp.cmd(command, **options)


# --- one command for both sides ---

def test_the_primary_is_asked_and_the_secondary_follows(pair):
    before = pair.query("secondary")["epoch"]
    pair.io("p", "write -P 1 0 1M")
    done = json.loads(pair.daemons.cli("checkpoint", "--name", "p", "-o", "json").stdout)
    assert done["epoch"] == before + 1 == pair.query("secondary")["epoch"]
    assert pair.query("primary")["epoch"] == before + 1
    pair.io("p", "write -P 2 0 1M")
    pair.io("s", "read -P 1 0 1M")
    assert pair.checkpoint() == before + 2
    pair.io("s", "read -P 2 0 1M")
    status = pair.status("p")
    assert "session 1, connected" in status and "error       none" in status
    assert pair.primary.qmp.event("REPLICATION_CHECKPOINT")["data"]["role"] == "primary"


def test_nobody_else_takes_checkpoints_of_a_secondary_that_its_primary_controls(pair):
    pair.io("p", "write -P 1 0 1M")
    for command in ["replication-checkpoint", "xen-colo-do-checkpoint"]:
        refuses(pair.secondary, command, "ask the primary")
    done = pair.daemons.cli("checkpoint", "--name", "s", check=False)
    assert done.returncode == 1 and "ask the primary" in done.stderr
    pair.primary.qmp.cmd("xen-colo-do-checkpoint")
    pair.io("s", "read -P 1 0 1M")


def test_a_primary_that_starts_anew_is_believed_after_a_synchronisation_only(pair):
    pair.io("p", "write -P 1 0 1M")
    epoch = pair.checkpoint()
    pair.io("p", "write -P 2 0 1M")
    pair.primary.kill()
    pair.start_primary()
    warned = [line for line in pair.primary.log_text().splitlines() if "takes no checkpoint" in line]
    assert len(warned) == 1 and warned[0].startswith("warning") and "primary --sync)" in warned[0], warned
    pair.io("p", "write -P 3 1M 1M")
    done = pair.daemons.cli("checkpoint", "--name", "p", check=False)
    assert done.returncode == 1 and "not synchronised" in done.stderr
    assert done.stderr.rstrip().endswith("(blockstep primary --sync)")
    assert "takes no checkpoint" in pair.status("p")
    refuses(pair.primary, "xen-colo-do-checkpoint", "not synchronised")
    assert pair.primary.qmp.cmd("query-xen-replication-status")["error"] is True
    pair.io("s", "read -P 1 0 1M")
    pair.primary.stop()
    pair.start_primary("--sync")
    assert "synchronised" in pair.primary.line()
    assert pair.query("secondary")["epoch"] > epoch
    assert pair.query("primary")["peer"]["stream-intact"] is True
    assert pair.primary.qmp.cmd("query-xen-replication-status")["error"] is False
    pair.io("s", "read -P 2 0 1M", "read -P 3 1M 1M")
    assert pair.checkpoint() == pair.query("secondary")["epoch"]


# --- links that break ---

@pytest.mark.parametrize("direction, last", [(TO_SERVER, 130), (TO_CLIENT, 60)])
def test_a_checkpoint_is_taken_at_whichever_byte_the_control_link_breaks(pair, direction, last):
    epoch = pair.query("secondary")["epoch"]
    for after_bytes in range(1, last, 9):
        pair.wait_peer()
        pair.io("p", f"write -P {after_bytes} 0 64k")
        pair.link.cut(direction, after_bytes)
        reached = pair.checkpoint()
        assert reached == pair.query("secondary")["epoch"] and reached > epoch
        epoch = reached
        pair.io("s", f"read -P {after_bytes} 0 64k")
    assert pair.primary.qmp.cmd("query-xen-replication-status")["error"] is False
    assert pair.query("primary")["peer"]["session"] == 1


def test_without_the_control_link_guests_do_not_notice_and_status_says_why(pair):
    pair.link.hold(TO_SERVER)
    pair.link.hold(TO_CLIENT)
    pair.link.cut(TO_CLIENT)
    pair.wait_peer(connected=False)
    pair.io("p", "write -P 1 0 1M", "flush", "read -P 1 0 1M")
    assert "lost: the peer" in pair.status("p")
    refuses(pair.primary, "replication-checkpoint", "within the deadline", timeout_ms=300)
    assert pair.primary.qmp.event("REPLICATION_PEER", connected=False)["data"]["reason"]
    assert pair.primary.qmp.cmd("query-xen-replication-status")["error"] is False
    pair.link.release()
    pair.wait_peer()
    pair.checkpoint()
    pair.io("s", "read -P 1 0 1M")


def test_an_answer_that_does_not_come_costs_the_links_before_the_guest_writes_on(pair):
    pair.io("p", "write -P 1 0 1M")
    epoch = pair.query("secondary")["epoch"]
    pair.link.hold(TO_CLIENT)
    refuses(pair.primary, "replication-checkpoint", "not known", timeout_ms=500)
    pair.io("p", "write -P 2 0 1M", "read -P 2 0 1M")
    assert pair.query("secondary")["epoch"] == epoch + 1
    pair.io("s", "read -P 1 0 1M")
    assert pair.query("primary")["error"]["operation"] == "checkpoint"
    pair.link.release()
    wait_for(lambda: "peer-error" in pair.query("secondary"))
    pair.io("s", "read -P 1 0 1M")


# --- processes that stop or die ---

def test_a_secondary_that_stands_still_costs_its_links_and_not_the_guest(pair):
    pair.io("p", "write -P 1 0 1M")
    pair.checkpoint()
    pair.secondary.signal(signal.SIGSTOP)
    try:
        refuses(pair.primary, "replication-checkpoint", "within the deadline", timeout_ms=500)
        # Its answers to writes stay out too: the guest goes on when the link is gone.
        pair.primary.qmp.cmd("yank", instances=[{"type": "block-node", "node-name": "disk0-peer"}])
        pair.io("p", "write -P 2 0 1M", "read -P 2 0 1M")
        assert "error" in pair.query("primary")
    finally:
        pair.secondary.signal(signal.SIGCONT)
    wait_for(lambda: pair.query("secondary")["stream-intact"] is False)
    pair.io("s", "read -P 1 0 1M")
    refuses(pair.primary, "xen-colo-do-checkpoint", "disk0-repl")


def test_a_secondary_that_was_restarted_ends_the_session_for_good(pair):
    pair.io("p", "write -P 1 0 1M")
    pair.checkpoint()
    pair.io("p", "write -P 2 0 1M")
    pair.secondary.kill()
    (pair.folder / "blockstep/s.qmp").unlink()
    pair.start_secondary()
    wait_for(lambda: "error" in pair.query("primary"))
    peer = pair.query("primary")["peer"]
    assert peer["connected"] is False and "session" in peer["reason"]
    pair.io("p", "write -P 3 0 1M", "read -P 3 0 1M")
    refuses(pair.primary, "replication-checkpoint", "lost")
    pair.io("s", "read -P 1 0 1M")
    pair.primary.stop()
    pair.start_primary("--sync")
    assert "synchronised" in pair.primary.line()
    pair.io("s", "read -P 3 0 1M")


def test_a_primary_that_does_not_reach_its_secondary_does_not_start(daemons, folder):
    disk, port, control = make_file(folder / "p.raw", SIZE), free_port(), free_port()
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "s.raw", SIZE), "--fresh",
                            "--state", folder / "s", "--listen", f"127.0.0.1:{port}")
    assert "is ready" in secondary.line()
    done = daemons.cli("primary", "--name", "p", "--disk", disk, "--peer", f"127.0.0.1:{port}",
                       "--peer-control", f"127.0.0.1:{control}", "--state", folder / "p",
                       "--export", f"unix:{folder}/p.sock", check=False)
    assert done.returncode == 1 and f"127.0.0.1:{control}" in done.stderr


def test_a_takeover_while_the_primary_lives_is_told_there_at_once_and_once(pair):
    pair.io("p", "write -P 1 0 1M")
    pair.checkpoint()
    pair.io("p", "write -P 2 0 1M")
    pair.daemons.cli("failover", "--name", "s", "--wait")
    event = pair.primary.qmp.event("REPLICATION_PEER", **{"taken-over": True})["data"]
    assert "old copy" in event["stream-reason"]
    assert pair.query("primary")["peer"]["taken-over"] is True
    assert "has taken over: this primary is the old copy" in pair.status("p")
    refuses(pair.primary, "replication-checkpoint", "lost|taken over")
    pair.link.cut(TO_CLIENT)
    pair.wait_peer(connected=False)
    wait_for(lambda: "old primary" in pair.query("primary")["peer"]["reason"])
    told = [line for line in pair.primary.log_text().splitlines() if line.startswith("error peer")]
    assert len(told) == 1 and " UTC: " in told[0] and "(blockstep secondary --sync)" in told[0], told
    assert "its link to the secondary, node 'disk0-peer', is lost" in pair.primary.log_text()


# --- who knows of what ---

def test_an_error_of_the_primary_is_known_on_the_secondary(pair):
    pair.io("p", "write -P 1 0 1M")
    pair.checkpoint()
    pair.primary.qmp.cmd("yank", instances=[{"type": "block-node", "node-name": "disk0-peer"}])
    pair.io("p", "write -P 2 4096 1M")
    error = pair.query("primary")["error"]
    assert error["offset"] == 4096 and error["side"] == "primary"
    wait_for(lambda: "peer-error" in pair.query("secondary"))
    assert pair.query("secondary")["peer-error"]["offset"] == 4096
    refuses(pair.secondary, "xen-colo-do-checkpoint", "")
    found = pair.secondary.qmp.cmd("query-xen-replication-status")
    assert found["error"] is True and "disk0-peer" in found["desc"]
    pair.io("s", "read -P 1 0 1M")


def test_an_error_of_the_secondary_is_known_on_the_primary(daemons, folder):
    for name in ["active", "hidden"]:
        daemons.cli("image", "create", "-f", "overlay", folder / f"{name}.overlay", str(SIZE))
    make_file(folder / "s.raw", SIZE)
    secondary = daemons.start(
        "--blockdev", f"blkdebug,node-name=disk0,inject.0.kind=write,inject.0.errno=28,inject.0.nth=3,"
                      f"file.driver=file,file.filename={folder}/s.raw",
        "--blockdev", f"overlay,node-name=hidden,backing=disk0,file.driver=file,"
                      f"file.filename={folder}/hidden.overlay",
        "--blockdev", f"overlay,node-name=active,backing=hidden,file.driver=file,"
                      f"file.filename={folder}/active.overlay",
        "--blockdev", "replication,node-name=rep,mode=secondary,top-id=rep,file=active",
        "--nbd-server", f"addr.type=unix,addr.path={folder}/link",
        "--chardev", f"socket,id=peer,path={folder}/control,server=on,wait=off",
        "--monitor", "chardev=peer", name="s")
    secondary.qmp.cmd("replication-start", mode="secondary")
    secondary.qmp.cmd("nbd-server-add", device="disk0", writable=True)
    primary = daemons.run("primary", "p", "--disk", make_file(folder / "p.raw", SIZE),
                          "--peer", f"unix:{folder}/link", "--peer-control", f"unix:{folder}/control",
                          "--state", folder / "p", "--export", f"unix:{folder}/p.sock")
    assert "is ready" in primary.line()
    assert "error" not in primary.qmp.cmd("query-replication")["peer"]
    run("qemu-io", "-f", "raw", "-c", "write 0 64k", "-c", "write 1M 64k", "-c", "write 2M 64k",
        "-c", "read 2M 64k", f"nbd+unix:///disk0?socket={folder}/p.sock")
    wait_for(lambda: "error" in primary.qmp.cmd("query-replication")["peer"])
    error = primary.qmp.cmd("query-replication")["peer"]["error"]
    assert error == secondary.qmp.cmd("query-replication")["error"]
    assert error["errno"] == "ENOSPC" and error["side"] == "secondary"
    told = primary.qmp.event("REPLICATION_ERROR", side="secondary")["data"]
    assert told["node"] == error["node"]
    assert "its error" in daemons.cli("status", "--name", "p").stdout
    refuses(primary, "xen-colo-do-checkpoint", "No space")
    refuses(secondary, "xen-colo-do-checkpoint", "")


# --- under load ---

def test_a_guest_that_verifies_what_it_wrote_meets_checkpoints_and_both_sides_are_equal(pair):
    guest = subprocess.Popen(
        ["fio", "--name=guest", "--ioengine=nbd", f"--uri=nbd+unix:///disk0?socket={pair.folder}/p.sock",
         "--rw=randwrite", "--bs=4k-64k", "--iodepth=16", f"--size={SIZE}", "--loops=3",
         "--verify=crc32c", "--verify_state_save=0", "--do_verify=1", "--randrepeat=0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=str(pair.folder))
    taken = 0
    while guest.poll() is None:
        pair.checkpoint()
        taken += 1
    assert guest.returncode == 0 and taken > 5
    epoch = pair.checkpoint()
    content = (pair.folder / "p.raw").read_bytes()
    pair.io("p", "write -P 9 0 1M")
    pair.primary.kill()
    assert pair.query("secondary")["epoch"] == epoch
    pair.daemons.cli("failover", "--name", "s", "--wait")
    pair.secondary.stop()
    assert (pair.folder / "s.raw").read_bytes() == content


# --- others that say they are a secondary ---

def serve_nonsense(path, answers):
    """A QMP server that says what it is told, to one client after the other; call what it returns to
    end it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines, contextlib.suppress(ConnectionError):
                client.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
                for line in lines:
                    if not line.strip():
                        continue
                    request = json.loads(line)
                    answer = answers.get(request["execute"], {"return": {}})
                    client.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def end():
        # Closed under its thread, the listener would go on, as whatever gets its number next.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()

    return end


@pytest.mark.parametrize("answer, words", [
    ({"return": {"version": 2, "session": 1, "epoch": 1}}, "version 2"),
    ({"return": {}}, "has no 'version'"),
    ({"error": {"class": "CommandNotFound", "desc": "no such command"}}, "older version"),
    ({"error": {"class": "GenericError", "desc": "versions 7 to 9 are known here"}}, "versions 7 to 9"),
])
def test_a_secondary_that_is_not_understood_is_refused_plainly(daemons, folder, answer, words):
    end = serve_nonsense(folder / "control", {"replication-hello": answer})
    port = free_port()
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "s.raw", SIZE), "--fresh",
                            "--state", folder / "s", "--listen", f"127.0.0.1:{port}")
    assert "is ready" in secondary.line()
    done = daemons.cli("primary", "--name", "p", "--disk", make_file(folder / "p.raw", SIZE),
                       "--peer", f"127.0.0.1:{port}", "--peer-control", f"unix:{folder}/control",
                       "--state", folder / "p", "--export", f"unix:{folder}/p.sock", check=False)
    end()
    assert done.returncode == 1 and words in done.stderr, done.stderr
