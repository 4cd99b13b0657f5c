# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tools see coroutine stacks as they see a thread's: sanitizers, valgrind, gdb."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(os.environ["BLOCKSTEP_BUILD"])
FAULTS = BUILD / "tests/programs/co_faults"
ROOT = Path(__file__).resolve().parents[2]


def sanitizers():
    options = json.loads(subprocess.run(["meson", "introspect", "--buildoptions", str(BUILD)],
                                        capture_output=True, check=True, text=True).stdout)
    return next(o["value"] for o in options if o["name"] == "b_sanitize")


def run(fault, prefix=(), **environment):
    return subprocess.run([*prefix, str(FAULTS), fault], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment}, check=False)


needs_asan = pytest.mark.skipif("address" not in sanitizers(), reason="not built with AddressSanitizer")
needs_plain = pytest.mark.skipif(sanitizers() != "none", reason="built with sanitizers")


@needs_asan
def test_what_only_a_suspended_coroutine_holds_is_not_leaked():
    done = run("stay", ASAN_OPTIONS="detect_leaks=1")
    assert done.returncode == 0, done.stderr
    assert "LeakSanitizer" not in done.stderr


@needs_asan
def test_what_a_coroutine_lost_is_leaked():
    done = run("lose", ASAN_OPTIONS="detect_leaks=1")
    assert done.returncode != 0
    assert "LeakSanitizer" in done.stderr and "in lose" in done.stderr


@needs_asan
def test_an_overrun_on_a_coroutine_stack_is_found_and_named():
    done = run("overrun")
    assert done.returncode != 0
    assert "stack-buffer-overflow" in done.stderr
    assert "in overrun" in done.stderr


def test_a_stack_that_runs_out_hits_the_guard_page():
    done = run("exhaust")
    assert done.returncode != 0
    if "address" in sanitizers():
        # Only who knows the bounds of this stack can tell an overflow from a wild pointer.
        assert "stack-overflow" in done.stderr
    else:
        assert done.returncode == -11


@needs_plain
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind")
def test_valgrind_follows_the_switch_of_stacks():
    prefix = ["valgrind", "--error-exitcode=9"]  # not -q, which hides the warning looked for
    clean = run("stay", prefix)
    assert clean.returncode == 0, clean.stderr
    assert "switching stacks" not in clean.stderr
    faulty = run("uninitialised", prefix)
    assert faulty.returncode == 9
    assert "uninitialised (co_faults.c" in faulty.stderr


@needs_plain
@pytest.mark.skipif(shutil.which("gdb") is None or os.uname().machine != "x86_64",
                    reason="needs gdb on x86-64")
def test_gdb_prints_where_a_suspended_coroutine_waits():
    done = subprocess.run(
        ["gdb", "-q", "-nx", "-batch", "-ex", "run", "-x", str(ROOT / "tools/gdb/coroutines.py"),
         "-ex", "coroutines", "-ex", "coroutines full", "-ex", "bt", "--args", str(FAULTS), "abort"],
        capture_output=True, text=True, timeout=60, check=False)
    assert "stays-behind in stay at co_faults.c:" in done.stdout, done.stdout + done.stderr
    assert "co_main" in done.stdout
    # The thread's own state is put back: the back trace of the fault is whole.
    assert "abort_here" in done.stdout.split("coroutines full")[-1].rsplit("stays-behind", 1)[-1]
