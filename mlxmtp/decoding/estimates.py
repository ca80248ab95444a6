"""What `--depth auto` learns of the text: the share of drafts that are accepted, of the head and of prompt lookup."""

from __future__ import annotations

from collections.abc import Container, Sequence
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


def _odds(share: float) -> float:
    share = 0.01 if share < 0.01 else 0.99 if share > 0.99 else share
    return share / (1 - share)
