# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockstep doctor: says what is wrong with a host, and changes nothing."""

import json
import os
import shutil
import subprocess

from blockstep import BLOCKSTEP, DEADLINE_S, free_port, make_file
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


# --- TLS ---

def test_credentials_that_do_are_told_with_their_end(daemons, papers):
    found = checks(daemons, "--tls-creds-dir", papers / "good")
    sides = texts(found, "tls", "ok")
    assert [text.split(":")[0] for text in sides] == ["server", "client"]
    assert all("good until 20" in text for text in sides)
    found = checks(daemons, "--tls-creds-dir", papers / "ending")
    assert all("(19 days left)" in text or "(20 days left)" in text
               for text in texts(found, "tls", "warning"))
    assert len(texts(found, "tls", "warning")) == 2
    # The daemon says so as well, when it reads them.
    daemon = daemons.start("--object", f"tls-creds-x509,id=t,dir={papers}/ending,endpoint=server")
    assert "object 't': its certificates expire within 20 days" in daemon.log_text()
    found = checks(daemons, "--tls-creds-dir", papers / "psk", "--tls", "psk")
    assert texts(found, "tls", "ok") == ["server: shared keys", "client: shared keys"]
    found = checks(daemons, "--tls-creds-dir", papers / "locked", "--tls-password-file",
                   papers / "locked/password")
    assert len(texts(found, "tls", "ok")) == 2


def test_credentials_that_will_not_do_are_named(daemons, folder, papers):
    mine = folder / "mine"

    def failed(change, *words):
        shutil.rmtree(mine, ignore_errors=True)
        shutil.copytree(papers / "good", mine)
        change()
        return texts(checks(daemons, "--tls-creds-dir", mine, *words), "tls", "failed")

    def said(found, side, *words):
        assert any(text.startswith(side) and all(word in text for word in words) for text in found), found

    said(failed((mine / "client-key.pem").unlink), "client:", "client-key.pem' is missing")
    said(failed(lambda: (mine / "server-key.pem").chmod(0o644)), "server:", "chmod 600 it")
    both = failed((mine / "ca-cert.pem").unlink)
    said(both, "server:", "ca-cert.pem' is missing")
    said(both, "client:", "ca-cert.pem' is missing")
    said(failed(lambda: shutil.copy(papers / "other/client-key.pem", mine)), "client:",
         "is not that of the certificate")
    said(failed(lambda: shutil.copy(papers / "expired/server-cert.pem", mine)), "server:",
         "has expired on 2020-02-01")
    said(failed(lambda: mine.chmod(0o777)), str(mine), "everybody may put other files there")
    said(failed(lambda: None, "--tls", "psk"), "server:", "keys.psk' is missing")
    assert failed((mine / "server-cert.pem").unlink) == []
    assert any("which a secondary needs" in text
               for text in texts(checks(daemons, "--tls-creds-dir", mine), "tls", "note"))
    said(texts(checks(daemons, "--tls-creds-dir", folder / "nosuch"), "tls", "failed"),
         str(folder / "nosuch"), "No such file")


def test_the_other_hosts_control_is_tried_over_tls(daemons, folder, papers):
    port = free_port()
    tls = ["--tls-creds-dir", papers / "good"]
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "s.raw", MIB), "--listen",
                            f"127.0.0.1:{port}", "--control", f"127.0.0.1:{(control := free_port())}",
                            "--state", folder / "s-state", *tls)
    assert secondary.line()
    primary = daemons.run("primary", "p", "--disk", make_file(folder / "p.raw", MIB), "--peer",
                          f"localhost:{port}", "--peer-control", f"localhost:{control}",
                          "--export", f"unix:{folder}/p.sock", "--state", folder / "p-state", *tls)
    assert primary.line()
    address = f"localhost:{control}"
    found = checks(daemons, "--qmp", address, *tls)
    [remote] = texts(found, "remote", "ok")
    assert remote.startswith(f"{address}: secondary, ") and remote.endswith(", over TLS")
    versions = texts(found, "version", "ok")
    assert any(text.startswith(f"the peer of p at {address}") for text in versions), versions
    # Without them neither the peer nor the address answers, and what to do is told.
    found = checks(daemons, "--qmp", address)
    assert all("--tls-creds-dir" in text for text in
               texts(found, "remote", "failed") + texts(found, "peer", "warning"))
    found = checks(daemons, "--qmp", address, "--tls-creds-dir", papers / "nocert")
    assert "is client-cert.pem there" in texts(found, "remote", "failed")[0]
    plain = daemons.start("--qmp", f"inet:127.0.0.1:{(other := free_port())}")
    found = checks(daemons, "--qmp", f"127.0.0.1:{other}")
    assert texts(found, "remote", "note") == [f"127.0.0.1:{other}: none, none, in the clear"]
    assert texts(checks(daemons, "--qmp", f"unix:{plain.socket_path}"), "remote", "ok")
