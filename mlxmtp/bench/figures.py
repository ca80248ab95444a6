"""Statistics of the report: medians with spread, drift, median costs, and the ideal speed-up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmtp.bench.cost_curve import CostCurve

DRIFT = 0.03
"""Relative change of the plain rate above which the report warns of drift."""


@dataclass(frozen=True)
class Spread:
    """The median, the lowest and the highest of `count` values."""

    median: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of the values, or None if there are none."""
    measured = list(values)
    if not measured:
        return None
    return Spread(statistics.median(measured), min(measured), max(measured), len(measured))


def drift(plain: Sequence[tuple[float, str, float]]) -> dict[str, Any] | None:
    """Return how the plain rate changed from the first third of the runs to the last, or None for too few runs.

    Some texts are slower than others, so each rate is divided by the mean rate of its text first.

    Args:
        plain: (time, text, rate) of each run.
    """
    rates: dict[str, list[float]] = {}
    for _, what, rate in plain:
        rates.setdefault(what, []).append(rate)
    means = {what: statistics.mean(alike) for what, alike in rates.items() if len(alike) > 1}
    shares = [rate / means[what] for _, what, rate in sorted(plain) if means.get(what)]
    third = len(shares) // 3
    if not third:
        return None
    first, last = statistics.median(shares[:third]), statistics.median(shares[-third:])
    change = last / first - 1
    return {"first": first, "last": last, "change": change, "noticed": abs(change) > DRIFT, "runs": len(shares)}


def median_cost(costs: Sequence[CostCurve]) -> CostCurve:
    """Return the median of each time of several cost curves, at the mean of their contexts."""
    return CostCurve(
        context=statistics.mean(cost.context for cost in costs),
        pass_s=tuple(statistics.median(column) for column in zip(*(cost.pass_s for cost in costs), strict=True)),
        draft_s=statistics.median(cost.draft_s for cost in costs),
        overhead_s=statistics.median(cost.overhead_s for cost in costs),
    )


def ideal_speedup(tokens_per_round: float, plain_rate: float, cost: CostCurve, depth: int) -> float | None:
    """Return the speed-up at depth k without overhead, or None if no pass over k + 1 tokens was timed.

    It is E / (C(k + 1) + k c), with E tokens a round and the costs of a pass C and of a draft step c (Leviathan et al.
    2023, arXiv:2211.17192, theorem 3.8, where C(k + 1) is 1).

    Args:
        plain_rate: tokens a second of plain decoding. It can be higher than one token a timed pass, because plain
            decoding builds the next pass while the device computes the present one.
    """
    if depth + 1 > len(cost.pass_s):
        return None
    return tokens_per_round / (cost.pass_s[depth] + depth * cost.draft_s) / plain_rate


def pooled(counts: Iterable[Sequence[int]]) -> list[int]:
    """Return the sums by position. Shorter sequences count as padded with zeros."""
    sums: list[int] = []
    for one in counts:
        sums += [0] * (len(one) - len(sums))
        for i, value in enumerate(one):
            sums[i] += value
    return sums
