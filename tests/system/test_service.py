# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd is to the daemons, played here: readiness, a passed socket, the journal."""

import os
import socket
import subprocess

import pytest

from blockstep import (BLOCKSTEP, BLOCKSTEPD, DEADLINE_S, Qmp, QmpError, free_port, make_file, run)

MIB = 1 << 20


class Manager:
    """Starts a service as systemd does, and hears what it says."""

    def __init__(self, folder, abstract=False):
        self.folder = folder
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.settimeout(DEADLINE_S)
        self.notify = f"@blockstep-test-{os.getpid()}" if abstract else str(folder / "notify")
        self.heard.bind("\0" + self.notify[1:] if abstract else self.notify)
        self.process = None

    def start(self, *command, passed=None, env=None, stderr=None):
        """`passed`: a listening socket that becomes descriptor 3."""
        env = {**os.environ, "NOTIFY_SOCKET": self.notify,
               "BLOCKSTEP_RUNTIME_DIR": str(self.folder / "run"), **(env or {})}
        words = [str(word) for word in command]
        if passed is not None:
            # The process id is known only after the fork, and exec keeps it.
            words = ["bash", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&"$FD"', "sh", *words]
            env["FD"] = str(passed.fileno())
        self.process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stderr=stderr,
                                        pass_fds=[passed.fileno()] if passed else [])
        return self.process

    def hear(self):
        return self.heard.recv(4096).decode()

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.heard.close()


@pytest.fixture
def manager(folder):
    made = Manager(folder)
    yield made
    made.close()


def listener(folder):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "passed.sock"))
    sock.listen()
    return sock


NODE = ["--blockdev", "null-co,node-name=n,size=1M"]


def test_the_daemon_says_when_it_is_ready_and_when_it_ends(manager, folder):
    qmp = folder / "d.qmp"
    process = manager.start(BLOCKSTEPD, *NODE, "--qmp", f"unix:{qmp}")
    assert manager.hear() == "READY=1"
    assert qmp.exists()  # ready means that all stands
    process.terminate()
    assert manager.hear() == "STOPPING=1"
    assert process.wait(DEADLINE_S) == 0


def test_an_abstract_notify_socket_does_as_well(folder):
    manager = Manager(folder, abstract=True)
    try:
        manager.start(BLOCKSTEPD, *NODE)
        assert manager.hear() == "READY=1"
    finally:
        manager.close()


def test_who_fails_to_start_is_not_ready(manager):
    process = manager.start(BLOCKSTEPD, "--blockdev", "file,node-name=n,filename=/nonexistent/x")
    assert process.wait(DEADLINE_S) == 1
    manager.heard.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.hear()


