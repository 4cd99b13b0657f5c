# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockdev-create: files and overlays made by a running daemon."""

import pytest

from beside_qemu import Beside
from blockstep import QmpError, make_file, run

MIB = 1 << 20


@pytest.fixture
def both(daemons, folder):
    return Beside(daemons, folder, [], {"old": 4096})


class Maker:
    def __init__(self, daemons, folder):
        self.folder = folder
        self.qmp = daemons.start().qmp

    def create(self, **options):
        """Returns the error's text, None when it went well."""
        options = {key.replace("_", "-"): value for key, value in options.items()}
        self.qmp.cmd("blockdev-create", job_id="c", options=options)
        self.qmp.event("JOB_STATUS_CHANGE", id="c", status="concluded")
        job = self.qmp.cmd("query-jobs")[0]
        assert job["type"] == "create" and job["status"] == "concluded"
        assert self.qmp.cmd("query-block-jobs") == []
        self.qmp.cmd("job-dismiss", id="c")
        return job.get("error")

    def add_file(self, name):
        self.qmp.cmd("blockdev-add", driver="file", node_name=name,
                     filename=str(self.folder / name))


@pytest.fixture
def maker(daemons, folder):
    return Maker(daemons, folder)


def test_files_are_made_as_in_qemu(both):
    def create(**options):
        both.cmd("blockdev-create", {"job-id": "c", "options": {
            "driver": "file", "filename": "{folder}/new", "size": MIB, **options}})
        both.event("JOB_STATUS_CHANGE", status="concluded")
        both.cmd("query-jobs")
        both.cmd("query-block-jobs")
        both.cmd("job-dismiss", id="c")
        both.compare_events()
        for side in both.sides:
            path = side.folder / options.get("filename", "new").replace("{folder}/", "")
            yield path.stat() if path.exists() else None
    for options in ({}, {"size": 4096}, {"filename": "{folder}/old", "size": 512},
                    {"preallocation": "full"}, {"preallocation": "falloc"},
                    {"preallocation": "off"}, {"preallocation": "metadata"},
                    {"filename": "{folder}/nothing/there"}):
        ours, qemu = create(**options)
        if options.get("preallocation") == "metadata":
            assert ours.st_size == MIB  # QEMU finds out after it has emptied the file
            continue
        assert (ours and ours.st_size) == (qemu and qemu.st_size), options
        if options.get("preallocation") in ("full", "falloc"):
            assert ours.st_blocks == qemu.st_blocks == MIB // 512


def test_what_is_missing_makes_no_job_as_in_qemu(both):
    both.cmd("blockdev-create", {"options": {"driver": "file", "filename": "x", "size": 1}})
    both.cmd("blockdev-create", {"job-id": "c"})
    for options in ({"driver": "file", "size": 1}, {"driver": "file", "filename": "{folder}/f"}):
        for side in both.sides:
            answer = side.answer("blockdev-create", {"job-id": "c", "options": options})
            assert "is missing" in answer["error"]["desc"]
    both.cmd("query-jobs")


@pytest.mark.commands("blockdev-create")
def test_an_overlay_is_made_in_a_node_and_works(maker, daemons):
    maker.create(driver="file", filename=str(maker.folder / "disk"), size=MIB)
    maker.create(driver="file", filename=str(maker.folder / "top"), size=0)
    for name in ("disk", "top"):
        maker.add_file(name)
    assert maker.create(driver="overlay", file="top", backing="disk") is None
    maker.qmp.cmd("blockdev-add", driver="overlay", node_name="ovl", file="top", backing="disk")
    maker.qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {
        "path": str(maker.folder / "s")}})
    maker.qmp.cmd("nbd-server-add", device="ovl", writable=True)
    uri = f"nbd+unix:///ovl?socket={maker.folder}/s"
    run("qemu-io", "-f", "raw", "-c", "write -P 5 64k 64k", "-c", "read -P 5 64k 64k",
        "-c", "read -P 0 0 64k", uri)
    # A node in use is not made anew.
    assert "top" in maker.create(driver="overlay", file="top", size=MIB)
    run("qemu-io", "-f", "raw", "-c", "read -P 5 64k 64k", uri)


def test_an_overlay_may_be_made_in_a_file_named_inline(maker, daemons):
    path = make_file(maker.folder / "o", 3 * MIB, 7)
    assert maker.create(driver="overlay", size=8 * MIB, block_size=512,
                        file={"driver": "file", "filename": str(path)}) is None
    info = daemons.cli("image", "info", "-f", "overlay", path).stdout
    assert "8.0 MiB" in info or str(8 * MIB) in info
    daemons.cli("image", "check", path)
    assert maker.qmp.cmd("query-named-block-nodes") == []


def test_what_cannot_be_made_says_why(maker, daemons):
    path = make_file(maker.folder / "used", MIB, 1)
    other = daemons.start("--blockdev", f"file,node-name=n,filename={path}")
    assert "lock" in maker.create(driver="file", filename=str(path), size=1).lower()
    other.stop()
    assert path.read_bytes() == bytes([1]) * MIB
    assert "nothing" in maker.create(driver="overlay", file="nothing", size=MIB)
    maker.add_file("used")
    assert "options.size" in maker.create(driver="overlay", file="used")
    assert "leave one" in maker.create(driver="overlay", file="used", backing="used", size=1)
    assert "block" in maker.create(driver="overlay", file="used", size=MIB, block_size=1000)
    for wrong in ({"driver": "nothing"}, {"driver": "qcow2", "file": "used", "size": 1},
                  {"driver": "overlay", "size": 1}, {"driver": "overlay", "filename": "x"}):
        with pytest.raises(QmpError):
            maker.create(**wrong)
    assert maker.qmp.cmd("query-jobs") == []
