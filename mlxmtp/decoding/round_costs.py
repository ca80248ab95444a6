"""What `--depth auto` learns of the machine: the time of a round by the source and number of its drafts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

from mlxmtp.decoding.estimates import Source
from mlxmtp.limits import MAX_DEPTH

PACE_WEIGHT = 0.3
"""Weight of the newest round in the machine's pace: noise of 5 % a round becomes about 2 %."""
PACE_JUMP = 0.3
"""Error of the logarithm of a round's time above which the pace is taken to have changed: it then follows at once."""
PRIOR_ROUNDS = 2
"""Rounds that the interpolated cost of a depth weighs as much as: one slow round cannot rule a new depth out."""
SAVED_ROUNDS = 10
"""Rounds that a cost of an earlier run weighs as much as."""
MAX_ROUNDS = 50
"""Rounds after which the newest one keeps its weight, 1/50, in the cost of its depth."""
MIN_NARROWED = 0.1
"""Share of a round's cost that narrowed drafts are expected to leave at least, whatever their saving."""
FADE = 1 - 1 / MAX_ROUNDS
"""What a round leaves of the weight of those over the other vocabulary, which knows the machine less and less."""
FRESH_ROUNDS, FRESH_WEIGHT = 4, 0.2
"""Rounds with drafts after plain steps, and the least weight that each has in its cost, where few rounds have to do."""
PLAIN_TIMES = 5
"""Plain steps of which the median is the pace then."""
STARTING_DEPTHS = (1, 2, 4, 8)
"""Depths whose costs are expected of more sequences; the others lie between them."""
SURE_ROUNDS = 4
"""Rounds, those of the prior included, from which on a cost is saved for the next run."""


