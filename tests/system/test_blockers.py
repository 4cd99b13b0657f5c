# SPDX-License-Identifier: LGPL-2.1-or-later
"""While replication runs, what would change the view or rely on it is refused, by each command that
could, and the reason reaches whoever asked. Once it is over the same commands are taken."""

import pytest

from blockstep import QmpError, make_file

SIZE = 1 << 20
RUNNING = "replication of node 'childs0' is running: stop it first"
START = {"mode": "secondary"}


@pytest.fixture
def qmp(daemons, folder):
    """The view is 'top' on 'childs0' on 'active0' on 'hidden0' on 'disk0'; 'target' is a disk beside."""
    for name in ("disk", "target"):
        make_file(folder / f"{name}.raw", SIZE)
    for name in ("hidden", "active"):
        daemons.cli("image", "create", "-f", "overlay", folder / f"{name}.img", str(SIZE))
    qmp = daemons.start(
        "--blockdev", f"file,node-name=disk0,filename={folder}/disk.raw",
        "--blockdev", f"file,node-name=target,filename={folder}/target.raw",
        "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd").qmp
    qmp.cmd("blockdev-add", {
        "driver": "overlay", "node-name": "hidden0", "backing": "disk0",
        "file": {"driver": "file", "filename": f"{folder}/hidden.img"}})
    qmp.cmd("blockdev-add", {
        "driver": "overlay", "node-name": "active0", "backing": "hidden0",
        "file": {"driver": "file", "filename": f"{folder}/active.img"}})
    qmp.cmd("blockdev-add", {
        "driver": "quorum", "node-name": "top", "vote-threshold": 1, "read-pattern": "fifo",
        "children": [{"driver": "replication", "node-name": "childs0", "mode": "secondary",
                      "top-id": "top", "file": "active0"}]})
    return qmp


def mirror(source, target="target"):
    return ("blockdev-mirror", {"job-id": "j", "device": source, "target": target, "sync": "full"})


def backup(source, target="target"):
    return ("blockdev-backup", {"job-id": "j", "device": source, "target": target, "sync": "full"})


# What is refused with the blocker's reason, on each node that has one.
ON_THE_TOP = [
    mirror("top"),
    mirror("target", "top"),
    ("drive-mirror", {"job-id": "j", "device": "top", "target": "nbd://localhost:1/nothing",
                      "sync": "full", "mode": "existing", "format": "raw"}),
    backup("top"),
    backup("target", "top"),
    ("block-commit", {"job-id": "j", "device": "top"}),
    ("x-blockdev-change", {"parent": "top", "node": "target"}),
    ("x-blockdev-change", {"parent": "top", "child": "children.0"}),
    ("x-blockdev-replace", {"node": "top", "new-node": "target"}),
    ("blockdev-del", {"node-name": "top"}),
    ("human-monitor-command", {"command-line": "drive_del top"}),
]
ON_ITS_LAYERS = [
    *(command(node) for command in (mirror, backup) for node in ("childs0", "active0", "hidden0")),
    *(command("target", node) for command in (mirror, backup) for node in ("childs0", "hidden0")),
    *(("x-blockdev-replace", {"node": node, "new-node": "target"}) for node in ("childs0", "active0")),
    *(("block-export-add", {"type": "nbd", "id": "e", "node-name": node, "writable": True})
      for node in ("childs0", "active0", "hidden0")),
    *(("blockdev-del", {"node-name": node}) for node in ("childs0", "active0", "hidden0")),
]
def refusal(qmp, name, arguments):
    with pytest.raises(QmpError) as caught:
        qmp.cmd(name, arguments)
    return caught.value.desc


