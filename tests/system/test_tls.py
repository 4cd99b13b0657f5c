# SPDX-License-Identifier: LGPL-2.1-or-later
"""TLS with stock counterparts on either side: who has the right papers gets in, nobody else does, and
secrets stay where they are."""

import json
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import textwrap
import time
from pathlib import Path

import nbd
import pytest

import tls_files
from blockstep import DEADLINE_S, ROOT, Qmp, QmpError, Stock, free_port, make_file, run

MIB = 1 << 20
# A key of the bytes 0 to 31, and tls_files.PASSWORD encrypted with it (openssl enc -aes-256-cbc).
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
IV = "ICEiIyQlJicoKSorLC0uLw=="
ENCRYPTED = "iVH3atUv9ttAAgATWF0jTA=="
DATA = bytes(range(256)) * 4096


def x509(folder, endpoint="server", id="t", *more):
    return ["--object", ",".join([f"tls-creds-x509,id={id},dir={folder},endpoint={endpoint}", *more])]


def psk(folder, endpoint="server", id="t", *more):
    return ["--object", ",".join([f"tls-creds-psk,id={id},dir={folder},endpoint={endpoint}", *more])]


def serve(daemons, creds, folder):
    """A daemon that exports a disk with TLS; returns (daemon, socket path, port)."""
    port = free_port()
    daemon = daemons.start(
        *creds, "--blockdev", f"file,node-name=disk,filename={make_file(folder / 'disk', MIB)}",
        "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=t",
        "--export", "nbd,id=e,node-name=disk,name=secret-name,writable=on")
    return daemon, port


def connect(port, certificates=None, psk_file=None, tls=nbd.TLS_REQUIRE, hostname="localhost"):
    client = nbd.NBD()
    client.set_tls(tls)
    client.set_tls_verify_peer(True)
    if certificates:
        client.set_tls_certificates(str(certificates))
    if psk_file:
        client.set_tls_psk_file(str(psk_file))
        client.set_tls_username("qemu")
    client.set_export_name("secret-name")
    client.connect_tcp(hostname, str(port))
    return client


def write_and_read(client):
    client.pwrite(DATA[:300000], 4096)
    client.flush()
    assert client.pread(300000, 4096) == DATA[:300000]
    client.shutdown()


# --- our server ---

def test_libnbd_works_with_certificates(daemons, folder, papers):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    write_and_read(connect(port, papers / "good"))
    uri = f"nbds://localhost:{port}/secret-name?tls-certificates={papers}/good"
    assert "export-size: 1048576" in run("nbdinfo", uri)
    assert run("nbdinfo", "--can", "connect", uri) == ""
    copy = folder / "copy"
    run("nbdcopy", uri, copy)
    assert copy.read_bytes()[4096:304096] == DATA[:300000]


def test_libnbd_works_with_a_shared_key(daemons, folder, papers):
    daemon, port = serve(daemons, psk(papers / "psk"), folder)
    write_and_read(connect(port, psk_file=papers / "psk/keys.psk"))


@pytest.mark.parametrize("kind", ["x509", "psk"])
def test_the_fastest_cipher_is_taken(daemons, folder, papers, kind):
    creds = x509(papers / "good") if kind == "x509" else psk(papers / "psk")
    daemon, port = serve(daemons, ["--log-level", "debug", *creds], folder)
    write_and_read(connect(port, papers / "good" if kind == "x509" else None,
                           papers / "psk/keys.psk" if kind == "psk" else None))
    assert re.search(r"tls: 127.0.0.1:\d+: '.*', \(TLS1.3\).*\(AES-128-GCM\)", daemon.log_text())


@pytest.mark.parametrize("kind", ["x509", "psk"])
def test_qemu_works_with(daemons, folder, papers, kind):
    if kind == "x509":
        daemon, port = serve(daemons, x509(papers / "good"), folder)
        creds = f"tls-creds-x509,id=c,dir={papers}/good,endpoint=client"
    else:
        daemon, port = serve(daemons, psk(papers / "psk"), folder)
        creds = f"tls-creds-psk,id=c,dir={papers}/psk,endpoint=client,username=qemu"
    image = f"driver=nbd,host=localhost,port={port},export=secret-name,tls-creds=c"
    out = run("qemu-io", "--object", creds, "--image-opts", image,
              "-c", "write -P 0x5a 64k 512k", "-c", "flush", "-c", "read -P 0x5a 64k 512k")
    assert "wrote 524288/524288" in out and "read 524288/524288" in out
    assert "Pattern verification failed" not in out


