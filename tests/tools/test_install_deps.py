# SPDX-License-Identifier: LGPL-2.1-or-later
"""tools/install-deps, with a dpkg-query, an apt-get and an id of our own."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install-deps"


def packages(group=None):
    listed = subprocess.run([SCRIPT, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    assert all(len(row) == 3 for row in rows), "each package has a reason"
    return [row[1] for row in rows if group in (None, row[0])]


@pytest.fixture
def machine(tmp_path):
    """machine(installed, uid, *arguments) runs the script on a machine that has these packages."""
    def run(installed, uid, *arguments):
        lines = "".join(f"installed {name}\n" for name in installed)
        (tmp_path / "installed").write_text(lines)
        scripts = {"dpkg-query": f"cat {tmp_path}/installed",
                   "apt-get": f'echo "$@" >>{tmp_path}/apt.log',
                   "id": f"echo {uid}"}
        for name, body in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run([SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False,
                              env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        log = tmp_path / "apt.log"
        return done.returncode, done.stdout, log.read_text() if log.exists() else ""
    return run


def test_nothing_missing_means_nothing_done_and_nothing_said(machine):
    assert machine(packages(), 0) == (0, "", "")
    assert machine(packages(), 1000) == (0, "", "")


def test_what_is_missing_is_named_and_installed(machine):
    have = [name for name in packages() if name not in ("fio", "gdb")]
    code, said, apt = machine(have, 0)
    assert code == 0
    assert "fio" in said and "load generator" in said
    assert re.search(r"^install .* gdb fio( |$)", apt, re.M)


def test_building_needs_less_than_testing(machine):
    code, said, apt = machine(packages("build"), 0, "--for", "build")
    assert (code, said, apt) == (0, "", "")
    code, said, apt = machine(packages("build"), 0, "--for", "test")
    assert code == 0 and "fio" in apt and "libnbd-bin" in apt and "liburing-dev" not in apt


def test_check_installs_nothing(machine):
    code, said, apt = machine([], 0, "--check")
    assert code == 1 and "gcc" in said and apt == ""


def test_without_root_it_tells_what_to_run(machine):
    code, said, apt = machine([], 1000, "--for", "build")
    assert code == 1 and apt == ""
    assert "sudo apt-get install" in said and "liburing-dev" in said


def test_an_unknown_group_is_refused(machine):
    code, said, _ = machine([], 0, "--for", "fun")
    assert code == 2 and "fun" in said
