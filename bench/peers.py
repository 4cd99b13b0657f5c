# SPDX-License-Identifier: LGPL-2.1-or-later
"""The peers, each at its best on this machine, their command lines pinned.

Cache modes: nbdkit's file plugin and both QEMU programs go through the page cache (for QEMU's pair
writeback and threads are the defaults), as our file driver does on files in memory.
Preallocation: every disk is filled with random data before anything is measured. QEMU's overlays
are qcow2 with its defaults, made anew for each run.
"""

import lab as lab_module
from lab import BenchError
from qmp import Qmp

QEMU = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]


class Nbdkit:
    """nbdkit's file plugin, with its own defaults (16 threads)."""
    name = "nbdkit"

    def __init__(self, lab):
        disk, self.socket = lab.make_random("p.raw"), lab.path("nbdkit.sock")
        self.socket.unlink(missing_ok=True)
        self.process = lab.start(["nbdkit", "--foreground", "--exit-with-parent",
                                  "--unix", self.socket, "file", f"file={disk}"])
        lab.wait_for_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def stop(self):
        self.process.stop()


class NbdkitNull:
    """nbdkit's null plugin: reads as zeroes, forgets what is written."""
    name = "nbdkit null"

    def __init__(self, lab):
        self.socket = lab.path("nbdkit-null.sock")
        self.socket.unlink(missing_ok=True)
        self.process = lab.start(["nbdkit", "--foreground", "--exit-with-parent",
                                  "--unix", self.socket, "null", f"size={lab.size_bytes}"])
        lab.wait_for_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def stop(self):
        self.process.stop()


class NbdCopy:
    """nbdcopy, with its own defaults (a thread and a connection for each processor)."""
    name = "nbdcopy"

    def __init__(self, lab):
        self.lab = lab
        self.target = NbdkitTarget(lab)

    def copy(self):
        self.lab.run(["nbdcopy", "--flush", self.lab.path("p.raw"), self.target.uri])

    def stop(self):
        self.target.stop()


class NbdkitTarget:
    """Where copies go: an empty disk of the size of the other."""

    def __init__(self, lab):
        lab.make_random("p.raw")
        self.disk, self.socket = lab.path("s.raw"), lab.path("target.sock")
        for path in (self.disk, self.socket):
            path.unlink(missing_ok=True)
        with self.disk.open("wb") as file:
            file.truncate(lab.size_bytes)
        self.process = lab.start(["nbdkit", "--foreground", "--exit-with-parent",
                                  "--unix", self.socket, "file", f"file={self.disk}"])
        lab.wait_for_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def stop(self):
        self.process.stop()


class QemuNbd:
    """qemu-nbd; threads because io_uring and native I/O are slower on files in memory."""
    name = "qemu-nbd"

    def __init__(self, lab):
        disk, self.socket = lab.make_random("p.raw"), lab.path("qemu-nbd.sock")
        self.socket.unlink(missing_ok=True)
        self.process = lab.start(["qemu-nbd", f"--socket={self.socket}", "--persistent",
                                  "--shared=4", "--format=raw", "--cache=writeback",
                                  "--aio=threads", "--discard=unmap", "--export-name=disk", disk])
        lab.wait_for_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///disk?socket={self.socket}"

    def stop(self):
        self.process.stop()


