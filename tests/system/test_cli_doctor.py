# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockstep doctor: says what is wrong with a host, and changes nothing."""

import json
import os
import subprocess

from blockstep import BLOCKSTEP, DEADLINE_S, make_file
from test_cli import Pair

MIB = 1 << 20


def checks(daemons, *words):
    done = daemons.cli("doctor", "-o", "json", *words, check=False)
    answer = json.loads(done.stdout)
    assert answer["json-version"] == 1
    assert answer["fit"] == (done.returncode == 0)
    return answer["checks"]


def texts(found, name, verdict):
    return [check["text"] for check in found if (check["check"], check["verdict"]) == (name, verdict)]


def test_a_host_that_runs_these_tests_is_fit(daemons):
    done = daemons.cli("doctor")
    for word in ["kernel", "io_uring", "memlock", "files", "clock", "control", "daemon"]:
        assert word in done.stdout, done.stdout
    assert "available; in use: " in done.stdout
    assert "\033" not in done.stdout


def test_a_disk_is_looked_at(daemons, folder):
    disk = make_file(folder / "a.raw", MIB)
    found = checks(daemons, disk)
    assert texts(found, "disk", "ok") == [f"{disk}: 1 MiB ({MIB} bytes)"]
    assert texts(found, "locks", "ok") == [f"{disk} is free"]
    assert len(texts(found, "room", "ok")) == 1
    assert disk.read_bytes() == bytes(MIB)


def test_a_disk_in_use_is_seen(daemons, folder):
    disk = make_file(folder / "a.raw", MIB)
    daemons.start("--blockdev", f"file,node-name=n,filename={disk}",
                  "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
                  "--export", "nbd,id=e,node-name=n,writable=on")
    assert texts(checks(daemons, disk), "locks", "note") == [f"{disk} is in use by another program"]


def test_disks_that_will_not_do_are_named(daemons, folder):
    gone, empty = folder / "gone.raw", make_file(folder / "empty.raw", 0)
    odd = make_file(folder / "odd.raw", 1000)
    found = checks(daemons, gone, empty, odd, "/dev/null")
    failed = texts(found, "disk", "failed")
    assert any(str(gone) in text for text in failed)
    assert f"{empty} is empty" in failed
    assert any("/dev/null" in text for text in failed)
    assert any("no whole sectors" in text for text in texts(found, "disk", "warning"))
    assert daemons.cli("doctor", gone, check=False).returncode == 1


def test_daemons_and_their_peers_are_looked_at(daemons):
    pair = Pair(daemons)
    found = checks(daemons)
    assert sorted(texts(found, "daemon", "ok")) == ["p: primary, running", "s: secondary, running"]
    versions = texts(found, "version", "ok")
    assert any(text.startswith(f"the peer of p at {pair.control}") for text in versions), versions
    pair.secondary.kill()
    found = checks(daemons)
    assert any(text.startswith("of p: ") for text in texts(found, "peer", "warning")), found
    assert any(text.startswith("s: ") for text in texts(found, "daemon", "warning")), found


def test_limits_that_are_too_tight_are_named(daemons):
    done = subprocess.run(["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", BLOCKSTEP, "doctor"],
                          capture_output=True, text=True, check=False, timeout=DEADLINE_S,
                          env={**os.environ, **daemons.environment()})
    assert "200 open files at most: " in done.stdout
    assert done.returncode == 0


def test_without_a_place_for_control_sockets_a_host_is_not_fit(folder):
    env = {"PATH": os.environ["PATH"], "BLOCKSTEP_RUNTIME_DIR": "x" * 300}
    done = subprocess.run([BLOCKSTEP, "doctor", "-o", "json"], capture_output=True, text=True,
                          check=False, timeout=DEADLINE_S, env=env)
    assert done.returncode == 1
    assert json.loads(done.stdout)["fit"] is False
