# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a secondary believes of a primary that does not speak to it: one that goes on where it was, and none
that was killed, cut off or replaced, before a synchronisation. Real processes, real links."""

import nbd
import pytest

from bad_link import TO_SERVER, Link
from blockstep import free_port, make_file
from test_sessions import BLOCK, SIZE, Secondary, refused, write

LOST = "was lost, and perhaps writes with it"


class Pair:
    """A secondary, and a primary of its first disk without peer-control: as stock managers make them."""

    def __init__(self, daemons, folder):
        self.daemons, self.folder, self.lives = daemons, folder, 0
        self.secondary = Secondary(daemons, folder)
        port = free_port()
        self.secondary.qmp.cmd("nbd-server-start", id="tcp", addr={
            "type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}})
        self.secondary.qmp.cmd("nbd-server-add", device="disk0", name="disk", server="tcp",
                               writable=True)
        self.link = Link(port)
        make_file(folder / "p.raw", SIZE)
        self.start_primary()

    def start_primary(self):
        self.lives += 1
        socket = self.folder / f"p{self.lives}.sock"
        self.primary = self.daemons.start(
            "--blockdev", f"file,node-name=local,filename={self.folder}/p.raw",
            "--blockdev", "replication,node-name=link,mode=primary,file.driver=nbd,file.export=disk,"
                          f"file.server.type=inet,file.server.host=127.0.0.1,file.server.port={self.link.port}",
            "--blockdev", "quorum,node-name=top,children.0=local,children.1=link,vote-threshold=1,"
                          "read-pattern=fifo",
            "--nbd-server", f"addr.type=unix,addr.path={socket}",
            "--export", "type=nbd,id=e,node-name=top,name=disk,writable=on", name=f"p{self.lives}")
        self.primary.qmp.cmd("replication-start", mode="primary")
        self.guest = nbd.NBD()
        self.guest.connect_uri(f"nbd+unix:///disk?socket={socket}")

    def write(self, byte, number=0):
        write(self.guest, byte, number)

    def checkpoint(self):
        self.primary.qmp.cmd("replication-checkpoint")
        return self.secondary.qmp.cmd("replication-checkpoint")["epoch"]

    def expect_broken(self, *parts):
        """Checkpoints are refused, with the reason."""
        qmp = self.secondary.qmp
        for command in ("replication-checkpoint", "xen-colo-do-checkpoint"):
            text = refused(qmp.cmd, command)
            assert all(part in text for part in parts), text
        status = qmp.cmd("query-xen-replication-status")
        assert status["error"] and parts[0] in status["desc"]
        assert not qmp.cmd("query-replication")["stream-intact"]

    def mend(self):
        assert self.secondary.qmp.cmd("replication-checkpoint", first=True)
        self.secondary.qmp.cmd("replication-checkpoint")


@pytest.fixture
def pair(daemons, folder):
    pair = Pair(daemons, folder)
    yield pair
    pair.link.end()


def test_a_primary_that_was_killed_and_started_again_is_not_believed(pair):
    pair.write(1)
    assert pair.checkpoint() == 2
    pair.primary.kill()
    pair.link.wait_ended()
    pair.start_primary()
    # As long as it writes nothing nothing is wrong.
    assert pair.checkpoint() == 3
    pair.write(2)
    pair.expect_broken(LOST, "writes without a synchronisation")
    pair.secondary.kill_and_restart()
    pair.expect_broken(LOST)
    pair.mend()


def test_a_link_that_was_cut_and_made_again_is_not_believed(pair):
    pair.write(1)
    pair.link.cut(TO_SERVER)
    pair.write(2)  # the guest does not notice
    pair.primary.qmp.event("REPLICATION_LINK", connected=False)
    qmp = pair.primary.qmp
    qmp.cmd("x-blockdev-change", parent="top", child="children.1")
    qmp.cmd("blockdev-del", node_name="link")
    qmp.cmd("blockdev-add", {"driver": "replication", "mode": "primary", "node-name": "link2", "file": {
        "driver": "nbd", "export": "disk",
        "server": {"type": "inet", "host": "127.0.0.1", "port": str(pair.link.port)}}})
    qmp.cmd("x-blockdev-change", parent="top", node="link2")
    qmp.cmd("replication-start", mode="primary")
    pair.write(3, 1)
    qmp.cmd("replication-checkpoint")  # it does not know of what its former link lost
    pair.expect_broken(LOST)
    pair.mend()


def test_after_a_restart_of_the_secondary_the_primary_must_synchronise(pair):
    secondary = pair.secondary
    pair.write(1)
    pair.checkpoint()
    secondary.kill_and_restart()
    secondary.qmp.cmd("replication-checkpoint")
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///disk0?socket={pair.folder}/peer.nbd")
    write(handle, 2)
    pair.expect_broken("started again while a primary was writing")
    pair.mend()
    handle.shutdown()


def test_who_left_in_good_order_may_be_followed(pair):
    for byte in range(1, 4):
        pair.write(byte)
        epoch = pair.checkpoint()
        assert epoch == byte + 1
        pair.guest.shutdown()
        pair.primary.stop()
        pair.start_primary()
    pair.write(9)
    assert pair.checkpoint() == 5
    with open(pair.folder / "s0.raw", "rb") as file:
        assert file.read(BLOCK) == b"\x09" * BLOCK


def test_a_second_writer_is_noticed_before_it_does_harm(pair):
    pair.write(1)
    pair.checkpoint()
    other = nbd.NBD()
    other.connect_uri(f"nbd://127.0.0.1:{pair.link.port}/disk")
    other.pread(BLOCK, 0)
    pair.checkpoint()
    write(other, 2)
    pair.expect_broken("does too")
    other.shutdown()


def test_a_record_of_version_1_is_read_and_nobody_is_believed(daemons, folder):
    secondary = Secondary(daemons, folder)
    secondary.daemon.stop()
    path = folder / "state/group"
    text = path.read_text(encoding="utf-8")
    body = text[:text.index(',\n  "crc32c"')]
    body = body.replace('"version": 3', '"version": 1').replace('  "stream-begun": false,\n', "")
    body = body.replace('  "lost": "",\n', "")
    path.write_text(f'{body},\n  "crc32c": "{crc32c(body.encode()):08x}"\n}}\n', encoding="utf-8")
    secondary.kill_and_restart()
    assert secondary.query()["stream-intact"]
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///disk0?socket={folder}/peer.nbd")
    write(handle, 1)
    assert "started again" in refused(secondary.qmp.cmd, "replication-checkpoint")
    assert '"version": 3' in path.read_text(encoding="utf-8")
    handle.shutdown()


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