class QemuPair:
    """Stock QEMU as primary and secondary without a machine: quorum and `replication` driver."""
    name = "QEMU, unix"
    # QEMU 7.2's secondary aborts when a checkpoint comes while writes are in flight.
    checkpoint_under_load = False

    def __init__(self, lab):
        self.lab = lab
        self.primary_disk, self.secondary_disk = lab.make_pair()
        self.folder = lab.fresh_folder("qemu")
        self.start_secondary()
        self.start_primary()

    def qemu(self, name, *options):
        path = self.folder / f"{name}.qmp"
        process = self.lab.start([*QEMU, "-qmp", f"unix:{path},server=on,wait=off", *options])
        self.lab.wait_for_socket(path, process)
        return process, Qmp(path)

    def start_secondary(self):
        for name in ("active", "hidden"):
            self.lab.run(["qemu-img", "create", "-q", "-f", "qcow2",
                          self.folder / f"{name}.qcow2", self.lab.size_bytes])
        self.secondary, self.secondary_qmp = self.qemu(
            "secondary",
            "-drive", "if=none,id=disk,driver=raw,file.driver=file,"
                      f"file.filename={self.secondary_disk}",
            "-drive", "if=none,id=view-file,driver=replication,mode=secondary,top-id=view,"
                      "file.driver=qcow2,"
                      f"file.file.filename={self.folder}/active.qcow2,file.backing.driver=qcow2,"
                      f"file.backing.file.filename={self.folder}/hidden.qcow2,"
                      "file.backing.backing=disk",
            "-drive", "if=none,id=view,driver=quorum,read-pattern=fifo,vote-threshold=1,"
                      "children.0=view-file")
        self.secondary_qmp.cmd("nbd-server-start", addr=self.link_address())
        self.secondary_qmp.cmd("nbd-server-add", device="disk", writable=True)
        self.secondary_qmp.cmd("nbd-server-add", device="view", writable=True)
        self.secondary_qmp.cmd("xen-set-replication", enable=True, primary=False)
        self.secondary_export = self.link_socket(), "view"

    def start_primary(self):
        self.primary, self.primary_qmp = self.qemu(
            "primary",
            "-drive", "if=none,id=disk,driver=quorum,read-pattern=fifo,vote-threshold=1,"
                      "children.0.driver=raw,children.0.file.driver=file,"
                      f"children.0.file.filename={self.primary_disk}")
        self.primary_qmp.cmd("blockdev-add", {
            "driver": "replication", "mode": "primary", "node-name": "forward",
            "file": {"driver": "nbd", "server": self.link_server(), "export": "disk"}})
        self.primary_qmp.cmd("x-blockdev-change", parent="disk", node="forward")
        path = self.folder / "primary.sock"
        self.primary_qmp.cmd("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
        self.primary_qmp.cmd("nbd-server-add", device="disk", writable=True)
        self.primary_qmp.cmd("xen-set-replication", enable=True, primary=True)
        self.primary_export = str(path), "disk"
        self.uri = f"nbd+unix:///disk?socket={path}"

    # How the two reach each other; the variant over TCP overrides these.

    def link_socket(self):
        return str(self.folder / "secondary.sock")

    def link_address(self):
        return {"type": "unix", "data": {"path": self.link_socket()}}

    def link_server(self):
        return {"type": "unix", "path": self.link_socket()}

    # What the cases ask of a pair.

    def checkpoint(self):
        self.primary_qmp.cmd("xen-colo-do-checkpoint")
        self.secondary_qmp.cmd("xen-colo-do-checkpoint")

    def check(self):
        """Raises when replication has failed on either side."""
        for side, qmp in (("primary", self.primary_qmp), ("secondary", self.secondary_qmp)):
            status = qmp.cmd("query-xen-replication-status")
            if status["error"]:
                raise BenchError(f"QEMU's {side} has failed: {status.get('desc', 'no reason given')}")

    def failover(self):
        self.secondary_qmp.cmd("xen-set-replication", enable=False, primary=False, failover=True)

    def cpu_s(self):
        return self.primary.cpu_s() + self.secondary.cpu_s()

    def stop(self):
        self.primary_qmp.close()
        self.secondary_qmp.close()
        self.primary.kill()
        self.secondary.kill()


class QemuPairTcp(QemuPair):
    """The same over TCP, as two hosts would: its requests meet delayed acknowledgements."""
    name = "QEMU, TCP"

    def __init__(self, lab):
        self.port = lab_module.free_port()
        super().__init__(lab)

    def link_socket(self):
        return "127.0.0.1", self.port

    def link_address(self):
        return {"type": "inet", "data": {"host": "127.0.0.1", "port": str(self.port)}}

    def link_server(self):
        return {"type": "inet", "host": "127.0.0.1", "port": str(self.port)}
