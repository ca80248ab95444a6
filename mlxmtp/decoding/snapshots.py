"""Snapshots of a sequence's caches, so that a prompt that shares a prefix with an earlier one is not read again.

A KV cache that only appends is trimmed to any length. Recurrent states and wrapped sliding windows cannot be trimmed:
such a sequence goes back to snapshots that were taken while its prompt was read.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx

from mlxmtp.prefixes import common_length
from mlxmtp.targets import CacheState


@dataclass(frozen=True)
class Snapshot:
    """The caches of a sequence at one offset.

    Args:
        offset: tokens that the target's cache held.
        states: of each leaf cache, the head's last; None for a trimmable cache, which needs no copy.
        pending: [1, n, H], the target's newest hidden states, which the head had not read; None without a head.
        within: inside a message, where fewer prompts branch than at a boundary.
    """

    offset: int
    states: tuple[CacheState | None, ...]
    pending: mx.array | None
    within: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        copies = sum(state.nbytes for state in self.states if state)
        return copies + (0 if self.pending is None else self.pending.nbytes)

    @property
    def position(self) -> Position:
        """Where a turn can continue with this snapshot."""
        return Position(self.offset, 0 if self.pending is None else self.pending.shape[1])


@dataclass(frozen=True, order=True)
class Position:
    """Where a turn can continue.

    Args:
        offset: tokens that the target has read. pending: hidden states that the head has not read.
    """

    offset: int
    pending: int = 0


@dataclass(frozen=True)
class PrefixInfo:
    """The facts that decide whether a sequence, in memory or on disk, helps a prompt.

    Args:
        tokens: the sequence's tokens.
        end: its last position.
        positions: of its snapshots.
        trimmable: every cache can be trimmed to any length.
        head_offset: tokens that its head has read; None without a head.
        answers: (start, end) of the tokens that the model generated.
    """

    tokens: list[int]
    end: Position
    positions: tuple[Position, ...]
    trimmable: bool
    head_offset: int | None
    answers: tuple[tuple[int, int], ...] = ()

    def longest_reusable_prefix(self, prompt: list[int], *, drafting: bool) -> Position | None:
        """The last position from which `prompt` can be continued; None where nothing can be reused.

        At least the prompt's last token is left to read.

        Args:
            drafting: the turn uses the head, so the head must have read the prefix too.
        """
        common = common_length(self.tokens, prompt)
        found = [
            position
            for position in (*self.positions, self.end)
            if position.offset <= self._limit(position, common, prompt, drafting)
        ]
        if self.trimmable:
            found.append(Position(min(self.end.offset, self._limit(Position(0), common, prompt, drafting))))
        best = max(found, default=Position(0))
        return best if best.offset > 0 else None

    def extends(self, other: PrefixInfo) -> bool:
        """Whether target and head have read what they have read in `other`, and maybe more."""
        return self.tokens[: len(other.tokens)] == other.tokens and (self.head_offset or 0) >= (other.head_offset or 0)

    def _limit(self, position: Position, common: int, prompt: list[int], drafting: bool) -> int:
        """The largest offset at which a position with these pending states can be used."""
        if not drafting or (position.pending and self.head_offset is not None):
            return min(common, len(prompt) - 1)
        # No hidden state is kept. The head's last entry contains the token after it, and the next entry needs the
        # hidden state of a token that the target reads again: both leave one token more to read.
        return min(common - 1, len(prompt) - 2, self.head_offset or 0)


def chunk_ends(boundaries: Collection[int], chunk_size: int) -> set[int]:
    """Offsets between distant boundaries, for prompts that differ in the middle of a long message.

    They are the ends of the 1st, 2nd, 4th, 8th chunk before each boundary, and so on. A prompt that differs n tokens
    before the boundary has to read these n tokens, and no more than n and a chunk besides.
    """
    ends = set()
    for start, end in pairwise((0, *sorted(boundaries))):
        number = (end - 1) // chunk_size
        back = 1
        while (offset := (number + 1 - back) * chunk_size) >= start + chunk_size:
            ends.add(offset)
            back *= 2
    return ends


def thin_out(snapshots: List[Snapshot], limit: int, boundaries: Collection[int] | None = None) -> list[Snapshot]:
    """At most `limit` snapshots (at least 2: the first at a boundary, and the last).

    The snapshot that saves the fewest tokens goes first; those at `boundaries` go last (None: all but those inside
    messages).
    """
    kept = list(snapshots)
    first = next((one for one in kept if not one.within), None)
    if boundaries is None:
        boundaries = {one.offset for one in kept if not one.within}
    while len(kept) > max(limit, 2):
        before = [0, *(one.offset for one in kept)]
        gaps = [(one.offset - before[i], i) for i, one in enumerate(kept[:-1]) if one is not first]
        spare = [gap for gap in gaps if kept[gap[1]].offset not in boundaries] or gaps
        del kept[min(spare)[1]]
    return kept
