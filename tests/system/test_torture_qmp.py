# SPDX-License-Identifier: LGPL-2.1-or-later
"""Thousands of bad control connections of each kind cost only themselves, and disks are served
meanwhile."""

import json

import pytest

from blockstep import Qmp, make_file
from torture import COUNT, DISK_BYTES, EXPORT, PATTERN, WARM_UP, connect, torture

GOOD = json.dumps({"execute": "query-version", "id": 7})


def error_class(qmp, text):
    return qmp.raw(text + "\r\n")["error"]["class"]


def leaves_at_once(path, rng):
    connect(path).close()


def leaves_in_a_command(path, rng):
    qmp = Qmp(path)
    qmp.send(GOOD[:rng.randrange(1, len(GOOD))])
    qmp.close()


def leaves_before_its_answers(path, rng):
    qmp = Qmp(path)
    qmp.send((GOOD + "\n") * rng.randrange(1, 100))
    qmp.close()


def forgets_to_negotiate(path, rng):
    qmp = Qmp(path, negotiate=False)
    assert error_class(qmp, GOOD) == "CommandNotFound"
    qmp.close()


def sends_no_json(path, rng):
    qmp = Qmp(path)
    text = rng.choice(["]", "}", "{,}", "[1 2]", "{'a' 1}", "nonsense", "{'execute': query}", "NaN",
                       '{"execute" 1}', "{'a': 1,}", "'\\x'", "{'a': 01}"])
    assert error_class(qmp, text) == "GenericError"
    works(qmp)


def sends_random_bytes(path, rng):
    qmp = Qmp(path)
    qmp.send(rng.randbytes(rng.randrange(1, 300)))
    qmp.close()


def nests_too_deep(path, rng):
    qmp = Qmp(path)
    depth = rng.choice([129, 1000, 5000])
    text = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
    assert error_class(qmp, text) == "GenericError"
    qmp.close()


def sends_too_much(path, rng):
    qmp = Qmp(path)
    qmp.send('{"execute": "' + "x" * (1 << 20) + '"}\r\n')
    assert qmp.answer()["error"]["class"] == "GenericError"
    qmp.close()


def asks_for_unknown_commands(path, rng):
    qmp = Qmp(path)
    name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz-%", k=rng.randrange(1, 60)))
    assert error_class(qmp, json.dumps({"execute": name})) == "CommandNotFound"
    works(qmp)


def mixes_up_types(path, rng):
    qmp = Qmp(path)
    value = rng.choice([5, True, None, [], {}, 1.5, "x", -1, 1 << 62])
    for command in ({"execute": rng.choice([5, True, None, [], {}])}, [], 5,
                    {"execute": "query-version", "arguments": [value]},
                    {"execute": "nbd-server-add", "arguments": {"device": {"value": value}}},
                    {"execute": "blockdev-add", "arguments": {"driver": {"value": value}}},
                    {"execute": "block-export-del", "arguments": {"id": [value]}},
                    {"execute": "query-version", "unknown-member": value}):
        assert error_class(qmp, json.dumps(command)) == "GenericError"
    works(qmp)


def works(qmp):
    """The error left the connection usable."""
    assert "qemu" in qmp.cmd("query-version")
    qmp.close()


KINDS = [leaves_at_once, leaves_in_a_command, leaves_before_its_answers, forgets_to_negotiate,
         sends_no_json, sends_random_bytes, nests_too_deep, asks_for_unknown_commands, mixes_up_types,
         sends_too_much]
# A megabyte each: fewer show the same.
COUNTS = {sends_too_much: COUNT // 20}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_manager_costs_only_its_own_connection(daemons, folder, kind):
    disk = make_file(folder / "disk.raw", DISK_BYTES, PATTERN)
    path = folder / "nbd.sock"
    daemon = daemons.start("--blockdev", f"file,node-name={EXPORT},filename={disk}",
                           "--nbd-server", f"addr.type=unix,addr.path={path}",
                           "--export", f"nbd,id=e,node-name={EXPORT},writable=on")
    count = COUNTS.get(kind, COUNT)
    torture(daemon, path, lambda rng: kind(daemon.socket_path, rng), count, min(WARM_UP, count))
