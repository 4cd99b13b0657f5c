# SPDX-License-Identifier: LGPL-2.1-or-later
"""Started by root, the daemons keep little of what root may do; the kernel tells how much."""

import ctypes
import os
import re
import struct
import subprocess

import pytest

from blockstep import BLOCKSTEP, BLOCKSTEPD, DEADLINE_S, QmpError, free_port, make_file

MIB = 1 << 20
NOBODY = 65534
DAC_OVERRIDE, NET_BIND_SERVICE = 1 << 1, 1 << 10
NODE = ["--blockdev", "null-co,node-name=n,size=1M"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")


def rights(daemon):
    """What the kernel says of each thread: {name: {values}}."""
    found = {}
    for task in os.listdir(f"/proc/{daemon.process.pid}/task"):
        with open(f"/proc/{daemon.process.pid}/task/{task}/status", encoding="ascii") as status:
            for name, value in re.findall(r"^(Cap\w+|NoNewPrivs|Uid|Gid|Groups):\s*(.*?)\s*$",
                                          status.read(), re.M):
                found.setdefault(name, set()).add(value)
    return found


def check_limited(daemon, kept):
    found = rights(daemon)
    assert found["NoNewPrivs"] == {"1"}
    for name in ("CapPrm", "CapEff"):
        assert {int(value, 16) for value in found[name]} == {kept}, (name, found)
    for name in ("CapInh", "CapAmb"):
        assert {int(value, 16) for value in found[name]} == {0}, (name, found)
    return found


def foreign_disk(folder):
    """A disk that root alone may open, since it is root's to override."""
    disk = make_file(folder / "foreign.raw", MIB)
    os.chown(disk, NOBODY, NOBODY)
    disk.chmod(0)
    return disk


def test_root_keeps_what_opens_disks_and_ports_and_nothing_else(daemons, folder):
    daemon = daemons.start(*NODE)
    # A disk and a port that come later, and threads that are made for them.
    daemon.qmp.cmd("blockdev-add", driver="file", node_name="d", filename=str(foreign_disk(folder)))
    for port in range(1023, 600, -1):
        try:
            daemon.qmp.cmd("nbd-server-start", addr={
                "type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}})
            break
        except QmpError as failure:
            assert "Address already in use" in failure.desc
    found = check_limited(daemon, DAC_OVERRIDE | NET_BIND_SERVICE)
    assert {int(value, 16) for value in found["CapBnd"]} == {DAC_OVERRIDE | NET_BIND_SERVICE}
    assert len(os.listdir(f"/proc/{daemon.process.pid}/task")) > 1


def test_both_roles_give_up_the_same(daemons, folder):
    port = free_port()
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "s.raw", MIB), "--listen",
                            f"127.0.0.1:{port}", "--state", folder / "s-state")
    assert secondary.line()
    primary = daemons.run("primary", "p", "--disk", make_file(folder / "p.raw", MIB), "--peer",
                          f"127.0.0.1:{port}", "--export", f"unix:{folder}/p.sock",
                          "--state", folder / "p-state")
    assert primary.line()
    check_limited(secondary, DAC_OVERRIDE | NET_BIND_SERVICE)
    check_limited(primary, DAC_OVERRIDE | NET_BIND_SERVICE)


@pytest.mark.parametrize("user", ["nobody", str(NOBODY), f"{NOBODY}:{NOBODY}", "nobody:nogroup"])
def test_as_another_user_a_daemon_has_only_that_users_rights(daemons, folder, user):
    os.chown(folder, NOBODY, NOBODY)
    disk = foreign_disk(folder)
    daemon = daemons.start("--runas", user, *NODE)
    found = check_limited(daemon, 0)
    assert found["Uid"] == found["Gid"] == {"\t".join([str(NOBODY)] * 4)}
    assert found["Groups"] <= {"", str(NOBODY)}
    assert os.stat(daemon.socket_path).st_uid == NOBODY
    with pytest.raises(QmpError, match="Permission denied"):
        daemon.qmp.cmd("blockdev-add", driver="file", node_name="d", filename=str(disk))
    disk.chmod(0o600)
    daemon.qmp.cmd("blockdev-add", driver="file", node_name="d", filename=str(disk))


def test_what_a_role_makes_as_another_user_belongs_to_that_user(daemons, folder):
    for name in ("", "blockstep"):
        (folder / name).mkdir(exist_ok=True)
        os.chown(folder / name, NOBODY, NOBODY)
    disk = make_file(folder / "s.raw", MIB)
    os.chown(disk, NOBODY, NOBODY)
    # Whose environment it was does not matter: the sockets are where root looks for them.
    daemon = daemons.run("secondary", "s", "--disk", disk, "--listen", "127.0.0.1:0",
                         "--state", folder / "state", "--runas", "nobody")
    assert "is ready" in daemon.line()
    check_limited(daemon, 0)
    for made in ("state", "state/lock", "s-disk0.hidden", "s-disk0.active", "blockstep/s.qmp"):
        status = os.stat(folder / made)
        assert status.st_uid == NOBODY and status.st_mode & 0o077 == 0, made
    assert "secondary" in daemons.cli("status", "--name", "s").stdout


def forbid_capset():
    """As the filter of system calls in the unit files does it, for a user without capabilities."""
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    capset = {"x86_64": 126, "aarch64": 91}[os.uname().machine]
    # load the call's number; capset: EPERM, others: allow
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, capset), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    program = Program(len(steps), ctypes.cast(ctypes.create_string_buffer(code), ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(program)) == 0  # PR_SET_SECCOMP


def test_who_has_nothing_to_give_up_needs_no_right_to_do_so(folder):
    os.chown(folder, NOBODY, NOBODY)
    with subprocess.Popen([BLOCKSTEPD, *NODE, "--qmp", f"unix:{folder}/qmp"], stderr=subprocess.PIPE,
                          text=True, preexec_fn=forbid_capset) as daemon:
        line = daemon.stderr.readline()
        daemon.terminate()
        assert daemon.wait(DEADLINE_S) == 0 and "listening on" in line, line


@pytest.mark.parametrize("user, words", [
    ("nosuchuser", "there is no user 'nosuchuser'"),
    ("nobody:nosuchgroup", "there is no group 'nosuchgroup'"),
    ("123456789", "say its group, as in 123456789:123456789"),
    ("99999999999", "there is no user"),
    ("", "there is no user ''"),
])
def test_a_user_that_is_none_is_refused(folder, user, words):
    for command in ([BLOCKSTEPD, *NODE], [BLOCKSTEP, "secondary", "--name", "x", "--disk", "d",
                                          "--listen", "127.0.0.1:0"]):
        done = subprocess.run([*command, "--runas", user], capture_output=True, text=True,
                              check=False, timeout=DEADLINE_S, cwd=folder,
                              env={**os.environ, "BLOCKSTEP_RUNTIME_DIR": str(folder)})
        assert done.returncode == 1 and words in done.stderr, done.stderr


def test_only_root_becomes_another_user():
    done = subprocess.run([BLOCKSTEPD, "--runas", "root", *NODE], capture_output=True, text=True,
                          check=False, timeout=DEADLINE_S,
                          preexec_fn=lambda: os.setresuid(NOBODY, NOBODY, NOBODY))
    assert done.returncode == 1 and "which only root can" in done.stderr, done.stderr
