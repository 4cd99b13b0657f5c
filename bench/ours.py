# SPDX-License-Identifier: LGPL-2.1-or-later
"""Blockstep, as its users run it."""

import shutil
import time

import lab as lab_module
import peers
from lab import BenchError
from qmp import Qmp


class Single:
    """blockstepd with one disk, not replicated."""
    name = "blockstepd"

    def __init__(self, lab):
        disk, self.socket = lab.make_random("p.raw"), lab.path("blockstepd.sock")
        self.socket.unlink(missing_ok=True)
        self.process = lab.start([*self.wrapper(), lab.build / "src/bin/blockstepd",
                                  "--blockdev", f"driver=file,node-name=disk,filename={disk}",
                                  "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
                                  "--export", "type=nbd,id=disk,node-name=disk,writable=on"])
        lab.wait_for_socket(self.socket, self.process)
        self.export = str(self.socket), "disk"
        self.uri = f"nbd+unix:///disk?socket={self.socket}"

    def wrapper(self):
        """A command that the daemon runs under."""
        return []

    def stop(self):
        self.process.stop()


class Null:
    """blockstepd with a disk that holds nothing, as NbdkitNull."""
    name = "null-co"

    def __init__(self, lab):
        self.socket = lab.path("null.sock")
        self.socket.unlink(missing_ok=True)
        self.process = lab.start([lab.build / "src/bin/blockstepd", "--blockdev",
                                  f"driver=null-co,node-name=disk,size={lab.size_bytes}",
                                  "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
                                  "--export", "type=nbd,id=disk,node-name=disk,writable=on"])
        lab.wait_for_socket(self.socket, self.process)
        self.uri = f"nbd+unix:///disk?socket={self.socket}"

    def stop(self):
        self.process.stop()


class Mirror:
    """drive-mirror of a local disk to an NBD server, as a manager runs it: until it is ready, and to
    its end."""
    name = "blockstepd mirror"

    def __init__(self, lab):
        self.target = peers.NbdkitTarget(lab)
        control = lab.path("mirror.qmp")
        control.unlink(missing_ok=True)
        self.process = lab.start([lab.build / "src/bin/blockstepd", "--blockdev",
                                  f"driver=file,node-name=disk,filename={lab.path('p.raw')}",
                                  "--qmp", f"unix:{control}"])
        lab.wait_for_socket(control, self.process)
        self.qmp = Qmp(control)

    def copy(self):
        self.qmp.cmd("drive-mirror", device="disk", job_id="m", target=self.target.uri, mode="existing",
                     format="raw", sync="full", auto_dismiss=False)
        self.wait_for("ready")
        self.qmp.cmd("block-job-cancel", device="m")
        self.wait_for("concluded")

    def wait_for(self, status):
        while True:
            [job] = self.qmp.cmd("query-jobs")
            if "error" in job:
                raise BenchError(job["error"])
            if job["status"] == status:
                return
            time.sleep(0.002)

    def stop(self):
        self.process.stop()
        self.target.stop()


