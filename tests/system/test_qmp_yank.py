# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connections that hang are cut on request, also while a command waits for them."""

import signal
import time

import nbd
import pytest

from blockstep import DEADLINE_S, Qmp, QmpError

BLOCK = {"type": "block-node", "node-name": "link"}


class Hung:
    """A daemon over another one that has been stopped, and a client whose read waits for it."""

    def __init__(self, daemons, folder):
        self.far = daemons.start("--blockdev", "null-co,node-name=n,size=1M",
                                 "--nbd-server", f"addr.type=unix,addr.path={folder}/far",
                                 "--export", "nbd,id=e,node-name=n,name=n")
        self.near = daemons.start(
            "--blockdev", f"nbd,node-name=link,server.type=unix,server.path={folder}/far,export=n,"
            "read-only=on,request-timeout=600",
            "--nbd-server", f"addr.type=unix,addr.path={folder}/near",
            "--export", "nbd,id=e,node-name=link,name=n")
        self.far.signal(signal.SIGSTOP)
        self.guest = nbd.NBD()
        self.guest.connect_uri(f"nbd+unix:///n?socket={folder}/near")
        self.buffer = nbd.Buffer(4096)
        self.read = self.guest.aio_pread(self.buffer, 0)

    def read_fails(self):
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                if self.guest.aio_command_completed(self.read):
                    return False
            except nbd.Error:
                return True
            assert time.monotonic() < end, "the read hangs"
            self.guest.poll(100)

    def requests_in_flight(self):
        [node] = self.near.qmp.cmd("query-named-block-nodes")
        return node["x-driver-specific"]["requests-in-flight"]


@pytest.fixture
def hung(daemons, folder):
    pair = Hung(daemons, folder)
    yield pair
    pair.far.signal(signal.SIGCONT)


def wait_until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end


def test_a_request_that_hangs_ends_with_an_error(hung):
    wait_until(lambda: hung.requests_in_flight() == 1)
    assert BLOCK in hung.near.qmp.cmd("query-yank")
    hung.near.qmp.cmd("yank", {"instances": [BLOCK]})
    assert hung.read_fails()
    [node] = hung.near.qmp.cmd("query-named-block-nodes")
    assert node["x-driver-specific"]["connected"] is False


@pytest.mark.commands("yank", "query-yank")
def test_a_yank_out_of_band_frees_the_command_that_waits_for_the_connection(hung):
    qmp = Qmp(hung.near.socket_path, negotiate=False)
    qmp.cmd("qmp_capabilities", {"enable": ["oob"]})
    wait_until(lambda: hung.requests_in_flight() == 1)
    qmp.send({"execute": "block-export-del", "id": "in band",
              "arguments": {"id": "e", "mode": "hard"}})
    assert qmp.raw({"exec-oob": "query-yank", "id": 1})["id"] == 1
    answer = qmp.raw({"exec-oob": "yank", "id": 2, "arguments": {"instances": [BLOCK]}})
    assert answer == {"return": {}, "id": 2}
    assert qmp.answer()["id"] == "in band"
    qmp.event("BLOCK_EXPORT_DELETED", id="e")
    qmp.close()


def test_a_control_socket_is_cut_with_all_its_clients_and_takes_new_ones(daemons, folder):
    path = folder / "second"
    daemon = daemons.start("--chardev", f"socket,id=second,path={path},server=on",
                           "--monitor", "chardev=second")
    instances = daemon.qmp.cmd("query-yank")
    assert {"type": "chardev", "id": "second"} in instances
    assert {"type": "chardev", "id": "compat_monitor0"} in instances
    clients = [Qmp(path), Qmp(path)]
    daemon.qmp.cmd("yank", {"instances": [{"type": "chardev", "id": "second"}]})
    assert [client.receive() for client in clients] == [None, None]
    again = Qmp(path)
    assert again.cmd("query-status")["running"]
    for client in [*clients, again]:
        client.close()


def test_an_instance_that_is_not_there_spares_the_others(hung):
    qmp = hung.near.qmp
    for instances in [[BLOCK, {"type": "block-node", "node-name": "nobody"}],
                      [BLOCK, {"type": "chardev", "id": "nobody"}]]:
        with pytest.raises(QmpError) as caught:
            qmp.cmd("yank", {"instances": instances})
        assert (caught.value.cls, caught.value.desc) == ("DeviceNotFound", "Instance not found")
    for instances in [[BLOCK, {"type": "block-node"}], [BLOCK, {"type": "socket"}], [BLOCK, 1], "x"]:
        with pytest.raises(QmpError) as caught:
            qmp.cmd("yank", {"instances": instances})
        assert "instances" in caught.value.desc
    [node] = qmp.cmd("query-named-block-nodes")
    assert node["x-driver-specific"]["connected"] is True
    qmp.cmd("yank", {"instances": []})
    qmp.cmd("yank", {"instances": [BLOCK, BLOCK]})
    assert hung.read_fails()
