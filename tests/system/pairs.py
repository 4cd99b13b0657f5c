# SPDX-License-Identifier: LGPL-2.1-or-later
"""A replicated pair whose sides are Blockstep or stock QEMU, in any mixture.

Both are driven by the same commands, those of docs/control.md that QEMU has too. What differs stands
in Blockstep and Qemu below: the process, the format of the overlays, how the exports are reached.

The primary's guest uses the view `p`, the user of the secondary the view `s`; `disk` is the
secondary disk itself, as the peer writes it.
"""

import threading
import time

import nbd

from blockstep import DEADLINE_S, Daemon, make_file

VIEW = "view"
DISK = "disk0"


class NoAnswer(TimeoutError):
    """A side has not answered a request within the deadline."""


class Memory(threading.local):
    """What a thread's requests share: libnbd's module for Python 1.14 never lets go of a buffer that
    was given to an asynchronous request."""

    def __init__(self):
        self.bytes = memoryview(bytearray(1 << 20))


MEMORY = Memory()


class View:
    """An export as its user sees it. Every request has a deadline."""

    def __init__(self, host, path, name):
        self.host = host
        self.handle = nbd.NBD()
        self.handle.set_request_block_size(False)
        self.handle.aio_connect_uri(f"nbd+unix:///{name}?socket={path}")
        self.wait(lambda: not self.handle.aio_is_connecting())
        self.size = self.handle.get_size()

    def wait(self, done):
        end = time.monotonic() + DEADLINE_S
        while not done():
            left = end - time.monotonic()
            if left <= 0 or self.handle.poll(int(left * 1000) + 1) == 0:
                raise NoAnswer(f"{self.host.name} does not answer a request")

    def scratch(self, length):
        return nbd.Buffer.from_buffer(MEMORY.bytes[:length])

    def run(self, cookie):
        self.wait(lambda: self.handle.aio_command_completed(cookie))

    def read(self, offset=0, length=None):
        length = self.size - offset if length is None else length
        self.run(self.handle.aio_pread(self.scratch(length), offset))
        return bytes(MEMORY.bytes[:length])

    def write(self, offset, data, fua=False):
        buffer = self.scratch(len(data))
        MEMORY.bytes[:len(data)] = data
        self.run(self.handle.aio_pwrite(buffer, offset, flags=nbd.CMD_FLAG_FUA if fua else 0))

    def zero(self, offset, length, punch):
        flags = 0 if punch else nbd.CMD_FLAG_NO_HOLE
        self.run(self.handle.aio_zero(length, offset, flags=flags))

    def discard(self, offset, length):
        self.run(self.handle.aio_trim(length, offset))

    def flush(self):
        self.run(self.handle.aio_flush())

    def close(self):
        self.handle.shutdown()