def graph(qmp):
    """Every node, edge, permission and blocker; what is numbered by the order of asking is left out."""
    drawn = qmp.cmd("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in drawn["nodes"]}
    nodes = [{**node, "id": 0} for node in drawn["nodes"]]
    edges = [{**edge, "parent": names[edge["parent"]], "child": names[edge["child"]]}
             for edge in drawn["edges"]]
    key = repr
    return (sorted(nodes, key=key), sorted(edges, key=key), qmp.cmd("query-named-block-nodes"),
            qmp.cmd("query-jobs"), qmp.cmd("query-block-exports"))


@pytest.mark.parametrize("name, arguments", ON_THE_TOP + ON_ITS_LAYERS,
                         ids=lambda value: value if isinstance(value, str) else " ".join(
                             str(word) for word in value.values()))
def test_who_is_refused_is_told_why_and_nothing_changes(qmp, name, arguments):
    qmp.cmd("replication-start", START)
    before = graph(qmp)
    if name == "human-monitor-command":
        assert RUNNING in qmp.cmd(name, arguments)
    else:
        assert RUNNING in refusal(qmp, name, arguments)
    assert graph(qmp) == before
    qmp.cmd("replication-checkpoint")


def test_layers_can_be_looked_at_and_the_top_and_the_disk_be_written_to(qmp):
    qmp.cmd("replication-start", START)
    for node, writable in (("active0", False), ("hidden0", False), ("top", True), ("disk0", True)):
        qmp.cmd("block-export-add", type="nbd", id=node, node_name=node, writable=writable)
    qmp.cmd("replication-checkpoint")


def test_a_second_start_is_told_that_it_runs(qmp):
    qmp.cmd("replication-start", START)
    before = graph(qmp)
    for name, arguments in (("replication-start", START),
                            ("xen-set-replication", {"enable": True, "primary": False})):
        assert "replication of node 'childs0' is running already" in refusal(qmp, name, arguments)
    assert graph(qmp) == before


def test_a_job_on_the_view_keeps_a_start_away_and_is_named(qmp):
    name, arguments = mirror("top")
    qmp.cmd(name, {**arguments, "sync": "none"})  # nothing can be read before the start
    qmp.event("BLOCK_JOB_READY")
    before = graph(qmp)
    text = refusal(qmp, "replication-start", START)
    assert "node 'top' is in use by the source of mirror job 'j': end that first" in text
    assert graph(qmp) == before
    qmp.cmd("block-job-cancel", device="j")
    qmp.event("BLOCK_JOB_COMPLETED")
    qmp.cmd("replication-start", START)


def test_a_mirror_of_the_secondary_disk_itself_is_nobodys_view(qmp):
    qmp.cmd("replication-start", START)
    qmp.cmd(*mirror("disk0"))
    qmp.event("BLOCK_JOB_READY")
    qmp.cmd("replication-checkpoint")
    qmp.cmd("block-job-cancel", device="j")
    qmp.event("BLOCK_JOB_COMPLETED")


def test_who_wants_the_secondary_disk_alone_is_told_who_has_it(qmp):
    qmp.cmd("replication-start", START)
    qmp.cmd("blockdev-create", {"job-id": "c", "options": {
        "driver": "overlay", "file": "disk0", "size": SIZE}})
    qmp.event("JOB_STATUS_CHANGE", id="c", status="concluded")
    error = qmp.cmd("query-jobs")[0]["error"]
    assert error.startswith("node 'disk0': node ") and "which create does not allow" in error
    qmp.cmd("job-dismiss", id="c")
    qmp.cmd("replication-checkpoint")


def test_from_a_failover_on_the_view_is_its_users_and_the_layers_are_when_it_has_ended(qmp):
    qmp.cmd("replication-start", START)
    qmp.cmd("block-export-add", type="nbd", id="e", node_name="top", writable=True)
    qmp.cmd("replication-stop", failover=True)
    qmp.event("REPLICATION_STAGE_CHANGE", stage="done")
    qmp.cmd("x-blockdev-change", parent="top", node="target")
    qmp.cmd("x-blockdev-change", parent="top", child="children.1")
    qmp.cmd(*mirror("top"))
    qmp.event("BLOCK_JOB_READY")
    qmp.cmd("block-job-cancel", device="j")
    qmp.event("BLOCK_JOB_COMPLETED")
