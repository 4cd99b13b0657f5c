# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control protocol of a real daemon: its commands, their words, and what clients may do to it."""

import json
import socket

import pytest

from blockstep import Qmp, QmpError, free_port, make_file, run

NULL = "null-co,node-name=n,size=1M"


def refused(qmp, name, arguments=None, cls="GenericError"):
    """Runs a command that must fail; returns the error's text."""
    with pytest.raises(QmpError) as caught:
        qmp.cmd(name, arguments)
    assert caught.value.cls == cls
    return caught.value.desc


def names(nodes):
    return [node["node-name"] for node in nodes]


# --- the conversation ---

def test_the_greeting_is_as_the_specification_says(daemons):
    greeting = daemons.start().qmp.greeting["QMP"]
    assert set(greeting["version"]["qemu"]) == {"major", "minor", "micro"}
    assert greeting["version"]["package"].startswith("blockstep")
    assert greeting["capabilities"] == ["oob"]


@pytest.mark.commands("qmp_capabilities", "query-version", "query-commands", "query-status", "stop",
                      "cont")
def test_version_status_and_commands_are_told(daemons):
    qmp = daemons.start().qmp
    assert qmp.cmd("query-version") == qmp.greeting["QMP"]["version"]
    assert qmp.cmd("query-status") == {"status": "running", "singlestep": False, "running": True}
    qmp.cmd("stop")
    assert qmp.cmd("query-status")["status"] == "paused"
    qmp.cmd("cont")
    assert qmp.cmd("query-status")["running"] is True
    commands = {entry["name"] for entry in qmp.cmd("query-commands")}
    assert {"blockdev-add", "nbd-server-start", "xen-colo-do-checkpoint", "quit"} <= commands


def test_every_command_that_is_listed_exists_and_no_other(daemons):
    qmp = daemons.start().qmp
    for entry in qmp.cmd("query-commands"):
        if entry["name"] == "quit":
            continue
        answer = qmp.raw({"execute": entry["name"], "arguments": {"no-such-argument": 1}})
        assert answer["error"]["class"] != "CommandNotFound" or entry["name"] == "qmp_capabilities"
    assert refused(qmp, "device_add", cls="CommandNotFound") == \
        "The command device_add has not been found"


def test_single_quotes_ids_and_two_connections_at_once(daemons):
    daemon = daemons.start("--blockdev", NULL)
    other = Qmp(daemon.socket_path)
    answer = daemon.qmp.raw("{'execute': 'query-named-block-nodes', 'id': 'x'}")
    assert answer["id"] == "x"
    assert names(answer["return"]) == ["n"] == names(other.cmd("query-named-block-nodes"))
    other.close()


def test_text_that_is_no_json_costs_an_error_and_no_more(daemons):
    qmp = daemons.start().qmp
    for text in ["hello\n", "{'execute': 'query-status',}\n", '{"a": 1 "b": 2}\n', "]\n",
                 "{'execute': NaN}\n", "// comment\n"]:
        answer = qmp.raw(text)
        assert answer["error"]["class"] == "GenericError", text
        # 0xff resets the parser, whatever state the text has left it in.
        qmp.send(b"\xff")
        qmp.send('{"execute": "query-status", "id": "after"}')
        while qmp.answer().get("id") != "after":
            pass


def test_a_value_that_is_too_long_or_too_deep_is_refused(daemons):
    daemon = daemons.start()
    long = Qmp(daemon.socket_path)
    answer = long.raw('{"execute": "' + "x" * (1 << 20) + '"}')
    assert answer["error"]["class"] == "GenericError"
    deep = Qmp(daemon.socket_path)
    answer = deep.raw("[" * 129 + "]" * 129)
    assert answer["error"]["class"] == "GenericError"
    # The largest that is a request: refused for its argument, not for its size.
    largest = '{"execute": "query-block", "arguments": {"x": "%s"}}'
    answer = deep.raw(largest % ("y" * ((1 << 20) - len(largest) + 2)))
    assert answer["error"]["desc"] == "Parameter 'x' is unexpected"
    # Neither has cost the connection.
    for client in (long, deep):
        client.send(b"\xff")
        client.send('{"execute": "query-status", "id": "after"}')
        while client.answer().get("id") != "after":
            pass
    assert daemon.qmp.cmd("query-status")["running"]
    long.close()
    deep.close()


