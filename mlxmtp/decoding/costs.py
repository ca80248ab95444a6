"""What a round costs by its depth, learned from the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping

PLAIN = (False, 0)
"""The key of plain decoding among those of rounds: whether drafts were looked up, and how many."""
NOISE, DRIFT, OWN_DRIFT = 0.05, 0.03, 0.001
"""Standard deviations of logarithms: of a round's time; from one round to the next, of the machine's pace, and of what
is a depth's own."""
OUTLIER = 0.15
"""Beyond this, as a logarithm, the machine was busy elsewhere."""
FIRST_DOUBT, SETTLED_DOUBT = 0.3, 0.01
"""Of a depth that was measured once, which may have compiled what later rounds only run; of an earlier run's ratio."""
SUPPOSED_WEIGHT = 1.0
"""How many rounds weigh as much as what is supposed of a depth by others: the straight line between its neighbours."""
DRAFT_WEIGHT = 0.2
"""The weight of the newest timing of draft steps."""


class Costs:
    """Plain steps that a round of each depth takes, by where its drafts come from.

    The logarithm of a round's time is the machine's pace, which the length of the context, heat and other work change,
    and a ratio to a plain step that is the depth's own. A Kalman filter for each tells them apart: what was measured
    often is doubted little, so that an unexpected time is the pace's, and rounds at different times can be compared.

    Args:
        ratios: of an earlier run, by depth. looked_up: of rounds whose drafts were looked up.
    """

    def __init__(self, ratios: Mapping[int, float] | None = None, looked_up: Mapping[int, float] | None = None) -> None:
        self._logs = {(False, depth): math.log(ratio) for depth, ratio in (ratios or {}).items()}
        self._logs |= {(True, depth): math.log(ratio) for depth, ratio in (looked_up or {}).items()}
        self._variances = dict.fromkeys(self._logs, SETTLED_DOUBT**2)
        self._pace: float | None = None
        self._pace_variance = 0.0
        self._warm = False
        self._draft = 0.0

    def ratios(self, *, looked_up: bool = False) -> dict[int, float]:
        """Plain steps a round, for the depths that were measured; empty before plain decoding was."""
        plain = self._logs.get(PLAIN)
        if plain is None:
            return {}
        return {depth: math.exp(log - plain) for (kind, depth), log in sorted(self._logs.items()) if kind == looked_up}

    def known(self, *, looked_up: bool = False) -> dict[int, float]:
        """Those that are no more in doubt than a round's time, for a later run; empty where that has to begin anew."""
        sure = self._sure(looked_up=False)
        if 0 not in sure or len(sure) < 2:
            return {}
        return self._sure(looked_up=True) if looked_up else sure

    def observe(self, depth: int, seconds: float, *, looked_up: bool = False) -> None:
        """A round took so long. A run's first one warms caches up, and says nothing."""
        key, found = (looked_up, depth), math.log(max(seconds, 1e-9))
        if not self._warm:
            self._warm = True
            return
        if self._pace is None:
            self._pace = found - self._expected(depth, looked_up)
            self._pace_variance = FIRST_DOUBT**2 if self._logs else 0.0
        if key not in self._logs:
            self._logs[key], self._variances[key] = found - self._pace, FIRST_DOUBT**2
            return
        error = found - self._pace - self._logs[key]
        if self._variances[key] < FIRST_DOUBT**2:
            error = max(min(error, OUTLIER), -OUTLIER)
        pace, own = self._pace_variance + DRIFT**2, self._variances[key] + OWN_DRIFT**2
        whole = pace + own + NOISE**2
        self._pace += pace / whole * error
        self._logs[key] += own / whole * error
        self._pace_variance, self._variances[key] = pace * (1 - pace / whole), own * (1 - own / whole)

    def observe_draft(self, seconds: float) -> None:
        """A draft step took so long."""
        if self._pace is not None and PLAIN in self._logs:
            found = seconds / math.exp(self._pace + self._logs[PLAIN])
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

    def _expected(self, depth: int, looked_up: bool) -> float:
        """The logarithm of a round's time as earlier runs have it; 0 where there were none."""
        if PLAIN not in self._logs:
            return 0.0
        table = self.looked_up_table(depth) if looked_up else self.table(depth)
        return self._logs[PLAIN] + math.log(table[depth])

    def _sure(self, *, looked_up: bool) -> dict[int, float]:
        found = self.ratios(looked_up=looked_up)
        return {depth: ratio for depth, ratio in found.items() if self._variances[looked_up, depth] <= NOISE**2}

    def _weighed(self, looked_up: bool, depth: int, measured: Mapping[int, float], supposed: float) -> float:
        count = NOISE**2 / self._variances[looked_up, depth] if depth in measured else 0.0
        return (count * measured.get(depth, 0.0) + SUPPOSED_WEIGHT * supposed) / (count + SUPPOSED_WEIGHT)


def _line(points: list[tuple[int, float]], depth: int) -> float:
    """At `depth`, the straight line through the points beside it, or through the last two; it never falls."""
    if len(points) == 1:
        return points[0][1]
    above = next((i for i, (known, _) in enumerate(points) if known > depth), len(points) - 1)
    (left, low), (right, high) = points[above - 1], points[above]
    return low + max(high - low, 0.0) / (right - left) * (depth - left)
