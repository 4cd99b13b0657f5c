# SPDX-License-Identifier: LGPL-2.1-or-later
"""A secondary knows one primary at a time: what it lets in, what it believes, what it refuses. The primary
is played by the tests, who speak docs/peer-protocol.md."""

import json
import signal
import socket

import nbd
import pytest

from blockstep import Qmp, QmpError, make_file

SIZE = 1 << 20
BLOCK = 4096
OURS, THEIRS = "00000000000000a1", "00000000000000b2"


class Secondary:
    """A blockstepd with two secondary disks, a listener for data and one for control."""

    def __init__(self, daemons, folder, overlays="empty", start=True):
        self.daemons, self.folder, self.count = daemons, folder, 0
        for disk in range(2):
            make_file(folder / f"s{disk}.raw", SIZE)
            for layer in ("active", "hidden"):
                daemons.cli("image", "create", "-f", "overlay", folder / f"{layer}{disk}.overlay", SIZE)
        self.launch()
        if start:
            self.qmp.cmd("replication-start", mode="secondary", overlays=overlays)
            self.export()

    def launch(self):
        words = ["--state", self.folder / "state", "--qmp", f"unix:{self.folder}/peer.qmp,role=peer",
                 "--nbd-server", f"addr.type=unix,addr.path={self.folder}/peer.nbd"]
        for disk in range(2):
            words += [
                "--blockdev", f"file,node-name=disk{disk},filename={self.folder}/s{disk}.raw",
                "--blockdev", f"overlay,node-name=hidden{disk},backing=disk{disk},"
                              f"file.driver=file,file.filename={self.folder}/hidden{disk}.overlay",
                "--blockdev", f"overlay,node-name=active{disk},backing=hidden{disk},"
                              f"file.driver=file,file.filename={self.folder}/active{disk}.overlay",
                "--blockdev", f"replication,node-name=top{disk},mode=secondary,top-id=top{disk},"
                              f"file=active{disk}"]
        self.count += 1
        self.daemon = self.daemons.start(*words, name=f"s{self.count}")
        self.qmp = self.daemon.qmp

    def export(self):
        for disk in range(2):
            self.qmp.cmd("nbd-server-add", device=f"disk{disk}", writable=True)

    def kill_and_restart(self):
        self.daemon.kill()
        for name in ("peer.qmp", "peer.nbd"):
            (self.folder / name).unlink(missing_ok=True)
        self.launch()
        self.qmp.cmd("replication-start", mode="secondary")
        self.export()

    def query(self):
        return self.qmp.cmd("query-replication")

    def block(self, disk=0, number=0):
        with open(self.folder / f"s{disk}.raw", "rb") as file:
            file.seek(number * BLOCK)
            return file.read(BLOCK)[0]


class Primary:
    """Its control connection, and its data."""

    def __init__(self, secondary, instance=OURS):
        self.folder, self.instance = secondary.folder, instance
        self.qmp = Qmp(self.folder / "peer.qmp")
        self.session = None

    def arguments(self, **more):
        return {"version-min": 1, "version-max": 1, "instance": self.instance,
                "exports": ["disk0", "disk1"], **more}

    def hello(self, **more):
        answer = self.qmp.cmd("replication-hello", self.arguments(**more))
        self.session = answer["session"]
        return answer

    def connect(self, disk=0):
        return connect(self.folder, disk, self.instance)

    def checkpoint(self, **more):
        return self.qmp.cmd("replication-checkpoint", session=self.session, **more)["epoch"]


def connect(folder, disk=0, instance=None):
    handle = nbd.NBD()
    if instance is not None:
        handle.add_meta_context(f"x-blockstep:instance={instance}")
    handle.connect_uri(f"nbd+unix:///disk{disk}?socket={folder}/peer.nbd")
    return handle


def write(handle, byte, number=0):
    handle.pwrite(bytes([byte]) * BLOCK, number * BLOCK)


def refused(call, *args, **more):
    with pytest.raises(QmpError) as error:
        call(*args, **more)
    return error.value.desc


# --- a session's life ---

