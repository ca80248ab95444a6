"""Where a sequence can go back to, so that another prompt with the same beginning is not read anew.

Hybrid models and those with sliding windows cannot drop rows at will: they go back to points that were kept on the
way. A cache that only grows is cut anywhere; the last token kept is then read again, for its hidden state.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Several
from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.targets import State


@dataclass(frozen=True)
class Snapshot:
    """What is kept of a sequence when the target had read `rows` tokens.

    Args:
        states: of each part of its caches, the head's last; None for one that is cut.
        pending: [1, n, H], hidden states of the newest rows, which the head had not read; None without a head.
    """

    rows: int
    states: tuple[State | None, ...]
    pending: mx.array | None

    @property
    def nbytes(self) -> int:
        kept = sum(state.nbytes for state in self.states if state)
        return kept + (0 if self.pending is None else self.pending.nbytes)

    @property
    def place(self) -> Position:
        return Position(self.rows, 0 if self.pending is None else self.pending.shape[1])


@dataclass(frozen=True, order=True)
class Position:
    """Where a turn can go on: `rows` read by the target, and how many of their hidden states wait for the head."""

    rows: int
    pending: int = 0


@dataclass(frozen=True)
class PrefixInfo:
    """All that tells whether a sequence, be it in memory or in a file, is of use to a prompt.

    Args:
        tokens: its tokens. end: where it stands. places: where it can go back to.
        appends: whether it can be cut anywhere.
        head_rows: rows that its head has read; None without a head.
    """

    tokens: list[int]
    end: Position
    places: tuple[Position, ...]
    appends: bool
    head_rows: int | None

    def longest_reusable_prefix(self, prompt: list[int], *, drafting: bool) -> Position | None:
        """The furthest place from which `prompt` can be read on, at least its last token being left to read.

        Args:
            drafting: whether the head goes along, and so has to have read as much.
        """
        common = shared_length(self.tokens, prompt)
        found = [
            place for place in (*self.places, self.end) if place.rows <= self._limit(place, common, prompt, drafting)
        ]
        if self.appends:
            cut = Position(0)
            found.append(Position(min(self.end.rows, self._limit(cut, common, prompt, drafting))))
        best = max(found, default=Position(0))
        return best if best.rows > 0 else None

    def _limit(self, place: Position, common: int, prompt: list[int], drafting: bool) -> int:
        """The most rows with which a place like this one would do."""
        if not drafting or (place.pending and self.head_rows is not None):
            return min(common, len(prompt) - 1)
        # the head's last row knows the token behind it, and the next one comes of a row yet to be read
        return min(common - 1, len(prompt) - 2, self.head_rows or 0)


def shared_length(one: Several[int], other: Several[int]) -> int:
    """How many tokens two lists begin with alike."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def thin_out(points: Several[Snapshot], most: int, boundaries: Collection[int] = ()) -> list[Snapshot]:
    """At most so many points: first and last stay, and those at `boundaries`, then those whose loss would cost most.

    Without a point, what lies between it and the one before is read again.
    """
    kept = list(points)
    while len(kept) > max(most, 2):
        gaps = [(kept[i].rows - kept[i - 1].rows, i) for i in range(1, len(kept) - 1)]
        spare = [gap for gap in gaps if kept[gap[1]].rows not in boundaries] or gaps
        del kept[min(spare)[1]]
    return kept
