# SPDX-License-Identifier: LGPL-2.1-or-later
"""blockstepd as a process: options, sockets, pid file, background, and how it ends."""

import os
import signal
import stat
import subprocess
import time

import pytest

from blockstep import BLOCKSTEPD, DEADLINE_S, Qmp, free_port, make_file, run

NULL = "null-co,node-name=n,size=1M"


def refused(*options, timeout=DEADLINE_S):
    """Runs blockstepd with options that must not work; returns exit code and message."""
    done = subprocess.run([str(BLOCKSTEPD), *map(str, options)], capture_output=True, text=True,
                          timeout=timeout, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def wait_for(condition, timeout=DEADLINE_S):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.005)


# --- the command line ---

@pytest.mark.parametrize("options, words", [
    ([], ["nothing to do"]),
    (["--frobnicate"], ["frobnicate"]),
    (["extra"], ["extra"]),
    (["--blockdev"], ["requires an argument"]),
    (["--blockdev", "{"], ["--blockdev"]),
    (["--blockdev", '{"driver": "file", "driver": "file"}'], ["--blockdev", "driver"]),
    (["--blockdev", "file,filename"], ["--blockdev", "filename"]),
    (["--nbd-server", "addr.type=unix"], ["--nbd-server", "path"]),
    (["--nbd-server", "addr.type=carrier-pigeon"], ["--nbd-server", "type", "inet"]),
    (["--nbd-server", "addr.type=inet,addr.host=127.0.0.1"], ["--nbd-server", "port"]),
    (["--nbd-server", "addr.type=unix,addr.path=/x,colour=red"], ["--nbd-server", "colour"]),
    (["--export", "nbd,node-name=n"], ["--export", "id"]),
    (["--export", "floppy,id=e,node-name=n"], ["--export", "floppy"]),
    (["--export", "nbd,id=e,node-name=n,writable=perhaps"], ["--export", "writable", "perhaps"]),
    (["--monitor", "chardev=c"], ["--monitor", "'c'"]),
    (["--chardev", "socket,id=c,path=/x,server=off"], ["--chardev", "server=on"]),
    (["--chardev", "socket,id=c,server=on"], ["--chardev", "path"]),
    (["--chardev", "socket,id=c,path=/x,port=1,server=on"], ["--chardev", "'c'"]),
    (["--qmp", "pigeon:x"], ["--qmp", "pigeon:x", "unix:PATH"]),
    (["--qmp", "unix:/x,role=king"], ["--qmp", "role", "king"]),
    (["--object", "{"], ["--object"]),
    (["--log-level", "loud"], ["--log-level", "loud", "debug"]),
    (["--trace", "no.such.point"], ["--trace", "no.such.point"]),
    (["--qmp", "inet:0.0.0.0:4444"], ["0.0.0.0:4444", "--insecure"]),
    (["--nbd-server", "addr.type=inet,addr.host=0.0.0.0,addr.port=4444"], ["--insecure"]),
])
def test_wrong_usage_is_told_and_ends_with_2(options, words):
    code, message = refused(*options)
    assert code == 2, message
    assert message.startswith("blockstepd: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize("options, words", [
    (["--blockdev", "floppy,node-name=n"], ["floppy"]),
    (["--blockdev", "null-co,size=1M"], ["node-name"]),
    (["--blockdev", "null-co,node-name=n,sice=1M"], ["sice", "size"]),
    (["--blockdev", "null-co,node-name=n,size=many"], ["size", "many"]),
    (["--blockdev", "file,node-name=n"], ["filename"]),
    (["--blockdev", "file,node-name=n,filename=/nowhere/at/all"], ["/nowhere/at/all"]),
    (["--blockdev", NULL, "--blockdev", NULL], ["'n'"]),
    (["--blockdev", NULL, "--export", "nbd,id=e,node-name=n"], ["server"]),
    (["--nbd-server", "addr.type=unix,addr.path=/nowhere/nbd"], ["/nowhere/nbd"]),
    (["--qmp", "unix:/nowhere/qmp"], ["/nowhere/qmp"]),
])
def test_what_cannot_be_done_is_told_and_ends_with_1(options, words):
    code, message = refused(*options)
    assert code == 1, message
    for word in words:
        assert word in message, message


