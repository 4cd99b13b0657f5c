# SPDX-License-Identifier: LGPL-2.1-or-later
"""tools/line-coverage demands a reason for what is never run, and no reason for what is."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/line-coverage"
SOURCE = """\
static int often(int value)
{
    if (value < 0)
        return err_set(err, -EINVAL,
                       "below zero");
    if (value == 1)
        value = 2;
    return value;
}

static int never(void)
{
    return 1;
}
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    loader = importlib.machinery.SourceFileLoader("line_coverage", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("line_coverage", loader))
    monkeypatch.setitem(sys.modules, "line_coverage", module)
    loader.exec_module(module)
    (tmp_path / "src/jobs").mkdir(parents=True)
    (tmp_path / "src/jobs/x.c").write_text(SOURCE)
    (tmp_path / "uncovered.txt").write_text("")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "EXPLAINED", tmp_path / "uncovered.txt")
    monkeypatch.setattr(module, "REST_MAX_PERCENT", 50)
    monkeypatch.setattr(module, "read_counts", lambda: {"src/jobs/x.c": [
        module.Function("often", 9, {3: 9, 4: 0, 5: 0, 6: 9, 7: 0, 8: 9}),
        module.Function("never", module.runs_of_never, {13: module.runs_of_never})]})
    monkeypatch.setattr(sys, "argv", ["line-coverage", "--no-run", "--lines"])
    module.runs_of_never = 0
    return module


def test_a_function_that_is_never_run_wants_a_reason(tool, capsys):
    assert tool.main() == 1
    assert "never run, and not explained in uncovered.txt: src/jobs/x.c never" in \
        capsys.readouterr().out


def test_one_that_is_explained_is_good(tool):
    tool.EXPLAINED.write_text("src/jobs/x.c never\nNobody calls it.\n")
    assert tool.main() == 0


def test_a_reason_for_what_is_run_is_stale(tool, capsys):
    tool.EXPLAINED.write_text("src/jobs/x.c never\nNobody calls it.\n")
    tool.runs_of_never = 3
    assert tool.main() == 1
    assert "explains nothing any more: uncovered.txt:1: src/jobs/x.c never" in capsys.readouterr().out


def test_a_reason_for_a_function_that_is_gone_is_stale(tool):
    tool.EXPLAINED.write_text("src/jobs/x.c never\nsrc/jobs/x.c gone ...\nWhatever.\n")
    assert tool.main() == 1


def test_what_chance_decides_is_good_either_way(tool):
    tool.EXPLAINED.write_text("src/jobs/x.c never ...\nLuck.\n")
    assert tool.main() == 0
    tool.runs_of_never = 3
    assert tool.main() == 0


def test_the_other_lines_are_listed_without_refusals(tool, capsys):
    tool.EXPLAINED.write_text("src/jobs/x.c never\nNobody calls it.\n")
    tool.main()
    assert [line for line in capsys.readouterr().out.splitlines() if ":" in line] == \
        ["src/jobs/x.c:7 often: value = 2;"]


def test_too_many_of_them_are_a_failure(tool):
    tool.EXPLAINED.write_text("src/jobs/x.c never\nNobody calls it.\n")
    tool.REST_MAX_PERCENT = 10
    assert tool.main() == 1
