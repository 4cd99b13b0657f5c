# SPDX-License-Identifier: LGPL-2.1-or-later
"""Events of a real daemon: of many errors a few are told."""

import nbd
import pytest

MANY = 300


def guest(folder):
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///n?socket={folder}/nbd")
    return handle


def start_failing(daemons, folder, *nodes):
    return daemons.start(*[word for node in nodes for word in ("--blockdev", node)],
                         "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
                         "--export", "nbd,id=e,node-name=n,name=n,writable=on")


def fail(handle, what, count):
    for _ in range(count):
        with pytest.raises(nbd.Error):
            what(handle)


def write(handle):
    handle.pwrite(b"x" * 4096, 0)


def read(handle):
    handle.pread(4096, 0)


def take(qmp, name):
    """The events of that name which have arrived."""
    qmp.cmd("query-status")
    found = [event for event in qmp.events if event["event"] == name]
    qmp.events = [event for event in qmp.events if event["event"] != name]
    return found


@pytest.mark.parametrize("kind, errno, what, nospace, reason", [
    ("write", 28, write, True, "No space left on device"), ("read", 5, read, False, "Input/output error")])
def test_errors_of_a_client_are_told_once_a_second(daemons, folder, kind, errno, what, nospace, reason):
    qmp = start_failing(
        daemons, folder,
        f"blkdebug,node-name=n,inject.0.kind={kind},inject.0.errno={errno},inject.0.count=0,"
        "file.driver=null-co,file.size=1M").qmp
    handle = guest(folder)
    fail(handle, what, MANY)
    assert qmp.cmd("x-query-resources")["control"]["limited-events"] == 1
    [first] = take(qmp, "BLOCK_IO_ERROR")
    assert first["data"] == {"device": "e", "node-name": "n", "operation": kind, "action": "report",
                             "nospace": nospace, "reason": reason}
    last = qmp.event("BLOCK_IO_ERROR")
    assert last["timestamp"] != first["timestamp"]
    assert take(qmp, "BLOCK_IO_ERROR") == []


def test_a_broken_quorum_tells_of_each_child_once_a_second(daemons, folder):
    children = [f"blkdebug,node-name=c{i},inject.0.kind=write,inject.0.errno=5,inject.0.count=0,"
                "file.driver=null-co,file.size=1M" for i in range(2)]
    qmp = start_failing(daemons, folder, *children,
                        "quorum,node-name=n,vote-threshold=2,children.0=c0,children.1=c1").qmp
    fail(guest(folder), write, MANY)
    assert len(take(qmp, "QUORUM_FAILURE")) == 1
    assert sorted(event["data"]["node-name"] for event in take(qmp, "QUORUM_REPORT_BAD")) == ["c0", "c1"]
    qmp.event("QUORUM_FAILURE", reference="n")
    for child in ("c0", "c1"):
        qmp.event("QUORUM_REPORT_BAD", **{"node-name": child})


@pytest.mark.commands("quit")
def test_what_is_held_back_is_told_before_the_end(daemons, folder):
    daemon = start_failing(
        daemons, folder, "blkdebug,node-name=n,inject.0.kind=write,inject.0.errno=5,inject.0.count=0,"
        "file.driver=null-co,file.size=1M")
    handle = guest(folder)
    fail(handle, write, 2)
    handle.shutdown()
    daemon.qmp.cmd("quit")
    events = [*daemon.qmp.events, *iter(daemon.qmp.receive, None)]
    assert [event["event"] for event in events] == ["BLOCK_IO_ERROR", "BLOCK_IO_ERROR", "SHUTDOWN"]
