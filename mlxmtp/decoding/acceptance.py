"""How many drafts stand, by position: an estimate that follows the text."""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR = 0.7
"""The share of first drafts that stands before any was seen."""
TEXT, SLOWEST, FIRST = 0.035, 0.02, 0.25
"""The weight of the newest draft in what the text has in common; in what is usual at its position, at least; and of
the first one there."""
EXTREME = 4.0
"""No text is so much easier or harder than usual, as a difference of log-odds."""
FADING = 0.98
"""What remains of a text's difference a token without drafts later."""
SETTLED = 1
"""Drafts that a share of an earlier run counts for: its text may have been another."""


class Acceptance:
    """The share of drafts that stand at each position, where those before it do: usually, shifted by the text.

    The log-odds of a position are its own, learned slowly, plus the text's, learned fast from all positions: drafts at
    one tell what to expect at the others.

    Args:
        usual: shares by position, from an earlier run. prior: the first position's before anything is known.
    """

    def __init__(self, usual: Sequence[float] = (), prior: float = PRIOR) -> None:
        self._prior = _log_odds(prior)
        self._usual = [_log_odds(share) for share in usual]
        self._counts = [SETTLED] * len(self._usual)
        self._text = 0.0

    @property
    def usual(self) -> list[float]:
        """What an Acceptance of a later run can start from."""
        return [_share(odds) for odds in self._usual]

    def observe(self, drafted: int, accepted: int) -> None:
        """A round's drafts: those behind the first rejected one say nothing."""
        for i in range(min(accepted + 1, drafted)):
            if i == len(self._usual):
                self._usual.append(self._usual[-1] if self._usual else self._prior)
                self._counts.append(0)
            share = _share(self._usual[i] + self._text)
            self._counts[i] += 1
            self._usual[i] += _moved(share, i < accepted, max(FIRST / self._counts[i], SLOWEST))
            self._text = max(min(self._text + _moved(share, i < accepted, TEXT), EXTREME), -EXTREME)

    def fade(self, tokens: int) -> None:
        """So many tokens came without drafts: the text may have become another."""
        self._text *= FADING**tokens

    def tokens(self, depth: int) -> list[float]:
        """E(0) ... E(depth): a round's expected tokens at each depth; unknown positions are like the one before."""
        expected, stands, odds = [1.0], 1.0, self._prior
        for i in range(depth):
            odds = self._usual[i] if i < len(self._usual) else odds
            stands *= _share(odds + self._text)
            expected.append(expected[-1] + stands)
        return expected


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _moved(share: float, stands: bool, weight: float) -> float:
    """By how much the log-odds of an average move when it takes in the newest with this weight."""
    return _log_odds(share + weight * (stands - share)) - _log_odds(share)


def _log_odds(share: float) -> float:
    share = min(max(share, 0.01), 0.99)
    return math.log(share / (1 - share))
