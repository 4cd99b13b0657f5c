# SPDX-License-Identifier: LGPL-2.1-or-later
"""tools/run-mutants finds what can be broken, counts what was noticed and lists who survives."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SOURCE = """\
static int clamp(int value, int limit)
{
    if (value < limit)
        return value;
    tell_limit(value, limit);
    return limit;
}
"""


@pytest.fixture
def run_mutants(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    loader = importlib.machinery.SourceFileLoader("run_mutants", str(TOOLS / "run-mutants"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_mutants", loader))
    monkeypatch.setitem(sys.modules, "run_mutants", module)
    loader.exec_module(module)
    return module


@pytest.fixture
def small_tree(run_mutants, monkeypatch, tmp_path):
    """A tree of one source, in which the mutants of `small_tree.survive` are noticed by nobody."""
    (tmp_path / "x.c").write_text(SOURCE)
    monkeypatch.setattr(run_mutants, "ROOT", tmp_path)
    monkeypatch.setattr(run_mutants, "SURVIVORS", tmp_path / "survivors.txt")

    class Judge:
        def __init__(self, number, quick):
            assert number == 0

        def killer(self, mutant):
            return None if mutant.kind in run_mutants.survive else "unit tests"

    run_mutants.survive = ()
    monkeypatch.setattr(run_mutants, "Judge", Judge)
    monkeypatch.setattr(sys, "argv", ["run-mutants", "--file=x.c", "--count=0", "--limit=50"])
    return run_mutants


def test_the_obvious_mutants_are_found(small_tree):
    found = {(mutant.kind, mutant.after.strip()) for mutant in small_tree.all_mutants(["x.c"])}
    assert found == {("condition negated", "if (!(value < limit))"),
                     ("bound moved", "if (value <= limit)"),
                     ("call dropped", "(void)0;"),
                     ("arguments swapped", "tell_limit(limit, value);")}


def test_a_mutant_keeps_its_name_when_lines_are_added_above(small_tree):
    names = [mutant.name for mutant in small_tree.all_mutants(["x.c"])]
    (small_tree.ROOT / "x.c").write_text("/* More. */\n" + SOURCE)
    assert [mutant.name for mutant in small_tree.all_mutants(["x.c"])] == names


def test_all_killed_is_success(small_tree, capsys):
    assert small_tree.main() == 0
    assert "4 mutants: 100 % killed (4 by unit tests, " in capsys.readouterr().out


def test_a_survivor_without_a_reason_is_listed_and_fails(small_tree, capsys):
    small_tree.survive = ("call dropped",)
    assert small_tree.main() == 1
    out = capsys.readouterr().out
    assert "x.c:5 clamp: call dropped\n    - tell_limit(value, limit);\n    + (void)0;\n" in out
    assert "1 survived, 1 of them not explained" in out


def test_a_survivor_with_a_reason_may_live(small_tree, capsys):
    small_tree.survive = ("call dropped",)
    name = next(mutant.name for mutant in small_tree.all_mutants(["x.c"])
                if mutant.kind == "call dropped")
    small_tree.SURVIVORS.write_text(f"{name} clamp\nOnly the log.\n")
    assert small_tree.main() == 0
    assert "1 survived, 0 of them not explained" in capsys.readouterr().out


def test_too_few_killed_is_a_failure_also_when_all_are_explained(small_tree):
    mutants = small_tree.all_mutants(["x.c"])
    small_tree.survive = tuple(mutant.kind for mutant in mutants[1:])
    small_tree.SURVIVORS.write_text("".join(f"{mutant.name} clamp\n" for mutant in mutants))
    assert small_tree.main() == 1


def test_of_a_sample_the_figure_alone_counts(small_tree, monkeypatch):
    small_tree.survive = ("call dropped",)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--quick"])
    assert small_tree.main() == 0
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--limit=90"])
    assert small_tree.main() == 1


def test_a_change_elsewhere_leaves_the_sample_as_it_is(small_tree):
    before = [mutant.name for mutant in small_tree.drawn(small_tree.all_mutants(["x.c"]), 7)]
    with (small_tree.ROOT / "x.c").open("a") as source:
        source.write("static void more(void)\n{\n    tell_more(1, 2);\n}\n")
    after = [mutant.name for mutant in small_tree.drawn(small_tree.all_mutants(["x.c"]), 7)]
    assert [name for name in after if name in before] == before


def test_arguments_whose_order_means_nothing_are_left_alone(small_tree):
    (small_tree.ROOT / "x.c").write_text("int f(void)\n{\n    return strcmp(a, b) == 0;\n}\n")
    assert not small_tree.all_mutants(["x.c"])


def test_all_that_may_live_is_still_there(run_mutants):
    names = {mutant.name for mutant in run_mutants.all_mutants(run_mutants.SUBJECTS)}
    assert run_mutants.read_survivors() - names == set(), "gone: delete them in survivors.txt"


class Trial:
    """Notices every mutant, and finds something in the unbroken tree too unless it is sound."""

    def __init__(self, kind, file, sound):
        self.kind, self.file, self.sound, self.program = kind, file, sound, "program"
        self.proven = False

    def notices(self, mutant):
        return self.file.read_text() == "broken"

    def proves(self):
        assert self.file.read_text() == "whole"
        self.proven = self.sound
        return self.sound


def judged(run_mutants, tmp_path, *trials):
    file = tmp_path / "x.c"
    file.write_text("broken")
    judge = object.__new__(run_mutants.Judge)
    judge.trials = [Trial(kind, file, sound) for kind, sound in trials]
    return judge, judge.judge(None, file, "whole", "broken")


def test_seeds_at_which_the_tree_fails_anyway_judge_nobody(run_mutants, tmp_path):
    judge, killer = judged(run_mutants, tmp_path, ("simulator", False), ("simulator", True))
    assert killer == "simulator" and [trial.sound for trial in judge.trials] == [True]
    judge, killer = judged(run_mutants, tmp_path, ("simulator", False))
    assert killer is None and not judge.trials


def test_a_unit_test_that_fails_anyway_ends_the_run(run_mutants, tmp_path):
    with pytest.raises(SystemExit, match="before anything has been broken"):
        judged(run_mutants, tmp_path, ("unit tests", False))
