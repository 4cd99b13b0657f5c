# SPDX-License-Identifier: LGPL-2.1-or-later
"""What query-qmp-schema tells, of us and of QEMU, and how two such answers differ.

A difference is (sign, place, name). "+": only we have it, "-": only QEMU has it, "~": both, but it is
not the same. The place is a path: a command or an event, then members by ".", items by "[]", and
"{tag=value}" where members depend on the value of another. Its end says what the name is: ":" a
member (or a command, an event), "=" a value of an enum, "|" a type of JSON, "~" what differs: ours
before QEMU's where both are said.
"""

import json
import subprocess

from blockstep import DEADLINE_S

JSON_TYPES = {"string": str, "int": int, "boolean": bool, "null": type(None), "value": object}

COMMAND_LINES = [
    ["qemu-storage-daemon", "--chardev", "stdio,id=c", "--monitor", "c"],
    ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"],
]


class Schema:
    def __init__(self, entries):
        self.types = {entry["name"]: entry for entry in entries
                      if entry["meta-type"] not in ("command", "event")}
        self.commands = {entry["name"]: entry for entry in entries
                         if entry["meta-type"] == "command"}
        self.events = {entry["name"]: entry for entry in entries if entry["meta-type"] == "event"}

    def members(self, type_name, case=None):
        """Of an object: by name. With a case those that come with it, else the common ones."""
        entry = self.types[type_name]
        if case is None:
            return {member["name"]: member for member in entry["members"]}
        for variant in entry.get("variants", []):
            if variant["case"] == case:
                return self.members(variant["type"])
        return {}

    def cases(self, type_name, tag):
        tag_type = self.members(type_name)[tag]["type"]
        return self.types[tag_type].get("values", [])

    def element(self, type_name):
        return self.types[type_name]["element-type"]

    def shape(self, type_name):
        """What stands for the type in JSON."""
        entry = self.types[type_name]
        if entry["meta-type"] == "builtin":
            return entry["json-type"]
        return {"enum": "string"}.get(entry["meta-type"], entry["meta-type"])


    def check(self, place, type_name, value):
        """Yields what of the value is not as its type says, in the form of differences."""
        entry = self.types[type_name]
        kind = entry["meta-type"]
        if kind == "object":
            yield from self.check_object(place, type_name, value)
        elif kind == "array":
            if isinstance(value, list):
                for item in value:
                    yield from self.check(f"{place}[]", entry["element-type"], item)
            else:
                yield "~", f"{place}~", f"{value!r} is no list"
        elif kind == "enum":
            if value not in entry["values"]:
                yield "+", f"{place}=", str(value)
        elif kind == "builtin" and not isinstance(value, JSON_TYPES[entry["json-type"]]):
            yield "~", f"{place}~", f"{value!r} is no {entry['json-type']}"
        elif kind == "alternate":
            tries = [list(self.check(place, m["type"], value)) for m in entry["members"]]
            yield from min(tries, key=len)

    def check_object(self, place, type_name, value):
        if not isinstance(value, dict):
            yield "~", f"{place}~", f"{value!r} is no object"
            return
        members = self.members(type_name)
        tag = self.types[type_name].get("tag")
        if tag in value:
            members = {**members, **self.members(type_name, value[tag])}
        for name, member in members.items():
            if name in value:
                yield from self.check(f"{place}.{name}", member["type"], value[name])
            elif "default" not in member:
                yield "-", f"{place}:", f"{name}(required)"
        for name in value.keys() - members.keys():
            yield "+", f"{place}:", name

    def check_answer(self, command, value):
        return self.check(f"{command}()", self.commands[command]["ret-type"], value)

    def check_event(self, event, data):
        if event not in self.events:
            return [("+", "events:", event)]
        return self.check(event, self.events[event]["arg-type"], data)


def live():
    """The schemas of the QEMU programs that are installed."""
    for words in COMMAND_LINES:
        requests = '{"execute": "qmp_capabilities"}\n{"execute": "query-qmp-schema"}\n'
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as process:
            process.stdin.write(requests)
            process.stdin.flush()
            lines = [json.loads(process.stdout.readline()) for _ in range(3)]
            process.kill()
            process.wait(DEADLINE_S)
        yield Schema(lines[2]["return"])


