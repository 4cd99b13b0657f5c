# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the system tests share: programs of the build, daemons in a folder of their own, a QMP client.

    def test_x(daemons):
        d = daemons.start("--blockdev", "null-co,node-name=n,size=1M")
        d.qmp.cmd("query-status")

A daemon that is still there when its test ends is stopped, and must end well. Nothing here sleeps:
it waits for sockets, lines, events and processes, each with a deadline.
"""

import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("BLOCKSTEP_BUILD", ROOT / "build"))
BLOCKSTEPD = BUILD / "src/bin/blockstepd"
BLOCKSTEP = BUILD / "src/bin/blockstep"
DEADLINE_S = 20 * int(os.environ.get("BLOCKSTEP_TEST_SLOW", "1"))


class QmpError(Exception):
    """An answer that is an error: cls is its class, desc its text."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.cls = error["class"]
        self.desc = error["desc"]


class Heard:
    """What our daemons have answered and told since the test began. conftest.py looks at it."""

    KEPT = 50  # of one command or event: thousands show no more

    def __init__(self):
        self.answers, self.events = {}, {}

    def note(self, kept, name, value):
        values = kept.setdefault(name, [])
        if len(values) < self.KEPT:
            values.append(value)

    def forget(self):
        self.answers, self.events = {}, {}


HEARD = Heard()


class Qmp:
    """A control connection. Events that arrive on the way are kept in self.events."""

    def __init__(self, address, negotiate=True, timeout=DEADLINE_S, tls=None):
        if isinstance(address, tuple):
            self.sock = socket.create_connection(address, timeout)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(str(address))
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.timeout = timeout
        self.pending = b""
        self.events = []
        self.greeting = self.receive()
        if self.greeting is None:
            raise ConnectionRefusedError("the control socket was closed before a greeting")
        if negotiate:
            self.cmd("qmp_capabilities")

    def send(self, data):
        """Bytes, text or a value, as it is."""
        if not isinstance(data, (bytes, str)):
            data = json.dumps(data)
        self.sock.sendall(data.encode() if isinstance(data, str) else data)

    def line(self, timeout=None):
        """The next line without its end, None when the connection has ended."""
        self.sock.settimeout(timeout or self.timeout)
        while b"\n" not in self.pending:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        assert line.endswith(b"\r"), f"line without CRLF: {line!r}"
        return line[:-1].decode()

    def receive(self, timeout=None):
        """The next object, answer or event, None when the connection has ended."""
        line = self.line(timeout)
        value = None if line is None else json.loads(line)
        if value is not None and "event" in value and self.is_ours():
            HEARD.note(HEARD.events, value["event"], value.get("data", {}))
        return value

    def is_ours(self):
        return self.greeting["QMP"]["version"]["package"].startswith("blockstep")

    def answer(self, timeout=None):
        """The next object that is no event."""
        while True:
            value = self.receive(timeout)
            if value is None:
                raise ConnectionError("the daemon has closed the control connection")
            if "event" not in value:
                return value
            self.events.append(value)

    def raw(self, data, timeout=None):
        self.send(data)
        answer = self.answer(timeout)
        if isinstance(data, dict) and "return" in answer and self.is_ours():
            name = data.get("execute", data.get("exec-oob"))
            HEARD.note(HEARD.answers, name, answer["return"])
        return answer

    def cmd(self, name, arguments=None, /, timeout=None, **more):
        """Runs a command; keyword arguments have their "_" turned into "-". Returns its result."""
        arguments = {**(arguments or {}), **{k.replace("_", "-"): v for k, v in more.items()}}
        request = {"execute": name, **({"arguments": arguments} if arguments else {})}
        answer = self.raw(request, timeout)
        if "error" in answer:
            raise QmpError(answer["error"])
        return answer["return"]

    def event(self, name, timeout=DEADLINE_S, **data):
        """Waits for an event of that name whose data holds `data`; takes it from self.events."""
        end = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self.events.remove(event)
                    return event
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no event {name} {data}; there were {self.events}")
            value = self.receive(left)
            if value is None:
                raise ConnectionError(f"connection closed while waiting for {name}")
            assert "event" in value, f"an answer that nobody waits for: {value}"
            self.events.append(value)

    def close(self):
        self.sock.close()


