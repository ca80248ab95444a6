"""Drafters: what proposes the tokens that the target then verifies. A drafter knows nothing of verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from mlxmtp.decoding.verifier import NO_DRAFT, Draft, Verifier

if TYPE_CHECKING:
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.heads import Head


class Drafter(Protocol):
    """Proposes up to `depth` tokens, all lazy; fewer, or none, where it has nothing to go on."""

    def propose(self, sequence: Sequence, depth: int, verifier: Verifier) -> Draft:
        """Drafts for the tokens after the sequence's last. The sequence's true rows are unchanged afterwards."""


class MTPChain:
    """The head's recursion: true rows first, then each draft from the hidden state of the one before it."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def propose(self, sequence: Sequence, depth: int, verifier: Verifier) -> Draft:
        pending = sequence.take_pending() if depth else None
        if pending is None:
            return NO_DRAFT
        hidden, tokens = pending
        if hidden.shape[1] > 1:  # of these rows only what the cache keeps is computed: nothing asks for their states
            self._head(hidden[:, :-1], tokens[:, :-1], sequence.head_cache)
            hidden, tokens = hidden[:, -1:], tokens[:, -1:]
        drafts: list[mx.array] = []
        distributions: list[mx.array] = []
        for _ in range(depth):
            states = self._head(hidden, tokens, sequence.head_cache)
            token, q = verifier.draw(self._head.logits(states)[:, 0], len(sequence.tokens), drafts)
            hidden, tokens = self._head.next_hidden(states), token[:, None]
            mx.async_eval(tokens)  # the device drafts while the host builds what comes next
            drafts.append(tokens)
            distributions += [] if q is None else [q]
        for layer in sequence.head_cache:
            layer.trim(depth - 1)  # rows made from drafts, not from the target's own hidden states
        return Draft(mx.concatenate(drafts, axis=1), distributions)
