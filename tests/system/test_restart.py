# SPDX-License-Identifier: LGPL-2.1-or-later
"""A secondary that is killed, at any moment, goes on by itself: at its last checkpoint, or with its merge."""

import json
import os
import random
import shutil
import threading

import nbd
import pytest

from blockstep import QmpError, free_port, make_file
from test_cli import Pair

SIZE = 16 << 20
BLOCK = 4096


class Views:
    """What is known of each block: as of the checkpoint, and all that was written since."""

    def __init__(self):
        self.checkpoint = {}
        self.since = {}

    def write(self, block, byte):
        self.since[block] = byte

    def cut(self):
        self.checkpoint.update(self.since)
        self.since = {}


def connect(folder, side):
    client = nbd.NBD()
    client.connect_uri(f"nbd+unix:///disk0?socket={folder}/{side}.sock")
    return client


def restart_secondary(pair, *words):
    (pair.folder / "blockstep/s.qmp").unlink(missing_ok=True)
    pair.start_secondary(*words)


def synchronise(pair):
    """A primary that has lost its link is started anew, with a copy of its disks."""
    pair.primary.stop()
    pair.primary = pair.daemons.run("primary", "p", *pair.primary_words, "--sync")
    assert "is ready" in pair.primary.line() and "synchronised" in pair.primary.line()


def view_of(folder, blocks):
    client = connect(folder, "s")
    seen = {block: client.pread(BLOCK, block * BLOCK) for block in sorted(blocks)}
    client.shutdown()
    for block, content in seen.items():
        assert content == content[:1] * BLOCK, f"block {block} is torn"
    return {block: content[0] for block, content in seen.items()}


