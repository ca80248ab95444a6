"""The arithmetic of the report: medians with spread, ratios of pairs, drift, and what could be reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlxmtp.decoding.cost_curve import CostCurve

DRIFT = 0.03
"""A change of the plain rate that is worth a word."""


@dataclass(frozen=True)
class Spread:
    """The median of `count` values, the lowest and the highest."""

    median: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def spread(values: Iterable[float]) -> Spread | None:
    """Of no values, None."""
    known = list(values)
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known), len(known))


def drift(plain: Sequence[tuple[float, str, float]]) -> dict[str, Any] | None:
    """How the plain rate of the last third compares with that of the first; None where too little was measured.

    Args:
        plain: (time, what was run, rate). A rate counts as a share of the mean of its like, as some texts are slower
            than others.
    """
    rates: dict[str, list[float]] = {}
    for _, what, rate in plain:
        rates.setdefault(what, []).append(rate)
    means = {what: statistics.mean(found) for what, found in rates.items() if len(found) > 1}
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
    """Sums by place; shorter ones have nothing there."""
    sums: list[int] = []
    for one in counts:
        sums += [0] * (len(one) - len(sums))
        for i, value in enumerate(one):
            sums[i] += value
    return sums
