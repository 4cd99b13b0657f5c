# SPDX-License-Identifier: LGPL-2.1-or-later
"""The patches that tools/run-teeth breaks the code with apply to the tree as it stands."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_all_teeth_apply():
    result = subprocess.run([ROOT / "tools/run-teeth", "--check"], capture_output=True, text=True,
                            check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_tooth_that_does_not_apply_is_named(tmp_path):
    """In a small tree, with one tooth for code that is not there."""
    for name in ("src", "tools"):
        (tmp_path / name).mkdir()
    for name in ("run-teeth", "broken_tree.py"):
        (tmp_path / "tools" / name).write_bytes((ROOT / "tools" / name).read_bytes())
    (tmp_path / "src/file.c").write_text("int one;\n")
    teeth = tmp_path / "tests/sim/teeth"
    teeth.mkdir(parents=True)
    for name, line in (("01-good", "int one;"), ("02-bad", "int two;")):
        (teeth / f"{name}.patch").write_text(f"--- a/src/file.c\n+++ b/src/file.c\n"
                                             f"@@ -1 +1 @@\n-{line}\n+int other;\n")
    result = subprocess.run(["/usr/bin/python3", tmp_path / "tools/run-teeth", "--check"],
                            capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == "02-bad.patch does not apply\n"


def test_a_number_that_no_tooth_has_is_refused():
    for wrong in ("19", "3x"):
        result = subprocess.run([ROOT / "tools/run-teeth", "--check", wrong], capture_output=True,
                                text=True, check=False)
        assert result.returncode == 2 and f"no tooth '{wrong}'" in result.stderr
    result = subprocess.run([ROOT / "tools/run-teeth", "--check", "3", "04"], capture_output=True,
                            text=True, check=False)
    assert result.stdout == "2 teeth apply\n"
