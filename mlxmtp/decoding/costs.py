"""What a round costs by its depth, learned from the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Kind = tuple[bool, int]
"""Of a round: whether its drafts were looked up, and how many."""
PLAIN: Kind = (False, 0)

NOISE, DRIFT, OWN_DRIFT = 0.05, 0.02, 0.001
"""Standard deviations of logarithms: of a round's time; from one round to the next, of a plain step and of a ratio."""
CHANGE = 0.2
"""Of a plain step when the machine's pace may be another: from turn to turn, and behind a jump."""
JUMP = 4.0
"""So many standard deviations off, a round met other work; where the next is too, the pace is another."""
FIRST_NOISE, SETTLED_DOUBT, UNKNOWN = 0.2, 0.02, 10.0
"""Of a kind's first round, which may compile what later ones only run; of an earlier run's ratio; of what is new."""
SUPPOSED_DOUBT = 0.16
"""Of what is supposed of a depth by others: the straight line between its neighbours."""
SURE = 0.1
"""What is in less doubt is kept for a later run."""
DRAFT_WEIGHT = 0.2
"""The weight of the newest timing of draft steps."""


class Costs:
    """Plain steps that a round of each depth takes, by where its drafts come from.

    The logarithm of a round's time is a plain step's, which the length of the context, heat and other work change, plus
    that of a ratio, the depth's own. A Kalman filter keeps both, and how far their errors go together: what is well
    known follows the pace and keeps its ratio, and a depth that was first tried just when the pace changed is put right
    as it comes to be measured beside others.

    Args:
        ratios: of an earlier run, by depth. looked_up: of rounds whose drafts were looked up.
    """

    def __init__(self, ratios: Mapping[int, float] | None = None, looked_up: Mapping[int, float] | None = None) -> None:
        self._places: dict[Kind, int] = {}
        self._logs, self._covariance = np.zeros(1), np.full((1, 1), UNKNOWN**2)  # a plain step's first
        self._compared = bool(ratios)
        for up, found in ((False, ratios or {}), (True, looked_up or {})):
            for depth, ratio in found.items():
                if (up, depth) != PLAIN:
                    self._add((up, depth), math.log(ratio), SETTLED_DOUBT)
        self._warm = False
        self._beyond = 0.0
        self._draft = 0.0

    def begin(self) -> None:
        """Time has gone by since the last round."""
        self._covariance[0, 0] += CHANGE**2

    def ratios(self, *, looked_up: bool = False) -> dict[int, float]:
        """Plain steps a round, for the depths that were measured; empty before plain decoding was."""
        return self._ratios(looked_up, UNKNOWN)

    def known(self, *, looked_up: bool = False) -> dict[int, float]:
        """Those that are sure enough for a later run; empty where that has to begin anew."""
        sure = self._ratios(False, SURE)
        if len(sure) < 2:
            return {}
        return self._ratios(True, SURE) if looked_up else sure

    def observe(self, depth: int, seconds: float, *, looked_up: bool = False) -> None:
        """A round took so long. A run's first one warms caches up, and says nothing."""
        kind, found, noise = (looked_up, depth), math.log(max(seconds, 1e-9)), NOISE
        if not self._warm:
            self._warm = True
            return
        self._compared |= kind == PLAIN
        if kind != PLAIN and kind not in self._places:
            self._add(kind, 0.0, UNKNOWN)
            noise = FIRST_NOISE
        at = [0] if kind == PLAIN else [0, self._places[kind]]
        self._covariance[at, at] += np.square((DRIFT, OWN_DRIFT)[: len(at)])
        self._correct(at, found - float(self._logs[at].sum()), noise)

    def observe_draft(self, seconds: float) -> None:
        """A draft step took so long."""
        if self._compared and self._covariance[0, 0] < SURE**2:
            found = seconds / math.exp(self._logs[0])
            self._draft += (DRAFT_WEIGHT if self._draft else 1.0) * (found - self._draft)

    def table(self, most: int) -> list[float]:
        """T(0) ... T(most) in plain steps; a depth that was seldom measured lies near the line between others."""
        measured, found = {0: 1.0} | self.ratios(), [1.0]
        for depth in range(1, most + 1):
            others = [(known, ratio) for known, ratio in measured.items() if known != depth]
            supposed = _line(others, depth) if len(others) > 1 else measured.get(depth, 1.0)
            found.append(self._weighed((False, depth), supposed))
        return found

    def looked_up_table(self, most: int) -> list[float]:
        """The same of drafts that were looked up; what was seldom measured takes what the head's take, without them."""
        found = self.table(most)
        for depth in range(1, most + 1):
            found[depth] = self._weighed((True, depth), max(found[depth] - depth * self._draft, 1.0))
        return found

    def _add(self, kind: Kind, log: float, doubt: float) -> None:
        place = self._places[kind] = len(self._logs)
        self._logs, self._covariance = np.append(self._logs, log), np.pad(self._covariance, (0, 1))
        self._covariance[place, place] = doubt**2

    def _correct(self, at: list[int], error: float, noise: float) -> None:
        """The filter's step: what was measured is the sum of the logarithms at these places, and this error."""
        shared = self._covariance[at].sum(axis=0)
        variance = float(shared[at].sum()) + noise**2
        most = JUMP * math.sqrt(variance)
        side = math.copysign(1.0, error) if abs(error) > most else 0.0
        if side and side == self._beyond:  # the second in a row
            self._beyond = 0.0
            self._covariance[0, 0] += CHANGE**2
            shared[0], variance = shared[0] + CHANGE**2, variance + CHANGE**2
        else:
            self._beyond, error = side, max(min(error, most), -most)
        self._logs += shared * (error / variance)
        self._covariance -= np.outer(shared, shared / variance)

    def _ratios(self, looked_up: bool, doubt: float) -> dict[int, float]:
        """What is in no more doubt than that, by depth; a plain step is as long as itself."""
        if not self._compared:
            return {}
        found = {} if looked_up else {0: 1.0}
        for (up, depth), place in sorted(self._places.items()):
            if up == looked_up and self._covariance[place, place] <= doubt**2:
                found[depth] = math.exp(self._logs[place])
        return found

    def _weighed(self, kind: Kind, supposed: float) -> float:
        """What was measured and what is supposed, by how far each is in doubt."""
        if kind not in self._places:
            return supposed
        place = self._places[kind]
        weight = SUPPOSED_DOUBT**2 / (SUPPOSED_DOUBT**2 + float(self._covariance[place, place]))
        return weight * math.exp(self._logs[place]) + (1 - weight) * supposed


def _line(points: list[tuple[int, float]], depth: int) -> float:
    """At `depth`, the straight line through the points beside it, or through the last two; it never falls."""
    above = next((i for i, (known, _) in enumerate(points) if known > depth), len(points) - 1)
    (left, low), (right, high) = points[above - 1], points[above]
    return low + max(high - low, 0.0) / (right - left) * (depth - left)