def test_a_manager_that_is_gone_is_no_reason_to_fail(folder):
    process = subprocess.Popen([BLOCKSTEPD, *NODE, "--qmp", f"unix:{folder}/d.qmp"],
                               env={**os.environ, "NOTIFY_SOCKET": str(folder / "gone")},
                               stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    while "gone" not in line:
        assert line, "it ended without a word"
        line = process.stderr.readline()
    process.terminate()
    assert process.wait(DEADLINE_S) == 0
    process.stderr.close()


def test_both_roles_say_when_they_are_ready(folder):
    port = free_port()
    one, other = Manager(folder), None
    try:
        secondary = one.start(BLOCKSTEP, "secondary", "--name", "s", "--disk",
                              make_file(folder / "s.raw", MIB), "--listen", f"127.0.0.1:{port}",
                              "--state", folder / "s-state")
        assert one.hear() == "READY=1"
        (folder / "notify").unlink()
        other = Manager(folder)
        primary = other.start(BLOCKSTEP, "primary", "--name", "p", "--disk",
                              make_file(folder / "p.raw", MIB), "--peer", f"127.0.0.1:{port}",
                              "--export", f"unix:{folder}/p.sock", "--state", folder / "p-state")
        assert other.hear() == "READY=1"
        primary.terminate()
        assert other.hear() == "STOPPING=1"
        assert primary.wait(DEADLINE_S) == 0
        secondary.terminate()
        assert secondary.wait(DEADLINE_S) == 0
    finally:
        for manager in filter(None, (one, other)):
            manager.close()


# --- a passed socket ---

def test_a_passed_socket_is_the_default_nbd_server(manager, folder):
    words = [BLOCKSTEPD, *NODE, "--export", "nbd,id=e,node-name=n,writable=on"]
    with listener(folder) as passed:
        # It is the manager's, who hands it to one after the other.
        for _ in range(2):
            process = manager.start(*words, passed=passed)
            # The connection may come before the daemon is ready: that is what it is for.
            info = run("nbdinfo", "--size", f"nbd+unix:///n?socket={folder}/passed.sock")
            assert int(info) == MIB
            assert manager.hear() == "READY=1"
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
            assert manager.hear() == "STOPPING=1"


def test_the_primarys_guest_comes_in_by_a_passed_socket(manager, folder, daemons):
    port = free_port()
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "s.raw", MIB), "--listen",
                            f"127.0.0.1:{port}", "--state", folder / "s-state")
    assert secondary.line()
    with listener(folder) as passed:
        process = manager.start(BLOCKSTEP, "primary", "--name", "p", "--disk",
                                make_file(folder / "p.raw", MIB), "--peer", f"127.0.0.1:{port}",
                                "--state", folder / "p-state", passed=passed)
    assert manager.hear() == "READY=1"
    run("qemu-io", "-f", "raw", "-c", "write -P 5 0 64k",
        f"nbd+unix:///disk0?socket={folder}/passed.sock")
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_a_passed_socket_that_other_hosts_can_reach_needs_a_word(manager):
    words = [BLOCKSTEPD, *NODE, "--export", "nbd,id=e,node-name=n"]
    with socket.create_server(("0.0.0.0", 0)) as passed:
        process = manager.start(*words, passed=passed, stderr=subprocess.PIPE)
        assert process.wait(DEADLINE_S) == 1
        assert b"passed socket" in process.stderr.read()
        process.stderr.close()
        process = manager.start(*words, "--insecure", passed=passed)
        assert manager.hear() == "READY=1"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        assert manager.hear() == "STOPPING=1"
    with socket.create_server(("127.0.0.1", 0)) as passed:
        process = manager.start(*words, passed=passed)
        assert manager.hear() == "READY=1"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def size_over_tls(passed, folder, check=True):
    """What a client with certificates learns of the disk behind a passed socket."""
    uri = f"nbds://localhost:{passed.getsockname()[1]}/disk0?tls-certificates={folder}"
    return run("nbdinfo", "--size", uri, check=check).strip()


def test_a_passed_socket_speaks_tls_when_told_and_may_then_be_open_to_others(manager, papers):
    fd = "addr.type=fd,addr.str=3,id=outside,tls-creds=t"
    words = [BLOCKSTEPD, *NODE, "--nbd-server", fd, "--export",
             "nbd,id=e,node-name=n,name=disk0,server=outside"]
    creds = f"tls-creds-x509,id=t,dir={papers}/good,endpoint=server"
    with socket.create_server(("0.0.0.0", 0)) as passed:
        process = manager.start(BLOCKSTEPD, "--object", creds, *words[1:], passed=passed)
        assert manager.hear() == "READY=1"
        assert int(size_over_tls(passed, papers / "good")) == MIB
        assert size_over_tls(passed, papers / "nocert", check=False) == ""
        assert run("nbdinfo", "--size", f"nbd://localhost:{passed.getsockname()[1]}/disk0",
                   check=False) == ""
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        assert manager.hear() == "STOPPING=1"
        # Nobody would be known.
        process = manager.start(BLOCKSTEPD, "--object", creds + ",verify-peer=off", *words[1:],
                                passed=passed, stderr=subprocess.PIPE)
        assert process.wait(DEADLINE_S) == 1
        said = process.stderr.read()
        process.stderr.close()
        assert b"NBD server 'outside', passed socket" in said and b"verify-peer=on" in said


@pytest.mark.parametrize("kind", ["inet", "unix"])
def test_the_roles_speak_tls_on_a_passed_socket_as_on_their_own(manager, folder, papers, kind):
    words = [BLOCKSTEP, "secondary", "--name", "s", "--disk", make_file(folder / "s.raw", MIB),
             "--state", folder / "state", "--listen", "0.0.0.0:0", "--tls-creds-dir", papers / "good"]
    with socket.create_server(("0.0.0.0", 0)) if kind == "inet" else listener(folder) as passed:
        process = manager.start(*words, passed=passed)
        assert manager.hear() == "READY=1"
        if kind == "inet":
            assert int(size_over_tls(passed, papers / "good")) == MIB
            assert size_over_tls(passed, papers / "nocert", check=False) == ""
        else:
            assert int(run("nbdinfo", "--size",
                           f"nbd+unix:///disk0?socket={folder}/passed.sock")) == MIB
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number, words", [("3", "(LISTEN_FDS)"), ("4", "'4'"), ("x", "'x'")])
def test_a_descriptor_that_is_no_passed_socket_is_refused(folder, number, words):
    code, said = refusal(folder, "", "--nbd-server", f"addr.type=fd,addr.str={number}")
    assert code == 1 and "is no socket that was passed" in said and words in said