def test_many_connections_at_once_carry_what_they_should(daemons, folder, papers):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    clients = [connect(port, papers / "good") for _ in range(12)]
    for number, client in enumerate(clients):
        client.pwrite(bytes([number + 1]) * 65536, number * 65536)
    for number, client in enumerate(clients):
        assert client.pread(65536, number * 65536) == bytes([number + 1]) * 65536
        client.shutdown()


# --- who does not get in ---

def refused(port, **how):
    with pytest.raises(nbd.Error):
        client = connect(port, **how)
        client.pread(512, 0)


@pytest.mark.parametrize("who", ["nocert", "expired", "other"])
def test_a_client_with_wrong_papers_is_refused(daemons, folder, papers, who):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    if who == "other":
        # It believes the server, and shows what another authority has signed.
        mixed = folder / "mixed"
        shutil.copytree(papers / "other", mixed)
        shutil.copy(papers / "good/ca-cert.pem", mixed)
        refused(port, certificates=mixed)
    else:
        refused(port, certificates=papers / who)
    write_and_read(connect(port, papers / "good"))
    assert "TLS handshake with 127.0.0.1" in daemon.log_text()


def test_a_wrong_key_is_refused(daemons, folder, papers):
    daemon, port = serve(daemons, psk(papers / "psk"), folder)
    refused(port, psk_file=papers / "psk2/keys.psk")
    write_and_read(connect(port, psk_file=papers / "psk/keys.psk"))


