# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is safe by default: no listener that strangers reach, no file that strangers read."""

import os
import socket
import stat
import subprocess

import pytest

from blockstep import (BLOCKSTEP, BLOCKSTEPD, DEADLINE_S, Daemon, Qmp, QmpError, free_port,
                       make_file)

MIB = 1 << 20
NODE = ["--blockdev", "null-co,node-name=n,size=1M"]
# A name is nobody's word that it is a loopback address, so none but localhost passes for one.
OPEN_HOSTS = ["0.0.0.0", "::", "", "192.0.2.1", "2001:db8::1", "::ffff:0.0.0.0", "127.0.0.1.example",
              socket.gethostname()]
LOCAL_HOSTS = ["127.0.0.1", "127.1.2.3", "localhost", "::1"]


def bracketed(host):
    return f"[{host}]" if ":" in host else host


def nbd_server(host):
    return ["--nbd-server", f"addr.type=inet,addr.host={host},addr.port=0"]


# Each of what listens: an address of it as options of the daemon.
LISTENERS = {
    "nbd": nbd_server,
    "nbd json": lambda host: ["--nbd-server", '{"addr": {"type": "inet", "host": "%s", "port": "0"}, '
                              '"id": "x"}' % host],
    "qmp": lambda host: ["--qmp", f"inet:{bracketed(host)}:0"],
    "qmp peer": lambda host: ["--qmp", f"inet:{bracketed(host)}:0,role=peer"],
    "monitor": lambda host: ["--chardev", f"socket,id=c,host={host},port=0,server=on,wait=off",
                             "--monitor", "chardev=c"],
}


def run_daemon(*options):
    done = subprocess.run([BLOCKSTEPD, *NODE, *options], capture_output=True, text=True, check=False,
                          timeout=DEADLINE_S)
    return done.returncode, done.stderr


@pytest.mark.parametrize("host", OPEN_HOSTS)
@pytest.mark.parametrize("kind", LISTENERS)
def test_where_other_hosts_come_in_a_word_is_needed(kind, host):
    code, said = run_daemon(*LISTENERS[kind](host))
    assert code in (1, 2), said
    assert "can be reached from other hosts" in said and "--insecure" in said and "tls-creds" in said


@pytest.mark.parametrize("kind", LISTENERS)
def test_on_loopback_and_with_that_word_they_listen(daemons, kind):
    for host in LOCAL_HOSTS:
        daemons.start(*LISTENERS[kind](host)).stop()
    daemons.start("--insecure", *LISTENERS[kind]("0.0.0.0")).stop()


def test_the_same_holds_for_commands(daemons):
    qmp = daemons.start(*NODE).qmp
    for host in OPEN_HOSTS:
        with pytest.raises(QmpError, match="can be reached from other hosts"):
            qmp.cmd("nbd-server-start", addr={"type": "inet", "data": {"host": host, "port": "0"}})
    for host in LOCAL_HOSTS:
        qmp.cmd("nbd-server-start", addr={"type": "inet", "data": {"host": host, "port": "0"}})
        [server] = qmp.cmd("x-query-nbd-servers")
        assert host == "localhost" or server["addresses"][0].startswith(bracketed(host) + ":")
        qmp.cmd("nbd-server-stop")


@pytest.mark.parametrize("host", OPEN_HOSTS)
@pytest.mark.parametrize("option", ["--listen", "--control", "--export"])
def test_the_same_holds_for_the_roles(daemons, folder, option, host):
    addresses = {"--listen": "127.0.0.1:0", option: f"{bracketed(host)}:0"}
    done = daemons.cli("secondary", "--name", "x", "--disk", make_file(folder / "x.raw", MIB),
                       "--state", folder / "state",
                       *[word for pair in addresses.items() for word in pair], check=False)
    assert done.returncode == 1
    assert option in done.stderr and "can be reached from other hosts" in done.stderr


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def start_with_no_mask(daemons, command, name, path):
    """Whatever the mask of who starts it lets through."""
    before = os.umask(0)
    try:
        daemon = Daemon(command, daemons.folder, name, path, daemons.environment())
    finally:
        os.umask(before)
    daemons.all.append(daemon)
    return daemon


def test_sockets_are_for_their_owner(daemons, folder):
    command = [BLOCKSTEPD, *NODE, "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
               "--qmp", f"unix:{folder}/peer,role=peer",
               "--chardev", f"socket,id=c,path={folder}/monitor,server=on,wait=off",
               "--monitor", "chardev=c", "--qmp", f"unix:{folder}/qmp"]
    daemon = start_with_no_mask(daemons, command, "d", folder / "qmp")
    daemon.qmp.cmd("nbd-server-start", id="b",
                   addr={"type": "unix", "data": {"path": f"{folder}/later"}})
    for name in ("nbd", "peer", "monitor", "qmp", "later"):
        assert mode_of(folder / name) == 0o600, name


def test_what_the_roles_make_is_for_their_owner(daemons, folder):
    port = free_port()
    secondary = start_with_no_mask(daemons, [
        BLOCKSTEP, "secondary", "--name", "s", "--disk", make_file(folder / "s.raw", MIB),
        "--overlays", folder / "overlays/deep", "--state", folder / "s-state/deep",
        "--listen", f"127.0.0.1:{port}", "--export", f"unix:{folder}/s.sock"],
        "s", folder / "blockstep/s.qmp")
    assert "is ready" in secondary.line()
    primary = start_with_no_mask(daemons, [
        BLOCKSTEP, "primary", "--name", "p", "--disk", make_file(folder / "p.raw", MIB),
        "--peer", f"127.0.0.1:{port}", "--state", folder / "p-state",
        "--export", f"unix:{folder}/p.sock"], "p", folder / "blockstep/p.qmp")
    assert "is ready" in primary.line()
    made = [folder / name for name in ("blockstep", "overlays", "s-state", "p-state", "s.sock",
                                       "p.sock")]
    for top in made[:4]:
        made += [path for path in top.rglob("*")]
    assert len(made) > 10
    for path in made:
        assert mode_of(path) == (0o700 if path.is_dir() else 0o600), path


def test_a_state_folder_that_anybody_may_change_is_refused(daemons, folder):
    state = folder / "state"
    state.mkdir()
    state.chmod(0o777)
    done = daemons.cli("secondary", "--name", "x", "--disk", make_file(folder / "x.raw", MIB),
                       "--state", state, "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 1
    assert f"others may write to {state} (mode 0777); chmod 700 it" in done.stderr


def test_an_export_of_a_unix_socket_needs_no_word_and_says_nothing_on_tcp(daemons, folder):
    daemon = daemons.start(*NODE, "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd")
    with open(f"/proc/{daemon.process.pid}/net/tcp", encoding="ascii") as tcp:
        inodes = {line.split()[9] for line in list(tcp)[1:]}
    links = {os.readlink(f"/proc/{daemon.process.pid}/fd/{fd}")
             for fd in os.listdir(f"/proc/{daemon.process.pid}/fd")}
    assert not {f"socket:[{inode}]" for inode in inodes} & links
    assert Qmp(daemon.socket_path).cmd("query-status")["running"]
