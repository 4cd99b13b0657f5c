# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/control.md tells of the commands, events and JSON members that there are, and no others."""

import json
import re

from blockstep import ROOT, Qmp, QmpError, make_file
from qmp_schema import Schema
from test_cli import Pair

MIB = 1 << 20
PAGE = ROOT / "docs/control.md"
TYPES = {"text": (str,), "number": (int,), "flag": (bool,), "object": (dict,)}


def part(heading):
    """What stands below a heading, up to the next one of its level or above."""
    text = PAGE.read_text(encoding="utf-8")
    level = heading.split()[0]
    start = text.index(f"{heading}\n") + len(heading)
    end = re.search(rf"^#{{1,{len(level)}}} ", text[start:], re.M)
    return text[start:start + end.start()] if end else text[start:]


def rows(heading):
    table = [line for line in part(heading).splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


def written(heading):
    return [name for row in rows(heading) for name in names(row[0])]


def test_the_commands_are_those_that_the_daemon_lists(daemons):
    listed = [command["name"] for command in daemons.start().qmp.cmd("query-commands")]
    assert sorted(written("## Commands")) == sorted(listed)


def test_the_peers_commands_are_those_that_its_listener_takes(daemons, folder):
    daemon = daemons.start("--qmp", f"unix:{folder}/peer,role=peer")
    peer = Qmp(folder / "peer")
    text = part("## Listeners and roles").split("`,role=peer`")[1].split("nothing else")[0]
    taken = {"qmp_capabilities"}  # the client has run it: a second time it is not known any more
    for name in written("## Commands"):
        try:
            peer.cmd(name)
            taken.add(name)
        except QmpError as error:
            # What is refused for another reason is known.
            taken |= {name} if error.cls != "CommandNotFound" else set()
    peer.close()
    assert taken == set(names(text))
    assert daemon.qmp.cmd("query-status")["running"]


def test_the_events_are_those_that_the_sources_send_and_the_schema_tells(daemons):
    sent = set()
    for path in (ROOT / "src").rglob("*.c"):
        if path.parent.name != "bin" and path.name != "events.c":
            found = re.findall(r'"((?:BLOCK|JOB|QUORUM|REPLICATION|COLO|OVERLAY)_[A-Z_]+|SHUTDOWN)"',
                               path.read_text(encoding="utf-8"))
            sent |= set(found)
    schema = Schema(daemons.start().qmp.cmd("query-qmp-schema"))
    assert sent == schema.events.keys()
    table = {name: row[1] for row in rows("## Events") for name in names(row[0])}
    assert table.keys() == sent
    for name, event in schema.events.items():
        members = schema.members(event["arg-type"])
        assert members.keys() <= set(names(table[name])), name


# --- shapes ---

def members(value, path=""):
    """("disks[].node", value) for every leaf."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from members(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from members(inner, f"{path}[]")
    else:
        yield path, value


def check_shape(heading, answer):
    """Every member is written down, with its type, and those "always" there are there."""
    table = {name: row for row in rows(heading) for name in names(row[0])}
    objects = [name for name, row in table.items() if row[1] == "object"]
    seen = set()
    for path, value in members(answer):
        seen.add(path)
        if path == "json-version":
            assert value == 1
            continue
        if any(path.startswith(f"{name}.") for name in objects):
            continue
        assert path in table, f"{heading}: {path} is not written down"
        assert type(value) in TYPES[table[path][1]], f"{heading}: {path} is {value!r}"
    if isinstance(answer, dict):
        assert "json-version" in answer
    for name, row in table.items():
        # Of an empty list nothing is there.
        if row[2] == "always" and ("[]" not in name or any(
                path.startswith(name.split("[]")[0]) for path in seen)):
            assert name in seen, f"{heading}: {name} is not always there"


def answer_of(daemons, *words):
    return json.loads(daemons.cli(*words, "-o", "json", check=False).stdout)


def test_the_shapes_of_a_whole_replication_are_as_written(daemons, folder):
    pair = Pair(daemons)
    pair.io("p", "write -P 1 0 1M")
    check_shape("### blockstep checkpoint", answer_of(daemons, "checkpoint", "--name", "p"))
    pair.io("p", "write -P 2 0 1M")
    for name in "ps":
        check_shape("### blockstep status", pair.status(name))
        check_shape("### blockstep graph", answer_of(daemons, "graph", "--name", name))
    check_shape("### blockstep wait", answer_of(daemons, "wait", "--name", "s", "--for", "running"))
    check_shape("### blockstep doctor", answer_of(daemons, "doctor", folder / "p0.raw"))
    check_shape("### blockstep failover", answer_of(daemons, "failover", "--name", "s", "--wait"))
    pair.io("p", "write -P 3 0 1M")
    status = pair.status("p")
    assert "error" in status and "error" in status["disks"][0]
    for answer in (status, pair.status("s")):
        check_shape("### blockstep status", answer)
    check_shape("### blockstep stop", answer_of(daemons, "stop", "--name", "s", "--quit"))
    assert pair.secondary.wait() == 0


def test_the_line_that_tells_of_readiness_is_as_written(daemons, folder):
    pair = Pair(daemons, secondary=["-o", "text"])
    pair.primary.stop()
    pair.secondary.stop()
    secondary = daemons.run("secondary", "s", *pair.secondary_words, "-o", "json")
    check_shape("### blockstep primary, secondary", json.loads(secondary.line()))
    primary = daemons.run("primary", "p", *pair.primary_words, "-o", "json")
    check_shape("### blockstep primary, secondary", json.loads(primary.line()))


def test_the_shapes_of_images_are_as_written(daemons, folder):
    raw, overlay = make_file(folder / "a.raw", MIB, 1), folder / "a.overlay"
    daemons.cli("image", "create", "-f", "overlay", overlay, MIB)
    for path in (raw, overlay):
        check_shape("### blockstep image info", answer_of(daemons, "image", "info", path))
        check_shape("### blockstep image map", answer_of(daemons, "image", "map", path))
    check_shape("### blockstep image check", answer_of(daemons, "image", "check", overlay))
