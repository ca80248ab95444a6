"""The cost of rounds: what is timed, and that the sequence does not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlxmtp import Engine, load
from mlxmtp.bench import cost_curve
from mlxmtp.bench.cost_curve import CostCurve, measure_cost
from mlxmtp.decoding.sequence import Sequence
from tests.running import prefilled, rounds
from tests.scripted import assert_same_state, snapshot

PROMPT = [40, 7, 99, 40, 150, 3, 61, 20]


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_next"])
def engine(request: pytest.FixtureRequest, raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint(request.param, dtype="float32"))


def test_the_curve_has_a_time_for_each_number_of_rows(engine: Engine):
    found = measure_cost(engine.target, engine.mtp, prefilled(engine, PROMPT, 1), 5, repeats=2)
    assert isinstance(found, CostCurve)
    assert (found.context, len(found.pass_s)) == (len(PROMPT), 5)
    assert all(seconds > 0 for seconds in found.pass_s)
    assert found.draft_s >= 0
    assert found.overhead_s >= 0


def test_the_sequence_goes_on_as_if_nothing_had_been(engine: Engine):
    untouched, timed = prefilled(engine, PROMPT, 2), prefilled(engine, PROMPT, 2)
    measure_cost(engine.target, engine.mtp, timed, 6, repeats=1)
    assert timed.tokens == untouched.tokens
    assert_same_state(snapshot(timed.cache), snapshot(untouched.cache), "target")
    assert_same_state(snapshot(timed.head_cache), snapshot(untouched.head_cache), "head")
    texts = [[t for one in rounds(engine, sequence, 20, 2) for t in one.tokens] for sequence in (untouched, timed)]
    assert texts[0] == texts[1]


def test_passes_are_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Each pass starts at the same context length."""
    lengths: list[int] = []
    real = cost_curve._time_pass

    def listening(target: object, sequence: Sequence, m: int) -> float:
        lengths.append(max(getattr(layer, "offset", 0) for layer in sequence.cache))
        return real(engine.target, sequence, m)

    monkeypatch.setattr(cost_curve, "_time_pass", listening)
    measure_cost(engine.target, engine.mtp, prefilled(engine, PROMPT, 1), 4, repeats=2)
    assert lengths == [len(PROMPT) - 1] * 3 * 4


def test_without_a_head_a_draft_costs_nothing(engine: Engine):
    found = measure_cost(engine.target, None, prefilled(engine, PROMPT, 0), 3, repeats=1)
    assert (found.draft_s, found.overhead_s, len(found.pass_s)) == (0.0, 0.0, 3)


def test_no_pass_of_another_run_is_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Plain decoding queues passes ahead, so a timed pass would wait for the queued one."""
    monkeypatch.setattr(cost_curve, "generate", lambda *_: pytest.fail("rounds beside the passes"))
    assert measure_cost(engine.target, None, prefilled(engine, PROMPT, 0), 3, repeats=1).overhead_s == 0.0
    assert measure_cost(engine.target, engine.mtp, prefilled(engine, PROMPT, 1), 1, repeats=1).overhead_s == 0.0


def test_a_short_text_can_be_wider_than_it_is_long(engine: Engine):
    assert len(measure_cost(engine.target, engine.mtp, prefilled(engine, PROMPT[:2], 1), 9, repeats=1).pass_s) == 9


def test_medians_of_times_by_the_clock(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Invented times give medians without the first turn."""
    passes = iter([9.0, 9.0, 1.0, 1.5, 3.0, 3.5, 2.0, 2.5])  # two sizes, four times
    steps = iter([9.0, 0.25, 0.5, 0.125])
    monkeypatch.setattr(cost_curve, "_time_pass", lambda *_: next(passes))
    monkeypatch.setattr(cost_curve._Chain, "time_step", lambda _: next(steps))
    monkeypatch.setattr(cost_curve, "_rounds", lambda *_: iter([9.0, 2.25, 5.0, 3.0]))
    found = measure_cost(engine.target, engine.mtp, prefilled(engine, PROMPT, 1), 2, repeats=3)
    assert found == CostCurve(len(PROMPT), (2.0, 2.5), 0.25, 0.5)


@pytest.mark.parametrize(("max_tokens", "repeats"), [(0, 1), (1, 0)])
def test_nothing_to_measure(engine: Engine, max_tokens: int, repeats: int):
    with pytest.raises(ValueError, match="expected at least 1"):
        measure_cost(engine.target, engine.mtp, prefilled(engine, PROMPT, 1), max_tokens, repeats)


def test_a_head_without_pending_rows(engine: Engine):
    sequence = prefilled(engine, PROMPT, 1)
    sequence.take_pending()
    with pytest.raises(ValueError, match="nothing is pending for the head"):
        measure_cost(engine.target, engine.mtp, sequence, 2)
