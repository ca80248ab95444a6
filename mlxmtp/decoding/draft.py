"""Drafts and where they come from: the head's chain, or the text itself. A drafter knows nothing of verification."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from mlxmtp.decoding.sampler import Draft, Sampler, no_draft

if TYPE_CHECKING:
    from mlxmtp.decoding.sampling import Distribution
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.heads import Head, NarrowedLogits

MIN_MATCH = 4
"""Tokens that must be equal for a match. Shorter matches are mostly chance."""
MAX_MATCH = 32
"""Tokens that are compared at most; a longer match predicts no better."""
MAX_CANDIDATES = 16
"""Earlier occurrences that are compared, the latest first: bounds the time of a token."""


class Drafter(Protocol):
    """Proposes up to `depth` tokens, lazily; fewer, or no_draft(), where it has nothing to propose."""

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        """Drafts for the tokens after the sequence's last. The caches are as before afterwards."""


class MTPChain:
    """The head's recursion: each draft is made from the hidden state of the one before it.

    Args:
        narrowed: the head's logits over the narrowed draft vocabulary; None: it drafts from its own.
    """

    def __init__(self, head: Head, narrowed: NarrowedLogits | None = None) -> None:
        self._head = head
        self._narrowed = narrowed

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        pending = sequence.take_pending()
        if pending is None:
            return no_draft()
        hidden, tokens = pending
        if hidden.shape[1] > 1:  # only the cache needs these; their outputs are never evaluated
            self._head(hidden[:, :-1], tokens[:, :-1], sequence.head_cache)
            hidden, tokens = hidden[:, -1:], tokens[:, -1:]
        logits = self._narrowed or self._head.logits
        drafts: list[mx.array] = []
        distributions: list[Distribution] = []
        for _ in range(depth):
            states = self._head(hidden, tokens, sequence.head_cache)
            token, q = sampler.draw_draft(logits(states)[:, 0], len(sequence.tokens), drafts)
            hidden, tokens = self._head.next_hidden(states), token[:, None]
            mx.async_eval(tokens)  # the device drafts while the host builds the next step
            drafts.append(tokens)
            distributions += [] if q is None else [q]
        for layer in sequence.head_cache:
            layer.trim(depth - 1)  # entries made from drafts, not from the target's hidden states
        return Draft(mx.concatenate(drafts, axis=1), distributions, narrowed=self._narrowed is not None)


def narrowed_chain(head: Head | None, narrowed: NarrowedLogits | None) -> MTPChain | None:
    """The chain over the narrowed vocabulary; None: there is no head or no such vocabulary."""
    return MTPChain(head, narrowed) if head and narrowed else None


class PromptLookup:
    """Prompt lookup decoding (Saxena 2023): the tokens that followed the text's end where it occurred before.

    Chains through all occurrences of the same MIN_MATCH tokens, as in LZ77, find the match: a token costs the same
    time whatever the length of the text.

    Attributes:
        match: the number of last tokens that are equal to those at the earlier occurrence, up to MAX_MATCH; 0: fewer
            than MIN_MATCH are.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.match = 0
        self._tokens: list[int] = []
        self._next = 0
        self._latest: dict[tuple[int, ...], int] = {}
        self._previous: list[int] = []
        self.extend(list(tokens))

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:  # noqa: ARG002
        if not self.match:
            return no_draft()
        return Draft(mx.array([self.after(depth)], mx.uint32), [], from_lookup=True)

    def extend(self, tokens: List[int]) -> None:
        """Append tokens to the text."""
        continues = self.match and self.after(len(tokens)) == [*tokens]
        self._tokens += tokens
        self._index()
        if continues:  # the longest match stays the longest
            self._next += len(tokens)
            self.match = min(self.match + len(tokens), MAX_MATCH)
        else:
            self._find()

    def after(self, count: int) -> list[int]:
        """The next `count` tokens, if the text goes on as at the match; past its end, as if it repeated itself."""
        found = self._tokens[self._next : self._next + count]
        while len(found) < count:
            found += found[-(len(self._tokens) - self._next) :][: count - len(found)]
        return found

    def _index(self) -> None:
        """Enter each place that a token follows under the MIN_MATCH tokens before it."""
        tokens, latest, previous = self._tokens, self._latest, self._previous
        for place in range(len(previous), len(tokens)):
            key = tuple(tokens[max(place - MIN_MATCH, 0) : place])
            previous.append(latest.get(key, -1))
            latest[key] = place

    def _find(self) -> None:
        end, self.match = len(self._tokens), 0
        place = self._latest.get(tuple(self._tokens[-MIN_MATCH:]), -1)
        for _ in range(MAX_CANDIDATES):
            if place < MIN_MATCH or self.match == MAX_MATCH:
                return
            length = self._common(place, end)
            if length > self.match:
                self.match, self._next = length, place
            place = self._previous[place]

    def _common(self, one: int, other: int) -> int:
        """The number of equal tokens before two places."""
        tokens, count = self._tokens, MIN_MATCH
        while count < min(MAX_MATCH, one) and tokens[one - count - 1] == tokens[other - count - 1]:
            count += 1
        return count
