"""What a round costs by its depth, learned from the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping

COMMON, SLOWEST = 0.1, 0.05
"""How much of an unexpected time all depths share at once; how much of it a depth takes for its own, at least."""
OUTLIER = 0.5
"""Beyond this, as a logarithm, the machine was busy elsewhere."""
LINE_WEIGHT = 3.0
"""Rounds that the straight line between a depth's neighbours counts for."""
SETTLED = 32
"""Rounds that a ratio of an earlier run counts for."""


class Costs:
    """Plain steps that a round of each depth takes.

    A depth's ratio to a plain step is learned slowly. What all depths have in common - the length of the context, the
    heat of the machine - is learned fast, so that rounds at different times can be compared.

    Args:
        ratios: of an earlier run, by depth.
    """

    def __init__(self, ratios: Mapping[int, float] | None = None) -> None:
        self._logs = {depth: math.log(ratio) for depth, ratio in (ratios or {}).items()}
        self._counts = dict.fromkeys(self._logs, SETTLED)
        self._common: float | None = None

    @property
    def ratios(self) -> dict[int, float]:
        """Plain steps a round, for the depths that were measured; empty before plain decoding was."""
        if 0 not in self._logs:
            return {}
        return {depth: math.exp(log - self._logs[0]) for depth, log in sorted(self._logs.items())}

    def observe(self, depth: int, seconds: float) -> None:
        """A round took so long."""
        found = math.log(max(seconds, 1e-9))
        if self._common is None:
            self._common = found - self._logs.get(depth, 0.0)
        if depth not in self._logs:
            self._logs[depth], self._counts[depth] = found - self._common, 1
            return
        error = max(min(found - self._common - self._logs[depth], OUTLIER), -OUTLIER)
        self._counts[depth] += 1
        self._logs[depth] += max(1 / self._counts[depth], SLOWEST) * error
        self._common += COMMON * error

    def table(self, most: int) -> list[float]:
        """T(0) ... T(most) in plain steps; a depth that was seldom measured lies near the line between others."""
        measured, found = {0: 1.0} | self.ratios, [1.0]
        for depth in range(1, most + 1):
            line = _line([(known, ratio) for known, ratio in measured.items() if known != depth], depth)
            count = self._counts[depth] if depth in measured else 0
            found.append((count * measured.get(depth, 0.0) + LINE_WEIGHT * line) / (count + LINE_WEIGHT))
        return found


def _line(points: list[tuple[int, float]], depth: int) -> float:
    """At `depth`, the straight line through the points beside it, or through the last two; it never falls."""
    if len(points) == 1:
        return points[0][1]
    above = next((i for i, (known, _) in enumerate(points) if known > depth), len(points) - 1)
    (left, low), (right, high) = points[above - 1], points[above]
    return low + max(high - low, 0.0) / (right - left) * (depth - left)
