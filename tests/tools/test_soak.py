# SPDX-License-Identifier: LGPL-2.1-or-later
"""tools/soak runs what it is told to, and fails when that fails."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def soak(*words):
    return subprocess.run([ROOT / "tools/soak", *words], capture_output=True, text=True, timeout=30,
                          check=False)


def build_with(folder, script):
    for name in ("tests/sim/blockstep-sim", "src/bin/blockstep"):
        program = folder / name
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return folder


def test_the_parts_asked_for_are_run_for_their_time(tmp_path):
    build = build_with(tmp_path, f"echo $0 $@ >>{tmp_path}/runs")
    result = soak("--build", build, "--minutes=0", "--only=sim=2", "--only=demo")
    assert result.returncode == 0 and "1 rounds of sim, demo, no failure" in result.stdout
    first, second = (tmp_path / "runs").read_text().splitlines()
    assert "--minutes 2.0" in first and second.endswith("blockstep demo")


def test_a_part_that_fails_ends_it_and_its_output_is_shown(tmp_path):
    build = build_with(tmp_path, "echo seed 4711 is bad >&2; exit 1")
    result = soak("--build", build, "--only=demo")
    assert result.returncode == 1
    assert "seed 4711 is bad" in result.stdout and "demo failed, after 0 good" in result.stdout


@pytest.mark.parametrize("part", ["nothing", "sim=x", "sim=-1", "demo=3"])
def test_what_is_no_part_is_refused_with_the_names(part):
    result = soak(f"--only={part}")
    assert result.returncode == 2 and "mutants, teeth" in result.stderr