@pytest.mark.commands("replication-hello", "replication-report")
def test_a_session_begins_goes_on_and_tells(daemons, folder):
    secondary = Secondary(daemons, folder)
    primary = Primary(secondary)
    answer = primary.hello()
    assert answer == {"version": 1, "session": 1, "epoch": 1, "generation": "0" * 16,
                      "consistent": True, "stream-intact": True, "durability": "process"}
    assert secondary.query()["session"] == {"number": 1, "instance": OURS, "connected": True}
    event = secondary.qmp.event("REPLICATION_PEER")["data"]
    assert event == {"role": "secondary", "session": 1, "connected": True}
    data = primary.connect()
    write(data, 1)
    assert primary.checkpoint(epoch=2) == 2
    assert primary.qmp.event("REPLICATION_CHECKPOINT")["data"]["epoch"] == 2
    # The answer was lost: the question is repeated, on another connection.
    primary.qmp.close()
    secondary.qmp.event("REPLICATION_PEER", connected=False)
    assert not secondary.query()["session"]["connected"]
    primary.qmp = Qmp(folder / "peer.qmp")
    assert primary.hello(session=1)["epoch"] == 2
    assert primary.checkpoint(epoch=2) == 2
    write(data, 2)
    assert primary.checkpoint(epoch=3) == 3
    assert "epoch 7 cannot follow 3" in refused(primary.checkpoint, epoch=7)
    assert primary.checkpoint(epoch=2) == 3
    # What the primary lacks the secondary tells as well, and believes it no more.
    error = {"side": "primary", "disk": "repl0", "node": "link0", "operation": "forward write", "offset": 4096,
             "length": 512, "errno": "EIO", "reason": "Input/output error",
             "wall-time-ns": 1700000000000000000, "count": 1}
    primary.qmp.cmd("replication-report", session=1, error=error)
    query = secondary.query()
    assert query["peer-error"] == error and not query["stream-intact"]
    assert "forward write failed on node 'link0'" in query["stream-reason"]
    assert "link0" in refused(primary.checkpoint)
    assert secondary.qmp.cmd("query-xen-replication-status")["error"]
    assert primary.checkpoint(first=True) == 4
    query = secondary.query()
    assert "peer-error" not in query and query["stream-intact"]
    data.shutdown()


def test_while_it_is_connected_nobody_else_writes_or_asks_for_checkpoints(daemons, folder):
    secondary = Secondary(daemons, folder)
    primary = Primary(secondary)
    stranger, nobody = connect(folder, 0), connect(folder, 1)
    primary.hello()
    data = primary.connect()
    write(data, 1)
    # They were cut; new connections may read, and no more.
    for handle in (stranger, nobody):
        with pytest.raises(nbd.Error):
            handle.pread(BLOCK, 0)
    for handle in (connect(folder, 0, THEIRS), connect(folder, 0)):
        assert handle.pread(BLOCK, 0) == b"\1" * BLOCK
        for change in (lambda h: write(h, 9), lambda h: h.zero(BLOCK, 0), lambda h: h.trim(BLOCK, 0)):
            with pytest.raises(nbd.Error) as error:
                change(handle)
            assert error.value.errno == "EPERM"
        handle.shutdown()
    assert secondary.block() == 1
    for qmp in (secondary.qmp, Qmp(folder / "peer.qmp")):
        for command in ("replication-checkpoint", "xen-colo-do-checkpoint"):
            assert "session 1 takes the checkpoints: ask the primary" in refused(qmp.cmd, command)
        assert "not this connection's" in refused(qmp.cmd, "replication-checkpoint", session=1)
    assert secondary.query()["stream-intact"]
    primary.qmp.cmd("xen-colo-do-checkpoint")
    # Without it the manager may ask again.
    primary.qmp.close()
    secondary.qmp.event("REPLICATION_PEER", connected=False)
    secondary.qmp.cmd("replication-checkpoint")
    data.shutdown()


