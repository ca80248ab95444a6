"""The state of one sequence: its tokens, and how far the caches of target and head have read them."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Self

import mlx.core as mx

if TYPE_CHECKING:
    from mlxmtp.heads import Head
    from mlxmtp.targets import Cache, Target

PREFILL_ROWS = 2048  # mlx-lm's default: the same chunks give the same bits


class Sequence:
    """Tokens and caches between rounds.

    The target's cache holds a row for every token but the last, which the next round feeds. The head's rows and the
    pending ones together are as many: row p pairs the target's hidden state of token p with token p + 1. At least
    the newest row is left pending, because its output is the next round's first draft; of a head without rows of its
    own, that one is all there is to keep.

    Args:
        target, head: the models; without a head nothing is kept for one.
    """

    def __init__(self, target: Target, head: Head | None) -> None:
        self.tokens: list[int] = []
        self.cache: Cache = target.make_cache()
        self.head_cache: Cache = head.make_cache(self.cache) if head else []
        self.head = head
        self.target = target
        self._pending: list[mx.array] = []

    def prefill(
        self, tokens: list[int], rows: int = PREFILL_ROWS, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Append prompt tokens and read all but the last, `rows` at a time; `progress` is told (done, total)."""
        start = done = max(len(self.tokens) - 1, 0)
        self.tokens.extend(tokens)
        end = len(self.tokens) - 1
        while done < end:
            chunk = self.tokens[done : min(done + rows, end)]
            _, hidden = self.target.forward(mx.array([chunk]), self.cache)
            done += len(chunk)
            self._extend_head(hidden, done)
            mx.eval([layer.state for layer in self.cache + self.head_cache], self._pending)
            mx.clear_cache()
            if progress:
                progress(done - start, end - start)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return sum(layer.nbytes for layer in self.cache + self.head_cache)

    def fork(self) -> Self:
        """A second sequence with the same past; each goes on without the other's caches changing."""
        twin = copy(self)
        twin.tokens = list(self.tokens)
        # in one go: a head's cache can be a view of the target's
        twin.cache, twin.head_cache, twin._pending = deepcopy((self.cache, self.head_cache, self._pending))
        return twin

    def advance(self, tokens: list[int], hidden: mx.array) -> None:
        """Append a round's tokens; hidden [1, n, H] are the states of the rows committed for them."""
        self.tokens += tokens
        if self.head:
            self._pending = [*self._pending, hidden] if self.head.own_rows else [hidden[:, -1:]]

    def take_pending(self) -> tuple[mx.array, mx.array] | None:
        """The rows that the head has not read: hidden states [1, n, H] and the tokens [1, n] that follow them."""
        if not self._pending:
            return None
        hidden = _join(self._pending)
        self._pending = []
        return hidden, mx.array([self.tokens[-hidden.shape[1] :]])

    def _extend_head(self, hidden: mx.array, done: int) -> None:
        """Feed the head a prefill chunk that ends before token `done`, its newest row left pending."""
        if not self.head:
            return
        hidden = _join([*self._pending, hidden])
        count = hidden.shape[1] - 1
        if count and self.head.own_rows:
            tokens = mx.array([self.tokens[done - count : done]])
            self.head(hidden[:, :-1], tokens, self.head_cache)
        self._pending = [mx.contiguous(hidden[:, -1:])]  # a view would keep the whole chunk alive


def _join(rows: list[mx.array]) -> mx.array:
    return mx.concatenate(rows, axis=1) if len(rows) > 1 else rows[0]
