# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sequences of commands that existing managers send, on both sides, and what must come of them."""

import os
import signal

import nbd
import pytest

from blockstep import QmpError, free_port, make_file, run

SIZE = 64 << 20
MIB = 1 << 20


class Managed:
    """Two daemons, assembled and driven over the control protocol alone."""

    def __init__(self, daemons, folder, throttle=None):
        self.daemons, self.folder, self.throttle = daemons, folder, throttle
        self.port = free_port()
        for side in "ps":
            make_file(folder / f"{side}.raw", SIZE)
        self.secondary = daemons.start(
            "--nbd-server", f"id=user,addr.type=unix,addr.path={folder}/s.sock", name="s")
        self.primary = daemons.start(
            "--nbd-server", f"id=user,addr.type=unix,addr.path={folder}/p.sock", name="p")
        self.assemble_secondary()
        self.assemble_primary()

    def assemble_secondary(self):
        for kind in ["hidden", "active"]:
            path = self.folder / f"{kind}.img"
            if not path.exists():
                self.daemons.cli("image", "create", "-f", "overlay", path, str(SIZE))
        qmp = self.secondary.qmp
        disk = {"driver": "file", "filename": f"{self.folder}/s.raw"}
        if self.throttle:
            disk = {"driver": "throttle", "limits": self.throttle, "file": disk}
        qmp.cmd("blockdev-add", {**disk, "node-name": "disk0"})
        # As in QEMU's guide: the chain inline, the user's view a quorum of one.
        qmp.cmd("blockdev-add", {
            "driver": "quorum", "node-name": "colo-disk0", "vote-threshold": 1,
            "read-pattern": "fifo", "children": [{
                "driver": "replication", "node-name": "childs0", "mode": "secondary",
                "top-id": "colo-disk0", "file": {
                    "driver": "overlay",
                    "file": {"driver": "file", "filename": f"{self.folder}/active.img"},
                    "backing": {
                        "driver": "overlay",
                        "file": {"driver": "file", "filename": f"{self.folder}/hidden.img"},
                        "backing": "disk0"}}}]})
        qmp.cmd("block-export-add", type="nbd", id="view", node_name="colo-disk0", name="view",
                server="user", writable=True)

    def assemble_primary(self):
        qmp = self.primary.qmp
        qmp.cmd("blockdev-add", {
            "driver": "quorum", "node-name": "colo-disk0", "vote-threshold": 1,
            "read-pattern": "fifo",
            "children": [{"driver": "file", "filename": f"{self.folder}/p.raw"}]})
        qmp.cmd("block-export-add", type="nbd", id="view", node_name="colo-disk0", name="view",
                server="user", writable=True)

    def start_secondary(self):
        qmp = self.secondary.qmp
        qmp.cmd("nbd-server-start", {"addr": {
            "type": "inet", "data": {"host": "127.0.0.1", "port": str(self.port)}}})
        qmp.cmd("nbd-server-add", device="disk0", writable=True, server="default")
        qmp.cmd("xen-set-replication", enable=True, primary=False)
        qmp.event("REPLICATION_STAGE_CHANGE", stage="running")

    def start_primary(self):
        qmp = self.primary.qmp
        qmp.cmd("blockdev-add", {
            "driver": "replication", "mode": "primary", "node-name": "node0",
            "file": {"driver": "nbd", "export": "disk0", "server": {
                "type": "inet", "host": "127.0.0.1", "port": str(self.port)}}})
        qmp.cmd("x-blockdev-change", parent="colo-disk0", node="node0")
        qmp.cmd("xen-set-replication", enable=True, primary=True)

    def checkpoint(self):
        for daemon in [self.primary, self.secondary]:
            assert daemon.qmp.cmd("query-xen-replication-status") == {"error": False}
            daemon.qmp.cmd("xen-colo-do-checkpoint")
            daemon.qmp.event("REPLICATION_CHECKPOINT")

    def io(self, side, *commands):
        return run("qemu-io", "-f", "raw", *[word for command in commands for word in ["-c", command]],
                   f"nbd+unix:///view?socket={self.folder}/{side}.sock")


@pytest.fixture
def pair(daemons, folder):
    managed = Managed(daemons, folder)
    managed.start_secondary()
    managed.start_primary()
    return managed


@pytest.mark.commands("xen-set-replication", "query-xen-replication-status",
                      "xen-colo-do-checkpoint", "x-colo-lost-heartbeat", "query-colo-status")