def test_a_new_session_ends_the_former_and_is_believed_after_a_synchronisation_only(daemons, folder):
    secondary = Secondary(daemons, folder)
    old = Primary(secondary)
    old.hello()
    data = old.connect()
    write(data, 1)
    old.checkpoint()
    new = Primary(secondary, THEIRS)
    answer = new.hello()
    assert answer["session"] == 2 and not answer["stream-intact"]
    assert "started anew and has not synchronised" in answer["stream-reason"]
    assert old.qmp.receive() is None or old.qmp.line() is None
    with pytest.raises(nbd.Error):
        write(data, 9)
    old.qmp = Qmp(folder / "peer.qmp")
    assert "session 1 of" in refused(old.hello, session=1)
    assert "with session 2" in refused(old.hello, session=1)
    assert "ended" in refused(old.hello, session=3)
    with pytest.raises(nbd.Error):
        write(old.connect(), 9)
    assert secondary.block() == 1
    assert "not synchronised" in refused(new.checkpoint)
    late = new.connect()
    write(late, 2)
    assert new.checkpoint(first=True) == 3
    write(late, 3)
    assert new.checkpoint() == 4
    late.shutdown()


def test_what_it_said_of_the_stream_survives_a_kill(daemons, folder):
    secondary = Secondary(daemons, folder)
    Primary(secondary).hello()
    secondary.kill_and_restart()
    primary = Primary(secondary)
    assert "session 1 has ended: this secondary was started again" in refused(primary.hello, session=1)
    answer = primary.hello()
    assert answer["session"] == 1 and not answer["stream-intact"]
    secondary.kill_and_restart()
    assert not secondary.query()["stream-intact"]


def test_a_synchronisation_is_no_checkpoint_before_its_end(daemons, folder):
    secondary = Secondary(daemons, folder)
    primary = Primary(secondary)
    answer = primary.hello(resync=True)
    assert "a synchronisation is under way" in answer["stream-reason"]
    assert "under way" in refused(primary.checkpoint)
    assert primary.checkpoint(first=True) == 2
    assert primary.checkpoint() == 3


def test_a_secondary_that_was_never_synchronised_says_so(daemons, folder):
    secondary = Secondary(daemons, folder, overlays="sync")
    primary = Primary(secondary)
    answer = primary.hello(resync=True)
    assert not answer["consistent"] and "never synchronised" in answer["inconsistent-reason"]
    with pytest.raises(nbd.Error):
        write(connect(folder, 0, THEIRS), 9)
    data = primary.connect()
    write(data, 1)
    assert primary.checkpoint(first=True, epoch=answer["epoch"] + 1) == answer["epoch"] + 1
    assert secondary.query()["consistent"]
    data.shutdown()


# --- a primary that wakes up ---

def test_a_primary_that_was_replaced_while_it_slept_changes_nothing_when_it_wakes(daemons, folder):
    secondary = Secondary(daemons, folder)
    make_file(folder / "p.raw", SIZE)
    old = daemons.start(
        "--blockdev", f"nbd,node-name=link,server.type=unix,server.path={folder}/peer.nbd,export=disk0",
        "--nbd-server", f"addr.type=unix,addr.path={folder}/old.nbd",
        "--export", "type=nbd,id=e,node-name=link,name=disk,writable=on", name="old")
    guest = nbd.NBD()
    guest.connect_uri(f"nbd+unix:///disk?socket={folder}/old.nbd")
    write(guest, 1)
    old.signal(signal.SIGSTOP)
    content = nbd.Buffer.from_bytearray(bytearray(b"\2" * BLOCK))
    for number in range(20):
        guest.aio_pwrite(content, number * BLOCK)
    new = Primary(secondary, THEIRS)
    assert not new.hello()["stream-intact"]
    data = new.connect()
    write(data, 3)
    assert new.checkpoint(first=True) == 2
    old.signal(signal.SIGCONT)
    with pytest.raises(nbd.Error):
        write(guest, 4)
    assert [secondary.block(0, number) for number in range(20)] == [3] + [0] * 19
    write(data, 5)
    assert new.checkpoint() == 3
    data.shutdown()


# --- what is refused ---

def test_versions_without_one_in_common_are_refused_naming_both(daemons, folder):
    secondary = Secondary(daemons, folder)
    primary = Primary(secondary)
    for lowest, highest in ((2, 9), (0, 0), (1, 0)):
        text = refused(primary.hello, **{"version-min": lowest, "version-max": highest})
        assert f"versions {lowest} to {highest}" in text and "this secondary 1 to 1" in text
    assert primary.hello(**{"version-min": 0, "version-max": 99})["version"] == 1


