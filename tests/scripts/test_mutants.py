"""`scripts/mutants.py`: every planted bug still applies, its tests exist, and the verdicts are told apart."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPO


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", REPO / "scripts" / "mutants.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_edit_applies_once_and_every_named_test_exists(mutants: ModuleType) -> None:
    bugs = mutants.planted()
    assert len(bugs) >= 59
    assert mutants.problems(bugs) == []


TREE = {
    "sum.py": "def add(a, b):\n    return a + b\n",
    "tests/test_sum.py": "from sum import add\n\ndef test_add():\n    assert add(2, 3) == 5\n\n"
    "def test_zero():\n    assert add(0, 0) == 0\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def bug(mutants: ModuleType, **changes: object) -> object:
    fields = {"name": "minus", "breaks": "It subtracts.", "file": "sum.py", "old": "a + b", "new": "a - b"}
    return mutants.Bug(**{**fields, "tests": ("tests/test_sum.py::test_add",), **changes})


def test_a_bug_is_killed_by_a_test_that_fails_for_it_and_by_no_other(mutants: ModuleType, tree: Path) -> None:
    """It survives a test that does not see it, and one that breaks the collection has shown nothing."""
    for changes, verdict in (
        ({}, "killed"),
        ({"tests": ("tests/test_sum.py::test_zero",)}, "survived"),
        ({"new": "a - b)"}, "broken"),
    ):
        assert mutants.killed(bug(mutants, **changes), tree).verdict == verdict, changes
        assert (tree / "sum.py").read_text() == TREE["sum.py"], changes


def test_what_does_not_apply_is_named(mutants: ModuleType, tree: Path) -> None:
    for changes, told in (
        ({"file": "gone.py"}, "there is no file gone.py"),
        ({"old": "a * b"}, "its text occurs 0 times in sum.py; expected once"),
        ({"old": "a"}, "its text occurs 3 times in sum.py; expected once"),
        ({"new": "a + b"}, "the edit changes nothing"),
        ({"tests": ()}, "no test is named"),
        ({"tests": ("tests/test_sum.py::test_gone",)}, "there is no test tests/test_sum.py::test_gone"),
    ):
        assert mutants.problems([bug(mutants, **changes)], tree) == [f"minus: {told}"], changes
    assert mutants.problems([bug(mutants)], tree) == []