class Host:
    """One process that holds one disk; a primary, a secondary, or first one and then the other."""

    def __init__(self, daemons, folder, name, size):
        self.daemons, self.folder, self.name, self.size = daemons, folder, name, size
        self.disk = folder / f"{name}.raw"
        self.link = folder / f"{name}.link"
        self.forwards = 0
        self.views = {}
        if not self.disk.exists():
            make_file(self.disk, size)
        self.start()

    @property
    def qmp(self):
        return self.daemon.qmp

    def disk_options(self, **more):
        return {"driver": "raw", "file": {"driver": "file", "filename": str(self.disk)}, **more}

    def add_primary(self):
        self.qmp.cmd("blockdev-add", {
            "driver": "quorum", "node-name": "top", "vote-threshold": 1, "read-pattern": "fifo",
            "children": [self.disk_options()]})

    def assemble_primary(self):
        self.add_primary()
        self.export_view()

    def overlay(self, kind):
        """Makes an empty one; returns what opens it."""
        path, file = self.folder / f"{self.name}.{kind}", f"{kind}-file"
        make_file(path, 0)
        self.qmp.cmd("blockdev-add", driver="file", node_name=file, filename=str(path))
        self.qmp.cmd("blockdev-create", job_id=file, options={
            "driver": self.overlay_format, "file": file, "size": self.size})
        self.qmp.event("JOB_STATUS_CHANGE", id=file, status="concluded")
        self.qmp.cmd("job-dismiss", id=file)
        return {"driver": self.overlay_format, "file": file}

    def add_secondary(self):
        self.qmp.cmd("blockdev-add", self.disk_options(**{"node-name": DISK}))
        hidden = {**self.overlay("hidden"), "node-name": "hidden0", "backing": DISK}
        active = {**self.overlay("active"), "node-name": "active0", "backing": hidden}
        self.qmp.cmd("blockdev-add", {
            "driver": "quorum", "node-name": "top", "vote-threshold": 1, "read-pattern": "fifo",
            "children": [{"driver": "replication", "node-name": "childs0", "mode": "secondary",
                          "top-id": "top", "file": active}]})

    def assemble_secondary(self):
        self.add_secondary()
        self.listen()
        self.export_view()
        self.qmp.cmd("nbd-server-add", device=DISK, writable=True, **self.link_server)

    def start_secondary(self):
        self.qmp.cmd("xen-set-replication", enable=True, primary=False)

    def start_primary(self, peer):
        """Forwards to the peer from now on, and is started."""
        self.forwards += 1
        self.qmp.cmd("blockdev-add", {
            "driver": "replication", "mode": "primary", "node-name": f"forward{self.forwards}",
            "file": {"driver": "nbd", "export": DISK,
                     "server": {"type": "unix", "path": str(peer.link)}}})
        self.qmp.cmd("x-blockdev-change", parent="top", node=f"forward{self.forwards}")
        self.qmp.cmd("xen-set-replication", enable=True, primary=True)

    def forget_peer(self):
        """The secondary is lost: the primary goes on alone."""
        self.qmp.cmd("x-blockdev-change", parent="top", child="children.1")
        self.qmp.cmd("blockdev-del", node_name=f"forward{self.forwards}")

    def copy_to(self, peer):
        """The first synchronisation, as managers do it: mirror until ready, then end it."""
        self.qmp.cmd("drive-mirror", device="top", job_id="resync", mode="existing", format="raw",
                     target=f"nbd+unix:///{DISK}?socket={peer.link}", sync="full")
        self.qmp.event("BLOCK_JOB_READY", device="resync")
        self.qmp.cmd("block-job-cancel", device="resync")
        self.qmp.event("BLOCK_JOB_COMPLETED", device="resync")

    def checkpoint(self):
        self.qmp.cmd("xen-colo-do-checkpoint")

    def replication_error(self):
        return self.qmp.cmd("query-xen-replication-status")["error"]

    def view(self, export):
        if export not in self.views:
            self.views[export] = View(self, self.socket(export), export)
        return self.views[export]

    def close_views(self):
        for view in self.views.values():
            try:
                view.close()
            except nbd.Error:
                pass
        self.views.clear()

    def kill(self):
        self.close_views()
        self.daemon.kill()


class Blockstep(Host):
    kind = "blockstep"
    overlay_format = "overlay"
    link_server = {"server": "default"}

    def start(self):
        self.user = self.folder / f"{self.name}.user"
        self.daemon = self.daemons.start(
            "--nbd-server", f"id=user,addr.type=unix,addr.path={self.user}", name=self.name)
        self.second_socket = self.daemon.socket_path

    def listen(self):
        self.qmp.cmd("nbd-server-start",
                     addr={"type": "unix", "data": {"path": str(self.link)}})

    def export_view(self):
        self.qmp.cmd("block-export-add", type="nbd", id=VIEW, node_name="top", name=VIEW,
                     server="user", writable=True)

    def socket(self, export):
        return self.user if export == VIEW else self.link

    def stop_replication(self):
        self.qmp.cmd("xen-set-replication", enable=False, primary=False)

    def fail_over(self):
        self.views.pop(DISK, None)
        self.qmp.cmd("nbd-server-stop")
        self.qmp.cmd("xen-set-replication", enable=False, primary=False, failover=True)

    def wait_merged(self):
        if self.qmp.cmd("query-replication")["stage"] != "done":
            self.qmp.event("REPLICATION_STAGE_CHANGE", stage="done")


