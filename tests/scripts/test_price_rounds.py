"""`scripts/price_rounds.py`: rounds priced by their kind, in plain steps of the same prompt."""

import runpy
from pathlib import Path

import pytest

from mlxmtp.decoding.stats import Parts, Round

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "price_rounds.py"))
Run, prices_of, report = SCRIPT["Run"], SCRIPT["prices_of"], SCRIPT["report"]
ARMS = ["plain", "depth 1", "auto", "no lookup"]


def rounds(count: int, seconds: float, drafted: int = 0, tokens: int = 1, **more: object) -> list[Round]:
    return [Round((7,) * tokens, drafted, tokens - 1, 1, None, seconds=seconds, **more)] * count  # type: ignore[arg-type]


def runs(workload: str, step: float) -> list[object]:
    """Depth 1 takes 1.6 steps for two tokens; auto has the same rounds, and looked-up ones of 2 steps for four."""
    fixed = rounds(9, 1.6 * step, 1, 2)
    auto = fixed + rounds(3, 2 * step, 2, 4, looked_up=True)
    of = {"plain": rounds(20, step), "depth 1": fixed, "auto": auto, "no lookup": fixed}
    return [Run(workload, arm, found, step) for arm, found in of.items()]


def test_a_machine_that_slows_down_changes_no_price():
    prices = prices_of(runs("code", 1.0) + runs("chat", 2.5))
    assert prices == pytest.approx(
        {("plain", 0, False): 1, ("fixed", 1, False): 1.6, ("auto", 1, False): 1.6, ("auto", 2, True): 2}
    )


def test_a_round_that_was_disturbed_or_timed_in_parts_does_not_count_as_it_is():
    found = rounds(8, 1.0) + rounds(2, 50.0) + rounds(5, 9.0, parts=Parts(1, 1, 7))
    assert prices_of([Run("code", "plain", found, 1.0)]) == {("plain", 0, False): pytest.approx(1.2)}


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    report(runs("code", 1.0) + runs("chat", 2.5), ARMS)
    auto = (9 * 2 + 3 * 4) / (9 * 1.6 + 3 * 2)
    row = f" | 1.00 | 1.25 | {auto:.2f} | 1.25 | {auto / 1.25:.2f} | {auto / 1.25:.2f} |"
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.endswith(row)] == ["| " + name + row for name in ("code", "chat", "all")]
    assert "auto 2 looked up 2.00" in printed[-1]
