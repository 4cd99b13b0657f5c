# SPDX-License-Identifier: LGPL-2.1-or-later
"""What managers send, word for word, to Blockstep and to stock QEMU, with the same result."""

import json
from pathlib import Path

import pytest

from blockstep import Qmp
from pairs import KINDS, VIEW

SIZE = 1 << 20
SCRIPTS = sorted((Path(__file__).parent / "sequences").glob("*.txt"))
PAIRS = [("blockstep", "blockstep"), ("qemu", "qemu"), ("blockstep", "qemu"),
         ("qemu", "blockstep")]


class Play:
    """A script on a stage of two hosts. Their graphs stand, their peers do not know each other yet."""

    def __init__(self, daemons, folder, kinds):
        self.daemons, self.folder, self.kinds = daemons, folder, kinds
        self.count = 0
        self.second = {}
        self.exported = set()
        self.hosts = {"p": self.host(kinds[0])}
        self.hosts["p"].add_primary()
        self.do_new("s", kinds[1])

    def host(self, kind):
        self.count += 1
        return KINDS[kind](self.daemons, self.folder, f"{kind}{self.count}", SIZE)

    def connection(self, address):
        """Of "p" or "s", or the second one of "p2" or "s2"."""
        side, host = address[0], self.hosts[address[0]]
        if address == side:
            return host.qmp
        if host not in self.second:
            self.second[host] = Qmp(host.second_socket)
        return self.second[host]

    def send(self, address, text, fault):
        host = self.hosts[address[0]]
        text = text.replace("@LINK@", str(self.link))
        answer = self.connection(address).raw(text)
        refused = fault and host.kind == "qemu"
        assert ("error" if refused else "return") in answer, f"{text}\n{json.dumps(answer)}"
        # The one server of a QEMU serves its users as well: they are gone with it, and come back.
        if host.kind == "qemu" and "nbd-server-st" in text:
            host.close_views()
            self.exported.discard(host)
            host.listening = "start" in text

    def do_event(self, side, name):
        self.hosts[side].qmp.event(name)

    def do_guest(self, side, offset, length, byte):
        self.view(side).write(int(offset), byte.encode() * int(length))

    def do_view(self, side, offset, length, byte):
        expected = (b"\0" if byte == "0" else byte.encode()) * int(length)
        assert self.view(side).read(int(offset), int(length)) == expected

    def view(self, side):
        host = self.hosts[side]
        if host not in self.exported:
            host.export_view()
            self.exported.add(host)
        return host.view(VIEW)

    def do_merged(self, side):
        self.hosts[side].wait_merged()

    def do_kill(self, side):
        self.hosts.pop(side).kill()

    def do_new(self, side, kind=None):
        other = self.hosts["p"].kind
        kind = kind or (self.kinds[1] if other == self.kinds[0] else self.kinds[0])
        self.hosts[side] = self.host(kind)
        self.hosts[side].add_secondary()
        self.link = self.hosts[side].link

    def do_swap(self):
        self.hosts["p"] = self.hosts.pop("s")

    def run(self, script):
        fault = False
        for number, line in enumerate(script.read_text().split("\n"), 1):
            address, _, text = line.partition("> ")
            try:
                if line.startswith("!"):
                    fault = True
                elif text and address in ("p", "s", "p2", "s2"):
                    self.send(address, text, fault)
                    fault = False
                elif line and not line.startswith("#"):
                    word, *rest = line.split()
                    if word in ("p", "s"):  # p event NAME
                        word, rest = rest[0], [word, *rest[1:]]
                    getattr(self, f"do_{word}")(*rest)
            except Exception as failure:
                raise AssertionError(f"{script.name}:{number}: {failure!r}") from failure

    def close(self):
        for qmp in self.second.values():
            qmp.close()
        for host in self.hosts.values():
            host.kill()


@pytest.mark.parametrize("kinds", PAIRS, ids=",".join)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_managers_sequence_passes_unchanged(daemons, folder, script, kinds):
    play = Play(daemons, folder, kinds)
    try:
        play.run(script)
    finally:
        play.close()
