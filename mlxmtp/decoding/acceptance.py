"""How many drafts stand, by position: an estimate that follows the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FADING = 0.97
"""What remains of the weight of a draft's fate, one such draft later."""
LATELY, CHANGED = 0.15, 0.42
"""The weight of a draft in the latest few, and how far these differ from what was before when the text has changed."""
OFTEN = 64
"""So many drafts make what is usual."""
USUAL_WEIGHT, NEIGHBOUR_WEIGHT = 4.0, 4.0
"""For how many drafts count: what is usual; the position before, in what is usual."""
PRIOR = 0.7
"""The acceptance of the first position before any draft stood or fell there."""


@dataclass
class _Position:
    """The fates of the drafts at one position."""

    usual: float = 0.0
    known: int = 0
    stood: float = 0.0
    tried: float = 0.0
    lately: float = PRIOR

    def observe(self, stands: bool) -> None:
        self.known = min(self.known + 1, OFTEN)
        self.usual += (stands - self.usual) / self.known
        self.lately += LATELY * (stands - self.lately)
        if abs(self.lately - self.stood / max(self.tried, 1.0)) > CHANGED:
            self.tried = min(self.tried, 1 / LATELY)
            self.stood = self.tried * self.lately
        self.tried = FADING * self.tried + 1
        self.stood = FADING * self.stood + stands

    def share(self, before: float) -> float:
        usual = (self.known * self.usual + NEIGHBOUR_WEIGHT * before) / (self.known + NEIGHBOUR_WEIGHT)
        return (self.stood + USUAL_WEIGHT * usual) / (self.tried + USUAL_WEIGHT)


class Acceptance:
    """The share of drafts that stand at each position: of the latest, where they are few, as usual.

    Args:
        usual: shares by position, from an earlier run.
    """

    def __init__(self, usual: Sequence[float] = ()) -> None:
        self._positions = [_Position(share, OFTEN) for share in usual]

    @property
    def usual(self) -> list[float]:
        """What an Acceptance of a later run can start from."""
        return [position.usual for position in self._positions]

    def observe(self, drafted: int, accepted: int) -> None:
        """A round's drafts: those behind the first rejected one say nothing."""
        for i in range(min(accepted + 1, drafted)):
            if i == len(self._positions):
                self._positions.append(_Position())
            self._positions[i].observe(i < accepted)

    def fade(self, tokens: int) -> None:
        """So many tokens came without drafts: what the latest drafts did grows old."""
        for position in self._positions:
            position.stood *= FADING**tokens
            position.tried *= FADING**tokens

    def tokens(self, depth: int) -> list[float]:
        """E(0) ... E(depth): a round's expected tokens at each depth; unknown positions are like the one before."""
        expected, stands, share = [1.0], 1.0, PRIOR
        for i in range(depth):
            share = self._positions[i].share(share) if i < len(self._positions) else share
            stands *= share
            expected.append(expected[-1] + stands)
        return expected
