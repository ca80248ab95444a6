"""A pass of the target as a transaction on one sequence's caches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import mlx.core as mx

Commit = Callable[[int, int], None]
"""Takes caches of one sequence back to the first `rows` of a pass's `of` rows: commit(rows, of)."""


class PassListener(Protocol):
    """Is called before and after each pass of `Target.open`."""

    def begin_pass(self, num_tokens: int, num_sequences: int) -> None:
        """A pass over `num_tokens` tokens of each sequence begins."""

    def end_pass(self) -> None:
        """The pass has been built."""


@contextmanager
def in_pass(listeners: Iterable[PassListener], num_tokens: int, num_sequences: int) -> Iterator[None]:
    """Announce a pass to listeners, and its end, also after an error."""
    announced = [*listeners]
    try:
        for listener in announced:
            listener.begin_pass(num_tokens, num_sequences)
        yield
    finally:
        for listener in announced:
            listener.end_pass()


class Pass:
    """One pass of the target over m tokens: a transaction on the caches.

    `commit` must be called once, before the next pass over the same caches.

    Args:
        logits: [B, m, V].
        hidden: [B, m, H], at the target's `hidden_at`.
        commits: what takes each of the caches back.
        padded: tokens that were run, at least m.
    """

    def __init__(self, logits: mx.array, hidden: mx.array, commits: Sequence[Commit], padded: int) -> None:
        self.logits = logits
        self.hidden = hidden
        self._commits = commits
        self._padded = padded

    def commit(self, num_tokens: int) -> None:
        """Roll every layer's cache back to the first `num_tokens` tokens of the pass."""
        commits, self._commits = self._commits, ()  # their states would be held until the next pass has run
        for commit in commits:
            commit(num_tokens, self._padded)