BAD = [({"instance": "0" * 16}, "instance"), ({"instance": "00000000000000A1"}, "instance"),
       ({"instance": ""}, "instance"), ({"instance": 7}, "instance"), ({"exports": []}, "disk 'top0'"),
       ({"exports": ["disk0"]}, "disk 'top1'"), ({"exports": ["disk0", "disk0"]}, "top1"),
       ({"exports": ["disk0", "disk1", "other"]}, "of which 2 lead"), ({"exports": "disk0"}, "exports"),
       ({"session": 0}, "session"), ({"session": -1}, "session"), ({"session": 1, "resync": True}, "resync"),
       ({"session": 1}, "session 1 has ended"), ({"session": 1 << 63}, "has ended"),
       ({"more": 1}, "more"), ({"resync": "yes"}, "resync")]


@pytest.mark.parametrize("wrong, part", BAD, ids=[str(wrong) for wrong, _ in BAD])
def test_a_hello_that_is_wrong_is_refused_and_changes_nothing(daemons, folder, wrong, part):
    secondary = Secondary(daemons, folder)
    primary = Primary(secondary)
    assert part in refused(primary.hello, **wrong)
    assert "session" not in secondary.query()
    for name in ("version-min", "version-max", "instance", "exports"):
        arguments = primary.arguments()
        del arguments[name]
        assert name in refused(primary.qmp.cmd, "replication-hello", arguments)
    data = connect(folder)
    write(data, 1)
    secondary.qmp.cmd("replication-checkpoint")
    data.shutdown()


def test_a_report_that_is_wrong_or_not_the_sessions_is_refused(daemons, folder):
    secondary = Secondary(daemons, folder)
    primary = Primary(secondary)
    error = {"side": "primary", "disk": "d", "node": "n", "operation": "o", "offset": 0, "length": 0,
             "errno": "EIO", "reason": "r", "wall-time-ns": 0, "count": 1}
    report = lambda qmp, error, session=1: refused(qmp.cmd, "replication-report", session=session,
                                                   error=error)
    assert "say hello first" in report(primary.qmp, error)
    primary.hello()
    assert "say hello first" in report(secondary.qmp, error)
    assert "say hello first" in report(primary.qmp, error, session=2)
    for name in error:
        assert name in report(primary.qmp, {key: value for key, value in error.items() if key != name})
        assert name in report(primary.qmp, {**error, name: []})
    assert "side" in report(primary.qmp, {**error, "side": "both"})
    assert "more" in report(primary.qmp, {**error, "more": 1})
    assert secondary.query()["stream-intact"]


def test_who_cannot_have_a_primary_says_why(daemons, folder):
    secondary = Secondary(daemons, folder, start=False)
    primary = Primary(secondary)
    assert "not running" in refused(primary.hello)
    secondary.qmp.cmd("replication-start", mode="secondary")
    assert "it is not exported" in refused(primary.hello)
    secondary.export()
    primary.hello()
    secondary.qmp.cmd("replication-stop", failover=True)
    text = refused(primary.hello)
    assert "has taken over" in text and "old primary" in text
    plain = daemons.start("--qmp", f"unix:{folder}/plain,role=peer")
    primary.qmp = Qmp(folder / "plain")
    assert "no secondary" in refused(primary.hello)
    assert plain.qmp.cmd("query-status")["running"]


def test_one_that_was_stopped_takes_no_primary(daemons, folder):
    secondary = Secondary(daemons, folder)
    secondary.qmp.cmd("replication-stop", failover=False)
    assert "was stopped" in refused(Primary(secondary).hello)


def test_a_hello_cut_off_at_any_byte_is_none_or_a_whole_one(daemons, folder):
    secondary = Secondary(daemons, folder)
    request = json.dumps({"execute": "replication-hello",
                          "arguments": Primary(secondary).arguments()}).encode()
    for length in range(len(request) + 1):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "peer.qmp"))
            client.sendall(b"{'execute':'qmp_capabilities'}" + request[:length])
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        assert ("session" in secondary.query()) == (length == len(request)), length
    assert not secondary.query()["session"]["connected"]
    assert Primary(secondary).hello()["session"] == 2