class Comparison:
    def __init__(self, ours, theirs):
        self.ours, self.theirs = ours, theirs
        self.found = set()
        self.seen = set()

    def note(self, sign, place, name):
        self.found.add((sign, place, name))

    def values(self, place, ours, theirs):
        for sign, only in (("+", set(ours) - set(theirs)), ("-", set(theirs) - set(ours))):
            for value in only:
                self.note(sign, f"{place}=", value)

    def member(self, place, name, ours, theirs):
        if ours is None or theirs is None:
            present, sign = (ours, "+") if theirs is None else (theirs, "-")
            self.note(sign, f"{place}:", name if "default" in present else f"{name}(required)")
            return
        if ("default" in ours) != ("default" in theirs):
            self.note("~", f"{place}.{name}~", "optional" if "default" in ours else "required")
        self.type(f"{place}.{name}", ours["type"], theirs["type"])

    def each_member(self, place, ours, theirs):
        for name in sorted({*ours, *theirs}):
            self.member(place, name, ours.get(name), theirs.get(name))

    def object(self, place, ours, theirs):
        """What depends on a tag is compared value by value, wherever either side declares it."""
        tag = self.ours.types[ours].get("tag") or self.theirs.types[theirs].get("tag")
        common_ours, common_theirs = self.ours.members(ours), self.theirs.members(theirs)
        shared = common_ours.keys() & common_theirs.keys()
        if tag is None or tag not in shared:
            self.each_member(place, common_ours, common_theirs)
            return
        cases = set(self.ours.cases(ours, tag)) & set(self.theirs.cases(theirs, tag))
        # A member that all cases have here may belong to some of them there.
        rest_ours = self.unshared(common_ours, shared, self.theirs, theirs, cases)
        rest_theirs = self.unshared(common_theirs, shared, self.ours, ours, cases)
        self.each_member(place, {n: m for n, m in common_ours.items() if n not in rest_ours},
                         {n: m for n, m in common_theirs.items() if n not in rest_theirs})
        for case in sorted(cases):
            self.each_member(f"{place}{{{tag}={case}}}",
                             {**rest_ours, **self.ours.members(ours, case)},
                             {**rest_theirs, **self.theirs.members(theirs, case)})

    @staticmethod
    def unshared(common, shared, other, other_type, cases):
        known = set().union(*(other.members(other_type, case) for case in cases))
        return {name: common[name] for name in common.keys() - shared if name in known}

    def alternate(self, place, ours, theirs):
        mine = {self.ours.shape(m["type"]): m["type"] for m in self.ours.types[ours]["members"]}
        other = {self.theirs.shape(m["type"]): m["type"] for m in self.theirs.types[theirs]["members"]}
        for sign, only in (("+", mine.keys() - other.keys()), ("-", other.keys() - mine.keys())):
            for shape in only:
                self.note(sign, f"{place}|", shape)
        for shape in mine.keys() & other.keys():
            self.type(place, mine[shape], other[shape])

    def type(self, place, ours, theirs):
        mine, other = self.ours.types[ours], self.theirs.types[theirs]
        kinds = (mine["meta-type"], other["meta-type"])
        if kinds == ("enum", "enum"):
            self.values(place, mine["values"], other["values"])
        elif kinds == ("array", "array"):
            self.type(f"{place}[]", mine["element-type"], other["element-type"])
        elif kinds in (("object", "object"), ("alternate", "alternate")):
            if (ours, theirs) not in self.seen:  # described where it was met first
                self.seen.add((ours, theirs))
                getattr(self, kinds[0])(place, ours, theirs)
        elif kinds[0] != kinds[1] or self.ours.shape(ours) != self.theirs.shape(theirs):
            words = [f"{self.ours.shape(ours)}", f"{self.theirs.shape(theirs)}"]
            if "enum" in kinds:
                words[kinds.index("enum")] = "enum"
            self.note("~", f"{place}~", f"{words[0]}/{words[1]}")

    def returns(self, schema, type_name):
        if schema.shape(type_name) == "object" and not schema.types[type_name]["members"]:
            return "nothing"
        return {"array": "list", "string": "text"}.get(schema.shape(type_name), "value")

    def command(self, name):
        mine, other = self.ours.commands[name], self.theirs.commands[name]
        self.type(name, mine["arg-type"], other["arg-type"])
        returned = [self.returns(self.ours, mine["ret-type"]),
                    self.returns(self.theirs, other["ret-type"])]
        if returned[0] != returned[1]:
            self.note("~", f"{name}()~", "/".join(returned))
        if mine.get("allow-oob", False) != other.get("allow-oob", False):
            self.note("~", f"{name}~", "out-of-band")

    def event(self, name):
        self.type(name, self.ours.events[name]["arg-type"], self.theirs.events[name]["arg-type"])


def differences(ours, *theirs):
    """From all of these: what is in one of them only counts as QEMU's."""
    found = set()
    for kind, compare in (("commands", "command"), ("events", "event")):
        mine = getattr(ours, kind)
        all_theirs = set().union(*(getattr(schema, kind) for schema in theirs))
        found |= {("+", f"{kind}:", name) for name in mine.keys() - all_theirs}
        found |= {("-", f"{kind}:", name) for name in all_theirs - mine.keys()}
        for schema in theirs:
            comparison = Comparison(ours, schema)
            for name in sorted(mine.keys() & getattr(schema, kind).keys()):
                getattr(comparison, compare)(name)
            found |= comparison.found
    return found
