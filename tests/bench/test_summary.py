"""The report from records: ratios of pairs, pooled acceptance, the share of the ideal, differences."""

from __future__ import annotations

from typing import Any

import pytest

from mlxmtp.bench import table
from mlxmtp.bench.summary import summarise
from tests.bench.conftest import HEAD, cost, record, run

Row = dict[str, Any]


def row(report: Row, arm: str, temperature: float = 0.0) -> Row:
    return next(r for r in report["speed"] if (r["arm"], r["temperature"]) == (arm, temperature))


def test_ratios_are_of_pairs_of_the_same_repeat():
    """The machine became twice as fast: rates spread, ratios do not."""
    found = summarise(HEAD, [record(repeat=0), record(repeat=1, scale=2)])
    depth = row(found, "depth 1")
    assert depth["rate"] == {"median": 225.0, "low": 150.0, "high": 300.0, "count": 2}
    assert depth["ratio"] == {"median": 1.5, "low": 1.5, "high": 1.5, "count": 2}
    assert depth["ratio_to_plain"]["median"] == pytest.approx(150 / 98)
    assert row(found, "mlx-lm")["ratio"]["median"] == 1.0


def test_acceptance_and_tokens_a_round_are_pooled():
    """They are those of all drafts at a depth, over all runs."""
    one, other = record(repeat=0), record(repeat=1)
    one["runs"]["depth 1"] = run(150, tokens=30, rounds=10, drafted=[10, 5], accepted=[10, 5])
    other["runs"]["depth 1"] = run(150, tokens=90, rounds=50, drafted=[30, 0], accepted=[10, 0])
    found = row(summarise(HEAD, [one, other]), "depth 1")
    assert found["acceptance"] == [0.5, 1.0]
    assert found["drafted"] == [40, 5]
    assert found["tokens_per_round"] == 2.0


def test_what_was_reached(report: Row):
    """Ideal: 1.667 tokens in 13 ms. Plain decoding has 98 tokens a second, the arm 150."""
    depth = row(summarise(HEAD, [record()]), "depth 1")
    ideal = 100 / 60 / 0.013 / 98
    assert depth["ideal"]["median"] == pytest.approx(ideal)
    assert depth["reached"]["median"] == pytest.approx(150 / 98 / ideal)
    for arm in ("mlx-lm", "plain", "auto"):
        assert row(report, arm)["ideal"] is None


def test_what_was_reached_goes_by_the_cost_of_the_same_moment():
    """On a machine that became twice as slow, passes are twice as slow."""
    slow = record(repeat=1, scale=0.5, cost=cost(50, one_row=0.02))
    depth = row(summarise(HEAD, [record(), slow]), "depth 1")
    assert depth["rate"]["high"] == 2 * depth["rate"]["low"]
    assert depth["reached"]["high"] == pytest.approx(depth["reached"]["low"])


def test_a_depth_beyond_the_curve_has_no_ideal():
    deep = record()
    deep["runs"]["depth 12"] = run(120)
    assert row(summarise(HEAD, [deep]), "depth 12")["ideal"] is None
    assert row(summarise(HEAD, [record(cost=None)]), "depth 1")["ideal"] is None, "no row can be taken back"


def test_auto_is_compared_with_the_best_of_the_others(report: Row):
    assert [(r["workload"], r["temperature"], r["best"]) for r in report["auto"]] == [
        ("code", 0.0, "depth 1"),
        ("code", 0.7, "depth 1"),
    ]
    assert report["auto"][0]["share"]["median"] == pytest.approx(140 / 150)


def test_where_plain_decoding_is_best():
    slow = record()
    slow["runs"]["depth 1"]["rate"] = 60.0
    assert summarise(HEAD, [slow])["auto"][0]["best"] == "plain"


def test_contexts_have_rates_prefill_and_memory(report: Row):
    assert [r["context"] for r in report["contexts"]] == [1024, 2048]
    one = report["contexts"][0]
    assert one["prefill_rate"]["ours"]["median"] == pytest.approx(1023 / 0.5)
    assert [arm["arm"] for arm in one["arms"]] == ["mlx-lm", "plain", "depth 1", "auto"]
    assert one["arms"][0]["peak_bytes"] == 4_000_000
    assert one["arms"][0]["ttft_s"]["median"] == pytest.approx(0.51)


