# SPDX-License-Identifier: LGPL-2.1-or-later
"""Papers that will not do, at each place where they are shown: who shows them is told why and what to do,
the log of who refuses them says so too, and others go on."""

import os
import socket
import ssl
import subprocess
import threading
import time

import nbd
import pytest

from blockstep import (BLOCKSTEPD, DEADLINE_S, Qmp, QmpError, Stock, free_port, make_file, run)

MIB = 1 << 20
NODE = ["--blockdev", "null-co,node-name=n,size=1M"]
NO_CERTIFICATE = "is client-cert.pem there, and of an authority that the server believes?"
WRONG_KEY = "do both sides have the same user with the same key?"


class Client:
    """What a client shows: a folder, of a kind, and who it says it is."""

    def __init__(self, kind, folder, user=None):
        self.kind, self.folder, self.user = kind, folder, user

    def object(self, papers):
        return {"qom-type": f"tls-creds-{self.kind}", "id": "c", "dir": str(papers / self.folder),
                **({"username": self.user} if self.user else {})}

    def options(self, papers):
        return ["--tls", self.kind, "--tls-creds-dir", str(papers / self.folder),
                *(["--tls-username", self.user] if self.user else [])]


# Name: the server's kind, the client, what the client is told, what the server's log says.
REFUSALS = {
    "no certificate": ("x509", Client("x509", "nocert"), NO_CERTIFICATE, "sent no certificate"),
    "another authority's": ("x509", Client("x509", "mixed"), NO_CERTIFICATE, "sent no certificate"),
    "a server not believed": ("x509", Client("x509", "other"),
                              "its authority is not among those in ca-cert.pem of this side", None),
    "a wrong key": ("psk", Client("psk", "psk2"), WRONG_KEY,
                    "the client's user is not in keys.psk, or has another key"),
    "an unknown user": ("psk", Client("psk", "joe", "joe"), WRONG_KEY,
                        "the client's user is not in keys.psk, or has another key"),
    "a certificate for a key": ("psk", Client("x509", "good"), "credentials of another kind",
                                "credentials of another kind"),
    "a key for a certificate": ("x509", Client("psk", "psk"), "credentials of another kind", None),
}
GOOD = {"x509": Client("x509", "good"), "psk": Client("psk", "psk")}


def wait_for_log(daemon, words):
    end = time.monotonic() + DEADLINE_S
    while words not in daemon.log_text():
        assert time.monotonic() < end, daemon.log_text()
        daemon.qmp.cmd("query-status")


def server(daemons, papers, kind):
    """A daemon with an NBD server and a control listener: (daemon, NBD's port, control's)."""
    nbd_port, control_port = free_port(), free_port()
    creds = f"tls-creds-{kind},id=s,dir={papers / ('good' if kind == 'x509' else 'psk')},endpoint=server"
    daemon = daemons.start(
        "--object", creds, "--nbd-server",
        f"addr.type=inet,addr.host=127.0.0.1,addr.port={nbd_port},tls-creds=s",
        *NODE, "--export", "nbd,id=e,node-name=n,writable=on",
        "--qmp", f"inet:127.0.0.1:{control_port},tls-creds=s")
    return daemon, nbd_port, control_port


def attach(qmp, port, **more):
    return qmp.cmd("blockdev-add", {
        "driver": "nbd", "node-name": "far", "export": "n", "tls-creds": "c",
        "server": {"type": "inet", "host": "localhost", "port": str(port)}, **more})


@pytest.mark.parametrize("name", REFUSALS)
def test_nbd_refuses(daemons, papers, name):
    kind, client, told, logged = REFUSALS[name]
    there, port, _ = server(daemons, papers, kind)
    here = daemons.start()
    here.qmp.cmd("object-add", client.object(papers))
    with pytest.raises(QmpError) as failure:
        attach(here.qmp, port)
    assert told in failure.value.desc and f"NBD server localhost:{port}" in failure.value.desc
    if logged:
        wait_for_log(there, logged)
    # With the right ones the same daemon gets in.
    here.qmp.cmd("object-del", id="c")
    here.qmp.cmd("object-add", GOOD[kind].object(papers))
    attach(here.qmp, port)


