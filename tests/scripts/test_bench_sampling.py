"""`scripts/bench_sampling.py`: what a round's sampling computes, counted in its graph."""

import runpy
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "scripts" / "bench_sampling.py"
SCRIPT = runpy.run_path(str(FILE))
count, SETTINGS = SCRIPT["count"], SCRIPT["SETTINGS"]
V, DEPTH = 248_320, 3


@pytest.mark.parametrize(
    ("name", "sorts", "largest", "nbytes"),
    [
        ("greedy", 0, 0, 4 * V * (DEPTH + 1)),  # the log-probabilities that mlx-lm takes its argmax over
        ("top-k-p", 3 * (DEPTH + 1), V // 64, 0),  # blocks, their order, their values
        ("top-k-p seeded", 3 * (DEPTH + 1), V // 64, 6 * 4 * V * (2 * DEPTH + 1)),  # the noise of whole rows
        ("top-p", 0, 0, None),
        ("plain", 0, 0, None),
    ],
)
def test_no_round_sorts_the_vocabulary(name: str, sorts: int, largest: int, nbytes: int | None) -> None:
    found = count(SETTINGS[name], V, DEPTH)
    assert (found.sorts, found.largest_sort) == (sorts, largest)
    assert nbytes is None or found.nbytes == nbytes


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--vocab 300 --hidden 64 --rounds 2 --settings top-k-p --depth 2"
    monkeypatch.setattr(sys, "argv", [str(FILE), *words.split()])
    assert SCRIPT["main"]() == 0
    *_, greedy, sampled = capsys.readouterr().out.splitlines()
    assert greedy.startswith("| greedy | ")
    assert " | 1.00 | " in greedy
    assert sampled.startswith("| top-k-p | ")
