# SPDX-License-Identifier: LGPL-2.1-or-later
"""block-commit: layers merged below a guest, and beside QEMU's."""

import pytest

from beside_qemu import Beside
from blockstep import QmpError, make_file, run
from test_mirror import MIB, SIZE, Guest

COUNTS = ("len", "offset", "current-progress", "total-progress")
CHAIN = ["--blockdev", "driver=file,node-name=base,read-only=on,filename={folder}/base",
         "--blockdev", "driver={cow},node-name=middle,read-only=on,backing=base,"
                       "file.driver=file,file.filename={folder}/middle",
         "--blockdev", "driver={cow},node-name=top,backing=middle,"
                       "file.driver=file,file.filename={folder}/top"]


@pytest.fixture
def both(daemons, folder):
    return Beside(daemons, folder, CHAIN, {"base": MIB}, {"middle": MIB, "top": MIB})


class Chain:
    """base, and on it middle and top, with data in each, offered to a guest."""

    def __init__(self, daemons, folder):
        self.folder = folder
        self.socket = folder / "s"
        self.base = make_file(folder / "base", SIZE, 1)
        for name in ("middle", "top"):
            daemons.cli("image", "create", "-f", "overlay", folder / name, SIZE)
        self.daemons = daemons
        words = [word.format(folder=folder, cow="overlay") for word in CHAIN]
        self.run("middle", [words[0], words[1], words[2], words[3].replace("read-only=on,", "")],
                 "write -P 2 0 8M", "write -P 2 32M 1M")
        self.daemon = self.run("top", words, "write -P 3 4M 8M", "write -z 33M 1M")
        self.qmp = self.daemon.qmp

    def run(self, node, words, *commands):
        daemon = self.daemons.start(*words, "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
                                    "--export", f"type=nbd,id=e,node-name={node},name=view,writable=on")
        run("qemu-io", "-f", "raw", *[word for text in commands for word in ("-c", text)], self.uri())
        if node == "middle":
            daemon.stop()
        return daemon

    def uri(self):
        return f"nbd+unix:///view?socket={self.socket}"

    def commit(self, **more):
        self.qmp.cmd("block-commit", {"job-id": "c", "device": "top", **more})

    def done(self):
        data = self.qmp.event("BLOCK_JOB_COMPLETED", device="c")["data"]
        assert data["type"] == "commit" and "error" not in data, data

    def backing(self, name):
        nodes = {node["node-name"]: node for node in self.qmp.cmd("query-named-block-nodes")}
        return nodes[name]["x-children"].get("backing"), nodes["base"]["ro"]


@pytest.fixture
def chain(daemons, folder):
    return Chain(daemons, folder)


@pytest.mark.commands("block-commit")
def test_an_active_commit_under_a_guest_leaves_it_on_the_base(chain):
    guest = Guest(chain.socket)
    chain.commit()
    chain.qmp.event("BLOCK_JOB_READY", device="c")
    chain.qmp.cmd("block-job-complete", device="c")
    chain.done()
    assert guest.process.poll() is None
    guest.stop()
    for name in ("top", "middle"):
        chain.qmp.cmd("blockdev-del", node_name=name)
    run("qemu-io", "-f", "raw", "-c", "flush", chain.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", chain.uri(), chain.base)


def test_a_middle_layer_goes_under_a_guest(chain):
    run("nbdcopy", chain.uri(), chain.folder / "before")
    chain.commit(**{"top-node": "middle"})
    chain.done()
    assert chain.backing("top") == ("base", True)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", chain.uri(), chain.folder / "before")
    chain.qmp.cmd("blockdev-del", node_name="middle")
    guest = Guest(chain.socket)
    chain.commit()
    chain.qmp.event("BLOCK_JOB_READY", device="c")
    guest.stop()
    chain.qmp.cmd("block-job-complete", device="c")
    chain.done()
    run("qemu-io", "-f", "raw", "-c", "flush", chain.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", chain.uri(), chain.base)


def test_layers_may_be_named_by_their_files(chain):
    chain.commit(top=str(chain.folder / "middle"), base=str(chain.folder / "base"))
    chain.done()
    assert chain.backing("top") == ("base", True)


def test_what_others_see_is_not_changed(chain):
    chain.qmp.cmd("block-export-add", type="nbd", id="m", node_name="middle", name="m")
    with pytest.raises(QmpError, match="export 'm' uses it too"):
        chain.commit()
    with pytest.raises(QmpError, match="backing-file"):
        chain.commit(**{"top-node": "middle", "backing-file": "x"})
    assert chain.backing("top") == ("middle", True)


# --- beside QEMU ---

def gone(both):
    both.event("JOB_STATUS_CHANGE", status="null")
    return both.compare_events(COUNTS)


def test_commits_go_as_in_qemu(both):
    both.cmd("block-commit", {"job-id": "c", "device": "top", "top-node": "middle"})
    gone(both)
    both.cmd("block-commit", {"job-id": "c", "device": "top", "auto-dismiss": False})
    both.event("BLOCK_JOB_READY")
    both.cmd("query-jobs", ignore=COUNTS)
    both.cmd("query-block-jobs", ignore=(*COUNTS, "busy"))
    both.cmd("job-complete", id="c")
    both.event("JOB_STATUS_CHANGE", status="concluded")
    both.cmd("query-block-jobs", ignore=(*COUNTS, "busy"))
    both.cmd("job-dismiss", id="c")
    gone(both)


def test_a_commit_that_is_cancelled_goes_as_in_qemu(both):
    for force in (False, True):
        both.cmd("block-commit", {"job-id": "c", "device": "top"})
        both.event("BLOCK_JOB_READY")
        both.cmd("block-job-cancel", device="c", force=force)
        gone(both)


def test_wrong_commits_are_refused_as_in_qemu(both):
    good = {"job-id": "c", "device": "top"}
    for wrong in ({"device": "nothing"}, {"device": "base"}, {"top-node": "nothing"},
                  {"top-node": "base"}, {"base-node": "top"}, {"base-node": "nothing"},
                  {"base-node": "middle", "base": "x"}, {"top-node": "middle", "top": "x"},
                  {"top": "/nothing"}, {"base": "/nothing"}, {"backing-file": "x"},
                  {"top-node": "middle", "base-node": "top"}):
        both.cmd("block-commit", {**good, **wrong})