@pytest.mark.parametrize("name", REFUSALS)
def test_control_refuses(daemons, papers, name):
    kind, client, told, logged = REFUSALS[name]
    there, _, port = server(daemons, papers, kind)
    for verb in (["status"], ["checkpoint"], ["wait", "--for", "running"], ["events"]):
        done = daemons.cli(*verb, "--qmp", f"localhost:{port}", *client.options(papers), check=False)
        assert done.returncode == 1 and done.stdout == "", done.stderr
        assert told in done.stderr and f"localhost:{port}" in done.stderr, done.stderr
    if logged:
        wait_for_log(there, logged)
    daemons.cli("qmp", "--qmp", f"localhost:{port}", *GOOD[kind].options(papers), "query-version")


@pytest.mark.parametrize("name", REFUSALS)
def test_a_primary_is_refused_by_its_peer(daemons, folder, papers, name):
    kind, client, told, _ = REFUSALS[name]
    port = free_port()
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "s.raw", MIB), "--listen",
                            f"127.0.0.1:{port}", "--state", folder / "s", *GOOD[kind].options(papers))
    assert "is ready" in secondary.line()
    words = ["primary", "--name", "p", "--disk", make_file(folder / "p.raw", MIB), "--peer",
             f"localhost:{port}", "--export", f"unix:{folder}/p.sock", "--state", folder / "p"]
    done = daemons.cli(*words, *client.options(papers), check=False)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    # The secondary has taken no harm.
    primary = daemons.run("primary", "p", *words[3:], *GOOD[kind].options(papers))
    assert "is ready" in primary.line()


# --- what has expired ---

def test_nbd_refuses_a_client_whose_certificate_has_expired(daemons, papers):
    there, port, _ = server(daemons, papers, "x509")
    client = nbd.NBD()
    client.set_tls(nbd.TLS_REQUIRE)
    client.set_tls_certificates(str(papers / "expired-client"))
    with pytest.raises(nbd.Error):
        client.connect_tcp("localhost", str(port))
        client.pread(512, 0)
    wait_for_log(there, "the client's certificate is refused: it has expired; replace it there")


def test_control_refuses_a_client_whose_certificate_has_expired(daemons, papers):
    there, _, port = server(daemons, papers, "x509")
    context = ssl.create_default_context(cafile=papers / "good/ca-cert.pem")
    context.load_cert_chain(papers / "expired-client/client-cert.pem",
                            papers / "expired-client/client-key.pem")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Qmp(("127.0.0.1", port), tls=context)
    wait_for_log(there, "the client's certificate is refused: it has expired; replace it there")


def test_our_client_refuses_a_server_whose_certificate_has_expired(daemons, folder, papers):
    path = folder / "far.sock"
    far = Stock(["nbdkit", "-f", "-U", path, "--tls=require",
                 f"--tls-certificates={papers}/expired-server", "null", "1M"], path)
    try:
        qmp = daemons.start().qmp
        qmp.cmd("object-add", GOOD["x509"].object(papers))
        with pytest.raises(QmpError, match="server's certificate is refused: it has expired"):
            attach(qmp, 0, server={"type": "unix", "path": str(path)}, export="",
                   **{"tls-hostname": "localhost"})
    finally:
        far.stop()


class FakeControl:
    """A control port of another make: `serve(socket)` in a thread of its own."""

    def __init__(self, serve):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self.listener.getsockname()[1]}"
        self.serve = serve
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        sock, _ = self.listener.accept()
        with sock:
            sock.settimeout(DEADLINE_S)
            try:
                self.serve(sock)
            except OSError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.join()
        self.listener.close()


def test_a_verb_refuses_a_server_whose_certificate_has_expired(daemons, papers):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers / "expired-server/server-cert.pem",
                            papers / "expired-server/server-key.pem")
    with FakeControl(lambda sock: context.wrap_socket(sock, server_side=True).recv(1)) as far:
        done = daemons.cli("status", "--qmp", far.address, *GOOD["x509"].options(papers), check=False)
    assert done.returncode == 1
    assert "the server's certificate is refused: it has expired; replace it there" in done.stderr


# --- files that cannot be read ---

@pytest.mark.parametrize("kind, name", [("x509", "client-key.pem"), ("psk", "keys.psk")])
def test_secrets_that_others_may_read_or_that_we_may_not_are_named(daemons, folder, papers, kind, name):
    mine = folder / "mine"
    run("cp", "-r", papers / GOOD[kind].folder, mine)
    secret = mine / name
    words = ["--tls", kind, "--tls-creds-dir", mine]

    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        def told(what):
            qmp = daemons.start().qmp
            with pytest.raises(QmpError) as failure:
                qmp.cmd("object-add", Client(kind, mine).object(folder))
            done = daemons.cli("status", "--qmp", f"localhost:{port}", *words, check=False)
            for text in (failure.value.desc, done.stderr):
                assert str(secret) in text and what in text, text

        secret.chmod(0o644)
        told("everybody may use it (mode 0644); chmod 600 it")
        secret.unlink()
        told("is missing")
        secret.mkdir()
        told("is no file")


def test_a_key_of_another_user_is_named(folder, papers):
    """As another user than root, who may read everything."""
    mine = folder / "mine"
    run("cp", "-r", papers / "good", mine)
    folder.chmod(0o755)
    mine.chmod(0o755)
    if os.geteuid() != 0:
        (mine / "client-key.pem").chmod(0)
    runas = ["--runas", "nobody"] if os.geteuid() == 0 else []
    done = subprocess.run([BLOCKSTEPD, *runas, *NODE, "--object",
                           f"tls-creds-x509,id=c,dir={mine},endpoint=client"],
                          capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert f"cannot read '{mine}/client-key.pem' (check the modes of it and of its folder)" in done.stderr
    assert "Permission denied" in done.stderr


# --- who stalls ---

def test_a_server_that_stalls_in_the_handshake_is_given_up(daemons, papers):
    listener = socket.create_server(("127.0.0.1", 0))

    def stall():
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(DEADLINE_S)
            sock.sendall(b"NBDMAGICIHAVEOPT\0\3")
            sock.recv(4 + 16, socket.MSG_WAITALL)
            sock.sendall(bytes.fromhex("0003e889045565a9" "00000005" "00000001" "00000000"))
            while sock.recv(4096):  # its ClientHello, and nothing ever comes back
                pass

    thread = threading.Thread(target=stall)
    thread.start()
    qmp = daemons.start().qmp
    qmp.cmd("object-add", GOOD["x509"].object(papers))
    with pytest.raises(QmpError, match="TLS handshake with .*it took too long"):
        attach(qmp, listener.getsockname()[1], **{"open-timeout": 1})
    thread.join()
    listener.close()


def test_who_stalls_at_control_is_cut_and_a_verb_gives_up_too(daemons, papers):
    there, _, port = server(daemons, papers, "x509")
    began = time.monotonic()
    stalled = [socket.create_connection(("127.0.0.1", port), DEADLINE_S) for _ in range(3)]
    for length, sock in zip((0, 5, 7), stalled):
        sock.sendall(bytes.fromhex("16030102000100")[:length])  # of a ClientHello's head
    with FakeControl(lambda sock: all(iter(lambda: sock.recv(4096), b""))) as far:
        done = daemons.cli("status", "--qmp", far.address, *GOOD["x509"].options(papers), check=False)
        assert done.returncode == 1 and "TLS handshake: it took too long" in done.stderr, done.stderr
    for sock in stalled:
        assert sock.recv(1) == b""
        sock.close()
    assert 5 < time.monotonic() - began
    daemons.cli("qmp", "--qmp", f"localhost:{port}", *GOOD["x509"].options(papers), "query-version")
    assert there.qmp.cmd("query-status")["running"]


def test_a_verb_tells_a_server_that_speaks_no_tls(daemons, papers):
    with FakeControl(lambda sock: sock.sendall(b'{"QMP": {}}\r\n') or sock.recv(4096)) as far:
        done = daemons.cli("status", "--qmp", far.address, *GOOD["x509"].options(papers), check=False)
    assert done.returncode == 1 and "TLS handshake: the server does not speak TLS" in done.stderr
    listening = daemons.start("--qmp", f"inet:127.0.0.1:{(port := free_port())}")
    done = daemons.cli("status", "--qmp", f"localhost:{port}", *GOOD["psk"].options(papers), check=False)
    assert done.returncode == 1 and "the server does not speak TLS" in done.stderr
    assert listening.qmp.cmd("query-status")["running"]