class Pair:
    """`blockstep secondary` and `blockstep primary`, linked by TCP on loopback as two hosts would
    be, peer-ack=write; what this bench compares with QEMU's pair at its best, over unix sockets."""
    name = "blockstep pair"
    checkpoint_under_load = True

    def __init__(self, lab):
        self.lab = lab
        self.primary_disk, self.secondary_disk = lab.make_pair()
        self.folder = lab.fresh_folder("pair")
        link, control = lab_module.free_port(), lab_module.free_port()
        self.secondary, self.secondary_qmp, self.secondary_export = self.start(
            "secondary", "--fresh", "--disk", self.secondary_disk,
            "--overlays", self.fresh_overlays(),
            "--listen", f"127.0.0.1:{link}", "--control", f"127.0.0.1:{control}")
        self.primary, self.primary_qmp, self.primary_export = self.start(
            "primary", "--disk", self.primary_disk,
            "--peer", f"127.0.0.1:{link}", *self.control_options(control))
        self.uri = f"nbd+unix:///disk0?socket={self.primary_export[0]}"

    def link_options(self):
        """What both sides are told about the way between them."""
        return []

    def control_options(self, port):
        """What the primary is told about the secondary's control."""
        return ["--peer-control", f"127.0.0.1:{port}"]

    def fresh_overlays(self):
        folder = self.folder / "overlays"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def start(self, role, *options):
        export = self.folder / f"{role}.sock"
        process = self.lab.start(
            [self.lab.build / "src/bin/blockstep", role, "--name", role,
             "--state", self.folder / f"{role}.state", "--export", f"unix:{export}",
             *self.link_options(), *options],
            env={"BLOCKSTEP_RUNTIME_DIR": str(self.folder / "blockstep")})
        control = self.folder / f"blockstep/{role}.qmp"
        self.lab.wait_for_socket(control, process)
        qmp = Qmp(control)
        end = time.monotonic() + lab_module.DEADLINE_S
        while qmp.cmd("query-replication")["stage"] != "running":
            process.check_alive()
            if time.monotonic() > end:
                raise BenchError(f"blockstep {role} does not run:\n{process.log_text()}")
            time.sleep(0.01)
        self.lab.wait_for_socket(export, process)
        return process, qmp, (str(export), "disk0")

    def checkpoint(self):
        self.primary_qmp.cmd("xen-colo-do-checkpoint")

    def held_ms(self):
        """How long the secondary held requests at its last checkpoint, as it says itself."""
        return self.secondary_qmp.cmd("query-replication")["last-checkpoint"]["held-ns"] / 1e6

    def primary_held_ms(self):
        """The same of the primary: from the cut until its guests' writes behind it went on."""
        return self.primary_qmp.cmd("query-replication")["last-checkpoint"]["held-ns"] / 1e6

    def overlay_bytes(self):
        disks = self.secondary_qmp.cmd("query-replication")["disks"]
        return sum(disk["active-bytes"] + disk["hidden-bytes"] for disk in disks)

    def check(self):
        """Raises when replication has failed on either side."""
        for side, qmp in (("primary", self.primary_qmp), ("secondary", self.secondary_qmp)):
            error = qmp.cmd("query-replication").get("error")
            if error:
                raise BenchError(f"blockstep's {side} has failed: {error}")

    def failover(self):
        self.secondary_qmp.cmd("xen-set-replication", enable=False, primary=False, failover=True)

    def wait_merged(self):
        end = time.monotonic() + 60
        while (stage := self.secondary_qmp.cmd("query-replication")["stage"]) != "done":
            if stage != "failover" or time.monotonic() > end:
                raise BenchError(f"the merge does not end, stage {stage}")
            time.sleep(0.02)

    def cpu_s(self):
        return self.primary.cpu_s() + self.secondary.cpu_s()

    def peak_bytes(self):
        return max(self.primary.peak_bytes(), self.secondary.peak_bytes())

    def stop(self):
        self.primary_qmp.close()
        self.secondary_qmp.close()
        self.primary.stop()
        self.secondary.stop()


class PairManaged(Pair):
    """The same, with a manager that drives the checkpoints of both sides."""
    name = "blockstep pair, managed"

    def control_options(self, port):
        return []

    def checkpoint(self):
        self.primary_qmp.cmd("xen-colo-do-checkpoint")
        self.secondary_qmp.cmd("xen-colo-do-checkpoint")


class PairTls(Pair):
    """The same, with TLS and certificates of both sides on the link and on control."""
    name = "blockstep pair, TLS"

    def link_options(self):
        return ["--tls-creds-dir", self.lab.make_credentials()]


class SingleUnderCallgrind(Single):
    """The same, with its instructions counted."""

    def wrapper(self):
        return ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
                "--main-stacksize=8388608", "--max-stackframe=4194304"]

    def instructions(self):
        """To be asked after stop()."""
        for line in self.process.log.read_text(errors="replace").splitlines():
            if "Collected :" in line:
                return int(line.rsplit(":", 1)[1])
        raise BenchError(f"callgrind counted nothing:\n{self.process.log_text()}")
