"""What a round costs by its depth, learned from the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping

PLAIN = (False, 0)
"""The key of plain decoding among those of rounds: whether drafts were looked up, and how many."""
COMMON, SLOWEST = 0.1, 0.05
"""How much of an unexpected time all depths share at once; how much of it a depth takes for its own, at least."""
OUTLIER = 0.5
"""Beyond this, as a logarithm, the machine was busy elsewhere."""
SUPPOSED_WEIGHT = 3.0
"""Rounds that count for what is supposed of a depth by others: the straight line between its neighbours."""
SETTLED = 32
"""Rounds that a ratio of an earlier run counts for."""
DRAFT_WEIGHT = 0.2
"""The weight of the newest timing of draft steps."""


class Costs:
    """Plain steps that a round of each depth takes, by where its drafts come from.

    A depth's ratio to a plain step is learned slowly. What all depths have in common - the length of the context, the
    heat of the machine - is learned fast, so that rounds at different times can be compared.

    Args:
        ratios: of an earlier run, by depth. looked_up: of rounds whose drafts were looked up.
    """

    def __init__(self, ratios: Mapping[int, float] | None = None, looked_up: Mapping[int, float] | None = None) -> None:
        self._logs = {(False, depth): math.log(ratio) for depth, ratio in (ratios or {}).items()}
        self._logs |= {(True, depth): math.log(ratio) for depth, ratio in (looked_up or {}).items()}
        self._counts = dict.fromkeys(self._logs, SETTLED)
        self._common: float | None = None
        self._draft = 0.0

    def ratios(self, *, looked_up: bool = False) -> dict[int, float]:
        """Plain steps a round, for the depths that were measured; empty before plain decoding was."""
        plain = self._logs.get(PLAIN)
        if plain is None:
            return {}
        return {depth: math.exp(log - plain) for (kind, depth), log in sorted(self._logs.items()) if kind == looked_up}

    def observe(self, depth: int, seconds: float, *, looked_up: bool = False) -> None:
        """A round took so long."""
        key, found = (looked_up, depth), math.log(max(seconds, 1e-9))
        if self._common is None:
            self._common = found - self._logs.get(key, 0.0)
        if key not in self._logs:
            self._logs[key], self._counts[key] = found - self._common, 1
            return
        if self._counts[key] == 1:  # the first may have compiled what later ones only run
            self._logs[key] = min(self._logs[key], found - self._common)
        error = max(min(found - self._common - self._logs[key], OUTLIER), -OUTLIER)
        self._counts[key] += 1
        self._logs[key] += max(1 / self._counts[key], SLOWEST) * error
        self._common += COMMON * error

    def observe_draft(self, seconds: float) -> None:
        """A draft step took so long."""
        if self._common is not None and PLAIN in self._logs:
            found = seconds / math.exp(self._common + self._logs[PLAIN])
            self._draft += (DRAFT_WEIGHT if self._draft else 1.0) * (found - self._draft)

    def table(self, most: int) -> list[float]:
        """T(0) ... T(most) in plain steps; a depth that was seldom measured lies near the line between others."""
        measured, found = {0: 1.0} | self.ratios(), [1.0]
        for depth in range(1, most + 1):
            line = _line([(known, ratio) for known, ratio in measured.items() if known != depth], depth)
            found.append(self._weighed(False, depth, measured, line))
        return found

    def looked_up_table(self, most: int) -> list[float]:
        """The same of drafts that were looked up; what was seldom measured takes what the head's take, without them."""
        measured, found = self.ratios(looked_up=True), self.table(most)
        for depth in range(1, most + 1):
            found[depth] = self._weighed(True, depth, measured, max(found[depth] - depth * self._draft, 1.0))
        return found

    def _weighed(self, looked_up: bool, depth: int, measured: Mapping[int, float], supposed: float) -> float:
        count = self._counts[looked_up, depth] if depth in measured else 0
        return (count * measured.get(depth, 0.0) + SUPPOSED_WEIGHT * supposed) / (count + SUPPOSED_WEIGHT)


def _line(points: list[tuple[int, float]], depth: int) -> float:
    """At `depth`, the straight line through the points beside it, or through the last two; it never falls."""
    if len(points) == 1:
        return points[0][1]
    above = next((i for i, (known, _) in enumerate(points) if known > depth), len(points) - 1)
    (left, low), (right, high) = points[above - 1], points[above]
    return low + max(high - low, 0.0) / (right - left) * (depth - left)
