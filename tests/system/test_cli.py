# SPDX-License-Identifier: LGPL-2.1-or-later
"""The person's command: a whole replication through it, what it prints, and how it refuses."""

import json
import os
import signal
import subprocess
import time

import pytest

from blockstep import BLOCKSTEP, DEADLINE_S, QmpError, free_port, make_file, run

SIZE = 16 << 20
MIB = 1 << 20


class Pair:
    """A secondary and a primary with equal disks, as two people would start them."""

    def __init__(self, daemons, disks=("",), secondary=(), primary=(), controlled=True):
        folder = daemons.folder
        self.daemons, self.folder = daemons, folder
        port, control = free_port(), free_port()
        self.peer, self.control = f"127.0.0.1:{port}", f"127.0.0.1:{control}"
        self.secondary_words = self.disk_words("s", disks) + [
            "--overlays", folder / "overlays", "--state", folder / "s-state",
            "--listen", self.peer, "--control", self.control, "--export", f"unix:{folder}/s.sock",
            *secondary]
        self.primary_words = self.disk_words("p", disks) + [
            "--state", folder / "p-state", "--peer", self.peer,
            *(["--peer-control", self.control] if controlled else []),
            "--export", f"unix:{folder}/p.sock", *primary]
        self.start_secondary("--fresh")
        self.start_primary()

    def disk_words(self, side, disks):
        words = []
        for index, name in enumerate(disks):
            path = self.folder / f"{side}{index}.raw"
            if not path.exists():
                make_file(path, SIZE)
            words += ["--disk", f"{name}={path}" if name else path]
        return words

    def start_secondary(self, *more):
        self.secondary = self.daemons.run("secondary", "s", *self.secondary_words, *more)
        assert "is ready" in self.secondary.line()

    def start_primary(self):
        self.primary = self.daemons.run("primary", "p", *self.primary_words)
        assert "is ready" in self.primary.line()

    def io(self, side, *commands, export="disk0", read_only=False):
        words = [word for command in commands for word in ["-c", command]]
        return run("qemu-io", "-f", "raw", *(["-r"] if read_only else []), *words,
                   f"nbd+unix:///{export}?socket={self.folder}/{side}.sock")

    def cli(self, *words, **options):
        return self.daemons.cli(*words, **options)

    def status(self, name):
        return json.loads(self.cli("status", "--name", name, "-o", "json").stdout)

    def lose_primary(self):
        self.primary.kill()


def pattern(path, offset, length):
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(length)
    return data[0] if data == bytes([data[0]]) * length else None


# --- a whole replication ---

def test_replicate_checkpoint_lose_the_primary_take_over(daemons):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 8M")
    done = pair.cli("checkpoint", "--name", "p")
    assert done.stdout.startswith("checkpoint taken in ")
    pair.io("p", "write -P 2 4M 8M")
    assert pattern(pair.folder / "s0.raw", 4 * MIB, 8 * MIB) == 2  # it is on the raw disk already
    pair.io("s", "read -P 1 0 8M", "read -P 0 8M 8M", read_only=True)
    pair.lose_primary()
    done = pair.cli("failover", "--name", "s", "--wait")
    assert "took over in" in done.stdout and "merged after" in done.stdout
    pair.io("s", "read -P 1 0 8M", "read -P 0 8M 8M", "write -P 3 0 64k")
    assert pair.status("s")["stage"] == "done"
    assert pair.cli("failover", "--name", "s").stdout.startswith("it had taken over before")
    pair.secondary.stop()
    assert pattern(pair.folder / "s0.raw", 0, 65536) == 3
    assert pattern(pair.folder / "s0.raw", 65536, 8 * MIB - 65536) == 1
    assert pattern(pair.folder / "s0.raw", 8 * MIB, 8 * MIB) == 0


def test_several_disks_with_names_go_together(daemons):
    pair = Pair(daemons, disks=("root", "data"))
    pair.io("p", "write -P 1 0 1M", export="root")
    pair.io("p", "write -P 2 0 1M", export="data")
    pair.cli("checkpoint", "--name", "p")
    pair.io("p", "write -P 3 0 1M", export="root")
    pair.io("p", "write -P 4 0 1M", export="data")
    pair.lose_primary()
    pair.cli("failover", "--name", "s", "--wait")
    pair.io("s", "read -P 1 0 1M", export="root")
    pair.io("s", "read -P 2 0 1M", export="data")
    assert len(pair.status("s")["disks"]) == 2


