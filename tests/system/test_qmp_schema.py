# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our schema beside that of the QEMU that is installed: docs/qmp-differences.md names each difference,
with its reason, and no other."""

import re

import pytest

from blockstep import ROOT, make_file, run
from qmp_schema import COMMAND_LINES, Schema, differences, live

PAGE = ROOT / "docs/qmp-differences.md"
VERSION = "7.2"
MIB = 1 << 20
META_TYPES = {
    "builtin": {"json-type"}, "enum": {"members", "values"}, "array": {"element-type"},
    "object": {"members"}, "alternate": {"members"}, "command": {"arg-type", "ret-type"},
    "event": {"arg-type"},
}
OPTIONAL = {"object": {"tag", "variants"}, "command": {"allow-oob"}}


def listed(returned):
    """The indented lines: sign, place, names; deeper ones go on with the names. Either those about
    members that are returned, or the others."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("     "):
            found[-1] += line.split()
        elif line.startswith("    "):
            found.append(line.split())
    return [(sign, place, name) for sign, place, *names in found for name in names
            if ("()" in place and not place.endswith("()~")) == returned]


def only_qemu():
    if any(f"version {VERSION}." not in run(words[0], "--version") for words in COMMAND_LINES):
        pytest.skip(f"the list is of QEMU {VERSION}")


def show(items):
    return "\n".join(f"    {sign} {place} {name}" for sign, place, name in sorted(items))


def test_each_difference_from_qemu_is_listed_and_exists(daemons):
    only_qemu()
    ours = Schema(daemons.start().qmp.cmd("query-qmp-schema"))
    found, known = differences(ours, *live()), listed(returned=False)
    assert len(known) == len(set(known)), "listed twice"
    assert found == set(known), (
        f"not in {PAGE.name}:\n{show(found - set(known))}\n"
        f"in {PAGE.name}, but not there any more:\n{show(set(known) - found)}")


def test_each_difference_has_a_reason():
    """Every block of lines follows a sentence."""
    text = PAGE.read_text(encoding="utf-8")
    for before in re.findall(r"(.*)\n\n    [+~-] ", text):
        assert before.strip().endswith((".", ":")) and not before.startswith(" "), before


@pytest.mark.commands("query-qmp-schema")
def test_the_schema_is_whole_and_has_the_form_of_qemus(daemons):
    entries = daemons.start().qmp.cmd("query-qmp-schema")
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names))
    schema = Schema(entries)
    for entry in entries:
        kind = entry["meta-type"]
        keys = entry.keys() - {"name", "meta-type"}
        assert META_TYPES[kind] <= keys <= META_TYPES[kind] | OPTIONAL.get(kind, set()), entry
        used = [entry.get(key) for key in ("arg-type", "ret-type", "element-type")]
        used += [part["type"] for key in ("members", "variants") if kind != "enum"
                 for part in entry.get(key, [])]
        assert all(name in schema.types for name in used if name is not None), entry
        if "tag" in entry:
            assert [variant["case"] for variant in entry["variants"]] == \
                schema.cases(entry["name"], entry["tag"])


def start_busy(daemons, folder):
    """A daemon with something of each kind that queries tell of."""
    # More than the mirror may copy before it is paused: a ready one would be in standby.
    make_file(folder / "disk.raw", 16 * MIB, 1)
    make_file(folder / "copy.raw", 16 * MIB)
    daemons.cli("image", "create", "-f", "overlay", folder / "top.overlay", "16M")
    daemon = daemons.start(
        "--blockdev", f"file,node-name=disk,filename={folder}/disk.raw",
        "--blockdev", f"overlay,node-name=top,file.driver=file,file.filename={folder}/top.overlay,"
        "backing=disk",
        "--blockdev", f"throttle,node-name=copy,file.driver=file,file.filename={folder}/copy.raw",
        "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
        "--export", "nbd,id=e,node-name=top,name=n,writable=on",
        "--blockdev", "null-co,node-name=null,size=1M")
    qmp = daemon.qmp
    qmp.cmd("block-dirty-bitmap-add", node="top", name="changes")
    qmp.cmd("blockdev-mirror", {"job-id": "j", "device": "top", "target": "copy", "sync": "full",
                                "speed": 65536})
    qmp.cmd("job-pause", id="j")
    qmp.event("JOB_STATUS_CHANGE", status="paused")
    return qmp


def test_what_queries_return_is_as_qemus_schema_says(daemons, folder):
    only_qemu()
    qmp = start_busy(daemons, folder)
    found, asked = set(), set()
    for schema in live():
        for name in (command["name"] for command in qmp.cmd("query-commands")):
            if "query-" not in name or name not in schema.commands:
                continue
            answer = qmp.raw({"execute": name})
            if "return" in answer:  # without replication there is nothing to ask about
                asked.add(name)
                found |= set(schema.check_answer(name, answer["return"]))
    assert {"query-block", "query-named-block-nodes", "query-jobs", "query-block-exports"} <= asked
    known = set(listed(returned=True))
    assert found == known, (
        f"not in {PAGE.name}:\n{show(found - known)}\n"
        f"in {PAGE.name}, but not there any more:\n{show(known - found)}")