def test_with_several_servers_an_export_must_name_one(folder):
    servers = [word for name in "ab"
               for word in ["--nbd-server", f"id={name},addr.type=unix,addr.path={folder}/{name}"]]
    code, message = refused("--blockdev", NULL, *servers, "--export", "nbd,id=e,node-name=n")
    assert code == 1
    assert "server" in message


def test_help_version_and_the_options_of_drivers_are_on_stdout():
    assert "--blockdev" in run(BLOCKSTEPD, "--help")
    assert run(BLOCKSTEPD, "--version").startswith("blockstepd ")
    assert "null-co" in run(BLOCKSTEPD, "--blockdev", "help")
    assert "filename" in run(BLOCKSTEPD, "--blockdev", "file,help")
    assert "filename" in run(BLOCKSTEPD, "--blockdev", "driver=file,help")
    assert "nbd." in run(BLOCKSTEPD, "--trace", "help") or "qmp." in run(BLOCKSTEPD, "--trace", "help")


# --- listeners ---

def test_unix_sockets_are_for_the_owner_alone_and_go_at_the_end(daemons, folder):
    daemon = daemons.start("--nbd-server", f"addr.type=unix,addr.path={folder}/nbd")
    for path in [daemon.socket_path, folder / "nbd"]:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    daemon.stop()
    assert not daemon.socket_path.exists()
    assert not (folder / "nbd").exists()


def test_a_killed_daemons_sockets_are_taken_over(daemons):
    first = daemons.start(name="x")
    first.qmp.close()
    first.kill()
    assert first.socket_path.exists()
    assert daemons.start(name="x").qmp.cmd("query-status")["running"]


def test_a_socket_in_use_is_not_taken_away(daemons, folder):
    daemon = daemons.start()
    code, message = refused("--qmp", f"unix:{daemon.socket_path}")
    assert code == 1
    assert str(daemon.socket_path) in message
    assert daemon.qmp.cmd("query-status")


def test_control_listens_on_tcp_and_by_the_long_form(daemons, folder):
    port = free_port()
    daemon = daemons.start("--qmp", f"inet:127.0.0.1:{port}", "--chardev",
                           f"socket,id=c,path={folder}/long,server=on,wait=off", "--monitor",
                           "chardev=c")
    for address in [("127.0.0.1", port), folder / "long"]:
        qmp = Qmp(address)
        assert qmp.cmd("query-status")
        qmp.close()
    assert daemon.qmp.cmd("query-status")


def test_each_server_shows_its_own_exports_only(daemons, folder):
    daemons.start(
        "--blockdev", "null-co,node-name=a,size=1M", "--blockdev", "null-co,node-name=b,size=2M",
        "--nbd-server", f"id=one,addr.type=unix,addr.path={folder}/one",
        "--nbd-server", f"id=two,addr.type=unix,addr.path={folder}/two",
        "--export", "nbd,id=ea,node-name=a,server=one", "--export", "nbd,id=eb,node-name=b,server=two")
    assert 'export="a"' in run("nbdinfo", "--list", f"nbd+unix://?socket={folder}/one")
    assert 'export="a"' not in run("nbdinfo", "--list", f"nbd+unix://?socket={folder}/two")
    assert "2097152" in run("nbdinfo", "--size", f"nbd+unix:///b?socket={folder}/two")


# --- life and end ---

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order_and_clients_are_told(daemons, number):
    daemon = daemons.start("--blockdev", NULL)
    qmp = daemon.qmp
    daemon.signal(number)
    assert qmp.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-signal"}
    assert qmp.receive() is None
    assert daemon.wait() == 0


def test_quit_answers_before_it_ends(daemons):
    daemon = daemons.start()
    daemon.qmp.cmd("quit")
    assert daemon.qmp.event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"
    assert daemon.wait() == 0


def test_what_was_written_before_the_end_is_on_the_disk(daemons, folder):
    path = make_file(folder / "disk", 1 << 20)
    daemon = daemons.start("--blockdev", f"file,node-name=f,filename={path}",
                           "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
                           "--export", "nbd,id=e,node-name=f,writable=on")
    run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 64k 64k", f"nbd+unix:///f?socket={folder}/nbd")
    daemon.stop()
    data = path.read_bytes()
    assert data[65536:131072] == b"\x5a" * 65536
    assert data.count(b"\0") == len(data) - 65536


