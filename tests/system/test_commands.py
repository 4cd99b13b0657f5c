# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each command of the control protocol is run by a test that changes state with it. Such a test is
marked with the names of its commands; conftest.py sees to it that it really runs them."""

import ast
from pathlib import Path


def marked():
    """The names in every pytest.mark.commands(...) of the system tests."""
    for path in Path(__file__).parent.glob("test_*.py"):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.Call) and ast.unparse(part.func) == "pytest.mark.commands":
                yield from (ast.literal_eval(name) for name in part.args)


def test_each_command_has_a_test_that_is_marked_with_it(daemons):
    listed = {command["name"] for command in daemons.start().qmp.cmd("query-commands")}
    found = set(marked())
    assert sorted(listed - found) == [], "no test is marked with these"
    assert sorted(found - listed) == [], "there are no such commands"