class Daemon:
    """A process that serves QMP on `socket_path`, with its log in `log`."""

    client = Qmp

    def __init__(self, command, folder, name, socket_path, env=None):
        self.folder, self.name, self.socket_path = folder, name, socket_path
        self.log = folder / f"{name}.log"
        self.command = [str(word) for word in command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=log,
                                            stdout=subprocess.PIPE, env={**os.environ, **(env or {})})
        self._qmp = None

    def wait_for_socket(self, timeout=DEADLINE_S):
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            try:
                return self.client(self.socket_path)
            except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError):
                if time.monotonic() >= end:
                    raise TimeoutError(f"{self.name} does not listen:\n{self.log_text()}") from None
                select.select([], [], [], 0.005)
        raise AssertionError(f"{self.name} has ended ({self.process.returncode}):\n{self.log_text()}")

    def line(self, timeout=DEADLINE_S):
        """The next line that it prints on stdout."""
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        assert ready, f"{self.name} prints nothing:\n{self.log_text()}"
        text = self.process.stdout.readline().decode()
        assert text, f"{self.name} has ended:\n{self.log_text()}"
        return text.rstrip("\n")

    @property
    def qmp(self):
        """A control connection, made at the first use."""
        if self._qmp is None:
            self._qmp = self.wait_for_socket()
        return self._qmp

    def log_text(self):
        return self.log.read_text(errors="replace")

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As a host that dies: at once, nothing flushed."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def wait(self, timeout=DEADLINE_S):
        return self.process.wait(timeout)

    def stop(self, timeout=DEADLINE_S):
        """Asks it to end and checks that it ends well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout)
        assert code == 0, f"{self.name} ended with {code}:\n{self.log_text()}"

    def clean_up(self):
        if self._qmp is not None:
            self._qmp.close()
        try:
            if self.process.returncode is None:
                self.stop()
        finally:
            if self.process.poll() is None:
                self.kill()
            self.process.stdout.close()


class Daemons:
    """Starts daemons in one folder and cleans up behind them."""

    def __init__(self, folder):
        self.folder = folder
        self.all = []

    def start(self, *options, name=None, wait=True, env=None):
        """blockstepd with a control socket."""
        name = name or f"d{len(self.all)}"
        path = self.folder / f"{name}.qmp"
        # The control socket comes last: who reaches it knows that everything else stands.
        daemon = Daemon([BLOCKSTEPD, *options, "--qmp", f"unix:{path}"], self.folder, name, path, env)
        self.all.append(daemon)
        if wait:
            assert daemon.qmp
        return daemon

    def run(self, verb, name, *options):
        """`blockstep VERB --name NAME ...` as a daemon; its sockets are found below this folder."""
        path = self.folder / f"blockstep/{name}.qmp"
        daemon = Daemon([BLOCKSTEP, verb, "--name", name, *options], self.folder, name, path,
                        self.environment())
        self.all.append(daemon)
        return daemon

    def environment(self):
        return {"BLOCKSTEP_RUNTIME_DIR": str(self.folder / "blockstep"), "NO_COLOR": "1"}

    def cli(self, *words, check=True, timeout=DEADLINE_S):
        """Runs `blockstep WORDS` to its end."""
        result = subprocess.run([str(BLOCKSTEP), *map(str, words)], capture_output=True, text=True,
                                timeout=timeout, env={**os.environ, **self.environment()})
        if check:
            assert result.returncode == 0, f"{words}: {result.returncode}\n{result.stderr}"
        return result

    def clean_up(self):
        failures = []
        for daemon in reversed(self.all):
            try:
                daemon.clean_up()
            except (AssertionError, subprocess.TimeoutExpired) as failure:
                failures.append(f"{failure}\n{daemon.log_text()}")
        assert not failures, "\n".join(failures)


class Stock:
    """A stock NBD server process on a unix socket."""

    def __init__(self, command, path):
        self.path = path
        self.process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
        end = time.monotonic() + DEADLINE_S
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < end, command
            select.select([], [], [], 0.01)

    def answers(self):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.path))
                return probe.recv(8) == b"NBDMAGIC"
            except OSError:
                return False

    def stop(self):
        self.process.kill()
        self.process.wait(DEADLINE_S)


def free_port():
    """A TCP port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_file(path, size, pattern=None):
    """A file of `size` bytes, zeroes or a repeated byte."""
    with open(path, "wb") as file:
        if pattern is not None:
            file.write(bytes([pattern]) * size)
        file.truncate(size)
    return path


def run(*words, timeout=60, check=True, env=None):
    """A stock tool; returns its stdout."""
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                            timeout=timeout, env={**os.environ, **(env or {})})
    if check:
        assert result.returncode == 0, f"{words}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout
