# SPDX-License-Identifier: LGPL-2.1-or-later
"""tools/run-tests counts what ran, and nothing else."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "run-tests"


@pytest.fixture
def run_tests(tmp_path):
    loader = importlib.machinery.SourceFileLoader("run_tests", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_tests", loader))
    loader.exec_module(module)
    module.LOGS = tmp_path
    return module


def cmocka(name, result, *lines):
    return {"name": name, "result": result, "stdout": "\n".join(lines) + "\n"}


def counts(stage):
    return stage.passed, stage.failed, stage.skipped


def test_a_stage_that_finds_no_tests_has_failed(run_tests):
    stage = run_tests.Stage("x")
    run_tests.python_tests(stage, "no/such/folder")
    assert counts(stage) == (0, 1, 0)
    stage = run_tests.Stage("y")
    run_tests.meson_tests(stage, "no/such/build", ["unit"])
    assert counts(stage) == (0, 1, 0)


def test_a_stage_in_which_nothing_ran_is_skipped_not_passed(run_tests):
    assert run_tests.Stage("x").verdict == "skipped"


def test_each_cmocka_test_counts(run_tests):
    stage = run_tests.Stage("x")
    stage.count_cmocka(cmocka("t", "OK", "[ RUN      ] a", "[       OK ] a",
                              "[ RUN      ] b", "[  SKIPPED ] b", "[  SKIPPED ] 1 test(s), listed:"))
    assert counts(stage) == (1, 0, 1)


def test_a_failed_cmocka_test_is_named(run_tests):
    stage = run_tests.Stage("x")
    stage.count_cmocka(cmocka("t", "FAIL", "[ RUN      ] a", "[       OK ] a", "[ RUN      ] b"))
    assert counts(stage) == (1, 1, 0)
    assert stage.failures == ["t: b"]
    assert stage.verdict == "FAILED"


def test_a_crash_after_the_last_test_is_a_failure(run_tests):
    stage = run_tests.Stage("x")
    stage.count_cmocka(cmocka("t", "FAIL", "[ RUN      ] a", "[       OK ] a"))
    assert counts(stage) == (1, 1, 0)


def test_a_program_that_never_began_is_a_failure(run_tests):
    stage = run_tests.Stage("x")
    stage.count_cmocka({"name": "t", "result": "TIMEOUT"})
    assert counts(stage) == (0, 1, 0)


def test_a_junit_report_is_added_up(run_tests, tmp_path):
    report = tmp_path / "x.xml"
    report.write_text("<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure/>"
                      "</testcase><testcase name='c'><skipped/></testcase></testsuite></testsuites>")
    stage = run_tests.Stage("x")
    stage.count_junit(report, 1)
    assert counts(stage) == (1, 1, 1)


def test_a_bad_exit_without_a_report_is_a_failure(run_tests, tmp_path):
    stage = run_tests.Stage("x")
    stage.count_junit(tmp_path / "none.xml", 4)
    assert counts(stage) == (0, 1, 0)


def test_a_command_that_hangs_is_killed_and_is_a_failure(run_tests):
    stage = run_tests.Stage("x")
    stage.check(["sleep", "60"], timeout=1)
    assert counts(stage) == (0, 1, 0)
    assert "no end after 1 s" in stage.log.read_text()


def test_each_stage_that_needs_another_comes_after_it(run_tests):
    names = [name for name, *_ in run_tests.STAGES]
    for name, _, _, needs in run_tests.STAGES:
        assert needs is None or names.index(needs) < names.index(name)