def test_clients_that_vanish_leave_nothing_behind(daemons):
    daemon = daemons.start()
    fds = f"/proc/{daemon.process.pid}/fd"
    assert daemon.qmp

    def count():
        import os  # pylint: disable=import-outside-toplevel
        return len(os.listdir(fds))

    before = count()
    for text in [b"", b"{", b'{"execute": "qmp_capabilities"}', b"\xff\xff", b'{"execute'] * 20:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(daemon.socket_path))
        sock.sendall(text)
        sock.close()
    # The daemon answers us only after it has seen all of them go.
    last = Qmp(daemon.socket_path)
    last.close()
    for _ in range(200):
        daemon.qmp.cmd("query-status")
        if count() == before:
            break
    assert count() == before


PEER_COMMANDS = {"qmp_capabilities", "query-version", "query-commands", "query-replication",
                 "replication-hello", "replication-checkpoint", "replication-report",
                 "query-xen-replication-status", "xen-colo-do-checkpoint"}


def test_a_peer_takes_only_its_own_verbs(daemons, folder):
    daemon = daemons.start("--qmp", f"unix:{folder}/peer,role=peer")
    peer = Qmp(folder / "peer")
    assert {entry["name"] for entry in peer.cmd("query-commands")} == PEER_COMMANDS
    assert peer.cmd("query-version")["package"].startswith("blockstep")
    assert peer.cmd("query-replication")["role"] == "none"
    for command in {entry["name"] for entry in daemon.qmp.cmd("query-commands")} - PEER_COMMANDS:
        assert refused(peer, command, cls="CommandNotFound") == \
            f"The command {command} has not been found"
    # Nor does it learn of what happens: the first that comes is the answer.
    daemon.qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=1 << 20)
    daemon.qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": f"{folder}/nbd"}})
    daemon.qmp.cmd("block-export-add", id="e", type="nbd", node_name="n")
    daemon.qmp.cmd("block-export-del", id="e")
    daemon.qmp.event("BLOCK_EXPORT_DELETED", id="e")
    peer.cmd("query-version")
    assert peer.events == []
    peer.close()


@pytest.mark.commands("x-query-resources")
def test_what_is_bounded_is_told_with_its_bound(daemons):
    daemon = daemons.start("--blockdev", NULL)
    figures = daemon.qmp.cmd("x-query-resources")
    assert figures["control"]["clients"] == 1
    assert figures["graph"]["nodes"] == 1
    assert figures["loop"]["coroutines"] >= 2
    for group, name in [("control", "clients"), ("control", "limited-events"), ("nbd", "budget-bytes"), ("graph", "nodes"),
                        ("graph", "jobs"), ("buffers", "cached-bytes"), ("loop", "stacks-cached")]:
        assert figures[group][name] <= figures[group][f"{name}-max"]


# --- nodes ---

@pytest.mark.commands("blockdev-add", "blockdev-del", "query-named-block-nodes", "query-block")
def test_a_node_comes_shows_itself_in_qemus_shape_and_goes(daemons, folder):
    path = make_file(folder / "disk", 1 << 20)
    qmp = daemons.start().qmp
    qmp.cmd("blockdev-add", driver="file", node_name="f", filename=str(path))
    [node] = qmp.cmd("query-named-block-nodes", flat=True)
    assert node["node-name"] == "f"
    assert node["drv"] == "file"
    assert node["ro"] is False
    assert node["file"] == str(path)
    assert node["image"]["filename"] == str(path)
    assert node["image"]["virtual-size"] == 1 << 20
    assert qmp.cmd("query-block")[0]["inserted"]["node-name"] == "f"
    qmp.cmd("blockdev-del", node_name="f")
    assert qmp.cmd("query-named-block-nodes") == []