class Writer(threading.Thread):
    """Writes of a primary's guest, until they fail or there is enough."""

    def __init__(self, folder, views, dice):
        super().__init__()
        self.folder, self.views, self.dice = folder, views, dice
        self.enough = threading.Event()
        self.written = 0

    def run(self):
        client = connect(self.folder, "p")
        while not self.enough.is_set():
            block, byte = self.dice.randrange(SIZE // BLOCK), self.dice.randrange(1, 256)
            self.views.write(block, byte)
            client.pwrite(bytes([byte]) * BLOCK, block * BLOCK)
            self.written += 1
        client.shutdown()


def test_killed_under_load_it_restarts_at_the_last_checkpoint_exactly(daemons, folder):
    seed = int(os.environ.get("BLOCKSTEP_TEST_SEED", random.randrange(1 << 32)))
    print(f"BLOCKSTEP_TEST_SEED={seed}")
    dice = random.Random(seed)
    pair = Pair(daemons)
    views = Views()
    for _ in range(4):
        writer = Writer(folder, views, random.Random(dice.random()))
        for _ in range(dice.randrange(3)):
            client = connect(folder, "p")
            for _ in range(100):
                block, byte = dice.randrange(SIZE // BLOCK), dice.randrange(1, 256)
                client.pwrite(bytes([byte]) * BLOCK, block * BLOCK)
                views.write(block, byte)
            client.shutdown()
            pair.cli("checkpoint", "--name", "p")
            views.cut()
        writer.start()
        goal = dice.randrange(400)
        while writer.written < goal:
            assert writer.is_alive()
        pair.secondary.kill()
        writer.enough.set()
        writer.join()
        restart_secondary(pair)
        query = pair.secondary.qmp.cmd("query-replication")
        assert query["stage"] == "running" and query["consistent"], query
        seen = view_of(folder, set(views.checkpoint) | set(views.since))
        wanted = {block: views.checkpoint.get(block, 0) for block in seen}
        assert seen == wanted
        synchronise(pair)
        views.cut()
        assert view_of(folder, views.checkpoint) == views.checkpoint


def test_killed_in_a_checkpoint_it_has_one_epoch_or_the_other(daemons, folder):
    seed = int(os.environ.get("BLOCKSTEP_TEST_SEED", random.randrange(1 << 32)))
    print(f"BLOCKSTEP_TEST_SEED={seed}")
    dice = random.Random(seed)
    pair = Pair(daemons, disks=("",), secondary=("--durability", "process"))
    known = 0
    for byte in range(1, 7):
        client = connect(folder, "p")
        client.pwrite(bytes([byte]) * (16 * BLOCK), 0)
        client.shutdown()
        qmp = pair.primary.qmp
        reached = 0
        for _ in range(dice.randrange(1, 30)):
            qmp.send({"execute": "replication-checkpoint"})
            if reached == 0 or dice.random() < 0.5:
                reached = qmp.answer()["return"]["epoch"]
        pair.secondary.kill()
        restart_secondary(pair)
        query = pair.secondary.qmp.cmd("query-replication")
        assert query["consistent"] and query["epoch"] >= reached > known
        known = query["epoch"]
        assert view_of(folder, range(16)) == {block: byte for block in range(16)}
        synchronise(pair)


def test_killed_in_a_merge_it_finishes_it(daemons, folder):
    pair = Pair(daemons)
    client = connect(folder, "p")
    client.pwrite(b"\x01" * SIZE, 0)
    pair.cli("checkpoint", "--name", "p")
    client.pwrite(b"\x02" * SIZE, 0)
    client.shutdown()
    pair.primary.stop()
    for moment in range(4):
        pair.cli("failover", "--name", "s")
        user = connect(folder, "s")
        user.pwrite(bytes([10 + moment]) * BLOCK, moment * BLOCK)
        user.flush()
        user.shutdown()
        pair.secondary.kill()
        restart_secondary(pair)
        query = pair.secondary.qmp.cmd("query-replication")
        assert query["stage"] in ("failover", "done")
        exports = pair.secondary.qmp.cmd("query-block-exports")
        assert [e["id"] for e in exports] == ["disk0-user"], "the primary stays shut out"
        seen = view_of(folder, range(SIZE // BLOCK))
        wanted = {block: 1 for block in seen}
        wanted.update({block: 10 + block for block in range(moment + 1)})
        assert seen == wanted
    pair.cli("wait", "--name", "s", "--for", "stage=done", "--timeout", "20")
    pair.secondary.stop()
    disk = (folder / "s0.raw").read_bytes()
    assert disk[4 * BLOCK:] == b"\x01" * (SIZE - 4 * BLOCK)
    assert disk[3 * BLOCK:4 * BLOCK] == b"\x0d" * BLOCK


def test_what_was_lost_is_said_and_taken_only_by_force(daemons, folder):
    pair = Pair(daemons)
    client = connect(folder, "p")
    client.pwrite(b"\x01" * BLOCK, 0)
    pair.cli("checkpoint", "--name", "p")
    client.pwrite(b"\x02" * BLOCK, 0)
    client.shutdown()
    pair.primary.stop()
    pair.secondary.kill()
    next((folder / "overlays").glob("*.hidden")).unlink()
    restart_secondary(pair)
    text = pair.cli("status", "--name", "s").stdout
    assert "inconsistent" in text and "hidden disk is lost" in text and "--force" in text
    refused = pair.cli("failover", "--name", "s", check=False)
    assert refused.returncode == 1 and "hidden disk is lost" in refused.stderr
    with pytest.raises(nbd.Error):
        connect(folder, "s").pread(BLOCK, 0)
    forced = pair.cli("failover", "--name", "s", "--force", "--wait")
    assert "mixture of times" in forced.stderr
    assert view_of(folder, [0]) == {0: 2}
    pair.secondary.stop()
    pair.start_secondary()
    query = pair.secondary.qmp.cmd("query-replication")
    assert query["stage"] == "done" and query["promoted"]
    user = connect(folder, "s")
    user.pwrite(b"\x03" * BLOCK, 0)
    user.shutdown()


def test_the_primary_refuses_the_state_of_a_running_secondary(daemons, folder):
    pair = Pair(daemons)
    pair.primary.stop()
    pair.secondary.kill()
    port = free_port()
    daemons.start("--blockdev", f"null-co,node-name=n,size={SIZE}", "--nbd-server",
                  f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}", "--export",
                  "nbd,id=e,node-name=n,name=disk0,writable=on")
    done = daemons.cli("primary", "--name", "x", "--disk", folder / "s0.raw", "--peer",
                       f"127.0.0.1:{port}", "--state", folder / "s-state", "--export", f"unix:{folder}/x.sock", check=False)
    assert done.returncode == 1
    assert "the record of a secondary in stage 'running'" in done.stderr


def test_blockstepd_with_a_state_folder_asks_its_record(daemons, folder):
    make_file(folder / "disk.raw", SIZE)
    for name in ("active", "hidden"):
        daemons.cli("image", "create", "-f", "overlay", folder / name, SIZE)
    words = ["--state", folder / "state",
             "--blockdev", f"file,node-name=disk,filename={folder}/disk.raw",
             "--blockdev", f"overlay,node-name=hidden,file.driver=file,file.filename={folder}/hidden,"
                           "backing=disk",
             "--blockdev", f"overlay,node-name=active,file.driver=file,file.filename={folder}/active,"
                           "backing=hidden",
             "--blockdev", "replication,node-name=rep,mode=secondary,top-id=rep,file=active",
             "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock"]

    def start(*more):
        daemon = daemons.start(*words, *more, name=f"d{len(daemons.all)}")
        with pytest.raises(QmpError, match="leave 'overlays' out"):
            daemon.qmp.cmd("replication-start", mode="secondary", overlays="merge")
        daemon.qmp.cmd("replication-start", mode="secondary")
        daemon.qmp.cmd("nbd-server-add", device="disk", writable=True)
        return daemon

    daemon = start()
    client = nbd.NBD()
    client.connect_uri(f"nbd+unix:///disk?socket={folder}/nbd.sock")
    client.pwrite(b"\x01" * BLOCK, 0)
    client.shutdown()
    assert daemon.qmp.cmd("replication-checkpoint")["epoch"] == 2
    daemon.kill()
    (folder / "nbd.sock").unlink()
    daemon = start("--durability", "none")
    query = daemon.qmp.cmd("query-replication")
    assert (query["epoch"], query["consistent"], query["durability"]) == (2, True, "none")
    daemon.kill()
    (folder / "nbd.sock").unlink()
    daemon = start()
    assert "level 'none'" in daemon.qmp.cmd("query-replication")["inconsistent-reason"]


def damage_record(path, nth):
    """Of an overlay's log: its nth record is bad."""
    image = bytearray(path.read_bytes())
    at = -1
    for _ in range(nth):
        at = image.index(bytes.fromhex("b54f766c5265639e"), at + 1)
    image[at + 64] ^= 1
    path.write_bytes(image)


def test_a_damaged_failover_is_taken_by_force_up_to_the_damage(daemons, folder):
    make_file(folder / "disk.raw", SIZE)
    for name in ("active", "hidden"):
        daemons.cli("image", "create", "-f", "overlay", folder / name, SIZE)

    def start(*faults):
        (folder / "nbd.sock").unlink(missing_ok=True)
        daemon = daemons.start(
            "--state", folder / "state",
            "--blockdev", f"blkdebug,node-name=disk,file.driver=file,file.filename={folder}/disk.raw"
            + "".join(faults),
            "--blockdev", f"overlay,node-name=hidden,file.driver=file,file.filename={folder}/hidden,"
                          "on-damage=hold,backing=disk",
            "--blockdev", f"overlay,node-name=active,file.driver=file,file.filename={folder}/active,"
                          "on-damage=hold,backing=hidden",
            "--blockdev", "replication,node-name=rep,mode=secondary,top-id=rep,file=active",
            "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock", name=f"d{len(daemons.all)}")
        daemon.qmp.cmd("replication-start", mode="secondary")
        for node in ("disk", "rep"):
            if node == "rep" or daemon.qmp.cmd("query-replication")["stage"] == "running":
                daemon.qmp.cmd("nbd-server-add", device=node, writable=True)
        return daemon

    def reach(name):
        handle = nbd.NBD()
        handle.connect_uri(f"nbd+unix:///{name}?socket={folder}/nbd.sock")
        return handle

    daemon = start()
    disk, user = reach("disk"), reach("rep")
    for block in range(3):
        disk.pwrite(b"\x01" * BLOCK, block * BLOCK)
    assert daemon.qmp.cmd("replication-checkpoint")["epoch"] == 2
    for block in range(3):
        disk.pwrite(b"\x02" * BLOCK, block * BLOCK)
        user.pwrite(b"\x03" * BLOCK, (8 + block) * BLOCK)
    daemon.kill()
    daemon = start(",inject.0.kind=write,inject.0.errno=5,inject.0.count=1000000")
    daemon.qmp.cmd("replication-stop", failover=True)
    daemons.cli("wait", "--qmp", f"unix:{daemon.socket_path}", "--for",
                "stage=failover-failed", "--timeout", "20")
    daemon.kill()
    damage_record(folder / "hidden", 2)
    daemon = start()
    at = ["--qmp", f"unix:{daemon.socket_path}"]
    status = daemons.cli("status", *at).stdout
    assert "overlay of its hidden disk is damaged" in status and "--force to go on" in status
    refused = daemons.cli("failover", *at, check=False)
    assert refused.returncode == 1 and "failover --force" in refused.stderr, refused.stderr
    forced = daemons.cli("failover", *at, "--force", "--wait")
    lost = "of the blocks of its last checkpoint that the primary has overwritten since 4 KiB are left"
    for said in (forced.stderr, daemons.cli("status", *at).stdout):
        assert f"disk 'rep': {lost}" in said and "record 2 at byte" in said, said
    user = reach("rep")
    seen = [user.pread(BLOCK, block * BLOCK)[0] for block in (0, 1, 2, 8, 9, 10)]
    assert seen == [1, 2, 2, 3, 3, 3]
    user.pwrite(b"\x04" * BLOCK, 0)
    user.shutdown()
    daemon.stop()
    daemon = start()
    query = daemon.qmp.cmd("query-replication")
    assert query["promoted"] and query["consistent"] and lost in query["lost"]


def test_a_copy_in_place_of_the_disk_is_not_taken_for_it(daemons, folder):
    pair = Pair(daemons)
    pair.primary.stop()
    pair.secondary.stop()
    recorded = json.loads((folder / "s-state/group").read_text())["disks"][0]["identity"]
    if not recorded:
        pytest.skip("nothing tells files apart on this file system")
    shutil.copyfile(folder / "s0.raw", folder / "copy")
    (folder / "copy").rename(folder / "s0.raw")
    done = daemons.cli("secondary", "--name", "s", *pair.secondary_words, check=False)
    assert done.returncode == 1 and "is another file" in done.stderr
    pair.start_secondary("--sync")
    assert not pair.secondary.qmp.cmd("query-replication")["consistent"]
