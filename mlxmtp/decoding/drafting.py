"""Drafting with `--depth auto`: of the head or, where the text repeats itself, of the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.decoding.auto import AutoDepth
from mlxmtp.decoding.drafters import MTPChain
from mlxmtp.decoding.lookup import Lookup
from mlxmtp.decoding.loop import StopCheck, decode_plainly, speculate
from mlxmtp.decoding.verifier import Draft, Verifier

if TYPE_CHECKING:
    from mlxmtp.decoding.depth import DepthPolicy
    from mlxmtp.decoding.drafters import Drafter
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.decoding.stats import Round
    from mlxmtp.heads import Head
    from mlxmtp.targets import Target


def generate(
    target: Target,
    head: Head | None,
    sequence: Sequence,
    verifier: Verifier,
    policy: DepthPolicy,
    keep: StopCheck,
    max_tokens: int,
    logprobs: int | None = None,
) -> Iterator[Round]:
    """Rounds as the engine decodes: plain without a head, with looked-up drafts where the depth is its own choice.

    Arguments, errors and the caches afterwards as for `speculate`.
    """
    if head is None:
        return decode_plainly(target, sequence, verifier, keep, max_tokens, logprobs)
    chain = MTPChain(head)
    if isinstance(policy, AutoDepth):
        auto = AutoDrafter(chain, policy, sequence)
        return speculate(target, auto, sequence, verifier, auto, keep, max_tokens, logprobs)
    return speculate(target, chain, sequence, verifier, policy, keep, max_tokens, logprobs)


class AutoDrafter:
    """A turn's drafter and its policy in one, for the depth depends on where the drafts come from.

    Args:
        head: drafts where the text has nothing better. policy: what was learned in earlier turns; it goes on learning.
    """

    def __init__(self, head: Drafter, policy: AutoDepth, sequence: Sequence) -> None:
        self._head = head
        self._policy = policy
        self._sequence = sequence
        self._text = Lookup()
        self._text.extend(sequence.tokens)
        self._priced = 0
        policy.begin()

    @property
    def why(self) -> str:
        return self._policy.why

    def next(self) -> int:
        depth = self._policy.repeat(self._text.match)
        self._priced = self._text.match if depth else 0
        return depth or self._policy.next()

    def propose(self, sequence: Sequence, depth: int, verifier: Verifier) -> Draft:
        if not self._priced:
            return self._head.propose(sequence, depth, verifier)
        if self._text.match < self._priced:  # the last plain token, which was not known yet, went another way
            return self._head.propose(sequence, 1, verifier)
        return Draft(mx.array([self._text.after(depth)], mx.uint32), [], looked_up=True)

    def observe(self, one: Round) -> None:
        if self._text.match:
            repeated = zip(one.tokens, self._text.after(len(one.tokens)), strict=True)
            self._policy.repeats.observe(self._text.match, [token == before for token, before in repeated])
        self._policy.observe(one)
        self._text.extend(self._sequence.tokens[len(self._text) :])
