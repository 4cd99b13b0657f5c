# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same commands to our daemon and to QEMU's storage daemon, so that a test can compare.

    both = beside(["--blockdev", "null-co,node-name=n,size=1M"])
    both.cmd("job-pause", id="nothing")     # the answers must be equal
    both.event("BLOCK_JOB_READY")           # both wait for it
    both.compare_events()

Options may hold {folder}: each daemon has a folder of its own, and {cow}: the driver of images with a
backing node that each has, of which `images` are made.
"""

import json

from blockstep import Daemon, Qmp, make_file, run


def plain(value):
    """Without what differs between any two runs: times, and the folders of the daemons."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key != "timestamp"}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


class QemuQmp(Qmp):
    """QEMU greets twice at times, when a client comes while the socket is made."""

    def answer(self, timeout=None):
        value = super().answer(timeout)
        return super().answer(timeout) if "QMP" in value else value


class QemuDaemon(Daemon):
    client = QemuQmp


def without_pauses(events):
    kept = []
    for event in events:
        kept.append(event)
        status = [one["data"].get("status") for one in kept[-2:]]
        if status in (["paused", "running"], ["standby", "ready"]):
            del kept[-2:]
    return kept


class Side:
    def __init__(self, daemon, folder):
        self.daemon, self.folder = daemon, folder
        self.seen = []

    def fill(self, value):
        return json.loads(json.dumps(value).replace("{folder}", str(self.folder)))

    def answer(self, name, arguments):
        request = {"execute": name}
        if arguments:
            request["arguments"] = self.fill(arguments)
        answer = plain(self.daemon.qmp.raw(request))
        return json.loads(json.dumps(answer).replace(str(self.folder), "{folder}"))

    def event(self, name, data):
        event = self.daemon.qmp.event(name, **data)
        # Kept, in its place: event() takes it out.
        self.daemon.qmp.events.append(event)

    def take_events(self):
        events = sorted(self.daemon.qmp.events, key=lambda event: (
            event["timestamp"]["seconds"], event["timestamp"]["microseconds"]))
        self.daemon.qmp.events = []
        return [plain(event) for event in events]


class Beside:
    def __init__(self, daemons, folder, options, files, images=None):
        self.sides = []
        for name in ("ours", "qemu"):
            own = folder / name
            own.mkdir()
            for file, size in files.items():
                make_file(own / file, size)
            cow = "overlay" if name == "ours" else "qcow2"
            words = [word.replace("{folder}", str(own)).replace("{cow}", cow) for word in options]
            for file, size in (images or {}).items():
                if name == "ours":
                    daemons.cli("image", "create", "-f", cow, own / file, size)
                else:
                    run("qemu-img", "create", "-q", "-f", cow, own / file, size)
            if name == "ours":
                daemon = daemons.start(*words, name=name)
            else:
                path = own / "qmp"
                daemon = QemuDaemon(["qemu-storage-daemon", *words, "--chardev",
                                     f"socket,id=c,path={path},server=on,wait=off",
                                     "--monitor", "chardev=c"], own, name, path)
                daemons.all.append(daemon)
            self.sides.append(Side(daemon, own))
        self.ours, self.qemu = self.sides

    def cmd(self, name, arguments=None, /, ignore=(), **more):
        """To both; the answers must be equal, but for members of that name. Returns ours."""
        arguments = {**(arguments or {}), **{k.replace("_", "-"): v for k, v in more.items()}}
        answers = [self.drop(side.answer(name, arguments), ignore) for side in self.sides]
        assert answers[0] == answers[1], f"{name} {arguments}:\nours {answers[0]}\nqemu {answers[1]}"
        return answers[0]

    def drop(self, value, ignore):
        if isinstance(value, dict):
            return {k: self.drop(v, ignore) for k, v in value.items() if k not in ignore}
        if isinstance(value, list):
            return [self.drop(inner, ignore) for inner in value]
        return value

    def event(self, name, /, **data):
        for side in self.sides:
            side.event(name, data)

    def compare_events(self, ignore=()):
        """All that came since the last time, in their order. Returns ours.

        Pauses that end are left out: QEMU's jobs pause while a node is drained."""
        events = [self.drop(without_pauses(side.take_events()), ignore) for side in self.sides]
        lines = ["\n".join(map(json.dumps, of)) for of in events]
        assert events[0] == events[1], f"ours:\n{lines[0]}\nqemu:\n{lines[1]}"
        return events[0]