class Qemu(Host):
    """A process without a machine. Its one NBD server serves the peer and the users."""
    kind = "qemu"
    overlay_format = "qcow2"
    link_server = {}

    def start(self):
        # It waits for the connection: one that comes while the monitor is set up is greeted twice.
        path = self.folder / f"{self.name}.qmp"
        self.daemon = Daemon(
            ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none",
             "-qmp", f"unix:{path},server=on,wait=on",
             "-qmp", f"unix:{path}2,server=on,wait=off"], self.folder, self.name, path)
        self.second_socket = f"{path}2"  # a control socket of QEMU has one client at a time
        self.daemons.all.append(self.daemon)
        self.listening = False

    def listen(self):
        if not self.listening:
            self.qmp.cmd("nbd-server-start",
                         addr={"type": "unix", "data": {"path": str(self.link)}})
            self.listening = True

    def export_view(self):
        self.listen()
        self.qmp.cmd("nbd-server-add", device="top", name=VIEW, writable=True)

    def socket(self, export):
        return self.link

    def stop_replication(self):
        self.qmp.cmd("xen-set-replication", enable=False, primary=False)

    def fail_over(self):
        self.close_views()
        self.qmp.cmd("nbd-server-stop")
        self.listening = False
        self.qmp.cmd("xen-set-replication", enable=False, primary=False, failover=True)
        self.export_view()

    def wait_merged(self):
        """It tells nobody; the merge's end takes the active disk out of the chain."""
        end = time.monotonic() + DEADLINE_S
        while any(node.get("node-name") == "active0"
                  for node in self.qmp.cmd("query-named-block-nodes", flat=True)):
            assert time.monotonic() < end, "QEMU's merge does not end"
            time.sleep(0.005)


KINDS = {kind.kind: kind for kind in (Blockstep, Qemu)}


class Pair:
    """A primary and its secondary, with equal, empty disks at first. What `kinds` says of the two
    sides stays with the sides: after a failover the survivor's new secondary is of the other kind."""

    def __init__(self, daemons, folder, size, kinds):
        self.daemons, self.folder, self.size, self.kinds = daemons, folder, size, kinds
        self.count = 0
        self.secondary = self.host(kinds[1])
        self.secondary.assemble_secondary()
        self.secondary.start_secondary()
        self.primary = self.host(kinds[0])
        self.primary.assemble_primary()
        self.primary.start_primary(self.secondary)

    def host(self, kind):
        self.count += 1
        name = "-".join([*self.kinds, str(self.count)])
        return KINDS[kind](self.daemons, self.folder, name, self.size)

    def checkpoint(self):
        """In a quiet moment: nothing is in flight. QEMU's secondary cannot do it in another."""
        self.primary.checkpoint()
        self.secondary.checkpoint()

    def fail_over(self):
        """The primary is dead; the secondary takes over."""
        self.primary.kill()
        self.primary = None
        self.secondary.fail_over()

    def lose_secondary(self):
        self.secondary.kill()
        self.secondary = None
        self.primary.forget_peer()

    def resume(self):
        """The survivor, whichever it is, becomes the primary of a new secondary."""
        if self.primary is None:
            self.secondary.wait_merged()
            self.primary, self.secondary = self.secondary, None
        other = self.kinds[1] if self.primary.kind == self.kinds[0] else self.kinds[0]
        self.secondary = self.host(other)
        self.secondary.assemble_secondary()
        self.primary.copy_to(self.secondary)
        self.secondary.start_secondary()
        self.primary.start_primary(self.secondary)

    def stop(self):
        for host in (self.primary, self.secondary):
            if host is not None:
                host.kill()
