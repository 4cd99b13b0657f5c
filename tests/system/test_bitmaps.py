# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty bitmaps: made and changed as QEMU does it, and shown to NBD clients."""

import json
import struct

import nbd
import pytest

from beside_qemu import Beside
from blockstep import QmpError, make_file, run
from torture import EINVAL, FLAGS, connect, go, option, receive, request

MIB = 1 << 20
KIB = 1 << 10


@pytest.fixture
def both(daemons, folder):
    return Beside(daemons, folder,
                  ["--blockdev", "driver=file,node-name=d,discard=unmap,filename={folder}/disk",
                   "--blockdev", "driver=file,node-name=e,filename={folder}/other",
                   "--nbd-server", "addr.type=unix,addr.path={folder}/nbd",
                   "--export", "type=nbd,id=x,node-name=d,name=d,writable=on"],
                  {"disk": 4 * MIB, "other": MIB})


class Disk:
    def __init__(self, daemons, folder):
        self.path = make_file(folder / "disk.raw", 16 * MIB)
        self.sock = folder / "nbd.sock"
        self.daemon = daemons.start("--blockdev", f"driver=file,node-name=d,filename={self.path}",
                                    "--nbd-server", f"addr.type=unix,addr.path={self.sock}")
        self.cmd = self.daemon.qmp.cmd

    def uri(self, export="e"):
        return f"nbd+unix:///{export}?socket={self.sock}"

    def export(self, **more):
        self.cmd("block-export-add", type="nbd", id="e", node_name="d", name="e", **more)

    def write(self, *commands):
        run("qemu-io", "-f", "raw", *[word for text in commands for word in ("-c", text)],
            self.uri())

    def add(self, name="b", **more):
        self.cmd("block-dirty-bitmap-add", node="d", name=name, **more)

    def info(self, name="b"):
        node = self.cmd("query-named-block-nodes")[0]
        return {bitmap["name"]: bitmap for bitmap in node.get("dirty-bitmaps", [])}[name]

    def map(self, name="b"):
        stretches = json.loads(run("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}",
                                   self.uri()))
        assert sum(one["length"] for one in stretches) == 16 * MIB
        return [(one["offset"], one["length"]) for one in stretches if one["type"] == 1]


@pytest.fixture
def disk(daemons, folder):
    return Disk(daemons, folder)


def bitmaps(both, node="d"):
    """What both tell of the node's bitmaps, which must be the same."""
    told = []
    for side in both.sides:
        nodes = side.answer("query-named-block-nodes", {})["return"]
        told.append([one for one in nodes if one["node-name"] == node][0].get("dirty-bitmaps"))
        told[-1] = sorted(told[-1] or [], key=lambda bitmap: bitmap["name"])
    assert told[0] == told[1]
    return {bitmap["name"]: bitmap for bitmap in told[0]}


@pytest.mark.commands("block-dirty-bitmap-add", "block-dirty-bitmap-remove",
                      "block-dirty-bitmap-enable", "block-dirty-bitmap-disable")
def test_bitmaps_come_and_go_as_in_qemu(both):
    add = "block-dirty-bitmap-add"
    both.cmd(add, node="d", name="a")
    both.cmd(add, node="d", name="b", granularity=4096, disabled=True)
    both.cmd(add, node="d", name="b")
    both.cmd(add, node="nothing", name="c")
    both.cmd(add, node="d", name="")
    both.cmd(add, node="d", name="c", granularity=5000)
    both.cmd(add, node="d")
    assert bitmaps(both)["a"]["granularity"] == 64 * KIB
    assert not bitmaps(both)["b"]["recording"]
    for verb in ("remove", "clear", "enable", "disable"):
        both.cmd(f"block-dirty-bitmap-{verb}", node="d", name="nothing")
        both.cmd(f"block-dirty-bitmap-{verb}", node="nothing", name="a")
    both.cmd("block-dirty-bitmap-enable", node="d", name="b")
    both.cmd("block-dirty-bitmap-disable", node="d", name="a")
    bitmaps(both)
    both.cmd("block-dirty-bitmap-remove", node="d", name="a")
    assert list(bitmaps(both)) == ["b"]


