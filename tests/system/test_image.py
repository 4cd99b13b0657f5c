# SPDX-License-Identifier: LGPL-2.1-or-later
"""Overlay images as the person's command sees them: checked, damaged, cut, of another disk, full."""

import json
import random
import subprocess

import pytest

from blockstep import make_file, run
from test_cli import Pair
from test_drivers import refused, serve, uri

MIB = 1 << 20
SECTOR = 512
LOG = 65536


def overlay_options(path, node="top", **more):
    options = f"driver=overlay,node-name={node},file.driver=file,file.filename={path}"
    return options + "".join(f",{key.replace('_', '-')}={value}" for key, value in more.items())


@pytest.fixture(name="filled")
def filled_overlay(daemons, folder):
    """An image of eight records, closed in good order; and how long its log is."""
    path = folder / "a.overlay"
    daemons.cli("image", "create", "-f", "overlay", path, "8M")
    daemon, sock = serve(daemons, folder, overlay_options(path))
    for i in range(8):
        run("qemu-io", "-f", "raw", "-c", f"write -P {i + 1} {i * 64}k {4 + i * 4}k", uri(sock))
    run("qemu-io", "-f", "raw", "-c", "write -z 4M 1M", "-c", "write -P 9 0 4k", uri(sock))
    daemon.stop()
    return path


def check(daemons, path):
    done = daemons.cli("image", "check", "-o", "json", path, check=False)
    return done.returncode, json.loads(done.stdout)


def test_a_good_image_is_told_as_such_with_what_it_holds(daemons, filled):
    status, answer = check(daemons, filled)
    assert status == 0 and answer["result"] == "good" and answer["clean"]
    assert answer["records"] == 10
    assert answer["held-bytes"] == sum(4 + i * 4 for i in range(8)) << 10
    assert answer["zero-bytes"] == MIB
    assert answer["wasted-bytes"] >= 4096  # the block that was written twice
    assert [one["state"] for one in answer["superblocks"]] == ["good", "good"]
    info = json.loads(daemons.cli("image", "info", "-o", "json", filled).stdout)
    for name in ("held-bytes", "zero-bytes", "wasted-bytes", "records"):
        assert info[name] == answer[name]
    text = daemons.cli("image", "check", filled).stdout
    assert f"{filled}: good" in text and "closed in good order" in text


