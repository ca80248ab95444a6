"""Drafts and where they come from: the head's chain, or the text itself. A drafter knows nothing of verification."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx

from mlxmtp.decoding.sampler import Draft, Sampler, no_draft
from mlxmtp.errors import is_out_of_memory
from mlxmtp.heads.several import LayerChain

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


@dataclass(frozen=True)
class DraftRequest:
    """What one turn asks of its drafter. Depth 0 asks for nothing."""

    drafter: Drafter | None
    sequence: Sequence
    depth: int
    sampler: Sampler


def propose(requests: List[DraftRequest]) -> list[Draft]:
    """Each turn's drafts. Turns with the same chain of a head share its passes."""
    drafts = [no_draft()] * len(requests)
    chains: dict[MTPChain, list[int]] = {}
    for i, request in enumerate(requests):
        if request.depth and isinstance(request.drafter, MTPChain):
            chains.setdefault(request.drafter, []).append(i)
        elif request.depth and request.drafter:
            drafts[i] = request.drafter.propose(request.sequence, request.depth, request.sampler)
    for chain, places in chains.items():
        for i, draft in zip(places, chain.propose_shared([requests[i] for i in places]), strict=True):
            drafts[i] = draft
    return drafts


class _OpenDraft:
    """The drafts of one turn while its chain runs. The chain of a deeper turn may run on after its last."""

    def __init__(self, request: DraftRequest) -> None:
        self._request = request
        self._tokens: list[mx.array] = []
        self._distributions: list[Distribution] = []
        self._error: Exception | None = None

    def first(self, count: int) -> list[mx.array]:
        """The first `count` drafts [1, 1]. Where there are fewer, any token takes the place of the others."""
        newest = self._tokens[-1:] or [mx.zeros((1, 1), mx.uint32)]
        return self._tokens[:count] + newest * (count - len(self._tokens))

    def extend(self, logits: mx.array) -> None:
        """Draw the next draft from the head's logits [1, V], unless the turn has all that it asked for."""
        request = self._request
        if self._error or len(self._tokens) == request.depth:
            return
        try:
            token, q = request.sampler.draw_draft(logits, len(request.sequence.tokens), self._tokens)
        except Exception as error:  # of a logits processor: its turn raises it, and other turns go on
            if is_out_of_memory(error):
                raise
            self._error = error
            return
        self._tokens.append(token[:, None])
        self._distributions += [] if q is None else [q]

    def close(self, *, narrowed: bool) -> Draft:
        """The draft; after an error none, with the error."""
        if self._error:
            return no_draft(self._error)
        return Draft(mx.concatenate(self._tokens, axis=1), self._distributions, narrowed=narrowed)


class MTPChain:
    """A head's drafts: each is made from the one before it, and from what the head made of that.

    Two chains are equal if they draft alike, and then share passes.

    Args:
        narrowed: the head's logits over the narrowed draft vocabulary; None: it drafts from its own.
    """

    def __init__(self, head: Head, narrowed: NarrowedLogits | None = None) -> None:
        self._head = head
        self._narrowed = narrowed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MTPChain) and self._head is other._head and self._narrowed is other._narrowed

    def __hash__(self) -> int:
        return hash((id(self._head), id(self._narrowed)))

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        return self.propose_shared([DraftRequest(self, sequence, depth, sampler)])[0]

    def propose_shared(self, requests: List[DraftRequest]) -> list[Draft]:
        """The drafts of several turns, in as many passes of the head as the deepest asks for."""
        pending = [request.sequence.take_pending() for request in requests]
        ready = [(request, states) for request, states in zip(requests, pending, strict=True) if states]
        drafts = iter(self._draft([request for request, _ in ready], [states for _, states in ready]) if ready else ())
        return [next(drafts) if states else no_draft() for states in pending]

    def _draft(self, requests: List[DraftRequest], pending: List[tuple[mx.array, mx.array]]) -> list[Draft]:
        """The drafts of turns with hidden states [1, n_b, H] and tokens [1, n_b] that the head has not read."""
        chain = LayerChain(self._head, [request.sequence.head_cache for request in requests])
        states = chain.begin([hidden for hidden, _ in pending], [after for _, after in pending])
        drafts = [_OpenDraft(request) for request in requests]
        depth = max(request.depth for request in requests)
        for step in range(1, depth + 1):
            rows = self._logits(chain.layer, _joined(states))[:, 0]
            for b, draft in enumerate(drafts):
                draft.extend(rows[b : b + 1] if len(drafts) > 1 else rows)
            tokens = [draft.first(step) for draft in drafts]
            mx.async_eval([own[-1] for own in tokens])  # the device drafts while the host builds the next step
            if step < depth:
                states = chain.draft(tokens)
        chain.take_back()  # rows of drafts, not of the target's hidden states
        return [draft.close(narrowed=self._narrowed is not None) for draft in drafts]

    def _logits(self, layer: Any, states: mx.array) -> mx.array:
        logits: mx.array = self._narrowed(layer, states) if self._narrowed else layer.logits(states)
        return logits


def _joined(rows: List[mx.array]) -> mx.array:
    return mx.concatenate(list(rows)) if len(rows) > 1 else rows[0]


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
