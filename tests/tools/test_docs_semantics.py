# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/semantics.md names a test for every cell: each of them is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TABLES = r"## Every cell.*?(?=\n## Not built|\Z)"
HEADS = (r"^TEST_LOOP\(({name})\)", r"^def ({name})\(", r"^static void ({name})\(void \*\*")


def named_in(folder, ending):
    found = {}
    for path in sorted((ROOT / "tests" / folder).glob(f"test_*{ending}")):
        for head in HEADS:
            for name in re.findall(head.format(name="[a-z_0-9]+"), path.read_text(), re.M):
                found.setdefault(name, set()).add(path.name)
    return found


def test_every_test_that_the_tables_of_semantics_name_is_there():
    tables = re.search(TABLES, (ROOT / "docs/semantics.md").read_text(), re.S).group(0)
    found = {**named_in("unit", ".c"), **named_in("system", ".py")}
    named = [name for name in re.findall(r"`([a-z_0-9]+)`", tables) if name.count("_") >= 3]
    assert len(named) > 40
    missing = [name for name in named if name not in found]
    assert not missing, f"docs/semantics.md names tests that are not there: {missing}"