@pytest.mark.commands("block-dirty-bitmap-merge", "block-dirty-bitmap-clear")
def test_bitmaps_count_and_merge_as_in_qemu(both):
    both.cmd("block-dirty-bitmap-add", node="d", name="small", granularity=4096)
    both.cmd("block-dirty-bitmap-add", node="d", name="large", granularity=256 * KIB)
    both.cmd("block-dirty-bitmap-add", node="e", name="foreign")
    for side in both.sides:
        run("qemu-io", "-f", "raw", "-c", "write 1M 4k", "-c", "write -z 2M 1k", "-c",
            "discard 3M 64k", f"nbd+unix:///d?socket={side.folder}/nbd")
    assert bitmaps(both)["small"]["count"] == 72 * KIB
    both.cmd("block-dirty-bitmap-add", node="d", name="sum", disabled=True)
    merge = "block-dirty-bitmap-merge"
    both.cmd(merge, node="d", target="sum", bitmaps=["small", {"node": "d", "name": "large"}])
    assert bitmaps(both)["sum"]["count"] == 768 * KIB
    both.cmd("block-dirty-bitmap-clear", node="d", name="sum")
    both.cmd(merge, node="d", target="sum", bitmaps=["small"])
    assert bitmaps(both)["sum"]["count"] == 192 * KIB
    # All or none.
    both.cmd(merge, node="d", target="sum", bitmaps=["large", "nothing"])
    both.cmd(merge, node="d", target="nothing", bitmaps=["large"])
    both.cmd(merge, node="d", target="sum", bitmaps=["large", {"node": "e", "name": "foreign"}])
    assert bitmaps(both)["sum"]["count"] == 192 * KIB


def test_who_shows_a_bitmap_keeps_it_busy_as_in_qemu(both):
    both.cmd("block-dirty-bitmap-add", node="d", name="b")
    export = {"type": "nbd", "id": "y", "node-name": "d", "name": "y"}
    # QEMU's text only: ours says where it looked.
    for side in both.sides:
        answer = side.answer("block-export-add", {**export, "bitmaps": ["nothing"]})
        assert answer["error"]["desc"].startswith("Bitmap 'nothing' is not found")
    both.cmd("block-export-add", export, bitmaps=["b"])
    both.cmd("block-export-add", export, bitmaps=["b"], writable=True)
    assert bitmaps(both)["b"]["busy"]
    for verb in ("remove", "clear", "enable", "disable"):
        both.cmd(f"block-dirty-bitmap-{verb}", node="d", name="b")
    both.cmd("block-export-add", {**export, "id": "z", "name": "z"}, bitmaps=["b"], writable=True)
    both.cmd("block-export-del", id="y")
    both.event("BLOCK_EXPORT_DELETED")
    assert not bitmaps(both)["b"]["busy"]
    both.cmd("block-dirty-bitmap-remove", node="d", name="b")


def test_clients_see_what_has_changed(disk):
    disk.add(granularity=64 * KIB)
    disk.export(writable=True, bitmaps=["b"])
    assert disk.map() == []
    disk.write("write 1M 1k", "write -z 5M 128k", "discard 9M 64k", "write 16383k 1k")
    assert disk.map() == [(MIB, 64 * KIB), (5 * MIB, 128 * KIB), (9 * MIB, 64 * KIB),
                          (16 * MIB - 64 * KIB, 64 * KIB)]
    assert disk.info()["count"] == 320 * KIB and disk.info()["busy"]


def test_contexts_are_listed_and_asked_for_together(disk):
    for name in ("b", "c"):
        disk.add(name)
    disk.export(writable=True, bitmaps=["b", {"node": "d", "name": "c"}], allocation_depth=True)
    disk.write("write 1M 64k")
    names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b",
             "qemu:dirty-bitmap:c"]
    client = nbd.NBD()
    client.set_export_name("e")
    client.set_opt_mode(True)
    client.connect_uri(disk.uri())
    for query, wanted in (([], names), (["qemu:"], names[1:]), (["qemu:dirty-bitmap:"], names[2:]),
                          (["qemu:dirty-bitmap:c"], names[3:]), (["qemu:dirty-bitmap:d"], [])):
        client.clear_meta_contexts()
        for one in query:
            client.add_meta_context(one)
        listed = []
        client.opt_list_meta_context(lambda name: listed.append(name) and 0)
        assert listed == wanted, query
    client.clear_meta_contexts()
    for name in names:
        client.add_meta_context(name)
    client.opt_go()
    seen = {}
    client.block_status(16 * MIB, 0, lambda context, offset, entries, error:
                        seen.update({context: entries}) and 0)
    assert sorted(seen) == names
    assert seen["qemu:dirty-bitmap:b"] == [MIB, 0, 64 * KIB, 1, 15 * MIB - 64 * KIB, 0]
    client.shutdown()


