# SPDX-License-Identifier: LGPL-2.1-or-later
"""The place where a benchmark runs: a folder in memory, the processes in it, files of random data.

Whatever happens (an error, ^C, SIGTERM) no process and no file stays behind: each process leads a
group of its own that is killed at the end. Should this process be killed, the kernel ends the
others, and only the folder stays.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

MIB = 1 << 20
DEADLINE_S = 20
CHUNK_BYTES = 4 * MIB
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
# certtool's templates; the authority's is the first, and signs the others.
CERTIFICATES = {
    "ca": "cn = bench\nca\ncert_signing_key\nexpiration_days = 2\n",
    "server": "cn = localhost\nip_address = 127.0.0.1\nsigning_key\ntls_www_server\n"
              "expiration_days = 2\n",
    "client": "cn = bench\nsigning_key\ntls_www_client\nexpiration_days = 2\n",
}
LIBC = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """Something went wrong that voids the run: it is not a slow result, it is none."""


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A running program; its output is kept in a log for the case that it fails."""

    def __init__(self, command, log, env=None):
        self.command, self.log = [str(word) for word in command], log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent,
                env={**os.environ, **(env or {})})
        self.pid = self.popen.pid

    def check_alive(self):
        if self.popen.poll() is not None:
            raise BenchError(f"{self.command[0]} has ended ({self.popen.returncode}):\n"
                             f"  {' '.join(self.command)}\n{self.log_text()}")

    def log_text(self):
        return self.log.read_text(errors="replace")[-2000:]

    def cpu_s(self):
        """User and system time of all its threads so far; as getrusage() has it, in ticks."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def peak_bytes(self):
        """The most memory that was ever resident."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise BenchError(f"no VmHWM for {self.command[0]}")

    def wait(self, timeout_s):
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.command[0]}: no end after {timeout_s:.0f} s") from None
        if code != 0:
            raise BenchError(f"{' '.join(self.command)}: exit {code}\n{self.log_text()}")

    def kill(self):
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()

    def stop(self):
        """Asks it to end, insists after a while."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                pass
        self.kill()


class Lab:
    """Use as a context: `with Lab(...) as lab`."""

    def __init__(self, parent, size_bytes, build):
        self.parent, self.size_bytes, self.build = Path(parent), size_bytes, Path(build).resolve()
        self.processes = []
        self.count = 0

    def __enter__(self):
        # Two disks, and overlays that may come to hold as much as one.
        needed = 3 * self.size_bytes + 64 * MIB
        free = shutil.disk_usage(self.parent).free
        if free < needed:
            raise BenchError(f"{self.parent}: {free // MIB} MiB free, {needed // MIB} needed; "
                             "make room, or give another folder with --dir")
        self.folder = Path(tempfile.mkdtemp(prefix="blockstep-bench-", dir=self.parent))
        return self

    def __exit__(self, *_):
        self.end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- processes ---

    def start(self, command, env=None):
        self.count += 1
        log = self.folder / f"{self.count}-{Path(command[0]).name}.log"
        try:
            process = Process(command, log, env)
        except FileNotFoundError:
            raise BenchError(f"{command[0]} is not there: `make deps-test` installs the peers, "
                             "`make bench` builds ours") from None
        self.processes.append(process)
        return process

    def run(self, command, timeout_s=60):
        process = self.start(command)
        process.wait(timeout_s)
        self.processes.remove(process)
        return process

    def wait_for_socket(self, address, process):
        """Until somebody listens at a path or a (host, port)."""
        end = time.monotonic() + DEADLINE_S
        while True:
            process.check_alive()
            family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
            with socket.socket(family) as probe:
                try:
                    probe.connect(address if isinstance(address, tuple) else str(address))
                    return
                except (FileNotFoundError, ConnectionRefusedError):
                    pass
            if time.monotonic() > end:
                raise BenchError(f"{process.command[0]} does not listen at {address}:\n"
                                 f"{process.log_text()}")
            time.sleep(0.01)

    def end_processes(self):
        for process in reversed(self.processes):
            process.kill()
        self.processes.clear()

    # --- files ---

    def path(self, name):
        return self.folder / name

    def make_random(self, name):
        """A disk full of random data, all of it allocated: zeroes would make overlays cheap."""
        path = self.path(name)
        if not path.exists():
            with open("/dev/urandom", "rb") as source, path.open("wb") as file:
                for _ in range(0, self.size_bytes, CHUNK_BYTES):
                    file.write(source.read(CHUNK_BYTES))
        return path

    def make_pair(self):
        """Two equal disks. Those of the last run will do, since it ended with equal ones."""
        primary, secondary = self.make_random("p.raw"), self.path("s.raw")
        if not secondary.exists():
            shutil.copyfile(primary, secondary)
        return primary, secondary

    def compare_pair(self):
        """Byte for byte; a difference voids the run, and the disks are made anew for the next."""
        primary, secondary = self.path("p.raw"), self.path("s.raw")
        with primary.open("rb") as left, secondary.open("rb") as right:
            for offset in range(0, self.size_bytes, CHUNK_BYTES):
                if left.read(CHUNK_BYTES) != right.read(CHUNK_BYTES):
                    secondary.unlink()
                    raise BenchError("primary and secondary differ within the 4 MiB at "
                                     f"{offset} after the final checkpoint")

    def forget_secondary(self):
        """After a failover the two disks differ, as they should."""
        self.path("s.raw").unlink(missing_ok=True)

    def checksum(self, name):
        value = 0
        with self.path(name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                value = zlib.crc32(chunk, value)
        return value

    def make_credentials(self):
        """A folder of certificates for both ends of a link on loopback."""
        folder = self.path("credentials")
        if not folder.exists():
            folder.mkdir()
            for name, text in CERTIFICATES.items():
                folder.joinpath(f"{name}.info").write_text(text)
                self.run(["certtool", "--generate-privkey", "--key-type=ecdsa",
                          "--outfile", folder / f"{name}-key.pem"])
                signer = "--load-privkey" if name == "ca" else "--load-ca-privkey"
                self.run(["certtool", "--template", folder / f"{name}.info",
                          "--outfile", folder / f"{name}-cert.pem", signer, folder / "ca-key.pem",
                          *(["--generate-self-signed"] if name == "ca" else
                            ["--generate-certificate", "--load-privkey", folder / f"{name}-key.pem",
                             "--load-ca-certificate", folder / "ca-cert.pem"])])
        return folder

    def fresh_folder(self, name):
        folder = self.path(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def free_port():
    """A TCP port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