class Raw:
    """The protocol's bytes, in the clear."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        self.seen = self.take(18)
        self.sock.sendall(struct.pack(">I", 3))

    def take(self, count):
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise ConnectionError("the end")
            data += part
        return data

    def option(self, number, payload=b"", behind=b""):
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(payload)) + payload + behind)

    def reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        text = self.take(length)
        self.seen += text
        return kind, text


TLS_REQD = 0x80000005


def test_before_tls_nothing_is_told(daemons, folder, papers):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    raw = Raw(port)
    name = b"secret-name"
    for number, payload in [(3, b""), (6, struct.pack(">I", len(name)) + name + b"\0\0"),
                            (7, struct.pack(">I", len(name)) + name + b"\0\0"), (8, b""),
                            (9, b""), (10, b""), (77, b"?")]:
        raw.option(number, payload)
        assert raw.reply()[0] == TLS_REQD
    raw.option(2)
    assert raw.reply()[0] == 1
    assert b"secret" not in raw.seen and b"nbd" not in raw.seen.lower()[18:]
    old = Raw(port)
    old.option(1, name)
    with pytest.raises(ConnectionError):
        old.take(1)


def test_what_is_sent_in_the_clear_behind_starttls_ends_the_connection(daemons, folder, papers):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    raw = Raw(port)
    raw.option(5, behind=b"IHAVEOPT" + struct.pack(">II", 3, 0))
    with pytest.raises((ConnectionError, ConnectionResetError)):
        raw.reply()


def test_a_client_that_stalls_in_the_handshake_costs_nobody_else(daemons, folder, papers):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    stalled = [Raw(port) for _ in range(20)]
    for number, raw in enumerate(stalled):
        raw.option(5)
        assert raw.reply()[0] == 1
        # The head of a ClientHello, and no more of it.
        raw.sock.sendall(bytes.fromhex("16030102000100")[:number % 8])
    began = time.monotonic()
    write_and_read(connect(port, papers / "good"))
    assert time.monotonic() - began < 5
    for raw in stalled:
        raw.sock.settimeout(30)
        try:
            assert raw.sock.recv(1) == b""
        except ConnectionResetError:
            pass
    assert time.monotonic() - began > 5, "cut before the deadline"


def test_random_bytes_instead_of_a_handshake_cost_one_connection(daemons, folder, papers):
    daemon, port = serve(daemons, x509(papers / "good"), folder)
    descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    for _ in range(50):
        raw = Raw(port)
        raw.option(5)
        raw.reply()
        raw.sock.sendall(os.urandom(200))
        raw.sock.shutdown(socket.SHUT_WR)  # else some would wait for more until their deadline
        try:
            while raw.sock.recv(100):
                pass
        except ConnectionResetError:
            pass
        raw.sock.close()
    write_and_read(connect(port, papers / "good"))
    end = time.monotonic() + DEADLINE_S
    while len(os.listdir(f"/proc/{daemon.process.pid}/fd")) > descriptors + 1:
        assert time.monotonic() < end
        daemon.qmp.cmd("query-status")


def test_certificates_are_made_as_the_documentation_tells_it(daemons, folder):
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    block = page.split("keeps `ca-key.pem`")[1].split("\n\n")[1]
    commands = textwrap.dedent(block).replace("beta", "localhost").replace("10.0.0.2", "127.0.0.1")
    assert len(commands.splitlines()) == 6
    subprocess.run(["bash", "-eu", "-c", commands], cwd=folder, check=True, capture_output=True,
                   timeout=120)
    assert (folder / "server-key.pem").stat().st_mode & 0o077 == 0
    daemon, port = serve(daemons, x509(folder), folder)
    write_and_read(connect(port, folder))
    write_and_read(connect(port, folder, hostname="127.0.0.1"))


# --- our client ---

def node(path, tls, *more):
    return ["--blockdev", ",".join(["nbd,node-name=remote,server.type=unix", f"server.path={path}",
                                    "export=x", f"tls-creds={tls}", *more])]


STOCK = {
    "qemu-nbd x509": lambda papers, path, disk: [
        "qemu-nbd", "-t", "-k", path, "-f", "raw", "-x", "x",
        "--object", f"tls-creds-x509,id=s,dir={papers}/good,endpoint=server,verify-peer=on",
        "--tls-creds", "s", disk],
    "qemu-nbd psk": lambda papers, path, disk: [
        "qemu-nbd", "-t", "-k", path, "-f", "raw", "-x", "x",
        "--object", f"tls-creds-psk,id=s,dir={papers}/psk,endpoint=server", "--tls-creds", "s", disk],
    "nbdkit x509": lambda papers, path, disk: [
        "nbdkit", "-f", "-U", path, "--tls=require", f"--tls-certificates={papers}/good",
        "--tls-verify-peer", "file", disk],
    "nbdkit psk": lambda papers, path, disk: [
        "nbdkit", "-f", "-U", path, "--tls=require", f"--tls-psk={papers}/psk/keys.psk", "file", disk],
}


@pytest.fixture
def stock(folder, papers):
    started = []

    def start(kind):
        path = folder / "stock.sock"
        disk = make_file(folder / "far", MIB)
        started.append(Stock(STOCK[kind](papers, path, disk), path))
        return path

    yield start
    for server in started:
        server.stop()


@pytest.mark.parametrize("kind", STOCK)
def test_our_client_works_with(daemons, folder, papers, stock, kind):
    path = stock(kind)
    creds = psk(papers / "psk", "client") if "psk" in kind else x509(papers / "good", "client")
    near = folder / "near.sock"
    daemon = daemons.start(*creds, *node(path, "t", "tls-hostname=localhost"),
                           "--nbd-server", f"addr.type=unix,addr.path={near}",
                           "--export", "nbd,id=e,node-name=remote,name=secret-name,writable=on")
    client = nbd.NBD()
    client.connect_uri(f"nbd+unix:///secret-name?socket={near}")
    write_and_read(client)
    assert (folder / "far").read_bytes()[4096:304096] == DATA[:300000]


@pytest.mark.parametrize("creds, more, words", [
    (lambda p: x509(p / "good", "client"), "tls-hostname=other.example", ["is not for 'other.example'"]),
    (lambda p: x509(p / "other", "client"), "tls-hostname=localhost",
     ["the server's certificate is refused"]),
    (lambda p: x509(p / "nocert", "client"), "tls-hostname=localhost", ["NBD server unix:"]),
    (lambda p: x509(p / "good", "server"), "tls-hostname=localhost", ["'t'", "endpoint=client"]),
    (lambda p: psk(p / "psk", "client"), "tls-hostname=localhost", ["TLS handshake"]),
])
def test_our_client_tells_why_it_does_not_go_on(daemons, folder, papers, stock, creds, more, words):
    path = stock("qemu-nbd x509")
    daemon = daemons.start(*creds(papers))
    with pytest.raises(QmpError) as failure:
        daemon.qmp.cmd("blockdev-add", {
            "driver": "nbd", "node-name": "r", "server": {"type": "unix", "path": str(path)},
            "export": "x", "tls-creds": "t", "tls-hostname": more.split("=")[1]})
    for word in words:
        assert word in failure.value.desc


def test_our_client_says_that_a_server_wants_tls(daemons, folder, papers, stock):
    path = stock("qemu-nbd psk")
    daemon = daemons.start()
    server = {"type": "unix", "path": str(path)}
    with pytest.raises(QmpError, match="give the node tls-creds"):
        daemon.qmp.cmd("blockdev-add", driver="nbd", node_name="r", server=server, export="x")
    with pytest.raises(QmpError, match="there are no TLS credentials 'z'"):
        daemon.qmp.cmd("blockdev-add", driver="nbd", node_name="r", server=server, export="x",
                       tls_creds="z")


def test_our_client_does_not_fall_back_to_plain_text(daemons, folder, papers):
    path = folder / "plain.sock"
    server = Stock(["nbdkit", "-f", "-U", path, "null", "1M"], path)
    daemon = daemons.start(*psk(papers / "psk", "client"))
    try:
        with pytest.raises(QmpError, match="TLS: the server refused"):
            daemon.qmp.cmd("blockdev-add", driver="nbd", node_name="r", export="", tls_creds="t",
                           server={"type": "unix", "path": str(path)})
    finally:
        server.stop()


# --- control ---

def context(certificates, own=True):
    made = ssl.create_default_context(cafile=certificates / "ca-cert.pem")
    if own:
        made.load_cert_chain(certificates / "client-cert.pem", certificates / "client-key.pem")
    return made


def control(daemons, papers):
    port = free_port()
    daemon = daemons.start(*x509(papers / "good"), "--qmp", f"inet:127.0.0.1:{port},tls-creds=t")
    return daemon, ("127.0.0.1", port)


def test_control_works_over_tls(daemons, papers):
    daemon, address = control(daemons, papers)
    qmp = Qmp(address, tls=context(papers / "good"))
    assert qmp.cmd("query-status")["running"]
    qmp.cmd("blockdev-add", driver="null-co", node_name="n", size=MIB)
    big = qmp.cmd("query-commands")
    assert {"name": "object-add"} in big
    qmp.close()


@pytest.mark.parametrize("how", ["no certificate", "plain text", "another authority"])
def test_control_tells_strangers_nothing(daemons, papers, how):
    daemon, address = control(daemons, papers)
    if how == "plain text":
        with socket.create_connection(address, DEADLINE_S) as plain:
            plain.sendall(b'{"execute": "qmp_capabilities"}\n')
            seen = b""
            try:
                while part := plain.recv(1000):
                    seen += part
            except ConnectionResetError:
                pass
            assert b"QMP" not in seen and len(seen) < 20
    else:
        other = context(papers / "good", own=False)
        if how == "another authority":
            other.load_cert_chain(papers / "other/client-cert.pem", papers / "other/client-key.pem")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Qmp(address, tls=other)
    assert Qmp(address, tls=context(papers / "good")).cmd("query-status")


def test_who_stalls_at_the_control_port_holds_up_nobody(daemons, papers):
    daemon, address = control(daemons, papers)
    stalled = [socket.create_connection(address, DEADLINE_S) for _ in range(10)]
    assert Qmp(address, tls=context(papers / "good")).cmd("query-status")
    for sock in stalled:
        sock.close()


# --- objects and rules ---

def test_credentials_come_and_go_by_command_and_are_renewed(daemons, folder, papers):
    daemon = daemons.start("--blockdev", "null-co,node-name=n,size=1M,read-zeroes=on")
    qmp = daemon.qmp
    server = folder / "server"
    shutil.copytree(papers / "other", server)
    add = {"qom-type": "tls-creds-x509", "id": "t", "dir": str(server), "endpoint": "server"}
    port = free_port()
    start = {"addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}},
             "tls-creds": "t"}
    with pytest.raises(QmpError, match="there are no TLS credentials 't'"):
        qmp.cmd("nbd-server-start", start)
    qmp.cmd("object-add", add)
    with pytest.raises(QmpError, match="already"):
        qmp.cmd("object-add", add)
    # While a server uses them they may be replaced: it keeps what it has until it is started anew.
    qmp.cmd("nbd-server-start", start)
    qmp.cmd("nbd-server-add", device="n", name="secret-name")
    qmp.cmd("object-del", id="t")
    refused(port, certificates=papers / "good")
    shutil.rmtree(server)
    shutil.copytree(papers / "good", server)
    qmp.cmd("object-add", add)
    qmp.cmd("nbd-server-stop")
    qmp.cmd("nbd-server-start", start)
    qmp.cmd("nbd-server-add", device="n", name="secret-name")
    client = connect(port, papers / "good")
    assert client.pread(512, 0) == bytes(512)
    client.shutdown()
    with pytest.raises(QmpError, match="no object 'z'"):
        qmp.cmd("object-del", id="z")


@pytest.mark.parametrize("name, words", [
    ("expired", ["expired/server-cert.pem", "has expired on 2020-02-01", "replace it"]),
    ("nocert", ["nocert/server-cert.pem", "is missing"]),
    ("nosuch", ["nosuch/ca-cert.pem", "is missing"]),
])
def test_credentials_that_do_not_do_are_refused_by_name(daemons, papers, name, words):
    qmp = daemons.start().qmp
    with pytest.raises(QmpError) as failure:
        qmp.cmd("object-add", {"qom-type": "tls-creds-x509", "id": "t", "dir": str(papers / name),
                               "endpoint": "server"})
    for word in words:
        assert word in failure.value.desc
    # Nothing is left of it.
    with pytest.raises(QmpError, match="no object 't'"):
        qmp.cmd("object-del", id="t")


def test_beyond_this_host_only_clients_that_are_known_may_connect(daemons, papers):
    port = free_port()
    where = f"addr.type=inet,addr.host=0.0.0.0,addr.port={port},tls-creds=t"
    daemons.start(*x509(papers / "good"), "--nbd-server", where)
    loose = daemons.start(*x509(papers / "good", "server", "t", "verify-peer=off"))
    with pytest.raises(QmpError, match="verify-peer=on"):
        loose.qmp.cmd("nbd-server-start", {
            "addr": {"type": "inet", "data": {"host": "0.0.0.0", "port": "0"}}, "tls-creds": "t"})


def test_secrets_are_in_no_log_and_no_list_of_processes(daemons, folder, papers):
    secret = tls_files.psk_secret(papers / "psk")
    daemon, port = serve(daemons, ["--log-level", "trace", "--trace", "*", *psk(papers / "psk")], folder)
    write_and_read(connect(port, psk_file=papers / "psk/keys.psk"))
    refused(port, psk_file=papers / "psk2/keys.psk")
    bad = folder / "bad"
    bad.mkdir()
    (bad / "keys.psk").write_text(f"qemu:{secret}zz\n")
    (bad / "keys.psk").chmod(0o600)
    with pytest.raises(QmpError) as failure:
        daemon.qmp.cmd("object-add", {"qom-type": "tls-creds-psk", "id": "b", "dir": str(bad)})
    told = failure.value.desc + daemon.log_text() + \
        Path(f"/proc/{daemon.process.pid}/cmdline").read_text() + \
        Path(f"/proc/{daemon.process.pid}/environ").read_text()
    assert secret not in told and secret[:16] not in told


# --- secrets ---

def test_an_encrypted_key_is_opened_with_its_password(daemons, folder, papers):
    creds = ["--object", f"secret,id=pw,file={papers}/locked/password",
             *x509(papers / "locked", "server", "t", "passwordid=pw")]
    daemon, port = serve(daemons, creds, folder)
    write_and_read(connect(port, papers / "good"))
    # Nobody needs the secret any more, but whoever makes credentials anew.
    daemon.qmp.cmd("object-del", id="pw")
    add = {"qom-type": "tls-creds-x509", "id": "u", "dir": f"{papers}/locked", "endpoint": "server"}
    for more, words in [({}, "there is no password for it; tls-creds-x509 takes one as passwordid"),
                        ({"passwordid": "pw"}, "'passwordid': there is no secret 'pw'"),
                        ({"passwordid": "t"}, "'passwordid': there is no secret 't'")]:
        with pytest.raises(QmpError) as failure:
            daemon.qmp.cmd("object-add", {**add, **more})
        assert words in failure.value.desc
    daemon.qmp.cmd("object-add", qom_type="secret", id="pw", file=f"{papers}/locked/wrong-password")
    with pytest.raises(QmpError, match="does its file end with a line end"):
        daemon.qmp.cmd("object-add", {**add, "passwordid": "pw"})
    daemon.qmp.cmd("object-add", qom_type="secret", id="px", data="c3dvcmRmaXNo", format="base64")
    daemon.qmp.cmd("object-add", {**add, "passwordid": "px"})


def test_a_secret_means_what_it_means_to_qemu(daemons, folder, papers):
    """Encrypted as libvirt does it: the same options open the same key on both sides."""
    objects = [f"secret,id=master,format=base64,data={KEY}",
               f"secret,id=pw,format=base64,keyid=master,iv={IV},data={ENCRYPTED}",
               f"tls-creds-x509,id=t,dir={papers}/locked,endpoint=client,passwordid=pw"]
    words = [word for text in objects for word in ("--object", text)]
    daemons.start(*words)
    run("qemu-img", "create", "-q", "-f", "raw", folder / "img", "1M")
    run("qemu-io", *words, "-f", "raw", "-c", "read 0 512", folder / "img")


def test_secrets_are_told_to_nobody(daemons, folder, papers):
    secret = tls_files.PASSWORD
    daemon = daemons.start("--log-level", "trace", "--trace", "*", "--object",
                           f"secret,id=file,file={papers}/locked/password",
                           *x509(papers / "locked", "server", "t", "passwordid=file"))
    told = []
    for bad in [{"data": secret, "file": "x"}, {"data": secret, "format": "base64"},
                {"data": [secret]}, {"data": secret, "nosuch": 1},
                {"data": secret, "keyid": "file", "iv": "AAAAAAAAAAAAAAAAAAAAAA=="},
                {"data": "c3dvcmRmaXNo", "format": "base64", "keyid": "nosuch", "iv": "AAAA"}]:
        with pytest.raises(QmpError) as failure:
            daemon.qmp.cmd("object-add", {"qom-type": "secret", "id": "bad", **bad})
        told.append(failure.value.desc)
    daemon.qmp.cmd("object-add", {"qom-type": "secret", "id": "good", "data": secret})
    answer = daemon.qmp.raw('{"execute": "object-add", "arguments": {"qom-type": "secret", '
                            f'"id": "g", "data": "{secret}" "x"}}}}\n')
    told.append(json.dumps(answer))
    for command in ["query-block", "query-named-block-nodes", "x-query-resources",
                    "x-query-nbd-servers", "query-commands"]:
        told.append(json.dumps(daemon.qmp.cmd(command)))
    process = Path(f"/proc/{daemon.process.pid}")
    told += [daemon.log_text(), (process / "cmdline").read_text(), (process / "environ").read_text()]
    for text in told:
        assert secret not in text and "c3dvcmRmaXNo" not in text


# --- the verbs ---

def test_the_verbs_take_the_password_of_an_encrypted_key(daemons, folder, papers):
    tls = ["--tls-creds-dir", papers / "locked", "--tls-password-file", papers / "locked/password"]
    control_port = free_port()
    secondary = daemons.run("secondary", "s", "--disk", make_file(folder / "far", MIB),
                            "--state", folder / "s", "--listen", "127.0.0.1:0",
                            "--control", f"127.0.0.1:{control_port}", *tls)
    assert "is ready" in secondary.line()
    where = ["qmp", "--qmp", f"localhost:{control_port}"]
    assert '"secondary"' in daemons.cli(*where, *tls, "query-replication").stdout
    for more, words in [([], "the verbs in --tls-password-file"),
                        (["--tls-password-file", papers / "locked/wrong-password"], "line end"),
                        (["--tls-password-file", papers / "locked/nosuch"], "nosuch' is missing"),
                        (["--tls-password-file", "/dev/null"], "'/dev/null' is no file")]:
        done = daemons.cli(*where, "--tls-creds-dir", papers / "locked", *more, "query-replication",
                           check=False)
        assert done.returncode == 1 and words in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["x509", "psk"])
def test_a_replicated_pair_speaks_tls_on_all_its_connections(daemons, folder, papers, kind):
    near, far = make_file(folder / "near", 4 * MIB), make_file(folder / "far", 4 * MIB)
    tls = ["--tls-creds-dir", papers / ("good" if kind == "x509" else "psk"), "--tls", kind]
    listen, control_port = free_port(), free_port()
    secondary = daemons.run("secondary", "s", "--disk", far, "--overlays", folder / "overlays",
                            "--state", folder / "s", "--listen", f"0.0.0.0:{listen}",
                            "--control", f"0.0.0.0:{control_port}", "--fresh",
                            "--export", f"unix:{folder}/s.sock", *tls)
    assert "is ready" in secondary.line()
    primary = daemons.run("primary", "p", "--disk", near, "--state", folder / "p",
                          "--peer", f"localhost:{listen}",
                          "--peer-control", f"localhost:{control_port}",
                          "--export", f"unix:{folder}/p.sock", *tls)
    assert "is ready" in primary.line()
    guest = nbd.NBD()
    guest.connect_uri(f"nbd+unix:///disk0?socket={folder}/p.sock")
    guest.pwrite(DATA[:MIB], MIB)
    guest.flush()
    assert "checkpoint taken" in daemons.cli("checkpoint", "--name", "p").stdout
    view = nbd.NBD()
    view.connect_uri(f"nbd+unix:///disk0?socket={folder}/s.sock")
    assert view.pread(MIB, MIB) == DATA[:MIB]
    view.shutdown()
    guest.shutdown()
    # Without the papers neither data nor control is to be had.
    plain = daemons.cli("qmp", "--qmp", f"localhost:{control_port}", "query-replication", check=False)
    assert plain.returncode == 1 and "--tls-creds-dir" in plain.stderr
    with pytest.raises(nbd.Error):
        nbd.NBD().connect_tcp("localhost", str(listen))
    where = ["--qmp", f"localhost:{control_port}"]
    assert '"secondary"' in daemons.cli("qmp", *where, *tls, "query-replication").stdout
    wrong = ["--tls", kind, "--tls-creds-dir", papers / ("nocert" if kind == "x509" else "psk2")]
    wrong = daemons.cli("qmp", *where, *wrong, "query-replication", check=False)
    assert wrong.returncode == 1 and "secondary" not in wrong.stdout


def test_a_first_synchronisation_speaks_tls_as_well(daemons, folder, papers):
    near, far = make_file(folder / "near", 4 * MIB, 0x6b), make_file(folder / "far", 4 * MIB)
    tls = ["--tls-creds-dir", papers / "good", "--sync"]
    listen, control_port = free_port(), free_port()
    secondary = daemons.run("secondary", "s", "--disk", far, "--overlays", folder / "overlays",
                            "--state", folder / "s", "--listen", f"0.0.0.0:{listen}",
                            "--control", f"0.0.0.0:{control_port}",
                            "--export", f"unix:{folder}/s.sock", *tls)
    assert "is ready" in secondary.line()
    primary = daemons.run("primary", "p", "--disk", near, "--state", folder / "p",
                          "--peer", f"127.0.0.1:{listen}",
                          "--peer-control", f"127.0.0.1:{control_port}",
                          "--export", f"unix:{folder}/p.sock", *tls)
    assert "is ready" in primary.line()
    assert "synchronised" in primary.line()
    assert far.read_bytes() == near.read_bytes()


def test_a_verb_says_what_is_wrong_with_its_tls_options(daemons, folder, papers):
    def usage(*words):
        result = daemons.cli("status", "--qmp", "localhost:1", *words, check=False)
        assert result.returncode == 2
        return result.stderr

    assert "none of x509, psk" in usage("--tls", "ssl")
    assert "--tls-creds-dir only" in usage("--tls", "psk")
    assert "--tls psk only" in usage("--tls-creds-dir", papers / "good", "--tls-username", "me")
    assert "--tls x509 only" in usage("--tls-creds-dir", papers / "psk", "--tls", "psk",
                                      "--tls-password-file", "x")
    # Also where the address is looked for again and again.
    done = daemons.cli("wait", "--for", "running", "--qmp", "localhost:1", "--tls", "psk", check=False)
    assert done.returncode == 2 and "--tls-creds-dir only" in done.stderr