def test_costs_are_medians_behind_all_prompts_and_by_context(report: Row):
    found = [(cost["where"], cost["context"]) for cost in report["costs"]]
    assert found == [("workloads", 50), ("context 1024", 1024), ("context 2048", 2048)]
    assert report["costs"][0]["curve"][:3] == pytest.approx([1.0, 1.2, 1.4])
    assert report["costs"][0]["draft"] == pytest.approx(0.1)
    costs = [record(repeat=i, cost=cost(50, one_row)) for i, one_row in enumerate((0.01, 0.03, 0.02))]
    assert summarise(HEAD, costs)["costs"][0]["rows_s"][0] == 0.02
    assert summarise(HEAD, [record(cost=None)])["costs"] == []


def test_a_run_without_a_rate_is_in_no_ratio():
    """All of its tokens came in one round."""
    short = record()
    short["runs"]["depth 1"]["rate"] = 0.0
    found = row(summarise(HEAD, [short]), "depth 1")
    assert (found["rate"], found["ratio"]) == (None, None)
    assert "depth 1" in table.as_text(summarise(HEAD, [short]))


def test_drift_is_told():
    steady = summarise(HEAD, [record(repeat=i) for i in range(3)])
    assert "drift: none to speak of (mlx-lm's plain rate +0.0%" in table.as_text(steady)
    slower = summarise(HEAD, [record(repeat=i, scale=1 - 0.1 * i) for i in range(3)])
    text = table.as_text(slower)
    assert "mlx-lm's plain rate changed by -20.0% from the first third to the last: it got warm" in text
    faster = summarise(HEAD, [record(repeat=i, scale=1 + 0.1 * i) for i in range(3)])
    assert "changed by +20.0% from the first third to the last: it had other work at first" in table.as_text(faster)
    assert "drift: not known, which takes two repeats" in table.as_text(summarise(HEAD, [record()]))
    assert "drift" not in table.as_text(summarise(HEAD, []))


def test_differences_are_findings():
    same = summarise(HEAD, [record()])
    assert "tokens: identical to mlx-lm's plain decoding in all 3 greedy runs" in table.as_text(same)
    sampled = summarise(HEAD, [record(temperature=0.7)])
    assert "tokens: nothing greedy was compared with mlx-lm's" in table.as_text(sampled)
    differs = {"depth 1": {"at": 41, "expected": [5], "found": [7], "gap": 0.0625}}
    found = summarise(HEAD, [record(differs=differs), record(repeat=1)])
    assert found["differences"][0]["at"] == 41
    text = table.as_text(found)
    assert "tokens: 1 of 6 greedy runs differ from mlx-lm's plain decoding" in text
    assert "code 0, temperature 0, repeat 1: depth 1 differs at token 42; its logit is 0.0625 lower" in text


def test_what_did_not_fit_is_said_and_not_counted():
    where = {"kind": "context", "workload": "context", "number": 8192, "temperature": 0.0, "repeat": 1}
    failed = where | {"key": "context/1/context/8192/0", "failed": "out of memory: no"}
    found = summarise(HEAD, [record(), failed], planned=2, notes=["one"])
    assert (found["measured"], found["complete"]) == (1, False)
    said = "context 8192, temperature 0, repeat 2 was not measured: out of memory: no; the same command tries it again"
    assert found["notes"] == ["one", said]


def test_a_partial_report_says_so(records: list[Row]):
    found = summarise(HEAD, records[:4], planned=18)
    assert not found["complete"]
    assert "PARTIAL  4 of 18 measurements" in table.as_text(found)


def test_a_report_of_nothing():
    found = summarise(HEAD, [], planned=18)
    assert (found["speed"], found["contexts"], found["costs"], found["drift"]) == ([], [], [], None)
    assert "0 of 18" in table.as_text(found)


def test_a_synthetic_report_proves_no_identity():
    head = HEAD | {"settings": HEAD["settings"] | {"acceptance": 0.8}}
    text = table.as_text(summarise(head, [record()]))
    assert "synthetic: each draft stood with probability 0.8" in text
    assert "identical" not in text