class RoundCosts:
    """The time of a round by the source and number of its drafts, in plain steps.

    A round takes the time of a plain step, which is the machine's pace, times the depth's own cost. Each round corrects
    both: the cost becomes the mean over its rounds, and the pace follows what is left of the error. So a machine that
    slows down does not make a depth look expensive.

    A round of narrowed drafts costs as much as one of the head's, less one saving for each draft. What it takes longer
    or shorter than expected corrects the saving after the cost, and before the pace. So does a round of the head's,
    which leaves the expected costs of narrowed drafts as they are: else the two could not be told apart.

    Args:
        head: costs from an earlier run, by depth. lookup: the same of rounds with drafts from prompt lookup.
        saving: of a narrowed draft, in plain steps, from an earlier run.

    Attributes:
        careful: the rounds are few, as where turns come and go: the pace stays for the first drafts after plain steps,
            which then tell more of a cost, and one disturbed plain step does not move it.
        plain_rounds: plain steps while `careful`.
        saving: plain steps that a narrowed draft takes less.
        narrowed_rounds: rounds that it rests on, up to MAX_ROUNDS; 0: it was not measured.
    """

    def __init__(
        self,
        head: Mapping[int, float] | None = None,
        lookup: Mapping[int, float] | None = None,
        saving: float | None = None,
    ) -> None:
        saved: dict[Source, Mapping[int, float]] = {"head": head or {}, "lookup": lookup or {}}
        self._costs = {source: {k: costs[k] for k in sorted(costs) if k} for source, costs in saved.items()}
        self._rounds = {source: dict.fromkeys(costs, SAVED_ROUNDS) for source, costs in self._costs.items()}
        self._tables: dict[Source, list[float]] = {}
        self._pace = 0.0  # seconds of a plain step; 0: not measured
        self._plain_measured = bool(head)
        self._warm: set[bool] = set()
        self.careful = False
        self.plain_rounds = 0
        self._plain_times: deque[float] = deque()
        self._since_plain = 0  # drafts
        self.saving = saving or 0.0
        self.narrowed_rounds = 0.0 if saving is None else SAVED_ROUNDS
        self._full_rounds = 0.0 if saving is None else SAVED_ROUNDS

    @property
    def known(self) -> bool:
        """Whether plain steps and drafts of the head were measured, so that the two can be compared."""
        return self._plain_measured and self.begun

    @property
    def begun(self) -> bool:
        """Whether costs of drafts are measured or expected."""
        return len(self._costs["head"]) > 0

    def sure(self, source: Source) -> dict[int, float]:
        """By depth, the costs that the next run can start from."""
        return {k: cost for k, cost in self._costs[source].items() if self._rounds[source][k] >= SURE_ROUNDS}

    def rounds(self, depth: int) -> int:
        """The number of rounds that the cost of a depth of the head rests on, up to MAX_ROUNDS."""
        return min(self._rounds["head"].get(depth, PRIOR_ROUNDS), MAX_ROUNDS) if depth else MAX_ROUNDS

    def rounds_of(self, source: Source) -> float:
        """The weight of what is known of the saving by rounds over one vocabulary, in rounds."""
        return self.narrowed_rounds if source == "narrowed" else self._full_rounds

    def for_sequences(self, ratio: float) -> RoundCosts:
        """What is expected of passes over `ratio` times as many sequences, for a start that the first rounds replace.

        A round is expected to take what one of as many tokens takes here, and a plain step likewise.
        """
        if not self.known:
            return type(self)()
        deepest = math.ceil(ratio * (MAX_DEPTH + 1)) - 1
        table = self.table("head", deepest + 1)
        step = _between(table, ratio - 1)
        costs = {k: _between(table, ratio * (k + 1) - 1) / step for k in STARTING_DEPTHS}
        found = type(self)(costs, saving=self.saving / step if self.narrowed_rounds else None)
        found._plain_measured = False
        found._rounds["head"] = dict.fromkeys(costs, 0)
        return found

    def observe(self, source: Source, depth: int, seconds: float) -> float:
        """Learn from the time of a round; return the time of a plain step that it shows, 0 if it shows nothing."""
        if depth == 0:
            self._plain_measured = True
            if self.careful:
                self._follow_plain(seconds)
                return seconds
            self._pace = self._pace or seconds
            self._follow(math.log(seconds / self._pace), 1.0)
            return seconds
        narrowed = source == "narrowed"
        if not (narrowed in self._warm and self._plain_measured):  # a run's first drafts compile, or copy rows
            self._warm.add(narrowed)
            return 0.0
        source = "head" if narrowed else source
        costs, rounds = self._costs[source], self._rounds[source]
        if depth not in costs:
            costs, rounds = self._add(source, depth, seconds)
        cost = self._narrowed_cost(depth, costs[depth]) if narrowed else costs[depth]
        self._pace = self._pace or seconds / cost
        error = math.log(seconds / (self._pace * cost))
        bounded = max(min(error, PACE_JUMP), -PACE_JUMP)
        rounds[depth] += 1
        weight = 1 / min(rounds[depth], MAX_ROUNDS)
        fresh = self.careful and self._since_plain < FRESH_ROUNDS
        self._since_plain += 1
        if fresh:
            weight = max(weight, FRESH_WEIGHT)
        costs[depth] *= math.exp(weight * bounded)
        left = 1 - weight
        if narrowed:
            self.narrowed_rounds = min(self.narrowed_rounds + 1, MAX_ROUNDS)
            self._full_rounds = max(self._full_rounds * FADE, SURE_ROUNDS)
            weight = left / (self.narrowed_rounds + PRIOR_ROUNDS)
            self.saving -= weight * bounded * cost / depth
            left -= weight
        elif source == "head":
            self._full_rounds = min(self._full_rounds + 1, MAX_ROUNDS)
            if self.narrowed_rounds:
                self.narrowed_rounds = max(self.narrowed_rounds * FADE, SURE_ROUNDS)
                weight = left / (self._full_rounds + PRIOR_ROUNDS)
                change = weight * bounded * cost / depth
                self.saving += change
                for k in costs:
                    costs[k] += k * change
                left -= weight
        if not fresh:
            self._follow(error, left)
        self._tables.pop(source, None)
        return seconds / cost

    def table(self, source: Source, depth: int) -> list[float]:
        """The costs at depths 0 to `depth` or more: of those not measured, on the lines between their neighbours."""
        if source == "narrowed":
            saving, full = self.saving, self.table("head", depth)
            left = [cost - k * saving for k, cost in enumerate(full)]
            return left if min(left) > MIN_NARROWED * full[-1] else [*map(self._narrowed_cost, range(len(full)), full)]
        if not self._costs[source]:
            source = "head"
        table = self._tables.get(source)
        if table is None or len(table) <= depth:
            table = self._tables[source] = _interpolate(self._costs[source], depth)
        return table

    def _narrowed_cost(self, depth: int, cost: float) -> float:
        return max(cost - depth * self.saving, MIN_NARROWED * cost)

    def _follow_plain(self, seconds: float) -> None:
        """Take the median of the last plain steps for the pace, and of the pace before them."""
        if self._since_plain or not self._plain_times:
            self._plain_times = deque([self._pace] if self._pace else [], maxlen=PLAIN_TIMES)
        self._plain_times.append(seconds)
        self._since_plain, self.plain_rounds = 0, self.plain_rounds + 1
        self._pace = median(self._plain_times)

    def _follow(self, error: float, share: float) -> None:
        """Correct the pace by a share of a round's relative error."""
        self._pace *= math.exp(share * (error if abs(error) > PACE_JUMP else PACE_WEIGHT * error))

    def _add(self, source: Source, depth: int, seconds: float) -> tuple[dict[int, float], dict[int, int]]:
        """Begin with the cost that the neighbours let expect; the first depth of all begins with its first round."""
        self._rounds[source][depth] = PRIOR_ROUNDS if self.known else 0
        cost = self.table(source, depth)[depth] if self.known else seconds / self._pace
        self._costs[source] = dict(sorted([*self._costs[source].items(), (depth, cost)]))
        return self._costs[source], self._rounds[source]


def _interpolate(measured: Mapping[int, float], depth: int) -> list[float]:
    """At depths 0 to `depth` or more, lines through the measured costs that never fall; beyond, the mean slope."""
    costs, left, low = [1.0], 0, 1.0
    for right, high in measured.items():
        if right > left + 1:
            slope = max(high - low, 0.0) / (right - left)
            costs += [low + slope * step for step in range(1, right - left)]
        costs.append(high)
        left, low = right, high
    slope = max(low - 1.0, 0.0) / max(left, 1)
    return costs + [low + slope * step for step in range(1, depth - left + 1)]


def _between(table: Sequence[float], depth: float) -> float:
    """The cost at a depth that may lie between two of the table."""
    left = int(depth)
    return table[left] + (depth - left) * (table[left + 1] - table[left])