def test_a_wrong_blockdev_add_says_what_and_leaves_nothing(daemons, folder):
    qmp = daemons.start().qmp
    make_file(folder / "disk", 1 << 20)
    cases = [
        ({}, "Parameter 'driver' is missing"),
        ({"driver": 1, "node-name": "x"}, "driver"),
        ({"driver": "floppy", "node-name": "x"}, "floppy"),
        ({"driver": "null-co"}, "node-name"),
        ({"driver": "null-co", "node-name": "x", "sice": 1}, "sice"),
        ({"driver": "null-co", "node-name": "x", "size": "large"}, "size"),
        ({"driver": "null-co", "node-name": 5}, "node-name"),
        ({"driver": "null-co", "node-name": "x" * 40}, "x" * 40),
        ({"driver": "file", "node-name": "x"}, "filename"),
        ({"driver": "file", "node-name": "x", "filename": str(folder / "absent")}, "absent"),
        ({"driver": "file", "node-name": "x", "filename": str(folder)}, str(folder)),
        ({"driver": "quorum", "node-name": "x", "children": ["nobody"]}, "vote-threshold"),
    ]
    for arguments, word in cases:
        assert word in refused(qmp, "blockdev-add", arguments), arguments
        assert qmp.cmd("query-named-block-nodes") == [], arguments
    quorum = {"driver": "quorum", "node-name": "x", "children": ["nobody"], "vote-threshold": 1}
    assert "'nobody'" in refused(qmp, "blockdev-add", quorum, cls="DeviceNotFound")
    assert qmp.cmd("query-named-block-nodes") == []


def test_a_name_is_taken_once(daemons):
    qmp = daemons.start("--blockdev", NULL).qmp
    assert "n" in refused(qmp, "blockdev-add", {"driver": "null-co", "node-name": "n"})
    assert names(qmp.cmd("query-named-block-nodes")) == ["n"]


def test_deleting_tells_what_stands_in_the_way(daemons, folder):
    qmp = daemons.start("--blockdev", NULL, "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
                        "--export", "nbd,id=e,node-name=n").qmp
    assert refused(qmp, "blockdev-del", {"node-name": "z"}) == \
        "Failed to find node with node-name='z'"
    assert "e" in refused(qmp, "blockdev-del", {"node-name": "n"})
    qmp.cmd("block-export-del", id="e")
    qmp.event("BLOCK_EXPORT_DELETED", id="e")
    qmp.cmd("blockdev-del", node_name="n")


def test_x_blockdev_change_checks_what_it_is_told(daemons):
    qmp = daemons.start("--blockdev", NULL).qmp
    assert refused(qmp, "x-blockdev-change", {"parent": "n"}) == \
        "Either child or node must be specified"
    assert refused(qmp, "x-blockdev-change", {"parent": "n", "child": "a", "node": "b"}) == \
        "The parameters child and node are in conflict"
    assert refused(qmp, "x-blockdev-change", {"parent": "n", "child": "children.1"}) == \
        "Node 'n' does not have child 'children.1'"
    assert refused(qmp, "x-blockdev-change", {"parent": "n", "node": "b"}) == "Node 'b' not found"
    assert "'p'" in refused(qmp, "x-blockdev-change", {"parent": "p", "node": "n"},
                            cls="DeviceNotFound")


# --- NBD ---

@pytest.mark.commands("nbd-server-start", "nbd-server-stop", "nbd-server-add", "nbd-server-remove",
                      "block-export-add", "block-export-del", "query-block-exports")