def test_a_primary_without_peer_control_leaves_checkpoints_to_who_asks_both(daemons):
    pair = Pair(daemons, controlled=False)
    done = pair.cli("checkpoint", "--name", "p", check=False)
    assert done.returncode == 2 and "--peer-control" in done.stderr
    pair.io("p", "write -P 1 0 1M")
    pair.cli("checkpoint", "--name", "p", "--peer-control", pair.control)
    pair.io("s", "read -P 1 0 1M", read_only=True)
    assert "control" not in pair.cli("status", "--name", "p").stdout


def test_the_checkpoint_can_be_given_from_the_secondarys_host_too(daemons):
    pair = Pair(daemons, controlled=False)
    before = pair.status("s")["epoch"]
    result = json.loads(pair.cli("checkpoint", "--name", "s", "-o", "json").stdout)
    assert result["epoch"] == before + 1 == pair.status("s")["epoch"]


def test_a_stop_without_failover_keeps_what_was_forwarded(daemons):
    pair = Pair(daemons)
    pair.io("p", "write -P 5 0 1M")
    pair.cli("stop", "--name", "p")
    pair.cli("stop", "--name", "s")
    pair.io("s", "read -P 5 0 1M", read_only=True)
    assert pair.status("s")["stage"] == "done"
    refused = pair.cli("failover", "--name", "s", check=False)
    assert refused.returncode == 1 and "replication has been stopped" in refused.stderr
    pair.cli("stop", "--name", "s", "--quit")
    assert pair.secondary.wait() == 0
    assert pattern(pair.folder / "s0.raw", 0, MIB) == 5


def test_a_standby_that_runs_may_write_before_a_failover(daemons):
    pair = Pair(daemons, secondary=["--run-standby"])
    pair.io("s", "write -P 6 0 64k")
    pair.io("p", "write -P 7 0 1M")
    pair.io("s", "read -P 6 0 64k", "read -P 0 64k 64k")
    pair.lose_primary()
    pair.cli("failover", "--name", "s", "--wait")
    pair.io("s", "read -P 6 0 64k", "read -P 0 64k 960k")


def test_before_a_failover_the_secondarys_view_is_read_only(daemons):
    pair = Pair(daemons)
    info = json.loads(run("nbdinfo", "--json", f"nbd+unix:///disk0?socket={pair.folder}/s.sock"))
    assert info["exports"][0]["is_read_only"] is True
    exports = {export["x-server"]: export for export in pair.status("s")["exports"]}
    assert exports["peer"]["x-writable"] is True
    assert exports["user"]["x-writable"] is False


def test_after_a_failover_the_primarys_way_in_is_closed(daemons):
    pair = Pair(daemons)
    pair.cli("failover", "--name", "s")
    host, port = pair.peer.split(":")
    done = subprocess.run(["nbdinfo", f"nbd://{host}:{port}/disk0"], capture_output=True, text=True,
                          check=False, timeout=DEADLINE_S)
    assert done.returncode != 0
    # Nothing has failed to be forwarded yet, and still no checkpoint is to be had.
    done = pair.cli("checkpoint", "--name", "p", check=False)
    assert done.returncode == 1 and "link" in done.stderr and "lost" in done.stderr, done.stderr
    # The primary's guest does not notice; the primary's status does.
    pair.io("p", "write -P 9 0 64k", "read -P 9 0 64k")
    assert "error" in pair.status("p")
    done = pair.cli("checkpoint", "--name", "p", check=False)
    assert done.returncode == 1
    assert "primary" in done.stderr


def test_verbs_that_make_no_sense_there_are_refused(daemons):
    pair = Pair(daemons)
    done = pair.cli("failover", "--name", "p", check=False)
    assert done.returncode == 1
    assert "primary" in done.stderr and pair.status("p")["stage"] == "running"
    pair.cli("failover", "--name", "s", "--wait")
    done = pair.cli("checkpoint", "--name", "s", check=False)
    assert done.returncode == 1
    assert "done" in done.stderr
    pair.cli("failover", "--name", "s", "--wait")  # once more is no harm
    empty = pair.daemons.start()
    done = pair.cli("failover", "--qmp", f"unix:{empty.socket_path}", check=False)
    assert done.returncode == 1
    assert "no replication" in done.stderr


# --- what the overlays hold at a start ---

def test_a_restart_goes_on_at_the_last_checkpoint(daemons):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 1M")
    pair.cli("checkpoint", "--name", "p")
    pair.io("p", "write -P 2 0 1M")
    pair.primary.stop()
    pair.secondary.stop()
    pair.start_secondary()
    pair.io("s", "read -P 1 0 1M", read_only=True)
    pair.cli("failover", "--name", "s", "--wait")
    pair.io("s", "read -P 1 0 1M")