def test_the_end_flushes_what_no_client_has_flushed(daemons, folder):
    """A second daemon stands in for the disk: it counts the flushes that reach it."""
    disk = daemons.start("--blockdev", NULL, "--nbd-server", f"addr.type=unix,addr.path={folder}/disk",
                         "--export", "nbd,id=e,node-name=n,writable=on")
    daemon = daemons.start("--blockdev", "nbd,node-name=c,export=n,server.type=unix,"
                           f"server.path={folder}/disk",
                           "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
                           "--export", "nbd,id=e,node-name=c,writable=on")
    run("/usr/bin/python3", "-c", "import nbd, sys\nh = nbd.NBD()\nh.connect_uri(sys.argv[1])\n"
        "h.pwrite(b'x' * 4096, 0)\nh.shutdown()", f"nbd+unix:///c?socket={folder}/nbd")
    [node] = disk.qmp.cmd("query-named-block-nodes")
    assert node["x-stats"]["write"]["requests"] == 1
    before = node["x-stats"]["flush"]["requests"]
    daemon.stop()
    [node] = disk.qmp.cmd("query-named-block-nodes")
    assert node["x-stats"]["flush"]["requests"] > before


def test_a_second_signal_insists(daemons, folder):
    """A request that never ends holds up an orderly end, but not a second signal."""
    path = make_file(folder / "disk", 1 << 20)
    daemon = daemons.start(
        "--blockdev", f"null-co,node-name=f,size=1M,latency-ns={3600 * 10**9}",
        "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
        "--export", "nbd,id=e,node-name=f,writable=on")
    assert path.exists()
    with subprocess.Popen(["qemu-io", "-f", "raw", "-c", "read 0 4k",
                           f"nbd+unix:///f?socket={folder}/nbd"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as client:
        wait_for(lambda: any(export["x-in-flight"] > 0
                             for export in daemon.qmp.cmd("query-block-exports")))
        daemon.signal(signal.SIGTERM)
        daemon.qmp.event("SHUTDOWN")
        assert daemon.process.poll() is None
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 1
        client.wait(DEADLINE_S)
    assert "second signal" in daemon.log_text()


def test_the_pid_file_stands_while_it_runs_and_is_not_shared(daemons, folder):
    pidfile = folder / "pid"
    daemon = daemons.start("--pidfile", pidfile)
    wait_for(pidfile.exists)
    assert int(pidfile.read_text()) == daemon.process.pid
    code, message = refused("--qmp", f"unix:{folder}/other", "--pidfile", pidfile)
    assert code == 1
    assert str(pidfile) in message
    daemon.stop()
    assert not pidfile.exists()


def test_in_the_background_it_has_all_ready_when_the_command_returns(folder):
    pidfile, path = folder / "pid", folder / "qmp"
    subprocess.run([str(BLOCKSTEPD), "--daemonize", "--pidfile", str(pidfile), "--qmp",
                    f"unix:{path}", "--blockdev", NULL], check=True, timeout=DEADLINE_S)
    pid = int(pidfile.read_text())
    qmp = Qmp(path)
    assert [node["node-name"] for node in qmp.cmd("query-named-block-nodes")] == ["n"]
    assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
    qmp.cmd("quit")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or not pidfile.exists())


def test_a_start_in_the_background_that_fails_says_so(folder):
    code, message = refused("--daemonize", "--qmp", f"unix:{folder}/qmp", "--blockdev",
                            "file,node-name=f,filename=/nowhere/at/all")
    assert code == 1
    assert "/nowhere/at/all" in message


def test_it_runs_with_every_kernel_feature_switched_off(daemons, folder):
    features = "defer-taskrun,coop-taskrun,inline-file,inline-send"
    path = make_file(folder / "disk", 1 << 20)
    daemon = daemons.start("--loop-features-off", features,
                           "--blockdev", f"file,node-name=f,filename={path}",
                           "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
                           "--export", "nbd,id=e,node-name=f,writable=on")
    run("qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M",
        f"nbd+unix:///f?socket={folder}/nbd")
    daemon.stop()
    code, message = refused("--loop-features-off", "magic", "--qmp", f"unix:{folder}/q")
    assert code == 2
    assert "magic" in message
