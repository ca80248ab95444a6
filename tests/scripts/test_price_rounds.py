"""`scripts/price_rounds.py`: rounds priced by their kind, in plain steps of the same prompt."""

import runpy
from math import inf
from pathlib import Path

import pytest

from mlxmtp.decoding.stats import PhaseTimes, Round

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "price_rounds.py"))
Run, times_of, mean_of, overhead, report = (
    SCRIPT[name] for name in ("Run", "times_of", "mean_of", "overhead", "report")
)
ARMS = ["plain", "depth 1", "auto", "no lookup"]


def rounds(count: int, seconds: float, drafted: int = 0, tokens: int = 1, **more: object) -> list[Round]:
    return [Round((7,) * tokens, drafted, tokens - 1, 1, None, seconds=seconds, **more)] * count  # type: ignore[arg-type]


def runs(workload: str, step: float, slow: float = 1.0) -> list[object]:
    """Depth 1 takes 1.6 steps for two tokens; auto `slow` times that, and 2 for a looked-up round of four tokens."""
    auto = rounds(9, slow * 1.6 * step, 1, 2)
    of = {"plain": rounds(20, step), "depth 1": rounds(9, 1.6 * step, 1, 2)}
    of |= {"auto": auto + rounds(3, 2 * step, 2, 4, from_lookup=True), "no lookup": auto}
    return [Run(workload, arm, found, step) for arm, found in of.items()]


def test_a_machine_that_slows_down_changes_no_price():
    times = times_of(runs("code", 1.0) + runs("chat", 2.5))
    prices = {kind: mean_of(found) for kind, found in times.items()}
    assert {kind: price for kind, (price, _) in prices.items()} == pytest.approx(
        {(0, False): 1, (1, False): 1.6, (2, True): 2}
    )
    assert [error for _, error in prices.values()] == pytest.approx([0, 0, 0])


def test_a_round_that_was_disturbed_or_timed_in_parts_does_not_count_as_it_is():
    found = rounds(8, 1.0) + rounds(2, 50.0) + rounds(5, 9.0, phases=PhaseTimes(1, 1, 7))
    assert mean_of(times_of([Run("code", "plain", found, 1.0)])[0, False]) == (pytest.approx(1.2), inf)


def test_the_error_is_that_of_the_means_of_runs():
    """Rounds of a run are disturbed together: two runs of many rounds are two samples, not many."""
    assert mean_of([[1.0] * 50, [1.2] * 50]) == pytest.approx((1.1, 0.1))


def test_an_overhead_of_auto_shows():
    found = overhead(runs("code", 1.0, slow=1.1) + runs("chat", 2.5, slow=1.1))
    assert found == {(1, False): pytest.approx((1.1, 0))}


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    report(runs("code", 1.0) + runs("chat", 2.5), ARMS)
    auto = (9 * 2 + 3 * 4) / (9 * 1.6 + 3 * 2)
    row = f" | 1.00 | 1.25 | {auto:.2f} | 1.25 | {auto / 1.25:.2f} | {auto / 1.25:.2f} |"
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.endswith(row)] == ["| " + name + row for name in ("code", "chat", "all")]
    assert "plain steps that a round takes: 0 drafted 1.00, 1 drafted 1.60, 2 looked up 2.00" in printed
    assert printed[-1] == "auto's rounds to the others' of their kind: 1 drafted 1.00 ± 0.00"