def test_fresh_overlays_are_the_callers_word_that_the_disks_are_equal(daemons):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 1M")
    pair.primary.stop()
    pair.secondary.stop()
    pair.start_secondary("--fresh")
    pair.io("s", "read -P 1 0 1M", read_only=True)


# --- status ---

def test_status_reads_well_on_both_sides(daemons):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 1M")
    pair.cli("checkpoint", "--name", "p")
    pair.io("p", "write -P 2 0 1M")
    text = pair.cli("status", "--name", "s").stdout
    for words in ["s: secondary, running", "epoch 2", "ago", "the primary is connected",
                  "hidden holds 1 MiB", "active 0 B", "read-only", "error       none"]:
        assert words in text, text
    text = pair.cli("status", "--name", "p").stdout
    for words in ["p: primary, running", "connected", "2 MiB forwarded", "read-write"]:
        assert words in text, text
    assert "\033" not in text
    pair.primary.stop()
    pair.cli("qmp", "--name", "s", "query-status")
    assert "no primary is connected" in pair.cli("status", "--name", "s").stdout


def test_status_tells_an_error_in_full_on_the_side_that_knows(daemons):
    pair = Pair(daemons)
    assert pair.primary.qmp.cmd("query-replication")["role"] == "primary"
    pair.secondary.kill()
    pair.io("p", "write -P 9 64k 4k", "write -P 9 0 4k")
    told = pair.primary.qmp.event("REPLICATION_ERROR")["data"]
    error = pair.status("p")["error"]
    assert {**told, "count": 0} == {**error, "count": 0}
    assert told["count"] == 1 and error["count"] > 1
    disk = pair.status("p")["disks"][0]["node"]
    assert (error["side"], error["disk"], error["operation"]) == ("primary", disk, "forward write")
    assert (error["offset"], error["length"]) == (65536, 4096)
    assert abs(error["wall-time-ns"] / 1e9 - time.time()) < 60
    line = next(line for line in pair.cli("status", "--name", "p").stdout.split("\n") if "error" in line)
    when = time.strftime("%F %T", time.localtime(error["wall-time-ns"] // 10**9))
    assert line.split("error", 1)[1].strip() == (
        f"primary of disk {disk}: forward write of node {error['node']} failed at offset 65536 "
        f"(4096 bytes): {error['reason']} ({error['errno']}), on {when}, "
        f"and {error['count'] - 1} more since")


def test_status_finds_the_only_daemon_and_asks_when_there_are_more(daemons, folder):
    done = daemons.cli("status", check=False)
    assert done.returncode == 1
    assert "--name" in done.stderr
    Pair(daemons)
    done = daemons.cli("status", check=False)
    assert done.returncode == 2
    assert "p" in done.stderr and "s" in done.stderr and "--name" in done.stderr


def test_a_killed_daemons_socket_does_not_count(daemons):
    pair = Pair(daemons)
    pair.lose_primary()
    assert "s: secondary" in daemons.cli("status").stdout


def test_a_daemon_that_does_not_run_is_named(daemons):
    done = daemons.cli("status", "--name", "nobody", check=False)
    assert done.returncode == 1
    assert "nobody" in done.stderr
    assert done.stdout == ""


# --- refusals at the start ---

def test_disks_of_different_sizes_are_refused_with_both_numbers(daemons, folder):
    make_file(folder / "p0.raw", SIZE // 2)
    with pytest.raises(AssertionError) as caught:
        Pair(daemons)
    message = str(caught.value)
    assert "disk0" in message and str(SIZE) in message and str(SIZE // 2) in message
    assert "bytes at the peer 127.0.0.1:" in message
    assert daemons.all.pop().process.wait(DEADLINE_S) == 1


def test_an_image_that_is_not_raw_is_not_taken_for_a_disk(daemons, folder):
    run("qemu-img", "create", "-f", "qcow2", folder / "q.qcow2", "16M")
    done = daemons.cli("secondary", "--name", "x", "--disk", folder / "q.qcow2", "--state",
                       folder / "state", "--listen", f"127.0.0.1:{free_port()}", check=False)
    assert done.returncode == 1
    assert "qcow2" in done.stderr and "q.qcow2" in done.stderr


def test_a_peer_that_does_not_answer_or_has_no_such_disk_is_named(daemons, folder):
    port = free_port()
    disk = make_file(folder / "p.raw", SIZE)
    words = ["--state", folder / "p", "--export", f"unix:{folder}/p.sock"]
    done = daemons.cli("primary", "--name", "p", "--disk", disk, "--peer", f"127.0.0.1:{port}",
                       *words, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    pair = Pair(daemons)
    done = daemons.cli("primary", "--name", "q", "--disk", f"other={disk}", "--peer", pair.peer,
                       *words, check=False)
    assert done.returncode == 1
    assert "other" in done.stderr


def test_a_state_folder_is_for_one_daemon(daemons, folder):
    pair = Pair(daemons)
    disk = make_file(folder / "x.raw", SIZE)
    done = daemons.cli("secondary", "--name", "x", "--disk", disk, "--state", folder / "s-state",
                       "--listen", f"127.0.0.1:{free_port()}", check=False)
    assert done.returncode == 1
    assert "s-state" in done.stderr and str(pair.secondary.process.pid) in done.stderr


@pytest.mark.parametrize("words, message", [
    (["secondary"], "--name"),
    (["secondary", "--name", "x"], "--listen"),
    (["secondary", "--name", "x", "--listen", "127.0.0.1:1"], "--disk"),
    (["secondary", "--name", "1x", "--disk", "a", "--listen", "127.0.0.1:1"], "1x"),
    (["secondary", "--name", "x", "--disk", "a", "--disk", "disk0=b", "--listen", "h:1"], "disk0"),
    (["secondary", "--name", "x", "--disk", "a b=c"], "a b"),
    (["secondary", "--name", "x", "--disk", "a="], "a="),
    (["secondary", "--fresh", "--sync"], "exclude"),
    (["secondary", "--durability", "fair"], "fair"),
    (["secondary", "--colour"], "colour"),
    (["secondary", "extra"], "extra"),
    (["primary", "--name", "x", "--disk", "a"], "--peer"),
    (["primary", "--name", "x", "--disk", "a", "--peer", "h:1"], "--export"),
    (["primary", "--log-level", "loud"], "loud"),
    (["status", "-o", "yaml"], "yaml"),
    (["status", "extra"], "extra"),
    (["status", "--name", "a", "--qmp", "unix:/x"], "--qmp"),
    (["fly"], "fly"),
    (["image"], "create"),
    (["image", "burn", "x"], "burn"),
    (["image", "create", "x", "1M"], "-f"),
    (["image", "create", "-f", "vhd", "x", "1M"], "vhd"),
    (["image", "create", "-f", "raw", "x", "lots"], "lots"),
    (["image", "info"], "FILE"),
])
def test_wrong_usage_is_told_and_ends_with_2(daemons, words, message):
    done = daemons.cli(*words, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [["--listen", "0.0.0.0:PORT"],
                                   ["--listen", "127.0.0.1:PORT", "--control", "0.0.0.0:PORT"]])
def test_listeners_that_others_can_reach_need_insecure(daemons, folder, words):
    disk = make_file(folder / "x.raw", SIZE)
    words = [word.replace("PORT", str(free_port())) for word in words]
    base = ["--disk", disk, "--state", folder / "state"]
    done = daemons.cli("secondary", "--name", "x", *base, *words, check=False)
    assert done.returncode == 1
    assert "--insecure" in done.stderr
    daemon = daemons.run("secondary", "x", *base, *words, "--insecure")
    assert "is ready" in daemon.line()


def test_the_peers_control_port_takes_no_more_than_a_peer_needs(daemons):
    pair = Pair(daemons)
    done = pair.cli("qmp", "--qmp", pair.control, "quit", check=False)
    assert done.returncode == 1
    assert "has not been found" in done.stderr
    pair.cli("qmp", "--qmp", pair.control, "query-replication")


# --- the rest ---

def test_ready_is_said_in_json_when_asked(daemons, folder):
    disk = make_file(folder / "x.raw", SIZE)
    daemon = daemons.run("secondary", "x", "--disk", disk, "--state", folder / "state", "--listen",
                         "127.0.0.1:0", "-o", "json")
    ready = json.loads(daemon.line())
    assert ready["ready"] is True and ready["role"] == "secondary" and ready["name"] == "x"
    assert int(ready["listen"].rsplit(":", 1)[1]) > 0
    assert (folder / "x-disk0.hidden").exists()  # overlays lie beside the disk by default
    assert os.stat(folder / "x-disk0.hidden").st_mode & 0o077 == 0


def test_images_are_made_told_of_and_mapped(daemons, folder):
    raw, overlay = folder / "a.raw", folder / "a.overlay"
    daemons.cli("image", "create", "-f", "raw", raw, "4M")
    assert raw.stat().st_size == 4 * MIB
    daemons.cli("image", "create", "-f", "overlay", overlay, "4M")
    assert daemons.cli("image", "create", "-f", "raw", raw, "4M", check=False).returncode == 1
    assert daemons.cli("image", "create", "-f", "overlay", overlay, "4M", check=False).returncode == 1
    daemons.cli("image", "create", "-f", "overlay", "--replace", overlay, "8M")
    info = json.loads(daemons.cli("image", "info", "-o", "json", overlay).stdout)
    assert info["format"] == "overlay" and info["virtual-size"] == 8 * MIB
    info = json.loads(daemons.cli("image", "info", "-o", "json", raw).stdout)
    assert info["format"] == "raw" and info["virtual-size"] == 4 * MIB
    assert "4 MiB" in daemons.cli("image", "info", raw).stdout
    with open(raw, "r+b") as file:
        file.seek(MIB)
        file.write(b"x" * MIB)
    stretches = json.loads(daemons.cli("image", "map", "-o", "json", raw).stdout)
    assert [{"offset": MIB, "length": MIB, "kind": "data"}] == \
        [stretch for stretch in stretches if stretch["kind"] == "data"]
    assert json.loads(daemons.cli("image", "map", "-o", "json", overlay).stdout) == []


def test_a_map_of_an_overlay_shows_what_it_holds(daemons):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 2M 64k")
    pair.primary.stop()
    pair.secondary.stop()
    stretches = json.loads(pair.cli("image", "map", "-o", "json",
                                    pair.folder / "overlays/s-disk0.hidden").stdout)
    assert sum(stretch["length"] for stretch in stretches) == 65536
    assert stretches[0]["offset"] == 2 * MIB


@pytest.mark.parametrize("damage, words", [
    ("absent", "No such file"), ("folder", "directory"), ("magic", "magic"), ("cut", "damaged")])
def test_an_image_that_is_none_is_told_with_its_path(daemons, folder, damage, words):
    path = folder / "image"
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        daemons.cli("image", "create", "-f", "overlay", path, "4M")
        with open(path, "r+b") as file:
            if damage == "magic":
                file.write(b"\0" * 8192)
            else:
                file.truncate(100)
    done = daemons.cli("image", "info", "-f", "overlay", path, check=False)
    assert done.returncode == 1
    assert str(path) in done.stderr and words in done.stderr


def test_raw_commands_go_from_words_json_and_standard_input(daemons):
    daemon = daemons.start("--blockdev", "null-co,node-name=n,size=1M")
    address = f"unix:{daemon.socket_path}"
    assert json.loads(daemons.cli("qmp", "--qmp", address, "query-status").stdout)["running"]
    daemons.cli("qmp", "--qmp", address, "blockdev-add", "driver=null-co", "node-name=m", "size=4096")
    answer = daemons.cli("qmp", "--qmp", address, '{"execute": "query-block", "id": 3}').stdout
    assert json.loads(answer)["id"] == 3
    done = daemons.cli("qmp", "--qmp", address, "blockdev-del", "node-name=z", check=False)
    assert done.returncode == 1
    assert "blockdev-del: Failed to find node with node-name='z'" in done.stderr
    assert daemons.cli("qmp", "--qmp", address, "query-status", "x", check=False).returncode == 2
    done = subprocess.run([str(BLOCKSTEP), "qmp", "--qmp", address], text=True, timeout=DEADLINE_S,
                          input="query-status\n\nblockdev-del node-name=m\n", check=True,
                          capture_output=True)
    assert '"running":true' in done.stdout
    with pytest.raises(QmpError):
        daemon.qmp.cmd("blockdev-del", node_name="m")


def test_help_is_there_for_every_verb_and_version_is_told(daemons):
    text = daemons.cli("--help").stdout
    for verb in ["primary", "secondary", "status", "checkpoint", "failover", "stop", "image", "qmp"]:
        assert verb in text
        assert f"usage: blockstep {verb}" in daemons.cli(verb, "--help").stdout
    assert daemons.cli("--version").stdout.startswith("blockstep ")
    assert daemons.cli(check=False).returncode == 2


def test_a_primary_ends_well_on_a_signal_also_when_the_peer_is_dead(daemons):
    pair = Pair(daemons)
    pair.secondary.kill()
    pair.io("p", "write -P 1 0 64k", "flush")
    pair.primary.signal(signal.SIGINT)
    assert pair.primary.wait() == 0
    assert pattern(pair.folder / "p0.raw", 0, 65536) == 1
