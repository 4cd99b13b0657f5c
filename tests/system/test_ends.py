# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon that is told to end ends well and soon, whatever is under way: jobs at every point of their
lives, commands without an answer, guests in the middle of requests, limits that hold them back, and a
server that has stopped answering."""

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import nbd

from blockstep import Daemons, Qmp, make_file

MIB = 1 << 20
DISK_BYTES = 4 * MIB
PIECE_BYTES = 1 << 16
SLOW = int(os.environ.get("BLOCKSTEP_TEST_SLOW", "1"))
SEEDS = 20 // SLOW + 1


class Scene:
    """Two throttled disks, one of them exported, and a disk elsewhere; then deeds, by name."""

    DEEDS = ("mirror", "mirror_away", "backup", "backup_away", "create", "finish", "dismiss", "guest",
             "remove_export", "delete_node", "freeze", "wait")

    def __init__(self, rng, daemons):
        self.rng, self.folder = rng, daemons.folder
        self.guests, self.files, self.jobs = [], 0, 0
        away = self.folder / "away.nbd"
        self.away = daemons.start(
            "--blockdev", f"file,node-name=away,filename={self.new_file()}",
            "--nbd-server", f"addr.type=unix,addr.path={away}",
            "--export", "type=nbd,id=e,node-name=away,name=away,writable=on", name="away")
        words = ["--object", "throttle-group,id=slow,limits.bps-total=262144"]
        for name in ("a", "b"):
            words += ["--blockdev", f"file,node-name={name}-file,filename={self.new_file(0x11)}",
                      "--blockdev", f"throttle,node-name={name},throttle-group=slow,file={name}-file"]
        words += ["--blockdev", f"nbd,node-name=away,server.type=unix,server.path={away},export=away,"
                                "request-timeout=2",
                  "--nbd-server", f"addr.type=unix,addr.path={self.folder}/d.nbd,id=main",
                  "--export", "type=nbd,id=e,node-name=a,name=a,writable=on"]
        self.daemon = daemons.start(*words, name="d")
        self.qmp = self.daemon.qmp
        self.watch = Qmp(self.daemon.socket_path)

    def new_file(self, pattern=None):
        self.files += 1
        return make_file(self.folder / f"{self.files}.raw", DISK_BYTES, pattern)

    def new_job(self):
        self.jobs += 1
        return f"job{self.jobs}"

    def some_disk(self):
        return self.rng.choice("ab")

    def some_job(self):
        return f"job{self.rng.randrange(1, self.jobs + 2)}"

    def send(self, name, **arguments):
        """Whether it makes sense or not; the answer may come or not."""
        self.qmp.send({"execute": name,
                       "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}})

    def mirror(self):
        self.send("drive-mirror", device=self.some_disk(), target=str(self.new_file()), mode="existing",
                  format="raw", sync=self.rng.choice(["full", "none", "top"]), job_id=self.new_job())

    def mirror_away(self):
        self.send("blockdev-mirror", device=self.some_disk(), target="away", sync="full",
                  job_id=self.new_job())

    def backup(self):
        job = self.new_job()
        self.send("blockdev-add", driver="file", node_name=f"for-{job}", filename=str(self.new_file()))
        self.send("blockdev-backup", device=self.some_disk(), target=f"for-{job}", sync="full",
                  job_id=job)

    def backup_away(self):
        self.send("blockdev-backup", device=self.some_disk(), target="away", sync="full",
                  job_id=self.new_job())

    def create(self):
        job = self.new_job()
        self.send("blockdev-create", job_id=job, options={
            "driver": "file", "filename": str(self.folder / job), "size": MIB})

    def finish(self):
        self.send(self.rng.choice(["block-job-cancel", "block-job-complete"]), device=self.some_job())

    def dismiss(self):
        self.send("job-dismiss", id=self.some_job())

    def guest(self):
        handle = nbd.NBD()
        handle.set_export_name("a")
        try:
            handle.connect_unix(str(self.folder / "d.nbd"))
        except nbd.Error:
            return  # the export has been removed
        for _ in range(self.rng.randrange(1, 20)):
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(PIECE_BYTES)),
                              self.rng.randrange(DISK_BYTES // PIECE_BYTES) * PIECE_BYTES)
        handle.poll(0)
        self.guests.append(handle)

    def remove_export(self):
        self.send("block-export-del", id="e", mode=self.rng.choice(["safe", "hard"]))

    def delete_node(self):
        self.send("blockdev-del", node_name=self.rng.choice(["a", "b", "away", "for-job1"]))

    def freeze(self):
        self.away.signal(signal.SIGSTOP)

    def wait(self):
        self.watch.cmd("query-jobs")

    def end(self, how):
        if how == "quit":
            self.send("quit")
            return
        if how == "leave":
            self.qmp.close()
        self.daemon.signal(signal.SIGTERM)


def end_in_a_scene(seed):
    rng = random.Random(seed)
    deeds = [rng.choice(Scene.DEEDS) for _ in range(rng.randrange(1, 12))]
    how = rng.choice(["signal", "quit", "leave"])
    print(f"seed {seed}:", *deeds, how)
    daemons = Daemons(Path(tempfile.mkdtemp(prefix="bs-")))
    try:
        scene = Scene(rng, daemons)
        try:
            for deed in deeds:
                getattr(scene, deed)()
            scene.end(how)
            assert scene.daemon.wait() == 0, scene.daemon.log_text()
        finally:
            scene.away.signal(signal.SIGCONT)
    finally:
        daemons.clean_up()
        shutil.rmtree(daemons.folder, ignore_errors=True)


def test_whatever_is_under_way():
    first = int(os.environ.get("BLOCKSTEP_TEST_SEED", random.randrange(1 << 32)))
    for seed in range(first, first + SEEDS):
        end_in_a_scene(seed)