def test_checkpoints_then_the_primary_dies_and_the_heartbeat_is_lost(pair):
    for number in range(1, 4):
        pair.io("p", f"write -P {number} 0 1M")
        pair.checkpoint()
    pair.io("p", "write -P 9 0 2M")
    pair.primary.kill()
    pair.secondary.qmp.cmd("nbd-server-stop")
    assert pair.secondary.qmp.cmd("query-colo-status") == {
        "mode": "secondary", "last-mode": "none", "reason": "none"}
    pair.secondary.qmp.cmd("x-colo-lost-heartbeat")
    pair.secondary.qmp.event("COLO_EXIT", mode="secondary", reason="request")
    assert pair.secondary.qmp.cmd("query-colo-status") == {
        "mode": "none", "last-mode": "secondary", "reason": "request"}
    pair.io("s", "read -P 3 0 1M", "read -P 0 1M 1M", "write -P 4 512k 1M")
    pair.secondary.qmp.event("REPLICATION_STAGE_CHANGE", stage="done")
    pair.io("s", "read -P 3 0 512k", "read -P 4 512k 1M")


def test_a_failover_does_not_wait_for_the_peers_throttled_writes(daemons, folder):
    pair = Managed(daemons, folder, throttle={"iops-write": 1})
    pair.start_secondary()
    client = nbd.NBD()
    client.connect_uri(f"nbd://127.0.0.1:{pair.port}/disk0")
    buffer = nbd.Buffer.from_bytearray(bytearray(4096))
    for number in range(100):
        client.aio_pwrite(buffer, number << 16)
    while client.aio_in_flight() == 100:
        client.poll(1000)
    pair.secondary.qmp.cmd("xen-set-replication", enable=False, primary=False, failover=True)
    pair.secondary.qmp.event("REPLICATION_STAGE_CHANGE", stage="failover")


@pytest.mark.commands("x-query-nbd-servers")
def test_failover_by_the_name_that_needs_no_colo_migration(pair):
    pair.io("p", "write -P 1 0 1M")
    pair.checkpoint()
    pair.io("p", "write -P 2 0 1M")
    # Without nbd-server-stop before it: the fence is the daemon's own business.
    pair.secondary.qmp.cmd("xen-set-replication", enable=False, primary=False, failover=True)
    pair.io("s", "read -P 1 0 1M")
    servers = {server["id"]: server for server in pair.secondary.qmp.cmd("x-query-nbd-servers")}
    assert servers["default"]["fenced"] and not servers["user"]["fenced"]
    # The live primary's late writes reach nothing, and its guest does not notice.
    pair.io("p", "write -P 7 0 1M", "read -P 7 0 1M")
    pair.secondary.qmp.event("REPLICATION_STAGE_CHANGE", stage="done")
    pair.io("s", "read -P 1 0 1M")
    status = pair.primary.qmp.cmd("query-xen-replication-status")
    assert status["error"] is True and status["desc"]
    with pytest.raises(QmpError):
        pair.primary.qmp.cmd("xen-colo-do-checkpoint")


@pytest.mark.commands("replication-start", "replication-checkpoint", "replication-stop",
                      "query-replication")
def test_the_same_by_our_own_names_with_the_primary_assembled_by_lines(daemons, folder):
    pair = Managed(daemons, folder)
    primary, secondary = pair.primary.qmp, pair.secondary.qmp
    secondary.cmd("nbd-server-start", {"addr": {
        "type": "inet", "data": {"host": "127.0.0.1", "port": str(pair.port)}}})
    secondary.cmd("nbd-server-add", device="disk0", writable=True, server="default")
    secondary.cmd("replication-start", mode="secondary")
    assert primary.cmd("human-monitor-command", {"command-line": (
        "drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,file.host=127.0.0.1,"
        f"file.port={pair.port},file.export=disk0,node-name=node0")}) == ""
    primary.cmd("x-blockdev-change", parent="colo-disk0", node="node0")
    primary.cmd("replication-start", mode="primary")
    pair.io("p", "write -P 1 0 1M")
    epochs = [qmp.cmd("replication-checkpoint")["epoch"] for qmp in (primary, secondary)]
    assert epochs == [qmp.cmd("query-replication")["epoch"] for qmp in (primary, secondary)]
    pair.io("p", "write -P 2 0 1M")
    pair.io("s", "read -P 1 0 1M")
    primary.cmd("replication-stop")
    assert primary.cmd("query-replication")["stage"] == "done"
    primary.cmd("x-blockdev-change", parent="colo-disk0", child="children.1")
    assert primary.cmd("human-monitor-command", {"command-line": "drive_del node0"}) == ""
    assert "node0" not in [node["node-name"] for node in primary.cmd("query-named-block-nodes")]
    secondary.cmd("replication-stop", failover=True)
    secondary.event("REPLICATION_STAGE_CHANGE", stage="done")
    pair.io("s", "read -P 1 0 1M")