def test_a_flipped_bit_is_found_with_its_place_and_refused_by_a_daemon(daemons, folder, filled):
    content = bytearray(filled.read_bytes())
    place = LOG + 512 + 100  # in the first record's data
    content[place] ^= 4
    filled.write_bytes(content)
    status, answer = check(daemons, filled)
    assert status == 3 and answer["result"] == "damaged"
    assert "0 of 10 records" in answer["damage"] and str(LOG) in answer["damage"]
    assert answer["start"].startswith("refuses")
    daemon = daemons.start("--blockdev", f"driver=file,node-name=f,filename={filled}")
    reason = refused(daemon, **{"driver": "overlay", "node-name": "o", "file": "f"})
    assert "damaged" in reason and "'f'" in reason
    daemon.qmp.cmd("blockdev-add", {"driver": "overlay", "node-name": "o", "file": "f",
                                    "on-damage": "hold"})
    done = daemons.cli("image", "map", filled, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_bad_superblock_is_told_apart_from_a_bad_image(daemons, filled, which):
    content = bytearray(filled.read_bytes())
    content[which * 4096 + 200] ^= 1
    filled.write_bytes(content)
    _, answer = check(daemons, filled)
    assert answer["superblocks"][which]["state"] == "bad"
    assert answer["superblocks"][1 - which]["state"] == "good"
    content[(1 - which) * 4096 + 200] ^= 1
    filled.write_bytes(content)
    status, answer = check(daemons, filled)
    assert status == 3 and "superblock is damaged" in answer["damage"]


def test_an_image_cut_at_any_sector_is_never_taken_for_good(daemons, folder, filled):
    content = filled.read_bytes()
    cut = folder / "cut.overlay"
    places = random.Random(7).sample(range(0, len(content) - SECTOR, SECTOR), 24)
    for place in sorted(places + [0, SECTOR, 4096, LOG - SECTOR, LOG]):
        cut.write_bytes(content[:place])
        done = daemons.cli("image", "check", cut, check=False)
        assert done.returncode == (1 if place < SECTOR else 3), (place, done.stdout, done.stderr)


def test_what_is_no_overlay_cannot_be_checked(daemons, folder):
    raw = make_file(folder / "a.raw", MIB)
    done = daemons.cli("image", "check", raw, check=False)
    assert done.returncode == 1 and "not an overlay" in done.stderr and str(raw) in done.stderr
    done = daemons.cli("image", "check", "-f", "raw", raw, check=False)
    assert done.returncode == 2


def test_the_overlay_of_another_disk_is_refused_with_both(daemons, folder, filled):
    make_file(folder / "disk.raw", 4 * MIB)
    daemon = daemons.start("--blockdev",
                           f"driver=file,node-name=disk,filename={folder}/disk.raw")
    reason = refused(daemon, **{"driver": "overlay", "node-name": "o", "backing": "disk",
                                "file": {"driver": "file", "filename": str(filled)}})
    assert str(8 * MIB) in reason and str(4 * MIB) in reason and "'disk'" in reason
    assert str(filled) in reason


def test_overlays_that_were_swapped_are_refused_by_their_ids(daemons, folder):
    ids = {}
    for name in ("active", "hidden"):
        path = folder / f"{name}.overlay"
        daemons.cli("image", "create", "-f", "overlay", path, "4M")
        ids[name] = json.loads(daemons.cli("image", "info", "-o", "json", path).stdout)["image-id"]
    daemon = daemons.start()
    for name, other in (("active", "hidden"), ("hidden", "active")):
        options = {"driver": "overlay", "node-name": name, "image-id": ids[name],
                   "file": {"driver": "file", "filename": f"{folder}/{other}.overlay"}}
        reason = refused(daemon, **options)
        assert ids[name] in reason and ids[other] in reason and "swapped" in reason
        assert f"{folder}/{other}.overlay" in reason
        options["file"]["filename"] = f"{folder}/{name}.overlay"
        daemon.qmp.cmd("blockdev-add", options)
        daemon.qmp.cmd("blockdev-del", {"node-name": name})


def test_a_full_overlay_tells_early_and_fails_no_sooner(daemons, folder):
    path = folder / "a.overlay"
    daemons.cli("image", "create", "-f", "overlay", path, "8M")
    daemon, sock = serve(daemons, folder, overlay_options(path, max_bytes="1M"))
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 900k", uri(sock))
    event = daemon.qmp.event("OVERLAY_NEARLY_FULL")
    assert event["data"]["node-name"] == "top" and event["data"]["max-bytes"] == MIB
    with pytest.raises(Exception, match="(?i)no space"):
        run("qemu-io", "-f", "raw", "-c", "write -P 2 1M 512k", uri(sock))
    run("qemu-io", "-f", "raw", "-c", "read -P 1 0 900k", "-c", "read -P 0 1M 512k", uri(sock))
    daemon.stop()
    assert check(daemons, path)[0] == 0


def test_a_secondary_whose_overlays_are_full_keeps_its_checkpoint(daemons):
    overlays = daemons.folder / "overlays"
    overlays.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", overlays],
                      check=False, capture_output=True).returncode != 0:
        pytest.skip("needs a small file system: only root can mount one")
    try:
        pair = Pair(daemons)
        pair.io("p", "write -P 1 0 12M", "flush")
        pair.cli("checkpoint", "--name", "p")
        pair.io("p", "write -P 2 0 16M")  # the guest does not notice
        error = pair.status("s")["error"]
        assert error["errno"] == "ENOSPC" and "copy-before-write" in error["operation"]
        assert pair.cli("checkpoint", "--name", "p", check=False).returncode == 1
        pair.lose_primary()
        pair.cli("failover", "--name", "s")
        pair.io("s", "read -P 1 0 12M", "read -P 0 12M 4M", read_only=True)
        pair.secondary.stop()
    finally:
        subprocess.run(["umount", "-l", overlays], check=True)
