"""What `--depth auto` estimates from the rounds of a turn: accepted drafts by position, and the time of a round."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Literal

Source = Literal["head", "narrowed", "lookup"]
"""Where a round's drafts come from: the head, the head over a narrowed vocabulary, or prompt lookup in the text."""

HEAD_PRIOR = 0.7
"""Share of the head's first drafts that is expected to be accepted before any was verified."""
LOOKUP_PRIOR = 0.3
"""The same of the first drafts from prompt lookup: lower, so that lookup has to show first that the text repeats."""
PRIOR_DRAFTS = 5
"""Drafts that the prior of a position weighs as much as: more make a new position slower to learn."""
MAX_DRAFTS = 50
"""Drafts after which the newest one keeps its weight, 1/50: a position goes on following its model and user."""
TEXT_WEIGHT = 0.028
"""Weight of the newest draft in the factor of the text: a switch of the text is followed within about 30 drafts."""
MATCH_LENGTHS = (8, 16, 32)
"""Tokens: matches between two of these lengths share their estimates."""

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
SURE_ROUNDS = 4
"""Rounds, those of the prior included, from which on a cost is saved for the next run."""


class AcceptanceRate:
    """The share of drafts accepted at each position, given that all before were accepted.

    The odds of a share are the position's own, learned slowly, times a factor of the text, learned fast from all
    positions: an accepted draft raises what is expected of every position.

    Args:
        shares: by position, from an earlier run.
        prior: share of the first position before any draft was verified.
    """

    def __init__(self, shares: Sequence[float] = (), prior: float = HEAD_PRIOR) -> None:
        self._prior = _odds(prior)
        self._positions = [_odds(share) for share in shares]
        self._drafts = [PRIOR_DRAFTS] * len(self._positions)
        self._text = 1.0

    @property
    def shares(self) -> list[float]:
        """By position, without the factor of the text: what the next run starts from."""
        return [odds / (1 + odds) for odds in self._positions]

    def observe(self, drafted: int, accepted: int, skipped: Container[int] = ()) -> None:
        """Learn from a round. Drafts after the first rejected one teach nothing; nor do those at skipped positions."""
        for i in range(min(accepted + 1, drafted)):
            if i == len(self._positions):  # a new position is expected to be like the one before
                self._positions.append(self._positions[-1] if i else self._prior)
                self._drafts.append(PRIOR_DRAFTS)
            if i in skipped:
                continue
            self._drafts[i] += 1
            before = self._positions[i] * self._text
            share = before / (1 + before)
            before, error = _odds(share), (i < accepted) - share
            self._positions[i] *= _odds(share + error / min(self._drafts[i], MAX_DRAFTS)) / before
            self._text *= _odds(share + error * TEXT_WEIGHT) / before

    def tokens(self, depth: int, factor: float = 1.0, more: float = 0.0) -> list[float]:
        """The expected tokens of a round at depths 0 to `depth`: E(k) = 1 + a_1 + a_1 a_2 + ...

        Each share is first multiplied by `factor`, and `more` is added to it.
        """
        expected = accepted = 1.0
        tokens, share = [1.0], self._prior * self._text / (1 + self._prior * self._text)
        for i in range(depth):
            if i < len(self._positions):
                odds = self._positions[i] * self._text
                share = odds / (1 + odds)
            accepted *= share * factor + more
            expected += accepted
            tokens.append(expected)
        return tokens


class LookupAcceptance:
    """The acceptance of drafts from prompt lookup, by the length of the match: longer matches are more reliable.

    Args:
        shares: by length class and position, from an earlier run.
    """

    def __init__(self, shares: Sequence[Sequence[float]] = ()) -> None:
        known = [*shares, *[()] * (len(MATCH_LENGTHS) + 1)]
        self._classes = [AcceptanceRate(known[i], LOOKUP_PRIOR) for i in range(len(MATCH_LENGTHS) + 1)]

    @property
    def shares(self) -> list[list[float]]:
        """By length class and position: what the next run starts from."""
        return [acceptance.shares for acceptance in self._classes]

    def of(self, match: int) -> AcceptanceRate:
        """The estimates for a match of this length, in tokens."""
        return self._classes[sum(match >= length for length in MATCH_LENGTHS)]


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
        self.saving = saving or 0.0
        self.narrowed_rounds = 0.0 if saving is None else SAVED_ROUNDS
        self._full_rounds = 0.0 if saving is None else SAVED_ROUNDS

    @property
    def known(self) -> bool:
        """Whether plain steps and drafts of the head were measured, so that the two can be compared."""
        return self._plain_measured and len(self._costs["head"]) > 0

    def sure(self, source: Source) -> dict[int, float]:
        """By depth, the costs that the next run can start from."""
        return {k: cost for k, cost in self._costs[source].items() if self._rounds[source][k] >= SURE_ROUNDS}

    def rounds(self, depth: int) -> int:
        """The number of rounds that the cost of a depth of the head rests on, up to MAX_ROUNDS."""
        return min(self._rounds["head"].get(depth, PRIOR_ROUNDS), MAX_ROUNDS) if depth else MAX_ROUNDS

    def rounds_of(self, source: Source) -> float:
        """The weight of what is known of the saving by rounds over one vocabulary, in rounds."""
        return self.narrowed_rounds if source == "narrowed" else self._full_rounds

    def observe(self, source: Source, depth: int, seconds: float) -> None:
        """Learn from the time of a round."""
        if depth == 0:
            self._plain_measured = True
            self._pace = self._pace or seconds
            self._follow(math.log(seconds / self._pace), 1.0)
            return
        narrowed = source == "narrowed"
        if not (narrowed in self._warm and self._plain_measured):  # a run's first drafts compile, or copy rows
            self._warm.add(narrowed)
            return
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
        self._follow(error, left)
        self._tables.pop(source, None)

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


def _odds(share: float) -> float:
    share = 0.01 if share < 0.01 else 0.99 if share > 0.99 else share
    return share / (1 - share)
