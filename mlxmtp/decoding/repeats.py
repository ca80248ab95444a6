"""How many looked-up drafts stand, by the length of the match: the longer, the likelier that the text goes on alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from mlxmtp.decoding.acceptance import Acceptance
from mlxmtp.decoding.draft import MAX_MATCH, MIN_MATCH

LENGTHS = (MIN_MATCH, 8, 16, MAX_MATCH)
"""Matches from one of these lengths to the next are alike."""
PRIOR = 0.3
"""The share that stands before any was seen."""


class Repeats:
    """Shares by length and position. Each match teaches, drafted or not: the text shows whether it went on alike.

    Args:
        usual: of an earlier run, by length and position.
    """

    def __init__(self, usual: Sequence[Sequence[float]] = ()) -> None:
        known = [*usual, *[()] * len(LENGTHS)]
        self._by_length = [Acceptance(known[i], PRIOR) for i in range(len(LENGTHS))]

    @property
    def usual(self) -> list[list[float]]:
        """What a later run can start from."""
        return [acceptance.usual for acceptance in self._by_length]

    def observe(self, match: int, same: Sequence[bool]) -> None:
        """Behind a match of this length, tokens were the same as there, or not."""
        self._of(match).observe(len(same), len(list(takewhile(bool, same))))

    def tokens(self, match: int, depth: int) -> list[float]:
        """E(0) ... E(depth): a round's expected tokens."""
        return self._of(match).tokens(depth)

    def _of(self, match: int) -> Acceptance:
        return self._by_length[sum(match >= length for length in LENGTHS[1:])]