def test_servers_and_exports_come_and_go_as_managers_do_it(daemons, folder):
    qmp = daemons.start("--blockdev", NULL).qmp
    uri = f"nbd+unix:///n?socket={folder}/nbd"
    qmp.cmd("nbd-server-start", {"addr": {"type": "unix", "data": {"path": f"{folder}/nbd"}}})
    qmp.cmd("nbd-server-add", device="n", writable=True)
    [export] = qmp.cmd("query-block-exports")
    assert {"id": "n", "type": "nbd", "node-name": "n", "shutting-down": False}.items() <= \
        export.items()
    info = json.loads(run("nbdinfo", "--json", uri))["exports"][0]
    assert info["export-size"] == 1 << 20
    assert info["is_read_only"] is False
    qmp.cmd("nbd-server-remove", name="n")
    qmp.event("BLOCK_EXPORT_DELETED", id="n")
    qmp.cmd("block-export-add", type="nbd", id="e", node_name="n", name="other")
    info = json.loads(run("nbdinfo", "--json", f"nbd+unix:///other?socket={folder}/nbd"))
    assert info["exports"][0]["is_read_only"] is True
    qmp.cmd("block-export-del", id="e")
    qmp.event("BLOCK_EXPORT_DELETED", id="e")
    qmp.cmd("block-export-add", type="nbd", id="e", node_name="n", name="other")
    qmp.cmd("nbd-server-stop")
    assert qmp.cmd("query-block-exports") == []
    assert not (folder / "nbd").exists()


def test_wrong_nbd_commands_say_what_is_wrong(daemons, folder):
    qmp = daemons.start("--blockdev", NULL).qmp
    address = {"type": "unix", "data": {"path": f"{folder}/nbd"}}
    assert refused(qmp, "nbd-server-stop") == "NBD server not running"
    assert refused(qmp, "nbd-server-add", {"device": "n"}) == "NBD server not running"
    assert refused(qmp, "nbd-server-start") == "Parameter 'addr' is missing"
    assert "type" in refused(qmp, "nbd-server-start", {"addr": {"data": {}}})
    assert "path" in refused(qmp, "nbd-server-start", {"addr": {"type": "unix", "data": {}}})
    assert "data" in refused(qmp, "nbd-server-start", {"addr": {"type": "unix", "path": "/x"}})
    assert "TLS" in refused(qmp, "nbd-server-start", {"addr": address, "tls-creds": "t"})
    qmp.cmd("nbd-server-start", addr=address)
    assert refused(qmp, "nbd-server-start", {"addr": address}) == "NBD server already running"
    assert "'z'" in refused(qmp, "nbd-server-add", {"device": "z"}, cls="DeviceNotFound")
    qmp.cmd("nbd-server-add", device="n")
    assert refused(qmp, "nbd-server-add", {"device": "n"}) == \
        "NBD server already has export named 'n'"
    assert refused(qmp, "block-export-del", {"id": "z"}) == "Export 'z' is not found"
    assert "mode" in refused(qmp, "block-export-del", {"id": "n", "mode": "gently"})


def test_a_server_that_others_can_reach_needs_insecure(daemons):
    address = {"type": "inet", "data": {"host": "0.0.0.0", "port": str(free_port())}}
    safe = daemons.start().qmp
    assert "--insecure" in refused(safe, "nbd-server-start", {"addr": address})
    assert "--insecure" in refused(safe, "nbd-server-start", {
        "addr": {"type": "inet", "data": {"host": "", "port": "0"}}})
    daemons.start("--insecure").qmp.cmd("nbd-server-start", addr=address)


# --- lines of the monitor for people ---

def say(qmp, line):
    return qmp.cmd("human-monitor-command", {"command-line": line})


@pytest.mark.commands("human-monitor-command")
def test_nodes_come_and_go_by_lines_for_people(daemons, folder):
    make_file(folder / "far.raw", 1 << 20)
    far = daemons.start("--blockdev", f"file,node-name=far,filename={folder}/far.raw",
                        "--nbd-server", f"id=s,addr.type=unix,addr.path={folder}/far",
                        "--export", "nbd,id=e,node-name=far,name=disk0,writable=on")
    qmp = daemons.start().qmp
    options = "driver=replication,mode=primary,file.driver=nbd,file.export=disk0," \
        f"file.path={folder}/far,file.detect-zeroes=on,node-name=node0"
    assert say(qmp, f"drive_add -n buddy {options}") == ""
    nodes = {node["node-name"]: node for node in qmp.cmd("query-named-block-nodes")}
    assert nodes["node0"]["drv"] == "replication"
    assert [node["drv"] for name, node in nodes.items() if name != "node0"] == ["nbd"]
    assert say(qmp, f'  drive_add -n "buddy" "{options}" ').endswith(
        "there is a node 'node0' already\r\n")
    assert say(qmp, "drive_del node0") == ""
    assert qmp.cmd("query-named-block-nodes") == []
    assert far.qmp.cmd("query-status")