def test_many_marks_come_in_several_answers(disk):
    disk.add(granularity=512)
    disk.export(writable=True, bitmaps=["b"])
    disk.write(*[f"write {place * 8}k 512" for place in range(2000)])
    assert disk.map() == [(place * 8 * KIB, 512) for place in range(2000)]


def test_a_bitmap_of_a_backing_image_is_found_by_its_name(disk, daemons, folder):
    daemons.cli("image", "create", "-f", "overlay", folder / "top", 16 * MIB)
    disk.add()
    disk.cmd("blockdev-add", driver="overlay", node_name="top", backing="d",
             file={"driver": "file", "filename": str(folder / "top")})
    disk.cmd("nbd-server-add", device="top", name="e", bitmap="b", writable=True)
    disk.write("write 1M 64k")
    assert disk.map() == []
    assert disk.info()["busy"]
    disk.cmd("nbd-server-remove", name="e")
    assert not disk.info()["busy"]


def option_reply(sock):
    """(type, payload) of the next reply to an option."""
    kind, length = struct.unpack(">8xII", receive(sock, 20)[4:])
    return kind, receive(sock, length)


def test_contexts_of_an_export_that_has_gone_are_forgotten(disk):
    disk.add()
    disk.export(writable=True, bitmaps=["b"])
    context = b"qemu:dirty-bitmap:b"
    with connect(disk.sock) as client:
        receive(client, 18)
        client.sendall(FLAGS + option(8) + option(10, struct.pack(
            ">I1sII", 1, b"e", 1, len(context)) + context))
        assert [option_reply(client)[0] for _ in range(3)] == [1, 4, 1]
        disk.cmd("block-export-del", id="e")
        disk.export(writable=True)
        client.sendall(go("e"))
        while option_reply(client)[0] != 1:
            pass
        client.sendall(request(7, 0, MIB))
        # Nothing has been agreed on for this one: the request is wrong, and nothing else happens.
        magic, _, kind, _, length = struct.unpack(">IHHQI", receive(client, 20))
        assert magic == 0x668e33ef and kind == 0x8001
        assert struct.unpack(">I", receive(client, length)[:4])[0] == EINVAL
    assert not disk.info()["busy"]


def test_what_cannot_be_is_refused_by_name(disk):
    for wrong, text in (({"name": "p", "persistent": True}, "persistent"),
                        ({"name": "n" * 1024}, "too long"), ({"name": "g", "granularity": 256}, "512")):
        with pytest.raises(QmpError, match=text):
            disk.add(**wrong)
    disk.add("n" * 1023)
    for number in range(63):
        disk.add(f"b{number}")
    with pytest.raises(QmpError, match="64 bitmaps"):
        disk.add("one more")
    disk.cmd("block-dirty-bitmap-disable", node="d", name="b0")
    for number in range(64):
        disk.cmd("block-dirty-bitmap-remove", node="d", name=f"b{number}" if number < 63 else "n" * 1023)
    disk.add()
    for wrong in ("b", [3], [{"name": "b"}], [{"node": "d", "name": "b", "more": 1}]):
        with pytest.raises(QmpError, match="bitmaps"):
            disk.export(writable=True, bitmaps=wrong)
    with pytest.raises(QmpError, match="two bitmaps"):
        disk.export(writable=True, bitmaps=["b", "b"])
    assert not disk.info()["busy"]


def test_a_bitmap_may_be_named_on_the_command_line(daemons, folder):
    path = make_file(folder / "disk.raw", MIB)
    result = daemons.start(
        "--blockdev", f"driver=file,node-name=d,filename={path}",
        "--nbd-server", f"addr.type=unix,addr.path={folder}/s", "--export",
        "type=nbd,id=e,node-name=d,writable=on,bitmaps.0=b", wait=False)
    assert result.wait() == 1
    assert "Bitmap 'b' is not found" in result.log_text()
    daemons.all.remove(result)
    result.process.stdout.close()
