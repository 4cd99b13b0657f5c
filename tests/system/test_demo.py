# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo's verdict: right when all is well, and red when one byte or one saved block is off."""

import os
import subprocess
from pathlib import Path

import pytest

BLOCKSTEP = Path(os.environ["BLOCKSTEP_BUILD"]) / "src/bin/blockstep"


def demo(*arguments):
    return subprocess.run([str(BLOCKSTEP), "demo", *arguments], capture_output=True, text=True,
                          timeout=110, check=False)


def test_the_demo_ends_with_every_file_as_of_the_checkpoint():
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nPASS  " in done.stdout
    assert "no trace of later ones" in done.stdout


@pytest.mark.parametrize("damage", ["byte", "saved-block"])
def test_damage_turns_the_verdict_red(damage):
    done = demo("--damage", damage)
    assert "DAMAGE: " in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    assert "\nFAIL  " in done.stdout


def test_without_a_mount_an_nbd_client_does_the_same():
    done = demo("--no-mount")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The disk is not mounted" in done.stdout
    assert "no trace of later ones" in done.stdout


@pytest.mark.parametrize("damage", ["byte", "saved-block"])
def test_without_a_mount_damage_turns_the_verdict_red_too(damage):
    done = demo("--no-mount", "--damage", damage)
    assert "DAMAGE: " in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1


def test_a_failed_demo_leaves_nothing_behind(tmp_path):
    done = demo("--damage", "byte", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert not list(tmp_path.iterdir())
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    assert str(tmp_path) not in mounts
