# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stock NBD clients against our exports: what they say of them, and whether bytes come back."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import nbd
import pytest

from blockstep import free_port, make_file, run

MIB = 1 << 20


def uri(path, export="disk"):
    return f"nbd+unix:///{export}?socket={path}"


@pytest.fixture
def served(daemons, folder):
    """A daemon that exports a file of 32 MiB: (daemon, file, socket)."""
    disk = make_file(folder / "disk.raw", 32 * MIB)
    sock = folder / "nbd.sock"
    daemon = daemons.start("--blockdev", f"driver=file,node-name=d,filename={disk}",
                           "--nbd-server", f"addr.type=unix,addr.path={sock}",
                           "--export", "type=nbd,id=e,node-name=d,name=disk,writable=on")
    return daemon, disk, sock


def test_nbdinfo_sees_what_the_export_can(served):
    info = json.loads(run("nbdinfo", "--json", uri(served[2])))
    export = info["exports"][0]
    assert info["protocol"] == "newstyle-fixed" and info["structured"]
    assert export["export-size"] == 32 * MIB
    for can in ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn",
                "can_trim", "can_zero"):
        assert export[can], can
    assert not export["is_read_only"]
    assert export["block_size_maximum"] == 32 * MIB
    assert set(export["contexts"]) == {"base:allocation", "qemu:allocation-depth"}


def test_nbdinfo_lists_several_exports_with_their_descriptions(served):
    daemon, _, sock = served
    daemon.qmp.cmd("block-export-add", type="nbd", id="second", node_name="d", name="two",
                   description="the second way in")
    listing = json.loads(run("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={sock}"))
    by_name = {export["export-name"]: export for export in listing["exports"]}
    assert set(by_name) == {"disk", "two"}
    assert by_name["two"]["is_read_only"]
    described = json.loads(run("nbdinfo", "--json", uri(sock, "two")))
    assert described["exports"][0].get("description") == "the second way in"


def test_holes_are_seen_and_made(served, folder):
    _, disk, sock = served
    run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 1M", "-c", "write -P 7 4M 2M",
        "-c", "discard 4M 1M", "-c", "write -z -u 5M 1M", "-c", "flush", uri(sock))
    extents = json.loads(run("nbdinfo", "--json", "--map", uri(sock)))
    data = [(e["offset"], e["length"]) for e in extents if e["type"] == 0]
    assert data == [(MIB, MIB)]
    assert sum(e["length"] for e in extents) == 32 * MIB
    seen = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri(sock)))
    assert [(e["start"], e["length"]) for e in seen if e["data"]] == [(MIB, MIB)]


def test_nbdcopy_there_and_back(served, folder):
    _, disk, sock = served
    source = folder / "source"
    source.write_bytes(random.Random(1).randbytes(32 * MIB))
    run("nbdcopy", source, uri(sock))
    run("nbdcopy", "--flush", uri(sock), folder / "back")
    assert (folder / "back").read_bytes() == source.read_bytes() == Path(disk).read_bytes()


def test_qemu_img_converts_and_compares(served, folder):
    _, disk, sock = served
    source = folder / "source"
    source.write_bytes(random.Random(2).randbytes(8 * MIB) + bytes(24 * MIB))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri(sock))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri(sock))


def test_qemu_io_patterns_at_odd_offsets(served):
    sock = served[2]
    words = ["qemu-io", "-f", "raw"]
    for number, (offset, length) in enumerate(((1, 3), (511, 514), (4095, 70001), (9 * MIB + 7, MIB))):
        words += ["-c", f"write -P {number + 1} {offset} {length}",
                  "-c", f"read -P {number + 1} {offset} {length}"]
    text = run(*words, "-c", "write -f -P 9 8192 4096", "-c", "read -P 9 8192 4096", uri(sock))
    assert "verification failed" not in text


@pytest.mark.parametrize("structured", [True, False])
def test_libnbd_against_a_model(served, structured):
    """Random requests of every kind, many in flight on disjoint parts, beside a plain array."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    handle.connect_uri(uri(served[2]))
    model = bytearray(4 * MIB)
    for _ in range(400):
        offset = rng.randrange(len(model) - 1)
        length = rng.randrange(1, min(len(model) - offset, rng.choice([600, 9000, 400000])) + 1)
        kind = rng.randrange(6)
        if kind <= 1:
            data = rng.randbytes(length)
            handle.pwrite(data, offset, nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0)
            model[offset:offset + length] = data
        elif kind == 2:
            handle.zero(length, offset, rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
            model[offset:offset + length] = bytes(length)
        elif kind == 3:
            handle.flush()
        else:
            assert handle.pread(length, offset) == model[offset:offset + length]
    assert handle.pread(len(model), 0) == model
    handle.shutdown()


def test_libnbd_reads_with_df_and_gets_errors_beyond_the_end(served):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(uri(served[2]))
    assert len(handle.pread_structured(65536, 0, lambda *_: 0, nbd.CMD_FLAG_DF)) == 65536
    for call in (lambda: handle.pread(512, 32 * MIB), lambda: handle.pwrite(bytes(512), 32 * MIB),
                 lambda: handle.trim(512, 32 * MIB)):
        with pytest.raises(nbd.Error):
            call()
    handle.flush()


def test_a_client_that_asks_for_tls_may_go_on_without(served):
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_ALLOW)
    handle.connect_uri(uri(served[2]))
    assert not handle.get_tls_negotiated()
    handle.flush()


def test_over_tcp(daemons, folder):
    disk = make_file(folder / "disk.raw", MIB, 5)
    port = free_port()
    daemons.start("--blockdev", f"driver=file,node-name=d,filename={disk}",
                  "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
                  "--export", "type=nbd,id=e,node-name=d,name=disk,writable=on")
    assert run("nbdinfo", "--size", f"nbd://127.0.0.1:{port}/disk") == f"{MIB}\n"
    run("qemu-io", "-f", "raw", "-c", "read -P 5 0 1M", f"nbd://127.0.0.1:{port}/disk")


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio")
def test_fio_verifies_what_it_wrote(served, folder):
    run("fio", "--name=v", "--verify_state_save=0", "--ioengine=nbd", f"--uri={uri(served[2])}",
        "--size=16M", "--rw=randrw",
        "--bsrange=512-128k", "--blockalign=512", "--iodepth=32", "--verify=crc32c",
        "--verify_fatal=1", "--serialize_overlap=1", timeout=120)


def test_several_connections_see_each_others_flushed_writes(served):
    one, two = nbd.NBD(), nbd.NBD()
    one.connect_uri(uri(served[2]))
    two.connect_uri(uri(served[2]))
    one.pwrite(b"x" * 4096, 0)
    two.flush()
    assert two.pread(4096, 0) == b"x" * 4096


def test_removal_is_refused_while_in_use_unless_hard(served):
    daemon, _, sock = served
    handle = nbd.NBD()
    handle.connect_uri(uri(sock))
    with pytest.raises(Exception, match="client"):
        daemon.qmp.cmd("block-export-del", id="e")
    daemon.qmp.cmd("block-export-del", id="e", mode="hard")
    daemon.qmp.event("BLOCK_EXPORT_DELETED", id="e")
    with pytest.raises(nbd.Error):
        handle.pread(512, 0)
    assert subprocess.run(["nbdinfo", uri(sock)], capture_output=True, check=False).returncode != 0