def test_other_lines_for_people_are_refused_in_qemus_words(daemons):
    qmp = daemons.start().qmp
    more = 'Try "help {}" for more information\r\n'
    for line, text in [
            ("", ""), ("  ", ""), ("info block", "unknown command: 'info'\r\n"),
            ("drive_adds -n a b", "unknown command: 'drive_adds'\r\n"),
            ("drive_add", "drive_add: string expected\r\n" + more.format("drive_add")),
            ("drive_add -n", "drive_add: string expected\r\n" + more.format("drive_add")),
            ("drive_add -n b", "drive_add: string expected\r\n" + more.format("drive_add")),
            ("drive_add -x b c", "drive_add: unsupported option -x\r\n" + more.format("drive_add")),
            ("drive_add -n b driver=null-co,node-name=z z",
             "drive_add: extraneous characters at the end of line\r\n" + more.format("drive_add")),
            ("drive_add -n b driver=null-co", "'node-name' needs to be specified\r\n"),
            ("drive_del", "drive_del: block device name expected\r\n" + more.format("drive_del")),
            ("drive_del z", "Device 'z' not found\r\n"),
            ("drive_del 'z", "Device ''z' not found\r\n"),
            ("drive_del a b", "drive_del: extraneous characters at the end of line\r\n"
             + more.format("drive_del"))]:
        assert say(qmp, line) == text, line
    for line, part in [("drive_add b driver=null-co,node-name=z", "drive_add -n"),
                       ("drive_add -n b driver=nothing,node-name=z", "nothing"),
                       ("drive_add -n b driver=null-co,node-name=z,sice=1", "sice"),
                       ('drive_add -n b "driver=null-co,node-name=z', "does not end"),
                       ('drive_del "\\x"', "escape"), ("drive_add -\x01 b c", "-?")]:
        assert part in say(qmp, line), line
    assert refused(qmp, "human-monitor-command", {"command-line": "info", "cpu-index": 0}) == \
        "Parameter 'cpu-index' expects a CPU number"
    assert refused(qmp, "human-monitor-command") == "Parameter 'command-line' is missing"
    assert qmp.cmd("query-named-block-nodes") == []


# --- jobs and replication without any ---

def test_jobs_that_are_not_there_are_named(daemons):
    qmp = daemons.start().qmp
    assert qmp.cmd("query-jobs") == []
    assert qmp.cmd("query-block-jobs") == []
    for verb in ("cancel", "pause", "resume", "dismiss", "finalize", "complete"):
        assert refused(qmp, f"job-{verb}", {"id": "j1"}) == "Job not found"
        assert refused(qmp, f"job-{verb}") == "Parameter 'id' is missing"
    for command, key in [("block-job-cancel", "device"), ("block-job-pause", "device"),
                         ("block-job-resume", "device"), ("block-job-complete", "device")]:
        assert "j1" in refused(qmp, command, {key: "j1"}, cls="DeviceNotActive")
        assert refused(qmp, command) == f"Parameter '{key}' is missing"


def test_replication_that_is_not_there_is_an_error(daemons):
    qmp = daemons.start().qmp
    assert qmp.cmd("query-replication")["role"] == "none"
    for command, arguments in [("replication-checkpoint", {}), ("xen-colo-do-checkpoint", {}),
                               ("replication-stop", {"failover": True}),
                               ("replication-start", {"mode": "primary"}),
                               ("xen-set-replication", {"enable": True, "primary": True})]:
        assert refused(qmp, command, arguments), command
    assert "mode" in refused(qmp, "replication-start", {"mode": "both"})
    assert "failover" in refused(qmp, "xen-set-replication",
                                 {"enable": True, "primary": False, "failover": True})
    assert "latest" in refused(qmp, "replication-stop", {"failover": True, "target": "latest"})
