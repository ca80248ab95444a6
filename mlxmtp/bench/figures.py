"""Statistics of the report: medians with spread, drift, median costs, and the ideal speed-up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmtp.decoding.cost_curve import CostCurve

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
    """Of several measurements, each part's median, at the mean of their contexts."""
    rows = tuple(statistics.median(column) for column in zip(*(cost.rows for cost in costs), strict=True))
    draft, other = (statistics.median(getattr(cost, part) for cost in costs) for part in ("draft", "other"))
    return CostCurve(statistics.mean(cost.context for cost in costs), rows, draft, other)


def ideal_speedup(tokens_per_round: float, plain_rate: float, cost: CostCurve, depth: int) -> float | None:
    """E / (C(k + 1) + k d), decoding.md 2 without its `o`; None where no pass over so many rows was timed.

    Args:
        plain_rate: of plain decoding, tokens a second. It may be faster than passes over one row that are timed each
            for itself: its next pass is built while the present one is computed.
    """
    if depth + 1 > len(cost.rows):
        return None
    return tokens_per_round / (cost.rows[depth] + depth * cost.draft) / plain_rate


def pooled(counts: Iterable[Sequence[int]]) -> list[int]:
    """Return the sums by position. Shorter sequences count as padded with zeros."""
    sums: list[int] = []
    for one in counts:
        sums += [0] * (len(one) - len(sums))
        for i, value in enumerate(one):
            sums[i] += value
    return sums