def test_a_passed_socket_can_be_used_once(manager, folder):
    fd = "addr.type=fd,addr.str=3"
    with listener(folder) as passed:
        process = manager.start(BLOCKSTEPD, *NODE, "--nbd-server", fd, "--nbd-server", f"{fd},id=b",
                                passed=passed, stderr=subprocess.PIPE)
        assert process.wait(DEADLINE_S) == 1
        assert b"NBD server 'b': descriptor '3' is no socket" in process.stderr.read()
        process.stderr.close()
        # By a command it is refused as well, where an address would be taken.
        process = manager.start(BLOCKSTEPD, *NODE, "--qmp", f"unix:{folder}/q", passed=passed)
        assert manager.hear() == "READY=1"
        with pytest.raises(QmpError, match="is no socket that was passed"):
            Qmp(folder / "q").cmd("nbd-server-start", id="b",
                                  addr={"type": "fd", "data": {"str": "3"}})
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


def refusal(folder, setup, *options):
    done = subprocess.run(["bash", "-c", setup + ' exec "$@"', "sh", BLOCKSTEPD, *NODE, *options],
                          capture_output=True, text=True, check=False, timeout=DEADLINE_S, cwd=folder)
    return done.returncode, done.stderr


def test_what_is_passed_has_to_be_one_listening_socket(folder):
    code, said = refusal(folder, "export LISTEN_PID=$$ LISTEN_FDS=2;")
    assert code == 2 and "2 sockets" in said
    code, said = refusal(folder, "export LISTEN_PID=$$ LISTEN_FDS=1; exec 3</dev/null;")
    assert code == 2 and "no socket" in said
    with socket.socket(socket.AF_UNIX) as plain:
        os.set_inheritable(plain.fileno(), True)
        done = subprocess.run(["bash", "-c", f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&{plain.fileno()}',
                               "sh", BLOCKSTEPD, *NODE], capture_output=True, text=True, check=False,
                              timeout=DEADLINE_S, close_fds=False)
    assert done.returncode == 2 and "not a listening stream socket" in done.stderr


def test_sockets_passed_to_another_process_are_not_ours(folder):
    code, said = refusal(folder, "export LISTEN_PID=1 LISTEN_FDS=1;", "--export",
                         "nbd,id=e,node-name=n")
    assert code == 1 and "LISTEN" not in said  # no server for the export: nothing was adopted


def test_a_second_default_server_beside_the_passed_socket_is_refused(manager, folder):
    with listener(folder) as passed:
        process = manager.start(BLOCKSTEPD, *NODE, "--nbd-server",
                                f"addr.type=unix,addr.path={folder}/x.sock", passed=passed,
                                stderr=subprocess.PIPE)
    assert process.wait(DEADLINE_S) == 1
    assert b"default" in process.stderr.read()
    process.stderr.close()


# --- the journal ---

def test_lines_for_the_journal_carry_priorities(manager, folder):
    with open(folder / "journal", "wb") as journal:
        status = os.fstat(journal.fileno())
        process = manager.start(BLOCKSTEPD, *NODE, "--qmp", f"unix:{folder}/d.qmp", stderr=journal,
                                env={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert manager.hear() == "READY=1"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    lines = (folder / "journal").read_text().splitlines()
    assert any(line.startswith("<6>qmp: listening on") for line in lines), lines
    assert all(line[0] == "<" and line[2] == ">" for line in lines), lines


def test_lines_for_a_terminal_carry_names(manager, folder):
    with open(folder / "log", "wb") as log:
        process = manager.start(BLOCKSTEPD, *NODE, "--qmp", f"unix:{folder}/d.qmp", stderr=log,
                                env={"JOURNAL_STREAM": "1:1"})
        assert manager.hear() == "READY=1"
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert (folder / "log").read_text().startswith("info qmp: listening on")