def test_teardown_and_the_secondary_lost_for_the_primary(pair):
    pair.io("p", "write -P 1 0 1M")
    pair.secondary.qmp.cmd("xen-set-replication", enable=False, primary=False)
    pair.secondary.qmp.cmd("nbd-server-stop")
    pair.primary.qmp.cmd("xen-set-replication", enable=False, primary=True)
    pair.primary.qmp.event("COLO_EXIT", mode="primary", reason="request")
    pair.primary.qmp.cmd("x-blockdev-change", parent="colo-disk0", child="children.1")
    pair.primary.qmp.cmd("blockdev-del", node_name="node0")
    pair.io("p", "read -P 1 0 1M", "write -P 2 0 1M")
    pair.secondary.stop()
    assert (pair.folder / "s.raw").read_bytes()[:MIB] == b"\x01" * MIB


def test_an_export_added_while_replication_runs_does_not_bypass_the_copies(pair):
    pair.secondary.qmp.cmd("nbd-server-remove", name="disk0", mode="hard")
    pair.secondary.qmp.cmd("nbd-server-add", device="disk0", writable=True, server="default")
    run("qemu-io", "-f", "raw", "-c", "write -P 8 0 1M", f"nbd://127.0.0.1:{pair.port}/disk0")
    pair.io("s", "read -P 0 0 1M")


def test_a_checkpoint_that_misses_a_write_fails_as_a_command(pair):
    link = pair.primary.qmp.event("REPLICATION_LINK", connected=True)["data"]
    assert link["node"] == "node0" and "reason" not in link
    pair.secondary.kill()
    # Nobody has to write for it to be seen.
    lost = pair.primary.qmp.event("REPLICATION_LINK", connected=False)["data"]
    assert (lost["node"], lost["peer"]) == (link["node"], link["peer"]) and lost["reason"]
    pair.io("p", "write -P 1 0 64k")
    pair.primary.qmp.event("REPLICATION_ERROR")
    for command in ["xen-colo-do-checkpoint", "replication-checkpoint"]:
        with pytest.raises(QmpError):
            pair.primary.qmp.cmd(command)
    error = pair.primary.qmp.cmd("query-replication")["error"]
    assert error["side"] == "primary" and error["count"] >= 1 and error["offset"] == 0


def test_a_merge_that_the_end_interrupts_is_told_of_and_goes_on_at_the_next_start(pair, daemons):
    pair.io("p", "write -P 1 0 32M")
    pair.checkpoint()
    pair.io("p", "write -P 2 0 64M")
    pair.primary.kill()
    qmp = pair.secondary.qmp
    qmp.cmd("replication-stop", failover=True)
    for job in qmp.cmd("query-jobs"):
        qmp.cmd("job-pause", id=job["id"])
    assert qmp.cmd("query-replication")["stage"] == "failover"
    pair.io("s", "read -P 1 0 32M", "write -P 3 8M 1M")
    pair.secondary.signal(signal.SIGTERM)
    assert pair.secondary.wait() == 0
    assert "merge" in pair.secondary.log_text()
    os.unlink(pair.secondary.log)
    pair.secondary = daemons.start(
        "--nbd-server", f"id=user,addr.type=unix,addr.path={pair.folder}/s.sock", name="s")
    pair.assemble_secondary()
    pair.secondary.qmp.cmd("replication-start", mode="secondary", overlays="merge")
    pair.io("s", "read -P 1 0 8M", "read -P 3 8M 1M", "read -P 1 9M 23M", "read -P 0 32M 32M")
    pair.secondary.qmp.event("REPLICATION_STAGE_CHANGE", stage="done")
    pair.io("s", "read -P 1 0 8M", "read -P 3 8M 1M", "read -P 1 9M 23M", "read -P 0 32M 32M")
    pair.secondary.stop()
    data = (pair.folder / "s.raw").read_bytes()
    assert data == b"\1" * (8 * MIB) + b"\3" * MIB + b"\1" * (23 * MIB) + b"\0" * (32 * MIB)
