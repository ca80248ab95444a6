"""The state of one sequence: its tokens, and how far the caches of target and head have read them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, Self

import mlx.core as mx

from mlxmtp.decoding.snapshots import Position, PrefixInfo, Snapshot, thin_out
from mlxmtp.targets import appends, can_be_kept, parts, put, state_of

if TYPE_CHECKING:
    from mlxmtp.heads import Head
    from mlxmtp.targets import Cache, Target

PREFILL_ROWS = 2048  # mlx-lm's default: the same chunks give the same bits
POINTS = 16
"""Points that a sequence keeps: in a hybrid model, one takes the bytes of a few thousand tokens."""


class Sequence:
    """Tokens and caches between rounds.

    The target's cache holds a row for every token but the last, which the next round feeds. The head's rows and the
    pending ones together are as many: row p pairs the target's hidden state of token p with token p + 1. At least
    the newest row is left pending, because its output is the next round's first draft; of a head without rows of its
    own, that one is all there is to keep.

    Going back, or halted in its prompt, it has no token behind those that were read, until more are prefilled; gone
    back to where no hidden state is kept, none is pending either. A plain turn leaves the head behind where it is.

    Args:
        target, head: the models; without a head nothing is kept for one.

    `rows`: tokens that the target has read. `drafting`: whether the head goes along.
    `answered_at`: rows from which on there is nothing but the newest answer, and what leads up to it.
    """

    def __init__(self, target: Target, head: Head | None) -> None:
        self.tokens: list[int] = []
        self.cache: Cache = target.make_cache()
        self.head_cache: Cache = head.make_cache(self.cache) if head else []
        self.head = head
        self.target = target
        self.rows = 0
        self.drafting = head is not None
        self.snapshots: list[Snapshot] = []
        self.answered_at = 0
        self._pending: list[mx.array] = []

    def prefill(
        self,
        tokens: list[int],
        rows: int = PREFILL_ROWS,
        progress: Callable[[int, int], None] | None = None,
        boundaries: Collection[int] = (),
    ) -> None:
        """Append prompt tokens and read all but the last, `rows` at a time; `progress` is told (done, total).

        What `progress` raises leaves the sequence with the tokens read so far.

        Args:
            boundaries: numbers of tokens behind which to keep a point, where the caches need one.
        """
        unread = self.tokens[self.rows :] + tokens
        del self.tokens[self.rows :]
        start, end = self.rows, self.rows + len(unread) - 1
        self.answered_at = max((mark for mark in boundaries if mark <= end), default=end) - 1
        boundaries = {mark for mark in boundaries if self.rows <= mark <= end} if self._needs_points else set()
        self._keep_point(boundaries)
        while self.rows < end:
            stop = min(self.rows + rows, end, *(mark for mark in boundaries if mark > self.rows))
            chunk = unread[self.rows - start : stop - start]
            _, hidden = self.target.forward(mx.array([chunk]), self.cache)
            self.tokens += chunk
            self._extend_head(hidden)
            self.settle()
            self.rows = stop
            self._keep_point(boundaries)
            mx.clear_cache()
            if progress:
                progress(stop - start, end - start)
        self.tokens += unread[-1:]

    @property
    def nbytes(self) -> int:
        """Bytes of the caches, and of all that is kept to go back."""
        caches: int = sum(layer.nbytes for layer in self.cache + self.head_cache)
        return caches + sum(point.nbytes for point in self.snapshots) + sum(hidden.nbytes for hidden in self._pending)

    def settle(self) -> None:
        """Compute what the last round left to be computed: until then it holds all that it is made from."""
        mx.eval([layer.state for layer in self.cache + self.head_cache], self._pending)

    def fork(self) -> Self:
        """A second sequence with the same past; each goes on without the other's caches changing."""
        twin = copy(self)
        twin.tokens, twin.snapshots = list(self.tokens), list(self.snapshots)
        # in one go: a head's cache can be a view of the target's
        twin.cache, twin.head_cache, twin._pending = deepcopy((self.cache, self.head_cache, self._pending))
        return twin

    @property
    def prefix_info(self) -> PrefixInfo:
        """What it can be of use for."""
        pending = sum(hidden.shape[1] for hidden in self._pending)
        places = tuple(point.place for point in self.snapshots)
        cut = all(map(appends, self._parts()))
        return PrefixInfo(
            self.tokens, Position(self.rows, pending), places, cut, self._head_rows if self.head else None
        )

    def resume(self, prompt: list[int], place: Position, *, drafting: bool) -> None:
        """Stand at one of the `outline`'s places, ready to prefill what `prompt` has beyond its tokens."""
        self._stand(self, prompt, place, drafting)

    def branch(self, prompt: list[int], place: Position, *, drafting: bool) -> Self:
        """A second sequence that stands at such a place; this one stays as it is."""
        twin = type(self)(self.target, self.head)
        twin._stand(self, prompt, place, drafting)
        return twin

    @property
    def can_be_kept(self) -> bool:
        """Whether all kinds of its caches are known: of others there are no points, and no `whole`."""
        return all(map(can_be_kept, self._parts()))

    @property
    def whole(self) -> Snapshot:
        """A point where it stands, with the rows of the caches that append."""
        pending = _join(self._pending) if self._pending else None
        return Snapshot(self.rows, tuple(map(state_of, self._parts())), pending)

    @classmethod
    def made_of(
        cls, target: Target, head: Head | None, tokens: list[int], points: list[Snapshot], whole: Snapshot
    ) -> Self:
        """What had these tokens and points, and stood at `whole`.

        Raises:
            ValueError: these are not a sequence's of such models.
        """
        made = cls(target, head)
        kinds = made._parts()
        if any(len(point.states) != len(kinds) for point in (*points, whole)):
            raise ValueError(f"the states of {len(whole.states)} caches; expected {len(kinds)}")
        for part, state in zip(kinds, whole.states, strict=True):
            if state is None:
                raise ValueError("a cache without its state")
            put(part, state)
        made.tokens, made.rows, made.snapshots = tokens, whole.rows, points
        made.answered_at = (points[-1].rows if points else whole.rows) - 1
        made._pending = [] if whole.pending is None else [whole.pending]
        return made

    def advance(self, tokens: list[int], hidden: mx.array) -> None:
        """Append a round's tokens; hidden [1, n, H] are the states of the rows committed for them."""
        self.tokens += tokens
        self.rows = len(self.tokens) - 1
        if self.head and self.drafting:
            self._pending = [*self._pending, hidden] if self.head.has_kv_cache else [hidden[:, -1:]]

    def take_pending(self) -> tuple[mx.array, mx.array] | None:
        """The rows that the head has not read: hidden states [1, n, H] and the tokens [1, n] that follow them."""
        if not self._pending:
            return None
        hidden = _join(self._pending)
        self._pending = []
        return hidden, mx.array([self.tokens[-hidden.shape[1] :]])

    def thin(self, most: int = POINTS, boundaries: Collection[int] = ()) -> None:
        """Let go of the points that matter least; those at `boundaries` matter most."""
        self.snapshots = thin_out(self.snapshots, most, boundaries)

    def _extend_head(self, hidden: mx.array) -> None:
        """Feed the head a prefill chunk, the last of the tokens, its newest row left pending."""
        if not (self.head and self.drafting):
            return
        hidden = _join([*self._pending, hidden])
        count = hidden.shape[1] - 1
        if count and self.head.has_kv_cache:
            self.head(hidden[:, :-1], mx.array([self.tokens[-count:]]), self.head_cache)
        self._pending = [mx.contiguous(hidden[:, -1:])]  # a view would keep the whole chunk alive

    # -- going back -------------------------------------------------------------------------------------------

    def _parts(self) -> list[Any]:
        """The parts of both caches, the head's last."""
        return parts(self.cache) + parts(self.head_cache)

    @property
    def _needs_points(self) -> bool:
        return self.can_be_kept and not all(map(appends, self._parts()))

    @property
    def _head_rows(self) -> int:
        """Rows that the head has read; one without rows of its own has no more to read than the target."""
        if self.head is None or not self.head.has_kv_cache:
            return self.rows
        return min((part.offset for part in parts(self.head_cache) if appends(part)), default=0)

    def _keep_point(self, boundaries: set[int]) -> None:
        """A point here, if one is wanted and there is none as good."""
        if not self.rows or self.rows not in boundaries:
            return
        if any(point.place >= self.prefix_info.end for point in self.snapshots):
            return
        states = tuple(None if appends(part) else state_of(part) for part in self._parts())
        pending = mx.contiguous(_join(self._pending)) if self._pending else None
        mx.eval([state.arrays for state in states if state], pending)
        self.snapshots = [point for point in self.snapshots if point.rows < self.rows]
        self.snapshots.append(Snapshot(self.rows, states, pending))
        self.thin(boundaries=boundaries)

    def _stand(self, source: Sequence, prompt: list[int], place: Position, drafting: bool) -> None:
        """Take over where `source`, which may be this very sequence, stood at `place`."""
        point = next((point for point in source.snapshots if point.place == place), None)
        target_parts, read = len(parts(self.cache)), min(place.rows - place.pending, source._head_rows)
        for i, (mine, its) in enumerate(zip(self._parts(), source._parts(), strict=True)):
            state = point.states[i] if point else None
            if state:
                put(mine, state)
            elif appends(its):
                _cut(mine, its, place.rows if i < target_parts else read)
            elif mine is not its:
                put(mine, state_of(its))
        count = len(source.tokens)
        goes_on = place == source.prefix_info.end and len(prompt) > count and source.tokens == prompt[:count]
        self.tokens = source.tokens[: count if goes_on else place.rows]
        pending = point.pending if point else _join(source._pending) if place.pending else None
        self._pending = [pending] if drafting and pending is not None else []
        self.snapshots = [point for point in source.snapshots if point.rows <= place.rows]
        self.rows, self.drafting = place.rows, drafting


def _cut(mine: Any, its: Any, rows: int) -> None:
    """Take the first so many rows of a cache that appends, which may be the same; a view follows what it shows."""
    if mine is its:
        mine.trim(max(mine.offset - rows, 0))
    else:
        put(mine, state_of(its, rows))


def _join(rows: list[mx.array]) -> mx.array:
    return mx.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]
